"""Limits of depth: what a sensor says nearer or farther than it can measure is not believed."""

from __future__ import annotations

import numpy as np


def within(depth: np.ndarray, nearest: float, farthest: float) -> np.ndarray:
    """Depth [m], float32 of any shape, that is NaN outside of nearest..farthest [m]; 0 is no limit."""
    if nearest <= 0 and farthest <= 0:
        return depth
    return np.where((depth >= nearest) & (depth <= (farthest or np.inf)), depth, np.float32(np.nan))
