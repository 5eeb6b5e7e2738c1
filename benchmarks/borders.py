"""Whether single characters are read the same when their picture is turned, banded, letterboxed or cut.

    python benchmarks/borders.py --model MODEL --pictures DIR

DIR holds a folder `<code point>_<character>` for each character. Of each character's pictures every fifth is taken,
which the weights in the box were not trained on. Prints, for each change, the share of right answers with its standard
error, of the pictures that are right untouched the share that stays right, and the pictures refused.
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from glyphs.pictures.decode import open_picture
from glyphs.reading.predictor import GlyphPredictor

EVERY = 5
TURN = 6  # degrees
BAND, BOX = 0.25, 0.3  # of the picture's side: how wide a band is, and the borders of a letterbox
TIGHT = 40  # of 255, the contrast from which on a pixel counts as ink where a picture is cut to it

Change = Callable[[Image.Image], Image.Image]


def turned(picture: Image.Image, angle: float = TURN) -> Image.Image:
    """As a scanner turns it: what lies beyond the picture is black."""
    return picture.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=(0, 0, 0))


def extended(picture: Image.Image, sides: tuple[float, float, float, float], colour: int) -> Image.Image:
    """With borders left, above, right and below, in shares of its width and height."""
    left, top, right, bottom = (
        round(share * side) for share, side in zip(sides, (*picture.size, *picture.size), strict=True)
    )
    wider = Image.new("RGB", (picture.width + left + right, picture.height + top + bottom), (colour,) * 3)
    wider.paste(picture, (left, top))
    return wider


def tight(picture: Image.Image, margin: int = 0) -> Image.Image:
    """Cut to what differs from the median of the border, or further by a pixel on each side."""
    grey = np.asarray(picture.convert("L"), np.int16)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    rows, columns = np.nonzero(np.abs(grey - np.median(border)) > TIGHT)
    if not len(rows):
        return picture
    box = (columns.min() - margin, rows.min() - margin, columns.max() + 1 + margin, rows.max() + 1 + margin)
    box = (max(0, box[0]), max(0, box[1]), min(picture.width, box[2]), min(picture.height, box[3]))
    return picture.crop(box) if box[2] - box[0] > 3 and box[3] - box[1] > 3 else picture


CHANGES: dict[str, Change] = {
    "untouched": lambda picture: picture,
    "turned, black corners": turned,
    "turned the other way": lambda picture: turned(picture, -TURN),
    "a black band at the right": lambda picture: extended(picture, (0, 0, BAND, 0), 0),
    "a white band above": lambda picture: extended(picture, (0, BAND, 0, 0), 255),
    "letterboxed in grey": lambda picture: extended(picture, (BOX, BOX, BOX, BOX), 128),
    "letterboxed in black": lambda picture: extended(picture, (BOX, BOX, BOX, BOX), 0),
    "cut tight": tight,
    "cut into its edge": lambda picture: tight(picture, -1),
    "light on dark": lambda picture: picture.point(lambda value: 255 - value),
    "three times as large": lambda picture: picture.resize((3 * picture.width, 3 * picture.height)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint or an .onnx file")
    parser.add_argument("--pictures", type=Path, required=True, metavar="DIR")
    parser.add_argument("--count", type=int, help="so many pictures at most, evenly from all")
    arguments = parser.parse_args()
    predictor = GlyphPredictor(arguments.model, "cpu")
    folders = sorted(path for path in arguments.pictures.iterdir() if path.is_dir())
    paths = [path for folder in folders for path in sorted(folder.glob("*.png"))[::EVERY]]
    if arguments.count:
        paths = paths[:: max(1, len(paths) // arguments.count)]
    labels = [chr(int(path.parent.name.split("_")[0])) for path in paths]
    labels = [label if label in predictor.class_names else label.upper() for label in labels]
    pictures = [open_picture(path).convert("RGB") for path in paths]
    first: list[bool] = []
    print(f"{len(paths)} pictures\n{'change':28} right              of those right before  refused")
    for name, change in CHANGES.items():
        answers = predictor.predict_batch(change(picture) for picture in pictures)
        right = [answer.prediction == label for answer, label in zip(answers, labels, strict=True)]
        first = first or right
        share = sum(right) / len(right)
        kept = sum(now and before for now, before in zip(right, first, strict=True)) / max(1, sum(first))
        refused = sum(answer.prediction is None for answer in answers)
        error = math.sqrt(share * (1 - share) / len(right))
        print(f"{name:28} {share:6.1%} ± {error:4.1%}      {kept:6.1%}                 {refused:4}")


if __name__ == "__main__":
    main()
