"""Every setting of a training run, in one list: the flag, its help, its type and its check all come from here."""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from glyphs.core.errors import ConfigError, SettingError
from glyphs.core.text import parse_json

DATASETS = ("emnist", "folder", "demo")
SPLITS = ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")
SCHEDULERS = ("cosine", "plateau")
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")
PREPROCESSING = ("glyph", "plain", "inverted")
COLORS = ("auto", "on", "off")
CLASS_PRIORS = ("data", "uniform")
GROUPS = ("data", "model", "training", "augmentation", "run")  # of settings, as --help shows them
EXPORT_FORMATS = {"onnx": ".onnx", "onnx-int8": ".int8.onnx", "pt2": ".pt2"}  # and their suffixes

Check = tuple[Callable[[Any], bool], str]
POSITIVE: Check = (lambda value: value > 0, "above 0")
COUNT: Check = (lambda value: 0 < value <= 10**15, "above 0, and at most 10^15")
NOT_NEGATIVE: Check = (lambda value: value >= 0, "0 or more")
TURN: Check = (lambda value: 0 <= value <= 180, "from 0 to 180 degrees")
SLANT: Check = (lambda value: 0 <= value < 90, "at least 0 and below 90 degrees")
FRACTION: Check = (lambda value: 0 <= value < 1, "at least 0 and below 1")
CALLABLE: Check = (
    lambda value: all(part.isidentifier() for part in re.sub(":(?=[^.:]+$)", ".", value).split(".")) and ":" in value,
    "MODULE:FUNCTION",
)
PROPER_FRACTION: Check = (lambda value: 0 < value < 1, "above 0 and below 1")

T = TypeVar("T")


