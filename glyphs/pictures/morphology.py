"""Dilation, erosion, opening and closing of masks by rectangles, in a time that hardly depends on the rectangle's size.

A rectangle is a run along either axis, and a run of 2 n pixels is two runs of n, so that each takes some ten passes
over the mask; `scipy.ndimage`, whose answers they give, looks at all pixels of the rectangle for each one of the mask.
(R. van den Boomgaard, R. van Balen: Methods for fast morphological image transforms using bitmapped binary images,
CVGIP: Graphical Models and Image Processing 54 (3), 1992, "logarithmic decomposition".)

Beyond the edge there is nothing, that is, False.
"""

import numpy as np

from glyphs.arrays import Mask


def dilate(mask: Mask, height: int, width: int) -> Mask:
    """As ndimage.binary_dilation(mask, np.ones((height, width))), bool [H, W]."""
    down, right = (height - 1) // 2, (width - 1) // 2  # of the rectangle's pixels, before its middle
    return windows(np.pad(mask, ((down, height - 1 - down), (right, width - 1 - right))), height, width, np.logical_or)


def erode(mask: Mask, height: int, width: int) -> Mask:
    """As ndimage.binary_erosion(mask, np.ones((height, width))), bool [H, W]."""
    down, right = height // 2, width // 2
    return windows(np.pad(mask, ((down, height - 1 - down), (right, width - 1 - right))), height, width, np.logical_and)


def opening(mask: Mask, height: int, width: int) -> Mask:
    """As ndimage.binary_opening(mask, np.ones((height, width))), bool [H, W]: the ink in which the rectangle fits."""
    return dilate(erode(mask, height, width), height, width)


def closing(mask: Mask, height: int, width: int) -> Mask:
    """As ndimage.binary_closing(mask, np.ones((height, width))), bool [H, W]: all paper in which it does not fit."""
    return erode(dilate(mask, height, width), height, width)


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
