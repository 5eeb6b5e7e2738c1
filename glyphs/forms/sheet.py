"""Collection sheets: pages of boxes to write one's own characters into, which a photograph of them is cut by.

    paginate -> SheetPage.squares, rules, labels, drawn by glyphs.output.plots.plot_pages -> pen, camera -> cut_sheet

A sheet says itself what stands in its rows: a strip of black and white cells at its foot, with a checksum.  Lengths
are in millimetres from the top left corner of the paper, A4.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from glyphs.core.arrays import Floats, Mask
from glyphs.core.errors import ConfigError, PictureError
from glyphs.core.text import split_alphabet
from glyphs.forms.marks import Square, find_marks, mark_squares, straighten
from glyphs.forms.paper import paper_ink

PAPER = (210.0, 297.0)
MARK_SIDE = 12.0
MARK_PLACES = ((15.0, 15.0), (195.0, 15.0), (195.0, 282.0), (15.0, 282.0))  # middles, clockwise from the top left
LEFT, TOP = 26.0, 27.0  # of the first box; labels stand before it
BOX, COLUMNS, MOST_ROWS = 14.5, 12, 16
RULE_WIDTH, RULE_GREY = 0.4, 0.6  # of the boxes: thickness, and brightness
CODE_LEFT, CODE_TOP, CODE_CELL = 30.0, 270.0, 1.5
CODE_ROWS, CODE_COLUMNS = 10, 100
FORMAT = 1  # of the code and of all lengths above

CAPACITY = CODE_ROWS * CODE_COLUMNS // 8  # bytes
CODE_HEAD, CHECKSUM = 4, 4  # bytes: the format, the page, how many there are, rows of each class; CRC-32 at the end
COPIES = (3, 2, 1)  # of the code, as many as have room: together they bear a crease
LONGEST_CLASS_NAME = 40  # bytes of a class's name
SEPARATOR = "\n"

SCALE = 10  # pixels of the straightened page for each millimetre
REACH = 3.0  # how far a rule may be from where the marks say that it is, as on paper that is not flat
BOW, BOW_STEP = 1.6, 0.4  # how far the middle of the code is looked for from where the marks say
SEEN, ALONG = 0.08, 0.3  # ink that a rule has at least, but for this share of its length
INSET = 0.6  # what is cut off inside a rule


class Cut(NamedTuple):
    """What a box holds: its class, row and column from 1, and the picture, float32 [H, W]."""

    name: str
    row: int
    column: int
    picture: Floats


@dataclass(frozen=True)
class SheetPage:
    """A page of a sheet: its number from 1, how many there are, how many rows each class has, and its classes."""

    number: int
    count: int
    repeat: int
    names: tuple[str, ...]

    @property
    def rows(self) -> list[str]:
        """The class of each row."""
        return [name for name in self.names for _ in range(self.repeat)]

    def code(self) -> Mask:
        """The cells of the strip at its foot, bool [CODE_ROWS, CODE_COLUMNS], black where True."""
        content = self.content()
        copies = next(copies for copies in COPIES if len(content) <= CAPACITY // copies)
        padded = content.ljust(CAPACITY // copies, b"\0") * copies
        bits = np.unpackbits(np.frombuffer(padded.ljust(CAPACITY, b"\0"), np.uint8)).astype(bool)
        cells: Mask = bits.reshape(CODE_ROWS, CODE_COLUMNS) ^ CHECKERBOARD
        return cells

    def content(self) -> bytes:
        text = bytes([FORMAT, self.number, self.count, self.repeat]) + SEPARATOR.join(self.names).encode()
        return text + zlib.crc32(text).to_bytes(CHECKSUM, "big")

    def squares(self) -> list[Square]:
        """The marks and the code, to print in black and white, each over those before it."""
        squares = [
            square for i, (x, y) in enumerate(MARK_PLACES) for square in mark_squares(x, y, MARK_SIDE, first=i == 0)
        ]
        cells = np.argwhere(self.code()).tolist()
        return squares + [
            Square(CODE_LEFT + CODE_CELL * column, CODE_TOP + CODE_CELL * row, CODE_CELL, 0) for row, column in cells
        ]

    def rules(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        """The lines between the boxes, from one point to another."""
        right, bottom = LEFT + BOX * COLUMNS, TOP + BOX * len(self.rows)
        across = [((LEFT, TOP + BOX * i), (right, TOP + BOX * i)) for i in range(len(self.rows) + 1)]
        return across + [((LEFT + BOX * i, TOP), (LEFT + BOX * i, bottom)) for i in range(COLUMNS + 1)]

    def labels(self) -> list[tuple[float, float, str]]:
        """The middle of each row's label, and what it says."""
        return [(LEFT - 9, TOP + BOX * (row + 0.5), name) for row, name in enumerate(self.rows)]


