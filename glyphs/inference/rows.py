"""Predictions as rows: their one schema, and how it is written to JSON, JSON lines, CSV, a terminal and a pipe."""

import contextlib
import csv
import importlib.util
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple
from xml.sax.saxutils import escape, quoteattr

import glyphs
from glyphs.errors import ConfigError, DataError, GlyphError
from glyphs.files import explain_write_error, replacing, valid_utf8
from glyphs.text import csv_cell, one_line

Status = Literal["ok", "uncertain", "no_glyph", "several_glyphs", "failed"]
TextStatus = Literal["ok", "uncertain", "no_glyph", "joined_script", "failed"]
STDIN = "-"
DECIMALS = 6  # of a probability: finer than float32 tells apart near 1
ENCODER = json.JSONEncoder(ensure_ascii=False)
ROW_START = b'{"file": '
ROW_GROUP = 10_000  # rows of a .parquet file that are kept in memory


class Candidate(NamedTuple):
    """A class that a picture may show, and its probability in 0..1."""

    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What was found out about one picture.

    Attributes
    ----------
    file : its name, None for a picture that came from memory.
    status : `ok`; `uncertain`, below the confidence that was asked for; `no_glyph`, it shows no character;
        `several_glyphs`, it shows more than one; `failed`, it cannot be read.
    prediction : the likeliest class, only where the status is `ok`.
    confidence : the probability of the likeliest class, 0..1, for `ok` and `uncertain`.
    top_k : the likeliest classes, the likeliest first, for `ok` and `uncertain`; else empty.
    error : why, only where the status is `failed`.
    """

    file: str | None
    status: Status
    prediction: str | None = None
    confidence: float | None = None
    top_k: tuple[Candidate, ...] = ()
    error: str | None = None

    @property
    def answer(self) -> str | None:
        return self.prediction

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON has it."""
        return {
            "file": self.file,
            "status": self.status,
            "prediction": self.prediction,
            "confidence": self.confidence,
            "top_k": [candidate._asdict() for candidate in self.top_k],
            "error": self.error,
        }


class Character(NamedTuple):
    """A character of a text.

    label : what it is.  probability : 0..1, None for a mark, which is told by its shape.  box : left, top, right,
    bottom, in pixels of the picture as it is shown.  top_k : the likeliest classes, the likeliest first.
    """

    label: str
    probability: float | None
    box: tuple[int, ...]
    top_k: tuple[Candidate, ...]


class Word(NamedTuple):
    """A word of a text, and its box as of a character."""

    text: str
    box: tuple[int, ...]
    characters: tuple[Character, ...]


