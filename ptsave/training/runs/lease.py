"""The lock of a run's folder in a store: an object with conditions, which its holder renews.

It is created under the condition that there is none, and renewed, taken over and removed under the condition
that it is still the version that was seen, so of any number of trainings one has it. No two clocks are
compared: who finds the lease watches its version, and takes it over when that has not changed for the time
that the lease itself says, as its own clock measures. What was killed on this machine is known to be gone
at once. A holder renews before it writes and again right before a checkpoint takes its name, so one that was
asleep for too long hears that it has lost the lease, and the other's run stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from dataclasses import asdict
from functools import partial

from isal.isal_zlib import crc32

from ptsave.core.address import Address
from ptsave.errors import MissingFileError, PtsaveError, UnreadableError
from ptsave.storage.remote.file import RemoteFile
from ptsave.storage.remote.store import NoAccessError, Version, store_of
from ptsave.storage.upload.store import Conflict, Found, Label, UploadStore, as_write_error, asked
from ptsave.training.runs.lock import MAX_BYTES, NAME, Holder, Lock, is_mine, refused

LEASE_SECONDS = 60.0
"""After what time without renewal another training may take a lease over."""
RENEW_SECONDS = 15.0
"""How often a lease is renewed."""
FRESH_SECONDS = 1.0
"""How long a renewal need not be repeated: stores slow down who writes one object more often."""
POLL_SECONDS = 1.0
"""How often one that waits looks whether a lease was renewed."""
MAX_LEASE_SECONDS = 3600.0
"""The longest time that a lease is believed to last."""
BRIEFLY_SECONDS = 20.0
"""How long to try to let go of a lease, which ends by itself as well."""

_watched: dict[Address, tuple[Version, float]] = {}
"""What was last seen of other trainings' leases, and since when, by the clock of this process."""
_left: set[str] = set()
"""The tokens of leases that this process has let go of, which it may have failed to remove."""


class StoreLease(Lock):
    """The lease of one folder in a store."""

    folder: Address

    def __init__(self, folder: Address, store: UploadStore) -> None:
        """Take the lease, which may mean to wait until another one has ended; use `take`.

        Raises: RefusedError naming the holder; WriteError.
        """
        super().__init__(folder)
        self.address = folder / NAME
        self._store = store
        self._label = Label()
        self._holder = Holder.here(self._label.mark)
        self._num_tries = 0
        self._renewed = 0.0, 0.0
        self._version: Version | None = None
        """Of the object, as we wrote it."""
        self._first: Version | None = None
        """Of another's lease, as it was when we began to wait for its end."""
        self._turn = threading.Lock()
        while not self._try():
            time.sleep(POLL_SECONDS)
        _watched.pop(self.address, None)
        self._keep_renewing(RENEW_SECONDS)

    def _try(self) -> bool:
        """Take the lease if it is free; False where it may become so. Raises: RefusedError; WriteError."""
        found = _found(self.address)
        if found is None:
            return self._put(None)
        version, holder, seconds = found
        is_left = holder.lives is False or holder.token in _left
        if is_left or time.monotonic() - _watch(self.address, version) > seconds:
            return self._put(version)
        self._first = self._first or version
        if holder.lives or not self._first.is_same(version):
            raise refused(self.folder, holder)
        return False

    def _put(self, seen: Version | None, seconds: float | None = None) -> bool:
        """Write the object in place of the version that was seen; False where it is another one by now.

        Raises: WriteError, after `seconds` at most.
        """
        while True:
            began = time.monotonic(), time.time()
            self._num_tries += 1  # so that no two versions have the same bytes, and the same ETag
            said = asdict(self._holder) | {"lease_seconds": LEASE_SECONDS, "renewals": self._num_tries}
            data = bytearray(json.dumps(said).encode() + b"\n")
            put = partial(self._store.put, self.address, data, crc32(data), self._label)
            condition = None if seen is None else Found(seen)
            try:
                self._version = asked(self.address, partial(put, condition), seconds).version
            except Conflict:
                found = asked(self.address, lambda: self._store.look(self.address), seconds)
                if found is None or found.label != self._label:
                    return False
                seen = found.version  # an earlier try has done it, who knows when, and its answer was lost
            else:
                self._renewed = began
                return True

    def _renew(self) -> bool:
        with self._turn, contextlib.suppress(PtsaveError):
            if self._version is not None and not self._put(self._version, RENEW_SECONDS):
                self._version = None
        return self._version is not None

    @property
    def is_in_place(self) -> bool:
        return True  # one that was removed is put there again

    def check(self) -> None:
        with self._turn:
            is_ours = self._version is not None
            if is_ours and self._age_seconds < FRESH_SECONDS:
                return
            if is_ours and self._put(self._version):
                return
            self._version = None
            # one that was removed in its time was nobody else's meanwhile
            if self._age_seconds < LEASE_SECONDS and self._put(None):
                return
            found = _found(self.address)
        raise refused(self.folder, found[1] if found is not None else None)

    @property
    def _age_seconds(self) -> float:
        """How long ago it was renewed; a machine that sleeps may stop one of its clocks."""
        monotonic, wall = self._renewed
        return max(time.monotonic() - monotonic, abs(time.time() - wall))

    def release(self) -> None:
        self._stop.set()
        if os.getpid() != self._pid:
            return
        with self._turn:
            version, self._version = self._version, None
        if version is None:
            return
        _left.add(self._holder.token)
        with contextlib.suppress(PtsaveError, Conflict):
            asked(self.address, lambda: self._store.remove(self.address, Found(version)), BRIEFLY_SECONDS)


def holder_at(folder: Address) -> Holder | None:
    """Who holds the lease of `folder`, of other processes; None where nobody does, or it cannot be told."""
    address = folder / NAME
    try:
        found = None if is_mine(folder) else _found(address)
    except PtsaveError:
        return None
    if found is None or found[1].lives is False:
        return None
    _watch(address, found[0])
    return found[1]


def token_at(folder: Address) -> str:
    """The token of the lease of `folder`; empty where there is none. Raises: WriteError."""
    found = _found(folder / NAME)
    return found[1].token if found is not None else ""


def _watch(address: Address, version: Version) -> float:
    """Since when a lease was not renewed, as far as this process has seen."""
    watched = _watched.get(address)
    if watched is None or not watched[0].is_same(version):
        watched = _watched[address] = version, time.monotonic()
    return watched[1]


def _found(address: Address) -> tuple[Version, Holder, float] | None:
    """The version of the lease that is there, its holder, and after how many seconds it counts for nothing.

    Raises: WriteError.
    """
    try:
        file = RemoteFile(store_of(address), address)
        with file:
            data = file.read_at(0, min(file.size_bytes, MAX_BYTES))
    except NoAccessError as error:
        raise as_write_error(error) from None
    except MissingFileError:
        return None
    except UnreadableError as error:
        raise as_write_error(error) from None
    seconds = LEASE_SECONDS
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        said = float(json.loads(data)["lease_seconds"])
        seconds = LEASE_SECONDS if math.isnan(said) else min(max(said, 0.0), MAX_LEASE_SECONDS)
    return file.version, Holder.parsed(data), seconds
