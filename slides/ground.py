"""The ground of a tissue picture: fibres, cytoplasm, cell borders, fat; everything but nuclei, glands and vessels.

The ground is soft compared with nuclei, so it is painted at about 0.5 micrometres a pixel and enlarged by texture.py: a
quarter of the work. Concentrations are float32 in the unit of stain.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

import cv2
import numpy as np

from slides.noise import hash_unit, seamless, smoothstep, value_noise, window
from slides.nuclei import flipped, stamp
from slides.scene import Scene

COARSE = 8
"""Regions and slow noise are evaluated once in an aligned square of so many ground pixels, and interpolated."""

MARGIN_UM = 24.0
"""How far outside the window a nucleus or cell may have its centre and still reach in."""

_CELL_REACH_UM = 17.0


@dataclass(frozen=True, slots=True)
class _Textures:
    """Seamless float32 textures of one resolution, and the reach of single cells (see _cell)."""

    foam: np.ndarray
    mottle: np.ndarray
    fibre: np.ndarray
    crack: np.ndarray
    fat: np.ndarray
    cells: list[np.ndarray]


_lock = Lock()


def _cell(rng: np.random.Generator, um_per_px: float) -> np.ndarray:
    """A cell's reach: a uint16 cone, tone in the 4 low bits; the maximum of cones divides the plane into cells."""
    size = int(2 * _CELL_REACH_UM / um_per_px) | 1
    axis = (np.arange(size, dtype=np.float32) - size // 2) * um_per_px
    theta, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.35)
    u = (axis[None, :] * np.cos(theta) + axis[:, None] * np.sin(theta)) / stretch
    v = (axis[:, None] * np.cos(theta) - axis[None, :] * np.sin(theta)) * stretch
    level = (np.clip(1 - np.hypot(u, v) / _CELL_REACH_UM, 0, 1) * 4095).astype(np.uint16)
    return (level << 4) | np.where(level > 0, rng.integers(0, 16), 0).astype(np.uint16)


