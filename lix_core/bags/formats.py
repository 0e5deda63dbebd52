"""The formats in which annotation tools keep masks, read and written.

| format | what it is | colours and names |
| --- | --- | --- |
| png | a PNG of ids with a palette for each image, and labels.json | by colour, or by id in grey images; 255 is unlabelled |
| cvat | CVAT's "Segmentation mask 1.1", zip or folder | of each export its labelmap.txt's; black is its `background`, which is unlabelled |
| coco | COCO's instances: run lengths and polygons | categories by name; where two overlap, the smaller is on top |

https://docs.cvat.ai/docs/dataset_management/formats/format-smask/, https://cocodataset.org/#format-data
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import cv2
import numpy as np

from lix_core.bags.regions import compressed, decompressed, polygon_region, region_of, run_lengths
from lix_core.errors import DataError, LabelError, SourceError, first_line
from lix_core.files import expanded, files_below, make_folder, save
from lix_core.labels import LABELS_FILE, UNLABELLED, LabelSet
from lix_core.pixels import decoded

FORMATS = ("png", "cvat", "coco")
BACKGROUND = "background"
"""CVAT's name of what nobody annotated."""
LARGEST = 1 << 28
"""[bytes]: of a file in an archive, unpacked."""
CLASS_MASKS, INSTANCE_MASKS = "SegmentationClass/", "SegmentationObject/"
LABELMAP, LISTED = "labelmap.txt", "ImageSets/Segmentation/default.txt"
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
"""A JPEG blurs colours and ids."""
BLACK = (0, 0, 0)
MANY = 5
"""So many cases of one kind are named, the others counted."""


def distinct_colours(labels: LabelSet, reserved: Collection[tuple[int, int, int]] = ()) -> np.ndarray:
    """(C, 3) uint8 RGB: the classes' colours; the nearest free one, lighter or darker, for a class whose own is reserved or taken.

    Raises LabelError where there is none.
    """
    taken, colours = set(reserved), []
    for label in labels.labels:
        # By distance, then by value: the same set gives the same colours.
        steps = sorted(range(-255, 256), key=lambda step: (abs(step), -step))
        near = (tuple(min(max(v + step, 0), 255) for v in label.color) for step in steps)
        colour = next((c for c in near if c not in taken), None)
        if colour is None:
            raise LabelError(f"label set {labels.name!r} has too many classes of colour {label.color} to tell them apart; change some")
        taken.add(colour)
        colours.append(colour)
    return np.array(colours, np.uint8)


def palette_of(colours: np.ndarray) -> np.ndarray:
    """(256, 3) uint8: the colours of ids, and of the others that of what is unlabelled."""
    palette = np.full((256, 3), void_colour(colours), np.uint8)
    palette[: len(colours)] = colours
    return palette


def void_colour(colours: np.ndarray) -> tuple[int, int, int]:
    """The colour of what is unlabelled: black, or the lightest grey where a class is black."""
    taken = set(map(tuple, colours.tolist()))
    return next(c for c in (BLACK, *((v, v, v) for v in range(255, 0, -1))) if c not in taken)


CLEAR = 1 << 24
"""The code of what is transparent."""


