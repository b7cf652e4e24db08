"""pipeline.sample and pipeline.labelled: patches to calibrate and to verify with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.model import load_model
from pipeline.config import ConfigError, load_config
from pipeline.labelled import read_labelled
from pipeline.sample import sample
from tests.engines.tiny import tiny_model


@pytest.fixture
def model(tmp_path: Path):
    return load_model(tiny_model(tmp_path / "model", patch_px=64))


@pytest.mark.data
def test_tissue_of_a_slide_is_sampled(model, data_dir: Path) -> None:
    """As many patches as wanted, of tissue rather than of glass, the same for the same seed."""
    slide = data_dir / "slides" / "CMU-1-Small-Region.svs"
    first = sample([slide], model, load_config(), 40, 1)
    assert first.pixels.shape == (40, 64, 64, 3) and first.names == ("CMU-1-Small-Region",)
    assert np.median(first.pixels.mean(axis=(1, 2, 3))) < 225
    assert first.sha256 == sample([slide], model, load_config(), 40, 1).sha256
    assert first.sha256 != sample([slide], model, load_config(), 40, 2).sha256


@pytest.mark.data
def test_candidates_are_chosen_by_score(model, data_dir: Path) -> None:
    """With a score that is high for the darkest tenth, the chosen ones hold more of them than chance would."""
    slide = data_dir / "slides" / "CMU-1-Small-Region.svs"
    seen: list[np.ndarray] = []

    def score(patches: np.ndarray) -> np.ndarray:
        dark = -patches.mean(axis=(1, 2, 3))
        seen.append(dark)
        high = (dark > np.quantile(dark, 0.9)).astype(np.float64) * 0.9
        return np.stack([1 - high, high], axis=1)

    found = sample([slide], model, load_config(), 60, 1, score=score)
    limit = np.quantile(seen[0], 0.9)
    share = (-found.pixels.mean(axis=(1, 2, 3)) > limit).mean()
    assert len(seen[0]) == 180 and share > 0.25


@pytest.mark.data
def test_a_slide_that_cannot_be_read_is_left_out(model, data_dir: Path) -> None:
    """And told; the others give the patches."""
    lines: list[str] = []
    inputs = [data_dir / "slides" / "CMU-1-Small-Region.svs", data_dir / "bad" / "unopenable.tiff"]
    found = sample(inputs, model, load_config(), 20, 1, tell=lines.append)
    assert 0 < len(found) <= 20 and any("unopenable" in line and "left out" in line for line in lines)
    with pytest.raises(ConfigError, match="no tissue patch"):
        sample(inputs[1:], model, load_config(), 20, 1)


def test_no_slides_is_told(model, tmp_path: Path) -> None:
    """An empty folder."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no slides found"):
        sample([tmp_path / "empty"], model, load_config(), 20, 1)


def pictures(folder: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGBA", (128, 128), (index, 100, 200, 255)).save(folder / name / f"{index}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_labelled_pictures_are_read(tmp_path: Path) -> None:
    """A folder for each label; resampled to the model's patch; the positive one by its name in any case."""
    found, labels = read_labelled(pictures(tmp_path, normal=3, Tumour=2), 64, "tumour")
    assert found.pixels.shape == (5, 64, 64, 3) and found.names == ("Tumour", "normal")
    assert labels.tolist() == [1, 1, 0, 0, 0]
    assert found.pixels[1, 5, 5].tolist() == [1, 100, 200]


def test_a_label_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With the labels that are, and how to name another."""
    folder = pictures(tmp_path, normal=1, tumor=1)
    with pytest.raises(ConfigError, match=r"no folder 'tumour'.*normal, tumor.*--positive"):
        read_labelled(folder, 64, "tumour")
    with pytest.raises(ConfigError, match="no such folder"):
        read_labelled(tmp_path / "none", 64, "tumour")


def test_a_picture_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """By its name: leaving it out silently would change the AUC."""
    folder = pictures(tmp_path, normal=1, tumour=1)
    (folder / "normal" / "bad.png").write_bytes(b"not a picture")
    with pytest.raises(ConfigError, match=r"bad\.png: is no picture"):
        read_labelled(folder, 64, "tumour")


@pytest.mark.data
def test_overlap_does_not_matter_to_the_seed(model, data_dir: Path) -> None:
    """A grid with overlap has more patches to choose from."""
    slide = data_dir / "slides" / "CMU-1-Small-Region.svs"
    dense = load_config(None, ["tissue.overlap=0.5"])
    assert len(sample([slide], model, dense, 5000, 1)) > 2 * len(sample([slide], model, load_config(), 5000, 1))
