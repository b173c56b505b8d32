"""Archives and compressed files that hold a checkpoint, and lie about it, or cost more than they should."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import zstandard

from tests.formats.wrapping import tarred, zipped

from . import torch_files as tf
from .pickles import EVIL, dump
from .registry import DESCRIBED, REFUSED, SHOWN, add, attack
from .zips import DEFLATED, Entry, zip_bytes

GOOD = tf.pt({"w": tf.tensor()})
BAD = tf.pt({"w": tf.tensor(), "x": EVIL})
END = bytes(1024)


def member(name: str, data: bytes = GOOD, **fields: object) -> bytes:
    """One member of a tar archive in USTAR's format, header and all."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def raw(name: bytes, data: bytes = GOOD, type: bytes = b"0", at: dict[int, bytes] | None = None) -> bytes:
    """One member with a header of any bytes, and a true checksum."""
    header = bytearray(512)
    header[: len(name)] = name
    header[100:108] = b"0000644\0"
    header[124:136] = f"{len(data):011o}\0".encode()
    header[156:157] = type
    header[257:265] = b"ustar\00000"
    for offset, field in (at or {}).items():
        header[offset : offset + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + data + bytes(-len(data) % 512)


def pax(fields: dict[str, str | bytes], type: bytes = b"x") -> bytes:
    """An extended header."""
    text = b""
    for key, value in fields.items():
        record = f" {key}=".encode() + (value.encode() if isinstance(value, str) else value) + b"\n"
        length = len(record) + len(str(len(record) + 2))
        text += str(length).encode() + record
    return raw(b"PaxHeader", text, type)


HIDDEN = zip_bytes([Entry("archive/data.pkl", dump(EVIL)), Entry("archive/version", b"3\n")])
PAX_SIZE = f"{len(GOOD)}"

TARS: dict[str, Callable[[], bytes]] = {
    "two_members_of_one_name": lambda: member("a.pt") + member("a.pt", BAD) + END,
    "two_spellings_of_one_name": lambda: member("./a.pt") + member("a.pt", BAD) + END,
    "absolute_name": lambda: member("/etc/passwd") + END,
    "name_with_dots": lambda: member("../../a.pt") + END,
    "name_with_inner_dots": lambda: member("a/../a.pt") + END,
    "name_with_backslash": lambda: member("a\\a.pt") + END,
    "empty_name": lambda: raw(b"") + END,
    "pax_name_with_nul": lambda: pax({"path": b"a\0b.pt"}) + member("a.pt") + END,
    "pax_name_out": lambda: pax({"path": "../a.pt"}) + member("a.pt") + END,
    "pax_second_name_taken": lambda: member("a.pt") + pax({"path": "a.pt"}) + member("b.pt", BAD) + END,
    "pax_other_size": lambda: pax({"size": "512"}) + member("a.pt") + END,
    "pax_size_no_number": lambda: pax({"size": "-1"}) + member("a.pt") + END,
    "pax_size_beyond": lambda: pax({"size": str(2**40)}) + member("a.pt") + END,
    "pax_twice": lambda: pax({"path": "b.pt"}) + pax({"path": "c.pt"}) + member("a.pt") + END,
    "pax_key_twice": lambda: raw(b"PaxHeader", b"13 path=a.pt\n13 path=b.pt\n", b"x") + member("a.pt") + END,
    "pax_malformed": lambda: raw(b"PaxHeader", b"99 path=a.pt\n", b"x") + member("a.pt") + END,
    "pax_zero_length": lambda: raw(b"PaxHeader", b"0 path=a.pt\n", b"x") + member("a.pt") + END,
    "pax_sparse": lambda: pax({"GNU.sparse.major": "1", "GNU.sparse.name": "b"}) + member("a.pt") + END,
    "pax_star_sparse": lambda: pax({"SCHILY.realsize": "99"}) + member("a.pt") + END,
    "pax_charset": lambda: pax({"hdrcharset": "UTF-7", "path": "a.pt"}) + member("b.pt") + END,
    "pax_for_all": lambda: pax({"path": "a.pt"}, b"g") + member("b.pt") + member("c.pt", BAD) + END,
    "pax_at_the_end": lambda: member("a.pt") + pax({"path": "b.pt"}) + END,
    "pax_and_long_name": lambda: pax({"path": "b"}) + raw(b"L", b"c\0", b"L") + member("a.pt") + END,
    "long_name_twice": lambda: raw(b"L", b"c\0", b"L") * 2 + member("a.pt") + END,
    "long_name_out": lambda: raw(b"L", b"../c\0", b"L") + member("a.pt") + END,
    "old_sparse": lambda: raw(b"a.pt", type=b"S", at={257: b"ustar  \0"}) + member("b.pt") + END,
    "multi_volume": lambda: raw(b"a.pt", type=b"M") + member("b.pt") + END,
    "unknown_type": lambda: raw(b"a.pt", type=b"Q") + member("b.pt") + END,
    "folder_with_bytes": lambda: raw(b"folder/", type=b"5") + member("b.pt") + END,
    "link_with_bytes": lambda: raw(b"link", type=b"2") + member("b.pt") + END,
    "prefix_of_another_format": lambda: raw(b"a.pt", at={257: b"ustar  \0", 345: b"etc"}) + END,
    "size_negative": lambda: raw(b"a.pt", at={124: b"\xff" * 12}) + END,
    "size_beyond": lambda: raw(b"a.pt", at={124: b"\x80" + b"\xff" * 11}) + END,
    "size_of_the_first_hides_the_second": lambda: raw(b"x", GOOD, at={124: b"77777777777\0"}) + END,
    "checksum": lambda: member("a.pt") + member("b.pt")[:148] + b"0000000\0" + bytes(2000),
    "no_end": lambda: member("a.pt"),
    "second_archive_behind": lambda: member("a.pt") + END + member("a.pt", BAD) + END,
    "long_padding": lambda: member("a.pt") + bytes(5 * 2**20),
    "torch_member": lambda: member("a.pt") + member("storages", dump(EVIL)) + END,
    "hidden_zip_in_text": lambda: member("a.pt") + member("notes.txt", b"hello\n" + HIDDEN) + END,
    "hidden_zip_in_padding": lambda: member("a.pt") + END + HIDDEN,
}
for _name, _build in TARS.items():
    add(f"tar_{_name}", "wrapped_lies", _build, REFUSED)

HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\3"
PACKED: dict[str, Callable[[], bytes]] = {
    "gzip_and_garbage": lambda: gzip.compress(GOOD) + b"garbage",
    "gzip_and_a_pickle": lambda: gzip.compress(GOOD) + dump(EVIL),
    "gzip_and_a_zip": lambda: gzip.compress(GOOD) + HIDDEN,
    "gzip_zeros_and_another": lambda: gzip.compress(GOOD) + bytes(20) + gzip.compress(BAD),
    "gzip_comment_is_a_zip": lambda: (
        gzip.compress(GOOD)
        + b"\x1f\x8b\x08\x04\0\0\0\0\0\3"
        + len(HIDDEN).to_bytes(2, "little")
        + HIDDEN
        + b"\3\0"
        + bytes(8)
    ),
    "gzip_crc": lambda: gzip.compress(GOOD)[:-8] + bytes(4) + gzip.compress(GOOD)[-4:],
    "gzip_length": lambda: gzip.compress(GOOD)[:-4] + bytes(4),
    "gzip_unknown_flag": lambda: gzip.compress(GOOD)[:3] + b"\x80" + gzip.compress(GOOD)[4:],
    "gzip_method": lambda: gzip.compress(GOOD)[:2] + b"\7" + gzip.compress(GOOD)[3:],
    "gzip_in_gzip": lambda: gzip.compress(gzip.compress(GOOD)),
    "gzip_many_members": lambda: gzip.compress(b"") * 400_000,
    "gzip_without_trailer": lambda: gzip.compress(GOOD)[:-8],
    "bzip2_and_garbage": lambda: bz2.compress(GOOD) + b"garbage",
    "bzip2_and_zeros": lambda: bz2.compress(GOOD) + bytes(20),
    "xz_and_garbage": lambda: lzma.compress(GOOD) + b"garbage garbage",
    "xz_large_dictionary": lambda: lzma.compress(
        GOOD, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**30}]
    ),
    "zstd_and_garbage": lambda: zstandard.compress(GOOD) + b"garbage",
    "zstd_cut_at_a_block": lambda: zstandard.compress(GOOD)[:-4],
    "zstd_window": lambda: b"\x28\xb5\x2f\xfd\0\xff" + bytes(40),
    "zstd_dictionary": lambda: b"\x28\xb5\x2f\xfd\x01\x50\x07" + bytes(40),
    "zstd_reserved_block": lambda: b"\x28\xb5\x2f\xfd\0\x50\x07\0\0" + bytes(40),
    "zstd_reserved_flag": lambda: b"\x28\xb5\x2f\xfd\x08\x50" + bytes(40),
    "zstd_huge_size": lambda: b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8 + bytes(40),
    "zstd_long_block": lambda: b"\x28\xb5\x2f\xfd\0\x50" + b"\xff\xff\xfc" + bytes(40),
    "zstd_skips_for_ever": lambda: zstandard.compress(GOOD) + b"\x50\x2a\x4d\x18\xff\xff\xff\xff",
    "zstd_only_skipped": lambda: b"\x50\x2a\x4d\x18\4\0\0\0abcd",
    "zstd_many_frames": lambda: zstandard.compress(b"") * 400_000,
}
for _name, _build in PACKED.items():
    add(f"packed_{_name}", "wrapped_lies", _build, REFUSED)


