"""An emulation of Windows as a Python program sees it.

`python -m tests.windows.machine [--with LIBRARIES] SCRIPT|-m MODULE ARGUMENTS` runs something on it.

No Windows machine is needed, and nothing here proves what a real one does. Below is a module `nt` (see
`calls`); `os`, `ntpath`, `pathlib`, `shutil`, `tempfile` and `zipfile` are Python's own files, loaded once
more above it. ptsave and the script get these, a `sys.platform` that is `win32`, and no `fcntl`. Libraries
that are made for Linux (torch, NumPy, ctypes) keep Linux's, and are loaded before.
"""

from __future__ import annotations

import atexit
import builtins
import importlib
import io
import mmap
import os
import runpy
import signal
import sys
import types
from collections.abc import Callable, Sequence
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from typing import Any

from tests.windows.calls import O_BINARY, host, nt_module, nt_open, refuse, remove_closed_temporaries

PRELOADED = ("ctypes", "inspect", "multiprocessing.heap", "numpy", "rich.console", "socket", "subprocess")
"""Loaded as Linux has them: what goes to the system by itself."""
NT_LIBRARIES = "os ntpath genericpath fnmatch pathlib glob random tempfile shutil tarfile zipfile typer"
"""Loaded again above `nt`, in this order."""
OURS = ("ptsave", "typer", "__main__")
"""Whose imports are Windows'."""
ABSENT = ("fcntl", "grp", "posix", "pwd", "resource", "syslog", "termios", "tty")


def opener(path: Any, flags: int) -> int:
    """What stands below Python's files: bytes as they are, whatever the file is for."""
    return nt_open(path, flags | O_BINARY)


class FileIO(io.FileIO):
    """Opens by `nt_open`."""

    def __init__(self, file: Any, mode: str = "r", closefd: bool = True, opener: Any = opener) -> None:
        super().__init__(file, mode, closefd, opener if not isinstance(file, int) else None)


def open_as_nt(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    own_opener: Any = None,
    **named: Any,
) -> Any:
    """`open`: texts are cp1252 unless something else is said, and lines end in two bytes."""
    own_opener = named.pop("opener", own_opener)
    is_text = "b" not in mode
    if is_text and encoding in (None, "locale"):
        encoding = "cp1252"
    if is_text and newline is None and "r" not in mode:
        newline = "\r\n"
    given = own_opener if own_opener is not None or isinstance(file, int) else opener
    return _open(file, mode, buffering, encoding, errors, newline, closefd, given)


_open = io.open


def open_by_caller(file: Any, *rest: Any, **named: Any) -> Any:
    """`open` of Windows for whoever is on Windows, and for its paths; Linux's for Linux's libraries."""
    is_path = isinstance(file, (str, bytes)) or hasattr(file, "__fspath__")
    text = os.fsdecode(file) if is_path else ""
    if is_ours(sys._getframe(1).f_globals) or "\\" in text:
        return open_as_nt(file, *rest, **named)
    return _open(file, *rest, **named)


class Mapping(mmap.mmap):
    """`mmap.mmap` with Windows' parameters."""

    def __new__(
        cls, fileno: int, length: int, tagname: str | None = None, access: int = 0, offset: int = 0
    ) -> Mapping:
        if offset % 65536:
            refuse(1224, None)
        return super().__new__(cls, fileno, length, access=access or mmap.ACCESS_WRITE, offset=offset)


