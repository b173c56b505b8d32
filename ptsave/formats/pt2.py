"""torch.export's archives (.pt2): the weights and the constants of the exported programs.

The present layout has raw storages and a JSON table that says how each tensor views them; before torch
2.9 the tensors were torch zips inside the archive. The program itself is noted, never run.

Source: torch/export/pt2_archive/_package.py and torch/_export/serde/schema.py of torch 2.13 (records,
`PayloadConfig`, `TensorMeta`), torch/export/__init__.py `load` (the layouts before).
"""

from __future__ import annotations

from contextlib import ExitStack
from math import prod
from typing import Any

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import BY_NAME, DType
from ptsave.core.files import InputFile
from ptsave.core.nodes import GlobalUse, Opaque, TensorEntry
from ptsave.core.storage import Storage
from ptsave.errors import CorruptError
from ptsave.formats.base import FileFormat
from ptsave.formats.strict_json import parse_object
from ptsave.formats.torch_part import TorchParts
from ptsave.formats.torch_storage import StorageNode
from ptsave.formats.torch_tensors import tensor
from ptsave.formats.torch_zip import is_big_endian
from ptsave.formats.zip_checks import check_crcs
from ptsave.formats.zip_reader import STORED, ZipDirectory
from ptsave.formats.zip_sniff import directory_of, sniffed_directory

MAX_CONFIG_BYTES = 100_000_000
"""Cap on one table of tensors."""

_WEIGHTS = "data/weights/"
_CONSTANTS = "data/constants/"
_MODELS = "models/"
_FORMAT_RECORD = "archive_format"
_OLD_PROGRAM = "serialized_exported_program.json"
_OLD_WEIGHTS = ("serialized_state_dict.pt", "serialized_state_dict.json")
_OLD_CONSTANTS = ("serialized_constants.pt", "serialized_constants.json")
"""Torch zips all of them, whatever the name says: torch 2.1 called them .json."""
_STRIDED = 7  # schema.Layout
_INT64_MAX = 2**63 - 1
_DAMAGED = "the file is damaged; copy or download it again"
_SCALAR_TYPES: dict[int, DType] = {
    number: BY_NAME[name]
    for number, name in {
        1: "uint8",
        2: "int8",
        3: "int16",
        4: "int32",
        5: "int64",
        6: "float16",
        7: "float32",
        8: "float64",
        9: "complex32",
        10: "complex64",
        11: "complex128",
        12: "bool",
        13: "bfloat16",
        28: "uint16",
        29: "float8_e4m3fn",
        30: "float8_e5m2",
        31: "float8_e4m3fnuz",
        32: "float8_e5m2fnuz",
        33: "float8_e8m0fnu",
        34: "uint32",
        35: "uint64",
    }.items()
}
"""Source: `schema.ScalarType`."""


def read(file: InputFile) -> Checkpoint:
    """Open a .pt2 archive.

    The root is the exported program's state dict. Where there are constants too (non-persistent buffers,
    lifted tensors), it is `{"state_dict": …, "constants": …}`; where there are several programs, it has
    one such entry for each, by name.

    Raises: CorruptError, LimitError, UnreadableError.
    """
    with ExitStack() as on_failure:
        on_failure.callback(file.close)
        archive = _Archive(directory_of(file))
        programs = {name: archive.program(name) for name in archive.model_names()}
        root: Any = next(iter(programs.values())) if len(programs) == 1 else programs
        checkpoint = Checkpoint(
            FORMAT.name, file.path, root, globals=archive.globals, notes=archive.notes + _notes(archive)
        )
        checkpoint.checks.append(lambda: check_crcs(archive.directory))
        checkpoint.files = on_failure.pop_all()
    return checkpoint


def sniff(file: InputFile, head: bytes) -> bool:
    """A zip with torch.export's marker, or with the exported program of the old layout."""
    directory = sniffed_directory(file, head)
    return directory is not None and (
        _OLD_PROGRAM in directory.entries or f"{_top(directory)}{_FORMAT_RECORD}" in directory.entries
    )


FORMAT = FileFormat("pt2", sniff, read)


def _top(directory: ZipDirectory) -> str:
    first = next(iter(directory.entries), "")
    return first[: first.find("/") + 1]


