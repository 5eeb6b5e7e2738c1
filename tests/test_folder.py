"""Training on a folder of one's own pictures."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import glyphs.data.folder
from enhanced_glyph_recognition import main
from glyphs.core.config import Config
from glyphs.core.errors import ConfigError, DataError
from glyphs.data.demo import FONTS, draw_master
from glyphs.data.division import hold_out
from glyphs.data.folder import (
    FLUSH_EVERY,
    INDEX,
    PIXELS,
    SKIPPED,
    FolderData,
    Store,
    load_folders,
    prepare,
)
from glyphs.data.loaders import get_data_loaders, get_test_loader
from glyphs.models.checkpoint import load_checkpoint
from glyphs.pictures.glyph import preprocess
from glyphs.pictures.plain import EMNIST_FORM, InputForm
from tests.conftest import refused

pytestmark = pytest.mark.usefixtures("shown_log")


def draw(path: Path, character: str, number: int = 0) -> None:
    """A picture of the character in black on white, in a font that depends on the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(255 - np.pad(draw_master(FONTS[number % len(FONTS)], character).numpy(), 8)).save(path)


def make_folders(root: Path, count: int = 5, classes: str = "AB3") -> None:
    for character in classes:
        for number in range(count):
            draw(root / character / f"{number}.png", character, number)


def pixels_of(path: Path, form: InputForm = EMNIST_FORM) -> Tensor:
    pixels = preprocess(path, form).pixels
    assert pixels is not None
    return torch.from_numpy(pixels)


def load(tmp_path: Path, form: InputForm = EMNIST_FORM, cache: str = "cache") -> FolderData:
    return load_folders(tmp_path / "data", tmp_path / cache, form, seed=0)


def make_config(tmp_path: Path, **settings: object) -> Config:
    fixed = {"dataset": "folder", "data_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
    return Config.from_dict({**fixed, "device": "cpu", **settings})


def test_pictures_go_through_the_same_preprocessing_as_in_prediction(tmp_path: Path) -> None:
    make_folders(tmp_path / "data", 2)
    data = load(tmp_path)
    assert data.class_names == ["3", "A", "B"]
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted(data.train.tolist() + data.test.tolist()) == list(range(6))
    for image, name in zip(data.images, ["3/0", "3/1", "A/0", "A/1", "B/0", "B/1"], strict=True):
        assert torch.equal(image[0], pixels_of(tmp_path / "data" / f"{name}.png"))


def test_plain_mode_reaches_the_preprocessing(tmp_path: Path) -> None:
    make_folders(tmp_path / "data", 2)
    images = load(tmp_path, InputForm("plain")).images
    assert torch.equal(images[0, 0], pixels_of(tmp_path / "data" / "3" / "0.png", InputForm("plain")))
    other = load(tmp_path).images  # the cache of the other mode is no use
    assert not torch.equal(other, images)


def test_without_a_test_folder_pictures_are_held_out_and_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path / "data", 10)
    data = get_data_loaders(make_config(tmp_path))
    held_out = len(data.test.index)
    assert 1 <= held_out <= 20
    assert f"has no test folder: {held_out} of 30 pictures are held out for the test" in capsys.readouterr().err
    parts = [set(loader.index.tolist()) for loader in (data.train, data.val, data.test)]
    assert set.union(*parts) == set(range(30))
    assert sum(map(len, parts)) == 30


