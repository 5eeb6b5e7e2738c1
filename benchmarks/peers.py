"""What other networks make of the same images in the same time: accuracy, size and speed, beside this project's own.

    python benchmarks/peers.py --data-dir DIR

Each network is trained on EMNIST-Balanced by the same Trainer with the same settings (recipes/accurate.json, smaller
batches), for the same processor time of one thread, which other work on the machine affects far less than the clock.
The learning rate rises and falls over that time.  Only steps of the training count; the accuracy is that on the
validation images, the mean over the classes.  The networks of others are written here after their papers, so that
nothing has to be installed (the package `wavemix` cannot be imported with NumPy 2).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18

from benchmarks.time_to_accuracy import add_data_arguments
from glyphs.core.config import Config, read_config
from glyphs.core.process import run
from glyphs.core.protocols import fetch_steps
from glyphs.core.randomness import address, seed_everything
from glyphs.data.loaders import DataLoaders, get_data_loaders
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.training.schedule import cosine_with_warmup
from glyphs.training.trainer import Trainer

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "accurate.json"
WARM_UP = 0.1  # of the time
CHANNELS_LAST = torch.channels_last  # for all but WaveMix, which is slower with it


class Wavelets(nn.Module):
    """A block of WaveMix-Lite (Jeevan et al., arXiv 2205.14375): [N, C, H, W] to the same, H and W even.

    A 1x1 convolution to a quarter of the channels, a two-dimensional Haar transform to half the side, two 1x1
    convolutions with a GELU between them, and a transposed convolution back to the whole side, beside a shortcut.
    """

    def __init__(self, channels: int, expansion: int = 2, dropout: float = 0.5) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(channels, channels // 4, 1)
        self.mixing = nn.Sequential(
            nn.Conv2d(channels, expansion * channels, 1),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Conv2d(expansion * channels, channels, 1),
            nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduction(x)
        a, b, c, d = (reduced[..., row::2, column::2] for row in (0, 1) for column in (0, 1))
        bands = torch.cat([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 2
        mixed: Tensor = self.mixing(bands)
        return x + mixed


def wavemix(classes: int, patch: int, channels: int = 128, depth: int = 7) -> nn.Module:
    """WaveMix-Lite-128/7 (128 channels, 7 blocks), which works on patches of so many pixels a side."""
    return nn.Sequential(
        nn.Conv2d(1, channels // 4, 3, padding=1),
        nn.Conv2d(channels // 4, channels // 2, 3, padding=1),
        nn.Conv2d(channels // 2, channels, patch, stride=patch),
        nn.GELU(),
        nn.BatchNorm2d(channels),
        *(Wavelets(channels) for _ in range(depth)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    )


class SpinalHead(nn.Module):
    """The fully connected layers of SpinalNet (Kabir et al., arXiv 2007.03347): [N, 2 * width] -> [N, classes].

    Four layers, each of which sees a half of the features, in turns, and what the layer before it answers.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Dropout(0.5), nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU())
            for inputs in (width, 2 * width, 2 * width, 2 * width)
        )
        self.out = nn.Sequential(nn.Dropout(0.5), nn.Linear(4 * width, classes))

    def forward(self, features: Tensor) -> Tensor:
        halves = features.chunk(2, dim=1)
        answers: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            answers.append(layer(torch.cat([halves[number % 2], *answers[-1:]], dim=1)))
        logits: Tensor = self.out(torch.cat(answers, dim=1))
        return logits


def vgg5_spinal(classes: int) -> nn.Module:
    """VGG-5 with a Spinal head, as the authors of arXiv 2007.03347 train it on EMNIST: four stages of convolutions."""
    layers: list[nn.Module] = []
    before = 1
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (256, 3)):
        for _ in range(convolutions):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), SpinalHead(128, classes)).to(memory_format=CHANNELS_LAST)


def resnet18_at_28(classes: int) -> nn.Module:
    """torchvision's ResNet-18 for one channel, without its max pooling, which would leave 7x7 for the first stage."""
    network: nn.Module = resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    network.maxpool = nn.Identity()
    return network.to(memory_format=CHANNELS_LAST)


def keras_convnet(classes: int) -> nn.Module:
    """The network of Keras' example "Simple MNIST convnet"."""
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(64 * 5 * 5, classes),
    )  # fmt: skip
    return network.to(memory_format=CHANNELS_LAST)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "residual": EnhancedGlyphCNN,
    "light": lambda classes: EnhancedGlyphCNN(classes, use_residual=False),
    "vgg5-spinal": vgg5_spinal,
    "resnet18": resnet18_at_28,
    "wavemix-patches": lambda classes: wavemix(classes, patch=2),
    "keras-convnet": keras_convnet,
    "wavemix": lambda classes: wavemix(classes, patch=1),
}


class Budget:
    """Processor time of this process to train for."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.start()

    def start(self) -> None:
        self.started = time.process_time()

    @property
    def used(self) -> float:
        """The share of it that is gone, from 0 to 1."""
        return min(1.0, (time.process_time() - self.started) / self.seconds)


def make_trainer(make: Callable[[int], nn.Module], data: DataLoaders, config: Config, budget: Budget) -> Trainer:
    seed_everything(address(config.seed, "weights"))
    return Trainer(
        make(len(data.class_names)),
        data.train,
        data.val,
        config,
        data.class_names,
        scheduler=lambda optimizer: LambdaLR(optimizer, lambda _: cosine_with_warmup(budget.used, WARM_UP)),
    )


def train(trainer: Trainer, budget: Budget) -> int:
    """Train until the budget is used up; returns how many images were seen."""
    trainer.model.train()
    budget.start()
    seen = epoch = 0
    while True:
        for _, (images, labels) in fetch_steps(trainer.train_loader, trainer.config.seed, epoch):
            trainer.train_step(images, labels)
            seen += len(labels)
            if budget.used == 1:
                return seen
        epoch += 1


def multiply_adds(model: nn.Module) -> float:
    """Of convolutions and matrix products, for an image."""
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, 28, 28))
    return float(counter.get_total_flops()) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--max-train-images", type=int, metavar="N", help="use only so many, validation included")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS, help="default: all")
    parser.add_argument("--seconds", type=float, default=600, help="processor time for each network (default: 600)")
    parser.add_argument("--batch-size", type=int, default=128, help="images a step (default: 128)")
    parser.add_argument("--learning-rate", type=float, default=0.002, help="the highest of the run (default: 0.002)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    config = Config.from_dict(
        {
            **read_config(RECIPE),
            "data_dir": arguments.data_dir,
            "dataset": arguments.dataset,
            "max_train_images": arguments.max_train_images,
            "batch_size": arguments.batch_size,
            "learning_rate": arguments.learning_rate,
            "device": "cpu",
            "output_dir": tempfile.gettempdir(),  # nothing is written
        }
    )
    data = get_data_loaders(config)
    budget = Budget(arguments.seconds)
    print(
        f"{len(data.train.index):,} training and {len(data.val.index):,} validation images; {arguments.seconds:g} "
        f"processor seconds on one thread for each network; torch {torch.__version__}\n"
    )
    print("| network | parameters | multiply-adds | images/s | images seen | validation accuracy |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for name in arguments.networks:
        trainer = make_trainer(NETWORKS[name], data, config, budget)
        parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
        millions = multiply_adds(trainer.model) / 1e6
        seen = train(trainer, budget)
        accuracy = trainer.validate()["val_accuracy"]
        print(
            f"| {name} | {parameters:,} | {millions:,.1f} M | {seen / arguments.seconds:,.0f} | {seen:,} | "
            f"{100 * accuracy:.2f} % |",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(run(main))
