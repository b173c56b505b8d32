"""safetensors: one JSON header, then the tensors' bytes without gaps.

Source: https://huggingface.co/docs/safetensors, "Format"; checked against the library's release 0.8.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, islice
from math import prod
from sys import float_info, intern
from typing import Any, NamedTuple

from ptsave.core import record as records
from ptsave.core.caps import room
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import BY_SAFETENSORS, DType
from ptsave.core.nodes import TensorEntry, contiguous_strides
from ptsave.core.record import Record
from ptsave.core.strict_json import is_unicode, parse_object
from ptsave.errors import CorruptError, LimitError, UnknownFormatError
from ptsave.formats.base import FileFormat
from ptsave.formats.safetensors import chunk_offsets
from ptsave.own_process import no_garbage_collection
from ptsave.storage.files import InputFile
from ptsave.storage.windows import FileStorage

NAME = "safetensors"
MAX_HEADER_BYTES = 100_000_000
"""Cap on the JSON header, as the library has it."""
MAX_TENSORS = 250_000
"""Cap on the tensors of one small file."""
MAX_RANK = 64
"""Cap on the dimensions of one tensor; torch's own."""
MAX_METADATA = 250_000
"""Cap on the texts in `__metadata__` of a small file, of which tied tensors have one each."""
MAX_NOTES = 20
"""How many left-out names are told one by one."""

_METADATA = "__metadata__"
_MAY_BE_CHUNKS = (
    "torch.distributed.checkpoint wrote the file: where its folder has one for each rank, "
    "a tensor may be a chunk"
)
_F4 = BY_SAFETENSORS["F4"]
_MAX_NESTING = 126
"""How deep lists and objects may nest in the description of a tensor; serde_json reads 128 levels in all."""
_LARGEST_NUMBER = float_info.max
_WHITESPACE = b" \t\r\n"
_INT64_MAX = 2**63 - 1
_TRUNCATED = "copy or download the file again"
_DAMAGED = "the file is damaged or was written by a faulty program; get it again from its source"


def sniff(file: InputFile, head: bytes) -> bool:
    """Eight bytes of a length that leave room for zeros, then the beginning of a JSON object."""
    return b"\0" in head[:8] and head[8:].lstrip(_WHITESPACE)[:1] == b"{"


def read(file: InputFile) -> Checkpoint:
    """Open a safetensors file as a flat dict of tensors, in the header's order.

    Where ptsave's record lists tied tensors, each comes back as another name of the same storage; where
    it holds digests for exactly these tensors, they come back in the order that the digests have.

    Raises: CorruptError, LimitError, UnknownFormatError.
    """
    try:
        with no_garbage_collection():
            tensors, metadata, record = read_header(file)
        ties = left_out_ties(metadata, tensors)
        notes: list[str] = []
        if record is None:
            root, notes = with_left_out(tensors, ties), tie_notes(ties)
        else:
            root = with_aliases(tensors, record, str(file.path))
        metadata = {key: text for key, text in metadata.items() if key not in ties or key not in root}
        dropped = []
        if chunk_offsets.KEY in metadata:
            dropped = chunk_offsets.missing_from(metadata, tensors, str(file.path))
            notes = [*notes, _MAY_BE_CHUNKS]
    except BaseException:
        file.close()
        raise
    checkpoint = Checkpoint(NAME, file.path, root, metadata, record=record, notes=notes, dropped=dropped)
    checkpoint.files.callback(file.close)
    return checkpoint


FORMAT = FileFormat(NAME, sniff, read)


