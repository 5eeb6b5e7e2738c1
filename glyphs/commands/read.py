"""What inference.py does: characters or text from pictures, into rows, files and drawings."""

import argparse
import contextlib
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from glyphs.commands.read_arguments import service_settings
from glyphs.commands.terminal import show_log
from glyphs.core.config import Config
from glyphs.core.errors import ConfigError, DataError, PictureError
from glyphs.core.files import explain_write_error, replacing, too_long, valid_utf8
from glyphs.core.process import PLOTTING_PACKAGES, Interrupted, launched, require_packages, say
from glyphs.core.progress import line_above, progress
from glyphs.core.text import one_line
from glyphs.models.runtime import default_model
from glyphs.output.parts import Parts, parts_folder
from glyphs.output.results import (
    STDIN,
    ResultFile,
    open_pipe,
    open_results,
    open_terminal,
    relative_names,
    save_pixels,
    save_table,
)
from glyphs.output.rows import FormReading, Reading, Row, RowKind
from glyphs.pictures.decode import Source, open_picture
from glyphs.pictures.find import AllPages, PictureFolder, describe_skipped
from glyphs.reading.predictor import GlyphPredictor

if TYPE_CHECKING:
    from glyphs.forms.forms import Doubtful, Form, FormReader

SOME_FAILED = 3  # the exit status


def read(arguments: argparse.Namespace, config: Config) -> int:
    """Do what the arguments ask for; return the exit status."""
    show_log()
    if launched():
        from glyphs.core.distributed import barrier, process_group, rank, world_size  # PyTorch: not for one process

        with process_group():
            if not shared(arguments):
                raise ConfigError("torchrun: processes share --batch DIR into one --output FILE.jsonl, nothing else")
            return read_together(arguments, config, rank(), world_size(), barrier)
    if arguments.form:
        begin_form(arguments.form, arguments.fields)
        return 0
    if arguments.sheet:
        from glyphs.commands.sheets import print_sheet  # SciPy's images: not for a picture

        print_sheet(arguments.alphabet, arguments.sheet)
        return 0
    if arguments.cut:
        from glyphs.commands.sheets import cut_sheets  # as above

        names = relative_names(arguments.image or ())
        named = [(names[valid_utf8(name)], source) for name, source in images_of(arguments)]
        return SOME_FAILED if cut_sheets(named or PictureFolder(arguments.batch), arguments.cut) else 0
    if shared(arguments) and parts_folder(arguments.output).exists():  # several processes have begun it
        return read_together(arguments, config, 0, 1, lambda: None)
    if arguments.serve:
        from glyphs.serving.service import serve  # Starlette and uvicorn: not for a picture

        predictors = [make_predictor(model, arguments, config, threads=1) for model in models_of(arguments)]
        serve(predictors, text=arguments.text, top_k=arguments.top_k, **service_settings(arguments))
        return 0
    if arguments.visualize:
        require_packages(*PLOTTING_PACKAGES)
    form = form_asked(arguments)
    kind = kind_of(arguments, form)
    if arguments.output:
        rows = open_results(arguments.output, kind)
    else:
        rows = open_terminal(kind) if sys.stdout.isatty() else open_pipe(kind._replace(top_k=arguments.columns))
    predictor, reader = make_reader(arguments, config, form)
    given = images_of(arguments)
    images = list(AllPages(given))
    folder = PictureFolder(arguments.batch) if arguments.batch else None
    pictures = AllPages(folder) if folder else images
    doubtful: Doubtful = {}
    alone = len(given) == 1
    if arguments.visualize and not alone:
        ensure_folder(arguments.visualize)  # now, not when all is read
    with open_review(arguments) as page:
        with rows as results:
            try:
                failed = predict(reader, pictures, arguments, results, doubtful)
            except Interrupted:
                if arguments.output:
                    say(f"{arguments.output}: {results.after_interruption()}")
                raise
            sys.stdout.flush()  # here, where a reader who has gone is no error
        if folder or arguments.output:
            say(results.summary() + (f"; {describe_skipped(folder.skipped)}" if folder else ""))
        if page and not isinstance(reader, GlyphPredictor):
            review(page, reader, pictures, arguments, doubtful, results.counts.total())
    if arguments.visualize and alone:
        if not failed:
            draw(predictor, given[0][1], arguments.visualize, arguments)
            which = f" (the first of {len(images):,} pages)" if len(images) > 1 else ""
            say(f"drawn: {arguments.visualize}{which}")
            show(arguments.visualize)
    elif arguments.visualize:
        draw_all(predictor, pictures, arguments, results.counts.total())
    return SOME_FAILED if results.counts["failed"] else 0


