"""model_utils.py from end to end, most of it through `main`; what concerns the process itself in one of its own."""

import csv
import json
import re
import shutil
from pathlib import Path

import onnx
import pytest
import torch

import model_utils
from glyphs.core import timing
from glyphs.core.config import Config
from glyphs.core.errors import CheckpointError, ConfigError, GlyphError
from glyphs.evaluation import analyzer
from glyphs.models import export
from glyphs.models.checkpoint import save_checkpoint
from glyphs.models.network import EnhancedGlyphCNN
from tests.conftest import refused, run_python, write_emnist
from tests.small import NAMES, save_small_checkpoint


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "ROUND_SECONDS", 0.001)
    monkeypatch.setattr(analyzer, "LAYER_CALLS", 3)


def utils(*arguments: object) -> None:
    model_utils.main([str(argument) for argument in arguments])


def save_digits(path: Path, seed: int, **metrics: float) -> Path:
    torch.manual_seed(seed)
    model = EnhancedGlyphCNN(10, use_residual=False)
    names = NAMES[:10]
    save_checkpoint(path, model, Config(emnist_split="digits", use_residual=False), names, metrics=metrics)
    return path


def test_analyze_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "outputs").mkdir()
    save_small_checkpoint(tmp_path / "outputs" / "best_model.pth")
    utils("--analyze", "outputs/best_model.pth", "--batch-size", 2)
    captured = capsys.readouterr()
    assert "172,239 (172,239 trainable)" in captured.out
    assert captured.err == "timing outputs/best_model.pth\nwritten: outputs/analysis.png\n"
    assert (tmp_path / "outputs" / "analysis.png").exists()


def test_analyze_writes_a_report(exported: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    utils("--analyze", exported[1], "--batch-size", 2, "--output", "reports/report.json")
    report = json.loads((tmp_path / "reports" / "report.json").read_text(encoding="utf-8"))
    assert report["parameters"]["trainable"] is None
    assert {path.name for path in tmp_path.rglob("*")} == {"reports", "report.json", "analysis.png"}


def test_compare_alone_shows_what_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_digits(tmp_path / "a.pth", 0, val_accuracy=0.9)
    save_digits(tmp_path / "b.pth", 1, val_accuracy=0.8)
    utils("--compare", "a.pth", "b.pth", "--batch-size", 2)
    out = capsys.readouterr().out
    assert "validation accuracy, % (stored)" in out
    assert "90.00 *" in out
    assert "give test data by --data-dir" in out
    assert (tmp_path / "outputs" / "comparison.png").exists()


def test_compare_on_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The split is the first model's own, and both formats of the report hold the same."""
    write_emnist(tmp_path / "data", "digits", images_per_class=5)
    paths = [save_digits(tmp_path / f"{seed}.pth", seed) for seed in (0, 1)]
    for name in ("c.json", "c.csv"):
        utils("--compare", *paths, "--data-dir", "data", "--batch-size", 8, "--output", name)
        out = capsys.readouterr().out
        assert "50 test images (digits)" in out
        assert "95 % interval" in out
    found = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text("utf-8-sig").splitlines()))
    assert [float(row["accuracy"]) for row in rows] == [model["accuracy"] for model in found["models"]]
    assert found["test"] == {"split": "digits", "images": 50}
    assert found["differences"][0]["sentence"] in out
    assert (tmp_path / "comparison.png").exists()
    assert not (tmp_path / "outputs").exists()
    with refused(CheckpointError, "none of the models knows the 26 classes"):
        write_emnist(tmp_path / "data", "letters")
        utils("--compare", *paths, "--data-dir", "data", "--split", "letters", "--batch-size", 8)


@pytest.mark.parametrize("output", [None, "model.onnx"])
def test_export(
    output: str | None,
    exported: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both of the commands that users know."""
    monkeypatch.setattr(export, "to_onnx", lambda *_: onnx.load(exported[1]))
    (tmp_path / "outputs").mkdir()
    shutil.copy(exported[0], tmp_path / "outputs" / "best_model.pth")
    utils("--export", "outputs/best_model.pth", *(["--output", output] if output else ["--format", "onnx"]))
    path = output or "outputs/best_model.onnx"
    assert (tmp_path / path).exists()
    out = capsys.readouterr().out
    assert out.startswith(f"{path}: onnx, opset {export.OPSET}, ")
    assert "largest difference of a probability" in out
    assert "the same answer for 100.0% of the images, at batch 1, 2, 17" in out


@pytest.mark.slow
def test_int8_is_judged_on_the_validation_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_emnist(tmp_path / "data", "digits", images_per_class=40)
    source = save_digits(tmp_path / "m.pth", 0)
    monkeypatch.setattr(export, "MAX_FALL", -1.0)  # no model is that much better
    command = ("--export", source, "--format", "onnx-int8", "--data-dir", "data")
    with refused(GlyphError, "m.int8.onnx", "not written", "20 validation images", "--force"):
        utils(*command)
    assert not list(tmp_path.glob("m.int8*"))
    utils(*command, "--force")
    captured = capsys.readouterr()
    assert "calibrated     on 20 validation images; judged on 20 others" in captured.out
    assert re.search(r"accuracy .*%, (the same as|\d+\.\d\d points (more|less) than) in float32 \(", captured.out)
    stages = ("converting", "calibrating on 20 images", "comparing 8 bits", "timing both")
    assert [line.startswith(stage) for line, stage in zip(captured.err.splitlines()[-4:], stages, strict=True)]
    assert (tmp_path / "m.int8.onnx").exists()
    write_emnist(tmp_path / "data", "letters")
    with refused(CheckpointError, source, "knows 10 classes (0 to 9), the data has 26 others (a to z)", "--split"):
        utils(*command, "--split", "letters")


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--analyze", "m.pth", "--output", "r.txt"], ("r.txt", ".json")),
        (["--analyze", "m.pth", "--output", "no/r.json"], ("no/r.json", "there is no folder no")),
        (["--analyze", "m.pth", "--output", "folder.json"], ("folder.json", "is a folder")),
        (["--compare", "m.pth", "m.pth", "--output", "r.png"], ("r.png", ".json or .csv")),
        (["--export", "m.pth", "--format", "onnx-int8"], ("onnx-int8", "--data-dir")),
        (["--export", "m.pth", "--force"], ("--force", "onnx-int8")),
        (["--export", "m.pth", "--output", "m.tflite"], ("m.tflite", "no format has this suffix")),
        (["--export", "m.onnx"], ("m.onnx", "is an export already")),
        (["--export", "m.pth", "--output", "no/m.onnx"], ("no/m.onnx", "there is no folder no")),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_read(
    arguments: list[str], facts: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "folder.json").mkdir()
    for name in ("m.pth", "m.onnx"):
        (tmp_path / name).touch()
    with refused(ConfigError, *facts):
        utils(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--compare", "m.pth"],
        ["--analyze", "m.pth", "--compare", "m.pth", "m.pth"],
        ["--analyze", "m.pth", "--format", "onnx"],
        ["--analyze", "m.pth", "--data-dir", "data"],
        ["--export", "m.pth", "--format", "tflite"],
    ],
)
def test_arguments_that_contradict_each_other_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        utils(*arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_mistake_is_one_line_and_exit_status_2(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not a checkpoint")
    result = run_python("model_utils.py", "--analyze", str(tmp_path / "text.pth"))
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'text.pth'}: ")
    for action in ("--analyze", "--export"):
        for name in ("gone.pth", "text.pth"):
            with refused(GlyphError, f"{tmp_path / name}: "):
                utils(action, tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"text.pth"}
