"""How much of a model a checkpoint fills: each tensor counted once, whatever its names, and by module."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from ptsave.core.nodes import TensorEntry

if TYPE_CHECKING:
    from ptsave.core.parts.keys import Expected


@dataclass(frozen=True)
class ModulePart:
    """A module that is wholly from the file or wholly fresh, or such a tensor of a module that is neither."""

    name: str
    is_from_file: bool
    num_tensors: int
    num_elements: int
    num_buffers: int
    """How many of the tensors are buffers (running means, masks), which no optimizer trains."""


@dataclass(frozen=True)
class Coverage:
    """What of a model's state dict came from a file; a tied tensor counts once."""

    num_tensors: int
    num_tensors_from_file: int
    num_elements: int
    num_elements_from_file: int
    parts: tuple[ModulePart, ...]
    """They make up the model: no tensor is in two of them."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Name that was allowed to be missing → the name under which the file has the same parameter."""

    @property
    def share(self) -> float:
        """From 0 to 1, by elements; by tensors where none has any."""
        if self.num_elements:
            return self.num_elements_from_file / self.num_elements
        return self.num_tensors_from_file / self.num_tensors if self.num_tensors else 1.0

    def sentence(self) -> str:
        """`2 of 4 tensors, 55 of 74 elements (74.3%)`."""
        return (
            f"{self.num_tensors_from_file:,} of {self.num_tensors:,} tensors, "
            f"{self.num_elements_from_file:,} of {self.num_elements:,} elements ({self.share:.1%})"
        )


@dataclass(frozen=True)
class _Tensor:
    name: str
    num_elements: int
    is_buffer: bool
    is_from_file: bool


def account(
    expected: Mapping[str, Expected],
    found: Mapping[str, TensorEntry],
    fresh: Collection[str],
    allowed: Collection[str] = (),
) -> tuple[tuple[str, ...], Coverage]:
    """Which names of a model are fresh, and how much of it is not.

    `expected` and `found` are as in `keys.compare`, without what is left in the file; `fresh` are the names
    that were missed, and `allowed` those that could have been. A parameter with several names is fresh under
    all of them, or under none.
    """
    groups: dict[str, list[str]] = {}
    for name, want in expected.items():
        if not want.is_recomputed:
            groups.setdefault(want.tied_to or name, []).append(name)
    missed = set(fresh)
    tensors = []
    all_fresh: list[str] = []
    tied: dict[str, str] = {}
    for first, names in groups.items():
        there = next((name for name in names if name in found), None)
        is_from_file = there is not None or missed.isdisjoint(names)
        if not is_from_file:
            all_fresh += names
        elif there is not None:
            tied |= {name: there for name in names if name in allowed and name not in found}
        shape = expected[first].shape
        if shape is None:
            shape = found[there].shape if there is not None else (0,)
        tensors.append(_Tensor(first, prod(shape), expected[first].is_buffer, is_from_file))
    all_fresh += [name for name in fresh if name not in expected]
    from_file = [tensor for tensor in tensors if tensor.is_from_file]
    coverage = Coverage(
        num_tensors=len(tensors),
        num_tensors_from_file=len(from_file),
        num_elements=sum(tensor.num_elements for tensor in tensors),
        num_elements_from_file=sum(tensor.num_elements for tensor in from_file),
        parts=tuple(_parts(tensors, "")),
        tied=tied,
    )
    return tuple(all_fresh), coverage


def _parts(tensors: Sequence[_Tensor], module: str) -> Iterator[ModulePart]:
    """The largest modules inside of `module` that are of one kind."""
    front = len(module) + 1 if module else 0
    by_child: dict[str, list[_Tensor]] = {}
    for tensor in tensors:
        child = tensor.name[front:].partition(".")[0]
        by_child.setdefault(tensor.name[:front] + child, []).append(tensor)
    for child, inside in by_child.items():
        if len({tensor.is_from_file for tensor in inside}) == 1:
            yield ModulePart(
                child,
                inside[0].is_from_file,
                len(inside),
                sum(tensor.num_elements for tensor in inside),
                sum(tensor.is_buffer for tensor in inside),
            )
        else:
            yield from _parts(inside, child)
