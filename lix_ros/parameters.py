"""Node parameters: one dataclass per node is the home of every name, default, range and description.

Out of it come the ROS declarations, the check of every value that is set, config/*.yaml and the tables in docs/
(`python -m lix_ros.parameters` rewrites the last two; a test compares them).
"""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from lix_core.bags.keyframes import KeyframeSettings
from lix_core.bags.recording import RecordingSettings
from lix_core.bags.writer import COMPRESSIONS, STORAGES
from lix_core.errors import LixError
from lix_core.geometry import normals
from lix_core.geometry.stereo import StereoOptions
from lix_core.options import nearest
from lix_core.runtime.backends import DEFAULT_BACKEND, MAX_THREADS, PRECISIONS, REGISTRY
from lix_core.runtime.bundle import DEFAULT_MODEL

if TYPE_CHECKING:
    from rclpy.node import Node

OUTPUTS = ("mask", "color", "overlay", "confidence")
"""What the segmentation node can publish, by the name of the topic under `~/`."""
TEACHER_OUTPUTS = (*OUTPUTS, "disagreement")
"""The same of the teacher node."""
GEOMETRY_OUTPUTS = ("depth", "disparity", "normals", "normals_color", "confidence")
"""The same of the geometry node; `disparity` with a stereo pair only, `confidence` with a LiDAR only."""
RELIABILITY = ("best_effort", "reliable")
MODES = ("everything", "rate", "keyframes")
"""What the logger records."""
LOGGED = {
    "image": "image",
    "camera_info": "camera_info",
    "right_image": "right/image",
    "right_camera_info": "right/camera_info",
    "depth": "depth",
    "depth_camera_info": "depth/camera_info",
    "points": "points",
    "labels": "labels",
    "label_names": "label_names",
    "tf": "/tf",
    "tf_static": "/tf_static",
}
"""Inputs of the logger -> their topics, before remapping."""
UNBOUNDED = 2**53
"""For whole numbers that may be as large as one likes: up to here, doubles hold them all."""


class ParameterError(LixError):
    """A parameter has a value that the node cannot take."""


@dataclass(frozen=True)
class Spec:
    """What ROS and the docs are told of a parameter beside its name, type and default."""

    description: str
    range: tuple[float, float] | None = None
    choices: tuple[str, ...] | None = None
    sizes: tuple[int, ...] | None = None
    """How many values a list may hold."""
    live: bool = False
    """Whether it may be set while the node runs; others are read-only."""


def parameter(default: Any, description: str, **spec: Any) -> Any:
    extra: dict[str, Any] = {"default_factory": lambda: list(default)} if isinstance(default, list) else {"default": default}
    return field(metadata={"spec": Spec(description, **spec)}, **extra)


