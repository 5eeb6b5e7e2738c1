"""glyphs.evaluation.analyzer: what it says of a model must be what the model is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from glyphs.core import timing
from glyphs.core.config import Config
from glyphs.core.errors import CheckpointError, ConfigError
from glyphs.data.loaders import TensorLoader
from glyphs.evaluation import analyzer as analyze
from glyphs.evaluation.analyzer import ModelAnalyzer, format_analysis
from glyphs.evaluation.comparator import ModelComparator
from glyphs.models.checkpoint import (
    load_checkpoint,
    load_model,
    save_checkpoint,
    weights_digest,
    write_checkpoint,
)
from glyphs.models.export import patterns
from glyphs.models.network import EnhancedGlyphCNN
from tests.conftest import refused
from tests.small import NAMES, onnx_weights, save_small_onnx


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "ROUND_SECONDS", 0.001)
    monkeypatch.setattr(analyze, "LAYER_CALLS", 5)


def save(path: Path, names: list[str], *, residual: bool = False, seed: int = 0, **metrics: float) -> Path:
    torch.manual_seed(seed)
    model = EnhancedGlyphCNN(len(names), use_residual=residual)
    save_checkpoint(path, model, Config(use_residual=residual, device="cpu"), names, metrics=metrics)
    return path


def picture_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def test_a_residual_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pth", NAMES, residual=True, val_accuracy=0.9, epoch=3)
    analyzer = ModelAnalyzer(path, "cpu", batch_size=4)
    assert analyzer.count_parameters() == {"total": 3_409_135, "trainable": 3_409_135}
    assert analyzer.compute_size()["disk_bytes"] == path.stat().st_size
    assert 4 * 3_409_135 < analyzer.compute_size()["memory_bytes"] < 4.1 * 3_409_135
    layers = {layer.name: layer for layer in analyzer.description.layers}
    # A 3x3 convolution of 320 channels over 4x4 pixels, counted by hand.
    last = layers["stages.5.conv2"]
    assert (last.type, last.output_shape) == ("Conv3x3", (1, 320, 4, 4))
    assert (last.parameters, last.multiply_adds) == (320 * 320 * 9, 320 * 320 * 9 * 16)
    assert layers["classifier"].multiply_adds == 320 * 47
    assert sum(layer.parameters for layer in layers.values()) == 3_409_135
    assert analyzer.count_multiply_adds() == sum(layer.multiply_adds for layer in layers.values())
    assert round(analyzer.count_multiply_adds() / 1e6, 1) == 70.3  # as the model's docstring says
    report = analyzer.analyze()
    assert sum(layer["share"] for layer in report["layers"]) == pytest.approx(1)
    assert report["layers"][-1]["name"] == analyze.BETWEEN
    assert [(row["device"], row["batch"]) for row in report["inference"]] == [("cpu", 1), ("cpu", 4)]
    for row in report["inference"]:
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"])
    assert report["stored_metrics"] == {"val_accuracy": 0.9, "epoch": 3}
    assert report["settings"]["use_residual"] is True
    json.dumps(report, allow_nan=False)
    text = format_analysis(report)
    assert "3,409,135 (3,409,135 trainable)" in text
    assert "70.3 million" in text
    assert "stages.5.conv2" in text
    assert max(map(len, text.splitlines())) <= analyze.WIDTH
    analyzer.plot(tmp_path / "a.png")
    assert picture_size(tmp_path / "a.png")[0] >= 800


def test_multiply_adds_of_the_light_network(tmp_path: Path) -> None:
    analyzer = ModelAnalyzer(save(tmp_path / "m.pth", NAMES), "cpu")
    assert round(analyzer.count_multiply_adds() / 1e6, 1) == 3.6


def test_a_layer_takes_the_time_that_it_takes() -> None:
    class Sleeps(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            import time

            time.sleep(0.01)
            return images.float()

    layers = analyze.measure_layers(torch.nn.Sequential(Sleeps(), torch.nn.ReLU()))
    seconds = [layer.seconds or 0 for layer in layers]
    assert 0.01 <= seconds[0] < 0.05
    assert seconds[0] > 10 * seconds[1]
    assert seconds[2] >= 0


class Attending(torch.nn.Module):
    """The kinds of layers that others' networks have: recurrent, called again and again, attention, products."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.LSTM(28, 16, batch_first=True)  # gives a tuple
        self.mix = torch.nn.Linear(16, 16)
        self.attend = torch.nn.MultiheadAttention(16, 2, batch_first=True)
        self.classifier = torch.nn.Linear(16, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x, _ = self.rows(images[:, 0])
        for _ in range(5):
            x = self.mix(x)
        x, _ = self.attend(x, x, x)
        x = torch.nn.functional.scaled_dot_product_attention(x, x, x)
        logits: torch.Tensor = self.classifier(x.mean(1))
        return logits


def test_multiply_adds_of_any_network_by_hand() -> None:
    layers = {layer.name: layer for layer in analyze.measure_layers(Attending().eval())}
    assert layers["rows"].output_shape == (1, 28, 16)
    assert layers["rows"].multiply_adds == 28 * 4 * 16 * (28 + 16)
    assert layers["mix"].multiply_adds == 5 * 28 * 16 * 16
    assert layers["classifier"].multiply_adds == 16 * 3
    attention = 2 * 28 * 28 * 16  # weights, and what they weigh
    assert layers[analyze.BETWEEN].multiply_adds == 4 * 28 * 16 * 16 + 2 * attention
    parameters = sum(layer.parameters for layer in layers.values())
    assert parameters == sum(weights.numel() for weights in Attending().parameters())


def test_a_layer_that_is_called_five_times_has_the_time_of_five_calls() -> None:
    class Sleeps(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            import time

            time.sleep(0.002)
            return images

    class Five(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Sleeps()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            for _ in range(5):
                images = self.layer(images)
            return images

    layer, between = analyze.measure_layers(Five())
    assert (layer.seconds or 0) >= 0.01
    assert (between.seconds or 0) >= 0


def test_an_export_has_the_layers_of_its_checkpoint(exported: tuple[Path, Path], tmp_path: Path) -> None:
    source, path = exported
    ours, theirs = (ModelAnalyzer(each, "cpu", batch_size=4) for each in (path, source))
    assert ours.class_names == theirs.class_names
    assert ours.count_multiply_adds() == theirs.count_multiply_adds()
    weighty = [layer for layer in theirs.description.layers if layer.multiply_adds]
    norms = sum(layer.parameters for layer in theirs.description.layers if layer.type == "BatchNorm2d")
    kernels = sum(layer.parameters for layer in weighty)
    # Batch normalisation is a bias for each channel now, half of what it was, where it is not zero as at first.
    assert kernels <= (ours.count_parameters()["total"] or 0) <= kernels + norms // 2
    assert ours.count_parameters()["trainable"] is None
    assert [layer.name for layer in ours.description.layers] == [layer.name for layer in weighty]
    assert [layer.output_shape for layer in ours.description.layers] == [layer.output_shape for layer in weighty]
    report = ours.analyze()
    assert report["settings"]["emnist_split"] == "balanced"
    assert "fuses" in report["layers_note"]
    assert "trainable" not in format_analysis(report)
    ours.plot(tmp_path / "a.png")


def test_a_matrix_product_is_counted(tmp_path: Path) -> None:
    analyzer = ModelAnalyzer(save_small_onnx(tmp_path / "m.onnx"), "cpu")
    [layer] = analyzer.description.layers
    assert (layer.type, layer.parameters, layer.multiply_adds) == ("MatMul", 784 * 47, 784 * 47)


def test_a_product_without_weights_is_counted_too(tmp_path: Path) -> None:
    """As in attention, which is taken to be made of them: x x' x."""
    node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            node("Transpose", ["images"], ["turned"], perm=[0, 1, 3, 2]),
            node("MatMul", ["images", "turned"], ["alike"]),
            node("MatMul", ["alike", "images"], ["mixed"]),
        ],
        "products",
        [value("images", onnx.TensorProto.FLOAT, [1, 1, 28, 28])],
        [value("mixed", onnx.TensorProto.FLOAT, [1, 1, 28, 28])],
    )
    model = onnx.helper.make_model(graph)
    [layer] = analyze.graph_layers(model, analyze.infer_shapes(model))
    assert (layer.name, layer.multiply_adds) == (analyze.BETWEEN, 2 * 28**3)


def test_the_evaluation_beside_a_checkpoint_is_shown_only_where_it_is_its_own(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pth", NAMES)
    weights = weights_digest(load_model(path)[0].state_dict())
    found = {"weights": weights, "split": "balanced", "n": 100, "accuracy": 0.9, "doubts": ["was trained on them"]}
    (tmp_path / "metrics.json").write_text(json.dumps(found))
    report = ModelAnalyzer(path, "cpu", batch_size=1).analyze()
    assert report["stored_metrics"]["test"] == found
    assert "90.00% on 100 images (balanced)" in format_analysis(report)
    assert "It was trained on them" in format_analysis(report)
    others: list[Any] = [{**found, "weights": weights[::-1]}, {**found, "weights": None}, {"n": 1}, []]
    for other in others:
        (tmp_path / "metrics.json").write_text(json.dumps(other))
        assert analyze.find_evaluation(path, weights) is None


def test_a_digest_of_weights_tells_any_change(tmp_path: Path) -> None:
    state = load_model(save(tmp_path / "m.pth", NAMES))[0].state_dict()
    digest = weights_digest(state)
    assert weights_digest(dict(reversed(state.items()))) == digest
    for change in ({"temperature": state["temperature"] * 1.001}, {"mean": state["mean"].double()}):
        assert weights_digest(state | change) != digest


def test_figures_of_the_model_that_lay_there_before_are_not_shown(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pth", NAMES)
    weights = weights_digest(load_model(path)[0].state_dict())
    found = {"checkpoint": str(path), "weights": weights, "split": "balanced", "n": 100, "accuracy": 0.9}
    (tmp_path / "metrics.json").write_text(json.dumps(found))
    assert ModelAnalyzer(path, "cpu", batch_size=1).description.metrics["test"] == found
    torch.manual_seed(1)
    save_checkpoint(
        path, EnhancedGlyphCNN(len(NAMES), use_residual=False), Config(use_residual=False), NAMES, metrics={}
    )
    assert "test" not in ModelAnalyzer(path, "cpu", batch_size=1).description.metrics


def test_what_is_not_a_model_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    external = save_small_onnx(tmp_path / "e.onnx", save_as_external_data=True, size_threshold=0, location="weights")
    future = save_small_onnx(tmp_path / "f.onnx", {"format": "2", "class_names": json.dumps(NAMES)})
    foreign = save_small_onnx(tmp_path / "g.onnx", {})
    for path, facts in (
        (tmp_path / "gone.onnx", ("no such model", "--export")),
        (text, ("is not an ONNX model", "export it again")),
        (external, ("weights in another file", "into one file")),
        (future, ("format version 2", "use the version")),
        (foreign, ("is not an ONNX export of this project",)),
        (tmp_path / "gone.pth", ("no such checkpoint",)),
    ):
        with refused(CheckpointError, path, *facts):
            ModelAnalyzer(path, "cpu")


def absurd(path: Path, side: int) -> Path:
    """An export of ours that makes a square of zeros on the way."""
    weights = onnx_weights()
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["size"], ["square"]),
            helper.make_node("ReduceSum", ["square"], ["nothing"], keepdims=0),
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
            helper.make_node("Add", ["logits", "nothing"], ["sum"]),
            helper.make_node("Softmax", ["sum"], ["probabilities"], axis=1),
        ],
        "absurd",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 47])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([side, side]), "size")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"format": "1", "class_names": json.dumps(NAMES)})
    onnx.save(model, path)
    return path


