"""Reading IDX files: what is whole is read as stored, and every kind of damage is named with its file."""

import gzip
from pathlib import Path

import pytest
import torch

from glyphs.core.errors import DataError
from glyphs.data.idx import read_idx
from tests.conftest import idx_bytes, refused

IMAGES = torch.arange(5 * 3 * 4, dtype=torch.uint8).reshape(5, 3, 4)
PLAIN = idx_bytes(IMAGES)
# Noise does not compress, so every byte in the middle of the stream is a byte of the payload.
NOISE = torch.randint(256, (5, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ZIPPED = gzip.compress(idx_bytes(NOISE), mtime=0)  # the names of tests must not depend on the time


@pytest.mark.parametrize(("name", "content"), [("images", PLAIN), ("images.gz", gzip.compress(PLAIN, mtime=0))])
def test_reads_plain_and_gzipped_images(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    images = read_idx(path, 3)
    assert images.dtype == torch.uint8
    assert torch.equal(images, IMAGES)
    images += 1  # ours to write to


def test_reads_labels(tmp_path: Path) -> None:
    labels = torch.tensor([3, 0, 255], dtype=torch.uint8)
    (tmp_path / "labels").write_bytes(idx_bytes(labels))
    assert torch.equal(read_idx(tmp_path / "labels", 1), labels)


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 8]) + content[middle + 8 :]


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("cut-in-the-payload.gz", ZIPPED[: len(ZIPPED) // 2], "truncated"),
        ("cut-in-the-header.gz", ZIPPED[:5], "truncated"),
        ("cut-before-the-checksum.gz", ZIPPED[:-8], "truncated"),
        ("flipped.gz", flipped(ZIPPED), "corrupt"),
        ("wrong-checksum.gz", ZIPPED[:-8] + bytes(4) + ZIPPED[-4:], "corrupt"),
        ("not-gzip.gz", PLAIN, "corrupt"),
        ("gzip-without-the-suffix", ZIPPED, "wrong magic number 1f8b"),
        ("other-element-type", b"\0\0\x0d\3" + PLAIN[4:], "wrong magic number 00000d03, expected 00000803"),
        ("labels-for-images", idx_bytes(IMAGES.flatten()), "wrong magic number 00000801, expected 00000803"),
        ("short", PLAIN[:-1], "holds 75 bytes where its header promises 76"),
        ("long", PLAIN + b"\0", "holds 77 bytes where its header promises 76"),
        ("cut-in-the-sizes", PLAIN[:9], "holds 9 bytes"),
        ("huge", PLAIN[:4] + b"\xff" * 12 + PLAIN[16:], "holds 76 bytes"),
        ("nothing", b"", "empty"),
        ("nothing.gz", b"", "empty"),
    ],
)
def test_damage_is_named_with_its_file(tmp_path: Path, name: str, content: bytes, fact: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with refused(DataError, path, fact, "fetch it again"):
        read_idx(path, 3)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with refused(DataError, tmp_path / "none.gz", "No such file"):
        read_idx(tmp_path / "none.gz", 3)
    with refused(DataError, tmp_path, "Is a directory"):
        read_idx(tmp_path, 3)
