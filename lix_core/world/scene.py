"""What a scene is made of: triangles with labels, instances and materials, textures, and the light and weather around them.

World frame: x east, y north, z up [m] (REP 103); the ground is near z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Sequence

import numpy as np

from lix_core.errors import GeometryError

TEXTURE_SIZE = 256
"""Width and height of every texture [pixels]."""


@dataclass(frozen=True, eq=False)
class Texture:
    """A square picture that tiles: (256, 256, 3) uint8 sRGB; it covers `size_m` = (width, height) metres of surface.

    Row 0 is the top: texture coordinate (0, 0) is the lower left corner, t grows upwards.
    """

    pixels: np.ndarray
    size_m: tuple[float, float]

    def __post_init__(self) -> None:
        if self.pixels.shape != (TEXTURE_SIZE, TEXTURE_SIZE, 3) or self.pixels.dtype != np.uint8:
            raise GeometryError(f"a texture is ({TEXTURE_SIZE}, {TEXTURE_SIZE}, 3) uint8, got {self.pixels.shape} {self.pixels.dtype}")


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    texture: index into the scene's textures. tint: (r, g, b) factor on it, linear light. gloss: 0 matt .. 1 mirror, the share of sky
    and sun it reflects. glow: light of its own at night, as a factor on its texture (lit windows, lamps). reflectivity: 0..1 at the
    LiDAR's wavelength; NaN takes the mean brightness of the tint.
    """

    texture: int = 0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gloss: float = 0.0
    glow: float = 0.0
    reflectivity: float = float("nan")


@dataclass(frozen=True)
class Weather:
    """Light and air of a scene.

    sun: unit direction towards the sun (world frame), below the horizon at night. sun_light, sky_light: (r, g, b) linear
    irradiance; under sun_light + sky_light = 1 a white matt surface is white at exposure 1. sky_horizon, sky_zenith: (r, g, b)
    linear colour of the sky. clouds: 0 clear .. 1 overcast. fog: extinction [1/m]; visibility is about 3 / fog. rain: 0 none ..
    1 heavy. wet: 0 dry .. 1 mirroring road. lamps: street lamps and headlights are lit. exposure: factor before the tone curve.
    noise: camera noise, 1 = a good camera by day.
    """

    name: str
    sun: tuple[float, float, float]
    sun_light: tuple[float, float, float]
    sky_light: tuple[float, float, float]
    sky_horizon: tuple[float, float, float]
    sky_zenith: tuple[float, float, float]
    clouds: float = 0.0
    fog: float = 0.0
    rain: float = 0.0
    wet: float = 0.0
    lamps: bool = False
    exposure: float = 1.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        for name in ("sun", "sun_light", "sky_light", "sky_horizon", "sky_zenith"):
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        # NumPy's own scalars would make all light float64.
        for name in ("clouds", "fog", "rain", "wet", "exposure", "noise"):
            object.__setattr__(self, name, float(getattr(self, name)))


@dataclass(frozen=True, eq=False)
class Part:
    """A piece of a scene: triangles of one label, one instance and one material.

    triangles: (F, 3, 3) float32 corners [m], world frame. uv: (F, 3, 2) float32 surface coordinates [m]. label: id in STREET.
    instance: 0 for stuff (road, sky, building walls), a number above 0 for each countable thing, painted ones (label: building) too.
    """

    triangles: np.ndarray
    label: int
    material: int
    uv: np.ndarray | None = None
    instance: int = 0


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything a ray can meet. F triangles.

    triangles: (F, 3, 3) float32 [m]. uv: (F, 3, 2) float32 [m]. label: (F,) uint8 ids in STREET. instance: (F,) uint16, 0 = stuff.
    material: (F,) int32 index into materials. path: (P, 3) float64 points of the road surface under the camera car's middle, in driving
    order [m]. lamp_positions: (L, 3) street lamps that shine when weather.lamps [m].
    """

    triangles: np.ndarray
    uv: np.ndarray
    label: np.ndarray
    instance: np.ndarray
    material: np.ndarray
    materials: tuple[Material, ...]
    textures: tuple[Texture, ...]
    weather: Weather
    path: np.ndarray
    lamp_positions: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))

    @classmethod
    def of(
        cls,
        parts: Sequence[Part],
        materials: Sequence[Material],
        textures: Sequence[Texture],
        weather: Weather,
        path: np.ndarray,
        lamp_positions: np.ndarray | None = None,
    ) -> "Scene":
        """Join parts into one scene; parts without uv get zeros.

        Raises:
            GeometryError: no triangles, corners that are not finite, or a part naming a material that is not there.
        """
        count = [len(p.triangles) for p in parts]
        if not sum(count):
            raise GeometryError("a scene needs at least one triangle")
        triangles = np.concatenate([np.asarray(p.triangles, np.float32).reshape(-1, 3, 3) for p in parts])
        if not np.isfinite(triangles).all():
            raise GeometryError("a scene has corners that are not finite")
        uv = np.concatenate(
            [np.zeros((n, 3, 2), np.float32) if p.uv is None else np.asarray(p.uv, np.float32) for n, p in zip(count, parts)]
        )
        material = np.repeat([p.material for p in parts], count).astype(np.int32)
        if material.max() >= len(materials) or max(m.texture for m in materials) >= len(textures):
            raise GeometryError(f"{len(materials)} materials and {len(textures)} textures, but a part or material names one beyond them")
        return cls(
            triangles,
            uv,
            np.repeat([p.label for p in parts], count).astype(np.uint8),
            np.repeat([p.instance for p in parts], count).astype(np.uint16),
            material,
            tuple(materials),
            tuple(textures),
            weather,
            np.asarray(path, np.float64).reshape(-1, 3),
            np.zeros((0, 3)) if lamp_positions is None else np.asarray(lamp_positions, np.float64).reshape(-1, 3),
        )

    @property
    def path_length(self) -> float:
        """[m] along the path."""
        return float(np.linalg.norm(np.diff(self.path, axis=0), axis=1).sum())

    def pose_at(self, distance: float) -> np.ndarray:
        """(4, 4) float64 world_from_car: the car's frame (x forward, y left, z up) on the path after `distance` [m]; held at its ends."""
        steps = np.linalg.norm(np.diff(self.path, axis=0), axis=1)
        along = np.concatenate([[0.0], np.cumsum(steps)])
        if len(self.path) < 2:
            raise GeometryError("a path needs at least two points")
        s = float(np.clip(distance, 0.0, along[-1]))

        def at(d: float) -> np.ndarray:
            d = float(np.clip(d, 0.0, along[-1]))
            return np.array([np.interp(d, along, self.path[:, i]) for i in range(3)])

        # The heading looks a car's length around, so that it turns smoothly at the path's corners.
        forward = at(s + 2.0) - at(s - 2.0)
        forward /= np.linalg.norm(forward)
        left = np.cross([0.0, 0.0, 1.0], forward)
        left /= np.linalg.norm(left)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([forward, left, np.cross(forward, left)], axis=1)
        pose[:3, 3] = at(s)
        return pose
