"""Files that are no checkpoint, paths that are no files, and what is two things at once."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from . import torch_files as tf
from .old_formats import tar
from .pickles import EVIL, Call, Name, dump
from .registry import CANARY, DESCRIBED, REFUSED, SHOWN, add, attack
from .zips import Entry, zip_bytes

OTHER: dict[str, bytes] = {
    "empty": b"",
    "one_byte": b"\x80",
    "text": b"hello, world\n" * 100,
    "html": b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>",
    "html_after_space": b"\n\n   <HTML><body>denied</body></HTML>",
    "xml": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "json": b'{"error": "Repository not found"}',
    "git_lfs_pointer": (
        b"version https://git-lfs.github.com/spec/v1\n"
        b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
    ),
    "zeros": bytes(10_000),
    "ones": b"\xff" * 10_000,
    "gguf": b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
    "ggml": b"lmgg" + bytes(64),
    "hdf5": b"\x89HDF\r\n\x1a\n" + b"\xff" * 500,
    "onnx": b"\x08\x07\x12\x07pytorch\x1a\x051.9.0:" + bytes(50),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(30),
    "bzip2": b"BZh91AY&SY" + bytes(30),
    "xz": b"\xfd7zXZ\x00" + bytes(30),
    "zstandard": b"\x28\xb5\x2f\xfd" + bytes(30),
    "seven_zip": b"7z\xbc\xaf\x27\x1c" + bytes(30),
    "rar": b"Rar!\x1a\x07\x01\x00" + bytes(30),
    "elf": b"\x7fELF\x02\x01\x01" + bytes(200),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "pdf": b"%PDF-1.7\n" + bytes(100),
    "sqlite": b"SQLite format 3\x00" + bytes(100),
    "tflite": bytes(4) + b"TFL3" + bytes(100),
    "parquet": b"PAR1" + bytes(100) + b"PAR1",
    "msgpack": b"\x82\xa6params\x81\xa1w\xc4\x04abcd",
    "javascript": b"import torch\ntorch.load('x')\n",
    "plain_zip": zip_bytes([Entry("readme.txt", b"hello")]),
    "jar": zip_bytes([Entry("META-INF/MANIFEST.MF", b"Manifest-Version: 1.0\n")]),
    "keras": zip_bytes(
        [Entry("metadata.json", b"{}"), Entry("config.json", b"{}"), Entry("model.weights.h5", b"")]
    ),
    "wheel": zip_bytes([Entry("torch/__init__.py", b""), Entry("torch-2.0.dist-info/METADATA", b"")]),
    "docx": zip_bytes([Entry("[Content_Types].xml", b"<x/>"), Entry("word/document.xml", b"<x/>")]),
    "shell_script": b"#!/bin/sh\ntouch " + CANARY.encode() + b"\n",
    "half_a_magic": b"\x80\x02\x8a\x0al\xfc",
    "old_mac_text": b"\xef\xbb\xbfhello",
}


def _bytes(data: bytes) -> Callable[[], bytes]:
    return lambda: data


for _name, _data in OTHER.items():
    add(f"not_a_checkpoint_{_name}", "no_checkpoints", _bytes(_data), REFUSED)


# Paths that are no files


@attack(REFUSED)
def path_missing(folder: Path) -> Path:
    return folder / "missing.pt"


@attack(REFUSED)
def path_under_a_file(folder: Path) -> Path:
    (folder / "file").write_bytes(b"x")
    return folder / "file" / "below.pt"


@attack(REFUSED)
def path_is_a_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo.pt")
    return folder / "fifo.pt"


@attack(REFUSED)
def path_is_a_socket(folder: Path) -> Path:
    path = folder / "s"
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("s")
    finally:
        os.fchdir(here)
        os.close(here)
    return path


@attack(REFUSED)
def path_is_dev_zero(folder: Path) -> Path:
    return Path("/dev/zero")


@attack(REFUSED)
def path_is_dev_null(folder: Path) -> Path:
    return Path("/dev/null")


@attack(REFUSED)
def path_in_proc(folder: Path) -> Path:
    """A regular file by its mode, of size 0 by its stat, with endless content."""
    return Path("/proc/self/maps")


@attack(REFUSED)
def path_in_proc_mem(folder: Path) -> Path:
    return Path("/proc/self/mem")


@attack(REFUSED)
def path_is_a_symlink_loop(folder: Path) -> Path:
    (folder / "a.pt").symlink_to(folder / "b.pt")
    (folder / "b.pt").symlink_to(folder / "a.pt")
    return folder / "a.pt"


@attack(REFUSED)
def path_is_a_dangling_symlink(folder: Path) -> Path:
    (folder / "a.pt").symlink_to(folder / "nothing.pt")
    return folder / "a.pt"


@attack(REFUSED)
def path_too_long(folder: Path) -> Path:
    return folder / ("n" * 5000)


@attack(REFUSED)
def path_of_4096_parts(folder: Path) -> Path:
    return folder / "/".join(["n"] * 4096)


@attack(SHOWN)
def path_is_a_symlink_to_a_checkpoint(folder: Path) -> Path:
    """A user's own link is the user's will."""
    (folder / "real.safetensors").write_bytes(tf.PLAIN_SAFETENSORS)
    (folder / "link.pt").symlink_to(folder / "real.safetensors")
    return folder / "link.pt"


@attack(SHOWN)
def suffix_that_lies(folder: Path) -> Path:
    """Formats are known by content: this is safetensors, whatever it is called."""
    path = folder / "model.pt"
    path.write_bytes(tf.PLAIN_SAFETENSORS)
    return path


@attack(REFUSED, SHOWN, DESCRIBED, says="")
def polyglot_of_safetensors_and_zip() -> bytes:
    """A safetensors file whose buffer is a whole torch zip: one file, two checkpoints."""
    inner = tf.pt({"evil": tf.tensor(), "x": Call(Name("os", "system"), ("x",))})
    return tf.safetensors({"w": tf.info("U8", (len(inner),), (0, len(inner)))}, inner)


@attack(REFUSED, SHOWN, DESCRIBED, says="")
def polyglot_of_tar_and_pickle() -> bytes:
    return dump({"w": 1}) + bytes(500) + tar(pickle=dump(EVIL))
