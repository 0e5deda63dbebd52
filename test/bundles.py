"""Tiny bundles whose right answer is known: each pixel belongs to the class whose colour is nearest.

Nearest colour c_k means the largest 2 c_k . x - |c_k|^2, which is linear in the pixel x: a 1x1 convolution. With mean 127 and
std 128 every product and sum of it is exact in float32, so `nearest_colour` gives the same ids as the graph, ties included.
With X, `X_WEIGHT` (x, known) is added to the logits of each pixel.
"""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the tiny bundles are made with onnx")

from onnx import TensorProto, helper, numpy_helper

from lix_core.labels import Label, LabelSet
from lix_core.runtime.bundle import Bundle, InputSpec, Manifest, SizePolicy, XSpec

COLOURS = LabelSet(
    "colours",
    (
        Label("black", (0, 0, 0)),
        Label("red", (255, 0, 0)),
        Label("green", (0, 255, 0)),
        Label("blue", (0, 0, 255)),
        Label("white", (255, 255, 255)),
    ),
)
MEAN, STD = (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)
X = XSpec("two", 2)
X_WEIGHT = np.array([[1, 0, 0.5], [-1, 2, 0], [0, -2, -0.5], [3, 1, 4], [-2, -1, 0.25]])
"""(C, 3): what each of the two channels of X, and knowing them, adds to the logit of each class; other numbers of channels repeat these."""
PALETTE = np.array([label.color for label in COLOURS.labels], np.uint8)


def normalised_palette() -> np.ndarray:
    """(C, 3) float64 class colours as the network sees them."""
    return (PALETTE.astype(float) - MEAN) / STD


