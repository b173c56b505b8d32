"""What rounding does to a model: the same forward pass in float64, and with random roundings thrown in.

A TorchFunctionMode sees every function of torch that a model's code calls. It can widen what goes in (the
model itself stays as it is, so memory grows by one tensor at a time, not by a copy of the weights), and it
can change each result by as much as rounding it might have: Monte Carlo arithmetic. How far such runs are
apart is what floating point explains.

Source: Parker, "Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic", 1997.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ptsave.core.tree import own_kind, rewrite
from ptsave.models.weights.sharded import is_sharded, tensors_in

WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}
_WIDE_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.float: torch.Tensor.double,
    torch.Tensor.half: torch.Tensor.double,
    torch.Tensor.bfloat16: torch.Tensor.double,
    torch.Tensor.cfloat: torch.Tensor.cdouble,  # type: ignore[attr-defined]
}
_METADATA = frozenset(
    {
        *("__get__", "__set__", "size", "dim", "stride", "numel", "storage_offset", "is_contiguous"),
        *("data_ptr", "untyped_storage", "element_size", "is_floating_point", "is_complex", "nelement"),
        *("__len__", "__hash__", "__repr__", "get_device", "ndimension", "register_hook", "detach_"),
        *("requires_grad_", "is_nonzero", "_is_view", "is_inference", "has_names"),
    }
)
"""Functions that look at a tensor and compute nothing: for them, a copy would be a waste."""


class Rounding(TorchFunctionMode):
    """While active, torch's functions compute in float64, or have their results rounded at random.

    `results` is the relative size of the error that each new floating-point result is given, and `weights`
    that of every parameter and buffer of `model`: the same each time that it is used. Random numbers that
    the model itself draws are not touched.
    """

    def __init__(
        self, model: nn.Module, *, wide: bool, results: float = 0.0, weights: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__()
        self._wide = wide
        self._results = results
        self._weights = weights
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        named = [*model.parameters(), *model.buffers()] if weights else []
        self._places = {_address(tensor): i for i, tensor in enumerate(named) if _is_plain(tensor)}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _METADATA or "c10d" in (getattr(func, "__module__", None) or ""):
            return func(*args, **kwargs)  # what a collective returns may not be there before it is waited for
        target = kwargs.get("out", args[0] if args and _changes_in_place(name) else None)
        if isinstance(target, torch.Tensor) and target.dtype in WIDE:
            # What the model keeps stays what it is; the others come down to it.
            args, kwargs = _map_tensors((args, kwargs), lambda t: t if t is target else _like(t, target))
            return func(*args, **kwargs)
        if self._wide or self._weights:
            args, kwargs = _mapped((args, kwargs), self._taken)
        if self._wide:
            func = _WIDE_FUNCTIONS.get(func, func)
        result = func(*args, **kwargs)
        if self._wide:
            result = _map_tensors(result, lambda t: t.to(WIDE[t.dtype]) if t.dtype in WIDE else t)
        if self._results and not (target is not None or _is_random(name)):
            known = {_address(tensor) for tensor in tensors_in((args, kwargs))}
            result = _map_tensors(result, lambda t: t if _address(t) in known else self._perturbed(t))
        return result

    def _taken(self, value: Any) -> Any:
        """An argument, a tensor or another value, as it goes in."""
        if self._wide and isinstance(value, torch.dtype):
            return WIDE.get(value, value)
        return self._taken_tensor(value) if _is_changed(value) else value

    def _taken_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        place = self._places.get(_address(tensor))
        wide = tensor.to(WIDE[tensor.dtype]) if self._wide and tensor.dtype in WIDE else tensor
        if place is None or not _is_float(tensor):
            return wide
        generator = torch.Generator(tensor.device).manual_seed(self._seed * 1_000_003 + place)
        return wide * _factors(wide, self._weights, generator)

    def _perturbed(self, tensor: torch.Tensor) -> torch.Tensor:
        if not _is_float(tensor) or not tensor.numel() or is_sharded(tensor):
            return tensor
        device = tensor.device
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        factors = _factors(tensor, self._results, self._generators[device])
        # Whole numbers are exact: a position or a count must not become less than it is.
        factors.masked_fill_(tensor.real == tensor.real.trunc(), 1)
        return tensor * factors if tensor.is_complex() else factors.mul_(tensor)


def _map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value) if _is_changed(value) else value
    return _mapped(value, lambda leaf: change(leaf) if _is_changed(leaf) else leaf)


def _is_changed(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (_is_plain(value) or is_sharded(value))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Arguments or results with each leaf changed, at each of its places by itself."""
    return rewrite(
        value,
        lambda path, leaf: change(leaf),
        leave=own_kind,
        containers=(dict, list, tuple),
        once=False,
    )


def _changes_in_place(name: str) -> bool:
    """Whether a function of that name changes its first argument: `add_`, `__iadd__`, `__setitem__`."""
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__invert__", "__index__"))
    return name.endswith("_")


def _is_random(name: str) -> bool:
    return "rand" in name or "dropout" in name or name in ("bernoulli", "multinomial", "normal", "poisson")


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer) and tensor.layout is torch.strided


def _is_float(tensor: torch.Tensor) -> bool:
    """Whether it can be computed with: the 8-bit floats have no arithmetic of their own."""
    return tensor.dtype in WIDE or tensor.dtype in WIDE.values()


def _like(tensor: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    is_wider = tensor.dtype in WIDE.values() and tensor.is_complex() == target.is_complex()
    return tensor.to(target.dtype) if is_wider else tensor


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if _is_plain(tensor) else id(tensor)


def _factors(like: torch.Tensor, size: float, generator: torch.Generator) -> torch.Tensor:
    """1 ± up to `size`, evenly spread, in a tensor laid out as `like` is.

    The random numbers are half of what a run with roundings costs beside the model's own work: they are drawn
    in float32, and nothing is copied that need not be.
    """
    noise = torch.empty_like(like.real, dtype=torch.float32).uniform_(-size, size, generator=generator)
    return noise.to(like.real.dtype).add_(1)
