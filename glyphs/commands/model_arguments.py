"""What model_utils.py is asked for; imports only what parsing needs, so that it answers at once."""

import argparse
from pathlib import Path
from typing import Any

from glyphs.commands.settings import Parser, add_settings, config_of, given_settings, require_models
from glyphs.core.config import EXPORT_FORMATS, Config
from glyphs.core.errors import ConfigError


def build_parser(description: str | None = None) -> argparse.ArgumentParser:
    parser = Parser(description)
    what = parser.add_argument_group("what to do (one of these)").add_mutually_exclusive_group(required=True)
    what.add_argument("--analyze", type=Path, metavar="MODEL", help="say what it costs, layer by layer")
    what.add_argument("--compare", type=Path, nargs="+", metavar="MODEL", help="set two or more side by side")
    what.add_argument("--export", type=Path, metavar="CHECKPOINT", help="write it in another format, verified")

    results = parser.add_argument_group("results")
    output = (
        "--analyze: a report (.json); --compare: a table (.json or .csv); --export: the file (default: the "
        "checkpoint's name with .onnx, .int8.onnx or .pt2). The picture, analysis.png or comparison.png, goes beside "
        "the report, or into outputs/ without one"
    )
    results.add_argument("--output", type=Path, metavar="FILE", help=output)
    formats = "of the export (default: the one of --output's suffix, else onnx); onnx-int8 needs --data-dir"
    results.add_argument("--format", choices=tuple(EXPORT_FORMATS), help=formats)
    force = "keep an onnx-int8 export that loses more accuracy than 0.2 points"
    results.add_argument("--force", action="store_true", help=force)

    data = "images, for --compare and for onnx-int8 (the data set and the split: default, those of the first model)"
    add_settings(
        parser,
        {data: ("data_dir", "dataset", "emnist_split"), "network": ("arch",), "machine": ("device", "batch_size")},
        {"batch_size": "images of a full batch, whose times are measured too"},
    )
    return parser


def parse(argv: list[str] | None, description: str | None) -> tuple[argparse.Namespace, dict[str, Any], Config]:
    """The arguments, the settings among them, and these with the defaults of the others."""
    parser = build_parser(description)
    arguments = parser.parse_args(argv)
    given = given_settings(arguments)
    check(parser, arguments, given)
    config = config_of(given, given)
    require_models(arguments.analyze, arguments.export, *(arguments.compare or ()))
    return arguments, given, config


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace, given: dict[str, Any]) -> None:
    """Refuse, before anything is measured, arguments that do not go together and an output that cannot be written."""
    if arguments.compare and len(arguments.compare) < 2:
        parser.error("--compare needs two models or more")
    if not arguments.export and (arguments.format or arguments.force):
        parser.error("--format and --force belong to --export")
    if arguments.analyze and wants_data(given):
        parser.error("--analyze looks at no data; --compare does")
    output = arguments.output
    if output is None:
        return
    suffixes = [".json"] if arguments.analyze else [".json", ".csv"]
    if not arguments.export and output.suffix.lower() not in suffixes:
        raise ConfigError(f"{output}: the report is written to {' or '.join(suffixes)}; choose such a suffix")
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; name a file in it by --output")
    if not output.parent.is_dir():
        raise ConfigError(f"{output}: there is no folder {output.parent}; make it, or choose another --output")


def wants_data(given: dict[str, Any]) -> bool:
    return bool({"data_dir", "dataset", "emnist_split"} & set(given))
