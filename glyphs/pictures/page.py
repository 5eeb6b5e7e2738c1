"""A picture of text, turned into lines of pieces of ink that are each a character, a part of one, or a dot.

    open_picture -> to_grey -> find_lines

The paper is levelled.  Where the picture shows a grid, what stands in each of its cells is a piece (see
glyphs.pictures.grid).  Else ruled lines and the boxes of form fields are taken away, connected ink is grouped into
lines, and what may be several characters is cut where its strokes are thin: more often than needed, because only
recognition can tell where one character ends (see glyphs.reading.reader).
"""

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from glyphs.core.arrays import Floats, Mask
from glyphs.pictures.background import without_background
from glyphs.pictures.glyph import rescale, resize
from glyphs.pictures.grid import Grid, cell_numbers, find_grid
from glyphs.pictures.morphology import Components, closing, components_of, dilate, framed, opening, run_lengths, windows
from glyphs.pictures.tilt import find_tilt, level, turned

# Working sizes, in pixels
SMALL_SIDE, LARGE_SIDE, MOST_ZOOM = 100, 800, 4  # a picture below both sides is enlarged towards them, so much at most
PAPER_WINDOW = 15  # the closing that finds the paper is at least so wide, else an eighth of the shorter side,
LEAST_WINDOW = 52  # or so wide, or a third of it: the strokes of a character that fills its picture are broad
SMOOTH = 0.8  # standard deviation of the first blur

# Finding ink; shares are of the paper's brightness
LEAST_INK = 0.06  # ink is at least so much darker than its paper
LEAST_SIGNAL = 4.0  # and so many times the paper's noise
FAINT = 0.5  # of the floor: the least that belongs to a rule
FLOOR = 0.35  # of the strong ink: the least that belongs to a stroke
SPECK = 0.12  # of a character's height: a part that is smaller both ways is dirt

MOST_TEXT_PARTS = 5000  # more are noise, a screen or a texture, and each would cost the network's time
SMALLEST_AT_EDGE, LARGEST_AT_EDGE = 0.5, 1.6  # of a character's size: what the picture's edge cuts is else no text
LARGEST_OF_TEXT = 1.2  # of the large parts off the edge: what the edge cuts may be as large as that, too
SLIVER = 0.08  # of a character's size: what lies along the edge and is no wider is the edge's shadow

# Rules; lengths are shares of the picture's width or height
RULE, RULE_SEGMENT = 0.3, 0.05  # a rule is so long, and straight over each such part of it
SHORT_RULE, RULE_HEIGHTS = 0.15, 5  # likewise, where it is so many times as long as the ink is usually high
WALL_SLOPE, LONE_SLOPE = 0.15, 0.08  # of the height of a box's side: how wide it may be, and where it is the only one
PAIR = 0.4  # of it: by how much the ends of two sides of a box differ
# Where so many were not found, thick ones are looked for; they are straight over, and not as wide as, such shares of it
LEAST_SIDES, STRAIGHT_SIDE, THICK_SIDE = 3, 0.8, 0.3
THIN_RULE = 0.01  # of the page's height: how thick a thin rule is
RULE_SLOPE = 0.06  # height over width of a rule, its thickness apart

SMALLEST_FRAME = 20  # pixels
FRAME_RIM = 0.12  # of the shorter side of a box that stands apart: how far its sides are from straight and level
FRAME_WHOLE, FRAME_STRAIGHT = 0.95, 0.7  # of a side: how much of it is there, and in one stroke

# Squared paper: of the picture's sides so many are crossed by so many rules; what covers more of one lies along it
CROSSED_SIDES, LEAST_CROSSINGS, MOST_ALONG = 3, 2, 0.5
SQUARES_ALIKE = 0.8  # of the squares along those sides: that many are as large as the usual one
SQUARE_SIDES = 1.5  # of a square: what is longer and straight is a rule

FOOT = 0.5  # of the distance of rules: what is longer along a rule is no foot of a letter
DARKER = 1.5  # times as dark as a rule: strokes that are can be told from it by that
RULE_EDGE = 5  # pixels: a rule of one pixel with its soft edges

FLAT, FILLED = 8, 0.25  # width over height of a flat stroke, and how much of its box it fills
LONGEST_DASH = 2  # of a character's size: a flat stroke that is wider is a rule

