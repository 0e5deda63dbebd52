"""Joint transforms: image, labels, X and camera stay those of one view."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from lix_core.camera import Camera
from lix_core.data.sample import Sample, collate
from lix_core.data.transforms import (
    Colour,
    LabelPlane,
    SampleTransform,
    ScaleCrop,
    XDropout,
    colour_map,
    eval_transform,
    resized_to,
    to_parts,
    train_transform,
)
from lix_core.errors import DataError
from lix_core.geometry.encodings import ENCODINGS, encode
from lix_core.geometry.normals import normals_from_depth

H, W = 48, 64
CAMERA = Camera.pinhole(W, H, 60.0, 55.0, 30.0, 25.5, baseline=0.0)
PLANE = np.array([0.1, -0.8, -0.59161])
"""Unit normal of the ground in `scene`, 2 m from the camera."""


def scene(kind: str = "depth", camera: Camera = CAMERA) -> Sample:
    """A slanted plane whose colour, label and X are all functions of the ray, so that every view of it can be checked."""
    distance = -2.0 / (camera.rays @ PLANE)
    depth = np.where((distance > 0) & (distance < 80), distance, np.nan).astype(np.float32)
    image = np.zeros((*camera.shape, 3), np.uint8)
    image[..., 0] = np.linspace(20, 230, camera.width)
    image[..., 1] = np.linspace(20, 230, camera.height)[:, None]
    labels = (np.arange(camera.width) // 8 + 16 * (np.arange(camera.height)[:, None] // 8)).astype(np.uint8)
    x, known = encode(kind, depth=depth, camera=camera, baseline=0.5)
    return Sample("a", image, labels, x, known, kind, camera)


def depth_of(sample: Sample) -> np.ndarray:
    return ENCODINGS[sample.x_kind].decode(sample.x, sample.known)


VIEWS = {
    "flip": [v2.RandomHorizontalFlip(1.0)],
    "jitter": [v2.ScaleJitter((H, W), (0.5, 2.0))],
    "resize": [v2.RandomResize(20, 90)],
    "shortest": [v2.RandomShortestSize([30, 60], max_size=70)],
    "crop": [v2.RandomCrop((33, 41))],
    "pad": [v2.Pad([3, 5, 7, 1])],
    "pad and crop": [v2.RandomCrop((60, 72), pad_if_needed=True)],
    "resized crop": [v2.RandomResizedCrop((30, 50))],
    "scale and crop": [ScaleCrop((40, 56), (0.5, 2.0))],
    "distorted": [ScaleCrop((40, 56), (0.5, 2.0), base=(30, 90))],
    "all": [v2.ScaleJitter((H, W), (0.7, 1.5)), v2.RandomCrop((40, 56), pad_if_needed=True), v2.RandomHorizontalFlip(0.5)],
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("seed", range(3))
def test_points_lie_on_the_same_plane_before_and_after(name, seed):
    """Depth decoded from the view, put back into space with the view's camera, lies on the scene's plane (mirrored where it is)."""
    sample = scene()
    view = SampleTransform(*VIEWS[name])(sample, seed)
    assert view.image.shape[:2] == view.labels.shape == view.known.shape == view.x.shape[1:] == view.camera.shape
    normal = PLANE * (-1 if is_mirrored(view) else 1, 1, 1)
    points = view.camera.backproject(depth_of(view))[view.known]
    # X takes the nearest pixel: up to half of a pixel, of the coarser grid, from the place where it is looked for.
    step = max(1.0, CAMERA.fx / view.camera.fx, CAMERA.fy / view.camera.fy, view.camera.fx / CAMERA.fx, view.camera.fy / CAMERA.fy)
    slack = 0.6 * step * (1 / view.camera.fx + 1 / view.camera.fy)
    assert len(points) > 100
    assert (np.abs(points @ normal + 2.0) <= slack * np.linalg.norm(points, axis=1)).all()


def is_mirrored(view: Sample) -> bool:
    """Whether red, which grows to the right in `scene`, falls where X is known."""
    rows, columns = np.nonzero(view.known)
    return np.corrcoef(columns, view.image[rows, columns, 0].astype(float))[0, 1] < 0


@pytest.mark.parametrize("name", VIEWS)
def test_image_labels_and_x_show_the_same_place(name):
    """The place in the scene that the image's colour tells, and the label there, and the depth there, are one."""
    sample = scene()
    view = SampleTransform(*VIEWS[name])(sample, 5)
    inside = view.labels != 255
    # The colours are linear in the columns and rows.
    column = (view.image[..., 0].astype(float) - 20) / 210 * (W - 1)
    row = (view.image[..., 1].astype(float) - 20) / 210 * (H - 1)
    tolerance = 1 + 0.7 * max(1, CAMERA.fx / view.camera.fx, CAMERA.fy / view.camera.fy)
    away = (np.abs(column % 8 - 4) < 4 - tolerance) & (np.abs(row % 8 - 4) < 4 - tolerance)
    expected = column // 8 + 16 * (row // 8)
    assert (inside & away).sum() > 30 and np.array_equal(view.labels[inside & away], expected[inside & away].astype(int))
    known = view.known & inside
    place = np.rint(row[known]).astype(int).clip(0, H - 1), np.rint(column[known]).astype(int).clip(0, W - 1)
    near = np.isfinite(depth_of(sample)[place])
    assert np.median(np.abs(np.log(depth_of(view)[known][near] / depth_of(sample)[place][near]))) < 0.06


