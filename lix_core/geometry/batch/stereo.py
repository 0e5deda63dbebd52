"""Disparity and depth of batches, in torch: the same as lix_core.geometry.stereo, with gradients. Not for the robot."""

from __future__ import annotations

import torch
from torch import Tensor

from lix_core.errors import GeometryError


def disparity_to_depth(disparity: Tensor, fx: float | Tensor, baseline: float | Tensor) -> Tensor:
    """Disparity [pixels] -> depth fx * baseline / disparity [m]; NaN, without gradient, where disparity is not above 0 and finite.

    fx: focal length of the rectified image [pixels], baseline: [m]; numbers, or (B,) tensors with one for each image.

    Shape:
        disparity (B, ...) float -> (B, ...) of its dtype

    Raises:
        GeometryError: fx or baseline is not above 0.
    """
    for name, value in (("fx", fx), ("baseline", baseline)):
        numbers = torch.as_tensor(value)
        if not (torch.isfinite(numbers) & (numbers > 0)).all():
            raise GeometryError(f"{name} of a stereo pair must be above 0, got {numbers.tolist()}")
    factor = torch.as_tensor(fx * baseline, dtype=disparity.dtype, device=disparity.device)
    if factor.ndim:
        factor = factor.reshape(-1, *(1,) * (disparity.ndim - 1))
    with torch.no_grad():
        known = (disparity > 0) & torch.isfinite(disparity) & torch.isfinite(factor / disparity)
    # Divide by known values alone: the gradient of a NaN that is not taken is NaN.
    return torch.where(known, factor / torch.where(known, disparity, 1), torch.nan)


def depth_to_disparity(depth: Tensor, fx: float | Tensor, baseline: float | Tensor) -> Tensor:
    """Depth [m] -> disparity [pixels], (B, ...); NaN where depth is not above 0 and finite. Raises as disparity_to_depth."""
    return disparity_to_depth(depth, fx, baseline)  # z = f b / d is its own inverse
