"""Losses, order of the data, schedules, averaging, scoring and checkpoints, each by itself."""

from __future__ import annotations

import copy
import dataclasses
import errno
import math
import os
import subprocess
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

import torch.nn.functional as F
from torch import nn

import tiny_street
from lix_core.camera import Camera
from lix_core.data.pothole import names_of
from lix_core.data.sample import Sample, collate
from lix_core.data.transforms import train_transform
from lix_core.distill.config import LIXConfig
from lix_core.distill.distiller import Lesson
from lix_core.distill.logit import weighed_logit_loss
from lix_core.distill.objective import build_controller
from lix_core.distill.peers import pixel_divergence
from lix_core.errors import DataError, TrainingError
from lix_core.labels import UNLABELLED
from lix_core.metrics import ConfusionMatrix
from lix_core.models.encoders import build_encoder
from lix_core.models.networks import Student, Teacher
from lix_core.runtime.segmenter import PADDING
from lix_core.training.callbacks import Board, Checkpoints, Journal, MovingAverage, WholeFiles, as_csv, readable
from lix_core.training.config import Config, DataConfig, OptimConfig, Source
from lix_core.training.cpu import use_onednn
from lix_core.training.data import Batches, Draw, Frames, Mixture, TrainingData, Views, pasted, training_transform
from lix_core.training.losses import HardLoss, class_weights, cross_entropy, hard_pixels, soft_dice
from lix_core.training.module import Learner, encoder_depths, full_logits, learning_rate, outputs, parameter_groups
from lix_core.training.report import columns, error_picture, pictures
from lix_core.training.scoring import chance, confusion, evaluate, predict
from lix_core.training.table import Table, cells
from small_networks import use_small_parts
from tiny_street import TINY, TinyStreet
from trees import pothole_tree

ENCODER = "mobilenetv3_small_050"


@pytest.fixture(autouse=True)
def tiny():
    with tiny_street.known():
        yield


def tiny_source(**changes) -> Source:
    return Source(**{"dataset": "tiny", "root": ".", **changes})


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return Student(len(TINY), ENCODER, weights="none").eval()


# A CPU.


def kernels(network: nn.Module, image: torch.Tensor) -> tuple[set[str], list[torch.Tensor]]:
    """Names of the kernels that a step calls; its output and gradients."""
    parts = [image, *network.parameters()]
    with torch.autograd.profiler.profile(use_cpu=True) as profile:
        out = network(image)
        gradients = torch.autograd.grad((out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum(), parts)
    return {event.key for event in profile.key_averages()}, [out, *gradients]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
def test_on_one_thread_onednn_computes_1x1_convolutions_and_the_same_comes_out():
    torch.manual_seed(0)
    strided, grouped = nn.Conv2d(6, 4, 1, stride=2, bias=False), nn.Conv2d(4, 4, 1, groups=2)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1), strided, grouped)
    fast = copy.deepcopy(plain)
    use_onednn(fast)
    image = torch.randn(2, 3, 9, 12, requires_grad=True)
    slow, before = kernels(plain, image)
    quick, after = kernels(fast, image)
    assert "aten::_slow_conv2d_forward" in slow and not any("slow" in name for name in quick)
    for exact, one, other in zip(kernels(copy.deepcopy(plain).double(), image.double())[1], before, after, strict=True):
        torch.testing.assert_close(one, exact.float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(other, exact.float(), rtol=1e-4, atol=1e-4)
    assert [layer.dilation for layer in fast] == [(1, 1), (2, 2), (2, 2), (2, 2)]


def test_a_run_has_onednn_compute_student_and_teacher(student):
    torch.manual_seed(0)
    teacher = Teacher(len(TINY), 3, ENCODER, ENCODER, weights="none")
    learner = Learner(Config(), copy.deepcopy(student), HardLoss(), [teacher])
    learner.on_fit_start()
    for network in (learner.network, *learner.teachers):
        pointwise = [layer.dilation for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)]
        assert len(pointwise) > 10 and set(pointwise) == {(2, 2)}


def test_with_more_threads_and_with_padding_convolutions_stay_as_they_are():
    padded = nn.Conv2d(3, 4, 1, padding=1)
    use_onednn(padded)
    torch.set_num_threads(2)  # which the fixture takes back
    many = nn.Conv2d(3, 4, 1)
    use_onednn(many)
    assert padded.dilation == many.dilation == (1, 1)


# Parts of a source.


@pytest.mark.parametrize(
    ("groups", "part", "expected"),
    [
        ("", "1/2", [0, 1, 2, 3, 4, 5, 6]),
        ("", "2/2", [7, 8, 9, 10, 11, 12]),
        ("", "3/3", [9, 10, 11, 12]),
        ("train1", "1/2", [0, 1, 2, 3, 4, 5, 10]),  # train1, train10, train11, train12 are a group
        ("train1", "2/2", [6, 7, 8, 9, 11, 12]),
    ],
)
def test_a_part_is_of_neighbouring_frames_of_each_group(groups, part, expected):
    frames = Frames(tiny_source(options={"count": 13}, groups=groups, part=part), "")
    assert frames.indices.tolist() == expected and len(frames) == len(expected)


def test_a_part_is_of_the_frames_that_are_kept():
    kept, parts = Frames(tiny_source(labelled=0.5, keep="labelled"), ""), []
    for part in ("1/2", "2/2"):
        parts += Frames(tiny_source(labelled=0.5, keep="labelled", part=part), "").indices.tolist()
    assert parts == kept.indices.tolist() and len(parts) == 6
    with pytest.raises(TrainingError, match="of 12 frames none is all with labelled=1.0 and part=13/13"):
        Frames(tiny_source(part="13/13"), "")
    for wrong in ("1", "0/2", "3/2", "1/2/3", "a/b", "-1/2"):
        with pytest.raises(TrainingError, match=f"part is written k/n, the k-th of n parts, as 1/2; got {wrong!r}"):
            tiny_source(part=wrong)


