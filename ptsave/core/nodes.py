"""The nodes of a checkpoint's tree: tensors, inert names and inert objects; and its programs, described."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from ptsave.core.dtypes import DType
from ptsave.core.storage import Storage

BITS = ("conj", "neg")
PARAMETER_ = "parameter_"
UNRESOLVED = tuple(f"{first}{bits}" for first in ("", PARAMETER_) for bits in (*BITS, "conj_neg", "neg_conj"))
"""What `TensorEntry.kind` says of views whose values are the conjugate or the negative of the bytes.
Source: torch._utils.set_tensor_metadata."""


@dataclass(slots=True, eq=False, repr=False)  # not frozen: that would take four times as long to make
class TensorEntry:
    """One tensor: a strided view of a storage. Nothing changes it once its reader has returned it.

    A file's bounds are checked before its TensorEntry exists, so every element lies in the storage.
    """

    name: str
    """The path inside the checkpoint, joined with dots; empty while it is only a node of a tree."""
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    storage: Storage
    offset: int
    """Of the first element in the storage, in elements."""
    kind: str = "tensor"
    """`tensor` or `parameter`; else what it is in the file's own words (`conj`, a subclass's dotted name):
    then converting it needs care."""
    requires_grad: bool = False

    def __repr__(self) -> str:
        return f"TensorEntry({self.name!r}, {self.dtype}, {self.shape})"

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor when laid out contiguously."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def unrepeated_bytes(self) -> int:
        """Bytes of the elements, without those that a stride of 0 repeats."""
        dims = zip(self.shape, self.strides, strict=True)
        return prod(size for size, stride in dims if stride or not size) * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        if 0 in self.shape:
            return True
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1:
                if stride != expected:
                    return False
                expected *= size
        return True

    @property
    def byte_range(self) -> tuple[int, int]:
        """The storage's bytes from the first element to the end of the last; empty when there are none."""
        first = self.offset * self.dtype.itemsize
        if 0 in self.shape:
            return first, first
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        return first, (last + 1) * self.dtype.itemsize

    def expect(self) -> None:
        """Say that it will be read, so that what is remote can be asked for together and ahead."""
        storage = self.storage
        if storage.file is not None and not storage.file.is_remote:
            return  # such a file would do nothing with it, and there may be a hundred thousand tensors
        first, end = self.byte_range
        storage.expect(first, end - first)

    @property
    def view(self) -> tuple[int, int, tuple[int, ...], tuple[int, ...], str]:
        """A key that is equal for two entries that are the same values of the same storage."""
        bits = self.kind.removeprefix(PARAMETER_) if self.kind in UNRESOLVED else ""
        what = f"{bits} {self.dtype.name}" if bits else self.dtype.name
        return (id(self.storage), self.offset, self.shape, self.strides, what)

    def named(self, name: str) -> TensorEntry:
        """The entry under that name: itself where it has it, else a copy."""
        if name == self.name:
            return self
        return TensorEntry(
            name,
            self.dtype,
            self.shape,
            self.strides,
            self.storage,
            self.offset,
            self.kind,
            self.requires_grad,
        )


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides (elements) of `shape`, as torch gives them (a size of 0 counts as 1)."""
    strides = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


@dataclass(frozen=True, slots=True)
class Global:
    """A dotted name that a file mentions. It is never imported."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(eq=False, repr=False)
