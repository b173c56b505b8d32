"""Python's own objects in a pickle: the exact shapes that become plain data.

`collections.Counter` and `collections.defaultdict` become themselves (a defaultdict without its factory,
so that it never calls anything); `range` and `slice` stay Opaque, known to be harmless.

Source: CPython's Lib/copyreg.py, Lib/collections/__init__.py, Objects/*.c (`__reduce__`).
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict
from typing import Any

from ptsave.core.nodes import Global, Opaque
from ptsave.errors import CorruptError
from ptsave.formats.pickle.keys import admit_all
from ptsave.formats.pickle.latin1 import Latin1Storage
from ptsave.formats.pickle.shapes import BYTES_PER_UNIT, UNKNOWN, Budget, Known, Payload, known_names


def _ordered_dict(args: tuple[Any, ...], budget: Budget) -> Any:
    if not args:
        return OrderedDict()
    # Python 2: a list of [key, value] lists
    if len(args) != 1 or type(args[0]) is not list:
        return UNKNOWN
    pairs = args[0]
    budget.spend(4 + 2 * len(pairs))
    if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        return UNKNOWN
    keys = admit_all((key for key, _ in pairs), budget)
    return OrderedDict(zip(keys, (value for _, value in pairs), strict=True))


def _counter(args: tuple[Any, ...], budget: Budget) -> Any:
    if not args:
        return Counter()
    if len(args) != 1 or type(args[0]) is not dict:
        return UNKNOWN
    budget.spend(4 + 2 * len(args[0]))
    made: Counter[Any] = Counter()
    for key, count in args[0].items():  # admitted when they went into that dictionary
        made[key] = count
    return made


def _defaultdict(args: tuple[Any, ...], budget: Budget) -> Any:
    if args and not (len(args) == 1 and (args[0] is None or args[0] in _FACTORIES)):
        return UNKNOWN
    return defaultdict(None)


def _members(args: tuple[Any, ...], budget: Budget) -> list[Any] | None:
    """The members of `set(list)`, safe to hash; None for another shape."""
    if len(args) != 1 or type(args[0]) not in (list, tuple):
        return None
    budget.spend(4 + 2 * len(args[0]))
    return admit_all(args[0], budget)


def _set(args: tuple[Any, ...], budget: Budget) -> Any:
    members = _members(args, budget) if args else []
    return UNKNOWN if members is None else set(members)


def _frozenset(args: tuple[Any, ...], budget: Budget) -> Any:
    members = _members(args, budget) if args else []
    return UNKNOWN if members is None else frozenset(members)


def _encode(args: tuple[Any, ...], budget: Budget) -> Any:
    """`_codecs.encode(text, "latin1")`: how protocols 0 to 2 spell bytes."""
    if len(args) != 2 or type(args[1]) is not str or args[1] not in ("latin1", "latin-1"):
        return UNKNOWN
    if isinstance(args[0], Payload) and args[0].name == "builtins.str":
        budget.spend(args[0].storage.num_bytes // BYTES_PER_UNIT)  # it is read once
        try:
            return Payload("builtins.bytes", Latin1Storage(args[0].storage))
        except UnicodeError:
            return UNKNOWN
    if type(args[0]) is not str:
        return UNKNOWN
    budget.spend(len(args[0]) // BYTES_PER_UNIT)
    try:
        return args[0].encode("latin-1")
    except UnicodeEncodeError:
        return UNKNOWN


def _bytes(args: tuple[Any, ...], budget: Budget) -> Any:
    """`bytes()`: how protocol 2 spells empty bytes."""
    return UNKNOWN if args else b""


def _bytearray(args: tuple[Any, ...], budget: Budget) -> Any:
    if not args:
        return bytearray()
    value = args[0] if len(args) == 1 else _encode(args, budget)
    if type(value) is not bytes:
        return UNKNOWN
    budget.spend(1 + len(value) // BYTES_PER_UNIT)
    return bytearray(value)


def _complex(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 2 or not all(type(part) is float for part in args):
        return UNKNOWN
    return complex(*args)


def _range(args: tuple[Any, ...], budget: Budget) -> Any:
    if not 1 <= len(args) <= 3 or not all(type(part) is int for part in args):
        return UNKNOWN
    return Opaque("builtins.range", args)


def _slice(args: tuple[Any, ...], budget: Budget) -> Any:
    if len(args) != 3 or not all(type(part) in (int, type(None)) for part in args):
        return UNKNOWN
    return Opaque("builtins.slice", args)


def _dict(args: tuple[Any, ...], budget: Budget) -> Any:
    """`dict()` or a copy of one."""
    if not args:
        return {}
    if len(args) != 1 or type(args[0]) is not dict:
        return UNKNOWN
    budget.spend(4 + 2 * len(args[0]))
    return dict(args[0])


def _list(args: tuple[Any, ...], budget: Budget) -> Any:
    """`list()` or a copy of one."""
    if not args:
        return []
    if len(args) != 1 or type(args[0]) not in (list, tuple):
        return UNKNOWN
    budget.spend(4 + len(args[0]) // 4)
    return list(args[0])


def _deque(args: tuple[Any, ...], budget: Budget) -> Any:
    """`deque()` or `deque((), maxlen)`, to which the pickle appends."""
    if args and (len(args) != 2 or args[0] not in ((), []) or not _is_length(args[1])):
        return UNKNOWN
    budget.spend(4)
    return Opaque(DEQUE, args[1:], items=[])


def _is_length(value: Any) -> bool:
    return value is None or (type(value) is int and value >= 0)


def check_length(target: Opaque) -> None:
    """Raises: CorruptError where a deque has more items than it holds: a real one lets the first ones go."""
    longest = target.args[0] if target.name == DEQUE and target.args else None
    if longest is not None and target.items is not None and len(target.items) > longest:
        raise CorruptError(f"the pickle appends more than {longest} items to a deque with that limit")


def _number(name: str) -> Known:
    """`Decimal("1.5")`, `Fraction("1/3")`, `Fraction(1, 3)`."""

    def make(args: tuple[Any, ...], budget: Budget) -> Any:
        is_text = len(args) == 1 and type(args[0]) is str and _NUMBER.fullmatch(args[0])
        is_pair = name == "fractions.Fraction" and len(args) == 2 and {*map(type, args)} == {int} and args[1]
        return Opaque(name, args) if is_text or is_pair else UNKNOWN

    return Known(name, make)


def is_name_only(args: tuple[Any, ...], budget: Budget) -> Any:
    """For a class that a file may mention as a value, and nothing more."""
    return UNKNOWN


DEQUE = "collections.deque"
_NUMBER = re.compile(
    r"-?(?:[0-9]{1,200}(?:\.[0-9]{1,200})?(?:E[+-]?[0-9]{1,18})?|[0-9]{1,200}/[0-9]{1,200}|Infinity|NaN)"
)
_TYPES = ("bool", "bytes", "float", "int", "object", "str", "tuple")
NAMES: dict[str, Any] = {
    **known_names("builtins", dict.fromkeys(_TYPES, is_name_only)),
    **known_names(
        "collections", {"OrderedDict": _ordered_dict, "Counter": _counter, "defaultdict": _defaultdict}
    ),
    **known_names("_codecs", {"encode": _encode}),
    **known_names(
        "builtins",
        {
            "bytes": _bytes,
            "dict": _dict,
            "list": _list,
            "bytearray": _bytearray,
            "complex": _complex,
            "set": _set,
            "frozenset": _frozenset,
            "range": _range,
            "slice": _slice,
        },
    ),
}
_FACTORIES: tuple[Global, ...] = tuple(known for name, known in NAMES.items() if name.startswith("builtins."))
"""What a defaultdict may be made with: builtin types, whose empty values are harmless."""

_FUNCTIONS = ("abs", "len", "max", "min", "round", "sorted", "sum")
_ABSTRACT = (
    *("Callable", "Collection", "Container", "Generator", "Hashable", "ItemsView", "Iterable", "Iterator"),
    *("KeysView", "Mapping", "MutableMapping", "MutableSequence", "MutableSet", "Reversible", "Sequence"),
    *("Set", "Sized", "ValuesView"),
)
NAMES |= known_names("builtins", dict.fromkeys(_FUNCTIONS, is_name_only))
NAMES |= known_names("collections.abc", dict.fromkeys(_ABSTRACT, is_name_only))
NAMES |= {name: _number(name) for name in ("decimal.Decimal", "fractions.Fraction")}
NAMES[DEQUE] = Known(DEQUE, _deque)


def build(target: Any, state: Any, budget: Budget) -> bool:
    """An OrderedDict takes its `_metadata`, as state dicts carry it; other attributes are dropped."""
    if type(target) is not OrderedDict or type(state) is not dict:
        return False
    attributes = dict(state)
    if isinstance(attributes.get("_metadata"), dict):
        vars(target)["_metadata"] = attributes.pop("_metadata")
    elif "_metadata" in attributes and hasattr(target, "_metadata"):
        del target._metadata
    if attributes:
        names = ", ".join(repr(str(name)[:40]) for name in list(attributes)[:5])
        budget.drop(f"attributes that the file sets on dictionaries ({names})")
    return True
