"""When the messages of a bag were taken, which belong together, and what depth can be made of them; no picture is kept.

A message counts by the stamp in its header, that of the sensor, or by the time at which it was recorded where its topic has no stamps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice, takewhile
from pathlib import Path

import numpy as np

from lix_core.bags.keyframes import keyframe_record
from lix_core.bags.reader import CAMERA_INFO_TYPE, TEXT_TYPE, TF_TYPE, Bag, camera_of, header_stamp, load_image
from lix_core.bags.topics import NONE, Topics, beside, find_topics, infos_of_depth, shows_rectified
from lix_core.camera import Camera
from lix_core.errors import DataError, GeometryError, LabelError, LixError, SourceError
from lix_core.geometry.lidar import check_rigid
from lix_core.geometry.poses import matrix_from_pose
from lix_core.geometry.stereo import pair_geometry
from lix_core.labels import LabelSet
from lix_core.pairing import JUMP_NS, NS

GEOMETRIES = {"depth": "depth", "stereo": "right_image", "lidar": "points"}
"""What depth is made of -> the role whose messages must be paired with the images for it. In the order of `auto`: the dense ones first."""
AUTO, NO_GEOMETRY = "auto", "none"
FEW_PAIRS = 0.5
"""A sensor that fits a smaller share of the images that another one fits is passed over by `auto`."""
HEADER, RECORDED = "header", "recorded"
"""Clocks: the sensors' stamps, or the time of recording."""
TIMED = ("image", "right_image", "depth", "points", "labels")
"""Roles that are paired by time."""
RESET_NS = 2 * NS
"""Within this time after it is set back, a clock is seen to have been so on all topics [ns]."""
STAMP_END = 12
"""Where the stamp of a serialised message ends that begins with a header [bytes]."""
MARGIN_S = 1.0
"""Read more than the wanted stretch of time: a partner may be recorded later than its image."""
LOOKED_AT = 200
"""Messages that are searched for an image that can be decoded, or for a calibration of its size."""
MessageKey = tuple[int, int]
"""A message among those of its topic: when it was recorded, and the stamp in its header [ns]. Neither tells it from others by itself: the
time of recording may stand still (simulated), stamps may be missing."""


@dataclass(frozen=True)
class Options:
    """How a bag becomes frames.

    topics: role -> topic, where they are not found by themselves (lix_core.bags.topics). geometry: auto, depth, stereo, lidar or none.
    every: one image in so many. begin, end: [s] since the bag's first message; end 0 is the bag's. slop: largest difference between the
    stamps of an image and its partner [s]. offset: by how much the stamps of the depth's sensor are late [s]; taken off them. clock: header
    or recorded. extrinsics: pose of the LiDAR in the camera's optical frame, x y z qx qy qz qw; empty takes the bag's TF.
    max_disparity: largest one searched in stereo pairs [pixels], a multiple of 16.

    Raises:
        SourceError: a value out of these.
    """

    topics: Mapping[str, str] = field(default_factory=dict)
    geometry: str = AUTO
    every: int = 1
    begin: float = 0.0
    end: float = 0.0
    slop: float = 0.02
    offset: float = 0.0
    clock: str = HEADER
    extrinsics: tuple[float, ...] = ()
    max_disparity: int = 128

    def __post_init__(self) -> None:
        if self.geometry not in (AUTO, NO_GEOMETRY, *GEOMETRIES):
            raise SourceError(f"there is no geometry {self.geometry!r}; there are {AUTO}, {', '.join(GEOMETRIES)} and {NO_GEOMETRY}")
        if self.clock not in (HEADER, RECORDED):
            raise SourceError(f"there is no clock {self.clock!r}; there are {HEADER} and {RECORDED}")
        times = {name: getattr(self, name) for name in ("begin", "end", "slop", "offset")}
        if endless := [f"{name} {value}" for name, value in times.items() if not math.isfinite(value)]:
            raise SourceError(f"times are finite numbers of seconds, got {', '.join(endless)}")
        if self.topics.get("image") == NONE:
            raise SourceError("frames are made of images: name the camera's topic as image, or leave it out; it cannot be none")
        if self.max_disparity < 16 or self.max_disparity % 16:
            raise SourceError(f"max_disparity is a multiple of 16, at least 16, got {self.max_disparity}")
        if self.every < 1 or self.slop < 0 or self.begin < 0 or self.end < 0:
            raise SourceError(f"every is 1 or more, slop, from and to 0 or more; got {self.every}, {self.slop}, {self.begin}, {self.end}")
        if self.end and self.end <= self.begin:
            raise SourceError(f"from {self.begin} s to {self.end} s is no stretch of time")


