"""Tables of methods: the runs that a table needs, one after the other or where they were left, and the table out of them.

A table is a YAML file beside this one in tables/ (`TABLES`). It names one configuration for all rows, one for each teacher, the
folds and seeds, and what sets each row apart. A cell of it (row, fold, seed) is one run of `lix_core.training.run.fit`; cells that
share fold and seed share teacher, initial weights, order, views and schedule.

A finished cell is kept in the result file itself, with its confusion matrix and the fingerprint of its configuration: whoever has that
file goes on where it stops, on any machine, and a cell whose configuration has changed is run again.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
import shlex
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lix_core.data.registry import open_dataset
from lix_core.distill.config import DistillConfig
from lix_core.errors import DataError, TrainingError
from lix_core.files import locked, save
from lix_core.metrics import ConfusionMatrix, rounded
from lix_core.options import nearest
from lix_core.training.config import FREE, Config, TrainerConfig, from_dict, load_config, override, to_dict
from lix_core.training.cpu import keep_freed_memory
from lix_core.workers import begin_work

TABLES = resources.files("lix_core.training") / "tables"
TEACHER, CONTROL = "teacher", "control"
"""Names of the teacher that rows learn from, and of the row that they are set against, where a table does not say otherwise."""


LATER = {"lix": {"sampling": "pooled", "pseudo": 0.0, "threshold": 0.9}}
"""Options of methods that came when there were results, and what these were made with: such a value is in no fingerprint."""

WORLD_FRAMES = {"train": (480, 101), "val": (60, 102), "test": (160, 103)}
"""Frames and seed of each split of the simulated street that the tables are of, the other options of `lix world render` as they are."""


@dataclass(frozen=True)
class Row:
    """One row.

    overrides: what sets its configuration apart, as `a.b=value`. teacher: that it learns from, "" for none. control: the row that it is
    set against, "" for none. start: the row above, or the teacher, whose weights it begins with, "" for those of the configuration.
    """

    name: str
    overrides: tuple[str, ...] = ()
    teacher: str = TEACHER
    control: str = CONTROL
    start: str = ""


@dataclass(frozen=True)
class Table:
    """What is measured, and on what.

    title: of the Markdown page. metric: `miou`, or the name of the class whose IoU counts. base: configuration of every run.
    teachers: name -> overrides of a teacher's run. shown: groups of classes shown apart, name -> class names. folds: values of
    `{fold}` in the configuration. seeds: of the runs. notes: paragraphs for the page. command: that makes it, without overrides; empty:
    `lix reproduce` with its name.
    """

    name: str
    title: str
    metric: str
    base: dict[str, Any]
    teachers: dict[str, tuple[str, ...]]
    rows: tuple[Row, ...]
    folds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0, 1, 2)
    shown: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: str = ""
    command: str = ""
    whole: "Table | None" = None
    """Of a part of a table, the table: a result file is always of all of it."""

    @classmethod
    def load(cls, name: str) -> "Table":
        """A table by its name. Raises TrainingError where there is none, or where its file does not hold one."""
        names = table_names()
        if name not in names:
            raise TrainingError(f"there is no table {name!r}{nearest(name, names)}; there are {', '.join(names)}")
        try:
            data = yaml.safe_load((TABLES / f"{name}.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise TrainingError(f"table {name} cannot be read: {' '.join(str(error).split())}") from None
        return cls.from_dict(name, data)

    @classmethod
    def from_dict(cls, name: str, data: Mapping[str, Any]) -> "Table":
        """Raises TrainingError where a key is unknown, missing or no such thing, or a row learns from a teacher that there is none of."""
        known = {"title": str, "metric": str, "base": dict, "teachers": dict, "rows": dict, "folds": list, "seeds": list}
        known |= {"shown": dict, "notes": str}
        check_kinds(f"table {name}", data, known)
        unknown = [key for key in data if key not in known]
        missing = [key for key in ("title", "metric", "base", "rows") if key not in data]
        if unknown or missing:
            wrong = f"unknown key {unknown[0]}{nearest(unknown[0], known)}" if unknown else f"{missing[0]} is missing"
            raise TrainingError(f"table {name}: {wrong}")
        teachers = {str(key): flat(value or (), f"teacher {key} of table {name}") for key, value in data.get("teachers", {}).items()}
        rows = []
        for key, value in data["rows"].items():
            value, where = value or {}, f"row {key} of table {name}"
            check_kinds(where, value, {"teacher": str, "control": str, "start": str})
            if other := [word for word in value if word not in ROW]:
                raise TrainingError(f"{where}: unknown key {other[0]}{nearest(other[0], ROW)}; there are {', '.join(ROW)}")
            teacher = value.get("teacher", TEACHER if TEACHER in teachers else "")
            start = value.get("start", "")
            if start and start not in [*teachers, *(row.name for row in rows)]:
                raise TrainingError(f"{where} starts from {start!r}, which is no teacher and no row above it")
            rows.append(Row(str(key), flat(value.get("set", ()), where), teacher, value.get("control", CONTROL), start))
            if rows[-1].teacher and rows[-1].teacher not in teachers:
                raise TrainingError(f"{where} learns from {rows[-1].teacher!r}; its teachers are {', '.join(teachers)}")
        names = [row.name for row in rows]
        for key, value in data["rows"].items():
            control = (value or {}).get("control", "")
            if control and control not in names:
                raise TrainingError(f"row {key} of table {name} is set against {control!r}, which is no row{nearest(control, names)}")
        sequences = {key: tuple(data[key]) for key in ("folds", "seeds") if key in data}
        shown = {str(key): tuple(value) for key, value in data.get("shown", {}).items()}
        texts = {key: str(data[key]) for key in ("title", "metric")} | {"notes": str(data.get("notes", ""))}
        return cls(name, base=dict(data["base"]), teachers=teachers, rows=tuple(rows), shown=shown, **sequences, **texts)

    @classmethod
    def of_variations(cls, name: str, config: str | Path, variations: Sequence[str], metric: str, seeds: Sequence[int]) -> "Table":
        """The table of `lix ablate`: a row for the configuration as it is and one for each value of `a.b=v,v`, every option alone.

        `a.b=v` with one value changes all rows. Options are chosen on validation frames: where the configuration has `data.val`, these are
        scored and not `data.test`. Raises TrainingError on what `load_config` refuses, and where nothing varies.
        """
        split = [(key, values_of(values)) for key, equals, values in (text.partition("=") for text in variations)]
        fixed = [f"{key}={values[0]}" for key, values in split if len(values) == 1]
        refuse_decided(fixed)
        base = to_dict(load_config(config, fixed))
        if base["data"]["val"]:
            base["data"]["test"] = None
        rows = [Row(f"{key}={value}", (f"{key}={value}",), "") for key, values in split if len(values) > 1 for value in values]
        if not rows:
            raise TrainingError(f"nothing varies in {' '.join(variations)}: give an option several values, as distill.lix.tau=1,2,4")
        title = f"Variations of {config}" + (f" with {' '.join(fixed)}" if fixed else "")
        return cls(name, title, metric, base, {}, (Row(CONTROL, (), ""), *rows), seeds=tuple(seeds) or (0, 1, 2))

    @property
    def datasets(self) -> set[str]:
        """Names of the data sets that its rows and teachers are trained and scored on."""
        parts = [*self.teachers.values(), *(row.overrides for row in self.rows)]
        places = {"fold": self.folds[0], "seed": self.seeds[0]}
        return {source.dataset for changes in parts for source in from_dict(filled(self.tree(changes), places)).data.all_sources}

    def tree(self, changes: Sequence[str]) -> dict[str, Any]:
        """Its base with some options changed. Raises TrainingError."""
        refuse_decided(changes)
        tree = copy.deepcopy(self.base)
        for change in changes:
            override(tree, change)
        return tree

    def narrowed(self, rows: Sequence[str] = (), seeds: Sequence[int] = (), folds: Sequence[int] = ()) -> "Table":
        """The same with some of its rows (and the teachers that they learn or start from, and rows to start from), seeds and folds only.

        Raises TrainingError on a row, fold or seed that it does not have.
        """
        names = [row.name for row in self.rows]
        for word in rows:
            if word not in names and word not in self.teachers:
                raise TrainingError(f"table {self.name} has no row {word!r}{nearest(word, names)}; it has {', '.join(names)}")
        for what, some, every in (("folds", folds, self.folds), ("seeds", seeds, self.seeds)):
            for number in some:
                if number not in every:
                    raise TrainingError(f"table {self.name} has {what} {', '.join(map(str, every))}, not {number}")
        wanted = set(rows)
        for row in reversed(self.rows):  # what a row starts from is above it
            wanted |= {row.start} if row.name in wanted else set()
        kept = tuple(row for row in self.rows if not rows or row.name in wanted)
        taught = {teacher for row in kept for teacher in (row.teacher if self.distills(row) else "", row.start)}
        teachers = {name: changes for name, changes in self.teachers.items() if not rows or name in rows or name in taught}
        some = {"rows": kept, "teachers": teachers, "seeds": tuple(seeds) or self.seeds, "folds": tuple(folds) or self.folds}
        return replace(self, **some, whole=self.whole or self)

    def control_of(self, name: str) -> str:
        """The row that a row or teacher is set against; "" for none, as for a teacher with test frames of its own."""
        own = {row.name: row.control for row in self.rows}
        own |= {teacher: "" for teacher, changes in self.teachers.items() if any(change.startswith("data.test") for change in changes)}
        return own.get(name, CONTROL)

    def distills(self, row: Row) -> bool:
        """Whether a row learns from its teacher."""
        tree = self.tree(row.overrides)
        return tree.get("distill", {}).get("method", DistillConfig().method) != "none"


ROW = ("teacher", "control", "start", "set")
DECIDED = {
    "seed": "choose seeds with --seeds",
    "name": "it is made of the table's, the row's, the fold and the seed",
    "model.kind": "rows are students, and teachers have a place of their own in a table",
}
"""Options that a table sets itself, and what to do instead of changing them."""


def refuse_decided(changes: Sequence[str]) -> None:
    """Raises TrainingError where one is of an option that the table decides of."""
    for change in changes:
        if (key := change.partition("=")[0].strip()) in DECIDED:
            raise TrainingError(f"{change}: {key} of a run is not for a change to say; {DECIDED[key]}")


def check_kinds(what: str, data: Any, kinds: Mapping[str, type]) -> None:
    """Raises TrainingError unless `data` is a mapping whose values are of the kinds that YAML gives for them."""
    words = {str: "text", dict: "keys with values", list: "a list"}
    for key, value, kind in (("", data, dict), *((key, data[key], kinds[key]) for key in kinds if isinstance(data, dict) and key in data)):
        if not isinstance(value, kind):
            raise TrainingError(f"{what}: {key or 'it'} must be {words[kind]}, got {value!r}")


def flat(overrides: Any, where: str) -> tuple[str, ...]:
    """Overrides out of one text, or a list that may hold lists, as YAML's aliases of lists make them. Raises TrainingError."""
    if isinstance(overrides, str):
        return (overrides,)
    if not isinstance(overrides, (list, tuple)):
        raise TrainingError(f"{where}: options are texts as optim.lr=0.001, in a list; got {overrides!r}")
    return tuple(text for part in overrides for text in flat(part, where))


