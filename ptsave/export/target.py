"""What a format of exported programs is: how one is written, read back and run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.record import Digests, Record
from ptsave.models.inputs import Arguments

RecordOf = Callable[[Checkpoint, Digests, Mapping[str, Any]], Record]
"""Makes the record of a program, given its file, the digests of what is in it, and what else is known."""


@dataclass(frozen=True)
class Value:
    """An intermediate value of a program, and the module that it belongs to."""

    module: str
    """Its fully qualified name, as the exporter noted it."""
    tensor: torch.Tensor


class Runtime(Protocol):
    """What runs an exported program."""

    def run(self, arguments: Arguments) -> dict[str, torch.Tensor]:
        """The program's outputs, by the paths that the model's have."""

    def inside(self, arguments: Arguments) -> Iterator[Value]:
        """Every intermediate value that the program computes."""


class Target(Protocol):
    """A program in one format."""

    name: str
    margin: float
    """The judge's margin: how many times rounding's own effect a difference may be."""

    @property
    def num_bytes(self) -> int:
        """Of all weights."""

    @property
    def needs_data(self) -> bool:
        """Whether the weights have to lie in a file of their own."""

    def write(self, path: Path, record: RecordOf | None, data: Path | None, location: str) -> None:
        """Write it to `path`, and its weights to `data`, which it refers to as `location`."""

    def complete(self, path: Path, record: RecordOf | None) -> None:
        """Add what is known once all is written."""

    def weights(self, path: Path) -> Mapping[str, str]:
        """Digest of each tensor of the file at `path`, by its name in the model."""

    def data_names(self, path: Path) -> set[str]:
        """The files of weights that the program at `path` names."""

    def runtime(self, path: Path) -> Runtime:
        """What runs the file at `path`."""
