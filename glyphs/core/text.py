"""Words for people: one line, a table, a cell of a spreadsheet, the name of an alphabet."""

import json
import re
import string
import unicodedata
from typing import Any

ALPHABETS = {
    "digits": string.digits,
    "upper": string.ascii_uppercase,
    "lower": string.ascii_lowercase,
    "letters": string.ascii_letters,
}
# How many times as frequent as a letter a digit is taken to be: in drawings of MNIST's size, and elsewhere.  Of the 105
# such drawings among single characters that users had tried, from eight of them, 96 were digits.
PRIORS = {"auto": (3.0, 1.0), "uniform": (1.0, 1.0), "digits": (3.0, 3.0)}


def one_line(text: str) -> str:
    """The text without line breaks or control characters, which a file's name may hold."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else repr(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, which other packages write a page of."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def parse_json(text: str | bytes) -> Any:
    """The value of JSON that people wrote.  Raises ValueError where it is none, or an object has a key twice."""

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {key!r} is there twice")
            found[key] = value
        return found

    return json.loads(text, object_pairs_hook=to_dict)


def heading(text: str) -> list[str]:
    return ["", text, "-" * len(text)]


def table(alignment: str, header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of columns as wide as their widest entry, each aligned to the left (<) or to the right (>)."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(f"{entry:{side}{width}}" for entry, side, width in zip(row, alignment, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]


CSV_ENCODING = "utf-8-sig"  # without its mark Excel takes a file for one of the country's old encoding
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute such a cell
PLAIN_NUMBER = re.compile("0|[1-9][0-9]{0,14}")  # what a spreadsheet shows as it is written
# What one takes for another number (06, 1E5), a date (24/08, 3-MAR, SEPT2), a time or a truth value, in some country
TAKEN_OTHERWISE = re.compile(
    r"[0-9.,($€£][0-9.,:/ ()%$€£e+-]*([ap]m?)?"
    r"|([0-9]{1,4}[-/. ]*)?(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*([-/., ]*[0-9]{1,4})*",
    re.IGNORECASE,
)


def csv_cell(value: object) -> object:
    """The value, text without control characters; with a ' before it where a spreadsheet would show something else."""
    if not isinstance(value, str):
        return value
    text = one_line(value)
    number = any(c.isdigit() for c in text) and TAKEN_OTHERWISE.fullmatch(text.strip())
    taken = (number and not PLAIN_NUMBER.fullmatch(text)) or text.strip().lower() in ("true", "false")
    otherwise = taken or value.startswith(FORMULA_STARTS)
    return f"'{text}" if otherwise else text


def alphabet_of(text: str) -> str:
    """The characters of an alphabet that is named, or the characters themselves."""
    return ALPHABETS.get(text, text)


def split_alphabet(text: str) -> list[str]:
    """The classes of an alphabet: what stands between its spaces, or, where there are none, each of its characters.

    Marks that combine with the character before them belong to it.
    """
    names = text.split()
    if len(names) != 1:
        return names
    characters: list[str] = []
    for character in names[0]:
        if characters and unicodedata.category(character).startswith("M"):
            characters[-1] += character
        else:
            characters.append(character)
    return characters
