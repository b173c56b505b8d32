"""Reading a checkpoint of a run with every byte checked against its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.record import Digests
from ptsave.core.values.digest import HEX_DIGITS
from ptsave.errors import CorruptError, OutOfReachError, UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.models.weights.tensors import read_tensors
from ptsave.training.foreign import with_tensors


def read_intact(path: Location) -> Any:
    """The tree of the checkpoint at `path` with its tensors on the CPU; nothing in it runs.

    Tied tensors are one tensor. What is not plain data stays an inert node.

    Raises: UnreadableError when any part of the checkpoint is damaged or missing; OutOfReachError, which
    says neither.
    """
    try:
        with open_checkpoint(path) as checkpoint:
            return with_tensors(checkpoint.root, dict(_checked_tensors(checkpoint)))
    except OSError as error:
        what = f"the checkpoint cannot be read: {error.strerror or error}"
        raise UnreadableError(what, str(path), "check the disk and its permissions") from error


def is_intact(path: Location) -> bool:
    """Whether every byte of the checkpoint at `path` matches its checksum. Raises: OutOfReachError."""
    try:
        with open_checkpoint(path) as checkpoint:
            for _ in _checked_tensors(checkpoint):
                pass
    except OutOfReachError:
        raise
    except (UnreadableError, OSError):
        return False
    return True


def _checked_tensors(checkpoint: Checkpoint) -> Iterator[tuple[Any, torch.Tensor]]:
    """View → tensor, each checked by its storage's CRC-32 or, where it is only part of one, its digest.

    Raises: CorruptError, which names the damaged part.
    """
    record = checkpoint.record
    known = record.digests if record is not None and record.digests is not None else Digests("xxh3_128")
    digests = known.tensors if known.algorithm in HEX_DIGITS else {}
    unique = {entry.view: entry for entry in reversed(checkpoint.tensors.values())}
    entries = {entry.name: entry for entry in unique.values()}
    for name, tensor in read_tensors(entries, digests=digests, algorithm=known.algorithm):
        yield entries[name].view, tensor
    for check in checkpoint.checks:
        for finding in check():
            if finding.level == "fail":
                raise CorruptError(str(finding), str(checkpoint.path))
    checkpoint.check_unchanged()
