"""pipeline.gpus: which GPUs, with which engines; the engines are real sidecar files of engines.cache."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engines.build import Built
from engines.cache import EngineCache, Entry, record_verification
from engines.census import Census
from engines.gpu import Gpu
from engines.identity import Identity
from engines.model import Model, load_model
from engines.probe import Installed, Probe
from engines.recipe import AOTI_RECIPE
from pipeline import gpus
from pipeline.cli import _parser
from pipeline.config import Config, ConfigError, load_config
from pipeline.engine_build import check_options
from pipeline.gpus import Missing, Placement, choose_gpus, cpu_list, near, place, spread
from slides.discover import Found
from tests.engines.tiny import tiny_model

TRT, AOTI = Installed("tensorrt", "11.4"), Installed("aoti", "2.11.0")
ONE = Gpu("NVIDIA H100", "9.0", "GPU-5f9a-1", 80 << 30, "580.1", "13.0", "0000:1b:00.0")
TWO = Gpu("NVIDIA H100", "9.0", "GPU-5f9b-2", 80 << 30, "580.1", "13.0", "0000:43:00.0")
NEVER = ("aoti", "int8")  # see test_what_cannot_be_built_is_not_advised
SMALL = Gpu("NVIDIA L4", "8.9", "GPU-77aa-3", 24 << 30, "580.1", "13.0", "0000:82:00.0")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


class Shelf:
    """A folder of engines with their real sidecars."""

    def __init__(self, folder: Path, model: Model) -> None:
        self.cache = EngineCache(folder)
        self.model = model

    def add(
        self,
        precision: str = "fp16",
        *,
        gpu: Gpu = ONE,
        flavour: Installed = TRT,
        batch: tuple[int, int, int] = (1, 64, 128),
        patch_px: int = 64,
        speed: float | None = 1000.0,
        passed: bool = True,
        **changes,
    ) -> Entry:
        """An engine built for `gpu` and verified there; `speed` None: not verified."""
        profile = dict(zip(("minimum", "optimum", "maximum"), batch, strict=True))
        identity = Identity(
            **{
                "model": self.model.sha256, "graph": "b" * 64, "precision": precision,
                "recipe": AOTI_RECIPE if flavour.name == "aoti" else "", "calibration": "",
                "classes": 2, "profiles": [{"patch_px": patch_px, **profile}], "options": {},
                "flavour": flavour.name, "flavour_version": flavour.version, "target": str(gpu), **changes,
            }
        )  # fmt: skip
        built = Built(identity.key.encode(), Census({}, {}), (), 1.0)
        entry = self.cache.put(self.model.name, identity, built, gpu)
        return entry if speed is None else self.verify(entry, gpu, speed, passed)

    @staticmethod
    def verify(entry: Entry, gpu: Gpu, speed: float, passed: bool = True) -> Entry:
        reason = "" if passed else "its loss is 3 %"
        return record_verification(entry, gpu, {"passed": passed, "reason": reason, "patches_per_s": speed})


@pytest.fixture
def shelf(tmp_path: Path, model: Model) -> Shelf:
    return Shelf(tmp_path / "engines", model)


def found(*there: Gpu, flavours: tuple[Installed, ...] = (TRT, AOTI), **named) -> Probe:
    return Probe(there or (ONE,), flavours, **named)


def wanting(shelf: Shelf, *sets: str) -> Config:
    given = {"inference.engine": "tensorrt", "inference.engines": str(shelf.cache.folder)}
    given |= dict(text.split("=", 1) for text in sets)
    return load_config(None, [f"{key}={value}" for key, value in given.items()])


def placed(shelf: Shelf, *sets: str, on: Probe | None = None, build: Callable | None = None) -> Placement:
    return place(wanting(shelf, *sets), shelf.model, lambda backends: on or found(), build)


def refused(shelf: Shelf, *sets: str, on: Probe | None = None, build: Callable | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        placed(shelf, *sets, on=on, build=build)
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestWhichGpus:
    """`inference.devices`."""

    def test_all_is_all_in_their_order(self):
        """Every GPU that the probe saw."""
        assert choose_gpus("all", found(ONE, SMALL, TWO)) == [ONE, SMALL, TWO]

    def test_numbers_count_from_zero_and_keep_the_order_given(self):
        """[2, 0] is the third, then the first."""
        assert choose_gpus([2, 0], found(ONE, SMALL, TWO)) == [TWO, ONE]

    def test_a_uuid_may_be_cut_short_while_it_is_one(self):
        """As nvidia-smi's own options take them."""
        assert choose_gpus(["GPU-5f9b", "GPU-77aa-3"], found(ONE, SMALL, TWO)) == [TWO, SMALL]

    def test_a_beginning_of_several_is_refused(self):
        """Rather than one of them being taken by chance; the message lists what there is."""
        with pytest.raises(
            ConfigError, match=r"GPU-5f9: several GPUs begin so; there are 0: NVIDIA H100 GPU-5f9a-1, 1:"
        ):
            choose_gpus(["GPU-5f9"], found(ONE, TWO))

    @pytest.mark.parametrize("device", [2, -1, "GPU-zz", "gpu-5f9a"])
    def test_an_unknown_one_is_refused(self, device: int | str):
        """A negative number is no number from the end."""
        with pytest.raises(ConfigError, match=f"inference.devices: {device}: no such GPU; there are 0:"):
            choose_gpus([device], found(ONE, TWO))

    @pytest.mark.parametrize("devices", [[0, 0], [1, "GPU-5f9b"], ["GPU-5f9a", "GPU-5f9a-1"]])
    def test_named_twice_is_refused(self, devices: list):
        """Also once by number and once by UUID: several processes on one GPU are inference.per_gpu."""
        with pytest.raises(ConfigError, match="this GPU is named twice"):
            choose_gpus(devices, found(ONE, TWO))

    def test_a_gpu_without_uuid_is_not_named_by_an_empty_beginning(self):
        """Nothing is known of its UUID, so none fits."""
        nameless = replace(ONE, uuid="")
        with pytest.raises(ConfigError, match="no such GPU"):
            choose_gpus(["G"], found(nameless))
        assert choose_gpus([0], found(nameless)) == [nameless]

    def test_without_a_gpu_the_message_says_why_and_the_way_out(self):
        """What the probe found out is in it."""
        none = Probe(problem="no GPU can be used: cudaErrorInsufficientDriver")
        with pytest.raises(ConfigError, match="asks for a GPU, but no GPU .*Driver; use inference.engine=onnx"):
            choose_gpus("all", none)

    def test_they_come_from_the_configuration(self, shelf: Shelf):
        """A list in the configuration ends up as the run's devices, each with its number among all."""
        shelf.add()
        devices = placed(shelf, "inference.devices=[GPU-5f9b, 0]", on=found(ONE, SMALL, TWO)).devices
        assert [(device.gpu, device.index) for device in devices] == [(TWO, 2), (ONE, 0)]


