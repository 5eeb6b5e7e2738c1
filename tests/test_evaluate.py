"""Evaluation against numbers worked out by hand and by slow, independent loops."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from glyphs.core.errors import CheckpointError, DataError
from glyphs.core.protocols import Loader
from glyphs.data.loaders import TensorLoader
from glyphs.evaluation.evaluator import Evaluator
from glyphs.evaluation.metrics import Evaluation, metrics
from glyphs.evaluation.reports import analyse_mistakes, write_reports
from glyphs.models.network import EnhancedGlyphCNN

NAMES = ["O", "0", "x", "absent"]


class LookUp(EnhancedGlyphCNN):
    """Answers for the image whose first pixel is i with row i of a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__(table.shape[1], use_residual=False)
        self.table = table

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        first = images[:, 0, 0, 0]
        return self.table[(first if images.dtype == torch.uint8 else (first * 255).round()).long()]


def numbered_images(count: int) -> Tensor:
    """uint8 [count, 1, 4, 4]; every pixel of image i is i."""
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()


def logits_for(predictions: list[int], margins: list[float], classes: int = 4) -> Tensor:
    logits = torch.zeros(len(predictions), classes)
    logits[range(len(predictions)), predictions] = torch.tensor(margins)
    return logits


def hand_made() -> Evaluation:
    """Six images: O right twice and taken for 0 twice (surely, and less so), 0 right, x taken for O."""
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    logits = logits_for([0, 1, 0, 1, 1, 0], [2.0, 5.0, 1.0, 3.0, 4.0, 4.0])
    mistakes = numbered_images(6)[[1, 3, 5]]
    return Evaluation(NAMES, logits, labels, mistakes)


def random_evaluation(n: int = 3000, classes: int = 12) -> Evaluation:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator)
    logits[range(n), labels] += 2
    return Evaluation([str(i) for i in range(classes)], logits, labels, None)


def test_metrics_by_hand() -> None:
    result = metrics(hand_made())
    loss = 0.0
    for true, predicted, margin in [(0, 0, 2), (0, 1, 5), (0, 0, 1), (0, 1, 3), (1, 1, 4), (2, 0, 4)]:
        loss -= (margin if true == predicted else 0) - math.log(math.exp(margin) + 3)
    assert result["n"] == 6
    assert result["accuracy"] == pytest.approx(3 / 6)
    assert result["accuracy_standard_error"] == pytest.approx(math.sqrt(0.25 / 6))
    assert (result["accuracy_low"], result["accuracy_high"]) == pytest.approx((0.1876, 0.8124), abs=1e-4)  # Wilson's
    assert (result["refused"], result["accuracy_with_refused"]) == (0, result["accuracy"])
    assert result["macro_accuracy"] == pytest.approx((2 / 4 + 1 + 0) / 3)  # "absent" does not count
    assert result["top5_accuracy"] == 1  # there are only four classes
    assert result["loss"] == pytest.approx(loss / 6)
    assert all(type(value) in (int, float) for value in result.values())