# Losses.


def random_batch(seed: int, void: float, classes: int = 4):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, (2, 3, 5))
    labels[random.random(labels.shape) < void] = UNLABELLED
    return torch.from_numpy(random.normal(0, 2, (2, classes, 3, 5))), torch.from_numpy(labels)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_cross_entropy_is_the_weighted_mean_over_valid_pixels(seed, void, weighted):
    logits, labels = random_batch(seed, void)
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0]) if weighted else None
    total = share = 0.0
    for b, y, x in np.ndindex(*labels.shape):
        truth = int(labels[b, y, x])
        if truth != UNLABELLED:
            weight = weights[truth].item() if weighted else 1.0
            total -= weight * F.log_softmax(logits[b, :, y, x], 0)[truth].item()
            share += weight
    assert cross_entropy(logits, labels, weights).item() == pytest.approx(total / share if share else 0, abs=1e-9)
    torch.use_deterministic_algorithms(True)
    try:
        assert cross_entropy(logits, labels, weights).item() == pytest.approx(total / share if share else 0, abs=1e-9)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("options", [{}, {"dice": 1.0}, {"ohem": 0.7}, {"weights": torch.ones(4), "dice": 0.5, "ohem": 0.5}])
def test_a_batch_without_a_valid_pixel_has_loss_and_gradient_zero(options):
    logits = torch.randn(2, 4, 3, 5, requires_grad=True)
    loss = sum(HardLoss(**options)(logits, torch.full((2, 3, 5), UNLABELLED)).values())
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any() and torch.isfinite(logits.grad).all()


def test_unlabelled_pixels_have_no_gradient():
    logits, labels = random_batch(0, 0.4)
    logits.requires_grad_()
    (cross_entropy(logits, labels) + soft_dice(logits, labels)).backward()
    void = (labels == UNLABELLED)[:, None].expand_as(logits)
    assert void.any() and not logits.grad[void].any() and logits.grad[~void].abs().min() > 0


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.floats(0, 0.9))
def test_soft_dice_equals_its_definition(seed, void):
    logits, labels = random_batch(seed, void, classes=3)
    labels[0, 0, 0] = 1
    probability = logits.softmax(1).numpy()
    dice = []
    for c in np.unique(labels[labels != UNLABELLED]):
        valid, truth = (labels != UNLABELLED).numpy(), (labels == c).numpy()
        p = probability[:, c]
        dice.append(2 * p[truth].sum() / (p[valid].sum() + truth.sum()))
    assert soft_dice(logits, labels).item() == pytest.approx(1 - np.mean(dice), abs=1e-9)


def uneven_batch() -> tuple[torch.Tensor, torch.Tensor, HardLoss, Lesson]:
    """Four frames of which only the first has labels, the logits of a student and a teacher, and a loss with all its terms."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 6, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.full((4, 6, 8), UNLABELLED)
    labels[0] = torch.randint(0, 5, (6, 8), generator=generator)
    lesson = Lesson(torch.randn(4, 5, 6, 8, generator=generator, dtype=torch.float64), logits, labels)
    return logits, labels, HardLoss(torch.arange(1.0, 6.0), dice=0.5), lesson


def loss_of(chosen: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of some of the frames, and its gradient with respect to the logits of all."""
    logits, labels, hard, lesson = uneven_batch()
    some = Lesson(*(part[chosen] for part in lesson))
    controller = build_controller(LIXConfig(controller="learned")).double()
    terms = hard(logits[chosen].float(), labels[chosen]) | {"kd": pixel_divergence(some, 4.0, torch.arange(5.0))}
    terms |= weighed_logit_loss(*some, controller)
    loss = sum(terms.values())
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


def process_of_two(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.save(loss_of(slice(rank, None, 2)), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_have_together_the_loss_of_one_however_labels_are_spread(tmp_path):
    torch.multiprocessing.spawn(process_of_two, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    torch.manual_seed(0)
    loss, gradient = loss_of(slice(None))
    # As DDP does it: the mean over the processes.
    torch.testing.assert_close(sum(part[0] for part in parts) / 2, loss)
    torch.testing.assert_close(sum(part[1] for part in parts) / 2, gradient, rtol=1e-4, atol=1e-9)
    assert gradient[0].abs().max() > 1e-3 and not parts[1][1][0].any()


def test_hard_examples_are_those_below_the_threshold_but_never_fewer_than_the_share():
    loss = -torch.log(torch.tensor([[[0.9, 0.8, 0.6, 0.2, 0.95]]]))
    valid = torch.tensor([[[True, True, True, True, False]]])
    assert hard_pixels(loss, valid, 0.7, 0.1).tolist() == [[[False, False, True, True, False]]]
    assert hard_pixels(loss, valid, 0.1, 0.5).tolist() == [[[False, False, True, True, False]]]
    assert hard_pixels(loss, valid, 0.1, 0.6).sum() == 3  # at least the share: 2.4 of 4 are 3
    assert hard_pixels(loss, valid, 0.1, 0.01).tolist() == [[[False, False, False, True, False]]]


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 3.0, 0.5, 2.0])])
def test_hard_examples_alone_are_in_the_mean(weights):
    logits, labels = random_batch(3, 0.2)
    loss = F.cross_entropy(logits.float(), labels, ignore_index=UNLABELLED, reduction="none")
    hard = hard_pixels(loss, labels != UNLABELLED, 0.1, 0.6)
    share = torch.ones_like(loss) if weights is None else weights[labels.clamp(max=3)]
    found = HardLoss(weights, ohem=0.1, ohem_keep=0.6)(logits, labels)["ce"]
    assert found.item() == pytest.approx(((loss * share)[hard].sum() / share[hard].sum()).item(), rel=1e-5)


