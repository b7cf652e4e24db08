"""Workers, credit and leases."""

from __future__ import annotations

from pipeline.dispatch.leases import BOOT_SHIFT, Leases, Worker


def ledger(*credits: int, boot: int = 1) -> Leases:
    leases = Leases(boot)
    for i, credit in enumerate(credits):
        leases.join(Worker(f"reader-{i}", 1, "reader", credit, 0.0, {}))
    return leases


def test_numbers_rise_and_name_their_boot() -> None:
    """No two leases have one number, within a boot or between boots."""
    numbers = []
    for boot in (1, 2, 3):
        leases = ledger(5, boot=boot)
        worker = leases.get("reader-0", 1)
        granted = [leases.grant(worker, "fill", None, 0.0).number for _ in range(3)]
        assert {number >> BOOT_SHIFT for number in granted} == {boot}
        numbers += granted
    assert numbers == sorted(set(numbers))


def test_credit_is_the_limit() -> None:
    """A worker gets as many leases as it has credit, and one more for each that it settles."""
    leases = ledger(2)
    worker = leases.able("reader")
    first = leases.grant(worker, "fill", None, 0.0)
    leases.grant(leases.able("reader"), "fill", None, 0.0)
    assert leases.able("reader") is None
    leases.settle(worker, first.number, "fill", 1.0)
    assert leases.able("reader") is worker and worker.room == 1


def test_the_least_busy_is_next() -> None:
    """Fewest leases first; among equals the one that has been idle for longest."""
    leases = ledger(2, 2)
    a, b = leases.get("reader-0", 1), leases.get("reader-1", 1)
    lease = leases.grant(a, "fill", None, 0.0)
    assert leases.able("reader") is b
    leases.settle(a, lease.number, "fill", 5.0)
    assert leases.able("reader") is b
    assert leases.able("inference") is None


def test_a_condemned_worker_gets_nothing() -> None:
    """It may hang: what it holds it keeps until it is dead."""
    leases = ledger(2)
    leases.get("reader-0", 1).condemned = True
    assert leases.able("reader") is None


def test_alone_means_alone() -> None:
    """A lease that is tried alone goes to an idle worker, and nothing is granted beside it."""
    leases = ledger(3, 3)
    a, b = leases.get("reader-0", 1), leases.get("reader-1", 1)
    leases.grant(a, "fill", None, 0.0)
    assert leases.able("reader", idle=True) is b
    trial = leases.grant(b, "fill", None, 0.0, alone=True)
    assert b.room == 0 and leases.able("reader") is a and leases.able("reader", idle=True) is None
    leases.settle(b, trial.number, "fill", 1.0)
    assert leases.able("reader", idle=True) is b


def test_stale_answers_settle_nothing() -> None:
    """An unknown lease, one of another worker, one of another kind, one settled before: None."""
    leases = ledger(2, 2)
    a, b = leases.get("reader-0", 1), leases.get("reader-1", 1)
    lease = leases.grant(a, "fill", "subject", 1.0)
    assert leases.settle(a, lease.number + 1, "fill", 2.0) is None
    assert leases.settle(b, lease.number, "fill", 2.0) is None
    assert leases.settle(a, lease.number, "open", 2.0) is None
    settled, seconds = leases.settle(a, lease.number, "fill", 3.0)
    assert settled is lease and seconds == 2.0
    assert leases.settle(a, lease.number, "fill", 4.0) is None


def test_time_in_line_is_not_time_at_work() -> None:
    """Work on a lease begins when the one before it ends."""
    leases = ledger(2)
    worker = leases.get("reader-0", 1)
    first, second = (leases.grant(worker, "fill", None, 0.0) for _ in range(2))
    assert leases.settle(worker, first.number, "fill", 3.0)[1] == 3.0
    assert leases.settle(worker, second.number, "fill", 4.0)[1] == 1.0


def test_generations_are_told_apart() -> None:
    """Another generation of a name is nobody."""
    leases = ledger(1)
    assert leases.get("reader-0", 1) is not None and leases.get("reader-0", 2) is None


def test_the_dead_leave_all_their_leases() -> None:
    """Oldest first, and the worker is gone."""
    leases = ledger(3)
    worker = leases.get("reader-0", 1)
    granted = [leases.grant(worker, "fill", n, 0.0) for n in range(3)]
    assert leases.leave(worker) == granted
    assert leases.get("reader-0", 1) is None and leases.able("reader") is None


def test_a_prompt_lease_goes_beyond_credit_by_one() -> None:
    """Where what it overtakes takes up all credit; of prompt ones there are never more than credit."""
    leases = ledger(2)
    worker = leases.get("reader-0", 1)
    first = [leases.grant(worker, "fill", None, 0.0) for _ in range(2)]
    assert leases.able("reader") is None and leases.able("reader", prompt=True) is worker
    leases.grant(worker, "fill", None, 0.0, prompt=True)
    assert leases.able("reader", prompt=True) is None
    for lease in first:
        leases.settle(worker, lease.number, "fill", 1.0)
    leases.grant(leases.able("reader", prompt=True), "fill", None, 0.0, prompt=True)
    assert leases.able("reader", prompt=True) is None


def test_a_prompt_lease_goes_where_the_fewest_are() -> None:
    """What it overtakes does not count; among equals the one with the least to do."""
    leases = ledger(2, 2)
    a, b = leases.get("reader-0", 1), leases.get("reader-1", 1)
    leases.grant(a, "fill", None, 0.0)
    leases.grant(a, "fill", None, 0.0)
    assert leases.able("reader", prompt=True) is b
    leases.grant(b, "fill", None, 0.0, prompt=True)
    assert leases.able("reader", prompt=True) is a
    leases.grant(a, "fill", None, 0.0, alone=True)
    assert leases.able("reader", prompt=True) is b
