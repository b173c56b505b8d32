"""The state of the inert pickle machine, and the opcodes that are too rare for its inner loop.

An opcode is a function (machine, stack, position) → position; one that consumes a MARK also gets the
items above the mark. They raise CorruptError without a place: the loop adds it.

Source: CPython's Lib/pickletools.py and Modules/_pickle.c.
"""

from __future__ import annotations

import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from struct import Struct
from typing import Any

from ptsave.core.nodes import Global, GlobalUse, Opaque
from ptsave.core.storage import Storage
from ptsave.errors import CorruptError, LimitError
from ptsave.formats.pickle_keys import LONG_KEY, admit
from ptsave.formats.pickle_shapes import BYTES_PER_UNIT, UNKNOWN, Budget, Described, Known, Payload, Shapes
from ptsave.formats.windows import window

MAX_NAME_BYTES = 2048
"""Cap on a module's name, and on a class's."""
MAX_INTEGER_BYTES = 1024
"""Cap on an integer: past about 4300 digits Python itself refuses to print one."""
MAX_INTEGER_DIGITS = 2500
MAX_HELD_BYTES = 1024 * 1024
"""Longer strings and bytes stay in the file."""
HIGHEST_PROTOCOL = 5
TRUNCATED = "truncated: the pickle does not end"

_FIRST_PIECE_BYTES = 16 * 1024
_PIECE_BYTES = 1024 * 1024

DICTS = (dict, OrderedDict, defaultdict, Counter)
"""The types whose items a pickle may set."""

_U16 = Struct("<H").unpack_from
_I32 = Struct("<i").unpack_from
_U32 = Struct("<I").unpack_from
_U64 = Struct("<Q").unpack_from
_F64 = Struct(">d").unpack_from

Stack = list[Any]


