"""ModelSpec → nn.Module."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ptsave.config.model import ConfigPlace, ModelSpec
from ptsave.core.names import nearest
from ptsave.errors import Option, UsageError
from ptsave.models.imports import import_object, users_code
from ptsave.models.seeding import seeded
from ptsave.models.skeleton import build_skeleton
from ptsave.models.trust import check_import, check_names, check_result

MAX_SIGNATURE_CHARS = 300


def build_model(
    spec: ModelSpec, *, device: str = "cpu", app_dir: Path | None = None, seed: int | None = None
) -> nn.Module:
    """Import what `spec` names and call it.

    On `meta`, parameters have no memory; what is not in the state dict is real, on the CPU. A model that
    cannot be built so (it computes with its weights, or is a factory's) is real altogether: its tensors
    are not on the meta device, and are to be written over in place. On any other device the model is
    built on the CPU, so that `seed` gives the same weights everywhere, and moved.

    What a record names is imported where it is trusted, and called where it makes modules or config objects.

    Raises: UsageError when the target is not there, rejects its arguments, raises, or is not a module;
    UnsafeError for what a record names and is not trusted.
    """
    target = resolve_device(device)
    check_names(spec)
    key = spec.place / ("factory" if spec.is_factory else "class")
    with seeded(seed):  # a module may make random tensors when it is imported
        build = import_object(spec.target, key, app_dir)
    if isinstance(build, nn.Module):
        raise key.error(
            f"{spec.target!r} is a module that was built at import",
            f"name its class, {type(build).__module__}.{type(build).__qualname__}, or a function",
        )
    if isinstance(build, ModuleType) or not callable(build):
        kind = "a module" if isinstance(build, ModuleType) else f"a {type(build).__name__}"
        raise key.error(f"{spec.target!r} is {kind}, not a class or a function", "name what to call")
    check_import(spec.target, build, spec, key)
    builder = _Builder(spec, app_dir)

    def construct() -> Any:
        with seeded(seed):
            args, kwargs = builder.arguments(spec.args, spec.place / "args")
            return _call(build, spec.target, args, kwargs, spec.place / "args", app_dir)

    if target.type == "meta" and not spec.is_factory and (skeleton := build_skeleton(construct)) is not None:
        return skeleton
    model = construct()
    if not isinstance(model, nn.Module):
        raise key.error(
            f"{spec.target!r} gave a {type(model).__module__}.{type(model).__qualname__}, not a module",
            "name a class derived from torch.nn.Module, or a function that returns one",
        )
    return model if target.type == "meta" else model.to(target)


def check_device(name: str) -> None:
    """Insist that `name` is a device that is there and on which a model has numbers.

    Raises: UsageError.
    """
    if resolve_device(name).type == "meta":
        what = "the device meta holds no numbers, so there would be nothing to load"
        raise UsageError(what, Option("device", name), Option("device", "cpu"))


def resolve_device(name: str) -> torch.device:
    """The device of that name, once it is known to be there.

    Raises: UsageError.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except Exception as error:  # each backend has its own way to say that it is not there
        reason = str(error).partition("\n")[0]
        where, hint = Option("device", name), Option("device", "cpu")
        raise UsageError(f"cannot use this device: {reason}", where, hint) from error
    return device


@dataclass(frozen=True)
class _Builder:
    """Makes the values of a spec, with the objects that it names imported and built."""

    spec: ModelSpec
    app_dir: Path | None

    def arguments(self, table: Mapping[str, Any], place: ConfigPlace) -> tuple[list[Any], dict[str, Any]]:
        """The positional and the keyword arguments that a table stands for."""
        args = [self.value(item, place / "_args_" / i) for i, item in enumerate(table.get("_args_", ()))]
        kwargs = {
            key: self.value(value, place / key)
            for key, value in table.items()
            if key not in ("_target_", "_args_", "_partial_")
        }
        return args, kwargs

    def value(self, value: Any, place: ConfigPlace) -> Any:
        """One value.

        Raises: UsageError, UnsafeError.
        """
        if isinstance(value, list):
            return [self.value(item, place / i) for i, item in enumerate(value)]
        if not isinstance(value, Mapping):
            return value
        if "_import_" in value:
            return self._imported(value["_import_"], place / "_import_")
        if "_target_" in value:
            return self._built(value, place)
        if value.keys() & {"_dtype_", "_float_"}:
            return plain_value(value, place)
        return {key: self.value(item, place / key) for key, item in value.items()}

    def _imported(self, path: str, place: ConfigPlace) -> Any:
        value = import_object(path, place, self.app_dir)
        check_import(path, value, self.spec, place)
        return value

    def _built(self, table: Mapping[str, Any], place: ConfigPlace) -> Any:
        path = table["_target_"]
        target = self._imported(path, place / "_target_")
        if not callable(target):
            raise (place / "_target_").error(
                f"{path!r} is a {type(target).__name__}, not a class or a function",
                f'the thing itself, not called, is {{_import_ = "{path}"}}',
            )
        args, kwargs = self.arguments(table, place)
        if table.get("_partial_", False):
            return functools.partial(target, *args, **kwargs)
        result = _call(target, path, args, kwargs, place, self.app_dir)
        check_result(path, result, self.spec, place)
        return result


def plain_value(value: Any, place: ConfigPlace) -> Any:
    """One value that names no code, with dtypes and numbers that are not finite put in.

    Raises: UsageError.
    """
    if isinstance(value, list):
        return [plain_value(item, place / i) for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if "_dtype_" in value:
        return _dtype(value["_dtype_"], place / "_dtype_")
    if "_float_" in value:
        return float(value["_float_"])
    return {key: plain_value(item, place / key) for key, item in value.items()}


def _dtype(name: str, place: ConfigPlace) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise place.error(f"torch {torch.__version__} has no dtype {name!r}", "use another, or a newer torch")
    return dtype


def _call(
    target: Callable[..., Any],
    path: str,
    args: list[Any],
    kwargs: dict[str, Any],
    place: ConfigPlace,
    app_dir: Path | None,
) -> Any:
    """`target(*args, **kwargs)`.

    Raises: UsageError when the signature does not take the arguments, or the call raises.
    """
    _check_signature(target, path, args, kwargs, place)
    with users_code(app_dir, path, place):
        return target(*args, **kwargs)


def _check_signature(
    target: Callable[..., Any], path: str, args: list[Any], kwargs: dict[str, Any], place: ConfigPlace
) -> None:
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return  # written in C without a signature: the call itself will tell
    parameters = signature.parameters.values()
    takes = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    name = path.replace(":", ".").rpartition(".")[2]
    shown = f"{name}{signature.replace(return_annotation=signature.empty)}"
    if len(shown) > MAX_SIGNATURE_CHARS:
        shown = f"{name}({', '.join(takes)})"
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in kwargs:
            if key not in takes:
                near = nearest(key, [other for other in takes if other not in kwargs])
                raise (place / key).error(
                    f"{name} got an unexpected keyword argument {key!r}",
                    f"did you mean {near!r}? The signature is {shown}"
                    if near
                    else f"the signature is {shown}",
                )
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise place.error(f"{name} rejects its arguments: {error}", f"the signature is {shown}") from error
