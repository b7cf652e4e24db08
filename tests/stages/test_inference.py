"""stages.inference: its loop, with the real engines.gpu_engine on a GPU of arrays (tests.engines.fake_gpu)."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zmq
from structlog.testing import capture_logs

import stages.inference
from engines import cuda, notices
from engines.errors import EngineError
from engines.gpu_engine import GpuEngine
from pipeline.dispatch.leases import BOOT_SHIFT
from pipeline.link import Link
from pipeline.memory import Layout, SharedSlots, create
from pipeline.rundir import RunDir
from pipeline.wire import Consumed, Hello, Inferred, Refused, Run, Telemetry, Welcome, decode, encode
from pipeline.worker import EXIT_FAULT, Lost, Post
from stages.inference import LAST_WORD_S, TELEMETRY_S, WAIT_S, Inference
from tests.engines.fake_gpu import FakeDevice, FakeNetwork

SIDE, BATCH, SLOTS = 8, 4, 6
LAYOUT = Layout(SLOTS, BATCH, SIDE, 1, 16)
POISON = 255  # a patch that begins with it loses the device
NAN = 254  # ... is answered with NaN


def answer(patches: np.ndarray) -> np.ndarray:
    """Two numbers that hang on every pixel of a patch."""
    mean = patches.reshape(len(patches), -1).mean(axis=1) / 255.0
    out = np.stack([1.0 - mean, mean], axis=1)
    out[patches[:, 0, 0, 0] == NAN] = np.nan
    return out


class FakeLink:
    """The batcher's side: leases wait in `leases`, and what the stage says is in `said` with its time."""

    def __init__(self) -> None:
        self.leases: deque[Any] = deque()
        self.said: list[tuple[float, Any]] = []
        self.waited: list[float] = []
        self.beats = 0
        self.holding = False

    def send(self, message: Any) -> None:
        self.said.append((time.monotonic(), message))

    def beat(self) -> None:
        self.beats += 1

    def receive(self, timeout_s: float) -> Any:
        self.waited.append(timeout_s)
        return self.leases.popleft() if self.leases else None

    def of(self, *kinds: type) -> list[Any]:
        return [message for _, message in self.said if isinstance(message, kinds)]


class Stage:
    """An inference stage, its slots and its GPU."""

    def __init__(self, contexts: int = 1, *, auto: bool = False) -> None:
        self.memory_fd = create(LAYOUT)
        self.slots = SharedSlots(self.memory_fd, LAYOUT)
        self.device = FakeDevice(auto=True)
        self.network = FakeNetwork(self.device, answer, patch_px=SIDE, poison=POISON)
        self.engine = GpuEngine("fake", self.device, self.network, classes=2, patch_px=SIDE, max_batch=BATCH)
        self.engine.attach(self.slots.bytes)
        made = self.engine.contexts(contexts)
        self.device.auto = auto
        self.streams = list(self.device.queues)
        self.link = FakeLink()
        self.loop = Inference(self.link, self.slots, made, self.engine, [2])

    def lease(self, lease: int, slot: int, count: int = BATCH) -> np.ndarray:
        """Grants a lease on a slot of noise; the patches."""
        patches = np.random.default_rng(lease).integers(1, 250, (count, SIDE, SIDE, 3), np.uint8)
        self.slots.patches(slot, count)[:] = patches
        self.link.leases.append(Run(lease, slot, count))
        return patches

    def steps(self, n: int = 1) -> None:
        for _ in range(n):
            self.loop.step(0.0)

    def run(self, *, stream: int = 0, jobs: int) -> None:
        """Lets a stream of the GPU do so many jobs: begin, copy, copied, network, answer, finished."""
        for _ in range(jobs):
            self.device.step(self.streams[stream])

    def busy_streams(self) -> list[int]:
        return [i for i, stream in enumerate(self.streams) if self.device.queues[stream]]


@pytest.fixture
def stage() -> Iterator[type[Stage]]:
    made: list[Stage] = []

    def make(*arguments: Any, **named: Any) -> Stage:
        made.append(Stage(*arguments, **named))
        return made[-1]

    yield make
    for one in made:
        os.close(one.memory_fd)