class TextLine(NamedTuple):
    """A line of a text, and its box as of a character."""

    text: str
    box: tuple[int, ...]
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Reading:
    """What text was found in one picture.

    Attributes
    ----------
    file : its name, None for a picture that came from memory.
    status : `ok`; `uncertain`, a character below the confidence that was asked for; `no_glyph`, there is no text;
        `joined_script`, its letters are joined, which is not read; `failed`, it cannot be read.
    confidence : the least probability of a character, 0..1, where there are any.
    lines : from top to bottom, for `ok` and `uncertain`.
    error : why, only where the status is `failed`.
    size : width and height of the picture, in pixels as of the boxes; None where it cannot be read.
    """

    file: str | None
    status: TextStatus
    confidence: float | None = None
    lines: tuple[TextLine, ...] = ()
    error: str | None = None
    size: tuple[int, int] | None = None

    @property
    def text(self) -> str | None:
        """The lines, with line breaks between them; None where there are none."""
        return "\n".join(line.text for line in self.lines) if self.lines else None

    @property
    def answer(self) -> str | None:
        return self.text

    @property
    def top_k(self) -> tuple[Candidate, ...]:
        """None of the whole; each character has its own."""
        return ()

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON has it."""
        return {
            "file": self.file,
            "status": self.status,
            "text": self.text,
            "confidence": self.confidence,
            "lines": [
                {
                    "text": line.text,
                    "box": line.box,
                    "words": [
                        {
                            "text": word.text,
                            "box": word.box,
                            "characters": [
                                character._asdict() | {"top_k": [each._asdict() for each in character.top_k]}
                                for character in word.characters
                            ],
                        }
                        for word in line.words
                    ],
                }
                for line in self.lines
            ],
            "error": self.error,
        }


Row = Prediction | Reading


@dataclass
class ResultFile:
    """An open file of results: where rows go, and what it already held."""

    write: Callable[[Row], object]
    resumable: bool = False
    done: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)

    def lacks(self, name: str) -> bool:
        """Whether the picture is still to be done; standard input is another picture every time."""
        return name == STDIN or valid_utf8(name) not in self.done

    def after_interruption(self) -> str:
        """What became of the rows of a run that was stopped."""
        if self.resumable:
            return f"{self.counts.total():,} rows are kept; the same command goes on with the other pictures"
        return "not written; rows of a run that is stopped are kept in a .jsonl file only"

    def summary(self) -> str:
        """How many pictures there are, and how many of each status."""
        parts = ", ".join(f"{count:,} {status.replace('_', ' ')}" for status, count in self.counts.most_common())
        return f"{self.counts.total():,} pictures" + (f": {parts}" if parts else "")


def json_row(row: Row) -> bytes:
    return ENCODER.encode(row.to_dict()).encode()


@contextlib.contextmanager
def write_json(path: Path, top_k: int | None) -> Iterator[ResultFile]:
    """A JSON array, whole at the end; rows are not kept in memory."""
    with replacing(path) as file:
        before = b"[\n"

        def write(row: Row) -> None:
            nonlocal before
            file.write(before + json_row(row))
            before = b",\n"

        yield ResultFile(write)
        file.write(b"[]\n" if before == b"[\n" else b"\n]\n")


@contextlib.contextmanager
def write_csv(path: Path, top_k: int | None) -> Iterator[ResultFile]:
    """A table for spreadsheets, whole at the end, the top k in two columns each; none for texts (top_k None)."""
    with replacing(path) as file:
        # write_through: nothing is left in this layer to be flushed to a file that was closed after an error.
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        rows = csv.writer(text)
        ranks = range(1, (top_k or 0) + 1)
        answer = "text" if top_k is None else "prediction"
        header = [f"{column}_{rank}" for rank in ranks for column in ("label", "probability")]
        rows.writerow(["file", "status", answer, "confidence", *header, "error"])

        def write(row: Row) -> None:
            candidates: list[object] = [value for candidate in row.top_k for value in candidate]
            candidates += [None] * (len(header) - len(candidates))
            cells = [row.file, row.status, row.answer, row.confidence, *candidates, row.error]
            rows.writerow([csv_cell(value) for value in cells])

        yield ResultFile(write)
        text.detach()


@contextlib.contextmanager
def write_json_lines(path: Path, top_k: int | None) -> Iterator[ResultFile]:
    """A JSON object a line, appended as it is made; the rows of an earlier run stay, and their pictures are done.

    Raises
    ------
    DataError : the file holds something else, or texts where characters are to follow, or the other way about.
    """
    with explain_write_error(path), path.open("a+b") as file:

        def write(row: Row) -> None:
            file.write(json_row(row) + b"\n")
            file.flush()

        results = ResultFile(write, resumable=True)
        file.seek(0)
        file.truncate(read_json_lines(file, path, top_k is None, results))
        yield results


def read_json_lines(file: BinaryIO, path: Path, texts: bool, results: ResultFile) -> int:
    """Note which rows an open file of JSON lines holds, texts or characters; returns where the last whole row ends.

    Raises
    ------
    DataError : as `write_json_lines`.
    """
    end = 0
    for number, line in enumerate(file, start=1):
        if not line.endswith(b"\n") and (line.startswith(ROW_START) or ROW_START.startswith(line)):
            break  # the earlier run died while it wrote this row
        try:
            old = json.loads(line)
            other_kind = ("text" in old) != texts
            results.done.add(old["file"])
            results.counts[str(old["status"])] += 1
        except (ValueError, TypeError, KeyError, RecursionError):
            raise DataError(f"{path}: line {number} is not a row of results; choose another --output") from None
        if other_kind:
            with_or_without = ("single characters", "without") if texts else ("texts", "with")
            raise DataError(
                f"{path}: holds rows of {with_or_without[0]}, written {with_or_without[1]} --text; "
                "choose another --output"
            )
        end += len(line)
    return end


@contextlib.contextmanager
def write_parquet(path: Path, top_k: int | None) -> Iterator[ResultFile]:
    """A table of typed columns, whole at the end: what JSON has, nested where that is."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    box = pyarrow.list_(pyarrow.int32())
    texts, numbers = pyarrow.string(), pyarrow.float64()
    candidates = pyarrow.list_(pyarrow.struct({"label": texts, "probability": numbers}))
    character = pyarrow.struct({"label": texts, "probability": numbers, "box": box, "top_k": candidates})
    word = pyarrow.struct({"text": texts, "box": box, "characters": pyarrow.list_(character)})
    line = pyarrow.struct({"text": texts, "box": box, "words": pyarrow.list_(word)})
    answer = ("text", "lines", pyarrow.list_(line)) if top_k is None else ("prediction", "top_k", candidates)
    schema = pyarrow.schema(
        {
            "file": texts,
            "status": texts,
            answer[0]: texts,
            "confidence": numbers,
            answer[1]: answer[2],
            "error": texts,
        }
    )
    waiting: list[dict[str, Any]] = []
    with replacing(path) as file, ParquetWriter(file, schema) as table:

        def write(row: Row) -> None:
            waiting.append(row.to_dict())
            if len(waiting) == ROW_GROUP:
                flush()

        def flush() -> None:
            table.write_table(pyarrow.Table.from_pylist(waiting, schema))
            waiting.clear()

        yield ResultFile(write)
        flush()


