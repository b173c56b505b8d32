"""Dotted paths → the objects they name. The only place that imports what a config or a record names."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ptsave.core.nearest import hint_for, nearest
from ptsave.errors import PtsaveError, UsageError
from ptsave.specs import Place


@contextlib.contextmanager
def users_code(app_dir: Path | None, what: str, place: Place) -> Iterator[None]:
    """Run code of the user's: its folder comes first on sys.path, and its prints go to stderr.

    Raises: UsageError for what the code raises, with the place in the code that raised it; errors of
    ours pass.
    """
    folder = str((app_dir or Path()).absolute())
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except PtsaveError:
        raise
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        raise UsageError(
            f"{what} raised {type(error).__name__}{': ' + text if text else ''}",
            str(place),
            _location(error),
        ) from error


def import_object(path: str, place: Place, app_dir: Path | None = None) -> Any:
    """What `pkg.mod.Name`, `pkg.mod:Name` or `pkg.mod:Outer.Inner` names.

    Raises: UsageError when a module or a name is not there (with the nearest), or importing it fails.
    """
    module_path, colon, names = path.partition(":")
    if colon:
        module = _import_module(module_path, place, app_dir)
        if module is None:
            raise _no_module(module_path, place, app_dir)
        return _attribute(module, names.split("."), place, app_dir)
    parts = path.split(".")
    for i in range(len(parts) - 1, 0, -1):
        if (module := _import_module(".".join(parts[:i]), place, app_dir)) is not None:
            return _attribute(module, parts[i:], place, app_dir)
    raise _no_module(".".join(parts[:-1]), place, app_dir)


def _import_module(name: str, place: Place, app_dir: Path | None) -> ModuleType | None:
    """The module, or None when it (or a package that it is in) does not exist."""
    importlib.invalidate_caches()
    with users_code(app_dir, f"importing {name}", place):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            # A module that exists but itself imports a missing one is another matter.
            if error.name is not None and f"{name}.".startswith(f"{error.name}."):
                return None
            raise
    raise AssertionError("unreachable")  # users_code never swallows


def _attribute(module: ModuleType, names: list[str], place: Place, app_dir: Path | None) -> Any:
    value: Any = module
    for name in names:
        inner = getattr(value, name, None)
        if inner is None and isinstance(value, ModuleType) and hasattr(value, "__path__"):
            inner = _import_module(f"{value.__name__}.{name}", place, app_dir)
        if inner is None and not hasattr(value, name):
            owner = getattr(value, "__name__", type(value).__name__)
            public = [other for other in dir(value) if not other.startswith("_")]
            if isinstance(value, ModuleType) and hasattr(value, "__path__"):
                public += [info.name for info in pkgutil.iter_modules(value.__path__)]
            raise place.error(f"{owner!r} has no {name!r}", hint_for(name, public, f"names in {owner}"))
        value = inner
    return value


def _no_module(name: str, place: Place, app_dir: Path | None) -> UsageError:
    """The error for a module that is not there, naming the first part that is missing."""
    parts = name.split(".")
    parent: ModuleType | None = None
    missing = 0
    for missing in range(len(parts)):
        module = _import_module(".".join(parts[: missing + 1]), place, app_dir)
        if module is None:
            break
        parent = module
    if parent is None:
        siblings = [info.name for info in pkgutil.iter_modules()]
    else:
        siblings = [info.name for info in pkgutil.iter_modules(getattr(parent, "__path__", []))]
    full = ".".join(parts[: missing + 1])
    match = nearest(parts[missing], siblings)
    prefix = ".".join([*parts[:missing], ""])
    folder = str(app_dir) if app_dir is not None and app_dir != Path() else "the current folder"
    return place.error(
        f"there is no module {full!r}",
        f"did you mean {prefix + match!r}?"
        if match
        else f"install it, or name the folder that it is in with --app-dir (now: {folder})",
    )


def _location(error: BaseException) -> str:
    """Where the user's own code raised `error`: the innermost frame outside of torch and the library."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"see {error.filename}:{error.lineno}"
    library = sysconfig.get_path("stdlib")
    others = (str(Path(__file__).parent), str(Path(torch.__file__).parent), "<frozen")
    candidates = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(others)
        and (not frame.filename.startswith(library) or "-packages" in frame.filename)
    ]
    if not candidates:
        return "PTSAVE_DEBUG=1 shows the traceback"
    frame = candidates[-1]
    return f"raised at {frame.filename}:{frame.lineno} in {frame.name}; PTSAVE_DEBUG=1 shows the traceback"


def import_path(value: Any) -> str | None:
    """The dotted path that leads back to a class or function, or None where none does.

    A class made inside a function, in `__main__` or at a prompt has none.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not module or not name or module == "__main__" or "<locals>" in name:
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not value:
        return None
    return f"{module}.{name}" if "." not in name else f"{module}:{name}"
