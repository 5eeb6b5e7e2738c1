"""`glyphs.core.process.run`: errors, bugs, signals and closed pipes as exit statuses, and what is said about them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from glyphs.core.errors import CheckpointError, ConfigError, DataError, GlyphError, TrainingError
from glyphs.core.process import SIGNALS, run
from glyphs.core.text import one_line
from tests.conftest import ROOT, run_python
from tests.small import draw_glyph, save_small_checkpoint

HEAD = "import os, signal, sys, time\nfrom glyphs.core.process import run\nfrom glyphs.core.errors import DataError\n"
WAIT = "def main():\n    print('ready', flush=True)\n    time.sleep(600)\n"
TAIL = "sys.exit(run(main))\n"
SCRIPTS = ("enhanced_glyph_recognition", "inference", "model_utils")


@pytest.fixture(autouse=True)
def signal_handlers_restored() -> Iterator[None]:
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + code + TAIL],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},  # else the last line could not be left in the buffer
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_status_is_what_main_returns(returned: int | None, status: int) -> None:
    assert run(lambda: returned) == status


@pytest.mark.parametrize("kind", [GlyphError, ConfigError, DataError, CheckpointError, TrainingError])
def test_what_the_user_can_mend_is_one_line_and_status_2(
    kind: type[GlyphError], capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise kind("a.gz: is damaged; fetch it again")

    assert run(main) == 2
    assert capsys.readouterr() == ("", "error: a.gz: is damaged; fetch it again\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\tand a tab", "two lines and a tab"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("back\rover\b\x00", "back\\rover\\x08\\x00"),
        ("line\u2028separator, \x85 and \u202e", "line\\u2028separator, \\x85 and \\u202e"),
        ("bad name \udcff", "bad name \\udcff"),
        ("gl\u00fdf \u5b57.png", "gl\u00fdf \u5b57.png"),
    ],
)
def test_names_of_files_cannot_break_the_line_or_the_terminal(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise DataError(text)

    assert one_line(text) == shown
    assert run(main) == 2
    assert capsys.readouterr().err == f"error: {shown}\n"


def test_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)
    result = run_python("-c", HEAD + "main = lambda: 1 // 0\n" + TAIL)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("ZeroDivisionError: integer division or modulo by zero\n")


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signal_ends_with_its_status_and_one_line(name: str, status: int) -> None:
    with start(WAIT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, name))
        _, error = process.communicate(timeout=300)
    assert process.returncode == status
    assert error == f"stopped by {name}\n"


def test_interruption_is_not_taken_for_a_failure() -> None:
    code = (
        "def main():\n    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(600)\n"
        "    except Exception:\n        return 0\n"
    )
    assert run_python("-c", HEAD + code + TAIL).returncode == 143


def test_hangup_is_ignored_under_nohup() -> None:
    code = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\ndef main():\n    os.kill(os.getpid(), signal.SIGHUP)\n"
    result = run_python("-c", HEAD + code + "    time.sleep(0.1)\n" + TAIL)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("signum", SIGNALS)
def test_programs_that_tests_start_are_interrupted_even_where_the_tests_ignore_signals(signum: signal.Signals) -> None:
    """As under nohup; without tests/conftest.py they would be waited for in vain."""
    code = (
        f"import signal, subprocess, sys\nsignal.signal({signum:d}, signal.SIG_IGN)\nimport tests.conftest\n"
        f"command = [sys.executable, '-c', 'import os, time; os.kill(os.getpid(), {signum:d}); time.sleep(1)']\n"
        f"print(subprocess.run(command, stderr=subprocess.DEVNULL).returncode)\n"
    )
    result = run_python("-c", code)
    assert result.stdout == f"{-signum:d}\n", result.stderr


@pytest.mark.parametrize("lines", [1, 100_000], ids=["left-in-the-buffer", "more-than-the-pipe-holds"])
def test_closed_pipe_is_silent(lines: int) -> None:
    code = f"def main():\n    sys.stdin.readline()\n    for _ in range({lines}):\n        print('a line')\n"
    with start(code) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `| head` does
        process.stdin.write("go\n")
        process.stdin.close()
        assert process.stderr.read() == ""
        process.wait(timeout=300)
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
@pytest.mark.parametrize(
    ("unbuffered", "command"),
    [
        *((each, (f"{name}.py", flag)) for each in ("", "1") for name in SCRIPTS for flag in ("--help", "--version")),
        pytest.param("", ("inference.py", "--image", "MODEL.png", "--model", "MODEL"), marks=pytest.mark.slow),
        pytest.param("", ("model_utils.py", "--analyze", "MODEL"), marks=pytest.mark.slow),
    ],
)
def test_output_onto_a_full_device_is_one_error(unbuffered: str, command: tuple[str, ...], tmp_path: Path) -> None:
    model = save_small_checkpoint(tmp_path / "small.pth")
    draw_glyph().save(f"{model}.png")
    arguments = [argument.replace("MODEL", str(model)) for argument in command]
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},  # the write fails at once, or at the end
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
        )
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith("error: standard output, or a temporary file, cannot be written")
    assert "Traceback" not in process.stderr
    assert "Exception ignored" not in process.stderr


def test_a_terminal_without_a_character_gets_its_code() -> None:
    code = HEAD + "def main():\n    print('\\xb5 \\u03b2 \\udce9')\n" + TAIL
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("\\xb5 \\u03b2 \\udce9\n", "", 0)
