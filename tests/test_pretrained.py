"""The weights in the box, on genuine data: floors under the figures that the documents give."""

import hashlib
from pathlib import Path

import pytest
import torch

from benchmarks.pictures import files_of, true_class
from glyphs.data.loaders import get_test_loader
from glyphs.evaluation.evaluator import Evaluator
from glyphs.inference.predictor import GlyphPredictor
from glyphs.training.checkpoint import load_model
from tests.conftest import ROOT

FOLDER = ROOT / "pretrained"


@pytest.mark.parametrize(
    ("file", "split", "floor"),  # of every seventh image; three standard errors below the accuracy on all
    [("glyphs47.pth", "balanced", 0.87), ("glyphs62.pth", "byclass", 0.83)],
)
def test_real_test_images(file: str, split: str, floor: float, data_dir: Path) -> None:
    model, _, names = load_model(FOLDER / file)
    loader, data_names = get_test_loader({"data_dir": str(data_dir), "emnist_split": split})
    assert names == data_names
    loader.index = torch.arange(0, len(loader.labels), 7)
    assert Evaluator(model, names).evaluate(loader).accuracy > floor


def test_real_photographs_and_drawings(data_dir: Path) -> None:
    predictor = GlyphPredictor(FOLDER / "glyphs47.pth", "cpu")
    for kind, floor in (("photos", 0.80), ("drawings", 0.78)):  # 87.6 and 88.9 % of the pictures at odd places
        paths = files_of(data_dir, kind, parity=0)[::8]
        truth = [predictor.class_names[true_class(path, predictor.class_names)] for path in paths]
        hits = [answer.prediction == name for answer, name in zip(predictor.predict_batch(paths), truth, strict=True)]
        assert sum(hits) / len(hits) > floor, kind


@pytest.mark.parametrize("file", ["glyphs47.pth", "glyphs62.pth"])
def test_the_card_describes_the_file(file: str) -> None:
    content = (FOLDER / file).read_bytes()
    assert len(content) < 8e6
    assert hashlib.sha256(content).hexdigest() in (FOLDER / "README.md").read_text(encoding="utf-8")
