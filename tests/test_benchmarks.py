"""The benchmarks run from end to end, and count what they say they count."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import EMNIST

from benchmarks import calibration, page, peers, pictures, prediction, reading, small_data, symbols
from benchmarks.throughput import SPIN_COUNTS, make_trainer, operations, random_images, write_emnist
from glyphs.data.demo import render_demo
from glyphs.evaluation.analyzer import ModelAnalyzer
from tests.conftest import run_python
from tests.small import CLASSES, draw_glyph, make_images, save_small_checkpoint, save_small_onnx

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def table(*command: str) -> dict[str, list[float]]:
    """The figures that a benchmark prints, by the name of their row."""
    result = run_python(*command, timeout=600)
    assert result.returncode == 0, result.stderr
    return rows_of(result.stdout)


def rows_of(printed: str) -> dict[str, list[float]]:
    rows = re.findall(r"^(.*?\S)((?: +-?[\d,.]+)+)$", printed, re.MULTILINE)
    return {name.strip(): [float(figure.replace(",", "")) for figure in figures.split()] for name, figures in rows}


def test_throughput_compares_training_with_the_limits_and_with_the_obvious_way() -> None:
    figures = table("benchmarks/throughput.py", "--batch-size", "16", "--steps", "1", "--rounds", "1")
    rate, product = figures["training, images/s"][0], figures["matrix product, GFLOP/s"][0]
    assert figures["training as direct convolutions, GFLOP/s"][0] == pytest.approx(rate * 0.4216, rel=0.02, abs=0.1)
    share = 100 * figures["training as direct convolutions, GFLOP/s"][0] / product
    assert figures["of the matrix product, %"][0] == pytest.approx(share, rel=0.05, abs=0.1)
    parts = ("gather and augment, ms a step", "forward and backward (the rest)", "clip and update")
    assert sum(figures[part][0] for part in parts) == pytest.approx(16e3 / rate, rel=0.05, abs=0.2)
    assert figures["memory copy, GB/s"][0] > 0
    slow, factor = figures["the obvious way, images/s"][0], figures["training is faster by a factor of"][0]
    assert factor == pytest.approx(rate / slow, rel=0.1)


def test_throughput_measures_training_beside_other_processes() -> None:
    figures = table(
        "benchmarks/throughput.py",
        "--busy",
        "1",
        "--threads",
        "1",
        "--batch-size",
        "8",
        "--steps",
        "1",
        "--rounds",
        "1",
    )
    names = [
        f"{network}, {state}, GOMP_SPINCOUNT={spins} ({what})"
        for network in ("residual", "light")
        for state in ("quiet", "busy")
        for spins, what in SPIN_COUNTS.items()
    ]
    assert list(figures) == names
    for network in ("residual", "light"):
        own = figures[f"{network}, busy, GOMP_SPINCOUNT=300000 (OpenMP's own)"]
        ours = figures[f"{network}, busy, GOMP_SPINCOUNT=20000 (ours)"]
        assert own[-1] == 100
        assert ours[-1] == pytest.approx(100 * ours[0] / own[0], rel=0.05)


def test_winograd_saves_two_fifths_of_the_arithmetic() -> None:
    trainer = make_trainer(*random_images(16), 16, CPU)
    nominal, real = operations(trainer, 8), operations(trainer, 16)
    # Three times the forward pass, but for the images' own gradient, which nobody needs.
    assert nominal == pytest.approx(2 * (3 * 70.3e6 - 14 * 14 * 32 * 36), rel=0.001)
    assert 0.55 < real / nominal < 0.65


def test_the_obvious_way_reads_the_images_that_were_written(tmp_path: Path) -> None:
    images, labels = random_images(20)
    write_emnist(tmp_path, images, labels)
    dataset = EMNIST(tmp_path, "balanced", train=True)
    assert torch.equal(dataset.data, images[:, 0])
    assert torch.equal(dataset.targets, labels)


def test_prediction_sets_a_network_against_its_own_arithmetic(tmp_path: Path) -> None:
    path = save_small_checkpoint(tmp_path / "small.pth")
    figures = table("benchmarks/prediction.py", str(path), "--images", "32", "--rounds", "1")
    multiply_adds = ModelAnalyzer(path, "cpu").count_multiply_adds()
    ideal = 1e3 * 2 * 128 * multiply_adds / (1e9 * figures["matrix product meanwhile, GFLOP/s"][0])  # ms
    times = figures["small.pth: 128 at a time, ms"][0] / ideal
    assert figures["small.pth: 128, times the products' cost"][0] == pytest.approx(times, rel=0.05)
    assert figures["small.pth: end to end, pictures/s"][0] > 0


def test_prediction_compares_ways_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prediction, "SECONDS_OF_CALLS", 0.01)
    prediction.compare_waiting(str(save_small_onnx(tmp_path / "small.onnx")), competitors=1, rounds=1)
    figures = rows_of(capsys.readouterr().out)
    assert list(figures) == [
        f"small.onnx: {batch}, {state}, {way}"
        for batch in (1, 128)
        for state in ("quiet", "busy")
        for way in prediction.WAITING.values()
    ]
    assert all(rate > 0 for rates in figures.values() for rate in rates)


def test_prediction_compares_the_forms_that_a_network_can_have(tmp_path: Path) -> None:
    models = [str(save_small_checkpoint(tmp_path / "small.pth")), str(save_small_onnx(tmp_path / "small.onnx"))]
    figures = table("benchmarks/prediction.py", "--forms", *models, "--rounds", "2")
    forms = ("float32, channels last", "float32, channels first", "bfloat16", "bfloat16 by autocast", "small.onnx")
    assert list(figures) == [f"{form}: {batch} at a time, CPU ms" for batch in (1, 128) for form in forms]
    for form in forms[:-1]:
        assert 0 < figures[f"{form}: 1 at a time, CPU ms"][0] < figures[f"{form}: 128 at a time, CPU ms"][0]


def test_time_to_accuracy_stops_the_clock_at_the_target(demo_files: Path) -> None:
    figures = table(
        "benchmarks/time_to_accuracy.py", "--data-dir", str(demo_files), "--max-train-images", "64",
        "--batch-size", "32", "--epochs", "2", "--seeds", "2", "--targets", "0", "99.9", "--device", "cpu",
    )  # fmt: skip
    runs, mean, *_ = figures["seconds to 0 %"]
    assert runs == 2
    epochs, epoch, *_ = figures["seconds an epoch"]
    assert epochs == 4
    assert 0 < mean < 2 * epoch
    assert figures["seconds to 99.9 %"] == [0]
    assert 0 <= figures["accuracy at the end, %"][1] < 99.9


def test_peers_train_for_the_same_time() -> None:
    result = run_python(
        "benchmarks/peers.py", "--dataset", "demo", "--max-train-images", "480", "--seconds", "0.4",
        "--batch-size", "16", timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("432 training and 48 validation images; 0.4 processor seconds on one thread")
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if "%" in line]
    assert {name: int(parameters.replace(",", "")) for name, parameters, *_ in rows} == {
        "residual": 3_409_135,
        "light": 172_239,
        "vgg5-spinal": 3_648_751,
        "resnet18": 11_194_351,
        "wavemix-patches": 2_386_063,
        "keras-convnet": 94_063,
        "wavemix": 2_361_487,
    }
    for _, _, multiply_adds, rate, seen, accuracy in rows:
        assert float(multiply_adds.split()[0].replace(",", "")) > 1
        assert int(seen.replace(",", "")) == pytest.approx(0.4 * int(rate.replace(",", "")), abs=1)
        assert 0 <= float(accuracy.split()[0]) <= 100


def test_wavelets_of_a_block_are_an_orthogonal_change_of_basis() -> None:
    block = peers.Wavelets(4, dropout=0)
    x = torch.randn(2, 4, 6, 6)
    bands: list[Tensor] = []
    block.mixing.register_forward_pre_hook(lambda _, inputs: bands.append(inputs[0]))
    block(x)
    reduced = block.reduction(x)
    assert bands[0].shape == (2, 4, 3, 3)
    assert torch.allclose(bands[0].square().sum(), reduced.square().sum())
    assert torch.allclose(bands[0][:, 0], 2 * nn.functional.avg_pool2d(reduced, 2)[:, 0], atol=1e-6)


def test_large_dataset_holds_only_a_copy_in_memory(tmp_path: Path) -> None:
    figures = table(
        "benchmarks/large_dataset.py", "--glyphs", "50000", "--batch-size", "500", "--steps", "1", "--rounds", "1",
        "--device", "cpu",
    )  # fmt: skip
    before, _ = figures["index let go, pixels mapped, model made"]
    after, mapped = figures["after an epoch of batches"]
    in_memory, _ = figures["with a copy of the pixels in memory"]
    pixels = 50_000 * 784 / 1e6
    assert after - before < pixels / 2 < in_memory - after
    assert mapped > pixels
    assert figures["training, mapped to in memory, %"][0] > 0


def test_the_page_of_a_gpu_is_whole() -> None:
    result = run_python("benchmarks/gpu.py", "--smoke", timeout=600)
    assert result.returncode == 0, result.stderr
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    products = {name: float(figure.split()[0]) * 1e12 for name, figure, *_ in rows if name.startswith("matrix product")}
    assert products.keys() == {"matrix product in float32", "matrix product in bfloat16"}
    training = {row[1]: row for row in rows if row[0] == "4" and "%" in row[3]}
    assert training.keys() == {"eager", "CUDA graph", "compiled", "compiled, CUDA graph"}
    for _, _, rate, share, *_ in training.values():
        expected = 100 * int(rate.split()[0]) * 0.4216e9 / products["matrix product in float32"]
        assert float(share.rstrip("%")) == pytest.approx(expected, rel=0.1, abs=0.1)
    assert [row[0] for row in rows if row[0].startswith("16 images")] == [
        f"16 images, batch 8, {how}" for how in ("eager", "CUDA graph")
    ]
    predicted = [row for row in rows if row[1] in ("float32", "bfloat16", "ONNX on the CPU")]
    assert len(predicted) == 6
    for batch, _, took, rate in predicted:
        assert int(rate.replace(",", "")) == pytest.approx(1e3 * int(batch) / float(took.split()[0]), rel=0.01, abs=1)
    [[_, runs, seconds, *_]] = [row for row in rows if row[0] == "seconds to 0 %"]
    assert runs == "1"
    assert float(seconds) > 0


def test_reading_shares_out_the_time_of_a_page_a_field_and_a_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reading, "PAGE", (4000, 360))
    monkeypatch.setattr(reading, "LINES", 2)
    glyphs, _ = render_demo("test")
    write_emnist(tmp_path, glyphs[:94], torch.arange(94) % 47)
    reading.report(save_small_onnx(tmp_path / "small.onnx"), reading.make_pictures(tmp_path), rounds=1)
    figures = rows_of(capsys.readouterr().out)
    for name in ("page", "field", "form"):
        parts = sum(figures[f"{name}: {part}, ms"][0] for part in ("finding the ink", "network", "the rest"))
        assert figures[f"{name}: read, ms"][0] == pytest.approx(parts, rel=0.02)
        share = figures[f"{name}: read, ms"][0] / figures[f"{name}: network in one batch, ms"][0]
        assert figures[f"{name}: read, times that"][0] == pytest.approx(share, rel=0.02)
        assert figures[f"{name}: candidates"][0] > 0
    assert figures["form: read, ms a field"][0] == pytest.approx(figures["form: read, ms"][0] / 20, rel=0.02)
    assert figures["form: candidates"][0] > 100  # of 160 characters: the fields were found where they are
    assert figures["most memory, MB"][0] > figures["of it after the first round, MB"][0] >= 0


def test_service_sets_requests_beside_a_folder_of_files(tmp_path: Path) -> None:
    path = save_small_onnx(tmp_path / "small.onnx")
    figures = table(
        "benchmarks/service.py", str(path), "--images", "70", "--rounds", "1", "--clients", "4", "--side", "40"
    )
    batch = figures["--batch: pictures/s"][0]
    for name in ("one a request", "forms of 64"):
        assert figures[f"{name}: pictures/s"][0] > 0
        assert 0 < figures[f"{name}: CPU ms of the clients"][0] < figures[f"{name}: CPU ms a picture"][0]
        share = 100 * figures[f"{name}: pictures/s"][0] / batch
        assert figures[f"{name}: rate, % of --batch"][0] == pytest.approx(share, rel=0.02, abs=0.5)
        cost = 100 * figures["--batch: CPU ms a picture"][0] / figures[f"{name}: CPU ms a picture"][0]
        assert figures[f"{name}: rate by CPU time, % of --batch"][0] == pytest.approx(cost, rel=0.02, abs=0.5)
    assert 0 < figures["at half of the load: p50, ms"][0] <= figures["at half of the load: p99, ms"][0]


@pytest.mark.skipif(not page.BROWSER or not page.DRIVER, reason="no browser, as in test_page.py")
def test_page_times_each_kind_of_drawing(tmp_path: Path) -> None:
    figures = table("benchmarks/page.py", str(save_small_onnx(tmp_path / "small.onnx")), "--drawings", "1")
    assert len(figures) == 2 * len(page.DRAWINGS)
    for name in page.DRAWINGS:
        assert figures[f"{name}: from stroke to answer, ms"][0] > figures[f"{name}: of these, its last request"][0] > 0


def test_calibration_tells_evidence_from_none() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (400,), generator=generator)
    sure = 4.0 * torch.eye(3)[labels] + torch.randn(400, 3, generator=generator)  # nearly all right
    epochs = torch.stack([torch.randn(400, 3, generator=generator), sure]).double()
    assert calibration.best_epoch(epochs, labels) == 1
    first, ours, last = calibration.judge_epochs(epochs, labels, 10, 20, seed=1)
    assert 0.9 < first == ours == last
    found = calibration.judge_draws(epochs, labels, 10, 20, seed=1)
    rows = {way: torch.stack(each).mean(0).tolist() for way, each in found.items()}
    assert rows["none"][0] == 1
    assert rows["likelihood"][0] < 0.3 < rows["ours"][0] < 1.2  # the bound, or nearly: nothing was wrong
    assert rows["ours"][4] == 0  # never worse on its own part
    assert rows["ours"][3] < rows["likelihood"][3] + 0.05
    assert all(0.9 < right <= 1 for _, _, right, *_ in rows.values())


def test_joining_counts_its_rows() -> None:
    figures = table("benchmarks/joining.py", "--rows", "500")
    assert 200 < figures["output, bytes a row"][0] < 400
    assert 50 < figures["held of a finished row, bytes"][0] < 1000
    assert figures["joined, µs of a core a row"][0] > 0


def test_compiling_compares_both_networks() -> None:
    result = run_python(
        "benchmarks/compiling.py", "--batch-sizes", "4", "--steps", "1", "--device", "cpu", "--backend", "eager",
        timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if "%" in line]
    assert [row[:2] for row in rows] == [["light", "4"], ["residual", "4"]]
    for _, _, plain, compiled, gain, *_ in rows:
        rates = [int(each.split()[0].replace(",", "")) for each in (plain, compiled)]
        assert float(gain.rstrip("%")) == pytest.approx(100 * (rates[1] / rates[0] - 1), abs=0.5 + 300 / rates[0])


def test_startup_reaches_the_first_training_step(demo_files: Path) -> None:
    figures = table("benchmarks/startup.py", "--dataset", "emnist", "--data-dir", str(demo_files), "--rounds", "1")
    assert figures["to the end of the first training step, s"][0] > figures["inference.py --help, s beyond it"][0] > 0


class Always(nn.Module):
    """Answers the third of four classes."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([0.0, 0.0, 2.0, 0.0]).expand(len(images), 4)


