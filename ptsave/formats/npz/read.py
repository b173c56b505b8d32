"""NumPy's .npy (one array) and .npz (a zip of them). The reading half; nothing is unpickled.

An array of Python objects is a pickle; what it names is listed, as for a torch file.

Source: numpy/lib/format.py, "Format Version 1.0" to "3.0"; NumPy's "The array interface protocol".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from math import prod
from typing import Any, NamedTuple

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import BY_NUMPY
from ptsave.core.finding import counted
from ptsave.core.nodes import GlobalUse, Opaque, TensorEntry, add_uses, contiguous_strides
from ptsave.core.storage import Storage, SwappedStorage
from ptsave.errors import CorruptError, LimitError, UnreadableError
from ptsave.formats.base import FileFormat
from ptsave.formats.pickle.inert import load
from ptsave.formats.torch.objects import torch_shapes
from ptsave.formats.torch.read import records_of
from ptsave.formats.zip.checks import check_crcs
from ptsave.formats.zip.reader import ZipDirectory
from ptsave.formats.zip.sniff import ZIP_MAGIC, directory_of
from ptsave.storage.files import InputFile
from ptsave.storage.windows import FileStorage

MAX_HEADER_BYTES = 10_000
"""Cap on the header of one array; NumPy's own (`numpy.lib.format._MAX_HEADER_SIZE`)."""
MAX_RANK = 64
"""Cap on the dimensions of one array; NumPy's own, and torch's."""

_MAGIC = b"\x93NUMPY"
_HEAD_BYTES = 256
_INT64_MAX = 2**63 - 1
_DAMAGED = "the file is damaged; copy or download it again"

# What NumPy reads is Python source: its spaces and its numbers, which have no leading zeros.
_SPACES = " \t\f\r\n"
_S = f"[{_SPACES}]*"
_DESCR = re.compile(rf"{_S}['\"]descr['\"]{_S}:{_S}(?:'([^'\\]*)'|\"([^\"\\]*)\"|(\[[^{{}}]*\])){_S}")
_ORDER = re.compile(rf"{_S}['\"]fortran_order['\"]{_S}:{_S}(True|False){_S}")
_SHAPE = re.compile(rf"{_S}['\"]shape['\"]{_S}:{_S}\(([0-9L,{_SPACES}]*)\){_S}")
_SIZE = re.compile(r"(0{1,19}|[1-9][0-9]{0,18})(L?)")
_FIXED = re.compile(
    r"[<>|](?:(?P<type>[biufcmMSVU])(?P<size>[0-9]{1,18})"
    r"|(?P<unit>[mM]8\[(?:[1-9][0-9]{0,8})?(?:[YMWDhms]|ms|us|ns|ps|fs|as)\]))"
)
_ITEM_BYTES = {
    "b": (1,),
    "i": (1, 2, 4, 8),
    "u": (1, 2, 4, 8),
    "f": (2, 4, 8, 12, 16),
    "c": (8, 16, 24, 32),
    "m": (8,),
    "M": (8,),
}
_MAX_ITEM_BYTES = 2**31 - 1


class _Header(NamedTuple):
    descr: str
    """As NumPy's array interface spells a dtype; a structured one as the list that it is."""
    fortran_order: bool
    shape: tuple[int, ...]
    num_bytes: int
    """Of all that comes before the elements."""


def read_npy(file: InputFile) -> Checkpoint:
    """Open a .npy file as a checkpoint whose root is the one tensor.

    Raises: CorruptError, LimitError, UnreadableError.
    """
    uses: dict[str, GlobalUse] = {}
    try:
        root = _array("", FileStorage(file, 0, file.size_bytes), str(file.path), uses)
    except BaseException:
        file.close()
        raise
    checkpoint = Checkpoint(NPY.name, file.path, root, globals=uses, notes=_notes([root]))
    checkpoint.files.callback(file.close)
    return checkpoint


def read_npz(file: InputFile) -> Checkpoint:
    """Open a .npz file as a flat dict of tensors, named as `numpy.load` names them.

    Raises: CorruptError, LimitError, UnreadableError.
    """
    uses: dict[str, GlobalUse] = {}
    try:
        directory = directory_of(file)
        root: dict[str, TensorEntry | Opaque] = {}
        notes = []
        for record, name in names_of(directory).items():
            storage = directory.storage(record)
            if not record.endswith(".npy") and not _is_array(storage):
                notes.append(f"the record {record} is not an array, and left out")
                continue
            if storage.crc32 is None and storage.num_bytes:
                raise CorruptError(f"the record {record} states no CRC-32", str(file.path), _DAMAGED)
            root[name] = _array(name, storage, f"{file.path}, record {record!r}", uses)
    except BaseException:
        file.close()
        raise
    checkpoint = Checkpoint(NPZ.name, file.path, root, globals=uses, notes=notes + _notes(root.values()))
    arrays = {name for name in directory.entries if name.endswith(".npy")}
    checkpoint.parts.append(lambda: records_of(directory, arrays))
    checkpoint.checks.append(lambda: check_crcs(directory))
    checkpoint.files.callback(file.close)
    return checkpoint


