"""Bags to files: the frames of one or more bags in a folder that data sets, annotators and pseudo-labels share.

    <out>/extraction.json            {"format", "lix", "options", "bags": [{"name", "path", "start", "end", "messages", ...}]}
    <out>/<bag>/camera.json          calibration of the rectified image: {"width", "height", "k", "baseline", "frame_id", "rectified"}
    <out>/<bag>/frames.jsonl         a frame a line: {"stamp", "reasons", "partners", "geometry", "image", "depth", "labels"}
    <out>/<bag>/image/<stamp>.png    rectified RGB; .jpg as it came where the bag has JPEG of a rectified camera
    <out>/<bag>/depth/<stamp>.png    uint16, metres * 256, 0 unknown
    <out>/<bag>/labels/<stamp>.png   uint8 ids, 255 unlabelled;  <out>/<bag>/labels.json: the label set
    <out>/masks/..., <out>/pseudo/.. labels of other makers: <bag>/<stamp>.png and labels.json in each

Stamps are nanoseconds. A frame's files are whole before its line is written, so that an extraction that was stopped goes on.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lix_core import __version__
from lix_core.bags.check import without_depth
from lix_core.bags.index import NO_GEOMETRY, BagIndex, FramePlan, Options, fingerprint
from lix_core.bags.reader import home_of, is_bag, repaired_of, whole_of
from lix_core.bags.sensors import BagFrame, FrameReader, open_frames
from lix_core.camera import Camera
from lix_core.errors import DataError, ImageError, LabelError, LixError, SourceError, first_line
from lix_core.files import expanded, locked, make_folder, save, save_image
from lix_core.labels import LABELS_FILE, LabelSet
from lix_core.pixels import decoded, read_compressed, to_rgb
from lix_core.workers import begin_work

FORMAT = 1
ROWS = "frames.jsonl"
KINDS = ("masks", "bag", "pseudo")
"""Makers of labels, the best first: people, the bag's label topic, a teacher."""
JOB_FRAMES = 8
"""Frames that a process makes in one go; their messages are in memory together."""
SAVE_EVERY_S = 2.0
"""How often the list of frames is written while it grows."""


@dataclass(frozen=True)
class ExtractedFrame:
    """One frame of an extraction. stamp: [ns]. depth, labels: None where there are none. partners: topic -> how much later [ns]."""

    bag: str
    stamp: int
    image: Path
    depth: Path | None
    labels: Path | None
    geometry: str
    reasons: tuple[str, ...]
    partners: dict[str, int]

    @property
    def name(self) -> str:
        """Unique in its extraction: `<bag>/<stamp>`."""
        return f"{self.bag}/{self.stamp}"


@dataclass(frozen=True)
class BagCalibration:
    """Of a bag's rectified images. camera: None where it is not known. baseline: of the stereo pair [m], 0 for none."""

    camera: Camera | None
    baseline: float
    frame_id: str


