"""torch.export's archives (.pt2): the weights and the constants of the exported programs.

The present layout has raw storages and a JSON table that says how each tensor views them; before torch
2.9 the tensors were torch zips inside the archive. The program itself is noted, never run.

Source: torch/export/pt2_archive/_package.py and torch/_export/serde/schema.py of torch 2.13 (records,
`PayloadConfig`, `TensorMeta`), torch/export/__init__.py `load` (the layouts before).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from typing import Any

from ptsave.core.accounts import Part
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import counted
from ptsave.core.nodes import GlobalUse, Opaque, Program, TensorEntry, add_uses
from ptsave.core.record import FILE_NAME, LONGEST_BYTES, MAX_BYTES, Record
from ptsave.core.storage import Storage
from ptsave.core.strict_json import parse_object
from ptsave.core.tree import dotted
from ptsave.errors import CorruptError, UnreadableError
from ptsave.formats.base import FileFormat
from ptsave.formats.pickle.inert import Unpickled
from ptsave.formats.pickle.shapes import Shapes
from ptsave.formats.programs import torchscript
from ptsave.formats.programs.pt2_ports import SCALAR_TYPES, described, with_names
from ptsave.formats.programs.pt2_program import code_in
from ptsave.formats.programs.sniff import FORMAT_RECORD, OLD_PROGRAM, PT2, is_pt2
from ptsave.formats.torch import objects
from ptsave.formats.torch.objects import torch_shapes
from ptsave.formats.torch.part import TorchParts
from ptsave.formats.torch.read import (
    ZipStorages,
    check_layout,
    first_folder,
    load_record,
    records_of,
    refuse_big_endian,
    top_folder,
)
from ptsave.formats.torch.storages import StorageNode
from ptsave.formats.torch.tensors import tensor
from ptsave.formats.zip.checks import check_crcs
from ptsave.formats.zip.reader import STORED, ZipDirectory, read_directory
from ptsave.formats.zip.sniff import ZIP_MAGIC, directory_of
from ptsave.storage.files import InputFile

MAX_CONFIG_BYTES = 100_000_000
"""Cap on one table of tensors."""

_WEIGHTS = "data/weights/"
_CONSTANTS = "data/constants/"
_MODELS = "models/"
_SAMPLE_INPUTS = "data/sample_inputs/"
_COMPILED = "data/aotinductor/"
_TENSOR, _CUSTOM_OBJECT, _OPAQUE_OBJECT = "tensor_", "custom_obj_", "opaque_obj_"
"""How a constant's record begins says what reads it: raw numbers or torch.load, C++, pickle.loads."""
RECORD = f"extra/{FILE_NAME}"
"""The extra file that has ptsave's record."""
_FOLDERS = (_WEIGHTS, _CONSTANTS, _MODELS, _SAMPLE_INPUTS, _COMPILED, "extra/")
"""Where torch looks for records by their names."""
_OLD_WEIGHTS = ("serialized_state_dict.pt", "serialized_state_dict.json")
_OLD_CONSTANTS = ("serialized_constants.pt", "serialized_constants.json")
"""Torch zips all of them, whatever the name says: torch 2.1 called them .json."""
_OLD_INPUTS = "serialized_example_inputs.pt"
_NO_TENSORS = ("data/sample_inputs/", "models/", "extra/", ".data/")
"""Folders whose records are no weights: examples of inputs, the program, the user's own files."""
_BOOKKEEPING = (
    FORMAT_RECORD,
    "archive_version",
    "byteorder",
    "version",
    ".format_version",
    ".storage_alignment",
    OLD_PROGRAM,
    _OLD_INPUTS,
)
_STRIDED = 7  # schema.Layout
_INT64_MAX = 2**63 - 1
_DAMAGED = "the file is damaged; copy or download it again"


def read(file: InputFile) -> Checkpoint:
    """Open a .pt2 archive.

    The root is the exported program's state dict. Where there are constants (non-persistent buffers, lifted
    tensors), it is `{"state_dict": …, "constants": …}`, without the former where it is empty; where there are
    several programs, it has one such entry for each, by name.

    Raises: CorruptError, LimitError, UnreadableError.
    """
    with ExitStack() as on_failure:
        on_failure.callback(file.close)
        archive = _Archive(directory_of(file))
        programs = {name: archive.program(name) for name in archive.model_names()}
        archive.judge_others()
        record = archive.record()
        root: Any = next(iter(programs.values())) if len(programs) == 1 else programs
        checkpoint = Checkpoint(
            PT2,
            file.path,
            root,
            globals=archive.globals,
            record=record,
            notes=[*archive.notes, *_notes(archive)],
            constants=_constants(root, programs),
            programs=with_names(archive.programs, record),
            num_code_files=len(programs),
        )
        checkpoint.dropped += archive.dropped
        checkpoint.parts.append(archive.parts)
        checkpoint.checks.append(lambda: check_crcs(archive.directory))
        checkpoint.files = on_failure.pop_all()
    return checkpoint


