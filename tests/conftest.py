"""What the tests share: tiny EMNIST files, a tiny configuration, the demo set, the real data, programs that run."""

import collections
import contextlib
import errno
import functools
import gzip
import http.client
import io
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import glyphs.core.files
from glyphs.commands.terminal import show_log
from glyphs.core.config import Config
from glyphs.core.errors import GlyphError
from glyphs.core.process import SIGNALS
from glyphs.data.demo import render_demo
from glyphs.data.emnist import CLASS_NAMES
from glyphs.models.export import export_model
from tests.small import save_small_checkpoint

# Under nohup or behind a shell's & the tests inherit ignored signals, and would start programs that ignore them too,
# and wait for their end in vain.  A handler that does nothing ignores them here as well, but is not inherited.
for signum in SIGNALS:
    if signal.getsignal(signum) is signal.SIG_IGN:
        signal.signal(signum, lambda *_: None)

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("train", "test")

draw_demo = functools.cache(render_demo)  # once for all tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of slow tests first: of two processes that share the files, none has a long one left at the end."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    count = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: -slow[item.path] / count[item.path])


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of genuine EMNIST files that GLYPH_DATA_DIR names; without it the test is skipped."""
    folder = os.environ.get("GLYPH_DATA_DIR", "")
    if not folder:
        pytest.skip("GLYPH_DATA_DIR is not set: no real EMNIST files to test on")
    return Path(folder)


@pytest.fixture(scope="session")
def demo_data() -> dict[str, tuple[Tensor, Tensor]]:
    """Images and labels of both parts of the demo set."""
    return {"train": draw_demo("train"), "test": draw_demo("test")}


@pytest.fixture(scope="session")
def demo_images() -> NDArray[np.uint8]:
    """A few test images of the demo set, [51, 28, 28]."""
    return np.asarray(draw_demo("test")[0][::37, 0])


@pytest.fixture(scope="session")
def demo_files(tmp_path_factory: pytest.TempPathFactory, demo_data: dict[str, tuple[Tensor, Tensor]]) -> Path:
    """Some of the demo set as files of EMNIST-Balanced, which has its classes: drawing it takes a run seconds.

    50 images a class to train on, and 10 to test on.
    """
    folder = tmp_path_factory.mktemp("demo")
    for part, per_class in (("train", 50), ("test", 10)):
        images, labels = demo_data[part]
        some = torch.cat([(labels == label).nonzero()[:per_class, 0] for label in range(47)])
        images_path, labels_path = emnist_paths(folder, "balanced", part, gz=False)
        images_path.parent.mkdir(parents=True, exist_ok=True)
        write_idx(images_path, images[some, 0].transpose(1, 2).contiguous())
        write_idx(labels_path, labels[some].to(torch.uint8))
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small checkpoint and its export to ONNX, which takes seconds: tests that change them work on copies."""
    source = save_small_checkpoint(tmp_path_factory.mktemp("exported") / "small.pth")
    return source, export_model(source).path


