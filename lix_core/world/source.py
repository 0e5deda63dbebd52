"""The world as a source of frames to play, one after the other: rendered on the fly, or out of a folder."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable, Iterator

from lix_core.camera import Camera
from lix_core.errors import GeometryError, SourceError
from lix_core.labels import STREET, LabelSet
from lix_core.world.drive import Drive, Rig, WorldFrame
from lix_core.world.folder import WorldFolder

ONE_STREET = 1_000_000
"""Frames per scene by which a drive stays in a street for as long as its road goes."""

SIZES = 32, 4096
"""Least and largest width and height of an image [pixels]."""


@dataclass(frozen=True)
class Moment:
    """One frame of a world, not yet rendered or read.

    stem: a name for it. time: [s] since the source's first frame. load(right, cloud): the frame, those two left empty where they are not
    wanted; raises LixError.
    """

    stem: str
    time: float
    load: Callable[[bool, bool], WorldFrame]


class LiveDrive:
    """Frames of a drive that stays in each street for as long as its road goes, and builds the next one meanwhile."""

    def __init__(self, seed: int, rig: Rig, weather: str, spacing: float, rate: float):
        # Two drives take turns, as each keeps one street.
        self._drives = [Drive(seed, rig, weather, ONE_STREET, spacing, rate) for _ in range(2)]
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="street")
        self._scene, self._next = -1, self._builder.submit(self._drives[0].scene_of, 0)
        self._next.result()  # what cannot be built is told at once
        self.rate = rate

    def frame(self, index: int, right: bool = True, cloud: bool = True) -> WorldFrame:
        """Frame `index`, as `Drive.frame` has it."""
        per_scene = self._drives[0].frames_per_scene
        scene = index // per_scene
        if scene != self._scene:
            self._next.result()
            self._scene, self._next = scene, self._builder.submit(self._drives[(scene + 1) % 2].scene_of, (scene + 1) * per_scene)
        return self._drives[scene % 2].frame(index, right, cloud)


class WorldSource:
    """Moments of a drive or of a folder in order; `len` is 0 where they never end. rate: [Hz]. labels: the ids of its labels."""

    def __init__(self, name: str, frames: LiveDrive | WorldFolder, labels: LabelSet, length: int):
        self.name, self.rate, self.labels = name, frames.rate, labels
        self._frames, self._length = frames, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Moment]:
        index = 0
        while not self._length or index < self._length:
            yield Moment(f"{index:05d}", index / self.rate, lambda right, cloud, index=index: self._frames.frame(index, right, cloud))
            index += 1


def live_source(seed: int, size: str, weather: str, speed: float, rate: float) -> WorldSource:
    """A smooth drive that is rendered while it is played, from street to street without end.

    Args:
        size: of the cameras, as 640x192 [pixels]. weather: one of lix_core.world.weather.WEATHERS, or empty for one by street.
        speed: of the car [m/s]. rate: frames per second [Hz].

    Raises:
        GeometryError: a size or weather that is none, or embreex is not installed.
    """
    return WorldSource(f"world {seed}", LiveDrive(seed, rig_of(size), weather, speed / rate, rate), STREET, 0)


def folder_source(path: str) -> WorldSource:
    """The frames of a folder of `lix world render`. Raises DataError where it is not whole."""
    folder = WorldFolder.open(path)
    return WorldSource(folder.name, folder, folder.labels, len(folder))


def seed_of(text: str) -> int | None:
    """The seed in `world` (0) or `world:SEED`; None where the text is something else. Raises SourceError where the seed is no number."""
    head, _, seed = text.partition(":")
    if head != "world":
        return None
    if not re.fullmatch(r"\d*", seed, re.ASCII):
        raise SourceError(f"the seed in {text!r} must be a whole number of at least 0, as world:7")
    return int(seed or 0)


def rig_of(size: str) -> Rig:
    """The standard rig with cameras of another size [pixels], as 640x192; their horizontal field of view stays. Raises GeometryError."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size, re.ASCII)
    width, height = map(int, match.groups()) if match else (0, 0)
    if not (SIZES[0] <= width <= SIZES[1] and SIZES[0] <= height <= SIZES[1]):
        raise GeometryError(f"a size is width x height of {SIZES[0]} to {SIZES[1]} pixels each, as 640x192; got {size!r}")
    standard = Rig().camera
    return Rig(Camera.pinhole(width, height, standard.fx * width / standard.width))
