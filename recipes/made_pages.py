"""Made pages: pictures of separate characters whose places, ink and kind are known, without end.

    python recipes/made_pages.py --data-dir DIR --output sheet.png     a contact sheet to look at

Page number i is a function of the seed and i alone.  DIR holds EMNIST/raw and symbols/ as docs/DATA.md describes them;
of EMNIST only the training files are read.  Fonts are those installed on the machine: handwriting fonts are written
characters, the others are print.  Needs opencv-python-headless and wordfreq beside the project's own packages.
"""

import argparse
import csv
import functools
import string
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from glyphs.core.arrays import Bytes, Floats, Mask
from glyphs.data.demo import font_folder
from glyphs.data.emnist import ALL_62, load_emnist

SIDE = 192  # pixels of a page
CANVAS = 256  # pixels that are drawn on before the page is turned and cut out
STROKE_SIDE = 96  # pixels in which a written character's middle lines are kept
MOST_CHARACTERS = 250  # on a page: their numbers fit in a byte
LEAST_VISIBLE = 0.55  # of a character's ink: one that is cut off further is ink, but no character
FONT_SIZE = 72  # pixels at which fonts are drawn once

WRITTEN_FONTS = (
    "Delphine", "SteveHand", "YuseiMagic", "Humor-Sans", "dkg", "dkgBd", "Rufscript010", "kiloji", "kiloji_b", "Breip",
    "breipfont", "femkeklaver", "TomsonTalks", "KleeOne-Regular", "KleeOne-SemiBold", "ComicNeue-Light",
    "ComicNeue-Regular", "BecauseWeBuild", "BecauseWeLearn", "BecauseWeOrganize", "BecauseWeMentor",
    "BecauseWeConnect", "BecauseWeCreate",
)  # fmt: skip
JOINED_FONTS = ("DancingScript", "Ecolier-court", "Kristi", "KaushanScript", "lobster", "LeckerliOne")
SIGNS = "+-=/().,:?!%#@&*'\"\u00d7\u00f7<>$"

# Height over that of a capital and depth below the line, in the usual hand
X_HEIGHT = "acemnorsuvwxz"
DEEP = "gpqy"


class Glyph(NamedTuple):
    """A character to put on a page.

    field : float32 [H, W], the distance in its pixels to the middle of the nearest stroke, or None.
    alpha : float32 [H, W], its ink as it is.
    top, bottom : rows of its box above and below the line it stands on, in heights of a capital.
    name : what it is, "" for a symbol.
    """

    field: Floats | None
    alpha: Floats
    top: float
    bottom: float
    name: str = ""


class Sample(NamedTuple):
    """A page and what is known of it.

    image : uint8 [S, S, 3].  ink : uint8 [S, S], 255 where a stroke is.  owner : uint8 [S, S], the number of the
    character that each pixel of ink belongs to, 0 for none.  boxes : int16 [N, 4], top, left, bottom, right of the
    characters 1 to N.  printed : bool [N].  joined : uint8 [S, S], 1 in words of joined script.
    rules : bool [S, S], the lines of boxes, tables and ruled paper, and other strokes that are no characters.
    names : what each character is, "" for a symbol of no known name.
    """

    image: Bytes
    ink: Bytes
    owner: Bytes
    boxes: NDArray[np.int16]
    printed: Mask
    joined: Bytes
    rules: Mask
    names: tuple[str, ...]


def fonts() -> dict[str, list[str]]:
    """The installed fonts by kind: written, joined, printed."""
    found: dict[str, list[str]] = {"written": [], "joined": [], "printed": []}
    for path in sorted(Path("/usr/share/fonts").rglob("*.[to]tf")):
        kind = "written" if path.stem.startswith(WRITTEN_FONTS) else "printed"
        found["joined" if path.stem.startswith(JOINED_FONTS) else kind].append(str(path))
    for kind in (kind for kind, paths in found.items() if not paths):
        print(f"note: no {kind} fonts are installed, DejaVu stands for them: see docs/FINDER.md", file=sys.stderr)
        found[kind] = [str(font_folder() / "DejaVuSans.ttf")]
    return found


@functools.lru_cache(maxsize=20000)
def drawn(font: str, text: str) -> tuple[Floats, float, float, float] | None:
    """A text in a font: alpha, its rows above the line, its left edge, its advance, in pixels; None without."""
    face = load_font(font)
    left, top, right, bottom = face.getbbox(text, anchor="ls")
    if right - left < 2 or bottom - top < 2 or face.getmask(text).getbbox() is None:
        return None
    if len(text) == 1 and bytes(face.getmask(text)) == bytes(face.getmask(chr(0xFFFF))):  # a font without it
        return None
    image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2), 0)
    ImageDraw.Draw(image).text((1 - left, 1 - top), text, font=face, fill=255, anchor="ls")
    alpha = np.asarray(image, np.float32) / 255
    return np.asarray(alpha, np.float32), float(1 - top), float(left - 1), float(face.getlength(text))


@functools.lru_cache(maxsize=500)
def load_font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, FONT_SIZE)


@functools.lru_cache(maxsize=500)
def capital_height(font: str) -> float:
    found = drawn(font, "H")
    return found[1] if found else 0.7 * FONT_SIZE


def middle_lines(strokes: Mask) -> Mask:
    from skimage.morphology import skeletonize

    return np.asarray(skeletonize(strokes), np.bool_)


class Hand(NamedTuple):
    """How somebody writes, on one page."""

    x_height: float
    slant: float
    pen: float  # width over the height of a capital; 0 for the strokes of the character as it is
    rough: float
    uneven: float
    font: str | None
    script: str  # latin, symbols, omniglot


