"""Virtual KITTI 2: five simulated drives in ten variations, 14 classes, exact depth. Also reads what `lix world render` writes.

Cabon, Murray, Humenberger, arXiv:2001.10773; colours, depth and calibration as its download page documents them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from lix_core.camera import Camera
from lix_core.data.readers import FrameSet, check_choice, check_x, decode, read_rgb, read_uint16, require
from lix_core.data.sample import Sample
from lix_core.errors import DataError
from lix_core.files import expanded
from lix_core.geometry.encodings import encode
from lix_core.labels import STREET, UNLABELLED, Label, LabelSet

VKITTI2 = LabelSet(
    "vkitti2",
    (
        Label("Terrain", (210, 0, 200)),
        Label("Sky", (90, 200, 255)),
        Label("Tree", (0, 199, 0)),
        Label("Vegetation", (90, 240, 0)),
        Label("Building", (140, 140, 140)),
        Label("Road", (100, 60, 100)),
        Label("GuardRail", (250, 100, 255)),
        Label("TrafficSign", (255, 255, 0)),
        Label("TrafficLight", (200, 200, 0)),
        Label("Pole", (255, 130, 0)),
        Label("Misc", (80, 80, 80)),
        Label("Truck", (160, 60, 60)),
        Label("Car", (255, 127, 80)),
        Label("Van", (0, 139, 139)),
    ),
)
"""The 14 classes, in the order of colors.txt."""
UNDEFINED = ("Undefined", (0, 0, 0))
"""What colors.txt and some pictures may have besides; ignored."""

SPLITS = {
    "train": ("Scene01", "Scene18", "Scene20"),
    "val": ("Scene06",),
    "test": ("Scene02",),
    "all": ("Scene01", "Scene02", "Scene06", "Scene18", "Scene20"),
}
"""This project's split, as there is no official one: whole drives, so that no street is in two splits (1623, 270 and 233 frames)."""
VARIATIONS = (
    "clone",
    "15-deg-left",
    "15-deg-right",
    "30-deg-left",
    "30-deg-right",
    "fog",
    "morning",
    "overcast",
    "rain",
    "sunset",
)
CAMERAS = ("Camera_0", "Camera_1")
FAR_CM = 65535
"""Depth [cm] of the sky, and of what is farther."""
NO_COLOUR = 254
FILES = {"rgb": "rgb_{}.jpg", "depth": "depth_{}.png", "classSegmentation": "classgt_{}.png"}