@dataclass
class SegmentationParameters:
    """The `segmentation` node."""

    model: str = parameter(
        DEFAULT_MODEL,
        "Model bundle: a name that `lix models` lists, or a path. Set live, the node swaps models between two frames; "
        "a bad bundle is refused and the old one goes on.",
        live=True,
    )
    backend: str = parameter(
        DEFAULT_BACKEND,
        "Inference backend; `lix doctor` times those that are installed. `torch` uses CUDA; `auto` takes openvino, onnxruntime "
        "or torch, the first that is installed.",
        choices=("auto", *REGISTRY),
        live=True,
    )
    threads: int = parameter(
        0, "CPU threads for inference; 0 uses every core. Fewer leave room for other nodes.", range=(0, MAX_THREADS), live=True
    )
    precision: str = parameter(
        "auto",
        "Arithmetic of the backend. `auto` is its own choice: bf16 for `openvino` on CPUs that have it, f32 for the others.",
        choices=PRECISIONS,
        live=True,
    )
    max_pixels: int = parameter(
        0,
        "Largest number of pixels given to the network; larger images are scaled down. 0 keeps the bundle's own. More finds "
        "smaller things and costs time in proportion.",
        range=(0, 16_777_216),
        live=True,
    )
    outputs: list[str] = parameter(
        list(OUTPUTS),
        "Outputs that may be published. Those without a subscriber cost nothing even when listed.",
        choices=OUTPUTS,
        live=True,
    )
    overlay_alpha: float = parameter(
        0.5, "Opacity of the colours in the overlay: 0 shows the camera, 1 the classes.", range=(0.0, 1.0), live=True
    )
    min_confidence: float = parameter(
        0.0, "Pixels whose confidence is lower become 255 (unlabelled). 0 labels every pixel.", range=(0.0, 1.0), live=True
    )
    max_rate: float = parameter(
        0.0, "Upper limit of segmented frames per second [Hz]; frames above it are skipped. 0: no limit.", range=(0.0, 1000.0), live=True
    )
    class_remap: str = parameter(
        "", "Path of a YAML file that renames and merges classes (config/remap_example.yaml); empty keeps the model's.", live=True
    )
    autostart: bool = parameter(True, "Configure and activate at start. False waits for a lifecycle manager.")
    image_transport: str = parameter(
        "raw", "`raw` subscribes to `image`, `compressed` to `image/compressed` (JPEG or PNG).", choices=("raw", "compressed")
    )
    image_reliability: str = parameter(
        "best_effort",
        "Reliability asked of the camera. best_effort matches every camera and never waits for a late frame.",
        choices=RELIABILITY,
    )
    image_depth: int = parameter(1, "History depth of the image subscription [frames].", range=(1, 100))
    output_reliability: str = parameter(
        "reliable", "Reliability offered on the outputs; reliable matches every subscriber.", choices=RELIABILITY
    )
    output_depth: int = parameter(1, "History depth of the outputs [frames].", range=(1, 100))
    silence_timeout: float = parameter(3.0, "Without an image for this long [s], diagnostics say so and why.", range=(0.1, 3600.0))
    diagnostics_period: float = parameter(1.0, "Time between two messages on /diagnostics [s].", range=(0.1, 60.0))


@dataclass
class TeacherParameters(SegmentationParameters):
    """The `teacher` node: those of `segmentation`, and how an image finds its depth."""

    model: str = parameter(
        "",
        "Bundle of an RGB + X teacher, as `lix export` makes it of a run of `lix train teacher`: a name that `lix models` lists, or a "
        "path. Set live, the node swaps models between two frames; a bad bundle is refused and the old one goes on.",
        live=True,
    )
    outputs: list[str] = parameter(
        list(TEACHER_OUTPUTS),
        "Outputs that may be published. Those without a subscriber cost nothing even when listed. `disagreement` needs the student's mask.",
        choices=TEACHER_OUTPUTS,
        live=True,
    )
    slop: float = parameter(0.02, "Largest difference between the stamps of an image and its depth [s].", range=(0.0, 1.0))
    offset: float = parameter(0.0, "By how much the stamps of depth are late [s]; it is taken off them.", range=(-100.0, 100.0))
    image_depth: int = parameter(5, "History depth of the inputs [messages].", range=(1, 100))


