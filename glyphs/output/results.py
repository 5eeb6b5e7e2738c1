"""Where rows are written: JSON, JSON lines, CSV, Parquet, hOCR, a terminal and a pipe."""

import contextlib
import csv
import importlib.util
import io
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from xml.sax.saxutils import escape, quoteattr

from PIL import Image

import glyphs
from glyphs.core.arrays import Bytes
from glyphs.core.errors import ConfigError, DataError, GlyphError
from glyphs.core.files import claim_file, explain_write_error, replace_file, replacing, valid_utf8
from glyphs.core.text import CSV_ENCODING, csv_cell, one_line, table
from glyphs.output.rows import EMPTY, AnswerKind, FormReading, Prediction, Reading, Row, RowKind, form_columns

STDIN = "-"
ENCODER = json.JSONEncoder(ensure_ascii=False)
ROW_START = b'{"file": '
NOT_IN_XML = re.compile("[\\0-\\x08\\x0b\\x0c\\x0e-\\x1f\\ufffe\\uffff]")
ROW_GROUP = 10_000  # rows of a .parquet file that are kept in memory
WHAT: dict[AnswerKind, str] = {
    "prediction": "single characters (without --text)",
    "text": "texts (--text)",
    "fields": "forms (--fields)",
}


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


def columns_of(kind: RowKind) -> list[str]:
    """The columns of a table of rows."""
    if kind.answer == "fields":
        return form_columns(kind.fields)
    ranked = [f"{column}_{rank}" for rank in range(1, kind.top_k + 1) for column in ("label", "probability")]
    return ["file", "status", kind.answer, "confidence", *ranked, "error"]


def cells_of(row: Row, kind: RowKind) -> list[object]:
    """A row in the columns of a table."""
    if isinstance(row, FormReading):
        read = [row.fields.get(name) for name in kind.fields]
        answers = [cell for reading in read for cell in (reading and reading.text, reading and reading.confidence)]
        return [row.file, row.status, *answers, row.confidence, row.error]
    candidates = row.top_k[: kind.top_k] if isinstance(row, Prediction) else ()
    ranked: list[object] = [value for candidate in candidates for value in candidate]
    ranked += [None] * (2 * kind.top_k - len(ranked))
    return [row.file, row.status, row.answer, row.confidence, *ranked, row.error]


def json_row(row: Row) -> bytes:
    return ENCODER.encode(row.to_dict()).encode()


@contextlib.contextmanager
def write_json(path: Path, kind: RowKind) -> Iterator[ResultFile]:
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
def write_csv(path: Path, kind: RowKind) -> Iterator[ResultFile]:
    """A table for spreadsheets, whole at the end; two columns for each of the top k, and for each field of a form."""
    with replacing(path) as file:
        # write_through: nothing is left in this layer to be flushed to a file that was closed after an error.
        text = io.TextIOWrapper(file, encoding=CSV_ENCODING, newline="", write_through=True)
        rows = csv.writer(text)
        rows.writerow([csv_cell(column) for column in columns_of(kind)])

        def write(row: Row) -> None:
            rows.writerow([csv_cell(value) for value in cells_of(row, kind)])

        yield ResultFile(write)
        text.detach()


@contextlib.contextmanager
def write_json_lines(path: Path, kind: RowKind) -> Iterator[ResultFile]:
    """A JSON object a line, appended as it is made; the rows of an earlier run stay, and their pictures are done.

    Raises
    ------
    DataError : the file holds something else, or rows of another kind.
    GlyphError : it cannot be written, or another process writes it.
    """
    with explain_write_error(path), path.open("a+b") as file:
        claim_file(file, path)

        def write(row: Row) -> None:
            file.write(json_row(row) + b"\n")
            file.flush()

        results = ResultFile(write, resumable=True)
        file.seek(0)
        file.truncate(read_json_lines(file, path, kind, results))
        yield results


