"""The boxes of an empty form, which are to be written into."""

from scipy import ndimage

from glyphs.core.arrays import Floats
from glyphs.forms.paper import FAINT, paper_ink
from glyphs.pictures.grid import straight_pieces
from glyphs.pictures.lines import Box, union
from glyphs.pictures.morphology import dilate

# Shares of the page's shorter side
SHORTEST_RULE = 0.015  # a box's sides are at least so long
LOWEST_BOX, HIGHEST_BOX = 0.012, 0.4  # a box's height
NARROWEST_BOX = 0.012

EMPTY_BOX = 0.85  # of a box's outline: that much is paper
PRINTED = 0.01  # of a box: more ink than this is print, as in a cell that holds a label
NARROW = 1.6  # width over height of a box for one character
LEVEL = 0.2  # of a box's height: neighbours in a row differ by so much
GAP = 0.5  # of its width: how far it is from its neighbour in a row of boxes for a character each


def find_boxes(grey: Floats) -> list[Box]:
    """The boxes that an empty form's rules enclose, from top to bottom and from left to right.

    Boxes for a character each that stand in a row are one.

    Parameters
    ----------
    grey : the form, float32 [H, W] from 0 (black) to 1.
    """
    ink, floor = paper_ink(grey)
    mask = ink > FAINT * floor
    shorter = min(grey.shape)
    length = max(8, round(SHORTEST_RULE * shorter))
    rules = straight_pieces(mask, length) | straight_pieces(mask.T, length).T
    labels, _ = ndimage.label(~dilate(rules, 3, 3))
    boxes = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        box = Box(rows.start, columns.start, rows.stop, columns.stop)
        inside = labels[rows, columns] == number
        cut = box.top == 0 or box.left == 0 or box.bottom == grey.shape[0] or box.right == grey.shape[1]
        if (
            not cut
            and LOWEST_BOX * shorter <= box.height <= HIGHEST_BOX * shorter
            and box.width >= NARROWEST_BOX * shorter
            and inside.mean() > EMPTY_BOX
            and (mask[rows, columns] & inside).mean() < PRINTED
        ):
            boxes.append(box)
    return in_reading_order(join_rows(boxes))


def in_reading_order(boxes: list[Box]) -> list[Box]:
    """From top to bottom, and boxes on one level from left to right."""
    levels: list[list[Box]] = []
    for box in sorted(boxes):
        if levels and box.top < (levels[-1][0].top + levels[-1][0].bottom) / 2:
            levels[-1].append(box)
        else:
            levels.append([box])
    return [box for level in levels for box in sorted(level, key=lambda box: box.left)]


def join_rows(boxes: list[Box]) -> list[Box]:
    """The boxes with those for a character each that stand beside each other made one."""
    rows: list[list[Box]] = []
    for box in sorted(boxes, key=lambda box: box.left):
        row = next((row for row in rows if follows(row[-1], box)), None)
        if row is None:
            rows.append([box])
        else:
            row.append(box)
    return [union(row) for row in rows]


def follows(box: Box, other: Box) -> bool:
    """Whether two boxes are for a character each and the other is the next one in a row."""
    levels = max(abs(box.top - other.top), abs(box.bottom - other.bottom))
    narrow = max(box.width, other.width) < NARROW * min(box.height, other.height)
    alike = abs(box.width - other.width) < LEVEL * box.height
    return narrow and alike and levels < LEVEL * box.height and 0 <= other.left - box.right < GAP * box.width