@dataclass
class GeometryParameters:
    """The `geometry` node."""

    input: str = parameter(
        "stereo",
        "Where depth comes from: `stereo` pairs `left/image` and `right/image`, `lidar` projects `points` into the camera of "
        "`camera_info`, `depth` takes `depth/image` of a depth camera.",
        choices=("stereo", "lidar", "depth"),
    )
    outputs: list[str] = parameter(
        list(GEOMETRY_OUTPUTS),
        "Outputs that may be published. Those without a subscriber cost nothing even when listed.",
        choices=GEOMETRY_OUTPUTS,
        live=True,
    )
    slop: float = parameter(
        0.02,
        "Largest difference between the stamps of a pair [s]. Below half the time between two frames. A car at 50 km/h moves 0.3 m in "
        "20 ms.",
        range=(0.0, 10.0),
        live=True,
    )
    offset: float = parameter(
        0.0,
        "How much later the second sensor (right camera, LiDAR) stamps the same moment than the first [s]; it is taken off the second "
        "one's stamps. The diagnostics show what is left of it.",
        range=(-100.0, 100.0),
        live=True,
    )
    min_depth: float = parameter(0.0, "Nearer depth becomes unknown [m].", range=(0.0, 1000.0), live=True)
    max_depth: float = parameter(
        0.0,
        "Farther depth becomes unknown [m]; 0: no limit. The error of stereo depth grows with its square: 80 m is good for "
        "a baseline of half a metre.",
        range=(0.0, 1000.0),
        live=True,
    )
    rectify: bool = parameter(
        False,
        "Stereo: rectify the images with their camera_info first. False takes them for rectified, as image_proc's image_rect are.",
        live=True,
    )
    depth_image: str = parameter(
        "auto",
        "Depth: whether `depth/image` is `raw`, and rectified here with its camera_info, or `rectified` already. `auto` takes it for "
        "rectified where its topic's last name says so (image_rect).",
        choices=("auto", "raw", "rectified"),
        live=True,
    )
    max_disparity: int = parameter(
        StereoOptions.max_disparity,
        "Stereo: largest disparity searched, a multiple of 16 [pixels]. What is nearer than fx * baseline / max_disparity cannot be "
        "measured (3 m for KITTI's 720 pixels and 0.54 m); time grows in proportion.",
        range=(16, 512),
        live=True,
    )
    block_size: int = parameter(
        StereoOptions.block_size,
        "Stereo: side of the window that is compared, odd [pixels]. Larger is smoother and loses thin things.",
        range=(1, 21),
        live=True,
    )
    consistency: float = parameter(
        StereoOptions.consistency,
        "Stereo: pixels whose disparities from left to right and from right to left differ by more are unknown [pixels]; 0 does not "
        "check, and guesses where only one camera sees.",
        range=(0.0, 16.0),
        live=True,
    )
    edge_filter: bool = parameter(
        StereoOptions.edge_filter,
        "Stereo: smooth disparity inside the edges of the left image. Surfaces get better, depth edges a little worse; costs time.",
        live=True,
    )
    extrinsics: list[float] = parameter(
        [],
        "LiDAR: its pose in the camera's optical frame, x y z [m] and quaternion qx qy qz qw, as `ros2 run tf2_ros tf2_echo CAMERA LIDAR` "
        "prints it. Empty takes it from TF, where tf2_ros_py is installed.",
        sizes=(0, 7),
        live=True,
    )
    hidden_gap: float = parameter(
        0.05,
        "LiDAR: points farther than the surface around them by this share of their depth are removed, because the camera cannot see "
        "them; 0 keeps them.",
        range=(0.0, 0.9),
        live=True,
    )
    completion_reach: int = parameter(
        24,
        "LiDAR: pixels up to this many rows and columns from a point are filled; 0 leaves depth at the points alone, where normals are "
        "rare.",
        range=(0, 256),
        live=True,
    )
    normals_method: str = parameter(
        normals.DEFAULT,
        "How normals come from depth; see lix_core/geometry/normals.py.",
        choices=tuple(normals.METHODS),
        live=True,
    )
    max_rate: float = parameter(
        0.0, "Upper limit of frames per second [Hz]; those above it are skipped. 0: no limit.", range=(0.0, 1000.0), live=True
    )
    autostart: bool = parameter(True, "Configure and activate at start. False waits for a lifecycle manager.")
    input_reliability: str = parameter(
        "best_effort",
        "Reliability asked of the sensors. best_effort matches every sensor and never waits for a late frame.",
        choices=RELIABILITY,
    )
    input_depth: int = parameter(
        5, "History depth of the input subscriptions [messages]; one sensor's may wait for the other's.", range=(1, 100)
    )
    output_reliability: str = parameter(
        "reliable", "Reliability offered on the outputs; reliable matches every subscriber.", choices=RELIABILITY
    )
    output_depth: int = parameter(1, "History depth of the outputs [frames].", range=(1, 100))
    silence_timeout: float = parameter(
        3.0, "Without a message on an input for this long [s], diagnostics say so and why.", range=(0.1, 3600.0)
    )
    diagnostics_period: float = parameter(1.0, "Time between two messages on /diagnostics [s].", range=(0.1, 60.0))


