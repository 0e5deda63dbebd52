"""The exported graph computes what the network computes, from camera pixels and X, at any size, on every backend."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("timm", reason="the extra `train` is not installed")
onnx = pytest.importorskip("onnx", reason="the extra `train` is not installed")

import hypothesis  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from timm.layers import Conv2dSame  # noqa: E402
from torch import nn  # noqa: E402

import bundles  # noqa: E402
from lix_core import export  # noqa: E402
from lix_core.errors import LixError  # noqa: E402
from lix_core.export import (  # noqa: E402
    OUTPUTS,
    StaticSame,
    agreement,
    export_network,
    read_network,
    renormalising,
    store_as_float16,
    with_static_padding,
)
from lix_core.labels import STREET  # noqa: E402
from lix_core.models import networks  # noqa: E402
from lix_core.models.decoders import DECODERS  # noqa: E402
from lix_core.models.encoders import build_encoder  # noqa: E402
from lix_core.models.fusion import FUSIONS  # noqa: E402
from lix_core.models.networks import Student, Teacher  # noqa: E402
from lix_core.runtime.backends import BackendOptions, available_backends, load_backend  # noqa: E402
from lix_core.runtime.bundle import Bundle, InputSpec, Manifest, SizePolicy, XSpec  # noqa: E402
from lix_core.runtime.segmenter import Segmenter  # noqa: E402
from small_networks import Stages, use_small_parts  # noqa: E402

BACKENDS = [name for name, lacking in available_backends().items() if not lacking]
F32 = BackendOptions(threads=1, precision="f32")


@pytest.fixture(scope="module")
def small_parts():
    with pytest.MonkeyPatch.context() as patch:
        use_small_parts(patch)
        yield


def rounded_to_half(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()
    return network


def with_statistics(network: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """Fresh batch norms have variance 1, and their logits vanish; these have the statistics of what flows through them."""
    network.train()
    with torch.no_grad():
        for _ in range(5):
            network(*inputs)
    return network.eval()


def planes(image: np.ndarray, network: nn.Module) -> torch.Tensor:
    """The images (B, H, W, 3) as the network sees them, computed apart from both `normalise` and the graph."""
    return torch.from_numpy(((image.astype(np.float64) - network.mean) / network.std).astype(np.float32)).permute(0, 3, 1, 2)


def random_inputs(height: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    image = bundles.random_image(height, width, seed)
    x, known = bundles.random_x(height, width, seed)
    return {"image": image[None], "x": np.where(known, x, np.float32(0))[None], "known": known[None]}


def expected_logits(network: nn.Module, given: dict[str, np.ndarray]) -> np.ndarray:
    others = [torch.from_numpy(given[name]) for name in ("x", "known")] if isinstance(network, Teacher) else []
    with torch.no_grad():
        return network.coarse_logits(planes(given["image"], network), *others).numpy()


def check_mask_and_confidence(mask: np.ndarray, confidence: np.ndarray, logits: np.ndarray, stride: int) -> None:
    full = torch.nn.functional.interpolate(torch.from_numpy(logits), scale_factor=float(stride), mode="bilinear")[0].numpy()
    order = np.sort(full, 0)
    clear = order[-1] - order[-2] > 1e-4
    np.testing.assert_array_equal(mask[0][clear], full.argmax(0)[clear])
    assert clear.mean() > 0.95
    np.testing.assert_allclose(confidence, torch.from_numpy(logits).softmax(1).amax(1).numpy(), atol=1e-5)


# Convolutions whose padding depends on the size of what they see, as TensorFlow's, which the encoder that ships has.


@torch.inference_mode()
@hypothesis.settings(max_examples=25)
@hypothesis.given(
    kernel=st.sampled_from([1, 2, 3, 5, 7]),
    stride=st.sampled_from([1, 2, 4]),
    dilation=st.sampled_from([1, 2]),
    size=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    bias=st.booleans(),
    depthwise=st.booleans(),
)
def test_static_padding_equals_tensorflows_same_padding_on_multiples_of_the_stride(kernel, stride, dilation, size, bias, depthwise):
    conv = Conv2dSame(4, 8, kernel, stride=stride, dilation=dilation, groups=4 if depthwise else 1, bias=bias)
    image = torch.randn(1, 4, 32 * size[0], 32 * size[1])
    assert torch.allclose(StaticSame(conv)(image), conv(image), atol=1e-5)


@torch.inference_mode()
def test_a_network_with_static_padding_computes_the_same():
    torch.manual_seed(0)
    network = build_encoder("tf_efficientnet_lite0", "none").eval()
    image = torch.randn(1, 3, 64, 96)
    expected = network(image)
    dynamic = sum(isinstance(m, Conv2dSame) for m in network.modules())
    with_static_padding(network)
    assert dynamic > 0 and not any(isinstance(m, Conv2dSame) for m in network.modules())
    assert sum(isinstance(m, StaticSame) for m in network.modules()) == dynamic
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(network(image), expected, strict=True))


# The student that ships.


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    student = Student(len(STREET), weights="none")
    return rounded_to_half(with_statistics(student, planes(bundles.random_image(64, 96)[None], student)))


@pytest.fixture(scope="module")
def bundle(student: Student) -> Bundle:
    spec = InputSpec(mean=student.mean, std=student.std)
    return Bundle(Manifest("export-test", STREET, outputs=OUTPUTS, input=spec), export_network(student, student.mean, student.std))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("height", "width"), [(64, 96), (32, 160)])
def test_the_graph_computes_the_networks_logits(student: Student, bundle: Bundle, backend: str, height: int, width: int) -> None:
    given = random_inputs(height, width, 7)
    expected = expected_logits(student, given)
    mask, confidence, logits = load_backend(backend, bundle.graph, F32).run(given["image"], OUTPUTS)
    # Folding the batch norms changes the weights by more than float32 rounding, and these are stored as float16.
    assert np.abs(logits - expected).max() < 0.02 * np.abs(expected).max()
    check_mask_and_confidence(mask, confidence, logits, student.output_stride)


def test_the_segmenter_runs_an_export_at_the_images_own_size(bundle: Bundle) -> None:
    result = Segmenter(bundle).segment(bundles.random_image(75, 50))
    assert result.mask.shape == result.confidence.shape == (75, 50)
    assert result.mask.max() < len(STREET)


def test_weights_are_stored_in_half_the_size_and_nothing_tells_of_the_exporting_machine(student: Student, bundle: Bundle) -> None:
    parameters = sum(p.numel() for p in student.parameters())
    assert len(bundle.graph) < 2.4 * parameters
    assert b"/" + __file__.split("/")[1].encode() + b"/" not in bundle.graph


def test_exporting_leaves_the_network_as_it_was(student: Student, bundle: Bundle) -> None:
    assert any(type(m).__name__ == "Conv2dSame" for m in student.modules())


def test_the_graph_of_the_student_has_no_operation_beyond_the_network_and_its_ends(bundle: Bundle) -> None:
    found = Counter(node.op_type for node in onnx.load_from_string(bundle.graph).graph.node)
    del found["Cast"]  # one for each weight that is stored as float16, folded away on loading
    ends = {"Transpose": 1, "Mul": 1, "ArgMax": 1, "ReduceMax": 1, "Sub": 1, "Exp": 1, "ReduceSum": 1, "Reciprocal": 1}
    network = {"Conv": 66, "Clip": 45, "Add": 15, "Resize": 5, "ReduceMean": 1}
    # The shift of the colours is one more Add; two more each time show that the ids' and the mean's shapes are constants.
    assert found == {**ends, **network, "Reshape": 1, "Gather": 1}


# Every fusion and every decoder.

CASES = [("sum", "thin"), ("gated", "thin"), ("attention", "thin"), ("late", "upernet")]
"""The student above has the decoder fast_fpn."""


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def exported(request: pytest.FixtureRequest, small_parts: None) -> tuple[Teacher, bytes]:
    """A small teacher, and its graph with float32 weights: it has to agree to rounding."""
    fusion, decoder = request.param
    torch.manual_seed(1)
    given = random_inputs(64, 80)
    network = Teacher(4, 2, "small", fusion=fusion, decoder=decoder, weights="none")
    with_statistics(network, planes(given["image"], network), torch.from_numpy(given["x"]), torch.from_numpy(given["known"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "store_as_float16", lambda model: model)
        return network, export_network(network, network.mean, network.std)


def test_every_fusion_and_every_decoder_is_tried() -> None:
    assert {fusion for fusion, _ in CASES} == set(FUSIONS) and {decoder for _, decoder in CASES} | {"fast_fpn"} >= set(DECODERS)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_teacher_is_its_graph_on_every_backend_at_any_size(exported: tuple[Teacher, bytes], backend: str) -> None:
    network, graph = exported
    runner = load_backend(backend, graph, F32)
    assert runner.inputs == ("image", "x", "known")
    for size in ((64, 80), (8, 8), (16, 104)):
        given = random_inputs(*size, seed=3)
        nothing = {**given, "x": np.zeros_like(given["x"]), "known": np.zeros_like(given["known"])}
        for inputs in (given, nothing):
            expected = expected_logits(network, inputs)
            mask, confidence, logits = runner.run(inputs["image"], OUTPUTS, {name: inputs[name] for name in runner.inputs[1:]})
            np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max()))
            check_mask_and_confidence(mask, confidence, logits, network.output_stride)


def test_a_teacher_in_a_bundle_heeds_x_and_runs_without_it(exported: tuple[Teacher, bytes]) -> None:
    network, graph = exported
    spec = InputSpec(mean=network.mean, std=network.std)
    labels = bundles.LabelSet("four", bundles.COLOURS.labels[:4])
    size = SizePolicy(multiple_of=network.stride)
    runner = Segmenter(Bundle(Manifest("teacher", labels, "", spec, size, OUTPUTS, x=XSpec("two", 2)), graph))
    given = random_inputs(64, 80, seed=5)
    image, x, known = (given[name][0] for name in ("image", "x", "known"))
    for others in ({"x": x, "known": known}, {}):
        blank = {"x": np.zeros_like(x), "known": np.zeros_like(known)}
        expected = expected_logits(network, {"image": image[None], **{k: v[None] for k, v in (others or blank).items()}})
        confidence = torch.from_numpy(expected).softmax(1).amax(1)[0].numpy()
        np.testing.assert_allclose(runner.segment(image, **others).coarse_confidence, confidence, atol=1e-4)
    assert runner.segment(image[:50, :70], x=x[:, :50, :70], known=known[:50, :70]).mask.shape == (50, 70)


def test_a_graph_that_is_not_the_network_is_refused(exported: tuple[Teacher, bytes]) -> None:
    network, graph = exported
    found = agreement(graph, network)
    assert found.logits < 1e-4 and found.ids > 0.999
    other = copy.deepcopy(network)
    for parameter in other.decoder.head.parameters():
        parameter.data.mul_(1.2)
    with pytest.raises(LixError, match="the graph is not the network: logits differ by .*% of the largest"):
        agreement(graph, other)


# And back.


def twin(network: networks.Network) -> networks.Network:
    """Another of the same kind, whose weights are other ones."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return other


