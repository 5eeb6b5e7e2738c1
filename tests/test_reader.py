"""Text: from pictures that the test draws to lines, words and characters."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import inference
from benchmarks.text import Result, edit_distance, error_rate, interval, plain
from glyphs.commands.read import SOME_FAILED
from glyphs.commands.read_arguments import parse
from glyphs.core.errors import ConfigError, DataError
from glyphs.data.demo import font_folder
from glyphs.pictures import lines as lines_module
from glyphs.pictures.decode import grey_to_colour, to_colour, to_grey
from glyphs.pictures.lines import Box, Line, Page, Piece, cut_piece, find_lines
from glyphs.reading import lattice as lattice_module
from glyphs.reading.lattice import Choice, best_path, is_mark, lattice_of, likeliest_paths, score_candidates
from glyphs.reading.predictor import GlyphPredictor
from glyphs.reading.reader import (
    holds_capitals,
    holds_digits_only,
    label,
    read_page,
    read_words,
    set_case,
    split_words,
)
from tests.conftest import ROOT
from tests.small import save_small_onnx

MODEL = ROOT / "pretrained" / "glyphs47.pth"


def write(lines: Sequence[str], size: int = 48, spacing: int = 6) -> Image.Image:
    """Lines of print, black on white, its letters apart."""
    font = ImageFont.truetype(font_folder() / "DejaVuSans.ttf", size)
    page = Image.new("L", (40 + max(map(len, lines)) * (size + spacing), 40 + 2 * size * len(lines)), 255)
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        x = 20.0
        for character in line:
            pen.text((x, 20 + 2 * size * number), character, font=font, fill=0)
            x += font.getlength(character) + spacing
    return page


def comb(text: str, gap: int = 0) -> Image.Image:
    """A form's field of boxes, a character in each, that touch or stand apart."""
    font = ImageFont.truetype(font_folder() / "DejaVuSans.ttf", 40)
    page = Image.new("L", ((60 + gap) * len(text) + 40, 100), 255)
    pen = ImageDraw.Draw(page)
    for place, character in enumerate(text):
        left = 20 + (60 + gap) * place
        pen.rectangle((left, 15, left + 60, 85), outline=90, width=2)
        pen.text((left + 30, 50), character, font=font, fill=0, anchor="mm")
    return page


@pytest.fixture(scope="module")
def predictor() -> GlyphPredictor:
    return GlyphPredictor(MODEL, "cpu")


