"""Train the finder: a small network that tells where the characters of a picture are, and which pixels are their ink.

    python recipes/finder.py --data-dir DIR --output DIR       takes up a run that was stopped; the same command again

It is a U-Net (arXiv 1505.04597) at half the picture's resolution, trained on made pages (recipes/made_pages.py), whose
answers are the heat map of the characters' centres (arXiv 1904.07850), their sizes, for each pixel of ink the way to
its character's centre, print or writing, joined script, and the ink itself at the picture's own resolution.
Step number i sees pages that are a function of the seed and i alone.  Writes finder.pth (to go on from) and
finder.onnx.  Needs opencv-python-headless, scikit-image and wordfreq beside the project's own packages.
"""

import argparse
import collections
import contextlib
import itertools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from glyphs.pictures.finder import STRIDE, WAY_UNIT, Channel
from recipes.made_pages import SIDE, Pages, Sample

WIDTHS = (24, 48, 80, 112, 128)
HEAT, HEIGHT, WIDTH, DOWN, RIGHT, PRINTED, JOINED, RULES, INK = Channel
CHANNELS = INK + STRIDE * STRIDE
SPREAD = 0.16  # standard deviation of a centre's heat over the character's size
SAVE_EVERY = 250  # steps
AHEAD = 64  # pages that are made before they are asked for
FIRST_STEPS = 40  # steps' worth of pages that are made before the first step


def convolution(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)
    )


class Finder(nn.Module):
    """From pictures, float [N, 3, H, W] from 0 to 1, sides multiples of 32, to float [N, CHANNELS, H/2, W/2]."""

    def __init__(self) -> None:
        super().__init__()
        w = WIDTHS
        self.stem = nn.Sequential(convolution(3 * STRIDE * STRIDE, w[0]), convolution(w[0], w[0]))
        pairs = list(itertools.pairwise(w))
        self.down = nn.ModuleList(nn.Sequential(convolution(a, b, 2), convolution(b, b)) for a, b in pairs)
        self.shrink = nn.ModuleList(convolution(b, a, kernel=1) for a, b in pairs)
        self.up = nn.ModuleList(convolution(2 * a, a) for a, _ in pairs)
        self.last = convolution(w[0], w[0])
        self.head = nn.Conv2d(w[0], CHANNELS, 1)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.head.bias[HEAT] = -3.0  # type: ignore[index]
            self.head.bias[[HEIGHT, WIDTH]] = 3.4  # type: ignore[index]
            self.head.bias[RULES:] = -2.0  # type: ignore[index]

    def forward(self, pictures: Tensor) -> Tensor:
        mean = pictures.mean((1, 2, 3), keepdim=True)
        deviation = ((pictures - mean) ** 2).mean((1, 2, 3), keepdim=True).sqrt()
        values = F.pixel_unshuffle((pictures - mean) / (deviation + 0.05), STRIDE)
        values = self.stem(values)
        levels = [values]
        for down in self.down:
            levels.append(down(levels[-1]))
        values = levels.pop()
        for number in range(len(self.up) - 1, -1, -1):
            values = F.interpolate(self.shrink[number](values), scale_factor=2.0, mode="nearest")
            values = self.up[number](torch.cat([values, levels[number]], 1))
        answers: Tensor = self.head(self.last(values))
        return answers


# ---- Targets ----


