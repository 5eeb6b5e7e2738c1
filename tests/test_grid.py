"""Grids: from pictures that the test draws aslant to cells and what stands in them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

import inference
from glyphs.data.demo import font_folder
from glyphs.output.results import open_terminal
from glyphs.output.rows import RowKind
from glyphs.pictures.decode import to_colour
from glyphs.pictures.grid import cell_numbers, find_grid
from glyphs.pictures.lines import find_lines
from glyphs.pictures.morphology import components_of
from glyphs.reading.predictor import GlyphPredictor
from tests.conftest import ROOT

CELL, EDGE = 70, 60
ROWS = ["8427", "1398", "57 6", "9834"]


def sheet(rows: list[str], title: str = "") -> Image.Image:
    """A grid of boxes, a character in each, a title above."""
    font = ImageFont.truetype(font_folder() / "DejaVuSans.ttf", 44)
    height, width = len(rows) * CELL, len(rows[0]) * CELL
    page = Image.new("L", (width + 2 * EDGE, height + 2 * EDGE), 255)
    pen = ImageDraw.Draw(page)
    pen.text((EDGE, 5), title, font=font, fill=0)
    for i in range(len(rows) + 1):
        pen.line((EDGE, EDGE + CELL * i, EDGE + width, EDGE + CELL * i), fill=40, width=6 if i % 2 == 0 else 2)
    for j in range(len(rows[0]) + 1):
        pen.line((EDGE + CELL * j, EDGE, EDGE + CELL * j, EDGE + height), fill=40, width=6 if j % 2 == 0 else 2)
    for i, row in enumerate(rows):
        for j, character in enumerate(row):
            pen.text((EDGE + CELL * (j + 0.5), EDGE + CELL * (i + 0.5)), character, font=font, fill=0, anchor="mm")
    return page


def aslant(page: Image.Image) -> Image.Image:
    """The page as a camera sees it that is not straight above."""
    return page.transform(
        page.size, Image.Transform.PERSPECTIVE, (1.05, 0.06, -18, -0.05, 1.08, 0, 0, 0.0004), fillcolor=255
    )


@pytest.mark.parametrize("page", [sheet(ROWS), aslant(sheet(ROWS, "4x4"))], ids=["straight", "aslant with a title"])
def test_the_lattice_lies_on_the_rules(page: Image.Image) -> None:
    ink = np.asarray(page) < 128
    grid = find_grid(components_of(ink))
    assert grid is not None
    assert grid.shape == (4, 4)
    for x, y in np.rint(grid.corners.reshape(-1, 2)).astype(int):
        assert ink[y - 5 : y + 6, x - 5 : x + 6].any()
    numbers = cell_numbers(grid, ink.shape)
    assert sorted(np.unique(numbers)) == list(range(17))
    assert 0.9 < (numbers > 0).sum() / np.abs(np.prod(grid.corners[-1, -1] - grid.corners[0, 0])) < 1.15


def test_a_broken_rule_and_ink_across_one_leave_the_lattice_whole() -> None:
    page = sheet(ROWS)
    pen = ImageDraw.Draw(page)
    pen.rectangle((EDGE + CELL + 15, EDGE + CELL - 8, EDGE + CELL + 55, EDGE + CELL + 8), fill=255)
    pen.line((EDGE + 20, EDGE + CELL - 20, EDGE + 50, EDGE + CELL + 15), fill=0, width=5)
    grid = find_grid(components_of(np.asarray(page) < 128))
    assert grid is not None
    assert grid.shape == (4, 4)


def test_text_without_rules_is_no_grid() -> None:
    page = Image.new("L", (400, 400), 255)
    pen = ImageDraw.Draw(page)
    pen.rectangle((20, 20, 380, 380), outline=0, width=4)
    pen.text((50, 100), "NO GRID", font=ImageFont.truetype(font_folder() / "DejaVuSans.ttf", 60), fill=0)
    assert find_grid(components_of(np.asarray(page) < 128)) is None


def test_writing_that_does_not_keep_to_cells_is_not_read_by_cells() -> None:
    squared = sheet([" " * 12] * 5)
    font = ImageFont.truetype(font_folder() / "DejaVuSans.ttf", 150)
    for place, character in enumerate("HEAT"):
        ImageDraw.Draw(squared).text((EDGE + 160 * place + 60, EDGE + 105), character, font=font, fill=0)
    assert find_grid(components_of(np.asarray(squared) < 128)) is not None
    assert find_lines(to_colour(squared)).grid is None
    assert find_lines(to_colour(sheet(ROWS))).grid == (4, 4)


def test_each_cell_is_one_piece_and_an_empty_one_none() -> None:
    page = find_lines(to_colour(aslant(sheet(ROWS))))
    assert [[piece.cell for piece in line.pieces] for line in page.lines] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 11],
        [12, 13, 14, 15],
    ]


def test_a_cell_of_another_colour_is_read() -> None:
    page = sheet(ROWS)
    shade = np.asarray(page).copy()
    place = np.s_[EDGE + CELL : EDGE + 2 * CELL, EDGE : EDGE + 2 * CELL]
    shade[place] = shade[place] * 0.6
    page = Image.fromarray(shade)
    assert [len(line.pieces) for line in find_lines(to_colour(page)).lines] == [4, 4, 3, 4]


def test_a_photographed_sudoku_is_read_and_what_stands_above_left_out() -> None:
    predictor = GlyphPredictor(ROOT / "pretrained" / "glyphs47.pth", "cpu", alphabet="0123456789")
    reading = predictor.read(aslant(sheet(ROWS, "4x4")))
    assert reading.status == "ok"
    assert str(reading.text).replace(" ", "").split("\n") == [row.replace(" ", "") for row in ROWS]
    assert reading.table == [[cell.strip() for cell in row] for row in ROWS]
    cells = [character.cell for line in reading.lines for word in line.words for character in word.characters]
    assert cells[4:12] == [(2, 1), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2), (3, 4), (4, 1)]


def test_a_grid_becomes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "sudoku.png"
    sheet(ROWS).save(picture)
    command = ["--image", str(picture), str(ROOT / "samples" / "number.jpg"), "--text", "--alphabet", "digits"]
    output, tables = tmp_path / "rows.json", tmp_path / "tables"
    assert inference.main([*command, "--output", str(output), "--tables", str(tables)]) == 0
    [written] = tables.rglob("*.csv")  # the other picture shows no grid
    assert written.name == "sudoku.png.csv"
    table = [[cell.strip() for cell in row] for row in ROWS]
    assert list(csv.reader(written.read_text("utf-8-sig").splitlines())) == table
    grid, number = json.loads(output.read_text())
    assert (grid["table"], number["table"]) == (table, None)
    assert grid["lines"][1]["words"][0]["characters"][0]["cell"] == [2, 1]
    assert number["lines"][0]["words"][0]["characters"][0]["cell"] is None
    with open_terminal(RowKind("text")) as results:
        results.write(GlyphPredictor(alphabet="0123456789").read(sheet(ROWS)))
    assert capsys.readouterr().out.splitlines()[-4:] == ["8 4 2 7", "1 3 9 8", "5 7 · 6", "9 8 3 4"]


def test_tables_are_of_texts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        inference.main(["--image", "a.png", "--tables", "tables"])
    assert "--tables is for --text" in capsys.readouterr().err