@pytest.mark.parametrize(("parts", "refused"), [(("train", "test"), 4), (("",), 2)])
def test_refused_test_pictures_stay_in_the_count(tmp_path: Path, parts: tuple[str, ...], refused: int) -> None:
    """Of those in one folder, the share that is held out for the test: a fifth of 8."""
    for part in parts:
        make_folders(tmp_path / "data" / part, 6)
        for number in range(8 // len(parts)):
            path = tmp_path / "data" / part / "A" / f"blank{number}.png"
            Image.new("L", (40, 40), 255).save(path)
    config = make_config(tmp_path, val_split=0.2, preprocess="glyph")
    assert get_data_loaders(config).test.refused == refused
    assert get_test_loader(config)[0].refused == refused


def test_train_and_test_folders_are_used_where_they_are(tmp_path: Path) -> None:
    make_folders(tmp_path / "data" / "train", 6)
    for character in "AB3":
        draw(tmp_path / "data" / "test" / character / "other.png", character, 7)
        draw(tmp_path / "data" / "test" / character / "more.png", character, 8)
    data = get_data_loaders(make_config(tmp_path, val_split=0.2))
    assert (len(data.train.index) + len(data.val.index), len(data.test.index)) == (18, 6)


@pytest.mark.parametrize(
    "names", [("training", "testing", "valid"), ("Train", "Test", "Val"), ("TRAIN", "test_set", "validation")]
)
def test_parts_have_their_usual_names_in_any_case(
    tmp_path: Path, names: tuple[str, str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in zip(names, (6, 2, 3), strict=True):
        make_folders(tmp_path / "data" / name, count)
    (tmp_path / "data" / "labels").mkdir()
    data = get_data_loaders(make_config(tmp_path))
    assert data.class_names == ["3", "A", "B"]
    assert [len(loader.index) for loader in data[:3]] == [18, 9, 6]
    said = capsys.readouterr().err
    assert "6 of 6 pictures in" in said  # the fonts repeat themselves
    assert "9 of 9 pictures in" in said
    assert "what else is in it is passed over: labels" in said


def test_a_part_for_validation_is_enough(tmp_path: Path) -> None:
    make_folders(tmp_path / "data" / "train", 10)
    make_folders(tmp_path / "data" / "val", 2)
    data = get_data_loaders(make_config(tmp_path))
    assert len(data.val.index) == 6
    assert len(data.train.index) + len(data.test.index) == 30


def test_two_names_for_the_same_part_are_refused(tmp_path: Path) -> None:
    for name in ("train", "Training"):
        make_folders(tmp_path / "data" / name, 1)
    with refused(DataError, tmp_path / "data", "Training and train are names for the same part", "remove one"):
        load(tmp_path)


@pytest.mark.parametrize("folder", ["data/{part}/{name}", "data/{name}/{part}", "data/train/{part}/{name}"])
def test_parts_are_not_taken_for_classes(tmp_path: Path, folder: str) -> None:
    for part in ("fold1", "fold2"):
        for name in "AB3":
            draw(tmp_path / folder.format(part=part, name=name) / "0.png", name)
    with refused(DataError, "hold the same folders", "not classes; name parts train, val and test"):
        load(tmp_path)


def test_classes_may_have_folders_of_their_own(tmp_path: Path) -> None:
    for name in ("A/images", "A/ours", "B/images", "B/theirs"):
        for number in range(4):
            draw(tmp_path / "data" / name / f"{number}.png", name[0], number)
    assert load(tmp_path).class_names == ["A", "B"]


def test_files_that_are_no_pictures_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folders(tmp_path / "data", 4)
    for name in ("A/logo.PSD", "B/logo.psd", "B/notes.txt", "B/.DS_Store"):
        (tmp_path / "data" / name).touch()
    load(tmp_path)
    assert "3 other files skipped (2 .psd, 1 .txt)" in capsys.readouterr().err


def test_where_no_character_is_found_the_other_preparation_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path / "data", 4)
    blank = tmp_path / "data" / "A" / "blank.png"
    Image.new("L", (40, 40), 255).save(blank)
    for _ in range(2):  # what the cache remembers, too
        load(tmp_path)
        assert "(1 do not show one character: --preprocess plain takes" in capsys.readouterr().err
    for number in range(4):
        (tmp_path / "data" / "A" / f"{number}.png").unlink()
    with refused(DataError, tmp_path / "data" / "A", "holds no usable picture", "--preprocess plain"):
        load(tmp_path)
    capsys.readouterr()
    load(tmp_path, InputForm("plain"))
    assert "--preprocess" not in capsys.readouterr().err


def test_the_images_are_mapped_from_disk(tmp_path: Path) -> None:
    make_folders(tmp_path / "data", 2)
    images = load(tmp_path).images
    assert images.shape == (6, 1, 28, 28)
    assert (tmp_path / "cache" / PIXELS).read_bytes() == images.numpy().tobytes()
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path / "cache" / PIXELS) in maps.read_text()


def test_only_new_and_changed_pictures_are_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_dir = tmp_path / "data" / "train"
    make_folders(train_dir, 2)
    make_folders(tmp_path / "data" / "test", 1)
    load(tmp_path)
    prepared: list[str] = []

    def note(path: str, form: InputForm, *, with_cover: bool) -> object:
        prepared.append(Path(path).name)
        return prepare(path, form, with_cover=with_cover)

    monkeypatch.setattr(glyphs.data.folder, "prepare", note)
    draw(train_dir / "A" / "0.png", "B")
    os.utime(train_dir / "A" / "0.png", ns=(1, 1))
    draw(train_dir / "A" / "new.png", "A")
    images, _, _, train, *_ = load(tmp_path)
    assert sorted(prepared) == ["0.png", "new.png"]
    assert torch.equal(images[train[2], 0], pixels_of(train_dir / "A" / "0.png"))
    assert len(train) == 7


# Dies after the pixels of some pictures are on disk and the index has half a line.
DIE_WHILE_BUILDING = """
import os, signal, sys
from pathlib import Path
import glyphs.data.folder as folder
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
folder.load_folders(Path(sys.argv[1]), Path(sys.argv[2]), folder.InputForm(), 0)
"""


@pytest.mark.slow
def test_an_interrupted_build_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    assert FLUSH_EVERY > 2  # else the script above would set nothing
    make_folders(tmp_path / "data", 4)
    command = [sys.executable, "-c", DIE_WHILE_BUILDING, str(tmp_path / "data"), str(tmp_path / "cut")]
    assert subprocess.run(command, cwd=Path(__file__).parent.parent, timeout=300).returncode == -9
    assert (tmp_path / "cut" / PIXELS).stat().st_size > 0
    cut, whole = load(tmp_path, cache="cut"), load(tmp_path, cache="whole")
    assert torch.equal(cut.images[cut.train], whole.images[whole.train])
    assert (tmp_path / "cut" / INDEX).read_bytes() == (tmp_path / "whole" / INDEX).read_bytes()


def test_pictures_that_cannot_be_used_are_listed_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path / "data", 2)
    (tmp_path / "data" / "A" / "broken.png").write_bytes(b"\x89PNG no more")
    Image.new("L", (40, 40), 255).save(tmp_path / "data" / "B" / "blank.png")
    (tmp_path / "data" / "B" / "notes.txt").touch()
    (tmp_path / "data" / "B" / "link.png").symlink_to(tmp_path / "nowhere.png")
    for _ in range(2):  # the second time from the cache
        data = load(tmp_path)
        assert len(data.train) + len(data.test) == 6
        listing = (tmp_path / "cache" / SKIPPED).read_text().splitlines()
        assert [line.split(":")[0] for line in listing] == ["A/broken.png", "B/blank.png", "B/link.png"]
        assert listing[1].endswith("no glyph")
        assert "3 of 9 pictures cannot be used" in capsys.readouterr().err


