"""Patterns: their automata agree with Python's `re`, and the lattice is searched for the texts that they know."""

import random
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import inference
from glyphs.core.errors import ConfigError
from glyphs.pictures.lines import Box, Line, Page, Piece
from glyphs.reading.automaton import MOST_STATES, Automaton, pattern_automaton, word_automaton
from glyphs.reading.lattice import Known, matching_path
from glyphs.reading.predictor import GlyphPredictor
from glyphs.reading.reader import read_page
from tests.conftest import ROOT, refused
from tests.test_reader import write

MODEL = ROOT / "pretrained" / "glyphs47.onnx"
ATOMS = st.sampled_from(
    ["a", "b", "0", " ", ".", "[ab]", "[^a]", r"\d", r"\.", "(?:a|b0)", "(a?b)", "(|0)", "(?P<x>b)"]
)
COUNTS = st.sampled_from(["", "?", "*", "+", "*?", "{2}", "{1,2}", "{,2}", "{2,}", "{0}"])


@st.composite
def patterns(draw: st.DrawFn) -> str:
    parts = st.lists(st.tuples(ATOMS, COUNTS).map("".join), max_size=4).map("".join)
    branches = draw(st.lists(parts, min_size=1, max_size=3))
    # A name can be given once only.
    return "|".join(branches).replace("?P<x>", "?:")


@given(patterns(), st.lists(st.text("ab0. ", max_size=5), min_size=5))
def test_a_pattern_means_what_python_says(pattern: str, texts: list[str]) -> None:
    # Whatever it is made of, "ab" beside it makes it one that matches some text.
    pattern += "|ab"
    automaton = pattern_automaton(pattern)
    for text in ["", *"ab0. ", *texts]:
        assert automaton.accepts(text) == bool(re.fullmatch(pattern, text)), text


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^ab$", "ab"),
        (r"a\$", "a$"),
        ("[]a]", "]"),
        (r"[\]a]+", "]a"),
        ("a{", "a{"),
        ("{}", "{}"),
        ("[/-]{2}", "/-"),
        ("[[a]+", "[a"),
        ("[--a]", "a"),
    ],
)
def test_unusual_ways_to_write_are_understood(pattern: str, text: str) -> None:
    assert pattern_automaton(pattern).accepts(text)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("[0-9", "no regular expression"),
        ("a**", "no regular expression"),
        ("(?=a)b", "only (?:...)"),
        ("(?i)a", "only (?:...)"),
        (r"(a)\1", r"not \1"),
        (r"\bab", r"not \b"),
        ("a$b", "may only stand around"),
        ("", "no text but the empty one"),
        ("()*", "no text but the empty one"),
        ("((){400}){400}", "no text but the empty one"),
        (f"a{{{MOST_STATES + 1}}}", "fewer repetitions"),
        ("((a{90}){90}){90}", "fewer repetitions"),
        ("(" * 2000 + "a" + ")" * 2000, ""),
    ],
)
def test_a_pattern_that_cannot_be_used_is_explained(pattern: str, reason: str) -> None:
    with pytest.raises(ConfigError, match="^pattern .*" + re.escape(reason)):
        pattern_automaton(pattern)


def piece(left: int, right: int, height: int = 20) -> Piece:
    return Piece(Box(20 - height, left, 20, right), np.ones((height, right - left), bool), left)


def text_of(
    pieces: list[Piece],
    table: dict[int, list[float]],
    names: str,
    pattern: str | Automaton,
    gaps: tuple[float, ...] | None = None,
) -> str | None:
    """The labels of the best path, for pieces with these probabilities, by the left edge of the candidate's box."""
    places = [place for place in range(len(pieces)) if place in table]
    known = {(place, place + 1): Known(pieces[place], np.array(table[place]), 0.0) for place in places}
    automaton = pattern_automaton(pattern) if isinstance(pattern, str) else pattern
    found = matching_path(
        Line(pieces, 20), known, np.eye(len(names)), names, automaton, gaps or (0.2,) * (len(pieces) - 1)
    )
    if found is None:
        return None
    words = []
    for group in found:
        labels = []
        for choice in group:
            fitting = [name for name in names if choice.only is None or {name, name.lower()} & choice.only]
            if choice.probabilities is None:
                labels.append("-" if choice.only is None else min(choice.only))
            else:
                scores = dict(zip(names, choice.probabilities, strict=True))
                labels.append(max(fitting, key=scores.__getitem__))
        words.append("".join(labels))
    return " ".join(words)


def test_the_likeliest_text_that_matches_is_the_answer() -> None:
    pieces = [piece(0, 10), piece(14, 24)]
    table = {0: [0.5, 0.3, 0.2], 1: [0.6, 0.3, 0.1]}
    assert text_of(pieces, table, "AB1", "[A-Z0-9]+") == "AA"
    assert text_of(pieces, table, "AB1", "[A-Z][0-9]") == "A1"
    assert text_of(pieces, table, "AB1", "A1|BB") == "BB"
    assert text_of(pieces, table, "AB1", "A{3}") is None
    assert text_of(pieces, table, "AB1", "A") is None


