"""Grids: tables of boxes for a character each, such as a sudoku, photographed aslant and on paper that bends.

    ink -> components_of -> find_grid -> Grid -> cell_numbers

Boxes that the rules enclose are found as paper between them.  A smooth lattice is laid through those (a polynomial of
row and column, which follows perspective and bent paper), so that boxes whose rules are broken or crossed by ink
have their places too.
"""

import itertools
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from glyphs.core.arrays import Mask, Points
from glyphs.pictures.morphology import Components, dilate, windows

# Lengths are shares of the page's shorter side
SMALLEST_GRID = 0.3  # a grid is so high and so wide
STRAIGHT_RULE = 0.04  # its rules are straight over such pieces
STEEPEST, STEPS = 0.24, 7  # slope of its rules, of so many directions tried up to it

LEAST_SIDE = 3  # rows and columns
MOST_OFF = 0.3  # of a cell's side: how far a cell is off the lattice
LEAST_FOUND = 0.5  # of a grid's cells: that many are found by their rules alone
CELLS_ALIKE = 0.4  # cells differ by so much in width and height
OBLONG = 1.7  # the longer side of a cell that holds one character over the shorter
LEAST_COVER = 0.15  # of the page: what a grid covers is what the picture shows
LEAST_CROSSED = 0.25  # of a grid's width: so much of it has a rule more than rows, above each other


@dataclass
class Grid:
    """A lattice of cells.

    Attributes
    ----------
    across, upright : bool [H, W], the straight ink in the one direction and in the other: rules, and long strokes.
    corners : float [R + 1, C + 1, 2], x and y of the cells' corners, in pixels of the page.
    """

    across: Mask
    upright: Mask
    corners: Points

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.corners.shape[0] - 1, self.corners.shape[1] - 1

    @property
    def cell_side(self) -> float:
        """The middling distance of neighbouring corners, in pixels."""
        return float(np.median(np.linalg.norm(np.diff(self.corners, axis=1), axis=2)))


def find_grid(ink: Components) -> Grid | None:
    """The grid that a page shows, from the connected parts of its ink; None where there is none."""
    shape = ink.labels.shape
    least = SMALLEST_GRID * min(shape)
    places = [
        (rows.stop - rows.start, columns.stop - columns.start, number, (rows, columns))
        for number, (rows, columns) in enumerate(ink.places, start=1)
    ]
    large = sorted(((h * w, number, place) for h, w, number, place in places if min(h, w) >= least), reverse=True)
    for area, number, place in large[:3]:
        # A letter of a field: with what a lattice may reach beyond its ink, still no grid.
        if area < LEAST_COVER / 2 * ink.labels.size:
            break
        part = ink.labels[place] == number
        if not (is_crossed(part) and is_crossed(part.T)):
            continue  # spare the time: a row of boxes has no three rows
        grid = lattice(part, max(8, round(STRAIGHT_RULE * min(shape))))
        if grid is None:
            continue
        across, upright = np.zeros(shape, bool), np.zeros(shape, bool)
        across[place], upright[place] = grid.across, grid.upright
        corners = grid.corners + np.array([place[1].start, place[0].start])
        outline = np.ptp(corners.reshape(-1, 2), axis=0)
        if outline.prod() >= LEAST_COVER * ink.labels.size:
            return Grid(across, upright, corners)
    return None


def is_crossed(part: Mask) -> bool:
    """Whether columns of a part, bool [H, W], meet as much separate ink as the rules of a grid."""
    runs = np.count_nonzero(part[1:] & ~part[:-1], axis=0) + part[0]
    return bool((runs > LEAST_SIDE).mean() >= LEAST_CROSSED)


def lattice(part: Mask, length: int) -> Grid | None:
    """The grid that a connected part of the ink is, bool [H, W], in pixels of the part."""
    across, upright = straight_pieces(part, length), straight_pieces(part.T, length).T
    labels, _ = ndimage.label(~dilate(np.pad(across | upright, 1), 3, 3))
    cells = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        if number == labels[0, 0] or max(high, wide) > OBLONG * min(high, wide) or high < length / 2:
            continue
        if (labels[rows, columns] == number).sum() > 0.6 * high * wide:
            cells.append(((columns.start + columns.stop) / 2 - 1, (rows.start + rows.stop) / 2 - 1, wide, high))
    if len(cells) < LEAST_SIDE**2:
        return None
    found = np.array(cells)
    usual = np.median(found[:, 2:], axis=0)
    found = found[(np.abs(found[:, 2:] / usual - 1) < CELLS_ALIKE).all(axis=1)]
    centres, places = number_cells(found[:, :2], usual)
    if len(places) < LEAST_SIDE**2:
        return None
    rows, columns = places.max(axis=0) + 1
    if min(rows, columns) < LEAST_SIDE or len(centres) < LEAST_FOUND * rows * columns:
        return None
    terms = terms_of(places.astype(np.float64) + 0.5)
    weights = np.linalg.lstsq(terms, centres, rcond=None)[0]
    if np.abs(terms @ weights - centres).max() > MOST_OFF * usual.min():
        return None
    ys, xs = np.mgrid[0 : rows + 1, 0 : columns + 1].astype(float)
    corners = terms_of(np.stack([ys.ravel(), xs.ravel()], axis=1)) @ weights
    return Grid(across, upright, corners.reshape(rows + 1, columns + 1, 2))


