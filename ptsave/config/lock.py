"""`ptsave.lock`: what was approved for the checkpoint at each path or address.

    version = 1

    [pins."models/net.pt"]
    digest = "sha256:…"        # SHA-256 of the statement
    signed_by = ["…"]          # the ids of the keys whose signatures were checked, where they were
    statement = "…"            # what `ptsave.sign.statement` says of the tensors and plain data

A lock refuses and never permits: nobody gains by sending one along with a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ptsave.config.model import ConfigPlace, check_keys, expect
from ptsave.config.toml import read_toml
from ptsave.config.write import toml_text
from ptsave.core.address import HUB, Address, Location, located
from ptsave.core.checkpoint import Checkpoint
from ptsave.errors import CorruptError, LimitError
from ptsave.sign.statement import ALGORITHMS, Statement, parse_statement
from ptsave.storage.files import InputFolder, files_of

FILE_NAME = "ptsave.lock"
VERSION = 1
_COMMENT = "What was approved; `ptsave verify PATH --pin` updates it. Keep it under version control."
_AGAIN = "approve it again: ptsave verify PATH --pin"


@dataclass(frozen=True)
class Pin:
    """What was approved for one path or address."""

    statement: Statement
    """About the whole checkpoint."""
    signed_by: Sequence[str] = ()
    """The ids of the keys whose signatures were checked then."""

    @property
    def digest(self) -> str:
        """`sha256:…`, of the statement."""
        return f"sha256:{sha256(self.statement.payload()).hexdigest()}"


@dataclass(frozen=True)
class LockFile:
    """The pins of one `ptsave.lock`."""

    path: Location
    pins: Mapping[str, Pin] = field(default_factory=dict)
    """By path, relative to the lock's folder, or by address."""
    is_named: bool = False
    """Whether the user named it: then it must have a pin of whatever is read."""

    def name_of(self, where: Location) -> str:
        """What the lock calls a path or an address."""
        if isinstance(where, Address):
            return _named(where)
        place = Path(os.path.abspath(where))
        folder = self._folder
        return (place.relative_to(folder) if place.is_relative_to(folder) else place).as_posix()

    def pins_of(self, checkpoint: Checkpoint) -> list[Pin]:
        """Those of a checkpoint, whatever name of it was opened: a link, the folder, or the file in it.

        A file that has none is pinned with the folder that it lies in, by its name or where links lead.
        """
        names = self.names_of(checkpoint)
        if not names:
            files = files_of(checkpoint)
            ends = [Path(os.path.realpath(file)) for file in files if isinstance(file, Path)]
            names = self._names([file.parent for file in (*files, *ends)])
        return [self.pins[name] for name in names]

    def names_of(self, checkpoint: Checkpoint) -> list[str]:
        """Under which names it has a pin of a checkpoint."""
        return self._names(list(_places(checkpoint)))

    def _names(self, places: Sequence[Location]) -> list[str]:
        return [
            name
            for name in self.pins
            if any(_is_same(self._folder, located(name), place) for place in places)
        ]

    @property
    def _folder(self) -> Path:
        """What paths are relative to; for a lock in a store, there are none."""
        return Path("/") if isinstance(self.path, Address) else Path(os.path.abspath(self.path)).parent


def read_lock(path: Location, *, is_named: bool = False) -> LockFile:
    """Read the lock at `path`.

    Raises: MissingFileError; UnreadableError; UsageError for what is no lock, or a pin that was edited.
    """
    place, document = ConfigPlace(str(path)), read_toml(path, "the lock")
    if document.get("version") != VERSION:
        what = f"the lock is of version {document.get('version')!r:.40}"
        raise place.error(what, "upgrade ptsave if a newer one wrote it")
    check_keys(document, ("version", "pins"), place)
    pins = expect(document.get("pins", {}), dict, place / "pins")
    for name in pins:
        located(name)
    return LockFile(path, {name: _pin(pin, place / "pins" / name) for name, pin in pins.items()}, is_named)


def lock_bytes(lock: LockFile) -> bytes:
    """The content of a lock's file; the same pins give the same bytes."""
    pins = {name: _to_toml(lock.pins[name]) for name in sorted(lock.pins)}
    return toml_text({"version": VERSION, "pins": pins}, [_COMMENT]).encode()


def _to_toml(pin: Pin) -> dict[str, Any]:
    signed_by = {"signed_by": list(pin.signed_by)} if pin.signed_by else {}
    return {"digest": pin.digest, **signed_by, "statement": pin.statement.payload().decode()}


def _pin(value: Any, place: ConfigPlace) -> Pin:
    table = expect(value, dict, place)
    check_keys(table, ("digest", "signed_by", "statement"), place)
    digest = expect(table.get("digest"), str, place / "digest")
    payload = expect(table.get("statement"), str, place / "statement").encode()
    signed_by = expect(table.get("signed_by", []), list, place / "signed_by")
    keys = tuple(expect(key, str, place / "signed_by" / i) for i, key in enumerate(signed_by))
    try:
        statement = parse_statement(payload, str(place))
    except (CorruptError, LimitError) as error:
        raise place.error(error.what, _AGAIN) from None
    if statement.algorithm not in ALGORITHMS or statement.only or statement.expires is not None:
        raise place.error("the statement is not one that verify --pin makes", _AGAIN)
    pin = Pin(statement, keys)
    if pin.digest != digest:
        raise place.error("the digest is not that of the statement: the pin was edited", _AGAIN)
    return pin


def _places(checkpoint: Checkpoint) -> Iterator[Location]:
    """Under what names a checkpoint, and the files that it was read from, can be found."""
    yield checkpoint.path
    if checkpoint.named is not None:
        yield checkpoint.named
    yield from (held.path for held in checkpoint.held if isinstance(held, InputFolder))
    yield from files_of(checkpoint)


def _named(address: Address) -> str:
    """An address by the branch that was named. On the Hub that is `main` where none was.

    Source: `huggingface_hub.constants.DEFAULT_REVISION`.
    """
    if address.scheme == HUB:
        address = replace(address, revision=address.branch or address.revision or "main")
    return str(address)


def _is_same(folder: Path, pinned: Location, place: Location) -> bool:
    """Whether two names lead to one thing. `folder`: what `pinned` is relative to."""
    if isinstance(pinned, Address) or isinstance(place, Address):
        return isinstance(pinned, Address) and isinstance(place, Address) and _named(pinned) == _named(place)
    pinned = folder / pinned
    if os.path.abspath(pinned) == os.path.abspath(place):
        return True
    try:
        return os.path.samefile(pinned, place)
    except (OSError, ValueError):  # one of the two is not there, or no name of a file
        return False