def test_class_weights_are_inverse_frequency_to_the_power_of_mean_one_over_pixels():
    counts = torch.tensor([75, 25, 0])
    for power in (0.0, 0.5, 1.0):
        weights = class_weights(counts, power)
        assert (weights[1] / weights[0]).item() == pytest.approx(3**power)
        assert (weights * counts).sum().item() / 100 == pytest.approx(1)
        assert weights[2] == weights[1]
    assert class_weights(torch.zeros(3), 1.0).tolist() == [1, 1, 1]


def test_the_terms_of_the_hard_loss_are_named_and_weighted():
    logits, labels = random_batch(1, 0.2)
    terms = HardLoss(dice=0.5)(logits, labels)
    assert set(terms) == {"ce", "dice"} and terms["dice"].item() == pytest.approx(0.5 * soft_dice(logits.float(), labels).item())
    assert math.isclose(terms["ce"].item(), cross_entropy(logits.float(), labels).item())


# Order.


@settings(max_examples=30)
@given(st.integers(0, 99), st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(1, 4), st.data())
def test_every_stream_keeps_its_quota_and_shows_each_frame_once_a_turn(seed, sizes, left, data):
    quotas = [data.draw(st.integers(0, 2)) for _ in sizes]
    quotas[-1] = 0
    mixture = Mixture(sizes, quotas, sum(quotas) + left, seed)
    draws = [mixture.draws(number) for number in range(20)]
    for batch in draws:
        count = Counter(draw.source for draw in batch)
        assert len(batch) == mixture.batch and all(count[s] == q for s, q in enumerate(quotas) if q)
    for source, quota in enumerate(quotas):
        if quota:
            seen = [draw.frame for batch in draws for draw in batch if draw.source == source]
            for turn in range(len(seen) // sizes[source]):
                assert sorted(seen[turn * sizes[source] : (turn + 1) * sizes[source]]) == list(range(sizes[source]))


def test_a_batch_depends_on_seed_and_number_alone_and_turns_differ():
    first, second = (Mixture([9], [0], 3, 5) for _ in range(2))
    assert second.draws(8) == first.draws(8) and [first.draws(n) for n in range(3)] == [second.draws(n) for n in range(3)]
    turns = [[draw.frame for n in range(3 * t, 3 * t + 3) for draw in first.draws(n)] for t in range(2)]
    assert turns[0] != turns[1] and Mixture([9], [0], 3, 6).draws(0) != first.draws(0)


def test_the_processes_of_a_run_share_each_batch_without_overlap():
    mixture = Mixture([9, 4], [2, 0], 6, 0)
    parts = [list(Batches(mixture, lambda: 7, 4, rank, 3)) for rank in range(3)]
    for number, pieces in enumerate(zip(*parts), 7):
        joined = sorted((draw for piece in pieces for draw in piece), key=lambda draw: draw.key)
        assert [len(piece) for piece in pieces] == [2, 2, 2] and joined == mixture.draws(number)


@pytest.mark.parametrize(
    ("quotas", "batch", "words"),
    [
        ([3, 3], 4, r"per_batch of the sources are \[3, 3\], together 6"),
        ([4, 0], 4, "0 are left for the sources"),
        ([1, 1], 4, "no source is without"),
    ],
)
def test_quotas_that_do_not_add_up_are_refused(quotas, batch, words):
    with pytest.raises(TrainingError, match=words):
        Mixture([5, 5], quotas, batch, 0)


def test_a_view_is_the_same_whoever_draws_it_and_differs_from_place_to_place():
    config = DataConfig(sources=[tiny_source()], crop=[32, 32], x="depth")
    views = Views([Frames(config.sources[0], "depth")], training_transform(config), 3)
    mixture = Mixture([12], [0], 4, 3)
    draw, other = mixture.draws(5)[2], mixture.draws(5)[3]
    torch.manual_seed(1)
    first = views[draw]
    views[other]
    torch.manual_seed(99)
    second = views[draw]
    assert np.array_equal(first.image, second.image) and np.array_equal(first.x, second.x) and first.image.shape == (32, 32, 3)
    moved = views[type(draw)(draw.source, draw.frame, (5, 3))]
    assert not np.array_equal(first.image, moved.image)


def test_views_are_made_with_the_numbers_of_the_configuration():
    frame, changes = TinyStreet(count=1, x="depth")[0], {"scale": [0.6, 0.9], "colour": 0.4, "x_dropout": 0.3, "x_holes": 0.8}
    view = training_transform(DataConfig(crop=[32, 48], eval_size=[48, 160], flip=0.9, **changes))
    same = train_transform((32, 48), base=(48, 160), flip=0.9, **changes)
    for seed in range(8):
        found, expected = view(frame, seed), same(frame, seed)
        assert np.array_equal(found.image, expected.image) and np.array_equal(found.known, expected.known)


def test_views_are_mixed_as_often_as_the_configuration_says():
    data = DataConfig(sources=[tiny_source()], batch=4, crop=[32, 32], workers=0, cutmix=0.3)
    assert TrainingData(data, 0).views.cutmix == 0.3


def test_each_process_reads_its_own_places():
    names = []
    for rank in range(2):
        data = TrainingData(DataConfig(sources=[tiny_source()], batch=4, crop=[32, 32], workers=0), 0)
        data.trainer = SimpleNamespace(global_step=0, global_rank=rank, world_size=2)
        names.append(next(iter(data.train_dataloader())).names)
    drawn = [data.frames[0].dataset.names[draw.frame] for draw in data.mixture.draws(0)]
    assert names == [drawn[0::2], drawn[1::2]]


# A step.


def test_the_loss_of_a_step_is_the_sum_of_all_its_terms(monkeypatch):
    use_small_parts(monkeypatch)
    student, hard, taught = Student(len(TINY), "s", decoder="thin"), {"ce": 1.0, "dice": 2.0}, {"kd": 4.0, "feature": 8.0}
    as_terms = [lambda *_, terms=terms: {name: torch.tensor(value) for name, value in terms.items()} for terms in (hard, taught)]
    learner = Learner(Config(), student, as_terms[0], [Student(len(TINY), "s", decoder="thin")], as_terms[1])
    learner.trainer = SimpleNamespace(global_step=0, global_rank=0, accumulate_grad_batches=1)
    assert learner.training_step(collate([TinyStreet(count=1, x="depth")[0]]), 0).item() == 15


def test_what_is_scored_is_the_average_where_there_is_one(monkeypatch):
    use_small_parts(monkeypatch)
    student = Student(len(TINY), "s", decoder="thin")
    learner = Learner(Config(), student, HardLoss())
    assert learner.scored is student
    MovingAverage(0.9).setup(None, learner, "fit")
    assert learner.scored is not student and not learner.scored.training


@torch.inference_mode()
def test_a_network_trains_on_what_it_is_scored_on(monkeypatch):
    use_small_parts(monkeypatch)
    batch = collate([TinyStreet(count=1, x="depth")[0]])
    assert batch.known.any() and not batch.known.all()
    teacher, student = Teacher(len(TINY), 1, "s", decoder="thin").eval(), Student(len(TINY), "s", decoder="thin").eval()
    for network, x in ((student, ()), (teacher, (batch.x, batch.known))):
        expected = network(network.normalise(batch.image), *x)
        torch.testing.assert_close(full_logits(outputs(network, batch).logits, batch.labels.shape[-2:]), expected)


def flat(value: int, labels: bool = True, x: bool = True) -> Sample:
    """A view that is all of one value."""
    plane = np.full((32, 64), value, np.uint8)
    channels, known = (np.full((2, 32, 64), value, np.float32), plane > 0) if x else (None, None)
    return Sample(f"flat{value}", plane[..., None].repeat(3, 2), plane if labels else None, channels, known, "two" if x else "")


@given(seed=st.integers(0, 2**32))
def test_a_rectangle_of_half_a_view_is_that_of_another_in_image_labels_and_x(seed):
    ours, theirs = (dataclasses.replace(flat(value), camera=Camera.pinhole(64, 32, 50.0)) for value in (0, 1))
    both = pasted(ours, theirs, np.random.default_rng(seed))
    inside = both.labels == 1
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all() and inside.mean() == pytest.approx(0.5, abs=0.03)
    for plane in (*both.image.transpose(2, 0, 1), *both.x, both.known):
        np.testing.assert_array_equal(plane, inside)
    assert both.name == ours.name and both.camera is None and not ours.labels.any() and both.image.dtype == both.labels.dtype == np.uint8


def test_padding_that_is_pasted_is_not_shown():
    upper = np.zeros((32, 64), bool)
    upper[:16] = True
    padded, whole = dataclasses.replace(flat(2, labels=False), shown=upper), flat(1, labels=False)
    for ours, theirs in ((whole, padded), (padded, whole)):
        both = pasted(ours, theirs, np.random.default_rng(3))
        np.testing.assert_array_equal(both.shown, np.where(both.image[..., 0] == 2, upper, True))
        assert both.shown.any() and not both.shown.all()


def test_what_one_of_two_mixed_views_does_not_have_is_unknown_there():
    both = pasted(flat(1), flat(2, labels=False, x=False), np.random.default_rng(0))
    theirs = both.image[..., 0] == 2
    np.testing.assert_array_equal(both.labels, np.where(theirs, UNLABELLED, 1))
    np.testing.assert_array_equal(both.known, ~theirs)
    np.testing.assert_array_equal(both.x[0], ~theirs)
    both = pasted(flat(1, labels=False, x=False), flat(2), np.random.default_rng(0))  # and the other way about
    np.testing.assert_array_equal(both.labels, np.where(theirs, 2, UNLABELLED))
    np.testing.assert_array_equal(both.known, theirs)
    np.testing.assert_array_equal(both.x[0], 2 * theirs)
    assert both.x_kind == "two"
    bare = pasted(flat(1, x=False), flat(2, x=False), np.random.default_rng(0))
    assert bare.x is None and bare.known is None and bare.x_kind == ""


def test_views_are_mixed_with_views_that_have_labels_as_they_have_whoever_draws_them():
    config = DataConfig(sources=[tiny_source(labelled=0.5)], crop=[32, 64], x="depth")
    frames, transform = [Frames(config.sources[0], "depth")], training_transform(config)
    plain, sometimes, always = (Views(frames, transform, 3, cutmix) for cutmix in (0.0, 0.5, 1.0))
    draws = [draw for number in range(8) for draw in Mixture([12], [0], 4, 3).draws(number)]
    for draw in draws:
        mixed = always[draw]
        assert (mixed.labels is None) == (plain[draw].labels is None) == (not frames[0].labelled[draw.frame])
        np.testing.assert_array_equal(mixed.image, always[draw].image)
    changed = [not np.array_equal(sometimes[draw].image, plain[draw].image) for draw in draws]
    assert 8 <= sum(changed) <= 24
    for draw, is_mixed in zip(draws, changed):
        np.testing.assert_array_equal(sometimes[draw].image, (always if is_mixed else plain)[draw].image)
    # The other view is cut and coloured by itself, so that even a frame that is mixed with itself changes.
    one = [Frames(tiny_source(options={"count": 1}), "")]
    whole, mixed = (Views(one, transform, 3, cutmix)[Draw(0, 0, (0, 0))] for cutmix in (0.0, 1.0))
    assert not np.array_equal(whole.image, mixed.image)


# Sources.


def test_smaller_shares_of_labels_lie_within_larger_ones_and_hide_the_others_labels():
    shares = [set(np.flatnonzero(Frames(tiny_source(labelled=share), "").labelled)) for share in (0.0, 0.25, 0.5, 1.0)]
    assert [len(share) for share in shares] == [0, 3, 6, 12] and shares[0] <= shares[1] <= shares[2] <= shares[3]
    others = [set(np.flatnonzero(Frames(tiny_source(labelled=0.5, subset_seed=seed), "").labelled)) for seed in (0, 1)]
    assert others[0] == shares[2] != others[1] and len(others[1]) == 6
    half = Frames(tiny_source(labelled=0.5), "")
    assert [half[i].labels is not None for i in range(12)] == [i in shares[2] for i in range(12)]
    kept = Frames(tiny_source(labelled=0.5, keep="labelled"), "")
    left = Frames(tiny_source(labelled=0.5, keep="unlabelled"), "")
    assert {kept[i].name for i in range(len(kept))} | {left[i].name for i in range(len(left))} == set(half.dataset.names)
    assert all(kept[i].labels is not None for i in range(6)) and all(left[i].labels is None for i in range(6))


@pytest.mark.parametrize(
    "share, count, labelled", [(0.07, 100, 7), (0.14, 50, 7), (0.55, 100, 55), (0.28, 25, 7), (0.071, 100, 8), (1e-3, 12, 1)]
)
def test_a_share_of_whole_frames_is_so_many_frames(share, count, labelled):
    assert Frames(tiny_source(labelled=share, options={"count": count}), "").labelled.sum() == labelled


def test_a_source_without_a_frame_left_is_refused():
    with pytest.raises(TrainingError, match="of 12 frames none is unlabelled"):
        Frames(tiny_source(keep="unlabelled"), "")


def test_frames_are_spread_from_the_first_to_the_last():
    frames = Frames(tiny_source(labelled=0.5, keep="labelled"), "")
    names = [frames[i].name for i in range(6)]
    for count, places in ((1, [0]), (2, [0, 5]), (3, [0, 2, 5]), (6, range(6)), (9, range(6))):
        some = frames.spread(count)
        assert [some[i].name for i in range(len(some))] == [names[place] for place in places]


def test_frames_are_grouped_by_what_is_found_in_their_names():
    groups = Frames(tiny_source(groups=r"[12]$"), "").groups()
    assert {group: [f[i].name for i in range(len(f))] for group, f in groups.items() if group} == {
        "1": ["train1", "train11"],
        "2": ["train2"],
    }
    assert sum(map(len, groups.values())) == 12


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sources": []}, "data.sources is empty"),
        ({"val": tiny_source(options={"names": ["ground", "wall", "water"]})}, "only 'tiny' has sky; only 'other' has water"),
        ({"val": tiny_source(options={"names": ["wall", "ground", "sky"]})}, "ground is 0 in 'tiny' and 1 in 'other'"),
    ],
)
def test_data_that_do_not_fit_together_are_refused(changes, words):
    with pytest.raises(TrainingError, match=words):
        TrainingData(DataConfig(**{"sources": [tiny_source()], **changes}), 0)


