"""What torch would compute of tensors without memory, told by their shapes and dtypes alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten


class ShapesOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, the shapes of elementwise functions, joins and blanks on the meta device are told here.

    torch tells them as well, but imports its compiler for it: 820 modules and 75 MiB. All else, and
    all that does not fit together, is left to torch, which words the errors.

    Source: torch/_compile.py, `_disable_dynamo`, which torch/_prims_common/wrappers.py puts around each.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False, or torch would put that around `__torch_dispatch__`, too.

        Source: torch/utils/_python_dispatch.py, `__init_subclass__`.
        """
        return False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = _made(func, args, kwargs)
        return func(*args, **kwargs) if made is None else made


def _made(func: Any, args: Any, kwargs: Any) -> Any:
    """The tensors without memory that `func` would return; None where torch has to say."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if not any(tensor.is_meta for tensor in tensors) or not all(map(_is_simple, tensors)):
        return None
    if func is aten.cat.default:
        return _joined(*args, **kwargs)
    if func is aten.stack.default:
        return _stacked(*args, **kwargs)
    if func in _BLANKS:
        return _blank(*args, **kwargs)
    is_of_values = torch.Tag.data_dependent_output in func.tags
    if torch.Tag.pointwise not in func.tags or func._schema.is_mutable or is_of_values:
        return None
    return _of_one_value_each(func, tensors, args, kwargs)


def _is_simple(tensor: torch.Tensor) -> bool:
    """Whether it is a strided tensor on the meta device, or a scalar that may be computed with one."""
    return (tensor.is_meta or not tensor.dim()) and tensor.layout is torch.strided and not tensor.is_quantized


def _of_one_value_each(func: Any, tensors: Sequence[torch.Tensor], args: Any, kwargs: Any) -> Any:
    """The dtype is that of the same function on tensors of one element."""
    try:
        shape = torch.broadcast_tensors(*tensors)[0].shape  # type: ignore[no-untyped-call]
    except RuntimeError:
        return None  # torch says what does not fit
    like = next((tensor for tensor in tensors if tensor.is_meta and tensor.shape == shape), None)
    args, kwargs = tree_map_only(torch.Tensor, _of_one_element, (args, kwargs))

    def spread(one: torch.Tensor) -> torch.Tensor:
        if like is None:
            return torch.empty(shape, dtype=one.dtype, device="meta")
        return like.to(one.dtype, copy=True)

    return tree_map_only(torch.Tensor, spread, func(*args, **kwargs))


def _of_one_element(tensor: torch.Tensor) -> torch.Tensor:
    return torch.ones((1,) * tensor.dim(), dtype=tensor.dtype) if tensor.is_meta else tensor


def _joined(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor | None:
    first = tensors[0]
    if not -first.dim() <= dim < first.dim() or any(tensor.dim() != first.dim() for tensor in tensors):
        return None
    shape = list(first.shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    if any(
        torch.Size(shape)[:dim] != t.shape[:dim] or shape[dim:][1:] != [*t.shape[dim:][1:]] for t in tensors
    ):
        return None
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return torch.empty(shape, dtype=dtype, device="meta")


def _stacked(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor | None:
    return _joined([tensor.unsqueeze(dim) for tensor in tensors], dim)


_BLANKS = {
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
}


def _blank(like: torch.Tensor, *fill: Any, **options: Any) -> torch.Tensor | None:
    device = torch.device(options.get("device") or "meta")
    if device.type != "meta" or options.get("layout") not in (None, torch.strided):
        return None
    memory_format = options.get("memory_format") or torch.preserve_format
    return like.to(options.get("dtype") or like.dtype, copy=True, memory_format=memory_format)
