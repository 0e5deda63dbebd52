"""What a bag is good for: rates, gaps, how its sensors fit together in time, and how many frames with depth and labels come of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lix_core.bags.index import AUTO, GEOMETRIES, NO_GEOMETRY, BagIndex, FramePlan, Options, Stream, nearest, offset_of, pairs_of
from lix_core.bags.sensors import open_frames
from lix_core.errors import SourceError
from lix_core.pairing import NS

GAP = 2.5
"""An interval of so many usual ones is a gap: more than one message is missing."""
FEW = 0.95
"""A smaller share of images with a partner is remarked on."""


@dataclass(frozen=True)
class StreamReport:
    """A topic in time. rate: by its median interval [Hz], 0 for fewer than two messages. gaps: intervals of more than GAP usual ones;
    missing: about so many messages are missing in them. longest: [s], and longest_at: when it begins, [s] since the bag's first message."""

    role: str
    topic: str
    messages: int
    rate: float
    gaps: int
    missing: int
    longest: float
    longest_at: float
    repeated: int
    backwards: int


@dataclass(frozen=True)
class PairReport:
    """How a topic fits the images in time.

    paired: images with a partner. alone: images without. first_alone: when the first of those were taken [s] since the bag's first image.
    offset: how much later its messages typically are than the images nearest to them: median [s]. spread: 95 % of the differences are
    within so much of the median [s]. interval: between its messages, median [s], 0 for fewer than two. overlap: how long both were
    recorded [s].
    """

    role: str
    topic: str
    images: int
    paired: int
    alone: int
    first_alone: tuple[float, ...]
    offset: float
    spread: float
    interval: float
    overlap: float


@dataclass
class BagReport:
    """Everything `lix bag check` says of a bag. faults: what could not be read; remarks: what a user should know, and do about it."""

    name: str
    path: Path
    seconds: float
    messages: int
    size: tuple[int, int] | None = None
    calibration: str = ""
    geometry: str = "none"
    frames: int = 0
    with_depth: int = 0
    with_labels: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    streams: list[StreamReport] = field(default_factory=list)
    pairs: list[PairReport] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"path": str(self.path)}


def check(path: str | Path, options: Options = Options()) -> BagReport:
    """Look at a bag as `extract` would. What is wrong with it is in the report; only options that do not fit it raise.

    Raises:
        SourceError: it cannot be read at all, has no images, or does not fit the options.
    """
    index, plans, _ = open_frames(path, options)
    report = BagReport(index.name, index.path, (index.end - index.start) / NS, index.messages, index.size)
    report.calibration = describe_camera(index)
    report.frames, report.with_depth = len(plans), sum(plan.geometry != "none" for plan in plans)
    report.with_labels = sum("labels" in plan.members for plan in plans)
    report.geometry = next((plan.geometry for plan in plans if plan.geometry != "none"), "none")
    report.reasons = dict(Counter(reason for plan in plans for reason in plan.reasons).most_common())
    report.streams = [look_at(role, stream, index.start) for role, stream in index.streams.items()]
    places = pairs_of(index, options)
    report.pairs = [compare(role, index, places[role], options) for role in places if len(index.streams[role])]
    report.remarks, report.faults = [*index.remarks, *advice(report, options)], index.faults
    return report


def describe_camera(index: BagIndex) -> str:
    if index.camera is None:
        return "none that is usable"
    state = "rectified" if index.camera.is_rectified else f"{index.camera.distortion_model}, will be rectified"
    return f"fx {index.camera.rectified().fx:.1f} px, {state}" + (f", baseline {index.baseline:.3f} m" if index.baseline else "")


def look_at(role: str, stream: Stream, start: int) -> StreamReport:
    """Rate and gaps of a stream."""
    steps = np.diff(stream.stamps) / NS
    usual = float(np.median(steps)) if len(steps) else 0.0
    gaps = steps[steps > GAP * usual] if usual else steps[:0]
    longest = int(np.argmax(steps)) if len(steps) else 0
    return StreamReport(
        role=role,
        topic=stream.topic,
        messages=len(stream),
        rate=1 / usual if usual else 0.0,
        gaps=len(gaps),
        missing=int(np.rint(gaps / usual - 1).sum()) if len(gaps) else 0,
        longest=float(steps[longest]) if len(steps) else 0.0,
        longest_at=float(stream.recorded[longest] - start) / NS if len(steps) else 0.0,
        repeated=stream.repeated,
        backwards=stream.backwards,
    )


def compare(role: str, index: BagIndex, places: np.ndarray, options: Options) -> PairReport:
    """How a stream fits the images."""
    image, stream = index.streams["image"], index.streams[role]
    stamps = stream.stamps - offset_of(role, options)
    alone = np.flatnonzero(places < 0)
    there = nearest(stamps, image.stamps)
    # Of a faster camera, most images are nearest to none: they would blur the median.
    mutual = nearest(image.stamps, stamps[there]) == np.arange(len(image))
    differences = (stamps[there] - image.stamps)[mutual] / NS
    median = float(np.median(differences)) if len(differences) else 0.0
    overlap = min(image.stamps[-1], stamps[-1]) - max(image.stamps[0], stamps[0])
    return PairReport(
        role=role,
        topic=stream.topic,
        images=len(image),
        paired=len(image) - len(alone),
        alone=len(alone),
        first_alone=tuple(float(t) for t in (image.stamps[alone[:3]] - image.stamps[0]) / NS),
        offset=median,
        spread=float(np.percentile(np.abs(differences - median), 95)) if len(differences) else 0.0,
        interval=float(np.median(np.diff(stamps))) / NS if len(stamps) > 1 else 0.0,
        overlap=max(0.0, float(overlap) / NS),
    )