def test_the_network_sees_only_what_can_be_on_the_best_path() -> None:
    picture = write(["MINIMUM", "WWVVMN"], spacing=-1)
    page = find_lines(to_colour(picture))
    seen: list[int] = []

    def network(images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Probabilities that depend on the image alone, and are small for many."""
        seen.append(len(images))
        mean = images.mean(axis=(1, 2, 3))[:, None]
        values: NDArray[np.float64] = np.exp(4 * np.sin(mean * np.arange(1, 6)))
        values /= values.sum(axis=1, keepdims=True)
        return values

    alike = np.eye(5)
    lazy = [lattice_of(line) for line in page.lines]
    paths = likeliest_paths(page, lazy, network, alike, judge_cuts=True)
    few = sum(seen)
    whole = [lattice_of(line) for line in page.lines]
    every = [(lattice, span) for lattice in whole for span in lattice.scores]
    score_candidates(page, every, network, alike, judge_cuts=True)
    assert paths == [best_path(lattice) for lattice in whole]
    assert few == sum(len(lattice.known) for lattice in lazy) < sum(len(lattice.known) for lattice in whole)
    assert any(stop - start > 1 for path in paths for start, stop in path)
    assert len(seen) > 2, "the first best path was taken for the best of all"


def test_lines_come_from_top_to_bottom_and_pieces_from_left_to_right() -> None:
    page = find_lines(to_colour(write(["ABC", "DEFG"])))
    assert len(page.lines) == 2
    for line in page.lines:
        lefts = [piece.box.left for piece in line.pieces]
        assert lefts == sorted(lefts)
    assert page.lines[0].pieces[0].box.bottom < page.lines[1].pieces[0].box.top


@pytest.mark.parametrize("angle", [-12, -7, 7, 12])
def test_lines_of_a_page_that_is_not_straight_stay_whole(angle: int) -> None:
    picture = write(["jagged fields 42", "of Typing Pages", "Yellow quiz"]).rotate(
        angle, Image.Resampling.BICUBIC, expand=True, fillcolor=255
    )
    lines = find_lines(to_colour(picture)).lines
    assert [len({piece.part for piece in line.pieces}) for line in lines] == [14, 13, 10]


def test_an_empty_page_has_no_lines() -> None:
    assert find_lines(np.full((60, 80, 3), 230, np.uint8)).lines == []


def test_a_texture_of_many_parts_is_no_text() -> None:
    dot = np.full((8, 8), 255, np.uint8)
    dot[1:6, 2:5] = 0
    assert find_lines(to_colour(Image.fromarray(np.tile(dot, (100, 100))))).lines == []


def test_a_page_of_very_many_pieces_is_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece would cost the networks' time."""
    page = to_colour(write(["ABC", "DEF"]))
    assert sum(len(line.pieces) for line in find_lines(page).lines) >= 6
    monkeypatch.setattr(lines_module, "MOST_PAGE_PIECES", 5)
    assert find_lines(page).lines == []


def test_candidates_seen_in_parts_are_read_the_same(predictor: GlyphPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = write(["lazy dog"])
    whole = predictor.read(picture)
    monkeypatch.setattr(lattice_module, "SEEN_AT_ONCE", 3)
    assert predictor.read(picture).text == whole.text == "lazy dog"


def test_boxes_whose_sides_are_broad_for_their_height_are_taken_away(predictor: GlyphPredictor) -> None:
    font = ImageFont.truetype(font_folder() / "DejaVuSans.ttf", 17)
    page = Image.new("L", (196, 46), 255)
    pen = ImageDraw.Draw(page)
    for place, character in enumerate("27436852"):
        left = 10 + 22 * place
        pen.rectangle((left, 10, left + 21, 35), outline=140, width=2)
        pen.text((left + 10.5, 23), character, font=font, fill=20, anchor="mm")
    assert predictor.read(page).text == "27436852"


@pytest.mark.parametrize("text", ["2.345", "3,14", "A.B"])
def test_full_stops_and_commas_are_read(predictor: GlyphPredictor, text: str) -> None:
    assert predictor.read(write([text], spacing=20)).text == text


def test_an_empty_box_is_no_character(predictor: GlyphPredictor) -> None:
    assert predictor.read(comb("AB CD")).text in ("ABCD", "AB CD")


def test_boxes_are_taken_away_and_a_cell_gives_one_piece() -> None:
    page = find_lines(to_colour(comb("ABDE")))
    [line] = page.lines
    assert [piece.cell for piece in line.pieces] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("picture", "text"),
    [
        (write(["TEST", "2345"]), "TEST\n2345"),
        (write(["HEAT AND RAN"]), "HEAT AND RAN"),
        (comb("8245"), "8245"),
        (Image.fromarray(255 - np.asarray(write(["2345"]))), "2345"),
    ],
    ids=["lines", "words", "boxes", "light on dark"],
)
def test_print_is_read(predictor: GlyphPredictor, picture: Image.Image, text: str) -> None:
    reading = predictor.read(picture)
    assert (reading.status, reading.text) == ("ok", text)
    probabilities = [c.probability for line in reading.lines for word in line.words for c in word.characters]
    assert reading.confidence == min(p for p in probabilities if p is not None)


def test_boxes_of_characters_hold_their_ink(predictor: GlyphPredictor) -> None:
    picture = write(["TEST"])
    [line] = predictor.read(picture).lines
    dark = np.asarray(picture) < 128
    inside = np.zeros_like(dark)
    for character in line.words[0].characters:
        left, top, right, bottom = character.box
        inside[top:bottom, left:right] = True
        assert dark[top:bottom, left:right].any()
    assert not (dark & ~inside).any()


def test_the_alphabet_limits_the_answers() -> None:
    reading = GlyphPredictor(MODEL, "cpu", alphabet="0123456789").read(write(["IO2S."]))
    assert reading.text is not None
    assert reading.text.replace(" ", "").isdigit()


def test_words_are_those_listed(predictor: GlyphPredictor) -> None:
    predictor = GlyphPredictor(MODEL, "cpu", words=["RAN", "SUN", "WATER"])
    assert predictor.read(write(["BAN"])).text == "RAN"


def test_joined_script_is_refused(predictor: GlyphPredictor) -> None:
    page = Image.new("L", (700, 120), 255)
    xs = np.arange(20, 680)
    wave = 60 + 25 * np.sin(xs / 9.0)
    ImageDraw.Draw(page).line(list(zip(xs.tolist(), wave.tolist(), strict=True)), fill=0, width=4)
    reading = predictor.read(page)
    assert (reading.status, reading.lines) == ("joined_script", ())


def test_nothing_and_damage_have_their_statuses(predictor: GlyphPredictor, tmp_path: Path) -> None:
    assert predictor.read(Image.new("L", (90, 60), 255)).status == "no_glyph"
    reading = predictor.read(tmp_path / "gone.png")
    assert reading.status == "failed"
    assert "gone.png" in str(reading.error)


def piece(left: int, right: int) -> Piece:
    return Piece(Box(0, left, 20, right), np.ones((20, right - left), bool), left)


def test_a_wide_gap_divides_words() -> None:
    path = [Choice(piece(left, left + 10), None) for left in (0, 14, 28, 70, 84)]
    assert [len(group) for group in split_words(path, 20)] == [3, 2]


def test_a_word_list_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read"):
        read_words(tmp_path / "gone.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ConfigError, match="holds no words"):
        read_words(tmp_path / "empty.txt")
    with pytest.raises(DataError, match=r"/dev/zero: cannot be read \(it has more than"):  # and has no end
        read_words(Path("/dev/zero"))
    (tmp_path / "words.txt").write_text("one\n\ntwo\n")
    assert read_words(tmp_path / "words.txt") == ["one", "two"]


def test_a_folder_of_texts_to_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_small_onnx(tmp_path / "model.onnx")
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture = write(["AB", "CD"])
    picture.save(folder / "a.png")
    Image.new("L", (50, 50), 255).save(folder / "b.png")
    (folder / "c.png").touch()
    command = ["--model", str(model), "--batch", str(folder), "--text", "--output"]
    for name in ("r.json", "r.csv", "r.jsonl", "r.hocr"):
        assert inference.main([*command, str(tmp_path / name)]) == SOME_FAILED
    rows = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [row["status"] for row in rows] == ["ok", "no_glyph", "failed"]
    assert list(rows[0]) == ["file", "status", "text", "confidence", "lines", "table", "error"]
    [first, second] = rows[0]["lines"]
    assert rows[0]["text"] == f"{first['text']}\n{second['text']}"
    assert set(first["words"][0]["characters"][0]) == {"label", "probability", "box", "top_k", "cell"}
    lines = (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    table = list(csv.DictReader((tmp_path / "r.csv").read_text("utf-8-sig").splitlines()))
    assert list(table[0]) == ["file", "status", "text", "confidence", "error"]
    pages = (tmp_path / "r.hocr").read_text(encoding="utf-8")
    assert f"bbox 0 0 {picture.width} {picture.height}" in pages
    assert pages.count("class='ocr_page'") == 3
    capsys.readouterr()
    assert inference.main([*command, str(tmp_path / "r.jsonl")]) == SOME_FAILED
    assert "holds 3 rows" in capsys.readouterr().err


def test_a_single_picture_is_printed_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_small_onnx(tmp_path / "model.onnx")
    write(["AB"]).save(tmp_path / "a.png")
    drawn = tmp_path / "drawn.png"
    command = ["--model", str(model), "--image", str(tmp_path / "a.png")]
    assert inference.main([*command, "--text", "--visualize", str(drawn)]) == 0
    assert capsys.readouterr().out.split("\t")[:2] == [str(tmp_path / "a.png"), "ok"]
    with Image.open(drawn) as image:
        assert image.size[0] > 100
    assert inference.main(command) == 0
    captured = capsys.readouterr()
    assert "several_glyphs" in captured.out
    assert "--text reads them" in captured.err


def test_the_benchmark_counts_edits() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == 3
    assert plain("Fair Sun|set") == "fairsunset"


def test_many_letters_in_few_parts_are_joined_script() -> None:
    mask = np.zeros((30, 300), bool)
    mask[14:17] = True
    ink = np.where(mask, 1, 0).astype(np.float32)
    edges = range(0, 300, 30)
    pieces = [Piece(Box(14, left, 17, left + 30), np.ones((3, 30), bool), 1) for left in edges]
    page = Page(ink, 0.3, 1, [Line(pieces, 30)], False)

    def network(images: NDArray[np.uint8]) -> NDArray[Any]:
        return np.full((len(images), 1), 0.99)

    assert read_page(page, network, ["A"]) is None
    apart = [replace(piece, part=left) for left, piece in zip(edges, pieces, strict=True)]
    assert read_page(Page(ink, 0.3, 1, [Line(apart, 30)], False), network, ["A"]) is not None


def test_boxes_are_in_pixels_of_a_picture_that_was_shrunk(predictor: GlyphPredictor, tmp_path: Path) -> None:
    small = write(["TEST"])
    factor = 4 * 1600 // max(small.size)
    large = small.resize((small.width * factor, small.height * factor))
    assert max(large.size) >= 2 * 1600
    [one], [other] = predictor.read(small).lines, predictor.read(large).lines
    np.testing.assert_allclose(np.array(other.box) / factor, one.box, atol=2)


def test_characters_and_texts_do_not_share_a_file(tmp_path: Path) -> None:
    model = save_small_onnx(tmp_path / "model.onnx")
    write(["A"]).save(tmp_path / "a.png")
    output = tmp_path / "r.jsonl"
    command = ["--model", str(model), "--image", str(tmp_path / "a.png"), "--output", str(output)]
    for first, then, fact in (
        ([], ["--text"], r"rows of single characters \(without --text\)"),
        (["--text"], [], r"rows of texts \(--text\)"),
    ):
        assert inference.main([*command, *first]) == 0
        before = output.read_bytes()
        with pytest.raises(DataError, match=fact):
            inference.main([*command, *then])
        assert output.read_bytes() == before
        output.unlink()


def test_what_lies_beyond_the_rules_of_a_box_is_not_in_it() -> None:
    clean, dirty = comb("ABDE"), comb("ABDE")
    ImageDraw.Draw(dirty).rectangle((100, 2, 115, 8), fill=0)
    boxes = [[piece.box for piece in find_lines(to_colour(page)).lines[0].pieces] for page in (clean, dirty)]
    np.testing.assert_allclose(boxes[1], boxes[0], atol=2)


def test_lines_to_write_on_that_are_much_shorter_than_the_page_are_taken_away(predictor: GlyphPredictor) -> None:
    texts = ["2345", "KRTH", "9876", "MNAB", "4736", "FERN"]
    written = write(texts)
    page = Image.new("L", (900, written.height), 255)
    page.paste(written)
    shown = np.asarray(page) < 128
    pen = ImageDraw.Draw(page)
    for top in range(20, written.height - 20, 96):
        foot = top + int(np.flatnonzero(shown[top : top + 96].any(axis=1))[-1])
        pen.rectangle((10, foot + 1, 250, foot + 2), fill=0)  # the letters stand on it
    assert predictor.read(page).text == "\n".join(texts)


def test_an_underline_is_no_character(predictor: GlyphPredictor) -> None:
    page = write(["TEST 2345"])
    ImageDraw.Draw(page).line((30, 95, 150, 95), fill=0, width=4)
    assert predictor.read(page).text == "TEST 2345"


def test_a_page_is_one_of_digits_where_they_explain_it_nearly_as_well() -> None:
    names, alike = ["0", "O", "A"], np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]])
    round_one = Choice(piece(0, 9), np.array([0.3, 0.6, 0.1]))
    letter = Choice(piece(0, 9), np.array([0.05, 0.05, 0.9]))
    assert holds_digits_only([round_one] * 4, names, alike, 1.0)
    assert not holds_digits_only([round_one, letter, letter], names, alike, 1.0)
    assert not holds_digits_only([Choice(piece(0, 9), None)], names, alike, 1.0)
    assert not holds_digits_only([letter], ["A", "B", "C"], np.eye(3), 1.0)


