"""torch.export's archive: written with ptsave's record, loaded again and run."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import torch
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from ptsave.config.inputs import InputsSpec
from ptsave.core.behaviour import Sample
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.record import Digests
from ptsave.core.values.digest import DEFAULT
from ptsave.export.program import Program, flat_arguments
from ptsave.export.target import RecordOf, Value
from ptsave.formats import open_checkpoint
from ptsave.formats.programs.pt2 import RECORD
from ptsave.models.behaviour.judge import MARGIN
from ptsave.models.behaviour.trace import cloned, digest_of, samples_of
from ptsave.models.inputs import Arguments, make_inputs, output_tensors
from ptsave.models.seeding import seeded
from ptsave.own_process import without_messages
from ptsave.storage.scan import tensor_digest
from ptsave.verbs.checks.program import file_of
from ptsave.verbs.programs.pt2 import node_digests

STATE_DICT, CONSTANTS = "state_dict", "constants"
"""The keys under which `formats.programs.pt2` lists the two tables of an archive that has constants."""

FOLDER = "archive"
"""What torch calls the folder in an archive that it writes into an open file."""


class Pt2Target:
    """A program as an archive of torch.export, as `convert` writes it."""

    name = "pt2"
    margin = MARGIN
    needs_data = False

    def __init__(self, program: Program) -> None:
        self._exported = program.exported
        self._names = program.names

    @property
    def num_bytes(self) -> int:
        """Of all weights."""
        return sum(tensor.nbytes for tensor in self._exported.state_dict.values())

    def write(self, path: Path, record: RecordOf | None, data: Path | None, location: str) -> None:
        """Write the program to `path`. The record is for `complete`."""
        # Given a path, torch names the archive's folder after it.
        with without_messages(), path.open("wb") as file:
            torch.export.save(self._exported, file)

    def complete(self, path: Path, record: RecordOf | None) -> None:
        """Add the record as an extra file, with the digests of the nodes that the file at `path` has."""
        if record is None:
            return
        with open_checkpoint(path) as checkpoint:
            nodes = {name: digest for name, (digest, _) in node_digests(file_of(checkpoint)).items()}
            facts = {"nodes": nodes, "symbols": dict(self._names)}
            text = record(checkpoint, self._digests(), facts).to_json()
        with ZipFile(path, "a") as archive:
            archive.writestr(ZipInfo(f"{FOLDER}/{RECORD}"), text)

    def _digests(self) -> Digests:
        """The digest of each tensor of the program, by the name that it is listed under in the file."""
        exported = self._exported
        constants = {name: t for name, t in exported.constants.items() if isinstance(t, torch.Tensor)}
        prefixes = (f"{STATE_DICT}.", f"{CONSTANTS}.") if constants else ("", "")
        named: dict[str, torch.Tensor] = {
            f"{prefixes[0]}{name}": t for name, t in exported.state_dict.items()
        }
        named |= {f"{prefixes[1]}{name}": tensor for name, tensor in constants.items()}
        return Digests(DEFAULT, {name: digest_of(tensor.detach()) for name, tensor in named.items()})

    def weights(self, path: Path) -> dict[str, str]:
        """Digest of each tensor of the file at `path`, by its name in the model."""
        with open_checkpoint(path) as checkpoint:
            tensors, has_constants = checkpoint.tensors, bool(checkpoint.constants)
            return {
                name.partition(".")[2] if has_constants else name: tensor_digest(entry)
                for name, entry in tensors.items()
            }

    def data_names(self, path: Path) -> set[str]:
        """The files of weights that the program at `path` names: none."""
        return set()

    def runtime(self, path: Path) -> Pt2Runtime:
        """What runs the file at `path`."""
        return Pt2Runtime(str(path))


class Pt2Runtime:
    """A loaded archive, run by torch."""

    def __init__(self, file: str | io.BytesIO) -> None:
        with without_messages():
            self._exported: ExportedProgram = torch.export.load(file)
        self.module = self._exported.module()

    def run(self, arguments: Arguments) -> dict[str, torch.Tensor]:
        """The program's outputs by their paths."""
        given = cloned(arguments)
        with torch.no_grad(), seeded(0):
            return output_tensors(self.module(*given.args, **given.kwargs))

    def inside(self, arguments: Arguments) -> Iterator[Value]:
        """What each node of the graph computes."""
        given = cloned(arguments)
        leaves = flat_arguments(self._exported, given)
        values: list[Value] = []
        with torch.no_grad(), seeded(0):
            _Watching(self.module, values).run(*leaves)
        yield from values


def runtime_of(checkpoint: Checkpoint) -> Pt2Runtime:
    """What runs the program of an open archive: the bytes that were checked, and nothing is opened again."""
    file = file_of(checkpoint)
    return Pt2Runtime(io.BytesIO(file.read_at(0, file.size_bytes)))


def run_pt2(checkpoint: Checkpoint, inputs: InputsSpec) -> Mapping[str, Sample]:
    """What the program of an open archive computes from `inputs`, by the paths of its outputs."""
    runtime = runtime_of(checkpoint)
    return samples_of(runtime.run(make_inputs(replace(inputs, is_recorded=False), runtime.module)))


class _Watching(Interpreter):
    """Runs a graph node by node and keeps the results of nodes that belong to a module."""

    def __init__(self, module: torch.fx.GraphModule, values: list[Value]) -> None:
        super().__init__(module)
        self._values = values

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        stack = list((n.meta.get("nn_module_stack") or {}).values())
        if stack and isinstance(result, torch.Tensor):
            self._values.append(Value(str(stack[-1][0]).partition("@")[0], result))
        return result