def test_each_lease_gets_its_own_patches_answers(stage) -> None:
    """Through one context, one after the other, full slots and others."""
    one = stage(auto=True)
    sent = {lease: one.lease(lease, lease % SLOTS, count) for lease, count in ((7, 4), (8, 1), (9, 3), (10, 4))}
    one.steps(12)
    found = one.link.of(Inferred)
    assert [message.lease for message in found] == [7, 8, 9, 10]
    for message in found:
        numbers = np.frombuffer(message.probabilities, "<f4").reshape(-1, 2)
        np.testing.assert_allclose(numbers, answer(sent[message.lease]), rtol=1e-6)
        assert message.failures == []


def test_a_slot_goes_back_when_its_copy_is_done_and_before_its_result(stage) -> None:
    """Exactly then, once, and what a reader fills in afterwards does not show in the answer."""
    one = stage()
    patches = one.lease(5, 2)
    one.steps(3)
    one.run(jobs=2)  # begun, copied; the event behind the copy has not fired
    one.steps(2)
    assert one.link.of(Consumed, Inferred) == []
    one.run(jobs=1)
    one.steps(3)
    assert one.link.of(Consumed, Inferred) == [Consumed(5)]
    one.slots.patches(2, BATCH)[:] = 3
    one.device.settle()
    one.steps(2)
    consumed, inferred = one.link.of(Consumed, Inferred)
    assert (consumed, inferred.lease) == (Consumed(5), 5)
    numbers = np.frombuffer(inferred.probabilities, "<f4").reshape(-1, 2)
    np.testing.assert_allclose(numbers, answer(patches), rtol=1e-6)


def test_holding_says_whether_a_slot_may_still_be_read(stage) -> None:
    """True from the lease to the end of the copy: a new batcher may deal out all slots as soon as it is false."""
    one = stage()
    one.lease(1, 0)
    seen = []
    for jobs in (0, 2, 1, 3):  # in line, copied, told so, finished
        one.run(jobs=jobs)
        one.steps(2)
        seen.append(one.link.holding)
    assert seen == [True, True, False, False]


def test_contexts_overlap(stage) -> None:
    """Three leases are under way at once on streams of their own; a fourth waits in line with the batcher."""
    one = stage(3)
    for lease in range(1, 5):
        one.lease(lease, lease)
    one.steps(6)
    assert one.busy_streams() == [0, 1, 2] and len(one.link.leases) == 1
    assert one.link.of(Inferred) == []


def test_answers_come_in_the_order_in_which_they_are_ready(stage) -> None:
    """A batch that is ready does not wait for an older one, and its context takes the next lease at once."""
    one = stage(2)
    for lease in (1, 2, 3):
        one.lease(lease, lease)
    one.steps(3)
    newer = one.streams.index(next(s for s in one.streams if s != one.loop._busy[0].context._stream))
    one.run(stream=newer, jobs=6)
    one.steps(2)
    assert [message.lease for message in one.link.of(Inferred)] == [2]
    assert newer in one.busy_streams() and not one.link.leases
    one.device.settle()
    one.steps(2)
    assert sorted(message.lease for message in one.link.of(Inferred)) == [1, 2, 3]


def test_all_idle_contexts_are_fed_before_anything_is_waited_for(stage) -> None:
    """With work in line, the first steps only start batches; the socket is waited for only where nothing is under way."""
    one = stage(3)
    for lease in (1, 2, 3):
        one.lease(lease, lease)
    for _ in range(3):
        one.loop.step(0.7)
    assert one.busy_streams() == [0, 1, 2]
    assert one.link.waited == [0.7, 0.0, 0.0]


def test_a_row_that_is_not_a_number_is_listed(stage) -> None:
    """That patch has failed; the others of its batch have their answers."""
    one = stage(auto=True)
    one.lease(1, 0)
    one.slots.patches(0, BATCH)[2, 0, 0, 0] = NAN
    one.steps(2)
    (found,) = one.link.of(Inferred)
    assert found.failures == [[2, "the model's output is not a number"]]
    assert np.isfinite(np.frombuffer(found.probabilities, "<f4").reshape(-1, 2)).all(axis=1).tolist() == [1, 1, 0, 1]


