"""Writing NumPy's .npz: a zip of one .npy record for each tensor.

Source: numpy/lib/format.py, "Format Version 1.0" (the header ends at a multiple of 64 bytes) and "3.0".
"""

from __future__ import annotations

from dataclasses import replace

from isal.isal_zlib import crc32, crc32_combine

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint, check_viewed
from ptsave.core.nodes import TensorEntry
from ptsave.core.values.digest import prefix
from ptsave.core.values.gather import contiguous
from ptsave.errors import LossyError, Option
from ptsave.formats.base import WriteOptions, Written
from ptsave.formats.stored import (
    distinct,
    expected_digests,
    module_versions,
    refuse_data,
    refuse_special_kinds,
    replacing_checked,
    source_path,
    with_source_checks,
    write_pieces,
)
from ptsave.formats.zip.directory import is_plain_path
from ptsave.formats.zip.layout import ALIGN_BYTES, Entry, Frame
from ptsave.storage.move import Move, move
from ptsave.storage.opening import check_file_destination

MAX_NAME_BYTES = 2**16 - 64
"""Of a record's name: what the two bytes of its length can say, less what aligning it may take."""


def write(checkpoint: Checkpoint, destination: Location, options: WriteOptions) -> Written:
    """Write the tensors of `checkpoint` as one .npz file that `numpy.load` opens without pickle.

    The format knows no ties, so each name has its own copy. It has no place for the record: `numpy.load`
    lists every member of the archive as an array, whatever its name, and the archive's comment holds 64 KiB.
    Source: numpy/lib/_npyio_impl.py, `NpzFile`.

    Raises: LossyError when NumPy has no such dtype; ExistsError; WriteError; CorruptError.
    """
    check_file_destination(destination, overwrite=options.overwrite)
    refuse_data(checkpoint, "npz")
    refuse_special_kinds(checkpoint, "npz")
    if not checkpoint.tensors:
        raise LossyError(
            "npz cannot hold a checkpoint without tensors: an empty zip archive could be anything",
            source_path(checkpoint),
            "write another format",
        )
    has_record = checkpoint.record is not None or module_versions(checkpoint.root) is not None
    unkept = ("the record stays behind: npz has no place for it",) if options.record and has_record else ()
    aliases = distinct(checkpoint.tensors).aliases
    if options.signer is not None and aliases:
        what = "npz unties tied tensors, and a signature of it would hold for no other format"
        raise LossyError(what, next(iter(aliases)), "sign another format")
    options = replace(options, record=options.signer is not None)  # digests pass for a signature alone
    refuse_confusion(checkpoint)
    check_viewed(checkpoint.tensors.values(), once=False)
    frame = Frame()
    moves = []
    for name, entry in checkpoint.tensors.items():
        header = _npy_header(entry, source_path(checkpoint))
        if not _can_be_record(f"{name}.npy"):
            raise LossyError(
                "npz cannot hold a tensor whose name is not a plain path in a zip archive",
                repr(name[:80]),
                ("give it another", Option("rename", lead=" with ")),
            )
        record = frame.add(f"{name}.npy", len(header) + entry.num_bytes)
        moves.append(_move(checkpoint, entry, record, header, options))
    num_bytes = frame.num_bytes
    with replacing_checked(checkpoint, destination, num_bytes, options) as (output, spans):
        spans += move(with_source_checks(moves), output, source_path(checkpoint), options.progress)
        spans += write_pieces(output, [(frame.end, frame.directory())], "the archive's directory")
        if options.signer is not None:
            digests = {item.name: item.digest(options.digest) for item in moves}
            options.signer.sign(replace(checkpoint, record=None), options.digest, digests)
    untied = (f"{alias!r} and {kept!r} are tied no more" for alias, kept in aliases.items())
    return Written(num_bytes, (*untied, *unkept), output.checked)


def refuse_confusion(checkpoint: Checkpoint) -> None:
    """Refuse `w` beside `w.npy`: numpy.load gives the first one's array for both.

    Raises: LossyError.
    """
    for name in checkpoint.tensors:
        if name.endswith(".npy") and name.removesuffix(".npy") in checkpoint.tensors:
            raise LossyError(
                f"npz cannot hold {name.removesuffix('.npy')[:80]!r} beside {name[:80]!r}: "
                "numpy.load takes them for one",
                source_path(checkpoint),
                ("give one of them another name", Option("rename", lead=" with ")),
            )


def _move(
    checkpoint: Checkpoint, entry: TensorEntry, record: Entry, header: bytes, options: WriteOptions
) -> Move:
    """The move of the elements; the record's CRC-32 is of the .npy header and them."""
    source, offset = contiguous(entry)

    def before(elements_crc32: int) -> bytes:
        return record.local_header(crc32_combine(crc32(header), elements_crc32, entry.num_bytes)) + header

    return Move(
        entry.name,
        source,
        offset,
        entry.num_bytes,
        record.data_offset + len(header),
        prefix=prefix(entry.dtype, entry.shape),
        expected_digests=expected_digests(checkpoint, [entry.name], options),
        header=before,
        header_bytes=record.header_bytes + len(header),
    )


def _npy_header(entry: TensorEntry, where: str) -> bytes:
    if entry.dtype.numpy is None:
        raise LossyError(
            f"npz cannot hold tensor {entry.name!r}: NumPy has no dtype {entry.dtype.name}",
            where,
            (
                "cast it",
                Option("dtype", "float32", lead=" with "),
                ", or leave it out",
                Option("drop", lead=" with "),
            ),
        )
    text = f"{{'descr': '{entry.dtype.numpy}', 'fortran_order': False, 'shape': {entry.shape!r}, }}"
    padding = -(10 + len(text) + 1) % ALIGN_BYTES
    body = text.encode("ascii") + b" " * padding + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


def _can_be_record(name: str) -> bool:
    try:
        num_bytes = len(name.encode())
    except UnicodeEncodeError:
        return False
    return num_bytes <= MAX_NAME_BYTES and is_plain_path(name)
