"""Pseudo-labels: averaged views, thresholds and the ground plane, on scenes whose truth is known."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from bundles import COLOURS, X, blocks, camera_bundle, colour_logits, logits_bundle, random_image, random_x, x_logits
from extracted import CAMERA, picture, write_extraction
from lix_core.bags import pseudo
from lix_core.bags.pseudo import (
    FLAT,
    KEPT,
    LIES,
    STANDING,
    STANDS,
    UNSURE,
    Crew,
    PseudoSettings,
    begin_teacher,
    make_pseudo_labels,
    roles_of,
    thresholds_of,
)
from lix_core.bags.teacher import Teacher, averaged
from lix_core.camera import Camera
from lix_core.cli.label import label
from lix_core.data.registry import DATASETS
from lix_core.errors import DataError, ImageError, LabelError, LixError, SourceError
from lix_core.files import read_mask
from lix_core.geometry.encodings import encode
from lix_core.geometry.ground import Ground, fit_ground
from lix_core.labels import STREET, Label, LabelMapping, LabelSet
from lix_core.runtime.backends import BackendOptions
from lix_core.runtime.bundle import Bundle, SizePolicy, XSpec
from lix_core.runtime.segmenter import Segmenter
from trees import png_of_size

SCENE = LabelSet("scene", tuple(Label(n, c.color) for n, c in zip(("tree", "car", "sky", "road", "sign"), COLOURS.labels)))
TREE, CAR, SKY, ROAD, SIGN = range(5)
HEIGHT = 1.5
"""Of the camera above the floor [m]."""
SURE = PseudoSettings(scales=(1.0,), flip=False, confidence=0.0)
STAMPS = range(10**18, 10**18 + 4 * 10**8, 10**8)


def segmenter(bundle) -> Segmenter:
    return Segmenter(bundle, options=BackendOptions(threads=1))


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(0))
    return odds / odds.sum(0)


def plane_depth(camera: Camera = CAMERA, height: float = HEIGHT, pitch: float = 0.0, roll: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Depth [m] of an endless plane beneath a camera, and its unit normal, which points down."""
    pitch, roll = np.radians([pitch, roll])
    down = np.array([np.sin(roll) * np.cos(pitch), np.cos(roll) * np.cos(pitch), np.sin(pitch)])
    sink = camera.rays.astype(np.float64) @ down
    with np.errstate(divide="ignore"):
        return np.where(sink > 1e-6, height / sink, np.nan).astype(np.float32), down


def scene(wall: float = 8.0) -> dict[str, np.ndarray]:
    """A floor with a wall across it at so many metres; road on both, but for a car in each: (labels are what the picture's colours say.)"""
    floor, _ = plane_depth()
    depth = np.fmin(floor, np.float32(wall))
    ids = np.full(depth.shape, ROAD, np.uint8)
    ids[52:62, 10:40] = CAR  # on the floor
    ids[33:40, 60:80] = CAR  # on the wall
    ids[:20] = SKY
    image = np.array([label.color for label in COLOURS.labels], np.uint8)[ids]
    return {"image": image, "depth": depth, "labels": ids}


@pytest.fixture
def bundle(tmp_path):
    return camera_bundle(labels=SCENE).save(tmp_path / "scene.lix")


@pytest.fixture
def extraction(tmp_path):
    return write_extraction(tmp_path / "ext", {"drive": {stamp: scene(8.0 + i) for i, stamp in enumerate(STAMPS)}})


def pseudo_labels(extraction) -> dict[str, np.ndarray]:
    return {frame.name: read_mask(extraction.root / "pseudo" / f"{frame.name}.png") for frame in extraction.frames}


def by_image_and_depth(frame) -> np.ndarray:
    """(H, W) ids: what a tiny model with X of kind inverse_depth says of a frame that shows `scene`."""
    units = cv2.imread(str(frame.depth), cv2.IMREAD_UNCHANGED)
    x, known = encode("inverse_depth", depth=np.where(units > 0, units / np.float32(256), np.nan).astype(np.float32))
    return (colour_logits(scene()["image"]) + x_logits(x, known)).argmax(0)


# The model's probabilities.


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_probabilities_are_the_softmax_of_the_logits_at_each_pixel(height, width, seed):
    image = random_image(height, width, seed)
    odds = PLAIN.probabilities(image)
    assert odds.dtype == np.float32 and np.allclose(odds, softmax(colour_logits(image)), atol=1e-5)


@pytest.mark.parametrize("kind", ["camera", "logits"])
def test_the_most_probable_class_is_the_mask_where_nothing_is_scaled(kind):
    model = segmenter(camera_bundle(stride=4) if kind == "camera" else logits_bundle(stride=4))
    image = random_image(61, 83)
    odds = model.probabilities(image[..., ::-1], "bgr")
    mask = model.segment(image).mask
    # A graph that scales its logits itself may round a tie the other way.
    chosen = np.take_along_axis(odds, mask[None].astype(np.int64), 0)[0]
    assert np.allclose(chosen, odds.max(0), atol=1e-5) and (odds.argmax(0) == mask).mean() > 0.99
    assert np.allclose(odds.sum(0), 1, atol=1e-5)


