"""The folder of a run: what lies in it, and that nothing in it goes without its user's word."""

import contextlib
import itertools
import json
import os
from pathlib import Path

from glyphs.core.config import Config
from glyphs.core.errors import CheckpointError, ConfigError
from glyphs.core.files import explain_write_error, replace_file, unused
from glyphs.core.process import say
from glyphs.data.layout import part_folders
from glyphs.models.checkpoint import BEST_MODEL, LATEST_CHECKPOINT, is_finished, load_checkpoint

# What a run writes besides its checkpoints and config.json; --overwrite takes them out of the way of the new run.
REPORTS = (
    "history.csv",
    "training_history.png",
    "lr_finder.png",
    "metrics.json",
    "classification_report.txt",
    "misclassification_analysis.txt",
    "confusion_matrix.png",
    "confusion_matrix_normalized.png",
    "per_class_accuracy.png",
    "reliability_diagram.png",
    "misclassified.png",
)
RUN_FILES = (LATEST_CHECKPOINT, BEST_MODEL, "config.json", *REPORTS)
RECORD = "replaced.json"  # in it: which folder it is, and what was put there
REPLACED = "replaced"  # the folder within the output folder where an overwritten run waits for its successor


def refuse_run(output_dir: Path) -> None:
    """Raise ConfigError if the folder holds a run, finished or not: what took so long goes only if the user says so."""
    latest = output_dir / LATEST_CHECKPOINT
    if not latest.exists() and not (output_dir / BEST_MODEL).exists():
        return
    other = next(path for number in itertools.count(2) if not (path := output_dir / f"run{number}").exists())
    remedy = f"--overwrite replaces it, --output-dir {other} keeps both"
    if latest.exists():
        try:
            checkpoint = load_checkpoint(latest)
            epoch, epochs = checkpoint["training"]["epoch"], checkpoint["config"]["num_epochs"]
        except (CheckpointError, KeyError):
            raise ConfigError(f"{latest}: cannot be read as a checkpoint; {remedy}") from None
        if not is_finished(checkpoint):
            raise ConfigError(
                f"{output_dir} holds an unfinished run ({epoch} of {epochs} epochs done): --resume goes on with it, "
                f"{remedy}"
            )
    raise ConfigError(f"{output_dir} holds a finished run: {remedy}")


def refuse_place(config: Config) -> None:
    """Raise ConfigError if the output folder would be a class of the data set, or lie in one."""
    data = Path(config.data_dir)
    if config.dataset != "folder":
        return
    roots = (part_folders(data).values() if data.is_dir() else ()) or [data]
    output = Path(os.path.realpath(config.output_dir))  # Path.resolve raises where links go in circles
    if any(output.is_relative_to(os.path.realpath(root)) for root in roots):
        raise ConfigError(
            f"--output-dir {config.output_dir}: lies among the classes in {data}, and would be read as one more; "
            "choose another"
        )


def set_aside(output_dir: Path) -> None:
    """Move what would be written over into a folder of its own.

    An earlier run goes when the new one is trained, not before.  Without a checkpoint among them nobody knows that the
    files are a run's: they stay there.
    """
    found = [path for name in RUN_FILES if (path := output_dir / name).exists()]
    if not found:
        return
    # Where two new runs in a row did not come to their end, both runs that they were to replace are still there.
    aside = unused(output_dir / REPLACED)
    with explain_write_error(aside):
        aside.mkdir()
        is_run = any(path.name in (LATEST_CHECKPOINT, BEST_MODEL) for path in found)
        if is_run:
            record = {"folder": aside.name, "files": [path.name for path in found]}
            replace_file(aside / RECORD, json.dumps(record, indent=2).encode())
        for path in found:
            path.rename(aside / path.name)
    if is_run:
        say(f"the earlier run is in {aside} until the new one is trained")
    else:
        say(f"what lay in {output_dir} under names that a run writes ({found[0].name}, ...) is now in {aside}")


def drop_replaced(output_dir: Path) -> None:
    """Remove the runs that this one, now whole, replaces: what `set_aside` has put where its record still lies.

    A folder that was renamed or copied since, to keep it, is its user's, and so is what has come into one since.
    """
    for folder in output_dir.glob(f"{REPLACED}*"):
        try:
            record = json.loads((folder / RECORD).read_bytes())
            own = set(record["files"]) if record["folder"] == folder.name else None
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if own is not None:
            for name in own.intersection(RUN_FILES) | {RECORD}:
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds something else
                folder.rmdir()
