"""Every picture of a run; the only place that imports matplotlib or seaborn.

Each function takes plain data and returns the figure, which notebooks show.  Where it is given a path, it writes a PNG
file there, the whole file or none of it.  The same data gives the
same bytes.  Colours are those of Okabe and Ito, which the colour-blind tell apart too.
"""

import contextlib
import io
import itertools
import math
import textwrap
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
import numpy.typing as npt
import seaborn as sns
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure as Figure  # exported, too: who hands figures on imports no matplotlib
from matplotlib.gridspec import SubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image

from glyphs.core.files import replace_file
from glyphs.core.intervals import wilson_interval

BLUE, VERMILION, GREEN, SKY, ORANGE = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#E69F00"
GREY, DARK = "#8C8C8C", "#222222"
BLUES = LinearSegmentedColormap.from_list("blues", ["#E3EFF7", BLUE, "#003B5C"])
ORANGES = LinearSegmentedColormap.from_list("oranges", ["#FFF4EA", "#F3A76B", VERMILION, "#7A2F00"])
DPI = 150
MAX_SIDE = 13.2  # inches: just under 2,000 pixels
STYLE = {
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "font.family": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": DARK,
    "axes.titlesize": 11,
    "text.color": DARK,
    "xtick.color": DARK,
    "ytick.color": DARK,
    "grid.color": "#E4E4E4",
}
# In the monospaced one 0 O o, 1 I l and the two cases of a letter look different; the other has more scripts.
LABEL_FONTS = ("DejaVu Sans Mono", "DejaVu Sans")
TRAINING_IS_HARDER = (
    "Training is measured on distorted images, with dropout, while the model still learns; validation after the epoch, "
    "on images as they are, without dropout: it may be the better of the two."
)
FEWEST_IN_BIN = 10  # images, below which the share of right answers is only noise
MAX_LABEL = 16  # characters of a class name that are shown
LEFT_TO_RIGHT = "\u200e"  # an invisible mark
SHORT_LABEL = 2  # characters that fit upright above a column
MIN_FONT = 3.5  # points: below it a number in a cell is only dirt
MAX_BARS = 80
SHEET_COLUMNS = 8
PRINT_DPI, MM_PER_INCH, POINTS_PER_INCH = 200, 25.4, 72  # of what is to be printed
LABEL_LENGTH, HEADING_TOP = 9, 15.0  # characters of a row's label; millimetres
PREVIEW_SIDE = 800  # pixels: more of a picture than that would not be seen

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]
Point = tuple[float, float]


class PrintedPage(NamedTuple):
    """What is on a page to print, in millimetres from its top left corner.

    squares : left, top, side and brightness, each over those before it.  rules : grey lines from one point to another.
    labels : the middle and the text.  heading : lines at the top.
    """

    squares: Sequence[tuple[float, float, float, float]]
    rules: Sequence[tuple[Point, Point]]
    labels: Sequence[tuple[float, float, str]]
    heading: str


