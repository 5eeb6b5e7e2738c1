"""A line's lattice: every run of neighbouring pieces is a candidate character; the best path through it is the text.

The costs weigh the network's probabilities against how a run of pieces looks.  The path is free, or that of a text
that an automaton knows (see glyphs.reading.automaton).
"""

import functools
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from glyphs.core.arrays import Bytes, Floats, Probabilities
from glyphs.models.runtime import Network
from glyphs.pictures.glyph import draw_ink
from glyphs.pictures.lines import Box, Line, Page, Piece, merge, union
from glyphs.pictures.morphology import framed
from glyphs.reading.automaton import Automaton
from glyphs.reading.cuts import character_odds, draw_candidate

# Costs are natural logarithms of probabilities, found on pictures that users of such programs tried.
SEEN_AT_ONCE = 1024  # candidates that are drawn before the networks see them
MOST_PIECES = 7  # of a character
WIDEST = 1.7  # a character of several pieces is no wider, in heights of its line, or its own
WIDE, WIDE_COST = 1.5, 4.0  # from this width in its own heights on, each further one costs so much
CUT_COST = 1.5  # of each cut through connected ink
JOIN_COST, JOIN_GAP_COST = 0.8, 8.0  # of joining separate parts, and for each height of paper between them
MARK_COST = 1.0  # of a full stop, a comma, a dash
OTHER_MARK_COST = 2.0  # more: of a mark that is another than its shape says, or that is dirt where a pattern has none
WRONG_CUT = 0.5  # times the logarithm of the probability that a candidate was cut rightly, for each of its pieces
SPACE_COST = 12.0  # of a space where there is no paper, and of none where it is twice as wide as the least space
BEAM = 2000  # states of an automaton that are followed from a place of the line: all of a pattern's
LEAST_PROBABILITY = 1e-4  # no character is thought to be less probable: the network is overconfident

# What the network takes for each other, more often on pictures than its probabilities say: so much of the others' is
# added to each one's.
LOOKALIKES, LOOKALIKE_SHARE = ("0Oo", "1IiLl", "2Zz", "5Ss", "6Gb", "8B", "9gq"), 0.3

# Marks; lengths are in heights of the line
MARK = 0.5  # what is smaller both ways is a full stop or a comma, if it is off the middle of its neighbours
SURE_MARK = 0.35  # what is smaller than this both ways is one in any case
COMMA, COMMA_WIDTH = 0.75, 0.3  # what is lower and narrower, and hangs from the feet of its neighbours, is a comma
BESIDE = 6  # neighbours on either side
DASH = 0.3  # what is lower than this and twice as wide is a dash
MARKS = frozenset(".,'-")


class Choice(NamedTuple):
    """A character on the best path.

    piece : its pieces made one.  probabilities : float [C], None for a mark.  only : the characters that it can be,
    None for all.  either_case : whether they may be written in their other case.
    """

    piece: Piece
    probabilities: Probabilities | None
    only: frozenset[str] | None = None
    either_case: bool = False


class Known(NamedTuple):
    """What the networks say of a candidate: its pieces as one, float [C], and what it costs that it may be none."""

    piece: Piece
    probabilities: Probabilities
    cost: float


Span = tuple[int, int]  # which of a line's pieces make a candidate: from which on, and up to which


@dataclass
class Lattice:
    """The candidates of a line: runs of its pieces that may be one character.

    Attributes
    ----------
    line : the line.
    scores : how well each makes one character, a logarithm; of one that the network has not seen, the most it can be.
    marks : those that are a full stop, a comma or a dash, which the network does not know.
    known : those that the network has seen.
    """

    line: Line
    scores: dict[Span, float]
    marks: set[Span]
    known: dict[Span, Known]

    @functools.cached_property
    def ink(self) -> Piece:
        """All of the line's pieces as one."""
        return merge(self.line.pieces)

    def has_seen(self, span: Span) -> bool:
        """Whether there is nothing left to learn of a candidate."""
        return span in self.known or span in self.marks

    def piece(self, span: Span) -> Piece:
        """A candidate's pieces made one."""
        run = self.line.pieces[slice(*span)]
        return run[0] if len(run) == 1 else merge(run)


