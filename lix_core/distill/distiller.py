"""What every distillation method is: terms of a loss out of a student's and a teacher's answer to the same view.

Shape letters: B batch, C classes, D channels, H W pixels of the image, h w cells of the student's coarse grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lix_core.errors import TrainingError
from lix_core.labels import UNLABELLED
from lix_core.options import nearest

if TYPE_CHECKING:
    from lix_core.data.sample import Batch
    from lix_core.models.networks import Output


class Networks(NamedTuple):
    """What a method is built for: the channels of each feature of both networks, C, and the channels of X (0: the run has none)."""

    student_channels: Mapping[str, int]
    teacher_channels: Mapping[str, int]
    num_classes: int
    x_channels: int
    class_weights: Tensor | None = None
    """(C,) by which pixels of each target class count in terms over logits; None: all alike."""
    edge: int = 0
    """Cells within this distance [cells] of another target class do not count in terms over logits."""

    def check_features(self, option: str, names: Iterable[str]) -> None:
        """Raises TrainingError unless both networks have every feature; `option` is where the names come from."""
        for name in names:
            self.check_student_feature(option, name)
            _check_feature(option, name, self.teacher_channels, "teacher")

    def check_student_feature(self, option: str, name: str) -> None:
        _check_feature(option, name, self.student_channels, "student")


def _check_feature(option: str, name: str, channels: Mapping[str, int], who: str) -> None:
    if name not in channels:
        raise TrainingError(f"distill.{option}: the {who} has no feature {name!r}{nearest(name, channels)}; it has {', '.join(channels)}")


class Distiller(nn.Module):
    """A method of distillation: the loss is L = L_H + the sum of its terms.

    Gradients reach the student and the method's own parameters, never the teacher. Everything is computed in float32 (float64 where the
    networks are), under autocast too. Every term is finite on any batch: frames without labels, no valid pixel at all.

    Args:
        networks: what it is built for.
        warmup: batches in training mode over which the terms rise linearly to their weights; counted in the state of the module.

    Shape:
        student, teacher: Output of the networks for one batch; batch.labels (B, H, W) int64, 255 = ignored
        -> named, weighted scalars
    """

    def __init__(self, networks: Networks, warmup: int = 0):
        super().__init__()
        self.warmup, self.edge = warmup, networks.edge
        self.register_buffer("class_weights", networks.class_weights, persistent=False)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def terms(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms; the teacher is detached and autocast is off."""
        raise NotImplementedError

    def lesson(self, student: Output, teacher: Output, batch: Batch, gate: float = 0.0) -> Lesson:
        """`lesson_of`, without the edges that are left out."""
        lesson = lesson_of(student, teacher, batch, gate)
        return lesson._replace(classes=away_from_edges(lesson.classes, self.edge)) if self.edge else lesson

    def forward(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        if self.training:
            self.batches += 1
        with torch.autocast(student.logits.device.type, enabled=False):
            terms = self.terms(student, detached(teacher), batch)
        if not self.warmup:
            return terms
        risen = (self.batches / self.warmup).clamp(max=1.0)
        return {name: risen * term for name, term in terms.items()}


class NoDistiller(Distiller):
    """The control: no term."""

    def __init__(self, config: None, networks: Networks):
        super().__init__(networks)

    def terms(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {}


def detached(output: Output) -> Output:
    """The same numbers without gradients."""
    features = {name: feature.detach() for name, feature in output.features.items()}
    return output._replace(logits=output.logits.detach(), features=features)


def full_precision(x: Tensor) -> Tensor:
    """float32, or float64 where x is."""
    return x if x.dtype == torch.float64 else x.float()


class Lesson(NamedTuple):
    """What logit terms compare, all on the student's coarse grid, logits in full precision."""

    teacher: Tensor
    """(B, C, h, w) logits."""
    student: Tensor
    """(B, C, h, w) logits."""
    classes: Tensor
    """(B, h, w) int64: the target class, 255 where the pixel does not count."""


def lesson_of(student: Output, teacher: Output, batch: Batch, gate: float = 0.0) -> Lesson:
    """Both networks' logits and the target classes on the student's grid.

    The target is the label at the centre of the cell; on frames without labels it is the teacher's class, where the view is not padded
    and the teacher's confidence (its largest probability at temperature 1) is at least `gate`. A teacher's grid that differs is resized
    bilinearly.

    Raises:
        TrainingError: the networks have different numbers of classes.
    """
    student_logits, teacher_logits = full_precision(student.logits), full_precision(teacher.logits)
    if student_logits.shape[1] != teacher_logits.shape[1]:
        raise TrainingError(
            f"the student has {student_logits.shape[1]} classes, the teacher {teacher_logits.shape[1]}; both need the same label set"
        )
    size = student_logits.shape[-2:]
    if teacher_logits.shape[-2:] != size:
        teacher_logits = F.interpolate(teacher_logits, size, mode="bilinear", align_corners=False, antialias=True)
    classes = at_cells(batch.labels, size)
    taught = ~batch.labelled
    if taught.any():
        classes = classes.clone()
        shown = at_cells(batch.shown[taught], size)
        classes[taught] = sure_classes(teacher_logits[taught], gate).masked_fill(~shown, UNLABELLED)
    return Lesson(teacher_logits, student_logits, classes)


def shares_of(classes: Tensor, class_weights: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(B, H, W) int64 classes, 255 = not counted -> (B, H, W): how much each pixel counts, by the (C,) weights of the classes, if any."""
    counted = (classes != UNLABELLED).to(dtype)
    return counted if class_weights is None else counted * class_weights.to(dtype)[classes.clamp(max=len(class_weights) - 1)]


def sure_classes(logits: Tensor, gate: float) -> Tensor:
    """(B, C, H, W) logits -> (B, H, W) int64 classes, 255 where the largest probability is below `gate`."""
    confidence, classes = logits.softmax(1).max(1)
    return classes.masked_fill(confidence < gate, UNLABELLED)


def away_from_edges(classes: Tensor, radius: int) -> Tensor:
    """(B, H, W) int64 classes -> the same, 255 where another class (but 255) lies within `radius` cells, each way and diagonally."""
    counted = classes != UNLABELLED
    window = {"kernel_size": 2 * radius + 1, "stride": 1, "padding": radius}
    largest = F.max_pool2d(classes.masked_fill(~counted, -1).float(), **window)
    smallest = -F.max_pool2d(-classes.float(), **window)  # 255 is larger than every class
    return classes.masked_fill(largest != smallest, UNLABELLED)


def at_cells(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., H, W) -> (..., h, w): the pixel at the centre of each cell (the lower right one of the four around it, for even cells)."""
    rows, columns = (((torch.arange(n, device=pixels.device) + 0.5) * full / n).long() for n, full in zip(size, pixels.shape[-2:]))
    return pixels[..., rows[:, None], columns]


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def over_processes(total: Tensor) -> Tensor:
    """A total of this process's part of a batch -> the mean of the totals of all processes, without gradient; itself in a single one.

    Processes average their gradients. A sum that each divides by the mean of all counts becomes the mean over the whole batch, however
    unevenly what counts is spread; divided by its own count, a pixel would count more where there are few.
    """
    total = total.detach().clone()
    if processes() > 1:
        dist.all_reduce(total)
    return total / processes()


def valid_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid pixels of this process, (B, H, W) each; 0, with gradients that are 0, where none is."""
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)


def weighted_mean(values: Tensor, shares: Tensor) -> Tensor:
    """Mean of (B, H, W) values by the share of each pixel; 0, with gradients that are 0, where none counts. See `over_processes`."""
    whole = over_processes(shares.sum()).clamp(min=torch.finfo(shares.dtype).tiny)
    return torch.where(shares > 0, values * shares, 0.0).sum() / whole