# Lines and pieces; lengths are shares of a line's height, that of its middling character
STEEPEST_LINE, LEAST_SLOPE = 0.25, 0.06  # slopes of lines that are looked for, and that are worth to be told
NEAREST, FARTHEST, MOST_ANCHORS = 1.5, 6, 300  # how far apart parts are that tell it; from so many parts on
SAME_LINE = 0.4  # of the lower of two parts: how much they overlap on one line
TALL = 0.5  # a part that is lower than this is a dot or a dash
SAME_PIECE = 0.5  # of the narrower of two parts: how much they overlap sideways in one character
DOT, DOT_REACH = 0.45, 0.3  # size of the dot of an i, and how far it is off its stem
DOT_DISTANCE = 1.2  # how far a part of no line's height is off its line, at most
# What is no more than half as dark as the nearest character, at its darkest, and low or narrow, is print or dirt
FAINT_PART, NARROW_PART = 0.5, 0.15
CUTTABLE = 0.7  # what is wider than this may be several characters
NARROWEST, LOWEST = 0.12, 0.35  # of a piece of it
THICK = 1.8  # of the thickest stroke: so much ink is crossed at most where it is cut
WAY_ROWS = 40  # that cuts are looked for in
SIDESTEP = 0.25  # of a pixel of ink: the price of a step aside
CELL = 1.6  # width over height of a form's cell: one that is narrower holds one character
CELL_RIM = 0.08  # of a grid's cell: how far from its edge its rules lie
INNER = 0.3  # of a part: so much lies off the rim, or it is what is left of a rule
WHOLE = 0.75  # of a part: so much in one cell, and all of it belongs there
# Of the ink off the rim, strokes that go from cell to cell; four sudokus had 0.003, squared paper 0.16
MOST_ACROSS = 0.05
LEAST_IN_CELL = 0.25  # of a cell's side: what is lower is dirt
UNEVEN, SIDE_REMAINS = 0.2, 0.15  # of a cell's width: by how much cells differ; how wide its sides' remains are
JOINED_WIDTH = 1.9  # a part that is wider than this has several joined letters
JOINED_SHARE = 0.4  # share of the parts' width in wide parts, from which a page is joined script


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
    """A line's pieces from left to right, and its height: that of its middling character, in pixels."""

    pieces: list[Piece]
    height: float


@dataclass
class Page:
    """A page's ink and its lines from top to bottom.

    Attributes
    ----------
    ink : float32 [H, W], 0 for paper, up to 1 for ink, without rules.
    floor : the least ink of a stroke.
    zoom : pixels of the page over pixels of the picture.
    lines : in reading order.
    joined : whether most of it is joined script.
    grid : rows and columns of the grid that it shows, whose cells are its pieces' cells; None where it shows none.
    tilt : the slope that its rules had before it was turned.
    untilted : its height and width before that, in pixels of the page; None where it was not turned.
    """

    ink: Floats
    floor: float
    zoom: float
    lines: list[Line]
    joined: bool
    grid: tuple[int, int] | None = None
    tilt: float = 0.0
    untilted: tuple[float, float] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture."""
        height, width = self.untilted or self.ink.shape
        return round(width / self.zoom), round(height / self.zoom)

    def in_picture(self, box: Box) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a box, in pixels of the picture."""
        corners = np.array([[y, x] for y in (box.top, box.bottom) for x in (box.left, box.right)], float)
        if self.untilted is not None:
            matrix, _ = turned(self.untilted, self.tilt)
            corners = (corners - np.array(self.ink.shape) / 2) @ matrix.T + np.array(self.untilted) / 2
            corners = np.clip(corners, 0, self.untilted)
        (top, left), (bottom, right) = corners.min(axis=0) / self.zoom, corners.max(axis=0) / self.zoom
        return round(left), round(top), round(right), round(bottom)


class Frame(NamedTuple):
    """What may be a box that stands apart: its size, its rows, how far its sides are from straight, its ink."""

    high: int
    wide: int
    rows: slice
    rim: int
    part: Mask


def union(boxes: list[Box]) -> Box:
    tops, lefts, bottoms, rights = zip(*boxes, strict=True)
    return Box(min(tops), min(lefts), max(bottoms), max(rights))


