"""Forms: scans of one form, read field by field, and what of it a person should look at.

    empty form -> find_boxes -> write_form -> the user names the fields -> read_form -> FormReader -> rows, write_review

A form is a JSON file:

    {"size": [width, height], "marks": [[x, y], ...], "form": FILE, "fields": [{"name", "box": [left, top, right,
    bottom], "alphabet", "pattern", "words"}, ...]}

in pixels of a picture of the empty form of that size.  `marks` are the middles of the form's four printed marks (see
glyphs.forms.marks), by which scans are laid over it; without them, scans are laid over the print of `form`, the
picture of the empty form, beside the file; without either, a scan shows the whole page and nothing else.
`alphabet`, `pattern` and `words`, a file beside the form's, say what the field can hold, as --alphabet, --pattern and
--words do; null, or left out, is anything.
"""

import base64
import html
import io
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from glyphs.core.ahead import work_ahead
from glyphs.core.arrays import Floats, Points
from glyphs.core.cpus import usable_cpus
from glyphs.core.errors import ConfigError, DataError, PictureError
from glyphs.core.files import replace_file, valid_utf8
from glyphs.core.text import parse_json
from glyphs.forms.align import lay_over
from glyphs.forms.boxes import find_boxes
from glyphs.forms.marks import clockwise, enclosed, find_marks, straighten
from glyphs.output.rows import SURE_STATUSES, FormReading, Reading, form_columns
from glyphs.pictures.decode import (
    MAX_PIXELS,
    Source,
    explain_fault,
    grey_to_colour,
    open_picture,
    shrink_factor,
    to_grey,
)
from glyphs.pictures.glyph import to_bytes
from glyphs.pictures.lines import Box, Page, find_lines
from glyphs.reading.predictor import GlyphPredictor
from glyphs.reading.reader import read_words

# By the name of a scan, the fields to look at: name, status, text, least probability.
Doubtful = dict[str, list[tuple[str, str, str | None, float | None]]]

MARGIN, LEAST_MARGIN = 0.1, 4  # around a field, for its rules: share of its height, and pixels
LEAST_ENCLOSED = 0.1  # of a form: its marks stand in its corners
CROP_HEIGHT = 120  # pixels of a field on a review sheet, at most

REVIEW_STYLE = """
body { font: 16px/1.4 system-ui, sans-serif; color: #222; margin: 2em auto; max-width: 70em; padding: 0 1em }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .5em .8em; border-bottom: 1px solid #ddd; vertical-align: middle }
th { color: #666; font-weight: 600 } td.number { text-align: right; font-variant-numeric: tabular-nums }
img { display: block; max-width: 28em; max-height: 5em; border: 1px solid #ccc }
code { font: 1.3em ui-monospace, monospace; white-space: pre-wrap } .none { color: #999 }
"""


@dataclass(frozen=True)
class Field:
    """A field of a form: its name, its box (left, top, right, bottom) and what it can hold."""

    name: str
    box: tuple[float, float, float, float]
    alphabet: str | None = None
    pattern: str | None = None
    words: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Form:
    """A form.

    Attributes
    ----------
    size : width and height, in the pixels that all places are in.
    marks : the middles of its marks, float [4, 2]; None where it has none.
    empty : its picture, float32 [H, W], where scans are laid over its print.
    """

    size: tuple[int, int]
    marks: Points | None
    fields: tuple[Field, ...]
    empty: Floats | None = None

    def straighten(self, grey: Floats, name: str) -> tuple[Floats, float]:
        """A scan of the form, float32 [H, W], laid over the empty form, and its pixels for each of the form's.

        Raises
        ------
        PictureError : it does not show the form; `name` is the scan's.
        """
        width, height = self.size
        if self.marks is None and self.empty is not None:
            laid = lay_over(grey, self.empty)
            if laid is None:
                raise PictureError(
                    f"{name}: does not show the form; scan the whole page, straight within 4 degrees and not aslant"
                )
            seen, places = laid[0], laid[1] * width / self.empty.shape[1]
        elif self.marks is None:
            places = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=float)
            seen = places * (grey.shape[1] / width, grey.shape[0] / height)
        else:
            found = find_marks(grey)
            if found is None:
                raise PictureError(
                    f"{name}: the form's four marks were not found; scan the whole page, sharp, with all four in it"
                )
            places, seen = self.marks + 0.5, found + 0.5  # from the pictures' corners, not their pixels' middles
        scale = float(np.sqrt(enclosed(seen) / enclosed(places)))  # as fine as the scan is
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return straighten(grey, seen - 0.5, places * scale - 0.5, size), scale

    def crop(self, straight: Floats, scale: float, field: Field) -> Floats:
        """A field of a scan that is laid over the form, with the rules around it."""
        left, top, right, bottom = (scale * value for value in field.box)
        margin = max(LEAST_MARGIN, MARGIN * (bottom - top))
        rows = slice(max(0, round(top - margin)), round(bottom + margin))
        return np.ascontiguousarray(straight[rows, max(0, round(left - margin)) : round(right + margin)])


