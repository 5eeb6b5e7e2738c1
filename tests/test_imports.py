"""The architecture: imports point downwards only, heavy packages stay where they belong, and the scripts start fast."""

import ast
import importlib
import json
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import enhanced_glyph_recognition as script
import model_utils
from tests.conftest import ROOT, run_python

# From the bottom to the top; a room (a folder of the package) is one place.
LAYERS = (
    "core",
    "output",
    "pictures",
    "models",
    "data",
    "training",
    "evaluation",
    "reading",
    "forms",
    "serving",
    "commands",
)
LAYER = {name: number for number, name in enumerate(LAYERS)}
# A module's logger, a type variable, and what each script's arguments have alike.
COMMON = {"log", "T", "build_parser", "parse", "check"}
# All that is imported within functions, and not at the head of a file: why it is.
LATER = {
    "glyphs.commands.train": "--help and wrong arguments need not wait for torch",
    "glyphs.commands.models": "likewise",
    "glyphs.commands.read": "they need not wait for NumPy",
    "glyphs.core.distributed": "an .onnx model is read without torch",
    "torch": "likewise",
    "glyphs.core.devices": "likewise",
    "glyphs.models.network": "likewise",
    "glyphs.models.convolutions": "likewise",
    "glyphs.models": "likewise",
    "glyphs.output.plots": "matplotlib takes a second, and reading and training do without",
    "glyphs.commands.audit": "SciPy, which the rest of its script does without",
    "cleanlab.count": "optional",
    "cleanlab.filter": "optional",
    "glyphs.commands.evaluate": "scikit-learn and matplotlib, which training does without",
    "glyphs.evaluation.calibration": "SciPy, which training does without until it is done",
    "glyphs.data.folder": "SciPy, which EMNIST does without",
    "glyphs.data.survey": "likewise",
    "torchvision.transforms": "likewise, and only pictures in colour",
    "torchvision.datasets": "a second, which only a download need wait for",
    "tqdm": "a tenth of a second, which one answer need not wait for",
    "tqdm.auto": "likewise",
    "glyphs.pictures.finder": "likewise, where a second look is not needed",
    "glyphs.pictures.lines": "what finds text, which one character is read without",
    "glyphs.reading.reader": "likewise",
    "glyphs.reading.automaton": "likewise",
    "glyphs.reading.lattice": "likewise",
    "glyphs.forms.forms": "likewise",
    "glyphs.commands.sheets": "likewise",
    "filelock": "a twentieth of a second, which reading need not wait for",
    "glyphs.serving.service": "Starlette and uvicorn, which only a service needs",
    "torch.utils": "benchmark, whose logging is silenced before",
    "torch.utils.tensorboard": "optional",
    "timm": "optional",
    "resvg_py": "optional",
    "onnx": "a machine that never exports may do without",
    "onnxruntime": "likewise: it may do without .onnx models",
    "onnxruntime.quantization.shape_inference": "likewise",
    "pyarrow": "optional",
    "pypdfium2": "optional",
    "pyarrow.parquet": "optional",
}
MODULES = sorted(path for path in (ROOT / "glyphs").rglob("*.py") if path.stem != "__init__")
SCRIPTS = sorted(ROOT.glob("*.py"))
PACKAGE = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "glyphs")))
EVERYTHING = pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))


def room(path: Path) -> str:
    """The name of the place in LAYERS that a module belongs to: its room, or itself."""
    return path.relative_to(ROOT / "glyphs").with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports, anywhere in it; `from a import b` counts as a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports would slip through this test"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_later(path: Path) -> set[str]:
    """The modules that a file imports within functions."""
    names = set()
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    names.add(str(node.module))
    return names


def defined(path: Path) -> set[str]:
    """The names of what a module defines at its top level."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)}
    return names


def siblings(path: Path) -> set[str]:
    """The rooms of the package, and the modules outside of rooms, that a file imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("glyphs.")}


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def test_finds_the_imports_that_it_judges() -> None:
    assert {"glyphs.models.checkpoint", "glyphs.models.checkpoint.save_checkpoint", "torch"} <= imported(
        ROOT / "glyphs/training/trainer.py"
    )
    assert "output" in siblings(ROOT / "glyphs/evaluation/reports.py")
    assert "torchvision" in packages(ROOT / "glyphs/data/emnist.py")  # within a function
    assert {"Floats", "Points"} <= defined(ROOT / "glyphs/core/arrays.py")
    assert {"STEEPEST_LINE", "LEAST_SLOPE", "Box", "find_lines"} <= defined(ROOT / "glyphs/pictures/lines.py")


