"""The weights in the box, on genuine data: floors under the figures that the documents give."""

from pathlib import Path

import torch

from benchmarks.pictures import files_of, true_class
from glyphs.checkpoint import load_model
from glyphs.data import get_test_loader
from glyphs.evaluate import Evaluator
from glyphs.predict import GlyphPredictor
from tests.conftest import ROOT

WEIGHTS = ROOT / "pretrained" / "glyphs47.pth"


def test_real_test_images(data_dir: Path) -> None:
    model, _, names = load_model(WEIGHTS)
    loader, data_names = get_test_loader({"data_dir": str(data_dir)})
    assert names == data_names
    loader.index = torch.arange(0, len(loader.labels), 7)
    assert Evaluator(model, names).evaluate(loader).accuracy > 0.86  # 89.6 % on all; three standard errors of these


def test_real_photographs_and_drawings(data_dir: Path) -> None:
    predictor = GlyphPredictor(WEIGHTS, "cpu")
    for kind, floor in (("photos", 0.77), ("drawings", 0.77)):  # 85.5 and 89.6 % on all pictures at even places
        paths = files_of(data_dir, kind, parity=0)[::8]
        truth = [predictor.class_names[true_class(path, predictor.class_names)] for path in paths]
        hits = [answer.prediction == name for answer, name in zip(predictor.predict_batch(paths), truth, strict=True)]
        assert sum(hits) / len(hits) > floor, kind
