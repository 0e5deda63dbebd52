"""Surface normals beside d2nt (PyPI), on frames of the simulated world: error against exact truth, and time.

    python bench/normals.py [--frames 6] [--repeats 40] [--threads N] [--out results/normals]

Depth is the world's own (exact), or has a stereo camera's noise: disparity + N(0, sigma) pixels, so that sigma_z = z^2 sigma / (f b);
`smooth` noise has the same sigma but goes together over some pixels (a Gaussian of 1.5 pixels), as block matching's does.
Errors are over all pixels whose truth is known, the same for all; an unknown estimate counts as 90 degrees. `edges` are the pixels
within 2 of a jump or a crease of the depth. d2nt cannot take NaN: it gets 1000 m for the sky. It counts pixel centres from 1: it gets
cx + 1 and cy + 1. Its normals are turned to the camera. Times are medians of calls in one process, the methods taking turns in
blocks of ten, so that noise falls on all alike. The seeds are none of those that the methods were tuned on (200 to 204).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

try:
    from d2nt import depth2normal
except ImportError:
    raise SystemExit("d2nt is missing, the peer of this benchmark: pip install --no-deps d2nt") from None

from lix_core.camera import Camera  # noqa: E402
from lix_core.geometry.normals import DEFAULT, METHODS, normals_from_depth  # noqa: E402
from lix_core.world.drive import Drive, Rig, WorldFrame  # noqa: E402

CAMERAS = {"480x640": Camera.pinhole(640, 480, 525.0), "375x1242": Camera.pinhole(1242, 375, 721.5, 721.5, 609.6, 172.9)}
NOISES = {
    "exact": (0.0, False),
    "0.1 px": (0.1, False),
    "0.25 px": (0.25, False),
    "0.1 px smooth": (0.1, True),
    "0.25 px smooth": (0.25, True),
}
FIRST_SEED = 1000
FAR_M = 1000.0
BLOCK = 10


def noisy(frame: WorldFrame, sigma: float, smooth: bool) -> np.ndarray:
    """The frame's depth [m] as stereo with a disparity error of sigma pixels would have it."""
    if not sigma:
        return frame.depth
    scale = frame.camera.fx * frame.right_camera.baseline
    error = np.random.default_rng(frame.scene_seed).standard_normal(frame.depth.shape).astype(np.float32)
    if smooth:
        error = cv2.GaussianBlur(error, (0, 0), 1.5)
        error /= error.std()
    disparity = scale / frame.depth + np.float32(sigma) * error
    return np.where(disparity > 0.2, scale / np.maximum(disparity, 0.2), np.nan).astype(np.float32)


def peer(version: str):
    """d2nt's call on the same arguments as ours; what it needs beforehand is done once by `prepared`."""
    return lambda depth, matrix: depth2normal(depth, matrix, version=version)


