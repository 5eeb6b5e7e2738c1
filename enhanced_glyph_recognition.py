#!/usr/bin/env python3
"""Train and evaluate recognisers of handwritten characters.

python enhanced_glyph_recognition.py --dataset demo --epochs 5     try it: no download, a few minutes
python enhanced_glyph_recognition.py                               EMNIST-Balanced, 47 classes
python enhanced_glyph_recognition.py --resume                      go on with a run that was stopped
python enhanced_glyph_recognition.py --evaluate outputs/best_model.pth
torchrun --nproc-per-node 4 enhanced_glyph_recognition.py          on four GPUs, or four CPU processes
"""

# Only what parsing needs is imported here, so that --help and wrong arguments are answered at once.
import argparse
import contextlib
import dataclasses
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glyphs.commands.settings import add_settings, given_settings, import_public
from glyphs.config import Config, read_config
from glyphs.errors import CheckpointError, ConfigError
from glyphs.process import launched, run, silence

if TYPE_CHECKING:
    import torch

    from glyphs.data.loaders import DataLoaders, TensorLoader
    from glyphs.model import EnhancedGlyphCNN, ViewAverage

# `from enhanced_glyph_recognition import Trainer` and the like, each imported when it is first asked for (PEP 562).
PUBLIC_NAMES = {
    "DepthwiseSeparableConv": "glyphs.model",
    "EarlyStopping": "glyphs.training.early_stopping",
    "EnhancedGlyphCNN": "glyphs.model",
    "Evaluator": "glyphs.evaluation.evaluator",
    "LRFinder": "glyphs.training.lr_finder",
    "ResidualBlock": "glyphs.model",
    "Trainer": "glyphs.training.trainer",
    "get_data_loaders": "glyphs.data.loaders",
    "get_default_config": "glyphs.config",
}

SETTING_GROUPS = {
    "data": ("dataset", "emnist_split", "data_dir", "preprocess", "max_train_images", "val_split"),
    "model": ("use_residual", "dropout_rate", "finetune"),
    "training": (
        "num_epochs",
        "batch_size",
        "learning_rate",
        "scheduler",
        "warmup_epochs",
        "weight_decay",
        "label_smoothing",
        "class_prior",
        "early_stopping_patience",
    ),
    "augmentation": ("rotation_degree", "affine_degree", "translate"),
    "run": ("output_dir", "device", "precision", "seed", "deterministic", "checkpoint_every", "tensorboard"),
}
# What evaluation needs besides training; that one is missing should be known before the training.
EVALUATION_PACKAGES = ("sklearn", "matplotlib", "seaborn")
# What a run writes besides its checkpoints; a new run in the folder of a finished one clears them away.
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


def __getattr__(name: str) -> Any:
    return import_public(__name__, PUBLIC_NAMES, name)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
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
    either.add_argument("--overwrite", action="store_true", help="replace an unfinished run in the output folder")
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
    add_settings(parser, SETTING_GROUPS)
    return parser


def main(argv: list[str] | None = None) -> None:
    if launched() and os.environ["LOCAL_RANK"] != "0":
        silence()  # wrong arguments are the same for all processes
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.lr_finder and (arguments.resume is not None or arguments.evaluate):
        parser.error("--lr-finder belongs to a new run, not to --resume or --evaluate")
    if arguments.lr_finder and launched():
        parser.error("--lr-finder runs in one process: find the rate without torchrun, then give it to --learning-rate")
    if arguments.accept_lr and not arguments.lr_finder:
        parser.error("--accept-lr needs --lr-finder")
    if arguments.evaluate and arguments.skip_eval:
        parser.error("--evaluate and --skip-eval leave nothing to do")
    if arguments.average_views and arguments.skip_eval:
        parser.error("--average-views belongs to the evaluation, which --skip-eval leaves out")
    given = (read_config(arguments.config) if arguments.config else {}) | given_settings(arguments)
    config = Config.from_dict(given)

    from glyphs.distributed import process_group

    with process_group():
        work(arguments, given, config)