def table_names() -> list[str]:
    """Names of the tables that come with lix."""
    return sorted(path.name.removesuffix(".yaml") for path in TABLES.iterdir() if path.name.endswith(".yaml"))


@dataclass(frozen=True)
class Cell:
    """One run of a table. settings: what the table says of its configuration. taught_by: fingerprint of its teacher, "" without one.
    start: whose weights it begins with."""

    row: str
    fold: int
    seed: int
    config: Config
    settings: dict[str, Any]
    teacher: "Cell | None" = None
    taught_by: str = ""
    start: "Cell | None" = None

    @property
    def key(self) -> str:
        return f"{self.row}/fold{self.fold}/seed{self.seed}"

    @property
    def entry(self) -> str:
        """Its key among the runs of a result file, which may have runs of other settings."""
        return f"{self.key}/{self.fingerprint}"

    @property
    def is_teacher(self) -> bool:
        return self.config.model.kind == "teacher"

    @cached_property
    def fingerprint(self) -> str:
        """Of what decides the numbers: the settings but for places and how the run is carried out, the method's options, the teacher.

        Other options that a table leaves as they are do not count, so that a new one does not spoil all results; the revision of the
        sources is kept beside each.
        """
        plain = {key: value for key, value in copy.deepcopy(self.settings).items() if key not in ("name", "trainer", "distill")}
        for source in sources_of(plain["data"]):
            source.pop("root", None)
        plain["data"].pop("workers", None)
        distill = self.config.distill
        method = distill.method
        options = {} if self.is_teacher else to_dict(self.config)["distill"].get(method, {})
        options = {key: value for key, value in options.items() if (key, value) not in LATER.get(method, {}).items()}
        if distill.class_weights and method != "none" and not self.is_teacher:
            options["class_weights"] = True
        if distill.edge and method != "none" and not self.is_teacher:
            options["edge"] = distill.edge
        trainer, usual = self.config.trainer, TrainerConfig()
        carried = {"precision": trainer.precision} if trainer.precision != usual.precision else {}
        if self.config.data.val and trainer.val_every != usual.val_every:  # which decides what is the best checkpoint
            carried["val_every"] = trainer.val_every
        parts = [plain, method, options, self.taught_by, *([self.start.fingerprint] if self.start else []), *([carried] if carried else [])]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def sources_of(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sources in plain data of a DataConfig, those of validation and test too."""
    return [source for source in (*data.get("sources", []), data.get("val"), data.get("test")) if source]


def cells(table: Table, roots: Mapping[str, str], overrides: Sequence[str] = (), taught_by: str = "") -> list[list[Cell]]:
    """The cells, in units of one fold and seed: its teachers first, then its rows. taught_by: of the rows of a table without teachers."""
    return [unit_of(table, fold, seed, roots, overrides, taught_by) for seed in table.seeds for fold in table.folds]


def unit_of(table: Table, fold: int, seed: int, roots: Mapping[str, str], overrides: Sequence[str], taught_by: str) -> list[Cell]:
    def cell(name: str, changes: Sequence[str], kind: str, teacher: Cell | None = None, by: str = "", start: Cell | None = None) -> Cell:
        tree = table.tree([*changes, *overrides])
        for change in (f"model.kind={kind}", f"seed={seed}"):
            override(tree, change)
        tree = filled(tree, {"fold": fold, "seed": seed})
        config = from_dict({**tree, "name": f"{table.name} {name} fold {fold} seed {seed}"})
        for source in config.data.all_sources:
            source.root = source.root or root_of(source.dataset, roots)
        if not (config.data.test or config.data.val):
            raise TrainingError(f"nothing would be scored in {name} of table {table.name}: set data.val or data.test")
        if config.distill.method == "none":
            teacher, by = None, ""
        return Cell(name, fold, seed, config, tree, teacher, teacher.fingerprint if teacher else by, start)

    teachers = {name: cell(name, changes, "teacher") for name, changes in table.teachers.items()}
    students: dict[str, Cell] = {}
    for row in table.rows:
        first = {**teachers, **students}.get(row.start)
        students[row.name] = cell(row.name, row.overrides, "student", teachers.get(row.teacher), taught_by, first)
    return [*teachers.values(), *students.values()]


def filled(value: Any, words: Mapping[str, Any]) -> Any:
    """Plain data with `{fold}` and `{seed}` replaced; a text that is nothing else becomes the number."""
    if isinstance(value, dict):
        return {key: filled(item, words) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, words) for item in value]
    whole = {"{" + key + "}": item for key, item in words.items()}
    return whole.get(value, value) if isinstance(value, str) else value


def root_of(dataset: str, roots: Mapping[str, str]) -> str:
    """Raises DataError where nobody has said."""
    if not dataset:
        raise DataError("a source of data has no `dataset`: write which one it is of, beside its split")
    try:
        return roots[dataset]
    except KeyError:
        words = (
            f"the data set {dataset} is needed: say where it is, for a table with --data {dataset}=FOLDER, otherwise as root of its source"
        )
        raise DataError(words) from None


def values_of(text: str) -> list[str]:
    """`a,b` and `[a,b],[c]` in parts, at the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


# Running.


def reproduce(
    table: Table,
    results: Path,
    work: Path,
    roots: Mapping[str, str],
    overrides: Sequence[str] = (),
    jobs: int = 1,
    keep: bool = False,
    teacher: Path | None = None,
    report: Callable[[str, int, int], None] = lambda text, done, total: None,
    prepare: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Run what is missing of a table and write `<results>/<table>.json` and `.md` after each cell.

    results: folder of the result files. work: folder of the runs; what they leave there is deleted cell by cell unless `keep`,
    but for those whose weights others need.
    roots: data set -> its folder. overrides: `a.b=value` for every run, which belong to the fingerprints. jobs: units of one fold and
    seed that run at the same time, each with its share of the cores. teacher: run of the teacher, for a table without teachers.
    report: called with what was done, and how many of how many are. prepare: called before the first run, if any is missing.

    Returns:
        What the JSON file holds.

    Raises:
        TrainingError, DataError: a metric that is no class of the data; of the first run that cannot be made; cells that were finished
            are kept.
    """
    taught_by = ""
    if teacher:
        from lix_core.training.run import checksum

        taught_by = checksum(teacher)[:16]
    units = cells(table, roots, overrides, taught_by)
    whole = cells(table.whole or table, defaultdict(str, roots), overrides, taught_by)  # places are not in fingerprints
    record = Record(table, results, overrides, {cell.key: cell.fingerprint for unit in whole for cell in unit})
    total = sum(map(len, units))
    if record.done(units) < total:
        prepare()
        check_metric(table, units[0][-1])
    report(f"{record.done(units)} of {total} runs are there", record.done(units), total)
    for cell, result in finished_cells(units, record, work, jobs, teacher):
        record.add(cell, result)
        if not keep and not cell.is_teacher and not any(other.start is cell for unit in units for other in unit):
            shutil.rmtree(folder(work, cell), ignore_errors=True)
        report(f"{cell.key}: {table.metric} {score_of(result['counts'], result['names'], table.metric):.4f}", record.done(units), total)
    record.write()
    return record.data


def check_metric(table: Table, cell: Cell) -> None:
    """Raises TrainingError where the class whose IoU counts is not in the data that the cell is scored on."""
    source = cell.config.data.test or cell.config.data.val
    if table.metric != "miou":
        names = open_dataset(source.dataset, source.root, source.split, **source.options).labels.names
        if table.metric not in names:
            near = nearest(table.metric, names)
            raise TrainingError(f"the metric of table {table.name}, {table.metric!r}, is not miou nor a class{near}: {', '.join(names)}")


def finished_cells(
    units: list[list[Cell]], record: "Record", work: Path, jobs: int, teacher: Path | None
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Each missing cell with its result, as they come."""
    # What a unit needs is asked again when its turn comes: another process may have made it meanwhile.
    missing = [unit for unit in units if needed(unit, record, work)]
    waiting = (iter(needed(unit, record, work)) for unit in missing)
    jobs = min(jobs, len(missing))
    if jobs <= 1:
        for cell in chain.from_iterable(waiting):
            yield cell, run_cell(cell, work, 0, teacher)
        return
    # Spawned, because a forked process inherits the threads of the libraries in a state that hangs.
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, context, begin_training, (theirs,))
    running: dict[Any, tuple[Cell, Iterator[Cell]]] = {}

    def go_on(queue: Iterator[Cell]) -> bool:
        cell = next(queue, None)
        if cell is not None:
            running[pool.submit(run_cell, cell, work, jobs, teacher)] = (cell, queue)
        return cell is not None

    try:
        # A pool notices the death of no process that it has started since it last had a result: all of them are started here.
        wait([pool.submit(os.getpid) for _ in range(jobs)])
        while True:
            while len(running) < jobs and (queue := next(waiting, None)) is not None:
                go_on(queue)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, queue = running.pop(future)
                yield cell, future.result()
                go_on(queue)
    except BrokenProcessPool:
        raise TrainingError("a process that trains died (is memory short?); the same command goes on, fewer --jobs need less") from None
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)