class _Archive:
    """An archive's records under the names that the layout gives them."""

    def __init__(self, directory: ZipDirectory) -> None:
        self.directory = directory
        self.is_old = _OLD_PROGRAM in directory.entries
        self.top = "" if self.is_old else _top(directory)
        self.big_endian = is_big_endian(directory, self.top)
        self.globals: dict[str, GlobalUse] = {}
        self.notes: list[str] = []

    def where(self, record: str) -> str:
        return f"{self.directory.file.path}, record {self.top + record!r}"

    def has(self, record: str) -> bool:
        return self.top + record in self.directory.entries

    def records(self, folder: str) -> list[str]:
        """The records in `folder` and below, without the folder."""
        prefix = self.top + folder
        return [name.removeprefix(prefix) for name in self.directory.entries if name.startswith(prefix)]

    def model_names(self) -> list[str]:
        if self.is_old:
            return ["model"]
        return [name.removesuffix(".json") for name in self.records(_MODELS) if name.endswith(".json")]

    def program(self, name: str) -> Any:
        """One exported program's tensors."""
        if self.is_old:
            weights = self.pickled(next(filter(self.has, _OLD_WEIGHTS), _OLD_WEIGHTS[0]))
            constants = self.pickled(next(filter(self.has, _OLD_CONSTANTS), _OLD_CONSTANTS[0]))
        else:
            weights = self.payloads(_WEIGHTS, name, f"{name}_weights_config.json")
            constants = self.payloads(_CONSTANTS, name, f"{name}_constants_config.json")
        return {"state_dict": weights, "constants": constants} if constants else weights

    def payloads(self, folder: str, model: str, config: str) -> Any:
        """The tensors of one table, or of the torch zip that stood in its place before."""
        if self.has(f"{folder}{model}.pt"):
            return self.pickled(f"{folder}{model}.pt")
        if not self.has(folder + config):
            return {}
        where = self.where(folder + config)
        document = parse_object(
            self.directory.read(self.top + folder + config, MAX_CONFIG_BYTES), "the table of tensors", where
        )
        table = document.get("config")
        if not isinstance(table, dict):
            raise CorruptError("the table of tensors has no config", where, _DAMAGED)
        return {name: self.payload(folder, name, about, where) for name, about in table.items()}

    def payload(self, folder: str, name: str, about: Any, where: str) -> Any:
        """One tensor, or what stands in its place: an inert object, a tensor without bytes."""
        malformed = CorruptError(f"the table's entry {name!r} is malformed", where, _DAMAGED)
        if not isinstance(about, dict) or not isinstance(about.get("path_name"), str):
            raise malformed
        record = folder + about["path_name"]
        if not self.has(record):
            raise CorruptError(f"tensor {name!r} is missing: there is no record {record!r}", where, _DAMAGED)
        meta = about.get("tensor_meta")
        if about.get("use_pickle") is True:
            if meta is not None:
                return self.pickled(record)
            return Opaque("torch.export.custom_object", state={"record": self.top + record})
        if not isinstance(meta, dict):
            raise malformed
        storage = self.directory.storage(self.top + record)
        kind = "parameter" if about.get("is_param") is True else "tensor"
        try:
            return _tensor(meta, storage, kind, self.big_endian)
        except (KeyError, TypeError, ValueError):
            raise malformed from None
        except CorruptError as error:
            raise CorruptError(f"tensor {name!r}: {error.what}", where, _DAMAGED) from None

    def pickled(self, record: str) -> Any:
        """What `torch.save` wrote into `record`; an empty dict where there is no such record."""
        if not self.has(record):
            return {}
        entry = self.directory.entry(self.top + record)
        if entry.num_bytes == 0:
            return {}
        if entry.method != STORED:
            self.notes.append(f"{record} is compressed, and left out: pack the archive without compression")
            return Opaque("zip.deflated", state={"record": self.top + record})
        loaded = TorchParts().read(self.directory.file, entry.data_offset, entry.num_bytes)
        self.globals.update(loaded.globals)
        self.notes += loaded.notes
        return loaded.root


def _tensor(meta: dict[str, Any], storage: Storage, kind: str, big_endian: bool) -> TensorEntry | Opaque:
    """The view of `storage` that a `TensorMeta` describes.

    Raises: CorruptError when it does not lie in the storage; KeyError, TypeError, ValueError when the
    table is not of the right shape.
    """
    dtype = _SCALAR_TYPES[meta["dtype"]]
    shape = tuple(_integer(size) for size in meta["sizes"])
    strides = tuple(_integer(stride) for stride in meta["strides"])
    if meta["layout"] != _STRIDED or (prod(shape) and not storage.num_bytes):
        # sparse, or a tensor without bytes (FakeTensor)
        return Opaque("torch.meta", state={"dtype": dtype, "size": shape, "stride": strides})
    node = StorageNode("", dtype, storage.num_bytes // dtype.itemsize, storage, big_endian)
    return tensor(node, dtype, _integer(meta["storage_offset"]), shape, strides, meta["requires_grad"], kind)


def _integer(value: dict[str, Any]) -> int:
    """A `SymInt` that is a plain number."""
    number = value["as_int"]
    if type(number) is not int or not 0 <= number <= _INT64_MAX:
        raise ValueError
    return number


def _notes(archive: _Archive) -> list[str]:
    """What else the archive holds."""
    if archive.is_old:
        return ["holds an exported program (torch.export), which is left out"]
    notes = [f"holds the exported program {name}, which is left out" for name in archive.model_names()]
    compiled = archive.records("data/aotinductor/")
    if compiled:
        notes.append(f"holds {len(compiled)} files of compiled code (AOTInductor), which were not looked at")
    if archive.records("data/executorch/"):
        notes.append("holds an ExecuTorch program, which is left out")
    extra = archive.records("extra/")
    if extra:
        notes.append(f"holds {len(extra)} extra files, which are left out (such as {extra[0]})")
    return notes
