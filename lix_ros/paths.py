"""Where the package's shared files (config, launch) and the sources' assets are, and the transport profile."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Mapping

from lix_core.errors import SourceError
from lix_core.files import expanded

PACKAGE = "lix_ros"
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
"""Fast DDS reads the first from Kilted on, the second up to Jazzy."""
USER_CHOICES = (*PROFILE_VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS")
TRANSPORT_VARIABLE = "LIX_TRANSPORT"
"""Chooses the profile for every lix process: `lix`, `default`, or the path of a Fast DDS XML file."""


def share_directory() -> Path:
    """The folder that holds config/ and launch/: the source tree, or share/lix_ros of the prefix this package is installed in."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent, *(prefix / "share" / PACKAGE for prefix in package.parents)):
        if (folder / "config" / "fastdds.xml").exists():
            return folder
    raise SourceError(f"share/{PACKAGE}/config/fastdds.xml is missing beside {package}; install the package again")


def sample_clip() -> Path:
    """The clip of real street frames in the sources (not installed: its licence differs from the code's)."""
    folder = Path(__file__).resolve().parents[1] / "assets" / "kitti_clip"
    if not folder.is_dir():
        raise SourceError(f"the sample clip is part of the sources only and is not at {folder}; name an input of your own")
    return folder


def transport_environment(profile: str = "", environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables to set, so that Fast DDS carries images: see docs/transport.md.

    Args:
        profile: `lix` (that of config/), `default` (leave Fast DDS as it is), or the path of a Fast DDS XML file; empty takes
            $LIX_TRANSPORT, and `lix` where that is unset.
        environ: the environment to look at; the process's own when None.

    Returns:
        No profile where the user chose one, built-in transports or another RMW, unless `profile` is a path. With it goes a
        `profile` that was given, as $LIX_TRANSPORT, so that nodes started with it keep to it.

    Raises:
        SourceError: the file of the profile is not there.
    """
    environ = os.environ if environ is None else environ
    given = {TRANSPORT_VARIABLE: profile} if profile else {}
    profile = profile or environ.get(TRANSPORT_VARIABLE) or "lix"
    if profile == "default":
        return given
    if profile == "lix":
        if any(environ.get(v) for v in USER_CHOICES):
            return given
        if environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") not in ("rmw_fastrtps_cpp", "rmw_fastrtps_dynamic_cpp"):
            return given
        path = share_directory() / "config" / profile_name(environ)
    else:
        path = expanded(profile).resolve()
        if not path.is_file():
            raise SourceError(f"no Fast DDS profile at {path}; give lix, default, or the path of an XML file")
    return {**given, profile_variable(environ): str(path)}


def localhost_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variable that keeps this ROS distribution's nodes to this machine."""
    return {"ROS_LOCALHOST_ONLY": "1"} if ros_distribution(environ) == "humble" else {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}


def profile_name(environ: Mapping[str, str]) -> str:
    """The profile in config/. Humble keeps to this machine by adding transports to the profile's, which must do so too then."""
    local = ros_distribution(environ) == "humble" and environ.get("ROS_LOCALHOST_ONLY") == "1"
    return "fastdds_localhost.xml" if local else "fastdds.xml"


def profile_variable(environ: Mapping[str, str]) -> str:
    """The variable that this ROS distribution's Fast DDS reads its profile from; each warns of the other's."""
    legacy = ros_distribution(environ) in ("humble", "iron", "jazzy")
    return PROFILE_VARIABLES[1] if legacy else PROFILE_VARIABLES[0]


def ros_distribution(environ: Mapping[str, str]) -> str:
    """As ROS_DISTRO names it; of ROS's wheels, which do not set it, Jazzy's are told from the others, for which it is empty."""
    return environ.get("ROS_DISTRO") or ("jazzy" if find_distribution("ros-jazzy-rclpy") else "")


def find_distribution(name: str) -> bool:
    """Whether a Python distribution is installed."""
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
