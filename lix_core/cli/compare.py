"""`lix compare`: training runs on the same frames, as figures and as pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional

import typer
from rich.console import Console

from lix_core.cli.places import DATA, origin, places_of
from lix_core.cli.tables import print_table
from lix_core.cli.train import score_table
from lix_core.files import make_picture_folder, make_place, save
from lix_core.progress import progress_bar


def compare(
    runs: list[Path] = typer.Argument(..., help="Run folders or models of one label set, students and teachers."),
    out: Path = typer.Option(Path("compare.png"), "--out", "-o", help="The sheet of pictures, PNG or JPEG."),
    frames: int = typer.Option(4, min=0, help="Frames on the sheet, spread over all; 0: no sheet."),
    split: str = typer.Option("test", help="val or test, as the configuration of the first run has them."),
    checkpoint: str = typer.Option("best", help="best or last."),
    data: list[str] = DATA,
    json_file: Optional[Path] = typer.Option(None, "--json", help="Also write the figures to this file."),
) -> None:
    """Score training runs on the same frames, and draw what each makes of some of them."""
    from lix_core.data.registry import DATASETS
    from lix_core.training.compare import compare as of_runs

    make_picture_folder(out)
    if json_file:
        make_place(json_file)
    runs, places = [origin(run) for run in runs], places_of(data, DATASETS)
    with progress_bar() as progress:
        task = progress.add_task(f"{len(runs)} runs", total=None, note="")
        found = of_runs(runs, split, checkpoint, places, lambda count, total: progress.update(task, advance=count, total=total))
    console = Console()
    scores = {name: matrix.summary(found.labels.names) for name, matrix in found.scores.items()}
    if json_file:
        figures = {"split": split, "images": len(found.frames), "runs": scores, "remarks": found.remarks}
        save(json_file, (json.dumps(figures, indent=1) + "\n").encode())
    print_table(score_table({found.marked(name): score for name, score in scores.items()}))
    for name, remark in found.remarks.items():
        console.print(f"{found.marked(name)}: {remark}", highlight=False, soft_wrap=True, markup=False)
    if frames:
        found.draw(out, frames)
        console.print(f"{len(found.frames)} frames of {split}; {out}", highlight=False, soft_wrap=True, markup=False)
