"""Folders with the tensors of one model in several files, and the index that says which is where.

Source: huggingface_hub `serialization/_base.py` and `_torch.py` (the index's fields).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ptsave.core import record as records
from ptsave.core.accounts import Part
from ptsave.core.caps import room
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind, counted
from ptsave.core.nodes import TensorEntry
from ptsave.core.record import Record
from ptsave.core.strict_json import parse_object
from ptsave.errors import CorruptError, LimitError, MissingFileError, OutOfReachError, UnreadableError
from ptsave.formats import named
from ptsave.formats.base import HEAD_BYTES, FileFormat, FolderFormat
from ptsave.formats.one_reading import check_one_reading
from ptsave.formats.safetensors import read as safetensors_read
from ptsave.formats.safetensors.main_file import INDEX, file_of_config, indexes, main_file
from ptsave.formats.torch import legacy
from ptsave.formats.torch import read as torch_read
from ptsave.storage.fetch import in_parallel
from ptsave.storage.files import InputFile, InputFolder
from ptsave.storage.opening import open_folder
from ptsave.storage.windows import FileStorage

SAFETENSORS = "safetensors-sharded"
TORCH = "pt-sharded"
MAX_INDEX_BYTES = 512 * 1024**2
"""Cap on the index's JSON text."""
MAX_SHARDS = 20_000
"""Cap on the files of one checkpoint."""

_SHARD = re.compile(
    r"(?P<stem>(?!shard-\d+-model).+)-(?P<number>\d{4,6})-of-(?P<count>\d{4,6})\.(?P<suffix>safetensors|bin|pt|pth)"
)
_SHARD_FORMATS = (safetensors_read.FORMAT, torch_read.FORMAT, legacy.FORMAT)
_ABOUT_BYTES = 104
"""Of a shard's header: its metadata; of each tensor, what stands there beside its name."""
_DAMAGED = "the folder is incomplete or mixes two checkpoints; copy or download it again"
_WEIGHT_MAP = b'"weight_map"'


def read(folder: InputFolder) -> Checkpoint:
    """Open the folder's one file, or its shards as one flat dict of tensors in the index's order.

    The index and the shards must agree: every tensor lies in the shard that the index names, and in no
    other. Tensors and shards that the index does not name are left out, and noted.

    Raises: CorruptError, MissingFileError, LimitError, UnreadableError.
    """
    name = main_file(folder)
    if name is None:
        raise _half_written(folder)
    index = INDEX.fullmatch(name)
    if index is None:
        return _open_shard(folder.open(name))
    kind = (index["suffix"], index["variant"] is None)
    same = [i[0] for i in indexes(folder) if (i["suffix"], i["variant"] is None) == kind]
    if len(same) > 1 and name != file_of_config(folder):
        hint = f"name one: {', '.join(same[:5])}"
        raise UnreadableError("the folder holds several checkpoints", str(folder.path), hint)
    return read_shards(folder.open(name), folder)


def read_index(file: InputFile) -> Checkpoint:
    """Open the sharded checkpoint whose index is `file`, by the names in it where nothing can be listed."""
    folder = open_folder(file.path.parent, by_name=True)
    try:
        checkpoint = read_shards(file, folder)
    except BaseException:
        folder.close()
        raise
    checkpoint.files.callback(folder.close)
    checkpoint.held = (folder, file)
    return checkpoint


def sniff_index(file: InputFile, head: bytes) -> bool:
    """A JSON object that somewhere has a `weight_map`."""
    if head.lstrip(b" \t\r\n")[:1] != b"{" or file.size_bytes > MAX_INDEX_BYTES:
        return False
    return _WEIGHT_MAP in head or _WEIGHT_MAP in file.read_at(0, file.size_bytes)


def _is_safetensors(folder: InputFolder) -> bool:
    name = main_file(folder)
    if name is not None:
        return ".safetensors" in name
    return any(match["suffix"] == "safetensors" for match in _shards(folder))


def _is_torch(folder: InputFolder) -> bool:
    return not _is_safetensors(folder) and (main_file(folder) is not None or any(_shards(folder)))


SAFETENSORS_FORMAT = FolderFormat(SAFETENSORS, _is_safetensors, read)
TORCH_FORMAT = FolderFormat(TORCH, _is_torch, read)
INDEX_FORMAT = FileFormat("sharded-index", sniff_index, read_index)


def _shards(folder: InputFolder) -> Iterator[re.Match[str]]:
    return (match for name in folder.names if (match := _SHARD.fullmatch(name)))


def _half_written(folder: InputFolder) -> UnreadableError:
    """The error for a folder that has shards and no index."""
    first = next(_shards(folder))
    there = sum(
        match["stem"] == first["stem"] and match["count"] == first["count"] for match in _shards(folder)
    )
    return UnreadableError(
        f"the folder is half written: {there} of {int(first['count'])} shards are present, and the index is "
        "missing",
        str(folder.path),
        f"save or download it again; to read one shard alone, name it: {first[0]}",
    )


