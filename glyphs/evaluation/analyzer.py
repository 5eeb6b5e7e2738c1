"""ModelAnalyzer: what a model costs, layer by layer.

A model is a checkpoint (.pth) or an .onnx export of this project.
"""

import contextlib
import functools
import itertools
import json
import math
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from glyphs.core.config import Config
from glyphs.core.cpus import usable_cpus
from glyphs.core.devices import describe_device
from glyphs.core.errors import CheckpointError, ConfigError
from glyphs.core.files import replace_file, valid_utf8
from glyphs.core.protocols import Loader
from glyphs.core.text import first_line, one_line, table
from glyphs.core.timing import UNSTEADY_WORDS, time_networks, unsteady
from glyphs.evaluation.comparison import versions
from glyphs.models import checkpoint
from glyphs.models.export import Exported, export_model
from glyphs.models.network import Calibrated
from glyphs.models.runtime import Loaded, Network, load_onnx, load_pth, read_class_names, read_object
from glyphs.models.seal import check_seal
from glyphs.output import plots
from glyphs.pictures.plain import form_of

LAYER_CALLS = 50  # of which a layer's time is the median
LAYER_WARM_UP = 5
MAX_ELEMENTS = 100_000_000  # of a tensor in an ONNX graph for one image; ours have a million
WIDTH = 120  # columns
BETWEEN = "other (ReLU, additions, ...)"  # what lies between the layers
NO_LAYER_TIMES = "onnxruntime fuses the layers of an ONNX graph, so they have no times of their own"


@dataclass(frozen=True)
class Layer:
    """A layer, for one image.

    Attributes
    ----------
    name, type : as in the model.
    output_shape : of one image, the batch included.
    parameters : numbers that training found, running statistics not included.
    multiply_adds : of convolutions and matrix products.
    seconds : the median of repeated calls on the CPU; None where it cannot be measured.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    seconds: float | None


@dataclass(frozen=True)
class Description:
    """What a model's file says, and the layers that it holds."""

    class_names: list[str]
    metrics: dict[str, Any]  # as stored by whoever wrote the file
    settings: dict[str, Any]
    ancestors: list[dict[str, Any]]  # see `glyphs.models.checkpoint.ancestors_of`
    parameters: int
    trainable: int | None  # None for an export, which is not trained
    memory_bytes: int
    find_layers: Callable[[], list[Layer]] = field(repr=False)

    @functools.cached_property
    def layers(self) -> list[Layer]:
        """In the order in which an image passes them; of an ONNX graph, those that have weights.

        A checkpoint's are timed when they are first asked for: an export need not wait for that.
        """
        return self.find_layers()


