"""How pretrained/cuts.npz learned to tell characters from wrong cuts.

    python recipes/cuts.py --data-dir DIR --output pretrained/cuts.npz

Lines are made of EMNIST's training images, of which a third is kept apart for `benchmarks/made_lines.py`; in half of
them none or a tenth of the characters touch the one before, in the others a fifth or half do.  Of every candidate
that the reader cuts out of them it is known how much of its ink is one character's.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.made_lines import FITTING, TOUCHING, load_characters, make_line, make_text, overlaps
from glyphs.core.arrays import Bytes, Floats
from glyphs.pictures.decode import to_colour
from glyphs.pictures.lines import find_lines
from glyphs.reading.cuts import CONV_STRIDE, VIEW_SIDE, draw_candidate
from glyphs.reading.lattice import lattice_of

LINES, EPOCHS, BATCH, RATE = 2000, 8, 256, 3e-3
WRONG, RIGHT = 0.6, 0.85  # shares of common ink up to which a candidate is none, and from which on it is a character
OBVIOUS = 0.3  # of the candidates that are none so many are looked at
CHANNELS, HIDDEN = (16, 32), 64


def make_candidates(data_dir: Path, lines: int, seed: int) -> tuple[Bytes, Floats]:
    """What is seen of candidates, uint8 [N, 2, 32, 32], and how right they are, float32 [N] from 0 to 1."""
    characters = load_characters(data_dir, FITTING)
    choice = np.random.default_rng(seed)
    seen, right = [], []
    for number in range(lines):
        random = np.random.default_rng((seed, number))
        made = make_line(random, characters, make_text(random), TOUCHING[number % len(TOUCHING)])
        page = find_lines(to_colour(made.picture))
        for line in page.lines:
            lattice = lattice_of(line)
            for span, (_, common) in overlaps(made.owners, page, lattice).items():
                if span not in lattice.marks and (common > WRONG or choice.random() < OBVIOUS):
                    seen.append(draw_candidate(lattice.piece(span), line.height, lattice.ink))
                    right.append((common - WRONG) / (RIGHT - WRONG))
    return np.stack(seen), np.array(right, np.float32).clip(0, 1)


class CutNet(nn.Module):
    """The network, as `glyphs.reading.cuts` computes it: float [N, 2, 32, 32] to log odds, [N]."""

    def __init__(self) -> None:
        super().__init__()
        few, many = CHANNELS
        side = ((VIEW_SIDE - 5) // CONV_STRIDE + 1 - 4) // CONV_STRIDE + 1
        self.shape = (many, side, side)
        self.layers = nn.Sequential(
            nn.Conv2d(2, few, 5, stride=CONV_STRIDE),
            nn.ReLU(),
            nn.Conv2d(few, many, 4, stride=CONV_STRIDE),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(many * side * side, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        odds: Tensor = self.layers(images)[:, 0]
        return odds

    def weights(self) -> dict[str, Floats]:
        """Its weights, as `glyphs.reading.cuts` wants them: channels last, inputs before outputs."""
        values = [value.numpy() for value in self.state_dict().values()]
        kernels, biases = values[::2], values[1::2]
        kernels[:2] = [kernel.transpose(2, 3, 1, 0) for kernel in kernels[:2]]
        kernels[2:] = [kernel.T for kernel in kernels[2:]]
        kernels[2] = kernels[2].reshape(*self.shape, -1).transpose(1, 2, 0, 3).reshape(kernels[2].shape)
        named = {f"kernel{number}": kernel for number, kernel in enumerate(kernels)}
        return named | {f"bias{number}": bias for number, bias in enumerate(biases)}


def fit(seen: Bytes, right: Floats, epochs: int) -> CutNet:
    """Train the network on candidates, each shifted by up to a pixel."""
    network = CutNet()
    images, targets = torch.from_numpy(seen), torch.from_numpy(right)
    steps = len(images) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * steps)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(images))[: steps * BATCH].view(steps, BATCH):
            shifts = tuple(torch.randint(-1, 2, (2,)).tolist())
            batch = images[rows].roll(shifts, (2, 3)).float() / 255
            loss = nn.functional.binary_cross_entropy_with_logits(network(batch), targets[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: loss {total / steps:.4f}", flush=True)
    return network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder with EMNIST's files")
    parser.add_argument("--output", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--lines", type=int, default=LINES)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    seen, right = make_candidates(arguments.data_dir, arguments.lines, arguments.seed)
    print(f"{len(seen)} candidates, {np.mean(right == 1):.1%} of them characters")
    network = fit(seen, right, arguments.epochs)
    weights = {name: value.astype(np.float16) for name, value in network.weights().items()}
    with arguments.output.open("wb") as file:
        np.savez_compressed(file, **weights)  # type: ignore[arg-type]  # an array for each name


if __name__ == "__main__":
    main()
