"""Containers, checked against the real readers of each: what ptsave says yes to, they read too, and the same.

Zip: Python's zipfile, torch's PyTorchFileReader, `torch.load(weights_only=True)`, mapped and not. npz:
`numpy.load(allow_pickle=False)`. safetensors: the library's `deserialize`. Values are compared.
"""

from __future__ import annotations

import io
import itertools
import random
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptsave.core.values.gather import contiguous
from ptsave.errors import PtsaveError
from ptsave.formats import open_checkpoint
from ptsave.verbs.checks.bytes import bytes_
from ptsave.verbs.checks.safe import safe
from ptsave.verbs.checks.subject import Subject
from tests.attacks import torch_files as tf
from tests.attacks.pickles import dump
from tests.attacks.zips import DEFLATED, STORED, Entry, zip_bytes

Found = dict[str, tuple[tuple[int, ...], bytes]]
"""Shape and little-endian bytes by name."""
FLOATS = [struct.pack("<4f", *range(n, n + 4)) for n in range(3)]


class DifferenceError(Exception):
    """A real reader reads what ptsave says yes to otherwise, or not at all."""


def read_by_ptsave(path: Path) -> Found | None:
    """The tensors of a file that ptsave opens and finds nothing wrong with; None where it is no yes."""
    try:
        with open_checkpoint(path) as checkpoint:
            subject = Subject(checkpoint)
            findings = [*safe(subject), *bytes_(subject)]
            if any(finding.level == "fail" for finding in findings):
                return None
            found: Found = {}
            for name, entry in checkpoint.tensors.items():
                storage, offset = contiguous(entry)
                buffer = bytearray(entry.num_bytes)
                storage.read_into(offset, memoryview(buffer))
                found[name] = (entry.shape, bytes(buffer))
            return found
    except PtsaveError:
        return None


def compare(path: Path, found: Found) -> None:
    """Check what ptsave read of the file at `path` against its real readers.

    Raises: DifferenceError.
    """
    content = path.read_bytes()
    if content[:4] != b"PK\3\4":
        _hold("safetensors", lambda: _by_safetensors(content), found)
        return
    names: list[str] = []
    _hold("zipfile", lambda: names.extend(zipfile.ZipFile(io.BytesIO(content)).namelist()) or {}, None)
    if not any(name.endswith("data.pkl") for name in names):
        _hold("numpy.load", lambda: _by_numpy(content), found)
        return
    for how in ({}, {"mmap": True}):
        _hold(f"torch.load({how})", lambda how=how: _by_torch(path, how), found)  # type: ignore[misc]
    _compare_records(content)


def _hold(reader: str, read: Callable[[], Found], found: Found | None) -> None:
    try:
        theirs = read()
    except Exception as error:
        raise DifferenceError(f"{reader} does not read it: {error!r:.300}") from error
    if found is not None and theirs != found:
        raise DifferenceError(f"{reader} reads {theirs!r:.300}, ptsave {found!r:.300}")


def _by_torch(path: Path, how: dict[str, Any]) -> Found:
    import torch

    tree = torch.load(path, weights_only=True, **how)
    return {name: (tuple(t.shape), t.contiguous().numpy().tobytes()) for name, t in tree.items()}


def _by_numpy(content: bytes) -> Found:
    import numpy as np

    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {
        name: (array.shape, array.astype(array.dtype.newbyteorder("<")).tobytes())
        for name, array in arrays.items()
        if isinstance(array, np.ndarray)
    }


def _by_safetensors(content: bytes) -> Found:
    from safetensors import deserialize

    read = deserialize(content)  # type: ignore[no-untyped-call]
    return {name: (tuple(info["shape"]), bytes(info["data"])) for name, info in read}


def _compare_records(content: bytes) -> None:
    """Every record, in the eyes of torch's reader and of zipfile's."""
    import torch

    theirs = torch._C.PyTorchFileReader(io.BytesIO(content))  # type: ignore[attr-defined]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = sorted(name.partition("/")[2] for name in archive.namelist())
        if names != sorted(theirs.get_all_records()):
            raise DifferenceError(f"zipfile lists {names}, torch {theirs.get_all_records()}")
        for info in archive.infolist():
            name = info.filename
            if name.endswith("/") or (info.CRC == 0 and info.file_size):
                continue  # torch can leave the CRC out, and zipfile refuses such a record
            if archive.read(name) != theirs.get_record(name.partition("/")[2]):
                raise DifferenceError(f"zipfile and torch differ on {name!r}")


def compare_bytes(content: bytes, _: object) -> None:
    """Check a file of these bytes against its real readers, where ptsave says yes to it.

    Raises: DifferenceError.
    """
    with tempfile.TemporaryDirectory(prefix="ptsave-fuzz-") as folder:
        path = Path(folder) / "file.bin"
        path.write_bytes(content)
        found = read_by_ptsave(path)
        if found is not None:
            compare(path, found)


def zip_seeds() -> list[bytes]:
    """Some generated zips."""
    return list(itertools.islice(zips(0), 60))


# What is generated


def torch_entries() -> list[Entry]:
    """A torch zip of three tensors, of which two share a storage."""
    root = {
        "a": tf.tensor(),
        "b": tf.tensor(of=tf.storage(key="1")),
        "half": tf.tensor(offset=2, size=(2,)),
    }
    entries = tf.pt_entries(dump(root, b"\x80\x02"), {"0": FLOATS[0], "1": FLOATS[1]})
    return [*entries, Entry("archive/.data/serialization_id", b"0" * 40)]


