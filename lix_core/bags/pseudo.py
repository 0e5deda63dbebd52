"""Pseudo-labels: what a teacher is sure of, and geometry does not contradict; the rest is unlabelled.

Three steps. The teacher sees each frame several times, mirrored and at several scales, and its probabilities are averaged. Each class gets
a threshold of confidence. Then the ground plane of the frame's depth is asked: what lies on it cannot be a car, what stands above it
cannot be road.

    <extraction>/pseudo/<bag>/<stamp>.png     uint8 ids, 255 unlabelled;  labels.json
    <extraction>/pseudo/pseudo.json           how they were made, and how much of each class was kept; written last
    <extraction>/pseudo/sheet.jpg             some frames: image, teacher, what is kept, why the rest is not
    <extraction>/pseudo/.teacher/             what the teacher said, kept so that a run that was stopped, or has other thresholds, goes on
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lix_core import __version__, viz
from lix_core.bags.extract import ExtractedFrame, Extraction, image_of
from lix_core.bags.masks import did_you_mean, plain, spread
from lix_core.bags.teacher import Teacher, calibrations_of, depth_of
from lix_core.camera import Camera
from lix_core.errors import DataError, LabelError, SourceError, first_line
from lix_core.files import locked, make_folder, read_mask, save, save_image
from lix_core.geometry.ground import Ground, fit_ground
from lix_core.labels import LABELS_FILE, UNLABELLED, Label, LabelMapping, LabelSet
from lix_core.options import check_ranges, option
from lix_core.runtime.backends import DEFAULT_BACKEND
from lix_core.runtime.bundle import Bundle, find_bundle
from lix_core.workers import begin_work

FORMAT = 1
FLAT = (
    *("road", "driveable surface", "pavement", "sidewalk", "terrain", "parking", "lane", "lane marking", "road marking", "crosswalk"),
    *("ground", "grass", "pothole"),
)
STANDING = (
    *("sky", "building", "bridge", "wall", "fence", "guard rail", "barrier"),
    *("pole", "sign", "traffic sign", "traffic light", "traffic cone"),
    *("car", "truck", "bus", "van", "trailer", "train", "construction vehicle"),
    *("motorcycle", "bicycle", "cyclist", "rider", "pedestrian", "person"),
    *("GuardRail", "TrafficSign", "TrafficLight"),  # in one word, as Virtual KITTI has them
)
"""Classes that lie on the ground, and classes that do not. Trees are in neither: many label sets call grass and hedges so."""

REASONS = LabelSet(
    "reasons",
    (
        Label("kept", (60, 160, 75)),
        Label("unsure", (90, 90, 90)),
        Label("lies on the ground", (240, 160, 0)),
        Label("stands above the ground", (215, 35, 60)),
    ),
)
"""What became of a pixel, and the colours of the contact sheet. 255: the teacher's class has no counterpart in the label set."""
KEPT, UNSURE, LIES, STANDS = range(4)
LEVELS = 256
"""Confidence is kept as a byte."""
SHEET_WIDTH = 480


