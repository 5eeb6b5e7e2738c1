"""The learning rate over a run."""

import math

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from glyphs.core.config import Config

PLATEAU_PATIENCE = 3  # epochs without a better validation loss before the plateau schedule lowers the rate
LONGEST_WARMUP = 0.2  # of the run, so that a run of two epochs is not all warm-up


def cosine_with_warmup(progress: float, warmup: float) -> float:
    """The share of the highest learning rate at a point of the run.

    Rises linearly from 0 over the first `warmup` of the run, then falls to 0 along half a cosine (arXiv 1608.03983);
    both arguments are fractions of the run.
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def make_scheduler(optimizer: torch.optim.Optimizer, config: Config, steps: int) -> LRScheduler:
    """The schedule that the settings name, for epochs of so many steps."""
    if config.scheduler == "plateau":
        return ReduceLROnPlateau(optimizer, patience=PLATEAU_PATIENCE)
    warmup = min(config.warmup_epochs / config.num_epochs, LONGEST_WARMUP)
    total = config.num_epochs * steps
    # Counted so that neither the first nor the last step has a rate of exactly 0, and is wasted.
    return LambdaLR(optimizer, lambda step: cosine_with_warmup((step + 1) / (total + 1), warmup))
