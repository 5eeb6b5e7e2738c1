"""glyphs.reading.predictor: what it says must be what the model says about what was made of the picture."""

import concurrent.futures
import itertools
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image, ImageDraw

import inference
from glyphs.core import devices
from glyphs.core.cpus import usable_cpus
from glyphs.core.errors import CheckpointError, ConfigError, DataError, GlyphError, PictureError
from glyphs.core.text import PRIORS
from glyphs.models.checkpoint import load_checkpoint, load_model, write_checkpoint
from glyphs.output.results import relative_names
from glyphs.pictures import find
from glyphs.pictures.decode import Source, open_picture, to_grey
from glyphs.pictures.find import AllPages, PictureFolder, describe_skipped
from glyphs.pictures.glyph import Glyph, preprocess
from glyphs.pictures.plain import InputForm
from glyphs.reading import predictor as predict
from glyphs.reading.predictor import GlyphPredictor
from tests.conftest import refused, run_python
from tests.small import NAMES, draw_glyph, onnx_weights, save_small_checkpoint, save_small_onnx


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_checkpoint(tmp_path_factory.mktemp("model") / "model.pth")


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_onnx(tmp_path_factory.mktemp("model") / "model.onnx")


def test_a_checkpoint_answers_what_its_network_says(checkpoint: Path, tmp_path: Path) -> None:
    draw_glyph().save(tmp_path / "a.png")
    pixels = preprocess(draw_glyph()).pixels
    assert pixels is not None
    with torch.inference_mode():
        expected = load_model(checkpoint)[0](torch.from_numpy(pixels)[None, None]).softmax(dim=1)[0]
    prediction = GlyphPredictor(checkpoint).predict(tmp_path / "a.png", top_k=3)
    assert (prediction.file, prediction.status, prediction.error) == (str(tmp_path / "a.png"), "ok", None)
    order = expected.argsort(descending=True)[:3].tolist()
    assert [label for label, _ in prediction.top_k] == [NAMES[i] for i in order]
    assert [p for _, p in prediction.top_k] == pytest.approx(expected[order].tolist(), abs=1e-5)
    assert (prediction.prediction, prediction.confidence) == prediction.top_k[0]


def test_an_onnx_file_answers_what_its_network_says(onnx_file: Path) -> None:
    pixels = preprocess(draw_glyph()).pixels
    assert pixels is not None
    odds = np.exp(pixels.reshape(1, -1).astype(np.float64) / 255 @ onnx_weights())[0]
    prediction = GlyphPredictor(onnx_file).predict(draw_glyph(), top_k=1)
    assert prediction.file is None
    assert prediction.prediction == NAMES[odds.argmax()]
    assert prediction.confidence == pytest.approx(odds.max() / odds.sum(), abs=1e-5)


