"""What a folder's pictures are like: by that they are brought into one form or another."""

import contextlib
import logging
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from glyphs.core.ahead import work_ahead
from glyphs.core.config import Config
from glyphs.core.cpus import usable_cpus
from glyphs.core.errors import ConfigError, DataError, PictureError
from glyphs.data.layout import class_folders, part_folders
from glyphs.pictures.decode import PICTURE_FORMATS, open_picture
from glyphs.pictures.find import PictureFolder
from glyphs.pictures.glyph import preprocess
from glyphs.pictures.plain import EMNIST_FORM, InputForm

log = logging.getLogger(__name__)

LOOKED_AT = 200  # pictures, evenly spread over the classes
THUMBNAIL = 48  # pixels a side at which colours are measured
TINT = 3.0  # spread of a chroma channel (of 255) in a picture of one ink; handwriting: up to 1, most symbols: from 6
COLOURFUL = 8.0  # likewise, distance from grey of the most coloured twentieth of a picture; JPEG's greys: up to 4
LEAST_COLOURFUL = 0.05  # share of pictures, from which on colour is kept
LEAST_GLYPHS = 0.97  # share of pictures that show one character; letters and digits: 0.99 and more, symbols: up to 0.94
SIZES = range(32, 65, 8)  # that are taken without being asked for


class Look(NamedTuple):
    """One picture: its longer side, whether it shows one character, and how it is coloured."""

    side: int
    is_glyph: bool
    tint: float
    colour: float


def choose_form(config: Config) -> InputForm:
    """What the network is to see of a folder's pictures: as the settings say, and what they leave open, as they are.

    What that came to, and why, is logged.

    Raises
    ------
    ConfigError : a size or colours that EMNIST's form does not have.
    DataError : there is no picture that can be read.
    """
    size, color, mode = config.image_size, config.color, config.preprocess
    if mode in ("glyph", "inverted"):
        if size not in (None, EMNIST_FORM.size) or color == "on":
            raise ConfigError(
                f"--preprocess {mode} makes images of {EMNIST_FORM.words}; leave --image-size and --color out, or take "
                "--preprocess plain"
            )
        return InputForm("glyph" if mode == "glyph" else "inverted")
    if mode == "plain" and size and color != "auto":
        return InputForm("plain", size, color == "on")
    paths = spread(training_pictures(Path(config.data_dir)), LOOKED_AT)
    looks = [look for look in in_threads(look_at, paths) if look is not None]
    if not looks:
        raise DataError(f"{config.data_dir}: holds no picture that can be read; check the path")
    glyphs = sum(look.is_glyph for look in looks) / len(looks)
    tint = statistics.median(look.tint for look in looks)
    if mode == "plain" or size not in (None, EMNIST_FORM.size) or color == "on":
        why = "as asked for"
    elif tint > TINT:
        why = "since they are in colours"
    elif glyphs < LEAST_GLYPHS:
        why = f"since {1 - glyphs:.0%} of them show no single character"
    else:
        log.info(
            f"of {len(looks):,} pictures looked at, {glyphs:.0%} show one character in one ink: they are brought to "
            f"EMNIST's form ({EMNIST_FORM.words}); --preprocess plain takes them as they are"
        )
        return EMNIST_FORM
    side = statistics.median(look.side for look in looks)
    colourful = sum(look.colour > COLOURFUL for look in looks) / len(looks)
    form = InputForm(
        "plain",
        size or min(SIZES, key=lambda each: abs(each - side)),
        color == "on" or (color == "auto" and colourful >= LEAST_COLOURFUL),
    )
    log.info(
        f"pictures are taken as they are (--preprocess plain), {why}, in {form.words}: of {len(looks):,} looked at, "
        f"the longer side is {side:.0f} pixels (median), and {colourful:.0%} have colours"
    )
    return form


def training_pictures(data_dir: Path) -> list[str]:
    """The paths of the pictures to train on, those that will be held out among them.  Raises DataError."""
    root = part_folders(data_dir).get("train", data_dir)
    pictures = (picture for name in class_folders(root) for _, picture in PictureFolder(root / name))
    return [picture for picture in pictures if isinstance(picture, str)]


def look_at(path: str) -> Look | None:
    """What a picture is like; None where it cannot be read."""
    try:
        picture = open_picture(path)
        is_glyph = preprocess(picture).status == "ok"
    except PictureError:
        return None
    side = max(picture.size)
    small = picture.convert("RGBA")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    white = Image.new("RGBA", small.size, "white")
    chroma = np.asarray(Image.alpha_composite(white, small).convert("RGB").convert("YCbCr"))[..., 1:].astype(np.float32)
    tint = float(chroma.std(axis=(0, 1)).max())
    return Look(side, is_glyph, tint, float(np.quantile(np.abs(chroma - 128).max(axis=2), 0.95)))


def any_transparent(paths: Sequence[str]) -> bool:
    """Whether a picture, of a few that are looked at, can be seen through, as far as its head tells."""

    def transparent(path: str) -> bool:
        if path.lower().endswith(".svg"):
            return True
        # What cannot be opened is told elsewhere.
        with contextlib.suppress(Exception), Image.open(path, formats=PICTURE_FORMATS) as picture:
            return picture.has_transparency_data
        return False

    return any(transparent(path) for path in spread(paths, LOOKED_AT))


def spread(paths: Sequence[str], count: int) -> list[str]:
    """So many of the paths, evenly spaced."""
    return [paths[round(place)] for place in np.linspace(0, len(paths) - 1, min(count, len(paths)))]


def in_threads(function: Callable[[str], Look | None], paths: Sequence[str]) -> list[Look | None]:
    return list(work_ahead(function, ((path,) for path in paths), usable_cpus()))
