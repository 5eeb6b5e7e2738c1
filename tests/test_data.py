"""EMNIST as tensors: upright, relabelled, checked, split, batched; and its download, which is never half-used."""

import errno
import hashlib
import http.server
import io
import os
import socket
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.datasets import EMNIST

import glyphs.data.download
import glyphs.data.loaders
from glyphs.core.config import SPLITS, Config, get_default_config
from glyphs.core.errors import ConfigError, DataError, GlyphError
from glyphs.core.protocols import fetch_steps
from glyphs.data.division import stratified_split
from glyphs.data.emnist import CLASS_NAMES, load_emnist
from glyphs.data.loaders import Augmentation, TensorLoader, get_data_loaders, get_test_loader
from tests.conftest import Disk, assert_upright, emnist_paths, refused, write_emnist, write_idx

pytestmark = pytest.mark.usefixtures("shown_log")

CLASSES = {"balanced": 47, "byclass": 62, "bymerge": 47, "letters": 26, "digits": 10, "mnist": 10}


@pytest.mark.parametrize("gz", [True, False])
@pytest.mark.parametrize("split", SPLITS)
def test_reads_every_split_upright_with_labels_from_0(tmp_path: Path, split: str, gz: bool) -> None:
    for part, (images, labels) in write_emnist(tmp_path, split, gz=gz).items():
        read_images, read_labels = load_emnist(tmp_path, split, part)  # type: ignore[arg-type]
        assert read_images.dtype == torch.uint8
        assert read_labels.dtype == torch.int64
        assert torch.equal(read_images, images)
        assert torch.equal(read_labels, labels)
        assert sorted(set(read_labels.tolist())) == list(range(CLASSES[split]))


def test_reads_a_mixture_of_plain_and_gzipped_files(tmp_path: Path) -> None:
    expected = write_emnist(tmp_path, "digits", gz=False)["test"]
    write_emnist(tmp_path, "digits", gz=True)
    emnist_paths(tmp_path, "digits", "test", gz=True)[0].unlink()
    emnist_paths(tmp_path, "digits", "test", gz=False)[1].unlink()
    assert torch.equal(load_emnist(tmp_path, "digits", "test")[0], expected[0])


@pytest.mark.parametrize("split", SPLITS)
def test_class_names_are_those_of_the_dataset(split: str) -> None:
    theirs = EMNIST.classes_split_dict[split]
    assert CLASS_NAMES[split] == [name for name in theirs if name != "N/A"]
    assert len(CLASS_NAMES[split]) == CLASSES[split]


def test_class_names_agree_with_the_official_mapping_files(data_dir: Path) -> None:
    paths = sorted((data_dir / "EMNIST" / "raw").glob("emnist-*-mapping.txt"))
    if not paths:
        pytest.skip("GLYPH_DATA_DIR holds no emnist-*-mapping.txt")
    for path in paths:
        split = path.name.split("-")[1]
        rows = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        first = int(split == "letters")
        names = [chr(int(row[1])) for row in sorted(rows, key=lambda row: int(row[0]))]
        assert [int(row[0]) for row in rows] == list(range(first, first + len(rows)))
        # The mapping of letters gives the capital first.
        assert [name.lower() if split == "letters" else name for name in names] == CLASS_NAMES[split]


def test_real_images_are_upright_and_of_all_classes(data_dir: Path) -> None:
    loader, names = get_test_loader({"data_dir": str(data_dir)})
    assert len(names) == 47
    assert sorted(set(loader.labels.tolist())) == list(range(47))
    assert_upright(loader.images, loader.labels, names)


def rewrite(path: Path, tensor: Tensor) -> None:
    write_idx(path, tensor.to(torch.uint8))


def test_counts_that_differ_name_both_files(tmp_path: Path) -> None:
    _, labels = write_emnist(tmp_path, "digits")["test"]
    images_path, labels_path = emnist_paths(tmp_path, "digits", "test")
    rewrite(labels_path, labels[:-1])
    with refused(DataError, images_path, "30 images", labels_path.name, "29 labels"):
        load_emnist(tmp_path, "digits", "test")


