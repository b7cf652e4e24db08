"""The folder of built engines: each a plan with a sidecar JSON that says everything about it.

    <model>-<precision>-<patch>px-<key>.engine
    <model>-<precision>-<patch>px-<key>.json         written last: an engine without it does not exist

The sidecar holds `identity` (engines.identity), `plan` (size, sha256), `census`, `build` (seconds, when, GPU, driver, CUDA,
TensorRT's warnings), `calibration`, `choice` (why this precision), and `verifications` by GPU (engines.verify).
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import EngineError, one_line
from engines.files import locked, write_whole
from engines.gpu import Gpu
from engines.identity import FORMAT, Identity, differences, misfits

if TYPE_CHECKING:
    from engines.build import Built
    from engines.flavour import Flavour

PLAN = ".engine"
SIDECAR = ".json"
KERNELS = ".kernels"
_ENVIRONMENT = "SLIDESTREAM_ENGINES"


def default_folder() -> Path:
    """$SLIDESTREAM_ENGINES, or slidestream/engines in the user's cache folder."""
    if folder := os.environ.get(_ENVIRONMENT):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "slidestream" / "engines"


@dataclass(frozen=True, slots=True)
class Entry:
    """An engine on disk. `record` is its sidecar; `problem` says why it cannot be used (else empty)."""

    plan: Path
    identity: Identity | None
    record: dict[str, Any]
    problem: str = ""

    @property
    def sidecar(self) -> Path:
        return self.plan.with_suffix(SIDECAR)

    def kernels(self, gpu: Gpu) -> Path:
        """Where kernels that were compiled for such a GPU, when the engine ran on it, are kept.

        By its name, too: TensorRT for RTX takes none of another GPU's, and two kinds of one compute capability that share a
        folder would each write theirs over the other's at every start.
        """
        kind = re.sub(r"[^\w-]+", "_", gpu.name)
        return self.plan.with_suffix(f".{gpu.compute_capability}-{kind}{KERNELS}")

    def verification(self, gpu: Gpu) -> dict[str, Any] | None:
        """The last verification on GPUs of that kind, or None."""
        return self.record.get("verifications", {}).get(str(gpu))

    def read_plan(self) -> bytes:
        """The plan, compared with its sidecar. Raises EngineError where it is damaged or the sidecar was."""
        if self.problem:
            raise EngineError(f"{self.plan}: {self.problem}; build it again")
        expected = self.record["plan"]
        try:
            data = self.plan.read_bytes()
        except OSError as error:
            raise EngineError(f"{self.plan}: cannot be read ({error.strerror})") from error
        if len(data) != expected["size"]:
            raise EngineError(f"{self.plan}: has {len(data)} bytes, was built with {expected['size']}; build it again")
        found = hashlib.sha256(data).hexdigest()
        if found != expected["sha256"]:
            problem = f"is damaged: its sha256 is {found[:12]}, was built as {expected['sha256'][:12]}"
            raise EngineError(f"{self.plan}: {problem}; build it again")
        return data


def read_entry(path: Path) -> Entry:
    """The engine at `path` (its plan or its sidecar). Never raises: what is wrong is in `problem`."""
    plan, sidecar = path.with_suffix(PLAN), path.with_suffix(SIDECAR)
    record: dict[str, Any] = {}
    try:
        record = json.loads(sidecar.read_bytes())
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError(f"is not a sidecar of format {FORMAT}")
        identity = Identity.from_dict(record.get("identity"))
        size = record["plan"]["size"]
        if not isinstance(record["plan"]["sha256"], str) or not isinstance(record.get("verifications"), dict):
            raise TypeError("lacks the plan's sha256 or its verifications")
    except FileNotFoundError:
        return Entry(plan, None, {}, f"has no {sidecar.name} beside it, so nothing is known of it")
    except OSError as error:
        return Entry(plan, None, {}, f"its {sidecar.name} cannot be read ({error.strerror})")
    except (ValueError, KeyError, TypeError) as error:
        return Entry(plan, None, {}, f"its {sidecar.name} is damaged: {one_line(error, 120)}")
    try:
        found = plan.stat().st_size
    except OSError as error:
        return Entry(plan, identity, record, f"the plan is gone ({error.strerror})")
    if found != size:
        return Entry(plan, identity, record, f"is damaged: it has {found} bytes, was built with {size}")
    return Entry(plan, identity, record)