@pytest.mark.parametrize(
    ("training", "what", "scored", "words"),
    [
        ({}, "test", {}, "12 of the 12 frames of data.test are trained on with their labels, the first train0 of tiny"),
        ({}, "val", {"options": {"count": 3}}, "3 of the 3 frames of data.val .* none is scored .data.val=null"),
        ({"labelled": 0.25}, "val", {}, "3 of the 12 frames of data.val"),
        ({"root": "./"}, "val", {"root": "../" + Path.cwd().name}, "12 of the 12"),
        ({"labelled": 0.25, "keep": "unlabelled"}, "test", {}, ""),
        ({"options": {"unlabelled": True}}, "test", {}, ""),
        ({"root": "."}, "test", {"root": ".."}, ""),
        ({}, "test", {"split": "test"}, ""),
        ({}, "test", {"options": {"noise": 3.0}}, ""),  # the same names, and other pictures
    ],
)
def test_frames_that_are_scored_are_not_trained_on_with_labels(training, what, scored, words):
    config = DataConfig(sources=[tiny_source(split="other"), tiny_source(**training)], **{what: tiny_source(**scored)})
    with pytest.raises(TrainingError, match=words) if words else nullcontext():
        TrainingData(config, 0)


def test_the_tables_of_potholes_score_no_frame_that_they_teach_and_with_another_fold_in_one_place_they_would(tmp_path):
    pothole_tree(tmp_path, names_of("all", 0, None))
    for name in ("pothole-unlabelled", "pothole"):
        for cell in cells(Table.load(name), {"pothole": str(tmp_path)})[1]:  # `ceiling` has the test frames without labels
            data = cell.config.data
            TrainingData(data, 0)
    data.sources[0].options["fold"] = 0
    with pytest.raises(TrainingError, match="12 of the 12 frames of data.test are .*, the first set1_05 of pothole"):
        TrainingData(data, 0)
    data.test = None
    TrainingData(data, 0)


