"""Raw pixel buffers, as camera drivers send them, to arrays: by views where the layout allows it.

Encoding names are those of sensor_msgs/image_encodings; nothing here needs ROS.
"""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np

from lix_core.errors import ImageError

VIEWS = {
    "rgb8": ("rgb", 3),
    "bgr8": ("bgr", 3),
    "rgba8": ("rgba", 4),
    "bgra8": ("bgra", 4),
    "mono8": ("gray", 1),
    "8UC1": ("gray", 1),
    "8UC3": ("bgr", 3),
    "8UC4": ("bgra", 4),
}
"""8-bit encodings that are read in place -> (channel order, channels). OpenCV's type names mean OpenCV's order."""
WIDE = {
    "mono16": ("gray", 1),
    "rgb16": ("rgb", 3),
    "bgr16": ("bgr", 3),
    "rgba16": ("rgba", 4),
    "bgra16": ("bgra", 4),
}
"""16-bit encodings; their upper byte is what is shown."""
FLOATS = {"32FC1": ("gray", 1), "32FC3": ("bgr", 3), "32FC4": ("bgra", 4)}
"""Float encodings, of range 0..1."""
DEPTHS = {"32FC1": (np.float32, 1.0), "16UC1": (np.uint16, 1e-3), "mono16": (np.uint16, 1e-3)}
"""Encodings of depth images -> (type of a pixel, metres per unit)."""
BAYER = {
    "bayer_rggb8": cv2.COLOR_BayerBG2RGB,
    "bayer_bggr8": cv2.COLOR_BayerRG2RGB,
    "bayer_gbrg8": cv2.COLOR_BayerGR2RGB,
    "bayer_grbg8": cv2.COLOR_BayerGB2RGB,
}
"""Named by the second and third pixel of the second row, as OpenCV 4.5.4 (Humble) knows no other names."""
YUV422 = {
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUYV,
    "yuyv": cv2.COLOR_YUV2RGB_YUYV,
}
TO_RGB = {
    "rgb": None,
    "bgr": cv2.COLOR_BGR2RGB,
    "rgba": cv2.COLOR_RGBA2RGB,
    "bgra": cv2.COLOR_BGRA2RGB,
    "gray": cv2.COLOR_GRAY2RGB,
}
"""Channel orders an image may come in -> the OpenCV conversion to RGB."""
CHANNELS = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "gray": 1}
ENCODINGS = (*VIEWS, *WIDE, *FLOATS, *BAYER, *YUV422)


def read_pixels(data: Any, height: int, width: int, step: int, encoding: str, is_bigendian: bool = False) -> tuple[np.ndarray, str]:
    """Interpret a raw image buffer.

    Args:
        data: any buffer of at least `step * (height - 1)` + one row of bytes.
        height, width: [pixels]. step: bytes from one row to the next.
        encoding: one of ENCODINGS.

    Returns:
        (H, W, channels) or (H, W) array, and its channel order for `Segmenter.segment`. For the encodings of VIEWS
        a read-only view of `data`, padded rows included; for others a converted copy.

    Raises:
        ImageError: zero-sized, truncated, a step that cannot hold a row, or an unknown encoding.
    """
    order, channels, dtype = _layout(encoding, is_bigendian)
    pixels = _view(data, height, width, step, encoding, channels, dtype)
    if encoding in WIDE:
        pixels = (pixels >> 8).astype(np.uint8)
    elif encoding in FLOATS:
        pixels = pixels.astype(np.float32)
    elif encoding in BAYER:
        if min(height, width) < 3:
            raise ImageError(f"{encoding} needs 3 pixels each way, got {width}x{height}")
        return cv2.cvtColor(np.ascontiguousarray(pixels), BAYER[encoding]), "rgb"
    elif encoding in YUV422:
        if width % 2:
            raise ImageError(f"{encoding} needs an even width, got {width}")
        return cv2.cvtColor(np.ascontiguousarray(pixels), YUV422[encoding]), "rgb"
    return pixels, order


