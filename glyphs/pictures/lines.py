"""From a picture to lines of pieces, each a character, a part of one, or a dot.

    open_picture -> to_colour -> find_lines

The finder tells where characters are and which ink is theirs (see glyphs.pictures.finder); geometry does the rest:
which characters stand on one line, and in which cells of a grid or boxes of a form.  What may be several characters is
cut where its strokes are thin: more often than needed, because only recognition can tell where one character ends (see
glyphs.reading.reader).
"""

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from glyphs.core.arrays import Bytes, Floats, Mask
from glyphs.pictures.finder import STRIDE, STROKE, Finding, find
from glyphs.pictures.grid import Grid, cell_numbers, find_grid
from glyphs.pictures.morphology import closing, components_of, framed

RULE_LEVEL, RULE_GAP = 0.3, 5  # the probability from which on a pixel is a rule's; pixels of a gap in one, of the maps
WALL = 0.6  # of the height of a line: so much of it a rule between two boxes covers
NARROW_BOX = 1.6  # width over the height of its line: a box of a form that is narrower holds one character
# More pieces are noise, a screen or a texture, and each would cost the networks' time: of the pictures that people
# tried, the fullest had 2,687.
MOST_PAGE_PIECES = 8000

# Lengths are shares of a line's height, that of its median character
STEEPEST_LINE, LEAST_SLOPE = 0.25, 0.06  # slopes of lines that are looked for, and that are worth correcting
NEAREST, FARTHEST, MOST_ANCHORS = 1.5, 6, 300  # how far apart parts are that tell it; from so many parts on
SAME_LINE = 0.4  # of the lower of two parts: how much they overlap on one line
TALL = 0.5  # a part that is lower than this is a dot or a dash
SAME_PIECE = 0.5  # of the narrower of two parts: how much they overlap sideways in one character
DOT, DOT_REACH = 0.45, 0.3  # size of the dot of an i, and how far it is off its stem
DOT_DISTANCE = 1.2  # how far a part of no line's height is off its line, at most
CUTTABLE = 0.7  # what is wider than this may be several characters
NARROWEST, LOWEST = 0.12, 0.35  # of a piece of it
THICK = 1.8  # of the thickest stroke: so much ink is crossed at most where it is cut
WAY_ROWS = 40  # that cuts are looked for in
SIDESTEP = 0.25  # of a pixel of ink: the price of a step aside


class Box(NamedTuple):
    """Half-open ranges of pixels."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left


@dataclass
class Piece:
    """Ink that belongs together.

    Attributes
    ----------
    box : its place on the page.
    mask : bool [height, width] of the box.
    part : a number that the pieces cut from one connected part share.
    cell : the number of the form's cell that it stands in, None where there are no cells.
    """

    box: Box
    mask: Mask
    part: int
    cell: int | None = None

    @property
    def dotted(self) -> bool:
        """Whether a row without ink divides it, as the dot of an i is from its stem."""
        return not self.mask.any(axis=1).all()


@dataclass
class Line:
    """A line's pieces from left to right, and its height: that of its median character, in pixels."""

    pieces: list[Piece]
    height: float