def images_of(arguments: argparse.Namespace) -> list[tuple[str, Source]]:
    """The pictures of --image by their names."""
    return [(name, sys.stdin.buffer.read() if name == STDIN else name) for name in arguments.image or ()]


def form_asked(arguments: argparse.Namespace) -> "Form | None":
    """The form of --fields.  Raises GlyphError."""
    if not arguments.fields:
        return None
    from glyphs.forms.forms import read_form  # what finds boxes and text: not for a picture of one character

    return read_form(arguments.fields)


def kind_of(arguments: argparse.Namespace, form: "Form | None") -> RowKind:
    """What rows are asked for."""
    if form:
        return RowKind("fields", fields=tuple(field.name for field in form.fields))
    return RowKind("text") if arguments.text else RowKind("prediction", arguments.top_k)


def begin_form(empty: Path, path: Path) -> None:
    """Write a form's file from a picture of the empty form, and draw its numbered fields beside it.

    Raises GlyphError.
    """
    from glyphs.forms.forms import make_form, write_form
    from glyphs.output.plots import plot_reading  # matplotlib: not for reading

    drawing = path.with_suffix(".png")
    for target in (path, drawing):
        if target.exists():
            raise ConfigError(f"{target}: is there already; choose another --fields file, or remove it")
    form = make_form(empty)
    write_form(form, path, empty)
    shown = [(field.name, None, tuple(map(round, field.box))) for field in form.fields]
    plot_reading(open_picture(empty), shown, str(path), drawing)
    by = "four marks" if form.marks is not None else "print"
    say(f"{path}: {len(form.fields)} fields; scans are laid over the form by its {by}; drawn: {drawing}")


def models_of(arguments: argparse.Namespace) -> list[Path]:
    """The models that are named, else the weights in the box; several only where they are served."""
    return list(dict.fromkeys(arguments.model or [default_model(average_views=arguments.average_views)]))


def make_predictor(
    model: Path, arguments: argparse.Namespace, config: Config, threads: int | None = None
) -> GlyphPredictor:
    words = None
    if arguments.words:
        from glyphs.reading.reader import read_words  # what reads text: not for a picture of one character

        words = read_words(arguments.words)
    predictor = GlyphPredictor(
        model,
        config.device,
        alphabet=arguments.alphabet,
        prior=arguments.prior,
        min_confidence=arguments.min_confidence,
        mode=arguments.mode,
        batch_size=config.batch_size,
        words=words,
        pattern=arguments.pattern,
        average_views=arguments.average_views,
        arch=config.arch,
        threads=threads,
    )
    if not arguments.model or predictor.trained_on == "demo":  # a reader of fonts must not pass for one of handwriting
        say(f"model: {predictor.description}")
    return predictor


def make_reader(
    arguments: argparse.Namespace, config: Config, form: "Form | None"
) -> "tuple[GlyphPredictor, GlyphPredictor | FormReader]":
    """The one model that is asked for, and what reads with it: itself, or where there is a form, that form's reader."""
    [model] = models_of(arguments)
    predictor = make_predictor(model, arguments, config)
    if form is None:
        return predictor, predictor
    from glyphs.forms.forms import FormReader

    return predictor, FormReader(predictor, form)


def shared(arguments: argparse.Namespace) -> bool:
    """Whether it is work that several processes can share."""
    return bool(arguments.batch and arguments.output and arguments.output.suffix.lower() == ".jsonl")


