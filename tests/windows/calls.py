"""Windows' module `nt` above Linux's calls: its names, its paths, and what it refuses.

What is open or mapped is asked of Linux (`/proc`), of all processes: Python opens files on Windows so that
others may read and write, but not rename, replace or remove them (no FILE_SHARE_DELETE). Drive C: is Linux's
`/`; there is no other drive.

Source: Microsoft's "Naming Files, Paths, and Namespaces", CreateFileW, MoveFileExW and system error codes;
CPython's posixmodule.c, `PC/errmap.h`, and `_open` of the C run-time library.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ntpath
import os
import posix
import signal
import stat
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

MAX_PATH = 260
"""Characters of a path, with the NUL at its end, where the system was not told to allow more."""
MAX_FOLDER = 248
"""Of a new folder, in which a file of 12 characters must have room."""
DEVICES = {"CON", "PRN", "AUX", "NUL", *(f"{kind}{i}" for kind in ("COM", "LPT") for i in "123456789¹²³")}
VERBATIM = "\\\\?\\"
SHARE = r"\\server\share"
SHARED = os.environ.get("EMULATED_SHARE", "")
"""Linux's folder that is shared under that name by another machine; empty where none is."""
O_BINARY, O_TEXT, O_TEMPORARY, O_NOINHERIT = 0x8000 << 16, 0x4000 << 16, 0x0040 << 16, 0x0080 << 16
"""Bits that Linux has no use for."""

WORDS = {
    2: (errno.ENOENT, "The system cannot find the file specified"),
    3: (errno.ENOENT, "The system cannot find the path specified"),
    5: (errno.EACCES, "Access is denied"),
    32: (
        errno.EACCES,
        "The process cannot access the file because it is being used by another process",
    ),
    53: (errno.ENOENT, "The network path was not found"),
    123: (errno.EINVAL, "The filename, directory name, or volume label syntax is incorrect"),
    145: (errno.ENOTEMPTY, "The directory is not empty"),
    183: (errno.EEXIST, "Cannot create a file when that file already exists"),
    267: (errno.ENOTDIR, "The directory name is invalid"),
    1224: (
        errno.EINVAL,
        "The requested operation cannot be performed on a file with a user-mapped section open",
    ),
    1314: (errno.EINVAL, "A required privilege is not held by the client"),
}
"""Windows' error → C's, and what Python says."""
CODES = {errno.ENOENT: 2, errno.EACCES: 5, errno.EEXIST: 183, errno.ENOTEMPTY: 145, errno.ENOTDIR: 267}


def refuse(code: int, path: object) -> NoReturn:
    """Raise what Python makes of Windows' error `code`."""
    number, words = WORDS[code]
    error: Any = OSError(number, words, path)
    error.winerror = code
    raise error


@contextlib.contextmanager
def errors_of(path: object) -> Iterator[None]:
    """Give Linux's errors Windows' numbers, and the path as the caller spelled it."""
    try:
        yield
    except OSError as error:
        if not hasattr(error, "winerror"):
            found: Any = error
            found.winerror = CODES.get(error.errno or 0, 0)
            found.filename, found.filename2 = path, None
        raise


# --- names ------------------------------------------------------------------------------------------------


def host(path: Any, *, room: int = MAX_PATH) -> str:
    """Linux's path of Windows' `path`, where it is or would be; in the case of letters that is there."""
    remove_closed_temporaries()
    given = os.fspath(path)
    text = (os.fsdecode(given) if isinstance(given, bytes) else given).replace("/", "\\")
    if "\0" in text:
        raise ValueError("embedded null character")
    if not text:
        refuse(3, path)
    is_verbatim = text.startswith(VERBATIM)
    if text.upper() in ("\\\\.\\NUL", VERBATIM + "NUL"):
        return "/dev/null"
    text = text.removeprefix(VERBATIM)
    if is_verbatim and text.upper().startswith("UNC\\"):
        text = "\\" + text[3:]
    if text[1:2] == ":":
        drive, rest = text[0].upper(), text[2:]
        if drive != "C":
            refuse(3, path)
    elif text.startswith("\\\\"):
        server, name, *inside = [*text[2:].split("\\"), ""]
        if not SHARED or (server.upper(), name.upper()) != ("SERVER", "SHARE"):
            refuse(53, path)
        rest = "\\".join([SHARED.replace("/", "\\"), *inside])
    else:
        rest = text
    if not rest.startswith("\\"):
        rest = shown(posix.getcwd())[2:].rstrip("\\") + "\\" + rest
    if not is_verbatim and len("C:" + rest) >= room:
        refuse(3, path)
    steps: list[str] = []
    for step in rest.split("\\"):
        if step == ".." and not is_verbatim:
            del steps[-1:]
        elif step and (step != "." or is_verbatim):
            steps.append(step)
    at = ""
    for step in steps:
        name = step if is_verbatim else step.rstrip(" .")
        if not is_verbatim and name.split(".")[0].rstrip(" ").upper() in DEVICES:
            return "/dev/null"
        if not name or any(letter in '<>:"|?*' or ord(letter) < 32 for letter in name):
            refuse(123, path)
        at = f"{at}/{_as_it_is(at or '/', name)}"
    return at or "/"