def read_header(file: InputFile) -> tuple[dict[str, TensorEntry], dict[str, str], Record | None]:
    """The tensors in the header's order, the metadata without the record, and the record.

    Every tensor lies in the file, and together they cover all of it after the header, once.

    Raises: CorruptError, LimitError, UnknownFormatError.
    """
    where = str(file.path)
    if file.size_bytes < 8:
        raise CorruptError("truncated: a safetensors file has at least 8 bytes", where, _TRUNCATED)
    header_bytes = int.from_bytes(file.read_at(0, 8), "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise LimitError("header_bytes", MAX_HEADER_BYTES, header_bytes, where)
    start = 8 + header_bytes
    if start > file.size_bytes:
        raise CorruptError(
            f"truncated: the header has {header_bytes} bytes, the file {file.size_bytes}", where, _TRUNCATED
        )
    times = room(file.stored_bytes)
    text = file.read_at(8, header_bytes)
    if (described := text.count(b'"data_offsets"')) > times * MAX_TENSORS:  # before any of them is made
        raise LimitError("tensors", times * MAX_TENSORS, described, where)
    header = parse_object(text, "the header", where, _shrink, times, is_finite=True)
    del text
    metadata = _metadata(header.pop(_METADATA, None), where, times)
    if len(header) > times * MAX_TENSORS:
        raise LimitError("tensors", times * MAX_TENSORS, len(header), where)
    tensors: dict[str, TensorEntry] = {}
    spans: list[tuple[int, int, str]] = []
    known: dict[tuple[str, tuple[int, ...]], _Layout] = {}  # most tensors of a large file look alike
    for name in [*header]:
        info = header.pop(name)  # whose memory the tensors take
        tag, sizes, begin, end = _fields(name, info, where)
        layout = known.get((tag, sizes))
        if layout is None:
            layout = known[tag, sizes] = _layout(name, tag, sizes, where)
        if end - begin != layout.num_bytes:
            raise CorruptError(
                f"tensor {name!r} of shape {list(layout.shape)} and dtype {layout.dtype} needs "
                f"{layout.num_bytes} bytes, and has {end - begin}",
                where,
                _DAMAGED,
            )
        storage = FileStorage(file, start + begin, end - begin)
        tensors[name] = TensorEntry(name, layout.dtype, layout.shape, layout.strides, storage, 0)
        spans.append((begin, end, name))
    _check_cover(spans, file.size_bytes - start, where)
    del spans
    record = metadata.pop(records.KEY, None)
    if record is None:
        return tensors, metadata, None
    return tensors, metadata, Record.from_json(record, where)


def with_aliases(
    tensors: dict[str, TensorEntry], record: Record | None, where: str
) -> dict[str, TensorEntry]:
    """`tensors` with the record's tied names, in the order of the record's digests if it names the same.

    A name that another tool has stored apart since is not an alias any more; `verify` says so.

    Raises: CorruptError when an alias leads to itself, or to a tensor that is not stored.
    """
    if record is None:
        return tensors
    tied = dict(tensors)
    for alias, target in record.aliases.items():
        if alias == target:
            raise CorruptError(f"the record ties {alias!r} to itself", where, _DAMAGED)
        if alias in tensors:
            continue
        if target not in tensors:
            raise CorruptError(f"the record ties {alias!r} to {target!r}, which is missing", where, _DAMAGED)
        tied[alias] = tensors[target].named(alias)
    order = record.digests.tensors if record.digests else {}
    if order.keys() == tied.keys():
        return {name: tied[name] for name in order}
    return tied


def left_out_ties(metadata: Mapping[str, str], tensors: Mapping[str, Any]) -> dict[str, str]:
    """Names that `safetensors.torch.save_model` left out → the stored name that shares their memory.

    Source: `safetensors.torch.save_model`; huggingface_hub `serialization/_torch.py` does the same.
    """
    return {
        name: kept
        for name, kept in metadata.items()
        if kept in tensors and name not in tensors and name != "format"
    }


def with_left_out(tensors: dict[str, TensorEntry], ties: Mapping[str, str]) -> dict[str, TensorEntry]:
    """`tensors` and, after them, the names that were left out, each as the tensor that was kept.

    The file does not say whether such a name was all of that tensor (a tied weight: nearly always) or a view
    of a part of it. So every one is noted.
    """
    return {**tensors, **{name: tensors[kept].named(name) for name, kept in ties.items()}}


def tie_notes(ties: Mapping[str, str]) -> list[str]:
    """A line for each name that was left out, up to MAX_NOTES of them."""
    notes = [
        f"{name} is taken to be {kept}: only one is stored, because they share memory"
        for name, kept in islice(ties.items(), MAX_NOTES)
    ]
    more = len(ties) - len(notes)
    return [*notes, f"so are {more} more"] if more else notes


def _metadata(value: Any, where: str, times: int) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CorruptError("the header's __metadata__ is not a table of texts", where, _DAMAGED)
    if not all(map(is_unicode, chain(value, value.values()))):
        raise CorruptError("the header's __metadata__ is not Unicode text", where, _DAMAGED)
    if len(value) > times * MAX_METADATA:
        raise LimitError("metadata_texts", times * MAX_METADATA, len(value), where)
    return value


class _Layout(NamedTuple):
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    num_bytes: int


def _shrink(found: dict[str, Any]) -> Any:
    """(dtype's tag, sizes, data offsets) for an object that describes a tensor; others as they are.

    The library passes over further fields, where it can read them.
    """
    tag, sizes, offsets = found.get("dtype"), found.get("shape"), found.get("data_offsets")
    if type(tag) is not str or type(sizes) is not list or type(offsets) is not list:
        return found
    if len(found) > 3 and not _is_readable(found):
        return found
    return intern(tag), tuple(sizes), tuple(offsets)


def _is_readable(found: dict[str, Any]) -> bool:
    """Whether the library, which reads JSON more strictly than Python does, reads what is in `found`."""
    level: list[Any] = [found]
    for _ in range(_MAX_NESTING):
        children = list(
            chain.from_iterable(chain(c, c.values()) if isinstance(c, dict) else c for c in level)
        )
        for child in children:
            if isinstance(child, str) and not is_unicode(child):
                return False
            if isinstance(child, (int, float)) and abs(child) > _LARGEST_NUMBER:
                return False
        level = [child for child in children if isinstance(child, (list, dict))]
        if not level:
            return True
    return False


def _fields(name: str, info: Any, where: str) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype's tag, sizes, first byte, byte after the last): of the right types, and no more checked."""
    if type(info) is not tuple or len(info[2]) != 2:
        raise _malformed(name, where)
    tag, sizes, (begin, end) = info
    if {int, *map(type, sizes), type(begin), type(end)} != {int}:
        raise _malformed(name, where)
    return tag, sizes, begin, end


def _malformed(name: str, where: str) -> CorruptError:
    return CorruptError(f"tensor {name!r} has a malformed dtype, shape or place", where, _DAMAGED)


def _layout(name: str, tag: str, sizes: tuple[int, ...], where: str) -> _Layout:
    """What the dtype's tag and the sizes mean, when they mean anything."""
    if tag not in BY_SAFETENSORS:
        raise UnknownFormatError(
            f"tensor {name!r} has the dtype {tag!r}, which ptsave does not know",
            where,
            "update ptsave if the file was written by a newer program",
        )
    dtype = BY_SAFETENSORS[tag]
    if len(sizes) > MAX_RANK:
        raise LimitError("rank", MAX_RANK, len(sizes), f"{where}, tensor {name!r}")
    if dtype is _F4:
        # the header counts values, torch counts bytes of two values
        if not sizes or sizes[-1] % 2:
            raise CorruptError(f"tensor {name!r} has an odd number of 4-bit values in a row", where, _DAMAGED)
        sizes = (*sizes[:-1], sizes[-1] // 2)
    if min(sizes, default=0) < 0 or prod(filter(None, sizes)) > _INT64_MAX:
        raise CorruptError(f"tensor {name!r} has a shape that no tensor can have", where, _DAMAGED)
    return _Layout(dtype, sizes, contiguous_strides(sizes), prod(sizes) * dtype.itemsize)


def _check_cover(spans: list[tuple[int, int, str]], num_bytes: int, where: str) -> None:
    """The spans, in any order, lie end to end and fill `num_bytes`."""
    spans.sort()
    at = 0
    for begin, end, name in spans:
        if begin != at:
            what = (
                "overlaps the tensor before it"
                if begin < at
                else f"begins after a hole of {begin - at} bytes"
            )
            raise CorruptError(f"tensor {name!r} {what}", where, _DAMAGED)
        at = end
    if at > num_bytes:
        raise CorruptError(f"truncated: {at - num_bytes} bytes of tensors are missing", where, _TRUNCATED)
    if at < num_bytes:
        raise CorruptError(f"{num_bytes - at} bytes follow the last tensor", where, _DAMAGED)
