"""Models without weights: built with their parameters on the meta device, all else real.

Building a model only to overwrite its weights would hold them twice and spend time on random
numbers. Building it wholly on the meta device would lose what is not in the state dict: buffers
registered with `persistent=False`, tensors in plain attributes. So only parameters go to the meta
device, each as a module registers it; a layer's uninitialised memory is given back before the next
layer asks for its own. Buffers and all other tensors are computed by the model's own code, on the CPU.
Nothing of torch is patched, for other threads may build ordinary models meanwhile.

Where that cannot be told from a real model, the model is built for real: see `defects`.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

FILLS = {
    "normal_",
    "uniform_",
    "random_",
    "bernoulli_",
    "exponential_",
    "log_normal_",
    "cauchy_",
    "geometric_",
}
_GETTERS: Any = Tensor
GRAD_FN, IS_META = _GETTERS.grad_fn.__get__, _GETTERS.is_meta.__get__
LOAD = nn.Module._load_from_state_dict.__code__
SCALARS = (str, bytes, int, float, bool, complex, type(None), type)


def build_skeleton(construct: Callable[[], Any]) -> nn.Module | None:
    """What `construct` returns, with its parameters on the meta device, or None where it has to be real.

    A tensor of the state dict that is on the meta device is to be replaced by one with values, by
    assignment (`load_state_dict(assign=True)`); tied parameters are one object, as in a real model.
    """
    with ParametersOnMeta() as mode:
        try:
            model = construct()
            if not isinstance(model, nn.Module):
                return None
            for parameter in model.parameters():  # those that were put into a registry by hand
                mode.births.move(parameter)
            is_whole = not mode.births.is_shared() and not any(defects(model))
        except Exception:
            # Computing with weights fails on the meta device. What fails for real too is reported then.
            return None
    return model if is_whole else None


class Births:
    """The memory that tensors were made in meanwhile, and that of the parameters that left it."""

    def __init__(self) -> None:
        self.own: dict[int, StorageWeakRef] = {}
        self.moved: dict[int, StorageWeakRef] = {}
        self.had_twins = False

    def note(self, result: Any, given: Sequence[Any]) -> None:
        """Take down what tensors of a function's `result` have memory that none of the `given` ones has."""
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if type(tensor) is Tensor and not tensor.is_meta and not _is_view(tensor, given):
                storage = tensor.untyped_storage()
                self.own[storage._cdata] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]

    def move(self, parameter: nn.Parameter) -> None:
        """Put a parameter that was made meanwhile on the meta device; it stays the same object.

        One whose memory is older may be someone else's, and is left alone, as is one of another class.
        """
        if type(parameter) is not nn.Parameter or parameter.is_meta:
            return
        storage = parameter.untyped_storage()
        if not _is_alive(self.own.get(storage._cdata)):
            return
        if _is_alive(self.moved.get(storage._cdata)):
            self.had_twins = True
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        del storage
        twin = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        twin.__dict__.update(vars(parameter))
        try:
            torch.utils.swap_tensors(parameter, twin)  # type: ignore[no-untyped-call]
        except RuntimeError:
            return  # autograd or a weak reference holds it: `defects` will find its values
        self.moved[reference.cdata] = reference

    def is_shared(self) -> bool:
        """Whether a parameter shared its memory with another one, or with a tensor that still lives.

        Writing to the parameter of a real model would change the other too.
        """
        return self.had_twins or any(map(_is_alive, self.moved.values()))


def _is_view(tensor: Tensor, given: Sequence[Any]) -> bool:
    """Whether `tensor` lies in the memory of one of `given`."""
    return any(isinstance(other, Tensor) and _storage(other) == _storage(tensor) for other in given)


def _is_alive(reference: StorageWeakRef | None) -> bool:
    return reference is not None and not reference.expired()  # type: ignore[no-untyped-call]