def npz_entries() -> list[Entry]:
    """An npz of three arrays."""
    return [Entry(f"{name}.npy", npy(FLOATS[i])) for i, name in enumerate(("a", "b", "w.x"))]


def npy(data: bytes) -> bytes:
    """Four floats as a .npy file."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + data


_FIELDS = ("flags", "method", "crc", "packed", "size", "offset", "attributes", "internal", "disk", "version")
_NAMES = (
    str.upper,
    lambda name: name + ".npy",
    lambda name: name.removesuffix(".npy"),
    lambda name: name + "/",
    lambda name: "./" + name,
    lambda name: name.replace("archive", "Archive"),
    lambda name: name.replace("archive/", ""),
    lambda name: name.replace("data/", "data//"),
    lambda name: name.replace("/", "\\"),
    lambda name: name + "\0x",
    lambda name: "archive/byteorder",
    lambda name: "archive/ByteOrder",
    lambda name: "archive/.data/version",
    lambda name: "archive/.format_version",
    lambda name: "archive/constants.pkl",
    lambda name: "archive/.storage_alignment",
    lambda name: name.replace("a", "é"),
)
_DATA = (b"big", b"little", b"3\n", b"1", b"", FLOATS[2], npy(FLOATS[2]), b"99")


def _numbers(rng: random.Random) -> int:
    return rng.choice((0, 1, 8, 16, 0x10, 0x800, 0xFFFF, rng.getrandbits(5), rng.getrandbits(16)))


def _change(rng: random.Random, entries: list[Entry]) -> None:
    """One lie, or one unusual way of writing, in place."""
    at = rng.randrange(len(entries))
    entry = entries[at]
    kind = rng.randrange(10)
    if kind == 0:
        entries[at] = replace(entry, name=rng.choice(_NAMES)(str(entry.name)))
    elif kind == 1:
        entries.insert(rng.randrange(len(entries) + 1), entry)
    elif kind == 2:
        rng.shuffle(entries)
    elif kind == 3:
        entries[at] = replace(entry, method=DEFLATED if entry.method == STORED else STORED)
    elif kind == 4:
        side = rng.choice(("local", "central"))
        lie = {rng.choice(_FIELDS): _numbers(rng)}
        entries[at] = replace(entry, **{side: {**getattr(entry, side), **lie}})
    elif kind == 5:
        lie = {rng.choice(_FIELDS[:5]): _numbers(rng)}
        entries[at] = replace(entry, local={**entry.local, **lie}, central={**entry.central, **lie})
    elif kind == 6:
        extra = rng.choice((b"FB\x04\0ZZZZ", b"\1\0\x10\0" + bytes(16), b"up\7\0\1abcdxy", b"\0\0\0"))
        side = rng.choice(("local", "central"))
        entries[at] = replace(entry, **{side: {**getattr(entry, side), "extra": extra}})
    elif kind == 7:
        entries[at] = replace(entry, descriptor=not entry.descriptor)
    elif kind == 8:
        entries[at] = replace(entry, data=rng.choice(_DATA))
    else:
        name = rng.choice(_NAMES)(str(entry.name))
        entries.insert(rng.randrange(len(entries) + 1), replace(entry, name=name, data=rng.choice(_DATA)))


def zips(seed: int) -> Iterator[bytes]:
    """Torch zips and npz with a few lies each, without end; some have their bytes flipped as well."""
    rng = random.Random(seed)
    while True:
        entries = torch_entries() if rng.random() < 0.7 else npz_entries()
        for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3))):
            _change(rng, entries)
        comment = rng.choice((b"", b"", b"", b"hello", b"PK\5\6" + bytes(18)))
        zip64 = rng.choice((None, None, None, {}))
        try:
            data = bytearray(zip_bytes(entries, comment=comment, zip64=zip64))
        except (struct.error, UnicodeEncodeError, zlib.error):
            continue
        for _ in range(rng.choice((0, 0, 0, 1, 2))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield bytes(data)


_WORDS = (
    *(b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"F32"', b'"BF16"', b'"I64"', b'"F4"'),
    *(b"null", b"true", b"-0", b"0", b"1", b"16", b"4.0", b"1e1", b"{", b"}", b"[", b"]", b",", b":", b" "),
    *(b"\\u0061", b'"a"', b"\n", b"\x0b", b"\xff", b"NaN", b"18446744073709551616", b'"x":1,'),
)


def safetensors(seed: int) -> Iterator[bytes]:
    """safetensors files with a few words of the header, or bytes of the file, replaced; without end."""
    rng = random.Random(seed)
    header = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
        b'"b":{"dtype":"F32","shape":[2,2],"data_offsets":[16,32]}}'
    )
    while True:
        text = bytearray(header)
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            at, to = rng.randrange(len(text)), rng.choice((0, 1, 1, 2, 7))
            text[at : at + to] = rng.choice(_WORDS)
        data = bytearray(tf.safetensors(bytes(text), FLOATS[0] + FLOATS[1]))
        for _ in range(rng.choice((0, 0, 1))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield bytes(data)