def _fat(size: int, um_per_px: float) -> np.ndarray:
    """Micrometres to the nearest fat cell's membrane, float32 (size, size), seamless."""
    rng = np.random.default_rng(5)
    n = max(2, round(size * um_per_px / 46.0))
    grid = np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) + rng.uniform(0.1, 0.9, (n * n, 2))
    xy = (grid * (size / n)).astype(int) % size
    sites = np.ones((size, size), np.uint8)
    sites[xy[:, 1], xy[:, 0]] = 0
    pad = min(size, int(80 / um_per_px))
    around = cv2.copyMakeBorder(sites, pad, pad, pad, pad, cv2.BORDER_WRAP)
    _, label = cv2.distanceTransformWithLabels(around, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    inner = np.ones(label.shape, np.uint8)
    inner[:, 1:] &= label[:, 1:] == label[:, :-1]
    inner[1:, :] &= label[1:, :] == label[:-1, :]
    return cv2.distanceTransform(inner, cv2.DIST_L2, 5)[pad : pad + size, pad : pad + size] * np.float32(um_per_px)


@lru_cache(maxsize=6)
def _make_textures(s: float) -> _Textures:
    rng = np.random.default_rng(20241)
    fibre = 0.75 * seamless((512, 1024), 16 / s, 0.9 / s, 1) + 0.5 * seamless((512, 1024), 7 / s, 0.4 / s, 2)
    return _Textures(
        foam=seamless((448, 448), 1.7 / s, 1.7 / s, 4),
        mottle=seamless((576, 576), 4.5 / s, 4.5 / s, 6),
        fibre=cv2.copyMakeBorder(fibre, 0, 1, 0, 1, cv2.BORDER_WRAP),
        crack=cv2.copyMakeBorder(seamless((512, 1024), 7 / s, 0.9 / s, 7), 0, 1, 0, 1, cv2.BORDER_WRAP),
        fat=_fat(640, s),
        cells=[_cell(rng, s) for _ in range(64)],
    )


def _textures(um_per_px: float) -> _Textures:
    with _lock:  # two threads must not draw the same textures twice
        return _make_textures(round(um_per_px, 4))


@dataclass(frozen=True, slots=True)
class Sites:
    """Places of things: x, y in ground pixels of the canvas, and three random numbers for each (n, 3)."""

    x: np.ndarray
    y: np.ndarray
    choice: np.ndarray


class Canvas:
    """A window of a scene in ground pixels, with a margin around it for what reaches in from outside."""

    def __init__(self, scene: Scene, x0: int, y0: int, width: int, height: int, um_per_px: float) -> None:
        self.scene, self.style, self.s = scene, scene.look(), um_per_px
        self.textures = _textures(um_per_px)
        self.margin = int(np.ceil(MARGIN_UM / um_per_px))
        self.x0, self.y0 = x0 - self.margin, y0 - self.margin
        self.width, self.height = width + 2 * self.margin, height + 2 * self.margin
        # Samples lie in the middle of aligned squares; one square more on each side for the interpolation.
        self.cx0, self.cy0 = self.x0 // COARSE - 1, self.y0 // COARSE - 1
        cx1, cy1 = -(-(self.x0 + self.width) // COARSE) + 1, -(-(self.y0 + self.height) // COARSE) + 1
        self.cx = ((np.arange(self.cx0, cx1) + 0.5) * (COARSE * um_per_px))[None, :]
        self.cy = ((np.arange(self.cy0, cy1) + 0.5) * (COARSE * um_per_px))[:, None]
        self.mix = scene.regions.mix(self.cx, self.cy)

    def slow(self, wavelength: float, channel: int, octaves: int = 1) -> np.ndarray:
        """Slow noise at the coarse samples; wavelength in micrometres."""
        return value_noise(self.cx, self.cy, wavelength, self.scene.seed * 31 + channel, octaves)

    def full(self, coarse: np.ndarray) -> np.ndarray:
        """A coarse field interpolated to every ground pixel of the canvas, float32."""
        coarse = np.ascontiguousarray(coarse, np.float32)
        big = cv2.resize(coarse, None, fx=COARSE, fy=COARSE, interpolation=cv2.INTER_LINEAR)
        left, top = self.x0 - self.cx0 * COARSE, self.y0 - self.cy0 * COARSE
        return big[top : top + self.height, left : left + self.width]

    def texture(self, name: str) -> np.ndarray:
        return window(getattr(self.textures, name), self.x0, self.y0, self.width, self.height)

    def sites(self, pitch: float, jitter: float, channel: int, reach_um: float = 0.0) -> Sites:
        """The places of a jittered hexagonal lattice that lie on the canvas or within reach_um of it."""
        row, reach = pitch * 0.866, reach_um / self.s
        left, top = (self.x0 - reach) * self.s, (self.y0 - reach) * self.s
        right, bottom = (self.x0 + self.width + reach) * self.s, (self.y0 + self.height + reach) * self.s
        i = np.arange(int(np.floor(left / pitch)) - 2, int(np.ceil(right / pitch)) + 2)[None, :]
        j = np.arange(int(np.floor(top / row)) - 2, int(np.ceil(bottom / row)) + 2)[:, None]
        i, j = np.broadcast_arrays(i, j)
        seed = self.scene.seed * 1009 + channel * 16
        x = (i + 0.5 * (j & 1) + (hash_unit(seed, i, j, 1) - 0.5) * (2 * jitter)) * pitch
        y = j * row + (hash_unit(seed, i, j, 2) - 0.5) * (2 * jitter * pitch)
        x, y = (x / self.s - self.x0).ravel(), (y / self.s - self.y0).ravel()
        keep = (x >= -reach) & (y >= -reach) & (x < self.width + reach) & (y < self.height + reach)
        choice = np.stack([hash_unit(seed, i, j, c).ravel()[keep] for c in (3, 4, 5)], axis=-1)
        return Sites(x[keep], y[keep], choice)


@dataclass(frozen=True, slots=True)
class Ground:
    """The painted ground and what the nuclei must know of it; float32 (h, w) of the canvas unless said otherwise."""

    haematoxylin: np.ndarray
    eosin: np.ndarray
    tissue: np.ndarray
    tumour: np.ndarray
    lymphoid: np.ndarray
    fat: np.ndarray
    nests: np.ndarray
    membrane_um: np.ndarray | None
    fibre_angle: np.ndarray
    """Coarse, radians."""
    tumour_cells: Sites | None


def paint(c: Canvas) -> Ground:
    """Paint the ground of a canvas."""
    style = c.style
    tumour, tissue = c.full(c.mix.tumour), c.full(c.mix.tissue)
    foam, mottle = c.texture("foam"), c.texture("mottle")
    eosin, haematoxylin, lymphoid, angle = _normal(c, foam, mottle)

    fat, membrane = np.zeros_like(eosin), None
    if c.mix.fat.max() > 0.3:
        fat = smoothstep(0.45, 0.55, c.full(c.mix.fat) + 0.03 * mottle)
        membrane = c.texture("fat")
        wall = np.exp(-((membrane / (0.75 + 0.25 * np.tanh(foam))) ** 2))
        eosin += fat * (0.5 * wall + 0.012 - eosin)
        haematoxylin += fat * (0.06 * wall - haematoxylin)

    nests, cells = np.ones_like(eosin), None
    if c.mix.tumour.max() > 0.3:
        cells = c.sites(style.tumour_pitch, 0.33, 1)
        nests = smoothstep(style.nests - 0.05, style.nests + 0.05, c.full(c.slow(95, 5, 2)) + 0.035 * mottle)
        solid = smoothstep(0.44, 0.56, tumour + 0.02 * mottle) * nests
        cell_h, cell_e = _cytoplasm(c, cells, foam, mottle)
        eosin += solid * (cell_e - eosin)
        haematoxylin += solid * (cell_h - haematoxylin)

    # Slow unevenness of the section's thickness; ragged edges of the tissue.
    there = smoothstep(0.42, 0.58, tissue + 0.035 * mottle + 0.02 * foam) * c.full(1 + 0.16 * c.slow(600, 8, 3))
    return Ground(
        np.maximum(haematoxylin, 0) * there,
        np.maximum(eosin, 0) * there,
        tissue, tumour, lymphoid, fat, nests, membrane, angle, cells,
    )  # fmt: skip


def _normal(c: Canvas, foam: np.ndarray, mottle: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Stroma and lymphoid ground: eosin, haematoxylin, lymphoid weight, and the coarse angle of the fibres."""
    style, s = c.style, c.s
    # Fibres follow a slowly bending field: v is constant along a fibre.
    cos, sin = np.cos(style.fibre_angle), np.sin(style.fibre_angle)
    bend_u = 70 * c.slow(420, 1) + 9 * c.slow(70, 2)
    bend_v = 70 * c.slow(380, 3) + 9 * c.slow(60, 4) + 5.5 * c.slow(34, 9)
    u, v = c.cx * cos + c.cy * sin + bend_u, c.cy * cos - c.cx * sin + bend_v
    slope_y, slope_x = np.gradient(v, COARSE * s)
    height, width = (n - 1 for n in c.textures.fibre.shape)
    # Taking off whole periods first keeps float32 exact far from the origin.
    period_u, period_v = np.floor(u.min() / s / width) * width, np.floor(v.min() / s / height) * height
    map_u = c.full(u / s - period_u) % np.float32(width)
    map_v = c.full(v / s - period_v) % np.float32(height)
    map_u, map_v = cv2.convertMaps(map_u, map_v, cv2.CV_16SC2)
    fibre = cv2.remap(c.textures.fibre, map_u, map_v, cv2.INTER_LINEAR)
    crack = cv2.remap(c.textures.crack, map_u, map_v, cv2.INTER_LINEAR)
    crack -= c.full(0.9 * c.slow(320, 10))  # dense here, loose there
    intact = 1 - smoothstep(style.cracks, style.cracks + 0.45, crack)
    eosin = (0.42 + c.full(style.fibre * (0.34 + 0.2 * c.slow(240, 11))) * fibre) * intact
    haematoxylin = 0.10 + 0.03 * fibre
    lymphoid = np.zeros_like(eosin)
    if c.mix.lymphoid.max() > 0.2:
        lymphoid = smoothstep(0.35, 0.65, c.full(c.mix.lymphoid) + 0.06 * mottle)
        pulp = smoothstep(-0.6, 1.4, foam + 0.45 * mottle)
        eosin += lymphoid * ((style.pallor + 0.26 * pulp + 0.05 * fibre) - eosin)
        haematoxylin += lymphoid * ((0.08 + 0.22 * pulp) - haematoxylin)
    return eosin, haematoxylin, lymphoid, np.arctan2(-slope_x, slope_y)


def _cytoplasm(c: Canvas, cells: Sites, foam: np.ndarray, mottle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tumour cells without nuclei: haematoxylin, eosin. Each has its tone; borders are lines, some of them clefts."""
    plane = np.zeros((c.height, c.width), np.uint16)
    for x, y, choice in zip(cells.x, cells.y, cells.choice, strict=True):
        stamp(plane, flipped(c.textures.cells, choice), x, y)
    # The maximum of cones has a valley where two cells meet; the Laplacian finds it.
    border = np.clip(cv2.Laplacian((plane >> 4).astype(np.float32), cv2.CV_32F), 0, 240)
    border = cv2.GaussianBlur(border, (0, 0), max(0.4 / c.s, 0.6))
    border = np.minimum(border * np.float32(0.07 / c.s * 0.25), 1)
    tone = cv2.blur((plane & 15).astype(np.float32), (3, 3)) * np.float32(1 / 7.5) - 1
    cleft = smoothstep(0.5, 1.6, mottle + 0.4 * foam) * border
    cyto_h, cyto_e = c.style.cytoplasm
    eosin = cyto_e + 0.13 * tone + 0.07 * foam + 0.16 * border - 0.75 * cleft
    haematoxylin = cyto_h + 0.05 * tone + 0.03 * foam + 0.05 * border - 0.2 * cleft
    return haematoxylin, eosin
