"""A training sharded over ranks → one DCP folder of its run, by torch's `async_save`; complete or not there.

Every rank copies its part to host memory, pinned where it comes from CUDA, and goes on; a thread of each
writes its file into a temporary folder. When all have written, rank 0 puts the metadata there and gives the
folder its name, and only then any rank hears that the save has succeeded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from ptsave.core.address import Location
from ptsave.core.record import Record
from ptsave.core.tree import dotted
from ptsave.distributed.group import Group
from ptsave.distributed.writer import RankWriter, SaveTarget, explained, place_in
from ptsave.errors import CorruptError, LossyError, WriteError
from ptsave.formats.dcp.write import commit, metadata_digest
from ptsave.formats.zip.checks import check_crcs
from ptsave.formats.zip.reader import read_directory
from ptsave.models.environment import environment
from ptsave.models.weights.live import refused_kind
from ptsave.storage.opening import open_folder
from ptsave.storage.output import OutputFolder
from ptsave.training.apart.divide import Division
from ptsave.training.items import Path
from ptsave.training.runs.files import RunFiles
from ptsave.training.runs.snapshot import HostMemory


class ShardedWriter:
    """Writes what many ranks hold, one state at a time; its memory is used again by the next one."""

    def __init__(self) -> None:
        self._memory = HostMemory()

    def begin(self, files: RunFiles, division: Division, step: int, group: Group) -> Callable[[], None]:
        """Copy what this rank writes of a state to host memory; returns what waits until all have written.

        Every rank calls it, with a `group` that no one else uses meanwhile.

        Raises: LossyError for what cannot be kept; WriteError, RankError, alike on all ranks.
        """
        opened = ExitStack()
        folder: OutputFolder | None = None

        def open_() -> SaveTarget:
            nonlocal folder
            folder = opened.enter_context(files.open_folder(step, division.num_bytes))
            return place_in(folder, group.size)

        try:
            paths, state = group.together(lambda: _checked(division))
            place = group.from_first(open_)
            state = group.together(lambda: _copied(state, self._memory))
            writer = _RunWriter(place, paths, folder, opened)
            future = _begin(state, writer, group.handle)
        except BaseException as error:
            opened.__exit__(type(error), error, error.__traceback__)  # without one it would be taken as done
            raise

        def finish() -> None:
            with opened:  # of a save that failed, nothing is left
                _wait(future, str(place.folder), group)
            if folder is not None:
                files.note_written(folder.destination, step, division.tree)

        return finish

    def release(self) -> None:
        """Give the memory back."""
        self._memory.release()


class _RunWriter(RankWriter):
    """torch's writer, which gives the folder its name when all have written."""

    def __init__(
        self,
        place: SaveTarget,
        paths: Mapping[str, Path],
        folder: OutputFolder | None,
        opened: ExitStack,
    ) -> None:
        super().__init__(place, {}, sync=True)
        self._paths = dict(paths)
        self._folder = folder
        self._opened = opened

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        written = super().write_data(plan, planner)
        if not self.place.compares_data:
            _check_back(self.place.folder, [result.storage_data for result in written.wait()])
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        metadata.planner_data = self._paths
        super().finish(metadata, results)
        folder = self._folder
        assert folder is not None
        record = Record(environment=environment(), belongs_to=metadata_digest(self.metadata))
        commit(folder, self.data_files, self.metadata, record.to_json().encode(), self.place.new_record)
        self._opened.close()


def _check_back(folder: Location, places: Sequence[Any]) -> None:
    """Read what this rank has written, and check it against its CRC-32s. `places`: torch's `_StorageInfo`s.

    Raises: WriteError.
    """
    with ExitStack() as opened:
        made = opened.enter_context(open_folder(folder))
        names = {place.relative_path for place in places}
        files = {name: opened.enter_context(made.open(name)) for name in names}
        for place in places:
            file = files[place.relative_path]
            try:
                found = list(check_crcs(read_directory(file, place.offset, place.length)))
                is_intact = not any(finding.level == "fail" for finding in found)
            except CorruptError:
                is_intact = False
            if not is_intact:
                hint = "check the disk; nothing was replaced"
                raise WriteError("the disk does not hold what was written", str(file.path), hint)


def _copied(state: Mapping[str, Any], memory: HostMemory) -> dict[str, Any]:
    """`state` with this rank's parts of its tensors in `memory`.

    Raises: RefusedError when there is not enough memory.
    """
    own = {name: _local(value) for name, value in state.items() if isinstance(value, torch.Tensor)}
    copies = memory.copies(own)
    copied: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, DTensor):
            copied[name] = value.detach()  # another one, and the mesh may be CUDA's: as torch itself does
            copied[name]._local_tensor = copies[name]
        else:
            copied[name] = copies[name] if name in copies else copy.deepcopy(value)
    return copied


def _checked(division: Division) -> tuple[dict[str, Path], dict[str, Any]]:
    """The path of every item of the folder, and the value of each that this rank writes, by its name there.

    Raises: LossyError for a tensor that cannot be kept as plain bytes, and for two items of one name.
    """
    paths = {dotted(path): path for path in division.paths}
    if len(paths) < len(division.paths):
        path = next(path for path in division.paths if paths[dotted(path)] != path)
        raise LossyError(f"two values are called {dotted(path)!r}", "", "give one of them another name")
    for path, value in division.mine.items():
        if isinstance(value, torch.Tensor) and (kind := refused_kind(_local(value))) is not None:
            what = f"{dotted(path)!r} is {kind}, which cannot be kept as plain bytes"
            raise LossyError(what, "", "convert it to a dense tensor first")
    return paths, {dotted(path): value for path, value in division.mine.items()}


class _Copied(BlockingAsyncStager):
    """What torch asks for a copy, where there is one already."""

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return state_dict


def _local(tensor: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _begin(state: dict[str, Any], writer: RankWriter, group: dist.ProcessGroup) -> Future[Any]:
    # the state is flat; both would make text of the keys of what is kept as one value
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    begun = async_save(
        state, storage_writer=writer, planner=planner, process_group=group, async_stager=_Copied()
    )
    assert isinstance(begun, Future)
    return begun


def _wait(future: Future[Any], where: str, group: Group) -> None:
    """Return when all ranks have written.

    Raises: WriteError naming the rank that cannot; RankError.
    """
    try:
        future.result()
    except CheckpointException as error:
        raise explained(error, where) from error
    except (RuntimeError, dist.DistError) as error:
        raise group.lost(error) from error