class Pages:
    """Makes pages.

    Parameters
    ----------
    folder : holds EMNIST/raw and symbols/.
    faces : the fonts' files by kind: written, joined, printed; None for those that are installed.
    """

    def __init__(self, folder: Path, seed: int = 0, faces: dict[str, list[str]] | None = None) -> None:
        from wordfreq import top_n_list

        self.seed = seed
        images, labels = load_emnist(folder, "byclass", "train")
        self.images: Bytes = images[:, 0].numpy()
        self.of_class = {name: np.flatnonzero(labels.numpy() == number) for number, name in enumerate(ALL_62)}
        self.words = np.array([word for word in top_n_list("en", 6000) if word.isascii() and word.isalpha()])
        self.fonts = faces or fonts()
        self.symbols = self.load_symbols(folder / "symbols")

    @staticmethod
    def load_symbols(folder: Path) -> list[Mask]:
        """Handwritten signs of other kinds: HASY's (32x32) and Omniglot's (105x105), black on white."""
        found: list[Mask] = []
        table = folder / "hasy" / "labels.csv"
        if table.exists():
            with table.open(encoding="utf-8", newline="") as file:
                names = [row["file"] for row in csv.DictReader(file)]
            found += [np.asarray(Image.open(folder / "hasy" / name).convert("L")) < 128 for name in names[::4]]
        archive = next(iter(sorted((folder / "omniglot").glob("*.zip"))), None)
        if archive is not None:
            import io
            from zipfile import ZipFile

            with ZipFile(archive) as file:
                names = sorted(name for name in file.namelist() if name.endswith(".png"))[::6]
                found += [np.asarray(Image.open(io.BytesIO(file.read(name))).convert("L")) < 128 for name in names]
        return [strokes for strokes in found if strokes.any()]

    # ---- Characters ----

    @functools.lru_cache(maxsize=20000)  # noqa: B019
    def written(self, number: int) -> tuple[Bytes, Mask]:
        """An EMNIST image cut to its ink: uint8, and the middle lines of its strokes, a bool at STROKE_SIDE pixels."""
        image = self.images[number]
        rows, columns = np.nonzero(image > 60)
        image = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        scale = STROKE_SIDE / max(image.shape)
        large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        return image, middle_lines(cv2.GaussianBlur(large, (0, 0), 1.5) > 110)

    @functools.lru_cache(maxsize=20000)  # noqa: B019
    def symbol(self, number: int) -> tuple[Bytes, Mask]:
        strokes = self.symbols[number]
        rows, columns = np.nonzero(strokes)
        image = strokes[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(np.uint8) * 255
        image = np.pad(image, 1)
        scale = STROKE_SIDE / max(image.shape)
        large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        return image, middle_lines(cv2.GaussianBlur(large, (0, 0), 1.5) > 110)

    def glyph(self, r: np.random.Generator, hand: Hand, name: str) -> Glyph | None:
        """A character as this hand writes it."""
        if hand.font is not None:
            found = drawn(hand.font, name)
            if found is None:
                return None
            alpha, above, _, _ = found
            capital = capital_height(hand.font)
            return Glyph(None, alpha, above / capital, (alpha.shape[0] - above) / capital, name)
        if hand.script != "latin":
            name = ""
            image, lines = self.symbol(int(r.integers(len(self.symbols))))
            top, bottom = 1.0, 0.0
            if image.shape[1] > 1.6 * image.shape[0]:
                top, bottom = 0.7, -0.3
        else:
            if name not in self.of_class:
                return self.sign(r, hand, name)
            image, lines = self.written(int(r.choice(self.of_class[name])))
            top, bottom = proportions(name, hand.x_height)
        if hand.pen == 0:
            return Glyph(None, np.asarray(image / np.float32(255)), top, bottom, name)
        field = cv2.distanceTransform((~lines).astype(np.uint8), cv2.DIST_L2, 3)
        return Glyph(field, np.asarray(image / np.float32(255)), top, bottom, name)

    def sign(self, r: np.random.Generator, hand: Hand, name: str) -> Glyph | None:
        """A sign that EMNIST does not have, from a handwriting font."""
        found = drawn(str(r.choice(self.fonts["written"])), name)
        if found is None:
            return None
        alpha, above, _, _ = found
        capital = 0.7 * FONT_SIZE
        if hand.pen == 0:
            return Glyph(None, alpha, above / capital, (alpha.shape[0] - above) / capital, name)
        field = cv2.distanceTransform((~middle_lines(alpha > 0.5)).astype(np.uint8), cv2.DIST_L2, 3)
        return Glyph(field, alpha, above / capital, (alpha.shape[0] - above) / capital, name)

    def hand(self, r: np.random.Generator, kind: str | None = None) -> Hand:
        kind = kind or str(r.choice(["emnist", "font", "print", "symbols"], p=[0.6, 0.17, 0.16, 0.07]))
        thinnest = 0.008 if r.random() < 0.2 else 0.03  # a line of a pixel that was drawn with a mouse
        pen = 0.0 if r.random() < 0.3 else float(np.exp(r.uniform(np.log(thinnest), np.log(0.24))))
        font = None
        if kind == "font":
            font = str(r.choice(self.fonts["written"]))
        elif kind == "print":
            font = str(r.choice(self.fonts["printed"]))
        slant = 0.0 if kind == "print" else float(r.normal(0, 0.14))
        uneven = 0.0 if kind == "print" else float(r.uniform(0.01, 0.1))
        return Hand(
            float(r.uniform(0.48, 0.75)), slant, pen, float(r.uniform(0, 0.35)), uneven, font,
            "symbols" if kind == "symbols" else "latin",
        )  # fmt: skip

    # ---- Pages ----

    def page(self, number: int) -> Sample:
        r = np.random.default_rng((self.seed, number))
        return Drawing(self, r).finish()


def proportions(name: str, x_height: float) -> tuple[float, float]:
    """How far a character reaches above and below the line, in heights of a capital."""
    if name in X_HEIGHT:
        return x_height, 0.0
    if name in DEEP:
        return x_height, 0.4
    if name == "j":
        return 0.95, 0.35
    if name == "t":
        return 0.88, 0.0
    if name == "i":
        return 0.95, 0.0
    return 1.0, 0.0


def smooth(r: np.random.Generator, cells: int, deviation: float, side: int = SIDE) -> Floats:
    """Smooth noise, float32 [side, side]."""
    grid = r.normal(0, deviation, (cells + 1, cells + 1)).astype(np.float32)
    return np.asarray(cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC))