def targets(sample: Sample) -> np.ndarray[Any, np.dtype[np.float16]]:
    """What the network is to answer, float16 [CHANNELS + 3, H/2, W/2].

    The three maps more are the weights of sizes and of ways, and 1 where ink is a character's or joined script's.
    """
    side = SIDE // STRIDE
    maps = np.zeros((CHANNELS + 3, side, side), np.float32)
    owner = sample.owner[::STRIDE, ::STRIDE]
    y, x = np.mgrid[:side, :side].astype(np.float32)
    for number, (top, left, bottom, right) in enumerate(sample.boxes.tolist(), start=1):
        high, wide = (bottom - top) / STRIDE, (right - left) / STRIDE
        middle_y, middle_x = (top + bottom) / 2 / STRIDE - 0.5, (left + right) / 2 / STRIDE - 0.5
        size = max(high, wide)
        sigma_y, sigma_x = max(SPREAD * max(high, 0.4 * size), 0.8), max(SPREAD * max(wide, 0.4 * size), 0.8)
        reach = int(3 * max(sigma_y, sigma_x)) + 1
        rows = slice(max(0, int(middle_y) - reach), int(middle_y) + reach + 2)
        columns = slice(max(0, int(middle_x) - reach), int(middle_x) + reach + 2)
        heat = np.exp(
            -((y[rows, columns] - middle_y) ** 2) / (2 * sigma_y**2)
            - (x[rows, columns] - middle_x) ** 2 / (2 * sigma_x**2)
        )
        near = (heat > 0.3) & (heat > maps[HEAT, rows, columns])
        maps[HEAT, rows, columns] = np.maximum(maps[HEAT, rows, columns], heat)
        maps[HEIGHT, rows, columns][near] = np.log(high * STRIDE)
        maps[WIDTH, rows, columns][near] = np.log(wide * STRIDE)
        maps[CHANNELS, rows, columns][near] = 1
        own = owner == number
        maps[DOWN][own] = (middle_y - y[own]) * STRIDE / WAY_UNIT
        maps[RIGHT][own] = (middle_x - x[own]) * STRIDE / WAY_UNIT
        maps[CHANNELS + 1][own] = 16 / max(size * STRIDE, 8)
        maps[PRINTED][own] = sample.printed[number - 1]
        maps[CHANNELS + 2][own] = 1
    script = sample.joined[::STRIDE, ::STRIDE] > 0
    maps[JOINED][script] = 1
    maps[CHANNELS + 2][script] = 1
    maps[RULES] = sample.rules.reshape(side, STRIDE, side, STRIDE).any((1, 3))
    ink = sample.ink.astype(np.float32) / 255
    maps[INK:CHANNELS] = ink.reshape(side, STRIDE, side, STRIDE).transpose(1, 3, 0, 2).reshape(-1, side, side)
    return maps.astype(np.float16)


def losses(answers: Tensor, wanted: Tensor) -> Tensor:
    """The parts of the loss, float [5]: heat, sizes, ways, kinds, ink and rules."""
    heat = wanted[:, HEAT]
    told = answers[:, HEAT].clamp(-12, 12)
    off = (heat - told.sigmoid()).abs()
    one = (F.binary_cross_entropy_with_logits(told, heat, reduction="none") * (2 * off + 0.02)).mean() * 20
    near, own, inked = wanted[:, CHANNELS], wanted[:, CHANNELS + 1], wanted[:, CHANNELS + 2]
    sizes = (answers[:, [HEIGHT, WIDTH]] - wanted[:, [HEIGHT, WIDTH]]).abs().sum(1)
    two = (sizes * near).sum() / near.sum().clamp(min=1) * 0.5
    ways = (answers[:, [DOWN, RIGHT]] - wanted[:, [DOWN, RIGHT]]).abs().sum(1)
    three = (ways * own).sum() / (own > 0).sum().clamp(min=1)
    kinds = F.binary_cross_entropy_with_logits(
        answers[:, [PRINTED, JOINED]], wanted[:, [PRINTED, JOINED]], reduction="none"
    ).sum(1)
    four = (kinds * inked).sum() / inked.sum().clamp(min=1) * 0.15
    ink, logits = wanted[:, INK:CHANNELS], answers[:, INK:CHANNELS]
    five = F.binary_cross_entropy_with_logits(logits, ink) * 2
    five = five + F.binary_cross_entropy_with_logits(answers[:, RULES], wanted[:, RULES])
    share = logits.sigmoid()
    overlap = (2 * (share * ink).sum() + 1) / ((share + ink).sum() + 1)
    return torch.stack([one, two, three, four, five + (1 - overlap) * 0.3])


# ---- Training ----

_pages: Pages


def _start(folder: Path, seed: int) -> None:
    global _pages
    torch.set_num_threads(1)
    os.nice(1)
    _pages = Pages(folder, seed)


