"""Where the characters of a picture are, and which pixels are their ink: a small network tells.

    open_picture -> to_colour -> find -> Finding

`recipes/finder.py` trained it on made pages.  It looks at the picture at a scale at which characters are some 32
pixels high; that scale is found by the network itself, on the picture made small first.
"""

import functools
import math
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from glyphs.core.arrays import Bytes, Floats, Mask
from glyphs.core.cpus import usable_cpus
from glyphs.core.errors import CheckpointError
from glyphs.core.files import pretrained_folder

STRIDE = 2  # pixels of the picture for one of the maps
DIVISOR, LEAST_PADDING = 32, 8  # pixels: of the sides that the network can take; of padding on both sides together
WAY_UNIT = 16.0  # pixels for 1 in the ways from ink to its character's centre

BEST_HEIGHT = 36.0  # pixels that a character is high where the network sees it best
FIRST_SIDE = 352  # pixels of the longer side where it looks first
SMALL_SIDE, FIRST_HEIGHT = 140, 44  # a smaller picture is one line: so high it looks first
NEARER, MOST_NEARER = 2.5, 4.0  # times as near: the next look where nothing was found; from one look to the next
SAME_SCALE = 0.1  # a look at a scale that differs by less tells nothing new
MOST_LOOKS = 4  # until the scale is found
FITS = (0.72, 1.5)  # of the best height: a usual height between these needs no further look
MOST_OFF_SCALE = 3.0  # times the best height, or a part of it: what only looks like characters at such a size is none
MOST_PIXELS = 3_500_000  # of what it looks at
MOST_ENLARGED = 6.0  # times
LEAST_HEAT = 0.5  # of a centre
MOST_FOUND = 5000  # characters on a picture: more are noise, a screen or a texture
STROKE = 0.5  # of ink: what is more is a stroke
LONGEST_WAY = 0.6  # of a character's size: ink that aims further off its centre is not its own
LEAST_STROKE, LEAST_FILLED = 6, 0.04  # pixels, and share of its box: a character has more ink
# The mean probability of a rule from which on what looks like a character is one: of bars, so narrow for their height,
# that are so much higher than the median of the others, as the walls between boxes are; and of anything else
NARROW_BAR, HIGH, HIGH_RULE, ANY_RULE = 0.3, 1.25, 0.12, 0.4
NEAREST_CENTRE = 0.35  # of the smaller character's size: nearer ones are one


class Channel(IntEnum):
    """The network's maps; from INK on there is one for each of STRIDE x STRIDE pixels."""

    HEAT = 0
    HEIGHT = 1
    WIDTH = 2
    DOWN = 3
    RIGHT = 4
    PRINTED = 5
    JOINED = 6
    RULES = 7
    INK = 8


class Finding(NamedTuple):
    """What the network tells of a picture.

    ink : float32 [H, W] from 0 to 1, at `scale` pixels for one of the picture.
    centres : float32 [N, 2], y and x of each character, in pixels of the ink; sizes : float32 [N, 2], height and width.
    heat : float32 [N], how sure it is of each.
    owner : int32 [H, W], the number from 1 of the character that each pixel of a stroke belongs to; 0 for none.
    rules : float32 [H/2, W/2], the probability of a rule: of a box, a table, ruled paper.
    joined : the share of the ink that is joined script.
    """

    ink: Floats
    centres: Floats
    sizes: Floats
    heat: Floats
    owner: NDArray[np.int32]
    rules: Floats
    joined: float
    scale: float


@functools.cache
def session() -> Any:
    """The network in the box.  Raises CheckpointError where it is missing or damaged."""
    import onnxruntime

    path = pretrained_folder() / "finder.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    options.log_severity_level = 4  # what is wrong with a model comes as an exception, too
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); install the project again") from None


