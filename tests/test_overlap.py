"""A model that may have been trained on the test images is not measured without a word."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

import enhanced_glyph_recognition as script
from glyphs.commands.models import notes_on_test
from glyphs.core.config import Config
from glyphs.data.loaders import get_data_loaders
from glyphs.data.overlap import copies, overlap, overlaps
from glyphs.evaluation.analyzer import describe_onnx
from glyphs.evaluation.comparator import ModelComparator
from glyphs.models.checkpoint import ancestors_of, load_checkpoint
from glyphs.models.export import describe
from recipes.half_precision import write_half_precision
from tests.conftest import emnist_paths, write_emnist, write_idx
from tests.small import NAMES, save_small_checkpoint, save_small_onnx


@pytest.mark.parametrize(
    ("trained_with", "settings", "word"),
    [
        ({"dataset": "emnist", "emnist_split": "bymerge"}, {"emnist_split": "balanced"}, "--split bymerge"),
        ({"dataset": "emnist", "emnist_split": "bymerge"}, {"emnist_split": "bymerge"}, None),
        ({"dataset": "emnist", "emnist_split": "letters"}, {"emnist_split": "digits"}, None),
        ({"dataset": "emnist", "emnist_split": "mnist"}, {"emnist_split": "digits"}, "--split mnist"),
        ({"dataset": "demo", "emnist_split": "letters"}, {"emnist_split": "balanced"}, None),
        ({"dataset": "folder", "seed": 1}, {"dataset": "folder"}, "--seed 1"),
        ({"dataset": "folder", "seed": 42}, {"dataset": "folder"}, None),
        ({}, {}, None),
    ],
)
def test_which_models_may_have_seen_the_test_images(
    trained_with: dict[str, Any], settings: dict[str, Any], word: str | None
) -> None:
    words = overlap(trained_with, Config(**settings))
    assert (words is None) if word is None else (words is not None and word in words)


BALANCED = {"dataset": "emnist", "emnist_split": "balanced"}


@pytest.mark.parametrize(
    ("ancestors", "words"),
    [
        ([BALANCED], ["was fine-tuned from a model that was trained on EMNIST balanced"]),
        ([BALANCED, {"dataset": "folder", "seed": 42}], ["was fine-tuned from a model that was trained on EMNIST"]),
        ([BALANCED, BALANCED], ["was fine-tuned from a model that was trained on EMNIST"]),  # once
        ([{}], ["was fine-tuned from a model that was trained on nobody knows what"]),
        ([{"dataset": "emnist", "emnist_split": "byclass"}], []),
        ([], []),
    ],
)
def test_what_any_ancestor_saw_counts(ancestors: list[dict[str, Any]], words: list[str]) -> None:
    config = Config(emnist_split="byclass")
    found = overlaps(config.to_dict(), ancestors, config)
    assert [text[: len(start)] for text, start in zip(found, words, strict=True)] == words


@pytest.mark.slow
def test_a_fine_tuned_models_own_evaluation_tells_what_its_ancestors_saw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = save_small_checkpoint(tmp_path / "first.pth")  # of EMNIST balanced
    write_emnist(tmp_path, "digits", images_per_class=30)
    settings = ["--data-dir", str(tmp_path), "--split", "digits", "--batch-size", "64", "--epochs", "1"]
    settings += ["--no-use-residual", "--device", "cpu"]
    script.main([*settings, "--finetune", str(first), "--output-dir", str(tmp_path / "one")])
    warning = "was fine-tuned from a model that was trained on EMNIST balanced"
    best = tmp_path / "one" / "best_model.pth"
    assert f"warning: {best} {warning}" in capsys.readouterr().err
    [doubt] = json.loads((tmp_path / "one" / "metrics.json").read_text())["doubts"]
    assert doubt.startswith(warning)
    small = tmp_path / "small.pth"
    write_half_precision(best, small)  # which drops the name of the file
    script.main([*settings, "--finetune", str(small), "--skip-eval", "--output-dir", str(tmp_path / "two")])
    child = tmp_path / "two" / "best_model.pth"
    script.main(["--resume", "--skip-eval", "--output-dir", str(tmp_path / "two")])
    assert [each["emnist_split"] for each in load_checkpoint(child)["ancestors"]] == ["balanced", "digits"]
    capsys.readouterr()
    script.main(["--evaluate", str(child), "--data-dir", str(tmp_path)])
    assert f"warning: {child} {warning}" in capsys.readouterr().err
    comparator = ModelComparator([child, small], "cpu", 2)
    notes = notes_on_test(comparator, Config(emnist_split="digits"), by_default=False)
    assert [note[:40] for note in notes] == [f"{id} {warning}"[:40] for id in "AB"]


def test_an_export_keeps_the_ancestors(tmp_path: Path) -> None:
    config = Config(use_residual=False, emnist_split="byclass")
    content = {"class_names": ["a"], "config": config.to_dict(), "ancestors": [BALANCED]}
    assert json.loads(describe(content, config, {})["lineage"]) == {"ancestors": [BALANCED]}
    path = save_small_onnx(
        tmp_path / "m.onnx",
        {"format": "1", "class_names": json.dumps(NAMES)}
        | {"settings": json.dumps(config.to_dict()), "lineage": json.dumps({"ancestors": [BALANCED]})},
    )
    assert describe_onnx(path).ancestors == [BALANCED]


def test_of_a_model_fine_tuned_before_ancestors_were_kept_nothing_is_known() -> None:
    assert ancestors_of({"config": {"finetune": "first.pth"}}) == [{}]
    assert ancestors_of({"config": {"finetune": None}}) == []
    assert ancestors_of({"config": {"finetune": "first.pth"}, "ancestors": [BALANCED, 3]}) == [BALANCED, {}]


def test_copies_are_counted_pixel_by_pixel() -> None:
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(-1, 1, 28, 28)
    train, val, test = images[:3], images[[2, 3, 2]], images[[0, 3, 4, 5]]
    assert copies(train, val, test) == (2, 2)
    almost = test.clone()
    almost[..., -1, -1] += 100
    assert copies(train, val, almost) == (2, 0)
    assert copies(train, val[:0], test) == (0, 1)


@pytest.mark.usefixtures("shown_log")
def test_copies_in_emnists_files_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = write_emnist(tmp_path, "digits", images_per_class=20)
    config = {"emnist_split": "digits", "data_dir": str(tmp_path)}
    get_data_loaders(config)
    assert "pixel by pixel" not in capsys.readouterr().err
    images = expected["test"][0][:, 0].clone()
    images[:7] = expected["train"][0][100:107, 0]
    write_idx(emnist_paths(tmp_path, "digits", "test")[0], images.transpose(1, 2).contiguous())
    get_data_loaders(config)
    assert "note: 0 of 20 validation images and 7 of 200 test images are copies" in capsys.readouterr().err


def test_an_evaluation_on_what_may_have_been_trained_on_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(save_small_checkpoint(tmp_path / "balanced.pth"))
    write_emnist(tmp_path / "data", "bymerge")
    monkeypatch.setattr("glyphs.commands.evaluate.write_reports", lambda *_, **__: defaultdict(float))
    script.main(
        ["--evaluate", checkpoint, "--split", "bymerge", "--data-dir", str(tmp_path / "data"), "--device", "cpu"]
    )
    assert f"warning: {checkpoint} was trained on EMNIST balanced" in capsys.readouterr().err


def test_a_comparison_on_what_may_have_been_trained_on_says_so(tmp_path: Path) -> None:
    comparator = ModelComparator([save_small_checkpoint(tmp_path / f"{name}.pth") for name in "ab"], "cpu")
    other, own = (
        notes_on_test(comparator, Config(emnist_split=split), by_default=False) for split in ("bymerge", "balanced")
    )
    assert [note.split(" was trained on EMNIST balanced")[0] for note in other] == comparator.ids
    assert own == []
    [note] = notes_on_test(comparator, Config(), by_default=True)
    assert "the split that" in note
