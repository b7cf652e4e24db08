"""Whether the inside of a worker's message makes sense. The types of its fields are the codec's (pipeline.wire); what they
hold comes from another process all the same, and must not bring down the only one that decides."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.wire import Filled, Hello, Inferred, Journaled, Known, Message, Opened, Planned, Written
from slides.geometry import Geometry
from slides.plan import Plan

_MOST_CREDIT = 1 << 16
_STATES = ("complete", "partial", "failed")
_HEADER = ("plan", "geometry", "info")


def fault(message: Message) -> str:
    """What is wrong with a message, in one line; empty where nothing is."""
    try:
        wrong = _fault(message)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        wrong = str(error) or type(error).__name__
    return f"its {type(message).__name__} makes no sense: {wrong}" if wrong else ""


def _fault(message: Message) -> str:
    match message:
        case Hello():
            return "" if 0 <= message.credit <= _MOST_CREDIT else f"a credit of {message.credit}"
        case Opened():
            grid = Geometry.from_dict(message.geometry)
            sound = min(message.width, message.height, grid.step_x, grid.step_y, grid.columns, grid.rows) > 0
            return "" if sound else "sizes below 1"
        case Planned():
            Plan.from_bytes(message.plan)
        case Filled():
            return _pairs(message.failures) or _pairs(message.lost)
        case Inferred():
            return _pairs(message.failures)
        case Journaled():
            return "" if all(type(record) is int for record in message.records) else "numbers of records expected"
        case Known() if message.header is not None:
            return _header(message.header, message.states)
        case Written():
            return "" if message.state in _STATES else f"no such state: {message.state!r}"
    return ""


def _header(header: dict[str, Any], states: bytes) -> str:
    if missing := [name for name in _HEADER if name not in header]:
        return f"no {missing[0]} in the header"
    Geometry.from_dict(header["geometry"])
    planned = len(Plan.from_bytes(header["plan"]))
    known = np.frombuffer(states, np.uint8)
    return "" if len(known) == planned and (known <= 2).all() else f"states of {len(known)} patches, {planned} planned"


def _pairs(values: list) -> str:
    """[number, reason] each."""
    for value in values:
        if not (isinstance(value, list) and len(value) == 2 and type(value[0]) is int and isinstance(value[1], str)):
            return f"[number, reason] expected, not {str(value)[:80]}"
    return ""
