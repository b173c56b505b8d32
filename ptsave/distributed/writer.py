"""A sharded state dict → a DCP folder, by torch.distributed.checkpoint; old or new, never half.

Every rank writes one file, under a name that nothing uses yet: in a temporary folder, beside an older
checkpoint, or to a store. The table of contents is made apart and read back through ptsave's own reader, all
ranks sharing the work: the bytes against their CRC-32, and every tensor for its digest, of which no rank
holds the whole. Only then rank 0 puts it in its place.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult

from ptsave.core.address import Location
from ptsave.core.record import Record
from ptsave.distributed.group import Group
from ptsave.distributed.shares import divided, read_back
from ptsave.errors import PtsaveError, RankError, WriteError
from ptsave.formats.base import WriteOptions
from ptsave.formats.dcp.metadata import TensorAbout
from ptsave.formats.dcp.read import Items, read_items
from ptsave.formats.dcp.write import commit, metadata_digest
from ptsave.formats.folder_files import DCP_METADATA, new_record_name
from ptsave.formats.stored import record_text
from ptsave.own_process import without_warnings
from ptsave.storage.opening import data_stream, open_folder, replacing_folder
from ptsave.storage.output import OutputFolder

ITEM_BYTES = 4096
"""What an item takes in its file beside its tensor, about: it is a torch zip of its own."""


@dataclass(frozen=True)
class SaveTarget:
    """Where the ranks write."""

    folder: Location
    tag: str
    """What tells the data files from those of an earlier save in the same folder."""
    new_record: str
    compares_data: bool
    """Whether what is written there is compared with what arrived, while it is written."""


def write_sharded(
    group: Group,
    state: Mapping[str, Any],
    aliases: Mapping[str, str],
    destination: Location,
    record: Record,
    options: WriteOptions,
    num_bytes: int,
) -> str:
    """Write `state` (the same names on every rank; tensors whole or DTensors), about `num_bytes` in all.

    `aliases`: further names of tensors in it, which point at the same bytes. Returns by what was checked what
    was written; empty where it was not.

    Raises: ExistsError, WriteError; RankError naming a rank that could not write.
    """
    with ExitStack() as on_first:
        folder: OutputFolder | None = None
        if group.is_first:
            folder = on_first.enter_context(
                replacing_folder(destination, num_bytes, overwrite=options.overwrite, sync=options.sync)
            )
        place = group.from_first(lambda: place_in(folder, group.size))
        writer = RankWriter(place, aliases, options.sync)
        _save(dict(state), writer)
        metadata = group.from_first(lambda: writer.metadata)
        is_read_back = options.record or (options.check and not place.compares_data)
        text = _record_text(group, place, aliases, record, options, metadata) if is_read_back else None
        if folder is not None:
            commit(folder, writer.data_files, metadata, text, place.new_record)
        group.meet()
    group.meet()
    if is_read_back:
        return "reading it back"
    return "the store's checksums, or reading it back" if place.compares_data else ""


def place_in(folder: OutputFolder | None, num_ranks: int) -> SaveTarget:
    """The names that the ranks' files take in `folder`, which is open on rank 0."""
    assert folder is not None
    generation = folder.generation(_is_of)
    tag = f"{generation}_" if generation > 1 else ""
    folder.promise([f"__{rank}_{tag}0.distcp" for rank in range(num_ranks)])
    return SaveTarget(folder.place, tag, new_record_name(generation), folder.compares_data)


def _is_of(name: str, generation: int) -> bool:
    """Whether a save of that generation may have made a file of that name."""
    tag = f"{generation}_" if generation > 1 else ""
    return re.match(rf"__\d+_{tag}", name) is not None or name == new_record_name(generation)