def test_probabilities_see_x():
    image, (x, known) = random_image(40, 50), random_x(40, 50)
    odds = segmenter(camera_bundle(x=X)).probabilities(image, "rgb", x, known)
    assert np.allclose(odds, softmax(colour_logits(image) + x_logits(x, known)), atol=1e-5)


def test_probabilities_of_a_scaled_image_come_back_at_its_size():
    ids = np.arange(40).reshape(5, 8) % len(COLOURS)
    odds = segmenter(camera_bundle(size=SizePolicy(max_pixels=80 * 128))).probabilities(blocks(ids, 32))
    assert odds.shape == (5, 160, 256) and np.array_equal(odds.argmax(0)[16::32, 16::32], ids)


def test_probabilities_of_huge_logits_do_not_overflow():
    model = segmenter(camera_bundle())
    logits = np.float32([-1000, 1000, 998, 0, 0])[None, :, None, None] * np.ones((1, 5, 32, 32), np.float32)
    model._backend = SimpleNamespace(run=lambda *_: (logits,))
    assert np.allclose(model.probabilities(random_image(32, 32))[:, 5, 5], [0, 0.8808, 0.1192, 0, 0], atol=1e-4)


PLAIN = segmenter(camera_bundle())
NORMALS = segmenter(camera_bundle(x=XSpec("normals", 3)))


def test_one_view_at_scale_one_is_what_the_model_says():
    image = random_image(40, 50)
    assert np.array_equal(averaged(PLAIN, image, flip=False), PLAIN.probabilities(image))


def test_a_view_is_mirrored_with_its_normals():
    image = random_image(64, 96)
    x, known = encode("normals", depth=plane_depth(roll=8)[0], camera=CAMERA)
    assert np.abs(x[0]).max() > 0.1
    mirrored_x = x[..., ::-1] * np.float32([-1, 1, 1])[:, None, None]
    there = averaged(NORMALS, image, x, known, flip=True)
    mirrored = averaged(NORMALS, image[:, ::-1].copy(), mirrored_x, known[:, ::-1].copy(), flip=True)
    assert np.allclose(there, mirrored[..., ::-1], atol=1e-6)
    single = NORMALS.probabilities(image, "rgb", x, known)
    other = NORMALS.probabilities(image[:, ::-1].copy(), "rgb", mirrored_x, known[:, ::-1].copy())[..., ::-1]
    assert np.allclose(there, (single + other) / 2, atol=1e-6) and not np.allclose(single, other, atol=1e-3)


def test_scales_are_averaged_and_large_squares_stay_what_they_are():
    ids = np.arange(24).reshape(4, 6) % len(COLOURS)
    odds = averaged(PLAIN, blocks(ids, 16), scales=(0.5, 1.0, 1.5))
    assert odds.shape == (5, 64, 96) and np.allclose(odds.sum(0), 1, atol=1e-5)
    assert np.array_equal(odds.argmax(0)[8::16, 8::16], ids)
    each = [averaged(PLAIN, blocks(ids, 16), scales=(scale,)) for scale in (0.5, 1.0, 1.5)]
    assert np.allclose(odds, sum(each) / 3, atol=1e-6)


def test_x_of_a_scaled_view_is_never_mixed_between_pixels():
    model, (x, known) = segmenter(camera_bundle(x=X)), random_x(40, 50)
    seen, probabilities = [], model.probabilities
    model.probabilities = lambda image, order, x, known: seen.append(x[:, known]) or probabilities(image, order, x, known)
    averaged(model, random_image(40, 50), x, known, scales=(0.7, 1.3), flip=False)
    assert len(seen) == 2 and all(np.isin(values, x[:, known]).all() for values in seen)


def test_there_is_room_for_the_largest_scale():
    bundle = camera_bundle(size=SizePolicy(max_pixels=2500))
    for largest, side in ((0.5, 50), (1.0, 50), (2.0, 100)):
        asked = Teacher({}, bundle, scales=(0.5, largest)).segmenter
        assert asked.segment(random_image(120, 120)).coarse_confidence.shape == (side, side)


def test_x_of_an_unknown_kind_cannot_be_mirrored():
    model, (x, known) = segmenter(camera_bundle(x=X)), random_x(40, 50)
    with pytest.raises(ImageError, match="does not know how to mirror"):
        averaged(model, random_image(40, 50), x, known)


# Thresholds.


def test_a_class_that_is_seldom_sure_keeps_its_surest_share_above_the_floor():
    sure = np.zeros((4, 256), np.int64)
    sure[0, 250] = 100  # sure
    sure[1, [100, 160, 200]] = 50, 25, 25  # half at 160 and above
    sure[2, [60, 100]] = 30, 10  # all of it beneath the floor
    assert thresholds_of(sure, PseudoSettings()).tolist() == [230] * 4
    assert thresholds_of(sure, PseudoSettings(share=0.5)).tolist()[:3] == [230, 160, 128]
    assert thresholds_of(sure, PseudoSettings(share=0.2)).tolist()[:3] == [230, 200, 128]


