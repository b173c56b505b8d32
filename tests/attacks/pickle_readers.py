"""The real readers of a pickle beside ptsave's: what each meets and what each makes of it.

No reader gets to import what a pickle names: `find_class` records the name, and returns the real thing for
those names only that ptsave knows to be harmless, else an inert stand-in.
"""

from __future__ import annotations

import io
import pickle
import tempfile
import warnings
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import _weights_only_unpickler as weights_only

from ptsave.core.dtypes import DType
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.core.storage import MemoryStorage
from ptsave.core.values.gather import contiguous
from ptsave.errors import PtsaveError
from ptsave.formats.pickle import inert
from ptsave.formats.pickle.machine import CONSTRUCTORS
from ptsave.formats.pickle.shapes import Described, Known
from ptsave.formats.torch.objects import NAMES, torch_shapes
from ptsave.formats.torch.storages import StorageNode, storage_type

STORAGE_BYTES = bytes(range(64))
"""What lies behind every storage that a pickle names."""


class DifferenceError(Exception):
    """Two readers understand the same pickle differently, and ptsave says yes to it."""


class StandIn:
    """An object of a class that no reader imports."""

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    append = add = extend

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> StandIn:
        return StandIn()


@dataclass
class Reading:
    """What one reader made of a pickle."""

    reader: str
    names: list[tuple[tuple[str, str], tuple[str, str]]]
    """What was asked for, and what that is in Python 3's names."""
    value: Any = None
    error: Exception | None = None


def _resolve(dotted: str) -> Any:
    """The real thing of a name that ptsave takes for harmless; else a stand-in class."""
    if not _is_harmless(dotted):
        return type("StandIn", (StandIn,), {})
    module, name = dotted.rsplit(".", 1)
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError):
        return type("StandIn", (StandIn,), {})


def _is_harmless(dotted: str) -> bool:
    known = NAMES.get(dotted)
    return dotted in CONSTRUCTORS or (known is not None and type(known) is not Described)


def _mapped(module: str, name: str) -> tuple[str, str]:
    return NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))


def _storage_of(persistent_id: Any) -> Any:
    """The storage that a pickle names, over STORAGE_BYTES, as torch's loader would give it."""
    if type(persistent_id) is not tuple or len(persistent_id) != 5 or persistent_id[0] != "storage":
        raise pickle.UnpicklingError("no storage")
    kind, count = persistent_id[1], persistent_id[4]
    dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
    if type(count) is not int or count < 0 or count * dtype.itemsize > len(STORAGE_BYTES):
        raise pickle.UnpicklingError("no such storage")
    untyped = torch.frombuffer(bytearray(STORAGE_BYTES), dtype=torch.uint8).untyped_storage()
    untyped = untyped[: count * dtype.itemsize] if count else torch.UntypedStorage(0)
    return torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)


def _our_storage_of(persistent_id: Any) -> Any:
    if type(persistent_id) is not tuple or len(persistent_id) != 5 or persistent_id[0] != "storage":
        raise inert.CorruptError("no storage")
    dtype, count = storage_type(persistent_id[1]), persistent_id[4]
    if dtype is None or type(count) is not int or count < 0 or count * dtype.itemsize > len(STORAGE_BYTES):
        raise inert.CorruptError("no such storage")
    data = memoryview(STORAGE_BYTES[: count * dtype.itemsize])
    return StorageNode(persistent_id[1].name, dtype, count, MemoryStorage(data))


def _recording(base: Any, reading: Reading, first: Reading | None) -> Any:
    """`first`: what the reader in Python met, for the one in C does not say which protocol is in force."""

    class Recording(base):  # type: ignore[misc]
        def find_class(self, module: str, name: str) -> Any:
            asked, number = (module, name), len(reading.names)
            if first is not None and number < len(first.names) and first.names[number][0] == asked:
                module, name = first.names[number][1]
            elif getattr(self, "proto", 0) < 3:
                module, name = _mapped(module, name)
            reading.names.append((asked, (module, name)))
            if "." in name or not module or not name:
                return type("StandIn", (StandIn,), {})
            return _resolve(f"{module}.{name}")

        def persistent_load(self, persistent_id: Any) -> Any:
            return _storage_of(persistent_id)

    return Recording


def read(
    reader: str, base: Any, data: bytes, open_: Callable[[bytes], Any], first: Reading | None
) -> Reading:
    """What one of READERS makes of it; `first` is what the reader in Python made."""
    reading = Reading(reader, [])
    with open_(data) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reading.value = _recording(base, reading, first)(file, encoding="utf-8").load()
        except Exception as error:
            reading.error = error
    return reading


def _on_disk(data: bytes) -> Any:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the reader closes it
    file.write(data)
    file.seek(0)
    return file


READERS: dict[str, tuple[Any, Callable[[bytes], Any]]] = {
    "Python": (pickle._Unpickler, io.BytesIO),  # type: ignore[attr-defined]
    "C, from bytes": (
        pickle.Unpickler,
        lambda data: io.BufferedReader(io.BytesIO(data), len(data) + 1),  # type: ignore[arg-type]
    ),
    "C, from a stream": (pickle.Unpickler, io.BytesIO),
    "C, from a file": (pickle.Unpickler, _on_disk),
}


