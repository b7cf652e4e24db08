"""engines.gpu_engine on a GPU of arrays (tests.engines.fake_gpu)."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engines import notices
from engines.errors import EngineError
from engines.gpu_engine import GpuEngine
from tests.engines.fake_gpu import FakeDevice, FakeNetwork

SIDE = 8
BATCH = 4


def answer(patches: np.ndarray) -> np.ndarray:
    """Two numbers that hang on every pixel of a patch."""
    mean = patches.reshape(len(patches), -1).mean(axis=1) / 255.0
    return np.stack([1.0 - mean, mean], axis=1)


def make(device: FakeDevice, *, function=answer, shapes=(), **network) -> GpuEngine:
    net = FakeNetwork(device, function, patch_px=SIDE, **network)
    return GpuEngine("fake", device, net, classes=2, patch_px=SIDE, max_batch=BATCH, shapes=shapes)


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (n, SIDE, SIDE, 3), np.uint8)


def memory(slots: int) -> tuple[np.ndarray, np.ndarray]:
    """(all of it as bytes, the same as slots)."""
    raw = np.zeros(slots * BATCH * SIDE * SIDE * 3, np.uint8)
    return raw, raw.reshape(slots, BATCH, SIDE, SIDE, 3)


def test_a_batch_comes_back_with_its_own_rows_in_order() -> None:
    """A batch smaller than the shape that computes gives exactly its rows' answers."""
    device = FakeDevice()
    context = make(device).contexts(1)[0]
    patches = noise(3)
    context.submit(patches)
    assert context.wait(1.0)
    np.testing.assert_allclose(context.result(), answer(patches), rtol=1e-6)
    assert not context.done() and not context.consumed()


def test_the_slot_is_free_once_it_is_copied_not_when_the_answer_is_there() -> None:
    """After the copy alone has run, consumed is true and done is not; pixels changed from then on change nothing."""
    device = FakeDevice(auto=False)
    engine = make(device)
    raw, slots = memory(1)
    engine.attach(raw)
    context = engine.contexts(1)[0]
    slots[0] = patches = noise(BATCH)
    (stream,) = device.queues
    context.submit(slots[0])
    assert not context.consumed()
    device.step(stream)  # the first event
    device.step(stream)  # the copy
    assert not context.consumed()
    device.step(stream)  # its event
    assert context.consumed() and not context.done()
    slots[0] = 0
    device.settle()
    assert context.done()
    np.testing.assert_allclose(context.result(), answer(patches), rtol=1e-6)


def test_a_registered_slot_is_copied_from_where_it_lies() -> None:
    """Patches within the attached memory need no buffer of the context's own; others do, and are right as well."""
    device = FakeDevice()
    engine = make(device)
    raw, slots = memory(2)
    engine.attach(raw)
    context = engine.contexts(1)[0]
    buffers = len(device.host)
    slots[1] = noise(BATCH, 1)
    context.submit(slots[1])
    np.testing.assert_allclose(context.result(), answer(slots[1]), rtol=1e-6)
    assert len(device.host) == buffers
    elsewhere = noise(BATCH, 2)
    context.submit(elsewhere)
    assert context.consumed()  # it lies in the context's own buffer
    np.testing.assert_allclose(context.result(), answer(elsewhere), rtol=1e-6)
    assert len(device.host) == buffers + 1


def test_memory_that_cannot_be_page_locked_still_works() -> None:
    """Where the system refuses to page-lock, patches are copied twice and the answers are the same; it is told."""
    device = FakeDevice(registers=False)
    engine = make(device)
    raw, slots = memory(1)
    said: list[tuple[str, str, str]] = []
    notices.listen(lambda *words: said.append(words))
    engine.attach(raw)
    notices.listen(None)
    assert said == [("warning", "shared memory is copied twice", "shared memory cannot be page-locked: not supported")]
    slots[0] = noise(BATCH)
    context = engine.contexts(1)[0]
    context.submit(slots[0])
    np.testing.assert_allclose(context.result(), answer(slots[0]), rtol=1e-6)
    engine.close()


def test_contexts_run_side_by_side_on_streams_of_their_own() -> None:
    """The second context's copy runs while the first one's network has not; each gets its own answer."""
    device = FakeDevice(auto=False)
    contexts = make(device).contexts(2)
    batches = [noise(BATCH, 1), noise(BATCH, 2)]
    for context, batch in zip(contexts, batches, strict=True):
        context.submit(batch)
    _, second = device.queues
    while device.queues[second]:
        device.step(second)
    assert contexts[1].done() and not contexts[0].done()
    np.testing.assert_allclose(contexts[1].result(), answer(batches[1]), rtol=1e-6)
    device.settle()
    np.testing.assert_allclose(contexts[0].result(), answer(batches[0]), rtol=1e-6)