@given(st.lists(st.integers(0, 255), min_size=1, max_size=60), st.floats(0.01, 1))
def test_the_share_of_a_class_is_kept_and_no_higher_threshold_would(confidences, share):
    sure = np.bincount(confidences, minlength=256)[None]
    settings = PseudoSettings(share=share, floor=0.0, confidence=1.0)
    (threshold,) = thresholds_of(sure, settings)
    kept = sum(c >= threshold for c in confidences)
    assert kept >= share * len(confidences)
    assert threshold == 255 or sum(c > threshold for c in confidences) < share * len(confidences)


@pytest.mark.parametrize("wrong", [{"confidence": 1.5}, {"share": -1}, {"scales": ()}, {"scales": (9,)}, {"lying": float("nan")}])
def test_settings_out_of_range_are_told(wrong):
    with pytest.raises(LabelError, match=next(iter(wrong))):
        PseudoSettings(**wrong)


# The ground plane.


@given(st.floats(0.4, 3), st.floats(-10, 10), st.floats(-10, 10), st.integers(0, 2**32 - 1))
def test_the_plane_is_found_among_things_and_noise(height, pitch, roll, seed):
    depth, down = plane_depth(height=height, pitch=pitch, roll=roll)
    generator = np.random.default_rng(seed)
    depth *= 1 + 0.003 * generator.standard_normal(depth.shape, np.float32)
    depth[:, 30:60] = np.fmin(depth[:, 30:60], 6.0)  # a wall
    depth[generator.random(depth.shape) < 0.2] = np.nan
    ground = fit_ground(depth, CAMERA)
    assert np.degrees(np.arccos(min(1.0, ground.down @ down))) < 1.5 and abs(ground.height - height) < 0.03 * height + 0.02


def test_the_same_depth_gives_the_same_plane():
    depth = scene()["depth"]
    first, second = fit_ground(depth, CAMERA), fit_ground(depth.copy(), CAMERA)
    assert np.array_equal(first.down, second.down) and first.height == second.height
    assert first.down @ [0, 1, 0] > 0.9999 and abs(first.height - HEIGHT) < 0.01


@pytest.mark.parametrize("what", ["a wall", "nothing", "a ceiling", "too few points"])
def test_where_there_is_no_ground_there_is_no_plane(what):
    depth = np.full(CAMERA.shape, np.nan, np.float32)
    if what == "a wall":
        depth[:] = 5.0
    elif what == "a ceiling":
        depth = plane_depth()[0][::-1].copy()
    elif what == "too few points":
        depth[60:, :20] = plane_depth()[0][60:, :20]
    assert fit_ground(depth, CAMERA) is None


def test_what_most_of_is_seen_is_not_the_ground_where_there_is_more_beneath_it():
    ground, _ = plane_depth()
    deck, _ = plane_depth(height=0.8)
    depth = np.where(np.arange(CAMERA.width) < 0.54 * CAMERA.width, deck, ground)
    assert fit_ground(depth, CAMERA).height == pytest.approx(HEIGHT, abs=0.02)


def test_height_and_elevation_are_those_of_points_over_the_plane():
    ground = Ground(np.array([0.0, 1.0, 0.0]), HEIGHT, 1.0)
    depth = np.full(CAMERA.shape, 10.0, np.float32)
    above = ground.above(depth, CAMERA)
    assert np.allclose(above[:, 5], HEIGHT - (np.arange(64) - 31.5) / 60 * 10, atol=1e-5)
    column = ground.elevation(CAMERA)[:, 48]
    assert np.allclose(column, np.degrees(np.arctan2(31.5 - np.arange(64), 60)), atol=0.01)


# What geometry says against labels.


def test_a_car_painted_on_the_floor_and_a_road_up_the_wall_are_dropped(extraction, bundle):
    report = make_pseudo_labels(extraction, bundle, SURE)
    truth = scene()["labels"]
    kept = pseudo_labels(extraction)[f"drive/{STAMPS[0]}"]
    floor = plane_depth()[0] < 8
    on_floor, on_wall = (truth == CAR) & floor, (truth == CAR) & ~floor
    assert (kept[on_floor] == 255).mean() > 0.9 and (kept[on_wall] == CAR).all()
    high = ~floor & (truth == ROAD) & ((31.5 - np.arange(64)) / 60 * 8 + HEIGHT > 0.6)[:, None]
    assert (kept[high] == 255).mean() > 0.9 and (kept[floor & (truth == ROAD)] == ROAD).all() and (kept[:20] == SKY).all()
    assert ((kept == truth) | (kept == 255)).all()
    assert report.frames == report.with_depth == report.ground == 4 and not report.left_out
    assert report.counts[CAR, LIES] > 0 and report.counts[ROAD, STANDS] > 0 and not report.counts[:, UNSURE].any()
    assert report.counts[CAR, STANDS] == report.counts[ROAD, LIES] == report.counts[SKY, LIES] == 0


def test_without_the_check_all_that_is_sure_is_kept(extraction, bundle):
    make_pseudo_labels(extraction, bundle, PseudoSettings(scales=(1.0,), flip=False, confidence=0.0, geometry=False))
    assert all(np.array_equal(mask, scene()["labels"]) for mask in pseudo_labels(extraction).values())