def is_mark(line: Line, place: int) -> bool:
    """Whether a piece is a full stop, a comma or a dash, which the network does not know."""
    piece, height = line.pieces[place], line.height
    if any(other.part == piece.part for other in line.pieces[max(0, place - 1) : place + 2] if other is not piece):
        return False  # it was cut from something larger
    box = piece.box
    if max(box.height, box.width) < SURE_MARK * height or (box.height < DASH * height and box.width > 2 * box.height):
        return True
    # Many neighbours, so that descenders do not lower their feet.
    beside = [*line.pieces[max(0, place - BESIDE) : place], *line.pieces[place + 1 : place + 1 + BESIDE]]
    tall = [other.box for other in beside if other.box.height > MARK * height] or [box]
    feet = statistics.median(other.bottom for other in tall)
    middle = (statistics.median(other.top for other in tall) + feet) / 2
    if max(box.height, box.width) < MARK * height:
        return box.top >= middle or box.bottom <= middle
    low = box.top > middle + 0.1 * height and box.bottom > feet - 0.1 * height
    return low and box.height < COMMA * height and box.width < COMMA_WIDTH * height


def lattice_of(line: Line) -> Lattice:
    """A line's lattice, of which the network has seen nothing.

    Every single piece is a candidate, so that there is always a path.
    """
    lattice = Lattice(line, {}, set(), {})
    pieces = line.pieces
    for start, first in enumerate(pieces):
        if is_mark(line, start):
            lattice.marks.add((start, start + 1))
            lattice.scores[start, start + 1] = -MARK_COST
        else:
            lattice.scores[start, start + 1] = -shape_cost(line, start, start + 1, first.box)
        for stop in range(start + 2, min(start + MOST_PIECES, len(pieces)) + 1):
            run = pieces[start:stop]
            box = union([piece.box for piece in run])
            if first.cell is not None or run[-1].cell is not None or box.width > WIDEST * max(line.height, box.height):
                break
            lattice.scores[start, stop] = -shape_cost(line, start, stop, box)
    return lattice


def likeliest_paths(
    page: Page, lattices: Sequence[Lattice], network: Network, alike: NDArray[np.float64], *, judge_cuts: bool
) -> list[list[Span]]:
    """The likeliest way to read each line, of which the network sees no more than it takes to be sure of that.

    Where the best path leads through candidates that the network has not seen, those of all lines are shown to it in
    one batch, which can only lower their scores; the best path that it has seen all of is the best of all (lazy
    search: C. M. Dellin, S. S. Srinivasa: A unifying formalism for shortest path problems with expensive edge
    evaluations via lazy best-first search over paths with edge selectors, ICAPS 2016).  Of 7,756 candidates on pictures
    that users tried, it saw 2,338.
    """
    paths: list[list[Span]] = [[] for _ in lattices]
    open_lines = list(range(len(lattices)))
    while open_lines:
        unseen: list[tuple[Lattice, Span]] = []
        still_open = []
        for number in open_lines:
            lattice = lattices[number]
            paths[number] = best_path(lattice)
            if new := [(lattice, span) for span in paths[number] if not lattice.has_seen(span)]:
                unseen += new
                still_open.append(number)
        score_candidates(page, unseen, network, alike, judge_cuts=judge_cuts)
        open_lines = still_open
    return paths


