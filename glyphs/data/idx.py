"""Read IDX files, the format of MNIST and EMNIST (http://yann.lecun.com/exdb/mnist), plain or gzipped."""

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from glyphs.core.errors import DataError

UNSIGNED_BYTE = 0x08  # the one element type that EMNIST uses


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read a file of unsigned bytes.

    Parameters
    ----------
    path : the file; a name that ends in `.gz` is decompressed on the way.
    dimensions : how many the file must declare: 3 for images, 1 for labels.

    Returns
    -------
    uint8 tensor of the declared shape, as stored.

    Raises
    ------
    DataError : naming the file, where it cannot be read, is damaged, or is no such IDX file.
    """
    remedy = "delete it and fetch it again"
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except EOFError:
        raise DataError(f"{path}: the gzip stream is truncated; {remedy}") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the gzip stream is corrupt ({error}); {remedy}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None

    if not content:
        raise DataError(f"{path}: is empty; {remedy}")
    magic = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if content[:4] != magic:
        raise DataError(f"{path}: wrong magic number {content[:4].hex()}, expected {magic.hex()}; {remedy}")
    header = 4 + 4 * dimensions
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise DataError(f"{path}: holds {len(content):,} bytes where its header promises {expected:,}; {remedy}")
    # A bytearray, since a tensor over read-only bytes would be undefined behaviour to write to.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:].reshape(shape)
