"""Lies in GGUF files: counts, texts, arrays, tensors and where they lie."""

from __future__ import annotations

import struct
from collections.abc import Callable

from .registry import REFUSED, SHOWN, Outcome, add, attack

U8, I32, U32, F32, BOOL, TEXT, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10


def text(value: str | bytes, length: int | None = None) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value) if length is None else length) + value


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A key and its value in the metadata."""
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def info(
    name: str | bytes = "w",
    sizes: tuple[int, ...] = (8,),
    kind: int = 0,
    offset: int = 0,
    rank: int | None = None,
) -> bytes:
    """What the header says of one tensor."""
    rank = len(sizes) if rank is None else rank
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", rank, *sizes, kind, offset)


def gguf(
    *infos: bytes,
    pairs: tuple[bytes, ...] = (),
    data: bytes = bytes(32),
    version: int = 3,
    num_tensors: int | None = None,
    num_pairs: int | None = None,
) -> bytes:
    """A file, whose counts may be others than those of what is in it."""
    counts = (
        len(infos) if num_tensors is None else num_tensors,
        len(pairs) if num_pairs is None else num_pairs,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join((*pairs, *infos))
    return head + bytes(-len(head) % 32) + data


def aligned(value: bytes, kind: int = U32) -> tuple[bytes, ...]:
    return (pair("general.alignment", kind, value),)


SOUND = gguf(info(), pairs=(pair("general.architecture", TEXT, text("llama")),))

FILES: dict[str, bytes] = {
    "magic_alone": b"GGUF",
    "version_0": gguf(info(), version=0),
    "version_1": gguf(info(), version=1),
    "version_4": gguf(info(), version=4),
    "version_2_32_less_1": gguf(info(), version=2**32 - 1),
    "version_of_both_orders": gguf(info(), version=0x00030003),
    "tensors_2_64_less_1": gguf(info(), num_tensors=2**64 - 1),
    "tensors_2_40": gguf(info(), num_tensors=2**40),
    "tensors_one_more": gguf(info(), num_tensors=2, data=b""),
    "pairs_2_64_less_1": gguf(info(), num_pairs=2**64 - 1),
    "pairs_one_more": gguf(info(), num_pairs=1),
    "key_longer_than_the_file": gguf(pairs=(text("k", 10_000),)),
    "key_of_2_64_less_1": gguf(pairs=(text("k", 2**64 - 1),)),
    "key_twice": gguf(info(), pairs=2 * (pair("k", U32, bytes(4)),)),
    "value_of_type_13": gguf(info(), pairs=(pair("k", 13, bytes(4)),)),
    "value_of_type_2_32_less_1": gguf(info(), pairs=(pair("k", 2**32 - 1, bytes(4)),)),
    "value_missing": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair("k", U64, b""),
    "array_of_2_60": gguf(info(), pairs=(pair("k", ARRAY, array(U8, 2**60)),)),
    "array_of_2_64_less_1": gguf(info(), pairs=(pair("k", ARRAY, array(TEXT, 2**64 - 1)),)),
    "array_longer_than_the_file": gguf(info(), pairs=(pair("k", ARRAY, array(F32, 1000)),)),
    "array_of_type_13": gguf(info(), pairs=(pair("k", ARRAY, array(13, 1, bytes(8))),)),
    "array_nested_1000_deep": gguf(info(), pairs=(pair("k", ARRAY, 1000 * array(ARRAY, 1)),)),
    "alignment_0": gguf(info(), pairs=aligned(bytes(4))),
    "alignment_3": gguf(info(), pairs=aligned(b"\3\0\0\0")),
    "alignment_2_31": gguf(info(), pairs=aligned(b"\0\0\0\x80")),
    "alignment_negative": gguf(info(), pairs=aligned(b"\xe0\xff\xff\xff", I32)),
    "alignment_is_a_text": gguf(info(), pairs=aligned(text("32"), TEXT)),
    "alignment_is_true": gguf(info(), pairs=aligned(b"\1", BOOL)),
    "name_empty": gguf(info("")),
    "names_alike": gguf(info(), info(offset=32), data=bytes(64)),
    "rank_100": gguf(info(sizes=(1,) * 100)),
    "rank_2_32_less_1": gguf(info(rank=2**32 - 1)),
    "size_2_63": gguf(info(sizes=(2**63,))),
    "size_2_64_less_1": gguf(info(sizes=(2**64 - 1,))),
    "sizes_wrap_to_zero": gguf(info(sizes=(2**32, 2**32))),
    "sizes_wrap_in_bytes": gguf(info(sizes=(2**62,))),
    "size_huge_beside_a_zero": gguf(info(sizes=(0, 2**62, 2**62))),
    "size_larger_than_the_bytes": gguf(info(sizes=(9,))),
    "blocks_of_too_few": gguf(info(sizes=(33,), kind=2)),
    "blocks_of_one_number": gguf(info(sizes=(), kind=12)),
    "blocks_larger_than_the_bytes": gguf(info(sizes=(256,), kind=12)),
    "offset_not_aligned": gguf(info(offset=8), data=bytes(64)),
    "offset_beyond": gguf(info(offset=64)),
    "offset_2_64_less_32": gguf(info(offset=2**64 - 32)),
    "overlap": gguf(info(sizes=(16,)), info("v", offset=32), data=bytes(64)),
    "overlap_whole": gguf(info(), info("v")),
    "overlap_of_a_newer_type": gguf(info(sizes=(16,)), info("v", kind=77, offset=32), data=bytes(64)),
    "truncated_by_one": SOUND[:-1],
    "big_endian_counts_in_a_little_endian_file": b"GGUF"
    + struct.pack("<I", 3)
    + struct.pack(">QQ", 1, 0)
    + info(),
    "of_a_pickle": b"GGUF" + bytes(4) + b"\x80\x02}.",
}
_OUTCOMES: dict[str, tuple[Outcome, ...]] = {"size_huge_beside_a_zero": (REFUSED, SHOWN)}


def _bytes(content: bytes) -> Callable[[], bytes]:
    return lambda: content


for _name, _content in FILES.items():
    add(f"gguf_{_name}", "gguf_lies", _bytes(_content), *_OUTCOMES.get(_name, (REFUSED,)), file="attack.gguf")


@attack(SHOWN, file="attack.gguf")
def gguf_names_that_a_terminal_would_obey() -> bytes:
    evil = "\x1b]0;pwned\x07\x1b[2J\u202e"
    pairs = (pair(evil, TEXT, text(evil)), pair("k", ARRAY, array(TEXT, 1, text(evil))))
    return gguf(info(evil), pairs=pairs)


@attack(SHOWN, file="attack.gguf")
def gguf_texts_that_are_not_utf_8() -> bytes:
    return gguf(info(b"\xff"), pairs=(pair(b"\xfe", TEXT, text(b"\xc3\x28")),))


@attack(SHOWN, file="attack.gguf")
def gguf_type_of_tomorrow() -> bytes:
    return gguf(info(kind=2**32 - 1))


@attack(SHOWN, file="attack.gguf")
def gguf_numbers_that_are_none() -> bytes:
    return gguf(info(), pairs=(pair("nan", F32, b"\0\0\xc0\x7f"), pair("inf", F32, b"\0\0\x80\x7f")))
