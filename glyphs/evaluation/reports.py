"""The reports of an evaluation: metrics.json, texts and plots."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor

from glyphs.core.files import replace_file
from glyphs.core.text import heading, one_line, table
from glyphs.evaluation.metrics import Evaluation, calibration_bins, metrics
from glyphs.output import plots
from glyphs.pictures.plain import to_pictures

LISTED = 10  # lines in each list of the misclassification analysis
SHEET_IMAGES = 48


def write_reports(
    evaluation: Evaluation,
    output_dir: Path,
    *,
    split: str,
    checkpoint: str,
    weights: str = "",
    doubts: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the metrics, two text reports and five pictures into an existing folder, and return the metrics.

    Parameters
    ----------
    split, checkpoint, weights : what was evaluated, for the record; `weights` is a digest of the weights.
    doubts : why the figures may flatter the model.

    Raises
    ------
    GlyphError : as `glyphs.core.files.replace_file` does.
    """
    result = {"split": split, "checkpoint": checkpoint, "weights": weights, "doubts": [*doubts], **metrics(evaluation)}
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
            to_pictures(evaluation.mistake_images[order].numpy()),
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
    """scikit-learn's precision, recall and F1 of every class, and their means over the classes that have images."""
    labels, predictions = evaluation.labels.numpy(), evaluation.predictions.numpy()
    classes = range(len(evaluation.class_names))
    measured = precision_recall_fscore_support(labels, predictions, labels=classes, zero_division=0)
    scores, counts = np.stack(measured[:3], axis=1), measured[3]
    present = counts > 0
    rows = [
        [one_line(name), *(f"{score:.4f}" if some else "-" for score in own), f"{count:,}"]
        for name, own, some, count in zip(evaluation.class_names, scores, present, counts.tolist(), strict=True)
    ]
    means = {
        "macro average": scores[present].mean(axis=0),
        "weighted average": np.average(scores, axis=0, weights=counts),
    }
    rows += [["accuracy", "", "", f"{evaluation.accuracy:.4f}", f"{len(labels):,}"]]
    rows += [[name, *(f"{mean:.4f}" for mean in own), f"{len(labels):,}"] for name, own in means.items()]
    lines = table("<>>>>", ["class", "precision", "recall", "F1", "images"], rows)
    if not present.all():
        lines += ["", f"The averages are over the {present.sum():,} classes that have test images, of {len(counts):,}."]
    return "\n".join(lines)


def analyse_mistakes(evaluation: Evaluation) -> str:
    """What goes wrong most often, where, and how surely, as text."""
    names = [one_line(name) for name in evaluation.class_names]
    counts = evaluation.class_counts
    wrong = evaluation.confusion - evaluation.confusion.diag().diag()
    n, mistakes = len(evaluation.labels), len(evaluation.mistakes)
    low, high = evaluation.accuracy_interval
    lines = [
        f"Accuracy {evaluation.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, Wilson's)",
        f"{mistakes:,} of {n:,} images misclassified",
    ]
    if evaluation.refused:
        lines += [
            f"{evaluation.refused:,} more test pictures could not be prepared; counted as wrong, the accuracy is "
            f"{evaluation.accuracy_with_refused:.2%}"
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
