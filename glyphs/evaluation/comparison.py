"""Whether one model is really better than another, and how a comparison is told: as text, JSON, CSV and a picture."""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest

from glyphs.core.text import csv_cell, one_line, table
from glyphs.evaluation.metrics import Evaluation
from glyphs.output import plots

RESAMPLES = 9999
CONFIDENCE = 0.95
SIGNIFICANT = 1 - CONFIDENCE
RESAMPLE_SEED = 0
SMALLEST_P = 1e-16  # that is told: a smaller one rests on rounding, and the smallest of all would be printed as 0
CLASSES_SHOWN = 5


@dataclass(frozen=True)
class Difference:
    """How much better `better` is than `worse` on the same images.

    Attributes
    ----------
    points, low, high : the difference of their accuracies and its 95 % interval, in percentage points.
    p_value : of McNemar's exact test, that chance alone makes a difference as large.
    only_better, only_worse : images that one alone gets right.
    classes : where they differ most: name, images, accuracy of each.
    """

    better: str
    worse: str
    points: float
    low: float
    high: float
    p_value: float
    only_better: int
    only_worse: int
    classes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def real(self) -> bool:
        """Whether chance is an unlikely explanation: by the interval and by the test."""
        return not self.low <= 0 <= self.high and self.p_value < SIGNIFICANT

    @property
    def sentence(self) -> str:
        p = f"p = {self.p_value:.2g}" if self.p_value >= SMALLEST_P else f"p < {SMALLEST_P:g}"
        facts = (
            f"95 % interval {self.low:.2f} to {self.high:.2f} points, McNemar's exact test {p}; "
            f"{self.better} alone is right on {self.only_better:,} images, {self.worse} alone on {self.only_worse:,}"
        )
        if self.points == 0:
            return f"{self.better} and {self.worse} are equally accurate ({facts})."
        what = f"{self.better} is better than {self.worse} by {self.points:.2f} points"
        return f"{what} ({facts})." if self.real else f"{what}, which may be chance ({facts})."


def compare_answers(names: tuple[str, str], right: tuple[NDArray[np.bool_], NDArray[np.bool_]]) -> Difference:
    """Whether two models differ, from which images each gets right.

    Parameters
    ----------
    right : bool [N] of each model, for the same images in the same order.

    Returns
    -------
    The difference with a percentile bootstrap interval over images (Efron 1979), and McNemar's test (1947) in its exact
    form, a binomial test of the images that only one of them gets right.
    """
    order = (0, 1) if right[0].sum() >= right[1].sum() else (1, 0)
    better, worse = (right[place] for place in order)
    per_image = better.astype(np.float32) - worse
    only_better, only_worse = int((per_image > 0).sum()), int((per_image < 0).sum())
    low = high = 0.0
    p_value = 1.0
    if only_better + only_worse:
        p_value = float(binomtest(only_better, only_better + only_worse).pvalue)
        # Of a resample only the numbers of each kind of image count, and these are multinomial.
        kinds = np.array([only_better, only_worse, len(per_image) - only_better - only_worse])
        drawn = np.random.default_rng(RESAMPLE_SEED).multinomial(len(per_image), kinds / len(per_image), RESAMPLES)
        ends = np.quantile((drawn[:, 0] - drawn[:, 1]) / len(per_image), [SIGNIFICANT / 2, 1 - SIGNIFICANT / 2])
        low, high = (100 * float(end) for end in ends)
    points = 100 * (only_better - only_worse) / len(per_image)
    return Difference(names[order[0]], names[order[1]], points, low, high, p_value, only_better, only_worse)


def compare_classes(a: Evaluation, b: Evaluation) -> list[dict[str, Any]]:
    """The classes whose accuracies differ most between two models, the largest difference first."""
    differences = (a.class_accuracies - b.class_accuracies).abs().nan_to_num(-1.0)  # a class without images
    order = differences.argsort(descending=True, stable=True)[:CLASSES_SHOWN].tolist()
    return [
        {
            "class": a.class_names[place],
            "images": int(a.class_counts[place]),
            "accuracies": [float(each.class_accuracies[place]) for each in (a, b)],
        }
        for place in order
        if differences[place] > 0
    ]