def test_what_is_a_number_has_no_letters() -> None:
    names, alike = ["0", "O", "A"], np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]])
    path = [Choice(piece(12 * i, 12 * i + 9), np.array([0.2, 0.7, 0.1])) for i in range(3)]
    line = Line([choice.piece for choice in path], 20)
    assert label(path, [path], names, line, alike, None, set(), set()) == ["O", "O", "O"]
    assert label(path, [path], names, line, alike, None, {id(choice) for choice in path}, set()) == ["0", "0", "0"]


def test_letters_in_boxes_are_capitals_where_most_of_them_look_so() -> None:
    names = ["A", "Q", "R", "a", "r"]

    def boxes(*letters: str) -> list[str]:
        rows = [[0.8 if name == letter else 0.05 for name in names] for letter in letters]
        rows = [
            [0.15 if (name, letter) == ("Q", "a") else p for name, p in zip(names, row, strict=True)]
            for letter, row in zip(letters, rows, strict=True)
        ]
        path = [Choice(replace(piece(12 * i, 12 * i + 9), cell=i), np.array(row)) for i, row in enumerate(rows)]
        line = Line([choice.piece for choice in path], 20)
        capitals = {id(choice) for choice in path} if holds_capitals(path, names) else set()
        return label(path, [path], names, line, np.eye(5), None, set(), capitals)

    assert boxes("A", "a", "R") == ["A", "Q", "R"]
    assert boxes("a", "r", "R") == ["a", "r", "R"]


