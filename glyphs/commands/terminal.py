"""What the package logs, for the person at the terminal."""

import logging

from glyphs.core.progress import line_above


class Terminal(logging.Handler):
    """To stderr, a line a message and nothing else, above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        line_above(self.format(record))


def show_log() -> None:
    """Let stderr have what the package logs.  Where it is a library, its user decides: it logs by `logging`."""
    log = logging.getLogger("glyphs")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(Terminal())
