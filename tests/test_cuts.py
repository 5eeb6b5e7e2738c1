"""Wrong cuts: lines made to tell them by, the network that does, and what comes of its answer."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.made_lines import KEPT, NOBODY, MadeLine, load_characters, make_line, measure, overlaps, tell_apart
from glyphs.core.errors import CheckpointError
from glyphs.pictures.decode import to_colour
from glyphs.pictures.lines import find_lines
from glyphs.pictures.morphology import components_of
from glyphs.reading import cuts, lattice
from glyphs.reading.lattice import lattice_of
from glyphs.reading.predictor import GlyphPredictor
from glyphs.reading.reader import read_page
from recipes.cuts import CutNet, fit
from tests.conftest import ROOT
from tests.test_reader import write

TOUCHING_PRINT = {"KITTEN": -2, "ENVY": -1, "BUTTON": -2}  # pixels between the letters


def made(touching: float) -> MadeLine:
    """A line of rings and bars, whose strokes end softly."""
    y, x = np.indices((28, 28)) - 13.5
    ring = np.clip(255 * (3 - abs(np.hypot(x, y) - 9)), 0, 255).astype(np.uint8)
    bar = np.clip(255 * (3 - abs(x)) * (abs(y) < 11), 0, 255).astype(np.uint8)
    return make_line(np.random.default_rng(1), {"o": ring[None], "k": bar[None]}, "okko ok", touching, height=24)


@pytest.mark.parametrize(("touching", "parts"), [(0.0, 6), (1.0, 2)])
def test_made_characters_touch_as_they_are_asked_to(touching: float, parts: int) -> None:
    line = made(touching)
    dark = np.asarray(line.picture.convert("L")) < 128
    assert len(components_of(dark).places) == parts
    assert set(np.unique(line.owners).tolist()) == {NOBODY, 0, 1, 2, 3, 4, 5}


def test_the_right_cuts_are_among_the_candidates() -> None:
    line = made(0.0)
    page = find_lines(to_colour(line.picture))
    best = dict.fromkeys(range(6), 0.0)
    for each in page.lines:
        for owner, common in overlaps(line.owners, page, lattice_of(each)).values():
            best[owner] = max(best[owner], common)
    assert min(best.values()) > 0.8


def test_numpy_computes_what_the_recipe_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    seen = np.random.default_rng(0).integers(0, 256, (256, 2, 32, 32), np.uint8)
    bright = seen[:, 0].mean(axis=(1, 2))
    network = fit(seen, (bright > np.median(bright)).astype(np.float32), epochs=1)
    assert isinstance(network, CutNet)
    monkeypatch.setattr(cuts, "load_weights", network.weights)
    with torch.inference_mode():
        expected = network(torch.from_numpy(seen).float() / 255).numpy()
    np.testing.assert_allclose(cuts.character_odds(seen), expected, atol=1e-4)


def test_touching_letters_are_read_by_the_answer_on_their_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = GlyphPredictor(ROOT / "pretrained" / "glyphs47.pth", "cpu")

    def wrong() -> int:
        texts = {word: predictor.read(write([word], spacing=gap)).text or "" for word, gap in TOUCHING_PRINT.items()}
        return sum(text.upper() != word for word, text in texts.items())

    assert wrong() == 0
    monkeypatch.setattr(lattice, "WRONG_CUT", 0.0)
    assert wrong() > 1


def test_letters_that_it_has_not_seen_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    page = find_lines(to_colour(write(["MIN"])))
    judged = 0

    def count(views: NDArray[np.uint8]) -> NDArray[np.float64]:
        nonlocal judged
        judged += len(views)
        return np.zeros(len(views))

    def network(images: Iterable[object]) -> NDArray[np.float64]:
        return np.array([[0.9, 0.1] for _ in images])

    monkeypatch.setattr(lattice, "character_odds", count)
    assert read_page(page, network, "ШЖ")
    assert not judged
    assert read_page(page, network, "MN")
    assert judged


def test_weights_that_cannot_be_read_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "pretrained_folder", lambda: tmp_path)
    path = tmp_path / "cuts.npz"
    whole = (ROOT / "pretrained" / "cuts.npz").read_bytes()
    for content in (None, b"", whole[:1000], whole[:5000] + b"x" + whole[5001:]):
        if content is not None:
            path.write_bytes(content)
        cuts.load_weights.cache_clear()
        with pytest.raises(CheckpointError, match=r"cuts\.npz: .*install"):
            cuts.load_weights()
    cuts.load_weights.cache_clear()


def test_the_area_under_the_curve() -> None:
    odds, right = np.array([1.0, 2.0, 3.0, 4.0]), np.array([False, True, False, True])
    assert tell_apart(odds, right) == (0.75, 0.5)


def test_wrong_cuts_are_told(data_dir: Path) -> None:
    predictor = GlyphPredictor(ROOT / "pretrained" / "glyphs47.pth", "cpu")
    counts, judged = measure(predictor, load_characters(data_dir, KEPT), touching=0.2, lines=6, seed=9)
    odds, common = np.array(judged).T
    assert tell_apart(odds, common > 0.8)[0] > 0.95
    assert counts.edits < 0.35 * counts.characters
