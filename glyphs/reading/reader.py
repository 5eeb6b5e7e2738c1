"""From a page's pieces of ink to text: which pieces make a character, which character, which case, which word.

The method is over-segmentation: every run of a few neighbouring pieces is a candidate character, the network scores
candidates in batches, and the best path through the lattice of candidates is found by dynamic programming (Y. LeCun,
L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition, Proceedings of the IEEE
86 (11), 1998, sections V and VI, "heuristic over-segmentation").
"""

import itertools
import string
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glyphs.core.errors import ConfigError, DataError
from glyphs.core.files import read_written
from glyphs.models.runtime import Network
from glyphs.output.rows import DECIMALS, Candidate, Character, TextLine, Word
from glyphs.pictures.lines import Line, Page, Piece
from glyphs.reading.automaton import Automaton
from glyphs.reading.lattice import (
    LEAST_PROBABILITY,
    LOOKALIKES,
    Choice,
    choice_of,
    forms,
    lattice_of,
    likeliest_paths,
    mark_of,
    matching_path,
    score_candidates,
    share,
    signs_of,
)

# Joined script: so many characters for each connected part of the ink, and so many more characters than parts.  Of
# the development pictures of separate letters none has more than 1.03 for each.
JOINED, JOINED_LEAST = 1.2, 4
# Separate letters that touch hang together as well, but fewer of them, and at least half of them look well cut.
SCRIPT, BADLY_CUT = 2.5, 0.15

# Spaces and sizes; lengths are in heights of the line
SPACE = 0.55  # paper beyond the usual gap that makes a space
SMALL_LETTER = 0.78  # of the height of the line's tall characters: what is lower may be a small letter

# A change between digits, capitals and small letters costs this, half beyond a space
CHANGE_COST = 2.5
# A page is one of digits where letters would make a character likelier by less than this, in the mean.  Sudokus and
# pages of numbers lost up to 0.9; a letter that looks like a digit loses 1.2, others more.
PAGE_LOSS, WORD_LOSS, LONG = 1.0, 0.8, 3  # and a word of at least so many characters where it is less than that
LATIN = frozenset(string.digits + string.ascii_letters)  # what the network of cuts has seen
NEVER = -1e9  # the logarithm of a probability
CAPITALS = 2  # times as many letters in the boxes of a form as look like small ones look like capitals: all are
CAPITAL_COST = 0.7  # of a change from a capital to a small letter, as after a name's first
SAME_SHAPE = frozenset("CcIiJjKkLlMmOoPpSsUuVvWwXxYyZz")  # letters whose cases EMNIST's 47 classes merge
# An upright bar, width over height below this, is an I among capitals, else an l.  Of 694 capital L of EMNIST's ByClass
# training images 2 % are narrower than 0.45, of 1,736 I half.
BARS, CAPITAL_BAR, BAR = ("I", "L"), 0.45, 0.3
SIZED = frozenset("CcOoPpSsUuVvWwXxZz")  # of these, those whose cases differ in size alone