def begin_training(stop: Connection) -> None:
    """First in a worker process. A run that ends with it another command goes on with."""
    begin_work(stop)
    keep_freed_memory()


def needed(unit: Sequence[Cell], record: "Record", work: Path) -> list[Cell]:
    """The cells of a unit that must run: those missing, and those whose weights a missing one needs and which are gone."""
    keys = {cell.key for cell in unit if not record.has(cell)}
    for cell in reversed(unit):  # what a cell needs comes before it
        if cell.key in keys:
            keys |= {other.key for other in (cell.teacher, cell.start) if other and not is_finished(folder(work, other))}
    return [cell for cell in unit if cell.key in keys]


def folder(work: Path, cell: Cell) -> Path:
    """Of a run. Another one for settings that are in no fingerprint and under which a run that was stopped cannot go on."""
    parts = ("trainer",) if cell.is_teacher else ("trainer", "distill")
    carried = {f"{part}.{key}": value for part in parts for key, value in cell.settings.get(part, {}).items()}
    facts = [cell.row, cell.fingerprint, {key: value for key, value in carried.items() if key not in FREE}]
    short = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    return work / "-".join([re.sub(r"[^\w.]+", "_", cell.row)[:80], f"fold{cell.fold}", f"seed{cell.seed}", short])


def is_finished(run: Path) -> bool:
    return (run / "result.json").exists() and (run / "checkpoints" / "best.ckpt").exists()


