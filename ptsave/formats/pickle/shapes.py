"""What an inert pickle machine is told: which dotted names stand for something, in which exact shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ptsave.core.nodes import Global, Opaque
from ptsave.core.storage import Storage
from ptsave.errors import LimitError

BYTES_PER_UNIT = 64
UNITS_OF_TEXT = 3
"""What a short text costs: 64 bytes, and its part of what holds it while that grows."""
MAX_UNITS = 2_500_000
"""Cap on what one pickle may cost, in units of about 64 bytes of memory or half a microsecond. A state
dict of 100,000 tensors costs 2.1 million."""
FILE_BYTES_PER_UNIT = 4
"""A long file may cost a unit for each so many of its bytes; torch writes 10 a unit."""
MAX_TENSORS = 250_000
"""Cap on the tensors that a pickle makes: 13 bytes can make one, which takes a kilobyte until it is shown."""
FILE_BYTES_PER_TENSOR = 64
"""A long file may have a tensor for each so many of its bytes; torch writes 77 a view, 250 a tensor."""
MAX_UNUSUAL_KEYS = 4096
"""Cap on the keys whose hashes a file can choose: floats, ints of 2**60 or more, tuples with numbers."""
MAX_NOTES = 20


class Unknown:
    """The type of UNKNOWN."""


UNKNOWN: Final = Unknown()
"""What `Known.call` returns when the arguments are not of the exact shape that it knows."""


class Budget:
    """What one pickle may still cost, and what its reader has to say about it."""

    __slots__ = ("dropped", "max_units", "notes", "num_unusual_keys", "used", "where")

    def __init__(self, where: str, max_units: int = MAX_UNITS) -> None:
        """`max_units`: the cap."""
        self.where = where
        self.max_units = max_units
        self.used = 0
        self.num_unusual_keys = 0
        self.notes: list[str] = []
        self.dropped: list[str] = []

    def spend(self, units: int) -> None:
        """Pay for work or memory before it is done.

        Raises: LimitError past `max_units`.
        """
        self.used += units
        if self.used > self.max_units:
            self.check(0)

    def check(self, units: int) -> None:
        """Check what was spent, and `units` that are held for a time only, against the cap.

        Raises: LimitError past `max_units`.
        """
        if self.used + units > self.max_units:
            raise LimitError("pickle_units", self.max_units, "more", self.where)

    def spend_unusual_key(self) -> None:
        """Pay for a key whose hash the file can choose.

        Raises: LimitError past MAX_UNUSUAL_KEYS.
        """
        self.num_unusual_keys += 1
        if self.num_unusual_keys > MAX_UNUSUAL_KEYS:
            raise LimitError("unusual_keys", MAX_UNUSUAL_KEYS, "more", self.where)

    def drop(self, text: str) -> None:
        """Say, once, that something which the pickle says of a value is not kept: `text` names it."""
        if text not in self.dropped and len(self.dropped) < MAX_NOTES:
            self.dropped.append(text)

    def note(self, text: str) -> None:
        """Say `text` to the user, once."""
        if text not in self.notes and len(self.notes) < MAX_NOTES:
            self.notes.append(text)


class Payload(Opaque):
    """Bytes or text too long to hold: where they lie, in place of what they are."""

    def __init__(self, name: str, storage: Storage) -> None:
        """`storage`: the bytes in the file; text as UTF-8."""
        self.name = name
        self.storage = storage
        self.state = {"num_bytes": storage.num_bytes}


Make: TypeAlias = "Callable[[tuple[Any, ...], Budget], Any]"


@dataclass(frozen=True, slots=True)
class Known(Global):
    """A dotted name that stands for something harmless when it is called in an exact shape."""

    call: Make
    """Takes the arguments; returns the value, or UNKNOWN. Raises CorruptError where they contradict each
    other. The budget is for what costs more than the pickle's own bytes (copies)."""
    new: bool = False
    """Whether NEWOBJ with arguments (`cls.__new__(cls, *args)`) means the same as a call."""


def known_names(module: str, calls: Mapping[str, Make]) -> dict[str, Known]:
    """The table of the names of `module`, given what each stands for when it is called."""
    return {f"{module}.{name}": Known(f"{module}.{name}", call) for name, call in calls.items()}


class Described(Known):
    """A dotted name that is not in the allow-list, and is counted, but whose arguments ptsave can read."""

    __slots__ = ()


def as_it_is(state: Any, budget: Budget) -> Any:
    """`state` as it is when a pickle hands it over to an object, which takes what it holds then.

    What the pickle writes into its dictionaries and lists later is not seen by the object.

    Source: CPython's Modules/_pickle.c (`load_build`), torch/_utils.py (`_set_obj_state`).
    """
    if type(state) is tuple and len(state) == 2:
        return tuple(_copied(part, budget) for part in state)
    return _copied(state, budget)


def _copied(value: Any, budget: Budget) -> Any:
    if isinstance(value, dict):
        budget.spend(len(value) // 2)
        return dict(value)
    if type(value) is list:
        budget.spend(len(value) // 8)
        return list(value)
    return value


def builds_nothing(target: Any, state: Any, budget: Budget) -> bool:
    """The `Shapes.build` that knows no shape."""
    return False


@dataclass(frozen=True)
class Shapes:
    """The exact shapes that become more than inert nodes: an allow-list, never a deny-list."""

    names: Mapping[str, Any]
    """What stands for a dotted name: a Known, or a plain value (a DType)."""
    build: Callable[[Any, Any, Budget], bool] = builds_nothing
    """Asked when the pickle sets `state` on `target` (BUILD): whether it took the state."""
    persistent_load: Callable[[Any], Any] | None = None
    """What stands for a persistent id; None where the container has no such thing."""
    room: int = 1
    """How many times the usual units and code this pickle may have: what its own length allows."""
    is_script: bool = False
    """Whether TorchScript's unpickler reads it, which knows fewer opcodes than Python's."""