@dataclass
class ReplayParameters:
    """The `replay` node."""

    input: str = parameter(
        "",
        "Folder of images, video file, rosbag2 bag, or folder of `lix world render` to play; `world` or `world:SEED` renders the "
        "simulated street live; empty plays the clip that ships with the sources.",
    )
    topic: str = parameter("", "Image topic to read out of a bag; empty takes the only one.")
    rate: float = parameter(
        0.0,
        "Frames per second [Hz]. 0 keeps the source's own timing (a video's frame rate, a bag's stamps; 10 Hz for folders, 5 Hz for "
        "a live world).",
        range=(0.0, 1000.0),
    )
    loop: bool = parameter(False, "Start again at the end.")
    frame_id: str = parameter("camera_optical_frame", "frame_id of the messages (optical frame: z forward, x right).")
    encoding: str = parameter("bgr8", "Encoding of the published images.", choices=("bgr8", "rgb8", "mono8", "bgra8", "rgba8"))
    camera_info: str = parameter(
        "",
        "Calibration YAML (the camera_calibration format) to publish on `camera_info`; empty takes camera_info.yaml beside the "
        "images, or a bag's own topic, if there is one.",
    )
    compressed: bool = parameter(False, "Also publish JPEG on `image/compressed`.")
    wait_for_subscriber: float = parameter(
        10.0, "Hold the first frame until one of its topics has a subscriber, at most this long [s]; 0 starts at once.", range=(0.0, 3600.0)
    )
    reliability: str = parameter("reliable", "Reliability offered on the topics; reliable matches every subscriber.", choices=RELIABILITY)
    depth: int = parameter(10, "History depth of the topics [frames].", range=(1, 1000))
    world_size: str = parameter("640x192", "Width x height of a live world's cameras [pixels]; the horizontal field of view stays.")
    world_weather: str = parameter(
        "", "One weather for every street of a live world (an unknown name lists them); empty draws one for each."
    )
    world_speed: float = parameter(8.0, "Speed of the car in a live world [m/s].", range=(0.1, 100.0))
    lidar_frame_id: str = parameter("lidar", "frame_id of a world's `points` (x forward, y left, z up).")
    right_offset: float = parameter(
        0.0, "Added to the stamps of a world's right camera [s], as if its clock were wrong; to try pairing.", range=(-10.0, 10.0)
    )
    points_offset: float = parameter(
        0.0, "Added to the stamps of a world's `points` [s], as if its clock were wrong; to try pairing.", range=(-10.0, 10.0)
    )
    dropout: float = parameter(
        0.0, "Share of a world's right images and clouds that are lost, by chance of its seed; to try pairing.", range=(0.0, 1.0)
    )


