"""Networks of few layers: exporting takes time in proportion to the layers, and for most of what is tested any encoder will do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lix_core.models import networks
from lix_core.models.decoders import DECODERS, Decoder, upsample
from lix_core.models.encoders import Pyramid


class Stages(nn.Module):
    """An encoder of three convolutions."""

    mean, std = (120.0, 115.0, 100.0), (60.0, 58.0, 57.0)

    def __init__(self, in_channels: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in ((in_channels, 8), (8, 12), (12, 16)))
        self.feature_info = SimpleNamespace(channels=lambda: [8, 12, 16], reduction=lambda: [2, 4, 8])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        stages = []
        for conv in self.convs:
            x = conv(x).relu()
            stages.append(x)
        return stages


class Thin(Decoder):
    """A decoder of one convolution beside the head. It looks at all stages."""

    def __init__(self, pyramid: Pyramid, num_classes: int):
        super().__init__()
        self.factors = [stride // pyramid.strides[0] for stride in pyramid.strides]
        self.channels, self.output_stride = 6, pyramid.strides[0]
        self.mix = nn.Conv2d(sum(pyramid.channels), self.channels, 1)
        self.dropout, self.head = nn.Dropout2d(0.1), nn.Conv2d(self.channels, num_classes, 1)

    def features(self, stages: list[torch.Tensor]) -> torch.Tensor:
        return self.mix(torch.cat([upsample(stage, factor) for stage, factor in zip(stages, self.factors)], 1)).relu()


def use_small_parts(patch: pytest.MonkeyPatch) -> None:
    """`build_encoder` gives `Stages` whatever the name, and there is a decoder `thin`."""
    patch.setattr(networks, "build_encoder", lambda name, weights="auto", in_channels=3: Stages(in_channels))
    patch.setitem(DECODERS, "thin", Thin)