def test_weights_are_read_back_out_of_the_students_graph(student: Student, bundle: Bundle) -> None:
    found = twin(student)
    read_network(bundle.graph, found)
    given = random_inputs(64, 96, 3)
    _, _, logits = load_backend("onnxruntime", bundle.graph, F32).run(given["image"], OUTPUTS)
    read = expected_logits(found, given)
    np.testing.assert_allclose(read, logits, atol=1e-4 * np.abs(logits).max())
    np.testing.assert_allclose(read, expected_logits(student, given), atol=0.02 * np.abs(logits).max())  # as float16 was stored


def test_weights_are_read_back_out_of_every_teachers_graph(exported: tuple[Teacher, bytes]) -> None:
    network, graph = exported
    found = twin(network)
    read_network(graph, found)
    given = random_inputs(16, 104, 3)
    for inputs in (given, {**given, "x": np.zeros_like(given["x"]), "known": np.zeros_like(given["known"])}):
        expected = expected_logits(network, inputs)
        np.testing.assert_allclose(expected_logits(found, inputs), expected, atol=1e-4 * max(1, np.abs(expected).max()))


class Normed(Stages):
    """Stages with batch normalisations that the export cannot fold: before a convolution, and of what is used without it too."""

    def __init__(self, in_channels: int):
        super().__init__(in_channels)
        self.before, self.after = nn.BatchNorm2d(8), nn.BatchNorm2d(16)
        self.biased, self.folded = nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        first = self.convs[0](x).relu()
        second = self.folded(self.biased(self.convs[1](self.before(first)).relu()))
        third = self.convs[2](second)
        return [first, second, third + self.after(third)]


