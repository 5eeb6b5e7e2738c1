"""Checkpoints: what is saved comes back, however it was wrapped; what is damaged, foreign or hostile is refused."""

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from glyphs.core.config import Config
from glyphs.core.errors import CheckpointError, ConfigError
from glyphs.models.checkpoint import (
    FORMAT_VERSION,
    build_model,
    load_checkpoint,
    load_model,
    save_checkpoint,
    start_from,
    write_checkpoint,
)
from glyphs.models.network import EnhancedGlyphCNN
from recipes.half_precision import write_half_precision
from tests.conftest import refused

NAMES = ["0", "1", "A", "b", "\u00fc"]
CONFIG = Config(use_residual=False, dropout_rate=0.25, seed=7)


@pytest.fixture(scope="module")
def model() -> EnhancedGlyphCNN:
    """A network whose every weight and statistic is off its initial value."""
    torch.manual_seed(0)
    model = EnhancedGlyphCNN(len(NAMES), CONFIG.dropout_rate, CONFIG.use_residual)
    model.train()
    for _ in range(3):
        model(torch.rand(8, 1, 28, 28))
    return model.eval()


@pytest.fixture
def saved(tmp_path: Path, model: EnhancedGlyphCNN) -> Path:
    path = tmp_path / "best_model.pth"
    save_checkpoint(path, model, CONFIG, NAMES, metrics={"val_accuracy": 0.5}, training={"epoch": 3})
    return path


