"""The ray caster under every sensor of the world: what a ray meets, exactly, and how that looks.

Arrays are planar here, (3, N) for N rays, because that is what NumPy and a CPU's cache like best.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Sequence

import cv2
import numpy as np

from lix_core.camera import Camera
from lix_core.errors import GeometryError
from lix_core.labels import STREET
from lix_core.world.scene import TEXTURE_SIZE, Scene, Texture

try:
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene
except ImportError:
    EmbreeScene = None

MIP_LEVELS = 6
BAND_RAYS = 15_360
"""Rays worked on at a time: their arrays stay in a core's cache."""
SURFACE_OFFSET_M = 2e-3
"""Secondary rays start this far off their surface, plus a share of the distance for the rounding of float32."""
OCCLUSION_REACH_M, OCCLUSION_STEP = 2.5, 3
"""Surfaces nearer than this take sky light from each other, looked at in every third row and column."""
EDGE_SHARE, EDGE_CONTRAST = 0.05, 0.06
"""At most this share of the pixels, those where brightness (square root of light) varies most and by more than this, get more rays."""
EDGE_SAMPLES_PX = ((0.33, 0.17), (-0.33, -0.17))
LAMP_REACH_M = 45.0
HEADLIGHT_DROP_M, HEADLIGHT_POWER = 0.9, 90.0
LAMP_POWER = 26.0
LAMP_COLOR = np.array([1.0, 0.78, 0.5], np.float32)[:, None]
HEADLIGHT_COLOR = np.array([1.0, 0.95, 0.85], np.float32)[:, None]
LINEAR = ((np.arange(256) / 255.0) ** 2.2).astype(np.float32)
"""sRGB byte -> linear light 0..1."""
TREE = STREET.id_of("tree")
WETTABLE = tuple(STREET.id_of(name) for name in ("road", "pavement"))
SKY = STREET.id_of("sky")


@dataclass(frozen=True, eq=False)
class View:
    """One camera's sight of a scene.

    radiance: (H, W, 3) float32 linear light. depth: (H, W) float32 z [m], NaN = sky. normals: (H, W, 3) float32 unit, optical frame,
    facing the camera, NaN = sky. labels: (H, W) uint8 ids in STREET. instances: (H, W) uint16, 0 = stuff.
    """

    radiance: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    labels: np.ndarray
    instances: np.ndarray


@dataclass(frozen=True, eq=False)
class Hits:
    """What N rays met: triangle (N,) int32, -1 = nothing; distance (N,) float32 in lengths of the direction; u, v (N,) barycentric."""

    triangle: np.ndarray
    distance: np.ndarray
    u: np.ndarray
    v: np.ndarray


@lru_cache(maxsize=1024)
def mip_levels(texture: Texture) -> tuple[np.ndarray, ...]:
    """The texture at 1, 1/2, 1/4, ... of its size."""
    sizes = [TEXTURE_SIZE >> level for level in range(1, MIP_LEVELS)]
    return texture.pixels, *(cv2.resize(texture.pixels, (size, size), interpolation=cv2.INTER_AREA) for size in sizes)


