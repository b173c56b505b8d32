"""Real file systems for a test to fill, to freeze and to pull the plug on. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

MAKERS = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}
IMAGE_BYTES = {"ext4": 96 * 1024**2, "xfs": 320 * 1024**2}
"""XFS takes no less than 300 MiB. The images are sparse."""


def system(*command: object) -> None:
    """Run a command of the system.

    Raises: subprocess.CalledProcessError with what it said; OSError when there is no such program.
    """
    words = [_found(str(command[0])), *map(str, command[1:])]
    subprocess.run(words, check=True, capture_output=True, text=True)


def _found(program: str) -> str:
    """Where a program of the system is: not every user's PATH has the folders of root's."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or ""


@contextmanager
def tmpfs(folder: Path, *options: str) -> Iterator[Path]:
    """A file system in memory, such as one of `size=1m`."""
    folder.mkdir()
    system("mount", "-t", "tmpfs", "-o", ",".join(("mode=755", *options)), "tmpfs", folder)
    try:
        yield folder
    finally:
        system("umount", folder)


@cache
def why_no_tmpfs() -> str:
    """Why nothing can be mounted here; empty where it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "mounting needs root"
    with TemporaryDirectory() as folder:
        try:
            with tmpfs(Path(folder) / "mounted"):
                return ""
        except (OSError, subprocess.CalledProcessError) as error:
            return f"mounting does not work here: {getattr(error, 'stderr', None) or error}"


@cache
def why_no_image(kind: str) -> str:
    """Why no image of that file system can be mounted here; empty where it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "mounting needs root"
    if not _found(MAKERS[kind][0]):
        return f"{MAKERS[kind][0]} is not installed"
    with TemporaryDirectory() as folder:
        try:
            image = make_image(Path(folder) / "image", kind)
            place = Path(folder) / "mounted"
            place.mkdir()
            mount(image, place)
            system("umount", place)
            return ""
        except (OSError, subprocess.CalledProcessError) as error:
            return f"loop devices do not work here: {getattr(error, 'stderr', None) or error}"


def make_image(image: Path, kind: str) -> Path:
    """A file with an empty file system in it."""
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES[kind])
    system(*MAKERS[kind], image)
    return image


def mount(image: Path, folder: Path) -> None:
    """Let an image appear as a folder."""
    system("mount", "-o", "loop", image, folder)