@dataclass(frozen=True)
class PseudoSettings:
    """How pseudo-labels are made. Raises LabelError where a value is out of its range."""

    flip: bool = option(True, "Average with the mirrored image.")
    scales: tuple[float, ...] = option((0.75, 1.0, 1.25), "Average over these scales of what the network sees; a fixed canvas has 1 alone.")
    confidence: float = option(0.9, "A pixel that is this sure is kept, whatever its class.", least=0, most=1)
    share: float = option(
        0.0, "Where a class has less above `confidence`, its surest pixels are kept, up to this share of them; 0: not.", least=0, most=1
    )
    floor: float = option(0.5, "With `share`: no pixel less sure than this is kept.", least=0, most=1)
    geometry: bool = option(True, "Check against the ground plane where a frame has depth.")
    flat: tuple[str, ...] = option(FLAT, "Classes that cannot stand above the ground.")
    standing: tuple[str, ...] = option(STANDING, "Classes that cannot lie on the ground.")
    lying: float = option(0.1, "What is within this of the ground plane lies on it [m].", least=0)
    above: float = option(0.4, "What is this high above it stands [m].", least=0)
    growth: float = option(0.01, "`above` grows by this per metre of depth [m].", least=0)
    rise: float = option(5.0, "What is seen so high over the plane's horizon is above it: the steepest road [degrees].", least=0, most=90)
    farthest: float = option(40.0, "Beyond, nothing is checked [m].", least=1)
    margin: int = option(2, "Pixels that an edge in height must be away: depth is not sharp there.", least=0)

    def __post_init__(self) -> None:
        for name in ("scales", "flat", "standing"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_ranges(self, "pseudo-labels", LabelError)
        if not self.scales or not all(0.1 <= scale <= 4 for scale in self.scales):
            raise LabelError(f"scales of pseudo-labels must be one or more numbers of 0.1 to 4, got {list(self.scales)}")


@dataclass
class PseudoReport:
    """What came of it.

    labels: of the ids. counts: (C, 4) int64 pixels of each class, by what became of them (REASONS). thresholds: (C,) least confidence.
    frames: with pseudo-labels; with_depth: of these; ground: of these, with a ground plane. left_out: frame -> why it has none.
    notes: what was asked for and could not be had.
    """

    labels: LabelSet
    counts: np.ndarray
    thresholds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    frames: int = 0
    with_depth: int = 0
    ground: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """For each class: its name, threshold, pixels that the teacher gave it, and the shares of these by what became of them."""
        totals = np.maximum(self.counts.sum(1), 1)
        return [
            {
                "class": name,
                "threshold": round(float(self.thresholds[i]), 3),
                "pixels": int(self.counts[i].sum()),
                **{reason: round(float(self.counts[i, r] / totals[i]), 4) for r, reason in enumerate(REASONS.names)},
            }
            for i, name in enumerate(self.labels.names)
        ]


def make_pseudo_labels(
    extraction: Extraction,
    model: str | Path,
    settings: PseudoSettings = PseudoSettings(),
    mapping: Callable[[LabelSet], LabelMapping] | None = None,
    backend: str = DEFAULT_BACKEND,
    jobs: int = 1,
    sheet_rows: int = 8,
    on_start: Callable[[int], None] = lambda steps: None,
    on_step: Callable[[], None] = lambda: None,
) -> PseudoReport:
    """Pseudo-labels of all frames, but for those without depth where the model never was without X; goes on where a run with the same
    teacher was stopped. Where they are made depends on nothing but that.

    Args:
        model: a teacher's bundle (RGB + X) or a student's, by name or path.
        mapping: from the model's label set to that of the pseudo-labels; None: they are in the model's.
        jobs: processes; 1 works in this one. Others are spawned: a script that calls this needs `if __name__ == "__main__"`.
        sheet_rows: frames on the contact sheet. on_start: told how many steps there are; on_step: called after each.

    Raises:
        DataError: no frame can be labelled, or X cannot be made. LabelError: classes that are not there. BundleError: no such model.
        SourceError: the extraction cannot be written, another process makes pseudo-labels of it, or one of this run's died.
    """
    bundle = Bundle.load(find_bundle(model))
    source = bundle.manifest.labels
    to = mapping(source) if mapping else LabelMapping(source, source, identity(len(source)))
    if bundle.manifest.size.height:
        settings = replace(settings, scales=(1.0,))
    teacher = Teacher(calibrations_of(extraction), bundle, backend, settings.scales, settings.flip)
    crew = Crew(extraction.root, teacher, settings, to.target, to.lut, roles_of(to.target, settings))
    folder = extraction.root / "pseudo"
    make_folder(folder)
    with locked(folder, wait_s=0) as free:
        if not free:
            raise SourceError(f"another process makes pseudo-labels in {folder}: wait for its end")
        return label_all(extraction, crew, jobs, sheet_rows, on_start, on_step)


def label_all(
    extraction: Extraction, crew: Crew, jobs: int, sheet_rows: int, on_start: Callable[[int], None], on_step: Callable[[], None]
) -> PseudoReport:
    """`make_pseudo_labels` in a folder that no other run writes into."""
    folder, bundle, labels = extraction.root / "pseudo", crew.teacher.bundle, crew.labels
    begin_teacher(folder / ".teacher", extraction, bundle, crew.settings)
    # The first thing that a new run takes away is the last that it writes.
    (folder / "pseudo.json").unlink(missing_ok=True)
    frames = [frame for frame in extraction.frames if crew.teacher.speaks_of(frame)]
    on_start(2 * len(frames))
    report = PseudoReport(labels, np.zeros((len(labels), len(REASONS)), np.int64), notes=remarks(extraction, crew))
    with Team(crew, min(jobs, len(frames))) as team:
        sure = np.zeros((len(labels), LEVELS), np.int64)
        taught = []
        for frame, result in team.each("teach", frames, on_step):
            if isinstance(result, str):
                report.left_out[frame.name] = result
            else:
                taught.append(frame)
                sure += result
        thresholds = thresholds_of(sure, crew.settings)
        for frame in extraction.frames:  # old masks, whose ids the new label set may not mean
            (folder / f"{frame.name}.png").unlink(missing_ok=True)
        labels.save(folder / LABELS_FILE)
        done = []
        for frame, result in team.each("decide", taught, on_step, thresholds):
            if isinstance(result, str):
                report.left_out[frame.name] = result
            else:
                done.append(frame)
                report.counts += result[0]
                report.ground += result[1]
    for name in report.left_out:
        (folder / f"{name}.png").unlink(missing_ok=True)
    if not done:
        why = "; ".join(list(report.left_out.values())[:3]) or (bundle.manifest.needs_x if extraction.frames else "there are none")
        raise DataError(f"no frame of {extraction.root} can be labelled: {why}")
    report.thresholds = thresholds / (LEVELS - 1)
    report.frames, report.with_depth = len(done), sum(frame.depth is not None for frame in done)
    save_image(folder / "sheet.jpg", sheet([crew.row(frame, thresholds) for frame in spread(done, sheet_rows)], labels))
    save(folder / "pseudo.json", (json.dumps(record(bundle, crew.settings, report), indent=1) + "\n").encode())
    return report


def identity(count: int) -> np.ndarray:
    lut = np.full(256, UNLABELLED, np.uint8)
    lut[:count] = range(count)
    return lut


def record(bundle: Bundle, settings: PseudoSettings, report: PseudoReport) -> dict[str, Any]:
    """How pseudo-labels were made, and what came of it, as plain data."""
    model = {"name": bundle.manifest.name, "path": str(bundle.path), "sha256": hashlib.sha256(bundle.graph).hexdigest()}
    counts = {"frames": report.frames, "with_depth": report.with_depth, "with_ground": report.ground}
    said = {"left_out": report.left_out, "notes": report.notes}
    return {"format": FORMAT, "lix": __version__, "model": model, "settings": asdict(settings), **counts, "classes": report.rows(), **said}


# ---- the teacher


def begin_teacher(folder: Path, extraction: Extraction, bundle: Bundle, settings: PseudoSettings) -> None:
    """Keep what the same teacher said in an earlier run about the same images in the same way, and nothing else. Raises SourceError."""
    made = {
        "model": hashlib.sha256(bundle.graph + json.dumps(bundle.manifest.to_dict(), sort_keys=True).encode()).hexdigest(),
        "flip": settings.flip,
        "scales": list(settings.scales),
        "extraction": extraction.options,
        "bags": {bag["name"]: bag.get("fingerprint") for bag in extraction.bags},
    }
    content = (json.dumps(made, sort_keys=True, default=str) + "\n").encode()
    mark = folder / "made.json"
    with suppress(OSError):
        if mark.read_bytes() == content:
            return
    if folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise SourceError(f"cannot delete {folder}, which is of another run: {first_line(error)}") from None
    make_folder(folder)
    save(mark, content)


# ---- thresholds


def thresholds_of(sure: np.ndarray, settings: PseudoSettings) -> np.ndarray:
    """(C,) int: the least confidence, 0..255, of each class.

    `confidence` for all; with `share`, a class with less above it is taken down to its own quantile, but never beneath `floor`, so that
    what the teacher is seldom sure of, rare classes mostly, is not lost. (Class-balanced self-training, Zou et al., ECCV 2018,
    arXiv:1810.07911.)

    sure: (C, 256) pixels by class and confidence.
    """
    top = LEVELS - 1
    thresholds = np.full(len(sure), int(np.ceil(settings.confidence * top)))
    if settings.share > 0:
        # How many are at least so sure: the highest level at which the wanted share is reached.
        reached = np.cumsum(sure[:, ::-1], 1)[:, ::-1] >= settings.share * sure.sum(1, keepdims=True)
        own = np.where(reached, np.arange(LEVELS), 0).max(1)
        thresholds = np.minimum(thresholds, np.maximum(own, int(np.ceil(settings.floor * top))))
    return thresholds


# ---- geometry


def roles_of(labels: LabelSet, settings: PseudoSettings) -> np.ndarray:
    """(256,) uint8: LIES for classes that cannot lie on the ground, STANDS for those that cannot stand above it, KEPT for others.

    Raises:
        LabelError: a name that was given (not one of lix's own) is not a class, or is given as both.
    """
    roles = np.full(256, KEPT, np.uint8)
    plain_names = np.array([plain(name) for name in labels.names])
    for names, usual, role in ((settings.standing, STANDING, LIES), (settings.flat, FLAT, STANDS)):
        for name in names:
            if (ids := np.flatnonzero(plain_names == plain(name))).size:
                if not np.isin(roles[ids], (KEPT, role)).all():
                    raise LabelError(f"class {name!r} is given as flat and as standing; it can be one of them, or neither")
                roles[ids] = role
            elif names != usual:
                raise LabelError(f"no class {name!r} in label set {labels.name!r}{did_you_mean(name, labels.names)}")
    return roles


def contradicted(
    mask: np.ndarray, depth: np.ndarray, camera: Camera, ground: Ground, roles: np.ndarray, settings: PseudoSettings
) -> np.ndarray:
    """What geometry says against labels.

    A pixel lies on the ground, or stands above it, only where all that is known around it within `margin` does: the lowest centimetres of
    a car, and depth that bleeds over an edge, say nothing. What is seen higher than `rise` over the plane's horizon stands above it,
    whatever its depth, known or not.

    Shape:
        mask (H, W) uint8 ids, depth (H, W) float32 [m], roles (256,) uint8 -> (H, W) uint8: KEPT, LIES or STANDS
    """
    height = ground.above(depth, camera)
    with np.errstate(invalid="ignore"):
        near = depth < settings.farthest
        lies = near & (np.abs(height) < settings.lying)
        stands = near & (height > settings.above + settings.growth * depth)
    unknown = ~np.isfinite(height)
    kernel = np.ones((2 * settings.margin + 1,) * 2, np.uint8)
    role = cv2.LUT(mask, roles)
    reasons = np.full(mask.shape, KEPT, np.uint8)
    for found, reason in ((lies, LIES), (stands, STANDS)):
        around = cv2.erode((found | unknown).view(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE).view(bool)
        reasons[found & around & (role == reason)] = reason
    reasons[(ground.elevation(camera) > settings.rise) & (role == STANDS)] = STANDS
    return reasons


# ---- frames, one by one


@dataclass(frozen=True)
class Crew:
    """What a process needs to label a frame; it can be sent to another one.

    labels: of the pseudo-labels. lut: (256,) uint8, the model's ids -> theirs. roles: as `roles_of`.
    """

    root: Path
    teacher: Teacher
    settings: PseudoSettings
    labels: LabelSet
    lut: np.ndarray
    roles: np.ndarray

    def teach(self, frame: ExtractedFrame) -> np.ndarray:
        """Ask the teacher about a frame, or read what it said: (C, 256) int64 pixels by class and confidence. Raises DataError."""
        mask, confidence = self.said(frame)
        return pair_counts(self.lut[mask], confidence, len(self.labels), LEVELS)

    def decide(self, frame: ExtractedFrame, thresholds: np.ndarray) -> tuple[np.ndarray, bool]:
        """Write a frame's pseudo-label: (C, 4) int64 pixels by class and what became of them, and whether there is a ground plane."""
        ids, reasons, has_ground = self.judge(frame, thresholds)
        path = self.root / "pseudo" / frame.bag / f"{frame.stamp}.png"
        make_folder(path.parent)
        save_image(path, kept(ids, reasons))
        return pair_counts(ids, reasons, len(self.labels), len(REASONS)), has_ground

    def row(self, frame: ExtractedFrame, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For the contact sheet: image, the teacher's ids, and what becomes of each pixel."""
        return image_of(frame), *self.judge(frame, thresholds)[:2]

    def said(self, frame: ExtractedFrame) -> tuple[np.ndarray, np.ndarray]:
        """The teacher's classes (H, W) uint8, and how sure it is (H, W) uint8. Raises DataError."""
        path = self.root / "pseudo" / ".teacher" / frame.bag / f"{frame.stamp}.png"
        try:
            both = read_mask(path)
        except DataError:  # not asked yet, or the file is damaged
            odds = self.teacher.probabilities(frame)
            both = np.vstack([odds.argmax(0).astype(np.uint8), cv2.convertScaleAbs(odds.max(0), alpha=LEVELS - 1)])
            make_folder(path.parent)
            save_image(path, both)
        return both[: len(both) // 2], both[len(both) // 2 :]

    def judge(self, frame: ExtractedFrame, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """The teacher's ids (H, W) uint8, what becomes of each pixel (H, W) uint8, and whether there is a ground plane."""
        mask, confidence = self.said(frame)
        ids = self.lut[mask]
        least = np.full(256, LEVELS, np.int64)
        least[: len(thresholds)] = thresholds
        reasons = np.where(confidence >= least[ids], np.uint8(KEPT), np.uint8(UNSURE))
        reasons[ids == UNLABELLED] = UNLABELLED
        calibration = self.teacher.calibrations[frame.bag]
        depth = depth_of(frame, calibration) if self.settings.geometry else None
        ground = None if depth is None else fit_ground(depth, calibration.camera, self.settings.farthest)
        if ground is not None:
            against = contradicted(ids, depth, calibration.camera, ground, self.roles, self.settings)
            # What the teacher is not sure of is counted as that: the rest is what geometry alone takes away.
            reasons = np.where(reasons == KEPT, against, reasons)
        return ids, reasons, ground is not None


def kept(ids: np.ndarray, reasons: np.ndarray) -> np.ndarray:
    """(H, W) uint8: the ids of pixels that are kept, 255 for the others."""
    return np.where(reasons == KEPT, ids, np.uint8(UNLABELLED))


def pair_counts(ids: np.ndarray, values: np.ndarray, classes: int, levels: int) -> np.ndarray:
    """(classes, levels) int64: of labelled pixels, how many have an id and a value."""
    labelled = ids != UNLABELLED
    pairs = ids[labelled].astype(np.int64) * levels + values[labelled]
    return np.bincount(pairs, minlength=classes * levels).reshape(classes, levels)


def remarks(extraction: Extraction, crew: Crew) -> list[str]:
    """What is asked for and cannot be had."""
    notes, manifest, count = [], crew.teacher.bundle.manifest, len(extraction.frames)
    without = sum(not crew.teacher.has_depth(frame) for frame in extraction.frames)
    if manifest.size.height:
        notes.append(f"model {manifest.name!r} has a canvas of fixed size: it is run at scale 1 alone")
    if silence := crew.teacher.silence(extraction.frames):
        notes.append(silence)
    elif without and manifest.x:
        notes.append(f"{without} of {count} frames have no depth: for them the teacher goes by the image alone")
    if without and crew.settings.geometry and not silence:
        notes.append(f"{without} of {count} frames have no depth: they are not checked against the ground")
    for role, kind, where in ((STANDS, "flat", "standing above"), (LIES, "standing", "lying on")):
        if crew.settings.geometry and not (crew.roles == role).any():
            notes.append(f"no class is known to be {kind}: nothing is dropped for {where} the ground; name some with {kind}")
    return notes


class Team:
    """Processes, each with the crew's model; with one job, this one. For use with `with`."""

    def __init__(self, crew: Crew, jobs: int):
        self._crew, self._pool = crew, None
        if jobs > 1:
            # A forked child of a process that has used an inference library's or OpenCV's threads may hang.
            self._pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), join_team, (crew,))

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def each(
        self, step: str, frames: Sequence[ExtractedFrame], on_step: Callable[[], None], *options: Any
    ) -> Iterator[tuple[ExtractedFrame, Any]]:
        """A method of the crew on each frame, in order: what it returns, or in words why it cannot. Raises SourceError."""
        work = partial(take_step, None if self._pool else self._crew, step, options)
        try:
            for frame, result in zip(frames, (self._pool.map if self._pool else map)(work, frames)):
                on_step()
                yield frame, result
        except BrokenProcessPool:
            raise SourceError("a process that labels frames died (is memory short?); what is done stays: run it again") from None


MEMBER: list[Crew] = []
"""In a worker process: its crew."""


def join_team(crew: Crew) -> None:
    begin_work()
    cv2.setNumThreads(1)
    MEMBER.append(crew)


def take_step(crew: Crew | None, step: str, options: tuple[Any, ...], frame: ExtractedFrame) -> Any:
    try:
        return getattr(crew or MEMBER[0], step)(frame, *options)
    except DataError as error:
        return str(error)


# ---- the contact sheet


def sheet(rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], labels: LabelSet) -> np.ndarray:
    """Frames one beneath the other: image, teacher, what is kept, why the rest is not; (h, w, 3) uint8 RGB.

    rows: image (H, W, 3) uint8 RGB, the teacher's ids (H, W) uint8, what becomes of each pixel (H, W) uint8.
    """
    cells = []
    for image, ids, reasons in rows:
        grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        why = viz.overlay(grey, reasons, REASONS, 0.6)
        cells += [image, viz.colorize(ids, labels), viz.colorize(kept(ids, reasons), labels), why]
    body = viz.contact_sheet(cells, labels, columns=4, cell_width=SHEET_WIDTH)
    titles = np.full((26, body.shape[1], 3), 24, np.uint8)
    for column, title in enumerate(("image", "teacher", "kept", "why not")):
        at = (column * body.shape[1] // 4 + 8, 18)
        cv2.putText(titles, title, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (235, 235, 235), 1, cv2.LINE_AA)
    return np.vstack([titles, body, viz.legend(REASONS, body.shape[1])])
