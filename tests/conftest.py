"""What the tests share: tiny EMNIST files, a tiny configuration, the demo set and the real data."""

import contextlib
import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from glyphs.commands.terminal import show_log
from glyphs.config import Config
from glyphs.data.demo import render_demo
from glyphs.data.emnist import CLASS_NAMES
from glyphs.errors import GlyphError
from glyphs.export import export_model
from glyphs.process import SIGNALS
from tests.small import save_small_checkpoint

# Under nohup or behind a shell's & the tests inherit ignored signals, and would start programs that ignore them too,
# and wait for their end in vain.  A handler that does nothing ignores them here as well, but is not inherited.
for signum in SIGNALS:
    if signal.getsignal(signum) is signal.SIG_IGN:
        signal.signal(signum, lambda *_: None)

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("train", "test")


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
    return {"train": render_demo("train"), "test": render_demo("test")}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small checkpoint and its export to ONNX, which takes seconds: tests that change them work on copies."""
    source = save_small_checkpoint(tmp_path_factory.mktemp("exported") / "small.pth")
    return source, export_model(source).path


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
