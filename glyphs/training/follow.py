"""Settings that follow from how much there is to train on, where their user says nothing.

The defaults are EMNIST's, of a hundred thousand images.  With them 140 pictures get two steps an epoch, stop while the
rate still rises, and meet a network of 3.4 million weights.  `benchmarks/small_data.py` compares what stands here with
them, with settings tuned by hand and with other methods.
"""

import dataclasses
from collections.abc import Container
from typing import Any

from glyphs.core.config import Config

FEW = 20_000  # images to train on; at this number and above EMNIST's settings stay
BATCH_SIZE = 32
LIGHT_RATE = 0.01  # of the light network, which bears ten times the rate of the other
EPOCH_STEPS = 40  # of an epoch, about: batch norm's statistics have then forgotten 98 % of what they were before it
EPOCH_VIEWS = 10  # of each class in an epoch, at least: with 500 classes the validation loss fell late
PATIENCE_STEPS = 2000  # without a better validation loss, which a few pictures tell only roughly


def follow_data(
    config: Config, given: Container[str], num_images: int, num_classes: int
) -> tuple[Config, dict[str, Any]]:
    """The settings, and those of them that were not `given` and are now what suits so many images of so many classes.

    Steps and warm-up are counted in epochs: that an epoch has steps enough, by going over the images more than once,
    sees to both.  The network follows with its learning rate, unless it is the user's own or has weights already.
    """
    if num_images >= FEW:
        return config, {}
    own: dict[str, Any] = {}
    if "batch_size" not in given:
        own["batch_size"] = BATCH_SIZE
    if "use_residual" not in given and config.finetune is None and config.arch is None:
        own["use_residual"] = False
        if "learning_rate" not in given:
            own["learning_rate"] = LIGHT_RATE
    batch_size = own.get("batch_size", config.batch_size)
    if "passes_per_epoch" not in given:
        views = max(EPOCH_STEPS * batch_size, EPOCH_VIEWS * num_classes)
        own["passes_per_epoch"] = max(1, round(views / num_images))
    passes = own.get("passes_per_epoch", config.passes_per_epoch)
    if "early_stopping_patience" not in given:
        epochs = round_up(PATIENCE_STEPS, round_up(passes * num_images, batch_size))
        own["early_stopping_patience"] = max(config.early_stopping_patience, epochs)
    return dataclasses.replace(config, **own), own


def round_up(whole: int, part: int) -> int:
    """How many parts make the whole, at least."""
    return -(-whole // part)
