"""Progress bars: on a terminal and in a notebook, and nowhere else."""

import sys
from collections.abc import Iterable
from typing import Any


def progress(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """A bar of tqdm over an iterable, or one to update by hand; `options` are tqdm's.

    The time left follows from the average speed so far: pictures come in bursts.
    """
    from tqdm.auto import tqdm  # here: it takes 0.09 s to import, which one prediction need not wait for

    # A notebook's stderr is no terminal, but has bars of its own.
    notebook = any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)
    hidden = not (notebook or (hasattr(sys.stderr, "isatty") and sys.stderr.isatty()))
    return tqdm(iterable, **{"smoothing": 0, "disable": hidden} | options)


def line_above(text: str) -> None:
    """Say a line on stderr, above the bars there."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
