"""torch's zip format (`torch.save` since 1.6): a pickle and one record a storage. The reading half.

Layout: one top folder of any name, in it `data.pkl`, `data/KEY` for each storage, and the small records
`byteorder`, `version`, `.format_version`, `.storage_alignment`, `.data/serialization_id`; ptsave adds
`ptsave.json`, its record.

Source: torch/serialization.py (`_save`, `_load`), caffe2/serialize/inline_container.cc.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack
from typing import Any

from ptsave.core.accounts import Part
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import DType
from ptsave.core.finding import Finding, Kind
from ptsave.core.record import FILE_NAME, LONGEST_BYTES, MAX_BYTES, Record
from ptsave.core.storage import MemoryStorage, SwappedStorage
from ptsave.errors import CorruptError, LimitError, UnreadableError
from ptsave.formats.base import FileFormat
from ptsave.formats.kinds.quantized import PACKED
from ptsave.formats.pickle.inert import Unpickled, load
from ptsave.formats.pickle.shapes import Shapes
from ptsave.formats.torch.objects import torch_shapes
from ptsave.formats.torch.storages import (
    SCRIPT_DEVICES,
    MetaStorage,
    StorageNode,
    check_location,
    storage_id,
    storage_type,
)
from ptsave.formats.zip.checks import check_storages
from ptsave.formats.zip.reader import DEFLATED, ZipDirectory
from ptsave.formats.zip.sniff import ZIP_MAGIC, directory_of, sniffed_directory
from ptsave.storage.files import InputFile
from ptsave.storage.scan import crc32_of

MAX_INFLATED_PICKLE_BYTES = 64 * 1024 * 1024
"""Cap on a deflated `data.pkl`; torch itself never deflates."""
MAX_CHECKED_PICKLE_BYTES = 64 * 1024 * 1024
"""A longer `data.pkl` holds large arrays; its CRC is left to the check of all bytes."""
MAX_SMALL_BYTES = 4096
"""Cap on the records that hold a word or a number."""

MAX_VERSION = 10
"""Of the file format. Source: caffe2/serialize/versions.h, kMaxSupportedFileFormatVersion."""

_VERSIONS = (".data/version", "version")
"""Where an archive's version stands; torch takes the first of them that is there."""
_IDENTITY = ".data/serialization_id"
_TEXTS = (_IDENTITY, ".format_version", ".storage_alignment")
"""The records that torch makes text or a number of whatever is in them."""
_FOUND_BY_NAME = (
    "data.pkl",
    "constants.pkl",
    "byteorder",
    *_VERSIONS,
    *_TEXTS,
    "archive_format",
    "archive_version",
)
"""The records that torch asks for, beside those of storages."""
_OTHER_LOADERS = {"archive_format": "torch.export.load", ".data/extern_modules": "torch.package"}
BOOKKEEPING = (*(name for name in _FOUND_BY_NAME if name != "constants.pkl"), FILE_NAME)
"""The records of an archive that hold no tensor, as torch and ptsave write them."""

_HINT = "the file is damaged; copy or download it again"
_PACK = (
    "torch does not load it; pack it again as torch.save does: zip -0 -r model.pt FOLDER, with the version"
)


def sniff(file: InputFile, head: bytes) -> bool:
    """A zip archive with a `data.pkl`, or one that is too damaged to tell (then `read` says how)."""
    if not head.startswith(ZIP_MAGIC):
        return False
    directory = sniffed_directory(file, head)
    return directory is None or top_folder(directory) is not None


def read(file: InputFile) -> Checkpoint:
    """Open a torch zip. Tensors are windows into its records; none of their bytes is read.

    Raises: CorruptError, LimitError.
    """
    with ExitStack() as on_failure:
        on_failure.callback(file.close)
        directory = directory_of(file)
        expect_bookkeeping(directory)
        top = data_folder(directory)
        big_endian = is_big_endian(directory, top)
        loaded = load_pickle(directory, f"{top}data.pkl", ZipStorages(directory, f"{top}data/", big_endian))
        record = None
        if top + FILE_NAME in directory.entries:
            most = min(max(MAX_BYTES, file.stored_bytes), LONGEST_BYTES)
            record = Record.from_json(directory.read(top + FILE_NAME, most), str(file.path))
        checkpoint = Checkpoint(
            FORMAT.name,
            file.path,
            loaded.root,
            globals=loaded.globals,
            record=record,
            notes=[*loaded.notes, *(["the storages are big-endian"] if big_endian else [])],
            dropped=loaded.dropped,
        )
        checkpoint.parts.append(lambda: records_of(directory, {top + name for name in BOOKKEEPING}))
        checkpoint.checks.append(lambda: check_records(checkpoint, directory))
        checkpoint.files = on_failure.pop_all()
    return checkpoint


