"""Networks from their files: a checkpoint, or an ONNX file.

For the latter torch is not needed, and it is never imported: nothing that imports it may be imported at the head of
this file, or of one that leads here.
"""

import functools
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glyphs.core.arrays import Bytes, Floats, Probabilities
from glyphs.core.config import Config
from glyphs.core.cpus import usable_cpus
from glyphs.core.errors import CheckpointError, ConfigError, GlyphError
from glyphs.core.files import pretrained_folder, valid_utf8
from glyphs.core.text import first_line
from glyphs.models.seal import check_seal
from glyphs.pictures.plain import InputForm, form_of

Network = Callable[[Bytes], Probabilities]  # images [N, channels, H, W] -> probabilities [N, C]
ONNX_FORMAT = "1"
GPU_FORKED = (
    "the GPU is in use by the process that this one was made from by fork, and cannot be used here: start this one by "
    "spawn, as multiprocessing.get_context('spawn') does, or make its predictor with device='cpu'"
)


class Loaded(NamedTuple):
    """A model as its file gives it.

    `facts` holds the `settings` and `metrics` that the file tells of, for people; `on_cpu` says where it computes.
    """

    network: Network
    class_names: list[str]
    form: InputForm
    facts: dict[str, Any]
    on_cpu: bool


def default_model(*, average_views: bool = False) -> Path:
    """The weights in the box, as an .onnx file where it and onnxruntime are there: it answers four times sooner.

    Not the model of the last training: one of the demo set or of a few pictures is no reader of handwriting.

    Raises
    ------
    CheckpointError : there are none.
    """
    checkpoint, export = (pretrained_folder() / f"glyphs47{suffix}" for suffix in (".pth", ".onnx"))
    if export.exists() and not average_views and importlib.util.find_spec("onnxruntime"):
        return export
    if not checkpoint.exists():
        raise CheckpointError(f"{checkpoint}: is missing, and no model is named; name one by --model")
    return checkpoint


def describe_training(facts: dict[str, Any]) -> str:
    """What a model was trained on and how good it was then, in a few words; facts as in Loaded."""
    settings, metrics = facts["settings"], facts["metrics"]
    data = {
        "emnist": f"handwriting (EMNIST, {settings.get('emnist_split')})",
        "demo": "the demo set, which is drawn from fonts and is no handwriting",
        "folder": "a folder of pictures",
    }
    words = f"trained on {data.get(str(settings.get('dataset')), 'what its file does not say')}"
    if metrics.get("also_trained_on"):
        words += f", and {metrics['also_trained_on']}"
    if isinstance(metrics.get("val_accuracy"), float):
        words += f"; {metrics['val_accuracy']:.1%} of its validation images right"
    return words


def load_pth(
    path: Path, device: str, *, average_views: bool = False, arch: str | None = None, threads: int | None = None
) -> Loaded:
    """The network of a checkpoint on the device, with what its file says of it; `threads` as of `GlyphPredictor`.

    Raises CheckpointError and ConfigError.
    """
    import torch

    from glyphs.core.devices import choose_device, explain_out_of_memory, limit_threads
    from glyphs.models import checkpoint
    from glyphs.models.convolutions import freeze
    from glyphs.models.network import ViewAverage, as_floats

    limit_threads()
    if threads:
        torch.set_num_threads(min(threads, torch.get_num_threads()))
    where = choose_device(device)
    content = checkpoint.load_checkpoint(path)
    model, config = checkpoint.build_model(content, path, arch)
    form = form_of(config.to_dict())
    try:
        classifier = (ViewAverage(model, form.edge) if average_views else model).to(where)
    except RuntimeError as error:
        if "forked subprocess" not in str(error):  # as CUDA words it
            raise
        raise ConfigError(GPU_FORKED) from None
    if where.type == "cpu":
        freeze(model)
    process = os.getpid()

    def network(images: Bytes) -> Probabilities:
        nonlocal process
        if os.getpid() != process:
            if where.type != "cpu":
                raise ConfigError(GPU_FORKED)
            limit_threads()
            process = os.getpid()
        with torch.inference_mode(), explain_out_of_memory(len(images)):
            logits: torch.Tensor = classifier(as_floats(torch.from_numpy(images).to(where)))
            probabilities: Probabilities = logits.float().softmax(dim=1).cpu().numpy()
        return probabilities

    facts = {"settings": config.to_dict(), "metrics": content["metrics"]}
    return Loaded(network, content["class_names"], form, facts, where.type == "cpu")