@pytest.fixture(scope="module")
def normed() -> tuple[Student, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        use_small_parts(patch)
        patch.setattr(networks, "build_encoder", lambda name, weights, in_channels=3: Normed(in_channels))
        patch.setattr(export, "store_as_float16", lambda model: model)
        torch.manual_seed(2)
        network = Student(4, decoder="thin")
        with torch.no_grad():
            for norm in (network.encoder.before, network.encoder.after, network.encoder.folded):
                norm.weight.uniform_(0.5, 2)
                norm.bias.normal_()
        with_statistics(network, planes(random_inputs(64, 96)["image"], network))
        return network, export_network(network, network.mean, network.std)


def test_batch_norms_that_the_graph_has_kept_are_read_back_whole(normed: tuple[Student, bytes]) -> None:
    network, graph = normed
    found = twin(network)
    read_network(graph, found)
    given = random_inputs(32, 48, 3)
    np.testing.assert_allclose(expected_logits(found, given), expected_logits(network, given), atol=1e-4)
    for norm in ("before", "after"):
        ours, theirs = (getattr(each.encoder, norm) for each in (found, network))
        for key in ("weight", "bias", "running_mean", "running_var"):
            np.testing.assert_allclose(getattr(ours, key).detach(), getattr(theirs, key).detach(), rtol=1e-5, err_msg=f"{norm}.{key}")


def test_a_graph_that_has_a_weight_in_another_form_is_refused(normed: tuple[Student, bytes]) -> None:
    network, graph = normed
    model = onnx.load_from_string(graph)
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "network.decoder.head.weight")
    head.name = "val_1"
    with pytest.raises(LixError, match="cannot be read out of this graph: it has decoder.head.weight in another form"):
        read_network(model.SerializeToString(), twin(network))
    head.CopyFrom(numpy_helper.from_array(np.zeros((4, 3, 1, 1), np.float32), "network.decoder.head.weight"))
    with pytest.raises(LixError, match="it has decoder.head.weight in another form"):
        read_network(model.SerializeToString(), twin(network))


