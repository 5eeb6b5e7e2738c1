"""Calibration: the temperature is the one that generated the labels, and is stored where the model is."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from glyphs.core.config import Config
from glyphs.data.loaders import TensorLoader
from glyphs.evaluation.calibration import COLDEST, calibrate_checkpoint, fit_temperature
from glyphs.models.checkpoint import load_checkpoint, load_model, save_checkpoint
from glyphs.models.network import EnhancedGlyphCNN

CPU = torch.device("cpu")


def logits_and_labels(temperature: float, n: int = 20_000) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from their probabilities at a temperature."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, 5, generator=generator)
    return logits, torch.multinomial((logits / temperature).softmax(1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_finds_the_temperature_that_the_labels_were_drawn_at(temperature: float) -> None:
    assert fit_temperature(*logits_and_labels(temperature)) == pytest.approx(temperature, rel=0.05)


def test_a_uniform_prior_lets_every_class_count_alike() -> None:
    # 900 images of class 0, which the model knows better than it says; 100 of class 1, of which it knows nothing.
    logits = torch.tensor([[1.0, 0.0]]).repeat(1000, 1)
    labels = torch.tensor([0] * 900 + [1] * 100)
    assert fit_temperature(logits, labels) < 1
    assert fit_temperature(logits, labels, class_prior="uniform") == pytest.approx(20, rel=0.01)  # the bound


def test_where_nothing_is_wrong_the_temperature_stays_in_bounds() -> None:
    temperature = fit_temperature(torch.eye(3), torch.arange(3))
    assert temperature == pytest.approx(COLDEST, rel=0.01)


def test_the_checkpoint_carries_it_and_fitting_again_changes_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = ["a", "b", "c"]
    path = tmp_path / "best_model.pth"
    config = Config(use_residual=False)
    save_checkpoint(path, EnhancedGlyphCNN(3, use_residual=False), config, names, metrics={"val_loss": 1.0})
    before, _, _ = load_model(path)
    images = torch.randint(256, (64, 1, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        logits = before(images)
    labels = torch.multinomial((logits * 2).softmax(1), 1).squeeze(1)
    loader = TensorLoader(images, labels, 16)
    temperature = calibrate_checkpoint(path, loader, CPU)
    assert temperature == pytest.approx(fit_temperature(logits, labels), rel=1e-4)
    assert load_checkpoint(path)["metrics"] == {"val_loss": 1.0, "temperature": temperature}
    after, _, _ = load_model(path)
    with torch.no_grad():
        torch.testing.assert_close(after(images), logits / temperature)
    assert calibrate_checkpoint(path, loader, CPU) == pytest.approx(temperature, rel=1e-6)
