"""Small sets of pictures: what the settings that follow from the data are worth, beside others and other methods.

    pip install scikit-image resvg-py && npm install --prefix icons @phosphor-icons/core @mdi/svg
    python benchmarks/small_data.py --data-dir DIR --icons icons/node_modules

DIR holds EMNIST/raw, photos and symbols.  A cell is a source, a number of classes and of training pictures for each;
a tenth of these is for validation.  Each cell is trained on

- by default: as `--dataset folder` trains where nothing else is said (`glyphs.training.follow`);
- with the settings of EMNIST, which are those of the specification;
- with three settings that a person would try by hand, HAND_TUNED, of which the best counts;
- as histograms of oriented gradients with a linear SVM (scikit-image and scikit-learn), on training and validation;
- as a small plain CNN, for as many seconds as the default took, with the same distortion.

All see the same 28x28 images, and are measured on the same others; seconds are of one thread's processor time.  The
rule was chosen on the cells of CHOSEN_ON; those of HELD_OUT, from other sources, were asked once it stood.
"""

import argparse
import io
import itertools
import json
import math
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from glyphs.core.config import Config
from glyphs.core.process import run
from glyphs.core.randomness import address, seed_everything
from glyphs.data.division import stratified_split
from glyphs.data.emnist import load_emnist
from glyphs.data.loaders import Augmentation, TensorLoader
from glyphs.models.architecture import make_model
from glyphs.models.checkpoint import BEST_MODEL, load_model
from glyphs.pictures.glyph import preprocess
from glyphs.pictures.plain import EMNIST_FORM, InputForm
from glyphs.training.follow import follow_data
from glyphs.training.schedule import cosine_with_warmup
from glyphs.training.trainer import Trainer

# Name: source, classes, training pictures of a class.
CHOSEN_ON = {
    "2 letters x 3": ("emnist", 2, 3),
    "10 letters x 14": ("emnist", 10, 14),
    "47 letters x 20": ("emnist", 47, 20),
    "47 letters x 100": ("emnist", 47, 100),
    "10 icons x 20": ("phosphor", 10, 20),
    "50 icons x 32": ("phosphor", 50, 32),
    "100 icons x 2": ("phosphor", 100, 2),
    "500 icons x 2": ("phosphor", 500, 2),
}
HELD_OUT = {
    "2 mdi icons x 3": ("mdi", 2, 3),
    "100 mdi icons x 5": ("mdi", 100, 5),
    "62 photographed x 18": ("photos", 62, 18),
    "100 HASY x 13": ("hasy", 100, 13),
    "100 Omniglot x 10": ("omniglot", 100, 10),
    "42 mahjong x 7": ("mahjong", 42, 7),
    "81 SET cards x 16": ("set_cards", 81, 16),
}
MOST_TESTED = 1000  # pictures of a cell
HAND_STEPS = 3000  # of a hand-tuned setting, at least
HAND_TUNED: dict[str, dict[str, Any]] = {
    "light, 32, 0.01": {"use_residual": False, "batch_size": 32, "learning_rate": 0.01},
    "light, 16, 0.003": {"use_residual": False, "batch_size": 16, "learning_rate": 0.003, "weight_decay": 0.05},
    "residual, 32, 0.001": {"batch_size": 32, "learning_rate": 0.001},
}
ICON_SIDE = 96  # pixels
SYMBOLS = InputForm("inverted")  # grey, 28x28, white on black: the histograms and the plain CNN know no other

Rng = np.random.Generator


class Cell(NamedTuple):
    """Images uint8 [N, 1, 28, 28] and labels int64 [N]; the places of those to train on and to validate on."""

    images: Tensor
    labels: Tensor
    train: Tensor
    val: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int