class ParametersOnMeta(TorchFunctionMode):
    """While active, each parameter that this thread makes goes to the meta device as a module takes it.

    torch keeps the stack of modes for each thread, so no other thread sees anything of it. To fill a tensor
    on the meta device with random numbers does nothing at all: it would have no effect but to load torch's
    decompositions, for which it takes a second. Nor does torch warn that weights which a constructor loads
    by itself go nowhere; they are not needed.

    Source: torch.nn.Module.register_parameter, which asks for the parameter's `grad_fn`, and
    _load_from_state_dict, which asks whether it `is_meta`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.births = Births()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == GRAD_FN and isinstance(args[0], nn.Parameter):
            self.births.move(args[0])
        elif func == IS_META and sys._getframe(1).f_code is LOAD:
            return False
        elif getattr(func, "__name__", "") in FILLS:
            target = args[0] if args else kwargs.get("tensor")  # torch.nn.init passes it by name
            if isinstance(target, Tensor) and target.is_meta:
                return target
        result = func(*args, **kwargs)
        self.births.note(result, [*args, *kwargs.values()])
        return result


def defects(model: nn.Module) -> Iterator[str]:
    """Why loading a state dict by assignment would leave a skeleton wrong, each with the name concerned.

    Everything without values has to be in the state dict, as a plain parameter; and what the state dict
    holds must not be held anywhere else, for assignment would not reach it there.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        yield "compiled: TorchScript holds its own references to parameters"
    owners: dict[int, int] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or is_lazy(tensor):
            continue
        if isinstance(tensor, nn.Parameter) and not tensor.is_meta:
            yield f"{name}: has values, for it was not made here or is of a class of its own"
        elif tensor.is_meta and (type(tensor) is not nn.Parameter or _attributes(tensor)):
            yield f"{name}: is more than a plain parameter, which is all that assignment makes"
        if owners.setdefault(_storage(tensor), id(tensor)) != id(tensor):
            yield f"{name}: shares its memory with another name of the state dict"
    for where, tensor, is_registered in reachable_tensors(model):
        if is_lazy(tensor):
            continue
        owner = owners.get(_storage(tensor))
        if owner is None and tensor.is_meta:
            yield f"{where}: has no values, and is not in the state dict"
        elif owner is not None and not (is_registered and owner == id(tensor)):
            yield f"{where}: shares its memory with a name of the state dict"


def _attributes(tensor: Tensor) -> list[str]:
    """What the model hung on a parameter, but for private notes (transformers' `_is_hf_initialized`)."""
    return [name for name in vars(tensor) if not name.startswith("_")]


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def reachable_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Every tensor that the model's modules hold, in whatever attribute, container, closure or object.

    With each comes a place, and whether the tensor is where `load_state_dict(assign=True)` replaces it.
    """
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", model)]
    while stack:
        where, value = stack.pop()
        if isinstance(value, Tensor):
            yield where, value, False
        if id(value) in seen:
            continue
        seen.add(id(value))
        prefix = f"{where}." if where else ""
        if isinstance(value, nn.Module):
            attributes = dict(vars(value))
            for registry in ("_parameters", "_buffers"):
                for key, tensor in attributes.pop(registry, {}).items():
                    if isinstance(tensor, Tensor):
                        yield f"{prefix}{key}", tensor, key not in value._non_persistent_buffers_set
            if isinstance(value, nn.RNNBase):
                attributes.pop("_flat_weights", None)  # its __setattr__ keeps them up to date
            children: Iterator[tuple[Any, Any]] = iter(attributes.items())
        else:
            children = _children(value)
        stack.extend((f"{prefix}{key}", child) for key, child in children if not isinstance(child, SCALARS))


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        yield from enumerate(value)
    elif isinstance(value, functools.partial):
        yield from enumerate((value.func, value.args, value.keywords))
    elif isinstance(value, MethodType):
        yield "__self__", value.__self__
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            try:
                yield "closure", cell.cell_contents
            except ValueError:
                continue  # a variable that was never set
    elif not isinstance(value, type(torch)):
        yield from getattr(value, "__dict__", {}).items()
        for slot in (slot for kind in type(value).__mro__ for slot in getattr(kind, "__slots__", ())):
            if slot != "__dict__" and hasattr(value, slot):
                yield slot, getattr(value, slot)
