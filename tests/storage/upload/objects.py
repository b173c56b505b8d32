"""What the tests of uploads write: bytes of a seed, in blocks, the first last as a header would be."""

from __future__ import annotations

import random

from isal.isal_zlib import crc32

from ptsave.core.address import Address, located
from ptsave.storage.opening import replacing_file, replacing_folder
from ptsave.storage.output import OutputFile, SentFile
from tests.servers.faults import s3_error, status
from tests.servers.serving import Fault
from tests.servers.stores import Store

KIB = 1024
PART_BYTES = 64 * KIB
"""Of a part, in these tests: their servers do not insist on the megabytes of S3."""
LARGE = 2 * PART_BYTES + 123
"""Three parts, the last of them short."""


PUT = {"s3": r"PUT /[^?]*$", "az": r"PUT /[^?]*$", "gs": "POST /upload/.*&name=m$"}
"""By scheme, the request that makes a small object."""
PART = {"s3": r"PUT .*partNumber=\d\b", "az": "PUT .*comp=block&", "gs": "POST /upload/.*-parts"}
COMPLETE = {"s3": "POST .*uploadId=", "az": "PUT .*comp=blocklist", "gs": "POST .*/o/m/compose"}


def content(num_bytes: int, seed: int = 0) -> bytes:
    """Bytes that nothing compresses, other ones for each seed."""
    return random.Random(seed).randbytes(num_bytes)


def address(text: str) -> Address:
    """An address, from text."""
    found = located(text)
    assert isinstance(found, Address)
    return found


def fill(output: OutputFile, data: bytes) -> None:
    """Write `data` in blocks, its beginning last, and say what it must be."""
    block = 10_000
    for begin in range(block, len(data), block):
        output.write_at(begin, data[begin : begin + block])
    output.write_at(0, data[:block])
    assert isinstance(output, SentFile)
    output.must_have(crc32(data))


def write(where: str, kind: str, seed: int) -> None:
    """Write the bytes of a seed over what is there: as a file, or as one in a folder, with an index."""
    if kind == "file":
        with replacing_file(address(where), LARGE, overwrite=True) as output:
            fill(output, content(LARGE, seed))
        return
    with replacing_folder(address(where), LARGE, overwrite=True) as folder:
        (name,) = folder.fresh(lambda generation: [f"data-{generation}"])
        with folder.data_file(name, LARGE) as output:
            fill(output, content(LARGE, seed))
        folder.commit(("index", name.encode()), old=[n for n in folder.taken if n != "index"])


def scheme(store: Store) -> str:
    """The kind of a store, as addresses say it."""
    return store.address.partition(":")[0]


def left(store: Store) -> list[str]:
    """What a failed upload has left. Azure's blocks are not counted: nobody but the store removes them."""
    return [] if scheme(store) == "az" else store.leftovers()


def refusal(store: Store, code: int, name: str) -> Fault:
    """The store answers with an error, in its own form."""
    if scheme(store) == "s3":
        return s3_error(code, name)
    return status(code, b'{"error": {}}', "application/json", x_ms_error_code=name)
