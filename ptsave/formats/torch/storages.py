"""Storages in a torch pickle: their classes, their ids, and what tensors are rebuilt from.

Source: torch/serialization.py (`persistent_id`, `persistent_load`, `find_class`), torch/storage.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from ptsave.core import dtypes
from ptsave.core.dtypes import DType
from ptsave.core.finding import Finding, Kind
from ptsave.core.nodes import Global, Opaque, TensorEntry
from ptsave.core.storage import Storage, SwappedStorage
from ptsave.errors import CorruptError

UINT8 = dtypes.BY_NAME["uint8"]

STORAGE_DTYPES: dict[str, DType] = {}
"""Dotted name of a storage class → its elements. An untyped storage counts bytes."""
for _class, _element in dtypes.BY_STORAGE_CLASS.items():
    for _module in ("torch", "torch.cuda", "torch.storage"):
        STORAGE_DTYPES[f"{_module}.{_class}"] = _element
UNTYPED = ("torch.storage.UntypedStorage", "torch.UntypedStorage", "torch.storage._UntypedStorage")
for _name in UNTYPED:
    STORAGE_DTYPES[_name] = UINT8


def _in_cpp(dtype: DType) -> str:
    name = "ComplexHalf" if dtype.name == "complex32" else dtype.name.capitalize()
    return name.replace("Uint", "UInt")


SCRIPT_STORAGES = {
    f"torch.{dtype.storage_class or f'{_in_cpp(dtype)}Storage'}": dtype for dtype in dtypes.TABLE
}
"""Dotted name of a storage class in a pickle of TorchScript, which names every dtype so → its elements.

Source: torch/csrc/jit/serialization/pickler.cpp (`pushStorageOfTensor`), c10/core/ScalarType.h."""


class StorageNode(Opaque):
    """A storage that a pickle names: what tensors are rebuilt from, or a leaf by itself."""

    def __init__(
        self,
        name: str,
        dtype: DType,
        num_elements: int,
        storage: Storage,
        big_endian: bool = False,
        first: int = 0,
    ) -> None:
        """`storage` holds the bytes as they are in the file; the node is `num_elements` elements of `dtype`
        in it, from `first` on (a view, where that is not all)."""
        self.name = name
        self.dtype = dtype
        self.num_elements = num_elements
        self.first = first
        self._raw = storage
        self._swapped: dict[int, Storage] | None = {} if big_endian else None
        self.storage = self.of_dtype(dtype) if big_endian else storage

    def of_dtype(self, dtype: DType) -> Storage:
        """The bytes in little-endian order, when they are elements of `dtype`.

        Raises: CorruptError where torch, which swaps a storage by its own type, would read other numbers.
        """
        word = dtype.word_bytes
        if self._swapped is not None and word != self.dtype.word_bytes:
            what = f"a big-endian storage of {self.dtype} is seen as {dtype}: torch does not swap those"
            raise CorruptError(what)
        if self._swapped is None or word == 1:
            return self._raw
        if word not in self._swapped:
            self._swapped[word] = SwappedStorage(self._raw, word)
        return self._swapped[word]

    @property
    def is_call_of_scalars(self) -> bool:
        return False

    def children(self) -> Iterator[tuple[Any, Any]]:
        count = self.num_elements
        yield "data", TensorEntry("", self.dtype, (count,), (1,), self.storage, self.first)


class MetaStorage(Opaque):
    """A storage on torch's meta device, of which TorchScript writes an empty record: it has no bytes."""

    def __init__(self, dtype: DType) -> None:
        self.name = "torch.meta"
        self.dtype = dtype


def storage_type(kind: Any, *, is_script: bool = False) -> DType | None:
    """The element type of a storage class as a pickle names it; None for anything else.

    `is_script`: whether it is a pickle of TorchScript, which has others.

    Source: torch/serialization.py, `find_class`: any module's `XStorage` is torch's.
    """
    if not isinstance(kind, Global):
        return None
    if is_script:
        return SCRIPT_STORAGES.get(kind.name)
    if kind.name in STORAGE_DTYPES:
        return STORAGE_DTYPES[kind.name]
    return dtypes.BY_STORAGE_CLASS.get(kind.name.rpartition(".")[2])


def check_location(location: Any, num_elements: Any) -> None:
    """Insist that a storage lies where torch.load puts it as it is: on a device that keeps values.

    On the meta device torch makes tensors without values, whatever bytes the file has; what names no device
    it refuses, unless it is told another one.

    Source: torch/serialization.py, `_register_package`, `_meta_deserialize`, `default_restore_location`.

    Raises: CorruptError.
    """
    if location == "cpu":
        return
    if type(location) is bytes and location.isascii():
        location = location.decode()
    if type(location) is not str or not _LOCATION.fullmatch(location):
        raise CorruptError("a storage is on something that is not a device, where torch.load does not put it")
    if location == "meta" and num_elements:
        raise CorruptError("a storage has bytes and is on the meta device, where torch.load leaves them out")


SCRIPT_DEVICES = frozenset(
    (
        *("cpu", "cuda", "ipu", "xpu", "mkldnn", "opengl", "opencl", "ideep", "hip", "ve", "fpga", "maia"),
        *("xla", "lazy", "vulkan", "mps", "meta", "hpu", "mtia", "privateuseone"),
    )
)
"""The kinds of devices that TorchScript knows without an extension, whatever `map_location` says.

Source: c10/core/Device.cpp (`parse_type`)."""

_LOCATION = re.compile(r"cpu|(?!cpu:)[a-z][a-z0-9_]{0,63}(?::(?:0|[1-9][0-9]{0,2}))?")

_TEXT_ID = re.compile(
    r"\('storage', <class '(?P<kind>torch\.[\w.]*Storage)'>, '(?P<key>\w+)', '(?P<place>[\w:]+)', "
    r"(?P<count>\d{1,18})(?P<no_view>, None)?\)"
)


def storage_id(persistent_id: Any) -> Any:
    """A storage's persistent id as a tuple.

    Protocol 0 can only write the text of it, which torch itself does not read back.
    """
    if type(persistent_id) is not str:
        return persistent_id
    found = _TEXT_ID.fullmatch(persistent_id)
    if found is None:
        return persistent_id
    parts = ("storage", Global(found["kind"]), found["key"], found["place"], int(found["count"]))
    return (*parts, None) if found["no_view"] else parts


def not_loaded(loader: str, reasons: Iterable[str]) -> Iterator[Finding]:
    """Say of a file that ptsave reads why `loader`, which should read it, does not."""
    for reason in reasons:
        yield Finding("bytes", "fail", "", Kind.NOT_LOADED, facts={"loader": loader, "why": reason})
