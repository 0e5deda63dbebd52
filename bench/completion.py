"""Completed depth against measurements that were held out (kitti_stream), and against exact depth (the simulated street).

    python bench/completion.py --kitti FOLDER [--world FRAMES] [--picture FILE] [--out results/completion]

On kitti_stream a fixed random fifth of each frame's projected LiDAR pixels is held out. In the world every pixel that was not
measured counts, up to 80 m, where lix gives a depth: near objects and the gaps between rings too. Methods, taking turns on every frame:
  classic       the morphology of IP-Basic (Ku, Harakeh, Waslander, CRV 2018), written from the paper: dilation with a 5x5 diamond,
                closing 5x5, holes 7x7, columns to the top, holes 31x31, median 5x5, Gaussian 5x5, on 100 m - depth
  nearest       the nearest measurement's depth
  lix           lix_core.geometry.completion.complete
  lix, hidden   the same, without the measurements that shine through nearer surfaces (the time is removal and completion)
  points removed
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lix_core.camera import Camera  # noqa: E402
from lix_core.geometry.completion import Completion, complete  # noqa: E402
from lix_core.geometry.lidar import project_cloud, remove_hidden  # noqa: E402
from lix_core.viz import draw_depth_points  # noqa: E402

HELD_OUT = 0.2
FAR = 80.0
WORLD_SEED = 1001
DIAMOND = np.array([[0, 0, 1, 0, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0]], np.uint8)


@dataclass(frozen=True)
class Case:
    """One frame: sparse depth, exact or held-out depth (NaN elsewhere), and where the LiDAR is in the camera's frame [m]."""

    sparse: np.ndarray
    truth: np.ndarray
    camera: Camera
    lidar_position: np.ndarray