def test_the_threshold_that_is_reported_is_the_share_that_was_asked_for(extraction, bundle):
    report = make_pseudo_labels(extraction, bundle, PseudoSettings(scales=(1.0,), flip=False, confidence=0.9, geometry=False))
    assert report.thresholds == pytest.approx(np.full(5, 230 / 255)) and report.rows()[0]["threshold"] == 0.902


def test_road_above_the_horizon_is_dropped_without_any_depth_there():
    depth = plane_depth()[0]
    ground = Ground(np.array([0.0, 1.0, 0.0]), HEIGHT, 1.0)
    mask = np.full(CAMERA.shape, ROAD, np.uint8)
    reasons = pseudo.contradicted(mask, depth, CAMERA, ground, roles_of(SCENE, SURE), SURE)
    rows = 31.5 - np.arange(64) > 60 * np.tan(np.radians(5.0))
    # The angle over the horizon is a little less towards the sides.
    assert (reasons[:, 40:56] == np.where(rows, STANDS, KEPT)[:, None]).all()


def test_edges_in_height_are_left_alone():
    data = scene()
    ground = Ground(np.array([0.0, 1.0, 0.0]), HEIGHT, 1.0)
    car = np.full(CAMERA.shape, CAR, np.uint8)
    lies = [
        pseudo.contradicted(car, data["depth"], CAMERA, ground, roles_of(SCENE, SURE), PseudoSettings(margin=margin)) == LIES
        for margin in (0, 3)
    ]
    assert np.array_equal(cv2.erode(lies[0].astype(np.uint8), np.ones((7, 7)), borderType=cv2.BORDER_REPLICATE), lies[1])
    assert lies[1].any() and lies[1].sum() < lies[0].sum()


LEVEL = Ground(np.array([0.0, 1.0, 0.0]), HEIGHT, 1.0)


def at_height(height: float) -> np.ndarray:
    """Depth at which each pixel beneath the horizon is so high over LEVEL [m]."""
    sink = CAMERA.rays[..., 1]
    return np.where(sink > 0, (HEIGHT - height) / np.maximum(sink, 1e-6), np.nan).astype(np.float32)


def test_the_farther_the_higher_a_road_must_stand_and_beyond_the_farthest_nothing_is_said():
    settings = PseudoSettings(above=0.4, growth=0.01, lying=0.1, farthest=20.0, margin=0)
    depth, roles = at_height(0.5), roles_of(SCENE, settings)
    found = pseudo.contradicted(np.full(CAMERA.shape, ROAD, np.uint8), depth, CAMERA, LEVEL, roles, settings)
    beneath = CAMERA.rays[..., 1] > 0
    assert np.array_equal(found[beneath] == STANDS, depth[beneath] < 10) and (depth[beneath] > 10).any()
    depth = at_height(0.0)
    found = pseudo.contradicted(np.full(CAMERA.shape, CAR, np.uint8), depth, CAMERA, LEVEL, roles, settings)
    assert np.array_equal(found[beneath] == LIES, depth[beneath] < 20) and (depth[beneath] > 20).any()


def test_what_is_beneath_the_plane_does_not_lie_on_it():
    settings, cars = PseudoSettings(margin=0), np.full(CAMERA.shape, CAR, np.uint8)
    for height, lies in ((-0.05, True), (-0.15, False), (0.05, True), (0.15, False)):
        found = pseudo.contradicted(cars, at_height(height), CAMERA, LEVEL, roles_of(SCENE, settings), settings)
        assert (found[40:] == LIES).all() == lies == (found[40:] == LIES).any()


def test_unknown_depth_beside_it_speaks_for_nothing():
    settings, depth = PseudoSettings(margin=2), at_height(0.0)
    depth[50, 40] = np.nan
    found = pseudo.contradicted(np.full(CAMERA.shape, CAR, np.uint8), depth, CAMERA, LEVEL, roles_of(SCENE, settings), settings)
    around = found[45:56, 35:46] == LIES
    assert around.sum() == around.size - 1 and found[50, 40] == KEPT


ROLES = {
    "street": ("road, pavement", "sky, building, pole, sign, fence, car, pedestrian, cyclist", "tree"),
    "cityscapes": (
        "road, sidewalk, terrain",
        "building, wall, fence, pole, traffic light, traffic sign, sky, person, rider, car, truck, bus, train, motorcycle, bicycle",
        "vegetation",
    ),
    "nuimages": (
        "driveable_surface",
        "car, truck, bus, trailer, construction_vehicle, bicycle, motorcycle, pedestrian, traffic_cone, barrier",
        "other",
    ),
    "vkitti2": (
        "Terrain, Road",
        "Sky, Building, GuardRail, TrafficSign, TrafficLight, Pole, Truck, Car, Van",
        "Tree, Vegetation, Misc",
    ),
    "pothole": ("road, pothole", "", ""),
}
"""Of each label set of lix's own: classes that are flat, that stand, and neither."""


