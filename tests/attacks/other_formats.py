"""Lies in the formats beside torch's own, and files that are no checkpoint at all."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import torch_files as tf
from .pickles import EVIL, Call, Name, New, dump
from .registry import CANARY, DESCRIBED, REFUSED, SHOWN, Outcome, add, attack
from .zips import DEFLATED, Entry, zeros_bomb, zip_bytes

# NumPy


def npy(
    header: str | bytes, data: bytes = tf.FOUR, version: bytes = b"\x01\x00", length: int | None = None
) -> bytes:
    """A `.npy` file around a header that may say anything.

    Source: NumPy's `numpy.lib.format` documentation.
    """
    text = header.encode("latin-1") if isinstance(header, str) else header
    size = len(text) if length is None else length
    count = struct.pack("<H", size) if version == b"\x01\x00" else struct.pack("<I", size)
    return b"\x93NUMPY" + version + count + text + data


def npy_header(descr: str = "'<f4'", order: str = "False", shape: str = "(4,)", more: str = "") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {more}}}\n"


NPY: dict[str, bytes] = {
    "header_is_an_expression": npy(f"__import__('os').system('touch {CANARY}')\n"),
    "header_calls_inside": npy(npy_header(shape=f"(__import__('os').system('touch {CANARY}'),)")),
    "header_is_a_comprehension": npy(npy_header(shape="tuple(9 for i in range(10**9))")),
    "header_is_arithmetic": npy(npy_header(shape="(2**2**30,)")),
    "header_is_a_long_sum": npy(npy_header(shape="(" + "1+" * 20_000 + "1,)")),
    "header_is_nested_deep": npy(npy_header(shape="(" * 20_000 + ")" * 20_000)),
    "header_is_nested_minus": npy(npy_header(shape="(" + "-" * 20_000 + "1,)")),
    "header_is_a_string_product": npy(npy_header(descr="'<f4' * 10**10")),
    "header_lambda": npy("(lambda: None)()\n"),
    "header_fstring": npy("{'descr': f'{1}', 'fortran_order': False, 'shape': ()}\n"),
    "header_duplicate_keys": npy(npy_header(more="'shape': (2, 2)")),
    "header_extra_key": npy(npy_header(more="'evil': 1")),
    "header_missing_key": npy("{'descr': '<f4', 'shape': (4,)}\n"),
    "header_is_a_list": npy("[1]\n"),
    "header_is_empty": npy(""),
    "header_length_beyond": npy(npy_header(), length=60_000),
    "header_length_4_gib": npy(npy_header(), version=b"\x02\x00", length=2**32 - 1),
    "header_with_a_nul": npy(npy_header() + "\0"),
    "header_not_utf_8": npy(npy_header().encode() + b"\xff", version=b"\x03\x00"),
    "header_null_bytes_before_dict": npy("\0\0" + npy_header()),
    "version_9": npy(npy_header(), version=b"\x09\x00"),
    "shape_larger": npy(npy_header(shape="(5,)")),
    "shape_smaller": npy(npy_header(shape="(3,)")),
    "shape_negative": npy(npy_header(shape="(-4,)")),
    "shape_true": npy(npy_header(shape="(True,)"), bytes(4)),
    "shape_float": npy(npy_header(shape="(4.0,)")),
    "shape_is_a_number": npy(npy_header(shape="4")),
    "shape_wraps": npy(npy_header(shape="(4294967296, 4294967296)"), b""),
    "shape_2_63": npy(npy_header(shape="(9223372036854775808,)")),
    "shape_of_5000_digits": npy(npy_header(shape="(" + "9" * 5000 + ",)")),
    "shape_of_text": npy(npy_header(shape="('4',)")),
    "order_is_text": npy(npy_header(order="'False'")),
    "order_is_a_number": npy(npy_header(order="0")),
    "descr_object": npy(npy_header(descr="'|O'"), dump([EVIL])),
    "descr_object_in_a_record": npy(npy_header(descr="[('a', '|O')]"), dump([EVIL])),
    "descr_void_huge": npy(npy_header(descr="'|V999999999999'")),
    "descr_unicode_huge": npy(npy_header(descr="'<U999999999999'")),
    "descr_unknown": npy(npy_header(descr="'<q9'")),
    "descr_is_a_number": npy(npy_header(descr="4")),
    "descr_zero_bytes": npy(npy_header(descr="'<f0'")),
    "descr_escape": npy(npy_header(descr="'\\x1b[31m'")),
    "descr_nested_records": npy(npy_header(descr="[('a', " * 500 + "'<f4'" + ")]" * 500)),
    "data_one_short": npy(npy_header(), tf.FOUR[:-1]),
    "data_one_long": npy(npy_header(), tf.FOUR + b"x"),
}


def _npz(data: bytes) -> Callable[[], bytes]:
    return lambda: zip_bytes([Entry("w.npy", data)])


def _bytes(data: bytes) -> Callable[[], bytes]:
    return lambda: data


for _name, _data in NPY.items():
    _outcomes: tuple[Outcome, ...] = (REFUSED,)
    _says = ""
    if _name.startswith("descr_object"):
        _outcomes, _says = (DESCRIBED,), "os.system"
    elif _name == "descr_nested_records":
        _outcomes = (REFUSED, SHOWN)
    add(f"npz_{_name}", "other_formats", _npz(_data), *_outcomes, says=_says, file="attack.npz")
    add(f"npy_{_name}", "other_formats", _bytes(_data), *_outcomes, says=_says, file="attack.npy")


@attack(REFUSED)
def npz_duplicate_array() -> bytes:
    good = npy(npy_header())
    return zip_bytes([Entry("w.npy", good), Entry("w.npy", good)])


@attack(SHOWN)
def npz_names_that_differ_in_case() -> bytes:
    """No attack at all: a model may well have a `W` and a `w`."""
    good = npy(npy_header())
    return zip_bytes([Entry("W.npy", good), Entry("w.npy", good)])


@attack(REFUSED, SHOWN)
def npz_two_spellings_of_a_name() -> bytes:
    """`w` and `w.npy` are both the array `w` to NumPy."""
    good = npy(npy_header())
    return zip_bytes([Entry("w.npy", good), Entry("w", good)])


@attack(REFUSED, SHOWN)
def npz_member_is_a_bomb() -> bytes:
    lie = {"size": 256 * 2**20, "crc": 0}
    return zip_bytes([Entry("w.npy", raw=zeros_bomb(256), method=DEFLATED, local=lie, central=lie)])


@attack(REFUSED, SHOWN)
def npz_member_is_no_array() -> bytes:
    return zip_bytes([Entry("w.npy", npy(npy_header())), Entry("x.npy", b"not an array")])


@attack(SHOWN, REFUSED)
def npz_member_of_escapes() -> bytes:
    return zip_bytes([Entry("\x1b[31m[red]\n.npy", npy(npy_header()))])


# TorchScript, torch.export


def script(root: Any, *more: Entry, records: dict[str, bytes] | None = None) -> bytes:
    """A TorchScript archive. Source: torch/csrc/jit/docs/serialization.md."""
    made = tf.pt_entries(dump(root), records)
    return zip_bytes([*made, Entry("archive/constants.pkl", dump(())), *more])


CLASS = Name("__torch__", "M")


@attack(REFUSED, DESCRIBED, SHOWN, says="")
def torchscript_code_of_attack() -> bytes:
    """TorchScript code is a program for torch's interpreter, which reads and writes files if asked to."""
    code = b"class M(Module):\n  def forward(self):\n    torch.save(torch.from_file('/etc/passwd'), 'x')\n"
    return script(New(CLASS, state={"w": tf.tensor()}), Entry("archive/code/__torch__.py", code))