FORMAT = FileFormat("pt", sniff, read)


def expect_bookkeeping(directory: ZipDirectory) -> None:
    """Say that the pickle and the small records around it will be read."""
    for name in directory.entries:
        if name.partition("/")[2] in BOOKKEEPING:
            storage = directory.storage(name)
            storage.expect(0, storage.num_bytes)


def top_folder(directory: ZipDirectory) -> str | None:
    """The prefix ("archive/") of the folder that has the `data.pkl`; None where there is none.

    torch takes the first entry's folder, and other readers another one.

    Raises: CorruptError when there are two.
    """
    pickles = (name for name in directory.entries if name.endswith("data.pkl") and name.count("/") <= 1)
    tops = [top for name in pickles if (top := name.removesuffix("data.pkl"))[-1:] in ("", "/")]
    if len(tops) > 1:
        names = " and ".join(repr(f"{top}data.pkl"[:40]) for top in tops[:2])
        raise CorruptError(f"the file is two checkpoints in one: {names}", str(directory.file.path), _HINT)
    return tops[0] if tops else None


def first_folder(directory: ZipDirectory) -> str:
    """The prefix of the folder that the first record lies in, where torch looks for all; may be empty."""
    return directory.first_name[: directory.first_name.find("/") + 1]


def data_folder(directory: ZipDirectory) -> str:
    """The prefix of the folder that has the `data.pkl`, where torch finds it and all else.

    Raises: CorruptError, UnreadableError.
    """
    top = top_folder(directory)
    if top is None:
        raise CorruptError("the file has no data.pkl", str(directory.file.path), "torch.save writes one")
    check_layout(directory, top)
    for record, loader in _OTHER_LOADERS.items():
        if top + record in directory.entries:
            what = f"the file is two checkpoints in one: {loader} reads other records of it"
            raise CorruptError(what, str(directory.file.path), _HINT)
    return top


def check_layout(directory: ZipDirectory, top: str) -> None:
    """Check the names of an archive's records against the rules of torch's reader.

    It takes the first entry's folder for that of all, and finds records without regard to case.

    Raises: CorruptError where it finds other records, or none; UnreadableError.
    """
    where = str(directory.file.path)
    if not top or not directory.first_name.startswith(top):
        found = directory.first_name[:40]
        raise CorruptError(f"torch looks for its records where the first one is, at {found!r}", where, _PACK)
    known = {f"{top}{name}".lower(): f"{top}{name}" for name in _FOUND_BY_NAME}
    longest = max(map(len, known))
    for name, entry in directory.entries.items():
        if not name.startswith(top):
            raise CorruptError(f"the record {name[:40]!r} is outside the folder of all others", where, _PACK)
        if not entry.is_utf8:
            what = f"the archive does not spell the name {name[:40]!r} in UTF-8, and torch reads no other"
            raise CorruptError(what, where, _PACK)
        if len(name) <= longest and known.get(name.lower(), name) != name:
            raise CorruptError(f"torch takes the record {name!r} for {known[name.lower()]!r}", where, _HINT)
    for name in _TEXTS:
        if top + name in directory.entries:
            text = _small(directory, top + name)
            if not text.isascii() or (name != _IDENTITY and not text.isdigit()):
                raise CorruptError(f"the record {name} holds what torch cannot read", where, _HINT)
    record = next((name for name in _VERSIONS if top + name in directory.entries), None)
    if record is None:
        raise CorruptError(
            "the file has no version record, and torch does not read it without one", where, _PACK
        )
    text = directory.read(top + record, MAX_SMALL_BYTES).strip()
    if not text.isdigit() or not 1 <= int(text) <= MAX_VERSION:
        shown = text[:20].decode("latin-1")
        raise UnreadableError(
            f"the file has the format version {shown!r}, but torch reads only 1 to {MAX_VERSION}",
            where,
            "update ptsave and torch if a newer torch wrote it",
        )


