"""What a text can hold, as an automaton that the reader walks while it searches its lattice.

A regular expression becomes its position automaton (V. M. Glushkov: The abstract theory of automata, Russian
Mathematical Surveys 16 (5), 1961): a state for each character that it writes down, repetitions counted out.  So it is
as large as the expression, where a deterministic one can be exponentially larger, and a text is checked in linear time.
"""

import re
import string
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from glyphs.core.errors import ConfigError
from glyphs.core.files import valid_utf8

MOST_STATES = 500  # of a pattern
TOO_LARGE = f"it stands for more than {MOST_STATES} characters; allow fewer repetitions"
# Logarithms, of each character of a number, and of another word that is not listed
NUMBER_COST, OTHER_COST = 1.0, 3.0
LONGEST_QUOTE = 80  # of a pattern in a message
COUNTS = re.compile(r"\{(\d*)(?:(,)(\d*))?\}")
SHORT_COUNTS: dict[str, tuple[int, int | None]] = {"?": (0, 1), "*": (0, None), "+": (1, None)}
# What a class can stand for; what else a model knows, or the pattern itself names, is added.
PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " "


@dataclass(frozen=True)
class Automaton:
    """Which characters may follow each other.

    Attributes
    ----------
    symbols : the sets of characters that states stand for, each once.
    symbol : int [S], which of them each of the S states stands for: that which was read last.
    starts, targets : int [S + 2], int [E]: the states that may follow state s are targets[starts[s] : starts[s + 1]],
        in ascending order; s = S is where a text begins.
    final : bool [S + 1], whether a text may end in a state.
    costs : float [S], what each character of a state costs beside what it looks like.
    lexicon : whether it is one of words: letters may be written in their other case, and marks may stand anywhere.
    """

    symbols: tuple[frozenset[str], ...]
    symbol: NDArray[np.int64]
    starts: NDArray[np.int64]
    targets: NDArray[np.int64]
    final: NDArray[np.bool_]
    costs: NDArray[np.float64]
    lexicon: bool = False

    @property
    def initial(self) -> int:
        return len(self.symbol)

    def without(self, characters: frozenset[str]) -> "Automaton":
        """The same automaton where no state stands for these characters."""
        return replace(self, symbols=tuple(symbol - characters for symbol in self.symbols))

    def is_empty(self) -> bool:
        """Whether there is no text that the automaton knows."""
        reached, new = {self.initial}, [self.initial]
        while new:
            state = new.pop()
            followers = self.targets[self.starts[state] : self.starts[state + 1]].tolist()
            found = [each for each in followers if self.symbols[self.symbol[each]] and each not in reached]
            reached.update(found)
            new += found
        return not self.final[list(reached)].any()

    def accepts(self, text: str) -> bool:
        """Whether the whole text is one that the automaton knows."""
        states = {self.initial}
        for character in text:
            followers = {int(t) for s in states for t in self.targets[self.starts[s] : self.starts[s + 1]]}
            states = {state for state in followers if character in self.symbols[self.symbol[state]]}
        return bool(self.final[list(states)].any())


def pattern_automaton(pattern: str, characters: Sequence[str] = ()) -> Automaton:
    """The automaton of a regular expression.

    Literals, escapes, `.`, classes, `?`, `*`, `+`, `{m,n}`, `|` and groups mean what they mean in Python's `re`; the
    whole text has to match, with or without `^` and `$` around the pattern.

    Parameters
    ----------
    characters : those that a model knows, for `.` and classes, beside the printable ones of ASCII.

    Raises
    ------
    ConfigError : it is no regular expression, is more than that (look-around, back references, flags), or too large.
    """
    quoted = repr(pattern if len(pattern) <= LONGEST_QUOTE else pattern[:LONGEST_QUOTE] + "...")
    if pattern != valid_utf8(pattern):
        raise ConfigError(f"pattern {quoted}: is not UTF-8 text")
    try:
        with warnings.catch_warnings():
            # That `[[` may begin a set within a set one day is not for whoever writes a pattern: here it never does.
            warnings.simplefilter("ignore", FutureWarning)
            re.compile(pattern)
            node = PatternParser(pattern, {*PRINTABLE, *"".join(characters), *pattern}).parse()
        built = Positions()
        nullable, first, last = built.add(node)
    except (re.error, OverflowError) as error:
        raise ConfigError(f"pattern {quoted}: is no regular expression ({error})") from None
    except RecursionError:
        raise ConfigError(f"pattern {quoted}: is nested too deeply") from None
    except Unsupported as error:
        raise ConfigError(f"pattern {quoted}: cannot be used: {error}") from None
    if not built.states:
        raise ConfigError(f"pattern {quoted}: matches no text but the empty one; describe what is written")
    return build(built.states, [*built.follow, set(first)], {*last, *([len(built.states)] if nullable else [])})


