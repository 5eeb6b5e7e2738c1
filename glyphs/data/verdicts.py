"""audit.csv: what an audit, and the person who looked at it, said of images; how training takes it into account.

A row is about one image: `file` for people; `digest`, which finds the image wherever it lies; `label`, the class that
it is in; `suggested`, the class that it seems to be of, if any; `score`, from 0 to 1, how suspicious it is; `reason`;
and `verdict`, which a person gives.
"""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from glyphs.core.config import Config
from glyphs.core.errors import ConfigError, DataError
from glyphs.core.text import csv_cell
from glyphs.data.overlap import marks

VERDICT_COLUMNS = ("file", "label", "suggested", "score", "reason", "verdict", "digest")
VERDICTS = ("", "keep", "relabel", "drop")

log = logging.getLogger(__name__)


class Judged(NamedTuple):
    """What a table says of an image; its names are as a table's cells have them."""

    suggested: str
    verdict: str


def read_verdicts(path: Path) -> dict[tuple[str, str], Judged]:
    """The rows of an audit.csv, by digest and label.

    Raises
    ------
    DataError : naming the file, where it cannot be read, lacks a column, or has a verdict that is none.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name the audit.csv of an audit") from None
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: is not a CSV file ({error}); name the audit.csv of an audit") from None
    judged = {}
    for number, row in enumerate(rows, 2):
        cells = {name: row.get(name) for name in ("digest", "label", "suggested", "verdict")}
        lacking = next((name for name, cell in cells.items() if cell is None), None)
        if lacking is not None:
            raise DataError(f"{path}: row {number} has no {lacking}; name the audit.csv of an audit")
        digest, label, suggested, verdict = (str(cell) for cell in cells.values())
        if verdict not in VERDICTS:
            raise DataError(
                f"{path}: the verdict of row {number} is {verdict!r}; write {', '.join(VERDICTS[1:])} or nothing"
            )
        judged[digest, label] = Judged(suggested, verdict)
    return judged


def digests_of(images: Tensor, contents: Tensor | None) -> list[str]:
    """For each image what tells it from others: of a picture's file where `contents` has it, else of its pixels."""
    if contents is not None:
        return [f"{content:016x}" for content in contents.tolist()]
    return [mark.hex() for mark in marks(images)]


def amend(
    images: Tensor, labels: Tensor, chosen: Tensor, class_names: Sequence[str], contents: Tensor | None, config: Config
) -> tuple[Tensor, Tensor]:
    """The labels, int64 [M], and the chosen places, int64 [N], of a part as the settings `drop` and `relabel` have it.

    Raises
    ------
    ConfigError : both tables are named.
    DataError : the table cannot be read, suggests a class that the data do not have, or leaves a class no image.
    """
    path = config.drop or config.relabel
    if path is None:
        return labels, chosen
    if config.drop and config.relabel:
        raise ConfigError("--drop and --relabel are two ways to take an audit into account; give one of them")
    judged = read_verdicts(Path(path))
    # As the table has them: a cell never begins with = or +.
    cells = [str(csv_cell(name)) for name in class_names]
    class_of = {cell: label for label, cell in enumerate(cells)}
    given, labels = labels, labels.clone()
    kept, dropped, changed = [], 0, 0
    digests = digests_of(images[chosen], None if contents is None else contents[chosen])
    for place, digest, label in zip(chosen.tolist(), digests, labels[chosen].tolist(), strict=True):
        found = judged.get((digest, cells[label]))
        if found is None or found.verdict == "keep":
            kept.append(place)
        elif config.drop or found.verdict == "drop":
            dropped += 1
        else:
            kept.append(place)
            if found.suggested:
                if found.suggested not in class_of:
                    raise DataError(f"{path}: suggests {found.suggested}, which is no class of the data; correct it")
                labels[place] = class_of[found.suggested]
                changed += 1
    log.warning(
        f"note: {path}: {dropped:,} of {len(chosen):,} images are left out"
        + ("" if config.drop else f", {changed:,} have another label")
    )
    left = torch.tensor(kept, dtype=torch.int64)
    before, after = (torch.bincount(each, minlength=len(cells)) > 0 for each in (given[chosen], labels[left]))
    if lost := (before & ~after).nonzero().flatten().tolist():
        raise DataError(f"{path}: leaves no image of class {class_names[lost[0]]}; keep some, or leave the class out")
    return labels, left
