"""What the scripts share: settings as flags, and errors and signals as exit statuses."""

import argparse
import dataclasses
import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any

from glyphs.config import Config
from glyphs.errors import GlyphError

USER_ERROR = 2
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(BaseException):
    """A signal asked the process to end; not an Exception, so that no handler takes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def add_settings(parser: argparse.ArgumentParser, groups: Mapping[str, Iterable[str]]) -> None:
    """Add a flag for each Config field: `batch_size` becomes `--batch-size`, a bool gets a `--no-` twin.

    Flags that are not given leave no attribute behind, so `given_settings` can tell them from defaults.
    """
    fields = {field.name: field for field in dataclasses.fields(Config)}
    for title, names in groups.items():
        group = parser.add_argument_group(title)
        for name in names:
            field = fields[name]
            metadata = field.metadata
            flag = "--" + (metadata["flag"] or name).replace("_", "-")
            default = field.default
            if default is None:
                default = "all" if metadata["type"] is int else "none"
            options: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS}
            if metadata["type"] is bool:
                default = "on" if field.default else "off"
                options["action"] = argparse.BooleanOptionalAction
            else:
                options["type"] = metadata["type"]
                if metadata["choices"]:
                    options["choices"] = metadata["choices"]
                else:
                    options["metavar"] = {int: "N", float: "X", str: "PATH"}[metadata["type"]]
            group.add_argument(flag, help=f"{metadata['help']} (default: {default})", **options)


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The Config fields whose flags were on the command line."""
    names = {field.name for field in dataclasses.fields(Config)}
    return {name: value for name, value in vars(arguments).items() if name in names}


def import_public(module: str, names: Mapping[str, str], name: str) -> Any:
    """A script's public name, from the module that `names` gives for it; for its module-level `__getattr__`."""
    if name not in names:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return getattr(importlib.import_module(names[name]), name)


def one_line(text: str) -> str:
    """The text without line breaks or control characters, which a file's name may hold."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else repr(c)[1:-1] for c in text)


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def silence() -> None:
    """Say nothing more: of several processes that do the same, one talks."""
    if sys.stderr is sys.__stderr__:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - it stays open


def run(main: Callable[[], int | None]) -> int:
    """Run a script's main function and return its exit status.

    A GlyphError becomes one line on stderr and status 2; Ctrl-C, SIGTERM and SIGHUP become 130, 143 and 129.
    Anything else is a bug and keeps its traceback (status 1).
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123 - it stays open
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup
            signal.signal(signum, interrupt)
    try:
        status = main() or 0
        sys.stdout.flush()  # here, where a reader who has gone can still be told from a failure
        return status
    except GlyphError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return USER_ERROR
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("glyphs"):
            raise
        print(f"error: the package {error.name} is missing: pip install -r requirements.txt", file=sys.stderr)
        return USER_ERROR
    except Interrupted as interruption:
        print(f"stopped by {interruption}", file=sys.stderr)
        return 128 + interruption.signum
    except BrokenPipeError:
        # The reader of our output has gone (`| head`).  Python flushes again at exit: into nothing, then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
