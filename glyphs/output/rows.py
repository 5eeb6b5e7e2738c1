"""What was found out about pictures, as rows: their one schema."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Status = Literal["ok", "uncertain", "no_glyph", "several_glyphs", "failed"]
TextStatus = Literal["ok", "uncertain", "no_glyph", "joined_script", "failed"]
EMPTY = "·"  # of a grid's cells
DECIMALS = 6  # of a probability: finer than float32 tells apart near 1


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
    bottom, in pixels of the picture as it is shown.  top_k : the likeliest classes, the likeliest first.  cell : row
    and column from 1 in the grid that the picture shows, None elsewhere.
    """

    label: str
    probability: float | None
    box: tuple[int, ...]
    top_k: tuple[Candidate, ...]
    cell: tuple[int, int] | None = None


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
    grid : rows and columns of the grid of boxes that it shows, None where it shows none.
    """

    file: str | None
    status: TextStatus
    confidence: float | None = None
    lines: tuple[TextLine, ...] = ()
    error: str | None = None
    size: tuple[int, int] | None = None
    grid: tuple[int, int] | None = None

    @property
    def table(self) -> list[list[str]] | None:
        """What stands in each cell of the grid, row by row, "" where it is empty; None where there is no grid."""
        if self.grid is None:
            return None
        rows, columns = self.grid
        table = [[""] * columns for _ in range(rows)]
        for line in self.lines:
            for word in line.words:
                for character in word.characters:
                    if character.cell is not None:
                        row, column = character.cell
                        table[row - 1][column - 1] += character.label
        return table

    @property
    def text(self) -> str | None:
        """The lines, with line breaks between them; None where there are none."""
        return "\n".join(line.text for line in self.lines) if self.lines else None

    @property
    def answer(self) -> str | None:
        return self.text

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
            "table": self.table,
            "error": self.error,
        }


SURE_STATUSES = ("ok", "no_glyph")  # what is left empty is no doubtful answer


@dataclass(frozen=True)
class FormReading:
    """What stands in the fields of a scanned form.

    Attributes
    ----------
    file : its name.
    status : `ok`; `uncertain`, one of its fields is neither read surely nor empty; `failed`, it cannot be read.
    confidence : the least probability of a character, 0..1, where there are any.
    fields : what was read in each field, by its name; empty where the status is `failed`.
    error : why, only where the status is `failed`.
    """

    file: str | None
    status: Literal["ok", "uncertain", "failed"]
    confidence: float | None = None
    fields: Mapping[str, Reading] = field(default_factory=dict)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON has it."""
        fields = {
            name: {"status": reading.status, "text": reading.text, "confidence": reading.confidence}
            for name, reading in self.fields.items()
        }
        return {
            "file": self.file,
            "status": self.status,
            "confidence": self.confidence,
            "fields": fields,
            "error": self.error,
        }


Row = Prediction | Reading | FormReading
AnswerKind = Literal["prediction", "text", "fields"]  # what a row has of its picture


class RowKind(NamedTuple):
    """What rows hold: characters with so many likeliest classes, texts, or the named fields of forms."""

    answer: AnswerKind
    top_k: int = 0
    fields: tuple[str, ...] = ()


def form_columns(fields: Sequence[str]) -> list[str]:
    """The columns of a table of forms."""
    answers = [column for name in fields for column in (name, f"{name} probability")]
    return ["file", "status", *answers, "confidence", "error"]
