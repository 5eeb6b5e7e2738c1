#!/usr/bin/env python3
"""Recognise the characters that pictures show.

python inference.py --image test.png
python inference.py --image a.png b.jpg --top-k 3 --alphabet 0123456789
python inference.py --batch ./images/ --output results.jsonl      stopped? the same command goes on
python inference.py --image form.png --text                        words, numbers, lines: see docs/TEXT.md
python inference.py --image test.png --visualize                   draws what the model saw
python inference.py --serve                                        a page to draw on, and an HTTP service
cat test.png | python inference.py --model model.onnx --image -    without PyTorch

The exit status is 3 where a picture could not be read, 2 where nothing could be done, else 0.
"""

# Only what parsing needs is imported here, so that --help and wrong arguments are answered at once.
import argparse
import functools
import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glyphs.commands.settings import add_settings, given_settings, import_public
from glyphs.config import PREPROCESSING, Config
from glyphs.errors import CheckpointError, GlyphError, PictureError
from glyphs.files import pretrained_folder
from glyphs.process import run
from glyphs.text import one_line

if TYPE_CHECKING:
    from glyphs.inference.predictor import GlyphPredictor, Picture
    from glyphs.inference.rows import ResultFile, Row

# `from inference import GlyphPredictor`, imported when it is first asked for (PEP 562).
PUBLIC_NAMES = {"GlyphPredictor": "glyphs.inference.predictor", "Prediction": "glyphs.inference.rows"}

DEFAULT_MODELS = (Path("outputs/best_model.pth"), pretrained_folder() / "glyphs47.pth")
SOME_FAILED = 3  # the exit status