def test_absurd_shapes_are_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ModelAnalyzer(absurd(tmp_path / "fine.onnx", 10), "cpu").class_names == NAMES
    path = absurd(tmp_path / "absurd.onnx", 1_000_000)
    monkeypatch.setattr(analyze, "load_onnx", None)
    with refused(CheckpointError, path, "1000000x1000000", "export it again"):
        ModelAnalyzer(path, "cpu")


def test_a_future_checkpoint_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pth", NAMES)
    write_checkpoint(path, load_checkpoint(path) | {"format": 99})
    with refused(CheckpointError, path, "format version 99"):
        ModelAnalyzer(path, "cpu")


def test_no_cuda_is_an_error_where_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = save(tmp_path / "m.pth", NAMES)
    with refused(ConfigError, "--device cuda"):
        ModelAnalyzer(path, "cuda")
    assert ModelAnalyzer(path).devices == ["cpu"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_timed_beside_the_cpu(tmp_path: Path) -> None:
    report = ModelAnalyzer(save(tmp_path / "m.pth", NAMES), batch_size=4).analyze()
    assert [row["device"] for row in report["inference"]] == ["cpu", "cpu", "cuda", "cuda"]


def made_images() -> TensorLoader:
    images = torch.from_numpy(patterns(60))
    return TensorLoader(images, torch.arange(60) % len(NAMES), batch_size=25)


def test_a_comparison_on_the_same_images(exported: tuple[Path, Path], tmp_path: Path) -> None:
    other = save(tmp_path / "other.pth", NAMES, seed=1)
    comparison = ModelComparator([*exported, other], "cpu", batch_size=4).compare(made_images(), NAMES, "made")
    assert comparison.test == {"split": "made", "images": 60}
    checkpoint, export, third = comparison.models
    assert [model["id"] for model in comparison.models] == ["A", "B", "C"]
    # An export is its checkpoint, so they are as good; and as our own loop says.
    for key in ("accuracy", "macro_accuracy", "top5_accuracy"):
        assert checkpoint[key] == export[key]
    assert export["ece"] == pytest.approx(checkpoint["ece"], abs=1e-5)
    network = ModelAnalyzer(other, "cpu").networks["cpu"]
    right = sum(int((network(i.numpy()).argmax(1) == t.numpy()).sum()) for i, t in made_images())
    assert third["accuracy"] == pytest.approx(right / 60)
    assert (comparison.differences[0].points, comparison.differences[0].p_value) == (0, 1)
    assert len(comparison.differences) == 2
    assert set(comparison.fronts) == {"size", "latency"}
    comparison.plot(tmp_path / "c.png")
    assert picture_size(tmp_path / "c.png")[1] > 800


def test_different_classes(exported: tuple[Path, Path], tmp_path: Path) -> None:
    digits = save(tmp_path / "digits.pth", NAMES[:10], val_accuracy=0.9)
    comparator = ModelComparator([exported[0], digits], "cpu", batch_size=4)
    measured = comparator.compare(made_images(), NAMES, "made")
    assert "accuracy" in measured.models[0]
    in_floats = [(images.float() / 255, labels) for images, labels in made_images()]
    assert comparator.compare(in_floats, NAMES, "made").models[0]["loss"] == measured.models[0]["loss"]
    assert "accuracy" not in measured.models[1]
    assert measured.models[1]["parameters"] > 0
    note = "B knows 10 classes, the test images have 47 others: its accuracy cannot be measured on them"
    assert note in measured.notes
    assert measured.differences == []
    assert measured.quality is None
    stored = comparator.compare()
    assert stored.quality is None
    assert any("different classes apart (A 47, B 10)" in note for note in stored.notes)
    for number, comparison in enumerate((measured, stored)):
        comparison.plot(tmp_path / f"{number}.png")
    with refused(CheckpointError, "none of the models knows the 62 classes", "--split"):
        comparator.compare(made_images(), [str(i) for i in range(62)], "other")


def test_stored_metrics_are_marked_as_stored(tmp_path: Path) -> None:
    a = save(tmp_path / "a.pth", NAMES, val_accuracy=0.9, val_loss=0.3)
    b = save(tmp_path / "b.pth", NAMES, val_accuracy=0.8, val_loss=0.4)
    comparison = ModelComparator([a, b], "cpu", batch_size=4).compare()
    [row] = [row for row in comparison.rows if row.key == "val_accuracy"]
    assert "stored" in row.label
    assert comparison.best(row) == [True, False]
    assert comparison.quality == row
    assert comparison.test is None
    assert comparison.differences == []
    assert "--data-dir" in comparison.notes[0]
    assert "90.00 *" in comparison.to_text()


def test_unsteady_times_are_admitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "m.pth", NAMES)

    def measured(spread: float) -> list[dict[str, Any]]:
        row = {"device": "cpu", "device_name": "CPU", "threads": 1, "batch": 1, "images_per_second": 1.0}
        return [row | {"seconds": 1.0, "seconds_iqr": spread}]

    monkeypatch.setattr("glyphs.evaluation.comparator.measure", lambda _: [measured(0.1), measured(0.6)])
    notes = ModelComparator([path, path], "cpu").compare().notes
    assert any(note.startswith("The times of B are unsteady") for note in notes)
    for spread in (0.1, 0.6):
        monkeypatch.setattr("glyphs.evaluation.analyzer.measure", lambda _, spread=spread: [measured(spread)])
        text = format_analysis(ModelAnalyzer(path, "cpu").analyze())
        assert ("These times are unsteady" in text) == (spread == 0.6)


def test_outputs_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pth", NAMES)
    content: dict[str, Any] = load_checkpoint(path)
    content["model"]["classifier.bias"][0] = torch.nan
    write_checkpoint(path, content)
    comparator = ModelComparator([path, path], "cpu", batch_size=4)
    with refused(CheckpointError, "not finite"):
        comparator.compare(made_images(), NAMES)


def test_one_model_is_no_comparison(tmp_path: Path) -> None:
    with refused(ConfigError, "two models"):
        ModelComparator([tmp_path / "m.pth"])
