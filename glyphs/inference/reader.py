"""From a page's pieces of ink to text: which pieces make a character, which character, which case, which word.

The method is over-segmentation: every run of up to `MOST_PIECES` neighbouring pieces is a candidate character, the
network scores all candidates in one batch, and the best path through the lattice of candidates is found by dynamic
programming (Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition,
Proceedings of the IEEE 86 (11), 1998, sections V and VI, "heuristic over-segmentation").
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glyphs.errors import ConfigError, DataError
from glyphs.inference.rows import DECIMALS, Candidate, Character, TextLine, Word
from glyphs.pictures.decode import Floats
from glyphs.pictures.glyph import draw_ink
from glyphs.pictures.page import Box, Line, Page, Piece, merge, union

Bytes = NDArray[np.uint8]
Probabilities = NDArray[np.floating[Any]]

# The lattice.  Costs are natural logarithms of probabilities, found on pictures that users of such programs tried.
MOST_PIECES = 6  # of a character
WIDEST = 1.7  # a character of several pieces is no wider, in heights of its line
WIDE, WIDE_COST = 1.5, 4.0  # from this width in its own heights on, each further one costs so much
CUT_COST = 1.5  # of each cut through connected ink
JOIN_COST, JOIN_GAP_COST = 0.8, 8.0  # of joining separate parts, and for each height of paper between them
MARK_COST = 1.0  # of a full stop, a comma, a dash
LEAST_PROBABILITY = 1e-4  # no character is thought to be less probable: the network is overconfident

# Joined script: so many characters for each connected part of the ink, and so many more characters than parts.  Of
# 61 pictures of separate letters none has more than 1.24 for each, but for one that is half joined and one whose rules
# remain.
JOINED, JOINED_LEAST = 1.3, 4

# Spaces and marks; lengths are in heights of the line
SPACE = 0.55  # paper beyond the usual gap that makes a space
MARK = 0.5  # what is smaller both ways is a full stop or a comma
DASH = 0.3  # what is lower than this and twice as wide is a dash
SMALL_LETTER = 0.78  # of the height of the line's tall characters: what is lower may be a small letter

# A change between digits, capitals and small letters costs this, half beyond a space
CHANGE_COST = 2.5
# A page is one of digits where letters would make a character likelier by less than this, in the mean.  Sudokus and
# pages of numbers lost up to 0.9; a letter that looks like a digit loses 1.2, others more.
PAGE_LOSS, WORD_LOSS, LONG = 1.0, 0.8, 3  # and a word of at least so many characters where it is less than that
NEVER = -1e9  # the logarithm of a probability
CAPITAL_COST = 0.7  # of a change from a capital to a small letter, as after a name's first
# What the network takes for each other, more often on pictures than its probabilities say: so much of the others' is
# added to each one's.
LOOKALIKES, LOOKALIKE_SHARE = ("0Oo", "1IiLl", "2Zz", "5Ss", "6Gb", "8B", "9gq"), 0.3
SAME_SHAPE = frozenset("CcIiJjKkLlMmOoPpSsUuVvWwXxYyZz")  # letters whose cases EMNIST's 47 classes merge
BARS, BAR = ("I", "L"), 0.3  # an upright bar, width over height below this, is an I among capitals, else an l
SIZED = frozenset("CcOoPpSsUuVvWwXxZz")  # of these, those whose cases differ in size alone


class Choice(NamedTuple):
    """A character on the best path: its pieces made one, and its probabilities, float [C]; None for a mark."""

    piece: Piece
    probabilities: Probabilities | None


def read_page(
    page: Page,
    network: Callable[[Bytes], Probabilities],
    names: Sequence[str],
    alphabet: Iterable[str] | None = None,
    words: Sequence[str] | None = None,
    top_k: int = 5,
) -> tuple[TextLine, ...] | None:
    """The lines of text on a page; None where it turns out to be joined script.

    Parameters
    ----------
    network : from images, uint8 [N, 1, 28, 28], to probabilities, float [N, C], of the classes `names`.
    alphabet : the only characters that the page can hold; None for all.
    words : the only words that it can hold; None for any.
    """
    candidates = [candidates_of(line) for line in page.lines]
    images = [draw_piece(page, piece) for line in candidates for _, _, piece in line if piece is not None]
    if not images:
        return ()
    alike = np.eye(len(names))
    for family in LOOKALIKES:
        places = [column for column, name in enumerate(names) if name in family]
        alike[np.ix_(places, places)] = 1
    scores = iter(network(np.stack(images)[:, None]))
    paths = []
    for line, spans in zip(page.lines, candidates, strict=True):
        known = {(start, stop): (piece, next(scores)) for start, stop, piece in spans if piece is not None}
        paths.append(best_path(line, known, alike))
    characters = sum(map(len, paths))
    parts = sum(len({piece.part for piece in line.pieces}) for line in page.lines)
    if characters > JOINED * parts and characters - parts >= JOINED_LEAST:
        return None
    number_page = holds_digits_only(itertools.chain(*paths), names, alike, PAGE_LOSS)
    lines = []
    for line, path in zip(page.lines, paths, strict=True):
        groups = split_words(path, line.height)
        numbers = {
            id(choice)
            for group in groups
            if number_page or (len(group) >= LONG and holds_digits_only(group, names, alike, WORD_LOSS))
            for choice in group
        }
        labels = iter(label(path, groups, names, line, alike, alphabet, numbers))
        found = []
        for group in groups:
            # What the alphabet rules out, as a full stop among digits, has no label.
            read = [(choice, name) for choice in group if (name := next(labels))]
            if read:
                choices, letters = [choice for choice, _ in read], [name for _, name in read]
                if words:
                    letters = nearest_word(choices, letters, names, words)
                found.append(make_word(choices, letters, names, top_k, page.zoom))
        if found:
            lines.append(TextLine(" ".join(word.text for word in found), around([w.box for w in found]), tuple(found)))
    return tuple(lines)


# ---- The lattice ----


def is_mark(line: Line, place: int) -> bool:
    """Whether a piece is a full stop, a comma or a dash, which the network does not know."""
    piece, height = line.pieces[place], line.height
    if any(other.part == piece.part for other in line.pieces[max(0, place - 1) : place + 2] if other is not piece):
        return False  # it was cut from something larger
    box = piece.box
    small = box.height < MARK * height and box.width < MARK * height
    return small or (box.height < DASH * height and box.width > 2 * box.height)


def candidates_of(line: Line) -> list[tuple[int, int, Piece | None]]:
    """The runs of a line's pieces that may be one character: start, stop, and the pieces made one.

    Every single piece is one, so that there is always a path; None where it is a mark.
    """
    spans: list[tuple[int, int, Piece | None]] = []
    pieces = line.pieces
    for start, first in enumerate(pieces):
        spans.append((start, start + 1, None if is_mark(line, start) else first))
        for stop in range(start + 2, min(start + MOST_PIECES, len(pieces)) + 1):
            run = pieces[start:stop]
            box = union([piece.box for piece in run])
            if first.cell is not None or run[-1].cell is not None or box.width > WIDEST * line.height:
                break
            spans.append((start, stop, merge(run)))
    return spans


def draw_piece(page: Page, piece: Piece) -> Bytes:
    """The piece in the form that the network knows, uint8 [28, 28]."""
    box, edge = piece.box, 3  # pixels: the soft edge of a stroke
    mask = np.pad(piece.mask, edge)
    top, left = box.top - edge, box.left - edge
    rows = slice(max(0, top), min(page.ink.shape[0], box.bottom + edge))
    columns = slice(max(0, left), min(page.ink.shape[1], box.right + edge))
    ink: Floats = np.zeros(mask.shape, np.float32)
    ink[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = page.ink[rows, columns]
    # What is darker than paper beyond the piece's own pixels is its neighbours'.
    ink[~mask & (ink > page.floor)] = 0
    return draw_ink(ink, (slice(edge, edge + box.height), slice(edge, edge + box.width)), page.floor / 2)


def best_path(
    line: Line, known: dict[tuple[int, int], tuple[Piece, Probabilities]], alike: NDArray[np.float64]
) -> list[Choice]:
    """The likeliest way to read a line's pieces, by dynamic programming over where a character ends."""
    pieces = line.pieces
    best: list[tuple[float, int]] = [(0.0, 0)] + [(-np.inf, 0)] * len(pieces)
    for stop in range(1, len(pieces) + 1):
        for start in range(max(0, stop - MOST_PIECES), stop):
            score = best[start][0]
            if (start, stop) in known:
                piece, probabilities = known[start, stop]
                score += span_score(line, start, stop, piece, float((alike @ probabilities).max()))
            elif stop - start > 1:
                continue  # not thought of
            else:
                score -= MARK_COST
            if score > best[stop][0]:
                best[stop] = (score, start)
    path = []
    stop = len(pieces)
    while stop:
        start = best[stop][1]
        path.append(Choice(*known[start, stop]) if (start, stop) in known else Choice(pieces[start], None))
        stop = start
    return path[::-1]


