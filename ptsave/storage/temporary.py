"""Temporary files: names that say whose they are, and what killed writers leave behind."""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from pathlib import Path

from ptsave.storage import system
from ptsave.storage.reads import is_noted
from ptsave.storage.system import disk, naming, processes
from ptsave.storage.write_errors import errors_of

SUFFIX = ".ptsave-tmp"
"""How the names of temporary files end: `.NAME.PID-RANDOM.ptsave-tmp`."""


def _stem(target: Path) -> str:
    """What the temporary names of `target` begin with; a long name is cut and told apart by a checksum."""
    name = target.name
    room = naming.max_name_bytes(target.parent) - len(f"..{2**32}-12345678{SUFFIX}")
    if len(os.fsencode(name)) > room:
        tag = f"{zlib.crc32(os.fsencode(name)):08x}"
        name = f"{os.fsencode(name)[: room - 9].decode('utf-8', 'ignore')}~{tag}"
    return f".{name}."


def temporary_name(target: Path) -> Path:
    """A fresh name beside `target` that says whose it is."""
    return target.parent / f"{_stem(target)}{os.getpid()}-{os.urandom(4).hex()}{SUFFIX}"


ORPHAN_NAME = re.compile(r"(\d+)-[0-9a-f]{8}" + re.escape(SUFFIX))
"""The end of a temporary name, with the process that made it."""

_TEMPORARY_NAME = re.compile(r"\.(?P<target>.+)\.(?P<pid>\d+)-[0-9a-f]{8}" + re.escape(SUFFIX))


def remove_litter(target: Path) -> None:
    """Remove what killed writers of `target` left beside it. A living writer's file is left alone."""
    stem = _stem(target)
    with errors_of(target):
        names = os.listdir(target.parent)
    for name in names:
        if name.startswith(stem) and (rest := ORPHAN_NAME.fullmatch(name, len(stem))):
            with contextlib.suppress(OSError):  # someone else's, or already gone: not in our way
                _remove_if_orphan(target.parent / name, int(rest[1]))


def temporary_files(folder: Path, target: re.Pattern[str]) -> dict[Path, int]:
    """The temporary files in `folder` of every file whose name `target` fits, each with its writer's process.

    Raises: OSError when the folder cannot be listed.
    """
    found = {}
    for name in os.listdir(folder):
        parts = _TEMPORARY_NAME.fullmatch(name)
        if parts is not None and target.fullmatch(parts["target"]):
            found[folder / name] = int(parts["pid"])
    return found


def remove_litter_of(folder: Path, target: re.Pattern[str]) -> None:
    """Remove what killed writers of every file whose name `target` fits left in `folder`.

    Raises: OSError when the folder cannot be listed.
    """
    for path, pid in temporary_files(folder, target).items():
        with contextlib.suppress(OSError):  # someone else's, or already gone: not in our way
            _remove_if_orphan(path, pid)


def _remove_if_orphan(path: Path, pid: int) -> None:
    if is_noted(os.lstat(path)):
        return  # it is what somebody wants to rescue
    if not system.HAS_FLOCK:
        if processes.is_orphan(pid, os.lstat(path).st_mtime):
            remove_temporary(path)
        return
    # O_NONBLOCK: in a folder that others write to, the name may be a pipe
    fd = os.open(path, os.O_RDONLY | system.O_NOFOLLOW | system.O_NONBLOCK)
    try:
        is_free = disk.lock(fd)
        if is_free or (is_free is None and processes.is_orphan(pid, os.fstat(fd).st_mtime)):
            remove_temporary(path)
    finally:
        os.close(fd)


def remove_temporary(path: Path) -> None:
    """Remove a temporary file, or a temporary folder with the files in it."""
    if not path.is_dir() or path.is_symlink():
        disk.again(os.unlink, path)
        return
    for name in os.listdir(path):
        disk.again(os.unlink, path / name)
    disk.again(os.rmdir, path)


def discard(path: Path) -> None:
    """Remove a folder with the files in it. It loses its name first, so that no reader meets half of it.

    Raises: OSError.
    """
    aside = temporary_name(path)
    disk.again(os.rename, path, aside)
    remove_temporary(aside)


def create(path: Path, mode: int) -> int:
    """A new, empty, locked file. Its lock tells the next writer that this one lives."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | system.O_NOFOLLOW | system.O_PLAIN
    while True:
        fd = os.open(path, flags, mode)
        is_mine = False
        try:
            disk.lock(fd, wait=True)
            is_mine = os.fstat(fd).st_nlink > 0 or system.IS_WINDOWS
        finally:
            if not is_mine:
                os.close(fd)
        if is_mine:
            return fd
        # another writer took it for litter between the open and the lock: again