HOCR_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
<head>
<title>text</title>
<meta http-equiv="Content-Type" content="text/html;charset=utf-8" />
<meta name="ocr-system" content="Enhanced Glyph Recognition {version}" />
<meta name="ocr-capabilities" content="ocr_page ocr_line ocrx_word" />
</head>
<body>
"""


@contextlib.contextmanager
def write_hocr(path: Path, top_k: int | None) -> Iterator[ResultFile]:
    """hOCR 1.2 (kba.github.io/hocr-spec/1.2), whole at the end: a page for each picture, in it lines and words.

    Where a picture shows no text, or cannot be read, its page is empty.  `x_wconf` is the least probability of the
    word's characters, in percent; marks alone have none.
    """
    with replacing(path) as file:
        file.write(HOCR_HEAD.format(version=glyphs.__version__).encode())
        pages = itertools.count(1)

        def write(row: Row) -> None:
            if isinstance(row, Reading):
                file.write(hocr_page(row, next(pages)).encode())

        yield ResultFile(write)
        file.write(b"</body>\n</html>\n")


def hocr_page(reading: Reading, page: int) -> str:
    """A picture's text as an element of hOCR, the picture's number among the pages in its parts' names."""

    def element(tag: str, kind: str, number: str, title: str, content: str) -> str:
        return f"<{tag} class='{kind}' id='{number}' title={quoteattr(title)}>{content}</{tag}>"

    def bbox(box: Iterable[int]) -> str:
        return "bbox " + " ".join(map(str, box))

    lines = ""
    for i, line in enumerate(reading.lines, start=1):
        words = []
        for j, word in enumerate(line.words, start=1):
            known = [character.probability for character in word.characters if character.probability is not None]
            title = bbox(word.box) + (f"; x_wconf {round(100 * min(known))}" if known else "")
            words.append(element("span", "ocrx_word", f"word_{page}_{i}_{j}", title, escape(word.text)))
        lines += element("span", "ocr_line", f"line_{page}_{i}", bbox(line.box), " ".join(words)) + "\n"
    # The name stands between double quotes in a list that semicolons part: those are written as in a URL.
    name = one_line(reading.file or "").replace("%", "%25").replace('"', "%22").replace(";", "%3B")
    title = f'image "{name}"' + (f"; {bbox((0, 0, *reading.size))}" if reading.size else "") + f"; ppageno {page - 1}"
    return element("div", "ocr_page", f"page_{page}", title, f"\n{lines}") + "\n"


WRITERS = {
    ".json": write_json,
    ".csv": write_csv,
    ".jsonl": write_json_lines,
    ".parquet": write_parquet,
    ".hocr": write_hocr,
}


def open_results(path: Path, top_k: int | None) -> contextlib.AbstractContextManager[ResultFile]:
    """The file to write rows to, in the format of its suffix.

    Raises
    ------
    ConfigError : the suffix is of no format that we write, or the path is a folder.
    GlyphError : the format needs a package that is missing; or, when the context is entered or left, the file cannot be
        written.
    """
    if path.suffix.lower() not in WRITERS:
        raise ConfigError(f"{path}: results are written to {', '.join(WRITERS)}; choose one of these suffixes")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; name a file in it")
    if path.suffix.lower() == ".hocr" and top_k is not None:
        raise ConfigError(f"{path}: hOCR is for texts: add --text, or choose another suffix")
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise GlyphError(f"{path}: a .parquet file needs pyarrow: pip install pyarrow")
    return WRITERS[path.suffix.lower()](path, top_k)


@contextlib.contextmanager
def open_terminal(top_k: int | None) -> Iterator[ResultFile]:
    """A table for people, row by row; texts (top_k None) line by line below their file's name."""
    width = 10 * (top_k or 0)
    if top_k is not None:
        print(f"{'result':<16}{'confidence':>10}  {f'top {top_k}':<{width}}file")

    def write(row: Row) -> None:
        result = row.answer or row.status.replace("_", " ")
        confidence = "" if row.confidence is None else f"{row.confidence:.1%}"
        if top_k is None:
            print(one_line(f"{row.file}  {confidence}"))
            print("\n".join(map(one_line, result.split("\n"))))
            return
        candidates = "".join(f"{f'{label} {probability:.1%}':<10}" for label, probability in row.top_k)
        print(one_line(f"{result:<16}{confidence:>10}  {candidates:<{width}}{row.file}"))

    yield ResultFile(write)


@contextlib.contextmanager
def open_pipe(top_k: int) -> Iterator[ResultFile]:
    """Lines of file, status, prediction and confidence, with tabs between them, then top_k labels and probabilities."""

    def write(row: Row) -> None:
        confidence = "" if row.confidence is None else str(row.confidence)
        cells = [row.file or "", row.status, row.answer or "", confidence]
        if top_k:
            ranked = [str(value) for candidate in row.top_k for value in candidate]
            cells += ranked + [""] * (2 * top_k - len(ranked))
        print("\t".join(map(one_line, cells)))

    yield ResultFile(write)
