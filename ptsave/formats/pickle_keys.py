"""Keys of dictionaries and members of sets, so that hashing them costs what the file's bytes cost.

A file chooses its keys. Equal hashes make a table quadratic, a nested tuple's hash is exponential under
sharing, and comparing two long equal strings takes time each time.
"""

from __future__ import annotations

from typing import Any

from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.errors import CorruptError
from ptsave.formats.pickle_shapes import Budget

LONG_KEY = 256
"""Characters from which on comparing a key is charged for."""

_MAX_TUPLE = 8
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
        if len(key) > _MAX_TUPLE or not all(type(part) in _FLAT for part in key):
            return Opaque("builtins.tuple", (key,))
        if all(type(part) in _SECRET_HASH for part in key):
            budget.spend(sum(map(len, key)) // _COMPARED_PER_UNIT)
        else:
            budget.spend_unusual_key()
        return key
    if isinstance(key, (Opaque, Global, TensorEntry)):
        return key
    if isinstance(key, _UNHASHABLE):
        raise CorruptError(f"a dictionary or set cannot hold a {kind.__name__} as a key")
    return Opaque(f"builtins.{kind.__name__}", (key,))
