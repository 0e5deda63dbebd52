"""Where does one model beat another: at the edges of classes, or inside?

    python bench/edges.py RUN RUN... [--data ROOT] [--frames 0] [--out results/edges]

RUN: folders of `lix train` and `lix distill`; scored are the `data.test` frames (else `data.val`) of the first one. `name=RUN` names
one in the table. A pixel's distance to an edge is that to the nearest pixel of another class, in pixels (chessboard); mIoU is over the
pixels of a band alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lix_core.labels import UNLABELLED  # noqa: E402
from lix_core.metrics import ConfusionMatrix  # noqa: E402
from lix_core.training.data import Frames, scoring_batches  # noqa: E402
from lix_core.training.run import load_network  # noqa: E402
from lix_core.training.scoring import predict  # noqa: E402

BANDS = {"all": (0, np.inf), "0-2 px": (0, 3), "3-5 px": (3, 6), "6 px and more": (6, np.inf)}


def edge_distance(labels: np.ndarray) -> np.ndarray:
    """(H, W) float32: how many pixels lie between each pixel and the nearest one that has a neighbour of another class; 0 at such."""
    inner = np.ones(labels.shape, np.uint8)
    for a, b, la, lb in ((inner[:, 1:], inner[:, :-1], labels[:, 1:], labels[:, :-1]), (inner[1:], inner[:-1], labels[1:], labels[:-1])):
        a[la != lb] = b[la != lb] = 0
    return cv2.distanceTransform(inner, cv2.DIST_C, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="RUN or name=RUN")
    parser.add_argument("--data", help="root of the data set, where it has moved")
    parser.add_argument("--frames", type=int, default=0, help="only the first so many; 0: all")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "edges")
    args = parser.parse_args()
    named = dict(run.split("=", 1) if "=" in run else (Path(run).name, run) for run in args.runs)
    networks = {name: load_network(run) for name, run in named.items()}
    config = next(iter(networks.values()))[1].config
    source = config.data.test or config.data.val
    source = dataclasses.replace(source, root=args.data or source.root)
    frames = Frames(source, config.data.x)
    count = len(frames.labels)
    matrices = {name: {band: ConfusionMatrix(count) for band in BANDS} for name in networks}
    pixels = dict.fromkeys(BANDS, 0)
    scored = 0
    for batch in scoring_batches(frames, 4, config.data.eval_size, 3):
        truth = batch.labels.numpy()
        with torch.inference_mode():
            said = {name: predict(network, batch).numpy() for name, (network, _) in networks.items()}
        for index, labels in enumerate(truth):
            distance = edge_distance(labels)
            for band, (near, far) in BANDS.items():
                inside = (labels != UNLABELLED) & (distance >= near) & (distance < far)
                pixels[band] += int(inside.sum())
                for name in said:
                    matrices[name][band].update(labels[inside], said[name][index][inside])
        scored += len(truth)
        if args.frames and scored >= args.frames:
            break
    table = {name: {band: round(matrix.miou, 4) for band, matrix in bands.items()} for name, bands in matrices.items()}
    shares = {band: round(n / pixels["all"], 3) for band, n in pixels.items()}
    runs = {name: {"steps": record.step, "distill": record.config.distill.method} for name, (_, record) in networks.items()}
    result = {"command": "python bench/edges.py", "frames": scored, "share of pixels": shares, "miou": table, "runs": runs}
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    head = ["model", *(f"{band} ({shares[band]:.0%} of pixels)" for band in BANDS)]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{value:.3f}" for value in bands.values()) + " |" for name, bands in table.items()]
    print("\n".join(lines))
    args.out.with_suffix(".md").write_text(
        f"# mIoU by distance to the edge of a class\n\n`python bench/edges.py`, {scored} frames.\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
