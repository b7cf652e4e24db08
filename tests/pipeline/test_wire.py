"""The messages on the wire: what they look like, byte by byte, and what is refused."""

from __future__ import annotations

import dataclasses

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import wire
from pipeline.wire import (
    MAX_BODY_BYTES,
    PROTOCOL,
    Beat,
    Fill,
    Filled,
    Known,
    ProtocolError,
    Refused,
    Submit,
    decode,
    encode,
)

XY = bytes(range(8))
# One of every kind, and the bytes of its body. A line that must be changed here is a new protocol: raise PROTOCOL.
GOLDEN = [
    (
        wire.Hello(0, "reader", "run", 4711, 2, {"engine": "onnx"}),
        1,
        "9600a6726561646572a372756ecd12670281a6656e67696e65a46f6e6e78",
    ),
    (wire.Beat(), 2, "90"),
    (wire.Refused(1 << 40, "no"), 3, "92cf0000010000000000a26e6f"),
    (wire.Welcome(3), 4, "9103"),
    (wire.Who(4), 5, "9104"),
    (wire.Stop(), 6, "90"),
    (wire.Recall(), 7, "91c3"),
    (wire.Open(5, 1, "/a.svs", 0, True), 10, "950501a62f612e73767300c3"),
    (
        wire.Opened(5, {"width": 9}, {"step_x": 4}, 300, 200, "direct"),
        11,
        "960581a577696474680981a6737465705f7804cd012cccc8a6646972656374",
    ),
    (
        wire.Fill(6, 2, 200.0, [[1, "/a.svs", {"step_x": 4}, XY]], True),
        12,
        "950602cb4069000000000000919401a62f612e73767381a6737465705f7804c4080001020304050607c3",
    ),
    (wire.Filled(6, 2, [[1, "bad tile"]], [[1, "gone"]]), 13, "940602919201a86261642074696c65919201a4676f6e65"),
    (
        wire.Mask(7, 1, 0, 300, 200, {"width": 9}, {"step_x": 4}, "/work/1"),
        20,
        "98070100cd012cccc881a577696474680981a6737465705f7804a72f776f726b2f31",
    ),
    (wire.Planned(7, XY, {"method": "none"}), 21, "9307c408000102030405060781a66d6574686f64a46e6f6e65"),
    (wire.Run(8, 2, 32, True), 30, "94080220c3"),
    (wire.Consumed(8), 32, "9108"),
    (wire.Inferred(8, XY, [[0, "nan"]]), 33, "9308c4080001020304050607919200a36e616e"),
    (wire.Telemetry({"batches": 3, "busy_seconds": 0.5}), 34, "9182a76261746368657303ac627573795f7365636f6e6473cb3fe0000000000000"),
    (wire.Ask(1, "a", {"k": 1}, True), 40, "9401a16181a16b01c3"),
    (wire.Known(1, None, b""), 41, "9301c0c400"),
    (wire.Begin(1, "a", {"plan": XY}), 42, "9301a16181a4706c616ec4080001020304050607"),
    (wire.Begun(1), 43, "9101"),
    (
        wire.Record(9, 1, XY, XY, [[3, "bad tile"]]),
        44,
        "950901c4080001020304050607c4080001020304050607919203a86261642074696c65",
    ),
    (wire.Journaled([9, 10]), 45, "9192090a"),
    (wire.Forget(1, "a", False), 46, "9301a161c2"),
    (
        wire.Write(11, 1, "a", "/a.svs", {"k": 1}, {"engine": "onnx"}, {"read": 1.5}, ""),
        50,
        "980b01a161a62f612e73767381a16b0181a6656e67696e65a46f6e6e7881a472656164cb3ff8000000000000a0",
    ),
    (wire.Written(11, "complete", "", 4, 3, 1), 51, "960ba8636f6d706c657465a0040301"),
    (wire.Living("run", [["reader-0", 2]]), 60, "92a372756e9192a87265616465722d3002"),
    (wire.Submit(1, "a", "/a.svs", {"k": 1}, True, False, "", "/b"), 61, "9801a161a62f612e73767381a16b01c3c2a0a22f62"),
    (wire.Dead("reader-0", 2, "SIGSEGV", True), 62, "94a87265616465722d3002a753494753454756c3"),
    (wire.Drain(), 63, "90"),
    (wire.Condemn("reader-0", 2, "hangs"), 64, "93a87265616465722d3002a568616e6773"),
    (wire.SlideDone(1, "complete", "", 4, 3, 1), 65, "9601a8636f6d706c657465a0040301"),
    (wire.Report({"slots": {"free": 2}}), 66, "9181a5736c6f747381a46672656502"),
    (wire.Amend(1, True, False), 67, "9301c3c2"),
]
MESSAGES = [message for message, _, _ in GOLDEN]


def name_of(value: object) -> str:
    return type(value).__name__


def test_golden_list_has_every_kind() -> None:
    """No message is left out below."""
    assert {type(m) for m in MESSAGES} == {cls for cls, _ in wire._KINDS.values()}
    assert len(MESSAGES) == len({m.KIND for m in MESSAGES})


@pytest.mark.parametrize(("message", "kind", "body"), GOLDEN, ids=name_of)
def test_frames_never_change(message: wire.Message, kind: int, body: str) -> None:
    """Each message is these three frames, and comes back from them as it was."""
    assert encode(message) == [b"SS1", bytes([kind]), bytes.fromhex(body)]
    assert decode([b"SS1", bytes([kind]), bytes.fromhex(body)]) == message


