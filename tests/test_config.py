"""Settings: the promised defaults, every wrong value refused by name, JSON both ways, what a resumed run may change."""

import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from glyphs.commands.settings import add_settings, given_settings, setting_groups
from glyphs.commands.train_arguments import build_parser
from glyphs.core.config import Config, get_default_config, read_config
from glyphs.core.errors import ConfigError
from tests.conftest import ROOT, refused

PROMISED = {
    "emnist_split": "balanced",
    "batch_size": 128,
    "val_split": 0.1,
    "use_residual": True,
    "dropout_rate": 0.4,
    "num_epochs": 50,
    "learning_rate": 0.001,
    "weight_decay": 1e-4,
    "scheduler": "cosine",
    "early_stopping_patience": 10,
    "rotation_degree": 15,
    "affine_degree": 10,
    "translate": 0.08,
}
# For each setting another legal value, and how the command line asks for it.
OTHERS: dict[str, tuple[Any, list[str]]] = {
    "emnist_split": ("byclass", ["--split", "byclass"]),
    "image_size": (40, ["--image-size", "40"]),
    "drop": ("audit.csv", ["--drop", "audit.csv"]),
    "relabel": ("audit.csv", ["--relabel", "audit.csv"]),
    "color": ("on", ["--color", "on"]),
    "color_jitter": (0.2, ["--color-jitter", "0.2"]),
    "erasing": (0.5, ["--erasing", "0.5"]),
    "mirror": (True, ["--mirror"]),
    "batch_size": (64, ["--batch-size", "64"]),
    "val_split": (0.2, ["--val-split", "0.2"]),
    "use_residual": (False, ["--no-use-residual"]),
    "dropout_rate": (0.0, ["--dropout-rate", "0"]),
    "num_epochs": (5, ["--epochs", "5"]),
    "learning_rate": (0.01, ["--learning-rate", "1e-2"]),
    "weight_decay": (0.0, ["--weight-decay", "0"]),
    "scheduler": ("plateau", ["--scheduler", "plateau"]),
    "early_stopping_patience": (3, ["--early-stopping-patience", "3"]),
    "rotation_degree": (20.0, ["--rotation-degree", "20"]),
    "affine_degree": (0.0, ["--affine-degree", "0"]),
    "translate": (0.0, ["--translate", "0"]),
    "dataset": ("demo", ["--dataset", "demo"]),
    "data_dir": ("there", ["--data-dir", "there"]),
    "preprocess": ("plain", ["--preprocess", "plain"]),
    "max_train_images": (1000, ["--max-train-images", "1000"]),
    "label_smoothing": (0.0, ["--label-smoothing", "0"]),
    "class_prior": ("uniform", ["--class-prior", "uniform"]),
    "arch": ("network:make", ["--arch", "network:make"]),
    "finetune": ("best.pth", ["--finetune", "best.pth"]),
    "warmup_epochs": (0.5, ["--warmup-epochs", "0.5"]),
    "passes_per_epoch": (3, ["--passes-per-epoch", "3"]),
    "seed": (0, ["--seed", "0"]),
    "deterministic": (True, ["--deterministic"]),
    "device": ("cpu", ["--device", "cpu"]),
    "precision": ("bfloat16", ["--precision", "bfloat16"]),
    "output_dir": ("here", ["--output-dir", "here"]),
    "checkpoint_every": (0.5, ["--checkpoint-every", "0.5"]),
    "tensorboard": (True, ["--tensorboard"]),
}
MAY_CHANGE = (
    "num_epochs",
    "early_stopping_patience",
    "data_dir",
    "device",
    "output_dir",
    "checkpoint_every",
    "tensorboard",
)


def test_defaults_are_the_promised_ones_and_come_first() -> None:
    defaults = get_default_config()
    assert list(defaults)[:13] == list(PROMISED)
    assert PROMISED.items() <= defaults.items()
    assert defaults == Config().to_dict()