def names_of(directory: ZipDirectory) -> dict[str, str]:
    """The name that `numpy.load` gives to each record.

    It takes a name for a record's whole name first, and then for one without `.npy`; and it decodes names as
    zipfile does.

    Raises: CorruptError where two records go by one name.
    """
    names = {record: record.removesuffix(".npy") for record in directory.entries}
    where = str(directory.file.path)
    shown: dict[str, str] = {}
    for record, name in names.items():
        other = name if name != record and name in names else shown.setdefault(name, record)
        if other != record:
            what = f"the records {other[:40]!r} and {record[:40]!r} are one name to numpy.load"
            raise CorruptError(what, where, _DAMAGED)
    if directory.unmarked_names:
        what = f"the name {next(iter(directory.unmarked_names))[:40]!r} is spelled otherwise by numpy.load"
        raise CorruptError(what, where, "write the file again with NumPy")
    return names


def _is_array(storage: Storage) -> bool:
    """numpy.load takes a record for an array by how it begins, whatever its name."""
    return _read(storage, 0, min(storage.num_bytes, len(_MAGIC))) == _MAGIC


def _array(name: str, storage: Storage, where: str, uses: dict[str, GlobalUse]) -> Any:
    """The array that fills `storage`; an Opaque with its dtype and shape where torch has no such dtype.

    Names in the pickle of an array of objects are added to `uses`.
    """
    header = _read_header(storage, where)
    held = storage.num_bytes - header.num_bytes
    word = header.descr[1:]
    dtype = BY_NUMPY.get(f"<{word}") or BY_NUMPY.get(f"|{word}")
    if (
        dtype is None
        or header.descr[:1] not in ("<", ">", "|")
        or (header.descr[0] == "|" and dtype.itemsize > 1)
    ):
        state = {"dtype": header.descr, "shape": header.shape}
        item_bytes = _item_bytes(header.descr, where)
        if item_bytes is None:
            objects = _objects(storage, header.num_bytes, where, uses)
            state["values"] = objects
            if header.shape == () and (inner := _only(objects)) is not None:
                return inner  # as `numpy.load(…).item()` gives it
        elif held != prod(header.shape) * item_bytes:
            what = f"shape {list(header.shape)} and dtype {header.descr[:40]!r} do not fit {held} bytes"
            raise CorruptError(what, where, _DAMAGED)
        return Opaque("numpy.ndarray", state=state)
    num_bytes = prod(header.shape) * dtype.itemsize
    if held != num_bytes:
        raise CorruptError(
            f"shape {list(header.shape)} and dtype {dtype} need {num_bytes} bytes, and there are {held}",
            where,
            _DAMAGED,
        )
    data = storage.window(header.num_bytes, num_bytes)
    if header.descr[0] == ">" and dtype.word_bytes > 1:
        data = SwappedStorage(data, dtype.word_bytes)
    strides = contiguous_strides(header.shape)
    if header.fortran_order:
        strides = contiguous_strides(header.shape[::-1])[::-1]
    return TensorEntry(name, dtype, header.shape, strides, data, 0)


def _objects(storage: Storage, offset_bytes: int, where: str, uses: dict[str, GlobalUse]) -> Any:
    """What the pickle of an array of objects spells; `numpy.load(allow_pickle=True)` would run it."""
    loaded = load(storage, offset_bytes, torch_shapes(), where)
    add_uses(uses, loaded.globals)
    return loaded.root


def _only(objects: Any) -> dict[Any, Any] | None:
    """The dictionary that an array of one object holds; None where it holds anything else."""
    state = objects.state if isinstance(objects, Opaque) and objects.name == "numpy.ndarray" else None
    values = state.get("values") if isinstance(state, dict) else None
    if isinstance(values, list) and len(values) == 1 and isinstance(values[0], dict):
        return values[0]
    return None


def _item_bytes(descr: str, where: str) -> int | None:
    """Bytes of an element of a dtype that torch does not have; None where it holds Python objects.

    Raises: CorruptError where it is not a dtype that NumPy writes.
    """
    parsed: Any = descr
    if descr.startswith("["):
        try:
            parsed = ast.literal_eval(descr)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            parsed = None
    try:
        return _bytes_of(parsed)
    except _NoDtypeError:
        raise CorruptError(f"the record has the unknown dtype {descr[:40]!r}", where, _DAMAGED) from None


class _NoDtypeError(Exception):
    """A description that is of no dtype."""