def __getattr__(name: str) -> Any:
    return import_public(__name__, PUBLIC_NAMES, name)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_argument_group("pictures (one of these)").add_mutually_exclusive_group(required=True)
    what.add_argument("--image", nargs="+", metavar="PATH", help="pictures; - is standard input")
    what.add_argument("--batch", type=Path, metavar="DIR", help="all pictures in this folder and its sub-folders")
    what.add_argument("--serve", action="store_true", help="those that come over HTTP, from the page of --serve too")

    how = parser.add_argument_group("how to recognise them")
    models = "outputs/best_model.pth, else pretrained/glyphs47.pth"
    how.add_argument("--model", type=Path, metavar="FILE", help=f"a checkpoint or an .onnx file (default: {models})")
    modes = "glyph finds the character; plain only greys, squares and resizes (default: as the model was trained)"
    how.add_argument("--preprocess", dest="mode", choices=PREPROCESSING, help=modes)
    how.add_argument("--alphabet", metavar="CHARACTERS", help="answer only these, such as 0123456789 (default: all)")
    uncertain = "an answer less probable than this, from 0 to 1, is `uncertain` (default: 0)"
    how.add_argument("--min-confidence", type=fraction, default=0.0, metavar="P", help=uncertain)
    views = "look at every picture seven times, turned, resized and slanted a little: more accurate, slower"
    how.add_argument("--average-views", action="store_true", help=views)

    text = parser.add_argument_group("text (docs/TEXT.md)")
    text.add_argument("--text", action="store_true", help="read all characters of a picture, not the one it shows")
    text.add_argument("--words", type=Path, metavar="FILE", help="the only words to answer, one on a line, with --text")

    answers = parser.add_argument_group("answers")
    answers.add_argument("--top-k", type=positive, default=5, metavar="N", help="likeliest classes (default: 5)")
    answers.add_argument("--output", type=Path, metavar="FILE", help="results to a .json, .csv or .jsonl file")
    drawing, drawn = Path("prediction.png"), "draw the picture, what the model saw and its answers, to PATH"
    answers.add_argument(
        "--visualize", nargs="?", const=drawing, type=Path, metavar="PATH", help=f"{drawn} (default: {drawing})"
    )
    saw = "what the model saw: DIR/NAME.png for each picture NAME"
    answers.add_argument("--save-preprocessed", type=Path, metavar="DIR", help=saw)
    service = parser.add_argument_group("service (with --serve)")
    service.add_argument("--host", default=argparse.SUPPRESS, help="address to listen on (default: 127.0.0.1)")
    service.add_argument("--port", type=port, default=argparse.SUPPRESS, metavar="N", help="port (default: 8000)")
    token = "what clients must bring; made up where --host lets others in (default: none on this machine)"
    service.add_argument("--token", default=argparse.SUPPRESS, help=token)
    collect = "keep pictures that the page's user corrects in DIR/CLASS/, to train on"
    service.add_argument("--collect", type=Path, default=argparse.SUPPRESS, metavar="DIR", help=collect)
    add_settings(parser, {"machine": ("device", "batch_size")})
    return parser


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise ValueError
    return value


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    check(parser, arguments)
    config = Config.from_dict(given_settings(arguments))

    from glyphs.inference.rows import open_pipe, open_results, open_terminal

    top_k = None if arguments.text else arguments.top_k
    if arguments.output:
        rows = open_results(arguments.output, top_k)
    else:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        rows = open_terminal(top_k) if sys.stdout.isatty() else open_pipe()

    from glyphs.inference.predictor import GlyphPredictor
    from glyphs.inference.reader import read_words
    from glyphs.pictures.find import PictureFolder

    model = arguments.model or default_model()
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


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse combinations of arguments that would lose pictures or mix them up, or that mean nothing."""
    if arguments.serve:
        for name in ("output", "visualize", "save_preprocessed", "text", "words"):
            if getattr(arguments, name):
                parser.error(
                    f"--serve answers over HTTP, one character a picture: leave out --{name.replace('_', '-')}"
                )
    if not arguments.serve and (given := service_settings(arguments)):
        parser.error(f"--{next(iter(given))} is for --serve")
    if arguments.visualize:
        if arguments.batch or len(arguments.image) > 1:
            parser.error("--visualize draws one picture: give one --image")
        if arguments.visualize.suffix.lower() != ".png":
            parser.error(f"--visualize writes PNG files: let {arguments.visualize} end in .png")
        picture = Path(arguments.image[0])
        if picture.exists() and arguments.visualize.exists() and arguments.visualize.samefile(picture):
            parser.error(f"--visualize would replace the picture {arguments.visualize}")
    if arguments.words and not arguments.text:
        parser.error("--words is for --text")
    if arguments.text and arguments.save_preprocessed:
        parser.error("--save-preprocessed is for single characters; with --text, --visualize draws what was found")
    if arguments.text and arguments.mode == "plain":
        parser.error("--text finds characters itself: leave --preprocess out")
    if arguments.batch and arguments.save_preprocessed:
        saved = Path(os.path.realpath(arguments.save_preprocessed))  # Path.resolve raises where links go in circles
        if saved.is_relative_to(os.path.realpath(arguments.batch)):
            parser.error("--save-preprocessed must not lie in --batch, where it would be read as more pictures")


def service_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags of the service that were on the command line."""
    return {name: value for name, value in vars(arguments).items() if name in ("host", "port", "token", "collect")}


def default_model() -> Path:
    """The model of the last training, else the one that comes with the project; says which on stderr."""
    path = next((path for path in DEFAULT_MODELS if path.exists()), None)
    if path is None:
        raise CheckpointError(f"no model: neither {' nor '.join(map(str, DEFAULT_MODELS))} exists; name one by --model")
    say(f"model: {path}")
    return path


def predict(
    predictor: "GlyphPredictor",
    pictures: "Iterable[tuple[str, Picture | PictureError]]",
    arguments: argparse.Namespace,
    results: "ResultFile",
) -> int:
    """Write a row for each picture that has none yet; complain about those that cannot be read, and count them."""
    from glyphs.inference.predictor import relative_names, save_pixels

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
        from tqdm import tqdm

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
        from PIL import Image

        Image.open(path).show()


def say(text: str) -> None:
    print(text, file=sys.stderr)


def command() -> int:
    """The installed command: what running this file does."""
    return run(main)


if __name__ == "__main__":
    sys.exit(command())