def test_pixels_are_counted_over_the_frames_that_training_draws():
    data = TrainingData(DataConfig(sources=[tiny_source(options={"count": 3})], batch=4), 0)
    labels = np.stack([TinyStreet(count=3)[i].labels for i in range(3)])
    assert data.count_pixels().tolist() == [int((labels == c).sum()) for c in range(3)]
    # Of many frames, those of the first batches.
    data = TrainingData(DataConfig(sources=[tiny_source()], batch=2), 0)
    drawn = {draw.frame for number in range(3) for draw in data.mixture.draws(number)}
    labels = np.stack([TinyStreet()[i].labels for i in sorted(drawn)])
    assert len(drawn) == 6 and data.count_pixels(7).tolist() == [int((labels == c).sum()) for c in range(3)]


# Optimiser.


def test_the_learning_rate_warms_up_and_falls_to_zero_after_the_last_step():
    cosine = OptimConfig(steps=110, warmup=10)
    assert [learning_rate(cosine, step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert learning_rate(cosine, 60) == pytest.approx(0.5) and learning_rate(cosine, 110) == pytest.approx(0, abs=1e-12)
    poly = OptimConfig(steps=100, warmup=0, schedule="poly", power=0.9)
    assert learning_rate(poly, 50) == pytest.approx(0.5**0.9) and learning_rate(poly, 100) == 0
    assert learning_rate(OptimConfig(steps=9, warmup=0, schedule="constant"), 8) == 1


def test_norms_and_biases_do_not_decay_and_encoders_learn_slower_first_blocks_slowest(student):
    config = OptimConfig(lr=1.0, encoder_lr=0.5, layer_decay=0.8, weight_decay=0.1)
    groups = parameter_groups(student, nn.Linear(2, 2), config)
    members = [p for group in groups for p in group["params"]]
    assert len(members) == len({id(p) for p in members}) == len([*student.parameters()]) + 2
    for group in groups:
        assert group["weight_decay"] == (0.1 if group["params"][0].ndim > 1 else 0)
        assert len({p.ndim > 1 for p in group["params"]}) == 1
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    depths = encoder_depths(student.encoder)
    assert all(rates[id(p)] == 1.0 for p in student.decoder.parameters())
    assert all(rates[id(p)] == pytest.approx(0.5 * 0.8 ** depths[id(p)]) for p in student.encoder.parameters())
    first, *_, last = student.encoder.parameters()
    assert depths[id(first)] == max(depths.values()) > 3 and depths[id(last)] == 0
    # timm puts these stages into a wrapper, which is not one block.
    wrapped = build_encoder("cspnext_tiny", "none")
    depths = encoder_depths(wrapped)
    assert max(depths.values()) > 3 and {id(p) for p in wrapped.parameters()} <= set(depths)


def test_both_encoders_of_a_teacher_learn_slower():
    teacher, config = Teacher(3, 1, ENCODER, weights="none"), OptimConfig(lr=1.0, encoder_lr=0.5)
    rates = {id(p): group["lr"] for group in parameter_groups(teacher, None, config) for p in group["params"]}
    for part, rate in ((teacher.encoder, 0.5), (teacher.x_encoder, 0.5), (teacher.decoder, 1.0), (teacher.fusion, 1.0)):
        assert {rates[id(p)] for p in part.parameters()} <= {rate}


def test_what_a_distiller_learns_is_learned_with_the_network(student):
    distiller = nn.Linear(2, 2)
    optimiser = Learner(Config(), student, HardLoss(), distiller=distiller).configure_optimizers()["optimizer"]
    trained = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert trained == {id(p) for p in (*student.parameters(), *distiller.parameters())}


def test_the_learning_rate_changes_from_step_to_step(student):
    optimisers = Learner(Config(optim=OptimConfig(lr=1.0, steps=110, warmup=10)), student, HardLoss()).configure_optimizers()
    optimiser, schedule = optimisers["optimizer"], optimisers["lr_scheduler"]
    rates = []
    for _ in range(3):
        rates.append(optimiser.param_groups[-1]["lr"])
        optimiser.step()
        schedule["scheduler"].step()
    assert schedule["interval"] == "step" and rates == pytest.approx([0.1, 0.2, 0.3])


# Steps.


@torch.inference_mode()
def test_the_loss_sees_the_logits_that_are_scored(student):
    image = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(full_logits(student.coarse_logits(image), (64, 96)), student(image))


class Draws(nn.Module):
    """A loss that is a random number."""

    def forward(self, logits, labels):
        return {"ce": torch.rand(())}


def test_each_step_draws_its_own_numbers_and_draws_them_again_when_it_is_repeated(student):
    learner = Learner(Config(optim=OptimConfig(accumulate=2)), student, Draws())
    batch = collate([TinyStreet(count=1)[0]])

    def drawn(step: int, batch_idx: int, rank: int) -> float:
        learner.trainer = SimpleNamespace(global_step=step, global_rank=rank, accumulate_grad_batches=2)
        return learner.training_step(batch, batch_idx).item()

    places = [(step, batch_idx, rank) for step in (0, 1) for batch_idx in (0, 1) for rank in (0, 1)]
    first = [drawn(*place) for place in places]
    assert len(set(first)) == 8 and [drawn(*place) for place in places] == first
    assert drawn(1, 3, 0) == drawn(1, 1, 0)


def test_terms_are_means_over_the_batches_since_they_were_taken(student):
    learner = Learner(Config(), student, Draws())
    learner.trainer = SimpleNamespace(
        global_step=0,
        global_rank=0,
        accumulate_grad_batches=1,
        # Beside a process whose terms are larger by 1.
        strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: {"mean": tensor + 0.5}[reduce_op]),
    )
    batch = collate([TinyStreet(count=1)[0]])
    losses = []
    for step in range(3):
        learner.trainer.global_step = step
        losses.append(learner.training_step(batch, step).item())
    assert learner.take_terms() == pytest.approx({"loss": np.mean(losses) + 0.5, "ce": np.mean(losses) + 0.5})
    assert learner.take_terms() == {}
    last = learner.training_step(batch, 0).item()
    assert learner.take_terms()["ce"] == pytest.approx(last + 0.5)


class FakeTrainer:
    global_step = 0


def test_the_average_follows_the_weights_with_a_decay_that_warms_up():
    class Module:
        network = nn.BatchNorm1d(2)

        def keep_average(self, network):
            self.scored = network

    trainer, module, average = FakeTrainer(), Module(), MovingAverage(0.9)
    average.setup(trainer, module, "fit")
    expected, statistics = module.network.weight.detach().clone(), module.network.running_mean.clone()
    for step in range(1, 40):
        with torch.no_grad():
            module.network.weight.fill_(step)
            module.network.running_mean.fill_(step)
            module.network.num_batches_tracked.fill_(step)
        trainer.global_step = step
        average.on_train_batch_end(trainer, module)
        average.on_train_batch_end(trainer, module)  # of a batch that was only accumulated
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        statistics = decay * statistics + (1 - decay) * step
    assert torch.allclose(module.scored.weight, expected, rtol=1e-5) and module.scored.num_batches_tracked == 39
    assert torch.allclose(module.scored.running_mean, statistics, rtol=1e-5)
    assert not module.scored.weight.requires_grad and not module.scored.training


# Epochs.


class Epoch(SimpleNamespace):
    """A trainer and its module at the end of an epoch."""

    def __init__(self, step: int, files: list[tuple[str, int]] | None = None):
        groups, network, files = [{"lr": 0.1}, {"lr": 0.3}, {"lr": 0.2}], nn.Linear(2, 2), [] if files is None else files
        super().__init__(
            global_step=step,
            is_global_zero=True,
            loggers=[],
            optimizers=[SimpleNamespace(param_groups=groups)],
            save_checkpoint=lambda path: files.append((path.name, step)),
            strategy=SimpleNamespace(checkpoint_io=SimpleNamespace(save_checkpoint=lambda _, path: files.append((path.name, step)))),
            take_terms=lambda: {"loss": 0.5},
            network=network,
            scored=copy.deepcopy(network),
        )


def matrix_of(right: int) -> ConfusionMatrix:
    matrix = ConfusionMatrix(2)
    matrix.counts[:] = [[right, 10 - right], [0, 10]]
    return matrix


@pytest.mark.parametrize(("every", "scored"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (0, [7])])
def test_a_run_is_scored_every_so_many_epochs_and_after_the_last(tmp_path, every, scored):
    networks = []
    journal = Journal(tmp_path, 7, every, lambda network: networks.append(network) or matrix_of(5))
    for number in range(1, 8):
        epoch = Epoch(10 * number)
        journal.on_train_epoch_end(epoch, epoch)
        assert (journal.matrix is not None) == (number in scored)
        assert networks[-1:] == [epoch.scored] if number in scored else epoch.scored not in networks
    assert [row["epoch"] for row in journal.rows if "val_miou" in row] == scored
    assert [(row["epoch"], row["step"], row["lr"]) for row in journal.rows] == [(n, 10 * n, 0.3) for n in range(1, 8)]


def test_the_journal_of_a_resumed_run_goes_on_with_rows_and_seconds(tmp_path):
    journal = Journal(tmp_path, 3, 1, None)
    journal.load_state_dict({"rows": [{"epoch": 1, "step": 10, "seconds": 500.0}], "seconds": 500.0})
    epoch = Epoch(20)
    journal.on_train_epoch_end(epoch, epoch)
    assert [row["epoch"] for row in journal.rows] == [1, 2] and 500 <= journal.rows[1]["seconds"] < 560
    assert (tmp_path / "metrics.csv").read_text().startswith("epoch,step,seconds,loss,lr\n1,10,500,,\n2,20,")


def test_the_best_checkpoint_is_the_first_of_the_highest_score_over_all_pieces_of_a_run(tmp_path):
    files: list[tuple[str, int]] = []
    journal = Journal(tmp_path, 9, 1, lambda network: matrix_of(0))
    checkpoints = Checkpoints(tmp_path, journal, {})
    for step, right in enumerate([5, None, 7, 7, 6], 1):
        journal.matrix = None if right is None else matrix_of(right)
        epoch = Epoch(step, files)
        checkpoints.on_train_epoch_end(epoch, epoch)
    resumed = Checkpoints(tmp_path, journal, {})
    resumed.load_state_dict(checkpoints.state_dict())
    for step, right in ((6, 6), (7, 8)):
        journal.matrix, epoch = matrix_of(right), Epoch(step, files)
        resumed.on_train_epoch_end(epoch, epoch)
    assert [step for name, step in files if name == "best.ckpt"] == [1, 3, 7]
    assert [step for name, step in files if name == "last.ckpt"] == [1, 2, 3, 4, 5, 6, 7]
    assert files.index(("best.ckpt", 7)) < files.index(("last.ckpt", 7))


@pytest.mark.parametrize("which", ["network", "scored"])
def test_neither_weights_nor_their_average_are_saved_where_one_is_no_number(tmp_path, which):
    epoch, files = Epoch(4, []), []
    epoch.save_checkpoint = files.append
    with torch.no_grad():
        getattr(epoch, which).bias[0] = math.inf
    with pytest.raises(TrainingError, match="after step 4 the weights bias are not finite"):
        Checkpoints(tmp_path, Journal(tmp_path, 9, 1, None), {}).on_train_epoch_end(epoch, epoch)
    assert not files


# Scoring.


@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (3, 0), (2, 2)])
def test_scores_do_not_depend_on_how_frames_are_batched(student, batch, workers):
    frames = TinyStreet(count=5, sizes=((40, 70), (64, 96)))
    matrix = evaluate(student, frames, batch, workers=workers)
    alone = ConfusionMatrix(3)
    for sample in (frames[i] for i in range(5)):
        height, width = sample.labels.shape
        image = student.normalise(torch.from_numpy(sample.image).permute(2, 0, 1)[None])
        with torch.inference_mode():
            padded = F.pad(image, (0, -width % 32, 0, -height % 32))
            alone.update(sample.labels, student(padded)[0, :, :height, :width].argmax(0).numpy())
    assert matrix.counts.sum() == alone.counts.sum() > 0
    assert np.abs(matrix.counts - alone.counts).sum() <= 4  # another batch size may round otherwise