@pytest.mark.parametrize("message", MESSAGES, ids=name_of)
def test_number_of_fields_is_strict(message: wire.Message) -> None:
    """A field too many or too few is refused."""
    protocol, kind, body = encode(message)
    values = msgpack.unpackb(body)
    for wrong in ([*values, 0], values[:-1] if values else [1, 2]):
        with pytest.raises(ProtocolError, match="fields"):
            decode([protocol, kind, msgpack.packb(wrong)])


@pytest.mark.parametrize("message", MESSAGES, ids=name_of)
def test_types_of_fields_are_strict(message: wire.Message) -> None:
    """A field of another type is refused, by name."""
    protocol, kind, body = encode(message)
    values = msgpack.unpackb(body)
    for i, field in enumerate(dataclasses.fields(message)):
        wrong = "text" if not isinstance(values[i], str) else 1
        with pytest.raises(ProtocolError, match=field.name):
            decode([protocol, kind, msgpack.packb([*values[:i], wrong, *values[i + 1 :]])])


def test_true_is_no_number_and_one_is_no_truth() -> None:
    """Booleans and integers are not mixed up, although Python's are."""
    protocol, kind, _ = encode(MESSAGES[2])
    with pytest.raises(ProtocolError, match="Refused.lease is a bool"):
        decode([protocol, kind, msgpack.packb([True, "no"])])
    with pytest.raises(ProtocolError, match="Forget.keep is a int"):
        decode([protocol, bytes([wire.Forget.KIND]), msgpack.packb([1, "a", 1])])


def test_infinite_delay_and_whole_numbers_are_floats() -> None:
    """A slot that is never closed early has an infinite delay; a whole number will do for a float."""
    assert decode(encode(Fill(1, 0, float("inf"), []))).max_delay_ms == float("inf")
    assert decode(encode(Fill(1, 0, 5, []))).max_delay_ms == 5


def test_file_names_that_are_no_unicode_arrive() -> None:
    """A path is any bytes to the system, and so is an id that comes from one."""
    path = b"/slides/caf\xe9.svs".decode("utf-8", "surrogateescape")
    message = Submit(1, path, path, {"path": path}, False, False, "")
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "3 frames"),
        ([PROTOCOL, b"\x02"], "3 frames"),
        ([PROTOCOL, b"\x02", b"\x90", b""], "3 frames"),
        ([b"SS2", b"\x02", b"\x90"], "protocol"),
        ([b"x" * 1000, b"\x02", b"\x90"], "protocol"),
        ([PROTOCOL, b"", b"\x90"], "unknown kind"),
        ([PROTOCOL, b"\x02\x02", b"\x90"], "unknown kind"),
        ([PROTOCOL, b"\xff", b"\x90"], "unknown kind"),
        ([PROTOCOL, b"\x00", b"\x90"], "unknown kind"),
        ([PROTOCOL, b"\x02", b""], "not msgpack"),
        ([PROTOCOL, b"\x02", b"\x90\x90"], "not msgpack"),
        ([PROTOCOL, b"\x02", b"\x80"], "fields"),
        ([PROTOCOL, b"\x02", b"\x91" * 2000], "not msgpack"),
        ([PROTOCOL, b"\x02", b"\xdd\xff\xff\xff\xff"], "not msgpack"),
        ([PROTOCOL, b"\x20", b"\x91\x81\x90\x01"], "not msgpack"),
    ],
)
def test_what_is_no_message_is_refused(frames: list[bytes], words: str) -> None:
    """Anything else is a ProtocolError of one short line."""
    with pytest.raises(ProtocolError, match=words) as error:
        decode(frames)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_a_body_beyond_the_limit_is_not_unpacked() -> None:
    """A huge body is refused by its size."""
    with pytest.raises(ProtocolError, match="at most"):
        decode([PROTOCOL, b"\x02", bytes(MAX_BODY_BYTES + 1)])


def attempt(frames: list[bytes]) -> None:
    try:
        message = decode(frames)
    except ProtocolError:
        return
    assert decode(encode(message)) == message or b"\xca" in frames[2] or b"\xcb" in frames[2]  # NaN is not itself


KINDS = st.sampled_from(sorted(wire._KINDS)).map(lambda kind: bytes([kind]))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=9,
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.binary(max_size=40), max_size=4) | st.tuples(st.just(PROTOCOL), KINDS, st.binary(max_size=60)).map(list)
)
def test_no_bytes_do_more_than_be_refused(frames: list[bytes]) -> None:
    """Whatever the bytes: a message or a ProtocolError, and nothing else ever."""
    attempt(frames)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(KINDS, st.lists(VALUES, max_size=9) | VALUES)
def test_no_values_do_more_than_be_refused(kind: bytes, values: object) -> None:
    """The same for sound msgpack with odd contents."""
    attempt([PROTOCOL, kind, msgpack.packb(values)])


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(MESSAGES), st.data())
def test_no_damage_does_more_than_be_refused(message: wire.Message, data: st.DataObject) -> None:
    """The same for real messages with a damaged byte, or cut short."""
    frames = encode(message)
    body = bytearray(frames[2])
    if data.draw(st.booleans()):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    else:
        del body[data.draw(st.integers(0, len(body))) :]
    attempt([*frames[:2], bytes(body)])


def test_messages_are_values() -> None:
    """Equal fields, equal messages; and nobody changes one that was sent."""
    assert Beat() == Beat() and Known(1, None, b"") != Known(2, None, b"")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Refused(1, "no").lease = 2  # type: ignore[misc]
    assert Filled(1, 0, [], []) == Filled(1, 0, [], [])
