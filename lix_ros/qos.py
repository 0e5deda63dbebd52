"""Quality of service, named policy by policy."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

RELIABILITY = {"best_effort": ReliabilityPolicy.BEST_EFFORT, "reliable": ReliabilityPolicy.RELIABLE}


def stream(reliability: str, depth: int) -> QoSProfile:
    """A stream of frames: the last `depth`, nothing for those who come late."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=depth, reliability=RELIABILITY[reliability], durability=DurabilityPolicy.VOLATILE
    )


def latched() -> QoSProfile:
    """One message that every later subscriber still gets."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
    )
