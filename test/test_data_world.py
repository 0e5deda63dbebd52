"""The simulated street as a data set: X from truth, stereo and LiDAR, limits, and splits that do not overlap."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")

from lix_core.data.registry import open_dataset
from lix_core.data.world import WorldDataset
from lix_core.errors import DataError, LabelError
from lix_core.geometry.encodings import ENCODINGS
from lix_core.labels import STREET
from lix_core.world.folder import WorldFolder
from trees import WORLD_CAMERA, world_folder


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    world_folder(root / "train", seed=1)
    world_folder(root / "val", seed=2, frames=1)
    return root


@pytest.fixture
def root(rendered, tmp_path):
    """A copy of the tree, for tests that write to it."""
    return shutil.copytree(rendered, tmp_path / "world")


@pytest.mark.parametrize("kind", ENCODINGS)
def test_exact_truth_comes_back_in_every_encoding(root, kind):
    data, truth = WorldDataset(root, "train", x=kind), WorldFolder.open(root / "train")
    assert data.labels == STREET and data.names == ["train/00000", "train/00001", "train/00002"]
    assert (data.x_kind, data.x_channels) == (kind, ENCODINGS[kind].channels)
    for sample, frame in zip(data, truth, strict=True):
        known = np.isfinite(frame.depth)
        assert np.array_equal(sample.image, frame.rgb) and np.array_equal(sample.labels, frame.labels)
        assert np.array_equal(sample.known, known) and sample.camera == frame.camera == WORLD_CAMERA
        values = ENCODINGS[kind].decode(sample.x, sample.known)[known]
        disparity = frame.camera.fx * frame.right_camera.baseline / frame.depth
        expected = {"normals": frame.normals, "disparity": disparity}.get(kind, frame.depth)[known]
        assert np.allclose(values, expected, rtol=2e-3, atol=2e-3)
        assert not sample.x[:, ~known].any()


@pytest.mark.parametrize(("geometry", "tolerance"), [("stereo", 0.03), ("lidar", 0.01)])
def test_x_of_sensors_is_near_the_truth_where_it_is_known(root, geometry, tolerance):
    sample = WorldDataset(root, "train", x="depth", geometry=geometry)[1]
    truth = WorldFolder.open(root / "train")[1].depth
    both = sample.known & np.isfinite(truth)
    both[:, :20] = False
    assert both[10:, 20:].mean() > 0.8
    depth = ENCODINGS["depth"].decode(sample.x, sample.known)
    assert np.median(np.abs(depth[both] - truth[both]) / truth[both]) < tolerance


def test_a_frame_is_the_same_before_and_after_its_x_is_kept(root):
    fresh = WorldDataset(root, "train", x="normals", geometry="lidar", cache=False)
    made = fresh[0]
    assert not (root / "train" / "x").exists()
    first = WorldDataset(root, "train", x="normals", geometry="lidar")[0]
    assert len(list((root / "train" / "x").rglob("*.npy"))) == 1
    for path in (root / "train").rglob("*.bin"):
        path.write_bytes(b"123")
    with pytest.raises(DataError, match="velodyne_00000.bin is damaged"):
        fresh[0]
    again = WorldDataset(root, "train", x="normals", geometry="lidar")[0]
    for sample in (first, again):
        assert np.array_equal(sample.x, made.x) and np.array_equal(sample.known, made.known) and made.known.any()


def test_kept_x_of_another_drive_is_not_taken(root):
    WorldDataset(root, "train", x="depth")[0]
    world = json.loads((root / "train" / "world.json").read_text())
    world["drive"]["seed"] = 77
    (root / "train" / "world.json").write_text(json.dumps(world))
    WorldDataset(root, "train", x="depth")[0]
    assert len(list((root / "train" / "x").iterdir())) == 2


def test_classes_and_frames_limit_the_data(root):
    data = WorldDataset(root, "train", classes=["road", "car"], frames=2)
    truth = WorldFolder.open(root / "train")[1].labels
    assert data.labels.names == ("road", "car") and len(data) == 2 and data.x_kind == ""
    sample = data[1]
    expected = np.where(truth == STREET.id_of("road"), 0, np.where(truth == STREET.id_of("car"), 1, 255))
    assert np.array_equal(sample.labels, expected) and sample.x is None
    with pytest.raises(LabelError, match="no class 'boat'"):
        WorldDataset(root, "train", classes=["boat"])
    with pytest.raises(DataError, match="has 3 frames, 4 are asked for"):
        WorldDataset(root, "train", frames=4)
    for options, words in (({"frames": "ten"}, "frames='ten': it takes a whole number"), ({"classes": 5}, "classes=5: it takes a list")):
        with pytest.raises(DataError, match=f"the data set world does not understand {words}"):
            open_dataset("world", root, "train", **options)


def test_a_label_out_of_range_names_file_and_id(root):
    data = WorldDataset(root, "train")
    path = data._path(1, "labels")
    damaged = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    damaged[3, 5] = 200
    cv2.imwrite(str(path), damaged)
    with pytest.raises(DataError, match=f"label {path} has ids 200; allowed are 0..10, 255"):
        data[1]


def test_two_splits_of_one_seed_are_refused(root):
    world_folder(root / "test", seed=1, frames=1)
    with pytest.raises(DataError, match="world/train and .*world/test are both of seed 1: they show the same streets"):
        WorldDataset(root, "val")


@pytest.mark.parametrize("content", ["[]", '{"drive": null}', '{"frames": 1, "drive": null}', "{"])
def test_a_description_of_another_shape_in_any_split_names_its_file(root, content):
    (root / "val" / "world.json").write_text(content)
    with pytest.raises(DataError, match="val/world.json is (not of a folder that `lix world render` wrote|damaged)"):
        WorldDataset(root, "train")


def test_splits_that_are_missing_or_not_whole_name_the_file(root):
    with pytest.raises(DataError, match="world/test/world.json is missing; make it with `lix world render --out ROOT/train --seed 1"):
        WorldDataset(root, "test")
    with pytest.raises(DataError, match="no split 'trian'; there are 'train', 'val', 'test'"):
        open_dataset("world", root, "trian")
    with pytest.raises(DataError, match="no geometry 'radar'; there are 'truth', 'stereo', 'lidar'"):
        open_dataset("world", root, "train", geometry="radar")
    lost = root / "train/Scene01/fog/frames/rgb/Camera_1/rgb_00000.jpg"
    lost.unlink()
    with pytest.raises(DataError, match=f"{lost} is missing"):
        WorldDataset(root, "train")