def plot_training_history(rows: Sequence[Mapping[str, float]], path: Path | None = None) -> Figure:
    """Loss, accuracy and learning rate by epoch, with the epoch of the best validation accuracy marked.

    Parameters
    ----------
    rows : one or more, each with epoch, train_loss, train_accuracy, val_loss, val_accuracy, learning_rate;
        accuracies in 0..1.
    """
    epochs = [row["epoch"] for row in rows]
    best = max(rows, key=lambda row: row["val_accuracy"])
    with _picture(path, 13, 4.2) as figure:
        loss, accuracy, rate = figure.subplots(1, 3)
        for axes, quantity, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
            for part, name, colour, marker in (
                ("train", "training", BLUE, "o"),
                ("val", "validation", VERMILION, "s"),
            ):
                values = [scale * row[f"{part}_{quantity}"] for row in rows]
                axes.plot(epochs, values, color=colour, marker=marker, markersize=3.5, linewidth=1.6, label=name)
        rate.plot(epochs, [row["learning_rate"] for row in rows], color=GREEN, marker="o", markersize=3.5)
        for axes, title, label in (
            (loss, "Loss", "cross-entropy (nats)"),
            (accuracy, "Accuracy", "images classified correctly (%)"),
            (rate, "Learning rate", "learning rate"),
        ):
            axes.axvline(best["epoch"], color=GREY, linestyle=":", linewidth=1.2, zorder=0)
            axes.set(title=title, xlabel="epoch", ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
            axes.grid(axis="y")
        rate.set_ylim(bottom=0)
        loss.legend(frameon=False)
        accuracy.plot(
            best["epoch"],
            100 * best["val_accuracy"],
            linestyle="none",
            marker="*",
            markersize=14,
            color=VERMILION,
            markeredgecolor="white",
            label=f"best: {100 * best['val_accuracy']:.2f} %",
        )
        accuracy.legend(frameon=False, loc="lower right")
        figure.suptitle(
            f"Best validation accuracy {100 * best['val_accuracy']:.2f} % at epoch {best['epoch']:.0f} "
            f"of {max(epochs):.0f}",
            fontsize=13,
        )
        figure.supxlabel(TRAINING_IS_HARDER, fontsize=8, color=GREY)
    return figure


def plot_confusion_matrix(
    counts: IntArray, class_names: Sequence[str], path: Path | None = None, *, normalized: bool
) -> Figure:
    """The confusion matrix: what is right in blue, mistakes in orange on a scale of their own.

    On one scale the diagonal, near 100 %, would leave every mistake the colour of zero.

    Parameters
    ----------
    counts : int [C, C]; rows are true classes, columns what they were taken for.
    normalized : show each row as percentages of its class, instead of counts.
    """
    size = len(counts)
    labels, fonts = printable_labels(class_names)
    shown = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) if normalized else counts.astype(float)
    diagonal = np.eye(size, dtype=bool)
    mistakes = np.where(diagonal, 0, shown)
    longest = max(map(len, labels))
    margin = 1.8 + (0.09 * longest if longest > SHORT_LABEL else 0)  # inches, around the cells
    cell = min(0.6, (MAX_SIDE - margin) / size)
    decimals = int(normalized and size <= 15)  # where the cells have room for one
    text = np.array([f"{v:.{decimals}f}" if v >= 10**-decimals else "" for v in shown.flat], dtype=object)
    font_size = min(10, cell * 72 * min(0.45, 1.36 / max(2, *map(len, text))))
    unit = "% of the true class" if normalized else "images"
    with _picture(path, max(cell * size + margin, 5), cell * size + margin - 0.2) as figure:
        axes = figure.subplots()
        for name, hidden, colours, norm, bottom in (
            ("right", ~diagonal, BLUES, Normalize(0, 100 if normalized else max(1, shown.max())), 0.52),
            # The square root of the number: a cell of 1 % is then seen beside one of 40 %.
            ("wrong", diagonal | (shown == 0), ORANGES, PowerNorm(0.5, 0, max(1, mistakes.max())), 0),
        ):
            sns.heatmap(
                shown,
                ax=axes,
                mask=hidden,
                cmap=colours,
                norm=norm,
                vmin=norm.vmin,  # else seaborn looks for the lowest cell, and warns where all are hidden
                vmax=norm.vmax,
                annot=text.reshape(size, size) if font_size >= MIN_FONT else None,
                fmt="",
                annot_kws={"fontsize": font_size},
                square=True,
                cbar=False,
                xticklabels=False,
                yticklabels=False,
            )
            beside = axes.inset_axes((1 + 0.45 / (cell * size), bottom, 0.15 / (cell * size), 0.48))
            ticks = MaxNLocator(6, integer=not normalized)
            bar = figure.colorbar(axes.collections[-1], cax=beside, ticks=ticks)
            bar.set_label(f"{name} ({unit})")
            bar.outline.set_visible(False)
        for number in axes.texts:
            number.set_in_layout(False)  # they lie within the cells; measuring a thousand of them takes a while
        _tick_cells(axes, labels, fonts, font_size=min(11, cell * 72 * 0.62))
        axes.set_xlabel("predicted class", fontsize=12)
        axes.set_ylabel("true class", fontsize=12)
        right, total = int(np.trace(counts)), int(counts.sum())
        title = f"{right:,} of {total:,} images right ({100 * right / max(total, 1):.2f} %)"
        if right < total:
            true, predicted = divmod(int(mistakes.argmax()), size)
            often = f"{mistakes[true, predicted]:.1f} % of" if normalized else f"{counts[true, predicted]:,} of"
            title += f"\nmost frequent mistake: {often} {_within(labels[true])} taken for {_within(labels[predicted])}"
        figure.suptitle(title, fontsize=12, fontfamily=fonts)
    return figure


