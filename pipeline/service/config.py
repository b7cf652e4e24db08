"""The section `service` of the configuration: what is watched, what is done with it, and how patiently."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.section import Section, Text, key
from pipeline.service.outward import Http, ReviewPage, SpoolFolder, WebhookTarget

if TYPE_CHECKING:
    from pipeline.config import Config

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Patterns = Annotated[tuple[Text, ...], Field(max_length=256)]


def absolute(path: str) -> str:
    """A path as the file system has it. ValueError where it is not absolute, or has `..`."""
    if not os.path.isabs(path) or "\0" in path or ".." in path.split("/"):
        raise ValueError("must be an absolute path without ..")
    return os.path.normpath(path)


def within(path: str, folder: str) -> bool:
    """Whether a path is a folder, or lies in it. Both are absolute and without `..`."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


class WatchFolder(Section):
    """One folder that scanners write to."""

    path: Text = Field(description="The folder, an absolute path. Nothing in it is ever changed.")
    urgency: Literal["stat", "routine"] = key("routine", "Class of its slides.")
    routes: Annotated[tuple[Name, ...], Field(min_length=1, max_length=16)] = key(
        ("default",), "What is done with its slides: names from service.routes; each makes results of its own."
    )
    patterns: Patterns = key(
        ("*",), "Only files whose path below the folder fits one of these are slides; * stands for any text, also /."
    )
    ignore: Patterns = key((), "Files and folders whose path below the folder fits one of these are left alone.")
    stat_patterns: Patterns = key(
        (), 'Slides whose path below the folder fits one of these are stat, for example ["*frozen*"].'
    )
    stat_sidecar: Annotated[str, Field(pattern=r"^\.[A-Za-z0-9_.-]{1,31}$")] | None = key(
        ".stat", "A file of the slide's full name and this ending, beside the slide, makes it stat; null: none does."
    )
    recursive: bool = key(True, "Folders within are searched, too.")
    poll_s: float = key(5.0, "Pause between two looks into the folder, in seconds.", ge=0.05, le=3600)
    settle_s: float = key(
        10.0,
        "A slide is taken when its size and time have not changed for so long, in seconds. More than the cache of "
        "attributes of a network share (NFS: acregmax, 60 s) where the scanner writes with pauses.",
        ge=0.1, le=86400,
    )  # fmt: skip
    series_settle_s: float = key(
        60.0, "The same for slides of several files (DICOM, MIRAX, VMS), of which one may come late.", ge=0.1, le=86400
    )
    notify: Literal["auto", "never"] = key(
        "auto",
        "auto: where the file system tells of changes (local disks), they are looked at at once; never: only polls.",
    )
    follow_links: bool = key(
        False, "Symbolic links are followed, also out of the folder; false: they are left alone, with a notice."
    )
    require_mount: bool = key(
        False, "The folder counts as gone while nothing is mounted at it or above it (an unmounted share looks empty)."
    )

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return absolute(value)


class Route(Section):
    """What is done with a slide: a model (or several in one pass), and where the results go."""

    name: Name = Field(description="Its name, as folders give it.")
    model: Text | Annotated[tuple[Text, ...], Field(min_length=1, max_length=16)] | None = key(
        None, "Model directory, or a list of them that answer in one pass; null: that of the configuration."
    )
    patch_px: Annotated[int, Field(ge=1, le=8192)] | Literal["auto"] | None = key(
        None, "As inference.patch_px, for this route; null: that of the configuration."
    )
    sha256: Sha256 | Annotated[tuple[Sha256, ...], Field(min_length=1, max_length=16)] | None = key(
        None,
        "What the model's hash must be (a list for several models, in their order), or nothing is started; null: any. A slide's "
        "summary has it as model.sha256.",
    )
    out: Text = Field(description="Results folder, an absolute path; two routes cannot share one.")
    require_mount: bool = key(
        False,
        "Nothing is written while nothing is mounted at the results folder or above it (it would fill the disk below).",
    )

    @field_validator("out")
    @classmethod
    def _absolute(cls, value: str) -> str:
        return absolute(value)

    @property
    def models(self) -> tuple[str, ...]:
        """The model directories that it names."""
        return () if self.model is None else (self.model,) if isinstance(self.model, str) else self.model

    @property
    def hashes(self) -> tuple[str, ...]:
        """The hashes that it wants, in the order of the models; none where any will do."""
        return () if self.sha256 is None else (self.sha256,) if isinstance(self.sha256, str) else self.sha256

    def over(self, config: Config) -> Config:
        """The configuration that its lane has: with its model and patch size, where it names them."""
        update: dict[str, object] = {} if self.model is None else {"model": self.model}
        if self.patch_px is not None:
            update["inference"] = config.inference.model_copy(update={"patch_px": self.patch_px})
        return config.model_copy(update=update)

    @model_validator(mode="after")
    def _a_hash_each(self) -> Self:
        if self.hashes and len(self.hashes) != max(1, len(self.models)):
            raise ValueError(f"sha256: {len(self.hashes)} hashes for {max(1, len(self.models))} models")
        return self


