"""The recipe of the weights in the box: what it makes of EMNIST's images and of pictures."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from glyphs.pictures.glyph import preprocess
from recipes.glyphs47 import (
    Prepared,
    cell,
    distort,
    draw_picture,
    make_pictures,
    paint,
    scan,
    smooth,
    thin,
    to_picture,
    view,
)
from tests.small import likeness


def test_strokes_become_a_pixel_wide_and_stay_whole() -> None:
    ring = np.hypot(*(np.indices((41, 41)) - 20))
    mask = (ring > 9) & (ring < 16)
    thinned = thin(mask)
    assert ndimage.label(thinned, np.ones((3, 3)))[1] == 1
    assert ndimage.label(~thinned)[1] == 2  # within and around
    assert not ndimage.binary_erosion(thinned, np.ones((2, 2))).any()
    assert (thinned <= mask).all()


@pytest.mark.parametrize("maker", [paint, cell, scan])
def test_pictures_made_of_images_are_found_again(maker: object, demo_images: NDArray[np.uint8]) -> None:
    assert callable(maker)
    rng = np.random.default_rng(0)
    pages = [maker(image, rng) for image in demo_images[:30]]
    found = [preprocess(to_picture(page) if isinstance(page, np.ndarray) else page) for page in pages]
    assert sum(glyph.status == "ok" for glyph in found) >= 20


def test_each_picture_made_knows_its_image(demo_images: NDArray[np.uint8]) -> None:
    pixels, sources = make_pictures(demo_images[:20], np.random.default_rng(0))
    assert pixels.shape == (len(sources), 28, 28)
    assert pixels.dtype == np.uint8
    assert likeness(pixels, demo_images[sources]) > likeness(pixels, demo_images[(sources + 7) % 20]) + 0.2


def test_views_of_a_picture_are_drawn_by_the_generator_alone(demo_images: NDArray[np.uint8]) -> None:
    grey = (255 - np.kron(demo_images[0], np.ones((2, 2), np.uint8))).astype(np.float32) / np.float32(255)
    first, again = (view(grey, "photos", np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.dtype == np.float32
    prepared = Prepared(None, [demo_images[0]], 3)
    assert np.array_equal(draw_picture(prepared, np.random.default_rng(0)), demo_images[0])


def test_distortion_leaves_images_and_targets_what_they_are(demo_images: NDArray[np.uint8]) -> None:
    images = torch.from_numpy(demo_images[:16])[:, None]
    out = distort(images, torch.full((16,), 0.5), torch.Generator().manual_seed(0))
    assert out.shape == images.shape
    assert out.min() >= -1e-6
    assert out.max() <= 1 + 1e-6
    targets = smooth(torch.tensor([0, 2]), 0.3, 3)
    assert torch.allclose(targets, torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]))
