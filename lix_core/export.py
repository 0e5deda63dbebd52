"""From a trained network to an ONNX graph that takes camera pixels, and X where the network does, and gives ids and confidence.

And back: `read_network`.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lix_core.errors import LixError, first_line
from lix_core.models.networks import Network, Teacher
from lix_core.runtime.backends import BackendOptions, load_backend

OUTPUTS = ("mask", "confidence", "logits")
"""Names of the graph's outputs, in its order."""
LIMIT = 0.05
"""Weights as float16 change logits by less, as a share of the largest; an operation that is exported wrongly changes them by more."""


class StaticSame(nn.Module):
    """TensorFlow's SAME padding with constant widths, exact where the input is a multiple of the stride.

    timm's TF-ported convolutions compute their padding from the size at hand; as constants they leave the exported
    graph free of shape arithmetic. The networks take multiples of their coarsest stride only, so all of them are exact.
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


def without_fused_attention(module: nn.Module) -> nn.Module:
    """Have timm's attention written out in matrix products, in place: of the fused one, ONNX and its runtimes know some forms only."""
    for part in module.modules():
        if getattr(part, "fused_attn", False):
            part.fused_attn = False
    return module


class CameraGraph(nn.Module):
    """What the robot runs: normalisation, network, full-size argmax and confidence in one graph.

    Shape:
        image (1, H, W, 3) uint8 RGB, H and W multiples of the stride ->
        mask (1, H, W) uint8, confidence (1, H / s, W / s) float32 0..1, logits (1, C, H / s, W / s) float32,
        s = `network.output_stride`
    """

    def __init__(self, network: Network, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.network = network
        self.register_buffer("scale", 1 / torch.tensor(std).view(1, 3, 1, 1))
        self.register_buffer("shift", -torch.tensor(mean).view(1, 3, 1, 1) / torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.decide(self.network.coarse_logits(self.normalise(image)))

    def normalise(self, image: Tensor) -> Tensor:
        return image.permute(0, 3, 1, 2).float() * self.scale + self.shift

    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coarse logits -> mask, confidence and the logits themselves."""
        full = F.interpolate(logits, scale_factor=float(self.network.output_stride), mode="bilinear", align_corners=False)
        mask = full.argmax(1).to(torch.uint8)
        # The winner's softmax, written out: for a Softmax over channels ONNX Runtime transposes the whole tensor twice.
        confidence = 1 / (logits - logits.amax(1, keepdim=True)).exp().sum(1)
        return mask, confidence, logits


class CameraAndXGraph(CameraGraph):
    """The same of a network that sees X too.

    Shape:
        image as above, x (1, Cx, H, W) float32, 0 where unknown, known (1, H, W) bool -> as above
    """

    def forward(self, image: Tensor, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.decide(self.network.coarse_logits(self.normalise(image), x, known))


def export_network(network: Network, mean: tuple[float, ...], std: tuple[float, ...], opset: int = 18) -> bytes:
    """The serialised ONNX graph of `CameraGraph` or `CameraAndXGraph`, for any size in multiples of the network's stride.

    mean, std: RGB, on the 0..255 scale. Weights are stored as float16 (half the size) and computed with in float32.
    """
    stride = network.stride
    height, width = 4 * stride, 6 * stride
    # Sizes are given as multiples, so that every halving in the network is exact.
    rows, columns = (stride * torch.export.Dim(name, min=1, max=512) for name in ("rows", "columns"))
    example, shapes = {"image": torch.zeros(1, height, width, 3, dtype=torch.uint8)}, {"image": {1: rows, 2: columns}}
    with_x = isinstance(network, Teacher)
    if with_x:
        example |= {"x": torch.zeros(1, network.x_channels, height, width), "known": torch.zeros(1, height, width, dtype=torch.bool)}
        shapes |= {"x": {2: rows, 3: columns}, "known": {1: rows, 2: columns}}
    plain = without_fused_attention(with_static_padding(copy.deepcopy(network)))
    graph = (CameraAndXGraph if with_x else CameraGraph)(plain, mean, std).eval().cpu()
    with warnings.catch_warnings():
        # That image, x and known share their two sizes is meant.
        warnings.filterwarnings("ignore", "# The axis name")
        try:
            program = torch.onnx.export(
                graph,
                tuple(example.values()),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=list(example),
                output_names=list(OUTPUTS),
                dynamic_shapes=shapes,
            )
        except Exception as error:  # of PyTorch's exporter, as many kinds as it has steps
            raise LixError(f"PyTorch makes no ONNX graph of this network ({first_line(error)}); take another encoder") from error
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
        if node.op_type == "Reshape":  # onnx2torch has no `allowzero`, which says nothing where no tensor is empty
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
        node.doc_string = ""
        del node.metadata_props[:]
    return model


def read_network(graph: bytes, network: Network) -> None:
    """Give a network, in place, the weights of a graph that `export_network` made of one like it; then both compute the same.

    Of a batch normalisation that the export folded into the convolution before it nothing but its shift is left: here it has mean 0,
    variance 1 and scale 1. So the network is whole in eval mode; before it is trained on, `renormalising` finds what it is to
    normalise by.

    Raises LixError where the graph lacks a weight of the network under its name, as graphs of networks do whose other weights the export
    folds too, and where the two do not compute the same.
    """
    try:
        model = onnx.load_from_string(graph)
    except Exception as error:  # of protobuf
        raise LixError(f"its graph cannot be read: {first_line(error)}") from None
    values = {tensor.name.removesuffix("_f16"): onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    biases = {node.input[1]: node.input[2] for node in model.graph.node if node.op_type == "Conv" and len(node.input) > 2}
    folded = folded_norms(network, values)
    state = {}
    for name, module in network.named_modules():
        own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        place = exported_name(name, module)
        found = {key: values.get(f"{place}.{key}") for key in own}
        if isinstance(module, nn.Conv2d):
            shift = values.get(biases.get(f"{place}.weight", ""), np.zeros(module.out_channels))
            if norm := folded.get(name):
                state |= {f"{norm}.{key}": value for key, value in identity_norm(network.get_submodule(norm), shift).items()}
                shift = np.zeros(module.out_channels)
            found["bias"] = shift
        state |= {f"{name}.{key}": found[key] for key in own if f"{name}.{key}" not in state and found[key] is not None}
    lacking = [key for key, value in network.state_dict().items() if key not in state and not key.endswith("num_batches_tracked")]
    unlike = [key for key, value in network.state_dict().items() if key in state and value.shape != np.shape(state[key])]
    if lacking or unlike:
        raise LixError(f"weights cannot be read out of this graph: it has {(lacking or unlike)[0]} in another form")
    network.load_state_dict({key: torch.tensor(np.asarray(value, np.float32)) for key, value in state.items()}, strict=False)
    agreement(graph, network.eval())


def exported_name(name: str, module: nn.Module) -> str:
    """Of a module of a network, in its graph: see CameraGraph and StaticSame."""
    return f"network.{name}.conv" if type(module).__name__ == "Conv2dSame" else f"network.{name}"


def folded_norms(network: Network, values: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Convolution -> the batch normalisation of what it gives, where the graph with these values has none of its own for that."""
    gives: dict[int, tuple[str, Tensor]] = {}
    pairs = {}

    def note(name: str, output: Tensor) -> None:
        gives[id(output)] = (name, output)

    def pair(name: str, given: Tensor) -> None:
        if id(given) in gives and f"network.{name}.running_mean" not in values:
            pairs[gives[id(given)][0]] = name

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(lambda _, __, output, name=name: note(name, output)))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(lambda _, given, name=name: pair(name, given[0])))
    try:
        with torch.inference_mode():
            network.eval().coarse_logits(*blank(network, 2 * network.stride, 2 * network.stride))
    finally:
        for handle in handles:
            handle.remove()
    return pairs


