"""Any picture of one character, turned into the 28x28 form that EMNIST's images have (arXiv 1702.05373, section II).

    open_picture -> to_grey -> preprocess

`preprocess` finds the ink, decides whether it is one glyph, and draws that glyph again as NIST's scanner and EMNIST's
authors would have: strokes of the usual width, white on black, 28x28.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from glyphs.core.arrays import Bytes, Floats, Mask, Points
from glyphs.pictures.decode import Source, explain_fault, open_picture, shown_name, to_colour, to_grey
from glyphs.pictures.morphology import closing, dilate, framed, opening
from glyphs.pictures.plain import EMNIST_FORM, InputForm, letterbox, on_paper

GlyphStatus = Literal["ok", "no_glyph", "several_glyphs"]

VERSION = 4  # raised when the same picture comes out differently: caches of prepared pictures are then made anew

# EMNIST's form, measured on 103,739 images of it
SIDE = 28
BORDER = 2  # pixels of black left on each side of the glyph's longer extent
SHORTEST_LONG_SIDE = 22  # no image's bounding box has a longer side below this
LARGEST_MEAN = 0.45  # no image's mean is above 0.432: a picture with more ink in it is something else
BRIGHTEST = 255  # every image has a pixel of full white
LEAST_HALFTONES = 0.2  # every image is blurred: at least 0.21 of its ink, 0.41 of all but a hundredth, is neither
UNITS = SIDE - 2 * BORDER  # the glyph's longer side is 24 units
THINNEST, WIDEST_STROKE = 2.5, 5.0  # units; of 300 EMNIST images a tenth are below 2.2, a tenth above 4.8
# EMNIST's edges are blurred, the more so the smaller the character was on the form.  Their width (units, between a
# quarter and three quarters of the ink) tells how large the half-white part of the image is, because EMNIST's box
# holds the blurred edge too: side = 28.3 - 6.2 * edge fits 300 images within 0.7 pixels.
SHARPEST, SOFTEST = 0.75, 1.5  # units; of 300 EMNIST images a tenth are below 0.80, a tenth above 1.30
INK_SIDE, INK_SIDE_PER_EDGE = 28.3, 6.2  # pixels
EDGE_PER_SIGMA = 1.35  # a Gaussian edge climbs from a quarter to three quarters within 1.35 standard deviations
OWN_BLUR = 0.55  # units; the standard deviation of the blur that the last resampling adds by itself
PAGE_SIDE = 320  # the ink is looked for at this size, enough for a character of a tenth of the page
PAPER_SIDE = 64  # the paper's brightness changes slowly: this size shows it
ZOOM_BELOW = 48  # a glyph that is smaller than this on the shrunk page is looked at again from nearer
GLYPH_SIDE = 56  # a glyph's longer side while its strokes are measured and drawn

# The lines of a form's box
SMALLEST_CELL = 12  # pixels; a smaller picture has no room for lines and a glyph
LINE_REACH = 0.2  # share of the picture from each edge that they are looked for in
LINE_GAPS = 0.25  # share of a line that may be worn away
LINE_LEVEL = 0.1  # of the strongest ink
WEAK_LINE = 0.5  # likewise, below which a line is not of the pen that wrote the glyph

# The lines of ruled and squared paper
RULING_LEVEL = 0.12  # of the strongest ink
THICKEST_RULING = 0.05  # share of the page
LEAST_RULINGS = 2  # as strong as the pen: a single one may be the bar of a T
LEAST_RULED = 64  # pixels; on a smaller page a stroke is as thin as a ruling

# A photograph pasted on a page of one colour
PASTED_CONTRAST = 0.04  # brightness between the page and the photograph's paper
PASTED_SOLID = 0.8  # share of its box that shows paper: strokes fill less
PASTED_WHOLE = 0.97  # likewise with what the paper encloses: a fat pen rounds its corners
PASTED_EDGE = 0.04  # share of its longer side that its blurred edge may take up

# Finding ink
DENOISE = 0.004  # standard deviation of the first blur as a share of the page: 1.3 pixels of 320
PAPER_REACH = 0.4  # share of the page that the widest stroke and its neighbourhood may fill, light the rest
DARKEST_PAPER = 0.05  # brightness that is divided by at least
INLIERS = 0.7  # share of the border that shows paper; ink may cross the rest

# What is one glyph.  Where two figures are given, the bound lies between what was measured on 715 photographs and
# drawings and 200 degraded EMNIST images on the one hand, and on noise, textures and words on the other.
LEAST_CONTRAST = 0.05  # strongest ink as a share of the paper's brightness; glyphs: from 0.23
LEAST_OVER_NOISE = 8.0  # strongest ink over the paper's noise; glyphs: from 18, noise: mostly below 8
MOST_CROSSINGS = 6  # strokes that reach the picture's edge; glyphs: up to 4, ruled paper: from 8
MOST_RIPPLE = 0.09  # deviation of the paper over the strongest ink; glyphs: up to 0.061, noise: from 0.11
MOST_PARTS = 8  # glyphs: up to 3, grains: from 12
THICKEST = 0.33  # half the widest stroke over the glyph's size; glyphs: up to 0.25, a lamp's light: from 0.39
WIDEST_GLYPH = 2.7  # width over height; glyphs: up to 2.6
FAINT_STROKE = 0.25  # of the strongest ink: the least that still belongs to a stroke
SURE = 0.5  # of the strongest ink: what each part must reach somewhere
DIRT = 0.02  # area over the largest part's, below which a part is dirt
SMALL = 0.1  # likewise, below which a part must lie where a dot or a stroke's end may
CUT = 0.3  # likewise, below which a part that the picture's edge cuts is a neighbour's
LARGE = 0.15  # likewise, above which a part may be a character for itself
FARTHEST_DOT = 0.45  # how far off the dot of an i may lie, over the glyph's size

# What the finder sees, where there is no glyph by the bounds above.  Shares are of the character with the most ink.
SURE_HEAT = 0.75  # it is a character; of noise and textures few places are as hot
LARGE_AREA, LARGE_SIDE = 0.3, 0.5  # another one has so much ink, and is so large
BAND_EDGES = 3  # of the picture: what touches so many may be a band of another colour along one of them
WIDEST_PAIR = 1.3  # width over height of both from which on two that touch are two, and not an m that was cut in two


class Glyph(NamedTuple):
    """What was found in a picture.

    pixels : uint8 [28, 28], white on black, exactly where `status` is "ok"; of plain pictures [size, size], or
    [size, size, 3] in colour.  mnist_sized : the picture has the 28x28 pixels of MNIST's images, and is not in EMNIST's
    form: a drawing that somebody made for a reader of digits, most likely.  edges : how many of the picture's the glyph
    touches.
    """

    status: GlyphStatus
    pixels: Bytes | None
    mnist_sized: bool = False
    edges: int = 0


# ---- From a picture to EMNIST's form ----


def preprocess(picture: Source, form: InputForm = EMNIST_FORM, *, with_cover: bool = False) -> Glyph:
    """Bring a picture into EMNIST's form, or into another that a network was trained on.

    Parameters
    ----------
    picture : anything that `open_picture` takes.
    form : its mode is "glyph" for handwriting and print on any background; what is in EMNIST's form already passes
        through bit for bit.  "plain" (icons, logos, photographs) takes the picture as it is, letterboxed; its status
        is always "ok".
    with_cover : leave a plain picture with the cover of its paper as one more layer, see `letterbox`.

    Raises
    ------
    PictureError : as `open_picture` does; and where the picture brings out a fault of this program.
    """
    opened = open_picture(picture)
    with explain_fault(shown_name(picture)):
        if form.mode == "inverted":
            return Glyph("ok", _inverted(to_grey(opened)))
        if form.mode == "glyph":
            return _prepare(opened)
        layers = letterbox(opened, form)
        return Glyph("ok", layers if with_cover else on_paper(layers).squeeze(-1 if not form.color else ()))


def _prepare(opened: Image.Image) -> Glyph:
    """The glyph of an open picture."""
    if opened.size == (SIDE, SIDE):
        simple = opened.mode == "L" and not opened.has_transparency_data
        pixels = np.asarray(opened) if simple else to_bytes(to_grey(opened))
        for candidate in (pixels, 255 - pixels):
            if _is_emnist(candidate):
                return Glyph("ok", candidate)
    glyph = _find_glyph(to_grey(opened))
    if glyph.status == "no_glyph" or glyph.edges >= BAND_EDGES:
        second = _second_look(to_colour(opened))
        if glyph.status == "no_glyph" or second.status == "ok":
            glyph = second
    return glyph._replace(mnist_sized=opened.size == (SIDE, SIDE))


def _second_look(picture: Bytes) -> Glyph:
    """What the finder sees in a picture, uint8 [H, W, 3], in which `_find_glyph` found no glyph, or perhaps a band.

    That is one whose corners, bands or borders are of another colour than its paper, or whose ink is as bright.
    """
    from glyphs.pictures.finder import STROKE, find  # onnxruntime's session, which few pictures need

    found = find(picture)
    if found is None:
        return Glyph("no_glyph", None)
    places = ndimage.find_objects(found.owner)
    areas = np.bincount(found.owner.ravel())[1:]
    sides = np.array([max(line.stop - line.start for line in place) for place in places])
    main = int(areas.argmax())
    if found.heat[main] < SURE_HEAT or found.joined > STROKE:
        return Glyph("no_glyph", None)
    parts, _ = ndimage.label(found.ink > STROKE, np.ones((3, 3)))
    of_main = np.unique(parts[places[main]][found.owner[places[main]] == main + 1])
    own = found.owner == main + 1
    for number in range(len(areas)):
        if number == main:
            continue
        mask = found.owner[places[number]] == number + 1
        connected = np.isin(parts[places[number]][mask], of_main).any()
        large = areas[number] > LARGE_AREA * areas[main] and sides[number] > LARGE_SIDE * sides[main]
        rows, columns = zip(places[main], places[number], strict=True)
        high, wide = (max(a.stop, b.stop) - min(a.start, b.start) for a, b in (rows, columns))
        cut = any(line.start == 0 or line.stop == side for line, side in zip(places[number], own.shape, strict=True))
        if large and not cut and (wide > WIDEST_PAIR * high or not connected):
            return Glyph("several_glyphs", None)
        if connected:  # a part of it that was taken for a character
            own[places[number]] |= mask
    box = _box(own)
    thickest = float(ndimage.distance_transform_edt(framed(own[box], (1, 1), (1, 1))).max())
    if thickest > THICKEST * max(line.stop - line.start for line in box):
        return Glyph("no_glyph", None)
    edge = 2  # pixels: the soft edge of a stroke
    ink = np.where(dilate(own, 2 * edge + 1, 2 * edge + 1), found.ink, np.float32(0))
    pixels = draw_ink(ink, box, STROKE / 2)
    return Glyph("ok", pixels) if pixels.any() else Glyph("no_glyph", None)


def _inverted(grey: Floats) -> Bytes:
    height, width = grey.shape
    paper = float(np.median(_border(grey)))
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.pad(grey, ((top, side - height - top), (left, side - width - left)), constant_values=paper)
    pixels = to_bytes(resize(square, SIDE, SIDE))
    return 255 - pixels if paper > 0.5 else pixels


def _is_emnist(pixels: Bytes) -> bool:
    """Whether a uint8 [28, 28] is what EMNIST's last steps leave: a blurred glyph stretched to full white in its box.

    A drawing whose edges are hard, a faint one, and MNIST's (longer side 20, centred by mass) are not: they are drawn
    anew.
    """
    if pixels.max() < BRIGHTEST:
        return False
    bright = pixels >= 32
    if np.count_nonzero(bright & (pixels < 224)) < LEAST_HALFTONES * np.count_nonzero(bright):
        return False
    rows, columns = (np.flatnonzero(pixels.any(axis)).tolist() for axis in (1, 0))
    if not rows or max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 < SHORTEST_LONG_SIDE:
        return False
    # Twice the centre of the box against twice that of the image: at most half a pixel apart.
    if any(abs(line[0] + line[-1] - (SIDE - 1)) > 1 for line in (rows, columns)):
        return False
    border = _border(pixels)
    return bool(np.count_nonzero(border) <= len(border) // 2 and pixels.mean() <= LARGEST_MEAN * 255)


def _find_glyph(grey: Floats) -> Glyph:
    """Find the one glyph of a picture, float32 [H, W], and draw it in EMNIST's form; or say why there is none."""
    height, width = grey.shape
    scale = min(1.0, PAGE_SIDE / max(height, width))
    page = rescale(grey, scale)
    rows, columns = _inside_lines(page)
    if (rows.stop - rows.start, columns.stop - columns.start) != page.shape:
        rows, columns = (slice(math.ceil(line.start / scale), int(line.stop / scale)) for line in (rows, columns))
        return _find_glyph(grey[rows, columns])
    pasted = _pasted(page)
    if pasted is not None:
        rows, columns = (slice(math.ceil(line.start / scale), int(line.stop / scale)) for line in pasted)
        within = _find_glyph(grey[rows, columns])
        if within.status != "no_glyph":
            return within
    ink, noise = _ink(page)
    peak = float(ink.max())
    if peak < max(LEAST_CONTRAST, LEAST_OVER_NOISE * noise):
        return Glyph("no_glyph", None)
    ink = _without_rulings(ink, peak, noise)
    if float(ink.max()) < SURE * peak:  # there was nothing but lines
        return Glyph("no_glyph", None)
    floor = max(FAINT_STROKE * peak, 3 * noise)
    labels = ndimage.label(ink > floor, np.ones((3, 3)))[0]
    if _is_texture(ink, labels > 0, peak):
        return Glyph("no_glyph", None)
    status, glyph = _choose_parts(ink, labels, peak)
    if status != "ok":
        return Glyph(status, None)
    box = _box(glyph)
    size = max(line.stop - line.start for line in box)
    if scale < 1 and size < ZOOM_BELOW:
        rows, columns = (
            slice(max(0, int((line.start - size) / scale)), int((line.stop + size) / scale)) for line in box
        )
        return _find_glyph(grey[rows, columns])
    edges = sum(line.start == 0 for line in box) + sum(
        line.stop == side for line, side in zip(box, page.shape, strict=True)
    )
    dropped = (labels > 0) & ~glyph
    pixels = draw_ink(np.where(dropped, 0, ink), box, floor)
    return Glyph("ok", pixels, edges=edges) if pixels.any() else Glyph("no_glyph", None)