def load_onnx(path: Path, device: str, *, threads: int | None = None) -> Loaded:
    """The network of an ONNX file, with what the file says of it; `threads` as of `GlyphPredictor`.

    The file holds all of its weights; input `images`, float32 [N, 1, 28, 28] in [0, 1], or of another size and in
    colour, [N, 3, H, H], where the `settings` say so; output `probabilities`, float32 [N, C]; metadata `format`,
    `class_names` (a JSON list), `preprocess`, `settings` (a JSON object) and, at the end of the file, `sha256` (see
    glyphs.models.seal; older exports have none).  For people and other programs, glyphs.models.export adds `input`
    (the form of the images in words), `metrics` and `lineage` (JSON objects; see
    `glyphs.models.checkpoint.ancestors_of` for the last).

    Raises
    ------
    CheckpointError : it is missing, damaged, or not an export of this project.
    ConfigError : `cuda` was asked for, and this onnxruntime has none, or it does not work here; or `mps`.
    GlyphError : onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise GlyphError(f"{path}: an .onnx model needs onnxruntime: pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong with a model comes as an exception, too
    options.intra_op_num_threads = threads or usable_cpus()
    # Threads that wait in a busy loop take the cores from programs, and threads, that have work; but to be woken takes
    # time as well (docs/PERFORMANCE.md, section on busy machines).
    options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
    if tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (1, 26):  # which does not know that
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Weights in further files would be looked up there, which fails: a model is one file, and reads no other.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    providers: list[Any] = ["CPUExecutionProvider"]
    if device in ("auto", "cuda") and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        # Of the processes that torchrun started on this machine, each has its own.
        own = {"device_id": int(os.environ.get("LOCAL_RANK", 0))}
        providers.insert(0, ("CUDAExecutionProvider", own))
    elif device == "cuda":
        raise ConfigError("--device cuda: this onnxruntime cannot use CUDA; use --device cpu, or onnxruntime-gpu")
    elif device == "mps":
        raise ConfigError("--device mps: an .onnx model does not run on it; use --device cpu, or the checkpoint")
    try:
        content = path.read_bytes()
    except (OSError, MemoryError) as error:
        raise CheckpointError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'too large'})") from None
    check_seal(content, path)
    # Not onnxruntime's own fallback, which prints a banner, for a damaged model too.
    start = functools.partial(onnxruntime.InferenceSession, content, options, enable_fallback=0)
    try:
        try:
            session = start(providers=providers)
        except Exception:
            if len(providers) == 1:
                raise
            session = start(providers=["CPUExecutionProvider"])  # CUDA is installed, but may not work here
    except Exception as error:
        raise CheckpointError(f"{path}: is not an ONNX model, or is damaged ({first_line(error)})") from None
    if device == "cuda" and session.get_providers()[0] == "CPUExecutionProvider":  # it takes that without a word
        raise ConfigError(
            f"--device cuda: onnxruntime cannot start CUDA here, and would compute {path} on the CPU: the driver, CUDA "
            "or cuDNN is missing or of another version; use --device cpu, or the checkpoint"
        )
    process = os.getpid()
    on_gpu = session.get_providers()[0] != "CPUExecutionProvider"

    def network(images: Bytes) -> Probabilities:
        if on_gpu and os.getpid() != process:
            raise ConfigError(GPU_FORKED)
        try:
            [probabilities] = session.run(["probabilities"], {"images": onnx_input(images)})
        except Exception as error:
            raise CheckpointError(f"{path}: cannot be run ({first_line(error)})") from None
        result: Probabilities = probabilities
        return result

    metadata = session.get_modelmeta().custom_metadata_map
    names = read_class_names(metadata, path)
    facts = {name: read_object(metadata.get(name)) for name in ("settings", "metrics")}
    form = onnx_form(metadata.get("preprocess"), facts["settings"], path)
    if network(np.zeros((1, *form.shape), np.uint8)).shape != (1, len(names)):
        raise CheckpointError(f"{path}: is damaged (it names {len(names)} classes, but has another number of outputs)")
    return Loaded(network, names, form, facts, not on_gpu)


def onnx_form(preprocess: str | None, settings: dict[str, Any], path: Path) -> InputForm:
    """What an ONNX file's network sees.  Raises CheckpointError where its settings are no export's."""
    if "image_size" not in settings:  # from before there were sizes and colours
        return InputForm("inverted" if preprocess == "plain" else "glyph")
    told = {name: value for name, value in settings.items() if name in ("preprocess", "image_size", "color")}
    try:
        return form_of(Config.from_dict(told).to_dict())
    except ConfigError as error:
        raise CheckpointError(f"{path}: is damaged ({error})") from None


def onnx_input(images: Bytes) -> Floats:
    """Images, uint8 [N, channels, H, W], as an ONNX file asks for them: float32 in [0, 1]."""
    floats: NDArray[np.float32] = images.astype(np.float32) / np.float32(255)
    return floats


def read_object(text: str | None) -> dict[str, Any]:
    """A JSON object of a file's metadata, which is for people only: {} where there is none, or none to be read."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_class_names(metadata: dict[str, str], path: Path) -> list[str]:
    """The class names in an ONNX file's metadata.  Raises CheckpointError."""
    if "format" not in metadata or "class_names" not in metadata:
        raise CheckpointError(f"{path}: is not an ONNX export of this project (it names no classes)")
    if metadata["format"] != ONNX_FORMAT:
        raise CheckpointError(
            f"{path}: has format version {metadata['format']}, this program reads {ONNX_FORMAT}; "
            "use the version of the program that wrote it"
        )
    try:
        names = json.loads(metadata["class_names"])
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n == valid_utf8(n) for n in names):
        raise CheckpointError(f"{path}: is damaged (its class names are not a list of strings)")
    return names
