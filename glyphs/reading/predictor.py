"""GlyphPredictor: from pictures to typed answers, one at a time or a million in constant memory.

With an ONNX model torch is not needed, and it is never imported; see glyphs.models.runtime.
"""

import concurrent.futures
import copy
import itertools
import math
import os
import textwrap
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from glyphs.core.ahead import work_ahead
from glyphs.core.arrays import Bytes, Probabilities
from glyphs.core.config import Config
from glyphs.core.cpus import usable_cpus
from glyphs.core.errors import CheckpointError, ConfigError, PictureError
from glyphs.core.files import DRAWING, unused, valid_utf8
from glyphs.core.text import PRIORS, alphabet_of, split_alphabet
from glyphs.models.runtime import default_model, describe_training, load_onnx, load_pth
from glyphs.output.rows import DECIMALS, Candidate, Prediction, Reading, Status
from glyphs.pictures.decode import Source, explain_fault, open_picture, shown_name, shrink_factor, to_colour
from glyphs.pictures.glyph import preprocess
from glyphs.pictures.plain import EMNIST_FORM, Mode, to_planes

if TYPE_CHECKING:
    from glyphs.pictures.lines import Page
    from glyphs.reading.automaton import Automaton

PATIENCE = 0.5  # seconds that answers wait for more pictures to fill a batch: a person watches
CHUNK = 8  # pictures that a thread prepares before it takes others
NO_PROBABILITIES: Probabilities = np.empty((0, 0))  # of no pictures


class Prepared(NamedTuple):
    """A picture on its way to the network: pixels, as in `glyphs.pictures.glyph.Glyph`, where the status is `ok`.

    mnist_sized : as in `glyphs.pictures.glyph.Glyph`.
    """

    file: str | None
    status: Status
    pixels: Bytes | None
    error: str | None
    mnist_sized: bool = False


