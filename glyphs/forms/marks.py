"""Marks printed in a page's corners: where they are in a picture of it, and the page made straight by them.

    to_grey -> find_marks -> straighten

Three marks are squares within squares, as QR codes have them; the one at the top left is a square with a hole, so that
the marks tell which way up the page is, too.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from glyphs.core.arrays import Floats, Mask, Points
from glyphs.forms.paper import paper_ink
from glyphs.pictures.glyph import rescale
from glyphs.pictures.morphology import components_of

MODULES = 7  # a mark's side; its ring is one thick, or two, and what it encloses is three wide
# Shares of a mark's area, and how far off a picture may be; sides are shares of the picture's shorter side
RING, CORE, THICK_RING, AREA_TOLERANCE = 24 / 49, 9 / 49, 40 / 49, 0.1
SMALLEST, LARGEST = 0.012, 0.2
OFF_CENTRE = 0.1  # of a mark's side: how far what it encloses is from its middle
MARKS_ALIKE = 3.0  # one mark's area over another's, at most
ASLANT = 2.0  # one side of the page over the opposite one, at most
LONGER_SIDE = 1200  # pixels that are enough to find them
MOST_CANDIDATES = 6  # of each kind that are tried, the largest


class Square(NamedTuple):
    """A square to print: its left and top, its side, and its brightness, 0 or 1."""

    left: float
    top: float
    side: float
    grey: float


class Mark(NamedTuple):
    """What may be a mark: x and y of its middle, and its area, in pixels."""

    place: tuple[float, float]
    area: float


def mark_squares(x: float, y: float, side: float, *, first: bool) -> list[Square]:
    """The squares that make a mark around a point, each printed over those before it; `first` at the top left."""
    sizes = (7, 3) if first else (7, 5, 3)
    return [
        Square(x - side * size / 14, y - side * size / 14, side * size / 7, number % 2)
        for number, size in enumerate(sizes)
    ]


def find_marks(grey: Floats) -> Points | None:
    """Where a page's marks are in a picture, float32 [H, W] from 0 (black) to 1.

    Returns
    -------
    x and y of the marks at the page's top left, top right, bottom right and bottom left, float [4, 2], however the
    picture is turned; None where there are no four.
    """
    scale = min(1.0, LONGER_SIDE / max(grey.shape))
    ink, floor = paper_ink(rescale(grey, scale))
    mask = ink > floor
    parts = components_of(mask)
    shorter = min(mask.shape)
    kinds: tuple[list[Mark], list[Mark]] = ([], [])
    for number, place in enumerate(parts.places, start=1):
        sides = [line.stop - line.start for line in place]
        if min(sides) < max(SMALLEST * shorter, MODULES) or max(sides) > min(LARGEST * shorter, 2 * min(sides)):
            continue
        known = examine(parts.labels[place] == number, mask[place])
        if known is not None:
            is_first, (y, x), area = known
            kinds[not is_first].append(Mark((place[1].start + x, place[0].start + y), area))
    firsts, others = (sorted(kind, key=lambda mark: -mark.area)[:MOST_CANDIDATES] for kind in kinds)
    best, best_area = None, 0.0
    for first in firsts:
        for three in itertools.combinations(others, 3):
            areas = [mark.area for mark in (first, *three)]
            corners = clockwise(np.array([mark.place for mark in (first, *three)]))
            if corners is None or max(areas) > MARKS_ALIKE * min(areas) or (area := enclosed(corners)) <= best_area:
                continue
            sides = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)
            if np.abs(np.log(sides[:2] / sides[2:])).max() <= np.log(ASLANT):
                best, best_area = corners, area
    # From pixels' middles to their corners and back, since a shrunk picture keeps the latter.
    return None if best is None else (best + 0.5) / scale - 0.5


def examine(part: Mask, ink: Mask) -> tuple[bool, tuple[float, float], float] | None:
    """Whether a connected part of the ink, bool [h, w], is a mark's ring; `ink` is all ink in its box.

    Returns
    -------
    Whether it is the mark at the top left, row and column of its middle, and its area; None where it is no mark.
    """
    filled = ndimage.binary_fill_holes(part)
    area = float(filled.sum())
    within = filled & ~part
    if within.sum() < 4:
        return None
    ring, core = part.sum() / area, (within & ink).sum() / area
    if abs(ring - RING) < 1.5 * AREA_TOLERANCE and abs(core - CORE) < AREA_TOLERANCE:
        first, inside = False, within & ink
    elif abs(ring - THICK_RING) < AREA_TOLERANCE and core < AREA_TOLERANCE / 4:
        first, inside = True, within
    else:
        return None
    middle, other = (np.array(ndimage.center_of_mass(mask)) for mask in (filled, inside))
    if np.abs(middle - other).max() > OFF_CENTRE * np.sqrt(area):
        return None
    return first, (float(middle[0]), float(middle[1])), area


def clockwise(points: Points) -> Points | None:
    """Four points, float [4, 2], in the order in which they follow the first one clockwise; None if not convex."""
    away = points - points.mean(axis=0)
    order = np.argsort(np.arctan2(away[:, 1], away[:, 0]))  # y points down, so that this is clockwise
    ordered = np.roll(points[order], -int(np.flatnonzero(order == 0)[0]), axis=0)
    sides = np.roll(ordered, -1, axis=0) - ordered
    turns = sides[:, 0] * np.roll(sides, -1, axis=0)[:, 1] - sides[:, 1] * np.roll(sides, -1, axis=0)[:, 0]
    return ordered if (turns > 0).all() else None


def enclosed(corners: Points) -> float:
    """The area of a polygon, float [N, 2], by Gauss's formula."""
    x, y = corners.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def homography(source: Points, target: Points) -> NDArray[np.float64]:
    """The perspective map that takes points to others, [3, 3], with least algebraic error where there are over four.

    The direct linear transform: R. Hartley, A. Zisserman, Multiple View Geometry in Computer Vision, 2nd edition,
    section 4.1, with the normalisation of section 4.4.

    Parameters
    ----------
    source, target : x and y of N points, float [N, 2]; no three of four on a line.
    """
    scales = []
    for points in (source, target):
        middle, spread = points.mean(axis=0), np.linalg.norm(points - points.mean(axis=0), axis=1).mean()
        scales.append(np.array([[1, 0, -middle[0]], [0, 1, -middle[1]], [0, 0, spread / np.sqrt(2)]]))
    (x, y), (u, v) = (apply(scale, points).T for scale, points in zip(scales, (source, target), strict=True))
    zero, one = np.zeros_like(x), np.ones_like(x)
    rows = np.concatenate(
        [
            np.stack([x, y, one, zero, zero, zero, -u * x, -u * y, -u], axis=1),
            np.stack([zero, zero, zero, x, y, one, -v * x, -v * y, -v], axis=1),
        ]
    )
    matrix = np.linalg.inv(scales[1]) @ np.linalg.svd(rows)[2][-1].reshape(3, 3) @ scales[0]
    return np.asarray(matrix / matrix[2, 2])


def apply(matrix: NDArray[np.float64], points: Points) -> Points:
    """Points, float [N, 2], taken by a perspective map, [3, 3]."""
    moved = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return np.asarray(moved[:, :2] / moved[:, 2:])


def straighten(grey: Floats, seen: Points, places: Points, size: tuple[int, int]) -> Floats:
    """A page as a scanner sees it that lies straight: float32 [height, width].

    Parameters
    ----------
    grey : a picture of the page, float32 [H, W].
    seen, places : x and y of points of the page, in the picture and where they are to be, float [N, 2].
    size : width and height, in pixels.
    """
    # Pillow counts from a pixel's corner, as it samples at the pixels' middles.
    matrix = homography(places + 0.5, seen + 0.5)
    picture = Image.fromarray(grey)
    terms = matrix.ravel()[:8].tolist()
    paper = float(np.median(grey))
    straight = picture.transform(size, Image.Transform.PERSPECTIVE, terms, Image.Resampling.BILINEAR, fillcolor=paper)
    return np.asarray(straight)