# ---- The file ----


def make_form(picture: Path) -> Form:
    """The form that a picture of an empty one shows, its fields numbered from top to bottom.

    Raises
    ------
    PictureError : the picture cannot be read.
    DataError : no boxes were found in it.
    """
    opened = open_picture(picture)
    grey, factor = to_grey(opened), shrink_factor(opened.size)
    marks = find_marks(grey)
    # A mark is a box, too.
    boxes = [box for box in find_boxes(grey) if marks is None or not any(holds(box, x, y) for x, y in marks.tolist())]
    if not boxes:
        raise DataError(
            f"{picture}: no boxes were found; where a form has none, write the file by hand, see docs/TEXT.md"
        )
    fields = [
        Field(f"field {number}", (factor * box.left, factor * box.top, factor * box.right, factor * box.bottom))
        for number, box in enumerate(boxes, start=1)
    ]
    if marks is None:
        return Form(opened.size, None, tuple(fields), grey)
    return Form(opened.size, np.rint(marks * factor), tuple(fields))


def holds(box: Box, x: float, y: float) -> bool:
    """Whether a point lies in a box."""
    return box.left <= x < box.right and box.top <= y < box.bottom


def write_form(form: Form, path: Path, empty: Path) -> None:
    """Write a form's file, a line for each field; `empty` is its picture.  Raises GlyphError."""
    nothing = {"alphabet": None, "pattern": None, "words": None}  # for the user to fill in
    fields = [json.dumps({"name": field.name, "box": field.box} | nothing) for field in form.fields]
    marks = None if form.marks is None else form.marks.tolist()
    beside = None if marks else os.path.relpath(empty, path.parent)
    head = f'{{\n  "size": {json.dumps(form.size)},\n  "marks": {json.dumps(marks)},\n  "form": {json.dumps(beside)},\n'
    head += '  "fields": [\n    '
    replace_file(path, (head + ",\n    ".join(fields) + "\n  ]\n}\n").encode())


