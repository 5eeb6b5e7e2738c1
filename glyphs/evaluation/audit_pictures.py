"""What is odd about pictures without a model: copies and near copies; blank, cut, inverted and transposed ones.

Pictures are compared by descriptors: the ink within its bounding box, averaged to 14x14, as a vector of length 1.
Copies that were saved again, made smaller, lighter or moved lie near each other.  So do pictures of a plain stroke that
were never copied: what is near is measured by how near the pictures of a class lie.  docs/AUDIT.md has the figures,
beside perceptual hashes.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from glyphs.core.progress import progress

CELLS = 14  # a side of the descriptor
NEAR = 0.1  # distance of descriptors above which two pictures are no near copies
CLOSE = 0.4  # likewise, as a share of the usual distance from a picture of the class to its fourth nearest
BLOCK = 1024  # pictures compared at a time
ROWS_COMPARED = 4096  # pictures looked at, at a time
INK = 64  # of 255: brightness off the paper's from which a pixel is ink
BLANK = 32  # of 255: a picture whose brightness varies by less shows nothing
EDGE_SHARE = (
    0.06,
    0.7,
)  # share of a side that ink takes up along it where a stroke is cut: below it grazes, above it is a rule
MOST_ODD = 0.2  # share of pictures with an oddity above which it is usual in the set, and no oddity
LEAST_COMPARED = 6  # pictures of a class, below which nothing is said of how near they lie
TURNED = 0.6  # a picture is transposed where so turned it is that much nearer to another of its class


class Oddities(NamedTuple):
    """What is odd about each of N pictures; all bool [N].  `light` is a light ink on a dark paper."""

    blank: Tensor
    cut: Tensor
    light: Tensor


def find_oddities(pictures: Tensor) -> Oddities:
    """Judge pictures by themselves; uint8 [N, 1, S, S]."""
    looks = [_find_oddities(rows) for rows in torch.split(pictures, ROWS_COMPARED)]
    return Oddities(*(torch.cat(each) for each in zip(*looks, strict=True)))


def _find_oddities(pictures: Tensor) -> Oddities:
    grey = pictures[:, 0].float()
    side = grey.shape[-1]
    paper = grey.flatten(1).median(dim=1).values[:, None, None]
    off = (grey - paper).abs()
    peak = off.flatten(1).quantile(0.99, dim=1)
    strong = off > (peak / 2).clamp(min=INK)[:, None, None]
    edges = torch.stack([strong[:, 0], strong[:, -1], strong[:, :, 0], strong[:, :, -1]], dim=1)
    shares = edges.float().mean(dim=2)
    least, most = EDGE_SHARE
    cut = ((shares > max(least, 1.5 / side)) & (shares < most)).any(dim=1)
    ink = ((grey - paper) * strong).flatten(1).sum(dim=1)
    blank = grey.flatten(1).amax(dim=1) - grey.flatten(1).amin(dim=1) < BLANK
    return Oddities(blank, cut & ~blank, (ink > 0) & ~blank)


def descriptors_of(pictures: Tensor) -> Tensor:
    """The descriptors of pictures, uint8 [N, 1, S, S]: float32 [N, 196], of length 1, or 0 where there is no ink."""
    return torch.cat([_descriptors_of(rows) for rows in torch.split(pictures, ROWS_COMPARED)])


def _descriptors_of(pictures: Tensor) -> Tensor:
    grey = pictures.float()
    off = grey - grey.flatten(1).median(dim=1).values.view(-1, 1, 1, 1)
    # What stands out most from the paper is the ink, be it darker or lighter.
    sign = (off**3).flatten(1).sum(dim=1).sign().view(-1, 1, 1, 1)
    ink = F.avg_pool2d((off * sign).clamp(min=0), 3, 1, 1)
    strong = ink[:, 0] > ink.flatten(1).amax(dim=1).view(-1, 1, 1) / 3
    middles, halves = [], []
    for along in (1, 2):  # over rows: the extent in x
        line = strong.any(dim=along).float()
        size = line.shape[1]
        first, last = line.argmax(dim=1), size - 1 - line.flip(1).argmax(dim=1)
        middles.append((first + last + 1) / size - 1)
        halves.append((last - first + 1) / size)
    theta = torch.zeros(len(pictures), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.maximum(*halves)  # the shape stays: a 1 is not made as wide as an O
    theta[:, 0, 2], theta[:, 1, 2] = middles
    grid = F.affine_grid(theta, [len(pictures), 1, 2 * CELLS, 2 * CELLS], align_corners=False)
    box = F.avg_pool2d(F.grid_sample(ink, grid, align_corners=False), 2)
    return F.normalize(F.avg_pool2d(box, 3, 1, 1).flatten(1), dim=1)


def near_pairs(descriptors: Tensor, reach: Tensor) -> list[tuple[int, int, float]]:
    """All pairs of descriptors that are nearer than the reach of both, and their distance; in ascending order.

    No projection sets two vectors farther apart than they are: along the direction in which the descriptors differ
    most, each is compared only with those that lie near.
    """
    if len(descriptors) < 2:
        return []
    within = float(reach.max())
    middle = descriptors - descriptors.mean(dim=0)
    sample = middle[:: max(1, len(middle) // 5000)]
    axes = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -32:]
    seen = middle @ axes  # float32 [N, 32], nearer to each other than the descriptors are
    order = seen[:, -1].argsort(stable=True)
    seen, along = seen[order], seen[order, -1].contiguous()
    lengths = seen.square().sum(dim=1)
    ends = torch.searchsorted(along, along + within, right=True)
    found = []
    for start in progress(range(0, len(seen), BLOCK), desc="comparing", unit="block", delay=2):
        stop = min(start + BLOCK, len(seen))
        end = int(ends[stop - 1])
        squares = torch.addmm(lengths[start:end][None], seen[start:stop], seen[start:end].T, alpha=-2)
        squares += lengths[start:stop, None]
        rows, columns = (squares <= within**2 + 1e-4).nonzero(as_tuple=True)
        later = columns > rows
        one, other = order[rows[later] + start], order[columns[later] + start]
        distances = (descriptors[one] - descriptors[other]).norm(dim=1)
        for a, b, distance in zip(one.tolist(), other.tolist(), distances.tolist(), strict=True):
            if distance <= min(float(reach[a]), float(reach[b])):
                found.append((min(a, b), max(a, b), distance))
    return sorted(found)


class Nearest(NamedTuple):
    """How a picture lies among those of its class.

    reach : float32 [N], how near two pictures of its class must be to count as copies.
    transposed : float32 [N], from 0 to 1, how much nearer to its class it is with rows and columns exchanged; 0 where
        that may be chance.
    """

    reach: Tensor
    transposed: Tensor


def compare_within_classes(descriptors: Tensor, labels: Tensor) -> Nearest:
    reach = torch.full((len(labels),), NEAR)
    scores = torch.zeros(len(labels))
    turned = descriptors.view(-1, CELLS, CELLS).transpose(1, 2).flatten(1)
    for label in progress(labels.unique().tolist(), desc="comparing", unit="class", delay=2):  # type: ignore[no-untyped-call]
        places = (labels == label).nonzero()[:, 0]
        if len(places) < LEAST_COMPARED:
            continue
        own = descriptors[places]
        fourth = []
        for rows in torch.split(torch.arange(len(places)), BLOCK):
            itself = torch.arange(len(rows)), rows
            distances, distances_turned = (_distances(each, own) for each in (own[rows], turned[places[rows]]))
            distances[itself] = distances_turned[itself] = math.inf
            nearest = distances.topk(4, largest=False).values
            far, far_turned = nearest[:, 0], distances_turned.amin(dim=1)
            scores[places[rows]] = torch.where(far_turned < TURNED * far, 1 - far_turned / far, 0.0)
            fourth.append(nearest[:, 3])
        reach[places] = (CLOSE * torch.cat(fourth).median()).clamp(max=NEAR)
    return Nearest(reach, scores)


def _distances(some: Tensor, others: Tensor) -> Tensor:
    """float32 [N, M], between vectors of length 1."""
    return (2 - 2 * some @ others.T).clamp(min=0).sqrt()


def groups_of(count: int, pairs: list[tuple[int, int, float]]) -> NDArray[np.int64]:
    """For each of `count` pictures the lowest place among those that pairs connect it with: int64 [count]."""
    one, other = (np.array([pair[at] for pair in pairs], dtype=np.int64) for at in (0, 1))
    graph = coo_matrix((np.ones(len(pairs)), (one, other)), shape=(count, count))
    part = connected_components(graph, directed=False)[1]
    lowest = np.full(int(part.max()) + 1, count)
    np.minimum.at(lowest, part, np.arange(count))
    return np.asarray(lowest[part], dtype=np.int64)