@dataclass
class LoggerParameters:
    """The `logger` node. In bytes and seconds; 0 switches a limit or a reason off unless said otherwise."""

    folder: str = parameter("recordings", "Folder of the bags; relative to where the node was started. `~` is understood.")
    prefix: str = parameter(RecordingSettings.prefix, "With which the names of the bags begin: PREFIX_DATE_TIME.")
    mode: str = parameter(
        "keyframes",
        "What is recorded: `everything`; `rate`: an image every 1/rate seconds with what belongs to it; `keyframes`: images worth learning "
        "from, with what belongs to them.",
        choices=MODES,
    )
    topics: list[str] = parameter(
        list(LOGGED),
        "Which of its inputs are recorded. Those that nobody publishes are told in diagnostics and recorded as soon as somebody does.",
        choices=tuple(LOGGED),
    )
    extra: str = parameter("", "Further topics of any type, separated by spaces; recorded whole in every mode.")
    image_transport: str = parameter(
        "raw",
        "`raw` records `image` and `right/image`, `compressed` `image/compressed` and `right/image/compressed`.",
        choices=("raw", "compressed"),
    )
    rate: float = parameter(1.0, "Mode `rate`: images per second [Hz].", range=(0.001, 1000.0))
    uncertainty: float = parameter(
        KeyframeSettings.uncertainty,
        "Keyframes: share of pixels of which the student is not sure, at which an image is kept; 0: off. Needs `confidence`.",
        range=(0.0, 1.0),
    )
    least_confidence: float = parameter(0.6, "A pixel is not sure where the student's confidence is lower.", range=(0.0, 1.0))
    disagreement: float = parameter(
        KeyframeSettings.disagreement,
        "Keyframes: share of pixels on which student and teacher differ, at which an image is kept; 0: off (the default). Needs "
        "`disagreement`.",
        range=(0.0, 1.0),
    )
    view: float = parameter(
        KeyframeSettings.view,
        "Keyframes: an image is kept that differs this much from the last one kept; two unlike scenes differ by about 1.1. 0: off.",
        range=(0.0, 10.0),
    )
    interval: float = parameter(
        KeyframeSettings.interval,
        "Keyframes: an image is kept at the latest this long after the last one [s]; 0: off.",
        range=(0.0, 86400.0),
    )
    least_interval: float = parameter(
        KeyframeSettings.least, "Keyframes: and none sooner than this after it, but for triggers [s].", range=(0.0, 3600.0)
    )
    before: float = parameter(KeyframeSettings.before, "What ~/trigger keeps of the time before it [s].", range=(0.0, 120.0))
    after: float = parameter(KeyframeSettings.after, "What ~/trigger keeps of the time after it [s].", range=(0.0, 3600.0))
    buffer: int = parameter(KeyframeSettings.buffer, "Most that is held for triggers and partners [bytes].", range=(1, 64_000_000_000))
    slop: float = parameter(
        KeyframeSettings.tolerance, "Largest difference between the stamps of an image and of what belongs to it [s].", range=(0.0, 10.0)
    )
    patience: float = parameter(
        KeyframeSettings.patience, "How long an image waits for the student's word on it and for what belongs to it [s].", range=(0.0, 60.0)
    )
    storage: str = parameter(RecordingSettings.storage, "Format of the bags.", choices=STORAGES)
    compression: str = parameter(
        RecordingSettings.compression, "zstd makes bags smaller and costs CPU; images as JPEG gain nothing by it.", choices=COMPRESSIONS
    )
    split_size: int = parameter(
        RecordingSettings.split_size, "A bag of this size is ended and the next begun [bytes]; 0: no limit.", range=(0, UNBOUNDED)
    )
    split_duration: float = parameter(RecordingSettings.split_duration, "The same by its duration [s]; 0: no limit.", range=(0.0, 864000.0))
    disk_floor: int = parameter(
        RecordingSettings.floor, "Recording stops, and says so, before less than this is free on the disk [bytes].", range=(0, UNBOUNDED)
    )
    quota: int = parameter(
        RecordingSettings.quota, "What all bags of this prefix may take together [bytes]; 0: no limit.", range=(0, UNBOUNDED)
    )
    delete_oldest: bool = parameter(
        RecordingSettings.delete_oldest,
        "At the quota, the oldest bags of this prefix are deleted; otherwise recording stops there. Needs a `quota`.",
    )
    queue: int = parameter(
        RecordingSettings.queue,
        "Most that may wait for the disk, beside the `buffer`; beyond, messages are lost, counted and told [bytes].",
        range=(1, 64_000_000_000),
    )
    input_depth: int = parameter(100, "History depth of the subscriptions [messages].", range=(1, 10000))
    silence_timeout: float = parameter(
        3.0, "Without a message on a camera, depth, LiDAR or label topic for this long [s], diagnostics say so.", range=(0.1, 3600.0)
    )
    diagnostics_period: float = parameter(1.0, "Time between two messages on /diagnostics [s].", range=(0.1, 60.0))


