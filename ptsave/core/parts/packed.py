"""Weights that are packed beside their scales, which a cast would ignore or round.

Told by structure, whoever packed them: an integer or 8-bit tensor, and beside it in the same module a tensor
whose name says that it scales or shifts. Sources: torchao and DeepSeek (`weight`, `weight_scale_inv`),
bitsandbytes (`weight`, `weight.absmax`, `weight.quant_map`, `SCB`), GPTQ and AWQ (`qweight`, `scales`),
compressed-tensors (`weight_packed`, `weight_scale`), torch's fake quantization (`scale`, `zero_point`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    found: dict[str, str] = {}
    for name in tensors:
        if not _SCALE.search(name):
            continue
        module, _, last = name.rpartition(".")
        above, _, weight = module.rpartition(".")
        beside = [other for other in by_module.get(module, ()) if other != name]
        if module in tensors and _is_packed(module, tensors[module]):
            beside.append(module)  # weight.absmax
        elif weight:  # weight.quant_state.absmax: a step further in
            beside += [above] if above in tensors and _is_packed(above, tensors[above]) else []
        stem = _SCALE.sub("", last)  # weight_scale: of weight where there is one
        own = [other for other in beside if stem and other.rpartition(".")[2].startswith(stem)]
        for other in own or beside:
            found.setdefault(name, other)
            found.setdefault(other, name)
    return found


def _is_packed(name: str, entry: TensorEntry) -> bool:
    """Whether its elements can be numbers of a coarser code: small integers, or floats of 8 bits and less."""
    kind, size = entry.dtype.kind, entry.dtype.itemsize
    is_integer = kind in ("int", "uint", "quantized", "bits") and size <= _MAX_PACKED_BYTES
    if _SCALE.search(name):
        return is_integer  # a zero point says that the scale beside it is one
    return prod(entry.shape) > 1 and (is_integer or (size == 1 and kind == "float"))