def test_what_is_not_read_is_drawn_with_its_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("photos/54_6", "photos/71_G", "photos/74_J", "drawings/76_L"):
        (tmp_path / place).mkdir(parents=True)
        draw_glyph().save(tmp_path / place / "a4.png")
    Image.new("L", (80, 80), 255).save(tmp_path / "photos/74_J/a4.png")  # nothing to see
    pictures.accuracy(Always(), ["6", "J", "G", "L"], tmp_path, "uniform", tmp_path / "sheets")
    printed = capsys.readouterr().out
    assert "1 look-alike, 1 no glyph" in printed
    assert "calibration error 0.378 over all 3 answers" in printed  # one right, all of them 71.1 % sure
    rows = [line.split("\t")[1:] for line in (tmp_path / "sheets/photos.tsv").read_text().splitlines()[1:]]
    assert rows == [["6", "G", "0.711", "look-alike"], ["J", "", "0.000", "no glyph"]]
    assert (tmp_path / "sheets/drawings.tsv").read_text().endswith("\tL\tG\t0.711\tshape\n")
    for name in ("photos", "drawings"):
        sheet = np.asarray(Image.open(tmp_path / f"sheets/{name}.png").convert("L"))
        assert sheet.shape[1] > 900
        assert np.ptp(sheet) == 255


