"""The evaluation of a checkpoint on the test images, with its reports; imports what training can do without."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from glyphs.core.config import Config
from glyphs.core.distributed import rank
from glyphs.core.errors import ConfigError
from glyphs.core.process import say
from glyphs.data.loaders import TensorLoader
from glyphs.data.overlap import overlaps
from glyphs.evaluation.evaluator import Evaluator
from glyphs.evaluation.reports import write_reports
from glyphs.models.checkpoint import BEST_MODEL, ancestors_of, load_checkpoint, require_classes, weights_digest
from glyphs.models.network import ViewAverage
from glyphs.pictures.plain import form_of


def evaluation_config(path: Path, trained_with: Config, given: dict[str, Any]) -> Config:
    """The settings to evaluate a checkpoint with: those of its own data set and folder, unless others are given.

    The reports of a run's best model on its own data lie with it; all others in a folder that is named after the
    checkpoint, beside it.

    Raises
    ------
    ConfigError : the reports would go where those of another run are.
    """
    # The seed too: it decides which pictures of a folder were held out.
    same = {
        name: getattr(trained_with, name)
        for name in ("dataset", "emnist_split", "preprocess", "image_size", "color", "seed")
    }
    own = same | ({"data_dir": trained_with.data_dir} if trained_with.dataset == "folder" else {})
    own_data = all(given.get(name, value) == value for name, value in own.items())
    of_its_run = path.name == BEST_MODEL and own_data
    folder = path.parent if of_its_run else path.with_name(f"{path.stem}-evaluation")
    config = Config.from_dict(same | {"output_dir": str(folder)} | given)
    there = Path(config.output_dir) / BEST_MODEL
    if there.exists() and not (of_its_run and there.samefile(path)):
        raise ConfigError(
            f"{config.output_dir} holds the reports of another run, or on other data; choose another --output-dir, "
            f"or leave it out: then they go to {folder}"
        )
    return config


def evaluate(
    model: nn.Module,
    known: list[str],
    path: Path,
    loader: TensorLoader,
    class_names: list[str],
    config: Config,
    device: torch.device,
    *,
    average_views: bool,
) -> None:
    """Measure the model of a checkpoint on the test images, and write the reports into the output folder."""
    require_classes(known, class_names, path)
    content = load_checkpoint(path)
    doubts = overlaps(content["config"], ancestors_of(content), config)
    for words in doubts:
        say(f"warning: {path} {words}")
    views = ViewAverage(model, form_of(config.to_dict()).edge) if average_views else model
    evaluation = Evaluator(views, class_names, device).evaluate(loader)
    if rank() > 0:
        return
    metrics = write_reports(
        evaluation,
        Path(config.output_dir),
        split=config.data_name,
        checkpoint=str(path),
        weights=weights_digest(model.state_dict()),
        doubts=doubts,
    )
    on = f"{metrics['n']:,} images"
    if evaluation.refused:
        every = evaluation.refused + len(evaluation.labels)
        on += f", {metrics['accuracy_with_refused']:.2%} of all {every:,}, the {evaluation.refused:,} refused as wrong,"
    print(
        f"test accuracy {metrics['accuracy']:.2%} on {on} "
        f"(macro {metrics['macro_accuracy']:.2%}, top-5 {metrics['top5_accuracy']:.2%}, "
        f"look-alikes merged {metrics['merged_accuracy']:.2%}, loss {metrics['loss']:.3f}, "
        f"calibration error {metrics['ece']:.3f})"
    )
    say(f"reports and plots are in {config.output_dir}")