def test_what_pads_a_frame_is_the_grey_of_training_and_of_the_robot_and_unknown():
    seen = []

    class Spy(Teacher):
        def __init__(self):
            nn.Module.__init__(self)
            self.stride, self.mean, self.std = 32, (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)

        def forward(self, image, x, known):
            seen.extend((image, x, known))
            return torch.zeros(len(image), 3, *image.shape[-2:])

    batch = collate([TinyStreet(count=1, x="depth", sizes=((40, 70),))[0]])
    network = Spy()
    assert predict(network, batch).shape == (1, 40, 70)
    for found, expected in zip(seen, (network.normalise(batch.image), batch.x, batch.known), strict=True):
        assert found.shape[-2:] == (64, 96) and torch.equal(found[..., :40, :70], expected)
        padding = network.normalise(torch.full((1, 3, 1, 1), PADDING, dtype=torch.uint8)) if found is seen[0] else torch.zeros(1)
        assert (found[..., 40:, :] == padding).all() and (found[..., 70:] == padding).all()
    assert batch.known.any() and not batch.known.all()


def test_frames_are_scored_at_the_size_that_is_asked_for(student):
    frames, seen = TinyStreet(count=3), []
    matrix = evaluate(student, frames, size=(32, 48), on_frames=seen.append)
    assert sum(seen) == 3 and 0 < matrix.counts.sum() <= 3 * 32 * 48
    assert not student.training and matrix.counts.dtype == np.int64