def read_together(
    arguments: argparse.Namespace, config: Config, number: int, count: int, meet: Callable[[], None]
) -> int:
    """Read a folder as process `number` of `count`; process 0 joins what all have written, and talks."""
    form = form_asked(arguments)
    predictor, reader = make_reader(arguments, config, form)
    [model] = models_of(arguments)
    listed = [field.words or () for field in form.fields] if form else [predictor.words or ()]
    # What the rows follow from: parts of another run must not be taken for this one's.
    about = {
        "model": zlib.crc32(model.read_bytes()),
        "text": arguments.text,
        "words": zlib.crc32("\n\n".join("\n".join(words) for words in listed).encode()),
        "pattern": arguments.pattern,
        "top_k": arguments.top_k,
        "alphabet": arguments.alphabet,
        "prior": arguments.prior,
        "min_confidence": arguments.min_confidence,
        "mode": predictor.mode,
        "batch_size": config.batch_size,
        "average_views": arguments.average_views,
        "fields": arguments.fields and zlib.crc32(arguments.fields.read_bytes()),
    }
    kind = kind_of(arguments, form)
    folder = PictureFolder(arguments.batch)
    pictures = AllPages(folder)
    block = config.batch_size if kind.answer == "prediction" else 1
    parts = Parts(arguments.output, about, kind=kind, block=block, number=number, count=count, meet=meet)
    if parts.paths:
        say(f"{parts.folder} holds {sum(parts.done.values()):,} rows: going on with the other pictures")
    failed = 0
    with open_review(arguments) if number == 0 else contextlib.nullcontext() as page:
        with parts.opened():
            predictions = stream(reader, parts.share(pictures), arguments)
            if number == 0:
                predictions = progress(predictions, unit=" pictures", desc=f"process 1 of {count}", delay=1)
            try:
                for prediction, pixels in predictions:
                    target = arguments.save_preprocessed and arguments.save_preprocessed / f"{prediction.file}.png"
                    if target and pixels is not None and not too_long(target):  # process 0 tells of those that are
                        save_pixels(pixels, target)
                    table = arguments.tables and arguments.tables / f"{prediction.file}.csv"
                    if table and not too_long(table):
                        save_table(prediction, table)
                    parts.write(prediction)
            except Interrupted:
                if number == 0:
                    say(f"{parts.folder} keeps the rows so far; the same command goes on with the other pictures")
                raise
        meet()
        if number == 0:
            for name, _ in pictures if arguments.save_preprocessed else ():
                target = arguments.save_preprocessed / f"{valid_utf8(name)}.png"
                if parts.earlier.lacks(name) and too_long(target):
                    say(not_saved(target))

            def tell(row: dict[str, Any]) -> None:
                if row["error"]:
                    say(one_line(row["error"]))
                if arguments.tables and row["table"] and too_long(table := arguments.tables / f"{row['file']}.csv"):
                    say(not_saved(table))

            results = ResultFile(parts.write, counts=parts.join(pictures, tell))
            say(f"{results.summary()}; {describe_skipped(folder.skipped)}")
            failed = results.counts["failed"]
            if page and not isinstance(reader, GlyphPredictor):
                review(page, reader, pictures, arguments, {}, results.counts.total())
    meet()  # the file is whole, whichever process ends first
    return SOME_FAILED if failed else 0


def stream(
    reader: "GlyphPredictor | FormReader",
    pictures: Iterable[tuple[str, Source | PictureError]],
    arguments: argparse.Namespace,
) -> Iterable[tuple[Row, Any]]:
    """A row for each picture, and what the network saw of it where it shows one character."""
    if not isinstance(reader, GlyphPredictor):
        return ((row, None) for row in reader.stream(pictures))
    if arguments.text:
        return ((reading, None) for reading in reader.read_stream(pictures, arguments.top_k))
    return reader.stream(pictures, arguments.top_k)


