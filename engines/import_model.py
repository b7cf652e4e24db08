"""Makes a model directory out of what a network comes as: a WSInfer folder, TorchScript, a torch.export program, or ONNX.

The network is exported with a free batch axis and opset 17 or later (or kept as it is, where ONNX cannot express it), folded
and proven like any model (engines.check), and then its probabilities are compared with those of the source itself, run on the
same patches by what it came for, after Pillow's own resizing: a wrong axis, a fixed batch, a lost layer or a wrong preparation
all show there. The directory appears only once everything was right.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from engines.check import prepare, probe_patches, prove
from engines.errors import ModelError, one_line
from engines.fold import EXTERNAL_BYTES, INPUT
from engines.import_onnx import OPSET, Run, fixed_batch, open_onnx, opset_of, save_onnx
from engines.model import CONFIG, GRAPH, SPEC_VERSION, Model, load_model, parse_config
from engines.onnx_engine import open_session
from engines.torch_reference import Answer, torch_reference
from engines.torch_source import (
    ONNX,
    SOURCES,
    TORCHSCRIPT,
    describe_missing,
    find_source,
    image_dtype,
    kind_of,
    load_network,
    load_torch,
    pytorch_source,
    quiet,
    reason,
    runnable,
)

# The exporter of torch.export programs writes opset 18 and converts down from there only with losses.
EXPORTED_OPSET = 18
BATCHES = (1, 3, 8)
# Probabilities. Two runtimes sum in another order: 1e-6 in float32, 1e-3 in float16; a real fault shows in the first digit.
BOUND = 1e-4
HALF_BOUND = 5e-3
_FREE = "export it with a free batch axis: see docs/models.md"
_COLOURS = ((232, 170, 200), (150, 95, 160), (246, 240, 244))


@dataclass(frozen=True, slots=True)
class Imported:
    """A model directory that was made, and how well it does what its source does."""

    model: Model
    kind: str
    opset: int
    """Of model.onnx; 0 where there is none."""
    max_difference: float
    """Largest absolute difference of a probability, over `patches` patches in batches of `batches`."""
    bound: float
    patches: int
    batches: tuple[int, ...]
    source_file: str
    """The PyTorch network's file in the directory, for `engine build --backend aoti`; empty where there is none."""


