"""Zip archives that two readers would read differently, or that lie about themselves."""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from . import torch_files as tf
from .pickles import EVIL, dump
from .registry import REFUSED, SHOWN, add, attack
from .zips import DEFLATED, SENTINEL, STORED, Entry, deflate, zip64_extra, zip_bytes

GOOD = dump({"w": tf.tensor()})
BAD = dump(EVIL)


def entries(**changes: dict[str, Any]) -> list[Entry]:
    """The entries of a sound file; `data_0={"local": …}` changes the entry `archive/data/0`."""
    made = tf.pt_entries(GOOD)
    names = ("data_pkl", "byteorder", "data_0", "version")
    for name, entry in zip(names, made, strict=True):
        for attribute, value in changes.get(name, {}).items():
            setattr(entry, attribute, value)
    return made


# One field of one header that contradicts the other header or the data

HEADER_LIES: dict[str, dict[str, dict[str, Any]]] = {
    "local_name_differs": {"data_0": {"local": {"name": b"archive/data/1"}}},
    "local_name_is_the_pickle": {"data_0": {"local": {"name": b"archive/data.pkl"}}},
    "local_name_shorter": {"data_0": {"local": {"name": b"archive/data/"}}},
    "local_name_length_lies": {"data_0": {"local": {"name_length": 2}}},
    "local_name_length_65535": {"data_0": {"local": {"name_length": 65535}}},
    "local_extra_length_lies": {"data_0": {"local": {"extra_length": 8}}},
    "local_extra_length_65535": {"data_0": {"local": {"extra_length": 65535}}},
    "local_method_differs": {"data_0": {"local": {"method": DEFLATED}}},
    "central_method_differs": {"data_0": {"central": {"method": DEFLATED}}},
    "pickle_method_differs": {"data_pkl": {"local": {"method": DEFLATED}}},
    "local_packed_size_differs": {"data_0": {"local": {"packed": 15}}},
    "local_size_differs": {"data_0": {"local": {"size": 17}}},
    "local_sizes_differ": {"data_0": {"local": {"packed": 12, "size": 12}}},
    "central_sizes_smaller": {"data_0": {"central": {"packed": 12, "size": 12}}},
    "central_sizes_larger": {"data_0": {"central": {"packed": 20, "size": 20}}},
    "sizes_disagree_though_stored": {
        "data_0": {"central": {"packed": 16, "size": 20}, "local": {"packed": 16, "size": 20}}
    },
    "local_crc_differs": {"data_0": {"local": {"crc": 0x12345678}}},
    "central_crc_differs": {"data_0": {"central": {"crc": 0x12345678}}},
    "local_flags_encrypted": {"data_0": {"local": {"flags": 0x801}}},
    "central_flags_encrypted": {"data_0": {"central": {"flags": 0x801}}},
    "flags_encrypted": {"data_0": {"local": {"flags": 0x801}, "central": {"flags": 0x801}}},
    "flags_strong_encryption": {"data_0": {"local": {"flags": 0x840}, "central": {"flags": 0x840}}},
    "flags_patched_data": {"data_0": {"local": {"flags": 0x820}, "central": {"flags": 0x820}}},
    "flags_masked_headers": {"data_0": {"local": {"flags": 0x2800}, "central": {"flags": 0x2800}}},
    "local_flags_hide_the_sizes": {"data_0": {"local": {"flags": 0x808}}},
    "descriptor_flag_without_descriptor": {
        "data_0": {"local": {"flags": 0x808}, "central": {"flags": 0x808}}
    },
    "descriptor_size_lies": {"data_0": {"descriptor": True, "descriptor_lies": {"size": 12}}},
    "descriptor_packed_lies": {"data_0": {"descriptor": True, "descriptor_lies": {"packed": 12}}},
    "descriptor_crc_lies": {"data_0": {"descriptor": True, "descriptor_lies": {"crc": 7}}},
    "local_signature_wrong": {"data_0": {"local": {"signature": 0x04034B51}}},
    "central_signature_wrong": {"data_0": {"central": {"signature": 0x02014B51}}},
    "central_name_length_lies": {"version": {"central": {"name_length": 60}}},
    "central_extra_length_lies": {"version": {"central": {"extra_length": 60}}},
    "central_comment_length_lies": {"version": {"central": {"comment_length": 60}}},
    "central_comment_swallows_an_entry": {"data_pkl": {"central": {"comment_length": 59}}},
    "offset_beyond_the_file": {"data_0": {"central": {"offset": 10**9}}},
    "offset_into_the_data": {"data_0": {"central": {"offset": 30}}},
    "offset_of_another_entry": {"data_0": {"central": {"offset": 0}}},
    "offset_into_the_directory": {"version": {"central": {"offset": 400}}},
    "starts_on_another_disk": {"data_0": {"central": {"disk": 1}}},
    "directory_bit_on_a_record": {"data_0": {"central": {"attributes": 0x10}}},
    "symlink_mode_on_a_record": {
        "data_0": {"central": {"attributes": 0o120777 << 16, "made_by": 3 << 8 | 20}}
    },
    "version_needed_255": {"data_0": {"local": {"version": 255}, "central": {"version": 255}}},
    "method_bzip2": {"data_0": {"method": 12}},
    "method_lzma": {"data_0": {"method": 14}},
    "method_zstandard": {"data_pkl": {"method": 93}},
    "method_deflate64": {"data_pkl": {"method": 9}},
    "method_65535": {"data_pkl": {"method": 65535}},
    "deflated_but_stored": {"data_pkl": {"method": DEFLATED, "raw": GOOD}},
    "stored_but_deflated": {"data_pkl": {"method": STORED, "raw": deflate(GOOD)}},
    "deflated_with_a_tail": {"data_pkl": {"method": DEFLATED, "raw": deflate(GOOD) + b"tail"}},
    "deflated_cut": {"data_pkl": {"method": DEFLATED, "raw": deflate(GOOD)[:-4]}},
    "deflated_to_less": {
        "data_pkl": {
            "method": DEFLATED,
            "raw": deflate(GOOD),
            "central": {"size": 999},
            "local": {"size": 999},
        }
    },
    "deflated_to_more": {
        "data_pkl": {"method": DEFLATED, "raw": deflate(GOOD), "central": {"size": 9}, "local": {"size": 9}}
    },
    "pickle_crc_wrong": {"data_pkl": {"local": {"crc": 7}, "central": {"crc": 7}}},
    "zip64_extra_missing": {"data_0": {"central": {"packed": SENTINEL, "size": SENTINEL}}},
    "zip64_extra_too_short": {
        "data_0": {"central": {"packed": SENTINEL, "size": SENTINEL, "extra": zip64_extra(16)}}
    },
    "zip64_extra_of_another_size": {
        "data_0": {"central": {"packed": SENTINEL, "size": SENTINEL, "extra": zip64_extra(17, 17)}}
    },
    "zip64_extra_2_64": {
        "data_0": {
            "central": {"packed": SENTINEL, "size": SENTINEL, "extra": zip64_extra(2**64 - 1, 2**64 - 1)}
        }
    },
    "zip64_offset_2_63": {"data_0": {"central": {"offset": SENTINEL, "extra": zip64_extra(2**63)}}},
    "zip64_extra_twice": {
        "data_0": {
            "central": {
                "packed": SENTINEL,
                "size": SENTINEL,
                "extra": zip64_extra(16, 16) + zip64_extra(12, 12),
            }
        }
    },
    "zip64_extra_without_need": {"data_0": {"central": {"extra": zip64_extra(12, 12)}}},
    "zip64_local_disagrees": {
        "data_0": {"local": {"packed": SENTINEL, "size": SENTINEL, "extra": zip64_extra(12, 12)}}
    },
    "extra_field_overruns": {"data_0": {"central": {"extra": struct.pack("<HH", 1, 60000)}}},
    "unicode_path_extra": {
        "data_0": {
            "central": {
                "extra": struct.pack("<HHBI", 0x7075, 5 + 16, 1, zlib.crc32(b"archive/data/0"))
                + b"archive/data.pkl"
            }
        }
    },
    "name_not_utf8": {"data_0": {"name": b"archive/data/\xff\xfe"}},
}