class GlyphPredictor:
    """Recognises the character that a picture shows.

    A picture is a path, a PIL image, an open file, its bytes, an array or a tensor (see `open_picture`).

    Parameters
    ----------
    model : a checkpoint (.pth), or an .onnx file that this project exported; None for the weights in the box.
    device : `auto`, `cpu`, `cuda` or `mps`; None is `auto`.
    alphabet : the only classes to answer: a list of them, or a text of characters, of words with spaces between them,
        or a name of `glyphs.core.text.ALPHABETS`.  The probabilities are those given that it is one of them.  A
        character that the model has no class of its own for counts as its other case, as in EMNIST-Balanced, where c
        is C.
    prior : how frequent the classes are taken to be where the picture leaves several open: `uniform`, as in training
        where that counted every class alike; `digits`, each digit so many times as frequent as a letter as
        `glyphs.core.text.PRIORS` says; or `auto`, that for drawings of MNIST's size, uniform for everything else.
    min_confidence : a likeliest class less probable than this is `uncertain`.
    mode : `glyph` for handwriting, `plain` for pictures as they are; see `glyphs.pictures.plain.InputForm`.  None is
        the one that the model was trained with.
    batch_size : pictures that the network sees at once.
    words : those that a text holds, for `read`; None for any.
    pattern : a regular expression that each line of a text matches, for `read`, where that says no other; None for
        any text.  See `glyphs.reading.automaton.pattern_automaton` for what it can hold.
    average_views : let the network look at every picture seven times (see `glyphs.models.network.ViewAverage`);
        not for .onnx.
    arch : the module:callable that may be run to make a checkpoint's network, where it is not this project's own.
    threads : that the network takes on a CPU; None for as many as this process may run, which is soonest for one
        caller.  Where several call at once, one each takes less in all.

    Raises
    ------
    CheckpointError : the model is missing, damaged, or not ours.
    ConfigError : there is no such device, no such character in the model, the pattern is none, or the mode does not go
        with the size or the colours of the model's images.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        device: str | None = None,
        *,
        alphabet: Iterable[str] | None = None,
        prior: str = "auto",
        min_confidence: float = 0.0,
        mode: Mode | None = None,
        batch_size: int = Config.batch_size,
        words: Sequence[str] | None = None,
        pattern: str | None = None,
        average_views: bool = False,
        arch: str | None = None,
        threads: int | None = None,
    ) -> None:
        path = default_model(average_views=average_views) if model is None else Path(model)
        if path.suffix.lower() != ".onnx":
            loaded = load_pth(path, device or "auto", average_views=average_views, arch=arch, threads=threads)
        elif average_views:
            raise ConfigError(f"{path}: an .onnx model cannot average views; give the checkpoint (.pth) it came from")
        else:
            loaded = load_onnx(path, device or "auto", threads=threads)
        self.network, names, form, facts, self.on_cpu = loaded
        self.path = path
        self.facts = {"classes": names, **facts}  # what the file tells of the model, for people
        self.trained_on = facts["settings"].get("dataset")  # None where the file does not say
        self.description = f"{path}: {len(names)} classes; {describe_training(facts)}"
        self.alphabet: frozenset[str] | None = None
        self.columns = list(range(len(names)))
        if alphabet is not None:
            self.alphabet = chosen_classes(alphabet, names)
            self.columns = choose_columns(names, sorted(self.alphabet))
        self.class_names = [names[column] for column in self.columns]
        self.words = words
        self.automaton = self.make_automaton(words, pattern)
        if prior not in PRIORS:
            raise ConfigError(f"prior: is {prior!r}; it is one of {', '.join(PRIORS)}")
        digits = np.array([name.isdecimal() for name in self.class_names])
        # Of each class, in drawings of MNIST's size and elsewhere.
        self.small_frequencies, self.frequencies = (np.where(digits, factor, 1.0) for factor in PRIORS[prior])
        self.min_confidence = min_confidence
        self.form = form._replace(mode=mode or form.mode)
        if self.form.mode != "plain" and self.form.shape != EMNIST_FORM.shape:
            raise ConfigError(f"{path}: sees images of {form.words}; leave --preprocess {self.form.mode} out")
        self.mode = self.form.mode
        self.batch_size = batch_size

    def view(
        self,
        alphabet: Iterable[str] | None = None,
        min_confidence: float | None = None,
        pattern: str | None = None,
        words: Sequence[str] | None = None,
    ) -> "GlyphPredictor":
        """The same predictor with other options where they are given; an alphabet is of this one's characters.

        Raises
        ------
        ConfigError : as for the predictor itself.
        """
        own = copy.copy(self)
        if alphabet is not None:
            own.alphabet = chosen_classes(alphabet, own.class_names)
            chosen = choose_columns(own.class_names, sorted(own.alphabet))
            own.columns = [own.columns[column] for column in chosen]
            own.class_names = [own.class_names[column] for column in chosen]
            own.small_frequencies, own.frequencies = own.small_frequencies[chosen], own.frequencies[chosen]
        if min_confidence is not None:
            own.min_confidence = min_confidence
        if words is not None:
            own.words = words
        own.automaton = own.make_automaton(words, pattern) or (self.automaton and own.fitted(self.automaton))
        return own

    def make_automaton(self, words: Sequence[str] | None, pattern: str | None) -> "Automaton | None":
        """What a text can hold; None for anything.

        Raises
        ------
        ConfigError : words and pattern both say it, the pattern is none, or the alphabet rules out what it asks for.
        """
        if words is not None and pattern is not None:
            raise ConfigError("words and pattern both say what a text can hold: give one of them")
        if words is None and pattern is None:
            return None
        from glyphs.reading.automaton import pattern_automaton, word_automaton  # one character is read without

        if words is not None:
            return self.fitted(word_automaton(words, self.class_names))
        assert pattern is not None
        automaton = self.fitted(pattern_automaton(pattern, self.class_names))
        if automaton.is_empty():
            raise ConfigError(
                f"pattern {pattern!r}: asks for characters that the alphabet rules out; allow them, or leave it out"
            )
        return automaton

    def fitted(self, automaton: "Automaton") -> "Automaton":
        """An automaton without the characters that the model knows and the alphabet rules out.

        Signs that the model does not know stay: the alphabet chooses among its classes, not among these.
        """
        from glyphs.reading.lattice import forms  # as above

        allowed = {form for name in self.class_names for form in forms(name, self.class_names)}
        known = {form for name in self.facts["classes"] for form in forms(name, self.facts["classes"])}
        return automaton.without(frozenset(known - allowed))

    def predict(self, image: Source, top_k: int = 5) -> Prediction:
        """What one picture shows; a picture that cannot be read is a `failed` prediction, not an exception."""
        [(prediction, _)] = self.classify([self.prepare(name_of(image), image)], top_k)
        return prediction

    def predict_batch(self, images: Iterable[Source], top_k: int = 5) -> list[Prediction]:
        """What each picture shows, in their order.  For more than memory holds, see `stream`."""
        return [prediction for prediction, _ in self.stream(((name_of(image), image) for image in images), top_k)]

    def stream(
        self, pictures: Iterable[tuple[str | None, Source | PictureError]], top_k: int = 5
    ) -> Iterator[tuple[Prediction, Bytes | None]]:
        """Predict any number of pictures, in order and in constant memory, reading ahead while the network computes.

        Parameters
        ----------
        pictures : pairs of a name, for `Prediction.file`, and a picture, or why there is none.

        Yields
        ------
        The prediction, and what the network saw: uint8 [28, 28], or as in `glyphs.pictures.glyph.Glyph`; None where it
        saw nothing.
        """
        pictures = iter(pictures)
        workers = max(1, usable_cpus() - 1)  # one core for the thread that runs the network; one more is slower
        # Threads, not processes: Pillow, SciPy and the network let go of Python's lock while they compute.
        pool = concurrent.futures.ThreadPoolExecutor(workers)
        waiting: deque[concurrent.futures.Future[list[Prepared]]] = deque()
        queued = 0  # pictures that these will give
        ready: list[Prepared] = []
        # Small chunks, so that all threads share a few pictures too, and an interruption waits for few.
        ahead = workers + math.ceil(self.batch_size / CHUNK)
        try:
            while True:
                while len(waiting) < ahead and (chunk := list(itertools.islice(pictures, CHUNK))):
                    waiting.append(pool.submit(self.prepare_all, chunk))
                    queued += len(chunk)
                size = min(self.batch_size, len(ready) + queued)
                if size == 0:
                    return
                place = 0
                while place < size:
                    started = time.monotonic()
                    while place + len(ready) < size and (not ready or time.monotonic() - started <= PATIENCE):
                        prepared = waiting.popleft().result()
                        queued -= len(prepared)
                        ready += prepared
                    part, ready = ready[: size - place], ready[size - place :]
                    yield from self.classify(part, top_k, place, size)
                    place += len(part)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def visualize(self, image: Source, path: str | Path | None = None, top_k: int = 5) -> Prediction:
        """Predict one picture, and draw it, what the network saw, and the likeliest classes into a PNG file.

        Parameters
        ----------
        path : of the file; None for prediction.png, or prediction2.png and so on where that is there already.

        Raises
        ------
        PictureError : the picture cannot be read, so there is nothing to draw.
        """
        from glyphs.output.plots import plot_prediction  # matplotlib: not where nothing is drawn

        picture = open_picture(image)
        [(prediction, pixels)] = self.classify([self.prepare(name_of(image), picture)], top_k)
        title = prediction.status.replace("_", " ")
        if prediction.confidence is not None:
            title = f"{prediction.prediction or title} ({100 * prediction.confidence:.1f} %)"
        plot_prediction(picture, pixels, prediction.top_k, title, unused(DRAWING) if path is None else Path(path))
        return prediction

    def visualize_text(self, image: Source, path: str | Path | None = None, top_k: int = 5) -> Reading:
        """Read one picture, and draw it with a box and a reading for each character into a PNG file, as `visualize`.

        Raises
        ------
        PictureError : the picture cannot be read, so there is nothing to draw.
        """
        from glyphs.output.plots import plot_reading  # as above

        picture = open_picture(image)
        reading = self.read_page(*self.find_page(name_of(image), picture), top_k)
        characters = [character for line in reading.lines for word in line.words for character in word.characters]
        found = [(character.label, character.probability, character.box) for character in characters]
        title = textwrap.shorten(reading.text or reading.status.replace("_", " "), 80, placeholder=" ...")
        plot_reading(picture, found, title, unused(DRAWING) if path is None else Path(path))
        return reading

    def read(self, image: Source, top_k: int = 5, pattern: str | None = None) -> Reading:
        """The text that one picture shows; a picture that cannot be read is a `failed` reading, not an exception.

        Parameters
        ----------
        pattern : a regular expression that each line matches; None for the predictor's.

        Raises
        ------
        ConfigError : the pattern is none.
        """
        automaton = self.make_automaton(None, pattern)
        return self.read_page(*self.find_page(name_of(image), image), top_k, automaton)

    def read_stream(
        self, pictures: Iterable[tuple[str | None, Source | PictureError]], top_k: int = 5
    ) -> Iterator[Reading]:
        """Read any number of pictures, as `stream` predicts them."""
        for file, page in work_ahead(self.find_page, pictures, max(1, usable_cpus() - 1)):
            yield self.read_page(file, page, top_k)

    def find_page(self, name: str | None, picture: Source | PictureError) -> "tuple[str | None, Page | PictureError]":
        """The lines of ink in a picture, or why it cannot be read."""
        from glyphs.pictures.lines import find_lines  # one character is read without

        file = None if name is None else valid_utf8(name)
        try:
            if isinstance(picture, PictureError):
                raise picture
            opened = open_picture(picture)
            with explain_fault(shown_name(picture)):
                page = find_lines(to_colour(opened))
        except PictureError as error:
            return file, error
        page.zoom /= shrink_factor(opened.size)  # boxes are in pixels of the picture as it came
        page.size = opened.size
        return file, page

    def read_page(
        self, file: str | None, page: "Page | PictureError", top_k: int, automaton: "Automaton | None" = None
    ) -> Reading:
        """The text of a page; `automaton` knows what each line can hold, None is the predictor's."""
        from glyphs.reading.reader import read_page  # as above

        require_top_k(top_k)
        automaton = automaton or self.automaton
        if isinstance(page, PictureError):
            return Reading(file, "failed", error=valid_utf8(str(page)))
        try:
            with explain_fault(file or "the picture"):
                lines = read_page(page, self.probabilities, self.class_names, self.alphabet, automaton, top_k)
        except PictureError as error:
            return Reading(file, "failed", error=str(error))
        if lines is None:
            return Reading(file, "joined_script", size=page.size)
        if not lines:
            return Reading(file, "no_glyph", size=page.size, grid=page.grid)
        characters = [character for line in lines for word in line.words for character in word.characters]
        confidence = min((c.probability for c in characters if c.probability is not None), default=None)
        uncertain = confidence is not None and confidence < self.min_confidence
        if automaton is not None and not automaton.lexicon:
            uncertain = uncertain or not all(automaton.accepts(line.text) for line in lines)
        return Reading(file, "uncertain" if uncertain else "ok", confidence, lines, size=page.size, grid=page.grid)

    def probabilities(self, images: Bytes) -> Probabilities:
        """Those of the alphabet's classes, float64 [N, C], for images of uint8 [N, 1, 28, 28], batch by batch."""
        starts = range(0, len(images), self.batch_size)
        batches = (images[start : start + self.batch_size] for start in starts)
        return np.concatenate([self.of_alphabet(self.network(batch)) for batch in batches])

    def of_alphabet(self, probabilities: Probabilities, mnist_sized: Sequence[bool] = ()) -> Probabilities:
        """A network's probabilities of all classes as those of the alphabet's with the prior, float64 [N, C].

        mnist_sized : of each row, whether it is such a drawing; none is where it is left out.
        """
        small = np.array(mnist_sized or [False] * len(probabilities), bool)[:, None]
        # The small number keeps an alphabet whose probabilities are all 0 in float32 from dividing by 0.
        frequencies = np.where(small, self.small_frequencies, self.frequencies)
        chosen = probabilities[:, self.columns] * frequencies + 1e-300
        if not np.isfinite(chosen).all():
            raise CheckpointError("the model's outputs are not finite: it is damaged")
        shares: Probabilities = chosen / chosen.sum(axis=1, keepdims=True)
        return shares

    def prepare_all(self, pictures: Sequence[tuple[str | None, Source | PictureError]]) -> list[Prepared]:
        return [self.prepare(name, picture) for name, picture in pictures]

    def prepare(self, name: str | None, picture: Source | PictureError) -> Prepared:
        """Read a picture and bring it into the form that the network knows."""
        file = None if name is None else valid_utf8(name)
        try:
            if isinstance(picture, PictureError):
                raise picture
            glyph = preprocess(picture, self.form)
        except PictureError as error:
            return Prepared(file, "failed", None, valid_utf8(str(error)))
        return Prepared(file, glyph.status, glyph.pixels, None, glyph.mnist_sized)

    def classify(
        self, part: Sequence[Prepared], top_k: int, place: int = 0, size: int | None = None
    ) -> Iterator[tuple[Prediction, Bytes | None]]:
        """Run the network once, on these pictures of a batch of `size`, from `place` on; the others are blank.

        Each picture has the same place in a batch of the same size however quickly the others come, so that its answer
        is the same to the last bit.
        """
        require_top_k(top_k)
        seen = [number for number, prepared in enumerate(part, place) if prepared.pixels is not None]
        probabilities = NO_PROBABILITIES
        if seen:
            images = np.zeros((len(part) if size is None else size, *self.form.shape), np.uint8)
            images[seen] = to_planes(np.stack([each.pixels for each in part if each.pixels is not None]))
            probabilities = self.network(images)[seen]
        return self.answers(part, probabilities, top_k)

    def answers(
        self, part: Sequence[Prepared], probabilities: Probabilities, top_k: int
    ) -> Iterator[tuple[Prediction, Bytes | None]]:
        """What these pictures show; `probabilities`, the network's, float [N, C], have a row for each with pixels."""
        small = [prepared.mnist_sized for prepared in part if prepared.pixels is not None]
        ranked = self.rank(self.of_alphabet(probabilities, small), top_k) if small else iter(())
        for prepared in part:
            if prepared.pixels is None:
                yield Prediction(prepared.file, prepared.status, error=prepared.error), None
            else:
                yield self.answer(prepared.file, next(ranked)), prepared.pixels

    def rank(self, shares: Probabilities, top_k: int) -> Iterator[tuple[Candidate, ...]]:
        """The likeliest classes of each row of probabilities over the alphabet, float [N, C]."""
        order = np.argsort(-shares, axis=1, kind="stable")[:, :top_k]
        ranked = shares[np.arange(len(shares))[:, None], order].round(DECIMALS)
        for columns, values in zip(order.tolist(), ranked.tolist(), strict=True):
            yield tuple(Candidate(self.class_names[c], p) for c, p in zip(columns, values, strict=True))

    def answer(self, file: str | None, candidates: tuple[Candidate, ...]) -> Prediction:
        label, confidence = candidates[0]
        if confidence < self.min_confidence:
            return Prediction(file, "uncertain", None, confidence, candidates)
        return Prediction(file, "ok", label, confidence, candidates)