def read_depth(data: Any, height: int, width: int, step: int, encoding: str, is_bigendian: bool = False) -> np.ndarray:
    """Interpret the buffer of a depth image (REP 118).

    Args:
        as those of `read_pixels`; encoding is 32FC1 [m], 16UC1 or mono16 [mm].

    Returns:
        (H, W) float32 depth [m]; NaN where the image has 0, less, NaN or infinity.

    Raises:
        ImageError: zero-sized, truncated, a step that cannot hold a row, or another encoding.
    """
    if encoding not in DEPTHS:
        raise ImageError(f"encoding {encoding!r} is not a depth image; lix reads {', '.join(DEPTHS)} (REP 118)")
    kind, scale = DEPTHS[encoding]
    dtype = np.dtype(kind).newbyteorder(">" if is_bigendian else "<")
    depth = _view(data, height, width, step, encoding, 1, dtype).astype(np.float32) * np.float32(scale)
    depth[~((depth > 0) & (depth < np.inf))] = np.nan
    return depth


DEPTH_HEADER = struct.Struct("<iff")
"""Before the PNG of a compressedDepth message: its kind of coding, and A and B of the quantisation."""


def read_compressed_depth(data: Any, format: str) -> np.ndarray:
    """Decode a depth image as image_transport's `compressedDepth` sends it.

    16UC1 comes as a PNG of millimetres; 32FC1 as a PNG of the inverse depth q = A / depth + B, 0 = unknown, A and B in a header.

    Args:
        data: of a sensor_msgs/CompressedImage. format: of the same, as "32FC1; compressedDepth png".

    Returns:
        (H, W) float32 depth [m], NaN where unknown.

    Raises:
        ImageError: another format (RVL is not read), or data that is none.
    """
    encoding, _, coding = (part.strip() for part in format.partition(";"))
    if encoding not in DEPTHS or coding not in ("compressedDepth", "compressedDepth png", ""):
        raise ImageError(f"compressed depth of format {format!r}; lix reads '16UC1; compressedDepth png' and '32FC1; compressedDepth png'")
    raw = bytes(data)
    if len(raw) <= DEPTH_HEADER.size:
        raise ImageError(f"a compressed depth image of {len(raw)} bytes is empty")
    _, a, b = DEPTH_HEADER.unpack_from(raw)
    codes = decoded(memoryview(raw)[DEPTH_HEADER.size :], cv2.IMREAD_UNCHANGED)
    if codes is None or codes.ndim != 2 or codes.dtype != np.uint16:
        raise ImageError(f"compressed depth ({len(raw)} bytes) holds no PNG of 16 bits; is it truncated?")
    if encoding != "32FC1":
        depth = codes.astype(np.float32) * np.float32(DEPTHS[encoding][1])
    else:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            depth = np.where(codes > 0, np.float32(a) / (codes.astype(np.float32) - np.float32(b)), np.float32(np.nan))
    depth[~((depth > 0) & (depth < np.inf))] = np.nan
    return depth


def _view(data: Any, height: int, width: int, step: int, encoding: str, channels: int, dtype: np.dtype) -> np.ndarray:
    """A read-only (H, W, channels) view of a buffer, or (H, W) of one channel. Raises ImageError where it does not fit."""
    if height <= 0 or width <= 0:
        raise ImageError(f"the image is empty: width {width}, height {height}")
    row_bytes = width * channels * dtype.itemsize
    if step < row_bytes:
        raise ImageError(f"step is {step} bytes, but a row of {width} pixels of {encoding} takes {row_bytes}")
    buffer = np.frombuffer(data, np.uint8)
    needed = step * (height - 1) + row_bytes
    if buffer.size < needed:
        raise ImageError(f"data has {buffer.size} bytes, but {width}x{height} {encoding} at step {step} takes {needed}; is it truncated?")
    strides = (step, channels * dtype.itemsize, dtype.itemsize)
    pixels = np.ndarray((height, width, channels), dtype, buffer, strides=strides)
    pixels.flags.writeable = False
    return pixels[..., 0] if channels == 1 else pixels


def _layout(encoding: str, is_bigendian: bool) -> tuple[str, int, np.dtype]:
    if encoding in VIEWS:
        return *VIEWS[encoding], np.dtype(np.uint8)
    if encoding in WIDE:
        return *WIDE[encoding], np.dtype(np.uint16).newbyteorder(">" if is_bigendian else "<")
    if encoding in FLOATS:
        return *FLOATS[encoding], np.dtype(np.float32).newbyteorder(">" if is_bigendian else "<")
    if encoding in BAYER:
        return "gray", 1, np.dtype(np.uint8)
    if encoding in YUV422:
        return "yuv", 2, np.dtype(np.uint8)
    raise ImageError(f"encoding {encoding!r} is not a colour image that lix reads; it reads {', '.join(ENCODINGS)}")


