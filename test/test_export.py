"""The exported graph computes what the network computes, from camera pixels, at any size."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")
pytest.importorskip("timm", reason="the extra `train` is not installed")
onnx = pytest.importorskip("onnx", reason="the extra `train` is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import bundles  # noqa: E402
from lix_core.errors import LixError  # noqa: E402
from lix_core.export import OUTPUTS, export_student, store_as_float16  # noqa: E402
from lix_core.labels import STREET  # noqa: E402
from lix_core.models.networks import Student  # noqa: E402
from lix_core.runtime.backends import BackendOptions, load_backend  # noqa: E402
from lix_core.runtime.bundle import Bundle, InputSpec, Manifest  # noqa: E402
from lix_core.runtime.segmenter import Segmenter  # noqa: E402
from lix_core.training.street import MEAN, STD, normalise  # noqa: E402


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    student = Student(len(STREET), weights="none").eval()
    # Fresh batch norms have variance 1, and their logits vanish; these have the statistics of what flows through them.
    student.train()
    with torch.no_grad():
        for seed in range(3):
            student(normalise(torch.from_numpy(bundles.random_image(64, 96, seed)).permute(2, 0, 1)[None]))
    for parameter in student.parameters():
        parameter.data = parameter.data.half().float()  # so that storing as float16 loses nothing
    return student.eval()


@pytest.fixture(scope="module")
def bundle(student: Student) -> Bundle:
    manifest = Manifest("export-test", STREET, outputs=OUTPUTS, input=InputSpec(mean=MEAN, std=STD))
    return Bundle(manifest, export_student(student, MEAN, STD))


@pytest.mark.parametrize(("height", "width"), [(64, 96), (32, 160)])
def test_the_graph_computes_the_networks_logits(student: Student, bundle: Bundle, height: int, width: int) -> None:
    image = bundles.random_image(height, width, 7)
    with torch.no_grad():
        expected = student.coarse_logits(normalise(torch.from_numpy(image).permute(2, 0, 1)[None])).numpy()
    mask, confidence, logits = load_backend("onnxruntime", bundle.graph, BackendOptions()).run(image[None], OUTPUTS)
    # Folding the batch norms changes the weights by more than float32 rounding, and these are stored as float16.
    assert np.abs(logits - expected).max() < 0.02 * np.abs(expected).max()
    full = torch.nn.functional.interpolate(torch.from_numpy(logits), scale_factor=2.0, mode="bilinear")[0].numpy()
    order = np.sort(full, 0)
    clear = order[-1] - order[-2] > 1e-4
    np.testing.assert_array_equal(mask[0][clear], full.argmax(0)[clear])
    assert clear.mean() > 0.95
    softmax = torch.from_numpy(logits).softmax(1).amax(1).numpy()
    np.testing.assert_allclose(confidence, softmax, atol=1e-5)


def test_the_segmenter_runs_an_export_at_the_images_own_size(bundle: Bundle) -> None:
    result = Segmenter(bundle).segment(bundles.random_image(75, 50))
    assert result.mask.shape == result.confidence.shape == (75, 50)
    assert result.mask.max() < len(STREET)


def test_weights_are_stored_in_half_the_size_and_nothing_tells_of_the_exporting_machine(student: Student, bundle: Bundle) -> None:
    parameters = sum(p.numel() for p in student.parameters())
    assert len(bundle.graph) < 2.4 * parameters
    assert b"/" + __file__.split("/")[1].encode() + b"/" not in bundle.graph


def test_exporting_leaves_the_network_as_it_was(student: Student) -> None:
    assert any(type(m).__name__ == "Conv2dSame" for m in student.modules())


def test_a_weight_that_float16_cannot_hold_is_refused() -> None:
    weight = numpy_helper.from_array(np.full((8, 8), 1e6, np.float32), "w")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, (8, 8))
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, (8, 8))
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "big", [value], [result], [weight])
    with pytest.raises(LixError, match="w reaches 1e.06"):
        store_as_float16(helper.make_model(graph))