def run_cell(cell: Cell, work: Path, jobs: int, teacher: Path | None = None) -> dict[str, Any]:
    """Train one cell and score it on its test, else validation frames: confusion matrix (truth in rows) in all and by group, and what it
    took."""
    import torch

    from lix_core.training.run import fit

    if jobs > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // jobs))
    start = folder(work, cell.start) if cell.start else None
    teacher = folder(work, cell.teacher) if cell.teacher else teacher
    result = fit(cell.config, folder(work, cell), teacher, start=start, wait=True)  # for another process that makes the same
    scored = result.test or result.val
    return {
        "counts": scored["counts"],
        "groups": scored.get("groups", {}),
        "seconds": round(result.seconds),
        "device": result.device,
        "git_revision": result.git_revision,
        "names": list(scored["iou"]),
    }


# The result.


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
            return dict(json.loads(self.path.read_text())["runs"])
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise DataError(f"{self.path} is not a result of `lix reproduce` ({error}); move it away to begin anew") from None

    def has(self, cell: Cell) -> bool:
        return cell.entry in self.runs

    def done(self, units: Sequence[Sequence[Cell]]) -> int:
        return sum(self.has(cell) for unit in units for cell in unit)

    def add(self, cell: Cell, result: dict[str, Any]) -> None:
        self.write({cell.entry: result})

    def write(self, new: Mapping[str, dict[str, Any]] | None = None) -> None:
        """Write both files, each whole or not at all, with new runs and with those that others have put there, or made anew, since."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.parent):
            self.runs = {**self.runs, **self._read(), **(new or {})}
            known, counted = self.fingerprints, {}
            for entry, run in self.runs.items():
                key, _, fingerprint = entry.rpartition("/")
                if known is None or fingerprint == known.get(key):
                    counted[key] = run
            self.data = {**summary(self.table, counted, self.overrides), "runs": dict(sorted(self.runs.items()))}
            save(self.path, (json.dumps(self.data, indent=1) + "\n").encode())
            save(self.path.with_suffix(".md"), page(self.table, self.data).encode())


def title_and_seeds(results: Path) -> tuple[str, list[int]]:
    """Those of the table that a result file holds; "" and none where there is no such file."""
    try:
        data = json.loads(results.read_text())
        return str(data["title"]), [int(seed) for seed in data["protocol"]["seeds"]]
    except (OSError, ValueError, KeyError, TypeError):
        return "", []  # a damaged file is refused where it is gone on with


def score_of(counts: Sequence[Sequence[int]], names: Sequence[str], metric: str) -> float:
    matrix = ConfusionMatrix(len(counts))
    matrix.counts[:] = counts
    return matrix.miou if metric == "miou" else float(matrix.iou[list(names).index(metric)])


def row_of(runs: Mapping[str, Mapping[str, Any]], table: Table, name: str) -> dict[str, Any] | None:
    """One row: a figure for each seed, from the confusion matrices of all folds together. None before a seed is whole."""
    key = "miou" if table.metric == "miou" else "iou"
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
        matrix = ConfusionMatrix(len(counts))
        matrix.counts[:] = counts
        for class_name, value in zip(names, matrix.iou):
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
    protocol = {
        "command": " ".join([table.command or f"lix reproduce {table.name}", *map(shlex.quote, overrides)]),
        "metric": "mIoU" if table.metric == "miou" else f"IoU of {table.metric}",
        "folds": list(table.folds),
        "seeds": list(table.seeds),
        "runs": len(runs),
        "hours": round(sum(run["seconds"] for run in runs.values()) / 3600, 2),
        "devices": sorted({run["device"] for run in runs.values()}),
        "git_revisions": sorted({run["git_revision"] for run in runs.values()}),
        "base": base,
        "rows": {row.name: {"set": list(row.overrides), "teacher": row.teacher} for row in table.rows},
        "teachers": {name: list(changes) for name, changes in table.teachers.items()},
    }
    return {"title": table.title, "rows": rows, "protocol": protocol, "runs": dict(sorted(runs.items()))}


def page(table: Table, data: Mapping[str, Any]) -> str:
    """The table as Markdown; differences to the control are paired, seed by seed."""
    key = "miou" if table.metric == "miou" else "iou"
    rows, protocol = data["rows"], data["protocol"]
    folds = ["folds ahead"] if len(table.folds) > 1 else []
    extra = [*table.shown] or sorted({g for row in rows.values() for g in row.get("groups", {})})
    lines = [f"# {table.title}", "", *heading("row", protocol["metric"], "against control", *folds, "seeds", *extra)]
    for name, row in rows.items():
        control = rows.get(table.control_of(name))
        apart = [row.get("shown", row.get("groups", {})).get(group) for group in extra]
        compared = [against(row, control, key), *[folds_ahead(row, control) for _ in folds]]
        lines.append(line(name, plus_minus(row[key]), *compared, str(len(row["seeds"])), *map(plus_minus, apart)))
    hours, devices = protocol["hours"], ", ".join(protocol["devices"])
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
        lines += ["", "## IoU of each class, mean over the seeds of the row", "", *heading("row", *names)]
        for name, row in rows.items():
            means = [row.get("classes", {}).get(class_name, {}).get("mean") for class_name in names]
            lines.append(line(name, *("-" if mean is None else f"{mean:.3f}" for mean in means)))
    return "\n".join(lines) + "\n"


def line(*cells_: str) -> str:
    return f"| {' | '.join(cells_)} |"


def heading(*names: str) -> list[str]:
    return [line(*names), line(*["---"] * len(names))]


def plus_minus(found: Mapping[str, Any] | None) -> str:
    if not found or found["mean"] is None:
        return "-"
    return f"{found['mean']:.3f}" + (f" ± {found['std']:.3f}" if found["std"] is not None else "")


def against(row: Mapping[str, Any], control: Mapping[str, Any] | None, key: str) -> str:
    """Differences to the control on the seeds that both have [points]: their mean and, of several, each in brackets."""
    if not control or row is control:
        return "-"
    theirs = dict(zip(control["seeds"], control[key]["per_seed"]))
    pairs = [(ours, theirs[seed]) for seed, ours in zip(row["seeds"], row[key]["per_seed"]) if None not in (ours, theirs.get(seed))]
    if not pairs:
        return "-"
    points = [100 * (a - b) for a, b in pairs]
    each = f" ({', '.join(f'{value:+.1f}' for value in points)})" if len(points) > 1 else ""
    return f"{float(np.mean(points)):+.1f}{each}"


def folds_ahead(row: Mapping[str, Any], control: Mapping[str, Any] | None) -> str:
    """In how many of the folds and seeds that both have a row is above its control."""
    if not control or row is control:
        return "-"
    theirs = dict(zip(control["seeds"], control["per_fold"]))
    pairs = [pair for seed, ours in zip(row["seeds"], row["per_fold"]) if seed in theirs for pair in zip(ours, theirs[seed])]
    pairs = [pair for pair in pairs if None not in pair]
    return f"{sum(ours > other for ours, other in pairs)} of {len(pairs)}" if pairs else "-"
