"""What a GPU does with this project, beside its own limits: one call, one page of Markdown on stdout.

    python benchmarks/gpu.py --data-dir DIR > figures.md

1. The limits: the best matrix product in float32 and bfloat16, and the best copy within the device's memory.
2. Training the default model on random images, by batch size, in turns so that a card that slows down slows all of it:
   as the training script does it (eager); the whole step as one CUDA graph; compiled by torch.compile; both.  A graph
   repeats the learning rate that it was recorded with, so training by it would need more than this script does.
3. An epoch of 112,800 images, the size of EMNIST-Balanced's training part.
4. Seconds to accuracies on the test files of EMNIST-Balanced, as benchmarks/time_to_accuracy.py, where DIR is given.
5. Prediction: one image (latency) and batches (throughput), from bytes in host memory to probabilities there, in
   float32, in bfloat16, and of the ONNX export where onnxruntime has CUDA, else on the CPU.

`--smoke` runs all of it on tiny sizes on the CPU: for tests, its figures say nothing.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import glyphs.core.timing
from benchmarks.throughput import (
    CLASSES,
    WARM_UP_STEPS,
    best_copy,
    best_matrix_product,
    make_trainer,
    operations,
    random_images,
    wait_for,
)
from benchmarks.time_to_accuracy import load, race, warm_up
from glyphs.core.config import Config
from glyphs.core.devices import (
    autocast_dtype,
    choose_device,
    describe_device,
    limit_threads,
    use_deterministic_algorithms,
)
from glyphs.core.process import run, say
from glyphs.core.protocols import fetch_steps
from glyphs.core.timing import time_networks
from glyphs.models.checkpoint import load_model, save_checkpoint
from glyphs.models.convolutions import WINOGRAD_FROM
from glyphs.models.export import export_model
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.models.runtime import Network, load_onnx, load_pth
from glyphs.training.trainer import Trainer

Step = Callable[[Tensor, Tensor], object]


class Sizes(NamedTuple):
    """How much is measured."""

    matrix: int | None = None  # as throughput.py has it for the device
    copy: int | None = None
    batches: tuple[int, ...] = (128, 512, 2048)
    steps: int = 50
    rounds: int = 5
    epoch: int = 112_800
    epoch_batch: int = 512
    seeds: int = 10
    epochs: int = 8
    targets: tuple[float, ...] = (88, 89, 90)
    train_images: int | None = None
    predicted: tuple[int, ...] = (1, 128, 2048)
    compiler: str = "inductor"
    residual: bool = True  # of the model that predicts


SMOKE = Sizes(
    matrix=64, copy=2**16, batches=(4,), steps=1, rounds=1, epoch=16, epoch_batch=8, seeds=1, epochs=1, targets=(0,),
    train_images=64, predicted=(1, 4), compiler="eager", residual=False,
)  # fmt: skip


def table(head: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    for cells in [head, ["---"] * len(head), *rows]:
        print(f"| {' | '.join(cells)} |")
    print(flush=True)


def spread(values: list[float], form: str = ",.0f") -> str:
    """The median, and the lowest and the highest."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def limits(device: torch.device, sizes: Sizes) -> dict[torch.dtype, float]:
    """Print what the device can do at best; returns operations a second of a matrix product, by dtype."""
    dtypes = dict.fromkeys((torch.float32, torch.bfloat16, autocast_dtype(device)))
    products = {dtype: best_matrix_product(device, dtype, sizes.matrix) for dtype in dtypes}
    rows = [[f"matrix product in {str(dtype)[6:]}", f"{each / 1e12:.3g} TFLOP/s"] for dtype, each in products.items()]
    table(["limit", device.type], [*rows, ["memory copy", f"{best_copy(device, sizes.copy) / 1e9:,.0f} GB/s"]])
    return products