class Deadlines(Section):
    """Time from the moment a slide is finished by its scanner to its complete result."""

    stat: float | None = key(60.0, "Of stat slides, in seconds; null: none.", ge=1, le=604800)
    routine: float | None = key(None, "Of routine slides, in seconds; null: none.", ge=1, le=604800)


class Retention(Section):
    """Results that are removed when they are old or room is short. The ledger still knows of them. Off by default."""

    days: float | None = key(
        None, "Results are removed so many days after they were finished; null: never.", ge=0.01, le=36500
    )
    free_gb: float | None = key(
        None,
        "While less is free on the disk of a results folder, its oldest results are removed, in GB; null: none are.",
        ge=0.001, le=1_000_000,
    )  # fmt: skip
    journals_days: float = key(
        30.0,
        "Journals of slides that failed or were cancelled are kept so long for another try, in days.",
        ge=0.01,
        le=36500,
    )
    events_days: float = key(
        30.0, "Events that every receiver has are kept so long in the ledger, in days.", ge=0.01, le=36500
    )


class Service(Section):
    """The service that takes slides as they come off the scanner (slidestream serve)."""

    state: Text | None = key(
        None,
        "Folder of the ledger and the log, on a local disk; null: that of systemd (STATE_DIRECTORY), or slidestream in the "
        "user's folder for states.",
    )
    watch: tuple[WatchFolder, ...] = key((), "The folders that are watched.", max_length=64)
    routes: tuple[Route, ...] = key((), "The models and results folders that folders name.", max_length=64)
    deadline_s: Deadlines = Field(Deadlines(), description=Deadlines.__doc__)
    submit_from: tuple[Text, ...] = key(
        (), "Folders, beside those watched, from which slides may be submitted by hand; absolute paths.", max_length=64
    )
    retention: Retention = Field(Retention(), description=Retention.__doc__)
    http: Http = Field(Http(), description=Http.__doc__)
    review: ReviewPage = Field(ReviewPage(), description=ReviewPage.__doc__)
    webhook: WebhookTarget = Field(WebhookTarget(), description=WebhookTarget.__doc__)
    spool: SpoolFolder = Field(SpoolFolder(), description=SpoolFolder.__doc__)
    trials: int = key(2, "Slides that are checked and opened for trial at a time.", ge=1, le=64)
    trial_timeout_s: float = key(60.0, "A trial that takes longer is ended, in seconds.", ge=1, le=3600)
    give_up_s: float = key(
        900.0,
        "A slide that is at rest and still not whole after this time goes into quarantine, in seconds.",
        ge=1, le=604800,
    )  # fmt: skip

    low_disk_gb: float | None = key(
        5.0,
        "With less free on the disk of a results folder, the service is degraded (an event and an alarm), in GB; null: it "
        "is told when the disk is full.",
        ge=0.001, le=1_000_000,
    )  # fmt: skip

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        paths = [folder.path for folder in self.watch]
        for path in paths:
            if any(other != path and within(path, other) for other in paths):
                raise ValueError(f"watch: {path} lies within another watched folder")
        if len(set(paths)) < len(paths):
            raise ValueError("watch: a folder is named twice")
        names = [route.name for route in self.routes]
        if len(set(names)) < len(names):
            raise ValueError("routes: a name is given twice")
        outs = [route.out for route in self.routes]
        if len(set(outs)) < len(outs):
            raise ValueError("routes: two routes write to one results folder")
        for folder in self.watch:
            for name in folder.routes:
                if name not in names:
                    raise ValueError(f"watch: {folder.path} names the route {name}, which service.routes does not have")
        for out in outs:
            if any(within(out, path) for path in paths):
                raise ValueError(f"routes: the results folder {out} lies within a watched folder")
            if any(out != other and within(out, other) for other in outs):
                raise ValueError(f"routes: the results folder {out} lies within another one")
        if self.state is not None and any(within(self.state, path) for path in paths):
            raise ValueError(f"state: {self.state} lies within a watched folder")
        return self

    @field_validator("submit_from")
    @classmethod
    def _absolute_all(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(absolute(path) for path in value)

    @field_validator("state")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return None if value is None else absolute(value)
