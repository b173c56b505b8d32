"""The numbers of `[inputs]` in NumPy: the same ones that a model is given as torch's tensors."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from ptsave.config.inputs import DataTensor, DictOf, InputSpec, InputsSpec, ListOf, RandomTensor
from ptsave.core.values import random


def generated(spec: RandomTensor, stream: str) -> Any:
    """The numbers of `spec` in a flat array, before they are rounded to its dtype.

    Integers have its dtype and booleans are uint8; floats are float32 or, for the wide dtypes, float64;
    complex numbers are two floats each. `stream` (the input's name) keeps inputs of one seed apart.
    """
    import numpy as np

    count = prod(spec.shape)
    if not spec.dtype.is_float:
        integers = np.empty(count, "uint8" if spec.dtype.kind == "bool" else spec.dtype.name)
        low, high = int(spec.low or 0), 2 if spec.high is None else int(spec.high)
        random.fill_integers(integers, low, high, spec.seed, stream)
        return integers
    is_wide = spec.dtype.name in ("float64", "complex128")
    is_complex = spec.dtype.kind == "complex"
    floats = np.empty(count * (2 if is_complex else 1), "float64" if is_wide else "float32")
    if spec.low is not None and spec.high is not None:
        random.fill_uniform(floats, spec.low, spec.high, spec.seed, stream)
    else:
        random.fill_normal(floats, spec.mean, spec.std, spec.seed, stream)
    return floats


def arrays(spec: InputsSpec) -> Iterator[Any]:
    """The arrays of the arguments that `spec` makes, in its order; what stands in files is left out.

    Raises: TypeError for a dtype that NumPy does not have.
    """
    for i, item in enumerate(spec.positional):
        yield from _arrays(item, str(i))
    for name, item in spec.named.items():
        yield from _arrays(item, name)


def _arrays(spec: InputSpec, stream: str) -> Iterator[Any]:
    import numpy as np

    if isinstance(spec, ListOf):
        for i, item in enumerate(spec.items):
            yield from _arrays(item, f"{stream}.{i}")
    elif isinstance(spec, DictOf):
        for key, item in spec.items.items():
            yield from _arrays(item, f"{stream}.{key}")
    elif isinstance(spec, RandomTensor):
        flat = generated(spec, stream)
        if spec.dtype.kind == "complex":
            flat = flat.view(f"complex{16 * flat.itemsize}")
        yield flat.astype(spec.dtype.name).reshape(spec.shape)
    elif isinstance(spec, DataTensor):
        array = np.array(spec.data)
        default = "float32" if array.dtype.kind == "f" else str(array.dtype)
        yield array.astype(default if spec.dtype is None else spec.dtype.name)
