"""Exports that are proven before they are handed over: ONNX, ONNX in 8-bit integers, and programs of torch.export.

Every export is written aside, read back, and run beside the checkpoint that it came from; only then does it get its
name.  The form of ONNX files is described at `glyphs.models.runtime.load_onnx`.
"""

import copy
import importlib.metadata
import importlib.util
import io
import json
import logging
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glyphs.core.arrays import Bytes, Probabilities
from glyphs.core.config import EXPORT_FORMATS, Config
from glyphs.core.errors import CheckpointError, ConfigError, GlyphError
from glyphs.core.files import replacing
from glyphs.core.protocols import Loader
from glyphs.core.randomness import address
from glyphs.core.text import first_line, one_line
from glyphs.core.timing import Timing, time_networks
from glyphs.models import checkpoint
from glyphs.models.network import Calibrated, as_floats
from glyphs.models.runtime import (
    ONNX_FORMAT,
    Network,
    load_onnx,
    load_pth,
    onnx_form,
    onnx_input,
    read_class_names,
    read_object,
)
from glyphs.models.seal import seal
from glyphs.pictures.plain import EMNIST_FORM, InputForm, form_of

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_TORCH = "2.8"  # the oldest that passes our tests; 2.6 fails, with onnxscript of its time and of today
OPSET = 18  # the one that torch's operators are written in; no conversion, and old runtimes know it
METADATA_FILE = "metadata.json"  # within a .pt2 file

VERIFIED_BATCHES = (1, 2, 17)
TOLERANCE = 1e-4  # of a probability
CALIBRATION_IMAGES = 512
IN_FLOAT = ("Gemm", "Div", "Softmax")  # operators that are not quantised
MIN_AGREEMENT = 0.98  # of the quantised with the unquantised answers
MAX_FALL = 0.002  # of the accuracy
EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Quantisation:
    """What 8-bit integers cost and save; accuracies on validation images that were not used to calibrate.

    Attributes
    ----------
    calibration_images, images : how many images chose the ranges, and how many measured the rest.
    accuracy, float_accuracy : of the quantised and of the unquantised model.
    agreement : the part of the images that both give the same answer.
    timings, float_timings : on the CPU, measured in turns, at batch 1 and at a full batch.
    """

    calibration_images: int
    images: int
    accuracy: float
    float_accuracy: float
    agreement: float
    timings: tuple[Timing, ...]
    float_timings: tuple[Timing, ...]


@dataclass(frozen=True)
class Exported:
    """An export that was verified.

    Attributes
    ----------
    difference : the largest difference of a probability from the checkpoint's, at batch 1, 2 and 17.
    agreement : the part of those images that get the checkpoint's answer.
    """

    path: Path
    format: str
    bytes: int
    difference: float
    agreement: float
    quantisation: Quantisation | None = None

    def to_text(self) -> str:
        """For a terminal."""
        size = f"{self.bytes / 1e6:.2f} MB"
        opset = "" if self.format == "pt2" else f", opset {OPSET}"
        lines = [
            one_line(f"{self.path}: {self.format}{opset}, {size}"),
            f"verified       largest difference of a probability {self.difference:.2g}, the same answer for "
            f"{self.agreement:.1%} of the images, at batch {', '.join(map(str, VERIFIED_BATCHES))}",
        ]
        if found := self.quantisation:
            change = 100 * (found.accuracy - found.float_accuracy)
            words = f"{abs(change):.2f} points {'more' if change > 0 else 'less'} than" if change else "the same as"
            lines += [
                f"calibrated     on {found.calibration_images:,} validation images; judged on {found.images:,} others:",
                f"accuracy       {found.accuracy:.2%}, {words} in float32 ({found.float_accuracy:.2%})",
                f"agreement      {found.agreement:.2%}",
            ]
            for quick, slow in zip(found.timings, found.float_timings, strict=True):
                ours, theirs = (
                    f"{1e3 * t.median:.2f} ms (interquartile range {1e3 * t.iqr:.2f})" for t in (quick, slow)
                )
                ratio = slow.median / quick.median
                lines.append(f"batch of {quick.batch:<5} {ours}; in float32 {theirs}: {ratio:.1f} times as fast")
        return "\n".join(lines)


