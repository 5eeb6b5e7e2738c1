"""The demo set: the 47 classes of EMNIST-Balanced drawn from the fonts that matplotlib ships, randomly distorted.

It needs no network and a few seconds, so the quick start and the tests run on it.  It is print, not handwriting:
what a model scores here says nothing about people's writing.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from glyphs.core.errors import DataError
from glyphs.core.randomness import address
from glyphs.data.augment import augment

DEMO_CLASSES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmb10", "cmmi10", "cmr10", "cmss10", "cmtt10"),
)
IMAGES_PER_CLASS = {"train": 200, "test": 40}
MASTER_SIZE = 84  # pixels a side: three times the final image, so that it shrinks by whole pixels
MASTER_BOX = 75  # the character's longer side: 25 of 28 pixels, as in EMNIST
WAVE = 0.06  # elastic distortion: how far a point moves, as a fraction of half the side
WAVE_GRID = 5  # control points a side of that distortion


def render_demo(part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Draw one part of the demo set, the same every time.

    Returns
    -------
    images : uint8 [N, 1, 28, 28], white on black.
    labels : int64 [N], indices into DEMO_CLASSES.
    """
    masters = torch.stack([draw_master(font, c) for c in DEMO_CLASSES for font in FONTS]).unsqueeze(1)
    generator = torch.Generator().manual_seed(address("demo", part))
    per_class = IMAGES_PER_CLASS[part]
    labels = torch.arange(len(DEMO_CLASSES)).repeat_interleave(per_class)
    fonts = torch.randint(len(FONTS), (len(labels),), generator=generator)
    images = []
    for chosen in torch.split(labels * len(FONTS) + fonts, 500):
        distorted = augment(masters[chosen], generator, rotation=12, shear=12, translate=0.03)
        waves = torch.randn(len(chosen), 2, WAVE_GRID, WAVE_GRID, generator=generator) * WAVE
        shift = F.interpolate(waves, MASTER_SIZE, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        identity = torch.eye(2, 3).expand(len(chosen), 2, 3)
        grid = F.affine_grid(identity, list(distorted.shape), align_corners=False) + shift
        small = F.avg_pool2d(F.grid_sample(distorted, grid, align_corners=False), MASTER_SIZE // 28)
        images.append((small * 255).round().to(torch.uint8))
    return torch.cat(images), labels


def draw_master(font_name: str, character: str) -> Tensor:
    """One character as uint8 [84, 84], white on black, centred, its longer side 75 pixels."""
    font = ImageFont.truetype(font_folder() / f"{font_name}.ttf", MASTER_SIZE)
    left, top, right, bottom = font.getbbox(character)
    glyph = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(glyph).text((-left, -top), character, font=font, fill=255)
    glyph = glyph.crop(glyph.getbbox())
    scale = MASTER_BOX / max(glyph.size)
    glyph = glyph.resize((max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale))))
    page = Image.new("L", (MASTER_SIZE, MASTER_SIZE))
    page.paste(glyph, ((MASTER_SIZE - glyph.width) // 2, (MASTER_SIZE - glyph.height) // 2))
    return torch.from_numpy(np.array(page))


@functools.cache
def font_folder() -> Path:
    """Where matplotlib keeps its fonts; finding it does not import matplotlib, which would take a second."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise DataError("--dataset demo draws with matplotlib's fonts: pip install matplotlib")
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