def read_compressed(data: Any, name: str = "image") -> tuple[np.ndarray, str]:
    """Decode a JPEG, PNG or other encoded image to (H, W, 3) uint8 and its order.

    An EXIF orientation is not applied: labels and calibration belong to the pixels as they are stored.

    Raises:
        ImageError: OpenCV cannot decode it.
    """
    image = decoded(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise ImageError(f"{name} ({memoryview(data).nbytes} bytes) cannot be decoded; is it truncated, or no image?")
    return image, "bgr"


def decoded(content: Any, flags: int) -> np.ndarray | None:
    """The pixels of an image file in memory (any buffer of bytes), as cv2.imdecode has them with `flags`; None where it is no image."""
    buffer = np.frombuffer(content, np.uint8)
    try:
        return cv2.imdecode(buffer, flags) if buffer.size else None
    except cv2.error:  # a header that claims more pixels than OpenCV allows
        return None


def as_uint8(image: np.ndarray, order: str) -> np.ndarray:
    """Check an image, and bring floats to bytes; an image that is uint8 already is returned as it is.

    Args:
        image: (H, W, 3) or (H, W, 4), or (H, W) for `gray`; uint8, or float of range 0..1.
        order: rgb, bgr, rgba, bgra or gray.

    Raises:
        ImageError: no array, empty, of another shape or dtype, or with NaN or values out of range.
    """
    if order not in TO_RGB:
        raise ImageError(f"channel order must be one of {', '.join(TO_RGB)}, got {order!r}")
    if not isinstance(image, np.ndarray):
        raise ImageError(f"the image must be an array, got {type(image).__name__}; cv2.imread gives None for a file it cannot read")
    if image.ndim == 3 and image.shape[2] == 1 and order == "gray":
        image = image[..., 0]
    if image.ndim != (2 if order == "gray" else 3) or (image.ndim == 3 and image.shape[2] != CHANNELS[order]):
        wanted = "(H, W)" if order == "gray" else f"(H, W, {CHANNELS[order]})"
        raise ImageError(f"a {order} image must be {wanted}, got {image.shape}")
    if 0 in image.shape:
        raise ImageError(f"the image is empty: {image.shape}")
    if image.dtype == np.uint8:
        return image
    if image.dtype not in (np.float32, np.float64):
        raise ImageError(f"the image must be uint8, or float of range 0..1; got {image.dtype}")
    if not np.isfinite(image).all():
        raise ImageError(f"the image has {int((~np.isfinite(image)).sum())} values that are NaN or infinite")
    if image.min() < 0 or image.max() > 1:
        raise ImageError(f"a float image must be of range 0..1, got {image.min():.3g}..{image.max():.3g}")
    return np.rint(image * 255).astype(np.uint8)


def to_rgb(image: np.ndarray, order: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image as `as_uint8` takes it; the same array where it is that already."""
    pixels = as_uint8(image, order)
    return pixels if TO_RGB[order] is None else cv2.cvtColor(pixels, TO_RGB[order])


def scaled(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (H, W, ...) uint8 at another size (height, width), as a robot has time for.

    Views for training and scoring shrink with an antialiased bilinear filter: a triangle as wide as a pixel of the result, of variance
    (1 / factor)^2 / 6 in pixels of the image. Here, below half the size, an interpolation, whose triangle has the variance 1/6, follows a
    blur that has the rest, which comes close to it. Down to half the size it is plain interpolation: the blur would slow a node down.
    """
    if image.shape[:2] == size:
        return image
    shrinks = [side / wanted for side, wanted in zip(image.shape[:2], size)]
    if max(shrinks) > 2:
        rows, columns = map(blur_taps, shrinks)
        image = cv2.sepFilter2D(image, -1, columns, rows, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def blur_taps(shrinks: float) -> np.ndarray:
    """(n,) float32 weights, n odd, of the blur before an axis becomes so many times shorter."""
    variance = (shrinks**2 - 1) / 6
    if variance <= 0:
        return np.ones(1, np.float32)
    if variance <= 0.5:
        return np.array([variance / 2, 1 - variance, variance / 2], np.float32)
    return cv2.getGaussianKernel(2 * int(np.ceil(3 * variance**0.5)) + 1, variance**0.5, cv2.CV_32F).ravel()