def terms_of(places: Points) -> Points:
    """The terms of a polynomial of row and column, float [N, 6]."""
    row, column = places.T
    return np.stack([np.ones_like(row), row, column, row * column, row**2, column**2], axis=1)


def straight_pieces(mask: Mask, length: int) -> Mask:
    """The ink that belongs to a straight run across of at least `length` pixels, in any of several slopes."""
    thick = np.ascontiguousarray(dilate(mask, 3, 1).T)  # a slope between two of those tried; a row for each column
    found = np.zeros_like(thick)
    beyond = ((length // 2, length - 1 - length // 2), (0, 0))  # a run at the edge may go on beyond it
    for slope in np.linspace(-STEEPEST, STEEPEST, STEPS):
        shift = np.rint(slope * np.arange(len(thick))).astype(int)
        sheared = sheared_rows(thick, -shift)
        runs = windows(np.pad(sheared, beyond, mode="symmetric"), length, 1, np.logical_and)
        runs = windows(np.pad(runs, beyond, mode="symmetric"), length, 1, np.logical_or)
        found |= sheared_rows(runs, shift)
    return found.T & mask


def sheared_rows(mask: Mask, shift: NDArray[np.int64]) -> Mask:
    """Each row moved right so far, int [H], and in again on the other side: bool [H, W]."""
    sheared = np.empty_like(mask)
    edges = [0, *(np.flatnonzero(np.diff(shift)) + 1).tolist(), len(mask)]
    for start, stop in itertools.pairwise(edges):
        at = int(shift[start]) % mask.shape[1]
        sheared[start:stop, at:] = mask[start:stop, : mask.shape[1] - at]
        sheared[start:stop, :at] = mask[start:stop, mask.shape[1] - at :]
    return sheared


def number_cells(centres: Points, usual: Points) -> tuple[Points, NDArray[np.int64]]:
    """The rows and columns of the largest set of neighbouring cells.

    Parameters
    ----------
    centres : x and y, float [N, 2].
    usual : width and height of a cell.

    Returns
    -------
    centres : those of that set, float [M, 2].
    places : row and column from 0, int [M, 2].
    """
    best: dict[int, tuple[int, int]] = {}
    left = set(range(len(centres)))
    steps = {(0, 1): (1.1, 0), (0, -1): (-1.1, 0), (1, 0): (0, 1.1), (-1, 0): (0, -1.1)}
    while left:
        first = left.pop()
        places = {first: (0, 0)}
        queue = deque([first])
        while queue:
            at = queue.popleft()
            for (down, right), step in steps.items():
                away = np.abs((centres - centres[at]) / usual - step).max(axis=1)
                near = int(away.argmin())
                if away[near] < CELLS_ALIKE and near not in places:
                    places[near] = (places[at][0] + down, places[at][1] + right)
                    left.discard(near)
                    queue.append(near)
        best = max(best, places, key=len)
    numbers = np.array(list(best.values()), dtype=np.int64).reshape(-1, 2)
    return centres[list(best)], numbers - numbers.min(axis=0, initial=0)


def cell_numbers(grid: Grid, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """For each pixel of a page the number of its cell from 1, row by row, int [H, W]; 0 outside the grid."""
    numbers = np.zeros(shape, dtype=np.int32)
    rows, columns = grid.shape
    for number, (row, column) in enumerate(itertools.product(range(rows), range(columns)), start=1):
        quad = grid.corners[[row, row, row + 1, row + 1], [column, column + 1, column + 1, column]]
        left, top = np.maximum(0, np.floor(quad.min(axis=0)).astype(int))
        right, bottom = np.ceil(quad.max(axis=0)).astype(int) + 1
        ys, xs = np.mgrid[top : min(bottom, shape[0]), left : min(right, shape[1])]
        inside = np.ones(ys.shape, dtype=bool)
        for (x0, y0), (x1, y1) in zip(quad, np.roll(quad, -1, axis=0), strict=True):
            inside &= (x1 - x0) * (ys - y0) - (y1 - y0) * (xs - x0) >= 0
        numbers[ys[inside], xs[inside]] = number
    return numbers
