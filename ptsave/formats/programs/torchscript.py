"""TorchScript archives (`torch.jit.save`): all tensors that they hold; their code is not run.

A zip with `data.pkl` (the module's attributes, nested), `constants.pkl` and, under `code/`, one class for
each kind of module. Listed is every tensor: first what `state_dict()` gives, which the classes say, then
those in other attributes (packed parameters, lists, plain tensors), then the constants of the code as the
code calls them, `CONSTANTS.c0`: all the weights of a frozen module.

Source: torch/csrc/jit/serialization/python_print.cpp (the classes), pickler.cpp (`data.pkl`),
export_module.cpp (the records), torch/csrc/jit/frontend, torch/jit/_recursive.py (`state_dict`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from typing import Any

from ptsave.core.accounts import Part
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import counted
from ptsave.core.nodes import Opaque, Program, TensorEntry, add_uses
from ptsave.core.tree import is_scalar
from ptsave.errors import CorruptError
from ptsave.formats.base import FileFormat
from ptsave.formats.kinds.sparse import PARTS, is_sparse
from ptsave.formats.pickle.inert import Unpickled
from ptsave.formats.pickle.module import OWN_ATTRIBUTES, is_plain
from ptsave.formats.pickle.python_objects import is_name_only
from ptsave.formats.pickle.shapes import UNKNOWN, Budget, Known, Shapes, known_names
from ptsave.formats.programs.script_code import (
    MAX_CODE_BYTES,
    OWN_PACKAGE,
    UNDECLARED,
    ModuleClass,
    lacking,
    read_code,
)
from ptsave.formats.programs.signatures import program_of
from ptsave.formats.programs.sniff import TORCHSCRIPT, is_torchscript
from ptsave.formats.torch import objects
from ptsave.formats.torch.read import (
    ZipStorages,
    check_records,
    data_folder,
    load_record,
    records_of,
    refuse_big_endian,
)
from ptsave.formats.torch.storages import SCRIPT_STORAGES, not_loaded
from ptsave.formats.torch.unusual import SCHEMES
from ptsave.formats.zip.reader import ZipDirectory
from ptsave.formats.zip.sniff import directory_of
from ptsave.storage.files import InputFile

CONSTANTS = "CONSTANTS"
"""What the code calls its constants: `CONSTANTS.c0` is the first of `constants.pkl`."""

BOOKKEEPING = (
    "data.pkl",
    "constants.pkl",
    "traced_inputs.pkl",
    "bytecode.pkl",
    "mobile_debug_handles.pkl",
    "version",
    ".data/version",
    "byteorder",
    ".format_version",
    ".storage_alignment",
    ".data/serialization_id",
)
"""The records that hold no tensor of the module."""
BOOKKEEPING_FOLDERS = ("code/", "extra/", "traced_inputs/", "bytecode/")
"""Those whose records hold none: the code, the user's own files, the inputs that a module was traced with,
constants of the compact form of the code, which are those of `constants.pkl` again."""


class ScriptModule(Opaque):
    """An object of a class in a TorchScript archive; its children are its attributes.

    First come the entries of `state_dict()`, in its order, then the other attributes.
    """

    shared = True
    declared: ModuleClass
    constants: dict[str, Any] | None = None
    """Of the whole archive's code, where it is the root and there are any."""

    @property
    def is_call_of_scalars(self) -> bool:
        return False

    @cached_property
    def _entries(self) -> list[tuple[Any, Any]]:
        state: dict[Any, Any] = self.state
        named = [
            (name, state[name])
            for names in (self.declared.parameters, self.declared.buffers)
            for name in state
            if name in names and isinstance(state[name], (TensorEntry, Opaque))
        ]
        taken = {name for name, _ in named}
        modules = [(k, v) for k, v in state.items() if _is_module(v) and k not in taken]
        return named + modules

    @cached_property
    def _others(self) -> list[tuple[Any, Any]]:
        taken = {name for name, _ in self._entries} | OWN_ATTRIBUTES
        others = [(k, v) for k, v in self.state.items() if k not in taken and v is not None]
        return others + ([(CONSTANTS, self.constants)] if self.constants else [])

    def entries(self) -> Iterator[tuple[Any, Any]]:
        return iter(self._entries)

    def beside(self) -> Iterator[tuple[Any, Any]]:
        return ((name, value) for name, value in self._others if not is_plain(value))

    def children(self) -> Iterator[tuple[Any, Any]]:
        yield from self._entries
        yield from self._others