def test_batch_norms_find_what_they_normalise_by_and_the_network_stays_the_same(normed: tuple[Student, bytes]) -> None:
    network, graph = normed
    read_network(graph, found := twin(network))
    images = [planes(random_inputs(64, 96, seed)["image"], network) for seed in (4, 5)]
    with torch.no_grad():
        before = [found.coarse_logits(image) for image in images]
        inner = torch.cat([found.encoder.convs[0](image).relu() for image in images])
        with renormalising(found):
            assert not found.training
            for image in images:
                found.coarse_logits(image)
        for image, logits in zip(images, before):
            assert torch.allclose(found.eval().coarse_logits(image), logits, atol=1e-4)
        norm = found.encoder.before
        assert torch.allclose(norm.running_mean, inner.mean((0, 2, 3)), atol=1e-4)
        assert torch.allclose(norm.running_var, inner.var((0, 2, 3), correction=0), rtol=1e-4)
        found.decoder.dropout.p = 0.0
        in_training = found.train().coarse_logits(torch.cat(images))
        assert torch.allclose(in_training, torch.cat(before), atol=1e-3 * in_training.abs().max())
        read_network(graph, found)
        found.decoder.dropout.p = 0.0
        assert not torch.allclose(found.train().coarse_logits(torch.cat(images)), torch.cat(before), atol=0.1 * in_training.abs().max())


class Attention(Stages):
    """Stages whose last has timm's attention, over as many tokens as there are cells."""

    def __init__(self, in_channels: int):
        from timm.layers import Attention as TimmAttention

        super().__init__(in_channels)
        self.attention = TimmAttention(16, 2)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        *stages, last = super().forward(x)
        return [*stages, self.attention(last.flatten(2).mT).mT.reshape(last.shape)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_of_timm_is_exported_for_every_backend(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    use_small_parts(monkeypatch)
    monkeypatch.setattr(networks, "build_encoder", lambda name, weights, in_channels=3: Attention(in_channels))
    torch.manual_seed(0)
    network = Student(3, decoder="thin").eval()
    graph = export_network(network, network.mean, network.std)
    assert network.encoder.attention.fused_attn  # as it was
    image = np.random.default_rng(0).integers(0, 256, (1, 24, 40, 3), np.uint8)
    (logits,) = load_backend(backend, graph, F32).run(image, ("logits",))
    with torch.inference_mode():
        expected = network.coarse_logits(network.normalise(torch.from_numpy(image).permute(0, 3, 1, 2)))
    np.testing.assert_allclose(logits, expected.numpy(), atol=0.01 * float(expected.abs().max()))


def test_what_cannot_be_exported_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dependent(Stages):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return super().forward(x if float(x.mean()) > 0 else -x)

    use_small_parts(monkeypatch)
    monkeypatch.setattr(networks, "build_encoder", lambda name, weights, in_channels=3: Dependent(in_channels))
    network = Student(3, decoder="thin").eval()
    with pytest.raises(LixError, match=r"PyTorch makes no ONNX graph of this network \(.*\); take another encoder$"):
        export_network(network, network.mean, network.std)


# Weights.


def test_a_weight_that_float16_cannot_hold_is_refused() -> None:
    weight = numpy_helper.from_array(np.full((8, 8), 1e6, np.float32), "w")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, (8, 8))
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, (8, 8))
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "big", [value], [result], [weight])
    with pytest.raises(LixError, match="w reaches 1e.06"):
        store_as_float16(helper.make_model(graph))