class WithSoftmax(nn.Module):
    """The network with its softmax: images, float [N, channels, H, W] in [0, 1] -> probabilities [N, C]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # Channels last would become a gather over computed indices in the exported graph.
        self.model = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits.softmax(dim=1)


def export_model(
    source: Path,
    format: str | None = None,
    output: Path | None = None,
    *,
    validation: Loader | None = None,
    force: bool = False,
    arch: str | None = None,
) -> Exported:
    """Export a checkpoint, and verify the export before it gets its name.

    Parameters
    ----------
    source : a checkpoint (.pth).
    format : a key of EXPORT_FORMATS; None for the one that the output's suffix names, else `onnx`.
    output : None for the checkpoint's name with the format's suffix.
    validation : images and labels to calibrate and judge `onnx-int8` on; see `glyphs.data.loaders.get_data_loaders`.
    force : keep a quantised model that lost more accuracy, or agrees less, than is allowed.
    arch : the module:callable that may be run to make the network, where it is not this project's own.

    Raises
    ------
    CheckpointError : the checkpoint cannot be used.
    ConfigError : there is no such format, the output's suffix is another's, or `onnx-int8` lacks validation images.
    GlyphError : a package is missing or too old; the export differs from the model; the output cannot be written.
        Nothing is left behind then, and an older file stays as it was.
    """
    format, output = choose_format(source, format, output)
    check_packages(format)
    content = checkpoint.load_checkpoint(source)
    if format == "onnx-int8" and validation is None:
        raise ConfigError("onnx-int8 is calibrated on validation images: give the data by --data-dir or --dataset")
    model, config = checkpoint.build_model(content, source, arch)
    if format == "onnx-int8":
        assert validation is not None
        return export_int8(source, output, model, config, content, validation, force, arch)
    metadata = describe(content, config, content["metrics"])
    form = form_of(config.to_dict())
    log.info(f"converting {source} to {format}")
    written = (
        seal(to_onnx(model, metadata, form).SerializeToString()) if format == "onnx" else to_pt2(model, metadata, form)
    )
    with replacing(output) as file:
        file.write(written)
        file.flush()
        log.info("verifying the export beside the checkpoint")
        difference, agreement = verify(
            Path(file.name), format, source, output, patterns(sum(VERIFIED_BATCHES), form), arch
        )
        if not difference <= TOLERANCE:  # NaN too
            raise GlyphError(
                f"{output}: not written, since its probabilities differ from the model's by up to {difference:.2g} "
                f"({TOLERANCE:g} is allowed); try other versions of torch and onnxruntime"
            )
    return Exported(output, format, len(written), difference, agreement)


def choose_format(source: Path, format: str | None, output: Path | None) -> tuple[str, Path]:
    """The format and the path of an export from what was given of them; see `export_model`."""
    if source.suffix.lower() in (".onnx", ".pt2"):
        raise ConfigError(f"{source}: is an export already; name the checkpoint (.pth) that it came from")
    if format is None:
        # The longest suffix that fits: NAME.int8.onnx is not a plain .onnx.
        fitting = [name for name, suffix in EXPORT_FORMATS.items() if output and output.name.lower().endswith(suffix)]
        if output and not fitting:
            raise ConfigError(f"{output}: no format has this suffix; choose .onnx or .pt2, or name one by --format")
        format = max(fitting, key=lambda name: len(EXPORT_FORMATS[name]), default="onnx")
    if format not in EXPORT_FORMATS:
        raise ConfigError(f"there is no format {format!r}: choose from {', '.join(EXPORT_FORMATS)}")
    suffix = Path(EXPORT_FORMATS[format]).suffix or EXPORT_FORMATS[format]
    output = output or source.with_suffix(EXPORT_FORMATS[format])
    if output.suffix.lower() != suffix:
        raise ConfigError(f"{output}: a file of the format {format} ends in {suffix}; choose another --output")
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; name a file in it by --output")
    return format, output


def check_packages(format: str) -> None:
    """Raise GlyphError where a package that the format needs is missing or too old."""
    if format == "pt2":
        return
    if torch.__version__ < ONNX_TORCH:  # a TorchVersion, which compares as versions do
        raise GlyphError(
            f"an ONNX export needs torch {ONNX_TORCH} or newer, this is {torch.__version__}: "
            "pip install --upgrade torch torchvision onnx onnxscript onnxruntime"
        )
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise GlyphError(f"an ONNX export needs more packages: pip install {' '.join(missing)}")


def describe(content: Mapping[str, Any], config: Config, metrics: Mapping[str, Any]) -> dict[str, str]:
    """The metadata of the export of a loaded checkpoint, each a string; see `glyphs.models.runtime.load_onnx`."""
    # What may change belongs to the machine that trained, such as its folders.
    settings = {f.name: getattr(config, f.name) for f in fields(config) if not f.metadata["may_change"]}
    form = form_of(settings)
    settings |= {"preprocess": form.mode, "image_size": form.size, "color": "on" if form.color else "off"}
    brightness = "0 (black) to 1 (red, green, blue)" if form.color else "0 (black) to 1 (white)"
    meaning = brightness if form.mode == "plain" else "0 (black paper) to 1 (white ink)"
    return {
        "format": ONNX_FORMAT,
        "class_names": json.dumps(content["class_names"], ensure_ascii=False),
        "preprocess": form.mode,
        "input": f"float32 [N, {', '.join(map(str, form.shape))}], {meaning}, upright; the graph normalises",
        "metrics": json.dumps(dict(metrics)),
        "settings": json.dumps(settings),
        "lineage": json.dumps({"ancestors": checkpoint.ancestors_of(content)}),
    }


def to_onnx(model: nn.Module, metadata: Mapping[str, str], form: InputForm = EMNIST_FORM) -> "onnx.ModelProto":
    """The model as ONNX, by the exporter that torch recommends (torch.export, then ONNX), checked by onnx.checker.

    Raises
    ------
    GlyphError : torch and onnxscript do not fit together, or the graph holds an operator that is not of the ONNX
        standard, so that not every runtime knows it.
    """

    try:
        program = torch.onnx.export(
            WithSoftmax(model),
            (torch.zeros(2, *form.shape),),  # an example with one image would fix the batch at one
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("N")}},
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        if isinstance(model, Calibrated):
            raise GlyphError(
                f"this network cannot be exported to ONNX ({first_line(error)}); see torch.onnx for what can"
            ) from error
        # The model is one that exports, so it is a torch and an onnxscript that do not fit together.
        raise GlyphError(
            f"torch {torch.__version__} and onnxscript {importlib.metadata.version('onnxscript')} cannot export "
            "together: pip install --upgrade torch torchvision onnx onnxscript"
        ) from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return finish(proto, metadata)


def finish(proto: "onnx.ModelProto", metadata: Mapping[str, str]) -> "onnx.ModelProto":
    """Put the metadata in, and check the model: by onnx.checker, with shape inference, and for standard operators."""
    import onnx

    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, dict(metadata))
    standard = ("", "ai.onnx")  # two names of one domain
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in proto.graph.node if node.domain not in standard})
    if foreign or proto.functions:
        raise GlyphError(
            f"the export holds operators that are not standard ONNX ({', '.join(foreign)}); "
            "try another version of onnxscript or onnxruntime"
        )
    kept = [opset for opset in proto.opset_import if opset.domain in standard]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def to_pt2(model: nn.Module, metadata: Mapping[str, str], form: InputForm) -> bytes:
    """The model as a program of torch.export, with the metadata as JSON in the extra file METADATA_FILE.

    Raises
    ------
    GlyphError : it is a network of the user's that torch.export cannot take apart.
    """
    try:
        program = torch.export.export(
            WithSoftmax(model),
            (torch.zeros(2, *form.shape),),
            dynamic_shapes={"images": {0: torch.export.Dim("N")}},
        )
    except Exception as error:  # torch.export raises what running the network's own code happens to trigger
        if not isinstance(model, Calibrated):
            raise
        raise GlyphError(
            f"this network cannot be exported to .pt2 ({first_line(error)}); see torch.export for what can"
        ) from error
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(dict(metadata))})
    return buffer.getvalue()


def load_pt2(path: Path) -> tuple[Network, list[str], InputForm]:
    """The network of a .pt2 file on the CPU, its class names and the form of its images."""
    extra: dict[str, Any] = {METADATA_FILE: ""}  # torch replaces the value
    module = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()

    def network(images: Bytes) -> Probabilities:
        with torch.inference_mode():
            probabilities: Probabilities = module(as_floats(torch.from_numpy(images))).numpy()
        return probabilities

    metadata = json.loads(extra[METADATA_FILE])
    return (
        network,
        read_class_names(metadata, path),
        onnx_form(metadata["preprocess"], read_object(metadata.get("settings")), path),
    )


def verify(
    aside: Path, format: str, source: Path, output: Path, images: Bytes, arch: str | None
) -> tuple[float, float]:
    """Run an export and its checkpoint side by side, both read from their files, at each of VERIFIED_BATCHES.

    Parameters
    ----------
    aside : where the export is for now; `output` is what the error calls it.
    images : uint8 [20, channels, H, W].

    Returns
    -------
    The largest difference of a probability, and the part of the images with the same answer.

    Raises
    ------
    GlyphError : it cannot be run, or its class names are not the checkpoint's.
    """
    reference, names, form = load_pth(source, "cpu", arch=arch)[:3]
    try:
        network, *said = load_pt2(aside) if format == "pt2" else load_onnx(aside, "cpu")[:3]
        if said != [names, form]:
            raise CheckpointError("its metadata are not the checkpoint's")
        parts = np.split(images, np.cumsum(VERIFIED_BATCHES)[:-1])
        exported, expected = ([run(part) for part in parts] for run in (network, reference))
    except (GlyphError, RuntimeError, zipfile.BadZipFile) as error:
        raise GlyphError(f"{output}: not written, since the export does not run ({error})") from None
    difference = max(float(abs(a - b).max()) for a, b in zip(exported, expected, strict=True))
    same = np.concatenate([a.argmax(1) == b.argmax(1) for a, b in zip(exported, expected, strict=True)])
    return difference, float(same.mean())


def patterns(count: int, form: InputForm = EMNIST_FORM) -> Bytes:
    """Images of random blocks, from almost empty to almost full, uint8 [count, channels, H, W]."""
    channels, size, _ = form.shape
    across = -(-size // 4)
    rng = np.random.default_rng(0)
    blocks = rng.random((count, channels, across, across)) < np.linspace(0.05, 0.95, count).reshape(-1, 1, 1, 1)
    images = np.kron(blocks * rng.integers(64, 256, blocks.shape), np.ones((1, 1, 4, 4)))
    return images.astype(np.uint8)[..., :size, :size]


def export_int8(
    source: Path,
    output: Path,
    model: nn.Module,
    config: Config,
    content: Mapping[str, Any],
    validation: Loader,
    force: bool,
    arch: str | None,
) -> Exported:
    """Quantise the ONNX export, judge it on validation images, and write it where it is good enough."""
    form = form_of(config.to_dict())
    (images, labels), (calibration, _) = divide_validation(validation, config.seed)
    with tempfile.TemporaryDirectory() as folder:
        log.info(f"converting {source} to onnx")
        plain = Path(folder) / "float.onnx"
        plain.write_bytes(to_onnx(model, describe(content, config, content["metrics"]), form).SerializeToString())
        log.info(f"calibrating on {len(calibration):,} images, and quantising")
        quantised = quantise(plain, calibration)
        quantised_path = Path(folder) / "int8.onnx"
        quantised_path.write_bytes(finish(quantised, describe(content, config, {})).SerializeToString())
        networks = [load_onnx(path, "cpu")[0] for path in (quantised_path, plain)]
    log.info(f"comparing 8 bits with float32 on {len(images):,} images")
    answers, expected = (classify(network, images) for network in networks)
    accuracy, float_accuracy = (float((given == labels).mean()) for given in (answers, expected))
    agreement = float((answers == expected).mean())
    log.info("timing both")
    timings = [time_networks(networks, batch, [form.shape] * 2) for batch in (1, EVALUATION_BATCH)]
    measured = Quantisation(
        len(calibration),
        len(images),
        accuracy,
        float_accuracy,
        agreement,
        *(tuple(timing[place] for timing in timings) for place in (0, 1)),
    )
    fall = float_accuracy - accuracy
    if not force and (fall > MAX_FALL or agreement < MIN_AGREEMENT):
        raise GlyphError(
            f"{output}: not written, since 8-bit integers cost too much: accuracy {accuracy:.2%} instead of "
            f"{float_accuracy:.2%} on {len(images):,} validation images (a fall of {100 * MAX_FALL:.1f} points is "
            f"allowed), the same answer for {agreement:.2%} ({MIN_AGREEMENT:.0%} are asked for); --force writes it"
        )
    # The metrics in the checkpoint are those of the unquantised model.
    metrics = {"val_accuracy": accuracy, "val_images": len(images)}
    written = seal(finish(quantised, describe(content, config, metrics)).SerializeToString())
    with replacing(output) as file:
        file.write(written)
        file.flush()
        shown = images[np.arange(sum(VERIFIED_BATCHES)) % len(images)]
        difference, same = verify(Path(file.name), "onnx-int8", source, output, shown, arch)
    return Exported(output, "onnx-int8", len(written), difference, same, measured)


Images = tuple[Bytes, NDArray[np.int64]]  # and their labels


def divide_validation(validation: Loader, seed: int) -> tuple[Images, Images]:
    """The validation images to judge on and those to calibrate with, at most half of all, drawn by the seed."""
    batches = list(validation)
    images = torch.cat([images for images, _ in batches]).cpu().numpy()
    labels = torch.cat([labels for _, labels in batches]).cpu().numpy()
    order = np.random.default_rng(address(seed, "calibration")).permutation(len(images))
    count = min(CALIBRATION_IMAGES, len(images) // 2)
    if count == 0:
        raise ConfigError("onnx-int8 needs two validation images or more: one to calibrate with, one to judge by")
    (judge, calibrate) = order[count:], order[:count]
    return (images[judge], labels[judge]), (images[calibrate], labels[calibrate])


def classify(network: Network, images: Bytes) -> NDArray[np.intp]:
    """The likeliest class of each image, int [N]."""
    starts = range(0, len(images), EVALUATION_BATCH)
    return np.concatenate([network(images[i : i + EVALUATION_BATCH]).argmax(axis=1) for i in starts])


def quantise(plain: Path, calibration: Bytes) -> "onnx.ModelProto":
    """The ONNX file in 8-bit integers: static quantisation, weights by channel (arXiv 1712.05877).

    Standard operators again, QuantizeLinear and DequantizeLinear around each layer (QDQ), which runtimes turn into
    integer arithmetic.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            starts = range(0, len(calibration), EVALUATION_BATCH)
            self.batches = iter([calibration[i : i + EVALUATION_BATCH] for i in starts])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": onnx_input(batch)}

    with tempfile.TemporaryDirectory() as folder:
        prepared, result = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        nodes = onnx.load(prepared).graph.node
        quantization.quantize_static(
            str(prepared),
            str(result),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            # The classifier and what follows cost nothing, and probabilities in 256 steps would be 0 too often.
            nodes_to_exclude=[node.name for node in nodes if node.op_type in IN_FLOAT],
            # 7-bit weights: CPUs without VNNI add pairs of products in 16 bits, which 8-bit ones would overflow.
            reduce_range=True,
        )
        return onnx.load(result)
