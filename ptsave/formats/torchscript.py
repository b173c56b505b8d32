"""TorchScript archives (`torch.jit.save`): their parameters and buffers; their code is not run.

A zip with `data.pkl` (the module's attributes, nested), `constants.pkl` and, under `code/`, one class for
each kind of module. The classes say which attributes are parameters and buffers.

Source: torch/csrc/jit/serialization/python_print.cpp (the classes), pickler.cpp (`data.pkl`),
torch/csrc/jit/frontend, torch/jit/_recursive.py (`state_dict`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.files import InputFile
from ptsave.core.nodes import Opaque, TensorEntry, add_uses
from ptsave.errors import CorruptError, LimitError
from ptsave.formats import torch_objects
from ptsave.formats.base import FileFormat
from ptsave.formats.inert_pickle import Loaded
from ptsave.formats.pickle_shapes import UNKNOWN, Budget, Known, Shapes
from ptsave.formats.pickled_module import OWN_ATTRIBUTES, plain_attributes
from ptsave.formats.torch_zip import (
    ZipStorages,
    check_records,
    data_folder,
    load_record,
    refuse_big_endian,
    top_folder,
)
from ptsave.formats.zip_reader import ZipDirectory
from ptsave.formats.zip_sniff import directory_of, sniffed_directory

MAX_CODE_BYTES = 32 * 1024 * 1024
"""Cap on the text of all classes together."""

OWN_PACKAGE = "__torch__."
"""How the names of an archive's own classes begin; no other is looked up in its code.

Source: torch/csrc/jit/serialization/import_source.cpp."""

# Each stays within a line and always ends: the text is as hostile as the rest of the file.
_LINE = re.compile(
    r"^(?:class (?P<name>\w{1,4096})(?P<base>\(\w{1,100}\))?:$"
    r"|  __(?P<which>parameters|buffers)__ = \[(?P<names>[^\]\n]{0,1000000})\]"
    r"|(?P<end>\S))",
    re.MULTILINE,
)
_QUOTED = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)(?:"|\\?\Z)')


@dataclass(frozen=True, slots=True)
class ModuleClass:
    """What a class in `code/` says of its attributes."""

    parameters: frozenset[str]
    buffers: frozenset[str]


class ScriptModule(Opaque):
    """A module of a TorchScript archive; its children are what `state_dict()` gives, in its order."""

    shared = True
    declared: ModuleClass

    @property
    def is_call_of_scalars(self) -> bool:
        return False

    @cached_property
    def _attributes(self) -> list[tuple[Any, Any]]:
        taken = self.declared.parameters | self.declared.buffers | OWN_ATTRIBUTES
        return plain_attributes(self.state, taken)

    def children(self) -> Iterator[tuple[Any, Any]]:
        state: dict[Any, Any] = self.state
        for names in (self.declared.parameters, self.declared.buffers):
            for name, value in state.items():
                if name in names and isinstance(value, (TensorEntry, Opaque)):
                    yield name, value
        for name, value in state.items():
            if isinstance(value, ScriptModule):
                yield name, value
        yield from self._attributes


def sniff(file: InputFile, head: bytes) -> bool:
    """A zip archive with a `constants.pkl` and a `data.pkl`, which `torch.load` takes for TorchScript too."""
    directory = sniffed_directory(file, head)
    if directory is None:
        return False
    top = top_folder(directory)
    return top is not None and f"{top}constants.pkl" in directory.entries


def read(file: InputFile) -> Checkpoint:
    """Open a TorchScript archive. Tensors are windows into its records.

    Raises: CorruptError, LimitError.
    """
    with ExitStack() as on_failure:
        on_failure.callback(file.close)
        directory = directory_of(file)
        top = data_folder(directory)
        classes, defined, num_files = _classes(directory, f"{top}code/")
        refuse_big_endian(directory, top, "torch.jit.load")

        def build(target: Any, state: Any, budget: Budget) -> bool:
            if isinstance(target, ScriptModule):
                raise CorruptError(f"sets the state of a {target.name} twice")
            if type(target) is Opaque and target.name in classes and type(state) is dict:
                target.__class__ = ScriptModule
                target.declared = classes[target.name]  # type: ignore[attr-defined]
                target.state = state
                return True
            return torch_objects.build(target, state, budget)

        def unpickle(name: str) -> Loaded:
            storages = ZipStorages(directory, f"{top}{name}/", False, has_meta=True)
            return load_record(directory, f"{top}{name}.pkl", Shapes(_SHAPES, build, storages))

        loaded = unpickle("data")
        uses = dict(loaded.globals)
        add_uses(uses, unpickle("constants").globals)  # the code's; no part of the state dict
        checkpoint = Checkpoint(
            FORMAT.name,
            file.path,
            loaded.root,
            globals={name: use for name, use in uses.items() if name not in defined},
            notes=[*loaded.notes, f"holds TorchScript code ({num_files} files), which is not run"],
            num_code_files=num_files,
        )
        checkpoint.checks.append(lambda: check_records(checkpoint, directory))
        checkpoint.files = on_failure.pop_all()
    return checkpoint


FORMAT = FileFormat("torchscript", sniff, read)


def _first(args: tuple[Any, ...], budget: Budget) -> Any:
    """`build_intlist(list)`, `restore_type_tag(value, type)`: the value itself, of a narrower type."""
    return args[0] if args and isinstance(args[0], (list, dict)) else UNKNOWN


_SHAPES: dict[str, Any] = torch_objects.NAMES | {
    f"torch.jit._pickle.{name}": Known(f"torch.jit._pickle.{name}", _first)
    for name in (
        "build_intlist",
        "build_doublelist",
        "build_boollist",
        "build_tensorlist",
        "restore_type_tag",
    )
}


def _classes(directory: ZipDirectory, prefix: str) -> tuple[dict[str, ModuleClass], set[str], int]:
    """Every module class of `code/` by its qualified name; the names of all classes that it defines, which
    torch takes from there and imports from nowhere; and the number of files with code."""
    names = [name for name in directory.entries if name.startswith(prefix) and name.endswith(".py")]
    total = sum(directory.entries[name].num_bytes for name in names)
    if total > MAX_CODE_BYTES:
        raise LimitError("code_bytes", MAX_CODE_BYTES, total, str(directory.file.path))
    modules: dict[str, dict[str, frozenset[str]]] = {}
    defined: set[str] = set()
    for name in names:
        file_module = name[len(prefix) : -len(".py")].replace("/", ".")
        text = directory.read(name, MAX_CODE_BYTES).decode("utf-8", "replace")
        lists: dict[str, frozenset[str]] = {}
        for line in _LINE.finditer(text):
            if line["which"] is not None:
                lists[line["which"]] = frozenset(_QUOTED.findall(line["names"]))
                continue
            lists = {}  # what follows is of something else
            if line["name"] is not None:
                qualified = f"{file_module}.{line['name']}"
                if qualified.startswith(OWN_PACKAGE):
                    defined.add(qualified)
                if line["base"] == "(Module)":
                    modules[qualified] = lists
    nothing: frozenset[str] = frozenset()
    known = {
        name: ModuleClass(lists.get("parameters", nothing), lists.get("buffers", nothing))
        for name, lists in modules.items()
    }
    return known, defined, len(names)
