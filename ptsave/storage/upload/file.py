"""An object that is being written: bytes come by position, and each part is sent when it is full."""

from __future__ import annotations

import contextlib
import threading
import time
from bisect import insort
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from isal.isal_zlib import crc32, crc32_combine

from ptsave.core.address import Address
from ptsave.core.storage import BLOCK_BYTES
from ptsave.errors import ExistsError, Option, PtsaveError, RefusedError, UnreadableError, WriteError
from ptsave.storage.output import SentFile
from ptsave.storage.remote.file import RemoteFile
from ptsave.storage.remote.pieces import Workers
from ptsave.storage.remote.store import NoAccessError, store_of
from ptsave.storage.upload.store import (
    MIB,
    Conflict,
    Found,
    Gone,
    Label,
    NotAllowedError,
    Receipt,
    Stored,
    Upload,
    UploadStore,
    asked,
)

HELD_BYTES = 48 * MIB
"""Bytes of parts in memory at most: those that are not full yet, and those that are being sent."""
NUM_SENDERS = 8
"""How many parts are sent at a time, at most."""
SENDERS = Workers(NUM_SENDERS)
BRIEFLY_S = 20.0
"""How long to try to tidy up, or to look at the destination after an error."""
LEAVE_S = 10.0
"""How long to wait for parts that are being sent before an upload is given up."""
T = TypeVar("T")


@dataclass(eq=False)
class _Part:
    """A run of the object's bytes in memory."""

    buffer: bytearray
    view: memoryview
    written: list[tuple[int, int]] = field(default_factory=list)
    """Begin and end of what was written, in order, neighbours joined."""

    def note(self, begin: int, end: int) -> bool:
        """Note what was written; returns whether the part is full now."""
        insort(self.written, (begin, end))
        joined: list[tuple[int, int]] = []
        for first, after in self.written:
            if joined and first <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(after, joined[-1][1]))
            else:
                joined.append((first, after))
        self.written = joined
        return joined == [(0, len(self.buffer))]

    def fill(self) -> None:
        """Fill the gaps with zeros: the buffer may have held another part."""
        at = 0
        for begin, end in [*self.written, (len(self.buffer), len(self.buffer))]:
            self.view[at:begin] = bytes(begin - at)
            at = end


