"""Raw and compressed pixel buffers of every encoding."""

from __future__ import annotations

import re
import runpy
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lix_core import pixels
from lix_core.errors import ImageError
from lix_core.files import natural_key
from lix_core.pixels import BAYER, ENCODINGS, FLOATS, VIEWS, WIDE, YUV422, read_compressed, read_compressed_depth, read_pixels, scaled
from trees import png_of_size, with_orientation

PIXEL_BYTES = {
    **{name: channels for name, (_, channels) in VIEWS.items()},
    **{name: 2 * channels for name, (_, channels) in WIDE.items()},
    **{name: 4 * channels for name, (_, channels) in FLOATS.items()},
    **dict.fromkeys(BAYER, 1),
    **dict.fromkeys(YUV422, 2),
}
COLOUR = (200, 120, 40)
"""R, G, B."""


def random_rows(height: int, width: int, encoding: str, seed: int = 0) -> np.ndarray:
    """(H, bytes of a row) random buffer; floats of range 0..1."""
    random = np.random.default_rng(seed)
    if encoding in FLOATS:
        return random.random((height, width * PIXEL_BYTES[encoding] // 4), np.float32).view(np.uint8)
    return random.integers(0, 256, (height, width * PIXEL_BYTES[encoding]), np.uint8)


def padded(rows: np.ndarray, padding: int, last: bool) -> bytes:
    """The rows with `padding` junk bytes after each; after the last one only where `last`."""
    junk = np.full((len(rows), padding), 0xA5, np.uint8)
    data = np.hstack([rows, junk]).tobytes()
    return data if last or not padding else data[:-padding]


def read(rows: np.ndarray, encoding: str, **options: bool) -> np.ndarray:
    """`read_pixels` of unpadded rows."""
    width = rows.shape[1] // PIXEL_BYTES[encoding]
    return read_pixels(rows.tobytes(), rows.shape[0], width, rows.shape[1], encoding, **options)[0]


def bayer_mosaic(encoding: str, height: int, width: int) -> np.ndarray:
    """What a sensor with that pattern sees of a wall of COLOUR."""
    pattern = encoding.removeprefix("bayer_")[:4]
    tile = np.array([COLOUR["rgb".index(c)] for c in pattern], np.uint8).reshape(2, 2)
    return np.tile(tile, (height // 2, width // 2))


def yuv_of(red: float, green: float, blue: float) -> tuple[int, int, int]:
    """ITU-R BT.601, studio range."""
    y = 16 + 65.481 * red + 128.553 * green + 24.966 * blue
    u = 128 - 37.797 * red - 74.203 * green + 112 * blue
    v = 128 + 112 * red - 93.786 * green - 18.214 * blue
    return round(y), round(u), round(v)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(height=st.integers(1, 9), width=st.integers(1, 8), padding=st.integers(1, 9), last=st.booleans())
def test_padded_rows_give_the_same_picture_as_unpadded_ones(encoding, height, width, padding, last):
    width *= 2
    if encoding in BAYER:
        height, width = height + 2, width + 2
    rows = random_rows(height, width, encoding, seed=height)
    data = padded(rows, padding, last)
    image, order = read_pixels(data, height, width, rows.shape[1] + padding, encoding)
    expected, expected_order = read_pixels(rows.tobytes(), height, width, rows.shape[1], encoding)
    assert order == expected_order and image.dtype == expected.dtype and np.array_equal(image, expected)
    assert image.shape[:2] == (height, width)


@pytest.mark.parametrize(("height", "width"), [(2, 4), (4, 2)])
def test_a_bayer_image_too_small_to_interpolate_is_refused(height, width):
    with pytest.raises(ImageError, match="needs 3 pixels each way"):
        read_pixels(bytes(height * width), height, width, width, "bayer_rggb8")


@pytest.mark.parametrize(("encoding", "order", "channels"), [(name, *layout) for name, layout in VIEWS.items()])
def test_8_bit_encodings_are_read_in_place(encoding, order, channels):
    data = bytearray(random_rows(2, 3, encoding).tobytes())
    image, found = read_pixels(data, 2, 3, 3 * channels, encoding)
    shape = (2, 3, channels) if channels > 1 else (2, 3)
    assert found == order
    assert np.array_equal(image, np.frombuffer(bytes(data), np.uint8).reshape(shape))
    data[0] ^= 0xFF
    assert image.flat[0] == data[0] and not image.flags.writeable


def test_names_of_opencv_types_mean_opencvs_channel_order():
    orders = {name: read_pixels(bytes(64), 1, 2, 32, name)[1] for name in ("8UC1", "8UC3", "8UC4", "32FC1", "32FC3", "32FC4")}
    assert orders == {"8UC1": "gray", "8UC3": "bgr", "8UC4": "bgra", "32FC1": "gray", "32FC3": "bgr", "32FC4": "bgra"}


@pytest.mark.parametrize("encoding", WIDE)
def test_16_bit_pixels_show_their_upper_byte_in_either_byte_order(encoding):
    low, high = random_rows(3, 4, encoding, 1)[:, ::2], random_rows(3, 4, encoding, 2)[:, ::2]
    little, big = (np.dstack(pair).reshape(3, -1) for pair in ((low, high), (high, low)))
    for rows, is_bigendian in ((little, False), (big, True)):
        image = read(rows, encoding, is_bigendian=is_bigendian)
        assert image.dtype == np.uint8 and np.array_equal(image.reshape(3, -1), high)


@pytest.mark.parametrize("encoding", FLOATS)
def test_float_pixels_keep_their_values_in_either_byte_order(encoding):
    rows = random_rows(3, 4, encoding)
    values = rows.view(np.float32)
    for stored, is_bigendian in ((values.astype("<f4"), False), (values.astype(">f4"), True)):
        image = read(stored.view(np.uint8), encoding, is_bigendian=is_bigendian)
        assert image.dtype == np.float32 and image.dtype.isnative and np.array_equal(image.reshape(3, -1), values)


@pytest.mark.parametrize("encoding", BAYER)
def test_a_bayer_mosaic_of_one_colour_gives_that_colour(encoding):
    image, order = read_pixels(bayer_mosaic(encoding, 8, 10).tobytes(), 8, 10, 10, encoding)
    assert order == "rgb" and image.shape == (8, 10, 3)
    assert (image == COLOUR).all()


def test_bayer_images_are_read_by_an_opencv_of_4_5_4_which_has_not_todays_names_of_the_patterns(monkeypatch):
    for name in [n for n in vars(cv2) if re.match("COLOR_Bayer[RGB]{4}2", n)]:
        monkeypatch.delattr(cv2, name)
    old = runpy.run_path(pixels.__file__)
    for encoding in BAYER:
        image, _ = old["read_pixels"](bayer_mosaic(encoding, 8, 10).tobytes(), 8, 10, 10, encoding)
        assert (image == COLOUR).all()


@pytest.mark.parametrize(("encoding", "places"), [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")])
@pytest.mark.parametrize("colour", [(0, 0, 0), (1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.8, 0.5, 0.2)])
def test_yuv_follows_bt_601(encoding, places, colour):
    values = dict(zip("yuv", yuv_of(*colour)))
    rows = np.tile(np.array([values[c] for c in places], np.uint8), (3, 2))
    image, order = read_pixels(rows.tobytes(), 3, 4, 8, encoding)
    assert order == "rgb" and image.shape == (3, 4, 3)
    assert np.abs(image - 255 * np.array(colour)).max() <= 3


@pytest.mark.parametrize("encoding", YUV422)
def test_yuv_of_odd_width_is_refused(encoding):
    with pytest.raises(ImageError, match=f"{encoding} needs an even width, got 3"):
        read_pixels(bytes(6), 1, 3, 6, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_short_buffer_is_refused_with_what_it_has_and_needs(encoding):
    height, width = 3, 4
    step = width * PIXEL_BYTES[encoding] + 5
    needed = 2 * step + step - 5
    read_pixels(bytes(needed), height, width, step, encoding)
    for size in (0, 1, needed - 1):
        with pytest.raises(ImageError, match=f"data has {size} bytes, but 4x3 {encoding} at step {step} takes {needed}; is it truncated"):
            read_pixels(bytes(size), height, width, step, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_step_that_cannot_hold_a_row_is_refused(encoding):
    row = 4 * PIXEL_BYTES[encoding]
    for step in (0, row - 1):
        with pytest.raises(ImageError, match=f"step is {step} bytes, but a row of 4 pixels of {encoding} takes {row}"):
            read_pixels(bytes(1000), 2, 4, step, encoding)


@pytest.mark.parametrize(("height", "width"), [(0, 4), (4, 0), (0, 0)])
def test_an_image_without_pixels_is_refused_with_its_size(height, width):
    with pytest.raises(ImageError, match=f"the image is empty: width {width}, height {height}"):
        read_pixels(b"", height, width, 12, "rgb8")


@pytest.mark.parametrize("encoding", ["", "RGB8", "64FC1", "mono", "nv21", "jpeg"])
def test_an_unknown_encoding_is_refused_with_the_known_ones(encoding):
    with pytest.raises(ImageError, match=f"encoding '{encoding}' is not a colour image that lix reads; it reads rgb8, bgr8"):
        read_pixels(bytes(1000), 2, 2, 500, encoding)


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_any_kind_of_buffer_is_read(buffer):
    assert read_pixels(buffer(bytes(range(12))), 2, 2, 6, "rgb8")[0].ravel().tolist() == list(range(12))


# Compressed images.


def encoded(image: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_lossless_files_come_back_as_bgr(suffix):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    decoded, order = read_compressed(encoded(image, suffix))
    assert order == "bgr" and np.array_equal(decoded, image)


def test_a_jpeg_keeps_its_colours():
    decoded, order = read_compressed(encoded(np.full((16, 16, 3), COLOUR[::-1], np.uint8), ".jpg"))
    assert order == "bgr" and np.abs(decoded.astype(int) - COLOUR[::-1]).max() <= 3


def test_a_gray_and_a_16_bit_png_become_8_bit_colour():
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for image in (gray, gray.astype(np.uint16) * 257):
        decoded, _ = read_compressed(encoded(image, ".png"))
        assert decoded.dtype == np.uint8 and np.array_equal(decoded, np.dstack([gray] * 3))


def test_an_orientation_in_a_jpeg_turns_nothing():
    """Calibration, depth and labels are of the pixels as they are stored."""
    jpeg = encoded(np.full((8, 24, 3), COLOUR[::-1], np.uint8), ".jpg")
    turned = with_orientation(jpeg, 6)
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (24, 8, 3), "it is an orientation"
    np.testing.assert_array_equal(read_compressed(turned)[0], read_compressed(jpeg)[0])


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", b"\xff\xd8\xff\xe0", png_of_size(4, 0), png_of_size(200_000, 200_000)],
    ids=["empty", "text", "JPEG start", "PNG without rows", "PNG of 40 gigapixels"],
)
def test_what_is_no_image_is_refused_with_its_name_and_size(data):
    with pytest.raises(ImageError, match=f"frame7.jpg \\({len(data)} bytes\\) cannot be decoded; is it truncated, or no image"):
        read_compressed(data, "frame7.jpg")


@given(st.sampled_from([".png", ".jpg"]), st.data())
def test_a_damaged_image_is_decoded_or_refused(suffix, data):
    good = encoded(np.zeros((8, 8, 3), np.uint8), suffix)
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, len(good)))
    try:
        image, _ = read_compressed(good[:start] + data.draw(st.binary(max_size=8)) + good[end:])
    except ImageError:
        return
    assert image.ndim == 3 and image.dtype == np.uint8


# Depth as image_transport compresses it.


def packed_depth(codes: np.ndarray, a: float = 0.0, b: float = 0.0) -> bytes:
    """What compressedDepth sends: a header of 12 bytes, then a PNG of 16 bits."""
    return struct.pack("<iff", 0, a, b) + encoded(codes.astype(np.uint16), ".png")


@pytest.mark.parametrize("coding", ["; compressedDepth", "; compressedDepth png", ""])
def test_compressed_millimetres_are_metres_and_zero_is_unknown(coding):
    codes = np.array([[0, 1, 1500], [65535, 2, 7]])
    depth = read_compressed_depth(packed_depth(codes), f"16UC1{coding}")
    assert depth.dtype == np.float32 and depth.shape == (2, 3) and np.isnan(depth[0, 0])
    np.testing.assert_allclose(depth.ravel()[1:], codes.ravel()[1:] / 1000, rtol=1e-6)


@given(st.lists(st.floats(0.5, 9.5), min_size=1, max_size=20))
def test_compressed_inverse_depth_comes_back_as_near_as_its_steps_allow(metres):
    # The plugin's own parameters: quantisation 100, depth up to 10 m, which has code 1.
    a = 100.0 * 101.0
    b = 1 - a / 10.0
    depth = np.array([metres])
    found = read_compressed_depth(packed_depth(np.floor(a / depth + b), a, b), "32FC1; compressedDepth png")
    step = depth**2 / a
    assert (np.abs(found - depth) <= 1.2 * step + 1e-5).all()


def test_compressed_inverse_depth_of_zero_or_beyond_infinity_is_unknown():
    depth = read_compressed_depth(packed_depth(np.array([[0, 4, 5, 6, 15]]), 10.0, 5.0), "32FC1; compressedDepth")
    np.testing.assert_allclose(depth, [[np.nan, np.nan, np.nan, 10.0, 1.0]])


@pytest.mark.parametrize(
    ("data", "coding", "words"),
    [
        (packed_depth(np.ones((2, 2))), "16UC1; compressedDepth rvl", "lix reads '16UC1; compressedDepth png'"),
        (packed_depth(np.ones((2, 2))), "jpeg", "format 'jpeg'; lix reads"),
        (b"", "16UC1; compressedDepth", "0 bytes is empty"),
        (packed_depth(np.ones((2, 2)))[:40], "16UC1; compressedDepth", "is it truncated"),
        (bytes(12) + encoded(np.ones((2, 2), np.uint8), ".png"), "16UC1; compressedDepth", "holds no PNG of 16 bits"),
        (bytes(12) + png_of_size(200_000, 200_000), "16UC1; compressedDepth", "holds no PNG of 16 bits"),
    ],
    ids=["RVL", "JPEG", "empty", "truncated", "8 bits", "40 gigapixels"],
)
def test_what_is_no_compressed_depth_is_refused(data, coding, words):
    with pytest.raises(ImageError, match=words):
        read_compressed_depth(data, coding)


# Names of files.


def test_numbers_in_names_count_as_numbers():
    names = ["frame10.png", "frame2.png", "Frame1.png", "a.png", "frame2b.png", "10.png", "9.png"]
    assert sorted(names, key=natural_key) == ["9.png", "10.png", "a.png", "Frame1.png", "frame2.png", "frame2b.png", "frame10.png"]


@given(st.lists(st.text() | st.text("0123456789²٣ab."), max_size=6))
def test_any_names_can_be_sorted(names):
    assert sorted(sorted(names, key=natural_key)) == sorted(names)


# Other sizes.

CLIP = Path(__file__).resolve().parents[1] / "assets" / "kitti_clip"


@pytest.mark.parametrize("factor", [0.95, 0.84, 0.687, 0.55, 0.45, 0.3125, 0.2, 1.5])
def test_a_robot_shrinks_images_far_as_views_for_training_are_shrunk(factor):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    image = cv2.imread(str(sorted(CLIP.glob("*.jpg"))[0]))
    size = tuple(round(side * factor) for side in image.shape[:2])
    wanted = functional.resize(torch.from_numpy(image).permute(2, 0, 1), size, antialias=True).permute(1, 2, 0).numpy().astype(float)
    ours, plain = scaled(image, size), cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    off, before = (np.sqrt(np.mean((found - wanted) ** 2)) for found in (ours, plain))
    assert ours.dtype == np.uint8 and ours.shape == (*size, 3)
    assert off < 1 < before if factor < 0.5 else (ours == plain).all()


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(0, 255),
    st.sampled_from([(), (3,), (4,)]),
)
def test_an_even_image_stays_even_at_any_size(shape, size, value, channels):
    found = scaled(np.full((*shape, *channels), value, np.uint8), size)
    assert found.shape == (*size, *channels) and (np.abs(found.astype(int) - value) <= 1).all()


def test_an_image_of_the_size_that_is_asked_for_is_itself():
    image = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert scaled(image, (4, 6)) is image
    wide = scaled(np.tile(np.array([0, 200], np.uint8), (4, 30)), (4, 15))  # only columns are averaged: stripes become grey
    assert (np.abs(wide[:, 1:-1].astype(int) - 100) < 12).all() and (wide == wide[:1]).all()