def _bytes_of(descr: Any) -> int | None:
    """As `_item_bytes`, of a text or a list of fields, each (name or (title, name), dtype, shape if any)."""
    if isinstance(descr, list):
        total: int | None = 0
        names: set[str] = set()
        for field in descr:
            if type(field) is not tuple or len(field) not in (2, 3):
                raise _NoDtypeError
            own = field[0] if type(field[0]) is tuple else (field[0],)  # (title, name)
            if not all(type(name) is str for name in own) or not names.isdisjoint(own):
                raise _NoDtypeError
            names.update(filter(None, own))  # padding has none
            shape = field[2] if len(field) == 3 else ()
            shape = shape if type(shape) is tuple else (shape,)
            if not all(type(size) is int and 0 <= size <= _INT64_MAX for size in shape):
                raise _NoDtypeError
            one = _bytes_of(field[1])
            total = None if one is None or total is None else total + one * prod(shape)
        return total
    if not isinstance(descr, str):
        raise _NoDtypeError
    if descr in ("|O", "|O8"):
        return None
    match = _FIXED.fullmatch(descr)
    if match is None:
        raise _NoDtypeError
    if match["unit"]:
        if descr[0] == "|":
            raise _NoDtypeError
        return 8
    size = int(match["size"])
    if size not in _ITEM_BYTES.get(match["type"], (size,)):
        raise _NoDtypeError
    if descr[0] == "|" and size > 1 and match["type"] not in "SV":  # a number has a byte order
        raise _NoDtypeError
    size *= 4 if match["type"] == "U" else 1  # in code points of 4 bytes
    if size > _MAX_ITEM_BYTES:
        raise _NoDtypeError
    return size


def _read_header(storage: Storage, where: str) -> _Header:
    head = _read(storage, 0, min(storage.num_bytes, _HEAD_BYTES))
    if head[:6] != _MAGIC or len(head) < 12:
        raise CorruptError("the record is not a .npy array", where, _DAMAGED)
    version = (head[6], head[7])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise UnreadableError(
            f"the record has the .npy format version {head[6]}.{head[7]}", where, "save it as 1.0, 2.0 or 3.0"
        )
    start = 10 if version == (1, 0) else 12
    end = start + int.from_bytes(head[8:start], "little")
    if end - start > MAX_HEADER_BYTES:
        raise LimitError("npy_header_bytes", MAX_HEADER_BYTES, end - start, where)
    if end > storage.num_bytes:
        raise CorruptError("the record ends inside its header", where, _DAMAGED)
    raw = head[start:end] if end <= len(head) else _read(storage, start, end - start)
    try:
        text = raw.decode("utf-8" if version == (3, 0) else "latin-1")
    except UnicodeDecodeError:
        raise CorruptError("the record has a header that is not text", where, _DAMAGED) from None
    return _parse_header(text, end, where, is_python2=version != (3, 0))


def _parse_header(text: str, num_bytes: int, where: str, *, is_python2: bool) -> _Header:
    """The header's Python literal: a dict of exactly `descr`, `fortran_order` and `shape`, in any order.

    `is_python2`: whether Python 2 may have written it, with sizes such as `3L`.
    """
    malformed = CorruptError("the record has a malformed header", where, _DAMAGED)
    body = text.lstrip(" \t").rstrip(_SPACES)
    if not (body.startswith("{") and body.endswith("}")):
        raise malformed
    found: dict[re.Pattern[str], re.Match[str]] = {}
    at, end = 1, len(body) - 1
    while at < end and body[at:end].strip(_SPACES):
        match = next((m for p in (_DESCR, _ORDER, _SHAPE) if (m := p.match(body, at, end))), None)
        if match is None or match.re in found:
            raise malformed
        found[match.re] = match
        at = match.end()
        if at < end:
            if body[at] != ",":
                raise malformed
            at += 1
    if len(found) != 3:
        raise malformed
    descr = next(group for group in found[_DESCR].groups() if group is not None)
    sizes = [size.strip(_SPACES) for size in found[_SHAPE][1].split(",")]
    if sizes[-1] == "":  # () and (3,)
        sizes.pop()
    elif len(sizes) == 1:  # (3) is not a tuple
        raise malformed
    numbers = [_SIZE.fullmatch(size) for size in sizes]
    if len(numbers) > MAX_RANK:
        raise LimitError("rank", MAX_RANK, len(numbers), where)
    shape = tuple(int(number[1]) for number in numbers if number and (is_python2 or not number[2]))
    if len(shape) != len(sizes) or prod(filter(None, shape)) > _INT64_MAX:
        raise malformed
    return _Header(descr, found[_ORDER][1] == "True", shape, num_bytes)


def _read(storage: Storage, offset_bytes: int, num_bytes: int) -> bytes:
    buffer = bytearray(num_bytes)
    storage.read_into(offset_bytes, memoryview(buffer))
    return bytes(buffer)


def _notes(arrays: Iterable[TensorEntry | Opaque]) -> list[str]:
    kept = [array for array in arrays if isinstance(array, Opaque)]
    if not kept:
        return []
    have = counted(len(kept), "array has a dtype", "arrays have dtypes")
    return [f"{have} that torch does not have (such as {kept[0].state['dtype']!r})"]


def _first_record_is_array(file: InputFile, head: bytes) -> bool:
    name_bytes = int.from_bytes(head[26:28], "little")
    return head[:4] == ZIP_MAGIC and head[30 : 30 + name_bytes].endswith(b".npy")


NPZ = FileFormat("npz", _first_record_is_array, read_npz)
NPY = FileFormat("npy", lambda file, head: head[:6] == _MAGIC, read_npy)