def _tick_cells(axes: Axes, labels: Sequence[str], fonts: Sequence[str], font_size: float) -> None:
    """Name every row and column, short names on both sides; where there is no room for all, every so many."""
    short = max(map(len, labels)) <= SHORT_LABEL
    places = range(0, len(labels), math.ceil(MIN_FONT / font_size))
    for axis, rotation in ((axes.xaxis, 0 if short else 90), (axes.yaxis, 0)):
        axis.set_ticks(
            [place + 0.5 for place in places],
            [labels[place] for place in places],
            fontsize=max(font_size, MIN_FONT),
            fontfamily=list(fonts),
            rotation=rotation,
        )
    axes.tick_params(length=0, pad=3, labeltop=short, labelright=short)
    lines = np.arange(len(labels) + 1)
    for draw in (axes.hlines, axes.vlines):
        draw(lines, 0, len(labels), color="#E4E4E4", linewidth=0.4)


def plot_per_class_accuracy(
    accuracies: FloatArray, counts: IntArray, class_names: Sequence[str], path: Path | None = None
) -> Figure:
    """A bar a class, the best on top; with very many classes, only the worst ones.

    Parameters
    ----------
    accuracies : float [C] in 0..1; anything for a class without images, which is listed last.
    counts : int [C], images of each class.
    """
    labels, fonts = printable_labels(class_names)
    present = counts > 0
    mean = 100 * float(accuracies[present].mean())
    # From the bottom up: classes without images, where there is room for them, then the worst to the best.
    worst_first = [place for place in np.argsort(accuracies, kind="stable").tolist() if present[place]][:MAX_BARS]
    absent = np.flatnonzero(~present).tolist()
    order = [*absent[: MAX_BARS - len(worst_first)], *worst_first]
    row = min(0.26, (MAX_SIDE - 1.7) / len(order))  # inches
    digits = len(f"{counts.max():,}")
    with _picture(path, 9, row * len(order) + 1.7) as figure:
        axes = figure.subplots()
        for place, i in enumerate(order):
            note = "no images"
            if present[i]:
                value = 100 * float(accuracies[i])
                axes.barh(place, value, height=0.76, color=SKY if value >= mean else ORANGE)
                right = round(float(accuracies[i]) * int(counts[i]))
                low, high = wilson_interval(right, int(counts[i]))
                axes.hlines(place, 100 * low, 100 * high, color=DARK, linewidth=0.9)
                note = f"{value:5.1f} %  n = {counts[i]:{digits},}"
            axes.text(101, place, note, va="center", fontsize=min(9, row * 46), fontfamily=LABEL_FONTS[0])
        axes.axvline(mean, color=DARK, linestyle="--", linewidth=1)
        axes.set_yticks(range(len(order)), [labels[i] for i in order], fontsize=min(10, row * 50), fontfamily=fonts)
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 100), ylim=(-0.7, len(order) - 0.3), ylabel="class")
        axes.set_xlabel("images classified correctly (%)\norange: below the mean (dashed); thin lines: 95 % intervals")
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        worst = worst_first[0]
        title = f"Mean class accuracy {mean:.1f} %; worst: {_within(labels[worst])}, {100 * accuracies[worst]:.1f} %"
        if len(labels) > len(order):
            title += f"\nthe {len(worst_first)} worst of {len(labels):,} classes"
            title += f"; {len(absent):,} have no images" if absent else ""
        figure.suptitle(title, fontsize=12, fontfamily=fonts)
    return figure


