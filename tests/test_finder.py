"""The finder: its made pages, what it is taught, and what the network in the box finds in pictures the test draws."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps

from glyphs.core.errors import CheckpointError
from glyphs.data.demo import font_folder
from glyphs.pictures import finder
from glyphs.pictures.decode import to_colour
from glyphs.pictures.finder import STRIDE, WAY_UNIT, Finding, find
from recipes.finder import CHANNELS, DOWN, HEAT, HEIGHT, INK, RIGHT, targets
from recipes.made_pages import LEAST_VISIBLE, SIDE, Pages
from tests.conftest import ROOT

FONTS = {
    "written": [str(font_folder() / "DejaVuSans.ttf")],
    "joined": [str(font_folder() / "DejaVuSerif-Italic.ttf")],
    "printed": [str(font_folder() / "DejaVuSerif.ttf")],
}


def write(text: str, size: int = 60, tone: int = 0, paper: int = 255) -> Image.Image:
    """Characters well apart from each other."""
    font = ImageFont.truetype(font_folder() / "DejaVuSans.ttf", size)
    page = Image.new("L", (round(1.2 * size * len(text)) + size, 2 * size), paper)
    pen = ImageDraw.Draw(page)
    for place, character in enumerate(text):
        pen.text((size + 1.2 * size * place, size), character, font=font, fill=tone, anchor="mm")
    return page


def found_in(picture: Image.Image) -> Finding:
    found = find(to_colour(picture))
    assert found is not None
    return found


def middles(found: Finding) -> list[float]:
    """Where the characters are, from left to right, in shares of the picture's width."""
    return sorted((found.centres[:, 1] / found.ink.shape[1]).tolist())


@pytest.fixture(scope="module")
def pages(data_dir: Path) -> Pages:
    return Pages(data_dir, seed=1, faces=FONTS)


def test_a_page_is_a_function_of_its_seed_and_number(pages: Pages, data_dir: Path) -> None:
    one, other = pages.page(7), Pages(data_dir, seed=1, faces=FONTS).page(7)
    for first, second in zip(one, other, strict=True):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(one.image, pages.page(8).image)


def test_what_is_known_of_a_page_agrees_with_itself(pages: Pages) -> None:
    samples = [pages.page(number) for number in range(60)]
    assert sum(len(sample.boxes) == 0 for sample in samples) < 20
    for sample in samples:
        assert sample.image.shape == (SIDE, SIDE, 3)
        assert len(sample.boxes) == len(sample.printed) == len(sample.names) == sample.owner.max(initial=0)
        assert (sample.ink[sample.owner > 0] > 50).all()
        for number, (top, left, bottom, right) in enumerate(sample.boxes.tolist(), start=1):
            rows, columns = np.nonzero(sample.owner == number)
            assert (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1) == (top, left, bottom, right)
    assert 0.4 < LEAST_VISIBLE < 1