@pytest.mark.parametrize(("split", "stored", "classes"), [("digits", 10, 10), ("letters", 0, 26), ("letters", 27, 26)])
def test_label_out_of_range_names_file_position_and_label(
    tmp_path: Path, split: str, stored: int, classes: int
) -> None:
    _, labels = write_emnist(tmp_path, split)["test"]
    labels += split == "letters"
    labels[5] = stored
    path = emnist_paths(tmp_path, split, "test")[1]
    rewrite(path, labels)
    with refused(DataError, path, f"label {stored} at position 5", f"{classes} classes"):
        load_emnist(tmp_path, split, "test")


def test_class_without_an_image_is_named(tmp_path: Path) -> None:
    _, labels = write_emnist(tmp_path, "balanced")["test"]
    path = emnist_paths(tmp_path, "balanced", "test")[1]
    labels[(labels == 10) | (labels == 46)] = 0
    rewrite(path, labels)
    with refused(DataError, path, "class A, t"):
        load_emnist(tmp_path, "balanced", "test")


def test_empty_set_and_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write_emnist(tmp_path, "digits")
    images_path, labels_path = emnist_paths(tmp_path, "digits", "test")
    rewrite(images_path, torch.zeros(30, 28, 27))
    with refused(DataError, images_path, "28x27", "28x28"):
        load_emnist(tmp_path, "digits", "test")
    rewrite(images_path, torch.zeros(0, 28, 28))
    rewrite(labels_path, torch.zeros(0))
    with refused(DataError, labels_path, "no image of class"):
        load_emnist(tmp_path, "digits", "test")


def test_damaged_file_is_named(tmp_path: Path) -> None:
    write_emnist(tmp_path, "digits")
    path = emnist_paths(tmp_path, "digits", "train")[0]
    path.write_bytes(path.read_bytes()[:-20])
    with refused(DataError, path, "truncated"):
        get_data_loaders({"emnist_split": "digits", "data_dir": str(tmp_path)})


def test_counts_that_are_not_official_are_noted_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_emnist(tmp_path, "digits")
    load_emnist(tmp_path, "digits", "test")
    note = capsys.readouterr().err
    assert note.count("\n") == 1
    for fact in (emnist_paths(tmp_path, "digits", "test")[0], "30 images", "40,000"):
        assert str(fact) in note
    monkeypatch.setitem(glyphs.data.emnist.OFFICIAL_COUNTS, "digits", (0, 30))
    load_emnist(tmp_path, "digits", "test")
    assert capsys.readouterr() == ("", "")


# Splits and loaders


@pytest.mark.parametrize("count", [0, 1, 7, 33, 99, 100])
def test_stratified_split_is_exact_proportional_disjoint_and_complete(count: int) -> None:
    index = torch.arange(20, 120)  # what lies outside the index is left alone
    labels = torch.tensor([3] * 20 + [0, 0, 0, 0, 0, 1, 1, 1, 2, 2] * 10 + [3] * 5)
    drawn, others = stratified_split(labels, index, count, seed=1)
    assert len(drawn) == count
    assert torch.equal(torch.cat([drawn, others]).sort().values, index)
    assert torch.equal(drawn, drawn.sort().values)
    expected = torch.tensor([0.5, 0.3, 0.2]) * count
    assert ((torch.bincount(labels[drawn], minlength=3) - expected).abs() <= 1).all()


def test_stratified_split_leaves_the_rarest_classes_to_training() -> None:
    labels = torch.tensor([0] * 100 + [1] + [2] * 2)
    drawn, _ = stratified_split(labels, torch.arange(103), 25, seed=1)
    assert labels[drawn].tolist() == [0] * 25


def test_stratified_split_follows_from_the_seed() -> None:
    labels, index = torch.arange(10).repeat(20), torch.arange(200)
    torch.manual_seed(1)
    drawn = stratified_split(labels, index, 40, seed=1)[0]
    torch.manual_seed(2)
    assert torch.equal(stratified_split(labels, index, 40, seed=1)[0], drawn)
    assert not torch.equal(stratified_split(labels, index, 40, seed=2)[0], drawn)


def rows(loader: TensorLoader) -> set[bytes]:
    """Each image of a loader as a value that can be counted and compared."""
    return {image.numpy().tobytes() for image in loader.images[loader.index]}


def class_counts(loader: TensorLoader) -> list[int]:
    return torch.bincount(loader.labels[loader.index]).tolist()


