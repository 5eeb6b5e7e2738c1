"""Pictures as they are, letterboxed to the size and the colours that a network sees: icons, logos, photographs.

What can be seen through lies on paper: at prediction on white, or on black where all that is seen is light; in training
on papers of many colours (`glyphs.data.augment.vary_paper`), for which the cover is kept as one more layer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from glyphs.core.arrays import Bytes
from glyphs.core.config import Config
from glyphs.pictures.decode import to_grey

Mode = Literal["glyph", "plain", "inverted"]

COVERED = 128  # from which on a pixel counts as seen, and its brightness as light
REDUCING_GAP = 3.0  # times the size: larger pictures are first shrunk by a whole factor, which is quicker


class InputForm(NamedTuple):
    """What a network sees of a picture.

    mode : "glyph" draws the one character that is found as EMNIST's images are; "plain" takes the picture as it is;
        "inverted" is what "plain" was up to version 1.0, grey and inverted where the border is light, for its models.
    size : pixels a side.  color : red, green and blue; else grey.
    """

    mode: Mode = "glyph"
    size: int = 28
    color: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height and width."""
        return 3 if self.color else 1, self.size, self.size

    @property
    def edge(self) -> str:
        """What comes in from outside an image that is turned, as `torch.nn.functional.grid_sample` calls it."""
        return "border" if self.mode == "plain" else "zeros"

    @property
    def words(self) -> str:
        """For people: `28x28 pixels, grey`."""
        return f"{self.size}x{self.size} pixels, {'in colour' if self.color else 'grey'}"


EMNIST_FORM = InputForm()


def form_of(settings: Mapping[str, Any]) -> InputForm:
    """The form that a model's settings tell of; where they leave it open, EMNIST's."""
    mode = settings.get("preprocess")
    known: Mode = "plain" if mode == "plain" else "inverted" if mode == "inverted" else "glyph"
    return InputForm(known, settings.get("image_size") or EMNIST_FORM.size, settings.get("color") == "on")


def with_form(config: Config, form: InputForm) -> Config:
    """These settings, for images of this form."""
    color = "on" if form.color else "off"
    return dataclasses.replace(config, preprocess=form.mode, image_size=form.size, color=color)


def letterbox(picture: Image.Image, form: InputForm) -> Bytes:
    """An open picture, scaled to fit the form's square, neither cropped nor squeezed, with its cover.

    Beside it is what most of its border shows; beside what can be seen through, nothing, as that shows no paper.

    Returns
    -------
    uint8 [size, size, C + 1]: grey or red, green and blue, and last how much of the paper is covered, up to 255.
    """
    if picture.mode.startswith(("I", "F")):
        picture = Image.fromarray(np.rint(to_grey(picture) * 255).astype(np.uint8))
    transparent = picture.has_transparency_data
    if transparent or picture.mode not in ("L", "RGB"):
        # CMYK, palettes and the rarer colour spaces reach grey only by way of RGB.
        picture = picture.convert("RGBA" if transparent else "RGB")
    if not form.color:
        picture = picture.convert("LA" if transparent else "L")
    elif picture.mode == "L":
        picture = picture.convert("RGB")
    channels = 3 if form.color else 1
    scale = form.size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    # Pillow weighs colours by their cover.
    scaled = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)).reshape(
        height, width, -1
    )
    square = np.zeros((form.size, form.size, channels + 1), np.uint8)
    top, left = (form.size - height) // 2, (form.size - width) // 2
    inside = square[top : top + height, left : left + width]
    if transparent:
        inside[:] = scaled
        return square
    border = np.concatenate([scaled[0], scaled[-1], scaled[:, 0], scaled[:, -1]])
    square[:] = [*np.median(border, axis=0).astype(np.uint8), 255]
    inside[..., :channels] = scaled
    return square


def on_paper(layers: Bytes, paper: Bytes | None = None) -> Bytes:
    """Pictures with their cover, uint8 [..., H, W, C + 1], laid on paper: uint8 [..., H, W, C].

    paper : the paper's colours, uint8 [..., 1, 1, C]; None for white, or black for each picture that shows nothing but
        light colours and is half transparent somewhere.
    """
    colours, cover = layers[..., :-1].astype(np.uint16), layers[..., -1:].astype(np.uint16)
    if paper is None:
        seen = np.where(cover >= COVERED, brightness(layers), 255).min(axis=(-3, -2, -1), keepdims=True)
        through = cover.min(axis=(-3, -2, -1), keepdims=True) < COVERED
        paper = np.where(through & (seen >= COVERED), 0, 255).astype(np.uint8)
    laid: Bytes = ((colours * cover + paper.astype(np.uint16) * (255 - cover) + 127) // 255).astype(np.uint8)
    return laid


def brightness(layers: Bytes) -> Bytes:
    """How bright the colours of uint8 [..., C + 1] are, without the cover: uint8 [..., 1]."""
    if layers.shape[-1] == 2:
        return layers[..., :1]
    red, green, blue = np.moveaxis(layers[..., :3].astype(np.uint16), -1, 0)
    grey: Bytes = ((77 * red + 150 * green + 29 * blue) >> 8).astype(np.uint8)
    return grey[..., None]


def to_pictures(images: Bytes) -> Bytes:
    """Images [N, C, H, W], as networks take them, as people and files have them: [N, H, W], or [N, H, W, 3]."""
    return images[:, 0] if images.shape[1] == 1 else np.moveaxis(images, 1, -1)


def to_planes(images: Bytes) -> Bytes:
    """Images [N, H, W] or [N, H, W, C], as people and files have them, as networks take them: [N, C, H, W]."""
    return images[:, None] if images.ndim == 3 else np.ascontiguousarray(np.moveaxis(images, -1, 1))
