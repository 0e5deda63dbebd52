"""Masks that people make: formats out and in, and what becomes of those that do not fit."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from typer.testing import CliRunner

from bundles import COLOURS, camera_bundle, nearest_colour
from extracted import patchwork, picture, write_extraction
from lix_core.bags.formats import FORMATS, distinct_colours, ids_of_colours, open_masks, palette_of, palette_png
from lix_core.bags.masks import Finder, export_masks, import_masks, mapping_by_name, ready_masks, without_exif
from lix_core.bags.regions import compressed, decompressed, polygon_region, region_of, run_lengths
from lix_core.bags.teacher import image_of
from lix_core.cli.label import label
from lix_core.data.bag import BagDataset
from lix_core.errors import DataError, LabelError, LixError, SourceError
from lix_core.files import locked, read_mask
from lix_core.labels import STREET, Label, LabelSet
from lix_core.runtime.bundle import XSpec
from trees import png_of_size, with_orientation

FIRST, SECOND = 1_700_000_000_000_000_000, 1_700_000_000_100_000_000
REGIONS = arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))
LENGTHS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20)
TWINS = LabelSet(
    "twins", (Label("hole", (0, 0, 0)), Label("wall", (70, 70, 70)), Label("house", (70, 70, 70)), Label("gate", (70, 70, 69)))
)


@pytest.fixture
def extraction(tmp_path):
    """Two bags; the second frame has the same stamp in both."""
    frames = {stamp: {"image": picture(stamp % 97)} for stamp in (FIRST, SECOND)}
    return write_extraction(tmp_path / "ext", {"drive": frames, "night": {SECOND: {"image": picture(3)}}})


def masks_of(extraction, classes: int) -> dict[str, np.ndarray]:
    return {frame.name: patchwork(i, classes) for i, frame in enumerate(extraction.frames)}


def stored(extraction) -> dict[str, np.ndarray]:
    folder = extraction.root / "masks"
    return {p.relative_to(folder).with_suffix("").as_posix(): read_mask(p) for p in folder.rglob("*.png")}


def png(mask: np.ndarray) -> bytes:
    return cv2.imencode(".png", mask if mask.ndim == 2 else mask[..., ::-1])[1].tobytes()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Run lengths and polygons, against implementations of one pixel, one character, at a time.


def naive_lengths(region: np.ndarray) -> list[int]:
    lengths, value = [0], False
    for pixel in (bool(region[row, column]) for column in range(region.shape[1]) for row in range(region.shape[0])):
        if pixel != value:
            lengths.append(0)
            value = pixel
        lengths[-1] += 1
    return lengths


def naive_text(lengths: list[int]) -> str:
    """As rleToString of cocoapi's maskApi.c does it."""
    text = ""
    for i, length in enumerate(lengths):
        x, more = length - (lengths[i - 2] if i > 2 else 0), True
        while more:
            low = x & 31
            x >>= 5
            more = x != -1 if low & 16 else x != 0
            text += chr(low + 32 * more + 48)
    return text


def naive_inside(polygon: list[float], x: float, y: float) -> bool:
    corners = list(zip(polygon[::2], polygon[1::2]))
    inside = False
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1]):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
            inside = not inside
    return inside


@given(REGIONS)
def test_run_lengths_are_those_counted_pixel_by_pixel_and_give_the_region_back(region):
    assert run_lengths(region).tolist() == naive_lengths(region)
    assert np.array_equal(region_of(run_lengths(region).tolist(), region.shape), region)


@given(LENGTHS)
def test_compressed_run_lengths_are_those_of_cocoapi_and_can_be_read_again(lengths):
    assert compressed(np.array(lengths)) == naive_text(lengths)
    assert decompressed(compressed(np.array(lengths))).tolist() == lengths


def test_compressed_run_lengths_have_these_known_texts():
    # 5 3 2, then 4 - 3; 31 takes two characters, as its highest bit of five would be a sign; 1 - 9 is -8, 0b11000.
    assert compressed(np.array([5, 3, 2, 4])) == "5321"
    assert compressed(np.array([31])) == "o0"
    assert compressed(np.array([0, 9, 0, 1])) == "090H"


def test_run_lengths_are_those_of_pycocotools():
    coco = pytest.importorskip("pycocotools.mask")
    region = np.random.default_rng(0).random((40, 50)) < 0.3
    assert coco.encode(np.asfortranarray(region.view(np.uint8)))["counts"].decode() == compressed(run_lengths(region))


@pytest.mark.parametrize("lengths", [[], [5], [3, -1, 4], [1, 2, 4], ["x"], [2**70], [[6]], None])
def test_run_lengths_that_do_not_fill_the_image_are_told(lengths):
    with pytest.raises(DataError):
        region_of(lengths, (2, 3))


@pytest.mark.parametrize("text", ["", "o", "5 3", "\x7f", "é", "o" * 14 + "0"])
def test_broken_texts_of_run_lengths_are_told(text):
    with pytest.raises(DataError):
        decompressed(text)


@given(st.lists(st.floats(-4, 14, width=16), min_size=6, max_size=16).filter(lambda p: len(p) % 2 == 0))
def test_a_polygon_has_the_pixels_whose_centres_are_inside(polygon):
    def inside(shift: float) -> np.ndarray:
        return np.array([[naive_inside(polygon, column + 0.5 + shift, row + 0.5) for column in range(11)] for row in range(9)])

    # On an edge the two may round to different sides.
    certain = inside(-1e-6) == inside(1e-6)
    assert np.array_equal(polygon_region(polygon, (9, 11))[certain], inside(0.0)[certain])


