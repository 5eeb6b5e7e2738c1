"""Write the weights of a checkpoint in half precision, without training state or paths: as the bundled weights are.

python recipes/half_precision.py outputs/best_model.pth pretrained/NAME.pth
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from glyphs.core.config import Config
from glyphs.models.checkpoint import load_checkpoint, write_checkpoint


def write_half_precision(source: Path, target: Path) -> None:
    """Write the weights of a checkpoint in float16.  Raises GlyphError."""
    content = load_checkpoint(source)
    content.pop("training", None)
    content["model"] = {
        name: weights.half() if weights.is_floating_point() else weights for name, weights in content["model"].items()
    }
    for field in dataclasses.fields(Config):
        if field.metadata["may_change"] and field.name in content["config"] and field.name != "num_epochs":
            content["config"][field.name] = field.default  # of the machine, not of the model
    content["config"]["finetune"] = None  # a path, too
    write_checkpoint(target, content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the checkpoint")
    parser.add_argument("target", type=Path, help="the file to write")
    arguments = parser.parse_args()
    write_half_precision(arguments.source, arguments.target)


if __name__ == "__main__":
    main()
