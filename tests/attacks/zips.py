"""A zip writer that tells the truth until it is told to lie, in any field.

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.3.7 (local header), 4.3.9 (data descriptor), 4.3.12
(directory), 4.3.14 and 4.3.15 (zip64), 4.3.16 (end of directory).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

STORED, DEFLATED = 0, 8
SENTINEL = 0xFFFFFFFF


@dataclass
class Entry:
    """One entry; `local` and `central` override fields of its two headers."""

    name: str | bytes
    data: bytes = b""
    method: int = STORED
    raw: bytes | None = None
    """The bytes that are stored, where they are not simply `data` after `method`."""
    local: Mapping[str, int | bytes] = field(default_factory=dict)
    central: Mapping[str, int | bytes] = field(default_factory=dict)
    descriptor: bool = False
    """Sizes and CRC follow the data, as torch writes them."""
    descriptor_lies: Mapping[str, int] = field(default_factory=dict)
    listed: bool = True
    """Whether the directory has it."""


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def zeros_bomb(num_mib: int) -> bytes:
    """A raw deflate stream of `num_mib` MiB of zeros, made without compressing them all."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    unit = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return unit * num_mib + b"\x03\x00"


def zip_bytes(
    entries: Sequence[Entry],
    *,
    prefix: bytes = b"",
    suffix: bytes = b"",
    comment: bytes = b"",
    gap: bytes = b"",
    end: Mapping[str, int] | None = None,
    zip64: Mapping[str, int] | None = None,
) -> bytes:
    """The archive; `end` and `zip64` override fields of the end records (`zip64` also adds them)."""
    out = bytearray(prefix)
    directory = bytearray()
    for entry in entries:
        stored = entry.raw
        if stored is None:
            stored = deflate(entry.data) if entry.method == DEFLATED else entry.data
        name = entry.name.encode() if isinstance(entry.name, str) else entry.name
        truth: dict[str, int | bytes] = {
            "signature": 0x04034B50,
            "version": 20,
            "flags": 0x800 | (8 if entry.descriptor else 0),
            "method": entry.method,
            "time": 0,
            "date": 0x21,
            "crc": zlib.crc32(entry.data),
            "packed": len(stored),
            "size": len(entry.data),
            "name": name,
            "extra": b"",
        }
        offset = len(out)
        hidden = {"crc": 0, "packed": 0, "size": 0} if entry.descriptor else {}
        out += _local({**truth, **hidden, **entry.local})
        out += stored
        if entry.descriptor:
            told = {**truth, **entry.descriptor_lies}
            out += struct.pack("<IIII", 0x08074B50, told["crc"], told["packed"], told["size"])
        if entry.listed:
            more = {"signature": 0x02014B50, "made_by": 20, "disk": 0, "attributes": 0}
            more |= {"internal": 0, "comment": b"", "offset": offset}
            directory += _central({**truth, **more, **entry.central})
    out += gap
    start = len(out)
    listed = sum(entry.listed for entry in entries)
    out += directory
    told = {"here": min(listed, 0xFFFF), "total": min(listed, 0xFFFF), "comment": len(comment)}
    if zip64 is not None:
        zip64 = {"here": listed, "total": listed} | dict(zip64)
    out += end_records(start, len(directory), zip64, told | dict(end or {}))
    return bytes(out + comment + suffix)


def _local(f: Mapping[str, int | bytes]) -> bytes:
    name, extra = bytes(f["name"]), bytes(f["extra"])  # type: ignore[arg-type]
    numbers = [f[k] for k in ("signature", "version", "flags", "method", "time", "date")]
    sizes = [f[k] for k in ("crc", "packed", "size")]
    lengths = [f.get("name_length", len(name)), f.get("extra_length", len(extra))]
    return struct.pack("<IHHHHHIIIHH", *numbers, *sizes, *lengths) + name + extra


def _central(f: Mapping[str, int | bytes]) -> bytes:
    name, extra, comment = (bytes(f[k]) for k in ("name", "extra", "comment"))  # type: ignore[arg-type]
    numbers = [f[k] for k in ("signature", "made_by", "version", "flags", "method", "time", "date")]
    sizes = [f[k] for k in ("crc", "packed", "size")]
    lengths = [
        f.get("name_length", len(name)),
        f.get("extra_length", len(extra)),
        f.get("comment_length", len(comment)),
    ]
    rest = [f[k] for k in ("disk", "internal", "attributes", "offset")]
    return struct.pack("<IHHHHHHIIIHHHHHII", *numbers, *sizes, *lengths, *rest) + name + extra + comment


def end_records(start: int, size: int, zip64: Mapping[str, int] | None, end: Mapping[str, int]) -> bytes:
    """The end of the directory at `start`: the zip64 record and locator if asked, then the old record."""
    out = b""
    if zip64 is not None:
        record = {"signature": 0x06064B50, "record_size": 44, "made_by": 45, "version": 45, "disk": 0}
        record |= {"start_disk": 0, "here": 0, "total": 0, "size": size, "offset": start}
        locator = {"locator_signature": 0x07064B50, "locator_disk": 0, "locator_offset": start + size}
        locator |= {"disks": 1}
        record |= {key: value for key, value in zip64.items() if key in record}
        locator |= {key: value for key, value in zip64.items() if key in locator}
        out += struct.pack("<IQHHIIQQQQ", *record.values()) + struct.pack("<IIQI", *locator.values())
    old = {"signature": 0x06054B50, "disk": 0, "start_disk": 0, "here": 0, "total": 0, "size": size}
    old |= {"offset": start, "comment": 0}
    return out + struct.pack("<IHHHHIIH", *(old | dict(end)).values())


def zip64_extra(*values: int) -> bytes:
    """The extra field 0x0001 with 8-byte values (size, packed, offset, as far as they are sentinels)."""
    return struct.pack("<HH", 1, 8 * len(values)) + b"".join(struct.pack("<Q", v) for v in values)