def find_lines(grey: Floats) -> Page:
    """The lines of text in a picture, float32 [H, W] from 0 (black) to 1; none where it shows no ink."""
    bare = without_background(grey)
    if bare is not None:
        page = lines_on_paper(bare)
        if page.lines:
            return page
    return lines_on_paper(grey)


def lines_on_paper(grey: Floats, is_level: bool = False) -> Page:
    """As find_lines, of a picture that shows paper from edge to edge; `is_level`, it was turned already."""
    height, width = grey.shape
    zoom = max(SMALL_SIDE / min(height, width), LARGE_SIDE / max(height, width))
    zoom = min(max(1, math.ceil(zoom)), MOST_ZOOM)
    ink, floor = page_ink(rescale(grey, zoom))
    mask = ink > floor
    if not mask.any():
        return Page(ink, floor, zoom, [], False)
    faint = components_of(ink > FAINT * floor)
    squares = square_side(faint)
    grid = find_grid(faint) if squares is None else None
    cells = read_cells(ink, floor, grid) if grid else None
    if grid is not None and cells is not None:
        ink, lines = cells
        return Page(ink, floor, zoom, lines, False, grid.shape)
    if squares is None and not is_level and (tilt := find_tilt(faint)):
        page = lines_on_paper(level(grey, tilt), is_level=True)
        page.tilt, page.untilted = tilt, (height * page.zoom, width * page.zoom)
        return page
    mask, across, walls = remove_rules(ink, floor, faint) if squares is None else remove_squares(ink, floor, squares)
    if across.any() and not walls.any():
        # With their soft edges, which would be drawn around what stands on them.
        ink[dilate(across, RULE_EDGE, RULE_EDGE) & ~dilate(mask, 3, 3)] = 0
    parts = find_parts(mask)
    high = rule_distance(across) if walls.any() else 0.0
    lines = [line for line in group_lines(parts, high) if line.pieces]
    joined = is_joined(lines)
    for line in lines:
        line.pieces = without_faint(line, ink)
        if walls.any():
            line.pieces = between_rules(line, across)
        line.pieces = join_dots(line.pieces, line.height)
        if walls.any():
            enter_cells(line, walls, high)
        line.pieces = [cut for piece in line.pieces for cut in cut_piece(piece, line.height)]
    return Page(ink, floor, zoom, lines, joined)