def _is_module(value: Any) -> bool:
    return isinstance(value, ScriptModule) and value.declared.is_module


class ScriptObject(Opaque):
    """An object of C++ in a TorchScript archive (packed parameters); its children are what it is made of."""

    @property
    def is_call_of_scalars(self) -> bool:
        return False

    def children(self) -> Iterator[tuple[Any, Any]]:
        if isinstance(self.state, (list, tuple)):
            yield from enumerate(self.state)
        else:
            yield from super().children()


def read(file: InputFile) -> Checkpoint:
    """Open a TorchScript archive. Tensors are windows into its records.

    Raises: CorruptError, LimitError.
    """
    with ExitStack() as on_failure:
        on_failure.callback(file.close)
        directory = directory_of(file)
        top = data_folder(directory)
        code = read_code(directory, f"{top}code/")
        refuse_big_endian(directory, top, "torch.jit.load")
        built: dict[str, dict[int, dict[Any, Any]]] = {}

        def build(target: Any, state: Any, budget: Budget) -> bool:
            if isinstance(target, (ScriptModule, ScriptObject)):
                raise CorruptError(f"the pickle sets the state of a {target.name} twice")
            if type(target) is Opaque and target.name.startswith(OWN_PACKAGE) and target.state is None:
                target.state = state
                declared = code.classes.get(target.name, UNDECLARED)
                if declared.sets_state and (type(state) is dict or declared.parameters or declared.buffers):
                    budget.drop("what a class's own code (__setstate__) makes of its tensors")
                if type(state) is not dict:
                    if declared.is_module and target.name in code.classes and not declared.sets_state:
                        raise CorruptError(f"a {target.name} has no attributes, and its class makes none")
                    target.__class__ = ScriptObject
                    return True
                if target.name in code.classes and not declared.sets_state:
                    built.setdefault(target.name, {})[id(state)] = state
                target.__class__ = ScriptModule
                target.declared = declared  # type: ignore[attr-defined]
                return True
            return False

        refused: set[str] = set()

        def unpickle(name: str) -> Unpickled:
            storages = ZipStorages(directory, f"{top}{name}/", False, is_script=True, refused=refused)
            shapes = Shapes(SHAPES, build, storages, is_script=True)
            return load_record(directory, f"{top}{name}.pkl", shapes)

        loaded = unpickle("data")
        uses = dict(loaded.globals)
        constants = unpickle("constants")
        traced = None
        if f"{top}traced_inputs.pkl" in directory.entries:  # torch leaves their bytes out
            shapes = Shapes(_NAMES_ONLY, build, _any_storage)
            traced = load_record(directory, f"{top}traced_inputs.pkl", shapes)
        for part in (constants, traced):
            if part is not None:
                add_uses(uses, part.globals)
        uses = {name: use for name, use in uses.items() if name not in code.defined}
        add_uses(uses, code.uses)
        root = _with_constants(loaded.root, constants.root)
        notes = [*loaded.notes, *constants.notes]
        if traced is not None:
            notes.append("holds the inputs that it was traced with, which are no part of the module")
        checkpoint = Checkpoint(
            TORCHSCRIPT,
            file.path,
            root,
            globals=uses,
            notes=[
                *notes,
                f"holds TorchScript code ({counted(code.num_files, 'file', 'files')}), which is not run",
            ],
            programs=_programs(directory, f"{top}code/", loaded.root),
            num_code_files=code.num_files,
            dropped=[*loaded.dropped, *constants.dropped],
        )
        checkpoint.parts.append(lambda: _parts(directory, top))
        checkpoint.checks.append(lambda: check_records(checkpoint, directory))
        checkpoint.checks.append(lambda: not_loaded("torch.jit.load", refused))
        states = {name: list(found.values()) for name, found in built.items()}
        checkpoint.checks.append(
            lambda: not_loaded("torch.jit.load", lacking(directory, f"{top}code/", states))
        )
        checkpoint.files = on_failure.pop_all()
    return checkpoint


FORMAT = FileFormat(TORCHSCRIPT, is_torchscript, read)


def _programs(directory: ZipDirectory, prefix: str, root: Any) -> list[Program]:
    """The inputs and outputs of the root's `forward`, from the code of its class."""
    module, _, class_name = root.name.rpartition(".") if isinstance(root, ScriptModule) else ("", "", "")
    record = f"{prefix}{module.replace('.', '/')}.py"
    if record not in directory.entries:
        return []
    code = directory.read(record, MAX_CODE_BYTES).decode("utf-8", "replace")
    program = program_of(code, class_name)
    return [program] if program is not None else []