def span_score(line: Line, start: int, stop: int, piece: Piece, probability: float) -> float:
    """How well a run of pieces makes one character: a logarithm.

    The network's is counted once for each piece, so that ways of few characters are not favoured for that.
    """
    run = line.pieces[start:stop]
    score = (stop - start) * float(np.log(max(probability, LEAST_PROBABILITY)))
    aspect = piece.box.width / max(piece.box.height, 0.6 * line.height)
    score -= WIDE_COST * max(0.0, aspect - WIDE)
    for one, other in itertools.pairwise(run):
        if one.part != other.part:
            gap = max(0, other.box.left - one.box.right) / line.height
            score -= JOIN_COST + JOIN_GAP_COST * gap
    if start and line.pieces[start - 1].part == run[0].part:
        score -= CUT_COST
    return score


# ---- Spaces, kinds and cases ----


def split_words(path: Sequence[Choice], height: float) -> list[list[Choice]]:
    """The words of a line: a new one begins where the gap is wider than the line's gaps usually are."""
    if not path:
        return []
    boxes = [choice.piece.box for choice in path]
    gaps = [max(0, other.left - one.right) / height for one, other in itertools.pairwise(boxes)]
    usual = float(np.median(gaps)) if gaps else 0.0
    groups = [[path[0]]]
    for choice, gap in zip(path[1:], gaps, strict=True):
        if gap > max(SPACE, 1.6 * usual) and gap > usual + 0.3:
            groups.append([])
        groups[-1].append(choice)
    return groups


