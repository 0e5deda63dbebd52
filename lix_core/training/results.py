"""The result of a table: its runs and what they come to, as JSON, and the page for people, as Markdown.

A finished cell is kept in the result file itself, with its confusion matrix and the fingerprint of its configuration: whoever has that
file goes on where it stops, on any machine, and a cell whose configuration has changed is run again.
"""

from __future__ import annotations

import copy
import json
import math
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lix_core.errors import DataError
from lix_core.files import locked, save
from lix_core.metrics import ConfusionMatrix, rounded
from lix_core.training.card import markdown_table
from lix_core.training.config import override
from lix_core.training.report import gains
from lix_core.training.table import CONTROL, Cell, Row, Table, cells


def check_run(entry: str, run: Any) -> None:
    """Raises ValueError where a run of a result file is none, as after a merge by hand: before hours are spent on another."""
    kinds = {"counts": list, "names": list, "groups": dict, "seconds": (int, float), "device": str, "git_revision": str}
    if not isinstance(run, dict) or not all(isinstance(run.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f"run {entry} is not whole: it has {', '.join(kinds)}")
    counts = np.asarray(run["counts"])
    if counts.shape != 2 * (len(run["names"]),) or counts.dtype.kind != "i" or counts.min(initial=0) < 0:
        raise ValueError(f"run {entry} counts no pixels: counts is no square of whole numbers, of {len(run['names'])} classes")


class Record:
    """The result file of a table: the finished cells, and the rows made of them.

    Several processes may write to one file, each the runs that it made.

    fingerprints: key of each cell -> its fingerprint; runs of others stay in the file and count nowhere. None: all count.
    Attributes: runs, by `Cell.entry`. data: what the file holds.
    """

    def __init__(self, table: Table, results: Path, overrides: Sequence[str] = (), fingerprints: Mapping[str, str] | None = None):
        self.table, self.path, self.overrides = table.whole or table, results / f"{table.name}.json", list(overrides)
        self.fingerprints = fingerprints
        self.runs, self.data = self._read(), {}

    def _read(self) -> dict[str, dict[str, Any]]:
        """The runs in the file."""
        try:
            runs = dict(json.loads(self.path.read_text())["runs"])
            for entry, run in runs.items():
                check_run(entry, run)
            return runs
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            raise DataError(f"{self.path} is not a result of `lix reproduce` ({error}); move it away to begin anew") from None

    def has(self, cell: Cell) -> bool:
        return self._run(cell.entry) is not None

    def _run(self, entry: str) -> dict[str, Any] | None:
        """A run, or that of another row which differs from it in the name alone."""
        own = entry.split("/")[-3:]
        return self.runs.get(entry) or next((run for other, run in self.runs.items() if other.split("/")[-3:] == own), None)

    def done(self, units: Sequence[Sequence[Cell]]) -> int:
        return sum(self.has(cell) for unit in units for cell in unit)

    def add(self, cell: Cell, result: dict[str, Any]) -> None:
        self.write({cell.entry: result})

    def write(self, new: Mapping[str, dict[str, Any]] | None = None) -> None:
        """Write the JSON file, the picture and the page, each whole or not at all, with new runs and with those that others have put there
        since. One that is there stays: made again for its weights, on another CPU or with other kernels, a run has another figure, and the
        other rows were set against this one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.parent):
            self.runs = {**(new or {}), **self.runs, **self._read()}
            entries = [f"{key}/{own}" for key, own in self.fingerprints.items()] if self.fingerprints is not None else self.runs
            counted = {entry.rpartition("/")[0]: run for entry in entries if (run := self._run(entry))}
            self.data = {**summary(self.table, counted, self.overrides), "runs": dict(sorted(self.runs.items()))}
            save(self.path, (json.dumps(self.data, indent=1) + "\n").encode())
            if points := gains_of(self.table, self.data):
                gains(points, self.path.with_suffix(".png"), f"Points of {self.data['protocol']['metric']} against the control")
            save(self.path.with_suffix(".md"), page(self.table, self.data).encode())


@dataclass(frozen=True)
class Held:
    """What a result file holds: title, seeds, rows and overrides of its page, and the runs, by `Cell.entry`."""

    title: str = ""
    seeds: tuple[int, ...] = ()
    rows: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    runs: frozenset[str] = frozenset()

    @classmethod
    def of(cls, results: Path) -> "Held":
        """Nothing where there is no such file."""
        try:
            data = json.loads(results.read_text())
            protocol = data["protocol"]
            seeds, overrides = map(int, protocol["seeds"]), protocol.get("overrides", ())
            return cls(str(data["title"]), tuple(seeds), tuple(protocol["rows"]), tuple(overrides), frozenset(data["runs"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()  # a damaged file is refused where it is gone on with

    def lost(self, table: Table, overrides: Sequence[str]) -> bool:
        """Whether runs on its page are of other settings than the table's with these overrides, which would take their place there."""
        if not self.runs or tuple(overrides) == self.overrides:
            return False
        now, then = ({cell.entry for unit in cells(table, defaultdict(str), each) for cell in unit} for each in (overrides, self.overrides))
        return bool(self.runs & (then - now))


def score_of(counts: Sequence[Sequence[int]], names: Sequence[str], metric: str) -> float:
    matrix = ConfusionMatrix.of(counts)
    return matrix.miou if metric == "miou" else float(matrix.iou[list(names).index(metric)])


def row_of(runs: Mapping[str, Mapping[str, Any]], table: Table, name: str) -> dict[str, Any] | None:
    """One row: a figure for each seed, from the confusion matrices of all folds together. None before a seed is whole."""
    key = table.key
    seeds, per_seed, per_fold, per_group, classes = [], [], [], {}, {}
    for seed in table.seeds:
        found = [runs.get(f"{name}/fold{fold}/seed{seed}") for fold in table.folds]
        if any(run is None for run in found):
            continue
        names = found[0]["names"]
        counts = np.sum([run["counts"] for run in found], axis=0)
        seeds.append(seed)
        per_seed.append(score_of(counts, names, table.metric))
        per_fold.append([rounded(score_of(run["counts"], names, table.metric)) for run in found])
        for group in {g for run in found for g in run["groups"]}:
            parts = np.sum([run["groups"][group] for run in found if group in run["groups"]], axis=0)
            per_group.setdefault(group, []).append(score_of(parts, names, table.metric))
        for class_name, value in zip(names, ConfusionMatrix.of(counts).iou):
            classes.setdefault(class_name, []).append(float(value))
    if not per_seed:
        return None
    shown = {
        group: [float(np.nanmean([classes[c][i] for c in members])) for i in range(len(per_seed))] for group, members in table.shown.items()
    }
    row = {"seeds": seeds, key: figure(per_seed)}
    if len(table.folds) > 1:
        row["per_fold"] = per_fold
    if len(classes) > 2:
        row["classes"] = {name: figure(values) for name, values in classes.items()}
    for title, figures in (("groups", per_group), ("shown", shown)):
        if figures:
            row[title] = {name: figure(values) for name, values in sorted(figures.items())}
    return row


def figure(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample standard deviation over seeds; no deviation of one seed."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return {"mean": rounded(float(np.mean(values))), "std": rounded(std), "per_seed": [rounded(v) for v in values]}


def summary(table: Table, runs: Mapping[str, Mapping[str, Any]], overrides: Sequence[str]) -> dict[str, Any]:
    """What the JSON file holds."""
    names = [row.name for row in table.rows] + list(table.teachers)
    rows = {name: row for name in names if (row := row_of(runs, table, name))}
    base = copy.deepcopy(table.base)
    for change in overrides:
        override(base, change)
    base.get("data", {}).pop("workers", None)
    made = {id(run): run for run in runs.values()}.values()  # one may stand for several rows
    protocol = {
        # With other options it is another table, which has no place in the published one's files.
        "command": " ".join([table.command or table.typed(), *map(shlex.quote, overrides), *(["--out OUT"] if overrides else [])]),
        "metric": "mIoU" if table.metric == "miou" else f"IoU of {table.metric}",
        **({"overrides": list(overrides)} if overrides else {}),
        "folds": list(table.folds),
        "seeds": list(table.seeds),
        "runs": len(made),
        "hours": round(sum(run["seconds"] for run in made) / 3600, 2),
        "devices": sorted({run["device"] for run in made}),
        "git_revisions": sorted({run["git_revision"] for run in made}),
        "base": base,
        "rows": {row.name: told_of(row, table) for row in table.rows},
        "teachers": {name: list(changes) for name, changes in table.teachers.items()},
    }
    return {"title": table.title, "rows": rows, "protocol": protocol, "runs": dict(sorted(runs.items()))}


def told_of(row: Row, table: Table) -> dict[str, Any]:
    """What makes a row: its options and, where it has them, who teaches it, whose weights it begins with, and another control than most."""
    taught, control = table.taught_by(row), table.control_of(row.name)
    teacher = list(taught) if len(taught) > 1 else "".join(taught)
    others = {"teacher": teacher, "start": row.start, "control": control if control not in (CONTROL, row.name) else ""}
    return {"set": list(row.overrides), **{key: name for key, name in others.items() if name}}


def page(table: Table, data: Mapping[str, Any]) -> str:
    """The table as Markdown; differences to the control are paired, seed by seed."""
    key = table.key
    rows, protocol = data["rows"], data["protocol"]
    folds = ["folds ahead"] if len(table.folds) > 1 else []
    extra = [*table.shown] or sorted({g for row in rows.values() for g in row.get("groups", {})})
    head, body = ["row", protocol["metric"], "against control", *folds, "seeds", *extra], []
    for name, row in rows.items():
        control = rows.get(table.control_of(name))
        apart = [row.get("shown", row.get("groups", {})).get(group) for group in extra]
        compared = [against(row, control, key, table.other_control(name)), *[folds_ahead(row, control) for _ in folds]]
        body.append([name, plus_minus(row[key]), *compared, len(row["seeds"]), *map(plus_minus, apart)])
    lines = [f"# {table.title}", "", markdown_table(head, body)]
    hours, devices = protocol["hours"], ", ".join(protocol["devices"])
    if gains_of(table, data):
        lines += ["", f"![Differences to the control, row by row]({table.name}.png)"]
    lines += [
        "",
        "Mean and standard deviation over seeds; against control: points, the mean and, in brackets, each seed;"
        f" {protocol['runs']} runs, {hours} hours on {devices}.",
        f"Made by `{protocol['command']}`.",
    ]
    if others := len(data["runs"]) - protocol["runs"]:
        lines.append(f"The JSON file has {others} runs of other settings too, which do not count here.")
    if waiting := [f"`{name}`" for name in (*protocol["rows"], *protocol["teachers"]) if name not in rows]:
        lines.append(f"Rows of the table that no seed has whole yet: {', '.join(waiting)}.")
    if table.notes:
        lines += ["", table.notes.strip()]
    if table.metric == "miou" and (names := list(dict.fromkeys(name for row in rows.values() for name in row.get("classes", {})))):
        means = {name: [row.get("classes", {}).get(class_name, {}).get("mean") for class_name in names] for name, row in rows.items()}
        shown = [[name, *("-" if mean is None else f"{mean:.3f}" for mean in values)] for name, values in means.items()]
        lines += ["", "## IoU of each class, mean over the seeds of the row", "", markdown_table(["row", *names], shown)]
    return "\n".join(lines) + "\n"


def gains_of(table: Table, data: Mapping[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """Of each row but teachers, which are far above, its differences to the control [points]: those of seeds, and those of folds. The names
    tell of another control."""
    key = table.key
    rows = {name: (row, data["rows"].get(table.control_of(name))) for name, row in data["rows"].items() if name not in table.teachers}
    found = {name: (differences(*pair, key), fold_differences(*pair)) for name, pair in rows.items()}
    others = {name: f"\nagainst {control}" if (control := table.other_control(name)) else "" for name in found}
    return {name + others[name]: points for name, points in found.items() if points[0]}


def plus_minus(found: Mapping[str, Any] | None) -> str:
    if not found or found["mean"] is None:
        return "-"
    return f"{float(np.mean(found['per_seed'])):.3f}" + (f" ± {found['std']:.3f}" if found["std"] is not None else "")


def against(row: Mapping[str, Any], control: Mapping[str, Any] | None, key: str, name: str = "") -> str:
    """Differences to the control on the seeds that both have [points]: their mean and, of several, each in brackets. name: of the control,
    where it shall be told."""
    points = differences(row, control, key)
    if not points:
        return "-"
    each = f" ({', '.join(f'{value:+.1f}' for value in points)})" if len(points) > 1 else ""
    return f"{float(np.mean(points)):+.1f}{each}" + (f" against {name}" if name else "")


def folds_ahead(row: Mapping[str, Any], control: Mapping[str, Any] | None) -> str:
    """In how many of the folds and seeds that both have a row is above its control."""
    points = fold_differences(row, control)
    return f"{sum(value > 0 for value in points)} of {len(points)}" if points else "-"


def differences(row: Mapping[str, Any], control: Mapping[str, Any] | None, key: str) -> list[float]:
    """To the control on each of the seeds that both have [points]; none of the control itself."""
    if not control or row is control:
        return []
    theirs = dict(zip(control["seeds"], control[key]["per_seed"]))
    return points_between((ours, theirs[seed]) for seed, ours in zip(row["seeds"], row[key]["per_seed"]) if seed in theirs)


def fold_differences(row: Mapping[str, Any], control: Mapping[str, Any] | None) -> list[float]:
    """The same on each fold of these seeds; none in a table without folds."""
    if not control or row is control or "per_fold" not in row:
        return []
    theirs = dict(zip(control["seeds"], control["per_fold"]))
    return points_between(pair for seed, ours in zip(row["seeds"], row["per_fold"]) if seed in theirs for pair in zip(ours, theirs[seed]))


def points_between(pairs: Iterable[tuple[float | None, float | None]]) -> list[float]:
    """Differences [points] of scores; None, where there was nothing to score, has none."""
    return [100 * (ours - other) for ours, other in pairs if ours is not None and other is not None]