@dataclass(frozen=True)
class Stream:
    """The messages of a topic in time. recorded, stamps, headers: (N,) int64 [ns], in ascending order of stamps, none of them twice.

    headers: what their headers say; `stamps` are these, or `recorded` where the time of recording counts. runs: how often the clock had
    been set back by then; stamps of several runs may be alike, and what they are of is not.
    """

    topic: str
    type: str
    recorded: np.ndarray
    stamps: np.ndarray
    headers: np.ndarray
    runs: np.ndarray
    repeated: int = 0
    """Messages left out because their stamp was there already."""
    backwards: int = 0
    """How often the stamps went back while it was recorded."""

    def __len__(self) -> int:
        return len(self.stamps)

    def key(self, place: int) -> MessageKey:
        """Of the message at a place."""
        return int(self.recorded[place]), int(self.headers[place])

    def taken(self, places: np.ndarray) -> Stream:
        """These of the messages."""
        return replace(self, **{name: getattr(self, name)[places] for name in ("recorded", "stamps", "headers", "runs")})


@dataclass(frozen=True)
class Keyframe:
    """What the logger says of a frame that it picked: why, and the stamps of the messages that it recorded with it, by topic [ns]."""

    reasons: tuple[str, ...]
    partners: dict[str, int]


NO_KEYFRAME = Keyframe((), {})


@dataclass(frozen=True)
class FramePlan:
    """A frame to be made: which messages it takes.

    stamp: of the image [ns]. members: role -> which message of its topic. offsets: topic -> how much later than the image its message was
    taken [ns]. geometry: what its depth is made of; none without depth. reasons: why it was recorded, for keyframes.
    """

    stamp: int
    members: dict[str, MessageKey]
    offsets: dict[str, int]
    geometry: str
    reasons: tuple[str, ...]


@dataclass
class BagIndex:
    """What there is in a bag.

    start, end: recorded [ns]. camera: of the image as it is on the topic; None where it is not known or cannot be rectified. right_camera:
    of the other one of the pair. depth_rectified: whether the depth images are of the rectified image; None where nothing tells.
    depth_camera: of depth images that are not rectified, although the image on its topic is; None where they are as the image is.
    camera_from_lidar: (4, 4). unusable: what cannot be made although its messages are there, a geometry or "labels" -> why, in words.
    labels: what the ids of the label topic mean. keyframes: stamp -> why a frame was recorded, and with what. size: (height, width) of the
    first image. remarks: what a user should know. faults: what could not be read.
    """

    name: str
    path: Path
    is_ros2: bool
    salvaged: bool
    start: int
    end: int
    messages: int
    fingerprint: str
    topics: Topics
    streams: dict[str, Stream] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    frame_id: str = ""
    camera: Camera | None = None
    right_camera: Camera | None = None
    depth_rectified: bool | None = None
    depth_camera: Camera | None = None
    camera_from_lidar: np.ndarray | None = None
    unusable: dict[str, str] = field(default_factory=dict)
    labels: LabelSet | None = None
    keyframes: dict[int, Keyframe] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def baseline(self) -> float:
        """Of the stereo pair [m]; 0 where there is none."""
        try:
            return pair_geometry(self.camera.rectified(), self.right_camera.rectified())[0] if self.camera and self.right_camera else 0.0
        except GeometryError:
            return 0.0


