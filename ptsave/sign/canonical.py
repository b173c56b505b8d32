"""Canonical JSON: one spelling for each value, so that a signature of the spelling is one of the value.

Source: RFC 8785 (JSON Canonicalization Scheme): no spaces, keys in the order of their UTF-16 code units,
numbers as ECMAScript spells them, text in UTF-8 with as few escapes as JSON allows.
"""

from __future__ import annotations

import json
import json.encoder
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from ptsave.core.nodes import MAX_INT_BITS, leaf_as_json
from ptsave.errors import LossyError

MAX_EXACT_INT = 2**53 - 1
"""Source: RFC 8785, section 3.2.2.3: numbers are IEEE 754 doubles."""
spelled = json.encoder.encode_basestring
"""A text as canonical JSON has it, before it is encoded."""
_spelled_quickly = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def canonical(value: Any) -> bytes:
    """The canonical JSON of `value`, which consists of what JSON has.

    Raises: LossyError for a number or a text that it cannot spell.
    """
    return in_utf8(_spelled(value))


def array_of_texts(items: list[Any]) -> bytes:
    """`canonical` of an array of texts, integers below 2^53 and arrays of them, quickly.

    Raises: LossyError for text that is not Unicode.
    """
    return in_utf8(_spelled_quickly(items))


def in_utf8(text: str) -> bytes:
    """The bytes of canonical JSON that is spelled.

    Raises: LossyError for text that is not Unicode.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        what = ascii(text[max(error.start - 20, 0) : error.end + 20])
        raise LossyError("a text that is not Unicode cannot be signed", what, "rename it") from None


def plain(value: Any) -> Any:
    """A leaf of a checkpoint as JSON that `canonical` spells.

    Integers of more than 53 bits are `{"int": DIGITS}`, all else is as `leaf_as_json` has it.

    Raises: LossyError for what is not plain data.
    """
    if isinstance(value, int) and abs(value) > MAX_EXACT_INT and value.bit_length() <= MAX_INT_BITS:
        return {"int": str(value)}
    return leaf_as_json(value, plain, _refuse)


def _refuse(value: Any) -> Any:
    raise LossyError(f"a {type(value).__name__} is not plain data", "", "leave it out, or convert it")


def _spelled(value: Any) -> str:
    if isinstance(value, str):
        return spelled(value)
    if isinstance(value, Mapping):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{_spelled(key)}:{_spelled(value[key])}" for key in keys) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_spelled, value)) + "]"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_EXACT_INT:
        raise LossyError("canonical JSON has no integer beyond 2^53", str(value)[:40], "spell it as text")
    return json.dumps(value)


def number(value: float) -> str:
    """A finite double as ECMAScript spells it: the fewest digits that give it back.

    Raises: LossyError for NaN and infinities.

    Source: ECMA-262, Number::toString.
    """
    if not math.isfinite(value):
        raise LossyError(f"canonical JSON has no {value}", "", "spell it as text")
    if value == 0:
        return "0"
    _, parts, exponent = Decimal(repr(abs(value))).normalize().as_tuple()
    digits, sign = "".join(map(str, parts)), "-" if value < 0 else ""
    point = len(digits) + int(exponent)
    if len(digits) <= point <= 21:
        return sign + digits.ljust(point, "0")
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    rest = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{rest}e{point - 1:+d}"