def plot_lr_finder(
    learning_rates: Sequence[float], losses: Sequence[float], suggestion: float, path: Path | None = None
) -> Figure:
    """The smoothed loss of a range test against the learning rate, and the rate it suggests.

    Parameters
    ----------
    losses : one for each learning rate; may diverge or stop being finite, which is cut off at the top.
    """
    rates, values = np.asarray(learning_rates), np.asarray(losses)
    finite = np.isfinite(values)
    rates, values = rates[finite], values[finite]
    low = values.min()
    start = values[: max(1, len(values) // 10)].max()
    top = min(values.max(), start + 0.3 * (start - low))
    margin = 0.06 * (top - low) or 0.1
    marked = values[np.argmin(np.abs(np.log(rates / suggestion)))]
    with _picture(path, 8, 5) as figure:
        axes = figure.subplots()
        axes.plot(rates, values, color=BLUE, linewidth=2)
        axes.axvline(suggestion, color=GREY, linestyle=":", linewidth=1.2, zorder=0)
        axes.plot(suggestion, marked, marker="o", markersize=9, color=VERMILION, markeredgecolor="white")
        axes.annotate(
            f"steepest fall\nat {suggestion:.1e}",
            (suggestion, marked),
            xytext=(-14, -10),
            textcoords="offset points",
            ha="right",
            va="top",
            color=VERMILION,
        )
        axes.set_xscale("log")
        axes.set(ylim=(low - margin, top + margin), xlabel="learning rate", ylabel="smoothed loss (nats)")
        axes.grid()
        axes.set_title(f"Suggested learning rate {suggestion:.1e}, where the loss falls fastest", fontsize=13)
    return figure


def plot_reliability(calibrated: FloatArray, uncalibrated: FloatArray, path: Path | None = None) -> Figure:
    """How often the answers of each confidence are right, and how many there are; perfect is the diagonal.

    Parameters
    ----------
    calibrated, uncalibrated : float [3, B], with and without temperature: images, summed confidence and correct
        answers in each of B bins of equal width.  A bin of fewer than 10 images is not drawn.
    """
    with _picture(path, 6.2, 6.4) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        top.plot([0, 100], [0, 100], color=GREY, linestyle=":", linewidth=1.2, label="perfect")
        errors = []
        for (images, confidence, correct), name, colour, marker in (
            (uncalibrated, "without temperature", ORANGE, "s"),
            (calibrated, "with temperature", BLUE, "o"),
        ):
            errors.append(100 * np.abs(confidence - correct).sum() / images.sum())
            some = images >= min(FEWEST_IN_BIN, images.max())
            top.plot(
                100 * confidence[some] / images[some],
                100 * correct[some] / images[some],
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=1.6,
                label=f"{name}: off by {errors[-1]:.1f} points",
            )
        edges = np.linspace(0, 100, len(calibrated[0]) + 1)
        bottom.bar(edges[:-1], calibrated[0], width=np.diff(edges), align="edge", color=BLUE, edgecolor="white")
        bottom.set_yscale("log")
        images, confidence, correct = calibrated
        drawn = images >= min(FEWEST_IN_BIN, images.max())
        furthest = float((100 * np.abs(confidence - correct)[drawn] / images[drawn]).max())
        title = (
            f"Off by {errors[1]:.1f} points in the mean of all images (calibration error),\n"
            f"by {furthest:.1f} in the worst bin: a bin weighs as much as it has images, below"
        )
        top.set(title=title, ylabel="answers that are right (%)", ylim=(0, 101))
        bottom.set(xlabel="confidence (%)", ylabel="images", xlim=(0, 101))
        top.grid()
        bottom.grid(axis="y")
        top.legend(frameon=False, loc="lower right")
    return figure


def plot_batch(images: npt.NDArray[np.uint8], names: Sequence[str], title: str, path: Path | None = None) -> Figure:
    """A contact sheet of images, each under its class.

    images : uint8 [K, H, W], or [K, H, W, 3] in colour; K above 0.
    """
    labels, fonts = printable_labels(names)
    columns = min(SHEET_COLUMNS, len(images))
    sheet_rows = math.ceil(len(images) / columns)
    with _picture(path, max(1.3 * columns, 6.5), 1.4 * sheet_rows + 0.6) as figure:
        cells = figure.subplots(sheet_rows, columns, squeeze=False).ravel()
        for axes in cells:
            axes.axis("off")
        for axes, image, label in zip(cells, images, labels, strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_title(_within(label), fontsize=9, fontfamily=fonts)
        figure.suptitle(title, fontsize=12)
    return figure


def plot_misclassified(
    images: npt.NDArray[np.uint8],
    true_names: Sequence[str],
    predicted_names: Sequence[str],
    confidences: Sequence[float],
    path: Path | None = None,
) -> Figure:
    """A contact sheet of mistakes, each under "true → predicted" and the model's confidence.

    Parameters
    ----------
    images : uint8 [K, H, W], or [K, H, W, 3] in colour, in the order to show them; K may be 0.
    confidences : K in 0..1.
    """
    if len(images) == 0:
        with _picture(path, 6, 1.5) as figure:
            figure.text(0.5, 0.5, "No mistakes", ha="center", va="center", fontsize=16, color=GREEN)
        return figure
    labels, fonts = printable_labels([*true_names, *predicted_names])
    longest = max(map(len, labels))
    between, after = (" ", "  ") if longest <= SHORT_LABEL else ("\n", "\n")
    columns = min(SHEET_COLUMNS, len(images))
    sheet_rows = math.ceil(len(images) / columns)
    caption_height, tile_width = (0.4 if longest <= SHORT_LABEL else 0.7), 1.1  # inches
    height = caption_height + tile_width * images.shape[1] / images.shape[2]
    with _picture(path, max(1.3 * columns, 6.5), height * sheet_rows + 0.6) as figure:
        cells = figure.subplots(sheet_rows, columns, squeeze=False).ravel()
        for axes in cells:
            axes.axis("off")
        for axes, image, true, predicted, confidence in zip(
            cells, images, labels[: len(images)], labels[len(images) :], confidences, strict=False
        ):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            caption = f"{_within(true)}{between}→ {_within(predicted)}{after}{100 * confidence:.0f} %"
            axes.set_title(caption, fontsize=9 if longest <= SHORT_LABEL else 8, fontfamily=fonts)
        figure.suptitle(f"Most confident mistakes, {len(images)} shown: true → predicted, confidence", fontsize=12)
    return figure


def plot_prediction(
    picture: Image.Image,
    pixels: npt.NDArray[np.uint8] | None,
    top_k: Sequence[tuple[str, float]],
    title: str,
    path: Path | None = None,
) -> Figure:
    """A picture, what the model saw of it, and the likeliest classes with their probabilities.

    Parameters
    ----------
    picture : of any size and mode.
    pixels : uint8 [H, W], or [H, W, 3] in colour; None where the model saw nothing.
    top_k : names and probabilities in 0..1, the likeliest first; empty where the model saw nothing.
    """
    preview = picture.copy()
    if not preview.mode.startswith(("I", "F")):  # those have no fixed range: imshow finds it
        preview = preview.convert("RGBA")
    preview.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    (heading, *labels), fonts = printable_labels([title, *(label for label, _ in top_k)])
    with _picture(path, 10, max(3.6, 0.3 * len(top_k) + 1.2)) as figure:
        original, seen, bars = figure.subplots(1, 3)
        original.imshow(preview, cmap="gray")
        original.set_title("the picture")
        if pixels is not None:
            seen.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        seen.set_title("what the model saw" if pixels is not None else "the model saw nothing")
        places = range(len(top_k))
        percentages = [100 * probability for _, probability in top_k]
        drawn = bars.barh(places, percentages, color=[BLUE, *[SKY] * len(top_k)][: len(top_k)])
        bars.bar_label(drawn, fmt="%.1f %%", padding=3, fontsize=9)
        bars.set_yticks(places, labels, fontfamily=fonts, fontsize=11)
        bars.set(xlim=(0, 118), ylim=(len(top_k) - 0.4, -0.6), title="its answers" if top_k else "")
        bars.tick_params(length=0, labelbottom=False)
        bars.spines[["left", "bottom"]].set_visible(False)
        for axes in (original, seen) if top_k else (original, seen, bars):
            axes.axis("off")
        figure.suptitle(heading, fontsize=15, fontfamily=fonts)
    return figure


def plot_reading(
    picture: Image.Image,
    characters: Sequence[tuple[str, float | None, tuple[int, ...]]],
    title: str,
    path: Path | None = None,
) -> Figure:
    """A picture with a box around each character, its reading above, red where it is less than 80 % sure.

    Parameters
    ----------
    picture : of any size and mode.
    characters : each one's label, probability in 0..1 or None, and box: left, top, right, bottom in pixels.
    """
    if not picture.mode.startswith(("I", "F")):
        picture = picture.convert("RGBA")
    labels, fonts = printable_labels([label for label, _, _ in characters])
    width, height = picture.size
    with _picture(path, 12, min(12, max(2, 12 * height / width + 0.6))) as figure:
        axes = figure.subplots()
        axes.imshow(picture, cmap="gray")
        for label, (_, probability, (left, top, right, bottom)) in zip(labels, characters, strict=True):
            colour = BLUE if probability is None or probability >= 0.8 else VERMILION
            xs, ys = (left, right, right, left, left), (top, top, bottom, bottom, top)
            axes.plot(xs, ys, color=colour, linewidth=0.8)
            # The white around it keeps it legible over ink, and on the side of a form's box.
            axes.annotate(
                label, (left, top), (0, 2), textcoords="offset points", color=colour, fontsize=9, fontfamily=fonts,
                verticalalignment="bottom", path_effects=[withStroke(linewidth=3, foreground="white")],
            )  # fmt: skip
        axes.axis("off")
        axes.set_title(title)
    return figure


def plot_pages(
    pages: Sequence[PrintedPage], size: Point, rule: tuple[float, float], path: Path | None = None
) -> list[Figure]:
    """Pages to print, of so many millimetres; into one .pdf file, or, a single one, into a .png file.

    Parameters
    ----------
    size : width and height of the paper, in millimetres.
    rule : thickness of the rules in millimetres, and their brightness from 0 to 1.
    """
    labels, fonts = printable_labels([text for page in pages for _, _, text in page.labels], LABEL_LENGTH)
    texts = iter(labels)
    inches = [length / MM_PER_INCH for length in size]
    figures = []
    with matplotlib.style.context(["default", STYLE]):
        for page in pages:
            figure = Figure(figsize=(inches[0], inches[1]))
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
            axes.axis("off")
            thickness = rule[0] / MM_PER_INCH * POINTS_PER_INCH
            axes.add_collection(
                LineCollection(page.rules, colors=str(rule[1]), linewidths=thickness, capstyle="projecting")
            )
            squares = [Rectangle((left, top), side, side) for left, top, side, _ in page.squares]
            colours = [str(grey) for *_, grey in page.squares]
            axes.add_collection(PatchCollection(squares, facecolors=colours, edgecolors="none", antialiased=False))
            for x, y, _ in page.labels:
                text = next(texts)
                font_size = min(14, 75 / len(text))
                axes.text(x, y, text, ha="center", va="center", fontsize=font_size, fontfamily=fonts)
            axes.text(size[0] / 2, HEADING_TOP, page.heading, ha="center", va="center", fontsize=11)
            figures.append(figure)
        if path is not None:
            buffer = io.BytesIO()
            if path.suffix.lower() == ".pdf":
                with PdfPages(buffer, metadata={"CreationDate": None}) as pdf:
                    for figure in figures:
                        pdf.savefig(figure)
            else:
                [figure] = figures
                figure.savefig(buffer, format="png", dpi=PRINT_DPI, metadata={"Software": None})
            replace_file(path, buffer.getvalue())
    return figures


def plot_analysis(
    blocks: Sequence[str], amounts: Mapping[str, Sequence[float]], name: str, path: Path | None = None
) -> Figure:
    """Where a model's time, multiply-adds and parameters go: for each block of the network its share of each.

    Parameters
    ----------
    blocks : from the input to the output.
    amounts : for each quantity a number for each block, in any unit; a quantity of zeros only was not measured.
    """
    labels, fonts = printable_labels(blocks, 24)
    measured = {quantity: values for quantity, values in amounts.items() if sum(values) > 0}
    height = 0.8 / max(1, len(measured))
    with _picture(path, 8, 0.52 * len(blocks) + 1.5) as figure:
        axes = figure.subplots()
        for row, ((quantity, values), colour) in enumerate(zip(measured.items(), (VERMILION, SKY, BLUE), strict=False)):
            places = [place + (row - (len(measured) - 1) / 2) * height for place in range(len(blocks))]
            shares = [100 * value / sum(values) for value in values]
            bars = axes.barh(places, shares, height=0.92 * height, color=colour, label=quantity)
            axes.bar_label(bars, [f"{share:.1f}" if share else "" for share in shares], padding=3, fontsize=7)
        axes.set_yticks(range(len(blocks)), labels, fontfamily=fonts)
        axes.set(ylim=(len(blocks) - 0.4, -0.6), xlabel="share of the whole network (%)")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.1)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.legend(frameon=False, loc="best")
        *most, last = measured
        what = f"{', '.join(most)} and {last}" if most else last
        figure.suptitle(f"Where {what} of {printable_labels([name], 40)[0][0]} go", fontsize=13)
    return figure


Numbers = Sequence[float | None]  # one for each model, None where it is not known


def plot_comparison(
    models: Sequence[tuple[str, str]],
    quality: tuple[str, Numbers] | None,
    costs: Mapping[str, tuple[Numbers, Sequence[bool] | None]],
    speed: tuple[str, Numbers],
    differences: Sequence[tuple[str, float, float, float, bool]],
    path: Path | None = None,
) -> Figure:
    """Models side by side: accuracy, costs and speed as bars; accuracy against each cost; differences of accuracy.

    Parameters
    ----------
    models : a letter and a name each.
    quality : which accuracy, and its values in percent; None where accuracies do not compare.
    costs : for each what it is: the values, and which models are on the Pareto front of accuracy and this cost; None
        instead of the front where there is none.
    speed : what it is, and the values.
    differences : what is compared, percentage points, the two ends of the interval, and whether chance is unlikely.
    """
    letters = [letter for letter, _ in models]
    bars = [*([quality] if quality else []), *((title, values) for title, (values, _) in costs.items()), speed]
    fronts = [(title, values, front) for title, (values, front) in costs.items() if front is not None]
    lower = (len(fronts) if quality else 0) + bool(differences)
    with _picture(path, 13, 8.2 if lower else 4.2) as figure:
        rows = figure.add_gridspec(2 if lower else 1, 1)

        def row_of(grid: SubplotSpec, count: int) -> list[Axes]:
            cells = grid.subgridspec(1, count)
            return [figure.add_subplot(cells[0, place]) for place in range(count)]

        for place, (axes, (title, values)) in enumerate(zip(row_of(rows[0], len(bars)), bars, strict=True)):
            _bars(axes, title, letters, values, from_zero=quality is None or place > 0)
        panels = row_of(rows[1], lower) if lower else []
        if differences:
            _forest(panels.pop(), differences)
        for axes, (title, values, front) in zip(panels, fronts, strict=False):
            assert quality is not None  # else there would be no panel for them
            _scatter_front(axes, title, values, quality, front, letters)
        names, fonts = printable_labels([name for _, name in models], 40)
        legend = "      ".join(f"{letter}: {_within(name)}" for letter, name in zip(letters, names, strict=True))
        figure.suptitle(textwrap.fill(legend, 150), fontsize=10, fontfamily=fonts)
    return figure


def _colour(place: int) -> str:
    return (BLUE, VERMILION, GREEN, SKY, ORANGE, GREY)[place % 6]


def _bars(axes: Axes, title: str, letters: Sequence[str], values: Numbers, *, from_zero: bool) -> None:
    """A bar a model, with its value above."""
    present = {letter: value for letter, value in zip(letters, values, strict=True) if value is not None}
    colours = [_colour(letters.index(letter)) for letter in present]
    drawn = axes.bar(list(present), list(present.values()), color=colours, width=0.6)
    texts = [f"{value:,.{0 if value >= 1000 else 2}f}" for value in present.values()]
    axes.bar_label(drawn, texts, padding=3, fontsize=10 if len(texts) <= 4 else 7)
    axes.margins(x=0.15, y=0.15)
    axes.tick_params(axis="x", length=0)
    axes.set_title(title)
    if present and not from_zero:  # else they would all look alike
        low, high = min(present.values()), max(present.values())
        room = max(1.0, high - low)
        bottom = max(0.0, low - room)
        axes.set_ylim(bottom, high + 0.3 * room)
        if bottom > 0:
            axes.set_ylabel("the axis does not begin at zero", fontsize=8, color=GREY)


def _scatter_front(
    axes: Axes, title: str, costs: Numbers, quality: tuple[str, Numbers], front: Sequence[bool], letters: Sequence[str]
) -> None:
    """Accuracy against a cost; a dashed line joins the models that no other beats in both."""
    name, accuracies = quality
    points = [
        (cost, accuracy, place)
        for place, (cost, accuracy) in enumerate(zip(costs, accuracies, strict=True))
        if cost is not None and accuracy is not None
    ]
    best = sorted(point for point in points if front[point[2]])
    axes.step([x for x, *_ in best], [y for _, y, _ in best], "--", where="post", color=GREY, linewidth=1.2, zorder=0)
    for neighbours in _neighbours(points):
        # One label for all of them, and a ring within a ring where they coincide: nothing hides another.
        for inside, (cost, accuracy, place) in enumerate(neighbours):
            colour = _colour(place)
            axes.plot(
                cost,
                accuracy,
                "o",
                markersize=11 + 6 * (len(neighbours) - 1 - inside),
                color=colour if front[place] else "white",
                markeredgecolor=colour,
                markeredgewidth=2,
            )
        right, height, _ = max(neighbours)
        axes.annotate(
            ", ".join(letters[place] for *_, place in neighbours),
            (right, height),
            xytext=(5 + 3 * len(neighbours), -16),  # where the dashed line never is
            textcoords="offset points",
            fontsize=11,
        )
    axes.margins(0.2)
    axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))  # no time and no size is below zero
    axes.set(xlabel=title, ylabel=name)
    axes.set_title("filled: on the Pareto front", fontsize=10)
    axes.grid()