def predict(
    reader: "GlyphPredictor | FormReader",
    pictures: Iterable[tuple[str, Source | PictureError]],
    arguments: argparse.Namespace,
    results: ResultFile,
    doubtful: "Doubtful",
) -> int:
    """Write a row for each picture that has none yet; complain about those that cannot be read, and count them.

    The fields of forms that a person should look at are added to `doubtful`.
    """
    todo = ((name, picture) for name, picture in pictures if results.lacks(name))
    predictions = stream(reader, todo, arguments)
    complain = say
    if results.done:
        say(f"{arguments.output} holds {len(results.done):,} rows: going on with the other pictures")
    if arguments.output or (sys.stderr.isatty() and not sys.stdout.isatty()):  # else the rows show how far it is
        total = sum(1 for _ in pictures)
        predictions = progress(predictions, total=total, initial=len(results.done), unit=" pictures", delay=1)
        complain = line_above
    targets = names_below(pictures, arguments)
    failed = 0
    for prediction, pixels in predictions:
        failed += prediction.status == "failed"
        name = targets.get(str(prediction.file), str(prediction.file))
        if arguments.tables and isinstance(prediction, Reading) and prediction.table:
            target = arguments.tables / f"{name}.csv"
            if too_long(target):
                complain(not_saved(target))
            else:
                save_table(prediction, target)
        if arguments.save_preprocessed and pixels is not None:  # first: where this fails, the picture has no row yet
            target = arguments.save_preprocessed / f"{name}.png"
            if too_long(target):
                complain(not_saved(target))
            else:
                save_pixels(pixels, target)
        results.write(prediction)
        results.counts[prediction.status] += 1
        if isinstance(prediction, FormReading):
            from glyphs.forms.forms import note_doubtful

            note_doubtful(prediction.to_dict(), doubtful)
        if prediction.error:
            complain(one_line(prediction.error))
        elif prediction.status == "several_glyphs" and not arguments.batch:
            complain(one_line(f"{prediction.file}: shows several characters; --text reads them"))
        elif prediction.status == "joined_script" and not arguments.batch:
            complain(one_line(f"{prediction.file}: its letters are joined, which --text does not read"))
    return failed


def names_below(pictures: Iterable[tuple[str, Any]], arguments: argparse.Namespace) -> dict[str, str]:
    """What to call each picture of --image below a folder; those of --batch have such names."""
    return relative_names([name for name, _ in pictures]) if arguments.image else {}


def not_saved(target: Path) -> str:
    return one_line(f"{target}: is not saved, its name is too long")


def ensure_folder(folder: Path) -> None:
    """Make a folder, with those that it lies in.  Raises GlyphError."""
    with explain_write_error(folder):
        folder.mkdir(parents=True, exist_ok=True)


def open_review(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[BinaryIO | None]:
    """The file of --review: where it cannot be written, that is known before the scans are read."""
    return replacing(arguments.review) if arguments.review else contextlib.nullcontext()


def review(
    page: BinaryIO,
    reader: "FormReader",
    pictures: Iterable[tuple[str, Source | PictureError]],
    arguments: argparse.Namespace,
    doubtful: "Doubtful",
    count: int,
) -> None:
    """Write the review sheet; a .jsonl file holds the rows of earlier runs and other processes, too."""
    from glyphs.forms.forms import note_doubtful, write_review

    if arguments.output and arguments.output.suffix.lower() == ".jsonl":
        doubtful = {}
        with arguments.output.open("rb") as rows:
            for number, row in enumerate(rows, start=1):
                try:
                    note_doubtful(json.loads(row), doubtful)
                except (TypeError, KeyError, AttributeError):
                    raise DataError(f"{arguments.output}: line {number} is not a row of a form; mend it") from None
    pictures = progress(pictures, total=count, desc="review", unit=" scans", delay=1)
    write_review(page, reader, pictures, doubtful)
    say(f"{arguments.review}: {sum(map(len, doubtful.values())):,} fields to look at")


def draw(predictor: GlyphPredictor, picture: Source, path: Path, arguments: argparse.Namespace) -> None:
    """Draw a picture and its answers.  Raises PictureError."""
    (predictor.visualize_text if arguments.text else predictor.visualize)(picture, path, arguments.top_k)


def draw_all(
    predictor: GlyphPredictor,
    pictures: Iterable[tuple[str, Source | PictureError]],
    arguments: argparse.Namespace,
    count: int,
) -> None:
    """Draw each picture that can be read, a file each, under its name in the folder of --visualize."""
    targets = names_below(pictures, arguments)
    drawn = 0
    for name, picture in progress(pictures, total=count, desc="drawing", unit=" pictures", delay=1):
        path = arguments.visualize / f"{targets.get(valid_utf8(name), valid_utf8(name))}.png"
        if too_long(path):
            line_above(not_saved(path))
            continue
        with contextlib.suppress(PictureError):  # which its row has told already
            if not isinstance(picture, PictureError):
                ensure_folder(path.parent)
                draw(predictor, picture, path, arguments)
                drawn += 1
    say(f"drawn: {drawn:,} pictures into {arguments.visualize}")


def show(path: Path) -> None:
    """Open a picture in the system's viewer, where somebody sits at a screen."""
    if sys.stdout.isatty() and (sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")):
        Image.open(path).show()