def make_cell(source: str, classes: int, per_class: int, data_dir: Path, icons: Path, seed: int) -> Cell:
    """Draw a cell: its classes, and of each the pictures to train on, all of which are other than those tested on."""
    rng = np.random.default_rng(seed)
    tests = max(2, min(20, MOST_TESTED // classes))
    if source == "emnist":
        training, test = emnist(data_dir, classes, per_class, MOST_TESTED // classes, rng)
    else:
        training, test = SOURCES[source](data_dir, icons, classes, per_class, tests, rng)
    labels = training[1]
    val, train = stratified_split(labels, torch.arange(len(labels)), max(1, round(0.1 * len(labels))), seed)
    return Cell(*training, train, val, *test, classes)


Drawn = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]  # images and labels, of training and test
Source = Callable[[Path, Path, int, int, int, Rng], Drawn]


def emnist(data_dir: Path, classes: int, per_class: int, tests: int, rng: Rng) -> Drawn:
    chosen = rng.permutation(47)[:classes]
    parts = []
    for part, count in (("train", per_class), ("test", tests)):
        images, labels = load_emnist(data_dir, "balanced", part)  # type: ignore[arg-type]
        places = [rng.permutation(np.flatnonzero(labels.numpy() == each))[:count] for each in chosen]
        which = torch.from_numpy(np.concatenate(places))
        own = torch.cat([torch.full((len(each),), label) for label, each in enumerate(places)])
        parts.append((images[which], own))
    return parts[0], parts[1]


def draw(
    by_class: dict[str, list[Any]],
    open_one: Callable[[Any], Image.Image],
    form: InputForm,
    classes: int,
    counts: tuple[int, int],
    rng: Rng,
) -> Drawn:
    """So many classes that have enough pictures, at random; of each, pictures to train and to test on, prepared."""
    names = sorted(name for name, pictures in by_class.items() if len(pictures) >= counts[0] + 2)
    chosen = [names[place] for place in rng.permutation(len(names))[:classes]]
    parts: tuple[list[Any], list[Any]] = ([], [])
    for label, name in enumerate(chosen):
        order = [by_class[name][place] for place in rng.permutation(len(by_class[name]))]
        found = [0, 0]
        for picture in order:
            part = 0 if found[0] < counts[0] else 1
            if found[part] == counts[part]:
                break
            pixels = preprocess(open_one(picture), form).pixels
            if pixels is not None:
                parts[part].append((pixels, label))
                found[part] += 1
    return tensors(parts[0]), tensors(parts[1])


def tensors(pairs: list[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.stack([pixels for pixels, _ in pairs]))[:, None], torch.tensor([y for _, y in pairs])


def icons_of(package: str) -> Source:
    """Icons drawn from a package of .svg files, each time another way."""

    def source(data_dir: Path, icons: Path, classes: int, per_class: int, tests: int, rng: Rng) -> Drawn:
        import resvg_py

        paths = sorted((icons / package).glob("*.svg"))
        chosen = [paths[place] for place in rng.permutation(len(paths))[:classes]]
        parts: tuple[list[Any], list[Any]] = ([], [])
        for label, path in enumerate(chosen):
            content = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=ICON_SIDE, height=ICON_SIDE))
            shape = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))[..., 3]
            for part, count in zip(parts, (per_class, tests), strict=True):
                for _ in range(count):
                    pixels = preprocess(photograph(shape, rng), SYMBOLS).pixels
                    part.append((pixels, label))
        return tensors(parts[0]), tensors(parts[1])

    return source


def photograph(shape: np.ndarray[Any, Any], rng: Rng) -> Image.Image:
    """An icon, turned, slanted, resized and shifted a little, in one grey on another, with noise."""
    angle, slant = np.radians(rng.uniform(-12, 12)), rng.uniform(-0.15, 0.15)
    zoom = rng.uniform(1.0, 1.5)
    turn = zoom * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) @ [[1, slant], [0, 1]]
    centre = np.full(2, ICON_SIDE / 2)
    shift = centre - turn @ (centre + rng.uniform(-8, 8, 2))
    matrix = [*turn[0], shift[0], *turn[1], shift[1]]
    form, smooth = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    ink = Image.fromarray(shape).transform((ICON_SIDE, ICON_SIDE), form, matrix, smooth)
    paper, colour = rng.uniform(170, 255), rng.uniform(0, 90)
    grey = paper + (colour - paper) * np.asarray(ink) / 255 + rng.normal(0, 8, shape.shape)
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def from_folders(folder: str, form: InputForm) -> Source:
    def source(data_dir: Path, icons: Path, classes: int, per_class: int, tests: int, rng: Rng) -> Drawn:
        by_class = {each.name: sorted(each.iterdir()) for each in sorted((data_dir / folder).iterdir())}
        return draw(by_class, Image.open, form, classes, (per_class, tests), rng)

    return source


