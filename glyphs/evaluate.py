"""Evaluation: one pass over a test set, and the numbers, reports and pictures that follow from its logits."""

import dataclasses
import functools
import json
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.metrics import classification_report
from torch import Tensor
from tqdm import tqdm

from glyphs import plots
from glyphs.cli import one_line
from glyphs.distributed import merge_rows, total, world_size
from glyphs.errors import CheckpointError, DataError
from glyphs.files import replace_file
from glyphs.model import EnhancedGlyphCNN, ViewAverage, modes_kept
from glyphs.runtime import Divisible, Loader, own_share

TOP_K = 5
CALIBRATION_BINS = 15  # as in arXiv 1706.04599
LISTED = 10  # lines in each list of the misclassification analysis
SHEET_IMAGES = 48
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
    """

    class_names: list[str]
    logits: Tensor
    labels: Tensor
    mistake_images: Tensor | None
    temperature: float = 1.0

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
    def accuracy_standard_error(self) -> float:
        """The binomial one: how far chance alone moves the accuracy between test sets like this."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.labels))


class Evaluator:
    """Runs a model over a test set.

    Parameters
    ----------
    model : it and its parts, such as batch norms that were frozen, are left in the modes that they were in.
    class_names : in the order of the model's outputs.
    device : where to compute; by default where the model is.  The model is moved there.

    Raises
    ------
    CheckpointError : the model has another number of classes than there are names.
    """

    def __init__(
        self,
        model: EnhancedGlyphCNN | ViewAverage,
        class_names: Sequence[str],
        device: torch.device | str | None = None,
    ) -> None:
        if model.num_classes != len(class_names):
            raise CheckpointError(
                f"the model tells {model.num_classes} classes apart, but the data has {len(class_names)}; "
                "evaluate it on the data set and split that it was trained on"
            )
        self.device = torch.device(device) if device is not None else next(model.parameters()).device
        self.model = model.to(self.device)
        self.class_names = list(class_names)

    def evaluate(self, loader: Loader) -> Evaluation:
        """Classify every image once.

        Where several processes work together, each classifies its share, and all get the whole.

        Parameters
        ----------
        loader : a sized iterable of batches: images [N, 1, H, W], uint8 or float in 0..1; labels int64 [N].

        Raises
        ------
        DataError : there is no image, or a label outside the classes.
        CheckpointError : the model's outputs are not finite.
        ConfigError : the loader cannot be shared out among the processes there are.
        """
        loader = own_share(loader)
        logits: list[Tensor] = []
        labels: list[Tensor] = []
        mistakes: list[Tensor] = []
        with modes_kept(self.model), torch.inference_mode():
            self.model.eval()
            for images, truth in tqdm(loader, desc="evaluating", unit="batch", disable=None):
                logits.append(self.model(images.to(self.device)).float().cpu())
                labels.append(truth.cpu())
                # Only the images of mistakes are kept: they are few, and the only ones shown.
                wrong = logits[-1].argmax(dim=1) != labels[-1]
                mistakes.append(as_bytes(images[wrong.to(images.device)]).cpu())
        # Joined outside inference mode, so that what is returned are ordinary tensors.
        if isinstance(loader, Divisible) and world_size() > 1:
            return self._merge(loader.places, torch.cat(logits), torch.cat(labels), torch.cat(mistakes))
        return Evaluation(
            self.class_names,
            self._checked_logits(logits),
            self._checked_labels(labels),
            torch.cat(mistakes) if len({batch.shape[1:] for batch in mistakes}) == 1 else None,
            self.model.temperature.item(),
        )

    def _merge(self, places: Tensor, logits: Tensor, labels: Tensor, images: Tensor) -> Evaluation:
        """One evaluation, in the undivided order, from what each process has: rows for `places`, images of mistakes."""
        count = int(total(torch.tensor(len(places))))
        own_mistakes = places[logits.argmax(dim=1) != labels]
        logits, labels = merge_rows(logits, places, count), merge_rows(labels, places, count)
        merged = Evaluation(
            self.class_names,
            self._checked_logits([logits]),
            self._checked_labels([labels]),
            None,
            self.model.temperature.item(),
        )
        at = torch.searchsorted(merged.mistakes, own_mistakes)
        return dataclasses.replace(merged, mistake_images=merge_rows(images, at, len(merged.mistakes)))

    def _checked_logits(self, batches: list[Tensor]) -> Tensor:
        if sum(map(len, batches)) == 0:
            raise DataError("there is no image to evaluate on")
        logits = torch.cat(batches)
        if not logits.isfinite().all():
            raise CheckpointError("the model's outputs are not finite numbers: its weights are damaged")
        return logits

    def _checked_labels(self, batches: list[Tensor]) -> Tensor:
        labels = torch.cat(batches)
        outside = ((labels < 0) | (labels >= len(self.class_names))).nonzero()
        if len(outside):
            at = int(outside[0])
            raise DataError(
                f"label {int(labels[at])} of image {at} is out of range for {len(self.class_names)} classes"
            )
        return labels


