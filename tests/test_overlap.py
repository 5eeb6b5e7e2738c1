"""A model that may have been trained on the test images is not measured without a word."""

from pathlib import Path
from typing import Any

import pytest
import torch

import enhanced_glyph_recognition as script
from glyphs.commands.models import overlaps
from glyphs.core.config import Config
from glyphs.data.loaders import get_data_loaders
from glyphs.data.overlap import copies, overlap
from glyphs.evaluation.comparator import ModelComparator
from tests.conftest import emnist_paths, write_emnist, write_idx
from tests.small import save_small_checkpoint


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
    monkeypatch.setattr("glyphs.commands.evaluate.evaluate", lambda *_, **__: None)
    script.main(
        ["--evaluate", checkpoint, "--split", "bymerge", "--data-dir", str(tmp_path / "data"), "--device", "cpu"]
    )
    assert f"warning: {checkpoint} was trained on EMNIST balanced" in capsys.readouterr().err


def test_a_comparison_on_what_may_have_been_trained_on_says_so(tmp_path: Path) -> None:
    comparator = ModelComparator([save_small_checkpoint(tmp_path / f"{name}.pth") for name in "ab"], "cpu")
    other, own = (
        overlaps(comparator, Config(emnist_split=split), by_default=False) for split in ("bymerge", "balanced")
    )
    assert [note.split(" was trained on EMNIST balanced")[0] for note in other] == comparator.ids
    assert own == []
    [note] = overlaps(comparator, Config(), by_default=True)
    assert "the split that" in note
