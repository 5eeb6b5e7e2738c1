"""Reading a picture: from a file, an array or a Pillow image to its brightness."""

import contextlib
import io
import math
import os
import re
import stat
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from glyphs.core.arrays import Bytes, Floats
from glyphs.core.errors import GlyphError, PictureError
from glyphs.core.files import valid_utf8
from glyphs.core.text import first_line

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # pictures are read without torch, too


class LaterPage(NamedTuple):
    """A page of a TIFF or PDF, or a frame of a GIF: not the first, 1, which the path alone stands for."""

    path: str
    number: int


Source: TypeAlias = str | Path | LaterPage | bytes | bytearray | BinaryIO | Image.Image | NDArray[Any] | Tensor

# Reading
MAX_PIXELS = 80_000_000  # 240 MB decoded; below Pillow's own limit, so that its warning is never reached
# The formats people have pictures in.  Not all of Pillow's: its EPS reader, for one, starts Ghostscript.
PICTURE_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "ICO", "TGA", "JPEG2000")

PDF_START, PDF_DPI = b"%PDF-", 200
PDFIUM_LOCK = threading.Lock()  # PDFium is for one thread at a time
# In an SVG drawing: a reference that leads out of the file, or what can hide one.
OTHER_FILE = re.compile(r"""href\s*=\s*["'](?!\#|data:)|<!ENTITY""", re.IGNORECASE)
SVG_SIDE = 512  # pixels of a drawing's longer side

# Working sizes, in pixels
MOST_SIDE = 1600  # what is larger is shrunk by a whole factor first, so that time and memory stay bounded


# ---- Reading ----


