"""What model_utils.py --audit does: look at all images of a data set, and say which seem wrong."""

import argparse
import contextlib
import dataclasses
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glyphs.core.arrays import Probabilities
from glyphs.core.config import Config
from glyphs.core.errors import DataError
from glyphs.core.files import claim_folder
from glyphs.core.process import say
from glyphs.core.progress import progress
from glyphs.evaluation.audit_checks import check_labels, check_pictures, merge_suspects
from glyphs.evaluation.audit_labels import cross_validate, judge_labels, require_cleanlab
from glyphs.evaluation.audit_report import JUDGING_PAGE, TABLE, write_report_of_audit
from glyphs.evaluation.auditset import AuditSet, load_audit_set, unseen_by
from glyphs.models.runtime import Loaded, load_onnx, load_pth
from glyphs.pictures.plain import with_form

FOLDS = "folds"  # the folder within the output folder where folds that are done are kept


def audit(arguments: argparse.Namespace, given: Mapping[str, Any], config: Config) -> None:
    """Audit a data set without a model, by cross-validation or by the answers of a model, and write the reports."""
    if arguments.folds or arguments.model:
        require_cleanlab()
    if "dataset" not in given and not (Path(config.data_dir) / "EMNIST" / "raw").is_dir():
        config = dataclasses.replace(config, dataset="folder")
    with working_folder(arguments.output) as folder:
        config = dataclasses.replace(config, output_dir=str(folder))
        model: Loaded | None = None
        if arguments.model:
            if arguments.model.suffix.lower() == ".onnx":
                model = load_onnx(arguments.model, config.device)
            else:
                model = load_pth(arguments.model, config.device, arch=config.arch)
            config = with_form(config, model.form)
        images = load_audit_set(config)
        found = check_pictures(images)
        suspects, lines = found.suspects, found.lines
        places = torch.arange(len(images))
        probabilities: Probabilities | None = None
        if model is not None:
            places = unseen_by(model, arguments.model, images, config).nonzero()[:, 0]
            say(f"{arguments.model} judges the {len(places):,} of {len(images):,} images that it was not trained on")
            tell_ancestry(model, arguments.model)
            probabilities = answers_of(model, images, places, config.batch_size)
        elif arguments.folds:
            if len(images) < 2 * arguments.folds:
                raise DataError(f"{config.data_dir}: {len(images)} images are too few for {arguments.folds} folds")
            probabilities = cross_validate(
                images.images,
                images.labels,
                found.groups,
                len(images.class_names),
                arguments.folds,
                config.seed,
                folder / FOLDS,
                fingerprint_of(images, config.seed),
            )
        if probabilities is not None:
            of_labels, about_labels = check_labels(
                images, places, judge_labels(images.labels[places].numpy(), probabilities)
            )
            suspects, lines = suspects + of_labels, lines + about_labels
        summary = "".join(f"{line}\n" for line in lines)
        print(summary, end="")
        if arguments.output:
            write_report_of_audit(folder, images, merge_suspects(suspects), summary)
            say(f"written: {folder / TABLE}; open {folder / JUDGING_PAGE} in a browser to judge what it lists")


@contextlib.contextmanager
def working_folder(output: Path | None) -> Iterator[Path]:
    """The output folder, claimed; or one for the time being where there is none to be."""
    if output is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        with claim_folder(output, "choose another --output"):
            yield output


def tell_ancestry(model: Loaded, path: Path) -> None:
    """Say what else the model's file tells of its training, which may have been on these images."""
    if also := model.facts["metrics"].get("also_trained_on"):
        say(f"note: {path} was also trained on {also}: where these are judged, it takes their labels for right")
    if start := model.facts["settings"].get("finetune"):
        say(f"note: {path} began as {start}, whose own training images are not known here")


def answers_of(model: Loaded, images: AuditSet, places: torch.Tensor, batch_size: int) -> Probabilities:
    """What a model answers for the images at these places: [N, C]."""
    batches = progress(torch.split(places, batch_size), desc="asking the model", unit="batch")
    return np.concatenate([np.asarray(model.network(images.images[rows].numpy()), np.float32) for rows in batches])


def fingerprint_of(images: AuditSet, seed: int) -> str:
    """What tells whether folds that were kept are of these images, labels and seed."""
    checksum = zlib.crc32("".join(images.digests).encode(), zlib.crc32(images.labels.numpy().tobytes()))
    return f"{len(images)} {checksum:08x} {seed}"