class TestVisible:
    """CUDA_VISIBLE_DEVICES of a process that is to see one GPU alone."""

    def test_is_the_uuid(self, shelf: Shelf):
        """Which does not change with the order of GPUs."""
        shelf.add()
        assert placed(shelf).devices[0].visible == ONE.uuid

    def test_without_uuid_it_is_the_number_and_with_the_run_limited_the_outer_one(self, shelf: Shelf, monkeypatch):
        """Number 1 of a run that may see 4 and 7 is 7."""
        shelf.add()
        there = found(SMALL, replace(ONE, uuid=""))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert placed(shelf, "inference.devices=[1]", on=there).devices[0].visible == "1"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        assert placed(shelf, "inference.devices=[1]", on=there).devices[0].visible == "7"

    def test_a_part_of_a_gpu_keeps_the_name_that_it_was_given(self, monkeypatch):
        """CUDA tells the UUID of such a part as if it were a GPU's, which CUDA_VISIBLE_DEVICES would not take."""
        part = replace(ONE, name="NVIDIA H100 80GB HBM3 MIG 1g.10gb")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234, MIG-5678")
        assert [gpus.visible(part, index) for index in (0, 1)] == ["MIG-1234", "MIG-5678"]
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        assert gpus.visible(part, 0) == "0"

    def test_a_part_of_a_gpu_can_be_named_as_it_was(self, monkeypatch):
        """CUDA tells another name of it, which nobody has seen."""
        part = replace(ONE, name="NVIDIA H100 80GB HBM3 MIG 1g.10gb", uuid="GPU-0000")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234,MIG-5678")
        assert choose_gpus(["MIG-12"], Probe((part,))) == [part]
        for wrong in ("MIG-5678", "0", ""):
            with pytest.raises(ConfigError, match="no such GPU"):
                choose_gpus([wrong], Probe((replace(part, uuid=""),)))