class Atlas:
    """All textures of a scene with their mip levels in one picture, so that one cv2.remap looks up every pixel."""

    def __init__(self, textures: Sequence[Texture]):
        per_row = int(np.ceil(np.sqrt(len(textures))))
        rows = -(-len(textures) // per_row)
        self._top: list[int] = []
        levels, top = [], 0
        width = per_row * (TEXTURE_SIZE + 2)
        for level in range(MIP_LEVELS):
            size = TEXTURE_SIZE >> level
            picture = np.zeros((rows * (size + 2), width, 3), np.uint8)
            for i, texture in enumerate(textures):
                row, column = divmod(i, per_row)
                y, x = row * (size + 2), column * (size + 2)
                # A pixel of the opposite side around each tile, so that bilinear lookups wrap.
                picture[y : y + size + 2, x : x + size + 2] = cv2.copyMakeBorder(mip_levels(texture)[level], 1, 1, 1, 1, cv2.BORDER_WRAP)
            levels.append(picture)
            self._top.append(top)
            top += len(picture)
        self._picture = np.vstack(levels)
        self.column, self.row = (np.array([divmod(i, per_row)[k] for i in range(len(textures))], np.float32) for k in (1, 0))
        self._tops = np.array(self._top, np.float32)

    def sample(self, s: np.ndarray, t: np.ndarray, column: np.ndarray, row: np.ndarray, level: np.ndarray) -> np.ndarray:
        """(3, N) float32 linear colour at tile coordinates s, t (any real; 1 = one tile), trilinear. column, row, level: (N,) float32."""
        level = np.clip(level, 0, MIP_LEVELS - 1.001)
        lower = np.floor(level)
        s, t = s - np.floor(s), 1.0 - (t - np.floor(t))
        blend = (level - lower)[:, None]
        near, far = (self._lookup(s, t, column, row, lower + step) for step in (0, 1))
        return ((1.0 - blend) * near + blend * far).T

    def _lookup(self, s: np.ndarray, t: np.ndarray, column: np.ndarray, row: np.ndarray, level: np.ndarray) -> np.ndarray:
        size = np.ldexp(np.float32(TEXTURE_SIZE), -level.astype(np.int32))
        x = column * (size + 2) + 0.5 + s * size
        y = self._tops[level.astype(np.intp)] + row * (size + 2) + 0.5 + t * size
        colors = cv2.remap(self._picture, x[None].astype(np.float32), y[None].astype(np.float32), cv2.INTER_LINEAR)
        return LINEAR[colors[0]]


@cache
def pool() -> ThreadPoolExecutor:
    """The threads of all renderers."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="rays")


def rotated(rotation: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(N, 3) vectors, each times the (3, 3) rotation. Not `@`: BLAS brings threads of its own, which get in the way of these."""
    return cv2.transform(vectors[:, None], rotation)[:, 0]


def repeated_square(x: np.ndarray, times: int) -> np.ndarray:
    """x to the power of 2**times."""
    for _ in range(times):
        x = x * x
    return x


def cloud_tile() -> np.ndarray:
    """(512, 512) float32 in 0..1: noise of several octaves that tiles."""
    rng = np.random.default_rng(20)
    total = np.zeros((512, 512), np.float32)
    for octave in range(6):
        cells = 4 << octave
        noise = cv2.copyMakeBorder(rng.random((cells, cells), np.float32), 2, 2, 2, 2, cv2.BORDER_WRAP)
        scale = 512 // cells
        large = cv2.resize(noise, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        total += large[2 * scale : 2 * scale + 512, 2 * scale : 2 * scale + 512] * 0.55**octave
    low, high = np.percentile(total, (2, 98))
    return np.clip((total - low) / (high - low), 0, 1).astype(np.float32)


def fibonacci_sphere(count: int) -> np.ndarray:
    """(count, 3) float32 unit vectors, evenly spread."""
    z = 1.0 - (2.0 * np.arange(count) + 1.0) / count
    angle = np.arange(count) * np.pi * (3.0 - np.sqrt(5.0))
    radius = np.sqrt(1.0 - z * z)
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle), z]).astype(np.float32)


CLOUDS, SPHERE = cloud_tile(), fibonacci_sphere(16)