def test_flip_mirrors_everything_and_the_x_of_normals_changes_its_sign():
    sample = scene("normals")
    view = SampleTransform(v2.RandomHorizontalFlip(1.0))(sample)
    assert np.array_equal(view.image, sample.image[:, ::-1]) and np.array_equal(view.labels, sample.labels[:, ::-1])
    assert np.array_equal(view.known, sample.known[:, ::-1]) and np.array_equal(view.x, ENCODINGS["normals"].flip(sample.x))
    assert np.array_equal(view.x[0], -sample.x[0, :, ::-1]) and np.array_equal(view.x[1:], sample.x[1:, :, ::-1])
    assert (view.camera.cx, view.camera.fx, view.camera.cy) == (W - 1 - CAMERA.cx, CAMERA.fx, CAMERA.cy)
    twice = SampleTransform(v2.RandomHorizontalFlip(1.0), v2.RandomHorizontalFlip(1.0))(sample)
    assert np.array_equal(twice.x, sample.x) and twice.camera == sample.camera
    assert np.array_equal(SampleTransform(v2.RandomHorizontalFlip(1.0))(scene()).x, scene().x[..., ::-1])


def test_normals_of_the_flipped_depth_are_the_flipped_normals():
    depth, normals = scene(), scene("normals")
    flip = SampleTransform(v2.RandomHorizontalFlip(1.0))
    mirrored = flip(depth)
    again = normals_from_depth(depth_of(mirrored), mirrored.camera)
    view = flip(normals)
    both = view.known & np.isfinite(again).all(2)
    assert both.mean() > 0.3 and np.abs(np.moveaxis(view.x, 0, 2)[both] - again[both]).max() < 0.02


def test_disparity_in_pixels_scales_with_the_picture():
    sample = scene("disparity")
    view = SampleTransform(v2.Resize((2 * H, 2 * W)))(sample)
    assert np.array_equal(view.known, np.kron(sample.known, np.ones((2, 2), bool)))
    doubled = np.kron(depth_of(sample), np.ones((2, 2)))
    assert np.allclose(depth_of(view), 2 * doubled, rtol=1e-5, equal_nan=True)
    assert view.camera.fx == 2 * CAMERA.fx and np.allclose(view.camera.p, CAMERA.scaled(2 * W, 2 * H).p)


@given(st.integers(5, 90), st.integers(5, 90))
def test_resizing_takes_the_pixel_under_each_centre_and_scales_the_camera_as_camera_scaled_does(height, width):
    sample = scene()
    view = SampleTransform(v2.Resize((height, width)))(sample)
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in ((height, H), (width, W)))
    for array, original in ((view.labels, sample.labels), (view.known, sample.known), (view.x[0], sample.x[0])):
        # Where a centre falls on the border of two pixels either is as near.
        exact = np.abs(array.astype(float) - original[np.ix_(rows, columns)].astype(float)) == 0
        border = [(np.arange(new) + 0.5) * old / new % 1 < 1e-4 for new, old in ((height, H), (width, W))]
        assert (exact | border[0][:, None] | border[1]).all()
    assert np.allclose(view.camera.p, CAMERA.scaled(width, height).p) and view.camera.shape == (height, width)


