"""What inference.py does: characters or text from pictures, into rows, files and drawings."""

import argparse
import functools
import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from glyphs.commands.read_arguments import service_settings
from glyphs.commands.terminal import show_log
from glyphs.config import Config
from glyphs.errors import GlyphError, PictureError
from glyphs.inference.predictor import GlyphPredictor, Picture, default_model, relative_names, save_pixels
from glyphs.inference.reader import read_words
from glyphs.inference.rows import ResultFile, Row, open_pipe, open_results, open_terminal
from glyphs.pictures.find import PictureFolder
from glyphs.process import say
from glyphs.text import one_line

SOME_FAILED = 3  # the exit status


def read(arguments: argparse.Namespace, config: Config) -> int:
    """Do what the arguments ask for; return the exit status."""
    show_log()
    top_k = None if arguments.text else arguments.top_k
    if arguments.output:
        rows = open_results(arguments.output, top_k)
    else:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        rows = open_terminal(top_k) if sys.stdout.isatty() else open_pipe()

    model = arguments.model or default_model(average_views=arguments.average_views)
    predictor = GlyphPredictor(
        model,
        config.device,
        alphabet=arguments.alphabet,
        min_confidence=arguments.min_confidence,
        mode=arguments.mode,
        batch_size=config.batch_size,
        words=read_words(arguments.words) if arguments.words else None,
        average_views=arguments.average_views,
    )
    if not arguments.model or predictor.trained_on == "demo":  # a reader of fonts must not pass for one of handwriting
        say(f"model: {predictor.description}")
    if arguments.serve:
        from glyphs.inference.service import serve

        serve(predictor, model, top_k=arguments.top_k, **service_settings(arguments))
        return 0
    images: list[tuple[str, Picture]] = [
        (name, io.BytesIO(sys.stdin.buffer.read()) if name == "-" else name) for name in arguments.image or ()
    ]
    folder = PictureFolder(arguments.batch) if arguments.batch else None
    with rows as results:
        failed = predict(predictor, folder or images, arguments, results)
        sys.stdout.flush()  # here, where a reader who has gone is no error
    if folder or arguments.output:
        say(results.summary() + (f"; {folder.skipped:,} other files skipped" if folder else ""))
    if arguments.visualize and not failed:
        draw = predictor.visualize_text if arguments.text else predictor.visualize
        draw(images[0][1], arguments.visualize, arguments.top_k)
        show(arguments.visualize)
    return SOME_FAILED if results.counts["failed"] else 0


def predict(
    predictor: GlyphPredictor,
    pictures: Iterable[tuple[str, Picture | PictureError]],
    arguments: argparse.Namespace,
    results: ResultFile,
) -> int:
    """Write a row for each picture that has none yet; complain about those that cannot be read, and count them."""
    todo = ((name, picture) for name, picture in pictures if results.lacks(name))
    predictions: Iterable[tuple[Row, Any]]
    if arguments.text:
        predictions = ((reading, None) for reading in predictor.read_stream(todo, arguments.top_k))
    else:
        predictions = predictor.stream(todo, arguments.top_k)
    complain = say
    if results.done:
        say(f"{arguments.output} holds {len(results.done):,} rows: going on with the other pictures")
    if sys.stderr.isatty() and (arguments.output or not sys.stdout.isatty()):
        total = sum(1 for _ in pictures)
        predictions = tqdm(predictions, total=total, initial=len(results.done), unit=" pictures", delay=1)
        complain = functools.partial(tqdm.write, file=sys.stderr)
    targets = relative_names(arguments.image or ())
    failed = 0
    for prediction, pixels in predictions:
        failed += prediction.status == "failed"
        results.write(prediction)
        results.counts[prediction.status] += 1
        if prediction.error:
            complain(one_line(prediction.error))
        elif prediction.status == "several_glyphs" and not arguments.batch:
            complain(one_line(f"{prediction.file}: shows several characters; --text reads them"))
        elif prediction.status == "joined_script" and not arguments.batch:
            complain(one_line(f"{prediction.file}: its letters are joined, which --text does not read"))
        if arguments.save_preprocessed and pixels is not None:
            name = str(prediction.file)
            try:
                save_pixels(pixels, arguments.save_preprocessed / f"{targets.get(name, name)}.png")
            except GlyphError as error:  # a name that is too long with its new suffix, for one
                complain(one_line(str(error)))
    return failed


def show(path: Path) -> None:
    """Open a picture in the system's viewer, where somebody sits at a screen."""
    say(f"drawn: {path}")
    if sys.stdout.isatty() and (sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")):
        Image.open(path).show()
