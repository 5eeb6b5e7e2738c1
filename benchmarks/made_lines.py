"""How well lines whose letters touch are read, and how well wrong cuts are told: on lines made of EMNIST's characters.

    python benchmarks/made_lines.py --model MODEL --data-dir DIR

A line is by one writer: its characters, which are many writers', have one size, slant, width, pen and spacing with a
little play in each, and a share of them touches the one before.  They are of that third of EMNIST-ByClass's training
images that `recipes/cuts.py` leaves out (the network of characters was trained on most of them).  Whose each pixel is
is known, and so is which cuts are right: those whose ink is one character's, but for a fifth.

Prints, for each share, the error rate (edits over characters, case and spaces ignored; a refused line counts as all of
its characters missed) with the lowest and highest of three sets of lines, the lines refused, and of how many
characters the right cut is among the candidates; then, for all candidates, how well the network of cuts tells right
from wrong ones: the area under the curve, and how many wrong ones pass where a twentieth of the right ones does not.

Such lines are good for training, and for comparing cutters and what scores their cuts, without end and with known cuts.
They are no measure of reading: all letters are equally frequent and no word helps, none has the strokes that join
letters in one hand, small letters have thinner pens than capitals, and paper and light are even.
"""

import argparse
import string
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.stats import rankdata

from benchmarks.text import edit_distance, plain
from glyphs.core.arrays import Bytes, Floats
from glyphs.data.emnist import ALL_62, load_emnist
from glyphs.pictures.lines import Page
from glyphs.reading.cuts import character_odds, draw_candidate
from glyphs.reading.lattice import Lattice, Span, lattice_of
from glyphs.reading.predictor import GlyphPredictor

INK = 0.3  # of full ink: what belongs to a character's strokes
NOBODY = -1  # the owner of paper
FITTING, KEPT = (1, 2), (0,)  # of each three images: for recipes, and for measuring
TOUCHING = (0.0, 0.1, 0.2, 0.5)  # shares of the characters that touch the one before
RIGHT_CUT = 0.8  # of the ink of a candidate and a character: so much is both's, and the cut is right
SETS, LOST = 3, 0.05  # sets of lines; right candidates that may be taken for wrong

# Tops and bottoms of letters, in heights of a capital above the line they stand on
SMALL, TALL_STEM, DESCENDING = "acemnorsuvwxz", "it", "gpqy"
SMALL_TOP, STEM_TOP, DESCENT = 0.62, 0.9, -0.3


class MadeLine(NamedTuple):
    """A picture of a line, its text, and whose ink each pixel is: int16 [H, W], NOBODY for paper."""

    picture: Image.Image
    text: str
    owners: NDArray[np.int16]


def extent(character: str) -> tuple[float, float]:
    """How far a character rises above the line and falls below it (negative), in heights of a capital."""
    if character in SMALL:
        return SMALL_TOP, 0.0
    if character in DESCENDING:
        return SMALL_TOP, DESCENT
    if character == "j":
        return STEM_TOP, DESCENT
    return (STEM_TOP if character in TALL_STEM else 1.0), 0.0


def load_characters(data_dir: Path, remainders: tuple[int, ...]) -> dict[str, Bytes]:
    """EMNIST-ByClass training images, uint8 [N, 28, 28], by their character: of each three the places `remainders`."""
    images, labels = load_emnist(data_dir, "byclass", "train")
    pixels = images[:, 0].numpy()
    chosen = np.isin(np.arange(len(pixels)) % 3, remainders)
    classes = labels.numpy()
    return {name: pixels[chosen & (classes == number)] for number, name in enumerate(ALL_62)}


def make_text(random: np.random.Generator) -> str:
    """A number, words in capitals, words that begin with one, or one word, half of them without tall letters."""
    kind = random.integers(4)
    if kind == 0:
        return "".join(random.choice(list(string.digits), random.integers(4, 9)))
    letters = SMALL if kind == 3 and random.random() < 0.5 else string.ascii_lowercase
    words = ["".join(random.choice(list(letters), random.integers(3, 9))) for _ in range(4 - kind)]
    text = " ".join(words)
    return text.capitalize() if kind == 1 else text.upper() if kind == 2 else text


