"""One .jsonl file from several processes: each writes parts of it, which process 0 joins in order.

Beside the output x.jsonl, a folder x.jsonl.parts is there while the work is under way.  `about.json` in it says what
the run was asked for; a part is what one process wrote in one attempt, a line for each picture: its place among the
pictures that x.jsonl lacks, a tab, and its row.  The pictures are shared out in blocks, as the network sees them in one
process, so that the rows are the same; a block that an earlier attempt left unfinished is done again.
"""

import contextlib
import heapq
import itertools
import json
import os
import re
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from glyphs.core.errors import ConfigError, DataError
from glyphs.core.files import claim_file, explain_write_error, replace_file, valid_utf8
from glyphs.output.results import ResultFile, json_row, read_json_lines
from glyphs.output.rows import Row, RowKind

ABOUT = "about.json"
AT = "bytes"  # the output's length when the run began: what lies beyond was joined by a process that was killed

PlacedRow = tuple[int, bytes]  # a place, and the row there


def parts_folder(output: Path) -> Path:
    return output.with_name(output.name + ".parts")


class Parts:
    """The part of this process, and those that are there already.

    Parameters
    ----------
    output : the .jsonl file to be.
    about : what the rows follow from; equal in all attempts.
    kind : what the rows hold.
    block : pictures that belong together.
    number, count : of this process, and how many there are.
    meet : returns once all processes have called it.

    Raises
    ------
    ConfigError : an earlier attempt was asked for something else.
    DataError : the output holds something else than such rows.
    GlyphError : the files cannot be written.
    """

    def __init__(
        self,
        output: Path,
        about: Mapping[str, Any],
        *,
        kind: RowKind,
        block: int,
        number: int,
        count: int,
        meet: Callable[[], None],
    ) -> None:
        self.output, self.folder = output, parts_folder(output)
        self.block, self.number, self.count = block, number, count
        if number == 0:
            self._begin(about, kind)
        meet()
        with explain_write_error(self.output), self.output.open("rb") as file:
            self.earlier = ResultFile(write=self.write)
            read_json_lines(file, self.output, kind, self.earlier)
        self.paths = self._paths()
        self.done: dict[int, int] = {}  # rows of each block, of the attempt that came furthest
        for path in self.paths:
            with open_to_read(path) as part:
                for at, rows in itertools.groupby(lines_of(part), lambda line: line[0] // block):
                    self.done[at] = max(self.done.get(at, 0), sum(1 for _ in rows))
        attempt = 1 + max((int(path.name.split("-")[0]) for path in self.paths), default=0)
        self.own = self.folder / f"{attempt:04}-{number:05}.part"
        meet()  # nobody writes before all have read
        self.waiting: deque[int] = deque()  # places of the pictures that are under way

    def _paths(self) -> list[Path]:
        """The parts, in the order of their attempts; other files in the folder are nobody's."""
        return sorted(path for path in self.folder.glob("*.part") if re.fullmatch(r"\d+-\d+", path.stem))

    def _begin(self, about: Mapping[str, Any], kind: RowKind) -> None:
        """Make the folder, or check that it is of this run, and leave in the output what was there when it began."""
        path = self.folder / ABOUT
        if self.folder.exists() and not path.exists():
            with explain_write_error(self.folder):
                shutil.rmtree(self.folder)  # it was joined already
        with explain_write_error(self.output), self.output.open("a+b") as file:
            claim_file(file, self.output)
            file.seek(0)
            end = read_json_lines(file, self.output, kind, ResultFile(write=self.write))
            if path.exists():
                try:
                    with open_to_read(path) as content:
                        old = json.load(content)
                    length = int(old[AT])
                except (ValueError, TypeError, KeyError, RecursionError):
                    raise DataError(f"{path}: is damaged; remove that folder and begin again") from None
                for name, value in about.items():
                    if old.get(name) != value:
                        raise ConfigError(
                            f"{self.folder}: holds parts of a run with {name} {old.get(name)!r}, not {value!r}; "
                            "ask for the same, or remove that folder"
                        )
                end = min(end, length)
            file.truncate(end)
            self.folder.mkdir(exist_ok=True)
        if not path.exists():
            replace_file(path, json.dumps({**about, AT: end}).encode())

    def share(self, pictures: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Those pictures that this process is to do, in their order; their rows are to be written in it too."""
        lacking = enumerate(picture for picture in pictures if self.earlier.lacks(picture[0]))
        turn = 0
        for at, places in itertools.groupby(lacking, lambda each: each[0] // self.block):
            block = list(places)
            if self.done.get(at, 0) >= len(block):
                continue
            if turn % self.count == self.number:
                for place, picture in block:
                    self.waiting.append(place)
                    yield picture
            turn += 1

    @contextlib.contextmanager
    def opened(self) -> Iterator["Parts"]:
        """While the context lasts, `write` writes to this process's part."""
        with explain_write_error(self.own), self.own.open("xb") as self._file:
            yield self

    def write(self, row: Row) -> None:
        """Write the row of the next of the pictures that `share` gave."""
        self._file.write(b"%d\t%s\n" % (self.waiting.popleft(), json_row(row)))
        self._file.flush()

    def join(self, pictures: Iterable[tuple[str, Any]], tell: Callable[[dict[str, Any]], object]) -> Counter[str]:
        """Append all parts to the output, in order, and remove them; returns how many rows there are of each status.

        Parameters
        ----------
        pictures : as for `share`.
        tell : called with each row, as JSON has it.

        Raises
        ------
        DataError : the pictures are no longer those that the parts are of.
        """
        counts = Counter(self.earlier.counts)
        with contextlib.ExitStack() as stack:
            stack.enter_context(explain_write_error(self.output))
            file = stack.enter_context(self.output.open("ab"))
            claim_file(file, self.output)
            parts = [stack.enter_context(open_to_read(path)) for path in self._paths()]
            rows = heapq.merge(*map(lines_of, parts), key=itemgetter(0))
            once = (next(same) for _, same in itertools.groupby(rows, itemgetter(0)))
            lacking = (valid_utf8(name) for name, _ in pictures if self.earlier.lacks(name))
            for place, (name, line) in enumerate(itertools.zip_longest(lacking, once)):
                try:
                    row = json.loads(line[1])
                    fits = (line[0], row["file"]) == (place, name)
                except (ValueError, TypeError, KeyError, RecursionError):
                    fits = False  # there is no row, or what was written is damaged
                if not fits:
                    raise DataError(
                        f"{self.folder}: its rows are not those of the pictures that are there now; leave the pictures "
                        "alone while they are read; remove that folder and begin again"
                    )
                file.write(line[1] + b"\n")
                counts[row["status"]] += 1
                tell(row)
            file.flush()
            os.fsync(file.fileno())
        with explain_write_error(self.folder):
            (self.folder / ABOUT).unlink()  # first: from here on the rest is rubbish
            shutil.rmtree(self.folder)
        return counts


def open_to_read(path: Path) -> BinaryIO:
    """A file of the folder.  Raises DataError where it cannot be opened."""
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened ({error.strerror}); let this user read it, or remove its folder and begin again"
        ) from None


def lines_of(part: Iterable[bytes]) -> Iterator[PlacedRow]:
    """The rows of a part, and their places; what a process that was killed left of a line is passed over."""
    for line in part:
        place, _, row = line.partition(b"\t")
        if place.isdigit() and row.endswith(b"\n"):
            yield int(place), row.rstrip(b"\n")