def identity_norm(norm: nn.BatchNorm2d, shift: np.ndarray) -> dict[str, np.ndarray]:
    """State of a batch normalisation that adds `shift` and does nothing else."""
    zeros = np.zeros(norm.num_features)
    return {"running_mean": zeros, "running_var": zeros + (1 - norm.eps), "weight": zeros + 1, "bias": shift}


def blank(network: Network, height: int, width: int) -> list[Tensor]:
    """What a network takes, one frame of nothing."""
    image, known = torch.zeros(1, 3, height, width), torch.zeros(1, height, width, dtype=torch.bool)
    return [image, torch.zeros(1, network.x_channels, height, width), known] if isinstance(network, Teacher) else [image]


@contextmanager
def renormalising(network: Network) -> Iterator[None]:
    """After it every batch normalisation of the network has the mean and variance of what went through it meanwhile, and the scale and
    shift with which it goes on to compute the same as before in eval mode; in training it then begins at what it does in eval mode.

    Within it the network is in eval mode; run it on batches like those of training.
    """
    sums: dict[str, Tensor] = {}

    def count(name: str, given: Tensor) -> None:
        for frame in given.detach():
            values = frame.double().flatten(1)
            numbers = torch.full_like(values[:, 0], values.shape[1])
            sums[name] = sums.get(name, 0) + torch.stack([numbers, values.sum(1), values.square().sum(1)])

    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    handles = [m.register_forward_pre_hook(lambda _, given, name=name: count(name, given[0])) for name, m in norms.items()]
    training = network.training
    try:
        network.eval()
        yield
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for name, (number, total, squares) in sums.items():
            norm, mean = norms[name], total / number
            variance = (squares / number - mean.square()).clamp(min=0)
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            norm.bias += (mean - norm.running_mean) * factor
            norm.weight.copy_(factor * (variance + norm.eps).sqrt())
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)


