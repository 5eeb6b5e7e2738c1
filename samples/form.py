"""Draw an empty form of three fields, and photographs of it filled in, without a pen and without a camera.

    python samples/form.py outputs/form

writes outputs/form/empty.png, and outputs/form/scans/1.jpg to 5.jpg: the form filled in from fonts, bent and slanted at
random, photographed aslant, in a shadow, one of them upside down.  Prints what stands in each.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from glyphs.data.demo import font_folder
from glyphs.forms.marks import mark_squares
from samples.fill import JPEG_QUALITY, TURNS, photograph, write

Floats = NDArray[np.float64]

SIZE = (1240, 1000)  # pixels
MARKS, MARK = ((80, 80), (1160, 80), (1160, 920), (80, 920)), 70  # middles, and side
BOX = 64  # side of a box for one character


class Row(NamedTuple):
    """A field: its label, where its first box begins, its boxes, and how many characters each holds."""

    label: str
    left: int
    top: int
    boxes: int
    characters: int


ROWS = (
    Row("Surname, capitals", 330, 300, 1, 12),
    Row("ZIP code", 330, 460, 5, 1),
    Row("Member number", 330, 620, 6, 1),
)
PEOPLE = (
    ("BAKER", "90210", "AB4172"),
    ("FITZGERALD", "10036", "KR2085"),
    ("NGUYEN", "60614", "DX7391"),
    ("HERNANDEZ", "73301", "QT5560"),
    ("WATT", "02139", "EH8843"),
)


def empty() -> Image.Image:
    page = Image.new("L", SIZE, 255)
    pen = ImageDraw.Draw(page)
    title, small = (ImageFont.truetype(font_folder() / "DejaVuSans.ttf", size) for size in (40, 24))
    for number, (x, y) in enumerate(MARKS):
        for left, top, side, grey in mark_squares(x, y, MARK, first=number == 0):
            pen.rectangle(
                (round(left), round(top), round(left + side) - 1, round(top + side) - 1), fill=round(255 * grey)
            )
    pen.text((SIZE[0] / 2, 170), "Membership", font=title, fill=0, anchor="mm")
    for label, left, top, boxes, characters in ROWS:
        pen.text((80, top + BOX / 2), label, font=small, fill=0, anchor="lm")
        for box in range(boxes):
            x = left + box * BOX
            pen.rectangle((x, top, x + characters * BOX, top + BOX), outline=60, width=3)
    return page


def fill(page: Image.Image, answers: tuple[str, ...], rng: np.random.Generator) -> Floats:
    """The form with an answer in each of its fields: brightness, [H, W], from 0 to 1."""
    filled = np.asarray(page, dtype=np.float64) / 255
    for row, answer in zip(ROWS, answers, strict=True):
        for place, character in enumerate(answer):
            left = row.left + place * BOX
            filled[row.top : row.top + BOX, left : left + BOX] *= 1 - 0.85 * write(character, BOX, rng)
    return filled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    folder = parser.parse_args().folder
    (folder / "scans").mkdir(parents=True, exist_ok=True)
    page = empty()
    page.save(folder / "empty.png")
    rng = np.random.default_rng(1)
    for number, answers in enumerate(PEOPLE, start=1):
        picture = photograph(fill(page, answers, rng), rng, TURNS[(number - 1) % 3])
        picture.save(folder / "scans" / f"{number}.jpg", quality=JPEG_QUALITY)
        print(f"{number}.jpg", *answers)


if __name__ == "__main__":
    main()
