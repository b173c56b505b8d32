"""Which files of a folder are a checkpoint: what a new one in its place makes superfluous."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from ptsave.core.record import FILE_NAME

INDEX = "model.safetensors.index.json"
DCP_METADATA = ".metadata"

_RECORD = re.compile(r"ptsave\.\d+\.json")
_MAIN = (DCP_METADATA, INDEX, "model.safetensors")
"""What a reader begins with; the last of them that is there wins, so they are removed in this order."""
_DCP_DATA = re.compile(r"__\d+(_\d+)+\.distcp")
"""torch's names for the data, and those of ptsave's later generations."""
_SHARD = re.compile(r"model(-ptsave\d+)?-\d{5,6}-of-\d{5,6}\.safetensors")


def shard_names(count: int, generation: int) -> list[str]:
    """The names of a checkpoint's shards; a later generation's where the usual ones are taken.

    Source: huggingface_hub `constants.SAFETENSORS_WEIGHTS_FILE_PATTERN`; readers go by the index alone.
    """
    tag = "" if generation == 1 else f"-ptsave{generation}"
    return [f"model{tag}-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def new_record_name(generation: int) -> str:
    """Where a folder's record waits until the main file that it belongs to is in place."""
    return f"ptsave.{generation}.json"


def is_new_record(name: str) -> bool:
    """Whether `name` is one of `new_record_name`'s; a killed writer may have left it there for good."""
    return _RECORD.fullmatch(name) is not None


def fingerprint(folder: Path) -> list[tuple[str, int, int, int]]:
    """What changes when the folder is saved over: inode, time and size of the files that name the others."""
    found = []
    for name in (*_MAIN, FILE_NAME):
        with contextlib.suppress(OSError):
            status = os.stat(folder / name)
            found.append((name, status.st_ino, status.st_mtime_ns, status.st_size))
    return found


def superfluous(names: Collection[str], kept: Iterable[str]) -> list[str]:
    """The files of older checkpoints among `names`, but for `kept`, in the order of their removal.

    They go by their names alone, which are those that ptsave and torch give to such files. What an older
    index says decides nothing: it may name any file.
    """
    there = set(names) - set(kept)
    data = {name for name in there if _DCP_DATA.fullmatch(name) or _SHARD.fullmatch(name)}
    if DCP_METADATA in names:
        data |= {name for name in there if name == FILE_NAME or is_new_record(name)}
    mains = [name for name in _MAIN if name in there]
    return [*mains, *sorted(data - set(mains), key=lambda name: (is_new_record(name), name))]
