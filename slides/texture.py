"""Tissue that looks like haematoxylin and eosin, rendered at any place of an endless scene.

A scene has two maps at every point: how much haematoxylin and how much eosin there is. They are built from the bottom up
(fibres, cytoplasm, cell borders, fat, glands and vessels, then nuclei, each at a hashed place of its own), and turned into colours by
the Beer-Lambert law (stain.py). Tumour differs from normal tissue by what a pathologist looks for: large, irregular, crowded nuclei
of uneven size with nucleoli, little stroma between them; colour alone does not tell, because the stain varies from scene to scene.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from threading import Lock
from typing import Protocol

import cv2
import numpy as np

from slides import nuclei
from slides.noise import hash_unit, seamless, smoothstep, value_noise, window
from slides.stain import FULL_SCALE, Stain

CHUNK = 1024
"""A scene is rendered in aligned squares of so many pixels; windows are cut from them, so every window shows the same pixels."""

COARSE = 16
"""Regions and slow noise are evaluated once in a square of so many pixels and interpolated."""

_MARGIN_UM = 22.0
_TO_BYTE = 255 / FULL_SCALE


@dataclass(frozen=True, slots=True)
class Mix:
    """What tissue there is at some points, float32 (h, w) in 0..1; tissue and tumour have their border at 0.5."""

    tissue: np.ndarray
    tumour: np.ndarray
    lymphoid: np.ndarray
    fat: np.ndarray


class Regions(Protocol):
    """Where the tissues of a scene are."""

    def mix(self, x: np.ndarray, y: np.ndarray) -> Mix:
        """The tissue at the points (x, y), broadcast together, in micrometres."""
        ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """One tissue everywhere; lymphoid and fat are weights, what remains is stroma."""

    tissue: float = 1.0
    tumour: float = 0.0
    lymphoid: float = 0.0
    fat: float = 0.0

    def mix(self, x: np.ndarray, y: np.ndarray) -> Mix:
        zero = np.zeros(np.broadcast(x, y).shape, np.float32)
        return Mix(*(zero + np.float32(v) for v in (self.tissue, self.tumour, self.lymphoid, self.fat)))


@dataclass(frozen=True, slots=True)
class Style:
    """What differs from one piece of tissue to the next besides the stain; lengths in micrometres."""

    fibre_angle: float
    fibre: float
    cracks: float
    lymphoid_pitch: float
    histiocytes: float
    stroma_cells: float
    glands: float
    vessels: float
    tumour_pitch: float
    dark_tumour: float
    nests: float
    lymphocytes_in_tumour: float
    cytoplasm: tuple[float, float]
    pallor: float
    blur_um: float

    @staticmethod
    def random(rng: np.random.Generator) -> Style:
        u = rng.uniform
        return Style(
            fibre_angle=u(0, np.pi), fibre=u(0.45, 0.95), cracks=u(0.9, 1.8), lymphoid_pitch=u(6.2, 8.0), histiocytes=u(0.04, 0.22),
            stroma_cells=u(0.3, 0.9), glands=u(0.0, 0.55), vessels=u(0.15, 0.5), tumour_pitch=u(11.5, 15.5), dark_tumour=u(0.0, 1.0) ** 1.5,
            nests=u(-0.75, -0.3), lymphocytes_in_tumour=u(0.0, 0.35), cytoplasm=(u(0.12, 0.32), u(0.45, 0.8)), pallor=u(0.06, 0.22),
            blur_um=u(0.10, 0.24),
        )  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """An endless piece of stained tissue, the same for the same seed, stain, style and regions."""

    seed: int
    regions: Regions
    stain: Stain = field(default_factory=Stain.reference)
    style: Style | None = None

    def look(self) -> Style:
        return self.style or Style.random(np.random.default_rng([self.seed, 77]))


@dataclass(frozen=True, slots=True)
class _Bank:
    """What is drawn once for a resolution: sprites and seamless textures."""

    lymphocytes: list[np.ndarray]
    histiocytes: list[np.ndarray]
    fibroblasts: list[list[np.ndarray]]
    vesicular: list[np.ndarray]
    dark: list[np.ndarray]
    mitoses: list[np.ndarray]
    cells: list[np.ndarray]
    glands: list[nuclei.Structure]
    vessels: list[nuclei.Structure]
    grain: np.ndarray
    foam: np.ndarray
    mottle: np.ndarray
    fibre: np.ndarray
    crack: np.ndarray
    fat: np.ndarray
    sensor: np.ndarray


_ANGLES = 24
_bank_lock = Lock()


def _cell(rng: np.random.Generator, um_per_px: float) -> np.ndarray:
    """A cell's reach: uint16 cone (4 low bits: the cell's tone); the maximum of cones splits the plane into cells."""
    reach = 17.0
    size = int(2 * reach / um_per_px) | 1
    axis = (np.arange(size, dtype=np.float32) - size // 2) * um_per_px
    theta, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.35)
    u = (axis[None, :] * np.cos(theta) + axis[:, None] * np.sin(theta)) / stretch
    v = (axis[:, None] * np.cos(theta) - axis[None, :] * np.sin(theta)) * stretch
    level = np.clip(1 - np.hypot(u, v) / reach, 0, 1) * 4095
    tone = int(rng.integers(0, 16))
    return (level.astype(np.uint16) << 4) | np.where(level > 0, tone, 0).astype(np.uint16)


def _fat_texture(size: int, um_per_px: float) -> np.ndarray:
    """Micrometres to the nearest fat cell's membrane, float32, seamless."""
    rng = np.random.default_rng(5)
    pitch = 46.0 / um_per_px
    n = max(2, round(size / pitch))
    grid = np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) + rng.uniform(0.1, 0.9, (n * n, 2))
    sites = np.ones((3 * size, 3 * size), np.uint8)
    for dx in range(3):
        for dy in range(3):
            xy = (grid * (size / n)).astype(int) + [dx * size, dy * size]
            sites[xy[:, 1], xy[:, 0]] = 0
    _, label = cv2.distanceTransformWithLabels(sites, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    edge = np.zeros(label.shape, bool)
    edge[:, 1:] |= label[:, 1:] != label[:, :-1]
    edge[1:, :] |= label[1:, :] != label[:-1, :]
    # The same site has another label in each of the nine copies, but the border between two copies of a site cannot be.
    distance = cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, 5)
    return distance[size : 2 * size, size : 2 * size] * um_per_px