def load_pickle(
    directory: ZipDirectory, name: str, persistent_load: Callable[[Any], Any] | None
) -> Unpickled:
    """Interpret the pickle in the record `name`; `persistent_load` finds its storages.

    Raises: CorruptError, LimitError.
    """
    return load_record(directory, name, torch_shapes(persistent_load))


def load_record(directory: ZipDirectory, name: str, shapes: Shapes) -> Unpickled:
    """Interpret the pickle in the record `name`. A damaged one is refused: its keys name the tensors.

    Raises: CorruptError, LimitError.
    """
    where = f"{directory.file.path}, record {name!r}"
    entry = directory.entry(name)
    storage = directory.storage(name)
    if entry.method == DEFLATED and entry.num_bytes > MAX_INFLATED_PICKLE_BYTES:
        raise LimitError("inflated_pickle_bytes", MAX_INFLATED_PICKLE_BYTES, entry.num_bytes, where)
    is_small = entry.num_bytes <= MAX_CHECKED_PICKLE_BYTES
    if is_small and directory.file.is_remote:  # once, for the sum and the meaning
        buffer = bytearray(entry.num_bytes)
        storage.read_into(0, memoryview(buffer))
        storage = MemoryStorage(memoryview(buffer))
    if is_small and entry.crc32 is not None and crc32_of(storage) != entry.crc32:
        raise CorruptError("damaged: the bytes do not match their CRC-32", where, _HINT)
    return load(storage, 0, shapes, where, is_whole=True)


class ZipStorages:
    """Finds the storages that a pickle names by persistent id among an archive's records."""

    def __init__(
        self,
        directory: ZipDirectory,
        prefix: str,
        big_endian: bool,
        *,
        is_script: bool = False,
        refused: set[str] | None = None,
    ) -> None:
        """`is_script`: whether it is TorchScript's, where storages on the meta device have no bytes;
        `refused` takes why torch.jit.load does not read the archive."""
        self.is_script = is_script
        self.refused = refused if refused is not None else set()
        self.directory = directory
        self.prefix = prefix
        self.big_endian = big_endian
        self._nodes: dict[str, StorageNode] = {}
        self._empty: dict[tuple[str, DType], StorageNode] = {}
        """By key and elements: torch makes a storage of no bytes anew each time that it is named."""

    def __call__(self, persistent_id: Any) -> StorageNode | MetaStorage:
        """The storage of `("storage", class, key, location, number of elements)`; one object a key.

        Raises: CorruptError when there is no such record, or it has another length.
        """
        if type(persistent_id) is str:
            persistent_id = storage_id(persistent_id)
        if type(persistent_id) is not tuple or len(persistent_id) != 5:
            raise CorruptError("the pickle refers to an object that is not a storage")
        tag, kind, key, location, count = persistent_id
        if type(key) is bytes:
            raise CorruptError(
                "the pickle names a storage with bytes, which torch reads as the name of another record"
            )
        dtype = storage_type(kind, is_script=self.is_script)
        if dtype is None or type(key) is not str or (tag != "storage" and tag != b"storage"):
            raise CorruptError("the pickle refers to an object that is not a storage")
        if self.is_script and location == "meta" and self._has_no_bytes(key):
            return MetaStorage(dtype)
        check_location(location, count)
        if self.is_script and str(location).partition(":")[0] not in SCRIPT_DEVICES:
            self.refused.add("it has a storage on a device that torch does not have")
        if self.is_script and dtype.name in PACKED and count:
            self.refused.add(f"it takes a {dtype} tensor for one with an element in each byte")
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = self._find(key, kind.name, dtype, count)
        elif node.dtype is not dtype and node.num_elements == 0 and count == 0:
            node = self._empty.get((key, dtype))
            if node is None:
                node = self._empty[key, dtype] = self._find(key, kind.name, dtype, count)
        elif node.dtype is not dtype or node.num_elements != count:
            raise CorruptError(f"storage {key[:40]!r} is described in two ways")
        return node

    def _has_no_bytes(self, key: str) -> bool:
        entry = self.directory.entries.get(self.prefix + key)
        return entry is not None and entry.num_bytes == 0

    def _find(self, key: str, class_name: str, dtype: DType, count: Any) -> StorageNode:
        name = self.prefix + key
        if name not in self.directory.entries:
            raise CorruptError(f"storage {key[:40]!r} is missing: there is no record {name[:80]!r}")
        if type(count) is not int or count < 0:
            raise CorruptError(f"storage {key[:40]!r} has an impossible number of elements")
        storage = self.directory.storage(name)
        if storage.num_bytes != count * dtype.itemsize:
            raise CorruptError(
                f"storage {key[:40]!r} should have {count * dtype.itemsize} bytes, "
                f"its record has {storage.num_bytes}"
            )
        return StorageNode(class_name, dtype, count, storage, self.big_endian)


