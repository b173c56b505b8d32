"""InputsSpec → the arguments of forward(), and what forward() returns → named tensors, and files of both."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ptsave.config.arrays import generated
from ptsave.config.inputs import (
    DataTensor,
    DictOf,
    FileTensor,
    InputSpec,
    InputsSpec,
    ListOf,
    PlainValue,
    RandomTensor,
)
from ptsave.config.model import ConfigPlace
from ptsave.core.address import Location, beside
from ptsave.core.dtypes import BY_NAME
from ptsave.core.names import hint_for
from ptsave.core.nodes import TensorEntry
from ptsave.core.tree import dotted, items_of, walk
from ptsave.errors import UsageError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.npz.write import write as write_npz
from ptsave.formats.safetensors.write import write as write_safetensors
from ptsave.models.build import plain_value
from ptsave.models.weights.live import checkpoint_of
from ptsave.models.weights.tensors import read_tensors as read_entries
from ptsave.storage.opening import check_file_destination, write_file
from ptsave.storage.scan import tensor_digest

UNNAMED = "arr_0"
"""What NumPy calls the first array that was given no name; a `.npy` file's only one goes by it too."""
MAX_OUTPUT_DEPTH = 50
MAX_INLINE = 20_000
"""How many numbers of an inputs file a behaviour record takes in."""


