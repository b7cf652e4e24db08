"""Where a run keeps its files: the output folder's own corner, and a private directory for sockets.

    OUT/.slidestream/lock                     held (flock) by the run that owns OUT
    OUT/.slidestream/run                      the private directory of the last run, for sweeping up after a kill
    OUT/.slidestream/work/<hash of slide id>  journal, overview and mask of a slide that is not finished
    RUN (mode 0700, below the temporary directory; removed at the end)
    RUN/hub                                   the batcher's socket
    RUN/control                               the supervisor's socket (pipeline.control)
    RUN/settings.json                         the resolved configuration, as the workers read it
    RUN/model-0.onnx, ...                     the models with their preprocessing folded in
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

PRIVATE = ".slidestream"


def work_folder(private: str | Path, slide_id: str) -> Path:
    """The folder of an unfinished slide; hashed, as slide ids hold separators and may be too long for a file name."""
    return Path(private) / "work" / hashlib.sha256(slide_id.encode("utf-8", "surrogateescape")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class RunDir:
    """The private directory of one run."""

    path: Path

    @property
    def hub(self) -> str:
        return f"ipc://{self.path / 'hub'}"

    @property
    def control_path(self) -> Path:
        return self.path / "control"

    @property
    def control(self) -> str:
        return f"ipc://{self.control_path}"

    @property
    def settings(self) -> Path:
        return self.path / "settings.json"

    def folded(self, number: int = 0) -> Path:
        """Of the run's model `number`."""
        return self.path / f"model-{number}.onnx"

    def publish(self, name: str, line: str) -> None:
        """A line for other processes to read, there whole or not at all. OSError."""
        part = self.path / f"{name}.part"
        part.write_text(f"{line}\n")
        part.replace(self.path / name)