class Drawing:
    """One page while it is made."""

    def __init__(self, pages: Pages, r: np.random.Generator) -> None:
        self.pages, self.r = pages, r
        self.ink = np.zeros((CANVAS, CANVAS), np.float32)
        self.owner = np.zeros((CANVAS, CANVAS), np.uint8)
        self.rules = np.zeros((CANVAS, CANVAS), np.float32)
        self.script = np.zeros((CANVAS, CANVAS), np.uint8)
        self.areas = [0.0]
        self.printed = [False]
        self.names_put = [""]
        self.textured = r.random() < 0.12
        self.noisy = False
        self.kind = str(
            r.choice(
                ["lines", "words", "boxes", "grid", "scatter", "single", "sum", "joined", "nothing"],
                p=[0.19, 0.17, 0.15, 0.11, 0.05, 0.2, 0.05, 0.03, 0.05],
            )
        )
        self.height = float(np.exp(r.uniform(np.log(15), np.log(70))))
        if r.random() < 0.5:
            self.height = float(r.uniform(24, 44))
        if self.kind == "single":
            self.height = float(np.exp(r.uniform(np.log(24), np.log(190))))
        self.one_hand = pages.hand(r)
        self.mode = str(r.choice(["upper", "lower", "digits", "mixed", "words"], p=[0.16, 0.1, 0.26, 0.13, 0.35]))
        self.gap = float(
            r.choice([r.uniform(-0.12, 0.05), r.uniform(0.03, 0.3), r.uniform(0.25, 1.0)], p=[0.3, 0.5, 0.2])
        )
        getattr(self, f"draw_{self.kind}")()

    # -- putting ink on the canvas --

    def put(
        self, glyph: Glyph, x: float, line: float, height: float, hand: Hand, printed: bool, widest: float = 0.0
    ) -> float:
        """Put a character with its left edge at x on a line; return its width."""
        r = self.r
        high = max(3.0, (glyph.top + glyph.bottom) * height * (1 + r.normal(0, hand.uneven)))
        shape = (glyph.field if glyph.field is not None else glyph.alpha).shape
        wide = max(2.0, high * shape[1] / shape[0] * (1 + (0 if printed else r.normal(0, 0.06))))
        if shape[1] > 1.7 * shape[0] and glyph.top == 1.0 and glyph.bottom == 0.0:  # a lying stroke
            high, wide = high * shape[0] / shape[1], high
        if widest and wide > widest:
            high, wide = high * max(widest / wide, 0.6), widest
        columns, rows = max(2, round(wide)), max(3, round(high))
        if glyph.field is not None:
            pen = max(1.0, hand.pen * height)
            margin = int(pen / 2) + 2
            scale = max(high / shape[0], wide / shape[1])
            inner = cv2.resize(glyph.field, (columns, rows), interpolation=cv2.INTER_LINEAR) * scale
            # Beyond the box, the distance grows with the pixels that lie between.
            beyond = np.pad(np.zeros((rows, columns), np.uint8), margin, constant_values=1)
            outside = cv2.distanceTransform(beyond, cv2.DIST_L2, 3)
            distance = np.hypot(np.pad(inner, margin, mode="edge"), outside)
            width = pen * (1 + cv2.resize(r.normal(0, hand.rough / 2, (3, 3)).astype(np.float32), distance.shape[::-1]))
            alpha = np.clip(width / 2 - distance + 0.5, 0, 1).astype(np.float32)
            top = line - glyph.top * high / max(glyph.top + glyph.bottom, 1e-3) - margin
            x -= margin
        else:
            enlarge = high / shape[0]
            alpha = cv2.resize(
                glyph.alpha, (columns, rows), interpolation=cv2.INTER_CUBIC if enlarge > 1 else cv2.INTER_AREA
            )
            if enlarge > 1 and hand.font is None:
                alpha = cv2.GaussianBlur(alpha, (0, 0), 0.4 * enlarge)
                alpha = np.clip((alpha - 0.45 - hand.rough * 0.3) * min(5.0, 1.5 * enlarge) + 0.5, 0, 1)
            alpha = np.clip(alpha, 0, 1).astype(np.float32)
            top = line - glyph.top * high / max(glyph.top + glyph.bottom, 1e-3)
        if abs(hand.slant) > 0.02:
            lean = hand.slant * alpha.shape[0]
            matrix = np.array([[1, -hand.slant, max(lean, 0)], [0, 1, 0]], np.float32)
            alpha = cv2.warpAffine(alpha, matrix, (alpha.shape[1] + int(abs(lean)) + 1, alpha.shape[0]))
        self.paste(alpha, x, top, glyph.name, printed)
        return float(wide)

    def paste(self, alpha: Floats, x: float, y: float, name: str, printed: bool) -> None:
        """Lay the ink of a character on the canvas."""
        if len(self.areas) > MOST_CHARACTERS:
            return
        left, top = round(x), round(y)
        rows = slice(max(0, top), min(CANVAS, top + alpha.shape[0]))
        columns = slice(max(0, left), min(CANVAS, left + alpha.shape[1]))
        if rows.stop <= rows.start or columns.stop <= columns.start:
            return
        part = alpha[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        self.areas.append(float(alpha.sum()))
        self.printed.append(printed)
        self.names_put.append(name)
        self.ink[rows, columns] = np.maximum(self.ink[rows, columns], part)
        self.owner[rows, columns][part > 0.4] = len(self.areas) - 1

    def names(self, count: int) -> str:
        r = self.r
        pool = {
            "upper": string.ascii_uppercase,
            "lower": string.ascii_lowercase,
            "digits": string.digits,
            "mixed": string.ascii_letters + string.digits + SIGNS,
            "words": string.ascii_letters,
        }[self.mode]
        return "".join(r.choice(list(pool), count))

    def word(self) -> str:
        r = self.r
        if self.mode != "words":
            return self.names(int(r.integers(1, 9)))
        word = str(r.choice(self.pages.words))
        if r.random() < 0.3:
            word = word.upper()
        elif r.random() < 0.3:
            word = word.capitalize()
        if r.random() < 0.12:
            word += str(r.choice(list(".,:;!?")))
        return word

    def write(
        self, text: str, x: float, line: float, height: float, hand: Hand, gap: float, slope: float = 0.0
    ) -> float:
        """Write a word from x on; return where it ends."""
        for name in text:
            if name == " ":
                x += 0.45 * height
                continue
            glyph = self.pages.glyph(self.r, hand, name)
            if glyph is None:
                continue
            own = hand.uneven * self.r.normal(0, 0.5) * height
            wide = self.put(glyph, x, line + own - slope * x, height, hand, self.is_print(hand))
            x += (
                wide
                + gap * height * (1 if hand.font is None else 0.6)
                + (0 if self.is_print(hand) else self.r.normal(0, 0.03) * height)
            )
        return x

    def is_print(self, hand: Hand) -> bool:
        return hand.font is not None and hand.font in self.pages.fonts["printed"]

    # -- kinds of pages --

    def draw_lines(self) -> None:
        """Lines of words or numbers over the whole page, ruled or not, sometimes beside print."""
        r, h = self.r, self.height
        step = h * float(r.uniform(1.25, 2.6))
        slope = float(np.tan(np.radians(r.normal(0, 1.5))))
        ruled = r.random() < 0.3
        strength = float(r.uniform(0.2, 1.0))
        thick = max(1, int(h * r.uniform(0.01, 0.08)))
        line = h * float(r.uniform(0.6, 1.6))
        printer = self.pages.hand(r, "print")
        beside_print = r.random() < 0.2
        while line < CANVAS + h * 0.3:
            x = float(r.uniform(-0.5, 2)) * h
            hand = printer if beside_print and r.random() < 0.4 else self.one_hand
            while x < CANVAS:
                x = self.write(self.word(), x, line, h, hand, self.gap, slope) + h * float(r.uniform(0.35, 1.4))
                if r.random() < 0.05:
                    break
            if ruled:
                offset = h * r.uniform(0.0, 0.12)
                cv2.line(
                    self.rules,
                    (0, round(line + offset)),
                    (CANVAS, round(line + offset - slope * CANVAS)),
                    strength,
                    thick,
                )
            line += step * (1 + (r.random() < 0.12))

    def draw_words(self) -> None:
        """One or two lines alone on their picture."""
        r, h = self.r, self.height
        count = int(r.choice([1, 1, 1, 2, 3]))
        first = 40 + h * 0.8
        line = float(r.uniform(first, max(first + 1, CANVAS - 40 - (count - 1) * 1.4 * h)))
        for _ in range(count):
            x = float(r.uniform(20, max(21, CANVAS * 0.4)))
            for _ in range(int(r.integers(1, 4))):
                x = self.write(self.word(), x, line, h, self.one_hand, self.gap) + h * float(r.uniform(0.4, 1.2))
            line += h * float(r.uniform(1.3, 2.2))
        if r.random() < 0.25:
            y = round(line - h * float(r.uniform(0.9, 1.3)))
            cv2.line(
                self.rules,
                (round(r.uniform(0, 60)), y),
                (round(r.uniform(180, CANVAS)), y + int(r.normal(0, 3))),
                float(r.uniform(0.3, 1)),
                max(1, int(h * r.uniform(0.02, 0.1))),
            )

    def box(
        self, left: float, top: float, right: float, bottom: float, strength: float, thick: int, style: str
    ) -> None:
        one, other = (round(left), round(top)), (round(right), round(bottom))
        if style == "dashed":
            for x in np.arange(left, right, max(4, 3 * thick)):
                cv2.line(self.rules, (round(x), one[1]), (round(x + 2 * thick), one[1]), strength, thick)
                cv2.line(self.rules, (round(x), other[1]), (round(x + 2 * thick), other[1]), strength, thick)
            for y in np.arange(top, bottom, max(4, 3 * thick)):
                cv2.line(self.rules, (one[0], round(y)), (one[0], round(y + 2 * thick)), strength, thick)
                cv2.line(self.rules, (other[0], round(y)), (other[0], round(y + 2 * thick)), strength, thick)
        elif style == "comb":
            middle = round((top + 2 * bottom) / 3)
            cv2.line(self.rules, (one[0], middle), (one[0], other[1]), strength, thick)
            cv2.line(self.rules, (other[0], middle), (other[0], other[1]), strength, thick)
            cv2.line(self.rules, (one[0], other[1]), other, strength, thick)
        elif style == "round":
            radius = round(min(right - left, bottom - top) * 0.3)
            for centre, angle in (
                ((left + radius, top + radius), 180),
                ((right - radius, top + radius), 270),
                ((right - radius, bottom - radius), 0),
                ((left + radius, bottom - radius), 90),
            ):
                cv2.ellipse(
                    self.rules, (round(centre[0]), round(centre[1])), (radius, radius), angle, 0, 90, strength, thick
                )
            cv2.line(self.rules, (one[0] + radius, one[1]), (other[0] - radius, one[1]), strength, thick)
            cv2.line(self.rules, (one[0] + radius, other[1]), (other[0] - radius, other[1]), strength, thick)
            cv2.line(self.rules, (one[0], one[1] + radius), (one[0], other[1] - radius), strength, thick)
            cv2.line(self.rules, (other[0], one[1] + radius), (other[0], other[1] - radius), strength, thick)
        else:
            cv2.rectangle(self.rules, one, other, strength, thick)

    def draw_boxes(self) -> None:
        """Fields of a form: rows of boxes, one character in each, with printed labels and lines of print around."""
        r, h = self.r, self.height
        wide, high = h * float(r.uniform(0.95, 1.9)), h * float(r.uniform(1.05, 1.9))
        apart = float(r.choice([0, 0, 0, r.uniform(0.08, 0.5)])) * h
        strength, thick = float(r.uniform(0.25, 1.0)), max(1, int(h * r.uniform(0.01, 0.13)))
        style = str(r.choice(["plain", "dashed", "comb", "round", "open"], p=[0.68, 0.08, 0.1, 0.07, 0.07]))
        printer = self.pages.hand(r, "print")
        hand = self.one_hand
        top = h * float(r.uniform(-0.3, 0.8)) if r.random() < 0.5 else float(r.uniform(0, max(1, CANVAS - 2 * high)))
        rows = int(r.choice([1, 1, 2, 9]))
        fill = float(r.choice([1.0, r.uniform(0.4, 1)]))
        overflow = float(r.uniform(0.5, 1.25))
        print_size = h * float(r.uniform(0.25, 0.7))
        for _ in range(rows):
            if top > CANVAS:
                break
            left = float(r.uniform(-0.6, 2.0)) * h
            if r.random() < 0.4 and print_size > 6:
                label = " ".join(str(r.choice(self.pages.words)).capitalize() for _ in range(int(r.integers(1, 4))))
                if r.random() < 0.5:
                    left = self.write(label, left, top + high * 0.7, print_size, printer, 0.12) + 0.3 * h
                else:
                    self.write(label, left, top - 0.25 * print_size, print_size, printer, 0.12)
            count = int(r.integers(1, 20))
            for number in range(count):
                if left > CANVAS:
                    break
                if style == "open":
                    if number == 0:
                        self.box(left, top, left + count * (wide + apart), top + high, strength, thick, "plain")
                else:
                    self.box(left, top, left + wide, top + high, strength, thick, style)
                if r.random() < fill:
                    size = h * overflow * float(r.uniform(0.85, 1.1))
                    self.in_box(left, top, wide, high, size, hand)
                left += wide + apart
            top += high + (apart if r.random() < 0.6 else h * float(r.uniform(0.5, 2)))

    def in_box(self, left: float, top: float, wide: float, high: float, size: float, hand: Hand) -> None:
        r = self.r
        glyph = self.pages.glyph(r, hand, self.names(1))
        if glyph is None:
            return
        size = min(size, high * 1.25)
        shape = (glyph.field if glyph.field is not None else glyph.alpha).shape
        own = (glyph.top + glyph.bottom) * size
        width = min(own * shape[1] / shape[0], wide * 1.1)
        x = left + (wide - width) / 2 + r.normal(0, 0.09) * wide
        line = top + high / 2 + size * 0.5 * r.uniform(0.75, 1.05) + r.normal(0, 0.07) * high
        self.put(glyph, x, line, size, hand, self.is_print(hand), widest=wide * 1.1)

    def draw_grid(self) -> None:
        """Sudokus and tables: heavy and thin rules, print or writing, empty cells."""
        r, h = self.r, self.height
        side = h * float(r.uniform(1.15, 2.4))
        tall = side * (1 if r.random() < 0.75 else float(r.uniform(0.5, 1.1)))
        tall = max(tall, 1.1 * h)
        fill = float(r.uniform(0.2, 1.0))
        strength, thick = float(r.uniform(0.2, 1.0)), max(1, int(h * r.uniform(0.01, 0.09)))
        heavy = r.random() < 0.7
        heavy_thick = max(thick + 1, int(thick * r.uniform(1.5, 5)), int(h * r.uniform(0, 0.3)))
        left0, top0 = float(r.uniform(-side, side)), float(r.uniform(-tall, tall))
        columns, rows = int(r.choice([9, 9, 3, 5, 12])), int(r.choice([9, 9, 3, 6, 12]))
        printer = self.pages.hand(r, "print")
        mixed = r.random() < 0.35
        if r.random() < 0.5:
            self.mode = "digits"
        hand = printer if r.random() < 0.4 else self.one_hand
        right, bottom = left0 + columns * side, top0 + rows * tall
        for number in range(columns + 1):
            width = heavy_thick if heavy and number % 3 == 0 else thick
            at = round(left0 + number * side)
            cv2.line(self.rules, (at, round(top0)), (at, round(bottom)), strength, width)
        for number in range(rows + 1):
            width = heavy_thick if heavy and number % 3 == 0 else thick
            at = round(top0 + number * tall)
            cv2.line(self.rules, (round(left0), at), (round(right), at), strength, width)
        if r.random() < 0.15:  # shaded blocks
            for number in range(columns * rows):
                if (number // 3 + number // (3 * columns)) % 2:
                    x, y = left0 + number % columns * side, top0 + number // columns * tall
                    x0, y0 = max(0, round(x)), max(0, round(y))
                    block = self.rules[y0 : max(0, round(y + tall)), x0 : max(0, round(x + side))]
                    np.maximum(block, 0.15, out=block)
        for row in range(rows):
            for column in range(columns):
                x, y = left0 + column * side, top0 + row * tall
                if -side < x < CANVAS and -tall < y < CANVAS and r.random() < fill:
                    own = self.one_hand if mixed and r.random() < 0.5 else hand
                    self.in_box(x, y, side, tall, h * float(r.uniform(0.9, 1.05)), own)

    def draw_scatter(self) -> None:
        r, h = self.r, self.height
        taken: list[tuple[float, float]] = []
        for _ in range(int(r.integers(1, max(2, int((CANVAS / h) ** 2 * 0.3))))):
            x, y = float(r.uniform(0, CANVAS)), float(r.uniform(0, CANVAS))
            if all(abs(x - a) > 1.1 * h or abs(y - b) > 1.2 * h for a, b in taken):
                glyph = self.pages.glyph(r, self.one_hand, self.names(1))
                if glyph is not None:
                    self.put(
                        glyph,
                        x - h * 0.3,
                        y + h / 2,
                        h * float(r.uniform(0.75, 1.25)),
                        self.one_hand,
                        self.is_print(self.one_hand),
                    )
                    taken.append((x, y))

    def draw_single(self) -> None:
        """One character in the middle, which may fill its picture."""
        r, h = self.r, self.height
        glyph = self.pages.glyph(r, self.one_hand, self.names(1))
        if glyph is None:
            return
        shape = (glyph.field if glyph.field is not None else glyph.alpha).shape
        total = glyph.top + glyph.bottom
        size = h / max(total, 0.3)
        x = CANVAS / 2 - h * shape[1] / shape[0] / 2 + float(r.normal(0, 6))
        self.put(
            glyph,
            x,
            CANVAS / 2 - h / 2 + glyph.top * size + float(r.normal(0, 6)),
            size,
            self.one_hand,
            self.is_print(self.one_hand),
        )
        if r.random() < 0.3:
            y = CANVAS / 2 - h / 2
            self.cell(x, y, x + h * shape[1] / shape[0], y + h)

    def cell(self, left: float, top: float, right: float, bottom: float) -> None:
        """What is left of a form's box around a character: rules on some of its sides."""
        r, h = self.r, self.height
        strength, thick = float(r.uniform(0.25, 1)), max(1, int(h * r.uniform(0.01, 0.09)))
        gaps = r.uniform(0.0, 0.35, 4) * h
        for side in range(4):
            if r.random() < 0.5:
                continue
            if side < 2:
                y = round(top - gaps[0] if side == 0 else bottom + gaps[1])
                ends = (0, y), (CANVAS, y + int(r.normal(0, 2)))
            else:
                x = round(left - gaps[2] if side == 2 else right + gaps[3])
                ends = (x, 0), (x + int(r.normal(0, 2)), CANVAS)
            cv2.line(self.rules, *ends, strength, thick)

    def draw_sum(self) -> None:
        """Numbers and signs: sums, equations, dates, amounts."""
        r, h = self.r, self.height
        line = float(r.uniform(60, CANVAS - 40))
        patterns = [
            "{0}+{1}",
            "{0}-{1}={2}",
            "{0}\u00d7{1}",
            "{0}/{1}/{2}",
            "{0}.{1}",
            "({0}+{1})",
            "{3}+{4}={1}",
            "{0}:{1}",
            "{0}%",
            "{5}: {6}",
            "{0}\u00f7{1}={2}",
            "{3}={0}",
            "{6}?",
        ]
        while line < CANVAS + h:
            numbers = [str(r.integers(0, 10 ** int(r.integers(1, 4)))) for _ in range(3)]
            letters = [f"{r.integers(2, 10)}{r.choice(list('abxyn'))}" for _ in range(2)]
            words = [str(r.choice(self.pages.words)) for _ in range(2)]
            text = str(r.choice(patterns)).format(*numbers, *letters, *words)
            self.write(text, float(r.uniform(10, 60)), line, h, self.one_hand, max(self.gap, 0.05))
            line += h * float(r.uniform(1.5, 3))

    def draw_joined(self) -> None:
        """Words of joined script: ink, but no separate characters."""
        r, h = self.r, max(self.height, 18.0)
        font = str(r.choice(self.pages.fonts["joined"]))
        scale = h / capital_height(font)
        line = h * float(r.uniform(0.8, 2))
        while line < CANVAS:
            x = float(r.uniform(0, h))
            while x < CANVAS:
                found = drawn(font, str(r.choice(self.pages.words)))
                if found is not None:
                    alpha, above, _, advance = found
                    alpha = cv2.resize(
                        alpha, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
                    )
                    top, left = round(line - above * scale), round(x)
                    rows = slice(max(0, top), min(CANVAS, top + alpha.shape[0]))
                    columns = slice(max(0, left), min(CANVAS, left + alpha.shape[1]))
                    if rows.stop > rows.start and columns.stop > columns.start:
                        part = alpha[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
                        self.ink[rows, columns] = np.maximum(self.ink[rows, columns], part)
                        self.script[rows, columns][part > 0.4] = 1
                    x += advance * scale
                x += 0.4 * h
            line += h * float(r.uniform(1.6, 2.6))

    def draw_nothing(self) -> None:
        """No character: an empty page, rules, a texture, strokes of a drawing."""
        r = self.r
        self.textured = r.random() < 0.5
        if r.random() < 0.25:  # discs and blots
            for _ in range(int(r.integers(1, 4))):
                axes = tuple(int(v) for v in r.uniform(6, 80, 2))
                centre = tuple(int(v) for v in r.uniform(40, CANVAS - 40, 2))
                cv2.ellipse(self.rules, centre, axes, float(r.uniform(0, 180)), 0, 360, float(r.uniform(0.3, 1)), -1)
        self.noisy = r.random() < 0.3
        for _ in range(int(r.integers(0, 4))):
            points = np.cumsum(r.normal(0, 25, (int(r.integers(5, 30)), 2)), axis=0) + r.uniform(0, CANVAS, 2)
            cv2.polylines(
                self.rules,
                [points.astype(np.int32)],
                bool(r.random() < 0.3),
                float(r.uniform(0.3, 1)),
                int(r.integers(1, 8)),
            )

    # -- from the canvas to a picture --

    def finish(self) -> Sample:
        self.squares_and_dirt()
        matrix, corner = self.view()
        ink = cv2.warpPerspective(self.ink, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
        rules = cv2.warpPerspective(self.rules, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
        owner = cv2.warpPerspective(self.owner, matrix, (SIDE, SIDE), flags=cv2.INTER_NEAREST)
        joined = cv2.warpPerspective(self.script, matrix, (SIDE, SIDE), flags=cv2.INTER_NEAREST)
        sheet = cv2.warpPerspective(np.ones_like(self.ink), matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
        growth = abs(float(np.linalg.det(matrix[:2, :2])))
        image, ink, hidden = self.compose(ink, rules, sheet if corner else None)
        owner[hidden | (ink < 0.25)] = 0
        joined[hidden] = 0
        numbers = np.bincount(owner.ravel(), minlength=len(self.areas))
        boxes, printed, names = [], [], []
        renumber = np.zeros(256, np.uint8)
        whole = np.array(self.areas) * growth
        for number in range(1, len(self.areas)):
            if numbers[number] < max(3, LEAST_VISIBLE * 0.8 * whole[number]):
                continue
            rows, columns = np.nonzero(owner == number)
            boxes.append((rows.min(), columns.min(), rows.max() + 1, columns.max() + 1))
            printed.append(self.printed[number])
            names.append(self.names_put[number])
            renumber[number] = len(boxes)
        return Sample(
            image, (np.clip(ink, 0, 1) * 255).astype(np.uint8), renumber[owner],
            np.array(boxes, np.int16).reshape(-1, 4), np.array(printed, bool), joined, (rules > 0.2) & ~hidden,
            tuple(names),
        )  # fmt: skip

    def squares_and_dirt(self) -> None:
        r, h = self.r, self.height
        if self.kind in ("lines", "words", "scatter", "single", "sum", "nothing") and r.random() < 0.12:
            step = float(r.uniform(0.35, 1.3)) * min(h, 60)
            start, strength = float(r.uniform(0, step)), float(r.uniform(0.1, 0.8))
            for at in np.arange(start, CANVAS, max(step, 5)):
                cv2.line(self.rules, (0, round(at)), (CANVAS, round(at)), strength, 1)
                if self.kind != "lines":
                    cv2.line(self.rules, (round(at), 0), (round(at), CANVAS), strength, 1)
        if r.random() < 0.2:
            for _ in range(int(r.integers(1, 5))):
                one, other = r.integers(0, CANVAS, 2), r.integers(0, CANVAS, 2)
                if r.random() < 0.6:  # level or upright, as the rules of a table beside a field
                    other[int(r.integers(2))] = one[int(r.integers(2))]
                    axis = int(r.integers(2))
                    other[axis] = one[axis] + int(r.normal(0, 2))
                cv2.line(
                    self.rules,
                    tuple(one.tolist()),
                    tuple(other.tolist()),
                    float(r.uniform(0.2, 1)),
                    int(r.integers(1, 6)),
                )
        if r.random() < 0.25:
            for _ in range(int(r.integers(1, 15))):
                centre = tuple(r.integers(0, CANVAS, 2).tolist())
                cv2.circle(self.rules, centre, max(1, int(h * r.uniform(0.01, 0.04))), float(r.uniform(0.3, 1)), -1)

    def view(self) -> tuple[Floats, bool]:
        """The matrix from the canvas to the page, and whether what lies beyond the canvas is seen."""
        r = self.r
        corner = r.random() < 0.12
        angle = float(r.normal(0, 1.5)) if r.random() < 0.7 else float(r.normal(0, 6))
        zoom = 1.0
        offset = r.uniform(-20, 20, 2)
        if corner:
            zoom = float(r.uniform(0.6, 0.78))
            angle = float(r.normal(0, 7))
        if self.kind == "single":
            offset = r.normal(0, 3, 2)
        matrix = np.eye(3)
        matrix[:2] = cv2.getRotationMatrix2D((CANVAS / 2, CANVAS / 2), angle, zoom)
        matrix[:2, 2] += SIDE / 2 - CANVAS / 2 + offset
        if r.random() < 0.2:
            tilt = np.eye(3)
            tilt[2, :2] = r.normal(0, 0.0006, 2)
            centre = np.eye(3)
            centre[:2, 2] = SIDE / 2
            back = np.eye(3)
            back[:2, 2] = -SIDE / 2
            matrix = centre @ tilt @ back @ matrix
        return matrix.astype(np.float64), corner

    def colours(self) -> tuple[Floats, Floats, Floats]:
        """Of paper, ink and rules, float32 [3] from 0 to 1."""
        r = self.r
        roll = r.random()
        if roll < 0.8:
            paper = np.full(3, r.uniform(0.5, 1.0)) * (1 + r.normal(0, 0.04, 3))
            contrast = float(r.uniform(0.15, 0.95))
            ink = paper * (1 - contrast)
            if r.random() < 0.45:  # a coloured pen: dark in two channels, less so in one
                ink = paper * (1 - contrast * r.uniform(0.35, 1.0, 3))
        elif roll < 0.92:
            paper = np.full(3, r.uniform(0, 0.45)) * (1 + r.normal(0, 0.1, 3))
            ink = paper + (1 - paper) * r.uniform(0.2, 1.0) * r.uniform(0.7, 1, 3)
        else:
            paper, ink = r.uniform(0.1, 1, 3), r.uniform(0, 1, 3)
            while np.abs(paper - ink).max() < 0.2:
                ink = r.uniform(0, 1, 3)
        rules = ink if r.random() < 0.5 else paper + (r.uniform(0, 1, 3) * 0.9 - paper) * r.uniform(0.25, 1.0)
        clipped = [np.asarray(np.clip(colour, 0, 1), np.float32) for colour in (paper, ink, rules)]
        return clipped[0], clipped[1], clipped[2]

    def compose(self, ink: Floats, rules: Floats, sheet: Floats | None) -> tuple[Bytes, Floats, Mask]:
        r = self.r
        paper, pen, print_ = self.colours()
        uneven = np.clip(1 + smooth(r, 12, r.uniform(0, 0.2)), 0.45, 1.15)
        if r.random() < 0.15:  # pencil and chalk: the grain of the paper shows
            uneven *= np.clip(1 + r.normal(0, r.uniform(0.1, 0.5), (SIDE, SIDE)).astype(np.float32), 0.2, 1.3)
        light = 1 + smooth(r, 2, r.uniform(0, 0.12)) + smooth(r, 9, r.uniform(0, 0.02))
        if r.random() < 0.2:
            light += (np.linspace(-1, 1, SIDE, dtype=np.float32) * r.uniform(-0.3, 0.3))[:: int(r.choice([-1, 1]))][
                :, None
            ]
        image = np.repeat(paper[None, None], SIDE, 0).repeat(SIDE, 1).astype(np.float32)
        if self.textured:
            image *= self.texture()[..., None] * self.texture()[..., None]
        over = (rules * (1 + smooth(r, 20, 0.1)))[..., None].clip(0, 1)
        image += (print_ - image) * over
        image += (pen - image) * np.clip(ink * uneven, 0, 1)[..., None]
        hidden = np.zeros((SIDE, SIDE), bool)
        if sheet is not None:
            around = self.around()
            image = image * sheet[..., None] + around * (1 - sheet[..., None])
            hidden |= sheet < 0.5
        image *= light[..., None]
        for _ in range(int(r.choice([0, 1, 2], p=[0.78, 0.17, 0.05]))):  # shadows
            mask = self.half_plane()
            soft = cv2.GaussianBlur(mask, (0, 0), float(r.uniform(0.5, 12)))
            image *= (1 - soft * r.uniform(0.1, 0.6))[..., None]
        if r.random() < 0.12:  # a fold
            mask = self.half_plane(thin=True)
            image *= (1 - cv2.GaussianBlur(mask, (0, 0), 1.0) * r.uniform(-0.15, 0.3))[..., None]
        blur = float(np.clip(r.uniform(-0.4, 1.1) * min(1.5, self.height / 22), 0, 2))
        if blur > 0.1:
            image = cv2.GaussianBlur(image, (0, 0), blur)
        if r.random() < (0.65 if self.kind == "single" else 0.24):
            image, gone = self.frame(image, ink)
            hidden |= gone
        ink = np.where(hidden, 0, ink)
        noise = float(r.uniform(0.1, 0.6)) if self.noisy else abs(float(r.normal(0, 0.02)))
        image += r.normal(0, noise, (SIDE, SIDE, 1)) + r.normal(0, noise / 2, (SIDE, SIDE, 3))
        if r.random() < 0.4:
            image = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
        done = (np.clip(image, 0, 1) * 255).astype(np.uint8)
        if r.random() < 0.12:
            small = float(r.uniform(0.5, 0.9))
            less = cv2.resize(done, None, fx=small, fy=small, interpolation=cv2.INTER_AREA)
            done = cv2.resize(less, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        if r.random() < 0.4:
            _, packed = cv2.imencode(".jpg", done, [cv2.IMWRITE_JPEG_QUALITY, int(r.integers(20, 92))])
            done = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
        return done, ink, hidden

    def texture(self) -> Floats:
        """Cloth, wood, a screen's pattern: float32 [S, S] about 1."""
        r = self.r
        y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
        depth = float(r.uniform(0.02, 0.2))
        roll = r.random()
        if roll < 0.25:  # checks
            step, turn = float(r.uniform(6, 60)), float(r.normal(0, 0.2))
            one, other = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
            checks = (one % step < step / 2).astype(np.float32) + (other % step < step / 2)
            return np.asarray(1 + 2 * depth * (checks - 1), np.float32)
        if roll < 0.6:
            turn = float(r.uniform(0, np.pi))
            wave = np.sin(
                (x * np.cos(turn) + y * np.sin(turn) + smooth(r, 4, 6)) * 2 * np.pi / float(r.uniform(2.5, 30))
            )
            return np.asarray(1 + depth * wave, np.float32)
        grain = cv2.GaussianBlur(
            r.normal(0, 1, (SIDE, SIDE)).astype(np.float32),
            (0, 0),
            float(r.uniform(0.8, 4)),
            sigmaY=float(r.uniform(0.8, 12)),
        )
        return np.asarray(1 + depth * grain / max(float(grain.std()), 1e-3), np.float32)

    def around(self) -> Floats:
        """What lies around a sheet: black or white of a turned scan, a table."""
        r = self.r
        if r.random() < 0.5:
            return np.full((1, 1, 3), float(r.choice([0, 0, 0, 1, r.uniform(0, 1)])), np.float32)
        return np.float32(r.uniform(0.05, 0.8, (1, 1, 3))) * self.texture()[..., None]

    def half_plane(self, thin: bool = False) -> Floats:
        r = self.r
        y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
        turn = float(r.uniform(0, 2 * np.pi))
        along = (x - SIDE / 2) * np.cos(turn) + (y - SIDE / 2) * np.sin(turn) - float(r.uniform(-0.5, 0.5)) * SIDE
        if thin:
            return np.asarray(np.abs(along) < 1, np.float32)
        return np.asarray(along + smooth(r, 4, 8) > 0, np.float32)

    def frame(self, image: Floats, ink: Floats) -> tuple[Floats, Mask]:
        """Something of another colour around or beside the picture: bands, letterboxes, a table, a finger's edge."""
        r = self.r
        gone = np.zeros((SIDE, SIDE), bool)
        if self.kind == "single":
            rows, columns = np.nonzero(ink > 0.3)
            if not len(rows):
                return image, gone
            margin = r.uniform(-0.06, 0.35, 4) * self.height
            top, bottom = int(rows.min() - margin[0]), int(rows.max() + 1 + margin[1])
            left, right = int(columns.min() - margin[2]), int(columns.max() + 1 + margin[3])
            top, left, bottom, right = max(0, top), max(0, left), min(SIDE, bottom), min(SIDE, right)
            edges = r.random() < 0.4
            if not edges and r.random() < 0.5:  # bands on some sides
                keep = r.random(4) < 0.6
                top, bottom = (0 if keep[0] else top), (SIDE if keep[1] else bottom)
                left, right = (0 if keep[2] else left), (SIDE if keep[3] else right)
            gone[:] = True
            gone[top:bottom, left:right] = False
            if edges and bottom - top > 4 and right - left > 4:  # as a tight picture is padded
                around = ((top, SIDE - bottom), (left, SIDE - right), (0, 0))
                return np.pad(image[top:bottom, left:right], around, mode="edge"), gone
        else:
            for side in range(4):
                if r.random() < 0.4:
                    depth = int(r.uniform(0, 0.3) * SIDE)
                    line = np.clip(
                        depth + np.linspace(0, r.normal(0, 12), SIDE) + smooth(r, 5, float(r.choice([0, 3])), SIDE)[0],
                        0,
                        SIDE,
                    )
                    mask = np.arange(SIDE)[:, None] < line[None]
                    gone |= np.rot90(mask, side)
        colour = self.around()
        if r.random() < 0.3:
            median = np.median(image[~gone], axis=0) if (~gone).any() else np.ones(3)
            colour = np.asarray(median, np.float32)[None, None]
        return np.where(gone[..., None], colour, image).astype(np.float32), gone


def contact_sheet(samples: list[Sample], columns: int = 6) -> Image.Image:
    """Pages, and beside each its ink with the boxes of its characters: written ones green, printed ones red."""
    tiles = []
    for sample in samples:
        shown = np.repeat(255 - sample.ink[..., None], 3, axis=2)
        shown[sample.joined > 0] = (60, 60, 255)
        for (top, left, bottom, right), printed in zip(sample.boxes.tolist(), sample.printed, strict=True):
            cv2.rectangle(shown, (left, top), (right - 1, bottom - 1), (220, 30, 30) if printed else (0, 160, 0), 1)
        tiles.append(np.concatenate([sample.image, shown], axis=1))
    while len(tiles) % columns:
        tiles.append(np.zeros_like(tiles[0]))
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return Image.fromarray(np.concatenate(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="EMNIST/raw and symbols/")
    parser.add_argument("--output", type=Path, default=Path("pages.png"), help="the contact sheet")
    parser.add_argument("--count", type=int, default=24, help="pages on it")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pages = Pages(arguments.data_dir, arguments.seed)
    contact_sheet([pages.page(number) for number in range(arguments.count)]).save(arguments.output)


if __name__ == "__main__":
    main()