def colour_logits(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (C, H, W) float64 logits of the tiny graphs at stride 1."""
    pixels, colours = (image.astype(float) - MEAN) / STD, normalised_palette()
    return np.moveaxis(2 * pixels @ colours.T - (colours**2).sum(1), -1, 0)


def x_weight(channels: int) -> np.ndarray:
    """(C, channels + 1), after X_WEIGHT."""
    return X_WEIGHT[:, [*(i % 2 for i in range(channels)), 2]]


def x_logits(x: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(Cx, H, W) and (H, W) bool -> (C, H, W) float64: what X adds to the logits of the tiny graph at stride 1."""
    return np.tensordot(x_weight(len(x)), np.concatenate([np.where(known, x, 0), known[None]]).astype(float), 1)


def random_x(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """X in quarters, known at about two thirds of the pixels, and junk where it is unknown."""
    generator = np.random.default_rng(seed)
    known = generator.random((height, width)) < 0.66
    return np.where(known, generator.integers(-8, 9, (2, height, width)) / 4, 99).astype(np.float32), known


def nearest_colour(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) uint8 ids of `COLOURS`, by integer distances; the first of equals wins."""
    difference = image[:, :, None].astype(np.int64) - PALETTE.astype(np.int64)
    return (difference**2).sum(-1).argmin(-1).astype(np.uint8)


def winner_probability(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (H, W) float64 softmax probability of the winning class."""
    logits = colour_logits(image)
    return np.exp(logits.max(0)) / np.exp(logits).sum(0)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def blocks(ids: np.ndarray, size: int) -> np.ndarray:
    """An RGB picture of squares of `size` pixels, each in the colour of its class."""
    return PALETTE[np.repeat(np.repeat(ids, size, 0), size, 1)]


def _constant(name: str, values: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def _classifier(x_channels: int = 0) -> list[onnx.TensorProto]:
    colours = normalised_palette()
    weight = np.hstack([2 * colours, x_weight(x_channels)]) if x_channels else 2 * colours
    return [
        _constant("weight", weight[:, :, None, None]),
        _constant("bias", -(colours**2).sum(1)),
    ]


def _model(nodes: list, inputs: list, outputs: list, constants: list[onnx.TensorProto]) -> bytes:
    graph = helper.make_graph(nodes, "colours", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _classify(stride: int) -> list[onnx.NodeProto]:
    """pixels (1, 3, H, W), normalised -> logits (1, C, H / stride, W / stride), of the mean colour of each cell."""
    pool = helper.make_node("AveragePool", ["pixels"], ["cells"], kernel_shape=[stride, stride], strides=[stride, stride])
    return [pool, helper.make_node("Conv", ["cells", "weight", "bias"], ["logits"])]


def _classify_with_x(stride: int) -> list[onnx.NodeProto]:
    """The same, of colour and geometry."""
    return [
        helper.make_node("Cast", ["known"], ["known as float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["known as float", "channels"], ["known plane"]),
        helper.make_node("Concat", ["pixels", "x", "known plane"], ["everything"], axis=1),
        helper.make_node("AveragePool", ["everything"], ["cells"], kernel_shape=[stride, stride], strides=[stride, stride]),
        helper.make_node("Conv", ["cells", "weight", "bias"], ["logits"]),
    ]


def logits_bundle(canvas: tuple[int, int] = (0, 0), stride: int = 1, size: SizePolicy | None = None, **manifest: object) -> Bundle:
    """NCHW float32 in, logits alone out; on `canvas` (height, width), or on any size."""
    size = size or SizePolicy(height=canvas[0], width=canvas[1])
    height, width = (size.height or "height", size.width or "width")
    coarse = (size.height // stride or "h", size.width // stride or "w")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, height, width))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, len(COLOURS), *coarse))
    nodes = [helper.make_node("Identity", ["image"], ["pixels"]), *_classify(stride)]
    spec = InputSpec("NCHW", "float32", MEAN, STD)
    given = {"name": "tiny-logits", "labels": COLOURS, "input": spec, "size": size, **manifest}
    return Bundle(Manifest(**given), _model(nodes, [image], [logits], _classifier()), "# tiny")


def camera_bundle(
    canvas: tuple[int, int] = (0, 0), stride: int = 1, size: SizePolicy | None = None, x: XSpec | None = None, **manifest: object
) -> Bundle:
    """NHWC uint8 in, and maybe `X`; mask, confidence and logits out, as exported networks have them; on `canvas`, or on any size."""
    size = size or SizePolicy(height=canvas[0], width=canvas[1])
    height, width = (size.height or "height", size.width or "width")
    coarse = (size.height // stride or "h", size.width // stride or "w")
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, (1, height, width, 3))]
    if x:
        inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, x.channels, height, width)))
        inputs.append(helper.make_tensor_value_info("known", TensorProto.BOOL, (1, height, width)))
    outputs = [
        helper.make_tensor_value_info("mask", TensorProto.UINT8, (1, height, width)),
        helper.make_tensor_value_info("confidence", TensorProto.FLOAT, (1, *coarse)),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, len(COLOURS), *coarse)),
    ]
    constants = [
        *_classifier(x.channels if x else 0),
        _constant("mean", np.reshape(MEAN, (1, 3, 1, 1))),
        _constant("scale", 1 / np.reshape(STD, (1, 3, 1, 1))),
        _constant("channels", [1], np.int64),
        _constant("factor", [1, 1, stride, stride]),
    ]
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["pixels"]),
        *(_classify_with_x(stride) if x else _classify(stride)),
        helper.make_node("Resize", ["logits", "", "factor"], ["full"], mode="linear", coordinate_transformation_mode="half_pixel"),
        helper.make_node("ArgMax", ["full"], ["ids"], axis=1, keepdims=0),
        helper.make_node("Cast", ["ids"], ["mask"], to=TensorProto.UINT8),
        helper.make_node("ReduceMax", ["logits", "channels"], ["top"], keepdims=1),
        helper.make_node("Sub", ["logits", "top"], ["below"]),
        helper.make_node("Exp", ["below"], ["odds"]),
        helper.make_node("ReduceSum", ["odds", "channels"], ["total"], keepdims=0),
        helper.make_node("Reciprocal", ["total"], ["confidence"]),
    ]
    names = ("logits", "mask", "confidence")
    given = {"name": "tiny-camera", "labels": COLOURS, "size": size, "outputs": names, "x": x, **manifest}
    return Bundle(Manifest(**given), _model(nodes, inputs, outputs, constants), "# tiny")