def work(arguments: argparse.Namespace, given: dict[str, Any], config: Config) -> None:
    """Do what the arguments ask for, with these settings; `given` are those that are not defaults."""
    from glyphs.data.loaders import get_test_loader
    from glyphs.devices import choose_device, explain_out_of_memory, limit_threads, use_deterministic_algorithms
    from glyphs.distributed import barrier, rank
    from glyphs.files import claim_folder
    from glyphs.model import ViewAverage
    from glyphs.training.checkpoint import load_checkpoint, load_model
    from glyphs.training.trainer import BEST_MODEL, LATEST_CHECKPOINT

    limit_threads()
    output_dir = Path(config.output_dir)
    if arguments.resume:
        output_dir = Path(arguments.resume).parent
        if "output_dir" in given and Path(config.output_dir).resolve() != output_dir.resolve():
            raise ConfigError(f"--output-dir {config.output_dir}: a resumed run stays in {output_dir}; leave it out")
    if arguments.resume is not None:
        resume_from = Path(arguments.resume or output_dir / LATEST_CHECKPOINT)
        if not resume_from.exists():  # else its folder would be made, to lock it
            raise CheckpointError(f"{resume_from}: there is no such checkpoint; check the path, or start a run")
    # Locked before it is read: another process may be about to write it.
    with claim_folder(output_dir) if rank() == 0 else contextlib.nullcontext():
        barrier()
        checkpoint = None
        if arguments.resume is not None:
            checkpoint = load_checkpoint(resume_from)
            config = Config.from_dict(checkpoint["config"]).resumed_with(given | {"output_dir": str(output_dir)})
        elif not (arguments.overwrite or arguments.evaluate):
            refuse_unfinished(output_dir / LATEST_CHECKPOINT)
        use_deterministic_algorithms(config.deterministic)
        device = choose_device(config.device)
        with explain_out_of_memory(config.batch_size):
            if arguments.evaluate:
                path = Path(arguments.evaluate)
                model, trained_with, known = load_model(path)
                config = evaluation_config(trained_with, given)
                test, class_names = get_test_loader(config, device)
            else:
                path = output_dir / BEST_MODEL
                config, data = train(arguments, config, checkpoint, device)
                if rank() == 0:
                    from glyphs.evaluation.calibration import (
                        calibrate_checkpoint,  # not before training: SciPy takes its time
                    )

                    temperature = calibrate_checkpoint(path, data.val, device)
                    say(f"calibrated on the validation images: temperature {temperature:.2f}")
                barrier()  # before the others read it
                if arguments.skip_eval:
                    return
                model, _, known = load_model(path)
                test, class_names = data.test, data.class_names
            if known != class_names:
                raise CheckpointError(
                    f"{path} knows {len(known)} classes ({known[0]} to {known[-1]}), the data has {len(class_names)} "
                    "others; choose the data that it was trained on with --dataset and --split"
                )
            evaluate(ViewAverage(model) if arguments.average_views else model, path, test, class_names, config, device)


def train(
    arguments: argparse.Namespace, config: Config, checkpoint: dict[str, Any] | None, device: "torch.device"
) -> "tuple[Config, DataLoaders]":
    """Train a new model, or go on from a checkpoint; return the settings that the run ended with, and the data."""
    from glyphs.data.loaders import get_data_loaders
    from glyphs.devices import describe_device
    from glyphs.distributed import rank
    from glyphs.model import EnhancedGlyphCNN
    from glyphs.randomness import address, seed_everything
    from glyphs.training.checkpoint import start_from
    from glyphs.training.trainer import LATEST_CHECKPOINT, Trainer

    for package in () if arguments.skip_eval else EVALUATION_PACKAGES:
        if importlib.util.find_spec(package) is None:  # importing them would take two seconds
            raise ModuleNotFoundError(name=package)
    data = get_data_loaders(config, device)
    seed_everything(address(config.seed, "weights"))
    if config.finetune is not None and checkpoint is None:
        model, known = start_from(Path(config.finetune), config, data.class_names)
        say(f"fine-tuning {config.finetune}, which knows {known} of the {len(data.class_names)} classes")
    else:
        model = EnhancedGlyphCNN(len(data.class_names), config.dropout_rate, config.use_residual)
    model.to(device)
    say(
        f"{sum(p.numel() for p in model.parameters()):,} parameters on {describe_device(device)}; "
        f"{len(data.train.index):,} training, {len(data.val.index):,} validation and {len(data.test.index):,} "
        f"test images of {len(data.class_names)} classes"
    )
    output_dir = Path(config.output_dir)
    if arguments.lr_finder:
        config = find_learning_rate(model, data, config, ask=not arguments.accept_lr)
    if checkpoint is None and rank() == 0:
        clear_reports(output_dir, keep="lr_finder.png" if arguments.lr_finder else None)
    trainer = Trainer(model, data.train, data.val, config, data.class_names)
    if checkpoint is not None:
        try:
            trainer.resume(checkpoint)
        except CheckpointError as error:
            raise CheckpointError(f"{arguments.resume or output_dir / LATEST_CHECKPOINT}: {error}") from None
        say(f"resumed after epoch {trainer.epoch}, step {trainer.step} of {trainer.num_steps}")
    history = trainer.fit()
    if not arguments.skip_eval and rank() == 0:
        from glyphs.plots import plot_training_history

        plot_training_history(history, output_dir / "training_history.png")
    return config, data


