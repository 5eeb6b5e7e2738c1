"""How a process starts, is interrupted and ends: errors and signals as exit statuses."""

import errno
import importlib.util
import os
import signal
import sys
import warnings
from collections.abc import Callable
from types import FrameType

from glyphs.core.errors import GlyphError
from glyphs.core.text import one_line

USER_ERROR = 2
FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO") if hasattr(errno, name))
PLOTTING_PACKAGES = ("matplotlib", "seaborn")
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(BaseException):
    """A signal asked the process to end; not an Exception, so that no handler takes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def silence() -> None:
    """Say nothing more: of several processes that do the same, one talks."""
    if sys.stderr is sys.__stderr__:
        sys.stdout = sys.stderr = open(os.devnull, "w", errors="backslashreplace")  # noqa: SIM115, PTH123 - it stays open


def say(text: str) -> None:
    """Talk to the person at the terminal; results go to stdout."""
    print(text, file=sys.stderr)


def require_packages(*names: str) -> None:
    """Raise ModuleNotFoundError for a package that the work will need at its end: now, not after hours of it."""
    for name in names:
        if importlib.util.find_spec(name) is None:  # importing them would take seconds
            raise ModuleNotFoundError(name=name)


def set_up() -> None:
    """Set what holds for a whole process, before PyTorch, onnxruntime or Pillow is imported.

    It is for commands: whoever imports the package decides for a process of their own.

    What the user has set stays, but for MPLBACKEND.
    """
    # GNU OpenMP, which PyTorch computes with on Linux, reads this when torch is loaded.  Its threads wait for each
    # other in a busy loop, by default for so long that, where other programs want the cores too, they mostly wait for
    # threads that are not running (docs/PERFORMANCE.md, section on busy machines).
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "20000"
    # Since its version 1.29, onnxruntime tells its makers on Linux, too, of each model that it opens, unless this is
    # set.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # Pillow warns of damaged EXIF data and the like: what can be read is read, what cannot is a PictureError.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # Notebooks tell the programs that they start to draw by a package that need not be installed here.
    os.environ.pop("MPLBACKEND", None)


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
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it: not every terminal knows each character
    set_up()
    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup
            signal.signal(signum, interrupt)

    def main_and_flush() -> int:
        try:
            status = main() or 0
        except SystemExit:  # after --help
            sys.stdout.flush()
            raise
        sys.stdout.flush()  # here, where a reader who has gone can still be told from a failure
        return status

    try:
        return main_and_flush()
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
        drop_output()  # its reader has gone (`| head`)
        return 128 + signal.SIGPIPE
    except OSError as error:
        # What opens a file, or writes one that stays, names it; these are left.
        if error.filename is not None or error.errno not in FULL:
            raise
        drop_output()
        say(f"error: standard output, or a temporary file, cannot be written ({error.strerror}); free some space")
        return USER_ERROR


def drop_output() -> None:
    """Write the rest of the output, which Python flushes again at exit, into nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