def test_every_shape_is_run_before_contexts_are_given_out() -> None:
    """Each context has run each shape, and the network was told, before the worker can say that it is ready."""
    device = FakeDevice()
    engine = make(device, shapes=(1, 2))
    engine.contexts(2)
    network = engine.network
    assert {rows for rows, _ in network.ran} == {1, 2, BATCH}
    assert {stream for _, stream in network.ran} == set(device.queues)
    assert network.is_warm


@pytest.mark.parametrize(("rows", "padded"), [(1, 1), (2, 2), (3, 4), (4, 4)])
def test_a_batch_is_padded_to_the_nearest_warmed_shape(rows: int, padded: int) -> None:
    """Never a shape that was not run before: it would cost a compilation in mid-run."""
    engine = make(FakeDevice(), shapes=(1, 2))
    context = engine.contexts(1)[0]
    engine.network.ran.clear()
    context.submit(noise(rows))
    assert context.result().shape == (rows, 2)
    assert [ran for ran, _ in engine.network.ran] == [padded]


def test_by_default_every_batch_computes_in_one_shape() -> None:
    """So a patch's probability does not hang on how full its batch was."""
    engine = make(FakeDevice())
    context = engine.contexts(1)[0]
    engine.network.ran.clear()
    for rows in (1, 3, 4):
        context.submit(noise(rows))
        context.result()
    assert [ran for ran, _ in engine.network.ran] == [BATCH] * 3


def test_a_row_that_is_not_a_number_is_handed_on_with_the_others() -> None:
    """The caller lists that patch as failed; the other rows keep their answers."""

    def sometimes(patches: np.ndarray) -> np.ndarray:
        out = answer(patches)
        out[patches[:, 0, 0, 0] == 255] = np.nan
        return out

    context = make(FakeDevice(), function=sometimes).contexts(1)[0]
    patches = noise(3) // 2
    patches[1, 0, 0, 0] = 255
    context.submit(patches)
    found = context.result()
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2]], answer(patches[[0, 2]]), rtol=1e-6)


def test_a_batch_that_does_not_start_fails_alone() -> None:
    """A network that refuses to be enqueued fails the batch when its result is asked for, and not the worker."""
    engine = make(FakeDevice())
    context = engine.contexts(1)[0]
    engine.network.refuse = "the network did not start"
    context.submit(noise(2))
    assert context.consumed() and context.done()
    with pytest.raises(EngineError, match="did not start") as caught:
        context.result()
    assert not caught.value.fatal
    engine.network.refuse = ""
    context.submit(noise(2))
    assert context.result().shape == (2, 2)


def test_a_lost_device_is_fatal() -> None:
    """A CUDA error in flight comes out of result as fatal: the worker must end; closing does not raise."""
    engine = make(FakeDevice(), poison=0)
    with pytest.raises(EngineError):  # the zeros of the first warm-up are the poison
        engine.contexts(1)
    device = FakeDevice()
    engine = make(device, poison=7)
    context = engine.contexts(1)[0]
    patches = noise(2)
    patches[0, 0, 0, 0] = 7
    context.submit(patches)
    assert context.wait(1.0)
    with pytest.raises(EngineError, match="cudaErrorIllegalAddress") as caught:
        context.result()
    assert caught.value.fatal
    engine.close()


def test_a_lost_device_is_told_at_submit_too() -> None:
    """A batch that is submitted after the loss does not hang: its result is the fatal error."""
    device = FakeDevice()
    context = make(device).contexts(1)[0]
    device.lose()
    context.submit(noise(1))
    assert context.done() and context.consumed()
    with pytest.raises(EngineError) as caught:
        context.result()
    assert caught.value.fatal


def test_too_little_memory_names_what_is_needed_and_what_would_fit() -> None:
    """Four contexts of 300 MiB do not fit into 1 GiB; three would."""
    engine = make(FakeDevice(memory=1 << 30), context_bytes=300 << 20)
    with pytest.raises(EngineError, match=r"contexts=4 .* need 1200 MiB .* 1024 MiB are free; contexts=3 would fit"):
        engine.contexts(4)


def test_memory_that_runs_out_all_the_same_says_which_context_failed() -> None:
    """What a network needs is not always known ahead."""
    buffers = BATCH * (SIDE * SIDE * 3 + 8)
    engine = make(FakeDevice(memory=buffers + 10), context_bytes=0)
    engine.network._context_bytes = -buffers // 2  # known far too low
    with pytest.raises(EngineError, match=r"context 2 of 2 does not start: out of memory.*try contexts=1"):
        engine.contexts(2)


