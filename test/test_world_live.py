"""The simulated street, played live, through the geometry node, over Fast DDS: depth and normals against the truth on the same wire."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2: neither an installation is sourced nor are the wheels installed")
pytest.importorskip("embreex", reason="the extra `sim` is not installed")

from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image

from lix_core.geometry.poses import pose_from_matrix
from lix_core.world.drive import Rig
from lix_ros import messages
from ros import Diagnostics, Peer, node_starter, stamp_ns, wait_for

WORLD = {"input": "world:1", "world_weather": "clear", "world_size": "480x144", "rate": 4.0, "world_speed": 8.0}
FX_BASELINE = 370.0 * 480 / 640 * 0.54
"""Disparity [pixels] times depth [m] in a world of that size."""
LEFT = {"left/image": "image", "left/camera_info": "camera_info"}


@pytest.fixture
def replay(tmp_path: Path) -> Iterator[Any]:
    with node_starter("replay_node", tmp_path, **WORLD) as start:
        yield start


@pytest.fixture
def geometry(tmp_path: Path) -> Iterator[Any]:
    """Starts the geometry node; it is there before the replay begins."""
    with node_starter("geometry_node", tmp_path, diagnostics_period=0.2) as start:
        yield start


class Outcome:
    """The geometry node's depth and normals, and the truth, paired by their stamps."""

    def __init__(self, peer: Peer):
        self.depth, self.normals = peer.listen(Image, "/geometry/depth"), peer.listen(Image, "/geometry/normals")
        self.true_depth, self.true_normals = peer.listen(Image, "/depth"), peer.listen(Image, "/normals")
        self.diagnostics: Diagnostics = peer.diagnostics("geometry")

    def wait(self, frames: int) -> None:
        wait_for(lambda: len(self.normals) >= frames, lambda: f"{len(self.normals)} of {frames} frames; {self.diagnostics.latest}", 60.0)

    def depths(self) -> tuple[np.ndarray, np.ndarray]:
        """(N, H, W) depth measured and true [m]."""
        pairs = by_stamp(self.depth, self.true_depth)
        return tuple(np.stack([messages.image_to_depth(m) for m in side]) for side in zip(*pairs))

    def angles(self) -> np.ndarray:
        """Between normals measured and true [degrees], where both are known."""
        pairs = by_stamp(self.normals, self.true_normals)
        found, truth = (np.stack([np.frombuffer(m.data, np.float32).reshape(m.height, m.width, 3) for m in side]) for side in zip(*pairs))
        cosine = (found * truth).sum(axis=-1)
        return np.degrees(np.arccos(np.clip(cosine[np.isfinite(cosine)], -1, 1)))


def by_stamp(found: list[Image], truth: list[Image]) -> list[tuple[Image, Image]]:
    known = {stamp_ns(m): m for m in truth}
    pairs = [(m, known[stamp_ns(m)]) for m in list(found) if stamp_ns(m) in known]
    assert pairs, "no output has the stamp of a frame"
    return pairs


def ready(outcome: Outcome) -> None:
    """Until the geometry node listens; the replay would not wait for it."""
    wait_for(lambda: outcome.diagnostics.latest, "the geometry node says nothing")


def test_stereo_depth_is_within_half_a_pixel_of_truth(replay: Any, geometry: Any, peer: Peer) -> None:
    outcome = Outcome(peer)
    geometry(LEFT)
    ready(outcome)
    replay()
    outcome.wait(4)
    found, truth = outcome.depths()
    both = np.isfinite(found) & np.isfinite(truth) & (truth < 40)
    error = np.abs(FX_BASELINE / found[both] - FX_BASELINE / truth[both])
    assert np.median(error) < 0.5 and np.mean(error > 3) < 0.05
    assert np.median(np.abs(found[both] - truth[both]) / truth[both]) < 0.03
    assert both.sum() > 0.8 * (truth < 40).sum()
    assert np.mean(found[np.isnan(truth)] < 20) < 0.02  # the sky is unknown or far
    assert np.median(outcome.angles()) < 15
    paired = "left/image paired [%]"
    wait_for(lambda: outcome.diagnostics.value(paired).isdigit(), lambda: str(outcome.diagnostics.latest))
    assert int(outcome.diagnostics.value(paired)) >= 75


def test_lidar_depth_is_completed_to_within_a_hundredth_of_truth(replay: Any, geometry: Any, peer: Peer) -> None:
    outcome = Outcome(peer)
    geometry(input="lidar", extrinsics=pose_from_matrix(Rig().camera_from_lidar))
    ready(outcome)
    replay()
    outcome.wait(4)
    found, truth = outcome.depths()
    both = np.isfinite(found) & np.isfinite(truth) & (truth < 40)
    error = np.abs(found[both] - truth[both]) / truth[both]
    assert np.median(error) < 0.01 and np.mean(error > 0.1) < 0.1
    assert both.sum() > 0.6 * (truth < 40).sum()
    assert np.median(outcome.angles()) < 8


def test_a_clock_that_is_wrong_is_diagnosed_and_an_offset_puts_it_right(replay: Any, geometry: Any, peer: Peer) -> None:
    outcome = Outcome(peer)
    geometry(LEFT, slop=0.01)
    ready(outcome)
    replay(right_offset=0.05)
    status = outcome.diagnostics.wait("set offset to", DiagnosticStatus.WARN)
    assert not outcome.depth
    assert abs(float(outcome.diagnostics.value("stamp difference p50 [ms]")) - 50) < 1
    assert "0.05" in status.message
    assert peer.set_parameter("/geometry", "offset", 0.05).successful
    outcome.wait(2)
    by_stamp(outcome.depth, outcome.true_depth)
    outcome.diagnostics.wait("measuring", DiagnosticStatus.OK)


def test_frames_without_a_partner_are_counted_and_not_waited_for(replay: Any, geometry: Any, peer: Peer) -> None:
    outcome = Outcome(peer)
    images = peer.listen(Image, "/image")
    geometry(LEFT)
    ready(outcome)
    replay(dropout=0.5)
    outcome.wait(5)
    wait_for(lambda: int(outcome.diagnostics.value("left/image unpaired") or 0) >= 3, lambda: f"{outcome.diagnostics.latest}")
    assert int(outcome.diagnostics.value("right/image unpaired")) == 0
    left = {stamp_ns(m) for m in images}
    assert {stamp_ns(m) for m in outcome.depth} <= left
    assert int(outcome.diagnostics.value("frames failed")) == 0