def is_big_endian(directory: ZipDirectory, top: str) -> bool:
    """Whether the archive says that its numbers are big-endian; without a word they are little-endian."""
    if f"{top}byteorder" not in directory.entries:
        return False
    order = directory.read(f"{top}byteorder", MAX_SMALL_BYTES)
    if order not in (b"little", b"big"):
        raise CorruptError(
            f"the file has an unknown byte order {order[:20]!r}", str(directory.file.path), _HINT
        )
    return order == b"big"


def _small(directory: ZipDirectory, name: str) -> bytes:
    """A small record, whatever its CRC-32, which the check of all bytes compares it with.

    Raises: LimitError, CorruptError.
    """
    storage = directory.storage(name)
    if storage.num_bytes > MAX_SMALL_BYTES:
        where = f"{directory.file.path}, record {name!r}"
        raise LimitError("record_bytes", MAX_SMALL_BYTES, storage.num_bytes, where)
    buffer = bytearray(storage.num_bytes)
    storage.read_into(0, memoryview(buffer))
    return bytes(buffer)


def refuse_big_endian(directory: ZipDirectory, top: str, loader: str) -> None:
    """Refuse an archive that says it is big-endian, where `loader` reads little-endian numbers all the same.

    Raises: CorruptError.
    """
    if is_big_endian(directory, top):
        what = f"the file is big-endian, and {loader} does not swap its bytes on other machines"
        raise CorruptError(what, str(directory.file.path), "save it on a little-endian machine")


def records_of(directory: ZipDirectory, known: Container[str]) -> Iterator[Part]:
    """The records of an archive that tensors may view: all but the `known` ones."""
    for name in directory.entries:
        if name not in known:
            yield Part(name, directory.storage(name))


def check_records(checkpoint: Checkpoint, directory: ZipDirectory) -> Iterator[Finding]:
    """Check the records against their CRC-32 that are not audited as some tensor's storage anyway.

    Those of big-endian tensors are among them, and are reported under the tensors' names.
    """
    audited = {id(entry.storage) for entry in checkpoint.tensors.values()}
    swapped: dict[int, list[str]] = {}
    for name, entry in checkpoint.tensors.items():
        if isinstance(entry.storage, SwappedStorage):
            swapped.setdefault(id(entry.storage.inner), []).append(name)
    yield from check_mapping(directory)
    records = ((name, directory.storage(name)) for name in directory.entries)
    yield from check_storages(
        (", ".join(swapped.get(id(storage), [name])), storage)
        for name, storage in records
        if id(storage) not in audited
    )
    if directory.unclaimed_bytes:
        yield Finding("bytes", "warn", "", Kind.UNCLAIMED_BYTES, directory.unclaimed_bytes)


def check_mapping(directory: ZipDirectory) -> Iterator[Finding]:
    """Name the storages that are deflated: torch.load(mmap=True) takes their compressed bytes for numbers."""
    for name, entry in directory.entries.items():
        if entry.method == DEFLATED and entry.num_bytes and "/data/" in name:
            yield Finding("bytes", "fail", name, Kind.DEFLATED)