@dataclass(frozen=True)
class Agreement:
    """How far a graph computes what its network computes.

    ids: share of the pixels of `images` random images that get the same class. logits: the largest difference of a logit, as a share of
    the largest logit.
    """

    images: int
    ids: float
    logits: float


def agreement(graph: bytes, network: Network, images: int = 4) -> Agreement:
    """Run both on random images of several sizes; a network that sees X gets some, and none on every second image.

    Raises LixError where logits differ by more than LIMIT: that is no rounding.
    """
    backend = load_backend("onnxruntime", graph, BackendOptions(precision="f32"))
    random, same, differences = np.random.default_rng(0), [], []
    for number in range(images):
        height, width = network.stride * (3 + number), network.stride * (5 - number % 3)
        image, others = blotches(random, height, width, 3), {}
        if isinstance(network, Teacher):
            known = blotches(random, height, width, 1)[..., 0] > 127 if number % 2 == 0 else np.zeros((height, width), bool)
            x = np.moveaxis(blotches(random, height, width, network.x_channels) / np.float32(64) - 2, 2, 0) * known
            others = {"x": x[None].astype(np.float32), "known": known[None]}
        mask, logits = backend.run(image[None], ("mask", "logits"), others)
        with torch.inference_mode():
            tensors = [torch.from_numpy(others[name]) for name in backend.inputs[1:]]
            expected = network.coarse_logits(network.normalise(torch.from_numpy(image).permute(2, 0, 1)[None]), *tensors)
            full = F.interpolate(expected, scale_factor=float(network.output_stride), mode="bilinear", align_corners=False)
        same.append((mask[0] == full.argmax(1)[0].numpy()).mean())
        differences.append(np.abs(logits - expected.numpy()).max() / np.abs(expected.numpy()).max())
    found = Agreement(images, float(np.mean(same)), float(np.max(differences)))
    if not found.logits <= LIMIT:
        raise LixError(f"the graph is not the network: logits differ by {found.logits:.1%} of the largest; this is a fault of the export")
    return found


def blotches(random: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """(H, W, channels) uint8: smooth blotches under a little noise, closer to a picture than noise alone is."""
    coarse = random.random((5, 6, channels), np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(height, width, channels)
    return np.clip(255 * smooth + random.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