def _constants(root: Any, programs: dict[str, Any]) -> frozenset[str]:
    """The names of the programs' constants in the tree `root`."""
    return frozenset(
        dotted((*(() if program is root else (name,)), "constants", constant))
        for name, program in programs.items()
        if isinstance(program, dict) and isinstance(program.get("constants"), dict)
        for constant in program["constants"]
    )


def programs_in(file: InputFile) -> dict[str, Any]:
    """The JSON of the exported programs in an archive that `read` opened, by name."""
    directory = directory_of(file)
    front = first_folder(directory) + _MODELS
    return {
        name.removeprefix(front).removesuffix(".json"): parse_object(
            directory.read(name, MAX_CONFIG_BYTES), "the program", f"{file.path}, record {name!r}"
        )
        for name in directory.entries
        if name.startswith(front)
    }


FORMAT = FileFormat(PT2, is_pt2, read)


class _Archive:
    """An archive's records under the names that the layout gives them."""

    def __init__(self, directory: ZipDirectory) -> None:
        self.directory = directory
        self.is_old = OLD_PROGRAM in directory.entries
        self.top = "" if self.is_old else first_folder(directory)
        if not self.is_old:
            check_layout(directory, self.top)
            _check_case(directory, self.top)
            refuse_big_endian(directory, self.top, "torch.export.load")
        self.globals: dict[str, GlobalUse] = {}
        self.notes: dict[str, None] = {}
        self.dropped: dict[str, None] = {}
        """Each text once, in order: every record of a file may have some of its own."""
        self.taken: set[str] = set()
        """Records that were read as a whole."""
        self.tensors: set[str] = set()
        """Records that are the plain numbers of tensors."""
        self.programs: list[Program] = []
        self._dtypes: dict[str, Any] = {}
        self._records: list[Part] = []
        """The records of the torch zips inside it."""
        self.judge()

    def judge(self) -> None:
        """Tell what torch.export.load would run, apart from what makes the tensors.

        Raises: CorruptError where another loader would take the archive for something else.
        """
        for record in ("data.pkl", "constants.pkl"):
            if self.has(record):
                what = f"the file is two checkpoints in one: torch.load and torch.jit.load read its {record}"
                raise CorruptError(what, str(self.directory.file.path), _DAMAGED)
        if self.is_old:
            if any(name.partition("/")[2] == FORMAT_RECORD for name in self.directory.entries):
                what = (
                    "the file is two checkpoints in one: an exported program of the old and of the new layout"
                )
                raise CorruptError(what, str(self.directory.file.path), _DAMAGED)
            for one, other in (_OLD_WEIGHTS, _OLD_CONSTANTS):
                if self.has(one) and self.has(other):
                    raise CorruptError(
                        f"the file has both {one} and {other}", str(self.directory.file.path), _DAMAGED
                    )
            inputs, programs = [_OLD_INPUTS], [OLD_PROGRAM]
        else:
            inputs = [f"{_SAMPLE_INPUTS}{name}" for name in self.records(_SAMPLE_INPUTS)]
            programs = [f"{_MODELS}{name}" for name in self.records(_MODELS)]
            compiled = {name.partition("/")[0] for name in self.records(_COMPILED)}
            for name in sorted(compiled):
                self.tell(f"{_COMPILED}{name}", 1)
        for record in inputs:
            self.pickled(record)
        for record in programs:
            if not record.endswith(".json"):
                raise CorruptError(
                    f"{record} is not a program in JSON", str(self.directory.file.path), _DAMAGED
                )
            where = self.where(record)
            text = self.directory.read(self.top + record, MAX_CONFIG_BYTES)
            program = parse_object(text, "the program", where)
            for code, count in Counter(code_in(program)).items():
                self.tell(code, count)
            self.programs.append(described(program, record.removeprefix(_MODELS).removesuffix(".json")))

    def tell(self, name: str, count: int) -> None:
        add_uses(self.globals, {name: GlobalUse(name, count, "called")})

    def record(self) -> Record | None:
        """The record that `convert -c` wrote among the extra files."""
        if not self.has(RECORD):
            return None
        file = self.directory.file
        most = min(max(MAX_BYTES, file.stored_bytes), LONGEST_BYTES)
        return Record.from_json(self.directory.read(self.top + RECORD, most), str(file.path))

    def where(self, record: str) -> str:
        return f"{self.directory.file.path}, record {self.top + record!r}"

    def has(self, record: str) -> bool:
        return self.top + record in self.directory.entries

    def records(self, folder: str) -> list[str]:
        """The records in `folder` and below, without the folder."""
        prefix = self.top + folder
        return [name.removeprefix(prefix) for name in self.directory.entries if name.startswith(prefix)]

    def parts(self) -> Iterator[Part]:
        """The records that tensors may lie in, those of archives in this one among them."""
        yield from self._records
        for part in records_of(self.directory, self.taken):
            if not self._holds_no_tensors(part.name.removeprefix(self.top)):
                yield part

    def _holds_no_tensors(self, record: str) -> bool:
        return record.startswith(_NO_TENSORS) or record in _BOOKKEEPING

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
        if not constants:
            return weights
        return ({"state_dict": weights} if weights else {}) | {"constants": constants}

    def payloads(self, folder: str, model: str, config: str) -> Any:
        """The tensors of one table, or of the torch zip that older versions have in its place."""
        if self.has(f"{folder}{model}.pt"):
            return self.pickled(f"{folder}{model}.pt")
        if not self.has(folder + config):
            return {}
        self.taken.add(self.top + folder + config)
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
        path: str = about["path_name"]
        record = folder + path
        if not self.has(record):
            raise CorruptError(f"tensor {name!r} is missing: there is no record {record!r}", where, _DAMAGED)
        meta = about.get("tensor_meta")
        is_pickle = about.get("use_pickle")
        if type(is_pickle) is not bool:
            raise malformed
        if folder == _CONSTANTS:
            if path.startswith(_OPAQUE_OBJECT):
                return self.unpickled(record)
            if path.startswith(_CUSTOM_OBJECT):
                return self.custom_object(record)
            if not path.startswith(_TENSOR):
                raise malformed
        if is_pickle:
            return self.pickled(record)
        if not isinstance(meta, dict):
            raise malformed
        if self._dtypes.setdefault(record, meta.get("dtype")) != meta.get("dtype"):
            what = f"{record} is of two dtypes, of which torch.export.load takes the first for both"
            raise CorruptError(what, where, _DAMAGED)
        self.tensors.add(self.top + record)
        storage = self.directory.storage(self.top + record)
        if not storage.num_bytes and _has_values(meta):
            what = f"the values of {name[:80]!r}, of which {record} is empty: torch makes zeros of it"
            self.dropped[what] = None
        if storage.num_bytes and _is_meta(meta):
            what = f"{record} has bytes and is on the meta device, where torch.export.load leaves them out"
            raise CorruptError(what, where, _DAMAGED)
        kind = "parameter" if about.get("is_param") is True else "tensor"
        try:
            return _tensor(meta, storage, kind)
        except (KeyError, TypeError, ValueError):
            raise malformed from None
        except CorruptError as error:
            raise CorruptError(f"tensor {name!r}: {error.what}", where, _DAMAGED) from None

    def pickled(self, record: str) -> Any:
        """What `torch.save` wrote into `record`; an empty dict where there is no such record."""
        if not self.has(record) or self.directory.entry(self.top + record).num_bytes == 0:
            return {}
        parts = TorchParts()
        loaded = parts.read(self.directory.file, *self.window(record), self.top + record)
        if self._holds_no_tensors(record):
            loaded.dropped.clear()  # torch.export marks the inputs that it is given
        else:
            self._records += parts.records
        return self._take(loaded)

    def window(self, record: str) -> tuple[int, int]:
        """The bytes of a record that holds an archive of its own, which is read as a whole."""
        entry = self.directory.entry(self.top + record)
        if entry.method != STORED:
            what = "the record is compressed, so the pickle in it was not checked"
            raise UnreadableError(what, self.where(record), "pack the archive again without compression")
        self.taken.add(self.top + record)
        return self.directory.data_offset(self.top + record), entry.num_bytes

    def custom_object(self, record: str) -> Any:
        """An object of a class in C++: an archive as TorchScript has them, whose classes are told.

        Source: torch/csrc/jit/serialization/pickle.cpp (`pickle_load_obj`).
        """
        inner = read_directory(self.directory.file, *self.window(record))
        top = first_folder(inner)
        check_layout(inner, top)
        storages = ZipStorages(inner, f"{top}data/", False, is_script=True)
        if f"{top}data.pkl" not in inner.entries:
            raise CorruptError("the file holds no data.pkl", self.where(record), _DAMAGED)
        self._take(load_record(inner, f"{top}data.pkl", Shapes(torchscript.SHAPES, objects.build, storages)))
        self.dropped[f"{record}, an object of a custom class in C++"] = None
        return Opaque("torch.export.custom_object", state={"record": self.top + record})

    def judge_others(self) -> None:
        """Tell what the archives in records outside of all tables name: somebody may load them."""
        for name, entry in self.directory.entries.items():
            if name in self.taken or name in self.tensors or entry.method != STORED:
                continue
            file, begin = self.directory.file, self.directory.data_offset(name)
            if file.read_at(begin, min(entry.num_bytes, 4)) != ZIP_MAGIC:
                continue
            inner = read_directory(file, begin, entry.num_bytes)
            if top_folder(inner) is not None:  # what is in it stays unaccounted for: no tensor is of it
                self._take(TorchParts().read(file, begin, entry.num_bytes))

    def unpickled(self, record: str) -> Any:
        """What Python's own pickle wrote into `record`; what it names is told."""
        self._take(load_record(self.directory, self.top + record, torch_shapes()))
        self.taken.add(self.top + record)
        self.dropped[f"{record}, a pickled object of a class of its own"] = None
        return Opaque("torch.export.opaque_object", state={"record": self.top + record})

    def _take(self, loaded: Unpickled) -> Any:
        self.dropped |= dict.fromkeys(loaded.dropped)
        add_uses(self.globals, loaded.globals)
        self.notes |= dict.fromkeys(loaded.notes)
        return loaded.root


