"""Where does one model beat another: at the edges of classes or inside, and where geometry decides?

    python bench/where.py RUN RUN... [--data ROOT] [--frames 0] [--out results/where]

RUN: folders of `lix train` and `lix distill`; scored are the `data.test` frames (else `data.val`) of the first one. `name=RUN` names
one in the table. Scores are over the pixels of a region alone. A pixel's distance to an edge is that to the nearest pixel of another class,
in pixels (chessboard). On the simulated street also, where its plan and its instances say so:

- kerb side: road and pavement up to 8 pixels from where they meet; the mean IoU of the two.
- one surface: streets whose road, kerb and pavement are of one material; the IoU of pavement.
- murals: cars and people painted on walls; the share of pixels taken for building.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lix_core.data.world import WorldDataset  # noqa: E402
from lix_core.labels import UNLABELLED  # noqa: E402
from lix_core.metrics import ConfusionMatrix  # noqa: E402
from lix_core.training.compare import x_of  # noqa: E402
from lix_core.training.data import Frames, scoring_batches  # noqa: E402
from lix_core.training.scoring import predict  # noqa: E402
from lix_core.training.weights import load_network  # noqa: E402

BANDS = {"all": (0, np.inf), "0-2 px of an edge": (0, 3), "3-5 px": (3, 6), "6 px and more": (6, np.inf)}
KERB_REACH = 8
Score = Callable[[ConfusionMatrix], float]


def edge_distance(labels: np.ndarray) -> np.ndarray:
    """(H, W) float32: how many pixels lie between each pixel and the nearest one that has a neighbour of another class; 0 at such."""
    inner = np.ones(labels.shape, np.uint8)
    for a, b, la, lb in ((inner[:, 1:], inner[:, :-1], labels[:, 1:], labels[:, :-1]), (inner[1:], inner[:-1], labels[1:], labels[:-1])):
        a[la != lb] = b[la != lb] = 0
    return cv2.distanceTransform(inner, cv2.DIST_C, 3)


def bands(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Regions of any frame: name -> (H, W) bool."""
    distance, valid = edge_distance(labels), labels != UNLABELLED
    return {name: valid & (distance >= near) & (distance < far) for name, (near, far) in BANDS.items()}


class Street:
    """Regions of the frames of a simulated street, and what is scored in them."""

    def __init__(self, dataset: WorldDataset):
        self.dataset = dataset
        self.road, self.pavement, self.building = (dataset.labels.names.index(name) for name in ("road", "pavement", "building"))
        self.scores: dict[str, Score] = {
            "kerb side": lambda matrix: float(np.nanmean(matrix.iou[[self.road, self.pavement]])),
            "one surface": lambda matrix: float(matrix.iou[self.pavement]),
            "murals": lambda matrix: float(matrix.counts[self.building, self.building] / max(1, matrix.counts.sum())),
        }

    def regions(self, index: int, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Of a frame by its number: name -> (H, W) bool."""
        from lix_core.world.street import StreetPlan

        frame = self.dataset.folder.frame(index, right=False, cloud=False)
        near = [cv2.dilate((labels == c).astype(np.uint8), np.ones((2 * KERB_REACH + 1,) * 2)) > 0 for c in (self.road, self.pavement)]
        one_surface = StreetPlan.draw(frame.scene_seed).one_surface
        return {
            "kerb side": near[0] & near[1] & np.isin(labels, (self.road, self.pavement)),
            "one surface": (labels != UNLABELLED) & one_surface,
            "murals": (labels == self.building) & (frame.instances > 0),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="RUN or name=RUN")
    parser.add_argument("--data", help="root of the data set, where it has moved")
    parser.add_argument("--frames", type=int, default=0, help="N: only the first N; 0: all")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "where")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    named = dict(run.split("=", 1) if "=" in run else (Path(run).name, run) for run in args.runs)
    if len(named) < len(args.runs):
        raise SystemExit(f"two runs have one name; give them others, as teacher=RUN: {' '.join(args.runs)}")
    networks = {name: load_network(run) for name, run in named.items()}
    config = next(iter(networks.values()))[1].config
    x, channels = x_of({name: record for name, (_, record) in networks.items()})
    source = config.data.test or config.data.val
    source = dataclasses.replace(source, root=args.data or source.root)
    frames = Frames(source, x)
    street = Street(frames.dataset) if isinstance(frames.dataset, WorldDataset) and config.data.eval_size is None else None
    scores: dict[str, Score] = {band: (lambda matrix: matrix.miou) for band in BANDS} | (street.scores if street else {})
    matrices = {name: {region: ConfusionMatrix(len(frames.labels)) for region in scores} for name in networks}
    scored = 0
    for batch in scoring_batches(frames, 4, config.data.eval_size, channels):
        with torch.inference_mode():
            said = {name: predict(network, batch).numpy() for name, (network, _) in networks.items()}
        for index, labels in enumerate(batch.labels.numpy()):
            regions = bands(labels) | (street.regions(frames.dataset.names.index(batch.names[index]), labels) if street else {})
            for region, inside in regions.items():
                for name in said:
                    matrices[name][region].update(labels[inside], said[name][index][inside])
        scored += len(batch)
        if args.frames and scored >= args.frames:
            break
    pixels = {region: int(matrix.counts.sum()) for region, matrix in next(iter(matrices.values())).items()}
    found = {region: score for region, score in scores.items() if pixels[region]}
    shares = {region: round(pixels[region] / pixels["all"], 4) for region in found}
    table = {name: {region: round(score(of[region]), 4) for region, score in found.items()} for name, of in matrices.items()}
    runs = {name: {"steps": record.step, "distill": record.config.distill.method} for name, (_, record) in networks.items()}
    # As anybody can give it: whose runs they were says the table.
    given = [*(f"{name}=RUN" for name in named), *(["--data", "ROOT"] if args.data else [])]
    given += [*(["--frames", str(args.frames)] if args.frames else []), "--out", os.path.relpath(args.out, ROOT)]
    command = shlex.join(["python", "bench/where.py", *given])
    result = {"command": command, "frames": scored, "share of pixels": shares, "scores": table, "runs": runs}
    args.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    head = ["model", *(f"{region} ({shares[region]:.1%} of pixels)" for region in found)]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{value:.3f}" for value in row.values()) + " |" for name, row in table.items()]
    print("\n".join(lines))
    words = "mIoU; kerb side: mean IoU of road and pavement; one surface: IoU of pavement; murals: share of pixels taken for building"
    args.out.with_suffix(".md").write_text(
        f"# Where models differ\n\n`{command}`, {scored} frames. {words if street else 'mIoU'}.\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
