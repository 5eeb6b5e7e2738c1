"""How the network of characters learned what the finder hands over: the last stage of pretrained/glyphs47.pth.

    python recipes/found.py --data-dir DIR --start OLD.pth --output NEW.pth --pages 6000 --minutes 15

Made pages (`made_pages.py`) go through the finder; the characters that it finds are drawn as reading draws them, and
what they are is known. Each batch mixes these with EMNIST's training images, whose targets are mostly the old weights'
probabilities, so that EMNIST is not forgotten, and with the photographs and drawings that are not held out. Images of
EMNIST's test files are left out of the pages. What is written is a mean of the old weights and of a moving average of
the new ones, to be calibrated. The learning rate falls with the clock, as in `glyphs47.py`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from glyphs.core.arrays import Bytes
from glyphs.data.emnist import load_emnist
from glyphs.data.loaders import get_data_loaders
from glyphs.models.checkpoint import load_checkpoint, write_checkpoint
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.pictures.finder import find
from glyphs.pictures.lines import Page, pieces_of
from glyphs.reading.lattice import draw_piece
from recipes.glyphs47 import VIEWS, distort, draw_picture, load_network, prepare_pictures, smooth, train
from recipes.made_pages import Pages, Sample

IN_BATCH = {"emnist": 112, "found": 104, "photos": 26, "drawings": 14}
EMNIST_IMAGES = 60_000  # that are learned again
TEACHER = 0.7  # share of the targets on EMNIST's images that is the old weights'
LEAST_SHARED = 0.6  # of a found character's ink: so much is the true one's
NEW = 0.7  # share of the trained weights in what is written


def found_characters(sample: Sample, names: list[str]) -> tuple[list[Bytes], list[int]]:
    """The characters that the finder finds on a page, drawn as 28x28, and their classes; those without are left out."""
    found = find(sample.image)
    if found is None:
        return [], []
    page = Page(found.ink, 0.5, found.scale, [], False)
    images, labels = [], []
    for piece in pieces_of(found):
        rows, columns = np.nonzero(piece.mask)
        y, x = ((place + 0.5) / found.scale for place in (rows + piece.box.top, columns + piece.box.left))
        side = len(sample.owner) - 1
        owners = np.bincount(sample.owner[np.minimum(y.astype(int), side), np.minimum(x.astype(int), side)])
        owner = int(owners.argmax())
        whole = (sample.owner == owner).sum() * found.scale**2
        if owner == 0 or owners[owner] < LEAST_SHARED * max(len(rows), whole):
            continue
        name = sample.names[owner - 1]
        known = next((each for each in (name, name.upper()) if each in names), None)
        if known is not None and (drawn := draw_piece(page, piece)).any():
            images.append(drawn)
            labels.append(names.index(known))
    return images, labels


def without_test_images(pages: Pages, folder: Path) -> None:
    """Leave images that are in a test file out of what pages are made of."""
    tests = [load_emnist(folder, split, "test")[0][:, 0].numpy() for split in ("balanced", "bymerge")]
    known = {image.tobytes() for images in tests for image in images}
    for name, places in pages.of_class.items():
        pages.of_class[name] = np.array([n for n in places.tolist() if pages.images[n].tobytes() not in known])


@torch.inference_mode()
def teach(teacher: EnhancedGlyphCNN, images: Tensor, labels: Tensor) -> Tensor:
    """Targets, float [N, C], for EMNIST's images: the old weights' probabilities, and the label."""
    teacher.eval()
    probabilities = torch.cat([teacher(batch).softmax(1) for batch in torch.split(images, 256)])
    return TEACHER * probabilities + (1 - TEACHER) * smooth(labels, 0.03, probabilities.shape[1])


def by_class(labels: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """The places of each class."""
    return [np.flatnonzero(labels == number) for number in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-dir", type=Path, required=True, help="folder with EMNIST/raw, symbols, photos, drawings"
    )
    parser.add_argument("--start", type=Path, required=True, help="checkpoint of a 47-class model to go on from")
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint to write")
    parser.add_argument("--pages", type=int, default=6000, help="made pages to take characters from")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)
    model, names = load_network(arguments.start)
    for weights in model.classifier.parameters():  # from here on the temperature is in the weights
        weights.data /= model.temperature
    model.temperature.fill_(1)

    kept = arguments.output.with_suffix(".npz")  # the characters found, which take longest
    if kept.exists():
        stored = np.load(kept)
        found, labels = stored["images"], stored["labels"]
    else:
        pages = Pages(arguments.data_dir, 1000 + arguments.seed)
        without_test_images(pages, arguments.data_dir)
        drawn: list[Bytes] = []
        known: list[int] = []
        for number in range(arguments.pages):
            on_page = found_characters(pages.page(number), names)
            drawn += on_page[0]
            known += on_page[1]
            if (number + 1) % 200 == 0:
                print(f"{number + 1} pages, {len(known)} characters", flush=True)
        found, labels = np.stack(drawn), np.array(known)
        np.savez(kept, images=found, labels=labels)
    settings = {"emnist_split": "bymerge", "val_split": 0.03, "max_train_images": EMNIST_IMAGES}
    data = get_data_loaders({"data_dir": str(arguments.data_dir), **settings})
    images, classes = data.train.images[data.train.index], data.train.labels[data.train.index]
    targets = teach(model, images, classes)
    of_class, of_found = by_class(classes.numpy(), len(names)), by_class(labels, len(names))
    prepared = {
        kind: prepare_pictures(arguments.data_dir, kind, names, rng, VIEWS[kind] // 4)
        for kind in ("photos", "drawings")
    }
    share = torch.full((sum(IN_BATCH.values()),), 0.15)

    def draw_batch() -> tuple[Tensor, Tensor]:
        # Every class alike, as far as there are images of it.
        even = [rng.permutation(3 * len(names))[: IN_BATCH[kind]] % len(names) for kind in ("emnist", "found")]
        rows = torch.from_numpy(np.array([rng.choice(of_class[label]) for label in even[0]]))
        places = np.array([rng.choice(of_found[label]) for label in even[1] if len(of_found[label])])
        pixels = [images[rows], torch.from_numpy(found[places])[:, None]]
        goals = [targets[rows], smooth(torch.from_numpy(labels[places]), 0.05, len(names))]
        for kind, pictures in prepared.items():
            several = [pictures[place] for place in rng.integers(len(pictures), size=IN_BATCH[kind])]
            pixels.append(torch.from_numpy(np.stack([draw_picture(picture, rng) for picture in several]))[:, None])
            goals.append(smooth(torch.tensor([picture.label for picture in several]), 0.05, len(names)))
        together = torch.cat(pixels)
        return distort(together, share[: len(together)], generator), torch.cat(goals)

    content = load_checkpoint(arguments.start)
    old = {name: weights.clone() for name, weights in model.state_dict().items()}
    content["model"] = train(model, draw_batch, arguments.minutes * 60)
    for name, weights in content["model"].items():
        if weights.is_floating_point():
            weights.copy_(torch.lerp(old[name], weights, NEW))
    write_checkpoint(arguments.output, content)


if __name__ == "__main__":
    main()