def test_spaces_stand_where_the_pattern_has_them() -> None:
    pieces = [piece(0, 10), piece(14, 24), piece(60, 70)]
    table = {place: [1.0] for place in range(3)}
    assert text_of(pieces, table, "A", "A+", (0.2, 2.0)) == "AAA"
    assert text_of(pieces, table, "A", "[A ]+", (0.2, 2.0)) == "AA A"
    assert text_of(pieces, table, "A", "A+( A+)?", (0.2, 2.0)) == "AA A"
    assert text_of(pieces, table, "A", "A AA", (0.2, 2.0)) == "A AA"


def test_marks_and_unknown_signs_stand_where_the_pattern_has_them() -> None:
    dot = piece(12, 16, 4)
    pieces = [piece(0, 10), dot, piece(20, 30)]
    table = {0: [1.0], 2: [1.0]}
    assert text_of(pieces, table, "1", "1[.]1") == "1.1"
    assert text_of(pieces, table, "1", "1,1") == "1,1"
    assert text_of(pieces, table, "1", "11") == "11"
    strokes = [piece(0, 10), piece(12, 16), piece(20, 30)]
    assert text_of(strokes, {place: [1.0] for place in range(3)}, "1", "1/1") == "1/1"


def test_listed_words_decide_how_pieces_are_joined() -> None:
    cut = [Piece(Box(0, left, 20, left + 8), np.ones((20, 8), bool), 1) for left in (0, 8, 16)]
    names = "MRND"
    rows = {"R": [0.1, 0.8, 0.05, 0.05], "N": [0.1, 0.05, 0.8, 0.05], "D": [0.01, 0.01, 0.01, 0.97]}
    both = Piece(Box(0, 0, 20, 16), np.ones((20, 16), bool), 1)
    known = {
        (0, 1): Known(cut[0], np.array(rows["R"]), 0.0),
        (1, 2): Known(cut[1], np.array(rows["N"]), 0.0),
        (2, 3): Known(cut[2], np.array(rows["D"]), 0.0),
        (0, 2): Known(both, np.array([0.3, 0.3, 0.3, 0.1]), 0.0),
    }
    for words, lengths in ((["md", "rn"], [2]), (["md", "rnd"], [3]), (["md", "rnd d"], [2])):
        automaton = word_automaton(words, names)
        found = matching_path(Line(cut, 20), known, np.eye(4), names, automaton, (0, 0))
        assert found is not None
        assert [len(group) for group in found] == lengths


