"""Running a table of methods (`lix_core.training.table`): what is missing of it, one run after the other or several at a time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lix_core.data.registry import open_dataset
from lix_core.errors import TrainingError
from lix_core.options import nearest
from lix_core.training.config import FREE
from lix_core.training.cpu import keep_freed_memory
from lix_core.training.results import Record, score_of
from lix_core.training.table import Cell, Table, cells
from lix_core.workers import begin_work, cores


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
    """Run what is missing of a table and write `<results>/<table>.json`, `.md` and `.png` after each cell.

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
        from lix_core.training.weights import checksum

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
        wanted = any(cell is needed for unit in units for other in unit for needed in other.needs)
        if not keep and not cell.is_teacher and not wanted:
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
    """The cells of a unit that must run: those missing, the first of those that differ in their names alone, and those whose weights a
    missing one needs and which are gone."""
    keys = set({cell.fingerprint: cell.key for cell in reversed(unit) if not record.has(cell)}.values())
    for cell in reversed(unit):  # what a cell needs comes before it
        if cell.key in keys:
            keys |= {other.key for other in cell.needs if not is_finished(folder(work, other))}
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
        torch.set_num_threads(max(1, cores() // jobs))
    start = folder(work, cell.start) if cell.start else None
    teachers = [folder(work, other) for other in cell.teachers] or teacher
    result = fit(cell.config, folder(work, cell), teachers, start=start, wait=True)  # for another process that makes the same
    scored = result.test or result.val
    return {
        "counts": scored["counts"],
        "groups": scored.get("groups", {}),
        "seconds": round(result.seconds),
        "device": result.device,
        "git_revision": result.git_revision,
        "names": list(scored["iou"]),
    }
