"""The documents: their commands parse, their code runs, the files they name exist."""

import functools
import re
import shlex
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from glyphs.commands import model_arguments, read_arguments, train_arguments
from tests.conftest import run_python
from tests.small import draw_glyph, save_small_checkpoint

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "QUICKSTART.md"]
SUBJECTS = ("PERFORMANCE", "SCALING", "TEXT", "SERVICE")
PAGES = [*DOCUMENTS, *(ROOT / "docs" / f"{subject}.md" for subject in SUBJECTS)]
PARSERS = {
    "enhanced_glyph_recognition.py": train_arguments.build_parser,
    "inference.py": read_arguments.build_parser,
    "model_utils.py": model_arguments.build_parser,
}


FLAG = r"(?<![\w-])--[a-z][a-z-]+"


@functools.cache
def benchmark_flags() -> set[str]:
    """The flags of all benchmarks, from their --help."""
    scripts = [str(path) for path in (ROOT / "benchmarks").glob("*.py")]
    return {flag for script in scripts for flag in re.findall(FLAG, run_python(script, "--help", timeout=300).stdout)}


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_every_command_parses(document: Path) -> None:
    commands = [
        part
        for block in blocks(document, "bash")
        for line in block.splitlines()
        for part in line.split("#")[0].split("&&")
        if part.strip().startswith(("python ", "torchrun "))
    ]
    assert len(commands) >= 2
    for command in commands:
        program, script, *arguments = shlex.split(command)
        if program == "torchrun":
            torchrun = get_args_parser().parse_args([script, *arguments])
            script, arguments = torchrun.training_script, torchrun.training_script_args
        if script in PARSERS:
            PARSERS[script]().parse_args(arguments)
        elif script.startswith("benchmarks/"):
            assert set(re.findall(FLAG, " ".join(arguments))) <= benchmark_flags(), command
        else:
            assert script == "-c", command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_python_example_runs(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    save_small_checkpoint(tmp_path / "outputs" / "best_model.pth")
    for number, name in enumerate(["test.png", "a.png", "b.png"]):  # what the examples speak of
        draw_glyph(number).save(tmp_path / name)
    examples = blocks(document, "python")
    assert examples
    for example in examples:
        exec(compile(example, document.name, "exec"), {"__name__": "example"})


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