def test_a_rectangle_has_the_pixels_that_its_edges_enclose():
    region = polygon_region([2, 3, 6, 3, 6, 8, 2, 8], (10, 10))
    expected = np.zeros((10, 10), bool)
    expected[3:8, 2:6] = True
    assert np.array_equal(region, expected)


@pytest.mark.parametrize(
    "polygon", [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, float("nan")], [1e300, 2, 3, 4, 5, 6], "abc", [[1, 2], [3]]]
)
def test_what_is_no_polygon_is_told(polygon):
    with pytest.raises(DataError):
        polygon_region(polygon, (5, 5))


# Colours.


def test_a_palette_png_shows_colours_and_holds_ids():
    mask = patchwork(1, len(STREET))
    content = palette_png(mask, palette_of(distinct_colours(STREET)))
    shown = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(shown, STREET.palette[mask])
    start = content.index(b"IDAT")
    (size,) = struct.unpack(">I", content[start - 4 : start])
    rows = np.frombuffer(zlib.decompress(content[start + 4 : start + 4 + size]), np.uint8).reshape(64, 97)
    assert np.array_equal(rows[:, 1:], mask) and not rows[:, 0].any()


def test_classes_of_one_colour_get_neighbouring_ones():
    assert distinct_colours(TWINS).tolist() == [[0, 0, 0], [70, 70, 70], [71, 71, 71], [70, 70, 69]]
    assert distinct_colours(TWINS, [(0, 0, 0)]).tolist()[0] == [1, 1, 1]


def test_too_many_classes_of_one_colour_cannot_be_told_apart():
    # Black can only be made lighter, and white only darker: 256 greys.
    taken = [(v, v, v) for v in range(1, 256)]
    with pytest.raises(LabelError, match="too many classes"):
        distinct_colours(LabelSet("dark", (Label("a", (0, 0, 0)), Label("b", (0, 0, 0)))), taken)


def test_colours_that_no_class_has_are_unlabelled_and_counted():
    pixels = np.zeros((10, 10, 3), np.uint8)
    pixels[:5] = STREET.labels[8].color
    pixels[9, :2], pixels[9, 2] = (1, 2, 3), (200, 0, 9)
    ids, complaint = ids_of_colours(pixels, STREET.palette[: len(STREET)])
    assert (ids[:5] == 8).all() and (ids[5:] == 255).all()
    assert complaint == "3 % of the pixels have 2 colours of no class, most of them (1, 2, 3); left unlabelled"


# Which frame a mask is of.


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        (f"{FIRST}.png", f"drive/{FIRST}"),
        (f"anywhere/{FIRST}_mask.png", f"drive/{FIRST}"),
        (f"a/night/{SECOND}.png", f"night/{SECOND}"),
        (f"drive/night/{SECOND}.png", f"night/{SECOND}"),
        (f"drive\\{SECOND}.png", f"drive/{SECOND}"),
        (f"drive/7_{SECOND}.jpg", f"drive/{SECOND}"),
    ],
)
def test_a_mask_is_found_its_frame_by_the_stamp_in_its_name(extraction, name, frame):
    assert Finder(extraction.frames).find(name).name == frame


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("car.png", "has no stamp"),
        (f"{FIRST + 12_500_000}.png", f"the nearest is {FIRST}, 12.5 ms away"),
        (f"{SECOND}.png", "bags drive, night all have a frame of this stamp"),
        (f"night/{FIRST}.png", "bag night has no frame of this stamp; bag drive has"),
    ],
)
def test_a_mask_without_a_frame_is_told_which_is_nearest(extraction, name, reason):
    with pytest.raises(DataError, match=reason):
        Finder(extraction.frames).find(name)


def test_while_one_process_imports_another_one_does_not(extraction, tmp_path):
    """Each would write the label set that its own ids mean."""
    masks = masks_of(extraction, len(STREET))
    export_masks(extraction, tmp_path / "out", "png", STREET, lambda frame, image: masks[frame.name])
    (extraction.root / "masks").mkdir()
    with locked(extraction.root / "masks"), pytest.raises(SourceError, match="another process imports masks into .*masks: wait for"):
        import_masks(extraction, tmp_path / "out")
    with pytest.raises(SourceError):
        import_masks(extraction, tmp_path / "none")
    assert not (extraction.root / "masks").exists(), "what does not come to anything leaves nothing"


# Round trips.