# Cells that would all be white are as often black.
CHECKERBOARD = np.indices((CODE_ROWS, CODE_COLUMNS)).sum(axis=0) % 2 == 1


def classes_of(alphabet: str) -> list[str]:
    """The classes of an alphabet, see `glyphs.core.text.split_alphabet`.

    Raises
    ------
    ConfigError : there are none, or one can have no folder of its name.
    """
    names = split_alphabet(alphabet)
    for name in names:
        if not names_folder(name):
            raise ConfigError(
                f"--alphabet: {name!r} can have no folder of its name; call it by a word, with spaces between classes"
            )
        if len(name.encode()) > LONGEST_CLASS_NAME:
            raise ConfigError(
                f"--alphabet: {name!r} is too long for a class; name it by {LONGEST_CLASS_NAME} bytes at most"
            )
    if not names:
        raise ConfigError("--alphabet: is empty; name at least one character")
    return list(dict.fromkeys(names))


def names_folder(name: str) -> bool:
    """Whether a class can have a folder of its name, which is one and lies where it should."""
    return bool(name) and not name.startswith(".") and all(c not in '/\\:*?"<>|' and c.isprintable() for c in name)


def paginate(names: Sequence[str]) -> list[SheetPage]:
    """The pages of a sheet of these classes, a row of boxes each, or more where one page has room for that.

    Raises ConfigError.
    """
    pages: list[list[str]] = [[]]
    repeat = max(1, MOST_ROWS // len(names))
    for name in names:
        longer = CODE_HEAD + CHECKSUM + len(SEPARATOR.join([*pages[-1], name]).encode())
        if len(pages[-1]) == MOST_ROWS // repeat or longer > CAPACITY:
            pages.append([])
        pages[-1].append(name)
    if len(pages) > 255:
        raise ConfigError(f"--alphabet: a sheet has at most 255 pages of {MOST_ROWS} classes; print several")
    return [SheetPage(number, len(pages), repeat, tuple(page)) for number, page in enumerate(pages, start=1)]


def cut_sheet(grey: Floats, name: str) -> tuple[SheetPage, Iterator[Cut]]:
    """Which page of a sheet a photograph shows, and what its boxes hold, empty ones too.

    Parameters
    ----------
    grey : the photograph, float32 [H, W] from 0 (black) to 1.
    name : its name, for errors.

    Raises
    ------
    PictureError : it shows no sheet, or its code cannot be read.
    """
    marks = find_marks(grey)
    if marks is None:
        raise PictureError(
            f"{name}: shows no collection sheet: the four marks in its corners were not found; photograph the whole "
            "page, sharp, with all four marks in the picture"
        )
    size = (round(PAPER[0] * SCALE), round(PAPER[1] * SCALE))
    straight = straighten(grey, marks, np.array(MARK_PLACES) * SCALE - 0.5, size)
    page = read_code(straight)
    if page is None:
        raise PictureError(
            f"{name}: shows a sheet whose code, the strip at its foot, cannot be read; photograph it sharp, flat and "
            "without glare"
        )
    return page, cut_boxes(straight, page)


def read_code(straight: Floats) -> SheetPage | None:
    """What the strip at the foot of a straightened page says; None where it cannot be read."""
    margin = 5.0  # paper around the strip
    rows = slice(round((CODE_TOP - margin) * SCALE), round((CODE_TOP + CODE_CELL * CODE_ROWS + margin) * SCALE))
    ink, _ = paper_ink(straight[rows])
    middles = ndimage.uniform_filter(ink, round(CODE_CELL * SCALE / 2))
    down = margin + CODE_CELL * (np.arange(CODE_ROWS) + 0.5)
    along = CODE_LEFT + CODE_CELL * (np.arange(CODE_COLUMNS) + 0.5)
    # Paper that is not flat: the strip is a bow between the marks, up or down by so much in its middle.
    bow = 1 - (2 * (along - MARK_PLACES[3][0]) / (MARK_PLACES[2][0] - MARK_PLACES[3][0]) - 1) ** 2
    for bend in sorted(np.arange(-BOW, BOW + BOW_STEP, BOW_STEP), key=abs):
        y = np.rint((down[:, None] + bend * bow) * SCALE - 0.5).astype(int)
        x = np.rint(along * SCALE - 0.5).astype(int)
        page = decode_cells(middles[y, x])
        if page is not None:
            return page
    return None


def decode_cells(cells: Floats) -> SheetPage | None:
    """The page that the strip's cells tell of, ink of float32 [CODE_ROWS, CODE_COLUMNS]; None where they are wrong."""
    white, black = np.quantile(cells, [0.1, 0.9])
    # From -1, white, to 1, black; where the checkerboard turned a cell round, it is turned back.
    signs = (np.where(CHECKERBOARD, -1, 1) * (2 * (cells - white) / max(black - white, 1e-6) - 1)).ravel()
    for copies in COPIES:
        length = CAPACITY // copies
        votes = signs[: 8 * length * copies].reshape(copies, -1).sum(axis=0)
        page = decode(np.packbits(votes > 0).tobytes())
        if page is not None:
            return page
    return None


def decode(padded: bytes) -> SheetPage | None:
    """The page that a strip's bytes tell of, zeros after them; None where the checksum says that they are damaged."""
    for end in range(len(padded.rstrip(b"\0")), min(len(padded), len(padded.rstrip(b"\0")) + CHECKSUM) + 1):
        text, checksum = padded[: end - CHECKSUM], padded[end - CHECKSUM : end]  # a checksum may end in zeros, too
        if len(text) > CODE_HEAD and text[0] == FORMAT and zlib.crc32(text).to_bytes(CHECKSUM, "big") == checksum:
            page = SheetPage(
                text[1], text[2], text[3], tuple(text[CODE_HEAD:].decode(errors="replace").split(SEPARATOR))
            )
            # A checksum is no proof that this program wrote it: names become folders, rows are looked for.
            fits = 1 <= page.number <= page.count and 1 <= len(page.rows) <= MOST_ROWS
            return page if fits and all(map(names_folder, page.names)) else None
    return None


def cut_boxes(straight: Floats, page: SheetPage) -> Iterator[Cut]:
    """What the boxes of a straightened page hold, row by row, within the rules that are seen around each."""
    ink, _ = paper_ink(straight)
    rows = len(page.rows)
    inset = round(INSET * SCALE)
    for row, name in enumerate(page.rows):
        for column in range(COLUMNS):
            # Along a rule, a box more on either side: no stroke of a character is as long.
            along = slice_of(LEFT, max(0, column - 1), min(COLUMNS, column + 2))
            down = slice_of(TOP, max(0, row - 1), min(rows, row + 2))
            top, bottom = (find_rule(ink[:, along], (TOP + BOX * i) * SCALE) for i in (row, row + 1))
            left, right = (find_rule(ink[down].T, (LEFT + BOX * i) * SCALE) for i in (column, column + 1))
            picture = straight[top + inset : bottom - inset + 1, left + inset : right - inset + 1]
            yield Cut(name, row + 1, column + 1, picture)


def slice_of(first: float, start: int, stop: int) -> slice:
    """The pixels of boxes from `start` to `stop`, the first box of all beginning at `first`."""
    return slice(round((first + BOX * start) * SCALE), round((first + BOX * stop) * SCALE))


def find_rule(band: Floats, expected: float) -> int:
    """The row of the rule across a band of ink, float32 [H, w], near where it is expected; that place if none is."""
    first = round(expected - REACH * SCALE)
    level = np.quantile(band[first : round(expected + REACH * SCALE)], ALONG, axis=1)
    level = ndimage.uniform_filter1d(level, round(2 * RULE_WIDTH * SCALE))
    return first + int(level.argmax()) if level.max() > SEEN else round(expected)
