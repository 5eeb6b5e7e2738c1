"""Pictures of every kind come out in EMNIST's form, or are refused for what they are."""

import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw
from scipy import ndimage

from glyphs.core.errors import GlyphError, PictureError
from glyphs.data.idx import read_idx
from glyphs.pictures.decode import MAX_PIXELS, Source, open_picture, to_grey
from glyphs.pictures.find import PictureFolder
from glyphs.pictures.glyph import Glyph, preprocess
from glyphs.pictures.plain import InputForm
from tests.conftest import refused
from tests.small import declared_png

DATA_DIR = os.environ.get("GLYPH_DATA_DIR")
needs_data = pytest.mark.skipif(not DATA_DIR, reason="set GLYPH_DATA_DIR to the folder with EMNIST and photos")

Strokes = list[list[tuple[float, float]]]
SEVEN: Strokes = [[(0.2, 0.1), (0.8, 0.1), (0.4, 0.9)]]
LETTER_I: Strokes = [[(0.5, 0.35), (0.5, 0.95)]]
EQUALS: Strokes = [[(0.1, 0.35), (0.9, 0.35)], [(0.1, 0.65), (0.9, 0.65)]]
LETTER_H: Strokes = [[(0.2, 0.1), (0.2, 0.9)], [(0.8, 0.1), (0.8, 0.9)], [(0.2, 0.5), (0.8, 0.5)]]


def draw(strokes: Strokes, size: int = 100, width: int = 9, page: int = 200, at: tuple[int, int] = (50, 50)) -> Any:
    """Strokes in black on a white page, mode L."""
    picture = Image.new("L", (page, page), 255)
    pen = ImageDraw.Draw(picture)
    for stroke in strokes:
        points = [(at[0] + x * size, at[1] + y * size) for x, y in stroke]
        pen.line(points, fill=0, width=width, joint="curve")
        for x, y in points:
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=0)
    return picture


def with_dot(picture: Any, x: float, y: float, radius: float) -> Any:
    ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=0)
    return picture


def pixels_of(source: Source) -> NDArray[np.uint8]:
    glyph = preprocess(source)
    assert glyph.status == "ok"
    assert glyph.pixels is not None
    assert glyph.pixels.shape == (28, 28)
    assert glyph.pixels.dtype == np.uint8
    return glyph.pixels


