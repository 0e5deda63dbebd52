"""From a trained network to a bundle: an ONNX graph that takes camera pixels and gives ids and confidence."""

from __future__ import annotations

import copy
import math

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lix_core.errors import LixError
from lix_core.models.networks import Student

OUTPUTS = ("mask", "confidence", "logits")
"""Names of the graph's outputs, in its order."""


class StaticSame(nn.Module):
    """TensorFlow's SAME padding with constant widths, exact where the input is a multiple of the stride.

    timm's TF-ported convolutions compute their padding from the size at hand; as constants they leave the exported
    graph free of shape arithmetic. `Student` takes multiples of its coarsest stride only, so all of them are exact.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        total = [max(d * (k - 1) + 1 - s, 0) for k, s, d in zip(conv.kernel_size, conv.stride, conv.dilation)]
        (top, left) = (total[0] // 2, total[1] // 2)
        self.pad = (left, total[1] - left, top, total[0] - top)
        self.conv = nn.Conv2d(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, 0, conv.dilation, conv.groups, conv.bias is not None
        )
        self.conv.load_state_dict(conv.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pad))


def with_static_padding(module: nn.Module) -> nn.Module:
    """Replace every convolution that pads by the size of its input, in place."""
    for name, child in module.named_children():
        if type(child).__name__ == "Conv2dSame":
            setattr(module, name, StaticSame(child))
        else:
            with_static_padding(child)
    return module


class CameraGraph(nn.Module):
    """What the robot runs: normalisation, network, full-size argmax and confidence in one graph.

    Shape:
        image (1, H, W, 3) uint8 RGB, H and W multiples of the stride ->
        mask (1, H, W) uint8, confidence (1, H / s, W / s) float32 0..1, logits (1, C, H / s, W / s) float32,
        s = `network.output_stride`
    """

    def __init__(self, network: Student, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.network = network
        self.register_buffer("scale", 1 / torch.tensor(std).view(1, 3, 1, 1))
        self.register_buffer("shift", -torch.tensor(mean).view(1, 3, 1, 1) / torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = image.permute(0, 3, 1, 2).float() * self.scale + self.shift
        logits = self.network.coarse_logits(x)
        full = F.interpolate(logits, scale_factor=float(self.network.output_stride), mode="bilinear", align_corners=False)
        mask = full.argmax(1).to(torch.uint8)
        # The winner's softmax, written out: for a Softmax over channels ONNX Runtime transposes the whole tensor twice.
        confidence = 1 / (logits - logits.amax(1, keepdim=True)).exp().sum(1)
        return mask, confidence, logits


def export_student(network: Student, mean: tuple[float, ...], std: tuple[float, ...], opset: int = 18) -> bytes:
    """The serialised ONNX graph of `CameraGraph`, for images of any size in multiples of the network's stride.

    Weights are stored as float16 (half the size) and computed with in float32.
    """
    stride = network.stride
    graph = CameraGraph(with_static_padding(copy.deepcopy(network)), mean, std).eval().cpu()
    example = torch.zeros(1, 4 * stride, 6 * stride, 3, dtype=torch.uint8)
    # Sizes are given as multiples, so that every halving in the network is exact.
    rows, columns = torch.export.Dim("rows", min=1, max=512), torch.export.Dim("columns", min=1, max=512)
    program = torch.onnx.export(
        graph,
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=opset,
        input_names=["image"],
        output_names=list(OUTPUTS),
        dynamic_shapes={"image": {1: stride * rows, 2: stride * columns}},
    )
    model = store_as_float16(program.model_proto)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def store_as_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Keep large float32 weights as float16, each behind a Cast that runtimes fold away when they load the graph."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or math.prod(tensor.dims) < 64:
            continue
        name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise LixError(f"weight {name} reaches {np.abs(values).max():.3g}, more than float16 holds")
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_f16"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_f16"], [name], name=f"{name}_cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    # Names of classes and files of the exporting machine are of no use to a robot.
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    return model
