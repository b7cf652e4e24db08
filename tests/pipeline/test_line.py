"""What waits for a worker, and in which order it is taken."""

from __future__ import annotations

from pipeline.line import OVERTAKEN, Line
from pipeline.wire import Fill, Mask, Message, Open, Run, Stop, Welcome, Who


def fill(number: int, prompt: bool = False) -> Fill:
    return Fill(number, 0, 100.0, [], prompt)


def line(*messages: Message) -> Line:
    made = Line()
    for message in messages:
        made.put(message)
    return made


def taken(made: Line) -> list[Message]:
    return [made.take() for _ in range(len(made))]


def test_prompt_leases_go_first_and_keep_their_order() -> None:
    """So do the others."""
    made = line(fill(1), Open(2, 1, "", 0), fill(3, True), Run(4, 0, 1), Open(5, 2, "", 0, True))
    assert [message.lease for message in taken(made)] == [3, 5, 1, 2, 4]


def test_only_leases_are_overtaken() -> None:
    """What comes after a Welcome or Who is another batcher's, and means nothing before it."""
    first = [fill(1), Who(2), Welcome(2), fill(2)]
    assert taken(line(*first, fill(3, True), Stop(), fill(4, True))) == [
        *first[:3],
        fill(3, True),
        fill(2),
        Stop(),
        fill(4, True),
    ]
    mask = Mask(1, 1, 0, 1, 1, {}, {}, "")
    assert taken(line(mask, fill(2, True))) == [mask, fill(2, True)]


def test_a_lease_is_overtaken_so_many_times_and_no_more() -> None:
    """However much urgent work comes, the others are served."""
    made = line(fill(1))
    order = []
    for number in range(2, 3 * OVERTAKEN):
        made.put(fill(number, True))
        order.append(made.take().lease)
    assert order.index(1) == OVERTAKEN


def test_what_is_recalled_is_not_taken() -> None:
    """Leases of one kind that are not prompt, the last one first."""
    made = line(fill(1), Open(2, 1, "", 0), fill(3), fill(4, True))
    assert made.pressing and made.recall(Fill) == [fill(3), fill(1)]
    assert [message.lease for message in taken(made)] == [4, 2] and not made.pressing


def test_each_is_shown_once() -> None:
    """Unless it was taken before."""
    made = line(fill(1), fill(2))
    assert made.take() == fill(1) and made.fresh() == [fill(2)] and made.fresh() == []
    made.put(fill(3, True))
    assert made.fresh() == [fill(3, True)] and len(made) == 2