@dataclass(frozen=True)
class Arguments:
    """What forward() is called with."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def call(self, model: nn.Module) -> Any:
        """One forward pass, as the model stands."""
        return model(*self.args, **self.kwargs)


def make_inputs(spec: InputsSpec, model: nn.Module, device: str | torch.device = "cpu") -> Arguments:
    """The arguments that `spec` describes, on `device`; the numbers do not depend on the device.

    Those that only a record vouches for are tried first (one more forward pass; not where ranks share it).

    Raises: UsageError when forward() does not take them, or a file lacks them; LimitError where `model` would
    compute more of recorded ones than memory is meant for; what reading a file raises.
    """
    file = beside(spec.folder, spec.file) if spec.file is not None else None
    return _make_all(spec, file, model, device)


def inputs_from_file(path: Location, model: nn.Module, device: str | torch.device = "cpu") -> Arguments:
    """The tensors of a file as arguments, matched to forward()'s by name.

    Names such as NumPy gives to arrays without one (`arr_0`, `arr_1`) are matched by position.

    Raises: UsageError when forward() does not take them; what reading a file raises.
    """
    return _make_all(InputsSpec(), path, model, device)


def _make_all(
    spec: InputsSpec, file: Location | None, model: nn.Module, device: str | torch.device
) -> Arguments:
    """The arguments that `spec` describes, and those that are the tensors of `file`."""
    args = [_make(item, str(i), spec, spec.place / i, device) for i, item in enumerate(spec.positional)]
    kwargs = {name: _make(item, name, spec, spec.place / name, device) for name, item in spec.named.items()}
    place = spec.place
    if file is not None:
        place = ConfigPlace(str(file))
        for name, tensor in read_tensors(file, device).items():
            if name in kwargs:
                raise spec.place.error(f"{name!r} is both in {file} and in a table", "leave one of them out")
            kwargs[name] = tensor
    arguments = _fitted(model, args, kwargs, place)
    if spec.is_recorded and not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        from ptsave.models.behaviour.activations import check_activations  # runs the model on Arguments

        check_activations(model, arguments)
    return arguments


def inline_inputs(spec: InputsSpec, arguments: Arguments) -> InputsSpec:
    """`spec` for a record, which names no files: with the numbers themselves where there are at most
    MAX_INLINE of them, else with their digests, by which the same files are known again."""
    if not spec.needs_files:
        return spec
    tensors = output_tensors((arguments.args, arguments.kwargs)).values()
    if sum(t.numel() for t in tensors) > MAX_INLINE or any(t.is_complex() for t in tensors):
        return InputsSpec(digests=digests_of_arguments(arguments), place=spec.place)
    return InputsSpec(
        tuple(_inline(value) for value in arguments.args),
        {name: _inline(value) for name, value in arguments.kwargs.items()},
        place=spec.place,
    )


def digests_of_arguments(arguments: Arguments) -> dict[str, str]:
    """Path → digest of each tensor among the arguments."""
    found = {"positional": list(arguments.args), "named": dict(arguments.kwargs)}
    state = {path: tensor.cpu().contiguous() for path, tensor in output_tensors(found).items()}
    entries = checkpoint_of(state, Path()).tensors
    return {path: tensor_digest(entry) for path, entry in entries.items()}


def _inline(value: Any) -> InputSpec:
    if isinstance(value, Tensor):
        return DataTensor(value.tolist(), BY_NAME[str(value.dtype).removeprefix("torch.")])
    if isinstance(value, dict):
        return DictOf({key: _inline(item) for key, item in value.items()})
    if isinstance(value, (list, tuple)):
        return ListOf(tuple(_inline(item) for item in value))
    return PlainValue(value)


def _make(
    spec: InputSpec, stream: str, inputs: InputsSpec, place: ConfigPlace, device: str | torch.device
) -> Any:
    if isinstance(spec, ListOf):
        at = place / "list"
        return [_make(item, f"{stream}.{i}", inputs, at / i, device) for i, item in enumerate(spec.items)]
    if isinstance(spec, DictOf):
        at = place / "dict"
        items = spec.items.items()
        return {key: _make(item, f"{stream}.{key}", inputs, at / key, device) for key, item in items}
    if isinstance(spec, PlainValue):
        return plain_value(spec.value, place / "value")
    if isinstance(spec, FileTensor):
        return _pick(read_tensors(beside(inputs.folder, spec.file), device), spec, place)
    if isinstance(spec, DataTensor):
        return _from_data(spec, place).to(device)
    return random_tensor(spec, stream).to(device)


def random_tensor(spec: RandomTensor, stream: str) -> Tensor:
    """The tensor of `spec` on the CPU; `stream` (the input's name) keeps inputs of one seed apart.

    Floats narrower than 32 bits are float32 numbers rounded to nearest.
    """
    dtype = getattr(torch, spec.dtype.name)
    tensor = torch.from_numpy(generated(spec, stream))
    if spec.dtype.kind == "complex":
        tensor = torch.view_as_complex(tensor.reshape(-1, 2))
    return tensor.to(dtype).reshape(spec.shape)


def _from_data(spec: DataTensor, place: ConfigPlace) -> Tensor:
    try:
        if spec.dtype is None:
            return torch.tensor(spec.data)
        dtype = getattr(torch, spec.dtype.name)
        wide = {"float": torch.float64, "complex": torch.complex128}.get(spec.dtype.kind, dtype)
        return torch.tensor(spec.data, dtype=wide).to(dtype)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise (place / "data").error(
            f"the data cannot become a tensor: {error}", "check its numbers"
        ) from error


def _pick(tensors: dict[str, Tensor], spec: FileTensor, place: ConfigPlace) -> Tensor:
    if spec.key is None:
        if len(tensors) != 1:
            raise place.error(
                f"{spec.file} holds {len(tensors)} tensors", f"say which with key: {', '.join(tensors)}"
            )
        return next(iter(tensors.values()))
    if spec.key not in tensors:
        raise (place / "key").error(f"no {spec.key!r} in {spec.file}", hint_for(spec.key, tensors))
    return tensors[spec.key]


def _fitted(model: nn.Module, args: list[Any], kwargs: dict[str, Any], place: ConfigPlace) -> Arguments:
    """The arguments as forward()'s signature takes them.

    Raises: UsageError naming what it does not take, or lacks.
    """
    signature = inspect.signature(model.forward)
    parameters = signature.parameters.values()
    takes = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for name in sorted(
        (n for n in kwargs if _position(n) is not None and n not in takes), key=lambda n: _position(n) or 0
    ):
        args.append(kwargs.pop(name))
    positional_only = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    while positional_only[len(args) :] and positional_only[len(args)] in kwargs:
        args.append(kwargs.pop(positional_only[len(args)]))
    shown = f"forward{signature.replace(return_annotation=signature.empty)}"
    for name in kwargs:
        if name not in takes and not takes_any:
            raise (place / name).error(
                f"forward() takes no {name!r}", hint_for(name, takes, "arguments of forward()")
            )
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise place.error(f"the inputs do not fit forward(): {error}", f"the signature is {shown}") from error
    return Arguments(tuple(args), kwargs)


def _position(name: str) -> int | None:
    """The position that a name like `arr_1` stands for."""
    digits = name.removeprefix("arr_")
    return int(digits) if name.startswith("arr_") and digits.isdecimal() and len(digits) < 4 else None


def read_tensors(path: Location, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tensors of a file, whatever its format, by name; a lone one without a name is `arr_0`.

    Raises: UnreadableError; UsageError when the file holds no tensor.
    """
    with open_checkpoint(path) as checkpoint:
        if not checkpoint.tensors:
            raise UsageError("the file holds no tensors", str(path), "give a .safetensors, .npz or .npy file")
        tensors = {name: tensor.to(device) for name, tensor in read_entries(checkpoint.tensors)}
        if isinstance(checkpoint.root, TensorEntry):
            return {UNNAMED: next(iter(tensors.values()))}
        return tensors


def output_tensors(value: Any) -> dict[str, Tensor]:
    """Every tensor in what forward() returned, by its path: `logits`, `hidden_states.0`, `output`.

    Tuples, lists, mappings, dataclasses and named tuples are entered; None and text are passed over;
    bare numbers become tensors without dimensions.
    """
    tensors: dict[str, Tensor] = {}
    for path, node in walk(value, _held_by, once=False, max_depth=MAX_OUTPUT_DEPTH):
        if not isinstance(node, (Tensor, bool, int, float, complex)):
            continue
        name = first = dotted(path) or "output"
        n = 2
        while name in tensors:
            name, n = f"{first}~{n}", n + 1
        tensors[name] = node if isinstance(node, Tensor) else torch.tensor(node)
    return tensors


def _held_by(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    if is_dataclass(value) and not isinstance(value, (type, Mapping)):
        return [(entry.name, getattr(value, entry.name)) for entry in fields(value)]
    return items_of(value)


def write_tensors(path: Location, tensors: Mapping[str, Tensor], *, overwrite: bool = False) -> None:
    """Write named tensors as the suffix of `path` says: `.safetensors`, `.npz` or `.npy`.

    Raises: UsageError for another suffix, or what the format cannot hold; ExistsError; WriteError.
    """
    dense = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        elif tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        dense[name] = tensor.cpu().contiguous()
    _writer(path)(path, dense, overwrite)


def check_outputs(path: Location, *, overwrite: bool = False) -> None:
    """Whether `write_tensors` will be able to write `path`, asked before the work is done.

    Raises: UsageError, ExistsError, WriteError.
    """
    _writer(path)
    check_file_destination(path, overwrite=overwrite)


def _writer(path: Location) -> Callable[[Location, dict[str, Tensor], bool], None]:
    writers = {".safetensors": _write_safetensors, ".npz": _write_npz, ".npy": _write_npy}
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise UsageError(
            f"the suffix {path.suffix!r} does not say how to write tensors",
            str(path),
            "end the name in .safetensors, .npz or .npy",
        )
    return writer


def _write_safetensors(path: Location, tensors: dict[str, Tensor], overwrite: bool) -> None:
    # A tensor that was returned twice is written twice: ties are a matter of weights.
    checkpoint = checkpoint_of({name: tensor.clone() for name, tensor in tensors.items()}, path)
    write_safetensors(checkpoint, path, WriteOptions(overwrite=overwrite, record=False))


def _write_npz(path: Location, tensors: dict[str, Tensor], overwrite: bool) -> None:
    _check_numpy_has(tensors, path)
    write_npz(checkpoint_of(tensors, path), path, WriteOptions(overwrite=overwrite, record=False))


def _write_npy(path: Location, tensors: dict[str, Tensor], overwrite: bool) -> None:
    if len(tensors) != 1:
        raise UsageError(
            f"a .npy holds one tensor, and there are {len(tensors)}: {', '.join(tensors)}",
            str(path),
            "end the name in .npz or .safetensors",
        )
    _check_numpy_has(tensors, path)
    (tensor,) = tensors.values()
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, tensor.resolve_conj().resolve_neg().numpy(), allow_pickle=False)
    write_file(path, buffer.getvalue(), overwrite=overwrite)


def _check_numpy_has(tensors: Mapping[str, Tensor], path: Location) -> None:
    """Raise UsageError for a dtype that NumPy lacks."""
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        known = BY_NAME.get(dtype)
        if known is None or known.numpy is None:
            raise UsageError(
                f"NumPy has no {dtype}, the dtype of {name!r}", str(path), "end the name in .safetensors"
            )