@pytest.mark.parametrize("count", [1, 5])
def test_how_finely_ink_was_cut_is_no_reason_for_another_word(count: int) -> None:
    """What looks like an R is the B of a listed word rather than a word of its own, of one piece as of five."""
    cut = [Piece(Box(0, left, 20, left + 10 // count), np.ones((20, 10 // count), bool), 1) for left in range(count)]
    pieces, names = [*cut, piece(14, 24)], "RBL"
    known = {
        (0, count): Known(piece(0, 10), np.array([0.87, 0.1, 0.03]), 0.0),
        (count, count + 1): Known(pieces[-1], np.array([0.01, 0.01, 0.98]), 0.0),
    }
    known |= {(place, place + 1): Known(each, np.full(3, 1e-4), 0.0) for place, each in enumerate(cut) if count > 1}
    gaps = [0.0] * (count - 1) + [0.5]
    for words, lengths in ((["bl", "r", "l"], [2]), (["b", "r", "l"], [1, 1])):
        found = matching_path(Line(pieces, 20), known, np.eye(3), names, word_automaton(words, names), gaps)
        assert found is not None
        assert [len(group) for group in found] == lengths
        assert found[0][0].only == frozenset("b" if lengths == [2] else "r")


def test_words_that_are_not_listed_stay_and_so_do_marks() -> None:
    names, sure = "ABCD", 0.97
    table = {place: [sure if name == wanted else 0.01 for name in names] for place, wanted in ((0, "A"), (2, "C"))}
    pieces = [piece(0, 10), piece(12, 16, 4), piece(20, 30), piece(34, 44)]
    table[3] = [0.4, 0.2, 0.2, 0.2]
    assert text_of(pieces, table, names, word_automaton(["acd", "bd"], names)) == "A-CD"
    assert text_of(pieces, table, names, word_automaton(["bbd"], names)) == "A-CA"
    assert text_of(pieces, table, names, word_automaton(["a", "ca"], names), (0.2, 2.0, 0.2)) == "A- CA"


def test_a_line_that_cannot_match_keeps_what_was_read() -> None:
    pieces = [piece(0, 10), piece(14, 24)]
    page = Page(np.ones((20, 30), np.float32), 0.3, 1, [Line(pieces, 20)], False)

    def network(images: NDArray[np.uint8]) -> NDArray[Any]:
        return np.full((len(images), 1), 0.99)

    lines = read_page(page, network, ["A"], automaton=pattern_automaton("A{4}"))
    assert lines is not None
    assert [line.text for line in lines] == ["AA"]


@pytest.fixture(scope="module")
def predictor() -> GlyphPredictor:
    return GlyphPredictor(MODEL, "cpu")


@pytest.mark.parametrize(
    ("text", "pattern", "answer"),
    [
        ("IO2S8", "[0-9]{5}", "10258"),
        ("IO2S8", "[A-Z]{2}[0-9]{3}", "IO258"),
        ("HEAT", "[a-z]+", None),  # which letters it is taken for is left open; the case is the pattern's
        ("COX", "[a-z]+", "cox"),
        ("COX", "[A-Z]+", "COX"),
        ("cox", "[A-Z]+", "COX"),
        ("12/10/25", r"\d\d/\d\d/\d\d", "12/10/25"),
        ("AB 45", "[A-Z0-9]+", "AB45"),
        ("AB 12", "[A-Z]+ [0-9]+", "AB 12"),
    ],
)
def test_print_is_read_by_pattern(predictor: GlyphPredictor, text: str, pattern: str, answer: str | None) -> None:
    reading = predictor.read(write([text]), pattern=pattern)
    assert reading.status == "ok"
    assert re.fullmatch(pattern, reading.text or "")
    assert answer in (reading.text, None)


@pytest.mark.parametrize(
    ("text", "pattern", "answer"),
    [("24/08", r"\d\d/\d\d", "24/08"), ("3.50", "[0-9]+[.,][0-9]{2}", "3.50"), ("3.50", None, "350")],
)
def test_an_alphabet_leaves_the_signs_that_a_pattern_asks_for(
    predictor: GlyphPredictor, text: str, pattern: str | None, answer: str
) -> None:
    reading = predictor.view("digits").read(write([text]), pattern=pattern)
    assert (reading.status, reading.text) == ("ok", answer)


def test_what_the_alphabet_rules_out_is_no_answer_to_a_pattern(predictor: GlyphPredictor) -> None:
    digits = predictor.view("digits")
    for pattern in ("[A-Z][0-9]", "ab|c[x-z]*"):  # before, any ink was an A, which is no sign that the network lacks
        with refused(ConfigError, "rules out"):
            digits.view(pattern=pattern)
        with refused(ConfigError, "rules out"):
            digits.read(write(["Z1"]), pattern=pattern)
    assert digits.read(write(["IO2S8"]), pattern="[A-Z]?[0-9]{5}|[A-Z]{5}").text == "10258"
    listed = predictor.view(words=["IO", "10"])
    assert listed.view("digits").read(write(["IO"])).text == "10"


def test_what_cannot_match_is_uncertain(predictor: GlyphPredictor) -> None:
    reading = predictor.read(write(["23"]), pattern="[0-9]{7}")
    assert (reading.status, reading.text) == ("uncertain", "23")


def test_the_flag_and_its_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(["IO2S8"]).save(tmp_path / "a.png")
    command = ["--image", str(tmp_path / "a.png"), "--pattern", "[0-9]{5}"]
    assert inference.main([*command, "--text"]) == 0
    assert capsys.readouterr().out.split("\t")[1:3] == ["ok", "10258"]
    with pytest.raises(SystemExit):
        inference.main(command)
    assert "--pattern is for --text" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"pattern '\[0-9'"):
        inference.main([*command[:2], "--text", "--pattern", "[0-9"])


def test_a_long_list_of_words_is_a_trie_of_arrays() -> None:
    rng = random.Random(0)
    words = [
        "".join(rng.choices("abcdefgh\N{GREEK SMALL LETTER BETA}\U0001f600", k=rng.randint(1, 9)))
        for _ in range(20_000)
    ]
    tracemalloc.start()
    automaton = word_automaton([*words, *words[:9], ""], "ABC")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    prefixes = {word[:length] for word in words for length in range(1, len(word) + 1)}
    assert len(automaton.symbol) == len(prefixes) + 3
    assert most < 300 * len(prefixes)  # bytes; of sets of what follows each it would be over a thousand
    listed = set(words)
    lexicon = replace(automaton, symbols=(*automaton.symbols[:-2], frozenset(), frozenset()))  # nothing but the list
    for word in words[:500]:
        assert lexicon.accepts(word)
        assert lexicon.accepts(f"{word} {words[0]}")
        assert lexicon.accepts(word[:-1]) == (word[:-1] in listed)


def test_a_pattern_is_text() -> None:
    with refused(ConfigError, r"pattern '\udce9'", "is not UTF-8 text"):
        pattern_automaton("\udce9")
