"""Pages whose rules and boxes are not level: how much they are turned, and such a page turned back.

Lines of text may climb or fall (see glyphs.pictures.page.line_slope); rules are found where they are nearly level.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from glyphs.core.arrays import Floats
from glyphs.pictures.morphology import Components

WIDEST_PARTS, LEAST_WIDTH = 12, 0.25  # so many parts are looked at, and so wide ones: a share of the page's width
RULES_TILT, BOXES_TILT, MOST_TILT = 0.05, 0.03, 0.25  # slopes: what is more level is found as it is, or is no rule
SMALLEST_BOX, ENCLOSED, LEAST_BOXES = 20, 0.7, 3  # pixels; of its surroundings that a box encloses; so many are a row
OFF_LINE, LEAST_ON_LINE = 2.0, 0.6  # pixels off a straight line, and the share of an edge that is no farther off


def find_tilt(ink: Components) -> float:
    """By how much rules and boxes fall for each pixel to the right (below 0: climb); 0 where that is little.

    The middling slope of the straight edges, upper and lower, of wide parts of the ink; where there are none, of boxes
    that stand apart.
    """
    widths = np.array([columns.stop - columns.start for _, columns in ink.places])
    of_wide: list[float] = []
    of_boxes: list[float] = []
    for index in np.argsort(-widths, kind="stable")[:WIDEST_PARTS].tolist():
        part = ink.labels[ink.places[index]] == index + 1
        height, width = part.shape
        is_wide = width >= max(LEAST_WIDTH * ink.labels.shape[1], 2 * height)
        if width < SMALLEST_BOX or (of_wide and not is_wide):
            break
        edges = [straight_slope(edge) for edge in (part.argmax(axis=0), -part[::-1].argmax(axis=0))]
        straight = [slope for slope in edges if slope is not None]
        if is_wide:
            of_wide += straight
        elif (
            len(straight) == 2 and min(part.shape) >= SMALLEST_BOX and ndimage.binary_fill_holes(part).mean() > ENCLOSED
        ):
            of_boxes.append(sum(straight) / 2)
    if not of_wide and len(of_boxes) < LEAST_BOXES:
        return 0.0
    tilt = float(np.median(of_wide or of_boxes))
    return tilt if (RULES_TILT if of_wide else BOXES_TILT) < abs(tilt) < MOST_TILT else 0.0


def straight_slope(edge: NDArray[np.int64]) -> float | None:
    """The slope of an edge, its row in each column, int [W]; None where it is not straight for the most part."""
    half = len(edge) // 2
    slope = float(np.median(edge[half:] - edge[: len(edge) - half])) / half
    off = edge - slope * np.arange(len(edge))
    return slope if (np.abs(off - np.median(off)) <= OFF_LINE).mean() >= LEAST_ON_LINE else None


def turned(shape: tuple[float, ...], tilt: float) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """How a page of this shape is turned so that what has this slope is level.

    Returns
    -------
    matrix : from row and column of the turned page to those of the page, both from the middle, float [2, 2].
    shape : of the turned page, which holds all of the page.
    """
    sine, cosine = math.sin(math.atan(tilt)), math.cos(math.atan(tilt))
    height, width = shape
    size = (math.ceil(height * cosine + width * abs(sine)), math.ceil(width * cosine + height * abs(sine)))
    return np.array([[cosine, sine], [-sine, cosine]]), size


def level(grey: Floats, tilt: float) -> Floats:
    """The page, float32 [H, W], turned so that what has this slope is level; its edges go on beyond it."""
    matrix, size = turned(grey.shape, tilt)
    offset = (np.array(grey.shape) - 1) / 2 - matrix @ ((np.array(size) - 1) / 2)
    return np.asarray(
        ndimage.affine_transform(grey, matrix, offset, output_shape=size, order=1, mode="nearest"), np.float32
    )
