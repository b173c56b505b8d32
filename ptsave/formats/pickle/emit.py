"""Emitting the pickle of a torch zip: containers, tensors, and what a format itself consists of."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptsave.core.dtypes import DType
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.errors import LossyError, Option
from ptsave.formats.kinds.objects import NESTED, PARAMETER, is_tensor_object, parts_by_name
from ptsave.formats.kinds.quantized import is_quantized
from ptsave.formats.kinds.sparse import is_sparse, parts_of
from ptsave.formats.pickle.encode import SCALARS, Encoder, Path, spelled


@dataclass(frozen=True, slots=True, eq=False)
class Reduce:
    """A value that the pickle makes by calling `module.name`. Only for what a format itself consists of."""

    module: str
    name: str
    args: tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class New:
    """A value that the pickle makes of class `module.name` with a state. Only for a format's own classes."""

    module: str
    name: str
    state: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A dict of a format's own, made item by item so that it never lies in memory whole."""

    items: Iterable[tuple[Any, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """Where in the template of a `Row` one of its values stands."""

    number: int


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One of many values of a format's own that differ in a few places: `template`, filled with `values`.

    The opcodes of a template are prepared once, at its first row. Its containers are distinct objects.
    """

    template: New
    values: tuple[Any, ...]


class Emitter(Encoder):
    """A pickle in the making. A container or tensor that is met again is said once and then referred to."""

    def __init__(
        self,
        emit_tensor: Callable[[Emitter, TensorEntry], None],
        where: str = "",
        emit_quantized: Callable[[Emitter, Opaque], None] | None = None,
        *,
        repeats_texts: bool = False,
    ) -> None:
        """`emit_tensor` and `emit_quantized` say tensors by methods of `Encoder`; `where` is for messages.

        `repeats_texts`: most texts are met again, and are then referred to.
        """
        super().__init__(where)
        self._scalars = {**SCALARS, str: Encoder.word} if repeats_texts else SCALARS
        self._emit_tensor = emit_tensor
        self._emit_quantized = emit_quantized
        self._values: tuple[Any, ...] = ()
        """What stands in the slots of the row that is emitted."""
        self._prepared: dict[New, list[_Step]] = {}
        """The opcodes of each template that was met."""

    def pickle(self, root: Any) -> bytes:
        """The whole pickle of `root`; the emitter has done its work then.

        Raises: LossyError, naming the path, at a value that `weights_only` would not load.
        """
        self.value(root, ())
        self._out += b"."
        self._memo.clear()  # of a long pickle it takes more than the pickle does, which is copied now
        self._kept.clear()
        return bytes(self._out)

    def value(self, value: Any, path: Path) -> None:
        """Emit one value of any kind."""
        if isinstance(value, TensorEntry):
            if not self._recall(id(value)):
                self._emit_tensor(self, value)
                self._memoize(id(value), value)
            return
        kind = type(value)
        if kind in self._scalars:
            self._scalars[kind](self, value, path)
        elif isinstance(value, dict):
            self._dict(value, path)
        elif kind in (list, tuple, set):
            if not self._recall(id(value)):
                _CONTAINERS[kind](self, value, path)
        elif kind is Reduce:
            self.constant(value.module, value.name)
            self._tuple(value.args, path)
            self._out += b"R"
        elif kind is New:
            self.constant(value.module, value.name)
            self._out += b")\x81"
            if value.state is not None:
                if type(value.state) is dict:
                    self._out += b"}"
                    self._items(value.state.items(), path)
                else:
                    self.value(value.state, path)
                self._out += b"b"
        elif kind is Row:
            self._row(value, path)
        elif kind is Slot:
            self.value(self._values[value.number], path)
        elif kind is Table:
            self._out += b"}"
            self._items(value.items, path)
        elif isinstance(value, DType):
            self.constant("torch", value.name)
        elif self._emit_quantized is not None and is_quantized(value):
            if not self._recall(id(value)):
                self._emit_quantized(self, value)
                self._memoize(id(value), value)
        elif self._emit_quantized is not None and is_tensor_object(value):
            if not self._recall(id(value)):
                self.value(_rebuilding(value), path)
                self._memoize(id(value), value)
        elif _is_device(value):
            self.value(Reduce("torch", "device", value.args), path)
        else:
            raise LossyError(
                f"a .pt file that weights_only loads cannot hold {spelled(path)}: it is {_kind_of(value)}",
                self._where,
                (
                    "leave it out",
                    Option("drop", lead=" with "),
                    Option("select", "model", lead=", or take the weights alone with "),
                ),
                extras=[spelled(path)],
            )

    def _dict(self, value: dict[Any, Any], path: Path) -> None:
        if self._recall(id(value)):
            return
        if type(value) is Counter:
            self.constant("collections", "Counter")
            self.value(dict(value), path)
            self._out += b"\x85R"
            self._memoize(id(value), value)
            return
        metadata = getattr(value, "_metadata", None)
        if isinstance(value, OrderedDict):
            self.empty_ordered_dict()
        else:
            self._out += b"}"
        self._memoize(id(value), value)
        if value:
            self._items(value.items(), path)
        if isinstance(value, OrderedDict) and metadata is not None:
            self.value({"_metadata": metadata}, (*path, "_metadata"))
            self._out += b"b"

    def _items(self, items: Iterable[tuple[Any, Any]], path: Path) -> None:
        self._out += b"("
        for key, item in items:
            self.value(key, path)
            self.value(item, (*path, key))
        self._out += b"u"

    def _list(self, value: list[Any], path: Path) -> None:
        self._out += b"]"
        self._memoize(id(value), value)
        if value:
            self._out += b"("
            self._elements(value, path)
            self._out += b"e"

    def _elements(self, value: Sequence[Any], path: Path) -> None:
        kinds = {*map(type, value)}
        spelled: Mapping[Any, bytes] | None = None  # of a byte or two each, as a small file may have millions
        if kinds <= _CONSTANT_TYPES:
            spelled = _CONSTANTS
        elif kinds == {int} and min(value) >= 0 and max(value) <= 0xFF:
            spelled = _BYTES
        if spelled is not None:
            for start in range(0, len(value), _AT_ONCE):
                self._out += b"".join(map(spelled.__getitem__, value[start : start + _AT_ONCE]))
            return
        for i, item in enumerate(value):
            emit = self._scalars.get(type(item))
            if emit is not None:
                emit(self, item, (*path, i))
            else:
                self.value(item, (*path, i))

    def _tuple(self, value: Sequence[Any], path: Path) -> None:
        if len(value) > 3:
            self._out += b"("
        self._elements(value, path)
        self._out += (b")", b"\x85", b"\x86", b"\x87")[len(value)] if len(value) <= 3 else b"t"
        if value:
            self._memoize(id(value), value)

    def _set(self, value: set[Any], path: Path) -> None:
        self.constant("__builtin__", "set")
        # Sorted: a set's own order changes from run to run.
        self.value(sorted(value, key=lambda item: (type(item).__name__, repr(item))), path)
        self._out += b"\x85R"
        self._memoize(id(value), value)

    def _row(self, row: Row, path: Path) -> None:
        prepared = self._prepared.get(row.template)
        if prepared is None:
            outer, self._values = self._values, row.values
            self.value(row.template, path)  # memoizes the names in it
            self._values = outer
            self._prepared[row.template] = _Preparing(self).steps_of(row.template)
            return
        for step in prepared:
            if type(step) is bytes:
                self._out += step
            elif type(step) is Slot:
                self.value(row.values[step.number], path)
            else:
                self._memoize(None)


_Step = bytes | Slot | None
"""Opcodes; a value; or None, where what was emitted last is memoized."""


class _Preparing(Emitter):
    """Emits a template without its values, in steps that differ from row to row or do not."""

    def __init__(self, emitter: Emitter) -> None:
        """The template's names and texts are memoized by `emitter` already."""
        super().__init__(emitter._emit_tensor)
        self._scalars, self._memo = emitter._scalars, emitter._memo
        self._steps: list[_Step] = []

    def steps_of(self, template: New) -> list[_Step]:
        self._out.clear()
        super().value(template, ())
        return [*self._steps, bytes(self._out)]

    def value(self, value: Any, path: Path) -> None:
        if type(value) is Slot:
            self._cut(value)
        else:
            super().value(value, path)

    def _recall(self, key: Any) -> bool:
        return type(key) is not int and super()._recall(key)  # each row has containers of its own

    def _memoize(self, key: Any, value: Any = None) -> None:
        self._cut(None)

    def _cut(self, step: Slot | None) -> None:
        self._steps += (bytes(self._out), step)
        self._out.clear()


_CONSTANTS = {None: b"N", True: b"\x88", False: b"\x89"}
_CONSTANT_TYPES = {bool, type(None)}
_BYTES = {value: b"K%c" % value for value in range(0x100)}
_AT_ONCE = 1024
"""How many constants are joined at a time: that takes 100 bytes for each."""
_CONTAINERS: dict[type, Callable[[Emitter, Any, Path], None]] = {
    list: Emitter._list,
    tuple: Emitter._tuple,
    set: Emitter._set,
}


def can_emit(leaf: Any) -> bool:
    """Whether a leaf of a checkpoint's tree, no tensor, is something that `weights_only` loads."""
    if type(leaf) in _CONTAINERS or type(leaf) is dict:
        return {*map(type, leaf)} <= SCALARS.keys() or all(map(can_emit, leaf))
    return type(leaf) in SCALARS or isinstance(leaf, (DType, dict)) or _is_device(leaf)


def _rebuilding(value: Opaque) -> Reduce:
    """The call that makes a sparse, nested or meta tensor, or a parameter of one, as torch pickles it."""
    if value.name == PARAMETER:
        data, requires_grad = value.state["data"], value.state["requires_grad"]
        return Reduce("torch._utils", "_rebuild_parameter", (data, requires_grad, OrderedDict()))
    if is_sparse(value):
        layout = Reduce("torch.serialization", "_get_layout", (value.name,))
        return Reduce("torch._utils", "_rebuild_sparse_tensor", (layout, parts_of(value)))
    function = "_rebuild_nested_tensor" if value.name == NESTED else "_rebuild_meta_tensor_no_storage"
    return Reduce("torch._utils", function, parts_by_name(value))


def _is_device(value: Any) -> bool:
    return type(value) is Opaque and value.name == "torch.device" and value.is_call_of_scalars


def _kind_of(value: Any) -> str:
    name = getattr(value, "name", None)
    return f"a {name}" if isinstance(name, str) else f"a {type(value).__name__}"
