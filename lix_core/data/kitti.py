"""KITTI Semantics: the 200 training frames of stereo 2015 with Cityscapes' labels, and X from the benchmark's disparity or the pair.

Alhaija et al., IJCV 2018 (semantics); Menze and Geiger, CVPR 2015 (stereo 2015).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lix_core import __version__
from lix_core.camera import Camera
from lix_core.data.cityscapes import CITYSCAPES, LABEL_IDS
from lix_core.data.readers import Encoded, FrameSet, IdMap, XCache, check_choice, check_x, read_rgb, read_uint16, require
from lix_core.data.sample import Sample
from lix_core.errors import DataError
from lix_core.files import expanded
from lix_core.geometry.completion import complete
from lix_core.geometry.encodings import encode
from lix_core.geometry.stereo import StereoMatcher, StereoOptions, disparity_to_depth, pair_geometry
from lix_core.labels import UNLABELLED

FRAMES = 200
VAL = (*range(34, 43), *range(88, 99), *range(157, 165), 168, 169)
TEST = (*range(57, 70), *range(118, 130), *range(144, 149))
SPLITS = {
    "train": [i for i in range(FRAMES) if i not in (*VAL, *TEST)],
    "val": list(VAL),
    "test": list(TEST),
    "all": list(range(FRAMES)),
}
"""This project's split, as there is no official one: 140 + 30 + 30 frames, so that train against val and test together is the 7:3 that
papers use. No drive is in two parts, by mapping/train_mapping.txt of stereo 2015's development kit, which names those of 142 frames; the
58 that it does not name are in train."""
IDS = IdMap({**LABEL_IDS.table, 255: UNLABELLED})
"""Cityscapes' ids; 255 is their -1 (licence plates) in a file of 8 bits."""
GEOMETRIES = ("completed", "truth", "stereo")
MAX_DISPARITY = 192
"""[pixels]: down to 2 m."""


class KittiDataset(FrameSet):
    """One split: `<root>/training/{image_2,semantic}/<frame>_10.png`; for X also calib_cam_to_cam/ and disp_occ_0/ or image_3/.

    split: train, val, test or all; see SPLITS. x: a kind of lix_core.geometry.encodings.
    geometry: where X comes from. `truth`: the benchmark's disparity (LiDAR and fitted cars: about a fifth of the pixels). `completed`: the
    same with the gaps filled by lix_core.geometry.completion. `stereo`: lix_core.geometry.stereo on image_2 and image_3.
    cache: keep X that is slow to make in `<root>/lix_x/`.

    Raises:
        DataError: a file is missing, named; from `self[i]`, a file that is no such file, or ids that do not occur.
    """

    labels = CITYSCAPES
    licence = "CC BY-NC-SA 3.0"
    source = "https://www.cvlibs.net/datasets/kitti/eval_semseg.php (data_semantics.zip); for X https://www.cvlibs.net/datasets/kitti/\
eval_scene_flow.php?benchmark=stereo (data_scene_flow.zip and data_scene_flow_calib.zip), unpacked into one folder"

    def __init__(self, root: str | Path, split: str, x: str = "", geometry: str = "completed", cache: bool = True):
        check_choice("split", split, SPLITS)
        check_choice("geometry", geometry, GEOMETRIES)
        check_x(x)
        self.root, self.geometry = expanded(root) / "training", geometry
        super().__init__([f"{i:06d}_10" for i in SPLITS[split]], x)
        parts = ["image_2", "semantic", *(["calib_cam_to_cam", "image_3" if geometry == "stereo" else "disp_occ_0"] if x else [])]
        require((self.path(part, i) for i in range(len(self)) for part in parts), f"get it from {self.source}")
        slow = x and geometry != "truth"
        self.cache = XCache(expanded(root) / "lix_x" / f"{geometry}-{x}-{__version__}" if cache else None) if slow else None

    def path(self, part: str, index: int) -> Path:
        """A file of a frame; part: a folder of `training`."""
        name = self.names[index]
        return self.root / part / (f"{name[:6]}.txt" if part == "calib_cam_to_cam" else f"{name}.png")

    def read(self, index: int) -> Sample:
        image, labels = read_rgb(self.path("image_2", index)), IDS.read(self.path("semantic", index))
        if not self.x_kind:
            return self.sample(index, image, labels)
        left, right = read_pair(self.path("calib_cam_to_cam", index), image.shape[:2])
        # The left camera's p has a baseline to camera 0; X is in its own frame.
        camera = Camera.pinhole(left.width, left.height, left.fx, left.fy, left.cx, left.cy)

        def make() -> Encoded:
            return self.encoded(index, image, camera, left, right)

        encoded = self.cache.get(self.names[index], (self.x_channels, *camera.shape), make) if self.cache else make()
        return self.sample(index, image, labels, encoded, camera)

    def encoded(self, index: int, image: np.ndarray, camera: Camera, left: Camera, right: Camera) -> Encoded:
        """X of a frame, and where it is known."""
        baseline, infinity = pair_geometry(left, right)
        if self.geometry == "stereo":
            matcher = StereoMatcher(StereoOptions(max_disparity=MAX_DISPARITY))
            disparity = matcher.match(image, read_rgb(self.path("image_3", index), camera.shape), infinity)
            return encode(self.x_kind, disparity=disparity, camera=camera, baseline=baseline)
        disparity = read_disparity(self.path("disp_occ_0", index), camera.shape)
        if self.geometry == "truth":
            return encode(self.x_kind, disparity=disparity, camera=camera, baseline=baseline)
        depth = complete(disparity_to_depth(disparity, camera.fx, baseline)).depth
        return encode(self.x_kind, depth=depth, camera=camera, baseline=baseline)


def read_disparity(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 disparity [pixels], NaN where it is unknown: p / 256 of the 16-bit p, 0 = unknown. Raises DataError."""
    codes = read_uint16(path, shape).astype(np.float32)
    return np.where(codes > 0, codes / 256, np.float32(np.nan))


def read_pair(path: Path, shape: tuple[int, int]) -> tuple[Camera, Camera]:
    """The rectified colour cameras 2 (left) and 3 (right) of a calib_cam_to_cam file, for images (height, width). Raises DataError."""
    try:
        rows = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        cameras = []
        for name in ("P_rect_02", "P_rect_03"):
            p = np.array(rows[name].split(), float).reshape(3, 4)
            cameras.append(Camera(shape[1], shape[0], tuple(p[:, :3].ravel()), p=tuple(p.ravel())))
        pair_geometry(*cameras)  # refuses two that are no pair
        return cameras[0], cameras[1]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} is no calib_cam_to_cam file of KITTI ({type(error).__name__}: {error}); fetch it again") from None