@attack(REFUSED)
def torchscript_tensor_outside() -> bytes:
    return script(New(CLASS, state={"w": tf.tensor(offset=9)}))


@attack(REFUSED)
def torchscript_constant_outside() -> bytes:
    entries = tf.pt_entries(dump(New(CLASS, state={"w": tf.tensor()})))
    return zip_bytes([*entries, Entry("archive/constants.pkl", dump((tf.tensor(offset=9),)))])


@attack(REFUSED)
def torchscript_constants_are_garbage() -> bytes:
    entries = tf.pt_entries(dump(New(CLASS, state={"w": tf.tensor()})))
    return zip_bytes([*entries, Entry("archive/constants.pkl", b"\xff\xff")])


@attack(REFUSED, SHOWN, DESCRIBED, says="")
def torchscript_module_in_itself() -> bytes:
    root = b"\x80\x02c__torch__\nM\n)\x81q\x01}X\x02\x00\x00\x00meh\x01sb."
    entries = tf.pt_entries(root)
    return zip_bytes([*entries, Entry("archive/constants.pkl", dump(()))])


@attack(REFUSED, SHOWN, DESCRIBED, says="")
def torchscript_root_is_a_number() -> bytes:
    return script(7)


@attack(REFUSED)
def torchscript_deflate_bomb_of_code() -> bytes:
    lie = {"size": 2**31, "crc": 0}
    bomb = Entry("archive/constants.pkl", raw=zeros_bomb(2048), method=DEFLATED, local=lie, central=lie)
    return zip_bytes([*tf.pt_entries(dump(New(CLASS, state={"w": tf.tensor()}))), bomb])


