"""A model that may have been trained on the test images is not measured without a word."""

from typing import Any

import pytest

from glyphs.config import Config
from glyphs.data.overlap import overlap


@pytest.mark.parametrize(
    ("trained_with", "settings", "word"),
    [
        ({"dataset": "emnist", "emnist_split": "bymerge"}, {"emnist_split": "balanced"}, "--split bymerge"),
        ({"dataset": "emnist", "emnist_split": "bymerge"}, {"emnist_split": "bymerge"}, None),
        ({"dataset": "emnist", "emnist_split": "letters"}, {"emnist_split": "digits"}, None),
        ({"dataset": "emnist", "emnist_split": "mnist"}, {"emnist_split": "digits"}, "--split mnist"),
        ({"dataset": "demo", "emnist_split": "letters"}, {"emnist_split": "balanced"}, None),
        ({"dataset": "folder", "seed": 1}, {"dataset": "folder"}, "--seed 1"),
        ({"dataset": "folder", "seed": 42}, {"dataset": "folder"}, None),
        ({}, {}, None),
    ],
)
def test_which_models_may_have_seen_the_test_images(
    trained_with: dict[str, Any], settings: dict[str, Any], word: str | None
) -> None:
    words = overlap(trained_with, Config(**settings))
    assert (words is None) if word is None else (words is not None and word in words)
