"""`lix train` and `lix distill`: from a configuration to a run folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lix_core.cli.places import DATA, origin, places_of
from lix_core.cli.tables import print_table
from lix_core.errors import TrainingError

if TYPE_CHECKING:
    from lix_core.training.run import RunResult

CONFIG = typer.Argument(..., help="A YAML file, or the name of a recipe (an unknown one lists them).")
OVERRIDES = typer.Argument(None, help="key=value for any option, such as optim.steps=2000.", show_default=False)
OUT = typer.Option(..., "--out", "-o", help="Folder of the run; goes on with one that was stopped.")
START = typer.Option(
    None,
    help="Run folder or model of the same network, or of a student's teacher: begin with its best weights, with the data and schedule "
    "given here.",
)
RESUME = typer.Option(True, "--resume/--no-resume", help="Go on with a run in the folder, or train it anew.")


def train(
    kind: str = typer.Argument(..., help="teacher (RGB and X) or student (RGB alone, from the labels alone)."),
    config: str = CONFIG,
    overrides: Optional[list[str]] = OVERRIDES,
    data: list[str] = DATA,
    out: Path = OUT,
    start: Optional[Path] = START,
    resume: bool = RESUME,
) -> None:
    """Train a teacher, or a student without one: the control of every distillation."""
    if kind not in ("teacher", "student"):
        raise TrainingError(f"lix train takes teacher or student, got {kind!r}")
    fixed = {"model.kind": kind, **({"distill.method": "none"} if kind == "student" else {})}
    run(config, decided(overrides or [], fixed, f"lix train {kind}"), data, out, [], start, resume)


def distill(
    config: str = CONFIG,
    overrides: Optional[list[str]] = OVERRIDES,
    data: list[str] = DATA,
    teacher: list[Path] = typer.Option(
        ...,
        help="Run folder of the teacher, made by `lix train teacher`, or its bundle; may be repeated: of several, a frame is taught by one "
        "that has not learned its label.",
    ),
    out: Path = OUT,
    start: Optional[Path] = START,
    resume: bool = RESUME,
) -> None:
    """Train a student under a teacher, by the method that the configuration names in distill.method."""
    run(config, decided(overrides or [], {"model.kind": "student"}, "lix distill"), data, out, teacher, start, resume)


def decided(overrides: list[str], fixed: dict[str, str], command: str) -> list[str]:
    """Overrides and what a command decides itself. Raises TrainingError where one asks for something else."""
    for change in overrides:
        key, _, value = (part.strip() for part in change.partition("="))
        if fixed.get(key, value) != value:
            instead = "; lix distill is for students with a teacher" if key == "distill.method" else ""
            raise TrainingError(f"{change}: {command} decides {key} itself, as {fixed[key]}{instead}")
    return [*overrides, *(f"{key}={value}" for key, value in fixed.items())]


def run(config: str, overrides: list[str], data: list[str], out: Path, teachers: list[Path], start: Optional[Path], resume: bool) -> None:
    from lix_core.training.config import load_config
    from lix_core.training.cpu import keep_freed_memory

    chosen = load_config(config, overrides)
    sources = chosen.data.all_sources
    places = places_of(data, {source.dataset for source in sources})
    for source in sources:
        source.root = places.get(source.dataset, source.root)
    if teachers and chosen.distill.method == "none":
        raise TrainingError(
            f"distill.method is none: {teachers[0]} would teach nothing. Name a method, as distill.method=lix, or use lix train"
        )
    keep_freed_memory()
    from lix_core.training.run import fit, rank_zero

    try:
        result = fit(chosen, out, [origin(teacher) for teacher in teachers], resume, start=start and origin(start))
    except KeyboardInterrupt:
        again = "the same command" if resume else "the same command without --no-resume"
        print(f"\nstopped; {again} goes on from the last epoch that was finished", file=sys.stderr)
        raise typer.Exit(130) from None
    if rank_zero():  # the others of a machine come here too
        show(result)


def show(result: "RunResult") -> None:
    """The figures of a run, as a table."""
    scores = {name: score for name, score in (("val", result.val), ("test", result.test)) if score}
    if scores:
        print_table(score_table(scores))
    time = f"{result.seconds:.0f} s" if result.seconds < 100 else f"{result.seconds / 60:.1f} min"
    done = f"{result.name}: {result.steps} steps in {time} on {result.device}"
    Console().print(f"{done}; best at step {result.checkpoint_step}; {result.folder}", highlight=False, soft_wrap=True, markup=False)


def score_table(scores: dict[str, dict[str, Any]]) -> Table:
    """IoU of each class and the means, a column for each set of frames. scores: `ConfusionMatrix.summary` by name."""
    table = Table("", *map(escape, scores))
    for name in next(iter(scores.values()))["iou"]:
        table.add_row(escape(name), *(figure(score["iou"][name]) for score in scores.values()))
    table.add_section()
    for key, words in (("miou", "mIoU"), ("pixel_accuracy", "pixel accuracy"), ("mean_accuracy", "mean accuracy")):
        table.add_row(words, *(figure(score[key]) for score in scores.values()))
    return table


def figure(value: Optional[float]) -> str:
    return "absent" if value is None else f"{value:.4f}"