def read_form(path: Path) -> Form:
    """The form of a file.

    Raises
    ------
    DataError : it, or a word list, cannot be read, or it is no form.
    ConfigError : a word list holds no words.
    PictureError : the picture of the empty form cannot be read.
    """
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); --form EMPTY --fields {path} writes one") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error})") from None
    if not isinstance(content, dict) or not isinstance(content.get("fields"), list) or not content["fields"]:
        raise DataError(f'{path}: has no list "fields"; --form EMPTY --fields FILE writes one from an empty form')
    size = numbers(content.get("size"), 2)
    if size is None or min(size) < 1 or math.prod(size) > MAX_PIXELS:
        raise DataError(f'{path}: "size" is not the width and height of the empty form, [W, H]')
    marks = None
    if content.get("marks") is not None:
        points = [numbers(point, 2) for point in content["marks"]] if isinstance(content["marks"], list) else []
        four = len(points) == 4 and None not in points
        marks = clockwise(np.array(points, dtype=float)) if four else None
        if marks is None or (marks > size).any() or enclosed(marks) < LEAST_ENCLOSED * math.prod(size):
            raise DataError(
                f'{path}: "marks" are not four corners of the form, [[x, y], ...], clockwise from the top left'
            )
    fields = [read_field(field, path, number, size) for number, field in enumerate(content["fields"], start=1)]
    empty = None
    if content.get("form") is not None:
        if not isinstance(content["form"], str) or marks is not None:
            raise DataError(f'{path}: "form" is the picture of an empty form without "marks"; one of them is null')
        picture = open_picture(path.parent / content["form"])
        if picture.size != (round(size[0]), round(size[1])):
            raise DataError(f'{path}: "size" is not that of {content["form"]}, {list(picture.size)}')
        empty = to_grey(picture)
    columns = form_columns([field.name for field in fields])
    twice = next((column for column, count in Counter(columns).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: a table of it would have two columns {twice!r}; name the fields otherwise")
    return Form((round(size[0]), round(size[1])), marks, tuple(fields), empty)


def read_field(content: Any, path: Path, number: int, size: Sequence[float]) -> Field:
    """A field of a form's file.  Raises DataError and ConfigError."""
    where = f"{path}: field {number}"
    if not isinstance(content, dict):
        raise DataError(f"{where}: is not an object")
    known = {"name", "box", "alphabet", "pattern", "words"}
    if unknown := sorted(set(content) - known):
        raise DataError(f"{where}: has an unknown entry {unknown[0]!r}; it can have {', '.join(sorted(known))}")
    name = content.get("name")
    if not isinstance(name, str) or not name.strip() or name != valid_utf8(name):
        raise DataError(f'{where}: has no "name"')
    box = numbers(content.get("box"), 4)
    if box is None or not (0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]):
        raise DataError(f'{where}, {name!r}: "box" is not [left, top, right, bottom] within the form')
    for entry in ("alphabet", "pattern", "words"):
        if not isinstance(content.get(entry), str | None):
            raise DataError(f'{where}, {name!r}: "{entry}" is not a text')
    words = None
    if content.get("words") is not None:
        words = tuple(read_words(path.parent / valid_utf8(content["words"])))
    left, top, right, bottom = box
    return Field(name, (left, top, right, bottom), content.get("alphabet"), content.get("pattern"), words)


def numbers(value: Any, count: int) -> list[float] | None:
    """So many numbers that a picture's pixels can have, else None."""
    if not isinstance(value, list) or len(value) != count:
        return None
    fit = all(
        isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each <= MAX_PIXELS for each in value
    )
    return value if fit else None


# ---- Reading ----


class FormReader:
    """Reads scans of a form.

    Raises
    ------
    ConfigError : the model does not know a field's alphabet, a pattern is none, or a field has one and a word list.
    """

    def __init__(self, predictor: GlyphPredictor, form: Form) -> None:
        self.form = form
        self.fields: list[tuple[Field, GlyphPredictor, frozenset[str] | None]] = []
        for field in form.fields:
            listed = None if field.words is None else frozenset(" ".join(field.words).casefold().split())
            try:
                own = predictor.view(field.alphabet, pattern=field.pattern, words=field.words)
                self.fields.append((field, own, listed))
            except ConfigError as error:
                raise ConfigError(f"field {field.name!r}: {error}") from None

    def stream(self, pictures: Iterable[tuple[str, Source | PictureError]]) -> Iterator[FormReading]:
        """Read any number of scans, in order and in constant memory, finding ink while the network computes."""
        for file, pages in work_ahead(self.find_pages, pictures, max(1, usable_cpus() - 1)):
            yield self.read(file, pages)

    def find_pages(self, name: str, picture: Source | PictureError) -> tuple[str, list[Page] | PictureError]:
        """The ink in each field of a scan, or why it cannot be read."""
        try:
            crops = self.crops(name, picture)
            with explain_fault(valid_utf8(name)):
                return valid_utf8(name), [find_lines(grey_to_colour(crop)) for crop in crops]
        except PictureError as error:
            return valid_utf8(name), error

    def crops(self, name: str, picture: Source | PictureError) -> list[Floats]:
        """The fields of a scan.  Raises PictureError."""
        if isinstance(picture, PictureError):
            raise picture
        opened = open_picture(picture)
        with explain_fault(valid_utf8(name)):
            straight, scale = self.form.straighten(to_grey(opened), name)
            return [self.form.crop(straight, scale, field) for field in self.form.fields]

    def read(self, file: str, pages: list[Page] | PictureError) -> FormReading:
        """The answers of a scan's fields."""
        if isinstance(pages, PictureError):
            return FormReading(file, "failed", error=valid_utf8(str(pages)))
        readings = {}
        for (field, predictor, listed), page in zip(self.fields, pages, strict=True):
            reading = predictor.read_page(file, page, top_k=1)
            if listed is not None and reading.status == "ok" and not listed.issuperset(words_of(reading)):
                reading = replace(reading, status="uncertain")
            readings[field.name] = reading
        error = next((reading.error for reading in readings.values() if reading.error), None)
        if error is not None:
            return FormReading(file, "failed", error=error)
        doubtful = any(reading.status not in SURE_STATUSES for reading in readings.values())
        confidence = min((r.confidence for r in readings.values() if r.confidence is not None), default=None)
        return FormReading(file, "uncertain" if doubtful else "ok", confidence, readings)


def words_of(reading: Reading) -> list[str]:
    """The words of a text, whichever case they have."""
    return (reading.text or "").casefold().split()


# ---- The review sheet ----


def note_doubtful(row: Mapping[str, Any], doubtful: Doubtful) -> None:
    """Add the fields of a row, as JSON has it, that a person should look at."""
    fields = [
        (name, field["status"], field["text"], field["confidence"])
        for name, field in row["fields"].items()
        if field["status"] not in SURE_STATUSES
    ]
    if fields:
        doubtful[row["file"]] = fields


def write_review(
    file: BinaryIO,
    reader: FormReader,
    pictures: Iterable[tuple[str, Source | PictureError]],
    doubtful: Doubtful,
) -> None:
    """Write a page, whole in itself, with a row for each field that a person should look at: the place, the reading.

    Parameters
    ----------
    file : where the page is written to.
    pictures : the scans, as they were read; those of which no field is doubtful are not opened.
    """
    count = sum(map(len, doubtful.values()))
    places = {field.name: place for place, field in enumerate(reader.form.fields)}

    def write(text: str) -> None:
        file.write(text.encode())

    title = f"{count:,} fields to look at, of {len(doubtful):,} scans"
    write(
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{REVIEW_STYLE}</style>\n"
    )
    write(f"<h1>{title}</h1>\n<table>\n<tr><th>scan<th>field<th>what stands there<th>read as<th>probability\n")
    for name, picture in pictures:
        fields = doubtful.get(valid_utf8(name), ())
        try:
            crops = reader.crops(name, picture) if fields else []
        except PictureError:  # it has changed since it was read
            crops = []
        for field, status, text, confidence in fields:
            shown = embedded(crops[places[field]]) if crops else ""
            read = (
                f'<span class="none">{status.replace("_", " ")}</span>'
                if text is None
                else f"<code>{html.escape(text)}</code>"
            )
            sure = "" if confidence is None else f"{confidence:.1%}"
            cells = [html.escape(valid_utf8(name)), html.escape(field), shown, read]
            write("<tr>" + "".join(f"<td>{cell}" for cell in cells) + f'<td class="number">{sure}\n')
    write("</table>\n</html>\n")


def embedded(crop: Floats) -> str:
    """A picture, float32 [H, W], as a part of a page."""
    picture = Image.fromarray(to_bytes(crop))
    picture.thumbnail((10 * CROP_HEIGHT, CROP_HEIGHT))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