class Machine:
    """One run over one pickle, of which a piece at a time is in memory."""

    def __init__(self, source: Storage, start: int, shapes: Shapes, where: str) -> None:
        self.source = source
        self.total_bytes = source.num_bytes
        self.base = start
        """The position of `data` in the source."""
        self.data = b""
        self.shapes = shapes
        self.where = where
        self.budget = Budget(where)
        self.memo: list[Any] = []
        """By index, as picklers number them: from 0, without gaps."""
        self.far_memo: dict[int, Any] = {}
        """The indexes beyond the end of `memo`."""
        self.uses: dict[str, GlobalUse] = {}
        self.payload_bytes = 0
        """Bytes of long strings so far, which do not count as code."""
        self._piece_bytes = _FIRST_PIECE_BYTES
        self._found: dict[tuple[str, str], Any] = {}

    @property
    def holds_end(self) -> bool:
        """Whether `data` reaches to the end of the source."""
        return self.base + len(self.data) == self.total_bytes

    def refill(self, pos: int) -> None:
        """Let `data` begin where `pos` is now, and reach further."""
        self.base += pos
        self.data = self._read(0, min(self._piece_bytes, self.total_bytes - self.base))
        self._piece_bytes = min(8 * self._piece_bytes, _PIECE_BYTES)

    def _read(self, pos: int, num_bytes: int) -> bytes:
        buffer = bytearray(num_bytes)
        self.source.read_into(self.base + pos, memoryview(buffer))
        return bytes(buffer)

    def take(self, pos: int, num_bytes: int) -> bytes:
        """The `num_bytes` bytes from `pos`."""
        if num_bytes < 0:
            raise CorruptError(f"has a string of {num_bytes} bytes")
        end = pos + num_bytes
        if num_bytes > LONG_KEY:
            self.payload_bytes += num_bytes
            self.budget.spend(num_bytes // BYTES_PER_UNIT)
        if end <= len(self.data):
            return self.data[pos:end]
        if self.base + end > self.total_bytes:
            raise CorruptError(TRUNCATED)
        return self._read(pos, num_bytes)

    def take_text(self, pos: int, num_bytes: int) -> Any:
        """The text in UTF-8 of `num_bytes` bytes from `pos`; a Payload when it is long."""
        if num_bytes > MAX_HELD_BYTES:
            return self._payload("builtins.str", pos, num_bytes)
        return _text(self.take(pos, num_bytes))

    def take_bytes(self, pos: int, num_bytes: int) -> Any:
        """The `num_bytes` bytes from `pos`; a Payload when they are many."""
        if num_bytes > MAX_HELD_BYTES:
            return self._payload("builtins.bytes", pos, num_bytes)
        return self.take(pos, num_bytes)

    def _payload(self, name: str, pos: int, num_bytes: int) -> Payload:
        begin = self.base + pos
        if begin + num_bytes > self.total_bytes:
            raise CorruptError(TRUNCATED)
        self.payload_bytes += num_bytes
        return Payload(name, window(self.source, begin, num_bytes))

    def line(self, pos: int, cap: str, max_bytes: int) -> tuple[bytes, int]:
        """The text up to the next newline, and the position after it."""
        data = self.data
        if len(data) - pos <= max_bytes and not self.holds_end:
            data = self._read(0, min(pos + max_bytes + 1, self.total_bytes - self.base))
        end = data.find(b"\n", pos, pos + max_bytes + 1)
        if end < 0:
            if len(data) <= pos + max_bytes:
                raise CorruptError(TRUNCATED)
            raise LimitError(cap, max_bytes, "more", self.where)
        if end - pos > LONG_KEY:
            self.payload_bytes += end - pos
            self.budget.spend((end - pos) // BYTES_PER_UNIT)
        return data[pos:end], end + 1

    def remember(self, index: int, value: Any) -> None:
        if index < len(self.memo):
            self.memo[index] = value
        elif index == len(self.memo):
            self.memo.append(value)
            self.far_memo.pop(index, None)
        else:
            self.budget.spend(2)
            self.far_memo[index] = value

    def recall(self, index: int) -> Any:
        if index < len(self.memo):
            return self.memo[index]
        if index not in self.far_memo:
            raise CorruptError(f"recalls object {index}, which it never stored")
        return self.far_memo[index]

    def find(self, module: str, name: str) -> Any:
        """What stands for a name: something known, or an inert Global."""
        key = (module, name)
        if key in self._found:
            return self._found[key]
        if len(module) > MAX_NAME_BYTES or len(name) > MAX_NAME_BYTES:
            raise LimitError("name_bytes", MAX_NAME_BYTES, max(len(module), len(name)), self.where)
        self.budget.spend(8)
        # pickles of protocols 0 to 2 spell Python 2's names
        new_module, new_name = NAME_MAPPING.get(key, (IMPORT_MAPPING.get(module, module), name))
        dotted = f"{new_module}.{new_name}"
        found = self.shapes.names.get(dotted)
        if found is None:
            found = Global(dotted)
        if type(found) in (Global, Described) and dotted not in _CONSTRUCTORS:
            self.uses.setdefault(dotted, GlobalUse(dotted))
        self._found[key] = found
        return found

    def use(self, name: str, used_for: str) -> None:
        use = self.uses.setdefault(name, GlobalUse(name))
        use.count += 1
        if use.used_for != "called":
            use.used_for = used_for

    def call(self, function: Any, args: Any) -> Any:
        """What stands for `function(*args)`."""
        if type(args) is not tuple:
            raise CorruptError(f"calls something with a {type(args).__name__} for its arguments")
        if isinstance(function, Known):
            value = function.call(args, self.budget)
            if value is not UNKNOWN:
                if type(function) is Described:
                    self.use(function.name, "called")
                return value
        if isinstance(function, Global):
            if function.name in _CONSTRUCTORS and args and isinstance(args[0], Global):
                return _CONSTRUCTORS[function.name](self, args)
            self.use(function.name, "called")
            self.budget.spend(4)
            return Opaque(function.name, args)
        if isinstance(function, Opaque):
            self.use(function.name, "called")
            self.budget.spend(4)
            return Opaque("<call>", (function, args))
        raise CorruptError(f"calls a {type(function).__name__}")

    def new(self, kind: Any, args: Any, kwargs: Any) -> Any:
        """What stands for `kind.__new__(kind, *args, **kwargs)`."""
        if type(args) is not tuple or type(kwargs) is not dict:
            raise CorruptError("makes an object with malformed arguments")
        if type(kind) is Known and (kind.new or not args) and not kwargs:
            value = kind.call(args, self.budget)
            if value is not UNKNOWN:
                return value
        if not isinstance(kind, (Global, Opaque)):
            raise CorruptError(f"makes an object of a {type(kind).__name__}")
        self.use(kind.name, "built")
        self.budget.spend(4 + len(args) // 8)
        if isinstance(kind, Opaque):
            return Opaque("<call>", (kind, args))
        return Opaque(kind.name, (*args, kwargs) if kwargs else args)

    def persistent(self, persistent_id: Any) -> Any:
        if self.shapes.persistent_load is None:
            raise CorruptError("refers to an object outside of the pickle, where there is none")
        return self.shapes.persistent_load(persistent_id)

    def build(self, target: Any, state: Any) -> Any:
        """What stands for `target` once `state` is set on it."""
        if self.shapes.build(target, state, self.budget):
            return target
        if isinstance(target, Opaque):
            if target.state is None:
                target.state = state
            else:
                self.budget.spend(4)
                target.state = [target.state, state]
            return target
        if isinstance(target, Global):
            self.use(target.name, "built")
            self.budget.spend(4)
            return Opaque(target.name, (), state)
        raise CorruptError(f"sets attributes on a {type(target).__name__}")

    def extend(self, target: Any, items: list[Any]) -> None:
        """Append `items` to a list, or to what an Opaque would be."""
        if type(target) is list:
            target.extend(items)
        elif isinstance(target, Opaque) and (target.items is None or type(target.items) is list):
            if target.items is None:
                target.items = []
            target.items.extend(items)
        else:
            raise CorruptError(f"appends to a {type(target).__name__}")

    def set_items(self, target: Any, items: list[Any]) -> None:
        """Set `items` (key, value, key, value, …) in a dict, or in what an Opaque would be."""
        if isinstance(target, Opaque) and (target.items is None or type(target.items) is dict):
            if target.items is None:
                target.items = {}
            target = target.items
        elif type(target) not in DICTS:
            raise CorruptError(f"sets items in a {type(target).__name__}")
        if len(items) % 2:
            raise CorruptError("sets a key without a value")
        self.budget.spend(len(items) // 2)
        for i in range(0, len(items), 2):
            key = items[i]
            if type(key) is not str or len(key) > LONG_KEY:
                key = admit(key, self.budget)
            target[key] = items[i + 1]


def _reconstructor(machine: Machine, args: tuple[Any, ...]) -> Any:
    """`copyreg._reconstructor(cls, base, state)`: how protocols 0 and 1 make an object.

    Source: CPython's Lib/copyreg.py.
    """
    kind, rest = args[0], args[1:]
    if len(rest) == 2 and isinstance(rest[0], Global) and rest[1] is None:
        return machine.new(kind, (), {})
    return machine.new(kind, rest, {})


def _newobj(machine: Machine, args: tuple[Any, ...]) -> Any:
    machine.budget.spend(len(args) // 8)
    return machine.new(args[0], args[1:], {})


def _newobj_ex(machine: Machine, args: tuple[Any, ...]) -> Any:
    if len(args) != 3:
        raise CorruptError("makes an object with malformed arguments")
    return machine.new(*args)


_CONSTRUCTORS: dict[str, Callable[[Machine, tuple[Any, ...]], Any]] = {
    "copyreg._reconstructor": _reconstructor,
    "copyreg.__newobj__": _newobj,
    "copyreg.__newobj_ex__": _newobj_ex,
}
"""Functions that only make an object of the class that they are given."""


# --- opcodes that need no mark ---------------------------------------------------------------------


def _proto(machine: Machine, stack: Stack, pos: int) -> int:
    if machine.data[pos] > HIGHEST_PROTOCOL:
        raise CorruptError(f"is of pickle protocol {machine.data[pos]}, which does not exist")
    return pos + 1


def _frame(machine: Machine, stack: Stack, pos: int) -> int:
    machine.take(pos, 8)  # a frame's length only helps buffering; no reader needs it
    return pos + 8


def _put(machine: Machine, stack: Stack, pos: int) -> int:
    index, pos = _decimal(machine, pos)
    if index < 0:
        raise CorruptError("stores an object under a negative index")
    machine.remember(index, stack[-1])
    return pos


def _get(machine: Machine, stack: Stack, pos: int) -> int:
    index, pos = _decimal(machine, pos)
    if index < 0:
        raise CorruptError("recalls a negative index")
    stack.append(machine.recall(index))
    return pos


def _dup(machine: Machine, stack: Stack, pos: int) -> int:
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


_DECIMAL = re.compile(rb"[+-]?(0|[1-9][0-9]*)")


def _decimal(machine: Machine, pos: int) -> tuple[int, int]:
    """A decimal number in text. Leading zeros are refused: C readers take them for octal."""
    text, pos = machine.line(pos, "integer_digits", MAX_INTEGER_DIGITS)
    text = text.removesuffix(b"L").strip()
    if not _DECIMAL.fullmatch(text):
        raise CorruptError(f"has a malformed number {text[:40]!r}")
    return int(text), pos


def _int(machine: Machine, stack: Stack, pos: int) -> int:
    special = machine.data[pos : pos + 3]
    if special in (b"00\n", b"01\n"):
        stack.append(special == b"01\n")
        return pos + 3
    value, pos = _decimal(machine, pos)
    stack.append(value)
    return pos


def _long(machine: Machine, stack: Stack, pos: int) -> int:
    value, pos = _decimal(machine, pos)
    stack.append(value)
    return pos


def _float(machine: Machine, stack: Stack, pos: int) -> int:
    text, pos = machine.line(pos, "float_digits", MAX_INTEGER_DIGITS)
    try:
        stack.append(float(text))
    except ValueError:
        raise CorruptError(f"has a malformed number {text[:40]!r}") from None
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


def _text(raw: bytes, encoding: str = "utf-8", errors: str = "surrogatepass") -> str:
    try:
        return raw.decode(encoding, errors)
    except UnicodeDecodeError:
        raise CorruptError(f"has a string that is not {encoding}") from None


def _unicode(machine: Machine, stack: Stack, pos: int) -> int:
    line, pos = machine.line(pos, "line_bytes", MAX_HELD_BYTES)
    stack.append(_text(line, "raw-unicode-escape", "strict"))
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


_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\\": b"\\", b"'": b"'", b'"': b'"'}
_ESCAPES |= {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    if len(code) == 3 and code[:1] == b"x":
        return bytes([int(code[1:], 16)])
    if code[:1].isdigit() and code[0] < 0x38:
        return bytes([int(code, 8) & 0xFF])
    return _ESCAPES.get(code, match[0])


def _string(machine: Machine, stack: Stack, pos: int) -> int:
    line, pos = machine.line(pos, "line_bytes", MAX_HELD_BYTES)
    line = line.strip()
    if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
        raise CorruptError("has a string without its quotes")
    stack.append(_python2_string(_ESCAPE.sub(_unescape, line[1:-1])))
    return pos


def _global(machine: Machine, stack: Stack, pos: int) -> int:
    module, pos = machine.line(pos, "name_bytes", MAX_NAME_BYTES)
    name, pos = machine.line(pos, "name_bytes", MAX_NAME_BYTES)
    stack.append(machine.find(_text(module, errors="strict"), _text(name, errors="strict")))
    return pos


def _stack_global(machine: Machine, stack: Stack, pos: int) -> int:
    name, module = stack.pop(), stack.pop()
    if type(name) is not str or type(module) is not str:
        raise CorruptError("names a class with something that is not text")
    stack.append(machine.find(module, name))
    return pos


def _extension(machine: Machine, stack: Stack, code: int) -> None:
    """A number from the reading program's own `copyreg` registry; what it would be, no file says."""
    if code <= 0:
        raise CorruptError(f"names the extension {code}, which cannot be")
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


def _newobj_opcode(machine: Machine, stack: Stack, pos: int) -> int:
    args = stack.pop()
    stack[-1] = machine.new(stack[-1], args, {})
    return pos


def _newobj_ex_opcode(machine: Machine, stack: Stack, pos: int) -> int:
    kwargs, args = stack.pop(), stack.pop()
    stack[-1] = machine.new(stack[-1], args, kwargs)
    return pos


def _build(machine: Machine, stack: Stack, pos: int) -> int:
    state = stack.pop()
    stack[-1] = machine.build(stack[-1], state)
    return pos


def _persid(machine: Machine, stack: Stack, pos: int) -> int:
    line, pos = machine.line(pos, "line_bytes", MAX_NAME_BYTES)
    stack.append(machine.persistent(_text(line, "ascii", "strict")))
    return pos


def _next_buffer(machine: Machine, stack: Stack, pos: int) -> int:
    raise CorruptError("refers to a buffer outside of the pickle, where there is none")


def _readonly_buffer(machine: Machine, stack: Stack, pos: int) -> int:
    if not isinstance(stack[-1], (bytes, bytearray)):
        raise CorruptError(f"makes a {type(stack[-1]).__name__} read-only")
    return pos


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
        b"c": _global,
        b"\x93": _stack_global,
        b"\x82": _ext1,
        b"\x83": _ext2,
        b"\x84": _ext4,
        b"\x81": _newobj_opcode,
        b"\x92": _newobj_ex_opcode,
        b"b": _build,
        b"P": _persid,
        b"\x97": _next_buffer,
        b"\x98": _readonly_buffer,
    }.items()
}


# --- opcodes that consume a mark -------------------------------------------------------------------


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


def _setitems(machine: Machine, stack: Stack, items: Stack, pos: int) -> int:
    machine.set_items(stack[-1], items)
    return pos


def _appends(machine: Machine, stack: Stack, items: Stack, pos: int) -> int:
    machine.extend(stack[-1], items)
    return pos


def _frozenset(machine: Machine, stack: Stack, items: Stack, pos: int) -> int:
    machine.budget.spend(4 + len(items))
    stack.append(frozenset(admit(item, machine.budget) for item in items))
    return pos


def _additems(machine: Machine, stack: Stack, items: Stack, pos: int) -> int:
    target = stack[-1]
    if type(target) is set:
        machine.budget.spend(len(items))
        target.update(admit(item, machine.budget) for item in items)
    else:
        machine.extend(target, items)
    return pos


def _inst(machine: Machine, stack: Stack, items: Stack, pos: int) -> int:
    pos = _global(machine, stack, pos)
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
        b"u": _setitems,
        b"e": _appends,
        b"\x91": _frozenset,
        b"\x90": _additems,
        b"i": _inst,
        b"o": _obj,
    }.items()
}