def codes(pixels: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 RGB or (..., 4) RGBA -> (...) uint32, one number for each colour, CLEAR where alpha is 0."""
    wide = pixels.astype(np.uint32)
    colours = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    return colours if pixels.shape[-1] == 3 else np.where(wide[..., 3] > 0, colours, np.uint32(CLEAR))


def ids_of_colours(pixels: np.ndarray, colours: np.ndarray, void: tuple[int, int, int] = BLACK) -> tuple[np.ndarray, str]:
    """Colours -> their positions in a list; of two that are the same, the first's.

    Shape:
        pixels (H, W, 3) uint8 RGB or (H, W, 4) RGBA, colours (K, 3) uint8, K < 256 -> (H, W) uint8, 255 where a colour is not listed or
        alpha is 0

    Returns:
        the ids, and a complaint about colours that are not listed ("" where there is none); neither `void` nor what is transparent is
        complained of.
    """
    found, inverse, counts = np.unique(codes(pixels).ravel(), return_inverse=True, return_counts=True)
    known = {int(code): i for i, code in reversed(list(enumerate(codes(colours))))}
    ids = np.array([known.get(int(code), UNLABELLED) for code in found], np.uint8)
    silent = int(codes(np.uint8(void))), CLEAR
    strange = [(int(n), int(code)) for code, n, i in zip(found, counts, ids) if i == UNLABELLED and code not in silent]
    complaint = ""
    if strange:
        _, code = max(strange)
        colour = (code >> 16, code >> 8 & 255, code & 255)
        share = 100 * sum(n for n, _ in strange) / inverse.size
        complaint = f"{share:.3g} % of the pixels have {len(strange)} colours of no class, most of them {colour}; left unlabelled"
    return ids[inverse].reshape(pixels.shape[:2]), complaint


def palette_png(mask: np.ndarray, colours: np.ndarray) -> bytes:
    """A PNG of ids that image viewers show in colour: (H, W) uint8 ids, (256, 3) uint8 RGB palette. (OpenCV writes none.)"""
    height, width = mask.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    rows = np.pad(mask, ((0, 0), (1, 0)))  # each row begins with its filter: none
    parts = chunk(b"IHDR", header), chunk(b"PLTE", colours.tobytes()), chunk(b"IDAT", zlib.compress(rows.tobytes())), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def decode_mask(content: bytes, name: str) -> np.ndarray:
    """(H, W) uint8 of a grey image, or (H, W, 3) uint8 RGB, (H, W, 4) RGBA, of one with colours or a palette. Raises DataError."""
    pixels = decoded(content, cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise DataError(f"{name} cannot be decoded; is it whole, and an image?")
    if pixels.dtype != np.uint8:
        raise DataError(f"{name} has {pixels.dtype} values; a mask has 8-bit ids or colours")
    if pixels.ndim == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    return pixels


# ---- files in a folder or an archive


class Files:
    """Files below a folder, in a zip archive, or one file alone, by their paths in it. Raises SourceError where it cannot be read."""

    def __init__(self, path: Path):
        self.path = path
        try:
            if path.is_dir():
                self.names = sorted(p.relative_to(path).as_posix() for p in files_below(path) if not hidden(p, path))
            elif zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    self.names = sorted(name for name in archive.namelist() if not name.endswith("/") and "__MACOSX" not in name)
            else:
                path.open("rb").close()
                if path.suffix.lower() == ".zip":
                    raise SourceError(f"{path} is no whole zip archive: it is empty, cut off or something else; fetch it again")
                self.names = [path.name]
        except (OSError, zipfile.BadZipFile) as error:
            raise SourceError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None

    @cached_property
    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def read(self, name: str) -> bytes:
        """Raises DataError where it cannot be read."""
        try:
            if self.path.is_dir():
                return (self.path / name).read_bytes()
            if not zipfile.is_zipfile(self.path):
                return self.path.read_bytes()
            if (size := self._archive.getinfo(name).file_size) > LARGEST:
                raise ValueError(f"it unpacks to {size / 1e6:.0f} MB, no file of a mask does")
            return self._archive.read(name)
        except Exception as error:  # zipfile lets through whatever its decompressors raise on damaged data
            raise DataError(f"cannot read {name} of {self.path}: {first_line(error)}") from None

    def text(self, name: str) -> str:
        return self.read(name).decode("utf-8-sig", "replace")


def documents_in(files: Files) -> list[str]:
    """Files that may be COCO's."""
    return [name for name in files.names if name.endswith(".json") and PurePosixPath(name).name != LABELS_FILE]


def hidden(path: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(below).parts)


# ---- reading the formats


class MaskSource(Protocol):
    """Masks as a tool wrote them.

    names: of the images, as the tool has them. labels: the label set that is written beside the masks, None where there is none.
    classes: names of the classes, whose positions are the ids of `read`; colours: (K, 3) uint8 of these, None where the tool has none.
    notes: what is wrong with the whole.
    """

    names: list[str]
    labels: LabelSet | None
    classes: list[str]
    colours: np.ndarray | None
    notes: list[str]

    def read(self, name: str) -> tuple[np.ndarray, str]:
        """(H, W) uint8 positions in `classes`, 255 unlabelled, and a complaint or "". Raises DataError."""
        ...


class PngMasks:
    """A folder or archive of masks, one a frame, and maybe labels.json.

    Raises:
        LabelError: there is no label set, neither beside the masks nor given, or there are several.
    """

    def __init__(self, files: Files, fallback: LabelSet | None):
        self._files, self.notes = files, []
        written = {name: labels_in(files, name) for name in files.names if PurePosixPath(name).name == LABELS_FILE}
        if len({found.labels for found in written.values()}) > 1:
            raise LabelError(f"{files.path} has label sets that differ: {', '.join(written)}; import each with its masks alone")
        beside = files.path.parent / LABELS_FILE  # of an export, whose masks are in a folder of their own
        self.labels = next(iter(written.values())) if written else LabelSet.load(beside) if beside.is_file() else None
        labels = self.labels or fallback
        if labels is None:
            raise LabelError(f"{files.path} has no {LABELS_FILE}, so that its ids have no names; give the label set")
        self.classes = list(labels.names)
        self.colours = distinct_colours(labels)
        pictures = [name for name in files.names if PurePosixPath(name).suffix.lower() in MASK_SUFFIXES]
        # An export as a whole has the images beside the masks.
        masks = [name for name in pictures if "masks" in PurePosixPath(name).parts]
        self.names = masks or [name for name in pictures if "images" not in PurePosixPath(name).parts]

    def read(self, name: str) -> tuple[np.ndarray, str]:
        pixels = decode_mask(self._files.read(name), name)
        if pixels.ndim == 3:
            return ids_of_colours(pixels, self.colours, void_colour(self.colours))
        return ids_in_range(pixels, len(self.classes))


class CvatMasks:
    """CVAT's "Segmentation mask 1.1", or several below one folder, each with its own colours. Raises DataError where there is none."""

    def __init__(self, files: Files, fallback: LabelSet | None = None):
        self._files, self.notes, self.labels = files, [], None
        self.names = [name for name in files.names if CLASS_MASKS in name]
        if not self.names:
            raise DataError(f"{files.path} has no folder {CLASS_MASKS}; it is no export of CVAT as `Segmentation mask 1.1`")
        self._legends: dict[str, tuple[list[str], np.ndarray]] = {}
        for root in dict.fromkeys(name.partition(CLASS_MASKS)[0] for name in self.names):
            self._legends[root] = self._legend(root, fallback)
            if root + LISTED in files.names:
                masks = {stem_of(name.removeprefix(root + CLASS_MASKS)) for name in self.names}
                listed = [line.strip() for line in files.text(root + LISTED).splitlines() if line.strip()]
                self.notes += in_few([root + name for name in listed if name not in masks], "named in default.txt, but without a mask")
        first: dict[str, list[int]] = {}
        for names, colours in self._legends.values():
            for name, colour in zip(names, colours.tolist()):
                first.setdefault(name, colour)
        self.classes, self.colours = list(first), np.array(list(first.values()), np.uint8)
        check_count(self.classes, str(files.path))

    def _legend(self, root: str, fallback: LabelSet | None) -> tuple[list[str], np.ndarray]:
        """Names and (K, 3) uint8 colours of the classes of an export."""
        files, name = self._files, root + LABELMAP
        if name in files.names:
            return labelmap(files.text(name), f"{files.path}: {name}")
        if fallback is None:
            raise LabelError(f"{files.path} has no {name}, so that its colours have no names; give the label set")
        self.notes.append(f"it has no {name}; colours are taken from label set {fallback.name!r}")
        return list(fallback.names), distinct_colours(fallback, [BLACK])

    def read(self, name: str) -> tuple[np.ndarray, str]:
        names, colours = self._legends[name.partition(CLASS_MASKS)[0]]
        pixels = decode_mask(self._files.read(name), name)
        ids, complaint = ids_of_colours(pixels, colours) if pixels.ndim == 3 else ids_in_range(pixels, len(names))
        return positions(names, self.classes)[ids], complaint


def positions(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """(256,) uint8: position in `names` -> position of the same name in `classes`; what is past the names is unlabelled."""
    lut = np.full(256, UNLABELLED, np.uint8)
    lut[: len(names)] = [classes.index(name) for name in names]
    return lut


def check_count(classes: Sequence[str], where: str) -> None:
    """Raises DataError where there are none, or too many for 8-bit masks."""
    if not 0 < len(classes) <= UNLABELLED:
        raise DataError(f"{where} names {len(classes)} classes; 1 to {UNLABELLED} fit 8-bit masks")


def as_id(value: Any) -> int | str:
    """A number or text by which a COCO file refers to something; what else stands there refers to nothing, and is shown as text."""
    return value if isinstance(value, (int, str)) else repr(value)


class CocoMasks:
    """The instances of a COCO file, or of several below one folder, each with its own ids. Raises DataError where there is none."""

    labels = colours = None

    def __init__(self, files: Files, fallback: LabelSet | None = None):
        found: dict[str, CocoFile] = {}
        faults: list[str] = []
        for name in documents_in(files) or files.names[:1]:
            where = f"{files.path}: {name}" if files.path.is_dir() or zipfile.is_zipfile(files.path) else str(files.path)
            try:
                found[name] = CocoFile(files.read(name), where)
            except DataError as error:
                faults.append(str(error))
        if not found:
            raise DataError(faults[0] if faults else f"{files.path} has no file")
        self.classes = list(dict.fromkeys(name for document in found.values() for name in document.categories.values()))
        check_count(self.classes, str(files.path))
        self.notes = faults
        self._images: dict[str, tuple[CocoFile, int]] = {}
        for name, document in found.items():
            before = f"{name}/" if len(found) > 1 else ""
            self.notes += in_few([before + text for text in document.lost], "of an image that the file does not list")
            for row, (image, *_) in enumerate(document.images):
                image = before + image
                self._images[image if image not in self._images else f"{image} (row {row + 1} of the images)"] = document, row
        self.names = list(self._images)

    def read(self, name: str) -> tuple[np.ndarray, str]:
        document, row = self._images[name]
        _, number, shape = document.images[row]
        regions, faults = [], []
        for category, annotation in document.annotations[number]:
            try:
                if category not in document.categories:
                    raise DataError(f"its category {category} is not listed")
                region = coco_region(annotation.get("segmentation"), shape)
                regions.append((int(region.sum()), self.classes.index(document.categories[category]), region))
            except DataError as error:
                faults.append(f"annotation {annotation.get('id')}: {error}")
        mask = np.full(shape, UNLABELLED, np.uint8)
        for _, index, region in sorted(regions, key=lambda r: -r[0]):
            mask[region] = index
        return mask, "; ".join(in_few(faults, "left out"))


class CocoFile:
    """A COCO file. Raises DataError where it is none.

    categories: id -> name, by id. images: their file names, ids and (height, width). annotations: id of an image -> its annotations, each
    with the id of its category. lost: annotations of no image.
    """

    def __init__(self, content: bytes, where: str):
        try:
            data = json.loads(content)
            self.categories = dict(sorted((int(c["id"]), str(c["name"])) for c in data["categories"]))
            self.images = [(str(i["file_name"]), as_id(i["id"]), (int(i["height"]), int(i["width"]))) for i in data["images"]]
            found = [(as_id(a.get("image_id")), as_id(a.get("category_id")), a) for a in data["annotations"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{where} is no COCO file with images, categories and annotations ({explain_key(error)})") from None
        if any(min(shape) < 1 or shape[0] * shape[1] > 1 << 28 for *_, shape in self.images):
            raise DataError(f"{where} has images whose height or width is none")
        self.annotations: dict[int | str, list[tuple[int | str, dict[str, Any]]]] = {number: [] for _, number, _ in self.images}
        self.lost = [f"annotation {a.get('id')}" for image, _, a in found if image not in self.annotations]
        for image, category, annotation in found:
            self.annotations.get(image, []).append((category, annotation))


def coco_region(segmentation: Any, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of an annotation: run lengths, as text or a list, or polygons. Raises DataError."""
    if isinstance(segmentation, dict):
        if segmentation.get("size") != list(shape):
            raise DataError(f"its run lengths are of size {segmentation.get('size')}, the image of {list(shape)}")
        counts = segmentation.get("counts")
        return region_of(decompressed(counts) if isinstance(counts, str) else counts, shape)
    if not isinstance(segmentation, list) or not segmentation:
        raise DataError("it has a box alone; draw a polygon or a mask")
    return np.logical_or.reduce([polygon_region(polygon, shape) for polygon in segmentation])


def labels_in(files: Files, name: str) -> LabelSet:
    try:
        return LabelSet.from_json(files.read(name))
    except (LabelError, DataError) as error:
        raise LabelError(f"{name} of {files.path} is not a label set: {first_line(error)}") from None


def labelmap(text: str, where: str) -> tuple[list[str], np.ndarray]:
    """Names and (K, 3) uint8 colours of CVAT's labelmap.txt: lines `name:r,g,b:parts:actions`. Raises DataError."""
    names, colours = [], []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        # From the right: names may hold colons.
        match = re.fullmatch(r"(.+?):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:[^:]*){0,2}", line.strip())
        colour = [int(v) for v in match.groups()[1:4]] if match else [256]
        if max(colour) > 255:
            raise DataError(f"{where} has the line {line.strip()!r}; lines are `name:red,green,blue::`, colours 0 to 255")
        names.append(match.group(1).strip())
        colours.append(colour)
    check_count(names, where)
    return names, np.array(colours, np.uint8)


def ids_in_range(mask: np.ndarray, count: int) -> tuple[np.ndarray, str]:
    """Ids below `count`, 255 for others, with a complaint about those that are not 255 already."""
    strange = (mask >= count) & (mask != UNLABELLED)
    if not strange.any():
        return mask, ""
    wrong = ", ".join(map(str, np.unique(mask[strange])[:MANY]))
    text = f"{100 * strange.mean():.3g} % of the pixels have ids that no class has ({wrong}); ids go to {count - 1}; left unlabelled"
    return np.where(strange, np.uint8(UNLABELLED), mask), text


def stem_of(name: str) -> str:
    """`drive/0001.png` -> `drive/0001`; a tool may also write `drive\\0001.png`."""
    return re.sub(r"\.[A-Za-z]{2,5}$", "", name.replace("\\", "/"))


def in_few(cases: Sequence[str], what: str) -> list[str]:
    """One line for many cases: the first MANY by name."""
    if not cases:
        return []
    more = f" and {len(cases) - MANY} more" if len(cases) > MANY else ""
    return [f"{', '.join(cases[:MANY])}{more}: {what}"]


def explain_key(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else first_line(error)


READERS: dict[str, Callable[[Files, "LabelSet | None"], MaskSource]] = {"png": PngMasks, "cvat": CvatMasks, "coco": CocoMasks}


def open_masks(path: str | Path, form: str = "", fallback: LabelSet | None = None) -> MaskSource:
    """Masks of a folder, archive or file, also of a folder that `export_masks` wrote.

    form: one of FORMATS; left out, it is told by what is there. fallback: the label set of masks that come without names.

    Raises:
        SourceError: nothing there. DataError, LabelError: what is there is not of the format, or of several and none is named.
    """
    path = expanded(path)
    if form not in ("", *FORMATS):
        raise SourceError(f"there is no mask format {form!r}; there are {', '.join(FORMATS)}")
    exported = (("annotations.zip", "cvat"), ("annotations.json", "coco"), ("masks", "png"))
    found = [(path / inside, its_form) for inside, its_form in exported if (path / inside).exists() and form in ("", its_form)]
    if len(found) > 1:
        names = ", ".join(f"{inside.name} ({its_form})" for inside, its_form in found)
        raise DataError(f"{path} has masks in several formats: {names}; name one of these formats (--format)")
    if found:
        ((path, form),) = found
    files = Files(path)
    if not form:
        form = "cvat" if any(CLASS_MASKS in name for name in files.names) else "coco" if documents_in(files) else "png"
    return READERS[form](files, fallback)


# ---- writing the formats


class MaskWriter(Protocol):
    """Writes masks in a format below a folder. add: an image's name, its (height, width), and (H, W) uint8 ids, or None. close: the end."""

    def add(self, image: str, shape: tuple[int, int], mask: np.ndarray | None) -> None: ...

    def close(self) -> None: ...


class PngWriter:
    def __init__(self, out: Path, labels: LabelSet):
        self._folder = out / "masks"
        self._palette = palette_of(distinct_colours(labels))

    def add(self, image: str, shape: tuple[int, int], mask: np.ndarray | None) -> None:
        path = self._folder / f"{stem_of(image)}.png"
        make_folder(path.parent)
        if mask is not None:
            save(path, palette_png(mask, self._palette), synced=False)

    def close(self) -> None:
        pass


class CvatWriter:
    """A class named `background` is CVAT's own, black, and with it what is unlabelled. Each class of a frame is one instance: without
    masks of instances CVAT takes black for a class too, which its tasks do not have.
    """

    def __init__(self, out: Path, labels: LabelSet):
        self._path = out / "annotations.zip"
        colours = distinct_colours(labels, [BLACK])
        classes = [i for i, name in enumerate(labels.names) if name.casefold() != BACKGROUND]
        self._palette = np.zeros((256, 3), np.uint8)
        self._palette[classes] = colours[classes]
        self._instances = np.zeros((256, 3), np.uint8)
        self._instances[classes] = voc_colours(len(labels) + 1)[1:][classes]
        rows = [(labels.names[i], colours[i].tolist()) for i in classes]
        lines = ["# label:color (RGB):parts:actions", f"{BACKGROUND}:0,0,0::", *(f"{n}:{r},{g},{b}::" for n, (r, g, b) in rows)]
        self._names: list[str] = []
        self._content = io.BytesIO()
        self._archive = zipfile.ZipFile(self._content, "w")
        self._put(LABELMAP, ("\n".join(lines) + "\n").encode())
        constructor = [{"name": n, "color": "#{:02x}{:02x}{:02x}".format(*colour), "attributes": []} for n, colour in rows]
        save(out / "cvat_labels.json", (json.dumps(constructor, indent=1) + "\n").encode())

    def add(self, image: str, shape: tuple[int, int], mask: np.ndarray | None) -> None:
        self._names.append(stem_of(image))
        for folder, palette in ((CLASS_MASKS, self._palette), (INSTANCE_MASKS, self._instances)) if mask is not None else ():
            pixels = cv2.cvtColor(palette[mask], cv2.COLOR_RGB2BGR)
            self._put(f"{folder}{stem_of(image)}.png", cv2.imencode(".png", pixels)[1].tobytes())

    def close(self) -> None:
        self._put(LISTED, "".join(f"{name}\n" for name in self._names).encode())
        self._archive.close()
        save(self._path, self._content.getvalue())

    def _put(self, name: str, content: bytes) -> None:
        # A fixed date, so that the same masks are the same file.
        self._archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


def voc_colours(count: int) -> np.ndarray:
    """(count, 3) uint8: the colours that Pascal VOC paints instances in, black first. Bit 3 j + c of a number is bit 7 - j of channel c."""
    numbers, colours = np.arange(count), np.zeros((count, 3), np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= ((numbers >> bit & 1) << 7 - bit // 3).astype(np.uint8)
    return colours


class CocoWriter:
    """One annotation for each class of a frame, as compressed run lengths."""

    def __init__(self, out: Path, labels: LabelSet):
        self._path, self._count = out / "annotations.json", len(labels)
        categories = [{"id": i + 1, "name": name, "supercategory": ""} for i, name in enumerate(labels.names)]
        self._data: dict[str, list[Any]] = {"images": [], "categories": categories, "annotations": []}

    def add(self, image: str, shape: tuple[int, int], mask: np.ndarray | None) -> None:
        number = len(self._data["images"]) + 1
        self._data["images"].append({"id": number, "file_name": image, "height": shape[0], "width": shape[1]})
        for index in [] if mask is None else np.unique(mask[mask < self._count]).tolist():
            region = mask == index
            rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
            box = [int(v) for v in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]
            entry = {"id": len(self._data["annotations"]) + 1, "image_id": number, "category_id": index + 1}
            runs = {"size": list(shape), "counts": compressed(run_lengths(region))}
            self._data["annotations"].append({**entry, "segmentation": runs, "area": int(region.sum()), "bbox": box, "iscrowd": 1})

    def close(self) -> None:
        save(self._path, json.dumps(self._data).encode())


WRITERS: dict[str, Callable[[Path, LabelSet], MaskWriter]] = {"png": PngWriter, "cvat": CvatWriter, "coco": CocoWriter}
