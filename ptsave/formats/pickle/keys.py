"""Keys of dictionaries and members of sets, so that hashing them costs what the file's bytes cost.

A file chooses its keys. Equal hashes make a table quadratic, a nested tuple's hash is exponential under
sharing, and comparing two long equal strings takes time each time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.errors import CorruptError
from ptsave.formats.pickle.shapes import Budget

LONG_KEY = 256
"""Characters from which on comparing a key is charged for."""

MAX_KEY_PARTS = 64
"""Cap on the parts of a tuple, and of the tuples in it, that is hashed as what it is."""
_NUMBERS = ("decimal.Decimal", "fractions.Fraction")
_BY_VALUE = frozenset(f"builtins.{kind}" for kind in ("frozenset", "range", "slice", "tuple")) | {
    "torch.device",
    "torch.layout",
}
_COMPARED_PER_UNIT = 4096
_SECRET_HASH = (str, bytes)  # Python hashes these with a key that no file can know
_FLAT = (str, bytes, int, float, bool, type(None))
_UNHASHABLE = (list, dict, set, bytearray)


def admit(key: Any, budget: Budget) -> Any:
    """The key to use for `key`: itself, or an Opaque around what is not hashed as what it is.

    Raises: CorruptError when no Python dictionary could have such a key; LimitError when there are too
    many whose hashes a file can choose.
    """
    kind = type(key)
    if kind is str or kind is bytes:
        if len(key) > LONG_KEY:
            budget.spend(1 + len(key) // _COMPARED_PER_UNIT)
        return key
    if kind is int:
        if not -(2**60) < key < 2**60:
            budget.spend_unusual_key()
        return key
    if key is None or kind is bool:
        return key
    if kind is float:
        budget.spend_unusual_key()
        return key
    if kind is tuple:
        parts = _parts(key)
        if parts is None:
            _check_hashable(key, budget)
            return Opaque("builtins.tuple", (key,))
        if all(type(part) in _SECRET_HASH for part in parts):
            budget.spend(sum(map(len, parts)) // _COMPARED_PER_UNIT)
        else:
            budget.spend_unusual_key()
        return key
    if isinstance(key, Opaque) and key.name in _NUMBERS:
        raise CorruptError(f"a dictionary or set has a {key.name} as a key, which may equal another")
    if isinstance(key, Opaque) and key.name.startswith("numpy.") and key.is_call_of_scalars and key.args:
        return admit(key.args[0], budget)  # NumPy's 1 is the key 1
    if isinstance(key, (Opaque, Global, TensorEntry)):
        return key
    if isinstance(key, _UNHASHABLE):
        raise CorruptError(f"a dictionary or set cannot hold a {kind.__name__} as a key")
    if kind is complex:
        if not key.imag:
            raise CorruptError("a dictionary or set has a complex key that is equal to a real one")
        budget.spend_unusual_key()
        return key
    return Opaque(f"builtins.{kind.__name__}", (key,))


def _parts(key: tuple[Any, ...]) -> list[Any] | None:
    """What a tuple and the tuples in it hold; None where that is much, or is not compared as what it is."""
    parts: list[Any] = []
    left = MAX_KEY_PARTS
    waiting = [key]
    while waiting:
        value = waiting.pop()
        left -= 1 + len(value)
        if left < 0:
            return None
        for part in value:
            if type(part) is tuple:
                waiting.append(part)
            elif type(part) in _FLAT or isinstance(part, Global):
                parts.append(part)
            else:
                return None
    return parts


def _check_hashable(key: tuple[Any, ...], budget: Budget) -> None:
    """Raises: CorruptError where a part of `key`, or of the tuples in it, is none that Python can hash."""
    seen = {id(key)}
    waiting = [key]
    while waiting:
        value = waiting.pop()
        budget.spend(1 + len(value) // 8)
        for part in value:
            if isinstance(part, _UNHASHABLE):
                raise CorruptError(f"a dictionary or set cannot hold a {type(part).__name__} in a key")
            if type(part) is tuple and id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)


def is_by_value(key: Any) -> bool:
    """Whether `key` stands for what Python compares by its value, where ptsave tells two of them apart."""
    return type(key) is Opaque and key.name in _BY_VALUE


def admit_all(keys: Iterable[Any], budget: Budget) -> list[Any]:
    """The keys to use for those of one dictionary or set, as `admit` has them.

    Raises: CorruptError also where two of them may be equal.
    """
    admitted = [admit(key, budget) for key in keys]
    check_by_value(admitted)
    return admitted


def check_by_value(keys: Iterable[Any]) -> None:
    """Raises: CorruptError where two of `keys` may be equal for Python, and are not for ptsave."""
    if sum(map(is_by_value, keys)) > 1:
        raise CorruptError("a dictionary or set has two keys that may be equal")