def build(states: Sequence[frozenset[str]], follow: Sequence[set[int]], final: set[int]) -> Automaton:
    """The automaton of states, S, that stand for characters, the states that may follow each, S + 1, and the last."""
    symbols = tuple(dict.fromkeys(states))
    places = {symbol: place for place, symbol in enumerate(symbols)}
    ends = np.zeros(len(states) + 1, bool)
    ends[list(final)] = True
    return Automaton(
        symbols,
        np.array([places[state] for state in states], np.int64),
        np.cumsum([0, *map(len, follow)]),
        np.array([target for targets in follow for target in sorted(targets)], np.int64),
        ends,
        np.zeros(len(states)),
    )


def word_automaton(words: Sequence[str], characters: Sequence[str]) -> Automaton:
    """The automaton of lines of listed words, in either case, with spaces between them: a trie whose words may follow
    each other.

    Parameters
    ----------
    characters : those that a model knows, of which other words are made.
    """
    words = sorted({word for word in words if word})
    sizes = np.array([len(word) for word in words], np.int64)
    codes = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), "<u4")
    # A node for each character of a word, but for those that the word before it begins with, too.
    shared = np.array([*shared_lengths(words)], np.int64)
    depths = np.arange(len(codes)) - np.repeat(sizes.cumsum() - sizes, sizes)  # from 0
    new = depths >= np.repeat(shared, sizes)
    codes, depths = codes[new], depths[new]
    count = len(codes)
    space, number, other = range(count, count + 3)
    start = count + 3
    # Before a node stands the last one that is one less deep.
    keys = depths * count + np.arange(count)
    ranked = keys.argsort()
    [inner], [roots] = np.nonzero(depths), np.nonzero(depths == 0)
    before = ranked[np.searchsorted(keys[ranked], keys[inner] - count) - 1]
    # Sorted, no word is the beginning of the one before it: its last node is its own.
    ends = np.append((sizes - shared).cumsum() - 1, [number, other])
    first = np.append(roots, [number, other])
    edges = [(before, inner), (ends, np.full(len(ends), space)), (first[-2:], first[-2:])]
    edges += [(np.full(len(first), each), first) for each in (space, start)]
    sources, targets = map(np.concatenate, zip(*edges, strict=True))
    order = np.lexsort((targets, sources))
    letters, symbol = np.unique(codes, return_inverse=True)
    symbols = [frozenset(chr(code)) for code in letters.tolist()]
    symbols += [frozenset(" "), frozenset(string.digits).intersection(characters)]
    symbols.append(frozenset({*PRINTABLE, *characters} - {" "}))
    final = np.zeros(start + 1, bool)
    final[ends] = True
    costs = np.zeros(start)
    costs[[number, other]] = NUMBER_COST, OTHER_COST
    return Automaton(
        tuple(symbols),
        np.append(symbol, len(letters) + np.arange(3)),
        np.searchsorted(sources[order], np.arange(start + 2)),
        targets[order],
        final,
        costs,
        lexicon=True,
    )


def shared_lengths(words: Sequence[str]) -> Iterator[int]:
    """With how many of its first characters the word before each begins, too; the words are sorted, each once."""
    before = ""
    for word in words:
        pairs = enumerate(zip(before, word, strict=False))
        yield next((length for length, (one, other) in pairs if one != other), len(before))
        before = word


# ---- The pattern ----


class Unsupported(Exception):
    """What Python's regular expressions have, and these have not."""


@dataclass(frozen=True)
class One:
    """One of these characters."""

    characters: frozenset[str]


@dataclass(frozen=True)
class Chain:
    """One after the other."""

    nodes: tuple["Node", ...]


@dataclass(frozen=True)
class Either:
    """One of these."""

    nodes: tuple["Node", ...]


@dataclass(frozen=True)
class Repeat:
    """So many times; `most` is None where there is no limit."""

    node: "Node"
    least: int
    most: int | None


Node = One | Chain | Either | Repeat


