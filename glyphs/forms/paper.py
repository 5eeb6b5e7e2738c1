"""How dark each pixel of a printed form is against its paper: what its marks, codes and boxes are found on."""

import math

import numpy as np
from scipy import ndimage

from glyphs.core.arrays import Floats
from glyphs.pictures.glyph import rescale, resize

PAPER_WINDOW = 15  # pixels: the closing that finds the paper is at least so wide, else an eighth of the shorter side,
LEAST_WINDOW = 52  # or so wide, or a third of it: the strokes of a character that fills its picture are broad
SMOOTH = 0.8  # pixels: standard deviation of the first blur
LEAST_INK = 0.06  # of the paper's brightness: ink is at least so much darker
LEAST_SIGNAL = 4.0  # and so many times the paper's noise
FAINT = 0.5  # of the floor: the least that belongs to a rule
FLOOR = 0.35  # of the strong ink: the least that belongs to a stroke


def paper_ink(page: Floats) -> tuple[Floats, float]:
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
    ink -= median(ink)
    noise = 1.4826 * median(np.abs(ink))
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


def median(values: Floats) -> float:
    """The median, of an even number of values the upper of the middle two: in a fifth of np.median's time."""
    return float(np.partition(values, values.size // 2, axis=None)[values.size // 2])