def _with_constants(root: Any, constants: Any) -> Any:
    """`root` with the constants of its code that are more than numbers and texts, by their names."""
    listed = constants if isinstance(constants, (list, tuple)) else [constants]
    kept = {f"c{i}": value for i, value in enumerate(listed) if not is_scalar(value)}
    if not kept:
        return root
    if isinstance(root, ScriptModule):
        root.constants = kept
        return root
    return {"value": root, CONSTANTS: kept}


def _parts(directory: ZipDirectory, top: str) -> Iterator[Part]:
    """The records that tensors of the module may view."""
    folders = tuple(top + folder for folder in BOOKKEEPING_FOLDERS)
    for part in records_of(directory, {top + name for name in BOOKKEEPING}):
        if not part.name.startswith(folders):
            yield part


def _first(args: tuple[Any, ...], budget: Budget) -> Any:
    """`build_intlist(list)`: the list itself, of a narrower type."""
    return args[0] if args and isinstance(args[0], list) else UNKNOWN


def _restored(args: tuple[Any, ...], budget: Budget) -> Any:
    """`restore_type_tag(value, type)`: the list or dictionary itself, of the type that is named."""
    if len(args) < 2 or type(args[1]) is not str:
        return UNKNOWN
    fits = isinstance(args[0], list if args[1].startswith("List[") else dict)
    return args[0] if fits and args[1].startswith(("List[", "Dict[")) else UNKNOWN


_LAYOUTS = {1: "torch.sparse_coo", 2: "torch.sparse_csr"}
"""Source: c10/core/Layout.h; TorchScript writes no other layouts."""


def _rebuild_sparse(args: tuple[Any, ...], budget: Budget) -> Any:
    """`_rebuild_sparse_tensor(layout, size, requires_grad, indices…, values, hooks)`, of a layout's number.

    Source: torch/csrc/jit/serialization/pickler.cpp (`pushTensorReference`), unpickler.cpp
    (`rebuildSparseTensor`): a coo tensor counts as not coalesced.
    """
    layout = _LAYOUTS.get(args[0], "") if args and type(args[0]) is int else ""
    names = [name for name in PARTS.get(layout, ()) if name not in ("size", "is_coalesced")]
    if not names or len(args) != len(names) + 4 or args[-1]:
        return UNKNOWN
    _, size, _requires_grad, *parts, _hooks = args
    made = Opaque(layout, (), dict(zip(names, parts, strict=True)) | {"size": size})
    return made if is_sparse(made) else UNKNOWN


def _no_hooks(args: tuple[Any, ...], budget: Budget) -> Any:
    """`OrderedDict()`, the hooks of a tensor: None, and what is put into it is dropped."""
    return UNKNOWN if args else None


_SPARSE = "torch._utils._rebuild_sparse_tensor"
_HOOKS = "collections.OrderedDict"
_RESTORE = "torch.jit._pickle.restore_type_tag"
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
SHAPES: dict[str, Any] = (
    {
        name: objects.NAMES[name]
        for name in (
            "torch._utils._rebuild_tensor_v2",
            "torch._utils._rebuild_qtensor",
            "torch._tensor._rebuild_from_type_v2",
            "torch.device",
            "builtins.complex",
            *(f"torch.{scheme}" for scheme in SCHEMES),
        )
    }
    | {name: Known(name, is_name_only) for name in SCRIPT_STORAGES}
    | known_names("torch.jit._pickle", dict.fromkeys(_LISTS, _first))
    | {_RESTORE: Known(_RESTORE, _restored)}
    | {_HOOKS: Known(_HOOKS, _no_hooks)}
    | {_SPARSE: Known(_SPARSE, _rebuild_sparse)}
)
"""What stands for each dotted name that TorchScript's unpickler knows.

Source: torch/csrc/jit/serialization/unpickler.cpp (`readGlobal`)."""


def _any_storage(persistent_id: Any) -> Opaque:
    return Opaque("a storage", (persistent_id,))


def _any_tensor(args: tuple[Any, ...], budget: Budget) -> Any:
    return Opaque("torch.Tensor")


_NAMES_ONLY = SHAPES | {
    name: Known(name, _any_tensor) for name in SHAPES if name.startswith("torch._utils._rebuild_")
}
"""For a pickle whose tensors have no bytes: only the names in it count."""
