"""PyTorch: runs the bundle's ONNX graph as a torch module, on CUDA where there is a GPU, else on the CPU."""

from __future__ import annotations

from typing import Callable, Mapping, Sequence

import numpy as np
import onnx
import torch
from onnx2torch import convert
from onnx2torch.node_converters.registry import add_converter, get_converter
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OnnxMapping, OperationConverterResult
from torch import Tensor, nn

from lix_core.runtime.backends import NOTHING, BackendOptions
from lix_core.workers import cores

DTYPE = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


class Reduction(nn.Module):
    """An ONNX reduction of opset 18, where the axes moved from an attribute to an input."""

    def __init__(self, reduce: Callable[..., Tensor], axes: Sequence[int], keepdim: bool):
        super().__init__()
        self.reduce, self.axes, self.keepdim = reduce, tuple(axes), keepdim

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(x, dim=self.axes, keepdim=self.keepdim)


def extend_onnx2torch() -> None:
    """Teach onnx2torch 1.5 what it lacks of opset 18, through its own registry.

    Resize is as in opset 13 for the attributes in use; reductions moved their (here constant) axes to an input.
    """

    def reduction(reduce: Callable[..., Tensor]) -> Callable[[OnnxNode, OnnxGraph], OperationConverterResult]:
        def convert_node(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
            axes = graph.initializers[node.input_values[1]].to_torch().tolist()
            module = Reduction(reduce, axes, bool(node.attributes.get("keepdims", 1)))
            return OperationConverterResult(module, OnnxMapping((node.input_values[0],), node.output_values))

        return convert_node

    converters = {
        "ReduceMean": reduction(torch.mean),
        "ReduceMax": reduction(torch.amax),
        "Resize": get_converter("Resize", version=13),
    }
    for operation, converter in converters.items():
        try:
            get_converter(operation, version=18)
        except NotImplementedError:
            add_converter(operation_type=operation, version=18)(converter)


extend_onnx2torch()


def fold_weight_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace each weight that is stored in one type and cast to another by the weight in that other type.

    Bundles store float16 and cast to float32; onnx2torch wants the weights of a convolution to be constants.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type != "Cast" or node.input[0] not in weights:
            kept.append(node)
            continue
        to = onnx.helper.tensor_dtype_to_np_dtype(node.attribute[0].i)
        values = onnx.numpy_helper.to_array(weights[node.input[0]]).astype(to)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


class TorchBackend:
    """Outputs come back to the host as NumPy arrays."""

    def __init__(self, graph: bytes, options: BackendOptions):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        threads = options.threads or cores()
        torch.set_num_threads(threads)
        precision = "f32" if options.precision == "auto" else options.precision
        model = fold_weight_casts(onnx.load_from_string(graph))
        weights = {tensor.name for tensor in model.graph.initializer}
        self.inputs = tuple(i.name for i in model.graph.input if i.name not in weights)
        self.outputs = tuple(o.name for o in model.graph.output)
        self._module = convert(model).eval().to(self._device)
        self._dtype = DTYPE[precision]
        where = torch.cuda.get_device_name() if self._device.type == "cuda" else f"CPU {threads} threads"
        self.description = f"torch {torch.__version__} {precision} {where}"

    @torch.inference_mode()
    def run(self, image: np.ndarray, outputs: Sequence[str], others: Mapping[str, np.ndarray] = NOTHING) -> list[np.ndarray]:
        arrays = (image, *(others[name] for name in self.inputs[1:]))
        tensors = [torch.from_numpy(array).to(self._device) for array in arrays]
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            results = self._module(*tensors)
        results = [results] if isinstance(results, Tensor) else results
        named = dict(zip(self.outputs, results, strict=True))
        return [named[name].float().cpu().numpy() if named[name].is_floating_point() else named[name].cpu().numpy() for name in outputs]
