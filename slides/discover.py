"""From the inputs of a run to its slides: which files are slides, what each is called, whether it has changed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from slides.dicom import series_uid
from slides.errors import SlideError, one_line

# What OpenSlide 4 reads (https://openslide.org/formats/). It goes by content: any file may be given by name.
EXTENSIONS = frozenset(
    (".bif", ".czi", ".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu")
)

_SAMPLE = 64 << 10


@dataclass(frozen=True, slots=True)
class Found:
    """A slide to be: `id` names its results and is unique in a run, `path` is what to open."""

    id: str
    path: Path


def discover(inputs: Iterable[str | os.PathLike[str]], skip: Collection[Path] = ()) -> tuple[list[Found], list[str]]:
    """The slides of files and folders, sorted by path, and notices for the user, a line each.

    Folders are searched through all levels for EXTENSIONS, but for hidden names and the folders in `skip` (such as the
    output); links are followed, each folder entered once. A file given by name is taken whatever its extension. Of a
    DICOM series, the files of one series in one folder, the first stands for all; a MIRAX slide is its .mrxs file. A
    file with several names (links, hard links) is one slide, under the first of them, and a notice for each other name
    says where its results are; a copy is a slide of its own.

    An id is the path below the input folder (of a file given by name, its name) without the extension. Where ids of
    several inputs would be equal, all start at the inputs' common folder; where that does not suffice, the extension
    is kept. Bytes that are not UTF-8 are escaped in ids.

    SlideError for an input that does not exist or is neither file nor folder. What cannot be searched is a notice;
    what cannot be opened is found all the same, to fail as a slide.
    """
    notices: list[str] = []
    files: list[str] = []
    folders: list[str] = []
    bases: list[str] = []
    for item in inputs:
        path = os.path.abspath(os.fsdecode(item))
        mode = _mode(path)
        if stat.S_ISDIR(mode):
            folders.append(path)
            bases.append(path)
        elif stat.S_ISREG(mode):
            files.append(path)
            bases.append(os.path.dirname(path))
        else:
            raise SlideError(path, "is neither a file nor a folder")
    walk = _Walk(notices, {identity for path in skip if (identity := _identity(os.fspath(path))) is not None})
    for folder in sorted(set(folders)):
        before = len(walk.files)
        walk.search(folder)
        if len(walk.files) == before:
            notices.append(f"{one_line(folder)}: no slides found")
    paths, others = _once(_series(sorted({*files, *walk.files})))
    names = [os.path.relpath(path, _base(path, bases)) for path in paths]
    if len(set(names)) < len(names):
        common = os.path.commonpath(bases)
        names = [os.path.relpath(path, common) for path in paths]
    ids = _ids(names)
    for other, first in others:
        notices.append(
            f"{one_line(other)}: is the same file as {one_line(paths[first])}; its results are those of {one_line(ids[first])}"
        )
    return [Found(name, _sendable(path, notices)) for name, path in zip(ids, paths, strict=True)], notices


def fingerprint(path: str | os.PathLike[str]) -> str:
    """SHA-256, in hex, of name, size, modification time, and first and last 64 KiB of each file of a slide.

    Those are the file, its `.mpp` sidecar, and the rest of a MIRAX, DICOM or Hamamatsu VMS slide. Enough to see that a
    slide was copied anew or replaced, without reading it through. SlideError where one cannot be read or is no regular file.
    """
    digest = hashlib.sha256()
    main = os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(main).st_mode):  # to open a pipe would wait for its writer, for ever
            raise SlideError(main, "is not a file")
        for name in files(main):
            status = os.stat(name)
            if not stat.S_ISREG(status.st_mode):
                raise SlideError(main, f"{os.path.basename(name)} is not a file")
            label = os.fsencode(os.path.relpath(name, os.path.dirname(main) or "."))
            digest.update(b"%d %s %d %d " % (len(label), label, status.st_size, status.st_mtime_ns))
            with open(name, "rb") as file:
                digest.update(file.read(_SAMPLE))
                if status.st_size > _SAMPLE:
                    file.seek(max(_SAMPLE, status.st_size - _SAMPLE))
                    digest.update(file.read(_SAMPLE))
    except (OSError, ValueError) as error:
        raise SlideError(main, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return digest.hexdigest()


def _base(path: str, bases: list[str]) -> str:
    """The innermost input folder that a path lies in, or the folder of a file given by name."""
    inside = [base for base in bases if path.startswith(os.path.join(base, ""))]
    return max(inside, key=len, default=os.path.dirname(path))


class _Walk:
    """A search through folders that enters each but once, whatever links there are."""

    def __init__(self, notices: list[str], skip: set[tuple[int, int]]) -> None:
        self.files: list[str] = []
        self._notices = notices
        self._skip = skip
        self._entered: dict[tuple[int, int], str] = {}

    def search(self, folder: str) -> None:
        pending = [folder]
        while pending:
            pending.extend(reversed(self._enter(pending.pop())))

    def _enter(self, folder: str) -> list[str]:
        """Note the slides of one folder; gives the folders within."""
        identity = _identity(folder)
        if identity in self._skip:
            return []
        if identity is not None and (first := self._entered.setdefault(identity, folder)) != folder:
            self._notices.append(f"{one_line(folder)}: is the folder {one_line(first)} again, searched once")
            return []
        try:
            with os.scandir(folder) as found:
                entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            self._notices.append(f"{one_line(folder)}: cannot be searched: {error.strerror}")
            return []
        mirax = {entry.name[:-5] for entry in entries if entry.name.lower().endswith(".mrxs")}
        inner = []
        for entry in entries:
            if _is_folder(entry):
                if entry.name not in mirax:
                    inner.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                self.files.append(entry.path)
        return inner


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError as error:
        raise SlideError(path, "does not exist") from error
    except (OSError, ValueError) as error:
        raise SlideError(path, f"cannot be used: {getattr(error, 'strerror', None) or error}") from error


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _series(paths: list[str]) -> Iterator[str]:
    """Leave the first file of each DICOM series of a folder."""
    seen: set[tuple[str, str]] = set()
    for path in paths:
        if path.lower().endswith(".dcm"):
            try:
                uid = series_uid(path)
            except OSError:
                uid = None  # it will fail as a slide
            if uid is not None:
                key = (os.path.dirname(path), uid)
                if key in seen:
                    continue
                seen.add(key)
        yield path


def _once(paths: Iterable[str]) -> tuple[list[str], list[tuple[str, int]]]:
    """The first name of each file; and every other name, with the place of that first one."""
    first: dict[tuple[int, int], int] = {}
    kept: list[str] = []
    others: list[tuple[str, int]] = []
    for path in paths:
        identity = _identity(path)
        if identity is not None and (place := first.setdefault(identity, len(kept))) < len(kept):
            others.append((path, place))
        else:
            kept.append(path)
    return kept, others


def _ids(paths: list[str]) -> list[str]:
    """A name for each relative path, all different: without extension where that suffices."""
    names = [os.path.splitext(path)[0] for path in paths]
    whole: set[int] = set()
    while True:
        places = defaultdict(list)
        for i, name in enumerate(names):
            places[_utf8(name)].append(i)
        clashes = [equal for equal in places.values() if len(equal) > 1]
        if not clashes:
            return [_utf8(name) for name in names]
        for equal in clashes:
            bare = [i for i in equal if i not in whole]
            for i in bare:
                names[i] = paths[i]
            if not bare:  # whole paths can only be equal by the escapes for odd bytes; then any difference will do
                for i in equal:
                    names[i] = f"{names[i]}~{i}"
            whole.update(bare)


def _utf8(text: str) -> str:
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _sendable(path: str, notices: list[str]) -> Path:
    """A path that messages and JSON can hold. Of a name that is not UTF-8 none can: its slide fails, with a notice."""
    clean = _utf8(path)
    if clean != path:
        notices.append(f"{one_line(path)}: its name is not UTF-8, so it cannot be opened; rename it")
    return Path(clean)


def files(path: str | os.PathLike[str]) -> list[str]:
    """The files that make up a slide, the given one first, the others sorted; all lie in its folder or below.

    OSError where a folder or file that must be looked into cannot be read.
    """
    path = os.fspath(path)
    stem, extension = os.path.splitext(path)
    folder = os.path.dirname(path) or "."
    extension = extension.lower()
    more: list[str] = []
    if extension == ".mrxs" and os.path.isdir(stem):
        more = [entry.path for entry in os.scandir(stem) if entry.is_file()]
    elif extension == ".dcm" and (uid := series_uid(path)) is not None:
        names = [entry.path for entry in os.scandir(folder) if entry.name.lower().endswith(".dcm") and entry.is_file()]
        more = [name for name in names if series_uid(name) == uid]
    elif extension in (".vms", ".vmu"):
        more = [e.path for e in os.scandir(folder) if e.is_file() and e.name.startswith(os.path.basename(stem))]
    sidecar = path + ".mpp"
    if os.path.exists(sidecar):
        more.append(sidecar)
    return [path, *sorted(name for name in set(more) if os.path.basename(name) != os.path.basename(path))]
