"""Frames of the world on disk, in the layout of Virtual KITTI 2 with exact truth beside it; docs/world.md lists the files.

Virtual KITTI 2: Cabon, Murray and Humenberger, arXiv:2001.10773. What its layout has no place for, or only to the centimetre,
is in folders of lix's own.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Iterator

import cv2
import numpy as np

from lix_core import __version__
from lix_core.camera import Camera
from lix_core.errors import DataError
from lix_core.files import expanded, make_folder, save
from lix_core.labels import STREET, LabelSet
from lix_core.pixels import decoded
from lix_core.world.drive import Drive, WorldFrame

WORLD_FILE = "world.json"
FORMAT = 1
LICENCE = "CC0-1.0: rendered by lix out of numbers alone; nothing in it is anybody's picture"
SKY_CM = 65535
"""Depth [cm] of the sky, and of what is farther than 655.34 m, in the 16-bit depth image."""
NORMAL_ZERO, NORMAL_ONE = 32768, 32767
"""A 16-bit component of a normal is NORMAL_ZERO + NORMAL_ONE * n; three zeros are the sky."""
JPEG_QUALITY = 95
DEFLATE = 8
"""Number of the lossless compression in TIFF."""
CLOUD_COLUMNS = 5

FILES = {
    "rgb": "rgb/Camera_0/rgb_{:05d}.jpg",
    "right": "rgb/Camera_1/rgb_{:05d}.jpg",
    "depth_cm": "depth/Camera_0/depth_{:05d}.png",
    "class_colors": "classSegmentation/Camera_0/classgt_{:05d}.png",
    "instances": "instanceSegmentation/Camera_0/instancegt_{:05d}.png",
    "depth": "depthExact/Camera_0/depth_{:05d}.tiff",
    "normals": "normals/Camera_0/normals_{:05d}.png",
    "labels": "labels/Camera_0/labels_{:05d}.png",
    "cloud": "velodyne/velodyne_{:05d}.bin",
    "meta": "meta/meta_{:05d}.json",
}
"""Files of a frame below `frames/`, by its number in the scene. `meta` is written last: a frame that has it is whole."""
TEXTS = ("colors.txt", "extrinsic.txt", "intrinsic.txt")
"""Virtual KITTI 2's text files of a scene, beside `frames/`."""


def settings_of(drive: Drive) -> dict[str, Any]:
    """The arguments that make this drive again."""
    return {name: getattr(drive, name) for name in ("seed", "rig", "weather", "frames_per_scene", "spacing", "rate")}