class TestWhichEngine:
    """Engines in the folder, for a GPU that is there."""

    def test_the_one_that_fits_is_taken(self, shelf: Shelf):
        """With its batch as the one that suits it, and its precision named in the configuration."""
        entry = shelf.add()
        placement = placed(shelf)
        assert placement.devices[0].plan == entry.plan.absolute() and placement.batch == 64
        assert (placement.config.inference.engine, placement.config.inference.precision) == ("tensorrt", "fp16")
        assert placement.notices == ()
        assert placement.devices[0].to_dict()["engine"] == entry.plan.name

    def test_on_the_cpu_nothing_is_looked_for(self, shelf: Shelf):
        """A run with the engine onnx does not even ask for GPUs."""

        def never(backends):
            raise AssertionError("asked")

        config = wanting(shelf, "inference.engine=onnx")
        assert place(config, shelf.model, never) == Placement(config)

    @pytest.mark.parametrize(
        ("engine", "backends"), [("tensorrt", ("tensorrt",)), ("aoti", ("aoti",)), ("gpu", ("tensorrt", "aoti"))]
    )
    def test_only_the_backends_that_are_wanted_are_asked_for(self, shelf: Shelf, engine: str, backends: tuple):
        """PyTorch need not be loaded for TensorRT, nor the other way round."""
        asked = []

        def probe(wanted):
            asked.append(wanted)
            return Probe(problem="none")

        with pytest.raises(ConfigError):
            place(wanting(shelf, f"inference.engine={engine}"), shelf.model, probe)
        assert asked == [backends]

    def test_none_built(self, shelf: Shelf):
        """The message says where was looked, that there is none, and what to type."""
        text = refused(shelf)
        assert text.startswith(f"{shelf.cache.folder}: no engine of tiny can be used: none has been built; build one: ")

    def test_the_command_has_the_builder_options_of_the_configuration(self, shelf: Shelf):
        """Those that are not the defaults: the engine is to be built as the site wants it."""
        assert "inference.build" not in refused(shelf)
        text = refused(shelf, "inference.build.level=5", "inference.build.timing_iterations=4")
        assert " --set inference.build.level=5 --verify-on " in text and "timing_iterations" not in text

    def test_none_built_while_another_backend_is_not_installed(self, shelf: Shelf):
        """That PyTorch is missing is not why: TensorRT would do."""
        there = found(flavours=(TRT,), reasons={"aoti": "backend aoti wants PyTorch"})
        text = refused(shelf, "inference.engine=gpu", on=there)
        assert "none has been built" in text and "PyTorch" not in text

    def test_no_backend_can_be_loaded(self, shelf: Shelf):
        """Then building would not help, and the message says what would."""
        there = found(flavours=(), reasons={"tensorrt": "TensorRT cannot be loaded (tensorrt: not installed)"})
        assert "TensorRT cannot be loaded" in refused(shelf, on=there)

    def test_engines_of_other_models_are_not_told_of(self, shelf: Shelf):
        """They are nobody's business here."""
        shelf.add(model="c" * 64)
        assert "none has been built" in refused(shelf)

    def test_damaged(self, shelf: Shelf):
        """A plan that was cut short."""
        plan = shelf.add().plan
        plan.write_bytes(plan.read_bytes()[:-1])
        assert f"{plan.name} is damaged: it has 15 bytes, was built with 16" in refused(shelf)

    def test_damaged_sidecar(self, shelf: Shelf):
        """Nothing is known of the engine, and that is said."""
        entry = shelf.add()
        entry.sidecar.write_text("{")
        assert f"{entry.plan.name} its {entry.sidecar.name} is damaged" in refused(shelf)

    def test_another_version_of_the_flavour(self, shelf: Shelf):
        """Both versions are named."""
        shelf.add(flavour=Installed("tensorrt", "10.9"))
        assert "was built by tensorrt 10.9, here is 11.4" in refused(shelf)

    def test_a_flavour_that_is_not_installed(self, shelf: Shelf):
        """tensorrt_rtx's engine where tensorrt is."""
        shelf.add(flavour=Installed("tensorrt_rtx", "1.4"))
        assert "wants tensorrt_rtx, which is not installed" in refused(shelf)

    def test_two_flavours_of_tensorrt_side_by_side(self, shelf: Shelf):
        """Each engine is held against its own flavour."""
        rtx = Installed("tensorrt_rtx", "1.4")
        shelf.add(speed=100.0)
        fast = shelf.add(flavour=rtx, target="8.0 and later", speed=900.0)
        assert placed(shelf, on=found(flavours=(TRT, rtx))).devices[0].plan == fast.plan

    def test_another_gpu(self, shelf: Shelf):
        """Both kinds are named."""
        shelf.add(gpu=SMALL)
        assert "was built for NVIDIA L4 (8.9), here is NVIDIA H100 (9.0)" in refused(shelf)

    def test_never_verified(self, shelf: Shelf):
        """The message names the command that does it."""
        shelf.add(speed=None)
        assert "was never verified there (slidestream engine verify)" in refused(shelf)

    def test_verified_on_another_kind_of_gpu_only(self, shelf: Shelf):
        """An engine for many GPUs is to be found right on each kind."""
        shelf.verify(shelf.add(target="8.0 and later", speed=None), SMALL, 10.0)
        assert "was never verified there" in refused(shelf)

    def test_failed_verification(self, shelf: Shelf):
        """It is never loaded, and why is said."""
        shelf.add(passed=False)
        assert "was found wrong there: its loss is 3 %" in refused(shelf)

    def test_batches_that_are_too_small(self, shelf: Shelf):
        """The configuration wants more rows than the engine takes."""
        shelf.add()
        assert "takes batches of up to 128, batcher.batch is 256" in refused(shelf, "batcher.batch=256")
        assert placed(shelf, "batcher.batch=128").devices

    def test_one_batch_size_alone(self, shelf: Shelf):
        """Such an engine pads every batch to it, the last of a slide too."""
        shelf.add(batch=(128, 128, 128))
        assert placed(shelf).batch == 128
        assert placed(shelf, "batcher.batch=64").devices

    def test_another_patch_size(self, shelf: Shelf):
        """The engine was built for other patches."""
        shelf.add(patch_px=224)
        assert "takes no patches of 64 px" in refused(shelf)

    def test_the_wrong_precision(self, shelf: Shelf):
        """int8 is not taken where fp16 is asked for, although it is faster."""
        shelf.add("int8", speed=9000.0)
        assert re.search(r"tiny-int8\S+ is int8", refused(shelf, "inference.precision=fp16"))
        fp16 = shelf.add("fp16", speed=1.0)
        assert placed(shelf, "inference.precision=fp16").devices[0].plan == fp16.plan

    def test_the_wrong_backend(self, shelf: Shelf):
        """aoti's engine is not taken where tensorrt is asked for, and the other way round."""
        shelf.add(flavour=AOTI, batch=(1, 128, 128))
        assert "is of the backend aoti" in refused(shelf)
        assert placed(shelf, "inference.engine=aoti").config.inference.engine == "aoti"

    def test_of_several_that_fit_the_fastest_is_taken(self, shelf: Shelf):
        """As measured by verification on this kind of GPU."""
        shelf.add(options={"tf32": True}, speed=500.0)
        fast = shelf.add(speed=800.0)
        assert placed(shelf).devices[0].plan == fast.plan

    def test_all_reasons_are_in_the_message_each_once(self, shelf: Shelf):
        """An operator sees why each of them was not good enough; that they are of two precisions is no reason."""
        shelf.add(speed=None)
        shelf.add("int8", passed=False)
        text = refused(shelf, on=found(ONE, TWO))
        assert text.count("never verified") == 1 and text.count("found wrong") == 1
        assert text.count("tiny-fp16") == 1 and text.count("tiny-int8") == 1


