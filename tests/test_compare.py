"""glyphs.evaluation.comparison against cases worked out by hand and formulas of other authors."""

import csv
import io
import math
import re

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from glyphs.evaluation.comparison import (
    COSTS,
    MEASURED,
    Comparison,
    Difference,
    compare_answers,
    compare_classes,
    differences,
    pareto_front,
)
from glyphs.evaluation.metrics import Evaluation


def answers(both: int, only_a: int, only_b: int, neither: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which images two models get right, shuffled."""
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    order = np.random.default_rng(0).permutation(len(a))
    return a[order], b[order]


def test_mcnemar_by_hand() -> None:
    # 1 of 6 images that only one gets right: 2 * (1 + 6) / 2**6.
    found = compare_answers(("A", "B"), answers(80, 1, 5, 14))
    assert (found.better, found.worse, found.only_better, found.only_worse) == ("B", "A", 5, 1)
    assert found.p_value == pytest.approx(2 * (1 + 6) / 64)
    assert found.points == pytest.approx(4.0)


def test_the_interval_is_that_of_the_mean_difference() -> None:
    found = compare_answers(("A", "B"), answers(5000, 250, 400, 1623))
    n = 7273
    mean = 150 / n
    error = math.sqrt((650 / n - mean**2) / n)  # of a mean of -1, 0 and 1, which is nearly normal for so many
    assert found.low == pytest.approx(100 * (mean - 1.96 * error), abs=0.03)
    assert found.high == pytest.approx(100 * (mean + 1.96 * error), abs=0.03)
    assert found.real
    assert found.sentence.startswith(
        f"B is better than A by 2.06 points (95 % interval {found.low:.2f} to {found.high:.2f} points"
    )
    assert "chance" not in found.sentence
    assert found == compare_answers(("A", "B"), answers(5000, 250, 400, 1623))  # the same every time


def test_the_pairing_counts() -> None:
    """The same two accuracies, with and without disagreement besides: only the former can be chance."""
    assert compare_answers(("A", "B"), answers(900, 0, 10, 90)).real
    assert not compare_answers(("A", "B"), answers(800, 100, 110, 0)).real


def test_a_difference_that_may_be_chance_says_so() -> None:
    found = compare_answers(("A", "B"), answers(80, 4, 5, 11))
    assert found.low <= 0 <= found.high
    assert not found.real
    assert found.sentence.startswith("B is better than A by 1.00 points, which may be chance (95 % interval -")


def test_an_interval_off_zero_that_the_test_does_not_confirm_may_be_chance() -> None:
    assert not Difference("A", "B", 1.0, 0.1, 1.9, 0.06, 5, 1).real
    assert not Difference("A", "B", 1.0, 0.0, 1.9, 0.04, 5, 1).real
    assert Difference("A", "B", 1.0, 0.1, 1.9, 0.04, 5, 1).real


def test_a_p_value_is_never_told_as_nothing() -> None:
    told = [Difference("A", "B", 1.0, 0.1, 1.9, p, 5, 1).sentence for p in (0.0, 1e-300, 0.0123)]
    assert [re.search(r"p [<=] [^;]+", sentence)[0] for sentence in told] == ["p < 1e-16", "p < 1e-16", "p = 0.012"]  # type: ignore[index]


def test_equal_models() -> None:
    same = compare_answers(("A", "B"), answers(50, 0, 0, 50))
    assert (same.points, same.low, same.high, same.p_value, same.real) == (0, 0, 0, 1, False)
    assert same.sentence.startswith("A and B are equally accurate")
    swapped = compare_answers(("A", "B"), answers(50, 7, 7, 36))
    assert (swapped.points, swapped.p_value, swapped.real) == (0, 1, False)
    assert swapped.low < 0 < swapped.high


def evaluation(predictions: list[int], labels: list[int]) -> Evaluation:
    logits = torch.nn.functional.one_hot(torch.tensor(predictions), 4).float()
    return Evaluation(["a", "b", "c", "absent"], logits, torch.tensor(labels), None)


LABELS = [0, 0, 0, 0, 1, 1, 2, 2]
GOOD = evaluation([0, 0, 0, 0, 1, 1, 2, 0], LABELS)
POOR = evaluation([0, 1, 1, 0, 1, 1, 0, 0], LABELS)


def test_classes_that_differ_most() -> None:
    assert compare_classes(GOOD, POOR) == [
        {"class": "a", "images": 4, "accuracies": [1.0, 0.5]},
        {"class": "c", "images": 2, "accuracies": [0.5, 0.0]},
    ]


def test_every_later_model_is_set_against_the_first() -> None:
    found = differences({"A": POOR, "B": GOOD, "C": POOR})
    assert [(each.better, each.worse, each.points) for each in found] == [("B", "A", 37.5), ("A", "C", 0)]
    assert found[0].classes[0]["class"] == "a"
    assert differences({"A": POOR}) == differences({}) == []


def test_pareto_front() -> None:
    assert pareto_front([1, 2, 3, 2], [0.7, 0.9, 0.8, 0.9]) == [True, True, False, True]
    assert pareto_front([1, None, 1], [0.7, 0.9, None]) == [True, False, False]


def comparison() -> Comparison:
    models = [
        {"id": "A", "path": "=x/a.pth", "accuracy": 0.9, "ece": 0.05, "parameters": 100, "disk_bytes": 2_000_000},
        {"id": "B", "path": "b.pth", "accuracy": 0.8, "ece": 0.01, "parameters": 100, "disk_bytes": 1_000_000},
        {"id": "C", "path": "c.onnx", "parameters": 50, "disk_bytes": 1_500_000},
    ]
    rows = [MEASURED[0], MEASURED[4], COSTS[0], COSTS[1]]
    difference = Difference("A", "B", 10.0, 8.0, 12.0, 1e-9, 20, 10, compare_classes(GOOD, POOR))
    fronts = {"size": [True, True, False]}
    return Comparison(
        models, {"split": "demo", "images": 100}, rows, MEASURED[0], "latency_cpu", fronts, [difference], ["C: why not"]
    )


def test_the_best_of_each_row_is_marked() -> None:
    found = comparison()
    accuracy, ece, parameters, size = found.rows
    assert found.best(accuracy) == [True, False, False]
    assert found.best(ece) == [False, True, False]
    assert found.best(parameters) == [False, False, True]
    assert found.best(size) == [False, True, False]
    text = found.to_text()
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines() if line}
    assert lines["accuracy, %"][2:] == ["90.00", "*", "80.00", "-"]
    assert lines["file, MB"][2:] == ["2.00", "1.00", "*", "1.50"]
    assert lines["Pareto front, accuracy and size"][5:] == ["yes", "yes", "no"]
    assert "A is better than B by 10.00 points (95 % interval 8.00 to 12.00" in text
    assert "Classes that differ most, A and B: a 100.0% and 50.0%, c 50.0% and 0.0%" in text
    assert text.endswith("C: why not")


def test_nothing_is_best_where_all_are_equal() -> None:
    found = comparison()
    assert Comparison(found.models[:2], None, [COSTS[0]], None, "", {}, [], []).best(COSTS[0]) == [False, False]


def test_json_and_csv_hold_the_same() -> None:
    found = comparison().to_dict()
    assert found["best"]["accuracy"] == ["A"]
    assert found["pareto_front"]["size"] == {"accuracy": "accuracy", "models": ["A", "B"]}
    assert found["differences"][0]["real"] is True
    rows = list(csv.DictReader(io.StringIO(comparison().to_csv())))
    assert [row["accuracy"] for row in rows] == ["0.9", "0.8", ""]
    assert [row["pareto_size"] for row in rows] == ["True", "True", "False"]
    assert rows[0]["path"] == "'=x/a.pth"  # no formula for a spreadsheet