def read_page(
    page: Page,
    network: Network,
    names: Sequence[str],
    alphabet: Iterable[str] | None = None,
    automaton: Automaton | None = None,
    top_k: int = 5,
) -> tuple[TextLine, ...] | None:
    """The lines of text on a page; None where it turns out to be joined script.

    Parameters
    ----------
    network : from images, uint8 [N, 1, 28, 28], to probabilities, float [N, C], of the classes `names`.
    alphabet : the only characters that the page can hold; None for all.
    automaton : what each line can hold; a line that cannot hold such a text has what was read without it.
    """
    lattices = [lattice_of(line) for line in page.lines]
    latin = LATIN.issuperset(names)
    if all(len(lattice.marks) == len(lattice.scores) for lattice in lattices):
        return ()
    alike = np.eye(len(names))
    for family in LOOKALIKES:
        places = [column for column, name in enumerate(names) if name in family]
        alike[np.ix_(places, places)] = 1
    if automaton is not None:  # any candidate may be part of a text that it knows
        every = [(lattice, span) for lattice in lattices for span in lattice.scores if not lattice.has_seen(span)]
        score_candidates(page, every, network, alike, judge_cuts=latin)
    paths, costs = [], []
    free_paths = likeliest_paths(page, lattices, network, alike, judge_cuts=latin)
    for lattice, spans in zip(lattices, free_paths, strict=True):
        line, known = lattice.line, lattice.known
        costs += [known[span].cost for span in spans if span in known]
        free = [choice_of(line, known, *span) for span in spans]
        matching = matching_path(line, known, alike, names, automaton, widths(line, free)) if automaton else None
        paths.append(split_words(free, line.height) if matching is None else matching)
    characters = sum(len(group) for groups in paths for group in groups)
    parts = sum(len({piece.part for piece in line.pieces}) for line in page.lines)
    hangs_together = page.joined or (characters > JOINED * parts and characters - parts >= JOINED_LEAST)
    well_cut = latin and costs and np.median(costs) < BADLY_CUT
    if hangs_together and (characters > SCRIPT * parts or not well_cut):
        return None
    everything = [choice for groups in paths for group in groups for choice in group]
    number_page = holds_digits_only(everything, names, alike, PAGE_LOSS)
    lines = []
    for line, groups in zip(page.lines, paths, strict=True):
        path = list(itertools.chain(*groups))
        numbers = {
            id(choice)
            for group in groups
            if number_page or (len(group) >= LONG and holds_digits_only(group, names, alike, WORD_LOSS))
            for choice in group
        }
        boxed = [choice for choice in path if choice.piece.cell is not None and page.grid is None]
        capitals = {id(choice) for choice in boxed} if holds_capitals(boxed, names) else set()
        labels = iter(label(path, groups, names, line, alike, alphabet, numbers, capitals))
        found = []
        for group in groups:
            # What the alphabet rules out, as a full stop among digits, has no label.
            read = [(choice, name) for choice in group if (name := next(labels))]
            if read:
                choices, letters = [choice for choice, _ in read], [name for _, name in read]
                found.append(make_word(page, choices, letters, names, top_k))
        if found:
            lines.append(TextLine(" ".join(word.text for word in found), around([w.box for w in found]), tuple(found)))
    return tuple(lines)


# ---- Spaces, kinds and cases ----


def split_words(path: Sequence[Choice], height: float) -> list[list[Choice]]:
    """The words of a line: a new one begins where the gap is wider than the line's gaps usually are."""
    if not path:
        return []
    least = space_width(path, height)
    groups = [[path[0]]]
    for one, other in itertools.pairwise(path):
        if gap_between(one.piece, other.piece) > least:
            groups.append([])
        groups[-1].append(other)
    return groups


def space_width(path: Sequence[Choice], height: float) -> float:
    """The paper between two characters, in pixels, beyond which it is a space."""
    gaps = [gap_between(one.piece, other.piece) / height for one, other in itertools.pairwise(path)]
    usual = float(np.median(gaps)) if gaps else 0.0
    return height * max(SPACE, 1.6 * usual, usual + 0.3)


def gap_between(one: Piece, other: Piece) -> int:
    """The columns of paper between two neighbours."""
    return max(0, other.box.left - one.box.right)


def widths(line: Line, path: Sequence[Choice]) -> list[float]:
    """The paper before each piece but the first, in widths of the least space."""
    least = space_width(path, line.height)
    return [gap_between(one, other) / least for one, other in itertools.pairwise(line.pieces)]


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
    capitals: set[int],
) -> list[str]:
    """A character for each choice; neighbours tell digits from letters, and height tells case.

    `numbers`: the identities of the choices that are digits.  `capitals`: of those that are no small letters.
    """
    allowed = None if alphabet is None else set(alphabet)
    kinds = (str.isdigit, lambda name: not name.isdigit() and not name.islower(), is_small)
    columns = [np.array([i for i, name in enumerate(names) if kind(name)], dtype=int) for kind in kinds]
    standing = [forms(name, names) for name in names]
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
            if choice.only is not None and mark not in choice.only:
                mark = min(signs_of(choice.only, names))
            best.append([mark] * len(kinds))
            back.append(list(range(len(kinds))))
            continue
        shared = share(choice.probabilities, alike)
        emission: list[float] = []
        labels: list[str] = []
        for own in columns:
            fitting = own if choice.only is None else [i for i in own if standing[i] & choice.only]
            if id(choice) in capitals and choice.only is None:
                fitting = [i for i in own if not names[i].islower()]
            at = max(fitting, key=shared.__getitem__, default=-1)
            probability = float(shared[at]) if at >= 0 else 0.0
            if at < 0 and choice.only is not None:
                emission.append(2 * NEVER)
            elif emission and id(choice) in numbers:
                emission.append(NEVER)
            else:
                emission.append(np.log(max(probability, 1e-9)))
            labels.append(names[at] if at >= 0 else "")
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