def test_the_camera_keeps_its_baseline_and_a_mirrored_one_has_it_to_the_other_side():
    p = (60.0, 0, 30.0, -24.0, 0, 55.0, 25.5, -11.0, 0, 0, 1, 0)
    sample = scene(camera=Camera(W, H, (60.0, 0, 30.0, 0, 55.0, 25.5, 0, 0, 1), p=p))
    for transform in (v2.Resize((30, 50)), v2.Pad([3, 5, 7, 1]), v2.RandomCrop((20, 30)), ScaleCrop((40, 56), (0.5, 2.0))):
        camera = SampleTransform(transform)(sample, 0).camera
        assert camera.baseline == pytest.approx(0.4) and camera.p[7] / camera.fy == pytest.approx(-0.2)
    camera = SampleTransform(v2.RandomHorizontalFlip(1.0))(sample).camera
    assert camera.baseline == pytest.approx(-0.4) and camera.p[7] == -11.0


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_knows_where_it_shows_the_frame_with_labels_and_without(name):
    sample = scene()
    bare = dataclasses.replace(sample, labels=None)
    for seed in range(3):
        view, same = (SampleTransform(*VIEWS[name])(given, seed) for given in (sample, bare))
        padded = view.labels == 255
        assert same.labels is None and (view.shown is None) == (same.shown is None) == (not padded.any())
        if padded.any():
            assert np.array_equal(view.shown, ~padded) and np.array_equal(same.shown, ~padded)
            again = SampleTransform(v2.RandomHorizontalFlip(1.0))(same)  # what is padded once stays so
            assert np.array_equal(again.shown, ~padded[:, ::-1])


def test_padding_is_ignored_and_unknown_whatever_fill_the_image_gets():
    sample = scene()
    view = SampleTransform(v2.Pad([2, 3, 4, 5], fill=9))(sample)
    inside = np.zeros(view.labels.shape, bool)
    inside[3 : 3 + H, 2 : 2 + W] = True
    assert (view.labels[~inside] == 255).all() and not view.known[~inside].any() and not view.x[:, ~inside].any()
    assert (view.image[~inside] == 9).all() and np.array_equal(view.labels[inside], sample.labels.ravel())
    assert (view.camera.cx, view.camera.cy) == (CAMERA.cx + 2, CAMERA.cy + 3)
    outside = SampleTransform(lambda parts: {key: VF.crop(part, -4, 50, 20, 30) for key, part in parts.items()})(sample)
    assert (outside.labels[:4] == 255).all() and (outside.labels[:, W - 50 :] == 255).all() and (outside.labels[4:, : W - 50] != 255).all()
    assert (outside.camera.cx, outside.camera.cy) == (CAMERA.cx - 50, CAMERA.cy + 4)


@given(st.integers(20, 200), st.integers(20, 200), st.integers(2, 99), st.one_of(st.none(), st.integers(100, 150)))
def test_sizes_are_those_that_torchvision_gives_its_own_images(height, width, size, largest):
    expected = VF.resize(torch.zeros(1, height, width, dtype=torch.uint8), [size], max_size=largest).shape[-2:]
    assert resized_to(height, width, [size], largest) == tuple(expected)


@pytest.mark.parametrize("transform", [v2.RandomRotation(10), v2.RandomAffine(10), v2.RandomPerspective(p=1.0), v2.CenterCrop(20)])
def test_what_is_not_defined_for_x_is_refused_by_name(transform):
    with pytest.raises(DataError, match="is not defined for XPlanes: take it out of the transforms"):
        SampleTransform(transform)(scene())
    with pytest.raises(DataError, match="is not defined for Pinhole: take it out of the transforms"):
        SampleTransform(transform)(dataclasses.replace(scene(), x=None, known=None, x_kind=""))


# Random views.


