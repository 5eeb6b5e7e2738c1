"""The documents: their commands parse, their code runs, the files they name exist."""

import contextlib
import functools
import inspect
import io
import json
import math
import re
import runpy
import shlex
import string
import sys
from pathlib import Path
from unittest import mock

import pytest
from torch.distributed.run import get_args_parser

import glyphs.data.loaders
import inference
from glyphs.commands import model_arguments, read_arguments, train_arguments
from glyphs.core.config import Config
from glyphs.data.demo import DEMO_CLASSES, IMAGES_PER_CLASS
from glyphs.data.emnist import CLASS_NAMES
from glyphs.models import export
from glyphs.models.network import EnhancedGlyphCNN, ViewAverage
from glyphs.training.lr_finder import LRFinder
from tests.conftest import ROOT, draw_demo
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
        elif script.startswith(("samples/", "recipes/")):
            assert (ROOT / script).exists(), command
        else:
            assert script == "-c", command


# An example that trains has to learn what it shows: the accuracy that its last line prints is above this.
LEAST_PRINTED = {"QUICKSTART.md": 0.9, "API.md": 0.95}
# The examples of SERVICE.md talk to a service: tests/test_service.py runs them.
EXAMPLES = [
    pytest.param(page, marks=pytest.mark.slow if page.name in LEAST_PRINTED else ())
    for page in PAGES
    if blocks(page, "python") and page.name != "SERVICE.md"
]


@pytest.mark.parametrize("document", EXAMPLES, ids=lambda path: path.name)
def test_every_python_example_runs(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(glyphs.data.loaders, "render_demo", draw_demo)
    for name in ("pretrained", "samples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "outputs").mkdir()
    save_small_checkpoint(tmp_path / "outputs" / "best_model.pth")
    for number, name in enumerate(["test.png", "a.png", "b.png"]):  # what the examples speak of
        draw_glyph(number).save(tmp_path / name)
    for example in blocks(document, "python"):
        exec(compile(example, document.name, "exec"), {"__name__": "example"})
    if document.name in LEAST_PRINTED:
        assert float(capsys.readouterr().out.splitlines()[-1]) > LEAST_PRINTED[document.name]


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


def test_every_flag_is_in_a_document() -> None:
    helps = "".join(build().format_help() for build in PARSERS.values())
    told = {flag for page in PAGES for flag in re.findall(FLAG, page.read_text(encoding="utf-8"))}
    known = {flag for flag in set(re.findall(FLAG, helps)) - {"--version"} if not flag.startswith("--no-")}
    assert known <= told


@pytest.mark.parametrize("document", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (document.parent / target).exists(), target


def test_numbers_in_the_documents_are_those_of_the_code() -> None:
    parameters, light = (
        sum(weights.numel() for weights in EnhancedGlyphCNN(47, use_residual=residual).parameters())
        for residual in (True, False)
    )
    assert round(parameters / light) == 20
    assert Config().checkpoint_every == 120
    assert len(ViewAverage(EnhancedGlyphCNN(47)).maps) == 7
    images = {part: count * len(DEMO_CLASSES) for part, count in IMAGES_PER_CLASS.items()}
    validation = round(images["train"] * Config().val_split)
    recipe = json.loads((ROOT / "recipes" / "accurate.json").read_text(encoding="utf-8"))
    merged = " ".join(sorted(set(string.ascii_lowercase) - set(CLASS_NAMES["balanced"])))
    sizes = {split: len(names) for split, names in CLASS_NAMES.items()}
    sweep = inspect.signature(LRFinder.range_test).parameters
    batches = [str(batch) for batch in export.VERIFIED_BATCHES]
    promised = {
        "README.md": [
            f"{parameters / 1e6:.1f} million parameters",
            f"the {sizes['balanced']}, {sizes['byclass']}, {sizes['letters']} or {sizes['digits']} classes of EMNIST",
        ],
        "QUICKSTART.md": [
            f"{parameters:,} parameters on CPU",
            f"{images['train'] - validation:,} training, {validation:,} validation and {images['test']:,} test images",
            f"the {sizes['balanced']} classes of its Balanced split",
        ],
        "docs/TRAINING.md": [
            f"{sizes['balanced']} classes, {Config().num_epochs} epochs",
            f"{sizes['byclass']} classes: upper and lower case apart",
            "every two minutes within one",
            "twenty times smaller",
            "look at each image seven times",
            f"batches of {recipe['batch_size']}, a rate of {recipe['learning_rate']} with weight decay of "
            f"{recipe['weight_decay']}, less rotation and shifting, less label smoothing, a {recipe['class_prior']} "
            f"class prior, {recipe['num_epochs']} epochs",
            f"from 1e{math.log10(sweep['start_lr'].default):.0f} to {sweep['end_lr'].default:.0f},",
        ],
        "docs/DATA.md": [f"the {len(DEMO_CLASSES)} classes of EMNIST-Balanced"],
        "docs/PREDICTION.md": [f"the letters {merged} in capitals only"],
        "docs/ANALYSIS.md": [
            f"opset {export.OPSET},",
            f"at batch {', '.join(batches[:-1])} and {batches[-1]} beside the checkpoint",
            f"more than {export.TOLERANCE} makes",
            f"up to {export.CALIBRATION_IMAGES} validation images",
            f"by more than {100 * export.MAX_FALL} points",
            f"fewer than {100 * export.MIN_AGREEMENT:.0f} % of the answers",
            f"need torch {export.ONNX_TORCH} or newer",
        ],
        "docs/SCALING.md": [f"{4 * parameters / 1e6:.1f} MB: {parameters:,} gradients"],
    }
    for page, sentences in promised.items():
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        for sentence in sentences:
            assert sentence in text, page


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
