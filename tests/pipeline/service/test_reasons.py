from __future__ import annotations

import errno
import os

import pytest

from pipeline.service.reasons import RULES, Kind, decide, kind_of_errno, kind_of_text


def test_every_kind_has_a_rule_with_a_remedy() -> None:
    """So that no reason reaches the operator without what to do about it."""
    assert set(RULES) == set(Kind)
    assert all(rule.remedy for rule in RULES.values())


def test_pauses_grow_to_a_bound_and_end_in_quarantine() -> None:
    """5, 10, 20, 40, 80 s, then no more, for a read error."""
    pauses = [decide(Kind.READ_ERROR, n, 100.0).retry_at for n in range(1, 7)]
    assert pauses == [105.0, 110.0, 120.0, 140.0, 180.0, None]


@pytest.mark.parametrize("kind", [Kind.SHARE_GONE, Kind.DISK_FULL])
def test_what_is_not_the_slides_fault_is_tried_for_ever(kind: Kind) -> None:
    """With a pause that stays bounded, and something held."""
    decision = decide(kind, 100_000, 0.0)
    assert decision.retry_at == RULES[kind].longest_pause_s
    assert decision.holds


@pytest.mark.parametrize("kind", [Kind.BAD_SLIDE, Kind.INCOMPLETE, Kind.BAD_NAME])
def test_what_will_not_pass_is_quarantined_at_once(kind: Kind) -> None:
    """The same bytes fail the same way."""
    assert decide(kind, 1, 0.0).retry_at is None


def test_errors_of_the_system_have_kinds() -> None:
    """By number; where results are written only a full disk is told from the rest."""
    assert kind_of_errno(errno.ESTALE) is Kind.SHARE_GONE
    assert kind_of_errno(errno.ENOSPC) is Kind.DISK_FULL
    assert kind_of_errno(errno.EACCES) is Kind.PERMISSION
    assert kind_of_errno(errno.ENOENT, writing=True) is Kind.WRITE_ERROR
    assert kind_of_errno(errno.ENOSPC, writing=True) is Kind.DISK_FULL
    assert kind_of_errno(None) is Kind.READ_ERROR


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (f"cannot be read: {os.strerror(errno.ESTALE)}", Kind.SHARE_GONE),
        (f"its results could not be written: [Errno 28] {os.strerror(errno.ENOSPC)}: '/out/a'", Kind.DISK_FULL),
        (f"its results could not be written: [Errno 2] {os.strerror(errno.ENOENT)}: '/out/a'", Kind.WRITE_ERROR),
        ("may not be read (permission denied); check its owner and mode", Kind.PERMISSION),
        ("does not exist", Kind.VANISHED),
        ("opening it killed the reader twice (silent for 30 s)", Kind.CRASH),
        ("is not a slide in a format that OpenSlide knows", Kind.BAD_SLIDE),
        ("has no µm per pixel; give the true value with --set slides.mpp=...", Kind.BAD_SLIDE),
    ],
)
def test_sentences_of_workers_have_kinds(reason: str, kind: Kind) -> None:
    """As they stand in the code of the stages today."""
    assert kind_of_text(reason) is kind