@PACKAGE
def test_package_imports_point_downwards(path: Path) -> None:
    for name in siblings(path) - {room(path)}:
        assert LAYER[name] < LAYER[room(path)], f"{room(path)} must not import {name}"


def test_no_two_modules_import_each_other() -> None:
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    TopologicalSorter({name: imported(path) & set(names) for name, path in names.items()}).prepare()


def test_no_two_modules_have_the_same_name() -> None:
    assert len({path.stem for path in MODULES}) == len(MODULES)


def test_no_name_stands_for_two_things() -> None:
    places: dict[str, list[str]] = {}
    for path in MODULES:
        for name in defined(path) - COMMON:
            places.setdefault(name, []).append(path.name)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_what_is_imported_within_functions_has_its_reason() -> None:
    assert {name for path in MODULES + SCRIPTS for name in imported_later(path)} == LATER.keys()


@PACKAGE
def test_package_never_imports_a_script_or_a_test(path: Path) -> None:
    above = {each.stem for each in SCRIPTS} | {each.stem for each in (ROOT / "tests").glob("*.py")} | {"tests"}
    assert not packages(path) & above


@EVERYTHING
def test_only_plots_imports_a_plotting_library(path: Path) -> None:
    assert path.stem == "plots" or not packages(path) & {"matplotlib", "seaborn"}


@pytest.mark.parametrize(
    "name", ["core/errors", "core/files", "core/config", "core/text", "core/process", "commands/settings"]
)
def test_what_parsing_needs_imports_nothing_heavy(name: str) -> None:
    outside = packages(ROOT / f"glyphs/{name}.py") - set(sys.stdlib_module_names)
    assert outside <= {"glyphs", "filelock"}


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running the code."""
    tail = "\nimport json, sys\nprint('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    result = run_python("-c", code + tail)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("flag", ["--help", "--no-such-flag"])
@pytest.mark.parametrize("name", ["enhanced_glyph_recognition.py", "model_utils.py"])
def test_help_and_wrong_arguments_do_not_wait_for_torch(name: str, flag: str) -> None:
    code = (
        f"import runpy, sys\nsys.argv = [{name!r}, {flag!r}]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit:\n    pass\n"
    )
    loaded = modules_after(code)
    assert "argparse" in loaded
    assert not loaded & {"torch", "torchvision", "numpy", "PIL", "sklearn", "scipy", "matplotlib", "tqdm", "joblib"}


def test_one_answer_needs_neither_torch_nor_what_reads_text() -> None:
    code = "import inference, json, sys\ninference.main(['--image', 'samples/letter.jpg'])\n"
    result = run_python("-c", code + "print(json.dumps(sorted(sys.modules)))")
    assert result.returncode == 0, result.stderr
    loaded = set(json.loads(result.stdout.splitlines()[-1]))
    assert {"onnxruntime", "glyphs.pictures.glyph"} <= loaded
    assert not loaded & {"torch", "tqdm", "filelock", "scipy.spatial", "glyphs.pictures.lines", "glyphs.forms.forms"}


@pytest.mark.slow
def test_training_without_evaluation_needs_no_plots_and_no_scikit_learn() -> None:
    loaded = modules_after(
        "import glyphs.training.trainer, glyphs.training.lr_finder, glyphs.data.loaders, glyphs.models.checkpoint\n"
        "import glyphs.evaluation.evaluator"
    )
    assert "torch" in loaded
    assert not loaded & {"matplotlib", "seaborn", "sklearn", "torchvision"}


def test_help_exits_0_and_shows_the_settings() -> None:
    result = run_python("enhanced_glyph_recognition.py", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "--batch-size" in result.stdout


def test_public_names_are_those_promised() -> None:
    promised = (
        "ResidualBlock DepthwiseSeparableConv EnhancedGlyphCNN LRFinder EarlyStopping Trainer Evaluator "
        "get_data_loaders get_default_config"
    )
    assert set(promised.split()) <= set(script.PUBLIC_NAMES)


@pytest.mark.parametrize(("name", "module"), script.PUBLIC_NAMES.items())
def test_public_name_comes_from_its_module(name: str, module: str) -> None:
    assert getattr(script, name) is getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("name", "module"), model_utils.PUBLIC_NAMES.items())
def test_public_name_of_model_utils(name: str, module: str) -> None:
    assert getattr(model_utils, name) is getattr(importlib.import_module(module), name)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchName'"):
        script.NoSuchName  # noqa: B018
