"""The one look of progress bars: what, how many, how fast, how long still."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Count(ProgressColumn):
    """Done of all; rich has one of its own only since version 12.3, and ROS 2 Humble's Ubuntu has 11."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.0f}/{'?' if task.total is None else format(task.total, '.0f')}")


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        Count(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class FrameCount:
    """A line of a progress bar for frames, which says how many there are a second. done: frames that were counted."""

    def __init__(self, progress: Progress, description: str, total: int | None = None, completed: int = 0):
        self._progress, self._began, self.done = progress, time.perf_counter(), 0
        self._task = progress.add_task(description, total=total, completed=completed, note="")

    @property
    def rate(self) -> float:
        """[frames/s]"""
        return self.done / (time.perf_counter() - self._began)

    def update(self, **fields: Any) -> None:
        self._progress.update(self._task, **fields)

    def count(self, **fields: Any) -> None:
        """One more is done."""
        self.done += 1
        self.update(advance=1, note=f"{self.rate:.1f} frames/s", **fields)
