"""The control socket of a run: one question, one answer, in JSON, over a socket in a directory that only its user can enter.

    {"do": "scale", "stage": "reader", "workers": 12}   ->   {"ok": true, "said": "reader: 8 -> 12 workers"}
    anything that cannot be done                        ->   {"ok": false, "said": "why not"}

The supervisor answers in its loop; nothing here waits but the one who asks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from pipeline.overrides import ConfigError
from pipeline.rundir import PRIVATE, RunDir

MAX_BYTES = 1 << 20
ANSWER_BYTES = 64 << 20
ANSWER_S = 10.0

Handler = Callable[[dict[str, Any]], "dict[str, Any] | Later"]


class Refusal(Exception):
    """What was asked cannot be done; the text says why, in one line."""


class Later:
    """What a handler gives that cannot answer yet: it calls `answer` or `refuse` when it can, once."""

    def __init__(self) -> None:
        self._reply: dict[str, Any] | None = None
        self._send: Callable[[dict[str, Any]], None] | None = None

    def answer(self, values: dict[str, Any]) -> None:
        self._give({"ok": True, **values})

    def refuse(self, reason: str) -> None:
        self._give({"ok": False, "said": reason})

    def send_with(self, send: Callable[[dict[str, Any]], None]) -> None:
        """How the answer goes out; at once, if it is there."""
        self._send = send
        if self._reply is not None:
            send(self._reply)

    def _give(self, reply: dict[str, Any]) -> None:
        self._reply = reply
        if self._send is not None:
            self._send(reply)


class Control:
    """The answering end. `handlers` by verb: each takes the question and gives the answer, or a Later, or raises Refusal."""

    def __init__(self, context: zmq.Context, address: str, handlers: dict[str, Handler]):
        self._handlers = handlers
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 200)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        self.socket.bind(address)

    def answer(self) -> None:
        """Answers what has been asked; to be called when the socket is readable."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            if len(frames) != 3:
                continue
            reply = self._reply(frames[2])
            if isinstance(reply, Later):
                reply.send_with(partial(self._send, frames[0]))
            else:
                self._send(frames[0], reply)

    def _send(self, peer: bytes, reply: dict[str, Any]) -> None:
        self.socket.send_multipart([peer, b"", json.dumps(reply).encode()], zmq.DONTWAIT)

    def _reply(self, body: bytes) -> dict[str, Any] | Later:
        try:
            question = json.loads(body)
            verb = question["do"]
            handler = self._handlers[verb]
        except (ValueError, TypeError, KeyError, RecursionError):
            return {"ok": False, "said": f"not understood; known: {', '.join(sorted(self._handlers))}"}
        try:
            answer = handler(question)
            return answer if isinstance(answer, Later) else {"ok": True, **answer}
        except Refusal as refusal:
            return {"ok": False, "said": str(refusal)}

    def close(self) -> None:
        self.socket.close()


def ask(out: Path, question: dict[str, Any], timeout_s: float = ANSWER_S) -> dict[str, Any]:
    """The answer of the run that holds `out`. Raises ConfigError: there is none, it does not answer, or it refuses."""
    return ask_at(out / PRIVATE / "run", f"{out}:", "run", question, timeout_s)


def ask_at(pointer: Path, where: str, what: str, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """The answer of the run or service (`what`) whose private directory the file `pointer` names; raises as `ask`."""
    try:
        run = RunDir(Path(pointer.read_text().strip()))
    except OSError as error:
        raise ConfigError(f"{where} no {what} is under way there ({error.strerror})") from error
    if not run.control_path.exists():
        raise ConfigError(f"{where} no {what} is under way there; the last one ended without cleaning up")
    try:
        answer = put(run.control, question, timeout_s)
    except TimeoutError:
        raise ConfigError(f"{where} its {what} does not answer within {timeout_s:g} s") from None
    if not answer.get("ok"):
        raise ConfigError(f"{where} {answer.get('said', 'refused')}")
    return answer


def put(address: str, question: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """The answer from the control socket at `address`, refusals included. TimeoutError where none comes."""
    context = zmq.Context()
    try:
        socket = context.socket(zmq.REQ)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, ANSWER_BYTES)
        socket.connect(address)
        socket.send(json.dumps(question).encode())
        if not socket.poll(timeout_s * 1000):
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        return json.loads(socket.recv())
    finally:
        context.destroy(linger=0)