def pareto_front(costs: Sequence[float | None], gains: Sequence[float | None]) -> list[bool]:
    """Which points no other beats: none costs as little and gains as much, and is better in one of the two."""
    points = list(zip(costs, gains, strict=True))

    def beaten(cost: float, gain: float) -> bool:
        return any(
            c is not None and g is not None and c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points
        )

    return [cost is not None and gain is not None and not beaten(cost, gain) for cost, gain in points]


@dataclass(frozen=True)
class TableRow:
    """A quantity of the comparison: its key in a model's dict, how people read it, and whether more is better."""

    key: str
    label: str
    scale: float
    decimals: int
    more_is_better: bool


MEASURED = (
    TableRow("accuracy", "accuracy, %", 100, 2, True),
    TableRow("macro_accuracy", "macro accuracy, %", 100, 2, True),
    TableRow("top5_accuracy", "top-5 accuracy, %", 100, 2, True),
    TableRow("loss", "loss", 1, 3, False),
    TableRow("ece", "calibration error (ECE)", 1, 3, False),
)
STORED = (
    TableRow("val_accuracy", "validation accuracy, % (stored)", 100, 2, True),
    TableRow("val_loss", "validation loss (stored)", 1, 3, False),
    *(
        TableRow(f"test_{row.key}", f"test {row.label} (stored)", row.scale, row.decimals, row.more_is_better)
        for row in MEASURED
    ),
)
COSTS = (
    TableRow("parameters", "parameters", 1, 0, False),
    TableRow("disk_bytes", "file, MB", 1e-6, 2, False),
    TableRow("memory_bytes", "weights in memory, MB", 1e-6, 2, False),
    TableRow("multiply_adds", "multiply-adds, millions", 1e-6, 1, False),
)
SPEEDS = tuple(
    row
    for device, name in (("cpu", "CPU"), ("cuda", "CUDA"), ("mps", "MPS"))
    for row in (
        TableRow(f"latency_{device}", f"latency of one image, {name}, ms", 1e3, 2, False),
        TableRow(f"throughput_{device}", f"throughput, {name}, images/s", 1, 0, True),
    )
)