def test_the_network_is_taught_where_characters_are_and_which_ink_is_theirs(pages: Pages) -> None:
    sample = next(page for page in map(pages.page, range(100)) if len(page.boxes) == 1)
    wanted = targets(sample).astype(np.float32)
    assert wanted.shape == (CHANNELS + 3, SIDE // STRIDE, SIDE // STRIDE)
    top, left, bottom, right = sample.boxes[0].tolist()
    y, x = np.unravel_index(int(wanted[HEAT].argmax()), wanted[HEAT].shape)
    assert abs(y * STRIDE - (top + bottom) / 2) <= 2
    assert abs(x * STRIDE - (left + right) / 2) <= 2
    assert np.exp(wanted[HEIGHT, y, x]) == pytest.approx(bottom - top, rel=0.02)
    rows, columns = np.nonzero(sample.owner[::STRIDE, ::STRIDE] == 1)
    aims = np.stack([rows, columns], 1) * STRIDE + WAY_UNIT * wanted[[DOWN, RIGHT]][:, rows, columns].T
    np.testing.assert_allclose(aims, np.broadcast_to([(top + bottom) / 2, (left + right) / 2], aims.shape), atol=2)
    ink = wanted[INK:CHANNELS].reshape(STRIDE, STRIDE, *wanted.shape[1:]).transpose(2, 0, 3, 1).reshape(SIDE, SIDE)
    np.testing.assert_allclose(ink, sample.ink / 255, atol=2e-3)


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(data_dir: Path, tmp_path: Path) -> None:
    def train(output: Path, *settings: str) -> None:
        command = [sys.executable, "recipes/finder.py", "--data-dir", str(data_dir), "--output", str(output)]
        small = ["--batch-size", "2", "--fresh", "1", "--pool", "4", "--steps", "4", *settings]
        subprocess.run([*command, *small], cwd=ROOT, check=True, capture_output=True, timeout=300)

    train(tmp_path / "whole")
    train(tmp_path / "stopped", "--until", "2")
    train(tmp_path / "stopped")
    images = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    import onnxruntime

    answers = [
        onnxruntime.InferenceSession(str(tmp_path / name / "finder.onnx")).run(None, {"pictures": images})[0]
        for name in ("whole", "stopped")
    ]
    np.testing.assert_array_equal(*answers)


@pytest.mark.parametrize("scale", [0.4, 1, 3])
@pytest.mark.parametrize("dark", [False, True])
def test_characters_are_found_at_any_size(scale: float, dark: bool) -> None:
    picture = write("K7MR", tone=20, paper=230)
    if dark:
        picture = ImageOps.invert(picture)
    size = round(picture.width * scale), round(picture.height * scale)
    found = found_in(picture.resize(size, Image.Resampling.BICUBIC))
    expected = [(60 + 72 * place) / picture.width for place in range(4)]
    assert middles(found) == pytest.approx(expected, abs=0.03)
    assert sorted(np.unique(found.owner)) == [0, 1, 2, 3, 4]


def test_ink_and_paper_of_the_same_brightness_are_told_apart_by_their_colours() -> None:
    letters = np.asarray(write("E5")) < 128
    picture = np.where(letters[:, :, None], (200, 40, 40), (40, 112, 90)).astype(np.uint8)
    greys = np.asarray(Image.fromarray(picture).convert("L"), int)
    assert np.ptp(greys) < 8
    assert len(found_in(Image.fromarray(picture)).centres) == 2


def test_rules_are_told_from_ink() -> None:
    picture = write("2468", tone=0)
    pen = ImageDraw.Draw(picture)
    for place in range(5):
        pen.line((24 + 72 * place, 15, 24 + 72 * place, 105), fill=60, width=3)
    for y in (15, 105):
        pen.line((24, y, 312, y), fill=60, width=3)
    found = found_in(picture)
    assert len(found.centres) == 4
    assert float(found.ink[:, :5].max()) < 0.5
    assert (found.rules > 0.3).mean(axis=0).max() > 0.5


@pytest.mark.parametrize("picture", [Image.new("L", (300, 200), 230), Image.new("RGB", (40, 40), (90, 20, 20))])
def test_nothing_is_found_on_an_empty_page(picture: Image.Image) -> None:
    assert find(to_colour(picture)) is None


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2), (3000, 4)])
def test_pictures_of_any_shape_are_taken(size: tuple[int, int]) -> None:
    find(to_colour(Image.effect_noise(size, 60)))


def test_weights_that_cannot_be_read_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finder, "pretrained_folder", lambda: tmp_path)
    monkeypatch.setattr(finder, "session", finder.session.__wrapped__)
    with pytest.raises(CheckpointError, match=r"finder\.onnx: cannot be read"):
        finder.session()
    shutil.copy(ROOT / "pretrained" / "README.md", tmp_path / "finder.onnx")
    with pytest.raises(CheckpointError, match=r"finder\.onnx: cannot be read .*install the project again"):
        finder.session()
