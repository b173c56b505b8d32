"""The emulation refuses what Windows refuses."""

from __future__ import annotations

from pathlib import Path

from tests.windows.scene import linux_only, on_windows

pytestmark = linux_only


def platform() -> None:
    import os
    import pathlib
    import shutil
    import signal
    import tempfile

    import ptsave.storage.system as system
    from ptsave import stopping

    assert (os.name, os.sep, os.linesep, os.devnull) == ("nt", "\\", "\r\n", "nul")
    assert os.getcwd().startswith("C:\\")
    lacking = "fork pwrite preadv posix_fallocate fchmod geteuid statvfs pathconf sched_getaffinity listxattr"
    assert not [name for name in lacking.split() if hasattr(os, name)]
    assert not [name for name in ("O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC") if hasattr(os, name)]
    assert not hasattr(signal, "SIGALRM")
    assert isinstance(pathlib.Path(), pathlib.WindowsPath)
    for module in ("fcntl", "resource", "pwd", "termios"):
        try:
            __import__(module, globals())
        except ModuleNotFoundError:
            continue
        raise AssertionError(module)

    flags = [name for name in vars(system) if name.startswith("HAS_")]
    assert len(flags) > 8
    assert [name for name in flags if getattr(system, name)] == []
    assert system.IS_WINDOWS
    assert set(stopping.SIGNALS) == {signal.SIGINT, signal.SIGTERM, signal.SIGBREAK}  # type: ignore[attr-defined]

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as file:
        assert os.path.exists(file.name)
        assert shutil.disk_usage(folder).free
    assert not os.path.exists(file.name)
    assert not os.path.exists(folder)


def open_files() -> None:
    import mmap
    import os
    from collections.abc import Callable

    import pytest

    def refused(code: int, call: Callable[..., object], *arguments: object) -> None:
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            call(*arguments)
        assert caught.value.winerror == code, (call, caught.value)  # type: ignore[attr-defined]

    for name in ("a", "b"):
        with open(name, "wb") as file:
            file.write(b"12345678")
    os.mkdir("folder")
    held = open("a", "rb")  # noqa: SIM115
    refused(32, os.unlink, "a")
    refused(32, os.rename, "a", "c")
    refused(32, os.rename, "a", "a")
    refused(32, os.replace, "a", "b")
    refused(5, os.replace, "b", "a")
    refused(183, os.rename, "b", "a")
    mapped = mmap.mmap(held.fileno(), 0, access=mmap.ACCESS_READ)
    held.close()
    refused(32, os.unlink, "a")
    refused(5, os.replace, "b", "a")
    refused(1224, os.truncate, "a", 0)
    refused(1224, open, "a", "wb")
    mapped.close()
    os.replace("b", "a")
    with open("folder\\inner", "wb"):
        refused(5, os.rename, "folder", "other")
    os.rename("folder", "other")
    refused(145, os.rmdir, "other")
    os.chmod("a", 0o444)
    refused(5, os.unlink, "a")
    refused(5, open, "a", "wb")
    os.chmod("a", 0o666)
    os.unlink("A")
    refused(2, os.stat, "a")
    with open("other\\inner", "rb") as file, pytest.raises(OSError, match="Bad file descriptor"):
        os.fsync(file.fileno())


def names_and_texts() -> None:
    import os

    for name in ("a:b", "a?", 'a"', "a|", "D:\\a", "\\\\server\\share\\a", "x" * 260, "no\\a"):
        try:
            with open(name, "wb"):
                raise AssertionError(name)
        except OSError:
            continue
    assert os.listdir(".") in ([".names_and_texts.py"],)
    with open("NUL", "wb") as file:
        file.write(b"gone")
    with open("name. .", "w") as text:
        text.write("a…\n")
    with open("NAME", "rb") as file:
        assert file.read() == b"a\x85\r\n"
    fd = os.open("name", os.O_WRONLY | os.O_TRUNC)
    assert os.write(fd, b"a\nb") == 3
    os.close(fd)
    with open("name", "rb") as file:
        assert file.read() == b"a\r\nb"
    assert sorted(os.listdir(".")) == [".names_and_texts.py", "name"]
    deep = os.path.join(os.getcwd(), *["d" * 80] * 3)
    try:
        os.makedirs(deep)
        raise AssertionError(deep)
    except FileNotFoundError:
        os.makedirs("\\\\?\\" + deep)
    assert os.path.isdir("\\\\?\\" + deep)
    assert os.path.realpath("nul") == "\\\\.\\NUL"


def test_it_has_what_windows_has_and_no_more(tmp_path: Path) -> None:
    on_windows(platform, tmp_path)


def test_what_is_open_or_mapped_is_not_replaced_removed_or_cut(tmp_path: Path) -> None:
    on_windows(open_files, tmp_path)


def test_names_paths_and_texts_are_windows_own(tmp_path: Path) -> None:
    on_windows(names_and_texts, tmp_path)
