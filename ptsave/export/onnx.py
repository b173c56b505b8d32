"""ONNX: translated by torch's own exporter, written with ptsave's record, run by onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ptsave.core import record as records
from ptsave.core.record import Digests
from ptsave.core.values.digest import DEFAULT
from ptsave.errors import Option, RefusedError, install
from ptsave.export.program import Program, flat_arguments, input_nodes
from ptsave.export.target import RecordOf, Value
from ptsave.formats import open_checkpoint
from ptsave.models.behaviour.judge import FOREIGN_MARGIN
from ptsave.models.behaviour.trace import digest_of
from ptsave.models.inputs import Arguments, output_tensors
from ptsave.own_process import without_messages
from ptsave.storage.scan import tensor_digest
from ptsave.verbs.programs.onnx import module_of, node_digests
from ptsave.verbs.programs.onnx_process import BFLOAT16, OnnxSession

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MAX_INLINE_BYTES = 2**31 - 2**26
"""The most bytes of weights in the file itself: a message of Protocol Buffers has less than 2 GiB."""
ALIGNMENT = 4096
"""Where each tensor of a file of weights begins, so that runtimes can map it."""
Given = Callable[[Arguments, Sequence[str]], Mapping[str, torch.Tensor]]
"""forward()'s arguments → tensors by the names of a graph's inputs."""
Returned = Callable[[Sequence[Any]], dict[str, torch.Tensor]]
"""A graph's outputs (NumPy arrays, in order) → tensors by the paths of the model's outputs."""
_STACK_TRACE = "pkg.torch.onnx.stack_trace"


def check_installed() -> None:
    """Raises: RefusedError where a package of the extra is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        what = (
            f"exporting to ONNX needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not"
        )
        raise RefusedError(f"{what} installed", "", install("export"))


