"""The journal of a slide: what a retry voids, with one model and with several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from results.journal import Follower, Journal, inferred_before
from slides.plan import Plan

KEY = {"fingerprint": "f", "model": "a+b", "configuration": "c"}
NAN = float("nan")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Four patches, three columns: patch 0 answered by all, 1 in part, 2 failed, 3 pending."""
    places = np.arange(4, dtype=np.int32)
    plan = Plan(places, places, np.ones(4, np.float32))
    made = Journal.create(tmp_path, {"key": KEY, "classes": 3, "plan": plan.to_bytes()})
    rows = np.array([[0.25, 0.75, 1], [NAN, NAN, 0.5]], np.float32)
    made.append(np.array([0, 1], "<i4").tobytes(), rows.tobytes(), [[2, "cannot be read"]])
    made.flush()
    return made


def test_a_retry_voids_what_failed_for_any_model(journal: Journal) -> None:
    """Also after it is read again; what all models answered stays."""
    assert journal.patches.states.tolist() == [1, 1, 2, 0]
    journal.retry()
    assert journal.patches.states.tolist() == [1, 0, 0, 0] and journal.patches.reasons == {}
    journal.flush()
    again = Journal.open_or_none(journal.folder, KEY)
    assert again is not None and again.patches.states.tolist() == [1, 0, 0, 0]
    rows = np.array([[0.5, 0.5, 0.25]], np.float32)
    again.append(np.array([1], "<i4").tobytes(), rows.tobytes(), [])
    assert again.patches.probabilities[1].tolist() == rows[0].tolist()
    again.close(), journal.close()


def test_nothing_is_voided_where_nothing_failed(tmp_path: Path) -> None:
    """The file is not touched."""
    plan = Plan(np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, np.float32))
    made = Journal.create(tmp_path, {"key": KEY, "classes": 1, "plan": plan.to_bytes()})
    made.append(np.array([0], "<i4").tobytes(), np.array([[0.5]], np.float32).tobytes(), [])
    made.flush()
    size = (tmp_path / "journal").stat().st_size
    made.retry()
    made.flush()
    assert (tmp_path / "journal").stat().st_size == size
    made.close()


def test_inferred_before_counts_what_all_models_answered(journal: Journal) -> None:
    """And nothing of another key."""
    assert inferred_before(journal.folder, KEY) == 1
    assert inferred_before(journal.folder, KEY | {"model": "a"}) == 0
    journal.close()


def test_a_follower_tells_what_changed_and_in_which_order(journal: Journal) -> None:
    """While another process appends; a repeated record changes nothing, a retry voids, a torn end is waited for."""
    seen = Follower(journal.folder)
    assert seen.header["key"] == KEY and seen.changed.tolist() == [0, 1, 2]
    row = np.array([[0.5, 0.5, 0.25]], np.float32).tobytes()
    journal.append(np.array([3], "<i4").tobytes(), row, [])
    journal.append(np.array([3], "<i4").tobytes(), row, [])
    journal.retry()
    assert seen.advance() and seen.changed.tolist() == [0, 1, 2]
    journal.flush()
    whole = (journal.folder / "journal").read_bytes()
    (journal.folder / "journal").write_bytes(whole[:-3])
    assert seen.advance() and seen.changed.tolist() == [0, 1, 2, 3]
    (journal.folder / "journal").write_bytes(whole)
    assert seen.advance() and seen.changed.tolist() == [0, 1, 2, 3, 1, 2]
    assert seen.patches.states.tolist() == [1, 0, 0, 1]
    assert Follower(journal.folder).changed.tolist() == seen.changed.tolist()
    journal.close()


def test_a_follower_notices_another_journal(journal: Journal) -> None:
    """One that was begun anew in its place, as after a change of the model."""
    seen = Follower(journal.folder)
    journal.close()
    Journal.create(journal.folder, {**journal.header, "key": {"fingerprint": "other"}}).flush()
    assert not seen.advance()