NODES: dict[str, type] = {
    "segmentation": SegmentationParameters,
    "teacher": TeacherParameters,
    "geometry": GeometryParameters,
    "replay": ReplayParameters,
    "record": LoggerParameters,
}
PAGES = {
    "docs/segmentation.md": "segmentation",
    "docs/teacher.md": "teacher",
    "docs/geometry.md": "geometry",
    "docs/replay.md": "replay",
    "docs/record.md": "record",
    "README.md": "segmentation",
}
"""Page -> the node whose parameters it lists."""
TYPE_NAMES = {str: "string", int: "int", float: "double", bool: "bool", list[str]: "string list", list[float]: "double list"}
"""Types of parameters, as ROS users call them."""
P = TypeVar("P")


def spec_of(cls: type, name: str) -> Spec:
    return next(f for f in dataclasses.fields(cls) if f.name == name).metadata["spec"]


def validate(cls: type, name: str, value: Any) -> Any:
    """The value, checked against the type, range and choices of `cls.name`.

    Raises:
        ParameterError: names the parameter, the value, and what it may be.
    """
    hint, spec = get_type_hints(cls)[name], spec_of(cls, name)
    if value is None:
        raise ParameterError(f"{name} cannot be deleted; set it to another value")
    if hint == list[str]:
        if isinstance(value, str) or not hasattr(value, "__len__"):
            raise ParameterError(f"{name} must be a list, such as [{spec.choices[0]}], got {value!r}")
        value = list(value)
        unknown = [v for v in value if v not in spec.choices]
        if unknown:
            raise ParameterError(f"{name}: unknown {unknown}; it may hold {', '.join(spec.choices)}")
        return value
    if hint == list[float]:
        return _validate_numbers(name, spec, value)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ParameterError(f"{name} must be {hint.__name__}, got {value!r}")
    if spec.choices and value not in spec.choices:
        raise ParameterError(f"{name} must be one of {', '.join(spec.choices)}, got {value!r}")
    if spec.range and not spec.range[0] <= value <= spec.range[1]:
        raise ParameterError(f"{name} must be {spec.range[0]} to {spec.range[1]}, got {value!r}")
    return value


def _validate_numbers(name: str, spec: Spec, values: Any) -> list[float]:
    if isinstance(values, str) or not hasattr(values, "__len__") or not all(type(v) in (int, float) for v in values):
        raise ParameterError(f"{name} must be a list of numbers, got {values!r}")
    numbers = [float(v) for v in values]
    if not all(math.isfinite(v) for v in numbers):
        raise ParameterError(f"{name} must hold finite numbers, got {numbers}")
    if spec.sizes and len(numbers) not in spec.sizes:
        raise ParameterError(f"{name} must hold {' or '.join(map(str, spec.sizes))} numbers, got {len(numbers)}: {numbers}")
    return numbers