def _neighbours(points: Sequence[tuple[float, float, int]]) -> list[list[tuple[float, float, int]]]:
    """The points (x, y, place), those together whose marks would touch: within a tenth of what the points span."""
    spans = [max(values) - min(values) for values in list(zip(*points, strict=True))[:2]]
    groups: list[list[tuple[float, float, int]]] = []
    for point in points:
        near = [
            group
            for group in groups
            if any(abs(x - point[0]) <= spans[0] / 10 and abs(y - point[1]) <= spans[1] / 10 for x, y, _ in group)
        ]
        groups = [group for group in groups if group not in near]
        groups.append(sorted([point, *(other for group in near for other in group)], key=lambda other: other[2]))
    return groups


def _forest(axes: Axes, differences: Sequence[tuple[str, float, float, float, bool]]) -> None:
    """Differences with their intervals, beside the zero that chance would give."""
    places = range(len(differences))
    for place, (_, points, low, high, real) in zip(places, differences, strict=True):
        colour = GREEN if real else GREY
        axes.plot([low, high], [place, place], color=colour, linewidth=2.5)
        axes.plot(points, place, "o", color=colour, markersize=9)
    axes.axvline(0, color=DARK, linestyle=":", linewidth=1.2)
    notes = [f"{name}:\n{points:.2f} ({low:.2f} to {high:.2f})" for name, points, low, high, _ in differences]
    axes.set_yticks(places, notes, fontsize=9)
    axes.set(ylim=(len(differences) - 0.5, -0.5), xlabel="percentage points, 95 % interval")
    chance = not all(real for *_, real in differences)
    axes.set_title("difference of accuracy" + "\n(grey: may be chance)" * chance, fontsize=10)
    axes.margins(x=0.1)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


