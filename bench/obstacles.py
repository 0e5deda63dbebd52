"""Models on a drive without labels, asked what its LiDAR knows: what is ground, and what stands on it.

    python bench/obstacles.py --kitti FOLDER [MODEL.lix ...] [--out results/obstacles]

FOLDER has calib.txt, image_02 and velodyne, as kitti_stream. Each frame's ground plane is fitted to its projected LiDAR points
(lix_core.geometry.ground), without those that the camera does not see. Counted are points 4 to 40 m ahead: those on the plane,
within 0.1 m, and those that stand 0.4 to 3 m above it, and 0.01 m per metre of depth more. What stands there and is seen as ground is
what a robot drives into.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shlex
import sys
from pathlib import Path
from typing import Iterator

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench")]

from completion import kitti_calibration, kitti_cloud, kitti_scans  # noqa: E402

from lix_core.geometry.ground import fit_ground  # noqa: E402
from lix_core.geometry.lidar import project_cloud  # noqa: E402
from lix_core.labels import STREET  # noqa: E402
from lix_core.runtime.bundle import Bundle, find_bundle  # noqa: E402
from lix_core.runtime.segmenter import Segmenter  # noqa: E402

NEAR, FAR = 4.0, 40.0
ON, LEAST, MOST, GROWTH = 0.1, 0.4, 3.0, 0.01
GROUND = [STREET.id_of(name) for name in ("road", "pavement")]
VEHICLE = STREET.id_of("car")


def frames(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(H, W, 3) RGB, and where there is a point on the ground and one of an obstacle, (H, W) bool each."""
    camera, camera_from_lidar = kitti_calibration(folder)
    for path in kitti_scans(folder):
        depth = project_cloud(kitti_cloud(path), camera, camera_from_lidar)
        ground = fit_ground(depth, camera)
        if ground is None:
            print(f"{path.name}: no ground plane, left out", file=sys.stderr)
            continue
        above, counted = ground.above(depth, camera), (depth > NEAR) & (depth < FAR)
        stands = (above > LEAST + GROWTH * depth) & (above < MOST)
        image = cv2.imread(str(file := folder / "image_02" / f"{path.stem}.jpg"))
        if image is None:
            raise SystemExit(f"there is no image {file} beside the scan {path.name}")
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB), counted & (np.abs(above) < ON), counted & stands


def shares(counts: np.ndarray) -> dict[str, float]:
    """counts: (2, classes) of points on the ground and of obstacles."""
    ground, obstacles = counts / counts.sum(1, keepdims=True)
    return {
        "obstacles_as_ground": round(float(obstacles[GROUND].sum()), 4),
        "obstacles_as_vehicle": round(float(obstacles[VEHICLE]), 4),
        "ground_as_ground": round(float(ground[GROUND].sum()), 4),
        "ground_as_vehicle": round(float(ground[VEHICLE]), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["street"], help="names or files of bundles with the classes of `street`")
    parser.add_argument("--kitti", type=Path, required=True, help="folder with calib.txt, image_02 and velodyne")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "obstacles")
    args = parser.parse_args()
    if not (args.kitti / "calib.txt").exists():
        raise SystemExit(f"{args.kitti} has no calib.txt; --kitti is a folder with calib.txt, image_02 and velodyne")
    if len({Path(name).stem for name in args.models}) < len(args.models):
        raise SystemExit(f"models are told apart by the names of their files, and two have one: {' '.join(args.models)}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    segmenters = {Path(name).stem: Segmenter(Bundle.load(find_bundle(name))) for name in args.models}
    if other := [name for name, s in segmenters.items() if s.bundle.manifest.labels.names != STREET.names]:
        raise SystemExit(f"{other[0]} has other classes than `street`: {', '.join(STREET.names)}")
    counts = {name: np.zeros((2, len(STREET)), np.int64) for name in segmenters}
    for number, (image, *places) in enumerate(frames(args.kitti), 1):
        for name, segmenter in segmenters.items():
            mask = segmenter.segment(image).mask
            counts[name] += [np.bincount(mask[place], minlength=256)[: len(STREET)] for place in places]
        print(f"\r{number} frames", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    figures = {name: shares(c) for name, c in counts.items()}
    record = {
        "command": shlex.join(["python", "bench/obstacles.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, OpenCV {cv2.__version__}, NumPy {np.__version__}",
        "frames": number,
        "points": dict(zip(("ground", "obstacles"), next(iter(counts.values())).sum(1).tolist())),
        "models": {name: {"graph_sha256": hashlib.sha256(s.bundle.graph).hexdigest(), **figures[name]} for name, s in segmenters.items()},
    }
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    head = "| model | obstacles seen as road or pavement | as car | ground seen as road or pavement | as car |"
    rows = [f"| {name} | " + " | ".join(f"{100 * value:.1f} %" for value in f.values()) + " |" for name, f in figures.items()]
    points = record["points"]
    text = "\n".join(
        [
            "# What LiDAR knows to stand on the ground, and what models see there",
            "",
            f"`{record['command']}`",
            "",
            f"{number} frames, {points['ground']:,} LiDAR points on the ground, {points['obstacles']:,} of obstacles. "
            "[What the folder holds](../docs/geometry.md#the-kitti-recording).",
            "",
            head,
            "| --- | --- | --- | --- | --- |",
            *rows,
        ]
    )
    args.out.with_suffix(".md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