class WindowsSys(types.ModuleType):
    """`sys`, but for its platform; what is set is set in Python's own."""

    def __getattribute__(self, name: str) -> Any:
        return "win32" if name == "platform" else getattr(sys, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(sys, name, value)


SIGBREAK = 21
"""Ctrl+Break. Nothing sends it here."""
_handlers: dict[int, Any] = {SIGBREAK: signal.SIG_DFL}


def set_signal(number: int, handler: Any) -> Any:
    """`signal.signal` for the few that Windows has."""
    names = ("SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM")
    if number in _handlers:
        before, _handlers[number] = _handlers[number], handler
        return before
    if number not in [getattr(signal, name) for name in names]:
        raise ValueError("invalid signal value")
    return signal.signal(number, handler)


def get_signal(number: int) -> Any:
    """`signal.getsignal`."""
    return _handlers[number] if number in _handlers else signal.getsignal(number)


def without(module: types.ModuleType, prefixes: Sequence[str], **instead: Any) -> types.ModuleType:
    """A copy of `module` less the names that begin so, and with others."""
    copy = types.ModuleType(module.__name__)
    kept = {name: value for name, value in vars(module).items() if not name.startswith(tuple(prefixes))}
    vars(copy).update(kept | instead)
    return copy


POSIX_SIGNALS = (
    "SIGALRM SIGBUS SIGCHLD SIGCLD SIGCONT SIGHUP SIGIO SIGPIPE SIGPOLL SIGPROF SIGPWR SIGQUIT SIGRT "
    "SIGSTKFLT SIGSTOP SIGSYS SIGTRAP SIGTSTP SIGTT SIGURG SIGUSR SIGVTALRM SIGWINCH SIGXCPU SIGXFSZ "
    "SIGKILL SIG_BLOCK SIG_SETMASK SIG_UNBLOCK pthread_ sigwait sigtimedwait sigpending alarm pause "
    "setitimer"
)
nt_libraries: dict[str, types.ModuleType] = {}
"""What ptsave gets when it imports these names."""


def is_ours(names: dict[str, Any] | None) -> bool:
    """Whether a module with these globals is on Windows."""
    if names is None:
        return False
    package = str(names.get("__name__", "")).partition(".")[0]
    return package in OURS or any(vars(module) is names for module in nt_libraries.values())


_import = builtins.__import__


def import_by_caller(
    name: str, names: Any = None, local: Any = None, fromlist: Any = (), level: int = 0
) -> Any:
    """`import`, which gives Windows' modules to whoever is on Windows."""
    if level == 0 and is_ours(names):
        if name in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name == "os.path":
            return nt_libraries["ntpath"] if fromlist else nt_libraries["os"]
        if name in nt_libraries and (name != "sys" or str(names["__name__"]).startswith("ptsave")):
            return nt_libraries[name]
    return _import(name, names, local, fromlist, level)


def find_in_nt_folder(path: str) -> FileFinder:
    """What imports from a folder of `sys.path` that is Windows'."""
    if "\\" not in path:
        raise ImportError("Linux's")
    return FileFinder(host(path), (SourceFileLoader, SOURCE_SUFFIXES))


OPENERS = (("torch._C", "PyTorchFileReader"),)
"""What opens a path by itself: it gets Linux's."""
ONNXRUNTIME = "ptsave.verbs.programs.onnx_process"
"""Where onnxruntime is started in another process, which is on Linux."""


DCP_FILES = "torch.distributed.checkpoint.filesystem"
"""Where torch itself writes and reads DCP folders, in Python: by Windows' calls."""


def with_host_path(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, whose first argument may be one of Windows' paths."""

    def called(path: Any, *rest: Any, **named: Any) -> Any:
        is_windows = isinstance(path, (str, nt_libraries["pathlib"].PurePath)) and "\\" in str(path)
        return call(host(path) if is_windows else path, *rest, **named)

    return called


def begin(libraries: Sequence[str] = ()) -> None:
    """Make this process one on Windows, with libraries that are Linux's."""
    for name in (*PRELOADED, *libraries):
        importlib.import_module(name)
    for name, opener_name in OPENERS:
        if (module := sys.modules.get(name)) is not None:
            setattr(module, opener_name, with_host_path(getattr(module, opener_name)))
    nt_libraries["nt"] = nt_module()
    kept = {name: sys.modules.pop(name, None) for name in (*NT_LIBRARIES.split(), "os.path")}
    kept |= {name: sys.modules.pop(name) for name in [*sys.modules] if name.startswith("typer.")}
    sys.modules["nt"] = nt_libraries["nt"]
    real_names = sys.builtin_module_names
    sys.builtin_module_names = tuple("nt" if name == "posix" else name for name in real_names)
    for name in NT_LIBRARIES.split():
        nt_libraries[name] = importlib.import_module(name)
        nt_libraries.update({n: m for n, m in sys.modules.items() if n.startswith("typer.")})
    sys.builtin_module_names = real_names
    for name, module in kept.items():
        if module is not None:
            sys.modules[name] = module
    for name in ("PureWindowsPath", "WindowsPath"):  # pickle looks them up in the module that they name
        setattr(sys.modules["pathlib"], name, getattr(nt_libraries["pathlib"], name))
    if (module := sys.modules.get(DCP_FILES)) is not None:
        vars(module).update(os=nt_libraries["os"], Path=nt_libraries["pathlib"].Path)
    nt_libraries["sys"] = WindowsSys("sys")
    nt_libraries["io"] = without(io, (), open=open_as_nt, FileIO=FileIO)
    nt_libraries["mmap"] = without(
        mmap, ("MAP_", "PROT_", "MADV_"), mmap=Mapping, ALLOCATIONGRANULARITY=65536
    )
    nt_libraries["signal"] = without(
        signal,
        POSIX_SIGNALS.split(),
        signal=set_signal,
        getsignal=get_signal,
        SIGBREAK=SIGBREAK,
        CTRL_C_EVENT=0,
    )
    atexit.register(remove_closed_temporaries)
    sys.path_hooks.insert(0, find_in_nt_folder)
    io.open = builtins.open = open_by_caller
    builtins.__import__ = import_by_caller
    if "onnxruntime" in sys.modules:
        runtime: Any = importlib.import_module(ONNXRUNTIME)
        runtime.OnnxSession = with_host_path(runtime.OnnxSession)


def main() -> None:
    """Run a script or a module on the emulation."""
    words = sys.argv[1:]
    libraries = words[1].split(",") if words[0] == "--with" else []
    words = words[2:] if libraries else words
    begin(libraries)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
