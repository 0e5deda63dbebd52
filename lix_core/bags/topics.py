"""Which topic of a bag is what: found by the types of messages and by the names that are usual, or told by the user."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

from lix_core.bags.reader import CAMERA_INFO_TYPE, CLOUD_TYPE, COMPRESSED_TYPE, IMAGE_TYPE, TEXT_TYPE, Bag
from lix_core.errors import SourceError
from lix_core.pixels import DEPTHS

NONE = "none"
"""Said of a role, no topic has it, whatever is there."""
LABELS = ("labels", "label", "semantic", "semantics", "segmentation", "ground_truth")
"""Last names of topics whose images are class ids."""
MADE_BY_LIX = ("mask", "color", "overlay", "confidence", "normals", "normals_color", "disparity", "disagreement")
"""Last names of what lix's own nodes publish: pictures, but of no camera."""
CAMERA_NAMES = ("image_raw", "image", "image_color", "image_mono", "image_rect_color", "image_rect")
"""Last names of a camera's pictures, the best first: of one camera the raw picture is taken, and rectified here."""
COMPRESSED_DEPTH = "/compressedDepth"
"""Ends the names of image_transport's compressed depth images."""
RECTIFIED = re.compile(r"(^|_)rect(ified)?\d*(_|$)")
"""A word in the last name of a picture that is rectified already; image_direct and image_unrectified are none."""


@dataclass(frozen=True)
class Topics:
    """Names of the topics by their roles; "" where there is none.

    image, camera_info: the camera that is segmented; the left one of a pair. right_image, right_camera_info: the other one. depth: depth
    images of the camera. points: LiDAR. labels, label_names: class ids of the image's pixels, and what they mean (a LabelSet as JSON).
    keyframes: why frames were recorded.
    """

    image: str = ""
    camera_info: str = ""
    right_image: str = ""
    right_camera_info: str = ""
    depth: str = ""
    points: str = ""
    labels: str = ""
    label_names: str = ""
    keyframes: str = ""

    def role_of(self, topic: str) -> str:
        """The role of a topic, "" for one that has none."""
        return next((f.name for f in fields(self) if getattr(self, f.name) == topic), "") if topic else ""


ROLES = tuple(f.name for f in fields(Topics))
TYPES = {
    "image": (IMAGE_TYPE, COMPRESSED_TYPE),
    "right_image": (IMAGE_TYPE, COMPRESSED_TYPE),
    "labels": (IMAGE_TYPE, COMPRESSED_TYPE),
    "depth": (IMAGE_TYPE, COMPRESSED_TYPE),
    "camera_info": (CAMERA_INFO_TYPE,),
    "right_camera_info": (CAMERA_INFO_TYPE,),
    "points": (CLOUD_TYPE,),
    "label_names": (TEXT_TYPE,),
    "keyframes": (TEXT_TYPE,),
}
"""What a role's messages may be."""


def find_topics(bag: Bag, named: Mapping[str, str] | None = None) -> tuple[Topics, list[str]]:
    """The topics of a bag by role, and remarks: what was left open, and why.

    named: role -> topic, where the user knows better; NONE for no topic.

    Raises:
        SourceError: a role that is none, or a topic that is not there or of a type that does not fit.
    """
    named = {role: topic for role, topic in (named or {}).items() if topic}
    check_named(bag, named)
    search = Search(bag)
    found, remarks = Topics(), []
    for role in ROLES:
        if role in named:
            topic = "" if named[role] == NONE else named[role]
        else:
            topic, remark = getattr(search, role)(found)
            remarks += [remark] if remark else []
        found = replace(found, **{role: topic})
    sensors = {kind for role in ("image", "points") for kind in TYPES[role]}
    silent = [t.name for t in bag.topics if t.type in sensors and not t.count and last_name(t.name) not in MADE_BY_LIX]
    if found.image and silent:
        why = "nothing came, or, where the logger picks keyframes, nothing that belongs to one by its stamp"
        remarks.append(f"there are images, but no message of {', '.join(silent)}: {why}")
    return found, remarks


def check_named(bag: Bag, named: Mapping[str, str]) -> None:
    """Raises SourceError where what the user named cannot be."""
    for role, topic in named.items():
        if role not in ROLES:
            raise SourceError(f"there is no role {role!r} for a topic; there are {', '.join(ROLES)}")
        fitting = [t.name for t in bag.topics if t.type in TYPES[role]]
        if topic != NONE and topic not in fitting:
            raise SourceError(f"bag {bag.path} has no topic {topic} for {role}; of its type it has {', '.join(fitting) or 'none'}")


