"""Decoders: from an encoder's feature pyramid to class logits."""

from __future__ import annotations

from typing import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(in_channels: int, out_channels: int, kernel: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers = [
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, nn.ReLU6(inplace=True)) if act else nn.Sequential(*layers)


def separable(channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    """Depthwise then pointwise convolution, each with batch norm and ReLU6."""
    return nn.Sequential(conv_bn(channels, channels, kernel, groups=channels), conv_bn(channels, out_channels))


def upsample2(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class GlobalContext(nn.Module):
    """Adds what the whole image says (its mean feature, projected) to every pixel of the coarsest stage."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.local = conv_bn(in_channels, channels)
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, channels, 1), nn.ReLU6(inplace=True))
        self.mix = separable(channels, channels, kernel=5)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.local(x) + self.image(x))


class FastFPN(nn.Module):
    """A feature pyramid network with separable convolutions (after Lin et al., CVPR 2017, arXiv 1612.03144).

    The top-down path runs at `channels` down to the second-finest stage; the finest stage joins at a quarter of
    the width, which keeps thin things (poles, signs) at little cost.

    Shape:
        features: list of (B, D_k, H / s_k, W / s_k), finest first, strides doubling from stage to stage
        -> logits (B, C, H / s_0, W / s_0)
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, channels: int = 96, dropout: float = 0.1):
        super().__init__()
        finest, *middle, coarsest = in_channels
        fine = channels // 4
        self.context = GlobalContext(coarsest, channels)
        self.lateral = nn.ModuleList(conv_bn(c, channels, act=False) for c in middle)
        self.smooth = nn.ModuleList(separable(channels, channels) for _ in middle)
        self.reduce = conv_bn(channels, fine)
        self.lateral_fine = conv_bn(finest, fine, act=False)
        self.smooth_fine = separable(fine, channels // 2)
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(channels // 2, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        finest, *middle, coarsest = features
        x = self.context(coarsest)
        for lateral, smooth, feature in zip(reversed(self.lateral), reversed(self.smooth), reversed(middle)):
            x = smooth(lateral(feature) + upsample2(x))
        x = self.smooth_fine(self.lateral_fine(finest) + upsample2(self.reduce(x)))
        return self.head(self.dropout(x))
