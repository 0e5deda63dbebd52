"""Small data sets on disk, in the official layouts, with what should be read from them."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from lix_core.camera import Camera
from lix_core.world.drive import Drive, Rig, WorldFrame
from lix_core.world.folder import WorldFolder

SIZE = (24, 40)
"""Height and width of most pictures."""


def write_image(path: Path, pixels: np.ndarray) -> None:
    """(H, W) uint8 or uint16, or (H, W, 3) uint8 RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.ascontiguousarray(pixels[..., ::-1] if pixels.ndim == 3 else pixels))


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims to be of that size, with no pixels to show for it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG with an EXIF orientation: 3 is half a turn, 6 a quarter."""
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def write_text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def colours(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) uint8 that a JPEG keeps: flat, in one colour per seed."""
    return np.full((*size, 3), np.random.default_rng(seed).integers(0, 256, 3), np.uint8)


def noise(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def cycle(values: Sequence[int], size: tuple[int, int] = SIZE, dtype: type = np.uint8) -> np.ndarray:
    """(H, W) in which the values take turns."""
    return np.resize(np.array(values, dtype), size)


# ---- one tree each


def camvid_tree(root: Path, split: str = "train", stems: Iterable[str] = ("a", "b")) -> None:
    """Pictures `noise(place)`, labels 0..11 in turns."""
    for place, stem in enumerate(stems):
        write_image(root / split / "image" / f"{stem}.png", noise(place))
        write_image(root / split / "label" / f"{stem}.png", cycle(range(12)))


CITYSCAPES_CAMERA = {"extrinsic": {"baseline": 0.25}, "intrinsic": {"fx": 100.0, "fy": 90.0, "u0": 20.0, "v0": 11.0}}


def cityscapes_tree(root: Path, split: str = "val", frames: Iterable[str] = ("frankfurt/frankfurt_000000_000294",)) -> None:
    """Ids 0..33 in turns; 16-bit disparities 0 (unknown), 1 + 256 (1 pixel) and 1 + 1280 (5 pixels) in turns."""
    for place, frame in enumerate(frames):
        write_image(root / "leftImg8bit" / split / f"{frame}_leftImg8bit.png", noise(place))
        write_image(root / "gtFine" / split / f"{frame}_gtFine_labelIds.png", cycle(range(34)))
        write_image(root / "disparity" / split / f"{frame}_disparity.png", cycle([0, 257, 1281], dtype=np.uint16))
        write_text(root / "camera" / split / f"{frame}_camera.json", json.dumps(CITYSCAPES_CAMERA))


KITTI_CALIBRATION = """calib_time: 09-Jan-2012 13:57:47
corner_dist: 9.950000e-02
S_02: 1.392000e+03 5.120000e+02
S_rect_02: 4.000000e+01 2.400000e+01
P_rect_02: 1.000000e+02 0.0 2.000000e+01 6.000000e+00 0.0 1.000000e+02 1.100000e+01 0.0 0.0 0.0 1.0 0.0
P_rect_03: 1.000000e+02 0.0 2.000000e+01 -4.400000e+01 0.0 1.000000e+02 1.100000e+01 0.0 0.0 0.0 1.0 0.0
"""
"""fx 100, baseline 0.06 + 0.44 = 0.5 m."""


def kitti_tree(root: Path, frames: Iterable[int], size: tuple[int, int] = SIZE, shift: int = 0) -> None:
    """Ids 0..33 and 255 in turns; disparities 0 (unknown), 1 and 5 pixels in turns; image_3 is image_2 moved left by `shift`."""
    for frame in frames:
        name, image = f"{frame:06d}_10.png", noise(frame, size)
        write_image(root / "training" / "image_2" / name, image)
        write_image(root / "training" / "image_3" / name, np.roll(image, -shift, 1))
        write_image(root / "training" / "semantic" / name, cycle([*range(34), 255], size))
        write_image(root / "training" / "disp_occ_0" / name, cycle([0, 256, 1280], size, np.uint16))
        write_text(root / "training" / "calib_cam_to_cam" / f"{frame:06d}.txt", KITTI_CALIBRATION)


VKITTI2_COLOURS = """Category r g b
Terrain 210 0 200
Sky 90 200 255
Tree 0 199 0
Vegetation 90 240 0
Building 140 140 140
Road 100 60 100
GuardRail 250 100 255
TrafficSign 255 255 0
TrafficLight 200 200 0
Pole 255 130 0
Misc 80 80 80
Truck 160 60 60
Car 255 127 80
Van 0 139 139
Undefined 0 0 0
"""


def vkitti2_tree(root: Path, sequences: Iterable[str] = ("Scene06/clone",), frames: int = 2) -> None:
    """Classes in turns of colors.txt, so ids 0..13 and 255; depths 65535 (sky), 200 and 1000 cm in turns; baseline 0.532725 m."""
    palette = [[int(v) for v in row.split()[1:]] for row in VKITTI2_COLOURS.splitlines()[1:]]
    classes = np.array(palette, np.uint8)[cycle(range(15))]
    for sequence in sequences:
        home = root / sequence
        intrinsic, extrinsic = ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"], ["frame cameraID r1,1 r1,2 r1,3 t1 r2,1 ..."]
        for frame in range(frames):
            for camera in (0, 1):
                folder = home / "frames"
                write_image(folder / f"rgb/Camera_{camera}/rgb_{frame:05d}.jpg", colours(10 * frame + camera))
                write_image(folder / f"depth/Camera_{camera}/depth_{frame:05d}.png", cycle([65535, 200, 1000], dtype=np.uint16))
                write_image(folder / f"classSegmentation/Camera_{camera}/classgt_{frame:05d}.png", classes)
                intrinsic.append(f"{frame} {camera} 100.0 90.0 19.5 11.5")
                extrinsic.append(f"{frame} {camera} 1 0 0 {7 - 0.532725 * camera} 0 1 0 0 0 0 1 0 0 0 0 1")
        write_text(home / "intrinsic.txt", "\n".join(intrinsic) + "\n")
        write_text(home / "extrinsic.txt", "\n".join(extrinsic) + "\n")
        write_text(home / "colors.txt", VKITTI2_COLOURS)


def pothole_tree(root: Path, names: Iterable[str], codes: np.ndarray | None = None) -> None:
    """Labels 0 and 1 in turns; disparities 0 (unknown), 50000, 50000, 50000, 34000 in turns, unless given."""
    for place, name in enumerate(names):
        write_image(root / "rgb" / f"{name}.jpg", colours(place))
        write_image(root / "label" / f"{name}.png", cycle([0, 1]))
        write_image(root / "disparity" / f"{name}.png", cycle([0, 50000, 50000, 50000, 34000], dtype=np.uint16) if codes is None else codes)


# ---- nuImages


def rle(mask: np.ndarray) -> dict:
    """A mask in nuImages' form; the code is written digit by digit after cocoapi's description."""
    flat = mask.T.ravel().astype(int)
    runs, value = [0], 0
    for pixel in flat:
        if pixel != value:
            runs, value = [*runs, 0], pixel
        runs[-1] += 1
    text = ""
    for place, run in enumerate(runs):
        number = run - runs[place - 2] if place > 2 else run
        while True:
            digit, number = number & 0x1F, number >> 5
            done = number == (-1 if digit & 0x10 else 0)
            text += chr(48 + digit + (0 if done else 0x20))
            if done:
                break
    return {"size": list(mask.shape), "counts": base64.b64encode(text.encode()).decode()}


def nuimages_tree(root: Path, split: str = "mini") -> dict[str, np.ndarray]:
    """One frame: road below, a car over it, an animal over the car, the car itself at the bottom. Gives the masks by category."""
    masks = {name: np.zeros(SIZE, bool) for name in ("flat.driveable_surface", "vehicle.ego", "vehicle.car", "animal")}
    masks["flat.driveable_surface"][12:] = True
    masks["vehicle.ego"][22:, 5:35] = True
    masks["vehicle.car"][8:16, 10:20] = True
    masks["animal"][10:13, 15:25] = True
    tables = {
        "category": [{"token": f"c-{name}", "name": name} for name in masks],
        "sample": [{"token": "s", "key_camera_token": "key"}],
        "sample_data": [
            {"token": "key", "sample_token": "s", "filename": "samples/CAM_FRONT/a.png", "is_key_frame": True},
            {"token": "sweep", "sample_token": "s", "filename": "sweeps/CAM_FRONT/b.png", "is_key_frame": False},
        ],
        # In the order in which they are drawn, which is not that of their tokens.
        "surface_ann": [
            annotation("9", "flat.driveable_surface", masks["flat.driveable_surface"]),
            annotation("8", "vehicle.ego", masks["vehicle.ego"]),
        ],
        # Not in the order in which they are drawn, which is that of their tokens.
        "object_ann": [
            annotation("2", "animal", masks["animal"]),
            annotation("1", "vehicle.car", masks["vehicle.car"]),
            {**annotation("3", "vehicle.car", masks["vehicle.car"]), "mask": None},
        ],
    }
    for name, rows in tables.items():
        write_text(root / f"v1.0-{split}" / f"{name}.json", json.dumps(rows))
    write_image(root / "samples/CAM_FRONT/a.png", noise(0))
    return masks


def annotation(token: str, category: str, mask: np.ndarray) -> dict:
    return {"token": token, "sample_data_token": "key", "category_token": f"c-{category}", "mask": rle(mask)}


# ---- the world

WORLD_CAMERA = Camera.pinhole(160, 64, 100.0)
WALL_M = 5.0
"""Distance of the wall in front of the camera [m]."""


def world_frame(index: int) -> WorldFrame:
    """A textured wall, parallel to the picture, under a sky: right image, cloud, depth and normals agree."""
    rig = Rig(WORLD_CAMERA)
    height, width = WORLD_CAMERA.shape
    baseline = rig.right_camera.baseline
    shift = round(WORLD_CAMERA.fx * baseline / WALL_M)
    wall = cv2.GaussianBlur(noise(index, (height, width + shift)), (3, 3), 0.8)
    sky = np.zeros((height, width), bool)
    sky[:8] = True
    depth = np.where(sky, np.nan, np.float32(WORLD_CAMERA.fx * baseline / shift)).astype(np.float32)
    points = WORLD_CAMERA.backproject(depth)[~sky]
    lidar = (points - rig.camera_from_lidar[:3, 3]) @ rig.camera_from_lidar[:3, :3]
    return WorldFrame(
        index,
        index / 10.0,
        scene_seed=index,
        weather="fog",
        camera=rig.camera,
        right_camera=rig.right_camera,
        world_from_camera=np.eye(4),
        rgb=np.ascontiguousarray(wall[:, :width]),
        right=np.ascontiguousarray(wall[:, shift:]),
        depth=depth,
        normals=np.where(sky[..., None], np.nan, np.array([0, 0, -1])).astype(np.float32),
        labels=np.where(sky, 0, cycle(range(1, 11), (height, width))).astype(np.uint8),
        instances=np.zeros((height, width), np.uint16),
        cloud=np.column_stack([lidar, np.ones((len(lidar), 2))]).astype(np.float32),
        camera_from_lidar=rig.camera_from_lidar,
    )


def world_folder(path: Path, seed: int, frames: int = 3) -> None:
    """A whole folder of `lix world render`, two frames to a scene, without a ray caster."""
    folder = WorldFolder.create(path, Drive(seed=seed, rig=Rig(WORLD_CAMERA), frames_per_scene=2), frames)
    for scene, indices in folder.missing().items():
        for index in indices:
            folder.write(replace(world_frame(index), index=index))
        folder.finish_scene(scene)