@lru_cache(maxsize=6)
def _make_bank(um_per_px: float) -> _Bank:
    rng = np.random.default_rng(20240)
    s = um_per_px

    def many(style: nuclei.NucleusStyle, n: int) -> list[np.ndarray]:
        return [nuclei.nucleus(style, rng, s) for _ in range(n)]

    size = 1024
    fibre = seamless((size, 2 * size), 16 / s, 0.9 / s, 1) * 0.75 + seamless((size, 2 * size), 7 / s, 0.35 / s, 2) * 0.5
    return _Bank(
        lymphocytes=many(nuclei.LYMPHOCYTE, 160), histiocytes=many(nuclei.HISTIOCYTE, 80),
        fibroblasts=[[nuclei.nucleus(nuclei.FIBROBLAST, rng, s, angle=np.pi * k / _ANGLES) for _ in range(6)] for k in range(_ANGLES)],
        vesicular=many(nuclei.VESICULAR, 160), dark=many(nuclei.HYPERCHROMATIC, 160),
        mitoses=[nuclei.mitosis(rng, s) for _ in range(12)], cells=[_cell(rng, s) for _ in range(64)],
        glands=[nuclei.gland(rng, s) for _ in range(6)], vessels=[nuclei.vessel(rng, s) for _ in range(10)],
        grain=seamless((size, size), 0.45 / s, 0.45 / s, 3), foam=seamless((896, 896), 1.7 / s, 1.7 / s, 4),
        mottle=seamless((1152, 1152), 4.5 / s, 4.5 / s, 6), fibre=fibre.astype(np.float32),
        crack=seamless((size, 2 * size), 12 / s, 1.3 / s, 7), fat=_fat_texture(size, s),
        sensor=np.clip(np.random.default_rng(8).normal(0, 1.6, (509, 509, 3)), -6, 6).astype(np.float32),
    )  # fmt: skip


def _bank(um_per_px: float) -> _Bank:
    with _bank_lock:  # two threads must not draw the same bank twice
        return _make_bank(round(um_per_px, 4))