def require_top_k(top_k: int) -> None:
    """Raise ConfigError where no class is asked for."""
    if top_k < 1:
        raise ConfigError(f"top_k: is {top_k}; it is how many of the likeliest classes to tell, 1 or more")


def name_of(image: Source) -> str | None:
    """A picture's name, where it comes from a file."""
    return os.fspath(image) if isinstance(image, (str, Path)) else None


def chosen_classes(alphabet: Iterable[str], names: Sequence[str]) -> frozenset[str]:
    """The classes that an alphabet, as of GlyphPredictor, asks for, of a model that knows these."""
    if isinstance(alphabet, str):
        alphabet = [alphabet] if alphabet in names else split_alphabet(alphabet_of(alphabet))
    return frozenset(alphabet)


def choose_columns(names: Sequence[str], alphabet: Iterable[str]) -> list[int]:
    """The places, ascending, of the classes that an alphabet's characters belong to; see GlyphPredictor.

    Raises
    ------
    ConfigError : the alphabet is empty, or the model knows a character in neither case.
    """
    columns = set()
    for character in alphabet:
        own = next((name for name in (character, character.swapcase()) if name in names), None)
        if own is None:
            raise ConfigError(f"alphabet: the model does not know {character!r}; it knows {' '.join(names)}")
        columns.add(names.index(own))
    if not columns:
        raise ConfigError("alphabet: is empty; name at least one character")
    return sorted(columns)