class PatternParser:
    """Recursive descent over a pattern that `re` has accepted, which tells what each of its characters stands for."""

    def __init__(self, pattern: str, characters: set[str]) -> None:
        self.pattern = pattern.removeprefix("^")
        # A `$` is an end only where an even number of backslashes stands before it.
        if re.search(r"(?<!\\)(?:\\\\)*\$\Z", self.pattern):
            self.pattern = self.pattern[:-1]
        self.characters = sorted(characters)
        self.at = 0

    def parse(self) -> Node:
        return self.either()

    def takes(self, token: str) -> bool:
        """Whether it goes on with the token, which is then passed."""
        found = self.pattern.startswith(token, self.at)
        self.at += len(token) if found else 0
        return found

    def either(self) -> Node:
        nodes = [self.chain()]
        while self.takes("|"):
            nodes.append(self.chain())
        return nodes[0] if len(nodes) == 1 else Either(tuple(nodes))

    def chain(self) -> Node:
        nodes = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            nodes.append(self.repeated(self.atom()))
        return Chain(tuple(nodes))

    def repeated(self, node: Node) -> Node:
        counts = COUNTS.match(self.pattern, self.at)
        if self.at < len(self.pattern) and self.pattern[self.at] in SHORT_COUNTS:
            least, most = SHORT_COUNTS[self.pattern[self.at]]
            self.at += 1
        elif counts and counts[0] != "{}":
            self.at = counts.end()
            least = int(counts[1] or 0)
            most = int(counts[3]) if counts[3] else None if counts[2] else least
            if max(least, most or 0) > MOST_STATES:
                raise Unsupported(TOO_LARGE)
        else:
            return node
        if self.takes("+"):
            raise Unsupported("possessive repetition is not supported")
        self.takes("?")  # of repetitions that take as little as they can, the whole text is the same
        return Repeat(node, least, most)

    def atom(self) -> Node:
        if self.takes("("):
            if not self.takes("?:") and self.pattern.startswith("?", self.at):
                named = re.compile(r"\?P<\w+>").match(self.pattern, self.at)
                if named is None:
                    raise Unsupported("of groups with a question mark, only (?:...) and (?P<name>...) are supported")
                self.at = named.end()
            node = self.either()
            self.takes(")")
            return node
        start = self.at
        self.at += 1
        if self.pattern[start] in "^$":
            raise Unsupported("^ and $ may only stand around the pattern, which has to match the whole text anyway")
        if self.pattern[start] == "\\":
            escaped = self.pattern[self.at]
            if escaped.isalnum() and escaped not in "dDwWsS":
                raise Unsupported(
                    rf"of escapes with a letter or digit, only \d \D \w \W \s \S are supported, not \{escaped}"
                )
            self.at += 1
        elif self.pattern[start] == "[":
            self.takes("^")
            self.takes("]")
            while not self.takes("]"):
                self.at += 2 if self.pattern[self.at] == "\\" else 1
        matches = re.compile(self.pattern[start : self.at]).fullmatch
        return One(frozenset(character for character in self.characters if matches(character)))


class Positions:
    """The states of a pattern, and which may follow which."""

    def __init__(self) -> None:
        self.states: list[frozenset[str]] = []
        self.follow: list[set[int]] = []

    def add(self, node: Node) -> tuple[bool, list[int], list[int]]:
        """Add a part's states.  Returns whether it matches the empty text, its first and its last states."""
        if isinstance(node, One):
            if len(self.states) == MOST_STATES:
                raise Unsupported(TOO_LARGE)
            self.states.append(node.characters)
            self.follow.append(set())
            return False, [len(self.states) - 1], [len(self.states) - 1]
        if isinstance(node, Either):
            nullables, firsts, lasts = zip(*map(self.add, node.nodes), strict=True)
            return any(nullables), list(chain(*firsts)), list(chain(*lasts))
        nullable, first, last = True, list[int](), list[int]()
        for part, optional, again in unrolled(node):
            empty, own_first, own_last = self.add(part)
            if isinstance(node, Repeat) and not own_first:
                break  # nothing, again and again
            for state in last:
                self.follow[state].update(own_first)
            for state in own_last if again else ():
                self.follow[state].update(own_first)
            empty = empty or optional
            first += own_first if nullable else []
            last = last + own_last if empty else own_last
            nullable = nullable and empty
        return nullable, first, last


def unrolled(node: Chain | Repeat) -> Iterator[tuple[Node, bool, bool]]:
    """The parts that follow each other: each, whether it may be left out, and whether it may come again."""
    if isinstance(node, Chain):
        yield from ((part, False, False) for part in node.nodes)
        return
    for _ in range(node.least - (node.most is None)):
        yield node.node, False, False
    if node.most is None:
        yield node.node, node.least == 0, True
    else:
        for _ in range(node.most - node.least):
            yield node.node, True, False
