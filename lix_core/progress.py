"""The one look of progress bars: what, how many, how fast, how long still."""

from __future__ import annotations

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
