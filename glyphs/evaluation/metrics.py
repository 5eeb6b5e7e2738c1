"""Figures of an evaluation: accuracies, calibration, look-alikes merged."""

import functools
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from glyphs.core.intervals import wilson_interval

TOP_K = 5
CALIBRATION_BINS = 15  # as in arXiv 1706.04599
LOOK_ALIKES = ("0Oo", "1Il", "5Ss", "2Zz", "9gq")  # characters that often nobody can tell apart out of context


@dataclass(frozen=True)
class Evaluation:
    """What a model said about a test set; everything else is derived from it.  All tensors are on the CPU.

    Attributes
    ----------
    class_names : the C classes.
    logits : float32 [N, C].
    labels : int64 [N], the true classes.
    mistake_images : uint8 [M, 1, H, W], the images of `mistakes`; None where images differ in size.
    temperature : what the model had divided its logits by.
    refused : pictures of the test set besides these that were never shown to the model, since their preparation found
        no single character in them, or could not read them.
    """

    class_names: list[str]
    logits: Tensor
    labels: Tensor
    mistake_images: Tensor | None
    temperature: float = 1.0
    refused: int = 0

    @functools.cached_property
    def probabilities(self) -> Tensor:
        """float64 [N, C]; each row sums to 1."""
        return self.logits.double().softmax(dim=1)

    @functools.cached_property
    def predictions(self) -> Tensor:
        """int64 [N]: the likeliest class of each image."""
        return self.logits.argmax(dim=1)

    @functools.cached_property
    def confidences(self) -> Tensor:
        """float64 [N]: the probability of the predicted class."""
        return self.probabilities.gather(1, self.predictions[:, None]).squeeze(1)

    @functools.cached_property
    def uncalibrated_confidences(self) -> Tensor:
        """float64 [N]: the confidences without the temperature."""
        return (self.logits.double() * self.temperature).softmax(dim=1).amax(dim=1)

    @functools.cached_property
    def mistakes(self) -> Tensor:
        """int64 [M]: the places of the images that were classified wrongly, ascending."""
        return (self.predictions != self.labels).nonzero().squeeze(1)

    @functools.cached_property
    def confusion(self) -> Tensor:
        """int64 [C, C]: images of the row's class that were taken for the column's."""
        size = len(self.class_names)
        cells = self.labels * size + self.predictions
        return torch.bincount(cells, minlength=size * size).reshape(size, size)

    @functools.cached_property
    def class_counts(self) -> Tensor:
        """int64 [C]: images of each class."""
        return self.confusion.sum(dim=1)

    @functools.cached_property
    def class_accuracies(self) -> Tensor:
        """float64 [C]: the part of each class's images that were classified correctly; NaN without any."""
        return self.confusion.diagonal().double() / self.class_counts

    @property
    def accuracy(self) -> float:
        """The part of all images that were classified correctly."""
        return 1 - len(self.mistakes) / len(self.labels)

    @property
    def accuracy_with_refused(self) -> float:
        """The same of all pictures, those that were refused counted as wrong."""
        return (len(self.labels) - len(self.mistakes)) / (len(self.labels) + self.refused)

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """The accuracy's 95 % interval (Wilson 1927)."""
        return wilson_interval(len(self.labels) - len(self.mistakes), len(self.labels))

    @property
    def accuracy_standard_error(self) -> float:
        """The binomial one: how far chance alone moves the accuracy between test sets like this."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.labels))


def merge_classes(class_names: Sequence[str], groups: Sequence[str]) -> list[int]:
    """For each class the first class that is in a group with it, or itself.

    A letter that is no class of its own stands for its capital, which then means both.
    """
    merged = list(range(len(class_names)))
    place = {name: at for at, name in enumerate(class_names)}
    for group in groups:
        members = sorted({place[name] for c in group for name in (c if c in place else c.upper(),) if name in place})
        for member in members:
            merged[member] = members[0]
    return merged


def metrics(evaluation: Evaluation) -> dict[str, int | float]:
    """The headline numbers.

    Returns
    -------
    n : images.
    accuracy, accuracy_standard_error : over all images.
    accuracy_low, accuracy_high : the ends of its 95 % interval (Wilson's).
    refused, accuracy_with_refused : pictures that were not shown to the model; the accuracy with them counted as wrong.
    macro_accuracy : the mean of the classes' accuracies, over the classes that have images.
    top5_accuracy : how often the true class is among the five likeliest; 1 where there are no more than five.
    loss : mean cross-entropy in nats, without label smoothing.
    ece : expected calibration error: how far confidence and accuracy lie apart, as the mean over 15 bins of
        equal width, weighted by their images (Guo et al. 2017, arXiv 1706.04599, equation 3).
    ece_uncalibrated, temperature : the same without the temperature that the model divides its logits by; that.
    merged_accuracy : with 0 O o, 1 I l, 5 S s, 2 Z z and 9 g q each counted as one class.
    case_insensitive_accuracy : with the two cases of a letter counted as one class.
    """
    labels = evaluation.labels
    correct = evaluation.predictions == labels
    cases = [a + a.lower() for a in string.ascii_uppercase]
    alike, either_case = (
        torch.tensor(merge_classes(evaluation.class_names, groups)) for groups in (LOOK_ALIKES, cases)
    )
    top = evaluation.logits.topk(min(TOP_K, len(evaluation.class_names)), dim=1).indices
    return {
        "n": len(labels),
        "accuracy": evaluation.accuracy,
        "accuracy_standard_error": evaluation.accuracy_standard_error,
        "accuracy_low": evaluation.accuracy_interval[0],
        "accuracy_high": evaluation.accuracy_interval[1],
        "refused": evaluation.refused,
        "accuracy_with_refused": evaluation.accuracy_with_refused,
        "macro_accuracy": evaluation.class_accuracies.nanmean().item(),
        "top5_accuracy": (top == labels[:, None]).any(dim=1).double().mean().item(),
        "loss": F.cross_entropy(evaluation.logits.double(), labels).item(),
        "ece": calibration_error(evaluation.confidences, correct),
        "ece_uncalibrated": calibration_error(evaluation.uncalibrated_confidences, correct),
        "temperature": evaluation.temperature,
        "merged_accuracy": (alike[evaluation.predictions] == alike[labels]).double().mean().item(),
        "case_insensitive_accuracy": (either_case[evaluation.predictions] == either_case[labels])
        .double()
        .mean()
        .item(),
    }


def calibration_bins(confidences: Tensor, correct: Tensor, weights: Tensor | None = None) -> Tensor:
    """float64 [3, 15]: images, summed confidence and correct answers in each bin of confidence.

    Parameters
    ----------
    confidences : float64 [N] in 0..1.
    correct : bool [N].
    weights : float64 [N], how much each image counts; by default 1.
    """
    # Bin m holds the confidences in ((m - 1) / 15, m / 15], as in the paper.
    bins = (confidences * CALIBRATION_BINS).ceil().long().sub(1).clamp(min=0)
    sums = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64)
    rows = torch.stack([torch.ones_like(confidences), confidences, correct.double()])
    return sums.index_add_(1, bins, rows if weights is None else rows * weights)


def calibration_error(confidences: Tensor, correct: Tensor, weights: Tensor | None = None) -> float:
    """Expected calibration error; arguments as for `calibration_bins`."""
    images, confidence, right = calibration_bins(confidences, correct, weights)
    return float((confidence - right).abs().sum() / images.sum())
