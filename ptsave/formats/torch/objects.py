"""torch's objects in a pickle: the exact shapes that become tensors and data.

How each is presented:

- tensors and parameters: `TensorEntry` (`kind` "tensor" or "parameter"; a subclass's dotted name; "conj"
  or "neg" where the bytes still wait for that operation)
- `torch.Size` → tuple; a dtype → its `DType`; `torch.device("cpu")` → `Opaque("torch.device", ("cpu",))`
- a storage by itself → `StorageNode`, an Opaque whose one child `data` is a flat tensor
- quantized → `Opaque("torch.quantized")` with `int_repr`, `qscheme`, `scale`/`zero_point` or
  `scales`/`zero_points`/`axis`
- sparse → `Opaque("torch.sparse_coo")` (csr, csc, bsr, bsc) with `indices`, `values`, `size`, … as torch
  names them
- nested → `Opaque("torch.nested")` with `buffer`, `sizes`, `strides`, `storage_offsets`
- without bytes (meta, FakeTensor, wrapper subclasses) → `Opaque("torch.meta")`, or an Opaque of the
  subclass's name, with `dtype`, `size`, `stride`, …

All of these are known shapes and leave nothing in `Checkpoint.globals`, but for a subclass's own name.

Source: torch/_utils.py, torch/_tensor.py, torch/nn/parameter.py, torch/serialization.py,
torch/_weights_only_unpickler.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ptsave.core import dtypes
from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.errors import CorruptError
from ptsave.formats.pickle import numpy_objects, omegaconf, python_objects
from ptsave.formats.pickle.module import (
    PickledModule,
    TupleModule,
    graph_module,
    is_module_state,
    is_tuple_state,
)
from ptsave.formats.pickle.shapes import UNKNOWN, Budget, Described, Known, Shapes, known_names
from ptsave.formats.torch import tensors, unusual
from ptsave.formats.torch.storages import STORAGE_DTYPES, StorageNode
from ptsave.formats.torch.tensors import MAX_RANK

_INT = {int}
_DEVICE = re.compile(r"[a-z_]{1,64}(?::(?P<index>0|[1-9][0-9]{0,2}))?")
"""A device's type, of which a program may register more, and its index. Source: c10/core/Device.cpp."""
_MAX_DEVICE = 127


def _size(args: tuple[Any, ...], budget: Budget) -> Any:
    if not args:
        return ()
    if len(args) != 1 or type(args[0]) not in (tuple, list) or len(args[0]) > MAX_RANK:
        return UNKNOWN
    return tuple(args[0]) if {*map(type, args[0])} <= _INT else UNKNOWN


def _device(args: tuple[Any, ...], budget: Budget) -> Any:
    """`torch.device("cuda", 0)`, `torch.device("cuda:0")`; torch refuses all else, or wraps it around."""
    found = _DEVICE.fullmatch(args[0]) if 1 <= len(args) <= 2 and type(args[0]) is str else None
    if found is None:
        return UNKNOWN
    if len(args) == 2 and (found["index"] or type(args[1]) is not int):
        return UNKNOWN
    index = args[1] if len(args) == 2 else int(found["index"] or 0)
    return Opaque("torch.device", args) if 0 <= index <= _MAX_DEVICE else UNKNOWN


def build(target: Any, state: Any, budget: Budget) -> bool:
    """BUILD on a tensor (torch before 0.4), a module, a config, an array, or a state dict."""
    if type(target) is TensorEntry:
        return tensors.build_tensor(target, state)
    if isinstance(target, (PickledModule, TupleModule, StorageNode, omegaconf.ConfigContainer)):
        raise CorruptError(f"the pickle sets the state of a {target.name} twice")
    if isinstance(target, Opaque):
        if type(target) is Opaque and target.state is None and is_module_state(state):
            # the object is already known by identity (memo), so it changes its class in place
            target.__class__ = PickledModule
            target.state = state
            return True
        if type(target) is Opaque and target.state is None and is_tuple_state(state):
            target.__class__ = TupleModule
            target.state = state
            return True
        if type(target) is Opaque and target.state is None and omegaconf.is_container(target.name, state):
            target.__class__ = omegaconf.ConfigContainer
            target.state = state
            return True
        return numpy_objects.build(target, state, budget)
    return python_objects.build(target, state, budget)


_GRAPH_MODULE = "torch.fx.graph_module.reduce_graph_module"

NAMES: dict[str, Any] = {
    **python_objects.NAMES,
    **numpy_objects.NAMES,
    **tensors.NAMES,
    **unusual.NAMES,
    **{f"torch.{name}": dtype for name, dtype in dtypes.BY_NAME.items()},
    **{name: Known(name, python_objects.is_name_only) for name in ("torch.Tensor", *STORAGE_DTYPES)},
    **known_names("torch", {"Size": _size, "device": _device}),
    _GRAPH_MODULE: Described(_GRAPH_MODULE, graph_module),
}
"""What stands for each dotted name that a torch pickle may use."""


def torch_shapes(persistent_load: Callable[[Any], Any] | None = None) -> Shapes:
    """The shapes for one container, whose storages `persistent_load` finds."""
    return Shapes(NAMES, build, persistent_load)
