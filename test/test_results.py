"""The committed results: what the README says of them, and that they are of the tables as these are now."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from lix_core.training.results import summary
from lix_core.training.table import Table, cells, table_names

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
PEERS = ("kd", "dkd", "cwd", "cirkd", "mgd", "pseudo")
LINES = [
    # data, labelled, table, suffix of its rows' names, row of LIX, control
    ("potholes (real), IoU", "a quarter; the rest RGB + X", "pothole-unlabelled", "", "lix", "control"),
    ("potholes (real), IoU", "all", "pothole", "", "lix", "control"),
    ("the same, a third of the steps, LIX without L_X", "all", "pothole_200steps", "", "lix", "control"),
    ("street (simulated), mIoU", "5 %; the rest RGB + X", "world-unlabelled", " 5 %", "lix 5 %", "control 5 %"),
    ("the same, more labels", "20 %; the rest RGB + X", "world-unlabelled", " 20 %", "lix 20 %", "control 20 %"),
    ("the same, every frame labelled", "all", "world-unlabelled", " 100 %", "lix 100 %", "control 100 %"),
    ("street (simulated), mIoU", "all", "world", "", "lix", "control"),
    ("CamVid (real) after the street, mIoU", "all", "camvid", "", "simulated by LIX then camvid", "simulated then camvid"),
    ("CamVid together with the street", "all", "camvid", "", "lix", "control"),
]


def result(table: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{table}.json").read_text())


def paired(rows: dict[str, Any], name: str, other: str) -> tuple[list[float], list[float]]:
    """Figures of two rows on the seeds that both have."""
    by_seed = [
        dict(zip(row["seeds"], row["miou" if "miou" in row else "iou"]["per_seed"], strict=True)) for row in (rows[name], rows[other])
    ]
    seeds = [seed for seed in by_seed[0] if seed in by_seed[1]]
    return tuple([figures[seed] for seed in seeds] for figures in by_seed)


def line(data: str, labelled: str, table: str, suffix: str, lix: str, control: str) -> str:
    """A line of the README's table, out of the result file."""
    rows = result(table)["rows"]

    def gain(name: str) -> float:
        ours, theirs = paired(rows, name, control)
        return 100 * float(np.mean(ours) - np.mean(theirs))

    def told(name: str) -> str:
        return f"{np.mean(paired(rows, name, control)[0]):.3f} ({gain(name):+.1f})"

    ours, theirs = paired(rows, lix, control)
    whole = [name for name, row in rows.items() if row["seeds"] == rows[lix]["seeds"]]  # others are of other seeds than LIX
    peers = [peer + suffix for peer in PEERS if lix in ("lix", f"lix{suffix}") and peer + suffix in whole]
    best = max(peers, key=gain, default="")
    other = f"{best.removesuffix(suffix).upper() if best != 'pseudo' + suffix else 'pseudo-labels'} {told(best)}" if best else "-"
    teacher = f"teacher{suffix}"
    taught = f"{np.mean(paired(rows, teacher, control)[0]):.3f}" if teacher in rows and table != "camvid" else "-"
    page = f"[{table}](results/{table}.md)"
    return f"| {data} | {labelled} | {np.mean(theirs):.3f} | **{told(lix)}** | {other} | {taught} | {len(ours)} | {page} |"


def test_the_readme_tells_what_the_result_files_hold():
    readme = (ROOT / "README.md").read_text()
    expected = "\n".join(line(*words) for words in LINES)
    assert expected in readme, f"the table below `Where it stands` must be\n{expected}"


@pytest.mark.parametrize("name", [name for name in table_names() if (RESULTS / f"{name}.json").exists()])
def test_a_result_is_of_the_table_as_it_is_and_follows_from_its_runs(name):
    found, table = result(name), Table.load(name)
    current = {cell.entry: cell.key for unit in cells(table, defaultdict(str)) for cell in unit}
    counted = {current[entry]: run for entry, run in found["runs"].items() if entry in current}
    assert found["rows"] and found["rows"] == summary(table, counted, [])["rows"]
    assert found["protocol"]["base"] == summary(table, counted, [])["protocol"]["base"]
