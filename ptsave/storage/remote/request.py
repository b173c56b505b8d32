"""One range of one object: asked for until it is there whole, of the pinned version, within a deadline."""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ptsave.core.address import Address
from ptsave.errors import OutOfReachError, PtsaveError, UnreadableError, UsageError, WriteError
from ptsave.storage.remote.store import (
    Answer,
    ChangedError,
    Faulty,
    Passing,
    Store,
    Unreachable,
    Unsatisfiable,
    Version,
    changed,
)

VARIABLE = "PTSAVE_TIMEOUT"
"""The environment variable that says how many seconds one range may take, all its retries included."""
DEFAULT_TIMEOUT_S = 300.0
WAIT_S = 30.0
"""The longest silence of a connection, in seconds; then it is broken off and the request is repeated."""
MAX_TRIES = 12
"""How often one range is asked for without a byte more."""
MAX_FAULTY = 3
"""And how often when the answers contradict themselves."""
MAX_UNREACHABLE = 5
"""And how often when nobody takes the connection, and nobody has before: the address may be wrong."""
REACH_S = 3.0
"""For how long that is tried at most, in seconds; a host's name can take that long to be unknown."""
_FIRST_DELAY_S = 0.1
_MAX_DELAY_S = 20.0
_READ_BYTES = 256 * 1024
T = TypeVar("T")


def timeout_s() -> float:
    """How long an operation may take, in seconds. Raises: UsageError when PTSAVE_TIMEOUT is no number."""
    text = os.environ.get(VARIABLE, "")
    if not text:
        return DEFAULT_TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not (0 < seconds < math.inf):
        raise UsageError(f"{text!r} is not a number of seconds", VARIABLE, "for example: 60")
    return seconds


@dataclass
class Deadline:
    """When an operation has to be over."""

    address: Address
    seconds: float
    end: float
    """As `time.monotonic` tells it."""
    last: str = "no answer yet"
    """What went wrong last."""
    writes: bool = False
    """Whether it is an operation that writes; for messages."""
    is_first: bool = False
    """Whether it is the first that is asked there, so that nobody may answer at all."""

    @classmethod
    def begin(cls, address: Address, *, writes: bool = False, is_first: bool = False) -> Deadline:
        seconds = timeout_s()
        return cls(address, seconds, time.monotonic() + seconds, writes=writes, is_first=is_first)

    @property
    def left_s(self) -> float:
        return self.end - time.monotonic()

    @property
    def wait_s(self) -> float:
        """How long to wait for the connection's next bytes."""
        return max(min(WAIT_S, self.left_s), 0.001)

    def check(self) -> None:
        """Raise UnreadableError, or WriteError, when it has passed."""
        if self.left_s <= 0:
            raise self.passed()

    def passed(self) -> PtsaveError:
        """The error for an operation that took too long."""
        return self._failed(
            f"not {'written' if self.writes else 'read'} within {self.seconds:g} seconds ({self.last})",
            f"check the network and the server; {VARIABLE} sets the seconds that one part may take",
        )

    def _failed(self, what: str, hint: str) -> PtsaveError:
        return (WriteError if self.writes else OutOfReachError)(what, str(self.address), hint)

    def pause(self, passing: Passing, tries: int) -> None:
        """Wait until it is time to try again. Raises: as `check`, when there is no time for that."""
        self.last = passing.what
        if isinstance(passing, Faulty) and tries >= MAX_FAULTY:
            raise UnreadableError(
                passing.what,
                str(self.address),
                "the server or a proxy before it is faulty; download the file another way",
            )
        is_nobody_there = tries >= MAX_UNREACHABLE or self.seconds - self.left_s > REACH_S
        if self.is_first and isinstance(passing, Unreachable) and is_nobody_there:
            raise self._failed(
                f"cannot {'write' if self.writes else 'read'}: {passing.what}",
                "check the address, the variables that name a server or a proxy, and the network",
            )
        if tries >= MAX_TRIES:
            raise self._failed(
                f"cannot {'write' if self.writes else 'read'}: {passing.what}, {tries} times",
                "check the address, the network and the server, and try again later",
            )
        delay = passing.after_s
        if delay is None:
            delay = min(_FIRST_DELAY_S * 2 ** (tries - 1), _MAX_DELAY_S) * random.uniform(0.5, 1.0)
        if delay >= self.left_s:
            raise self.passed()
        time.sleep(delay)


