"""Networks: the wiring of encoders, fusion and decoder.

Shape letters: B batch, C classes, D channels, H x W pixels, s = `output_stride` of the network.
"""

from __future__ import annotations

import math
from typing import Mapping, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lix_core.errors import LixError
from lix_core.models.decoders import DECODERS, Decoder, upsample
from lix_core.models.encoders import Pyramid, build_encoder
from lix_core.models.fusion import FUSIONS, Fusion
from lix_core.options import nearest

Part = TypeVar("Part")


class Output(NamedTuple):
    """What a network computed of a batch, as far as distillation looks into it."""

    logits: Tensor
    """(B, C, H / s, W / s), before the last upsampling."""
    features: dict[str, Tensor]
    """`stage1` (finest) .. `stageN` of the encoder (fused ones in a teacher), and `decoder`: what the head sees, before dropout."""

    def only(self, chosen: Tensor) -> Output:
        """Of some of the frames; chosen: (B,) bool."""
        return Output(self.logits[chosen], {name: feature[chosen] for name, feature in self.features.items()})


class Network(nn.Module):
    """What Student and Teacher share.

    Attributes:
        mean, std: of RGB on the 0..255 scale, those of the encoder's weights.
        stride: height and width of images must be multiples of it.
        output_stride: of the coarse logits.
        feature_channels: name of each feature of `Output` -> its channels.
        stage_strides: name of each of its stages -> its stride.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    stride: int
    output_stride: int
    feature_channels: dict[str, int]
    stage_strides: dict[str, int]

    def normalise(self, image: Tensor) -> Tensor:
        """RGB as a camera gives it, (B, 3, H, W) uint8 -> what the encoder's weights expect, float32, channels last in memory."""
        if image.dtype != torch.uint8:
            raise LixError(f"normalise takes RGB as uint8, 0..255, got {image.dtype}; was it normalised before?")
        mean, std = (torch.tensor(values, device=image.device).view(3, 1, 1) for values in (self.mean, self.std))
        return ((image.float() - mean) / std).contiguous(memory_format=torch.channels_last)

    def _check_image(self, image: Tensor) -> None:
        if image.ndim != 4 or image.shape[1] != 3 or not image.is_floating_point():
            raise LixError(f"the image must be normalised RGB, (B, 3, H, W) float, got {image.dtype} of {tuple(image.shape)}")
        height, width = image.shape[-2:]
        if height % self.stride or width % self.stride:
            raise LixError(f"image is {height}x{width}; pad it to multiples of {self.stride}")


class Student(Network):
    """RGB in, class logits out: a timm encoder and a decoder.

    Args:
        num_classes: C.
        encoder, weights: see `lix_core.models.encoders.build_encoder`.
        decoder: a key of DECODERS.

    Shape:
        image (B, 3, H, W), normalised RGB, H and W multiples of `stride` -> logits (B, C, H, W)
    """

    def __init__(self, num_classes: int, encoder: str = "tf_efficientnet_lite0", decoder: str = "fast_fpn", weights: str = "auto"):
        super().__init__()
        build_decoder = pick(DECODERS, decoder, "decoder")
        self.encoder = build_encoder(encoder, weights)
        pyramid = Pyramid.of(self.encoder)
        self.decoder: Decoder = build_decoder(pyramid, num_classes)
        self.mean, self.std = self.encoder.mean, self.encoder.std
        self.stride, self.output_stride = pyramid.strides[-1], self.decoder.output_stride
        self.feature_channels = {**_named(pyramid.channels), "decoder": self.decoder.channels}
        self.stage_strides = _named(pyramid.strides)

    def outputs(self, image: Tensor) -> Output:
        self._check_image(image)
        stages = self.encoder(image)
        features = self.decoder.features(stages)
        return Output(self.decoder.classify(features), {**_named(stages), "decoder": features})

    def coarse_logits(self, image: Tensor) -> Tensor:
        """Logits before the last upsampling: (B, C, H / output_stride, W / output_stride)."""
        return self.outputs(image).logits

    def forward(self, image: Tensor) -> Tensor:
        return upsample(self.coarse_logits(image), self.output_stride)