def page_ink(page: Floats) -> tuple[Floats, float]:
    """How far each pixel is from its paper, as a share of that, float32 [H, W], and the least that is a stroke.

    The floor is above all ink where there is nothing but paper.
    """
    page = ndimage.gaussian_filter(page, SMOOTH)
    shorter = min(page.shape)
    window = max(PAPER_WINDOW, shorter // 8, min(shorter // 3, LEAST_WINDOW))
    shrink = PAPER_WINDOW / window
    height, width = page.shape
    small = rescale(page, shrink)
    # On a dark page light ink is what stands out.  Compared with what is near: a shadow may cover most of a page.
    off = small - ndimage.uniform_filter(small, PAPER_WINDOW)
    if (off * off * off).sum() > 0:
        page, small = 1 - page, 1 - small
    # Strokes are narrower than the window, shadows and tables are not: they count as paper.
    small = ndimage.gaussian_filter(ndimage.grey_closing(small, size=(PAPER_WINDOW,) * 2), PAPER_WINDOW / 6)
    paper = small if shrink == 1 else resize(small, width, height)
    ink = np.asarray(1 - page / np.maximum(paper, 0.05), dtype=np.float32)
    ink -= middling(ink)
    noise = 1.4826 * middling(np.abs(ink))
    least = max(LEAST_INK, LEAST_SIGNAL * noise)
    strong = ink[ink > least]
    if strong.size < 10:
        return ink, 1.0
    return ink, max(FLOOR * quantile(strong, 0.9), least)


def quantile(values: Floats, share: float) -> float:
    """As np.quantile, in less time."""
    place = share * (len(values) - 1)
    ordered = np.partition(values, int(place))
    low, high = float(ordered[int(place)]), float(ordered[int(place) + 1 :].min(initial=math.inf))
    return low + (place - int(place)) * (high - low) if place > int(place) else low


def middling(values: Floats) -> float:
    """The median, of an even number of values the upper of the middle two: in a fifth of np.median's time."""
    return float(np.partition(values, values.size // 2, axis=None)[values.size // 2])


# ---- Rules and boxes ----


def remove_rules(ink: Floats, floor: float, parts: Components) -> tuple[Mask, Mask, Mask]:
    """Take ruled lines and boxes out of a page's ink.

    Parameters
    ----------
    ink : float32 [H, W], as of a page.
    floor : the least ink of a stroke.
    parts : of all ink that may be a rule's, which are often printed fainter.

    Returns
    -------
    mask : bool [H, W], the strokes without them; those that cross a rule are whole again.
    across, walls : bool [H, W], the rules, and the upright sides of boxes.
    """
    mask, faint = ink > floor, parts.labels > 0
    across = find_rules(parts) | find_frames(parts)
    if not across.any():
        return mask, across, across
    walls = find_walls(faint, across)
    rest = mask & ~across & ~walls
    if rest.any() and not walls.any():
        # Where pens write darker than rules are printed, what is as dark as they is theirs: the feet of letters.
        pen, print_ = float(np.median(ink[rest])), float(np.median(ink[across]))
        if pen > DARKER * print_:
            dark = across & (ink > (pen + print_) / 2)
            dark &= ~opening(dark, 1, max(5, round(FOOT * rule_distance(across))))
            rest |= ndimage.binary_propagation(rest & ndimage.binary_dilation(across), mask=rest | dark) & dark
    return mend_strokes(rest, mask, across, walls), across, walls


def mend_strokes(rest: Mask, mask: Mask, across: Mask, walls: Mask) -> Mask:
    """What is left of strokes, bool [H, W], with what they lost to the rules that they cross."""
    for rules, axis in ((across, 0), (walls, 1)):
        thick = thickness(rules, axis)
        if thick:
            size = (2 * thick + 3, 1) if axis == 0 else (1, 2 * thick + 3)
            inner = slice(thick + 2, -thick - 2)
            wide = framed(rest, (thick + 2, thick + 2), (thick + 2, thick + 2))
            rest = rest | (closing(wide, *size)[inner, inner] & rules & mask)
    return rest


def square_side(parts: Components) -> float | None:
    """How far apart the rules of squared paper are, in pixels, from where they run off the picture; None without."""
    labels = parts.labels
    sides = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
    numbers, counts = np.unique(np.concatenate(sides), return_counts=True)
    if numbers.max() == 0:
        return None
    largest = numbers[numbers > 0][counts[numbers > 0].argmax()]
    steps: list[int] = []
    crossed = 0
    for side in sides:
        own = side == largest
        crossings = np.flatnonzero(np.diff(own.astype(np.int8), prepend=0) == 1)
        if len(crossings) >= LEAST_CROSSINGS and own.mean() < MOST_ALONG:
            crossed += 1
            steps += np.diff(crossings).tolist()
    if crossed < CROSSED_SIDES:
        return None
    usual = float(np.median(steps))
    alike = np.abs(np.array(steps) - usual) < UNEVEN * usual
    return usual if alike.mean() > SQUARES_ALIKE else None


def remove_squares(ink: Floats, floor: float, side: float) -> tuple[Mask, Mask, Mask]:
    """As remove_rules, of squared paper whose rules are `side` pixels apart; they are no boxes: none are returned."""
    mask, faint = ink > floor, ink > FAINT * floor
    nothing = np.zeros_like(mask)
    length = max(12, round(SQUARE_SIDES * side))
    across, upright = opening(faint, 1, length), opening(faint, length, 1)
    rules = dilate(across | upright, 3, 3) & faint
    rest = mask & ~rules
    if not rest.any():
        return rest, nothing, nothing
    # Strokes along the rules are whole only where pens write darker than rules are printed.
    pen, print_ = float(np.median(ink[rest])), float(np.median(ink[rules]))
    if pen > DARKER * print_:
        rest = mask & (ink > (pen + print_) / 2)
    else:
        rest = mend_strokes(rest, mask, dilate(across, 3, 1) & faint, dilate(upright, 1, 3) & faint)
    ink[~dilate(rest, 3, 3)] = 0
    return rest, nothing, nothing


def find_frames(parts: Components) -> Mask:
    """The level sides of boxes that stand apart in a row, bool [H, W], where two at least are alike."""
    found = []
    for number, place in enumerate(parts.places, start=1):
        high, wide = (line.stop - line.start for line in place)
        if min(high, wide) < SMALLEST_FRAME:
            continue
        part = parts.labels[place] == number
        rim = max(2, round(FRAME_RIM * min(high, wide)))
        bands = (part[:rim].any(axis=0), part[-rim:].any(axis=0), part[:, :rim].any(axis=1), part[:, -rim:].any(axis=1))
        if min(band.mean() for band in bands) >= FRAME_WHOLE:
            found.append(Frame(high, wide, place[0], rim, part))
    # A row of boxes in one is no such box, and would take long.
    alike = alike_in_height([frame for frame in alike_in_height(found) if is_straight(frame)])
    if not alike:
        return np.zeros(parts.labels.shape, bool)
    # Boxes that a character touches lie between the same rows.
    near = np.zeros((len(parts.labels), 1), bool)
    for _, _, rows, rim, _ in alike:
        near[rows.start : rows.start + rim] = near[rows.stop - rim : rows.stop] = True
    return opening(parts.labels > 0, 1, round(FRAME_STRAIGHT * min(frame.wide for frame in alike))) & near


def alike_in_height(frames: list[Frame]) -> list[Frame]:
    """Those that another one is about as high as."""
    return [one for one in frames if sum(abs(one.high - other.high) < UNEVEN * one.high for other in frames) > 1]


def is_straight(frame: Frame) -> bool:
    """Whether most of each side of a box is one straight stroke."""
    level = opening(frame.part, 1, round(FRAME_STRAIGHT * frame.wide))
    upright = opening(frame.part, round(FRAME_STRAIGHT * frame.high), 1)
    rim = frame.rim
    return all(end.any() for end in (level[:rim], level[-rim:], upright[:, :rim], upright[:, -rim:]))


def thickness(rules: Mask, axis: int) -> int:
    """The middling thickness of rules along an axis, in pixels."""
    lengths = run_lengths(rules, axis)
    return int(np.median(lengths)) if lengths.size else 0


def find_rules(ink: Components) -> Mask:
    """The long lines across a page, bool [H, W]: straight pieces that join to something long and flat."""
    mask = ink.labels > 0
    height, width = mask.shape
    segment = max(12, round(RULE_SEGMENT * width))
    straight = opening(mask, 1, segment)
    # Thin ones that are not quite level have such straight parts only where they are made a little thicker.
    thick = max(5, round(THIN_RULE * height))
    thin = mask & ~opening(mask, thick, 1)
    straight |= opening(dilate(thin, 3, 1), 1, segment) & thin
    parts = components_of(dilate(straight, 3, 5))
    # On a page of small writing lines to write on are shorter than rules of the page.
    heights = np.array([rows.stop - rows.start for rows, _ in ink.places])
    usual = float(np.median(np.repeat(heights, heights))) if len(heights) else 0.0
    long = min(max(RULE * width, 0.6 * min(height, width)), max(SHORT_RULE * width, RULE_HEIGHTS * usual))
    kept = []
    for number, (rows, columns) in enumerate(parts.places, start=1):
        span = columns.stop - columns.start
        if span >= long and rows.stop - rows.start <= max(RULE_SLOPE * span, 6) and rows.stop - rows.start < span / 6:
            kept.append(number)
    rules: Mask = dilate(np.isin(parts.labels, kept), 3, 1) & mask
    return rules


def find_walls(mask: Mask, across: Mask) -> Mask:
    """The upright sides of boxes, bool [H, W]: upright strokes that end at a rule, or the edge, on both sides."""
    height = mask.shape[0]
    reach = max(3, height // 40)
    near = dilate(across, 2 * reach + 1, 5)
    near[:reach] = near[-reach:] = True
    gap = rule_distance(across)
    straight = opening(mask, max(8, round(0.3 * gap)), 1)
    parts = components_of(dilate(straight, 3, 3))
    found = []
    for number, (rows, columns) in enumerate(parts.places, start=1):
        high = rows.stop - rows.start
        inside = parts.labels[rows, columns] == number
        ends = near[rows, columns] & inside
        # Thin and straight, as long as a box is high, at a rule at both of its ends.
        if (
            high >= 0.8 * gap
            and columns.stop - columns.start < max(8, WALL_SLOPE * high)
            and ends[: high // 4].any()
            and ends[-(high // 4) :].any()
        ):
            found.append((number, rows, columns.stop - columns.start))
    # A box has two sides from the same rule to the same rule; a tall letter on ruled paper stands alone.
    kept = []
    for number, rows, wide in found:
        high = rows.stop - rows.start
        ends_differ = (
            abs(rows.start - there.start) + abs(rows.stop - there.stop) for n, there, _ in found if n != number
        )
        if wide < max(8, LONE_SLOPE * high) or min(ends_differ, default=high) < PAIR * high:
            kept.append(number)
    walls: Mask = np.isin(parts.labels, kept) & mask
    return walls if len(kept) >= LEAST_SIDES else walls | find_thick_walls(mask, gap)


def find_thick_walls(mask: Mask, gap: float) -> Mask:
    """The upright sides of a row of small boxes, bool [H, W], that are broad for their height: three alike at least.

    Characters that touch them are no part of them, as long as they are lower than the box.
    """
    parts = components_of(opening(mask, round(STRAIGHT_SIDE * gap), 1))
    found = np.array([(rows.start, rows.stop, columns.stop - columns.start) for rows, columns in parts.places])
    kept = []
    for number, (top, bottom, wide) in enumerate(found, start=1):
        unlike = np.abs(found - (top, bottom, wide)).max(axis=1)
        if wide < THICK_SIDE * gap and (unlike < max(3, UNEVEN * wide)).sum() >= LEAST_SIDES:
            kept.append(number)
    walls: Mask = dilate(np.isin(parts.labels, kept), 3, 3) & mask
    return walls


def rule_distance(across: Mask) -> float:
    """How far apart rules are, in pixels; the page's height where there is one only."""
    ink = across.sum(axis=1)
    rows = ndimage.binary_closing(ink > 0.2 * ink.max(), np.ones(3))
    labels, count = ndimage.label(rows)
    middles = [(line[0].start + line[0].stop) / 2 for line in ndimage.find_objects(labels)]
    gaps = np.diff([0, *middles, across.shape[0]]) if count < 2 else np.diff(middles)
    wide = gaps[gaps > 12]
    return float(np.median(wide)) if wide.size else float(across.shape[0])


# ---- Grids ----


def read_cells(ink: Floats, floor: float, grid: Grid) -> tuple[Floats, list[Line]] | None:
    """What stands in the cells of a grid; None where characters do not keep to cells, as on squared paper.

    Returns
    -------
    ink : the page's without the grid's rules and without what stands outside, float32 [H, W].
    lines : each row of the grid that is not empty, each of its cells' ink as one piece.
    """
    numbers = cell_numbers(grid, ink.shape)
    # Cells may be of another colour than the paper.
    papers = np.zeros(numbers.max() + 1, np.float32)
    for number, place in enumerate(ndimage.find_objects(numbers), start=1):
        if place is not None:
            papers[number] = max(0.0, middling(ink[place][numbers[place] == number]))
    ink = np.where(numbers > 0, (ink - papers[numbers]) / np.maximum(1 - papers, 0.1)[numbers], 0).astype(np.float32)
    side = grid.cell_side
    reach = max(2, round(CELL_RIM * side))
    above, left = numbers[1:] != numbers[:-1], numbers[:, 1:] != numbers[:, :-1]
    rims = [
        windows(framed(above, (reach, reach), (0, 0)), 2 * reach, 1, np.logical_or),
        windows(framed(left, (0, 0), (reach, reach)), 1, 2 * reach, np.logical_or),
    ]
    rim = rims[0] | rims[1]
    mask = (ink > floor) & (numbers > 0)
    apart = mask & ~rim
    bridges = closing(apart, 2 * reach + 3, 1) | closing(apart, 1, 2 * reach + 3)
    if (bridges & rim).sum() > MOST_ACROSS * apart.sum():
        return None
    rules = dilate(grid.across, 3, 1) & rims[0]
    rules |= dilate(grid.upright, 1, 3) & rims[1]
    rest = mask & ~rules
    # Strokes that cross a rule are whole again.
    rest |= closing(rest, thickness(rules, 0) + 2, thickness(rules, 0) + 2) & rules & mask
    parts = components_of(rest)
    found: list[list[Piece]] = [[] for _ in papers[1:]]
    for number, place in enumerate(parts.places, start=1):
        part, owners, inner = parts.labels[place] == number, numbers[place], ~rim[place]
        if (part & inner).sum() < INNER * part.sum():
            continue  # what is left of a rule
        shares = np.bincount(owners[part])
        if shares.max() >= WHOLE * part.sum():
            found[int(shares.argmax()) - 1].append(cut_out(part, place, number))
        else:
            for owner in np.flatnonzero(shares[1:]) + 1:
                found[owner - 1].append(cut_out(part & (owners == owner), place, number))
    lines = []
    for row in range(grid.shape[0]):
        pieces = []
        for cell in range(row * grid.shape[1], min((row + 1) * grid.shape[1], len(found))):
            inside = [piece for piece in found[cell] if max(piece.box.height, piece.box.width) >= SPECK * side]
            if inside and (piece := merge(without_remains(inside))).box.height >= LEAST_IN_CELL * side:
                piece.cell = cell
                pieces.append(piece)
        if pieces:
            lines.append(Line(pieces, float(np.median([piece.box.height for piece in pieces]))))
    return ink, lines


def cut_out(mask: Mask, place: tuple[slice, slice], part: int) -> Piece:
    """The piece that a mask shows, bool of the place's shape."""
    [(rows, columns)] = ndimage.find_objects(mask.astype(np.uint8))
    top, left = place[0].start + rows.start, place[1].start + columns.start
    height, width = rows.stop - rows.start, columns.stop - columns.start
    return Piece(Box(top, left, top + height, left + width), mask[rows, columns], part)


# ---- Parts, lines, pieces ----


def find_parts(mask: Mask) -> list[Piece]:
    """The connected parts of the ink but for dirt; none where they are too many to be text."""
    labels, places = components_of(mask)
    boxes = [Box(rows.start, columns.start, rows.stop, columns.stop) for rows, columns in places]
    if not boxes:
        return []
    size = np.array([max(box.height, box.width) for box in boxes])
    # Weighted by size, since dirt is frequent, but small; and without rules.
    areas = np.bincount(labels.ravel())[1:]
    flat = [is_flat(box, area) for box, area in zip(boxes, areas.tolist(), strict=True)]
    weights = np.where(flat, 0, size)
    if not weights.any():
        return []
    usual = float(np.quantile(np.repeat(size, weights), 0.5))
    least = max(3.0, SPECK * usual)
    inner = [
        side
        for box, side, rule in zip(boxes, size, flat, strict=True)
        if not rule and side > SMALLEST_AT_EDGE * usual and not touching(box, mask.shape)
    ]
    large = float(np.quantile(inner, 0.9)) if inner else 0.0
    largest = max(LARGEST_AT_EDGE * usual, LARGEST_OF_TEXT * large)
    parts = [
        Piece(box, labels[box.top : box.bottom, box.left : box.right] == number, number)
        for number, (box, side, rule) in enumerate(zip(boxes, size, flat, strict=True), start=1)
        if side >= least and not is_rim(box, usual, largest, mask.shape) and not (rule and side > LONGEST_DASH * usual)
    ]
    return parts if len(parts) <= MOST_TEXT_PARTS else []


def is_rim(box: Box, usual: float, largest: float, shape: tuple[int, ...]) -> bool:
    """Whether a part at the picture's edge is the rim of a sheet, a table or a shadow: of another size than others."""
    sides = touching(box, shape)
    size = max(box.height, box.width)
    sliver = min(box.height, box.width) < SLIVER * usual
    return len(sides) >= 3 or (bool(sides) and (sliver or not SMALLEST_AT_EDGE * usual < size < largest))


def touching(box: Box, shape: tuple[int, ...]) -> list[str]:
    """The edges of the picture that a box touches."""
    height, width = shape
    return [
        name
        for name, touches in (
            ("top", box.top == 0),
            ("left", box.left == 0),
            ("bottom", box.bottom == height),
            ("right", box.right == width),
        )
        if touches
    ]


def is_flat(box: Box, area: int) -> bool:
    """Whether a part of so many pixels is a flat stroke: a rule that text was written on, or a dash."""
    return box.width > FLAT * box.height and area > FILLED * box.width * box.height


def group_lines(parts: list[Piece], boxes_height: float = 0.0) -> list[Line]:
    """Lines of parts, from top to bottom, each from left to right; a line may climb or fall.

    In boxes of that height, a full stop may be far from its neighbours.
    """
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
        if away.min() < DOT_DISTANCE * max(usual, boxes_height):
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


def is_joined(lines: list[Line]) -> bool:
    """Whether most of the ink is words of joined letters."""
    widths = np.array([part.box.width for line in lines for part in line.pieces], float)
    wide = np.array([part.box.width > JOINED_WIDTH * line.height for line in lines for part in line.pieces])
    return bool(widths.size) and float(widths[wide].sum()) > JOINED_SHARE * float(widths.sum())


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


def enter_cells(line: Line, walls: Mask, height: float) -> None:
    """Number the form's cells, so high, that pieces stand in, and join what stands in one narrow cell."""
    box = union([piece.box for piece in line.pieces])
    band = walls[box.top : box.bottom].sum(axis=0) > 0.5 * box.height
    labels, count = ndimage.label(ndimage.binary_closing(np.pad(band, 5), np.ones(5))[5:-5])
    if count < 2:
        return
    middles = [(columns.start + columns.stop) / 2 for (columns,) in ndimage.find_objects(labels)]
    step = float(np.median(np.diff(middles)))
    # Sides that were printed too faintly to be found stand where the others' distances say.
    for left, right in itertools.pairwise(list(middles)):
        missing = round((right - left) / step) - 1
        if missing > 0 and abs((right - left) / step - missing - 1) < UNEVEN:
            middles += np.linspace(left, right, missing + 2)[1:-1].tolist()
    middles.sort()
    edges = [0, *middles, walls.shape[1]]
    remains = SIDE_REMAINS * min(step, height)
    cells: dict[int, list[Piece]] = {}
    for piece in line.pieces:
        centre = (piece.box.left + piece.box.right) / 2
        if max(piece.box.width, min(abs(centre - x) for x in middles)) < remains:
            continue  # what is left of a box's side
        cells.setdefault(int(np.searchsorted(middles, centre)), []).append(piece)
    pieces = []
    for place, inside in cells.items():
        width = edges[place + 1] - edges[place]
        if width < CELL * height and union([piece.box for piece in inside]).width <= width:
            inside = [merge(without_remains(inside))]
            inside[0].cell = place
        pieces += inside
    line.pieces = pieces


def without_faint(line: Line, ink: Floats) -> list[Piece]:
    """A line's parts without those that are much fainter than the nearest character: of a box's side, print, dirt."""
    plain = [p.box.height >= TALL * line.height and p.box.width >= NARROW_PART * line.height for p in line.pieces]
    characters = [part for part, is_plain in zip(line.pieces, plain, strict=True) if is_plain]
    if not characters:
        return line.pieces
    boxes = np.array([part.box for part in characters])
    darkest = [darkness(part, ink) for part in characters]
    return [
        part
        for part, is_plain in zip(line.pieces, plain, strict=True)
        if is_plain or darkness(part, ink) > FAINT_PART * darkest[int(distances(part.box, boxes).argmin())]
    ]


def darkness(part: Piece, ink: Floats) -> float:
    """The most ink of a part's pixels."""
    box = part.box
    return float(ink[box.top : box.bottom, box.left : box.right][part.mask].max())


def between_rules(line: Line, across: Mask) -> list[Piece]:
    """A line's parts without those that a rule parts from the nearest character."""
    tall = [part for part in line.pieces if part.box.height >= TALL * line.height]
    boxes = np.array([part.box for part in tall])

    def beyond(part: Piece) -> bool:
        box = part.box
        nearest = tall[int(distances(box, boxes).argmin())].box
        rows = sorted(((box.top + box.bottom) // 2, (nearest.top + nearest.bottom) // 2))
        return bool((across[rows[0] : rows[1], box.left : box.right].mean(axis=1) > 0.5).any())

    return [part for part in line.pieces if part.box.height >= TALL * line.height or not beyond(part)]


def without_remains(pieces: list[Piece]) -> list[Piece]:
    """A cell's pieces without what is left of its box: what lies neither beside the largest nor close above it."""
    main = max(pieces, key=lambda piece: int(piece.mask.sum()))
    away = distances(main.box, np.array([piece.box for piece in pieces]))
    kept = []
    for piece, far in zip(pieces, away.tolist(), strict=True):
        box = piece.box
        rows = min(box.bottom, main.box.bottom) - max(box.top, main.box.top)
        dot = box.width < main.box.width and far < DOT_REACH * main.box.height
        if piece is main or rows > 0.5 * box.height or (dot and box.width < 2 * box.height):
            kept.append(piece)
    return kept


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
