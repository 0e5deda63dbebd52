"""Where the package's shared files (config, launch) and the sources' assets are, and the transport profile."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Mapping

from lix_core.errors import SourceError

PACKAGE = "lix_ros"
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
"""Fast DDS reads the first from Kilted on, the second up to Jazzy."""
USER_CHOICES = (*PROFILE_VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS")


def share_directory() -> Path:
    """The folder that holds config/ and launch/: the source tree, or share/lix_ros of the installation."""
    prefixes = [*os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep), sys.prefix]
    candidates = [Path(__file__).resolve().parents[1], *(Path(p) / "share" / PACKAGE for p in prefixes if p)]
    for folder in candidates:
        if (folder / "config" / "fastdds.xml").exists():
            return folder
    raise SourceError(f"config/fastdds.xml of {PACKAGE} is in none of {', '.join(map(str, candidates))}; install the package again")


def sample_clip() -> Path:
    """The clip of real street frames in the sources (not installed: its licence differs from the code's)."""
    folder = Path(__file__).resolve().parents[1] / "assets" / "kitti_clip"
    if not folder.is_dir():
        raise SourceError(f"the sample clip is part of the sources only and is not at {folder}; name an input of your own")
    return folder


def transport_environment(profile: str = "lix", environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables to set, so that Fast DDS carries images: see docs/transport.md.

    Args:
        profile: `lix` (config/fastdds.xml), `default` (set nothing), or the path of a Fast DDS XML file.
        environ: the environment to look at; the process's own when None.

    Returns:
        Nothing to set where the user chose a profile, built-in transports or another RMW, unless `profile` is a path.
    """
    environ = os.environ if environ is None else environ
    if profile == "default":
        return {}
    if profile == "lix":
        if any(environ.get(v) for v in USER_CHOICES):
            return {}
        if environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") not in ("rmw_fastrtps_cpp", "rmw_fastrtps_dynamic_cpp"):
            return {}
        path = share_directory() / "config" / "fastdds.xml"
    else:
        path = Path(profile).expanduser().resolve()
        if not path.is_file():
            raise SourceError(f"no Fast DDS profile at {path}; give lix, default, or the path of an XML file")
    return {profile_variable(environ): str(path)}


def profile_variable(environ: Mapping[str, str]) -> str:
    """The variable that this ROS distribution's Fast DDS reads its profile from; each warns of the other's."""
    legacy = environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy") or find_distribution("ros-jazzy-rclpy")
    return PROFILE_VARIABLES[1] if legacy else PROFILE_VARIABLES[0]


def find_distribution(name: str) -> bool:
    """Whether a Python distribution is installed; none of ROS's wheels sets ROS_DISTRO."""
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
