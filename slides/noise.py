"""Repeatable noise: hashed lattices (infinite, addressable anywhere) and seamless textures (periodic).

Everything here is a function of its arguments alone, so that any window of a scene can be rendered by itself.
"""

from __future__ import annotations

import math

import numpy as np

_MASK = 0xFFFFFFFF


def _mix(h: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3 (32 bit): every input bit changes every output bit with probability about 1/2."""
    h = h ^ (h >> np.uint32(16))
    h = h * np.uint32(0x85EBCA6B)
    h = h ^ (h >> np.uint32(13))
    h = h * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def hash_unit(seed: int, i: np.ndarray, j: np.ndarray, channel: int = 0) -> np.ndarray:
    """Uniform float32 in [0, 1) for the lattice points (i, j); the shape is that of i and j broadcast together."""
    ui = np.asarray(i, dtype=np.int64).astype(np.uint32)
    uj = np.asarray(j, dtype=np.int64).astype(np.uint32)
    key = np.uint32((seed * 0x9E3779B1 + channel * 0x7FEB352D + 0x1B873593) & _MASK)
    h = _mix(ui ^ key)
    h = _mix(h + uj * np.uint32(0x27D4EB2F) + np.uint32(0x165667B1))
    return (h >> np.uint32(8)).astype(np.float32) * np.float32(1.0 / (1 << 24))


def value_noise(x: np.ndarray, y: np.ndarray, wavelength: float, seed: int, octaves: int = 1) -> np.ndarray:
    """Smooth noise at the points (x, y), broadcast together: float32, roughly in [-1, 1], mean 0.

    Each further octave has half the wavelength and half the weight.
    """
    total = np.zeros(np.broadcast(x, y).shape, dtype=np.float32)
    weight, norm = 1.0, 0.0
    for octave in range(octaves):
        # Each octave lies at another angle: the lattice must not show.
        angle, scale = 0.6 + 2.4 * octave + seed % 17, 2.0**octave / wavelength
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        u, v = np.asarray(x) * cos + np.asarray(y) * sin, np.asarray(y) * cos - np.asarray(x) * sin
        iu, iv = np.floor(u), np.floor(v)
        fu, fv = (u - iu).astype(np.float32), (v - iv).astype(np.float32)
        fu, fv = fu * fu * fu * (fu * (fu * 6 - 15) + 10), fv * fv * fv * (fv * (fv * 6 - 15) + 10)
        a, b = hash_unit(seed, iu, iv, octave), hash_unit(seed, iu + 1, iv, octave)
        c, d = hash_unit(seed, iu, iv + 1, octave), hash_unit(seed, iu + 1, iv + 1, octave)
        total += np.float32(weight) * ((a + (b - a) * fu) * (1 - fv) + (c + (d - c) * fu) * fv - 0.5)
        norm += weight
        weight *= 0.5
    return total * np.float32(2.0 / norm)


def seamless(shape: tuple[int, int], sigma_x: float, sigma_y: float, seed: int) -> np.ndarray:
    """A periodic field float32 (h, w), mean 0, standard deviation 1: white noise blurred by the given sigmas (px)."""
    height, width = shape
    white = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    keep = np.exp(-2 * np.pi**2 * ((fx * sigma_x) ** 2 + (fy * sigma_y) ** 2))
    field = np.fft.irfft2(np.fft.rfft2(white) * keep, s=shape).astype(np.float32)
    field -= field.mean()
    return field / max(float(field.std()), 1e-9)


def window(texture: np.ndarray, x0: int, y0: int, width: int, height: int) -> np.ndarray:
    """The window of a periodic texture (h, w, ...), wrapped around; a copy (of whole blocks: that is fastest)."""
    period_y, period_x = texture.shape[:2]
    out = np.empty((height, width, *texture.shape[2:]), texture.dtype)
    y = 0
    while y < height:
        from_y = (y0 + y) % period_y
        rows = min(period_y - from_y, height - y)
        x = 0
        while x < width:
            from_x = (x0 + x) % period_x
            columns = min(period_x - from_x, width - x)
            out[y : y + rows, x : x + columns] = texture[from_y : from_y + rows, from_x : from_x + columns]
            x += columns
        y += rows
    return out


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 below low, 1 above high, smooth between; a new float32 array (high may lie below low: then it falls)."""
    t = np.subtract(x, np.float32(low), dtype=np.float32)
    t *= np.float32(1.0 / (high - low))
    np.clip(t, 0, 1, out=t)
    slope = t * np.float32(-2)
    slope += np.float32(3)
    t *= t
    t *= slope
    return t