def test_loaders_from_a_changed_default_dict(tmp_path: Path) -> None:
    written = write_emnist(tmp_path, "digits", images_per_class=20)
    config = get_default_config()
    config.update(emnist_split="digits", data_dir=str(tmp_path), batch_size=16, val_split=0.25)
    data = get_data_loaders(config)
    train, val, test, names = data
    assert names == data.class_names == list("0123456789")
    assert class_counts(val) == [5] * 10
    assert class_counts(train) == [15] * 10
    assert rows(train) | rows(val) == {image.numpy().tobytes() for image in written["train"][0]}
    assert not rows(train) & rows(val)
    assert torch.equal(test.images[test.index], written["test"][0])
    assert [len(loader) for loader in (train, val, test)] == [10, 4, 13]


def test_training_loader_shuffles_and_augments_as_configured_the_others_do_not(
    tmp_path: Path, tiny_config: Config
) -> None:
    write_emnist(tmp_path / "data", "digits", images_per_class=10)
    train, val, test, _ = get_data_loaders(tiny_config)
    assert train.shuffle_seed == tiny_config.seed
    assert train.augmentation == Augmentation(rotation=15.0, shear=10.0, translate=0.08)
    for loader in (val, test):
        assert torch.equal(torch.cat([images for images, _ in loader]), loader.images[loader.index])
        assert torch.equal(torch.cat([labels for _, labels in loader]), loader.labels[loader.index])


def test_max_train_images_counts_validation_in_and_keeps_classes_even(tmp_path: Path) -> None:
    write_emnist(tmp_path, "digits", images_per_class=20)
    config: dict[str, Any] = {"emnist_split": "digits", "data_dir": str(tmp_path), "val_split": 0.2}
    train, val, test, _ = get_data_loaders(config | {"max_train_images": 100})
    assert class_counts(train) == [8] * 10
    assert class_counts(val) == [2] * 10
    assert len(test.index) == 200
    assert len(get_data_loaders(config | {"max_train_images": 1000}).train.index) == 160
    with refused(ConfigError, "val_split"):
        get_data_loaders(config | {"max_train_images": 2})


def test_evaluation_needs_only_the_test_files(tmp_path: Path) -> None:
    expected = write_emnist(tmp_path, "digits")["test"]
    for path in emnist_paths(tmp_path, "digits", "train"):
        path.unlink()
    loader, names = get_test_loader({"emnist_split": "digits", "data_dir": str(tmp_path)})
    assert torch.equal(loader.images[loader.index], expected[0])
    assert names == list("0123456789")


