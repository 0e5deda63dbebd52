"""Fusion: how what the X encoder sees joins what the RGB encoder sees.

LIX's public outline has fusion in the middle (features, stage by stage) and at the end (logits); the forms of both, and how they heed what
is unknown, are this project's reconstruction. Every strategy keeps one promise: where a cell of a stage holds no known pixel of X, its
output is that of RGB alone, exactly. A frame without any X is therefore segmented as by the RGB encoder and the decoder.

`known` is (B, 1, H, W), float, 1 where X is known and 0 elsewhere; pooled to a stage it is the *share* of known pixels in each cell.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lix_core.errors import LixError
from lix_core.models.decoders import Decoder, conv_bn, upsample
from lix_core.models.encoders import Pyramid


class Fused(NamedTuple):
    """What a fusion gives; `stages` as the RGB pyramid in strides, `.channels` of the fusion in widths."""

    stages: list[Tensor]
    decoder: Tensor
    """(B, D, H / s, W / s), what the head sees, before dropout; D is `.decoder_channels` of the fusion."""
    logits: Tensor
    """(B, C, H / s, W / s)."""


def share_of(known: Tensor, stride: int) -> Tensor:
    """Share of known pixels in each cell of a stage: (B, 1, H, W) -> (B, 1, H / stride, W / stride), 0..1."""
    return known if stride == 1 else F.avg_pool2d(known, stride)


class Fusion(nn.Module):
    """The signature of every strategy.

    Args of the constructor: the pyramids of the RGB and the X encoder, and the decoder that will be passed to `forward` (late fusion
    builds one more of its kind). Stages pair up by stride; one that the X encoder lacks, or that the decoder does not read, stays RGB's
    (what nobody reads would be parameters without a gradient, which distributed training refuses).

    Attributes:
        channels: of each fused stage.
        decoder_channels: of the features that the head sees.
    """

    channels: tuple[int, ...]
    decoder_channels: int

    def __init__(self, rgb: Pyramid, x: Pyramid, decoder: Decoder):
        super().__init__()
        self.strides = rgb.strides
        self.partners = [x.strides.index(s) if s in x.strides and k >= decoder.first else None for k, s in enumerate(rgb.strides)]
        """For each RGB stage, the X stage that joins it."""
        if not any(partner is not None for partner in self.partners):
            raise LixError(f"the encoders of RGB and X share no stage: strides {rgb.strides} and {x.strides}; take an X encoder like RGB's")

    def forward(self, rgb: Sequence[Tensor], x: Sequence[Tensor], known: Tensor, decoder: Decoder) -> Fused:
        raise NotImplementedError


class Intermediate(Fusion):
    """Fusion in the middle: each stage of RGB is joined with that of X, and one decoder reads the result.

    A subclass names its `join`, a module of (D) channels called with `rgb_BDhw, x_BDhw, share_B1hw`. Where X is wider or narrower than
    RGB a 1x1 convolution brings it to RGB's width; at equal widths features join as they are.
    """

    join: type[nn.Module]

    def __init__(self, rgb: Pyramid, x: Pyramid, decoder: Decoder):
        super().__init__(rgb, x, decoder)
        pairs = [(d, None if partner is None else x.channels[partner]) for d, partner in zip(rgb.channels, self.partners)]
        self.project = nn.ModuleList(nn.Identity() if dx in (None, d) else conv_bn(dx, d, act=False) for d, dx in pairs)
        self.joins = nn.ModuleList(nn.Identity() if dx is None else self.join(d) for d, dx in pairs)
        self.channels = rgb.channels
        self.decoder_channels = decoder.channels

    def forward(self, rgb: Sequence[Tensor], x: Sequence[Tensor], known: Tensor, decoder: Decoder) -> Fused:
        stages = list(rgb)
        for k, (stride, partner) in enumerate(zip(self.strides, self.partners)):
            if partner is not None:
                share = share_of(known, stride)
                joined = self.joins[k](rgb[k], self.project[k](x[partner]), share)
                stages[k] = torch.where(share > 0, joined, rgb[k])
        features = decoder.features(stages)
        return Fused(stages, features, decoder.classify(features))


class Sum(nn.Module):
    """Element-wise sum (the fusion of FuseNet, Hazirbas et al., ACCV 2016, and of SNE-RoadSeg, Fan et al., ECCV 2020)."""

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, rgb: Tensor, x: Tensor, share: Tensor) -> Tensor:
        return rgb + x


class Gate(nn.Module):
    """For each pixel and channel a learned mixture of the two (after the gated unit of Arevalo et al., 2017, arXiv 1702.01992)."""

    def __init__(self, channels: int):
        super().__init__()
        self.gate = conv_bn(2 * channels + 1, channels, act=False)

    def forward(self, rgb: Tensor, x: Tensor, share: Tensor) -> Tensor:
        gate = self.gate(torch.cat([rgb, x, share], 1)).sigmoid()
        return rgb + gate * (x - rgb)


class Attention(nn.Module):
    """X weighted by channel and by pixel, each weight from both encoders, and added (after CBAM, Woo et al., ECCV 2018, arXiv 1807.06521).

    A channel's weight follows from the two mean features of the image, that of X over its known part; a pixel's from mean and largest
    channel of both around it.
    """

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 4, 8)
        self.channel = nn.Sequential(nn.Conv2d(2 * channels, hidden, 1), nn.ReLU6(inplace=True), nn.Conv2d(hidden, channels, 1))
        self.pixel = conv_bn(5, 1, 7, act=False)

    def forward(self, rgb: Tensor, x: Tensor, share: Tensor) -> Tensor:
        mean_x = (x * share).mean((2, 3), keepdim=True) / share.mean((2, 3), keepdim=True).clamp(min=1e-6)
        channel = self.channel(torch.cat([rgb.mean((2, 3), keepdim=True), mean_x], 1)).sigmoid()
        maps = [statistic for f in (rgb, x) for statistic in (f.mean(1, keepdim=True), f.amax(1, keepdim=True))]
        pixel = self.pixel(torch.cat([*maps, share], 1)).sigmoid()
        return rgb + x * channel * pixel


class SumFusion(Intermediate):
    join = Sum


class GatedFusion(Intermediate):
    join = Gate


class AttentionFusion(Intermediate):
    join = Attention


class LateFusion(Fusion):
    """Fusion at the end: a whole network for each of RGB and X, whose logits are joined with a weight per pixel.

    The weight is learned from what both heads see and the share of known pixels; it is 0 where nothing is known. Stages are RGB's beside
    X's (0 where nothing is known), and the decoder's features both decoders', each times its weight: of these the logits are a linear
    function, up to the heads' biases, which are weighted alike.
    """

    def __init__(self, rgb: Pyramid, x: Pyramid, decoder: Decoder):
        super().__init__(rgb, x, decoder)
        self.x_decoder = type(decoder)(x, decoder.head.out_channels)
        self.output_stride = decoder.output_stride
        self.decoder_channels = decoder.channels + self.x_decoder.channels
        self.weight = nn.Conv2d(self.decoder_channels + 1, 1, 1)
        self.channels = tuple(d + (0 if p is None else x.channels[p]) for d, p in zip(rgb.channels, self.partners))

    def forward(self, rgb: Sequence[Tensor], x: Sequence[Tensor], known: Tensor, decoder: Decoder) -> Fused:
        features, x_features = decoder.features(rgb), self._to_rgb_grid(self.x_decoder.features(x))
        share = share_of(known, self.output_stride)
        weight = self.weight(torch.cat([features, x_features, share], 1)).sigmoid()
        weight = torch.where(share > 0, weight, 0.0)
        logits = (1 - weight) * decoder.classify(features) + weight * self.x_decoder.classify(x_features)
        return Fused(self._side_by_side(rgb, x, known), torch.cat([(1 - weight) * features, weight * x_features], 1), logits)

    def _to_rgb_grid(self, x_features: Tensor) -> Tensor:
        own, wanted = self.x_decoder.output_stride, self.output_stride
        return upsample(x_features, own // wanted) if own >= wanted else F.avg_pool2d(x_features, wanted // own)

    def _side_by_side(self, rgb: Sequence[Tensor], x: Sequence[Tensor], known: Tensor) -> list[Tensor]:
        stages = list(rgb)
        for k, (stride, partner) in enumerate(zip(self.strides, self.partners)):
            if partner is not None:
                stages[k] = torch.cat([rgb[k], torch.where(share_of(known, stride) > 0, x[partner], 0.0)], 1)
        return stages


FUSIONS: dict[str, type[Fusion]] = {"sum": SumFusion, "gated": GatedFusion, "attention": AttentionFusion, "late": LateFusion}
"""Every strategy, by name."""