def stream(packer: object, num_mib: int) -> bytes:
    block = bytes(2**20)
    parts = [packer.compress(GOOD)]  # type: ignore[attr-defined]
    parts += [packer.compress(block) for _ in range(num_mib)]  # type: ignore[attr-defined]
    return b"".join([*parts, packer.flush()])  # type: ignore[attr-defined]


def gzip_bomb(num_mib: int) -> bytes:
    """Zeros, of which no more than one are compressed; ten MiB of it make ten GiB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    unit = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return HEADER + unit * num_mib + b"\3\0" + bytes(8)


def rle_bomb(num_blocks: int) -> bytes:
    """One frame of blocks that are four bytes, and make 128 KiB each."""
    block = (1 << 1 | 128 * 1024 << 3).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\0\x50" + block * num_blocks + b"\3\0\0\0"


def deflated_bomb(num_mib: int) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.pt", "w") as file:
        for _ in range(num_mib):
            file.write(bytes(2**20))
    return held.getvalue()


def deflated_twice(num_mib: int) -> bytes:
    """A torch zip of deflated zeros, compressed once more: a thousand times a thousand."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", dump({"w": tf.tensor()}))
        archive.writestr("a/version", b"3\n")
        with archive.open("a/data/0", "w", force_zip64=True) as file:
            for _ in range(num_mib):
                file.write(bytes(2**20))
    return gzip.compress(held.getvalue())


