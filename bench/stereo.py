"""Disparity and depth of simulated stereo pairs against exact truth, beside OpenCV's matchers as they are commonly used.

    python bench/stereo.py [--scenes 6] [--seed 5000] [--out results/stereo]

Streets of lix_core.world, every weather, at 640x192 (fx 370) and 1242x375 (fx 721), baseline 0.54 m, one frame a street. The defaults
of StereoOptions were chosen on seeds 1000 to 1003, which are refused here. All ways take turns on every pair, so that noise falls on
all alike. Truth is every pixel that is not sky and whose disparity was searched, seen by the right camera or not:
  known      share of them that has a disparity
  bad 3, 1   share of the known ones that is off by more than 3, 1 pixels
  error      mean and median of |disparity error| of the known ones [pixels]
  sky        share of the sky that is called nearer than 80 m
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lix_core.camera import Camera  # noqa: E402
from lix_core.geometry.stereo import StereoMatcher, StereoOptions, depth_to_disparity, disparity_to_depth, pair_fault  # noqa: E402
from lix_core.world.drive import Drive, Rig, WorldFrame  # noqa: E402
from lix_core.world.weather import WEATHERS  # noqa: E402

Way = Callable[[np.ndarray, np.ndarray], np.ndarray]

SEARCH = 128
CAMERAS = {"640x192": Camera.pinhole(640, 192, 370.0), "1242x375": Camera.pinhole(1242, 375, 721.0)}
RANGES = ((0, 10), (10, 20), (20, 40), (40, 80))
TUNED_ON = range(1000, 1004)
PEER, DEFAULT = "cv2.StereoSGBM as commonly set", "lix"


def usual_sgbm() -> Way:
    """Block 5, P1 and P2 of 8 and 32 times the block, uniqueness 10, speckles 100: the numbers of OpenCV's own sample and docs."""
    matcher = cv2.StereoSGBM_create(0, SEARCH, 5, 8 * 25, 32 * 25, 1, 63, 10, 100, 32)
    return lambda left, right: unpack(matcher.compute(gray(left), gray(right)))


def usual_bm() -> Way:
    matcher = cv2.StereoBM_create(SEARCH, 15)
    return lambda left, right: unpack(matcher.compute(gray(left), gray(right)))