@contextlib.contextmanager
def _picture(path: Path | None, width: float, height: float) -> Iterator[Figure]:
    """A figure of that many inches to draw on; written to the path, where there is one, if nothing went wrong."""
    buffer = io.BytesIO()
    # From matplotlib's own defaults, so that a user's matplotlibrc changes nothing.
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        yield figure
        if path is not None:
            figure.savefig(buffer, format="png", metadata={"Software": None})
    if path is not None:
        replace_file(path, buffer.getvalue())


def printable_labels(names: Sequence[str], longest: int = MAX_LABEL) -> tuple[list[str], list[str]]:
    """What to print for each name, and the fonts to print them all with, each a fallback for those before it.

    Of a name with more characters than `longest` the middle is left out, or, where names would then look the same, what
    they share; where that does not tell them apart either, they are numbered.  A character that no installed font has
    is printed as its code point (U+5B57), so matplotlib never meets one that it would warn about and draw as an empty
    box.
    """
    missing = {character for name in names for character in name if character.isprintable()}
    fonts = list(LABEL_FONTS)
    # Regular faces only: they are what matplotlib looks for.  Its own font of last resort has "every"
    # character, as one and the same box.
    others = {
        font.name
        for font in font_manager.fontManager.ttflist
        if (font.weight, font.style) == (400, "normal") and not font.name.startswith("Last Resort")
    }
    for family in [*LABEL_FONTS, *sorted(others - set(LABEL_FONTS))]:
        if not missing:
            break
        font = font_manager.get_font(font_manager.findfont(family))
        found = {character for character in missing if font.get_char_index(ord(character))}
        missing -= found
        if found and family not in fonts:
            fonts.append(family)

    texts = ["".join(c if c.isprintable() and c not in missing else f"U+{ord(c):04X}" for c in n) for n in names]
    short = _shortened(list(dict.fromkeys(texts)), longest)
    return [short[text].replace("$", r"\$") for text in texts], fonts  # else a pair of them would be a formula


