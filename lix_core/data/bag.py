"""Recorded bags: their frames with depth as X, out of an extraction or straight from the bags; of whole frames the samples are the same."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lix_core.bags.extract import KINDS, BagCalibration, Extraction, depth_units_of, image_of, is_replaced, name_of
from lix_core.bags.index import BagIndex, FramePlan, Options
from lix_core.bags.reader import bags_in
from lix_core.bags.sensors import FrameReader, open_frames, to_metres
from lix_core.data.readers import OWN_KINDS, Encoded, FrameSet, check_choice, check_x, require
from lix_core.data.sample import Sample
from lix_core.errors import DataError, LixError
from lix_core.files import read_mask
from lix_core.geometry.encodings import encode
from lix_core.labels import STREET, UNLABELLED, Label, LabelMapping, LabelSet
from lix_core.pairing import NS

SPLITS = ("train", "val", "all")
NO_LABELS, BEST = "none", "best"
GUARD = 0.1
"""Training stays this share of a block away from held-out blocks: what is seen a moment before is no new scene."""
OPEN_BAGS = 32
"""So many bags stay open while frames are read straight from them: processes have limits, and of compressed files each is a copy."""
Key = tuple[str, int]
"""A frame: its bag and its stamp [ns]."""
Parts = tuple[np.ndarray, "np.ndarray | None", "np.ndarray | None"]
"""Of a frame: image (H, W, 3) uint8 RGB, depth (H, W) uint16 as in files, labels (H, W) uint8 ids of their own set."""


class BagDataset(FrameSet):
    """Frames of recorded bags.

    root: a folder that `lix bag extract` wrote, or a bag, or a folder of bags, of which the same samples are made. An extraction leaves out
    what is wrong with single frames; straight from bags, a frame that cannot be made raises DataError when it is asked for, and labels that
    cannot be read are all 255.
    split: `val` are blocks of time that are held out, `train` what is in no such block of any bag nor near one, `all` every frame.
    x: a kind of lix_core.geometry.encodings, made of the frame's depth; frames without depth have no X. Where no frame has depth, or the
    kind is another data set's own, the data set has no X either, as data sets without geometry.
    labels: whose: `masks` (people's), `bag` (the label topic), `pseudo` (a teacher's), `best` (for each frame the first of these that it
    has), `none`. Only frames that have such labels are in the data set; with `none` all are. Straight from bags there are `bag` and `none`.
    held_out: share of each bag's blocks that are held out, by a hash of the block's number. block: how long one is [s].
    classes: names of the classes to keep, which become ids 0, 1, ...; needed where label sets of bags or makers differ. Or a whole label
    set, as `LabelSet.to_dict` has it: a class of it that nobody's labels have then just never occurs. Labels go into these by name, as
    `LabelSet.find` compares them; `notes` name the classes that are left unlabelled.
    reading: lix_core.bags.index.Options by name, for bags; an extraction was made with its own.

    Raises:
        DataError: no frame with such labels, an empty split, label sets that differ, or a damaged extraction. LabelError: no label set.
        SourceError: a bag that cannot be read, or gives no frames.
    """

    licence = "that of the recording"
    source = "lix bag extract BAG --out ROOT"

    def __init__(
        self,
        root: str | Path,
        split: str,
        x: str = "",
        labels: str = "bag",
        held_out: float = 0.2,
        block: float = 10.0,
        classes: Sequence[str] | Mapping[str, Any] = (),
        reading: Mapping[str, Any] | None = None,
    ):
        check_choice("split", split, SPLITS)
        check_choice("kind of labels", labels, (*KINDS, BEST, NO_LABELS))
        check_x(x, OWN_KINDS)
        check_blocks(held_out, block)
        self._frames: Frames = Extracted(root) if Extraction.is_one(root) else Recorded(root, reading or {})
        kinds = {NO_LABELS: ("",), BEST: KINDS}.get(labels, (labels,))
        every = range(len(self._frames.keys))
        found = ((place, next((k for k in kinds if not k or self._frames.has_labels(place, k)), None)) for place in every)
        chosen = {place: kind for place, kind in found if kind is not None}
        if not chosen:
            raise DataError(f"no frame of {root} has labels {labels!r}; `lix bag label` makes some, and {NO_LABELS!r} does without")
        self._places = [place for place in split_places(self._frames.keys, split, held_out, round(block * NS)) if place in chosen]
        if not self._places:
            raise DataError(
                f"split {split!r} of {root} has none of its {len(chosen)} frames: {100 * held_out:.0f} % of the blocks of {block} s are "
                "held out; make block shorter, or take another share"
            )
        self._kinds = [chosen[place] for place in self._places]
        with_x = x not in OWN_KINDS and any(map(self._frames.has_depth, every))
        super().__init__(["{}/{}".format(*self._frames.keys[place]) for place in self._places], x if with_x else "")
        self._check_x()
        self.notes: list[str] = []
        self.labels, self._tables = self._label_sets(classes)

    def _check_x(self) -> None:
        """Raises DataError where X is disparity and a bag has no pair to take the baseline of."""
        for bag in {self._frames.keys[place][0] for place in self._places}:
            if self.x_kind == "disparity" and not self._frames.calibration(bag).baseline:
                raise DataError(f"bag {bag} has no stereo pair, so no baseline to make disparity of depth with; take inverse_depth")

    def _label_sets(self, classes: Sequence[str] | Mapping[str, Any]) -> tuple[LabelSet, dict[tuple[str, str], np.ndarray]]:
        """The data set's label set, and for each kind and bag the table from their ids to its own."""
        sources = {(kind, self._frames.keys[place][0]) for place, kind in zip(self._places, self._kinds) if kind}
        sets = {source: self._frames.label_set(*source) for source in sorted(sources)}
        if not classes:
            by_names = {found.names: found for found in sets.values()}
            if len(by_names) > 1:
                unlike = "; ".join(f"{kind} of {bag}: {', '.join(found.names)}" for (kind, bag), found in sets.items())
                raise DataError(f"label sets differ; name the classes to keep in `classes`. {unlike}")
            return next(iter(sets.values()), STREET), {source: np.arange(256, dtype=np.uint8) for source in sets}
        if isinstance(classes, Mapping):
            target = LabelSet.from_dict(classes)
            return target, self._mapped(sets, target)
        known = {label.name: label for found in (STREET, *self._unread_sets(), *sets.values()) for label in found.labels}
        if not sets:  # without labels, classes are what those who train on these frames say
            known |= {name: Label(name, (40 * number % 256,) * 3) for number, name in enumerate(classes) if name not in known}
        if unknown := [name for name in classes if name not in known]:
            raise DataError(f"no label set here has the classes {', '.join(unknown)}; there are {', '.join(known)}")
        target = LabelSet("bag", tuple(known[name] for name in classes))
        return target, self._mapped(sets, target)

    def _mapped(self, sets: Mapping[tuple[str, str], LabelSet], target: LabelSet) -> dict[tuple[str, str], np.ndarray]:
        """The tables from the ids of label sets to those of `target`, by name; `notes` say what has none there."""
        mappings = {source: LabelMapping.by_name(found, target) for source, found in sets.items()}
        self.notes += dict.fromkeys(f"labels {kind!r}: {mapping.lost}" for (kind, _), mapping in mappings.items() if mapping.lost)
        return {source: mapping.lut for source, mapping in mappings.items()}

    def _unread_sets(self) -> Iterator[LabelSet]:
        """What labels of other kinds may be: without labels, `classes` may still name them."""
        for bag in dict.fromkeys(self._frames.keys[place][0] for place in self._places):
            for kind in reversed(KINDS):
                with suppress(DataError):
                    yield self._frames.label_set(kind, bag)

    def read(self, index: int) -> Sample:
        place, kind = self._places[index], self._kinds[index]
        bag = self._frames.keys[place][0]
        image, depth, labels = self._frames.read(place, kind, bool(self.x_kind))
        if labels is not None:
            labels = self._tables[kind, bag][labels]
        of = self._frames.calibration(bag)
        encoded: Encoded | None = None
        if depth is not None and of.camera is not None:
            encoded = encode(self.x_kind, depth=to_metres(depth), camera=of.camera, baseline=of.baseline)
        return self.sample(index, image, labels, encoded, of.camera)


