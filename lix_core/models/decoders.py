"""Decoders: from an encoder's feature pyramid to class logits."""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lix_core.models.encoders import Pyramid


def conv_bn(in_channels: int, out_channels: int, kernel: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers = [
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, nn.ReLU6(inplace=True)) if act else nn.Sequential(*layers)


def separable(channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    """Depthwise then pointwise convolution, each with batch norm and ReLU6."""
    return nn.Sequential(conv_bn(channels, channels, kernel, groups=channels), conv_bn(channels, out_channels))


def of_image(in_channels: int, channels: int) -> nn.Sequential:
    """The mean of the whole image, projected: (B, D, h, w) -> (B, channels, 1, 1). No batch norm: an image alone has no statistics."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, channels, 1), nn.ReLU6(inplace=True))


def upsample(x: Tensor, factor: int) -> Tensor:
    """Bilinear, by a whole factor; constant factors keep exported graphs free of shape arithmetic."""
    return x if factor == 1 else F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


class Decoder(nn.Module):
    """What every decoder is: features before the head, and the head.

    A subclass takes `(pyramid, num_classes)`, builds `.dropout` and `.head` (a 1x1 convolution), implements `features`, and says
    `.channels` (of these), `.output_stride` and, where it is not 0, `.first` (the index of the finest stage it reads).

    Shape:
        stages: list of (B, D_k, H / s_k, W / s_k), finest first, as in the pyramid
        -> features (B, channels, H / s, W / s) -> logits (B, C, H / s, W / s), s = output_stride
    """

    channels: int
    output_stride: int
    first: int = 0
    dropout: nn.Module
    head: nn.Conv2d

    def features(self, stages: Sequence[Tensor]) -> Tensor:
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        return self.head(self.dropout(features))

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        return self.classify(self.features(stages))


class GlobalContext(nn.Module):
    """Adds what the whole image says (its mean feature, projected) to every pixel of the coarsest stage."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.local = conv_bn(in_channels, channels)
        self.image = of_image(in_channels, channels)
        self.mix = separable(channels, channels, kernel=5)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.local(x) + self.image(x))


class FastFPN(Decoder):
    """A feature pyramid network with separable convolutions (after Lin et al., CVPR 2017, arXiv 1612.03144).

    The top-down path runs at `channels` down to the second-finest stage; the finest stage joins at a quarter of
    the width, which keeps thin things (poles, signs) at little cost. Logits have the stride of the finest stage.
    """

    def __init__(self, pyramid: Pyramid, num_classes: int, channels: int = 96, dropout: float = 0.1):
        super().__init__()
        finest, *middle, coarsest = pyramid.channels
        fine = channels // 4
        self.context = GlobalContext(coarsest, channels)
        self.lateral = nn.ModuleList(conv_bn(c, channels, act=False) for c in middle)
        self.smooth = nn.ModuleList(separable(channels, channels) for _ in middle)
        self.reduce = conv_bn(channels, fine)
        self.lateral_fine = conv_bn(finest, fine, act=False)
        self.smooth_fine = separable(fine, channels // 2)
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(channels // 2, num_classes, 1)
        self.factors = [coarse // fine for fine, coarse in zip(pyramid.strides, pyramid.strides[1:])]
        self.channels, self.output_stride = channels // 2, pyramid.strides[0]

    def features(self, stages: Sequence[Tensor]) -> Tensor:
        finest, *middle, coarsest = stages
        to_finest, *factors = self.factors
        x = self.context(coarsest)
        for lateral, smooth, stage, factor in zip(reversed(self.lateral), reversed(self.smooth), reversed(middle), reversed(factors)):
            x = smooth(lateral(stage) + upsample(x, factor))
        return self.smooth_fine(self.lateral_fine(finest) + upsample(self.reduce(x), to_finest))


class PyramidPooling(nn.Module):
    """Sees the coarsest stage at several scales at once (after Zhao et al., CVPR 2017, arXiv 1612.01105).

    The original averages over the cells of 2x2, 3x3 and 6x6 grids laid over the image. Here windows of fixed width slide over it: the
    same features whatever the size of the image, and pooling that exports at any size.
    """

    windows = (3, 7, 15)

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        part = channels // 4
        self.scales = nn.ModuleList(conv_bn(in_channels, part) for _ in self.windows)
        self.image = of_image(in_channels, part)
        self.mix = conv_bn(in_channels + part * (len(self.windows) + 1), channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        # Borders count only what lies inside: zeros there would darken it.
        pooled = [F.avg_pool2d(x, k, stride=1, padding=k // 2, count_include_pad=False) for k in self.windows]
        scales = [project(p) for project, p in zip(self.scales, pooled)]
        image = self.image(x).expand(-1, -1, *x.shape[-2:])
        return self.mix(torch.cat([x, *scales, image], 1))


class UPerNet(Decoder):
    """The unified perceptual parsing network (after Xiao et al., ECCV 2018, arXiv 1807.10221), for semantic classes alone.

    Pyramid pooling on the coarsest stage, a feature pyramid with full 3x3 convolutions, and all of its levels joined at the finest.
    Stages finer than a stride of 4 stay unused, as in the paper: logits have a stride of 4 where the encoder has it.
    """

    def __init__(self, pyramid: Pyramid, num_classes: int, channels: int = 128, dropout: float = 0.1):
        super().__init__()
        # At least two stages, so that there is a pyramid to climb.
        self.first = min(sum(s < 4 for s in pyramid.strides), len(pyramid.strides) - 2)
        *in_channels, coarsest = pyramid.channels[self.first :]
        strides = pyramid.strides[self.first :]
        self.pooling = PyramidPooling(coarsest, channels)
        self.lateral = nn.ModuleList(conv_bn(c, channels) for c in in_channels)
        self.smooth = nn.ModuleList(conv_bn(channels, channels, 3) for _ in in_channels)
        self.fuse = conv_bn(channels * len(strides), channels, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(channels, num_classes, 1)
        self.steps = [coarse // fine for fine, coarse in zip(strides, strides[1:])]
        self.to_finest = [stride // strides[0] for stride in strides]
        self.channels, self.output_stride = channels, strides[0]

    def features(self, stages: Sequence[Tensor]) -> Tensor:
        *finer, coarsest = stages[self.first :]
        levels = [self.pooling(coarsest)]
        for lateral, stage, factor in zip(reversed(self.lateral), reversed(finer), reversed(self.steps)):
            levels.insert(0, lateral(stage) + upsample(levels[0], factor))
        levels = [*(smooth(level) for smooth, level in zip(self.smooth, levels)), levels[-1]]
        return self.fuse(torch.cat([upsample(level, factor) for level, factor in zip(levels, self.to_finest)], 1))


DECODERS: dict[str, type[Decoder]] = {"fast_fpn": FastFPN, "upernet": UPerNet}
"""Every decoder, by name."""