def test_each_class_of_the_data_sets_has_the_role_that_is_wanted():
    modules = [import_module(name) for name in ("lix_core.labels", *(module for module, _ in DATASETS.values()))]
    found = {value.name: value for module in modules for value in vars(module).values() if isinstance(value, LabelSet)}
    named = {}
    for name, labels in found.items():
        roles = roles_of(labels, PseudoSettings())
        named[name] = tuple(", ".join(labels.names[i] for i in np.flatnonzero(roles[: len(labels)] == r)) for r in (STANDS, LIES, KEPT))
        assert (roles[len(labels) :] == KEPT).all()
    assert named == ROLES


def test_roles_may_be_given():
    assert not set(FLAT) & set(STANDING)
    own = roles_of(STREET, PseudoSettings(flat=("Tree",), standing=("car",)))
    assert own[5] == STANDS and own[8] == LIES and (own != KEPT).sum() == 2
    with pytest.raises(LabelError, match="no class 'cra' .* did you mean 'car'"):
        roles_of(STREET, PseudoSettings(standing=("cra",)))
    with pytest.raises(LabelError, match="given as flat and as standing"):
        roles_of(STREET, PseudoSettings(standing=("road",)))


# Of one frame.


def crew_of(root, odds: np.ndarray, lut: np.ndarray, settings: PseudoSettings) -> Crew:
    """With a teacher that gives each frame the same probabilities (C, H, W)."""
    teacher = SimpleNamespace(probabilities=lambda frame: odds, calibrations={"drive": SimpleNamespace(camera=CAMERA)})
    return Crew(root, teacher, settings, SCENE, lut, roles_of(SCENE, settings))


def test_a_pixel_just_as_sure_as_it_must_be_is_kept_and_one_of_no_class_is_neither(tmp_path):
    odds = np.zeros((5, 1, 4), np.float32)
    odds[[TREE, TREE, CAR, SIGN], 0, range(4)] = 0.4, 0.6, 1.0, 1.0
    lut = np.full(256, 255, np.uint8)
    lut[:4] = range(4)
    crew, frame = crew_of(tmp_path, odds, lut, PseudoSettings(geometry=False)), SimpleNamespace(bag="drive", stamp=1)
    for _ in range(2):  # asked, then read from the file
        mask, confidence = crew.said(frame)
        assert mask.tolist() == [[TREE, TREE, CAR, SIGN]] and confidence.tolist() == [[102, 153, 255, 255]]
    for threshold, first_two in ((102, [KEPT, KEPT]), (103, [UNSURE, KEPT]), (153, [UNSURE, KEPT]), (154, [UNSURE, UNSURE])):
        ids, reasons, has_ground = crew.judge(frame, np.full(5, threshold))
        assert ids.tolist() == [[TREE, TREE, CAR, 255]] and reasons.tolist() == [[*first_two, KEPT, 255]] and not has_ground


def test_the_ground_is_looked_for_as_far_as_labels_are_checked(tmp_path, monkeypatch):
    asked, depth = [], np.ones(CAMERA.shape, np.float32)
    monkeypatch.setattr(pseudo, "depth_of", lambda *_: depth)
    monkeypatch.setattr(pseudo, "fit_ground", lambda *how: asked.append(how))
    crew = crew_of(tmp_path, np.ones((5, *CAMERA.shape), np.float32), np.arange(256, dtype=np.uint8), PseudoSettings(farthest=17.0))
    assert not crew.judge(SimpleNamespace(bag="drive", stamp=1), np.zeros(5))[2]
    assert asked == [(depth, CAMERA, 17.0)]


# The whole.


def test_what_is_written_says_how_it_was_made_and_what_was_kept(extraction, bundle):
    settings = PseudoSettings(scales=(0.5, 1.0), confidence=0.7)
    report = make_pseudo_labels(extraction, bundle, settings, sheet_rows=2)
    folder = extraction.root / "pseudo"
    said = json.loads((folder / "pseudo.json").read_text())
    assert said["frames"] == 4 and said["model"]["name"] == "tiny-camera" and said["settings"]["confidence"] == 0.7
    assert LabelSet.from_dict(json.loads((folder / "labels.json").read_text())) == SCENE
    assert report.counts.sum() == 4 * 64 * 96
    masks = pseudo_labels(extraction).values()
    counts = sum(np.bincount(mask.ravel(), minlength=256) for mask in masks)
    assert counts[:5].tolist() == report.counts[:, KEPT].tolist() and counts[255] == report.counts[:, UNSURE:].sum()
    row = said["classes"][ROAD]
    assert row["class"] == "road" and row["pixels"] == report.counts[ROAD].sum()
    assert row["kept"] == pytest.approx(report.counts[ROAD, KEPT] / report.counts[ROAD].sum(), abs=1e-4)
    sheet = cv2.imread(str(folder / "sheet.jpg"))
    assert sheet.shape[1] == 4 * (480 + 4) and sheet.shape[0] > 2 * 324


