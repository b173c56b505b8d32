"""Files that are two: each really runs a payload in a real loader, and ptsave does not say yes to it."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import deserialize

from ptsave.errors import CorruptError
from ptsave.formats import open_checkpoint
from tests.attacks import torch_files as tf
from tests.attacks.pickles import dump
from tests.formats.payload import FUNCTION, NAME, PAYLOAD, is_named, ran

__all__ = ["ran"]


def torch_load(path: Path) -> None:
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)


Member = tuple[str, bytes, dict[str, Any]]
EMPTY: list[Member] = [
    ("storages", pickle.dumps(0) + pickle.dumps([]), {}),
    ("tensors", pickle.dumps(0), {}),
    ("pickle", dump({}), {}),
]
EVIL: Member = ("evil", dump(PAYLOAD), {})


def tar(members: list[Member], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, data, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


TARS: dict[str, Callable[[], bytes]] = {
    "a pickle with a payload": lambda: tar([*EMPTY[:2], ("pickle", dump(PAYLOAD), {})]),
    "a second pickle": lambda: tar([*EMPTY, ("pickle", dump(PAYLOAD), {})]),
    "a second pickle far behind": lambda: tar(
        [*EMPTY, *((f"m{i}", b"", {}) for i in range(99)), ("pickle", dump(PAYLOAD), {})]
    ),
    "a second pickle that is a link": lambda: tar(
        [*EMPTY, EVIL, ("pickle", b"", {"type": tarfile.SYMTYPE, "linkname": "evil"})]
    ),
    "a second pickle that is a hard link": lambda: tar(
        [*EMPTY, EVIL, ("pickle", b"", {"type": tarfile.LNKTYPE, "linkname": "evil"})]
    ),
    "a name in an extended header": lambda: tar(
        [*EMPTY, ("x", dump(PAYLOAD), {"pax_headers": {"path": "pickle"}})]
    ),
    "a name in a GNU header": lambda: tar(
        [*EMPTY, ("p" * 120, dump(PAYLOAD), {})], tarfile.GNU_FORMAT
    ).replace(b"p" * 120, b"pickle".ljust(120, b"\0")),
    "storages with a payload": lambda: tar([("storages", dump(PAYLOAD), {}), *EMPTY[1:]]),
    "views with a payload": lambda: tar([("storages", pickle.dumps(0) + dump(PAYLOAD), {}), *EMPTY[1:]]),
    "tensors with a payload": lambda: tar([EMPTY[0], ("tensors", dump(PAYLOAD), {}), EMPTY[2]]),
}


@pytest.mark.parametrize("name", TARS)
def test_tar(name: str, tmp_path: Path, ran: list[bool]) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(TARS[name]())
    torch_load(path)
    assert ran
    assert is_named(path)


def test_a_tar_whose_headers_have_times_is_read(tmp_path: Path) -> None:
    """As `tarfile.add` writes them."""
    path = tmp_path / "a.pth"
    path.write_bytes(tar([(name, data, {"mtime": 1.5}) for name, data, _ in EMPTY]))
    assert b"mtime=1.5" in path.read_bytes()
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "pt-tar"


def as_tar_header(head: bytes) -> bytes:
    """512 bytes that begin with `head`, and that tarfile takes for the header of an empty member."""
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[: len(head)] = head
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_legacy_that_is_tar(tmp_path: Path, ran: list[bool]) -> None:
    """The third pickle of a legacy file, which says nothing, holds the archive."""
    start = dump(tf.MAGIC) + dump(1001) + b"\x80\x03B"
    evil = [*EMPTY[:2], ("pickle", dump(PAYLOAD), {})]
    members = as_tar_header(start + bytes(4))[len(start) + 4 :] + tar(evil)
    start += struct.pack("<I", len(members))
    block = as_tar_header(start)
    path = tmp_path / "a.pth"
    path.write_bytes(block + tar(evil) + b"." + dump({"w": 1}) + dump([]))
    torch_load(path)
    assert ran
    assert is_named(path)
    # the file is otherwise sound
    path.write_bytes(b"".join((start, members, b".", dump({"w": 1}), dump([]))))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "pt-legacy"


def safetensors_that_is_pickle() -> bytes:
    """The length is SHORT_BINBYTES with 28 bytes, which end inside a text of the header."""

    def text(value: str) -> str:
        return f"q\xc2\x8c{chr(len(value))}{value}".encode("latin-1").decode()

    begin = '{"__metadata__":{"a":"'
    code = text(NAME) + text(FUNCTION)
    header = begin + code + 'q\u0093)R"}}'
    return struct.pack("<Q", 0x43 + 256 * 28) + header.encode().ljust(0x43 + 256 * 28, b" ")


def test_safetensors_that_is_pickle(tmp_path: Path, ran: list[bool]) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(safetensors_that_is_pickle())
    torch_load(path)
    assert ran
    with pytest.raises(CorruptError, match=f"also begins as a pickle.*{NAME}"):
        open_checkpoint(path)


def test_safetensors_that_is_tar(tmp_path: Path, ran: list[bool]) -> None:
    text = bytearray(b" " * 512)
    header = json.dumps({"w": {"dtype": "U8", "shape": [-1], "data_offsets": [0, -1]}}).encode()
    evil = tar([*EMPTY[:2], ("pickle", dump(PAYLOAD), {})])
    header = header.replace(b"-1", str(len(evil)).encode())
    text[:8] = struct.pack("<Q", 504)
    text[8 : 8 + len(header)] = header
    for begin, end in ((100, 108), (108, 116), (116, 124), (124, 136), (136, 148), (329, 337), (337, 345)):
        text[begin:end] = b"0".rjust(end - begin)
    # numbers behind the JSON value are none: they lie in a text
    text[len(header) + 7 : 512] = b',"__metadata__":{"x":"' + text[len(header) + 29 : 508] + b'"}}  '[:4]
    text[148:156] = b" " * 8
    text[148:156] = b"%07o " % sum(text)
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(text) + evil)
    assert [name for name, _ in deserialize(path.read_bytes())] == ["w"]
    torch_load(path)
    assert ran
    with pytest.raises(CorruptError, match="also begins as a tar archive"):
        open_checkpoint(path)


@pytest.mark.parametrize("first", ["legacy", "safetensors"])
def test_a_zip_at_the_end(first: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    tail = tf.pt({"w": tf.tensor()})
    if first == "legacy":
        data = tf.legacy({"w": tf.legacy_tensor(size=(4,))}) + tail
    else:
        data = tf.safetensors({"w": tf.info("U8", (len(tail),), (0, len(tail)))}, tail)
    path.write_bytes(data)
    assert zipfile.is_zipfile(path)
    with pytest.raises(CorruptError, match="ends as a zip"):
        open_checkpoint(path)


def test_words_of_a_zip_at_the_end_are_no_zip(tmp_path: Path) -> None:
    tail = b"PK\5\6" * 6 + b"PK\1\2"
    path = tmp_path / "a.safetensors"
    path.write_bytes(tf.safetensors({"w": tf.info("U8", (len(tail),), (0, len(tail)))}, tail))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["w"].shape == (28,)
