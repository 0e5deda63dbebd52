"""Shared set-up of the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lix_core.runtime import bundle as bundle_module  # noqa: E402

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