def test_several_processes_make_the_same_files(extraction, bundle):
    settings = PseudoSettings(confidence=0.7, share=0.8)
    alone = make_pseudo_labels(extraction, bundle, settings)
    files = {p.relative_to(extraction.root): p.read_bytes() for p in (extraction.root / "pseudo").rglob("*") if p.is_file()}
    shutil.rmtree(extraction.root / "pseudo")
    together = make_pseudo_labels(extraction, bundle, settings, jobs=2)
    assert np.array_equal(alone.counts, together.counts)
    assert {p.relative_to(extraction.root): p.read_bytes() for p in (extraction.root / "pseudo").rglob("*") if p.is_file()} == files


def test_a_run_that_was_stopped_goes_on_and_another_teacher_is_asked_anew(extraction, bundle, tmp_path, monkeypatch):
    asked = []
    ask = pseudo.Teacher.probabilities

    def stops(self, frame):
        asked.append(frame.stamp)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(self, frame)

    monkeypatch.setattr(pseudo.Teacher, "probabilities", stops)
    with pytest.raises(KeyboardInterrupt):
        make_pseudo_labels(extraction, bundle, SURE)
    assert not (extraction.root / "pseudo" / "pseudo.json").exists()
    make_pseudo_labels(extraction, bundle, SURE)
    assert asked == [*STAMPS[:3], *STAMPS[2:]]
    make_pseudo_labels(extraction, bundle, PseudoSettings(scales=(1.0,), flip=False, confidence=0.8))
    assert len(asked) == 5
    make_pseudo_labels(extraction, bundle, PseudoSettings(scales=(1.0,), confidence=0.8))
    assert len(asked) == 9
    make_pseudo_labels(extraction, camera_bundle(labels=SCENE, stride=4).save(tmp_path / "other.lix"), SURE)
    assert len(asked) == 13


def test_the_model_that_is_asked_is_the_one_that_was_there_at_the_start(extraction, tmp_path):
    path, name, unchecked = tmp_path / "m.lix", extraction.frames[0].name, replace(SURE, geometry=False)
    other = camera_bundle(labels=SCENE, x=XSpec("inverse_depth", 1))
    camera_bundle(labels=SCENE).save(path)
    make_pseudo_labels(extraction, path, unchecked, on_start=lambda steps: other.save(path))
    assert np.array_equal(pseudo_labels(extraction)[name], scene()["labels"])
    make_pseudo_labels(extraction, path, unchecked)  # what is in its place by now
    assert np.array_equal(pseudo_labels(extraction)[name], by_image_and_depth(extraction.frames[0]))


def test_what_the_teacher_said_is_kept_for_the_same_question_alone(extraction, bundle, tmp_path):
    model, other = Bundle.load(bundle), camera_bundle(labels=SCENE, stride=4)
    asked = (extraction, model, SURE)
    for question in (
        (extraction, other, SURE),
        (extraction, model, PseudoSettings(scales=(1.0, 1.5), flip=False, confidence=0.0)),
        (extraction, model, PseudoSettings(scales=(1.0,), flip=True, confidence=0.0)),
    ):
        begin_teacher(tmp_path / "said", *asked)
        (tmp_path / "said" / "answer.png").touch()
        begin_teacher(tmp_path / "said", extraction, model, PseudoSettings(scales=(1.0,), flip=False, confidence=0.7))
        assert (tmp_path / "said" / "answer.png").exists()
        begin_teacher(tmp_path / "said", *question)
        assert not (tmp_path / "said" / "answer.png").exists()


def test_answers_of_which_nobody_knows_who_gave_them_go(extraction, bundle, tmp_path):
    model, said = Bundle.load(bundle), tmp_path / "said"
    begin_teacher(said, extraction, model, SURE)
    mark = (said / "made.json").read_bytes()
    (said / "drive").mkdir()
    (said / "drive" / "answer.png").touch()
    (said / "made.json").unlink()  # as where taking them away was stopped
    begin_teacher(said, extraction, model, SURE)
    assert [path.name for path in said.iterdir()] == ["made.json"] and (said / "made.json").read_bytes() == mark


def test_answers_that_cannot_be_taken_away_are_told_and_never_marked_as_another_teachers(extraction, bundle, tmp_path, monkeypatch):
    said = tmp_path / "said"
    begin_teacher(said, extraction, Bundle.load(bundle), SURE)
    mark = (said / "made.json").read_bytes()
    monkeypatch.setattr(shutil, "rmtree", Mock(side_effect=PermissionError(13, "Permission denied", "made.json")))
    with pytest.raises(SourceError, match="cannot delete .*said, .*: .*Permission denied: 'made.json'"):
        begin_teacher(said, extraction, camera_bundle(labels=SCENE, stride=4), SURE)
    assert (said / "made.json").read_bytes() == mark


@pytest.mark.parametrize("damage", [b"", b"\x89PNG", png_of_size(96, 128)], ids=["empty", "cut", "no pixels"])
def test_an_answer_that_cannot_be_read_is_asked_for_again(extraction, bundle, damage):
    make_pseudo_labels(extraction, bundle, SURE)
    before, answer = pseudo_labels(extraction), extraction.root / "pseudo" / ".teacher" / f"{extraction.frames[0].name}.png"
    whole = answer.read_bytes()
    answer.write_bytes(damage)
    report = make_pseudo_labels(extraction, bundle, SURE)
    assert report.frames == 4 and not report.left_out and answer.read_bytes() == whole
    assert all(np.array_equal(mask, before[name]) for name, mask in pseudo_labels(extraction).items())


