"""Where frames come from: an image, a folder of images, a video file, or a rosbag2 bag (read without ROS)."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Callable, Iterator, Protocol

import cv2
import numpy as np

from lix_core.bags.reader import BAG_SUFFIXES, CAMERA_INFO_TYPE, COMPRESSED_TYPE, IMAGE_TYPE, Bag, camera_of, load_image
from lix_core.camera import Camera
from lix_core.errors import ImageError, SourceError
from lix_core.files import expanded, natural_key
from lix_core.pixels import read_compressed
from lix_core.runtime import mp4

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
COUNTED_SUFFIXES = (*mp4.SUFFIXES, ".avi")
"""Videos whose files say how many frames they hold; of the others it is an estimate."""
VIDEO_SUFFIXES = (*COUNTED_SUFFIXES, ".mkv", ".webm", ".mpg", ".mpeg")
GIVE_UP = 1000
"""Frames in a row that cannot be decoded, after which no more of a video is tried."""


@dataclass(frozen=True)
class Frame:
    """One image of a source, not yet decoded.

    stem: a file name for what is made of it. time: [s] since the source's first frame.
    load: returns the (H, W[, C]) array and its channel order; raises ImageError where it cannot be decoded.
    """

    stem: str
    time: float
    load: Callable[[], tuple[np.ndarray, str]]


class Source(Protocol):
    """An ordered set of frames; `rate` is its nominal frames per second [Hz], `len` may be an estimate for videos."""

    name: str
    rate: float
    camera: Camera | None

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...


class ImageSource:
    """Image files, in the natural order of their names; 10 Hz, as files carry no time."""

    rate = 10.0

    def __init__(self, name: str, paths: list[Path]):
        self.name, self.paths = name, paths
        # a.jpg and a.png beside each other: their results must not take the same name, nor that of a.jpg.png.
        unique = len({p.stem for p in paths}) == len(paths)
        self.stems = [p.stem if unique else p.name for p in paths]

    @cached_property
    def camera(self) -> Camera | None:
        """Of camera_info.yaml beside the images. Raises LixError where that is none."""
        calibration = self.paths[0].parent / "camera_info.yaml"
        return Camera.load(calibration) if calibration.exists() else None

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        for index, (stem, path) in enumerate(zip(self.stems, self.paths)):
            yield Frame(stem, index / self.rate, lambda path=path: self._load(path))

    @staticmethod
    def _load(path: Path) -> tuple[np.ndarray, str]:
        try:
            return read_compressed(path.read_bytes(), path.name)
        except OSError as error:
            raise ImageError(f"cannot read {path}: {error.strerror}") from None


class VideoSource:
    """A video file, through OpenCV. Frames must be loaded in order.

    Frames that cannot be decoded fail one by one where others follow; at the end of the video, the first for all of them.
    """

    camera = None

    def __init__(self, path: Path):
        self.name, self._path = path.stem, path
        capture = self._open()
        self.rate = capture.get(cv2.CAP_PROP_FPS) or 30.0
        self._count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        if path.suffix.lower() in mp4.SUFFIXES and (shown := mp4.shown_seconds(path)):
            self._count = min(self._count, math.ceil(shown * self.rate - 0.5))
        readable = any(capture.grab() for _ in range(self._patience(0)))
        capture.release()
        if not readable:
            raise SourceError(f"no frame of {path} can be decoded; is it a video that OpenCV's FFmpeg reads?")

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self._path.absolute()))  # of a relative 10:30.mp4, FFmpeg takes the 10 for a protocol
        if not capture.isOpened():
            raise SourceError(f"cannot open video {self._path}")
        return capture

    def _patience(self, index: int) -> int:
        """How many reads may fail, from frame `index` on, before the video is at its end."""
        return min(max(1, self._count - index), GIVE_UP)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Frame]:
        capture = self._open()
        try:
            index = failed = 0
            while failed < self._patience(index):
                readable, image = capture.read()
                if not readable:
                    failed += 1
                    continue
                for lost in range(index, index + failed):
                    yield self._frame(lost, partial(self._refuse, f"frame {lost}"))
                index, failed = index + failed, 0
                yield self._frame(index, lambda image=image: (image, "bgr"))
                index += 1
        finally:
            capture.release()
        if index < self._count and self._path.suffix.lower() in COUNTED_SUFFIXES:
            last = self._count - 1
            yield self._frame(index, partial(self._refuse, f"frame {last}" if index == last else f"frames {index} to {last}"))

    def _frame(self, index: int, load: Callable[[], tuple[np.ndarray, str]]) -> Frame:
        return Frame(f"{self.name}_{index:06d}", index / self.rate, load)

    def _refuse(self, what: str) -> tuple[np.ndarray, str]:
        raise ImageError(f"{what} of {self._path} cannot be decoded; is the file whole?")


class BagSource:
    """The image topic of a rosbag2 (MCAP or sqlite3) or ROS 1 bag, raw or compressed; through `rosbags`."""

    def __init__(self, path: Path, topic: str = ""):
        self.name, self._path = path.stem, path
        with Bag(path) as bag:
            topics = {t.name: t.count for t in bag.topics if t.type in (IMAGE_TYPE, COMPRESSED_TYPE)}
            # Nothing was said on an empty topic: it is a camera only where there is no other, or by name.
            topics = {name: count for name, count in topics.items() if count or name == topic} or topics
            self.topic = self._choose(list(topics), topic)
            self._count = topics[self.topic]
            # The first hundred tell the rate; reading them all would read the whole bag.
            stamps = [stamp for _, _, stamp, _ in islice(bag.messages([self.topic]), 100)] if self._count else []
            if not stamps:
                damage = f": its index counts {self._count}, but is damaged; `lix bag repair` makes a new one" if self._count else ""
                raise SourceError(f"topic {self.topic} of bag {path} has no messages{damage}")
            self._start = stamps[0]
            gaps = np.diff(stamps)
            self.rate = 1e9 / float(np.median(gaps)) if len(gaps) and np.median(gaps) > 0 else 10.0
            self.camera = self._read_camera(bag)

    def _choose(self, topics: list[str], wanted: str) -> str:
        if wanted:
            if wanted not in topics:
                raise SourceError(f"bag {self._path} has no image topic {wanted}; it has {', '.join(topics) or 'none'}")
            return wanted
        if not topics:
            raise SourceError(f"bag {self._path} has no topic of {IMAGE_TYPE} or {COMPRESSED_TYPE}")
        # A camera recorded raw and compressed is one camera.
        cameras = {t.removesuffix("/compressed") for t in topics}
        if len(cameras) > 1:
            raise SourceError(f"bag {self._path} has several image topics; choose one with --topic: {', '.join(topics)}")
        camera = cameras.pop()
        return camera if camera in topics else f"{camera}/compressed"

    def _read_camera(self, bag: Bag) -> Camera | None:
        first = bag.first(f"{self.topic.removesuffix('/compressed').rsplit('/', 1)[0]}/camera_info")
        return camera_of(bag.decode(first[2], CAMERA_INFO_TYPE)) if first and first[0] == CAMERA_INFO_TYPE else None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Frame]:
        with Bag(self._path) as bag:
            times: Counter[int] = Counter()
            for topic, kind, stamp, raw in bag.messages([self.topic]):
                # A simulated clock ticks slowly: frames of one time must not take the same name.
                stem = f"{stamp}_{times[stamp]}" if times[stamp] else str(stamp)
                times[stamp] += 1
                yield Frame(stem, (stamp - self._start) / 1e9, partial(load_image, raw, kind, topic, bag.is_ros2))


def open_source(path: str | Path, topic: str = "") -> Source:
    """Open an image, a folder of images, a video or a bag.

    Args:
        path: an image or video file, a folder of images, a bag folder (with metadata.yaml) or a .mcap, .db3 or .bag file.
        topic: which image topic of a bag; may be left out where there is one camera.

    Raises:
        SourceError: nothing there, nothing in it that can be read, or a topic of what is no bag.
    """
    path = expanded(path)
    if not path.exists():
        live = "; a live world is played by the replay node alone" if re.fullmatch(r"world(:\d*)?", str(path)) else ""
        raise SourceError(f"no such input: {path}{live}")
    if path.suffix.lower() in BAG_SUFFIXES or (path / "metadata.yaml").exists():
        return BagSource(path, topic)
    if topic:
        raise SourceError(f"topics are of bags, and {path} is none; leave out the topic {topic}")
    if path.is_dir():
        paths = sorted((p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES), key=lambda p: natural_key(p.name))
        if not paths and (street := min(path.glob("Scene*/*/frames/rgb/Camera_0"), default=None)):
            raise SourceError(f"{path} holds simulated streets; give the images of one of them, such as {street}")
        if not paths:
            raise SourceError(f"folder {path} holds no images ({', '.join(IMAGE_SUFFIXES)}) and is no bag (no metadata.yaml)")
        return ImageSource(path.name, paths)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource(path.stem, [path])
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return VideoSource(path)
    raise SourceError(f"{path} is no image, video or bag that lix knows by its suffix {path.suffix!r}")
