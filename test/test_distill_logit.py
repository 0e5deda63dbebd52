"""Logit distillation: the decoupled divergences against plain KL, loops and formulas, and what the controllers weigh."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lix_core.distill.config import LIXConfig
from lix_core.distill.logit import (
    CoupledWeights,
    DynamicCoupledWeights,
    DynamicWeights,
    EntropyWeights,
    FixedWeights,
    LearnedWeights,
    decouple,
    divergence,
    divergences,
    weighed,
    weighed_logit_loss,
    weights_maps,
)
from lix_core.distill.objective import build_controller

CONTROLLERS = ["fixed", "coupled", "dynamic", "dynamic_coupled", "learned", "entropy"]


def logits_of(seed: int, classes: int = 4, scale: float = 3.0, height: int = 2, width: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, classes, height, width, generator=generator, dtype=torch.float64)


def labels_of(seed: int, classes: int = 4, height: int = 2, width: int = 3) -> torch.Tensor:
    labels = torch.randint(0, classes, (2, height, width), generator=torch.Generator().manual_seed(seed))
    labels[0, 0, 0] = 255
    return labels


def one_pixel(*probabilities: float) -> torch.Tensor:
    """(1, C, 1, 1) logits whose softmax is given."""
    return torch.tensor(probabilities, dtype=torch.float64).log().view(1, -1, 1, 1)


def softmax(logits: list[float]) -> list[float]:
    highest = max(logits)
    exponentials = [math.exp(z - highest) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q) if a)


def plain_dkd(teacher: torch.Tensor, student: torch.Tensor, labels: torch.Tensor, alpha: float, beta: float, tau: float) -> float:
    """DKD, a pixel at a time, out of the definition."""
    total, count = 0.0, 0
    for b, i, j in torch.nonzero(labels != 255).tolist():
        t = int(labels[b, i, j])
        z_t, z_s = ([float(z) / tau for z in logits[b, :, i, j]] for logits in (teacher, student))
        p_t, p_s = softmax(z_t), softmax(z_s)
        rest_t, rest_s = (softmax([z for k, z in enumerate(zs) if k != t]) for zs in (z_t, z_s))
        target = kl([p_t[t], 1 - p_t[t]], [p_s[t], 1 - p_s[t]])
        total += tau**2 * (alpha * target + beta * kl(rest_t, rest_s))
        count += 1
    return total / count


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 8), st.floats(0.3, 10), st.floats(0, 80), st.integers(0, 10**6))
def test_the_two_parts_add_up_to_the_whole_divergence(classes, tau, scale, seed):
    teacher, student = logits_of(seed, classes, scale), logits_of(seed + 1, classes, scale)
    labels = torch.randint(0, classes, (2, 2, 3), generator=torch.Generator().manual_seed(seed))
    parts = [decouple(logits, labels, tau) for logits in (teacher, student)]
    tcld, ncld = divergences(*parts, tau)
    p_t = (teacher / tau).softmax(1).gather(1, labels[:, None]).squeeze(1)
    whole = tau**2 * F.kl_div((student / tau).log_softmax(1), (teacher / tau).log_softmax(1), log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(tcld + (1 - p_t) * ncld, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(divergence(teacher, student, tau), whole, rtol=1e-6, atol=1e-6)
    assert (tcld > -1e-9).all() and (ncld > -1e-9).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 8), st.floats(0.5, 8), st.floats(0, 80), st.integers(0, 10**6))
def test_coupled_weights_are_plain_distillation(classes, tau, scale, seed):
    teacher, student, labels = logits_of(seed, classes, scale), logits_of(seed + 1, classes, scale), labels_of(seed, classes)
    loss = weighed_logit_loss(teacher, student, labels, CoupledWeights(tau))["logit"]
    log_student, log_teacher = (student / tau).log_softmax(1), (teacher / tau).log_softmax(1)
    plain = tau**2 * F.kl_div(log_student, log_teacher, log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(loss, plain[labels != 255].mean(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("classes, alpha, beta, tau", [(2, 1, 8, 4), (4, 1, 8, 4), (5, 0.5, 2, 1)])
def test_fixed_weights_are_dkd_of_each_pixel(classes, alpha, beta, tau):
    teacher, student, labels = logits_of(1, classes), logits_of(2, classes), labels_of(3, classes)
    loss = weighed_logit_loss(teacher, student, labels, FixedWeights(alpha, beta, tau))["logit"]
    assert loss.item() == pytest.approx(plain_dkd(teacher, student, labels, alpha, beta, tau), abs=1e-9)


def test_the_rest_does_not_depend_on_the_target_however_large_its_logit():
    """Ports that hide the target behind a large negative number fail here."""
    teacher, student, labels = logits_of(1), logits_of(2), torch.full((2, 2, 3), 1)
    expected = divergences(decouple(teacher, labels, 1.0), decouple(student, labels, 1.0), 1.0)[1]
    teacher[:, 1], student[:, 1] = 5000.0, -3000.0
    # What all logits share means nothing either.
    teacher, student = teacher - 8000, student - 6000
    found = divergences(decouple(teacher, labels, 1.0), decouple(student, labels, 1.0), 1.0)[1]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (expected > 0.005).all()


def test_the_gradients_are_those_of_the_formulas():
    tau, teacher, labels = 2.5, logits_of(1), torch.full((2, 2, 3), 2)
    student = logits_of(2).requires_grad_()
    tcld, ncld = divergences(decouple(teacher, labels, tau), decouple(student, labels, tau), tau)
    of_target, of_rest = (torch.autograd.grad(part.sum(), student, retain_graph=True)[0] for part in (tcld, ncld))
    p_t, p_s = (teacher / tau).softmax(1), (student.detach() / tau).softmax(1)
    others = [0, 1, 3]
    q_t, q_s = (p[:, others] / p[:, others].sum(1, keepdim=True) for p in (p_t, p_s))
    pull = tau * (p_s[:, 2] - p_t[:, 2])
    torch.testing.assert_close(of_target[:, 2], pull)
    torch.testing.assert_close(of_target[:, others], -pull[:, None] * q_s)
    torch.testing.assert_close(of_rest[:, others], tau * (q_s - q_t))
    torch.testing.assert_close(of_rest[:, 2], torch.zeros_like(pull))


@pytest.mark.parametrize("controller", [FixedWeights(1.0, 8.0, 4.0), CoupledWeights(2.0), EntropyWeights(2.0)], ids=type)
def test_the_gradients_are_finite_differences(controller):
    teacher, student, labels = logits_of(1), logits_of(2).requires_grad_(), labels_of(3)
    assert torch.autograd.gradcheck(lambda s: weighed_logit_loss(teacher, s, labels, controller)["logit"], student)


@pytest.mark.parametrize(
    "controller", [DynamicWeights(0.5, 2.0), DynamicCoupledWeights(0.5, 2.0), LearnedWeights(0.1, 2.0).double()], ids=type
)
def test_weights_that_follow_the_student_are_constants_to_its_gradient(controller):
    teacher, student, labels = logits_of(1), logits_of(2).requires_grad_(), labels_of(3)
    if isinstance(controller, LearnedWeights):
        generator = torch.Generator().manual_seed(0)
        for parameter in controller.parameters():
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    loss = weighed_logit_loss(teacher, student, labels, controller)["logit"]
    alpha, beta = (weight.detach() for weight in controller(teacher, student, labels))
    tcld, ncld = divergences(decouple(teacher, labels, 2.0), decouple(student, labels, 2.0), 2.0)
    expected = torch.autograd.grad((alpha * tcld + beta * ncld)[labels != 255].mean(), student)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], expected)
    assert alpha[labels != 255].std() > 0.01


def test_two_classes_have_no_rest_exactly():
    labels, student = labels_of(3, 2), logits_of(2, 2, 50.0).float().requires_grad_()
    _, ncld = divergences(decouple(logits_of(1, 2, 50.0).float(), labels, 4.0), decouple(student, labels, 4.0), 4.0)
    assert (ncld[labels != 255] == 0).all()
    gradient = torch.autograd.grad(ncld[labels != 255].sum(), student)[0]
    assert (gradient == 0).all()


@pytest.mark.parametrize("tau", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("name", CONTROLLERS)
def test_extreme_logits_give_finite_losses_and_gradients_in_float32(name, tau):
    signs = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1], [-1, -1, -1], [0, 1, -1]])
    student = (80 * signs).view(1, 6, 3, 1).transpose(1, 2).contiguous().requires_grad_()
    teacher = (80 * signs.flip(0)).view(1, 6, 3, 1).transpose(1, 2)
    labels = torch.tensor([0, 1, 2, 0, 1, 255]).view(1, 6, 1)
    terms = weighed_logit_loss(teacher, student, labels, build_controller(LIXConfig(controller=name, tau=tau)))
    sum(terms.values()).backward()
    assert all(torch.isfinite(value) for value in terms.values()) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", CONTROLLERS)
def test_no_controller_lets_a_gradient_reach_the_teacher(name):
    teacher, student = (logits_of(seed).float().requires_grad_() for seed in (1, 2))
    sum(weighed_logit_loss(teacher, student, labels_of(3), build_controller(LIXConfig(controller=name))).values()).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    # Nor does one reach the student through the weights, asked for by themselves.
    student.grad, controller = None, build_controller(LIXConfig(controller=name))
    weights = sum(controller(teacher, student, labels_of(3)))
    if weights.requires_grad:  # as those that are learned
        weights.sum().backward()
    assert weights.requires_grad == (name == "learned") and teacher.grad is None and student.grad is None


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name):
    logits, labels = logits_of(1), labels_of(2)
    controller = build_controller(LIXConfig(controller=name)).double()
    assert weighed_logit_loss(logits, logits, labels, controller)["logit"].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", CONTROLLERS)
def test_without_a_valid_pixel_the_loss_and_its_gradient_are_zero(name):
    student = logits_of(2).float().requires_grad_()
    terms = weighed_logit_loss(logits_of(1).float(), student, torch.full((2, 2, 3), 255), build_controller(LIXConfig(controller=name)))
    sum(terms.values()).backward()
    assert all(value == 0 for value in terms.values()) and (student.grad == 0).all()


@pytest.mark.parametrize("name", CONTROLLERS)
def test_pixels_that_do_not_count_do_not_change_the_loss(name):
    teacher, student, labels = logits_of(1).float(), logits_of(2).float(), labels_of(3)
    controller = build_controller(LIXConfig(controller=name))
    loss = weighed_logit_loss(teacher, student, labels, controller)["logit"]
    student[0, :, 0, 0] += torch.tensor([50.0, -50, 3, 0])
    teacher[0, :, 0, 0] -= torch.tensor([50.0, -50, 3, 0])
    torch.testing.assert_close(weighed_logit_loss(teacher, student, labels, controller)["logit"], loss)


def test_dynamic_weights_of_one_pixel():
    # b_T = 0.5 and b_S = 0.25; q_T = (1/2, 1/2) and q_S = (2/3, 1/3): g = 1/4, h = 1/6.
    alpha, beta = DynamicWeights(tau_w=0.5, tau=1.0)(one_pixel(0.5, 0.25, 0.25), one_pixel(0.25, 0.5, 0.25), torch.zeros(1, 1, 1).long())
    target, rest = math.exp(0.25 / 0.5), math.exp(1 / 6 / 0.5)
    assert alpha.item() == pytest.approx(2 * target / (target + rest))
    assert beta.item() == pytest.approx(2 * rest / (target + rest))


def test_dynamic_weights_are_smaller_where_the_teacher_contradicts_the_label():
    # The teacher gives the label 0.8, 0.2 and, where there is no label, whatever: the mean of what counts is 0.5.
    teacher = torch.cat([one_pixel(0.8, 0.1, 0.1), one_pixel(0.2, 0.4, 0.4), one_pixel(0.98, 0.01, 0.01)], 3)
    labels = torch.tensor([0, 0, 255]).view(1, 1, 3)
    alpha, beta = DynamicWeights(0.5, 1.0)(teacher, teacher.clone(), labels)
    # Nothing is left to learn: both parts weigh the same.
    assert alpha[0, 0, :2].tolist() == pytest.approx([1.6, 0.4])
    assert beta[0, 0, :2].tolist() == pytest.approx([1.6, 0.4])


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 8), st.floats(0.1, 5), st.integers(0, 10**6))
def test_dynamic_weights_share_two_between_the_parts_and_favour_the_wider_gap(classes, tau_w, seed):
    teacher, student, labels = logits_of(seed, classes), logits_of(seed + 1, classes), labels_of(seed, classes)
    alpha, beta = DynamicWeights(tau_w, 2.0)(teacher, student, labels)
    valid = labels != 255
    assert (alpha + beta)[valid].mean().item() == pytest.approx(2)
    p, s = ((logits / 2.0).softmax(1) for logits in (teacher, student))
    for b, i, j in valid.nonzero().tolist():
        t = int(labels[b, i, j])
        others = [k for k in range(classes) if k != t]
        own, learned = p[b, :, i, j], s[b, :, i, j]
        gap = abs(own[t] - learned[t])
        rest = 0.5 * (own[others] / own[others].sum() - learned[others] / learned[others].sum()).abs().sum()
        assert (alpha[b, i, j] > beta[b, i, j]) == (gap > rest)


def test_coupled_dynamic_weights_of_one_pixel():
    # As above, and the teacher leaves the other classes 1 - 0.5 of its probability.
    pixel = one_pixel(0.5, 0.25, 0.25), one_pixel(0.25, 0.5, 0.25), torch.zeros(1, 1, 1).long()
    target, rest = math.exp(0.25 / 0.5), math.exp(1 / 6 / 0.5)
    alpha, beta = DynamicCoupledWeights(tau_w=0.5, tau=1.0)(*pixel)
    assert alpha.item() == pytest.approx(2 * target / (target + rest))
    assert beta.item() == pytest.approx(0.5 * 2 * rest / (target + rest))


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 6), st.floats(0.5, 5), st.integers(0, 10**6))
def test_coupled_dynamic_weights_without_preference_are_kl_where_the_teacher_is_reliable(classes, tau, seed):
    teacher, student, labels = logits_of(seed, classes), logits_of(seed + 1, classes), labels_of(seed, classes)
    loss = weighed_logit_loss(teacher, student, labels, DynamicCoupledWeights(1e9, tau))["logit"]
    valid, p = labels != 255, (teacher / tau).softmax(1)
    reliability = p.gather(1, labels.clamp(max=classes - 1)[:, None])[:, 0][valid]
    expected = (reliability * divergence(teacher, student, tau)[valid]).sum() / reliability.sum()
    torch.testing.assert_close(loss, expected)


def test_entropy_weights_go_from_the_target_to_the_rest_as_the_teacher_gets_unsure():
    labels, controller = torch.zeros(1, 1, 1).long(), EntropyWeights(1.0)
    alpha, beta = controller(one_pixel(0.25, 0.25, 0.25, 0.25), one_pixel(0.7, 0.1, 0.1, 0.1), labels)
    assert (alpha.item(), beta.item()) == pytest.approx((0, 2), abs=1e-9)
    alpha, beta = controller(torch.tensor([60.0, 0, 0, 0]).view(1, 4, 1, 1), one_pixel(0.7, 0.1, 0.1, 0.1), labels)
    assert (alpha.item(), beta.item()) == pytest.approx((2, 0), abs=1e-6)
    alpha, beta = controller(one_pixel(0.5, 0.5, 1e-300, 1e-300), one_pixel(0.7, 0.1, 0.1, 0.1), labels)
    assert (alpha.item(), beta.item()) == pytest.approx((1, 1))


def test_the_entropy_of_the_parts_is_that_of_the_whole():
    logits, labels = logits_of(1, 5), torch.randint(0, 5, (2, 2, 3))
    p = (logits / 3).softmax(1)
    torch.testing.assert_close(decouple(logits, labels, 3.0).entropy, -(p * p.log()).sum(1) / math.log(5))


def test_learned_weights_begin_at_one_and_their_regulariser_teaches_them():
    controller, labels = LearnedWeights(uncertainty=0.1, tau=1.0).double(), labels_of(3)
    alpha, beta = controller(logits_of(1), logits_of(2), labels)
    assert (alpha == 1).all() and (beta == 1).all()
    regulariser = controller.regulariser(alpha, beta, labels != 255)
    regulariser.backward()
    # -0.1 d(ln alpha)/d(bias), where ln alpha = ln 4 tanh(bias).
    assert regulariser == 0 and controller.net[-1].bias.grad.tolist() == pytest.approx(2 * [-0.1 * math.log(4)])


def test_the_regulariser_is_the_mean_over_pixels_that_count():
    alpha, beta = torch.tensor([[[2.0, 0.5, 4.0]]]), torch.tensor([[[1.0, 0.25, 4.0]]])
    regulariser = LearnedWeights(uncertainty=0.1).regulariser(alpha, beta, torch.tensor([[[True, True, False]]]))
    # ln 2 and ln 1/8.
    assert regulariser.item() == pytest.approx(-0.1 * (math.log(2) + math.log(1 / 8)) / 2)


def test_learned_weights_see_the_gaps_the_reliability_and_both_entropies():
    seen = []
    controller = LearnedWeights(tau=1.0).double()
    controller.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    controller(one_pixel(0.5, 0.25, 0.25), one_pixel(0.25, 0.5, 0.25), torch.zeros(1, 1, 1).long())
    # b_T = 0.5 and b_S = 0.25; q_T = (1/2, 1/2) and q_S = (2/3, 1/3); the three probabilities are the same in another order.
    entropy = 1.5 * math.log(2) / math.log(3)
    assert seen[0].flatten().tolist() == pytest.approx([1 / 4, 1 / 6, 1 / 2, entropy, entropy])
    controller(one_pixel(0.5, 0.25, 0.25), one_pixel(1 / 3, 1 / 3, 1 / 3), torch.zeros(1, 1, 1).long())
    assert seen[1].flatten().tolist()[2:] == pytest.approx([1 / 2, entropy, 1])


def test_a_controller_has_the_numbers_of_its_configuration():
    teacher, student, labels = logits_of(1), logits_of(2), labels_of(3)
    numbers = {"alpha": 0.5, "beta": 2.0, "tau": 1.5, "tau_w": 0.2, "uncertainty": 0.3}
    expected = {
        "fixed": FixedWeights(0.5, 2.0, 1.5),
        "coupled": CoupledWeights(1.5),
        "dynamic": DynamicWeights(0.2, 1.5),
        "dynamic_coupled": DynamicCoupledWeights(0.2, 1.5),
        "entropy": EntropyWeights(1.5),
    }
    for name, controller in expected.items():
        found = build_controller(LIXConfig(controller=name, **numbers))(teacher, student, labels)
        assert all(torch.equal(a, b) for a, b in zip(found, controller(teacher, student, labels))), name
    learned = build_controller(LIXConfig(controller="learned", **numbers))
    assert (learned.tau, learned.uncertainty) == (1.5, 0.3)


def test_learned_weights_settle_at_the_regulariser_over_the_divergence():
    """The minimum of alpha TCLD - u ln alpha is at alpha = u / TCLD."""
    teacher, student, labels = one_pixel(0.7, 0.2, 0.1), one_pixel(0.3, 0.4, 0.3), torch.zeros(1, 1, 1).long()
    tcld, ncld = (d.item() for d in divergences(decouple(teacher, labels, 1.0), decouple(student, labels, 1.0), 1.0))
    torch.manual_seed(0)
    controller = LearnedWeights(uncertainty=0.5 * tcld, tau=1.0).double()
    optimiser = torch.optim.Adam(controller.parameters(), lr=0.1)
    for _ in range(120):
        optimiser.zero_grad()
        sum(weighed_logit_loss(teacher, student, labels, controller).values()).backward()
        optimiser.step()
    alpha, beta = controller(teacher, student, labels)
    assert alpha.item() == pytest.approx(0.5, abs=0.01)
    assert beta.item() == pytest.approx(min(4.0, 0.5 * tcld / ncld), abs=0.05)


def test_maps_are_what_the_loss_is_made_of_and_blank_where_nothing_counts():
    teacher, student, labels, controller = logits_of(1), logits_of(2), labels_of(3), DynamicWeights(0.5, 4.0)
    maps, valid = weights_maps(teacher, student, labels, controller), labels != 255
    for values, expected in zip(maps, weighed(teacher, student, labels, controller)):
        assert values.isnan().equal(~valid) and values[valid].equal(expected[valid])
    mean = (maps.alpha * maps.tcld + maps.beta * maps.ncld)[valid].mean()
    torch.testing.assert_close(mean, weighed_logit_loss(teacher, student, labels, controller)["logit"])