class TestAutoPrecision:
    """`inference.precision: auto`."""

    def test_the_fastest_that_was_found_right(self, shelf: Shelf):
        """int8 where it is faster, but never one that failed its verification."""
        shelf.add("fp16", speed=1000.0)
        int8 = shelf.add("int8", speed=1500.0)
        shelf.add("fp32", speed=9000.0, passed=False)
        placement = placed(shelf)
        assert placement.devices[0].plan == int8.plan and placement.config.inference.precision == "int8"

    def test_engines_that_cannot_be_used_do_not_count(self, shelf: Shelf):
        """Neither another backend's speed nor an old version's makes a slower engine of the same precision win."""
        shelf.add("fp16", flavour=AOTI, batch=(1, 128, 128), speed=9000.0)
        shelf.add("fp16", flavour=Installed("tensorrt", "10.9"), speed=8000.0)
        shelf.add("fp16", speed=1000.0)
        int8 = shelf.add("int8", speed=1500.0)
        assert placed(shelf).devices[0].plan == int8.plan

    def test_one_precision_for_all_gpus(self, shelf: Shelf):
        """A probability must not hang on which GPU the patch met: fp16 is there for both, int8 for one alone."""
        shelf.add("int8", gpu=ONE, speed=5000.0)
        one, small = shelf.add("fp16", gpu=ONE), shelf.add("fp16", gpu=SMALL, speed=300.0)
        placement = placed(shelf, on=found(ONE, SMALL))
        assert [device.plan for device in placement.devices] == [one.plan, small.plan]
        assert placement.config.inference.precision == "fp16"

    def test_the_run_as_a_whole_is_to_be_fast(self, shelf: Shelf):
        """Not its first GPU alone."""
        for precision, fast, slow in (("fp16", 1000.0, 900.0), ("int8", 1100.0, 100.0)):
            shelf.add(precision, gpu=ONE, speed=fast)
            shelf.add(precision, gpu=SMALL, speed=slow)
        assert placed(shelf, on=found(ONE, SMALL)).config.inference.precision == "fp16"


