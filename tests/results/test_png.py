"""PNG files that any reader opens, with the pixels that went in."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from results.png import decode_png, encode_png


def picture(height: int, width: int, colour: bool = True) -> np.ndarray:
    shape = (height, width, 3) if colour else (height, width)
    return np.random.default_rng(height * width).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (33, 64)])
def test_other_readers_see_the_same_pixels(size, colour):
    """Pillow's and OpenCV's decoders, and ours, give back what was written, down to a single pixel."""
    image = picture(*size, colour=colour)
    data = encode_png(image)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
    seen = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(seen[..., ::-1] if colour else seen, image)
    np.testing.assert_array_equal(decode_png(data), image)


def test_words_are_kept_in_any_script():
    """Titles are international text; what no encoding can hold does not stop the file."""
    with Image.open(io.BytesIO(encode_png(picture(2, 2), {"Title": "naïve 腫瘍 \udcff"}))) as image:
        assert image.text["Title"] == "naïve 腫瘍 ?"


def test_views_need_not_be_contiguous():
    """A part of a larger picture is written as it looks."""
    whole = picture(20, 30)
    np.testing.assert_array_equal(decode_png(encode_png(whole[3:9, 4:20])), whole[3:9, 4:20])


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2), np.float32), np.zeros((0, 2), np.uint8)]
)
def test_other_kinds_of_pictures_are_refused(bad):
    """Floats, alpha and nothing at all are no pictures here."""
    with pytest.raises(ValueError, match="a picture must be uint8"):
        encode_png(bad)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_damage_is_found(part):
    """A file that was cut off, or has a flipped byte, is no picture."""
    data = encode_png(picture(16, 16))
    with pytest.raises(ValueError, match="."):
        decode_png(data[: int(part * len(data))])
    flipped = bytearray(data)
    flipped[int(part * len(data))] ^= 0x40
    with pytest.raises(ValueError, match="."):
        decode_png(bytes(flipped))


def test_png_files_of_others_are_refused():
    """What another program wrote, with other filters, is not guessed at."""
    buffer = io.BytesIO()
    Image.fromarray(picture(16, 16)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="."):
        decode_png(buffer.getvalue())


def test_large_pictures_are_packed_in_strips():
    """Several streams side by side make one file that any reader opens."""
    image = picture(1500, 2000)
    image[500:] //= 64
    data = encode_png(image)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], image)
    np.testing.assert_array_equal(decode_png(data), image)
