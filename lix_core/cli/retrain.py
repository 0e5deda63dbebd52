"""`lix retrain`: from bags to a better model."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional

import typer
from rich.console import Console

from lix_core.cli.bag import found_bags
from lix_core.runtime.bundle import SUFFIX

STEPS = {
    "frames of the bags": "extraction/",
    "pseudo-labels": "extraction/pseudo/",
    "teacher": "teacher/",
    "student": "student/",
    "comparison": "comparison.json",
}
"""Steps of a retraining -> what each leaves in the folder."""


def retrain(
    bags: List[Path] = typer.Argument(..., help="Bags, or folders of bags."),
    teacher: Path = typer.Option(..., help="Run folder of the RGB + X teacher (lix train teacher)."),
    student: Path = typer.Option(..., help="Run folder of the student that the robot's model is of (lix distill)."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder of the retraining; goes on with one that was stopped."),
    behind: Optional[List[Path]] = typer.Option(None, help="Run folders behind those two, for data and licences."),
    current: Optional[Path] = typer.Option(None, help="Bundle that the new one must beat; left out, that of the student."),
    labels: str = typer.Option("auto", help="What trains on the new frames: masks, bag, pseudo, none; auto: the first of these there is."),
    share: float = typer.Option(0.5, help="Of every batch, the share that is new frames; the rest is the runs' old data."),
    teacher_steps: int = typer.Option(600, min=0, help="Optimiser steps of the teacher; 0 keeps it as it is."),
    student_steps: int = typer.Option(1200, min=1, help="Optimiser steps of the student."),
    lr: float = typer.Option(0.3, help="Learning rates, as a share of those of the old runs."),
    held_out: float = typer.Option(0.2, help="Share of the bags' time that is not trained on but compared on."),
    block: float = typer.Option(10.0, help="Length of a block of time that is held out or not [s]."),
    gain: float = typer.Option(0.0, help="mIoU by which the new model must be better on held-out frames."),
    forgetting: float = typer.Option(0.03, help="mIoU that it may lose on the old validation frames."),
    every: int = typer.Option(1, min=1, help="Take every so-manieth image of the bags."),
    slop: float = typer.Option(0.02, help="Largest difference between the stamps of an image and its partner [s]."),
    geometry: str = typer.Option("auto", help="What depth is made of: auto, depth, stereo, lidar or none."),
    confidence: float = typer.Option(0.9, help="Pseudo-labels: pixels that are this sure are kept."),
    jobs: int = typer.Option(1, min=1, help="Processes for frames and pseudo-labels."),
    set_: Optional[List[str]] = typer.Option(None, "--set", help="key=value for both runs, such as data.workers=4; may be repeated."),
) -> None:
    """Fine-tune teacher and student on recorded bags, compare with the model there is, and write a new one if it is better."""
    paths = found_bags(bags)
    from lix_core.training.memory import keep_freed_memory

    keep_freed_memory()
    from lix_core.bags.index import Options
    from lix_core.bags.pseudo import PseudoSettings
    from lix_core.training.retrain import Retraining
    from lix_core.training.retrain import retrain as carry_out

    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    task = Retraining(
        bags=tuple(paths),
        out=out,
        teacher=teacher,
        student=student,
        behind=tuple(behind or ()),
        current=current,
        labels=labels,
        share=share,
        teacher_steps=teacher_steps,
        student_steps=student_steps,
        lr=lr,
        held_out=held_out,
        block=block,
        gain=gain,
        forgetting=forgetting,
        extraction=Options(geometry=geometry, every=every, slop=slop),
        pseudo=PseudoSettings(confidence=confidence),
        jobs=jobs,
        overrides=tuple(set_ or ()),
    )
    try:
        found = carry_out(task, lambda step: console.print(f"{step}: {out / STEPS[step]}"))
    except KeyboardInterrupt:
        console.print("\nstopped; the same command goes on from here")
        raise typer.Exit(130) from None
    taken = (
        f"better: {found.why}; the new model is {out / f'model{SUFFIX}'}"
        if found.better
        else f"not better: {found.why}; the old model stays"
    )
    print(f"{taken}\n{out / 'report.md'}")