class TestBothBackends:
    """`inference.engine: gpu`."""

    @pytest.mark.parametrize(("tensorrt", "aoti", "winner"), [(1000.0, 2000.0, "aoti"), (2000.0, 1000.0, "tensorrt")])
    def test_the_faster_is_taken_and_named(self, shelf: Shelf, tensorrt: float, aoti: float, winner: str):
        """The configuration of the run says which it was, so that results do as well."""
        shelf.add(speed=tensorrt)
        shelf.add(flavour=AOTI, batch=(1, 128, 128), speed=aoti)
        assert placed(shelf, "inference.engine=gpu").config.inference.engine == winner

    def test_aotis_one_batch_is_its_best(self, shelf: Shelf):
        """A package compiled for 96 rows gets slots of 96."""
        shelf.add(flavour=AOTI, batch=(1, 96, 96))
        assert placed(shelf, "inference.engine=aoti").batch == 96
        assert "up to 96, batcher.batch is 128" in refused(shelf, "inference.engine=aoti", "batcher.batch=128")
        assert placed(shelf, "inference.engine=aoti", "batcher.batch=32").devices  # padded

    def test_gpus_of_two_kinds_may_have_a_backend_each(self, shelf: Shelf):
        """Then slots suit the one with the smaller batch, and the name says no more than gpu."""
        shelf.add(gpu=ONE, batch=(1, 64, 128))
        shelf.add(gpu=SMALL, flavour=AOTI, batch=(1, 32, 32))
        placement = placed(shelf, "inference.engine=gpu", on=found(ONE, SMALL))
        assert placement.batch == 32 and placement.config.inference.engine == "gpu"

    def test_a_kind_without_engine_is_refused_by_name(self, shelf: Shelf):
        """The run does not start on some of the GPUs that were asked for."""
        shelf.add(gpu=ONE)
        text = refused(shelf, on=found(ONE, SMALL))
        assert "for NVIDIA L4 (8.9): " in text and "for NVIDIA H100 (9.0): " not in text

    def test_two_gpus_of_a_kind_share_an_engine(self, shelf: Shelf):
        """And are two devices."""
        entry = shelf.add()
        assert [d.plan for d in placed(shelf, on=found(ONE, TWO)).devices] == [entry.plan, entry.plan]


