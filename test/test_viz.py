"""Pictures for people."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bundles import COLOURS, PALETTE, random_image
from lix_core.errors import GeometryError, ImageError
from lix_core.labels import STREET, UNLABELLED
from lix_core.viz import colorize, contact_sheet, depth_color, draw_depth_points, legend, normals_color, overlay

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


def test_a_strip_of_pixels_makes_no_sheet_that_fills_the_memory():
    sheet = contact_sheet([np.full((5760, 2, 3), 200, np.uint8), random_image(30, 60)], COLOURS, cell_width=60)
    assert sheet.shape == (120 + 4 + legend(COLOURS, 128).shape[0], 128, 3)
    assert (sheet[2:122, 2] == 200).all() and (sheet[2:122, 3:62] == 24).all()


GRAY, RGB, IDS_2X3 = np.zeros((2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3), np.int64)
METRES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("draw", "error", "words"),
    [
        (lambda: colorize(IDS_2X3, COLOURS), ImageError, r"the mask must be an array \(H, W\) of uint8, got int64 \(2, 3\)"),
        (lambda: colorize(GRAY[:0], COLOURS), ImageError, r"got uint8 \(0, 3\)"),
        (lambda: colorize(None, COLOURS), ImageError, "got NoneType"),
        (lambda: overlay(GRAY, GRAY, COLOURS), ImageError, r"the image must be an array \(H, W, 3\) of uint8, got uint8 \(2, 3\)"),
        (
            lambda: overlay(RGB, GRAY[:1], COLOURS),
            ImageError,
            r"the mask of this image must be an array \(2, 3\) of uint8, got .* \(1, 3\)",
        ),
        (lambda: legend(COLOURS, 0), ImageError, "at least 1 pixel wide, got 0"),
        (lambda: contact_sheet([], COLOURS), ImageError, "at least one image"),
        (lambda: contact_sheet([RGB, GRAY], COLOURS), ImageError, "an image of the sheet must be"),
        (lambda: depth_color(GRAY), GeometryError, r"depth \[m\] must be an array \(H, W\) of floating, got uint8 \(2, 3\)"),
        (lambda: depth_color(None), GeometryError, "got NoneType"),
        (lambda: normals_color(METRES), GeometryError, r"normals must be an array \(H, W, 3\) of floating, got float32 \(2, 3\)"),
        (lambda: draw_depth_points(RGB, METRES[:1]), GeometryError, r"to draw over this image must be an array \(2, 3\)"),
        (lambda: draw_depth_points(GRAY, METRES), ImageError, "the image must be"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_what_it_is(draw, error, words):
    with pytest.raises(error, match=words):
        draw()


def test_one_image_takes_one_column():
    assert contact_sheet([random_image(10, 10)], COLOURS, columns=4, cell_width=300).shape[1] == 304


@pytest.mark.filterwarnings("error")
def test_depth_colours_run_from_red_over_green_to_blue_and_unknown_is_black():
    colours = depth_color(np.float32([[1, 3, 15.5, 80, 500, np.nan, np.inf, -1]]), near=3, far=80)[0].astype(int)
    assert (colours[0] == colours[1]).all() and (colours[3] == colours[4]).all()
    assert [colours[k].argmax() for k in (1, 2, 3)] == [0, 1, 2]
    assert not colours[5:7].any()
    with pytest.raises(GeometryError, match="0 < near < far"):
        depth_color(np.ones((2, 2), np.float32), near=5, far=5)


@pytest.mark.filterwarnings("error")
def test_normals_colours_say_where_a_surface_faces():
    normals = np.float32([[(0, 0, -1), (0, -1, 0), (-1, 0, 0), (1, 0, 0), (np.nan, np.nan, np.nan)]])
    expected = [(128, 128, 255), (128, 255, 128), (255, 128, 128), (0, 128, 128), (0, 0, 0)]
    np.testing.assert_array_equal(normals_color(normals)[0], expected)
    planes = np.ascontiguousarray(normals.transpose(2, 0, 1))  # as networks have them
    np.testing.assert_array_equal(normals_color(planes.transpose(1, 2, 0))[0], expected)
    assert np.isnan(normals[0, 4]).all(), "the input is not changed"


@pytest.mark.filterwarnings("error")
def test_points_are_drawn_as_squares_the_nearer_one_on_top():
    image = np.full((8, 10, 3), 200, np.uint8)
    sparse = np.full((8, 10), np.nan, np.float32)
    sparse[4, 4], sparse[4, 5] = 5.0, 50.0
    drawn = draw_depth_points(image, sparse)
    near, far = depth_color(np.float32([[5, 50]]))[0]
    changed = (drawn != image).any(axis=2)
    assert changed.sum() == 6
    assert (drawn[changed] == near).all(axis=1).sum() == 4 and (drawn[changed] == far).all(axis=1).sum() == 2