def advice(report: BagReport, options: Options) -> list[str]:
    """What to do where streams do not fit, or have gaps."""
    found = []
    for stream in report.streams:
        # Keyframes are picked: what lies between them is no loss.
        if stream.gaps and not report.reasons:
            found.append(f"{stream.topic} has {stream.gaps} gaps, in which some {stream.missing} messages are missing")
    return found + misfits(report.pairs, options)


def misfits(pairs: Sequence[PairReport], options: Options) -> list[str]:
    """What to do where streams do not fit the images."""
    found = []
    for pair in pairs:
        if pair.paired >= FEW * pair.images:
            continue
        said = f"{pair.alone} of {pair.images} images have no partner on {pair.topic}"
        geometry = next((name for name, role in GEOMETRIES.items() if role == pair.role), "")
        offset = options.offset + pair.offset
        if not pair.overlap and not pair.paired:
            cure = "the two never overlap in time by their stamps; do their clocks agree? try --clock recorded"
        elif abs(pair.offset) > options.slop and pair.spread <= options.slop and geometry:
            # Beyond a third of the interval the next neighbour on the other side is about as near.
            doubt = 0 < pair.interval < 3 * abs(pair.offset)
            other = offset - math.copysign(pair.interval, pair.offset)
            either = f"--offset {offset:.3f}, or {other:.3f} where that is the nearer to the truth," if doubt else f"--offset {offset:.3f}"
            cure = f"its stamps are {1e3 * pair.offset:+.0f} ms off: give {either} with --geometry {geometry} if that is constant"
        elif abs(pair.offset) + pair.spread > options.slop:
            cure = f"nearest stamps are {1e3 * pair.offset:+.0f} ms off, by up to {1e3 * pair.spread:.0f} ms more: give a larger --slop"
        else:
            cure = "it is slower than the camera, or has gaps: those images get none"
        found.append(f"{said}; {cure}")
    return found


def without_depth(index: BagIndex, plans: Sequence[FramePlan], options: Options) -> list[str]:
    """Why a good part of the frames has no depth although there are messages for it, where that is a matter of time."""
    have = sum(plan.geometry != NO_GEOMETRY for plan in plans)
    if options.geometry == NO_GEOMETRY or have >= FEW * len(plans):
        return []
    places = pairs_of(index, options)
    asked = [role for geometry, role in GEOMETRIES.items() if options.geometry in (AUTO, geometry)]
    sensors = [role for role in asked if role in places and len(index.streams[role])]
    return misfits([compare(role, index, places[role], options) for role in sensors], options)


def lines_of(report: BagReport, options: Options) -> list[str]:
    """The report as text, a line each."""
    if not report.streams:
        return [f"{report.name}: no frame can be made of it", *(f"  fault: {fault}" for fault in report.faults)]
    size = f"{report.size[1]}x{report.size[0]}" if report.size else "unknown size"
    lines = [f"{report.name}: {report.messages} messages in {report.seconds:.1f} s, {size}, calibration: {report.calibration}"]
    lines.append(f"  frames {report.frames}, with depth {report.with_depth} (from {report.geometry}), with labels {report.with_labels}")
    if report.reasons:
        lines.append("  kept for: " + ", ".join(f"{reason} {count}" for reason, count in report.reasons.items()))
    lines.append(f"  {'topic':32} {'role':12} {'messages':>8} {'Hz':>6} {'gaps':>5} {'longest':>16}")
    for s in report.streams:
        longest = f"{s.longest:.2f} s at {s.longest_at:.1f} s" if s.messages > 1 else "-"
        lines.append(f"  {s.topic:32} {s.role:12} {s.messages:8} {s.rate:6.1f} {s.gaps:5} {longest:>16}")
    if report.pairs:
        lines.append(
            f"  paired with the images within {1e3 * options.slop:.0f} ms: {'':6} {'share':>6} {'alone':>6} {'offset':>9} {'p95':>8}"
        )
    for p in report.pairs:
        share = p.paired / p.images if p.images else 0.0
        offset, spread = f"{1e3 * p.offset:+.1f} ms", f"{1e3 * p.spread:.1f} ms"
        lines.append(f"  {p.topic:42} {100 * share:5.0f} % {p.alone:6} {offset:>9} {spread:>8}")
    lines += [f"  remark: {remark}" for remark in report.remarks]
    return lines + [f"  fault: {fault}" for fault in report.faults]


def check_all(paths: list[Path], options: Options = Options()) -> list[BagReport]:
    """A report for each bag; for one that gives no frames, the reason is its fault."""
    reports = []
    for path in paths:
        try:
            reports.append(check(path, options))
        except SourceError as error:
            reports.append(BagReport(path.name, path, 0.0, 0, faults=[str(error)]))
    return reports
