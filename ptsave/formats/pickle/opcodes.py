"""The opcodes of the stack, the memo and objects that are too rare for the machine's inner loop.

An opcode is a function (machine, stack, position) → position; one that consumes a MARK also gets the
items above the mark. They raise CorruptError without a place: the loop adds it.

Source: CPython's Lib/pickletools.py and Modules/_pickle.c.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any

from ptsave.errors import CorruptError
from ptsave.formats.pickle.keys import admit_all
from ptsave.formats.pickle.machine import MAX_NAME_BYTES, Machine, decode_text
from ptsave.formats.pickle.scalars import SCALARS, decimal

HIGHEST_PROTOCOL = 5

_U16 = Struct("<H").unpack_from
_I32 = Struct("<i").unpack_from
_U64 = Struct("<Q").unpack_from

Stack = list[Any]


def _proto(machine: Machine, stack: Stack, pos: int) -> int:
    protocol = machine.data[pos]
    if protocol > HIGHEST_PROTOCOL:
        raise CorruptError(f"the pickle has protocol {protocol}, which does not exist")
    machine.set_protocol(protocol)
    return pos + 1


def _frame(machine: Machine, stack: Stack, pos: int) -> int:
    machine.open_frame(pos + 8, _U64(machine.data, pos)[0])
    return pos + 8


def _put(machine: Machine, stack: Stack, pos: int) -> int:
    index, pos = decimal(machine, pos)
    if index < 0:
        raise CorruptError("the pickle stores an object under a negative index")
    machine.remember(index, stack[-1])
    return pos


def _get(machine: Machine, stack: Stack, pos: int) -> int:
    index, pos = decimal(machine, pos)
    if index < 0:
        raise CorruptError("the pickle recalls a negative index")
    stack.append(machine.recall(index))
    return pos


def _dup(machine: Machine, stack: Stack, pos: int) -> int:
    machine.budget.spend(1)
    stack.append(stack[-1])
    return pos


def _setitem(machine: Machine, stack: Stack, pos: int) -> int:
    value = stack.pop()
    key = stack.pop()
    machine.set_items(stack[-1], [key, value])
    return pos


def _append(machine: Machine, stack: Stack, pos: int) -> int:
    value = stack.pop()
    machine.extend(stack[-1], [value])
    return pos


def _empty_set(machine: Machine, stack: Stack, pos: int) -> int:
    machine.budget.spend(4)
    stack.append(set())
    return pos


def _global(machine: Machine, stack: Stack, pos: int, encoding: str = "utf-8") -> int:
    machine.budget.spend(4)
    module, pos = machine.line(pos, "name_bytes", MAX_NAME_BYTES)
    name, pos = machine.line(pos, "name_bytes", MAX_NAME_BYTES)
    stack.append(machine.find(*(decode_text(line, encoding, "strict") for line in (module, name))))
    return pos


def _stack_global(machine: Machine, stack: Stack, pos: int) -> int:
    name, module = stack.pop(), stack.pop()
    if type(name) is not str or type(module) is not str:
        raise CorruptError("the pickle names a class with a value that is not text")
    stack.append(machine.find(module, name))
    return pos


def _extension(machine: Machine, stack: Stack, code: int) -> None:
    """A number from the reading program's own `copyreg` registry; what it would be, no file says."""
    if code <= 0:
        raise CorruptError(f"the pickle names the extension {code}, which is out of range")
    stack.append(machine.find("copyreg", f"extension_{code}"))


def _ext1(machine: Machine, stack: Stack, pos: int) -> int:
    _extension(machine, stack, machine.data[pos])
    return pos + 1


def _ext2(machine: Machine, stack: Stack, pos: int) -> int:
    _extension(machine, stack, _U16(machine.data, pos)[0])
    return pos + 2


def _ext4(machine: Machine, stack: Stack, pos: int) -> int:
    _extension(machine, stack, _I32(machine.data, pos)[0])
    return pos + 4


def _newobj_ex_opcode(machine: Machine, stack: Stack, pos: int) -> int:
    kwargs, args = stack.pop(), stack.pop()
    stack[-1] = machine.new(stack[-1], args, kwargs)
    return pos


