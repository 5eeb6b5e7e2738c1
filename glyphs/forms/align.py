"""A scan laid over the empty form by the form's own print: labels, rules and boxes.

The form is looked for, shrunk, in each direction and a few angles; then tiles of it are matched, from coarse to fine,
and an affine map, as of a scanner, is fitted to where they were found.  What is matched is ink, by normalised
cross-correlation (B. Zitova, J. Flusser: Image registration methods: a survey, Image and Vision Computing 21 (11),
2003, section 3.1).  What was written into the form has no counterpart in it, and falls out.
"""

import itertools

import numpy as np
from scipy import ndimage

from glyphs.core.arrays import Floats, Points
from glyphs.forms.marks import apply, homography, straighten
from glyphs.forms.paper import paper_ink
from glyphs.pictures.glyph import rescale

# Pixels of the form's longer side, while it is looked for and while tiles are matched
SEARCH_SIDE, TILING_SIDE = 160, 800
ANGLES = np.arange(-4.5, 4.6, 1.5)  # degrees
SIDES_ALIKE = 1.4  # a scan's width over height against the form's
LEAST_ALIKE = 0.2  # correlation of a scan with its form
TILE, REACHES = 49, (24, 10, 5)  # pixels; how far a tile is looked for, step by step
LEAST_TILE_INK, LEAST_MATCH, FEWEST = 0.02, 0.6, 8  # of a tile that shows something; its correlation; such tiles
LEAST_LEAD = 0.1  # of its correlation over that two pixels away and farther
OUTLIER = 3.0  # middling errors, beyond which a tile was found in a wrong place


def lay_over(scan: Floats, form: Floats) -> tuple[Points, Points] | None:
    """Where a form's corners are in a scan of it; both float32 [H, W] from 0 (black) to 1.

    Returns
    -------
    seen, places : x and y of the form's corners in the scan, and in the form, float [4, 2], in pixels from the
    pictures' corners; None where the scan does not show the form.
    """
    small_scan, scan_scale = shrunken_ink(scan, SEARCH_SIDE)
    small_form, form_scale = shrunken_ink(form, SEARCH_SIDE)
    whole = corners_of(small_scan)
    best, places = LEAST_ALIKE, None
    for turn, angle in itertools.product(range(4), ANGLES):
        turned = turn_corners(whole, small_form, turn, float(angle))
        if turned is None:
            continue
        laid = straighten(small_scan, whole - 0.5, turned - 0.5, small_form.shape[::-1])
        alike, offset = find_offset(small_form, laid)
        if alike > best:
            best, places = alike, turned + offset
    if places is None:
        return None
    matrix = homography(places / form_scale, whole / scan_scale)
    ink, scan_scale = shrunken_ink(scan, TILING_SIDE)
    printed, form_scale = shrunken_ink(form, TILING_SIDE)
    corners = corners_of(printed)
    for reach in REACHES:
        seen = apply(matrix, corners / form_scale) * scan_scale
        laid = straighten(ink, seen - 0.5, corners - 0.5, printed.shape[::-1])
        tiles, offsets = match_tiles(printed, laid, reach)
        if len(tiles) < FEWEST:
            return None
        found = apply(homography(corners, seen), tiles + offsets)
        matrix = fit(tiles / form_scale, found / scan_scale)
    return apply(matrix, corners_of(form)), corners_of(form)


def shrunken_ink(picture: Floats, side: int) -> tuple[Floats, float]:
    """The ink of a picture whose longer side has so many pixels, and its scale."""
    scale = side / max(picture.shape)
    ink, _ = paper_ink(rescale(picture, scale))
    return np.clip(ink, 0, 1), scale


def corners_of(picture: Floats) -> Points:
    """A picture's corners, clockwise from the top left, float [4, 2]."""
    height, width = picture.shape
    return np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float64)


def turn_corners(corners: Points, form: Floats, turn: int, angle: float) -> Points | None:
    """Where a scan's corners lie in the form, turned by so many quarters and degrees; None where it does not fit."""
    turned = (corners - corners.mean(axis=0)) @ rotation(90 * turn).T
    across, down = np.ptp(turned, axis=0)
    height, width = form.shape
    if not 1 / SIDES_ALIKE < (across / down) / (width / height) < SIDES_ALIKE:
        return None
    scale = np.sqrt(width * height / (across * down))
    return np.asarray(scale * turned @ rotation(angle).T + (width / 2, height / 2))


def rotation(degrees: float) -> Points:
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    return np.array([[cosine, -sine], [sine, cosine]])


def correlate(one: Floats, other: Floats) -> Points:
    """The cross-correlation of two pictures for every way to lay one over the other, by Fourier's transform.

    SciPy's own is in a package that takes long to import.
    """
    shape = [a + b - 1 for a, b in zip(one.shape, other.shape, strict=True)]
    return np.fft.irfft2(np.fft.rfft2(one, shape) * np.fft.rfft2(other[::-1, ::-1], shape), shape)


def find_offset(form: Floats, laid: Floats) -> tuple[float, Points]:
    """How alike two pictures of one size are where one is moved over the other, and by how much, x and y."""
    one, other = form - form.mean(), laid - laid.mean()
    alike = correlate(one, other) / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-9)
    row, column = np.unravel_index(int(alike.argmax()), alike.shape)
    offset = np.array([column - form.shape[1] + 1, row - form.shape[0] + 1], dtype=np.float64)
    return float(alike[row, column]), offset


def match_tiles(form: Floats, laid: Floats, reach: int) -> tuple[Points, Points]:
    """The middles, x and y, of those tiles of a form that are found in a picture laid over it, and how far off."""
    half = TILE // 2
    wide = np.pad(laid, half + reach)
    mean = ndimage.uniform_filter(wide, TILE)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(wide**2, TILE) - mean**2, 1e-9))
    tiles, offsets = [], []
    for y, x in itertools.product(*(range(half, length - half, half + 1) for length in form.shape)):
        tile = form[y - half : y + half + 1, x - half : x + half + 1]
        if tile.std() < LEAST_TILE_INK:
            continue
        window = wide[y : y + TILE + 2 * reach, x : x + TILE + 2 * reach]
        alike = correlate(window, tile - tile.mean())[TILE - 1 : 1 - TILE, TILE - 1 : 1 - TILE] / TILE**2
        place = np.s_[y + half : y + half + 2 * reach + 1, x + half : x + half + 2 * reach + 1]
        alike = alike / (tile.std() * spread[place])
        row, column = np.unravel_index(int(alike.argmax()), alike.shape)
        best = alike[row, column]
        alike[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = -1
        if best >= LEAST_MATCH and best - alike.max() >= LEAST_LEAD:  # a piece of a rule may lie anywhere along it
            tiles.append((x + 0.5, y + 0.5))
            offsets.append((column - reach, row - reach))
    return np.array(tiles, dtype=np.float64).reshape(-1, 2), np.array(offsets, dtype=np.float64).reshape(-1, 2)


def fit(places: Points, found: Points) -> Points:
    """The affine map of most of the points, float [3, 3]."""
    terms = np.column_stack([places, np.ones(len(places))])
    kept = np.ones(len(places), dtype=bool)
    for _ in range(4):
        weights = np.linalg.lstsq(terms[kept], found[kept], rcond=None)[0]
        errors = np.linalg.norm(terms @ weights - found, axis=1)
        kept = errors <= max(OUTLIER * float(np.median(errors)), 1.0)
    return np.vstack([weights.T, [0, 0, 1]])