@pytest.mark.parametrize("labels", [STREET, TWINS, LabelSet("two", (Label("background", (9, 9, 9)), Label("pothole", (0, 0, 0))))])
@pytest.mark.parametrize("form", FORMATS)
def test_what_is_exported_comes_back_the_same(extraction, tmp_path, form, labels):
    masks = masks_of(extraction, len(labels))
    if form == "cvat" and labels.name == "two":
        # For CVAT the background is what is unlabelled.
        masks = {name: np.where(mask == 255, np.uint8(0), mask) for name, mask in masks.items()}
    export_masks(extraction, tmp_path / "out", form, labels, lambda frame, image: masks[frame.name])
    report = import_masks(extraction, tmp_path / "out", labels)
    found = stored(extraction)
    assert found.keys() == masks.keys() and all(np.array_equal(found[name], masks[name]) for name in masks)
    assert report.imported == list(masks) and not report.left_out and not report.notes
    assert LabelSet.load(extraction.root / "masks" / "labels.json") == labels
    counts = sum(np.bincount(np.minimum(mask, len(labels)).ravel(), minlength=len(labels) + 1) for mask in masks.values())
    assert report.pixels.tolist() == counts.tolist()
    for frame in extraction.frames:
        assert (tmp_path / "out" / "images" / frame.bag / frame.image.name).read_bytes() == frame.image.read_bytes()


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_does_not_end_leaves_an_empty_folder(extraction, tmp_path, form):
    """So that the same export can be made again."""
    seen = []

    def mask_of(frame, image):
        seen.append(frame)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return np.zeros(image.shape[:2], np.uint8)

    with pytest.raises(KeyboardInterrupt):
        export_masks(extraction, tmp_path / "out", form, STREET, mask_of)
    assert not any((tmp_path / "out").iterdir())
    assert export_masks(extraction, tmp_path / "out", form, STREET, mask_of) == extraction.frames


@pytest.mark.parametrize("archived", [False, True])
def test_images_of_an_export_are_not_taken_for_masks(extraction, tmp_path, archived):
    masks = masks_of(extraction, len(STREET))
    export_masks(extraction, tmp_path / "out", "png", STREET, lambda frame, image: masks[frame.name])
    # An image with a pixel of a class's colour, in a format that masks have.
    image = np.zeros((*next(iter(masks.values())).shape, 3), np.uint8)
    image[0, 0] = STREET.labels[3].color[::-1]
    pictures = sorted(path for path in (tmp_path / "out" / "images").rglob("*") if path.is_file())
    for path in pictures:
        path.unlink()
        cv2.imwrite(str(path.with_suffix(".png")), image)
    given = tmp_path / "out"
    if archived:
        given = Path(shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "out"))
    report = import_masks(extraction, given, form="png")
    assert len(report.imported) == len(masks) and not report.left_out
    assert all(np.array_equal(found, masks[name]) for name, found in stored(extraction).items())


def test_a_cvat_export_is_an_archive_as_cvat_writes_it(extraction, tmp_path):
    masks = masks_of(extraction, len(STREET))
    labelled = f"drive/{FIRST}"
    masks[labelled][:2] = 255
    export_masks(extraction, tmp_path / "out", "cvat", STREET, lambda frame, image: masks[labelled] if frame.name == labelled else None)
    with zipfile.ZipFile(tmp_path / "out" / "annotations.zip") as archive:
        assert sorted(archive.namelist()) == [
            "ImageSets/Segmentation/default.txt",
            f"SegmentationClass/drive/{FIRST}.png",
            f"SegmentationObject/drive/{FIRST}.png",
            "labelmap.txt",
        ]
        lines = archive.read("labelmap.txt").decode().splitlines()
        assert lines[:4] == ["# label:color (RGB):parts:actions", "background:0,0,0::", "sky:70,130,180::", "building:70,70,70::"]
        assert archive.read("ImageSets/Segmentation/default.txt").decode().split() == [frame.name for frame in extraction.frames]
        files = [archive.read(f"Segmentation{part}/drive/{FIRST}.png") for part in ("Class", "Object")]
    classes, instances = (cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for file in files)
    assert np.array_equal(classes, STREET.palette[masks[labelled]])
    # Each class is an instance in a colour of Pascal VOC, sky the first and car the ninth, and what is unlabelled is none.
    for index, colour in ((0, (128, 0, 0)), (1, (0, 128, 0)), (2, (128, 128, 0)), (8, (192, 0, 0)), (255, (0, 0, 0))):
        assert (masks[labelled] == index).any() and (instances[masks[labelled] == index] == colour).all(), index
    constructor = json.loads((tmp_path / "out" / "cvat_labels.json").read_text())
    assert constructor[8] == {"name": "car", "color": "#00008e", "attributes": []}


def test_a_coco_export_has_one_annotation_for_each_class_of_a_frame(extraction, tmp_path):
    mask = np.full((64, 96), 255, np.uint8)
    mask[10:14, 20:25] = 8
    mask[10, 20] = 255  # a corner is cut off
    export_masks(extraction, tmp_path / "out", "coco", STREET, lambda frame, image: mask, count=1)
    data = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert data["images"] == [{"id": 1, "file_name": f"drive/{FIRST}.png", "height": 64, "width": 96}]
    (found,) = data["annotations"]
    assert found | {"segmentation": 0} == {
        **{"id": 1, "image_id": 1, "category_id": 9, "segmentation": 0, "area": 19, "bbox": [20, 10, 5, 4], "iscrowd": 1}
    }
    assert found["segmentation"]["size"] == [64, 96]
    assert data["categories"][8] == {"id": 9, "name": "car", "supercategory": ""}