def holds_capitals(choices: Iterable[Choice], names: Sequence[str]) -> bool:
    """Whether most of the letters that look otherwise as small letters look like capitals."""
    likeliest = [names[int(c.probabilities.argmax())] for c in choices if c.probabilities is not None]
    telling = [name for name in likeliest if name.isalpha() and name not in SAME_SHAPE]
    small = sum(name.islower() for name in telling)
    return len(telling) - small >= max(1, CAPITALS * small)


def is_small(name: str) -> bool:
    """Whether a class is a small letter, or one that merges both cases."""
    return name.islower() or name in SAME_SHAPE


def set_case(
    path: Sequence[Choice], groups: Sequence[Sequence[Choice]], found: list[str], allowed: set[str] | None
) -> list[str]:
    """The labels with the case of letters that look alike in both: by the word's other letters, else by height."""
    heights = [c.piece.box.height for c, name in zip(path, found, strict=True) if name.isalnum() and name not in SIZED]
    tall = float(np.quantile(heights, 0.8)) if heights else max((c.piece.box.height for c in path), default=1)
    # A capital that begins a word does not tell the case of the others.
    firsts = set(itertools.accumulate((len(group) for group in groups[:-1]), initial=0))
    telling = [i for i, name in enumerate(found) if name.isalpha() and name not in SAME_SHAPE]
    of_line = [found[i] for i in telling if i not in firsts or found[i].islower()] or [found[i] for i in telling]
    place = 0
    for group in groups:
        span = range(place, place + len(group))
        place += len(group)
        sure = [found[i] for i in telling if i in span and (i != span[0] or found[i].islower())] or of_line
        small = sum(name.islower() for name in sure)
        for i in span:
            name = found[i]
            if name not in SAME_SHAPE:
                continue
            box, only = path[i].piece.box, path[i].only
            bar, widest = ("l", BAR) if small > len(sure) - small else ("I", CAPITAL_BAR)
            is_bar = name in BARS and box.width < widest * box.height and not path[i].piece.dotted
            if is_bar and (only is None or bar in only):
                found[i] = bar
                continue
            low = box.height < SMALL_LETTER * tall
            if sure and small != len(sure) - small:
                lower = small > len(sure) - small and (low or i != span[0] or name not in SIZED)
            else:
                lower = low and name in SIZED
            found[i] = name.lower() if lower else name.upper()
    pairs = zip(path, found, strict=True)
    found = [name if choice.only is None or name in choice.only else name.swapcase() for choice, name in pairs]
    if allowed is not None:
        found = [name if name in allowed or name.swapcase() not in allowed else name.swapcase() for name in found]
        # A sign, which is no class of the model's, stands where a pattern or a listed word asks for it.
        pairs = zip(path, found, strict=True)
        found = [name if name in allowed or name.isalnum() or choice.only else "" for choice, name in pairs]
    return found


def read_words(path: Path) -> list[str]:
    """The words of a list, one on a line.  Raises DataError and ConfigError."""
    try:
        words = [line.strip() for line in read_written(path).decode("utf-8-sig").splitlines()]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save the word list as UTF-8, a word on a line") from None
    except ValueError as error:  # a form's file may hold a name that no file can have
        raise DataError(f"{path}: cannot be read ({error})") from None
    words = [word for word in words if word]
    if not words:
        raise ConfigError(f"{path}: holds no words; write one on each line")
    return words


# ---- Answers ----


def make_word(page: Page, group: Sequence[Choice], letters: Sequence[str], names: Sequence[str], top_k: int) -> Word:
    """The word in the form of a result, its boxes in pixels of the picture."""
    columns = {name: column for column, name in enumerate(names)}
    characters = []
    for choice, name in zip(group, letters, strict=True):
        box = page.in_picture(choice.piece.box)
        cell = None
        if page.grid is not None and choice.piece.cell is not None:
            row, column = divmod(choice.piece.cell, page.grid[1])
            cell = (row + 1, column + 1)
        if choice.probabilities is None:
            characters.append(Character(name, None, box, (), cell))
            continue
        order = np.argsort(-choice.probabilities, kind="stable")[:top_k]
        ranked = tuple(Candidate(names[i], round(float(choice.probabilities[i]), DECIMALS)) for i in order)
        places = [columns[case] for case in dict.fromkeys((name, name.swapcase())) if case in columns]
        if not choice.either_case:
            places = places[:1]
        probability = round(float(choice.probabilities[places].sum()), DECIMALS)
        characters.append(Character(name, probability, box, ranked, cell))
    return Word("".join(letters), around([character.box for character in characters]), tuple(characters))


def around(boxes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The box around boxes of left, top, right, bottom."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)
