"""Models, pictures and trainings small enough for quick tests, and how two trainings are compared."""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw
from torch import Tensor, nn

from glyphs.core.config import Config
from glyphs.core.protocols import Batch
from glyphs.data.emnist import CLASS_NAMES
from glyphs.data.loaders import Augmentation, TensorLoader
from glyphs.models.checkpoint import BEST_MODEL, LATEST_CHECKPOINT, load_checkpoint, save_checkpoint
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.training.trainer import Trainer

NAMES = CLASS_NAMES["balanced"]


def likeness(pictures: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """The mean correlation of pictures with others, pair by pair; both [N, 28, 28]."""
    pairs = zip(pictures, others, strict=True)
    return float(np.mean([np.corrcoef(picture.ravel(), other.ravel())[0, 1] for picture, other in pairs]))


def save_small_checkpoint(path: Path) -> Path:
    """A light network with random weights, 47 classes."""
    torch.manual_seed(0)
    config = Config(use_residual=False)
    save_checkpoint(path, EnhancedGlyphCNN(len(NAMES), use_residual=False), config, NAMES, metrics={})
    return path


def onnx_weights(classes: int = len(NAMES)) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.05, (28 * 28, classes)).astype(np.float32)


def save_small_onnx(
    path: Path,
    metadata: dict[str, str] | None = None,
    weights: NDArray[np.float32] | None = None,
    **options: Any,
) -> Path:
    """One linear layer and a softmax, in the form of our exports but for what the arguments change."""
    weights = onnx_weights() if weights is None else weights
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", weights.shape[1]])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ours = {"format": "1", "class_names": json.dumps(NAMES)}
    helper.set_model_props(model, ours if metadata is None else metadata)
    onnx.save(model, path, **options)
    return path


def draw_glyph(number: int = 0) -> Image.Image:
    """Black ink on white paper, 80x80: one stroke with corners, another for each number from 0 to 9."""
    corners = [(24, 20), (24, 60), (30 + 3 * number, 60 - 3 * number)]
    picture = Image.new("L", (80, 80), 255)
    ImageDraw.Draw(picture).line(corners, fill=0, width=6)
    return picture


def declared_png(width: int, height: int) -> bytes:
    """A PNG file that declares a size, and holds almost nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return content


CLASSES = ["a", "b", "c"]  # of `make_images`


def make_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with a bright bar whose height tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(CLASSES), (count,), generator=generator)
    images = torch.randint(0, 60, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[0, 4 + 8 * int(label) : 9 + 8 * int(label)] += 150
    return images, labels


def make_loaders() -> tuple[TensorLoader, TensorLoader]:
    return (
        TensorLoader(*make_images(80, 1), 16, shuffle_seed=7, augmentation=Augmentation(10, 5, 0.05)),
        TensorLoader(*make_images(30, 2), 16),
    )


def make_config(folder: Path, **settings: Any) -> Config:
    return Config.from_dict(
        {"use_residual": False, "batch_size": 16, "num_epochs": 3, "learning_rate": 0.01, "device": "cpu"}
        | {"output_dir": str(folder)}
        | settings
    )


def all_state(folder: Path) -> dict[str, Any]:
    """Everything two runs that did the same must agree on."""
    latest = load_checkpoint(folder / LATEST_CHECKPOINT)
    rows = [{k: v for k, v in row.items() if "second" not in k} for row in latest["training"]["history"]]
    best = load_checkpoint(folder / BEST_MODEL)["model"]
    return {"latest": latest["model"], "optimizer": latest["training"]["optimizer"], "best": best, "rows": rows}


def assert_identical(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_identical(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_identical(a, b)
    else:
        assert one == other


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return float(torch.cat([(one[name] - other[name]).flatten().double() for name in one]).norm())


class StopAt:
    """A loader that lets the trainer believe a signal came while it fetches the given step of the given epoch."""

    def __init__(self, loader: TensorLoader, epoch: int, step: int) -> None:
        self.loader, self.when = loader, (epoch, step)
        self.trainer: Trainer | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def seek(self, epoch: int, first_step: int) -> None:
        self.loader.seek(epoch, first_step)

    def fingerprint(self) -> int:
        return self.loader.fingerprint()

    def __iter__(self) -> Iterator[Batch]:
        for step, batch in enumerate(self.loader, self.loader.first_step):
            if self.trainer is not None and (self.loader.epoch, step) == self.when:
                self.trainer.signals.received = 15
            yield batch


class Frozen(EnhancedGlyphCNN):
    """Batch norm with fixed statistics and no dropout, so that how a batch is divided does not matter."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self