def _make(number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    sample = _pages.page(number)
    return sample.image, targets(sample)


def batches(
    folder: Path, seed: int, first: int, size: int, fresh: int, pool_size: int, workers: int
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Batches from step `first` on, each drawn from the last `pool_size` pages that were made, `fresh` of them new."""
    beginning = min(FIRST_STEPS * fresh, pool_size)  # pages before the first step
    start = max(0, first * fresh - pool_size)
    at_hand: collections.deque[Any] = collections.deque(maxlen=pool_size)
    # The processes would take all numbers at once, and keep what nobody took yet.
    ahead, done = threading.Semaphore(AHEAD), threading.Event()

    def numbers() -> Iterator[int]:
        for number in itertools.count(start):
            ahead.acquire()
            if done.is_set():
                return
            yield number

    def take() -> None:
        at_hand.append(next(made))
        ahead.release()

    with multiprocessing.get_context("spawn").Pool(workers, _start, (folder, seed)) as pool:
        made = pool.imap(_make, numbers())
        try:
            while start + len(at_hand) < max(first * fresh, beginning):
                take()
            for step in itertools.count(first):
                if step * fresh >= beginning:
                    for _ in range(fresh):
                        take()
                r = np.random.default_rng((seed, 1, step))
                chosen = [at_hand[int(i)] for i in r.choice(len(at_hand), size, replace=False)]
                pictures = torch.from_numpy(np.stack([image for image, _ in chosen])).permute(0, 3, 1, 2).float() / 255
                yield pictures, torch.from_numpy(np.stack([wanted for _, wanted in chosen])).float()
        finally:
            done.set()
            ahead.release()


def export(network: Finder, path: Path) -> None:
    """Write the ONNX file, whose picture may have any sides that are multiples of 32."""
    network.eval()
    torch.onnx.export(
        network, (torch.rand(1, 3, 64, 96),), str(path), input_names=["pictures"], output_names=["maps"],
        dynamic_axes={"pictures": {0: "n", 2: "h", 3: "w"}, "maps": {0: "n", 2: "h2", 3: "w2"}},
        dynamo=False, opset_version=17,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--fresh", type=int, default=4, help="pages a step that are new")
    parser.add_argument("--pool", type=int, default=768, help="pages at hand, from which each batch is drawn")
    parser.add_argument("--until", type=int, metavar="STEP", help="stop there; the same command without it goes on")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start-from", type=Path, metavar="FILE", help="weights to begin with")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    network = Finder().to(memory_format=torch.channels_last)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters", flush=True)
    optimizer = torch.optim.AdamW(network.parameters(), arguments.rate, weight_decay=0.02)
    first = 0
    saved = arguments.output / "finder.pth"
    if arguments.start_from:
        network.load_state_dict(torch.load(arguments.start_from, weights_only=True)["mean"])
    mean = {name: value.clone() for name, value in network.state_dict().items()}
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        mean, first = state["mean"], state["step"]
    begin, running = time.time(), None

    def save(step: int) -> None:
        part = saved.with_suffix(".part")
        torch.save(
            {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "mean": mean, "step": step}, part
        )
        part.replace(saved)
        final = Finder()
        final.load_state_dict(mean)
        export(final, arguments.output / "finder.onnx")

    last = min(arguments.steps, arguments.until or arguments.steps)
    sizes = arguments.batch_size, arguments.fresh, arguments.pool, arguments.workers
    with contextlib.closing(batches(arguments.data_dir, arguments.seed, first, *sizes)) as stream:
        for step, (pictures, wanted) in zip(range(first, last), stream, strict=False):
            if step == first:
                begin = time.time()
            share = step / arguments.steps
            for group in optimizer.param_groups:
                group["lr"] = float(
                    arguments.rate * min(1, (step + 1) / 100) * (0.5 + 0.5 * np.cos(np.pi * share)) + 1e-5
                )
            network.train()
            with torch.autocast("cpu", torch.bfloat16):
                answers = network(pictures.contiguous(memory_format=torch.channels_last))
            parts = losses(answers.float(), wanted)
            optimizer.zero_grad()
            parts.sum().backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            keep = min(0.998, (step + 1) / (step + 20))
            with torch.no_grad():
                for name, value in network.state_dict().items():
                    if value.dtype.is_floating_point:
                        mean[name].lerp_(value, 1 - keep)
                    else:
                        mean[name].copy_(value)
            running = parts.detach() if running is None else 0.98 * running + 0.02 * parts.detach()
            if (step + 1) % 50 == 0:
                done = step + 1 - first
                rate = done * arguments.batch_size / (time.time() - begin)
                left = (arguments.steps - step - 1) * (time.time() - begin) / done / 60
                named = " ".join(f"{part:.4f}" for part in running.tolist())
                print(
                    f"step {step + 1}: heat, sizes, ways, kinds, ink and rules {named}; "
                    f"{rate:.1f} pages/s, {left:.0f} min left",
                    flush=True,
                )
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == last:
                save(step + 1)


if __name__ == "__main__":
    main()
