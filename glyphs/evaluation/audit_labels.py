"""Which labels are wrong: confident learning (arXiv 1911.00068) by cleanlab, on answers for images not trained on.

Cross-validation does without the network that is to be trained: histograms of gradients (Dalal and Triggs, CVPR 2005)
and one hidden layer find nearly as many planted errors as the light network does, in a fifth of its time; docs/AUDIT.md
has the figures.
"""

import importlib.util
import json
import math
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from glyphs.core.arrays import Probabilities
from glyphs.core.errors import GlyphError
from glyphs.core.files import explain_write_error, replacing
from glyphs.core.progress import progress
from glyphs.core.randomness import address, seed_everything

ORIENTATIONS = 8
SIDE_DESCRIBED = 28  # pixels
ROWS_DESCRIBED = 2048  # images at a time
HIDDEN = 512
EPOCHS = 10
BATCH_ROWS = 256
RATE = 2e-3
LEAST_PAIR = 2  # images whose labels mix up two classes, from which the pair is listed


class LabelIssues(NamedTuple):
    """What confident learning says of N labels.

    wrong : bool [N].  suggested : int64 [N], the likeliest class.  scores : float64 [N], from 0 to 1, how improbable
        the given label is.  share, low, high : the estimated share of wrong labels and its 95 % interval, which covers
        the choice of images and not the error of the method.  pairs : given class, likely class, images; most first.
    """

    wrong: NDArray[np.bool_]
    suggested: NDArray[np.int64]
    scores: NDArray[np.float64]
    share: float
    low: float
    high: float
    pairs: list[tuple[int, int, int]]


def require_cleanlab() -> None:
    """Raise GlyphError where the optional package is missing: before work that needs it."""
    if importlib.util.find_spec("cleanlab") is None:
        raise GlyphError("finding wrong labels needs cleanlab, which is not installed: pip install cleanlab")