class OnnxTarget:
    """A program in ONNX, as `convert` writes it."""

    name = "onnx"
    margin = FOREIGN_MARGIN

    def __init__(self, program: Program, example: Arguments, opset: int | None) -> None:
        """Translate `program`; `opset` is the version of ONNX's operators, None for the exporter's choice.

        `example`: the arguments whose digests the record has, by the inputs' names.

        Weights stay as they are, under their names in the state dict: what folds and fuses them is left to
        runtimes, which do it when they load a model.

        Raises: RefusedError where torch cannot translate it, or not to that version.
        """
        self._program = program
        pairs = zip(input_nodes(program.exported), flat_arguments(program.exported, example), strict=True)
        given = {node.name: leaf for node, leaf in pairs if isinstance(leaf, torch.Tensor)}
        self._inputs = {name: digest_of(leaf) for name, leaf in given.items()}
        tensors = (*given.values(), *program.exported.state_dict.values())
        if any(tensor.dtype == torch.bfloat16 for tensor in tensors):
            what = "onnxruntime does not compute in bfloat16 on a CPU, so that nothing could be compared"
            raise RefusedError(what, "torch.onnx.export", "export it as float16, or as a .pt2")
        try:
            with torch.no_grad(), without_messages():
                made = torch.onnx.export(
                    program.exported, (), dynamo=True, optimize=False, verbose=False, opset_version=opset
                )
        except Exception as error:  # torch has no common base for what it raises here
            raise _refused(error) from error
        assert made is not None
        self._model: Any = made.model
        written = self._model.opset_imports.get("")
        if opset not in (None, written):  # which torch says in a message alone
            what = f"torch.onnx writes version {written} of ONNX's operators for this model, not {opset}"
            raise RefusedError(what, Option("opset"), f"give {written}, or leave it out")
        self._tidy()

    @property
    def num_bytes(self) -> int:
        """Of all weights."""
        return sum(value.const_value.nbytes for value in self._model.graph.initializers.values())

    @property
    def needs_data(self) -> bool:
        """Whether the weights have to lie in a file of their own."""
        return self.num_bytes > MAX_INLINE_BYTES

    def _tidy(self) -> None:
        """Give torch's symbols the names of sizes in `[inputs]`, and remove the paths of the code."""
        import onnx_ir

        names = self._program.names
        pattern = re.compile(rf"\b({'|'.join(map(re.escape, names)) or '(?!)'})\b")

        def renamed(size: Any) -> Any:
            if not isinstance(size, onnx_ir.SymbolicDim) or size.value is None:
                return size
            return onnx_ir.SymbolicDim(pattern.sub(lambda found: names[found[0]], str(size.value)))

        graph = self._model.graph
        for node in graph.all_nodes():
            node.metadata_props.pop(_STACK_TRACE, None)
        values = [*graph.inputs, *(value for node in graph.all_nodes() for value in node.outputs)]
        for value in values:
            if value.shape is not None and not value.shape.frozen:
                value.shape = onnx_ir.Shape([renamed(size) for size in value.shape])

    def write(self, path: Path, record: RecordOf | None, data: Path | None, location: str) -> None:
        """Write the model to `path`, and its weights to `data`, where they have a file of their own, which
        the model calls `location`. The record is for `complete`."""
        import onnx_ir

        kept = {} if data is None else self._write_data(data, location)
        try:
            proto = onnx_ir.to_proto(self._model)
            path.write_bytes(proto.SerializeToString(deterministic=True))
        finally:
            for name, tensor in kept.items():
                self._model.graph.initializers[name].const_value = tensor

    def complete(self, path: Path, record: RecordOf | None) -> None:
        """Add the record, with the digests of what is in the file at `path`, to its metadata.

        A message that is appended to another one is merged with it: so much of a file is written, not all.

        Source: protobuf.dev, "Encoding", "Last One Wins".
        """
        import onnx

        if record is None:
            return
        with open_checkpoint(path) as checkpoint:
            digests = {name: tensor_digest(entry) for name, entry in checkpoint.tensors.items()}
            facts = {
                "inputs": self._inputs,
                "outputs": self._outputs(),
                "nodes": {name: digest for name, (digest, _) in node_digests(path.read_bytes()).items()},
            }
            text = record(checkpoint, Digests(DEFAULT, digests), facts).to_json()
        entry = onnx.StringStringEntryProto(key=records.KEY, value=text)
        with path.open("ab") as file:
            file.write(onnx.ModelProto(metadata_props=[entry]).SerializeToString(deterministic=True))

    def _outputs(self) -> list[str]:
        """The path of each output of the graph among what the model returns."""
        exported = self._program.exported
        names = exported.graph_signature.user_outputs
        stand_ins = [torch.empty(0) if isinstance(name, str) else name for name in names]
        tree = pytree.tree_unflatten(stand_ins, exported.call_spec.out_spec)
        paths = {id(tensor): path for path, tensor in output_tensors(tree).items()}
        return [paths[id(one)] for one in stand_ins if isinstance(one, torch.Tensor)]

    def runtime(self, path: Path) -> OnnxRuntime:
        """What runs the file at `path`."""
        return OnnxRuntime(path, self._given, self._returned)

    def _given(self, arguments: Arguments, names: Sequence[str]) -> dict[str, torch.Tensor]:
        exported = self._program.exported
        pairs = zip(input_nodes(exported), flat_arguments(exported, arguments), strict=True)
        return {node.name: leaf for node, leaf in pairs if node.name in names}

    def _returned(self, arrays: Sequence[Any]) -> dict[str, torch.Tensor]:
        exported = self._program.exported
        waiting = [tensor_of(array) for array in reversed(arrays)]
        names = exported.graph_signature.user_outputs
        leaves = [waiting.pop() if isinstance(name, str) else name for name in names]
        if waiting:
            raise ValueError(f"{len(arrays)} outputs for {len(leaves)} of the model")
        return output_tensors(pytree.tree_unflatten(leaves, exported.call_spec.out_spec))

    def weights(self, path: Path) -> dict[str, str]:
        """Digest of each tensor of the file at `path`, by its name in the model."""
        with open_checkpoint(path) as checkpoint:
            return {name: tensor_digest(entry) for name, entry in checkpoint.tensors.items()}

    def data_names(self, path: Path) -> set[str]:
        """The files of weights that the model at `path` names; none where it is no model, or not whole."""
        import onnx

        try:
            model = onnx.load(path, load_external_data=False)
        except Exception:  # what the onnx library raises has no common base
            return set()
        entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
        return {entry.value for entry in entries if entry.key == "location"}

    def _write_data(self, data: Path, location: str) -> dict[str, Any]:
        """Write the weights one after the other, and have the model refer to them.

        Returns the tensors that were in the model.
        """
        import onnx_ir

        kept, offset = {}, 0
        with data.open("wb") as file:
            for name, value in self._model.graph.initializers.items():
                tensor = value.const_value
                if tensor.nbytes:  # an empty one would begin behind the end of the file
                    offset += -offset % ALIGNMENT
                file.seek(offset)
                file.write(tensor.tobytes())
                value.const_value = onnx_ir.ExternalTensor(
                    location, offset, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name
                )
                kept[name], offset = tensor, offset + tensor.nbytes
        return kept


