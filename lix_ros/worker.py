"""A thread that always works on the newest item, and the rate limit in front of it. No ROS in here."""

from __future__ import annotations

import threading
from typing import Callable, Generic, TypeVar

T = TypeVar("T")


class NewestItemWorker(Generic[T]):
    """Calls `handle(item)` in a thread of its own, one item at a time, with a queue of one: a newer item replaces
    one that waits. `handle` must not raise."""

    def __init__(self, handle: Callable[[T], None], name: str):
        self._handle = handle
        self._waiting: T | None = None
        self._stopping = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def offer(self, item: T) -> bool:
        """Queue an item; False where it took the place of one that nobody had begun."""
        with self._changed:
            replaced = self._waiting is not None
            self._waiting = item
            self._changed.notify()
        return not replaced

    def stop(self) -> None:
        """Let the item in hand finish, drop what waits, end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting is not None)
                if self._stopping:
                    return
                item, self._waiting = self._waiting, None
            self._handle(item)


class RateLimit:
    """Admits at most `rate` events per second [Hz] on average, whatever the rate at which they come; 0 admits all."""

    def __init__(self, rate: float):
        self._period = 1.0 / rate if rate > 0 else 0.0
        self._due = float("-inf")

    def admits(self, now: float) -> bool:
        """Whether an event at time `now` [s] may pass."""
        if now < self._due:
            return False
        self._due = max(self._due + self._period, now)
        return True
