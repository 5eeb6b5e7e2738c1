"""Enhanced Glyph Recognition: train, evaluate and use recognisers of handwritten characters.

    from glyphs import GlyphPredictor, Trainer

The names below are imported from their modules when they are first asked for (PEP 562), so that importing the package
costs nothing and reading with an .onnx model imports no torch.
"""

import importlib
from typing import Any

__version__ = "1.0.0"

PUBLIC_NAMES = {
    "Config": "glyphs.core.config",
    "DepthwiseSeparableConv": "glyphs.models.network",
    "EarlyStopping": "glyphs.training.early_stopping",
    "EnhancedGlyphCNN": "glyphs.models.network",
    "Evaluator": "glyphs.evaluation.evaluator",
    "GlyphPredictor": "glyphs.reading.predictor",
    "LRFinder": "glyphs.training.lr_finder",
    "ModelAnalyzer": "glyphs.evaluation.analyzer",
    "ModelComparator": "glyphs.evaluation.comparator",
    "Prediction": "glyphs.output.rows",
    "ResidualBlock": "glyphs.models.network",
    "Trainer": "glyphs.training.trainer",
    "get_data_loaders": "glyphs.data.loaders",
    "get_default_config": "glyphs.core.config",
}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC_NAMES[name]), name)