def score_candidates(
    page: Page,
    candidates: Sequence[tuple[Lattice, Span]],
    network: Network,
    alike: NDArray[np.float64],
    *,
    judge_cuts: bool,
) -> None:
    """Let the network see candidates, so many at once, and score them.

    `judge_cuts`: whether that of cuts sees them, too; it knows Latin letters and digits.
    """
    if len(candidates) > SEEN_AT_ONCE:
        for start in range(0, len(candidates), SEEN_AT_ONCE):
            part = candidates[start : start + SEEN_AT_ONCE]
            score_candidates(page, part, network, alike, judge_cuts=judge_cuts)
        return
    if not candidates:
        return
    pieces = [lattice.piece(span) for lattice, span in candidates]
    seen = network(np.stack([draw_piece(page, piece) for piece in pieces])[:, None])
    best = (seen @ alike).max(axis=1).tolist()
    costs = cut_costs(candidates, pieces) if judge_cuts else [0.0] * len(pieces)
    for (lattice, span), piece, probabilities, probability, cost in zip(
        candidates, pieces, seen, best, costs, strict=True
    ):
        lattice.known[span] = Known(piece, probabilities, cost)
        # Counted once for each piece, so that ways of few characters are not favoured for that.
        lattice.scores[span] += (span[1] - span[0]) * (math.log(max(probability, LEAST_PROBABILITY)) - cost)


def cut_costs(candidates: Sequence[tuple[Lattice, Span]], pieces: Sequence[Piece]) -> list[float]:
    """What it costs candidates, whose pieces are given as one each, that they may be no characters."""
    places = zip(candidates, pieces, strict=True)
    views = [draw_candidate(piece, lattice.line.height, lattice.ink) for (lattice, _), piece in places]
    costs: list[float] = (WRONG_CUT * np.logaddexp(0, -character_odds(np.stack(views)))).tolist()
    return costs


