"""The network: a residual CNN for small images, and its lighter depthwise-separable sister."""

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glyphs.core.errors import ConfigError
from glyphs.models.convolutions import Conv3x3

# Over all EMNIST images, on a scale of 0 to 1.
EMNIST_MEAN = 0.1736
EMNIST_STD = 0.3317
MIDDLE, SPREAD = 0.5, 0.25  # of colours, until the data say better
SMALLEST_STD = 1e-3  # of images that are all alike
MIN_SIZE = 20  # pixels a side: below it the last stage would see less than 3x3

STEM_WIDTH = 32
STAGE_WIDTHS = (32, 96, 320)  # narrow where there are many pixels, wide where there are few
BLOCKS_PER_STAGE = 2


def as_floats(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images as floats in [0, 1]: bytes are divided by 255, floats are left as they are."""
    return images.to(dtype) / 255 if images.dtype == torch.uint8 else images


def as_bytes(images: Tensor) -> Tensor:
    """Images as uint8, whether they are already, or float in 0..1."""
    return images if images.dtype == torch.uint8 else (images * 255).round().clamp(0, 255).to(torch.uint8)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation beside a shortcut (He et al., arXiv 1512.03385, fig. 2).

    [N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)].  Where the shape changes, the shortcut is
    average pooling and a 1x1 convolution, so that no pixel is thrown away (ResNet-D, arXiv 1812.01187, fig. 2c).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride != 1 else nn.Identity(),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DepthwiseSeparableConv(nn.Module):
    """A 3x3 convolution within each channel, then a 1x1 across channels (MobileNet, arXiv 1704.04861, fig. 2).

    [N, C_in, H, W] -> [N, C_out, ceil(H / stride), ceil(W / stride)], for about an eighth of the arithmetic of
    a full 3x3 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(x)))


class EnhancedGlyphCNN(nn.Module):
    """Stem, three stages of two blocks at 14x14, 7x7 and 4x4, adaptive pooling, dropout, classifier.

    The first convolution steps over the image two pixels at a time (6x6, stride 2: the same arithmetic as a
    2x2 pixel-unshuffle before a 3x3), so nothing expensive ever runs at 28x28.  Widths and strides are the same for
    images of every size: the stages work at a half, a quarter and an eighth of it, so that the arithmetic grows with
    the number of pixels and the parameters stay.  Colour costs more in the first convolution only.

    Parameters
    ----------
    num_classes : outputs.
    dropout_rate : before the classifier, in [0, 1).
    use_residual : True for residual blocks (3.41 M parameters, 70.3 M multiply-adds for a 28x28 image, both at 47
        classes); False for depthwise-separable convolutions (0.17 M, 3.6 M).
    channels : 1 for grey images, 3 for red, green and blue.

    Attributes
    ----------
    mean, std : by which images are normalised, buffers of one number or [channels, 1, 1].  Grey networks begin with
        EMNIST's; see `normalise_by`.
    """

    def __init__(
        self, num_classes: int, dropout_rate: float = 0.4, use_residual: bool = True, *, channels: int = 1
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.channels = channels
        self.mean: Tensor  # for the type checker: buffers are otherwise Tensor | Module
        self.std: Tensor
        each = () if channels == 1 else (channels, 1, 1)
        self.register_buffer("mean", torch.full(each, EMNIST_MEAN if channels == 1 else MIDDLE))
        self.register_buffer("std", torch.full(each, EMNIST_STD if channels == 1 else SPREAD))
        self.temperature: Tensor
        self.register_buffer("temperature", torch.tensor(1.0))
        self.stem = nn.Sequential(
            nn.Conv2d(channels, STEM_WIDTH, 6, stride=2, padding=2, bias=False),
            nn.BatchNorm2d(STEM_WIDTH),
            nn.ReLU(),
        )
        block = ResidualBlock if use_residual else DepthwiseSeparableConv
        stages: list[nn.Module] = []
        width = STEM_WIDTH
        for number, stage_width in enumerate(STAGE_WIDTHS):
            for index in range(BLOCKS_PER_STAGE):
                stride = 2 if number > 0 and index == 0 else 1
                stages.append(block(width, stage_width, stride))
                width = stage_width
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout_rate)
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            # A residual branch that starts at zero makes every block an identity at first (arXiv 1706.02677, 5.1).
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.bn2.weight)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Parameters
        ----------
        images : [N, channels, H, W], upright; uint8, or float in [0, 1].  H and W from 20 up.

        Returns
        -------
        float logits [N, num_classes], divided by the temperature that calibration found (1 before it did).
        """
        if images.shape[1] != self.channels:
            raise ConfigError(
                f"the network takes images of {self.channels} channels, not of {images.shape[1]}: give it "
                f'channels={images.shape[1]}, or the data color="{"on" if self.channels == 3 else "off"}"'
            )
        x = (as_floats(images, self.mean.dtype) - self.mean) / self.std
        x = self.stages(self.stem(x))
        logits: Tensor = self.classifier(self.dropout(self.pool(x).flatten(1)))
        return logits / self.temperature

    def normalise_by(self, mean: Tensor, std: Tensor) -> None:
        """Take these, float [channels], the training images' on a scale of 0 to 1, to normalise images by."""
        self.mean.copy_(mean.view_as(self.mean))
        self.std.copy_(std.clamp_min(SMALLEST_STD).view_as(self.std))


class Calibrated(nn.Module):
    """A network of any architecture, with the temperature that calibration finds; input and output are as its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.temperature: Tensor
        self.register_buffer("temperature", torch.tensor(1.0))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits / self.temperature


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards each part of the model is in the mode that it was in, training or not: some may be frozen."""
    modes = [(part, part.training) for part in model.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


class ViewAverage(nn.Module):
    """A trained network that looks at each image seven times, for seven times the work.

    Its logits are the mean over the image as it is, turned by 6 degrees either way, 7 % smaller and larger, and slanted
    by a tenth either way (test-time augmentation, as arXiv 1409.1556, section 3.2, does by flipping).

    Parameters
    ----------
    model : the network; input and output are as its own.
    edge : what comes in from outside an image: "zeros", black, or "border", what its border shows there.
    """

    def __init__(self, model: nn.Module, edge: str = "zeros") -> None:
        super().__init__()
        self.model = model
        self.edge = edge
        cos, sin = math.cos(math.radians(6)), math.sin(math.radians(6))
        # From the coordinates of a view to those of the image.
        maps = torch.tensor(
            [
                [[1, 0], [0, 1]],
                [[cos, -sin], [sin, cos]],
                [[cos, sin], [-sin, cos]],
                [[1.07, 0], [0, 1.07]],
                [[1 / 1.07, 0], [0, 1 / 1.07]],
                [[1, 0.1], [0, 1]],
                [[1, -0.1], [0, 1]],
            ]
        )
        self.maps: Tensor
        self.register_buffer("maps", F.pad(maps, (0, 1)))

    @property
    def temperature(self) -> float:
        """What the network divides its logits by: 1 where it knows no temperature."""
        return float(getattr(self.model, "temperature", 1.0))

    def forward(self, images: Tensor) -> Tensor:
        images = as_floats(images, self.maps.dtype)
        logits = []
        for view in self.maps:
            grid = F.affine_grid(view.expand(len(images), -1, -1), list(images.shape), align_corners=False)
            logits.append(self.model(F.grid_sample(images, grid, padding_mode=self.edge, align_corners=False)))
        return torch.stack(logits).mean(0)
