"""JSON out of a file that nobody vouches for: one meaning, bounded memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from ptsave.errors import CorruptError, LimitError

MAX_VALUES = 5_000_000
"""Cap on the values (numbers, texts, lists, objects) of one document."""
MAX_WIDE_BYTES = 25_000_000
"""Cap on a document with characters beyond ASCII, which Python holds in up to four times the memory."""
_NEGATIVE_ZERO = re.compile(r"-0(?![0-9.eE])")
_SURROGATE = re.compile("[\ud800-\udfff]")
_HINT = "the file is damaged or was written by a faulty program; get it again from its source"


def parse_object(
    data: bytes | str,
    what: str,
    where: str,
    shrink: Callable[[dict[str, Any]], Any] | None = None,
    times: int = 1,
    *,
    is_finite: bool = False,
) -> dict[str, Any]:
    """The JSON object that `data` spells, bytes in UTF-8; a key that repeats in any object is refused, and so
    is -0.

    Keys at the top are Unicode text. `what` names the document in messages. `shrink` gives what stands for
    each object as soon as it is parsed; a document can hold more of them than memory holds dicts. `times`:
    how many times the cap on values it may have. `is_finite`: whether NaN and Infinity, which Python's own
    reader takes and others do not, are refused.

    Raises: CorruptError, LimitError.
    """
    values = num_values(data)
    if values > times * MAX_VALUES:
        raise LimitError("json_values", times * MAX_VALUES, values, where)
    if not data.isascii() and len(data) > MAX_WIDE_BYTES:
        raise LimitError("wide_json_bytes", MAX_WIDE_BYTES, len(data), where)
    try:
        text = data if isinstance(data, str) else data.decode()
        del data
        hook = _without_negative_zero if _NEGATIVE_ZERO.search(text) else None
        made = _without_repeats if shrink is None else lambda pairs: shrink(_without_repeats(pairs))
        constant = _refused_constant if is_finite else None
        parsed = json.loads(text, object_pairs_hook=made, parse_int=hook, parse_constant=constant)
    except _RepeatedKeyError as error:
        raise CorruptError(f"{what} has two keys {error.key!r}", where, _HINT) from None
    except RecursionError:
        raise CorruptError(f"{what} nests too deeply", where, _HINT) from None
    except ValueError as error:
        reason = getattr(error, "msg", None) or getattr(error, "reason", None) or str(error)[:60]
        raise CorruptError(f"{what} is not JSON ({reason})", where, _HINT) from None
    if not isinstance(parsed, dict):
        raise CorruptError(f"{what} is not a JSON object", where, _HINT)
    if "\\u" in text and not all(map(is_unicode, parsed)):
        raise CorruptError(f"{what} has a key that is not Unicode text", where, _HINT)
    return parsed


def is_unicode(text: str) -> bool:
    """Whether `text` has no surrogate, which JSON's escapes can spell alone and UTF-8 cannot."""
    return text.isascii() or _SURROGATE.search(text) is None


def num_values(data: bytes | str) -> int:
    """The commas and opening brackets of a JSON text: it has no more values than that, and one."""
    return sum(data.count(c) if isinstance(data, str) else data.count(c.encode()) for c in ",[{")


def _without_negative_zero(digits: str) -> int:
    if digits == "-0":
        raise ValueError("a number is negative zero")
    return int(digits)


def _refused_constant(spelled: str) -> float:
    raise ValueError(f"{spelled} is not a number")


class _RepeatedKeyError(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKeyError(key)
            seen.add(key)
    return found