def network_maps(picture: Bytes) -> Floats:
    """The network's maps, float32 [C, H/2, W/2], for uint8 [H, W, 3].

    The picture is padded to sides that the network can take with what is at its edges, so that a band along an edge
    runs on instead of looking like a stroke.
    """
    height, width = picture.shape[:2]
    before, after = [], []
    for side in (height, width):
        room = math.ceil((side + LEAST_PADDING) / DIVISOR) * DIVISOR - side
        before.append(room // 2 // STRIDE * STRIDE)
        after.append(room - before[-1])
    padded = np.pad(picture, ((before[0], after[0]), (before[1], after[1]), (0, 0)), mode="edge")
    values = np.ascontiguousarray(padded.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
    [maps] = session().run(None, {"pictures": values})
    top, left = (room // STRIDE for room in before)
    inner: Floats = maps[0, :, top : top + math.ceil(height / STRIDE), left : left + math.ceil(width / STRIDE)]
    return inner


def sigmoid(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-values)), np.float32)


def peaks(maps: Floats) -> tuple[Floats, Floats, Floats]:
    """Centres [N, 2] and sizes [N, 2] in pixels of the picture, and heat [N]: the hottest of each neighbourhood."""
    heat = sigmoid(maps[Channel.HEAT])
    top = (heat == ndimage.maximum_filter(heat, 3)) & (heat > LEAST_HEAT)
    if np.count_nonzero(top) > MOST_FOUND:
        top[:] = False
    y, x = np.nonzero(top)
    order = np.argsort(-heat[y, x], kind="stable")
    y, x = y[order], x[order]
    sizes = np.exp(np.clip(maps[[Channel.HEIGHT, Channel.WIDTH]][:, y, x].T, 0, 7))
    centres = np.stack([y, x], axis=1) * STRIDE + STRIDE / 2
    kept: list[int] = []
    for number in range(len(y)):  # two peaks of one character are nearer than its size
        if kept:
            away = np.abs(centres[kept] - centres[number]) / np.maximum(np.minimum(sizes[kept], sizes[number]), 4)
            if (away.max(axis=1) < NEAREST_CENTRE).any():
                continue
        kept.append(number)
    return centres[kept].astype(np.float32), sizes[kept].astype(np.float32), heat[y, x][kept]


def usual_height(sizes: Floats, heat: Floats) -> float:
    """The median height of characters, in pixels, the larger and the surer ones counting for more."""
    size = np.maximum(sizes[:, 0], sizes[:, 1] / 2)
    order = np.argsort(size)
    weights = np.cumsum((heat * size**2)[order])
    return float(size[order][int(np.searchsorted(weights, weights[-1] / 2))])


def scaled(picture: Image.Image, scale: float) -> Bytes:
    """An RGB picture at another scale, uint8 [H, W, 3]."""
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return np.asarray(picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC))


def find(picture: Bytes) -> Finding | None:
    """The characters of a picture, uint8 [H, W, 3]; None where it shows none."""
    image = Image.fromarray(picture)
    longer, shorter = max(image.size), min(image.size)
    scale = FIRST_SIDE / longer if longer > SMALL_SIDE else max(1.0, FIRST_HEIGHT / shorter)
    scale = min(scale, FIRST_SIDE / longer, MOST_ENLARGED)
    largest = min(MOST_ENLARGED, math.sqrt(MOST_PIXELS / (longer * shorter)))
    best: tuple[float, float, Floats] | None = None
    seen: list[float] = []
    while len(seen) < MOST_LOOKS:
        maps = network_maps(scaled(image, scale))
        seen.append(scale)
        _, sizes, heat = peaks(maps)
        height = usual_height(sizes, heat) if len(heat) else 0.0
        if height:
            off = abs(math.log(height / BEST_HEIGHT))
            if best is None or off < best[0]:
                best = off, scale, maps
            if FITS[0] <= height / BEST_HEIGHT <= FITS[1]:
                break
        if height:
            following = min(largest, scale * min(BEST_HEIGHT / height, MOST_NEARER))
        else:  # characters may be too small to be seen; in what is enlarged, noise would look like some
            following = min(max(scale, 1.0), scale * NEARER)
        if any(abs(following / other - 1) < SAME_SCALE for other in seen):
            break
        scale = following
    # A pattern may look like one huge character, but not at the scale that characters are best seen at.
    return None if best is None or best[0] > math.log(MOST_OFF_SCALE) else described(best[2], best[1])


