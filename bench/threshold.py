"""What X says of potholes without any network: it lies below a threshold.

    python bench/threshold.py --data FOLDER [--out results/pothole_threshold]

FOLDER: stereo_pothole as docs/data.md says. Scored as the tables `pothole` and `pothole-unlabelled` are: frames at 128x224, one confusion
matrix over the five test folds. The threshold is half-way between road and potholes, for which no label is needed; or the best one on
the labelled frames that a fold's teacher has, a quarter of the training frames or all. Where X is unknown there is road.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lix_core.data.pothole import FOLDS, X_KIND, labels_of_threshold  # noqa: E402
from lix_core.data.sample import Sample  # noqa: E402
from lix_core.data.transforms import eval_transform  # noqa: E402
from lix_core.metrics import ConfusionMatrix  # noqa: E402
from lix_core.training.card import markdown_table  # noqa: E402
from lix_core.training.config import Source  # noqa: E402
from lix_core.training.data import Frames  # noqa: E402
from lix_core.training.table import Table  # noqa: E402

HALF_WAY = -2.0
CANDIDATES = np.arange(-5, -0.5, 0.1)
POTHOLE = 1


def counts(frames: Iterable[Sample], threshold: float) -> ConfusionMatrix:
    """Of frames as they are scored, and what X below a threshold says of them."""
    matrix = ConfusionMatrix(2)
    for frame in frames:
        matrix.update(frame.labels, labels_of_threshold((frame.x, frame.known), threshold) == POTHOLE)
    return matrix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of stereo_pothole")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "pothole_threshold")
    args = parser.parse_args()
    size = Table.load("pothole").base["data"]["eval_size"]
    at_size = eval_transform(size)

    def frames(split: str, fold: int, labelled: float = 1.0) -> list[Sample]:
        source = Source("pothole", args.data, split, {"fold": fold}, labelled, keep="labelled")
        return [at_size(frame) for frame in Frames(source, X_KIND)]

    tests = [frames("test", fold) for fold in range(len(FOLDS))]
    rows = []
    for words, share in (("half-way, no labels", 0.0), ("best on a quarter of the training labels", 0.25), ("best on all of them", 1.0)):
        chosen = []
        for fold in range(len(FOLDS)):
            seen = frames("train", fold, share) if share else []
            chosen.append(max(CANDIDATES, key=lambda t: counts(seen, t).iou[POTHOLE]) if share else HALF_WAY)
        matrices = [counts(test, threshold) for test, threshold in zip(tests, chosen)]
        whole = ConfusionMatrix.of(sum(matrix.counts for matrix in matrices))
        rows.append(
            {
                "threshold": words,
                "iou": round(float(whole.iou[POTHOLE]), 4),
                "per_fold": [round(float(matrix.iou[POTHOLE]), 4) for matrix in matrices],
                "chosen": [round(float(threshold), 1) for threshold in chosen],
            }
        )
    command = f"python bench/threshold.py --data FOLDER --out {os.path.relpath(args.out, ROOT)}"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps({"command": command, "size": size, "rows": rows}, indent=1) + "\n")
    heads = ("threshold of X", "IoU", *(f"fold {fold}" for fold in range(len(FOLDS))), "thresholds")
    cells = [
        (row["threshold"], f"{row['iou']:.3f}", *(f"{iou:.3f}" for iou in row["per_fold"]), ", ".join(map(str, sorted(set(row["chosen"])))))
        for row in rows
    ]
    text = f"# Potholes by X alone\n\n`{command}`: {' '.join(__doc__.split('as docs/data.md says. ')[1].split())}\n\n"
    args.out.with_suffix(".md").write_text(text + markdown_table(heads, cells) + "\n")
    print(markdown_table(heads, cells))


if __name__ == "__main__":
    main()
