"""Joint transforms of a Sample's image, labels, X and camera, on torchvision.transforms.v2.

Labels, X and the camera are tensors of types of their own, for which v2's functionals resize, crop, resized_crop, pad and horizontal_flip
are defined here, so that v2's RandomHorizontalFlip, ScaleJitter, RandomResize, RandomCrop, RandomResizedCrop and Pad work on all of a
sample at once:

- flip: the picture is mirrored, and the x of normals changes its sign;
- resize: labels and X take the nearest pixel (their mean would be neither), and the camera's focal lengths and centre scale;
- crop, pad: the camera's centre moves; what is padded has ignored labels and unknown X, whatever fill is asked for the image.

Encoded values stay as they are: depth and normals do not change with the picture's size, and the encoding of disparity is a share of the
whole image's width, so that in pixels it scales as the picture does. Colour changes are of the image only.

Everything random draws from torch's global generator: whoever seeds it per item gets the same item again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as VF

from lix_core.camera import Camera
from lix_core.data.sample import Sample
from lix_core.errors import DataError
from lix_core.geometry.encodings import ENCODINGS
from lix_core.labels import UNLABELLED

GREY = 127
"""What pads an image."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.5, 0.04
"""Largest changes at strength 1: of factors about 1, and of the hue, in turns."""
LUMA = np.array([0.299, 0.587, 0.114])
YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
"""RGB -> luma and two colour differences (NTSC), in whose plane a hue is an angle."""

HOLES, HOLE_SIDE = 8, 1 / 3
"""Most holes that are torn into X, and their largest side as a share of the picture's."""

Size = Sequence[int]
"""(height, width) [pixels]."""
Parts = dict[str, Tensor]
"""A sample as tensors: image, shown, and where it has them labels, x and known, camera."""


class LabelPlane(tv_tensors.Mask):
    """(H, W) uint8 train ids. v2's own Mask is shifted by up to half a pixel against the image when it is resized; this one is not."""


class KnownPlane(tv_tensors.Mask):
    """(H, W) uint8: 1 where X is known, or where the frame is shown, else 0."""


class XPlanes(tv_tensors.TVTensor):
    """(Cx, H, W) float32: encoded X."""


class NormalPlanes(XPlanes):
    """XPlanes whose first channel is the x of normals."""


class Pinhole(tv_tensors.TVTensor):
    """(2, 4) float64: for columns and rows, focal length, centre and size [pixels], and p's fourth column [pixels * m]."""


# ---- what v2's functionals do to these types


