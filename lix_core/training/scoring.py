"""Scoring a network on a data set: one confusion matrix over all its valid pixels, whatever the batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lix_core.data.sample import Batch
from lix_core.data.transforms import GREY
from lix_core.errors import DataError
from lix_core.labels import UNLABELLED
from lix_core.metrics import ConfusionMatrix
from lix_core.models.networks import Network, Teacher
from lix_core.training.data import scoring_batches


@torch.inference_mode()
def predict(network: Network, batch: Batch) -> Tensor:
    """(B, H, W) int64 class ids of a batch of any size: padded at the bottom and right to the stride, cut back after.

    In float32, whatever surrounds it; the network must be in eval mode and on the batch's device.
    """
    height, width = batch.image.shape[-2:]
    padding = (0, -width % network.stride, 0, -height % network.stride)
    image = network.normalise(F.pad(batch.image, padding, value=GREY))
    with torch.autocast(image.device.type, enabled=False):
        if isinstance(network, Teacher):
            logits = network(image, F.pad(batch.x, padding), F.pad(batch.known, padding))
        else:
            logits = network(image)
    return logits[..., :height, :width].argmax(1)


def evaluate(
    network: Network,
    dataset: Any,
    batch: int = 4,
    size: Sequence[int] | None = None,
    workers: int = 0,
    on_frames: Callable[[int], None] = lambda count: None,
) -> ConfusionMatrix:
    """One confusion matrix of a network over a data set, on the network's device.

    dataset: gives `Sample`s by number and has `labels`. batch: frames at once, where their sizes agree. size: height and width at which
    frames are scored; None: their own. on_frames: told how many frames were just done.

    Where torch.distributed is initialised all processes call this; each takes its share of the frames, none twice, and all
    get the sum.

    Raises:
        DataError: a label that is no class of the network.
    """
    device, training = next(network.parameters()).device, network.training
    spread = torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if spread else (0, 1)
    num_classes = len(dataset.labels)
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    x_channels = getattr(network, "x_channels", None)
    network.eval()
    try:
        for frames in scoring_batches(dataset, batch, size, x_channels, workers, rank, world):
            frames = frames.to(device)
            counts += confusion(predict(network, frames), frames, num_classes)
            on_frames(len(frames))
    finally:
        network.train(training)
    if spread:
        torch.distributed.all_reduce(counts)
    return ConfusionMatrix.of(counts.cpu().numpy())


def confusion(prediction_BHW: Tensor, batch: Batch, num_classes: int) -> Tensor:
    """(C, C) int64 counts of (truth, prediction) over the valid pixels of a batch. Raises DataError, naming the frame."""
    valid = batch.labels != UNLABELLED
    unknown = (valid & (batch.labels >= num_classes)).flatten(1).any(1)
    if unknown.any():
        name = batch.names[int(unknown.nonzero()[0])]
        raise DataError(f"{name} has the label {int(batch.labels[unknown][valid[unknown]].max())}; the network knows 0..{num_classes - 1}")
    index = batch.labels[valid] * num_classes + prediction_BHW[valid]
    return torch.bincount(index, minlength=num_classes**2).reshape(num_classes, num_classes)


def chance(matrix: ConfusionMatrix) -> ConfusionMatrix:
    """What always answering the most frequent true class scores on the same pixels."""
    constant = ConfusionMatrix(matrix.num_classes)
    truth = matrix.truth_pixels
    constant.counts[:, int(truth.argmax())] = truth
    return constant
