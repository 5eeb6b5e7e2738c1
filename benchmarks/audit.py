"""How many planted wrong labels and near copies an audit finds, by rank, beside other ways; and what it costs.

    python benchmarks/audit.py --data-dir DIR [--sets photos emnist hasy] [--shares 0.01 0.03 0.1]

DIR holds EMNIST/raw (of Balanced, --images of the training images are taken), photos/ and symbols/hasy/.  A share of
the labels is changed: to any other class (uniform), or to the class that a classifier takes the image for next
(look-alike).  Five-fold cross-validation then ranks all labels.  Labels that were wrong before count as right here, so
that true precision is higher.  Needs cleanlab; the near copies also ImageHash and CleanVision, and are left out where
these are missing.
"""

import argparse
import csv
import importlib.util
import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from glyphs.core.arrays import Probabilities
from glyphs.core.config import Config
from glyphs.core.randomness import address
from glyphs.data.division import stratified_split
from glyphs.data.emnist import load_emnist
from glyphs.evaluation.audit_labels import cross_validate, gradients_of, judge_labels, make_classifier, train_classifier
from glyphs.evaluation.audit_pictures import compare_within_classes, descriptors_of, near_pairs
from glyphs.evaluation.auditset import PICTURE_SIDE
from glyphs.pictures.decode import open_picture, to_grey
from glyphs.pictures.glyph import preprocess

SETS = ("photos", "emnist", "hasy")
ALL_IMAGES = 237_315  # of the largest training file that the project is measured on
COPIES = 200
FOLDS = 5


