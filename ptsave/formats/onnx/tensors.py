"""The tensors of an ONNX model, where their bytes lie: nothing is read but what says where that is.

Source: onnx/onnx.proto, `TensorProto` and `SparseTensorProto`.
"""

from __future__ import annotations

from math import prod
from typing import Any

from ptsave.core.dtypes import BY_NAME, DType
from ptsave.core.nodes import Opaque, TensorEntry, contiguous_strides
from ptsave.core.storage import MemoryStorage, Storage
from ptsave.errors import CorruptError, LimitError
from ptsave.formats.kinds.packed import packed
from ptsave.formats.onnx.external import ExternalFiles
from ptsave.formats.onnx.schema import ENTRY, SPARSE_TENSOR, TENSOR
from ptsave.formats.onnx.varints import VarintStorage
from ptsave.formats.onnx.wire import Span, WireReader, signed
from ptsave.storage.windows import FileStorage

MAX_RANK = 64
"""Cap on the dimensions of one tensor; torch's own."""
MAX_STRINGS = 250_000
"""Cap on the texts in the tensors of one model."""
MAX_PLACE_TEXTS = 32
"""Cap on what is said of where one tensor lies."""
_INT64_MAX = 2**63 - 1

STRING = 8
DTYPES: dict[int, DType] = {
    number: BY_NAME[name]
    for number, name in {
        1: "float32",
        2: "uint8",
        3: "int8",
        4: "uint16",
        5: "int16",
        6: "int32",
        7: "int64",
        9: "bool",
        10: "float16",
        11: "float64",
        12: "uint32",
        13: "uint64",
        14: "complex64",
        15: "complex128",
        16: "bfloat16",
        17: "float8_e4m3fn",
        18: "float8_e4m3fnuz",
        19: "float8_e5m2",
        20: "float8_e5m2fnuz",
        24: "float8_e8m0fnu",
    }.items()
}
"""Source: `TensorProto.DataType`."""
PACKED = {
    21: ("UINT4", 4),
    22: ("INT4", 4),
    23: ("FLOAT4E2M1", 4),
    25: ("UINT2", 2),
    26: ("INT2", 2),
    27: ("FLOAT6E2M3", 6),
    28: ("FLOAT6E3M2", 6),
}
"""The types of which several elements lie in a byte, the first in its lowest bits → name, bits of one."""
_FLOAT4 = 23
_TYPED = {
    "float32": "float_data",
    "complex64": "float_data",
    "float64": "double_data",
    "complex128": "double_data",
    "int64": "int64_data",
    "uint32": "uint64_data",
    "uint64": "uint64_data",
}
"""Where elements lie that are not raw; those of all other dtypes in `int32_data`."""
_DATA = ("float_data", "int32_data", "string_data", "int64_data", "raw_data", "double_data", "uint64_data")


