"""The messages that processes exchange: frozen dataclasses in msgpack, over ZeroMQ.

A message is three frames, `[b"SS1", one byte that names the kind, a msgpack array of the fields in order]`. Kinds are
stable numbers: a golden test fails when one changes. Decoding is strict (protocol, kind, number and type of fields), as
what comes out of a socket is never trusted; pixels never travel, they lie in shared memory.

Everybody speaks with the patch batcher alone:

    supervisor ─ Living Submit Amend Dead Drain Stop ▶ batcher ─── Condemn SlideDone Report ────▶ supervisor
    worker ──────── Hello Beat + its answers ────────▶ batcher ─── Welcome Who + its leases ────▶ worker
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, ClassVar

import msgpack

PROTOCOL = b"SS1"
MAX_BODY_BYTES = 64 << 20  # a plan of five million patches; anything larger is not ours


class ProtocolError(Exception):
    """Frames that are no message of this protocol; `str()` says in one line what was wrong."""


@dataclass(frozen=True, slots=True)
class Message:
    KIND: ClassVar[int] = 0


# ---------------------------------------------------------------- every worker


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """A worker is ready, holds no lease, and takes up to `credit` leases at once. `run` fences off other runs' workers.

    `boot` is that of the Who that it answers, 0 at the worker's start.
    """

    KIND: ClassVar[int] = 1
    boot: int
    kind: str
    run: str
    pid: int
    credit: int
    detail: dict


@dataclass(frozen=True, slots=True)
class Beat(Message):
    """Sent from the work loop, never from a thread: it proves that work goes on."""

    KIND: ClassVar[int] = 2


@dataclass(frozen=True, slots=True)
class Refused(Message):
    """The lease cannot be served, for a reason that lies in its subject; the worker itself is well."""

    KIND: ClassVar[int] = 3
    lease: int
    reason: str


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """From now on, leases of this boot of the batcher are valid, and no others."""

    KIND: ClassVar[int] = 4
    boot: int


@dataclass(frozen=True, slots=True)
class Who(Message):
    """The batcher does not know you (it is new): let go of every lease and say Hello again, once a boot."""

    KIND: ClassVar[int] = 5
    boot: int


@dataclass(frozen=True, slots=True)
class Stop(Message):
    """Finish what you hold and leave with exit code 0."""

    KIND: ClassVar[int] = 6


@dataclass(frozen=True, slots=True)
class Recall(Message):
    """To readers, where urgent work needs the cores: close the batch in work at the next row, and give back those in line, but
    for prompt ones. Its `prompt` puts it first (pipeline.line)."""

    KIND: ClassVar[int] = 7
    prompt: bool = True


# ---------------------------------------------------------------- slide reader


@dataclass(frozen=True, slots=True)
class Open(Message):
    """Open a slide and put its overview into overview slot `slot`. For `prompt` see pipeline.line."""

    KIND: ClassVar[int] = 10
    lease: int
    slide: int
    path: str
    slot: int
    prompt: bool = False


@dataclass(frozen=True, slots=True)
class Opened(Message):
    """`info` and `geometry`: SlideInfo and Geometry as dictionaries; the overview is `height` x `width` x 3 uint8.

    `source`: who decodes the slide ("direct" or "openslide"), as found here.
    """

    KIND: ClassVar[int] = 11
    lease: int
    info: dict
    geometry: dict
    width: int
    height: int
    source: str


@dataclass(frozen=True, slots=True)
class Fill(Message):
    """Fill rows 0, 1, ... of a slot, in the order of `segments`.

    A segment is `[slide, path, geometry, xy, source]`, with `xy` little-endian int32 (n, 2): level-0 corners of its
    patches; `source` as in Opened, empty where the slide's pixels are yet to be compared with OpenSlide's.
    The reader closes the slot early once the first row has waited `max_delay_ms`; also when a prompt lease comes and this
    one is not `prompt`, and gives back (with a count of 0) those of its line that are not.
    """

    KIND: ClassVar[int] = 12
    lease: int
    slot: int
    max_delay_ms: float
    segments: list
    prompt: bool = False


@dataclass(frozen=True, slots=True)
class Filled(Message):
    """Rows 0..count-1 are filled but for those in `failures` ([row, reason]); a segment whose slide is beyond
    reading is in `lost` ([slide, reason]) and its rows are in `failures` too."""

    KIND: ClassVar[int] = 13
    lease: int
    count: int
    failures: list
    lost: list


# ---------------------------------------------------------------- tissue-mask filter


@dataclass(frozen=True, slots=True)
class Mask(Message):
    """Find the tissue in overview slot `slot`, plan the patches, keep overview and mask as pictures in `folder`."""

    KIND: ClassVar[int] = 20
    lease: int
    slide: int
    slot: int
    width: int
    height: int
    info: dict
    geometry: dict
    folder: str


@dataclass(frozen=True, slots=True)
class Planned(Message):
    """`plan` is Plan.to_bytes(); `tissue` says how the mask was found."""

    KIND: ClassVar[int] = 21
    lease: int
    plan: bytes
    tissue: dict


# ---------------------------------------------------------------- inference


@dataclass(frozen=True, slots=True)
class Run(Message):
    """Infer rows 0..count-1 of a slot. For `prompt` see pipeline.line."""

    KIND: ClassVar[int] = 30
    lease: int
    slot: int
    count: int
    prompt: bool = False


@dataclass(frozen=True, slots=True)
class Consumed(Message):
    """The slot's pixels are copied: the slot may be filled anew, before the result is there."""

    KIND: ClassVar[int] = 32
    lease: int


