"""Dilation, erosion, opening and closing of masks by rectangles, in a time that hardly depends on the rectangle's size.

A rectangle is a run along either axis, and a run of 2 n pixels is two runs of n, so that each takes some ten passes
over the mask; `scipy.ndimage`, whose answers they give, looks at all pixels of the rectangle for each one of the mask.
(R. van den Boomgaard, R. van Balen: Methods for fast morphological image transforms using bitmapped binary images,
CVGIP: Graphical Models and Image Processing 54 (3), 1992, "logarithmic decomposition".)

Beyond the edge there is nothing, that is, False.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from glyphs.core.arrays import Mask


class Components(NamedTuple):
    """The connected parts of a mask: their numbers from 1, int [H, W], 0 elsewhere; the rows and columns of each."""

    labels: NDArray[np.int32]
    places: list[tuple[slice, slice]]


def components_of(mask: Mask) -> Components:
    """The parts of a mask, bool [H, W]; pixels that touch at a corner are connected."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    return Components(labels, ndimage.find_objects(labels))


def run_lengths(mask: Mask, axis: int) -> NDArray[np.int64]:
    """How long each run of pixels along an axis is."""
    across = np.moveaxis(mask, axis, -1)
    edges = np.flatnonzero(np.diff(across, axis=-1, prepend=False, append=False))
    return np.diff(edges)[::2]


def dilate(mask: Mask, height: int, width: int) -> Mask:
    """As ndimage.binary_dilation(mask, np.ones((height, width))), bool [H, W]."""
    down, right = (height - 1) // 2, (width - 1) // 2  # of the rectangle's pixels, before its middle
    return windows(framed(mask, (down, height - 1 - down), (right, width - 1 - right)), height, width, np.logical_or)


def erode(mask: Mask, height: int, width: int) -> Mask:
    """As ndimage.binary_erosion(mask, np.ones((height, width))), bool [H, W]."""
    down, right = height // 2, width // 2
    return windows(framed(mask, (down, height - 1 - down), (right, width - 1 - right)), height, width, np.logical_and)


def opening(mask: Mask, height: int, width: int) -> Mask:
    """As ndimage.binary_opening(mask, np.ones((height, width))), bool [H, W]: the ink in which the rectangle fits."""
    return dilate(erode(mask, height, width), height, width)


def closing(mask: Mask, height: int, width: int) -> Mask:
    """As ndimage.binary_closing(mask, np.ones((height, width))), bool [H, W]: all paper in which it does not fit."""
    return erode(dilate(mask, height, width), height, width)


def framed(picture: NDArray[Any], rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[Any]:
    """A picture, [H, W], with so many rows of zeros above and below, and columns before and behind it.

    As np.pad(picture, (rows, columns)), in a quarter of its time.
    """
    height, width = picture.shape
    frame = np.zeros((height + sum(rows), width + sum(columns)), picture.dtype)
    frame[rows[0] : rows[0] + height, columns[0] : columns[0] + width] = picture
    return frame


def windows(mask: Mask, height: int, width: int, operation: np.ufunc) -> Mask:
    """`operation`, logical_or or logical_and, over each rectangle of pixels: bool [H - height + 1, W - width + 1]."""
    reached = 1
    while reached < height:
        step = min(reached, height - reached)
        mask = operation(mask[:-step], mask[step:])
        reached += step
    reached = 1
    while reached < width:
        step = min(reached, width - reached)
        mask = operation(mask[:, :-step], mask[:, step:])
        reached += step
    return mask