def test_a_batch_that_fails_alone_is_refused_and_the_context_goes_on(stage) -> None:
    """Refused names the reason, the slot is free with it, and the next lease is served by the same context."""
    one = stage()
    one.network.refuse = "the network did not start"
    one.lease(1, 0)
    one.steps(2)
    assert one.link.of(Refused, Inferred, Consumed) == [Refused(1, "the network did not start")]
    one.network.refuse = ""
    patches = one.lease(2, 0)
    one.steps(1)
    one.device.settle()
    one.steps(1)
    (found,) = one.link.of(Inferred)
    np.testing.assert_allclose(np.frombuffer(found.probabilities, "<f4").reshape(-1, 2), answer(patches), rtol=1e-6)


def test_an_error_of_the_device_ends_the_stage(stage) -> None:
    """It comes out of step as fatal, and nothing is said of the leases: they run elsewhere."""
    one = stage(2, auto=True)
    one.lease(1, 0)
    one.lease(2, 1)
    one.slots.patches(1, BATCH)[0, 0, 0, 0] = POISON
    one.device.auto = False
    one.steps(2)
    one.device.settle()
    with pytest.raises(EngineError, match="cudaErrorIllegalAddress") as caught:
        one.steps(2)
    assert caught.value.fatal
    assert 2 not in [message.lease for message in one.link.of(Inferred, Refused)]


def test_a_device_that_is_lost_before_a_batch_ends_the_stage_too(stage) -> None:
    """Nothing hangs: neither the submission nor the wait for a batch that will never be done."""
    one = stage()
    one.device.lose("cudaErrorLaunchFailure")
    one.lease(1, 0)
    with pytest.raises(EngineError, match="cudaErrorLaunchFailure") as caught:
        one.steps(3)
    assert caught.value.fatal


def test_telemetry_about_once_a_second(stage) -> None:
    """Not with every batch, while there is work."""
    one = stage(2)
    one.lease(1, 0)
    one.steps(2)
    slow = one.busy_streams()[0]  # this batch is never done, so the stage is never idle
    began, lease = time.monotonic(), 1
    while time.monotonic() < began + 2.3 * TELEMETRY_S or lease < 50:
        lease += 1
        one.lease(lease, 1)
        one.steps(1)
        one.device.wait(one.streams[1 - slow])
        one.steps(1)
    told = one.link.of(Telemetry)
    assert 2 <= len(told) <= (time.monotonic() - began) / TELEMETRY_S + 2 and len(one.link.of(Inferred)) == lease - 1
    assert told == [decode(encode(message)) for message in told]  # it travels


def test_the_last_word_of_telemetry_has_it_all(stage) -> None:
    """Once work has run out it is told again, and then only once a second."""
    one = stage(auto=True)
    began = time.monotonic()
    for lease in range(1, 6):
        one.lease(lease, 0)
        one.steps(2)
    ended = time.monotonic()
    while time.monotonic() < ended + 1.5 * LAST_WORD_S:
        one.steps(1)
        time.sleep(0.01)
    told = one.link.of(Telemetry)
    assert 2 <= len(told) <= (ended - began) / LAST_WORD_S + 2
    assert (told[-1].values["batches"], told[-1].values["rows"]) == (5, 5 * BATCH)


def test_a_stage_that_idles_between_batches_tells_no_more_often_than_a_last_word_is_due(stage) -> None:
    """However often its work runs out; and it waits no longer for a lease than until its last word is due."""
    one = stage(auto=True)
    began, lease = time.monotonic(), 0
    while time.monotonic() < began + 2.2 * LAST_WORD_S or lease < 12:
        lease += 1
        told = len(one.link.of(Telemetry))
        one.lease(lease, 0)
        one.steps(2)
        one.loop.step(30.0)
        if len(one.link.of(Telemetry)) == told:  # or the last word fell due in these very steps, and none is due now
            assert one.link.waited[-1] == LAST_WORD_S
        time.sleep(0.01)
    assert len(one.link.of(Inferred)) == lease
    assert 2 <= len(one.link.of(Telemetry)) <= (time.monotonic() - began) / LAST_WORD_S + 2
    assert LAST_WORD_S in one.link.waited