def read_by_torch(data: bytes) -> Reading:
    """What `torch.load(weights_only=True)` makes of it."""
    reading = Reading("weights_only", [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            unpickler = weights_only.Unpickler(io.BytesIO(data), encoding="utf-8")
            unpickler.persistent_load = _storage_of
            reading.value = unpickler.load()
        except Exception as error:
            reading.error = error
    return reading


def check(data: bytes) -> bool:
    """Check ptsave's reading of `data` against the others; returns whether ptsave says yes.

    Raises: DifferenceError.
    """
    try:
        ours = inert.load(data, 0, torch_shapes(_our_storage_of), "test")
    except PtsaveError:
        return False
    is_yes = not ours.globals
    shown = Canonical().of(ours.root) if is_yes else None
    first = None
    for reader, (base, open_) in READERS.items():
        reading = read(reader, base, data, open_, first)
        first = first or reading
        met = {".".join(name) for _, name in reading.names}
        if unseen := {name for name in met if not _is_harmless(name)} - set(ours.globals):
            raise DifferenceError(f"{reader} meets {sorted(unseen)}, ptsave {sorted(ours.globals)}")
        if is_yes:
            _compare(reading, shown)
    if is_yes and (reading := read_by_torch(data)).error is None:
        _compare(reading, shown)
    return is_yes


def _compare(reading: Reading, shown: Any) -> None:
    if isinstance(reading.error, UnicodeDecodeError):
        return  # a string of Python 2 that is not UTF-8: ptsave shows its bytes
    if isinstance(reading.error, RuntimeError) and "Expected one of cpu" in str(reading.error):
        return  # a device of a kind that this process has not registered
    if reading.error is not None:
        raise DifferenceError(f"{reading.reader} refuses it ({reading.error!r:.200}), ptsave does not")
    theirs = Canonical().of(reading.value)
    if theirs != shown:
        raise DifferenceError(f"{reading.reader} reads {theirs!r:.300}, ptsave {shown!r:.300}")


class _Any:
    """Equal to whatever the other reader has there: what ptsave shows in a form of its own."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "<any>"


class Canonical:
    """Values of any reader in one form, with what is shared and what contains itself."""

    def __init__(self) -> None:
        """Begin with nothing seen."""
        self.seen: dict[int, int] = {}

    def of(self, value: Any) -> Any:
        """`value` in nested tuples that say the types, too."""
        kind = type(value)
        if kind in (list, set, frozenset, dict, OrderedDict, Counter, defaultdict, bytearray):
            if kind is not frozenset:
                if id(value) in self.seen:
                    return ("again", self.seen[id(value)])
                self.seen[id(value)] = len(self.seen)
            if kind is bytearray:
                return ("bytearray", bytes(value))
            if kind in (set, frozenset):
                members = sorted(map(repr, map(Canonical().of, value)))
                return (kind.__name__, members) if "<any>" not in "".join(members) else _Any()
            if kind is list:
                return ("list", *map(self.of, value))
            items = [(self.of(key), self.of(item)) for key, item in value.items()]
            metadata = getattr(value, "_metadata", None)
            return (kind.__name__, *items, self.of(metadata) if isinstance(metadata, dict) else None)
        if kind in (tuple, torch.Size):
            return ("tuple", *map(self.of, value))
        if kind in (float, complex):
            return (kind.__name__, repr(value))
        if kind in (int, str, bytes, bool, type(None)):
            return (kind.__name__, value)
        if kind in (range, slice):
            return (kind.__name__, repr(value))
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, TensorEntry):
            return self._entry(value)
        if isinstance(value, (torch.dtype, torch.device, type)) or callable(value):
            return ("name",)
        if isinstance(value, (DType, Known, Global)):
            return ("name",)
        if kind is Opaque and value.name in ("builtins.range", "builtins.slice"):
            return (value.name[9:], repr({"range": range, "slice": slice}[value.name[9:]](*value.args)))
        return _Any()

    def _tensor(self, value: torch.Tensor) -> Any:
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            return _Any()
        plain = value.detach().resolve_conj().resolve_neg().contiguous()
        data = bytes(plain.flatten().view(torch.uint8).numpy()) if plain.numel() else b""
        name = str(value.dtype).removeprefix("torch.")
        bits = (value.is_conj(), value.is_neg())
        return ("tensor", name, tuple(value.shape), data if bits == (False, False) else _Any())

    def _entry(self, value: TensorEntry) -> Any:
        storage, offset_bytes = contiguous(value)
        buffer = bytearray(value.num_bytes)
        storage.read_into(offset_bytes, memoryview(buffer))
        is_plain = value.kind in ("tensor", "parameter")
        return ("tensor", value.dtype.name, value.shape, bytes(buffer) if is_plain else _Any())
