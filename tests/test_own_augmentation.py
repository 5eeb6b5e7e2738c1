"""What torchvision's users write, for PIL images or tensors, augments; no range comes out that validation has not."""

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import v2

from glyphs.core.errors import ConfigError
from glyphs.data.loaders import TensorLoader
from glyphs.data.own_augmentation import OwnAugmentation

MEAN, STD = 0.1736, 0.3317
IMAGES = torch.zeros(6, 1, 28, 28, dtype=torch.uint8)
IMAGES[:, :, 8:20, 10:18] = 255

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ToTensor of v2 is deprecated
    OLD_NAME = v2.ToTensor()


def rotated(picture: Image.Image) -> Image.Image:
    return picture.rotate(10)  # a tensor has no such method


def from_array(picture: Any) -> Tensor:
    return torch.from_numpy(np.asarray(picture).reshape(1, 28, 28) / 255)


@pytest.mark.parametrize(
    ("transform", "size"),
    [
        (  # the customisation that the specification shows
            transforms.Compose(
                [
                    transforms.Pad(2),
                    transforms.RandomRotation(20),
                    transforms.RandomAffine(degrees=15, translate=(0.1, 0.1)),
                    transforms.ColorJitter(brightness=0.2),
                    transforms.ToTensor(),
                    transforms.Normalize((MEAN,), (STD,)),
                ]
            ),
            32,
        ),
        (transforms.Compose([transforms.RandomRotation(20), transforms.Normalize((MEAN,), (STD,))]), 28),
        (transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5), transforms.RandomErasing()]), 28),
        (nn.Sequential(transforms.RandomRotation(20), transforms.Normalize((MEAN,), (STD,))), 28),
        (
            v2.Compose(
                [
                    v2.ToImage(),
                    v2.RandomRotation(20),
                    v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([MEAN], [STD])]),
                ]
            ),
            28,
        ),
        (v2.Compose([v2.RandomRotation(20), OLD_NAME]), 28),
        (v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.uint8, scale=True)]), 28),
        (v2.TrivialAugmentWide(), 28),  # of bytes only
        (rotated, 28),
        (from_array, 28),
    ],
    ids=["spec", "no-to-tensor", "erasing", "sequential", "v2", "v2-old", "bytes", "trivial", "pil", "numpy"],
)
def test_what_users_of_torchvision_write_works(transform: Callable[[Any], Any], size: int) -> None:
    own = OwnAugmentation(transform, IMAGES[0])
    made = own(IMAGES)
    assert made.shape == (6, 1, size, size)
    assert made.dtype == torch.float32
    assert type(made) is Tensor
    assert 0 <= made.min() < 0.01  # paper is black, and ink is white, as in validation
    assert 0.7 < made.max() <= 1


@pytest.mark.parametrize("transform", [transforms.RandomRotation(5), rotated], ids=["tensor", "pil"])
def test_pictures_in_colour_stay_in_colour(transform: Callable[[Any], Any]) -> None:
    images = torch.zeros(2, 3, 28, 28, dtype=torch.uint8)
    images[:, 0] = 200
    made = OwnAugmentation(transform, images[0])(images)
    assert made.shape == (2, 3, 28, 28)
    assert made[:, 0].max() == pytest.approx(200 / 255)
    assert made[:, 1:].max() == 0


def test_pictures_that_can_be_seen_through_come_laid_on_paper() -> None:
    images = torch.zeros(4, 2, 28, 28, dtype=torch.uint8)
    images[:, 1, :, :14] = 255  # black on the left, nothing on the right
    loader = TensorLoader(images, torch.zeros(4, dtype=torch.int64), 2, augmentation=transforms.RandomErasing(p=0))
    for made, _ in loader:
        assert made.shape == (2, 1, 28, 28)
        assert made[..., :14].max() == 0 < made[..., 14:].min()


def test_the_transform_of_the_user_is_not_changed() -> None:
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])
    OwnAugmentation(transform, IMAGES[0])
    assert len(transform.transforms) == 2


@pytest.mark.parametrize(
    ("transform", "fact"),
    [
        (lambda image: (image - MEAN) / STD, r"values from -0.523 to 2.49.*leave Normalize out"),
        (lambda image: image * torch.nan, r"values from nan"),
        (lambda image: image.expand(3, -1, -1), r"neither a tensor \(it makes \[3, 28, 28\] of an image"),
        (lambda image: None, r"it makes a NoneType"),
        (transforms.Compose([transforms.ToTensor(), rotated]), "takes neither a tensor .* nor a PIL image"),
    ],
    ids=["range", "nan", "colours", "nothing", "fails"],
)
def test_what_does_not_fit_validation_is_refused_at_once(transform: Callable[[Any], Any], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        TensorLoader(IMAGES, torch.zeros(6, dtype=torch.int64), 2, augmentation=transform)


def test_images_of_different_sizes_are_refused() -> None:
    own = OwnAugmentation(lambda image: image[:, : 20 + int(torch.randint(8, ()))], IMAGES[0])
    with pytest.raises(ConfigError, match="different sizes"):
        own(IMAGES)


def test_finding_out_what_it_takes_draws_no_random_numbers() -> None:
    def noisy(picture: Image.Image) -> Image.Image:
        random.random(), np.random.rand(), torch.rand(1)
        return picture.rotate(10)

    def drawn() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(1))]

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    expected = drawn()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    OwnAugmentation(noisy, IMAGES[0])
    assert drawn() == expected
