"""The switches of every distillation method: plain dataclasses, without torch, so that a configuration is checked before anything loads.

What a switch does to the mathematics is told in docs/distillation.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, get_args, get_origin, get_type_hints

from lix_core.errors import TrainingError
from lix_core.options import limits, nearest, option


class Checked:
    """A dataclass that refuses values out of range and unknown names, when it is made and whenever `check` is called."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises TrainingError, which names the field, its value and what it may be."""
        hints = get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Checked):
                value.check()
            elif get_origin(hints[f.name]) is Literal:
                _check_choice(f.name, value, get_args(hints[f.name]))
            elif isinstance(value, (int, float)):
                _check_range(f.name, value, f.metadata.get("least"), f.metadata.get("most"))


def _check_choice(name: str, value: object, known: tuple) -> None:
    if value not in known:
        raise TrainingError(f"{name} must be one of {', '.join(map(str, known))}; got {value!r}{nearest(value, known)}")


def _check_range(name: str, value: float, least: float | None, most: float | None) -> None:
    # Written so that NaN is in no range.
    if (least is not None and not value >= least) or (most is not None and not value <= most):
        raise TrainingError(f"{name} must be {limits(least, most)}, got {value!r}")


SMALLEST_TAU = 0.01
"""Temperatures below it turn float32 logits into numbers without meaning."""


@dataclass
class KDConfig(Checked):
    """Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531), per pixel."""

    weight: float = option(1.0, "Weight of the term.", 0)
    tau: float = option(4.0, "Temperature of both softmaxes.", SMALLEST_TAU)


@dataclass
class DKDConfig(Checked):
    """Decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679), per pixel."""

    weight: float = option(1.0, "Weight of the term.", 0)
    tau: float = option(4.0, "Temperature of both softmaxes.", SMALLEST_TAU)
    alpha: float = option(1.0, "Weight of the target part.", 0)
    beta: float = option(8.0, "Weight of the non-target part.", 0)
    warmup: int = option(80, "Batches over which the weight rises linearly; the paper takes a twelfth of its schedule.", 0)


@dataclass
class CWDConfig(Checked):
    """Channel-wise distillation (Shu et al., ICCV 2021, arXiv 2011.13256), on logits."""

    weight: float = option(3.0, "Weight of the term.", 0)
    tau: float = option(4.0, "Temperature of the softmax over the pixels of a channel.", SMALLEST_TAU)


@dataclass
class CIRKDConfig(Checked):
    """Cross-image relational distillation (Yang et al., CVPR 2022, arXiv 2204.06986): its mini-batch term, and the KD it stands on."""

    weight: float = option(1.0, "Weight of the mini-batch pixel-to-pixel term.", 0)
    tau: float = option(0.1, "Temperature of similarities.", SMALLEST_TAU)
    feature: str = option("decoder", "The feature that is compared; both networks need it.")
    tokens: int = option(256, "Most pixels of an image that are compared, after average pooling.", 1)
    kd_weight: float = option(1.0, "Weight of the per-pixel KD that the paper adds; 0: none.", 0)
    kd_tau: float = option(1.0, "Its temperature.", SMALLEST_TAU)


@dataclass
class MGDConfig(Checked):
    """Masked generative distillation (Yang et al., ECCV 2022, arXiv 2205.01529)."""

    weight: float = option(2e-5, "Weight of the squared error, which is summed over channels and pixels: it grows with the feature.", 0)
    ratio: float = option(0.75, "Share of the student's pixels that are masked.", 0, 1)
    feature: str = option("", "The feature that is generated; empty: the last stage that both networks have.")


@dataclass
class PseudoConfig(Checked):
    """Pseudo labels (Lee 2013): the teacher's class is the label of frames that have none."""

    weight: float = option(1.0, "Weight of the cross-entropy.", 0)
    threshold: float = option(0.9, "Pixels of which the teacher is less sure do not count.", 0, 1)


@dataclass
class LIXConfig(Checked):
    """The joint objective of LIX: L = L_H + logit L_L + feature L_F + x L_X + pseudo L_P."""

    logit: float = option(1.0, "Weight of L_L, the dynamically-weighted logit distillation; 0: without.", 0)
    feature: float = option(1.0, "Weight of L_F, the adaptively-recalibrated feature distillation; 0: without.", 0)
    x: float = option(0.0, "Weight of L_X, regression of X from a feature of the student; 0: without.", 0)
    pseudo: float = option(0.0, "Weight of L_P, cross-entropy on the teacher's class on frames without labels; 0: without.", 0)
    threshold: float = option(0.9, "In L_P, pixels of which the teacher is less sure do not count.", 0, 1)
    warmup: int = option(0, "Batches over which these weights rise linearly.", 0)
    tau: float = option(4.0, "Temperature of both softmaxes in L_L.", SMALLEST_TAU)
    controller: Literal["fixed", "coupled", "dynamic", "dynamic_coupled", "learned", "entropy"] = option(
        "dynamic", "What weighs the target and the non-target part of each pixel."
    )
    alpha: float = option(1.0, "Weight of the target part under `fixed`.", 0)
    beta: float = option(8.0, "Weight of the non-target part under `fixed`.", 0)
    tau_w: float = option(0.5, "Temperature of the `dynamic` weights: small prefers the less learned part strongly.", SMALLEST_TAU)
    uncertainty: float = option(0.1, "Weight of the regulariser under `learned`, which keeps the weights from vanishing.", 0)
    gate: float = option(0.0, "On frames without labels, pixels of which the teacher is less sure do not count in L_L.", 0, 1)
    features: list[str] = option(
        ["stage2", "stage3", "stage4", "decoder"], "Features compared in L_F, which both networks need; `logits` are compared as one more."
    )
    tokens: int = option(256, "Most tokens of an image and feature.", 4)
    sampling: Literal["pooled", "points", "balanced"] = option(
        "pooled",
        "What tokens are: averages over a grid; points drawn anew each step; points drawn so that each class of the image has about "
        "equally many.",
    )
    kernel: Literal["laplace", "none"] = option("laplace", "Kernel of the regression that recalibrates tokens; none: tokens as they are.")
    cka: Literal["linear", "rbf"] = option("linear", "Kernel of the alignment.")
    unbiased: bool = option(False, "Whether HSIC is estimated without bias (Song et al. 2012).")
    x_feature: str = option("decoder", "The student's feature from which X is predicted in L_X.")


@dataclass
class DistillConfig(Checked):
    """The method, and the switches of each."""

    method: Literal["none", "kd", "dkd", "cwd", "cirkd", "mgd", "pseudo", "lix"] = option("lix", "How the student is taught.")
    class_weights: bool = option(False, "Whether L_H's class weights also weigh the pixels in terms over logits (not CWD's).")
    rgb_teacher: bool = option(False, "Whether the run of a student, which sees RGB alone, may teach: to tell what X is worth.")
    edge: int = option(
        0, "Cells within this distance [cells] of another target class do not count in terms over logits (not CWD's); 0: off.", 0
    )
    kd: KDConfig = field(default_factory=KDConfig)
    dkd: DKDConfig = field(default_factory=DKDConfig)
    cwd: CWDConfig = field(default_factory=CWDConfig)
    cirkd: CIRKDConfig = field(default_factory=CIRKDConfig)
    mgd: MGDConfig = field(default_factory=MGDConfig)
    pseudo: PseudoConfig = field(default_factory=PseudoConfig)
    lix: LIXConfig = field(default_factory=LIXConfig)