class Renderer:
    """Casts rays into one scene, from as many threads as there are cores.

    Raises:
        GeometryError: embreex is not installed.
    """

    def __init__(self, scene: Scene):
        if EmbreeScene is None:
            raise GeometryError(
                "the simulated world needs the ray caster embreex: pip install -c constraints.txt -e '.[sim]' in the sources of lix, "
                "or pip install embreex"
            )
        self.scene = scene
        self._embree = EmbreeScene()
        self._mesh = TriangleMesh(self._embree, scene.triangles)
        edges = scene.triangles[:, 1:] - scene.triangles[:, :1]
        normals = np.cross(edges[:, 0].astype(np.float64), edges[:, 1].astype(np.float64))
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        self._normals = normals / np.where(length > 0, length, 1.0)
        self._offsets = np.einsum("ij,ij->i", self._normals, scene.triangles[:, 0].astype(np.float64))
        self._atlas = Atlas(scene.textures)
        self._table = self._triangle_table()
        self._reflectivity = self._material_reflectivity()
        self._pool = pool()
        # The first rays build Embree's tree; afterwards threads may share it.
        self.cast(np.zeros(3), np.ones((1, 3), np.float32))

    def _triangle_table(self) -> np.ndarray:
        """(F, 18) float32, a row for each triangle, so that shading gathers once: normal 3, tile coordinates of the first corner 2 and
        along both edges 4, texture column and row 2, pixels per metre 1, tint 3, gloss, glow, class id."""
        scene = self.scene
        size_m = np.array([t.size_m for t in scene.textures], np.float32)
        texture = np.array([m.texture for m in scene.materials])[scene.material]
        uv = scene.uv / size_m[texture][:, None]
        look = np.array([(*m.tint, m.gloss, m.glow) for m in scene.materials], np.float32)[scene.material]
        density = TEXTURE_SIZE / size_m.max(axis=1)[texture]
        columns = (self._normals, uv[:, 0], uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0], self._atlas.column[texture], self._atlas.row[texture])
        return np.column_stack([*columns, density, look, scene.label]).astype(np.float32)

    def _material_reflectivity(self) -> np.ndarray:
        """(M,) float32 0..1 of each material at the LiDAR's wavelength."""
        mean = [LINEAR[mip_levels(t)[-1]].mean() for t in self.scene.textures]
        own = [m.reflectivity if m.reflectivity == m.reflectivity else mean[m.texture] * np.mean(m.tint) for m in self.scene.materials]
        return np.array(own, np.float32)

    # ---- rays

    def cast(self, origin: np.ndarray, directions: np.ndarray) -> Hits:
        """What rays from one point meet first. origin: (3,) [m]. directions: (N, 3) float32, world frame, of any length."""
        origins = np.broadcast_to(np.asarray(origin, np.float32), directions.shape)
        found = self._embree.run(np.ascontiguousarray(origins), np.ascontiguousarray(directions, np.float32), output=True)
        return Hits(found["primID"], found["tfar"], found["u"], found["v"])

    def occluded(self, origins: np.ndarray, directions: np.ndarray, reach: float | None = None) -> np.ndarray:
        """(N,) bool: whether something is in the way within `reach` lengths of the direction. origins, directions: (N, 3) float32."""
        limits = None if reach is None else np.full(len(origins), reach, np.float32)
        return self._embree.run(np.ascontiguousarray(origins), np.ascontiguousarray(directions), dists=limits, query="OCCLUDED") >= 0

    def heights(self, origin: np.ndarray) -> np.ndarray:
        """(F,) float32 distance [m] from a point to each triangle's plane, along its normal; subtracted in float64."""
        return (self._offsets - np.einsum("ij,j->i", self._normals, np.asarray(origin, np.float64))).astype(np.float32)

    # ---- images

    def view(self, camera: Camera, world_from_camera: np.ndarray) -> View:
        """Render the rectified image of a camera. world_from_camera: (4, 4), of the optical frame."""
        rays = camera.rays.reshape(-1, 3)
        rotation, origin = world_from_camera[:3, :3].astype(np.float32), world_from_camera[:3, 3]
        directions = rotated(rotation, rays)
        heights = self.heights(origin)
        starts = range(0, len(rays), BAND_RAYS)
        bands = list(self._pool.map(lambda i: self._band(origin, directions[i : i + BAND_RAYS], heights, camera.fx), starts))
        direct, ambient, depth, triangle, normals = (np.concatenate(part, axis=-1) for part in zip(*bands))
        self._smooth_edges(direct, ambient, origin, rays, rotation, heights, camera)
        direct, ambient = (part.T.reshape(*camera.shape, 3) for part in (direct, ambient))
        light = self._sky_share(origin, directions, depth, normals, camera.shape)
        radiance = cv2.add(direct, cv2.multiply(ambient, cv2.merge([light, light, light])))
        hit = triangle >= 0
        seen = rotated(rotation.T, np.ascontiguousarray(normals.T)).reshape(*camera.shape, 3)
        labels = np.where(hit, self.scene.label[triangle], np.uint8(SKY)).reshape(camera.shape)
        instances = np.where(hit, self.scene.instance[triangle], np.uint16(0)).reshape(camera.shape)
        return View(radiance, depth.reshape(camera.shape), seen, labels, instances)

    def _smooth_edges(
        self,
        direct: np.ndarray,
        ambient: np.ndarray,
        origin: np.ndarray,
        rays: np.ndarray,
        rotation: np.ndarray,
        heights: np.ndarray,
        camera: Camera,
    ) -> None:
        """Average more rays, spread over the pixel, into the light (3, N) of the pixels with the most contrast."""
        bright = np.sqrt((direct + ambient).mean(axis=0)).reshape(camera.shape)
        contrast = cv2.morphologyEx(bright, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).ravel()
        count = min(int(EDGE_SHARE * len(contrast)), int(np.count_nonzero(contrast > EDGE_CONTRAST)))
        if not count:
            return
        edges = np.sort(np.argpartition(contrast, -count)[-count:])
        jitter = np.array([[u / camera.fx, v / camera.fy, 0.0] for u, v in EDGE_SAMPLES_PX], np.float32)
        directions = rotated(rotation, (rays[edges] + jitter[:, None]).reshape(-1, 3))
        starts = range(0, len(directions), BAND_RAYS)
        bands = list(self._pool.map(lambda i: self._band(origin, directions[i : i + BAND_RAYS], heights, camera.fx), starts))
        for light, part in ((direct, 0), (ambient, 1)):
            more = np.concatenate([band[part] for band in bands], axis=-1).reshape(3, len(jitter), count)
            light[:, edges] = (light[:, edges] + more.sum(axis=1)) / (1 + len(jitter))

    def echoes(self, world_from_lidar: np.ndarray, beams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What N beams (N, 3; float32 unit, LiDAR frame) meet: distance [m; inf = nothing] and strength of the echo 0..1, (N,) float32."""
        origin = world_from_lidar[:3, 3]
        directions = rotated(world_from_lidar[:3, :3].astype(np.float32), beams)
        parts = np.array_split(directions, max(1, len(directions) // BAND_RAYS))
        found = list(self._pool.map(lambda d: self.cast(origin, d), parts))
        triangle = np.concatenate([h.triangle for h in found])
        distance = np.concatenate([h.distance for h in found])
        facing = np.abs(np.einsum("ij,ij->i", np.take(self._table[:, :3], triangle, axis=0), directions))
        hit = triangle >= 0
        strength = self._reflectivity[self.scene.material[triangle]] * facing
        return np.where(hit, distance, np.float32(np.inf)), np.where(hit, strength, np.float32(0.0))

    def _band(self, origin: np.ndarray, directions: np.ndarray, heights: np.ndarray, focal: float) -> tuple[np.ndarray, ...]:
        """Direct light (3, n), ambient light (3, n), depth (n,), triangle (n,), normals (3, n; world frame) of a band of n pixels."""
        hits = self.cast(origin, directions)
        hit = hits.triangle >= 0
        table = np.ascontiguousarray(np.take(self._table, hits.triangle, axis=0).T)
        slope = np.einsum("ji,ij->i", table[0:3], directions)
        # The plane of the triangle says where the ray meets it more exactly than the ray caster, but for rays along the plane.
        grazing = np.abs(slope) < 1e-3
        depth = np.where(grazing, hits.distance, heights[hits.triangle] / np.where(grazing, np.float32(1.0), slope))
        length = np.sqrt(np.einsum("ij,ij->i", directions, directions))
        toward = np.ascontiguousarray((directions / length[:, None]).T)
        normals = np.where(slope > 0, -table[0:3], table[0:3])
        distance = np.where(hit, depth, np.float32(1e3)) * length
        direct, ambient = self._shade(origin, toward, normals, np.abs(slope) / length, distance, hits, table, focal)
        air = np.exp(-self.scene.weather.fog * distance)
        direct = direct * air + self._haze() * (1.0 - air)
        ambient *= air
        direct[:, ~hit] = self._sky(toward[:, ~hit])
        ambient[:, ~hit] = 0
        normals[:, ~hit] = np.nan
        depth[~hit] = np.nan
        return direct, ambient, depth, hits.triangle, normals

    def _shade(
        self,
        origin: np.ndarray,
        toward: np.ndarray,
        normals: np.ndarray,
        facing: np.ndarray,
        distance: np.ndarray,
        hits: Hits,
        table: np.ndarray,
        focal: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Direct and ambient light (3, n) that surfaces send to the eye."""
        weather = self.scene.weather
        footprint = distance / focal / np.sqrt(np.maximum(facing, 0.03))
        s, t = table[3] + hits.u * table[5] + hits.v * table[7], table[4] + hits.u * table[6] + hits.v * table[8]
        level = np.log2(np.maximum(footprint * table[11], 1.0))
        picture = self._atlas.sample(s, t, table[9], table[10], level)
        albedo, gloss, glow = picture * table[12:15], table[15], table[16]
        if weather.wet:
            flat = np.isin(table[17], WETTABLE) & (normals[2] > 0.8)
            albedo = albedo * np.where(flat, np.float32(1.0 - 0.45 * weather.wet), np.float32(1.0))
            gloss = np.where(flat, np.maximum(gloss, 0.7 * weather.wet), gloss)
        points = (np.asarray(origin, np.float32)[:, None] + toward * distance + normals * (SURFACE_OFFSET_M + 1e-4 * distance)).astype(
            np.float32
        )
        direct = np.zeros_like(albedo)
        up = 0.5 + 0.5 * normals[2]
        sky_light, sun_light = (np.array(v, np.float32)[:, None] for v in (weather.sky_light, weather.sun_light))
        ground = 0.15 * (sky_light + max(weather.sun[2], 0.0) * sun_light)
        ambient = albedo * (sky_light * up + ground * (1.0 - up))
        glossy = np.flatnonzero(gloss)
        gloss = gloss[glossy]
        mirrored = toward[:, glossy] + 2.0 * facing[glossy] * normals[:, glossy]
        shine = gloss * (0.04 + 0.96 * (1.0 - facing[glossy]) ** 5)
        above = np.clip(0.5 + 4.0 * mirrored[2], 0.0, 1.0)
        ambient[:, glossy] += shine * (above * self._sky(mirrored) + (1.0 - above) * ground - ambient[:, glossy])
        if weather.sun[2] > 0 and max(weather.sun_light) > 0:
            sun = np.array(weather.sun, np.float32)
            slope = sun @ normals
            # Leaves let light through from behind.
            slope = np.where(table[17] == TREE, np.maximum(slope, -0.5 * slope), np.maximum(slope, 0.0))
            lit = np.flatnonzero((slope > 0) & (hits.triangle >= 0))
            shadow = self.occluded(points[:, lit].T, np.broadcast_to(sun, (len(lit), 3)))
            slope[lit[shadow]] = 0.0
            slope[hits.triangle < 0] = 0.0
            direct += sun_light * (albedo * slope)
            glint = repeated_square(np.maximum(sun @ mirrored, 0.0), 7) * np.where(slope[glossy] > 0, 2.0 * gloss, np.float32(0.0))
            direct[:, glossy] += sun_light * glint
        if weather.lamps:
            direct += albedo * self._lamps(origin, points, normals) + glow * picture
        return direct, ambient

    def _lamps(self, origin: np.ndarray, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """(3, n) irradiance of the street lamps near the eye and of the camera car's headlights; they cast no shadows."""
        total = np.zeros_like(points)
        lamps = self.scene.lamp_positions
        near = lamps[np.linalg.norm(lamps - origin, axis=1) < LAMP_REACH_M]
        for lamp in near:
            away = lamp.astype(np.float32)[:, None] - points
            squared = np.einsum("ij,ij->j", away, away) + 1.0
            total += LAMP_POWER * LAMP_COLOR * np.maximum(np.einsum("ij,ij->j", away, normals), 0.0) / (squared * np.sqrt(squared))
        away = np.asarray(origin, np.float32)[:, None] - np.array([[0], [0], [HEADLIGHT_DROP_M]], np.float32) - points
        squared = np.einsum("ij,ij->j", away, away) + 4.0
        level = away[2] / np.sqrt(squared)
        beam = 1.0 / (1.0 + np.exp(np.clip(-60.0 * (level + 0.02), -30, 30)))  # cut off above the horizontal
        total += (
            HEADLIGHT_POWER
            * HEADLIGHT_COLOR
            * (0.08 + beam)
            * np.maximum(np.einsum("ij,ij->j", away, normals), 0.0)
            / (squared * np.sqrt(squared))
        )
        return total

    def _sky(self, toward: np.ndarray) -> np.ndarray:
        """(3, n) light of the sky in directions (3, n)."""
        weather = self.scene.weather
        horizon, zenith = (np.array(v, np.float32)[:, None] for v in (weather.sky_horizon, weather.sky_zenith))
        height = np.clip(toward[2], 0.0, 1.0)
        color = horizon + (zenith - horizon) * np.sqrt(height)
        if weather.clouds > 0 and toward.size:
            x, y = (256.0 + 90.0 * toward[i] / (height + 0.12) for i in (0, 1))
            cover = cv2.remap(CLOUDS, x[None].astype(np.float32), y[None].astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)[
                0
            ]
            cover = np.clip((cover - 1.0 + weather.clouds) * 3.0, 0.0, 1.0) * np.clip(8.0 * height, 0.0, 1.0)
            white = np.mean(horizon) * (1.25 - 0.45 * weather.clouds)
            color = color + (white - color) * (0.85 * cover)
        if weather.sun[2] > -0.05 and max(weather.sun_light) > 0:
            angle = np.maximum(np.array(weather.sun, np.float32) @ toward, 0.0)
            color = color + np.array(weather.sun_light, np.float32)[:, None] * (
                0.25 * repeated_square(angle, 5) + 6.0 * repeated_square(angle, 11)
            ) * (1 - weather.clouds)
        return color

    def _haze(self) -> np.ndarray:
        """(3, 1) colour that fog fades to."""
        return np.array(self.scene.weather.sky_horizon, np.float32)[:, None]

    def _sky_share(
        self, origin: np.ndarray, directions: np.ndarray, depth: np.ndarray, normals: np.ndarray, shape: tuple[int, int]
    ) -> np.ndarray:
        """(H, W) float32 0..1: how much of the sky light comes past things nearby.

        One ray for every ninth pixel; 4 x 4 neighbours have different directions, which a mean over as many brings together
        (interleaved sampling, Keller and Heidrich, EGWR 2001).
        """
        width = shape[1]
        rows, columns = (np.arange(0, size, OCCLUSION_STEP) for size in shape)
        grid = (rows[:, None] * width + columns).ravel()
        scatter = SPHERE[(np.arange(len(rows)) % 4)[:, None] * 4 + np.arange(len(columns)) % 4].reshape(-1, 3)
        hit = np.flatnonzero(np.isfinite(depth[grid]))
        chosen = grid[hit]
        normal = normals[:, chosen].T
        start = 5 * SURFACE_OFFSET_M + 2e-4 * depth[chosen, None]
        points = np.asarray(origin, np.float32) + directions[chosen] * depth[chosen, None] + normal * start
        away = normal * 1.01 + scatter[hit]
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        parts = np.array_split(np.arange(len(chosen)), os.cpu_count() or 1)
        blocked = np.concatenate(list(self._pool.map(lambda i: self.occluded(points[i], away[i], OCCLUSION_REACH_M), parts)))
        open_sky = np.ones(len(grid), np.float32)
        open_sky[hit[blocked]] = 0.15
        coarse = cv2.blur(open_sky.reshape(len(rows), len(columns)), (4, 4))
        return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_LINEAR)