@dataclass
class Page:
    """A page's ink and its lines from top to bottom.

    Attributes
    ----------
    ink : float32 [H, W], 0 for paper, 1 for ink, without rules.
    floor : the least ink of a stroke.
    zoom : pixels of the page over pixels of the picture.
    lines : in reading order.
    joined : whether most of it is joined script.
    size : width and height of the picture.
    grid : rows and columns of the grid that it shows, whose cells are its pieces' cells; None where it shows none.
    """

    ink: Floats
    floor: float
    zoom: float
    lines: list[Line]
    joined: bool
    size: tuple[int, int] = (0, 0)
    grid: tuple[int, int] | None = None

    def in_picture(self, box: Box) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a box, in pixels of the picture."""
        width, height = self.size
        left, right = (min(max(round(x / self.zoom), 0), width) for x in (box.left, box.right))
        top, bottom = (min(max(round(y / self.zoom), 0), height) for y in (box.top, box.bottom))
        return left, top, right, bottom


def union(boxes: list[Box]) -> Box:
    tops, lefts, bottoms, rights = zip(*boxes, strict=True)
    return Box(min(tops), min(lefts), max(bottoms), max(rights))


def find_lines(picture: Bytes) -> Page:
    """The lines of text in a picture, uint8 [H, W, 3]; none where it shows no character."""
    height, width = picture.shape[:2]
    found = find(picture)
    if found is None:
        return Page(np.zeros((1, 1), np.float32), STROKE, 1.0, [], False, (width, height))
    page = page_from(found)
    page.size = (width, height)
    return page


def page_from(found: Finding) -> Page:
    """The lines of what was found; the size of the picture is left open."""
    pieces = pieces_of(found)
    if not pieces:
        return Page(found.ink, STROKE, found.scale, [], False)
    edge = (RULE_GAP, RULE_GAP)
    whole = closing(framed(found.rules > RULE_LEVEL, edge, edge), RULE_GAP, RULE_GAP)
    rules = whole[RULE_GAP:-RULE_GAP, RULE_GAP:-RULE_GAP]
    grid = find_grid(components_of(rules))
    if grid is not None and (lines := grid_lines(pieces, grid, found)):
        return Page(found.ink, STROKE, found.scale, lines, False, grid=grid.shape)
    lines = group_lines(pieces)
    for line in lines:
        line.pieces = join_dots(line.pieces, line.height)
        enter_boxes(line, rules)
        line.pieces = [cut for piece in line.pieces for cut in cut_piece(piece, line.height)]
    if sum(len(line.pieces) for line in lines) > MOST_PAGE_PIECES:
        lines = []
    return Page(found.ink, STROKE, found.scale, lines, found.joined > STROKE)


def pieces_of(found: Finding) -> list[Piece]:
    """The connected parts of the ink that characters have; strokes that belong to none are left out.

    A part that several characters have is one piece, which is to be cut; the parts of one character are, too.
    """
    parts, count = ndimage.label(found.ink > STROKE, np.ones((3, 3)))
    owned = np.unique(np.stack([parts[found.owner > 0], found.owner[found.owner > 0]]), axis=1)
    group = np.arange(count + 1)
    for number in range(1, int(found.owner.max()) + 1):  # the dot of an i, the strokes of a broken letter
        mine = group[owned[0, owned[1] == number]]
        if len(mine):
            group[np.isin(group, mine)] = mine.min()
    group[np.setdiff1d(np.arange(count + 1), owned[0])] = 0
    labels = group[parts]
    return [
        cut_out(labels[place] == number, place, number)
        for number, place in enumerate(ndimage.find_objects(labels), start=1)
        if place is not None
    ]


def cut_out(mask: Mask, place: tuple[slice, slice], part: int) -> Piece:
    """The piece that a mask shows, bool of the place's shape."""
    top, left = place[0].start, place[1].start
    return Piece(Box(top, left, top + mask.shape[0], left + mask.shape[1]), mask, part)


