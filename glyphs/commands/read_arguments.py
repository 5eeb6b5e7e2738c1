"""What inference.py is asked for; imports only what parsing needs, so that it answers at once."""

import argparse
import itertools
import os
from pathlib import Path
from typing import Any

from glyphs.commands.settings import Parser, add_settings, config_of, given_settings, require_models
from glyphs.core.config import PREPROCESSING, Config
from glyphs.core.files import DRAWING, unused
from glyphs.core.text import ALPHABETS, PRIORS, alphabet_of

SHOWN_CLASSES, MOST_CLASSES = 5, 1000
DOUBTFUL = 0.8  # a field that is less probable is for a person to look at
DRAWINGS = Path("predictions")  # the folder where --visualize draws several pictures


def build_parser(description: str | None = None) -> argparse.ArgumentParser:
    parser = Parser(description)
    what = parser.add_argument_group("pictures (one of these)").add_mutually_exclusive_group(required=True)
    what.add_argument("--image", nargs="+", metavar="PATH", help="pictures; - is standard input")
    what.add_argument("--batch", type=Path, metavar="DIR", help="all pictures in this folder and its sub-folders")
    what.add_argument("--serve", action="store_true", help="those that come over HTTP, from the page of --serve too")

    sheet = "print a sheet to write characters into, for --cut: a .pdf file, or a .png (with --alphabet)"
    form = "an empty form: its boxes are found and written to the --fields file, for you to name them"
    what.add_argument("--form", type=Path, metavar="PICTURE", help=form)
    what.add_argument("--sheet", type=Path, metavar="FILE", help=sheet)

    how = parser.add_argument_group("how to recognise them")
    model = "a checkpoint or an .onnx file; several with --serve (default: the weights in the box, glyphs47)"
    how.add_argument("--model", type=Path, nargs="+", metavar="FILE", help=model)
    modes = "glyph finds the character; plain takes the picture as it is (default: as the model was trained)"
    how.add_argument("--preprocess", dest="mode", choices=PREPROCESSING, help=modes)
    only = f"answer only these characters, such as 0123456789, or {', '.join(ALPHABETS)} (default: all)"
    how.add_argument("--alphabet", type=alphabet_of, metavar="CHARACTERS", help=only)
    times = f"{PRIORS['digits'][0]:g} times as frequent as a letter"
    frequent = f"digits: each is {times}; auto: only in drawings of 28x28 pixels, MNIST's size (default: auto)"
    how.add_argument("--prior", choices=PRIORS, default="auto", help=frequent)
    uncertain = f"an answer less probable than this, from 0 to 1, is `uncertain` (default: 0; of fields {DOUBTFUL})"
    how.add_argument("--min-confidence", type=fraction, metavar="P", help=uncertain)
    views = "look at every picture seven times, turned, resized and slanted a little: more accurate, slower"
    how.add_argument("--average-views", action="store_true", help=views)

    text = parser.add_argument_group("text (docs/TEXT.md)")
    text.add_argument("--text", action="store_true", help="read all characters of a picture, not the one it shows")
    text.add_argument(
        "--words", type=Path, metavar="FILE", help="the words that a text holds, one on a line, with --text"
    )
    pattern = "a regular expression that each line matches, such as [0-9]{5}, with --text"
    text.add_argument("--pattern", metavar="REGEX", help=pattern)

    tables = "what stands in the cells of grids, with --text: DIR/NAME.csv for each picture NAME that shows one"
    text.add_argument("--tables", type=Path, metavar="DIR", help=tables)
    fields = "read the named fields of forms that this file describes, a column each (--form writes one)"
    text.add_argument("--fields", type=Path, metavar="FILE", help=fields)
    review = "an .html page with the fields of --fields that a person should look at"
    text.add_argument("--review", type=Path, metavar="FILE", help=review)

    own = parser.add_argument_group("characters of one's own (docs/DATA.md)")
    cut = "cut photographs of filled-in sheets into a folder to train on: DIR/CLASS/NAME.png"
    own.add_argument("--cut", type=Path, metavar="DIR", help=cut)

    answers = parser.add_argument_group("answers")
    likeliest = f"likeliest classes (default: {SHOWN_CLASSES}; in a pipe none, but those that it asks for)"
    answers.add_argument("--top-k", type=positive, metavar="N", help=likeliest)
    formats = "results to a .json, .csv, .jsonl, .parquet or, with --text, .hocr file"
    answers.add_argument("--output", type=Path, metavar="FILE", help=formats)
    drawn = "draw the picture, what the model saw and its answers, to PATH.png; several pictures, into the folder PATH"
    defaults = f"(default: {DRAWING}; {DRAWINGS}; with a number where that is there)"
    answers.add_argument("--visualize", nargs="?", const=True, type=Path, metavar="PATH", help=f"{drawn} {defaults}")
    saw = "what the model saw: DIR/NAME.png for each picture NAME"
    answers.add_argument("--save-preprocessed", type=Path, metavar="DIR", help=saw)
    service = parser.add_argument_group("service (with --serve)")
    service.add_argument("--host", default=argparse.SUPPRESS, help="address to listen on (default: 127.0.0.1)")
    service.add_argument("--port", type=port, default=argparse.SUPPRESS, metavar="N", help="port (default: 8000)")
    token = "what clients must bring; made up where --host lets others in (default: none on this machine)"
    service.add_argument("--token", default=argparse.SUPPRESS, help=token)
    collect = "keep pictures that the page's user corrects in DIR/CLASS/, to train on"
    service.add_argument("--collect", type=Path, default=argparse.SUPPRESS, metavar="DIR", help=collect)
    add_settings(
        parser,
        {"network": ("arch",), "machine": ("device", "batch_size")},
        {"batch_size": "pictures that the network sees at once"},
    )
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


