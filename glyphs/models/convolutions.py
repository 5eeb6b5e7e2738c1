"""The fast 3x3 convolutions behind the model: Winograd's for small maps, and bfloat16 for training."""

import functools
import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

WINOGRAD_SIZE = 4  # pixels a side of the feature maps of the last stage
WINOGRAD_FROM = 16  # images: with fewer, transforming the weights takes longer than it saves
FROZEN_FROM = 8  # images, where that has been done before
# Of the sets of points that were tried, this one rounds least: 1.6e-6 of the outputs' spread, as float32 itself.
WINOGRAD_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity


def winograd_matrices() -> tuple[Tensor, Tensor, Tensor]:
    """Matrices that turn a 3x3 convolution of a zero-padded 4x4 map into 36 products.

    Winograd's F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308), from the Toom-Cook construction.

    Returns
    -------
    data, kernel, inverse : float64 [36, 16], [36, 9] and [16, 36], such that for a map x and a kernel w
        inverse @ ((data @ x.flatten()) * (kernel @ w.flatten())) == conv2d(x, w, padding=1).flatten().
    """
    size = WINOGRAD_SIZE + 2

    def powers(count: int) -> Tensor:
        finite = torch.vander(torch.tensor(WINOGRAD_POINTS, dtype=torch.float64), count, increasing=True)
        return torch.cat([finite, torch.eye(count, dtype=torch.float64)[-1:]])

    data = torch.linalg.inv(powers(size)).T[:, 1:-1].contiguous()  # the first and the last column meet only padding
    kernel, inverse = powers(3), powers(WINOGRAD_SIZE).T.contiguous()
    return torch.kron(data, data), torch.kron(kernel, kernel), torch.kron(inverse, inverse)


WINOGRAD_MATRICES = winograd_matrices()


@functools.lru_cache(maxsize=8)
def work_space(thread: int, *shape: int) -> Tensor:
    """bfloat16 zeros to write into.  Kept from step to step: a fresh page of memory takes longer than its contents."""
    return torch.zeros(shape, dtype=torch.bfloat16)


class BFloat16Conv3x3(torch.autograd.Function):
    """A 3x3 convolution with padding, whose weights' gradient is one matrix product.

    For wide layers with small maps PyTorch's CPU backend has no fast bfloat16 kernel for that gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, stride=stride, padding=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        gradient, stride = gradients[0].contiguous(memory_format=torch.channels_last), ctx.stride
        c_out, c_in = weight.shape[:2]
        n, _, h, w = x.shape
        thread = threading.get_ident()
        padded = work_space(thread, n, h + 2, w + 2, c_in)
        padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
        patches = padded.unfold(1, 3, stride).unfold(2, 3, stride).permute(0, 1, 2, 4, 5, 3)  # [N, H, W, 3, 3, C_in]
        rows = work_space(thread, *patches.shape).copy_(patches).view(-1, 9 * c_in)
        of_weight = (rows.T @ gradient.permute(0, 2, 3, 1).reshape(-1, c_out)).view(3, 3, c_in, c_out)
        of_x = conv2d_input(x.shape, weight, gradient, stride=stride, padding=1)  # type: ignore[no-untyped-call]
        return of_x, of_weight.permute(3, 2, 0, 1), None


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with padding and without bias, faster on CPUs where its maps are 4x4.

    In float32, batches of such maps go through Winograd's algorithm: 36 multiplications instead of 144, as a matrix
    product.  It is exact but for rounding; `python benchmarks/throughput.py` shows what it saves.

    Attributes
    ----------
    transformed : the weights as that product takes them, [36, C_in, C_out], where they are kept; see `freeze`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.transformed: Tensor | None = None

    def transform(self) -> Tensor:
        """The weights as Winograd's algorithm multiplies by them, [36, C_in, C_out]."""
        kernel = WINOGRAD_MATRICES[1].to(self.weight.dtype)
        columns = self.weight.permute(2, 3, 1, 0).reshape(9, -1)
        return (kernel @ columns).view(-1, self.in_channels, self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        # This comes first: an export holds the standard operator, and must not ask for the size of the batch.
        if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() or x.device.type != "cpu":
            return super().forward(x)
        if torch.is_autocast_enabled("cpu"):
            if x.shape[2] > WINOGRAD_SIZE * self.stride[0]:
                return super().forward(x)
            result: Tensor = BFloat16Conv3x3.apply(x.bfloat16(), self.weight.bfloat16(), self.stride[0])
            return result
        if self.stride != (1, 1) or x.shape[2:] != (WINOGRAD_SIZE, WINOGRAD_SIZE):
            return super().forward(x)
        if len(x) < (WINOGRAD_FROM if self.transformed is None else FROZEN_FROM):
            return super().forward(x)
        n, c = x.shape[:2]
        data, _, inverse = (matrix.to(x.dtype) for matrix in WINOGRAD_MATRICES)
        # Pixel by pixel and channels last, as the maps lie in memory.
        maps = torch.matmul(data, x.permute(0, 2, 3, 1).reshape(n, -1, c)).transpose(0, 1)  # [36, N, C_in]
        weights = self.transform() if self.transformed is None else self.transformed
        products = torch.bmm(maps, weights)  # [36, N, C_out]
        out = torch.matmul(inverse, products.transpose(0, 1))  # [N, 16, C_out]
        return out.transpose(1, 2).view(n, self.out_channels, WINOGRAD_SIZE, WINOGRAD_SIZE)


def freeze(model: nn.Module) -> None:
    """Transform the weights of all `Conv3x3` once, for a network that only reads: they must not change any more."""
    for module in model.modules():
        if isinstance(module, Conv3x3) and module.stride == (1, 1):
            module.transformed = module.transform().detach()