def test_no_step_blocks_longer_than_its_bound(stage) -> None:
    """A batch that is never done: each step waits a moment for it and looks round again, and it beats every time."""
    one = stage(2)
    one.lease(1, 0)
    one.steps(2)
    one.link.waited.clear()
    before, longest, steps = one.link.beats, 0.0, 60
    for _ in range(steps):
        began = time.thread_time(), time.monotonic()
        one.loop.step(30.0)
        longest = max(longest, time.monotonic() - began[1])
    assert one.link.beats - before == steps
    assert set(one.link.waited) == {0.0}  # the 30 s are for a stage that has nothing to do
    assert longest < WAIT_S + 0.25  # a quarter of a second for a machine that is busy with other things


def test_a_gpu_that_hangs_is_a_gpu_that_is_lost(stage) -> None:
    """A batch that is never done ends the process after a while, however many others are; one that is late does not."""
    one = stage(2)
    one.loop._hang_s = 0.2
    one.lease(1, 0)
    one.steps(2)
    one.device.settle()
    time.sleep(0.3)  # the process was held up, not the GPU
    one.steps(1)
    assert [message.lease for message in one.link.of(Inferred)] == [1]
    one.lease(2, 0)
    one.steps(2)
    with pytest.raises(EngineError, match=r"not answered in 0\.2 s \(supervisor\.hang_s\)") as caught:
        for _ in range(10_000):
            one.loop.step(30.0)
    assert caught.value.fatal


def test_messages_that_are_no_lease_are_passed_over(stage) -> None:
    """Whatever else the batcher says to all."""
    one = stage(auto=True)
    one.link.leases.append(Consumed(1))
    one.lease(2, 0)
    one.steps(3)
    assert [message.lease for message in one.link.of(Inferred)] == [2]