def test_path_image_array_and_open_file_are_one_picture(onnx_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    draw_glyph().save(path)
    predictor = GlyphPredictor(onnx_file)
    with path.open("rb") as file:
        answers = predictor.predict_batch([path, str(path), draw_glyph(), np.asarray(draw_glyph()), file])
    assert {answer.top_k for answer in answers} == {answers[0].top_k}
    assert [answer.file for answer in answers] == [str(path), str(path), None, None, None]


def test_a_batch_keeps_order_and_goes_on_after_bad_pictures(onnx_file: Path, tmp_path: Path) -> None:
    pictures: list[Source] = [draw_glyph(number) for number in range(9)]
    pictures[3] = tmp_path / "missing.png"
    pictures[4] = tmp_path  # with the one before, a batch of two without anything for the network
    pictures[5] = tmp_path / "missing too.png"
    predictor = GlyphPredictor(onnx_file, batch_size=2)
    answers = predictor.predict_batch(pictures)
    assert answers == [predictor.predict(picture) for picture in pictures]
    assert [answer.status == "failed" for answer in answers] == [n in (3, 4, 5) for n in range(9)]
    assert "missing.png" in str(answers[3].error)
    assert len({answer.top_k for answer in answers}) == 7
    assert predictor.predict_batch([]) == []


def test_a_stream_reads_only_a_little_ahead(onnx_file: Path) -> None:
    read = 0

    def endless() -> Iterator[tuple[str, Source]]:
        nonlocal read
        for read in itertools.count(1):
            yield str(read), draw_glyph(read % 10)

    predictor = GlyphPredictor(onnx_file, batch_size=4)
    stream = predictor.stream(endless())
    names = [prediction.file for prediction, _ in itertools.islice(stream, 50)]
    assert names == [str(number) for number in range(1, 51)]
    assert read <= 50 + 4 + 8 * (usable_cpus() + 2)  # a batch, and the chunks under way


def test_answers_do_not_wait_for_a_full_batch_where_pictures_come_slowly(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "PATIENCE", 0.0)
    prepare = GlyphPredictor.prepare

    def noted(self: GlyphPredictor, *picture: Any) -> predict.Prepared:
        if int(picture[0]) >= predict.CHUNK:
            assert answered.wait(timeout=60)
        return prepare(self, *picture)

    answered = threading.Event()
    monkeypatch.setattr(GlyphPredictor, "prepare", noted)
    monkeypatch.setattr(predict, "usable_cpus", lambda: 1)
    stream = GlyphPredictor(onnx_file).stream((str(number), draw_glyph()) for number in range(40))
    first, _ = next(stream)
    answered.set()
    assert first.file == "0"
    assert len(list(stream)) == 39


def test_more_classes_asked_for_than_there_are(onnx_file: Path) -> None:
    prediction = GlyphPredictor(onnx_file).predict(draw_glyph(), top_k=100)
    probabilities = [p for _, p in prediction.top_k]
    assert sorted(label for label, _ in prediction.top_k) == sorted(NAMES)
    assert probabilities == sorted(probabilities, reverse=True)
    assert math.isclose(sum(probabilities), 1, abs_tol=1e-4)


def test_an_alphabet_restricts_and_renormalises(onnx_file: Path) -> None:
    everything = dict(GlyphPredictor(onnx_file).predict(draw_glyph(), top_k=47).top_k)
    few = dict(GlyphPredictor(onnx_file, alphabet="310").predict(draw_glyph(), top_k=47).top_k)
    total = sum(everything[digit] for digit in "013")
    assert few == pytest.approx({digit: everything[digit] / total for digit in "013"}, abs=1e-4)


def test_a_prior_makes_digits_more_frequent(onnx_file: Path) -> None:
    before = dict(GlyphPredictor(onnx_file).predict(draw_glyph(), top_k=47).top_k)
    after = dict(GlyphPredictor(onnx_file, prior="digits").predict(draw_glyph(), top_k=47).top_k)
    weights = {name: (PRIORS["digits"][1] if name in "0123456789" else 1) * p for name, p in before.items()}
    total = sum(weights.values())
    assert after == pytest.approx({name: weight / total for name, weight in weights.items()}, abs=1e-4)
    with pytest.raises(ConfigError, match="prior: is 'letters'; it is one of auto, uniform, digits"):
        GlyphPredictor(onnx_file, prior="letters")


def test_digits_are_more_frequent_in_drawings_of_mnists_size(onnx_file: Path) -> None:
    """Nearly everything that people draw on 28x28 pixels is a digit; EMNIST's images and larger pictures are not."""
    drawing = Image.new("L", (28, 28), 255)
    ImageDraw.Draw(drawing).line((14, 4, 14, 23), fill=0)
    larger = drawing.resize((56, 56), Image.Resampling.NEAREST)
    emnist = Image.fromarray(np.asarray(preprocess(drawing).pixels))

    def by_label(picture: Image.Image, prior: str) -> dict[str, float]:
        return dict(GlyphPredictor(onnx_file, prior=prior).predict(picture, top_k=47).top_k)

    assert by_label(drawing, "auto") == by_label(drawing, "digits") != by_label(drawing, "uniform")
    for other in (larger, emnist):
        assert by_label(other, "auto") == by_label(other, "uniform") != by_label(other, "digits")
    # Among other pictures of a batch, too.
    together = GlyphPredictor(onnx_file).predict_batch([larger, Image.new("L", (28, 28)), drawing], top_k=47)
    assert [dict(prediction.top_k) for prediction in together] == [
        by_label(larger, "uniform"),
        {},
        by_label(drawing, "digits"),
    ]


@pytest.mark.parametrize(
    ("names", "alphabet", "expected"),
    [(NAMES, "c", "C"), (NAMES, "cC", "C"), (NAMES, "aA", "Aa"), (["x", "y"], "Y", "y"), (["é", "ß"], "É", "é")],
)
def test_a_character_without_a_class_is_its_other_case(names: list[str], alphabet: str, expected: str) -> None:
    assert [names[column] for column in predict.choose_columns(names, alphabet)] == list(expected)


@pytest.mark.parametrize("alphabet", ["digits", "0123456789", "0 1 2 3 4 5 6 7 8 9", list("0123456789")])
def test_an_alphabet_is_the_same_however_it_is_given(onnx_file: Path, alphabet: str | list[str]) -> None:
    assert "".join(GlyphPredictor(onnx_file, alphabet=alphabet).class_names) == "0123456789"
    assert "".join(GlyphPredictor(onnx_file).view(alphabet).class_names) == "0123456789"


@pytest.mark.parametrize(
    ("alphabet", "expected"), [("sun star", "sun star"), ("sun", "sun"), ("e\u0301x", "e\u0301 x")]
)
def test_an_alphabet_names_classes_that_are_words(tmp_path: Path, alphabet: str, expected: str) -> None:
    names = ["sun", "moon", "star", "e\u0301", "x"]
    metadata = {"format": "1", "class_names": json.dumps(names)}
    model = save_small_onnx(tmp_path / "words.onnx", metadata, onnx_weights(len(names)))
    assert GlyphPredictor(model, alphabet=alphabet).class_names == expected.split()


@pytest.mark.parametrize("top_k", [0, -1])
def test_no_class_at_all_cannot_be_asked_for(onnx_file: Path, top_k: int, tmp_path: Path) -> None:
    predictor = GlyphPredictor(onnx_file)
    blank = Image.new("L", (50, 50), 255)
    calls: list[Callable[[], object]] = [
        lambda: predictor.predict(draw_glyph(), top_k),
        lambda: predictor.predict(blank, top_k),
        lambda: predictor.predict_batch([blank], top_k),
        lambda: predictor.read(blank, top_k),
        lambda: predictor.visualize(draw_glyph(), tmp_path / "drawing.png", top_k),
    ]
    for call in calls:
        with pytest.raises(ConfigError, match=f"top_k: is {top_k}"):
            call()
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(("alphabet", "message"), [("1?", r"'\?'"), ("ß", "'ß'"), ("", "empty")])
def test_an_alphabet_that_the_model_lacks(onnx_file: Path, alphabet: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GlyphPredictor(onnx_file, alphabet=alphabet)


def test_an_alphabet_of_impossible_classes_gets_equal_probabilities(tmp_path: Path) -> None:
    weights = np.zeros((28 * 28, 47), np.float32)
    weights[:, 0] = 1000  # float32 has no number for the other probabilities but 0
    prediction = GlyphPredictor(save_small_onnx(tmp_path / "sure.onnx", weights=weights), alphabet="12").predict(
        draw_glyph()
    )
    assert prediction.top_k == (("1", 0.5), ("2", 0.5))


def test_below_the_asked_confidence_is_uncertain(onnx_file: Path) -> None:
    sure = GlyphPredictor(onnx_file).predict(draw_glyph())
    assert sure.confidence is not None
    at = GlyphPredictor(onnx_file, min_confidence=sure.confidence).predict(draw_glyph())
    above = GlyphPredictor(onnx_file, min_confidence=sure.confidence + 0.001).predict(draw_glyph())
    assert at == sure
    assert (above.status, above.prediction) == ("uncertain", None)
    assert (above.confidence, above.top_k) == (sure.confidence, sure.top_k)


@pytest.mark.parametrize("status", ["no_glyph", "several_glyphs"])
def test_no_single_glyph_no_answer(onnx_file: Path, monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    monkeypatch.setattr(predict, "preprocess", lambda picture, form: Glyph(status, None))  # type: ignore[arg-type]
    row = GlyphPredictor(onnx_file).predict(draw_glyph()).to_dict()
    assert row == {
        "file": None, "status": status, "prediction": None, "confidence": None, "top_k": [], "error": None,
    }  # fmt: skip


def test_the_mode_reaches_the_preprocessing(onnx_file: Path) -> None:
    plain = preprocess(draw_glyph(), InputForm("plain")).pixels
    [(_, pixels)] = GlyphPredictor(onnx_file, mode="plain").stream([(None, draw_glyph())])
    assert plain is not None
    assert pixels is not None
    np.testing.assert_array_equal(pixels, plain)


def test_the_schema_of_a_row(onnx_file: Path) -> None:
    row = GlyphPredictor(onnx_file).predict(draw_glyph(), top_k=2).to_dict()
    assert list(row) == ["file", "status", "prediction", "confidence", "top_k", "error"]
    assert [list(candidate) for candidate in row["top_k"]] == [["label", "probability"]] * 2
    assert json.loads(json.dumps(row)) == row


def test_a_picture_is_drawn(onnx_file: Path, tmp_path: Path) -> None:
    predictor = GlyphPredictor(onnx_file)
    for picture in (draw_glyph(), Image.new("RGBA", (9, 7)), Image.fromarray(np.zeros((30, 40), np.uint16))):
        prediction = predictor.visualize(picture, tmp_path / "drawing.png")
        assert prediction == predictor.predict(picture)
        with Image.open(tmp_path / "drawing.png") as drawing:
            assert min(drawing.size) > 400
            drawing.verify()


@pytest.mark.parametrize("name", ["model.pth", "model.onnx"])
def test_no_model_of_ours(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    with pytest.raises(CheckpointError, match=name):
        GlyphPredictor(path)
    for content in (b"", b"no model at all", bytes(range(256)) * 20):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            GlyphPredictor(path)
        assert capfd.readouterr() == ("", "")  # onnxruntime has a banner to print


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "names no classes"),
        ({"format": "1"}, "names no classes"),
        ({"format": "2", "class_names": '["a"]'}, "format version 2"),
        ({"format": "1", "class_names": "a, b"}, "not a list"),
        ({"format": "1", "class_names": "[1, 2]"}, "not a list"),
        ({"format": "1", "class_names": '["a", "b"]'}, "names 2 classes"),
    ],
)
def test_an_onnx_file_of_others(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        GlyphPredictor(save_small_onnx(tmp_path / "model.onnx", metadata))


@pytest.mark.parametrize("folder", ["", "elsewhere"])
def test_an_onnx_file_reads_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    path = save_small_onnx(
        tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / folder)
    with pytest.raises(CheckpointError, match="xternal data"):
        GlyphPredictor(path)


def test_without_onnxruntime(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(GlyphError, match="pip install onnxruntime"):
        GlyphPredictor(onnx_file)


def test_a_model_whose_outputs_are_not_finite(checkpoint: Path, tmp_path: Path) -> None:
    content = load_checkpoint(checkpoint)
    content["model"]["classifier.bias"][0] = torch.nan
    write_checkpoint(tmp_path / "nan.pth", content)
    with pytest.raises(CheckpointError, match="not finite"):
        GlyphPredictor(tmp_path / "nan.pth").predict(draw_glyph())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_no_cuda(checkpoint: Path, onnx_file: Path) -> None:
    for model in (checkpoint, onnx_file):
        with pytest.raises(ConfigError, match="cuda"):
            GlyphPredictor(model, "cuda")


@pytest.mark.parametrize("how", ["drops it", "raises"])
def test_cuda_that_does_not_start_is_no_silent_cpu(onnx_file: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """As an onnxruntime-gpu does it whose CUDA or cuDNN is missing."""
    session = onnxruntime.InferenceSession

    def start(*arguments: Any, providers: list[Any], **options: Any) -> Any:
        if how == "raises" and len(providers) > 1:
            raise RuntimeError("CUDA failure 35")
        return session(*arguments, providers=["CPUExecutionProvider"], **options)

    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    with refused(ConfigError, "--device cuda", onnx_file, "--device cpu"):
        GlyphPredictor(onnx_file, "cuda")
    assert GlyphPredictor(onnx_file).on_cpu


# ---- Folders and names ----


def names_in(folder: Path) -> list[str]:
    return [name for name, _ in PictureFolder(folder)]


def test_a_folder_is_read_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b/z.png", "b/a.JPG", "a.png", "c.tiff", "b/notes.txt", ".hidden", "b.png", "a/deep/er/x.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    pictures = PictureFolder(tmp_path)
    for _ in range(2):
        found = list(pictures)
        assert [name for name, _ in found] == ["a.png", "a/deep/er/x.webp", "b.png", "b/a.JPG", "b/z.png", "c.tiff"]
        assert [path for _, path in found] == [f"{tmp_path}/{name}" for name, _ in found]
        assert describe_skipped(pictures.skipped) == "1 other files skipped (1 .txt)"


def test_what_is_hidden_is_passed_over(tmp_path: Path) -> None:
    for name in (".ipynb_checkpoints/a.png", "__MACOSX/in/a.png", "in/.cache/a.png", "in/._a.png", "in/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names_in(tmp_path) == ["in/a.png"]
    assert names_in(tmp_path / ".ipynb_checkpoints") == ["a.png"]  # asked for by name


def test_links_that_go_round_in_circles(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.png").touch()
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "in" / "here").symlink_to(".")
    (tmp_path / "twice").symlink_to("in")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "nowhere.png").symlink_to("gone")
    (tmp_path / "round").symlink_to("round")
    assert names_in(tmp_path) == ["in/x.png", "nowhere.png", "self.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_reported(tmp_path: Path, onnx_file: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "closed.png").touch(mode=0)
    predictor = GlyphPredictor(onnx_file)
    answers = [prediction for prediction, _ in predictor.stream(PictureFolder(tmp_path))]
    assert [(answer.file, answer.status) for answer in answers] == [("closed.png", "failed"), ("closed", "failed")]
    assert "Permission denied" in str(answers[1].error)


def test_no_folder_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "missing"):
        with pytest.raises(DataError, match=name):
            names_in(tmp_path / name)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        (["/x/y/a.png"], ["a.png"]),
        (["../a.png", "a.png"], ["a.png", "here/a.png"]),
        (["/x/y/a.png", "/x/y/z/a.png", "/x/a.png"], ["y/a.png", "y/z/a.png", "a.png"]),
    ],
)
def test_names_relative_to_what_they_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], expected: list[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert list(relative_names(names).values()) == expected


FORKS = """
import os, sys, torch
from glyphs.reading.predictor import GlyphPredictor
from tests.small import draw_glyph
torch.set_num_threads(2)
torch.rand(512, 512) @ torch.rand(512, 512)  # OpenMP starts its threads
torch.rand(2_000_000).exp()
path, made_in_child = sys.argv[1], sys.argv[2] == "child"
predictor = GlyphPredictor(path)
torch.set_num_threads(2)
expected = predictor.predict(draw_glyph())
if os.fork() == 0:
    if made_in_child:
        predictor = GlyphPredictor(path)
    same = predictor.predict(draw_glyph()) == expected
    os._exit(0 if same and torch.get_num_threads() == 1 else 1)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("made_in", ["parent", "child"])
def test_a_checkpoint_answers_in_a_process_made_by_fork(checkpoint: Path, made_in: str) -> None:
    """OpenMP's threads stay in the parent; a child that asks for more than one waits for them for ever."""
    process = run_python("-c", FORKS, str(checkpoint), made_in, timeout=120)
    assert process.returncode == 0, process.stderr


def test_a_gpu_of_the_process_before_a_fork_is_refused_in_one_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's meta device stands for a GPU."""
    monkeypatch.setattr(devices, "choose_device", lambda name: torch.device("meta"))
    predictor = GlyphPredictor(checkpoint)
    with monkeypatch.context() as patched, refused(ConfigError, "fork", "spawn", "device='cpu'"):
        patched.setattr(os, "getpid", lambda: -1)
        predictor.predict(draw_glyph())

    original = torch.nn.Module.to

    def refuse(model: torch.nn.Module, *where: Any, **form: Any) -> torch.nn.Module:
        if where:
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, ...")
        return original(model, **form)

    monkeypatch.setattr(torch.nn.Module, "to", refuse)
    with refused(ConfigError, "fork", "spawn", "device='cpu'"):
        GlyphPredictor(checkpoint)


@pytest.mark.parametrize("model", ["checkpoint", "onnx_file"])
def test_eight_threads_share_a_predictor(model: str, request: pytest.FixtureRequest) -> None:
    predictor = GlyphPredictor(request.getfixturevalue(model))
    pictures = [draw_glyph(number % 10) for number in range(40)]
    expected = predictor.predict_batch(pictures)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        given = list(pool.map(predictor.predict, pictures))
    for answer, known in zip(given, expected, strict=True):
        assert answer.prediction == known.prediction
        assert answer.confidence == pytest.approx(known.confidence, abs=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="where onnxruntime keeps its number elsewhere")
def test_onnxruntime_tells_its_makers_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its telemetry, where it is on, writes a number of this machine into the user's folder."""
    model = save_small_onnx(tmp_path / "model.onnx")
    draw_glyph().save(tmp_path / "glyph.png")
    for name in ("CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    result = run_python("inference.py", "--model", str(model), "--image", str(tmp_path / "glyph.png"))
    assert result.returncode == 0, result.stderr
    assert list(home.rglob("*")) == []


# ---- Pages ----


def write_pages(folder: Path, count: int = 3) -> list[Image.Image]:
    """A TIFF and a GIF of some pages, each of which shows another glyph."""
    pages = [draw_glyph(3 * number) for number in range(count)]
    for name in ("scan.tif", "frames.GIF"):
        pages[0].save(folder / name, save_all=True, append_images=pages[1:])
    return pages


def test_all_pages_are_pictures(tmp_path: Path) -> None:
    pages = write_pages(tmp_path)
    draw_glyph().save(tmp_path / "single.tif")
    (tmp_path / "broken.tif").write_bytes(b"II*")
    named = dict(AllPages(PictureFolder(tmp_path)))
    assert list(named) == [
        *("broken.tif", "frames.GIF", "frames.GIF#2", "frames.GIF#3"),
        *("scan.tif", "scan.tif#2", "scan.tif#3", "single.tif"),
    ]  # fmt: skip
    for name in ("scan.tif", "frames.GIF"):
        for suffix, page in zip(("", "#2", "#3"), pages, strict=True):
            picture = named[name + suffix]
            assert not isinstance(picture, PictureError)
            assert np.abs(to_grey(open_picture(picture)) - to_grey(page)).max() < 0.02


def test_rows_of_pages_are_named_after_their_file(onnx_file: Path, tmp_path: Path) -> None:
    write_pages(tmp_path)
    output = tmp_path / "rows.json"
    saved = ["--save-preprocessed", str(tmp_path / "saved")]
    arguments = ["--model", str(onnx_file), "--image", str(tmp_path / "scan.tif"), "--output", str(output), *saved]
    assert inference.main(arguments) == 0
    names = [f"{tmp_path / 'scan.tif'}{suffix}" for suffix in ("", "#2", "#3")]
    rows = json.loads(output.read_text())
    assert [row["file"] for row in rows] == names
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        f"scan.tif{n}.png" for n in ("#2", "#3", "")
    ]


def test_pages_that_are_left_out_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pages(tmp_path, 4)
    monkeypatch.setattr(find, "MOST_PAGES", 2)
    *_, (name, error) = AllPages([("a.tif", str(tmp_path / "scan.tif"))])
    assert name == "a.tif#3"
    assert "has 4 pages; those after 2 are left out" in str(error)


def test_pages_of_a_pdf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pypdfium2")
    pages = [draw_glyph(number).resize((400, 400)) for number in (0, 9)]
    path = tmp_path / "scan.pdf"
    pages[0].save(path, save_all=True, append_images=pages[1:], resolution=200)
    named = list(AllPages([("scan.pdf", str(path))]))
    assert [name for name, _ in named] == ["scan.pdf", "scan.pdf#2"]
    for (_, source), page in zip(named, pages, strict=True):
        assert not isinstance(source, PictureError)
        assert np.abs(to_grey(open_picture(source)) - to_grey(page)).mean() < 0.03
    path.write_bytes(b"%PDF-1.7 and no more")
    with refused(PictureError, path, "cannot be read as a PDF"):
        open_picture(path)
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with refused(PictureError, path, "pip install pypdfium2"):
        open_picture(path)
