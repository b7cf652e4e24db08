"""Why a slide failed, and what follows: another try after a pause, or quarantine. Pure.

What may pass by itself is tried again with growing pauses; what will not is put into quarantine at once, with what an
operator can do about it. Causes that are not the slide's own (a share that is gone, a full disk) hold the intake and never
use up attempts.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The kinds of reasons, as they are counted and shown."""

    SHARE_GONE = "share_gone"
    DISK_FULL = "disk_full"
    READ_ERROR = "read_error"
    PERMISSION = "permission"
    VANISHED = "vanished"
    CHANGED = "changed"
    TIMEOUT = "timeout"
    CRASH = "crash"
    INCOMPLETE = "incomplete"
    BAD_SLIDE = "bad_slide"
    BAD_NAME = "bad_name"
    MODEL = "model"
    WRITE_ERROR = "write_error"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Rule:
    """`attempts`: failures in a row before quarantine; None: tried for ever. `holds`: what is held until it has passed."""

    attempts: int | None
    first_pause_s: float
    longest_pause_s: float
    remedy: str
    holds: str = ""


HOLD_FOLDER, HOLD_RESULTS = "folder", "results"

RULES: dict[Kind, Rule] = {
    Kind.SHARE_GONE: Rule(None, 5, 300, "mount the share again; work goes on by itself", HOLD_FOLDER),
    Kind.DISK_FULL: Rule(None, 10, 300, "free some space; work goes on by itself", HOLD_RESULTS),
    Kind.READ_ERROR: Rule(6, 5, 900, "check the share and its disks, then retry"),
    Kind.PERMISSION: Rule(6, 30, 1800, "let the service's user read the file, then retry"),
    Kind.VANISHED: Rule(3, 2, 30, "deliver the slide again"),
    Kind.CHANGED: Rule(3, 30, 300, "let the scanner finish, then retry"),
    Kind.TIMEOUT: Rule(3, 30, 900, "check the share's speed and slides.read_timeout_s, then retry"),
    Kind.CRASH: Rule(2, 5, 60, "keep the file for analysis; it kills what reads it"),
    Kind.INCOMPLETE: Rule(1, 0, 0, "copy or export the slide again"),
    Kind.BAD_SLIDE: Rule(1, 0, 0, "scan or export the slide again, or correct the configuration, then retry"),
    Kind.BAD_NAME: Rule(1, 0, 0, "rename the file"),
    Kind.MODEL: Rule(4, 30, 600, "check the model directory and the engine, then retry"),
    Kind.WRITE_ERROR: Rule(6, 5, 900, "check the results folder, then retry"),
    Kind.INTERNAL: Rule(3, 5, 300, "report it with the log"),
}


@dataclass(frozen=True, slots=True)
class Decision:
    """`retry_at` is the time of the next try, or None for quarantine."""

    retry_at: float | None
    remedy: str
    holds: str = ""


def decide(kind: Kind, failures: int, now: float) -> Decision:
    """What follows failure number `failures` (1 is the first) in a row for reasons of this kind, at time `now` in s."""
    rule = RULES[kind]
    if rule.attempts is not None and failures >= rule.attempts:
        return Decision(None, rule.remedy, rule.holds)
    # Bounded exponent: a share that is gone for a month must not overflow.
    pause = min(rule.longest_pause_s, rule.first_pause_s * 2.0 ** min(max(failures, 1) - 1, 32))
    return Decision(now + pause, rule.remedy, rule.holds)


_BY_ERRNO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), Kind.DISK_FULL),
    **dict.fromkeys(
        (
            errno.ESTALE,
            errno.ENOTCONN,
            errno.EHOSTDOWN,
            errno.EHOSTUNREACH,
            errno.ENETDOWN,
            errno.ENETUNREACH,
            errno.ETIMEDOUT,
            errno.ECONNREFUSED,
            errno.ECONNRESET,
            errno.ENODEV,
            errno.ENXIO,
        ),
        Kind.SHARE_GONE,
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM), Kind.PERMISSION),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), Kind.VANISHED),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.EILSEQ), Kind.BAD_NAME),
    **dict.fromkeys((errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.EREMOTEIO), Kind.READ_ERROR),
}

# Sentences of other parts of slidestream, which cross processes as text. The first that occurs decides.
_BY_TEXT: tuple[tuple[str, Kind], ...] = (
    ("nothing is mounted", Kind.SHARE_GONE),
    ("does not exist", Kind.VANISHED),
    ("permission denied", Kind.PERMISSION),
    ("killed the", Kind.CRASH),
    ("stopped the", Kind.CRASH),
)


def kind_of_errno(number: int | None, writing: bool = False) -> Kind:
    """The kind of an OSError; `writing`: it was met while results were written."""
    kind = _BY_ERRNO.get(number or 0)
    if writing and kind is not Kind.DISK_FULL:
        return Kind.WRITE_ERROR
    return kind or Kind.READ_ERROR


def kind_of_text(reason: str) -> Kind:
    """The kind of a reason that is known only as a sentence, as a worker reports it. BAD_SLIDE where nothing else fits."""
    lower = reason.lower()
    writing = "could not be written" in lower
    for number in _BY_ERRNO:
        if os.strerror(number).lower() in lower:
            return kind_of_errno(number, writing)
    if writing:
        return Kind.WRITE_ERROR
    for phrase, kind in _BY_TEXT:
        if phrase in lower:
            return kind
    return Kind.BAD_SLIDE