def _shortened(texts: Sequence[str], longest: int) -> dict[str, str]:
    """A short form for each of some different texts, all of them different."""
    half = longest // 2
    short = {text: text if len(text) <= longest else f"{text[: half - 1]}…{text[-half:]}" for text in texts}
    for same in _alike(short):
        start, end = _shared(same), _shared([text[::-1] for text in same])
        for text in same:
            rest = text[start : max(start, len(text) - end)]
            if len(rest) <= longest - 2:
                # As much of what they share before and after it as there is room for
                first = max(0, min(start - (longest - 2 - len(rest)) // 2, len(text) - longest + 2))
                part = text[first : first + longest - 2]
                short[text] = "…" * (first > 0) + part + "…" * (first + len(part) < len(text))
    for number, text in enumerate((text for same in _alike(short) for text in same), start=1):
        short[text] = f"{text[: longest - 2 - len(str(number))]}… {number}"
    return short


def _shared(texts: Sequence[str]) -> int:
    """With how many characters all of them begin alike."""
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*texts, strict=False)))


def _alike(short: Mapping[str, str]) -> list[list[str]]:
    """The texts that have the same short form as others, in groups."""
    groups: dict[str, list[str]] = {}
    for text, form in short.items():
        groups.setdefault(form, []).append(text)
    return [texts for texts in groups.values() if len(texts) > 1]


def _within(label: str) -> str:
    """A label for use in a longer text: one that runs from right to left would turn round what stands beside it."""
    if any(unicodedata.bidirectional(character) in ("R", "AL") for character in label):
        return f"{LEFT_TO_RIGHT}{label}{LEFT_TO_RIGHT}"
    return label
