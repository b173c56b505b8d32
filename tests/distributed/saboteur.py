"""ptsave, with something happening to one rank at one moment: `saboteur WHAT WHEN RANK ARGUMENTS…`."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemWriter

from ptsave.cli.main import main
from ptsave.distributed import writer
from ptsave.distributed.group import Group
from ptsave.storage.atomic_folder import LocalOutputFolder
from ptsave.storage.upload.file import UploadFile
from ptsave.storage.upload.folder import UploadFolder
from ptsave.storage.upload.store import UploadStore

MAX_BYTES = 2000
UploadStore.min_part_bytes, UploadStore.part_unit_bytes = 16 * 1024, 1024


def happen(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "full":  # no file may grow beyond this: a real error of the system, on this rank alone
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_BYTES, MAX_BYTES))
    elif what == "raise":
        raise OSError(errno.EIO, os.strerror(errno.EIO), "somewhere")
    else:
        raise AssertionError(what)


def at(owner: Any, name: str, what: str, *, after: bool = False) -> None:
    """Let it happen before, or after, the first call of `owner.name`."""
    original: Callable[..., Any] = getattr(owner, name)

    def patched(*arguments: Any, **named: Any) -> Any:
        setattr(owner, name, original)
        if not after:
            happen(what)
        result = original(*arguments, **named)
        if after:
            happen(what)
        return result

    setattr(owner, name, patched)


def half_written(what: str) -> None:
    """Let it happen when the rank's file is there and not complete."""
    original = FileSystemWriter.write_data

    def patched(self: Any, plan: Any, planner: Any) -> Any:
        path = Path(self.path) / f"{plan.storage_data.prefix}0.distcp"
        path.write_bytes(bytes(100))
        happen(what)
        return original(self, plan, planner)

    FileSystemWriter.write_data = patched  # type: ignore[method-assign]


def flipped() -> None:
    """Let one bit of a tensor be another once the rank has written it."""
    original = FileSystemWriter.write_data

    def patched(self: Any, plan: Any, planner: Any) -> Any:
        done = original(self, plan, planner)
        item = max((item for item in plan.items if item.tensor_data), key=lambda item: item.tensor_data.size)
        path = Path(self.path) / f"{plan.storage_data.prefix}0.distcp"
        data = bytearray(path.read_bytes())
        data[data.index(planner.resolve_data(item).contiguous().numpy().tobytes())] ^= 1
        path.write_bytes(data)
        return done

    FileSystemWriter.write_data = patched  # type: ignore[method-assign]


def run() -> None:
    what, when, rank = sys.argv[1:4]
    sys.argv[1:4] = []
    if os.environ["RANK"] == rank:
        if what == "flip":
            flipped()
        elif when == "before":
            at(writer, "write_sharded", what)
        elif when == "during":
            half_written(what)
        elif when == "written":
            at(FileSystemWriter, "write_data", what, after=True)
        elif when == "sending":
            at(UploadFile, "_sent", what, after=True)
        elif when == "sent":
            at(UploadFile, "finish", what, after=True)
        elif when == "commit":
            at(LocalOutputFolder, "commit", what)
            at(UploadFolder, "commit", what)
        elif when == "after":
            at(LocalOutputFolder, "commit", what, after=True)
        elif when == "reading":
            at(Group, "agree", what)
        else:
            raise AssertionError(when)
    from ptsave.distributed import save

    save.write_sharded = lambda *arguments, **named: writer.write_sharded(*arguments, **named)
    main()


if __name__ == "__main__":
    run()
