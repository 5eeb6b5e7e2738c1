"""Draw the sample pictures: pen strokes on paper, as a telephone would photograph them.

    python samples/draw.py

writes letter.jpg and number.jpg beside this file.  Nobody's handwriting is in them: the strokes are the curves below.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.interpolate import make_interp_spline

Point = tuple[float, float]
Strokes = Sequence[Sequence[Point]]

# Points that the pen goes through, in units of a letter's height, from its top left corner to the right and down.
LETTER_R: Strokes = (
    ((0.12, 0.04), (0.15, 0.35), (0.14, 0.70), (0.10, 1.00)),
    ((0.02, 0.12), (0.30, 0.00), (0.58, 0.10), (0.56, 0.34), (0.34, 0.50), (0.16, 0.54)),
    ((0.27, 0.52), (0.42, 0.72), (0.56, 0.90), (0.72, 0.99)),
)
DIGIT_4: Strokes = (
    ((0.34, 0.02), (0.20, 0.32), (0.04, 0.60), (0.30, 0.62), (0.64, 0.58)),
    ((0.46, 0.34), (0.46, 0.66), (0.43, 1.00)),
)
DIGIT_7: Strokes = (((0.02, 0.08), (0.30, 0.07), (0.60, 0.04), (0.42, 0.36), (0.28, 0.68), (0.20, 1.00)),)
DIGIT_3: Strokes = (((0.06, 0.12), (0.32, 0.00), (0.52, 0.18), (0.24, 0.44), (0.54, 0.62), (0.42, 0.94), (0.02, 0.92)),)

FINER = 4  # times: the page is drawn so much larger, so that its lines get smooth edges
JPEG_QUALITY = 82


def photograph(width: int, height: int, glyphs: Sequence[tuple[Strokes, Point]], size: int, seed: int) -> Image.Image:
    """A page with each of these glyphs at its place (left, top), `size` pixels high, lit from one side."""
    rng = np.random.default_rng(seed)
    page = Image.new("L", (width * FINER, height * FINER))
    draw = ImageDraw.Draw(page)
    for strokes, (left, top) in glyphs:
        for stroke in strokes:
            pen = (spline(stroke) * size + (left, top)) * FINER
            # The pen is pressed most in the middle of a stroke.
            pressed = 0.75 + 0.25 * np.sin(np.linspace(0, np.pi, len(pen)))
            for (x, y), radius in zip(pen, 0.035 * size * FINER * pressed, strict=True):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    ink = np.asarray(page.rotate(3, Image.Resampling.BICUBIC).resize((width, height)), dtype=np.float32) / 255
    ink = ndimage.gaussian_filter(ink, 0.8)  # a lens that is not quite sharp

    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    light = 0.88 - 0.30 * x - 0.16 * y - 0.12 / (1 + np.exp(-(x + 0.6 * y - 0.95) * 18))  # a shadow's edge across it
    grain = ndimage.gaussian_filter(rng.normal(0, 1, (height, width)), 0.7)
    paper = np.array([1.0, 0.965, 0.90])
    blue = np.array([0.16, 0.20, 0.42])
    colours = ink[..., None] * blue + (1 - ink[..., None]) * paper
    shown = colours * light[..., None] + 0.022 * grain[..., None]
    return Image.fromarray(np.rint(shown.clip(0, 1) * 255).astype(np.uint8))


def spline(points: Sequence[Point]) -> NDArray[np.float64]:
    """A smooth curve through the points, [400, 2]."""
    through = np.asarray(points)
    along = np.r_[0, np.cumsum(np.hypot(*np.diff(through, axis=0).T))]
    curve: NDArray[np.float64] = make_interp_spline(along, through, k=2)(np.linspace(0, along[-1], 400))
    return curve


def main() -> None:
    folder = Path(__file__).parent
    letter = photograph(480, 360, [(LETTER_R, (170, 70))], 210, seed=1)
    letter.save(folder / "letter.jpg", quality=JPEG_QUALITY)
    digits = [(DIGIT_4, (80, 70)), (DIGIT_7, (205, 66)), (DIGIT_3, (335, 74)), (DIGIT_7, (460, 66))]
    photograph(640, 260, digits, 120, seed=2).save(folder / "number.jpg", quality=JPEG_QUALITY)


if __name__ == "__main__":
    main()
