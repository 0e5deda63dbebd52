"""Networks: the wiring of encoder and decoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from lix_core.errors import LixError
from lix_core.models.decoders import FastFPN
from lix_core.models.encoders import build_encoder


class Student(nn.Module):
    """RGB in, class logits out: a timm encoder and a light decoder.

    Shape:
        image (B, 3, H, W), normalised RGB, H and W multiples of `stride` -> logits (B, C, H, W)
    """

    def __init__(self, num_classes: int, encoder: str = "tf_efficientnet_lite0", weights: str = "auto"):
        super().__init__()
        self.encoder = build_encoder(encoder, weights)
        self.decoder = FastFPN(self.encoder.feature_info.channels(), num_classes)
        self.output_stride: int = self.encoder.feature_info.reduction()[0]
        self.stride: int = self.encoder.feature_info.reduction()[-1]

    def coarse_logits(self, image: Tensor) -> Tensor:
        """Logits before the last upsampling: (B, C, H / output_stride, W / output_stride)."""
        height, width = image.shape[-2:]
        if height % self.stride or width % self.stride:
            raise LixError(f"image is {height}x{width}; pad it to multiples of {self.stride}")
        return self.decoder(self.encoder(image))

    def forward(self, image: Tensor) -> Tensor:
        return F.interpolate(self.coarse_logits(image), scale_factor=float(self.output_stride), mode="bilinear", align_corners=False)
