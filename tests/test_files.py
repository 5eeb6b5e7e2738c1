"""Files that are whole, old or new, whatever happens; folders that one process at a time writes to."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import BinaryIO

import pytest

import glyphs.core.files
from glyphs.core.errors import GlyphError
from glyphs.core.files import UNFINISHED, claim_folder, replace_file, replacing, unused, valid_utf8
from tests.conftest import ROOT, refused, run_python

CLAIM = """
import sys
from pathlib import Path
from glyphs.core.process import run
from glyphs.core.files import claim_folder
def main():
    with claim_folder(Path(sys.argv[1])):
        print("claimed", flush=True)
        sys.stdin.readline()
sys.exit(run(main))
"""


def hold(folder: Path) -> "subprocess.Popen[str]":
    """Start a process that claims the folder until it is told to end; return when it has."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "claimed\n"
    return process


def aside_of(path: Path) -> Path:
    """Where a file lies while it is written."""
    return path.with_name(UNFINISHED.format(path.name))


def test_writes_and_replaces_leaving_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    for content in (b"old", b"new, and longer", b""):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_ends_in_tmp_is_its_users(tmp_path: Path) -> None:
    (tmp_path / "results.json.tmp").write_bytes(b"mine")
    replace_file(tmp_path / "results.json", b"[]")
    assert (tmp_path / "results.json.tmp").read_bytes() == b"mine"


def test_an_unused_name_is_one_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "drawing.png"
    assert unused(path) == path
    path.touch()
    (tmp_path / "drawing2.png").symlink_to("nowhere")
    assert unused(path) == tmp_path / "drawing3.png"


def test_reaches_the_disk_before_it_takes_the_place_of_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"old")
    seen = []

    def look(descriptor: int) -> None:
        seen.append((path.read_bytes(), aside_of(path).exists()))

    monkeypatch.setattr(os, "fsync", look)
    replace_file(path, b"new")
    assert seen == [(b"old", True), (b"new", False)]  # the file, then the folder that names it


def test_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"old")

    def disk_full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", disk_full)
    with refused(GlyphError, path, "No space left", "untouched", "free some space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(GlyphError) as caught:
        replace_file(tmp_path / "b.pth", b"new")
    assert "untouched" not in str(caught.value)  # there was none


def test_write_that_breaks_off_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"old")
    code = """
        import resource, sys
        from pathlib import Path
        from glyphs.core.process import run
        from glyphs.core.files import replace_file
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        sys.exit(run(lambda: replace_file(Path(sys.argv[1]), bytes(5000))))
    """
    result = run_python("-c", textwrap.dedent(code), str(path))
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {path}: cannot be written (File too large)")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["no/such/folder.pth", "file/inside.pth", "n" * 300])
def test_path_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with refused(GlyphError, tmp_path / name, "cannot be written"):
        replace_file(tmp_path / name, b"new")


def test_folder_that_cannot_flush_its_names_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network and FUSE file systems refuse fsync on a folder with EINVAL; the new file is whole all the same."""
    real_fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112 - a descriptor, not a path of ours
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    replace_file(tmp_path / "a.pth", b"new")
    assert (tmp_path / "a.pth").read_bytes() == b"new"


def test_claim_makes_the_folder_and_can_be_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        with claim_folder(folder):
            assert folder.is_dir()
    assert {path.name for path in folder.iterdir()} <= {".lock"}


def test_claim_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claim_folder(tmp_path):
        raise ZeroDivisionError
    with claim_folder(tmp_path):
        pass


def test_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    with hold(tmp_path) as process:
        with refused(GlyphError, tmp_path, "another run", "--output-dir"), claim_folder(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    with claim_folder(tmp_path):
        pass


def test_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "outputs"
    path.write_bytes(b"")
    for folder in (path, path / "run1"):
        with refused(GlyphError, folder, "--output-dir"), claim_folder(folder):
            pass


def claim_as_nobody(folder: Path, *, from_inside: bool) -> "subprocess.CompletedProcess[str]":
    """Claim the folder without root's right to write everywhere, entering it first where asked."""
    code = CLAIM.replace(
        "sys.exit", "import filelock, os\nos.chdir(sys.argv[2])\nif os.geteuid() == 0: os.setuid(65534)\nsys.exit"
    )
    folder_there = "." if from_inside else str(folder)
    return run_python("-c", code, folder_there, str(folder if from_inside else ROOT))


@pytest.mark.parametrize("old_lock", [False, True])
def test_folder_without_write_permission_is_refused_in_one_line(tmp_path: Path, old_lock: bool) -> None:
    if old_lock:
        (tmp_path / ".lock").touch()
        (tmp_path / ".lock").chmod(0o666)
    tmp_path.chmod(0o555)
    result = claim_as_nobody(tmp_path, from_inside=True)
    tmp_path.chmod(0o755)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "Permission denied" in result.stderr


def test_folder_behind_a_locked_door_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "private" / "outputs").mkdir(parents=True)
    (tmp_path / "private").chmod(0)
    result = claim_as_nobody(tmp_path / "private" / "outputs", from_inside=False)
    (tmp_path / "private").chmod(0o755)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "Permission denied" in result.stderr


def test_claim_that_fails_its_probe_gives_the_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise GlyphError(f"{path}: cannot be written")

    with monkeypatch.context() as patched:
        patched.setattr(glyphs.core.files, "replace_file", refuse)
        with refused(GlyphError, tmp_path), claim_folder(tmp_path):
            pass
    with claim_folder(tmp_path):
        pass


def write_slowly(path: Path) -> "subprocess.Popen[str]":
    """Start a process that has half written a file, and ends it when it is told to; return when it has."""
    code = """
        import sys
        from pathlib import Path
        from glyphs.core.files import replacing
        with replacing(Path(sys.argv[1])) as file:
            file.write(b"half ")
            file.flush()
            print("half", flush=True)
            sys.stdin.readline()
            file.write(b"and half")
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    return process


def test_of_two_processes_that_write_one_file_the_second_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with write_slowly(path) as process:
        with refused(GlyphError, path, "another process is writing it"):
            replace_file(path, b"the second")
        process.communicate("\n", timeout=300)
    assert path.read_bytes() == b"half and half"
    replace_file(path, b"the third")
    assert path.read_bytes() == b"the third"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with write_slowly(path) as process:
        process.kill()
    assert aside_of(path).exists()
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_was_given_its_name_meanwhile_is_not_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    aside = aside_of(path)
    aside.write_bytes(b"another's")
    claim = glyphs.core.files.claim_file

    def too_late(file: BinaryIO, path: Path) -> None:
        if aside.exists() and aside.read_bytes() == b"another's":
            aside.rename(tmp_path / "b.csv")
        claim(file, path)

    monkeypatch.setattr(glyphs.core.files, "claim_file", too_late)
    replace_file(path, b"mine")
    assert path.read_bytes() == b"mine"
    assert (tmp_path / "b.csv").read_bytes() == b"another's"


def test_a_folder_in_the_way_is_known_before_the_work(tmp_path: Path) -> None:
    with refused(GlyphError, tmp_path, "cannot be written", "directory"), replacing(tmp_path):
        pytest.fail("it began")


@pytest.mark.parametrize(
    ("name", "written"),
    [("é.png", "é.png"), ("\udce9", r"\xe9"), ("\ud800\udc7f", r"\ud800\udc7f"), ("\udd00", r"\udd00")],
)
def test_a_name_is_always_text(name: str, written: str) -> None:
    assert valid_utf8(name) == written
