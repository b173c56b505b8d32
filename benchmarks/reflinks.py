"""Rows on a file system whose files can share blocks: an XFS in a file, mounted where root can."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.converting import cp, cp_durable
from benchmarks.files import MOUNTS, Files
from benchmarks.measure import Command, SkipError
from benchmarks.rows import Budget, Row, net_ratio, ptsave, wall_ratio

MIN_IMAGE_BYTES = 320 * 2**20
"""mkfs.xfs makes nothing smaller than 300 MiB."""


def convert_reflink(files: Files) -> Row:
    """The blocks of large aligned tensors are shared, not copied."""
    folder = mount_xfs(files)
    sources = {}
    for size, paths in (("large", files.state(files.gib)), ("tiny", files.tiny())):
        sources[size] = folder / f"{size}.safetensors"
        # ptsave's own output is aligned; safetensors and torch.save do not align.
        subprocess.run(ptsave("convert", "-q", paths[0], sources[size]), check=True)
    large, tiny = sources["large"], sources["tiny"]
    words = "`convert` 1 GiB safetensors → `.pt` on XFS, aligned source"
    never = "`cp --reflink=never`"
    return Row(
        {
            "convert": Command(lambda out: ptsave("convert", "-q", "--no-check", large, out / "b.pt")),
            "idle": Command(lambda out: ptsave("convert", "-q", "--no-check", tiny, out / "b.pt")),
            "cp": cp(large),
            "cp-idle": cp(tiny),
            "cp-durable": cp_durable(large),
            "cp-durable-idle": cp_durable(tiny),
        },
        [
            Budget(
                f"{words}, start-up subtracted",
                f"{never} and fsync",
                net_ratio("convert", "idle", "cp-durable", "cp-durable-idle"),
                "×",
                0.3,
            ),
            Budget(f"{words}, whole process", f"{never} and fsync", wall_ratio("convert", "cp-durable"), "×"),
            Budget(
                f"{words}, start-up subtracted",
                f"{never} alone",
                net_ratio("convert", "idle", "cp", "cp-idle"),
                "×",
            ),
            Budget(f"{words}, whole process", f"{never} alone", wall_ratio("convert", "cp"), "×"),
        ],
        touch_bytes=files.gib,
        scratch=folder,
    )


def mount_xfs(files: Files) -> Path:
    """A folder on a fresh XFS with reflinks; unmounted when `files` is closed.

    Raises: SkipError where mkfs.xfs is missing or this user cannot mount.
    """
    if shutil.which("mkfs.xfs") is None or os.geteuid() != 0:
        raise SkipError("needs root and mkfs.xfs (on Debian: apt-get install xfsprogs)")
    image, folder = files.folder / MOUNTS / "xfs.img", files.folder / MOUNTS / "xfs"
    folder.mkdir(parents=True, exist_ok=True)
    with open(image, "wb") as file:
        file.truncate(max(4 * files.gib, MIN_IMAGE_BYTES))
    for command in (
        ["mkfs.xfs", "-q", "-m", "reflink=1", str(image)],
        ["mount", "-o", "loop", str(image), str(folder)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SkipError(f"{command[0]} failed: {done.stderr.strip()}")
    files.closing.callback(subprocess.run, ["umount", str(folder)], check=True)
    return folder


ROWS = [convert_reflink]