def open_picture(source: Source) -> Image.Image:
    """Open a picture, decode all of it, and turn it as its EXIF orientation says.

    Parameters
    ----------
    source : a path, whose first page is opened, a later page, a binary file, what such a file holds (bytes), a Pillow
        image, an array [H, W] or [H, W, 1, 3 or 4], or a tensor [H, W] or [1, 3 or 4, H, W]; both of bool, uint8,
        uint16, or floats from 0 to 1.  A PDF is opened by its path only.

    Raises
    ------
    PictureError : naming the file, where there is none, it cannot be read, is no picture, is damaged, or has more
        than `MAX_PIXELS` pixels (known from the header, before anything is decoded).
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    number = 1
    if isinstance(source, LaterPage):
        source, number = source
    if isinstance(source, str | Path):
        name = shown_name(source) + (f"#{number}" if number > 1 else "")
        try:
            status = os.stat(source)  # noqa: PTH116 - a Path object would cost a tenth of the whole
            if not stat.S_ISREG(status.st_mode):
                if stat.S_ISDIR(status.st_mode):
                    raise PictureError(f"{name}: is a folder; give the path of a picture, or the folder to --batch")
                raise PictureError(f"{name}: is not a regular file; give the path of a picture")
            if status.st_size == 0:
                raise PictureError(f"{name}: is empty (zero bytes)")
            if str(source).lower().endswith(".svg"):
                return draw_svg(Path(source), name)
            with open(source, "rb") as file:  # noqa: PTH123
                if is_pdf(file):
                    return _render_pdf(file, number, name)
                return _decode(file, name, number)
        except FileNotFoundError:
            raise PictureError(f"{name}: there is no such file") from None
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
            raise PictureError(f"{name}: cannot be opened ({getattr(error, 'strerror', None) or error})") from None
    if isinstance(source, Image.Image):
        _refuse_bomb(source.size, "the picture")
        return _loaded(source, "the picture")
    if isinstance(source, bytes | bytearray):
        return _decode(io.BytesIO(source), "the picture")
    if hasattr(source, "requires_grad"):  # a tensor, told without an import of torch
        return _from_tensor(cast(Tensor, source))
    if not hasattr(source, "read"):
        raise PictureError(
            f"an object of type {type(source).__name__}: is not a picture; give a path, an open file, its bytes, a "
            "Pillow image, an array or a tensor"
        )
    return _decode(source, str(getattr(source, "name", "the picture")))


def draw_svg(path: Path, name: str) -> Image.Image:
    """The picture of an SVG drawing, its longer side `SVG_SIDE` pixels, where resvg-py is installed.

    Only of a file of the user's own, not of what a service is sent: drawing can take any time.

    Raises
    ------
    PictureError : it is not installed, the drawing is damaged, or it refers to other files.
    """
    try:
        import resvg_py
    except ImportError:
        raise PictureError(f"{name}: is an SVG drawing: pip install resvg-py, or save it as PNG") from None
    content = path.read_text(encoding="utf-8", errors="replace")
    if OTHER_FILE.search(content):
        raise PictureError(f"{name}: refers to other files, or has entities; save it as PNG")
    try:
        drawn = resvg_py.svg_to_bytes(
            svg_string=content, width=SVG_SIDE, height=SVG_SIDE, skip_system_fonts="<text" not in content
        )
    except ValueError as error:
        raise PictureError(f"{name}: is not an SVG drawing, or is damaged ({first_line(error)})") from None
    return _decode(io.BytesIO(bytes(drawn)), name)


def shown_name(source: Source) -> str:
    """What messages call a picture."""
    if isinstance(source, LaterPage):
        return f"{valid_utf8(source.path)}#{source.number}"
    return valid_utf8(os.fspath(source)) if isinstance(source, str | Path) else "the picture"


@contextlib.contextmanager
def explain_fault(name: str) -> Iterator[None]:
    """Turn a fault of this program that a picture brings out into a PictureError that describes it.

    One picture is no reason to end the work on a million others.
    """
    try:
        yield
    except GlyphError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise PictureError(
            f"{name}: this program has a fault that the picture brings out, please report it: "
            f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno}, in {place.name})"
        ) from error


def count_pages(path: str | Path) -> int:
    """How many pages, or frames, a file has; 1 where that cannot be told, which opening it will explain."""
    with contextlib.suppress(Exception), open(path, "rb") as file:  # noqa: PTH123 - Pillow's readers raise anything
        if is_pdf(file):
            with PDFIUM_LOCK, contextlib.closing(_open_pdf(file)) as pdf:
                return len(pdf)
        with Image.open(file, formats=PICTURE_FORMATS) as picture:
            return int(getattr(picture, "n_frames", 1))
    return 1


def is_pdf(file: BinaryIO) -> bool:
    """Whether an open file, at its start, is a PDF."""
    start = file.read(len(PDF_START))
    file.seek(0)
    return start == PDF_START


def _open_pdf(file: BinaryIO) -> Any:
    import pypdfium2

    return pypdfium2.PdfDocument(file)


def _render_pdf(file: BinaryIO, number: int, name: str) -> Image.Image:
    """A page of an open PDF as it would be printed at PDF_DPI."""
    try:
        with PDFIUM_LOCK, contextlib.closing(_open_pdf(file)) as pdf:
            page = pdf[number - 1]
            scale = PDF_DPI / 72
            width, height = (math.ceil(scale * side) for side in page.get_size())
            _refuse_bomb((width, height), name)
            picture: Image.Image = page.render(scale=scale).to_pil()
            return picture.convert("RGB")
    except ImportError:
        raise PictureError(f"{name}: to read a PDF needs pypdfium2: pip install pypdfium2") from None
    except PictureError:
        raise
    except Exception as error:
        raise PictureError(f"{name}: cannot be read as a PDF ({error})") from None


def _decode(file: BinaryIO, name: str, number: int = 1) -> Image.Image:
    try:
        picture = Image.open(file, formats=PICTURE_FORMATS)
        if number > 1:
            picture.seek(number - 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise PictureError(f"{name}: has more than {MAX_PIXELS:,} pixels; shrink it first") from None
    except UnidentifiedImageError:
        raise PictureError(f"{name}: is not a picture ({', '.join(PICTURE_FORMATS)}), or its head is damaged") from None
    except Exception as error:  # Pillow's readers raise whatever the damage happens to trigger
        raise PictureError(f"{name}: is damaged ({error})") from None
    _refuse_bomb(picture.size, name)
    return _loaded(picture, name)


def _refuse_bomb(size: tuple[int, int], name: str) -> None:
    if math.prod(size) > MAX_PIXELS:
        raise PictureError(f"{name}: has {size[0]:,} x {size[1]:,} pixels, more than {MAX_PIXELS:,}; shrink it first")


def _loaded(picture: Image.Image, name: str) -> Image.Image:
    try:
        picture.load()
    except Exception as error:  # as above
        raise PictureError(f"{name}: is truncated or damaged ({error})") from None
    # Damaged EXIF data raise anything, and are no reason to refuse a picture that could be decoded.
    with contextlib.suppress(Exception):
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(picture)
    return picture


def _from_tensor(tensor: Tensor) -> Image.Image:
    """The picture of a tensor, whose channels come first."""
    if tensor.ndim == 3 and tensor.shape[0] in (1, 3, 4):
        tensor = tensor.movedim(0, -1)
    tensor = tensor.detach().cpu()
    return _from_array((tensor.float() if tensor.is_floating_point() else tensor).numpy())


def _from_array(array: NDArray[Any]) -> Image.Image:
    name = f"the array of {array.dtype} {list(array.shape)}"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise PictureError(f"{name}: is not of the shape [H, W] or [H, W, 1, 3 or 4]")
    _refuse_bomb((array.shape[1], array.shape[0]), name)
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = array / np.float32(65535)
    elif array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise PictureError(f"{name}: has values outside 0 to 1")
    elif array.dtype != np.uint8:
        raise PictureError(f"{name}: is not of the type bool, uint8, uint16 or float")
    if array.dtype != np.uint8:
        array = np.rint(array * 255).astype(np.uint8) if array.ndim == 3 else array.astype(np.float32)
    return Image.fromarray(np.ascontiguousarray(array))


def plain_copy(picture: Image.Image) -> Image.Image:
    """The pixels of an open picture alone, as L, RGB or RGBA of 8 bits: what `to_grey` sees of it, and any program.

    Where and when it was taken, its palette and its depth are left out.
    """
    if picture.mode.startswith("I") or picture.mode == "F":
        picture = Image.fromarray(np.rint(255 * _deep_grey(picture)).astype(np.uint8))
    elif picture.has_transparency_data:
        picture = picture.convert("RGBA")
    elif picture.mode in ("1", "L"):
        picture = picture.convert("L")
    else:
        picture = picture.convert("RGB")
    return Image.fromarray(np.asarray(picture))


def shrink_factor(size: tuple[int, int]) -> int:
    """The whole factor by which `to_grey` shrinks a picture of so many pixels."""
    return max(1, max(size) // MOST_SIDE)


def to_grey(picture: Image.Image) -> Floats:
    """The brightness of an open picture, float32 [H, W] from 0 (black) to 1.

    Transparency is laid on white, or on black where all that can be seen is light.  8-bit greys come out as v / 255
    exactly.  What is twice as large as `MOST_SIDE` or more is shrunk.
    """
    factor = shrink_factor(picture.size)
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = _deep_grey(picture)
        return grey if factor == 1 else np.asarray(Image.fromarray(grey).reduce(factor))
    transparent = picture.has_transparency_data
    if transparent:
        picture = picture.convert("RGBA")
    elif picture.mode not in ("L", "RGB"):
        # CMYK and the rarer colour spaces reach grey only by way of RGB.
        picture = picture.convert("L" if picture.mode in ("1", "P") else "RGB")
    if factor > 1:
        picture = picture.reduce(factor)
    if not transparent:
        return np.asarray(picture.convert("L"), dtype=np.float32) / np.float32(255)
    grey, cover = (np.asarray(band, dtype=np.float32) / np.float32(255) for band in picture.convert("LA").split())
    flat: Floats = grey * cover + _backdrop(grey, cover) * (1 - cover)
    return flat


def to_colour(picture: Image.Image) -> Bytes:
    """The colours of an open picture, uint8 [H, W, 3].

    Transparency, 16-bit pictures and what is larger than `MOST_SIDE` are treated as `to_grey` treats them.
    """
    if picture.mode.startswith("I") or picture.mode in ("F", "L", "1", "LA"):
        return grey_to_colour(to_grey(picture))
    factor = shrink_factor(picture.size)
    transparent = picture.has_transparency_data
    if picture.mode != "RGB" or transparent:
        picture = picture.convert("RGBA" if transparent else "RGB")
    if factor > 1:
        picture = picture.reduce(factor)
    if not transparent:
        return np.asarray(picture)
    cover = np.asarray(picture.getchannel("A"), dtype=np.float32) / np.float32(255)
    grey = np.asarray(picture.convert("LA").getchannel("L"), dtype=np.float32) / np.float32(255)
    colours = np.asarray(picture)[:, :, :3] * cover[:, :, None] + 255 * _backdrop(grey, cover) * (1 - cover[:, :, None])
    return np.asarray(np.rint(colours), np.uint8)


def grey_to_colour(grey: Floats) -> Bytes:
    """A brightness, float32 [H, W] from 0 to 1, as colours, uint8 [H, W, 3]."""
    values = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
    return np.repeat(values[:, :, None], 3, axis=2)


def _backdrop(grey: Floats, cover: Floats) -> np.float32:
    """What a transparent picture is laid on: black where all that can be seen of it is light, else white."""
    seen = grey[cover > 0.5]
    return np.float32(0 if cover.min() < 0.5 and seen.size and seen.min() > 0.5 else 1)


def _deep_grey(picture: Image.Image) -> Floats:
    """The brightness of a picture of 16 or 32 bits, whose white is 65535, or for floats and ints what fits them."""
    values = np.nan_to_num(np.asarray(picture, dtype=np.float32))
    brightest = 65535 if picture.mode.startswith("I;") else float(values.max())
    white = next((white for white in (1, 255, 65535) if brightest <= white), brightest)
    grey: Floats = np.clip(values / np.float32(white), 0, 1)
    return grey
