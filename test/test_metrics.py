"""The confusion matrix against naive counting."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lix_core.errors import LixError
from lix_core.labels import UNLABELLED
from lix_core.metrics import ConfusionMatrix

CLASSES = 4


@st.composite
def image_pairs(draw) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction of one small image, with unlabelled pixels in both."""
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    ids = st.sampled_from([*range(CLASSES), UNLABELLED])
    flat = st.lists(ids, min_size=height * width, max_size=height * width)
    return tuple(np.array(draw(flat), np.uint8).reshape(height, width) for _ in range(2))


def matrix_of(pairs) -> ConfusionMatrix:
    matrix = ConfusionMatrix(CLASSES)
    for truth, prediction in pairs:
        matrix.update(truth, prediction)
    return matrix


def pixel_pairs(pairs) -> list[tuple[int, int]]:
    """(truth, prediction) of every valid pixel of all images."""
    flat = [pixel for truth, prediction in pairs for pixel in zip(truth.ravel().tolist(), prediction.ravel().tolist())]
    return [(t, p) for t, p in flat if t != UNLABELLED]


def naive_iou(pixels: list[tuple[int, int]], label: int) -> float:
    hit = sum(t == label and p == label for t, p in pixels)
    union = sum(t == label or p == label for t, p in pixels)
    return hit / union if union else math.nan


def mean_of_defined(values: list[float]) -> float:
    defined = [v for v in values if not math.isnan(v)]
    return sum(defined) / len(defined) if defined else math.nan


def same(a: float, b: float) -> bool:
    return a == pytest.approx(b, nan_ok=True)


@given(st.lists(image_pairs(), min_size=0, max_size=4))
def test_counts_equal_a_naive_loop(pairs):
    expected = np.zeros((CLASSES, CLASSES), int)
    rejected = np.zeros(CLASSES, int)
    for truth, prediction in pixel_pairs(pairs):
        if prediction == UNLABELLED:
            rejected[truth] += 1
        else:
            expected[truth, prediction] += 1
    matrix = matrix_of(pairs)
    assert np.array_equal(matrix.counts, expected) and np.array_equal(matrix.rejected, rejected)
    assert matrix.counts.dtype == np.int64


@given(st.lists(image_pairs(), max_size=4))
def test_every_figure_equals_its_definition(pairs):
    matrix, pixels = matrix_of(pairs), pixel_pairs(pairs)
    ious = [naive_iou(pixels, c) for c in range(CLASSES)]
    totals = [sum(t == c for t, _ in pixels) for c in range(CLASSES)]
    recalls = [sum(t == p == c for t, p in pixels) / n if n else math.nan for c, n in enumerate(totals)]
    assert all(map(same, matrix.iou, ious))
    assert all(map(same, matrix.recall, recalls))
    assert same(matrix.miou, mean_of_defined(ious))
    assert same(matrix.mean_accuracy, mean_of_defined(recalls))
    assert same(matrix.pixel_accuracy, sum(t == p for t, p in pixels) / len(pixels) if pixels else math.nan)
    weighted = sum(n * iou for n, iou in zip(totals, ious) if n) / len(pixels) if pixels else math.nan
    assert same(matrix.frequency_weighted_iou, weighted)


@given(st.lists(image_pairs(), min_size=1, max_size=4))
def test_the_order_of_images_and_their_grouping_do_not_matter(pairs):
    joined = [(np.concatenate([t.ravel() for t, _ in pairs])[None], np.concatenate([p.ravel() for _, p in pairs])[None])]
    for other in (matrix_of(reversed(pairs)), matrix_of(joined)):
        assert np.array_equal(other.counts, matrix_of(pairs).counts)


@given(image_pairs())
def test_abstaining_never_raises_a_score(pair):
    truth, prediction = pair
    silent = prediction.copy()
    silent[0] = UNLABELLED
    before, after = matrix_of([(truth, prediction)]), matrix_of([(truth, silent)])
    assert np.nan_to_num(after.pixel_accuracy) <= np.nan_to_num(before.pixel_accuracy)
    assert np.array_equal(after.truth_pixels, before.truth_pixels)


def test_iou_is_of_the_data_set_and_not_a_mean_of_images():
    big = (np.zeros((1, 98), np.uint8), np.zeros((1, 98), np.uint8))
    small = (np.zeros((1, 2), np.uint8), np.ones((1, 2), np.uint8))
    assert matrix_of([big, small]).iou[0] == pytest.approx(0.98)


def test_a_class_absent_from_both_is_left_out_of_the_mean_and_none_in_the_summary():
    matrix = matrix_of([(np.array([[0, 0, 1, UNLABELLED]]), np.array([[0, 1, 1, 3]]))])
    summary = matrix.summary(("a", "b", "c", "d"))
    assert summary["iou"] == {"a": 0.5, "b": 0.5, "c": None, "d": None}
    assert summary["miou"] == 0.5 and summary["pixel_accuracy"] == 0.6667
    assert json.loads(json.dumps(summary)) == summary


def test_without_a_valid_pixel_every_mean_is_nan():
    matrix = matrix_of([(np.full((2, 2), UNLABELLED), np.zeros((2, 2)))])
    assert all(map(math.isnan, (matrix.miou, matrix.mean_accuracy, matrix.pixel_accuracy, matrix.frequency_weighted_iou)))


def test_images_of_two_sizes_are_refused_with_both_sizes():
    with pytest.raises(LixError, match=r"truth is \(2, 3\) but prediction is \(3, 2\)"):
        ConfusionMatrix(2).update(np.zeros((2, 3)), np.zeros((3, 2)))


@pytest.mark.parametrize(("truth", "prediction", "name"), [(4, 0, "truth"), (0, 4, "prediction"), (-1, 0, "truth"), (0, -1, "prediction")])
def test_ids_outside_the_label_set_are_refused_and_counted_nowhere(truth, prediction, name):
    matrix = ConfusionMatrix(CLASSES)
    with pytest.raises(LixError, match=f"{name} has ids .*, outside 0..3"):
        matrix.update(np.array([[truth]]), np.array([[prediction]]))
    assert not matrix.counts.any()