@pytest.mark.parametrize(("orientation", "at"), [(3, 2), (6, 20)])
def test_an_exported_jpeg_is_shown_by_other_programs_as_it_is_stored(extraction, tmp_path, orientation, at):
    frame = extraction.frames[0]
    jpeg = cv2.imencode(".jpg", picture(1))[1].tobytes()
    exif = with_orientation(b"", orientation)  # before or behind the segment of JFIF, with padding
    extraction.frames = [replace(frame, image=put(frame.image.with_suffix(".jpg"), jpeg[:at] + b"\xff" + exif + jpeg[at:]))]
    export_masks(extraction, tmp_path / "out", "png", STREET)
    exported = (tmp_path / "out" / "images" / "drive" / f"{FIRST}.jpg").read_bytes()
    assert exported == jpeg
    assert np.array_equal(cv2.imdecode(np.frombuffer(exported, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], image_of(extraction.frames[0]))


@given(st.sampled_from([b"", b"\xff\xd8"]), st.binary(max_size=40))
def test_what_is_no_whole_jpeg_has_no_exif_data_to_lose(start, rest):
    content = start + rest.replace(b"Exif", b"exif")
    assert without_exif(content).replace(b"\xff", b"") == content.replace(b"\xff", b"")


def test_only_so_many_frames_are_exported_from_the_first_to_the_last(extraction, tmp_path):
    frames = export_masks(extraction, tmp_path / "out", "png", STREET, count=2)
    assert [frame.name for frame in frames] == [f"drive/{FIRST}", f"night/{SECOND}"]
    out = tmp_path / "out"
    assert len(list((out / "images").rglob("*.png"))) == 2 and not list((out / "masks").rglob("*.png"))


@pytest.mark.parametrize("form", FORMATS)
def test_a_folder_with_anything_in_it_is_not_exported_into(extraction, tmp_path, form):
    export_masks(extraction, tmp_path / "out", "png", STREET, lambda frame, image: patchwork(0, 5))
    edited = put(tmp_path / "out" / "masks" / "drive" / f"{FIRST}.png", "by hand")
    for out in (tmp_path / "out", extraction.root):
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        with pytest.raises(SourceError, match=f"{out} is not empty, .* export into a new folder"):
            export_masks(extraction, out, form, STREET, lambda frame, image: patchwork(1, 5), count=1)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert edited.read_text() == "by hand"


# What people's tools write.


def test_masks_of_plain_ids_need_a_label_set_and_others_are_unlabelled(extraction, tmp_path):
    mask = patchwork(4, len(STREET))
    mask[0, :3] = 77
    put(tmp_path / "in" / f"{FIRST}.png", png(mask))
    with pytest.raises(LabelError, match="its ids have no names; give the label set"):
        import_masks(extraction, tmp_path / "in")
    report = import_masks(extraction, tmp_path / "in", STREET)
    assert np.array_equal(stored(extraction)[f"drive/{FIRST}"], np.where(mask == 77, 255, mask))
    assert "ids that no class has (77); ids go to 10" in report.notes[0]


def test_masks_of_label_sets_that_differ_are_not_read_by_the_first(extraction, tmp_path):
    for name, labels in (("a", STREET), ("b", COLOURS)):
        put(tmp_path / "in" / name / "labels.json", labels.to_json())
        put(tmp_path / "in" / name / f"{FIRST}.png", png(patchwork(1, 3)))
    with pytest.raises(LabelError, match="label sets that differ: a/labels.json, b/labels.json; import each with its masks alone"):
        import_masks(extraction, tmp_path / "in")
    put(tmp_path / "in" / "b" / "labels.json", LabelSet("another name", STREET.labels).to_json())
    assert import_masks(extraction, tmp_path / "in").labels == STREET


def test_what_can_be_used_of_a_folder_is_used_and_the_rest_is_told(extraction, tmp_path):
    folder, mask = tmp_path / "in", patchwork(4, len(STREET))
    put(folder / "labels.json", STREET.to_json())
    put(folder / f"{FIRST}.png", png(mask))
    put(folder / f"{FIRST}_again.png", png(mask))
    put(folder / f"{FIRST + 5}.png", png(mask))
    put(folder / "drive" / f"{SECOND}.png", png(mask[:32]))
    put(folder / "night" / f"{SECOND}.png", png_of_size(200_000, 200_000))
    report = import_masks(extraction, folder)
    assert report.imported == [f"drive/{FIRST}"] and list(stored(extraction)) == report.imported
    reasons = {line.partition(": ")[0]: line.partition(": ")[2].split(";")[0] for line in report.left_out}
    assert reasons == {
        f"{FIRST + 5}.png": "no frame has this stamp",
        f"{FIRST}_again.png": f"{FIRST}.png is of the same frame, drive/{FIRST}",
        f"drive/{SECOND}.png": f"it is 96x32, the image of drive/{SECOND} is 96x64",
        f"night/{SECOND}.png": f"night/{SECOND}.png cannot be decoded",
    }


def test_masks_of_which_none_can_be_used_are_an_error_and_leave_nothing(extraction, tmp_path):
    put(tmp_path / "in" / f"{FIRST}.png", png(np.full((64, 96), 255, np.uint8)))
    with pytest.raises(DataError, match="none of 1 masks .* nothing in it is labelled"):
        import_masks(extraction, tmp_path / "in", STREET)
    assert not (extraction.root / "masks").exists()


def test_an_archive_of_cvat_in_a_folder_with_a_strange_class_is_read_by_its_own_colours(extraction, tmp_path):
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:20], pixels[20:30], pixels[30:40] = (1, 1, 1), (2, 2, 2), (3, 3, 3)
    with zipfile.ZipFile(tmp_path / "task.zip", "w") as archive:
        archive.writestr(
            "task/labelmap.txt", "# label:color:parts:actions\nbackground:0,0,0::\nCar:1,1,1::\npedestran:2,2,2::\nsky:3,3,3::\n"
        )
        archive.writestr("task/ImageSets/Segmentation/default.txt", f"drive/{FIRST}\ndrive/gone\n")
        archive.writestr(f"task/SegmentationClass/drive/{FIRST}.png", png(pixels))
        archive.writestr(f"task/SegmentationObject/drive/{FIRST}.png", png(pixels))
    report = import_masks(extraction, tmp_path / "task.zip", STREET)
    found = stored(extraction)[f"drive/{FIRST}"]
    assert (found[:20] == 8).all() and (found[20:30] == 255).all() and (found[30:40] == 0).all() and (found[40:] == 255).all()
    assert report.notes == [
        "task/drive/gone: named in default.txt, but without a mask",
        "class 'pedestran' is not in label set 'street'; did you mean 'pedestrian'? (left unlabelled)",
    ]


