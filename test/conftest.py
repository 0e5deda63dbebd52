"""Shared set-up of the tests."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lix_core.runtime import bundle as bundle_module

hypothesis.settings.register_profile(
    "lix", deadline=None, max_examples=50, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
hypothesis.settings.load_profile("lix")


@pytest.fixture
def model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is all of the model search path: no model of the user's or the package's is found."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv(bundle_module.PATH_VARIABLE, str(folder))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data_home"))
    monkeypatch.setattr(bundle_module, "SHIPPED", tmp_path / "shipped")
    return folder


@pytest.fixture(scope="session")
def ros() -> Iterator[None]:
    """One ROS context for the tests, on this machine only and in a domain of its own."""
    from lix_ros.paths import transport_environment

    os.environ.update(transport_environment())
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
    import rclpy

    rclpy.init(args=[])
    yield
    gc.collect()  # what still holds the participant, whose shared memory nobody else removes
    rclpy.try_shutdown()


@pytest.fixture
def peer(ros: None) -> Iterator[Any]:
    from ros import Peer

    peer = Peer()
    yield peer
    peer.close()