class Disk:
    """Stands between those who open files and the disk, which fills up or may only be read when a test wishes.

    Attributes
    ----------
    writes : how often something was written in the last context of `watched`.
    """

    def __init__(self) -> None:
        self.real_open = Path.open
        self.writes = 0
        self.room = math.inf  # writes until the disk is full
        self.read_only = False

    @contextlib.contextmanager
    def watched(self, *, room: float = math.inf, read_only: bool = False) -> Iterator[None]:
        """While it lasts, the write after `room` others and all later ones fail, or no file is opened to be written."""
        self.writes, self.room, self.read_only = 0, room, read_only
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                Path, "open", lambda path, mode="r", *rest, **options: self.open(path, mode, *rest, **options)
            )
            patch.setattr(glyphs.core.files, "open", self.open, raising=False)
            yield

    def open(self, path: Path, mode: str, *rest: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+"):
            return self.real_open(path, mode, *rest, **options)
        if self.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        file = FileOnDisk(path, mode.replace("b", ""), opener=options.get("opener"))
        file.disk = self
        if options.get("buffering") == 0:
            return file
        return io.BufferedRandom(file) if "+" in mode else io.BufferedWriter(file)


class FileOnDisk(io.FileIO):
    """A file on a disk that fills up: of the write that meets its end, half comes through."""

    disk: Disk

    def write(self, data: Any) -> int:
        self.disk.writes += 1
        if self.disk.writes == self.disk.room + 1:
            data = memoryview(data)[: len(data) // 2]
        elif self.disk.writes > self.disk.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data) or 0


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def shown_log() -> None:
    """What the package logs goes to stderr, as in the scripts."""
    show_log()


@pytest.fixture
def tiny_config(tmp_path: Path) -> Config:
    """Settings for one short epoch on the files that `write_emnist(tmp_path / "data", "digits")` writes."""
    return Config(
        emnist_split="digits",
        batch_size=8,
        num_epochs=1,
        use_residual=False,
        device="cpu",
        data_dir=str(tmp_path / "data"),
        output_dir=str(tmp_path / "outputs"),
    )


def idx_bytes(tensor: Tensor) -> bytes:
    """A uint8 tensor as an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    return bytes([0, 0, 8, tensor.ndim]) + sizes + tensor.numpy().tobytes()


def write_idx(path: Path, tensor: Tensor) -> None:
    """Write an IDX file, gzipped where its name ends in `.gz`."""
    content = idx_bytes(tensor)
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


def emnist_paths(folder: Path, split: str, part: str, gz: bool = True) -> tuple[Path, Path]:
    """Where the images and the labels of a part are, in the official layout under a data folder."""
    stem = str(folder / "EMNIST" / "raw" / f"emnist-{split}-{part}")
    suffix = ".gz" if gz else ""
    return Path(f"{stem}-images-idx3-ubyte{suffix}"), Path(f"{stem}-labels-idx1-ubyte{suffix}")


def write_emnist(
    folder: Path, split: str, images_per_class: int = 3, gz: bool = True
) -> dict[str, tuple[Tensor, Tensor]]:
    """Write the four files of a split as EMNIST has them: images transposed, the labels of `letters` from 1.

    Returns, for "train" and "test", what a reader should make of them: upright uint8 [N, 1, 28, 28], labels from 0.
    """
    expected = {}
    for part in PARTS:
        labels = torch.arange(len(CLASS_NAMES[split])).repeat(images_per_class)
        generator = torch.Generator().manual_seed(PARTS.index(part))
        upright = torch.randint(256, (len(labels), 28, 28), dtype=torch.uint8, generator=generator)
        images_path, labels_path = emnist_paths(folder, split, part, gz)
        images_path.parent.mkdir(parents=True, exist_ok=True)
        write_idx(images_path, upright.transpose(1, 2).contiguous())
        write_idx(labels_path, (labels + (split == "letters")).to(torch.uint8))
        expected[part] = upright.unsqueeze(1), labels
    return expected


@contextlib.contextmanager
def refused(kind: type[GlyphError], *facts: object) -> Iterator[None]:
    """Expect an error of this kind whose message is one line and mentions every fact."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for fact in facts:
        assert str(fact) in message


def run_python(*arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the interpreter in the repository's root, as a user would, and return what it did."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


def assert_upright(images: Tensor, labels: Tensor, names: Sequence[str]) -> None:
    """Check that letters stand as people write them: transposing or mirroring them would break one of these facts."""

    def mean_of(name: str) -> Tensor:
        return images[labels == names.index(name), 0].double().mean(dim=0)

    one = mean_of("1")
    spread = torch.arange(28.0).double() - 13.5
    assert (one.sum(1) * spread**2).sum() > (one.sum(0) * spread**2).sum()  # taller than wide
    eff = mean_of("F")
    empty = eff[14:, 14:].sum()  # the one quarter of an F without ink
    assert all(empty < quarter.sum() for quarter in (eff[:14, :14], eff[:14, 14:], eff[14:, :14]))


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    """Start two processes of a script, or of `-m MODULE`, with these arguments, in the repository's root."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"},
    )


def finish(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str, str]:
    """The exit status of a process and what it said, which is over soon even where it hangs."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


@dataclass
class Running:
    """A service that runs, where it listens, and what it may ask of its clients."""

    process: subprocess.Popen[str]
    port: int
    said: str

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body (decoded where it is JSON) and headers, names in lower case."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
            names = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, json.loads(content) if names["content-type"] == "application/json" else content, names

    def predict(self, body: bytes, query: str = "", kind: str = "image/png") -> tuple[int, Any, dict[str, str]]:
        return self.ask("POST", f"/predict{query}", body, {"content-type": kind})

    def raw(self, sent: bytes, half_close: bool = False) -> bytes:
        """All that comes back for these bytes, until the service closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(sent)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))


@contextlib.contextmanager
def running(*command: object) -> Iterator[Running]:
    """Start a service and wait until it says where it listens, first of all."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    try:
        said = process.stderr.readline()
        found = re.search(r"serving on http://[^:]+:(\d+)/", said)
        assert found, said
        yield Running(process, int(found[1]), said)
    finally:
        process.kill()
        process.communicate()
