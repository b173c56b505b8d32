"""Files of torch's writer that are on their way to the disk while the rest of them is still being made."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystem

from ptsave.core.storage import BLOCK_BYTES
from ptsave.storage import system
from ptsave.storage.move import WRITEBACK_BYTES


class EagerFileSystem(FileSystem):
    """torch's own, for what is written from end to end and made durable then.

    Torch computes a CRC-32 of all that it writes, on one core, and the disk would wait for that; measured:
    the fsync at the end takes a fiftieth of the time, and the save a quarter less.
    """

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        with io.BufferedWriter(_EagerFile(path, mode), BLOCK_BYTES) as stream:
            yield stream


class _EagerFile(io.FileIO):
    """A file of which every WRITEBACK_BYTES begin to be written to the disk as soon as they are there."""

    _num_bytes = 0
    _num_begun = 0

    def write(self, data: Any) -> int:
        done = super().write(data)
        self._num_bytes += done
        if self._num_bytes - self._num_begun >= WRITEBACK_BYTES:
            system.begin_writeback(self.fileno(), self._num_begun, self._num_bytes - self._num_begun)
            self._num_begun = self._num_bytes
        return done
