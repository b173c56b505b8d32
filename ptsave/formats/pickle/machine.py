"""The state of the inert pickle machine, and what each kind of object becomes.

Its methods raise CorruptError without a place: the loop adds it.

Source: CPython's Lib/pickletools.py, Modules/_pickle.c and Lib/copyreg.py.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

from ptsave.core.caps import room
from ptsave.core.nodes import Global, GlobalUse, Opaque, TensorEntry
from ptsave.core.storage import Storage
from ptsave.errors import CorruptError, LimitError
from ptsave.formats.pickle.keys import LONG_KEY, admit, check_by_value, is_by_value
from ptsave.formats.pickle.python_objects import check_length
from ptsave.formats.pickle.shapes import (
    BYTES_PER_UNIT,
    FILE_BYTES_PER_TENSOR,
    FILE_BYTES_PER_UNIT,
    MAX_TENSORS,
    MAX_UNITS,
    UNKNOWN,
    Budget,
    Described,
    Known,
    Payload,
    Shapes,
    as_it_is,
)

MAX_CODE_BYTES = 24 * 1024 * 1024
"""Cap on a pickle's length, its long strings and bytes not counted; more where the file is longer."""
MAX_LINE_BYTES = 64 * 1024 * 1024
"""Cap on a text of protocol 0, which escapes do not let lie in the file."""
MAX_NAME_BYTES = 2048
"""Cap on a module's name, and on a class's."""
MAX_HELD_BYTES = 1024 * 1024
"""Longer strings and bytes stay in the file."""
TRUNCATED = "truncated: the pickle does not end"

_NEW_NAMES = 3
"""The first protocol whose names are Python 3's; those before it spell Python 2's, which are translated."""
_FIRST_PIECE_BYTES = 16 * 1024
_PIECE_BYTES = 1024 * 1024