def test_default_config_is_a_plain_dict_of_ones_own() -> None:
    get_default_config()["batch_size"] = 1
    assert get_default_config()["batch_size"] == 128


def test_config_cannot_change_under_a_run() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().batch_size = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("preprocess", "none"),
        ("batch_size", 64.0),
        ("batch_size", "64"),
        ("batch_size", True),
        ("batch_size", None),
        ("batch_size", 0),
        ("val_split", 0),
        ("val_split", 1.0),
        ("val_split", False),
        ("use_residual", 1),
        ("dropout_rate", -0.1),
        ("dropout_rate", 1.0),
        ("num_epochs", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        pytest.param("learning_rate", 10**400, id="learning_rate-huge"),
        ("weight_decay", -1e-9),
        ("weight_decay", True),
        ("weight_decay", float("inf")),
        ("scheduler", "linear"),
        ("early_stopping_patience", 0),
        ("rotation_degree", -1),
        ("rotation_degree", 1e300),
        ("affine_degree", 90),
        pytest.param("num_epochs", int("9" * 400), id="num_epochs-huge"),
        ("affine_degree", float("nan")),
        ("translate", 1.0),
        ("emnist_split", "Balanced"),
        ("emnist_split", ["balanced"]),
        ("dataset", "mnist"),
        ("data_dir", None),
        ("max_train_images", 0),
        ("max_train_images", 10.0),
        ("label_smoothing", 1.0),
        ("warmup_epochs", -1),
        ("seed", -1),
        ("seed", 1.5),
        ("deterministic", "yes"),
        ("device", "gpu"),
        ("output_dir", 1),
        ("checkpoint_every", 0),
        ("tensorboard", 0),
    ],
)
def test_wrong_values_are_refused_by_name(name: str, value: Any) -> None:
    with refused(ConfigError, name):
        Config.from_dict({name: value})
    with refused(ConfigError, name):
        Config(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("dropout_rate", 0), ("val_split", 0.999), ("seed", 2**70)])
def test_values_at_the_edge_are_taken(name: str, value: float) -> None:
    assert getattr(Config.from_dict({name: value}), name) == value


def test_whole_numbers_serve_as_floats() -> None:
    assert type(Config.from_dict({"rotation_degree": 20}).rotation_degree) is float


def test_paths_and_numbers_of_numpy_are_settings_too(tmp_path: Path) -> None:
    config = Config(
        data_dir=tmp_path,  # type: ignore[arg-type]
        batch_size=np.int64(64),  # type: ignore[arg-type]
        learning_rate=np.float64(0.5),
        weight_decay=np.int32(1),  # type: ignore[arg-type]
        use_residual=np.bool_(False),  # type: ignore[arg-type]
    )
    plain = Config(data_dir=str(tmp_path), batch_size=64, learning_rate=0.5, weight_decay=1.0, use_residual=False)
    assert config == plain
    assert json.loads(json.dumps(config.to_dict())) == plain.to_dict()
    with refused(ConfigError, "batch_size", "must be of type int"):
        Config(batch_size=np.float64(64))  # type: ignore[arg-type]


def test_unknown_setting_is_refused_with_the_known_ones() -> None:
    with refused(ConfigError, "'learning_rat'", "learning_rate"):
        Config.from_dict({"learning_rat": 0.1})


def test_survives_json(tmp_path: Path) -> None:
    config = Config.from_dict({name: value for name, (value, _) in OTHERS.items()})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    assert Config.from_dict(read_config(path)) == config


@pytest.mark.parametrize("name", ["accurate.json", "fast.json"])
def test_a_recipe_is_settings_that_are_not_defaults(name: str) -> None:
    recipe = read_config(ROOT / "recipes" / name)
    assert {name for name, value in recipe.items() if getattr(Config(), name) == value} == set()
    config = Config.from_dict(recipe)
    assert config.class_prior == "uniform"
    assert config.use_residual == (name == "accurate.json")


