"""The segmentation node: camera images in; class mask, colours, overlay and confidence out. See docs/segmentation.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String
from std_srvs.srv import Trigger

from lix_core import viz
from lix_core.errors import explain
from lix_core.labels import LabelMapping, LabelSet
from lix_core.pixels import to_rgb
from lix_core.runtime.backends import BackendOptions
from lix_core.runtime.segmenter import Segmentation, Segmenter
from lix_ros import messages, qos, running
from lix_ros.parameters import OUTPUTS, SegmentationParameters
from lix_ros.stream_node import StreamNode

RELOADING = {"model", "backend", "threads", "precision", "max_pixels"}
"""Parameters whose change loads the model anew."""


@dataclass(frozen=True)
class Pipeline:
    """A loaded model with the label remap that fits it; swapped as one."""

    segmenter: Segmenter
    mapping: LabelMapping | None

    @property
    def labels(self) -> LabelSet:
        return self.mapping.target if self.mapping else self.segmenter.labels

    @property
    def description(self) -> str:
        return self.segmenter.description

    def finish(self, result: Segmentation, settings: SegmentationParameters) -> Segmentation:
        """What the model said, without what it is too unsure of, in the labels that are published."""
        result = result.rejecting(settings.min_confidence)
        return result.remapped(self.mapping) if self.mapping else result


class SegmentationNode(StreamNode):
    """Subscribes `image` and `camera_info`; publishes `~/mask`, `~/color`, `~/overlay`, `~/confidence`, `~/camera_info`,
    `~/labels` (and `~/label_info` where vision_msgs is installed) and `/diagnostics`."""

    PARAMETERS = SegmentationParameters
    DOING, DONE = "segmenting", "segmented"

    def __init__(self, name: str = "segmentation", **kwargs: Any):
        super().__init__(name, **kwargs)
        self._camera_info: CameraInfo | None = None
        self._labels_out: Publisher | None = None
        self._label_info_out: Publisher | None = None
        self.create_service(Trigger, "~/reload", self._on_reload)
        if self._settings.autostart:
            self._start()

    # ---- inputs and outputs

    def _output_types(self) -> dict[str, type]:
        return dict.fromkeys(OUTPUTS, Image)

    def _open_outputs(self) -> None:
        super()._open_outputs()
        self._labels_out = self.create_publisher(String, "~/labels", qos.latched())
        self._label_info_out = self.create_publisher(messages.LabelInfo, "~/label_info", qos.latched()) if messages.LabelInfo else None

    def _image_input(self) -> tuple[type, str]:
        """Type of the images and their topic before remapping."""
        return (Image, "image") if self._settings.image_transport == "raw" else (CompressedImage, "image/compressed")

    def _listen(self) -> None:
        settings = self._settings
        self._image_in = self._subscribe(*self._image_input(), settings.image_reliability, settings.image_depth, self._on_image)
        self._subscribe(CameraInfo, "camera_info", settings.image_reliability, 1, self._on_camera_info)
        self.get_logger().info(f"active: {self._pipeline.description}; images from {self._image_in.topic_name}")

    def _release(self) -> None:
        super()._release()
        for publisher in (self._labels_out, self._label_info_out):
            if publisher is not None:
                self.destroy_publisher(publisher)
        self._labels_out, self._label_info_out = None, None

    # ---- model

    def _load(self, settings: SegmentationParameters) -> Pipeline:
        segmenter = Segmenter(settings.model, settings.backend, BackendOptions(settings.threads, settings.precision), settings.max_pixels)
        if why := segmenter.bundle.manifest.needs_x:
            self.get_logger().warning(f"{why}; the teacher node runs it with its depth")
        return self._pipeline_of(segmenter, settings)

    def _reload(self, settings: SegmentationParameters, changed: Any) -> Pipeline | None:
        if RELOADING & changed or ("class_remap" in changed and self._pipeline is None):
            return self._load(settings)
        return self._pipeline_of(self._pipeline.segmenter, settings) if "class_remap" in changed else None

    @staticmethod
    def _pipeline_of(segmenter: Segmenter, settings: SegmentationParameters) -> Pipeline:
        path = settings.class_remap
        return Pipeline(segmenter, LabelMapping.load(segmenter.labels, path) if path else None)

    def _take_over(self, pipeline: Pipeline) -> None:
        """Tell the labels too, if they changed."""
        old = self._pipeline
        super()._take_over(pipeline)
        if old is None or old.labels != pipeline.labels:
            self._labels_out.publish(String(data=pipeline.labels.to_json()))
            if self._label_info_out:
                header = Header(stamp=self.get_clock().now().to_msg())
                self._label_info_out.publish(messages.label_info(pipeline.labels, header))

    def _on_reload(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._pipeline is None:
            response.success, response.message = False, "the node is not configured"
            return response
        try:
            pipeline = self._load(self._settings)
        except Exception as error:  # what leaves a callback ends the node
            self.get_logger().error(f"reload refused, the old model goes on: {explain(error)}")
            response.success, response.message = False, explain(error)
            return response
        self._swap(pipeline)
        response.success, response.message = True, f"reloaded {pipeline.description}"
        return response

    # ---- frames

    def _on_camera_info(self, message: CameraInfo, sequence: int | None) -> None:
        self._camera_info = message

    def _on_image(self, message: Image | CompressedImage, sequence: int | None) -> None:
        self._statistics.on_received(sequence)
        self._offer(message)

    def _process(self, message: Image | CompressedImage, pipeline: Pipeline) -> Header:
        image, order = messages.image_to_array(message)
        self._publish(pipeline.finish(pipeline.segmenter.segment(image, order), self._settings), image, order, message.header)
        return message.header

    def _publish(self, result: Segmentation, image: np.ndarray, order: str, header: Header) -> None:
        """What is wanted of a segmented image."""
        settings, wanted = self._settings, self._wanted()
        if "mask" in wanted:
            self._outputs["mask"].publish(messages.array_to_image(result.mask, "mono8", header))
        if "color" in wanted:
            self._outputs["color"].publish(messages.array_to_image(viz.colorize(result.mask, result.labels), "rgb8", header))
        if "overlay" in wanted:
            blended = viz.overlay(to_rgb(image, order), result.mask, result.labels, settings.overlay_alpha)
            self._outputs["overlay"].publish(messages.array_to_image(blended, "rgb8", header))
        if "confidence" in wanted:
            self._outputs["confidence"].publish(messages.array_to_image(result.confidence_u8, "mono8", header))
        self._publish_camera_info(header)

    def _publish_camera_info(self, header: Header) -> None:
        """The camera's calibration with the frame's stamp, beside the outputs, where tools look for it."""
        if self._camera_info is not None and self._info_out.get_subscription_count() > 0:
            info = self._camera_info
            info.header = header
            self._info_out.publish(info)

    # ---- diagnostics

    def _troubles(self, now: float, active_since: float) -> list[tuple[bytes, str]]:
        silent = now - max(self._statistics.last_received_time, active_since)
        if silent <= self._settings.silence_timeout:
            return []
        _, topic = self._image_input()
        why = self._why_silent(self._image_in, topic, "image_reliability", "see the parameter image_transport")
        return [(DiagnosticStatus.WARN, f"no image on {self._image_in.topic_name} for {silent:.0f} s: {why}")]

    def _description(self) -> tuple[str, dict[str, str]]:
        pipeline = self._pipeline
        return self._settings.model, {
            "model": self._settings.model,
            "backend": pipeline.description if pipeline else "none",
            **self._statistics.values(),
        }


def main() -> None:
    raise SystemExit(running.run(SegmentationNode))


if __name__ == "__main__":
    main()