DICTS = (dict, OrderedDict, defaultdict, Counter)
"""The types whose items a pickle may set."""


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
        whole_bytes = source.file.stored_bytes if source.file is not None else 0
        file_bytes = min(source.num_bytes - start, whole_bytes)
        times = max(shapes.room, room(whole_bytes))  # a zip's records lie beside their pickle
        self.budget = Budget(where, max(times * MAX_UNITS, file_bytes // FILE_BYTES_PER_UNIT))
        self.max_code_bytes = max(shapes.room * MAX_CODE_BYTES, file_bytes)
        self.max_line_bytes = max(MAX_HELD_BYTES, min(file_bytes, MAX_LINE_BYTES))
        """Of a text in protocol 0."""
        self.max_tensors = max(shapes.room * MAX_TENSORS, whole_bytes // FILE_BYTES_PER_TENSOR)
        self.num_tensors = 0
        self.memo: list[Any] = _ScriptMemo() if shapes.is_script else []
        """By index, as picklers number them: from 0, without gaps."""
        self.far_memo: dict[int, Any] = {}
        """The indexes beyond the end of `memo`."""
        self.uses: dict[str, GlobalUse] = {}
        self.frame_end = 0
        """The position in the source at which the open frame ends; 0 while none is open."""
        self.payload_bytes = 0
        """Bytes of long strings so far, which do not count as code."""
        self._piece_bytes = _FIRST_PIECE_BYTES
        self._protocol = 0
        self._with_values: dict[int, Any] = {}
        """By identity: the dictionaries and sets that have a key which is compared by its value."""
        self._known: dict[int, Opaque] = {}
        """By identity: the inert objects that a known shape has made."""
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

    def set_protocol(self, protocol: int) -> None:
        """Let names be understood as `protocol` has them, from here on."""
        if (protocol < _NEW_NAMES) != (self._protocol < _NEW_NAMES):
            self._found.clear()
        self._protocol = protocol

    def open_frame(self, pos: int, num_bytes: int) -> None:
        """Begin a frame at `pos`. No opcode may lie across its end, where readers go on at different bytes.

        Source: CPython's Lib/pickle.py (`_Unframer`), Modules/_pickle.c (`_Unpickler_ReadImpl`).
        """
        if self.frame_end:
            raise CorruptError("the pickle begins a frame inside another frame")
        left = self.total_bytes - self.base - pos
        if num_bytes > left:
            raise CorruptError(f"the pickle has a frame of {num_bytes} bytes where {left} bytes follow")
        self.frame_end = self.base + pos + num_bytes

    def left_in_frame(self, pos: int) -> int:
        """The position of the open frame's end in `data`; closes the frame when that is `pos`."""
        left = self.frame_end - self.base
        if pos < left:
            return left
        if pos > left:
            raise CorruptError("the pickle has an opcode that crosses the end of its frame")
        self.frame_end = 0
        return left + _FIRST_PIECE_BYTES

    def end(self, pos: int) -> None:
        """Check the end of the pickle against the end of its frame."""
        if self.frame_end and self.base + pos != self.frame_end:
            raise CorruptError("the pickle ends inside a frame")

    def take(self, pos: int, num_bytes: int) -> bytes:
        """The `num_bytes` bytes from `pos`."""
        if num_bytes < 0:
            raise CorruptError(f"the pickle has a string of {num_bytes} bytes")
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
        return decode_text(self.take(pos, num_bytes))

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
        return Payload(name, self.source.window(begin, num_bytes))

    def line(self, pos: int, cap: str, max_bytes: int) -> tuple[bytes, int]:
        """The text up to the next newline, and the position after it."""
        data, start = self.data, pos
        end = data.find(b"\n", start, start + max_bytes + 1)
        held = len(data) - pos
        while end < 0 and held <= max_bytes and self.base + pos + held < self.total_bytes:
            # twice as far each time, so that a line costs no more than its length
            held = min(2 * max(held, _FIRST_PIECE_BYTES), self.total_bytes - self.base - pos)
            data, start = self._read(pos, held), 0
            end = data.find(b"\n", 0, max_bytes + 1)
        if end < 0:
            if held <= max_bytes:
                raise CorruptError(TRUNCATED)
            raise LimitError(cap, max_bytes, "more", self.where)
        num_bytes = end - start
        self.budget.spend(1 + num_bytes // BYTES_PER_UNIT)
        if num_bytes > LONG_KEY:
            self.payload_bytes += num_bytes
        return data[start:end], pos + num_bytes + 1

    def remember(self, index: int, value: Any) -> None:
        if index < len(self.memo):
            self.memo[index] = value
        elif index == len(self.memo):
            self.memo.append(value)
            self.far_memo.pop(index, None)
        else:
            if index > self.total_bytes:  # the reader in C makes a table of so many
                raise CorruptError(
                    f"the pickle stores an object as number {index}, in {self.total_bytes} bytes"
                )
            self.budget.spend(2)
            self.far_memo[index] = value

    def recall(self, index: int) -> Any:
        if index < len(self.memo):
            return self.memo[index]
        if index not in self.far_memo:
            raise CorruptError(f"the pickle recalls object {index}, which it never stored")
        return self.far_memo[index]

    def find(self, module: str, name: str) -> Any:
        """What stands for a name: something known, or an inert Global."""
        key = (module, name)
        if key in self._found:
            return self._found[key]
        if len(module) > MAX_NAME_BYTES or len(name) > MAX_NAME_BYTES:
            raise LimitError("name_bytes", MAX_NAME_BYTES, max(len(module), len(name)), self.where)
        if not module or not name:
            raise CorruptError("the pickle has an empty name")
        self.budget.spend(8)
        if self._protocol < _NEW_NAMES and not self.shapes.is_script:
            module, name = NAME_MAPPING.get(key, (IMPORT_MAPPING.get(module, module), name))
        dotted = f"{module}.{name}"
        # a dotted name (a class within a class) is looked up otherwise before protocol 4 than after
        found = self.shapes.names.get(dotted) if "." not in name else None
        if found is None:
            found = Global(dotted)
        is_maker = dotted in CONSTRUCTORS and not self.shapes.is_script
        if type(found) in (Global, Described) and not is_maker:
            self.uses.setdefault(dotted, GlobalUse(dotted, 1))
        self._found[key] = found
        return found

    def use(self, name: str, used_for: str) -> None:
        use = self.uses.setdefault(name, GlobalUse(name))
        if use.used_for == "named":  # before it is used
            use.count = 0
        use.count += 1
        if use.used_for != "called":
            use.used_for = used_for

    def call(self, function: Any, args: Any) -> Any:
        """What stands for `function(*args)`; in TorchScript, a class makes an object of that state."""
        if self.shapes.is_script and type(function) is Global:
            return self.build(self.new(function, (), {}), args)
        if type(args) is not tuple:
            raise CorruptError(f"the pickle calls something with a {type(args).__name__} as its arguments")
        if isinstance(function, Known):
            value = function.call(args, self.budget)
            if value is not UNKNOWN:
                if type(function) is Described:
                    self.use(function.name, "called")
                return self.known(value)
        if isinstance(function, Global):
            if function.name in CONSTRUCTORS and args and isinstance(args[0], Global):
                return CONSTRUCTORS[function.name](self, args)
            self.use(function.name, "called")
            self.budget.spend(4)
            return Opaque(function.name, args)
        if isinstance(function, Opaque):
            self.use(function.name, "called")
            self.budget.spend(4)
            return Opaque("<call>", (function, args))
        raise CorruptError(f"the pickle calls a {type(function).__name__}")

    def new(self, kind: Any, args: Any, kwargs: Any) -> Any:
        """What stands for `kind.__new__(kind, *args, **kwargs)`."""
        if type(args) is not tuple or type(kwargs) is not dict:
            raise CorruptError("the pickle makes an object with malformed arguments")
        if type(kind) is Known and (kind.new or not args) and not kwargs:
            value = kind.call(args, self.budget)
            if value is not UNKNOWN:
                return self.known(value)
        if not isinstance(kind, (Global, Opaque)):
            raise CorruptError(f"the pickle makes an object from a {type(kind).__name__}")
        self.use(kind.name, "built")
        self.budget.spend(4 + len(args) // 8)
        if isinstance(kind, Opaque):
            return Opaque("<call>", (kind, args))
        return Opaque(kind.name, (*args, kwargs) if kwargs else args)

    def persistent(self, persistent_id: Any) -> Any:
        if self.shapes.persistent_load is None:
            raise CorruptError("the pickle refers to an object outside the pickle, and there is none")
        return self.shapes.persistent_load(persistent_id)

    def known(self, value: Any) -> Any:
        """`value`, what a known shape has made; remembers it where nothing but that shape may change it."""
        if type(value) is Opaque:
            self.budget.spend(4)
            self._known[id(value)] = value
        elif type(value) is TensorEntry:
            self.num_tensors += 1
        return value

    def _is_free(self, target: Any) -> bool:
        """Whether it is an object of an unknown class, which may be given any attributes and items."""
        return type(target) is Opaque and id(target) not in self._known

    def build(self, target: Any, state: Any) -> Any:
        """What stands for `target` once `state` is set on it."""
        self.budget.spend(2)
        state = as_it_is(state, self.budget)
        if self._is_free(target) and type(target.state) is dict and type(state) is dict:
            self.budget.spend(len(target.state) // 2)
            state, target.state = target.state | state, None
        if self.shapes.build(target, state, self.budget):
            return target
        if self._is_free(target):
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
        raise CorruptError(f"the pickle sets attributes on a {_spelled(target)}")

    def extend(self, target: Any, items: list[Any]) -> None:
        """Append `items` to a list, or to what an Opaque would be."""
        if type(target) is list:
            target.extend(items)
        else:
            self.add(target, items)

    def add(self, target: Any, items: list[Any]) -> None:
        """Add `items` to what an Opaque would be."""
        if not isinstance(target, Opaque) or not self._takes_items(target):
            raise CorruptError(f"the pickle adds items to a {_spelled(target)}")
        held = [] if target.items is None else target.items
        if isinstance(held, dict):
            raise CorruptError(f"the pickle adds items to a {_spelled(target)}")
        held.extend(items)
        target.items = held
        check_length(target)

    def _takes_items(self, target: Opaque) -> bool:
        """Whether items may be added to it: it is of an unknown class, or was made with a list of them."""
        return self._is_free(target) or (type(target) is Opaque and type(target.items) is list)

    def set_items(self, target: Any, items: list[Any]) -> None:
        """Set `items` (key, value, key, value, …) in a dict, or in what an Opaque would be."""
        if self._is_free(target) and type(target.items) is not list:
            if target.items is None:
                target.items = {}
            target = target.items
        elif type(target) not in DICTS:
            raise CorruptError(f"the pickle sets items in a {_spelled(target)}")
        if len(items) % 2:
            raise CorruptError("the pickle sets a key without a value")
        self.budget.spend(len(items) // 2)
        for i in range(0, len(items), 2):
            key = items[i]
            if type(key) is not str or len(key) > LONG_KEY:
                key = self._admit(key, target)
            target[key] = items[i + 1]

    def add_members(self, target: set[Any], members: list[Any]) -> None:
        """Add `members` to a set."""
        self.budget.spend(len(members))
        for member in members:
            target.add(self._admit(member, target))

    def _admit(self, key: Any, target: Any) -> Any:
        key = admit(key, self.budget)
        if is_by_value(key):
            if id(target) not in self._with_values:
                self.budget.spend(len(target) // 16)
            check_by_value((key, key) if id(target) in self._with_values else (key, *target))
            self._with_values[id(target)] = target
        return key


class _ScriptMemo(list[Any]):
    """The memo of TorchScript's unpickler, for which an object is none before its state is set."""

    def append(self, value: Any) -> None:
        super().append(_made(value))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(index, _made(value))


def _made(value: Any) -> Any:
    if type(value) is Opaque and value.state is None and not value.args:
        raise CorruptError(f"the pickle stores a {value.name} before its state is set")
    return value


def _spelled(value: Any) -> str:
    return value.name if isinstance(value, (Opaque, Global)) else type(value).__name__


def _reconstructor(machine: Machine, args: tuple[Any, ...]) -> Any:
    """`copyreg._reconstructor(cls, base, state)`: how protocols 0 and 1 make an object.

    Source: CPython's Lib/copyreg.py.
    """
    kind, rest = args[0], args[1:]
    if len(rest) == 2 and isinstance(rest[0], Global):
        base, state = rest
        return machine.new(kind, () if state is None else (base, as_it_is(state, machine.budget)), {})
    return machine.new(kind, rest, {})


def _newobj(machine: Machine, args: tuple[Any, ...]) -> Any:
    machine.budget.spend(len(args) // 8)
    return machine.new(args[0], args[1:], {})


def _newobj_ex(machine: Machine, args: tuple[Any, ...]) -> Any:
    if len(args) != 3:
        raise CorruptError("the pickle makes an object with malformed arguments")
    return machine.new(*args)


CONSTRUCTORS: dict[str, Callable[[Machine, tuple[Any, ...]], Any]] = {
    "copyreg._reconstructor": _reconstructor,
    "copyreg.__newobj__": _newobj,
    "copyreg.__newobj_ex__": _newobj_ex,
}
"""Functions that only make an object of the class that they are given."""


def decode_text(raw: bytes, encoding: str = "utf-8", errors: str = "surrogatepass") -> str:
    """`raw` as text. Raises: CorruptError where it is not of that encoding."""
    try:
        return raw.decode(encoding, errors)
    except UnicodeDecodeError:
        raise CorruptError(f"the pickle has a string that is not {encoding}") from None