def import_model(
    source: str | Path,
    out: str | Path,
    *,
    config: str | Path | None = None,
    keys: Mapping[str, Any] | None = None,
    keep_source: bool = True,
    export: bool = True,
    batches: Sequence[int] = BATCHES,
) -> Imported:
    """Makes the model directory `out`, which must not exist (or be empty).

    `source`: a folder with config.json and a network, or a network's file. `config`: the config.json to take instead of
    the folder's own; `keys`: its keys, each of which wins over the file's. `keep_source` copies a PyTorch network into
    the directory. Without `export` that is all there is, for the backend aoti. Raises ModelError, with one line that names
    the file.
    """
    source, out = Path(source), Path(out)
    kind, network, own_config = _find(source)
    if not export and kind == ONNX:
        raise ModelError(network, "is ONNX, which there is no way around", "leave out --no-onnx")
    kept = SOURCES[kind] if kind != ONNX and (keep_source or not export) else ""
    raw, place = _configuration(config or own_config, keys or {}, source)
    checked = parse_config(raw, place)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(out, "exists already", "name a new directory with --out, or remove that one")
    part = out.parent / f".{out.name}.{os.getpid()}.part"
    try:
        part.mkdir(parents=True)
        if raw is not None and not keys:
            shutil.copyfile(place, part / CONFIG)  # unchanged, with the keys that are other tools'
        else:
            (part / CONFIG).write_text(json.dumps(raw, indent=2) + "\n")
        height_width = checked["transform"].resize or (checked["patch_px"],) * 2
        opened, run, half = open_onnx(network) if kind == ONNX else _open_torch(kind, network)
        _check_source(run, _noise(height_width), network)
        if kind == ONNX:
            save_onnx(opened, network, part / GRAPH)
        elif export:
            _export(kind, opened, network, part / GRAPH, height_width)
        if kept:
            shutil.copyfile(network, part / kept)
        bound = HALF_BOUND if half else BOUND
        try:
            model = load_model(part)
            with tempfile.TemporaryDirectory(dir=part, prefix=".") as folder:
                ours = _exported(model, Path(folder)) if export else _as_it_is(model)
                found = _compare(model, ours, run, bound, tuple(batches), network)
        except ModelError as error:
            if kind == ONNX and (fixed := fixed_batch(network)):
                problem = f"has its batch axis fixed at {fixed}, and inside too: {error.problem}"
                raise ModelError(network, problem, _FREE) from error
            raise
        if out.exists():
            out.rmdir()
        part.rename(out)
    except ModelError as error:
        # What is wrong in the unfinished directory is wrong in the one that it was to become.
        raise ModelError(error.path.replace(str(part.resolve()), str(out)), error.problem, error.remedy) from error
    except OSError as error:
        raise ModelError(error.filename or out, f"cannot be written or read ({error.strerror or error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    opset = opset_of(onnx.load(str(out / GRAPH), load_external_data=False)) if export else 0
    return Imported(load_model(out), kind, opset, found, bound, max(batches), tuple(batches), kept)


def realistic_patches(count: int, side: int, seed: int = 11) -> np.ndarray:
    """Patches that look a little like tissue, uint8 (count, side, side, 3): eosin with texture of several scales, dark
    nuclei of a few pixels, and glass; after the three fixed ones of engines.check.
    """
    rng = np.random.default_rng(seed)
    eosin, nuclei, glass = (np.array(colour, np.float64) for colour in _COLOURS)
    rows, columns = np.mgrid[0:side, 0:side]
    patches = [*probe_patches(side)]
    for index in range(len(patches), count):
        texture = np.zeros((side, side))
        for scale in (4, 12, 40):
            cells = rng.normal(size=(side // scale + 2, side // scale + 2))
            texture += np.kron(cells, np.ones((scale, scale)))[:side, :side] * scale**0.5 / 10
        picture = eosin + texture[..., None] * np.array([10.0, 18.0, 12.0])
        for _ in range(int(rng.integers(0, 12)) * (side // 64 + 1)):
            y, x, radius = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(2, 3 + side / 40)
            inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
            picture[inside] = nuclei + rng.normal(0, 12, 3)
        if index % 4 == 0:
            picture[columns > side * 0.6] = glass
        patches.append(np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255).astype(np.uint8))
    return np.stack(patches[:count])


def prepared(model: Model, patches: np.ndarray) -> np.ndarray:
    """Patches as the network's author prepared them, float32 (n, 3, height, width): Pillow's Resize, ToTensor, Normalize."""
    from PIL import Image

    height, width = model.input_hw
    if (height, width) != patches.shape[1:3]:
        resized = [Image.fromarray(patch).resize((width, height), Image.Resampling.BILINEAR) for patch in patches]
        patches = np.stack([np.asarray(image) for image in resized])
    images = patches.astype(np.float32) / np.float32(255)
    images = (images - np.array(model.transform.mean, np.float32)) / np.array(model.transform.std, np.float32)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _find(source: Path) -> tuple[str, Path, Path | None]:
    """(kind, the network's file, config.json beside it or None)."""
    if source.is_dir():
        config = source / CONFIG
        found = find_source(source) or ((ONNX, source / GRAPH) if (source / GRAPH).is_file() else None)
        if found is None or not config.is_file():
            raise ModelError(source, describe_missing(source), "see docs/models.md")
        return kind_of(found[1]), found[1], config
    if not source.is_file():
        raise ModelError(source, "no such file or folder", "give a WSInfer folder, a .pt, .pt2 or .onnx file")
    return kind_of(source), source, None


def _configuration(path: str | Path | None, keys: Mapping[str, Any], source: Path) -> tuple[Any, Path]:
    """(the contents of config.json, what to call it in messages)."""
    if path is None:
        if not keys:
            remedy = "give its keys (--classes, --patch-px, --spacing, ...) or --config-json FILE"
            raise ModelError(source, f"comes without {CONFIG}", remedy)
        return {"spec_version": SPEC_VERSION, **keys}, Path("the options given")
    path = Path(path)
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(path, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ModelError(path, f"is not valid JSON: {one_line(error, 120)}") from error
    return ({**raw, **keys} if isinstance(raw, dict) else raw), path


def _open_torch(kind: str, path: Path) -> tuple[Any, Run, bool]:
    """(the network as load_network gives it, how it is run, whether it computes in float16)."""
    network = load_network(kind, path)
    torch = load_torch()
    dtype = image_dtype(network)
    if dtype not in (torch.float32, torch.float16):
        remedy = "save it in float32 (network.float())"
        raise ModelError(path, f"has weights of {str(dtype).removeprefix('torch.')}", remedy)
    module = runnable(network)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), quiet():
            answer = module(torch.from_numpy(images).to(dtype))
        if not isinstance(answer, torch.Tensor):
            problem = f"gives {type(answer).__name__}, not one tensor of logits"
            raise ModelError(path, problem, "wrap the network so that it returns its logits alone")
        return answer.float().numpy()

    return network, run, dtype == torch.float16


def _export(kind: str, network: Any, path: Path, target: Path, height_width: tuple[int, int]) -> None:
    """Writes model.onnx."""
    torch = load_torch()
    module = runnable(network)
    example = torch.zeros(2, 3, *height_width, dtype=image_dtype(network))
    large = sum(value.nbytes for value in module.state_dict().values()) > EXTERNAL_BYTES
    common: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"]}
    try:
        with quiet(), _unprinted(torch):
            if kind == TORCHSCRIPT:
                axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
                torch.onnx.export(
                    module, (example,), str(target), dynamic_axes=axes, opset_version=OPSET, dynamo=False, **common
                )
            else:
                torch.onnx.export(
                    network, (), str(target), opset_version=EXPORTED_OPSET, dynamo=True, external_data=large,
                    verbose=False, **common,
                )  # fmt: skip
    except ModuleNotFoundError as error:
        remedy = "install slidestream[import]"
        raise ModelError(path, f"wants the package {error.name} to be exported", remedy) from error
    except Exception as error:  # the exporters raise whatever their parts raise
        remedy = "with --no-onnx it becomes a model for the backend aoti alone"
        raise ModelError(path, f"cannot be exported to ONNX: {reason(error)}", remedy) from error


@contextmanager
def _unprinted(torch: Any) -> Iterator[None]:
    """A network that cannot be exported is not printed, operator by operator; PyTorch means to ask first, and does not."""
    name = "_jit_onnx_log"
    before = getattr(torch._C, name, None)
    if before is None:
        yield
        return
    setattr(torch._C, name, lambda *_: None)
    try:
        yield
    finally:
        setattr(torch._C, name, before)


def _noise(height_width: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(2, 3, *height_width)).astype(np.float32)


def _check_source(run: Run, images: np.ndarray, path: Path) -> None:
    """The network runs, on a batch and on another one, and says the same twice."""
    try:
        first, again = run(images), run(images)
        run(images[:1])
    except ModelError:
        raise
    except Exception as error:  # as above
        shape = ", ".join(map(str, images.shape))
        remedy = "look at patch_size_pixels and Resize; a torch.export program needs a dynamic batch axis"
        raise ModelError(
            path, f"does not run on images ({shape}) or on one of them: {reason(error)}", remedy
        ) from error
    if not np.array_equal(first, again):
        problem = "gives two answers to the same images: it was saved in training mode"
        raise ModelError(path, problem, "call network.eval() before saving it")


def _exported(model: Model, folder: Path) -> Answer:
    """The export, which is proven first. `folder`, for the folded graph, must be there as long as the answer is."""
    folded = folder / "folded.onnx"
    prepare(model, folded)
    session = open_session(folded, threads=os.cpu_count() or 1)
    return lambda patches: session.run(None, {INPUT: patches})[0]


def _as_it_is(model: Model) -> Answer:
    """The PyTorch network with our preprocessing, of which a program for an engine can be made."""
    from engines.aoti_graph import folded_program

    answer = torch_reference(model)
    prove(model, answer)
    folded_program(*pytorch_source(model), model, "fp32", 2, "cpu")
    return answer


def _compare(model: Model, ours: Answer, run: Run, bound: float, batches: tuple[int, ...], path: Path) -> float:
    """The largest difference of a probability. Raises ModelError where it is beyond `bound`."""
    patches = realistic_patches(max(batches), model.patch_px)
    worst = 0.0
    for batch in batches:
        rows = patches[:batch]
        expected = _probabilities(run(prepared(model, rows)).astype(np.float64))
        found = ours(rows)
        if expected.shape != found.shape or not np.isfinite(expected).all():
            problem = f"gives {expected.shape} for {batch} patches, the model directory {found.shape}"
            if expected.shape == found.shape:
                problem = "gives NaN or infinity on ordinary patches"
            raise ModelError(path, problem)
        worst = max(worst, float(np.abs(found - expected).max()))
    if worst > bound:
        problem = f"the model directory gives other probabilities: by up to {worst:.2g}, at most {bound:g} is allowed"
        raise ModelError(path, problem, "export it to ONNX yourself and compare: see docs/models.md")
    return worst


def _probabilities(logits: np.ndarray) -> np.ndarray:
    if logits.ndim != 2:
        return logits
    if logits.shape[1] == 1:
        return 1.0 / (1.0 + np.exp(-logits))
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
