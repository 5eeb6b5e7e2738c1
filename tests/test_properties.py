"""What holds of every picture, whatever its size, shape and content: Hypothesis looks for one of which it does not."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import glyphs.pictures.glyph
from glyphs.core.arrays import Bytes
from glyphs.core.errors import PictureError
from glyphs.data.folder import prepare
from glyphs.pictures.glyph import preprocess
from glyphs.pictures.lines import Page, find_lines
from glyphs.pictures.plain import InputForm, Mode
from glyphs.reading.predictor import GlyphPredictor
from glyphs.reading.reader import read_page
from tests.small import draw_glyph, save_small_onnx

# The same pictures in every run, as many as take seconds.
quick = settings(derandomize=True, deadline=None, database=None, max_examples=300)

SIDES = st.integers(1, 6) | st.integers(1, 60) | st.integers(1, 700)  # thin strips as well as whole pages
LEVELS = st.integers(0, 255)


@st.composite
def pictures(draw: st.DrawFn) -> NDArray[np.uint8]:
    """uint8 [H, W]: noise, a gradient or plain paper, with some rectangles of other brightness on it."""
    height, width = draw(SIDES), draw(SIDES)
    kind, level = draw(st.sampled_from(["plain", "plain", "noise", "dots", "gradient"])), draw(LEVELS)
    random = np.random.default_rng(draw(st.integers(0, 9)))
    picture = np.full((height, width), level, np.uint8)
    if kind == "noise":
        picture[:] = random.integers(0, 256, (height, width))
    elif kind == "dots":
        picture[random.random((height, width)) < 0.05] = 255 - level
    elif kind == "gradient":
        picture[:] = np.linspace(0, level, height)[:, None]
    for _ in range(draw(st.integers(0, 4))):
        top, bottom = sorted(draw(st.integers(0, height)) for _ in range(2))
        left, right = sorted(draw(st.integers(0, width)) for _ in range(2))
        picture[top:bottom, left:right] = draw(LEVELS)
    return picture


@quick
@given(pictures())
@pytest.mark.slow
def test_every_picture_is_answered_or_refused(picture: NDArray[np.uint8]) -> None:
    status, pixels, *_ = preprocess(picture)
    assert (status == "ok") == (pixels is not None)
    if pixels is not None:
        assert pixels.shape == (28, 28)
        assert pixels.dtype == np.uint8
        assert pixels.any()


@quick
@given(pictures())
def test_plain_never_refuses(picture: NDArray[np.uint8]) -> None:
    status, pixels, *_ = preprocess(picture, InputForm("plain"))
    assert status == "ok"
    assert pixels is not None
    assert pixels.shape == (28, 28)


@quick
@given(pictures(), st.sampled_from(["RGB", "RGBA", "LA", "P", "1", "I;16", "I", "F", "CMYK"]))
@pytest.mark.slow
def test_every_mode_is_answered_or_refused(picture: NDArray[np.uint8], mode: str) -> None:
    assert preprocess(Image.fromarray(picture).convert(mode)).status in ("ok", "no_glyph", "several_glyphs")


@pytest.mark.parametrize("shape", [(583, 3), (177, 3), (3, 583), (1, 1), (1, 700), (700, 1), (2, 2)])
def test_strips_are_answered_or_refused(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    for _ in range(60):
        picture = np.full(shape, 255, np.uint8)
        top, bottom = sorted(random.integers(0, shape[0] + 1, 2))
        left, right = sorted(random.integers(0, shape[1] + 1, 2))
        picture[top:bottom, left:right] = random.integers(256)
        preprocess(picture)


@pytest.fixture
def broken_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Preprocessing that divides by zero where a picture has 13 rows."""
    whole = {name: getattr(glyphs.pictures.decode, name) for name in ("to_grey", "to_colour")}

    def fault(picture: Image.Image, name: str) -> Any:
        return whole[name](picture) if picture.size[1] != 13 else 1 // 0

    for name in whole:
        monkeypatch.setattr(f"glyphs.pictures.glyph.{name}", functools.partial(fault, name=name))


FAULT = r"fault .* please report it: ZeroDivisionError: .*\(test_properties\.py, line \d+, in fault\)"


@pytest.mark.usefixtures("broken_program")
def test_a_fault_of_the_program_costs_one_picture_and_is_described(tmp_path: Path) -> None:
    Image.new("L", (20, 13)).save(tmp_path / "odd.png")
    predictor = GlyphPredictor(save_small_onnx(tmp_path / "model.onnx"))
    good, odd, last = predictor.predict_batch([draw_glyph(), tmp_path / "odd.png", draw_glyph()])
    assert [row.status for row in (good, odd, last)] == ["ok", "failed", "ok"]
    with pytest.raises(PictureError, match=rf"odd\.png: this program has a {FAULT}") as caught:
        preprocess(tmp_path / "odd.png")
    assert odd.error == str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.usefixtures("broken_program")
@pytest.mark.parametrize("mode", ["glyph", "inverted"])
def test_a_fault_of_the_program_costs_a_folder_one_picture(tmp_path: Path, mode: Mode) -> None:
    Image.new("L", (20, 13)).save(tmp_path / "odd.png")
    assert "ZeroDivisionError" in str(prepare(str(tmp_path / "odd.png"), InputForm(mode)))


def test_a_fault_of_the_program_costs_one_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: dict[str, Any] = {}

    def find(picture: Bytes) -> Page:
        return find_lines(picture) if picture.shape[0] != 13 else nothing["lines"]

    def read(page: Page, *rest: Any) -> Any:
        return read_page(page, *rest) if page.size[0] != 170 else 1 // 0

    monkeypatch.setattr("glyphs.pictures.lines.find_lines", find)
    monkeypatch.setattr("glyphs.reading.reader.read_page", read)
    sizes = {"a.png": (80, 80), "b.png": (20, 13), "c.png": (170, 100), "d.png": (80, 80)}
    for name, size in sizes.items():
        draw_glyph().resize(size).save(tmp_path / name)
    predictor = GlyphPredictor(save_small_onnx(tmp_path / "model.onnx"))
    rows = list(predictor.read_stream((name, tmp_path / name) for name in sizes))
    assert [row.status for row in rows] == ["ok", "failed", "failed", "ok"]
    for row, fault in ((rows[1], "KeyError"), (rows[2], "ZeroDivisionError")):
        assert f"{row.file}: this program has a fault" in str(row.error)
        assert fault in str(row.error)