def as_bytes(images: Tensor) -> Tensor:
    """Images as uint8, whether they are already, or float in 0..1."""
    return images if images.dtype == torch.uint8 else (images * 255).round().clamp(0, 255).to(torch.uint8)


def merge(class_names: Sequence[str], groups: Sequence[str]) -> list[int]:
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
    alike, either_case = (torch.tensor(merge(evaluation.class_names, groups)) for groups in (LOOK_ALIKES, cases))
    top = evaluation.logits.topk(min(TOP_K, len(evaluation.class_names)), dim=1).indices
    return {
        "n": len(labels),
        "accuracy": evaluation.accuracy,
        "accuracy_standard_error": evaluation.accuracy_standard_error,
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


def calibration_bins(confidences: Tensor, correct: Tensor) -> Tensor:
    """float64 [3, 15]: images, summed confidence and correct answers in each bin of confidence.

    Parameters
    ----------
    confidences : float64 [N] in 0..1.
    correct : bool [N].
    """
    # Bin m holds the confidences in ((m - 1) / 15, m / 15], as in the paper.
    bins = (confidences * CALIBRATION_BINS).ceil().long().sub(1).clamp(min=0)
    sums = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64)
    return sums.index_add_(1, bins, torch.stack([torch.ones_like(confidences), confidences, correct.double()]))


def calibration_error(confidences: Tensor, correct: Tensor) -> float:
    """Expected calibration error; arguments as for `calibration_bins`."""
    images, confidence, right = calibration_bins(confidences, correct)
    return float((confidence - right).abs().sum() / images.sum())


def write_reports(
    evaluation: Evaluation, output_dir: Path, *, split: str, checkpoint: str
) -> dict[str, int | float | str]:
    """Write the metrics, two text reports and five pictures into an existing folder, and return the metrics.

    Parameters
    ----------
    split, checkpoint : what was evaluated, for the record.

    Raises
    ------
    GlyphError : as `glyphs.files.replace_file` does.
    """
    result = {"split": split, "checkpoint": checkpoint, **metrics(evaluation)}
    names = evaluation.class_names
    write_text(output_dir / "metrics.json", json.dumps(result, indent=2, ensure_ascii=False))
    write_text(output_dir / "classification_report.txt", report_classes(evaluation))
    write_text(output_dir / "misclassification_analysis.txt", analyse_mistakes(evaluation))
    confusion = evaluation.confusion.numpy()
    plots.plot_confusion_matrix(confusion, names, output_dir / "confusion_matrix.png", normalized=False)
    plots.plot_confusion_matrix(confusion, names, output_dir / "confusion_matrix_normalized.png", normalized=True)
    plots.plot_per_class_accuracy(
        evaluation.class_accuracies.numpy(),
        evaluation.class_counts.numpy(),
        names,
        output_dir / "per_class_accuracy.png",
    )
    correct = evaluation.predictions == evaluation.labels
    plots.plot_reliability(
        calibration_bins(evaluation.confidences, correct).numpy(),
        calibration_bins(evaluation.uncalibrated_confidences, correct).numpy(),
        output_dir / "reliability_diagram.png",
    )
    if evaluation.mistake_images is not None:
        order = by_confidence(evaluation)[:SHEET_IMAGES]
        shown = evaluation.mistakes[order]
        plots.plot_misclassified(
            evaluation.mistake_images[order, 0].numpy(),
            [names[i] for i in evaluation.labels[shown]],
            [names[i] for i in evaluation.predictions[shown]],
            evaluation.confidences[shown].tolist(),
            output_dir / "misclassified.png",
        )
    return result