def cvat_export(folder: Path, colours: dict[str, int], masks: dict[str, np.ndarray]) -> None:
    """Classes by a shade of grey."""
    put(folder / "labelmap.txt", "background:0,0,0::\n" + "".join(f"{name}:{v},{v},{v}::\n" for name, v in colours.items()))
    for name, mask in masks.items():
        put(folder / "SegmentationClass" / f"{name}.png", png(np.repeat(mask[..., None], 3, 2)))


def test_exports_of_several_cvat_tasks_are_each_read_by_their_own_colours(extraction, tmp_path):
    mask = np.full((64, 96), 5, np.uint8)
    mask[:9] = 6
    cvat_export(tmp_path / "in" / "task_a", {"road": 5, "car": 6}, {f"drive/{FIRST}": mask, f"drive/{SECOND}": mask})
    cvat_export(tmp_path / "in" / "b", {"car": 5, "tree": 7, "road": 6}, {f"night/{SECOND}": mask, f"drive/{SECOND}": mask})
    report = import_masks(extraction, tmp_path / "in")
    assert report.labels.names == ("car", "tree", "road") and not report.notes
    found = stored(extraction)
    assert {name: (int(ids[0, 0]), int(ids[20, 0])) for name, ids in found.items()} == {
        **{f"drive/{FIRST}": (0, 2), f"drive/{SECOND}": (2, 0), f"night/{SECOND}": (2, 0)}
    }
    assert report.left_out == [
        f"task_a/SegmentationClass/drive/{SECOND}.png: b/SegmentationClass/drive/{SECOND}.png is of the same frame, drive/{SECOND}"
    ]


def test_without_any_label_set_that_of_the_tool_is_taken(extraction, tmp_path):
    mask = masks_of(extraction, 3)[f"drive/{FIRST}"]
    labels = LabelSet("shop", tuple(Label(name, (9 * i + 9, 0, 50)) for i, name in enumerate(("floor", "shelf", "person"))))
    export_masks(extraction, tmp_path / "out", "cvat", labels, lambda frame, image: mask)
    report = import_masks(extraction, tmp_path / "out" / "annotations.zip")
    assert report.labels.labels == labels.labels and np.array_equal(stored(extraction)[f"drive/{FIRST}"], mask)


def test_later_masks_come_into_the_label_set_of_earlier_ones(extraction, tmp_path):
    export_masks(extraction, tmp_path / "out", "png", COLOURS, lambda frame, image: patchwork(0, 5))
    import_masks(extraction, tmp_path / "out")
    with pytest.raises(LabelError, match="has masks in label set 'colours'"):
        import_masks(extraction, tmp_path / "out", STREET)
    shuffled = LabelSet("shuffled", tuple(reversed(COLOURS.labels)))
    export_masks(extraction, tmp_path / "more", "png", shuffled, lambda frame, image: np.full((64, 96), 1, np.uint8))
    assert import_masks(extraction, tmp_path / "more", replace=True).labels == COLOURS
    assert all((mask == 3).all() for mask in stored(extraction).values())


def test_a_second_import_does_not_take_the_first_ones_masks_away(extraction, tmp_path, command):
    """Two people draw, the same frame too: what is there stays, unless the new is asked for."""
    names = [frame.name for frame in extraction.frames]
    first = {name: patchwork(seed, 5) for seed, name in enumerate(names[:2])}
    second = {names[0]: first[names[0]], names[1]: np.full((64, 96), 1, np.uint8), names[2]: patchwork(7, 5)}
    for folder, masks in (("anna", first), ("ben", second)):
        export_masks(extraction, tmp_path / folder, "png", COLOURS, lambda frame, image, masks=masks: masks.get(frame.name))
    import_masks(extraction, tmp_path / "anna")
    said = command(extraction.root, "--masks", tmp_path / "ben")
    assert said.startswith("1 3 of 3 frames have masks now") and "; 2 taken: " in said
    assert f"{names[1].split('/')[1]}.png is there and says otherwise; --replace takes the new one" in said
    assert all(np.array_equal(mask, {**second, **first}[name]) for name, mask in stored(extraction).items())
    assert command(extraction.root, "--masks", tmp_path / "ben", "--replace").startswith("0 3 of 3 frames")
    assert all(np.array_equal(mask, second[name]) for name, mask in stored(extraction).items())


def test_folders_of_masks_may_be_links(extraction, tmp_path):
    mask = patchwork(3, 5)
    put(tmp_path / "anna" / f"{FIRST}.png", png(mask))
    put(tmp_path / "in" / "labels.json", STREET.to_json())
    (tmp_path / "in" / "drive").symlink_to(tmp_path / "anna")
    assert import_masks(extraction, tmp_path / "in").imported == [f"drive/{FIRST}"]
    assert np.array_equal(stored(extraction)[f"drive/{FIRST}"], mask)


