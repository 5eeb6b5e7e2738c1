#!/usr/bin/env python3
"""Recognise the characters that pictures show.

python inference.py --image test.png
python inference.py --image a.png b.jpg --top-k 3 --alphabet 0123456789
python inference.py --batch ./images/ --output results.jsonl      stopped? the same command goes on
python inference.py --image form.png --text                        words, numbers, lines: see docs/TEXT.md
python inference.py --image test.png --visualize                   draws what the model saw
python inference.py --serve                                        a page to draw on, and an HTTP service
cat test.png | python inference.py --model model.onnx --image -    without PyTorch

The exit status is 3 where a picture could not be read, 2 where nothing could be done, else 0.
"""

import sys
from typing import Any

from glyphs.commands.read_arguments import parse
from glyphs.commands.settings import import_public
from glyphs.core.process import run

# `from inference import GlyphPredictor`, imported when it is first asked for (PEP 562).
PUBLIC_NAMES = {"GlyphPredictor": "glyphs.reading.predictor", "Prediction": "glyphs.output.rows"}


def __getattr__(name: str) -> Any:
    return import_public(__name__, PUBLIC_NAMES, name)


def main(argv: list[str] | None = None) -> int:
    arguments, config = parse(argv, __doc__)

    from glyphs.commands.read import read  # NumPy: not before the arguments are known to be right

    return read(arguments, config)


def command() -> int:
    """The installed command: what running this file does."""
    return run(main)


if __name__ == "__main__":
    sys.exit(command())
