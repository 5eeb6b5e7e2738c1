"""Augmentation: each distortion does what its name and amount say, by its own draw, from the generator alone."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import glyphs.data.augment
from glyphs.data.augment import augment


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=seeded(9))


@pytest.fixture
def no_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs.data.augment, "SCALE_RANGE", 0.0)


@pytest.fixture
def extreme_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every factor is drawn as large as it can be."""

    def ones(*shape: int, generator: torch.Generator, device: torch.device) -> Tensor:
        return torch.ones(*shape, device=device)

    monkeypatch.setattr(torch, "rand", ones)


@pytest.mark.parametrize("size", [(28, 28), (20, 31)])
def test_amounts_of_zero_change_nothing(size: tuple[int, int]) -> None:
    images = noise(3, 1, *size)
    result = augment(images, seeded(), rotation=0, shear=0, translate=0)
    torch.testing.assert_close(result, images / 255, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("no_scaling", "extreme_draws")
def test_translation_is_a_fraction_of_each_side() -> None:
    images = noise(1, 1, 20, 28)
    result = augment(images, seeded(), rotation=0, shear=0, translate=0.25)
    expected = torch.zeros_like(result)
    expected[..., :15, :21] = images[..., 5:, 7:] / 255  # what comes in from outside is black
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("no_scaling", "extreme_draws")
def test_rotation_by_a_quarter_turn_is_rot90() -> None:
    images = noise(2, 1, 28, 28)
    result = augment(images, seeded(), rotation=90, shear=0, translate=0)
    torch.testing.assert_close(result, torch.rot90(images, 1, (2, 3)) / 255, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("no_scaling", "extreme_draws")
def test_rotation_keeps_shapes_in_images_that_are_not_square() -> None:
    images = torch.zeros(1, 1, 20, 40)
    images[..., 5:15, 15:25] = noise(1, 1, 10, 10) / 255
    expected = torch.zeros_like(images)
    expected[..., 5:15, 15:25] = torch.rot90(images[..., 5:15, 15:25], 1, (2, 3))
    result = augment(images, seeded(), rotation=90, shear=0, translate=0)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


@pytest.mark.usefixtures("no_scaling", "extreme_draws")
def test_shear_slants_along_x_by_its_angle() -> None:
    images = torch.zeros(1, 1, 28, 28)
    images[..., 13:15] = 1.0  # an upright stroke
    result = augment(images, seeded(), rotation=0, shear=30, translate=0)[0, 0, 8:20]
    centres = (result * torch.arange(28.0)).sum(1) / result.sum(1)
    slopes = centres.diff()
    torch.testing.assert_close(slopes.abs(), torch.full((11,), math.tan(math.radians(30))), atol=0.02, rtol=0)
    assert (slopes > 0).all() or (slopes < 0).all()


@pytest.mark.usefixtures("extreme_draws")
def test_scale_enlarges_both_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs.data.augment, "SCALE_RANGE", 1.0)
    images = torch.zeros(1, 1, 28, 28)
    images[..., 12:16, 11:17] = 1.0
    result = augment(images, seeded(), rotation=1e-6, shear=0, translate=0)[0, 0]
    assert result[10:18, 8:20].min() > 0.5
    assert result.sum().item() == pytest.approx(4 * 24, rel=0.01)


@pytest.mark.usefixtures("no_scaling")
def test_draws_fill_the_range_on_both_sides_and_stay_within() -> None:
    images = torch.zeros(400, 1, 28, 28)
    images[..., 13:15, 13:15] = 1.0
    result = augment(images, seeded(), rotation=0, shear=0, translate=0.25)[:, 0]
    at = torch.arange(28.0) - 13.5
    for centres in (result.sum(1) @ at / 4, result.sum(2) @ at / 4):
        assert -7.001 < centres.min() < -6.5
        assert 6.5 < centres.max() < 7.001


def test_the_generator_alone_decides() -> None:
    images = noise(4, 1, 28, 28)
    amounts: dict[str, Any] = {"rotation": 15.0, "shear": 10.0, "translate": 0.08}
    torch.manual_seed(1)
    first = augment(images, seeded(1), **amounts)
    torch.manual_seed(2)
    assert torch.equal(augment(images, seeded(1), **amounts), first)
    assert not torch.equal(augment(images, seeded(2), **amounts), first)


def test_every_image_gets_its_own_draw() -> None:
    images = noise(1, 1, 28, 28).expand(8, 1, 28, 28)
    result = augment(images, seeded(), rotation=15, shear=10, translate=0.08)
    assert len({image.numpy().tobytes() for image in result}) == 8


@pytest.mark.parametrize("amount", ["rotation", "shear", "translate"])
@pytest.mark.usefixtures("no_scaling")
def test_each_amount_has_an_effect_of_its_own(amount: str) -> None:
    images = noise(8, 1, 28, 28)
    amounts: dict[str, Any] = {"rotation": 0.0, "shear": 0.0, "translate": 0.0} | {
        amount: 0.5 if amount == "translate" else 30.0
    }
    assert (augment(images, seeded(), **amounts) - images / 255).abs().max() > 0.1


def test_uint8_and_float_agree_in_float32_between_0_and_1() -> None:
    images = noise(16, 1, 28, 28)
    images[:8] = 255
    amounts: dict[str, Any] = {"rotation": 15.0, "shear": 10.0, "translate": 0.08}
    result = augment(images, seeded(), **amounts)
    assert torch.equal(result, augment(images.float() / 255, seeded(), **amounts))
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1 + 1e-5  # the four weights of bilinear resampling sum to 1 but for rounding