def base_of(topic: str) -> str:
    """The picture's topic of which this is the compressed one; itself otherwise."""
    return topic.removesuffix("/compressed").removesuffix(COMPRESSED_DEPTH)


def last_name(topic: str) -> str:
    return base_of(topic).rpartition("/")[2]


def shows_depth(topic: str) -> bool:
    """Whether a picture's topic is named after depth: by its last name, or by the one before it if that is no camera's (depth_camera)."""
    before, last = ["", *base_of(topic).split("/")][-2:]
    return "depth" in last or ("depth" in before and "cam" not in before)


def shows_rectified(topic: str) -> bool:
    """Whether a picture's topic is named as one that is rectified already, whatever lens its calibration tells of."""
    return bool(RECTIFIED.search(last_name(topic)))


def beside(topic: str, name: str) -> str:
    """The topic `name` in the namespace of another."""
    return f"{base_of(topic).rpartition('/')[0]}/{name}"


def infos_of_depth(topic: str) -> tuple[str, str]:
    """Names that the calibration of a depth topic may have: the logger's, and the usual one."""
    return f"{base_of(topic)}/camera_info", beside(topic, "camera_info")


def rights_of(topic: str) -> Iterator[str]:
    """Names that the right camera's topic may have, beside this one of the left camera."""
    parts = base_of(topic).lstrip("/").split("/")
    for place, part in reversed(list(enumerate(parts))):
        for left, right in (("left", "right"), ("infra1", "infra2"), ("image_02", "image_03")):
            if left in part:
                yield "/" + "/".join([*parts[:place], part.replace(left, right), *parts[place + 1 :]])
    for place in reversed(range(len(parts))):
        yield "/" + "/".join([*parts[:place], "right", *parts[place:]])
    yield from siblings_of(topic, "right")


def siblings_of(topic: str, side: str) -> list[str]:
    """Names that the camera of a side may have beside one that is called `camera`, as the launch files call it."""
    parts = base_of(topic).lstrip("/").split("/")
    return ["/" + "/".join([*parts[:-2], side, name]) for name in (parts[-1], "image")] if parts[-2:-1] == ["camera"] else []


