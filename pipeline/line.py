"""What waits for a worker, in order: as it came, but prompt leases before those that are not.

A lease is prompt where urgent work is about: one of an urgent slide, or one that routine is owed beside it. So the order that
the batcher wants holds in every worker, whatever was granted before the urgent slide came. Pure code.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.wire import Message

# Prompt leases that one waiting lease lets go before it. A worker that has nothing but urgent work still serves it.
OVERTAKEN = 8


@dataclass(slots=True, eq=False)
class _Place:
    message: Message
    overtaken: int = 0
    seen: bool = False


def is_prompt(message: Message) -> bool:
    return getattr(message, "prompt", False)


def _gives_way(place: _Place) -> bool:
    """Leases alone do, never what is said between them: a lease after a Welcome is one of another batcher."""
    return getattr(place.message, "prompt", True) is False and place.overtaken < OVERTAKEN


class Line:
    """Messages from the batcher that the worker has not come to yet."""

    def __init__(self) -> None:
        self._places: list[_Place] = []

    def __len__(self) -> int:
        return len(self._places)

    def put(self, message: Message) -> None:
        at = len(self._places)
        if is_prompt(message):
            while at and _gives_way(self._places[at - 1]):
                at -= 1
        for place in self._places[at:]:
            place.overtaken += 1
        self._places.insert(at, _Place(message))

    def take(self) -> Message:
        """The next one; IndexError where there is none."""
        return self._places.pop(0).message

    def fresh(self) -> list[Message]:
        """What has come since this was last asked, and has not been taken."""
        unseen = [place for place in self._places if not place.seen]
        for place in unseen:
            place.seen = True
        return [place.message for place in unseen]

    @property
    def pressing(self) -> bool:
        """Whether a prompt lease is waiting."""
        return any(is_prompt(place.message) for place in self._places)

    def recall(self, kind: type[Message]) -> list[Message]:
        """Take out the leases of a kind that are not prompt, the last one first."""
        out = [place for place in self._places if type(place.message) is kind and not is_prompt(place.message)]
        self._places = [place for place in self._places if place not in out]
        return [place.message for place in reversed(out)]

    def messages(self) -> list[Message]:
        """All that waits, in order."""
        return [place.message for place in self._places]

    def clear(self) -> None:
        self._places.clear()
