"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA_VARIABLE = "SLIDESTREAM_DATA"


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of sample slides: SLIDESTREAM_DATA, or shared/data beside the repository. Skips the test if there is none."""
    folder = Path(os.environ.get(DATA_VARIABLE) or ROOT.parent / "shared" / "data")
    if not (folder / "slides").is_dir():
        pytest.skip(f"no sample slides in {folder}; name their folder in {DATA_VARIABLE}")
    return folder
