"""The pictures of docs/review.md, taken of the page as it is. `SLIDESTREAM_PICTURES=docs` puts them there."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from slides.synthetic import SyntheticSlide, make_slide
from tests.end_to_end import runs
from tests.review.browser.conftest import Server
from tests.review.browser.desk import Desk
from tests.slides.damage import corrupt_tiles, tiles_under

pytestmark = pytest.mark.long

LUNG, SKIN, FROZEN, BROKEN = "26-10871 肺 A", "26-10866 skin", "frozen/26-10880 S1", "26-10859"
BYTES_MOST = 400_000
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    """Results of a day: two whole slides, an urgent one with holes, and a file that is no slide."""
    folder, out = tmp_path / "slides", tmp_path / "out"
    (folder / "frozen").mkdir(parents=True)
    make_slide(folder / f"{LUNG}.tif", SyntheticSlide(12000, 9000, tissue=0.5, tumour=0.3, seed=1))
    make_slide(folder / f"{SKIN}.tif", SyntheticSlide(4000, 3000, tissue=0.5, tumour=0.1, seed=5))
    frozen = folder / f"{FROZEN}.tif"
    make_slide(frozen, SyntheticSlide(8000, 6000, tissue=0.5, tumour=0.3, seed=2))
    for hole in ((3600, 2200, 1000, 800), (5600, 1000, 400, 300)):
        corrupt_tiles(frozen, tiles_under(frozen, 0, *hole))
    (folder / f"{BROKEN}.svs").write_text("This is no slide.\n")
    for truth in [*folder.rglob("*.truth.*")]:
        truth.unlink()
    done = runs.command(
        "run", folder, "--out", out, "--no-progress", "--set", 'batcher.urgent=["frozen/*"]', limit_s=240
    )
    assert done.returncode == 1, done.stderr  # not all are complete
    return out


def take(desk: Desk, name: str, folder: Path) -> None:
    """A picture of the window in 256 colours, rare ones (of the scale) among them."""
    desk.still()
    taken = Image.open(io.BytesIO(desk.page.screenshot())).convert("RGB")
    taken.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        folder / f"review-{name}.png", optimize=True
    )


def judge(desk: Desk, keys: str) -> None:
    for key in keys:
        desk.page.keyboard.press(key)
        desk.settle_requests()


def test_the_pictures_of_the_documentation(
    ward: Path, serve: Callable[[Path], Server], sit: Callable[..., Desk], tmp_path: Path
):
    """Worklist, a slide with a region chosen, a signature, and Chinese in the dark: taken, not blank, and small enough."""
    folder = ROOT / os.environ["SLIDESTREAM_PICTURES"] if "SLIDESTREAM_PICTURES" in os.environ else tmp_path
    server = serve(ward)
    rosa = sit(server.address, reduced_motion="reduce")
    rosa.sign_in("rosa")
    rosa.slide(LUNG)
    rosa.page.locator(".thumb").nth(2).wait_for()
    judge(rosa, "nanrnu" + "p")
    rosa.page.get_by_role("button", name="5 times").click()
    rosa.still()
    box = rosa.page.locator(".slide-place").bounding_box()
    rosa.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    rosa.page.locator(".readout .quiet", has_text="onnx").wait_for()
    take(rosa, "slide", folder)

    rosa.slide(FROZEN)
    rosa.page.locator(".thumb").first.wait_for()
    judge(rosa, "nu")
    rosa.page.keyboard.press("s")
    rosa.page.locator("dialog[open]").wait_for()
    take(rosa, "sign", folder)
    rosa.page.keyboard.press("Escape")

    ruth = sit(server.address, reduced_motion="reduce", color_scheme="dark", locale="zh-CN")
    ruth.sign_in("ruth")
    ruth.slide(FROZEN)
    ruth.page.locator(".thumb").first.wait_for()
    judge(ruth, "n0")
    take(ruth, "zh", folder)

    vera = sit(server.address, reduced_motion="reduce")
    vera.sign_in("vera")
    vera.page.get_by_text("Open now by rosa, ruth").wait_for()
    take(vera, "list", folder)

    for name in ("slide", "sign", "zh", "list"):
        path = folder / f"review-{name}.png"
        assert path.stat().st_size < BYTES_MOST, name
        assert Image.open(path).size == (1280, 720) and len(Image.open(path).getcolors()) > 50
