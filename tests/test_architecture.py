"""Networks of the user's own, named by --arch: everything works with them, and no checkpoint runs code by itself."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import enhanced_glyph_recognition
import inference
import model_utils
from glyphs.core import timing
from glyphs.core.config import Config
from glyphs.core.errors import CheckpointError, ConfigError, GlyphError
from glyphs.data.loaders import TensorLoader
from glyphs.evaluation import analyzer
from glyphs.models.architecture import make_model
from glyphs.models.checkpoint import BEST_MODEL, LATEST_CHECKPOINT, load_checkpoint, load_model, save_checkpoint
from glyphs.models.network import Calibrated
from glyphs.reading.predictor import GlyphPredictor
from glyphs.training.trainer import Trainer
from tests.conftest import refused, write_emnist
from tests.small import draw_glyph, save_small_checkpoint

ARCH = "small_network:make"
SOURCE = """
from torch import nn


def make(num_classes, dropout_rate=0.0, **settings):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout_rate),
        nn.Linear(4 * 13 * 13, num_classes),
    )


def with_temperature(num_classes, **settings):
    network = make(num_classes)
    network.register_buffer("temperature", network[0].bias[0].detach())
    return network


class Choosing(nn.Module):
    # What it computes depends on what it sees, which no export can hold.
    def __init__(self, num_classes):
        super().__init__()
        self.small, self.large = make(num_classes), make(num_classes)

    def forward(self, images):
        return self.small(images) if images.sum() < 100 else self.large(images)


def choosing(num_classes, **settings):
    return Choosing(num_classes)


def without_settings(num_classes):
    return make(num_classes)


def of_numbers(num_classes, **settings):
    return num_classes


answer = 42
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module of the network and with EMNIST files of ten classes."""
    folder = tmp_path_factory.mktemp("architecture")
    (folder / "small_network.py").write_text(SOURCE)
    write_emnist(folder / "data", "digits")
    draw_glyph().save(folder / "glyph.png")
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in that folder, whose module is found there; nothing is timed for long."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "ROUND_SECONDS", 0.001)
    monkeypatch.setattr(analyzer, "LAYER_CALLS", 3)


def train(*arguments: str) -> None:
    common = ["--split", "digits", "--data-dir", "data", "--batch-size", "8", "--device", "cpu", "--skip-eval"]
    enhanced_glyph_recognition.main([*common, *arguments])


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """best_model.pth of a run that was stopped after an epoch and resumed for another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        train("--arch", ARCH, "--epochs", "1")
        train("--arch", ARCH, "--epochs", "2", "--resume")
    return folder / "outputs" / BEST_MODEL


def test_training_and_resuming_are_done_with_it_and_calibrated(trained: Path) -> None:
    latest = load_checkpoint(trained.with_name(LATEST_CHECKPOINT))
    assert latest["training"]["epoch"] == 2
    assert json.loads(trained.with_name("config.json").read_text())["arch"] == ARCH
    model, config, names = load_model(trained, ARCH)
    assert (config.arch, len(names)) == (ARCH, 10)
    assert isinstance(model, Calibrated)
    assert model.temperature == pytest.approx(load_checkpoint(trained)["metrics"]["temperature"])
    images = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(model(images), model.network(images) / model.temperature)


def test_evaluation_works_with_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    enhanced_glyph_recognition.main(
        ["--evaluate", str(trained), "--arch", ARCH, "--data-dir", "data", "--device", "cpu", "--average-views"]
    )
    assert capsys.readouterr().out.startswith("test accuracy")


def test_export_and_prediction_work_with_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_utils.main(["--export", str(trained), "--arch", ARCH])
    assert "the same answer for 100.0%" in capsys.readouterr().out
    inference.main(["--image", "glyph.png", "--model", str(trained), "--arch", ARCH, "--device", "cpu"])
    inference.main(
        ["--image", "glyph.png", "--model", str(trained.with_suffix(".onnx"))]
    )  # needs no code of the user's
    torchs, onnxs = capsys.readouterr().out.splitlines()
    assert torchs.split("\t")[:3] == onnxs.split("\t")[:3]
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 28, 28), np.uint8)
    with torch.no_grad():
        expected = load_model(trained, ARCH)[0](torch.from_numpy(images) / 255).softmax(1).numpy()
    np.testing.assert_allclose(GlyphPredictor(trained, "cpu", arch=ARCH).network(images), expected, atol=1e-6)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_network_that_cannot_be_exported_is_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    arch = "small_network:choosing"
    path = tmp_path / "choosing.pth"
    network = make_model(Config(arch=arch), 10)
    save_checkpoint(path, network, Config(arch=arch), [str(digit) for digit in range(10)], metrics={})
    with refused(GlyphError, "this network cannot be exported to", "see torch."):
        model_utils.main(["--export", str(path), "--arch", arch, "--output", str(path.with_suffix(suffix))])
    assert list(tmp_path.iterdir()) == [path]


