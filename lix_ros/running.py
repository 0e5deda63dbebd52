"""Start and stop of a node's process: transport profile, executor, and signals that never end in a traceback."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import Callable, Protocol

import rclpy
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.signals import SignalHandlerOptions

from lix_core.errors import explain
from lix_ros.paths import transport_environment


class RunnableNode(Protocol):
    """What `run` needs of a node beside rclpy's."""

    exit_status: int | None
    """Set by the node when its work is done: 0, or 1 where it failed."""

    def close(self) -> None:
        """End threads; called once, before the node is destroyed."""


def ending_signals() -> list[int]:
    """Those that end a process in good order: also that its terminal is gone, unless it was started with nohup."""
    gone = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if gone else [])]


def run(make_node: Callable[[], RunnableNode], threads: int = 3) -> int:
    """Spin a node until it has finished or one of `ending_signals` comes; the exit status.

    rclpy's own handlers raise KeyboardInterrupt wherever the program is, inside destroy_node too; these only set a flag,
    so that a second signal changes nothing.

    Args:
        threads: of the executor; more than one where services must not hold up subscriptions.
    """
    signalled: list[int] = []
    ending = ending_signals()
    for number in ending:
        signal.signal(number, lambda n, _: signalled.append(n))
    try:
        os.environ.update(transport_environment())
        rclpy.init(args=sys.argv, signal_handler_options=SignalHandlerOptions.NO)
        node = make_node()
    except Exception as error:  # rclpy has many for arguments that it cannot take; users need their words, not their stack
        node = None
        rclpy.logging.get_logger("lix").fatal(f"cannot start: {explain(error)}")
    if node is None:
        gc.collect()  # what the node had made already goes while its context is there, not in whatever order Python ends
        rclpy.try_shutdown()
        return 2
    # What is there by now stays, and looking for garbage in it would stop frames.
    gc.freeze()
    executor = MultiThreadedExecutor(threads) if threads > 1 else SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while rclpy.ok() and not signalled and node.exit_status is None:
            try:
                executor.spin_once(timeout_sec=0.1)
            except rclpy_implementation.InvalidHandle:
                # A subscription was destroyed by one thread of the executor while another was waiting on it.
                continue
    except ExternalShutdownException:
        pass
    finally:
        # Ignored from here on: while Python ends, it hands signals back to the system, whose default is to kill.
        for number in ending:
            signal.signal(number, signal.SIG_IGN)
        node.close()
        executor.shutdown(timeout_sec=2.0)
        node.destroy_node()
        status = node.exit_status or 0
        # The participant goes with the last that holds the node, and with it its shared memory, 64 MB that nobody else would ever remove.
        del executor, node
        gc.unfreeze()
        gc.collect()
        rclpy.try_shutdown()
    return status
