"""What all three scripts do with their command lines: mistyped flags, wrong values, files that are not there."""

import importlib
import re
from pathlib import Path

import pytest

from glyphs import __version__
from glyphs.core.errors import CheckpointError, ConfigError
from tests.conftest import refused

SCRIPTS = ("enhanced_glyph_recognition", "inference", "model_utils")


def call(script: str, *arguments: object) -> None:
    importlib.import_module(script).main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("script", "arguments", "near"),
    [
        ("enhanced_glyph_recognition", ["--epoch", "5"], "--epochs"),
        ("inference", ["--imge", "a.png"], "--image"),
        ("inference", ["--image", "a.png", "--topk=3"], "--top-k"),
        ("model_utils", ["--analyse", "m.pth"], "--analyze"),
    ],
)
def test_a_mistyped_flag_is_one_line_with_the_nearest(
    script: str, arguments: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        call(script, *arguments)
    [line] = capsys.readouterr().err.splitlines()
    wrong = next(argument for argument in arguments if argument.startswith("--") and argument != "--image")
    assert line == f"error: there is no {wrong.partition('=')[0]}; did you mean {near}? (--help lists all flags)"


@pytest.mark.parametrize("script", SCRIPTS)
def test_other_mistakes_are_one_line_too(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--qqqqqq"], ["--batch-size", "many"], ["stray"]):
        with pytest.raises(SystemExit, match="2"):
            call(script, *arguments)
        [line] = capsys.readouterr().err.splitlines()
        assert re.fullmatch(r"error: .* \(--help lists all flags\)", line)
        assert "did you mean" not in line


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_version_is_told(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        call(script, "--version")
    assert capsys.readouterr().out == f"glyphs {__version__}\n"


def test_a_wrong_value_is_called_by_its_flag_only_where_it_came_from_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--epochs is 0: it must be above 0, and at most 10\^15$"):
        call("enhanced_glyph_recognition", "--epochs", 0)
    (tmp_path / "settings.json").write_text('{"num_epochs": 0}')
    with pytest.raises(ConfigError, match=r"settings\.json: num_epochs is 0"):
        call("enhanced_glyph_recognition", "--config", tmp_path / "settings.json")


@pytest.mark.parametrize(
    ("script", "module", "arguments"),
    [
        ("enhanced_glyph_recognition", "train", ["--evaluate"]),
        ("enhanced_glyph_recognition", "train", ["--finetune"]),
        ("inference", "read", ["--image", "a.png", "--model"]),
        ("model_utils", "models", ["--analyze"]),
        ("model_utils", "models", ["--export"]),
        ("model_utils", "models", ["--compare", __file__]),
    ],
)
def test_a_missing_model_is_found_out_before_anything_heavy_is_imported(
    script: str, module: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(importlib.import_module("sys").modules, f"glyphs.commands.{module}", None)  # as if not there
    with refused(CheckpointError, tmp_path / "none.pth", "there is no such checkpoint"):
        call(script, *arguments, tmp_path / "none.pth")


def test_an_export_is_no_checkpoint_to_evaluate(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with refused(CheckpointError, "model.onnx", "is an export", "--compare"):
        call("enhanced_glyph_recognition", "--evaluate", tmp_path / "model.onnx")
