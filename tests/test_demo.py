"""The demo set: the same every time, balanced, legible, and never the same image in training and test."""

import importlib.util
import time
from importlib.machinery import ModuleSpec

import pytest
import torch
from torch import Tensor

import glyphs.data.demo
import glyphs.data.loaders
from glyphs.core.errors import DataError
from glyphs.data.demo import DEMO_CLASSES, render_demo
from glyphs.data.emnist import CLASS_NAMES
from glyphs.data.loaders import get_test_loader
from tests.conftest import assert_upright, refused

pytestmark = pytest.mark.slow  # drawing the set is

Demo = dict[str, tuple[Tensor, Tensor]]


def test_same_every_time_and_made_in_seconds(demo_data: Demo) -> None:
    torch.manual_seed(123)  # the global generator must not matter
    started = time.process_time()
    images, labels = render_demo("test")
    assert time.process_time() - started < 15
    assert torch.equal(images, demo_data["test"][0])
    assert torch.equal(labels, demo_data["test"][1])


def test_has_the_47_classes_of_balanced() -> None:
    assert list(DEMO_CLASSES) == CLASS_NAMES["balanced"]
    assert len(DEMO_CLASSES) == 47


@pytest.mark.parametrize(("part", "per_class"), [("train", 200), ("test", 40)])
def test_balanced_white_ink_on_black(demo_data: Demo, part: str, per_class: int) -> None:
    images, labels = demo_data[part]
    assert images.shape == (47 * per_class, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.bincount(labels).tolist() == [per_class] * 47
    assert (images.flatten(1).amax(1) > 150).all()  # no image is blank
    share_of_ink = (images > 127).flatten(1).float().mean(1)
    assert (share_of_ink > 0.01).all()
    assert share_of_ink.mean() < 0.4
    assert images[:, 0, [0, 0, 27, 27], [0, 27, 0, 27]].float().mean() < 25  # the corners are paper


def test_characters_stand_upright(demo_data: Demo) -> None:
    assert_upright(*demo_data["train"], DEMO_CLASSES)


def test_no_image_repeats_within_or_across_parts(demo_data: Demo) -> None:
    images = torch.cat([demo_data["train"][0], demo_data["test"][0]])
    assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_reached_through_the_configuration(demo_data: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs.data.loaders, "render_demo", demo_data.__getitem__)
    loader, names = get_test_loader({"dataset": "demo"})
    assert names == list(DEMO_CLASSES)
    assert torch.equal(loader.images, demo_data["test"][0])


def test_missing_fonts_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing(name: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find_nothing)
    glyphs.data.demo.font_folder.cache_clear()
    with refused(DataError, "pip install matplotlib"):
        render_demo("test")
