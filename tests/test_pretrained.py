"""The weights in the box, on genuine data: floors under the figures that the documents give."""

import hashlib
from pathlib import Path

import pytest
import torch

from benchmarks.pictures import list_pictures, true_class
from glyphs.data.loaders import get_test_loader
from glyphs.evaluation.evaluator import Evaluator
from glyphs.models.checkpoint import load_model
from glyphs.reading.predictor import GlyphPredictor
from tests.conftest import ROOT

FOLDER = ROOT / "pretrained"


@pytest.mark.parametrize(
    ("file", "split", "floor"),  # of every seventh image; three standard errors below the accuracy on all
    [("glyphs47.pth", "balanced", 0.87), ("glyphs62.pth", "byclass", 0.79)],
)
def test_real_test_images(file: str, split: str, floor: float, data_dir: Path) -> None:
    model, _, names = load_model(FOLDER / file)
    loader, data_names = get_test_loader({"data_dir": str(data_dir), "emnist_split": split})
    assert names == data_names
    loader.index = torch.arange(0, len(loader.labels), 7)
    assert Evaluator(model, names).evaluate(loader).accuracy > floor


@pytest.mark.parametrize(
    ("kind", "step", "floor"),  # three standard errors below the accuracy on all that were held out from training
    [("photos", 6, 0.85), ("drawings", 3, 0.85), ("user_singles", 1, 0.80)],
)
def test_real_pictures_held_out_from_training(kind: str, step: int, floor: float, data_dir: Path) -> None:
    predictor = GlyphPredictor(FOLDER / "glyphs47.pth", "cpu")
    paths = [picture.path for picture in list_pictures(data_dir, kind) if picture.held_out][::step]
    truth = [predictor.class_names[true_class(path, predictor.class_names)] for path in paths]
    hits = [answer.prediction == name for answer, name in zip(predictor.predict_batch(paths), truth, strict=True)]
    assert sum(hits) / len(hits) > floor


@pytest.mark.parametrize("file", ["glyphs47.pth", "glyphs62.pth"])
def test_the_card_describes_the_file(file: str) -> None:
    content = (FOLDER / file).read_bytes()
    assert len(content) < 8e6
    assert hashlib.sha256(content).hexdigest() in (FOLDER / "README.md").read_text(encoding="utf-8")
