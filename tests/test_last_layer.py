"""The recipe of the last layer of the weights in the box."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import recipes.last_layer as recipe
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.pictures.glyph import preprocess
from recipes.glyphs47 import to_picture
from recipes.last_layer import MAKERS, add_stroke, features, fit, lean, make_pictures, paint_by_hand, teach
from tests.small import likeness


def test_drawings_by_hand_are_found_again(demo_images: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(0)
    found = [preprocess(to_picture(paint_by_hand(image, rng))).status for image in demo_images[:30]]
    assert found.count("ok") >= 20


def test_each_picture_made_knows_its_image(demo_images: NDArray[np.uint8]) -> None:
    labels = np.array([0, 12] * 10)
    pixels, sources, by = make_pictures(demo_images[:20], labels, 60, np.random.default_rng(0))
    assert pixels.shape == (len(sources), 28, 28)
    assert len(by) == len(sources)
    assert pixels.dtype == np.uint8
    assert 0.65 < np.mean(labels[sources] == 0) < 0.95  # digits are more frequent
    assert likeness(pixels, demo_images[sources]) > likeness(pixels, demo_images[(sources + 7) % 20]) + 0.2


def test_targets_lean_to_the_digits_and_stay_probabilities() -> None:
    targets = torch.full((2, 47), 1 / 47)
    leaning = lean(targets, torch.tensor([1.0, 5.0]))
    assert torch.allclose(leaning[0], targets[0])
    assert torch.allclose(leaning[1, :10], torch.tensor(5 / (5 * 10 + 37)))
    assert torch.allclose(leaning.sum(1), torch.ones(2))


def test_some_zeros_get_a_slash_and_letters_stay() -> None:
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 8:20] = 255
    image[6:22, 10:18] = 0
    rng = np.random.default_rng(0)
    slashed = [not np.array_equal(add_stroke(image, 0, rng), image) for _ in range(200)]
    assert 10 < sum(slashed) < 60
    assert all(np.array_equal(add_stroke(image, 11, rng), image) for _ in range(200))


def test_a_layer_is_fitted_to_its_parts_and_stays_near_what_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 8, generator=generator)
    targets = nn.functional.one_hot((inputs[:, 0] > 0).long(), 3).float()
    layer = nn.Linear(8, 3)
    before = layer.weight.detach().clone()
    fit(layer, {"emnist": (inputs, targets)})
    assert (layer(inputs).argmax(1) == targets.argmax(1)).float().mean() > 0.95
    # What tells nothing of the target hardly changes.
    change = (layer.weight.detach() - before).abs()
    assert change[:, 0].max() > 3 * change[:, 1:].max()


def test_features_are_what_the_last_layer_sees(demo_images: NDArray[np.uint8]) -> None:
    model = EnhancedGlyphCNN(47, use_residual=False).eval()
    images = torch.from_numpy(demo_images[:5])[:, None]
    with torch.inference_mode():
        logits = model(images)
        assert torch.allclose(model.classifier(features(model, images)), logits, atol=1e-5)
    targets = teach([model, model], images, torch.arange(5))
    assert torch.allclose(targets.sum(1), torch.ones(5))
    assert targets.argmax(1).tolist() == list(range(5))  # two fifths of the target are the label


def test_the_makers_shares_are_of_one_whole() -> None:
    assert abs(sum(maker.share for maker in MAKERS) - 1) < 1e-9
    assert abs(sum(recipe.SHARES.values()) - 1) < 1e-9
