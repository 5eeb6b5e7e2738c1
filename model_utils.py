#!/usr/bin/env python3
"""Analyse a model, compare models, export one.

python model_utils.py --analyze outputs/best_model.pth
python model_utils.py --compare exp1/best_model.pth exp2/best_model.pth --data-dir ./data
python model_utils.py --export outputs/best_model.pth --format onnx
python model_utils.py --export outputs/best_model.pth --format onnx-int8 --data-dir ./data

A MODEL is a checkpoint (.pth) or an .onnx export of this project.
"""

# Only what parsing needs is imported here, so that --help and wrong arguments are answered at once.
import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glyphs.commands.settings import add_settings, given_settings, import_public
from glyphs.config import Config
from glyphs.errors import CheckpointError, ConfigError
from glyphs.process import run

if TYPE_CHECKING:
    from glyphs.data.loaders import TensorLoader

# `from model_utils import ModelAnalyzer`, imported when it is first asked for (PEP 562).
PUBLIC_NAMES = {"ModelAnalyzer": "glyphs.analysis.analyzer", "ModelComparator": "glyphs.analysis.comparator"}

FORMATS = ("onnx", "onnx-int8", "pt2")
PICTURES = Path("outputs")  # where pictures go without --output
OF_THE_DATA = ("dataset", "emnist_split", "preprocess", "seed", "val_split", "max_train_images")


def __getattr__(name: str) -> Any:
    return import_public(__name__, PUBLIC_NAMES, name)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
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
    results.add_argument("--format", choices=FORMATS, help=formats)
    force = "keep an onnx-int8 export that loses more accuracy than 0.2 points"
    results.add_argument("--force", action="store_true", help=force)

    data = "images, for --compare and for onnx-int8 (the data set and the split: default, those of the first model)"
    add_settings(parser, {data: ("data_dir", "dataset", "emnist_split"), "machine": ("device", "batch_size")})
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    given = given_settings(arguments)
    check(parser, arguments, given)
    config = Config.from_dict(given)

    from glyphs.devices import explain_out_of_memory, limit_threads

    limit_threads()
    with explain_out_of_memory(config.batch_size):
        if arguments.analyze:
            analyze(arguments, config)
        elif arguments.compare:
            compare(arguments, config, given)
        else:
            export(arguments, given)


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


def analyze(arguments: argparse.Namespace, config: Config) -> None:
    from glyphs.analysis.analyzer import ModelAnalyzer, format_analysis, write_report

    analyzer = ModelAnalyzer(arguments.analyze, config.device, config.batch_size)
    report = analyzer.analyze()
    print(format_analysis(report))
    if arguments.output:
        write_report(arguments.output, report)
    picture = picture_path(arguments.output, "analysis.png")
    analyzer.plot(picture)
    say_written(arguments.output, picture)


def compare(arguments: argparse.Namespace, config: Config, given: dict[str, Any]) -> None:
    from glyphs.analysis.analyzer import write_report
    from glyphs.analysis.comparator import ModelComparator
    from glyphs.data.loaders import get_test_loader
    from glyphs.files import replace_file

    comparator = ModelComparator(arguments.compare, config.device, config.batch_size)
    loader = class_names = None
    split = ""
    if wants_data(given):
        first = comparator.analyzers[0]
        settings = data_settings(first.description.settings, first.path, given)
        with data_folder(settings):
            loader, class_names = get_test_loader(settings)
        split = settings.emnist_split if settings.dataset == "emnist" else settings.dataset
    comparison = comparator.compare(loader, class_names, split)
    print(comparison.to_text())
    if arguments.output and arguments.output.suffix.lower() == ".csv":
        replace_file(arguments.output, comparison.to_csv().encode())
    elif arguments.output:
        write_report(arguments.output, comparison.to_dict())
    picture = picture_path(arguments.output, "comparison.png")
    comparison.plot(picture)
    say_written(arguments.output, picture)


def export(arguments: argparse.Namespace, given: dict[str, Any]) -> None:
    from glyphs.analysis.analyzer import ModelAnalyzer
    from glyphs.export import check_packages, choose_format

    source = arguments.export
    format, output = choose_format(source, arguments.format, arguments.output)
    if format != "onnx-int8" and (wants_data(given) or arguments.force):
        raise ConfigError(f"--data-dir, --dataset, --split and --force are for onnx-int8; leave them out for {format}")
    if format == "onnx-int8" and not wants_data(given):
        raise ConfigError("onnx-int8 is calibrated on validation images: give the data by --data-dir")
    check_packages(format)
    validation = validation_loader(source, given) if format == "onnx-int8" else None
    exported = ModelAnalyzer(source, "cpu").export(format, output, validation=validation, force=arguments.force)
    print(exported.to_text())


def validation_loader(source: Path, given: dict[str, Any]) -> "TensorLoader":
    """The images that were held out when the checkpoint was trained."""
    from glyphs.data.loaders import get_data_loaders
    from glyphs.training.checkpoint import load_checkpoint

    content = load_checkpoint(source)
    settings = data_settings(content["config"], source, given)
    with data_folder(settings):
        data = get_data_loaders(settings)
    if data.class_names != content["class_names"]:
        raise CheckpointError(
            f"{source} knows {len(content['class_names'])} classes, the data has {len(data.class_names)} others; "
            "choose the data that it was trained on by --dataset and --split"
        )
    return data.val


def data_settings(settings: dict[str, Any], path: Path, given: dict[str, Any]) -> Config:
    """The settings to load a model's data with: those of its training, unless others are given."""
    same = {name: settings[name] for name in OF_THE_DATA if name in settings}
    # Pictures of a folder were prepared beside the model.
    return Config.from_dict(same | {"output_dir": str(path.parent)} | given)


def data_folder(settings: Config) -> contextlib.AbstractContextManager[None]:
    """Keep other runs out of the folder of prepared pictures, where the data need one."""
    from glyphs.files import claim_folder

    return claim_folder(Path(settings.output_dir)) if settings.dataset == "folder" else contextlib.nullcontext()


def picture_path(output: Path | None, name: str) -> Path:
    """Where a picture goes: beside the report, else into outputs/, which is made where it is missing."""
    from glyphs.files import explain_write_error

    folder = output.parent if output else PICTURES
    with explain_write_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def say_written(*paths: Path | None) -> None:
    print(f"written: {', '.join(str(path) for path in paths if path)}", file=sys.stderr)


def command() -> int:
    """The installed command: what running this file does."""
    return run(main)


if __name__ == "__main__":
    sys.exit(command())
