"""glyphs.output.results: rows as files and as text."""

import codecs
import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from glyphs.core.errors import ConfigError, DataError, GlyphError
from glyphs.output import results as results_module
from glyphs.output.results import json_row, open_pipe, open_results, open_terminal
from glyphs.output.rows import Candidate, Character, FormReading, Prediction, Reading, RowKind, TextLine, Word
from tests.conftest import refused

SURE = Prediction("a.png", "ok", "A", 0.75, (Candidate("A", 0.75), Candidate("4", 0.25)))
FAILED = Prediction("b/c.png", "failed", error="b/c.png: is damaged")
ODD = Prediction("=1+1\t\x1b[31m\n.png", "uncertain", None, 0.5, (Candidate("=", 0.5), Candidate("字", 0.25)))
ROWS = [SURE, FAILED, ODD]


def write(path: Path, rows: list[Prediction]) -> None:
    with open_results(path, RowKind("prediction", 2)) as results:
        for row in rows:
            results.write(row)


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS])
def test_json_is_an_array_of_rows(tmp_path: Path, rows: list[Prediction]) -> None:
    write(tmp_path / "r.json", rows)
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == [row.to_dict() for row in rows]


def test_csv_has_a_column_for_each_candidate_and_no_formulas(tmp_path: Path) -> None:
    write(tmp_path / "r.csv", ROWS)
    content = (tmp_path / "r.csv").read_bytes()
    assert b"\x1b" not in content
    header, *rows = csv.reader(content.decode("utf-8-sig").splitlines())
    assert header == [
        "file",
        "status",
        "prediction",
        "confidence",
        "label_1",
        "probability_1",
        "label_2",
        "probability_2",
        "error",
    ]
    assert rows == [
        ["a.png", "ok", "A", "0.75", "A", "0.75", "4", "0.25", ""],
        ["b/c.png", "failed", "", "", "", "", "", "", "b/c.png: is damaged"],
        ["'=1+1 \\x1b[31m .png", "uncertain", "", "0.5", "'=", "0.5", "字", "0.25", ""],
    ]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        *((text, True) for text in ("6", "0", "60", "123456789012345", "A06", "hello", "E5", "Mar", "é", "")),
        *((text, False) for text in ("06", "00", "1.50", "24/08", "3-4", "1E5", "12:30", "5 PM", "(5)", "€ 7")),
        *((text, False) for text in ("1234567890123456", "MAR1", "3-May", "sept2", "TRUE", "False", " 06")),
    ],
)
def test_a_spreadsheet_shows_what_was_read(tmp_path: Path, text: str, kept: bool) -> None:
    write(tmp_path / "r.csv", [Prediction("é.png", "ok", text, 0.5, (Candidate(text, 0.5),))])
    content = (tmp_path / "r.csv").read_bytes()
    assert content.startswith(codecs.BOM_UTF8)  # what tells Excel that é is one letter
    [row] = csv.DictReader(content.decode("utf-8-sig").splitlines())
    assert row["file"] == "é.png"
    assert row["prediction"] == row["label_1"] == ("" if kept else "'") + text


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_every_start_of_a_formula_is_defused(tmp_path: Path, start: str) -> None:
    write(tmp_path / "r.csv", [Prediction(f"{start}SUM(A1)", "failed", error=f"{start}x")])
    [row] = csv.DictReader((tmp_path / "r.csv").read_text("utf-8-sig").splitlines())
    assert row["file"].startswith("'")
    assert row["error"].startswith("'")


@pytest.mark.parametrize("name", ["r.json", "r.csv"])
def test_a_run_that_dies_leaves_the_file_of_before(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, ROWS)
    before = (tmp_path / name).read_bytes()

    def die() -> None:
        with open_results(tmp_path / name, RowKind("prediction", 2)) as results:
            results.write(SURE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die()
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_json_lines_go_on_after_every_possible_cut(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, ROWS)
    whole = path.read_bytes()
    assert [json.loads(line) for line in whole.splitlines()] == [row.to_dict() for row in ROWS]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with open_results(path, RowKind("prediction", 2)) as results:
            kept = whole[:cut].count(b"\n")
            assert results.done == {row.file for row in ROWS[:kept]}
            assert results.counts.total() == kept
            assert results.lacks("-")
            for row in ROWS:
                if results.lacks(str(row.file)):
                    results.write(row)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"notes of mine", b'{"a": 1}\n', b"[1]\n", b"x\n" + b'{"file": "a"', b"\x00" * 9])
