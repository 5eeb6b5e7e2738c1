"""Settings that follow from how many images there are, and what is said of a training that ends near chance."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from enhanced_glyph_recognition import main
from glyphs.core.config import Config
from glyphs.data.demo import FONTS, draw_master
from glyphs.data.loaders import get_data_loaders
from glyphs.training.chance import near_chance
from glyphs.training.follow import EPOCH_STEPS, FEW, PATIENCE_STEPS, follow_data

FOLDER = Config(dataset="folder")


def draw_folder(root: Path, classes: str, count: int) -> None:
    for character in classes:
        for number in range(count):
            path = root / character / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            glyph = np.roll(draw_master(FONTS[number % len(FONTS)], character).numpy(), number // len(FONTS), 0)
            Image.fromarray(255 - np.pad(glyph, 8)).save(path)


def test_many_images_keep_the_settings_of_emnist() -> None:
    assert follow_data(FOLDER, {}, FEW, 10) == (FOLDER, {})


@pytest.mark.parametrize("images", [1, 4, 140, 1280, 1281, 5000, FEW - 1])
def test_few_images_get_steps_enough(images: int) -> None:
    config, own = follow_data(FOLDER, {}, images, 3)
    assert {name: getattr(config, name) for name in own} == own
    steps = -(-images * config.passes_per_epoch // config.batch_size)
    assert steps >= 0.6 * EPOCH_STEPS
    assert config.early_stopping_patience * steps >= PATIENCE_STEPS
    assert config.early_stopping_patience >= FOLDER.early_stopping_patience
    assert config.passes_per_epoch == 1 or steps <= 1.4 * EPOCH_STEPS


def test_many_classes_are_each_seen_often() -> None:
    assert follow_data(FOLDER, {}, 900, 500)[0].passes_per_epoch == 6  # 5,400 images, ten of each class


def test_what_the_user_says_stays() -> None:
    given = {"batch_size": 128, "use_residual": True, "early_stopping_patience": 3, "passes_per_epoch": 2}
    config = Config.from_dict({"dataset": "folder"} | given)
    assert follow_data(config, given, 100, 3) == (config, {})
    config, own = follow_data(Config(learning_rate=0.5), {"learning_rate": 0.5}, 100, 3)
    assert (config.learning_rate, own["use_residual"]) == (0.5, False)
    config, _ = follow_data(Config(batch_size=8), {"batch_size": 8}, 100, 3)
    assert config.passes_per_epoch == 3  # 300 images, 38 steps


@pytest.mark.parametrize("own", [{"finetune": "a.pth"}, {"arch": "a:b"}])
def test_a_network_that_is_there_already_keeps_its_form_and_rate(own: dict[str, str]) -> None:
    config = follow_data(Config(**own), own, 100, 3)[0]  # type: ignore[arg-type]
    assert (config.use_residual, config.learning_rate) == (True, Config().learning_rate)
    assert config.passes_per_epoch > 1


def test_loaders_in_other_batches_are_those_of_the_settings(tmp_path: Path) -> None:
    draw_folder(tmp_path / "data", "AB3", 6)
    settings = {"dataset": "folder", "data_dir": str(tmp_path / "data"), "output_dir": str(tmp_path)}
    before, after = Config.from_dict(settings), Config.from_dict(settings | {"batch_size": 4, "passes_per_epoch": 3})
    given, expected = get_data_loaders(before).in_batches(before, after), get_data_loaders(after)
    count = 3 * len(expected.train.index.unique())  # type: ignore[no-untyped-call]
    assert len(expected.train) == count // 4 + (count % 4 > 1)  # a single image joins the batch before it
    for loader, other in zip(given[:3], expected[:3], strict=True):
        assert len(loader) == len(other)
        for (images, labels), (same_images, same_labels) in zip(loader, other, strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(labels, same_labels)


def test_a_small_folder_is_trained_with_what_follows_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_folder(tmp_path / "data", "AB3", 12)
    command = ["--dataset", "folder", "--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "run")]
    main([*command, "--batch-size", "16", "--epochs", "2", "--device", "cpu", "--skip-eval"])
    said = capsys.readouterr().err
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (settings["batch_size"], settings["use_residual"]) == (16, False)
    line = next(line for line in said.splitlines() if line.startswith("for "))
    passes, patience = settings["passes_per_epoch"], settings["early_stopping_patience"]
    assert (
        f"--no-use-residual --learning-rate 0.01 --passes-per-epoch {passes} --early-stopping-patience {patience} (what"
        in line
    )
    assert "--batch-size" not in line
    assert "near chance" not in said
    main([*command[:-2], "--resume", str(tmp_path / "run" / "latest_checkpoint.pth"), "--epochs", "3", "--skip-eval"])
    said = capsys.readouterr().err
    assert "resumed after epoch 2" in said
    assert "--passes-per-epoch" not in said


def test_a_training_that_learns_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_folder(tmp_path / "data", "AB3", 12)
    command = ["--dataset", "folder", "--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "run")]
    main([*command, "--learning-rate", "1e-9", "--epochs", "1", "--device", "cpu", "--skip-eval"])
    assert "it has hardly learned its training images either: try" in capsys.readouterr().err


def test_what_is_near_chance() -> None:
    counts = torch.tensor([30, 30, 40, 0])
    assert near_chance(0.8, 0.9, counts) is None
    words = near_chance(0.45, 0.95, counts)
    assert words is not None
    assert "45.0% of 100 validation images are right, where one answer for all has 40.0%" in words
    assert "it knows its training images" in words
    assert near_chance(0.45, 0.95, counts, uniform=True) is None  # where a third is chance
    assert near_chance(1.0, 1.0, torch.tensor([1, 0])) is None
    assert near_chance(0.5, 1.0, torch.tensor([1, 1])) is not None
