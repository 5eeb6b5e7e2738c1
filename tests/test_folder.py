"""Training on a folder of one's own pictures."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import glyphs.folder
from enhanced_glyph_recognition import main
from glyphs.checkpoint import load_checkpoint
from glyphs.config import Config
from glyphs.data import get_data_loaders
from glyphs.demo import FONTS, draw_master
from glyphs.errors import DataError
from glyphs.folder import FLUSH_EVERY, INDEX, PIXELS, SKIPPED, load_folders, prepare
from glyphs.preprocess import Mode, preprocess


def draw(path: Path, character: str, number: int = 0) -> None:
    """A picture of the character in black on white, in a font that depends on the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(255 - np.pad(draw_master(FONTS[number % len(FONTS)], character).numpy(), 8)).save(path)


def make_folders(root: Path, count: int = 5, classes: str = "AB3") -> None:
    for character in classes:
        for number in range(count):
            draw(root / character / f"{number}.png", character, number)


def pixels_of(path: Path, mode: Mode = "glyph") -> Tensor:
    pixels = preprocess(path, mode).pixels
    assert pixels is not None
    return torch.from_numpy(pixels)


def make_config(tmp_path: Path, **settings: object) -> Config:
    fixed = {"dataset": "folder", "data_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
    return Config.from_dict({**fixed, "device": "cpu", **settings})


def test_pictures_go_through_the_same_preprocessing_as_in_prediction(tmp_path: Path) -> None:
    make_folders(tmp_path / "data", 2)
    images, train, test = load_folders(tmp_path / "data", tmp_path / "cache", "glyph")
    assert test is None
    assert train.class_names == ["3", "A", "B"]
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for place, name in zip(train.places.tolist(), ["3/0", "3/1", "A/0", "A/1", "B/0", "B/1"], strict=True):
        assert torch.equal(images[place, 0], pixels_of(tmp_path / "data" / f"{name}.png"))


def test_plain_mode_reaches_the_preprocessing(tmp_path: Path) -> None:
    make_folders(tmp_path / "data", 1)
    images, _, _ = load_folders(tmp_path / "data", tmp_path / "cache", "plain")
    assert torch.equal(images[0, 0], pixels_of(tmp_path / "data" / "3" / "0.png", "plain"))
    other, _, _ = load_folders(tmp_path / "data", tmp_path / "cache", "glyph")  # the cache of the other mode is no use
    assert not torch.equal(other, images)


def test_without_a_test_folder_a_fifth_of_each_class_is_held_out_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path / "data", 10)
    data = get_data_loaders(make_config(tmp_path))
    assert "6 of 30 pictures are held out for the test" in capsys.readouterr().err
    assert data.test.labels[data.test.index].bincount().tolist() == [2, 2, 2]
    parts = [set(loader.index.tolist()) for loader in (data.train, data.val, data.test)]
    assert set.union(*parts) == set(range(30))
    assert sum(map(len, parts)) == 30


def test_train_and_test_folders_are_used_where_they_are(tmp_path: Path) -> None:
    make_folders(tmp_path / "data" / "train", 6)
    make_folders(tmp_path / "data" / "test", 2)
    data = get_data_loaders(make_config(tmp_path, val_split=0.2))
    assert (len(data.train.index) + len(data.val.index), len(data.test.index)) == (18, 6)


def test_the_images_are_mapped_from_disk(tmp_path: Path) -> None:
    make_folders(tmp_path / "data", 1)
    images, _, _ = load_folders(tmp_path / "data", tmp_path / "cache", "glyph")
    assert images.shape == (3, 1, 28, 28)
    assert (tmp_path / "cache" / PIXELS).read_bytes() == images.numpy().tobytes()
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path / "cache" / PIXELS) in maps.read_text()


def test_only_new_and_changed_pictures_are_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folders(tmp_path / "data", 2)
    load_folders(tmp_path / "data", tmp_path / "cache", "glyph")
    prepared: list[str] = []

    def note(path: Path, mode: Mode) -> object:
        prepared.append(path.name)
        return prepare(path, mode)

    monkeypatch.setattr(glyphs.folder, "prepare", note)
    draw(tmp_path / "data" / "A" / "0.png", "B")
    os.utime(tmp_path / "data" / "A" / "0.png", ns=(1, 1))
    draw(tmp_path / "data" / "A" / "new.png", "A")
    images, train, _ = load_folders(tmp_path / "data", tmp_path / "cache", "glyph")
    assert sorted(prepared) == ["0.png", "new.png"]
    assert torch.equal(images[train.places[2], 0], pixels_of(tmp_path / "data" / "A" / "0.png"))
    assert len(train.places) == 7