TOLERATED_HEADERS = {
    "central_crc_differs": (REFUSED,),
    "symlink_mode_on_a_record": (REFUSED, SHOWN),
    "directory_bit_on_a_record": (REFUSED, SHOWN),
    "version_needed_255": (REFUSED, SHOWN),
    "zip64_extra_without_need": (REFUSED, SHOWN),
}


def _header_lie(changes: dict[str, dict[str, Any]]) -> Callable[[], bytes]:
    return lambda: zip_bytes(entries(**changes))


for _name, _changes in HEADER_LIES.items():
    add(_name, "zip_lies", _header_lie(_changes), *TOLERATED_HEADERS.get(_name, (REFUSED,)))


# Names

EXTRA_ENTRIES: dict[str, tuple[list[Entry], list[Entry]]] = {
    "duplicate_pickle_evil_first": ([Entry("archive/data.pkl", BAD)], []),
    "duplicate_pickle_evil_last": ([], [Entry("archive/data.pkl", BAD)]),
    "duplicate_record": ([], [Entry("archive/data/0", bytes(16))]),
    "duplicate_small_record": ([], [Entry("archive/version", b"9\n")]),
    "duplicate_but_for_case": ([], [Entry("archive/DATA.PKL", BAD)]),
    "duplicate_but_for_case_of_top": ([], [Entry("ARCHIVE/data.pkl", BAD)]),
    "duplicate_but_for_backslash": ([], [Entry("archive\\data.pkl", BAD)]),
    "duplicate_but_for_dot": ([], [Entry("archive/./data.pkl", BAD)]),
    "duplicate_but_for_double_slash": ([], [Entry("archive//data.pkl", BAD)]),
    "duplicate_but_for_nul": ([], [Entry(b"archive/data.pkl\0x", BAD)]),
    "duplicate_but_for_unicode_form": (
        [Entry("archive/e\u0301", b"1")],
        [Entry("archive/\u00e9", b"2")],
    ),
    "second_top_folder_first": ([Entry("zzz/data.pkl", BAD)], []),
    "second_top_folder_last": ([], [Entry("zzz/data.pkl", BAD)]),
    "traversal": ([], [Entry("archive/../../../etc/cron.d/x", b"x")]),
    "traversal_with_backslashes": ([], [Entry("archive\\..\\..\\x", b"x")]),
    "absolute_name": ([], [Entry("/etc/cron.d/x", b"x")]),
    "drive_name": ([], [Entry("C:/windows/x", b"x")]),
    "empty_name": ([], [Entry("", b"x")]),
    "directory_with_data": ([], [Entry("archive/extra/", b"x")]),
    "record_is_also_a_directory": ([], [Entry("archive/data/0/", b"")]),
    "record_is_a_parent": ([], [Entry("archive/data/0/x", b"")]),
    "name_of_60_kb": ([], [Entry("archive/" + "n" * 60_000, b"x")]),
    "zip_in_zip": ([], [Entry("archive/inner.zip", zip_bytes([Entry("archive/data.pkl", BAD)]))]),
    "python_code_beside": ([], [Entry("archive/code/__init__.py", b"import os")]),
}

