"""Masks that people make: frames out to their tools, with what is labelled already, and masks back in, found again by stamp."""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from lix_core.bags.extract import ExtractedFrame, Extraction, image_of
from lix_core.bags.formats import (
    BACKGROUND,
    FORMATS,
    MANY,
    MASK_SUFFIXES,
    WRITERS,
    MaskSource,
    open_masks,
    stem_of,
)
from lix_core.bags.teacher import Teacher, calibrations_of
from lix_core.errors import DataError, LabelError, SourceError
from lix_core.files import locked, make_folder, read_mask, save
from lix_core.labels import LABELS_FILE, UNLABELLED, Label, LabelMapping, LabelSet, plain
from lix_core.runtime.bundle import Bundle, find_bundle

# ---- names of classes


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'car'?`, or which there are."""
    known = list(known)
    close = difflib.get_close_matches(plain(name), [plain(k) for k in known], n=1, cutoff=0.6)
    if close:
        return f"; did you mean {next(k for k in known if plain(k) == close[0])!r}?"
    return f"; there are {', '.join(known)}"


def mapping_by_name(names: Sequence[str], labels: LabelSet) -> tuple[np.ndarray, list[str]]:
    """Classes of a tool -> ids of `labels`, by name, as `LabelSet.find` compares them.

    Returns:
        (256,) uint8: position in `names` -> id, 255 for names that `labels` lacks; and a complaint for each of those but `background`.
    """
    lut = np.full(256, UNLABELLED, np.uint8)
    complaints = []
    for index, name in enumerate(names):
        if (found := labels.find(name)) is not None:
            lut[index] = found
        elif plain(name) != BACKGROUND:
            complaints.append(f"class {name!r} is not in label set {labels.name!r}{did_you_mean(name, labels.names)} (left unlabelled)")
    return lut, complaints


# ---- which frame a mask is of


class Finder:
    """Finds frames by the names that people's files have: any name with the frame's stamp in it, and its bag's where several have one."""

    def __init__(self, frames: Iterable[ExtractedFrame]):
        self._by_stamp: dict[int, list[ExtractedFrame]] = {}
        for frame in frames:
            self._by_stamp.setdefault(frame.stamp, []).append(frame)
        self._bags = {frame.bag for found in self._by_stamp.values() for frame in found}

    def find(self, name: str) -> ExtractedFrame:
        """Raises DataError, saying which frame is nearest."""
        path = PurePosixPath(stem_of(name))
        runs = sorted(re.findall(r"\d+", path.name), key=len, reverse=True)
        if not runs:
            raise DataError("its name has no stamp; a mask is named <stamp>.png, in a folder of its bag's name")
        found = next((self._by_stamp[int(run)] for run in runs if int(run) in self._by_stamp), None)
        if found is None:
            raise DataError(f"no frame has this stamp{self._nearest(int(runs[0]))}")
        named = next((part for part in reversed(path.parts[:-1]) if part in self._bags), None)
        fitting = [f for f in found if f.bag == named] if named else found
        if not fitting:
            raise DataError(f"bag {named} has no frame of this stamp; bag {found[0].bag} has")
        if len(fitting) > 1:
            bags = ", ".join(f.bag for f in fitting)
            raise DataError(f"bags {bags} all have a frame of this stamp; put the mask into a folder of its bag's name")
        return fitting[0]

    def _nearest(self, stamp: int) -> str:
        if not self._by_stamp:
            return "; the extraction has no frames"
        nearest = min(self._by_stamp, key=lambda s: abs(s - stamp))
        return f"; the nearest is {nearest}, {abs(nearest - stamp) / 1e6:.6g} ms away"


# ---- import


@dataclass
class ImportReport:
    """What came of an import.

    labels: what the ids in `<extraction>/masks` mean. imported: names of frames. left_out: files, each with the reason.
    notes: what else there is to know. pixels: (C + 1,) int64 of each class in the masks imported, the last unlabelled.
    """

    labels: LabelSet
    imported: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


def import_masks(
    extraction: Extraction,
    path: str | Path,
    labels: LabelSet | None = None,
    form: str = "",
    replace: bool = False,
    on_mask: Callable[[int], None] = lambda count: None,
) -> ImportReport:
    """Masks that people made -> `<extraction>/masks/<bag>/<stamp>.png` and labels.json; what can be used is used.

    Args:
        path: a folder, archive or file of one of FORMATS, or a folder that `export_masks` wrote.
        labels: what the ids in the extraction shall mean; classes of the masks go into it by name. Left out, that of the masks imported
            before, else what is written beside the masks, else that of the bags' label topics, else the classes that the tool names.
        form: one of FORMATS; "": told by what is there. replace: whether a frame that has another mask already gets the new one; else that
            one is left out. on_mask: called after each mask, with their number.

    Raises:
        SourceError: no masks there, or the extraction cannot be written. DataError: they are not of the format, or not one can be used.
        LabelError: nothing says what the ids mean, or the masks imported before are in another label set.
    """
    folder = extraction.root / "masks"
    make_folder(folder)
    try:
        with locked(folder, wait_s=0) as free:
            if not free:
                raise SourceError(f"another process imports masks into {folder}: wait for its end")
            return import_into(folder, extraction, path, labels, form, replace, on_mask)
    finally:
        with suppress(OSError):  # there is something in it
            folder.rmdir()


def import_into(
    folder: Path,
    extraction: Extraction,
    path: str | Path,
    labels: LabelSet | None,
    form: str,
    replace: bool,
    on_mask: Callable[[int], None],
) -> ImportReport:
    """The same, into a folder that no other process imports into."""
    before = LabelSet.load(folder / LABELS_FILE) if (folder / LABELS_FILE).exists() else None
    if before and labels and before.names != labels.names:
        raise LabelError(
            f"{folder} has masks in label set {before.name!r} ({', '.join(before.names)}), not {labels.name!r}; "
            "import into that one, or move the folder away"
        )
    source = open_masks(path, form, labels or before or labels_of_bags(extraction))
    target = before or labels or source.labels or labels_of_bags(extraction) or own_labels(source)
    lut, complaints = mapping_by_name(source.classes, target)
    report = ImportReport(target, notes=[*source.notes, *complaints], pixels=np.zeros(len(target) + 1, np.int64))
    finder, taken = Finder(extraction.frames), {}
    for name in source.names:
        try:
            frame = finder.find(name)
            if frame.name in taken:
                raise DataError(f"{taken[frame.name]} is of the same frame, {frame.name}")
            mask, complaint = source.read(name)
            mask = lut[mask]
            check_mask(mask, frame, complaint)
            if not replace:
                check_new(mask, extraction.label_path(frame, "masks"))
        except DataError as error:
            report.left_out.append(f"{name}: {error}")
        else:
            taken[frame.name] = name
            make_folder(folder / frame.bag)
            if not report.imported:
                target.save(folder / LABELS_FILE)
            save(folder / frame.bag / f"{frame.stamp}.png", cv2.imencode(".png", mask)[1].tobytes())
            report.imported.append(frame.name)
            report.notes += [f"{name}: {complaint}"] if complaint else []
            report.pixels += np.bincount(np.minimum(mask, len(target)).ravel(), minlength=len(target) + 1)
        on_mask(len(source.names))
    if not source.names:
        raise DataError(f"{path} has no masks: no file of it ends in {', '.join(sorted(MASK_SUFFIXES))}, or they list no images")
    if not report.imported:
        raise DataError(f"none of {len(source.names)} masks of {path} can be used: {'; '.join((report.left_out + report.notes)[:MANY])}")
    return report


def check_mask(mask: np.ndarray, frame: ExtractedFrame, complaint: str) -> None:
    """Whether a mask (H, W) of ids is of use for a frame. Raises DataError."""
    height, width = image_of(frame).shape[:2]
    if mask.shape != (height, width):
        raise DataError(f"it is {mask.shape[1]}x{mask.shape[0]}, the image of {frame.name} is {width}x{height}; masks are not scaled")
    if (mask == UNLABELLED).all():
        raise DataError(complaint or "nothing in it is labelled")


def check_new(mask: np.ndarray, before: Path | None) -> None:
    """Raises DataError where a frame has a mask that says otherwise: somebody's work would be lost."""
    if before is not None and not np.array_equal(read_mask(before), mask):
        raise DataError(f"{before} is there and says otherwise; --replace takes the new one")


def labels_of_bags(extraction: Extraction) -> LabelSet | None:
    """The label set of the bags' label topics, where they have one and the same."""
    paths = [extraction.root / bag["name"] / LABELS_FILE for bag in extraction.bags]
    found = {LabelSet.load(path) for path in paths if path.exists()}
    return found.pop() if len(found) == 1 else None


def own_labels(source: MaskSource) -> LabelSet:
    """The classes that a tool names, without its background, in grey levels of no meaning where it has no colours. Raises LabelError."""
    names = [name for name in source.classes if plain(name) != BACKGROUND]
    colours = source.colours if source.colours is not None else some_colours(len(source.classes))
    return LabelSet("masks", tuple(Label(name, tuple(colours[source.classes.index(name)].tolist())) for name in names))


def some_colours(count: int) -> np.ndarray:
    """(count, 3) uint8 colours that can be told apart, of classes that have none."""
    hues = (np.arange(count) * 0.618034 % 1.0 * 180.0).astype(np.uint8)  # the golden ratio keeps neighbours apart
    bright = np.where(np.arange(count) % 2, 150, 240).astype(np.uint8)
    return cv2.cvtColor(np.stack([hues, np.full_like(hues, 190), bright], -1)[None], cv2.COLOR_HSV2RGB)[0]


# ---- export


def export_masks(
    extraction: Extraction,
    out: Path,
    form: str,
    labels: LabelSet,
    mask_of: MaskOf = lambda frame, image: None,
    count: int = 0,
    on_frame: Callable[[], None] = lambda: None,
) -> list[ExtractedFrame]:
    """Frames for people to label: `<out>/images/<bag>/<stamp>.<suffix>` without EXIF data, labels.json, and what is labelled already.

    png: `<out>/masks/<bag>/<stamp>.png`. cvat: `<out>/annotations.zip`, and cvat_labels.json, the classes for CVAT's label constructor.
    coco: `<out>/annotations.json`. Where the classes' colours are black or not all different, those of the masks are changed a little.

    Args:
        form: one of FORMATS. mask_of: given a frame and its image (H, W, 3) uint8 RGB, its (H, W) uint8 ids of `labels`, or None.
        count: only so many frames, at even distances; 0: all. on_frame: called after each.

    Returns:
        The frames.

    Raises:
        SourceError: the folder is not empty or cannot be written. DataError: an image cannot be read, or there are no frames. LabelError:
            too many colours. Where it was empty, it is so again after any of them and after Ctrl-C.
    """
    if form not in FORMATS:
        raise SourceError(f"there is no mask format {form!r}; there are {', '.join(FORMATS)}")
    frames = spread(extraction.frames, count)
    if not frames:
        raise DataError(f"{extraction.root} has no frames")
    make_folder(out)
    if any(out.iterdir()):
        raise SourceError(f"{out} is not empty, and masks that people made there would be lost; export into a new folder")
    try:
        labels.save(out / LABELS_FILE)
        writer = WRITERS[form](out, labels)
        for frame in frames:
            image = image_of(frame)
            make_folder(out / "images" / frame.bag)
            save(out / "images" / frame.bag / frame.image.name, without_exif(frame.image.read_bytes()), synced=False)
            writer.add(f"{frame.bag}/{frame.image.name}", image.shape[:2], mask_of(frame, image))
            on_frame()
        writer.close()
    except BaseException:  # Ctrl-C too: the folder was empty, and is again
        for path in out.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    return frames


def without_exif(content: bytes) -> bytes:
    """A JPEG without its EXIF data, by whose orientation other programs turn the picture; another file as it is."""
    kept, at = content[:2], 2
    while kept[:2] == b"\xff\xd8" and content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] != b"\xda":  # the pixels begin
        if content[at + 1 : at + 2] == b"\xff":  # padding
            at += 1
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if not (content[at + 1 : at + 2] == b"\xe1" and content[at + 4 : at + 8] == b"Exif"):
            kept += content[at:end]
        at = end
    return kept + content[at:]


STARTS = ("", "model", "masks", "bag", "pseudo")
"""What people may start from: nothing, what a model says, people's earlier masks, the bag's label topic, pseudo-labels."""

MaskOf = Callable[[ExtractedFrame, np.ndarray], "np.ndarray | None"]
"""Given a frame and its image (H, W, 3) uint8 RGB: its (H, W) uint8 ids, or None."""
Remark = Callable[[Sequence[ExtractedFrame]], str]
"""Given frames: what their masks lack; empty: nothing."""


def ready_masks(
    extraction: Extraction, start: str, labels: LabelSet | None, model: str | Path, backend: str
) -> tuple[LabelSet, MaskOf, Remark]:
    """What is labelled already, for `export_masks`: the label set, what gives the masks, and what there is to say of them.

    Args:
        start: one of STARTS. labels: the label set to export in, by names; None: that of the masks, and where there are none that of
            people's earlier masks, else of the model. model, backend: of a student, or of a teacher, whose X is made of the frames' depth.

    Raises:
        SourceError: no such start. DataError: there are no such labels, or the model says nothing of any frame. LabelError: no class is in
            both sets. BundleError: no such model.
    """
    if start not in STARTS:
        raise SourceError(f"there is nothing {start!r} to start from; there are {', '.join(name for name in STARTS if name)}")
    if start == "model":
        teacher = Teacher(calibrations_of(extraction), Bundle.load(find_bundle(model)), backend)
        if extraction.frames and not any(map(teacher.speaks_of, extraction.frames)):
            raise DataError(f"no frame of {extraction.root} can be labelled: {teacher.bundle.manifest.needs_x}")
        source, mask_of, remark = teacher.bundle.manifest.labels, lambda frame, image: teacher.mask(frame), teacher.silence
    elif start:
        source, mask_of, remark = label_set_of(extraction, start), lambda frame, image: stored_mask(extraction, frame, start), no_remark
    else:
        before = extraction.root / "masks" / LABELS_FILE
        source = LabelSet.load(before) if before.exists() else Bundle.load(find_bundle(model)).manifest.labels
        return labels or source, lambda frame, image: None, no_remark
    if labels is None or labels.names == source.names:
        return labels or source, mask_of, remark
    mapping = LabelMapping.by_name(source, labels)

    def both(frames: Sequence[ExtractedFrame]) -> str:
        return "; ".join(filter(None, (remark(frames), mapping.lost)))

    return labels, lambda frame, image: None if (mask := mask_of(frame, image)) is None else mapping.lut[mask], both


def no_remark(frames: Sequence[ExtractedFrame]) -> str:
    return ""


def label_set_of(extraction: Extraction, kind: str) -> LabelSet:
    """Of labels of a kind, the same in all bags that have them. Raises DataError."""
    bags = sorted({frame.bag for frame in extraction.frames if extraction.label_path(frame, kind)})
    found = {extraction.label_set(kind, bag) for bag in bags}
    if len(found) != 1:
        what = "have different label sets" if found else "have none"
        raise DataError(f"labels of kind {kind!r} are asked for, but the bags of {extraction.root} {what}")
    return found.pop()


def stored_mask(extraction: Extraction, frame: ExtractedFrame, kind: str) -> np.ndarray | None:
    """(H, W) uint8 ids of labels of a kind; None where the frame has none. Raises DataError."""
    path = extraction.label_path(frame, kind)
    return None if path is None else read_mask(path)


def spread(frames: Sequence[ExtractedFrame], count: int) -> list[ExtractedFrame]:
    """At most `count` frames, from the first to the last at even distances; 0: all."""
    if not count or count >= len(frames):
        return list(frames)
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count).round().astype(int)]