def write_text(path: Path, text: str) -> None:
    replace_file(path, (text.rstrip("\n") + "\n").encode())


def by_confidence(evaluation: Evaluation) -> Tensor:
    """Positions in `evaluation.mistakes`, the most confident first; equals in the order of the test set."""
    return evaluation.confidences[evaluation.mistakes].argsort(descending=True, stable=True)


def report_classes(evaluation: Evaluation) -> str:
    """scikit-learn's precision, recall and F1 of every class, those without images included."""
    report = classification_report(
        evaluation.labels.numpy(),
        evaluation.predictions.numpy(),
        labels=range(len(evaluation.class_names)),
        target_names=[one_line(name) for name in evaluation.class_names],
        digits=4,
        zero_division=0,
    )
    return str(report)


def analyse_mistakes(evaluation: Evaluation) -> str:
    """What goes wrong most often, where, and how surely, as text."""
    names = [one_line(name) for name in evaluation.class_names]
    counts = evaluation.class_counts
    wrong = evaluation.confusion - evaluation.confusion.diag().diag()
    n, mistakes = len(evaluation.labels), len(evaluation.mistakes)
    error = evaluation.accuracy_standard_error
    lines = [
        f"Accuracy {evaluation.accuracy:.2%} ± {error:.2%} (one binomial standard error)",
        f"{mistakes:,} of {n:,} images misclassified",
    ]
    if mistakes == 0:
        return "\n".join([*lines, "", "There are no mistakes to analyse."])

    cells = wrong.flatten().argsort(descending=True, stable=True)[:LISTED].tolist()
    pairs = [divmod(cell, len(names)) for cell in cells if wrong.flatten()[cell] > 0]
    lines += heading(f"The {len(pairs)} most frequent confusions")
    lines += table(
        "<>>",
        ["true -> predicted", "count", "of the true class"],
        [[f"{names[t]} -> {names[p]}", f"{wrong[t, p]:,}", f"{wrong[t, p] / counts[t]:.1%}"] for t, p in pairs],
    )

    # A class without images has no accuracy: NaN sorts last.
    worst = [c for c in evaluation.class_accuracies.argsort(stable=True).tolist() if counts[c]][:LISTED]
    lines += heading(f"The {len(worst)} worst classes")
    rows = []
    for c in worst:
        taken_for, times = int(wrong[c].argmax()), int(wrong[c].max())
        mostly = f"{names[taken_for]} ({times:,} of them)" if times else "-"
        rows.append([names[c], f"{evaluation.class_accuracies[c]:.1%}", f"{counts[c]:,}", mostly])
    lines += table("<>><", ["class", "accuracy", "images", "mostly taken for"], rows)

    shown = evaluation.mistakes[by_confidence(evaluation)[:LISTED]].tolist()
    lines += heading(f"The {len(shown)} most confident mistakes")
    lines += table(
        "><<>",
        ["test index", "true", "predicted", "confidence"],
        [
            [
                str(i),
                names[evaluation.labels[i]],
                names[evaluation.predictions[i]],
                f"{evaluation.confidences[i]:.2%}",
            ]
            for i in shown
        ],
    )
    return "\n".join(lines)


def heading(text: str) -> list[str]:
    return ["", text, "-" * len(text)]


def table(alignment: str, header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of columns as wide as their widest entry, each aligned to the left (<) or to the right (>)."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(f"{entry:{side}{width}}" for entry, side, width in zip(row, alignment, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
