"""The joint objective of LIX, and the one place where a method is chosen by its name.

Shape letters: B batch, C classes, Cx channels of X, H W pixels, h w cells of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from lix_core.distill.config import DistillConfig, LIXConfig
from lix_core.distill.distiller import (
    Distiller,
    Networks,
    NoDistiller,
    at_cells,
    detached,
    full_precision,
    lesson_of,
    weighted_mean,
)
from lix_core.distill.feature import draw_points, recalibrated_feature_loss
from lix_core.distill.logit import (
    Controller,
    CoupledWeights,
    DynamicCoupledWeights,
    DynamicWeights,
    EntropyWeights,
    FixedWeights,
    LearnedWeights,
    WeighedMaps,
    weighed_logit_loss,
    weights_maps,
)
from lix_core.distill.peers import CIRKD, CWD, DKD, KD, MGD, Pseudo, pseudo_cross_entropy
from lix_core.errors import TrainingError

if TYPE_CHECKING:
    from lix_core.data.sample import Batch
    from lix_core.models.networks import Output


def feature_of(output: Output, name: str) -> Tensor:
    """A feature by its name; `logits` are the coarse logits about their mean over the classes, which softmax does not see."""
    if name != "logits":
        return output.features[name]
    logits = full_precision(output.logits)
    return logits - logits.mean(1, keepdim=True)


def build_controller(config: LIXConfig) -> Controller:
    """The controller that a configuration names."""
    builders = {
        "fixed": lambda: FixedWeights(config.alpha, config.beta, config.tau),
        "coupled": lambda: CoupledWeights(config.tau),
        "dynamic": lambda: DynamicWeights(config.tau_w, config.tau),
        "dynamic_coupled": lambda: DynamicCoupledWeights(config.tau_w, config.tau),
        "learned": lambda: LearnedWeights(config.uncertainty, config.tau),
        "entropy": lambda: EntropyWeights(config.tau),
    }
    return builders[config.controller]()


class LIX(Distiller):
    """L_L of the logits and L_F of the features, after the public outline of LIX (Guo et al., arXiv 2403.08215), in this project's
    reconstruction; and two additions of this project: L_X, X itself, predicted from a feature of the student by one 1x1 convolution, and
    L_P, which stands in for L_H on frames without labels, with the teacher's class as the label.

    Terms: `logit` (and `controller`, a learned one's regulariser, with the same weight), `feature`, `x`, `pseudo`; those with weight 0
    are left out.
    """

    def __init__(self, config: LIXConfig, networks: Networks):
        super().__init__(networks, config.warmup)
        self.config = config
        self.controller = build_controller(config)
        self.x_head = None
        if config.feature:
            if not config.features:
                raise TrainingError("distill.lix.features is empty: name features, or set distill.lix.feature=0")
            networks.check_features("lix.features", [name for name in config.features if name != "logits"])
        if config.x:
            if not networks.x_channels:
                raise TrainingError("distill.lix.x needs X in the data: set data.x, or distill.lix.x=0")
            networks.check_student_feature("lix.x_feature", config.x_feature)
            self.x_head = nn.Conv2d(networks.student_channels[config.x_feature], networks.x_channels, 1)

    def terms(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        config, terms = self.config, {}
        if config.logit:
            parts = weighed_logit_loss(*self.lesson(student, teacher, batch, config.gate), self.controller, self.class_weights)
            terms |= {name: config.logit * part for name, part in parts.items()}
        if config.feature:
            points = None
            if config.sampling != "pooled":
                points = draw_points(lesson_of(student, teacher, batch).classes, config.tokens, config.sampling == "balanced")
            losses = [self._feature_loss(feature_of(student, name), feature_of(teacher, name), points) for name in config.features]
            terms["feature"] = config.feature * sum(losses) / len(losses)
        if self.x_head is not None:
            terms["x"] = config.x * self._x_loss(student.features[config.x_feature], batch)
        if config.pseudo:
            sure = self.lesson(student, teacher, batch, config.threshold)
            terms["pseudo"] = config.pseudo * pseudo_cross_entropy(sure, batch.labelled, self.class_weights)
        return terms

    def _feature_loss(self, student: Tensor, teacher: Tensor, points: Tensor | None) -> Tensor:
        config = self.config
        return recalibrated_feature_loss(
            full_precision(student), full_precision(teacher), config.tokens, config.kernel, config.cka, config.unbiased, points
        )

    def _x_loss(self, feature: Tensor, batch: Batch) -> Tensor:
        """Smooth L1 between X at the cells' centres and its prediction, the mean over channels and known cells."""
        predicted = self.x_head(full_precision(feature))
        if batch.x.shape[1] != predicted.shape[1]:
            raise TrainingError(f"X has {batch.x.shape[1]} channels, distill.lix.x was set up for {predicted.shape[1]}")
        size = feature.shape[-2:]
        error = F.smooth_l1_loss(predicted, at_cells(batch.x, size).to(predicted.dtype), reduction="none")
        return weighted_mean(error.mean(1), at_cells(batch.known, size).to(error.dtype))

    def maps(self, student: Output, teacher: Output, batch: Batch) -> WeighedMaps:
        """Weights and divergences of L_L on the student's coarse grid, for drawing; NaN where a pixel does not count."""
        return weights_maps(*self.lesson(student, detached(teacher), batch, self.config.gate), self.controller)


METHODS: dict[str, type[Distiller]] = {
    "none": NoDistiller,
    "kd": KD,
    "dkd": DKD,
    "cwd": CWD,
    "cirkd": CIRKD,
    "mgd": MGD,
    "pseudo": Pseudo,
    "lix": LIX,
}
"""Every method, by the name of its part of DistillConfig."""


def build_distiller(
    config: DistillConfig,
    student_channels: Mapping[str, int],
    teacher_channels: Mapping[str, int],
    num_classes: int,
    x_channels: int,
    class_weights: Tensor | None = None,
) -> Distiller:
    """The method that a configuration names, for two networks.

    Args:
        student_channels, teacher_channels: name of each feature of `Output` -> its channels. x_channels: Cx of the data, 0 without X.
        class_weights: (C,) of the hard loss; used where the configuration says `class_weights`.

    Raises:
        TrainingError: an unknown method, values out of range, features that a network does not have, fewer than two classes.
    """
    config.check()
    if num_classes < 2:
        raise TrainingError(f"distillation needs at least two classes, got {num_classes}")
    weights = class_weights if config.class_weights else None
    networks = Networks(student_channels, teacher_channels, num_classes, x_channels, weights, config.edge)
    return METHODS[config.method](getattr(config, config.method, None), networks)