def test_the_line_tells_the_case_of_a_word_that_does_not() -> None:
    path = [Choice(piece(12 * i, 12 * i + width), None) for i, width in enumerate((5, 5, 9, 9))]
    assert set_case(path, [path[:2], path[2:]], ["I", "L", "a", "n"], None) == ["l", "l", "a", "n"]
    assert set_case(path, [path[:2], path[2:]], ["I", "L", "A", "N"], None) == ["I", "I", "A", "N"]
    small = ["A", "I", "I", "a", "n"]
    path = [Choice(piece(12 * i, 12 * i + width), None) for i, width in enumerate((9, 5, 5, 9, 9))]
    assert set_case(path, [path[:3], path[3:]], small, None) == ["A", "l", "l", "a", "n"]
    assert set_case(path[:2], [path[:2]], ["A", "I"], None) == ["A", "I"]
    path = [Choice(piece(16 * i, 16 * i + width), None) for i, width in enumerate((8, 8, 10, 8))]
    assert [one.piece.box.height for one in path] == [20] * 4
    assert set_case(path, [path], ["A", "L", "L", "N"], None) == ["A", "I", "L", "N"]
    assert set_case(path, [path], ["a", "L", "L", "n"], None) == ["a", "l", "l", "n"]


def test_the_flat_end_of_a_stroke_is_no_piece() -> None:
    mask = np.zeros((40, 110), bool)
    mask[:, 4:8] = mask[:, 24:28] = mask[36:, 4:28] = mask[:4, 4:110] = True
    pieces = cut_piece(Piece(Box(0, 0, 40, 110), mask, 1), 40)
    assert len(pieces) >= 2
    assert min(piece.box.height for piece in pieces) == 40
    assert sum(int(piece.mask.sum()) for piece in pieces) == mask.sum()