def share(probabilities: Probabilities, alike: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of which look-alikes have a share of each other's."""
    shared: NDArray[np.float64] = (1 - LOOKALIKE_SHARE) * probabilities + LOOKALIKE_SHARE * (alike @ probabilities)
    return shared


def holds_digits_only(choices: Iterable[Choice], names: Sequence[str], alike: NDArray[np.float64], loss: float) -> bool:
    """Whether digits explain a page or a word nearly as well as all characters do, as in a sudoku.

    `loss`: from which mean difference of the logarithms on they do not.
    """
    digits = [column for column, name in enumerate(names) if name.isdigit()]
    shared = [share(choice.probabilities, alike) for choice in choices if choice.probabilities is not None]
    if not digits or not shared:
        return False
    logarithms = np.log(np.maximum(shared, LEAST_PROBABILITY))
    return float((logarithms.max(axis=1) - logarithms[:, digits].max(axis=1)).mean()) < loss


def label(
    path: Sequence[Choice],
    groups: Sequence[Sequence[Choice]],
    names: Sequence[str],
    line: Line,
    alike: NDArray[np.float64],
    alphabet: Iterable[str] | None,
    numbers: set[int],
) -> list[str]:
    """A character for each choice; neighbours tell digits from letters, and height tells case.

    `numbers`: the identities of the choices that are digits.
    """
    allowed = None if alphabet is None else set(alphabet)
    kinds = (str.isdigit, lambda name: not name.isdigit() and not name.islower(), is_small)
    columns = [np.array([i for i, name in enumerate(names) if kind(name)], dtype=int) for kind in kinds]
    first_of_word = {id(group[0]) for group in groups}
    # Viterbi's algorithm over three kinds: digit, capital, small letter.
    change = CHANGE_COST * (1 - np.eye(len(kinds)))
    change[1, 2] = CAPITAL_COST
    scores = np.zeros(len(kinds))
    back: list[list[int]] = []
    best: list[list[str]] = []
    for choice in path:
        cost = change / 2 if id(choice) in first_of_word else change
        if choice.probabilities is None:
            mark = mark_of(choice.piece, line)
            best.append([mark] * len(kinds))
            back.append(list(range(len(kinds))))
            continue
        shared = share(choice.probabilities, alike)
        emission: list[float] = []
        labels: list[str] = []
        for own in columns:
            at = int(own[shared[own].argmax()]) if own.size else -1
            probability = float(shared[at]) if own.size else 0.0
            emission.append(np.log(max(probability, 1e-9)) if not emission or id(choice) not in numbers else NEVER)
            labels.append(names[at] if own.size else "")
        move = scores[:, None] - cost
        back.append(move.argmax(axis=0).tolist())
        scores = move.max(axis=0) + emission
        best.append(labels)
    kind_now = int(scores.argmax())
    found = []
    for labels_here, before in zip(best[::-1], back[::-1], strict=True):
        found.append(labels_here[kind_now])
        kind_now = before[kind_now]
    found.reverse()
    return set_case(path, groups, found, allowed)


def is_small(name: str) -> bool:
    """Whether a class is a small letter, or one that merges both cases."""
    return name.islower() or name in SAME_SHAPE


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


def set_case(
    path: Sequence[Choice], groups: Sequence[Sequence[Choice]], found: list[str], allowed: set[str] | None
) -> list[str]:
    """The labels with the case of letters that look alike in both: by the word's other letters, else by height."""
    heights = [c.piece.box.height for c, name in zip(path, found, strict=True) if name.isalnum() and name not in SIZED]
    tall = float(np.quantile(heights, 0.8)) if heights else max((c.piece.box.height for c in path), default=1)
    of_line = [name for name in found if name.isalpha() and name not in SAME_SHAPE]
    place = 0
    for group in groups:
        span = range(place, place + len(group))
        place += len(group)
        sure = [found[i] for i in span if found[i].isalpha() and found[i] not in SAME_SHAPE] or of_line
        small = sum(name.islower() for name in sure)
        for i in span:
            name = found[i]
            if name not in SAME_SHAPE:
                continue
            box = path[i].piece.box
            if name in BARS and box.width < BAR * box.height and not path[i].piece.dotted:
                found[i] = "l" if small > len(sure) - small else "I"
                continue
            low = box.height < SMALL_LETTER * tall
            if sure and small != len(sure) - small:
                lower = small > len(sure) - small and (low or i != span[0] or name not in SIZED)
            else:
                lower = low and name in SIZED
            found[i] = name.lower() if lower else name.upper()
    if allowed is not None:
        found = [name if name in allowed or name.swapcase() not in allowed else name.swapcase() for name in found]
        found = [name if name in allowed or name.isalnum() else "" for name in found]
    return found


# ---- Words ----


def read_words(path: Path) -> list[str]:
    """The words of a list, one on a line.  Raises DataError and ConfigError."""
    try:
        words = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save the word list as UTF-8, a word on a line") from None
    words = [word for word in words if word]
    if not words:
        raise ConfigError(f"{path}: holds no words; write one on each line")
    return words


def nearest_word(
    group: Sequence[Choice], letters: Sequence[str], names: Sequence[str], words: Sequence[str]
) -> list[str]:
    """The listed word of as many characters that the network finds likeliest; what was read where there is none."""
    fitting: list[Sequence[str]] = [word for word in words if len(word) == len(letters)]
    columns = {name: column for column, name in enumerate(names)}

    def score(word: Iterable[str]) -> float:
        total = 0.0
        for choice, character, read in zip(group, word, letters, strict=True):
            if choice.probabilities is None:
                total += 0.0 if character == read else np.log(LEAST_PROBABILITY)
                continue
            places = [columns[c] for c in {character, character.swapcase()} if c in columns]
            total += np.log(max(float(choice.probabilities[places].sum()), LEAST_PROBABILITY))
        return total

    return list(max(fitting, key=score, default=letters))


# ---- Answers ----


def make_word(group: Sequence[Choice], letters: Sequence[str], names: Sequence[str], top_k: int, zoom: float) -> Word:
    """The word in the form of a result, its boxes in pixels of the picture."""
    columns = {name: column for column, name in enumerate(names)}
    characters = []
    for choice, name in zip(group, letters, strict=True):
        box = tuple(round(value / zoom) for value in shown(choice.piece.box))
        if choice.probabilities is None:
            characters.append(Character(name, None, box, ()))
            continue
        order = np.argsort(-choice.probabilities, kind="stable")[:top_k]
        ranked = tuple(Candidate(names[i], round(float(choice.probabilities[i]), DECIMALS)) for i in order)
        column = columns.get(name, columns.get(name.swapcase()))
        probability = 0.0 if column is None else round(float(choice.probabilities[column]), DECIMALS)
        characters.append(Character(name, probability, box, ranked))
    return Word("".join(letters), around([character.box for character in characters]), tuple(characters))


def shown(box: Box) -> tuple[int, int, int, int]:
    """Left, top, right, bottom, as Pillow has it."""
    return box.left, box.top, box.right, box.bottom


def around(boxes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The box around boxes of left, top, right, bottom."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)
