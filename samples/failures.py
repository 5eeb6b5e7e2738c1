"""Draw pictures of text that are read wrongly, each in a way that docs/TEXT.md tells of, with what is read of them.

    python samples/failures.py docs/figures/failures.png

Nobody's handwriting is in them: they are fonts, bent and slanted at random, and curves.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from glyphs.forms.marks import homography
from inference import GlyphPredictor
from samples.fill import Floats, write

MODEL = Path(__file__).resolve().parent.parent / "pretrained" / "glyphs47.onnx"
PAPER, PEN = 0.93, 0.16  # brightness
COLUMNS = 2
Rng = np.random.Generator


def line(text: str, height: int, rng: Rng, gap: float = 0.12) -> Floats:
    """A line of characters, so much paper between them as a share of the height: ink, [2 height, W], from 0 to 1."""
    side = 2 * height
    glyphs = []
    for character in text:
        if character == " ":
            glyphs.append(np.zeros((side, height)))
            continue
        ink = write(character, side, rng)
        columns = np.flatnonzero(ink.max(axis=0) > 0.3)
        glyphs.append(ink[:, columns[0] : columns[-1] + 1])
    page = np.zeros((side, side + sum(glyph.shape[1] + height for glyph in glyphs)))
    left = height
    for glyph in glyphs:
        width = glyph.shape[1]
        page[:, left : left + width] = np.maximum(page[:, left : left + width], glyph)
        left += width + round(gap * height)
    return page[:, : left + height]


def on_paper(ink: Floats, under: Floats | float = PAPER) -> Floats:
    """Ink, [H, W], on paper or on what lies under it: brightness, [H, W]."""
    return under - (under - PEN) * ink


def crossed(rng: Rng) -> Floats:
    """Digits that other strokes cross."""
    ink = Image.fromarray(np.uint8(255 * line("5382", 50, rng, 0.4)))
    for left in range(50, ink.width - 50, 55):
        ImageDraw.Draw(ink).line((left, 80, left + 40, 22), fill=255, width=5)
    return on_paper(np.asarray(ink, dtype=np.float64) / 255)


def large_marks(rng: Rng) -> Floats:
    """Full stops as large as letters."""
    ink = Image.fromarray(np.uint8(255 * line("A  B  C", 50, rng, 0.3)))
    for left in (102, 288):
        ImageDraw.Draw(ink).ellipse((left, 48, left + 26, 74), fill=255)
    return on_paper(np.asarray(ink, dtype=np.float64) / 255)


def aslant(rng: Rng) -> Floats:
    """A table whose cells hold words, seen from the side."""
    page = np.full((480, 720), PAPER)
    for row, words in enumerate((("TEA", "MILK"), ("RICE", "SALT"), ("OIL", "CORN"))):
        for column, word in enumerate(words):
            ink = line(word, 44, rng)
            top, left = 40 + 140 * row, 60 + 300 * column
            page[top + 24 : top + 24 + ink.shape[0], left : left + ink.shape[1]] = on_paper(ink)
            for start, stop in ((left, left + 4), (left + 300, left + 304)):
                page[top : top + 140, start:stop] = PEN
            page[top : top + 4, left : left + 300] = PEN
    page[460:464, 60:664] = PEN
    corners = np.array([[0, 0], [720, 0], [720, 480], [0, 480]], dtype=np.float64)
    seen = np.array([[90, 20], [640, 110], [700, 400], [20, 470]], dtype=np.float64)
    terms = homography(seen, corners).ravel()[:8].tolist()
    turned = Image.fromarray(np.float32(page)).transform(
        (720, 480), Image.Transform.PERSPECTIVE, terms, Image.Resampling.BICUBIC, fillcolor=PAPER
    )
    return np.asarray(turned, dtype=np.float64)


def ruled(rng: Rng) -> Floats:
    """Small letters on rules as faint as their pen."""
    page = np.full((120, 340), PAPER)
    page[18::24] = 0.6
    for row, text in enumerate(("QUICK BROWN FOX", "JUMPS OVER", "DOGS")):
        ink = line(text, 12, rng)
        rows, columns = slice(22 + 24 * row, 22 + 24 * row + 24), slice(0, min(340, ink.shape[1]))
        page[rows, columns] -= 0.4 * ink[:, columns]
    return page


def stamped(rng: Rng) -> Floats:
    """Writing over print."""
    under = 1 - line("PAID 2026", 50, rng)
    ink = line("7 4 1 8", 50, rng)
    width = min(under.shape[1], ink.shape[1])
    return on_paper(ink[:, :width], PAPER * (0.5 + 0.5 * under[:, :width]))


def cut(rng: Rng) -> Floats:
    """Characters that the picture's edge cuts."""
    return on_paper(line("HOUSE", 50, rng)[:62])


def signs(rng: Rng) -> Floats:
    """Signs that the network does not know."""
    return on_paper(line("12+7/3", 50, rng, 0.3))


def look_alikes(rng: Rng) -> Floats:
    """A code of digits and letters."""
    return on_paper(line("S0O5ILZ2", 50, rng, 0.3))


def touching(rng: Rng) -> Floats:
    """Letters that touch."""
    return on_paper(line("HAMMER", 50, rng, -0.08))


def small(rng: Rng) -> Floats:
    """Letters of eight pixels."""
    ink = line("SMALL PRINT", 50, rng, 0.25)
    shrunk = ndimage.zoom(ink, 8 / 50, order=1, grid_mode=True, mode="nearest")
    return on_paper(shrunk)


FAILURES: dict[str, tuple[Callable[[Rng], Floats], str]] = {
    "digits that other ink crosses": (crossed, "5382"),
    "a table of words, aslant": (aslant, "TEA MILK RICE SALT OIL CORN"),
    "small letters on faint rules": (ruled, "QUICK BROWN FOX JUMPS OVER DOGS"),
    "print under writing": (stamped, "7418"),
    "the picture's edge cuts": (cut, "HOUSE"),
    "signs": (signs, "12+7/3"),
    "look-alikes": (look_alikes, "S0O5ILZ2"),
    "touching letters": (touching, "HAMMER"),
    "large full stops": (large_marks, "A.B.C"),
    "letters of eight pixels": (small, "SMALL PRINT"),
}


def main() -> None:
    predictor = GlyphPredictor(MODEL)
    rows = -(-len(FAILURES) // COLUMNS)
    figure, every = plt.subplots(rows, COLUMNS, figsize=(11, 1.7 * rows), layout="constrained")
    for axes, (name, (make, truth)) in zip(every.flat, FAILURES.items(), strict=True):
        page = make(np.random.default_rng(3))
        picture = Image.fromarray(np.rint(page.clip(0, 1) * 255).astype(np.uint8))
        reading = predictor.read(picture)
        read = " ".join(reading.text.split()) if reading.text else reading.status
        print(f"{name}: {truth!r} is read as {read!r}")
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{name}: {read}", fontsize=10, loc="left", wrap=True)
        axes.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80)
    plt.close(figure)
    Image.open(buffer).convert("L").quantize(32).save(sys.argv[1], "PNG", optimize=True)


if __name__ == "__main__":
    main()