def _refused(error: Exception) -> RefusedError:
    """The error for a program that torch cannot translate, with the operator where torch says it.

    Each error is the cause of a more general one.

    Source: torch/onnx/_internal/exporter/_core.py of torch 2.13.
    """
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    said = "\n".join(map(str, causes))
    if missing := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", said):
        what = f"ONNX has no operator for {missing[1]}"
    else:
        node = re.search(r"translating node .*?target=torch\.ops\.([\w.]+)", said)
        reason = str(causes[-1]).strip().partition("\n")[0] or type(causes[-1]).__name__
        what = f"torch.onnx cannot translate {node[1] if node else 'it'}: {reason}"
    return RefusedError(what, "torch.onnx.export", "export a .pt2, or have the model compute it otherwise")


class OnnxRuntime:
    """A model in a file, run by onnxruntime on the CPU."""

    def __init__(self, path: Path, given: Given, returned: Returned) -> None:
        self._path = path
        self._given = given
        self._returned = returned
        self._session = OnnxSession(path)

    def run(self, arguments: Arguments) -> dict[str, torch.Tensor]:
        """The program's outputs by the paths that the model's have."""
        return self._returned(list(self._session.run(self._feeds(arguments))))

    def _feeds(self, arguments: Arguments) -> dict[str, Any]:
        leaves = self._given(arguments, self._session.inputs)
        return {name: array_of(leaf) for name, leaf in leaves.items()}

    def inside(self, arguments: Arguments) -> Iterator[Value]:
        """What each node computes, from a copy of the model in which all of it is an output."""
        import onnx

        model = onnx.load(self._path, load_external_data=False)
        known = {output.name for output in model.graph.output}
        scopes: dict[str, str] = {}
        for node in model.graph.node:
            scopes.update((name, module_of(node)) for name in node.output if name)
        named = [name for name in scopes if name not in known]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in named)
        inside = OnnxSession(self._path, model.SerializeToString())
        for name, array in zip(inside.outputs, inside.run(self._feeds(arguments)), strict=True):
            if array is not None:
                yield Value(scopes.get(name, ""), tensor_of(array))


def array_of(tensor: torch.Tensor) -> Any:
    """A tensor as an array that `OnnxSession` takes."""
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(BFLOAT16)
    return tensor.numpy()


def tensor_of(array: Any) -> torch.Tensor:
    """An array that `OnnxSession` gives as a tensor.

    Raises: ValueError for an output that is none.
    """
    if array is None:
        raise ValueError("an output of the program is no tensor of numbers")
    if array.dtype.names:
        return torch.from_numpy(array.view("<u2")).view(torch.bfloat16)
    return torch.from_numpy(array)
