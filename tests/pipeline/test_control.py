"""pipeline.control and pipeline.control_command: questions to a run, over a real socket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from pipeline.cli import main
from pipeline.control import MAX_BYTES, Control, Refusal, ask
from pipeline.overrides import ConfigError
from pipeline.rundir import PRIVATE, RunDir

VERBS = "not understood; known: add, refuse, status"


class Server:
    """A control socket with a loop of its own, as the supervisor's is; `out` is the results folder that leads to it."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDir(folder / "run")
        self.run.path.mkdir(mode=0o700)
        self.out = folder / "out"
        (self.out / PRIVATE).mkdir(parents=True)
        (self.out / PRIVATE / "run").write_text(f"{self.run.path}\n")
        self.asked: list[dict[str, Any]] = []
        self.context = zmq.Context()
        handlers = {"add": self.add, "refuse": self.refuse, "status": self.status}
        self.control = Control(self.context, self.run.control, handlers)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def add(self, question: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(question)
        return {"sum": question["a"] + question["b"]}

    def refuse(self, question: dict[str, Any]) -> dict[str, Any]:
        raise Refusal("not today")

    def status(self, question: dict[str, Any]) -> dict[str, Any]:
        return {"lines": ["one", "two"], "run": {"name": "Präparat"}}

    def _serve(self) -> None:
        while not self._over.is_set():
            if self.control.socket.poll(20):
                self.control.answer()

    def raw(self, *frames: bytes, kind: int = zmq.REQ, wait_s: float = 5.0) -> dict[str, Any] | None:
        """What comes back for these bytes, or None."""
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        try:
            socket.connect(self.run.control)
            socket.send_multipart(frames)
            return json.loads(socket.recv()) if socket.poll(wait_s * 1000) else None
        finally:
            socket.close()

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self.control.close()
        self.context.term()


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    served = Server(tmp_path_factory.mktemp("c"))
    yield served
    served.close()


def test_a_question_gets_its_answer(server: Server) -> None:
    """Through the results folder alone, as a person names it."""
    assert ask(server.out, {"do": "add", "a": 2, "b": 3}) == {"ok": True, "sum": 5}
    assert server.asked == [{"do": "add", "a": 2, "b": 3}]


def test_a_refusal_is_a_configuration_error_with_the_reason(server: Server) -> None:
    """One line that names the folder."""
    with pytest.raises(ConfigError, match=f"^{server.out}: not today$"):
        ask(server.out, {"do": "refuse"})


@pytest.mark.parametrize("question", [{"do": "fly"}, {"do": None}, {"do": ["add"]}, {}, {"add": 1}])
def test_an_unknown_verb_is_told_the_known_ones(server: Server, question: dict) -> None:
    """And nothing is done."""
    with pytest.raises(ConfigError, match=VERBS):
        ask(server.out, question)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"do"', b"null", b"3", b"\xff\xfe\x00", b'{"do": "add"', b"[" * 200_000, b"1" * 10_000],
    ids=["empty", "cut", "list", "text", "null", "number", "bytes", "cut object", "nested", "long number"],
)
def test_garbage_is_answered_and_does_no_harm(server: Server, body: bytes) -> None:
    """Whatever it is, the asker hears that it was not understood, and the next one is served."""
    assert server.raw(body) == {"ok": False, "said": VERBS}
    assert ask(server.out, {"do": "add", "a": 1, "b": 1})["sum"] == 2


def test_too_much_is_not_even_read(server: Server) -> None:
    """The line is cut, nobody else notices."""
    assert server.raw(b'{"do": "status", "x": "' + b"x" * MAX_BYTES + b'"}', wait_s=0.5) is None
    assert ask(server.out, {"do": "add", "a": 1, "b": 1})["sum"] == 2


def test_frames_of_another_form_are_dropped(server: Server) -> None:
    """One that speaks ZeroMQ but not this protocol gets no answer and does no harm."""
    assert server.raw(b'{"do": "status"}', kind=zmq.DEALER, wait_s=0.3) is None
    assert server.raw(b"", b'{"do": "status"}', b"more", kind=zmq.DEALER, wait_s=0.3) is None
    assert ask(server.out, {"do": "status"})["ok"]


def test_two_who_ask_at_once_get_each_their_own_answer(server: Server) -> None:
    """Twenty questions from two sides, interleaved."""
    found: dict[int, list[int]] = {0: [], 1: []}

    def asker(number: int) -> None:
        for i in range(20):
            found[number].append(ask(server.out, {"do": "add", "a": 1000 * number, "b": i})["sum"])

    threads = [threading.Thread(target=asker, args=(number,)) for number in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: list(range(20)), 1: list(range(1000, 1020))}


def test_one_who_leaves_without_waiting_is_no_trouble(server: Server) -> None:
    """Its answer is thrown away."""
    for _ in range(5):
        server.raw(b'{"do": "status"}', wait_s=0.0)
    assert ask(server.out, {"do": "status"})["ok"]


def test_no_run_there(tmp_path: Path) -> None:
    """A folder of results in which nothing is under way, or no such folder."""
    for out in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match=f"^{out}: no run is under way there "):
            ask(out, {"do": "status"})