def test_characters_beside_the_sides_of_wide_cells_stay() -> None:
    font = ImageFont.truetype(font_folder() / "DejaVuSans.ttf", 40)
    page = Image.new("L", (1000, 100), 255)
    pen = ImageDraw.Draw(page)
    for left in (20, 340, 660):
        pen.rectangle((left, 15, left + 320, 85), outline=90, width=2)
        pen.text((left + 15, 50), "H E A", font=font, fill=0, anchor="lm")
    [line] = find_lines(to_colour(page)).lines
    assert len({piece.part for piece in line.pieces}) == 9


def test_intervals_come_from_sources() -> None:
    good, bad = Result("one", 0, 10, False, 0.1), Result("other", 10, 10, False, 0.1)
    assert error_rate([good, bad, bad]) == 20 / 30
    assert interval([good] * 5) is None
    assert interval([good, bad]) == (0.0, 1.0)
    assert interval([good, good._replace(source="third")]) == (0.0, 0.0)


@pytest.mark.parametrize(("name", "characters"), [("digits", "0123456789"), ("upper", "ABC"), ("?!", "?!")])
def test_alphabets_have_names(name: str, characters: str) -> None:
    arguments, _ = parse(["--image", "a.png", "--alphabet", name], None)
    assert str(arguments.alphabet).startswith(characters)