def test_as_many_contexts_are_proposed_as_have_started() -> None:
    """Not one fewer than were asked for: the third of eight fails as it warms up, so two it is."""
    engine = make(FakeDevice(), context_bytes=0)
    ran = engine.network.ran

    class Full(list):
        def append(self, run: tuple[int, int]) -> None:
            if len({stream for _, stream in (*self, run)}) > 2:
                raise EngineError("out of memory")
            super().append(run)

    engine.network.ran = Full(ran)
    with pytest.raises(EngineError, match="context 3 of 8 does not start: out of memory.*try contexts=2$"):
        engine.contexts(8)


@pytest.mark.parametrize("has", ["nothing", "the input", "the network's own"])
def test_a_context_that_does_not_come_up_keeps_nothing(has: str) -> None:
    """So the next engine that is tried in this process finds the memory free."""
    room = BATCH * SIDE * SIDE * 3
    device = FakeDevice(memory={"nothing": room - 1, "the input": room + 1, "the network's own": 1 << 20}[has])
    engine = make(device, context_bytes=-(room + BATCH * 8))  # so that it is tried at all
    if has == "the network's own":
        engine.network.refuse_execution = "no execution context: out of memory"
    with pytest.raises(EngineError, match="context 1 of 1 does not start.*out of memory"):
        engine.contexts(1)
    assert not device.blocks and not device.host and not device.queues and device.events == 0
    engine.close()
    assert engine.network.closed


@pytest.mark.parametrize(
    "patches",
    [
        np.zeros((1, SIDE, SIDE, 3), np.float32),
        np.zeros((1, SIDE, SIDE + 1, 3), np.uint8),
        np.zeros((BATCH + 1, SIDE, SIDE, 3), np.uint8),
        np.zeros((0, SIDE, SIDE, 3), np.uint8),
        np.zeros((2, SIDE, SIDE, 6), np.uint8)[..., ::2],
    ],
    ids=["dtype", "side", "too many", "none", "not contiguous"],
)
def test_a_batch_that_breaks_the_contract_is_refused(patches: np.ndarray) -> None:
    """The context stays idle and usable."""
    context = make(FakeDevice()).contexts(1)[0]
    with pytest.raises(ValueError, match="patch|batch"):
        context.submit(patches)
    context.submit(noise(1))
    assert context.result().shape == (1, 2)


def test_a_context_takes_one_batch_at_a_time() -> None:
    """submit on a busy context and result of an idle one are bugs of the caller."""
    context = make(FakeDevice(auto=False)).contexts(1)[0]
    with pytest.raises(ValueError, match="idle"):
        context.result()
    context.submit(noise(1))
    with pytest.raises(ValueError, match="busy"):
        context.submit(noise(1))


def test_wait_is_bounded() -> None:
    """A batch that takes longer than the caller has patience for is not done yet, and that is all."""
    device = FakeDevice(auto=False)
    context = make(device).contexts(1)[0]
    context.submit(noise(1))
    assert not context.wait(0.01)
    device.settle()
    assert context.wait(0.01)


def test_close_gives_everything_back() -> None:
    """Device memory, host memory, events, streams, the registration; twice is as good as once."""
    device = FakeDevice()
    engine = make(device)
    engine.attach(memory(1)[0])
    contexts = engine.contexts(2)
    contexts[0].submit(noise(1))
    contexts[0].result()
    engine.close()
    engine.close()
    assert not device.blocks and not device.host and not device.queues and not device.registered
    assert device.events == 0 and device.closed and engine.network.closed
    with pytest.raises(ValueError, match="closed"):
        contexts[0].submit(noise(1))


def test_describe_and_telemetry_are_json() -> None:
    """What ran where, and numbers that grow."""
    device = FakeDevice()
    engine = make(device)
    context = engine.contexts(1)[0]
    for rows in (1, 4):
        context.submit(noise(rows))
        context.result()
    said = engine.describe()
    assert {"engine", "version", "provider", "precision", "threads", "max_batch"} <= set(said)
    assert said["provider"] == "Test GPU"
    numbers = engine.telemetry()
    assert (numbers["batches"], numbers["rows"]) == (2, 5)
    assert numbers["batch_ms_p99"] >= numbers["batch_ms_p50"] > 0
    # No NVML here, which would tell it by process: what is in use on the whole GPU.
    assert numbers["gpu_mib"] == (device.gpu.memory_bytes - device.free_bytes()) >> 20
    json.dumps([said, numbers])
