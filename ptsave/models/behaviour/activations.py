"""How much memory and work a model may take on inputs that only a record vouches for.

Inputs of a few elements can make a model compute a tensor of a hundred gigabytes (`torch.outer`), a number in
them how often it computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from ptsave.errors import LimitError, UsageError
from ptsave.models.behaviour.trace import buffers_restored, cloned
from ptsave.models.inputs import Arguments
from ptsave.models.load import run
from ptsave.models.seeding import seeded

MAX_ACTIVATION_BYTES = 2 * 1024**3
"""Cap on the activations that are alive at one time, beside as many bytes as the model itself has."""


MAX_COMPUTED_BYTES = 16 * 1024**3
"""Cap on what one pass computes, in bytes that it writes: some ten seconds on two cores."""
COMPUTED_PER_BYTE = 64
"""How much more it is for each byte of the model: a transformer in float32 may take 2,000 tokens."""
_OPERATIONS_PER_BYTE = 16
"""How many floating-point operations of products and convolutions take as long as to write a byte."""
_CALL_BYTES = 50_000
"""What a call of a function costs beside that."""


def check_activations(model: nn.Module, arguments: Arguments) -> None:
    """Run `model` once, with a look at the size of each tensor before it is computed.

    Raises: LimitError before a tensor would exceed MAX_ACTIVATION_BYTES, or all that is computed
    MAX_COMPUTED_BYTES. A model that fails otherwise is left to whoever runs it next.
    """
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    own = sum(t.nbytes for t in tensors)
    most, most_computed = MAX_ACTIVATION_BYTES + own, MAX_COMPUTED_BYTES + COMPUTED_PER_BYTE * own
    sizes = _Sizes(most, most_computed, type(model).__qualname__)
    with suppress(UsageError), buffers_restored(model), seeded(0), sizes:
        run(model, cloned(arguments))
    if sizes.limit is not None:
        raise sizes.limit


class _Sizes(TorchDispatchMode):
    """While active, computes on the meta device first, and only then what fits."""

    def __init__(self, most: int, most_computed: int, where: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit: LimitError | None = None
        """What the model's own code may catch on its way out."""
        self._most, self._most_computed, self._where = most, most_computed, where
        self._computed = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._num_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self.limit is not None:
            raise self.limit
        num_bytes, num_operations = _cost_of(func, args, kwargs)
        self._ask(num_bytes)
        self._compute(_CALL_BYTES + num_bytes + num_operations // _OPERATIONS_PER_BYTE)
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
                self._note(leaf.untyped_storage())
        return result

    def _ask(self, num_bytes: int) -> None:
        if self._num_bytes + num_bytes > self._most:
            gone = [key for key, (weak, _) in self._alive.items() if _is_gone(weak)]
            self._num_bytes -= sum(self._alive.pop(key)[1] for key in gone)
        if self._num_bytes + num_bytes > self._most:
            raise self._refused("MAX_ACTIVATION_BYTES", self._most, self._num_bytes + num_bytes)

    def _compute(self, num_bytes: int) -> None:
        self._computed += num_bytes
        if self._computed > self._most_computed:
            raise self._refused("MAX_COMPUTED_BYTES", self._most_computed, self._computed)

    def _refused(self, cap: str, most: int, found: int) -> LimitError:
        self.limit = LimitError(cap, most, found, self._where)
        self.limit.hint = "name a config with -c whose [inputs] are the same"
        return self.limit

    def _note(self, storage: torch.UntypedStorage) -> None:
        weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        key: int = weak.cdata
        if key not in self._alive or _is_gone(self._alive[key][0]):
            self._num_bytes += storage.nbytes() - self._alive.get(key, (weak, 0))[1]
            self._alive[key] = weak, storage.nbytes()


def _is_gone(weak: StorageWeakRef) -> bool:
    return bool(weak.expired())  # type: ignore[no-untyped-call]


def _cost_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int]:
    """Bytes of what `func` would return, views of what it is given aside, and its operations, where they are
    known; of what it changes in place none are new. 0 where values alone tell."""
    aliases = [r.alias_info for r in func._schema.returns]
    if any(alias is not None for alias in aliases):
        return 0, (_changed_bytes(args) * _OPERATIONS_PER_BYTE if _writes(aliases) else 0)
    if func is torch.ops.aten.repeat_interleave.Tensor:
        return 8 * int(args[0].sum()), 0
    try:
        on_meta = tree_map_only(torch.Tensor, _on_meta, (args, kwargs))
        on_meta[1].update({"device": torch.device("meta")} if "device" in kwargs else {})
        made = func(*on_meta[0], **on_meta[1])
    except (RuntimeError, NotImplementedError, TypeError):
        return 0, 0
    count = flop_registry.get(func.overloadpacket)
    num_operations = int(count(*on_meta[0], **on_meta[1], out_val=made)) if count is not None else 0
    return sum(t.nbytes for t in tree_leaves(made) if isinstance(t, torch.Tensor)), num_operations


def _changed_bytes(args: tuple[Any, ...]) -> int:
    return sum(t.nbytes for t in tree_leaves(args[:1]) if isinstance(t, torch.Tensor))


def _writes(aliases: list[Any]) -> bool:
    return any(alias is not None and alias.is_write for alias in aliases)


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
