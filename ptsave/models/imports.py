"""Dotted paths → the objects they name. The only place that imports what a config or a record names."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch

from ptsave.config.model import ConfigPlace
from ptsave.core.names import hint_for, nearest
from ptsave.errors import Option, PtsaveError, UsageError
from ptsave.own_process import prints_to_stderr


class _FolderOfUsers(MetaPathFinder):
    """Finds the modules of a folder for the user's own code, and for nobody else's.

    What is imported by a file in the folder, or by its name in a config, is looked for there first, as Python
    does for a script. What ptsave, torch and other libraries import is not: a file of the folder that happens
    to be called as a library (or as one that a library would like to have) has been named by nobody.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None or name in sys.stdlib_module_names or not self._is_asked_by_user():
            return None
        return PathFinder.find_spec(name, [self.folder])

    def _is_asked_by_user(self) -> bool:
        """Whether the code that imports is this file, or lies in the folder and in no library within."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if frame is None:
            return False
        file = frame.f_code.co_filename
        if file == __file__:
            return True
        others = [entry for entry in sys.path if len(entry) > len(self.folder)]
        return _is_in(file, self.folder) and not any(_is_in(file, entry) for entry in (*others, _OURS))


_OURS = str(Path(__file__).parents[1])


def _is_in(file: str, folder: str) -> bool:
    return file.startswith(folder.rstrip(os.sep) + os.sep)


@cache
def _import_own() -> None:
    """Import what ptsave would import later, before any other code could be found under these names."""
    for name in ("xxhash", "blake3", "hashlib", "numpy", "isal.isal_zlib"):
        with contextlib.suppress(ImportError):  # blake3 need not be there, and then nothing takes its place
            importlib.import_module(name)


@contextlib.contextmanager
def in_front(app_dir: Path | None) -> Iterator[None]:
    """In the block, the user's code finds the modules of its folder. Everything is as before afterwards."""
    _import_own()
    finder = _FolderOfUsers(os.path.abspath(app_dir or ""))  # its own: another thread's may go first
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the user's code has its own way with it
            sys.meta_path.remove(finder)


@contextlib.contextmanager
def users_code(app_dir: Path | None, what: str, place: ConfigPlace) -> Iterator[None]:
    """Run code of the user's: it finds the modules of its folder, and a command has its prints on stderr.

    Raises: UsageError for what the code raises, with the place in the code that raised it; errors of
    ours pass.
    """
    try:
        with in_front(app_dir), prints_to_stderr():
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


def import_object(path: str, place: ConfigPlace, app_dir: Path | None = None) -> Any:
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


def _import_module(name: str, place: ConfigPlace, app_dir: Path | None) -> ModuleType | None:
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


def _attribute(module: ModuleType, names: list[str], place: ConfigPlace, app_dir: Path | None) -> Any:
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


def _no_module(name: str, place: ConfigPlace, app_dir: Path | None) -> UsageError:
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
        places = [os.path.abspath(app_dir or ""), *sys.path]
        siblings = [info.name for info in pkgutil.iter_modules(places)]
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
        else (
            "install it",
            Option("app_dir", lead=", or name the folder that it is in with ", tail=f" (now: {folder})"),
        ),
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