class Extraction:
    """A folder that `extract` wrote. frames: in order of bags and time.

    Raises:
        DataError: it is none, or a file of it is damaged; names it.
    """

    def __init__(self, root: Path, content: dict[str, Any]):
        self.root, self.options, self.bags = root, content["options"], content["bags"]
        self.frames = [frame for entry in self.bags for frame in read_frames(root, entry["name"])]

    @staticmethod
    def is_one(path: str | Path) -> bool:
        return (expanded(path) / "extraction.json").is_file()

    @classmethod
    def open(cls, path: str | Path) -> "Extraction":
        root = expanded(path)
        if not cls.is_one(root):
            raise DataError(f"{root / 'extraction.json'} is missing; make it with `lix bag extract BAG --out {root}`")
        content = read_json(root / "extraction.json")
        if not isinstance(content, dict) or content.get("format") != FORMAT or not {"options", "bags"} <= set(content):
            raise DataError(f"{root / 'extraction.json'} is of no format that this version reads ({FORMAT}); extract into another folder")
        return cls(root, content)

    def calibration(self, bag: str) -> BagCalibration:
        """Of a bag's images."""
        path = self.root / bag / "camera.json"
        data = read_json(path)
        try:
            k = data["k"]
            camera = Camera(data["width"], data["height"], k) if k else None
            return BagCalibration(camera, float(data["baseline"]), str(data["frame_id"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is no calibration of an extraction ({error}); delete it, and extract the bag again") from None

    def label_path(self, frame: ExtractedFrame, kind: str) -> Path | None:
        """Where a frame's labels of a kind (one of KINDS) are; None where it has none."""
        if kind == "bag":
            return frame.labels
        path = self.root / kind / frame.bag / f"{frame.stamp}.png"
        return path if path.exists() else None

    def label_set(self, kind: str, bag: str) -> LabelSet:
        """What the ids of labels of a kind mean. Raises DataError where nobody says."""
        path = self.root / (bag if kind == "bag" else kind) / LABELS_FILE
        if not path.exists():
            raise DataError(
                f'{path} is missing: it says what the ids mean, as {{"name": ..., "labels": [{{"id": 0, "name": ..., "color": ...}}]}}'
            )
        try:
            return LabelSet.from_dict(read_json(path))
        except LabelError as error:
            raise DataError(f"{path}: {error}") from None


def image_of(frame: ExtractedFrame) -> np.ndarray:
    """(H, W, 3) uint8 RGB image of a frame. Raises DataError."""
    try:
        return to_rgb(*read_compressed(frame.image.read_bytes(), frame.image.name))
    except (OSError, ImageError) as error:
        raise DataError(f"{frame.image} cannot be read ({first_line(error)}); delete it, and extract the bag again") from None


def depth_units_of(frame: ExtractedFrame, shape: tuple[int, int]) -> np.ndarray | None:
    """(H, W) uint16 depth of a frame, as it is in its file, H and W those of its image; None where it has none. Raises DataError."""
    if frame.depth is None:
        return None
    try:
        units = decoded(frame.depth.read_bytes(), cv2.IMREAD_UNCHANGED)
    except OSError as error:
        raise DataError(f"{frame.depth} cannot be read ({error.strerror}); delete it, and extract the bag again") from None
    if units is None or units.dtype != np.uint16 or units.shape != shape:
        raise DataError(f"{frame.depth} is no 16-bit image of {shape[1]}x{shape[0]}; delete it, and extract the bag again")
    return units


def read_json(path: Path) -> Any:
    """What a JSON file says. Raises DataError."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it, and extract the bags again") from None


def read_frames(root: Path, bag: str) -> Iterator[ExtractedFrame]:
    """The frames of a bag's frames.jsonl. Raises DataError where it is damaged."""
    folder = root / bag
    for row in read_rows(folder):
        try:
            depth, labels = (folder / row[name] if row[name] else None for name in ("depth", "labels"))
            partners = {topic: int(offset) for topic, offset in row["partners"].items()}
            reasons = tuple(row["reasons"])
            yield ExtractedFrame(bag, int(row["stamp"]), folder / row["image"], depth, labels, row["geometry"], reasons, partners)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{folder / ROWS} has a line that is no frame ({error!r}): {row!r:.80}") from None


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of frames.jsonl; none where it is not there yet. Raises DataError."""
    path = folder / ROWS
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line] if path.exists() else []
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete it, and extract the bag again") from None


@dataclass
class BagOutcome:
    """What became of one bag. left_out: stamp of the image [ns] -> why. done: frames made now; before: those that were there.

    warnings: what is missing in frames, and why -> in how many, the most first.
    """

    name: str
    path: Path
    done: int = 0
    before: int = 0
    with_depth: int = 0
    with_labels: int = 0
    left_out: dict[int, str] = field(default_factory=dict)
    warnings: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def lines(self, few: int = 5) -> list[str]:
        """What a user should know of it, a line each; of what is missing in frames, and of those left out, a few."""
        reasons = list(self.left_out.items())
        return [
            *(f"remark: {text}" for text in self.remarks),
            *(f"{count} frames: {text}" for text, count in list(self.warnings.items())[:few]),
            *(f"left out {stamp}: {why}" for stamp, why in reasons[:few]),
            *([f"left out {len(reasons) - few} more"] if len(reasons) > few else []),
            *(f"fault: {text}" for text in self.faults),
        ]


@dataclass
class Work:
    """One bag on its way into files."""

    folder: Path
    index: BagIndex
    plans: list[FramePlan]
    reader: FrameReader
    outcome: BagOutcome
    rows: dict[int, dict[str, Any]]

    def save_rows(self) -> None:
        lines = [json.dumps(self.rows[stamp]) + "\n" for stamp in sorted(self.rows)]
        save(self.folder / ROWS, "".join(lines).encode())


def extract(
    bags: Sequence[Path],
    out: Path,
    options: Options = Options(),
    jobs: int = 1,
    on_start: Callable[[int, int], None] = lambda frames, done: None,
    on_frame: Callable[[], None] = lambda: None,
) -> list[BagOutcome]:
    """Write the frames of bags into a folder; goes on with one that the same options began, and adds bags to it.

    Args:
        jobs: processes; 1 works in this one. Others are spawned: a script that calls this needs `if __name__ == "__main__"`.
        on_start: told how many frames there are, and how many of them are done already. on_frame: called after each other one.

    Returns:
        What became of each bag. A bag that cannot be read is among them, with its fault; the others are extracted.

    Raises:
        SourceError: a folder of other options, one that cannot be written or that another process extracts into, or no bag can be read.
    """
    make_folder(out)
    with locked(out, wait_s=0) as free:
        if not free:
            raise SourceError(f"another process extracts bags into {out}: wait for its end, or name another folder")
        return extract_all(bags, out, options, jobs, on_start, on_frame)


def extract_all(
    bags: Sequence[Path], out: Path, options: Options, jobs: int, on_start: Callable[[int, int], None], on_frame: Callable[[], None]
) -> list[BagOutcome]:
    """The same, in a folder that is there and no other process extracts into."""
    entries = begun_with(out, options)
    given = {expanded(path).resolve() for path in bags}
    found, works, others = [], [], []
    for path in bags:
        try:
            home = home_of(path).resolve()
            opened = open_frames(home, options)
            opened[0].remarks.extend(without_depth(*opened[:2], options))
            if is_replaced(home, opened[0], given):
                remarks = [f"left out: it is damaged, and {repaired_of(home).name} is what is whole of it"]
                others.append(BagOutcome(home.name, home, remarks=remarks))
            else:
                found.append((home, *opened))
        except SourceError as error:
            others.append(BagOutcome(expanded(path).name, expanded(path), faults=[str(error)]))
    marks = {index.fingerprint for _, index, *_ in found}
    for home, *opened in found:
        try:
            works.append(prepare(home, *opened, out, entries, marks))
        except SourceError as error:
            others.append(BagOutcome(home.name, home, faults=[str(error)]))
    if not works:
        raise SourceError("; ".join(fault for outcome in others for fault in outcome.faults) or "no bags are given")
    save_description(out, options, entries)
    on_start(sum(len(work.plans) for work in works), sum(work.outcome.before for work in works))
    make_frames(works, jobs, on_frame)
    for work in works:
        work.outcome.with_depth = sum(bool(row["depth"]) for row in work.rows.values())
        work.outcome.with_labels = sum(bool(row["labels"]) for row in work.rows.values())
        work.outcome.warnings = dict(Counter(text for row in work.rows.values() for text in row.get("warnings", ())).most_common())
    return [*(work.outcome for work in works), *others]


def begun_with(out: Path, options: Options) -> dict[str, dict[str, Any]]:
    """Name -> description of the bags that are in a folder already. Raises SourceError where it was begun with other options."""
    if not Extraction.is_one(out):
        return {}
    try:
        before = Extraction.open(out)
    except DataError as error:
        raise SourceError(str(error)) from None
    now = json.loads(json.dumps(asdict(options)))
    unlike = [f"{name} {before.options.get(name)!r}, not {value!r}" for name, value in now.items() if before.options.get(name) != value]
    if unlike:
        raise SourceError(f"{out} was extracted with other options: {'; '.join(unlike)}; give the same ones, or another folder")
    return {entry["name"]: entry for entry in before.bags}


def is_replaced(home: Path, index: BagIndex, given: Collection[Path]) -> bool:
    """Whether a bag is damaged, and what `lix bag repair` made of it is among those that are given: its frames would be there twice."""
    return index.salvaged and repaired_of(home) in given


def is_here(home: Path, mark: str, marks: Collection[str], entry: Mapping[str, Any]) -> bool:
    """Whether the bag at `home`, of the fingerprint `mark`, is that of a description: in its place, where it may have changed, or moved
    away from there, where another may be by now. marks: fingerprints of all the bags that are given, this one among them."""
    path = Path(entry["path"])
    if path == home:
        return entry["fingerprint"] == mark or entry["fingerprint"] not in marks
    return entry["fingerprint"] == mark and (not path.exists() or mark_of(path) != mark)


def mark_of(home: Path) -> str:
    """The fingerprint of a bag; "" where there is none that can be read."""
    try:
        return whole_of(home, fingerprint)
    except SourceError:
        return ""


def known_as(homes: Iterable[Path], entries: Sequence[Mapping[str, Any]]) -> dict[Path, str]:
    """What bags are called among those described; "" for one that is none of them."""
    marks = {home: mark_of(home) for home in homes}
    every = set(marks.values())
    return {home: next((e["name"] for e in entries if is_here(home, mark, every, e)), "") for home, mark in marks.items()}


def name_of(home: Path, mark: str, marks: Collection[str], entries: Mapping[str, Mapping[str, Any]]) -> str:
    """What the bag at `home` is called: as it was before it was repaired or moved; else as its folder or file, with a number where another
    is called so already.

    mark, marks: see `is_here`. entries: name -> description, with `path`, `fingerprint` and `faults` of the bag, of those that have names.
    """

    def was_damaged(entry: Mapping[str, Any]) -> bool:
        return bool(entry.get("faults")) and repaired_of(Path(entry["path"])) == home

    known = [name for name, entry in entries.items() if is_here(home, mark, marks, entry)]
    known = known or [name for name, entry in entries.items() if was_damaged(entry)]
    stem = home.name if home.is_dir() else home.stem
    # masks and pseudo are folders of the extraction itself.
    taken = {*entries, "masks", "pseudo"}
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, len(taken) + 2))
    return known[0] if known else next(name for name in names if name not in taken)


def prepare(
    home: Path,
    index: BagIndex,
    plans: list[FramePlan],
    reader: FrameReader,
    out: Path,
    entries: dict[str, dict[str, Any]],
    marks: Collection[str],
) -> Work:
    """Take up the frames of a bag that are done, and write what is common to all of them. Raises SourceError."""
    name = name_of(home, index.fingerprint, marks, entries)
    for other, entry in entries.items():
        if other != name and entry["fingerprint"] == index.fingerprint:
            index.remarks.append(f"it looks like a copy of bag {other} ({entry['path']}): all its frames are here twice")
    folder = out / name
    if is_bag(out) or is_bag(folder) or out.resolve().is_relative_to(home) or home.is_relative_to(folder.resolve()):
        raise SourceError(f"frames of bag {home} would be written to {folder}, among the files of a bag; give another --out")
    if name not in entries and folder.is_dir() and any(folder.iterdir()) and not (folder / ROWS).exists():
        raise SourceError(f"{folder} is not empty and not of frames of a bag, and files in it would be replaced; give another --out")
    make_folder(folder)
    entry = {
        "name": name,
        "path": str(home),
        "start": index.start,
        "end": index.end,
        "messages": index.messages,
        "fingerprint": index.fingerprint,
        "topics": {role: topic for role, topic in asdict(index.topics).items() if topic},
        "remarks": index.remarks,
        "faults": index.faults,
    }
    same = entries.get(name, {}).get("fingerprint") == index.fingerprint
    rows = {row["stamp"]: row for row in read_rows(folder)} if same else {}
    wanted = {plan.stamp for plan in plans}
    rows = {stamp: row for stamp, row in rows.items() if stamp in wanted and files_exist(folder, row)}
    entries[name] = entry
    strays = {path.stem for path in (out / "masks" / name).glob("*.png")} - {str(stamp) for stamp in wanted}
    if strays:
        index.remarks.append(f"{len(strays)} masks in {out / 'masks' / name} are of no frame of this bag")
    outcome = BagOutcome(name, index.path, before=len(rows), remarks=index.remarks, faults=index.faults)
    work = Work(folder, index, plans, reader, outcome, rows)
    # Before the new fingerprint is: it must never stand beside frames of a bag that changed since.
    work.save_rows()
    for kind in ("image", "depth", "labels"):
        (folder / kind).mkdir(exist_ok=True)
    save(folder / "camera.json", json.dumps(calibration(index), indent=1).encode())
    if index.labels is not None:
        index.labels.save(folder / LABELS_FILE)
    return work


def files_exist(folder: Path, row: dict[str, Any]) -> bool:
    """Whether the files of a frame's line are there, and not empty, as a power cut may leave them."""
    files = [folder / row[kind] for kind in ("image", "depth", "labels") if row[kind]]
    return all(file.exists() and file.stat().st_size for file in files)


def calibration(index: BagIndex) -> dict[str, Any]:
    """What camera.json says of a bag's images; k is null where no calibration is known."""
    height, width = index.size
    camera = index.camera
    how = "unknown: no usable camera_info"
    if camera is not None:
        how = "as it came" if camera.is_rectified else f"from {index.topics.image} by its {camera.distortion_model} calibration"
    return {
        "width": width,
        "height": height,
        "k": list(camera.rectified().k) if camera else None,
        "baseline": index.baseline,
        "frame_id": index.frame_id,
        "rectified": how,
    }


def save_description(out: Path, options: Options, entries: dict[str, dict[str, Any]]) -> None:
    content = {"format": FORMAT, "lix": __version__, "options": asdict(options), "bags": list(entries.values())}
    save(out / "extraction.json", json.dumps(content, indent=1).encode())


def make_frames(works: list[Work], jobs: int, on_frame: Callable[[], None]) -> None:
    """Make what is missing, and write it down as it comes."""
    todo = []
    for place, work in enumerate(works):
        # As they were recorded: where the clock was set back, frames that follow each other by stamp lie far apart in the bag.
        missing = sorted((plan for plan in work.plans if plan.stamp not in work.rows), key=lambda plan: plan.members["image"])
        todo += [(place, missing[start : start + JOB_FRAMES]) for start in range(0, len(missing), JOB_FRAMES)]
    saved = time.monotonic()
    try:
        for place, results in results_of(works, todo, jobs):
            outcome = works[place].outcome
            for stamp, result in results:
                if isinstance(result, dict):
                    works[place].rows[stamp] = result
                    outcome.done += 1
                else:
                    outcome.left_out[stamp] = result
                on_frame()
            if time.monotonic() - saved > SAVE_EVERY_S:
                works[place].save_rows()
                saved = time.monotonic()
    finally:
        for work in works:
            work.save_rows()


Results = list[tuple[int, "dict[str, Any] | str"]]
"""Stamp -> the frame's line of frames.jsonl, or why there is none."""


def results_of(works: list[Work], todo: list[tuple[int, list[FramePlan]]], jobs: int) -> Iterator[tuple[int, Results]]:
    """Which bag, and its results, of each job; in any order. todo: bag by bag; a process has one of them open at a time."""
    crew = [(work.folder, work.reader) for work in works]
    if min(jobs, len(todo)) <= 1:
        for place, of_bag in groupby(todo, key=itemgetter(0)):
            with closing(works[place].reader):
                for _, plans in of_bag:
                    yield place, make_job(*crew[place], plans)
        return
    # A forked child of a process that has used OpenCV's threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(todo)), context, join_crew, (crew,))
    try:
        futures: dict[Future, int] = {pool.submit(make_job_at, place, plans): place for place, plans in todo}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise SourceError("a process that makes frames died (is memory short?); the frames that are done stay: run it again") from None
    finally:
        pool.shutdown(cancel_futures=True)


CREW: list[tuple[Path, FrameReader]] = []
"""In a worker process: folder and reader of each bag."""


def join_crew(crew: list[tuple[Path, FrameReader]]) -> None:
    """First in a worker process."""
    begin_work()
    cv2.setNumThreads(1)
    CREW.extend(crew)


def make_job_at(place: int, plans: list[FramePlan]) -> Results:
    for other, (_, reader) in enumerate(CREW):
        if other != place:
            reader.close()
    return make_job(*CREW[place], plans)


def make_job(folder: Path, reader: FrameReader, plans: list[FramePlan]) -> Results:
    """Make and write some frames. Raises SourceError where files cannot be written, or the bag cannot be read any more."""
    results: Results = []
    for plan, frame in reader.read(plans):
        results.append((plan.stamp, str(frame) if isinstance(frame, LixError) else write_frame(folder, plan, frame)))
    return results


def write_frame(folder: Path, plan: FramePlan, frame: BagFrame) -> dict[str, Any]:
    """Write a frame's files; its line of frames.jsonl."""
    image = f"image/{plan.stamp}.{'png' if frame.jpeg is None else 'jpg'}"
    if frame.jpeg is None:
        save_image(folder / image, frame.image)
    else:
        save(folder / image, frame.jpeg, synced=False)
    row = {
        "stamp": plan.stamp,
        "reasons": list(plan.reasons),
        "partners": plan.offsets,
        "geometry": plan.geometry if frame.depth is not None else NO_GEOMETRY,
        "image": image,
        "depth": None,
        "labels": None,
    }
    for kind in ("depth", "labels"):
        if (pixels := getattr(frame, kind)) is not None:
            row[kind] = f"{kind}/{plan.stamp}.png"
            save_image(folder / row[kind], pixels)
    return row | ({"warnings": list(frame.warnings)} if frame.warnings else {})
