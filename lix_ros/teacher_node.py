"""The teacher node: camera images and their depth in; what an RGB + X teacher sees in them out. See docs/teacher.md."""

from __future__ import annotations

import json
from typing import Any, Mapping

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String

from lix_core.errors import ImageError, explain
from lix_core.geometry.encodings import ENCODINGS, encode
from lix_core.labels import LabelMapping, LabelSet
from lix_core.pairing import WAITING, Pairer
from lix_core.runtime.segmenter import Segmentation
from lix_ros import messages, qos, running
from lix_ros.diagnostics import LOW_SHARE, Arrivals, complaint_of_lag, pairing_values
from lix_ros.parameters import TEACHER_OUTPUTS, ParameterError, TeacherParameters
from lix_ros.segmentation_node import Pipeline, SegmentationNode

COMPARED = WAITING + 30
"""Masks of each side that wait for the other's, beside that of the frame that the teacher works on, which may take it longer. The
student's come before the depth does, for which the image waits."""
KINDS = tuple(kind for kind in ENCODINGS if kind != "disparity")
"""X that follows from depth and its calibration; disparity takes the baseline of a pair too."""


class TeacherNode(SegmentationNode):
    """Subscribes `image`, `depth` (registered to it, as the geometry node gives it) and `camera_info`, and of the student that runs
    beside it `student/mask` and `student/labels`; publishes what the segmentation node does, and `~/disagreement`: 255 where student
    and teacher give a pixel different classes, 0 elsewhere, with the stamp of the image."""

    PARAMETERS = TeacherParameters

    def __init__(self, **kwargs: Any):
        self._pairer: Pairer | None = None
        self._arrivals: dict[str, Arrivals] = {}
        self._student: LabelSet | None = None
        self._working = 0
        """Stamp of the frame that is worked on [ns]."""
        self._masks: dict[str, dict[int, Any]] = {}
        super().__init__("teacher", **kwargs)

    # ---- inputs and outputs

    def _output_types(self) -> Mapping[str, type]:
        return dict.fromkeys(TEACHER_OUTPUTS, Image)

    def _load(self, settings: TeacherParameters) -> Pipeline:
        if not settings.model:
            raise ParameterError("model is empty: name the bundle of a teacher (lix train teacher, then lix export)")
        pipeline = super()._load(settings)
        spec = pipeline.segmenter.bundle.manifest.x
        if spec is None:
            raise ParameterError(f"model {settings.model!r} sees RGB alone; the teacher node needs the bundle of an RGB + X teacher")
        if spec.kind not in KINDS:
            raise ParameterError(f"model {settings.model!r} sees X {spec.kind!r}; from depth come {', '.join(KINDS)}")
        return pipeline

    def _listen(self) -> None:
        settings = self._settings
        self._pairer = Pairer(("image", "depth"), settings.slop, {"depth": settings.offset})
        self._arrivals = {"depth": Arrivals()}
        self._masks = {"student": {}, "teacher": {}}
        profile = settings.image_reliability, settings.image_depth
        self._image_in = self._subscribe(*self._image_input(), *profile, self._on_image)
        self._depth_in = self._subscribe(Image, "depth", *profile, self._on_depth)
        self._info_in = self._subscribe(CameraInfo, "camera_info", settings.image_reliability, 1, self._on_camera_info)
        self._subscribe(Image, "student/mask", *profile, self._on_student_mask)
        labels = self.create_subscription(
            String, "student/labels", self._on_student_labels, qos.latched(), callback_group=self._input_group
        )
        self._subscriptions_held.append(labels)
        self.get_logger().info(
            f"active: {self._pipeline.description}; images from {self._image_in.topic_name}, depth from {self._depth_in.topic_name}"
        )

    # ---- frames

    def _on_image(self, message: Image | CompressedImage, sequence: int | None) -> None:
        self._statistics.on_received(sequence)
        self._pair("image", message)

    def _on_depth(self, message: Image, sequence: int | None) -> None:
        self._arrivals["depth"].on_received(sequence)
        self._pair("depth", message)

    def _pair(self, stream: str, message: Any) -> None:
        stamp = messages.nanoseconds(message.header.stamp)
        with self._arrival_lock:
            frames = self._pairer.add(stream, stamp, message, messages.size_of(message))
        for frame in frames:
            if self._lacks_calibration():
                self._statistics.count("skipped")
            else:
                self._offer(frame)

    def _lacks_calibration(self) -> bool:
        """Whether the model's X does not follow from depth alone, and no camera_info has come yet."""
        return self._camera_info is None and ENCODINGS[self._kind].quantity != "depth"

    @property
    def _kind(self) -> str:
        """Which X the model sees."""
        return self._pipeline.segmenter.bundle.manifest.x.kind

    def _process(self, frame: tuple[Image | CompressedImage, Image], pipeline: Pipeline) -> Header:
        message, depth_message = frame
        self._working = messages.nanoseconds(message.header.stamp)
        image, order = messages.image_to_array(message)
        depth = messages.image_to_depth(depth_message)
        if depth.shape != image.shape[:2]:
            raise ImageError(
                f"depth is {depth.shape[1]}x{depth.shape[0]}, the image {image.shape[1]}x{image.shape[0]}: "
                "give the image that the depth is registered to (the rectified one; of a stereo pair, the left)"
            )
        kind = pipeline.segmenter.bundle.manifest.x.kind
        is_needed = ENCODINGS[kind].quantity != "depth" and self._camera_info is not None  # an uncalibrated camera sends zeros
        camera = messages.camera_of(self._camera_info).rectified() if is_needed else None
        x, known = encode(kind, depth=depth, camera=camera)
        result = pipeline.finish(pipeline.segmenter.segment(image, order, x, known), self._settings)
        self._publish(result, image, order, message.header)
        if "disagreement" in self._wanted():
            self._compare("teacher", message.header, result)
        return message.header

    # ---- student against teacher

    def _on_student_labels(self, message: String) -> None:
        try:
            self._student = LabelSet.from_dict(json.loads(message.data))
        except Exception as error:  # what leaves a callback ends the node
            self._on_frame_error(f"student/labels: {explain(error)}")

    def _on_student_mask(self, message: Image, sequence: int | None) -> None:
        if "disagreement" not in self._wanted():
            return
        try:
            mask, _ = messages.image_to_array(message)
            self._compare("student", message.header, mask)
        except Exception as error:  # what leaves a callback ends the node
            self._on_frame_error(f"student/mask: {explain(error)}")

    def _compare(self, side: str, header: Header, item: np.ndarray | Segmentation) -> None:
        """Publish the disagreement as soon as both sides of an image are there."""
        stamp, other = messages.nanoseconds(header.stamp), {"student": "teacher", "teacher": "student"}[side]
        with self._arrival_lock:
            found = self._masks[other].pop(stamp, None)
            if found is None:
                waiting = self._masks[side]
                waiting[stamp] = item
                while len(waiting) > COMPARED:
                    del waiting[next(other for other in waiting if other != self._working)]
                return
        mask, result = (item, found) if side == "student" else (found, item)
        if self._student is None:
            raise ImageError("the student's mask came without its labels; remap `student/labels` beside `student/mask`")
        differs = result.differs_from(mask, LabelMapping.by_name(self._student, result.labels))
        self._outputs["disagreement"].publish(messages.array_to_image(np.where(differs, np.uint8(255), np.uint8(0)), "mono8", header))

    # ---- diagnostics

    def _troubles(self, now: float, active_since: float) -> list[tuple[bytes, str]]:
        found = super()._troubles(now, active_since)
        silent = now - max(self._arrivals["depth"].last_received_time, active_since)
        if silent > self._settings.silence_timeout:
            why = self._why_silent(self._depth_in, "depth", "image_reliability", "it must be a depth image")
            found.append((DiagnosticStatus.WARN, f"no depth on {self._depth_in.topic_name} for {silent:.0f} s: {why}"))
        if self._lacks_calibration() and now - active_since > self._settings.silence_timeout:
            why = self._why_silent(self._info_in, "camera_info", "image_reliability", "it must be the calibration of the depth")
            text = f"no camera_info on {self._info_in.topic_name}, without which depth has no {self._kind}: {why}"
            found.append((DiagnosticStatus.WARN, text))
        slop, offset = self._settings.slop, self._settings.offset
        with self._arrival_lock:
            share, lag = self._pairer.share("depth"), self._pairer.lag("depth") or 0.0
            complaint = complaint_of_lag(self._pairer, offset)
        # Of the depth, not of the images: a camera may well be faster than what measures depth in its images.
        if share is not None and share < LOW_SHARE:
            waited = WAITING / max(self._statistics.rate, 1e-3)
            late = (
                f"it comes {lag:.1f} s after its image, which waits for {waited:.1f} s: make depth faster, or send fewer images, or set "
                f"offset to {offset - lag:.1f} if its clock is that far behind"
            )
            cause = late if lag > waited else complaint or "see slop and offset"
            complaint = f"{100 * share:.0f} % of the depth found its image within {1e3 * slop:.0f} ms; {cause}"
        if complaint:
            found.append((DiagnosticStatus.WARN, complaint))
        return found

    def _description(self) -> tuple[str, dict[str, str]]:
        hardware_id, values = super()._description()
        with self._arrival_lock:
            return hardware_id, values | (pairing_values(self._pairer, "depth") if self._pairer else {})


def main() -> None:
    raise SystemExit(running.run(TeacherNode))


if __name__ == "__main__":
    main()
