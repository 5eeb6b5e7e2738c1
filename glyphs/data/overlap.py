"""Whether the images that a model is measured on may be among those that it was trained on."""

from collections.abc import Mapping
from typing import Any

from glyphs.config import Config

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