class TestMissing:
    """`inference.missing` and `inference.fallback`."""

    def test_build_is_called_once_and_its_engine_used(self, shelf: Shelf):
        """With the configuration as it was given, but for the GPU that it is to be built on."""
        calls = []

        def build(config: Config) -> None:
            calls.append(config)
            shelf.add()

        assert placed(shelf, "inference.missing=build", build=build).devices
        assert calls == [wanting(shelf, "inference.missing=build", f"inference.devices=[{ONE.uuid}]")]

    def test_each_kind_of_gpu_gets_one_built_on_it(self, shelf: Shelf):
        """Where one kind has an engine already, only the other is built for; two of a kind need one build."""
        calls = []

        def build(config: Config) -> None:
            (where,) = config.inference.devices
            calls.append(where)
            shelf.add(gpu=next(gpu for gpu in (ONE, SMALL) if gpu.uuid == where))

        there = found(ONE, SMALL, TWO)
        assert len(placed(shelf, "inference.missing=build", on=there, build=build).devices) == 3
        assert calls == [ONE.uuid, SMALL.uuid]

    def test_it_is_built_on_the_gpu_that_lacks_one(self, shelf: Shelf, tmp_path: Path, monkeypatch):
        """The real command sees that GPU alone."""
        seen = tmp_path / "seen"
        program = tmp_path / "python"
        program.write_text(f'#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES" > {seen}\n')
        program.chmod(0o755)
        monkeypatch.setattr(gpus.sys, "executable", str(program))
        gpus.build_engine(wanting(shelf, f"inference.devices=[{TWO.uuid}]"), shelf.model, [])
        assert seen.read_text().strip() == TWO.uuid

    def test_a_build_that_gave_nothing_fitting_is_not_tried_again(self, shelf: Shelf):
        """The refusal says what is wrong with what was built."""
        calls = []

        def build(config: Config) -> None:
            calls.append(config)
            shelf.add(passed=False)

        assert "was found wrong there" in refused(shelf, "inference.missing=build", build=build)
        assert len(calls) == 1

    def test_refuse_builds_nothing(self, shelf: Shelf):
        """That is the default: a build takes minutes."""

        def never(config: Config) -> None:
            raise AssertionError("built")

        refused(shelf, build=never)

    def test_no_build_without_a_gpu_or_for_one_that_is_not_there(self, shelf: Shelf):
        """An engine would not help."""

        def never(config: Config) -> None:
            raise AssertionError("built")

        refused(shelf, "inference.missing=build", on=Probe(problem="there is none"), build=never)
        refused(shelf, "inference.missing=build", "inference.devices=[3]", build=never)

    def test_a_build_that_fails_says_so(self, shelf: Shelf, monkeypatch, capfd):
        """The real command line, which ends with an error: no GPU, or no TensorRT, is here."""
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        config = wanting(shelf, "inference.missing=build")
        missing = replace(shelf.model, directory=Path("/nonexistent/model"))
        with pytest.raises(ConfigError, match=r"none could be built \(exit code 2, see above\)"):
            gpus.build_engine(config, missing, [])
        assert "slidestream" in capfd.readouterr().err

    @pytest.mark.parametrize("on", [Probe(problem="there is no GPU"), found()], ids=["no GPU", "no engine"])
    def test_fallback_to_the_cpu_says_so_loudly(self, shelf: Shelf, on: Probe):
        """One notice in capitals with the reason; the configuration becomes that of a run on the CPU."""
        placement = placed(shelf, "inference.fallback=cpu", "inference.precision=int8", on=on)
        assert placement.devices == () and placement.batch is None
        assert (placement.config.inference.engine, placement.config.inference.precision) == ("onnx", "auto")
        (notice,) = placement.notices
        assert notice.startswith("NO GPU IS USED: ") and "\n" not in notice
        assert (on.problem or "none has been built") in notice

    def test_without_onnx_there_is_nothing_to_fall_back_to(self, shelf: Shelf):
        """The reason why there is no GPU is told, before anything is begun."""
        shelf.model = replace(shelf.model, network="torchscript_model.pt")
        with pytest.raises(ConfigError, match="but there is no GPU"):
            placed(shelf, "inference.fallback=cpu", "inference.engine=aoti", on=Probe(problem="there is no GPU"))

    def test_with_missing_and_fallback_the_build_comes_first(self, shelf: Shelf):
        """Falling back is the last resort."""
        both = ("inference.missing=build", "inference.fallback=cpu")
        assert placed(shelf, *both, build=lambda config: shelf.add() and None).devices
        assert issubclass(Missing, ConfigError)