def test_the_mode_of_a_network_is_left_as_it_was(student):
    training = Student(3, ENCODER, weights="none").train()
    before = {k: v.clone() for k, v in training.state_dict().items()}
    evaluate(training, TinyStreet(count=2))
    assert training.training and all(torch.equal(v, before[k]) for k, v in training.state_dict().items())


def test_a_label_that_the_network_does_not_know_names_the_frame():
    sample = TinyStreet(count=1)[0]
    sample.labels[5, 5] = 7
    with pytest.raises(DataError, match=r"train0 has the label 7; the network knows 0..2"):
        confusion(torch.zeros(1, 64, 96, dtype=torch.int64), collate([sample]), 3)


def test_a_label_that_the_data_set_has_no_class_for_names_the_frame(monkeypatch):
    read = TinyStreet.__getitem__

    def with_a_seven(self, index):
        sample = read(self, index)
        sample.labels[5, 5] = 7
        return sample

    monkeypatch.setattr(TinyStreet, "__getitem__", with_a_seven)
    with pytest.raises(DataError, match="train1 has the label 7; its classes are 0..2, and 255 is for pixels of none"):
        Frames(Source("tiny", "."), "")[1]
    assert Frames(Source("tiny", ".", labelled=0), "")[1].labels is None


def test_chance_is_always_the_most_frequent_class():
    matrix = ConfusionMatrix(3)
    matrix.counts[:] = [[5, 5, 0], [0, 60, 0], [0, 0, 30]]
    assert chance(matrix).iou.tolist() == [0, 0.6, 0] and chance(matrix).miou == pytest.approx(0.2)
    matrix.counts[:] = [[5, 5, 0], [0, 20, 40], [0, 0, 30]]  # whatever is said most often
    assert chance(matrix).iou.tolist() == [0, 0.6, 0]


