"""Frames of the world on disk: what is written comes back, whole or not at all, and other readers find what they expect."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from lix_core.camera import Camera
from lix_core.errors import DataError, SourceError
from lix_core.labels import STREET
from lix_core.world.drive import CAR_FROM_OPTICAL, Drive, Rig, WorldFrame
from lix_core.world.folder import FILES, WorldFolder
from trees import contents, png_of_size

RIG = Rig(Camera.pinhole(48, 36, 30.0))
H, W = RIG.camera.shape


def drive(**options: object) -> Drive:
    return Drive(**{"seed": 3, "rig": RIG, "frames_per_scene": 2, "spacing": 5.0, **options})


def frame(index: int, weather: str = "fog") -> WorldFrame:
    """A frame of noise, its upper third sky, smooth in colour so that JPEG keeps it."""
    rng = np.random.default_rng(index)
    sky = np.zeros((H, W), bool)
    sky[: H // 3] = True
    normals = rng.normal(size=(H, W, 3))
    normals = (normals / np.linalg.norm(normals, axis=2, keepdims=True)).astype(np.float32)
    depth = rng.uniform(0.5, 900.0, (H, W)).astype(np.float32)
    colours = rng.integers(0, 256, (3, 4, 3), np.uint8)
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(rng.normal(size=3))[0] @ CAR_FROM_OPTICAL[:3, :3]
    pose[:3, 3] = rng.normal(size=3) * 100
    return WorldFrame(
        index,
        index / 10.0,
        scene_seed=4_000_000_000 - index,
        weather=weather,
        camera=RIG.camera,
        right_camera=RIG.right_camera,
        world_from_camera=pose,
        rgb=cv2.resize(colours, (W, H), interpolation=cv2.INTER_LINEAR),
        right=cv2.resize(colours[::-1], (W, H), interpolation=cv2.INTER_LINEAR),
        depth=np.where(sky, np.float32(np.nan), depth),
        normals=np.where(sky[..., None], np.float32(np.nan), normals),
        labels=np.where(sky, 0, rng.integers(1, len(STREET), (H, W))).astype(np.uint8),
        instances=np.where(sky, 0, rng.integers(0, 65536, (H, W))).astype(np.uint16),
        cloud=rng.normal(size=(50 + index, 5)).astype(np.float32),
        camera_from_lidar=RIG.camera_from_lidar,
    )


def written(path: Path, frames: int = 3, **options: object) -> WorldFolder:
    """A whole folder of so many frames, two to a scene."""
    folder = WorldFolder.create(path, drive(**options), frames)
    for scene, indices in folder.missing().items():
        for index in indices:
            folder.write(frame(index))
        folder.finish_scene(scene)
    return folder


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Between unit vectors [degrees]; by the sine, as the cosine of small angles is 1 in float32."""
    return np.degrees(np.arcsin(np.linalg.norm(np.cross(a.astype(float), b.astype(float)), axis=-1)))


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    written(tmp_path / "w")
    folder = WorldFolder.open(tmp_path / "w")
    assert (len(folder), folder.rate, folder.name, folder.labels, folder.camera) == (3, 10.0, "w", STREET, RIG.camera)
    for index, found in enumerate(folder):
        truth = frame(index)
        for field in fields(WorldFrame):
            a, b = getattr(found, field.name), getattr(truth, field.name)
            if isinstance(b, np.ndarray):
                assert (a.shape, a.dtype) == (b.shape, b.dtype), field.name
            if field.name in ("rgb", "right"):
                assert np.abs(a.astype(int) - b).mean() < 2
            elif field.name == "normals":
                np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
                assert np.nanmax(angle(a, b)) < 0.002
                np.testing.assert_allclose(np.linalg.norm(a[H // 3 :], axis=2), 1.0, atol=1e-6)
            else:
                np.testing.assert_array_equal(a, b, err_msg=field.name)


def test_without_right_or_cloud_these_are_empty_and_the_rest_is_there(tmp_path: Path) -> None:
    written(tmp_path, 1)
    found = WorldFolder.open(tmp_path).frame(0, right=False, cloud=False)
    assert (found.right.shape, found.cloud.shape) == ((0, 0, 3), (0, 5))
    np.testing.assert_array_equal(found.depth, frame(0).depth)


def test_a_reader_of_virtual_kitti_2_finds_its_files(tmp_path: Path) -> None:
    written(tmp_path)
    home = tmp_path / "Scene01" / "fog"
    truth = frame(2)
    depth = cv2.imread(str(home / "frames/depth/Camera_0/depth_00000.png"), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    assert depth.dtype == np.uint16
    near = truth.depth < 655
    assert np.abs(depth[near] / 100.0 - truth.depth[near]).max() < 0.00501
    assert (depth[np.isnan(truth.depth) | (truth.depth > 655.35)] == 65535).all()
    colours = {tuple(map(int, line.split()[1:])): line.split()[0] for line in (home / "colors.txt").read_text().splitlines()[1:]}
    classes = cv2.imread(str(home / "frames/classSegmentation/Camera_0/classgt_00000.png"))[..., ::-1]
    assert [[colours[tuple(map(int, c))] for c in row] for row in classes] == [[STREET.names[i] for i in row] for row in truth.labels]
    instances = cv2.imread(str(home / "frames/instanceSegmentation/Camera_0/instancegt_00000.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(instances, truth.instances)
    assert (home / "frames/rgb/Camera_1/rgb_00000.jpg").exists()


def test_text_files_project_the_world_as_the_cameras_do(tmp_path: Path) -> None:
    written(tmp_path)
    home = tmp_path / "Scene00" / "fog"
    extrinsic = (home / "extrinsic.txt").read_text().splitlines()
    assert extrinsic[0] == "frame cameraID r1,1 r1,2 r1,3 t1 r2,1 r2,2 r2,3 t2 r3,1 r3,2 r3,3 t3 0 0 0 1"
    intrinsic = (home / "intrinsic.txt").read_text().splitlines()
    assert intrinsic[0] == "frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"
    rows = [(int(number), int(side)) for number, side, *_ in map(str.split, extrinsic[1:])]
    assert rows == [(0, 0), (0, 1), (1, 0), (1, 1)] == [tuple(map(int, line.split()[:2])) for line in intrinsic[1:]]
    for line, k, (number, side) in zip(extrinsic[1:], intrinsic[1:], rows):
        camera_from_world = np.array(line.split()[2:], float).reshape(4, 4)
        fx, fy, cx, cy = map(float, k.split()[2:])
        truth = frame(number)
        point = truth.world_from_camera @ [2.0, -1.0, 7.0, 1.0]
        x, y, z, _ = camera_from_world @ point
        np.testing.assert_allclose([x + side * RIG.baseline, y, z], [2.0, -1.0, 7.0], atol=1e-9)
        # The right camera's own pixels are those that its P, in the left one's frame, gives.
        p = np.reshape((truth.camera, truth.right_camera)[side].p, (3, 4)) @ [2.0, -1.0, 7.0, 1.0]
        np.testing.assert_allclose([fx * x / z + cx, fy * y / z + cy], p[:2] / p[2], atol=1e-9)


def test_the_same_frames_are_the_same_bytes(tmp_path: Path) -> None:
    written(tmp_path / "a")
    written(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("name", FILES)
def test_a_half_tree_is_refused_with_the_file_that_is_missing_and_made_whole_again(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    before = contents(tmp_path)
    lost = tmp_path / "Scene00" / "fog" / "frames" / FILES[name].format(1)
    lost.unlink()
    with pytest.raises(DataError, match="is not whole") as error:
        WorldFolder.open(tmp_path)
    assert lost.name in str(error.value)
    folder = WorldFolder.create(tmp_path, drive(), 3)
    assert folder.missing() == {0: [1]}
    written(tmp_path)
    assert contents(tmp_path) == before


def test_a_scene_whose_text_files_lack_is_work_without_frames(tmp_path: Path) -> None:
    folder = written(tmp_path)
    (tmp_path / "Scene01" / "fog" / "intrinsic.txt").unlink()
    assert folder.missing() == {1: []}
    with pytest.raises(DataError, match="intrinsic.txt"):
        WorldFolder.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("depth", b"no image"),
        ("rgb", b""),
        ("rgb", png_of_size(200_000, 200_000)),
        ("labels", None),
        ("cloud", b"12345"),
        ("meta", b"{}"),
        ("meta", b"\xff\xfe{"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: bytes | None) -> None:
    written(tmp_path, 1)
    path = tmp_path / "Scene00" / "fog" / "frames" / FILES[name].format(0)
    path.write_bytes(cv2.imencode(".png", np.zeros((5, 5), np.uint8))[1].tobytes() if damage is None else damage)
    with pytest.raises(DataError, match=f"{path.name} is damaged"):
        WorldFolder.open(tmp_path)[0]


def test_a_file_that_goes_while_the_folder_is_open_is_named(tmp_path: Path) -> None:
    written(tmp_path, 1)
    folder = WorldFolder.open(tmp_path)
    (tmp_path / "Scene00" / "fog" / "frames" / FILES["right"].format(0)).unlink()
    with pytest.raises(DataError, match="cannot read .*Camera_1/rgb_00000.jpg"):
        folder[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 4}, "seed is 3 there, 4 here"),
        ({"weather": "fog"}, 'weather is "" there, "fog" here'),
        ({"spacing": 2.0, "frames_per_scene": 3}, "frames_per_scene is 2 there, 3 here, spacing is 5.0 there, 2.0 here"),
        ({"rig": replace(RIG, baseline=0.3)}, "rig.baseline is 0.54 there, 0.3 here"),
    ],
)
def test_a_folder_of_other_options_is_refused_with_what_differs(tmp_path: Path, options: dict, words: str) -> None:
    written(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(DataError) as error:
        WorldFolder.create(tmp_path, drive(**options), 3)
    assert words in str(error.value)
    assert contents(tmp_path) == before


def test_a_folder_may_grow_but_not_shrink(tmp_path: Path) -> None:
    written(tmp_path / "grown", 3)
    written(tmp_path / "grown", 6)
    written(tmp_path / "at_once", 6)
    assert contents(tmp_path / "grown") == contents(tmp_path / "at_once")
    with pytest.raises(DataError, match="is of 6 frames, 3 are asked for"):
        WorldFolder.create(tmp_path / "grown", drive(), 3)


def test_a_folder_that_was_stopped_while_its_last_scene_grew_is_not_whole(tmp_path: Path) -> None:
    written(tmp_path / "grown", 3)
    folder = WorldFolder.create(tmp_path / "grown", drive(), 4)
    folder.write(frame(3))  # and no text files, which were of frame 2 alone
    assert folder.missing() == {1: []}
    with pytest.raises(DataError, match="txt is missing"):
        WorldFolder.open(tmp_path / "grown")
    written(tmp_path / "grown", 4)
    written(tmp_path / "at_once", 4)
    assert contents(tmp_path / "grown") == contents(tmp_path / "at_once")


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        WorldFolder.create(tmp_path, drive(), 3)
    with pytest.raises(DataError, match="is no folder of `lix world render`"):
        WorldFolder.open(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', "\x00"])
def test_a_damaged_world_file_is_a_data_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "world.json").write_text(text)
    with pytest.raises(DataError, match="world.json"):
        WorldFolder.open(tmp_path)


def test_another_format_is_told(tmp_path: Path) -> None:
    written(tmp_path, 1)
    world = json.loads((tmp_path / "world.json").read_text())
    (tmp_path / "world.json").write_text(json.dumps({**world, "format": 2}))
    with pytest.raises(DataError, match="format 2, this lix reads 1"):
        WorldFolder.open(tmp_path)


def test_a_full_disk_is_told_and_leaves_no_half_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = WorldFolder.create(tmp_path, drive(), 2)
    whole = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "normals" in path.name:
            raise OSError(28, "No space left on device")
        return whole(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SourceError, match="cannot write .*normals.*No space left on device"):
        folder.write(frame(0))
    monkeypatch.undo()
    assert folder.missing() == {0: [0, 1]}
    assert not list(tmp_path.rglob(".*.part"))
