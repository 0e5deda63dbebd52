"""Data sets on small trees in the official layouts: exact pixels, ids and geometry, and what a bad tree says."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from lix_core.data import vkitti2
from lix_core.data.camvid import CamVidDataset
from lix_core.data.cityscapes import CITYSCAPES, CityscapesDataset, read_disparity
from lix_core.data.kitti import SPLITS as KITTI_SPLITS
from lix_core.data.kitti import KittiDataset
from lix_core.data.nuimages import NUIMAGES, NuImagesDataset, decode_mask
from lix_core.data.pothole import X_KIND, PotholeDataset, names_of
from lix_core.data.registry import open_dataset
from lix_core.data.vkitti2 import Vkitti2Dataset
from lix_core.errors import DataError
from lix_core.geometry.encodings import ENCODINGS, encode
from lix_core.labels import STREET
from trees import (
    CITYSCAPES_CAMERA,
    KITTI_CALIBRATION,
    SIZE,
    annotation,
    camvid_tree,
    cityscapes_tree,
    colours,
    cycle,
    kitti_tree,
    noise,
    nuimages_tree,
    png_of_size,
    pothole_tree,
    rle,
    vkitti2_tree,
    with_orientation,
    world_folder,
    write_image,
)

POTHOLE = Path(__file__).resolve().parents[2] / "shared" / "data" / "stereo_pothole"

TRAIN_IDS = np.full(256, 255, np.uint8)
for _train, _official in enumerate([7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]):
    TRAIN_IDS[_official] = _train


# CamVid.


def test_camvid_gives_rgb_images_and_ids_with_void_as_unlabelled(tmp_path):
    camvid_tree(tmp_path)
    camvid_tree(tmp_path, "val", ["other"])
    data = CamVidDataset(tmp_path, "train", x="normals")
    assert data.labels is STREET and data.names == ["a", "b"] and (data.x_kind, data.x_channels) == ("", 0)
    for place, sample in enumerate(data):
        assert np.array_equal(sample.image, noise(place)) and sample.x is None
        assert np.array_equal(sample.labels, cycle([*range(11), 255]))


def test_camvid_says_which_file_is_missing_or_wrong(tmp_path):
    with pytest.raises(DataError, match="no images in .*val/image; CamVid needs <root>/val/image and <root>/val/label"):
        CamVidDataset(tmp_path, "val")
    camvid_tree(tmp_path)
    write_image(tmp_path / "train/label/a.png", np.full(SIZE, 12, np.uint8))
    write_image(tmp_path / "train/label/b.png", np.zeros((3, 3), np.uint8))
    data = CamVidDataset(tmp_path, "train")
    with pytest.raises(DataError, match="label .*a.png has ids 12; allowed are 0..11"):
        data[0]
    with pytest.raises(DataError, match=r"b: labels must be uint8 of \(24, 40\), got uint8 of \(3, 3\)"):
        data[1]
    for kind in ("label", "image"):
        for content in (b"broken", b"", png_of_size(200_000, 200_000)):
            (tmp_path / "train" / kind / "a.png").write_bytes(content)
            with pytest.raises(DataError, match=f"{kind}/a.png cannot be decoded; fetch it again"):
                data[0]
    with pytest.raises(DataError, match="no kind of X 'foo'"):
        CamVidDataset(tmp_path, "train", x="foo")
    write_image(tmp_path / "train/image/a.JPG", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(DataError, match="image has two images named a: remove one"):
        CamVidDataset(tmp_path, "train")
    (tmp_path / "train/image/a.JPG").unlink()
    (tmp_path / "train/label/a.png").unlink()
    with pytest.raises(DataError, match="train/label/a.png is missing; get it from https"):
        CamVidDataset(tmp_path, "train")
    camvid_tree(tmp_path)
    (tmp_path / "train/image/b.png").unlink()
    with pytest.raises(DataError, match="train/image/b.png is missing; get it from https"):
        CamVidDataset(tmp_path, "train")


def test_an_orientation_in_an_image_turns_nothing_as_labels_are_of_the_stored_pixels(tmp_path):
    camvid_tree(tmp_path)
    image = np.zeros((*SIZE, 3), np.uint8)
    image[:8] = 200
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    (tmp_path / "train/image/a.png").write_bytes(with_orientation(jpeg, 3))  # told by what is in it
    (tmp_path / "train/image/b.png").write_bytes(with_orientation(jpeg, 6))
    for sample in CamVidDataset(tmp_path, "train"):
        assert np.array_equal(sample.image, cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


def test_data_sets_without_x_take_every_kind_there_is_and_those_that_make_x_only_theirs(tmp_path):
    camvid_tree(tmp_path)
    nuimages_tree(tmp_path)
    for kind in (*ENCODINGS, X_KIND):
        for data in (CamVidDataset(tmp_path, "train", x=kind), NuImagesDataset(tmp_path, "mini", x=kind)):
            assert (data.x_kind, data.x_channels, data[0].x) == ("", 0, None)
    for name in ("cityscapes", "kitti", "vkitti2", "world"):
        with pytest.raises(DataError, match=f"there is no kind of X '{X_KIND}'; there are '', 'normals'"):
            open_dataset(name, tmp_path, "val", x=X_KIND)


# Cityscapes.


def test_cityscapes_gives_train_ids_disparity_and_its_camera(tmp_path):
    cityscapes_tree(tmp_path)
    data = CityscapesDataset(tmp_path, "val", x="disparity")
    sample = data[0]
    assert data.labels is CITYSCAPES and len(CITYSCAPES) == 19 and sample.name == "frankfurt/frankfurt_000000_000294"
    assert np.array_equal(sample.image, noise(0))
    assert np.array_equal(sample.labels, TRAIN_IDS[cycle(range(34))])
    known = cycle([0, 1, 1]) > 0
    assert np.array_equal(sample.known, known)
    disparity = ENCODINGS["disparity"].decode(sample.x, sample.known)
    assert np.allclose(disparity[known], cycle([9, 1, 5])[known], atol=1e-5)
    assert (sample.camera.fx, sample.camera.fy, sample.camera.cx, sample.camera.cy, sample.camera.shape) == (100, 90, 20, 11, SIZE)
    depth = CityscapesDataset(tmp_path, "val", x="depth")[0]
    # z = f b / d = 100 * 0.25 / 5
    assert np.allclose(ENCODINGS["depth"].decode(depth.x, depth.known)[cycle([0, 0, 1]) > 0], 5.0)


def test_cities_may_be_links_to_folders_elsewhere(tmp_path):
    cityscapes_tree(tmp_path / "disk", frames=["frankfurt/frankfurt_000000_000294"])
    cityscapes_tree(tmp_path / "root", frames=["munster/munster_000000_000019"])
    for part in ("leftImg8bit", "gtFine"):
        (tmp_path / "root" / part / "val" / "frankfurt").symlink_to(tmp_path / "disk" / part / "val" / "frankfurt")
    data = CityscapesDataset(tmp_path / "root", "val")
    assert data.names == ["frankfurt/frankfurt_000000_000294", "munster/munster_000000_000019"]
    assert np.array_equal(data[0].image, noise(0)) and np.array_equal(data[0].labels, TRAIN_IDS[cycle(range(34))])


def test_cityscapes_disparity_of_code_1_is_0_and_known_and_that_of_code_0_is_unknown(tmp_path):
    write_image(tmp_path / "a.png", np.uint16([[0, 1, 257]]))
    np.testing.assert_array_equal(read_disparity(tmp_path / "a.png", (1, 3)), [[np.nan, 0, 1]])


def test_cityscapes_without_x_needs_no_disparity_and_its_test_split_no_labels(tmp_path):
    cityscapes_tree(tmp_path, "test", ["berlin/berlin_000000_000019"])
    for folder in ("gtFine", "disparity", "camera"):
        shutil.rmtree(tmp_path / folder)
    data = CityscapesDataset(tmp_path, "test")
    assert len(data) == 1 and data[0].labels is None and data[0].x is None and (data.x_kind, data.x_channels) == ("", 0)


@pytest.mark.parametrize(
    "lost",
    [
        "leftImg8bit/val/b/b_1_2_leftImg8bit.png",
        "gtFine/val/b/b_1_2_gtFine_labelIds.png",
        "disparity/val/b/b_1_2_disparity.png",
        "camera/val/b/b_1_2_camera.json",
    ],
)
def test_cityscapes_half_downloaded_names_the_first_missing_file_and_where_to_get_it(tmp_path, lost):
    cityscapes_tree(tmp_path, "val", ["a/a_1_1", "b/b_1_2"])
    (tmp_path / lost).unlink()
    with pytest.raises(DataError, match=f"{tmp_path / lost} is missing; get it from https://www.cityscapes-dataset.com/downloads/"):
        CityscapesDataset(tmp_path, "val", x="normals")


def test_cityscapes_with_wrong_files_says_which(tmp_path):
    cityscapes_tree(tmp_path)
    data = CityscapesDataset(tmp_path, "val", x="depth")
    write_image(data.path("disparity", 0), np.zeros(SIZE, np.uint8))
    with pytest.raises(DataError, match="_disparity.png has shape .* of uint8; one 16-bit channel is expected"):
        data[0]
    write_image(data.path("disparity", 0), np.zeros((24, 41), np.uint16))
    with pytest.raises(DataError, match="_disparity.png is 41x24, its image 40x24; fetch it again"):
        data[0]
    for content, words in (
        ({"intrinsic": {"fx": 1}}, "KeyError: 'extrinsic'"),
        (CITYSCAPES_CAMERA | {"extrinsic": {"baseline": 0}}, "ValueError: its baseline is 0.0 m"),
    ):
        data.path("camera", 0).write_text(json.dumps(content))
        with pytest.raises(DataError, match=f"_camera.json is no camera file of Cityscapes .{words}.; fetch it again"):
            data[0]
    write_image(data.path("gtFine", 0), np.full(SIZE, 34, np.uint8))
    with pytest.raises(DataError, match="_labelIds.png has ids 34; allowed are 0..33"):
        data[0]
    with pytest.raises(DataError, match="there is no split 'trainval'; there are 'train', 'val', 'test'"):
        CityscapesDataset(tmp_path, "trainval")
    with pytest.raises(DataError, match="there is no kind of X 'hha'; there are '', 'normals', 'depth'"):
        CityscapesDataset(tmp_path, "val", x="hha")


# KITTI Semantics.


def test_kittis_split_is_fixed_and_every_frame_is_in_one_part():
    parts = [set(KITTI_SPLITS[name]) for name in ("train", "val", "test")]
    assert [len(p) for p in parts] == [140, 30, 30] and set().union(*parts) == set(range(200))
    assert sorted(parts[1]) == [*range(34, 43), *range(88, 99), *range(157, 165), 168, 169]
    assert sorted(parts[2]) == [*range(57, 70), *range(118, 130), *range(144, 149)]


def test_kitti_gives_cityscapes_ids_and_the_benchmarks_disparity(tmp_path):
    kitti_tree(tmp_path, KITTI_SPLITS["val"])
    data = KittiDataset(tmp_path, "val", x="depth", geometry="truth")
    sample = data[0]
    assert data.labels is CITYSCAPES and len(data) == 30 and sample.name == "000034_10"
    assert np.array_equal(sample.image, noise(34)) and np.array_equal(sample.labels, TRAIN_IDS[cycle([*range(34), 255])])
    # fx 100 and baseline 0.5 m: 1 pixel is 50 m, 5 pixels are 10 m.
    depth = ENCODINGS["depth"].decode(sample.x, sample.known)
    assert np.array_equal(sample.known, cycle([0, 1, 1]) > 0)
    assert np.allclose(depth[sample.known], cycle([0, 50, 10])[sample.known], rtol=1e-5)
    assert (sample.camera.fx, sample.camera.cx, sample.camera.cy, sample.camera.baseline) == (100, 20, 11, 0)
    assert not (tmp_path / "lix_x").exists()


def test_kittis_sparse_disparity_can_be_completed_and_is_kept(tmp_path):
    kitti_tree(tmp_path, KITTI_SPLITS["val"])
    data = KittiDataset(tmp_path, "val", x="depth")
    sample = data[1]
    assert sample.known.all()
    measured = cycle([0, 1, 1]) > 0
    depth = ENCODINGS["depth"].decode(sample.x, sample.known)
    assert np.allclose(depth[measured], cycle([0, 50, 10])[measured], rtol=2e-3)
    assert len(list((tmp_path / "lix_x").rglob("000035_10.npy"))) == 1
    for path in (tmp_path / "training/disp_occ_0").iterdir():
        write_image(path, np.zeros(SIZE, np.uint16))
    assert np.array_equal(data[1].x, sample.x)
    assert not KittiDataset(tmp_path, "val", x="depth", cache=False)[1].known.any()


def test_kittis_x_can_come_from_its_stereo_pair(tmp_path):
    # Images wider than the largest disparity that is searched.
    size = (48, 400)
    kitti_tree(tmp_path, KITTI_SPLITS["val"], size, shift=80)
    assert KittiDataset(tmp_path, "val", x="disparity")[0].known.any()  # what is kept of it is not taken for that of the pair
    (tmp_path / "training/disp_occ_0/000034_10.png").unlink()
    sample = KittiDataset(tmp_path, "val", x="disparity", geometry="stereo")[0]
    disparity = ENCODINGS["disparity"].decode(sample.x, sample.known)
    assert sample.known[:, 100:].mean() > 0.8 and np.nanmedian(disparity) == pytest.approx(80, abs=0.3)


@pytest.mark.parametrize(
    "lost", ["image_2/000035_10.png", "semantic/000035_10.png", "disp_occ_0/000035_10.png", "calib_cam_to_cam/000035.txt"]
)
def test_kitti_half_downloaded_names_the_missing_file(tmp_path, lost):
    kitti_tree(tmp_path, KITTI_SPLITS["val"])
    (tmp_path / "training" / lost).unlink()
    with pytest.raises(DataError, match=f"training/{lost} is missing; get it from https://www.cvlibs.net/datasets/kitti/eval_semseg.php"):
        KittiDataset(tmp_path, "val", x="normals")


def test_kitti_with_geometry_that_cannot_be_says_in_which_file(tmp_path):
    kitti_tree(tmp_path, KITTI_SPLITS["val"])
    data = KittiDataset(tmp_path, "val", x="depth")
    for part, geometry in (("disp_occ_0", "truth"), ("disp_occ_0", "completed"), ("image_3", "stereo")):
        write_image(data.path(part, 0), np.zeros((24, 41), np.uint16 if part == "disp_occ_0" else np.uint8))
        with pytest.raises(DataError, match=f"{part}/000034_10.png is 41x24, its image 40x24; fetch it again"):
            KittiDataset(tmp_path, "val", x="depth", geometry=geometry)[0]
    for content, words in (("P0: 1 2 3\n", "P_rect_02"), (KITTI_CALIBRATION.replace("-4.4", "0.6"), "p.3. of .* is 0")):
        data.path("calib_cam_to_cam", 0).write_text(content)
        with pytest.raises(DataError, match=f"000034.txt is no calib_cam_to_cam file of KITTI .*{words}.*; fetch it again"):
            data[0]
    with pytest.raises(DataError, match="there is no geometry 'lidar'; there are 'completed', 'truth', 'stereo'"):
        KittiDataset(tmp_path, "val", geometry="lidar")


# Virtual KITTI 2.


def test_vkitti2_gives_the_14_classes_and_depth_in_metres(tmp_path):
    vkitti2_tree(tmp_path)
    data = Vkitti2Dataset(tmp_path, "val", x="depth")
    assert data.labels is vkitti2.VKITTI2 and data.labels.names[0] == "Terrain" and len(data.labels) == 14
    assert data.names == ["Scene06/clone/Camera_0/00000", "Scene06/clone/Camera_0/00001"]
    sample = data[1]
    assert np.abs(sample.image.astype(int) - colours(10)).max() <= 3
    assert np.array_equal(sample.labels, cycle([*range(14), 255]))
    assert np.array_equal(sample.known, cycle([0, 1, 1]) > 0)
    depth = ENCODINGS["depth"].decode(sample.x, sample.known)
    assert np.allclose(depth[sample.known], cycle([0, 2, 10])[sample.known], rtol=1e-5)
    assert (sample.camera.fx, sample.camera.fy, sample.camera.cx, sample.camera.cy) == (100, 90, 19.5, 11.5)


def test_vkitti2s_disparity_follows_from_depth_and_the_baseline_of_its_extrinsics(tmp_path):
    vkitti2_tree(tmp_path)
    sample = Vkitti2Dataset(tmp_path, "val", x="disparity")[0]
    near = cycle([0, 0, 1]) > 0
    assert np.allclose(ENCODINGS["disparity"].decode(sample.x, sample.known)[near], 100 * 0.532725 / 10, rtol=1e-4)
    extrinsic = tmp_path / "Scene06/clone/extrinsic.txt"
    rows = extrinsic.read_text()
    for x, baseline in (("7.0", "0.0"), ("7.5", "-0.5")):
        extrinsic.write_text(rows.replace(str(7 - 0.532725), x))
        with pytest.raises(
            DataError, match=f"extrinsic.txt: camera 1 should be to the right of camera 0, the baseline is {baseline} m; fetch it again"
        ):
            Vkitti2Dataset(tmp_path, "val", x="disparity")
    (tmp_path / "Scene06/clone/extrinsic.txt").unlink()
    with pytest.raises(DataError, match="extrinsic.txt is no text file of Virtual KITTI 2"):
        Vkitti2Dataset(tmp_path, "val", x="disparity")
    assert len(Vkitti2Dataset(tmp_path, "val", x="depth")) == 2


def test_vkitti2_splits_by_scene_and_chooses_variations_cameras_and_frames(tmp_path):
    vkitti2_tree(tmp_path, [f"Scene{s}/{v}" for s in ("01", "02", "06", "18", "20") for v in ("clone", "fog")], frames=3)
    scenes = {split: {n.split("/")[0] for n in Vkitti2Dataset(tmp_path, split).names} for split in ("train", "val", "test")}
    assert scenes == {"train": {"Scene01", "Scene18", "Scene20"}, "val": {"Scene06"}, "test": {"Scene02"}}
    assert len(Vkitti2Dataset(tmp_path, "all")) == 15
    both = Vkitti2Dataset(tmp_path, "val", variations=["clone", "fog"], cameras=["Camera_0", "Camera_1"], step=2)
    expected = [f"Scene06/{v}/Camera_{c}/{f:05d}" for v in ("clone", "fog") for f in (0, 2) for c in (0, 1)]
    assert both.names == expected
    with pytest.raises(DataError, match="no variation 'snow'; there are 'clone', '15-deg-left'"):
        Vkitti2Dataset(tmp_path, "val", variations="snow")
    with pytest.raises(DataError, match="no camera 'left'; there are 'Camera_0', 'Camera_1'"):
        Vkitti2Dataset(tmp_path, "val", cameras="left")
    with pytest.raises(DataError, match="there are no frames: its options leave none"):
        Vkitti2Dataset(tmp_path, "val", cameras=[])


@pytest.mark.parametrize(
    "lost",
    [
        "intrinsic.txt",
        "colors.txt",
        "frames/rgb/Camera_0/rgb_00001.jpg",
        "frames/classSegmentation/Camera_0/classgt_00001.png",
        "frames/depth/Camera_0/depth_00001.png",
    ],
)
def test_vkitti2_half_downloaded_names_the_missing_file(tmp_path, lost):
    vkitti2_tree(tmp_path)
    (tmp_path / "Scene06/clone" / lost).unlink()
    with pytest.raises(DataError, match=f"Scene06/clone/{lost} is missing; get it from https://europe.naverlabs.com"):
        Vkitti2Dataset(tmp_path, "val", x="depth")


def test_vkitti2_names_depth_of_another_size(tmp_path):
    vkitti2_tree(tmp_path)
    data = Vkitti2Dataset(tmp_path, "val", x="depth")
    write_image(data.path("depth", 0), np.zeros((24, 41), np.uint16))
    with pytest.raises(DataError, match="depth_00000.png is 41x24, its image 40x24; fetch it again"):
        data[0]


def test_vkitti2_names_the_file_of_a_focal_length_that_is_none(tmp_path):
    vkitti2_tree(tmp_path)
    intrinsic = tmp_path / "Scene06/clone/intrinsic.txt"
    for focal in ("0", "nan"):
        intrinsic.write_text(f"frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]\n0 0 100 {focal} 19.5 11.5\n")
        with pytest.raises(
            DataError, match=f"intrinsic.txt should have finite numbers and focal lengths above 0, frame 0 has .100.0, {focal}"
        ):
            Vkitti2Dataset(tmp_path, "val")


def test_vkitti2_names_colours_that_are_no_class(tmp_path):
    vkitti2_tree(tmp_path)
    data = Vkitti2Dataset(tmp_path, "val")
    write_image(data.path("classSegmentation", 0), np.full((*SIZE, 3), (1, 2, 3), np.uint8))
    with pytest.raises(DataError, match=r"classgt_00000.png has colours \[\[1, 2, 3\]\]; allowed are the 14 of colors.txt"):
        data[0]
    (tmp_path / "Scene06/clone/colors.txt").write_text("Category r g b\nBoat 1 2 3\n")
    with pytest.raises(DataError, match="colors.txt is no colors.txt of Virtual KITTI 2 .*its classes are Boat"):
        Vkitti2Dataset(tmp_path, "val")


def test_the_reader_of_vkitti2_reads_what_lix_world_render_writes(tmp_path):
    world_folder(tmp_path, seed=1)
    truth = open_world(tmp_path)
    data = Vkitti2Dataset(tmp_path, "all", x="depth")
    assert data.labels is STREET and len(data) == 3
    for index, sample in enumerate(data):
        frame = truth[index]
        assert np.array_equal(sample.labels, frame.labels) and np.array_equal(sample.known, np.isfinite(frame.depth))
        assert np.allclose(ENCODINGS["depth"].decode(sample.x, sample.known)[sample.known], frame.depth[sample.known], atol=0.006)
        assert sample.camera == frame.camera
    disparity = Vkitti2Dataset(tmp_path, "all", x="disparity")[0]
    expected, _ = encode("disparity", depth=truth[0].depth, camera=truth[0].camera, baseline=truth[0].right_camera.baseline)
    assert np.allclose(disparity.x, expected, atol=0.01)
    with pytest.raises(DataError, match="is of `lix world render`, which has no train: take split 'all', or the data set world"):
        Vkitti2Dataset(tmp_path, "train")
    for variations in ("snow", ["fog", "snow"]):
        with pytest.raises(DataError, match="there is no variation 'snow'; there are 'fog'"):
            Vkitti2Dataset(tmp_path, "all", variations=variations)
    with pytest.raises(DataError, match="there is no camera 'Camera_1'; there are 'Camera_0'"):
        Vkitti2Dataset(tmp_path, "all", cameras="Camera_1")
    shutil.rmtree(tmp_path / "Scene01")
    with pytest.raises(DataError, match="Scene01/.*meta_00000.json is missing; `lix world render` with the same options goes on"):
        Vkitti2Dataset(tmp_path, "all")


def open_world(path):
    from lix_core.world.folder import WorldFolder

    return WorldFolder.open(path)


# nuImages.


def test_nuimages_draws_surfaces_as_they_come_and_objects_over_them_in_the_order_of_their_tokens(tmp_path):
    masks = nuimages_tree(tmp_path)
    data = NuImagesDataset(tmp_path, "mini", x="depth")
    sample = data[0]
    expected = np.zeros(SIZE, np.uint8)
    expected[masks["flat.driveable_surface"]] = NUIMAGES.id_of("driveable_surface")
    expected[masks["vehicle.ego"]] = 255
    expected[masks["vehicle.car"]] = NUIMAGES.id_of("car")
    expected[masks["animal"]] = 255
    assert np.array_equal(sample.labels, expected) and np.array_equal(sample.image, noise(0))
    assert data.names == ["samples/CAM_FRONT/a.png"] and (data.x_kind, sample.x) == ("", None)


def test_nuimages_test_split_has_no_labels(tmp_path):
    nuimages_tree(tmp_path, "test")
    (tmp_path / "v1.0-test/object_ann.json").unlink()
    assert NuImagesDataset(tmp_path, "test")[0].labels is None


def test_run_length_codes_of_pycocotools_are_decoded():
    """Codes that pycocotools 2.0 made (mask.encode), with runs beyond one digit and negative differences."""
    eye = np.eye(4, 5, dtype=bool)
    assert np.array_equal(decode_mask({"size": [4, 5], "counts": base64.b64encode(b"014000000").decode()}, "a"), eye)
    for code, mask in COCO_CODES:
        assert np.array_equal(decode_mask({"size": list(mask.shape), "counts": base64.b64encode(code).decode()}, "a"), mask)


def disc(height: int, width: int, y: int, x: int, radius: int) -> np.ndarray:
    return np.hypot(np.arange(height)[:, None] - y, np.arange(width) - x) < radius


COCO_CODES = [
    (b"]6;^16L2M4M2N2N2O0O2N2O000O2O00000000000000000001N10001N2N101N2N2N3L3N4Jje0", disc(60, 50, 30, 20, 18)),
    (b"_1[1_10O1000000000000000000000000000000001O00001O00001O001O001O1O1O001O1O1O1O1O2N1O1O2N2N3M3LWQ:", disc(90, 160, 80, 10, 35)),
    (b"01g[1", disc(70, 20, 0, 0, 1)),
]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_run_length_codes_decode_to_what_was_encoded(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert np.array_equal(decode_mask(rle(mask), "a"), mask)


@pytest.mark.parametrize(
    "lost", ["v1.0-mini/sample.json", "v1.0-mini/surface_ann.json", "v1.0-mini/category.json", "samples/CAM_FRONT/a.png"]
)
def test_nuimages_half_downloaded_names_the_missing_file(tmp_path, lost):
    nuimages_tree(tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(DataError, match=f"{lost} is missing; get it from https://www.nuscenes.org/nuimages#download"):
        NuImagesDataset(tmp_path, "mini")


def test_nuimages_with_damaged_masks_says_of_which_frame(tmp_path):
    nuimages_tree(tmp_path)
    table = tmp_path / "v1.0-mini/object_ann.json"
    rows = json.loads(table.read_text())
    for mask, message in (
        ({"size": [24, 41], "counts": rle(np.zeros((24, 41), bool))["counts"]}, r"a.png is \(24, 40\) but one of its masks is \(24, 41\)"),
        (
            {"size": [24, 40], "counts": rle(np.zeros((2, 2), bool))["counts"]},
            "CAM_FRONT/a.png is damaged .run lengths add up to 4",
        ),
        ({"size": [24, 40], "counts": "***"}, "a mask of samples/CAM_FRONT/a.png is damaged"),
    ):
        table.write_text(json.dumps([{**rows[0], "mask": mask}]))
        with pytest.raises(DataError, match=message):
            NuImagesDataset(tmp_path, "mini")[0]


@pytest.mark.parametrize(
    ("table", "content", "words"),
    [
        ("object_ann", "[", "is damaged .*Expecting value"),
        ("object_ann", '[{"token": "1"}]', "is damaged .KeyError.'sample_data_token'"),
        (
            "object_ann",
            json.dumps([{**annotation("1", "car", np.zeros((1, 1), bool)), "token": None}]),
            "is damaged .* of a row are .None, 'key'",
        ),
        ("category", "{}", "has no row 'c-flat.driveable_surface', which another table names"),
        ("category", '[{"token": ["c"], "name": "car"}]', "is damaged .*token, name of a row are"),
        ("sample", "[]", "has no rows"),
        ("sample", "[[]]", "is damaged .TypeError"),
        ("sample_data", '[{"token": "sweep", "filename": "b.png"}]', "has no row 'key', which another table names"),
    ],
)
def test_nuimages_with_a_damaged_table_says_which(tmp_path, table, content, words):
    nuimages_tree(tmp_path)
    (tmp_path / f"v1.0-mini/{table}.json").write_text(content)
    with pytest.raises(DataError, match=f"v1.0-mini/{table}.json {words}.*; fetch it again"):
        NuImagesDataset(tmp_path, "mini")


# Potholes.


def test_the_five_folds_hold_every_frame_once_and_some_of_each_set():
    everything = names_of("all", 0, None)
    assert len(everything) == 67 and len(set(everything)) == 67 and everything[0] == "set1_01" and everything[-1] == "set3_05"
    tests = [names_of("test", fold, None) for fold in range(5)]
    assert sorted(sum(tests, [])) == everything
    counts = [[sum(n.startswith(s) for n in names) for s in ("set1", "set2", "set3")] for names in tests]
    assert counts == [[4, 8, 1], [4, 7, 1], [6, 8, 1], [4, 7, 1], [4, 10, 1]]
    for fold, test in enumerate(tests):
        assert sorted([*names_of("train", fold, None), *test]) == everything


@pytest.mark.parametrize("fold", range(5))
def test_inner_folds_divide_the_training_part_and_never_see_the_reported_fold(fold):
    train = names_of("train", fold, None)
    inner = [names_of("val", fold, k) for k in range(4)]
    assert sorted(sum(inner, [])) == train
    for k in range(4):
        assert sorted([*names_of("train", fold, k), *inner[k]]) == train
    with pytest.raises(DataError, match="no split 'test' here, there are train, val; with inner, the reported fold is not seen"):
        names_of("test", fold, 0)
    with pytest.raises(DataError, match="no split 'val' here, there are train, test, all; choosing is done on inner folds: give inner"):
        names_of("val", fold, None)


def test_folds_that_do_not_exist_are_refused():
    for fold, inner in ((5, None), (-1, None), (0, 4), ("0", None)):
        with pytest.raises(DataError, match="fold must be 0..4 and inner 0..3 or left out"):
            names_of("train", fold, inner)


def test_pothole_x_counts_from_the_roads_level_in_units_of_one_spread(tmp_path):
    pothole_tree(tmp_path, names_of("test", 1, None))
    data = PotholeDataset(tmp_path, "test", x="transformed_disparity", fold=1)
    assert data.labels.names == ("road", "pothole") and (data.x_kind, data.x_channels) == ("transformed_disparity", 1)
    sample = data[0]
    assert (
        sample.name == "set1_05"
        and np.array_equal(sample.labels, cycle([0, 1]))
        and np.abs(sample.image.astype(int) - colours(0)).max() <= 3
    )
    assert np.array_equal(sample.known, cycle([0, 1, 1, 1, 1]) > 0)
    assert np.array_equal(sample.x[0], cycle([0, 0, 0, 0, -4], dtype=np.float32))
    assert PotholeDataset(tmp_path, "test", fold=1)[0].x is None


def test_potholes_may_be_labelled_where_x_is_below_a_threshold(tmp_path):
    pothole_tree(tmp_path, names_of("test", 1, None))
    for x, threshold, expected in (
        ("transformed_disparity", -2, [255, 0, 0, 0, 1]),
        ("", -2, [255, 0, 0, 0, 1]),
        ("", 1, [255, 1, 1, 1, 1]),
    ):
        sample = PotholeDataset(tmp_path, "test", x=x, fold=1, threshold=threshold)[0]
        assert np.array_equal(sample.labels, cycle(expected)) and (sample.x is None) == (not x)


def test_pothole_x_does_not_change_with_the_level_and_is_limited(tmp_path):
    codes = np.array([[50000, 50000, 50000, 30000], [0, 50000, 65535, 2000]], np.uint16)
    from lix_core.data.pothole import encode as encode_codes

    x, known = encode_codes(codes)
    assert x[0].tolist() == [[0, 0, 0, -5], [0, 0, 3, -6]] and known.tolist() == [[True] * 4, [False, True, True, True]]
    lower, _ = encode_codes(np.where(codes == 50000, 46000, np.where(codes == 30000, 26000, codes)).astype(np.uint16))
    assert np.array_equal(x[0, 0], lower[0, 0])
    nothing, known = encode_codes(np.zeros((2, 3), np.uint16))
    assert nothing.shape == (1, 2, 3) and not nothing.any() and not known.any()


@pytest.mark.parametrize("lost", ["rgb/set2_09.jpg", "label/set2_09.png", "disparity/set2_09.png"])
def test_pothole_half_downloaded_names_the_missing_file(tmp_path, lost):
    pothole_tree(tmp_path, names_of("test", 1, None))
    (tmp_path / lost).unlink()
    with pytest.raises(DataError, match=f"{lost} is missing; get it from https://github.com/ruirangerfan/stereo_pothole_datasets"):
        PotholeDataset(tmp_path, "test", x="transformed_disparity", fold=1)


def test_pothole_refuses_other_x_and_other_ids(tmp_path):
    pothole_tree(tmp_path, names_of("test", 1, None))
    with pytest.raises(DataError, match="no kind of X of this data set 'depth'; there are '', 'transformed_disparity'"):
        PotholeDataset(tmp_path, "test", x="depth", fold=1)
    write_image(tmp_path / "label/set1_05.png", np.full(SIZE, 255, np.uint8))
    with pytest.raises(DataError, match="set1_05.png has ids 255; allowed are 0..1"):
        PotholeDataset(tmp_path, "test", fold=1)[0]


@pytest.mark.skipif(not POTHOLE.is_dir(), reason="the recordings are not here")
def test_on_the_real_frames_potholes_lie_below_the_road():
    data = open_dataset("pothole", POTHOLE, "all", x="transformed_disparity")
    assert len(data) == 67
    for sample in data:
        depth = sample.x[0]
        road, hole = (depth[sample.known & (sample.labels == i)] for i in (0, 1))
        assert abs(np.median(road)) < 0.3 and np.median(hole) < -1.5 and sample.known.mean() > 0.98
