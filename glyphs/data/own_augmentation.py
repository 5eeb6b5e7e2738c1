"""Augmentation by a function of the user's, such as a Compose of torchvision's transforms, old or new (v2)."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from glyphs.core.errors import ConfigError
from glyphs.core.randomness import randomness_kept
from glyphs.core.text import first_line
from glyphs.models.network import as_floats
from glyphs.pictures.plain import to_pictures, to_planes

OwnTransform = Callable[[Any], Any]  # of an image: a float tensor [channels, H, W] in [0, 1], or a PIL image
ROUNDING = 1e-3  # by which a value may lie outside of 0 to 1
ALMOST_BLACK = 0.1  # of an image's brightness: what is left where a transform took a tensor in [0, 1] for bytes

log = logging.getLogger(__name__)


class OwnAugmentation:
    """A transform of one image, done to each image of a batch.

    The transform gets a tensor; where it takes none, as ToTensor does not, a PIL image.  It may answer with either.  Of
    a Compose, Normalize is left out: the model normalises, and the validation images come to it in [0, 1].

    Parameters
    ----------
    example : uint8 or float in [0, 1], [1 or 3, H, W]: an image to find out with what the transform takes.

    Raises
    ------
    ConfigError : the transform takes neither, or makes something else than images in [0, 1] of one size.
    """

    def __init__(self, transform: OwnTransform, example: Tensor) -> None:
        self.channels = len(example)
        self.transform = without_normalize(transform)
        if self.transform is not transform:
            log.info("Normalize is left out of the augmentation: the model itself normalises")
        self.from_picture = False
        problems = []
        with randomness_kept(example.device):
            for self.from_picture in (False, True):
                try:
                    made = self._transform(example)
                    if made.max() < ALMOST_BLACK * as_floats(example).max():
                        raise ValueError("it makes images almost black")
                    break
                except Exception as error:  # whatever a user's function raises
                    problems.append(first_line(error))
            else:
                raise ConfigError(
                    f"the augmentation takes neither a tensor ({problems[0]}) nor a PIL image ({problems[1]}); see "
                    "docs/API.md for what it is to be"
                )
            self(example[None])

    def __call__(self, images: Tensor) -> Tensor:
        """Uint8 or float in [0, 1], [N, channels, H, W], to float32 [N, channels, h, w] on the same device."""
        made = [self._transform(image) for image in images]
        if len({image.shape for image in made}) > 1:
            raise ConfigError("the augmentation makes images of different sizes; end it with a Resize or a crop")
        batch = torch.stack(made).to(images.device)
        low, high = float(batch.min()), float(batch.max())
        if not -ROUNDING <= low <= high <= 1 + ROUNDING:  # NaN too
            raise ConfigError(
                f"the augmentation makes values from {low:.3g} to {high:.3g}, but validation images have 0 to 1: leave "
                "Normalize out, which is the model's, and end what adds noise with .clamp(0, 1)"
            )
        return batch

    def _transform(self, image: Tensor) -> Tensor:
        made = self.transform(to_picture(image) if self.from_picture else as_floats(image))
        if isinstance(made, Image.Image):
            pixels = np.array(made.convert("L" if self.channels == 1 else "RGB"))
            made = torch.from_numpy(to_planes(pixels[None])[0])
        if not isinstance(made, Tensor) or made.ndim != 3 or len(made) != self.channels:
            what = list(made.shape) if isinstance(made, Tensor) else f"a {type(made).__name__}"
            raise ConfigError(f"it makes {what} of an image, not a tensor [{self.channels}, H, W] or a PIL image")
        return as_floats(made.as_subclass(Tensor)).float()


def to_picture(image: Tensor) -> Image.Image:
    """An image, uint8 or float in [0, 1], [channels, H, W], as a PIL image in greys or colours."""
    pixels = image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
    return Image.fromarray(to_pictures(pixels[None].cpu().numpy())[0])


def without_normalize(transform: OwnTransform) -> OwnTransform:
    """The transform; of a Compose or a Sequential that has a Normalize, a copy without it."""
    chain = getattr(transform, "transforms", None) if type(transform).__name__ == "Compose" else None
    if isinstance(transform, nn.Sequential):
        chain = list(transform)
    if chain is None:
        return transform
    kept = [without_normalize(each) for each in chain if type(each).__name__ != "Normalize"]
    if len(kept) == len(chain) and all(one is other for one, other in zip(kept, chain, strict=True)):
        return transform
    if isinstance(transform, nn.Sequential):
        return nn.Sequential(*(each for each in kept if isinstance(each, nn.Module)))
    changed = copy.copy(transform)
    changed.transforms = kept  # type: ignore[attr-defined]
    return changed
