"""The X encodings of batches, in torch: the same numbers as lix_core.geometry.encodings, with gradients. Not for the robot."""

from __future__ import annotations

import torch
from torch import Tensor

from lix_core.errors import GeometryError
from lix_core.geometry.encodings import ENCODINGS, Encoding

CURVES = {"linear": (torch.positive, torch.positive), "log": (torch.log, torch.exp), "inverse": (torch.reciprocal, torch.reciprocal)}


def encode(kind: str, values: Tensor) -> tuple[Tensor, Tensor]:
    """The quantity of ENCODINGS[kind] -> channels (0 where it is unknown) and mask. Beyond the limits the gradient is 0.

    Shape:
        values (B, H, W) depth [m] or disparity [pixels], or (B, 3, H, W) normals -> (B, C, H, W), (B, H, W) bool

    Raises:
        GeometryError: an unknown kind, or another shape.
    """
    encoding = _encoding(kind)
    planes = values if encoding.channels > 1 else values.unsqueeze(1)
    if planes.ndim != 4 or planes.shape[1] != encoding.channels or not values.is_floating_point():
        shape = "(B, 3, H, W)" if encoding.channels > 1 else "(B, H, W)"
        raise GeometryError(f"{encoding.quantity} must be a float tensor of shape {shape}, got {values.dtype} of {tuple(values.shape)}")
    known = torch.isfinite(planes).all(1) & ((planes != 0).any(1) if encoding.channels > 1 else planes[:, 0] > 0)
    mask = known.unsqueeze(1)
    # The clamp also stops the gradient of what is unknown: it gives 0 beyond the limits and for NaN.
    planes = (planes / encoding.unit(planes.shape[-1])).clamp(encoding.low, encoding.high)
    x = (CURVES[encoding.curve][0](planes) - encoding.mean) / encoding.std
    return torch.where(mask, x, 0), known


def decode(kind: str, x: Tensor, mask: Tensor) -> Tensor:
    """Channels and mask -> the quantity, NaN where the mask is False.

    Shape:
        x (B, C, H, W), mask (B, H, W) bool -> (B, H, W), or (B, 3, H, W) for normals

    Raises:
        GeometryError: an unknown kind, or other shapes.
    """
    encoding = _encoding(kind)
    if x.ndim != 4 or x.shape[1] != encoding.channels or mask.shape != (x.shape[0], *x.shape[2:]):
        found = f"{tuple(x.shape)} and {tuple(mask.shape)}"
        raise GeometryError(f"{kind} is (B, {encoding.channels}, H, W) with a mask (B, H, W), got {found}")
    mask = mask.unsqueeze(1)
    curve, inverse = CURVES[encoding.curve]
    low, high = sorted(float(curve(torch.tensor(limit))) for limit in (encoding.low, encoding.high))
    planes = inverse((torch.where(mask, x, 0) * encoding.std + encoding.mean).clamp(low, high))
    values = torch.where(mask, planes * encoding.unit(x.shape[-1]), torch.nan)
    return values if encoding.channels > 1 else values[:, 0]


def flip(kind: str, x: Tensor) -> Tensor:
    """Channels (..., C, H, W) of the picture mirrored left to right; the x of normals changes its sign. Raises on an unknown kind."""
    mirrored = x.flip(-1)
    if _encoding(kind).quantity != "normals":
        return mirrored
    sign = torch.tensor([-1.0, 1.0, 1.0], dtype=x.dtype, device=x.device).reshape(3, 1, 1)
    return mirrored * sign


def _encoding(kind: str) -> Encoding:
    if kind not in ENCODINGS:
        raise GeometryError(f"there is no encoding {kind!r}; there are {', '.join(ENCODINGS)}")
    return ENCODINGS[kind]
