"""The audit: every check over all images of a data set, and what they find, most suspicious first."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from glyphs.core.text import heading, one_line, table
from glyphs.data.demo import DEMO_CLASSES, FONTS, draw_master
from glyphs.data.overlap import marks
from glyphs.evaluation.audit_labels import LabelIssues
from glyphs.evaluation.audit_pictures import (
    CELLS,
    MOST_ODD,
    compare_within_classes,
    descriptors_of,
    find_oddities,
    groups_of,
    near_pairs,
)
from glyphs.evaluation.auditset import AuditSet, Suspect

FEW_TO_TRAIN_ON = 20  # images of a class to train on, below which it is named
LEAST_SHARED = 10  # classes that are Latin characters, from which it is said whether all pictures are transposed
LISTED_CLASSES = 12


class Found(NamedTuple):
    """What the checks without a model found.

    suspects : as they came.  groups : int64 [N], equal for copies and near copies.  lines : of the summary.
    """

    suspects: list[Suspect]
    groups: NDArray[np.int64]
    lines: list[str]


def check_pictures(images: AuditSet) -> Found:
    """All that needs no model."""
    names = images.class_names
    suspects: list[Suspect] = []
    look = find_oddities(images.pictures)
    descriptors = descriptors_of(images.pictures)
    nearest = compare_within_classes(descriptors, images.labels)
    groups = find_copies(images, descriptors, nearest.reach, look.blank)

    counts = Counter[str]()
    for place, leader in enumerate(groups.tolist()):
        if leader == place:
            continue
        distance = float((descriptors[place] - descriptors[leader]).norm())
        kind = "copy" if distance < 1e-6 else "near copy"
        counts[kind] += 1
        reason = f"{kind} of {images.files[leader]}"
        if images.parts[place] != images.parts[leader]:
            counts[f"{kind}, across"] += 1
            reason += f" ({images.parts[leader]})"
        if images.labels[place] != images.labels[leader]:
            counts[f"{kind}, labels"] += 1
            reason += f", which is labelled {one_line(names[int(images.labels[leader])])}"
        suspects.append(Suspect(place, None, max(0.0, 1 - distance), reason))
    # Both kinds of an oddity that many pictures have are usual in this set.
    light_is_rare = bool(look.light.float().mean() < 0.5)
    odd = {
        "blank": look.blank,
        "cut": look.cut,
        "inverted": (look.light if light_is_rare else ~look.light) & ~look.blank,
    }
    lines = []
    for reason, flags in odd.items():
        places = flags.nonzero()[:, 0].tolist()
        if reason != "blank" and len(places) > MOST_ODD * len(images):
            lines.append(f"{reason}: {len(places):,} pictures, so many that it is usual here; none is listed")
            continue
        lines.append(f"{reason}: {len(places):,} pictures")
        suspects += [Suspect(place, None, 1.0, reason) for place in places]
    turned = nearest.transposed.nonzero()[:, 0].tolist()
    suspects += [Suspect(place, None, float(nearest.transposed[place]), "transposed") for place in turned]
    lines.append(f"transposed: {len(turned):,} pictures")
    if all_transposed(descriptors, images):
        lines.append("all pictures seem to be transposed: rows and columns are exchanged, as in the files of EMNIST")

    parts = Counter(images.parts)
    head = [
        f"{len(images):,} images of {len(names)} classes: {parts['train']:,} to train on, {parts['test']:,} to test "
        f"on; {len(images.refused):,} pictures refused",
        few_images(images),
        *(
            f"{kind}: {counts[kind]:,} ({counts[f'{kind}, across']:,} across parts, {counts[f'{kind}, labels']:,} "
            "under another label)"
            for kind in ("copy", "near copy")
        ),
    ]
    return Found(suspects, groups, head + lines)


def few_images(images: AuditSet) -> str:
    counts = Counter(int(label) for label, part in zip(images.labels, images.parts, strict=True) if part == "train")
    few = [label for label in range(len(images.class_names)) if counts[label] < FEW_TO_TRAIN_ON]
    if not few:
        return f"classes with fewer than {FEW_TO_TRAIN_ON} images to train on: none"
    shown = ", ".join(f"{one_line(images.class_names[label])} ({counts[label]})" for label in few[:LISTED_CLASSES])
    more = ", ..." if len(few) > LISTED_CLASSES else ""
    return f"classes with fewer than {FEW_TO_TRAIN_ON} images to train on: {len(few)}: {shown}{more}"


def find_copies(images: AuditSet, descriptors: Tensor, reach: Tensor, blank: Tensor) -> NDArray[np.int64]:
    """For each image the first of those that it is a copy or a near copy of, or itself: int64 [N]."""
    first: dict[bytes, int] = {}
    pairs = []
    leaders = []
    for place, mark in enumerate(marks(images.pictures)):
        if (leader := first.setdefault(mark, place)) != place:
            pairs.append((leader, place, 0.0))
        elif not blank[place]:
            leaders.append(place)
    places = torch.tensor(leaders, dtype=torch.int64)
    near = near_pairs(descriptors[places], reach[places])
    pairs += [(leaders[one], leaders[other], distance) for one, other, distance in near]
    return groups_of(len(images), pairs)


def all_transposed(descriptors: Tensor, images: AuditSet) -> bool:
    """Whether the classes' mean pictures look more like printed characters that are transposed than upright ones."""
    shared = [label for label, name in enumerate(images.class_names) if len(name) == 1 and name in DEMO_CLASSES]
    if len(shared) < LEAST_SHARED:
        return False
    wins = 0
    for label in shared:
        mean = descriptors[images.labels == label].mean(dim=0)
        fonts = torch.stack([draw_master(font, images.class_names[label]) for font in FONTS])[:, None]
        printed = descriptors_of(fonts).mean(dim=0)
        turned = printed.view(CELLS, CELLS).T.flatten()
        wins += 1 if mean @ turned > mean @ printed else -1
    return wins > 0


def check_labels(images: AuditSet, places: Tensor, issues: LabelIssues) -> tuple[list[Suspect], list[str]]:
    """What confident learning says of the images at these places, int64 [N]: suspects, and lines of the summary."""
    suspects = [
        Suspect(place, int(suggested), float(score), "label")
        for place, wrong, suggested, score in zip(
            places.tolist(), issues.wrong, issues.suggested, issues.scores, strict=True
        )
        if wrong and suggested != images.labels[place]
    ]
    names = [one_line(name) for name in images.class_names]
    lines = [
        f"labels: {issues.share:.2%} of {len(places):,} images seem to be of another class (95 % interval "
        f"{issues.low:.2%} to {issues.high:.2%}, of the choice of images alone); {len(suspects):,} are listed"
    ]
    if issues.pairs:
        lines += heading("Classes that the labels mix up")
        lines += table(
            "<<>", ["labelled", "likely", "images"], [[names[a], names[b], f"{n:,}"] for a, b, n in issues.pairs]
        )
    return suspects, lines


def merge_suspects(suspects: Sequence[Suspect]) -> list[Suspect]:
    """One for each image, with all reasons, most suspicious first."""
    merged: dict[int, Suspect] = {}
    for suspect in suspects:
        if (known := merged.get(suspect.place)) is not None:
            suspect = Suspect(
                suspect.place,
                suspect.suggested if known.suggested is None else known.suggested,
                max(suspect.score, known.score),
                f"{known.reason}; {suspect.reason}",
            )
        merged[suspect.place] = suspect
    return sorted(merged.values(), key=lambda each: (-each.score, each.place))
