"""Dynamically-weighted logit distillation: the target and the non-target part of each pixel's divergence, and what weighs them.

The public outline of LIX (Guo et al., arXiv 2403.08215) says that decoupled knowledge distillation (Zhao et al., CVPR 2022,
arXiv 2203.08679) is re-weighted for each logit by a dynamic weight controller. The formulas of the controllers are this project's
reconstruction; docs/distillation.md derives them.

Shape letters: B batch, C classes, H W pixels. Classes are int64 with 255 = pixel that does not count; logits are float32 or float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lix_core.distill.distiller import shares_of, valid_mean, weighted_mean
from lix_core.labels import UNLABELLED


class Decoupled(NamedTuple):
    """A pixel's softmax in two parts: the target class against the rest, and the rest among themselves."""

    odds: Tensor
    """(B, H, W) log-odds of the target: the target part is b = (sigmoid(odds), sigmoid(-odds))."""
    log_rest: Tensor
    """(B, C, H, W) log q, the log-softmax over the C - 1 other classes; 0 at the target."""
    is_target: Tensor
    """(B, C, H, W) bool; False for all classes where the pixel does not count."""

    @property
    def target(self) -> Tensor:
        """(B, H, W) probability of the target, p_t."""
        return self.odds.sigmoid()

    @property
    def rest(self) -> Tensor:
        """(B, C, H, W) q, 0 at the target."""
        return self.log_rest.exp().masked_fill(self.is_target, 0.0)

    @property
    def entropy(self) -> Tensor:
        """(B, H, W) entropy of the whole softmax as a share of ln C: H(p) = H(b) + (1 - p_t) H(q)."""
        among = -(self.rest * self.log_rest).sum(1)
        target, other = self.target, (-self.odds).sigmoid()
        against = -target * F.logsigmoid(self.odds) - other * F.logsigmoid(-self.odds)
        return (against + other * among) / math.log(self.log_rest.shape[1])

    def detach(self) -> Decoupled:
        return Decoupled(*(part.detach() for part in self))


def decouple(logits: Tensor, classes: Tensor, tau: float) -> Decoupled:
    """(B, C, H, W) logits, (B, H, W) classes -> the two parts of the softmax at temperature tau."""
    scaled = logits / tau
    # Adding a large negative number instead would leave the target in the softmax wherever logits are larger than that.
    is_target = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1) == classes.unsqueeze(1)
    others = scaled.masked_fill(is_target, -math.inf).logsumexp(1)
    own = torch.where(is_target, scaled, 0.0).sum(1)
    return Decoupled(own - others, (scaled - others.unsqueeze(1)).masked_fill(is_target, 0.0), is_target)


def divergences(teacher: Decoupled, student: Decoupled, tau: float) -> tuple[Tensor, Tensor]:
    """(TCLD, NCLD), (B, H, W) each: tau^2 KL(b_T || b_S) and tau^2 KL(q_T || q_S).

    tau^2 KL(p_T || p_S) = TCLD + (1 - p_T,t) NCLD. With two classes NCLD is exactly 0.
    """
    to_target = F.logsigmoid(teacher.odds) - F.logsigmoid(student.odds)
    to_rest = F.logsigmoid(-teacher.odds) - F.logsigmoid(-student.odds)
    target = teacher.target * to_target + (-teacher.odds).sigmoid() * to_rest
    rest = (teacher.rest * (teacher.log_rest - student.log_rest)).sum(1)
    return tau**2 * target, tau**2 * rest


def divergence(teacher_logits: Tensor, student_logits: Tensor, tau: float) -> Tensor:
    """(B, H, W) tau^2 KL(p_T || p_S), the term of plain KD."""
    log_teacher, log_student = (teacher_logits / tau).log_softmax(1), (student_logits / tau).log_softmax(1)
    return tau**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(1)


