"""`lix retrain`: from bags to a better model."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import List, Optional

import typer
from rich.console import Console

from lix_core.cli import bag
from lix_core.cli.places import origin, places_of
from lix_core.runtime.bundle import SUFFIX
from lix_core.workers import cores

STEPS = {
    "frames of the bags": "extraction/",
    "pseudo-labels": "extraction/pseudo/",
    "teacher": "teacher/",
    "student": "student/",
    "comparison": "comparison.json",
}
"""Steps of a retraining -> what each leaves in the folder."""
READING = set(inspect.signature(bag.extract).parameters) - {"bags", "out", "jobs", "labels"}
"""Options of `lix bag extract`, by which the bags are read; its `labels` are `label_topic` here."""


def retrain(
    bags: List[Path] = typer.Argument(..., help="Bags, or folders of bags."),
    teacher: Path = typer.Option(..., help="Run folder of the RGB + X teacher (lix train teacher), or its bundle."),
    student: Path = typer.Option(..., help="The robot's model, by name or path, or its run folder (lix distill)."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder of the retraining; goes on with one that was stopped."),
    behind: Optional[List[Path]] = typer.Option(None, help="Run folders or bundles behind those two, for data and licences."),
    data: list[str] = typer.Option([], "--data", help="Where the runs' old data is, as NAME=FOLDER; bundles do not know."),
    current: Optional[str] = typer.Option(None, help="Model that the new one must beat, by name or path; left out, that of the student."),
    labels: str = typer.Option(
        "auto", help="What trains on the new frames: masks, bag, pseudo or none; auto: for each frame the first of these that it has."
    ),
    share: float = typer.Option(0.5, help="Of every batch, the share that is new frames; the rest is the runs' old data."),
    teacher_steps: int = typer.Option(600, min=0, help="Optimiser steps of the teacher; 0 keeps it as it is."),
    student_steps: int = typer.Option(1200, min=1, help="Optimiser steps of the student."),
    lr: float = typer.Option(0.3, help="Learning rates, as a share of those of the first runs, which were no retraining."),
    held_out: float = typer.Option(0.2, help="Share of the bags' time that is not trained on but compared on."),
    block: float = typer.Option(10.0, help="Length of a block of time that is held out or not [s]."),
    gain: float = typer.Option(0.0, help="mIoU by which the new model must be better on held-out frames; 0.01 is a point."),
    forgetting: float = typer.Option(0.03, help="mIoU that it may lose on the first run's validation frames; 0.01 is a point."),
    image: str = bag.IMAGE,
    camera_info: str = bag.CAMERA_INFO,
    right_image: str = bag.RIGHT_IMAGE,
    right_camera_info: str = bag.RIGHT_CAMERA_INFO,
    depth: str = bag.DEPTH,
    points: str = bag.POINTS,
    label_topic: str = bag.LABEL_TOPIC,
    label_names: str = bag.LABEL_NAMES,
    geometry: str = bag.GEOMETRY,
    every: int = bag.EVERY,
    begin: float = bag.BEGIN,
    end: float = bag.END,
    slop: float = bag.SLOP,
    offset: float = bag.OFFSET,
    clock: str = bag.CLOCK,
    extrinsics: str = bag.EXTRINSICS,
    max_disparity: int = bag.MAX_DISPARITY,
    confidence: float = typer.Option(0.9, help="Pseudo-labels: pixels that are this sure are kept."),
    jobs: int = typer.Option(0, min=0, help="Processes for frames and pseudo-labels; 0 takes one per core."),
    set_: Optional[List[str]] = typer.Option(None, "--set", help="key=value for both runs, such as data.workers=4; may be repeated."),
) -> None:
    """Fine-tune teacher and student on recorded bags, compare with the model there is, and write a new one if it is better."""
    given = {name: value for name, value in locals().items() if name in READING}
    reading = bag.options_of(labels=label_topic, **given)
    paths = bag.found_bags(bags)
    from lix_core.training.cpu import keep_freed_memory

    keep_freed_memory()
    from lix_core.bags.pseudo import PseudoSettings
    from lix_core.data.registry import DATASETS
    from lix_core.training.retrain import Retraining
    from lix_core.training.retrain import retrain as carry_out

    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    task = Retraining(
        bags=tuple(paths),
        out=out,
        teacher=origin(teacher),
        student=origin(student),
        behind=tuple(map(origin, behind or ())),
        data=places_of(data, DATASETS),
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
        extraction=reading,
        pseudo=PseudoSettings(confidence=confidence),
        jobs=jobs or cores(),
        overrides=tuple(set_ or ()),
    )
    try:
        found = carry_out(task, lambda step: console.print(f"{step}: {out / STEPS[step]}"), tell=lambda line: console.print(f"  {line}"))
    except KeyboardInterrupt:
        console.print("\nstopped; the same command goes on from here")
        raise typer.Exit(130) from None
    taken = (
        f"better: {found.why}; the new model is {out / f'model{SUFFIX}'}"
        if found.better
        else f"not better: {found.why}; the old model stays"
    )
    print(f"{taken}\n{out / 'report.md'}")
