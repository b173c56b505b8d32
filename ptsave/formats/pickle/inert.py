"""A pickle interpreter that is inert: it imports nothing and calls nothing that a pickle names.

A pickle is a program for a stack machine. This machine runs every opcode of protocols 0 to 5, but where
a real one would import a name it pushes a `Global`, and where a real one would call something it makes
an `Opaque` that says what would have been called with what. Only the names in `Shapes.names` stand for
something more, and then only when they are used in exactly the known way.

Time and memory grow with the pickle's length, never with a number written in it: every read is
bounds-checked, copies are charged to a `Budget`, and what is shared stays shared.

Source: CPython's Lib/pickletools.py (the opcodes) and Modules/_pickle.c (their exact behaviour).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ptsave.core.global_names import details, listed
from ptsave.core.nodes import Global, GlobalUse, Opaque, TensorEntry, add_uses
from ptsave.core.storage import MemoryStorage, Storage
from ptsave.errors import CorruptError, LimitError, PtsaveError
from ptsave.formats.pickle.keys import LONG_KEY
from ptsave.formats.pickle.machine import TRUNCATED, Machine
from ptsave.formats.pickle.opcodes import MARKED, PLAIN, check_script_opcode
from ptsave.formats.pickle.shapes import UNITS_OF_TEXT, UNKNOWN, Known, Shapes
from ptsave.own_process import no_garbage_collection

MAX_OPEN_MARKS = 10_000
"""Cap on how deep marks nest. Python's own pickler stops at its recursion limit, near 1000."""

MAX_FOLLOWING = 100
"""Cap on the pickles that are looked at behind the one that is refused."""

_WINDOW_BYTES = 16 * 1024
_MARGIN_BYTES = 8 * 1024
"""More than any operand but a long string has; so much is in memory after each opcode of a window."""
_LONGEST_OPERAND = 8
_RARE_PER_UNIT = 4
"""How many opcodes outside the loop cost as much time as a unit."""
_MET: ContextVar[list[dict[str, GlobalUse]] | None] = ContextVar("names met", default=None)
_HINT = "the file is damaged; copy or download it again"
_SCRIPT_BEGINS = b"\x80\x02"


@dataclass(frozen=True, slots=True)
class Unpickled:
    """What a pickle spells."""

    root: Any
    globals: dict[str, GlobalUse]
    """The dotted names that are not in the allow-list, in the order in which they appear."""
    end: int
    """The position after the pickle's last byte."""
    notes: list[str]
    """What a user should know about the reading."""
    dropped: list[str] = field(default_factory=list)
    """What it says of values and the reader does not keep."""


def load(
    source: Storage | bytes, start: int, shapes: Shapes, where: str, *, is_whole: bool = False
) -> Unpickled:
    """Interpret the pickle that begins at byte `start`; what follows its end is left alone.

    `is_whole`: nothing may follow it, which a reader that goes on would run.

    The source is read a piece at a time, no further than a piece beyond the pickle's end, and long
    strings are left where they are (`Payload`). `where` names the file and the record for messages.

    Raises: CorruptError where it is not a well-formed pickle, or a known shape has impossible values,
    with the byte at which that shows; LimitError past a cap.
    """
    if isinstance(source, bytes):
        source = MemoryStorage(memoryview(source))
    machine = Machine(source, start, shapes, where)
    try:
        if shapes.is_script and machine.take(0, 2) != _SCRIPT_BEGINS:
            raise CorruptError("torch.jit.load reads pickles of protocol 2 alone", where, _HINT)
        with no_garbage_collection():
            root, end = _run(machine)
        if is_whole and end < source.num_bytes:
            machine.uses |= begin(source, shapes, where, end)[1]
            what = f"{source.num_bytes - end} bytes follow the pickle, which some programs read as others"
            raise CorruptError(what, where, _HINT)
    finally:
        if (met := _MET.get()) is not None:
            met.append(machine.uses)
    return Unpickled(root, machine.uses, end, machine.budget.notes, machine.budget.dropped)


@contextmanager
def names_in_errors() -> Iterator[None]:
    """Let an error that is raised meanwhile say which names the pickles have used up to there.

    A file that breaks off after it has called something is refused; what it called is what matters.
    """
    met: list[dict[str, GlobalUse]] = []
    token = _MET.set(met)
    try:
        yield
    except PtsaveError as error:
        uses: dict[str, GlobalUse] = {}
        for part in met:
            add_uses(uses, part)
        if uses and "globals" not in error.details:
            error.what += f"; before that it uses {listed(uses.values())}"
            error.details |= details(uses.values())
        raise
    finally:
        _MET.reset(token)


def begin(source: Storage, shapes: Shapes, where: str, start: int = 0) -> tuple[Any, dict[str, GlobalUse]]:
    """What a file spells that may be a pickle, and the dotted names that an unpickler would meet in it.

    Where the pickle breaks off, None, and the names up to there. Where others follow it, for a program
    that reads one after the other, the names in them, too.
    """
    first = None
    uses: dict[str, GlobalUse] = {}
    for number in range(MAX_FOLLOWING + 1):
        machine = Machine(source, start, shapes, where)
        with no_garbage_collection():
            try:
                root, start = _run(machine)
            except PtsaveError:
                root, start = None, source.num_bytes
        first = root if number == 0 else first
        add_uses(uses, machine.uses)
        if start >= source.num_bytes:
            break
    return first, uses