def retried(action: Callable[[Deadline], T], deadline: Deadline) -> T:
    """What `action` returns, tried again while what keeps it from that may pass.

    Raises: what `action` raises; as `Deadline.check` when the time or the number of tries is over.
    """
    tries = 0
    while True:
        deadline.check()
        try:
            return action(deadline)
        except Passing as passing:
            tries += 1
            deadline.pause(passing, tries)


class WholeError(Exception):
    """The server has answered with the whole object, which is longer than the range that was asked for."""

    def __init__(self, version: Version) -> None:
        super().__init__("the server does not know ranges")
        self.version = version


def read_range(
    store: Store,
    address: Address,
    begin: int,
    end: int,
    version: Version | None,
    deadline: Deadline,
    view: memoryview,
) -> Version:
    """Fill `view` with the bytes from `begin` to `end` (not included) of an object; returns its version.

    With `version` they must be of it. What has come before a connection broke is kept, and the rest asked
    for. Past the object's end `view` stays as it is.

    Raises: ChangedError, WholeError, MissingFileError, UnreadableError.
    """
    done, tries = 0, 0
    while True:
        deadline.check()
        before = done
        try:
            answer = _asked_for(store, address, begin + done, end, version, deadline)
            try:
                found = _checked(answer, address, begin + done, end, version)
                wanted = min(end, found.size_bytes) - begin
                done += _read(answer, view[done:wanted], deadline)
            finally:
                answer.close()
            version = found
            if done == wanted:
                return found
            tries = 0  # whole, but less than was asked for: some servers answer with so much at a time
        except Passing as passing:
            if isinstance(passing, Unsatisfiable) and begin + done < passing.size_bytes < end:
                end = passing.size_bytes
            if isinstance(passing, _Short):
                done += passing.num_bytes
                version = found
            tries = 1 if done > before else tries + 1
            deadline.pause(passing, tries)


def _asked_for(
    store: Store, address: Address, begin: int, end: int, version: Version | None, deadline: Deadline
) -> Answer:
    """What the store answers; asked without the condition where that does not hold.

    Some servers say of every version that it is another one. Which one it is, `_checked` compares.
    """
    try:
        return store.get(address, begin, end, version, deadline.wait_s)
    except ChangedError:
        return store.get(address, begin, end, None, deadline.wait_s)


class _Excess(Faulty):
    """A body that goes on after its end."""


class _Short(Passing):
    """A body that broke off, after some bytes of use."""

    def __init__(self, what: str, num_bytes: int) -> None:
        super().__init__(what)
        self.num_bytes = num_bytes


def _checked(answer: Answer, address: Address, begin: int, end: int, version: Version | None) -> Version:
    """The version of `answer`, which is of the bytes that were asked for."""
    found = answer.version
    if found.size_bytes < 0:
        raise WholeError(found)
    if version is not None and not version.is_same(found):
        if bool(version.tag) != bool(found.tag):
            raise Faulty("some of the server's answers say which version of the file they are of, others not")
        raise changed(address)
    if answer.begin != begin or not begin <= answer.end <= found.size_bytes:
        if answer.begin == 0 and answer.end == found.size_bytes and begin != 0:
            raise WholeError(found)
        raise Faulty(
            f"the server was asked for bytes {begin} to {end - 1} and answers with {answer.begin} to "
            f"{answer.end - 1} of {found.size_bytes}"
        )
    if answer.end > end:
        raise WholeError(found)
    if answer.end == begin and min(end, found.size_bytes) > begin:
        raise Passing("the server answers with no bytes")
    return found


def _read(answer: Answer, view: memoryview, deadline: Deadline) -> int:
    """Fill `view` with the body, as far as its head says; returns how much.

    Raises: _Short, UnreadableError.
    """
    wanted = min(answer.end - answer.begin, len(view))
    done = 0
    try:
        while done < wanted:
            data = answer.read(min(_READ_BYTES, wanted - done))
            if not data:
                raise Passing(f"the connection broke off after {done} of {wanted} bytes")
            view[done : done + len(data)] = data
            done += len(data)
            deadline.check()
        if answer.read(1):
            raise _Excess(f"the server sends more than the {wanted} bytes that it says")
    except _Excess:
        raise
    except Passing as passing:
        if done == wanted:
            return done  # every byte is here; that the end was not seen is no matter
        raise _Short(passing.what, done) from None
    return done