def declare(node: "Node", cls: type[P]) -> P:
    """Declare every parameter of `cls` on `node`, with type, range, description and read-only flag; read them back.

    Warns of parameters that the command line or a file gives and the node does not have.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    values = {}
    hints = get_type_hints(cls)
    defaults = dataclasses.asdict(cls())
    for f in dataclasses.fields(cls):
        spec: Spec = f.metadata["spec"]
        descriptor = ParameterDescriptor(name=f.name, description=spec.description, read_only=not spec.live)
        if spec.choices:
            descriptor.additional_constraints = "one of: " + ", ".join(spec.choices)
        if spec.range and hints[f.name] is float:
            descriptor.floating_point_range = [FloatingPointRange(from_value=spec.range[0], to_value=spec.range[1])]
        elif spec.range:
            descriptor.integer_range = [IntegerRange(from_value=int(spec.range[0]), to_value=int(spec.range[1]), step=1)]
        # Whole numbers for doubles, and the empty list, come as other types; `validate` sees to them.
        descriptor.dynamic_typing = hints[f.name] in (float, list[str], list[float])
        try:
            value = node.declare_parameter(f.name, defaults[f.name], descriptor).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise ParameterError(f"{f.name} cannot be {overrides_of(node).get(f.name)!r}: {error}") from None
        if value is None and hints[f.name] in (list[str], list[float]):
            value = []  # rcl reads the empty list of a command line or file as no value at all
        values[f.name] = validate(cls, f.name, value)
    for name in overrides_of(node):
        if not node.has_parameter(name) and not name.startswith("qos_overrides."):
            node.get_logger().warning(f"there is no parameter {name}; its value is ignored{nearest(name, values)}")
    return cls(**values)


def overrides_of(node: "Node") -> dict[str, Any]:
    """The parameters that the command line or a parameter file gives, and their values."""
    return {name: given.value for name, given in node._parameter_overrides.items()}  # rclpy tells it in no other way


def to_yaml(cls: type) -> str:
    """The parameter file of a node with every default, each under its description."""
    lines = [
        "# Defaults, written by `python -m lix_ros.parameters`; change a copy and give it as params_file.",
        "/**:",
        "  ros__parameters:",
    ]
    for f in dataclasses.fields(cls):
        lines += [f"    # {line}" for line in textwrap.wrap(_described(f.metadata["spec"]), 110)]
        lines.append(f"    {f.name}: {_yaml_value(getattr(cls(), f.name))}")
    return "\n".join(lines) + "\n"


def to_markdown(cls: type) -> str:
    """The parameter table of a node."""
    hints, rows = get_type_hints(cls), ["| parameter | type | default | live | meaning |", "| --- | --- | --- | --- | --- |"]
    for f in dataclasses.fields(cls):
        spec: Spec = f.metadata["spec"]
        default = _yaml_value(getattr(cls(), f.name))
        rows.append(f"| `{f.name}` | {TYPE_NAMES[hints[f.name]]} | `{default}` | {'yes' if spec.live else 'no'} | {_described(spec)} |")
    return "\n".join(rows) + "\n"


def _described(spec: Spec) -> str:
    text = spec.description
    if spec.choices:
        text += f" One of: {', '.join(spec.choices)}."
    if spec.sizes:
        text += f" Holds {' or '.join(map(str, spec.sizes))} numbers."
    if spec.range:
        least, most = spec.range
        text += f" Range {least:.15g} upwards." if most == UNBOUNDED else f" Range {least:.15g} to {most:.15g}."
    return text


def _yaml_value(value: Any) -> str:
    return json.dumps(value)


def replace_table(page: str, name: str) -> str:
    """The Markdown page with the table between its `<!-- parameters: name -->` markers rewritten."""
    begin, end = f"<!-- parameters: {name} -->\n", f"<!-- end of parameters: {name} -->"
    if begin not in page or end not in page:
        raise ParameterError(f"the page has no markers {begin.strip()} and {end}")
    head, rest = page.split(begin, 1)
    return head + begin + to_markdown(NODES[name]) + end + rest.split(end, 1)[1]


def write_generated(root: Path) -> None:
    """Rewrite config/<node>.yaml and the parameter tables of the PAGES below `root`."""
    for name, cls in NODES.items():
        (root / "config" / f"{name}.yaml").write_text(to_yaml(cls))
    for page, name in PAGES.items():
        (root / page).write_text(replace_table((root / page).read_text(), name))


if __name__ == "__main__":
    write_generated(Path(__file__).resolve().parents[1])