def _run(machine: Machine) -> tuple[Any, int]:
    """The root object, and the position after the pickle.

    One loop over local variables, the opcodes in the order of how often a state dict has them: this is
    where the time of opening a checkpoint goes. `stack` holds what lies above the last MARK, `frames`
    the stacks below.
    """
    memo = machine.memo
    far_memo = machine.far_memo
    u32 = struct.Struct("<I").unpack_from
    i32 = struct.Struct("<i").unpack_from
    u16 = struct.Struct("<H").unpack_from
    persistent = machine.persistent
    is_python = not machine.shapes.is_script
    stack: list[Any] = []
    frames: list[list[Any]] = []
    start = machine.base
    data, size, pos = b"", 0, 0
    units = num_rare = 0
    try:
        while True:
            if size - pos <= _MARGIN_BYTES and not machine.holds_end:
                machine.refill(pos)
                data, size, pos = machine.data, len(machine.data), 0
            window = pos + _WINDOW_BYTES
            if not machine.holds_end:
                window = min(window, size - _MARGIN_BYTES)
            if machine.frame_end:
                window = min(window, machine.left_in_frame(pos))
            while pos < window:
                op = data[pos]
                pos += 1
                if op >= 0x7E:
                    if op == 0x94 and is_python:  # MEMOIZE
                        if far_memo:
                            machine.remember(len(memo) + len(far_memo), stack[-1])
                        else:
                            memo.append(stack[-1])
                    elif op == 0x8C and is_python:  # SHORT_BINUNICODE
                        end = pos + 1 + data[pos]
                        if end > size:
                            raise CorruptError(TRUNCATED)
                        stack.append(str(data[pos + 1 : end], "utf-8", "surrogatepass"))
                        pos = end
                        units += UNITS_OF_TEXT
                    elif op == 0x86:  # TUPLE2
                        value = stack.pop()
                        stack[-1] = (stack[-1], value)
                        units += 1
                    elif op == 0x85:  # TUPLE1
                        stack[-1] = (stack[-1],)
                        units += 1
                    elif op == 0x89:  # NEWFALSE
                        stack.append(False)
                    elif op == 0x81:  # NEWOBJ
                        args = stack.pop()
                        stack[-1] = machine.new(stack[-1], args, {})
                        num_rare += 1
                    elif op == 0x87:  # TUPLE3
                        last, middle = stack.pop(), stack.pop()
                        stack[-1] = (stack[-1], middle, last)
                        units += 1
                    elif op == 0x88:  # NEWTRUE
                        stack.append(True)
                    else:
                        stack, pos = _rare(machine, op, stack, frames, pos)
                        num_rare += 1
                        if op == 0x95:  # FRAME: the window must end where the frame does
                            window = pos
                            units += 4 + len(frames) // 8
                elif op >= 0x68:
                    if op == 0x72:  # LONG_BINPUT
                        index = u32(data, pos)[0]
                        pos += 4
                        if index == len(memo) and not far_memo:
                            memo.append(stack[-1])
                        else:
                            machine.remember(index, stack[-1])
                    elif op == 0x68:  # BINGET
                        index = data[pos]
                        pos += 1
                        stack.append(memo[index] if index < len(memo) else machine.recall(index))
                    elif op == 0x74:  # TUPLE
                        made = tuple(stack)
                        stack = frames.pop()
                        stack.append(made)
                        units += 2
                    elif op == 0x6A:  # LONG_BINGET
                        index = u32(data, pos)[0]
                        pos += 4
                        stack.append(memo[index] if index < len(memo) else machine.recall(index))
                    elif op == 0x71:  # BINPUT
                        index = data[pos]
                        pos += 1
                        if index == len(memo) and not far_memo:
                            memo.append(stack[-1])
                        else:
                            machine.remember(index, stack[-1])
                    elif op == 0x7D:  # EMPTY_DICT
                        stack.append({})
                        units += 1
                    elif op == 0x75:  # SETITEMS
                        items = stack
                        stack = frames.pop()
                        machine.set_items(stack[-1], items)
                        num_rare += 1
                    else:
                        stack, pos = _rare(machine, op, stack, frames, pos)
                        num_rare += 1
                elif op != 0x2E:  # not STOP
                    if op == 0x4B:  # BININT1
                        stack.append(data[pos])
                        pos += 1
                    elif op == 0x28:  # MARK
                        frames.append(stack)
                        stack = []
                    elif op == 0x52:  # REDUCE
                        args = stack.pop()
                        function = stack[-1]
                        if type(function) is Known and type(args) is tuple:
                            value = function.call(args, machine.budget)
                            if value is UNKNOWN:
                                value = machine.call(function, args)
                            elif type(value) is TensorEntry:
                                machine.num_tensors += 1
                            elif type(value) is Opaque:
                                value = machine.known(value)
                            stack[-1] = value
                        else:
                            stack[-1] = machine.call(function, args)
                        units += 2
                    elif op == 0x58:  # BINUNICODE
                        end = pos + 4 + u32(data, pos)[0]
                        if end > size or end - pos > LONG_KEY:
                            stack.append(machine.take_text(pos + 4, end - pos - 4))
                        else:
                            stack.append(str(data[pos + 4 : end], "utf-8", "surrogatepass"))
                        pos = end
                        units += UNITS_OF_TEXT
                    elif op == 0x4D:  # BININT2
                        stack.append(u16(data, pos)[0])
                        pos += 2
                        units += 1
                    elif op == 0x4A:  # BININT
                        stack.append(i32(data, pos)[0])
                        pos += 4
                        units += 1
                    elif op == 0x51:  # BINPERSID
                        stack[-1] = persistent(stack[-1])
                        units += 2
                    elif op == 0x29:  # EMPTY_TUPLE
                        stack.append(())
                    elif op == 0x4E:  # NONE
                        stack.append(None)
                    elif op == 0x5D:  # EMPTY_LIST
                        stack.append([])
                        units += 1
                    elif op == 0x61 and is_python and type(stack[-2]) is list:  # APPEND
                        value = stack.pop()
                        stack[-1].append(value)
                        num_rare += 1
                    elif op == 0x62:  # BUILD
                        state = stack.pop()
                        stack[-1] = machine.build(stack[-1], state)
                        num_rare += 1
                    else:
                        stack, pos = _rare(machine, op, stack, frames, pos)
                        num_rare += 1
                else:
                    machine.end(pos)
                    if not is_python and (frames or len(stack) > 1):
                        raise CorruptError("the pickle leaves more than one object behind")
                    return stack.pop(), machine.base + pos
            units += num_rare // _RARE_PER_UNIT
            _check_caps(machine, machine.base + pos - start, units, stack, frames)
            units = num_rare = 0
    except (IndexError, struct.error):
        at_end = pos >= size - _LONGEST_OPERAND
        what = TRUNCATED if at_end else "the pickle takes more from the stack than the stack holds"
        raise _placed(machine, CorruptError(what), pos, stack, frames) from None
    except UnicodeDecodeError:
        raise _placed(
            machine, CorruptError("the pickle has a string that is not UTF-8"), pos, stack, frames
        ) from None
    except CorruptError as error:
        raise _placed(machine, error, pos, stack, frames) from None
    except LimitError as error:
        error.where = error.where or machine.where
        raise


