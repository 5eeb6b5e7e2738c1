"""What enhanced_glyph_recognition.py does: train, calibrate and evaluate, or go on with a run, or only evaluate."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from glyphs.commands.runs import drop_replaced, refuse_place, refuse_run, set_aside
from glyphs.commands.settings import as_flags, naming_flags
from glyphs.commands.terminal import show_log
from glyphs.core.config import Config
from glyphs.core.devices import (
    choose_device,
    describe_device,
    explain_out_of_memory,
    limit_threads,
    use_deterministic_algorithms,
)
from glyphs.core.distributed import barrier, process_group, rank
from glyphs.core.errors import CheckpointError, ConfigError
from glyphs.core.files import claim_folder
from glyphs.core.process import PLOTTING_PACKAGES, require_packages, say
from glyphs.core.randomness import address, seed_everything
from glyphs.data.loaders import DataLoaders, get_data_loaders, get_test_loader, settled
from glyphs.models.architecture import make_model, require_arch
from glyphs.models.checkpoint import BEST_MODEL, LATEST_CHECKPOINT, lineage, load_checkpoint, load_model, start_from
from glyphs.models.network import EnhancedGlyphCNN, as_bytes
from glyphs.pictures.plain import form_of, to_pictures
from glyphs.training.callbacks import require_tensorboard
from glyphs.training.chance import near_chance
from glyphs.training.follow import follow_data
from glyphs.training.loss import make_criterion
from glyphs.training.lr_finder import LRFinder
from glyphs.training.trainer import Trainer, make_optimizer

BATCH, SHOWN_IMAGES = "batch.png", 64  # where the first batch is drawn, and how much of it
FAR = 10  # times: a learning rate that much above or below the one set is worth a word
EVALUATION_PACKAGES = ("sklearn", *PLOTTING_PACKAGES)


def train_or_evaluate(arguments: argparse.Namespace, given: dict[str, Any], config: Config) -> None:
    """Do what the arguments ask for, with these settings; `given` are those that are not defaults."""
    show_log()
    with process_group():
        limit_threads()
        if arguments.evaluate:
            evaluate_only(arguments, given)
        else:
            train_then_evaluate(arguments, given, config)


def evaluate_only(arguments: argparse.Namespace, given: dict[str, Any]) -> None:
    from glyphs.commands.evaluate import evaluate, evaluation_config  # not where only training is asked for

    path = Path(arguments.evaluate)
    model, trained_with, known = load_model(path, given.get("arch"))
    config = evaluation_config(path, trained_with, given)
    with claimed(Path(config.output_dir)), explain_out_of_memory(config.batch_size):
        use_deterministic_algorithms(config.deterministic)
        device = choose_device(config.device)
        test, class_names = get_test_loader(config, device)
        evaluate(model, known, path, test, class_names, config, device, average_views=arguments.average_views)


def train_then_evaluate(arguments: argparse.Namespace, given: dict[str, Any], config: Config) -> None:
    output_dir = Path(config.output_dir)
    if arguments.resume:
        output_dir = Path(arguments.resume).parent
        if "output_dir" in given and Path(config.output_dir).resolve() != output_dir.resolve():
            raise ConfigError(f"--output-dir {config.output_dir}: a resumed run stays in {output_dir}; leave it out")
    if arguments.resume is not None:
        resume_from = Path(arguments.resume or output_dir / LATEST_CHECKPOINT)
        if not resume_from.exists():  # else its folder would be made, to lock it
            raise CheckpointError(f"{resume_from}: there is no such checkpoint; check the path, or start a run")
    else:
        refuse_place(config)
    with claimed(output_dir):
        if arguments.show_batch:
            show_batch(config)
            return
        checkpoint = None
        if arguments.resume is not None:
            checkpoint = load_checkpoint(resume_from)
            config = Config.from_dict(checkpoint["config"])
            require_arch(config.arch, given.get("arch"), resume_from)
            with naming_flags(given):
                config = config.resumed_with(given | {"output_dir": str(output_dir)})
        elif not arguments.overwrite:
            refuse_run(output_dir)
        use_deterministic_algorithms(config.deterministic)
        device = choose_device(config.device)
        with explain_out_of_memory(config.batch_size):
            config, data = train(arguments, given, config, checkpoint, device)
            path = output_dir / BEST_MODEL
            if rank() == 0:
                from glyphs.evaluation.calibration import calibrate_checkpoint  # SciPy: not before training

                temperature = calibrate_checkpoint(path, data.val, device, config.arch)
                say(f"calibrated: {temperature}")
                drop_replaced(output_dir)
            barrier()  # before the others read it
            if arguments.skip_eval:
                say(f"the model is {path}; --evaluate {path} measures it, inference.py --model {path} reads with it")
                return
            from glyphs.commands.evaluate import evaluate  # not where only training is asked for

            model, _, known = load_model(path, config.arch)
            evaluate(
                model, known, path, data.test, data.class_names, config, device, average_views=arguments.average_views
            )


def show_batch(config: Config) -> None:
    """Draw the first images to train on, as the training will see them."""
    from glyphs.output.plots import plot_batch  # matplotlib: not before training

    config = settled(config)
    data = get_data_loaders(config)
    images, labels = next(iter(data.train))
    path = Path(config.output_dir) / BATCH
    pixels = to_pictures(as_bytes(images[:SHOWN_IMAGES]).numpy())
    names = [data.class_names[label] for label in labels[:SHOWN_IMAGES]]
    mirrored = "mirrored too" if config.mirror else "not mirrored, as symbols may mean something else then (--mirror)"
    form = form_of(config.to_dict())
    plot_batch(pixels, names, f"Images of {form.words}, as training sees them", path)
    say(f"drawn: {path}; {mirrored if form.mode == 'plain' else 'characters are turned, slanted, resized and shifted'}")


@contextlib.contextmanager
def claimed(output_dir: Path) -> Iterator[None]:
    """Lock the folder, before anything in it is read: another process may be about to write it."""
    with claim_folder(output_dir) if rank() == 0 else contextlib.nullcontext():
        barrier()
        yield


def train(
    arguments: argparse.Namespace,
    given: dict[str, Any],
    config: Config,
    checkpoint: dict[str, Any] | None,
    device: torch.device,
) -> tuple[Config, DataLoaders]:
    """Train a new model, or go on from a checkpoint; return the settings that the run ended with, and the data."""
    require_packages("scipy", *(() if arguments.skip_eval else EVALUATION_PACKAGES))
    if arguments.lr_finder:
        require_packages(*PLOTTING_PACKAGES)
    if config.tensorboard:
        require_tensorboard()
    config = settled(config)
    data = get_data_loaders(config, device)
    num_images = len(data.train.index) // config.passes_per_epoch
    if config.dataset == "folder" and checkpoint is None:
        own, followed = follow_data(config, given, num_images, len(data.class_names))
        data = data.in_batches(config, own)
        config = own
        if followed:
            say(f"for {num_images:,} training images: {as_flags(followed)} (what you set yourself stays)")
    seed_everything(address(config.seed, "weights"))
    model: nn.Module
    ancestors: list[dict[str, Any]] = []
    if config.finetune is not None and checkpoint is None:
        model, known = start_from(Path(config.finetune), config, data.class_names)
        ancestors = lineage(Path(config.finetune))
        say(f"fine-tuning {config.finetune}, which knows {known} of the {len(data.class_names)} classes")
    else:
        model = make_model(config, len(data.class_names))
        if isinstance(model, EnhancedGlyphCNN) and form_of(config.to_dict()).mode == "plain":
            model.normalise_by(*data.train.statistics())
    model.to(device)
    say(
        f"{sum(p.numel() for p in model.parameters()):,} parameters on {describe_device(device)}; "
        f"{num_images:,} training, {len(data.val.index):,} validation and {len(data.test.index):,} "
        f"test images of {len(data.class_names)} classes"
    )
    output_dir = Path(config.output_dir)
    if checkpoint is None and rank() == 0:
        set_aside(output_dir)
    if arguments.lr_finder:
        config = find_learning_rate(model, data, config, ask=not arguments.accept_lr)
    trainer = Trainer(model, data.train, data.val, config, data.class_names, ancestors=ancestors)
    if checkpoint is not None:
        try:
            trainer.resume(checkpoint)
        except CheckpointError as error:
            raise CheckpointError(f"{arguments.resume or output_dir / LATEST_CHECKPOINT}: {error}") from None
        say(f"resumed after epoch {trainer.epoch}, step {trainer.step} of {trainer.num_steps}")
    history = trainer.fit()
    best = trainer.early_stopping.best
    counts = data.val.class_counts(len(data.class_names))
    uniform = config.class_prior == "uniform"
    if words := near_chance(best["val_accuracy"], history[-1]["train_accuracy"], counts, uniform=uniform):
        say(f"warning: {words}")
    if not arguments.skip_eval and rank() == 0:
        from glyphs.output.plots import plot_training_history  # matplotlib: not before training

        plot_training_history(history, output_dir / "training_history.png")
    return config, data


def find_learning_rate(model: nn.Module, data: DataLoaders, config: Config, *, ask: bool) -> Config:
    """Run the range test; return the settings with its suggestion, or as they were where the user rejects it."""
    criterion = make_criterion(config, data.train, len(data.class_names)).to(data.train.device)
    finder = LRFinder(model, make_optimizer(model, config), criterion, config.precision)
    found = finder.range_test(data.train, seed=config.seed)
    path = Path(config.output_dir) / "lr_finder.png"
    found.plot(path)
    say(f"suggested learning rate: {found.suggestion:.2g} (see {path}); set: {config.learning_rate:.2g}")
    how = " without asking"
    if ask and sys.stdin.isatty():
        if not confirmed("accept it?"):
            say(f"rejected: training with {config.learning_rate:.2g}")
            return config
        how = ""
    times = found.suggestion / config.learning_rate
    say(
        f"accepted{how}: training with {found.suggestion:.2g}"
        + ("" if 1 / FAR < times < FAR else f", {times:.2g} times the one set: compare with a run without --lr-finder")
    )
    return dataclasses.replace(config, learning_rate=found.suggestion)


def confirmed(question: str) -> bool:
    """Ask until there is an answer; Enter is yes, and the end of the input is no."""
    while True:
        print(f"{question} [Y/n] ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
        if answer.strip().lower() in ("n", "no") or not answer:
            return False
        if answer.strip().lower() in ("", "y", "yes"):
            return True