def test_a_folder_without_a_mask_says_what_would_be_one(extraction, tmp_path):
    put(tmp_path / "in" / "a.jpg", "x")
    with pytest.raises(DataError, match="in has no masks: no file of it ends in .bmp, .png, .tif, .tiff, or they list no images"):
        import_masks(extraction, tmp_path / "in", STREET, "png")


def test_coco_is_read_in_all_its_ways_with_the_smaller_on_top(extraction, tmp_path):
    region = np.zeros((64, 96), bool)
    region[2:6, 3:9] = True
    annotations = [
        {"id": 1, "image_id": 7, "category_id": 30, "segmentation": [[10, 10, 12, 10, 12, 14, 10, 14], [50, 0, 60, 0, 60, 5, 50, 5]]},
        {"id": 2, "image_id": 7, "category_id": 20, "segmentation": [[0, 0, 96, 0, 96, 64, 0, 64]]},
        {"id": 3, "image_id": 7, "category_id": 10, "segmentation": {"size": [64, 96], "counts": run_lengths(region).tolist()}},
        {"id": 4, "image_id": 7, "category_id": 10, "segmentation": {"size": [64, 96], "counts": "5321"}},
        {"id": 5, "image_id": 7, "category_id": 10, "bbox": [1, 2, 3, 4]},
        {"id": 6, "image_id": 7, "category_id": 99, "segmentation": [[0, 0, 9, 0, 9, 9]]},
        {"id": 7, "image_id": 8, "category_id": 10, "segmentation": [[0, 0, 9, 0, 9, 9]]},
        {"id": 8, "image_id": [7], "category_id": 10, "segmentation": [[0, 0, 9, 0, 9, 9]]},
        {"id": 9, "image_id": 7, "category_id": [10], "segmentation": [[0, 0, 9, 0, 9, 9]]},
    ]
    data = {
        "images": [{"id": 7, "file_name": f"drive/{FIRST}.jpg", "height": 64, "width": 96}],
        "categories": [{"id": 30, "name": "car"}, {"id": 10, "name": "sky"}, {"id": 20, "name": "road"}],
        "annotations": annotations,
    }
    report = import_masks(extraction, put(tmp_path / "c.json", json.dumps(data)), STREET)
    expected = np.full((64, 96), 3, np.uint8)
    expected[10:14, 10:12] = expected[0:5, 50:60] = 8
    expected[region] = 0
    assert np.array_equal(stored(extraction)[f"drive/{FIRST}"], expected)
    assert report.notes[0] == "annotation 7, annotation 8: of an image that the file does not list"
    for number, reason in (
        (4, "add up to 14 pixels"),
        (5, "a box alone"),
        (6, "category 99 is not listed"),
        (9, "category [10] is not listed"),
    ):
        assert f"annotation {number}: " in report.notes[1] and reason in report.notes[1]


def coco(names: list[str], categories: dict[int, str]) -> dict:
    """Images that are of one category each, taking turns."""
    whole = [[0, 0, 96, 0, 96, 64, 0, 64]]
    numbers = np.resize(list(categories), len(names)).tolist()
    return {
        "images": [{"id": i, "file_name": name, "height": 64, "width": 96} for i, name in enumerate(names)],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
        "annotations": [{"id": 10 + i, "image_id": i, "category_id": n, "segmentation": whole} for i, n in enumerate(numbers)],
    }


