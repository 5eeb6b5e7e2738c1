"""Forms: from an empty one to fields, from scans to a table and a sheet to review."""

import base64
import csv
import io
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import inference
from glyphs.core.arrays import Floats
from glyphs.core.errors import ConfigError, DataError, GlyphError, PictureError
from glyphs.core.files import valid_utf8
from glyphs.forms.boxes import find_boxes
from glyphs.forms.forms import Field, Form, read_form
from glyphs.pictures.decode import to_grey
from samples.fill import photograph
from samples.form import BOX, MARKS, PEOPLE, ROWS, empty, fill
from tests.conftest import ROOT, refused
from tests.test_parts import together

NAMES = ["name", "zip", "member"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty form, its fields, named, and two scans of it filled in, one of them upside down."""
    folder = tmp_path_factory.mktemp("form")
    page = empty()
    page.save(folder / "empty.png")
    assert inference.main(["--form", str(folder / "empty.png"), "--fields", str(folder / "fields.json")]) == 0
    content = json.loads((folder / "fields.json").read_text())
    limits = ({"alphabet": "upper"}, {"alphabet": "digits"}, {"pattern": "[A-Z]{2}[0-9]{4}"})
    for field, name, limit in zip(content["fields"], NAMES, limits, strict=True):
        field.update({"name": name} | limit)
    (folder / "fields.json").write_text(json.dumps(content))
    (folder / "scans").mkdir()
    rng = np.random.default_rng(3)
    for number, turn in enumerate((0, 180)):
        photograph(fill(page, PEOPLE[number], rng), rng, turn, 1200).save(
            folder / "scans" / f"{number}.jpg", quality=85
        )
    return folder


def read(folder: Path, output: Path, *more: str) -> int:
    return inference.main(
        ["--batch", str(folder / "scans"), "--fields", str(folder / "fields.json"), "--output", str(output), *more]
    )


def test_boxes_are_found_and_those_in_a_row_are_one() -> None:
    _, *boxes = find_boxes(to_grey(empty()))  # the first is the hole of a mark
    assert len(boxes) == len(ROWS)
    for box, row in zip(boxes, ROWS, strict=True):
        right = row.left + row.boxes * row.characters * BOX
        assert box.left == pytest.approx(row.left, abs=5)
        assert box.right == pytest.approx(right, abs=5)
        assert (box.top, box.bottom) == pytest.approx((row.top, row.top + BOX), abs=5)


def test_a_cell_with_print_is_no_field_and_separate_boxes_stay_apart() -> None:
    page = Image.new("L", (800, 600), 255)
    pen = ImageDraw.Draw(page)
    for left, right in ((50, 250), (250, 450), (500, 700)):
        pen.rectangle((left, 100, right, 160), outline=0, width=3)
    pen.text((60, 110), "Name", font_size=36, fill=0)
    assert [(box.left < 300, box.left > 450) for box in find_boxes(to_grey(page))] == [(True, False), (False, True)]


def test_the_file_of_an_empty_form_knows_its_marks_and_is_not_replaced(folder: Path) -> None:
    form = read_form(folder / "fields.json")
    assert form.marks is not None
    assert np.abs(form.marks - MARKS).max() <= 2
    assert [field.name for field in form.fields] == NAMES
    assert (folder / "fields.png").exists()
    with refused(ConfigError, folder / "fields.json", "is there already"):
        inference.main(["--form", str(folder / "empty.png"), "--fields", str(folder / "fields.json")])


def test_scans_become_a_table_with_a_column_a_field(folder: Path, tmp_path: Path) -> None:
    assert read(folder, tmp_path / "table.csv") == 0
    header, *rows = csv.reader((tmp_path / "table.csv").read_text("utf-8-sig").splitlines())
    assert header[:4] == ["file", "status", "name", "name probability"]
    assert [row[0] for row in rows] == ["0.jpg", "1.jpg"]
    read_right = sum(row[2 + 2 * i] == PEOPLE[number][i] for number, row in enumerate(rows) for i in range(3))
    assert read_right >= 5, rows
    for row in rows:
        assert all(0 <= float(probability) <= 1 for probability in row[3:8:2])
        assert float(row[-2]) == min(map(float, row[3:8:2]))


def test_a_table_in_json_lines_goes_on_and_its_review_has_all_doubtful_fields(folder: Path, tmp_path: Path) -> None:
    output, review = tmp_path / "table.jsonl", tmp_path / "review.html"
    more = ("--min-confidence", "1", "--review", str(review))
    assert read(folder, output, *more) == 0
    whole, page = output.read_bytes(), review.read_text()
    assert page.count("<tr><td>") == 6
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 6
    for picture in pictures:
        assert np.ptp(np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))) > 50
    assert not re.search(r'(src|href)="(?!data:)', page)
    output.write_bytes(b"".join(whole.splitlines(keepends=True)[:1]))
    assert read(folder, output, *more) == 0
    assert output.read_bytes() == whole
    assert review.read_text() == page
    with refused(DataError, output, "holds rows of forms (--fields), not of texts (--text)"):
        inference.main(["--batch", str(folder / "scans"), "--text", "--output", str(output)])


def test_several_processes_write_what_one_does(folder: Path, tmp_path: Path) -> None:
    read(folder, tmp_path / "one.jsonl")
    command = ["--batch", str(folder / "scans"), "--fields", str(folder / "fields.json")]
    assert together(command, tmp_path / "two.jsonl", 2) == [0, 0]
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_fields_that_are_sure_or_empty_are_not_for_review(folder: Path, tmp_path: Path) -> None:
    review = tmp_path / "review.html"
    command = ["--image", str(folder / "empty.png"), "--fields", str(folder / "fields.json"), "--review", str(review)]
    assert inference.main([*command, "--output", str(tmp_path / "table.json")]) == 0
    [row] = json.loads((tmp_path / "table.json").read_text())
    assert (row["status"], row["confidence"]) == ("ok", None)
    assert row["fields"] == {name: {"status": "no_glyph", "text": None, "confidence": None} for name in NAMES}
    assert "0 fields to look at" in review.read_text()


def test_a_scan_without_marks_fails_and_the_others_go_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "a.jpg").write_bytes((folder / "scans" / "0.jpg").read_bytes())
    Image.new("L", (400, 300), 255).save(scans / "b.png")
    assert inference.main(["--batch", str(scans), "--fields", str(folder / "fields.json")]) == 3
    output = capsys.readouterr()
    lines = [line.split("\t") for line in output.out.splitlines()]
    assert [(line[0], line[2]) for line in lines] == [*(("a.jpg", name) for name in NAMES), ("b.png", "")]
    assert lines[-1][1] == "failed"
    assert "b.png: the form's four marks were not found" in output.err


def without_marks() -> Image.Image:
    page = empty()
    pen = ImageDraw.Draw(page)
    for x, y in MARKS:
        pen.rectangle((x - 45, y - 45, x + 45, y + 45), fill=255)
    return page


@pytest.mark.parametrize(("turn", "size"), [(178, (1860, 1500)), (93, (1000, 806))])
def test_scans_are_laid_over_the_print_of_a_form_without_marks(turn: int, size: tuple[int, int]) -> None:
    page = without_marks()
    form = Form(page.size, None, (Field("zip", (335, 465, 646, 520)),), to_grey(page))
    scan = Image.fromarray(np.uint8(255 * fill(page, PEOPLE[0], np.random.default_rng(3)))).resize(size)
    scan = scan.rotate(turn, Image.Resampling.BICUBIC, expand=True, fillcolor=255)
    straight, scale = form.straighten(to_grey(scan), "a.jpg")
    [left, top, right, bottom] = (round(scale * value) for value in form.fields[0].box)
    ink = 1 - straight
    for line in (ink[top - 8 : top + 4, left:right], ink[bottom - 4 : bottom + 8, left:right]):
        assert np.median(line, axis=1).max() > 0.4  # the rules above and below
    assert np.median(ink[top + 5 : bottom - 5, left:right]) < 0.1


def test_what_is_not_the_form_fails(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without_marks().save(tmp_path / "empty.png")
    fields = ["--fields", str(tmp_path / "fields.json")]
    assert inference.main(["--form", str(tmp_path / "empty.png"), *fields]) == 0
    assert "laid over the form by its print" in capsys.readouterr().err
    assert json.loads((tmp_path / "fields.json").read_text())["form"] == "empty.png"
    other = str(ROOT / "samples" / "number.jpg")
    assert inference.main(["--image", other, str(tmp_path / "empty.png"), *fields]) == 3
    output = capsys.readouterr()
    assert [line.split("\t")[1] for line in output.out.splitlines()] == ["failed", *["no_glyph"] * 3]
    assert f"{other}: does not show the form" in output.err


def test_a_form_without_marks_or_picture_is_the_whole_page(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "fields.json").read_text())
    (tmp_path / "fields.json").write_text(json.dumps(content | {"marks": None}))
    scan = Image.fromarray(np.uint8(255 * fill(empty(), PEOPLE[0], np.random.default_rng(3))))
    scan.resize((1860, 1500)).save(tmp_path / "scan.png")
    output = tmp_path / "table.json"
    command = ["--image", str(tmp_path / "scan.png"), "--fields", str(tmp_path / "fields.json")]
    assert inference.main([*command, "--output", str(output)]) == 0
    [row] = json.loads(output.read_text())
    assert [row["fields"][name]["text"] for name in NAMES] == list(PEOPLE[0])


def test_a_field_knows_its_words_and_doubts_others(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "fields.json").read_text())
    content["marks"] = None
    (tmp_path / "fields.json").write_text(json.dumps(content))
    names = tmp_path / "names.txt"
    scan = Image.fromarray(np.uint8(255 * fill(empty(), ("BAKER", "90210", "AB4172"), np.random.default_rng(3))))
    scan.save(tmp_path / "scan.png")
    output = tmp_path / "table.json"
    command = ["--image", str(tmp_path / "scan.png"), "--fields", str(tmp_path / "fields.json")]
    answers = []
    for words in ("Baker\nBakes\n", "Harrison\n", "Baker 3rd\n"):
        names.write_text(words)
        content["fields"][0]["words"] = "names.txt"
        (tmp_path / "fields.json").write_text(json.dumps(content))
        assert inference.main([*command, "--output", str(output)]) == 0
        [row] = json.loads(output.read_text())
        answers.append((row["fields"]["name"]["text"].upper(), row["fields"]["name"]["status"]))
    assert answers == [("BAKER", "ok"), ("BAKER", "uncertain"), ("BAKER", "ok")]


GOOD = {"size": [100, 50], "marks": None, "fields": [{"name": "a", "box": [1, 2, 30, 40]}]}


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"size": [100]}, '"size" is not the width and height'),
        ({"size": [100, 1e999]}, '"size" is not the width and height'),
        ({"size": [10**400, 50]}, '"size" is not the width and height'),
        ({"size": [10**6, 10**6]}, '"size" is not the width and height'),
        ({"marks": [[1, 2]]}, '"marks" are not four corners'),
        ({"marks": [[1, 1], [2, 1], [2, 2], [1, 2]]}, '"marks" are not four corners of the form'),  # a scan of 10^11
        ({"marks": [[1, 2], [190, 2], [190, 40], [1, 40]]}, '"marks" are not four corners of the form'),
        ({"marks": [[0, 0], [1e300, 0], [1e300, 1e300], [0, 1e300]]}, '"marks" are not four corners'),
        ({"form": 3}, '"form" is the picture of an empty form'),
        ({"form": "a.png", "marks": [[1, 2], [90, 2], [90, 40], [1, 40]]}, "one of them is null"),
        ({"form": str(ROOT / "samples" / "number.jpg")}, '"size" is not that of'),
        ({"fields": []}, 'has no list "fields"'),
        ({"fields": [3]}, "field 1: is not an object"),
        ({"fields": [{"name": " ", "box": [1, 2, 30, 40]}]}, 'field 1: has no "name"'),
        ({"fields": [{"name": "a", "box": [1, 2, 300, 40]}]}, "field 1, 'a': \"box\" is not"),
        ({"fields": [{"name": "a", "box": [1, 2, 30, 40], "patern": "x"}]}, "unknown entry 'patern'"),
        ({"fields": [{"name": "a", "box": [1, 2, 30, 40], "alphabet": 3}]}, '"alphabet" is not a text'),
        ({"fields": [{"name": "a", "box": [1, 2, 30, 40], "words": ["x"]}]}, '"words" is not a text'),
        ({"fields": [GOOD["fields"][0]] * 2}, "two columns 'a'"),  # type: ignore[index]
        ({"fields": [{"name": "file", "box": [1, 2, 30, 40]}]}, "two columns 'file'"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(change: dict[str, object], fact: str, tmp_path: Path) -> None:
    path = tmp_path / "fields.json"
    path.write_text(json.dumps(GOOD))
    assert len(read_form(path).fields) == 1
    path.write_text(json.dumps(GOOD | change))
    with refused(DataError, path, fact):
        read_form(path)


@pytest.mark.parametrize("name", ["missing.txt", "\0.txt", "\ud800.txt", "", "bytes.txt", "empty.txt"])
def test_a_word_list_that_cannot_be_read_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "empty.txt").write_text(" \n")
    path = tmp_path / "fields.json"
    path.write_text(json.dumps(GOOD | {"fields": [{"name": "a", "box": [1, 2, 30, 40], "words": name}]}))
    facts = {"bytes.txt": "is not UTF-8 text", "empty.txt": "holds no words"}
    with refused(GlyphError, tmp_path / valid_utf8(name), facts.get(name, "cannot be read")):
        read_form(path)


@pytest.mark.parametrize(
    ("limit", "fact"),
    [
        ({"alphabet": "0€"}, "the model does not know '€'"),
        ({"pattern": "[0-9"}, "[0-9"),
        ({"pattern": "[0-9]", "words": "words.txt"}, "words and pattern both say what a text can hold"),
    ],
)
def test_what_no_field_can_hold_names_the_field(limit: dict[str, str], fact: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("one\n")
    path = tmp_path / "fields.json"
    path.write_text(json.dumps(GOOD | {"fields": [{"name": "sum", "box": [1, 2, 30, 40]} | limit]}))
    with refused(ConfigError, "field 'sum'", fact):
        inference.main(["--image", "a.png", "--fields", str(path)])


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--form", "a.png"], "--form needs the file to write"),
        (["--image", "a.png", "--fields", "f.json", "--text"], "--fields does not go with --text"),
        (["--image", "a.png", "--review", "r.html"], "--review is for --fields"),
        (["--image", "a.png", "--fields", "f.json", "--review", "r.txt"], "ends in .html"),
        (["--serve", "--fields", "f.json"], "--fields does not go with --serve"),
        (["--image", "a.png", "--fields", "f.json", "--output", "./f.json"], "--output would replace the file of --fi"),
        (["--image", "a.png", "--text", "--words", "w.csv", "--output", "w.csv"], "would replace the file of --words"),
    ],
)
def test_what_means_nothing_is_refused(arguments: list[str], fact: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        inference.main(arguments)
    [line] = capsys.readouterr().err.splitlines()
    assert fact in line


def test_a_review_that_cannot_be_written_is_known_before_the_scans_are_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "r.html").mkdir()
    for review in ("missing/r.html", "r.html"):
        with refused(GlyphError, tmp_path / review, "cannot be written"):
            read(folder, tmp_path / "table.csv", "--review", str(tmp_path / review))
        assert not (tmp_path / "table.csv").exists()


def test_a_review_of_rows_that_were_changed_by_hand(folder: Path, tmp_path: Path) -> None:
    rows = [{"file": f"{i}.jpg", "status": "ok", "fields": dict.fromkeys(NAMES, 3)} for i in range(2)]
    output = tmp_path / "table.jsonl"
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with refused(DataError, output, "line 1 is not a row of a form"):
        read(folder, output, "--review", str(tmp_path / "r.html"))
    assert list(tmp_path.iterdir()) == [output]


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "fields.json"
    path.write_text(json.dumps(GOOD | {"fields": [{"name": "\ud800", "box": [1, 2, 30, 40]}]}))
    with refused(DataError, path, 'field 1: has no "name"'):
        read_form(path)
    path.write_text(json.dumps(GOOD | {"form": "\ud800.png"}))
    with refused(PictureError, r"\ud800.png: cannot be opened"):
        read_form(path)


def test_a_form_of_ten_thousand_fields_is_read_at_once(tmp_path: Path) -> None:
    fields = [{"name": f"field {number}", "box": [1, 2, 30, 40]} for number in range(10_000)]
    (tmp_path / "fields.json").write_text(json.dumps(GOOD | {"fields": fields}))
    began = time.process_time()
    assert len(read_form(tmp_path / "fields.json").fields) == 10_000
    assert time.process_time() - began < 3  # it was 10 when each column was looked for among all


def test_a_fault_of_the_program_costs_one_scan(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Form.straighten

    def straighten(form: Form, grey: Floats, name: str) -> Any:
        return whole(form, grey, name) if name != "0.jpg" else 1 // 0

    monkeypatch.setattr(Form, "straighten", straighten)
    assert read(folder, tmp_path / "table.jsonl") == 3
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert [row["status"] == "failed" for row in rows] == [True, False]
    assert "0.jpg: this program has a fault that the picture brings out" in rows[0]["error"]