def read_shards(file: InputFile, folder: InputFolder) -> Checkpoint:
    """The shards that the index `file` names, in its folder; takes ownership of `file`."""
    where = str(file.path)
    with file:
        weight_map, about = _parse_index(file)
    record = _record(about.pop(records.KEY, None), where)
    checkpoint = Checkpoint(SAFETENSORS, folder.path, {}, record=record)
    try:
        shards = _open_shards(folder, _header_bytes(weight_map), checkpoint)
        tensors = _reconcile(weight_map, shards, where)
        checkpoint.metadata = _metadata(about, shards)
        ties: dict[str, str] = {}
        if record is None:
            ties = _left_out_ties(weight_map, checkpoint.metadata, shards, tensors)
            checkpoint.root = safetensors_read.with_left_out(tensors, ties)
            checkpoint.metadata = {k: text for k, text in checkpoint.metadata.items() if k not in ties}
        else:
            checkpoint.root = safetensors_read.with_aliases(tensors, record, where)
    except BaseException:
        checkpoint.close()
        raise
    if any(shard.format != safetensors_read.NAME for shard in shards.values()):
        checkpoint.format = TORCH
    checkpoint.globals = {name: use for shard in shards.values() for name, use in shard.globals.items()}
    notes = _notes({*weight_map, *ties}, about, shards, folder, tensors)
    checkpoint.notes = [*safetensors_read.tie_notes(ties), *notes]
    checkpoint.parts += [accounting for shard in shards.values() for accounting in shard.parts]
    checkpoint.parts.append(lambda: _parts_beside(shards, folder))
    checkpoint.dropped += [text for shard in shards.values() for text in shard.dropped]
    checkpoint.checks = [check for shard in shards.values() for check in shard.checks]
    checkpoint.checks.append(lambda: _findings(notes, where))
    return checkpoint


def _parse_index(file: InputFile) -> tuple[dict[str, str], dict[str, Any]]:
    """The index's `weight_map` (tensor name to file name) and its `metadata`."""
    where = str(file.path)
    if file.size_bytes > MAX_INDEX_BYTES:
        raise LimitError("index_bytes", MAX_INDEX_BYTES, file.size_bytes, where)
    index = parse_object(file.read_at(0, file.size_bytes), "the index", where, None, room(file.size_bytes))
    weight_map, about = index.get("weight_map"), index.get("metadata") or {}
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CorruptError("the index has no weight_map from tensors to files", where, _DAMAGED)
    if not weight_map:
        raise CorruptError("the index names no tensors", where, _DAMAGED)
    if not isinstance(about, dict):
        raise CorruptError("the index's metadata is not a table", where, _DAMAGED)
    return weight_map, about


def _record(value: Any, where: str) -> Record | None:
    """ptsave's record: an object in the index, or its text."""
    if value is None:
        return None
    return Record.from_json(value if isinstance(value, str) else json.dumps(value), where)


def _header_bytes(weight_map: dict[str, str]) -> dict[str, int]:
    """The shards, and about how long their headers are."""
    sizes = dict.fromkeys(weight_map.values(), _ABOUT_BYTES)
    for name, shard in weight_map.items():
        sizes[shard] += len(name) + _ABOUT_BYTES
    return sizes


def _open_shards(
    folder: InputFolder, header_bytes: dict[str, int], owner: Checkpoint
) -> dict[str, Checkpoint]:
    """The shards by file name, to be closed with `owner`."""
    names = list(header_bytes)
    if len(names) > MAX_SHARDS:
        raise LimitError("shards", MAX_SHARDS, len(names), str(folder.path))
    shards: dict[str, Checkpoint] = {}
    missing = []
    for name, opened in in_parallel(
        lambda name: _opened(folder, name, header_bytes[name]), names, folder.num_at_once
    ):
        if opened is None:
            missing.append(name)
            continue
        shards[name] = opened
        owner.files.callback(opened.close)
    if missing:
        listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise MissingFileError(
            f"{len(missing)} of {len(names)} shards are missing: {listed}",
            str(folder.path),
            "the save or the download did not finish; do it again",
        )
    return shards


def _opened(folder: InputFolder, name: str, first_bytes: int) -> Checkpoint | None:
    """The shard `name`; None where the folder has no such file."""
    try:
        file = folder.open(name, first_bytes)
    except OutOfReachError:  # it may be there
        raise
    except MissingFileError:
        if name in folder.names:
            raise
        return None
    return _open_shard(file)


