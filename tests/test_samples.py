"""What the documents show is what the program does."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from samples import failures


def test_what_fails_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/TEXT.md tells of no failure that was mended."""
    monkeypatch.setattr(sys, "argv", ["failures.py", str(tmp_path / "failures.png")])
    failures.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(failures.FAILURES)
    for line, (name, (_, truth)) in zip(lines, failures.FAILURES.items(), strict=True):
        assert line.startswith(f"{name}: {truth!r} is read as ")
        assert not line.endswith(repr(truth))
    with Image.open(tmp_path / "failures.png") as figure:
        assert min(figure.size) > 400
