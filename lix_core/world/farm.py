"""Renders many frames into a WorldFolder, by several processes; a scene is built once, by the one that renders its frames."""

from __future__ import annotations

import multiprocessing
import signal
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Callable, Iterator

import cv2

from lix_core.errors import LixError, explain
from lix_core.world.drive import Drive
from lix_core.world.folder import WorldFolder, read_world, settings_of

FRAME, SCENE, FAILED = "frame", "scene", "failed"
"""What a worker says: a frame is written, a scene is done, it cannot go on."""
STOP_S = 30.0
"""Time for the workers to end the frame that they are at."""


def render(folder: WorldFolder, drive: Drive, jobs: int, on_frame: Callable[[], None]) -> None:
    """Render what is missing in the folder; the files are the same whatever the number of jobs.

    Args:
        drive: what the folder was created with. on_frame: called after each frame.
        jobs: processes; 1 renders in this one. Others are spawned: a script that calls this needs `if __name__ == "__main__"`.

    Raises:
        LixError: a worker could not render or write; the frames that are whole stay, and the next call goes on.
    """
    work = folder.missing()
    if min(jobs, len(work)) <= 1:
        for scene, frames in work.items():
            for _ in render_scene(folder, drive, scene, frames):
                on_frame()
        return
    crew = Crew(folder.path, settings_of(drive), min(jobs, len(work)))
    try:
        crew.render(list(work.items()), on_frame)
    finally:
        crew.close()


def render_scene(folder: WorldFolder, drive: Drive, scene: int, frames: list[int]) -> Iterator[int]:
    """Render these frames of one scene, yielding after each, and end with the scene's text files."""
    for index in frames:
        folder.write(drive.frame(index))
        yield index
    folder.finish_scene(scene)


class Crew:
    """Worker processes, each at the end of a pipe: scenes go in, words about frames come out."""

    def __init__(self, path: Path, settings: dict[str, Any], jobs: int):
        # A forked child of a process that has used Embree's or OpenCV's threads may hang.
        context = multiprocessing.get_context("spawn")
        self._workers: dict[Connection, multiprocessing.process.BaseProcess] = {}
        # Ctrl-C reaches every process of a terminal. The workers inherit that it is blocked, and end when their pipe is closed.
        # multiprocessing's own helper unblocks it where it is started, so that comes first.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(jobs):
                here, there = context.Pipe()
                process = context.Process(target=work_at, args=(there, path, settings), daemon=True)
                process.start()
                there.close()
                self._workers[here] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def render(self, work: list[tuple[int, list[int]]], on_frame: Callable[[], None]) -> None:
        work = work[::-1]
        busy = {pipe for pipe in self._workers if self._give(pipe, work)}
        while busy:
            for pipe in wait(list(busy)):
                try:
                    kind, text = pipe.recv()
                except (EOFError, ConnectionError):
                    self._workers[pipe].join(STOP_S)
                    kind, text = FAILED, f"a rendering process ended by itself (status {self._workers[pipe].exitcode}); out of memory?"
                if kind == FAILED:
                    raise LixError(f"{text}; what was rendered stays, the same command goes on")
                if kind == FRAME:
                    on_frame()
                elif not self._give(pipe, work):
                    busy.discard(pipe)

    @staticmethod
    def _give(pipe: Connection, work: list[tuple[int, list[int]]]) -> bool:
        if work:
            with suppress(ConnectionError):  # that the worker is gone is told where its answer is read
                pipe.send(work.pop())
            return True
        return False

    def close(self) -> None:
        """Close the pipes, by which the workers end after the frame they are at."""
        for pipe in self._workers:
            pipe.close()
        for process in self._workers.values():
            process.join(STOP_S)
            if process.is_alive():
                process.kill()


def work_at(pipe: Connection, path: Path, settings: dict[str, Any]) -> None:
    """A worker's life: render the scenes that come until the other end closes, be it that its process was killed."""
    cv2.setNumThreads(1)
    try:
        folder, drive = WorldFolder(path, read_world(path)), Drive(**settings)
        while True:
            scene, frames = pipe.recv()
            for _ in render_scene(folder, drive, scene, frames):
                pipe.send((FRAME, ""))
            pipe.send((SCENE, ""))
    except (EOFError, ConnectionError):
        return
    except Exception as error:  # the parent tells it to the user
        with suppress(ConnectionError):
            pipe.send((FAILED, explain(error)))