class Controller(nn.Module):
    """Weighs the target part (alpha) and the non-target part (beta) of each pixel; a subclass implements `weigh`.

    The weights are functions of detached logits: no gradient reaches a network through them.

    Args:
        tau: temperature of the softmaxes.

    Shape:
        teacher_logits, student_logits (B, C, H, W), labels (B, H, W) int64, 255 = ignored -> alpha, beta, (B, H, W) each
    """

    def __init__(self, tau: float = 4.0):
        super().__init__()
        self.tau = tau

    def forward(self, teacher_logits: Tensor, student_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        teacher, student = (decouple(logits.detach(), labels, self.tau) for logits in (teacher_logits, student_logits))
        return self.weigh(teacher, student, labels != UNLABELLED)

    def weigh(self, teacher: Decoupled, student: Decoupled, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The same out of what the loss has computed already, detached."""
        raise NotImplementedError

    def regulariser(self, alpha: Tensor, beta: Tensor, valid: Tensor) -> Tensor | None:
        """What the loss of a controller that learns needs besides; None for one that does not."""
        return None


class FixedWeights(Controller):
    """The same pair everywhere: decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv 2203.08679)."""

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, tau: float = 4.0):
        super().__init__(tau)
        self.alpha, self.beta = alpha, beta

    def weigh(self, teacher: Decoupled, student: Decoupled, valid: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(teacher.odds, self.alpha), torch.full_like(teacher.odds, self.beta)


class CoupledWeights(Controller):
    """(1, 1 - p_T,t): the weights of classical knowledge distillation, with which the loss is plain KL."""

    def weigh(self, teacher: Decoupled, student: Decoupled, valid: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(teacher.odds), (-teacher.odds).sigmoid()


class DynamicWeights(Controller):
    """More weight on whichever part of this pixel is less learned, less weight where the teacher contradicts the target.

    With the gaps g = |b_T,t - b_S,t| and h = 1/2 |q_T - q_S|_1 and the reliability r = p_T,t:
    (alpha, beta) = 2 softmax((g, h) / tau_w) r / mean(r), the mean over the valid pixels of the process. This project's reconstruction.
    """

    def __init__(self, tau_w: float = 0.5, tau: float = 4.0):
        super().__init__(tau)
        self.tau_w = tau_w

    def weigh(self, teacher: Decoupled, student: Decoupled, valid: Tensor) -> tuple[Tensor, Tensor]:
        reliability = teacher.target
        tiny = torch.finfo(reliability.dtype).tiny
        reliability = reliability / valid_mean(reliability, valid).clamp(min=tiny)
        lead = (target_gap(teacher, student) - rest_gap(teacher, student)) / self.tau_w
        # The softmax of two numbers is a sigmoid of their difference.
        return 2 * lead.sigmoid() * reliability, 2 * (-lead).sigmoid() * reliability


class DynamicCoupledWeights(DynamicWeights):
    """The weights of DynamicWeights about those of classical distillation: beta besides times 1 - p_T,t, which it has in plain KL.

    Where the teacher is sure, the other classes share next to nothing of its probability; how they compare then counts as little. Without
    that factor the non-target part has most of the gradient once a student has learnt the classes. This project's reconstruction.
    """

    def weigh(self, teacher: Decoupled, student: Decoupled, valid: Tensor) -> tuple[Tensor, Tensor]:
        alpha, beta = super().weigh(teacher, student, valid)
        return alpha, beta * (-teacher.odds).sigmoid()


class EntropyWeights(Controller):
    """alpha = 2 (1 - e), beta = 2 e, with e the teacher's entropy as a share of ln C. This project's reconstruction.

    A sure teacher says little beyond its class, so the target part counts; an unsure one says how the other classes compare.
    """

    def weigh(self, teacher: Decoupled, student: Decoupled, valid: Tensor) -> tuple[Tensor, Tensor]:
        entropy = teacher.entropy
        return 2 * (1 - entropy), 2 * entropy


class LearnedWeights(Controller):
    """Two 1x1 convolutions over g, h, r (see DynamicWeights) and the entropies of teacher and student; this project's reconstruction.

    They start at (1, 1) and stay within 1 / limit .. limit. Alone they would shrink the loss by shrinking the weights; the regulariser
    -uncertainty (ln alpha + ln beta) is that of homoscedastic uncertainty (Kendall et al., CVPR 2018, arXiv 1705.07115), per pixel.
    """

    def __init__(self, uncertainty: float = 0.1, tau: float = 4.0, hidden: int = 8, limit: float = 4.0):
        super().__init__(tau)
        self.uncertainty, self.log_limit = uncertainty, math.log(limit)
        self.net = nn.Sequential(nn.Conv2d(5, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 2, 1))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def weigh(self, teacher: Decoupled, student: Decoupled, valid: Tensor) -> tuple[Tensor, Tensor]:
        seen = [target_gap(teacher, student), rest_gap(teacher, student), teacher.target, teacher.entropy, student.entropy]
        log_weights = self.log_limit * self.net(torch.stack(seen, 1)).tanh()
        alpha, beta = log_weights.exp().unbind(1)
        return alpha, beta

    def regulariser(self, alpha: Tensor, beta: Tensor, valid: Tensor) -> Tensor:
        return -self.uncertainty * weighted_mean(alpha.log() + beta.log(), valid.to(alpha.dtype))


def target_gap(teacher: Decoupled, student: Decoupled) -> Tensor:
    """(B, H, W) g = |b_T,t - b_S,t|, 0 to 1."""
    return (teacher.target - student.target).abs()


def rest_gap(teacher: Decoupled, student: Decoupled) -> Tensor:
    """(B, H, W) h = 1/2 |q_T - q_S|_1, 0 to 1."""
    return 0.5 * (teacher.rest - student.rest).abs().sum(1)


class WeighedMaps(NamedTuple):
    """(B, H, W) each: the weights and the two parts of the divergence of every pixel."""

    alpha: Tensor
    beta: Tensor
    tcld: Tensor
    ncld: Tensor


def weighed(teacher_logits: Tensor, student_logits: Tensor, labels: Tensor, controller: Controller) -> WeighedMaps:
    """The parts of L_L; gradients reach the student's logits (through tcld and ncld) and the controller (through alpha and beta)."""
    with torch.no_grad():
        teacher = decouple(teacher_logits, labels, controller.tau)
    student = decouple(student_logits, labels, controller.tau)
    return WeighedMaps(*controller.weigh(teacher, student.detach(), labels != UNLABELLED), *divergences(teacher, student, controller.tau))


def weighed_logit_loss(
    teacher_logits: Tensor, student_logits: Tensor, labels: Tensor, controller: Controller, class_weights: Tensor | None = None
) -> dict[str, Tensor]:
    """L_L as `logit`, the mean over valid pixels of alpha TCLD + beta NCLD, and `controller`, where the controller has a regulariser.

    class_weights: by which the pixels of each target class count in the mean; None: all alike.

    Shape:
        logits (B, C, H, W), labels (B, H, W) int64, 255 = ignored, class_weights (C,) -> scalars
    """
    maps, valid = weighed(teacher_logits, student_logits, labels, controller), labels != UNLABELLED
    shares = shares_of(labels, class_weights, student_logits.dtype)
    terms = {"logit": weighted_mean(maps.alpha * maps.tcld + maps.beta * maps.ncld, shares)}
    regulariser = controller.regulariser(maps.alpha, maps.beta, valid)
    return terms if regulariser is None else terms | {"controller": regulariser}


@torch.no_grad()
def weights_maps(teacher_logits: Tensor, student_logits: Tensor, labels: Tensor, controller: Controller) -> WeighedMaps:
    """What a controller does, for drawing: alpha, beta, TCLD and NCLD of every pixel, NaN where a pixel does not count.

    Shape:
        logits (B, C, H, W), labels (B, H, W) int64, 255 = ignored -> four maps (B, H, W)
    """
    maps = weighed(teacher_logits, student_logits, labels, controller)
    return WeighedMaps(*(values.masked_fill(labels == UNLABELLED, math.nan) for values in maps))
