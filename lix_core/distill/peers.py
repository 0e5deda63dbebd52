"""Published methods beside LIX, behind the same interface, each as its paper configures it.

Shape letters: B batch, C classes, D channels, H W cells, N tokens of an image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lix_core.distill.config import CIRKDConfig, CWDConfig, DKDConfig, KDConfig, MGDConfig, PseudoConfig
from lix_core.distill.distiller import Distiller, Lesson, Networks, full_precision, lesson_of, shares_of, weighted_mean
from lix_core.distill.feature import pool_tokens, token_grid
from lix_core.distill.logit import FixedWeights, divergence, weighed_logit_loss
from lix_core.errors import TrainingError
from lix_core.labels import UNLABELLED

if TYPE_CHECKING:
    from lix_core.data.sample import Batch
    from lix_core.models.networks import Output


def pixel_divergence(lesson: Lesson, tau: float, class_weights: Tensor | None = None) -> Tensor:
    """tau^2 KL(p_T || p_S), the mean over the pixels that count, by the (C,) weights of their classes."""
    shares = shares_of(lesson.classes, class_weights, lesson.student.dtype)
    return weighted_mean(divergence(lesson.teacher, lesson.student, tau), shares)


class KD(Distiller):
    """Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531) of each pixel. On frames without labels every pixel counts."""

    def __init__(self, config: KDConfig, networks: Networks):
        super().__init__(networks)
        self.config = config

    def terms(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {"kd": self.config.weight * pixel_divergence(self.lesson(student, teacher, batch), self.config.tau, self.class_weights)}


class DKD(Distiller):
    """Decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679), per pixel; without a label the teacher's class is the
    target.
    """

    def __init__(self, config: DKDConfig, networks: Networks):
        super().__init__(networks, config.warmup)
        self.weight, self.controller = config.weight, FixedWeights(config.alpha, config.beta, config.tau)

    def terms(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {
            "dkd": self.weight * weighed_logit_loss(*self.lesson(student, teacher, batch), self.controller, self.class_weights)["logit"]
        }


def channel_divergence(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """tau^2 KL between the softmaxes of a channel over its pixels, the mean over channels and images.

    Shape:
        (B, C, H, W) each -> scalar
    """
    log_teacher, log_student = ((logits.flatten(2) / tau).log_softmax(2) for logits in (teacher, student))
    return tau**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(2).mean()


class CWD(Distiller):
    """Channel-wise distillation of logits (Shu et al., ICCV 2021, arXiv 2011.13256). It has no use for labels: every pixel counts."""

    def __init__(self, config: CWDConfig, networks: Networks):
        super().__init__(networks)
        self.config = config

    def terms(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        lesson = lesson_of(student, teacher, batch)
        return {"cwd": self.config.weight * channel_divergence(lesson.teacher, lesson.student, self.config.tau)}


def similarity_divergence(teacher: Tensor, student: Tensor, tau: float) -> Tensor:
    """How differently two networks see the pixels of one image among those of another one.

    For each pair of images of the batch, one with itself too, and each token of the first: KL between the softmaxes over the second
    one's tokens of cosine similarity / tau; the mean over tokens and pairs.

    Shape:
        teacher (B, N, E), student (B, N, D) -> scalar
    """
    batch, count = student.shape[:2]
    similar = [torch.einsum("ind,jmd->injm", t, t) for t in (F.normalize(teacher, dim=2), F.normalize(student, dim=2))]
    log_teacher, log_student = ((s / tau).log_softmax(3) for s in similar)
    return (log_teacher.exp() * (log_teacher - log_student)).sum() / (batch * batch * count)


class CIRKD(Distiller):
    """Cross-image relational distillation (Yang et al., CVPR 2022, arXiv 2204.06986): KD and the mini-batch pixel-to-pixel term.

    The terms with memory banks are left out, and features are pooled to a bounded number of tokens where the original compares
    every pixel: memory is then (B N)^2 whatever the size of the images. The batch is that of one process.
    """

    def __init__(self, config: CIRKDConfig, networks: Networks):
        super().__init__(networks)
        networks.check_features("cirkd.feature", [config.feature])
        self.config = config

    def terms(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        config = self.config
        seen, known = student.features[config.feature], teacher.features[config.feature]
        grid = token_grid(*(min(sizes) for sizes in zip(seen.shape[-2:], known.shape[-2:])), config.tokens)
        tokens = [pool_tokens(full_precision(feature), grid) for feature in (known, seen)]
        terms = {"cirkd": config.weight * similarity_divergence(*tokens, config.tau)}
        if config.kd_weight:
            terms["kd"] = config.kd_weight * pixel_divergence(self.lesson(student, teacher, batch), config.kd_tau, self.class_weights)
        return terms


class MGD(Distiller):
    """Masked generative distillation (Yang et al., ECCV 2022, arXiv 2205.01529).

    Out of the student's feature, with most pixels masked, two convolutions of the method's own generate the teacher's. A 1x1
    convolution aligns widths that differ; a grid that differs is resized bilinearly to the teacher's.
    """

    def __init__(self, config: MGDConfig, networks: Networks):
        super().__init__(networks)
        self.config, self.feature = config, config.feature or last_common_stage(networks)
        networks.check_features("mgd.feature", [self.feature])
        width, wanted = networks.student_channels[self.feature], networks.teacher_channels[self.feature]
        self.align = nn.Identity() if width == wanted else nn.Conv2d(width, wanted, 1)
        self.generate = nn.Sequential(nn.Conv2d(wanted, wanted, 3, padding=1), nn.ReLU(), nn.Conv2d(wanted, wanted, 3, padding=1))

    def terms(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        feature, wanted = full_precision(student.features[self.feature]), full_precision(teacher.features[self.feature])
        feature = self.align(feature)
        if feature.shape[-2:] != wanted.shape[-2:]:
            feature = F.interpolate(feature, wanted.shape[-2:], mode="bilinear", align_corners=False)
        kept = torch.rand_like(wanted[:, :1]) >= self.config.ratio
        error = (self.generate(feature * kept) - wanted).square().sum()
        return {"mgd": self.config.weight * error / len(wanted)}


def last_common_stage(networks: Networks) -> str:
    """The coarsest encoder stage that both networks have."""
    common = [name for name in networks.student_channels if name.startswith("stage") and name in networks.teacher_channels]
    if not common:
        raise TrainingError("distill.mgd.feature: the networks have no stage in common; name a feature that both have")
    return max(common, key=lambda name: int(name.removeprefix("stage")))


def pseudo_cross_entropy(lesson: Lesson, labelled: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of the frames that are not labelled, (B,) bool, on the lesson's classes: the mean over the pixels that count, by the
    (C,) weights of their classes.
    """
    classes = lesson.classes.masked_fill(labelled[:, None, None], UNLABELLED)
    loss = F.cross_entropy(lesson.student, classes, ignore_index=UNLABELLED, reduction="none")
    return weighted_mean(loss, shares_of(classes, class_weights, loss.dtype))


class Pseudo(Distiller):
    """Pseudo labels (Lee, ICML workshop 2013): cross-entropy on the teacher's class, on frames without labels, where it is sure."""

    def __init__(self, config: PseudoConfig, networks: Networks):
        super().__init__(networks)
        self.config = config

    def terms(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        lesson = self.lesson(student, teacher, batch, self.config.threshold)
        return {"pseudo": self.config.weight * pseudo_cross_entropy(lesson, batch.labelled, self.class_weights)}
