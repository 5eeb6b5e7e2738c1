"""The package: what is installed is all that is needed, under the names that are promised."""

import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

import glyphs
from tests.conftest import ROOT, run_python
from tests.test_imports import packages


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that `pip install .` builds of the repository's files."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():  # copied, since building leaves a folder behind
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


@pytest.mark.slow
def test_the_wheel_holds_every_module_the_page_and_the_weights(wheel: zipfile.ZipFile) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "glyphs").rglob("*.py")}
    weights = {f"glyphs/pretrained/{path.name}" for path in (ROOT / "pretrained").iterdir() if path.suffix != ".md"}
    assert weights
    page = {f"glyphs/serving/page/{path.name}" for path in (ROOT / "glyphs/serving/page").iterdir()}
    assert set(wheel.namelist()) >= modules | weights | page | {path.name for path in ROOT.glob("*.py")}
    assert not [name for name in wheel.namelist() if name.startswith(("tests/", "benchmarks/"))]


@pytest.mark.slow
def test_the_wheel_has_the_commands_and_asks_for_what_requirements_txt_lists(wheel: zipfile.ZipFile) -> None:
    info = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    commands = dict(re.findall(r"^([\w-]+) = (\w+):command$", wheel.read(info).decode(), re.MULTILINE))
    assert commands == {
        "glyph-train": "enhanced_glyph_recognition",
        "glyph-read": "inference",
        "glyph-model": "model_utils",
    }
    metadata = wheel.read(info.replace("entry_points.txt", "METADATA")).decode()
    asked = set(re.findall(r"^Requires-Dist: ([\w-]+[^;\n]*)$", metadata, re.MULTILINE))
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert asked == {line for line in lines if line and not line.startswith("#")}
    assert f"Version: {glyphs.__version__}" in metadata


@pytest.mark.parametrize("name", glyphs.PUBLIC_NAMES)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(glyphs, name).__module__.startswith("glyphs.")


def test_no_other_name_is_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'NoSuchName'"):
        glyphs.NoSuchName  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    result = run_python("-c", "import sys, glyphs; print({'torch', 'numpy', 'PIL'} & set(sys.modules))")
    assert result.stdout == "set()\n", result.stderr


def test_importing_what_reads_changes_nothing_for_the_whole_process() -> None:
    code = """
        import os, numpy, PIL.Image, scipy.ndimage, warnings
        before = dict(os.environ), list(warnings.filters)
        from glyphs import Config, GlyphPredictor
        print((dict(os.environ), list(warnings.filters)) == before)
    """
    result = run_python("-c", textwrap.dedent(code))
    assert result.stdout == "True\n", result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
    ids=["ours", "a number of the user's", "a policy of the user's"],
)
def test_openmp_starts_with_a_short_spin_unless_the_user_chose(given: dict[str, str], spins: str) -> None:
    """OpenMP itself says what it goes by, when it is loaded."""
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", *given)}
    command = [sys.executable, "enhanced_glyph_recognition.py", "--resume", "/nowhere/latest_checkpoint.pth"]
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **given}
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert "there is no such checkpoint" in result.stderr  # torch has been loaded by then
    if "GOMP_SPINCOUNT" not in result.stderr:
        pytest.skip("this torch computes with another OpenMP than GNU's")
    assert re.search(rf"GOMP_SPINCOUNT = '{spins}'", result.stderr)


def test_ci_runs_what_the_readme_says() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)
    promised = next(block for block in blocks if "requirements-dev.txt" in block)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [command.strip() for command in promised.split("&&")]
    assert [line for line in script if line in commands] == commands


def test_requirements_need_nothing_that_is_missing_here() -> None:
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            assert importlib.metadata.version(re.split(r"[<>=!~ ]", line)[0])


def test_requirements_name_every_package_that_is_imported() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    named = {re.split(r"[<>=!~ ]", line)[0].lower() for line in lines if line and not line.startswith("#")}
    distributions = importlib.metadata.packages_distributions()
    files = [*ROOT.glob("*.py"), *(ROOT / "glyphs").rglob("*.py")]
    imported = {name for path in files for name in packages(path)} - set(sys.stdlib_module_names) - {"glyphs"}
    optional = {"pyarrow", "timm", "resvg_py", "pypdfium2", "cleanlab"}
    missing = {name for name in imported - optional if not named & {each.lower() for each in distributions[name]}}
    assert missing - {path.stem for path in ROOT.glob("*.py")} == set()


def test_the_citation_has_the_version() -> None:
    assert f"version: {glyphs.__version__}\n" in Path(ROOT / "CITATION.cff").read_text(encoding="utf-8")
