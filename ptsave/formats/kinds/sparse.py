"""Sparse tensors as inert objects: what the reader makes, and the writer takes.

`Opaque("torch.sparse_coo")` (csr, csc, bsr, bsc) with its parts under torch's names for them.

Source: torch/_utils.py, `_rebuild_sparse_tensor`.
"""

from __future__ import annotations

from typing import Any

from ptsave.core.nodes import Opaque, TensorEntry

PARTS = {
    "torch.sparse_coo": ("indices", "values", "size", "is_coalesced"),
    "torch.sparse_csr": ("crow_indices", "col_indices", "values", "size"),
    "torch.sparse_bsr": ("crow_indices", "col_indices", "values", "size"),
    "torch.sparse_csc": ("ccol_indices", "row_indices", "values", "size"),
    "torch.sparse_bsc": ("ccol_indices", "row_indices", "values", "size"),
}
"""Layout → the parts that torch rebuilds it from, in this order; only the last of coo may be missing."""


def is_sparse(value: Any) -> bool:
    """Whether `value` is a sparse tensor with all that it takes to make it again."""
    if type(value) is not Opaque or value.name not in PARTS or type(value.state) is not dict:
        return False
    state = value.state
    return all(_fits(name, state[name]) if name in state else _may_lack(name) for name in PARTS[value.name])


def parts_of(value: Opaque) -> tuple[Any, ...]:
    """The parts that it has, in torch's order."""
    return tuple(value.state[name] for name in PARTS[value.name] if name in value.state)


def why_not_made(value: Any) -> str:
    """Why torch's loaders raise where they rebuild the sparse tensor `value`; empty where they do not.

    They ask that the shapes of a coo tensor's parts go together, and nothing of other layouts. They look at
    indices only where `check_sparse_tensor_invariants` is on, with `weights_only` and without. Indices of coo
    that are not int64, which torch does not write, the legacy loader turns into such before it has read them,
    and TorchScript's refuses.

    Source: torch/_utils.py (`_rebuild_sparse_tensor`, `_validate_loaded_sparse_tensors`),
    ATen/SparseTensorImpl.h (`set_indices_and_values_unsafe`).
    """
    if not is_sparse(value) or value.name != "torch.sparse_coo":
        return ""
    indices, values, size = (value.state[name] for name in ("indices", "values", "size"))
    num_dims, count = indices.shape if len(indices.shape) == 2 else (-1, -1)
    if not 0 <= num_dims <= len(size) or (values.shape or (1,)) != (count, *size[num_dims:]):
        parts = f"{list(indices.shape)}, values {list(values.shape)} and the size {list(size)}"
        return f"a sparse tensor has indices {parts}"
    if indices.dtype.name != "int64":
        return f"a sparse tensor has indices of {indices.dtype}"
    return ""


def _fits(name: str, part: Any) -> bool:
    if name == "size":
        return type(part) is tuple and all(type(size) is int for size in part)
    return type(part) in (bool, type(None)) if name == "is_coalesced" else isinstance(part, TensorEntry)


def _may_lack(name: str) -> bool:
    return name == "is_coalesced"
