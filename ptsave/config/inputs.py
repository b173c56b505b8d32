"""What the arguments of forward() are, as plain data: the same from a TOML and from a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

from ptsave.config.model import (
    NOWHERE,
    ConfigPlace,
    to_plain,
)
from ptsave.core.address import Location
from ptsave.core.dtypes import BY_NAME, DType
from ptsave.core.values.cast import can_cast


@dataclass(frozen=True)
class RandomTensor:
    """A tensor of generated numbers; see `core.values.random` for how they are made."""

    shape: tuple[int, ...]
    dtype: DType = BY_NAME["float32"]
    seed: int = 0
    low: float | int | None = None
    """Smallest value. Integers and booleans default to 0."""
    high: float | int | None = None
    """Integers stay below it and default to 2, floats may round up to it."""
    mean: float = 0.0
    std: float = 1.0
    """Of each of the two parts of a complex number."""
    names: tuple[str, ...] = ()
    """What each size is called, and empty where it has no name; `()` where none has."""


@dataclass(frozen=True)
class DataTensor:
    """A tensor whose numbers stand in the TOML."""

    data: Any
    dtype: DType | None = None
    """None: float32, int64 or bool, after the numbers."""


@dataclass(frozen=True)
class FileTensor:
    """One tensor of a file."""

    file: str
    key: str | None = None
    """Its name in the file; not needed when the file holds one tensor."""


@dataclass(frozen=True)
class PlainValue:
    """An argument that is not a tensor, passed as it is."""

    value: Any


@dataclass(frozen=True)
class ListOf:
    """A Python list of inputs: a detector's images."""

    items: tuple[InputSpec, ...]


@dataclass(frozen=True)
class DictOf:
    """A Python dict of inputs: a batch."""

    items: Mapping[str, InputSpec]


InputSpec: TypeAlias = "RandomTensor | DataTensor | FileTensor | PlainValue | ListOf | DictOf"


@dataclass(frozen=True)
class InputsSpec:
    """The arguments of forward()."""

    positional: tuple[InputSpec, ...] = ()
    named: Mapping[str, InputSpec] = field(default_factory=dict)
    file: str | None = None
    """A file whose tensors are arguments by their names, besides the ones above."""
    folder: Location = Path()
    """What a file's name is relative to."""
    place: ConfigPlace = NOWHERE
    digests: Mapping[str, str] = field(default_factory=dict)
    """In a record whose inputs stood in files and are too large for it: path among the arguments → digest.
    The files are named by a config alone, and nothing else is set here."""
    is_recorded: bool = False
    """Whether only a record says so: what the model computes of them is bounded."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for the record; `input_tables.recorded_inputs` reads it back."""
        document: dict[str, Any] = {}
        if self.digests:
            document["digests"] = dict(self.digests)
        if self.positional:
            document["positional"] = [_input_to_plain(spec) for spec in self.positional]
        if self.named:
            document["named"] = {name: _input_to_plain(spec) for name, spec in self.named.items()}
        if self.file is not None:
            document["file"] = self.file
        return document

    @property
    def needs_files(self) -> bool:
        """Whether some of the numbers stand in files."""
        return (
            self.file is not None
            or bool(self.digests)
            or any(map(_needs_files, (*self.positional, *self.named.values())))
        )

    @property
    def random_tensors(self) -> Iterator[RandomTensor]:
        """The tensors of generated numbers, wherever they are."""
        for spec in (*self.positional, *self.named.values()):
            yield from _random_tensors(spec)

    @property
    def num_elements(self) -> int:
        """How many elements the tensors have that are generated, all together."""
        return sum(prod(tensor.shape) for tensor in self.random_tensors)

    @property
    def sizes(self) -> dict[str, int]:
        """Name → example of each named size (`shape = ["batch=4", 10]`), in the order of the inputs."""
        found: dict[str, int] = {}
        for tensor in self.random_tensors:
            found.update((n, size) for n, size in zip(tensor.names, tensor.shape, strict=False) if n)
        return found

    def with_sizes(self, sizes: Mapping[str, int]) -> InputsSpec:
        """The inputs at other values of named sizes; those that `sizes` lacks stay as they are."""

        def resized(tensor: RandomTensor) -> RandomTensor:
            named = zip(tensor.names, tensor.shape, strict=False)
            shape = tuple(sizes.get(name, size) for name, size in named)
            return replace(tensor, shape=shape) if tensor.names else tensor

        return self.mapped(resized)

    def cast(self, dtype: DType) -> InputsSpec:
        """The inputs for a model that is cast to `dtype`: generated floating-point ones are of it."""
        return self.mapped(lambda tensor: replace(tensor, dtype=dtype) if can_cast(tensor.dtype) else tensor)

    def mapped(self, change: Callable[[RandomTensor], InputSpec]) -> InputsSpec:
        """The inputs with each tensor of generated numbers changed, wherever it is."""
        return replace(
            self,
            positional=tuple(_mapped(spec, change) for spec in self.positional),
            named={name: _mapped(spec, change) for name, spec in self.named.items()},
        )


def _needs_files(spec: InputSpec) -> bool:
    if isinstance(spec, (ListOf, DictOf)):
        return any(map(_needs_files, _items(spec)))
    return isinstance(spec, FileTensor)


def _random_tensors(spec: InputSpec) -> Iterator[RandomTensor]:
    if isinstance(spec, (ListOf, DictOf)):
        for item in _items(spec):
            yield from _random_tensors(item)
    elif isinstance(spec, RandomTensor):
        yield spec


def _mapped(spec: InputSpec, change: Callable[[RandomTensor], InputSpec]) -> InputSpec:
    if isinstance(spec, ListOf):
        return ListOf(tuple(_mapped(item, change) for item in spec.items))
    if isinstance(spec, DictOf):
        return DictOf({key: _mapped(item, change) for key, item in spec.items.items()})
    return change(spec) if isinstance(spec, RandomTensor) else spec


def _items(spec: ListOf | DictOf) -> Iterable[InputSpec]:
    return spec.items.values() if isinstance(spec, DictOf) else spec.items


def _input_to_plain(spec: InputSpec) -> dict[str, Any]:
    if isinstance(spec, ListOf):
        return {"list": [_input_to_plain(item) for item in spec.items]}
    if isinstance(spec, DictOf):
        return {"dict": {name: _input_to_plain(item) for name, item in spec.items.items()}}
    if isinstance(spec, PlainValue):
        return {"value": to_plain(spec.value)}
    if isinstance(spec, FileTensor):
        return {"file": spec.file} | ({} if spec.key is None else {"key": spec.key})
    if isinstance(spec, DataTensor):
        return {"data": to_plain(spec.data)} | ({} if spec.dtype is None else {"dtype": spec.dtype.name})
    named = zip(spec.names or ("",) * len(spec.shape), spec.shape, strict=True)
    shape = [f"{name}={size}" if name else size for name, size in named]
    document: dict[str, Any] = {"shape": shape, "dtype": spec.dtype.name, "seed": spec.seed}
    if spec.low is not None:
        return document | {"low": spec.low, "high": spec.high}
    return document | {"mean": spec.mean, "std": spec.std}