BOMBS: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: gzip_bomb(10 * 1024),
    "zstd": lambda: stream(zstandard.ZstdCompressor().compressobj(), 1024),
    "zstd_rle": lambda: rle_bomb(2_500_000),
    "bzip2": lambda: stream(bz2.BZ2Compressor(), 300),
    "xz": lambda: stream(lzma.LZMACompressor(preset=0), 400),
    "zip_member": lambda: deflated_bomb(600),
    "zip_in_gzip": lambda: deflated_twice(600),
    "tar_gz": lambda: gzip.compress(member("a.pt") + member("zeros", bytes(300 * 2**20)) + END, 1),
}
for _name, _build in BOMBS.items():
    add(f"wrapped_bomb_{_name}", "wrapped_lies", _build, REFUSED, says="cap", slow=True)


ZIPS: dict[str, Callable[[], bytes]] = {
    "two_members_of_one_name": lambda: zip_bytes([Entry("a.pt", GOOD), Entry("a.pt", BAD)]),
    "names_that_differ_in_case": lambda: zip_bytes([Entry("a.pt", GOOD), Entry("A.PT", BAD)]),
    "name_with_dots": lambda: zip_bytes([Entry("../a.pt", GOOD)]),
    "absolute_name": lambda: zip_bytes([Entry("/a.pt", GOOD)]),
    "name_with_nul": lambda: zip_bytes([Entry("a\0.pt", GOOD)]),
    "other_name_in_the_header": lambda: zip_bytes([Entry("a.pt", GOOD, local={"name": b"b.pt"})]),
    "other_size_in_the_header": lambda: zip_bytes([Entry("a.pt", GOOD, local={"size": 5, "packed": 5})]),
    "overlapping_members": lambda: zip_bytes(
        [Entry("a.pt", GOOD), Entry("b.pt", b"", central={"offset": 9})]
    ),
    "deflated_and_too_long": lambda: zip_bytes([Entry("a.pt", GOOD, DEFLATED, central={"size": 9})]),
    "deflated_crc": lambda: zip_bytes([Entry("a.pt", GOOD, DEFLATED, central={"crc": 7}, local={"crc": 7})]),
    "in_itself_again": lambda: zipped({"a.zip": zipped({"a.zip": zipped({"a.pt": GOOD})})}),
    "a_thousand": lambda: zipped({f"{i}.pt": GOOD for i in range(1000)}),
}
for _name, _build in ZIPS.items():
    add(f"zip_of_files_{_name}", "wrapped_lies", _build, REFUSED)