def test_refused_pictures_count_as_wrong() -> None:
    batches = TensorLoader(torch.zeros(4, 1, 28, 28, dtype=torch.uint8), torch.tensor([0, 0, 0, 1]), 3, refused=6)

    class First(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.eye(2)[[0] * len(images)]

    evaluation = Evaluator(First(), ["a", "b"]).evaluate(batches)
    result = metrics(evaluation)
    assert (result["n"], result["accuracy"]) == (4, 0.75)
    assert (result["refused"], result["accuracy_with_refused"]) == (6, 0.3)
    assert "6 more test pictures could not be prepared; counted as wrong, the accuracy is 30.00%" in analyse_mistakes(
        evaluation
    )


def test_confusion_by_hand() -> None:
    evaluation = hand_made()
    assert evaluation.confusion.tolist() == [[2, 2, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert evaluation.mistakes.tolist() == [1, 3, 5]
    assert evaluation.class_accuracies.isnan().tolist() == [False, False, False, True]


def test_top5_and_calibration_against_slow_loops() -> None:
    evaluation = random_evaluation()
    probabilities = np.exp(evaluation.logits.double().numpy())
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    in_top5 = 0
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(probabilities, evaluation.labels.tolist(), strict=True):
        in_top5 += label in sorted(range(len(row)), key=lambda c: -row[c])[:5]
        bin_of = next(m for m in range(15) if row.max() <= (m + 1) / 15)
        bins[bin_of].append((row.max(), row.argmax() == label))
    ece = 0.0
    for content in bins:
        if content:
            confidence = sum(c for c, _ in content) / len(content)
            accuracy = sum(right for _, right in content) / len(content)
            ece += len(content) / 3000 * abs(accuracy - confidence)
    result = metrics(evaluation)
    assert result["top5_accuracy"] == pytest.approx(in_top5 / 3000)
    assert 0.7 < result["top5_accuracy"] < 1
    assert result["ece"] == pytest.approx(ece)
    assert result["ece"] > 0.01


def test_the_error_before_calibration_is_that_of_the_models_own_logits() -> None:
    plain = random_evaluation()
    calibrated = dataclasses.replace(plain, logits=plain.logits / 2.5, temperature=2.5)
    before, after = metrics(plain), metrics(calibrated)
    assert before["ece_uncalibrated"] == before["ece"]
    assert after["ece_uncalibrated"] == pytest.approx(before["ece"])
    assert after["ece"] != pytest.approx(before["ece"], rel=0.1)
    assert (before["temperature"], after["temperature"]) == (1, 2.5)


def test_look_alikes_and_cases_are_counted_as_one_class() -> None:
    names = ["0", "1", "L", "O", "o", "q", "9", "x", "X"]
    pairs = [("0", "o"), ("O", "0"), ("1", "L"), ("q", "9"), ("x", "X"), ("x", "q"), ("o", "O"), ("9", "9")]
    labels, predictions = (torch.tensor([names.index(pair[i]) for pair in pairs]) for i in (0, 1))
    logits = torch.nn.functional.one_hot(predictions, len(names)).float()
    result = metrics(Evaluation(names, logits, labels, None))
    assert result["accuracy"] == 1 / 8
    assert result["merged_accuracy"] == 6 / 8  # L stands for l here; the two cases of x are no look-alikes
    assert result["case_insensitive_accuracy"] == 3 / 8  # x X, o O and 9 9
    capital_and_small = ["1", "L", "l"]
    logits = torch.tensor([[0.0, 1, 0], [0, 0, 1]])
    result = metrics(Evaluation(capital_and_small, logits, torch.tensor([0, 0]), None))
    assert result["merged_accuracy"] == 1 / 2  # with a class l of its own, L is only a capital


def test_evaluator_leaves_frozen_parts_frozen() -> None:
    model = EnhancedGlyphCNN(4, use_residual=False).train()
    model.get_submodule("stem.1").eval()
    before = [part.training for part in model.modules()]
    Evaluator(model, NAMES).evaluate(TensorLoader(torch.zeros(1, 1, 28, 28), torch.tensor([0]), 4))
    assert [part.training for part in model.modules()] == before
    assert True in before
    assert False in before


@pytest.mark.parametrize("kind", ["tensor", "dataloader", "float"])
def test_evaluator_reads_any_loader(kind: str) -> None:
    expected = hand_made()
    images = numbered_images(6)
    loaders: dict[str, Loader] = {
        "tensor": TensorLoader(images, expected.labels, 4),
        "dataloader": DataLoader(TensorDataset(images, expected.labels), batch_size=4),
        "float": DataLoader(TensorDataset(images / 255, expected.labels), batch_size=1),
    }
    model = LookUp(expected.logits).train()
    model.temperature.fill_(1.5)
    evaluation = Evaluator(model, NAMES).evaluate(loaders[kind])
    assert model.training
    assert evaluation.temperature == 1.5
    assert torch.equal(evaluation.logits, expected.logits)
    assert torch.equal(evaluation.labels, expected.labels)
    assert evaluation.mistake_images is not None
    assert evaluation.mistake_images.dtype == torch.uint8
    assert torch.equal(evaluation.mistake_images, numbered_images(6)[[1, 3, 5]])
    assert not evaluation.logits.is_inference()


def test_evaluator_runs_the_real_model_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = EnhancedGlyphCNN(4, use_residual=False).train()
    images, labels = torch.randint(256, (6, 1, 28, 28), dtype=torch.uint8), torch.arange(6) % 4
    evaluator = Evaluator(model, NAMES, "cpu")
    evaluation = evaluator.evaluate(TensorLoader(images, labels, 2))
    with torch.no_grad():
        expected = model.eval()(images)
    torch.testing.assert_close(evaluation.logits, expected)


def test_images_of_different_sizes_are_not_kept() -> None:
    images = [torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1, 1, 5, 4, dtype=torch.uint8)]
    batches = [(image, torch.tensor([1])) for image in images]
    evaluation = Evaluator(LookUp(logits_for([0], [1.0])), NAMES).evaluate(batches)
    assert len(evaluation.mistakes) == 2
    assert evaluation.mistake_images is None


def test_wrong_class_count_is_a_checkpoint_error() -> None:
    with pytest.raises(CheckpointError, match=r"with \[1, 47\] numbers, but the data has 62 classes"):
        Evaluator(EnhancedGlyphCNN(47, use_residual=False), [str(i) for i in range(62)]).evaluate(
            [(torch.zeros(1, 1, 28, 28), torch.tensor([0]))]
        )


def test_what_cannot_be_evaluated_is_said(tmp_path: Path) -> None:
    model = LookUp(logits_for([0], [1.0]))
    image = numbered_images(1)
    with pytest.raises(DataError, match="no image"):
        Evaluator(model, NAMES).evaluate([])
    with pytest.raises(DataError, match="label 4 of image 1 is out of range for 4 classes"):
        Evaluator(model, NAMES).evaluate([(image, torch.tensor([3])), (image, torch.tensor([4]))])
    model.table[0, 1] = math.nan
    with pytest.raises(CheckpointError, match="not finite"):
        Evaluator(model, NAMES).evaluate([(image, torch.tensor([0]))])


def section(text: str, title: str) -> list[list[str]]:
    """The rows of a list in the analysis, split into words, without heading and column names."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if title in line) + 3
    return [line.split() for line in "\n".join(lines[start:]).split("\n\n")[0].splitlines()]


def test_analysis_names_the_facts() -> None:
    text = analyse_mistakes(hand_made())
    assert text.startswith("Accuracy 50.00% (95 % interval 18.76% to 81.24%")
    assert "3 of 6 images misclassified" in text
    assert section(text, "most frequent confusions") == [
        ["O", "->", "0", "2", "50.0%"],
        ["x", "->", "O", "1", "100.0%"],
    ]
    assert section(text, "worst classes") == [
        ["x", "0.0%", "1", "O", "(1", "of", "them)"],
        ["O", "50.0%", "4", "0", "(2", "of", "them)"],
        ["0", "100.0%", "1", "-"],
    ]
    sure = math.exp(5) / (math.exp(5) + 3)
    confident = section(text, "most confident mistakes")
    assert confident[0] == ["1", "O", "0", f"{sure:.2%}"]
    assert [row[0] for row in confident] == ["1", "5", "3"]


def test_analysis_lists_ten_at_most() -> None:
    text = analyse_mistakes(random_evaluation())
    assert [len(section(text, t)) for t in ("confusions", "worst classes", "confident mistakes")] == [10, 10, 10]
    counts = [int(row[3]) for row in section(text, "confusions")]
    assert counts == sorted(counts, reverse=True)


def test_reports_are_all_there(tmp_path: Path) -> None:
    evaluation = hand_made()
    result = write_reports(evaluation, tmp_path, split="balanced", checkpoint="outputs/best_model.pth")
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == result
    assert result["split"] == "balanced"
    assert result["checkpoint"] == "outputs/best_model.pth"
    assert result.items() >= metrics(evaluation).items()
    rows = {words[0]: words[1:] for line in report_lines(tmp_path) if (words := line.split())}
    assert rows["O"] == ["0.6667", "0.5000", "0.5714", "4"]
    assert rows["absent"] == ["-", "-", "-", "0"]
    macro = next(line.split() for line in report_lines(tmp_path) if line.startswith("macro average"))
    assert float(macro[3]) == pytest.approx(float(result["macro_accuracy"]), abs=1e-4)  # one figure, in two files
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == [
        "confusion_matrix.png",
        "confusion_matrix_normalized.png",
        "misclassified.png",
        "per_class_accuracy.png",
        "reliability_diagram.png",
    ]
    for name in pictures:
        with Image.open(tmp_path / name) as picture:
            picture.load()
    assert len(list(tmp_path.iterdir())) == 8


def report_lines(folder: Path) -> list[str]:
    return (folder / "classification_report.txt").read_text(encoding="utf-8").splitlines()


def test_reports_without_a_mistake_and_with_names_in_other_scripts(tmp_path: Path) -> None:
    logits = logits_for([0, 1], [9.0, 9.0], classes=3)
    evaluation = Evaluation(
        ["字", "ش", "a\nb"], logits, torch.tensor([0, 1]), torch.zeros(0, 1, 4, 4, dtype=torch.uint8)
    )
    result = write_reports(evaluation, tmp_path, split="мой", checkpoint="x.pth")
    assert result["accuracy"] == 1
    text = (tmp_path / "misclassification_analysis.txt").read_text(encoding="utf-8")
    assert "Accuracy 100.00% (95 % interval 34.24% to 100.00%" in text  # of two images
    assert "no mistakes" in text
    first_words = [line.split()[0] for line in report_lines(tmp_path) if line.split()]
    assert {"字", "ش", "a"} <= set(first_words)
    assert "b" not in first_words
    assert len(list(tmp_path.iterdir())) == 8
