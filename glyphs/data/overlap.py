"""Whether the images that a model is measured on may be among those that it was trained on."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from glyphs.core.config import Config

WITHOUT_LETTERS = ("digits", "mnist")


def overlap(trained_with: Mapping[str, Any], config: Config) -> str | None:
    """Why test images may flatter a model, as the end of a sentence that begins with it; None where they do not.

    Parameters
    ----------
    trained_with : the model's settings; empty where its file tells none.
    config : the settings that the test images are loaded with.
    """
    if trained_with.get("dataset") != config.dataset:
        return None
    trained, split = trained_with.get("emnist_split"), config.emnist_split
    disjoint = "letters" in (trained, split) and (trained in WITHOUT_LETTERS or split in WITHOUT_LETTERS)
    if config.dataset == "emnist" and trained != split and not disjoint:
        return (
            f"was trained on EMNIST {trained}, whose training images may be among the test images of {split}: "
            f"the figures may flatter it; --split {trained} measures it on images that were held out"
        )
    if config.dataset == "folder" and trained_with.get("seed") != config.seed:
        return (
            f"was trained with --seed {trained_with.get('seed')}, which holds out other pictures than {config.seed}: "
            "the figures may flatter it"
        )
    return None


def overlaps(trained_with: Mapping[str, Any], ancestors: Iterable[Mapping[str, Any]], config: Config) -> list[str]:
    """All reasons why test images may flatter a model, as `overlap` words them, and those of what it was made from.

    Parameters
    ----------
    ancestors : the settings of the models that it was fine-tuned from; empty where nobody knows them.
    """
    found = [overlap(trained_with, config)]
    for ancestor in ancestors:
        words = overlap(ancestor, config)
        if not ancestor:
            words = "was trained on nobody knows what, the test images perhaps: the figures may flatter it"
        found.append(words and f"was fine-tuned from a model that {words}")
    return list(dict.fromkeys(words for words in found if words))


def copies(train: Tensor, val: Tensor, test: Tensor) -> tuple[int, int]:
    """How many images of validation equal one of training, pixel by pixel, and how many of the test one of both.

    Parameters
    ----------
    train, val, test : uint8 [N, ...], of any N each.
    """
    known = set(marks(train))
    of_val = list(marks(val))
    in_val = sum(mark in known for mark in of_val)
    known.update(of_val)
    return in_val, sum(mark in known for mark in marks(test))


def marks(images: Tensor) -> Iterator[bytes]:
    """For each image 64 bits that tell it from others."""
    rows = images.flatten(1).cpu().contiguous().numpy()
    return (hashlib.blake2b(row, digest_size=8).digest() for row in rows)