def _inside_lines(page: Floats) -> tuple[slice, slice]:
    """The rows and columns of a page, float32 [H, W], between the lines of a form's box along its edges.

    A line runs from edge to edge, ends in paper on the glyph's side, and is weaker than the pen or apart from it: the
    bar of a T that fills its picture is neither.
    """
    height, width = page.shape
    if min(height, width) < SMALLEST_CELL:
        return slice(0, height), slice(0, width)
    inner = page[height // 5 : height - height // 5, width // 5 : width - width // 5]
    off = np.abs(page - np.median(inner))
    peak = float(off[height // 5 : height - height // 5, width // 5 : width - width // 5].max())
    if peak < LEAST_CONTRAST:
        return slice(0, height), slice(0, width)
    found = []
    for lines in (off, off.T):  # rows first, then columns
        first = _after_line(lines, peak)
        last = len(lines) - _after_line(lines[::-1], peak)
        found.append(slice(first, last))
    return found[0], found[1]


def _pasted(page: Floats) -> tuple[slice, slice] | None:
    """The rows and columns within a photograph that was pasted on a page of one colour, float32 [H, W], if one was."""
    border = _border(page)
    colour = np.median(border)
    if np.abs(border - colour).max() > PASTED_CONTRAST:
        return None
    off = np.abs(page - colour) > PASTED_CONTRAST
    if not off.any():
        return None
    box = _box(off)
    part = off[box]
    edge = max(2, math.ceil(PASTED_EDGE * max(part.shape)))
    if min(part.shape) - 2 * edge < SMALLEST_CELL or part.mean() < PASTED_SOLID:
        return None
    if ndimage.binary_fill_holes(part).mean() < PASTED_WHOLE:
        return None
    rows, columns = (slice(line.start + edge, line.stop - edge) for line in box)
    return rows, columns


def _after_line(off: Floats, peak: float) -> int:
    """How many rows from the top a line along the top, if there is one, ends; `off`, float32 [H, W], is ink."""
    height, width = off.shape
    reach = max(2, round(height * LINE_REACH))
    side = max(1, width // 8)  # where lines at right angles to this one may be
    # A line that is not quite level goes on in the row above.
    along = ndimage.maximum_filter1d(off[: reach + 2], 2, axis=0)
    level = np.quantile(along[:, side : width - side], LINE_GAPS, axis=1)
    strong = np.flatnonzero(level[: reach + 1] > LINE_LEVEL * peak)
    if not len(strong):
        return 0
    last = int(strong[-1])
    strength = float(level[strong].max())
    if last == reach or level[last + 1] > strength / 2:
        return 0
    whole = along[strong].max(axis=0)
    if min(np.median(whole[:side]), np.median(whole[-side:])) <= LINE_LEVEL * peak:
        return 0
    weak = strength < WEAK_LINE * peak
    apart = off[last + 1, side : width - side].max() < FAINT_STROKE * peak
    return last + 1 if weak or apart else 0


def _ink(page: Floats) -> tuple[Floats, float]:
    """How far each pixel is from the paper to the ink's side, as a share of the paper, and the paper's noise.

    float32 [H, W], 0 for paper and at most 1 for ink; the noise as a standard deviation in the same unit.
    """
    height, width = page.shape
    page = ndimage.gaussian_filter(page, DENOISE * max(height, width))
    # The light: a quadratic surface through the paper, which is what most of the border shows.
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    depth = max(1, min(height, width) // 32)
    edge, edge_terms = _border(page, depth), _border(terms, depth)
    is_paper = np.ones(len(edge), dtype=bool)
    for _ in range(3):
        fit = np.linalg.lstsq(edge_terms[is_paper], edge[is_paper], rcond=None)[0]
        off = np.abs(edge - edge_terms @ fit)
        is_paper = off <= np.quantile(off, INLIERS) + 1e-6
    light = (terms @ fit).astype(np.float32)
    # Ink is what stands out most from the light, be it darker or lighter.
    if ((page - light) ** 3).sum() > 0:
        page, light = 1 - page, 1 - light
    page = page / np.maximum(light, DARKEST_PAPER)
    # What shade is left, with more detail: strokes are narrower than the closing, shadows are not.
    shrink = min(1.0, PAPER_SIDE / max(height, width))
    small = rescale(page, shrink)
    reach = max(3, int(min(small.shape) * PAPER_REACH))
    paper = ndimage.gaussian_filter(ndimage.grey_closing(small, size=(reach, reach)), reach / 6)
    paper = np.maximum(resize(paper, width, height), DARKEST_PAPER)
    ink: Floats = np.asarray(1 - page / paper, dtype=np.float32)
    ink -= np.median(ink)
    return ink, 1.4826 * float(np.median(np.abs(ink)))  # of a normal distribution, sigma over median deviation


def _without_rulings(ink: Floats, peak: float, noise: float) -> Floats:
    """The ink of a page, float32 [H, W], without the lines of ruled or squared paper; what crosses them stays.

    A single line as strong as the pen may be the glyph's own stroke: it stays where anything else is left.
    """
    if min(ink.shape) < LEAST_RULED:
        return ink
    dark = ink > max(RULING_LEVEL * peak, 3 * noise)
    (across, count, thick), (down, count_down, thick_down) = _rulings(dark), _rulings(dark.T)
    down = down.T
    if count + count_down == 0:
        return ink
    # Where a stroke crosses a line, the dark run at right angles to the line is longer than the line is thick.
    rulings = across & (down | ~opening(dark & ~down, 2 * thick + 1, 1))
    rulings |= down & ~opening(dark & ~across, 1, 2 * thick_down + 1)
    if not rulings.any():
        return ink
    rest: Floats = np.where(rulings, np.float32(0), ink)
    if float(rest.max()) < SURE * peak:
        return rest
    strength = float(np.median(ink[rulings]))
    if strength < WEAK_LINE * peak:  # darker places on such lines are strokes along them or across
        return np.where(rulings & (ink < (strength + peak) / 2), np.float32(0), ink)
    return rest if count + count_down >= LEAST_RULINGS else ink


def _rulings(dark: Mask) -> tuple[Mask, int, int]:
    """The thin lines that run through a bool [H, W] from the left edge to the right: bool [H, W], their number, and
    the thickest one's thickness in pixels.
    """
    height, width = dark.shape
    # Pieces of lines, which may climb by a pixel or two and be broken for a few.
    whole = closing(np.pad(dark, ((0, 0), (3, 3)), mode="edge"), 1, 5)[:, 3:-3]
    pieces = opening(dilate(whole, 3, 1), 1, max(3, width // 6))
    labels = ndimage.label(pieces, np.ones((3, 3)))[0]
    through = np.intersect1d(labels[:, 0], labels[:, -1])
    lines: Mask = np.zeros_like(dark)
    count = thickest = 0
    for label in through[through > 0]:
        line = (labels == label) & dark
        thick = math.ceil(np.median(line.sum(axis=0)))
        if 0 < thick <= THICKEST_RULING * height:
            lines |= line
            count += 1
            thickest = max(thickest, thick)
    return lines, count, thickest


def _is_texture(ink: Floats, dark: Mask, peak: float) -> bool:
    """Whether the ink of a page, float32 [H, W], and its dark parts, bool [H, W], are a pattern or an empty page."""
    # Texture and rulings run on beyond the picture; of a glyph at most a few strokes are cut off.
    ring = np.concatenate([dark[0], dark[1:, -1], dark[-1, -2::-1], dark[-2:0:-1, 0]])
    if np.count_nonzero(np.diff(ring)) > 2 * MOST_CROSSINGS:
        return True
    # The paper beside ink is flat: where it ripples as much as a faint stroke, what stands out is a ripple.
    beside = ink[~ndimage.binary_dilation(dark, iterations=3)]
    return bool(beside.size) and float(beside.std()) > MOST_RIPPLE * peak


def _choose_parts(ink: Floats, labels: NDArray[np.int32], peak: float) -> tuple[GlyphStatus, Mask]:
    """Which connected parts of the ink are the glyph: a status, and bool [H, W], of use where that is "ok".

    ink : float32 [H, W].  labels : int [H, W], the parts' numbers from 1, 0 for paper.
    """
    area = np.bincount(labels.ravel())[1:]
    boxes = ndimage.find_objects(labels)
    top, left = (np.array([box[axis].start for box in boxes]) for axis in (0, 1))
    bottom, right = (np.array([box[axis].stop for box in boxes]) for axis in (0, 1))
    main = int(area.argmax())
    size = max(bottom[main] - top[main], right[main] - left[main])
    stroke = area[main] / (2 * size)

    kept = np.isin(np.arange(1, len(area) + 1), labels[ink > SURE * peak])
    kept &= area > DIRT * area[main]
    cut = (top == 0) | (left == 0) | (bottom == labels.shape[0]) | (right == labels.shape[1])
    kept &= ~cut | (area > CUT * area[main])
    # A small part is the dot above an i, a mark below, or the end of a broken stroke; elsewhere it is dirt.
    beside = np.maximum(np.maximum(left - right[main], left[main] - right), 0)
    distance = np.maximum(beside, np.maximum(top - bottom[main], top[main] - bottom))
    dot = ((beside == 0) | (bottom <= top[main] + size / 3)) & (distance <= FARTHEST_DOT * size)
    kept &= (area > SMALL * area[main]) | (distance <= stroke) | dot
    kept[main] = True
    glyph = np.concatenate([[False], kept])[labels]
    if kept.sum() > MOST_PARTS:
        return "no_glyph", glyph
    thickness = float(ndimage.distance_transform_edt(np.pad(labels[boxes[main]] == main + 1, 1)).max())
    if thickness > THICKEST * size:
        return "no_glyph", glyph

    # Two large parts side by side are two characters: with paper between them, or in a wide glyph even without.
    rows, columns = _box(glyph)
    high, wide = rows.stop - rows.start, columns.stop - columns.start
    large = np.flatnonzero(kept & (area > LARGE * area[main]) & (bottom - top > (bottom - top)[kept].max() / 2))
    t, b, l, r = (edge[large] for edge in (top, bottom, left, right))  # noqa: E741
    shared_x = np.minimum.outer(r, r) - np.maximum.outer(l, l)
    shared_y = np.minimum.outer(b, b) - np.maximum.outer(t, t)
    abreast = shared_y > 0.3 * np.minimum.outer(b - t, b - t)
    apart = (shared_x < 0) | ((shared_x < 0.3 * np.minimum.outer(r - l, r - l)) & (wide > 1.2 * high))
    joined_word = wide > WIDEST_GLYPH * high and area[main] < high * wide / 2  # a dash is as wide, but solid
    return ("several_glyphs" if (abreast & apart).any() or joined_word else "ok"), glyph


def draw_ink(ink: Floats, box: tuple[slice, slice], floor: float) -> Bytes:
    """Draw the ink inside a box as a scan of NIST's with EMNIST's steps: uint8 [28, 28].

    It is black where no ink is left to draw: in a strip of a few pixels, the blurs on the way can level it all.
    """
    nothing = np.zeros((SIDE, SIDE), np.uint8)
    rows, columns = box
    size = max(rows.stop - rows.start, columns.stop - columns.start)
    margin = max(2, size // 8)
    crop = framed(ink, (margin, margin), (margin, margin))
    crop = crop[rows.start : rows.stop + 2 * margin, columns.start : columns.stop + 2 * margin]
    zoom = GLYPH_SIDE / size
    crop = rescale(crop, zoom)
    # A stroke ends where the ink is half as strong as along the middle of the stroke.
    strongest = ndimage.maximum_filter(crop, GLYPH_SIDE // 4)
    down, across = (blur_matrix(length, GLYPH_SIDE / 16) for length in strongest.shape)
    strongest = np.asarray(np.asarray(down @ strongest, np.float32) @ across.T, np.float32)
    around = (GLYPH_SIDE // 8,) * 2
    share = framed(crop / np.maximum(strongest, floor), around, around)
    inside = framed(crop > floor, around, around) & (share > 0.5)
    if not inside.any():
        return nothing
    rows, columns = _box(inside)
    # In a stroke of width w, the mean distance to its edge is w / 4.
    beside = _grown(rows, columns, 1)
    depth = ndimage.distance_transform_edt(inside[beside])
    width = 4 * float(depth[inside[beside]].mean() - 0.5)
    unit = max(rows.stop - rows.start, columns.stop - columns.start) / UNITS
    wanted = unit * min(max(width / unit, THINNEST), WIDEST_STROKE)
    edge = np.count_nonzero((share > 0.25) & (share < 0.75)) / np.count_nonzero(depth == 1) / unit
    edge = min(max(edge, SHARPEST), SOFTEST)
    # Never shave off more than half: strokes are of uneven width, and the thin ones must not break.
    grow = max((wanted - width) / 2, -width / 4)
    reach = max(1, math.ceil(grow + 1))  # beyond this there is no stroke
    near = _grown(rows, columns, reach)
    height_over_edge = 0.5 - ndimage.distance_transform_edt(~inside[near])
    height_over_edge[inside[near]] = depth[inside[beside]] - 0.5
    scan = np.zeros(inside.shape, np.float32)
    scan[near] = np.clip(height_over_edge + grow + 0.5, 0, 1)
    blur = math.sqrt(max((edge / EDGE_PER_SIGMA) ** 2 - OWN_BLUR**2, 0))
    scan = ndimage.gaussian_filter(scan, blur * unit)
    if scan.max() <= 0.5:
        return nothing
    rows, columns = _box(scan > 0.5)
    ink_side = INK_SIDE - INK_SIDE_PER_EDGE * edge
    half = max(rows.stop - rows.start, columns.stop - columns.start) / 2 * SIDE / ink_side
    y, x = ((line.start + line.stop) / 2 for line in (rows, columns))
    room = math.ceil(half)  # so that the frame lies within the scan, which Pillow demands
    frame = (x + room - half, y + room - half, x + room + half, y + room + half)
    square = Image.fromarray(framed(scan, (room, room), (room, room))).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC, box=frame
    )
    return to_bytes(np.asarray(square))


@functools.lru_cache(maxsize=64)
def blur_matrix(length: int, sigma: float) -> Points:
    """A Gaussian blur along a line of so many pixels as a matrix, float64 [length, length].

    In a short line, to multiply by it takes less time than ndimage.gaussian_filter, whose answer it gives.
    """
    return np.asarray(ndimage.gaussian_filter1d(np.eye(length), sigma, axis=0))


def _box(mask: Mask) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _grown(rows: slice, columns: slice, by: int) -> tuple[slice, slice]:
    return (
        slice(max(0, rows.start - by), rows.stop + by),
        slice(max(0, columns.start - by), columns.stop + by),
    )


def _border(grey: NDArray[Any], depth: int = 1) -> NDArray[Any]:
    sides = (grey[:depth], grey[-depth:], grey[depth:-depth, :depth], grey[depth:-depth, -depth:])
    return np.concatenate([side.reshape(-1, *grey.shape[2:]) for side in sides])


def rescale(grey: Floats, scale: float) -> Floats:
    """Enlarge or shrink a picture, float32 [H, W], by the same scale both ways."""
    height, width = grey.shape
    return grey if scale == 1 else resize(grey, round(width * scale), round(height * scale))


def resize(grey: Floats, width: int, height: int) -> Floats:
    """Bicubic, averaging where it shrinks."""
    return np.asarray(Image.fromarray(grey).resize((max(1, width), max(1, height)), Image.Resampling.BICUBIC))


def to_bytes(grey: Floats) -> Bytes:
    """Brightness from 0 to 1 in 8 bits; what is beyond, as resizing leaves it, is cut off."""
    return np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