def set_cards(data_dir: Path, icons: Path, classes: int, per_class: int, tests: int, rng: Rng) -> Drawn:
    """The test is other sessions' photographs."""
    parts = []
    for part, count in (("train", per_class), ("test", tests)):
        pairs = []
        for label, folder in enumerate(sorted((data_dir / "symbols" / "set_cards" / part).iterdir())[:classes]):
            for path in sorted(folder.iterdir())[:count]:
                pairs.append((preprocess(path, SYMBOLS).pixels, label))
        parts.append(tensors(pairs))
    return parts[0], parts[1]


def from_table(name: str, column: str) -> Source:
    import csv

    def source(data_dir: Path, icons: Path, classes: int, per_class: int, tests: int, rng: Rng) -> Drawn:
        folder = data_dir / "symbols" / name
        by_class: dict[str, list[Any]] = {}
        with (folder / "labels.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                by_class.setdefault(row[column], []).append(folder / row["file"])
        return draw(by_class, Image.open, SYMBOLS, classes, (per_class, tests), rng)

    return source


def omniglot(data_dir: Path, icons: Path, classes: int, per_class: int, tests: int, rng: Rng) -> Drawn:
    [path] = (data_dir / "symbols" / "omniglot").glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        by_class: dict[str, list[Any]] = {}
        for name in sorted(archive.namelist()):
            if name.endswith(".png"):
                by_class.setdefault(name.rsplit("/", 1)[0], []).append(name)
        return draw(
            by_class, lambda name: Image.open(io.BytesIO(archive.read(name))), SYMBOLS, classes, (per_class, tests), rng
        )


SOURCES: dict[str, Source] = {
    "phosphor": icons_of("@phosphor-icons/core/assets/regular"),
    "mdi": icons_of("@mdi/svg/svg"),
    "photos": from_folders("photos", EMNIST_FORM),
    "hasy": from_table("hasy", "symbol_id"),
    "mahjong": from_table("mahjong", "label"),
    "omniglot": omniglot,
    "set_cards": set_cards,
}


def train(cell: Cell, config: Config) -> Callable[[Tensor], Tensor]:
    """Train as the settings say; returns what classifies, as the best_model.pth of the run does."""
    train_loader = TensorLoader(
        cell.images,
        cell.labels,
        config.batch_size,
        index=cell.train.repeat(config.passes_per_epoch),
        shuffle_seed=config.seed,
        augmentation=Augmentation(config.rotation_degree, config.affine_degree, config.translate),
    )
    val_loader = TensorLoader(cell.images, cell.labels, config.batch_size, index=cell.val)
    seed_everything(address(config.seed, "weights"))
    model = make_model(config, cell.classes)
    trainer = Trainer(model, train_loader, val_loader, config, [str(label) for label in range(cell.classes)])
    trainer.fit()
    return load_model(Path(config.output_dir) / BEST_MODEL)[0]


def by_default(cell: Cell, seed: int, folder: str) -> Callable[[Tensor], Tensor]:
    config = Config(dataset="folder", seed=seed, output_dir=folder, device="cpu")
    return train(cell, follow_data(config, {}, len(cell.train), cell.classes)[0])


def as_for_emnist(cell: Cell, seed: int, folder: str) -> Callable[[Tensor], Tensor]:
    return train(cell, Config(dataset="folder", seed=seed, output_dir=folder, device="cpu"))


def by_hand(settings: dict[str, Any]) -> Callable[[Cell, int, str], Callable[[Tensor], Tensor]]:
    def method(cell: Cell, seed: int, folder: str) -> Callable[[Tensor], Tensor]:
        steps = math.ceil(len(cell.train) / settings["batch_size"])
        epochs = max(50, math.ceil(HAND_STEPS / steps))
        more = {"num_epochs": epochs, "early_stopping_patience": epochs, "seed": seed, "output_dir": folder}
        return train(cell, Config.from_dict(settings | more | {"device": "cpu"}))

    return method


def gradients_and_svm(cell: Cell, seed: int, folder: str) -> Callable[[Tensor], Tensor]:
    from skimage.feature import hog
    from sklearn.svm import LinearSVC

    def features(images: Tensor) -> Any:
        return np.stack([hog(image[0].numpy(), 9, (4, 4), (2, 2)) for image in images])

    machine = LinearSVC(random_state=seed).fit(features(cell.images), cell.labels.numpy())
    if cell.classes == 2:
        return lambda images: torch.eye(2)[torch.from_numpy(machine.predict(features(images)))]
    return lambda images: torch.from_numpy(machine.decision_function(features(images)))


class PlainCNN(nn.Sequential):
    """Three convolutions with batch norm and pooling, and a linear layer: what many a tutorial has."""

    def __init__(self, classes: int) -> None:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((1, 32, 64, 128)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Flatten(), nn.Dropout(0.4), nn.Linear(128 * 9, classes))


def plain_cnn(seconds: float) -> Callable[[Cell, int, str], Callable[[Tensor], Tensor]]:
    """Adam at 0.001, batches of 32, the rate falling along half a cosine over the seconds."""

    def method(cell: Cell, seed: int, folder: str) -> Callable[[Tensor], Tensor]:
        seed_everything(seed)
        model = PlainCNN(cell.classes)
        optimizer = torch.optim.Adam(model.parameters())
        loader = TensorLoader(
            cell.images, cell.labels, 32, index=cell.train, shuffle_seed=seed, augmentation=Augmentation(15, 10, 0.08)
        )
        started = time.process_time()
        for epoch in itertools.count():
            loader.seek(epoch, 0)
            for images, labels in loader:
                done = (time.process_time() - started) / seconds
                if done >= 1:
                    model.eval()
                    return lambda images: model(images / 255)
                if len(labels) < 2 and len(loader) > 1:
                    continue
                optimizer.param_groups[0]["lr"] = 0.001 * cosine_with_warmup(done, 0.02)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        raise AssertionError

    return method


def accuracy(classify: Callable[[Tensor], Tensor], cell: Cell) -> float:
    with torch.inference_mode():
        answers = torch.cat([classify(images).argmax(1) for images in torch.split(cell.test_images, 500)])
    return 100 * float((answers == cell.test_labels).double().mean())


def measure(cell: Cell, seed: int, only: Iterable[str] = ()) -> Iterator[tuple[str, float, float]]:
    """The name of each method, its accuracy in percent, and its seconds."""
    methods: dict[str, Callable[[Cell, int, str], Callable[[Tensor], Tensor]]] = {
        "default": by_default,
        "plain CNN": by_default,  # set below
        "HOG, linear SVM": gradients_and_svm,
        "as for EMNIST": as_for_emnist,
    }
    methods |= {name: by_hand(settings) for name, settings in HAND_TUNED.items()}
    seconds = 60.0
    for name, method in methods.items():
        if only and name not in only:
            continue
        if name == "plain CNN":
            method = plain_cnn(seconds)
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            found = accuracy(method(cell, seed, folder), cell)
            seconds = time.process_time() - started if name == "default" else seconds
            yield name, found, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--icons", type=Path, default=Path("icons/node_modules"))
    cells = CHOSEN_ON | HELD_OUT
    parser.add_argument("--cells", nargs="+", choices=cells, default=list(cells), metavar="NAME")
    parser.add_argument("--methods", nargs="+", default=(), metavar="NAME", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.cells:
        for seed in arguments.seeds:
            cell = make_cell(*cells[name], arguments.data_dir, arguments.icons, seed)
            for method, found, seconds in measure(cell, seed, arguments.methods):
                row = {"cell": name, "seed": seed, "method": method, "accuracy": round(found, 1)}
                print(json.dumps(row | {"seconds": round(seconds), "tested": len(cell.test_labels)}), flush=True)


if __name__ == "__main__":
    sys.exit(run(main))