def test_json_lines_leave_a_file_of_others_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"r\.jsonl: line 1"):
        write(path, ROWS)
    assert path.read_bytes() == content


def test_rows_reach_a_json_lines_file_as_they_are_made(tmp_path: Path) -> None:
    with open_results(tmp_path / "r.jsonl", RowKind("prediction", 2)) as results:
        for number, row in enumerate(ROWS, start=1):
            results.write(row)
            assert (tmp_path / "r.jsonl").read_bytes().count(b"\n") == number


@pytest.mark.parametrize("name", ["r.txt", "r", "folder.json"])
def test_an_output_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match=name):
        open_results(tmp_path / name, RowKind("prediction", 5))


@pytest.mark.parametrize("suffix", [".json", ".csv", ".jsonl"])
def test_an_output_in_no_folder(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(GlyphError, match="missing"):
        write(tmp_path / "missing" / f"r{suffix}", ROWS)


def test_a_pipe_gets_the_candidates_that_it_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    with open_pipe(RowKind("prediction", 3)) as results:
        for row in ROWS:
            results.write(row)
    for line, row in zip(capsys.readouterr().out.splitlines(), ROWS, strict=True):
        cells = line.split("\t")
        assert len(cells) == 4 + 6
        candidates = [str(value) for candidate in row.top_k for value in candidate]
        assert cells[4:] == candidates + [""] * (6 - len(candidates))


def test_a_pipe_gets_four_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with open_pipe(RowKind("prediction")) as results:
        for row in ROWS:
            results.write(row)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["a.png", "ok", "A", "0.75"],
        ["b/c.png", "failed", "", ""],
        ["=1+1 \\x1b[31m .png", "uncertain", "", "0.5"],
    ]


def test_a_terminal_gets_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    with open_terminal(RowKind("prediction", 2)) as results:
        for row in ROWS:
            results.write(row)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["result", "confidence", "top", "2", "file"]
    assert lines[0].split() == ["A", "75.0%", "A", "75.0%", "4", "25.0%", "a.png"]
    assert lines[1].split() == ["failed", "b/c.png"]
    assert lines[2].split() == ["uncertain", "50.0%", "=", "50.0%", "字", "25.0%", "=1+1", "\\x1b[31m", ".png"]
    assert len({line.index(str(end)) for line, end in zip(lines[:2], ["a.png", "b/c.png"], strict=True)}) == 1