def make_line(
    random: np.random.Generator, characters: Mapping[str, Bytes], text: str, touching: float, height: int | None = None
) -> MadeLine:
    """A line by one writer: one size, slant, width, pen and spacing, with a little play in each.

    Parameters
    ----------
    touching : the share of characters that touch the one before, where no space lies between.
    height : of a capital, in pixels; by default one of 24 to 72.
    """
    size = int(random.integers(24, 73)) if height is None else height
    slant, squeeze, level = random.uniform(-0.1, 0.25), random.uniform(0.7, 1.35), random.uniform(0.3, 0.6)
    gap, play = random.uniform(0.08, 0.25), random.uniform(0.02, 0.06)
    shape = round(2.6 * size), round((len(text) + 2) * 2 * size)
    ink, owners = np.zeros(shape, np.float32), np.full(shape, NOBODY, np.int16)
    foot, end, number, spaced = 1.6 * size, float(size), 0, True
    for character in text:
        if character == " ":
            end += random.uniform(0.6, 0.9) * size
            spaced = True
            continue
        glyph = draw(
            random.choice(characters[character]), character, size * random.normal(1, play), slant, squeeze, level
        )
        top, _ = extent(character)
        first = round(foot - (top + random.normal(0, play)) * size)
        touches = not spaced and random.random() < touching
        left = round(end + (0 if touches else max(0.04, random.normal(gap, play)) * size))
        rows = slice(first, first + glyph.shape[0])
        if not spaced:
            while touches != touch(glyph, ink[rows, left : left + glyph.shape[1]]):
                left += -1 if touches else 1
        columns = slice(left, left + glyph.shape[1])
        own = (glyph > INK) & (glyph > ink[rows, columns])
        owners[rows, columns][own] = number
        np.maximum(ink[rows, columns], glyph, out=ink[rows, columns])
        end, spaced, number = float(columns.stop), False, number + 1
    inside = slice(None), slice(0, round(end) + size)
    paper, pen = random.uniform(0.75, 0.95), random.uniform(0.5, 0.85)
    clean = ndimage.gaussian_filter(paper * (1 - pen * ink[inside]), random.uniform(0, 0.02) * size)
    grey = clean + random.normal(0, random.uniform(0.003, 0.02), clean.shape)
    picture = Image.fromarray((255 * grey.clip(0, 1)).round().astype(np.uint8))
    return MadeLine(picture, text, owners[inside])


def draw(image: Bytes, character: str, size: float, slant: float, squeeze: float, level: float) -> Floats:
    """A character's ink, float32 [H, W], tight; strokes end where the image, uint8 [28, 28], has this level."""
    rows, columns = (np.flatnonzero((image > INK * 255).any(axis=axis)) for axis in (1, 0))
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    top, bottom = extent(character)
    high = max(6, round((top - bottom) * size))
    wide = max(3, round((box[2] - box[0]) * high / (box[3] - box[1]) * squeeze))
    lean = abs(slant) * high
    glyph = Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC, box=box)
    # A pixel of the slanted one comes from so much further left (or right) in the upright one, most at its top.
    move = (1, slant, -slant * high if slant > 0 else 0, 0, 1, 0)
    slanted = glyph.transform(
        (wide + round(lean), high), Image.Transform.AFFINE, move, resample=Image.Resampling.BICUBIC
    )
    ink = np.asarray(slanted, np.float32) / 255
    sharp = np.clip((ink - level) * max(1.2, high / 34) + 0.5, 0, 1) * (ink > 0.05)
    return sharp[:, (sharp > INK).any(axis=0)].astype(np.float32)


def touch(glyph: Floats, there: Floats) -> bool:
    """Whether a character's strokes meet those that are there."""
    return bool(((glyph > INK) & (there > INK)).any())


# ---- Which cuts are right ----