class TestTheCommandInTheMessage:
    """What a person is told to type."""

    @pytest.mark.parametrize(
        ("engine", "precision"),
        [(e, p) for e in ("tensorrt", "aoti", "gpu") for p in ("auto", "fp16", "fp32", "int8") if (e, p) != NEVER],
    )
    def test_it_is_understood_by_the_real_command_line(self, tmp_path: Path, engine: str, precision: str):
        """For every engine and precision, folders with spaces and quotes in their names too; it builds what was missing."""
        folder = tmp_path / "Bob's models"
        folder.mkdir()
        model = load_model(tiny_model(folder / "tiny one"))
        shelf = Shelf(tmp_path / "my engines", model)
        text = refused(shelf, f"inference.engine={engine}", f"inference.precision={precision}")
        program, *words = shlex.split(text.partition("build one: ")[2])
        args = _parser(words).parse_args(words)
        check_options(args)
        assert program == "slidestream" and args.command.__name__ == "build_engine"
        assert Path(args.model) == model.directory and args.folder == shelf.cache.folder
        assert args.backend == {"gpu": "auto"}.get(engine, engine) and args.precision == precision
        assert args.verify_on or args.calibrate  # else the engine would not be verified, and so not be used

    def test_what_cannot_be_built_is_not_advised(self, shelf: Shelf):
        """aoti has no int8: nobody is sent to a command that would be refused."""
        text = refused(shelf, "inference.engine=aoti", "inference.precision=int8")
        assert "the engine aoti computes in fp16 or fp32" in text and "build one" not in text

    def test_the_users_own_folder_needs_no_option(self, model: Model, tmp_path: Path, monkeypatch):
        """Where the configuration names no folder, the command does not either."""
        monkeypatch.setenv("SLIDESTREAM_ENGINES", str(tmp_path / "cache"))
        with pytest.raises(Missing, match=f"^{tmp_path / 'cache'}: ") as caught:
            place(load_config(None, ["inference.engine=tensorrt"]), model, lambda backends: found())
        assert "--engines" not in str(caught.value)


