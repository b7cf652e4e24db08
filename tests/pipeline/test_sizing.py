"""From auto to numbers, on machines that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import Config, load_config, memory_bound, resolve
from pipeline.machine import Machine, available_memory, cpu_quota, detect, memory_limit
from pipeline.sizing import ENGINE_ROWS, MEMORY_SHARE, slots_bytes, slots_wanted

GIB = 1 << 30


def automatic(sections: dict[str, dict[str, object]]) -> list[str]:
    return [
        f"{section}.{name}" for section, values in sections.items() for name, value in values.items() if value == "auto"
    ]


@pytest.mark.parametrize(
    ("cores", "readers", "workers", "threads"),
    [(1, 1, 1, 1), (2, 2, 2, 1), (4, 4, 4, 1), (16, 16, 8, 2), (64, 64, 16, 4)],
)
def test_every_core_can_be_kept_busy_by_either_side(cores: int, readers: int, workers: int, threads: int):
    """With memory enough, readers alone and inference alone can each fill the cores."""
    config = resolve(load_config(), Machine(cores, 512 * GIB))
    assert (config.reader.workers, config.inference.workers, config.inference.threads) == (readers, workers, threads)
    assert config.batcher.slots >= workers * (config.inference.credit + 1) + readers * config.reader.credit + 1


def test_nothing_automatic_is_left():
    """Where a number is due, no "auto" is left after resolving."""
    sized = resolve(load_config(), Machine(4, 16 * GIB)).model_dump()
    assert automatic({name: sized[name] for name in ("reader", "batcher", "inference")}) == []


def test_resolving_twice_changes_nothing():
    """A resolved configuration is its own resolution, whatever the machine."""
    sized = resolve(load_config(), Machine(4, 16 * GIB))
    assert resolve(sized, Machine(64, 512 * GIB)) == sized


@pytest.mark.parametrize(("cores", "memory"), [(2, 2), (16, 4), (64, 8), (64, 32)])
def test_small_memory_gives_fewer_processes(cores: int, memory: int):
    """Automatic numbers shrink until the bound fits into the share of memory that a run may take."""
    config = resolve(load_config(), Machine(cores, memory * GIB), patch_px=224, classes=2)
    assert sum(count for _, count in memory_bound(config, 224, 2)) <= memory * GIB * MEMORY_SHARE
    assert config.reader.workers >= 1 and config.inference.workers >= 1


def test_given_numbers_stay():
    """What the operator wrote is kept, also where memory is short."""
    given = load_config(None, ["reader.workers=7", "inference.workers=3", "batcher.slots=5", "batcher.batch=64"])
    config = resolve(given, Machine(2, 1 * GIB))
    assert (config.reader.workers, config.inference.workers, config.batcher.slots, config.batcher.batch) == (
        7,
        3,
        5,
        64,
    )


@pytest.mark.parametrize(
    ("sets", "workers", "threads"),
    [
        (["inference.workers=1"], 1, 16),
        (["inference.workers=3"], 3, 5),
        (["inference.threads=8"], 2, 8),
        (["inference.threads=99"], 1, 99),
        (["inference.workers=32"], 32, 1),
        (["inference.workers=2", "inference.threads=3"], 2, 3),
    ],
)
def test_processes_and_threads_follow_each_other(sets: list[str], workers: int, threads: int):
    """Of processes and threads the one that is given decides the other."""
    config = resolve(load_config(None, sets), Machine(16, 512 * GIB))
    assert (config.inference.workers, config.inference.threads) == (workers, threads)


def test_tiny_machine_still_gets_an_answer():
    """A machine on which nothing fits gets the smallest numbers, not an endless search."""
    config = resolve(load_config(), Machine(64, 64 << 20))
    assert (config.reader.workers, config.inference.workers, config.batcher.batch) == (1, 1, 4)


def test_bound_counts_slots_as_allocated():
    """The shared memory in the bound is what slots and overviews take: uint8 RGB."""
    config = resolve(
        load_config(None, ["batcher.slots=10", "batcher.batch=8", "slides.overview_px=1024"]), Machine(2, 8 * GIB)
    )
    assert slots_bytes(config, 224) == 10 * 8 * 224 * 224 * 3
    parts = memory_bound(config, 224, 2)
    assert parts[0][1] == slots_bytes(config, 224)
    assert parts[1][1] == 3 * 1024 * 1024 * 3
    assert all(what and count > 0 for what, count in parts)


@pytest.mark.parametrize(
    "text", ["batcher.batch=64", "reader.workers=8", "slides.cache_mb=512", "inference.workers=5", "slides.ahead=64"]
)
def test_bound_grows_with_what_takes_memory(text: str):
    """More of anything that takes memory makes the bound larger."""
    machine = Machine(2, 64 * GIB)
    before = sum(count for _, count in memory_bound(resolve(load_config(), machine), 224, 2))
    after = sum(count for _, count in memory_bound(resolve(load_config(None, [text]), machine), 224, 2))
    assert after > before


def test_rows_that_the_engine_runs_are_those_of_the_engine():
    """The bound counts the activations of as many rows as the engine runs at a time."""
    from engines.onnx_engine import PIECE

    assert ENGINE_ROWS["onnx"] == PIECE


def test_a_large_model_counts_where_it_is_loaded():
    """Every inference process has the model in memory, and so has the supervisor, which proves it."""
    config = resolve(load_config(None, ["inference.workers=3"]), Machine(4, 64 * GIB))
    small, large = (dict(memory_bound(config, 224, 2, size << 20)) for size in (1, 101))
    grown = {what for what in small if large[what] - small[what] >= 300 << 20}
    assert grown == {"supervisor", "inference, 3"}


def test_slots_wanted_is_the_rule_of_credits():
    """Each inference process holds its credits and one more, each reader its credits, and one slot is kept for urgent rows."""
    config = load_config(None, ["inference.credit=2", "reader.credit=3"])
    assert slots_wanted(config, readers=4, workers=2) == 2 * 3 + 4 * 3 + 1


def fake_root(folder: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_control_groups_version_2(tmp_path: Path):
    """The tightest limit between a process's group and the root counts, in version 2."""
    root = fake_root(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pod/box/cpu.max": "max 100000\n",
            "sys/fs/cgroup/pod/memory.max": "max\n",
            "sys/fs/cgroup/pod/box/memory.max": "1073741824\n",
        },
    )
    assert cpu_quota(root) == 1.5
    assert memory_limit(root) == GIB
    machine = detect(root)
    assert (machine.cores, machine.memory_bytes) == (1, GIB)