def _persid(machine: Machine, stack: Stack, pos: int) -> int:
    line, pos = machine.line(pos, "line_bytes", MAX_NAME_BYTES)
    stack.append(machine.persistent(decode_text(line, "ascii", "strict")))
    return pos


def _next_buffer(machine: Machine, stack: Stack, pos: int) -> int:
    raise CorruptError("the pickle refers to a buffer outside the pickle, and there is none")


def _readonly_buffer(machine: Machine, stack: Stack, pos: int) -> int:
    # pickles have it after NEXT_BUFFER only; a bytearray would become a memoryview
    raise CorruptError("the pickle makes a buffer read-only, and there is no buffer")


PLAIN: dict[int, Callable[[Machine, Stack, int], int]] = {
    code[0]: function
    for code, function in {
        b"\x80": _proto,
        b"\x95": _frame,
        b"p": _put,
        b"g": _get,
        b"2": _dup,
        b"s": _setitem,
        b"a": _append,
        b"\x8f": _empty_set,
        b"c": _global,
        b"\x93": _stack_global,
        b"\x82": _ext1,
        b"\x83": _ext2,
        b"\x84": _ext4,
        b"\x92": _newobj_ex_opcode,
        b"P": _persid,
        b"\x97": _next_buffer,
        b"\x98": _readonly_buffer,
    }.items()
} | SCALARS


def _pop_mark(machine: Machine, stack: Stack, items: Stack, pos: int) -> int:
    return pos


def _list(machine: Machine, stack: Stack, items: Stack, pos: int) -> int:
    stack.append(items)
    return pos


def _dict(machine: Machine, stack: Stack, items: Stack, pos: int) -> int:
    made: dict[Any, Any] = {}
    machine.set_items(made, items)
    stack.append(made)
    return pos


def _appends(machine: Machine, stack: Stack, items: Stack, pos: int) -> int:
    machine.extend(stack[-1], items)
    return pos


def _frozenset(machine: Machine, stack: Stack, items: Stack, pos: int) -> int:
    machine.budget.spend(4 + len(items))
    stack.append(frozenset(admit_all(items, machine.budget)))
    return pos


def _additems(machine: Machine, stack: Stack, items: Stack, pos: int) -> int:
    target = stack[-1]
    if type(target) is set:
        machine.add_members(target, items)
    else:
        machine.add(target, items)
    return pos


def _inst(machine: Machine, stack: Stack, items: Stack, pos: int) -> int:
    pos = _global(machine, stack, pos, "ascii")
    stack[-1] = machine.call(stack[-1], tuple(items))
    return pos


def _obj(machine: Machine, stack: Stack, items: Stack, pos: int) -> int:
    stack.append(machine.call(items[0], tuple(items[1:])))
    return pos


MARKED: dict[int, Callable[[Machine, Stack, Stack, int], int]] = {
    code[0]: function
    for code, function in {
        b"1": _pop_mark,
        b"l": _list,
        b"d": _dict,
        b"e": _appends,
        b"\x91": _frozenset,
        b"\x90": _additems,
        b"i": _inst,
        b"o": _obj,
    }.items()
}


_SCRIPT_OPCODES = frozenset(b"().GJKMNQRX]bcdehjlqrstu}\x81\x85\x86\x87\x88\x89\x8a")
_PROTO = b"\x80"[0]
_LONG1 = b"\x8a"[0]


def check_script_opcode(machine: Machine, op: int, pos: int) -> None:
    """Insist on what TorchScript's unpickler knows: protocol 2, less APPEND, text opcodes and most others.

    Source: torch/csrc/jit/serialization/unpickler.cpp (`Unpickler::run`, `readInstruction`).

    Raises: CorruptError.
    """
    if op == _PROTO and machine.base + pos == 1 and machine.data[pos] == 2:
        return
    if op not in _SCRIPT_OPCODES or (op == _LONG1 and machine.data[pos] != 8):
        raise CorruptError(f"torch.jit.load does not read the opcode 0x{op:02x} as it is used there")