TOLERATED_ENTRIES = (
    "name_of_60_kb",
    "zip_in_zip",
    "python_code_beside",
    "duplicate_but_for_unicode_form",
    "traversal",
    "traversal_with_backslashes",
    "absolute_name",
    "drive_name",
    "record_is_also_a_directory",
    "record_is_a_parent",
    "directory_with_data",
    "empty_name",
    "duplicate_but_for_dot",
    "duplicate_but_for_double_slash",
)
"""Nothing is ever unpacked, so a name alone does no harm."""


def _extra_entries(before: list[Entry], after: list[Entry]) -> Callable[[], bytes]:
    return lambda: zip_bytes([*before, *entries(), *after])


for _name, (_before, _after) in EXTRA_ENTRIES.items():
    _outcomes = (REFUSED, SHOWN) if _name in TOLERATED_ENTRIES else (REFUSED,)
    add(_name, "zip_lies", _extra_entries(_before, _after), *_outcomes)


# The end records


def _end(**lies: Any) -> Callable[[], bytes]:
    return lambda: zip_bytes(entries(), **lies)


SOUND = zip_bytes(entries())
_DIRECTORY = SOUND.index(b"PK\x01\x02")

END_LIES: dict[str, Callable[[], bytes]] = {
    "count_too_small": _end(end={"here": 3, "total": 3}),
    "count_too_large": _end(end={"here": 5, "total": 5}),
    "counts_disagree": _end(end={"here": 4, "total": 5}),
    "count_zero": _end(end={"here": 0, "total": 0}),
    "directory_size_too_small": _end(end={"size": 60}),
    "directory_size_too_large": _end(end={"size": 10**6}),
    "directory_size_zero": _end(end={"size": 0}),
    "directory_offset_zero": _end(end={"offset": 0}),
    "directory_offset_one_off": _end(end={"offset": _DIRECTORY + 1}),
    "directory_offset_beyond": _end(end={"offset": 2**31}),
    "directory_offset_at_the_second": _end(end={"offset": SOUND.index(b"PK\x01\x02", _DIRECTORY + 1)}),
    "disk_number_1": _end(end={"disk": 1}),
    "directory_on_disk_1": _end(end={"start_disk": 1}),
    "comment_length_too_large": _end(end={"comment": 10}),
    "comment_length_too_small": _end(comment=b"0123456789", end={"comment": 5}),
    "trailing_garbage": _end(suffix=b"garbage"),
    "trailing_megabyte": _end(suffix=bytes(2**20)),
    "prefix_garbage": _end(prefix=b"#!/bin/sh\nexit\n"),
    "prefix_script_and_shifted_offsets": lambda: b"#!/bin/sh\nexit\n" + SOUND,
    "gap_before_the_directory": _end(gap=b"hidden bytes"),
    "only_an_end_record": lambda: b"PK\x05\x06" + bytes(18),
    "end_record_cut": lambda: SOUND[:-1],
    "end_record_cut_to_its_signature": lambda: SOUND[:-18],
    "end_record_missing": lambda: SOUND[:-22],
    "directory_missing": lambda: SOUND[:_DIRECTORY],
    "second_archive_in_the_comment": lambda: zip_bytes(
        entries(), comment=zip_bytes([Entry("a/data.pkl", BAD)])
    ),
    "two_archives_one_after_the_other": lambda: SOUND + zip_bytes([Entry("archive/data.pkl", BAD)]),
    "end_signature_in_the_comment": _end(comment=b"PK\x05\x06" + bytes(18)),
    "end_record_twice": lambda: SOUND + SOUND[-22:],
    "zip64_locator_beyond": _end(zip64={"locator_offset": 2**40}),
    "zip64_locator_zero": _end(zip64={"locator_offset": 0}),
    "zip64_locator_2_64": _end(zip64={"locator_offset": 2**64 - 1}),
    "zip64_counts_disagree": _end(zip64={"here": 3, "total": 3}),
    "zip64_offset_disagrees": _end(zip64={"offset": 0}),
    "zip64_size_disagrees": _end(zip64={"size": 60}),
    "zip64_many_disks": _end(zip64={"disks": 5}),
    "zip64_record_signature": _end(zip64={"signature": 0x06064B51}),
    "zip64_record_size_huge": _end(zip64={"record_size": 2**63}),
    "zip64_record_size_small": _end(zip64={"record_size": 4}),
    "zip64_sentinels_without_record": _end(end={"here": 0xFFFF, "total": 0xFFFF, "offset": SENTINEL}),
    "zip64_offset_2_63_behind_sentinels": _end(
        zip64={"offset": 2**63}, end={"offset": SENTINEL, "size": SENTINEL, "here": 0xFFFF, "total": 0xFFFF}
    ),
}

