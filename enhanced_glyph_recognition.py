#!/usr/bin/env python3
"""Train and evaluate recognisers of handwritten characters.

python enhanced_glyph_recognition.py --dataset demo --epochs 5     try it: no download, a few minutes
python enhanced_glyph_recognition.py                               EMNIST-Balanced, 47 classes
python enhanced_glyph_recognition.py --resume                      go on with a run that was stopped
python enhanced_glyph_recognition.py --evaluate outputs/best_model.pth
torchrun --nproc-per-node 4 enhanced_glyph_recognition.py          on four GPUs, or four CPU processes
"""

import sys
from typing import Any

from glyphs.commands.settings import import_public
from glyphs.commands.train_arguments import parse
from glyphs.core.process import run

# `from enhanced_glyph_recognition import Trainer` and the like, each imported when it is first asked for (PEP 562).
PUBLIC_NAMES = {
    "DepthwiseSeparableConv": "glyphs.models.network",
    "EarlyStopping": "glyphs.training.early_stopping",
    "EnhancedGlyphCNN": "glyphs.models.network",
    "Evaluator": "glyphs.evaluation.evaluator",
    "LRFinder": "glyphs.training.lr_finder",
    "ResidualBlock": "glyphs.models.network",
    "Trainer": "glyphs.training.trainer",
    "get_data_loaders": "glyphs.data.loaders",
    "get_default_config": "glyphs.core.config",
}


def __getattr__(name: str) -> Any:
    return import_public(__name__, PUBLIC_NAMES, name)


def main(argv: list[str] | None = None) -> None:
    arguments, given, config = parse(argv, __doc__)

    from glyphs.commands.train import train_or_evaluate  # PyTorch: not before the arguments are known to be right

    train_or_evaluate(arguments, given, config)


def command() -> int:
    """The installed command: what running this file does."""
    return run(main)


if __name__ == "__main__":
    sys.exit(command())
