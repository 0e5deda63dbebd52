"""What makes training on a CPU faster, and changes nothing of it but the rounding of last digits."""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import nn

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Numbers of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Have malloc keep and reuse what is freed, rather than hand every large tensor back to the kernel. Nothing is done where there is no
    glibc.

    A training step allocates the same hundreds of megabytes again and again. By default glibc maps each large block anew, and the kernel
    has to zero its pages every time.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl
        return
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 256 * 2**20)):
        mallopt(parameter, value)


def use_onednn(module: nn.Module) -> None:
    """Have the 1x1 convolutions of a module computed by oneDNN, as all others are.

    With one thread and fewer than 16 images PyTorch takes a slower kernel of its own for them (`use_mkldnn` in its Convolution.cpp), but
    not for those that are dilated. A dilation spreads the taps of a kernel, and a 1x1 kernel has but one. Nothing is done where there are
    more threads. Not for networks that are exported: the dilation would be written into the graph.
    """
    if torch.get_num_threads() > 1:
        return
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "valid"):
            layer.dilation = (2, 2)