class ModelAnalyzer:
    """Says what one model costs, layer by layer, and exports it.

    Parameters
    ----------
    model : a checkpoint (.pth) or an .onnx export of this project.
    device : where to time it: `auto` is the CPU and, where there is one, CUDA.
    batch_size : images of a full batch.
    arch : the module:callable that may be run to make a checkpoint's network, where it is not this project's own.

    Raises
    ------
    CheckpointError : the file is missing, damaged, not ours, or of a future format.
    ConfigError : there is no such device.
    """

    def __init__(
        self,
        model: str | Path,
        device: str = "auto",
        batch_size: int = Config.batch_size,
        *,
        arch: str | None = None,
    ) -> None:
        self.path = Path(model)
        self.arch = arch
        self.batch_size = batch_size
        self.is_onnx = self.path.suffix.lower() == ".onnx"
        # The CPU first: it is there always.
        self.description = describe_onnx(self.path) if self.is_onnx else describe_checkpoint(self.path, arch)
        load = load_onnx if self.is_onnx else functools.partial(load_pth, arch=arch)
        loaded: dict[str, Loaded] = {}
        for each in ("cpu", "cuda") if device == "auto" else (device,):
            try:
                loaded[each] = load(self.path, each)
            except ConfigError:
                if device != "auto" or each == "cpu":
                    raise
        self.devices = list(loaded)
        self.networks: dict[str, Network] = {each: found.network for each, found in loaded.items()}
        self.form = loaded[self.devices[0]].form
        self.class_names = self.description.class_names

    def count_parameters(self) -> dict[str, int | None]:
        """`total` parameters, and how many are `trainable` (None for an export)."""
        return {"total": self.description.parameters, "trainable": self.description.trainable}

    def compute_size(self) -> dict[str, int]:
        """Bytes of the weights in memory, and of the file on disk."""
        return {"memory_bytes": self.description.memory_bytes, "disk_bytes": self.path.stat().st_size}

    def count_multiply_adds(self) -> int:
        """Multiply-adds for one image: of convolutions and matrix products."""
        return sum(layer.multiply_adds for layer in self.description.layers)

    def measure_inference(self) -> list[dict[str, Any]]:
        """Time batches of one image and full batches on each device, from images to probabilities, both in memory."""
        return measure([self])[0]

    def analyze(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        layers = self.description.layers
        total = layer_total(layers)
        rows = [
            {**asdict(layer), "share": None if layer.seconds is None or not total else layer.seconds / total}
            for layer in layers
        ]
        return {
            "model": valid_utf8(str(self.path)),
            "classes": len(self.class_names),
            "parameters": self.count_parameters(),
            "size": self.compute_size(),
            "multiply_adds": self.count_multiply_adds(),
            "image": self.form.words,
            "inference": self.measure_inference(),
            "layers": rows,
            "layers_note": NO_LAYER_TIMES if self.is_onnx else None,
            "stored_metrics": self.description.metrics,
            "settings": self.description.settings,
            "versions": versions(),
        }

    def plot(self, path: str | Path | None = None) -> plots.Figure:
        """Draw where time, multiply-adds and parameters go, block by block; into a PNG file where a path is given."""
        blocks: dict[str, list[Layer]] = {}
        for layer in self.description.layers:
            blocks.setdefault(block_of(layer.name), []).append(layer)
        shares = {
            what: [sum(getattr(layer, attribute) or 0 for layer in block) for block in blocks.values()]
            for what, attribute in (
                ("time", "seconds"),
                ("multiply-adds", "multiply_adds"),
                ("parameters", "parameters"),
            )
        }
        return plots.plot_analysis(list(blocks), shares, self.path.name, None if path is None else Path(path))

    def export(
        self,
        format: str | None = None,
        output: str | Path | None = None,
        *,
        validation: Loader | None = None,
        force: bool = False,
    ) -> Exported:
        """Export the checkpoint, verified; see `glyphs.models.export.export_model`."""
        target = None if output is None else Path(output)
        return export_model(self.path, format, target, validation=validation, force=force, arch=self.arch)


def block_of(name: str) -> str:
    """The part of the network that a layer belongs to: `stem`, `stages.3`, `classifier`."""
    parts = name.split(".")
    return ".".join(parts[:2] if len(parts) > 1 and parts[0] == "stages" else parts[:1])


def layer_total(layers: Sequence[Layer]) -> float:
    return sum(layer.seconds or 0.0 for layer in layers)


def measure(analyzers: Sequence[ModelAnalyzer]) -> list[list[dict[str, Any]]]:
    """Time models in turns, on each device at batch 1 and at a full batch; for each model a row for each."""
    rows: list[list[dict[str, Any]]] = [[] for _ in analyzers]
    for device in ("cpu", "cuda", "mps"):
        present = [place for place, analyzer in enumerate(analyzers) if device in analyzer.devices]
        for batch in dict.fromkeys((1, analyzers[0].batch_size)):
            networks = [analyzers[place].networks[device] for place in present]
            timings = time_networks(networks, batch, [analyzers[place].form.shape for place in present])
            for place, timing in zip(present, timings, strict=True):
                threads = usable_cpus() if analyzers[place].is_onnx else torch.get_num_threads()
                row = {
                    "device": device,
                    "device_name": describe_device(torch.device(device)).split(",")[0],
                    "threads": threads if device == "cpu" else None,
                    "batch": batch,
                    "seconds": timing.median,
                    "seconds_iqr": timing.iqr,
                    "images_per_second": timing.images_per_second,
                }
                rows[place].append(row)
    return rows


def describe_checkpoint(path: Path, arch: str | None = None) -> Description:
    """What a checkpoint holds.  Raises as `glyphs.models.checkpoint.build_model` does."""
    content = checkpoint.load_checkpoint(path)
    model, config = checkpoint.build_model(content, path, arch)
    stored = dict(content["metrics"])
    if evaluation := find_evaluation(path, checkpoint.weights_digest(model.state_dict())):
        stored["test"] = evaluation
    return Description(
        class_names=content["class_names"],
        metrics=stored,
        settings=config.to_dict(),
        ancestors=checkpoint.ancestors_of(content),
        parameters=sum(weights.numel() for weights in model.parameters()),
        trainable=sum(weights.numel() for weights in model.parameters() if weights.requires_grad),
        memory_bytes=sum(t.numel() * t.element_size() for t in itertools.chain(model.parameters(), model.buffers())),
        find_layers=functools.partial(
            measure_layers,
            model.network if isinstance(model, Calibrated) else model,
            form_of(config.to_dict()).shape,
        ),
    )


def find_evaluation(path: Path, weights: str) -> dict[str, Any] | None:
    """The metrics.json beside a checkpoint, where it is of these weights and not of a model that was there before."""
    try:
        found = json.loads((path.parent / "metrics.json").read_text(encoding="utf-8"))
        ours = found["weights"] == weights
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if ours and isinstance(found.get("accuracy"), float) else None


def measure_layers(model: nn.Module, shape: tuple[int, int, int] = (1, 28, 28)) -> list[Layer]:
    """Run one image of this shape through a model on the CPU, and measure each of its layers.

    Multiply-adds are half of what torch.utils.flop_counter counts.  A layer's time is the median over images, between
    hooks before and after it, all of its calls for one image together.  What lies between the layers (ReLU, additions,
    functional products such as those of attention, and the hooks themselves) is the last row: whatever the whole model
    has and no layer.
    """
    names = {
        module: name
        for name, module in model.named_modules()
        if not any(True for _ in module.children()) and not isinstance(module, nn.Identity)
    }
    shapes: dict[nn.Module, tuple[int, ...]] = {}
    started: dict[nn.Module, float] = {}
    seconds = dict.fromkeys(names, 0.0)  # for one image

    def before(module: nn.Module, _: Any) -> None:
        started[module] = time.perf_counter()

    def after(module: nn.Module, _: Any, output: Any) -> None:
        seconds[module] += time.perf_counter() - started[module]
        # Some layers, as recurrent ones, give several tensors: the first is what goes on.
        tensors = [each for each in tree_leaves(output) if isinstance(each, Tensor)]
        shapes[module] = tuple(tensors[0].shape) if tensors else ()

    image = torch.zeros(1, *shape)
    with torch.inference_mode(), plain_operations(), FlopCounterMode(display=False) as counter:
        model(image)
    whole = counter.get_total_flops() // 2
    counts = {name.partition(".")[2]: sum(count.values()) // 2 for name, count in counter.get_flop_counts().items()}
    hooks = [module.register_forward_pre_hook(before) for module in names]
    hooks += [module.register_forward_hook(after) for module in names]
    times: list[list[float]] = []  # of each image: of the layers, and of what lies between them
    try:
        with torch.inference_mode():
            for _ in range(LAYER_WARM_UP + LAYER_CALLS):
                seconds.update(dict.fromkeys(names, 0.0))
                begun = time.perf_counter()
                output = model(image)
                of_layers = [seconds[module] for module in shapes]
                times.append([*of_layers, time.perf_counter() - begun - sum(of_layers)])
    finally:
        for hook in hooks:
            hook.remove()
    middlings = [statistics.median(column) for column in zip(*times[LAYER_WARM_UP:], strict=True)]
    layers = [
        Layer(
            names[module],
            type(module).__name__,
            shapes[module],
            sum(weights.numel() for weights in module.parameters()),
            counts.get(names[module], 0),
            middling,
        )
        for module, middling in zip(shapes, middlings, strict=False)
    ]
    listed = {id(weights) for module in shapes for weights in module.parameters()}
    parameters = sum(weights.numel() for weights in model.parameters() if id(weights) not in listed)
    rest = whole - sum(layer.multiply_adds for layer in layers)
    return [*layers, Layer(BETWEEN, "", tuple(output.shape), parameters, rest, middlings[-1])]


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """While the context lasts, attention and recurrent layers run as the matrix products that they are made of.

    The counter does not know the operations that are several of them in one.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    one_dnn, *_ = torch.backends.mkldnn.set_flags(False)  # type: ignore[no-untyped-call]  # `flags` warns
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mkldnn.set_flags(one_dnn)  # type: ignore[no-untyped-call]
        torch.backends.mha.set_fastpath_enabled(fast)


def describe_onnx(path: Path) -> Description:
    """What an ONNX export holds.  Nothing of it runs before its shapes are known to be those of a glyph's network.

    Raises
    ------
    CheckpointError : it is missing, damaged, not ours, of another format, refers to weights in other files, or declares
        a tensor beyond any network for glyphs.
    """
    import onnx  # checkpoints are taken apart without it

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such model; check the path, or make one by --export") from None
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'too large'})") from None
    check_seal(content, path)
    try:
        proto = onnx.load_model_from_string(content)
        shapes = infer_shapes(proto)
    except Exception as error:  # protobuf and onnx raise whatever the damage triggers
        raise CheckpointError(
            f"{path}: is not an ONNX model, or is damaged ({first_line(error)}); export it again"
        ) from None
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise CheckpointError(
                f"{path}: has weights in another file ({tensor.name}); export it by --export, into one file"
            )
    for name, shape in shapes.items():
        if math.prod(shape) > MAX_ELEMENTS or min(shape, default=0) < 0:
            raise CheckpointError(
                f"{path}: declares a tensor of {'x'.join(map(str, shape))} numbers ({name}), which no network for "
                "small images needs; it is damaged or hostile: export it again"
            )
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    layers = graph_layers(proto, shapes)
    settings = read_object(metadata.get("settings"))
    return Description(
        class_names=read_class_names(metadata, path),
        metrics=read_object(metadata.get("metrics")),
        settings=settings,
        ancestors=checkpoint.ancestors_of({"config": settings, **read_object(metadata.get("lineage"))}),
        parameters=sum(layer.parameters for layer in layers),
        trainable=None,
        memory_bytes=sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in proto.graph.initializer),
        find_layers=lambda: layers,
    )


def infer_shapes(proto: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in an ONNX graph for one image, where it can be known; unknown sizes count as 1."""
    import onnx

    graph = onnx.ModelProto()
    graph.CopyFrom(proto)
    del graph.graph.value_info[:]  # they speak of N images
    for value in graph.graph.output:
        value.type.tensor_type.ClearField("shape")
    for value in graph.graph.input:
        for size in value.type.tensor_type.shape.dim:
            size.dim_value = 1 if size.dim_param else size.dim_value
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True).graph
    shapes = {
        value.name: tuple(size.dim_value or 1 for size in value.type.tensor_type.shape.dim)
        for value in itertools.chain(inferred.input, inferred.value_info, inferred.output)
    }
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}