@dataclass(frozen=True, slots=True)
class Inferred(Message):
    """`probabilities` is little-endian float32 (count, classes); rows in `failures` ([row, reason]) have none."""

    KIND: ClassVar[int] = 33
    lease: int
    probabilities: bytes
    failures: list


@dataclass(frozen=True, slots=True)
class Telemetry(Message):
    """Figures of the engine since it was opened, once a second or so: plain numbers by name. Says that the worker is well."""

    KIND: ClassVar[int] = 34
    values: dict


# ---------------------------------------------------------------- aggregator


@dataclass(frozen=True, slots=True)
class Ask(Message):
    """What does the journal of this slide hold? One with another key is thrown away; `retry` voids its failures."""

    KIND: ClassVar[int] = 40
    slide: int
    id: str
    key: dict
    retry: bool


@dataclass(frozen=True, slots=True)
class Known(Message):
    """The journal's header (None where there is no journal) and, per patch, 0 pending 1 inferred 2 failed."""

    KIND: ClassVar[int] = 41
    slide: int
    header: dict | None
    states: bytes


@dataclass(frozen=True, slots=True)
class Begin(Message):
    """Start the slide's journal with this header, or go on with the one that is there."""

    KIND: ClassVar[int] = 42
    slide: int
    id: str
    header: dict


@dataclass(frozen=True, slots=True)
class Begun(Message):
    KIND: ClassVar[int] = 43
    slide: int


@dataclass(frozen=True, slots=True)
class Record(Message):
    """Results of `patches` int32 (n,): `probabilities` float32 (n, classes); `failures` [[patch, reason]] have none."""

    KIND: ClassVar[int] = 44
    record: int
    slide: int
    patches: bytes
    probabilities: bytes
    failures: list


@dataclass(frozen=True, slots=True)
class Journaled(Message):
    """These records are on disk."""

    KIND: ClassVar[int] = 45
    records: list


@dataclass(frozen=True, slots=True)
class Forget(Message):
    """The slide's results are written. `keep` leaves its journal for a later retry of what failed."""

    KIND: ClassVar[int] = 46
    slide: int
    id: str
    keep: bool


# ---------------------------------------------------------------- writer


@dataclass(frozen=True, slots=True)
class Write(Message):
    """Write the results of a slide from its journal; `problem` says why there is none where the slide failed."""

    KIND: ClassVar[int] = 50
    lease: int
    slide: int
    id: str
    path: str
    key: dict
    engine: dict
    seconds: dict
    problem: str


@dataclass(frozen=True, slots=True)
class Written(Message):
    KIND: ClassVar[int] = 51
    lease: int
    state: str
    reason: str
    planned: int
    inferred: int
    failed: int


# ---------------------------------------------------------------- supervisor


@dataclass(frozen=True, slots=True)
class Living(Message):
    """The supervisor's first word to a new batcher: `workers` ([name, generation]) may still hold slots of the last."""

    KIND: ClassVar[int] = 60
    run: str
    workers: list


@dataclass(frozen=True, slots=True)
class Submit(Message):
    """A slide to be done. `problem` is set where it is known to be unreadable already; `place` is where to read it, where
    that is not `path`."""

    KIND: ClassVar[int] = 61
    slide: int
    id: str
    path: str
    key: dict
    urgent: bool
    retry: bool
    problem: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Dead(Message):
    """A worker's process has been reaped: nothing of it can touch a slot any more.

    `blame` is false where it was killed from outside: then its work is above suspicion.
    """

    KIND: ClassVar[int] = 62
    name: str
    generation: int
    cause: str
    blame: bool