class Vkitti2Dataset(FrameSet):
    """Frames `<root>/<scene>/<variation>/frames/{rgb,depth,classSegmentation}/<camera>/`, listed by `<variation>/intrinsic.txt`.

    split: train, val, test or all; see SPLITS. Of a folder of `lix world render`, all. x: a kind of lix_core.geometry.encodings, from the
    exact depth; the sky is unknown. variations: of VARIATIONS; left out, `clone` (all that are there in a folder of `lix world render`).
    cameras: of CAMERAS (a folder of `lix world render` has the first). step: every so many frames.

    Raises:
        DataError: a file is missing, named; from `self[i]`, a file that is no such file, or colours that colors.txt does not have.
    """

    licence = "CC BY-NC-SA 3.0 (Naver Labs Europe); folders of `lix world render`: CC0-1.0"
    source = "https://europe.naverlabs.com/research/computer-vision/proxy-virtual-worlds-vkitti-2/: vkitti_2.0.3_rgb.tar, \
vkitti_2.0.3_classSegmentation.tar, vkitti_2.0.3_textgt.tar.gz; for X also vkitti_2.0.3_depth.tar, unpacked into one folder"

    def __init__(
        self,
        root: str | Path,
        split: str,
        x: str = "",
        variations: Sequence[str] | str = (),
        cameras: Sequence[str] | str = ("Camera_0",),
        step: int = 1,
    ):
        check_choice("split", split, SPLITS)
        check_x(x)
        cameras = [cameras] if isinstance(cameras, str) else list(cameras)
        self.root = expanded(root)
        self.rendered = (self.root / "world.json").exists()
        for camera in cameras:
            check_choice("camera", camera, CAMERAS[:1] if self.rendered else CAMERAS)
        if step < 1:
            raise DataError(f"step must be 1 or more frames, got {step}")
        cure = "`lix world render` with the same options makes it again" if self.rendered else f"get it from {self.source}"
        sequences = self._sequences(split, [variations] if isinstance(variations, str) else list(variations))
        require((self.root / sequence / text for sequence in sequences for text in ("intrinsic.txt", "colors.txt")), cure)
        self._frames, self._baselines = [], {}
        for sequence in sequences:
            intrinsics = read_rows(self.root / sequence / "intrinsic.txt", 4)
            if x == "disparity":
                self._baselines[sequence] = read_baseline(self.root / sequence / "extrinsic.txt")
            for (frame, number), values in sorted(intrinsics.items()):
                if not (min(values[:2]) > 0 and np.isfinite(values).all()):
                    text = self.root / sequence / "intrinsic.txt"
                    wrong = f"{text} should have finite numbers and focal lengths above 0, frame {frame} has {values} for camera {number}"
                    raise DataError(f"{wrong}; fetch it again")
                if CAMERAS[number] in cameras and frame % step == 0:
                    self._frames.append((sequence, CAMERAS[number], f"{frame:05d}", values))
        super().__init__([f"{sequence}/{camera}/{frame}" for sequence, camera, frame, _ in self._frames], x)
        parts = ("rgb", "classSegmentation", *(["depth"] if x else []))
        require((self.path(part, i) for i in range(len(self)) for part in parts), cure)
        self.labels, self._lut = read_colours(self.root / sequences[0] / "colors.txt")

    def _sequences(self, split: str, variations: list[str]) -> list[str]:
        """The folders <scene>/<variation> of the split."""
        if not self.rendered:
            for variation in variations:
                check_choice("variation", variation, VARIATIONS)
            return [f"{scene}/{variation}" for scene in SPLITS[split] for variation in variations or ("clone",)]
        if split != "all":
            raise DataError(f"{self.root} is of `lix world render`, which has no {split}: take split 'all', or the data set world")
        from lix_core.world.folder import WorldFolder

        WorldFolder.open(self.root)  # refuses one that is not whole
        found = sorted(path.parent.relative_to(self.root).as_posix() for path in self.root.glob("Scene*/*/frames"))
        there = sorted({sequence.split("/")[1] for sequence in found})
        for variation in variations:
            check_choice("variation", variation, there)
        return [sequence for sequence in found if not variations or sequence.split("/")[1] in variations]

    def path(self, part: str, index: int) -> Path:
        """A file of a frame; part: a key of FILES."""
        sequence, camera, frame, _ = self._frames[index]
        return self.root / sequence / "frames" / part / camera / FILES[part].format(frame)

    def read(self, index: int) -> Sample:
        sequence, _, _, values = self._frames[index]
        image, labels = read_rgb(self.path("rgb", index)), self._read_labels(self.path("classSegmentation", index))
        height, width = image.shape[:2]
        camera = Camera.pinhole(width, height, *values)
        if not self.x_kind:
            return self.sample(index, image, labels, camera=camera)
        depth = read_depth(self.path("depth", index), camera.shape)
        encoded = encode(self.x_kind, depth=depth, camera=camera, baseline=self._baselines.get(sequence, 0.0))
        return self.sample(index, image, labels, encoded, camera)

    def _read_labels(self, path: Path) -> np.ndarray:
        pixels = cv2.cvtColor(decode(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(np.int32)
        labels = self._lut[pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]]
        if (labels == NO_COLOUR).any():
            colours = np.unique(pixels[labels == NO_COLOUR], axis=0)[:4].tolist()
            raise DataError(f"label {path} has colours {colours}; allowed are the {len(self.labels)} of colors.txt")
        return labels


def read_depth(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 depth [m], NaN in the sky: centimetres in 16 bits. Raises DataError."""
    codes = read_uint16(path, shape)
    return np.where(codes < FAR_CM, codes.astype(np.float32) / 100, np.float32(np.nan))


def read_rows(path: Path, columns: int) -> dict[tuple[int, int], tuple[float, ...]]:
    """(frame, camera) -> the first numbers after them, of a text file of Virtual KITTI 2. Raises DataError."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()[1:] if line.strip()]
        found = {(int(row[0]), int(row[1])): tuple(map(float, row[2 : 2 + columns])) for row in rows}
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path} is no text file of Virtual KITTI 2 ({error}); fetch it again") from None
    if not found or {len(values) for values in found.values()} != {columns} or {camera for _, camera in found} - {0, 1}:
        raise DataError(f"{path} should have rows of frame, camera (0 or 1) and {columns} numbers; fetch it again")
    return found


def read_baseline(path: Path) -> float:
    """Distance of the two cameras [m], out of extrinsic.txt (rows of camera_from_world). Raises DataError."""
    rows = read_rows(path, 12)
    frame = next(frame for frame, _ in rows)
    try:
        # Camera 1 is to the right: the same point has a smaller x in it.
        baseline = rows[frame, 0][3] - rows[frame, 1][3]
    except KeyError:
        raise DataError(f"{path} has only one camera for frame {frame}, disparity needs both; fetch it again") from None
    if not 0 < baseline < np.inf:
        raise DataError(f"{path}: camera 1 should be to the right of camera 0, the baseline is {baseline} m; fetch it again")
    return baseline


def read_colours(path: Path) -> tuple[LabelSet, np.ndarray]:
    """The label set that a colors.txt names, and (2^24,) uint8: 0xRRGGBB -> train id, 255 ignored, or NO_COLOUR."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()[1:] if line.strip()]
        colours = {row[0]: tuple(map(int, row[1:4])) for row in rows}
        codes = {name: r << 16 | g << 8 | b for name, (r, g, b) in (*colours.items(), UNDEFINED)}
        lut = np.full(1 << 24, NO_COLOUR, np.uint8)
        lut[codes["Undefined"]] = UNLABELLED
        names = set(colours) - {"Undefined"}
        labels = next((known for known in (VKITTI2, STREET) if set(known.names) == names), None)
        if labels is None:
            raise ValueError(f"its classes are {', '.join(sorted(names))}")
        lut[[codes[name] for name in labels.names]] = range(len(labels))
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{path} is no colors.txt of Virtual KITTI 2 or of `lix world render` ({error}); fetch it again") from None
    return labels, lut
