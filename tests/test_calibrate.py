"""Calibration: the temperature is the one that generated the labels, and is stored where the model is."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from glyphs.core.config import Config
from glyphs.data.loaders import TensorLoader
from glyphs.evaluation.calibration import calibrate_checkpoint, fit_temperature
from glyphs.evaluation.metrics import calibration_error
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
    found = fit_temperature(*logits_and_labels(temperature))
    assert found.value == pytest.approx(temperature, rel=0.05)
    assert found.evidence > 0.99
    assert str(found) == f"temperature {found.value:.2f}, from 20,000 validation images"


def test_a_uniform_prior_lets_every_class_count_alike() -> None:
    # 900 images of class 0, which the model knows better than it says; 100 of class 1, of which it knows nothing.
    logits = torch.tensor([[1.0, 0.0]]).repeat(1000, 1)
    labels = torch.tensor([0] * 900 + [1] * 100)
    assert fit_temperature(logits, labels).value < 1
    assert fit_temperature(logits, labels, class_prior="uniform").value > 2  # it knows nothing


@pytest.mark.parametrize("images", [3, 13, 500, 20_000])
def test_where_nothing_is_wrong_the_temperature_follows_the_number_of_images(images: int) -> None:
    labels = torch.arange(images) % 3
    logits = 3.4 * torch.eye(3)[labels]  # 0.94 sure, as label smoothing makes it
    found = fit_temperature(logits, labels)
    sure = float((logits[0] / found.value).softmax(0).max())
    assert 1 - sure > 0.2 / max(images, 10)  # after so many without a mistake, one mistake more would not surprise
    assert found.value < 1
    if images == 13:
        assert found.value > 0.7
        assert "too few to tell" in str(found)


def test_thirteen_images_that_are_all_wrong_do_not_make_everything_unsure() -> None:
    logits = 3.4 * torch.eye(3)[torch.zeros(13, dtype=torch.int64)]
    found = fit_temperature(logits, torch.ones(13, dtype=torch.int64))
    assert 1.5 < found.value < 10


@pytest.mark.parametrize("class_prior", ["data", "uniform"])
def test_it_never_makes_the_calibration_error_on_its_own_images_worse(class_prior: str) -> None:
    refused = 0
    generator = torch.Generator().manual_seed(1)
    for _ in range(60):
        logits = 2 * torch.randn(12, 4, generator=generator)
        labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
        found = fit_temperature(logits, labels, class_prior=class_prior)
        weights = 1 / torch.bincount(labels)[labels] if class_prior == "uniform" else torch.ones(12)
        correct = logits.argmax(1) == labels
        before, after = (
            calibration_error((logits.double() / t).softmax(1).amax(1), correct, weights.double())
            for t in (1, found.value)
        )
        assert after <= before + 1e-6
        if found.refused is not None:
            refused += 1
            assert found.value == 1
            assert f"the {found.refused:.2f} that they ask for" in str(found)
    assert 0 < refused < 60  # or the test shows nothing


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
    assert temperature.value == pytest.approx(fit_temperature(logits, labels).value, rel=1e-4)
    assert load_checkpoint(path)["metrics"] == {"val_loss": 1.0, "temperature": temperature.value}
    after, _, _ = load_model(path)
    with torch.no_grad():
        torch.testing.assert_close(after(images), logits / temperature.value)
    assert calibrate_checkpoint(path, loader, CPU).value == pytest.approx(temperature.value, rel=1e-6)