def register(functional: str, kind: type[Tensor], kernel: Callable[..., Tensor]) -> None:
    """Make `kernel`, on plain tensors, v2's functional for a type."""

    @VF.register_kernel(functional, kind)
    def on_kind(inpt: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return tv_tensors.wrap(kernel(inpt.as_subclass(Tensor), *args, **kwargs), like=inpt)


def resized_to(height: int, width: int, size: Size | int | None, max_size: int | None = None) -> tuple[int, int]:
    """Height and width after v2's `resize`. size: both, or that of the shorter side; None: the longer side becomes max_size."""
    if isinstance(size, Sequence) and len(size) == 2:
        return size[0], size[1]
    short, long = sorted((height, width))
    if size is None:
        new_short, new_long = int(max_size * short / long), max_size
    else:
        new_short = size if isinstance(size, int) else size[0]
        new_long = int(new_short * long / short)
        if max_size is not None and new_long > max_size:
            new_short, new_long = int(max_size * new_short / new_long), max_size
    return (new_short, new_long) if height <= width else (new_long, new_short)


def margins(padding: Sequence[int] | int) -> tuple[int, int, int, int]:
    """v2's `padding` as (left, top, right, bottom)."""
    padding = [padding] if isinstance(padding, int) else list(padding)
    return tuple({1: padding * 4, 2: padding * 2, 4: padding}[len(padding)])


def resize_planes(planes: Tensor, size: Size | int | None, max_size: int | None = None, **_: Any) -> Tensor:
    size = resized_to(*planes.shape[-2:], size, max_size)
    return F.interpolate(planes[(None,) * (4 - planes.ndim)], size, mode="nearest-exact").reshape(*planes.shape[:-2], *size)


def pad_planes(fill: float, planes: Tensor, /, padding: Sequence[int] | int, **_: Any) -> Tensor:
    # `_` has v2's fill and mode, which are for images.
    left, top, right, bottom = margins(padding)
    return F.pad(planes, (left, right, top, bottom), value=fill)


def crop_planes(fill: float, planes: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    # Negative margins crop.
    bottom, right = top + height - planes.shape[-2], left + width - planes.shape[-1]
    return F.pad(planes, (-left, right, -top, bottom), value=fill)


def resize_pinhole(pinhole: Tensor, size: Size | int | None, max_size: int | None = None, **_: Any) -> Tensor:
    focal, centre, extent, shift = pinhole.unbind(1)
    height, width = resized_to(int(extent[1]), int(extent[0]), size, max_size)
    new = torch.tensor([width, height], dtype=pinhole.dtype)
    scale = new / extent
    # Areas of pixels scale: the centre of pixel 0 lies half a pixel from the edge, before and after. As Camera.scaled.
    return torch.stack([focal * scale, (centre + 0.5) * scale - 0.5, new, shift * scale], 1)


def crop_pinhole(pinhole: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    moved = pinhole.clone()
    moved[:, 1] -= torch.tensor([left, top])
    moved[:, 2] = torch.tensor([width, height])
    return moved


def pad_pinhole(pinhole: Tensor, padding: Sequence[int] | int, **_: Any) -> Tensor:
    left, top, right, bottom = margins(padding)
    width, height = (int(value) for value in pinhole[:, 2])
    return crop_pinhole(pinhole, -top, -left, height + top + bottom, width + left + right)


def flip_pinhole(pinhole: Tensor) -> Tensor:
    """The camera of the mirrored picture, x still to the right: what was `baseline` to the right is now to the left."""
    focal, centre, width, shift = pinhole[0]
    return torch.stack([torch.stack([focal, width - 1 - centre, width, -shift]), pinhole[1]])


def flip_normals(planes: Tensor) -> Tensor:
    mirrored = planes.flip(-1)
    mirrored[0].neg_()
    return mirrored


def resized_crop(
    crop: Callable[..., Tensor],
    resize: Callable[..., Tensor],
    inpt: Tensor,
    top: int,
    left: int,
    height: int,
    width: int,
    size: Size,
    **_: Any,
) -> Tensor:
    return resize(crop(inpt, top, left, height, width), size)


def undefined(functional: str, kind: type[Tensor], *_: Any, **__: Any) -> Tensor:
    raise DataError(f"{functional} is not defined for {kind.__name__}: take it out of the transforms, or X and camera out of the samples")


def register_all() -> None:
    """Tell torchvision about the types above."""
    for kind, fill in ((LabelPlane, UNLABELLED), (KnownPlane, 0), (XPlanes, 0)):
        crop = partial(crop_planes, fill)
        register("resize", kind, resize_planes)
        register("pad", kind, partial(pad_planes, fill))
        register("crop", kind, crop)
        register("resized_crop", kind, partial(resized_crop, crop, resize_planes))
    register("resize", Pinhole, resize_pinhole)
    register("pad", Pinhole, pad_pinhole)
    register("crop", Pinhole, crop_pinhole)
    register("resized_crop", Pinhole, partial(resized_crop, crop_pinhole, resize_pinhole))
    register("horizontal_flip", XPlanes, lambda planes: planes.flip(-1))
    register("horizontal_flip", NormalPlanes, flip_normals)
    register("horizontal_flip", Pinhole, flip_pinhole)
    # v2 passes types by that it has no kernel for: they would no longer fit the image, without a word.
    for functional in ("affine", "rotate", "perspective", "elastic", "vertical_flip", "center_crop", "five_crop", "ten_crop"):
        for kind in (XPlanes, Pinhole):
            register(functional, kind, partial(undefined, functional, kind))


register_all()


# ---- samples and tensors


def to_parts(sample: Sample) -> Parts:
    """The arrays of a sample as tensors that share their memory."""
    parts: Parts = {"image": tv_tensors.Image(torch.from_numpy(sample.image).permute(2, 0, 1))}
    shown = np.ones(sample.image.shape[:2], bool) if sample.shown is None else sample.shown
    parts["shown"] = KnownPlane(torch.from_numpy(shown.view(np.uint8)))
    if sample.labels is not None:
        parts["labels"] = LabelPlane(torch.from_numpy(sample.labels))
    if sample.x is not None:
        normals = sample.x_kind in ENCODINGS and ENCODINGS[sample.x_kind].quantity == "normals"
        parts["x"] = (NormalPlanes if normals else XPlanes)(torch.from_numpy(sample.x))
        parts["known"] = KnownPlane(torch.from_numpy(sample.known.view(np.uint8)))
    if sample.camera is not None:
        c, p = sample.camera, sample.camera.p
        parts["camera"] = Pinhole(torch.tensor([[c.fx, c.cx, c.width, p[3]], [c.fy, c.cy, c.height, p[7]]], dtype=torch.float64))
    return parts


def to_sample(parts: Parts, name: str, x_kind: str) -> Sample:
    """The sample of `to_parts`."""
    arrays = {key: part.as_subclass(Tensor).numpy() for key, part in parts.items()}
    known = arrays["known"].view(np.bool_) if "known" in arrays else None
    shown = arrays["shown"].view(np.bool_)
    camera = camera_of(arrays["camera"]) if "camera" in arrays else None
    image, labels, x = arrays["image"].transpose(1, 2, 0), arrays.get("labels"), arrays.get("x")
    return Sample(name, image, labels, x, known, x_kind, camera, None if shown.all() else shown)


def camera_of(pinhole: np.ndarray) -> Camera:
    """The camera of a `Pinhole`."""
    (fx, cx, width, tx), (fy, cy, height, ty) = pinhole.tolist()
    return Camera(int(width), int(height), (fx, 0, cx, 0, fy, cy, 0, 0, 1), p=(fx, 0, cx, tx, 0, fy, cy, ty, 0, 0, 1, 0))


class SampleTransform:
    """Transforms of `Parts`, v2's or those below, one after the other, as Sample -> Sample. The sample given is not changed."""

    def __init__(self, *transforms: Callable[[Parts], Parts]):
        self.transforms = transforms

    def __call__(self, sample: Sample, seed: int | None = None) -> Sample:
        """seed: draw from a generator of this seed, and leave the global one as it is; None: draw from the global one."""
        if seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                return self(sample)
        parts = to_parts(sample)
        for transform in self.transforms:
            parts = transform(parts)
        return to_sample(parts, sample.name, sample.x_kind)


# ---- transforms of parts


def uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def whole(below: int) -> int:
    """0 to `below` - 1."""
    return int(torch.randint(below, ()).item())


def happens(probability: float) -> bool:
    return torch.rand(()).item() < probability


class ScaleCrop:
    """Scale by a random factor and take a random window, as ScaleJitter and RandomCrop do; but cut first, so that no more than is shown
    is resized. Where the picture is smaller than the window it is padded, at a random place.

    size: of the window. scale: limits of the factor, uniform. base: the size that the whole image has at factor 1; None: its own.
    """

    def __init__(self, size: Size, scale: tuple[float, float] = (1.0, 1.0), base: Size | None = None):
        if not 0 < scale[0] <= scale[1]:
            raise DataError(f"scale needs limits above 0, the lower one first, got {tuple(scale)}")
        self.size, self.scale, self.base = size, scale, base

    def __call__(self, parts: Parts) -> Parts:
        height, width = parts["image"].shape[-2:]
        factor = uniform(*self.scale)
        (top, rows, new_rows, above, below), (left, columns, new_columns, before, after) = (
            self._axis(length, out, factor * (base / length))
            for length, out, base in zip((height, width), self.size, self.base or (height, width))
        )

        def apply(part: Tensor) -> Tensor:
            part = VF.crop(part, top, left, rows, columns)
            if (rows, columns) != (new_rows, new_columns):
                part = VF.resize(part, [new_rows, new_columns], antialias=True)
            return VF.pad(part, [before, above, after, below], fill=GREY) if any((before, above, after, below)) else part

        return {key: apply(part) for key, part in parts.items()}

    @staticmethod
    def _axis(length: int, out: int, factor: float) -> tuple[int, int, int, int, int]:
        """Start and length of the window, its length after scaling, and what is padded before and after it, to `out` in all."""
        window = min(length, max(1, round(out / factor)))
        scaled = out if window < length else min(out, max(1, round(length * factor)))
        before = whole(out - scaled + 1)
        return whole(length - window + 1), window, scaled, before, out - scaled - before


class Colour:
    """Brightness, contrast, saturation and hue of the image, in one affine map of RGB; grey now and then; blur now and then.

    strength: 1 for the limits BRIGHTNESS to HUE; 0: none of all this. p: how often colours change. grey, blur: how often, at any strength
    above 0.
    """

    def __init__(self, strength: float = 1.0, p: float = 0.8, grey: float = 0.05, blur: float = 0.15):
        self.strength, self.p, self.grey, self.blur = strength, p, grey, blur

    def __call__(self, parts: Parts) -> Parts:
        if self.strength <= 0:
            return parts
        image = parts["image"].as_subclass(Tensor).permute(1, 2, 0).contiguous().numpy()
        change, grey = happens(self.p), happens(self.grey)
        if change or grey:
            limits = (BRIGHTNESS, CONTRAST, SATURATION) if change else (0, 0, 0)
            factors = [max(0.0, 1 + self.strength * uniform(-limit, limit)) for limit in limits]
            factors[2] *= not grey
            turn = self.strength * uniform(-HUE, HUE) if change else 0.0
            image = cv2.transform(image, colour_map(cv2.mean(image)[:3], *factors, turn))
        if happens(self.blur):
            image = cv2.GaussianBlur(image, (5, 5), uniform(0.1, 1.5))
        return {**parts, "image": tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1))}


def colour_map(mean: Sequence[float], brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """(3, 4) affine map of RGB 0..255: hue turned (turns, in the plane of YIQ), colours drawn from their luma, contrast about the luma of
    `mean`, all made brighter. Linear, so nothing is clipped in between, as it is in v2's ColorJitter."""
    angle = 2 * math.pi * hue
    turned = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    luma = np.tile(LUMA, (3, 1))
    colours = saturation * np.eye(3) + (1 - saturation) * luma
    matrix = brightness * contrast * colours @ np.linalg.inv(YIQ) @ turned @ YIQ
    return np.column_stack([matrix, np.full(3, brightness * (1 - contrast) * (LUMA @ mean))])


class XDropout:
    """X that is not there: in a share `frame` of the frames none of it, in a share `holes` of the others it has up to HOLES holes."""

    def __init__(self, frame: float = 0.0, holes: float = 0.0):
        self.frame, self.holes = frame, holes

    def __call__(self, parts: Parts) -> Parts:
        if "x" not in parts:
            return parts
        gone, torn = happens(self.frame), happens(self.holes)
        if not (gone or torn):
            return parts
        height, width = parts["known"].shape
        keep = torch.full((height, width), not gone)
        for _ in range(1 + whole(HOLES) if torn and not gone else 0):
            rows, columns = (1 + whole(max(1, int(HOLE_SIDE * side))) for side in (height, width))
            top, left = whole(height - rows + 1), whole(width - columns + 1)
            keep[top : top + rows, left : left + columns] = False
        return {**parts, **{key: tv_tensors.wrap(parts[key].as_subclass(Tensor) * keep, like=parts[key]) for key in ("x", "known")}}


class Fit:
    """The whole picture at one size, or at its own, padded at the right and bottom to whole multiples of `multiple_of` pixels."""

    def __init__(self, size: Size | None = None, multiple_of: int = 1):
        self.size, self.multiple_of = size, multiple_of

    def __call__(self, parts: Parts) -> Parts:
        old = tuple(parts["image"].shape[-2:])
        size = tuple(self.size) if self.size is not None else old
        down, right = (-side % self.multiple_of for side in size)
        if size != old:
            parts = {key: VF.resize(part, list(size), antialias=True) for key, part in parts.items()}
        return {key: VF.pad(part, [0, 0, right, down], fill=GREY) for key, part in parts.items()} if down or right else parts


def train_transform(
    crop: Size,
    *,
    base: Size | None = None,
    scale: Sequence[float] = (0.5, 2.0),
    flip: float = 0.5,
    colour: float = 1.0,
    x_dropout: float = 0.0,
    x_holes: float = 0.0,
) -> SampleTransform:
    """A random view of a frame, for training.

    crop: (height, width) of the view [pixels]. base: the size that the whole image has at scale 1, the one that frames are scored at; None:
    its own. scale: limits of the random factor. flip: probability of a mirrored view. colour: strength, 0 for none. x_dropout: probability
    that the frame loses X; x_holes: that X, where it is not lost, gets holes.

    Raises:
        DataError: limits that are not above 0 or in the wrong order.
    """
    return SampleTransform(
        # The cut comes first: what comes after it costs by the pixel.
        ScaleCrop(crop, tuple(scale), base),
        v2.RandomHorizontalFlip(flip),
        XDropout(x_dropout, x_holes),
        Colour(colour),
    )


def eval_transform(size: Size | None = None, multiple_of: int = 1) -> SampleTransform:
    """A frame as it is scored: at (height, width) `size` [pixels], or its own, padded to multiples of the network's stride."""
    return SampleTransform(Fit(size, multiple_of))
