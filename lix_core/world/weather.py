"""Light and air by name: clear, overcast, dusk, night, fog and rain, each drawn with some variation."""

from __future__ import annotations

from types import MappingProxyType
from typing import Callable, Mapping

import numpy as np

from lix_core.errors import GeometryError
from lix_core.world.scene import Weather

Colour = tuple[float, float, float]


def _mix(rng: np.random.Generator, low: Colour, high: Colour) -> Colour:
    """A colour between two."""
    share = rng.random()
    return tuple(round(float(a + share * (b - a)), 4) for a, b in zip(low, high))


def _sun(rng: np.random.Generator, low: float, high: float) -> Colour:
    """Unit direction of a sun at `low` to `high` degrees above the horizon, in any compass direction."""
    up, round_ = np.deg2rad(rng.uniform(low, high)), rng.uniform(0, 2 * np.pi)
    return (float(np.cos(up) * np.cos(round_)), float(np.cos(up) * np.sin(round_)), float(np.sin(up)))


def _clear(rng: np.random.Generator) -> Weather:
    return Weather(
        "clear",
        sun=_sun(rng, 22, 62),
        sun_light=_mix(rng, (1.0, 0.90, 0.76), (1.15, 1.08, 0.98)),
        sky_light=_mix(rng, (0.20, 0.25, 0.32), (0.28, 0.32, 0.38)),
        sky_horizon=_mix(rng, (0.60, 0.68, 0.76), (0.72, 0.76, 0.80)),
        sky_zenith=_mix(rng, (0.12, 0.25, 0.52), (0.22, 0.36, 0.60)),
        clouds=float(rng.uniform(0.0, 0.45)),
        fog=0.0006,
    )


def _overcast(rng: np.random.Generator) -> Weather:
    return Weather(
        "overcast",
        sun=_sun(rng, 30, 60),
        sun_light=_mix(rng, (0.04, 0.04, 0.04), (0.16, 0.155, 0.15)),
        sky_light=_mix(rng, (0.58, 0.60, 0.63), (0.72, 0.74, 0.76)),
        sky_horizon=_mix(rng, (0.66, 0.68, 0.70), (0.80, 0.81, 0.82)),
        sky_zenith=_mix(rng, (0.50, 0.53, 0.57), (0.64, 0.66, 0.69)),
        clouds=float(rng.uniform(0.8, 1.0)),
        fog=0.0012,
        wet=float(rng.choice((0.0, 0.15), p=(0.75, 0.25))),
    )


def _dusk(rng: np.random.Generator) -> Weather:
    return Weather(
        "dusk",
        sun=_sun(rng, 3, 10),
        sun_light=_mix(rng, (0.26, 0.13, 0.06), (0.40, 0.22, 0.11)),
        sky_light=_mix(rng, (0.13, 0.14, 0.20), (0.20, 0.19, 0.25)),
        sky_horizon=_mix(rng, (0.62, 0.38, 0.24), (0.66, 0.48, 0.36)),
        sky_zenith=_mix(rng, (0.08, 0.11, 0.24), (0.15, 0.18, 0.32)),
        clouds=float(rng.uniform(0.1, 0.6)),
        fog=0.001,
        lamps=True,
        exposure=float(rng.uniform(1.4, 2.0)),
        noise=1.8,
    )


def _night(rng: np.random.Generator) -> Weather:
    return Weather(
        "night",
        sun=_sun(rng, -40, -15),
        sun_light=(0.0, 0.0, 0.0),
        sky_light=_mix(rng, (0.008, 0.009, 0.014), (0.018, 0.018, 0.024)),
        sky_horizon=_mix(rng, (0.012, 0.011, 0.014), (0.035, 0.028, 0.024)),
        sky_zenith=_mix(rng, (0.002, 0.003, 0.008), (0.008, 0.009, 0.016)),
        clouds=float(rng.uniform(0.0, 1.0)),
        fog=0.001,
        wet=float(rng.choice((0.0, 0.5), p=(0.7, 0.3))),
        lamps=True,
        exposure=float(rng.uniform(1.8, 2.6)),
        noise=3.0,
    )


def _fog(rng: np.random.Generator) -> Weather:
    grey = _mix(rng, (0.62, 0.64, 0.66), (0.76, 0.77, 0.78))
    return Weather(
        "fog",
        sun=_sun(rng, 20, 45),
        sun_light=_mix(rng, (0.02, 0.02, 0.02), (0.08, 0.08, 0.075)),
        sky_light=_mix(rng, (0.52, 0.54, 0.56), (0.64, 0.65, 0.67)),
        sky_horizon=grey,
        sky_zenith=tuple(0.95 * v for v in grey),
        clouds=1.0,
        fog=float(rng.uniform(0.012, 0.04)),
        wet=0.15,
        noise=1.2,
    )


def _rain(rng: np.random.Generator) -> Weather:
    return Weather(
        "rain",
        sun=_sun(rng, 25, 50),
        sun_light=(0.01, 0.01, 0.01),
        sky_light=_mix(rng, (0.34, 0.36, 0.39), (0.48, 0.50, 0.52)),
        sky_horizon=_mix(rng, (0.46, 0.48, 0.50), (0.58, 0.59, 0.60)),
        sky_zenith=_mix(rng, (0.34, 0.36, 0.39), (0.44, 0.46, 0.48)),
        clouds=1.0,
        fog=float(rng.uniform(0.003, 0.009)),
        rain=float(rng.uniform(0.3, 1.0)),
        wet=float(rng.uniform(0.4, 0.8)),
        lamps=bool(rng.random() < 0.4),
        exposure=float(rng.uniform(1.1, 1.4)),
        noise=1.5,
    )


WEATHERS: Mapping[str, tuple[float, Callable[[np.random.Generator], Weather]]] = MappingProxyType(
    {
        "clear": (0.30, _clear),
        "overcast": (0.22, _overcast),
        "dusk": (0.12, _dusk),
        "night": (0.14, _night),
        "fog": (0.10, _fog),
        "rain": (0.12, _rain),
    }
)
"""Kinds of weather by name: the share of streets that have it, and how it is drawn."""


def check_weather(name: str) -> None:
    """Raises GeometryError where there is no such kind; "" is any."""
    if name and name not in WEATHERS:
        raise GeometryError(f"no weather {name!r}; there is {', '.join(WEATHERS)}, or none for any of them")


def draw_weather(name: str, rng: np.random.Generator) -> Weather:
    """Weather of a kind of WEATHERS; "" is any of them, by their shares.

    Raises:
        GeometryError: no such kind.
    """
    if not name:
        name = str(rng.choice(list(WEATHERS), p=[share for share, _ in WEATHERS.values()]))
    check_weather(name)
    return WEATHERS[name][1](rng)
