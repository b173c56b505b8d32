"""Small runs of bytes that are neighbours: read and written many at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptsave.core.storage import BLOCK_BYTES, File

if TYPE_CHECKING:
    from ptsave.storage.move import Move

SMALL_BYTES = 64 * 1024
"""What counts as a small run."""
GAP_BYTES = 4096
"""How many unwanted bytes between two runs are read rather than skipped."""


def first_byte(item: Move) -> int:
    """Where in the target a run begins, its header included."""
    assert item.target_offset is not None
    return item.target_offset - item.header_bytes


def batches(small: list[Move]) -> list[list[Move]]:
    """Runs that follow each other in the target without a gap, up to a block of them at a time."""
    found: list[list[Move]] = []
    start = end = -1
    for item in sorted(small, key=first_byte):
        first = first_byte(item)
        after = first + item.header_bytes + item.num_bytes + item.trailer_bytes
        if first == end and after - start <= BLOCK_BYTES:
            found[-1].append(item)
        else:
            found.append([item])
            start = first
        end = after
    return found


def read_batch(items: list[Move], blocks: list[memoryview], scratch: memoryview) -> None:
    """Fill each block with its item's bytes; what lies close together in one file is read with one call.

    `scratch` has BLOCK_BYTES.
    """
    run: list[tuple[int, memoryview]] = []
    file: File | None = None
    start = end = 0

    def finish() -> None:
        if file is None:
            return
        if len(run) == 1:
            file.read_into(start, run[0][1])
        else:
            file.read_into(start, scratch[: end - start])
            for offset, block in run:
                block[:] = scratch[offset - start : offset - start + len(block)]

    for item, block in zip(items, blocks, strict=True):
        source = item.source
        if source.file is None or item.source_offset + len(block) > source.num_bytes:
            source.read_into(item.source_offset, block)
            continue
        offset = source.offset_bytes + item.source_offset
        after = offset + len(block)
        if source.file is not file or not 0 <= offset - end <= GAP_BYTES or after - start > BLOCK_BYTES:
            finish()
            file, start, run = source.file, offset, []
        run.append((offset, block))
        end = after
    finish()
