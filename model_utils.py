#!/usr/bin/env python3
"""Analyse a model, compare models, export one, audit the data.

python model_utils.py --analyze outputs/best_model.pth
python model_utils.py --compare exp1/best_model.pth exp2/best_model.pth --data-dir ./data
python model_utils.py --export outputs/best_model.pth --format onnx
python model_utils.py --export outputs/best_model.pth --format onnx-int8 --data-dir ./data
python model_utils.py --audit --data-dir ./my-glyphs --folds 5 --output audit

A MODEL is a checkpoint (.pth) or an .onnx export of this project.
"""

import sys
from typing import Any

from glyphs.commands.model_arguments import parse
from glyphs.commands.settings import import_public
from glyphs.core.process import run

# `from model_utils import ModelAnalyzer`, imported when it is first asked for (PEP 562).
PUBLIC_NAMES = {"ModelAnalyzer": "glyphs.evaluation.analyzer", "ModelComparator": "glyphs.evaluation.comparator"}


def __getattr__(name: str) -> Any:
    return import_public(__name__, PUBLIC_NAMES, name)


def main(argv: list[str] | None = None) -> None:
    arguments, given, config = parse(argv, __doc__)

    from glyphs.commands.models import (
        analyze_compare_or_export,  # PyTorch: not before the arguments are known to be right
    )

    analyze_compare_or_export(arguments, given, config)


def command() -> int:
    """The installed command: what running this file does."""
    return run(main)


if __name__ == "__main__":
    sys.exit(command())