def _as_it_is(folder: str, name: str) -> str:
    """How `name` is spelled in `folder`; names that differ in case alone are one."""
    try:
        posix.lstat(f"{folder}/{name}")
    except OSError:
        with contextlib.suppress(OSError):
            for found in posix.listdir(folder):
                if found.upper() == name.upper():
                    return found
    return name


def shown(path: str) -> str:
    """Windows' path of Linux's."""
    if SHARED and path.startswith(f"{SHARED}/"):
        return SHARE + path.removeprefix(SHARED).replace("/", "\\")
    return "C:" + path.replace("/", "\\")


def verbatim(text: str) -> str:
    """A whole path in the form that is taken as it is."""
    return f"{VERBATIM}UNC{text[1:]}" if text.startswith("\\\\") else VERBATIM + text


# --- what is open -----------------------------------------------------------------------------------------

_temporary: dict[tuple[int, int], str] = {}
"""Files that go when they are closed, which may be removed while they are open."""
_text: dict[int, tuple[int, int]] = {}
"""Descriptors that were opened without O_BINARY: a line's end is written as two bytes there."""


def identity(found: os.stat_result) -> tuple[int, int]:
    """What tells a file from others."""
    return found.st_dev, found.st_ino


def remove_closed_temporaries() -> None:
    """Do what Windows does when the last of a temporary file's handles is closed."""
    for wanted, path in [*_temporary.items()]:
        if not any(identity(found) == wanted for found in _open_here()):
            del _temporary[wanted]
            with contextlib.suppress(FileNotFoundError):
                posix.unlink(path)


def _open_here() -> Iterator[os.stat_result]:
    for fd in posix.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            yield posix.fstat(int(fd))


