"""inference.py from end to end, most of it through `main`; what concerns the process itself in one of its own."""

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from glyphs.commands.read import SOME_FAILED
from glyphs.core.config import Config
from glyphs.core.errors import CheckpointError, ConfigError, DataError, GlyphError
from glyphs.core.files import UNFINISHED
from glyphs.core.process import Interrupted
from glyphs.data.emnist import MERGED_47
from glyphs.models.checkpoint import save_checkpoint
from glyphs.models.network import EnhancedGlyphCNN, ViewAverage
from glyphs.output.rows import Prediction, Reading
from glyphs.pictures.glyph import preprocess
from glyphs.reading.predictor import GlyphPredictor
from tests.conftest import ROOT, refused, run_python
from tests.small import declared_png, draw_glyph, save_small_checkpoint, save_small_onnx


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_onnx(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 7 pictures and one other file."""
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "a.jpg", "b.bmp", "sub/a.png", "sub/c.gif", "z.tiff")):
        draw_glyph(number).save(folder / name)
    Image.new("L", (50, 50), 255).save(folder / "blank.png")
    (folder / "notes.txt").touch()
    return folder


def infer(*arguments: object) -> int:
    return inference.main([str(argument) for argument in arguments])


def test_a_pipe_gets_tab_separated_lines(model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert infer("--model", model, "--image", pictures / "a.png", pictures / "blank.png") == 0
    captured = capsys.readouterr()
    first, second = (line.split("\t") for line in captured.out.splitlines())
    assert first[:2] == [str(pictures / "a.png"), "ok"]
    assert len(first[2]) == 1
    assert 0 < float(first[3]) <= 1
    assert second == [str(pictures / "blank.png"), "no_glyph", "", ""]
    assert captured.err == ""
    infer("--model", model, "--image", pictures / "a.png", "--top-k", 2)
    assert capsys.readouterr().out.rstrip("\n").split("\t")[:6] == [*first, first[2], first[3]]


def test_several_pictures_are_drawn_into_a_folder(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (pictures / "damaged.png").write_bytes(b"nonsense")
    names = [pictures / "a.png", pictures / "damaged.png", pictures / "sub" / "a.png"]
    assert infer("--model", model, "--image", *names, "--visualize") == SOME_FAILED
    drawings = sorted(path.relative_to("predictions") for path in Path("predictions").rglob("*.png"))
    assert drawings == [Path("a.png.png"), Path("sub/a.png.png")]
    assert "drawn: 2 pictures into predictions\n" in capsys.readouterr().err
    infer("--model", model, "--batch", pictures / "sub", "--visualize", "drawn")
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["a.png.png", "c.gif.png"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("r.jsonl", "r.jsonl: 2 rows are kept; the same command goes on"),
        ("r.csv", "r.csv: not written; rows of a run that is stopped are kept in a .jsonl file only"),
    ],
)
def test_an_interrupted_batch_says_what_is_kept(
    model: Path,
    pictures: Path,
    tmp_path: Path,
    name: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = GlyphPredictor.answer
    answers: list[str | None] = []

    def interrupted(self: GlyphPredictor, file: str | None, *rest: Any) -> Prediction:
        answers.append(file)
        if len(answers) == 3:
            raise Interrupted(signal.SIGINT)
        return answer(self, file, *rest)

    command = ("--model", model, "--batch", pictures, "--output", tmp_path / name)
    with monkeypatch.context() as patch:
        patch.setattr(GlyphPredictor, "answer", interrupted)
        with pytest.raises(Interrupted):
            infer(*command)
    assert f"{tmp_path / name}: {said.partition(': ')[2]}" in capsys.readouterr().err
    assert (tmp_path / name).exists() == (name == "r.jsonl")
    assert infer(*command) == 0
    assert "7 pictures: 6 ok, 1 no glyph" in capsys.readouterr().err


def test_a_terminal_gets_a_table(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert infer("--model", model, "--image", pictures / "a.png", "--top-k", 2) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["result", "confidence", "top", "2", "file"]
    assert line.endswith(str(pictures / "a.png"))


def test_a_folder_to_json(model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results.json"
    assert infer("--model", model, "--batch", pictures, "--output", output, "--top-k", 3, "--batch-size", 2) == 0
    rows = json.loads(output.read_text(encoding="utf-8"))
    names = ["a.jpg", "a.png", "b.bmp", "blank.png", "sub/a.png", "sub/c.gif", "z.tiff"]
    assert [row["file"] for row in rows] == names
    assert [row["status"] for row in rows] == ["no_glyph" if name == "blank.png" else "ok" for name in names]
    assert {len(row["top_k"]) for row in rows} == {0, 3}
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "7 pictures: 6 ok, 1 no glyph; 1 other files skipped (1 .txt)\n"


def test_a_folder_to_csv(model: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "a.png").rename(pictures / "=SUM(A1).png")
    assert infer("--model", model, "--batch", pictures, "--output", tmp_path / "r.csv") == 0
    rows = list(csv.DictReader((tmp_path / "r.csv").read_text("utf-8-sig").splitlines()))
    assert rows[0]["file"] == "'=SUM(A1).png"
    assert len(rows) == 7


def test_an_interrupted_jsonl_run_goes_on(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.jsonl"
    (pictures / "aa.png").touch()
    command = ("--model", model, "--batch", pictures, "--output", output)
    assert infer(*command) == SOME_FAILED
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) * 2 // 3])
    done = output.read_bytes().count(b"\n")
    capsys.readouterr()
    assert infer(*command) == SOME_FAILED  # the failed row is of the first run
    assert output.read_bytes() == whole
    error = capsys.readouterr().err
    assert f"holds {done} rows" in error
    assert "8 pictures: 6 ok" in error


def test_what_cannot_be_read_fails_alone(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    draw_glyph().save(folder / "a.png")
    draw_glyph().save(folder / "z.png")
    whole = (folder / "a.png").read_bytes()
    (folder / "bomb.png").write_bytes(declared_png(50_000, 50_000))
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("gone")
    os.mkfifo(folder / "pipe.png")
    (folder / "esc\x1b[2J\n.png").touch()
    (folder / os.fsdecode(b"caf\xe9.png")).touch()
    output = tmp_path / "r.json"
    assert infer("--model", model, "--batch", folder, "--output", output) == SOME_FAILED
    rows = {row["file"]: row for row in json.loads(output.read_text(encoding="utf-8"))}
    bad = {"bomb.png", "truncated.png", "text.png", "empty.png", "loop.png", "dangling.png", "pipe.png"}
    bad |= {"esc\x1b[2J\n.png", "caf\\xe9.png"}
    assert set(rows) == bad | {"a.png", "z.png"}
    assert rows["a.png"]["status"] == rows["z.png"]["status"] == "ok"
    for name in bad:
        row = rows[name]
        assert row == {"file": name, "status": "failed", "prediction": None, "confidence": None, "top_k": []} | {
            "error": row["error"]
        }
        assert row["error"]
    *lines, summary = capsys.readouterr().err.splitlines()
    assert len(lines) == len(bad)
    assert summary.startswith("11 pictures: 9 failed, 2 ok")
    assert not any("\x1b" in line for line in lines)
    # The same as separate images, with a folder and a missing one.
    names = [folder / "a.png", folder / "folder.png", folder / "missing.png", folder / "z.png"]
    assert infer("--model", model, "--image", *names) == SOME_FAILED
    captured = capsys.readouterr()
    assert [line.split("\t")[1] for line in captured.out.splitlines()] == ["ok", "failed", "failed", "ok"]
    assert "is a folder" in captured.err
    assert "--batch" in captured.err
    assert "missing.png" in captured.err


def test_standard_input(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    infer("--model", model, "--image", pictures / "a.png")
    expected = capsys.readouterr().out.split("\t")[1:]
    content = (pictures / "a.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert infer("--model", model, "--image", "-") == 0
    assert capsys.readouterr().out.split("\t") == ["-", *expected]


def test_what_the_model_saw_is_saved_for_each(model: Path, pictures: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    assert infer("--model", model, "--batch", pictures, "--save-preprocessed", saved) == 0
    found = {str(path.relative_to(saved)) for path in saved.rglob("*.png")}
    assert found == {f"{name}.png" for name in ("a.png", "a.jpg", "b.bmp", "sub/a.png", "sub/c.gif", "z.tiff")}
    with Image.open(pictures / "a.jpg") as picture, Image.open(saved / "a.jpg.png") as pixels:
        expected = preprocess(picture).pixels
        assert expected is not None
        np.testing.assert_array_equal(np.asarray(pixels), expected)


def test_what_cannot_be_saved_ends_the_batch_before_its_row_and_leaves_nothing(
    model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--model", model, "--batch", pictures, "--save-preprocessed", tmp_path / "saved", "--output")
    whole = os.fsync

    def disk_full(descriptor: int) -> None:
        if (tmp_path / "saved" / UNFINISHED.format("b.bmp.png")).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", disk_full)
    with refused(GlyphError, "b.bmp.png", "No space left", "free some space"):
        infer(*arguments, tmp_path / "rows.jsonl")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"a.jpg.png", "a.png.png"}
    monkeypatch.undo()
    assert infer(*arguments, tmp_path / "rows.jsonl") == 0  # goes on, and saves the one that is missing
    assert len(list((tmp_path / "saved").rglob("*.png"))) == 6


def test_a_name_too_long_to_be_saved_is_said(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    draw_glyph().save(tmp_path / "pictures" / f"{'x' * 244}.png")
    assert infer("--model", model, "--batch", tmp_path / "pictures", "--save-preprocessed", tmp_path / "saved") == 0
    assert "is not saved, its name is too long" in capsys.readouterr().err
    assert not (tmp_path / "saved").exists()
    draw_glyph().save(tmp_path / "pictures" / "short.png")
    assert infer("--model", model, "--batch", tmp_path / "pictures", "--visualize", tmp_path / "drawn") == 0
    assert "is not saved, its name is too long" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["short.png.png"]


def test_saved_images_of_one_name_from_two_folders(model: Path, pictures: Path, tmp_path: Path) -> None:
    images = (pictures / "a.png", pictures / "sub" / "a.png")
    assert infer("--model", model, "--image", *images, "--save-preprocessed", tmp_path / "saved") == 0
    assert (tmp_path / "saved" / "a.png.png").is_file()
    assert (tmp_path / "saved" / "sub" / "a.png.png").is_file()


def test_a_drawing(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = io.BytesIO((pictures / "a.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content))
    assert infer("--model", model, "--visualize", "--image", "-") == 0
    with Image.open("prediction.png") as drawing:
        drawing.verify()
    assert "prediction.png" in capsys.readouterr().err
    Path("prediction.png").write_bytes(b"a drawing that its user keeps")
    for _ in range(2):
        assert infer("--model", model, "--visualize", "--image", pictures / "a.png") == 0
    assert Path("prediction.png").read_bytes() == b"a drawing that its user keeps"
    assert sorted(path.name for path in tmp_path.glob("prediction*")) == [f"prediction{n}.png" for n in ("", 2, 3)]
    assert infer("--model", model, "--visualize", "other.png", "--image", "missing.png") == SOME_FAILED
    assert not Path("other.png").exists()


def test_a_package_that_drawing_misses_is_known_before_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glyphs.commands.read.PLOTTING_PACKAGES", ("sys", "no_such_package"))
    monkeypatch.setattr("glyphs.commands.read.make_reader", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        infer("--image", "a.png", "--visualize")
    assert caught.value.name == "no_such_package"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--image"),
        (["--image", "a.png", "--batch", "."], "not allowed"),
        (["--image", "a.png", "--top-k", "0"], "--top-k"),
        (["--image", "a.png", "--top-k", "1000000000"], "--top-k is at most 1,000"),
        (["--image", "a.png", "--min-confidence", "1.5"], "--min-confidence"),
        (["--image", "a.png", "--min-confidence", "nan"], "--min-confidence"),
        (["--image", "a.png", "b.png", "--visualize", "drawn.png"], "into a folder"),
        (["--batch", ".", "--visualize"], "must not lie in --batch"),
        (["--image", "a.png", "--visualize", "drawn.jpg"], "end in .png"),
        (["--batch", ".", "--save-preprocessed", "saved"], "--save-preprocessed"),
    ],
)
def test_arguments_that_cannot_be(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="2"):
        infer(*arguments)
    assert message in capsys.readouterr().err


def test_views_are_averaged_where_asked(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ViewAverage, "forward", lambda self, images: 99.0 * torch.eye(47)[[5] * len(images)])
    checkpoint = save_small_checkpoint(tmp_path / "small.pth")
    for more in ((), ("--average-views",)):
        infer("--model", checkpoint, "--image", pictures / "a.png", *more)
        assert capsys.readouterr().out.rstrip().endswith("\t5\t1.0") == bool(more)
    with pytest.raises(ConfigError, match=r"model\.onnx.*\.pth"):
        infer("--model", model, "--image", pictures / "a.png", "--average-views")


def test_what_ends_the_run(model: Path, pictures: Path, tmp_path: Path) -> None:
    one = ("--image", pictures / "a.png")
    with pytest.raises(CheckpointError, match="no such"):
        infer("--model", tmp_path / "none.pth", *one)
    with pytest.raises(ConfigError, match=r"'\?'"):
        infer("--model", model, *one, "--alphabet", "0?")
    with pytest.raises(ConfigError, match=r"r\.txt"):
        infer("--model", model, *one, "--output", tmp_path / "r.txt")
    with pytest.raises(ConfigError, match=r"^--batch-size is 0"):
        infer("--model", model, *one, "--batch-size", 0)
    with pytest.raises(SystemExit, match="2"):  # it would replace the picture
        infer("--model", model, *one, "--visualize", pictures / "a.png")
    with pytest.raises(DataError, match="nowhere"):
        infer("--model", model, "--batch", tmp_path / "nowhere")


def test_the_default_model_is_named(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights in the box, the export first; a model of the last training, which may know fonts only, never."""
    monkeypatch.setattr("glyphs.models.runtime.pretrained_folder", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    save_small_checkpoint(tmp_path / "outputs" / "best_model.pth")
    with pytest.raises(CheckpointError, match="--model"):
        infer("--image", pictures / "a.png")
    checkpoint, export = tmp_path / "glyphs47.pth", tmp_path / "glyphs47.onnx"
    network = EnhancedGlyphCNN(47, use_residual=False)
    save_checkpoint(checkpoint, network, Config(use_residual=False), MERGED_47, metrics={"val_accuracy": 0.5})
    assert infer("--image", pictures / "a.png") == 0
    assert capsys.readouterr().err == (
        f"model: {checkpoint}: 47 classes; trained on handwriting (EMNIST, balanced); 50.0% of its validation images "
        "right\n"
    )
    save_small_onnx(export)
    assert infer("--image", pictures / "a.png") == 0
    assert capsys.readouterr().err.startswith(f"model: {export}: 47 classes; trained on ")
    config = Config(use_residual=False, dataset="demo")
    save_checkpoint(demo := tmp_path / "demo.pth", network, config, MERGED_47, metrics={})
    assert infer("--image", pictures / "a.png", "--model", demo) == 0
    assert "drawn from fonts and is no handwriting" in capsys.readouterr().err
    assert infer("--image", pictures / "a.png", "--average-views") == 0
    assert capsys.readouterr().err.startswith(f"model: {checkpoint}: ")


def test_public_names_are_imported_when_asked_for() -> None:
    assert getattr(inference, "GlyphPredictor") is GlyphPredictor  # noqa: B009 - mypy knows no PEP 562 names
    with pytest.raises(AttributeError, match="Nothing"):
        inference.Nothing  # noqa: B018


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import atexit, sys, inference\n"
        "atexit.register(lambda: print({'torch', 'numpy', 'PIL', 'onnxruntime'} & set(sys.modules)))\n"
        "inference.main(['--help'])"
    )
    done = run_python("-c", code)
    assert done.returncode == 0
    assert done.stdout.endswith("set()\n")


def test_an_onnx_model_needs_no_torch(model: Path, pictures: Path) -> None:
    code = (
        "import sys, runpy\nsys.modules['torch'] = None\n"
        f"sys.argv = ['inference.py', '--model', {str(model)!r}, '--batch', {str(pictures)!r}]\n"
        "runpy.run_path('inference.py', run_name='__main__')"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7


def test_a_model_error_is_one_line_and_status_2() -> None:
    done = run_python("inference.py", "--model", "none.onnx", "--image", "a.png")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: none.onnx")
    assert done.stderr.count("\n") == 1


def test_names_that_are_not_utf8_in_an_ascii_pipe(model: Path, tmp_path: Path) -> None:
    picture = tmp_path / os.fsdecode(b"\xe9") / "字.png"
    picture.parent.mkdir()
    draw_glyph().save(picture)
    done = subprocess.run(
        [sys.executable, "inference.py", "--model", model, "--image", picture],
        cwd=ROOT,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(os.fsencode(tmp_path) + rb"/\xe9/\u5b57.png" + b"\tok\t")


def test_a_table_whose_name_is_too_long_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reading, "table", [["1"]])
    (tmp_path / "pictures").mkdir()
    for name in ("x" * 244, "short"):
        draw_glyph().save(tmp_path / "pictures" / f"{name}.png")
    command = ["--model", model, "--batch", tmp_path / "pictures", "--text", "--tables", tmp_path / "tables"]
    assert infer(*command, "--output", tmp_path / "rows.jsonl") == 0
    assert capsys.readouterr().err.count("is not saved, its name is too long") == 1
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["short.png.csv"]


def test_drawings_that_have_no_place_are_known_before_the_pictures_are_read(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with refused(GlyphError, tmp_path / "file" / "drawn", "cannot be written"):
        infer(
            "--model",
            model,
            "--batch",
            pictures,
            "--output",
            tmp_path / "r.csv",
            "--visualize",
            tmp_path / "file" / "drawn",
        )
    assert not (tmp_path / "r.csv").exists()