def _rare(
    machine: Machine, op: int, stack: list[Any], frames: list[list[Any]], pos: int
) -> tuple[list[Any], int]:
    """Any opcode that the loop does not do itself; returns what is the top stack then, and the position."""
    if machine.shapes.is_script:
        check_script_opcode(machine, op, pos)
    if op in PLAIN:
        return stack, PLAIN[op](machine, stack, pos)
    if op in MARKED:
        below = frames.pop()
        return below, MARKED[op](machine, below, stack, pos)
    if op == 0x30:  # POP
        if not stack:
            return frames.pop(), pos
        stack.pop()
        return stack, pos
    raise CorruptError(f"the data is not a pickle: 0x{op:02x} is not an opcode")


def _check_caps(machine: Machine, read: int, units: int, stack: list[Any], frames: list[list[Any]]) -> None:
    """Check what the last window of the pickle made against the caps."""
    code_bytes = read - machine.payload_bytes
    if code_bytes > machine.max_code_bytes:
        raise LimitError("pickle_code_bytes", machine.max_code_bytes, code_bytes, machine.where)
    if machine.num_tensors > machine.max_tensors:
        raise LimitError("tensors", machine.max_tensors, "more", machine.where)
    if len(frames) > MAX_OPEN_MARKS:
        raise LimitError("open_marks", MAX_OPEN_MARKS, len(frames), machine.where)
    machine.budget.spend(units)
    waiting = len(stack) + sum(map(len, frames)) + len(machine.memo)
    machine.budget.check(waiting // 4)


def _placed(
    machine: Machine, error: CorruptError, pos: int, stack: list[Any], frames: list[list[Any]]
) -> CorruptError:
    """`error` with its place: the record, the byte, and the keys that lead to what was being made."""
    keys = [key for frame in (*frames[-20:], stack) for key in _keys_before(frame[-12:])]
    where = machine.where + (f", at {'.'.join(keys)}" if keys else "") + f", byte {machine.base + pos}"
    return CorruptError(error.what, error.where or where, error.hint or _HINT)


def _keys_before(tail: list[Any]) -> Iterator[str]:
    """The keys in the end of a stack: a text under a container that is being filled, or under the top."""
    for i, item in enumerate(tail):
        opens = i >= len(tail) - 2 or isinstance(tail[i + 1], (dict, list, Opaque, Global))
        if opens and type(item) is str and 0 < len(item) <= LONG_KEY:
            yield item
