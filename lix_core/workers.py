"""Worker processes: how many there is room for, and that they end when they should."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def begin_work(*pipes: Connection) -> None:
    """First in a spawned process: Ctrl-C, which reaches every process of a terminal, is the parent's; and where the parent dies, or closes
    its end of one of the pipes, this process ends, in the middle of its work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with, args=([parent_process().sentinel, *pipes],), daemon=True).start()


def end_with(ends: list[int | Connection]) -> None:
    wait(ends)
    os._exit(1)
