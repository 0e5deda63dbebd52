"""What the world's sensors make of what rays see: a camera with exposure, noise and rain, and a spinning LiDAR."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from lix_core.errors import GeometryError
from lix_core.world.render import Renderer
from lix_core.world.scene import Weather

MIDDLE_GREY = 0.27
"""Linear light that automatic exposure gives the image's logarithmic mean."""
EXPOSURE_RANGE = (0.55, 2.0)
LENS_BLUR_PX = 0.45
VIGNETTING = 0.18
"""Share of light lost in the image's corners."""
SHOT_NOISE, READ_NOISE = 4e-4, 2.5e-3
WHITE = 3.0
"""Linear light that the tone curve maps to white."""
TONE_STEPS = 4096
_light = np.linspace(0.0, WHITE, TONE_STEPS)
TONE = np.round(255.0 * np.clip(_light * (1.0 + _light / WHITE**2) / (1.0 + _light) * 1.0, 0.0, 1.0) ** (1 / 2.2)).astype(np.uint8)
"""Linear light 0..WHITE -> byte: Reinhard et al., "Photographic tone reproduction", SIGGRAPH 2002, eq. 4, then gamma 2.2."""
LEAST_SIGNAL = 0.1
"""Echo the LiDAR still detects: that of a surface of 10 % reflectivity, facing it at its full reach."""


def exposure_of(radiance: np.ndarray, weather: Weather) -> float:
    """Automatic exposure: the factor that a camera puts on (H, W, 3) linear light."""
    # As of a camera on a car, the sky is not metered.
    small = cv2.resize(radiance[radiance.shape[0] // 3 :], (64, 32), interpolation=cv2.INTER_AREA)
    grey = float(np.exp(np.log(small.mean(axis=2) + 1e-3).mean()))
    return weather.exposure * float(np.clip(MIDDLE_GREY / (grey * weather.exposure), *EXPOSURE_RANGE))


def develop(radiance: np.ndarray, exposure: float, weather: Weather, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) linear light -> (H, W, 3) uint8 RGB: lens blur, vignetting, rain, shot and read noise, tone curve."""
    height, width = radiance.shape[:2]
    light = cv2.GaussianBlur(radiance, (3, 3), LENS_BLUR_PX)
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
    light *= (exposure * (1.0 - 0.5 * VIGNETTING * (x * x + y * y)))[..., None]
    if weather.rain > 0:
        light += rain_streaks(height, width, weather, rng)[..., None] * (0.15 + 0.5 * float(light.mean()))
    # A dark scene is amplified, and its noise with it.
    gain = max(1.0, exposure) * weather.noise
    sigma = cv2.sqrt(np.maximum(light, 0.0) * np.float32(SHOT_NOISE * gain) + np.float32((READ_NOISE * gain) ** 2))
    light += sigma * rng.standard_normal(light.shape, np.float32)
    return TONE[np.clip(light * ((TONE_STEPS - 1) / WHITE), 0, TONE_STEPS - 1).astype(np.uint16)]


def rain_streaks(height: int, width: int, weather: Weather, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 share 0..1 of the light that falling drops add."""
    streaks = np.zeros((height, width), np.uint8)
    slant = rng.uniform(-0.15, 0.15)
    for _ in range(int(weather.rain * height * width / 300)):
        x, y, length = rng.uniform(0, width), rng.uniform(-0.1 * height, height), rng.uniform(0.03, 0.14) * height
        ends = ((int(x), int(y)), (int(x + slant * length), int(y + length)))
        cv2.line(streaks, *ends, int(rng.integers(40, 190)), 1, cv2.LINE_AA)
    return cv2.GaussianBlur(streaks, (3, 3), 0.6).astype(np.float32) / 255.0


@dataclass(frozen=True)
class Lidar:
    """A spinning LiDAR. Frame: x forward, y left, z up [m].

    rings, columns: beams in elevation and firings in one turn. lowest, highest: elevation of the outer beams [degrees]. reach: [m] at 10 %
    reflectivity. noise: standard deviation of the range [m]. dropout: share of echoes lost for no reason.
    """

    rings: int = 64
    columns: int = 1024
    lowest: float = -24.8
    highest: float = 2.0
    reach: float = 120.0
    noise: float = 0.02
    dropout: float = 0.02

    def __post_init__(self) -> None:
        if self.rings < 1 or self.columns < 1 or not self.lowest <= self.highest or self.reach <= 0 or self.noise < 0:
            raise GeometryError(f"a LiDAR needs rings, columns and reach above 0, noise of at least 0 and lowest <= highest, got {self}")
        if not 0 <= self.dropout < 1:
            raise GeometryError(f"dropout of a LiDAR must be 0 to below 1, got {self.dropout}")

    @cached_property
    def directions(self) -> np.ndarray:
        """(rings * columns, 3) float32 unit directions of the beams, LiDAR frame; ring 0 is the lowest, column 0 looks backwards."""
        elevation = np.radians(np.linspace(self.lowest, self.highest, self.rings))[:, None]
        azimuth = np.pi - 2.0 * np.pi * np.arange(self.columns) / self.columns
        parts = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation) + 0.0 * azimuth
        return np.stack(parts, axis=-1).reshape(-1, 3).astype(np.float32)

    def scan(self, renderer: Renderer, world_from_lidar: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One turn, all beams from one point: (N, 5) float32 x, y, z [m], intensity 0..1, ring of the echoes that came back."""
        distance, strength = renderer.echoes(world_from_lidar, self.directions)
        hit = np.isfinite(distance)
        beams, distance, strength = self.directions[hit], distance[hit], strength[hit]
        ring = np.repeat(np.arange(self.rings, dtype=np.float32), self.columns)[hit]
        weather = renderer.scene.weather
        signal = strength * np.exp(-2.0 * weather.fog * distance) * (self.reach / np.maximum(distance, 0.5)) ** 2
        loud = signal > LEAST_SIGNAL * rng.uniform(0.6, 1.4, len(signal))
        heard = loud & (rng.random(len(signal)) >= self.dropout + 0.1 * weather.rain)
        distance = distance + self.noise * rng.standard_normal(len(distance))
        # Drops close by answer instead of what is behind them.
        drops, near = rng.random(len(distance)) < 0.004 * weather.rain, rng.uniform(1.0, 12.0, len(distance))
        drops &= near < distance
        distance = np.where(drops, near, distance)
        strength = np.where(drops, 0.03, strength)
        keep = (heard & (distance > 0.3)) | drops
        points = beams[keep] * distance[keep, None]
        return np.column_stack([points, np.clip(strength[keep], 0, 1), ring[keep]]).astype(np.float32)
