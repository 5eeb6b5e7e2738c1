"""Whether a training ended no better than guessing, and what may help."""

import math

from torch import Tensor

DEVIATIONS = 2.0  # standard deviations of guessing: what is below may be luck


def near_chance(val_accuracy: float, train_accuracy: float, counts: Tensor, *, uniform: bool = False) -> str | None:
    """A sentence about a model whose validation accuracy could be had by guessing, and a remedy; None of others.

    Parameters
    ----------
    val_accuracy, train_accuracy : from 0 to 1.
    counts : int64 [C], validation images of each class.
    uniform : these accuracies are means over the classes.
    """
    images = int(counts.sum())
    # By always answering the commonest class, which a mean over the classes does not reward.
    guess = 1 / int((counts > 0).sum()) if uniform else float(counts.max()) / images
    luck = guess + DEVIATIONS * math.sqrt(guess * (1 - guess) / images)
    if val_accuracy >= min(luck, 1.0):
        return None
    if train_accuracy < (1 + guess) / 2:
        remedy = "it has hardly learned its training images either: try --lr-finder or more --epochs"
    else:
        remedy = "it knows its training images: add more pictures of each class, and look whether their labels fit"
    return (
        f"the model is near chance: {val_accuracy:.1%} of {images:,} validation images are right, where one answer for "
        f"all has {guess:.1%}; {remedy}"
    )