def test_an_alphabet_that_is_named_limits_the_answers(tmp_path: Path) -> None:
    write(["IO2S"]).save(tmp_path / "a.png")
    command = ["--model", str(MODEL), "--image", str(tmp_path / "a.png"), "--text", "--alphabet", "lower"]
    assert inference.main([*command, "--output", str(tmp_path / "r.json")]) == 0
    [row] = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert row["text"].isalpha()
    assert row["text"].islower()


def test_letters_that_stand_on_a_rule_keep_their_feet(predictor: GlyphPredictor) -> None:
    ruled = Image.new("L", (420, 260), 255)
    pen = ImageDraw.Draw(ruled)
    for row in (40, 88, 136, 184, 232):
        pen.line((0, row, 420, row), fill=190, width=3)
    font = ImageFont.truetype(font_folder() / "DejaVuSans.ttf", 40)
    for place, character in enumerate("BUDEZ"):
        pen.text((40 + 50 * place, 137), character, font=font, fill=0, anchor="ls")
    [line] = find_lines(to_colour(ruled)).lines
    clean = Image.new("L", ruled.size, 255)
    for place, character in enumerate("BUDEZ"):
        ImageDraw.Draw(clean).text((40 + 50 * place, 137), character, font=font, fill=0, anchor="ls")
    page = find_lines(to_colour(clean))
    bottoms = [max(piece.box.bottom for piece in each.pieces) for each in (line, page.lines[0])]
    assert abs(bottoms[0] - bottoms[1]) <= page.zoom
    assert predictor.read(ruled).text == "BUDEZ"


def test_a_tall_letter_on_ruled_paper_is_no_side_of_a_box() -> None:
    ruled = Image.new("L", (700, 300), 255)
    pen = ImageDraw.Draw(ruled)
    for row in (40, 120, 200, 280):
        pen.line((0, row, 700, row), fill=150, width=3)
    font = ImageFont.truetype(font_folder() / "DejaVuSans.ttf", 90)
    for place, character in enumerate("flob"):
        pen.text((200 + 80 * place, 199), character, font=font, fill=0, anchor="ls")
    [line] = find_lines(to_colour(ruled)).lines
    assert len({piece.part for piece in line.pieces}) == 4
    assert all(piece.cell is None for piece in line.pieces)


@pytest.mark.parametrize("gap", [0, 8])
@pytest.mark.parametrize("angle", [-8, 4])
def test_boxes_that_are_not_level_are_turned_and_answers_are_where_they_stand(
    predictor: GlyphPredictor, angle: int, gap: int
) -> None:
    text = "27436825"
    picture = comb(text, gap).rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=255)
    reading = predictor.read(picture)
    assert reading.text == text
    assert reading.size == picture.size
    turn = np.radians(-angle)
    for place, character in enumerate(reading.lines[0].words[0].characters):
        x, y = 50 + (60 + gap) * place - ((60 + gap) * len(text) + 40) / 2, 0
        left, top, right, bottom = character.box
        middle = np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y
        assert (left + right) / 2 - picture.width / 2 == pytest.approx(middle[0], abs=6)
        assert (top + bottom) / 2 - picture.height / 2 == pytest.approx(middle[1], abs=6)


@pytest.mark.parametrize("gap", [6, 20])
def test_boxes_that_stand_apart_are_taken_away(predictor: GlyphPredictor, gap: int) -> None:
    page = comb("BK4736", gap)
    assert predictor.read(page).text == "BK4736"
    # A stroke that ties two boxes together does not keep them.
    ImageDraw.Draw(page).line((70, 60, 95 + gap, 60), fill=0, width=5)
    found = find_lines(to_colour(page))
    pieces = [piece for line in found.lines for piece in line.pieces]
    assert len({piece.cell for piece in pieces}) >= 5
    assert max(piece.box.height for piece in pieces) < 50 * found.zoom