def scan(bag: Bag, options: Options) -> BagIndex:
    """Read a bag once, and see what is in it. Raises DamagedBag, or SourceError for options that do not fit it or undecodable images."""
    topics, remarks = find_topics(bag, options.topics)
    index = BagIndex(
        bag.name, bag.path, bag.is_ros2, bag.salvaged, bag.start, bag.end, bag.count, fingerprint(bag), topics, remarks=remarks,
        faults=bag.faults,
    )  # fmt: skip
    begin = bag.start + round(options.begin * NS)
    stop = bag.start + round(options.end * NS) if options.end else bag.end + 1
    margin = round((MARGIN_S + abs(options.offset)) * NS)
    index.streams = read_streams(bag, topics, options.clock, begin - margin, stop + margin, index.remarks)
    if image := index.streams.get("image"):
        inside = (image.recorded >= begin) & (image.recorded < stop)
        index.streams["image"] = image.taken(inside)
    look_at_image(bag, index)
    look_at_cameras(bag, index, begin)
    if topics.points and len(index.streams.get("points", ())):
        place_lidar(bag, index, options)
    if topics.label_names:
        index.labels = read_labels(bag, topics.label_names, index.remarks)
    if topics.keyframes:
        index.keyframes = read_keyframes(bag, topics.keyframes)
    return index