def test_control_groups_version_1(tmp_path: Path):
    """The same with version 1, whose "no limit" is -1 or an enormous number."""
    root = fake_root(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n1:name=systemd:/x\n",
            "sys/fs/cgroup/cpu/docker/ab/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/docker/ab/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert cpu_quota(root) == 4.0
    assert memory_limit(root) is None
    assert detect(root).memory_bytes == 8 * GIB


def test_no_control_groups(tmp_path: Path):
    """Without control groups, physical memory and affinity are the limits."""
    root = fake_root(tmp_path, {})
    assert (cpu_quota(root), memory_limit(root)) == (None, None)
    assert detect(root).memory_bytes == 8 * GIB
    assert available_memory(root) == 4 * GIB


@pytest.mark.parametrize(
    ("group", "limit", "used", "total"),
    [
        ("0::/box", "memory.max", "memory.current", ""),
        ("4:memory:/box", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ],
)
def test_what_control_groups_leave_is_what_is_free(tmp_path: Path, group: str, limit: str, used: str, total: str):
    """4 GiB are free of the machine; of the group's 2 GiB, 1.5 are used, of which 0.25 are cached files."""
    folder = "sys/fs/cgroup/memory/box" if total else "sys/fs/cgroup/box"
    files = {
        "proc/self/cgroup": f"{group}\n",
        f"{folder}/{limit}": f"{2 * GIB}\n",
        f"{folder}/{used}": f"{3 * GIB // 2}\n",
        f"{folder}/memory.stat": f"anon 5\n{total}inactive_file {GIB // 8}\n{total}active_file {GIB // 8}\n",
    }
    assert available_memory(fake_root(tmp_path, files)) == 3 * GIB // 4


def test_this_machine():
    """The machine of the test has at least a core and some memory."""
    machine = detect()
    assert machine.cores >= 1
    assert machine.memory_bytes > 64 << 20


def test_gpus_have_a_process_each_and_all_cores_read():
    """On GPUs there is one process for each (or inference.per_gpu), with contexts, and slots for all of them."""
    config = resolve(load_config(None, ["inference.engine=tensorrt"]), Machine(16, 512 * GIB), gpus=2, gpu_batch=64)
    assert (config.reader.workers, config.inference.workers, config.inference.threads) == (16, 2, 1)
    assert (config.batcher.batch, config.inference.contexts) == (64, 3)
    assert config.batcher.slots == 2 * (3 + config.inference.credit) + 16 * config.reader.credit + 1
    more = resolve(
        load_config(None, ["inference.engine=tensorrt", "inference.per_gpu=2"]), Machine(16, 512 * GIB), gpus=2
    )
    assert more.inference.workers == 4


def test_the_cpu_computes_in_float32():
    """The precision that a run on the CPU is recorded with is the one it has."""
    assert resolve(load_config(), Machine(4, 16 * GIB)).inference.precision == "fp32"


def test_by_default_a_place_for_overviews_is_kept_for_urgent_slides():
    """Of two, none is (pipeline.dispatch.intake): an urgent slide would wait until two ordinary ones are masked."""
    assert Config().batcher.overview_slots >= 3
