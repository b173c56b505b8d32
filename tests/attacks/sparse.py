"""Sparse files: a terabyte that takes no room on disk."""

from __future__ import annotations

import struct
from pathlib import Path

from . import torch_files as tf
from .old_formats import tar
from .pickles import (
    EMPTY_DICT,
    PROTO4,
    dump,
    text,
)
from .registry import REFUSED, SHOWN, attack
from .zips import SENTINEL, Entry, end_records, zip64_extra, zip_bytes


def sparse(folder: Path, head: bytes, tail: bytes, size: int = 2**40) -> Path:
    """`head`, nothing, `tail`: `size` bytes in all."""
    path = folder / "attack.bin"
    with path.open("wb") as out:
        out.write(head)
        out.seek(size - len(tail))
        out.write(tail)
    return path


def sparse_record(folder: Path, name: str, head: bytes = b"", before: list[Entry] | None = None) -> Path:
    """A torch zip whose record `name` holds `head` and then a terabyte of zeros."""
    size = 2**40
    lie = {"size": SENTINEL, "packed": SENTINEL, "crc": 0, "extra": zip64_extra(size, size)}
    made = tf.pt_entries(dump({"w": tf.tensor()})) if before is None else before
    made = [entry for entry in made if entry.name != f"archive/{name}"]
    sound = zip_bytes([*made, Entry(f"archive/{name}", head, local=lie, central=lie)])
    start = sound.index(b"PK\x01\x02")
    directory = sound[start:-22]
    at = start + size - len(head)
    count = len(made) + 1
    told = {"here": count, "total": count, "offset": at}
    limits = {"here": 0xFFFF, "total": 0xFFFF, "offset": SENTINEL}
    ends = end_records(at, len(directory), told, limits)
    return sparse(folder, sound[:start], directory + ends, at + len(directory) + len(ends))


@attack(REFUSED)
def sparse_zip_directory_of_a_terabyte(folder: Path) -> Path:
    told = {"here": 2**34, "total": 2**34, "size": 2**40 - 200, "offset": 100}
    limits = {"here": 0xFFFF, "total": 0xFFFF, "size": SENTINEL, "offset": SENTINEL}
    head = zip_bytes(tf.pt_entries(dump({})))[:100]
    ends = bytearray(end_records(2**40 - 198, 0, told, limits))
    ends[64:72] = struct.pack("<Q", 2**40 - len(ends))  # the locator's offset of the zip64 record
    return sparse(folder, head, bytes(ends))


@attack(REFUSED)
def sparse_pickle_of_a_terabyte(folder: Path) -> Path:
    return sparse_record(folder, "data.pkl")


@attack(REFUSED, SHOWN)
def sparse_bytes_in_a_pickle(folder: Path) -> Path:
    """A string of a terabyte, of which nothing needs to be read."""
    code = PROTO4 + EMPTY_DICT + text("blob") + b"\x8e" + struct.pack("<Q", 2**40 - 100)
    return sparse_record(folder, "data.pkl", code)


@attack(REFUSED, SHOWN)
def sparse_byteorder(folder: Path) -> Path:
    return sparse_record(folder, "byteorder")


@attack(REFUSED, SHOWN)
def sparse_version(folder: Path) -> Path:
    return sparse_record(folder, "version")


@attack(REFUSED)
def sparse_constants(folder: Path) -> Path:
    return sparse_record(folder, "constants.pkl")


@attack(REFUSED)
def sparse_code(folder: Path) -> Path:
    made = [*tf.pt_entries(dump({})), Entry("archive/constants.pkl", dump(()))]
    return sparse_record(folder, "code/__torch__.py", b"class", made)


@attack(REFUSED)
def sparse_record_of_ptsave(folder: Path) -> Path:
    return sparse_record(folder, "ptsave.json", b"{")


@attack(REFUSED)
def sparse_npz_header(folder: Path) -> Path:
    npy = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1)
    return sparse(folder, npy, b"")


@attack(REFUSED)
def sparse_dcp_metadata(folder: Path) -> Path:
    home = tf.dcp(folder)
    with (home / ".metadata").open("r+b") as out:
        out.truncate(2**40)
    with (home / "__0_0.distcp").open("r+b") as out:
        out.truncate(2**40)
    return home


@attack(REFUSED)
def sparse_dcp_metadata_of_one_string(folder: Path) -> Path:
    home = tf.dcp(folder, PROTO4 + EMPTY_DICT + text("blob") + b"\x8e" + struct.pack("<Q", 2**40 - 100))
    with (home / ".metadata").open("r+b") as out:
        out.truncate(2**40)
    return home


@attack(REFUSED)
def sparse_index(folder: Path) -> Path:
    home = tf.sharded(folder)
    with (home / "model.safetensors.index.json").open("r+b") as out:
        out.truncate(2**40)
    return home


@attack(REFUSED)
def sparse_zeros(folder: Path) -> Path:
    return sparse(folder, b"", b"\0")


@attack(REFUSED, SHOWN)
def sparse_legacy_after_the_end(folder: Path) -> Path:
    return sparse(folder, tf.legacy({"w": tf.legacy_tensor()}), b"\0")


@attack(REFUSED)
def sparse_legacy_pickle(folder: Path) -> Path:
    return sparse(folder, dump(tf.MAGIC) + dump(1001), b"\0")


@attack(REFUSED)
def sparse_tar_member(folder: Path) -> Path:
    head = bytearray(tar(sys_info=b"", pickle=dump({}), storages=dump(0), tensors=dump(0)))
    return sparse(folder, bytes(head[:512]), b"\0")
