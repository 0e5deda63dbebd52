"""From the messages of a frame to what a network learns from: the rectified image, its depth, its labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lix_core.bags.index import GEOMETRIES, BagIndex, FramePlan, MessageKey, Options, key_of, passed_over, plan_frames, scan, taken_for_raw
from lix_core.bags.reader import COMPRESSED_TYPE, Bag, image_of, whole_of
from lix_core.camera import Camera
from lix_core.errors import GeometryError, ImageError, LixError, SourceError
from lix_core.geometry.clouds import read_cloud
from lix_core.geometry.completion import complete
from lix_core.geometry.lidar import cloud_fault, project_cloud
from lix_core.geometry.stereo import UNRECTIFIED, StereoMatcher, StereoOptions, disparity_to_depth, pair_fault, pair_geometry
from lix_core.labels import UNLABELLED
from lix_core.pixels import decoded, read_compressed_depth, read_depth, to_rgb

DEPTH_UNIT = 256.0
"""Depth in files: 16 bits, in units of one part in DEPTH_UNIT of a metre; 0 is unknown."""
JPEG = b"\xff\xd8"
LOOKED_AT = 3
"""Frames that are made before all others, to see what can be made of a bag."""
Messages = dict[tuple[str, MessageKey], tuple[str, bytes]]
"""Topic and key of messages -> their types and raw bytes."""


@dataclass(frozen=True)
class BagFrame:
    """A frame made of a bag's messages.

    image: (H, W, 3) uint8 RGB, rectified. jpeg: the file it came as, where it came as JPEG and is rectified. depth: (H, W) uint16 as in
    files (`to_metres`); None: no depth. labels: (H, W) uint8 ids; None: no labels. warnings: what is missing in it, and why.
    """

    image: np.ndarray
    jpeg: bytes | None
    depth: np.ndarray | None
    labels: np.ndarray | None
    warnings: tuple[str, ...] = ()


def to_file(depth: np.ndarray) -> np.ndarray:
    """(H, W) float depth [m], NaN = unknown -> uint16 as in files; what is beyond 255 m is unknown."""
    with np.errstate(invalid="ignore"):
        units = np.rint(depth * DEPTH_UNIT)
        return np.where((units >= 1) & (units < 2**16), units, 0).astype(np.uint16)


def to_metres(units: np.ndarray) -> np.ndarray:
    """(H, W) uint16 of a file -> float32 depth [m], NaN = unknown."""
    return np.where(units > 0, units / np.float32(DEPTH_UNIT), np.float32(np.nan)).astype(np.float32)


class FrameReader:
    """Makes the frames of one bag. The bag is opened when the first is asked for, in each process anew.

    camera: calibration of the frames; None where there is none.
    """

    def __init__(self, index: BagIndex, options: Options):
        self._index, self._options = index, options
        self._bag: Bag | None = None
        self._process = 0
        self.camera: Camera | None = index.camera.rectified() if index.camera else None

    def __getstate__(self) -> dict[str, Any]:
        """Without the open bag and what can be made again: for other processes."""
        return {"_index": self._index, "_options": self._options, "_bag": None, "_process": 0, "camera": self.camera}

    def close(self) -> None:
        if self._bag is not None:
            self._bag.__exit__()
            self._bag = None

    def read(self, plans: Sequence[FramePlan]) -> Iterator[tuple[FramePlan, BagFrame | LixError]]:
        """Each frame, or why it cannot be made. Raises DamagedBag."""
        raw = self._fetch(plans)
        for plan in plans:
            try:
                yield plan, self._make(plan, raw)
            except LixError as error:
                yield plan, error

    def _fetch(self, plans: Sequence[FramePlan]) -> Messages:
        """The messages that the frames take; read in one go."""
        wanted = {(getattr(self._index.topics, role), key) for plan in plans for role, key in plan.members.items()}
        if self._bag is None or self._process != os.getpid():  # a forked process would share the file's position with its parent
            self._bag, self._process = Bag(self._index.path, self._index.salvaged), os.getpid()
        times = [recorded for _, (recorded, _) in wanted]
        found: Messages = {}
        for topic, kind, recorded, raw in self._bag.messages({topic for topic, _ in wanted}, min(times), max(times) + 1):
            message = topic, key_of(recorded, raw, self._index.is_ros2)
            if message in wanted:
                found.setdefault(message, (kind, raw))
        return found

    def _make(self, plan: FramePlan, raw: Messages) -> BagFrame:
        image, jpeg = self._image(*self._message(plan, "image", raw))
        warnings: list[str] = []
        depth = labels = None
        parts: dict[str, tuple[str, Any]] = {}
        for role in [role for role in plan.members if role != "image"]:
            try:
                parts[role] = self._message(plan, role, raw)
            except SourceError as error:
                warnings.append(f"no {'labels' if role == 'labels' else 'depth'}: {error}")
        if any(role in parts for role in ("depth", "right_image", "points")):
            try:
                depth = to_file(self._depth(parts, image, warnings))
            except LixError as error:
                warnings.append(f"no depth: {error}")
        if "labels" in parts:
            try:
                labels = self._labels(*parts["labels"], image.shape[:2], warnings)
            except LixError as error:
                warnings.append(f"no labels: {error}")
        return BagFrame(image, jpeg, depth, labels, tuple(warnings))

    def _message(self, plan: FramePlan, role: str, raw: Messages) -> tuple[str, Any]:
        """Type and message that a frame takes in a role. Raises SourceError."""
        topic, key = getattr(self._index.topics, role), plan.members[role]
        if (topic, key) not in raw:
            raise SourceError(f"the message of {topic} recorded at {key[0]} cannot be read any more; did the bag change?")
        kind, data = raw[topic, key]
        return kind, self._bag.decode(data, kind)

    def _image(self, kind: str, message: Any) -> tuple[np.ndarray, bytes | None]:
        """The rectified RGB image, and the JPEG it came as where it was rectified already."""
        image = to_rgb(*image_of(message, kind, self._index.topics.image))
        camera = self._index.camera
        if image.shape[:2] != self._index.size:
            (height, width), (first_height, first_width) = image.shape[:2], self._index.size
            raise ImageError(f"the image is {width}x{height}, the first is {first_width}x{first_height}; both must be of one camera mode")
        if camera is not None and not camera.is_rectified:
            return camera.rectify(image), None
        data = bytes(memoryview(message.data)[:2]) if kind == COMPRESSED_TYPE else b""
        return image, bytes(message.data) if data == JPEG else None

    def _depth(self, parts: dict[str, tuple[str, Any]], image: np.ndarray, warnings: list[str]) -> np.ndarray:
        """(H, W) float32 depth [m], NaN = unknown. Raises LixError."""
        if "depth" in parts:
            depth = depth_of(*parts["depth"])
            if depth.shape != image.shape[:2]:
                size, own = image.shape[1::-1], depth.shape[::-1]
                raise GeometryError(f"the depth image is {own[0]}x{own[1]}, the image {size[0]}x{size[1]}: record depth registered to it")
            if not self._index.depth_rectified:
                depth = rectified(depth, np.nan, self._index.depth_camera or self._index.camera)
        elif "right_image" in parts:
            baseline, infinity = self._pair
            disparity = self._matcher.match(image, self._right(*parts["right_image"]), infinity)
            disparity[self._index.camera.unseen(self._matcher.options.block_size)] = np.nan
            depth = disparity_to_depth(disparity, self.camera.fx, baseline)
        else:
            points = read_cloud(parts["points"][1])
            sparse = project_cloud(points, self.camera, self._index.camera_from_lidar)
            warnings += [fault] if (fault := cloud_fault(points, sparse, self.camera, self._index.camera_from_lidar)) else []
            depth = complete(sparse).depth
        if not np.isfinite(depth).any():
            raise GeometryError("no pixel is known")
        return depth

    def _right(self, kind: str, message: Any) -> np.ndarray:
        """The rectified right image, RGB. Raises LixError."""
        image = to_rgb(*image_of(message, kind, self._index.topics.right_image))
        self._index.right_camera.check_size(image, "the right image")
        return self._index.right_camera.rectify(image)

    def _labels(self, kind: str, message: Any, size: tuple[int, int], warnings: list[str]) -> np.ndarray:
        """(H, W) uint8 ids in the rectified image. Raises LixError."""
        labels = read_ids(kind, message)
        if labels.shape != size:
            raise ImageError(f"labels are {labels.shape[1]}x{labels.shape[0]}, the image {size[1]}x{size[0]}")
        if self._index.labels is not None:
            beyond = (labels >= len(self._index.labels)) & (labels != UNLABELLED)
            if beyond.any():
                ids = ", ".join(map(str, np.unique(labels[beyond])))
                warnings.append(f"labels have ids {ids}, which the label set does not; they become unlabelled")
                labels = np.where(beyond, np.uint8(UNLABELLED), labels)
        return rectified(labels, UNLABELLED, self._index.camera)

    @cached_property
    def _pair(self) -> tuple[float, float]:
        return pair_geometry(self.camera, self._index.right_camera.rectified())

    @cached_property
    def _matcher(self) -> StereoMatcher:
        # Narrow images have no room for the usual range.
        widest = (self.camera.width - 1) // 16 * 16
        return StereoMatcher(StereoOptions(max_disparity=max(16, min(self._options.max_disparity, widest))))

    def faults(self, plans: Sequence[FramePlan]) -> dict[str, str]:
        """What cannot be made of frames that have all the messages for it, a geometry or "labels" -> why: by a few of them."""
        found = {"stereo": self._pair_fault(some_of(plans, "right_image"))}
        for what, role in ({"labels": "labels"} | GEOMETRIES).items():
            found[what] = found.get(what) or self._fault(some_of(plans, role), role)
        return {what: why for what, why in found.items() if why}

    def _fault(self, plans: Sequence[FramePlan], role: str) -> str:
        """Why none of the frames gives depth or labels of the messages in a role; "" where one does, or the images themselves are bad."""
        what = "labels" if role == "labels" else "depth"
        reasons = []
        for plan in plans:
            ((_, frame),) = self.read([replace(plan, members={name: plan.members[name] for name in ("image", role)})])
            if isinstance(frame, BagFrame):
                if getattr(frame, what) is not None:
                    return ""
                reasons.append("; ".join(warning.removeprefix(f"no {what}: ") for warning in frame.warnings))
        return reasons[0] if reasons else ""

    def _pair_fault(self, plans: Sequence[FramePlan]) -> str:
        """What is wrong with the stereo pairs, by their majority; "" where they are fine or there are none."""
        faults = []
        for plan in plans:
            raw = self._fetch([plan])
            try:
                left, right = (self._message(plan, role, raw) for role in ("image", "right_image"))
                faults.append(pair_fault(self._image(*left)[0], self._right(*right), self._pair[1]))
            except LixError:
                continue  # what is wrong with it is told where its frame is made
        return max(set(faults), key=faults.count) if faults else ""


def rectified(pixels: np.ndarray, unknown: float, camera: Camera | None) -> np.ndarray:
    """(H, W) values of the raw image's pixels -> of the rectified one's, where there is a calibration."""
    return np.ascontiguousarray(camera.rectify_nearest(pixels, unknown) if camera else pixels)


def some_of(plans: Sequence[FramePlan], role: str) -> list[FramePlan]:
    """A few of the frames that take a message in a role, from all over the bag."""
    having = [plan for plan in plans if role in plan.members]
    return [having[place] for place in np.unique(np.linspace(0, len(having) - 1, LOOKED_AT).astype(int))] if having else []


def depth_of(kind: str, message: Any) -> np.ndarray:
    """(H, W) float32 depth [m], NaN = unknown, of an Image or a CompressedImage. Raises ImageError where it is none."""
    if kind == COMPRESSED_TYPE:
        return read_compressed_depth(message.data, message.format)
    return read_depth(message.data, message.height, message.width, message.step, message.encoding, bool(message.is_bigendian))


def read_ids(kind: str, message: Any) -> np.ndarray:
    """(H, W) uint8 class ids of a label image. Raises ImageError where it is no image of ids."""
    if kind == COMPRESSED_TYPE:
        ids = decoded(message.data, cv2.IMREAD_UNCHANGED)
        if ids is None or ids.ndim != 2 or ids.dtype != np.uint8 or bytes(message.data[:2]) == JPEG:
            raise ImageError(f"compressed labels must be PNG of 8-bit ids, got format {message.format!r}; JPEG blurs ids")
        return ids
    if message.encoding not in ("mono8", "8UC1"):
        raise ImageError(f"labels must be mono8 ids, got {message.encoding!r}")
    return image_of(message, kind)[0]


def open_frames(path: str | Path, options: Options) -> tuple[BagIndex, list[FramePlan], FrameReader]:
    """What is in a bag, the frames that it gives in order of time, and who makes them. Damaged bags give what is whole of them.

    A few frames are made: what they do not give is planned for no other, and depth is taken from the next sensor.

    Raises:
        SourceError: the bag cannot be read, has no images, or does not fit the options.
    """
    index = whole_of(path, lambda bag: scan(bag, options))
    plans, reader = plan_frames(index, options), FrameReader(index, options)
    told: dict[str, str] = {}
    with closing(reader):  # it opens the bag again when it is asked: those of many bags do not stay open
        while new := {what: why for what, why in reader.faults(plans).items() if what not in told}:
            told |= new
            index.unusable |= {what: why for what, why in new.items() if not why.startswith(UNRECTIFIED)}
            plans = plan_frames(index, options)
    index.remarks += [*(f"{what}: {why}" for what, why in told.items()), *passed_over(index, options), *taken_for_raw(index, plans)]
    return index, plans, reader
