"""What the arrays that go through the package are called."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]  # images [N, 1, 28, 28], or one of them, as EMNIST has them: white on black
Floats = NDArray[np.float32]  # a picture's brightness or its ink [H, W], from 0 to 1
Mask = NDArray[np.bool_]  # which pixels of a picture [H, W]
Points = NDArray[np.float64]  # x and y [N, 2], in pixels
Probabilities = NDArray[np.floating[Any]]  # of each class, for each image [N, C]