def overlaps(owners: NDArray[np.int16], page: Page, lattice: Lattice) -> dict[Span, tuple[int, float]]:
    """For each candidate of a line, the made character that it is most like: its number, and the ink they share.

    That is a share of the ink of both together: 1 for a right cut.
    """
    places = [
        np.minimum(((np.arange(side) + 0.5) / page.zoom).astype(int), own - 1)
        for side, own in zip(page.ink.shape, owners.shape, strict=True)
    ]
    large = owners[np.ix_(*places)]
    count = int(owners.max()) + 1
    sizes = np.bincount(large[large != NOBODY], minlength=count)
    shares = np.zeros((len(lattice.line.pieces) + 1, count), np.int64)
    for number, piece in enumerate(lattice.line.pieces, start=1):
        box = piece.box
        own = large[box.top : box.bottom, box.left : box.right][piece.mask]
        shares[number] = shares[number - 1] + np.bincount(own[own != NOBODY], minlength=count)
    found = {}
    for start, stop in lattice.scores:
        common = shares[stop] - shares[start]
        alike = common / np.maximum(sizes + common.sum() - common, 1)
        found[start, stop] = int(alike.argmax()), float(alike.max())
    return found


# ---- Figures ----


class Counts(NamedTuple):
    """Of a set of lines: their characters, the edits, lines refused, characters that a candidate is right for."""

    characters: int
    edits: int
    refused: int
    offered: int


def measure(
    predictor: GlyphPredictor, characters: Mapping[str, Bytes], touching: float, lines: int, seed: int
) -> tuple[Counts, list[tuple[float, float]]]:
    """Read a set of lines; also each candidate's odds of being a character, and how much of one it is."""
    length = edits = refused = offered = 0
    judged: list[tuple[float, float]] = []
    for number in range(lines):
        random = np.random.default_rng((seed, number))
        made = make_line(random, characters, make_text(random), touching)
        file, page = predictor.find_page(None, made.picture)
        if not isinstance(page, Page):
            raise page
        best = np.zeros(int(made.owners.max()) + 1)
        for line in page.lines:
            lattice = lattice_of(line)
            common = overlaps(made.owners, page, lattice)
            for owner, share in common.values():
                best[owner] = max(best[owner], share)
            views = [draw_candidate(lattice.piece(span), line.height, lattice.ink) for span in common]
            judged += zip(
                character_odds(np.stack(views)).tolist(), (share for _, share in common.values()), strict=True
            )
        reading = predictor.read_page(file, page, top_k=1)
        refused += reading.status == "joined_script"
        truth = plain(made.text)
        length += len(truth)
        edits += edit_distance(plain(reading.text or ""), truth)
        offered += int((best > RIGHT_CUT).sum())
    return Counts(length, edits, refused, offered), judged


def tell_apart(odds: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[float, float]:
    """The area under the curve, and the share of wrong ones that pass where a share LOST of the right ones does not."""
    ranks, count = rankdata(odds), int(right.sum())
    area = (ranks[right].sum() - count * (count + 1) / 2) / (count * (len(odds) - count))
    return float(area), float((odds[~right] > np.quantile(odds[right], LOST)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint or an .onnx file")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with EMNIST's files")
    parser.add_argument("--lines", type=int, default=50, help="in each of the three sets of each share")
    arguments = parser.parse_args()
    predictor = GlyphPredictor(arguments.model, "cpu")
    characters = load_characters(arguments.data_dir, KEPT)
    judged: list[tuple[float, float]] = []
    print("touching  characters  error rate  lowest to highest  refused  right cut offered")
    for touching in TOUCHING:
        sets = []
        for seed in range(SETS):
            counts, some = measure(predictor, characters, touching, arguments.lines, seed)
            sets.append(counts)
            judged += some
        length, edits, refused, offered = map(sum, zip(*sets, strict=True))
        rates = [each.edits / each.characters for each in sets]
        span = f"{min(rates):.1%} to {max(rates):.1%}"
        shares = f"{refused:4} of {SETS * arguments.lines}  {offered / length:17.1%}"
        print(f"{touching:8.0%}  {length:10}  {edits / length:10.1%}  {span:>17}  {shares}", flush=True)
    odds, shares = np.array(judged).T
    area, passed = tell_apart(odds, shares > RIGHT_CUT)
    print(f"{len(odds)} candidates, {np.mean(shares > RIGHT_CUT):.1%} right: area under the curve {area:.3f};", end=" ")
    print(f"{passed:.1%} of the wrong ones pass where {LOST:.0%} of the right ones do not")


if __name__ == "__main__":
    main()
