"""Plain values in the opcodes that `weights_only` takes, and the memo.

Source: `Lib/pickletools.py` (protocol 2) and `torch/_weights_only_unpickler.py`, which knows protocol 2's
opcodes only, no LONG4, and few globals.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

from ptsave.core.tree import dotted
from ptsave.errors import LossyError, Option

MAX_LONG_BYTES = 255
"""Of one integer: what LONG1 can say."""

Path = tuple[Any, ...]


class Encoder:
    """The opcodes of a pickle in the making. What was memoized is said once and then referred to."""

    def __init__(self, where: str = "") -> None:
        """`where` is for messages."""
        self._where = where
        self._out = bytearray(b"\x80\x02")
        self._memo: dict[Any, int] = {}
        self._kept: list[Any] = []
        """What was memoized by its identity, so that no identity is given out twice."""

    def constant(self, module: str, name: str) -> None:
        """Emit a dotted name."""
        if not self._recall((module, name)):
            self._out += b"c%s\n%s\n" % (module.encode(), name.encode())
            self._memoize((module, name))

    def word(self, text: str, path: Path = ()) -> None:
        """Emit a string that is likely to be met again."""
        if not self._recall(text):
            self.text(text)
            self._memoize(text)

    def mark(self) -> None:
        """Begin a tuple that `end_tuple` ends."""
        self._out += b"("

    def end_tuple(self) -> None:
        """Make a tuple of what was emitted since the last open `mark`."""
        self._out += b"t"

    def reduce(self) -> None:
        """Call what was emitted last but one with the tuple that was emitted last."""
        self._out += b"R"

    def integers(self, values: Sequence[int]) -> None:
        """Emit a tuple of integers."""
        if len(values) > 3:
            self._out += b"("
        for value in values:
            self.integer(value)
        self._out += (b")", b"\x85", b"\x86", b"\x87")[len(values)] if len(values) <= 3 else b"t"

    def integer(self, value: int, path: Path = ()) -> None:
        """Emit an integer."""
        if 0 <= value < 0x100:
            self._out += b"K%c" % value
        elif 0 <= value < 0x10000:
            self._out += b"M" + value.to_bytes(2, "little")
        elif -0x80000000 <= value < 0x80000000:
            self._out += b"J" + value.to_bytes(4, "little", signed=True)
        else:
            num_bytes = value.bit_length() // 8 + 1
            if num_bytes > MAX_LONG_BYTES:
                raise LossyError(
                    f"a .pt file that weights_only loads cannot hold {spelled(path)}: an integer of "
                    f"{num_bytes} bytes",
                    self._where,
                    ("leave it out", Option("drop", lead=" with ")),
                )
            self._out += b"\x8a%c" % num_bytes + value.to_bytes(num_bytes, "little", signed=True)

    def boolean(self, value: bool) -> None:
        """Emit True or False."""
        self._out += b"\x88" if value else b"\x89"

    def empty_ordered_dict(self) -> None:
        """Emit `OrderedDict()`."""
        self.constant("collections", "OrderedDict")
        self._out += b")R"

    def persistent(self) -> None:
        """Turn what was emitted last into a persistent id."""
        self._out += b"Q"

    def _none(self, value: None, path: Path) -> None:
        self._out += b"N"

    def _boolean(self, value: bool, path: Path) -> None:
        self.boolean(value)

    def _float(self, value: float, path: Path) -> None:
        self._out += b"G" + struct.pack(">d", value)

    def _complex(self, value: complex, path: Path) -> None:
        self.constant("__builtin__", "complex")
        self._float(value.real, path)
        self._float(value.imag, path)
        self._out += b"\x86R"

    def text(self, value: str, path: Path = ()) -> None:
        """Emit a string."""
        data = value.encode("utf-8", "surrogatepass")
        self._out += b"X" + len(data).to_bytes(4, "little") + data

    def _bytes(self, value: bytes, path: Path) -> None:
        self.constant("_codecs", "encode")
        self.text(value.decode("latin1"), path)
        self.word("latin1")
        self._out += b"\x86R"

    def _bytearray(self, value: bytearray, path: Path) -> None:
        self.constant("__builtin__", "bytearray")
        self.text(value.decode("latin1"), path)
        self.word("latin1")
        self._out += b"\x86R"

    def _recall(self, key: Any) -> bool:
        """Refer to what was memoized under `key`; False where nothing was."""
        index = self._memo.get(key)
        if index is None:
            return False
        self._out += b"h%c" % index if index < 0x100 else b"j" + index.to_bytes(4, "little")
        return True

    def _memoize(self, key: Any, value: Any = None) -> None:
        index = len(self._kept)  # not of the memo: a tuple that is said twice is one key there
        self._memo[key] = index
        self._kept.append(value)
        self._out += b"q%c" % index if index < 0x100 else b"r" + index.to_bytes(4, "little")


SCALARS: dict[type, Callable[[Encoder, Any, Path], None]] = {
    type(None): Encoder._none,
    bool: Encoder._boolean,
    int: lambda encoder, value, path: encoder.integer(value, path),
    float: Encoder._float,
    complex: Encoder._complex,
    str: Encoder.text,
    bytes: Encoder._bytes,
    bytearray: Encoder._bytearray,
}
"""The types of plain values → what says one."""


def spelled(path: Path) -> str:
    """A path as messages name it."""
    return repr(dotted(path))