class WorldFolder:
    """Frames of a drive in a folder: a sequence of WorldFrame.

    `open` one that is whole to read it; `create` one, or go on with it, to `write` frames. A frame is whole or not there, whenever
    the writer ends. What comes back is what was written, but for: rgb and right (JPEG of quality 95), normals (to 0.002 degrees).

    labels: the label set of the frames' labels. rate: frames per second [Hz]. name: of the folder. drive: the arguments of the Drive
    that was rendered, as plain data.
    """

    def __init__(self, path: Path, world: dict[str, Any]):
        self.path, self.name = path, path.name
        try:
            self._length = int(world["frames"])
            self.drive: dict[str, Any] = world["drive"]
            self.rate = float(self.drive["rate"])
            self._per_scene = int(self.drive["frames_per_scene"])
            self.labels = LabelSet.from_dict(world["labels"])
            written = world["format"]
            if self._length < 1 or self._per_scene < 1:
                raise ValueError("frames and frames_per_scene count from 1")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path / WORLD_FILE} is not of a folder that `lix world render` wrote: {error}") from None
        if written != FORMAT:
            raise DataError(f"{path / WORLD_FILE} is of format {written}, this lix reads {FORMAT}; render it again")
        self._homes: dict[int, Path] = {}

    # ---- reading

    @classmethod
    def open(cls, path: str | Path) -> "WorldFolder":
        """Open a folder whose frames are all there.

        Raises:
            DataError: no such folder, or a file of it is missing; names the file.
        """
        path = expanded(path)
        folder = cls(path, read_world(path))
        for scene in range(folder.scenes):
            whole = folder._whole_frames(scene)
            missing = [folder._first_missing(scene, number) for number in folder._numbers(scene) if number not in whole]
            missing += [home / text for home in whole.values() for text in TEXTS if not (home / text).exists()]
            if missing:
                raise DataError(
                    f"{path} is not whole: {missing[0]} is missing; `lix world render` with the same options goes on where it stopped"
                )
            folder._homes |= {scene * folder._per_scene + number: home for number, home in whole.items()}
        return folder

    @staticmethod
    def is_one(path: str | Path) -> bool:
        """Whether there is a folder that `lix world render` has begun."""
        return (expanded(path) / WORLD_FILE).is_file()

    @property
    def camera(self) -> Camera:
        """The left camera, as the first frame has it."""
        return self._meta(0)["camera"]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[WorldFrame]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> WorldFrame:
        return self.frame(index)

    def frame(self, index: int, right: bool = True, cloud: bool = True) -> WorldFrame:
        """Read one frame; without `right` or `cloud` those are empty arrays, as `Drive.frame` has it.

        Raises:
            DataError: a file has gone or is damaged. IndexError: beyond the last frame.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)} in {self.path}")
        meta = self._meta(index)
        shape = meta["camera"].shape
        arrays = {"right": np.zeros((0, 0, 3), np.uint8), "cloud": np.zeros((0, CLOUD_COLUMNS), np.float32)}
        wanted = set(READERS) - ({"right"} if not right else set()) - ({"cloud"} if not cloud else set())
        arrays |= {name: READERS[name](self._file(index, name), shape) for name in sorted(wanted)}
        return WorldFrame(**meta, **arrays)

    def _meta(self, index: int) -> dict[str, Any]:
        path = self._file(index, "meta")
        try:
            meta = json.loads(read_bytes(path))
            for name in ("camera", "right_camera"):
                meta[name] = Camera(**meta[name])
            for name in ("world_from_camera", "camera_from_lidar"):
                meta[name] = np.array(meta[name], np.float64).reshape(4, 4)
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(path, error) from None
        return meta

    def _file(self, index: int, name: str) -> Path:
        if index not in self._homes:
            self._homes |= {
                index // self._per_scene * self._per_scene + number: home
                for number, home in self._whole_frames(index // self._per_scene).items()
            }
        if index not in self._homes:
            raise DataError(f"{self.path} is not whole: {self._first_missing(*divmod(index, self._per_scene))} is missing")
        return self._homes[index] / "frames" / FILES[name].format(index % self._per_scene)

    # ---- writing

    @classmethod
    def create(cls, path: str | Path, drive: Drive, frames: int) -> "WorldFolder":
        """A folder for the first `frames` frames of a drive: a new one, or one that was begun, which may also grow.

        Raises:
            SourceError: the folder cannot be written.
            DataError: it holds other things, frames of another drive or of another version of lix, or more frames; says what differs.
        """
        path = expanded(path)
        # Another version of lix may draw another street from the same seed.
        settings = {"lix": __version__, **settings_of(drive), "rig": asdict(drive.rig)}
        world = {"format": FORMAT, "frames": frames, "drive": settings, "labels": STREET.to_dict(), "licence": LICENCE}
        world = json.loads(json.dumps(world))
        make_folder(path)
        if (path / WORLD_FILE).exists():
            there = cls(path, read_world(path))
            if difference := differences(there.drive, world["drive"]):
                raise DataError(f"{path} was rendered with other options: {difference}; give the same ones, or name another folder")
            if frames < len(there):
                raise DataError(
                    f"{path} is of {len(there)} frames, {frames} are asked for; ask for at least as many, or name another folder"
                )
            if frames > len(there):  # the last scene may grow: its text files have to be made anew
                for home in there._variations(there.scenes - 1):
                    for text in TEXTS:
                        (home / text).unlink(missing_ok=True)
        elif any(path.iterdir()):
            raise DataError(f"{path} is not empty and not of `lix world render` (it has no {WORLD_FILE}); name another folder")
        save(path / WORLD_FILE, (json.dumps(world, indent=1) + "\n").encode())
        return cls(path, world)

    def write(self, frame: WorldFrame) -> None:
        """Write one frame, whole or not at all. Raises SourceError where it cannot be written."""
        scene, number = divmod(frame.index, self._per_scene)
        home = self._scene(scene) / frame.weather
        for name, content in encoded(frame, self.labels).items():
            path = home / "frames" / FILES[name].format(number)
            if not path.parent.is_dir():
                make_folder(path.parent)
            save(path, content)
        self._homes[frame.index] = home

    def missing(self) -> dict[int, list[int]]:
        """The work that is left: scene -> indices of its frames that are not whole (none where only its text files lack)."""
        work = {}
        for scene in range(self.scenes):
            whole = self._whole_frames(scene)
            left = [scene * self._per_scene + number for number in self._numbers(scene) if number not in whole]
            if left or any(not (home / text).exists() for home in whole.values() for text in TEXTS):
                work[scene] = left
        return work

    def finish_scene(self, scene: int) -> None:
        """Write the text files of a scene, out of the frames that are whole. Raises SourceError."""
        homes: dict[Path, list[int]] = {}
        for number, home in sorted(self._whole_frames(scene).items()):
            homes.setdefault(home, []).append(number)
        for home, numbers in homes.items():
            metas = [(number, self._meta(scene * self._per_scene + number)) for number in numbers]
            texts = {"colors.txt": colors_text(self.labels), "extrinsic.txt": extrinsic_text(metas), "intrinsic.txt": intrinsic_text(metas)}
            for name, text in texts.items():
                save(home / name, text.encode())

    # ---- what is there

    @property
    def scenes(self) -> int:
        """How many scenes the frames are of."""
        return -(-len(self) // self._per_scene)

    def _scene(self, scene: int) -> Path:
        return self.path / f"Scene{scene:02d}"

    def _numbers(self, scene: int) -> range:
        return range(min(self._per_scene, len(self) - scene * self._per_scene))

    def _variations(self, scene: int) -> list[Path]:
        folder = self._scene(scene)
        return sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []

    def _whole_frames(self, scene: int) -> dict[int, Path]:
        """Number of each whole frame of a scene -> the folder of its variation."""
        whole = {}
        for home in self._variations(scene):
            present = {path.relative_to(home / "frames").as_posix() for path in (home / "frames").rglob("*.*")}
            whole |= {n: home for n in self._numbers(scene) if all(file.format(n) in present for file in FILES.values())}
        return whole

    def _first_missing(self, scene: int, number: int) -> Path:
        mark = FILES["meta"].format(number)
        for home in self._variations(scene):
            if (home / "frames" / mark).exists():
                return next(p for p in (home / "frames" / f.format(number) for f in FILES.values()) if not p.exists())
        return self._scene(scene) / "*" / "frames" / mark


def read_world(path: Path) -> dict[str, Any]:
    """The content of a folder's world.json. Raises DataError."""
    try:
        return json.loads((path / WORLD_FILE).read_text())
    except OSError as error:
        raise DataError(f"{path / WORLD_FILE}: {error.strerror}; {path} is no folder of `lix world render`") from None
    except ValueError as error:
        raise damaged(path / WORLD_FILE, error) from None


