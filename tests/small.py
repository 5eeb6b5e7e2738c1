"""Models and pictures small enough for quick tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

from glyphs.config import Config
from glyphs.data.emnist import CLASS_NAMES
from glyphs.model import EnhancedGlyphCNN
from glyphs.training.checkpoint import save_checkpoint

NAMES = CLASS_NAMES["balanced"]


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
