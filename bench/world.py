"""What a frame of the simulated world costs: every sensor of it, and each alone.

    python bench/world.py [--scenes 8] [--size 640x192] [--out results/world_speed]

A frame is the left and the right image, depth, normals, labels, instances and a LiDAR turn of 64 x 1024 beams. Building a street is
told apart: it is done once for all frames in it.
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
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lix_core.camera import Camera  # noqa: E402
from lix_core.world.drive import Drive, Rig  # noqa: E402
from lix_core.world.sensors import develop  # noqa: E402

FRAMES_PER_SCENE = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=8, help="streets, of several weathers")
    parser.add_argument("--size", default="640x192", help="WIDTHxHEIGHT of the images")
    parser.add_argument("--out", type=Path, default=Path("results/world_speed"))
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    drive = Drive(1000, Rig(Camera.pinhole(width, height, 370.0 * width / 640)), frames_per_scene=FRAMES_PER_SCENE)
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        times.setdefault(name, []).append(1e3 * (time.perf_counter() - started))
        return result

    weathers, triangles = [], []
    for scene in range(args.scenes):
        first = scene * FRAMES_PER_SCENE
        seed, renderer = timed("a new street (once for all its frames)", lambda: drive.scene_of(first))
        weathers.append(renderer.scene.weather.name)
        triangles.append(len(renderer.scene.triangles))
        print(f"{scene + 1}/{args.scenes} {weathers[-1]}, {triangles[-1]} triangles", file=sys.stderr)
        drive.frame(first)
        for index in range(first + 1, first + FRAMES_PER_SCENE):
            timed("all sensors of a frame", lambda: drive.frame(index))
            pose, rng = drive.pose(renderer.scene, seed, index), np.random.default_rng(index)
            view = timed("left view: light, depth, normals, labels, instances", lambda: renderer.view(drive.rig.camera, pose))
            timed("exposure, noise and tone of one image", lambda: develop(view.radiance, 1.0, renderer.scene.weather, rng))
            timed("LiDAR turn of 65,536 beams", lambda: drive.rig.lidar.scan(renderer, pose @ drive.rig.camera_from_lidar, rng))
    record = {
        "command": shlex.join(["python", "bench/world.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "size": args.size,
        "weathers": weathers,
        "triangles": triangles,
        "ms": {
            name: {"p50": round(float(np.median(v)), 1), "p95": round(float(np.percentile(v, 95)), 1), "n": len(v)}
            for name, v in times.items()
        },
    }
    write(args.out, record)


def write(path: Path, record: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    rows = [f"| {name} | {v['p50']:.1f} | {v['p95']:.1f} | {v['n']} |" for name, v in record["ms"].items()]
    few, many = min(record["triangles"]), max(record["triangles"])
    text = (
        f"`{record['command']}`\n\n{record['size']}; streets of {few} to {many} triangles; weather: {', '.join(record['weathers'])}; "
        f"{record['machine']}\n\n| | p50 [ms] | p95 [ms] | runs |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
