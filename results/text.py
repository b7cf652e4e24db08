"""Text on pictures, in whatever script a slide is named."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from PIL import ImageFont

# Pillow's own font is on every machine but knows little more than ASCII; these are tried for what it lacks.
FALLBACKS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
)

# A private-use character that no font draws: what it gives is the font's picture of a missing character.
_UNKNOWN = "\U0010fffd"


def fitting(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """``text`` as it can be drawn, and the font for it at ``size`` px.

    The font that has the most of its characters, the built-in one first among equals; what that one lacks loses its
    accent or becomes ``?``, so that no name fails and none becomes empty boxes. Control characters (a newline in a
    file name) become ``?`` always.
    """
    clean = "".join("?" if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)
    best, most = "", -1
    for name in ("", *FALLBACKS):
        known = sum(_has(name, c) for c in clean)
        if known > most:
            best, most = name, known
        if most == len(clean):
            break
    font = _font(best, size) or builtin(size)
    return "".join(c if _has(best, c) else _nearest(c) for c in clean), font


def builtin(size: int) -> ImageFont.FreeTypeFont:
    """The font that is the same on every machine."""
    font = _font("", size)
    if font is None:
        raise RuntimeError("Pillow has no FreeType; install a Pillow wheel")
    return font


def shorten(text: str, size: int, width: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """As ``fitting``, with the middle left out where it would be wider than ``width`` px."""
    drawn, font = fitting(text, size)
    if font.getlength(drawn) <= width:
        return drawn, font
    for kept in range(len(drawn) - 1, 1, -1):
        short = drawn[: kept - kept // 2] + "..." + drawn[len(drawn) - kept // 2 :]
        if font.getlength(short) <= width:
            return short, font
    return drawn[:1], font


@lru_cache(maxsize=64)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except (OSError, ImportError):
        return None
    return font if isinstance(font, ImageFont.FreeTypeFont) else None


@lru_cache(maxsize=4096)
def _has(name: str, character: str) -> bool:
    font = _font(name, 20)
    if font is None:
        return False
    return character == " " or _shape(font, character) != _shape(font, _UNKNOWN)


def _shape(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _nearest(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or "?"