def gray(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def unpack(found: np.ndarray) -> np.ndarray:
    return np.where(found > 0, found / np.float32(16), np.float32(np.nan))


def ways() -> dict[str, Way]:
    variants = {
        DEFAULT: {},
        "lix, no check": {"consistency": 0.0},
        "lix, quick check": {"quick_check": True},
        "lix, quick check within 1.5 px": {"quick_check": True, "consistency": 1.5},
        "lix, edge filter": {"edge_filter": True},
        "lix, no blur": {"blur": 0.0},
        "lix, speckles kept": {"speckle": 0},
        "lix, block 9": {"block_size": 9},
        "lix, four paths": {"mode": "four_paths"},
        "lix, five paths": {"mode": "five_paths"},
        "lix, eight paths": {"mode": "eight_paths"},
    }
    lix = {name: StereoMatcher(StereoOptions(max_disparity=SEARCH, **options)).match for name, options in variants.items()}
    return {**lix, PEER: usual_sgbm(), "cv2.StereoBM, block 15": usual_bm()}


class Score:
    """Errors of many frames, pixel by pixel."""

    def __init__(self) -> None:
        self.errors: list[np.ndarray] = []
        self.depths: list[np.ndarray] = []
        self.depth_errors: list[np.ndarray] = []
        self.seconds: list[float] = []
        self.sky = self.false_sky = 0

    def add(self, found: np.ndarray, frame: WorldFrame, seconds: float) -> None:
        fx, baseline = frame.camera.fx, frame.right_camera.baseline
        disparity, depth = depth_to_disparity(frame.depth, fx, baseline), disparity_to_depth(found, fx, baseline)
        counted = disparity < SEARCH
        self.errors.append(np.abs(found - disparity)[counted])
        self.depths.append(frame.depth[counted])
        self.depth_errors.append(np.abs(depth - frame.depth)[counted])
        sky = np.isnan(frame.depth)
        self.sky += int(sky.sum())
        self.false_sky += int((depth[sky] < 80).sum())
        self.seconds.append(seconds)

    def record(self) -> dict:
        errors, depths, depth_errors = (np.concatenate(parts) for parts in (self.errors, self.depths, self.depth_errors))
        known = np.isfinite(errors)
        by_range = {}
        for low, high in RANGES:
            within = (depths >= low) & (depths < high)
            by_range[f"{low}-{high} m"] = {
                "known_%": percent(known[within].mean()),
                "median_m": round(float(np.median(depth_errors[within & known])), 3),
                "mean_m": round(float(np.mean(depth_errors[within & known])), 2),
            }
        return {
            "known_%": percent(known.mean()),
            "bad3_%": percent((errors[known] > 3).mean()),
            "bad1_%": percent((errors[known] > 1).mean()),
            "mean_px": round(float(errors[known].mean()), 3),
            "median_px": round(float(np.median(errors[known])), 3),
            "sky_%": percent(self.false_sky / max(1, self.sky)),
            "ms": round(1e3 * float(np.median(self.seconds)), 1),
            "depth": by_range,
        }


class Faults:
    """What pair_fault says of good pairs, and of pairs spoilt on purpose."""

    def __init__(self) -> None:
        self.said: dict[str, list[bool]] = {}
        self.seconds: list[float] = []
        self.before: WorldFrame | None = None

    def add(self, frame: WorldFrame) -> None:
        height, width = frame.camera.shape
        lower = cv2.warpAffine(frame.right, np.float32([[1, 0, 0], [0, 1, 3]]), (width, height))
        start = time.perf_counter()
        self._count("a good pair, any fault", pair_fault(frame.rgb, frame.right) != "", frame)
        self.seconds.append(time.perf_counter() - start)
        self._count("swapped", "swapped" in pair_fault(frame.right, frame.rgb), frame)
        self._count("rows differ by 3 px", "not rectified" in pair_fault(frame.rgb, lower), frame)
        if self.before is not None:
            self._count("another street", "different scenes" in pair_fault(frame.rgb, self.before.right), frame)
        self.before = frame

    def _count(self, name: str, said: bool, frame: WorldFrame) -> None:
        for key in (name, f"{name}, without fog"):
            if key == name or frame.weather != "fog":
                self.said.setdefault(key, []).append(said)

    def record(self) -> dict:
        return {
            "said": {name: f"{sum(said)} of {len(said)}" for name, said in self.said.items()},
            "ms": round(1e3 * float(np.median(self.seconds)), 1),
        }


def percent(share: float) -> float:
    return round(100 * float(share), 2)


def measure(camera: Camera, seeds: range) -> dict:
    matchers, faults = ways(), Faults()
    scores = {name: Score() for name in matchers}
    by_weather = {name: {weather: Score() for weather in WEATHERS} for name in (DEFAULT, PEER)}
    for number, weather in enumerate(WEATHERS):
        for seed in seeds:
            print(
                f"\r{camera.width}x{camera.height} {weather}: {number + 1}/{len(WEATHERS)}, seed {seed} ",
                end="",
                file=sys.stderr,
                flush=True,
            )
            frame = Drive(seed, Rig(camera), weather, frames_per_scene=1).frame(0, cloud=False)
            faults.add(frame)
            for name, match in matchers.items():
                start = time.perf_counter()
                found = match(frame.rgb, frame.right)
                seconds = time.perf_counter() - start
                scores[name].add(found, frame, seconds)
                if name in by_weather:
                    by_weather[name][weather].add(found, frame, seconds)
    print(file=sys.stderr)
    return {
        "ways": {name: score.record() for name, score in scores.items()},
        "weather": {name: {weather: score.record() for weather, score in rows.items()} for name, rows in by_weather.items()},
        "pair_fault": faults.record(),
    }


def table(rows: dict[str, dict], first: str, peer_ms: float | None = None) -> str:
    lines = [
        f"| {first} | known [%] | bad 3 [%] | bad 1 [%] | mean [px] | median [px] | sky [%] |" + (" ms | ratio |" if peer_ms else ""),
        "| --- " * (9 if peer_ms else 7) + "|",
    ]
    for name, row in rows.items():
        numbers = [row[key] for key in ("known_%", "bad3_%", "bad1_%", "mean_px", "median_px", "sky_%")]
        if peer_ms:
            numbers += [row["ms"], round(row["ms"] / peer_ms, 2)]
        lines.append(f"| {name} | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(lines)


def depth_table(rows: dict[str, dict]) -> str:
    names = [f"{low}-{high} m" for low, high in RANGES]
    lines = ["| depth error, median / mean [m] (known) | " + " | ".join(names) + " |", "| --- " * (1 + len(names)) + "|"]
    for name, row in rows.items():
        cells = [f"{row['depth'][r]['median_m']:.2f} / {row['depth'][r]['mean_m']:.2f} ({row['depth'][r]['known_%']:.0f} %)" for r in names]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    parts = [f"`{record['command']}`\n\n{record['machine']}; {record['data']}\n\n```\n{__doc__.split('alike. ')[1].strip()}\n```"]
    for size, result in record["sizes"].items():
        peer_ms = result["ways"][PEER]["ms"]
        parts += [f"## {size}", table(result["ways"], "way", peer_ms), depth_table(result["ways"])]
        for name, rows in result["weather"].items():
            parts.append(table(rows, f"weather, {name}"))
        said = "; ".join(f"{name}: {count}" for name, count in result["pair_fault"]["said"].items())
        parts.append(f"`pair_fault`, {result['pair_fault']['ms']} ms, says its fault of: {said}.")
    parts.append(f"ratio: of the time to that of {PEER}.")
    text = "\n\n".join(parts) + "\n"
    path.with_suffix(".md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=6, help="streets of every weather and size")
    parser.add_argument("--seed", type=int, default=5000, help="of the first street")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "stereo")
    args = parser.parse_args()
    seeds = range(args.seed, args.seed + args.scenes)
    if set(seeds) & set(TUNED_ON):
        raise SystemExit(f"seeds {TUNED_ON.start} to {TUNED_ON.stop - 1} chose the defaults; report on others")
    record = {
        "command": shlex.join(["python", "bench/stereo.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, OpenCV {cv2.__version__}",
        "data": f"simulated streets, seeds {seeds.start} to {seeds.stop - 1}, {args.scenes * len(WEATHERS)} pairs of each size",
        "sizes": {size: measure(camera, seeds) for size, camera in CAMERAS.items()},
    }
    write(args.out, record)


if __name__ == "__main__":
    main()