class Opaque:
    """An object of a class that ptsave does not rebuild: its name and its contents, inert."""

    name: str
    """Dotted, as the file spells it: `argparse.Namespace`."""
    args: tuple[Any, ...] = ()
    """What the file would have called it with."""
    state: Any = None
    """What the file would have set on it (BUILD): most often a dict of attributes."""
    items: list[Any] | dict[Any, Any] | None = None
    """What the file would have appended to or set in it."""

    shared = False
    """Whether a walk enters it each time that it is reached (a module, whose state dict repeats a
    shared submodule's names) or only the first time (all else)."""

    def __repr__(self) -> str:
        """Its name alone: what it holds may be shared without end."""
        return f"<{self.name}>"

    @property
    def num_parts(self) -> int:
        """How many things `children` looks at."""
        state = self.state
        own = len(state) if isinstance(state, dict) else 1
        return len(self.args) + own + (0 if self.items is None else len(self.items))

    @property
    def is_call_of_scalars(self) -> bool:
        """Whether it is fully said by `name(arg, …)`: `pathlib.PosixPath('a', 'b')`."""
        plain = (str, int, float, bool, bytes, type(None))
        return self.state is None and not self.items and all(isinstance(a, plain) for a in self.args)

    is_array = False
    """Whether it is an array of another library."""

    def as_tensor(self) -> TensorEntry | None:
        """The tensor that it is in all but its class: an array of numbers."""
        return None

    def entries(self) -> Iterator[tuple[Any, Any]]:
        """Of a `shared` one, what its `state_dict()` has: values by name, and further shared ones."""
        return self.children()

    def beside(self) -> Iterator[tuple[Any, Any]]:
        """Of a `shared` one, what it holds beside that: a TorchScript module's constants."""
        return iter(())

    def hidden(self) -> Iterator[tuple[Any, Any, bool]]:
        """(key, value, whether it is made again by code) of what `children` does not show."""
        return iter(())

    def children(self) -> Iterator[tuple[Any, Any]]:
        """The contents as (key, value): attributes and items by name, arguments by position."""
        yield from enumerate(self.args)
        if isinstance(self.state, dict):
            yield from self.state.items()
        elif isinstance(self.state, tuple) and len(self.state) == 2 and isinstance(self.state[1], dict):
            # copyreg protocol 2: (instance dict or None, slots dict)
            if isinstance(self.state[0], dict):
                yield from self.state[0].items()
            yield from self.state[1].items()
        elif self.state is not None:
            yield "state", self.state
        if isinstance(self.items, dict):
            yield from self.items.items()
        elif self.items is not None:
            yield from enumerate(self.items)


MAX_INT_BITS = 4096
"""Larger integers are spelled in hexadecimal: Python refuses to print them in decimal."""


def leaf_as_json(
    value: Any, inner: Callable[[Any], Any], other: Callable[[Any], Any], max_bytes: int | None = None
) -> Any:
    """A leaf of a checkpoint as JSON can hold it: inert objects by name, NaN and infinities as words, and of
    bytes at most `max_bytes` as hexadecimal digits.

    `inner` makes JSON of what nests in it, `other` of what is none of these.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= MAX_INT_BITS else hex(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, complex):
        return [inner(value.real), inner(value.imag)]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"bytes": bytes(value[:max_bytes]).hex(), "num_bytes": len(value)}
    if isinstance(value, (list, tuple)):
        return [inner(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((inner(item) for item in value), key=repr)
    if isinstance(value, Mapping):
        return {str(key): inner(item) for key, item in value.items()}
    if isinstance(value, Opaque):
        shown: dict[str, Any] = {"opaque": value.name}
        if value.is_call_of_scalars and value.args:
            shown["args"] = inner(value.args)
        return shown
    if isinstance(value, Global):
        return {"global": value.name}
    if isinstance(value, DType):
        return f"torch.{value.name}"
    return other(value)


@dataclass(slots=True)
class GlobalUse:
    """How a file uses a name that is not in the allow-list."""

    name: str
    count: int = 0
    """How often it is called or built; 1 where it is only named."""
    used_for: str = "named"
    """`called`, `built` or `named`: what a real unpickler would have done with it."""


def add_uses(total: dict[str, GlobalUse], more: Mapping[str, GlobalUse]) -> None:
    """Count the uses of another part of a checkpoint in; the first use of a name says what it is for."""
    for name, use in more.items():
        total.setdefault(name, GlobalUse(name, 0, use.used_for)).count += use.count


@dataclass(frozen=True)
class Port:
    """One input or output."""

    name: str
    type: str
    """The dtype of a tensor as torch spells it; else what it is: `sequence of float32`, `int`."""
    shape: Sequence[int | str] | None = None
    """Numbers, names of sizes that vary, `?` where one is not told; None where none is told."""


@dataclass(frozen=True)
class Program:
    """A program in a checkpoint, which nothing here runs."""

    name: str
    inputs: Sequence[Port] = ()
    outputs: Sequence[Port] = ()
    operators: Mapping[str, int] = field(default_factory=dict)
    """How many nodes call each; those of a library behind its name: `com.microsoft.Gelu`."""
    opsets: Mapping[str, int] = field(default_factory=dict)
    """Of each domain of operators, the version."""
    producer: str = ""
    functions: Sequence[str] = ()
    """Those that it defines itself."""