def judge_labels(labels: NDArray[np.int64], probabilities: Probabilities) -> LabelIssues:
    """Confident learning on the answers of models that did not see the images.

    Parameters
    ----------
    labels : int64 [N], the given ones.
    probabilities : [N, C].
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas and scikit-learn, which its user cannot mend
        from cleanlab.count import compute_confident_joint
        from cleanlab.filter import find_label_issues
    # What cleanlab divides by is a class's mean probability: a class without an image is left out.
    present, given = np.unique(labels, return_inverse=True)
    known = np.asarray(probabilities, np.float64)[:, present]
    known /= np.maximum(known.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    joint, confident = compute_confident_joint(given, known, calibrate=False, return_indices_of_off_diagonals=True)
    # As many as the confident joint counts, the least probable ones: its other ways list fewer planted errors.
    wrong = find_label_issues(given, known, filter_by="low_self_confidence", confident_joint=joint, n_jobs=1)
    scores = 1 - known[np.arange(len(given)), given]
    pairs = joint.copy()
    np.fill_diagonal(pairs, 0)
    order = np.argsort(-pairs, axis=None, kind="stable")
    listed = [
        (int(present[row]), int(present[column]), int(pairs[row, column]))
        for row, column in zip(*np.unravel_index(order[:20], pairs.shape), strict=True)
        if pairs[row, column] >= LEAST_PAIR
    ]
    low, high = wilson(len(confident), len(given))
    return LabelIssues(
        np.asarray(wrong, bool),
        present[known.argmax(axis=1)].astype(np.int64),
        scores,
        len(confident) / len(given),
        low,
        high,
        listed,
    )


def wilson(count: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    z = 1.959964
    middle = (count + z * z / 2) / (n + z * z)
    reach = z / (n + z * z) * math.sqrt(count * (n - count) / n + z * z / 4)
    return middle - reach, middle + reach


# ---- Cross-validation ----


def gradients_of(images: Tensor) -> Tensor:
    """Histograms of gradients in cells of two sizes, for images uint8 [N, C, H, W]: float32 [N, F], of length 1."""
    return torch.cat([_gradients_of(rows) for rows in torch.split(images, ROWS_DESCRIBED)])


def _gradients_of(images: Tensor) -> Tensor:
    planes = F.interpolate(images.float() / 255, (SIDE_DESCRIBED, SIDE_DESCRIBED), mode="area")
    planes = F.avg_pool2d(F.pad(planes, (1, 1, 1, 1)), 3, 1)
    down = F.pad(planes[:, :, 2:] - planes[:, :, :-2], (0, 0, 1, 1))
    across = F.pad(planes[:, :, :, 2:] - planes[:, :, :, :-2], (1, 1))
    angle = torch.atan2(down, across) * (ORIENTATIONS / (2 * math.pi))
    length = (down.square() + across.square()).sqrt()
    half = ORIENTATIONS / 2
    histograms = torch.cat(
        [
            length * (1 - ((angle - each + half) % ORIENTATIONS - half).abs()).clamp(min=0)
            for each in range(ORIENTATIONS)
        ],
        dim=1,
    )
    cells = [F.avg_pool2d(histograms, 4, 4), F.avg_pool2d(histograms, 8, 4, 2)]
    return F.normalize(torch.cat([each.flatten(1) for each in cells], dim=1).sqrt(), dim=1)


def cross_validate(
    images: Tensor,
    labels: Tensor,
    groups: NDArray[np.int64],
    classes: int,
    folds: int,
    seed: int,
    folder: Path | None,
    fingerprint: str,
) -> Probabilities:
    """Each image's class probabilities by a classifier that saw neither it nor its copies: float32 [N, C].

    Parameters
    ----------
    images, labels : uint8 [N, C, H, W]; int64 [N].
    groups : int64 [N], equal for copies, which stay together.
    folder : where each fold is kept when it is done, for an audit that was interrupted; None to keep none.
    fingerprint : of the images and labels: what was kept of others is done again.
    """
    features = gradients_of(images)
    features = (features - features.mean(dim=0)) / features.std().clamp(min=1e-6)
    answers = np.zeros((len(labels), classes), np.float32)
    fold_of = deal(labels.numpy(), groups, folds, seed)
    with progress(total=folds * EPOCHS, desc="cross-validation", unit="epoch") as bar:
        for fold in range(folds):
            held_out = torch.from_numpy(fold_of == fold)
            if not bool(held_out.any()):
                bar.update(EPOCHS)
                continue
            path = None if folder is None else folder / f"fold{fold + 1}of{folds}.npz"
            known = None if path is None else read_fold(path, fingerprint)
            if known is None:
                rest = ~held_out
                seed_everything(address(seed, "audit", fold))
                classifier = make_classifier(features.shape[1], classes)
                for _ in train_classifier(classifier, features[rest], labels[rest]):
                    bar.update()
                with torch.inference_mode():
                    known = torch.cat(
                        [classifier(rows).softmax(1) for rows in torch.split(features[held_out], 4096)]
                    ).numpy()
                if path is not None:
                    with explain_write_error(path):
                        path.parent.mkdir(parents=True, exist_ok=True)
                    with replacing(path) as file:
                        np.savez(file, probabilities=known, fingerprint=np.array(json.dumps(fingerprint)))
            else:
                bar.update(EPOCHS)
            answers[held_out.numpy()] = known
    return answers


def deal(labels: NDArray[np.int64], groups: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each image: int64 [N].  Classes are spread evenly; what `groups` holds together stays together."""
    leaders, of_group = np.unique(groups, return_inverse=True)
    shuffled = np.random.default_rng(address(seed, "folds")).permutation(len(leaders))
    order = shuffled[np.argsort(labels[leaders[shuffled]], kind="stable")]
    fold_of_group = np.empty(len(leaders), np.int64)
    fold_of_group[order] = np.arange(len(leaders)) % folds
    return np.asarray(fold_of_group[of_group], dtype=np.int64)


def read_fold(path: Path, fingerprint: str) -> NDArray[np.float32] | None:
    """What an interrupted audit of the same images kept of a fold; None where it did not come so far."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            same = str(kept["fingerprint"]) == json.dumps(fingerprint)
            return np.asarray(kept["probabilities"], np.float32) if same else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def make_classifier(features: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(0.1),
        nn.Linear(features, HIDDEN),
        nn.BatchNorm1d(HIDDEN),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(HIDDEN, classes),
    )


def train_classifier(classifier: nn.Sequential, features: Tensor, labels: Tensor) -> Iterator[int]:
    """Train a classifier, and say the number of each epoch that is done; it is then in evaluation mode."""
    steps = max(1, len(labels) // BATCH_ROWS)
    optimizer = torch.optim.AdamW(classifier.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * steps)
    for epoch in range(EPOCHS):
        classifier.train()
        for rows in torch.randperm(len(labels)).tensor_split(steps):
            optimizer.zero_grad()
            F.cross_entropy(classifier(features[rows]), labels[rows], label_smoothing=0.05).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        classifier.eval()
        yield epoch