def parse(argv: list[str] | None, description: str | None) -> tuple[argparse.Namespace, Config]:
    """The arguments, and the settings among them."""
    parser = build_parser(description)
    arguments = parser.parse_args(argv)
    check(parser, arguments)
    # A pipe has columns for candidates only where they are asked for, and for single characters.
    arguments.columns = 0 if arguments.text else arguments.top_k or 0
    arguments.top_k = arguments.top_k or SHOWN_CLASSES
    if arguments.min_confidence is None:
        arguments.min_confidence = DOUBTFUL if arguments.fields else 0.0
    given = given_settings(arguments)
    config = config_of(given, given)
    require_models(*(arguments.model or ()))
    return arguments, config


def check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse combinations of arguments that would lose pictures or mix them up, or that mean nothing."""
    check_others(parser, arguments)
    if arguments.serve:
        for name in ("output", "visualize", "save_preprocessed"):
            if getattr(arguments, name):
                parser.error(f"--serve answers over HTTP: leave out --{name.replace('_', '-')}")
    if not arguments.serve and (given := service_settings(arguments)):
        parser.error(f"--{next(iter(given))} is for --serve")
    if not arguments.serve and len(arguments.model or ()) > 1:
        parser.error("--model takes several files with --serve only")
    if arguments.visualize:
        several = arguments.batch or len(arguments.image) > 1
        if arguments.visualize is True:
            arguments.visualize = unused(DRAWINGS if several else DRAWING)
        elif several and arguments.visualize.suffix.lower() == ".png":
            parser.error(f"--visualize draws several pictures into a folder: name one, not {arguments.visualize}")
        elif not several and arguments.visualize.suffix.lower() != ".png":
            parser.error(f"--visualize writes PNG files: let {arguments.visualize} end in .png")
        for picture in map(Path, arguments.image or ()):
            drawing = arguments.visualize / f"{picture.name}.png" if several else arguments.visualize
            if picture.exists() and drawing.exists() and drawing.samefile(picture):
                parser.error(f"--visualize would replace the picture {drawing}")
    for name in ("words", "pattern", "tables"):
        if getattr(arguments, name) is not None and not arguments.text:
            parser.error(f"--{name} is for --text")
    if arguments.words and arguments.pattern is not None:
        parser.error("--words and --pattern both say what a text can hold: give one of them")
    if arguments.text and arguments.save_preprocessed:
        parser.error("--save-preprocessed is for single characters; with --text, --visualize draws what was found")
    if arguments.text and arguments.mode not in (None, "glyph"):
        parser.error("--text finds characters itself: leave --preprocess out")
    for written, read in itertools.product(("output", "review"), ("fields", "words")):
        paths = [getattr(arguments, name) for name in (written, read)]
        if all(paths) and os.path.realpath(paths[0]) == os.path.realpath(paths[1]):
            parser.error(f"--{written} would replace the file of --{read}")
    if (arguments.top_k or 0) > MOST_CLASSES:
        parser.error(f"--top-k is at most {MOST_CLASSES:,}")
    for name in ("save_preprocessed", "visualize", "cut", "tables") if arguments.batch else ():
        folder = getattr(arguments, name)
        # Path.resolve raises where links go in circles.
        if folder and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(arguments.batch)):
            flag = name.replace("_", "-")
            parser.error(f"--{flag} must not lie in --batch, where it would be read as more pictures")


def check_others(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse what means nothing beside the flags that do something else than to recognise characters or text."""
    characters = ("mode", "text", "words", "pattern", "visualize", "save_preprocessed", "top_k", "tables")
    recognition = (*characters, "model", "average_views", "output", "review", "min_confidence")
    strangers = {
        "form": (*recognition, "alphabet", "cut"),
        "sheet": (*recognition, "fields", "cut"),
        "cut": (*recognition, "alphabet", "fields", "serve"),
        "fields": (*characters, "serve"),
    }
    for flag, others in strangers.items():
        if getattr(arguments, flag) and (given := [name for name in others if getattr(arguments, name)]):
            other = "preprocess" if given[0] == "mode" else given[0].replace("_", "-")
            parser.error(f"--{flag} does not go with --{other}")
    if arguments.form and not arguments.fields:
        parser.error("--form needs the file to write: --fields fields.json")
    if arguments.sheet and not arguments.alphabet:
        parser.error('--sheet needs the classes: --alphabet digits, --alphabet "βδλ", or --alphabet "sun moon star"')
    if arguments.review and not arguments.fields:
        parser.error("--review is for --fields")
    for flag, suffixes in (("sheet", (".pdf", ".png")), ("fields", (".json",)), ("review", (".html",))):
        path = getattr(arguments, flag)
        if path and path.suffix.lower() not in suffixes:
            parser.error(f"--{flag} takes a file that ends in {' or '.join(suffixes)}, not {path}")


def service_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags of the service that were on the command line."""
    return {name: value for name, value in vars(arguments).items() if name in ("host", "port", "token", "collect")}