def draw_piece(page: Page, piece: Piece) -> Bytes:
    """The piece in the form that the network knows, uint8 [28, 28]."""
    box, edge = piece.box, 3  # pixels: the soft edge of a stroke
    mask = framed(piece.mask, (edge, edge), (edge, edge))
    top, left = box.top - edge, box.left - edge
    rows = slice(max(0, top), min(page.ink.shape[0], box.bottom + edge))
    columns = slice(max(0, left), min(page.ink.shape[1], box.right + edge))
    ink: Floats = np.zeros(mask.shape, np.float32)
    ink[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = page.ink[rows, columns]
    # What is darker than paper beyond the piece's own pixels is its neighbours'.
    ink[~mask & (ink > page.floor)] = 0
    return draw_ink(ink, (slice(edge, edge + box.height), slice(edge, edge + box.width)), page.floor / 2)


def best_path(lattice: Lattice) -> list[Span]:
    """The best-scored path through a lattice, by dynamic programming over where a character ends."""
    count, scores = len(lattice.line.pieces), lattice.scores
    best: list[tuple[float, int]] = [(0.0, 0)] + [(-math.inf, 0)] * count
    for stop in range(1, count + 1):
        for start in range(max(0, stop - MOST_PIECES), stop):
            if (start, stop) in scores and (score := best[start][0] + scores[start, stop]) > best[stop][0]:
                best[stop] = (score, start)
    path = []
    stop = count
    while stop:
        path.append((best[stop][1], stop))
        stop = best[stop][1]
    return path[::-1]


def choice_of(
    line: Line, known: Mapping[Span, Known], start: int, stop: int, only: frozenset[str] | None = None
) -> Choice:
    if (start, stop) not in known:
        return Choice(line.pieces[start], None, only)
    piece, probabilities, _ = known[start, stop]
    return Choice(piece, probabilities, only)


def shape_cost(line: Line, start: int, stop: int, box: Box) -> float:
    """How unlike one character a run of pieces, in a box, is by its width, gaps and cuts."""
    run = line.pieces[start:stop]
    aspect = box.width / max(box.height, 0.6 * line.height)
    cost = WIDE_COST * max(0.0, aspect - WIDE)
    for one, other in itertools.pairwise(run):
        if one.part != other.part:
            gap = max(0, other.box.left - one.box.right) / line.height
            cost += JOIN_COST + JOIN_GAP_COST * gap
    if start and line.pieces[start - 1].part == run[0].part:
        cost += CUT_COST
    return cost


def share(probabilities: Probabilities, alike: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of which look-alikes have a share of each other's."""
    shared: NDArray[np.float64] = (1 - LOOKALIKE_SHARE) * probabilities + LOOKALIKE_SHARE * (alike @ probabilities)
    return shared


# ---- Texts that an automaton knows ----


class Arrivals(NamedTuple):
    """The states in which an automaton may be at one place of a line, each once, the likeliest first.

    states : int [M].  scores : float [M].  places, before : int [M], where each came from: which place, and which of
    the arrivals there.  spaced : bool [M], whether a space lies between.  passed : bool [M], whether what lies between
    is dirt.
    """

    states: NDArray[np.int64]
    scores: NDArray[np.float64]
    places: NDArray[np.int64]
    before: NDArray[np.int64]
    spaced: NDArray[np.bool_]
    passed: NDArray[np.bool_]


def matching_path(
    line: Line,
    known: Mapping[Span, Known],
    alike: NDArray[np.float64],
    names: Sequence[str],
    automaton: Automaton,
    gaps: Sequence[float],
) -> list[list[Choice]] | None:
    """The likeliest text that an automaton knows, as words of choices; None where the line can hold none.

    A mark that it has no place for is dirt, but stays in lines of listed words.  A sign that the network does not
    know, as the strokes of a date, may be any ink, at the price of one class among all.

    Parameters
    ----------
    gaps : the paper before each piece but the first, in widths of the least space.
    """
    fits = np.array([[stands_for(name, symbol, names, automaton) for name in names] for symbol in automaton.symbols])
    signs = np.array([bool(signs_of(symbol, names)) for symbol in automaton.symbols])
    space = np.array([" " in symbol for symbol in automaton.symbols])[automaton.symbol]
    zero = np.zeros(1, np.int64)
    found: list[list[Arrivals]] = [[] for _ in range(len(line.pieces) + 1)]
    found[0] = [Arrivals(zero + automaton.initial, np.zeros(1), zero, zero, zero > 0, zero > 0)]
    reached: list[Arrivals] = []
    for start, arrivals in enumerate(found):
        if not arrivals:
            return None
        here = likeliest(arrivals)
        reached.append(here)
        index, states = followers(automaton, here.states)
        scores = here.scores[index]
        spaced = np.zeros(len(index), bool)
        if 0 < start < len(line.pieces):
            through = np.flatnonzero(space[states])
            again, after = followers(automaton, states[through])
            index, states = np.append(index, index[through][again]), np.append(states, after)
            odds = SPACE_COST * (min(gaps[start - 1], 2) - 1)  # logarithm, of a space to none
            scores = np.append(scores - max(0, odds), scores[through][again] + min(0, odds))
            spaced = np.append(spaced, np.ones(len(after), bool))
        order = best_of_each(states, scores)
        index, states, scores, spaced = index[order], states[order], scores[order], spaced[order]
        for stop in range(start + 1, min(start + MOST_PIECES, len(line.pieces)) + 1):
            if (start, stop) in known:
                piece, probabilities, cost = known[start, stop]
                shared = share(probabilities, alike)
                most = math.log(max(shared.max(), LEAST_PROBABILITY))
                best = np.where(fits, shared, 0).max(axis=1)
                best = np.where(fits.any(axis=1), np.maximum(best, LEAST_PROBABILITY), 1 / len(names))
                # That it is a character counts for each of its pieces, as on a free path; that it is this one, and
                # not the likeliest, once, however finely it was cut.
                whole = (stop - start) * (most - cost) - shape_cost(line, start, stop, piece.box)
                emission = whole + np.log(best) - most
                emission[~signs & ~fits.any(axis=1)] = -np.inf
            elif stop == start + 1:
                told = mark_of(line.pieces[start], line)
                costs = [MARK_COST if told in symbol else MARK_COST + OTHER_MARK_COST for symbol in automaton.symbols]
                emission = np.where(signs, np.negative(costs), -np.inf)
                dirt = here.scores - MARK_COST - (0 if automaton.lexicon else OTHER_MARK_COST)
                every = np.arange(len(dirt))
                found[stop].append(Arrivals(here.states, dirt, every * 0 + start, every, every < 0, every >= 0))
            else:
                continue  # not thought of
            total = scores + emission[automaton.symbol[states]] - automaton.costs[states]
            [possible] = np.nonzero(total > -np.inf)
            places, passed = np.full(len(possible), start), np.zeros(len(possible), bool)
            found[stop].append(
                Arrivals(states[possible], total[possible], places, index[possible], spaced[possible], passed)
            )
    ends = np.flatnonzero(automaton.final[reached[-1].states])
    if not ends.size:
        return None
    groups: list[list[Choice]] = [[]]
    stop, at = len(line.pieces), int(ends[0])
    while stop:
        state, _, start, before, after_space, dirt_only = (column[at] for column in reached[stop])
        if dirt_only and automaton.lexicon:
            groups[-1].append(choice_of(line, known, int(start), stop))
        elif not dirt_only:
            only = automaton.symbols[automaton.symbol[state]]
            choice = choice_of(line, known, int(start), stop, only)._replace(either_case=automaton.lexicon)
            if not fits[automaton.symbol[state]].any():
                choice = choice._replace(probabilities=None)
            groups[-1].append(choice)
            if after_space:
                groups.append([])
        stop, at = int(start), int(before)
    return [group[::-1] for group in groups[::-1]]


def likeliest(arrivals: Sequence[Arrivals]) -> Arrivals:
    """The best arrival in each state, the likeliest states first, as many as the beam is wide."""
    every = Arrivals._make(np.concatenate(column) for column in zip(*arrivals, strict=True))
    order = best_of_each(every.states, every.scores)[:BEAM]
    return Arrivals._make(column[order] for column in every)


def best_of_each(states: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where the best score of each state is, the best first."""
    order = np.lexsort((-scores, states))
    order = order[np.append(True, np.diff(states[order]) != 0)[: len(order)]]
    ranked: NDArray[np.int64] = order[np.argsort(-scores[order], kind="stable")]
    return ranked


def followers(automaton: Automaton, states: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The states that may follow states, int [M]: which of them each follows, and which it is, int [F] both."""
    counts = automaton.starts[states + 1] - automaton.starts[states]
    index = np.repeat(np.arange(len(states)), counts)
    offsets = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    return index, automaton.targets[automaton.starts[states][index] + offsets]


def forms(name: str, names: Sequence[str]) -> frozenset[str]:
    """The characters that a class stands for: its own, and the other case where that has no class."""
    other = name.swapcase()
    return frozenset({name} if other in names else {name, other})


def stands_for(name: str, symbol: frozenset[str], names: Sequence[str], automaton: Automaton) -> bool:
    """Whether a class may be one of these characters of an automaton's."""
    return bool(symbol & ({name, name.swapcase()} if automaton.lexicon else forms(name, names)))


def signs_of(symbol: frozenset[str], names: Sequence[str]) -> frozenset[str]:
    """Of a set of characters those that the network does not know; none where it knows another, but for marks."""
    known = {form for name in names for form in forms(name, names)}
    others = symbol - known - {" "}
    return others & MARKS if symbol & known else others


def mark_of(piece: Piece, line: Line) -> str:
    """The mark that a small piece is, by its shape and place."""
    box = piece.box
    if box.width > 2 * box.height:
        return "-"
    neighbours = [other.box for other in line.pieces if other.box.height > 0.5 * line.height]
    nearest = min(neighbours, key=lambda other: abs(other.left - box.left), default=box)
    if box.bottom < (nearest.top + nearest.bottom) / 2:
        return "'"
    return "," if box.height > 1.4 * box.width else "."