@dataclass(frozen=True)
class Comparison:
    """What ModelComparator found.

    Attributes
    ----------
    models : for each a dict with `id` (A, B, ...), `path`, and the keys of the rows, where they are known.
    test : split and number of the images that all models saw; None where there were none.
    quality : the row that efficiency is judged by; None where accuracies do not compare.
    latency : the key of the latency that efficiency is judged by.
    fronts : for each cost, which models are on the Pareto front of that cost and the quality.
    differences : of each later model from the first.
    notes : what could not be compared, and why.
    """

    models: list[dict[str, Any]]
    test: dict[str, Any] | None
    rows: list[TableRow]
    quality: TableRow | None
    latency: str
    fronts: dict[str, list[bool]]
    differences: list[Difference]
    notes: list[str]

    def best(self, row: TableRow) -> list[bool]:
        """Which models have the best value of a row; none where all are equal or there is nothing to compare."""
        values = [model.get(row.key) for model in self.models]
        known = [value for value in values if value is not None]
        if len(set(known)) < 2:
            return [False] * len(values)
        best = max(known) if row.more_is_better else min(known)
        return [value == best for value in values]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        ids = [model["id"] for model in self.models]

        def chosen(flags: Sequence[bool]) -> list[str]:
            return list(itertools.compress(ids, flags))

        return {
            "models": self.models,
            "test": self.test,
            "best": {row.key: chosen(self.best(row)) for row in self.rows},
            "pareto_front": {
                cost: {"accuracy": self.quality.key if self.quality else None, "models": chosen(front)}
                for cost, front in self.fronts.items()
            },
            "differences": [
                {**asdict(each), "real": each.real, "sentence": each.sentence} for each in self.differences
            ],
            "notes": self.notes,
            "versions": versions(),
        }

    def to_csv(self) -> str:
        """A line for each model."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        keys = ["id", "path", *(row.key for row in self.rows)]
        writer.writerow([*keys, *(f"pareto_{cost}" for cost in self.fronts)])
        for place, model in enumerate(self.models):
            fronts = [front[place] for front in self.fronts.values()]
            writer.writerow([csv_cell(value) for value in [*(model.get(key) for key in keys), *fronts]])
        return text.getvalue()

    def to_text(self) -> str:
        """For a terminal; the best value of a row has a star."""
        lines = [one_line(f"{model['id']}  {model['path']}") for model in self.models]
        lines += ["", *([f"{self.test['images']:,} test images ({self.test['split']})", ""] if self.test else [])]
        rows = []
        for row in self.rows:
            cells = [
                "-" if model.get(row.key) is None else f"{row.scale * model[row.key]:,.{row.decimals}f}"
                for model in self.models
            ]
            rows.append(
                [
                    row.label,
                    *(f"{cell}{' *' if best else '  '}" for cell, best in zip(cells, self.best(row), strict=True)),
                ]
            )
        for cost, front in self.fronts.items():
            rows.append([f"Pareto front, accuracy and {cost}", *("yes  " if each else "no  " for each in front)])
        lines += table("<" + ">" * len(self.models), ["* best", *(f"{model['id']}  " for model in self.models)], rows)
        for difference in self.differences:
            lines += ["", difference.sentence]
            if difference.classes:
                places = ", ".join(
                    f"{one_line(each['class'])} {each['accuracies'][0]:.1%} and {each['accuracies'][1]:.1%}"
                    for each in difference.classes
                )
                lines.append(f"Classes that differ most, {difference.better} and {difference.worse}: {places}")
        return "\n".join([*lines, *(["", *self.notes] if self.notes else [])])

    def plot(self, path: str | Path | None = None) -> plots.Figure:
        """Draw accuracy, size and speed side by side, and the differences; into a PNG file where a path is given."""
        return plots.plot_comparison(
            [(model["id"], "/".join(Path(model["path"]).parts[-2:])) for model in self.models],
            None if self.quality is None else (self.quality.label, self._values(self.quality.key, 100)),
            {
                "file (MB)": (self._values("disk_bytes", 1e-6), self.fronts.get("size")),
                "latency of one image (ms)": (self._values(self.latency, 1e3), self.fronts.get("latency")),
            },
            ("throughput (images/s)", self._values(self.latency.replace("latency", "throughput"), 1)),
            [(f"{d.better} over {d.worse}", d.points, d.low, d.high, d.real) for d in self.differences],
            None if path is None else Path(path),
        )

    def _values(self, key: str, scale: float) -> list[float | None]:
        return [None if model.get(key) is None else scale * model[key] for model in self.models]


def differences(evaluations: Mapping[str, Evaluation]) -> list[Difference]:
    """How each later model differs from the first."""
    found = []
    first, *others = evaluations or [""]
    for other in others:
        pair = evaluations[first], evaluations[other]
        right = [(each.predictions == each.labels).numpy() for each in pair]
        difference = compare_answers((first, other), (right[0], right[1]))
        a, b = (evaluations[id] for id in (difference.better, difference.worse))
        difference.classes.extend(compare_classes(a, b))
        found.append(difference)
    return found


def versions() -> dict[str, str]:
    """The versions that figures depend on."""
    found = {"torch": str(torch.__version__)}
    try:
        import onnxruntime
    except ImportError:
        return found
    return {**found, "onnxruntime": onnxruntime.__version__}