def described(maps: Floats, scale: float) -> Finding | None:
    """What the network's maps of a picture at a scale say; None where they show no character."""
    centres, sizes, heat = peaks(maps)
    _, rows, columns = maps.shape
    quarters = sigmoid(maps[Channel.INK : Channel.INK + STRIDE * STRIDE]).reshape(STRIDE, STRIDE, rows, columns)
    ink = np.ascontiguousarray(quarters.transpose(2, 0, 3, 1)).reshape(rows * STRIDE, columns * STRIDE)
    strokes = ink > STROKE
    owner = adopt(owners(maps, strokes, centres, sizes), strokes)
    areas = np.bincount(owner.ravel(), minlength=len(centres) + 1)[1:]
    rules = sigmoid(maps[Channel.RULES])
    labels = owner[::STRIDE, ::STRIDE]
    real = areas > np.maximum(LEAST_STROKE, LEAST_FILLED * sizes.prod(axis=1))
    bars = sizes[:, 1] < NARROW_BAR * sizes[:, 0]
    high = bars & (sizes[:, 0] > HIGH * np.median(sizes[~bars, 0])) if not bars.all() else bars
    real &= mean_of(rules, labels, len(centres)) < np.where(high, HIGH_RULE, ANY_RULE)
    if not real.any():
        return None
    owner = np.concatenate([[0], np.where(real, np.cumsum(real), 0)]).astype(np.int32)[owner]
    joined = sigmoid(maps[Channel.JOINED])[strokes[::STRIDE, ::STRIDE]]
    script = float((joined > 0.5).mean()) if joined.size else 0.0
    return Finding(ink, centres[real], sizes[real], heat[real], owner, rules, script, scale)


def mean_of(values: Floats, labels: NDArray[np.int32], count: int) -> Floats:
    """The means of values, [H, W], over the pixels of the numbers from 1 on; 0 for one without."""
    counts = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    sums = np.bincount(labels.ravel(), values.ravel(), minlength=count + 1)[1:]
    return np.asarray(sums / np.maximum(counts, 1), np.float32)


def owners(maps: Floats, strokes: Mask, centres: Floats, sizes: Floats) -> NDArray[np.int32]:
    """For each pixel of a stroke, bool [H, W], the number of its character, int32 [H, W]; 0 for none.

    It is the one whose centre is nearest to where the network says that the pixel's centre is, in shares of its size.
    """
    owner = np.zeros(strokes.shape, np.int32)
    y, x = np.nonzero(strokes)
    ways = maps[[Channel.DOWN, Channel.RIGHT]][:, y // STRIDE, x // STRIDE].T * WAY_UNIT
    aims = np.stack([y, x], axis=1) + ways
    best = np.full(len(y), LONGEST_WAY, np.float32)
    for number, (centre, size) in enumerate(zip(centres, sizes, strict=True), start=1):
        reach = np.maximum(size, 0.5 * size.max())
        rows = slice(*np.searchsorted(y, [centre[0] - 1.2 * reach[0], centre[0] + 1.2 * reach[0]]))
        away = (np.abs(aims[rows] - centre) / reach).max(axis=1)
        nearer = away < best[rows]
        best[rows][nearer] = away[nearer]
        owner[y[rows][nearer], x[rows][nearer]] = number
    return owner


def adopt(owner: NDArray[np.int32], strokes: Mask) -> NDArray[np.int32]:
    """The owners of all strokes, int32 [H, W], where what belongs to nobody goes to whom it touches most."""
    free, count = ndimage.label(strokes & (owner == 0), np.ones((3, 3)))
    if not count:
        return owner
    owner, near = owner.copy(), ndimage.maximum_filter(owner, 3)
    for number, place in enumerate(ndimage.find_objects(free), start=1):
        own = free[place] == number
        touching = near[place][own]
        if (touching := touching[touching > 0]).size:
            owner[place][own] = np.bincount(touching).argmax()
    return owner
