"""Values put into tensors that may be sharded."""

from __future__ import annotations

from typing import Any

import torch

from ptsave.models.weights.spread import is_spread


def placed(value: Any, want: torch.Tensor) -> Any:
    """`value` as it goes into the tensor `want`: where that is spread and `value` whole, this rank's part."""
    if not is_spread(want) or is_spread(value) or not isinstance(value, torch.Tensor):
        return value
    from ptsave.models.weights.sharded import part_of  # which imports torch.distributed

    return part_of(value, want)  # type: ignore[arg-type]