TOLERATED_ENDS = {"gap_before_the_directory": (REFUSED, SHOWN)}

for _name, _function in END_LIES.items():
    add(_name, "zip_lies", _function, *TOLERATED_ENDS.get(_name, (REFUSED,)))


# Layout


@attack(REFUSED)
def two_entries_over_the_same_bytes() -> bytes:
    made = entries()
    copy = Entry("archive/data/1", tf.FOUR, central={"offset": 0}, listed=True, raw=b"")
    return zip_bytes([*made, copy])


@attack(REFUSED)
def quoted_overlap() -> bytes:
    """A local header inside the data of another entry: the kernel of the overlapping zip bomb."""
    inner = zip_bytes([Entry("archive/data/1", tf.FOUR)])
    inner_local = inner[: inner.index(b"PK\x01\x02")]
    outer = Entry("archive/data/0", inner_local)
    first = zip_bytes([Entry("archive/data.pkl", GOOD), outer])
    at = first.index(inner_local)
    hidden = Entry(
        "archive/data/1", tf.FOUR, raw=b"", central={"packed": 16, "offset": at}, local={"name": b""}
    )
    return zip_bytes([Entry("archive/data.pkl", GOOD), outer, hidden])


@attack(REFUSED)
def thousand_entries_over_one_kernel() -> bytes:
    kernel = deflate(bytes(2**20))
    made = [Entry("archive/data.pkl", GOOD), Entry("archive/data/0", bytes(2**20), DEFLATED)]
    at = {"offset": zip_bytes(made[:1]).index(b"PK\x01\x02"), "packed": len(kernel)}
    copies = [Entry(f"archive/data/{i}", bytes(2**20), DEFLATED, raw=b"", central=at) for i in range(1, 1000)]
    return zip_bytes([*made, *copies])