class TestNear:
    """The cores nearest to a GPU."""

    @pytest.fixture
    def devices(self, tmp_path: Path) -> Path:
        """A /sys/bus/pci/devices with two GPUs."""
        for gpu, cores in ((ONE, "0-3,8\n"), (TWO, "4-7\n")):
            (tmp_path / gpu.pci).mkdir()
            (tmp_path / gpu.pci / "local_cpulist").write_text(cores)
        return tmp_path

    def test_are_those_of_its_node_that_are_allowed(self, devices: Path):
        """A container may use only some of them."""
        assert near(ONE, set(range(16)), devices) == "0,1,2,3,8"
        assert near(TWO, {0, 1, 6, 7}, devices) == "6,7"

    def test_limit_nothing_where_all_are_near(self, devices: Path):
        """One node, or a container that lies within one."""
        assert near(ONE, {0, 1, 2}, devices) == ""

    def test_limit_nothing_where_none_may_be_used_or_nothing_is_known(self, devices: Path):
        """Rather a far core than none."""
        assert near(TWO, {0, 1}, devices) == ""
        assert near(SMALL, {0, 1}, devices) == ""
        assert near(replace(ONE, pci=""), {0, 9}, devices) == ""

    @pytest.mark.parametrize(
        ("text", "cores"),
        [("0-3,8", {0, 1, 2, 3, 8}), ("5", {5}), ("", set()), ("0-1,,3", {0, 1, 3}), ("a-b", set()), ("-1", set()),
         ("1,x", set()), ("0x1", set())],
    )  # fmt: skip
    def test_cpu_list(self, text: str, cores: set[int]):
        """The kernel's form, and nothing where it is another."""
        assert cpu_list(text) == cores

    def test_they_go_to_the_device(self, shelf: Shelf, devices: Path, monkeypatch):
        """As a list of numbers."""
        shelf.add()
        monkeypatch.setattr(gpus.os, "sched_getaffinity", lambda pid: set(range(16)))
        monkeypatch.setattr(near, "__defaults__", (None, devices))
        assert placed(shelf).devices[0].cpus == "0,1,2,3,8"


def test_slides_to_verify_on_are_spread():
    """At most so many, from the whole length of the list."""
    slides = [Found(str(i), Path(f"{i}.svs")) for i in range(20)]
    assert [s.id for s in spread(slides, 4)] == ["0", "5", "10", "15"]
    assert spread(slides[:3], 4) == slides[:3]


class TestPatchSizes:
    """A model at another patch size than its own."""

    def at(self, shelf: Shelf, patch_px: int) -> Placement:
        return place(wanting(shelf), shelf.model.at(patch_px), lambda backends: found())

    def test_each_size_has_its_engine(self, shelf: Shelf):
        """The one that takes the size, and not the one of the model's own."""
        own, other = shelf.add(), shelf.add(patch_px=96)
        assert self.at(shelf, 96).devices[0].plan == other.plan.absolute()
        assert self.at(shelf, 64).devices[0].plan == own.plan.absolute()

    def test_without_one_the_command_names_the_size(self, shelf: Shelf):
        """That command can be typed: the command line takes it."""
        shelf.add()
        with pytest.raises(Missing, match="takes no patches of 96 px") as caught:
            self.at(shelf, 96)
        command = str(caught.value).partition("build one: slidestream ")[2]
        args = _parser(["engine"]).parse_args(shlex.split(command))
        assert args.patch == [96] and args.model == str(shelf.model.directory)
        check_options(args)

    def test_the_fastest_at_that_size_is_taken(self, shelf: Shelf):
        """An engine of several sizes has a speed at each; that of the first is the one it goes by elsewhere."""
        profiles = [{"patch_px": px, "minimum": 1, "optimum": 64, "maximum": 64} for px in (64, 96)]
        several = shelf.add(profiles=profiles, speed=None)
        sizes = [{"patch_px": 64, "patches_per_s": 2000.0}, {"patch_px": 96, "patches_per_s": 500.0}]
        record_verification(several, ONE, {"passed": True, "reason": "", "patches_per_s": 2000.0, "sizes": sizes})
        single = shelf.add(patch_px=96, speed=1000.0)
        assert self.at(shelf, 96).devices[0].plan == single.plan.absolute()
        assert self.at(shelf, 64).devices[0].plan == several.plan.absolute()
