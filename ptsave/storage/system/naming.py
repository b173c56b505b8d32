"""What a file may be called, how long a path may be, and how a file is renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

from ptsave.storage import system
from ptsave.storage.system.disk import again, is_unsupported

MAX_NAME_BYTES = 255
"""Of one file name, where the file system does not say."""
_IN_USE = (32, 1224)
"""Windows' ERROR_SHARING_VIOLATION and ERROR_USER_MAPPED_FILE. Source: Microsoft, "System Error Codes"."""
_DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{kind}{i}" for kind in ("COM", "LPT") for i in "123456789¹²³")}
_VERBATIM = "\\\\?\\"
_LONG_CHARS = 140
"""From what length on a path is given as it is: a temporary name beside it, or a name in it, adds some."""


def rename_new(source: Path, target: Path) -> None:
    """Give `source` the name `target`, which must be free. Where links exist, nothing can come between.

    Raises: FileExistsError when the name is taken; OSError.
    """
    if system.HAS_LINK:
        try:
            again(os.link, source, target, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError as error:
            if not is_unsupported(error) and error.errno not in (errno.EPERM, errno.EMLINK):
                raise
        else:
            if not os.path.lexists(target):
                raise OSError(errno.EIO, "the system reported a name that it did not make")
            with contextlib.suppress(OSError):  # left over, it is litter that the next write removes
                again(os.unlink, source)
            return
    if not system.IS_WINDOWS and os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    rename(source, target)  # on Windows this refuses by itself to replace a file


def rename(source: Path, target: Path, *, replace: bool = False) -> None:
    """Give `source` the name `target`, and see that it was done: a file that kept its old name is lost.

    Raises: OSError.
    """
    again(os.replace if replace else os.rename, source, target)
    if os.path.lexists(source):
        raise OSError(errno.EIO, "the system reported a renaming that it did not do")


def max_name_bytes(folder: Path) -> int:
    """How long one name in `folder` may be."""
    if sys.platform == "win32":
        return MAX_NAME_BYTES
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):
        return MAX_NAME_BYTES


def why_not_a_name(name: str) -> str:
    """Why no file can be called `name` on this platform, in words; empty where one can."""
    return refused_by_windows(name) if system.IS_WINDOWS else ""


def refused_by_windows(name: str) -> str:
    """Why no file on Windows can be called `name`, in words; empty where one can.

    A colon would write into a stream of another file, and a device's name into the device.

    Source: Microsoft, "Naming Files, Paths, and Namespaces".
    """
    if found := next((letter for letter in name if letter in '<>:"/\\|?*' or ord(letter) < 32), ""):
        return f"Windows allows no {found!r} in a name"
    if name.endswith((".", " ")):
        return "Windows drops a dot or a space at the end of a name"
    if name.partition(".")[0].rstrip(" ").upper() in _DEVICES:
        return f"Windows keeps the name {name.partition('.')[0]!r} for a device"
    return ""


def reachable(path: Path) -> Path:
    r"""`path` in the form in which the system takes any length: on Windows `\\?\C:\…` where it is long.

    Without that Windows takes 259 characters, unless it was told otherwise.

    Source: Microsoft, "Maximum Path Length Limitation".
    """
    if not system.IS_WINDOWS:
        return path
    text = os.path.abspath(path)
    if len(text) < _LONG_CHARS or text.startswith(_VERBATIM):
        return path
    return Path(f"{_VERBATIM}UNC{text[1:]}" if text.startswith("\\\\") else f"{_VERBATIM}{text}")


def is_in_use(path: Path) -> bool:
    """Whether a process has the file open so that nobody can replace or remove it, which only Windows has.

    It is asked by renaming the file to the name that it has.
    """
    if not system.IS_WINDOWS:
        return False
    try:
        os.rename(path, path)
    except OSError as error:
        return means_in_use(error)
    return False


def means_in_use(error: OSError) -> bool:
    """Whether the system says that a process has the file open or mapped; only Windows refuses for that."""
    return getattr(error, "winerror", 0) in _IN_USE