def test_labels_of_a_run_that_was_stopped_are_never_read_with_another_label_set(extraction, bundle):
    make_pseudo_labels(extraction, bundle, SURE)
    steps = []

    def stop():
        steps.append(0)
        if len(steps) == len(STAMPS) + 1:  # the first frame is decided
            raise KeyboardInterrupt

    turned = LabelSet("turned", tuple(reversed(Bundle.load(bundle).manifest.labels.labels)))
    with pytest.raises(KeyboardInterrupt):
        make_pseudo_labels(extraction, bundle, SURE, mapping=lambda source: LabelMapping.by_name(source, turned), on_step=stop)
    assert extraction.label_set("pseudo", "drive").names == turned.names
    assert len([frame for frame in extraction.frames if extraction.label_path(frame, "pseudo")]) <= 1


def test_two_runs_never_write_into_one_folder(extraction, bundle):
    turned = LabelSet("turned", tuple(reversed(SCENE.labels)))
    steps, refused = [], []

    def another():
        steps.append(0)
        if len(steps) == len(STAMPS) + 2:  # the second frame is decided
            with pytest.raises(SourceError, match="another process makes pseudo-labels in .*pseudo"):
                make_pseudo_labels(extraction, bundle, SURE, mapping=lambda source: LabelMapping.by_name(source, turned))
            refused.append(LabelSet.load(extraction.root / "pseudo" / "labels.json"))

    settings = replace(SURE, geometry=False)
    make_pseudo_labels(extraction, bundle, settings, on_step=another)
    assert refused == [SCENE] and all(np.array_equal(mask, scene()["labels"]) for mask in pseudo_labels(extraction).values())
    make_pseudo_labels(extraction, bundle, settings, mapping=lambda source: LabelMapping.by_name(source, turned))  # it is free again
    assert all(np.array_equal(mask, 4 - scene()["labels"]) for mask in pseudo_labels(extraction).values())


def test_frames_that_cannot_be_read_are_left_out_and_their_old_labels_go(extraction, bundle):
    make_pseudo_labels(extraction, bundle, SURE)
    first, second = extraction.frames[:2]
    first.image.write_bytes(b"gone")
    second.depth.unlink()
    report = make_pseudo_labels(extraction, bundle, PseudoSettings(scales=(1.0,), confidence=0.0))
    assert set(report.left_out) == {first.name, second.name} and report.frames == 2
    assert "cannot be read" in report.left_out[first.name] and "cannot be read" in report.left_out[second.name]
    found = {p.stem for p in (extraction.root / "pseudo" / "drive").iterdir()}
    assert found == {str(stamp) for stamp in STAMPS[2:]}


def test_frames_without_depth_go_unchecked_and_that_is_said(tmp_path, bundle):
    frames = {STAMPS[0]: {"image": scene()["image"]}, STAMPS[1]: scene()}
    extraction = write_extraction(tmp_path / "ext", {"drive": frames})
    report = make_pseudo_labels(extraction, bundle, SURE)
    assert report.notes == ["1 of 2 frames have no depth: they are not checked against the ground"]
    assert report.ground == report.with_depth == 1
    assert np.array_equal(pseudo_labels(extraction)[f"drive/{STAMPS[0]}"], scene()["labels"])


@pytest.mark.parametrize(
    "training, able",
    [
        ({"config": {"data": {"x_dropout": 0}}}, False),
        ({"config": {"data": {"x_dropout": 0.3}}}, True),
        ({"config": {"data": {"x_dropout": 0}}, "needs_x": False}, True),  # some of its data had none
    ],
)
def test_a_teacher_that_never_was_without_x_labels_no_image_alone(tmp_path, training, able):
    model = camera_bundle(labels=SCENE, x=XSpec("inverse_depth", 1), training=training)
    path, frames = model.save(tmp_path / "x.lix"), {STAMPS[0]: {"image": scene()["image"]}, STAMPS[1]: scene()}
    extraction = write_extraction(tmp_path / "ext", {"drive": frames})
    make_pseudo_labels(extraction, camera_bundle(labels=SCENE).save(tmp_path / "rgb.lix"), SURE)  # leaves a label for both
    report = make_pseudo_labels(extraction, path, SURE)
    labelled = [extraction.label_path(frame, "pseudo") is not None for frame in extraction.frames]
    assert labelled == [able, True] and report.frames == sum(labelled) and not report.left_out
    told = "for them the teacher goes by the image alone" if able else "they get no labels, for .* never was without inverse_depth"
    assert re.search(f"^1 of 2 frames have no depth: {told}", report.notes[0])
    alone = write_extraction(tmp_path / "alone", {"drive": {STAMPS[0]: frames[STAMPS[0]]}})
    if not able:
        with pytest.raises(DataError, match="can be labelled: .* never was without inverse_depth"):
            make_pseudo_labels(alone, path, SURE)


