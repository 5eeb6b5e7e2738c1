"""EarlyStopping: when the validation loss has stopped falling, and which weights of the run are the best."""

import copy
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class EarlyStopping:
    """Tell when the validation loss has stopped falling, and keep the best weights.

    The best weights are those with the highest validation accuracy.  Accuracies that the validation images are too few
    to tell apart are a tie, which the lower loss decides: of 13 images all are soon right by luck, long before the
    network has learned what it can.  Where no accuracy is given, the loss alone decides.

    Parameters
    ----------
    patience : stop after this many epochs without a lower loss.

    Attributes
    ----------
    best : of the best weights: `val_loss`, `val_accuracy` and what else was said of them.
    """

    def __init__(self, patience: int = 10) -> None:
        self.patience = patience
        self.best_loss = math.inf
        self.epochs_without_gain = 0
        self.best_accuracy = -math.inf
        self.best: dict[str, float] = {}
        self.best_weights: dict[str, Tensor] | None = None

    @property
    def should_stop(self) -> bool:
        return self.epochs_without_gain >= self.patience

    def update(
        self, val_loss: float, model: nn.Module, val_accuracy: float = 1.0, images: float = math.inf, **more: float
    ) -> bool:
        """Take note of an epoch; keep a copy of its weights, and return True, where they are the best so far.

        Parameters
        ----------
        images : that the accuracy is a mean over; by default any difference counts.
        more : what else to remember of the epoch.
        """
        if val_loss < self.best_loss:
            self.best_loss = val_loss
            self.epochs_without_gain = 0
        else:
            self.epochs_without_gain += 1
        self.best_accuracy = max(self.best_accuracy, val_accuracy)
        as_good = self.best_accuracy - indistinct(self.best_accuracy, images)

        def goodness(accuracy: float, loss: float) -> tuple[float, float]:
            return min(accuracy, as_good), -loss

        if self.best and goodness(val_accuracy, val_loss) <= goodness(self.best["val_accuracy"], self.best["val_loss"]):
            return False
        self.best = {"val_loss": val_loss, "val_accuracy": val_accuracy, **more}
        self.best_weights = copy.deepcopy(model.state_dict())
        return True

    def restore(self, model: nn.Module) -> None:
        """Put the best weights back into the model."""
        if self.best_weights is not None:
            model.load_state_dict(self.best_weights)

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "patience"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)


def indistinct(accuracy: float, images: float) -> float:
    """How much lower than this an accuracy on so many images may be by chance: a standard error, one image at least.

    Wrong answers are rare, so that their count varies by its square root, as Poisson's distribution does.
    """
    return math.sqrt((1 - accuracy) * images + 1) / images if math.isfinite(images) else 0.0
