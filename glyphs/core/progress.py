"""How far something is: a bar on a terminal and in a notebook, elsewhere a line every few seconds."""

import sys
from collections.abc import Iterable
from typing import Any

SECONDS = 5.0  # between two lines


class Lines:
    """A file to which tqdm draws its bars, each drawing of which becomes a line on stderr."""

    def write(self, text: str) -> None:
        if shown := text.strip():
            print(shown, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()


def progress(iterable: Iterable[Any] | None = None, seconds: float = SECONDS, **options: Any) -> Any:
    """A bar of tqdm over an iterable, or one to update by hand; `options` are tqdm's.

    The time left follows from the average speed so far: pictures come in bursts.

    Parameters
    ----------
    seconds : between two lines where there is neither a terminal nor a notebook, and before the first.
    """
    from tqdm.auto import tqdm  # here: it takes 0.09 s to import, which one prediction need not wait for

    # A notebook's stderr is no terminal, but has bars of its own.
    notebook = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
    if not (notebook or (hasattr(sys.stderr, "isatty") and sys.stderr.isatty())):
        lines = {"file": Lines(), "ncols": 0, "mininterval": seconds, "delay": seconds, "miniters": 1, "leave": False}
        options = options | lines
    return tqdm(iterable, **{"smoothing": 0} | options)


def line_above(text: str) -> None:
    """Say a line on stderr, above the bars there."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
