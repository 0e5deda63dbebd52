"""Feature distillation: kernel regression and centred kernel alignment against loops and definitions, invariances and limits."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lix_core.distill.feature import cka, draw_points, laplace_regression, pool_tokens, recalibrated_feature_loss, token_grid, tokens_at
from lix_core.errors import TrainingError
from lix_core.labels import UNLABELLED

FORMS = [(kernel, unbiased) for kernel in ("linear", "rbf") for unbiased in (False, True)]


def tokens_of(seed: int, count: int = 6, width: int = 3, images: int = 2) -> torch.Tensor:
    return torch.randn(images, count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def feature_of(seed: int, width: int = 4, height: int = 5, columns: int = 6, images: int = 2) -> torch.Tensor:
    return torch.randn(images, width, height, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(seed: int, width: int) -> torch.Tensor:
    square = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(square)[0]


# The definitions, written down once more.


def plain_gram(x: torch.Tensor, kernel: str) -> torch.Tensor:
    """(N, D) -> (N, N)."""
    count = len(x)
    if kernel == "linear":
        return torch.stack([torch.stack([(x[i] * x[j]).sum() for j in range(count)]) for i in range(count)])
    distance = torch.stack([torch.stack([(x[i] - x[j]).norm() for j in range(count)]) for i in range(count)])
    apart = sorted(distance[i, j].item() for i in range(count) for j in range(i))
    return (-(distance**2) / (2 * apart[(len(apart) - 1) // 2] ** 2)).exp()


def plain_hsic(k: torch.Tensor, m: torch.Tensor, unbiased: bool) -> float:
    """Biased: tr(K H L H) / N^2. Unbiased: the three U-statistics of Song et al. 2012, section 3, over tuples of different indices."""
    count = len(k)
    if not unbiased:
        centring = torch.eye(count, dtype=k.dtype) - 1 / count
        return (torch.trace(k @ centring @ m @ centring) / count**2).item()
    pairs = [k[i, j] * m[i, j] for i, j in permutations(range(count), 2)]
    triples = [k[i, j] * m[i, q] for i, j, q in permutations(range(count), 3)]
    quadruples = [k[i, j] * m[q, r] for i, j, q, r in permutations(range(count), 4)]
    return (sum(pairs) / len(pairs) + sum(quadruples) / len(quadruples) - 2 * sum(triples) / len(triples)).item()


def plain_cka(x: torch.Tensor, y: torch.Tensor, kernel: str, unbiased: bool) -> list[float]:
    found = []
    for a, b in zip(x, y):
        k, m = plain_gram(a, kernel), plain_gram(b, kernel)
        found.append(plain_hsic(k, m, unbiased) / math.sqrt(plain_hsic(k, k, unbiased) * plain_hsic(m, m, unbiased)))
    return found


def plain_regression(x: torch.Tensor) -> torch.Tensor:
    """(N, D) -> (N, D)."""
    count = len(x)
    distance = [[sum(abs(float(a) - float(b)) for a, b in zip(x[i], x[j])) for j in range(count)] for i in range(count)]
    sigma = sum(map(sum, distance)) / (count * (count - 1))
    rows = []
    for i in range(count):
        weights = [math.exp(-distance[i][j] / sigma) for j in range(count)]
        rows.append(sum(w * x[j] for j, w in enumerate(weights)) / sum(weights))
    return torch.stack(rows)


# Kernel regression.


def test_regression_is_the_weighted_mean_of_its_definition():
    tokens = tokens_of(1, 7, 3)
    torch.testing.assert_close(laplace_regression(tokens), torch.stack([plain_regression(image) for image in tokens]))


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-3, 1e3), st.floats(-100, 100), st.integers(0, 10**6))
def test_regression_follows_scale_translation_and_order(scale, shift, seed):
    tokens = tokens_of(seed)
    expected, order = laplace_regression(tokens), torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(laplace_regression(scale * tokens + shift), scale * expected + shift, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(laplace_regression(tokens[:, order]), expected[:, order])


def test_regression_adapts_to_each_image_alone():
    tokens = tokens_of(1)
    together, alone = laplace_regression(torch.stack([tokens[0], 1000 * tokens[1]])), laplace_regression(tokens)
    torch.testing.assert_close(together, torch.stack([alone[0], 1000 * alone[1]]))


def test_regression_leaves_tokens_that_are_all_alike_or_alone():
    alike = torch.full((2, 5, 3), 0.3, dtype=torch.float64, requires_grad=True)
    regressed = laplace_regression(alike)
    torch.testing.assert_close(regressed, alike)
    regressed.sum().backward()
    assert torch.isfinite(alike.grad).all()
    alone = tokens_of(1, count=1)
    assert laplace_regression(alone).equal(alone)


def test_the_gradient_of_regression_is_finite_differences():
    assert torch.autograd.gradcheck(laplace_regression, tokens_of(1, 5, 3).requires_grad_())


# Alignment.


@pytest.mark.parametrize("widths", [(2, 3), (3, 9), (9, 8)], ids=str)
@pytest.mark.parametrize("kernel, unbiased", FORMS)
def test_alignment_is_that_of_the_definitions(kernel, unbiased, widths):
    x, y = tokens_of(1, 6, widths[0]), tokens_of(2, 6, widths[1])
    y[:, :, :2] += x[:, :, :2]
    torch.testing.assert_close(cka(x, y, kernel, unbiased).tolist(), plain_cka(x, y, kernel, unbiased), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("unbiased", [False, True])
def test_the_form_in_feature_space_agrees_with_that_of_gram_matrices(unbiased):
    x, y = tokens_of(1, 20, 3), tokens_of(2, 20, 5)
    # Channels of zeros change nothing but the way it is computed.
    wide = torch.cat([x, x.new_zeros(2, 20, 30)], 2)
    torch.testing.assert_close(cka(x, y, unbiased=unbiased), cka(wide, y, unbiased=unbiased), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel, unbiased", FORMS)
def test_tokens_align_with_themselves_rotated_scaled_and_moved(kernel, unbiased):
    x = tokens_of(1, 9, 4)
    same = -37.0 * x @ orthogonal(0, 4) + 5
    torch.testing.assert_close(cka(x, same, kernel, unbiased), torch.ones(2, dtype=torch.float64))


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(FORMS), st.floats(1e-3, 1e3), st.floats(-50, 50), st.integers(0, 10**6))
def test_alignment_knows_no_rotation_scale_translation_order_or_direction(form, scale, shift, seed):
    x, y = tokens_of(seed, 9, 4), tokens_of(seed + 1, 9, 3)
    y[:, :, 0] += x[:, :, 1]
    expected, order = cka(x, y, *form), torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    close = dict(rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cka(scale * x @ orthogonal(seed, 4) + shift, y, *form), expected, **close)
    torch.testing.assert_close(cka(x[:, order], y[:, order], *form), expected, **close)
    torch.testing.assert_close(cka(y, x, *form), expected, **close)
    assert (expected.abs() <= 1 + 1e-9).all()


def test_alignment_does_know_a_map_that_is_not_orthogonal():
    x = tokens_of(1, 30, 4)
    stretched = x * torch.tensor([10.0, 1, 1, 0.1])
    assert (cka(x, stretched) < 0.9).all()


def test_unbiased_alignment_of_noise_is_about_zero_where_the_biased_one_is_not():
    x, y = tokens_of(1, 12, 40, images=200), tokens_of(2, 12, 40, images=200)
    assert cka(x, y).mean() > 0.5
    assert abs(cka(x, y, unbiased=True).mean()) < 0.02


@pytest.mark.parametrize("kernel, unbiased", FORMS)
def test_the_gradient_of_alignment_is_finite_differences(kernel, unbiased):
    y = tokens_of(2, 6, 3)
    assert torch.autograd.gradcheck(lambda x: cka(x, y, kernel, unbiased), tokens_of(1, 6, 3).requires_grad_())


@pytest.mark.parametrize("kernel, unbiased", FORMS)
def test_tokens_that_do_not_vary_align_with_nothing(kernel, unbiased):
    flat = torch.full((2, 6, 3), 0.1, requires_grad=True)
    aligned = cka(flat, tokens_of(1).float(), kernel, unbiased)
    aligned.sum().backward()
    assert (aligned == 0).all() and (flat.grad == 0).all()


@pytest.mark.parametrize(("kernel", "count"), [("linear", 16), ("linear", 256), ("linear", 1024), ("rbf", 16), ("rbf", 256)])
def test_a_single_token_that_stands_out_is_too_little_for_the_unbiased_form(kernel, count):
    alone = torch.zeros(8, count, 8)  # images, as it is by rounding that some would seem to tell
    alone[:, 3] = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    others = tokens_of(1, count, 6, 8).float().requires_grad_()
    aligned = cka(others, alone, kernel, unbiased=True)
    aligned.sum().backward()
    assert (aligned == 0).all() and (others.grad == 0).all()
    assert cka(alone, alone, kernel, unbiased=False).tolist() == pytest.approx([1] * 8, abs=1e-4)


def test_alignment_in_float32_keeps_four_digits_whatever_the_scale():
    x, y = tokens_of(1, 250, 40), tokens_of(2, 250, 60)
    y[:, :, :40] += x
    for form in FORMS:
        expected = cka(x, y, *form)
        for scale in (1e-12, 1.0, 1e12):
            torch.testing.assert_close(cka((scale * x).float(), y.float(), *form).double(), expected, rtol=1e-4, atol=1e-4)


def test_tokens_that_coincide_but_for_noise_are_alike_to_the_rbf_kernel():
    """Most distances say nothing then, and the bandwidth is not their median."""
    clean = torch.zeros(1, 9, 3, dtype=torch.float64)
    clean[:, 7:] = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    assert cka(clean + 1e-5 * tokens_of(1, 9, 3, 1), clean, "rbf").item() == pytest.approx(1, abs=1e-3)


def test_the_unbiased_form_needs_four_tokens():
    with pytest.raises(TrainingError, match="at least 4 tokens, a feature has 3"):
        cka(tokens_of(1, 3), tokens_of(2, 3), unbiased=True)


# Tokens.


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 400))
def test_a_grid_is_within_its_budget_and_no_finer_than_the_feature(height, width, tokens):
    rows, columns = token_grid(height, width, tokens)
    assert 1 <= rows <= height and 1 <= columns <= width and rows * columns <= tokens
    if height * width <= tokens:
        assert (rows, columns) == (height, width)


def test_a_grid_has_about_the_aspect_of_the_feature():
    assert token_grid(192, 240, 256) == (14, 18)
    assert token_grid(12, 15, 256) == (12, 15)
    assert token_grid(1000, 1, 256) == (256, 1) and token_grid(1, 1000, 256) == (1, 256)


def test_tokens_are_averages_of_cells_row_by_row():
    feature = torch.arange(24.0).view(1, 1, 4, 6)
    assert pool_tokens(feature, (2, 2)).tolist() == [[[4.0], [7.0], [16.0], [19.0]]]
    assert pool_tokens(feature, (4, 6)).flatten().tolist() == list(range(24))


def cells_of(points: torch.Tensor, height: int, width: int) -> list[list[tuple[int, int]]]:
    """(row, column) of each point, image by image."""
    columns, rows = ((points[..., axis] + 1) * size / 2 - 0.5 for axis, size in ((0, width), (1, height)))
    assert (columns - columns.round()).abs().max() < 1e-4 and (rows - rows.round()).abs().max() < 1e-4  # centres of cells
    return [list(zip(r.round().int().tolist(), c.round().int().tolist())) for r, c in zip(rows, columns)]


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 60), st.booleans(), st.integers(0, 10**6))
def test_points_are_different_cells_and_those_that_do_not_count_come_last(height, width, count, balanced, seed):
    torch.manual_seed(seed)
    classes = torch.randint(0, 4, (3, height, width))
    classes[classes == 3] = UNLABELLED
    drawn = cells_of(draw_points(classes, count, balanced), height, width)
    for image, cells in zip(classes, drawn, strict=True):
        assert len(cells) == len(set(cells)) == min(count, height * width)
        valid = int((image != UNLABELLED).sum())
        assert sum(image[cell].item() != UNLABELLED for cell in cells) == min(valid, len(cells))


def test_balanced_points_show_a_class_whatever_its_area():
    torch.manual_seed(0)
    classes = torch.zeros(200, 30, 40, dtype=torch.long)
    classes[:, :2, :20] = 5  # 40 of 1200 cells
    shares = []
    for balanced in (False, True):
        drawn = cells_of(draw_points(classes, 20, balanced), 30, 40)
        shares.append(sum(row < 2 and column < 20 for cells in drawn for row, column in cells) / (200 * 20))
    # The same draw by NumPy, one cell after the other: less than half, because cells are not put back.
    weights, random = np.where(np.arange(1200) < 40, 1 / 40, 1 / 1160) / 2, np.random.default_rng(0)
    expected = np.mean([(random.choice(1200, 20, replace=False, p=weights) < 40).mean() for _ in range(1000)])
    assert shares[0] == pytest.approx(40 / 1200, abs=0.01) and shares[1] == pytest.approx(expected, abs=0.02)
    assert 0.3 < expected < 0.5


def test_tokens_at_points_are_the_cells_there_and_straight_lines_between_them():
    torch.manual_seed(0)
    feature, points = feature_of(3, 4, 5, 6), draw_points(torch.zeros(2, 5, 6, dtype=torch.long), 9, False).double()
    found = tokens_at(feature, points)
    for image, tokens, cells in zip(feature, found, cells_of(points, 5, 6)):
        torch.testing.assert_close(tokens, torch.stack([image[:, row, column] for row, column in cells]), atol=1e-5, rtol=0)
    # A feature of a quarter of the size, linear in the place: away from its border it is read without error.
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), indexing="ij")
    coarse = torch.stack([2 * columns - rows, 3 * rows])[None]
    points = torch.tensor([[[-0.5, 0.25], [0.3, -0.7]]])
    x, y = ((points[0] + 1) * torch.tensor([6.0, 4.0]) - 0.5).T
    torch.testing.assert_close(tokens_at(coarse, points)[0], torch.stack([2 * x - y, 3 * y], 1))


def test_points_beyond_the_outermost_cells_take_what_these_hold():
    points = draw_points(torch.zeros(1, 8, 12, dtype=torch.long), 96, False)
    torch.testing.assert_close(tokens_at(torch.ones(1, 2, 2, 3), points), torch.ones(1, 96, 2))


# The loss.


def test_the_loss_at_points_is_that_of_the_tokens_there():
    torch.manual_seed(0)
    student, teacher = feature_of(1, 4, 4, 6).requires_grad_(), feature_of(2, 3, 2, 3)
    points = draw_points(torch.zeros(2, 4, 6, dtype=torch.long), 7, False).double()
    regressed = [torch.stack([plain_regression(image) for image in tokens_at(f, points)]) for f in (student.detach(), teacher)]
    expected = 1 - sum(plain_cka(*regressed, "linear", False)) / 2
    assert recalibrated_feature_loss(student, teacher, points=points).item() == pytest.approx(expected, abs=1e-9)
    assert torch.autograd.gradcheck(lambda s: recalibrated_feature_loss(s, teacher, points=points), student)


@pytest.mark.parametrize("kernel, unbiased", FORMS)
def test_the_loss_is_one_minus_the_alignment_of_regressed_tokens(kernel, unbiased):
    student, teacher = feature_of(1, 4, 2, 3), feature_of(2, 2, 2, 3)
    regressed = [torch.stack([plain_regression(image) for image in pool_tokens(f, (2, 3))]) for f in (student, teacher)]
    for regression, tokens in (("laplace", regressed), ("none", [pool_tokens(f, (2, 3)) for f in (student, teacher)])):
        found = recalibrated_feature_loss(student, teacher, 6, regression, kernel, unbiased)
        expected = 1 - sum(plain_cka(*tokens, kernel, unbiased)) / 2
        assert found.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("regression", ["laplace", "none"])
@pytest.mark.parametrize("kernel, unbiased", FORMS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kernel, unbiased, regression):
    feature = feature_of(1).float()
    assert recalibrated_feature_loss(feature, feature, 256, regression, kernel, unbiased).item() == pytest.approx(0, abs=1e-5)
    assert recalibrated_feature_loss(feature, feature_of(2).float(), 256, regression, kernel, unbiased) > 0.1


def test_the_gradient_of_the_loss_is_finite_differences_and_the_teacher_has_none():
    teacher = feature_of(2, 2).requires_grad_()
    student = feature_of(1, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: recalibrated_feature_loss(s, teacher, 12), student)
    recalibrated_feature_loss(student, teacher, 12).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_following_the_gradient_aligns_the_student():
    student, teacher = feature_of(1, 6).requires_grad_(), feature_of(2, 3)
    optimiser = torch.optim.Adam([student], lr=0.1)
    before = recalibrated_feature_loss(student, teacher).item()
    for _ in range(40):
        optimiser.zero_grad()
        loss = recalibrated_feature_loss(student, teacher)
        loss.backward()
        optimiser.step()
    assert before > 0.3 and loss < 0.1


def test_widths_and_grids_may_differ_and_the_coarser_one_decides():
    teacher = feature_of(2, 7, 10, 9)
    student = feature_of(1, 3, 5, 12)
    expected = recalibrated_feature_loss(student, torch.nn.functional.adaptive_avg_pool2d(teacher, (5, 9)))
    torch.testing.assert_close(recalibrated_feature_loss(student, teacher), expected)


def test_images_in_which_the_teacher_sees_nothing_do_not_count():
    student, teacher = feature_of(1).requires_grad_(), feature_of(2)
    expected = recalibrated_feature_loss(student[:1], teacher[:1])
    teacher[1] = 0.1
    torch.testing.assert_close(recalibrated_feature_loss(student, teacher), expected)
    teacher[0] = 0.7
    nothing = recalibrated_feature_loss(student, teacher)
    nothing.backward()
    assert nothing == 0 and (student.grad == 0).all()


def test_a_student_that_sees_nothing_loses_one_and_gets_no_gradient():
    student = torch.full((2, 4, 5, 6), 0.1, requires_grad=True)
    loss = recalibrated_feature_loss(student, feature_of(2).float())
    loss.backward()
    assert loss == 1 and (student.grad == 0).all()


def test_an_offset_that_all_pixels_share_does_not_hide_how_they_differ():
    student, teacher = feature_of(1, 8, 14, 18), feature_of(2, 8, 14, 18)
    expected = recalibrated_feature_loss(student, teacher).item()
    assert recalibrated_feature_loss((student + 10000).float(), (teacher - 10000).float()).item() == pytest.approx(expected, abs=1e-3)


def test_one_cell_is_no_feature_to_compare():
    student = feature_of(1, height=1, columns=1).float().requires_grad_()
    loss = recalibrated_feature_loss(student, feature_of(2, height=1, columns=1).float())
    loss.backward()
    assert loss == 0 and (student.grad == 0).all()


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("kernel, unbiased", FORMS)
def test_no_tensor_has_an_entry_for_each_pair_of_tokens_and_channel(kernel, unbiased):
    student, teacher = feature_of(1, 32, 64, 64, 1).float().requires_grad_(), feature_of(2, 48, 64, 64, 1).float()
    with Largest() as seen:
        recalibrated_feature_loss(student, teacher, 256, "laplace", kernel, unbiased).backward()
    assert seen.elements <= max(teacher.numel(), 256 * 256)