def _open_shard(file: InputFile) -> Checkpoint:
    """Any one file of tensors; takes ownership of `file`."""
    try:
        head = file.read_at(0, min(HEAD_BYTES, file.size_bytes))
        for known in _SHARD_FORMATS:
            if known.sniff(file, head):
                break
        else:
            raise named.refusal(file, head)
        if file.path.suffix == ".safetensors" and known is not safetensors_read.FORMAT:
            raise CorruptError(
                "the file is named .safetensors but is a pickle",
                str(file.path),
                "no program writes such a folder",
            )
        check_one_reading(file, head, known.name)
        return known.read(file)
    except BaseException:
        file.close()
        raise


def _reconcile(
    weight_map: dict[str, str], shards: dict[str, Checkpoint], where: str
) -> dict[str, TensorEntry]:
    """Every tensor that the index names, from the shard that it names."""
    holder: dict[str, str] = {}
    for file_name, shard in shards.items():
        for name in shard.tensors:
            if name in holder:
                raise CorruptError(
                    f"tensor {name!r} is in two shards: {holder[name]} and {file_name}", where, _DAMAGED
                )
            holder[name] = file_name
    for name, file_name in weight_map.items():
        if name not in holder:
            raise CorruptError(f"tensor {name!r} is not in its shard {file_name}", where, _DAMAGED)
        if holder[name] != file_name:
            raise CorruptError(
                f"tensor {name!r} is in {holder[name]}, and the index says {file_name}", where, _DAMAGED
            )
    return {name: shards[file_name].tensors[name] for name, file_name in weight_map.items()}


def _left_out_ties(
    weight_map: dict[str, str],
    metadata: dict[str, str],
    shards: dict[str, Checkpoint],
    tensors: dict[str, TensorEntry],
) -> dict[str, str]:
    """Names that were left out → the stored name, as the index says it or a shard's own metadata has."""
    ties = safetensors_read.left_out_ties(metadata, tensors)
    for shard in shards.values():
        extra = {} if shard.format != safetensors_read.NAME else shard.tensors.keys() - weight_map.keys()
        if extra:
            stored = {entry.view: name for name, entry in shard.tensors.items() if name in weight_map}
            ties |= {n: stored[v] for n in sorted(extra) if (v := shard.tensors[n].view) in stored}
    return ties


def _metadata(about: dict[str, Any], shards: dict[str, Checkpoint]) -> dict[str, str]:
    """The index's metadata and the shards', as text."""
    found: dict[str, str] = {}
    for shard in shards.values():
        for key, text in shard.metadata.items():
            found.setdefault(key, text)
    for key, value in about.items():
        if key != "total_size":
            found[key] = value if isinstance(value, str) else json.dumps(value)
    return found


def _notes(
    known: set[str],
    about: dict[str, Any],
    shards: dict[str, Checkpoint],
    folder: InputFolder,
    tensors: dict[str, TensorEntry],
) -> list[str]:
    """What does not agree, and yet leaves no doubt about what the tensors are."""
    notes = []
    for file_name, shard in shards.items():
        extra = [name for name in shard.tensors if name not in known]
        if extra:
            left_out = counted(len(extra), "tensor that is", "tensors that are")
            notes.append(f"{file_name} has {left_out} not in the index, and left out (first: {extra[0]})")
        if shard.data:
            values = counted(
                len(shard.data), "value that is not a tensor is", "values that are not tensors are"
            )
            notes.append(f"{file_name}: {values} left out")
    notes += [
        f"the folder also holds {match[0]}, which the index does not name"
        for match in _beside(shards, folder)
    ]
    total = about.get("total_size")
    num_bytes = sum({entry.view: entry.num_bytes for entry in tensors.values()}.values())  # ties count once
    if type(total) in (int, float) and total != num_bytes:
        notes.append(f"the index says that the tensors have {total} bytes, they have {num_bytes}")
    return notes


def _parts_beside(shards: dict[str, Checkpoint], folder: InputFolder) -> Iterator[Part]:
    """The shards' tensors, of which the index may not name all, and the shards that it does not name."""
    for file_name, shard in shards.items():
        for name, entry in shard.tensors.items():
            yield Part(f"{name} of {file_name}", entry.storage)
    for match in _beside(shards, folder):
        with folder.open(match[0]) as file:
            yield Part(match[0], FileStorage(file, 0, file.size_bytes))


def _beside(shards: dict[str, Checkpoint], folder: InputFolder) -> Iterator[re.Match[str]]:
    """Shards of the same checkpoint by their names, which the index does not name."""
    stems = {(match["stem"], match["suffix"]) for name in shards if (match := _SHARD.fullmatch(name))}
    for match in _shards(folder):
        if match[0] not in shards and (match["stem"], match["suffix"]) in stems:
            yield match


def _findings(notes: list[str], where: str) -> Iterator[Finding]:
    for note in notes:
        yield Finding("bytes", "warn", where, Kind.INDEX_DIFFERS, facts={"note": note})
    if not notes:
        yield Finding("bytes", "ok", where, Kind.INDEX_AGREES)