class RankWriter(FileSystemWriter):
    """torch's writer, with names of its own for the data, and the metadata kept back."""

    def __init__(self, place: SaveTarget, aliases: Mapping[str, str], sync: bool) -> None:
        super().__init__("", sync_files=False)  # what takes part of that is done by `data_stream`
        self.fs = self._data = DataFiles(sync)
        self.path: Any = place.folder
        self.place = place
        self._aliases = aliases
        self.metadata = b""
        """On the rank that makes the plan, once all have written."""
        self.data_files: list[str] = []
        """And there too, the names of what they have written."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        self._data.about_bytes = sum(map(_about_bytes, plan.items))
        return super().write_data(plan, planner)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan  # the folder is there, and an older checkpoint in it stays as it is

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        plans = super().prepare_global_plan(plans)
        tag = self.place.tag
        return [_renamed(plan, plan.storage_data.prefix + tag) for plan in plans]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        for name, kept in self._aliases.items():
            metadata.state_dict_metadata[name] = metadata.state_dict_metadata[kept]
            if isinstance(metadata.planner_data, dict):
                metadata.planner_data[name] = (name,)
        names: dict[str, list[str]] = {}
        for name, kept in self._aliases.items():
            names.setdefault(kept, []).append(name)
        more = [
            replace(result, index=replace(result.index, fqn=name))
            for written in results
            for result in written
            for name in names.get(result.index.fqn, ())
        ]
        with TemporaryDirectory() as folder:
            _MetadataWriter(folder, sync_files=False).finish(metadata, [*results, more])
            self.metadata = (Path(folder) / DCP_METADATA).read_bytes()
        places = {result.storage_data.relative_path: None for written in results for result in written}
        self.data_files = [*places]


class _MetadataWriter(FileSystemWriter):
    """Leaves out of the metadata where it was written and a random id: they differ each time, and a path of
    Windows, which it pickles as one, cannot be unpickled elsewhere."""

    def storage_meta(self) -> None:
        """Nothing."""


class DataFiles(FileSystem):
    """torch's file system, whose files are data of a folder that rank 0 has open."""

    def __init__(self, sync: bool) -> None:
        self._sync = sync
        self.about_bytes = 0
        """Of the next file."""

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[io.IOBase]:
        with data_stream(path.parent, path.name, self.about_bytes, sync=self._sync) as stream:
            yield stream

    def concat_path(self, path: Any, suffix: str) -> Any:
        return path / suffix


def _about_bytes(item: WriteItem) -> int:
    """About how many bytes an item takes in its file."""
    tensor = item.tensor_data
    if tensor is None:
        return ITEM_BYTES
    return ITEM_BYTES + prod(tensor.chunk.sizes) * tensor.properties.dtype.itemsize


def _renamed(plan: SavePlan, prefix: str) -> SavePlan:
    return replace(plan, storage_data=replace(plan.storage_data, prefix=prefix))


def _save(state: dict[str, Any], writer: RankWriter) -> None:
    """`torch.distributed.checkpoint.save`, whose errors are none of Python's usual ones.

    Raises: WriteError, RankError.
    """
    try:
        with without_warnings():
            save(state, storage_writer=writer)
    except CheckpointException as error:
        raise explained(error, str(writer.path)) from error


def explained(error: CheckpointException, where: str) -> PtsaveError:
    """What torch's error means: the first rank that failed, and why."""
    rank, (cause, _) = next(iter(error.failures.items()))
    if isinstance(cause, OSError):
        hint = "check the disk and the permissions of every rank"
        what = f"rank {rank} cannot write: {cause.strerror or cause}"
        return WriteError(what, str(cause.filename or where), hint, rank=rank)
    if isinstance(cause, WriteError):
        cause.where = f"rank {rank}, {cause.where}"
        cause.details["rank"] = rank
    if isinstance(cause, PtsaveError):
        return cause
    return RankError(f"rank {rank} failed while it wrote: {type(cause).__name__}: {cause}")


def _record_text(
    group: Group,
    place: SaveTarget,
    aliases: Mapping[str, str],
    record: Record,
    options: WriteOptions,
    metadata: bytes,
) -> bytes | None:
    """The record's text on rank 0, once what was written has been read back.

    Raises: CorruptError when something reads differently than it was written.
    """

    def choose(items: Items) -> list[str]:
        sizes = {name: _num_bytes(about) for name, about in items.items() if name not in aliases}
        mine = divided(sizes, group.rank, group.size)
        return [name for name in items if aliases.get(name, name) in mine]

    with read_items(open_folder(place.folder), metadata, choose) as share:
        digests = read_back(group, str(place.folder), share.tensors, options.digest)
    if not options.record or not group.is_first:
        return None
    share.record = record
    return record_text(share, digests, dict(aliases), options, belongs_to=metadata_digest(metadata))


def _num_bytes(about: TensorAbout | None) -> int:
    return prod(about.shape) * about.dtype.itemsize if about is not None else 0


def tied_names(state: Mapping[str, Any]) -> dict[str, str]:
    """Further name → first name, of the tensors in a state dict (with `keep_vars`) that are one object."""
    first: dict[int, str] = {}
    tensors = ((name, value) for name, value in state.items() if isinstance(value, torch.Tensor))
    pairs = [(name, first.setdefault(id(value), name)) for name, value in tensors]
    return {name: kept for name, kept in pairs if name != kept}
