"""What inference.py does with collection sheets: print them, and cut photographs of them into a folder data set."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from glyphs.core.arrays import Bytes
from glyphs.core.errors import ConfigError, DataError, PictureError
from glyphs.core.files import explain_write_error, too_long, valid_utf8
from glyphs.core.process import Interrupted, say
from glyphs.core.progress import line_above, progress
from glyphs.core.text import one_line
from glyphs.forms.sheet import COLUMNS, PAPER, RULE_GREY, RULE_WIDTH, SheetPage, classes_of, cut_sheet, paginate
from glyphs.output.results import save_pixels
from glyphs.pictures.decode import Source, explain_fault, open_picture, to_grey
from glyphs.pictures.glyph import GlyphStatus, preprocess, to_bytes

HEADING = "Page {} of {}\nOne character in each box, with a dark pen, clear of its sides.\nBoxes may stay empty."


def print_sheet(alphabet: str, path: Path) -> None:
    """Draw a sheet for the classes of an alphabet into a .pdf or .png file.  Raises GlyphError."""
    pages = paginate(classes_of(alphabet))
    if len(pages) > 1 and path.suffix.lower() == ".png":
        raise ConfigError(f"{path}: the sheet has {len(pages)} pages, which a .png cannot hold; name a .pdf")
    from glyphs.output.plots import PrintedPage, plot_pages  # matplotlib: not for cutting

    printed = [
        PrintedPage(page.squares(), page.rules(), page.labels(), HEADING.format(page.number, page.count))
        for page in pages
    ]
    plot_pages(printed, PAPER, (RULE_WIDTH, RULE_GREY), path)
    classes = sum(len(page.names) for page in pages)
    say(f"{path}: pages: {len(pages)}; classes: {classes}, with {COLUMNS * pages[0].repeat} boxes each")


def cut_sheets(pictures: Iterable[tuple[str, Source | PictureError]], folder: Path) -> int:
    """Cut photographs of sheets into the pictures of a folder data set; returns how many could not be cut.

    What stands in a box on the photograph NAME becomes FOLDER/CLASS/NAME-page-row-column.png; empty boxes are left out.

    Parameters
    ----------
    pictures : pairs of a name, of no other photograph, and a picture, or why there is none.

    Raises
    ------
    DataError : a picture that would be written is there already; or two classes would have one folder.
    GlyphError : a picture cannot be written.
    """
    failed = sheets = 0
    kept: Counter[str] = Counter()
    try:
        for name, source in progress(pictures, unit=" sheets", delay=1):
            try:
                page, new = pictures_of(name, source, folder)
            except PictureError as error:
                failed += 1
                line_above(one_line(valid_utf8(str(error))))
                continue
            for path in new:
                if path.exists():
                    raise DataError(
                        f"{path}: is there already; rename the photograph, remove what was cut from it before, or "
                        "choose another folder to --cut"
                    )
            for class_name in page.names:
                make_folder(folder, class_name)
            for path, (pixels, _) in new.items():
                save_pixels(pixels, path)
            sheets += 1
            kept.update(status for _, status in new.values())
            line_above(one_line(f"{valid_utf8(name)}: page {page.number} of {page.count}, {len(new)} characters"))
    except Interrupted:
        say(
            f"{folder}: {sheets:,} sheets are cut, and perhaps a part of one; go on with the other photographs, "
            "or remove what was cut"
        )
        raise
    say(f"{folder}: {kept.total():,} pictures cut from {sheets:,} sheets")
    if kept["several_glyphs"]:
        say(f"{kept['several_glyphs']:,} show several glyphs: training leaves them out, unless --preprocess plain")
    return failed


def pictures_of(
    name: str, source: Source | PictureError, folder: Path
) -> tuple[SheetPage, dict[Path, tuple[Bytes, GlyphStatus]]]:
    """Which page a photograph shows, and by their paths the pictures to be cut from it, and what they show.

    Raises PictureError.
    """
    if isinstance(source, PictureError):
        raise source
    shown = valid_utf8(name)
    start = shown.replace(os.sep, "-")
    if too_long(folder / f"{start}-255-16-12.png"):
        raise PictureError(f"{shown}: has a name too long for what is cut from it; rename it")
    opened = open_picture(source)
    new: dict[Path, tuple[Bytes, GlyphStatus]] = {}
    with explain_fault(shown):
        page, cuts = cut_sheet(to_grey(opened), name)
        for cut in cuts:
            pixels = to_bytes(cut.picture)
            if (status := preprocess(pixels).status) != "no_glyph":
                new[folder / cut.name / f"{start}-{page.number}-{cut.row}-{cut.column}.png"] = pixels, status
    return page, new


def make_folder(folder: Path, name: str) -> None:
    """Make a class's folder.  Raises DataError where the file system takes it for another's, as A for a."""
    with explain_write_error(folder / name):
        (folder / name).mkdir(parents=True, exist_ok=True)
        there = {unicodedata.normalize("NFC", each.name) for each in folder.iterdir()}
    if unicodedata.normalize("NFC", name) not in there:
        raise DataError(
            f"{folder / name}: is the folder of another class on this file system, which does not tell A from a; call "
            'classes by words that differ otherwise, as in --alphabet "a A-capital"'
        )