def test_all_files_of_a_coco_export_are_read_each_by_its_own_ids(extraction, tmp_path):
    train, val = coco([f"drive/{FIRST}.png"], {1: "road"}), coco([f"night/{SECOND}.png", f"drive/{SECOND}.png"], {1: "car", 2: "road"})
    val["annotations"].append({"id": 99, "image_id": 7, "category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9]]})
    put(tmp_path / "in" / "annotations" / "instances_Train.json", json.dumps(train))
    put(tmp_path / "in" / "annotations" / "instances_Validation.json", json.dumps(val))
    put(tmp_path / "in" / "about.json", "{}")
    report = import_masks(extraction, tmp_path / "in", STREET)
    ids = {"road": STREET.id_of("road"), "car": STREET.id_of("car")}
    assert {name: np.unique(mask).tolist() for name, mask in stored(extraction).items()} == {
        **{f"drive/{FIRST}": [ids["road"]], f"night/{SECOND}": [ids["car"]], f"drive/{SECOND}": [ids["road"]]}
    }
    assert not report.left_out and report.notes == [
        f"{tmp_path}/in: about.json is no COCO file with images, categories and annotations ('categories' is missing)",
        "annotations/instances_Validation.json/annotation 99: of an image that the file does not list",
    ]


def test_an_image_that_a_coco_file_lists_twice_is_left_out_as_that(extraction, tmp_path):
    data = coco([f"drive/{FIRST}.png", f"drive/{FIRST}.png"], {1: "road", 2: "car"})
    report = import_masks(extraction, put(tmp_path / "c.json", json.dumps(data)), STREET)
    assert (stored(extraction)[f"drive/{FIRST}"] == STREET.id_of("road")).all() and not report.notes
    assert report.left_out == [f"drive/{FIRST}.png (row 2 of the images): drive/{FIRST}.png is of the same frame, drive/{FIRST}"]


WITHOUT_SIZE = {"image_id": 0, "category_id": 1, "segmentation": {"size": None, "counts": "5321"}}


@pytest.mark.parametrize("broken", [WITHOUT_SIZE, WITHOUT_SIZE | {"segmentation": {"size": 6}}, {"category_id": 1}])
def test_a_broken_annotation_is_left_out_alone(extraction, tmp_path, broken):
    data = coco([f"drive/{FIRST}.png"], {1: "road"})
    data["annotations"].append({"id": 6} | broken)
    report = import_masks(extraction, put(tmp_path / "c.json", json.dumps(data)), STREET)
    assert (stored(extraction)[f"drive/{FIRST}"] == STREET.id_of("road")).all() and not report.left_out
    assert len(report.notes) == 1 and "annotation 6: " in report.notes[0]


def test_transparent_pixels_are_unlabelled_and_not_complained_of(extraction, tmp_path):
    pixels = np.full((64, 96, 4), 255, np.uint8)
    pixels[:32, :, :3] = STREET.labels[8].color[::-1]
    pixels[16:, :, 3] = 0
    put(tmp_path / "in" / f"{FIRST}.png", cv2.imencode(".png", pixels)[1].tobytes())
    report = import_masks(extraction, tmp_path / "in", STREET)
    found = stored(extraction)[f"drive/{FIRST}"]
    assert (found[:16] == 8).all() and (found[16:] == 255).all() and not report.notes


@pytest.mark.parametrize(
    ("name", "content", "form", "error"),
    [
        ("gone.json", None, "", SourceError),
        ("x.json", "{]", "coco", DataError),
        ("x.json", "[1]", "coco", DataError),
        ("x.json", '{"images": [{}], "categories": [], "annotations": []}', "coco", DataError),
        ("x.zip", "PK no zip", "cvat", SourceError),
        ("x.zip", "", "", SourceError),
        ("x.xml", "no zip", "cvat", DataError),
        ("in/SegmentationClass/1.png", "x", "", LabelError),
        ("in/labels.json", "{}", "png", LabelError),
        ("in/a.png", "x", "svg", SourceError),
    ],
)
def test_what_is_of_no_format_is_an_error_of_lix(tmp_path, name, content, form, error):
    path = tmp_path / name
    if content is not None:
        put(path, content)
    with pytest.raises(error):
        open_masks(tmp_path / "in" if name.startswith("in/") else path, form)


def test_masks_in_several_formats_ask_for_a_choice_and_take_it(extraction, tmp_path):
    for seed, form in enumerate(("cvat", "png", "coco")):
        export_masks(extraction, tmp_path / form, form, STREET, lambda frame, image: patchwork(seed, 5))
        shutil.copytree(tmp_path / form, tmp_path / "both", dirs_exist_ok=True)
    message = r"annotations.zip \(cvat\), annotations.json \(coco\), masks \(png\); name one of these formats \(--format\)"
    with pytest.raises(DataError, match=message):
        import_masks(extraction, tmp_path / "both")
    assert not stored(extraction)
    for seed, form in enumerate(("cvat", "png", "coco")):
        import_masks(extraction, tmp_path / "both", form=form, replace=True)
        assert all(np.array_equal(mask, patchwork(seed, 5)) for mask in stored(extraction).values())


@pytest.mark.parametrize("line", ["car", "car:1,2", "car:1,2,300::", "car:a,b,c::"])
def test_a_broken_labelmap_is_quoted(tmp_path, line):
    put(tmp_path / "SegmentationClass" / "1.png", png(patchwork(0, 3)))
    put(tmp_path / "labelmap.txt", f"{line}\n")
    with pytest.raises(DataError, match=line):
        open_masks(tmp_path)


@given(st.binary(max_size=300), st.sampled_from(FORMATS))
def test_junk_is_an_error_of_lix_whatever_it_is(tmp_path_factory, content, form):
    path = put(tmp_path_factory.getbasetemp() / f"junk.{form}", content)
    try:
        source = open_masks(path, form, STREET)
        for name in source.names:
            source.read(name)
    except LixError:
        pass


def test_names_are_compared_without_case_and_with_spaces_for_underscores():
    lut, complaints = mapping_by_name(
        ["Traffic_Sign", "ROAD", "background"], LabelSet("s", (Label("road", (1, 1, 1)), Label("traffic sign", (2, 2, 2))))
    )
    assert lut[:3].tolist() == [1, 0, 255] and not complaints and (lut[3:] == 255).all()


def test_masks_are_exported_in_another_label_set_by_name_whatever_its_case(extraction, tmp_path):
    shop = LabelSet("shop", (Label("Road", (1, 2, 3)), Label("car", (4, 5, 6)), Label("shelf", (7, 8, 9))))
    mask = patchwork(2, 3)
    put(tmp_path / "in" / "labels.json", shop.to_json())
    put(tmp_path / "in" / f"{FIRST}.png", png(mask))
    import_masks(extraction, tmp_path / "in")
    labels, mask_of, remark = ready_masks(extraction, "masks", STREET, "street", "onnxruntime")
    assert remark(extraction.frames) == "left unlabelled, as no class has the name: shelf"
    table = np.full(256, 255, np.uint8)
    table[:2] = STREET.id_of("road"), STREET.id_of("car")
    assert labels == STREET and np.array_equal(mask_of(extraction.frames[0], None), table[mask])


# The command.


@pytest.fixture
def command():
    app = typer.Typer()
    app.command()(label)

    def run(*words: object) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if isinstance(result.exception, LixError):
            raise result.exception
        return f"{result.exit_code} {result.stdout}"

    return run


def test_annotators_start_from_what_a_model_says(extraction, tmp_path, command):
    bundle = camera_bundle().save(tmp_path / "tiny.lix")
    said = command(extraction.root, "--export", "cvat", "--out", tmp_path / "out", "--start-from", "model", "--model", bundle)
    assert said.startswith("0 3 frames in") and "from model" in said
    said = command(extraction.root, "--masks", tmp_path / "out", "--label-set", bundle)
    assert said.startswith("0 3 of 3 frames have masks now")
    for frame in extraction.frames:
        image = cv2.imread(str(frame.image))[..., ::-1]
        # CVAT has no black class but its background: that of this label set is another black.
        assert np.array_equal(stored(extraction)[frame.name], nearest_colour(image))
    shutil.rmtree(tmp_path / "out")
    command(extraction.root, "--export", "png", "--out", tmp_path / "out", "--start-from", "masks", "--frames", 1)
    assert (tmp_path / "out" / "masks" / "drive" / f"{FIRST}.png").exists()


def test_where_a_model_says_nothing_annotators_start_from_nothing_and_that_is_said(tmp_path, command):
    never_without = {"config": {"data": {"x_dropout": 0}}}
    model = camera_bundle(x=XSpec("inverse_depth", 1), training=never_without).save(tmp_path / "x.lix")
    near = {"image": picture(1), "depth": np.full((64, 96), 4.0, np.float32)}
    write_extraction(tmp_path / "ext", {"drive": {FIRST: near, SECOND: {"image": picture(2)}}})
    words = ["--export", "png", "--start-from", "model", "--model", model]
    said = command(tmp_path / "ext", *words, "--out", tmp_path / "out")
    assert "note: 1 of 2 frames have no depth: they get no labels, for tiny-camera is a teacher that never was without" in said
    assert said.startswith("0 2 frames in") and len([*(tmp_path / "out" / "images").rglob("*.png")]) == 2
    assert [path.stem for path in (tmp_path / "out" / "masks").rglob("*.png")] == [str(FIRST)]
    assert "note" not in command(tmp_path / "ext", *words, "--out", tmp_path / "first", "--frames", 1)  # the other is not exported
    write_extraction(tmp_path / "dark", {"drive": {FIRST: {"image": picture(1)}}})
    with pytest.raises(DataError, match="no frame of .*dark can be labelled: tiny-camera is a teacher that never was without"):
        command(tmp_path / "dark", *words, "--out", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_frames_that_a_retraining_holds_out_can_be_exported_alone(extraction, tmp_path, command):
    held = BagDataset(extraction.root, "val", labels="none", held_out=0.4, block=0.01).names
    assert 0 < len(held) < len(extraction.frames)
    said = command(extraction.root, "--export", "png", "--out", tmp_path / "out", "--held-out", 0.4, "--block", 0.01)
    images = tmp_path / "out" / "images"
    assert {path.relative_to(images).with_suffix("").as_posix() for path in images.rglob("*.*")} == set(held)
    assert said.startswith(f"0 {len(held)} frames in")


def test_masks_left_out_are_listed_and_the_status_says_so(extraction, tmp_path, command):
    put(tmp_path / "in" / f"{FIRST}.png", png(patchwork(0, 5)))
    put(tmp_path / "in" / "1.png", png(patchwork(0, 5)))
    labels = put(tmp_path / "set.json", COLOURS.to_json())
    said = command(extraction.root, "--masks", tmp_path / "in", "--label-set", labels)
    assert said.startswith("1 1 of 3 frames have masks now") and "left out 1.png: no frame has this stamp" in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "one of --masks, --export, --pseudo; got none"),
        (["--export", "png", "--pseudo"], "got --export, --pseudo"),
        (["--export", "png"], "needs --out"),
        (["--export", "svg", "--out", "x"], "no mask format 'svg'"),
        (["--export", "png", "--out", "x", "--start-from", "air"], "nothing 'air' to start from"),
        (["--export", "png", "--out", "x", "--start-from", "bag"], "labels of kind 'bag' are asked for, but .* have none"),
        (["--pseudo", "--scales", "big"], "--scales takes numbers"),
        (["--pseudo", "--held-out", "0.2", "--label-set", "street"], "leave out --label-set, --held-out: --pseudo does not read them"),
        (["--export", "png", "--out", "x", "--block", "5"], "leave out --block: without --held-out nothing reads it"),
        (["--pseudo", "--floor", "0.3"], "leave out --floor: without --class-share nothing reads it"),
        (["--pseudo", "--no-ground", "--flat", "a", "--standing", "b"], "leave out --flat, --standing: with --no-ground nothing reads"),
        (["--masks", "x", "--no-flip"], "leave out --no-flip: --masks does not read it"),
        (["--masks", "x", "--start-from", "model"], "leave out --start-from: --masks does not read it"),
        (["--export", "png", "--out", "x", "--no-flip", "--format", "png"], "leave out --format, --no-flip: --export does not"),
        *(
            (["--export", "png", "--out", "x", "--held-out", "0.2", "--block", block], f"block a finite time .*, got 0.2 and {block}")
            for block in ("nan", "inf", "1e-10", "0.0")
        ),
    ],
)
def test_a_wrong_word_of_the_command_is_told(extraction, tmp_path, command, monkeypatch, words, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LixError, match=reason):
        command(extraction.root, *words)