def refuse_unfinished(latest: Path) -> None:
    """Raise ConfigError if there is a checkpoint, of a run that could go on."""
    from glyphs.training.checkpoint import load_checkpoint
    from glyphs.training.trainer import is_finished

    if not latest.exists():
        return
    try:
        checkpoint = load_checkpoint(latest)
        epoch, epochs = checkpoint["training"]["epoch"], checkpoint["config"]["num_epochs"]
    except (CheckpointError, KeyError):
        raise ConfigError(f"{latest}: cannot be read as a checkpoint; --overwrite starts anew") from None
    if not is_finished(checkpoint):
        raise ConfigError(
            f"{latest.parent} holds an unfinished run ({epoch} of {epochs} epochs done): --resume goes on with it, "
            "--overwrite replaces it, another --output-dir keeps both"
        )


def clear_reports(output_dir: Path, keep: str | None) -> None:
    """Remove what an earlier run left, so that nobody takes its reports for those of the new one."""
    from glyphs.training.trainer import BEST_MODEL, LATEST_CHECKPOINT

    names = [name for name in (LATEST_CHECKPOINT, BEST_MODEL, *REPORTS) if name != keep]
    found = [path for name in names if (path := output_dir / name).exists()]
    if found:
        say(f"the new run replaces the one in {output_dir}")
    for path in found:
        path.unlink()


def find_learning_rate(model: "EnhancedGlyphCNN", data: "DataLoaders", config: Config, *, ask: bool) -> Config:
    """Run the range test; return the settings with its suggestion, or as they were where the user rejects it."""
    from glyphs.plots import plot_lr_finder
    from glyphs.training.loss import make_criterion
    from glyphs.training.lr_finder import LRFinder
    from glyphs.training.trainer import make_optimizer

    criterion = make_criterion(config, data.train, len(data.class_names)).to(data.train.device)
    finder = LRFinder(model, make_optimizer(model, config), criterion)
    found = finder.range_test(data.train, seed=config.seed)
    path = Path(config.output_dir) / "lr_finder.png"
    plot_lr_finder(found.learning_rates, found.losses, found.suggestion, path)
    say(f"suggested learning rate: {found.suggestion:.2g} (see {path}); set: {config.learning_rate:.2g}")
    how = " without asking"
    if ask and sys.stdin.isatty():
        print("accept it? [Y/n] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().lower() not in ("\n", "y\n", "yes\n"):  # the end of the input is no yes
            say(f"rejected: training with {config.learning_rate:.2g}")
            return config
        how = ""
    say(f"accepted{how}: training with {found.suggestion:.2g}")
    return dataclasses.replace(config, learning_rate=found.suggestion)


def evaluation_config(trained_with: Config, given: dict[str, Any]) -> Config:
    """The settings to evaluate a checkpoint with: those of its own data set, unless others are given."""
    # The seed too: it decides which pictures of a folder were held out.
    same = {name: getattr(trained_with, name) for name in ("dataset", "emnist_split", "preprocess", "seed")}
    return Config.from_dict(same | given)


def evaluate(
    model: "EnhancedGlyphCNN | ViewAverage",
    path: Path,
    loader: "TensorLoader",
    class_names: list[str],
    config: Config,
    device: "torch.device",
) -> None:
    """Measure the model of a checkpoint on the test images, and write the reports into the output folder."""
    from glyphs.distributed import rank
    from glyphs.evaluation.evaluator import Evaluator
    from glyphs.evaluation.reports import write_reports

    split = config.emnist_split if config.dataset == "emnist" else config.dataset
    evaluation = Evaluator(model, class_names, device).evaluate(loader)
    if rank() > 0:
        return
    metrics = write_reports(evaluation, Path(config.output_dir), split=split, checkpoint=str(path))
    print(
        f"test accuracy {metrics['accuracy']:.2%} on {metrics['n']:,} images "
        f"(macro {metrics['macro_accuracy']:.2%}, top-5 {metrics['top5_accuracy']:.2%}, "
        f"look-alikes merged {metrics['merged_accuracy']:.2%}, loss {metrics['loss']:.3f}, "
        f"calibration error {metrics['ece']:.3f})"
    )
    say(f"reports and plots are in {config.output_dir}")


def say(text: str) -> None:
    print(text, file=sys.stderr)


def command() -> int:
    """The installed command: what running this file does."""
    return run(main)


if __name__ == "__main__":
    sys.exit(command())
