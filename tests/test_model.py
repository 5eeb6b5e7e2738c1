"""The network: the figures its documentation states, the inputs it takes, and how it starts."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from glyphs.models.convolutions import FROZEN_FROM, WINOGRAD_FROM, BFloat16Conv3x3, Conv3x3, freeze
from glyphs.models.network import DepthwiseSeparableConv, EnhancedGlyphCNN, ResidualBlock, ViewAverage

BOTH = pytest.mark.parametrize("use_residual", [True, False])


def make_model(use_residual: bool, num_classes: int = 47) -> EnhancedGlyphCNN:
    torch.manual_seed(0)
    return EnhancedGlyphCNN(num_classes, use_residual=use_residual)


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def documented_figures() -> list[tuple[float, float]]:
    """(parameters, multiply-adds) in millions that the docstring states, of the residual and the light network."""
    found = re.findall(r"\(([\d.]+) M\s+parameters, ([\d.]+) M", EnhancedGlyphCNN.__doc__ or "")
    found += re.findall(r"\(([\d.]+) M, ([\d.]+) M\)", EnhancedGlyphCNN.__doc__ or "")
    return [(float(parameters), float(products)) for parameters, products in found]


def test_residual_network_has_3_3_to_3_7_million_parameters() -> None:
    assert 3.3e6 <= count_parameters(make_model(True)) <= 3.7e6


@BOTH
def test_docstring_states_the_true_cost(use_residual: bool) -> None:
    figures = documented_figures()
    assert len(figures) == 2
    parameters, products = figures[0 if use_residual else 1]
    model = make_model(use_residual).eval()
    assert round(count_parameters(model) / 1e6, 2) == parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, 28, 28))
    assert round(counter.get_total_flops() / 2 / 1e6, 1) == products


@BOTH
@pytest.mark.parametrize("size", [(20, 20), (21, 21), (28, 28), (32, 32), (64, 64), (20, 33)])
def test_any_size_from_20_up_gives_one_row_of_logits_an_image(use_residual: bool, size: tuple[int, int]) -> None:
    model = make_model(use_residual, num_classes=5)
    logits = model(torch.rand(2, 1, *size))
    assert logits.shape == (2, 5)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@BOTH
@torch.no_grad()
def test_uint8_means_the_same_as_float_between_0_and_1(use_residual: bool) -> None:
    model = make_model(use_residual).eval()
    images = torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(model(images), model(images / 255))
    assert not torch.allclose(model(images), model(images.float()))


@BOTH
@torch.no_grad()
def test_evaluation_mode_ignores_the_other_images_of_a_batch(use_residual: bool) -> None:
    model = make_model(use_residual).eval()
    images = torch.rand(8, 1, 28, 28)
    torch.testing.assert_close(model(images)[3:4], model(images[3:4]), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_normalises_with_the_mean_and_deviation_that_it_carries() -> None:
    model = make_model(False).eval()
    state = model.state_dict()
    assert state["mean"].item() == pytest.approx(0.1736)
    assert state["std"].item() == pytest.approx(0.3317)
    assert not {"mean", "std"} & {name for name, _ in model.named_parameters()}
    seen: list[torch.Tensor] = []
    model.stem.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(2, 1, 28, 28)
    model(images)
    torch.testing.assert_close(seen[0], (images - 0.1736) / 0.3317)
    model.mean.fill_(0.5)
    model.std.fill_(0.25)
    model(images)
    torch.testing.assert_close(seen[1], (images - 0.5) / 0.25)


@torch.no_grad()
def test_logits_are_divided_by_the_temperature_that_the_model_carries() -> None:
    model = make_model(False).eval()
    images = torch.rand(2, 1, 28, 28)
    logits = model(images)
    assert model.state_dict()["temperature"].item() == 1
    model.temperature.fill_(2.5)
    torch.testing.assert_close(model(images), logits / 2.5)


def test_frozen_convolutions_transform_their_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(Conv3x3(24, 40), Conv3x3(40, 24, stride=2))
    images = torch.randn(FROZEN_FROM, 24, 4, 4)
    with torch.inference_mode():
        before = net(images)
        freeze(net)
        assert net[1].transformed is None
        monkeypatch.setattr(Conv3x3, "transform", None)
        after = net(images)
        net[0].transformed.zero_()
        assert not net[0](images).any()
        assert net[0](images[1:]).any()  # fewer are not worth it
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def conv_and_gradients(conv: Conv3x3, images: torch.Tensor, through: torch.Tensor, direct: bool) -> list[torch.Tensor]:
    images = images.clone().requires_grad_()
    out = F.conv2d(images, conv.weight, padding=1) if direct else conv(images)
    return [out.detach(), *torch.autograd.grad(out, [images, conv.weight], through)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_fast_convolution_of_4x4_maps_is_the_convolution(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    conv = Conv3x3(24, 40).to(dtype)
    images = torch.randn(WINOGRAD_FROM, 24, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)
    through = torch.randn(WINOGRAD_FROM, 40, 4, 4, dtype=dtype)
    fast, plain = (conv_and_gradients(conv, images, through, direct) for direct in (False, True))
    for ours, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance * expected.std().item() * 10)
    assert conv(images).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("stride", "size"), [(1, 4), (2, 7), (2, 8)])
def test_bfloat16_convolution_has_the_convolutions_gradients(stride: int, size: int) -> None:
    torch.manual_seed(0)
    images = torch.randn(5, 24, size, size).bfloat16().to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(40, 24, 3, 3).bfloat16().requires_grad_()
    out = BFloat16Conv3x3.apply(images, weight, stride)
    expected = F.conv2d(images.float(), weight.float(), stride=stride, padding=1)
    through = torch.randn_like(expected).bfloat16()
    for _ in range(2):  # its work space is written to again
        ours = torch.autograd.grad(out, (images, weight), through, retain_graph=True)
    exact = torch.autograd.grad(expected, (images, weight), through.float())
    for a, b in zip((out, *ours), (expected, *exact), strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=0.02, atol=0.02 * b.std().item())


@torch.no_grad()
def test_autocast_leaves_wide_small_maps_to_the_bfloat16_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def note(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return F.conv2d(x, weight)

    monkeypatch.setattr(BFloat16Conv3x3, "apply", note)
    images = torch.zeros(2, 3, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        for size, stride in ((4, 1), (7, 2), (7, 1), (14, 2)):
            Conv3x3(3, 3, stride)(torch.zeros(2, 3, size, size))
    assert seen == [(2, 3, 4, 4), (2, 3, 7, 7)]
    Conv3x3(3, 3)(images)
    assert len(seen) == 2


@pytest.mark.parametrize(("count", "size", "factor"), [(WINOGRAD_FROM, 4, 4), (WINOGRAD_FROM - 1, 4, 1), (64, 5, 1)])
@torch.no_grad()
def test_fast_convolution_multiplies_a_quarter_as_often_where_it_applies(count: int, size: int, factor: int) -> None:
    width = 512  # so that transforming maps and weights counts little
    with FlopCounterMode(display=False) as counter:
        Conv3x3(width, width)(torch.zeros(count, width, size, size))
    direct = 2 * count * size**2 * 9 * width**2
    if factor == 1:
        assert counter.get_total_flops() == direct
    else:
        products = 2 * 36 * count * width**2
        transforms = 2 * width * 36 * (16 * count + 9 * width + 16 * count)
        assert counter.get_total_flops() == products + transforms
        assert products == direct / factor


@BOTH
def test_gradient_reaches_every_parameter(use_residual: bool) -> None:
    model = make_model(use_residual)
    # At first a residual branch ends in a zero weight, which lets no gradient through to what is before it.
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    model(torch.rand(4, 1, 28, 28)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_residual_block_is_the_identity_at_first() -> None:
    model = make_model(True).eval()
    images = torch.rand(2, 32, 14, 14)
    block = model.stages[0]
    assert isinstance(block, ResidualBlock)
    assert torch.equal(block(images), images)


def test_residual_block_adds_its_branch_to_the_shortcut() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(4, 4).eval()
    images = torch.randn(2, 4, 8, 8)
    branch = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(images)))))
    torch.testing.assert_close(block(images), torch.relu(branch + images))
    assert not torch.allclose(block(images), torch.relu(branch))


@pytest.mark.parametrize("block", [ResidualBlock, DepthwiseSeparableConv])
@pytest.mark.parametrize(("stride", "size"), [(1, 9), (2, 5)])
def test_blocks_change_width_and_halve_odd_sizes_upwards(
    block: type[ResidualBlock] | type[DepthwiseSeparableConv], stride: int, size: int
) -> None:
    assert block(4, 6, stride)(torch.rand(2, 4, 9, 9)).shape == (2, 6, size, size)


def test_three_stages_of_two_blocks_of_the_chosen_kind() -> None:
    assert [type(stage) for stage in make_model(True).stages] == [ResidualBlock] * 6
    assert [type(stage) for stage in make_model(False).stages] == [DepthwiseSeparableConv] * 6
    assert not any(isinstance(module, ResidualBlock) for module in make_model(False).modules())


def test_dropout_rate_is_that_asked_for() -> None:
    assert EnhancedGlyphCNN(5, dropout_rate=0.25, use_residual=False).dropout.p == 0.25
    assert EnhancedGlyphCNN(5, use_residual=False).dropout.p == 0.4


class Seen(EnhancedGlyphCNN):
    """Notes what it is shown, and answers with its number."""

    def __init__(self) -> None:
        super().__init__(2, use_residual=False)
        self.views: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.views.append(images)
        return torch.tensor([[len(self.views), 0.0]]).expand(len(images), -1)


def test_views_are_turned_resized_and_slanted_and_their_logits_averaged() -> None:
    model = Seen()
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[..., 6:22, 12:16] = 255  # a bar of 4x16
    average = ViewAverage(model)(image)
    torch.testing.assert_close(average, torch.tensor([[(1 + 7) / 2, 0]]))
    torch.testing.assert_close(model.views[0], image / 255)
    y, x = torch.meshgrid(torch.arange(28) - 13.5, torch.arange(28) - 13.5, indexing="ij")
    ink = [view.sum().item() for view in model.views]
    slants = [((view * x * y).sum() / (view * y * y).sum()).item() for view in model.views]
    heights = [((view * y * y).sum() / view.sum()).sqrt().item() for view in model.views]
    assert [round(s / ink[0], 2) for s in ink] == pytest.approx([1, 1, 1, 1 / 1.07**2, 1.07**2, 1, 1], abs=0.02)
    assert slants == pytest.approx([0, 0.1, -0.1, 0, 0, -0.1, 0.1], abs=0.015)  # tan(6 degrees) is 0.105
    assert heights[3] < heights[0] < heights[4]


def test_a_temperature_shows_through_the_average_of_views() -> None:
    model = make_model(False)
    model.temperature.fill_(2.5)
    assert ViewAverage(model).temperature == 2.5
