"""What enhanced_glyph_recognition.py is asked for; imports only what parsing needs, so that it answers at once."""

import argparse
import os
from pathlib import Path
from typing import Any

from glyphs.commands.settings import (
    Parser,
    add_settings,
    config_of,
    given_settings,
    require_models,
    setting_groups,
)
from glyphs.core.config import Config, read_config
from glyphs.core.errors import CheckpointError
from glyphs.core.process import launched, silence


def build_parser(description: str | None = None) -> argparse.ArgumentParser:
    parser = Parser(description)
    what = parser.add_argument_group("what to do (without any of these: train, then evaluate)")
    either = what.add_mutually_exclusive_group()
    either.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="PATH",
        help="go on with the run of this latest_checkpoint.pth (default: the one in the output folder)",
    )
    either.add_argument("--evaluate", metavar="CHECKPOINT", help="only evaluate this checkpoint, on the test images")
    overwrite = "replace the run in the output folder, which stays in OUTPUT_DIR/replaced until the new one is trained"
    either.add_argument("--overwrite", action="store_true", help=overwrite)
    what.add_argument("--lr-finder", action="store_true", help="first search for a good learning rate")
    what.add_argument("--accept-lr", action="store_true", help="take the learning rate it finds without asking")
    what.add_argument("--skip-eval", action="store_true", help="do not evaluate after training")
    views = "in the evaluation, average over seven views of each image: more accurate, seven times slower"
    what.add_argument("--average-views", action="store_true", help=views)
    what.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help="JSON file of settings, such as a config.json; flags override it",
    )
    batch = "only draw the first images to train on, distorted as in training, into OUTPUT_DIR/batch.png"
    what.add_argument("--show-batch", action="store_true", help=batch)
    add_settings(parser, setting_groups())
    return parser


def parse(argv: list[str] | None, description: str | None) -> tuple[argparse.Namespace, dict[str, Any], Config]:
    """The arguments, the settings among them and in their --config file, and these with the defaults of the others."""
    if launched() and os.environ["LOCAL_RANK"] != "0":
        silence()  # wrong arguments are the same for all processes
    parser = build_parser(description)
    arguments = parser.parse_args(argv)
    if arguments.lr_finder and (arguments.resume is not None or arguments.evaluate):
        parser.error("--lr-finder belongs to a new run, not to --resume or --evaluate")
    if arguments.show_batch and (arguments.resume is not None or arguments.evaluate or arguments.lr_finder):
        parser.error("--show-batch only draws: leave --resume, --evaluate and --lr-finder out")
    if arguments.lr_finder and launched():
        parser.error("--lr-finder runs in one process: find the rate without torchrun, then give it to --learning-rate")
    if arguments.accept_lr and not arguments.lr_finder:
        parser.error("--accept-lr needs --lr-finder")
    if arguments.evaluate and arguments.skip_eval:
        parser.error("--evaluate and --skip-eval leave nothing to do")
    if arguments.average_views and arguments.skip_eval:
        parser.error("--average-views belongs to the evaluation, which --skip-eval leaves out")
    flags = given_settings(arguments)
    given = (read_config(arguments.config) if arguments.config else {}) | flags
    config = config_of(given, flags)
    for path in (arguments.evaluate, None if arguments.resume is not None else config.finetune):
        if path and Path(path).suffix.lower() in (".onnx", ".pt2"):
            raise CheckpointError(
                f"{path}: is an export; name the checkpoint (.pth) that it came from, or measure .onnx files by "
                "model_utils.py --compare"
            )
        require_models(Path(path) if path else None)
    return arguments, given, config