@pytest.mark.parametrize("source", [(343, 573), (192, 640), (40, 50)])
def test_a_training_view_has_the_size_of_the_crop_whatever_the_source(source):
    camera = Camera.pinhole(source[1], source[0], 100.0)
    transform = train_transform((96, 160), x_dropout=0.3, x_holes=0.5)
    for seed in range(8):
        view = transform(scene("normals", camera), seed)
        assert view.image.shape == (96, 160, 3) and view.image.dtype == np.uint8 and view.labels.dtype == np.uint8
        assert view.x.shape == (3, 96, 160) and view.x.dtype == np.float32 and view.known.dtype == np.bool_
        assert not view.x[:, ~view.known].any()
        lengths = np.linalg.norm(view.x, axis=0)[view.known]
        assert np.allclose(lengths, 1, atol=1e-3)


def test_the_scale_of_a_view_is_within_its_limits_and_counts_from_the_base():
    sample = scene()
    for base, unit in ((None, (1.0, 1.0)), ((2 * H, W // 2), (0.5, 2.0))):
        cameras = [SampleTransform(ScaleCrop((32, 32), (0.8, 1.6), base))(sample, seed).camera for seed in range(60)]
        x = np.array([camera.fx / CAMERA.fx / unit[0] for camera in cameras])
        y = np.array([camera.fy / CAMERA.fy / unit[1] for camera in cameras])
        for factors in (x, y):
            assert factors.min() > 0.76 and factors.max() < 1.68 and factors.min() < 0.9 and factors.max() > 1.5
        assert np.corrcoef(x, y)[0, 1] > 0.98
    with pytest.raises(DataError, match=r"scale needs limits above 0, the lower one first, got \(2.0, 0.5\)"):
        train_transform((8, 8), scale=(2.0, 0.5))


def test_cutting_first_shows_what_resizing_all_of_the_picture_first_would():
    sample = scene()
    parts = to_parts(sample)
    view = ScaleCrop((40, 40), (1.3, 1.3))({**parts})
    fx, cx, _, _ = view["camera"][0].tolist()
    left = round((CAMERA.cx + 0.5) - (cx + 0.5) / (fx / CAMERA.fx))
    assert fx / CAMERA.fx == pytest.approx(1.3, abs=0.03)
    red = view["image"][0, 20].float().numpy()
    columns = (np.arange(40) + 0.5) / (fx / CAMERA.fx) - 0.5 + left
    assert np.abs(red - (20 + 210 * columns / (W - 1)))[1:-1].max() < 3


def test_the_window_may_be_anywhere_in_the_picture_and_a_small_picture_anywhere_in_the_window():
    sample = scene()
    for size, most in (((32, 40), (W - 40, H - 32)), ((60, 80), (W - 80, H - 60))):
        cameras = [SampleTransform(ScaleCrop(size))(sample, seed).camera for seed in range(300)]
        for moved, far in (([CAMERA.cx - c.cx for c in cameras], most[0]), ([CAMERA.cy - c.cy for c in cameras], most[1])):
            assert {min(moved), max(moved)} == {0, far} and np.mean(moved) == pytest.approx(far / 2, abs=1.5)


def test_a_view_that_shrinks_shows_the_mean_of_its_pixels():
    sample = scene()
    sample.image[:] = np.where(np.arange(W) % 4 == 0, 240, 0)[:, None]
    view = SampleTransform(ScaleCrop((12, 16), (0.25, 0.25)))(sample, 0)
    assert view.image[:, 1:-1].min() >= 55 and view.image[:, 1:-1].max() <= 65


def test_a_training_view_is_made_with_the_numbers_that_were_given():
    sample = scene("normals")
    view = train_transform((H, W), scale=(1.0, 1.0), flip=1.0, colour=0.0, x_dropout=1.0)(sample, 0)
    assert np.array_equal(view.image, sample.image[:, ::-1]) and not view.known.any()
    view = train_transform((H, W), scale=(1.0, 1.0), flip=0.0, colour=0.0, x_holes=1.0)(sample, 0)
    assert np.array_equal(view.image, sample.image) and 0 < view.known.sum() < sample.known.sum()


def test_the_same_seed_gives_the_same_view_and_leaves_the_global_generator_alone():
    transform = train_transform((32, 48), x_dropout=0.2, x_holes=0.5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    sample = scene("normals")
    views = [transform(sample, seed) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    views.append(transform(sample))
    for other in (1, 3):
        for part in ("image", "labels", "x", "known"):
            assert np.array_equal(getattr(views[0], part), getattr(views[other], part))
        assert views[0].camera == views[other].camera
    assert not np.array_equal(views[0].labels, views[2].labels)


def test_a_transform_does_not_change_the_sample_it_is_given():
    sample = scene("normals")
    original = copy.deepcopy(sample)
    transform = train_transform((H, W), scale=(1.0, 1.0), x_dropout=0.5, x_holes=1.0)
    for seed in range(10):
        transform(sample, seed)
    for part in ("image", "labels", "x", "known"):
        assert np.array_equal(getattr(sample, part), getattr(original, part))


def test_colour_changes_the_image_alone():
    sample = scene()
    changed = SampleTransform(Colour(1.0, p=1.0, blur=1.0))(sample, 0)
    assert not np.array_equal(changed.image, sample.image)
    assert np.array_equal(changed.labels, sample.labels) and np.array_equal(changed.x, sample.x) and changed.camera == sample.camera
    assert np.array_equal(SampleTransform(Colour(0.0))(sample, 0).image, sample.image)
    grey = SampleTransform(Colour(1.0, p=0.0, grey=1.0, blur=0.0))(sample, 0).image.astype(int)
    assert np.abs(grey - (sample.image @ [0.299, 0.587, 0.114])[..., None]).max() <= 1
    stripes = copy.deepcopy(sample)
    stripes.image[::2], stripes.image[1::2] = 0, 200
    spread = [SampleTransform(Colour(1.0, p=0.0, grey=0.0, blur=1.0))(stripes, seed).image[2:-2].std() for seed in range(20)]
    assert min(spread) < 20 < 90 < max(spread) <= 100  # none of the colours changes, and each blur is another one


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_colours_change_within_their_limits_to_either_side(strength):
    """A picture of one colour keeps what its contrast is about: grey changes with brightness alone, a hue turns with hue alone."""
    sample, colour = scene(), Colour(strength, p=1.0, grey=0.0, blur=0.0)

    def changed(*rgb: int) -> np.ndarray:
        sample.image[:] = rgb
        return np.array([SampleTransform(colour)(sample, seed).image[0, 0] for seed in range(200)], float)

    brightness = changed(100, 100, 100) / 100 - 1
    assert np.ptp(brightness, axis=1).max() < 0.02 and np.abs(brightness).max() < 0.4 * strength + 0.02
    assert brightness.min() < -0.35 * strength and brightness.max() > 0.35 * strength
    in_phase, quadrature = np.array([[0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]) @ changed(140, 90, 70).T
    start = np.arctan2(*(np.array([[0.211, -0.523, 0.312], [0.596, -0.274, -0.322]]) @ [140, 90, 70]))
    turns = (np.arctan2(quadrature, in_phase) - start) / (2 * np.pi)
    assert np.abs(turns).max() < 0.04 * strength + 0.012 and turns.min() < -0.03 * strength and turns.max() > 0.03 * strength


@settings(max_examples=25)
@given(st.floats(0.6, 1.4), st.floats(0.6, 1.4), st.floats(0.5, 1.5), st.integers(0, 2**31))
def test_colours_change_as_torchvisions_do_where_nothing_is_clipped(brightness, contrast, saturation, seed):
    pixels = np.random.default_rng(seed).integers(90, 130, (6, 5, 3)).astype(np.float32)
    mean = pixels.mean((0, 1))
    matrix = colour_map(mean, brightness, contrast, saturation, 0.0)
    ours = pixels @ matrix[:, :3].T + matrix[:, 3]
    theirs = torch.from_numpy(pixels / 255).permute(2, 0, 1)
    theirs = VF.adjust_contrast(VF.adjust_saturation(VF.adjust_brightness(theirs, brightness), saturation), contrast)
    assert np.abs(ours - 255 * theirs.permute(1, 2, 0).numpy()).max() < 0.5


def test_a_turned_hue_keeps_luma_and_comes_round():
    red = np.array([200.0, 50.0, 80.0])
    third = colour_map((0, 0, 0), 1, 1, 1, 1 / 3)
    turned = third[:, :3] @ red
    assert turned @ [0.299, 0.587, 0.114] == pytest.approx(red @ [0.299, 0.587, 0.114], abs=0.5) and np.abs(turned - red).max() > 30
    assert np.allclose(third[:, :3] @ third[:, :3] @ turned, red, atol=1e-6) and np.allclose(
        colour_map((9, 9, 9), 1, 1, 1, 0)[:, :3], np.eye(3)
    )


def test_dropped_x_is_gone_or_has_holes_as_often_as_asked():
    sample = scene("normals")
    known = sample.known.sum()
    left = [SampleTransform(XDropout(0.3, 0.5))(sample, seed).known.sum() for seed in range(300)]
    gone, torn = np.mean([n == 0 for n in left]), np.mean([0 < n < known for n in left])
    assert gone == pytest.approx(0.3, abs=0.08) and torn == pytest.approx(0.35, abs=0.06)
    view = SampleTransform(XDropout(1.0))(sample, 0)
    assert not view.x.any() and not view.known.any() and view.x_kind == "normals"
    holes = SampleTransform(XDropout(0.0, 1.0))(sample, 1)
    assert np.array_equal(holes.x, np.where(holes.known, sample.x, 0)) and (holes.known <= sample.known).all()


def test_holes_are_several_and_up_to_a_third_of_the_picture_wide():
    sample = scene()
    sample.known[:] = True
    torn = np.array([~SampleTransform(XDropout(0.0, 1.0))(sample, seed).known for seed in range(300)])
    # 4.5 holes of a mean share of 1/36, some of them one over the other.
    assert torn.mean() == pytest.approx(0.115, abs=0.02) and torn.mean((1, 2)).max() > 0.25
    single = [t for t in torn if t[np.ix_(t.any(1), t.any(0))].all()]
    assert len(single) > 20 and max(t.any(1).sum() for t in single) <= H // 3 and max(t.any(0).sum() for t in single) <= W // 3


def test_samples_without_labels_x_or_camera_are_transformed_too():
    bare = Sample("a", scene().image, None)
    view = train_transform((32, 32), x_dropout=0.5, x_holes=0.5)(bare, 0)
    assert view.image.shape == (32, 32, 3) and (view.labels, view.x, view.known, view.x_kind, view.camera) == (None, None, None, "", None)
    batch = collate([view, train_transform((32, 32))(scene("normals"), 1)])
    assert batch.x.shape == (2, 3, 32, 32) and batch.labelled.tolist() == [False, True]


# Frames to be scored.


def test_frames_are_scored_at_the_size_asked_for_and_padded_to_the_stride_at_the_right_and_bottom():
    sample = scene()
    same = eval_transform()(sample)
    assert np.array_equal(same.image, sample.image) and np.array_equal(same.x, sample.x) and same.camera == sample.camera
    view = eval_transform((30, 50), multiple_of=32)(sample)
    assert view.image.shape == (32, 64, 3) and (view.labels[30:] == 255).all() and (view.labels[:, 50:] == 255).all()
    assert (view.labels[:30, :50] != 255).all() and not view.known[30:].any() and view.camera.fx == pytest.approx(CAMERA.fx * 50 / W)
    assert (view.camera.cx + 0.5) == pytest.approx((CAMERA.cx + 0.5) * 50 / W)
    expected = VF.resize(tv_tensors.Image(torch.from_numpy(sample.image).permute(2, 0, 1)), [30, 50], antialias=True)
    assert np.array_equal(view.image[:30, :50], expected.permute(1, 2, 0).numpy())


def test_labels_do_not_shift_against_the_image_when_they_shrink():
    """v2's Mask takes pixel 3i of three; the middle one is 3i + 1."""
    labels = LabelPlane(torch.arange(9, dtype=torch.uint8).expand(3, 9))
    assert VF.resize(labels, [1, 3]).tolist() == [[1, 4, 7]]