def numbered(*, shuffle_seed: int | None = 1, augmentation: Augmentation | None = None) -> TensorLoader:
    """A loader of ten images, in batches of 4, 4 and 2."""
    images = torch.randint(256, (10, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return TensorLoader(images, torch.arange(10), 4, shuffle_seed=shuffle_seed, augmentation=augmentation)


def test_index_chooses_images_and_shuffling_stays_within_it() -> None:
    whole = numbered(shuffle_seed=None)
    index = torch.tensor([7, 2, 9])
    in_order = TensorLoader(whole.images, whole.labels, 2, index=index)
    assert len(in_order) == 2
    assert torch.cat([labels for _, labels in in_order]).tolist() == [7, 2, 9]
    shuffled = TensorLoader(whole.images, whole.labels, 2, index=index, shuffle_seed=1)
    orders = {tuple(torch.cat([labels for _, labels in epoch(shuffled, n)]).tolist()) for n in range(20)}
    assert len(orders) > 1
    assert {frozenset(order) for order in orders} == {frozenset({7, 2, 9})}


def epoch(loader: TensorLoader, number: int, first_step: int = 0) -> list[tuple[Tensor, Tensor]]:
    loader.seek(number, first_step)
    return list(loader)


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return all(torch.equal(x[0], y[0]) and torch.equal(x[1], y[1]) for x, y in zip(a, b, strict=True))


DISTORTED = Augmentation(rotation=15, shear=10, translate=0.08)
LOADERS = pytest.mark.parametrize("augmentation", [None, DISTORTED], ids=["plain", "augmented"])


def test_epoch_gives_each_image_once_with_its_label_the_last_batch_short() -> None:
    loader = numbered()
    batches = epoch(loader, 0)
    assert len(loader) == 3
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    for images, labels in batches:
        assert images.dtype == torch.uint8
        assert torch.equal(images, loader.images[labels])
    assert torch.cat([labels for _, labels in batches]).sort().values.tolist() == list(range(10))


def test_order_is_that_stored_without_a_seed() -> None:
    for number in (0, 1):
        batches = epoch(numbered(shuffle_seed=None), number)
        assert torch.cat([labels for _, labels in batches]).tolist() == list(range(10))


@LOADERS
def test_batches_follow_from_seed_and_epoch(augmentation: Augmentation | None) -> None:
    first = epoch(numbered(augmentation=augmentation), 3)
    torch.manual_seed(5)
    loader = numbered(augmentation=augmentation)
    epoch(loader, 0)  # what it did before does not matter
    assert same(epoch(loader, 3), first)
    assert not same(epoch(loader, 4), first)
    assert not same(epoch(numbered(shuffle_seed=2, augmentation=augmentation), 3), first)


@LOADERS
@pytest.mark.parametrize("first_step", [1, 2, 3])
def test_seeking_gives_exactly_the_batches_from_that_step_on(
    augmentation: Augmentation | None, first_step: int
) -> None:
    full = epoch(numbered(augmentation=augmentation), 2)
    assert same(epoch(numbered(augmentation=augmentation), 2, first_step), full[first_step:])


def test_augmentation_differs_by_epoch_and_step_even_in_stored_order() -> None:
    loader = numbered(shuffle_seed=None, augmentation=DISTORTED)
    loader.images[:] = loader.images[0].clone()
    batches = [images[:2] for number in (0, 1) for images, _ in epoch(loader, number)]
    assert all(images.dtype == torch.float32 for images in batches)
    assert len({images.numpy().tobytes() for images in batches}) == 6


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_shares_of_several_processes_are_the_whole(count: int) -> None:
    whole = numbered(augmentation=DISTORTED)
    shares = [whole.share(number, count) for number in range(count)]
    for step, ((images, labels), *parts) in enumerate(
        zip(epoch(whole, 3), *(epoch(s, 3) for s in shares), strict=True)
    ):
        assert sum(share.part_of(step) for share in shares) == pytest.approx(1)
        for number, (some_images, some_labels) in enumerate(parts):
            assert torch.equal(some_labels, labels[number::count])
            assert len(some_images) == len(some_labels) == round(shares[number].part_of(step) * len(labels))
            if len(some_images) > 0:  # distorted as in the whole batch
                assert torch.equal(some_images, images[number::count])
    in_order = numbered(shuffle_seed=None, augmentation=None)
    labels = torch.full((len(in_order.index),), -1)
    for share in (in_order.share(number, count) for number in range(count)):
        assert (labels[share.places] == -1).all()
        labels[share.places] = torch.cat([some_labels for _, some_labels in share])
    assert torch.equal(labels, torch.cat([some_labels for _, some_labels in in_order]))


def test_without_any_augmentation_images_stay_as_they_are(demo_files: Path) -> None:
    config = {"data_dir": str(demo_files), "rotation_degree": 0, "affine_degree": 0, "translate": 0}
    train = get_data_loaders(config).train
    images, _ = next(iter(train))
    assert images.dtype == torch.uint8
    known = {image.numpy().tobytes() for image in train.images}
    assert all(image.numpy().tobytes() in known for image in images)


@pytest.mark.parametrize(("count", "sizes"), [(9, [4, 5]), (10, [4, 4, 2]), (1, [1]), (5, [5]), (8, [4, 4])])
def test_in_training_an_image_that_is_left_over_joins_the_batch_before_it(count: int, sizes: list[int]) -> None:
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    loader = TensorLoader(images, torch.arange(count), 4, shuffle_seed=1)
    assert len(loader) == len(sizes)
    assert [len(labels) for _, labels in epoch(loader, 0)] == sizes
    assert torch.cat([labels for _, labels in epoch(loader, 0)]).sort().values.tolist() == list(range(count))
    shares = [loader.share(number, 2) for number in range(2)]
    for step, size in enumerate(sizes):
        assert [share.part_of(step) * size for share in shares] == [-(-size // 2), size // 2]
    assert sorted(torch.cat([share.places for share in shares]).tolist()) == list(range(count))
    assert len(TensorLoader(images, torch.arange(count), 4)) == -(-count // 4)  # evaluation needs no variance


def test_fingerprint_changes_with_a_pixel_a_label_or_the_choice_of_images() -> None:
    fingerprint = numbered().fingerprint()
    assert numbered(shuffle_seed=9).fingerprint() == fingerprint
    pixel, label, index = numbered(), numbered(), numbered()
    pixel.images[9, 0, 27, 27] ^= 1
    label.labels[0] = 1
    index.index = torch.arange(9)
    assert len({each.fingerprint() for each in (numbered(), pixel, label, index)}) == 4


def test_fingerprint_does_not_depend_on_how_memory_is_laid_out() -> None:
    loader = numbered()
    turned = TensorLoader(loader.images.mT.contiguous().mT, loader.labels, 4)
    assert turned.fingerprint() == loader.fingerprint()


# The download


class Server(http.server.ThreadingHTTPServer):
    """Serves one archive on 127.0.0.1, in a way that a test chooses."""

    daemon_threads = False  # so that closing waits for them

    def __init__(self, archive: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.archive = archive
        self.how = "whole"
        self.pause = 0.0  # seconds before an answer
        self.requests = 0
        self.ranges: list[str | None] = []  # what was asked for
        self.url = f"http://127.0.0.1:{self.server_address[1]}/gzip.zip"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.server.pause:
            time.sleep(self.server.pause)
        archive, how = self.server.archive, self.server.how
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        self.close_connection = True
        if how == "404":
            self.send_error(404)
            return
        if how == "not HTTP":
            self.wfile.write(b"welcome to the hotel's network\r\n\r\n")
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and how != "knows no ranges" else 0
        if start >= len(archive):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(archive) - 1}/{len(archive)}")
        archive = archive[start:]
        chunked = how == "breaks off, chunked"
        self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(archive)))))
        self.end_headers()
        if how == "whole" or (how == "knows no ranges" and asked):
            self.wfile.write(archive)
        elif how == "wrong bytes":
            self.wfile.write(bytes(len(archive)))
        elif how == "says nothing":
            pass
        else:
            self.wfile.write(f"{len(archive):x}\r\n".encode() if chunked else b"")
            self.wfile.write(archive[: (len(archive) + 1) // 2])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The official archive in small: the four files of `digits`."""
    folder = tmp_path_factory.mktemp("archive")
    write_emnist(folder, "digits")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path in sorted((folder / "EMNIST" / "raw").iterdir()):
            file.write(path, f"gzip/{path.name}")
    return buffer.getvalue()


@pytest.fixture
def server(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of that archive, where torchvision believes EMNIST to be."""
    with Server(archive) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(EMNIST, "url", server.url)
        monkeypatch.setattr(EMNIST, "md5", hashlib.md5(archive).hexdigest())
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(glyphs.data.download, "WAITS", (0.0, 0.0))
        yield server
        server.shutdown()
        thread.join()


def raw_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "EMNIST" / "raw").iterdir()}


def unpacked(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return {name.removeprefix("gzip/"): file.read(name) for name in file.namelist()}


def test_missing_files_are_downloaded_once(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    expected = write_emnist(tmp_path / "reference", "digits")
    assert torch.equal(load_emnist(tmp_path / "data", "digits", "train")[0], expected["train"][0])
    requests = server.requests
    assert torch.equal(load_emnist(tmp_path / "data", "digits", "test")[0], expected["test"][0])
    assert server.requests == requests > 0
    said = capsys.readouterr().err
    assert server.url in said
    assert "100%" in said  # progress
    assert raw_files(tmp_path / "data") == unpacked(server.archive) | {"gzip.zip": server.archive}


def test_missing_file_of_a_pair_is_downloaded(tmp_path: Path, server: Server) -> None:
    write_emnist(tmp_path, "digits")
    emnist_paths(tmp_path, "digits", "test")[1].unlink()
    load_emnist(tmp_path, "digits", "test")
    assert server.requests > 0


def test_programs_that_want_the_files_at_once_fetch_them_once(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Locks of threads exclude each other as those of processes do."""
    server.pause = 0.3
    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(load_emnist, tmp_path, "digits", "test") for _ in range(3)]
        labels = [each.result()[1] for each in running]
    assert [len(each) for each in labels] == [30, 30, 30]
    assert server.ranges == [None]
    assert capsys.readouterr().err.count("another program is fetching files into") == 2
    assert raw_files(tmp_path) == unpacked(server.archive) | {"gzip.zip": server.archive}


@pytest.mark.parametrize("how", ["wrong bytes", "404", "not HTTP", "says nothing"])
def test_download_that_fails_is_one_line_leaves_nothing_and_works_the_next_time(
    tmp_path: Path, server: Server, how: str
) -> None:
    server.how = how
    for _ in range(2):
        with refused(DataError, server.url, tmp_path / "data" / "EMNIST" / "raw" / "gzip.zip", "--dataset demo"):
            load_emnist(tmp_path / "data", "digits", "test")
        assert not (tmp_path / "data").exists()
    server.how = "whole"
    assert len(load_emnist(tmp_path / "data", "digits", "test")[1]) == 30


@pytest.mark.parametrize("how", ["breaks off", "breaks off, chunked", "knows no ranges"])
def test_a_broken_connection_is_tried_again_and_gone_on_with(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """Half of what is missing comes each time, until the last byte."""
    server.how = how
    assert len(load_emnist(tmp_path, "digits", "test")[1]) == 30
    assert raw_files(tmp_path) == unpacked(server.archive) | {"gzip.zip": server.archive}
    half = (len(server.archive) + 1) // 2
    assert server.ranges[:2] == [None, f"bytes={half}-"]
    if how != "knows no ranges":
        assert server.ranges[2] == f"bytes={half + (len(server.archive) - half + 1) // 2}-"
    assert "the connection broke after" in capsys.readouterr().err


def test_a_download_that_was_stopped_goes_on_the_next_time(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = (len(server.archive) + 1) // 2

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    server.how = "breaks off"
    with monkeypatch.context() as patched:
        patched.setattr(time, "sleep", stop)
        with pytest.raises(KeyboardInterrupt):
            load_emnist(tmp_path, "digits", "test")
    assert raw_files(tmp_path) == {"gzip.zip.part": server.archive[:half]}
    server.how = "whole"
    assert len(load_emnist(tmp_path, "digits", "test")[1]) == 30
    assert server.ranges == [None, f"bytes={half}-"]
    assert raw_files(tmp_path) == unpacked(server.archive) | {"gzip.zip": server.archive}


def test_where_the_connection_stays_broken_what_came_is_kept(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.how = "breaks off"
    with refused(DataError, server.url, "MB are kept", "run it again"), pytest.MonkeyPatch.context() as patched:
        patched.setattr(glyphs.data.download, "WAITS", ())
        load_emnist(tmp_path, "digits", "test")
    assert raw_files(tmp_path) == {"gzip.zip.part": server.archive[: (len(server.archive) + 1) // 2]}


@pytest.mark.parametrize(("kept", "requests"), [(0.3, 1), (1.0, 0)])
def test_the_start_of_an_archive_that_others_left_is_gone_on_with(
    tmp_path: Path, server: Server, kept: float, requests: int
) -> None:
    """torchvision gives the archive its name from the first byte on."""
    left = server.archive[: int(kept * len(server.archive))]
    path = tmp_path / "EMNIST" / "raw" / "gzip.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(left)
    assert len(load_emnist(tmp_path, "digits", "test")[1]) == 30
    assert server.ranges == [f"bytes={len(left)}-"] * requests


def test_an_archive_that_is_damaged_is_removed(tmp_path: Path, server: Server) -> None:
    path = tmp_path / "EMNIST" / "raw" / "gzip.zip"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(len(server.archive)))
    with refused(DataError, "MD5", "run it again"):
        load_emnist(tmp_path, "digits", "test")
    assert raw_files(tmp_path) == {}
    assert len(load_emnist(tmp_path, "digits", "test")[1]) == 30


def test_refused_connection_is_one_line(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/gzip.zip"
        monkeypatch.setattr(EMNIST, "url", url)
        with refused(DataError, url, tmp_path / "EMNIST" / "raw" / "gzip.zip", "--dataset demo", "refused"):
            load_emnist(tmp_path, "digits", "train")


def test_a_download_onto_a_full_disk_is_one_line_and_goes_on_when_there_is_room(
    tmp_path: Path, server: Server, disk: Disk
) -> None:
    raw = tmp_path / "EMNIST" / "raw"
    with refused(GlyphError, raw / "gzip.zip.part", "No space left"), disk.watched(room=0):
        load_emnist(tmp_path, "digits", "test")
    kept = raw_files(tmp_path)
    assert kept.keys() == {"gzip.zip.part"}
    assert server.archive.startswith(kept["gzip.zip.part"])
    assert len(load_emnist(tmp_path, "digits", "test")[1]) == 30
    assert server.ranges == [None, f"bytes={len(kept['gzip.zip.part'])}-"]
    assert raw_files(tmp_path) == unpacked(server.archive) | {"gzip.zip": server.archive}


def test_a_data_folder_that_may_only_be_read_is_one_line(tmp_path: Path, server: Server, disk: Disk) -> None:
    with refused(GlyphError, tmp_path / "EMNIST" / "raw", "Read-only file system"), disk.watched(read_only=True):
        load_emnist(tmp_path, "digits", "test")
    assert list(tmp_path.iterdir()) == []


def test_archive_put_there_by_hand_is_used(tmp_path: Path, server: Server) -> None:
    by_hand = tmp_path / "EMNIST" / "raw" / "gzip.zip"
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(server.archive)
    assert len(load_emnist(tmp_path, "digits", "train")[1]) == 30
    assert server.requests == 0


def test_archive_without_the_split_is_one_line(tmp_path: Path, server: Server) -> None:
    with refused(DataError, "mnist", tmp_path / "EMNIST" / "raw" / "gzip.zip"):
        load_emnist(tmp_path, "mnist", "train")


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_bytes(b"")
    with refused(GlyphError, tmp_path / "file"):
        load_emnist(tmp_path / "file", "digits", "train")
    assert server.requests == 0


def test_a_full_disk_is_found_before_anything_is_fetched(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_is_full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", disk_is_full)
    with refused(GlyphError, tmp_path / "EMNIST" / "raw", "No space left"):
        load_emnist(tmp_path, "digits", "test")
    assert server.requests == 0
    assert not (tmp_path / "EMNIST").exists()


@pytest.mark.parametrize("succeeding", [2, 4, 7])  # the first two are of the claim to the folder
def test_interrupted_extraction_leaves_whole_files_only(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, succeeding: int
) -> None:
    calls = iter(range(100))
    real_fsync = os.fsync

    def disk_fills_up(descriptor: int) -> None:
        if next(calls) >= succeeding:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", disk_fills_up)
        with refused(GlyphError, tmp_path / "EMNIST" / "raw", "No space left"):
            load_emnist(tmp_path, "digits", "test")
    left = raw_files(tmp_path)
    assert left.items() <= (unpacked(server.archive) | {"gzip.zip": server.archive}).items()
    assert len(left) < 5
    requests = server.requests
    assert len(load_emnist(tmp_path, "digits", "test")[1]) == 30
    assert server.requests == requests  # from the archive, which was whole


def test_an_augmentation_of_the_users_sees_one_image_after_the_other_and_follows_from_the_seed(tmp_path: Path) -> None:
    def own(image: Tensor) -> Tensor:
        assert image.shape == (1, 28, 28)
        return (image + torch.rand(())).clamp(0, 1)

    write_emnist(tmp_path, "digits", images_per_class=30)
    config = Config(emnist_split="digits", data_dir=str(tmp_path), batch_size=64)
    data = get_data_loaders(config, augmentation=own)
    batches = [dict(fetch_steps(data.train, 7, 3, first))[2] for first in (0, 2)]
    (images, labels), (again, _) = batches
    assert torch.equal(images, again)
    plain = get_data_loaders(config, augmentation=lambda image: image)
    [(_, (raw, raw_labels))] = [each for each in fetch_steps(plain.train, 7, 3) if each[0] == 2]
    assert torch.equal(labels, raw_labels)
    black = (raw == 0).flatten(1).any(1)
    added = images[black].flatten(1).amin(1)  # each image its own
    assert len(set(added.tolist())) == len(added) > 50
    assert data.val.augmentation is None