def test_a_teacher_is_given_x_of_the_depth(extraction, tmp_path):
    bundle = camera_bundle(labels=SCENE, x=XSpec("inverse_depth", 1))
    make_pseudo_labels(
        extraction, bundle.save(tmp_path / "x.lix"), PseudoSettings(scales=(1.0,), flip=False, confidence=0.0, geometry=False)
    )
    expected = by_image_and_depth(extraction.frames[0])
    assert np.array_equal(pseudo_labels(extraction)[extraction.frames[0].name], expected)
    assert not np.array_equal(expected, scene()["labels"])


@pytest.mark.parametrize(
    "names, notes",
    [
        (("road", "car"), []),
        (("asphalt", "car"), ["no class is known to be flat: nothing is dropped for standing above the ground; name some with flat"]),
        (("road", "gnome"), ["no class is known to be standing: nothing is dropped for lying on the ground; name some with standing"]),
    ],
)
def test_where_the_check_knows_no_class_of_a_kind_that_is_said(extraction, bundle, names, notes):
    merge = {"classes": [{"name": name, "from": source} for name, source in zip(names, ("road", "car"))]}
    assert make_pseudo_labels(extraction, bundle, SURE, lambda source: LabelMapping.from_dict(source, merge)).notes == notes


def test_x_that_cannot_be_made_is_told(extraction, tmp_path):
    bundle = camera_bundle(labels=SCENE, x=XSpec("disparity", 1)).save(tmp_path / "x.lix")
    with pytest.raises(DataError, match="no frame of .* can be labelled: frame drive/.*baseline"):
        make_pseudo_labels(extraction, bundle, SURE)


def test_a_canvas_of_fixed_size_is_run_at_one_scale(extraction, tmp_path):
    report = make_pseudo_labels(extraction, camera_bundle((64, 96), labels=SCENE).save(tmp_path / "fixed.lix"), PseudoSettings())
    assert report.notes == ["model 'tiny-camera' has a canvas of fixed size: it is run at scale 1 alone"]
    assert json.loads((extraction.root / "pseudo" / "pseudo.json").read_text())["settings"]["scales"] == [1.0]


def test_classes_are_merged_into_another_label_set(extraction, bundle):
    merge = {"name": "drivable", "classes": [{"name": "road", "from": ["road"]}, {"name": "obstacle", "from": ["car", "tree"]}]}
    report = make_pseudo_labels(
        extraction,
        bundle,
        PseudoSettings(scales=(1.0,), flip=False, confidence=0.0, geometry=False),
        lambda source: LabelMapping.from_dict(source, merge),
    )
    truth = scene()["labels"]
    expected = np.select([truth == ROAD, truth == CAR], [0, 1], 255)
    assert all(np.array_equal(mask, expected) for mask in pseudo_labels(extraction).values())
    assert report.labels.names == ("road", "obstacle") and report.counts.sum() == 4 * (expected != 255).sum()


def test_the_command_prints_the_share_of_each_class_and_where_to_look(extraction, bundle, tmp_path):
    app = typer.Typer()
    app.command()(label)
    words = [str(extraction.root), "--pseudo", "--model", str(bundle), "--jobs", "1", "--scales", "1", "--confidence", "0.6"]
    result = CliRunner().invoke(app, [*words, "--flat", "road", "--standing", "car, sky"])
    assert result.exit_code == 0, result.exception
    assert "4 of 4 frames have pseudo-labels; 4 have depth, 4 a ground plane" in result.stdout
    assert "sheet.jpg" in result.stdout and "road" in result.stdout
    wrong = CliRunner().invoke(app, [*words, "--flat", "raod"])
    assert isinstance(wrong.exception, LixError) and "did you mean 'road'" in str(wrong.exception)


def test_the_command_ends_with_1_where_a_frame_is_left_out(extraction, bundle):
    (extraction.root / extraction.frames[0].image).write_bytes(b"junk")
    app = typer.Typer()
    app.command()(label)
    words = [str(extraction.root), "--pseudo", "--model", str(bundle), "--jobs", "1", "--scales", "1", "--confidence", "0.6"]
    partial = CliRunner().invoke(app, words)
    assert partial.exit_code == 1 and "3 of 4 frames have pseudo-labels" in partial.stdout and "left out drive/" in partial.stdout


def test_an_extraction_without_frames_is_told(tmp_path, bundle):
    extraction = write_extraction(tmp_path / "ext", {"drive": {}})
    with pytest.raises(DataError, match="there are none"):
        make_pseudo_labels(extraction, bundle)


def test_an_image_of_another_size_than_its_depth_is_left_out(tmp_path, bundle):
    odd = scene() | {"depth": np.full((32, 48), 5.0, np.float32)}
    extraction = write_extraction(tmp_path / "ext", {"drive": {STAMPS[0]: scene(), STAMPS[1]: odd, STAMPS[2]: {"image": picture(1)}}})
    report = make_pseudo_labels(extraction, bundle, SURE)
    assert list(report.left_out) == [f"drive/{STAMPS[1]}"] and report.frames == 2
