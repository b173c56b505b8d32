"""Where the tensors of a rank's own file belong, when torch.distributed.checkpoint wrote it as safetensors.

Such a file has chunks under the names of whole tensors, and their offsets in `__metadata__`. A chunk that
begins at zero may be the whole tensor or the first part of it: the file does not say.

Source: torch/distributed/checkpoint/_hf_utils.py and hf_storage.py of torch 2.13 (`CUSTOM_METADATA_KEY`,
`SAVED_OFFSETS_KEY`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ptsave.core.strict_json import parse_object

KEY = "DCP_SHARDING_INFO"
_OFFSETS = "saved_offsets"
_MAX_NAMED = 5


def table_of(metadata: Mapping[str, str], where: str) -> dict[str, Any]:
    """What the file says of its chunks, by name; each is for `offsets_of`.

    Raises: CorruptError, LimitError.
    """
    return parse_object(metadata[KEY].encode(), KEY, where)


def offsets_of(about: Any) -> tuple[int, ...] | None:
    """In elements, one a dimension; None where it does not say."""
    offsets = about.get(_OFFSETS) if isinstance(about, dict) else None
    if not isinstance(offsets, list) or not all(type(n) is int and 0 <= n < 2**63 for n in offsets):
        return None
    return tuple(offsets)


def missing_from(metadata: Mapping[str, str], where: str) -> list[str]:
    """What a file that is opened alone lacks: the beginnings of tensors of which it has a later chunk.

    Raises: CorruptError, LimitError.
    """
    chunks = {name: offsets_of(about) for name, about in table_of(metadata, where).items()}
    later = {name: offsets for name, offsets in chunks.items() if offsets is not None and any(offsets)}
    if not later:
        return []
    named = ", ".join(
        f"{name[:80]!r} from {list(offsets)} on" for name, offsets in [*later.items()][:_MAX_NAMED]
    )
    more = f", … {len(later) - _MAX_NAMED} more" if len(later) > _MAX_NAMED else ""
    return [f"the other chunks of tensors, of which this rank's file has {named}{more}"]