class UploadFile(SentFile):
    """An object that takes its name when all of it has arrived.

    What has not arrived is in memory: a part that waits for its last bytes (a header that is filled in at the
    end) or for its turn to be sent. Who writes more than that waits.
    """

    def __init__(
        self,
        store: UploadStore,
        address: Address,
        num_bytes: int,
        seen: Found | None,
        *,
        is_data: bool = False,
        is_open: bool = False,
    ) -> None:
        """`seen`: what it will replace; None: nothing may be there. `is_open`: it is written from end to end,
        `num_bytes` is about how many will come, and `end_at` says how many came."""
        self.destination: Address = address
        self.label = Label(is_data=is_data)
        self._store, self._seen = store, seen
        unit = store.part_unit_bytes
        most_bytes = 2 * num_bytes if is_open else num_bytes
        self._part_bytes = max(store.min_part_bytes, -(-most_bytes // (store.max_parts * unit)) * unit)
        self.num_bytes = self._part_bytes * store.max_parts if is_open else num_bytes
        self._is_open = is_open
        self._most_held = max(HELD_BYTES // self._part_bytes, 3)
        self._state = threading.Condition()
        self._parts: dict[int, _Part] = {}
        """Those that are not whole, by number."""
        self._known: set[int] = set()
        """The numbers of those that were begun."""
        self._free: list[bytearray] = []
        self._num_held = self._num_sending = 0
        self._receipts: dict[int, Receipt] = {}
        self._error: BaseException | None = None
        self._begin = threading.Lock()
        self._upload: Upload | None = None
        self._is_over = False
        self._must_have: int | None = None
        self._is_unseen = False
        """Whether we may not see what is there."""
        self.stored: Stored | None = None
        """What the store says of it, once it has its name."""

    @property
    def num_parts(self) -> int:
        return max(-(-self.num_bytes // self._part_bytes), 1)

    def must_have(self, crc32: int) -> None:
        self._must_have = crc32

    def end_at(self, num_bytes: int) -> None:
        """Say that the file is so long, which it was not known to be; all of it was written."""
        self.num_bytes = num_bytes
        for number, part in self._parts.items():  # at most the last
            end = num_bytes - number * self._part_bytes
            part.buffer = part.buffer[:end]
            part.view = memoryview(part.buffer)

    def write_at(self, offset_bytes: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        assert offset_bytes + len(view) <= self.num_bytes
        while view:
            number, at = divmod(offset_bytes, self._part_bytes)
            if self._is_open and number - 1 in self._parts:  # which may have been the only one until now
                self._send(number - 1)
            part = self._part(number)
            count = min(len(view), len(part.buffer) - at)
            part.view[at : at + count] = view[:count]
            with self._state:
                is_whole = part.note(at, at + count)
            if is_whole and self.num_parts > 1 and not self._is_open:
                self._send(number)
            offset_bytes += count
            view = view[count:]

    def _part(self, number: int) -> _Part:
        """The part `number`, begun by now; waits until there is room for it in memory."""
        with self._state:
            while True:
                if self._error is not None:
                    raise self._error
                if number in self._parts:
                    return self._parts[number]
                assert number not in self._known, "a byte is written twice"
                # where nothing is on its way, nothing that is waited for would make room
                if self._num_held < self._most_held or not self._num_sending:
                    break
                self._state.wait(1.0)
            self._known.add(number)
            self._num_held += 1
            num_bytes = min(self._part_bytes, self.num_bytes - number * self._part_bytes)
            buffer = self._free.pop() if self._free else bytearray(num_bytes)
            if len(buffer) != num_bytes:  # the last part: one that is free goes for it
                del buffer
                buffer = bytearray(num_bytes)
            part = self._parts[number] = _Part(buffer, memoryview(buffer))
            return part

    def _send(self, number: int) -> None:
        """Have a thread send the part `number`, which is whole."""
        with self._state:
            part = self._parts.pop(number)
            self._num_sending += 1

        def job() -> None:
            error = receipt = None
            try:
                receipt = self._sent(number, part.buffer)
            except BaseException as caught:
                error = caught
            with self._state:
                if receipt is not None:
                    self._receipts[number] = receipt
                if error is not None and self._error is None:
                    self._error = error
                self._num_sending -= 1
                self._num_held -= 1
                if len(part.buffer) == self._part_bytes:
                    self._free.append(part.buffer)
                self._state.notify_all()

        SENDERS.submit(job)

    def _sent(self, number: int, buffer: bytearray) -> Receipt:
        upload = self._begun()
        crc = crc32(buffer)

        def put() -> Receipt:
            if self._error is not None:  # nobody waits for it any more
                raise self._error
            return self._store.put_part(upload, number, buffer, crc)

        try:
            return self._asked(put)
        except Gone:
            raise conflict(self.destination, self._seen, self._look(), is_gone=True) from None

    def _begun(self) -> Upload:
        """The upload, begun by now by the thread that asks first."""
        with self._begin:
            if self._upload is None:
                if self._error is not None:
                    raise self._error
                self._upload = self._asked(lambda: self._store.begin(self.destination, self.label))
                if self._is_over:  # too late for `abort` to see it
                    asked(self.destination, partial(self._store.abort, self._upload), BRIEFLY_S)
            return self._upload

    def finish(self, before: Callable[[], None] | None = None) -> None:
        """Send what is left, compare, and give the object its name. `before` is called last, and may refuse.

        Raises: ExistsError; WriteError; what `before` raises.
        """
        crc = self._whole()
        if self._must_have not in (None, crc):
            raise WriteError(
                "what is to be sent is not what was read: the memory of this machine is damaged",
                str(self.destination),
                "write it on another one; nothing was replaced",
            )
        if before is not None:
            before()
        found = self._look()  # some servers do not heed conditions
        if not is_same(found, self._seen):
            raise conflict(self.destination, self._seen, found)
        own = self._upload.id if self._upload is not None else ""
        with removing_abandoned(self._store, self.destination, own, is_folder=False):
            if self.num_parts == 1:
                data = self._parts[0].buffer
                stored = self._settled(
                    lambda: self._store.put(self.destination, data, crc, self.label, self._seen)
                )
                checked = stored.checked
            else:
                upload, parts = self._begun(), [receipt for _, receipt in sorted(self._receipts.items())]
                stored = self._settled(lambda: self._store.complete(upload, parts, crc, self._seen))
                checked = stored.checked or min(receipt.checked for receipt in parts)
        self._upload = None
        self.stored = stored
        if self._must_have is not None:
            self.checked = f"the store's {checked}" if checked else self._read_back(crc)

    def _whole(self) -> int:
        """Send what is left, unless the object is one part; returns the CRC-32 of the whole."""
        for number in range(self.num_parts):
            with self._state:
                is_left = number in self._parts or number not in self._known
            if is_left:
                self._part(number).fill()
                if self.num_parts > 1:
                    self._send(number)
        with self._state:
            while self._num_sending and self._error is None:
                self._state.wait(1.0)
            if self._error is not None:
                raise self._error
            self._free.clear()  # reading back takes memory of its own
        if self.num_parts == 1:
            return int(crc32(self._parts[0].buffer))
        crc = 0
        for _, receipt in sorted(self._receipts.items()):
            crc = crc32_combine(crc, receipt.crc32, receipt.num_bytes)
        return crc

    def _settled(self, give_name: Callable[[], Stored]) -> Stored:
        """What the store says of the object once it has its name.

        An earlier try may have done it, though its answer was lost: then our mark is on what is there.

        Raises: ExistsError; WriteError.
        """
        try:
            return self._asked(give_name)
        except (Conflict, Gone, WriteError) as error:
            found = None
            try:
                found = self._look(BRIEFLY_S)
            except PtsaveError:
                if not isinstance(error, WriteError):
                    raise
            if found is not None and found.label == self.label:
                return Stored(found.version)
            if isinstance(error, WriteError):
                raise
            if self._is_unseen:
                raise ExistsError(
                    "something is there, and these credentials may not read what it is",
                    str(self.destination),
                    "use another name, or credentials that may read; where an answer was lost on the way it "
                    "may be what was just written",
                ) from None
            is_gone = isinstance(error, Gone)
            raise conflict(self.destination, self._seen, found, is_gone=is_gone) from None

    def _read_back(self, crc: int) -> str:
        """Read the object that is there now; returns by what it was checked.

        Raises: WriteError when it does not hold what was sent.
        """
        found = at = 0
        try:
            with RemoteFile(store_of(self.destination), self.destination) as file:
                file.expect([(0, file.size_bytes)])
                buffer = memoryview(bytearray(BLOCK_BYTES))
                while at < file.size_bytes == self.num_bytes:
                    block = buffer[: file.size_bytes - at]
                    file.read_into(at, block)
                    found = crc32(block, found)
                    at += len(block)
        except UnreadableError as error:
            why = (
                "may not be read" if isinstance(error, NoAccessError) else f"was not read back ({error.what})"
            )
            raise WriteError(
                f"the object is in place and was not checked: the store has no checksum, and {why}",
                str(self.destination),
                (f"{error.hint}; ", Option("check", False), " leaves the check out"),
            ) from None
        if (found, at) != (crc, self.num_bytes):
            raise WriteError(
                "the store does not hold what was sent: it reads back differently",
                str(self.destination),
                (
                    "write it again with ",
                    Option("overwrite", True),
                    "; the old object is gone" if self._seen else "",
                ),
            )
        return "reading it back by ranges"

    def abort(self) -> None:
        """Give the upload up, unless it is complete: remove what was sent."""
        with self._state:
            self._is_over = True
            self._error = self._error or WriteError("given up", str(self.destination))
            end = time.monotonic() + LEAVE_S
            while self._num_sending and time.monotonic() < end:
                self._state.wait(0.1)
        if self._upload is not None:
            with contextlib.suppress(PtsaveError):  # the next writer removes it: see `removing_abandoned`
                asked(self.destination, partial(self._store.abort, self._upload), BRIEFLY_S)

    def _look(self, seconds: float | None = None) -> Found | None:
        try:
            return asked(self.destination, lambda: self._store.look(self.destination), seconds)
        except NotAllowedError:
            if self._seen is not None:
                raise
            self._is_unseen = True
            return None

    def _asked(self, action: Callable[[], T]) -> T:
        return asked(self.destination, action)


def is_same(found: Found | None, seen: Found | None) -> bool:
    """Whether both are the same version of an object, or both are None."""
    if found is None or seen is None:
        return found is seen
    return found.version.is_same(seen.version)


def conflict(
    address: Address, seen: Found | None, found: Found | None, *, is_gone: bool = False
) -> RefusedError:
    """The error for an object that came, changed or went while another one was made to take its place.

    `is_gone`: whether the store has lost the upload, rather than refused its condition.
    """
    if seen is None and found is not None:
        return exists(address)
    what = "was removed" if found is None and seen is not None else "was written by somebody else"
    if not is_same(found, seen):
        what = f"the destination {what} meanwhile"
    elif is_gone:
        what = "the parts that were sent were removed"
    else:
        what = "the store refuses the condition of the write, which holds: what is there is what was seen"
    return WriteError(what, str(address), "look at what is there now, and write again; nothing was replaced")


def exists(address: Address) -> ExistsError:
    """The error for a destination that is there."""
    return ExistsError("the destination exists", str(address), (Option("overwrite", True), " replaces it"))


@contextmanager
def removing_abandoned(store: UploadStore, address: Address, own: str, *, is_folder: bool) -> Iterator[None]:
    """When the block has written a new object, remove the parts that other uploads by ptsave sent for it.

    An upload that began earlier has seen another object, so it cannot complete: its writer was killed, or its
    condition will fail.
    """
    others: list[Upload] = []
    with contextlib.suppress(PtsaveError):  # who may write may not always list, and litter is not in our way
        others = asked(address, lambda: [*store.abandoned(address, own, is_folder=is_folder)], BRIEFLY_S)
    yield
    for other in others:
        with contextlib.suppress(PtsaveError):
            asked(address, partial(store.abort, other), BRIEFLY_S)
