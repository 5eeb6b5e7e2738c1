"""glyphs.models.export: nothing gets its name that was not proven to be the model."""

import hashlib
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from glyphs.core.config import EXPORT_FORMATS
from glyphs.core.errors import CheckpointError, ConfigError, GlyphError
from glyphs.core.timing import Timing
from glyphs.data.loaders import TensorLoader
from glyphs.evaluation import analyzer
from glyphs.evaluation.analyzer import describe_onnx
from glyphs.models import export
from glyphs.models.checkpoint import load_model
from glyphs.models.export import Exported, choose_format, export_model, load_pt2
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.models.runtime import load_onnx
from glyphs.pictures.plain import EMNIST_FORM
from tests.conftest import refused, run_python
from tests.small import NAMES, draw_glyph, save_small_checkpoint

INT8_IMAGES = 96


@pytest.fixture(scope="module")
def validation() -> TensorLoader:
    """Images with random labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.from_numpy(export.patterns(INT8_IMAGES))
    return TensorLoader(images, torch.randint(len(NAMES), (INT8_IMAGES,), generator=generator), batch_size=32)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_graph_answers_as_the_model_does_at_any_batch(exported: tuple[Path, Path]) -> None:
    source, path = exported
    model, _, names = load_model(source)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [("images", "tensor(float)", ["N", 1, 28, 28])]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("probabilities", ["N", len(names)])]
    for batch in (1, 3, 40):
        images = torch.rand(batch, 1, 28, 28, generator=torch.Generator().manual_seed(batch))
        [given] = session.run(None, {"images": images.numpy()})
        with torch.inference_mode():
            expected = model(images).softmax(dim=1).numpy()
        np.testing.assert_allclose(given, expected, atol=1e-5)
        np.testing.assert_allclose(given.sum(axis=1), 1, atol=1e-5)


def test_an_export_times_no_layers(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analyzer, "measure_layers", lambda *_: pytest.fail("an export waits for 55 timed passes"))
    written = analyzer.ModelAnalyzer(exported[0], "cpu").export("onnx", tmp_path / "model.onnx")
    assert written.path == tmp_path / "model.onnx"


@pytest.mark.parametrize("place", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_one_flipped_bit_is_refused(exported: tuple[Path, Path], tmp_path: Path, place: float) -> None:
    content = bytearray(exported[1].read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path = tmp_path / "flipped.onnx"
    path.write_bytes(content)
    for read in (lambda: load_onnx(path, "cpu"), lambda: describe_onnx(path)):
        with refused(CheckpointError, path, "damaged, or was changed after its export", "copy it again"):
            read()


def test_the_seal_is_metadata_to_others_and_exports_of_before_it_are_read(
    exported: tuple[Path, Path], tmp_path: Path
) -> None:
    proto = onnx.load(exported[1])
    assert proto.metadata_props[-1].key == "sha256"
    content = exported[1].read_bytes()
    assert content.count(proto.metadata_props[-1].value.encode()) == 1
    del proto.metadata_props[-1]
    unsealed = proto.SerializeToString()
    assert content.endswith(hashlib.sha256(content[:-76]).hexdigest().encode())
    (tmp_path / "old.onnx").write_bytes(unsealed)
    images = export.patterns(2)
    assert np.array_equal(load_onnx(tmp_path / "old.onnx", "cpu")[0](images), load_onnx(exported[1], "cpu")[0](images))


def test_only_standard_operators_and_plain_convolutions(exported: tuple[Path, Path]) -> None:
    proto = onnx.load(exported[1])
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", export.OPSET)]
    kinds = [node.op_type for node in proto.graph.node]
    assert {node.domain for node in proto.graph.node} == {""}
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in load_model(exported[0])[0].modules())
    assert kinds.count("Conv") == convolutions
    assert not {"BatchNormalization", "Einsum", "MatMul", "Gather"} & set(kinds)
    # An interpreter that has nothing but the standard's own definitions.
    images = export.patterns(2).astype(np.float32) / 255
    given: Any = ReferenceEvaluator(proto).run(None, {"images": images})
    np.testing.assert_allclose(given[0], load_onnx(exported[1], "cpu")[0](export.patterns(2)), atol=1e-5)


def test_the_metadata_say_what_a_program_needs(exported: tuple[Path, Path]) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(exported[1]).metadata_props}
    assert metadata["format"] == "1"
    assert json.loads(metadata["class_names"]) == NAMES
    assert metadata["preprocess"] == "glyph"
    assert metadata["input"].startswith("float32 [N, 1, 28, 28]")
    assert json.loads(metadata["metrics"]) == {}
    settings = json.loads(metadata["settings"])
    assert settings["emnist_split"] == "balanced"
    assert not {"data_dir", "output_dir"} & set(settings)  # of the machine


@pytest.mark.slow
def test_the_temperature_travels_with_the_export(tmp_path: Path, exported: tuple[Path, Path]) -> None:
    model = load_model(exported[0])[0]
    model.temperature.fill_(3.0)
    path = tmp_path / "warm.onnx"
    path.write_bytes(export.to_onnx(model, {"format": "1", "class_names": json.dumps(NAMES)}).SerializeToString())
    images = export.patterns(2)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).softmax(dim=1).numpy()
    np.testing.assert_allclose(load_onnx(path, "cpu")[0](images), expected, atol=1e-5)


def test_inference_needs_nothing_but_the_file(exported: tuple[Path, Path], tmp_path: Path) -> None:
    draw_glyph().save(tmp_path / "a.png")
    arguments = ["inference.py", "--model", str(exported[1]), "--image", str(tmp_path / "a.png")]
    code = (
        f"import runpy, sys\nsys.argv = {arguments!r}\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'onnx', 'onnxscript'} & set(sys.modules)\n"
    )
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\t")[1] == "ok"


@pytest.mark.slow
def test_a_pt2_program_answers_as_the_model_does(tmp_path: Path, exported: tuple[Path, Path]) -> None:
    found = export_model(exported[0], output=tmp_path / "small.pt2")
    assert (found.format, found.path, found.bytes) == ("pt2", tmp_path / "small.pt2", found.path.stat().st_size)
    assert found.difference <= export.TOLERANCE
    network, names, form = load_pt2(found.path)
    assert (names, form) == (NAMES, EMNIST_FORM)
    images = export.patterns(5)
    np.testing.assert_allclose(network(images), load_onnx(exported[1], "cpu")[0](images), atol=1e-5)
    # As the README says, without this project.
    extra = {"metadata.json": ""}
    program = torch.export.load(found.path, extra_files=extra)
    assert json.loads(json.loads(extra["metadata.json"])["class_names"]) == NAMES
    kinds = {str(node.target) for node in program.graph.nodes}
    assert any("conv2d" in kind for kind in kinds)
    assert not any("bmm" in kind for kind in kinds)


Spoil = Callable[[EnhancedGlyphCNN], None]


def shift_a_weight(model: EnhancedGlyphCNN) -> None:
    model.classifier.bias.data[0] += 1


def make_nan(model: EnhancedGlyphCNN) -> None:
    model.classifier.bias.data[0] = torch.nan


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "pt2"])
@pytest.mark.parametrize("spoil", [shift_a_weight, make_nan])
def test_an_export_that_is_not_the_model_gets_no_name(
    format: str, spoil: Spoil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_small_checkpoint(tmp_path / "small.pth")
    name = {"onnx": "to_onnx", "pt2": "to_pt2"}[format]
    honest = getattr(export, name)

    def lie(model: EnhancedGlyphCNN, *rest: Any) -> Any:
        spoil(model)
        return honest(model, *rest)

    monkeypatch.setattr(export, name, lie)
    output = tmp_path / f"small{EXPORT_FORMATS[format]}"
    with refused(GlyphError, output, "not written", "differ"):
        export_model(source, format)
    assert files(tmp_path) == {"small.pth"}


def test_a_failed_export_leaves_the_older_file(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "old.pt2"
    output.write_bytes(b"old")
    monkeypatch.setattr(export, "to_pt2", lambda *_: b"damaged")
    with refused(GlyphError, output, "does not run"):
        export_model(exported[0], "pt2", output)
    assert files(tmp_path) == {"old.pt2"}
    assert output.read_bytes() == b"old"


def test_metadata_that_are_not_the_checkpoints_are_found(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = onnx.load(exported[1])
    for entry in proto.metadata_props:
        if entry.key == "class_names":
            entry.value = json.dumps(NAMES[::-1])
    monkeypatch.setattr(export, "to_onnx", lambda *_: proto)
    with refused(GlyphError, "not written", "metadata"):
        export_model(exported[0], "onnx", tmp_path / "x.onnx")
    assert files(tmp_path) == set()


def test_a_foreign_operator_is_refused(exported: tuple[Path, Path]) -> None:
    proto = onnx.load(exported[1])
    proto.graph.node[0].domain = "com.microsoft"
    with refused(GlyphError, "com.microsoft", "not standard"):
        export.finish(proto, {})


@pytest.mark.slow
def test_int8(exported: tuple[Path, Path], validation: TensorLoader, tmp_path: Path) -> None:
    output = tmp_path / "small.int8.onnx"
    found = export_model(exported[0], "onnx-int8", output, validation=validation, force=True)
    measured = found.quantisation
    assert measured is not None
    assert (measured.calibration_images, measured.images) == (INT8_IMAGES // 2, INT8_IMAGES // 2)
    assert output.stat().st_size == found.bytes < 0.5 * exported[1].stat().st_size
    assert [timing.batch for timing in measured.timings] == [1, export.EVALUATION_BATCH]
    assert load_onnx(output, "cpu")[1] == NAMES
    proto = onnx.load(output)
    assert {node.domain for node in proto.graph.node} == {""}
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in proto.graph.node}
    assert proto.graph.node[-1].op_type == "Softmax"  # not quantised: 256 steps would make most probabilities 0
    # The figures are those of the file, on the images that did not calibrate it.
    (images, labels), (calibration, _) = export.divide_validation(validation, 42)
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in calibration}
    answers, plain = (export.classify(load_onnx(path, "cpu")[0], images) for path in (output, exported[1]))
    assert measured.accuracy == (answers == labels).mean()
    assert measured.float_accuracy == (plain == labels).mean()
    assert measured.agreement == (answers == plain).mean()
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(metadata["metrics"]) == {"val_accuracy": measured.accuracy, "val_images": len(images)}
    assert f"{measured.agreement:.2%}" in found.to_text()


@pytest.mark.parametrize("limit", ["MAX_FALL", "MIN_AGREEMENT"])
def test_int8_that_costs_too_much_is_refused_unless_forced(
    limit: str, exported: tuple[Path, Path], validation: TensorLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, plain = exported
    monkeypatch.setattr(export, "to_onnx", lambda *_: onnx.load(plain))
    monkeypatch.setattr(export, "quantise", lambda *_: onnx.load(plain))
    monkeypatch.setattr(export, "time_networks", lambda *_: [Timing(1, 1.0, 0.0)] * 2)
    output = tmp_path / "x.int8.onnx"
    assert export_model(source, "onnx-int8", output, validation=validation).quantisation is not None
    output.unlink()
    monkeypatch.setattr(export, limit, {"MAX_FALL": -0.001, "MIN_AGREEMENT": 1.1}[limit])
    with refused(GlyphError, output, "accuracy", "48 validation images", "100.00%", "--force"):
        export_model(source, "onnx-int8", output, validation=validation)
    assert files(tmp_path) == set()
    export_model(source, "onnx-int8", output, validation=validation, force=True)
    assert files(tmp_path) == {"x.int8.onnx"}


def test_int8_needs_images(exported: tuple[Path, Path], validation: TensorLoader) -> None:
    with refused(ConfigError, "onnx-int8", "--data-dir"):
        export_model(exported[0], "onnx-int8")
    one = TensorLoader(validation.images[:1], validation.labels[:1], 1)
    with refused(ConfigError, "two validation images"):
        export_model(exported[0], "onnx-int8", validation=one)


@pytest.mark.parametrize(
    ("format", "output", "expected"),
    [
        (None, None, ("onnx", "m.onnx")),
        ("onnx", None, ("onnx", "m.onnx")),
        ("onnx-int8", None, ("onnx-int8", "m.int8.onnx")),
        ("pt2", None, ("pt2", "m.pt2")),
        (None, "model.onnx", ("onnx", "model.onnx")),
        (None, "model.int8.onnx", ("onnx-int8", "model.int8.onnx")),
        (None, "model.PT2", ("pt2", "model.PT2")),
        ("onnx-int8", "model.onnx", ("onnx-int8", "model.onnx")),
    ],
)
def test_format_and_path_follow_from_what_is_given(
    format: str | None, output: str | None, expected: tuple[str, str]
) -> None:
    assert choose_format(Path("m.pth"), format, Path(output) if output else None) == (expected[0], Path(expected[1]))


@pytest.mark.parametrize(
    ("source", "format", "output", "fact"),
    [
        ("m.pth", "tflite", None, "choose from onnx, onnx-int8, pt2"),
        ("m.pth", None, "m.bin", "no format has this suffix"),
        ("m.pth", "onnx", "m.pt2", "ends in .onnx"),
        ("m.onnx", None, None, "is an export already"),
    ],
)
def test_what_cannot_be_exported_to_is_refused(source: str, format: str | None, output: str | None, fact: str) -> None:
    with refused(ConfigError, fact):
        choose_format(Path(source), format, Path(output) if output else None)


def test_a_folder_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    with refused(ConfigError, "is a folder"):
        choose_format(tmp_path / "m.pth", None, None)


def test_an_output_that_cannot_be_written_is_named(exported: tuple[Path, Path], tmp_path: Path) -> None:
    with refused(GlyphError, tmp_path / "no" / "x.pt2", "cannot be written"):
        export_model(exported[0], "pt2", tmp_path / "no" / "x.pt2")


def test_old_torch_and_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.5.1"))
        with refused(GlyphError, "torch 2.8 or newer", "2.5.1", "pip install"):
            export.check_packages("onnx")
        export.check_packages("pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with refused(GlyphError, "pip install onnxscript"):
        export.check_packages("onnx-int8")


def test_a_torch_and_an_onnxscript_that_do_not_fit_are_named(
    exported: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.onnx.OnnxExporterError("a long story\nin many lines")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with refused(GlyphError, torch.__version__, "cannot export together", "pip install --upgrade"):
        export_model(exported[0], "onnx", tmp_path / "x.onnx")
    assert files(tmp_path) == set()


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with refused(CheckpointError, tmp_path / "gone.pth", "no such checkpoint"):
        export_model(tmp_path / "gone.pth")


@pytest.mark.slow
def test_a_pt2_file_is_one_archive(tmp_path: Path, exported: tuple[Path, Path]) -> None:
    found: Exported = export_model(exported[0], "pt2", tmp_path / "a.pt2")
    assert zipfile.is_zipfile(found.path)
    assert files(tmp_path) == {"a.pt2"}