def agent(data: dict[str, object], **members: bytes) -> bytes:
    """As stable-baselines3 saves an agent.

    Source: stable_baselines3/common/save_util.py (`save_to_zip_file`, `data_to_json`).
    """
    held = {"data": json.dumps(data, indent=4).encode(), "policy.pth": GOOD}
    return zipped({**held, **members, "_stable_baselines3_version": b"2.7.0"})


def serialized(pickle: bytes) -> dict[str, str]:
    return {":type:": "<class 'function'>", ":serialized:": base64.b64encode(pickle).decode()}


@attack(DESCRIBED, says="os.system")
def agent_with_a_schedule() -> bytes:
    """Which stable-baselines3 unpickles when it loads the agent."""
    return agent({"gamma": 0.99, "lr_schedule": serialized(dump(EVIL))})


@attack(DESCRIBED, says="os.system")
def agent_with_an_escaped_key() -> bytes:
    text = json.dumps({"x": serialized(dump(EVIL))}).replace(":serialized:", "\\u003aserialized:")
    return zipped({"data": text.encode(), "policy.pth": GOOD})


@attack(DESCRIBED, says="os.system")
def agent_with_a_key_twice() -> bytes:
    """Of which json takes the last."""
    first, last = serialized(dump({})), serialized(dump(EVIL))
    text = f'{{"x": {json.dumps(last)}, "x": {json.dumps(first)}}}'
    return zipped({"data": text.encode(), "policy.pth": GOOD})


@attack(DESCRIBED, says="os.system")
def agent_with_a_pickle_beside() -> bytes:
    return agent({}, **{"vec_normalize.pkl": dump(EVIL)})


@attack(REFUSED)
def agent_with_two_policies(folder: Path) -> Path:
    """Several checkpoints: none is taken for the one."""
    path = folder / "agent.zip"
    path.write_bytes(agent({}, **{"policy.optimizer.pth": BAD}))
    return path


@attack(DESCRIBED, says="os.system")
def agent_whose_other_policy_runs(folder: Path) -> Path:
    path = folder / "agent.zip"
    path.write_bytes(agent({}, **{"policy.optimizer.pth": BAD}))
    return folder / "agent.zip::policy.pth"


@attack(DESCRIBED, says="os.system")
def tar_gz_payload() -> bytes:
    return gzip.compress(tarred({"model_weights.ckpt": BAD, "model_config.yaml": b"target: x\n"}))


@attack(SHOWN, slow=True)
def tar_pickles_beside_it_are_long() -> bytes:
    """As many opcodes as a file of this size may have, over and over, in a member each."""
    code = b"\x80\x02(l" + b"K\x01a" * 2_500_000 + b"."
    return gzip.compress(tarred({"a.pt": GOOD, **{f"{i}.pkl": code for i in range(30)}}), 1)