def is_open(path: str) -> bool:
    """Whether a process has the file `path` open, or a file in the folder of that name."""
    found = posix.stat(path)
    wanted, is_folder = identity(found), stat.S_ISDIR(found.st_mode)
    if wanted in _temporary:
        return False
    for process in filter(str.isdecimal, posix.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            for fd in posix.listdir(f"/proc/{process}/fd"):
                with contextlib.suppress(OSError):
                    link = f"/proc/{process}/fd/{fd}"
                    if identity(posix.stat(link)) == wanted:
                        return True
                    if is_folder and posix.readlink(link).startswith(path + "/"):
                        return True
    return False


def is_mapped(path: str) -> bool:
    """Whether a process has the bytes of `path` mapped."""
    found = posix.stat(path)
    for process in filter(str.isdecimal, posix.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{process}/maps", opener=posix.open) as maps:
            for line in maps:
                fields = line.split(maxsplit=5)
                if int(fields[4]) == found.st_ino and len(fields) > 5:
                    with contextlib.suppress(OSError):
                        if identity(posix.stat(fields[5].rstrip("\n"))) == identity(found):
                            return True
    return False


def is_read_only(path: str) -> bool:
    """Whether the file has the attribute of that name."""
    return not posix.lstat(path).st_mode & stat.S_IWUSR


# --- the calls --------------------------------------------------------------------------------------------


def nt_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: None = None) -> int:
    """CreateFileW by way of the C run-time library: sharing reads and writes, but not removal."""
    _no_dir_fd(dir_fd)
    with errors_of(path):
        real = host(path)
        is_there = True
        try:
            found = posix.stat(real)
        except FileNotFoundError:
            is_there = False
            if not flags & posix.O_CREAT and not os.path.isdir(os.path.dirname(real)):
                refuse(3, path)
        if is_there and not (flags & posix.O_CREAT and flags & posix.O_EXCL):
            if stat.S_ISDIR(found.st_mode):
                refuse(5, path)
            if flags & (posix.O_WRONLY | posix.O_RDWR) and is_read_only(real):
                refuse(5, path)
            if flags & posix.O_TRUNC and is_mapped(real):
                refuse(1224, path)
        own = O_BINARY | O_TEXT | O_TEMPORARY | O_NOINHERIT
        fd = posix.open(real, flags & ~own | posix.O_CLOEXEC, 0o666 if mode & stat.S_IWUSR else 0o444)
        _text.pop(fd, None)
        if not flags & O_BINARY:
            _text[fd] = identity(posix.fstat(fd))
        if flags & O_TEMPORARY:
            _temporary[identity(posix.fstat(fd))] = real
        return fd


def _is_text(fd: int) -> bool:
    return fd in _text and _text[fd] == identity(posix.fstat(fd))


def nt_read(fd: int, num_bytes: int) -> bytes:
    """Read; in text mode a line's end is one byte, and 26 ends the file."""
    data = posix.read(fd, num_bytes)
    return data.replace(b"\r\n", b"\n").partition(b"\x1a")[0] if _is_text(fd) else data


def nt_write(fd: int, data: Any) -> int:
    """Write; in text mode a line's end becomes two bytes."""
    if not _is_text(fd):
        return posix.write(fd, data)
    posix.write(fd, bytes(data).replace(b"\n", b"\r\n"))
    return len(data)


def nt_fsync(fd: int) -> None:
    """FlushFileBuffers, which wants a file that was opened for writing."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & posix.O_ACCMODE == posix.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    posix.fsync(fd)


def nt_ftruncate(fd: int, num_bytes: int) -> None:
    """Cut or lengthen; a file that is mapped cannot be cut."""
    if num_bytes < posix.fstat(fd).st_size and is_mapped(posix.readlink(f"/proc/self/fd/{fd}")):
        refuse(1224, None)
    posix.ftruncate(fd, num_bytes)


def nt_truncate(path: Any, num_bytes: int) -> None:
    """Cut or lengthen by name."""
    fd = nt_open(path, posix.O_WRONLY | O_BINARY)
    try:
        nt_ftruncate(fd, num_bytes)
    finally:
        posix.close(fd)


def nt_rename(source: Any, target: Any, *, src_dir_fd: None = None, dst_dir_fd: None = None) -> None:
    """MoveFileExW: what is there stays there."""
    _no_dir_fd(src_dir_fd, dst_dir_fd)
    _move(source, target, replace=False)


def nt_replace(source: Any, target: Any, *, src_dir_fd: None = None, dst_dir_fd: None = None) -> None:
    """MoveFileExW with MOVEFILE_REPLACE_EXISTING: a file that nobody has open, and no folder."""
    _no_dir_fd(src_dir_fd, dst_dir_fd)
    _move(source, target, replace=True)


def _move(source: Any, target: Any, *, replace: bool) -> None:
    with errors_of(source):
        old, new = host(source), host(target)
        found = posix.lstat(old)
        is_folder = stat.S_ISDIR(found.st_mode)
        if is_open(old):
            refuse(5 if is_folder else 32, source)
        if new == "/dev/null":
            refuse(183 if not replace else 5, target)
        with contextlib.suppress(FileNotFoundError):
            there = posix.lstat(new)
            if identity(there) != identity(found):
                if not replace:
                    refuse(183, target)
                if is_folder or stat.S_ISDIR(there.st_mode) or is_read_only(new):
                    refuse(5, target)
                if is_open(new) or is_mapped(new):
                    refuse(5, target)
        # a name that differs in case alone is the new one
        wanted = os.path.join(os.path.dirname(new), os.fspath(target).replace("/", "\\").rpartition("\\")[2])
        posix.rename(
            old, wanted if os.path.basename(new).upper() == os.path.basename(wanted).upper() else new
        )


def nt_unlink(path: Any, *, dir_fd: None = None) -> None:
    """DeleteFileW: of a file that nobody has open or mapped and that is not read-only."""
    _no_dir_fd(dir_fd)
    with errors_of(path):
        real = host(path)
        found = posix.lstat(real)
        if stat.S_ISDIR(found.st_mode) or is_read_only(real):
            refuse(5, path)
        if is_open(real):
            refuse(32, path)
        if is_mapped(real):
            refuse(5, path)
        posix.unlink(real)


def nt_rmdir(path: Any, *, dir_fd: None = None) -> None:
    """RemoveDirectoryW, not of the current folder."""
    _no_dir_fd(dir_fd)
    with errors_of(path):
        real = host(path)
        if posix.getcwd().startswith(real):
            refuse(32, path)
        posix.rmdir(real)


def nt_mkdir(path: Any, mode: int = 0o777, *, dir_fd: None = None) -> None:
    """CreateDirectoryW; the mode says nothing."""
    _no_dir_fd(dir_fd)
    with errors_of(path):
        posix.mkdir(host(path, room=MAX_FOLDER))


def nt_stat(path: Any, *, dir_fd: None = None, follow_symlinks: bool = True) -> os.stat_result:
    """Of a path, or of a descriptor."""
    _no_dir_fd(dir_fd)
    if isinstance(path, int):
        return posix.fstat(path)
    with errors_of(path):
        return posix.stat(host(path), follow_symlinks=follow_symlinks)


def nt_lstat(path: Any, *, dir_fd: None = None) -> os.stat_result:
    """Of a link itself."""
    return nt_stat(path, dir_fd=dir_fd, follow_symlinks=False)


def nt_access(path: Any, mode: int, **_: Any) -> bool:
    """Whether it is there, and no read-only file where writing is asked for: folders never are."""
    try:
        real = host(path)
        found = posix.stat(real)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) or not mode & posix.W_OK or not is_read_only(real)


def nt_chmod(path: Any, mode: int, *, dir_fd: None = None, follow_symlinks: bool = True) -> None:
    """Set or clear the attribute "read-only", which is all that there is."""
    _no_dir_fd(dir_fd)
    with errors_of(path):
        real = host(path)
        if not stat.S_ISDIR(posix.stat(real).st_mode):
            posix.chmod(real, 0o666 if mode & stat.S_IWUSR else 0o444)


def nt_listdir(path: Any = ".") -> list[str]:
    """The names in a folder; of a folder alone."""
    with errors_of(path):
        return posix.listdir(host(path))


class DirEntry:
    """What `scandir` gives."""

    def __init__(self, folder: str, entry: os.DirEntry[str]) -> None:
        self.name = entry.name
        self.path = f"{folder}{'' if folder.endswith(chr(92)) else chr(92)}{entry.name}"
        self.is_dir, self.is_file, self.is_symlink = entry.is_dir, entry.is_file, entry.is_symlink
        self.stat, self.inode = entry.stat, entry.inode

    def __fspath__(self) -> str:
        return self.path

    def is_junction(self) -> bool:
        """Never: Linux has none."""
        return False


@contextlib.contextmanager
def _entries(path: Any) -> Iterator[Iterator[DirEntry]]:
    with errors_of(path), posix.scandir(host(path)) as found:
        yield (DirEntry(os.fspath(path), entry) for entry in found)


class ScanDir:
    """An iterator of entries that may be closed."""

    def __init__(self, path: Any = ".") -> None:
        with _entries(path) as found:
            self._found = iter([*found])

    def __iter__(self) -> Iterator[DirEntry]:
        return self._found

    def __next__(self) -> DirEntry:
        return next(self._found)

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> ScanDir:
        return self

    def __exit__(self, *error: object) -> None: ...


def nt_readlink(path: Any, *, dir_fd: None = None) -> str:
    """Where a link leads."""
    _no_dir_fd(dir_fd)
    with errors_of(path):
        real = host(path)
        return verbatim(shown(os.path.join(os.path.dirname(real), posix.readlink(real))))


def nt_symlink(source: Any, target: Any, target_is_directory: bool = False, *, dir_fd: None = None) -> None:
    """For whoever has a privilege that users mostly do not have."""
    refuse(1314, target)


def nt_link(source: Any, target: Any, *, follow_symlinks: bool = True) -> None:
    """CreateHardLinkW."""
    with errors_of(source):
        posix.link(host(source), host(target), follow_symlinks=follow_symlinks)


def nt_utime(path: Any, times: Any = None, **named: Any) -> None:
    """Set the times."""
    with errors_of(path):
        posix.utime(path if isinstance(path, int) else host(path), times, **named)


def nt_chdir(path: Any) -> None:
    """Change the current folder."""
    with errors_of(path):
        posix.chdir(host(path))


def nt_kill(pid: int, number: int) -> None:
    """TerminateProcess, whatever the number: it is the exit code."""
    if pid == posix.getpid():
        posix._exit(number)
    posix.kill(pid, signal.SIGKILL)


def final_path(path: Any) -> str:
    """`GetFinalPathNameByHandleW`: links followed, letters as they are."""
    with errors_of(path):
        real = host(path)
        posix.stat(real)
        return verbatim(shown(os.path.realpath(real)))


def full_path(path: Any) -> str:
    """`GetFullPathNameW`: nothing is looked up; the ends of names lose dots and spaces."""
    text = os.fspath(path)
    drive, rest = ntpath.splitdrive(text)
    last = rest.replace("/", "\\").rpartition("\\")[2]
    if last.split(".")[0].rstrip(" ").upper() in DEVICES:
        return "\\\\.\\" + last
    if not rest.startswith(("\\", "/")) and not drive.startswith("\\\\"):
        rest = shown(posix.getcwd())[2:] + "\\" + rest
    return str(ntpath.normpath((drive or "C:") + rest)).rstrip(" .")


def disk_usage(path: Any) -> tuple[int, int]:
    """Bytes of a drive: all, and free ones."""
    found = posix.statvfs(host(path))
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _no_dir_fd(*given: object) -> None:
    if any(fd is not None for fd in given):
        raise NotImplementedError("dir_fd unavailable on this platform")


CALLS: dict[str, Callable[..., Any]] = {
    "access": nt_access,
    "chdir": nt_chdir,
    "chmod": nt_chmod,
    "fsync": nt_fsync,
    "ftruncate": nt_ftruncate,
    "kill": nt_kill,
    "link": nt_link,
    "listdir": nt_listdir,
    "lstat": nt_lstat,
    "mkdir": nt_mkdir,
    "open": nt_open,
    "read": nt_read,
    "readlink": nt_readlink,
    "remove": nt_unlink,
    "rename": nt_rename,
    "replace": nt_replace,
    "rmdir": nt_rmdir,
    "scandir": ScanDir,
    "stat": nt_stat,
    "symlink": nt_symlink,
    "truncate": nt_truncate,
    "unlink": nt_unlink,
    "utime": nt_utime,
    "write": nt_write,
    "getcwd": lambda: shown(posix.getcwd()),
    "_getdiskusage": disk_usage,
    "_getfinalpathname": final_path,
    "_getfullpathname": full_path,
}
AS_LINUX_HAS_THEM = (
    "_exit abort close closerange cpu_count device_encoding dup dup2 error fspath fstat "
    "get_inheritable get_terminal_size getpid getppid isatty lseek pipe putenv set_inheritable "
    "stat_result strerror system terminal_size times times_result umask unsetenv urandom waitpid "
    "waitstatus_to_exitcode F_OK R_OK W_OK X_OK O_APPEND O_CREAT O_EXCL O_RDONLY O_RDWR O_TRUNC "
    "O_WRONLY"
)
"""All that Windows' `nt` has of `posix` beside what stands here."""


def nt_module() -> types.ModuleType:
    """The module `nt`."""
    module = types.ModuleType("nt")
    for name in AS_LINUX_HAS_THEM.split():
        setattr(module, name, getattr(posix, name))
    for name, call in CALLS.items():
        setattr(module, name, call)
    module.environ = {os.fsdecode(k): os.fsdecode(v) for k, v in posix.environ.items()}  # type: ignore[attr-defined]
    module._have_functions = ["MS_WINDOWS"]  # type: ignore[attr-defined]
    module.DirEntry = DirEntry  # type: ignore[attr-defined]
    for name, value in (
        ("O_BINARY", O_BINARY),
        ("O_TEXT", O_TEXT),
        ("O_TEMPORARY", O_TEMPORARY),
        ("O_NOINHERIT", O_NOINHERIT),
    ):
        setattr(module, name, value)
    return module