def test_scores_are_float32_under_autocast(student):
    batch = collate([TinyStreet(count=1)[0]])
    plain = predict(student, batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(predict(student, batch), plain)


# Pictures and figures.


def test_errors_are_red_and_unlabelled_pixels_black():
    image = np.full((1, 3, 3), 100, np.uint8)
    picture = error_picture(image, np.uint8([[0, 1, UNLABELLED]]), np.uint8([[0, 0, 0]]))
    assert picture.tolist() == [[[50, 50, 50], [255, 40, 40], [0, 0, 0]]]


def test_a_row_of_the_sheet_has_what_the_run_has(student):
    sample = TinyStreet(count=1, x="depth")[0]
    assert list(pictures(student, None, sample, TINY)) == ["RGB", "truth", "student", "errors"]
    sample.labels = None
    row = pictures(student, None, sample, TINY)
    assert not row["truth"].any() and not row["errors"].any()


def test_rows_become_csv_and_curves_with_gaps():
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "val_miou": 1 / 3}]
    assert as_csv(rows) == "step,loss,val_miou\n1,0.5,\n2,0.25,0.333333\n"
    assert columns(rows, "val_miou") == ([2], [1 / 3]) and columns(rows, "loss") == ([1, 2], [0.5, 0.25])


def test_durations_are_readable():
    assert [readable(s) for s in (3.2, 99, 100, 3600, 7200)] == ["3 s", "99 s", "2 min", "60 min", "2.0 h"]


# Checkpoints.


def test_a_full_disk_leaves_the_checkpoint_before_whole_and_says_so(tmp_path, monkeypatch):
    path, files = tmp_path / "a" / "last.ckpt", WholeFiles()
    files.save_checkpoint({"n": 1}, path)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="last.ckpt: No space left on device; what was saved before is whole"):
        files.save_checkpoint({"n": 2}, path)
    assert torch.load(path, weights_only=True) == {"n": 1} and [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_tensorboard_on_a_full_disk_does_not_hide_the_checkpoints_words(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    board = Board(tmp_path, "tensorboard", "")
    for name in ("add_scalar", "flush", "close"):
        monkeypatch.setattr(board.experiment, name, full)
    board.log_metrics({"loss": 1.0}, 1)
    board.save()
    board.finalize("failed")


def test_a_disk_that_really_is_full_leaves_the_checkpoint_before_whole(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system can only be mounted as root")
    try:
        path, files = tmp_path / "last.ckpt", WholeFiles()
        files.save_checkpoint({"weights": torch.ones(20_000)}, path)
        with pytest.raises(TrainingError, match="No space left on device"):
            files.save_checkpoint({"weights": torch.zeros(60_000)}, path)
        assert torch.load(path, weights_only=True)["weights"].sum() == 20_000
        assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