class Search:
    """Finds the topic of each role; every method takes what has been found before it, and returns the topic and a remark."""

    def __init__(self, bag: Bag):
        self._types = {t.name: t.type for t in bag.topics if t.count}
        self._bag = bag
        pictures = {name: base_of(name) for name, kind in self._types.items() if kind in TYPES["image"]}
        self._labels = [name for name in pictures if last_name(name) in LABELS and self._encoding(name) in ("mono8", "8UC1", "")]
        others = [name for name in pictures if name not in self._labels and last_name(name) not in MADE_BY_LIX]
        # Depth recorded raw and compressed is one, and read raw.
        self._depths = [name for name in others if self._is_depth(name) and (pictures[name] == name or pictures[name] not in others)]
        cameras = [name for name in others if name not in self._depths and not shows_depth(name)]
        # A camera recorded raw and compressed is one camera, and read raw.
        self._cameras = sorted({pictures[name] if pictures[name] in self._types else name for name in cameras})

    def _encoding(self, topic: str) -> str:
        """Of the first picture on a topic; "" for compressed ones, and where it cannot be told."""
        if self._types[topic] != IMAGE_TYPE:
            return ""
        first = self._bag.first(topic)
        try:
            return str(self._bag.decode(first[2], IMAGE_TYPE).encoding) if first else ""
        except SourceError:
            return ""

    def _is_depth(self, topic: str) -> bool:
        if topic.endswith(COMPRESSED_DEPTH):
            return self._types[topic] == COMPRESSED_TYPE
        encoding = self._encoding(topic)
        return encoding in DEPTHS and (encoding != "mono16" or "depth" in topic)

    def _of_type(self, kind: str) -> list[str]:
        return sorted(name for name, each in self._types.items() if each == kind)

    def image(self, found: Topics) -> tuple[str, str]:
        bases = {base_of(c): c for c in self._cameras}
        rights = {right for base in bases for right in rights_of(base) if right in bases and right != base}
        lefts = [camera for base, camera in bases.items() if base not in rights]
        calibrated = [c for c in lefts if beside(c, "camera_info") in self._types]
        choice = calibrated or lefts
        if not choice:
            return "", f"no topic of {IMAGE_TYPE} or {COMPRESSED_TYPE} is a camera's picture"
        if self._are_several(choice):
            return "", f"several cameras; choose one with --image: {', '.join(choice)}"
        order = {name: place for place, name in enumerate(CAMERA_NAMES)}
        return min(choice, key=lambda c: (order.get(last_name(c), len(order)), c)), ""

    def _are_several(self, pictures: list[str]) -> bool:
        """Whether pictures are of more than one camera: in several namespaces, of several frames, or all by names that no camera's have."""
        if len(pictures) == 1:
            return False
        frames = {self._frame(picture) for picture in pictures} - {""}
        unusual = all(last_name(picture) not in CAMERA_NAMES for picture in pictures)
        return len({beside(picture, "") for picture in pictures}) > 1 or len(frames) > 1 or unusual

    def camera_info(self, found: Topics) -> tuple[str, str]:
        return self._info_of(found.image)

    def right_camera_info(self, found: Topics) -> tuple[str, str]:
        topic = beside(found.right_image, "camera_info") if found.right_image else ""
        return (topic, "") if topic in self._types else ("", "")

    def _info_of(self, image: str) -> tuple[str, str]:
        infos = self._of_type(CAMERA_INFO_TYPE)
        if not image or beside(image, "camera_info") in infos:
            return (beside(image, "camera_info") if image else ""), ""
        of_depth = {info for depth in self._depths for info in infos_of_depth(depth)}
        own = [info for info in infos if info not in of_depth] or infos
        if len(own) == 1 and len(self._cameras) == 1:
            return own[0], f"there is no {beside(image, 'camera_info')}; {own[0]}, the only calibration, is taken for {image}"
        others = f" (there are {', '.join(infos)}; name one with --camera-info)" if infos else ""
        return "", f"no camera_info for {image}{others}: without it no depth can be made, pictures and labels can"

    def right_image(self, found: Topics) -> tuple[str, str]:
        if not found.image:
            return "", ""
        bases = {base_of(c): c for c in self._cameras if base_of(c) != base_of(found.image)}
        # Where there is a camera `left` beside `camera`, the right one is that one's.
        taken = siblings_of(found.image, "right") if any(left in bases for left in siblings_of(found.image, "left")) else []
        return next((bases[right] for right in rights_of(found.image) if right in bases and right not in taken), ""), ""

    def _of_frame(self, topics: list[str], image: str, option: str) -> tuple[list[str], str]:
        """Those that do not say that they are of another frame than the image, and a remark where that leaves none of them."""
        frames = {topic: self._frame(topic) for topic in topics} if image else {}
        own = self._frame(image) if image else ""
        fitting = [topic for topic in topics if not own or frames[topic] in ("", own)]
        if fitting or not topics:
            return fitting, ""
        others = ", ".join(f"{topic} ({frames[topic]})" for topic in topics)
        return [], f"{others} is of another frame than {image} ({own}); where its pixels are those of the image, say so with {option}"

    def _frame(self, topic: str) -> str:
        """Of the first message on a picture's topic; "" where it says none."""
        first = self._bag.first(topic)
        try:
            return str(self._bag.decode(first[2], first[0]).header.frame_id).removeprefix("/") if first else ""
        except SourceError:
            return ""

    def depth(self, found: Topics) -> tuple[str, str]:
        depths, remark = self._of_frame(self._depths, found.image, "--depth")
        registered = [d for d in depths if "aligned" in d or "registered" in d]
        if len(depths) > 1 and len(registered) != 1:
            return "", f"several depth topics; choose one with --depth: {', '.join(depths)}"
        return (registered or depths or [""])[0], remark

    def points(self, found: Topics) -> tuple[str, str]:
        clouds = self._of_type(CLOUD_TYPE)
        if len(clouds) > 1:
            return "", f"several clouds; choose one with --points: {', '.join(clouds)}"
        return (clouds or [""])[0], ""

    def labels(self, found: Topics) -> tuple[str, str]:
        labels, remark = self._of_frame(self._labels, found.image, "--label-topic")
        if len(labels) > 1:
            return "", f"several label topics; choose one with --label-topic: {', '.join(labels)}"
        return (labels or [""])[0], remark

    def label_names(self, found: Topics) -> tuple[str, str]:
        if not found.labels:
            return "", ""
        names = [name for name in self._of_type(TEXT_TYPE) if last_name(name) == "label_names"]
        if beside(found.labels, "label_names") in names:
            return beside(found.labels, "label_names"), ""
        if len(names) == 1:
            return names[0], ""
        return "", f"no topic label_names says what the ids of {found.labels} mean; put a label set into <bag>/labels.json there"

    def keyframes(self, found: Topics) -> tuple[str, str]:
        return next((name for name in self._of_type(TEXT_TYPE) if last_name(name) == "keyframes"), ""), ""
