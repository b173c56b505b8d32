"""What torch.distributed.checkpoint does for many ranks, in one process and without a process group.

The plans, the metadata and the functions that make them are torch's own. What ranks send each other is
pickled and unpickled, as torch's collectives of objects do it; the network is left out.
"""

from __future__ import annotations

import pickle
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import WriteResult

from benchmarks.scale_files import COLUMNS, Item, Shape, file_name

MIB = 2**20
Figures = dict[str, float]


def local_plan(shape: Shape, rank: int) -> SavePlan:
    """What `create_local_plan` gives on a rank that holds `Shard(0)` DTensors."""
    properties = TensorProperties(torch.float32)
    whole = torch.Size((shape.num_ranks * shape.rows, COLUMNS))
    offsets, sizes = torch.Size((rank * shape.rows, 0)), torch.Size((shape.rows, COLUMNS))
    items = [
        WriteItem(
            MetadataIndex(name, offsets),
            WriteItemType.SHARD,
            tensor_data=TensorWriteData(ChunkStorageMetadata(offsets, sizes), replace(properties), whole),
        )
        for name in shape.names
    ]
    return SavePlan(items, planner_data={name: (name,) for name in shape.names})


def save(folder: Path, shape: Shape) -> Figures:
    """Rank 0's part in a save, which ends with `.metadata` in `folder`: CPU seconds, and MiB sent."""
    gathered = [pickle.dumps(local_plan(shape, rank)) for rank in range(shape.num_ranks)]
    begin = time.process_time()
    plans = [pickle.loads(plan) for plan in gathered]
    gather_end = time.process_time()
    planner, writer = DefaultSavePlanner(), FileSystemWriter(folder, sync_files=False)
    final, metadata = planner.create_global_plan(plans)
    final = writer.prepare_global_plan(final)
    plan_end = time.process_time()
    scattered = [len(pickle.dumps(plan)) for plan in final]
    scatter_end = time.process_time()
    del plans
    answers = [pickle.dumps(_results(plan, rank, shape)) for rank, plan in enumerate(final)]
    del final, planner
    finish_begin = time.process_time()
    writer.finish(metadata, [pickle.loads(answer) for answer in answers])
    end = time.process_time()
    return {
        "gathered_mib": _mib(sum(map(len, gathered))),
        "scattered_mib": _mib(sum(scattered)),
        "results_mib": _mib(sum(map(len, answers))),
        "metadata_mib": _mib((folder / ".metadata").stat().st_size),
        "gather_s": _seconds(gather_end - begin),
        "plan_s": _seconds(plan_end - gather_end),
        "scatter_s": _seconds(scatter_end - plan_end),
        "finish_s": _seconds(end - finish_begin),
    }


def _results(plan: SavePlan, rank: int, shape: Shape) -> list[WriteResult]:
    """What a rank answers once it has written its file."""
    item = Item(shape)
    return [
        WriteResult(
            planned.index,
            item.num_bytes,
            _StorageInfo(file_name(rank), number * item.step, item.num_bytes),
        )
        for number, planned in enumerate(plan.items)
    ]


def read(folder: Path, num_ranks: int) -> Figures:
    """What each rank of `num_ranks` does before it reads a tensor: torch's own unpickling, and its plan."""
    begin = time.process_time()
    metadata = FileSystemReader(folder).read_metadata()
    read_end = time.process_time()
    for name, about in metadata.state_dict_metadata.items():
        assert isinstance(about, TensorStorageMetadata)
        rows = -(-about.size[0] // num_ranks)
        count = max(0, min(rows, about.size[0] - rows))
        chunk = ChunkStorageMetadata(torch.Size((rows, 0)), torch.Size((count, about.size[1])))
        create_read_items_for_chunk_list(name, about, [chunk])
    end = time.process_time()
    return {"read_s": _seconds(read_end - begin), "plan_s": _seconds(end - read_end)}


def plan_wide(num_ranks: int) -> Figures:
    """The global plan of one tensor that is split along its shorter dimension."""
    whole = torch.Size((num_ranks, 4 * num_ranks))
    sizes = torch.Size((1, whole[1]))
    plans = [
        SavePlan(
            [
                WriteItem(
                    MetadataIndex("weight", offsets),
                    WriteItemType.SHARD,
                    tensor_data=TensorWriteData(
                        ChunkStorageMetadata(offsets, sizes), TensorProperties(torch.float32), whole
                    ),
                )
            ],
            planner_data={},
        )
        for offsets in (torch.Size((rank, 0)) for rank in range(num_ranks))
    ]
    begin = time.process_time()
    DefaultSavePlanner().create_global_plan(plans)
    return {"plan_s": _seconds(time.process_time() - begin)}


def _mib(num_bytes: int) -> float:
    return round(num_bytes / MIB, 2)


def _seconds(seconds: float) -> float:
    return round(seconds, 4)
