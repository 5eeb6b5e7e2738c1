"""Checkpoints: tensors and plain containers, a format version, written aside and renamed, loaded without running code.

Two kinds share the format.  A weights file (best_model.pth, pretrained/*.pth) holds what prediction needs: weights,
config, class names, metrics.  latest_checkpoint.pth holds that and, under "training", everything that a resumed run
needs.
"""

import dataclasses
import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glyphs.core.config import Config
from glyphs.core.errors import CheckpointError, ConfigError
from glyphs.core.files import replace_file
from glyphs.models.architecture import make_model, require_arch
from glyphs.models.network import Calibrated, EnhancedGlyphCNN
from glyphs.pictures.plain import EMNIST_FORM, form_of

FORMAT_VERSION = 1
FOLDER = 0x10  # of a zip archive's attributes
BEST_MODEL = "best_model.pth"
LATEST_CHECKPOINT = "latest_checkpoint.pth"
LINEAGE = ("dataset", "emnist_split", "preprocess", "seed")  # the settings that tell which images were trained on
MAX_CLASSES = 100_000  # more than any script has characters; a file that declares more is damaged or hostile


def save_checkpoint(
    path: Path,
    model: nn.Module,
    config: Config,
    class_names: list[str],
    *,
    metrics: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
    ancestors: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a checkpoint; see the head of this file, and `ancestors_of`.  Raises GlyphError as `replace_file` does."""
    content = {
        "format": FORMAT_VERSION,
        "model": model.state_dict(),
        "config": config.to_dict(),
        "class_names": class_names,
        "metrics": dict(metrics),
        "ancestors": [dict(each) for each in ancestors],
    }
    if training is not None:
        content["training"] = dict(training)
    write_checkpoint(path, content)


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    replace_file(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU and check that it is one of ours.  Nothing in it can run code.

    Raises
    ------
    CheckpointError : naming the path, where it is missing, damaged, or not a checkpoint of this project.
    """
    foreign = f"{path}: is not a checkpoint of this project, or is damaged; train one, or copy it again"
    try:
        file = io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint; check the path, or train one") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise CheckpointError(foreign) from None
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            # torch.save stores; what is compressed could claim any amount of memory.
            compressed = any(entry.compress_type for entry in entries)
            # torch.load checks no checksums: with a flipped bit in its weights a model would answer wrongly.  And of
            # a part whose attributes call it a folder it reads nothing, and takes what the memory happens to hold.
            folder = next((entry.filename for entry in entries if entry.external_attr & FOLDER), None)
            damaged = folder if folder or compressed else archive.testzip()
    except Exception:  # zipfile, too, raises whatever the damage happens to trigger
        raise CheckpointError(foreign) from None
    if compressed:
        raise CheckpointError(f"{path}: is not a checkpoint of this project (it is compressed); train one, or get one")
    if damaged is not None:
        raise CheckpointError(f"{path}: is damaged (its part {damaged} is not what was written); copy it again")
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign files, which are refused below
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:
        # torch.load raises whatever the damage happens to trigger, and advises to load without weights_only.
        raise CheckpointError(foreign) from None
    expected = {"format": int, "model": dict, "config": dict, "class_names": list, "metrics": dict}
    if not isinstance(content, dict) or not all(isinstance(content.get(k), t) for k, t in expected.items()):
        raise CheckpointError(f"{path}: is not a checkpoint of this project; name one that its training wrote")
    if content["format"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format version {content['format']}, this program reads {FORMAT_VERSION}; "
            f"use the version of the program that wrote it"
        )
    if "image_size" not in content["config"]:  # from before there were sizes and colours
        older = "inverted" if content["config"].get("preprocess") == "plain" else "glyph"
        content["config"] |= {"preprocess": older, "image_size": EMNIST_FORM.size, "color": "off"}
    names = content["class_names"]
    if not 1 <= len(names) <= MAX_CLASSES or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: is damaged (its class names are not 1 to {MAX_CLASSES:,} strings)")
    return content


def ancestors_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the models that a loaded checkpoint was fine-tuned from, one from the other, were trained on.

    Returns
    -------
    For each, the first first, the settings of LINEAGE; empty where nobody knows, as in files from before these were
    kept.
    """
    found = content.get("ancestors")
    if isinstance(found, list):
        return [each if isinstance(each, dict) else {} for each in found]
    return [{}] if content["config"].get("finetune") else []


def lineage(path: Path) -> list[dict[str, Any]]:
    """The ancestors of a model that is fine-tuned from this checkpoint."""
    content = load_checkpoint(path)
    return [*ancestors_of(content), {name: content["config"].get(name) for name in LINEAGE}]


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """A digest of weights, the same for the same numbers: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        weights = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {weights.dtype} {list(weights.shape)}\n".encode())
        digest.update(weights.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def training_state(
    checkpoint: Mapping[str, Any],
    class_names: Sequence[str],
    num_steps: int,
    fingerprint: tuple[int | None, int | None],
) -> dict[str, Any]:
    """What a loaded checkpoint holds for a resumed run on these data.

    Parameters
    ----------
    fingerprint : of the training and of the validation images.

    Raises
    ------
    CheckpointError : it comes from other data, or holds no training state.
    """
    training: dict[str, Any] | None = checkpoint.get("training")
    if training is None:
        raise CheckpointError(f"the checkpoint holds weights only; resume from a {LATEST_CHECKPOINT}")
    if checkpoint["class_names"] != class_names:
        raise CheckpointError("the checkpoint's classes are not those of the data; give it the data that it began with")
    train, val = fingerprint
    same_train = (training["num_steps"], training["fingerprint"]) == (num_steps, train)
    if not same_train or training.get("val_fingerprint", val) != val:  # older checkpoints know nothing of validation
        raise CheckpointError(
            f"the {'validation' if same_train else 'training'} images are not those that the run began with; give it "
            "the same data again, or start a new run with another --output-dir"
        )
    return training


def is_finished(checkpoint: Mapping[str, Any]) -> bool:
    """Whether the run of a loaded latest_checkpoint.pth had come to its end."""
    training, config = checkpoint["training"], checkpoint["config"]
    stopped_early = training["early_stopping"]["epochs_without_gain"] >= config["early_stopping_patience"]
    return bool(training["epoch"] >= config["num_epochs"] or stopped_early)


def build_model(
    content: Mapping[str, Any], path: Path, arch: str | None = None
) -> tuple[EnhancedGlyphCNN | Calibrated, Config]:
    """The model and the settings that a loaded checkpoint describes, the model in float32 and evaluation mode.

    Weights saved in half precision, or under torch.compile or DistributedDataParallel, load too.

    Parameters
    ----------
    arch : the module:callable that may be run to make the network, where it is not this project's own.

    Raises
    ------
    CheckpointError : the weights do not fit the architecture that the checkpoint declares, or `arch` is not that.
    ConfigError : `arch` makes no network.
    """
    try:
        config = Config.from_dict(content["config"])
    except (ConfigError, RecursionError) as error:  # a setting may be nested without end
        raise CheckpointError(f"{path}: is damaged ({error})") from None
    require_arch(config.arch, arch, path)
    classes = len(content["class_names"])
    channels = form_of(config.to_dict()).shape[0]
    try:
        state = clean_state_dict(content["model"])
        own = config.arch is None and "stem.0.weight" in state
    except Exception:  # what is no dict of tensors raises anything
        own, state = True, {}
    if own or arch is None:
        model: EnhancedGlyphCNN | Calibrated = EnhancedGlyphCNN(
            classes, config.dropout_rate, config.use_residual, channels=channels
        )
    else:  # the Trainer in a user's own program need not know the name of the user's network
        model = Calibrated(make_model(dataclasses.replace(config, arch=arch), classes))
        state = {name if name == "temperature" else f"network.{name}": weights for name, weights in state.items()}
    try:
        # Files from before there was calibration carry no temperature.
        model.load_state_dict({"temperature": model.temperature} | state)
    except Exception:  # tensors of other kinds, sparse ones for example, raise more than a RuntimeError
        remedy = "it is damaged, copy it again"
        if not own:
            remedy = f"they are of another network than {arch}" if arch else f"{remedy}, or name its network by --arch"
        raise CheckpointError(f"{path}: its weights do not fit the architecture that it declares; {remedy}") from None
    return model.eval(), config


def clean_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the prefixes that torch.compile and DistributedDataParallel put before their names."""
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): weights for name, weights in state.items()}


def load_model(path: Path, arch: str | None = None) -> tuple[EnhancedGlyphCNN | Calibrated, Config, list[str]]:
    """The model, its settings and its class names, from a checkpoint file.  Raises as `build_model` does."""
    content = load_checkpoint(path)
    model, config = build_model(content, path, arch)
    return model, config, content["class_names"]


def require_classes(known: list[str], of_data: list[str], path: Path) -> None:
    """Raise CheckpointError where a checkpoint's classes are not those of the data that it is to be used with."""
    if known != of_data:
        raise CheckpointError(
            f"{path}: knows {len(known)} classes ({known[0]} to {known[-1]}), the data has {len(of_data)} others "
            f"({of_data[0]} to {of_data[-1]}); choose the data that it was trained on by --dataset and --split"
        )


def start_from(path: Path, config: Config, class_names: list[str]) -> tuple[EnhancedGlyphCNN, int]:
    """A model for these classes with the weights of a checkpoint, to be trained further.

    Returns
    -------
    The model, uncalibrated, and how many of the classes the checkpoint knows.  Those keep their rows of the
    classifier; the others start at random.

    Raises
    ------
    CheckpointError : as `load_model` does.
    ConfigError : the checkpoint's architecture is not the one that the settings name.
    """
    if config.arch is not None:
        raise ConfigError(f"--finetune {path}: starts from this project's own networks only; leave --arch out")
    known, trained_with, known_names = load_model(path)
    if trained_with.use_residual != config.use_residual:
        flag = "--use-residual" if trained_with.use_residual else "--no-use-residual"
        raise ConfigError(f"{path}: is a network of the other architecture; add {flag}")
    ours, theirs = (form_of(each.to_dict()) for each in (config, trained_with))
    if ours != theirs:
        raise ConfigError(
            f"--finetune {path}: knows images of {theirs.words} ({theirs.mode}), the settings say {ours.words} "
            f"({ours.mode}); leave --preprocess, --image-size and --color out"
        )
    model = EnhancedGlyphCNN(len(class_names), config.dropout_rate, config.use_residual, channels=ours.shape[0])
    state = known.state_dict()
    # EMNIST's merged classes: i is I there, so that a model which knows I knows i, unless it tells them apart.
    own = [next((each for each in (name, name.swapcase()) if each in known_names), None) for name in class_names]
    shared = [(at, known_names.index(name)) for at, name in enumerate(own) if name is not None]
    with torch.no_grad():
        for key in ("classifier.weight", "classifier.bias"):
            rows = model.state_dict()[key]
            for new, old in shared:
                rows[new] = state[key][old]
            state[key] = rows
    state["temperature"].fill_(1)
    model.load_state_dict(state)
    return model, len(shared)
