"""Pictures: readable PNG files of a sane size, without a warning (pytest makes them errors), whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from glyphs.core.errors import GlyphError
from glyphs.core.intervals import wilson_interval
from glyphs.data.emnist import CLASS_NAMES
from glyphs.output import plots

ODD_NAMES = ["字", "ش", "א", "अ", "$x$", "$", "a\nb", "\\", "", "hiragana_letter_small_a", "😀", "\u0301"]


def confusion(size: int) -> npt.NDArray[np.int64]:
    counts = np.random.default_rng(0).poisson(0.3, (size, size))
    np.fill_diagonal(counts, 90)
    return counts


def history(epochs: int) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 2.0 / epoch,
            "train_accuracy": 1 - 0.5 / epoch,
            "val_loss": 2.1 / epoch,
            "val_accuracy": 0.9 - (epoch - 3) ** 2 / 100,
            "learning_rate": 1e-3 / epoch,
        }
        for epoch in range(1, epochs + 1)
    ]


def size_of(path: Path) -> tuple[int, int]:
    """The picture's size, having decoded all of it and seen that it is not blank."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert np.ptp(np.asarray(picture.convert("L"))) > 128
        return picture.size


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text of the pictures that the test draws."""
    found: list[str] = []
    savefig = Figure.savefig

    def spy(self: Figure, *args: object, **options: object) -> None:
        found.extend(text.get_text() for text in self.findobj(Text) if isinstance(text, Text))
        savefig(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", spy)
    return found


def test_a_comparison_says_of_its_axes_what_is_true(tmp_path: Path) -> None:
    for accuracies, begins_at_zero in (([90.0, 80.0], False), ([60.0, 5.0], True)):
        costs = {"latency of one image (ms)": ([1.0, 100.0], [True, False])}
        figure = plots.plot_comparison(
            [("A", "a.pth"), ("B", "b.pth")],
            ("accuracy, %", accuracies),
            costs,
            ("speed", [1.0, 2.0]),
            [],
            tmp_path / "c.png",
        )
        [bars] = [axes for axes in figure.axes if axes.get_title() == "accuracy, %"]
        [front] = [axes for axes in figure.axes if axes.get_xlabel() == "latency of one image (ms)"]
        assert (bars.get_ylim()[0] == 0) == begins_at_zero
        assert ("does not begin at zero" in bars.get_ylabel()) != begins_at_zero
        assert front.get_xlim()[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("names", [CLASS_NAMES["digits"], CLASS_NAMES["balanced"], CLASS_NAMES["byclass"], ODD_NAMES])
def test_class_plots_at_every_size(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "picture.png"
    counts = confusion(len(names))
    plots.plot_confusion_matrix(counts, names, path, normalized=len(names) != 47)
    width, height = size_of(path)
    assert 700 <= width <= 2000
    assert 700 <= height <= 2000
    plots.plot_per_class_accuracy(counts.diagonal() / counts.sum(1), counts.sum(1), names, path)
    width, height = size_of(path)
    assert 1000 <= width <= 2000
    assert 400 <= height <= 2000


def test_confusion_matrix_says_what_is_wrong(tmp_path: Path, texts: list[str]) -> None:
    counts = np.array([[8, 2, 0], [3, 97, 0], [0, 0, 0]])
    plots.plot_confusion_matrix(counts, ["O", "0", "x"], tmp_path / "raw.png", normalized=False)
    assert "105 of 110 images right (95.45 %)\nmost frequent mistake: 3 of 0 taken for O" in texts
    assert {"8", "2", "3", "97"} <= set(texts)
    texts.clear()
    plots.plot_confusion_matrix(counts, ["O", "0", "x"], tmp_path / "normalized.png", normalized=True)
    assert "105 of 110 images right (95.45 %)\nmost frequent mistake: 20.0 % of O taken for 0" in texts
    assert {"80.0", "20.0", "3.0", "97.0"} <= set(texts)


def test_confusion_matrix_with_nothing_worth_a_number(tmp_path: Path) -> None:
    plots.plot_confusion_matrix(np.ones((4, 4), int), list("abcd"), tmp_path / "a.png", normalized=False)
    plots.plot_confusion_matrix(5 * np.eye(4, dtype=int), list("abcd"), tmp_path / "b.png", normalized=True)


def test_confusion_matrix_without_room_for_numbers(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "MAX_SIDE", 3)  # inches: 20 classes have as much room as 150 usually have
    plots.plot_confusion_matrix(confusion(20), list("abcdefghijklmnopqrst"), tmp_path / "a.png", normalized=False)
    assert "90" not in texts
    assert {"a", "t"} & set(texts) == {"a"}  # every second name or so
    size_of(tmp_path / "a.png")


def test_per_class_accuracy_sorts_and_marks_absent_classes(tmp_path: Path, texts: list[str]) -> None:
    accuracies, counts = np.array([0.5, np.nan, 0.9, 0.7]), np.array([10, 0, 1000, 10])
    plots.plot_per_class_accuracy(accuracies, counts, list("abcd"), tmp_path / "a.png")
    assert "Mean class accuracy 70.0 %; worst: a, 50.0 %" in texts
    notes = [text for text in texts if "n =" in text or text == "no images"]
    assert notes == ["no images", " 50.0 %  n =    10", " 70.0 %  n =    10", " 90.0 %  n = 1,000"]
    # Each row has a second, hidden label on its right.
    assert list(dict.fromkeys(text for text in texts if text in set("abcd"))) == ["b", "a", "d", "c"]


def test_per_class_accuracy_of_very_many_classes_shows_the_worst(
    tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "MAX_BARS", 3)
    accuracies = np.array([0.9, 0.1, 0.8, 0.2, 0.3])
    plots.plot_per_class_accuracy(accuracies, np.full(5, 7), list("abcde"), tmp_path / "a.png")
    assert {"b", "d", "e"} == set(texts) & set("abcde")
    assert "Mean class accuracy 46.0 %; worst: b, 10.0 %\nthe 3 worst of 5 classes" in texts


@pytest.mark.parametrize(("rate", "n", "low", "high"), [(50, 10, 23.66, 76.34), (100, 10, 72.25, 100)])
def test_wilson_interval(rate: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(rate * n // 100, n) == pytest.approx((low / 100, high / 100), abs=1e-4)  # Newcombe's figures


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_training_history(tmp_path: Path, texts: list[str], epochs: int) -> None:
    plots.plot_training_history(history(epochs), tmp_path / "a.png")
    best = min(epochs, 3)
    accuracy = 90 - (best - 3) ** 2
    assert f"Best validation accuracy {accuracy:.2f} % at epoch {best} of {epochs}" in texts
    assert size_of(tmp_path / "a.png") == (1950, 630)


def test_lr_finder_survives_divergence(tmp_path: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[float, float]] = []
    savefig = Figure.savefig

    def spy(self: Figure, *args: object, **options: object) -> None:
        limits.append(self.axes[0].get_ylim())
        savefig(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", spy)
    rates = np.geomspace(1e-7, 10, 60).tolist()
    losses = [4 - 3 * i / 50 for i in range(50)] + [10.0**i for i in range(8)] + [float("inf"), float("nan")]
    plots.plot_lr_finder(rates, losses, rates[25], tmp_path / "a.png")
    low, high = limits[0]
    assert low < 1.06
    assert 4 < high < 6
    assert f"Suggested learning rate {rates[25]:.1e}, where the loss falls fastest" in texts


def test_reliability_says_how_far_confidence_is_off(tmp_path: Path, texts: list[str]) -> None:
    images = np.array([0, 10, 90])
    calibrated, uncalibrated = (np.stack([images, images * at, images * 0.8]) for at in (0.81, 0.7))
    plots.plot_reliability(calibrated, uncalibrated, tmp_path / "a.png")
    [title] = [text for text in texts if text.startswith("Off by 1.0 points in the mean of all images")]
    assert "in the worst bin: a bin weighs as much as it has images" in title
    assert {"with temperature: off by 1.0 points", "without temperature: off by 10.0 points"} <= set(texts)
    size_of(tmp_path / "a.png")


def test_reliability_draws_no_share_of_a_few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[float]] = []
    original = Axes.plot

    def plot(axes: Axes, x: Any, *others: Any, **options: Any) -> Any:
        drawn.append(list(x))
        return original(axes, x, *others, **options)

    monkeypatch.setattr(Axes, "plot", plot)
    images = np.array([2, 10, 90])
    bins = np.stack([images, images * np.array([0.2, 0.5, 0.9]), images * 0.5])
    plots.plot_reliability(bins, bins, tmp_path / "a.png")
    assert drawn[1] == drawn[2] == pytest.approx([50, 90])


@pytest.mark.parametrize("count", [0, 1, 9])
def test_misclassified(tmp_path: Path, texts: list[str], count: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    plots.plot_misclassified(images, ["O"] * count, ["0"] * count, [0.98] * count, tmp_path / "a.png")
    assert sum(text.split() == ["O", "→", "0", "98", "%"] for text in texts) == count
    assert ("No mistakes" in texts) == (count == 0)
    size_of(tmp_path / "a.png")


def test_misclassified_with_odd_names(tmp_path: Path) -> None:
    images = np.full((len(ODD_NAMES), 20, 30), 255, np.uint8)
    plots.plot_misclassified(images, ODD_NAMES, ODD_NAMES[::-1], [0.5] * len(ODD_NAMES), tmp_path / "a.png")
    size_of(tmp_path / "a.png")


def test_label_without_a_font_is_its_code_point() -> None:
    labels, fonts = plots.printable_labels(
        ["\U000f0000", "A", "$", "a_name_that_is_much_too_long"]
    )  # private use: no font has it
    assert labels == ["U+F0000", "A", r"\$", "a_name_…too_long"]
    assert fonts == list(plots.LABEL_FONTS)


@pytest.mark.parametrize(
    "names",
    [
        [f"icon_of_the_set_{number:02}_in_the_usual_size" for number in range(36)],
        [f"{'a' * 30}{left}{'b' * 30}{right}{'z' * 30}" for left in "12" for right in "12"],
        ["ab" * length for length in range(20, 30)],
    ],
)
def test_long_names_that_begin_and_end_alike_stay_different(names: list[str]) -> None:
    labels, _ = plots.printable_labels([*names, names[0]])
    assert len(set(labels)) == len(names)
    assert labels[-1] == labels[0]
    assert max(map(len, labels)) <= plots.MAX_LABEL


@pytest.mark.parametrize(("classes", "present"), [(500, 1), (500, 100), (500, 500), (90, 60)])
def test_very_many_classes_most_of_them_without_images(
    tmp_path: Path, texts: list[str], classes: int, present: int
) -> None:
    counts = np.zeros(classes, int)
    counts[-present:] = 7
    accuracies = np.where(counts > 0, 6 / 7, np.nan)
    accuracies[-1] = 1 / 7
    plots.plot_per_class_accuracy(accuracies, counts, [f"c{i:03}" for i in range(classes)], tmp_path / "a.png")
    size_of(tmp_path / "a.png")
    [title] = [text for text in texts if text.startswith("Mean class accuracy")]
    assert f"worst: c{classes - 1:03}, 14.3 %" in title
    assert f"the {min(present, plots.MAX_BARS)} worst of {classes} classes" in title
    assert ("have no images" in title) == (present < classes)
    assert sum("n = " in text for text in texts) == min(present, plots.MAX_BARS)


def test_the_history_says_why_validation_may_be_better(tmp_path: Path, texts: list[str]) -> None:
    plots.plot_training_history(history(3), tmp_path / "a.png")
    assert any("validation after the epoch" in text for text in texts)


DRAWINGS: list[Callable[[Path | None], object]] = [
    lambda path: plots.plot_training_history(history(3), path),
    lambda path: plots.plot_confusion_matrix(confusion(5), list("abcde"), path, normalized=True),
    lambda path: plots.plot_per_class_accuracy(np.full(5, 0.5), np.full(5, 9), list("abcde"), path),
    lambda path: plots.plot_lr_finder([1e-3, 1e-2, 1e-1], [3.0, 2.0, 1.0], 1e-2, path),
    lambda path: plots.plot_misclassified(np.zeros((2, 9, 9), np.uint8), ["a", "b"], ["b", "a"], [0.9, 0.8], path),
]


@pytest.mark.parametrize("draw", DRAWINGS)
def test_same_data_same_bytes_and_no_half_file(
    tmp_path: Path, draw: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    draw(path)
    before = path.read_bytes()
    draw(path)
    assert path.read_bytes() == before

    def full_disk(self: Figure, buffer: object, **options: object) -> None:
        buffer.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="No space"):
        draw(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(GlyphError, match="cannot be written"):
        plots.plot_training_history(history(1), tmp_path / "missing" / "a.png")


def test_models_that_are_alike_are_compared_without_texts_that_collide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    drawn: list[Text] = []
    savefig, draw = Figure.savefig, Text.draw

    def save(self: Figure, *args: object, **options: object) -> None:
        figures.append(self)
        savefig(self, *args, **options)  # type: ignore[arg-type]

    def record(self: Text, renderer: RendererBase) -> None:
        if self.get_visible() and self.get_text().strip():
            drawn.append(self)
        draw(self, renderer)

    monkeypatch.setattr(Figure, "savefig", save)
    accuracies = [89.61, 89.61, 89.74, 87.46, 87.46, 87.43]
    costs = {
        "file (MB)": ([6.86, 13.7, 3.57, 0.73, 0.74, 0.3], [False, False, True, True, False, True]),
        "latency of one image (ms)": ([2.04, 0.72, 0.37, 0.88, 0.09, 0.09], [False, False, True, False, True, False]),
    }
    chance, real = ("C over A", 0.14, 0.0, 0.27, False), ("A over D", 2.14, 1.65, 2.64, True)
    plots.plot_comparison(
        [(letter, f"a-model-with-a-name-{letter}.int8.onnx") for letter in "ABCDEF"],
        ("accuracy, %", accuracies),
        costs,
        ("throughput (images/s)", [2367, 1857, 6225, 14640, 34188, 31585]),
        [chance, real, chance, real, real],
        tmp_path / "comparison.png",
    )
    [figure] = figures
    monkeypatch.setattr(Text, "draw", record)
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in drawn]
    assert len(boxes) > 60
    assert {"D, E, F", "E, F"} <= {text for text, _ in boxes}
    for number, (text, box) in enumerate(boxes):
        assert figure.bbox.contains(box.x0, box.y0), text
        assert figure.bbox.contains(box.x1, box.y1), text
        for other, around in boxes[:number]:
            assert not box.overlaps(around), (text, other)


@pytest.mark.parametrize("draw", DRAWINGS)
def test_every_picture_is_a_figure_and_needs_no_path(draw: Callable[[Path | None], object], tmp_path: Path) -> None:
    figure = draw(None)
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 100
