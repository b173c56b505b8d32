"""What a command has read: no file of it is ever written over or removed by the same command.

Files are told apart by their identity on the disk, so that symbolic and hard links, another spelling of the
path and another case of its letters make no difference. A library call keeps no such list: there a program
loads a file and saves over it on purpose.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from ptsave.core.address import Address, Location
from ptsave.errors import RefusedError
from ptsave.storage.system import naming

Identity = tuple[int, int]
"""A file's device and inode."""

_addresses: ContextVar[set[Address] | None] = ContextVar("addresses that were read", default=None)
_files: ContextVar[dict[Identity, Path] | None] = ContextVar("files that were read", default=None)

_is_update: ContextVar[bool] = ContextVar("whether what was read is being updated", default=False)


@contextmanager
def noted() -> Iterator[None]:
    """From here to the end of the block, remember every file that is opened for reading."""
    token, token_of_addresses = _files.set({}), _addresses.set(set())
    try:
        yield
    finally:
        _files.reset(token)
        _addresses.reset(token_of_addresses)


@contextmanager
def may_be_replaced() -> Iterator[None]:
    """In the block, what was read may be written over: the caller means to update its own input.

    Where no open file can be replaced (on Windows), the caller closes it before the new one takes its name.
    """
    token, token_of_addresses = _files.set(None), _addresses.set(None)
    token_of_update = _is_update.set(True)
    try:
        yield
    finally:
        _is_update.reset(token_of_update)
        _files.reset(token)
        _addresses.reset(token_of_addresses)


def note(path: Path, status: os.stat_result) -> None:
    """Remember that the file of `status` is being read as `path`."""
    files = _files.get()
    if files is not None:
        files.setdefault((status.st_dev, status.st_ino), path)


def note_address(address: Address) -> None:
    """Remember that the object at `address` is being read."""
    addresses = _addresses.get()
    if addresses is not None:
        addresses.add(address)


def refuse_input_address(address: Address) -> None:
    """Insist that writing or removing `address` destroys nothing that was read.

    Raises: RefusedError.
    """
    if address in (_addresses.get() or ()):
        raise _is_input(address, str(address))


def is_noted(status: os.stat_result) -> bool:
    """Whether the file of `status` was read."""
    return (status.st_dev, status.st_ino) in (_files.get() or {})


def refuse_input(path: Path, where: str) -> None:
    """Insist that writing or removing `path` destroys nothing that was read.

    Raises: RefusedError naming what was read; `where` is the destination as the user spelled it.
    """
    files = _files.get()
    if not files:
        return
    try:
        status = os.stat(path)
    except OSError:
        return
    read = files.get((status.st_dev, status.st_ino))
    if read is not None:
        raise _is_input(read, where)


def _is_input(read: Location, where: str) -> RefusedError:
    return RefusedError(
        f"the destination is an input, which is never changed: {read}",
        where,
        "name another destination, and move it there when you are content with it",
    )


def is_in_use(path: Path) -> bool:
    """Whether a process has the file open so that it cannot be replaced, and will not close it in time."""
    return not _is_update.get() and naming.is_in_use(path)


def refuse_inputs_in(folder: Path, where: str) -> None:
    """Refuse to write into `folder` when it holds a file that was read: a writer may replace or remove it.

    Raises: RefusedError.
    """
    if _files.get():
        try:
            names = os.listdir(folder)
        except OSError:
            return
        for name in names:
            refuse_input(folder / name, where)
