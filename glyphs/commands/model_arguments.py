"""What model_utils.py is asked for; imports only what parsing needs, so that it answers at once."""

import argparse
from pathlib import Path
from typing import Any

from glyphs.commands.settings import Parser, add_settings, config_of, flag_of, given_settings, require_models
from glyphs.core.config import EXPORT_FORMATS, Config
from glyphs.core.errors import ConfigError


def build_parser(description: str | None = None) -> argparse.ArgumentParser:
    parser = Parser(description)
    what = parser.add_argument_group("what to do (one of these)").add_mutually_exclusive_group(required=True)
    what.add_argument("--analyze", type=Path, metavar="MODEL", help="say what it costs, layer by layer")
    what.add_argument("--compare", type=Path, nargs="+", metavar="MODEL", help="set two or more side by side")
    what.add_argument("--export", type=Path, metavar="CHECKPOINT", help="write it in another format, verified")

    what.add_argument("--audit", action="store_true", help="say which images of a data set and which labels seem wrong")

    looking = parser.add_argument_group("the audit (without these two: what needs no model)")
    judges = looking.add_mutually_exclusive_group()
    folds = "judge the labels by cross-validation in this many parts, each by a classifier trained on the others"
    judges.add_argument("--folds", type=int, metavar="K", help=folds)
    model = "judge the labels by this model's answers for the images that it was not trained on"
    judges.add_argument("--model", type=Path, metavar="MODEL", help=model)

    results = parser.add_argument_group("results")
    output = (
        "--analyze: a report (.json); --compare: a table (.json or .csv); --export: the file (default: the "
        "checkpoint's name with .onnx, .int8.onnx or .pt2). The picture, analysis.png or comparison.png, goes beside "
        "the report, or into outputs/ without one. --audit: a folder for audit.csv, audit.html and sheets of pictures"
    )
    results.add_argument("--output", type=Path, metavar="PATH", help=output)
    formats = "of the export (default: the one of --output's suffix, else onnx); onnx-int8 needs --data-dir"
    results.add_argument("--format", choices=tuple(EXPORT_FORMATS), help=formats)
    force = "keep an onnx-int8 export that loses more accuracy than 0.2 points"
    results.add_argument("--force", action="store_true", help=force)

    data = (
        "images, for --compare, --audit and onnx-int8 (the data set and the split: default, those of the first model; "
        "for --audit, EMNIST where DATA_DIR holds it, else a folder of pictures)"
    )
    of_audit = ("preprocess", "max_train_images", "seed")
    add_settings(
        parser,
        {
            data: ("data_dir", "dataset", "emnist_split"),
            "images of --audit": of_audit,
            "network": ("arch",),
            "machine": ("device", "batch_size"),
        },
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
    require_models(arguments.analyze, arguments.export, arguments.model, *(arguments.compare or ()))
    return arguments, given, config


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace, given: dict[str, Any]) -> None:
    """Refuse, before anything is measured, arguments that do not go together and an output that cannot be written."""
    if arguments.compare and len(arguments.compare) < 2:
        parser.error("--compare needs two models or more")
    if not arguments.export and (arguments.format or arguments.force):
        parser.error("--format and --force belong to --export")
    if arguments.analyze and wants_data(given):
        parser.error("--analyze looks at no data; --compare does")
    if not arguments.audit and (arguments.folds is not None or arguments.model):
        parser.error("--folds and --model belong to --audit")
    if arguments.folds is not None and arguments.folds < 2:
        parser.error(f"--folds {arguments.folds}: the images are judged in 2 parts or more")
    if not arguments.audit and (own := {"preprocess", "max_train_images", "seed"} & set(given)):
        parser.error(f"{flag_of(sorted(own)[0])} belongs to --audit; a model brings its own")
    if arguments.audit and not wants_data(given):
        parser.error("--audit looks at data: name them by --data-dir")
    output = arguments.output
    if output is None:
        return
    if arguments.audit:
        if output.exists() and not output.is_dir():
            raise ConfigError(f"{output}: is a file; the reports of an audit go into a folder, name one by --output")
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
