"""Weights that are packed beside their scales, which a cast would ignore or round.

Told by structure, whoever packed them: an integer or 8-bit tensor, and beside it in the same module a tensor
whose name says that it scales or shifts. Sources: torchao and DeepSeek (`weight`, `weight_scale_inv`),
bitsandbytes (`weight`, `weight.absmax`, `weight.quant_map`, `SCB`), GPTQ and AWQ (`qweight`, `scales`),
compressed-tensors (`weight_packed`, `weight_scale`), torch's fake quantization (`scale`, `zero_point`).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping
from functools import partial
from itertools import islice, takewhile
from math import prod

from ptsave.core.nodes import TensorEntry

_SCALE = re.compile(
    r"(^|[._])(scales?|scale_inv|scaling|absmax|scb|quant_map|code|q?zeros?|zero_points?)$", re.IGNORECASE
)
_MAX_PACKED_BYTES = 4
"""Of an element: 64-bit integers are positions, not weights."""


def packed_beside(tensors: Mapping[str, TensorEntry]) -> dict[str, str]:
    """The name of each packed tensor and of each of its scales → what it goes with."""
    by_module: dict[str, list[str]] = {}
    for name, entry in tensors.items():
        if _is_packed(name, entry):
            by_module.setdefault(name.rpartition(".")[0], []).append(name)
    for names in by_module.values():
        names.sort()
    found: dict[str, str] = {}
    told: set[str] = set()
    """The modules of which all packed tensors go with a scale: the next scale has nothing to add."""
    for name in tensors:
        if not _SCALE.search(name):
            continue
        module, _, last = name.rpartition(".")
        above, _, weight = module.rpartition(".")
        inside = by_module.get(module, [])
        further = [
            outer  # weight.absmax, or a step further in: weight.quant_state.absmax
            for outer in (module, above if weight else "")
            if outer in tensors and _is_packed(outer, tensors[outer])
        ][:1]
        stem = _SCALE.sub("", last)  # weight_scale: of weight where there is one
        own = []
        if stem:
            front = f"{module}.{stem}" if module else stem
            begin = bisect_left(inside, front)
            own = [*takewhile(partial(_begins, front), islice(inside, begin, None))]
            own = [other for other in own if other != name]
            own += [outer for outer in further if outer.rpartition(".")[2].startswith(stem)]
        if not own:
            own = [*further, *(inside[:2] if module in told else inside)]
            told.add(module)
        for other in own:
            if other == name:
                continue
            found.setdefault(name, other)
            found.setdefault(other, name)
    return found


def _begins(front: str, name: str) -> bool:
    return name.startswith(front)


def _is_packed(name: str, entry: TensorEntry) -> bool:
    """Whether its elements can be numbers of a coarser code: small integers, or floats of 8 bits and less."""
    kind, size = entry.dtype.kind, entry.dtype.itemsize
    is_integer = kind in ("int", "uint", "quantized", "bits") and size <= _MAX_PACKED_BYTES
    if _SCALE.search(name):
        return is_integer  # a zero point says that the scale beside it is one
    return prod(entry.shape) > 1 and (is_integer or (size == 1 and kind == "float"))
