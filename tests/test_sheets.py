"""Collection sheets: printed, filled in and photographed by a program, cut, and trained on."""

import itertools
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

import inference
from glyphs.commands.sheets import make_folder, print_sheet
from glyphs.core.errors import ConfigError, DataError, PictureError
from glyphs.data.folder import load_folders
from glyphs.forms.marks import apply, find_marks, homography, straighten
from glyphs.forms.sheet import (
    BOX,
    CAPACITY,
    CODE_LEFT,
    CODE_TOP,
    LEFT,
    MARK_PLACES,
    MOST_ROWS,
    PAPER,
    TOP,
    SheetPage,
    classes_of,
    cut_sheet,
    decode,
    paginate,
)
from glyphs.pictures.decode import to_grey
from glyphs.pictures.plain import EMNIST_FORM
from samples.fill import Floats, fill, photograph
from tests.conftest import refused

NAMES = list("βδζ")


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A printed page of three classes, a row each, so that cutting it is quick."""
    path = tmp_path_factory.mktemp("sheet") / "sheet.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glyphs.forms.sheet.MOST_ROWS", len(NAMES))
        print_sheet(" ".join(NAMES), path)
    return path


@pytest.fixture(scope="module")
def filled(sheet: Path) -> Floats:
    return fill(sheet, np.random.default_rng(5))


def test_a_homography_takes_points_where_they_were_taken() -> None:
    rng = np.random.default_rng(0)
    matrix = np.array([[1.1, 0.2, 30], [-0.1, 0.9, 5], [1e-4, -2e-4, 1]])
    points = rng.uniform(0, 1000, (9, 2))
    found = homography(points, apply(matrix, points))
    assert found == pytest.approx(matrix, rel=1e-6, abs=1e-9)
    moved = apply(matrix, points) + rng.normal(0, 1, (9, 2))
    assert np.abs(apply(homography(points, moved), points) - moved).max() < 4


@pytest.mark.parametrize("turn", [0, 90, 180, 270, 8])
def test_marks_are_found_however_the_page_is_turned(sheet: Path, turn: int) -> None:
    page = Image.open(sheet).convert("L")
    grey = to_grey(page.rotate(turn, Image.Resampling.BICUBIC, expand=True, fillcolor=255))
    marks = find_marks(grey)
    assert marks is not None
    scale = page.width / PAPER[0]
    straight = straighten(grey, marks, np.array(MARK_PLACES) * scale - 0.5, page.size)
    assert np.abs(straight - to_grey(page)).mean() < 0.03
    assert np.quantile(np.abs(straight - to_grey(page)), 0.99) < 0.7


def test_three_marks_and_a_letter_are_no_sheet(sheet: Path) -> None:
    page = Image.open(sheet).convert("L")
    page.paste(255, (0, 0, 200, 200))
    pen = ImageDraw.Draw(page)
    pen.ellipse((900, 400, 970, 470), outline=0, width=20)  # as a mark at the top left, but elsewhere
    assert find_marks(to_grey(page)) is None
    with pytest.raises(PictureError, match=r"^a\.jpg: shows no collection sheet: the four marks"):
        cut_sheet(to_grey(page), "a.jpg")


def test_a_code_bears_a_crease_and_is_refused_where_it_is_lost(sheet: Path) -> None:
    page = Image.open(sheet).convert("L")
    scale = page.width / PAPER[0]
    x, y = round(CODE_LEFT * scale), round(CODE_TOP * scale)
    page.paste(255, (x + 200, y - 5, x + 225, y + 130))  # about 40 of the 1,000 cells
    assert cut_sheet(to_grey(page), "a.jpg")[0].names == tuple(NAMES)
    page.paste(255, (x, y - 5, x + 1200, y + 130))
    with pytest.raises(PictureError, match=r"^a\.jpg: shows a sheet whose code"):
        cut_sheet(to_grey(page), "a.jpg")


def test_an_alphabet_becomes_classes() -> None:
    assert classes_of("aba") == ["a", "b"]
    assert classes_of("sun moon sun") == ["sun", "moon"]
    assert classes_of("x́y") == ["x́", "y"]
    for wrong, fact in (
        ("a/", "can have no folder"),
        (". ..", "can have no folder"),
        ("", "empty"),
        ("a " + 41 * "b", "too long"),
    ):
        with refused(ConfigError, "--alphabet", fact):
            classes_of(wrong)


def test_pages_hold_as_many_rows_as_they_and_their_code_have_room_for() -> None:
    assert [len(page.rows) for page in paginate(list("abcdefghijklmnopqrstuvwxyz"))] == [MOST_ROWS, 26 - MOST_ROWS]
    [page] = paginate(NAMES[:3])
    assert page.rows == [name for name in NAMES[:3] for _ in range(MOST_ROWS // 3)]
    pages = paginate([f"{number:040}" for number in range(17)])
    assert [len(page.names) for page in pages] == [2] * 8 + [1]
    assert all(len(page.content()) <= CAPACITY for page in pages)
    assert [(page.number, page.count) for page in pages] == [(number, 9) for number in range(1, 10)]


def boxes_of(folder: Path) -> set[tuple[str, int, int]]:
    """Class, row and column of each picture that was cut."""
    names = [path.relative_to(folder).with_suffix("").as_posix().split("/") for path in folder.rglob("*.png")]
    return {(name, *map(int, rest.split("-")[-2:])) for name, rest in names}  # type: ignore[misc]


@pytest.mark.parametrize("turn", [90])
def test_a_photographed_sheet_becomes_a_data_set(
    sheet: Path, filled: Floats, turn: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = filled.copy()
    scale = page.shape[1] / PAPER[0]
    top, left = (round((start + BOX * 2 + 1) * scale) for start in (TOP, LEFT))  # the third box of the third row
    page[top : top + round((BOX - 2) * scale), left : left + round((BOX - 2) * scale)] = 1
    photo = tmp_path / "photo.jpg"
    photograph(page, np.random.default_rng(turn), turn).save(photo, quality=85)
    assert inference.main(["--cut", str(tmp_path / "own"), "--image", str(photo)]) == 0
    cut = boxes_of(tmp_path / "own")
    assert ("ζ", 3, 3) not in cut
    empty = {(row + 1, column + 1) for row, column in zip(*np.nonzero(is_empty(page)), strict=True)}
    assert (3, 3) in empty
    assert {(row, column) for _, row, column in cut} == set(itertools.product(range(1, 4), range(1, 13))) - empty
    assert all(NAMES[row - 1] == name for name, row, _ in cut)
    assert f"{len(cut)} pictures cut from 1 sheets" in capsys.readouterr().err
    for path in (tmp_path / "own").rglob("*.png"):  # nothing of the rules is left
        picture = np.asarray(Image.open(path), dtype=float)
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert np.quantile(border, 0.05) > 0.85 * np.median(picture)
    data = load_folders(tmp_path / "own", tmp_path / "cache", EMNIST_FORM, seed=0)
    assert (data.class_names, len(data.train) + len(data.test)) == (sorted(NAMES), len(cut))


def is_empty(page: Floats) -> NDArray[np.bool_]:
    """Which boxes of a page that was not photographed hold nothing, bool [rows, columns]."""
    scale = page.shape[1] / PAPER[0]
    edges = [[round((start + BOX * i) * scale) for i in range(count + 1)] for start, count in ((TOP, 3), (LEFT, 12))]
    inset = round(scale)
    return np.array(
        [
            [
                page[y0 + inset : y1 - inset, x0 + inset : x1 - inset].min() > 0.9
                for x0, x1 in itertools.pairwise(edges[1])
            ]
            for y0, y1 in itertools.pairwise(edges[0])
        ]
    )


def test_paper_that_is_not_flat_is_cut_along_its_rules(sheet: Path, filled: Floats) -> None:
    """The page is bent by 1 mm between its marks."""
    scale = filled.shape[1] / PAPER[0]
    y, x = np.indices(filled.shape, dtype=float)
    down = scale * np.sin(np.pi * x / filled.shape[1])  # a rule that is a bow
    bent = ndimage.map_coordinates(filled, [y + down - 0.14 * down.max(), x], order=1, mode="nearest")
    page, cuts = cut_sheet(bent.astype(np.float32), "bent.jpg")
    assert page.names == tuple(NAMES)
    for cut in cuts:
        rows = np.quantile(cut.picture, 0.3, axis=1)
        assert rows[[0, 1, -2, -1]].min() > 0.9


def test_nothing_is_replaced_and_a_bad_photograph_does_not_stop_the_others(
    sheet: Path, filled: Floats, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("L", (300, 400), 200).save(photos / "blank.png")
    (photos / "damaged.jpg").write_bytes(b"no picture")
    photograph(filled, np.random.default_rng(1)).save(photos / "page.jpg", quality=85)
    command = ["--cut", str(tmp_path / "own"), "--batch", str(photos)]
    assert inference.main(command) == 3
    errors = capsys.readouterr().err.splitlines()
    assert any(line.startswith("blank.png: shows no collection sheet") for line in errors)
    assert any("damaged.jpg: is not a picture" in line for line in errors)
    before = {path: path.read_bytes() for path in (tmp_path / "own").rglob("*.png")}
    assert len(before) > 25
    next(iter(before)).unlink()
    with refused(DataError, "is there already", "choose another folder"):
        inference.main(command)
    assert len(list((tmp_path / "own").rglob("*.png"))) == len(before) - 1


def test_classes_that_a_file_system_takes_for_one_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path, "A")
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)  # as where a is A
    with refused(DataError, tmp_path / "a", "does not tell A from a"):
        make_folder(tmp_path, "a")


def test_a_sheet_of_several_pages_is_a_pdf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with refused(ConfigError, tmp_path / "sheet.png", "4 pages", "name a .pdf"):
        inference.main(["--sheet", str(tmp_path / "sheet.png"), "--alphabet", "letters"])
    assert inference.main(["--sheet", str(tmp_path / "sheet.pdf"), "--alphabet", "letters"]) == 0
    content = (tmp_path / "sheet.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page ") == 4
    assert "pages: 4; classes: 52, with 12 boxes each" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--sheet", "s.pdf"], "--sheet needs the classes"),
        (["--sheet", "s.doc", "--alphabet", "ab"], "ends in .pdf or .png"),
        (["--sheet", "s.pdf", "--alphabet", "ab", "--output", "x.json"], "--sheet does not go with --output"),
        (["--cut", "own", "--image", "a.jpg", "--text"], "--cut does not go with --text"),
        (["--cut", "own", "--image", "a.jpg", "--alphabet", "ab"], "--cut does not go with --alphabet"),
        (["--cut", "photos/own", "--batch", "photos"], "--cut must not lie in --batch"),
    ],
)
def test_what_means_nothing_is_refused(arguments: list[str], fact: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        inference.main(arguments)
    [line] = capsys.readouterr().err.splitlines()
    assert fact in line


@pytest.mark.parametrize(
    ("number", "count", "repeat", "names"),
    [
        (1, 1, 1, ["../../a"]),
        (1, 1, 1, ["a/b"]),
        (1, 1, 1, [".."]),
        (1, 1, 1, ["", "b"]),
        (1, 1, 1, ["a\x07"]),
        (1, 1, 200, ["a", "b"]),
        (1, 1, 0, ["a"]),
        (0, 1, 1, ["a"]),
        (3, 2, 1, ["a"]),
    ],
)
def test_a_code_that_this_program_did_not_print_is_none(number: int, count: int, repeat: int, names: list[str]) -> None:
    assert decode(SheetPage(number, count, repeat, tuple(names)).content().ljust(CAPACITY, b"\0")) is None


def test_a_code_of_bytes_that_are_no_text_is_none() -> None:
    good = SheetPage(1, 1, 1, ("ab",))
    assert decode(good.content().ljust(CAPACITY, b"\0")) == good
    text = good.content()[:-4].replace(b"ab", b"\xff/")
    assert decode((text + zlib.crc32(text).to_bytes(4, "big")).ljust(CAPACITY, b"\0")) is None


def test_a_photograph_that_cannot_be_cut_stops_no_other(
    filled: Floats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    photograph(filled, np.random.default_rng(1)).save(photos / "page.jpg", quality=85)
    shutil.copy(photos / "page.jpg", photos / "odd.jpg")
    shutil.copy(photos / "page.jpg", photos / f"{'n' * 240}.jpg")

    def cut(grey: NDArray[np.float32], name: str) -> Any:
        return cut_sheet(grey, name) if name != "odd.jpg" else 1 // 0

    monkeypatch.setattr("glyphs.commands.sheets.cut_sheet", cut)
    assert inference.main(["--cut", str(tmp_path / "own"), "--batch", str(photos)]) == 3
    said = capsys.readouterr().err
    assert "odd.jpg: this program has a fault that the picture brings out" in said
    assert "n.jpg: has a name too long for what is cut from it" in said
    assert "pictures cut from 1 sheets" in said