def test_the_summary_counts_each_status(tmp_path: Path) -> None:
    with open_results(tmp_path / "r.json", RowKind("prediction", 2)) as results:
        assert results.summary() == "0 pictures"
        results.counts.update(["ok", "ok", "no_glyph"])
        assert results.summary() == "3 pictures: 2 ok, 1 no glyph"


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS])
def test_parquet_has_the_rows_of_json(tmp_path: Path, rows: list[Prediction], monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(results_module, "ROW_GROUP", 2)
    write(tmp_path / "r.parquet", rows)
    table = parquet.read_table(tmp_path / "r.parquet")
    assert table.to_pylist() == [row.to_dict() for row in rows]
    assert [str(table.schema.field(name).type) for name in ("file", "prediction", "confidence")] == [
        "string",
        "string",
        "double",
    ]


def test_parquet_nests_a_text_as_json_does(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    box = (1, 2, 30, 40)
    word = Word("A-", box, (Character("A", 0.75, box, SURE.top_k), Character("-", None, box, ())))
    readings = [Reading("a.png", "ok", 0.75, (TextLine("A-", box, (word,)),)), Reading("b.png", "no_glyph")]
    with open_results(tmp_path / "r.parquet", RowKind("text")) as results:
        for reading in readings:
            results.write(reading)
    expected = [json.loads(json.dumps(reading.to_dict())) for reading in readings]
    assert parquet.read_table(tmp_path / "r.parquet").to_pylist() == expected


def test_parquet_without_its_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused(GlyphError, "r.parquet", "pip install pyarrow"):
        open_results(tmp_path / "r.parquet", RowKind("prediction", 5))
    assert not (tmp_path / "r.parquet").exists()


def test_hocr_has_pages_lines_and_words(tmp_path: Path) -> None:
    box, beside = (1, 2, 30, 40), (35, 2, 45, 8)
    word = Word("<A", box, (Character("<", 0.504, box, ()), Character("A", 0.9, box, ())))
    dash = Word("-", beside, (Character("-", None, beside, ()),))
    line = TextLine("<A -", (1, 2, 45, 40), (word, dash))
    readings = [
        Reading('a;"%\x1b.png', "ok", 0.504, (line, line), size=(50, 60)),
        Reading("b.png", "failed", error="b.png: is damaged"),
    ]
    with open_results(tmp_path / "r.hocr", RowKind("text")) as results:
        for reading in readings:
            results.write(reading)
    root = ElementTree.parse(tmp_path / "r.hocr").getroot()
    space = "{http://www.w3.org/1999/xhtml}"
    assert root.tag == f"{space}html"

    def of_kind(kind: str) -> list[ElementTree.Element]:
        return [element for element in root.iter() if element.get("class") == kind]

    pages = of_kind("ocr_page")
    assert [page.get("title") for page in pages] == [
        'image "a%3B%22%25\\x1b.png"; bbox 0 0 50 60; ppageno 0',
        'image "b.png"; ppageno 1',
    ]
    assert [len(list(page)) for page in pages] == [2, 0]
    assert [each.get("title") for each in of_kind("ocr_line")] == ["bbox 1 2 45 40"] * 2
    words = [(each.text, each.get("title")) for each in of_kind("ocrx_word")]
    assert words == [("<A", "bbox 1 2 30 40; x_wconf 50"), ("-", "bbox 35 2 45 8")] * 2
    names = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(set(names)) == len(names) == 8
    with refused(ConfigError, "r.hocr", "add --text"):
        open_results(tmp_path / "r.hocr", RowKind("prediction", 5))
    with refused(ConfigError, "r.hocr", "hOCR is for texts: choose another suffix"):
        open_results(tmp_path / "r.hocr", RowKind("fields", fields=("name",)))


def test_of_two_programs_that_add_to_json_lines_the_second_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with open_results(path, RowKind("prediction", 2)) as results:
        results.write(ROWS[0])
        with refused(GlyphError, path, "another process is writing it"):
            write(path, ROWS)
        results.write(ROWS[1])
    assert path.read_bytes().count(b"\n") == 2


def test_rows_of_a_form_are_not_gone_on_with_by_another_form(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(json_row(FormReading("0.png", "failed", error="0.png: is empty")) + b"\n")
    for fields in (("a", "b"), ("b", "a")):
        with open_results(path, RowKind("fields", fields=fields)) as results:
            results.write(FormReading(f"{fields}.png", "ok", 0.5, {name: Reading(None, "no_glyph") for name in fields}))
    before = path.read_bytes()
    other = open_results(path, RowKind("fields", fields=("a",)))
    with refused(DataError, path, "rows of forms with other fields"), other:
        pytest.fail("it began")
    assert path.read_bytes() == before


def test_hocr_is_xml_whatever_a_class_is_called(tmp_path: Path) -> None:
    word = Word("a\x01\uffff", (0, 0, 9, 9), ())
    with open_results(tmp_path / "r.hocr", RowKind("text")) as results:
        results.write(Reading("a.png", "ok", 0.5, (TextLine(word.text, word.box, (word,)),), size=(9, 9)))
    assert "a\N{REPLACEMENT CHARACTER}" in "".join(ElementTree.parse(tmp_path / "r.hocr").getroot().itertext())