def _check_case(directory: ZipDirectory, top: str) -> None:
    """Raises: CorruptError where torch, which ignores case, finds a record in another folder."""
    for name in directory.entries:
        lower = name.lower()
        begins = next((top + folder for folder in _FOLDERS if lower.startswith((top + folder).lower())), "")
        if not name.startswith(begins):
            what = f"torch may take the record {name!r} for one in {begins!r}"
            raise CorruptError(what, str(directory.file.path), _DAMAGED)


def _tensor(meta: dict[str, Any], storage: Storage, kind: str) -> TensorEntry | Opaque:
    """The view of `storage` that a `TensorMeta` describes.

    Raises: CorruptError when it does not lie in the storage; KeyError, TypeError, ValueError when the
    table is not of the right shape.
    """
    dtype = SCALAR_TYPES[meta["dtype"]]
    shape = tuple(_integer(size) for size in meta["sizes"])
    strides = tuple(_integer(stride) for stride in meta["strides"])
    if meta["layout"] != _STRIDED or (prod(shape) and not storage.num_bytes):
        # sparse, or a tensor without bytes (FakeTensor)
        return Opaque("torch.meta", state={"dtype": dtype, "size": shape, "stride": strides})
    if storage.num_bytes % dtype.itemsize:
        raise CorruptError(f"{storage.num_bytes} bytes are no whole number of {dtype}")
    node = StorageNode("", dtype, storage.num_bytes // dtype.itemsize, storage)
    return tensor(node, dtype, _integer(meta["storage_offset"]), shape, strides, meta["requires_grad"], kind)


def _has_values(meta: dict[str, Any]) -> bool:
    """Whether a `TensorMeta` is of a tensor that has elements, on a device that keeps them."""
    sizes = meta.get("sizes")
    return not _is_meta(meta) and isinstance(sizes, list) and {"as_int": 0} not in sizes


def _is_meta(meta: dict[str, Any]) -> bool:
    """Whether a `TensorMeta` is of a tensor on the device that keeps no values."""
    device = meta.get("device")
    return isinstance(device, dict) and device.get("type") == "meta"


def _integer(value: dict[str, Any]) -> int:
    """A `SymInt` that is a plain number."""
    number = value["as_int"]
    if len(value) > 1 or type(number) is not int or not 0 <= number <= _INT64_MAX:
        raise ValueError
    return number


def _notes(archive: _Archive) -> list[str]:
    """What the archive holds beside tensors."""
    if archive.is_old:
        return ["holds an exported program (torch.export), which is left out"]
    notes = [f"holds the exported program {name}, which is left out" for name in archive.model_names()]
    compiled = archive.records(_COMPILED)
    if compiled:
        files = counted(len(compiled), "file", "files")
        notes.append(f"holds {files} of compiled code (AOTInductor), which torch loads and runs")
    if archive.records("data/executorch/"):
        notes.append("holds an ExecuTorch program, which is left out")
    extra = [name for name in archive.records("extra/") if f"extra/{name}" != RECORD]
    if extra:
        files = counted(len(extra), "extra file, which is", "extra files, which are")
        notes.append(f"holds {files} left out (such as {extra[0]})")
    return notes
