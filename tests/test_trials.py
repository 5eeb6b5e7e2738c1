"""The short trainings of recipes/trials.py: what each does otherwise."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recipes.trials import Batch, Muon, cutmix, elastic, erase, generalised_cross_entropy, mixup, orthogonal, pens


@pytest.fixture
def batch(demo_images: NDArray[np.uint8]) -> Batch:
    images = torch.from_numpy(demo_images[:32])[:, None].float() / 255
    return images, torch.eye(32)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("change", [mixup, cutmix])
def test_what_is_mixed_has_the_targets_of_both(change: object, batch: Batch) -> None:
    """Each image is as near to each of its two as its target says."""
    assert callable(change)
    images, targets = change(batch, generator())
    if change is cutmix and torch.equal(images, batch[0]):  # half of the batches stay
        images, targets = change(batch, torch.Generator().manual_seed(4))
    assert torch.allclose(targets.sum(1), torch.ones(32))
    mixed = torch.nonzero((targets > 0).sum(1) == 2)[:, 0]
    assert len(mixed) > 16
    assert not torch.equal(images[mixed], batch[0][mixed])
    if change is mixup:
        assert torch.allclose(images.flatten(1), targets @ batch[0].flatten(1), atol=1e-5)


def test_erasing_blackens_a_square_of_some(batch: Batch) -> None:
    images, targets = erase(batch, generator())
    changed = (images != batch[0]).flatten(1).any(1)
    assert 0 < changed.sum() < 20
    assert (images[changed] <= batch[0][changed]).all()
    assert torch.equal(targets, batch[1])


def test_elastic_shifts_are_small_and_smooth(batch: Batch) -> None:
    still, _ = elastic(0.0)(batch, generator())
    assert torch.allclose(still, batch[0], atol=1e-4)
    moved, _ = elastic(0.5)(batch, generator())
    difference = (moved - batch[0]).abs().mean()
    assert 0.001 < difference < 0.08


def test_pens_make_strokes_fatter_and_thinner(batch: Batch) -> None:
    images, _ = pens(batch, generator())
    more = (images - batch[0]).flatten(1).sum(1)
    assert (more > 1).any()
    assert (more < -1).any()
    assert (more == 0).any()


def test_wrong_labels_weigh_less_than_in_cross_entropy() -> None:
    logits = torch.tensor([[8.0, 0.0], [0.0, 0.1]], requires_grad=True)
    gradient = torch.autograd.grad(generalised_cross_entropy(logits, torch.tensor([[0.0, 1.0]] * 2)), logits)[0]
    assert gradient[0].abs().max() < 0.5 * gradient[1].abs().max()


def test_muon_steps_in_all_directions_alike() -> None:
    def spread(matrix: Tensor) -> float:
        values = torch.linalg.svdvals(matrix)
        return float(values.max() / values.min())

    gradient = torch.randn(6, 10, generator=generator()) * torch.logspace(0, 1.2, 6)[:, None]
    assert spread(gradient) > 5
    assert spread(orthogonal(gradient)) < 2
    weights = nn.Parameter(torch.zeros(6, 10, 1, 1))
    weights.grad = gradient.view(6, 10, 1, 1)
    Muon([weights], lr=0.1, weight_decay=0).step()
    assert spread(weights.detach().flatten(1)) < 2
    assert (weights.detach().flatten() * gradient.flatten()).sum() < 0