def test_reads_only_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"batch_size": 64}', encoding="utf-8")
    assert read_config(path) == {"batch_size": 64}
    path.write_text('{"batch_size": 64}', encoding="utf-8-sig")  # as editors on Windows may
    assert read_config(path) == {"batch_size": 64}


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"{", "is not JSON"),
        (b"\xff{}", "is not JSON"),
        (b"[1]", "object"),
        (b"[" * 100_000, "JSON"),
        (b'{"batch_siz": 64}', "batch_siz"),
        (b'{"batch_size": "64"}', "batch_size"),
        (b'{"seed": 1, "batch_size": 64, "seed": 2}', "'seed' is there twice"),
        (b'{"learning_rate": NaN}', "learning_rate"),
    ],
    ids=range(8),
)
def test_error_in_a_config_file_names_the_file(tmp_path: Path, content: bytes, fact: str) -> None:
    path = tmp_path / "my.json"
    path.write_bytes(content)
    with refused(ConfigError, path, fact):
        read_config(path)


def test_config_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with refused(ConfigError, tmp_path / "none.json", "No such file"):
        read_config(tmp_path / "none.json")
    with refused(ConfigError, tmp_path, "Is a directory"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", MAY_CHANGE)
def test_resumed_run_may_change(name: str) -> None:
    value = OTHERS[name][0]
    assert Config().resumed_with({name: value}) == dataclasses.replace(Config(), **{name: value})


@pytest.mark.parametrize("name", sorted(set(OTHERS) - set(MAY_CHANGE)))
def test_resumed_run_refuses_a_contradiction_naming_both_values(name: str) -> None:
    ours, theirs = getattr(Config(), name), OTHERS[name][0]
    with refused(ConfigError, name, repr(ours), repr(theirs), "--output-dir"):
        Config().resumed_with({name: theirs})


def test_resumed_run_takes_its_own_settings_repeated() -> None:
    config = Config(seed=7, rotation_degree=20.0)
    assert config.resumed_with({}) == config
    assert config.resumed_with({"seed": 7, "rotation_degree": 20}) == config


def helps_of_settings() -> dict[str, str]:
    """What --help says of each setting."""
    parser = MagicMock()
    add_settings(parser, setting_groups())
    calls = parser.add_argument_group.return_value.add_argument.call_args_list
    return {call.kwargs["dest"]: call.kwargs["help"] for call in calls}


def test_the_tables_of_this_test_know_every_setting() -> None:
    assert set(OTHERS) == {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize("name", OTHERS)
def test_flag_sets_its_setting_and_no_other(name: str) -> None:
    value, flags = OTHERS[name]
    given = given_settings(build_parser().parse_args(flags))
    assert given == {name: value}
    assert getattr(Config.from_dict(given), name) == value


@pytest.mark.parametrize("name", OTHERS)
def test_help_of_every_flag_states_its_default(name: str) -> None:
    default = get_default_config()[name]
    words = {"True": "on", "False": "off", "None": "none"}.get(str(default), str(default))
    words = {"max_train_images": "all", "image_size": "what suits the pictures"}.get(name, words)
    text = helps_of_settings()[name]
    assert text.endswith(f"(default: {words})")
    assert len(text) > len(f"(default: {words})") + 5  # and what the setting is


def test_no_flag_given_leaves_every_setting_to_the_config_file() -> None:
    assert given_settings(build_parser().parse_args([])) == {}


@pytest.mark.parametrize("flags", [["--no-deterministic"], ["--no-tensorboard"], ["--use-residual"]])
def test_switches_have_both_positions(flags: list[str]) -> None:
    (value,) = given_settings(build_parser().parse_args(flags)).values()
    assert value is not flags[0].startswith("--no-")


@pytest.mark.parametrize(
    "flags", [["--split", "kanji"], ["--batch-size", "many"], ["--epoch", "5"], ["--emnist-split", "digits"]]
)
def test_wrong_flags_exit_2(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(flags)
    assert caught.value.code == 2
    assert flags[0] in capsys.readouterr().err
