"""What happens at the steps of an epoch: numbers on the device, so that no step waits for it."""

from typing import NamedTuple

from torch import Tensor


class StepStats(NamedTuple):
    """What happened at one step, or, as float64 [steps], at many."""

    loss: Tensor  # the mean over the step's images
    correct: Tensor  # right answers
    images: Tensor
    gradient_norm: Tensor  # before it was clipped

    def summary(self) -> tuple[float, float, int]:
        """Of many steps: the mean loss of an image, the accuracy, and the number of images."""
        images = self.images.sum()
        return float((self.loss * self.images).sum() / images), float(self.correct.sum() / images), int(images)

    def first_bad(self, *, is_scaled: bool) -> int | None:
        """Of many steps: the first whose loss or gradient is not finite, None where there is none.

        With a gradient scaler (float16), a gradient that overflows is expected: it skips that step.
        """
        bad = ~self.loss.isfinite()
        if not is_scaled:
            bad |= ~self.gradient_norm.isfinite()
        return int(bad.nonzero()[0]) if bad.any() else None
