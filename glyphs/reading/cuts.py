"""Whether ink is a character, or was cut wrongly: an answer that the network of characters does not give.

Half of an m looks like an n or an r.  That it is none is seen from the ink beside it, which a small network looks at:
two convolutions and two layers more, which NumPy computes, so that it needs neither torch nor onnxruntime.
`recipes/cuts.py` trained it, on lines made of EMNIST's characters that touch each other.
"""

import functools
import io
import math
import zlib
from zipfile import BadZipFile

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from glyphs.core.arrays import Bytes, Floats, Mask
from glyphs.core.errors import CheckpointError
from glyphs.core.files import pretrained_folder
from glyphs.pictures.lines import Box, Piece

VIEW_SIDE = 32  # pixels of what it sees
VIEW_HEIGHTS = 2.4  # heights of the line that these show
CONV_STRIDE = 2  # of its convolutions
CACHE_BATCH = 64  # candidates at once: their values stay in the processor's cache


def draw_candidate(piece: Piece, height: float, line: Piece) -> Bytes:
    """What the network sees, uint8 [2, 32, 32]: the piece's own ink, and that of its line around it.

    Parameters
    ----------
    height : of the line.
    line : all of its pieces as one.
    """
    own, half = piece.box, VIEW_HEIGHTS * height / 2
    y, x = (own.top + own.bottom) / 2, (own.left + own.right) / 2
    frame = Box(math.floor(y - half), math.floor(x - half), math.ceil(y + half), math.ceil(x + half))
    seen = np.stack([inside(frame, own, piece.mask), inside(frame, line.box, line.mask)])
    shrunk = [
        Image.fromarray(255 * layer.view(np.uint8)).resize((VIEW_SIDE, VIEW_SIDE), Image.Resampling.BOX)
        for layer in seen
    ]
    return np.stack([np.asarray(layer) for layer in shrunk])


def inside(frame: Box, box: Box, mask: Mask) -> Mask:
    """What a frame shows, bool, of a box's mask."""
    shown = np.zeros((frame.height, frame.width), dtype=bool)
    top, left = max(frame.top, box.top), max(frame.left, box.left)
    bottom, right = min(frame.bottom, box.bottom), min(frame.right, box.right)
    if top < bottom and left < right:
        part = mask[top - box.top : bottom - box.top, left - box.left : right - box.left]
        shown[top - frame.top : bottom - frame.top, left - frame.left : right - frame.left] = part
    return shown


def character_odds(seen: Bytes) -> NDArray[np.float64]:
    """The logarithms of the odds that candidates are characters, float [N], from views of uint8 [N, 2, 32, 32]."""
    starts = range(0, len(seen), CACHE_BATCH)
    return np.concatenate([odds_of(seen[start : start + CACHE_BATCH]) for start in starts])


def odds_of(seen: Bytes) -> NDArray[np.float64]:
    """As `character_odds`, of so many as are computed at once."""
    weights = load_weights()
    values: Floats = seen.astype(np.float32).transpose(0, 2, 3, 1) / np.float32(255)
    for number in (0, 1):
        kernel = weights[f"kernel{number}"]  # float [K, K, channels, channels of the answer]
        windows = sliding_window_view(values, kernel.shape[:2], axis=(1, 2))[:, ::CONV_STRIDE, ::CONV_STRIDE]
        patches = windows.transpose(0, 1, 2, 4, 5, 3)
        flat = patches.reshape(-1, math.prod(kernel.shape[:3])) @ kernel.reshape(-1, kernel.shape[3])
        values = np.maximum(flat + weights[f"bias{number}"], 0, dtype=np.float32).reshape(*patches.shape[:3], -1)
    values = np.maximum(values.reshape(len(seen), -1) @ weights["kernel2"] + weights["bias2"], 0)
    odds: NDArray[np.float64] = (values @ weights["kernel3"] + weights["bias3"])[:, 0].astype(np.float64)
    return odds


@functools.cache
def load_weights() -> dict[str, Floats]:
    """The weights in the box.  Raises CheckpointError where they are missing or damaged."""
    path = pretrained_folder() / "cuts.npz"
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return {name: file[name].astype(np.float32) for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); install the project again") from None
