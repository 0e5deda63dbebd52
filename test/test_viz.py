"""Pictures for people."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bundles import COLOURS, PALETTE, random_image
from lix_core.labels import STREET, UNLABELLED
from lix_core.viz import colorize, contact_sheet, legend, overlay

IDS = st.sampled_from([*range(len(COLOURS)), UNLABELLED])
MASKS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=IDS)


@given(MASKS)
def test_colorize_looks_every_id_up(mask):
    image = colorize(mask, COLOURS)
    assert image.dtype == np.uint8 and np.array_equal(image, COLOURS.palette[mask])


def test_colorize_gives_rgb_and_black_where_unlabelled():
    assert colorize(np.array([[1, 3, UNLABELLED]], np.uint8), COLOURS).tolist() == [[[255, 0, 0], [0, 0, 255], [0, 0, 0]]]


@given(MASKS, st.floats(0, 1))
def test_overlay_blends_labelled_pixels_and_keeps_the_others(mask, alpha):
    image = random_image(*mask.shape)
    result = overlay(image, mask, COLOURS, alpha)
    expected = (1 - alpha) * image + alpha * COLOURS.palette[mask]
    labelled = mask != UNLABELLED
    assert np.abs(result[labelled] - expected[labelled]).max(initial=0) <= 0.51
    assert np.array_equal(result[~labelled], image[~labelled])


@given(MASKS)
def test_overlay_runs_from_the_camera_to_the_classes(mask):
    image = random_image(*mask.shape)
    assert np.array_equal(overlay(image, mask, COLOURS, 0.0), image)
    assert np.array_equal(overlay(image, mask, COLOURS, 1.0), np.where((mask == UNLABELLED)[..., None], image, colorize(mask, COLOURS)))


def test_overlay_leaves_its_inputs_alone():
    image, mask = random_image(4, 4), np.full((4, 4), UNLABELLED, np.uint8)
    before = image.copy()
    overlay(image, mask, COLOURS)[:] = 0
    assert np.array_equal(image, before) and (mask == UNLABELLED).all()


def patches_of(strip: np.ndarray) -> set[tuple[int, ...]]:
    """Colours that fill a square of 8 pixels somewhere: the patches, not the letters."""
    windows = np.lib.stride_tricks.sliding_window_view(strip, (8, 8), (0, 1))
    flat = (windows == windows[..., :1, :1]).all((2, 3, 4))
    return {tuple(int(v) for v in colour) for colour in windows[flat][:, :, 0, 0]}


@pytest.mark.parametrize("width", [200, 640, 2000])
def test_the_legend_has_the_colour_of_every_class_and_the_width_asked_for(width):
    strip = legend(STREET, width)
    assert strip.shape[1:] == (width, 3) and strip.dtype == np.uint8
    assert {label.color for label in STREET.labels} <= patches_of(strip)


def test_a_narrow_legend_takes_more_rows():
    heights = [legend(STREET, width).shape[0] for width in (2000, 640, 200)]
    assert heights == sorted(set(heights))


def test_the_contact_sheet_has_every_image_in_its_place_above_the_legend():
    images = [np.full((30, 60, 3), PALETTE[i], np.uint8) for i in (1, 2, 3)]
    sheet = contact_sheet(images, COLOURS, columns=2, cell_width=120)
    row, column = 64, 124  # cells of 60 x 120 and a border of 2
    assert sheet.shape[1] == 2 * column
    centres = [sheet[row // 2, column // 2], sheet[row // 2, column * 3 // 2], sheet[row * 3 // 2, column // 2]]
    assert np.array_equal(centres, PALETTE[[1, 2, 3]])
    assert np.array_equal(sheet[2 * row :], legend(COLOURS, 2 * column))


def test_images_of_several_sizes_share_a_contact_sheet():
    images = [random_image(10, 40), random_image(40, 10), random_image(1, 400), random_image(5, 5)]
    sheet = contact_sheet(images, COLOURS, columns=3, cell_width=60)
    assert sheet.shape[1] == 3 * 64 and sheet.dtype == np.uint8


def test_one_image_takes_one_column():
    assert contact_sheet([random_image(10, 10)], COLOURS, columns=4, cell_width=300).shape[1] == 304