def differences(old: Any, new: Any, name: str = "") -> str:
    """Where two pieces of plain data differ, in words; empty where they are the same."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = [differences(old.get(k), new.get(k), f"{name}.{k}".lstrip(".")) for k in {**old, **new}]
        return ", ".join(text for text in found if text)
    return "" if old == new else f"{name} is {json.dumps(old)} there, {json.dumps(new)} here"


# ---- files of a frame


def encoded(frame: WorldFrame, labels: LabelSet) -> dict[str, bytes]:
    """Content of every file of a frame, by its name in FILES and in that order."""
    sky = np.isnan(frame.depth)
    depth_cm = np.where(sky, SKY_CM, np.rint(np.fmin(frame.depth * 100.0, SKY_CM))).astype(np.uint16)
    normals = np.where(sky[..., None], 0, np.rint(NORMAL_ZERO + NORMAL_ONE * np.nan_to_num(frame.normals))).astype(np.uint16)
    meta = {name: getattr(frame, name) for name in ("index", "time", "scene_seed", "weather")}
    meta |= {name: getattr(frame, name).tolist() for name in ("world_from_camera", "camera_from_lidar")}
    meta |= {name: asdict(getattr(frame, name)) for name in ("camera", "right_camera")}
    jpeg = (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
    return {
        "rgb": image_bytes(".jpg", frame.rgb, *jpeg),
        "right": image_bytes(".jpg", frame.right, *jpeg),
        "depth_cm": image_bytes(".png", depth_cm),
        "class_colors": image_bytes(".png", labels.palette[frame.labels]),
        "instances": image_bytes(".png", frame.instances),
        "depth": image_bytes(".tiff", frame.depth, cv2.IMWRITE_TIFF_COMPRESSION, DEFLATE),
        "normals": image_bytes(".png", normals),
        "labels": image_bytes(".png", frame.labels),
        "cloud": frame.cloud.astype("<f4").tobytes(),
        "meta": (json.dumps(meta) + "\n").encode(),
    }


def image_bytes(suffix: str, image: np.ndarray, *options: int) -> bytes:
    """(H, W) or (H, W, 3) RGB in the format of the suffix."""
    pixels = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    return cv2.imencode(suffix, pixels, list(options))[1].tobytes()


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; `lix world render` with the same options makes it again") from None


def damaged(path: Path, reason: object) -> DataError:
    return DataError(f"{path} is damaged ({reason}); delete it, and `lix world render` with the same options makes it again")


def read_image(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """The image in a file, RGB where it has colours. Raises DataError where it is not of that shape and type."""
    image = decoded(read_bytes(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.shape != shape or image.dtype != dtype:
        found = "cannot be decoded" if image is None else f"holds {image.shape} of {image.dtype}"
        raise damaged(path, f"{found}, expected {shape} of {np.dtype(dtype)}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.ndim == 3 else image


def read_normals(path: Path, shape: tuple[int, int]) -> np.ndarray:
    codes = read_image(path, (*shape, 3), np.uint16)
    normals = (codes.astype(np.float32) - NORMAL_ZERO) / NORMAL_ONE
    normals[~codes.any(axis=2)] = np.nan
    return normals / np.linalg.norm(normals, axis=2, keepdims=True)


def read_cloud(path: Path, shape: tuple[int, int]) -> np.ndarray:
    content = read_bytes(path)
    if len(content) % (4 * CLOUD_COLUMNS):
        raise damaged(path, f"{len(content)} bytes are no whole number of points")
    return np.frombuffer(content, "<f4").astype(np.float32).reshape(-1, CLOUD_COLUMNS)


READERS: dict[str, Callable[[Path, tuple[int, int]], np.ndarray]] = {
    "rgb": lambda path, shape: read_image(path, (*shape, 3), np.uint8),
    "right": lambda path, shape: read_image(path, (*shape, 3), np.uint8),
    "depth": lambda path, shape: read_image(path, shape, np.float32),
    "normals": read_normals,
    "labels": lambda path, shape: read_image(path, shape, np.uint8),
    "instances": lambda path, shape: read_image(path, shape, np.uint16),
    "cloud": read_cloud,
}
"""How each array of a WorldFrame is read out of its file, given the camera's (height, width)."""