class _Canvas:
    """One window while it is painted; positions in pixels of the canvas, which has a margin for what reaches in from outside."""

    def __init__(self, scene: Scene, x0: int, y0: int, width: int, height: int, um_per_px: float) -> None:
        self.scene, self.style, self.bank, self.s = scene, scene.look(), _bank(um_per_px), um_per_px
        self.margin = int(np.ceil(_MARGIN_UM / um_per_px))
        self.inner = (slice(self.margin, self.margin + height), slice(self.margin, self.margin + width))
        self.x0, self.y0 = x0 - self.margin, y0 - self.margin
        self.width, self.height = width + 2 * self.margin, height + 2 * self.margin
        # Coarse samples lie in the middle of aligned squares of COARSE pixels; one square more on each side for the interpolation.
        self.cx0, self.cy0 = self.x0 // COARSE - 1, self.y0 // COARSE - 1
        cx1, cy1 = -(-(self.x0 + self.width) // COARSE) + 1, -(-(self.y0 + self.height) // COARSE) + 1
        self.cx = ((np.arange(self.cx0, cx1) + 0.5) * (COARSE * um_per_px))[None, :]
        self.cy = ((np.arange(self.cy0, cy1) + 0.5) * (COARSE * um_per_px))[:, None]
        self.mix = scene.regions.mix(self.cx, self.cy)

    def slow(self, wavelength: float, channel: int, octaves: int = 1) -> np.ndarray:
        """Slow noise at the coarse samples."""
        return value_noise(self.cx, self.cy, wavelength, self.scene.seed * 31 + channel, octaves)

    def full(self, coarse: np.ndarray) -> np.ndarray:
        """A coarse field interpolated to every pixel of the canvas, float32."""
        big = cv2.resize(np.ascontiguousarray(coarse, np.float32), None, fx=COARSE, fy=COARSE, interpolation=cv2.INTER_LINEAR)
        left, top = self.x0 - self.cx0 * COARSE, self.y0 - self.cy0 * COARSE
        return big[top : top + self.height, left : left + self.width]

    def texture(self, name: str) -> np.ndarray:
        return window(getattr(self.bank, name), self.x0, self.y0, self.width, self.height)

    def sites(self, pitch: float, jitter: float, channel: int, reach_um: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places on a jittered hexagonal lattice that lie on the canvas, or within reach_um of it: x, y in canvas pixels, and three hashes (n, 3) for choices."""
        row, reach = pitch * 0.866, reach_um / self.s
        left, top = (self.x0 - reach) * self.s, (self.y0 - reach) * self.s
        i = np.arange(int(np.floor(left / pitch)) - 2, int(np.ceil((left + (self.width + 2 * reach) * self.s) / pitch)) + 2)[None, :]
        j = np.arange(int(np.floor(top / row)) - 2, int(np.ceil((top + (self.height + 2 * reach) * self.s) / row)) + 2)[:, None]
        seed = self.scene.seed * 1009 + channel * 16
        i, j = np.broadcast_arrays(i, j)
        x = (i + 0.5 * (j & 1) + (hash_unit(seed, i, j, 1) - 0.5) * (2 * jitter)) * pitch
        y = j * row + (hash_unit(seed, i, j, 2) - 0.5) * (2 * jitter * pitch)
        x, y = (x / self.s - self.x0).ravel(), (y / self.s - self.y0).ravel()
        keep = (x >= -reach) & (y >= -reach) & (x < self.width + reach) & (y < self.height + reach)
        choices = np.stack([hash_unit(seed, i, j, c).ravel()[keep] for c in (3, 4, 5)], axis=-1)
        return x[keep], y[keep], choices


def _at(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return image[y.astype(np.intp), x.astype(np.intp)]


def _flip(sprite: np.ndarray, choice: float) -> np.ndarray:
    k = int(choice * 8)
    sprite = sprite.T if k & 4 else sprite
    return sprite[:: -1 if k & 1 else 1, :: -1 if k & 2 else 1]


def _pick(sprites: list[np.ndarray], choice: np.ndarray) -> np.ndarray:
    return _flip(sprites[int(choice[1] * len(sprites))], choice[2])


def _paint(c: _Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin of the canvas, uint8 (h, w) each; inner part only."""
    style, bank, s = c.style, c.bank, c.s
    tumour, tissue = c.full(c.mix.tumour), c.full(c.mix.tissue)
    grain, foam, mottle = c.texture("grain"), c.texture("foam"), c.texture("mottle")
    tumour_any, normal_any = bool((c.mix.tumour > 0.3).any()), bool((c.mix.tumour < 0.7).any())

    # Fibres follow a slowly bending field; v is constant along a fibre.
    cos, sin = np.cos(style.fibre_angle), np.sin(style.fibre_angle)
    bend_u = 70 * c.slow(420, 1) + 9 * c.slow(70, 2)
    bend_v = 70 * c.slow(380, 3) + 9 * c.slow(60, 4)
    u, v = c.cx * cos + c.cy * sin + bend_u, c.cy * cos - c.cx * sin + bend_v
    slope_y, slope_x = np.gradient(v, COARSE * s)
    angle = np.arctan2(-slope_x, slope_y)
    map_u, map_v = c.full(u.astype(np.float32) / s), c.full(v.astype(np.float32) / s)

    def along(texture: np.ndarray) -> np.ndarray:
        mapped = np.mod(map_u, texture.shape[1]), np.mod(map_v, texture.shape[0])
        wrapped = cv2.copyMakeBorder(texture, 0, 1, 0, 1, cv2.BORDER_WRAP)
        return cv2.remap(wrapped, mapped[0], mapped[1], cv2.INTER_LINEAR)

    fibre = along(bank.fibre)
    gap = smoothstep(style.cracks, style.cracks + 0.45, along(bank.crack))
    lymphoid = smoothstep(0.35, 0.65, c.full(c.mix.lymphoid) + 0.06 * mottle)
    eosin = (0.42 + style.fibre * 0.34 * fibre + 0.05 * grain) * (1 - gap)
    haematoxylin = 0.10 + 0.03 * fibre
    pulp = smoothstep(-1.0, 1.3, foam + 0.45 * mottle)
    eosin += lymphoid * ((style.pallor + 0.26 * pulp + 0.05 * grain + 0.05 * fibre) - eosin)
    haematoxylin += lymphoid * ((0.08 + 0.22 * pulp + 0.04 * grain) - haematoxylin)

    fat_weight = c.mix.fat.max()
    fat = np.zeros_like(eosin)
    if fat_weight > 0.3:
        fat = smoothstep(0.45, 0.55, c.full(c.mix.fat) + 0.03 * mottle)
        wall = np.exp(-((c.texture("fat") / 0.75) ** 2))
        eosin += fat * (0.5 * wall + 0.012 - eosin)
        haematoxylin += fat * (0.06 * wall - haematoxylin)

    nests = np.ones_like(eosin)
    if tumour_any:
        tumour_sites = c.sites(style.tumour_pitch, 0.42, 1)
        in_tumour = smoothstep(0.44, 0.56, tumour + 0.02 * mottle)
        nests = smoothstep(style.nests - 0.05, style.nests + 0.05, c.full(c.slow(95, 5, 2)) + 0.035 * mottle)
        solid = in_tumour * nests
        plane = np.zeros((c.height, c.width), np.uint16)
        for x, y, choice in zip(*tumour_sites, strict=True):
            nuclei.stamp(plane, _pick(bank.cells, choice), x, y)
        reach = (plane >> 4).astype(np.float32)
        border = cv2.GaussianBlur(np.clip(cv2.Laplacian(reach, cv2.CV_32F), 0, 120), (0, 0), max(0.45 / s, 0.6))
        border = np.clip(border * (np.float32(s * 0.14)), 0, 1)
        tone = cv2.blur((plane & 15).astype(np.float32), (5, 5)) * np.float32(1 / 7.5) - 1
        cyto_h, cyto_e = style.cytoplasm
        cleft = smoothstep(0.5, 1.6, mottle + 0.4 * foam) * border
        cell_e = cyto_e + 0.13 * tone + 0.07 * foam + 0.08 * grain + 0.16 * border - 0.75 * cleft
        cell_h = cyto_h + 0.05 * tone + 0.03 * foam + 0.05 * grain + 0.05 * border - 0.2 * cleft
        eosin += solid * (cell_e - eosin)
        haematoxylin += solid * (cell_h - haematoxylin)

    # Glands and vessels cover what lies below; no other nucleus may sit in them.
    cover = np.zeros_like(eosin)
    if normal_any:
        free = (1 - smoothstep(0.4, 0.5, tumour)) * (1 - fat)
        for name, pitch, share, channel in (("vessels", 150.0, style.vessels, 3), ("glands", 118.0, style.glands, 2)):
            _place(c, name, pitch, share, channel, free, (haematoxylin, eosin, cover))

    canvas = np.zeros((c.height, c.width), np.uint8)
    free = cover < 0.3
    is_tumour = tumour > 0.5
    if tumour_any:
        x, y, choice = tumour_sites
        dark = smoothstep(-0.25, 0.25, _at(c.full(c.slow(260, 6)), x, y) + style.dark_tumour - 0.5)
        ok = (_at(tumour, x, y) > 0.5) & (_at(nests, x, y) > 0.5) & (choice[:, 0] > 0.04) & _at(free, x, y)
        for k in np.flatnonzero(ok):
            pick = choice[k]
            sprites = bank.mitoses if pick[0] > 0.992 else bank.dark if (pick[0] * 7.3) % 1 < dark[k] else bank.vesicular
            nuclei.stamp(canvas, _pick(sprites, pick), x[k], y[k])
    x, y, choice = c.sites(style.lymphoid_pitch, 0.30, 4)
    lymph_here, tumour_here = _at(lymphoid, x, y), _at(is_tumour, x, y)
    crowd = np.where(tumour_here, np.where(_at(nests, x, y) > 0.5, 0.02, 0.5) * style.lymphocytes_in_tumour, 0.06 + 0.80 * lymph_here)
    crowd = crowd * (1 + 0.5 * _at(c.full(c.slow(55, 7)), x, y)) * (_at(fat, x, y) < 0.5) * _at(free, x, y)
    for k in np.flatnonzero(choice[:, 0] < crowd):
        pick = choice[k]
        pale = (pick[0] * 91.7) % 1 < style.histiocytes and not tumour_here[k]
        nuclei.stamp(canvas, _pick(bank.histiocytes if pale else bank.lymphocytes, pick), x[k], y[k])
    x, y, choice = c.sites(15.0, 0.42, 5)
    spindle = (1 - _at(lymphoid, x, y)) * np.where(_at(is_tumour, x, y), 1 - _at(nests, x, y), 1.0) * style.stroma_cells
    spindle = np.where(_at(fat, x, y) > 0.5, 0.35 * (_at(c.texture("fat"), x, y) < 2.5), spindle) * _at(free, x, y)
    direction = _at(c.full(np.cos(2 * angle)), x, y), _at(c.full(np.sin(2 * angle)), x, y)
    step = np.round((np.arctan2(direction[1], direction[0]) / 2 % np.pi) * (_ANGLES / np.pi)).astype(int) % _ANGLES
    for k in np.flatnonzero(choice[:, 0] < spindle):
        sprites = bank.fibroblasts[(step[k] + int(choice[k, 2] * 3) - 1) % _ANGLES]
        nuclei.stamp(canvas, sprites[int(choice[k, 1] * len(sprites))], x[k], y[k])

    # Slow unevenness of section and stain, ragged tissue edges.
    thick = c.full(1 + 0.16 * c.slow(600, 8, 3))
    inside = smoothstep(0.42, 0.58, tissue + 0.035 * mottle + 0.02 * foam)
    nuclear = canvas.astype(np.float32) * np.float32(1 / _TO_BYTE)
    haematoxylin = (np.maximum(haematoxylin, 0) * (1 - np.minimum(nuclear, 1) * 0.6) + nuclear) * thick * inside
    eosin = np.maximum(eosin, 0) * (1 - np.minimum(nuclear * 0.35, 0.6)) * thick * inside
    blur = max(style.blur_um / s, 0.3)
    out = []
    for image in (haematoxylin, eosin):
        image = cv2.GaussianBlur(image[c.inner], (0, 0), blur)
        out.append(np.clip(image * np.float32(_TO_BYTE) + np.float32(0.5), 0, 255).astype(np.uint8))
    return out[0], out[1]


def _place(c: _Canvas, name: str, pitch: float, share: float, channel: int, free: np.ndarray, onto: tuple[np.ndarray, ...]) -> None:
    """Put glands or vessels into normal tissue, in place: onto = haematoxylin, eosin, cover (all float32, of the canvas)."""
    structures: list[nuclei.Structure] = getattr(c.bank, name)
    x, y, choice = c.sites(pitch, 0.10, channel, reach_um=75)
    there = c.scene.regions.mix((x + c.x0) * c.s, (y + c.y0) * c.s)
    chance = share * (there.tumour < 0.25) * (there.tissue > 0.7) * (there.fat < 0.3) * (1 - 0.85 * there.lymphoid)
    for k in np.flatnonzero(choice[:, 0] < chance):
        structure = structures[int(choice[k, 1] * len(structures))]
        parts = [_flip(p, choice[k, 2]) for p in (structure.haematoxylin, structure.eosin, structure.cover)]
        height, width = parts[2].shape
        left, top = int(round(float(x[k]))) - width // 2, int(round(float(y[k]))) - height // 2
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + width, c.width), min(top + height, c.height)
        if x0 >= x1 or y0 >= y1:
            continue
        here, cut = (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        cover = parts[2][cut] * free[here]
        for image, value in zip(onto, (parts[0][cut], parts[1][cut], 1.0), strict=True):
            image[here] += cover * (value - image[here])


def _render(scene: Scene, x0: int, y0: int, width: int, height: int, um_per_px: float) -> np.ndarray:
    """Render one window in one piece (any size; memory about 150 bytes a pixel)."""
    c = _Canvas(scene, x0, y0, width, height, um_per_px)
    rgb = scene.stain.colour(*_paint(c))
    noise = window(c.bank.sensor, x0, y0, width, height)
    return cv2.add(rgb, noise, dtype=cv2.CV_8U)


def render(scene: Scene, x0: int, y0: int, width: int, height: int, um_per_px: float) -> np.ndarray:
    """Render the window with top-left (x0, y0), in pixels of um_per_px micrometres: RGB uint8 (height, width, 3).

    The scene is endless and fixed: every window shows the same pixels at the same place. Windows aligned to CHUNK cost least.
    """
    if width < 1 or height < 1:
        raise ValueError(f"window is {width} x {height} pixels; both must be 1 or more")
    if not 0.05 <= um_per_px <= 4:
        raise ValueError(f"um_per_px is {um_per_px}; nuclei can be drawn between 0.05 and 4")
    out = np.empty((height, width, 3), np.uint8)
    for cy in range(y0 // CHUNK, (y0 + height - 1) // CHUNK + 1):
        for cx in range(x0 // CHUNK, (x0 + width - 1) // CHUNK + 1):
            chunk = _render(scene, cx * CHUNK, cy * CHUNK, CHUNK, CHUNK, um_per_px)
            left, top = max(x0, cx * CHUNK), max(y0, cy * CHUNK)
            right, bottom = min(x0 + width, (cx + 1) * CHUNK), min(y0 + height, (cy + 1) * CHUNK)
            cut = chunk[top - cy * CHUNK : bottom - cy * CHUNK, left - cx * CHUNK : right - cx * CHUNK]
            out[top - y0 : bottom - y0, left - x0 : right - x0] = cut
    return out


KINDS = ("lymphoid", "stroma", "gland", "fat", "tumour", "background")
"""What patch() can draw, besides "normal" (any of the first four, and mixtures of them)."""


def patch(kind: str, seed: int | np.random.Generator, um_per_px: float = 0.25, size_px: int = 224) -> np.ndarray:
    """One patch of a kind of tissue with a stain and a style of its own: RGB uint8 (size_px, size_px, 3).

    kind is one of KINDS, or "normal". The same seed gives the same patch. Raises ValueError for an unknown kind.
    """
    rng = np.random.default_rng(seed)
    style, stain = Style.random(rng), Stain.random(rng)
    if kind == "normal":
        kind = str(rng.choice(["lymphoid", "stroma", "gland", "fat", "mixed"], p=[0.38, 0.24, 0.18, 0.06, 0.14]))
    if kind == "mixed":
        regions = Uniform(lymphoid=float(rng.uniform(0.3, 0.7)), fat=float(rng.uniform(0, 0.5)))
    elif kind == "gland":
        style, regions = replace(style, glands=1.0), Uniform(lymphoid=float(rng.choice([0.0, 0.2])))
    elif kind in KINDS:
        weights = {"lymphoid": {"lymphoid": 1.0}, "fat": {"fat": 1.0}, "tumour": {"tumour": 1.0}, "background": {"tissue": 0.0}}
        if kind == "tumour":
            weights["tumour"]["lymphoid"] = float(rng.random() < 0.4)
        regions = Uniform(**weights.get(kind, {}))
    else:
        raise ValueError(f"unknown kind of tissue {kind!r}; known: normal, {', '.join(KINDS)}")
    scene = Scene(int(rng.integers(1 << 30)), regions, stain, style)
    x0, y0 = (int(v) for v in rng.integers(0, 1 << 16, 2))
    return _render(scene, x0, y0, size_px, size_px, um_per_px)