def graph_layers(proto: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[Layer]:
    """The convolutions and matrix products of an ONNX graph that have weights, quantised or not; last, the others."""
    # The weights of a quantised layer come through a DequantizeLinear.
    stored = {tensor.name: tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            stored[node.output[0]] = node.input[0]
    layers = []
    rest = 0
    for node in proto.graph.node:
        weights = [shapes[stored[name]] for name in node.input[1:] if name in stored]
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        if not weights:  # as the products of attention
            rest += math.prod(shapes.get(node.output[0], ())) * shapes.get(node.input[0], (1,))[-1]
            continue
        output = shapes.get(node.output[0], ())
        kernel = weights[0]
        # A convolution's kernel is [C_out, C_in / groups, ...]; a matrix has a side as long as the output.
        each = math.prod(kernel[1:]) if node.op_type == "Conv" else math.prod(kernel) // (output or (1,))[-1]
        name = node.input[1].removeprefix("model.").removesuffix("_DequantizeLinear_Output").removesuffix(".weight")
        parameters = sum(map(math.prod, weights))
        layers.append(Layer(name, node.op_type, output, parameters, math.prod(output) * each, None))
    return [*layers, Layer(BETWEEN, "", (), 0, rest, None)] if rest else layers


def format_analysis(report: Mapping[str, Any]) -> str:
    """An analysis for a terminal."""
    parameters, size = report["parameters"], report["size"]
    trainable = "" if parameters["trainable"] is None else f" ({parameters['trainable']:,} trainable)"
    lines = [
        one_line(f"{report['model']}: {report['classes']} classes"),
        f"parameters     {parameters['total']:,}{trainable}",
        f"size           {size['disk_bytes'] / 1e6:.2f} MB on disk, {size['memory_bytes'] / 1e6:.2f} MB in memory",
        f"multiply-adds  {report['multiply_adds'] / 1e6:.1f} million for an image of {report['image']}",
    ]
    for row in report["inference"]:
        where = row["device_name"] + (f", {row['threads']} threads" if row["threads"] else "")
        lines.append(
            f"batch of {row['batch']:<5} {1e3 * row['seconds']:.2f} ms (interquartile range "
            f"{1e3 * row['seconds_iqr']:.2f}), {row['images_per_second']:,.0f} images/s on {where}"
        )
    if unsteady(report["inference"]):
        lines.append(f"{'':15}These times {UNSTEADY_WORDS}")
    stored = ", ".join(f"{key} {value:.4g}" for key, value in report["stored_metrics"].items() if is_number(value))
    lines.append(f"stored         {stored or 'no metrics'}")
    if test := report["stored_metrics"].get("test"):
        lines.append(f"stored, test   accuracy {test['accuracy']:.2%} on {test['n']:,} images ({test['split']})")
        for words in test.get("doubts", ()):
            lines += textwrap.wrap(one_line(f"It {words}"), WIDTH, initial_indent=" " * 15, subsequent_indent=" " * 15)
    settings = one_line(", ".join(f"{key} {value}" for key, value in report["settings"].items()) or "none")
    lines += [*textwrap.wrap(f"settings       {settings}", WIDTH, subsequent_indent=" " * 15), ""]
    rows = [
        [
            layer["name"],
            layer["type"],
            "x".join(map(str, layer["output_shape"])),
            f"{layer['parameters']:,}",
            f"{layer['multiply_adds']:,}",
            "-" if layer["seconds"] is None else f"{1e6 * layer['seconds']:.0f}",
            "-" if layer["share"] is None else f"{layer['share']:.1%}",
        ]
        for layer in report["layers"]
    ]
    lines += table("<<<>>>>", ["layer", "type", "output", "parameters", "multiply-adds", "µs", "share"], rows)
    note = report["layers_note"] or "Times of layers: one image on the CPU, between hooks, which add a little to each."
    return "\n".join([*lines, "", note])


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON.  Raises GlyphError as `glyphs.core.files.replace_file` does."""
    replace_file(path, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
