"""The documents: their commands parse, their code runs, the files they name exist."""

import contextlib
import functools
import io
import re
import runpy
import shlex
import sys
from pathlib import Path
from unittest import mock

import pytest
from torch.distributed.run import get_args_parser

import inference
from glyphs.commands import model_arguments, read_arguments, train_arguments
from tests.conftest import ROOT
from tests.small import draw_glyph, save_small_checkpoint

PAGES = [ROOT / "README.md", ROOT / "QUICKSTART.md", *sorted((ROOT / "docs").glob("*.md"))]
README_BYTES = 8 * 1024
PARSERS = {
    "enhanced_glyph_recognition.py": train_arguments.build_parser,
    "inference.py": read_arguments.build_parser,
    "model_utils.py": model_arguments.build_parser,
}


FLAG = r"(?<![\w-])--[a-z][a-z-]+"


@functools.cache
def benchmark_flags() -> set[str]:
    """The flags of all benchmarks, from their --help."""
    helps = io.StringIO()
    for script in (ROOT / "benchmarks").glob("*.py"):
        with (
            mock.patch.object(sys, "argv", [script.name, "--help"]),
            contextlib.redirect_stdout(helps),
            pytest.raises(SystemExit, match=r"^0$"),
        ):
            runpy.run_path(str(script), run_name="__main__")
    return set(re.findall(FLAG, helps.getvalue()))


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


def commands(document: Path) -> list[str]:
    """Everything in a document's bash blocks that runs a program of the project."""
    return [
        part.strip()
        for block in blocks(document, "bash")
        for line in block.splitlines()
        for part in line.split("#")[0].split("&&")
        if part.strip().startswith(("python ", "torchrun "))
    ]


def test_the_pages_hold_commands() -> None:
    assert sum(len(commands(document)) for document in PAGES) > 50


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_every_command_parses(document: Path) -> None:
    for command in commands(document):
        program, script, *arguments = shlex.split(command)
        if program == "torchrun":
            torchrun = get_args_parser().parse_args([script, *arguments])
            script, arguments = torchrun.training_script, torchrun.training_script_args
        if script in PARSERS:
            PARSERS[script]().parse_args(arguments)
        elif script.startswith("benchmarks/"):
            assert set(re.findall(FLAG, " ".join(arguments))) <= benchmark_flags(), command
        elif script.startswith("samples/"):
            assert (ROOT / script).exists(), command
        else:
            assert script == "-c", command


# The examples of SERVICE.md talk to a service: tests/test_service.py runs them.
EXAMPLES = [page for page in PAGES if blocks(page, "python") and page.name != "SERVICE.md"]


@pytest.mark.parametrize("document", EXAMPLES, ids=lambda path: path.name)
def test_every_python_example_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pretrained", "samples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "outputs").mkdir()
    save_small_checkpoint(tmp_path / "outputs" / "best_model.pth")
    for number, name in enumerate(["test.png", "a.png", "b.png"]):  # what the examples speak of
        draw_glyph(number).save(tmp_path / name)
    for example in blocks(document, "python"):
        exec(compile(example, document.name, "exec"), {"__name__": "example"})


def test_the_readme_is_short_and_its_commands_answer_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = ROOT / "README.md"
    assert len(readme.read_bytes()) <= README_BYTES
    monkeypatch.chdir(tmp_path)  # where the commands may write
    for name in ("pretrained", "samples"):
        (tmp_path / name).symlink_to(ROOT / name)
    shown = [command for command in commands(readme) if "samples/" in command]
    assert len(shown) >= 2
    for command in shown:
        assert inference.main(shlex.split(command)[2:]) == 0
    printed = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    promised = [line.split("\t") for line in blocks(readme, "text")[0].splitlines()]
    assert [line[:3] for line in printed] == [line[:3] for line in promised]
    for (*_, confidence), (*_, said) in zip(printed, promised, strict=True):
        assert float(confidence) == pytest.approx(float(said), abs=0.005)


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_every_flag_named_exists(document: Path) -> None:
    helps = "".join(build().format_help() for build in [*PARSERS.values(), get_args_parser])
    known = set(re.findall(FLAG, helps)) | benchmark_flags()
    text = re.sub(r"(pip install|ruff|pytest|mypy|curl|docker)[^\n`]*", "", document.read_text(encoding="utf-8"))
    assert set(re.findall(FLAG, text)) <= known


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (document.parent / target).exists(), target


def test_the_file_tree_is_the_real_one() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = re.search(r"```\nglyphs/\n(.*?)```", text, re.DOTALL)
    assert tree
    named = set(re.findall(r"^  ([\w.]+(?:\.py|/)) ", tree[1], re.MULTILINE))
    places = [path for path in (ROOT / "glyphs").iterdir() if not path.name.startswith("__")]
    assert named == {path.name + "/" * path.is_dir() for path in places}
    for files in re.findall(r"^\| .* \| (.*glyphs/.*) \|$", text, re.MULTILINE):  # which file to open
        room = ROOT
        for file in re.findall(r"`([\w/]+\.py)`", files):
            path = ROOT / file if "/" in file else room / file
            assert path.exists(), file
            room = path.parent