def prepared(depth: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    matrix = camera.matrix
    matrix[:2, 2] += 1
    return np.where(np.isnan(depth), np.float32(FAR_M), depth), matrix


def ways() -> dict[str, tuple]:
    """Name -> (function, what prepares its arguments)."""
    ours = {name: (lambda depth, camera, name=name: normals_from_depth(depth, camera, name), lambda *both: both) for name in METHODS}
    return ours | {f"d2nt {v} (peer)": (peer(f"d2nt_{v}"), prepared) for v in ("basic", "v2", "v3")}


def error_of(normals: np.ndarray, frame: WorldFrame) -> np.ndarray:
    """(H, W) angle [degrees] between the normals, turned to the camera, and the truth."""
    away = (normals * frame.camera.rays).sum(-1) > 0
    normals = np.where(away[..., None], -normals, normals)
    angle = np.degrees(np.arctan2(np.linalg.norm(np.cross(normals, frame.normals), axis=-1), (normals * frame.normals).sum(-1)))
    return np.where(np.isnan(angle), 90.0, angle)


def edges_of(frame: WorldFrame) -> np.ndarray:
    """(H, W) bool: within 2 pixels of where the inverse depth bends by more than 5 % of itself."""
    inverse = np.nan_to_num(1 / frame.depth)
    bends = np.abs(cv2.Laplacian(inverse, -1, ksize=1)) * np.nan_to_num(frame.depth) > 0.05
    return cv2.dilate(bends.astype(np.uint8), np.ones((5, 5))) > 0


def errors(frames: list[WorldFrame]) -> dict[str, dict[str, dict[str, float]]]:
    """Way -> noise -> mean, median, mean at edges and inside [degrees], over all pixels of all frames."""
    found = {}
    for name, (function, prepare) in ways().items():
        found[name] = {}
        for noise, level in NOISES.items():
            print(f"\r{name}, {noise}: errors{'':30}", end="", file=sys.stderr, flush=True)
            all_errors, all_edges = [], []
            for frame in frames:
                depth = noisy(frame, *level)
                known = ~np.isnan(frame.normals[..., 0]) & ~np.isnan(depth)
                all_errors.append(error_of(function(*prepare(depth, frame.camera)), frame)[known])
                all_edges.append(edges_of(frame)[known])
            e, edge = np.concatenate(all_errors), np.concatenate(all_edges)
            parts = {"mean": e.mean(), "median": np.median(e), "edges": e[edge].mean(), "inside": e[~edge].mean()}
            found[name][noise] = {part: round(float(value), 3) for part, value in parts.items()}
    return found


def times(frames: list[WorldFrame], repeats: int) -> dict[str, dict[str, float]]:
    """Way -> median time of a call on exact and on noisy depth [ms]. The peer's time does not depend on the noise."""
    taken: dict[str, dict[str, list[float]]] = {name: {"exact": [], "0.1 px": []} for name in ways()}
    for noise in ("exact", "0.1 px"):
        depths = [noisy(frame, *NOISES[noise]) for frame in frames]
        for start in range(0, repeats + BLOCK, BLOCK):
            print(f"\r{noise}: times {start}/{repeats}{'':30}", end="", file=sys.stderr, flush=True)
            for name, (function, prepare) in ways().items():
                given = [prepare(depth, frame.camera) for depth, frame in zip(depths, frames)]
                for index in range(BLOCK):
                    begin = time.perf_counter()
                    function(*given[index % len(given)])
                    if start:  # the first block warms up
                        taken[name][noise].append(1e3 * (time.perf_counter() - begin))
    return {name: {noise: round(float(np.median(v)), 2) for noise, v in noises.items()} for name, noises in taken.items()}


def measure(camera: Camera, count: int, repeats: int) -> dict:
    frames = []
    for index in range(count):
        print(f"\rrendering {index + 1}/{count}{'':30}", end="", file=sys.stderr, flush=True)
        frames.append(Drive(FIRST_SEED + index, Rig(camera=camera)).frame(index % 4))
    camera.rays  # noqa: B018  computed once
    found = {"errors_deg": errors(frames), "ms": times(frames, repeats)}
    basic = found["ms"]["d2nt basic (peer)"]
    found["time / d2nt basic"] = {name: {noise: round(ms[noise] / basic[noise], 2) for noise in ms} for name, ms in found["ms"].items()}
    print(file=sys.stderr)
    return found


def table(found: dict) -> str:
    """Markdown: a row for each way."""
    head = ["method", *(f"{noise}: mean / median (edges, inside)" for noise in NOISES), "ms exact / noisy", "ratio to d2nt basic"]
    rows = [head, ["---"] * len(head)]
    for name, by_noise in found["errors_deg"].items():
        cells = [f"{e['mean']:.2f} / {e['median']:.2f} ({e['edges']:.1f}, {e['inside']:.2f})" for e in by_noise.values()]
        ms, ratio = found["ms"][name], found["time / d2nt basic"][name]
        label = f"**{name}** (default)" if name == DEFAULT else name
        rows.append([label, *cells, f"{ms['exact']:.1f} / {ms['0.1 px']:.1f}", f"{ratio['exact']:.2f} / {ratio['0.1 px']:.2f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=6, help="world frames of each size, each of a street of its own")
    parser.add_argument("--repeats", type=int, default=40, help="timed calls of each method")
    parser.add_argument("--threads", type=int, default=cv2.getNumThreads(), help="of OpenCV, for all methods")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "normals")
    args = parser.parse_args()
    cv2.setNumThreads(args.threads)
    np.seterr(all="ignore")  # the peer divides by 0
    record = {
        "command": shlex.join(["python", "bench/normals.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, OpenCV with {args.threads} threads",
        "frames": f"{args.frames} simulated frames of each size, seeds {FIRST_SEED} to {FIRST_SEED + args.frames - 1}",
        "sizes": {size: measure(camera, args.frames, args.repeats) for size, camera in CAMERAS.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    note = "Mean / median angle to the truth [degrees] over all pixels (mean near depth edges, elsewhere), by noise of the disparity."
    parts = [f"`{record['command']}`", f"{record['frames']}; {record['machine']}", note]
    for size, found in record["sizes"].items():
        parts += [f"## {size}", table(found)]
    text = "\n\n".join(parts) + "\n"
    args.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
