"""EarlyStopping: when the validation loss has stopped falling."""

import copy
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class EarlyStopping:
    """Tell when the validation loss has stopped falling, and keep the weights that had the lowest."""

    def __init__(self, patience: int = 10) -> None:
        self.patience = patience
        self.best_loss = math.inf
        self.epochs_without_gain = 0
        self.best_weights: dict[str, Tensor] | None = None

    @property
    def should_stop(self) -> bool:
        return self.epochs_without_gain >= self.patience

    def update(self, val_loss: float, model: nn.Module) -> None:
        """Take note of an epoch's validation loss; keep a copy of the weights where it is the lowest so far."""
        if val_loss < self.best_loss:
            self.best_loss = val_loss
            self.epochs_without_gain = 0
            self.best_weights = copy.deepcopy(model.state_dict())
        else:
            self.epochs_without_gain += 1

    def restore(self, model: nn.Module) -> None:
        """Put the best weights back into the model."""
        if self.best_weights is not None:
            model.load_state_dict(self.best_weights)

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "patience"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
