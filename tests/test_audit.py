"""The audit: odd pictures and copies, wrong labels, what it writes, and training that takes it into account."""

import csv
import importlib.util
import io
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

import model_utils
from glyphs.core.config import Config
from glyphs.core.errors import CheckpointError, ConfigError, DataError, GlyphError
from glyphs.data.loaders import get_data_loaders
from glyphs.data.verdicts import VERDICT_COLUMNS
from glyphs.evaluation import audit_labels
from glyphs.evaluation.audit_checks import all_transposed, check_pictures
from glyphs.evaluation.audit_labels import cross_validate, deal, judge_labels, wilson
from glyphs.evaluation.audit_pictures import descriptors_of, find_oddities
from glyphs.evaluation.auditset import AuditSet, load_audit_set, unseen_by
from glyphs.models.runtime import load_pth
from tests.conftest import ROOT, draw_demo, refused
from tests.small import NAMES, save_small_checkpoint

CLASSES = "ABFGK"  # none of them is its own transposed picture


def demo_pictures(per_class: int) -> dict[str, list[Image.Image]]:
    """Characters of the demo set as black on white pictures of 56x56 pixels, 6 of them a margin."""
    images, labels = draw_demo("train")
    return {
        name: [
            ImageOps.expand(Image.fromarray(255 - image.numpy()).resize((44, 44), Image.Resampling.BICUBIC), 6, 255)
            for image in images[labels == NAMES.index(name)][:per_class, 0]
        ]
        for name in CLASSES
    }


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 5 classes of 24 pictures, and one picture of each fault in it."""
    folder = tmp_path_factory.mktemp("spoilt")
    for name, pictures in demo_pictures(24).items():
        (folder / name).mkdir()
        for number, picture in enumerate(pictures):
            picture.save(folder / name / f"{number:02}.png")
    one = Image.open(folder / "A" / "00.png")
    one.save(folder / "B" / "copy.png")
    buffer = io.BytesIO()
    one.resize((45, 45), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=80)
    (folder / "A" / "smaller.jpg").write_bytes(buffer.getvalue())
    Image.fromarray(255 - np.asarray(Image.open(folder / "F" / "05.png"))).save(folder / "F" / "inverted.png")
    cut = Image.open(folder / "G" / "03.png")
    cut.crop((0, 0, 30, 56)).save(folder / "G" / "cut.png")
    turned = Image.open(folder / "K" / "04.png").transpose(Image.Transpose.TRANSPOSE)
    turned.rotate(2, fillcolor=255).save(folder / "K" / "turned.png")
    Image.new("L", (56, 56), 255).save(folder / "K" / "blank.png")
    (folder / "K" / "text.png").write_text("no picture")
    return folder


def audit(*arguments: object) -> None:
    model_utils.main(["--audit", *map(str, arguments)])


def rows_in(folder: Path) -> list[dict[str, str]]:
    with (folder / "audit.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_odd_pictures_and_copies_are_found_without_a_model(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit("--data-dir", spoilt, "--preprocess", "plain", "--output", tmp_path / "out")
    said = capsys.readouterr().out
    reasons = {row["file"]: row["reason"] for row in rows_in(tmp_path / "out")}
    copies = {"A/00.png", "A/smaller.jpg", "B/copy.png"}
    listed = copies & reasons.keys()
    assert len(listed) == 2  # but the first
    assert all("copy of" in reasons[file] for file in listed)
    assert any("which is labelled" in reasons[file] for file in listed)
    assert "near copy" in " ".join(reasons[file] for file in listed)
    assert "inverted" in reasons["F/inverted.png"]
    assert "cut" in reasons["G/cut.png"]
    assert "transposed" in reasons["K/turned.png"]
    assert reasons["K/blank.png"] == "blank"
    assert "1 pictures refused" in said
    assert len(reasons) <= 10, reasons  # of 127 pictures, few that nobody spoilt
    assert list((tmp_path / "out" / "sheets").glob("*.png"))
    assert said == (tmp_path / "out" / "audit.txt").read_text()


def test_an_audit_without_output_leaves_nothing(
    spoilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    audit("--data-dir", spoilt)
    assert "near copy: " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_classes_with_few_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, pictures in demo_pictures(8).items():
        (tmp_path / name).mkdir()
        for number, picture in enumerate(pictures):
            picture.save(tmp_path / name / f"{number}.png")
    audit("--data-dir", tmp_path)
    assert "classes with fewer than 20 images to train on: 5: A (" in capsys.readouterr().out


def make_set(images: Tensor, labels: Tensor) -> AuditSet:
    files = [f"train/{place}" for place in range(len(labels))]
    return AuditSet(images, images, labels, files, ["train"] * len(labels), files, NAMES, [])


def test_a_set_that_is_transposed_as_a_whole_is_told(demo_data: dict[str, tuple[Tensor, Tensor]]) -> None:
    images, labels = demo_data["test"]
    for turned in (False, True):
        shown = images.transpose(2, 3).contiguous() if turned else images
        assert all_transposed(descriptors_of(shown), make_set(shown, labels)) == turned


def test_clean_images_are_not_suspected(demo_data: dict[str, tuple[Tensor, Tensor]]) -> None:
    images, labels = demo_data["test"]
    found = check_pictures(make_set(images, labels))
    assert len(found.suspects) < 0.02 * len(labels)


def test_a_stroke_that_the_edge_cuts_is_told_from_one_that_ends_before_it() -> None:
    pictures = []
    for end in (20, 28):
        picture = Image.new("L", (28, 28), 255)
        ImageDraw.Draw(picture).line([(6, 14), (end, 14)], fill=0, width=4)
        pictures.append(np.asarray(picture))
    look = find_oddities(torch.from_numpy(np.stack(pictures))[:, None])
    assert look.cut.tolist() == [False, True]
    assert look.light.tolist() == [False, False]


# ---- Wrong labels ----


@pytest.fixture(scope="module")
def mislabelled(demo_files: Path) -> tuple[AuditSet, Tensor]:
    """The small EMNIST files with 3 % of other labels, and which they are: bool [N]."""
    images = load_audit_set(Config(data_dir=str(demo_files)))
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(images), generator=generator) < 0.03
    other = (images.labels + torch.randint(1, 47, (len(images),), generator=generator)) % 47
    labels = torch.where(wrong, other, images.labels)
    return AuditSet(**{**vars(images), "labels": labels}), wrong


def validate(images: AuditSet, folder: Path | None, fingerprint: str = "") -> Any:
    groups = np.arange(len(images))
    return cross_validate(images.images, images.labels, groups, 47, 2, 0, folder, fingerprint)


def test_planted_wrong_labels_are_found(mislabelled: tuple[AuditSet, Tensor]) -> None:
    pytest.importorskip("cleanlab")
    images, wrong = mislabelled
    issues = judge_labels(images.labels.numpy(), validate(images, None))
    found = np.argsort(-issues.scores)[: int(wrong.sum())]
    assert wrong.numpy()[found].mean() > 0.8
    assert issues.wrong[wrong.numpy()].mean() > 0.8
    assert issues.low < issues.share < issues.high


def test_folds_that_are_done_are_kept_and_those_of_other_labels_are_not(
    mislabelled: tuple[AuditSet, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, _ = mislabelled
    whole = validate(images, tmp_path, "these")
    (tmp_path / "fold1of2.npz").write_bytes(b"damaged")
    train = mock.Mock(wraps=audit_labels.train_classifier)
    monkeypatch.setattr(audit_labels, "train_classifier", train)
    assert np.array_equal(validate(images, tmp_path, "these"), whole)
    assert train.call_count == 1
    validate(images, tmp_path, "others")
    assert train.call_count == 3


def test_copies_are_in_one_fold_and_classes_in_all() -> None:
    labels = np.repeat(np.arange(3), 20)
    groups = np.arange(60)
    groups[30] = groups[45] = 7
    folds = deal(labels, groups, 5, 0)
    assert folds[7] == folds[30] == folds[45]
    for label in range(3):
        assert set(folds[labels == label]) == set(range(5))


def test_the_interval_of_a_share() -> None:
    low, high = wilson(0, 100)
    assert low == pytest.approx(0, abs=1e-9)
    assert high == pytest.approx(0.0370, abs=0.0001)


def test_an_audit_of_labels_writes_what_people_need(
    demo_files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cleanlab")
    given = ["--data-dir", demo_files, "--max-train-images", 900, "--folds", 2, "--output", tmp_path]
    audit(*given)
    said = capsys.readouterr().out
    assert "seem to be of another class (95 % interval" in said
    rows = rows_in(tmp_path)
    assert list(rows[0]) == list(VERDICT_COLUMNS)
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    of_labels = [row for row in rows if "label" in row["reason"]]
    assert of_labels
    assert all(row["suggested"] in NAMES and row["suggested"] != row["label"] for row in of_labels)
    assert (tmp_path / "audit.html").exists()


def test_cleanlab_is_asked_for_before_the_work(demo_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cleanlab" else find_spec(name))
    with refused(GlyphError, "cleanlab", "pip install cleanlab"):
        audit("--data-dir", demo_files, "--folds", 2)


def test_a_model_judges_only_what_it_was_not_trained_on(demo_files: Path, tmp_path: Path) -> None:
    config = Config(data_dir=str(demo_files))
    images = load_audit_set(config)
    path = save_small_checkpoint(tmp_path / "small.pth")  # of Balanced, by its settings
    model = load_pth(path, "cpu")
    new = unseen_by(model, path, images, config)
    assert [part == "test" for part in images.parts] == new.tolist()
    with refused(CheckpointError, path, "bymerge", "--folds"):
        model.facts["settings"]["emnist_split"] = "bymerge"
        unseen_by(model, path, images, config)
    model.facts["settings"]["dataset"] = "demo"
    assert bool(unseen_by(model, path, images, config).all())
    model.facts["settings"].clear()
    with refused(CheckpointError, path, "does not say"):
        unseen_by(model, path, images, config)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--audit"], "name them by --data-dir"),
        (["--audit", "--data-dir", ".", "--folds", "1"], "2 parts or more"),
        (["--analyze", "m.pth", "--folds", "5"], "belong to --audit"),
        (["--analyze", "m.pth", "--seed", "5"], "--seed belongs to --audit"),
        (["--audit", "--data-dir", ".", "--folds", "5", "--model", "m.pth"], "not allowed with"),
    ],
)
def test_flags_that_do_not_go_together(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        model_utils.main(arguments)
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


def test_the_reports_go_into_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refused(ConfigError, tmp_path / "file", "folder"):
        audit("--data-dir", tmp_path, "--output", tmp_path / "file")


# ---- Training ----


def write_table(path: Path, rows: list[dict[str, str]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, VERDICT_COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_training_leaves_out_or_labels_anew_what_an_audit_lists(
    demo_files: Path, tmp_path: Path, shown_log: None, capsys: pytest.CaptureFixture[str]
) -> None:
    images = load_audit_set(Config(data_dir=str(demo_files)))
    verdicts = ["", "keep", "drop", "relabel"]
    places = [len(images) - 1 - place for place in range(4)]  # of the training part
    rows = [
        {"digest": images.digests[place], "label": NAMES[int(images.labels[place])], "suggested": "A", "verdict": each}
        for place, each in zip(places, verdicts, strict=True)
    ]
    table = write_table(tmp_path / "audit.csv", rows)
    plain = get_data_loaders({"data_dir": str(demo_files)})
    capsys.readouterr()
    total = len(plain.train.index) + len(plain.val.index)
    dropped = get_data_loaders({"data_dir": str(demo_files), "drop": table})
    assert len(dropped.train.index) + len(dropped.val.index) == total - 3
    assert len(dropped.test.index) == len(plain.test.index)
    assert f"3 of {total:,} images are left out" in capsys.readouterr().err
    anew = get_data_loaders({"data_dir": str(demo_files), "relabel": table})
    assert len(anew.train.index) + len(anew.val.index) == total - 1
    assert int((anew.train.labels != plain.train.labels).sum()) == 2
    with refused(ConfigError, "--drop", "--relabel"):
        get_data_loaders({"data_dir": str(demo_files), "drop": table, "relabel": table})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("digest,label\n1,A\n", "has no suggested"),
        ("digest,label,suggested,verdict\n1,A,B,maybe\n", "the verdict of row 2 is 'maybe'"),
        ("\xff\x00", "cannot be read|is not a CSV|has no"),
    ],
)
def test_a_table_that_is_none_is_refused(content: str, words: str, demo_files: Path, tmp_path: Path) -> None:
    path = tmp_path / "audit.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=words):
        get_data_loaders({"data_dir": str(demo_files), "drop": str(path)})


def test_a_class_is_never_left_without_images(demo_files: Path, tmp_path: Path) -> None:
    images = load_audit_set(Config(data_dir=str(demo_files)))
    rows = [
        {"digest": digest, "label": "0"}
        for digest, label in zip(images.digests, images.labels.tolist(), strict=True)
        if label == 0
    ]
    table = write_table(tmp_path / "audit.csv", rows)
    with refused(DataError, table, "leaves no image of class 0"):
        get_data_loaders({"data_dir": str(demo_files), "drop": table})


def test_the_page_is_in_the_package() -> None:
    assert '"glyphs.evaluation" = ["audit.html"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