# ---- text files of a scene, in Virtual KITTI 2's words

Metas = list[tuple[int, dict[str, Any]]]
"""Number in the scene and `meta` of each frame."""


def colors_text(labels: LabelSet) -> str:
    return "\n".join(["Category r g b", *(" ".join(map(str, (label.name, *label.color))) for label in labels.labels)]) + "\n"


def intrinsic_text(metas: Metas) -> str:
    rows = ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"]
    for number, meta in metas:
        for side, name in enumerate(("camera", "right_camera")):
            camera = meta[name]
            rows.append(f"{number} {side} {camera.fx} {camera.fy} {camera.cx} {camera.cy}")
    return "\n".join(rows) + "\n"


def extrinsic_text(metas: Metas) -> str:
    """Rows of camera_from_world; camera 1 is `baseline` to the right of camera 0."""
    rows = ["frame cameraID " + " ".join(f"r{i},1 r{i},2 r{i},3 t{i}" for i in (1, 2, 3)) + " 0 0 0 1"]
    for number, meta in metas:
        left_from_world = np.linalg.inv(meta["world_from_camera"])
        for side, name in enumerate(("camera", "right_camera")):
            camera_from_world = left_from_world.copy()
            camera_from_world[0, 3] -= meta[name].baseline
            rows.append(f"{number} {side} " + " ".join(repr(float(v) + 0.0) for v in camera_from_world[:3].ravel()) + " 0 0 0 1")
    return "\n".join(rows) + "\n"
