"""A plain folder, which is no checkpoint and no run: the checkpoints that lie right in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ptsave.core.address import Location, located, may_be_folder
from ptsave.core.finding import counted
from ptsave.core.names import escape, html_table
from ptsave.errors import AmbiguousError, RefusedError, UnknownFormatError, UnreadableError
from ptsave.formats import FILE_FORMATS, FOLDER_FORMATS, open_checkpoint, run_folder
from ptsave.formats.base import HEAD_BYTES
from ptsave.formats.named import WEIGHT_SUFFIXES, is_named
from ptsave.formats.wrapped.compression import compression_of
from ptsave.formats.wrapped.unwrap import is_archive
from ptsave.storage.files import InputFolder
from ptsave.storage.opening import open_folder

PROTO = b"\x80"
"""How a pickle begins: one that is no checkpoint is opened all the same, to be refused by its name."""
FORMAT = "folder"
"""What `format` says in place of a checkpoint's."""


@dataclass(frozen=True)
class PlainFolder:
    """What is in one, files and folders apart."""

    path: Location
    members: Sequence[Location]
    """What a format recognises by its content, in an archive or a compressed file too, and what is called as
    weights are; sorted by name."""
    others: Sequence[str]
    """The names of all other files, in which nothing is found, and of all other folders, with a slash, which
    nothing looks into."""


@dataclass(frozen=True)
class Member:
    """One checkpoint of a plain folder."""

    path: Location
    format: str = ""
    num_tensors: int = 0
    num_bytes: int = 0
    problem: str = ""
    """Why it cannot be read; empty where it opens."""


@dataclass(frozen=True)
class FolderInspection:
    """What `inspect` says of a plain folder."""

    path: Location
    checkpoints: Sequence[Member]
    others: Sequence[str]

    def __repr__(self) -> str:
        number = counted(len(self.checkpoints), "checkpoint", "checkpoints")
        return f"<inspection of {escape(str(self.path))!r}: folder, {number}>"

    def _repr_html_(self) -> str:
        header = ("name", "format", "tensors", "bytes", "problem")
        rows = (
            (one.path.name, one.format, f"{one.num_tensors:,}", f"{one.num_bytes:,}", one.problem)
            for one in self.checkpoints
        )
        return html_table(repr(self)[1:-1], header, rows, len(self.checkpoints))


def plain_folder(path: Location) -> PlainFolder | None:
    """What is in the folder `path`; None where it is none, is a checkpoint or a run, or holds none."""
    folder = _listed(path)
    return folder if folder is not None and folder.members else None


def _listed(path: Location) -> PlainFolder | None:
    """What is in the folder `path`; None where it is none, or is a checkpoint or a run."""
    if not may_be_folder(path) or run_folder.is_run(path):
        return None
    with open_folder(path) as folder:
        if is_named(folder) or any(known.sniff(folder) for known in FOLDER_FORMATS):
            return None
        folders = set(folder.folders())
        files = [name for name in folder.names if name not in folders]
        found = {name: _checkpoints_of(folder, name) for name in files}
        found |= {name: [path / name] for name in folders if _holds_checkpoint(folder, name)}
    members = tuple(member for name in sorted(found) for member in found[name])
    others = tuple(name for name in files if not found[name])
    others += tuple(f"{name}/" for name in sorted(folders - found.keys()))
    return PlainFolder(path, members, others)


def checkpoints_at(
    paths: Sequence[Location], *, recursive: bool = False
) -> tuple[list[Location], list[str] | None]:
    """`paths`, with the checkpoints in a plain folder in place of it; and the paths of what else lies there,
    None where there is no such folder.

    `recursive`: those in its folders, too, but for links to folders, which may lead in a circle.
    """
    found: list[Location] = []
    others: list[str] | None = None
    for path in paths:
        folder = _listed(path) if recursive else plain_folder(path)
        if folder is None:
            found.append(path)
            continue
        others = others or []
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            found += folder.members
            inner: list[PlainFolder] = []
            for name in folder.others:
                where = folder.path / name.rstrip("/")
                is_folder = recursive and name.endswith("/") and not os.path.islink(str(where))
                below = _listed(where) if is_folder else None
                if below is not None:
                    inner.append(below)
                elif is_folder:
                    found.append(where)
                else:
                    others.append(f"{where}/" if name.endswith("/") else str(where))
            waiting += reversed(inner)
    return found or list(paths), others


def inspect_folder(folder: PlainFolder) -> FolderInspection:
    """Open each checkpoint in it, one at a time; no tensor is read."""
    return FolderInspection(folder.path, tuple(map(_member, folder.members)), folder.others)


def _member(path: Location) -> Member:
    try:
        with open_checkpoint(path) as checkpoint:
            tensors = checkpoint.tensors.values()
            num_bytes = sum({entry.view: entry.num_bytes for entry in tensors}.values())
            return Member(path, checkpoint.format, len(tensors), num_bytes)
    except (UnreadableError, RefusedError) as error:
        return Member(path, problem=error.what)


def _checkpoints_of(folder: InputFolder, name: str) -> list[Location]:
    """The file `name` where it is a checkpoint, or those in it where it is an archive or compressed.

    Where it may be one and cannot be opened, opening it again says why.
    """
    path = folder.path / name
    if name.endswith((*WEIGHT_SUFFIXES, ".pkl", ".pickle")):
        return [path]
    try:
        with folder.open(name, HEAD_BYTES) as file:
            head = file.read_at(0, min(HEAD_BYTES, file.size_bytes))
            if head.startswith(PROTO) or any(known.sniff(file, head) for known in FILE_FORMATS):
                return [path]
    except UnreadableError:
        return [path]
    is_compressed = compression_of(head) is not None
    if is_compressed and folder.is_remote:  # all of it would have to come
        return []
    return _wrapped_in(path) if is_compressed or is_archive(head) else []


def _wrapped_in(path: Location) -> list[Location]:
    """The checkpoints in the archive or the compressed file at `path`, which may be one of its members."""
    try:
        open_checkpoint(path).close()
    except UnknownFormatError:
        return []
    except AmbiguousError as error:
        candidates: Any = error.details.get("candidates", ())  # none of too many members
        return [found for one in candidates for found in _wrapped_in(located(one))]
    except (UnreadableError, RefusedError):
        pass
    return [path]


def _holds_checkpoint(folder: InputFolder, name: str) -> bool:
    try:
        with folder.inside(name) as inner:
            return any(known.sniff(inner) for known in FOLDER_FORMATS)
    except UnreadableError:
        return True
