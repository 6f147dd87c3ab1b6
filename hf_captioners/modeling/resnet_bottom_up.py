"""The residual network of the bottom-up detector, with stored statistics of normalisation and the checkpoints' names.

transformers' ResNet cannot take its place: this stem pools windows that start at pixel 0, in ceiling mode, and res5
keeps its stride of 1 with dilated convolutions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_bottom_up import BottomUpConfig

Layer = Callable[[Tensor], Tensor]


class FrozenNorm(nn.Module):
    """Normalisation by stored statistics, none of which ever learns; `start` is the weight of an untrained one."""

    def __init__(self, channels: int, eps: float, start: float = 1.0) -> None:
        super().__init__()
        self.eps, self.start = eps, start
        self.register_buffer("weight", torch.full((channels,), start))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class NormedConv(nn.Conv2d):
    """A convolution without bias, and the normalisation behind it, which can be folded into its weights."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        size: int,
        eps: float,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        start: float = 1.0,
    ) -> None:
        padding = dilation * (size // 2)
        super().__init__(channels, out_channels, size, stride, padding, dilation, groups, bias=False)
        self.norm = FrozenNorm(out_channels, eps, start)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))

    def prepare(self, fold: bool, dtype: torch.dtype) -> Layer:
        """The layer as a function of its input in `dtype`; in one step if `fold`, or if `dtype` is not its own."""
        if not fold and dtype == self.weight.dtype:
            return self
        norm = self.norm
        factor = norm.weight.float() * (norm.running_var.float() + norm.eps).rsqrt()  # (out)
        weight = (self.weight.float() * factor[:, None, None, None]).to(dtype, memory_format=torch.channels_last)
        bias = (norm.bias.float() - norm.running_mean.float() * factor).to(dtype)
        return lambda x: F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class Bottleneck(nn.Module):
    """A residual block: 1 x 1, 3 x 3 and 1 x 1 convolution, and a shortcut.

    Args:
        channels, inner, out_channels (`int`): widths.
        config ([`BottomUpConfig`]): the conventions.
        stride, dilation (`int`, default to 1): of the block, and of its 3 x 3 convolution.
        shortcut (`bool`, defaults to `False`): whether the shortcut has a convolution.
    """

    def __init__(
        self,
        channels: int,
        inner: int,
        out_channels: int,
        config: BottomUpConfig,
        stride: int = 1,
        dilation: int = 1,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        eps = config.norm_eps
        first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
        self.shortcut = NormedConv(channels, out_channels, 1, eps, stride) if shortcut else None
        self.conv1 = NormedConv(channels, inner, 1, eps, first)
        self.conv2 = NormedConv(inner, inner, 3, eps, second, dilation, config.num_groups)
        self.conv3 = NormedConv(inner, out_channels, 1, eps, start=1 / 4)  # dozens of blocks are added up

    def prepare(self, fold: bool, dtype: torch.dtype) -> Layer:
        """The block as a function of its input; see [`NormedConv.prepare`]."""
        conv1, conv2, conv3 = (conv.prepare(fold, dtype) for conv in (self.conv1, self.conv2, self.conv3))
        shortcut = None if self.shortcut is None else self.shortcut.prepare(fold, dtype)

        def run(x: Tensor) -> Tensor:
            y = conv3(conv2(conv1(x).relu_()).relu_())
            return y.add_(x if shortcut is None else shortcut(x)).relu_()

        return run


class Stage(nn.ModuleList):
    """The blocks of one resolution.

    Args:
        config ([`BottomUpConfig`]): widths and conventions.
        index (`int`): 0 for res2 to 3 for res5.
    """

    def __init__(self, config: BottomUpConfig, index: int) -> None:
        out = config.res2_channels * 2**index
        channels = config.stem_channels if index == 0 else out // 2
        inner = config.bottleneck_width * 2**index
        dilation = 2 if index == 3 and config.res5_dilated else 1
        stride = 1 if index == 0 or dilation == 2 else 2
        blocks: list[nn.Module] = [Bottleneck(channels, inner, out, config, stride, dilation, shortcut=True)]
        blocks += [Bottleneck(out, inner, out, config, 1, dilation) for _ in range(config.depths[index] - 1)]
        super().__init__(blocks)

    def prepare(self, fold: bool, dtype: torch.dtype) -> Layer:
        """The stage as a function of its input; see [`NormedConv.prepare`]."""
        layers = [block.prepare(fold, dtype) for block in self if isinstance(block, Bottleneck)]

        def run(x: Tensor) -> Tensor:
            for layer in layers:
                x = layer(x)
            return x

        return run


class Stem(nn.Module):
    """A 7 x 7 convolution and a maximum pooling, each of stride 2."""

    def __init__(self, config: BottomUpConfig) -> None:
        super().__init__()
        self.conv1 = NormedConv(
            3, config.stem_channels, 7, config.norm_eps, stride=2, start=1 / 64
        )  # of pixels up to 255
        self.ceil = config.stem_pool == "ceil"

    def prepare(self, fold: bool, dtype: torch.dtype) -> Layer:
        """The stem as a function of its input; see [`NormedConv.prepare`]."""
        conv = self.conv1.prepare(fold, dtype)
        padding = 0 if self.ceil else 1
        return lambda x: F.max_pool2d(conv(x).relu_(), 3, stride=2, padding=padding, ceil_mode=self.ceil)


class BottomUpBackbone(nn.Module):
    """The part of the network that sees the whole image: stem and res2 to res4, a cell per 16 pixels."""

    def __init__(self, config: BottomUpConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config)
        self.res2, self.res3, self.res4 = (Stage(config, index) for index in range(3))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features `(B, C, height / 16, width / 16)`, rounded up, of pixels `(B, 3, height, width)`."""
        dtype = self.stem.conv1.weight.dtype
        x = pixel_values.to(dtype, memory_format=torch.channels_last)
        for part in (self.stem, self.res2, self.res3, self.res4):
            x = part.prepare(self.config.fold_norms, dtype)(x)
        return x
