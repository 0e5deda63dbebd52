"""`lix reproduce` and `lix ablate`: tables of training runs, resumable run by run."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Optional

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table as Grid

from lix_core.cli.places import DATA, origin, places_of
from lix_core.cli.tables import print_table
from lix_core.cli.typed import typed
from lix_core.errors import TrainingError
from lix_core.files import make_folder
from lix_core.progress import progress_bar
from lix_core.workers import cores

OUT = typer.Option(Path("results"), "--out", "-o", help="Folder of <table>.json, .md and .png; a table that is there is gone on with.")
WORK = typer.Option(Path("out/runs"), help="Folder for the runs while they last.")
SEEDS = typer.Option("", help="Only these seeds, as 0,1,2; empty: those of the table.")
JOBS = typer.Option(1, min=1, help="Runs at the same time, each with its share of the cores.")
KEEP = typer.Option(False, "--keep", help="Keep the folders of the runs: checkpoints, curves, sheets.")


def reproduce(
    context: typer.Context,
    table: Optional[str] = typer.Argument(None, help="Name of a table, or a YAML file of one's own; left out, lists them."),
    overrides: Optional[list[str]] = typer.Argument(
        None, help="key=value for every run, such as optim.steps=100: another table, in another --out."
    ),
    data: list[str] = DATA,
    out: Path = OUT,
    work: Path = WORK,
    rows: str = typer.Option("", help="Only these rows, as control,lix; empty: all."),
    seeds: str = SEEDS,
    folds: str = typer.Option("", help="Only these folds, as 0,1; empty: those of the table."),
    jobs: int = JOBS,
    keep: bool = KEEP,
) -> None:
    """Run a table of methods, or go on with it, and write it as JSON and Markdown."""
    from lix_core.data.registry import DATASETS
    from lix_core.training.table import Table, table_names

    if table is None:
        if given := typed(context, ("data", "out", "work", "rows", "seeds", "folds", "jobs", "keep")):
            raise TrainingError(f"{', '.join(given)}: of which table? There are {', '.join(table_names())}")
        for name in table_names():
            try:
                title = Table.load(name).title
            except TrainingError as error:
                title = str(error)
            print(f"{name:24} {title}")
        return
    from lix_core.training.results import Held

    whole, overrides = Table.load(table), overrides or []
    before = Held.of(out / f"{whole.name}.json")
    chosen = whole.narrowed(words(rows), numbers(seeds, "--seeds"), numbers(folds, "--folds"))
    if before.lost(whole, overrides):
        has = f"made with {' '.join(before.overrides)}" if before.overrides else "of the table as it is"
        raise TrainingError(f"{out / whole.name}.json has runs {has}, whose page this would replace: give another --out")
    places, streets = places_of(data, chosen.datasets, DATASETS), None  # a row that is left out may need others
    if "world" not in places and "world" in chosen.datasets:
        streets = work.parent / "table_world"
        places["world"] = str(streets)
    run(chosen, out, work, places, overrides, jobs, keep, streets=streets)


def ablate(
    config: str = typer.Argument(..., help="Configuration of a student: a YAML file or the name of a recipe."),
    variations: list[str] = typer.Argument(
        ..., help="key=value,value,...: one row for each value; key=value with one value is for all rows."
    ),
    data: list[str] = DATA,
    teacher: Optional[Path] = typer.Option(None, help="Folder of the teacher's run, or its bundle."),
    name: str = typer.Option("ablation", help="Name of the table."),
    metric: str = typer.Option("miou", help="`miou`, or a class whose IoU counts."),
    out: Path = OUT,
    work: Path = WORK,
    seeds: str = typer.Option("0,1,2", help="Seeds of every row."),
    jobs: int = JOBS,
    keep: bool = KEEP,
) -> None:
    """Compare values of options: the configuration as it is, and each value of each option alone, over several seeds."""
    from lix_core.training.results import Held
    from lix_core.training.table import Table, sources_of, table_names

    if not name or name == ".." or Path(name).name != name:
        raise TrainingError(f"--name is that of a table and of its files in --out, without folders; got {name!r}")
    if name in table_names():
        raise TrainingError(f"{name!r} is a table of `lix reproduce`, whose result would be replaced: give another --name")
    some, before = numbers(seeds, "--seeds"), Held.of(out / f"{name}.json")
    chosen = Table.of_variations(name, config, variations, metric, sorted({*some, *before.seeds}))
    if before.title not in ("", chosen.title):
        raise TrainingError(
            f"{out / name}.json is of {before.title!r}, whose page this would replace: give another --name, or another --out"
        )
    if gone := [row for row in before.rows if row not in [own.name for own in chosen.rows]]:
        raise TrainingError(f"{out / name}.json has the rows {', '.join(gone)} too: ask for them again, or give another --name or --out")
    taught = ["--teacher", str(teacher)] if teacher else []
    whole = ["lix", "ablate", config, *variations, *taught, "--name", name, "--metric", metric, "--seeds", ",".join(map(str, chosen.seeds))]
    chosen = replace(chosen, command=shlex.join(whole)).narrowed(seeds=some)
    places = places_of(data, chosen.datasets)
    for source in sources_of(chosen.base["data"]):
        source["root"] = places.get(source["dataset"], source["root"])
    run(chosen, out, work, places, [], jobs, keep, teacher and origin(teacher))


def render_world(root: Path, progress: Progress) -> None:
    """Render the simulated streets of the tables, or what is missing of them."""
    from lix_core.training.table import WORLD_FRAMES
    from lix_core.world.drive import Drive
    from lix_core.world.farm import render
    from lix_core.world.folder import WorldFolder

    for split, (frames, seed) in WORLD_FRAMES.items():
        drive = Drive(seed)
        folder = WorldFolder.create(root / split, drive, frames)
        left = sum(map(len, folder.missing().values()))
        task = progress.add_task(f"rendering {split}", total=frames, completed=frames - left, note="")
        render(folder, drive, cores(), lambda task=task: progress.update(task, advance=1))


def run(
    table,
    out: Path,
    work: Path,
    places: dict[str, str],
    overrides: list[str],
    jobs: int,
    keep: bool,
    teacher: Optional[Path] = None,
    streets: Optional[Path] = None,
) -> None:
    from lix_core.training.cpu import keep_freed_memory
    from lix_core.training.reproduce import reproduce as go
    from lix_core.training.run import rank_zero

    make_folder(out)
    make_folder(work)
    keep_freed_memory()
    with progress_bar() as progress:
        task = progress.add_task(table.name, total=None, note="")

        def report(text: str, done: int, total: int) -> None:
            if not rank_zero():  # of the processes of a run, each of which comes here
                return
            progress.update(task, total=total, completed=done, note="")
            progress.console.print(text, highlight=False, markup=False)

        prepare = partial(render_world, streets, progress) if streets else lambda: None
        try:
            result = go(table, out, work / table.name, places, overrides, jobs, keep, teacher, report, prepare)
        except KeyboardInterrupt:
            progress.stop()
            print("\nstopped; the same command goes on from the last epoch that was finished", file=sys.stderr)
            raise typer.Exit(130) from None
    if rank_zero():
        show(result, table.whole or table, out / f"{table.name}.md")


def show(result: dict, table, page: Path) -> None:
    from lix_core.training.results import against

    grid = Grid("row", escape(result["protocol"]["metric"]), "± over seeds", "against control [points]", "seeds")
    for name, row in result["rows"].items():
        found = row[table.key]
        mean, std = ("-" if found[part] is None else f"{found[part]:.4f}" for part in ("mean", "std"))
        control = result["rows"].get(table.control_of(name))
        grid.add_row(escape(name), mean, std, against(row, control, table.key, table.other_control(name)), str(len(found["per_seed"])))
    print_table(grid)
    print(page)


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(text: str, option: str) -> list[int]:
    try:
        return [int(word) for word in words(text)]
    except ValueError:
        raise TrainingError(f"{option} takes whole numbers separated by commas, such as 0,1,2; got {text!r}") from None