def read_json_lines(file: BinaryIO, path: Path, kind: RowKind, results: ResultFile) -> int:
    """Note which rows of a kind an open file of JSON lines holds; returns where the last whole row ends.

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
            other = None if kind.answer in old else next(each for each in WHAT if each in old)
            # A picture that could not be read has none.
            unlike = bool(kind.fields and not other and old["fields"] and old["fields"].keys() != set(kind.fields))
            results.done.add(old["file"])
            results.counts[str(old["status"])] += 1
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, StopIteration):
            raise DataError(f"{path}: line {number} is not a row of results; choose another --output") from None
        if other:
            raise DataError(f"{path}: holds rows of {WHAT[other]}, not of {WHAT[kind.answer]}; choose another --output")
        if unlike:
            raise DataError(
                f"{path}: holds rows of forms with other fields; choose another --output, or those --fields"
            )
        end += len(line)
    return end


@contextlib.contextmanager
def write_parquet(path: Path, kind: RowKind) -> Iterator[ResultFile]:
    """A table of typed columns, whole at the end: what JSON has, nested where that is."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    box = pyarrow.list_(pyarrow.int32())
    texts, numbers = pyarrow.string(), pyarrow.float64()
    candidates = pyarrow.list_(pyarrow.struct({"label": texts, "probability": numbers}))
    character = pyarrow.struct({"label": texts, "probability": numbers, "box": box, "top_k": candidates, "cell": box})
    word = pyarrow.struct({"text": texts, "box": box, "characters": pyarrow.list_(character)})
    line = pyarrow.struct({"text": texts, "box": box, "words": pyarrow.list_(word)})
    rows = pyarrow.list_(pyarrow.list_(texts))
    reading = pyarrow.struct({"status": texts, "text": texts, "confidence": numbers})
    answers: dict[AnswerKind, dict[str, Any]] = {
        "prediction": {"prediction": texts, "confidence": numbers, "top_k": candidates},
        "text": {"text": texts, "confidence": numbers, "lines": pyarrow.list_(line), "table": rows},
        "fields": {"confidence": numbers, "fields": pyarrow.struct(dict.fromkeys(kind.fields, reading))},
    }
    schema = pyarrow.schema({"file": texts, "status": texts, **answers[kind.answer], "error": texts})
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
def write_hocr(path: Path, kind: RowKind) -> Iterator[ResultFile]:
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
            text = escape(NOT_IN_XML.sub("\N{REPLACEMENT CHARACTER}", word.text))
            words.append(element("span", "ocrx_word", f"word_{page}_{i}_{j}", title, text))
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


def open_results(path: Path, kind: RowKind) -> contextlib.AbstractContextManager[ResultFile]:
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
    if path.suffix.lower() == ".hocr" and kind.answer != "text":
        remedy = "choose another suffix" if kind.answer == "fields" else "add --text, or choose another suffix"
        raise ConfigError(f"{path}: hOCR is for texts: {remedy}")
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise GlyphError(f"{path}: a .parquet file needs pyarrow: pip install pyarrow")
    return WRITERS[path.suffix.lower()](path, kind)


def save_table(row: Row, path: Path) -> None:
    """Write what stands in a grid's cells as a .csv file, with the folders it needs, where the row has a grid.

    Raises
    ------
    GlyphError : it cannot be written.
    """
    if not isinstance(row, Reading) or row.table is None:
        return
    text = io.StringIO()
    csv.writer(text).writerows([csv_cell(cell) for cell in cells] for cells in row.table)
    with explain_write_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.getvalue().encode(CSV_ENCODING))


def save_pixels(pixels: Bytes, path: Path) -> None:
    """Write what the network saw, uint8 [H, W] or [H, W, 3], as a PNG file in its folder.  Raises GlyphError."""
    with explain_write_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        Image.fromarray(pixels).save(file, "PNG")


def relative_names(names: Sequence[str]) -> dict[str, str]:
    """Each picture's name relative to the innermost folder that holds them all: no two become one, none leads out."""
    if not names:
        return {}
    folder = os.path.commonpath([Path(os.path.normpath(Path(name).absolute())).parent for name in names])
    return {valid_utf8(name): valid_utf8(os.path.relpath(name, folder)) for name in names}


@contextlib.contextmanager
def open_terminal(kind: RowKind) -> Iterator[ResultFile]:
    """A table for people, row by row; texts line by line, and forms field by field, below their file's name."""
    width = 10 * kind.top_k
    if kind.answer == "prediction":
        print(f"{'result':<16}{'confidence':>10}  {f'top {kind.top_k}':<{width}}file")

    def write(row: Row) -> None:
        confidence = percent(row.confidence)
        if isinstance(row, FormReading):
            fields = [[name, reading.answer or "", percent(reading.confidence)] for name, reading in row.fields.items()]
            print(one_line(f"{row.file}  {row.status}"))
            print("\n".join(map(one_line, table("<<>", ["", "", ""], fields)[1:])))
            return
        result = row.answer or row.status.replace("_", " ")
        if isinstance(row, Reading):
            print(one_line(f"{row.file}  {confidence}"))
            lines = [" ".join(cell or EMPTY for cell in cells) for cells in row.table or ()] or result.split("\n")
            print("\n".join(map(one_line, lines)))
            return
        candidates = "".join(f"{f'{label} {probability:.1%}':<10}" for label, probability in row.top_k)
        print(one_line(f"{result:<16}{confidence:>10}  {candidates:<{width}}{row.file}"))

    yield ResultFile(write)


def percent(probability: float | None) -> str:
    return "" if probability is None else f"{probability:.1%}"


@contextlib.contextmanager
def open_pipe(kind: RowKind) -> Iterator[ResultFile]:
    """Lines of file, status, answer and confidence, with tabs between them, then top_k labels and probabilities.

    Of a form, a line for each field: file, its status, its name, what stands there, and its least probability.
    """

    def write(row: Row) -> None:
        lines: list[list[object]]
        if isinstance(row, FormReading):
            lines = [[row.file, r.status, name, r.text, r.confidence] for name, r in row.fields.items()]
            lines = lines or [[row.file, row.status, None, None, None]]
        else:
            lines = [cells_of(row, kind)[:-1]]
        for cells in lines:
            print("\t".join(one_line("" if cell is None else str(cell)) for cell in cells))

    yield ResultFile(write)
