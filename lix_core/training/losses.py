"""The hard loss L_H: cross-entropy against the labels, with class weights, hard-example mining and a soft Dice term.

Shape letters: B batch, C classes, H W pixels; labels are int64 with 255 = ignore. Every loss of a batch without a valid pixel is 0, with
gradients that are 0, so that a batch of frames without labels is no special case.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lix_core.distill.distiller import over_processes, processes
from lix_core.labels import UNLABELLED


def class_weights(counts: Tensor, power: float) -> Tensor:
    """(C,) pixels of each class -> (C,) float32 weights: frequency to minus `power`, of mean 1 over the pixels. A class without pixels
    weighs as much as the rarest one that has some.
    """
    present = counts > 0
    frequency = counts.double() / counts.sum().clamp(min=1)
    weights = torch.where(present, frequency, frequency[present].min() if present.any() else torch.ones(())).clamp(min=1e-12) ** -power
    mean = (weights * frequency).sum()
    return (weights / mean if mean > 0 else torch.ones_like(weights)).float()


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None, ohem: float = 0.0, ohem_keep: float = 0.1) -> Tensor:
    """Cross-entropy, the mean over valid pixels weighted by their class.

    ohem: online hard example mining (Shrivastava et al., CVPR 2016, arXiv 1604.03540): only pixels whose true class has a probability
    below it count, but at least the hardest share `ohem_keep` of the valid ones; 0: all count.

    Shape:
        logits (B, C, H, W), labels (B, H, W), weights (C,) -> scalar
    """
    if not ohem and weights is None:
        # The reduced loss of an image has no deterministic kernel on GPUs, each pixel's has.
        reduction = "none" if torch.are_deterministic_algorithms_enabled() else "sum"
        total = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction=reduction).sum()
        return total / over_processes((labels != UNLABELLED).sum().to(logits.dtype)).clamp(min=1e-12)
    loss = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="none")
    counted = labels != UNLABELLED
    if ohem:
        counted = hard_pixels(loss.detach(), counted, ohem, ohem_keep)
    share = counted.to(loss.dtype)
    if weights is not None:
        share = share * weights.to(loss.dtype)[labels.clamp(max=len(weights) - 1)]
    return (loss * share).sum() / over_processes(share.sum()).clamp(min=1e-12)


def hard_pixels(loss: Tensor, valid: Tensor, threshold: float, keep: float) -> Tensor:
    """(B, H, W) bool: valid pixels whose probability exp(-loss) is below the threshold, or the hardest share `keep` if that is more."""
    values = loss[valid]
    if not len(values):
        return valid
    least = max(1, math.ceil(keep * len(values)))
    limit = torch.topk(values, least).values[-1].clamp(max=-math.log(threshold))
    return valid & (loss >= limit)


def soft_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the Dice overlap (Milletari et al., arXiv 1606.04797), per class over the batch, averaged over the classes that occur.

    Shape:
        logits (B, C, H, W), labels (B, H, W) -> scalar
    """
    valid = (labels != UNLABELLED).unsqueeze(1)
    probability = logits.softmax(1) * valid
    truth = torch.zeros_like(probability).scatter_(1, labels.clamp(max=logits.shape[1] - 1).unsqueeze(1), 1.0) * valid
    overlap, occurring, said = (whole_sum(part.sum((0, 2, 3))) for part in (probability * truth, truth, probability))
    dice = 2 * overlap / (said + occurring).clamp(min=1e-6)
    present = (occurring > 0).to(dice.dtype)
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def whole_sum(part: Tensor) -> Tensor:
    """A sum over this process's part of a batch -> the sum over the whole batch. What is computed of it has, averaged over the processes,
    the gradient that one process alone would have.
    """
    count = processes()
    return part if count == 1 else count * (over_processes(part) + part - part.detach())


class HardLoss(nn.Module):
    """L_H as named, weighted terms: `ce`, and `dice` where it has a weight. The class weights are (C,) or None."""

    def __init__(self, weights: Tensor | None = None, dice: float = 0.0, ohem: float = 0.0, ohem_keep: float = 0.1):
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)
        self.dice, self.ohem, self.ohem_keep = dice, ohem, ohem_keep

    def forward(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Logits (B, C, H, W) and labels (B, H, W) -> scalars by name; computed in float32."""
        logits = logits.float()
        terms = {"ce": cross_entropy(logits, labels, self.weights, self.ohem, self.ohem_keep)}
        if self.dice:
            terms["dice"] = self.dice * soft_dice(logits, labels)
        return terms
