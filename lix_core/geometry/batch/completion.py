"""Sparse depth to dense depth, batched; see lix_core.geometry.completion for the method."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lix_core.errors import GeometryError
from lix_core.geometry import completion
from lix_core.geometry.completion import FADE, GAP_ERROR, LEVEL_SIGMA, ROW_SIGMA, SOFT_SPLIT, SPLIT_CELL, SPLIT_SIGMA, TINY, TOLERANCE


def complete(sparse_depth: Tensor, reach: int = 24) -> tuple[Tensor, Tensor]:
    """(B, H, W) float32 depth [m], NaN = unknown -> dense depth, NaN = unknown, and confidence 0 to 1, both (B, H, W) float32.

    The same as `completion.complete`; a sample without any measurement stays unknown with confidence 0. Raises GeometryError as that.
    """
    completion.check_reach(reach)
    if sparse_depth.ndim != 3 or (sparse_depth <= 0).any():
        raise GeometryError(
            f"sparse depth is (B, H, W), above 0 m or NaN, got shape {tuple(sparse_depth.shape)}, least {sparse_depth.min()}"
        )
    height, width = sparse_depth.shape[-2:]
    levels = completion.level_count(reach)
    known = sparse_depth.isfinite()[:, None]
    inverse = torch.where(known, 1 / sparse_depth[:, None], 0.0)
    padding = (0, -width % 2**levels, 0, -height % 2**levels)
    values = split_layers(F.pad(inverse, padding), F.pad(known.float(), padding))
    kernel = completion.blur_kernel(ROW_SIGMA)
    blurred = blur(values, np.ones(1, np.float32), kernel) + upsample(coarse_levels(values, levels))
    near_sum, near, far_sum, far = blurred[..., :height, :width].unbind(1)
    inverse = (near * near_sum + far * far_sum) / (near * near + far * far)
    gap = (near_sum * far - far_sum * near).abs()
    error = gap / ((near * far).clamp(min=float(TINY)).sqrt() * (near + far) * inverse) + GAP_ERROR / (near + far).sqrt().sqrt()
    reached = F.max_pool2d(known.float(), 2 * reach + 1, 1, reach)[:, 0] > 0
    known = known[:, 0]
    depth = torch.where(known, sparse_depth, torch.where(reached, 1 / inverse, torch.nan))
    confidence = torch.where(known, 1.0, torch.where(reached, 1 / (1 + error / TOLERANCE), 0.0))
    return depth, confidence


def split_layers(inverse: Tensor, weight: Tensor) -> Tensor:
    """(B, 1, H, W) inverse depth and weight, 0 = unknown -> (B, 4, H, W): their products and weights in the near and the far layer."""
    kernel = completion.blur_kernel(SPLIT_SIGMA)
    sums, counts = blur(F.avg_pool2d(torch.cat([inverse, weight], 1), SPLIT_CELL), kernel, kernel).split(1, 1)
    mean = F.interpolate(sums / counts.clamp(min=float(TINY)), scale_factor=SPLIT_CELL, mode="nearest")
    near = (0.5 + (inverse - mean) / (2 * SOFT_SPLIT * mean).clamp(min=float(TINY))).clamp(0, 1) * weight
    far = weight - near
    return torch.cat([near * inverse, near, far * inverse, far], 1)


def coarse_levels(values: Tensor, levels: int) -> Tensor:
    """(B, 4, H, W) values -> (B, 4, H / 2, W / 2): the levels from half size on, blurred and summed, each FADE of the finer one."""
    kernel = completion.blur_kernel(LEVEL_SIGMA)
    sums, blurred = values, []
    for _ in range(levels):
        sums = F.avg_pool2d(sums, 2) * (4 * FADE)
        blurred.append(blur(sums, kernel, kernel))
    total = blurred.pop()
    while blurred:
        total = upsample(total) + blurred.pop()
    return total


def blur(values: Tensor, column: np.ndarray, row: np.ndarray) -> Tensor:
    """(B, C, H, W) convolved with `column` down and `row` along, zeros outside."""
    channels = values.shape[1]
    for kernel, shape in ((column, (-1, 1)), (row, (1, -1))):
        weights = torch.from_numpy(kernel).to(values).reshape(1, 1, *shape).repeat(channels, 1, 1, 1)
        values = F.conv2d(values, weights, padding="same", groups=channels)
    return values


def upsample(values: Tensor) -> Tensor:
    """Bilinear to twice the size."""
    return F.interpolate(values, scale_factor=2, mode="bilinear", align_corners=False)