def test_analysis_and_comparison_work_with_it_beside_our_own(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_utils.main(["--analyze", str(trained), "--arch", ARCH, "--batch-size", "2"])
    out = capsys.readouterr().out
    assert "Conv2d" in out
    assert f"{4 * 9 + 4 + 8 + 10 * 676 + 10:,}" in out
    ours = save_small_checkpoint(tmp_path / "ours.pth")
    model_utils.main(["--compare", str(trained), str(ours), "--arch", ARCH, "--batch-size", "2"])
    assert str(ours) in capsys.readouterr().out


@pytest.mark.parametrize(
    "load",
    [
        load_model,
        GlyphPredictor,
        analyzer.ModelAnalyzer,
        lambda path: enhanced_glyph_recognition.main(["--evaluate", str(path)]),
        lambda path: train("--resume", str(path.with_name(LATEST_CHECKPOINT))),
    ],
    ids=["load", "predict", "analyse", "evaluate", "resume"],
)
def test_no_checkpoint_runs_code_by_itself(trained: Path, load: Callable[[Path], Any]) -> None:
    with refused(CheckpointError, "by itself", f"--arch {ARCH}"):
        load(trained)


def test_another_name_than_the_checkpoints_is_refused(trained: Path) -> None:
    with refused(CheckpointError, trained, ARCH, "not by small_network:with_temperature"):
        load_model(trained, "small_network:with_temperature")


@pytest.mark.parametrize(
    ("arch", "fact"),
    [
        ("no_such_network:make", "No module named 'no_such_network'"),
        ("small_network:no_such_function", "is no function"),
        ("small_network:answer", "is no function"),
        ("small_network:without_settings", "is no function"),
        ("small_network:of_numbers", "makes a int"),
        ("small_network:with_temperature", "`temperature`"),
    ],
)
def test_what_makes_no_network_is_refused(arch: str, fact: str) -> None:
    with refused(ConfigError, f"--arch {arch}", fact):
        make_model(Config(arch=arch), 10)


@pytest.mark.parametrize("arch", ["small_network", "small_network.make", "a:b:c", ":make", "a b:c", "a:b.c", "../a:b"])
def test_a_name_of_another_form_is_refused(arch: str) -> None:
    with refused(ConfigError, "arch is", "MODULE:FUNCTION"):
        Config(arch=arch)


def test_a_network_of_timms_takes_the_images_that_the_settings_tell_of() -> None:
    pytest.importorskip("timm")
    config = Config(arch="timm:test_resnet", image_size=32, color="on", preprocess="plain")
    model = make_model(config, 5).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert make_model(Config(arch="timm:test_vit", image_size=32), 5).eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    with refused(ConfigError, "--arch timm:test_resnett", "no such network", "test_resnet"):
        make_model(Config(arch="timm:test_resnett"), 5)


def test_without_timm_its_networks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with refused(ConfigError, "--arch timm:resnet18", "pip install timm"):
        make_model(Config(arch="timm:resnet18"), 5)


def test_it_is_not_fine_tuned(trained: Path) -> None:
    with refused(ConfigError, "--finetune", "leave --arch out"):
        train("--arch", ARCH, "--finetune", str(trained), "--output-dir", "fine")


def test_a_trainer_that_was_told_no_name_leaves_a_checkpoint_that_loads_with_one(tmp_path: Path) -> None:
    names = [str(digit) for digit in range(10)]
    data = TensorLoader(torch.randint(256, (20, 1, 28, 28), dtype=torch.uint8), torch.arange(20) % 10, 10)
    config = Config(num_epochs=1, device="cpu", output_dir=str(tmp_path))
    network: nn.Module = make_model(Config(arch=ARCH), 10)
    Trainer(network, data, data, config, names).fit()
    path = tmp_path / BEST_MODEL
    with refused(CheckpointError, path, "do not fit", "name its network by --arch"):
        load_model(path)
    model, _, known = load_model(path, ARCH)
    assert known == names
    images: Tensor = data.images.float() / 255
    with torch.no_grad():
        torch.testing.assert_close(model(images), network.eval()(images))