def pt2(files: Mapping[str, bytes]) -> bytes:
    """A `.pt2` archive. Source: torch/export/pt2_archive/constants.py."""
    made = {
        "archive_format": b"pt2",
        "archive_version": b"0",
        "byteorder": b"little",
        "models/model.json": b"{}",
        "data/weights/model_weights_config.json": b'{"config":{}}',
        "version": b"3\n",
    }
    return zip_bytes([Entry(f"archive/{name}", data) for name, data in (made | dict(files)).items()])


def pt2_weight(**lies: Any) -> bytes:
    """The configuration of one pickle-free weight, with lies in its fields."""
    meta = {
        "dtype": 7,
        "sizes": [{"as_int": 4}],
        "strides": [{"as_int": 1}],
        "storage_offset": {"as_int": 0},
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "layout": 7,
    }
    weight = {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": meta}
    for key, value in lies.items():
        (meta if key in meta else weight)[key] = value
    return json.dumps({"config": {"w": weight}}).encode()


PT2_CONFIGS: dict[str, bytes] = {
    "is_garbage": b"{",
    "is_a_list": b"[]",
    "nested_deep": b"[" * 100_000 + b"]" * 100_000,
    "config_is_a_list": b'{"config":[1]}',
    "duplicate_weight": pt2_weight()[:-2] + b"," + pt2_weight()[len(b'{"config": {') :],
    "path_outside": pt2_weight(path_name="../../../x"),
    "path_missing": pt2_weight(path_name="weight_9"),
    "path_is_a_number": pt2_weight(path_name=7),
    "meta_is_text": pt2_weight(tensor_meta="x"),
    "huge_sizes": pt2_weight(sizes=[{"as_int": 2**62}]),
    "one_too_many": pt2_weight(sizes=[{"as_int": 5}]),
    "negative_size": pt2_weight(sizes=[{"as_int": -4}]),
    "true_as_size": pt2_weight(sizes=[{"as_int": True}]),
    "negative_stride": pt2_weight(strides=[{"as_int": -1}]),
    "rank_differs": pt2_weight(strides=[{"as_int": 1}, {"as_int": 1}]),
    "negative_offset": pt2_weight(storage_offset={"as_int": -1}),
    "dtype_999": pt2_weight(dtype=999),
    "dtype_is_text": pt2_weight(dtype="float32"),
    "symbolic_size": pt2_weight(sizes=[{"as_expr": {"expr_str": "__import__('os')"}}]),
}


def _pt2(config: bytes) -> Callable[[], bytes]:
    return lambda: pt2({"data/weights/model_weights_config.json": config, "data/weights/weight_0": tf.FOUR})


for _name, _data in PT2_CONFIGS.items():
    add(f"pt2_{_name}", "other_formats", _pt2(_data), REFUSED, file="attack.pt2")


@attack(REFUSED, DESCRIBED, says="os.system")
def pt2_pickled_weight() -> bytes:
    config = pt2_weight(use_pickle=True)
    return pt2({"data/weights/model_weights_config.json": config, "data/weights/weight_0": tf.pt(EVIL)})


# torch before 0.1.10


def tar(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@attack(REFUSED, DESCRIBED, says="os.system")
def tar_pickle_is_a_payload() -> bytes:
    return tar(sys_info=dump(tf.SYSTEM_INFO), pickle=dump(EVIL), storages=dump(0), tensors=dump(0))


@attack(REFUSED)
def tar_storage_count_huge() -> bytes:
    return tar(sys_info=dump(tf.SYSTEM_INFO), pickle=dump({}), storages=dump(2**40), tensors=dump(2**40))


@attack(REFUSED)
def tar_member_size_lies() -> bytes:
    data = bytearray(tar(sys_info=dump(tf.SYSTEM_INFO), pickle=dump({}), storages=dump(0), tensors=dump(0)))
    data[124:136] = b"77777777777\0"
    return bytes(data)


@attack(REFUSED, SHOWN)
def tar_symlink_member() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    return out.getvalue()


# What a user may name by mistake

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

for _name, _data in OTHER.items():
    add(f"not_a_checkpoint_{_name}", "other_formats", _bytes(_data), REFUSED)


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
