"""Morphology by halving: what SciPy answers, at a speed that does not depend on the rectangle."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from glyphs.arrays import Mask
from glyphs.pictures.grid import sheared_rows
from glyphs.pictures.morphology import closing, dilate, erode, opening

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
