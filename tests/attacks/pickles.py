"""A pickle assembler: opcodes as bytes, and trees of values with inert calls in them.

Source: CPython's `Lib/pickletools.py`, which documents every opcode.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from .registry import CANARY, CANARY_MODULE

PROTO2 = b"\x80\x02"
PROTO4 = b"\x80\x04"
MARK, STOP, POP, DUP, NONE = b"(", b".", b"0", b"2", b"N"
EMPTY_TUPLE, EMPTY_LIST, EMPTY_DICT, EMPTY_SET = b")", b"]", b"}", b"\x8f"
TUPLE1, TUPLE2, TUPLE3, TUPLE = b"\x85", b"\x86", b"\x87", b"t"
REDUCE, BUILD, NEWOBJ, NEWOBJ_EX, OBJ, INST = b"R", b"b", b"\x81", b"\x92", b"o", b"i"
SETITEM, SETITEMS, APPEND, APPENDS, ADDITEMS = b"s", b"u", b"a", b"e", b"\x90"
STACK_GLOBAL, BINPERSID, MEMOIZE, FROZENSET = b"\x93", b"Q", b"\x94", b"\x91"

TOUCH = f"touch {CANARY}"
OPEN = f"open({CANARY!r}, 'w').close()"


def glob(module: str, name: str) -> bytes:
    """GLOBAL: protocol 0's text form."""
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    """BININT where it fits, else LONG4."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(data)) + data


def stack_glob(module: str, name: str) -> bytes:
    """STACK_GLOBAL (protocol 4)."""
    return text(module) + text(name) + STACK_GLOBAL


def get(index: int) -> bytes:
    """LONG_BINGET."""
    return b"j" + struct.pack("<I", index)


def put(index: int) -> bytes:
    """LONG_BINPUT."""
    return b"r" + struct.pack("<I", index)


@dataclass(frozen=True)
class Name:
    """A global that is only named."""

    module: str
    name: str


@dataclass(frozen=True, eq=False)
class Call:
    """`function(*args)` by REDUCE, then BUILD with `state` where there is one."""

    function: Any
    args: Any = ()
    state: Any = None


@dataclass(frozen=True, eq=False)
class New:
    """`cls.__new__(cls, *args)` by NEWOBJ, then BUILD."""

    cls: Any
    args: Any = ()
    state: Any = None


@dataclass(frozen=True)
class Pers:
    """A persistent id."""

    pid: Any


@dataclass(frozen=True)
class Raw:
    """Opcodes that leave one value on the stack."""

    code: bytes


@dataclass(eq=False)
class Shared:
    """A value that is written once and fetched from the memo after that."""

    value: Any
    index: list[int] = field(default_factory=list)


def dump(value: Any, proto: bytes = PROTO2) -> bytes:
    """A pickle of a tree of plain values and of the nodes above."""
    memo = iter(range(1, 2**31))
    out: list[bytes] = [proto]

    def put_all(values: Any) -> None:
        for item in values:
            write(item)

    def write(node: Any) -> None:
        if node is None:
            out.append(NONE)
        elif isinstance(node, bool):
            out.append(b"\x88" if node else b"\x89")
        elif isinstance(node, int):
            out.append(integer(node))
        elif isinstance(node, float):
            out.append(b"G" + struct.pack(">d", node))
        elif isinstance(node, str):
            out.append(text(node))
        elif isinstance(node, bytes):
            out.append(b"B" + struct.pack("<I", len(node)) + node)
        elif isinstance(node, tuple):
            out.append(MARK)
            put_all(node)
            out.append(TUPLE)
        elif isinstance(node, list):
            out.append(EMPTY_LIST + MARK)
            put_all(node)
            out.append(APPENDS)
        elif isinstance(node, OrderedDict):
            write(Call(Name("collections", "OrderedDict")))
            set_items(node)
        elif isinstance(node, dict):
            out.append(EMPTY_DICT)
            set_items(node)
        elif isinstance(node, Name):
            out.append(glob(node.module, node.name))
        elif isinstance(node, (Call, New)):
            write(node.function if isinstance(node, Call) else node.cls)
            write(node.args)
            out.append(REDUCE if isinstance(node, Call) else NEWOBJ)
            if node.state is not None:
                write(node.state)
                out.append(BUILD)
        elif isinstance(node, Pers):
            write(node.pid)
            out.append(BINPERSID)
        elif isinstance(node, Shared):
            if node.index:
                out.append(get(node.index[0]))
            else:
                write(node.value)
                node.index.append(next(memo))
                out.append(put(node.index[0]))
        else:
            out.append(node.code)

    def set_items(node: dict[Any, Any]) -> None:
        if not node:
            return  # as pickle's own
        out.append(MARK)
        for key, item in node.items():
            write(key)
            write(item)
        out.append(SETITEMS)

    write(value)
    out.append(STOP)
    return b"".join(out)


SYSTEM = Name("os", "system")
EVIL = Call(SYSTEM, (TOUCH,))
"""The payload that needs no import of anything new."""
IMPORTS = Call(Name(CANARY_MODULE, "fire"))
"""The payload that already succeeds when the name is merely looked up."""
