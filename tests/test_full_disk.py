"""A disk that fills up, or may only be read, at each kind of work: one line, nothing half written, and it goes on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
import torch

import inference
from glyphs.core.errors import GlyphError
from glyphs.core.files import UNFINISHED
from glyphs.data.folder import INDEX, PIXELS, SKIPPED, load_folders
from glyphs.models import export
from glyphs.models.checkpoint import BEST_MODEL, LATEST_CHECKPOINT, load_checkpoint
from glyphs.models.export import export_model
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.pictures.plain import EMNIST_FORM
from glyphs.training.trainer import Trainer
from tests.conftest import Disk, refused
from tests.small import CLASSES, draw_glyph, make_config, make_loaders, save_small_onnx


class Work(NamedTuple):
    """Work in a folder that `make_inputs` has filled, and the files that it leaves there."""

    do: Callable[[Path], object]
    results: tuple[str, ...]


def make_inputs(folder: Path) -> Path:
    for name in "AB":
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            draw_glyph(number).rotate(90 * (name == "B")).save(folder / "pictures" / name / f"{number}.png")
    (folder / "pictures" / "A" / "damaged.png").write_bytes(b"no picture")
    save_small_onnx(folder / "model.onnx")
    return folder


def train(folder: Path) -> None:
    """As --resume does where there is something to resume."""
    torch.manual_seed(0)
    model = EnhancedGlyphCNN(len(CLASSES), use_residual=False)
    trainer = Trainer(model, *make_loaders(), make_config(folder, num_epochs=2), CLASSES)
    if (folder / LATEST_CHECKPOINT).exists():
        trainer.resume(load_checkpoint(folder / LATEST_CHECKPOINT))
    trainer.fit()


def prepare(folder: Path) -> None:
    load_folders(folder / "pictures", folder / "cache", EMNIST_FORM, 0)


def read(folder: Path, suffix: str) -> None:
    pictures, output = folder / "pictures", folder / f"rows{suffix}"
    inference.main(["--model", str(folder / "model.onnx"), "--batch", str(pictures), "--output", str(output)])


WORKS = {
    "training": Work(train, (BEST_MODEL, "config.json")),
    "export": Work(lambda folder: export_model(folder / "small.pth"), ("small.onnx",)),
    "preparing pictures": Work(prepare, tuple(f"cache/{name}" for name in (INDEX, PIXELS, SKIPPED))),
    "rows.json": Work(lambda folder: read(folder, ".json"), ("rows.json",)),
    "rows.csv": Work(lambda folder: read(folder, ".csv"), ("rows.csv",)),
    "rows.jsonl": Work(lambda folder: read(folder, ".jsonl"), ("rows.jsonl",)),
    "rows.parquet": Work(lambda folder: read(folder, ".parquet"), ("rows.parquet",)),
}
GROWING = ("preparing pictures", "rows.jsonl")  # whose files are appended to, and gone on with


@pytest.fixture(params=WORKS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def inputs(tmp_path: Path, exported: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Makes a folder of inputs, the same at the same place each time: some results tell where they lie."""
    original = make_inputs(tmp_path / "original")
    shutil.copy(exported[0], original / "small.pth")
    monkeypatch.setattr(export, "to_onnx", lambda *_: onnx.load(exported[1]))  # which takes seconds

    def make() -> Path:
        shutil.rmtree(folder := tmp_path / "work", ignore_errors=True)
        return Path(shutil.copytree(original, folder))

    return make


def results_of(work: Work, folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in work.results}


def check_whole(name: str, folder: Path) -> None:
    """What has its name is whole, and nothing else is there."""
    assert not list(folder.rglob(UNFINISHED.format("*")))
    for path in folder.glob("*.pth"):
        load_checkpoint(path)
    if name not in GROWING and name != "training":
        assert not any((folder / result).exists() for result in WORKS[name].results)


def test_a_disk_that_fills_up_at_any_write(name: str, inputs: Callable[[], Path], disk: Disk) -> None:
    work = WORKS[name]
    folder = inputs()
    with disk.watched():
        work.do(folder)
    expected = results_of(work, folder)
    writes = disk.writes
    assert writes > 0
    for moment in sorted({0, 1, writes // 2, writes - 1} & set(range(writes))):
        folder = inputs()
        with refused(GlyphError, folder, "cannot be written", "No space left"), disk.watched(room=moment):
            work.do(folder)
        check_whole(name, folder)
        work.do(folder)
        assert results_of(work, folder) == expected
    if name not in GROWING and name != "training":
        with refused(GlyphError, folder, "No space left", "the file of before is untouched"), disk.watched(room=0):
            work.do(folder)
        assert results_of(work, folder) == expected


def test_a_folder_that_may_only_be_read(name: str, inputs: Callable[[], Path], disk: Disk) -> None:
    work = WORKS[name]
    folder = inputs()
    with refused(GlyphError, folder, "cannot be written", "Read-only file system"), disk.watched(read_only=True):
        work.do(folder)
    check_whole(name, folder)
    work.do(folder)
    assert all((folder / result).exists() for result in work.results)
