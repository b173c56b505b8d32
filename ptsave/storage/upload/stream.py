"""An object that is written from end to end, by who does not know how long it will be."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from isal.isal_zlib import crc32

from ptsave.core.address import Address
from ptsave.errors import ExistsError, WriteError
from ptsave.storage.upload.file import UploadFile
from ptsave.storage.upload.store import upload_store


@contextmanager
def data_stream(folder: Address, name: str, about_bytes: int) -> Iterator[io.RawIOBase]:
    """New data `name` of a folder that another process has open for writing, there when the block ends.

    The store compares it with what passed through. On any error, what was sent is removed.

    Raises: WriteError.
    """
    output = UploadFile(upload_store(folder), folder / name, about_bytes, None, is_data=True, is_open=True)
    try:
        stream = _Stream(output)
        yield stream
        output.end_at(stream.num_bytes)
        output.must_have(stream.crc32)
        output.finish()
    except ExistsError:
        raise WriteError(
            "another process is writing in the folder", str(folder), "wait until it is done"
        ) from None
    finally:
        output.abort()


class _Stream(io.RawIOBase):
    """What passes through into an object."""

    def __init__(self, output: UploadFile) -> None:
        super().__init__()
        self.num_bytes = self.crc32 = 0
        self._output = output

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Write all of `data`. Raises: WriteError."""
        view = memoryview(data).cast("B")
        self._output.write_at(self.num_bytes, view)
        self.crc32 = crc32(view, self.crc32)
        self.num_bytes += len(view)
        return len(view)

    def tell(self) -> int:
        return self.num_bytes