def check_loadable(entry: Entry, identity: Identity, flavour: Flavour, gpu: Gpu, unverified: bool) -> None:
    """EngineError where an engine must not be loaded here: built for something else, or not found right on such a GPU.

    `unverified` is for verification itself, which has to load what was never verified.
    """
    if problems := misfits(identity, flavour, gpu):
        raise EngineError(f"{entry.plan}: {'; '.join(problems)}; build it again")
    if unverified:
        return
    found = entry.verification(gpu)
    if found is None:
        raise EngineError(f"{entry.plan}: was never verified on {gpu}; run slidestream engine verify")
    if not found.get("passed"):
        raise EngineError(f"{entry.plan}: failed its verification on {gpu}: {found.get('reason')}; build another")


class EngineCache:
    """Engines in one folder. Several processes may use it at once."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def entries(self) -> list[Entry]:
        """All engines, damaged ones too, sorted by name."""
        if not self.folder.is_dir():
            return []
        names = {path.stem for path in self.folder.iterdir() if path.suffix == PLAN}
        return [read_entry(self.folder / (name + PLAN)) for name in sorted(names)]

    def find(self, wanted: Identity) -> Entry | None:
        """The engine of exactly this identity, or None. A damaged one is given too, with its `problem`."""
        return next((entry for entry in self.entries() if entry.identity == wanted), None)

    def why_not(self, wanted: Identity) -> str:
        """Why there is no such engine: what the nearest one of the same model has otherwise."""
        others = [e for e in self.entries() if e.identity and e.identity.precision == wanted.precision]
        same_model = [e for e in others if e.identity and e.identity.model == wanted.model]
        nearest = min(same_model, key=lambda e: len(differences(e.identity, wanted)), default=None)
        if nearest is None or nearest.identity is None:
            return f"no engine of this model in {wanted.precision} has been built"
        return f"{nearest.plan.name}: {'; '.join(differences(nearest.identity, wanted))}"

    def put(
        self, name: str, identity: Identity, built: Built, gpu: Gpu | None, details: dict[str, Any] | None = None
    ) -> Entry:
        """Writes an engine of the model called `name`; an older one of the same identity is replaced.

        `details` goes into the sidecar as it is. Raises OSError.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        sizes = "-".join(f"{profile['patch_px']}px" for profile in identity.profiles)
        stem = re.sub(r"[^\w.-]+", "_", f"{name}-{identity.precision}-{sizes}-{identity.key}")
        plan = self.folder / (stem + PLAN)
        record = {
            "format": FORMAT,
            "key": identity.key,
            "name": name,
            "identity": identity.to_dict(),
            "plan": {"size": len(built.plan), "sha256": hashlib.sha256(built.plan).hexdigest()},
            "census": built.census.to_dict(),
            "build": {
                "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "seconds": round(built.seconds, 3),
                "gpu": gpu.to_dict() if gpu else None,
                "warnings": list(built.warnings),
            },
            **(details or {}),
            "verifications": {},
        }
        with locked(plan):
            for old in (plan.with_suffix(SIDECAR), *self.folder.glob(glob.escape(stem) + f".*{KERNELS}")):
                old.unlink(missing_ok=True)
            write_whole(plan, built.plan)
            _write_json(plan.with_suffix(SIDECAR), record)
        return read_entry(plan)

    def remove(self, entry: Entry) -> int:
        """Deletes an engine and what lies beside it; the bytes freed. Raises OSError."""
        freed = 0
        # The sidecar first: without it there is no engine any more.
        paths = [entry.sidecar, entry.plan, *entry.plan.parent.glob(glob.escape(entry.plan.stem) + ".*")]
        for path in dict.fromkeys(paths):
            if path.exists():
                freed += path.stat().st_size
                path.unlink()
        return freed


def record_verification(entry: Entry, gpu: Gpu, verification: dict[str, Any]) -> Entry:
    """Adds or replaces what verification found on this kind of GPU; the engine as it is now. Raises OSError, EngineError."""
    return _change(entry, lambda record: record["verifications"].update({str(gpu): verification}))


def record_choice(entry: Entry, choice: dict[str, Any]) -> Entry:
    """Keeps why this engine was chosen; the engine as it is now. Raises OSError, EngineError."""
    return _change(entry, lambda record: record.update({"choice": choice}))


def _change(entry: Entry, change: Callable[[dict[str, Any]], None]) -> Entry:
    with locked(entry.plan):
        current = read_entry(entry.plan)
        if current.identity is None:
            raise EngineError(f"{entry.plan}: {current.problem}")
        change(current.record)
        _write_json(entry.sidecar, current.record)
    return read_entry(entry.plan)


def _write_json(path: Path, value: Any) -> None:
    # allow_nan: a NaN in a sidecar would be no JSON; verification writes null for it.
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_whole(path, text.encode())
