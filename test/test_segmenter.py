"""From an image to its labels, on tiny graphs whose right answer is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bundles import (
    COLOURS,
    PALETTE,
    X,
    blocks,
    camera_bundle,
    colour_logits,
    logits_bundle,
    nearest_colour,
    random_image,
    random_x,
    winner_probability,
    x_logits,
)
from lix_core.errors import BundleError, ImageError, LixError
from lix_core.labels import STREET, UNLABELLED, LabelMapping, LabelSet
from lix_core.pixels import read_pixels
from lix_core.runtime.backends import BackendOptions
from lix_core.runtime.bundle import Bundle, InputSpec, SizePolicy, XSpec
from lix_core.runtime.segmenter import Segmentation, Segmenter, winner

ONE_THREAD = BackendOptions(threads=1)
SIZES = st.tuples(st.integers(1, 200), st.integers(1, 300))
IDS = arrays.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4)), elements=st.integers(0, len(COLOURS) - 1))


def segmenter(bundle: Bundle, **options: object) -> Segmenter:
    return Segmenter(bundle, options=ONE_THREAD, **options)


KINDS = {
    "camera": segmenter(camera_bundle()),
    "camera at stride 4": segmenter(camera_bundle(stride=4)),
    "logits": segmenter(logits_bundle()),
    "logits at stride 4": segmenter(logits_bundle(stride=4)),
}
EXACT = ("camera", "logits")
FIXED = {"camera": segmenter(camera_bundle((48, 64))), "logits": segmenter(logits_bundle((48, 64), stride=2))}


def in_order(image: np.ndarray, order: str) -> np.ndarray:
    """An RGB image with its channels in another order; alpha, where there is one, is junk."""
    alpha = np.random.default_rng(1).integers(0, 256, (*image.shape[:2], 1), np.uint8)
    channels = {"r": image[..., :1], "g": image[..., 1:2], "b": image[..., 2:], "a": alpha}
    return np.ascontiguousarray(np.concatenate([channels[c] for c in order], -1))


def assert_same(a, b) -> None:
    assert np.array_equal(a.mask, b.mask) and np.array_equal(a.coarse_confidence, b.coarse_confidence)


# Known answers.


@pytest.mark.parametrize("kind", EXACT)
@given(SIZES, st.integers(0, 2**32 - 1))
@settings(max_examples=25)
@example((1, 1), 0)
@example((1, 300), 0)
@example((200, 1), 0)
@example((32, 64), 0)
def test_each_pixel_gets_the_class_of_the_nearest_colour(kind, size, seed):
    image = random_image(*size, seed)
    result = KINDS[kind].segment(image)
    assert result.mask.dtype == np.uint8 and np.array_equal(result.mask, nearest_colour(image))
    assert result.coarse_confidence.dtype == np.float32
    assert np.allclose(result.confidence, winner_probability(image), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@given(IDS)
@settings(max_examples=15)
def test_squares_of_one_colour_get_that_class_away_from_their_borders(kind, ids):
    mask = KINDS[kind].segment(blocks(ids, 16)).mask
    assert np.array_equal(mask[8::16, 8::16], ids) and np.array_equal(mask[5::16, 10::16], ids)


@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.parametrize("factor", [0.5, 1, 2, 5])
def test_a_fixed_canvas_labels_images_of_any_scale(kind, factor):
    ids = np.array([[0, 1, 2, 3], [4, 3, 2, 1], [1, 0, 4, 2]])
    size = int(16 * factor)
    mask = FIXED[kind].segment(blocks(ids, size)).mask
    assert mask.shape == (3 * size, 4 * size)
    assert np.array_equal(mask[size // 2 :: size, size // 2 :: size], ids)


@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (5, 1)])
def test_a_fixed_canvas_is_letterboxed_and_the_padding_cut_off(kind, rows, columns):
    ids = (np.arange(rows * columns) % len(COLOURS)).reshape(rows, columns)
    mask = FIXED[kind].segment(blocks(ids, 40)).mask
    assert mask.shape == (40 * rows, 40 * columns)
    assert np.array_equal(mask[20::40, 20::40], ids)


class Seen:
    """A backend that remembers the image which the network is given."""

    def __init__(self, runner: Segmenter):
        self.backend, runner._backend = runner._backend, self

    def run(self, image, *others):
        self.image = image.copy()
        return self.backend.run(image, *others)


def test_the_padding_is_grey():
    runner = segmenter(camera_bundle((48, 64)))
    seen = Seen(runner)
    runner.segment(blocks(np.zeros((1, 4), int), 16))
    assert (seen.image[0, :16] == 0).all() and (seen.image[0, 16:] == 127).all()


def test_each_channel_has_its_own_mean_and_spread():
    mean, std = (10.0, 20.0, 30.0), (2.0, 4.0, 5.0)
    runner = segmenter(logits_bundle(input=InputSpec("NCHW", "float32", mean, std)))
    seen, image = Seen(runner), random_image(32, 64)
    runner.segment(image)
    assert seen.image.dtype == np.float32
    np.testing.assert_allclose(seen.image[0], np.moveaxis((image - np.array(mean)) / std, 2, 0), rtol=1e-5)


@pytest.mark.parametrize("make", [camera_bundle, logits_bundle])
def test_stretch_uses_the_whole_canvas(make):
    ids = np.array([[0, 1, 2, 3, 4]])
    runner = segmenter(make(size=SizePolicy("stretch", 64, 160)))
    assert runner.segment(blocks(ids, 50)).coarse_confidence.shape == (64, 160)
    assert np.array_equal(runner.segment(blocks(ids, 50)).mask[25::50, 25::50], ids)


def test_a_large_image_is_scaled_down_to_max_pixels_and_its_mask_back_up():
    ids = np.arange(12).reshape(3, 4) % len(COLOURS)
    image = blocks(ids, 100)
    result = segmenter(camera_bundle(), max_pixels=30_000).segment(image)
    assert result.coarse_confidence.shape == (150, 200)
    assert result.mask.shape == (300, 400) and result.confidence.shape == (300, 400)
    assert np.array_equal(result.mask[50::100, 50::100], ids)


def test_scaling_a_mask_up_invents_no_classes():
    image = blocks(np.array([[0, 4, 0], [4, 0, 4]]), 97)
    for runner in (segmenter(camera_bundle(), max_pixels=5000), FIXED["camera"], FIXED["logits"]):
        assert set(np.unique(runner.segment(image).mask)) == {0, 4}


@pytest.mark.parametrize("size", [(44, 52), (28, 36), (12, 60)])
def test_a_scaled_mask_has_in_each_pixel_what_the_network_said_at_its_middle(size):
    said = np.random.default_rng(0).integers(0, len(COLOURS), (20, 20)).astype(np.uint8)
    runner = segmenter(camera_bundle(size=SizePolicy("stretch", 32, 32)))
    runner._infer = lambda: (said, np.ones((20, 20), np.float32))
    rows, columns = (((np.arange(side) + 0.5) * 20 / side).astype(int) for side in size)
    assert np.array_equal(runner.segment(random_image(*size)).mask, said[np.ix_(rows, columns)])


def test_max_pixels_of_the_caller_goes_before_the_bundles_own():
    image = random_image(100, 100)
    small = camera_bundle(size=SizePolicy(max_pixels=2500))
    assert segmenter(small).segment(image).coarse_confidence.shape == (50, 50)
    assert segmenter(small, max_pixels=6400).segment(image).coarse_confidence.shape == (80, 80)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("size", "shape"),
    [
        (SizePolicy(max_pixels=32 * 32), (256, 256)),
        (SizePolicy("stretch", 32, 32), (256, 32)),
        (SizePolicy("stretch", 32, 32), (32, 256)),
    ],
)
def test_scaling_down_averages_rather_than_skips_pixels(axis, size, shape):
    stripes = np.zeros((*shape, 3), np.uint8)
    for first in (3, 4):  # the two of every eight between which linear interpolation would look
        stripes[(slice(None),) * axis + (slice(first, None, 8),)] = 255
    scale = size.fit(*shape).content[axis] / shape[axis]
    mask = segmenter(camera_bundle(size=size)).segment(stripes).mask
    assert np.array_equal(mask, nearest_colour(stripes)) if scale == 1 else (mask == COLOURS.id_of("black")).all()


# Invariances.


@pytest.mark.parametrize("kind", KINDS)
@given(SIZES)
@settings(max_examples=25)
@example((1, 1))
@example((200, 300))
@example((3, 5))
def test_the_mask_has_the_images_own_size(kind, size):
    result = KINDS[kind].segment(random_image(*size))
    assert result.mask.shape == result.confidence.shape == result.confidence_u8.shape == size
    assert result.mask.max() < len(COLOURS)
    assert 0 < result.confidence.min() and result.confidence.max() <= 1


@pytest.mark.parametrize("runner", [*KINDS.values(), *FIXED.values()], ids=[*KINDS, "fixed camera", "fixed logits"])
@pytest.mark.parametrize("size", [(33, 47), (1, 1), (64, 64)])
def test_every_channel_order_of_one_picture_gives_the_same_labels(runner, size):
    image = random_image(*size)
    expected = runner.segment(image)
    for order in ("rgb", "bgr", "rgba", "bgra"):
        assert_same(runner.segment(in_order(image, order), order), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gray_image_is_the_colour_image_of_equal_channels(kind):
    gray = random_image(21, 35)[..., 0]
    expected = KINDS[kind].segment(np.dstack([gray] * 3))
    assert_same(KINDS[kind].segment(gray, "gray"), expected)
    assert_same(KINDS[kind].segment(gray[..., None], "gray"), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 0.4, -0.4])
def test_a_float_image_is_the_8_bit_image_over_255_rounded(dtype, offset):
    image = random_image(21, 35)
    values = np.clip((image + offset) / 255, 0, 1).astype(dtype)
    assert_same(KINDS["camera"].segment(values), KINDS["camera"].segment(image))


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "8UC3", "8UC4"])
@pytest.mark.parametrize("runner", [KINDS["camera"], FIXED["camera"]], ids=["dynamic", "fixed"])
def test_a_camera_buffer_with_padded_rows_gives_the_same_labels(encoding, runner):
    image = random_image(21, 35)
    order = {"8UC3": "bgr", "8UC4": "bgra"}.get(encoding, encoding.removesuffix("8"))
    rows = in_order(image, order).reshape(21, -1)
    step = rows.shape[1] + 13
    data = np.hstack([rows, np.full((21, 13), 99, np.uint8)]).tobytes()
    assert_same(runner.segment(*read_pixels(data, 21, 35, step, encoding)), runner.segment(image))


@pytest.mark.parametrize("view", [np.s_[::2, ::3], np.s_[::-1, ::-1], np.s_[3:20, 5:9], np.s_[:, 4:5], np.s_[6:7, :]])
def test_any_view_is_read_like_its_copy(view):
    image = random_image(40, 60)[view]
    for runner in (KINDS["camera"], FIXED["camera"]):
        assert_same(runner.segment(image), runner.segment(image.copy()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_leaves_no_trace_in_the_next_result(kind):
    # The second and third share their canvas, and at stride 4 a cell on the third's border sees what lies beyond it.
    sizes = [(40, 50), (64, 64), (41, 45), (33, 65), (1, 1), (200, 100), (40, 50)]
    images = [random_image(*size, seed) for seed, size in enumerate(sizes)]
    fresh = segmenter(KINDS[kind].bundle)
    expected = [segmenter(KINDS[kind].bundle).segment(image) for image in images]
    for image, result in zip(images, [fresh.segment(image) for image in images]):
        assert_same(result, expected.pop(0))
        assert_same(fresh.segment(image), result)


def test_the_image_is_left_as_it_was():
    image = random_image(40, 50)
    before = image.copy()
    image.flags.writeable = False
    for runner in (KINDS["camera"], KINDS["logits"], FIXED["logits"]):
        runner.segment(image)
    assert np.array_equal(image, before)


# X.

SEEING = segmenter(camera_bundle(x=X))
SEEING_LOGITS = segmenter(camera_bundle(x=X, outputs=("logits",)))


@given(SIZES, st.integers(0, 2**32 - 1))
@settings(max_examples=25)
@example((1, 1), 0)
@example((32, 64), 0)
def test_x_reaches_the_network_pixel_by_pixel_and_only_where_it_is_known(size, seed):
    image, (x, known) = random_image(*size, seed), random_x(*size, seed)
    expected = (colour_logits(image) + x_logits(x, known)).argmax(0)
    for runner in (SEEING, SEEING_LOGITS):
        assert np.array_equal(runner.segment(image, x=x, known=known).mask, expected)


def test_what_x_holds_where_it_is_unknown_is_not_looked_at():
    image, (x, known) = random_image(40, 50), random_x(40, 50)
    expected = SEEING.segment(image, x=np.where(known, x, np.float32(0)), known=known)
    assert_same(SEEING.segment(image, x=np.where(known, x, np.float32("nan")), known=known), expected)


def test_a_frame_without_x_is_one_with_nothing_known_and_keeps_nothing_of_the_frame_before():
    image, (x, known) = random_image(40, 50), random_x(40, 50)
    unknown = SEEING.segment(image, x=x, known=np.zeros_like(known))
    assert np.array_equal(unknown.mask, nearest_colour(image))
    SEEING.segment(image, x=x, known=known)
    assert_same(SEEING.segment(image), unknown)


@pytest.mark.parametrize("size", [SizePolicy(max_pixels=32 * 32), SizePolicy("stretch", 20, 64), SizePolicy(height=64, width=64)])
def test_x_is_fitted_to_the_canvas_with_the_image_and_never_mixed_between_pixels(size):
    image = np.zeros((40, 80, 3), np.uint8)
    x, known = np.full((2, 40, 80), 8, np.float32), np.zeros((40, 80), bool)
    x[:, :, 40:] = -8
    known[20:] = True
    runner = segmenter(camera_bundle(size=size, x=X))
    given_x, given_known = {}, {}

    def run(image, outputs, others):
        given_x["x"], given_known["known"] = others["x"][0].copy(), others["known"][0].copy()
        return backend.run(image, outputs, others)

    backend, runner._backend = runner._backend, type("Spy", (), {"run": staticmethod(run)})
    runner.segment(image, x=x, known=known)
    (rows, columns), x, known = size.fit(40, 80).content, given_x["x"], given_known["known"]
    assert known[rows // 2 : rows, :columns].all() and known.sum() == (rows - rows // 2) * columns
    assert (x[:, rows // 2 : rows, : columns // 2] == 8).all() and (x[:, rows // 2 : rows, columns // 2 : columns] == -8).all()
    assert not x[:, ~known].any()


@pytest.mark.parametrize("size", [SizePolicy(), SizePolicy(height=64, width=96), SizePolicy(max_pixels=2000)])
def test_x_of_any_strides_and_width_of_float_gives_the_same_labels(size):
    runner = segmenter(camera_bundle(size=size, x=X))
    image, (x, known) = random_image(40, 60), random_x(40, 60)
    expected = runner.segment(image, x=x, known=known)
    strided = np.asfortranarray(x[:, ::-1])[:, ::-1]
    for other in (strided, x.astype(np.float64), x.astype(np.float16), x.astype(">f4")):
        assert_same(runner.segment(image, x=other, known=np.asfortranarray(known)), expected)


def test_x_is_left_as_it_was():
    image, (x, known) = random_image(40, 50), random_x(40, 50)
    x.flags.writeable = known.flags.writeable = False
    before = x.copy(), known.copy()
    SEEING.segment(image, x=x, known=known)
    assert np.array_equal(x, before[0]) and np.array_equal(known, before[1])


KNOWN = np.ones((4, 6), bool)


@pytest.mark.parametrize(
    ("x", "known", "message"),
    [
        (np.zeros((2, 4, 6), np.float32), None, "x and its mask known are two arrays, or both None; got ndarray and NoneType"),
        (None, KNOWN, "two arrays, or both None; got NoneType and ndarray"),
        ([[1.0]], KNOWN, "two arrays, or both None; got list and ndarray"),
        (
            np.zeros((1, 4, 6), np.float32),
            KNOWN,
            r"x must be a float array \(2, 4, 6\), two .*; got float32 \(1, 4, 6\)",
        ),
        (np.zeros((4, 6, 2), np.float32), KNOWN, r"got float32 \(4, 6, 2\)"),
        (np.zeros((2, 4, 5), np.float32), KNOWN, r"got float32 \(2, 4, 5\)"),
        (np.zeros((2, 4, 6), np.uint16), KNOWN, "x must be a float array .*; got uint16"),
        (np.zeros((2, 4, 6), np.float32), KNOWN[:3], r"known must be a bool array \(4, 6\), the size of the image; got bool \(3, 6\)"),
        (np.zeros((2, 4, 6), np.float32), KNOWN.astype(np.uint8), "known must be a bool array .*; got uint8"),
        (np.full((2, 4, 6), np.nan, np.float32), KNOWN, "x has 48 values that are NaN or infinite where known is True"),
        (np.float32([[[np.inf] * 6] * 4, [[-np.inf] * 6] * 4]), KNOWN, "x has 48 values that are NaN or infinite"),
    ],
)
def test_bad_x_is_refused_with_what_is_wrong_and_the_next_frame_goes_on(x, known, message):
    image = random_image(4, 6)
    with pytest.raises(ImageError, match=message):
        SEEING.segment(image, x=x, known=known)
    assert np.array_equal(SEEING.segment(image).mask, nearest_colour(image))


def test_values_whose_sum_overflows_are_no_fault():
    x = np.full((2, 4, 6), 3e38, np.float32)
    assert SEEING.segment(random_image(4, 6), x=x, known=KNOWN).mask.shape == (4, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_rgb_alone_refuses_x(kind):
    image, (x, known) = random_image(8, 9), random_x(8, 9)
    for given_x in ({"x": x, "known": known}, {"x": x}, {"known": known}):
        with pytest.raises(ImageError, match="model 'tiny-.*' sees RGB alone and takes no X; leave out x and known"):
            KINDS[kind].segment(image, **given_x)


# Results.


def sampled(cells: np.ndarray, size: tuple[int, int], pixels_per_cell: tuple[float, float]) -> np.ndarray:
    """(h, w) values at the middles of cells -> at the middles of size[0] x size[1] pixels, bilinear, the outermost ones held."""
    rows, columns = ((np.arange(side) + 0.5) / step - 0.5 for side, step in zip(size, pixels_per_cell))
    across = np.stack([np.interp(columns, np.arange(cells.shape[1]), line) for line in cells])
    return np.stack([np.interp(rows, np.arange(cells.shape[0]), line) for line in across.T], axis=1)


@pytest.mark.parametrize("kind", ["camera at stride 4", "logits at stride 4"])
@given(SIZES, st.integers(0, 2**32 - 1))
@settings(max_examples=25)
@example((1, 300), 0)
@example((41, 63), 0)
def test_confidence_lies_where_its_cells_do_whatever_the_size(kind, size, seed):
    """Sides that are no multiple of 4 end within a cell."""
    result = KINDS[kind].segment(random_image(*size, seed))
    expected = sampled(result.coarse_confidence, size, (4, 4))
    np.testing.assert_allclose(result.confidence, expected, atol=1e-4)
    np.testing.assert_allclose(result.confidence_u8 / 255, expected, atol=1.6 / 255)
    assert result.confidence.flags.c_contiguous and result.confidence_u8.flags.c_contiguous


def test_confidence_of_a_scaled_image_lies_where_its_cells_do():
    """300 x 400 pixels of which the network sees 69 x 92, in 17.25 x 23 cells."""
    result = segmenter(camera_bundle(stride=4), max_pixels=6400).segment(random_image(300, 400))
    assert result.coarse_confidence.shape == (18, 23) and result.cells == (17.25, 23.0)
    expected = sampled(result.coarse_confidence, (300, 400), (300 / 17.25, 400 / 23))
    np.testing.assert_allclose(result.confidence, expected, atol=1e-4)
    np.testing.assert_array_equal(result.rejecting(0.5).confidence, result.confidence)


def test_confidence_in_8_bits_is_the_confidence_times_255_to_about_one():
    for kind in KINDS.values():
        result = kind.segment(random_image(50, 70))
        assert result.confidence_u8.dtype == np.uint8
        assert np.abs(result.confidence_u8 - 255.0 * result.confidence).max() <= 1.5


@given(st.floats(0.01, 1))
def test_rejecting_unlabels_exactly_the_pixels_below_the_threshold(threshold):
    result = KINDS["camera at stride 4"].segment(random_image(40, 60))
    kept = result.rejecting(threshold).mask
    below = result.confidence < threshold
    assert (kept[below] == UNLABELLED).all() and np.array_equal(kept[~below], result.mask[~below])


def test_rejecting_at_zero_keeps_every_pixel():
    result = KINDS["camera"].segment(random_image(4, 6))
    assert result.rejecting(0.0) is result


def test_a_pixel_just_as_sure_as_it_must_be_is_kept():
    found = Segmentation(np.array([[0, 1, 2]], np.uint8), COLOURS, np.float32([[0.25, 0.5, 0.75]]))
    assert found.rejecting(0.5).mask.tolist() == [[UNLABELLED, 1, 2]]


def test_masks_differ_where_both_have_a_class_and_not_the_same():
    classes = [{"name": "dark", "from": ["black", "blue"]}, {"name": "light", "from": "white"}]
    shades = LabelMapping.from_dict(COLOURS, {"name": "shade", "classes": classes})
    mine = Segmentation(np.array([[0, 0, 1, 1, 255, 255, 0]], np.uint8), shades.target, np.ones((1, 7), np.float32))
    black, red, blue, white = (COLOURS.id_of(name) for name in ("black", "red", "blue", "white"))
    other = np.array([[blue, white, white, black, black, 255, red]], np.uint8)
    assert mine.differs_from(other, shades).tolist() == [[False, True, False, True, False, False, False]]
    with pytest.raises(ImageError, match=r"must be of one size and label set, got \(1, 6\) in 'shade' and \(1, 7\) in 'shade'"):
        mine.differs_from(other[:, 1:], shades)
    with pytest.raises(ImageError, match="in 'shade' and .* in 'colours'"):
        KINDS["camera"].segment(random_image(1, 7)).differs_from(other, shades)


def test_remapped_labels_are_those_of_the_mapping():
    shades = [{"name": "dark", "from": ["black", "blue"]}, {"name": "light", "from": "white"}]
    mapping = LabelMapping.from_dict(COLOURS, {"name": "shade", "classes": shades})
    result = KINDS["camera"].segment(PALETTE[None])
    other = result.remapped(mapping)
    assert other.mask.tolist() == [[0, UNLABELLED, UNLABELLED, 0, 1]]
    assert other.labels.names == ("dark", "light") and np.array_equal(other.confidence, result.confidence)
    assert result.rejecting(1.0).remapped(mapping).mask.tolist() == [[UNLABELLED] * 5]
    assert KINDS["camera"].segment(PALETTE[None, 4:]).remapped(mapping).mask.tolist() == [[1]]


def test_a_mapping_of_another_label_set_is_refused():
    mapping = LabelMapping.from_dict(STREET, {"classes": [{"name": "free", "from": "road"}]})
    with pytest.raises(ImageError, match="remap is from 'street', the segmentation is in 'colours'"):
        KINDS["camera"].segment(PALETTE[None]).remapped(mapping)


@given(arrays.arrays(np.float32, (3, 4, 5), elements=st.floats(-5, 5, width=32)))
def test_winner_at_the_logits_own_size_is_argmax_and_softmax(logits):
    mask, confidence = winner(logits, (4, 5))
    odds = np.exp(logits.astype(float))
    assert np.array_equal(mask, logits.argmax(0))
    assert np.allclose(confidence, odds.max(0) / odds.sum(0), atol=1e-6)


def test_winner_interpolates_logits_and_not_ids():
    logits = np.zeros((3, 1, 2), np.float32)
    logits[:, 0, 0], logits[:, 0, 1] = (4, 3, 0), (0, 3, 4)
    assert winner(logits, (1, 8))[0].tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]


def test_huge_logits_do_not_overflow():
    mask, confidence = winner(np.float32([[[-1000]], [[1000]]]), (1, 1))
    assert mask.tolist() == [[1]] and confidence.tolist() == [[1.0]]


def test_the_description_says_model_and_backend():
    assert KINDS["camera"].description.startswith("tiny-camera on onnxruntime ") and "1 threads" in KINDS["camera"].description


def test_a_model_is_found_by_name_and_by_path(model_folder):
    path = camera_bundle().save(model_folder / "tiny.lix")
    image = random_image(9, 9)
    for model in ("tiny", path, str(path)):
        assert np.array_equal(Segmenter(model, options=ONE_THREAD).segment(image).mask, nearest_colour(image))


# Images that cannot be segmented.


@pytest.mark.parametrize(
    ("image", "order", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), "hsv", "channel order must be one of rgb, bgr, rgba, bgra, gray, got 'hsv'"),
        (np.zeros((4, 4), np.uint8), "rgb", r"a rgb image must be \(H, W, 3\), got \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), "bgr", r"a bgr image must be \(H, W, 3\), got \(4, 4, 4\)"),
        (np.zeros((4, 4, 3), np.uint8), "rgba", r"a rgba image must be \(H, W, 4\), got \(4, 4, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), "gray", r"a gray image must be \(H, W\), got \(4, 4, 3\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "rgb", r"got \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "rgb", r"the image is empty: \(0, 4, 3\)"),
        (np.zeros((4, 0), np.uint8), "gray", r"the image is empty: \(4, 0\)"),
        (np.zeros((4, 4, 3), np.uint16), "rgb", "must be uint8, or float of range 0..1; got uint16"),
        (np.zeros((4, 4, 3), np.int64), "rgb", "must be uint8, or float of range 0..1; got int64"),
        (np.zeros((4, 4, 3), bool), "rgb", "got bool"),
        (np.full((4, 4, 3), np.nan, np.float32), "rgb", "48 values that are NaN or infinite"),
        (np.full((2, 1, 3), np.inf), "rgb", "6 values that are NaN or infinite"),
        (np.full((4, 4, 3), 128.0), "rgb", "float image must be of range 0..1, got 128..128"),
        (np.full((4, 4, 3), -0.5), "rgb", "float image must be of range 0..1, got -0.5..-0.5"),
        (None, "bgr", "must be an array, got NoneType; cv2.imread gives None for a file it cannot read"),
        ([[[0, 0, 0]]], "rgb", "must be an array, got list"),
    ],
)
def test_a_bad_image_is_refused_with_what_is_wrong(image, order, message):
    with pytest.raises(ImageError, match=message):
        KINDS["camera"].segment(image, order)


@given(
    arrays.arrays(st.sampled_from(["u1", "u2", "i4", "f4", "f8", "?"]), arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
)
def test_any_array_is_segmented_or_refused(image):
    for order in ("rgb", "gray", "bgra"):
        try:
            result = KINDS["camera"].segment(image, order)
        except ImageError:
            continue
        assert result.mask.shape == image.shape[:2]


def test_after_a_refused_image_the_segmenter_goes_on():
    runner, image = segmenter(camera_bundle()), random_image(10, 10)
    with pytest.raises(ImageError):
        runner.segment(np.zeros((0, 4, 3), np.uint8))
    assert np.array_equal(runner.segment(image).mask, nearest_colour(image))


# Bundles whose graph is not what they say.


def claiming(bundle: Bundle, **fields: object) -> Bundle:
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, **fields))


ALL = ("logits", "mask", "confidence")
FEWER = LabelSet("fewer", COLOURS.labels[:3])


def in_float16(bundle: Bundle) -> Bundle:
    """The same with logits in half precision."""
    model = onnx.load_from_string(bundle.graph)
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["wide" if name == "logits" else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Cast", ["wide"], ["logits"], to=onnx.TensorProto.FLOAT16))
    output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    return dataclasses.replace(bundle, graph=model.SerializeToString())


def ending_in(bundle: Bundle, output: str, operation: str, number: np.ndarray) -> Bundle:
    """The same, but for one output, on which something is done with a number."""
    model = onnx.load_from_string(bundle.graph)
    for node in model.graph.node:
        node.output[:] = ["plain" if name == output else name for name in node.output]
        node.input[:] = ["plain" if name == output else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(number, "number"))
    model.graph.node.append(onnx.helper.make_node(operation, ["plain", "number"], [output]))
    return dataclasses.replace(bundle, graph=model.SerializeToString())


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        (ending_in(logits_bundle(), "logits", "Mul", np.float32(np.nan)), "logits of bundle 'tiny-logits' are not finite"),
        (ending_in(camera_bundle(), "mask", "Add", np.uint8(200)), r"mask of bundle 'tiny-camera' has the id 20\d, its classes are 0..4"),
        (in_float16(logits_bundle()), "logits of bundle 'tiny-logits' must be float32, got float16: let its graph end with a Cast"),
        (claiming(logits_bundle(), outputs=ALL), "graph of 'tiny-logits' lacks outputs mask, confidence; it has logits"),
        (claiming(logits_bundle(), labels=FEWER), r"names 3 classes, but its graph's logits are \(1, 5, .*not \(1, 3, h, w\)"),
        (claiming(camera_bundle(), labels=FEWER), "names 3 classes"),
        (claiming(logits_bundle(), input=InputSpec()), "graph of 'tiny-logits' cannot take its input"),
        (claiming(camera_bundle(), input=InputSpec("NCHW", "uint8")), "graph of 'tiny-camera' cannot take its input"),
        (claiming(camera_bundle((48, 64)), size=SizePolicy()), "graph of 'tiny-camera' cannot take its input"),
        (claiming(camera_bundle(), x=X), "the graph of 'tiny-camera' takes an image, x, known; its inputs are image$"),
        (claiming(camera_bundle(x=X), x=None), "the graph of 'tiny-camera' takes an image; its inputs are image, x, known"),
        (claiming(camera_bundle(x=X), x=XSpec("two", 3)), "graph of 'tiny-camera' cannot take its input"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(bundle, message):
    with pytest.raises(BundleError, match=message):
        segmenter(bundle)


def test_a_canvas_bound_below_one_cell_is_refused():
    with pytest.raises(LixError, match="max_pixels must be 0 or at least 1024 for model .*, got 100"):
        segmenter(camera_bundle(), max_pixels=100)