class Planted:
    """Labels, a share of which was changed: `labels`, int64 [N], and which, `wrong`, bool [N]."""

    def __init__(self, true: Tensor, other: Tensor, share: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        places = rng.choice(len(true), round(share * len(true)), replace=False)
        self.labels = true.clone()
        self.labels[places] = other[places]
        self.wrong = np.zeros(len(true), bool)
        self.wrong[places] = True


def load(name: str, data_dir: Path, count: int) -> tuple[Tensor, Tensor]:
    """Images, uint8 [N, 1, 28, 28], and labels, int64 [N], of a set."""
    if name == "emnist":
        images, labels = load_emnist(data_dir, "balanced", "train")
        some, _ = stratified_split(labels, torch.arange(len(labels)), count, 0)
        return images[some], labels[some]
    found = list_pictures(name, data_dir)
    names = sorted({label for _, label in found})
    pixels, labels_found = [], []
    for path, label in found:
        if name == "photos":
            drawn = preprocess(path).pixels
        else:
            drawn = 255 - np.rint(to_grey(open_picture(path).resize((28, 28))) * 255).astype(np.uint8)
        if drawn is not None:
            pixels.append(drawn)
            labels_found.append(names.index(label))
    return torch.from_numpy(np.stack(pixels))[:, None], torch.tensor(labels_found)


def list_pictures(name: str, data_dir: Path) -> list[tuple[Path, str]]:
    if name == "photos":
        folders = sorted(path for path in (data_dir / "photos").iterdir() if path.is_dir())
        return [(path, folder.name) for folder in folders for path in sorted(folder.iterdir())]
    folder = data_dir / "symbols" / "hasy"
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        return [(folder / row["file"], row["symbol_id"]) for row in csv.DictReader(file)]


def validate(images: Tensor, labels: Tensor, classes: int) -> Probabilities:
    return cross_validate(images, labels, np.arange(len(labels)), classes, FOLDS, 0, None, "")


def in_sample(images: Tensor, labels: Tensor, classes: int) -> NDArray[np.float64]:
    """The loss of each label by a classifier that was trained on it: float64 [N]."""
    features = gradients_of(images)
    features = (features - features.mean(dim=0)) / features.std()
    torch.manual_seed(address("in sample"))
    classifier = make_classifier(features.shape[1], classes)
    for _ in train_classifier(classifier, features, labels):
        pass
    with torch.inference_mode():
        chances = classifier(features).log_softmax(1)[torch.arange(len(labels)), labels]
    return np.asarray(-chances.double().numpy())


def own_list(labels: Tensor, probabilities: Probabilities) -> NDArray[np.bool_]:
    """What cleanlab lists where nothing is said of how: bool [N]."""
    from cleanlab.filter import find_label_issues

    known = np.asarray(probabilities, np.float64)
    return np.asarray(find_label_issues(labels.numpy(), known / known.sum(axis=1, keepdims=True), n_jobs=1))


def entropy(probabilities: Probabilities) -> NDArray[np.float64]:
    known = np.asarray(probabilities, np.float64)
    return np.asarray(-(known * np.log(np.maximum(known, 1e-12))).sum(axis=1))


def labels_of(name: str, data_dir: Path, count: int, shares: list[float]) -> None:
    """Print precision and recall by rank for one set."""
    images, labels = load(name, data_dir, count)
    classes = int(labels.max()) + 1
    began = time.process_time()
    clean = validate(images, labels, classes)
    seconds = time.process_time() - began
    right = float((clean.argmax(axis=1) == labels.numpy()).mean())
    base = judge_labels(labels.numpy(), clean)
    print(
        f"\n{name}: {len(labels):,} images of {classes} classes; cross-validation {right:.1%} right, {seconds:.0f} s "
        f"of processor time; nothing planted: {base.share:.1%} seem wrong, {base.wrong.sum():,} listed"
    )
    ranked = np.argsort(-clean, axis=1)
    next_best = np.where(ranked[:, 0] == labels.numpy(), ranked[:, 1], ranked[:, 0])
    rng = np.random.default_rng(0)
    uniform = (labels + torch.from_numpy(rng.integers(1, classes, len(labels)))) % classes
    kinds = {"uniform": uniform, "look-alike": torch.from_numpy(next_best)}
    print(f"{'':28}{'precision at rank':>30}{'recall at rank':>30}{'listed by the audit':>24}")
    ranks = "".join(f"{each:>10}" for each in ("n/2", "n", "2n"))
    print(f"{'planted n, ranked by':28}{ranks}{ranks}{'precision':>12}{'recall':>12}")
    for kind, other in kinds.items():
        for share in shares:
            planted = Planted(labels, other, share, 0)
            answers = validate(images, planted.labels, classes)
            issues = judge_labels(planted.labels.numpy(), answers)
            ways: dict[str, NDArray[np.float64]] = {
                "the audit: loss, held out": issues.scores,
                "cleanlab's own list first": issues.scores + own_list(planted.labels, answers),
                "loss, trained on": in_sample(images, planted.labels, classes),
                "entropy, held out": entropy(answers),
            }
            n = int(planted.wrong.sum())
            print(f"{kind}, {share:.0%}: n = {n:,}; estimated {issues.share:.1%}")
            for way, scores in ways.items():
                hits = planted.wrong[np.argsort(-scores, kind="stable")].cumsum()
                at = [max(1, n // 2), n, 2 * n]
                cells = [f"{hits[k - 1] / k:>10.1%}" for k in at] + [f"{hits[k - 1] / n:>10.1%}" for k in at]
                listed = ""
                if way.startswith("the audit"):
                    precision, recall = planted.wrong[issues.wrong].mean(), issues.wrong[planted.wrong].mean()
                    listed = f"{precision:>12.1%}{recall:>12.1%}"
                print(f"  {way:26}{''.join(cells)}{listed}", flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{ALL_IMAGES:,} images, extrapolated in proportion: {seconds / len(labels) * ALL_IMAGES / 3600:.2f} hours of "
        f"one core for the cross-validation; this process took {memory:.1f} GiB at most"
    )


# ---- Near copies ----


def as_jpeg(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=60)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("L")


def shifted(picture: Image.Image) -> Image.Image:
    paper = int(np.median(np.asarray(picture)))
    return picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, 1, 0, 1, 0), fillcolor=paper)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 60": as_jpeg,
    "four fifths of the size": lambda picture: picture.resize(
        (max(8, picture.width * 4 // 5), max(8, picture.height * 4 // 5)), Image.Resampling.BICUBIC
    ),
    "lighter by a tenth": lambda picture: picture.point(lambda value: int(value * 0.85 + 20)),
    "moved by a pixel": shifted,
}


def copies_of(name: str, data_dir: Path, count: int) -> None:
    """Print how many planted near copies are found, and how many pairs besides."""
    if name == "emnist":
        images, labels = load(name, data_dir, min(count, 4000))
        pictures = [Image.fromarray(image[0].numpy()) for image in images]
    else:
        found = list_pictures(name, data_dir)[:4000]
        pictures = [open_picture(path).convert("L") for path, _ in found]
        names = sorted({label for _, label in found})
        labels = torch.tensor([names.index(label) for _, label in found])
    places = np.random.default_rng(1).choice(len(pictures), COPIES, replace=False)
    changes = list(CHANGES.values())
    planted = [changes[number % len(changes)](pictures[place]) for number, place in enumerate(places)]
    everything = pictures + planted
    true = {(int(place), len(pictures) + number) for number, place in enumerate(places)}
    all_labels = torch.cat([labels, labels[places]])
    began = time.process_time()
    side = 28 if name == "emnist" else PICTURE_SIDE
    small = torch.from_numpy(np.stack([np.asarray(picture.resize((side, side))) for picture in everything]))[:, None]
    descriptors = descriptors_of(small)
    pairs = near_pairs(descriptors, compare_within_classes(descriptors, all_labels).reach)
    rows = {"the audit": ({(one, other) for one, other, _ in pairs}, time.process_time() - began)}
    import imagehash

    began = time.process_time()
    bits = np.stack([imagehash.phash(picture).hash.ravel() for picture in everything]).astype(np.float32) * 2 - 1
    apart = (64 - bits @ bits.T) / 2
    for most in (0, 2, 4):
        one, other = np.nonzero(np.triu(apart <= most, 1))
        rows[f"ImageHash, {most} bits"] = (
            set(zip(one.tolist(), other.tolist(), strict=True)),
            time.process_time() - began,
        )
    rows["CleanVision"] = by_cleanvision(everything)
    print(f"\n{name}: near copies of {COPIES} of {len(pictures):,} pictures")
    print(f"{'':24}{'found':>10}{'other pairs':>14}{'seconds':>10}")
    for way, (pairs_found, seconds) in rows.items():
        print(f"{way:24}{len(pairs_found & true) / COPIES:>10.1%}{len(pairs_found - true):>14,}{seconds:>10.1f}")


def by_cleanvision(pictures: list[Image.Image]) -> tuple[set[tuple[int, int]], float]:
    """The pairs that CleanVision calls exact or near duplicates, and seconds of processor time."""
    import contextlib

    from cleanvision import Imagelab

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for place, picture in enumerate(pictures):
            picture.save(Path(folder, f"{place:06}.png"))
        began = time.process_time()
        lab = Imagelab(data_path=folder)
        lab.find_issues({"near_duplicates": {}, "exact_duplicates": {}}, n_jobs=1, verbose=False)
        seconds = time.process_time() - began
    pairs = set()
    for kind in ("near_duplicates", "exact_duplicates"):
        for group in lab.info[kind]["sets"]:
            places = sorted(int(Path(path).stem) for path in group)
            pairs |= {(one, other) for at, one in enumerate(places) for other in places[at + 1 :]}
    return pairs, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path(Config.data_dir))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--images", type=int, default=12_000, help="of EMNIST (default: 12000)")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.01, 0.03, 0.1], help="of wrong labels, planted")
    parser.add_argument("--copies-only", action="store_true", help="only the near copies")
    arguments = parser.parse_args()
    for name in arguments.sets:
        if not arguments.copies_only:
            labels_of(name, arguments.data_dir, arguments.images, arguments.shares)
        if all(importlib.util.find_spec(package) for package in ("imagehash", "cleanvision")):
            copies_of(name, arguments.data_dir, arguments.images)


if __name__ == "__main__":
    main()