def check_blocks(held_out: float, block: float) -> None:
    """Raises DataError where a share and a time [s] are not such as hold out blocks."""
    if not (0 <= held_out <= 1 and 1 <= block * NS < math.inf):
        raise DataError(f"held_out is a share from 0 to 1 and block a finite time of at least {1 / NS} s, got {held_out} and {block}")


def split_places(keys: Sequence[Key], split: str, held_out: float, block: int) -> list[int]:
    """Places of a split's frames. Blocks of `block` ns are held out whole: of each bag the share with the smallest hashes, and at least
    one where it has two or more.

    The hash is of the block's number alone, so that bags of one time hold out the same blocks. What one bag holds out, and what is near
    it, no other is trained on: they may be parts, or copies, of one drive.
    """
    if split == "all":
        return list(range(len(keys)))
    blocks: dict[str, set[int]] = {}
    for bag, stamp in keys:
        blocks.setdefault(bag, set()).add(stamp // block)
    held: dict[str, set[int]] = {}
    for bag, numbers in blocks.items():
        order = sorted(numbers, key=lambda number: hashlib.sha256(str(number).encode()).digest())
        least = 1 if held_out > 0 and len(order) > 1 else 0
        held[bag] = set(order[: max(least, round(held_out * len(order)))])
    if split == "val":
        return [place for place, (bag, stamp) in enumerate(keys) if stamp // block in held[bag]]
    guard = round(GUARD * block)
    every = set().union(*held.values())
    near = ({(stamp - guard) // block, stamp // block, (stamp + guard) // block} for _, stamp in keys)
    return [place for place, blocks_near in enumerate(near) if not blocks_near & every]


class Frames(Protocol):
    """Where a data set's frames are. keys: of the frames, in order; places are into these."""

    keys: list[Key]

    def has_depth(self, place: int) -> bool: ...

    def has_labels(self, place: int, kind: str) -> bool: ...

    def label_set(self, kind: str, bag: str) -> LabelSet: ...

    def calibration(self, bag: str) -> BagCalibration: ...

    def read(self, place: int, kind: str, depth: bool) -> Parts:
        """Parts of a frame; labels of a kind, "" for none, and depth only where it is wanted."""


class Extracted:
    """The frames of an extraction whose files are all there; DataError names the first that is not."""

    def __init__(self, root: str | Path):
        self._extraction = Extraction.open(root)
        cure = "extract the bag again"
        require((self._extraction.root / bag["name"] / "frames.jsonl" for bag in self._extraction.bags), cure)
        require((path for frame in self._extraction.frames for path in (frame.image, frame.depth, frame.labels) if path), cure)
        self.keys = [(frame.bag, frame.stamp) for frame in self._extraction.frames]
        self._calibrations = {bag["name"]: self._extraction.calibration(bag["name"]) for bag in self._extraction.bags}

    def has_depth(self, place: int) -> bool:
        return self._extraction.frames[place].depth is not None

    def has_labels(self, place: int, kind: str) -> bool:
        return self._extraction.label_path(self._extraction.frames[place], kind) is not None

    def label_set(self, kind: str, bag: str) -> LabelSet:
        return self._extraction.label_set(kind, bag)

    def calibration(self, bag: str) -> BagCalibration:
        return self._calibrations[bag]

    def read(self, place: int, kind: str, depth: bool) -> Parts:
        frame = self._extraction.frames[place]
        image, labels = image_of(frame), self._extraction.label_path(frame, kind) if kind else None
        return image, depth_units_of(frame, image.shape[:2]) if depth else None, read_mask(labels) if labels else None


class Recorded:
    """The frames of bags, made when they are asked for."""

    def __init__(self, root: str | Path, reading: Mapping[str, Any]):
        try:
            options = Options(**reading)
        except TypeError as error:
            raise DataError(f"options of reading bags: {error}") from None
        self._bags: dict[str, tuple[BagIndex, FrameReader]] = {}
        self._open: dict[str, FrameReader] = {}
        """Bags that are open, those used last at the end."""
        self._plans: list[FramePlan] = []
        self.keys: list[Key] = []
        self._calibrations: dict[str, BagCalibration] = {}
        entries: dict[str, dict[str, str]] = {}
        homes = [path.resolve() for path in bags_in(root)]
        for home in homes:
            index, plans, reader = open_frames(home, options)
            if is_replaced(home, index, homes):
                continue
            name = name_of(home, index.fingerprint, {index.fingerprint}, entries)
            entries[name] = {"path": str(home), "fingerprint": index.fingerprint}
            self._bags[name] = index, reader
            self._calibrations[name] = BagCalibration(reader.camera, index.baseline, index.frame_id)
            self._plans += plans
            self.keys += [(name, plan.stamp) for plan in plans]

    def has_depth(self, place: int) -> bool:
        return self._plans[place].geometry != "none"

    def has_labels(self, place: int, kind: str) -> bool:
        return kind == "bag" and "labels" in self._plans[place].members

    def label_set(self, kind: str, bag: str) -> LabelSet:
        found = self._bags[bag][0].labels
        if found is None:
            raise DataError(f"nothing in bag {bag} says what its label ids mean; extract it, and put a label set into its labels.json")
        return found

    def calibration(self, bag: str) -> BagCalibration:
        return self._calibrations[bag]

    def read(self, place: int, kind: str, depth: bool) -> Parts:
        bag = self.keys[place][0]
        reader = self._open.pop(bag, self._bags[bag][1])
        self._open[bag] = reader
        if len(self._open) > OPEN_BAGS:
            self._open.pop(next(iter(self._open))).close()
        ((_, frame),) = reader.read([self._plans[place]])
        if isinstance(frame, LixError):
            raise DataError(f"frame {'{}/{}'.format(*self.keys[place])}: {frame}")
        labels = frame.labels if frame.labels is not None else np.full(frame.image.shape[:2], UNLABELLED, np.uint8)
        return frame.image, frame.depth if depth else None, labels if kind else None