def test_an_empty_class_is_an_error_that_names_it(tmp_path: Path) -> None:
    make_folders(tmp_path / "data", 2)
    (tmp_path / "data" / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: holds no usable picture"):
        load(tmp_path)


def test_no_classes_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"data: has no folders in it"):
        load(tmp_path)


def test_train_and_test_with_other_classes_are_an_error(tmp_path: Path) -> None:
    make_folders(tmp_path / "data" / "train", 1)
    make_folders(tmp_path / "data" / "test", 1, "AB")
    with pytest.raises(DataError, match="the class 3 is in only one of train and test"):
        load(tmp_path)


@pytest.mark.slow
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


def parts_of(tmp_path: Path) -> dict[bytes, set[str]]:
    """For each picture, told by its pixels, the parts that it or a copy is in."""
    loaders = get_data_loaders(make_config(tmp_path, val_split=0.2))._asdict()
    parts: dict[bytes, set[str]] = {}
    for part in ("train", "val", "test"):
        for place in loaders[part].index.tolist():
            parts.setdefault(loaders[part].images[place].numpy().tobytes(), set()).add(part)
    return parts


def test_no_picture_moves_to_another_part_when_others_come_or_go_or_get_names(tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_folders(data, 10)
    before = parts_of(tmp_path)
    assert {part for parts in before.values() for part in parts} == {"train", "val", "test"}
    for number in range(10, 16):  # new ones that come before, between and after the others
        draw(data / "3" / f"{number % 3}{number}.png", "3", number)
    for path in sorted(data.glob("A/*.png"))[:4]:  # copies under other names
        shutil.copy(path, data / "A" / f"copy of {path.name}")
    for path in sorted(data.glob("B/*.png")):
        path.rename(path.with_name(f"{9 - int(path.stem)} renamed.png"))
    (data / "3" / "3.png").unlink()
    after = parts_of(tmp_path)
    assert len(before.keys() & after.keys()) == len(before) - 1
    assert len(after) == len(before) + 5
    for picture in before.keys() & after.keys():
        assert after[picture] == before[picture]
    assert all(len(parts) == 1 for parts in after.values())


def test_the_share_held_out_is_met_on_average_and_no_class_is_left_without_training() -> None:
    labels, index = torch.arange(3000) % 3, torch.arange(3000)
    contents = torch.arange(3000) * 7919
    held_out, rest = hold_out(index, labels, contents, 0.2, 1, "test")
    assert torch.equal(torch.cat([held_out, rest]).sort().values, index)
    assert labels[held_out].bincount().tolist() == pytest.approx([200] * 3, abs=50)  # four standard errors
    assert not torch.equal(held_out, hold_out(index, labels, contents, 0.2, 2, "test")[0])
    validation = hold_out(rest, labels, contents, 0.2, 1, "validation")[0]
    assert len(validation) == pytest.approx(480, abs=80)  # the two draws know nothing of each other
    few = torch.arange(7)  # a class has two or three
    for seed in range(50):
        held_out, rest = hold_out(few, labels, contents, 0.9, seed, "test")
        assert set(labels[rest].tolist()) == {0, 1, 2}
        assert len(hold_out(few, labels, contents, 1e-9, seed, "test")[0]) == 1


def test_copies_of_training_pictures_in_the_test_folder_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folders(tmp_path / "data" / "train", 4)
    for character in "AB3":
        draw(tmp_path / "data" / "test" / character / "new.png", character, 9)
    load(tmp_path)
    assert "copies" not in capsys.readouterr().err
    for name in ("other", "again"):
        shutil.copy(tmp_path / "data" / "train" / "A" / "2.png", tmp_path / "data" / "test" / "A" / f"{name}.png")
    load(tmp_path)
    assert "2 of 5 pictures in" in (said := capsys.readouterr().err)
    assert "are copies of pictures in" in said


def test_hidden_folders_are_no_classes_and_give_no_picture(tmp_path: Path) -> None:
    make_folders(tmp_path / "data", 4)
    for copy in (".ipynb_checkpoints", "__MACOSX", "A/.ipynb_checkpoints"):
        shutil.copytree(tmp_path / "data" / "B", tmp_path / "data" / copy)
    data = load(tmp_path)
    assert data.class_names == ["3", "A", "B"]
    assert len(data.labels) == 12


def test_one_class_is_refused(tmp_path: Path) -> None:
    make_folders(tmp_path / "data", 4, "A")
    with refused(DataError, tmp_path / "data", "one class only, A", "add another folder"):
        load(tmp_path)


@pytest.mark.parametrize("copies", [0, 2])
def test_too_few_pictures_are_refused_before_training(tmp_path: Path, copies: int) -> None:
    """One picture a class, and perhaps copies of it, leave nothing that training has not seen."""
    make_folders(tmp_path / "data", 1)
    for number in range(copies):
        shutil.copy(tmp_path / "data" / "A" / "0.png", tmp_path / "data" / "A" / f"copy{number}.png")
    with refused(DataError, tmp_path / "data", f"{3 + copies} usable pictures leave none to test on", "add more"):
        load(tmp_path)


def test_a_test_folder_without_a_usable_picture_is_refused(tmp_path: Path) -> None:
    make_folders(tmp_path / "data" / "train", 2)
    for character in "AB3":
        (tmp_path / "data" / "test" / character).mkdir(parents=True)
    with refused(DataError, tmp_path / "data" / "test", "leave none to test on"):
        load(tmp_path)


def test_a_new_time_alone_changes_nothing_for_a_run_that_is_resumed(tmp_path: Path) -> None:
    make_folders(tmp_path / "data", 10)
    before = get_data_loaders(make_config(tmp_path)).train
    os.utime(tmp_path / "data" / "A" / "0.png", ns=(1, 1))
    after = get_data_loaders(make_config(tmp_path)).train
    assert len(after.images) == len(before.images) + 1  # prepared again, to the same pixels in another place
    assert after.fingerprint() == before.fingerprint()
    for (images, labels), (same_images, same_labels) in zip(before, after, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


@pytest.mark.parametrize("damage", ["torn line", "no pixels"])
def test_a_damaged_cache_is_built_again(tmp_path: Path, damage: str) -> None:
    make_folders(tmp_path / "data", 2)
    whole = load(tmp_path)
    if damage == "torn line":
        index = tmp_path / "cache" / INDEX
        index.write_bytes(index.read_bytes()[:-30] + b"\0" * 29 + b"\n")
    else:
        (tmp_path / "cache" / PIXELS).unlink()
    again = load(tmp_path)
    assert torch.equal(again.images[again.train], whole.images[whole.train])


@pytest.mark.parametrize("file", [PIXELS, INDEX])
def test_a_flipped_bit_in_the_cache_is_found_and_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    make_folders(tmp_path / "data", 2)
    (tmp_path / "data" / "A" / "9.png").write_bytes(b"no picture")  # its line in the index has no pixels
    load(tmp_path)
    assert "are prepared again" not in capsys.readouterr().err
    path = tmp_path / "cache" / file
    content = path.read_bytes()
    for at in range(len(content) // 2, len(content), len(content) // 20):
        damaged = bytearray(content)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        capsys.readouterr()
        load(tmp_path)
        said = capsys.readouterr().err
        assert "pictures are prepared again" in said or file == INDEX  # what is no JSON any more is as if cut off
        assert path.read_bytes() == content


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    make_folders(tmp_path / "data", 2)
    draw(tmp_path / "data" / "train" / "0.png", "T")
    assert load(tmp_path).class_names == ["3", "A", "B", "train"]


def test_a_cache_larger_than_memory_can_be_mapped(tmp_path: Path) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    store = Store(tmp_path, tmp_path, EMNIST_FORM)
    store.count = 2 * memory // store.image_bytes
    os.truncate(tmp_path / PIXELS, store.count * store.image_bytes)  # all holes: it takes no room on the disk
    images = store.images()
    assert images.shape == (store.count, 1, 28, 28)
    assert images[-1].max() == 0


@pytest.mark.parametrize("place", ["data", "data/outputs", "data/A/outputs"])
def test_the_output_folder_is_no_class(tmp_path: Path, place: str) -> None:
    for name in "AB":
        (tmp_path / "data" / name).mkdir(parents=True)
    output = tmp_path / place
    command = ["--dataset", "folder", "--data-dir", str(tmp_path / "data"), "--output-dir", str(output)]
    with refused(ConfigError, output, "would be read as one more; choose"):
        main(command)
    assert {path.name for path in tmp_path.rglob("*")} == {"data", "A", "B"}
    (tmp_path / "data" / "train" / "A").mkdir(parents=True)
    with refused(DataError, "has one class only"):  # beside the parts it may lie
        main([*command[:-1], str(tmp_path / "data" / "outputs")])
