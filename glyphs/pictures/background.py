"""A sheet of paper on a table, a canvas in a window: what lies around it is neither paper nor ink."""

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from glyphs.core.arrays import Floats, Mask
from glyphs.pictures.glyph import rescale, resize
from glyphs.pictures.morphology import closing, components_of, dilate

SHORT_SIDE = 120  # pixels: the shorter side at which a sheet shows, and its strokes still do
EVEN = 0.06  # of the brightness: paper changes by less from pixel to pixel, in whatever light, but for ink
BROADEST = 15  # pixels: strokes are narrower
LEAST_SHEET = 0.15  # of the picture that the sheet covers
LEAST_SOLID = 0.9  # of the sheet's convex hull that it fills
CORNERS, LEAST_AROUND = 2, 0.03  # so many of the picture's corners lie beyond it, in so large a part of the picture
AROUND_DARKER, AROUND_SHARE = 0.1, 0.8  # what is around is darker by this: such a share of it, and of what is close by
OFF_EDGE = 5  # pixels: how far off the sheet's edge that is
STROKE = 0.15  # of the paper's brightness: a stroke is darker by that
CROSSING, MOST_CROSSING = 2, 1  # pixels on either side of the edge that a stroke crosses; so many may do by chance
ENDS = ([0, 0, -1, -1], [0, -1, 0, -1])  # the picture's corners


def without_background(grey: Floats) -> Floats | None:
    """The picture, float32 [H, W] from 0 (black) to 1, with paper in place of what lies around its sheet.

    None where it shows no sheet that is brighter than what is around it and has a sharp outline.
    """
    height, width = grey.shape
    scale = min(1.0, SHORT_SIDE / min(height, width))
    small = rescale(grey, scale)
    sheet = find_sheet(small)
    if sheet is None:
        return None
    # Beyond the sheet goes on what is paper at its edge.
    nearest = ndimage.distance_transform_edt(~sheet, return_distances=False, return_indices=True)
    paper = ndimage.grey_closing(small, size=(BROADEST, BROADEST))[tuple(nearest)]
    inside = resize(sheet.astype(np.float32), width, height) > 0.5
    return np.where(inside, grey, resize(paper, width, height)).astype(np.float32)


def find_sheet(small: Floats) -> Mask | None:
    """The sheet that a picture shows whole or in part, bool [H, W]; None where it shows none."""
    brightest = beside(small, np.maximum)
    even, _ = ndimage.label(brightest - beside(small, np.minimum) < EVEN * brightest)
    areas = np.bincount(even.ravel())[1:]
    for number in np.argsort(-areas, kind="stable")[:2] + 1:  # a table may be even, too
        part = even == number
        if part.mean() < LEAST_SHEET / 2 or part[ENDS].sum() > len(ENDS[0]) - CORNERS:
            continue  # spare the time
        pad = BROADEST // 2
        closed = closing(np.pad(part, 2 * pad, mode="edge"), BROADEST, BROADEST)[2 * pad : -2 * pad, 2 * pad : -2 * pad]
        sheet: Mask = ndimage.binary_fill_holes(closed)
        if is_sheet(small, sheet):
            return sheet
    return None


def beside(values: Floats, operation: np.ufunc) -> Floats:
    """`operation`, maximum or minimum, over each pixel and the eight around it, float32 [H, W]: SciPy's, sooner."""
    wide = np.pad(values, 1, mode="edge")
    rows = operation(operation(wide[:-2], wide[1:-1]), wide[2:])
    return np.asarray(operation(operation(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]))


def is_sheet(small: Floats, part: Mask) -> bool:
    """Whether a part of a picture, bool [H, W], is a sheet that lies on something darker."""
    around, _ = ndimage.label(~part)
    areas = np.bincount(around.ravel())
    corners = around[ENDS]
    if part.mean() < LEAST_SHEET or sum(areas[corners[corners > 0]] > LEAST_AROUND * part.size) < CORNERS:
        return False
    rim = np.argwhere(part & ~ndimage.binary_erosion(part))
    if np.ptp(rim, axis=0).min() == 0 or part.sum() < LEAST_SOLID * ConvexHull(rim).volume:
        return False
    away, nearest = ndimage.distance_transform_edt(~part, return_indices=True)
    darker = small < (1 - AROUND_DARKER) * small[tuple(nearest)]
    edge = (away > OFF_EDGE - 1) & (away <= OFF_EDGE)
    # Beyond the sides of a form's box there is paper again.
    if not all(beyond.any() and darker[beyond].mean() >= AROUND_SHARE for beyond in (edge, ~part)):
        return False
    return crossings(small, part) <= MOST_CROSSING


def crossings(small: Floats, part: Mask) -> int:
    """How many strokes go on beyond a part of a picture: they do where it ends at a shadow that falls on text."""
    paper = ndimage.grey_closing(small, size=(BROADEST, BROADEST))
    strokes = components_of(paper - small > STROKE * paper).labels
    inside, around = ndimage.binary_erosion(part, iterations=CROSSING), ~dilate(part, *(2 * CROSSING + 1,) * 2)
    return len(np.setdiff1d(np.intersect1d(strokes[inside], strokes[around]), 0))