def fingerprint(bag: Bag) -> str:
    """Tells one recording from another, and from itself when it has grown; stays when the bag is moved."""
    text = json.dumps([bag.start, bag.end, bag.count, sorted((t.name, t.type, t.count) for t in bag.topics)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_streams(bag: Bag, topics: Topics, clock: str, start: int, stop: int, remarks: list[str]) -> dict[str, Stream]:
    """Role -> stream, of the roles that are paired by time; remarks on their stamps are added."""
    roles = {getattr(topics, role): role for role in TIMED if getattr(topics, role)}
    infos = [info for info in (topics.camera_info, topics.right_camera_info) if info]
    rows: dict[str, list[MessageKey]] = defaultdict(list)
    types: dict[str, str] = {}
    calibrations: dict[str, dict[bytes, int]] = {info: {} for info in infos}
    for topic, kind, recorded, raw in bag.messages([*roles, *infos], max(0, start), stop) if roles else ():
        if topic in calibrations:
            calibrations[topic].setdefault(bytes(raw[STAMP_END:]), recorded)
        else:
            rows[topic].append(key_of(recorded, raw, bag.is_ros2))
            types[topic] = kind
    for topic, found in calibrations.items():
        if len(found) > 1:
            after = (list(found.values())[1] - bag.start) / NS
            remarks.append(
                f"{topic} says something else from {after:.1f} s on: the first calibration is taken; --from and --to part the bag"
            )
    streams = {}
    for topic, role in roles.items():
        recorded, headers = np.array(rows[topic], np.int64).reshape(-1, 2).T
        stamped = headers > 0
        by_recorder = clock == RECORDED or 2 * stamped.sum() < len(stamped)
        if clock != RECORDED and not stamped.all():
            cure = "the time of recording counts" if by_recorder else "they are left out"
            remarks.append(f"{int((~stamped).sum())} of {len(stamped)} messages of {topic} have no stamp: {cure}")
        if not by_recorder:
            recorded, headers = recorded[stamped], headers[stamped]
        stamps = recorded if by_recorder else headers
        backwards = int((np.diff(stamps[np.argsort(recorded, kind="stable")]) < 0).sum())
        unique, first = np.unique(stamps, return_index=True)
        repeated = len(stamps) - len(unique)
        if repeated:
            remarks.append(f"{repeated} messages of {topic} have a stamp that another has too; they are left out")
        if backwards:
            remarks.append(f"the stamps of {topic} go back {backwards} times: its clock was set back, or the bag was played in a loop")
        none = np.zeros(len(unique), np.int64)
        streams[role] = Stream(topic, types.get(topic, ""), recorded[first], unique, headers[first], none, repeated, backwards)
    return in_runs(streams)


def in_runs(streams: Mapping[str, Stream]) -> dict[str, Stream]:
    """Streams with the runs of their messages: what sets one clock back, as a simulation that begins anew, does so to all, but not on all
    topics in the same moment of recording."""
    backs = []
    for role, stream in streams.items():
        order = np.argsort(stream.recorded, kind="stable")
        back = np.flatnonzero(np.diff(stream.stamps[order]) < -JUMP_NS) + 1
        backs += [(int(recorded), role) for recorded in stream.recorded[order][back]]
    resets: list[dict[str, int]] = []  # of each, when the first message behind it was recorded, by role
    for recorded, role in sorted(backs):
        if not resets or role in resets[-1] or recorded - min(resets[-1].values()) > RESET_NS:
            resets.append({})
        resets[-1][role] = recorded
    times = {role: [reset.get(role, min(reset.values())) for reset in resets] for role in streams}
    return {role: replace(stream, runs=np.searchsorted(times[role], stream.recorded, side="right")) for role, stream in streams.items()}


def key_of(recorded: int, raw: bytes, is_ros2: bool) -> MessageKey:
    """Of a message that begins with a header; a stamp of 0 is none."""
    return recorded, header_stamp(raw, is_ros2) or 0


def look_at_image(bag: Bag, index: BagIndex) -> None:
    """Size and frame of the first image that can be decoded. Raises SourceError where there are images, but none of the first can be."""
    image = index.streams.get("image")
    if image is None or not len(image):
        return
    reason = ""
    for place, (_, kind, _, raw) in enumerate(bag.messages([image.topic], int(image.recorded.min()), int(image.recorded.max()) + 1)):
        try:
            index.size = load_image(raw, kind, image.topic, bag.is_ros2)[0].shape[:2]
            index.frame_id = bag.decode(raw, kind).header.frame_id
            return
        except LixError as error:
            reason = str(error)
            if place + 1 >= LOOKED_AT:
                break
    raise SourceError(f"bag {index.path}: none of the first {min(len(image), LOOKED_AT)} images of {image.topic} can be decoded: {reason}")


def look_at_cameras(bag: Bag, index: BagIndex, begin: int) -> None:
    """The calibrations of the image and of its partner to the right, where they are usable; as they are from `begin` [ns] on."""
    topics = index.topics
    if not topics.camera_info or index.size is None:
        return
    told = usable_camera(bag, topics.camera_info, topics.image, index, begin)
    if told is None:
        return
    index.camera = told.rectified() if shows_rectified(topics.image) else told
    if topics.right_image and topics.right_camera_info:
        right = usable_camera(bag, topics.right_camera_info, topics.right_image, index, begin)
        index.right_camera = right.rectified() if right and shows_rectified(topics.right_image) else right
    if topics.depth:
        own = camera_of_depth(bag, topics.depth)
        index.depth_rectified = shows_rectified(topics.depth) or (own and is_of_rectified(own, index.camera))
        if own and not index.depth_rectified and index.camera != told and is_of_lens(own, told):
            index.depth_camera = told


def camera_of_depth(bag: Bag, depth: str) -> Camera | None:
    """The calibration of a depth topic; None where there is none."""
    first = next(filter(None, map(bag.first, infos_of_depth(depth))), None)
    if first is None or first[0] != CAMERA_INFO_TYPE:
        return None
    try:
        return camera_of(bag.decode(first[2], CAMERA_INFO_TYPE))
    except SourceError:
        return None


def is_of_rectified(own: Camera, camera: Camera) -> bool:
    """Whether a calibration is that of the camera's rectified image, as the geometry node publishes it."""
    return own.is_rectified and own.shape == camera.shape and np.allclose(own.matrix, camera.matrix, rtol=1e-4)


def is_of_lens(own: Camera, camera: Camera) -> bool:
    """Whether a calibration is of the same unrectified pixels as another."""
    return (own.shape, own.k, own.distortion_model, own.d) == (camera.shape, camera.k, camera.distortion_model, camera.d)


def usable_camera(bag: Bag, topic: str, image: str, index: BagIndex, begin: int) -> Camera | None:
    """The first calibration on a topic, from `begin` [ns] on or else before, that fits the image's size and, where that is not rectified
    yet, can rectify it; what is wrong with it becomes a remark."""
    remark = f"{topic} has no message"
    for _, _, _, raw in chain(islice(bag.messages([topic], begin), LOOKED_AT), islice(bag.messages([topic]), LOOKED_AT)):
        try:
            message = bag.decode(raw, CAMERA_INFO_TYPE)
        except SourceError as error:
            remark = f"{topic}: {error}"
            continue
        camera = camera_of(message)
        if camera is None:
            remark = f"{topic} is of an uncalibrated camera (zeros): no depth can be made, pictures and labels can; calibrate it"
        elif camera.shape != index.size:
            sizes = f"{topic} is for {camera.width}x{camera.height}, {image} is {index.size[1]}x{index.size[0]}"
            remark = f"{sizes}: both must be of one camera mode"
        else:
            index.frame_id = (message.header.frame_id or index.frame_id) if topic == index.topics.camera_info else index.frame_id
            if shows_rectified(image):
                return camera
            try:
                camera.rectification_maps()
            except GeometryError as error:
                remark = f"{topic}: {error}; pictures stay as they are, and no depth can be made"
                break
            return camera
    index.remarks.append(remark)
    return None


def place_lidar(bag: Bag, index: BagIndex, options: Options) -> None:
    """Where the LiDAR is: by the option, or by the bag's TF."""
    if options.extrinsics:
        index.camera_from_lidar = matrix_from_pose(options.extrinsics)
        return
    lidar = frame_of_cloud(bag, index.topics.points)
    frames = Frames.read(bag, index.frame_id, lidar)
    try:
        index.camera_from_lidar = check_rigid(frames.lookup(index.frame_id, lidar), "the LiDAR's place by TF")
        if frames.moving & {*frames.path(index.frame_id), *frames.path(lidar)}:
            index.remarks.append(f"the transform from {lidar} to {index.frame_id} changes with time; its first value is taken")
    except GeometryError as error:
        index.remarks.append(f"{error}; give it as --extrinsics 'x y z qx qy qz qw'")


def frame_of_cloud(bag: Bag, topic: str) -> str:
    """The frame of the first cloud that can be read; "" where none of the first can be, or it says none."""
    for _, kind, _, raw in islice(bag.messages([topic]), LOOKED_AT):
        with suppress(SourceError):
            return str(bag.decode(raw, kind).header.frame_id)
    return ""


class Frames:
    """The tree of coordinate frames of a bag, by what /tf_static and /tf say first."""

    def __init__(self) -> None:
        self.parents: dict[str, tuple[str, np.ndarray]] = {}
        """Frame -> its parent, and parent_from_frame."""
        self.moving: set[str] = set()
        """Frames that were told to be at different places."""

    @classmethod
    def read(cls, bag: Bag, target: str, source: str) -> "Frames":
        """What leads from one frame to another; /tf, of which there is much, only where /tf_static does not."""
        frames = cls()
        for are_static in (True, False):
            topics = [t.name for t in bag.topics if t.type == TF_TYPE and t.count and t.name.endswith("tf_static") == are_static]
            for _, kind, _, raw in bag.messages(topics) if topics else ():
                with suppress(LixError):
                    for transform in bag.decode(raw, kind).transforms:
                        with suppress(LixError):  # a bad one says nothing of the others
                            frames.add(transform)
            with suppress(GeometryError):
                frames.lookup(target, source)
                break
        return frames

    def add(self, message: object) -> None:
        """Take note of a TransformStamped; the first one of a frame counts. Raises GeometryError where it is no transform."""
        parent, child = message.header.frame_id.lstrip("/"), message.child_frame_id.lstrip("/")
        t, q = message.transform.translation, message.transform.rotation
        matrix = matrix_from_pose((t.x, t.y, t.z, q.x, q.y, q.z, q.w))
        known = self.parents.setdefault(child, (parent, matrix))
        if known[0] == parent and not np.allclose(known[1], matrix, atol=1e-6):
            self.moving.add(child)

    def path(self, frame: str) -> dict[str, np.ndarray]:
        """Frame and its ancestors, up to the root -> ancestor_from_frame."""
        frame = frame.lstrip("/")
        found = {frame: np.eye(4)}
        while frame in self.parents and self.parents[frame][0] not in found:
            parent, step = self.parents[frame]
            found[parent] = step @ found[frame]
            frame = parent
        return found

    def lookup(self, target: str, source: str) -> np.ndarray:
        """(4, 4) target_from_source. Raises GeometryError where the frames are not connected."""
        to_target, to_source = self.path(target), self.path(source)
        # A frame without a name is connected to none, be the other one without a name too.
        common = next((frame for frame in to_source if frame in to_target), None) if target and source else None
        if common is None:
            names = (source or "a frame without a name", target or "a frame without a name")
            raise GeometryError(f"the bag's TF has no transform from {names[0]} to {names[1]}")
        return np.linalg.inv(to_target[common]) @ to_source[common]


def read_labels(bag: Bag, topic: str, remarks: list[str]) -> LabelSet | None:
    """The label set that a topic tells as JSON."""
    first = bag.first(topic)
    try:
        return LabelSet.from_json(bag.decode(first[2], TEXT_TYPE).data) if first else None
    except (LabelError, SourceError) as error:
        remarks.append(f"{topic} does not say what the ids mean: {error}")
        return None


def read_keyframes(bag: Bag, topic: str) -> dict[int, Keyframe]:
    """Stamp -> why the logger recorded the frame, and with what; what is no such record is passed over."""
    keyframes = {}
    for _, _, _, raw in bag.messages([topic]):
        try:
            record = keyframe_record(raw)
            partners = {str(name): int(stamp) for name, stamp in record.get("partners", {}).items()}
        except (DataError, AttributeError, TypeError, ValueError, OverflowError):
            continue
        keyframes[record["stamp"]] = Keyframe(tuple(record["reasons"]), partners)
    return keyframes


def nearest(stamps: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Indices into ascending `stamps` (not empty) of those nearest to each of `wanted`; of two that are as near, the earlier."""
    after = np.clip(np.searchsorted(stamps, wanted), 1, max(1, len(stamps) - 1))
    before = after - 1
    after = np.minimum(after, len(stamps) - 1)
    return np.where(wanted - stamps[before] <= stamps[after] - wanted, before, after)


def pair(stamps: np.ndarray, others: np.ndarray, slop: int, offset: int = 0) -> np.ndarray:
    """For each of `stamps` the index of its partner in `others`, -1 for none: lix_core.pairing.Pairer, when all stamps are known.

    Partners are nearest to each other, and at most `slop` apart; each is used once.

    Args:
        stamps, others: ascending int64 [ns]. offset: by how much `others` are late [ns].
    """
    if not len(stamps) or not len(others):
        return np.full(len(stamps), -1, np.int64)
    others = others - offset
    there = nearest(others, stamps)
    mutual = nearest(stamps, others[there]) == np.arange(len(stamps))
    return np.where(mutual & (np.abs(others[there] - stamps) <= slop), there, -1)


def offset_of(role: str, options: Options) -> int:
    """By how much a role's stamps are taken to be late [ns]."""
    return round(options.offset * NS) if role in GEOMETRIES.values() else 0


def pair_runs(image: Stream, other: Stream, slop: int, offset: int = 0) -> np.ndarray:
    """`pair` of the images with the messages of another stream, of the same run of the clock."""
    partners = np.full(len(image), -1, np.int64)
    for run in np.unique(image.runs):
        mine, theirs = np.flatnonzero(image.runs == run), np.flatnonzero(other.runs == run)
        places = pair(image.stamps[mine], other.stamps[theirs], slop, offset)
        partners[mine[places >= 0]] = theirs[places[places >= 0]]
    return partners


def pairs_of(index: BagIndex, options: Options) -> dict[str, np.ndarray]:
    """Role -> for each image the place of its partner in that role's stream, -1 for none."""
    image = index.streams.get("image")
    slop = round(options.slop * NS)
    pairs = {}
    for role, stream in index.streams.items():
        if role != "image" and image is not None:
            pairs[role] = pair_runs(image, stream, slop, offset_of(role, options))
            # What the logger recorded with a keyframe is its partner, by the logger's own tolerance. It knew of no offset.
            recorded = index.keyframes and not offset_of(role, options)
            places = {int(stamp): place for place, stamp in enumerate(stream.headers)} if recorded else {}
            for place, stamp in enumerate(image.headers.tolist() if places else ()):
                partner = index.keyframes.get(stamp, NO_KEYFRAME).partners.get(stream.topic)
                pairs[role][place] = places.get(partner, pairs[role][place])
    return pairs


def obstacle(geometry: str, index: BagIndex, pairs: Mapping[str, np.ndarray]) -> str:
    """Why depth cannot be made in this way, in words; "" where it can."""
    role = GEOMETRIES[geometry]
    if not getattr(index.topics, role):
        return f"no topic for {role}"
    if index.camera is None:
        return "no usable calibration of the camera"
    if geometry == "stereo":
        if index.right_camera is None:
            return "no usable calibration of the right camera"
        try:
            pair_geometry(index.camera.rectified(), index.right_camera.rectified())
        except GeometryError as error:
            return str(error)
    if geometry == "lidar" and index.camera_from_lidar is None:
        return "where the LiDAR is, is not known"
    if not (pairs[role] >= 0).any():
        return f"no message of {getattr(index.topics, role)} is near an image in time"
    return index.unusable.get(geometry, "")


def usable(index: BagIndex, pairs: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Geometry -> how many images have a partner for it, of those that depth can be made of."""
    return {geometry: int((pairs[role] >= 0).sum()) for geometry, role in GEOMETRIES.items() if not obstacle(geometry, index, pairs)}


def choose_geometry(index: BagIndex, options: Options, pairs: Mapping[str, np.ndarray]) -> str:
    """What depth is made of. Raises SourceError where it is asked for and cannot be."""
    if options.geometry == NO_GEOMETRY:
        return NO_GEOMETRY
    if options.geometry != AUTO:
        if why := obstacle(options.geometry, index, pairs):
            raise SourceError(f"bag {index.path}: no depth from {options.geometry}: {why}")
        return options.geometry
    paired = usable(index, pairs)
    return next((geometry for geometry, count in paired.items() if count >= FEW_PAIRS * max(paired.values())), NO_GEOMETRY)


def passed_over(index: BagIndex, options: Options) -> list[str]:
    """Remarks on what `auto` would have taken, did another sensor not fit more images."""
    pairs = pairs_of(index, options)
    paired, chosen = usable(index, pairs), choose_geometry(index, options, pairs)
    return [
        f"{geometry} fits {count} images, {chosen} {paired[chosen]}: depth is made of {chosen}; --geometry {geometry} takes the other"
        for geometry, count in takewhile(lambda item: item[0] != chosen, paired.items())
        if options.geometry == AUTO
    ]


def taken_for_raw(index: BagIndex, plans: Sequence[FramePlan]) -> list[str]:
    """A remark where depth is rectified with the image and nothing says that it must be."""
    distorted = index.camera is not None and not index.camera.is_rectified
    if not distorted or index.depth_rectified is not None or all(plan.geometry != "depth" for plan in plans):
        return []
    depth, info = index.topics.depth, beside(index.topics.depth, "camera_info")
    told = f"{depth} is taken for depth of the raw {index.topics.image}, and rectified with it: there is no {info} to tell"
    return [f"{told}; record it too where depth is rectified already, as the geometry node's is"]


def plan_frames(index: BagIndex, options: Options) -> list[FramePlan]:
    """The frames of a bag, in order of time. Raises SourceError where there is no image, or no depth that was asked for."""
    image = index.streams.get("image")
    if image is None or not len(image):
        why = "; ".join(index.remarks)
        if image is not None:  # its topic is there: what else is to remark on the bag is not the reason
            end = f"{options.end:g} s" if options.end else "its end"
            length = (index.end - index.start) / NS
            why = f"no image is in the stretch of time asked for, from {options.begin:g} s to {end}; the bag is {length:.1f} s long"
        raise SourceError(f"bag {index.path} gives no frames: {why}")
    pairs = pairs_of(index, options)
    geometry = choose_geometry(index, options, pairs)
    wanted = {GEOMETRIES.get(geometry), "labels"} - set(index.unusable)
    plans = []
    for place in range(0, len(image), options.every):
        stamp = int(image.stamps[place])
        members, offsets = {"image": image.key(place)}, {}
        for role, partners in pairs.items():
            if partners[place] >= 0 and role in wanted:
                stream = index.streams[role]
                members[role] = stream.key(partners[place])
                offsets[stream.topic] = int(stream.stamps[partners[place]]) - stamp
        has_depth = GEOMETRIES.get(geometry) in members
        reasons = index.keyframes.get(int(image.headers[place]), NO_KEYFRAME).reasons
        plans.append(FramePlan(stamp, members, offsets, geometry if has_depth else NO_GEOMETRY, reasons))
    return plans