def record(trainer: Trainer, images: Tensor, labels: Tensor) -> Step:
    """The trainer's step on batches of this size as one CUDA graph; on the CPU, which has none, as it is."""
    images, labels = images.clone(), labels.clone()

    def step() -> object:
        return trainer.train_step(images, labels)

    again: Callable[[], object] = step
    if trainer.device.type == "cuda":
        for group in trainer.optimizer.param_groups:
            group["capturable"] = True
        # Its first steps, in which kernels are chosen, must not be recorded, and must not be on the default stream.
        stream = torch.cuda.Stream(trainer.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(trainer.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                step()
        torch.cuda.current_stream(trainer.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        again = graph.replay

    def replay(new_images: Tensor, new_labels: Tensor) -> None:
        images.copy_(new_images)
        labels.copy_(new_labels)
        again()

    return replay


def seconds_of_steps(trainer: Trainer, step: Step, epoch: int, skipped: int = WARM_UP_STEPS) -> float:
    """Seconds of an epoch's steps, gathered and augmented batches included, without the first ones."""
    started = wait_for(trainer.device)
    for number, batch in fetch_steps(trainer.train_loader, 0, epoch):
        if number == skipped:
            started = wait_for(trainer.device)
        step(*batch)
    return wait_for(trainer.device) - started


def training(device: torch.device, sizes: Sizes, products: dict[torch.dtype, float]) -> None:
    rows = []
    for batch_size in sizes.batches:
        say(f"training, batch {batch_size}")
        images, labels = (tensor.to(device) for tensor in random_images(batch_size * (sizes.steps + WARM_UP_STEPS)))
        trainer = make_trainer(images, labels, batch_size, device)
        work = operations(trainer, WINOGRAD_FROM // 2)
        batch = next(iter(trainer.train_loader))
        # torch.compile changes the model for good, so that a twin is compiled.
        twin = make_trainer(images, labels, batch_size, device)
        started = wait_for(device)
        twin.model.compile(backend=sizes.compiler)
        for _ in range(2):
            twin.train_step(*batch)
        compilation = wait_for(device) - started
        ways: dict[str, tuple[Trainer, Step]] = {
            "eager": (trainer, trainer.train_step),
            "CUDA graph": (trainer, record(trainer, *batch)),
            "compiled": (twin, twin.train_step),
            "compiled, CUDA graph": (twin, record(twin, *batch)),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(sizes.rounds):
            for name, (its, step) in ways.items():
                rates[name].append(batch_size * sizes.steps / seconds_of_steps(its, step, number))
        for name, values in rates.items():
            share = statistics.median(values) * work / products[trainer.dtype]
            took = f"{compilation:.0f} s" if name.startswith("compiled") else ""
            rows.append([str(batch_size), name, spread(values), f"{share:.1%}", took])
    print(f"Training in {str(trainer.dtype)[6:]}, counted as direct convolutions:\n")
    table(["batch", "how", "images/s", "of the matrix product", "compilation"], rows)


def epoch_of_emnist(device: torch.device, sizes: Sizes) -> None:
    say("an epoch")
    images, labels = (tensor.to(device) for tensor in random_images(sizes.epoch))
    trainer = make_trainer(images, labels, sizes.epoch_batch, device)
    batch = next(iter(trainer.train_loader))
    rows = []
    for name, step in (("eager", trainer.train_step), ("CUDA graph", record(trainer, *batch))):
        # The last batch is smaller than the one that the graph was recorded with: it is left to the eager step.
        def whole(images: Tensor, labels: Tensor, step: Step = step) -> None:
            (step if len(labels) == len(batch[1]) else trainer.train_step)(images, labels)

        seconds = [seconds_of_steps(trainer, whole, number, 0) for number in range(1 + sizes.rounds)]
        rows.append([f"{sizes.epoch:,} images, batch {sizes.epoch_batch}, {name}", spread(seconds[1:], ".3f")])
    table(["an epoch", "seconds"], rows)


def time_to_accuracy(device: torch.device, sizes: Sizes, data_dir: str | None, dataset: str) -> None:
    if data_dir is None and dataset == "emnist":
        print("Time to accuracy: not measured, no --data-dir was given.\n")
        return
    say("time to accuracy")
    config = Config(
        dataset=dataset,
        data_dir=data_dir or Config.data_dir,
        batch_size=512 if sizes.train_images is None else 16,
        learning_rate=0.003,
        num_epochs=sizes.epochs,
        device=device.type,
        output_dir=tempfile.gettempdir(),
    )
    train, test = load(config, device, sizes.train_images)
    warm_up(config, train, test, device)
    reached, accuracies, epochs = race(config, train, test, device, sizes.seeds, sizes.targets)
    results = {f"seconds to {target:g} %": values for target, values in reached.items()}
    results |= {"accuracy at the end, %": accuracies, "seconds an epoch": epochs}
    rows = []
    for name, values in results.items():
        each = [f"{statistics.mean(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"] if values else ["", ""]
        deviation = f"{statistics.stdev(values):.2f}" if values[1:] else ""
        rows.append([name, str(len(values)), each[0], deviation, each[1]])
    print(f"{config.num_epochs} epochs of {len(train.chosen):,} images, batch {config.batch_size}:\n")
    table(["", "runs", "mean", "deviation", "lowest to highest"], rows)


def in_bfloat16(model: nn.Module, device: torch.device) -> Network:
    """A network whose weights and arithmetic are in bfloat16."""
    classifier = model.to(device, torch.bfloat16)

    @torch.inference_mode()
    def network(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: Tensor = classifier(torch.from_numpy(images).to(device))
        probabilities: NDArray[np.float32] = logits.float().softmax(dim=1).cpu().numpy()
        return probabilities

    return network


def prediction(device: torch.device, sizes: Sizes) -> None:
    say("prediction")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "model.pth")
        names = [str(number) for number in range(CLASSES)]
        config = Config(use_residual=sizes.residual)
        torch.manual_seed(0)
        save_checkpoint(path, EnhancedGlyphCNN(CLASSES, use_residual=sizes.residual), config, names, metrics={})
        onnx = export_model(path, "onnx", path.with_suffix(".onnx")).path
        cuda = device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        networks = {
            "float32": load_pth(path, device.type)[0],
            "bfloat16": in_bfloat16(copy.deepcopy(load_model(path)[0]), device),
            f"ONNX on the {'GPU' if cuda else 'CPU'}": load_onnx(onnx, "cuda" if cuda else "cpu")[0],
        }
    rows = []
    for batch in sizes.predicted:
        for name, timing in zip(networks, time_networks(list(networks.values()), batch), strict=True):
            took = f"{1e3 * timing.median:.3f} (interquartile range {1e3 * timing.iqr:.3f})"
            rows.append([str(batch), name, took, f"{timing.images_per_second:,.0f}"])
    table(["images at once", "prediction", "ms", "images/s"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="holds EMNIST/raw, for the time to accuracy (default: it is left out)")
    parser.add_argument("--smoke", action="store_true", help="on the CPU, as small as it goes, on the demo set")
    arguments = parser.parse_args()

    limit_threads()
    device = choose_device("cpu" if arguments.smoke else "cuda")
    use_deterministic_algorithms(False)  # as the training script does: cuDNN tries which of its kernels is fastest
    sizes = SMOKE if arguments.smoke else Sizes()
    if arguments.smoke:
        glyphs.core.timing.ROUNDS, glyphs.core.timing.ROUND_SECONDS = 1, 0.001
    started = time.perf_counter()
    cuda = f", CUDA {torch.version.cuda}" if device.type == "cuda" else ""
    print(f"{describe_device(device)}, torch {torch.__version__}{cuda}, median (lowest to highest)\n")
    products = limits(device, sizes)
    training(device, sizes, products)
    epoch_of_emnist(device, sizes)
    prediction(device, sizes)
    time_to_accuracy(device, sizes, arguments.data_dir, "demo" if arguments.smoke else "emnist")
    say(f"done in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(run(main))