def damaged(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The checkpoint with something in it changed."""
    content = load_checkpoint(path)
    change(content)
    write_checkpoint(path, content)
    return path


@torch.no_grad()
def test_round_trip(saved: Path, model: EnhancedGlyphCNN) -> None:
    loaded, config, names = load_model(saved)
    assert config == CONFIG
    assert names == NAMES
    assert not loaded.training
    assert isinstance(loaded, EnhancedGlyphCNN)
    assert loaded.dropout.p == 0.25
    images = torch.rand(4, 1, 28, 28)
    assert torch.equal(loaded(images), model(images))
    content = load_checkpoint(saved)
    assert content["metrics"] == {"val_accuracy": 0.5}
    assert content["training"] == {"epoch": 3}
    assert content["format"] == FORMAT_VERSION == 1


def test_weights_file_holds_no_training_state(tmp_path: Path, model: EnhancedGlyphCNN) -> None:
    save_checkpoint(tmp_path / "best_model.pth", model, CONFIG, NAMES, metrics={})
    assert "training" not in load_checkpoint(tmp_path / "best_model.pth")


def test_half_precision_is_half_the_size_and_loads_as_float32(saved: Path, model: EnhancedGlyphCNN) -> None:
    half = saved.with_name("half.pth")
    write_half_precision(saved, half)
    content = load_checkpoint(half)
    assert "training" not in content
    assert {w.dtype for w in content["model"].values()} == {torch.float16, torch.int64}
    assert half.stat().st_size < 0.65 * saved.stat().st_size
    loaded, _, _ = load_model(half)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert loaded.mean.dtype == torch.float32
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=1e-6, rtol=1e-3)


def test_half_precision_tells_no_path_of_the_machine(saved: Path) -> None:
    paths = {"data_dir": "/a/b", "output_dir": "/a/c", "finetune": "/a/d.pth"}
    half = saved.with_name("half.pth")
    write_half_precision(damaged(saved, lambda content: content["config"].update(paths)), half)
    assert load_model(half)[1] == CONFIG


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_saved_under_a_wrapper_load(saved: Path, model: EnhancedGlyphCNN, prefix: str) -> None:
    def wrap(content: dict[str, Any]) -> None:
        content["model"] = {prefix + name: weights for name, weights in content["model"].items()}

    loaded, _, _ = load_model(damaged(saved, wrap))
    for name, weights in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weights)


@pytest.fixture
def no_warnings() -> Iterator[None]:
    """A warning would be a second line on stderr; as an error it would hide among those that loading translates."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [str(each.message) for each in caught] == []


def truncated(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def torch_bytes(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


FOREIGN: dict[str, bytes] = {
    "empty": b"",
    "text": b"not a checkpoint\n",
    "noise": bytes(range(256)) * 8,
    "zip": b"PK\x05\x06" + bytes(18),
    "pickle": pickle.dumps({"format": 1}),
    "pickle-of-old": pickle.dumps({"format": 1}, protocol=0),
    "tensor": torch_bytes(torch.zeros(3)),
    "bare-weights": torch_bytes({"fc.weight": torch.zeros(3, 3)}),
    "list": torch_bytes([1, 2, 3]),
}


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
def test_file_of_another_kind_is_named_and_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.pth"
    path.write_bytes(content)
    with refused(CheckpointError, path, "is not a checkpoint of this project"):
        load_model(path)


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("keep", [0.01, 0.5, 0.999])
def test_truncated_file_is_named_and_refused(saved: Path, keep: float) -> None:
    truncated(saved, keep)
    with refused(CheckpointError, saved, "damaged"):
        load_model(saved)


def flip(path: Path, at: int, bit: int = 0) -> Path:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("part", range(0, 40, 3))
def test_one_flipped_bit_in_a_part_is_refused(saved: Path, part: int) -> None:
    """In weights it would only make the model answer wrongly."""
    with zipfile.ZipFile(saved) as archive:
        entry = archive.infolist()[part]
    start = entry.header_offset + 30  # bytes of its head; then come its name and padding, of lengths that are given
    start += sum(saved.read_bytes()[start - 4 : start : 2]) + 256 * sum(saved.read_bytes()[start - 3 : start : 2])
    with refused(CheckpointError, saved, "damaged"):
        load_checkpoint(flip(saved, start + entry.file_size // 2, bit=part % 8))


def directory_of(path: Path) -> int:
    """Where the archive's table of contents begins, or its entry of the first weights."""
    return path.read_bytes().index(b"PK\x01\x02")


# What one flipped bit in the archive's table of contents does: offset in its first entry, and bit.
TABLE = {
    "signature": (0, 0),  # BadZipFile
    "name-not-utf8": (46, 7),  # UnicodeDecodeError
    "version-of-the-future": (6, 7),  # NotImplementedError
    "patched-data": (8, 5),  # NotImplementedError
    "encrypted": (8, 0),  # RuntimeError
    "compression": (10, 6),
    "a-folder": (38, 4),  # torch would read nothing, and take what the memory holds
    "size": (24, 3),
    "checksum": (16, 0),
    "place": (42, 6),
}


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize(("at", "bit"), TABLE.values(), ids=TABLE.keys())
def test_one_flipped_bit_in_the_table_of_contents_is_refused(saved: Path, at: int, bit: int) -> None:
    with refused(CheckpointError, saved):
        load_checkpoint(flip(saved, directory_of(saved) + at, bit))


def test_a_setting_nested_without_end_is_refused(saved: Path, tmp_path: Path) -> None:
    text, nested = b"X\x04\x00\x00\x00auto", b"]" * 100_000 + b"a" * 99_999  # of the language of pickle
    with zipfile.ZipFile(saved) as plain, zipfile.ZipFile(tmp_path / "deep.pth", "w") as deep:
        for entry in plain.infolist():
            content = plain.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert text in content
                content = content.replace(text, nested, 1)
            deep.writestr(entry.filename, content)
    with refused(CheckpointError, tmp_path / "deep.pth", "is damaged (maximum recursion depth"):
        load_model(tmp_path / "deep.pth")


def test_a_file_larger_than_memory_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(path: Path) -> bytes:
        raise MemoryError

    monkeypatch.setattr(Path, "read_bytes", no_memory)
    with refused(CheckpointError, saved, "is not a checkpoint of this project"):
        load_checkpoint(saved)


def test_a_message_quotes_a_file_only_in_part(saved: Path) -> None:
    damaged(saved, lambda content: content["config"].update(device="x" * 1_000_000))
    with pytest.raises(CheckpointError) as caught:
        load_model(saved)
    message = str(caught.value)
    assert len(message) < 1000
    assert message.startswith(f"{saved}: is damaged (device is 'xxx")
    assert message.endswith("choose from auto, cpu, cuda, mps)")


def test_refusal_never_advises_to_load_the_file_unsafely(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    path.write_bytes(torch_bytes(Trap(tmp_path / "sprung")))
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    for advice in ("weights_only", "can still be loaded", "trust"):
        assert advice not in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with refused(CheckpointError, tmp_path / "none.pth", "no such checkpoint"):
        load_model(tmp_path / "none.pth")
    with refused(CheckpointError, tmp_path, "Is a directory"):
        load_model(tmp_path)


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        import os

        return os.mkdir, (str(self.folder),)


@pytest.mark.usefixtures("no_warnings")
@pytest.mark.parametrize("write", [torch_bytes, pickle.dumps], ids=["torch", "pickle"])
def test_code_in_a_file_is_refused_and_does_not_run(tmp_path: Path, write: Callable[[object], bytes]) -> None:
    sprung = tmp_path / "sprung"
    content = {"format": 1, "model": {}, "config": {}, "class_names": ["a"], "metrics": {"x": Trap(sprung)}}
    path = tmp_path / "m.pth"
    path.write_bytes(write(content))
    with refused(CheckpointError, path, "is not a checkpoint of this project"):
        load_model(path)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))  # the trap itself works
    assert sprung.exists()


def test_version_of_the_future_is_named(saved: Path) -> None:
    content = load_checkpoint(saved) | {"format": FORMAT_VERSION + 1}
    write_checkpoint(saved, content)
    with refused(CheckpointError, saved, f"format version {FORMAT_VERSION + 1}", f"reads {FORMAT_VERSION}"):
        load_checkpoint(saved)


@pytest.mark.parametrize("key", ["format", "model", "config", "class_names", "metrics"])
@pytest.mark.parametrize("value", [None, 1.5])
def test_part_that_is_missing_or_of_the_wrong_type_is_refused(saved: Path, key: str, value: object) -> None:
    damaged(saved, lambda content: content.update({key: value}))
    with refused(CheckpointError, saved, "is not a checkpoint of this project"):
        load_checkpoint(saved)


@pytest.mark.parametrize("names", [[], ["a"] * 100_001, ["a", 1], ["a", None]], ids=range(4))
def test_absurd_class_names_are_refused(saved: Path, names: list[object]) -> None:
    damaged(saved, lambda content: content.update(class_names=names))
    with refused(CheckpointError, saved, "class names"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "config",
    [{"dropout_rate": 2.0}, {"no_such_setting": 1}, {1: 2, "no_such_setting": 3}, {"use_residual": None}],
    ids=range(4),
)
def test_settings_that_cannot_be_are_refused(saved: Path, config: dict[Any, object]) -> None:
    damaged(saved, lambda content: content.update(config=config))
    with refused(CheckpointError, saved, "damaged"):
        load_model(saved)


def drop_a_weight(state: dict[str, Any]) -> object:
    return state.pop("classifier.weight")


def add_a_weight(state: dict[str, Any]) -> object:
    return state.update(extra=torch.zeros(1))


def rename_to_a_number(state: dict[Any, Any]) -> object:
    return state.update({7: torch.zeros(1)})


def replace_by_text(state: dict[str, Any]) -> object:
    return state.update({"classifier.bias": "zeros"})


def reshape(state: dict[str, Tensor]) -> object:
    return state.update({"classifier.bias": torch.zeros(4)})


@pytest.mark.parametrize("change", [drop_a_weight, add_a_weight, rename_to_a_number, replace_by_text, reshape])
def test_weights_that_do_not_fit_are_refused(saved: Path, change: Callable[[dict[str, Any]], object]) -> None:
    damaged(saved, lambda content: change(content["model"]))
    with refused(CheckpointError, saved, "weights do not fit"):
        load_model(saved)


def test_weights_of_the_other_architecture_are_refused(saved: Path) -> None:
    content = damaged(saved, lambda content: content["config"].update(use_residual=True))
    with refused(CheckpointError, saved, "weights do not fit"):
        build_model(load_checkpoint(content), saved)


def test_compressed_file_is_refused_before_it_can_fill_memory(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(10_000_000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "small.pth", "w", 8) as small:
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    with refused(CheckpointError, tmp_path / "small.pth", "compressed"):
        load_checkpoint(tmp_path / "small.pth")


def test_fine_tuning_starts_from_the_weights_and_keeps_the_outputs_of_known_classes(
    saved: Path, model: EnhancedGlyphCNN
) -> None:
    damaged(saved, lambda content: content["model"]["temperature"].fill_(3))
    started, known = start_from(saved, CONFIG, ["A", "new", "0"])
    assert known == 2
    theirs, ours = model.state_dict(), started.state_dict()
    for key in ours:
        if not key.startswith("classifier") and key != "temperature":
            assert torch.equal(ours[key], theirs[key]), key
    for key in ("classifier.weight", "classifier.bias"):
        assert torch.equal(ours[key][[0, 2]], theirs[key][[2, 0]])
        assert not any(torch.equal(ours[key][1], row) for row in theirs[key])
    assert started.temperature == 1


def test_fine_tuning_knows_a_letter_by_its_other_case(saved: Path, model: EnhancedGlyphCNN) -> None:
    started, known = start_from(saved, CONFIG, ["a", "A", "B", "i"])
    assert known == 3
    theirs, ours = (each.state_dict()["classifier.weight"] for each in (model, started))
    assert torch.equal(ours[:3], theirs[[NAMES.index(name) for name in ("A", "A", "b")]])


def test_fine_tuning_the_other_architecture_names_the_flag(saved: Path) -> None:
    with refused(ConfigError, saved, "add --no-use-residual"):
        start_from(saved, Config(), NAMES)


def test_a_checkpoint_from_before_calibration_loads(saved: Path) -> None:
    damaged(saved, lambda content: content["model"].pop("temperature"))
    assert load_model(saved)[0].temperature == 1