def likeness(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """The correlation of two images, 1 where they are the same up to brightness."""
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def stroke_width(pixels: NDArray[np.uint8]) -> float:
    """The mean width of the strokes in pixels: four times the mean depth of the ink."""
    ink = ndimage.zoom(pixels.astype(float), 4, order=1) > 127
    return float(ndimage.distance_transform_edt(ink)[ink].mean())


def parts(pixels: NDArray[np.uint8]) -> int:
    return int(ndimage.label(pixels > 127, np.ones((3, 3)))[1])


EXPECTED = pixels_of(draw(SEVEN))


def test_the_drawing_has_emnists_form() -> None:
    rows, columns = (np.flatnonzero((EXPECTED > 0).any(axis)) for axis in (1, 0))
    assert 24 <= np.ptp(rows) + 1 <= 26
    assert abs(rows[0] + rows[-1] - 27) <= 1
    assert abs(columns[0] + columns[-1] - 27) <= 1
    assert EXPECTED.max() > 250
    assert EXPECTED[4, 10:18].min() > 100  # the bar of the seven is at the top: upright, not transposed
    assert 2.5 < stroke_width(EXPECTED) < 4.5


# ---- Every kind of picture ----


def rgba(picture: Any, ink: int, seen_through: bool = True) -> Any:
    """The drawing in one colour, its paper transparent."""
    alpha = picture.point(lambda value: 255 - value)
    return Image.merge("RGBA", [Image.new("L", picture.size, ink)] * 3 + [alpha])


def transparent_palette(picture: Any) -> Any:
    paletted = picture.convert("P")
    paletted.info["transparency"] = 255
    return reopened(paletted, "PNG", transparency=255)


def reopened(picture: Any, form: str, **options: Any) -> Any:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return Image.open(buffer)


def rotated_by_exif(picture: Any) -> Any:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be shown turned clockwise by 90 degrees
    return reopened(picture.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=95)


KINDS: dict[str, Callable[[Any], Source]] = {
    "1 bit": lambda picture: picture.convert("1"),
    "RGB": lambda picture: picture.convert("RGB"),
    "RGBA": lambda picture: rgba(picture, 0),
    "white on nothing": lambda picture: rgba(picture, 255),
    "LA": lambda picture: rgba(picture, 0).convert("LA"),
    "palette": lambda picture: picture.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE),
    "transparent palette": transparent_palette,
    "CMYK": lambda picture: picture.convert("RGB").convert("CMYK"),
    "16 bits": lambda picture: reopened(Image.fromarray(np.asarray(picture).astype(np.uint16) * 257), "PNG"),
    "32 bits": lambda picture: picture.convert("I"),
    "floats to 255": lambda picture: picture.convert("F"),
    "EXIF": rotated_by_exif,
    "JPEG": lambda picture: reopened(picture, "JPEG", quality=60),
    "uint8 array": lambda picture: np.asarray(picture),
    "uint8 array [H, W, 1]": lambda picture: np.asarray(picture)[:, :, None],
    "uint8 array [H, W, 3]": lambda picture: np.asarray(picture.convert("RGB")),
    "uint8 array [H, W, 4]": lambda picture: np.asarray(picture.convert("RGBA")),
    "uint16 array": lambda picture: np.asarray(picture).astype(np.uint16) * 257,
    "bool array": lambda picture: np.asarray(picture) > 127,
    "float array": lambda picture: np.asarray(picture) / 255,
    "float array [H, W, 3]": lambda picture: np.asarray(picture.convert("RGB"), np.float32) / 255,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_gives_the_same_glyph(kind: str) -> None:
    assert likeness(pixels_of(KINDS[kind](draw(SEVEN))), EXPECTED) > 0.98


def test_a_path_a_file_and_an_image_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "seven.png"
    draw(SEVEN).save(path)
    for source in (path, str(path), io.BytesIO(path.read_bytes()), Image.open(path)):
        np.testing.assert_array_equal(pixels_of(source), EXPECTED)


def test_grey_keeps_8_bits_exactly() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(np.rint(to_grey(Image.fromarray(ramp)) * 255), ramp)


@pytest.mark.parametrize("value", [0, 1])
def test_transparency_lies_on_the_backdrop_that_shows_it(value: int) -> None:
    grey = to_grey(rgba(draw(SEVEN), 255 * value))
    assert grey[0, 0] == 1 - value
    assert abs(grey[60, 100] - value) < 0.01


def test_a_huge_picture_is_shrunk_first() -> None:
    assert max(to_grey(Image.new("L", (6000, 3000))).shape) <= 3200


# ---- Light, ink and dirt ----


def test_polarity_comes_from_the_border() -> None:
    inverted = 255 - np.asarray(draw(SEVEN))
    np.testing.assert_array_equal(pixels_of(inverted), EXPECTED)


@pytest.mark.parametrize("inverted", [False, True])
def test_uneven_light_is_removed(inverted: bool) -> None:
    grey = np.asarray(draw(SEVEN), np.float32) / 255
    if inverted:
        grey = 1 - grey
    y, x = np.mgrid[0:1:200j, 0:1:200j]
    lit = (0.25 + 0.6 * grey) * (1 - 0.6 * (x + y) / 2)
    assert likeness(pixels_of(lit), EXPECTED) > 0.95


def test_noise_and_faint_pencil_do_not_hide_the_glyph() -> None:
    rng = np.random.default_rng(0)
    faint = 0.8 - 0.25 * (1 - np.asarray(draw(SEVEN)) / 255) + rng.normal(0, 0.02, (200, 200))
    assert likeness(pixels_of(np.clip(faint, 0, 1)), EXPECTED) > 0.95


@pytest.mark.parametrize("at", [(0, 0), (95, 10), (10, 95)])
def test_place_and_size_on_the_page_do_not_matter(at: tuple[int, int]) -> None:
    assert likeness(pixels_of(draw(SEVEN, at=at)), EXPECTED) > 0.95
    assert likeness(pixels_of(draw(SEVEN, size=60, width=5, page=1500, at=at)), EXPECTED) > 0.93


def test_thin_and_thick_strokes_come_out_alike() -> None:
    widths = [stroke_width(pixels_of(draw(SEVEN, size=300, width=width, page=500))) for width in (6, 90)]
    assert 4 * widths[1] / widths[0] < 90 / 6
    assert 2 < widths[0] < widths[1] < 6.5


def test_the_dot_of_an_i_is_kept() -> None:
    assert parts(pixels_of(with_dot(draw(LETTER_I), 100, 62, 6))) == 2
    assert parts(pixels_of(with_dot(draw(LETTER_I), 118, 62, 6))) == 2  # not quite above


def test_parts_above_each_other_are_one_glyph() -> None:
    assert parts(pixels_of(draw(EQUALS))) == 2


@pytest.mark.parametrize(("x", "y", "radius"), [(20, 130, 3), (180, 180, 4), (100, 5, 3), (195, 100, 9), (30, 30, 1)])
def test_specks_are_dropped(x: float, y: float, radius: float) -> None:
    assert likeness(pixels_of(with_dot(draw(SEVEN), x, y, radius)), EXPECTED) > 0.99


# ---- Lines that are not of the glyph ----


@pytest.mark.parametrize("shade", [190, 0])
@pytest.mark.parametrize("sides", ["top", "left", "top right", "top bottom left right"])
@pytest.mark.parametrize("inside", [0, 12])
def test_the_lines_of_a_forms_box_are_dropped(shade: int, sides: str, inside: int) -> None:
    cell = draw(SEVEN)
    pen = ImageDraw.Draw(cell)
    near, far = inside, 199 - inside
    for side in sides.split():
        ends = {"top": (0, near, 199, near), "bottom": (0, far, 199, far), "left": (near, 0, near, 199)}
        pen.line(ends.get(side, (far, 0, far, 199)), fill=shade, width=5)
    assert likeness(pixels_of(cell), EXPECTED) > 0.97
    small = cell.resize((25, 25), Image.Resampling.BOX)
    assert likeness(pixels_of(small), pixels_of(draw(SEVEN).resize((25, 25), Image.Resampling.BOX))) > 0.95


def test_strokes_that_run_from_edge_to_edge_are_kept() -> None:
    letter_t: Strokes = [[(-0.1, 0.05), (1.1, 0.05)], [(0.5, 0.05), (0.5, 1.1)]]
    pixels = pixels_of(draw(letter_t, page=110, at=(5, 5)))
    assert np.count_nonzero(pixels[3:7].max(axis=0) > 127) > 20  # the bar of the T


@pytest.mark.parametrize("shade", [170, 120])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("climb", [0, 4])
def test_ruled_and_squared_paper_is_no_part_of_the_glyph(shade: int, squared: bool, climb: int) -> None:
    page = draw(SEVEN)
    pen = ImageDraw.Draw(page)
    for place in range(10, 200, 33):
        pen.line((0, place, 199, place + climb), fill=shade, width=2)
        if squared:
            pen.line((place - climb, 0, place, 199), fill=shade, width=2)
    assert likeness(pixels_of(page), EXPECTED) > 0.85


@pytest.mark.parametrize("page", [255, 0])
@pytest.mark.parametrize("paper", [110, 150, 190, 220])
def test_a_photograph_pasted_on_a_page_is_looked_into(page: int, paper: int) -> None:
    picture = Image.new("L", (600, 500), page)
    picture.paste(draw(SEVEN).point(lambda value: value * paper // 255), (150, 120))
    assert likeness(pixels_of(picture), EXPECTED) > 0.95


def test_a_glyph_of_boxes_is_no_photograph() -> None:
    box: Strokes = [[(0.1, 0), (0.9, 0), (0.9, 1), (0.1, 1), (0.1, 0)], [(0.1, 0.5), (0.9, 0.5)]]
    for width in (4, 12, 20, 26):
        pixels = pixels_of(draw(box, width=width))
        assert pixels[13:15, 10:18].min() > 100  # the bar
        assert pixels[8, 12:16].max() < 60  # the upper box is empty


# ---- What is in EMNIST's form already ----


def test_emnists_form_passes_through(tmp_path: Path) -> None:
    path = tmp_path / "seven.png"
    Image.fromarray(EXPECTED).save(path)
    np.testing.assert_array_equal(pixels_of(path), EXPECTED)
    np.testing.assert_array_equal(pixels_of(np.stack([EXPECTED] * 3, axis=-1)), EXPECTED)
    np.testing.assert_array_equal(pixels_of(255 - EXPECTED), EXPECTED)


def test_mnists_form_does_not_pass_through() -> None:
    mnist = np.pad(np.asarray(Image.fromarray(EXPECTED[1:-1, 1:-1]).resize((20, 20))), 4)
    pixels = pixels_of(mnist)
    assert np.count_nonzero((pixels > 0).any(1)) >= 24


def test_a_drawing_of_28_pixels_does_not_pass_through() -> None:
    paint = Image.new("L", (28, 28), 255)
    ImageDraw.Draw(paint).line([(5, 2), (20, 2), (11, 25)], fill=0)  # in EMNIST's place and size, by a one-pixel pen
    pixels = pixels_of(paint)
    assert np.count_nonzero((pixels > 32) & (pixels < 224)) > 0.2 * np.count_nonzero(pixels >= 32)
    assert stroke_width(pixels) > 2


@pytest.mark.parametrize("inverted", [False, True])
def test_a_faint_picture_of_28_pixels_is_stretched(inverted: bool) -> None:
    faint = (EXPECTED * 0.3).astype(np.uint8)
    pixels = pixels_of(255 - faint if inverted else faint)
    assert pixels.max() == 255
    assert likeness(pixels, EXPECTED) > 0.95


@needs_data
@pytest.mark.parametrize("part", ["train", "test"])
def test_every_emnist_image_passes_through_bit_for_bit(part: str) -> None:
    path = Path(str(DATA_DIR)) / "EMNIST" / "raw" / f"emnist-balanced-{part}-images-idx3-ubyte.gz"
    images = read_idx(path, 3).transpose(1, 2).numpy()
    for image in images[:: 1 if part == "test" else 40]:
        assert np.array_equal(pixels_of(image), image)


# ---- Refusals ----


def noise(sigma: float) -> NDArray[np.float64]:
    field = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(200, 200)), sigma)
    return np.asarray(np.clip(0.5 + 0.2 * field / field.std(), 0, 1))


def ramp() -> NDArray[np.float64]:
    y, x = np.mgrid[0:1:200j, 0:1:200j]
    return np.asarray(0.9 - 0.4 * x - 0.2 * y)


NOT_GLYPHS: dict[str, Callable[[], Any]] = {
    "white": lambda: np.full((200, 200), 255, np.uint8),
    "black": lambda: np.zeros((200, 200), np.uint8),
    "one pixel": lambda: np.zeros((1, 1), np.uint8),
    "a line of pixels": lambda: np.zeros((1, 50), np.uint8),
    "gradient": ramp,
    "noisy gradient": lambda: np.clip(ramp() + np.random.default_rng(2).normal(0, 0.02, (200, 200)), 0, 1),
    "white noise": lambda: noise(0.01),
    "fine noise": lambda: noise(2),
    "coarse noise": lambda: noise(8),
    "checkerboard": lambda: np.indices((200, 200)).sum(0) // 20 % 2 == 0,
    "ruled paper": lambda: np.indices((200, 200))[0] % 30 > 2,
    "squared paper": lambda: (np.indices((200, 200)) % 30 > 2).all(0),
    "a disc": lambda: np.hypot(*(np.indices((200, 200)) - 100)) > 50,
}


@pytest.mark.parametrize("kind", NOT_GLYPHS)
def test_what_is_no_glyph_is_refused(kind: str) -> None:
    assert preprocess(NOT_GLYPHS[kind]()) == Glyph("no_glyph", None)


@pytest.mark.parametrize("gap", [0.1, 0.4])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_several_characters_are_refused(count: int, gap: float) -> None:
    word = [[(x + n * (0.7 + gap), y) for x, y in stroke] for n in range(count) for stroke in (SEVEN, LETTER_H)[n % 2]]
    picture = draw(word, size=60, width=5, page=420, at=(10, 150))
    assert preprocess(picture) == Glyph("several_glyphs", None)


def test_touching_characters_are_refused() -> None:
    zigzag = [(x / 2, 0.1 + 0.8 * (x % 2)) for x in range(9)]
    assert preprocess(draw([zigzag], size=60, width=5, page=300, at=(20, 100))).status == "several_glyphs"


def test_any_small_picture_is_answered_or_refused_without_a_warning() -> None:
    rng = np.random.default_rng(3)
    for height in range(1, 8):
        for width in range(1, 8):
            assert preprocess(rng.random((height, width))).status in ("ok", "no_glyph", "several_glyphs")


# ---- Plain ----


def test_plain_only_greys_squares_and_resizes() -> None:
    icon = np.full((40, 80), 255, np.uint8)
    icon[10:30, 30:50] = 0
    glyph = preprocess(icon, InputForm("plain"))
    assert glyph.status == "ok"
    assert glyph.pixels is not None
    assert glyph.pixels[0].min() == 255  # the paper, which stays white
    assert glyph.pixels[14, 14] == 0
    assert 0.05 < 1 - glyph.pixels.mean() / 255 < 0.08  # 400 of 6,400 pixels, neither cropped nor thinned
    assert preprocess(np.zeros((9, 9), np.uint8), InputForm("plain")).status == "ok"


# ---- Drawings ----

RING = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 10"><circle cx="5" cy="5" r="4" fill="#c00"/>%s</svg>'


def test_a_drawing_is_drawn_with_what_can_be_seen_through(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    (tmp_path / "ring.svg").write_text(RING % "")
    picture = open_picture(tmp_path / "ring.svg")
    assert (picture.size, picture.mode) == ((512, 256), "RGBA")
    assert picture.getpixel((128, 128)) == (204, 0, 0, 255)
    assert picture.getpixel((400, 128))[3] == 0  # type: ignore[index]
    assert [name for name, _ in PictureFolder(tmp_path)] == ["ring.svg"]


@pytest.mark.parametrize(
    "content",
    [
        RING % '<image href="/etc/hostname" width="9" height="9"/>',
        RING % "<image xlink:href = 'a.png'/>",
        '<!DOCTYPE svg [<!ENTITY a "b">]>' + RING % "",
        "<svg",
        "",
    ],
)
def test_a_drawing_that_leads_elsewhere_or_is_none_is_refused(content: str, tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    (tmp_path / "a.svg").write_text(content)
    with refused(PictureError, tmp_path / "a.svg"):
        open_picture(tmp_path / "a.svg")


def test_without_its_reader_a_drawing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    (tmp_path / "a.svg").write_text(RING % "")
    with refused(PictureError, tmp_path / "a.svg", "pip install resvg-py"):
        open_picture(tmp_path / "a.svg")


# ---- What cannot be read ----


def encoded(form: str) -> bytes:
    buffer = io.BytesIO()
    draw(SEVEN).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"this is no picture\n", "is not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
        (encoded("PNG")[:200], "damaged"),
        (encoded("JPEG")[:-400], "damaged"),
        (encoded("GIF")[:300], "damaged"),
        (declared_png(50_000, 50_000), "pixels"),
        (declared_png(10_000, 10_000), "pixels"),
        (declared_png(8_999, 9_000), "pixels"),
    ],
)
def test_damaged_files_are_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.png"
    path.write_bytes(content)
    for source in (path, io.BytesIO(content)) if content else (path,):
        with pytest.raises(PictureError, match=message) as caught:
            open_picture(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(GlyphError, match=r"file\.png"):
        preprocess(path)


def test_bytes_and_tensors_are_pictures_and_other_things_are_named() -> None:
    content = encoded("PNG")
    expected = np.asarray(open_picture(io.BytesIO(content)).convert("L"))
    tensor = torch.from_numpy(expected.copy())
    for source in (
        content,
        bytearray(content),
        tensor,
        tensor[None],
        tensor.expand(3, -1, -1),
        tensor[:, :, None],
        (tensor / 255).requires_grad_(),
        (tensor[None] / 255).double(),
    ):
        np.testing.assert_allclose(255 * to_grey(open_picture(source)), expected, atol=0.51)
    with pytest.raises(PictureError, match="of type NoneType: is not a picture"):
        open_picture(None)  # type: ignore[arg-type]
    with pytest.raises(PictureError, match="is not of the shape"):
        open_picture(tensor[None, None])


def test_paths_that_cannot_be_opened(tmp_path: Path) -> None:
    loop = tmp_path / "loop.png"
    loop.symlink_to(loop)
    fifo = tmp_path / "pipe.png"
    os.mkfifo(fifo)
    closed = tmp_path / "closed.png"
    closed.write_bytes(encoded("PNG"))
    closed.chmod(0)
    cases = {
        tmp_path / "missing.png": "there is no such file",
        tmp_path: "is a folder",
        loop: "symbolic links",
        fifo: "not a regular file",
        Path("zero\0byte.png"): "cannot be opened",
    }
    if os.geteuid() != 0:  # root may read everything
        cases[closed] = "Permission denied"
    for path, message in cases.items():
        with pytest.raises(PictureError, match=message):
            open_picture(path)


def test_a_name_that_is_not_utf_8_is_shown_escaped(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    with pytest.raises(PictureError, match=r"\\xff\.png: there is no such file") as caught:
        open_picture(path)
    str(caught.value).encode("utf-8")
    draw(SEVEN).save(path, "PNG")
    np.testing.assert_array_equal(pixels_of(path), EXPECTED)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (np.zeros((0, 4), np.uint8), "shape"),
        (np.zeros((4, 4), np.int64), "type"),
        (np.full((4, 4), 255.0), "outside 0 to 1"),
        (np.full((4, 4), np.nan), "outside 0 to 1"),
        (np.broadcast_to(np.uint8(0), (50_000, 50_000)), "pixels"),
    ],
)
def test_arrays_that_are_no_picture(array: NDArray[Any], message: str) -> None:
    with pytest.raises(PictureError, match=message):
        open_picture(array)


def test_pillows_own_limit_is_never_reached() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PictureError, match="pixels"):
            open_picture(io.BytesIO(declared_png(10_000, 9_500)))


