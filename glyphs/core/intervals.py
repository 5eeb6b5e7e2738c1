"""How far chance moves a rate."""

from scipy.stats import binomtest


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a rate, `right` of n, in 0..1 (Wilson 1927), which holds near 0 and 1 too."""
    interval = binomtest(right, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
