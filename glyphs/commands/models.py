"""What model_utils.py does: models analysed, compared, exported, data audited."""

import argparse
import contextlib
from pathlib import Path
from typing import Any

from glyphs.commands.model_arguments import wants_data
from glyphs.commands.terminal import show_log
from glyphs.core.config import Config
from glyphs.core.devices import explain_out_of_memory, limit_threads
from glyphs.core.errors import ConfigError
from glyphs.core.files import claim_folder, explain_write_error, replace_file
from glyphs.core.process import say
from glyphs.core.text import CSV_ENCODING
from glyphs.data.loaders import TensorLoader, get_data_loaders, get_test_loader
from glyphs.data.overlap import overlaps
from glyphs.evaluation.analyzer import ModelAnalyzer, format_analysis, write_report
from glyphs.evaluation.comparator import ModelComparator
from glyphs.models.checkpoint import load_checkpoint, require_classes
from glyphs.models.export import check_packages, choose_format
from glyphs.pictures.plain import InputForm, with_form

PICTURES = Path("outputs")  # where pictures go without --output
OF_THE_DATA = ("dataset", "emnist_split", "preprocess", "image_size", "color", "seed", "val_split", "max_train_images")


def analyze_compare_or_export(arguments: argparse.Namespace, given: dict[str, Any], config: Config) -> None:
    show_log()
    limit_threads()
    with explain_out_of_memory(config.batch_size):
        if arguments.audit:
            from glyphs.commands.audit import audit  # SciPy and more, which the others do without

            audit(arguments, given, config)
        elif arguments.analyze:
            analyze(arguments, config)
        elif arguments.compare:
            compare(arguments, config, given)
        else:
            export(arguments, given)


def analyze(arguments: argparse.Namespace, config: Config) -> None:
    analyzer = ModelAnalyzer(arguments.analyze, config.device, config.batch_size, arch=config.arch)
    say(f"timing {arguments.analyze}")
    report = analyzer.analyze()
    print(format_analysis(report))
    if arguments.output:
        write_report(arguments.output, report)
    picture = picture_path(arguments.output, "analysis.png")
    analyzer.plot(picture)
    say_written(arguments.output, picture)


def compare(arguments: argparse.Namespace, config: Config, given: dict[str, Any]) -> None:
    comparator = ModelComparator(arguments.compare, config.device, config.batch_size, arch=config.arch)
    loader: TensorLoader | dict[InputForm, TensorLoader] | None = None
    class_names = None
    split = ""
    if wants_data(given):
        first = comparator.analyzers[0]
        settings = data_settings(first.description.settings, first.path, given)
        with data_folder(settings):
            if settings.dataset == "folder":
                loader = {}
                for form in dict.fromkeys(analyzer.form for analyzer in comparator.analyzers):
                    loader[form], class_names = get_test_loader(with_form(settings, form))
            else:
                loader, class_names = get_test_loader(settings)
        split = settings.data_name
    comparison = comparator.compare(loader, class_names, split)
    if loader is not None:
        comparison.notes.extend(notes_on_test(comparator, settings, by_default="emnist_split" not in given))
    print(comparison.to_text())
    if arguments.output and arguments.output.suffix.lower() == ".csv":
        replace_file(arguments.output, comparison.to_csv().encode(CSV_ENCODING))
    elif arguments.output:
        write_report(arguments.output, comparison.to_dict())
    picture = picture_path(arguments.output, "comparison.png")
    comparison.plot(picture)
    say_written(arguments.output, picture)


def notes_on_test(comparator: ModelComparator, settings: Config, *, by_default: bool) -> list[str]:
    """What a reader should know of the test images: which models may have been trained on them."""
    notes: list[str] = []
    for id, analyzer in zip(comparator.ids, comparator.analyzers, strict=True):
        known = analyzer.description
        notes.extend(f"{id} {words}" for words in overlaps(known.settings, known.ancestors, settings))
    if by_default and settings.dataset == "emnist":
        notes.append(
            f"The test images are those of EMNIST {settings.emnist_split}, the split that {comparator.ids[0]} was "
            "trained on: they are new to it as far as the files keep test and training images apart; --split names "
            "another"
        )
    return notes


def export(arguments: argparse.Namespace, given: dict[str, Any]) -> None:
    source = arguments.export
    format, output = choose_format(source, arguments.format, arguments.output)
    if format != "onnx-int8" and (wants_data(given) or arguments.force):
        raise ConfigError(f"--data-dir, --dataset, --split and --force are for onnx-int8; leave them out for {format}")
    if format == "onnx-int8" and not wants_data(given):
        raise ConfigError("onnx-int8 is calibrated on validation images: give the data by --data-dir")
    check_packages(format)
    validation = validation_loader(source, given) if format == "onnx-int8" else None
    analyzer = ModelAnalyzer(source, "cpu", arch=given.get("arch"))
    exported = analyzer.export(format, output, validation=validation, force=arguments.force)
    print(exported.to_text())


def validation_loader(source: Path, given: dict[str, Any]) -> TensorLoader:
    """The images that were held out when the checkpoint was trained."""
    content = load_checkpoint(source)
    settings = data_settings(content["config"], source, given)
    with data_folder(settings):
        data = get_data_loaders(settings)
    require_classes(content["class_names"], data.class_names, source)
    return data.val


def data_settings(settings: dict[str, Any], path: Path, given: dict[str, Any]) -> Config:
    """The settings to load a model's data with: those of its training, unless others are given."""
    same = {name: settings[name] for name in OF_THE_DATA if name in settings}
    # Pictures of a folder were prepared beside the model.
    return Config.from_dict(same | {"output_dir": str(path.parent)} | given)


def data_folder(settings: Config) -> contextlib.AbstractContextManager[None]:
    """Keep other runs out of the folder of prepared pictures, where the data need one."""
    return claim_folder(Path(settings.output_dir)) if settings.dataset == "folder" else contextlib.nullcontext()


def picture_path(output: Path | None, name: str) -> Path:
    """Where a picture goes: beside the report, else into outputs/, which is made where it is missing."""
    folder = output.parent if output else PICTURES
    with explain_write_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def say_written(*paths: Path | None) -> None:
    say(f"written: {', '.join(str(path) for path in paths if path)}")