@attack(REFUSED)
def entry_over_the_directory() -> bytes:
    made = entries()
    made[-1].central = made[-1].local = {"packed": 300, "size": 300}
    return zip_bytes(made)


@attack(REFUSED, SHOWN)
def unlisted_entry() -> bytes:
    """A local header that no directory entry names: a streaming reader would see it."""
    return zip_bytes([Entry("archive/data.pkl", BAD, listed=False), *entries()])


@attack(REFUSED, says="UTF-8")
def record_named_in_code_page_437() -> bytes:
    """zipfile reads the name as the pickle spells it; torch reads names as UTF-8, and fails."""
    storage = tf.storage(key="é")
    made = tf.pt_entries(dump(OrderedDict(w=tf.tensor(of=storage))), {})
    name, unmarked = "archive/data/é".encode("cp437"), {"flags": 0}
    return zip_bytes([*made, Entry(name, tf.FOUR, local=unmarked, central=unmarked)])


@attack(REFUSED)
def no_pickle() -> bytes:
    return zip_bytes(entries()[1:])


@attack(REFUSED)
def empty_pickle() -> bytes:
    return zip_bytes(tf.pt_entries(b""))


@attack(REFUSED)
def pickle_is_a_directory() -> bytes:
    return zip_bytes([Entry("archive/data.pkl/"), *entries()[1:]])


@attack(REFUSED)
def byteorder_of_the_middle() -> bytes:
    return zip_bytes(entries(byteorder={"data": b"middle"}))


@attack(REFUSED, SHOWN)
def version_is_words() -> bytes:
    return zip_bytes(entries(version={"data": b"\x1b[31mnine\n"}))


@attack(REFUSED, SHOWN)
def version_of_tomorrow() -> bytes:
    return zip_bytes(entries(version={"data": b"99999999999999999999\n"}))


@attack(REFUSED, SHOWN)
def tensor_record_is_deflated_garbage() -> bytes:
    """`inspect` has no need of the bytes, but every reader of them must notice."""
    return zip_bytes(entries(data_0={"method": DEFLATED, "raw": b"\xff" * 20, "local": {}, "central": {}}))


@attack(REFUSED)
def empty_archive() -> bytes:
    return zip_bytes([])


@attack(REFUSED)
def only_the_first_bytes() -> bytes:
    return b"PK\x03\x04"


@attack(REFUSED)
def local_headers_only() -> bytes:
    return SOUND[:_DIRECTORY] + bytes(1000)


@attack(REFUSED, SHOWN)
def record_wrong_but_uncomputed_crc() -> bytes:
    """A CRC of 0 says that nobody computed it."""
    return zip_bytes(entries(data_0={"local": {"crc": 0}, "central": {"crc": 0}}))


@attack(REFUSED, SHOWN)
def record_with_a_wrong_crc() -> bytes:
    """For `inspect` a sound file; `verify --checks bytes` must say no."""
    return zip_bytes(entries(data_0={"local": {"crc": 7}, "central": {"crc": 7}}))