def test_a_run_that_was_killed_with_all_its_processes(tmp_path: Path) -> None:
    """Its file is still there and leads nowhere."""
    (tmp_path / PRIVATE).mkdir()
    (tmp_path / PRIVATE / "run").write_text(f"{tmp_path / 'gone'}\n")
    with pytest.raises(ConfigError, match="no run is under way there; the last one ended without cleaning up"):
        ask(tmp_path, {"do": "status"})


def test_a_run_that_does_not_answer(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its socket is there, but nobody reads it: the asker gives up after its patience and leaves nothing hanging."""
    folder = tmp_path_factory.mktemp("c")
    run = RunDir(folder)
    (folder / PRIVATE).mkdir()
    (folder / PRIVATE / "run").write_text(f"{folder}\n")
    context = zmq.Context()
    control = Control(context, run.control, {})
    started = time.monotonic()
    with pytest.raises(ConfigError, match="its run does not answer within 0.3 s"):
        ask(folder, {"do": "status"}, timeout_s=0.3)
    assert 0.3 <= time.monotonic() - started < 3
    control.close()
    context.term()


class TestCommands:
    """`slidestream scale` and `slidestream status`, by the real command line."""

    @pytest.fixture
    def scaled(self, server: Server) -> Iterator[list[tuple[str, int]]]:
        calls: list[tuple[str, int]] = []

        def scale(question: dict[str, Any]) -> dict[str, Any]:
            calls.append((question["stage"], question["workers"]))
            return {"said": f"{question['stage']}: 1 -> {question['workers']} workers"}

        server.control._handlers["scale"] = scale
        yield calls

    def test_scale_asks_for_each_stage_in_turn(self, server: Server, scaled, capsys) -> None:
        """And prints what was said."""
        assert main(["scale", str(server.out), "reader=12", "inference=2"]) == 0
        assert scaled == [("reader", 12), ("inference", 2)]
        assert capsys.readouterr().out == "reader: 1 -> 12 workers\ninference: 1 -> 2 workers\n"

    @pytest.mark.parametrize("word", ["reader", "reader=", "reader=0", "reader=-1", "reader=x", "batcher=2", "=3", "2"])
    def test_what_is_no_wish_is_a_usage_error(self, server: Server, scaled, word: str, capsys) -> None:
        """Nothing is asked, not even for the stages before it."""
        with pytest.raises(SystemExit) as left:
            main(["scale", str(server.out), "writer=2", word])
        assert left.value.code == 2 and scaled == []
        assert "is not STAGE=N; stages are reader, tissue, inference, writer" in capsys.readouterr().err

    def test_status_in_lines_and_as_json(self, server: Server, capsys) -> None:
        """For a person, and for a program."""
        assert main(["status", str(server.out)]) == 0
        assert capsys.readouterr().out == "one\ntwo\n"
        assert main(["status", "--json", str(server.out)]) == 0
        assert json.loads(capsys.readouterr().out) == {"name": "Präparat"}

    @pytest.mark.parametrize("words", [["status"], ["scale", "reader=2"]])
    def test_without_a_run_the_exit_code_is_2(self, tmp_path: Path, words: list[str], capsys) -> None:
        """One line on standard error."""
        assert main([words[0], str(tmp_path), *words[1:]]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and "no run is under way there" in said.err
