"""Morphology by halving: what SciPy answers, at a speed that does not depend on the rectangle."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from glyphs.core.arrays import Mask
from glyphs.pictures.grid import sheared_rows
from glyphs.pictures.morphology import closing, dilate, erode, framed, opening, run_lengths

Operation = Callable[[Mask, int, int], Mask]
OPERATIONS: dict[Operation, Callable[[Mask, NDArray[np.float64]], Mask]] = {
    dilate: ndimage.binary_dilation,
    erode: ndimage.binary_erosion,
    opening: ndimage.binary_opening,
    closing: ndimage.binary_closing,
}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_rectangles_of_any_size_do_what_scipy_does(operation: Operation) -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        mask = random.random(random.integers(1, 20, 2)) < random.uniform(0.1, 0.95)
        height, width = (int(side) for side in random.integers(1, 9, 2))
        expected = OPERATIONS[operation](mask, np.ones((height, width)))
        assert np.array_equal(operation(mask, height, width), expected)


def test_rows_are_moved_each_its_own_way() -> None:
    mask = np.random.default_rng(0).random((6, 9)) < 0.5
    shift = np.array([0, 0, 1, -2, 9, 13])
    expected = [np.roll(row, by) for row, by in zip(mask, shift, strict=True)]
    assert np.array_equal(sheared_rows(mask, shift), expected)


def test_a_frame_is_what_numpy_pads() -> None:
    picture = np.arange(6, dtype=np.float32).reshape(2, 3)
    wide = framed(picture, (1, 2), (0, 3))
    assert wide.dtype == picture.dtype
    assert np.array_equal(wide, np.pad(picture, ((1, 2), (0, 3))))


def test_runs_are_measured_along_either_axis() -> None:
    mask = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [0, 1, 1, 1]], bool)
    assert run_lengths(mask, 1).tolist() == [2, 1, 1, 1, 3]
    assert run_lengths(mask, 0).tolist() == [1, 3, 1, 3]
    assert run_lengths(mask & False, 0).size == 0
