"""Where the tensors of a rank's own file belong, when torch.distributed.checkpoint wrote it as safetensors.

Such a file has chunks under the names of whole tensors, and their offsets in `__metadata__`. A chunk that
begins at zero may be the whole tensor or the first part of it: the file does not say.

Source: torch/distributed/checkpoint/_hf_utils.py and hf_storage.py of torch 2.13 (`CUSTOM_METADATA_KEY`,
`SAVED_OFFSETS_KEY`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from ptsave.core.nodes import TensorEntry
from ptsave.core.strict_json import parse_object
from ptsave.errors import CorruptError

KEY = "DCP_SHARDING_INFO"
_OFFSETS = "saved_offsets"
_MAX_NAMED = 5
_DAMAGED = "the folder is incomplete or mixes two checkpoints; copy it again"


def table_of(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """What the file says of its chunks, by name; each is for `offsets_of`.

    Raises: CorruptError, LimitError.
    """
    return parse_object(metadata[KEY].encode(), KEY, where)


def offsets_of(table: Mapping[str, Any], name: str, rank: int, where: str) -> tuple[int, ...]:
    """Where the chunk of `name` begins in its tensor: in elements, one a dimension of `rank`.

    Raises: CorruptError where the table does not say; torch's reader looks for each tensor of a file.
    """
    about = table.get(name)
    offsets = about.get(_OFFSETS) if isinstance(about, dict) else None
    is_place = isinstance(offsets, list) and all(type(n) is int and 0 <= n < 2**63 for n in offsets)
    if not isinstance(offsets, list) or not is_place or len(offsets) != rank:
        raise CorruptError(f"{KEY} does not say where {name[:80]!r} belongs", where, _DAMAGED)
    return tuple(offsets)


def missing_from(metadata: Mapping[str, str], tensors: Mapping[str, TensorEntry], where: str) -> list[str]:
    """What a file that is opened alone lacks: the beginnings of tensors of which it has a later chunk.

    Raises: CorruptError, LimitError.
    """
    table = table_of(metadata, where)
    chunks = {name: offsets_of(table, name, len(entry.shape), where) for name, entry in tensors.items()}
    later = {name: offsets for name, offsets in chunks.items() if any(offsets)}
    if not later:
        return []
    named = ", ".join(
        f"{name[:80]!r} from {list(offsets)} on" for name, offsets in [*later.items()][:_MAX_NAMED]
    )
    more = f", … {len(later) - _MAX_NAMED} more" if len(later) > _MAX_NAMED else ""
    return [f"the other chunks of tensors, of which this rank's file has {named}{more}"]


def others_of(names: Iterable[str], read: Container[str]) -> list[str]:
    """What torch's reader of a folder takes beside the files that were read: every safetensors file in it."""
    others = sorted(name for name in names if name.endswith(".safetensors") and name not in read)
    if not others:
        return []
    such = ", ".join(name[:80] for name in others[:_MAX_NAMED])
    return [f"what is in {such}: torch.distributed.checkpoint reads each safetensors file of the folder"]