class Tensors:
    """Makes tensors, and what stands in the place of those that torch has no dtype for."""

    def __init__(self, wire: WireReader, external: ExternalFiles) -> None:
        self._wire, self._external = wire, external
        self._num_strings = 0

    def tensor(self, span: Span) -> tuple[str, Any]:
        """The name and the tensor in the TensorProto at `span`.

        Raises: CorruptError where they do not go together; LimitError.
        """
        wire = self._wire
        found: dict[str, Any] = {}
        sizes: list[int] = []
        place: dict[str, str] = {}
        texts: list[Span] = []
        for field, value in wire.read(TENSOR, span):
            if field == "dims":
                self._extend(sizes, value)
            elif field == "external_data":
                self._add_place(place, value)
            elif field == "string_data":
                texts.append(value)
                self._num_strings += 1
                if self._num_strings > MAX_STRINGS:
                    raise LimitError("onnx_strings", MAX_STRINGS, "more", str(wire.file.path))
            else:
                found[field] = value
        name = wire.text(found.get("name"))
        if "segment" in found:
            raise wire.corrupt(f"tensor {name!r} is one segment of a longer one")
        is_external = found.get("data_location", 0) == 1
        if found.get("data_location", 0) > 1 or is_external != bool(place):
            raise wire.corrupt(f"tensor {name!r} is said to lie in this file, and in another")
        held = [field for field in _DATA if field in found or (field == "string_data" and texts)]
        if len(held) + is_external > 1:
            raise wire.corrupt(f"tensor {name!r} has two sets of values")
        shape = tuple(sizes)
        data_type = found.get("data_type", 0)
        if data_type == STRING:
            if is_external or held not in ([], ["string_data"]) or len(texts) != prod(shape):
                raise self._unlike(name, shape, "string", len(texts), "texts")
            words = [wire.bytes_at(text).decode("utf-8", "backslashreplace") for text in texts]
            return name, Opaque("onnx.STRING", state={"shape": shape, "values": words})
        if data_type in DTYPES:
            dtype = DTYPES[data_type]
            num_bytes = prod(shape) * dtype.itemsize
        elif data_type in PACKED:
            dtype = BY_NAME["uint8"]
            num_bytes = -(-prod(shape) * PACKED[data_type][1] // 8)
        else:
            raise wire.corrupt(f"tensor {name!r} has the unknown data type {data_type}")
        if is_external:
            storage = self._external.storage(place, num_bytes, name)
        elif not held:
            storage = MemoryStorage(memoryview(b""))
        else:
            storage = self._inline(name, held[0], found.get(held[0]), dtype)
        if storage.num_bytes != num_bytes:
            type_name = dtype.name if data_type in DTYPES else PACKED[data_type][0]
            raise self._unlike(name, shape, type_name, storage.num_bytes, "bytes")
        return name, _view(name, data_type, dtype, shape, storage)

    def sparse(self, span: Span) -> tuple[str, Any]:
        """The name and the sparse tensor in the SparseTensorProto at `span`.

        Raises: as `tensor`.
        """
        wire = self._wire
        sizes: list[int] = []
        parts: dict[str, tuple[str, Any]] = {}
        for field, value in wire.read(SPARSE_TENSOR, span):
            if field == "dims":
                self._extend(sizes, value)
            else:
                parts[field] = self.tensor(value)
        name, values = parts.get("values", ("", None))
        _, indices = parts.get("indices", ("", None))
        if (
            not isinstance(values, TensorEntry)
            or not isinstance(indices, TensorEntry)
            or len(values.shape) != 1
        ):
            raise wire.corrupt(f"the sparse tensor {name!r} has no values or no indices")
        count, rank = values.shape[0], len(sizes)
        if indices.dtype.name != "int64" or indices.shape not in ((count,), (count, rank)):
            raise wire.corrupt(f"the indices of the sparse tensor {name!r} do not fit its values")
        state = {"indices": indices, "values": values, "size": tuple(sizes)}
        if len(indices.shape) == 1 and rank != 1:  # each is one number that counts through all dimensions
            return name, Opaque("onnx.sparse", state=state)
        state["indices"] = TensorEntry("", indices.dtype, (rank, count), (1, rank), indices.storage, 0)
        return name, Opaque("torch.sparse_coo", state=state)

    def of_numbers(self, field: str, numbers: bytes | Span) -> TensorEntry:
        """The `floats` or `ints` of an attribute as a tensor; `numbers`: decoded, or packed in the file.

        Raises: CorruptError.
        """
        dtype = BY_NAME["float32" if field == "floats" else "int64"]
        if not isinstance(numbers, Span):
            storage: Storage = MemoryStorage(memoryview(numbers))
        elif field == "floats":
            storage = FileStorage(self._wire.file, *_extent(numbers))
        else:
            storage = VarintStorage(self._wire.file, numbers, dtype)
        count, beyond = divmod(storage.num_bytes, dtype.itemsize)
        if beyond:
            raise self._wire.corrupt("a list of numbers that ends inside of one")
        return TensorEntry("", dtype, (count,), (1,), storage, 0)

    def _extend(self, sizes: list[int], value: int | Span) -> None:
        wire = self._wire
        for number in wire.numbers(value):
            if signed(number) < 0:
                raise wire.corrupt(f"a tensor with the size {signed(number)}")
            sizes.append(number)
            if len(sizes) > MAX_RANK:
                raise LimitError("rank", MAX_RANK, "more", str(wire.file.path))
        if prod(filter(None, sizes)) > _INT64_MAX // 16:
            raise wire.corrupt("a tensor with a shape that no tensor can have")

    def _add_place(self, place: dict[str, str], value: Span) -> None:
        found: dict[str, Any] = dict(self._wire.read(ENTRY, value))
        key = self._wire.text(found.get("key"))
        if key in place or len(place) >= MAX_PLACE_TEXTS:
            raise self._wire.corrupt(f"where a tensor lies is said twice ({key[:40]!r})")
        place[key] = self._wire.text(found.get("value"))

    def _inline(self, name: str, field: str, span: Span | None, dtype: DType) -> Storage:
        """`span`: None for texts, which a tensor of numbers has not."""
        file = self._wire.file
        if span is not None and field == "raw_data":
            return FileStorage(file, *_extent(span))
        if span is None or field != _TYPED.get(dtype.name, "int32_data"):
            raise self._wire.corrupt(f"tensor {name!r} of dtype {dtype} has its values in {field}")
        if field in ("float_data", "double_data"):  # little-endian words, as they are
            return FileStorage(file, *_extent(span))
        return VarintStorage(file, span, dtype)

    def _unlike(self, name: str, shape: tuple[int, ...], dtype: str, count: int, what: str) -> CorruptError:
        return self._wire.corrupt(
            f"tensor {name[:80]!r} of shape {list(shape)} and data type {dtype} has {count} {what}"
        )


def _extent(span: Span) -> tuple[int, int]:
    return span.begin, span.num_bytes


def _view(name: str, data_type: int, dtype: DType, shape: tuple[int, ...], storage: Storage) -> Any:
    if data_type == _FLOAT4 and shape and shape[-1] % 2 == 0:
        dtype, shape = BY_NAME["float4_e2m1fn_x2"], (*shape[:-1], shape[-1] // 2)
    elif data_type in PACKED:
        return packed("onnx", PACKED[data_type][0], shape, storage)
    return TensorEntry(name, dtype, shape, contiguous_strides(shape), storage, 0)