@pytest.mark.parametrize(("tone", "width"), [(190, 2), (20, 1)], ids=["pale rules", "dark, thin rules"])
def test_words_on_squared_paper_are_read(predictor: GlyphPredictor, tone: int, width: int) -> None:
    text = write(["HELLO 4736"])
    page = Image.new("L", text.size, 245)
    pen = ImageDraw.Draw(page)
    for place in range(11, max(page.size), 44):
        pen.line((place, 0, place, page.height), fill=tone, width=width)
        pen.line((0, place, page.width, place), fill=tone, width=width)
    page = Image.fromarray(np.minimum(np.asarray(page), np.asarray(text)))
    found = find_lines(to_colour(page))
    assert found.grid is None
    assert len(found.lines) == 1
    assert predictor.read(page).text == "HELLO 4736"


def test_broad_strokes_are_ink_to_their_middle() -> None:
    crop = np.ones((60, 240), np.float32)
    crop[8:52, 20:30] = crop[8:52, 60:70] = crop[22:32, 20:70] = 0.1
    page = find_lines(grey_to_colour(crop))
    inside = page.ink[round(12 * page.zoom) : round(48 * page.zoom), round(23 * page.zoom) : round(27 * page.zoom)]
    assert float(inside.min()) > 0.7


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("dark", [False, True])
def test_shadows_do_not_turn_ink_and_paper_round(share: float, dark: bool) -> None:
    page = to_grey(write(["ABCDEFHK", "GHKMNTUE"]))
    page = 1 - page if dark else page
    edge = np.clip((np.linspace(0, 1, page.shape[1], dtype=np.float32) - share) * 4, -1, 1)
    lines = find_lines(grey_to_colour(page * (0.65 - 0.35 * edge))).lines
    assert [len({piece.part for piece in line.pieces}) for line in lines] == [8, 8]


def on_a_table(sheet: Image.Image, angle: float, tone: int) -> Image.Image:
    """A sheet that lies aslant on a table of grained wood, photographed in light that falls from one side."""
    width, height = sheet.width + 260, sheet.height + 200
    grain = np.random.default_rng(0).normal(0, 12, (height // 4 + 1, 8)).repeat(4, 0)[:height]
    table = Image.fromarray(np.clip(tone + np.repeat(grain, width // 8 + 1, 1)[:, :width], 0, 255).astype(np.uint8))
    turned = sheet.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    cover = Image.new("L", sheet.size, 255).rotate(angle, expand=True)
    table.paste(turned, (100, 60), cover)
    light = np.linspace(0.7, 1, width)
    return Image.fromarray((np.asarray(table) * light).astype(np.uint8))


@pytest.mark.parametrize("tone", [30, 110, 150])
@pytest.mark.parametrize("angle", [0, 5])
def test_a_sheet_on_a_table_is_read_and_the_table_is_not(predictor: GlyphPredictor, tone: int, angle: float) -> None:
    sheet = Image.new("L", (620, 300), 235)
    sheet.paste(write(["HELLO", "NR 4736"]).resize((540, 240)).point(lambda value: value * 235 // 255), (40, 30))
    assert predictor.read(sheet).text == "HELLO\nNR 4736"
    assert predictor.read(on_a_table(sheet, angle, tone)).text == "HELLO\nNR 4736"


def test_a_shadow_whose_edge_falls_on_letters_hides_none(predictor: GlyphPredictor) -> None:
    line = to_grey(write(["SHADE"]))[:96]
    down = np.linspace(-15, 15, len(line), dtype=np.float32)[:, None]
    shaded = (0.9 * line * (1 - 0.5 / (1 + np.exp(-down)))).astype(np.float32)
    assert predictor.read(shaded).text == "SHADE"


@pytest.mark.parametrize(
    ("top", "bottom", "width", "mark"),
    [(44, 92, 40, False), (80, 100, 20, True), (70, 118, 18, True), (0, 40, 18, True)],
    ids=["small letter", "full stop", "comma", "apostrophe"],
)
def test_marks_are_told_from_small_letters(top: int, bottom: int, width: int, mark: bool) -> None:
    def at(left: int, top: int, bottom: int, width: int) -> Piece:
        return Piece(Box(top, left, bottom, left + width), np.ones((bottom - top, width), bool), left)

    line = Line([at(0, 0, 100, 50), at(60, top, bottom, width), at(120, 0, 100, 50), at(180, 0, 100, 50)], 100)
    assert is_mark(line, 1) is mark


def test_a_word_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes("one\r\ntwo".encode("utf-8-sig"))
    assert read_words(tmp_path / "words.txt") == ["one", "two"]
