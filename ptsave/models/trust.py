"""What a checkpoint's record may have imported and called, once the user trusts it.

A config is the user's own and may name anything. A record came with the file: nothing that it names is
imported before the user trusts that name. Of what was imported only this is called: a class of modules or of
config objects, and a function that returns one. A class, or a function's annotation, tells before the call; a
function that does not say what it returns, or a plain class, has to be named by the user. What comes back is
checked in any case.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import enum
import inspect
import sys
import types
import typing
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import get_overridable_functions

from ptsave.config.model import ConfigPlace, ModelSpec, NamedCode
from ptsave.errors import Option, UnsafeError

ALL = ("*",)
"""What `--trust-recorded` without a pattern trusts: everything that says what it returns."""
MAX_LISTED = 8
_CONTAINERS = (dict, list, tuple, set, frozenset, collections.OrderedDict, types.SimpleNamespace)
_PLAIN = (*_CONTAINERS, argparse.Namespace, str, int, float, complex, bool, bytes, type(None))
"""The classes of the standard library that hold data and do nothing."""
_VALUES = (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)
_HINT = ("name a config of your own with ", Option("config", "CONFIG"), ", which may build anything")


def listed(named: Collection[NamedCode]) -> str:
    """Every name and what is done with it, for a person: `'pkg.Net' (called, model.class)`."""
    by_path: dict[str, str] = {}
    for code in named:
        by_path.setdefault(code.path, f"{code.path!r} ({code.use}, {code.where})")
    lines = list(by_path.values())
    more = (
        f" and {len(lines) - MAX_LISTED} more, which `ptsave inspect` lists"
        if len(lines) > MAX_LISTED
        else ""
    )
    return ", ".join(lines[:MAX_LISTED]) + more


def check_names(spec: ModelSpec) -> None:
    """Check, before anything is imported, that all that `spec` names is trusted.

    Raises: UnsafeError naming everything that is not.
    """
    if spec.trusted is None:
        return
    named = list(spec.named_code)
    if left := [code for code in named if not _is_trusted(code.path, spec.trusted)]:
        option = Option("trust_recorded", True)
        what = ("its record names what ", option, f" does not cover: {listed(left)}")
        raise UnsafeError(
            what, spec.place.file, (Option("trust_recorded", left[0].path), " trusts it too; or ", *_HINT)
        )
    for code in named:
        module = code.path.replace(":", ".").split(".")[0]
        if module in sys.stdlib_module_names and _plain_of(code.path) is None:
            raise _refused(code.path, "is of the standard library, which has no models", spec.place.file)


def check_import(path: str, value: Any, spec: ModelSpec, place: ConfigPlace) -> None:
    """Check what a record's name led to, where it is to be passed on or called.

    Raises: UnsafeError.
    """
    if spec.trusted is None or isinstance(value, (nn.Module, enum.Enum, *_VALUES, *_PLAIN)):
        return
    is_named = _is_named(path, spec.trusted)
    if isinstance(value, type):
        if _makes_plain_things(value) or (is_named and not _is_of_python(value)):
            return
        why = "is a class neither of modules nor of config objects"
    elif _is_tensor_function(value) and place.keys[-1] == "_import_":
        return
    elif (function := _function_of(value)) is not None:
        if _is_of_python(function):
            why = "is a function of the standard library"
        elif is_named or _returns_plain_things(function):
            return
        else:
            why = "is a function that does not say what it returns"
    else:
        why = f"is a {type(value).__name__}, neither a class nor a function"
    known: tuple[str | Option, ...] = (
        () if is_named else ("; if you know it: ", Option("trust_recorded", path))
    )
    raise _refused(path, why, str(place), known)


def check_result(path: str, result: Any, spec: ModelSpec, place: ConfigPlace) -> None:
    """Check what a call that a record asked for gave back.

    Raises: UnsafeError.
    """
    if spec.trusted is None or isinstance(result, (nn.Module, enum.Enum, *_VALUES, *_PLAIN)):
        return
    kind = type(result)
    if _makes_plain_things(kind) or (_is_named(path, spec.trusted) and not _is_of_python(kind)):
        return
    why = f"gave a {kind.__module__}.{kind.__qualname__}, neither a module nor a config object nor a dtype"
    raise _refused(path, why, str(place))


def _refused(path: str, why: str, where: str, more: tuple[str | Option, ...] = ()) -> UnsafeError:
    return UnsafeError(f"the record names {path!r}, which {why}", where, (*_HINT, *more))


def _is_trusted(path: str, globs: Collection[str]) -> bool:
    return any(fnmatchcase(path.replace(":", "."), glob.replace(":", ".")) for glob in globs)


def _is_named(path: str, globs: Collection[str]) -> bool:
    """Whether the user has named it, or the module that it is in: not just everything."""
    return _is_trusted(path, [glob for glob in globs if glob not in ALL])


def _plain_of(path: str) -> type | None:
    name = path.replace(":", ".")
    return next((kind for kind in _PLAIN if f"{kind.__module__}.{kind.__qualname__}" == name), None)


def _makes_plain_things(kind: type) -> bool:
    """Whether instances are modules, config objects or plain values, as far as the class tells."""
    if kind in _PLAIN or issubclass(kind, (nn.Module, enum.Enum, *_VALUES)):
        return True
    if _is_of_python(kind):
        return False
    return (
        dataclasses.is_dataclass(kind)
        or issubclass(kind, Mapping)
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
        or hasattr(kind, "__attrs_attrs__")
        or hasattr(kind, "__pydantic_fields__")
        or (callable(getattr(kind, "to_dict", None)) and callable(getattr(kind, "from_dict", None)))
    )


def _is_of_python(value: Any) -> bool:
    """Whether a class or a function is the standard library's, wherever it was found."""
    modules = {getattr(value, "__module__", None), getattr(value, "__globals__", {}).get("__name__")}
    return any(str(module).split(".")[0] in sys.stdlib_module_names for module in modules if module)


def _function_of(value: Any) -> types.FunctionType | None:
    """The function written in Python behind a function or a bound method."""
    function = value.__func__ if isinstance(value, types.MethodType) else value
    return function if isinstance(function, types.FunctionType) else None


def _is_tensor_function(value: Any) -> bool:
    """Whether it is one of torch's own functions of tensors (an activation)."""
    try:
        return value in _tensor_functions()
    except TypeError:  # not hashable
        return False


@cache
def _tensor_functions() -> frozenset[Any]:
    overridable = get_overridable_functions()
    return frozenset(function for owner in (torch, nn.functional) for function in overridable.get(owner, ()))


def _returns_plain_things(function: types.FunctionType) -> bool:
    """Whether its annotation says that it returns a module or a config object."""
    try:
        annotation = typing.get_type_hints(inspect.unwrap(function)).get("return")
    except Exception:  # an annotation is code of its author's, and may name what is not there
        return False
    return isinstance(annotation, type) and _makes_plain_things(annotation) and annotation not in _PLAIN