# ---- Real pictures ----


@needs_data
@pytest.mark.parametrize("kind", ["photos", "drawings"])
def test_real_pictures_come_out_as_emnist_is(kind: str) -> None:
    folder = Path(str(DATA_DIR)) / kind
    paths = sorted(folder.rglob("*.png"), key=str)[:: 30 if kind == "photos" else 24]
    glyphs = [preprocess(path) for path in paths]
    images = np.stack([glyph.pixels for glyph in glyphs if glyph.pixels is not None])
    assert len(images) >= 0.98 * len(paths)
    assert 0.12 < images.mean() / 255 < 0.24  # EMNIST: 0.174
    assert 0.26 < images.std() / 255 < 0.41  # EMNIST: 0.332
    inked: NDArray[np.bool_] = np.asarray(images > 0)
    longer = np.maximum(inked.any(2).sum(1), inked.any(1).sum(1))
    assert np.isin(longer, [24, 25, 26]).mean() > 0.85
    assert np.isin(longer, range(22, 28)).all()
    for axis in (1, 2):
        line = np.asarray(inked.any(axis))
        centre = (line.argmax(1) + 27 - line[:, ::-1].argmax(1)) / 2
        assert np.abs(centre - 13.5).max() <= 0.5


def test_damaged_exif_data_do_not_cost_the_picture(tmp_path: Path) -> None:
    picture = Image.new("L", (80, 80), 255)
    ImageDraw.Draw(picture).line([(24, 20), (24, 60), (50, 60)], fill=0, width=6)
    picture.save(tmp_path / "damaged.webp", lossless=True, exif=b"Exif\0\0\xffM\0*")
    picture.save(tmp_path / "sound.webp", lossless=True)
    with Image.open(tmp_path / "damaged.webp") as opened, pytest.raises(Exception, match="TIFF"):
        opened.getexif()  # or the test shows nothing
    damaged, sound = (preprocess(tmp_path / f"{name}.webp").pixels for name in ("damaged", "sound"))
    assert damaged is not None
    assert sound is not None
    assert np.array_equal(damaged, sound)