def classic(sparse: np.ndarray) -> np.ndarray:
    """IP-Basic's order of steps; a depth everywhere below the top of each column's first value, and above."""
    near = np.where(np.isfinite(sparse), 100.0 - np.nan_to_num(sparse), 0).astype(np.float32)
    near = cv2.morphologyEx(cv2.dilate(near, DIAMOND), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    near = np.where(near > 0.1, near, cv2.dilate(near, np.ones((7, 7), np.uint8)))
    first = np.argmax(near > 0.1, axis=0)
    near = np.where(np.arange(len(near))[:, None] < first, near[first, np.arange(near.shape[1])], near)
    near = np.where(near > 0.1, near, cv2.dilate(near, np.ones((31, 31), np.uint8)))
    near = np.where(near > 0.1, cv2.medianBlur(near, 5), near)
    near = np.where(near > 0.1, cv2.GaussianBlur(near, (5, 5), 0), near)
    return np.where(near > 0.1, 100.0 - near, np.float32(np.nan))


def nearest(sparse: np.ndarray) -> np.ndarray:
    known = np.isfinite(sparse)
    _, labels = cv2.distanceTransformWithLabels((~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    depths = np.full(labels.max() + 1, np.nan, np.float32)
    depths[labels[known]] = sparse[known]
    return depths[labels]


def without_hidden(case: Case) -> Completion:
    return complete(remove_hidden(case.sparse, case.camera, case.lidar_position))


METHODS: dict[str, Callable[[Case], np.ndarray | Completion]] = {
    "classic": lambda case: classic(case.sparse),
    "nearest": lambda case: nearest(case.sparse),
    "lix": lambda case: complete(case.sparse),
    "lix, hidden points removed": without_hidden,
}


def kitti_calibration(folder: Path) -> tuple[Camera, np.ndarray]:
    """The camera of calib.txt and camera_from_lidar (4, 4); the fourth column of P, a shift, goes into the extrinsics."""
    lines = (line.partition("#")[0] for line in (folder / "calib.txt").read_text().splitlines())
    matrices = {name.strip(): np.array(values.split(), float) for name, colon, values in (line.partition(":") for line in lines) if colon}
    projection, rectification, extrinsics = matrices["P_rect_02"].reshape(3, 4), np.eye(4), np.eye(4)
    rectification[:3, :3] = matrices["R_rect_00"].reshape(3, 3)
    extrinsics[:3] = matrices["Tr_velo_to_cam"].reshape(3, 4)
    shift = np.eye(4)
    shift[:3, 3] = np.linalg.solve(projection[:, :3], projection[:, 3])
    return Camera(1242, 375, tuple(projection[:, :3].ravel())), shift @ rectification @ extrinsics


def kitti_scans(folder: Path) -> list[Path]:
    """Files of the scans, in order. Ends the process where there are none."""
    scans = sorted((folder / "velodyne").glob("*.npz"))
    if not scans:
        raise SystemExit(f"there are no scans {folder / 'velodyne' / '*.npz'}; --kitti is a folder with calib.txt, image_02 and velodyne")
    return scans


def kitti_cloud(path: Path) -> np.ndarray:
    """(N, 4) float32 x, y, z [m] and reflectance."""
    with np.load(path) as data:
        return data["xyzi"] * np.float32([0.004, 0.004, 0.004, 1 / 255])


def kitti_cases(folder: Path, visible: bool = False) -> Iterator[Case]:
    """`visible`: of the held-out pixels only those that the camera sees, by `remove_hidden` on all of them; the input stays the same."""
    camera, camera_from_lidar = kitti_calibration(folder)
    for seed, path in enumerate(kitti_scans(folder)):
        sparse = project_cloud(kitti_cloud(path), camera, camera_from_lidar, hidden_gap=0)
        places = np.flatnonzero(np.isfinite(sparse))
        held = np.random.default_rng(seed).permutation(places)[: int(HELD_OUT * len(places))]
        truth = np.full_like(sparse, np.nan)
        truth.ravel()[held] = sparse.ravel()[held]
        if visible:
            truth[np.isnan(remove_hidden(sparse, camera, camera_from_lidar[:3, 3]))] = np.nan
        sparse.ravel()[held] = np.nan
        yield Case(sparse, truth, camera, camera_from_lidar[:3, 3])


def world_cases(count: int) -> Iterator[Case]:
    from lix_core.world.drive import Drive, Rig

    camera = Camera.pinhole(1242, 375, 721.5, cx=609.6, cy=172.9)
    drive = Drive(WORLD_SEED, Rig(camera=camera), frames_per_scene=1)
    for index in range(count):
        frame = drive.frame(index, right=False)
        yield Case(
            project_cloud(frame.cloud, camera, frame.camera_from_lidar, hidden_gap=0), frame.depth, camera, frame.camera_from_lidar[:3, 3]
        )


class Score:
    """Errors of one method, gathered over frames."""

    def __init__(self) -> None:
        self.estimate, self.truth, self.confidence, self.seconds = [], [], [], []
        self.wanted = 0

    def add(self, result: np.ndarray | Completion, truth: np.ndarray, asked: np.ndarray, seconds: float) -> None:
        depth = result.depth if isinstance(result, Completion) else result
        given = asked & np.isfinite(depth)
        self.wanted += int(asked.sum())
        self.estimate.append(depth[given])
        self.truth.append(truth[given])
        self.seconds.append(seconds)
        if isinstance(result, Completion):
            self.confidence.append(result.confidence[given])

    def figures(self) -> dict[str, float]:
        estimate, truth = np.concatenate(self.estimate).astype(float), np.concatenate(self.truth).astype(float)
        error, inverse_error = estimate - truth, 1000 / estimate - 1000 / truth
        return {
            "rmse_m": round(float(np.sqrt(np.mean(error**2))), 3),
            "mae_m": round(float(np.mean(np.abs(error))), 3),
            "irmse_per_km": round(float(np.sqrt(np.mean(inverse_error**2))), 2),
            "within_1.25": round(float(np.mean(np.maximum(estimate / truth, truth / estimate) < 1.25)), 4),
            "density": round(len(truth) / self.wanted, 4),
            "median_ms": round(1e3 * float(np.median(self.seconds)), 1),
        }

    def by_confidence(self) -> dict[str, list[float]]:
        """Relative and absolute error by tenth of the confidence, the surest first; and over the surest 10, 20, .. 100 %."""
        order = np.argsort(-np.concatenate(self.confidence), kind="stable")
        truth = np.concatenate(self.truth)[order].astype(float)
        error = np.abs(np.concatenate(self.estimate)[order] - truth)
        tenths, relative = np.array_split(error, 10), np.array_split(error / truth, 10)
        return {
            "relative error of each tenth": [round(float(t.mean()), 4) for t in relative],
            "mae of each tenth [m]": [round(float(t.mean()), 3) for t in tenths],
            "rmse of the surest 10 to 100 % [m]": [
                round(float(np.sqrt(np.mean(np.concatenate(tenths[: k + 1]) ** 2))), 3) for k in range(10)
            ],
        }


def evaluate(cases: Iterator[Case], common: bool) -> dict[str, Score]:
    """`common`: score every method only where lix gives a depth, on pixels that no measurement fills."""
    scores = {name: Score() for name in METHODS}
    for number, case in enumerate(cases):
        results = {}
        for name, method in METHODS.items():
            start = time.perf_counter()
            results[name] = method(case)
            results[name] = results[name], time.perf_counter() - start
        asked = np.isfinite(case.truth) & (case.truth < FAR)
        if common:
            asked &= ~np.isfinite(case.sparse) & np.isfinite(results["lix, hidden points removed"][0].depth)
        for name, (result, seconds) in results.items():
            scores[name].add(result, case.truth, asked, seconds)
        print(f"\r{number + 1} frames", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return scores


def removal(cases: Iterator[Case]) -> dict[str, float]:
    """Hidden are points behind everything within a pixel, visible those at the exact depth; each with 3 % and 0.1 m to spare."""
    found = missed = lost = kept = 0
    for case in cases:
        depth, truth = case.sparse, np.where(np.isfinite(case.truth), case.truth, np.float32(1e4))
        known = np.isfinite(depth)
        dropped = known & ~np.isfinite(remove_hidden(depth, case.camera, case.lidar_position))
        behind = known & (np.nan_to_num(depth) > 1.03 * cv2.dilate(truth, np.ones((3, 3), np.uint8)) + 0.1)
        visible = known & (np.abs(np.nan_to_num(depth) - truth) < 0.03 * truth + 0.1)
        found, missed = found + int((dropped & behind).sum()), missed + int((~dropped & behind).sum())
        lost, kept = lost + int((dropped & visible).sum()), kept + int((~dropped & visible).sum())
    return {
        "hidden_share": round((found + missed) / (found + missed + lost + kept), 4),
        "recall": round(found / (found + missed), 3),
        "precision": round(found / (found + lost), 3),
        "visible_lost": round(lost / (lost + kept), 4),
    }


def picture(folder: Path, index: int) -> np.ndarray:
    """A frame with its LiDAR points, as projected and without the hidden ones: (2 H, W, 3) RGB."""
    camera, camera_from_lidar = kitti_calibration(folder)
    image = cv2.cvtColor(cv2.imread(str(sorted((folder / "image_02").glob("*.jpg"))[index])), cv2.COLOR_BGR2RGB)
    cloud = kitti_cloud(kitti_scans(folder)[index])
    return np.vstack([draw_depth_points(image, project_cloud(cloud, camera, camera_from_lidar, gap)) for gap in (0, 0.05)])


def table(scores: dict[str, dict[str, float]]) -> str:
    rows = [
        "| method | RMSE [m] | MAE [m] | iRMSE [1/km] | delta < 1.25 | density | median [ms] |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, f in scores.items():
        cells = (f["rmse_m"], f["mae_m"], f["irmse_per_km"], f["within_1.25"], f["density"], f["median_ms"])
        rows.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def confidence_table(figures: dict[str, list[float]]) -> str:
    rows = ["| by confidence, the surest first | " + " | ".join(f"{k}0 %" for k in range(1, 11)) + " |", "| --- |" + " --- |" * 10]
    return "\n".join(rows + [f"| {name} | " + " | ".join(map(str, values)) + " |" for name, values in figures.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kitti", type=Path, required=True, help="folder with calib.txt, image_02 and velodyne")
    parser.add_argument("--world", type=int, default=24, help="frames of the simulated street; 0 leaves it out")
    parser.add_argument("--picture", type=Path, help="also draw the points over a frame of kitti_stream")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "completion")
    args = parser.parse_args()
    if not (args.kitti / "calib.txt").exists():
        raise SystemExit(f"{args.kitti} has no calib.txt; --kitti is a folder with calib.txt, image_02 and velodyne")
    if args.picture:
        cv2.imwrite(str(args.picture), cv2.cvtColor(picture(args.kitti, 0), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    record = {
        "command": shlex.join(["python", "bench/completion.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, OpenCV {cv2.__version__}, NumPy {np.__version__}",
    }
    sets = {
        "kitti_stream, a fifth of the LiDAR pixels held out, 1242x375": (lambda: kitti_cases(args.kitti), False),
        "the same, without held-out pixels that the camera does not see": (lambda: kitti_cases(args.kitti, visible=True), False),
    }
    if args.world:
        cases = list(world_cases(args.world))
        record["removal of hidden points (simulated street)"] = removal(iter(cases))
        sets[f"simulated street, {args.world} frames, exact depth of every unmeasured pixel that lix reaches, 1242x375"] = (
            lambda: iter(cases),
            True,
        )
    record["sets"] = {}
    for title, (make, common) in sets.items():
        scores = evaluate(make(), common)
        record["sets"][title] = {
            "methods": {name: score.figures() for name, score in scores.items()},
            "confidence": scores["lix, hidden points removed"].by_confidence(),
        }
    write(args.out, record)


def write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    parts = [f"`{record['command']}`\n\n{record['machine']}. Methods are described in bench/completion.py; `classic` is IP-Basic's."]
    for title, figures in record["sets"].items():
        methods = figures["methods"]
        ratio = methods["lix"]["median_ms"] / methods["classic"]["median_ms"]
        parts.append(
            f"### {title}\n\n{table(methods)}\n\nTime of lix / classic = {ratio:.2f}.\n\n{confidence_table(figures['confidence'])}"
        )
    for title, figures in record.items():
        if title.startswith("removal"):
            share, recall, precision, lost = figures.values()
            parts.append(
                f"### {title}\n\nOf the projected points {100 * share:.1f} % are hidden from the camera. "
                f"Recall {recall}, precision {precision}; {100 * lost:.2f} % of the visible points are lost."
            )
    path.with_suffix(".md").write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