# Dies after the pixels of some pictures are on disk and the index has half a line.
DIE_WHILE_BUILDING = """
import os, signal, sys
from pathlib import Path
import glyphs.folder as folder
folder.FLUSH_EVERY = 2
flushes = 0
def flush(lines, pixels, index):
    global flushes
    flushes += 1
    pixels.flush()
    if flushes == 3:
        index.write(lines[0][:-5])
        index.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    index.writelines(lines)
    index.flush()
    lines.clear()
folder.flush = flush
folder.load_folders(Path(sys.argv[1]), Path(sys.argv[2]), "glyph")
"""


def test_an_interrupted_build_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    assert FLUSH_EVERY > 2  # else the script above would set nothing
    make_folders(tmp_path / "data", 4)
    command = [sys.executable, "-c", DIE_WHILE_BUILDING, str(tmp_path / "data"), str(tmp_path / "cut")]
    assert subprocess.run(command, cwd=Path(__file__).parent.parent, timeout=300).returncode == -9
    assert (tmp_path / "cut" / PIXELS).stat().st_size > 0
    cut, cut_train, _ = load_folders(tmp_path / "data", tmp_path / "cut", "glyph")
    whole, whole_train, _ = load_folders(tmp_path / "data", tmp_path / "whole", "glyph")
    assert torch.equal(cut[cut_train.places], whole[whole_train.places])
    assert (tmp_path / "cut" / INDEX).read_bytes() == (tmp_path / "whole" / INDEX).read_bytes()


def test_pictures_that_cannot_be_used_are_listed_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path / "data", 3)
    (tmp_path / "data" / "A" / "broken.png").write_bytes(b"\x89PNG no more")
    Image.new("L", (40, 40), 255).save(tmp_path / "data" / "B" / "blank.png")
    (tmp_path / "data" / "B" / "notes.txt").touch()
    for _ in range(2):  # the second time from the cache
        _, train, _ = load_folders(tmp_path / "data", tmp_path / "cache", "glyph")
        assert len(train.places) == 9
        listing = (tmp_path / "cache" / SKIPPED).read_text().splitlines()
        assert [line.split(":")[0] for line in listing] == ["A/broken.png", "B/blank.png"]
        assert listing[1].endswith("no glyph")
        assert "2 of 11 pictures cannot be used" in capsys.readouterr().err


def test_an_empty_class_is_an_error_that_names_it(tmp_path: Path) -> None:
    make_folders(tmp_path / "data", 2)
    (tmp_path / "data" / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no usable picture"):
        load_folders(tmp_path / "data", tmp_path / "cache", "glyph")


def test_no_classes_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"data: has no folders in it"):
        load_folders(tmp_path / "data", tmp_path / "cache", "glyph")


def test_train_and_test_with_other_classes_are_an_error(tmp_path: Path) -> None:
    make_folders(tmp_path / "data" / "train", 1)
    make_folders(tmp_path / "data" / "test", 1, "AB")
    with pytest.raises(DataError, match="the class 3 is in only one of train and test"):
        load_folders(tmp_path / "data", tmp_path / "cache", "glyph")


def test_a_training_with_odd_classes_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A class with one picture, one in another script, and one whose name is not UTF-8."""
    make_folders(tmp_path / "data", 8, "AB")
    draw(tmp_path / "data" / "single" / "0.png", "S")
    for folder in (os.fsencode(tmp_path / "data" / "ش"), os.fsencode(tmp_path / "data") + b"/\xe9"):
        for number in range(3):
            draw(Path(os.fsdecode(folder)) / f"{number}.png", "3", number)
    flags = ["--epochs", "1", "--batch-size", "4", "--val-split", "0.2", "--no-use-residual", "--device", "cpu"]
    common = ["--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out")]
    main(["--dataset", "folder", *flags, *common])
    assert capsys.readouterr().out.startswith("test accuracy")
    best = load_checkpoint(tmp_path / "out" / "best_model.pth")
    assert best["class_names"] == ["A", "B", "single", "ش", "\\xe9"]
    main(["--evaluate", str(tmp_path / "out" / "best_model.pth"), *common])
    assert capsys.readouterr().out.startswith("test accuracy")