def test_other_methods_learn_small_sets_too() -> None:
    pytest.importorskip("skimage")
    parts = torch.arange(50), torch.arange(50, 60)
    cell = small_data.Cell(*make_images(60, 1), *parts, *make_images(30, 2), len(CLASSES))
    for method in (small_data.gradients_and_svm, small_data.plain_cnn(seconds=3)):
        assert small_data.accuracy(method(cell, 0, ""), cell) > 60


def test_symbols_are_drawn_in_an_ink_that_stands_out_and_tables_are_divided(tmp_path: Path) -> None:
    rng = random.Random(0)
    drawing = Image.new("RGBA", (60, 40), (0, 0, 0, 255))
    for _ in range(20):
        picture = np.asarray(symbols.make_symbol(drawing, rng, one_ink=True), np.float32)
        assert symbols.SIDES[0] <= picture.shape[1] <= symbols.SIDES[1]
        assert np.ptp(picture @ np.array([0.3, 0.59, 0.11], np.float32)) > symbols.LEAST_CONTRAST / 2
    source = tmp_path / "mahjong"
    source.mkdir()
    (source / "labels.csv").write_text("file,label\n" + "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(10)))
    for number in range(10):
        (source / f"{number}.png").touch()
    symbols.divide_mahjong(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "train" / "a").iterdir()) == ["2.png", "4.png", "6.png"]
    assert sorted(path.name for path in (tmp_path / "out" / "test" / "b").iterdir()) == ["1.png", "9.png"]