def setting(
    group: str,
    default: T,
    help: str,
    *,
    flag: str | None = None,
    choices: tuple[str, ...] | None = None,
    check: Check | None = None,
    type: type | None = None,
    metavar: str | None = None,
    may_change: bool = False,
    unset: str = "none",
) -> T:
    """A dataclass field that also says how the command line shows and checks it.

    `group` is one of GROUPS.  `type` is needed only where it is not that of the default (a default of None).
    `unset` is what --help calls a default of None.
    `may_change` marks what a resumed run may set anew without contradicting the run that it goes on with.
    """
    kind = type or default.__class__
    metadata = {
        "group": group,
        "help": help,
        "flag": flag,
        "choices": choices,
        "check": check,
        "type": kind,
        "metavar": metavar or {int: "N", float: "X", str: "PATH"}.get(kind),
        "may_change": may_change,
        "unset": unset,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """The settings of one run.  The first thirteen are the classic ones, whose names and defaults stay.

    Raises
    ------
    ConfigError : from the constructor, naming the setting whose value has the wrong type or range.
    """

    emnist_split: str = setting(
        "data",
        "balanced",
        "which EMNIST split: 47 classes (balanced, bymerge), 62, 26 or 10",
        flag="split",
        choices=SPLITS,
    )
    batch_size: int = setting(
        "training", 128, "images a step, all processes together; halve it when CUDA runs out of memory", check=COUNT
    )
    val_split: float = setting("data",
        0.1, "part of the training images held out for validation, the same share of each class",
        check=PROPER_FRACTION,
    )  # fmt: skip
    use_residual: bool = setting("model", True, "residual blocks; without: a light depthwise-separable network")
    dropout_rate: float = setting("model", 0.4, "dropout before the classifier", check=FRACTION)
    num_epochs: int = setting("training", 50, "epochs of training", flag="epochs", check=COUNT, may_change=True)
    learning_rate: float = setting("training", 0.001, "the highest learning rate of the schedule", check=POSITIVE)
    weight_decay: float = setting(
        "training", 1e-4, "AdamW's, on weights but not on biases and norms", check=NOT_NEGATIVE
    )
    scheduler: str = setting(
        "training",
        "cosine",
        "cosine: warm up, then fall to zero; plateau: divide by 10 when validation stalls",
        choices=SCHEDULERS,
    )
    early_stopping_patience: int = setting(
        "training", 10, "stop after this many epochs without a better validation loss", check=COUNT, may_change=True
    )
    rotation_degree: float = setting(
        "augmentation", 15.0, "augmentation: rotate by up to this many degrees", check=TURN
    )
    affine_degree: float = setting("augmentation", 10.0, "augmentation: shear by up to this many degrees", check=SLANT)
    translate: float = setting(
        "augmentation", 0.08, "augmentation: shift by up to this fraction of the side", check=FRACTION
    )

    color_jitter: float = setting(
        "augmentation",
        0.4,
        "plain pictures: change brightness, contrast and saturation by up to this share, hue by a twentieth of it",
        check=FRACTION,
    )
    erasing: float = setting(
        "augmentation", 0.25, "plain pictures: share of them in which a small patch is painted over", check=FRACTION
    )
    mirror: bool = setting(
        "augmentation",
        False,
        "plain pictures: mirror half of them; symbols may mean something else then",
    )

    dataset: str = setting(
        "data",
        "emnist",
        "emnist: handwriting; folder: your own pictures; demo: letters drawn from fonts, made on the spot",
        choices=DATASETS,
    )
    data_dir: str = setting(
        "data",
        "./data",
        "emnist: where EMNIST/raw/ is, or will be after the download; folder: holds a folder for each class",
        may_change=True,
    )
    preprocess: str = setting(
        "data",
        "auto",
        "folder: glyph finds the character and brings it to EMNIST's form; plain takes pictures as they are, and only "
        "fits them into a square; auto looks at them; inverted is what plain was up to version 1.0",
        choices=("auto", *PREPROCESSING),
    )
    image_size: int | None = setting(
        "data",
        None,
        "folder: pixels a side of plain pictures, from 20 to 160",
        check=(lambda value: 20 <= value <= 160, "from 20 to 160"),
        type=int,
        unset="what suits the pictures",
    )
    color: str = setting(
        "data", "auto", "folder: whether plain pictures keep their colours; auto: if they have any", choices=COLORS
    )
    max_train_images: int | None = setting(
        "data",
        None,
        "use only this many training images (validation included), for a quick look",
        check=COUNT,
        type=int,
        unset="all",
    )
    drop: str | None = setting(
        "data",
        None,
        "leave out the images that this audit.csv lists, but for those whose verdict is keep; see docs/AUDIT.md",
        type=str,
    )
    relabel: str | None = setting(
        "data", None, "give the images that this audit.csv lists the labels that it suggests, but likewise", type=str
    )
    label_smoothing: float = setting("training", 0.1, "share of the target spread over all classes", check=FRACTION)
    class_prior: str = setting(
        "training",
        "data",
        "data: frequent classes are the likelier answers; uniform: every class counts alike, in loss and validation",
        choices=CLASS_PRIORS,
    )
    passes_per_epoch: int = setting(
        "training", 1, "passes over the training images in an epoch: more of them for few images", check=POSITIVE
    )
    finetune: str | None = setting(
        "model",
        None,
        "start from the weights of this checkpoint; classes that it does not know get new outputs",
        type=str,
    )
    arch: str | None = setting(
        "model",
        None,
        "a network of your own: f(num_classes, **settings) in your module makes it; see docs/TRAINING.md",
        check=CALLABLE,
        type=str,
        metavar="MODULE:FUNCTION",
    )
    warmup_epochs: float = setting(
        "training", 1.0, "epochs over which the cosine schedule warms up", check=NOT_NEGATIVE
    )
    seed: int = setting(
        "run", 42, "every random choice follows from it, the validation part of the data included", check=NOT_NEGATIVE
    )
    deterministic: bool = setting("run", False, "on CUDA, the same bits every run, more slowly (CPU runs always are)")
    device: str = setting(
        "run",
        "auto",
        "auto takes CUDA where there is one; mps, the GPU of Apple's machines, is untested",
        choices=DEVICES,
        may_change=True,
    )
    precision: str = setting(
        "run",
        "auto",
        "of the arithmetic of training; auto: bfloat16 or float16 on CUDA, float32 on CPUs, where bfloat16 is faster "
        "if they have AMX units, else much slower",
        choices=PRECISIONS,
    )
    output_dir: str = setting("run", "outputs", "folder for checkpoints, plots and reports", may_change=True)
    checkpoint_every: float = setting(
        "run", 120.0, "seconds between checkpoints within an epoch", check=POSITIVE, may_change=True
    )
    tensorboard: bool = setting(
        "run", False, "also write TensorBoard event files to OUTPUT_DIR/tensorboard", may_change=True
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            kind = field.metadata["type"]
            value = plain(value, kind)
            object.__setattr__(self, field.name, value)
            if type(value) is not kind:
                raise SettingError(field.name, f"is {value!r}: it must be of type {kind.__name__}")
            if kind is float and not math.isfinite(value):
                raise SettingError(field.name, f"is {value!r}: it must be finite")
            choices = field.metadata["choices"]
            if choices and value not in choices:
                raise SettingError(field.name, f"is {value!r}: choose from {', '.join(choices)}")
            if field.metadata["check"]:
                test, expectation = field.metadata["check"]
                if not test(value):
                    raise SettingError(field.name, f"is {value!r}: it must be {expectation}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """Build a Config from a plain dict; what is left out keeps its default."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known, key=str)
        if unknown:
            raise ConfigError(f"unknown setting {unknown[0]!r}: choose from {', '.join(sorted(known))}")
        return cls(**values)

    @property
    def data_name(self) -> str:
        """What to call the data: the split of EMNIST, else the data set."""
        return self.emnist_split if self.dataset == "emnist" else self.dataset

    def to_dict(self) -> dict[str, Any]:
        """A plain dict of every setting, fit for JSON."""
        return dataclasses.asdict(self)

    def resumed_with(self, given: Mapping[str, Any]) -> "Config":
        """These settings, of a run that is resumed, with what may change taken from `given`.

        Raises
        ------
        ConfigError : `given` contradicts a setting that the run so far rests on.
        """
        for field in dataclasses.fields(self):
            ours = getattr(self, field.name)
            theirs = given.get(field.name, ours)
            if theirs != ours and not field.metadata["may_change"]:
                raise SettingError(
                    field.name,
                    f"is {ours!r} in the run to resume, but {theirs!r} was asked for; leave it out, "
                    f"or start a run of its own with another --output-dir",
                )
        return Config.from_dict({**self.to_dict(), **given})


def plain(value: Any, kind: type) -> Any:
    """A setting as Python's own type, where another stands for it: a Path for its text, a NumPy number, 1 for 1.0."""
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # NumPy's scalars, and tensors of one number
        value = value.item()
    # JSON writes 1.0 as 1; a bool is an int to Python, but not to a reader.
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 10**300 else math.inf  # which is refused as no finite number
    return value


def get_default_config() -> dict[str, Any]:
    """Every setting with its default, as a plain dict that is yours to change."""
    return Config().to_dict()


def read_config(path: Path) -> dict[str, Any]:
    """Read settings from a JSON file, for example the config.json of an earlier run."""
    try:
        values = parse_json(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold one JSON object of settings")
    try:
        Config.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return values
