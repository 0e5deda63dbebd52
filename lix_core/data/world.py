"""The simulated street: folders of `lix world render` as a data set, with X from the truth, the stereo pair or the LiDAR.

Reading needs no ray caster.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lix_core import __version__
from lix_core.data.readers import Encoded, FrameSet, IdMap, XCache, check_choice, check_x, subset
from lix_core.data.sample import Sample
from lix_core.errors import DataError
from lix_core.files import expanded
from lix_core.geometry.completion import complete
from lix_core.geometry.encodings import encode
from lix_core.geometry.lidar import project_cloud
from lix_core.geometry.stereo import StereoMatcher, pair_geometry
from lix_core.labels import UNLABELLED

SPLITS = ("train", "val", "test")
GEOMETRIES = ("truth", "stereo", "lidar")


class WorldDataset(FrameSet):
    """One split: `<root>/<split>/`, each written by `lix world render` with a seed of its own. All of it is simulated.

    split: train, val or test. x: a kind of lix_core.geometry.encodings.
    geometry: where X comes from. `truth`: exact depth or normals. `stereo`: lix_core.geometry.stereo on the pair. `lidar`: the scan,
    projected and completed by lix_core.geometry.
    classes: names of the classes to keep, which become ids 0, 1, ...; the others are ignored. Left out: all.
    frames: only the first so many; 0: all. cache: keep encoded X in `<root>/<split>/x/`, rounded to float16; it is slow to make.

    Raises:
        DataError: a file is missing, named; the seeds of two splits agree; from `self[i]`, a damaged file, or a label out of range.
        LabelError: no such class.
    """

    licence = "CC0-1.0: rendered by lix"
    source = "lix world render --out ROOT/train --seed 1 (val: --seed 2, test: --seed 3)"

    def __init__(
        self,
        root: str | Path,
        split: str,
        x: str = "",
        geometry: str = "truth",
        classes: Sequence[str] = (),
        frames: int = 0,
        cache: bool = True,
    ):
        from lix_core.world.folder import WorldFolder

        check_choice("split", split, SPLITS)
        check_choice("geometry", geometry, GEOMETRIES)
        check_x(x)
        root = expanded(root)
        if not WorldFolder.is_one(root / split):
            raise DataError(f"{root / split / 'world.json'} is missing; make it with `{self.source}`")
        check_seeds(root)
        self.folder, self.geometry = WorldFolder.open(root / split), geometry
        if not 0 <= frames <= len(self.folder):
            raise DataError(f"{root / split} has {len(self.folder)} frames, {frames} are asked for")
        super().__init__([f"{split}/{index:05d}" for index in range(frames or len(self.folder))], x)
        self.labels, ids = subset(self.folder.labels, classes or self.folder.labels.names)
        self._ids = IdMap({i: int(ids[i]) for i in (*range(len(self.folder.labels)), UNLABELLED)})
        self._homes = homes(self.folder.path, int(self.folder.drive["frames_per_scene"]))
        self._camera = self.folder.camera.rectified()
        # What X is made of, so that another drive's or another version's is not taken for it.
        key = zlib.crc32(json.dumps([self.folder.drive, __version__], sort_keys=True).encode())
        self._cache = XCache(self.folder.path / "x" / f"{geometry}-{x}-{key:08x}" if x and cache else None)

    def read(self, index: int) -> Sample:
        image = self._array(index, "rgb")
        labels = self._ids(self._array(index, "labels"), self._path(index, "labels"))
        shape = (self.x_channels, *self._camera.shape)
        encoded = self._cache.get(f"{index:05d}", shape, lambda: self._encoded(index)) if self.x_kind else None
        return self.sample(index, image, labels, encoded, self._camera)

    def _array(self, index: int, name: str) -> np.ndarray:
        """One array of a frame; WorldFolder.frame reads them all, which takes ten times as long."""
        from lix_core.world.folder import READERS

        return READERS[name](self._path(index, name), self._camera.shape)

    def _path(self, index: int, name: str) -> Path:
        from lix_core.world.folder import FILES

        home, number = self._homes[index]
        return home / FILES[name].format(number)

    def _encoded(self, index: int) -> Encoded:
        """X of a frame, and where it is known."""
        frame = self.folder.frame(index, right=self.geometry == "stereo", cloud=self.geometry == "lidar")
        camera, baseline = frame.camera, frame.right_camera.baseline
        if self.geometry == "truth":
            return encode(self.x_kind, depth=frame.depth, normals=frame.normals, camera=camera, baseline=baseline)
        if self.geometry == "stereo":
            baseline, infinity = pair_geometry(camera, frame.right_camera)
            disparity = StereoMatcher().match(frame.rgb, frame.right, infinity)
            return encode(self.x_kind, disparity=disparity, camera=camera, baseline=baseline)
        depth = complete(project_cloud(frame.cloud, camera, frame.camera_from_lidar)).depth
        return encode(self.x_kind, depth=depth, camera=camera, baseline=baseline)


def homes(path: Path, frames_per_scene: int) -> dict[int, tuple[Path, int]]:
    """Index of each frame below `path` -> its scene's folder `frames`, and its number in the scene."""
    found = {}
    for meta in path.glob("Scene*/*/frames/meta/meta_*.json"):
        scene, number = (int(re.search(r"\d+", name).group()) for name in (meta.parents[3].name, meta.stem))
        found[scene * frames_per_scene + number] = meta.parents[1], number
    return found


def check_seeds(root: Path) -> None:
    """Raises DataError where two splits below `root` were rendered with one seed, and show the same streets, or a world.json is damaged."""
    from lix_core.world.folder import WorldFolder, read_world

    seeds: dict[int, str] = {}
    for split in SPLITS:
        if not WorldFolder.is_one(root / split):
            continue
        seed = WorldFolder(root / split, read_world(root / split)).drive.get("seed")
        if seed in seeds:
            raise DataError(
                f"{root / seeds[seed]} and {root / split} are both of seed {seed}: they show the same streets, and a score on one says "
                f"nothing of the other; render {split} again with another --seed"
            )
        seeds[seed] = split