class Hub:
    """The whole process body, `stages.inference.work`, in a thread, with a real socket in the batcher's place."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, opened: Any) -> None:
        self.stage = Stage(auto=True)
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        run = RunDir(folder)
        self.socket.bind(run.hub)
        settings = {
            "run": "r", "layout": LAYOUT.to_dict(), "models": [{"classes": ["a", "b"], "patch_px": SIDE}],
            "config": {"inference": {"contexts": 3, "credit": 2}, "supervisor": {"beat_s": 0.1, "hang_s": 30.0}},
        }  # fmt: skip
        self.post = Post("inference", "inference-0", 1, run, self.stage.memory_fd, settings)
        monkeypatch.setattr(stages.inference, "open_models", opened)
        monkeypatch.setattr(stages.inference, "Inference", self._loop)
        self.links: list[Link] = []
        self.left: SystemExit | None = None
        self.code: Any = None
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _loop(self, link: Link, *arguments: Any) -> Inference:
        self.links.append(link)
        return Inference(link, *arguments)

    def _work(self) -> None:
        try:
            stages.inference.work(self.post)
        except SystemExit as left:
            self.left, self.code = left, left.code

    def receive(self) -> tuple[bytes, Any]:
        assert self.socket.poll(10_000), "nothing was said"
        name, *frames = self.socket.recv_multipart()
        return name, decode(frames)

    def send(self, name: bytes, message: Any) -> None:
        self.socket.send_multipart([name, *encode(message)])

    def over(self) -> Any:
        self._thread.join(10)
        assert not self._thread.is_alive()
        notices.listen(None)
        assert all(link.closed for link in self.links)  # whatever the end was
        self.socket.close(0)
        self.context.term()
        os.close(self.stage.memory_fd)
        return self.code


def an_engine() -> GpuEngine:
    device = FakeDevice()
    network = FakeNetwork(device, answer, patch_px=SIDE, poison=POISON)
    return GpuEngine("fake", device, network, classes=2, patch_px=SIDE, max_batch=BATCH)


def test_the_process_says_hello_when_warm_and_leaves_with_70_on_a_fatal_error(tmp_path_factory, monkeypatch) -> None:
    """Hello comes with all contexts warm and asks for a lease each and one in line; a CUDA error in flight ends it."""
    engine = an_engine()
    hub = Hub(tmp_path_factory.mktemp("r"), monkeypatch, lambda *arguments, **named: engine)
    name, hello = hub.receive()
    assert isinstance(hello, Hello) and engine.network.is_warm
    assert (hello.credit, hello.detail["contexts"]) == (3 + 2 - 1, 3)
    hub.send(name, Welcome(1))
    hub.stage.slots.patches(0, BATCH)[:] = 9
    hub.stage.slots.patches(1, BATCH)[:] = POISON
    boot = 1 << BOOT_SHIFT
    hub.send(name, Run(boot + 1, 0, BATCH))
    while not isinstance(message := hub.receive()[1], Inferred):
        pass
    assert message.lease == boot + 1
    hub.send(name, Run(boot + 2, 1, BATCH))
    assert hub.over() == EXIT_FAULT and engine.device.lost


def test_nothing_more_is_asked_of_a_gpu_that_is_lost(tmp_path_factory, monkeypatch) -> None:
    """One that has fallen off the bus need not answer any more: the process ends without taking its engine down."""
    engine, asked = an_engine(), []
    hub = Hub(tmp_path_factory.mktemp("r"), monkeypatch, lambda *arguments, **named: engine)
    name, _ = hub.receive()
    monkeypatch.setattr(engine.device, "wait", lambda stream: asked.append(stream))
    hub.send(name, Welcome(1))
    hub.stage.slots.patches(0, BATCH)[:] = POISON
    hub.send(name, Run((1 << BOOT_SHIFT) + 1, 0, BATCH))
    assert hub.over() == EXIT_FAULT
    assert asked == [] and not engine.network.closed and isinstance(hub.left, Lost)


@pytest.mark.parametrize("fatal", [False, True])
def test_an_engine_that_does_not_start_leaves_with_70_and_the_reason(
    tmp_path_factory, monkeypatch, fatal: bool
) -> None:
    """Too little memory on the GPU, or a GPU that is gone: its last word names it, and no hello is said before."""
    words = []
    logger = SimpleNamespace(error=lambda event, **more: words.append(f"{event}: {more['reason']}"))
    monkeypatch.setattr(stages.inference.log, "get_logger", lambda: logger)

    def fails(*arguments: Any, **named: Any) -> Any:
        raise EngineError("contexts=2 would fit", fatal=fatal)

    hub = Hub(tmp_path_factory.mktemp("r"), monkeypatch, fails)
    assert hub.over() == EXIT_FAULT
    assert words == ["engine not started: contexts=2 would fit"]


def test_what_its_engine_says_is_in_its_log(monkeypatch, capsys) -> None:
    """As records of this process, like everything else of it; and nothing on its standard output."""

    def opens(*_: object, **__: object) -> None:
        notices.say("warning", "TensorRT warns", "slow kernel")
        raise EngineError("the GPU is gone")

    monkeypatch.setattr(stages.inference, "open_models", opens)
    slots, begun = SimpleNamespace(bytes=np.zeros(1, np.uint8)), []
    monkeypatch.setattr(cuda, "register_early", begun.append)
    post = SimpleNamespace(
        config={"inference": {}}, settings={"models": [{}], "layout": {"batch": 1}}, slots=lambda: slots,
        plans=[Path("a.engine")], run=SimpleNamespace(folded=lambda number: Path("folded.onnx")),
    )  # fmt: skip
    try:
        with capture_logs() as records, pytest.raises(SystemExit) as left:
            stages.inference.work(post)
    finally:
        notices.listen(None)
    assert left.value.code == EXIT_FAULT
    assert [(r["log_level"], r["event"], r["reason"]) for r in records] == [
        ("warning", "TensorRT warns", "slow kernel"),
        ("error", "engine not started", "the GPU is gone"),
    ]
    assert capsys.readouterr().out == ""
    assert len(begun) == 1 and begun[0] is slots.bytes  # page-locked while it was opened
