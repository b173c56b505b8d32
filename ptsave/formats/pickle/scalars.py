"""The opcodes of numbers and strings, binary and in text, that are too rare for the machine's inner loop.

Source: CPython's Lib/pickletools.py and Modules/_pickle.c.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from math import isinf
from struct import Struct
from typing import Any

from ptsave.errors import CorruptError, LimitError
from ptsave.formats.pickle.machine import Machine, decode_text
from ptsave.formats.pickle.shapes import Payload

MAX_INTEGER_BYTES = 1024
"""Cap on an integer: past about 4300 digits Python itself refuses to print one."""
MAX_INTEGER_DIGITS = 2500

_I32 = Struct("<i").unpack_from
_U32 = Struct("<I").unpack_from
_U64 = Struct("<Q").unpack_from
_F64 = Struct(">d").unpack_from

Stack = list[Any]

_DECIMAL = re.compile(rb"0|-?[1-9][0-9]*")
_FLOAT = re.compile(rb"[+-]?(?:([0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|nan|inf|infinity)", re.IGNORECASE)


def decimal(machine: Machine, pos: int, suffix: bytes = b"") -> tuple[int, int]:
    """A decimal number in text, as `repr` writes it, and the position after it.

    Readers differ over all else: over a sign, blanks, underscores, leading zeros, other bases, and a `1` with
    a `+`, which is True for one of them.
    """
    text, pos = machine.line(pos, "integer_digits", MAX_INTEGER_DIGITS)
    text = text.removesuffix(suffix)
    if not _DECIMAL.fullmatch(text):
        raise CorruptError(f"the pickle has a malformed number {text[:40]!r}")
    return int(text), pos


def _int(machine: Machine, stack: Stack, pos: int) -> int:
    special = machine.data[pos : pos + 3]
    if special in (b"00\n", b"01\n"):
        stack.append(special == b"01\n")
        return pos + 3
    value, pos = decimal(machine, pos)
    stack.append(value)
    return pos


def _long(machine: Machine, stack: Stack, pos: int) -> int:
    value, pos = decimal(machine, pos, b"L")
    stack.append(value)
    return pos


def _float(machine: Machine, stack: Stack, pos: int) -> int:
    text, pos = machine.line(pos, "float_digits", MAX_INTEGER_DIGITS)
    spelled = _FLOAT.fullmatch(text)
    value = float(text) if spelled else 0.0
    # digits that overflow are infinite for one reader, and an error for another
    if spelled is None or (spelled[1] and isinf(value)):
        raise CorruptError(f"the pickle has a malformed number {text[:40]!r}")
    stack.append(value)
    return pos


def _binfloat(machine: Machine, stack: Stack, pos: int) -> int:
    stack.append(_F64(machine.data, pos)[0])
    return pos + 8


def _long1(machine: Machine, stack: Stack, pos: int) -> int:
    num_bytes = machine.data[pos]
    stack.append(int.from_bytes(machine.take(pos + 1, num_bytes), "little", signed=True))
    return pos + 1 + num_bytes


def _long4(machine: Machine, stack: Stack, pos: int) -> int:
    num_bytes: int = _I32(machine.data, pos)[0]
    if num_bytes > MAX_INTEGER_BYTES:
        raise LimitError("integer_bytes", MAX_INTEGER_BYTES, num_bytes, machine.where)
    stack.append(int.from_bytes(machine.take(pos + 4, num_bytes), "little", signed=True))
    return pos + 4 + num_bytes


def _unicode(machine: Machine, stack: Stack, pos: int) -> int:
    line, pos = machine.line(pos, "line_bytes", machine.max_line_bytes)
    stack.append(decode_text(line, "raw-unicode-escape", "strict"))
    return pos


def _binunicode8(machine: Machine, stack: Stack, pos: int) -> int:
    num_bytes: int = _U64(machine.data, pos)[0]
    stack.append(machine.take_text(pos + 8, num_bytes))
    return pos + 8 + num_bytes


def _short_binbytes(machine: Machine, stack: Stack, pos: int) -> int:
    num_bytes = machine.data[pos]
    machine.budget.spend(1)
    stack.append(machine.take(pos + 1, num_bytes))
    return pos + 1 + num_bytes


def _binbytes(machine: Machine, stack: Stack, pos: int) -> int:
    num_bytes: int = _U32(machine.data, pos)[0]
    stack.append(machine.take_bytes(pos + 4, num_bytes))
    return pos + 4 + num_bytes


def _binbytes8(machine: Machine, stack: Stack, pos: int) -> int:
    num_bytes: int = _U64(machine.data, pos)[0]
    stack.append(machine.take_bytes(pos + 8, num_bytes))
    return pos + 8 + num_bytes


def _bytearray8(machine: Machine, stack: Stack, pos: int) -> int:
    num_bytes: int = _U64(machine.data, pos)[0]
    machine.budget.spend(1)
    value = machine.take_bytes(pos + 8, num_bytes)
    stack.append(value if isinstance(value, Payload) else bytearray(value))
    return pos + 8 + num_bytes


def _python2_string(raw: bytes) -> str | bytes:
    """A Python 2 `str`: text where it is UTF-8 (as `torch.load` decodes it), else the bytes that it is."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def _short_binstring(machine: Machine, stack: Stack, pos: int) -> int:
    num_bytes = machine.data[pos]
    machine.budget.spend(1)
    stack.append(_python2_string(machine.take(pos + 1, num_bytes)))
    return pos + 1 + num_bytes


def _binstring(machine: Machine, stack: Stack, pos: int) -> int:
    num_bytes: int = _I32(machine.data, pos)[0]
    value = machine.take_bytes(pos + 4, num_bytes)
    stack.append(value if isinstance(value, Payload) else _python2_string(value))
    return pos + 4 + num_bytes


_QUOTED = re.compile(
    rb"""(?:[^\\]|\\(?:[nrtabfv\\'"]|x[0-9a-fA-F]{2}|[0-3][0-7]{2}|[0-7]{1,2}(?![0-7])))*""", re.DOTALL
)
"""A string between its quotes, less what `repr` never writes and readers warn of or refuse."""


def _string(machine: Machine, stack: Stack, pos: int) -> int:
    line, pos = machine.line(pos, "line_bytes", machine.max_line_bytes)
    if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
        raise CorruptError("the pickle has a string without its quotes")
    if not _QUOTED.fullmatch(line, 1, len(line) - 1):
        raise CorruptError("the pickle has a string with a malformed escape")
    stack.append(_python2_string(codecs.escape_decode(line[1:-1])[0]))
    return pos


SCALARS: dict[int, Callable[[Machine, Stack, int], int]] = {
    code[0]: function
    for code, function in {
        b"I": _int,
        b"L": _long,
        b"F": _float,
        b"G": _binfloat,
        b"\x8a": _long1,
        b"\x8b": _long4,
        b"V": _unicode,
        b"\x8d": _binunicode8,
        b"C": _short_binbytes,
        b"B": _binbytes,
        b"\x8e": _binbytes8,
        b"\x96": _bytearray8,
        b"U": _short_binstring,
        b"T": _binstring,
        b"S": _string,
    }.items()
}