@dataclass(frozen=True, slots=True)
class Drain(Message):
    """Read nothing new; finish what is in the slots, then answer with a Status that says drained."""

    KIND: ClassVar[int] = 63


@dataclass(frozen=True, slots=True)
class Condemn(Message):
    """The batcher asks for a worker's death: it hangs, or speaks nonsense."""

    KIND: ClassVar[int] = 64
    name: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class SlideDone(Message):
    """`state` is that of the result, or "cancelled": then there is none, and nothing of the slide is under way any more."""

    KIND: ClassVar[int] = 65
    slide: int
    state: str
    reason: str
    planned: int
    inferred: int
    failed: int


@dataclass(frozen=True, slots=True)
class Report(Message):
    """The batcher's view of the run, several times a second: see pipeline.dispatch.dispatcher for the keys."""

    KIND: ClassVar[int] = 66
    status: dict


@dataclass(frozen=True, slots=True)
class Amend(Message):
    """What is wanted of a submitted slide from now on: its class, and whether it is wanted at all.

    `cancel` is final. It comes too late for a slide whose results are being written.
    """

    KIND: ClassVar[int] = 67
    slide: int
    urgent: bool
    cancel: bool


# ---------------------------------------------------------------- codec

# Paths and slide ids are file names, and a file name may hold any bytes.
_UNICODE_ERRORS = "surrogateescape"

_BASIC = {"int": int, "str": str, "bytes": bytes, "bool": bool, "float": (float, int), "list": list, "dict": dict}


def _accepted(hint: Any) -> tuple[type, ...]:
    if isinstance(hint, types.UnionType):
        return tuple(t for part in typing.get_args(hint) for t in _accepted(part))
    if hint is type(None):
        return (type(None),)
    accepted = _BASIC[hint.__name__]
    return accepted if isinstance(accepted, tuple) else (accepted,)


def _register() -> dict[int, tuple[type[Message], tuple[tuple[str, tuple[type, ...]], ...]]]:
    table = {}
    for cls in list(globals().values()):
        if not (isinstance(cls, type) and issubclass(cls, Message)) or cls is Message:
            continue
        hints = typing.get_type_hints(cls)
        fields = tuple((f.name, _accepted(hints[f.name])) for f in dataclasses.fields(cls))
        if cls.KIND in table:
            raise TypeError(f"two messages have the number {cls.KIND}")
        table[cls.KIND] = (cls, fields)
    return table


_KINDS = _register()


def encode(message: Message) -> list[bytes]:
    """The three frames of a message."""
    _, fields = _KINDS[message.KIND]
    values = [getattr(message, name) for name, _ in fields]
    body = msgpack.packb(values, use_bin_type=True, unicode_errors=_UNICODE_ERRORS)
    return [PROTOCOL, bytes([message.KIND]), body]


def decode(frames: list[bytes]) -> Message:
    """The message in `frames`; ProtocolError where they hold none."""
    if len(frames) != 3:
        raise ProtocolError(f"a message has 3 frames, this has {len(frames)}")
    protocol, kind, body = frames
    if protocol != PROTOCOL:
        raise ProtocolError(f"protocol {bytes(protocol[:8])!r} instead of {PROTOCOL!r}")
    if len(kind) != 1 or kind[0] not in _KINDS:
        raise ProtocolError(f"unknown kind of message {bytes(kind[:8])!r}")
    if len(body) > MAX_BODY_BYTES:
        raise ProtocolError(f"a body of {len(body)} bytes; at most {MAX_BODY_BYTES} are read")
    cls, fields = _KINDS[kind[0]]
    try:
        values = msgpack.unpackb(body, raw=False, strict_map_key=False, unicode_errors=_UNICODE_ERRORS)
    except (ValueError, TypeError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise ProtocolError(f"{cls.__name__}: not msgpack ({error})") from None
    if not isinstance(values, list) or len(values) != len(fields):
        raise ProtocolError(f"{cls.__name__} has {len(fields)} fields")
    for value, (name, accepted) in zip(values, fields, strict=True):
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
            raise ProtocolError(f"{cls.__name__}.{name} is a {type(value).__name__}")
    return cls(*values)
