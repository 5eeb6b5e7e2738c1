"""How well pictures of text are read, by kind and by source.

    python benchmarks/text.py --model MODEL --pictures DIR

DIR holds pictures and truth.tsv: file, text (lines separated by |), kind, source.  Prints, for each kind of the sources
that reading was tuned on, for each kind of all others, and for each source, the character error rate (edits over
characters, case and spaces ignored), the pictures without an error, the pictures refused (a refused picture counts as
all of its characters missed), and processor seconds a picture, which other programs disturb less than seconds; see
benchmarks/reading.py for those.

Few people stand behind many of such pictures, so that the interval of an error rate comes from drawing sources, not
pictures, anew (bootstrap, 95 %); a kind of one source has none.
"""

import argparse
import csv
import itertools
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from glyphs.reading.predictor import GlyphPredictor
from glyphs.reading.reader import read_words

JOINED = "cursive"  # the kind that is to be refused
TUNED = {  # sources whose pictures reading was developed on
    "13Aluminium/ocr_comparision", "Breta01/handwriting-ocr", "ConnorCMcLean10/Hand-Writing-Detection",
    "Prince001194/Handwritten-character-recognizer", "RivoLink/text-recognition", "bikz05/digit-recognition",
    "bmitt/emnist_ocr", "dmlls/hwr-explained", "githubharald/SimpleHTR", "jajosheni/handwritten-character-recognition",
    "kvenkman/mnist_demo", "mrsadeghi/handwritten-multi-digits", "neeravgala1994/Handwritten_Multi-Digit_Calculator",
    "niraj-dudani/mnist-multiple-digits", "sonic-rectifier/OCR", "wichtounet/sudoku_dataset",
    "yashveersinghsohi/OCR_HandWritten_Form",
}  # fmt: skip
DRAWS = 2000


class Result(NamedTuple):
    """A picture's source, edits, characters, whether it was refused, and processor seconds."""

    source: str
    edits: int
    length: int
    refused: bool
    seconds: float


def edit_distance(one: str, other: str) -> int:
    """The fewest insertions, deletions and replacements that make one text the other."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        last, row = row, [i]
        for j, b in enumerate(other, start=1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
    return row[-1]


def plain(text: str) -> str:
    """The text without spaces, line breaks and case."""
    return "".join(text.replace("|", "").split()).lower()


def error_rate(results: Iterable[Result]) -> float:
    """Edits over characters; 0 where there are no characters."""
    edits, length = map(sum, zip(*((result.edits, result.length) for result in results), strict=True))
    return edits / max(length, 1)


def interval(results: Sequence[Result]) -> tuple[float, float] | None:
    """In which 95 % of the error rates lie when sources are drawn anew; None for one source."""
    sources: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        sources[result.source].append(result)
    if len(sources) < 2:
        return None
    draw = random.Random(0)
    groups = list(sources.values())
    rates = sorted(error_rate(itertools.chain(*draw.choices(groups, k=len(groups)))) for _ in range(DRAWS))
    return rates[round(0.025 * DRAWS)], rates[round(0.975 * DRAWS) - 1]


def table(title: str, results: dict[str, list[Result]]) -> None:
    print(f"\n{title:45} pictures  error rate  95 % interval  no error  refused  CPU s a picture")
    for name, group in results.items():
        limits = interval(group)
        span = f"{limits[0]:6.1%} -{limits[1]:6.1%}" if limits else ""
        right = sum(result.edits == 0 and not result.refused for result in group)
        refused = sum(result.refused for result in group)
        seconds = sum(result.seconds for result in group) / len(group)
        numbers = f"{error_rate(group):10.1%}  {span:13}  {right:8}  {refused:7}  {seconds:15.2f}"
        print(f"{name:45} {len(group):8}  {numbers}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a checkpoint or an .onnx file")
    parser.add_argument("--pictures", type=Path, required=True, metavar="DIR", help="pictures and truth.tsv")
    parser.add_argument("--digits", action="store_true", help="the alphabet 0123456789 where the truth is digits only")
    parser.add_argument("--words", type=Path, metavar="FILE", help="a word list, for words and lines")
    parser.add_argument("--kind", help="measure pictures of this kind only")
    parser.add_argument("--show", action="store_true", help="print each picture's text and what was read")
    arguments = parser.parse_args()
    predictor = GlyphPredictor(arguments.model, "cpu")
    digits = GlyphPredictor(arguments.model, "cpu", alphabet="0123456789") if arguments.digits else predictor
    listed = GlyphPredictor(arguments.model, "cpu", words=read_words(arguments.words)) if arguments.words else predictor
    tuned: dict[str, list[Result]] = defaultdict(list)
    others: dict[str, list[Result]] = defaultdict(list)
    sources: dict[str, list[Result]] = defaultdict(list)
    with (arguments.pictures / "truth.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for row in rows:
        truth = plain(row["text"])
        if arguments.kind not in (None, row["kind"]):
            continue
        reader = digits if truth.isdigit() else listed if row["kind"] in ("word", "line") else predictor
        start = time.process_time()
        reading = reader.read(arguments.pictures / row["file"])
        seconds = time.process_time() - start
        refused = reading.status == "joined_script"
        text = plain(reading.text or "")
        result = Result(row["source"], edit_distance(text, truth), len(truth), refused, seconds)
        (tuned if row["source"] in TUNED else others)[row["kind"]].append(result)
        if row["kind"] != JOINED:
            sources[row["source"]].append(result)
        if arguments.show:
            read = (reading.text or reading.status).replace("\n", "|")
            print(f"{row['kind']:8} {row['file']:24} {result.edits:3}/{result.length:3}  {row['text']}  =>  {read}")
    table("kind, sources tuned on", tuned)
    if others:
        table("kind, other sources", others)
    table("source", sources)


if __name__ == "__main__":
    main()