class Teacher(Network):
    """RGB and X in, class logits out: an encoder for each, a fusion and a decoder.

    The X encoder sees X and, as one more channel, where it is known; where it is not, X counts as 0 whatever is stored there. Any share
    of a frame may be unknown, all of it too: then the output is that of the RGB encoder and the decoder.

    Args:
        num_classes: C.
        x_channels: Cx of X, as in `lix_core.geometry.encodings`.
        encoder, x_encoder: see `lix_core.models.encoders.build_encoder`; "" takes the same network for X.
        fusion: a key of FUSIONS.
        decoder: a key of DECODERS.
        weights: of both encoders; the first convolution of X's is adapted to its Cx + 1 channels.

    Shape:
        image (B, 3, H, W) normalised RGB, x (B, Cx, H, W) float, known (B, H, W) bool, H and W multiples of `stride`
        -> logits (B, C, H, W)
    """

    def __init__(
        self,
        num_classes: int,
        x_channels: int,
        encoder: str = "tf_efficientnet_lite0",
        x_encoder: str = "",
        fusion: str = "sum",
        decoder: str = "fast_fpn",
        weights: str = "auto",
    ):
        super().__init__()
        build_decoder, build_fusion = pick(DECODERS, decoder, "decoder"), pick(FUSIONS, fusion, "fusion")
        if x_channels < 1:
            raise LixError(f"a teacher needs X, got {x_channels} channels of it; choose an encoding of X, or train a Student")
        self.encoder = build_encoder(encoder, weights)
        self.x_encoder = build_encoder(x_encoder or encoder, weights, x_channels + 1)
        rgb, x = Pyramid.of(self.encoder), Pyramid.of(self.x_encoder)
        self.decoder: Decoder = build_decoder(rgb, num_classes)
        self.fusion: Fusion = build_fusion(rgb, x, self.decoder)
        self.x_channels = x_channels
        self.mean, self.std = self.encoder.mean, self.encoder.std
        self.stride, self.output_stride = math.lcm(rgb.strides[-1], x.strides[-1]), self.decoder.output_stride
        self.feature_channels = {**_named(self.fusion.channels), "decoder": self.fusion.decoder_channels}
        self.stage_strides = _named(rgb.strides)

    def outputs(self, image: Tensor, x: Tensor, known: Tensor) -> Output:
        self._check_image(image)
        self._check_x(image, x, known)
        known_B1HW = known.unsqueeze(1)
        share = known_B1HW.to(image.dtype)
        seen = torch.cat([torch.where(known_B1HW, x, 0.0), share], 1)
        fused = self.fusion(self.encoder(image), self.x_encoder(seen), share, self.decoder)
        return Output(fused.logits, {**_named(fused.stages), "decoder": fused.decoder})

    def coarse_logits(self, image: Tensor, x: Tensor, known: Tensor) -> Tensor:
        """Logits before the last upsampling: (B, C, H / output_stride, W / output_stride)."""
        return self.outputs(image, x, known).logits

    def forward(self, image: Tensor, x: Tensor, known: Tensor) -> Tensor:
        return upsample(self.coarse_logits(image, x, known), self.output_stride)

    def _check_x(self, image: Tensor, x: Tensor, known: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.x_channels:
            raise LixError(f"x is {tuple(x.shape)}, this teacher sees (B, {self.x_channels}, H, W); encode X as it was trained with")
        batch, _, height, width = image.shape
        if x.shape[0] != batch or x.shape[-2:] != (height, width) or known.shape != (batch, height, width):
            raise LixError(
                f"image is {tuple(image.shape)}, x {tuple(x.shape)} and known {tuple(known.shape)}; bring x and known to the image's "
                f"batch and size (nearest pixel, unknown in padding)"
            )
        if known.dtype != torch.bool:
            raise LixError(f"known must be bool, got {known.dtype}; pass known > 0")


def _named(stages: list[Tensor] | tuple[int, ...]) -> dict:
    """Stages, or what is known of each, under their names: stage1 is the finest."""
    return {f"stage{k}": stage for k, stage in enumerate(stages, 1)}


def partners(student: Network, teacher: Network) -> dict[str, str]:
    """Name of each feature of a teacher that a student has too -> what it is called there: stages pair up by stride, and are numbered from
    the finest, which need not be of one stride."""
    by_stride = {stride: name for name, stride in student.stage_strides.items()}
    stages = {name: by_stride[stride] for name, stride in teacher.stage_strides.items() if stride in by_stride}
    return {**stages, "decoder": "decoder"}


def pick(registry: Mapping[str, Part], name: str, kind: str) -> Part:
    """The entry of a registry; LixError that lists all, where there is none of the name."""
    if name not in registry:
        raise LixError(f"there is no {kind} {name!r}{nearest(name, registry)}; there are {', '.join(registry)}")
    return registry[name]


def parameter_counts(network: nn.Module) -> dict[str, int]:
    """Parameters of each named part (encoder, x_encoder, fusion, decoder), and their sum as `total`."""
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    return {**counts, "total": sum(counts.values())}
