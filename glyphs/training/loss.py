"""The loss: cross-entropy with label smoothing, for the class prior that is asked for."""

import torch.nn.functional as F
from torch import Tensor, nn

from glyphs.core.config import Config
from glyphs.core.errors import ConfigError
from glyphs.core.protocols import Counted, Loader


class LogitAdjustedLoss(nn.CrossEntropyLoss):
    """Cross-entropy of logits to which the logarithm of each class's share of the data is added.

    What the data's frequencies explain, the model then need not: its own logits are those of a uniform prior
    (Menon et al., arXiv 2007.07314, equation 10).

    Labels are smoothed towards the prior.  At the loss's optimum the model's own probabilities are as the target over
    the prior: smoothed towards the uniform distribution, the rarest class would have the highest of them everywhere.

    Parameters
    ----------
    class_counts : [C], training images of each class.
    label_smoothing : share of the target that is spread over the classes, in proportion to their counts.
    """

    def __init__(self, class_counts: Tensor, label_smoothing: float) -> None:
        super().__init__(label_smoothing=label_smoothing)
        self.log_prior: Tensor
        counts = class_counts.cpu().double().clamp(min=1)  # Apple's GPUs have no float64
        self.register_buffer("log_prior", (counts / counts.sum()).log().float())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_probabilities = (logits + self.log_prior).log_softmax(dim=1)
        by_label = F.nll_loss(log_probabilities, labels)
        by_prior = -(log_probabilities @ self.log_prior.exp()).mean()
        return (1 - self.label_smoothing) * by_label + self.label_smoothing * by_prior


def make_criterion(config: Config, train_loader: Loader, num_classes: int) -> nn.CrossEntropyLoss:
    """Cross-entropy with label smoothing (arXiv 1512.00567, section 7), for the class prior that the settings name.

    Raises
    ------
    ConfigError : the prior is to be uniform, but the loader does not know how many images a class has.
    """
    if config.class_prior == "data":
        return nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    if not isinstance(train_loader, Counted):
        raise ConfigError(
            "class_prior 'uniform' needs a training loader with a method class_counts(num_classes); add one, or "
            "choose 'data'"
        )
    return LogitAdjustedLoss(train_loader.class_counts(num_classes), config.label_smoothing)
