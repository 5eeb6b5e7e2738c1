"""Which images are held out: EMNIST's by exact shares of each class, pictures of a folder by their contents."""

import torch
from torch import Tensor

from glyphs.core.randomness import address


def stratified_split(labels: Tensor, index: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `count` entries of the index at random, each class in proportion; return them and the others, in order.

    Every entry gets a place between 0 and 1 within its class, evenly spaced in random order; the `count` lowest
    places are drawn.  A class of one or two is never drawn from while `count` is below a quarter of all.
    """
    generator = torch.Generator().manual_seed(address(seed, "split"))
    shuffled = torch.randperm(len(index), generator=generator)
    classes = labels.cpu()[index[shuffled]]
    order = classes.argsort(stable=True)
    shuffled, classes = shuffled[order], classes[order]
    sizes = torch.bincount(classes)
    starts = sizes.cumsum(0) - sizes
    place = (torch.arange(len(index)) - starts[classes] + 0.5) / sizes[classes]
    drawn = shuffled[place.argsort(stable=True)]
    return index[drawn[:count].sort().values], index[drawn[count:].sort().values]


def hold_out(
    index: Tensor, labels: Tensor, contents: Tensor, share: float, seed: int, part: str
) -> tuple[Tensor, Tensor]:
    """Divide the entries of an index into those held out and the others, both in order.

    Whether a picture is held out follows from its content, the seed and the name of the part alone: copies stay
    together, and no picture moves because others come or go.  The share is thus met only on average.  There are two
    exceptions: a class keeps one picture, with its copies, where it would have none left; and where none at all would
    be held out, one is.

    Parameters
    ----------
    index : int64 [N], places of images.
    labels, contents : int64 [M], of all images.
    """
    labels, drawn = labels[index], contents[index]
    different, which = drawn.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    chances = torch.tensor([address(seed, part, content) for content in different.tolist()], dtype=torch.int64)[which]
    highest = torch.zeros(int(labels.max()) + 1, dtype=torch.int64).scatter_reduce(0, labels, chances, "amax")
    free = chances < highest[labels]  # all but each class's last
    held_out = free & (chances < int(share * 2**63))
    if free.any() and not held_out.any():
        held_out = chances == chances[free].min()
    return index[held_out], index[~held_out]
