"""Random distortion: affine of a whole batch at once, on the device; of colours and paper for plain pictures."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glyphs.core.arrays import Bytes
from glyphs.models.network import as_floats
from glyphs.pictures.plain import brightness, on_paper

Transform = Callable[[Tensor], Tensor]  # of an image, float [channels, H, W] in [0, 1]
LEAST_CONTRAST_OF_PAPER = 64  # of brightness, between a picture's mean and a paper drawn for it
OWN_PAPER = 0.5  # share of pictures that keep the paper that prediction lays them on
HUE = 0.05  # of the other changes of colour: classes may differ by it
ERASED = (0.02, 0.06)  # share of the area: parts of a symbol, but not one of three
SCALE_RANGE = 0.1  # each image is enlarged or shrunk by up to a tenth, each axis for itself


def augment(
    images: Tensor,
    generator: torch.Generator,
    batch: int | None = None,
    part: slice = slice(None),
    /,
    *,
    rotation: float,
    shear: float,
    translate: float,
    edge: str = "zeros",
) -> Tensor:
    """Rotate, shear, scale and shift every image by its own random amounts, with one bilinear resampling.

    Parameters
    ----------
    images : uint8 [N, channels, H, W], or float in [0, 1].
    generator : on the images' device; the only source of randomness.
    batch, part : where the images are only this part of a batch of so many; each gets what it would get in the whole.
    rotation, shear : degrees; each drawn uniformly from plus or minus this.
    translate : as a fraction of the image's side; each axis drawn uniformly from plus or minus this.
    edge : what comes in from outside the image: "zeros", black, or "border", what its border shows there.

    Returns
    -------
    float32 [N, channels, H, W] in [0, 1].  Where all three amounts are 0, the images as they are: they are not scaled
    either.
    """
    if rotation == shear == translate == 0:
        return as_floats(images)
    # One draw of all six factors in -1..1 for every image, so that the amounts do not depend on each other.
    count = len(images) if batch is None else batch
    draws = torch.rand(count, 6, generator=generator, device=images.device)[part] * 2 - 1
    angle = draws[:, 0] * math.radians(rotation)
    slant = torch.tan(draws[:, 1] * math.radians(shear))
    scale_x, scale_y = (1 / (1 + SCALE_RANGE * draws[:, 2:4])).unbind(1)
    # affine_grid counts from -1 to 1 across the image, so a fraction of the side counts double.
    shift_x, shift_y = (2 * translate * draws[:, 4:6]).unbind(1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # The map from output to input: scale, then shear along x, then rotate, then shift.  affine_grid's unit is half
    # of the side, another length along x than along y where the image is not square.
    aspect = images.shape[2] / images.shape[3]
    row_x = torch.stack([cos * scale_x, aspect * (cos * slant - sin) * scale_y, shift_x], dim=1)
    row_y = torch.stack([sin * scale_x / aspect, (sin * slant + cos) * scale_y, shift_y], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(images.shape), align_corners=False)
    return F.grid_sample(as_floats(images), grid, mode="bilinear", padding_mode=edge, align_corners=False)


def color_transform(jitter: float, erasing: float, *, mirror: bool) -> Transform:
    """A function of one image, float [channels, H, W] in [0, 1], that changes its colours and more; torchvision's.

    It draws from torch's global generator.

    Parameters
    ----------
    jitter : brightness, contrast and saturation change by up to this share, hue by a twentieth of it.
    erasing : share of images in which a patch of 2 to 6 % of the area is painted over by a random colour.
    mirror : whether half of the images are mirrored, left to right.
    """
    from torchvision.transforms import v2  # a second or two, which EMNIST need not wait for

    steps: list[torch.nn.Module] = [v2.RandomHorizontalFlip()] if mirror else []
    if jitter:
        steps.append(v2.ColorJitter(jitter, jitter, jitter, jitter * HUE))
    if erasing:
        steps.append(v2.RandomErasing(erasing, scale=ERASED, value="random"))
    composed = v2.Compose([*steps, v2.Lambda(lambda image: image.clamp(0, 1))])  # noise to paint with may lie beyond

    def transform(image: Tensor) -> Tensor:
        changed: Tensor = composed(image)
        return changed

    return transform


def vary_paper(layers: Bytes, rng: np.random.Generator, batch: int, part: slice) -> Bytes:
    """Lay pictures on paper of random colours on which they can be seen; half of them as prediction does.

    layers : uint8 [N, H, W, C + 1], the cover last.  batch, part : as of `augment`.  Returns uint8 [N, H, W, C].
    """
    channels = layers.shape[-1] - 1
    papers = rng.integers(0, 256, (batch, 1, 1, channels), dtype=np.uint8)[part]
    own = rng.random(batch)[part] < OWN_PAPER
    cover = layers[..., -1:].astype(np.float64)
    seen = (brightness(layers) * cover).sum((1, 2, 3)) / cover.sum((1, 2, 3)).clip(1)
    # On a colour too near the picture's own, its opposite; a middling picture may be near that, too.
    opaque = np.full_like(papers[..., :1], 255)

    def near() -> np.ndarray[Any, np.dtype[np.bool_]]:
        light = brightness(np.concatenate([papers, opaque], axis=-1))[:, 0, 0, 0]
        return np.asarray(np.abs(light - seen) < LEAST_CONTRAST_OF_PAPER)

    papers = np.where(near()[:, None, None, None], 255 - papers, papers)
    own |= near()
    return np.where(own[:, None, None, None], on_paper(layers), on_paper(layers, papers))
