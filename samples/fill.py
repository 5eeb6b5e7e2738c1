"""Fill in a page of a collection sheet and photograph it, without a pen and without a camera.

    python inference.py --sheet outputs/sheet.png --alphabet "αβγδ"
    python samples/fill.py outputs/sheet.png outputs/photos

writes outputs/photos/1.jpg and so on: the sheet's characters from fonts, bent and slanted at random, on a page that is
photographed aslant, in a shadow, the third one upside down.  It is print: no model learns handwriting from it.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from glyphs.data.demo import font_folder
from glyphs.forms.marks import homography
from glyphs.forms.sheet import BOX, COLUMNS, LEFT, PAPER, TOP, cut_sheet
from glyphs.pictures.decode import open_picture, to_grey

Floats = NDArray[np.float64]

FONTS = [
    *(f"DejaVuSans{style}" for style in ("", "-Oblique", "Mono", "Mono-Oblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Italic")),
    *(f"STIXGeneral{style}" for style in ("", "Italic")),
]
TURNS = (0, 0, 180, 90, 270)  # degrees, of one photograph after the other
JPEG_QUALITY = 85


def write(character: str, side: int, rng: np.random.Generator) -> Floats:
    """A character in a box of so many pixels: ink, [side, side], from 0 to 1."""
    font = ImageFont.truetype(font_folder() / f"{rng.choice(FONTS)}.ttf", round(side * rng.uniform(0.55, 0.75)))
    if (wide := font.getlength(character)) > 0.75 * side:  # a word
        font = font.font_variant(size=round(font.size * 0.75 * side / wide))
    box = Image.new("L", (side, side))
    middle = side / 2 + rng.uniform(-0.06, 0.06, 2) * side
    # Centred by what is seen of it, and not by its line.
    left, top, right, bottom = font.getbbox(character)
    at = (middle[0] - (left + right) / 2, middle[1] - (top + bottom) / 2)
    ImageDraw.Draw(box).text(at, character, font=font, fill=255)
    ink = np.asarray(box, dtype=np.float64) / 255
    waves = ndimage.gaussian_filter(rng.normal(0, 1, (2, side, side)), (0, side / 7, side / 7))
    waves *= 0.03 * side / waves.std()
    angle, slant = rng.uniform(-0.15, 0.15, 2)
    places = np.indices((side, side)) - side / 2
    y, x = np.cos(angle) * places[0] + np.sin(angle) * places[1], np.cos(angle) * places[1] - np.sin(angle) * places[0]
    bent: Floats = ndimage.map_coordinates(ink, np.stack([y, x + slant * y]) + side / 2 + waves, order=1)
    return bent


def fill(sheet: Path, rng: np.random.Generator) -> Floats:
    """The page with a character in each of its boxes, one in twenty left empty: brightness, [H, W], from 0 to 1."""
    grey = to_grey(open_picture(sheet))
    page, _ = cut_sheet(grey, str(sheet))
    scale = grey.shape[1] / PAPER[0]
    side = round(BOX * scale)
    filled = grey.astype(np.float64)
    for row, name in enumerate(page.rows):
        for column in range(COLUMNS):
            if rng.random() < 0.95:
                top, left = round((TOP + BOX * row) * scale), round((LEFT + BOX * column) * scale)
                filled[top : top + side, left : left + side] *= 1 - 0.8 * write(name, side, rng)
    return filled


def photograph(page: Floats, rng: np.random.Generator, turn: int = 0, longer_side: int = 2000) -> Image.Image:
    """A page, brightness [H, W] from 0 to 1, on a table, as a telephone sees it that is not straight above it."""
    height, width = (round(side * longer_side / max(page.shape)) for side in page.shape)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float64)
    seen = (0.5 + (corners - 0.5) * 0.86 + rng.uniform(-0.04, 0.04, (4, 2))) * (width, height)
    matrix = homography(seen, corners * (page.shape[1], page.shape[0]))
    terms = matrix.ravel()[:8].tolist()
    paper = Image.fromarray(np.float32(page)).transform(
        (width, height), Image.Transform.PERSPECTIVE, terms, Image.Resampling.BICUBIC, fillcolor=0.35
    )
    shown = ndimage.gaussian_filter(np.asarray(paper, dtype=np.float64), 0.7)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    edge = rng.uniform(0.5, 1.1)
    light = 0.92 - 0.25 * x - 0.12 * y - 0.15 / (1 + np.exp(-(x + 0.6 * y - edge) * 18))  # a shadow's edge across it
    shown = shown * light + 0.02 * rng.normal(0, 1, shown.shape)
    return Image.fromarray(np.rint(shown.clip(0, 1) * 255).astype(np.uint8)).rotate(turn, expand=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", type=Path, help="a page, as --sheet FILE.png printed it")
    parser.add_argument("folder", type=Path, help="where the photographs go")
    parser.add_argument("--copies", type=int, default=4, help="photographs, each of a page filled in anew (default: 4)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(arguments.seed)
    for copy in range(arguments.copies):
        picture = photograph(fill(arguments.sheet, rng), rng, TURNS[copy % len(TURNS)])
        picture.save(arguments.folder / f"{copy + 1}.jpg", quality=JPEG_QUALITY)


if __name__ == "__main__":
    main()
