"""Disks that are full, read-only or not ours, limits on files, and folders that go away."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import struct
from pathlib import Path

import pytest

from ptsave.errors import WriteError
from tests.crash import mounts
from tests.crash.scenes import CONVERSIONS, Scene, name_of
from tests.crash.tracing import stopped_at, traced
from tests.crash.trials import Ended, Trials, ptsave_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("scene", CONVERSIONS, ids=name_of, indirect=True),
]

NOBODY = 65534
WITHOUT_FALLOCATE = "fallocate:retval=0"
"""It reports that the room is set aside, and does nothing."""


@pytest.fixture
def tmpfs() -> None:
    if reason := mounts.why_no_tmpfs():
        pytest.skip(f"NOT RUN, nothing was proved: {reason}")


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT RUN, nothing was proved: giving a folder to another user needs root")


def check_refused(scene: Scene, ended: Ended, *says: str) -> None:
    """The command says what is wrong and what to do, and has left everything as it was."""
    assert ended.code == WriteError.exit_code, ended
    assert "error: " in ended.stderr
    assert "hint: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert any(text in ended.stderr for text in says), ended.stderr
    assert scene.state() == "old"
    assert scene.litter() + scene.strangers() == []


def fill(path: Path) -> None:
    """Write until the disk takes no more."""
    with path.open("wb", buffering=0) as file:
        for num_bytes in (64 * 1024, 4096, 1):
            try:
                while file.write(bytes(num_bytes)):
                    pass
            except OSError:
                continue


@pytest.mark.usefixtures("tmpfs")
def test_a_disk_that_is_too_small_is_seen_before_the_first_byte(
    scene: Scene, trials: Trials, tmp_path: Path
) -> None:
    with mounts.tmpfs(tmp_path / "small", "size=3m") as folder:
        scene.move_to(folder)
        status = os.statvfs(folder)
        (folder / "filler").write_bytes(bytes(status.f_bavail * status.f_frsize - 600_000))
        ended = trials.run(scene.arguments, folder)
        (folder / "filler").unlink()
        check_refused(scene, ended, "no room: needs")


@pytest.mark.usefixtures("tmpfs", "strace")
@pytest.mark.parametrize("call", ["openat", "fallocate", "pwrite64", "fsync"])
def test_a_disk_that_fills_up_meanwhile(
    scene: Scene, call: str, trials: Trials, tmp_path: Path, log: Path
) -> None:
    """The command is stopped right after a call, the disk is filled to the last byte, and it goes on."""
    faults = [] if call == "fallocate" else [WITHOUT_FALLOCATE]
    _, calls = traced(trials.prepare_command(scene.arguments, scene.folder), log, inject=faults)
    n = next((c.number for c in calls if c.name == call and (c.changes_files or call != "openat")), None)
    assert n is not None, f"never calls {call}"
    with mounts.tmpfs(tmp_path / "small", "size=8m") as folder:
        scene.move_to(folder)
        trial = trials.prepare_command(scene.arguments, folder)
        with stopped_at(trial, log, call, n, faults) as is_stopped:
            assert is_stopped
            fill(folder / "filler")
            ended = trial.resume()
        (folder / "filler").unlink()
        if ended.code == 0:
            assert call in ("fallocate", "pwrite64", "fsync"), "there was no room, and it reports success"
            assert scene.state() == "new"
            assert scene.litter() + scene.strangers() == []
        else:
            check_refused(scene, ended, "the disk is full", "no room")


@pytest.mark.usefixtures("tmpfs")
def test_a_disk_that_takes_no_more_files(scene: Scene, trials: Trials, tmp_path: Path) -> None:
    with mounts.tmpfs(tmp_path / "small", "size=16m", "nr_inodes=16") as folder:
        scene.move_to(folder)
        fillers = folder / "fillers"
        fillers.mkdir()
        for i in range(16):
            try:
                (fillers / str(i)).touch()
            except OSError:
                break
        else:
            pytest.fail("the disk takes ever more files")
        ended = trials.run(scene.arguments, folder)
        shutil.rmtree(fillers)
        check_refused(scene, ended, "the disk is full")


@pytest.mark.usefixtures("tmpfs")
def test_a_read_only_file_system(scene: Scene, trials: Trials, tmp_path: Path) -> None:
    with mounts.tmpfs(tmp_path / "frozen", "size=16m") as folder:
        scene.move_to(folder)
        mounts.system("mount", "-o", "remount,ro", folder)
        check_refused(
            scene, trials.run(scene.arguments, folder), "the file system is read-only", "no permission"
        )


def test_a_limit_on_the_size_of_files(scene: Scene, trials: Trials) -> None:
    trial = trials.prepare_command(scene.arguments, scene.folder)
    resource.prlimit(trial.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    trial.go()
    check_refused(scene, trial.wait(), "larger than a file may be here")


@pytest.mark.usefixtures("strace")
def test_a_limit_that_shows_when_it_is_reached(scene: Scene, trials: Trials, log: Path) -> None:
    """With fallocate out of the way the first sign is a short write, the second an error."""
    trial = trials.prepare_command(scene.arguments, scene.folder)
    resource.prlimit(trial.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    ended, _ = traced(trial, log, inject=WITHOUT_FALLOCATE)
    check_refused(scene, ended, "larger than a file may be here")  # what EFBIG, and nothing else, is called


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("mode", [0o555, 0o700, 0o711], ids=["r-x", "---", "--x"])
def test_a_folder_of_another_user(scene: Scene, mode: int, trials: Trials) -> None:
    os.chown(scene.folder, NOBODY, NOBODY)
    scene.folder.chmod(mode)
    trial = trials.prepare(without_privileges, *map(str, scene.arguments), cwd=scene.folder)
    trial.go()
    ended = trial.wait()
    check_refused(scene, ended, "no permission")


def without_privileges(*arguments: str) -> None:
    """`ptsave ARGUMENTS` as a root for whom permissions count; as another user it could not even be imported
    from a checkout that is root's alone.

    Source: linux/capability.h, version 3: a header, and two sets of effective, permitted and inheritable.
    """
    header = struct.pack("Ii", 0x20080522, 0)
    assert ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)) == 0, ctypes.get_errno()
    ptsave_command(*arguments)


def test_a_folder_that_is_gone(scene: Scene, trials: Trials, tmp_path: Path) -> None:
    """The current folder, removed after the command has entered it."""
    gone = tmp_path / "gone"
    gone.mkdir()
    trial = trials.prepare_command(scene.arguments, gone)
    gone.rmdir()
    trial.go()
    ended = trial.wait()
    assert ended.code == WriteError.exit_code, ended
    assert "hint: " in ended.stderr
    assert not gone.exists()