def grid_lines(pieces: list[Piece], grid: Grid, found: Finding) -> list[Line]:
    """The rows of a grid that are not empty; what stands outside of it is left out.

    None where characters are higher than cells, as on squared paper.
    """
    if np.median([piece.box.height for piece in pieces]) > STRIDE * grid.cell_side:
        return []
    numbers = cell_numbers(Grid(grid.across, grid.upright, grid.corners * STRIDE), found.ink.shape)
    cells: dict[int, list[Piece]] = {}
    for piece in pieces:
        number = int(numbers[(piece.box.top + piece.box.bottom) // 2, (piece.box.left + piece.box.right) // 2])
        if number:
            cells.setdefault(number - 1, []).append(piece)
    lines = []
    for row in range(grid.shape[0]):
        inside = []
        for cell in range(row * grid.shape[1], (row + 1) * grid.shape[1]):
            if cell in cells:
                inside.append(merge(cells[cell]))
                inside[-1].cell = cell
        if inside:
            lines.append(Line(inside, float(np.median([piece.box.height for piece in inside]))))
    return lines


def enter_boxes(line: Line, rules: Mask) -> None:
    """Number the boxes of a form that the pieces of a line stand in, and make what is in a narrow one a piece."""
    box = union([piece.box for piece in line.pieces])
    rows = rules[box.top // STRIDE : box.bottom // STRIDE + 1]
    walls = rows.mean(axis=0) > WALL
    pieces = sorted(line.pieces, key=lambda piece: piece.box.left + piece.box.right)
    groups = [[pieces[0]]]
    for one, other in itertools.pairwise(pieces):
        start, stop = ((piece.box.left + piece.box.right) // (2 * STRIDE) for piece in (one, other))
        if walls[start : stop + 1].any():
            groups.append([])
        groups[-1].append(other)
    if len(groups) == 1:
        return
    line.pieces = []
    for cell, inside in enumerate(groups, start=1):
        if union([piece.box for piece in inside]).width < NARROW_BOX * line.height:
            inside = [merge(inside)]
            inside[0].cell = cell
        line.pieces += inside


def group_lines(parts: list[Piece]) -> list[Line]:
    """Lines of parts, from top to bottom, each from left to right; a line may climb or fall."""
    if not parts:
        return []
    heights = np.array([part.box.height for part in parts])
    usual = float(np.quantile(np.repeat(heights, heights), 0.5))
    tall = sorted((part for part in parts if part.box.height >= TALL * usual), key=lambda part: part.box.left)
    low = [part for part in parts if part.box.height < TALL * usual]
    lines: list[list[int]] = []
    ends = np.empty((len(tall), 2))  # the usual top and bottom of each line's last parts
    boxes = np.array([part.box for part in tall + low])
    # Tops and bottoms as they are where the lines are level
    climb = line_slope(boxes[: len(tall)], usual) * (boxes[:, 1] + boxes[:, 3]) / 2
    levels = boxes[:, [0, 2]] - climb[:, None]
    line_of = np.full(len(boxes), -1)
    for number in range(len(tall)):
        overlaps = shared_rows(levels[number], ends[: len(lines)])
        place = int(overlaps.argmax()) if lines else 0
        if not lines or overlaps[place] < SAME_LINE:
            place = len(lines)
            lines.append([])
        lines[place].append(number)
        line_of[number] = place
        ends[place] = [statistics.median(each) for each in levels[lines[place][-3:]].T.tolist()]
    for number, part in enumerate(low, len(tall)):
        away = np.where(line_of[:number] < 0, math.inf, distances(part.box, boxes[:number]))
        if away.min() < DOT_DISTANCE * usual:
            line_of[number] = line_of[:number][away == away.min()].min()
            lines[line_of[number]].append(number)
    lines.sort(key=lambda line: float(np.median(levels[line].mean(axis=1))))
    of_lines = [[(tall + low)[number] for number in line] for line in lines]
    return [
        Line(
            sorted(line, key=lambda part: part.box.left + part.box.right),
            float(np.median([part.box.height for part in line if part.box.height >= TALL * usual])),
        )
        for line in of_lines
    ]


def line_slope(boxes: NDArray[np.int64], height: float) -> float:
    """By how much lines fall (below 0: climb) for each pixel to the right; 0 where that is little.

    The middling slope from the feet of one part to those of another beside it.

    Parameters
    ----------
    boxes : of parts as high as a line, int [N, 4].
    height : the line's.
    """
    feet, middles = boxes[:, 2], (boxes[:, 1] + boxes[:, 3]) / 2
    some = np.arange(len(boxes))[:: 1 + len(boxes) // MOST_ANCHORS]
    right = middles - middles[some][:, None]
    slopes = (feet - feet[some][:, None])[right > 0] / right[right > 0]
    beside = right[right > 0] / height
    slopes = slopes[(beside > NEAREST) & (beside < FARTHEST) & (np.abs(slopes) < STEEPEST_LINE)]
    slope = float(np.median(slopes)) if slopes.size else 0.0
    return slope if abs(slope) > LEAST_SLOPE else 0.0


def shared_rows(level: NDArray[np.float64], lines: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much a part shares its rows, top and bottom [2], with lines', [N, 2], as a share of the lower: [N]."""
    top, bottom = lines.T
    shared = np.minimum(bottom, level[1]) - np.maximum(top, level[0])
    return np.asarray(shared / np.maximum(1, np.minimum(bottom - top, level[1] - level[0])))


def distances(one: Box, others: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels of paper from a box to others, int [N, 4]; those sideways count in full: a line has room there."""
    top, left, bottom, right = others.T
    beside = np.maximum(0, np.maximum(left - one.right, one.left - right))
    above = np.maximum(0, np.maximum(top - one.bottom, one.top - bottom))
    return np.asarray(beside + above)


def join_dots(parts: list[Piece], height: float) -> list[Piece]:
    """Join parts that lie above each other: dots and accents, and the strokes of one character."""
    joined: list[Piece] = []
    for part in parts:
        before = joined[-1] if joined else None
        if before is not None:
            shared = min(before.box.right, part.box.right) - max(before.box.left, part.box.left)
            both = union([before.box, part.box])
            inside = shared > SAME_PIECE * min(before.box.width, part.box.width) and both.width < 2 * height
            if inside or is_dot(part.box, before.box, height) or is_dot(before.box, part.box, height):
                joined[-1] = merge([before, part])
                continue
        joined.append(part)
    return joined


def is_dot(box: Box, stem: Box, height: float) -> bool:
    """Whether a part is the dot of an i or j whose stem is another, which slanted writing puts beside it."""
    small = max(box.height, box.width) < DOT * height
    narrow = stem.width < DOT * height <= stem.height
    beside = max(box.left - stem.right, stem.left - box.right)
    return small and narrow and beside < DOT_REACH * height and box.bottom <= stem.top + DOT_REACH * height


def merge(pieces: list[Piece]) -> Piece:
    """One piece of several."""
    box = union([piece.box for piece in pieces])
    mask = np.zeros((box.height, box.width), dtype=bool)
    for piece in pieces:
        top, left = piece.box.top - box.top, piece.box.left - box.left
        mask[top : top + piece.box.height, left : left + piece.box.width] |= piece.mask
    return Piece(box, mask, pieces[0].part, pieces[0].cell)


def cut_piece(piece: Piece, height: float) -> list[Piece]:
    """Cut a piece that may be several characters along the ways down through it that cross the least ink."""
    if piece.cell is not None or piece.box.width < CUTTABLE * height or piece.box.height < 0.4 * height:
        return [piece]
    ways = thin_ways(piece.mask, NARROWEST * height)
    passed = (np.arange(piece.box.width) >= ways[:, :, None]).sum(axis=0)  # how many ways lie before each pixel
    pieces: list[Piece] = []
    for number in range(len(ways) + 1):
        mask = piece.mask & (passed == number)
        if not mask.any():
            continue
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
        box = Box(piece.box.top + top, piece.box.left + left, piece.box.top + bottom, piece.box.left + right)
        cut = Piece(box, mask[top:bottom, left:right], piece.part)
        # A flat end of a stroke, as of the bar of a 5, is no character.
        if pieces and min(cut.box.height, pieces[-1].box.height) < LOWEST * height:
            cut = merge([pieces.pop(), cut])
        pieces.append(cut)
    return pieces


def thin_ways(mask: Mask, narrowest: float) -> NDArray[np.int64]:
    """The ways down through a part of the ink, bool [H, W], that cross the least of it: their columns, int [N, H].

    A way goes straight down or aslant, at the price of some ink; of those through the middle row, `narrowest` apart,
    these are the cheapest (J. Wang, J. Jean: Segmentation of merged characters by neural networks and shortest path,
    Pattern Recognition 27 (5), 1994).
    """
    height, width = mask.shape
    thickest = 2 * float(ndimage.distance_transform_edt(framed(mask, (1, 1), (1, 1))).max())
    step = max(1, round(height / WAY_ROWS))
    small = mask[step // 2 :: step, step // 2 :: step].astype(np.float64)
    if len(small) % 2 == 0:
        small = framed(small, (0, 1), (0, 0))
    rows, columns = small.shape
    middle = rows // 2
    # From the top and from the foot to the middle row: the ink on the cheapest way to each pixel.
    halves = np.stack([small[: middle + 1], small[: middle - 1 : -1] if middle else small])
    crossed = np.full((2, middle + 1, columns + 2), np.inf)
    crossed[:, 0, 1:-1] = halves[:, 0]
    for row in range(1, middle + 1):
        before, here = crossed[:, row - 1], crossed[:, row, 1:-1]
        np.minimum(before[:, :-2], before[:, 2:], out=here)
        here += SIDESTEP
        np.minimum(here, before[:, 1:-1], out=here)
        here += halves[:, row]
    ink = step * (crossed[:, middle, 1:-1].sum(axis=0) - small[middle])
    chosen: list[int] = []
    for column in np.argsort(ink, kind="stable").tolist():
        if ink[column] > THICK * thickest:
            break
        place = step * column
        if min(place, width - place) < narrowest or any(abs(column - other) * step < narrowest for other in chosen):
            continue
        chosen.append(column)
    ways = np.empty((rows, len(chosen)), np.int64)
    at = np.tile(np.array(chosen, np.int64), (2, 1))
    ways[middle] = at[0]
    moves, half = np.array([0, -1, 1]), np.arange(2)[:, None, None]
    price = SIDESTEP * np.abs(moves)
    for row in range(middle - 1, -1, -1):
        costs = crossed[half, row, at[:, :, None] + (1 + moves)]
        costs += price
        at = at + moves[costs.argmin(axis=2)]
        ways[row], ways[rows - 1 - row] = at
    # Where two have met, they go on together: none crosses another.
    ways = step * np.sort(ways, axis=1)
    found: NDArray[np.int64] = ways[np.minimum(np.arange(height) // step, rows - 1)].T
    return found
