"""Small files that ask for much memory."""

from __future__ import annotations

import struct

from . import torch_files as tf
from .pickles import (
    APPENDS,
    BUILD,
    DUP,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    MARK,
    MEMOIZE,
    NEWOBJ,
    NONE,
    POP,
    PROTO2,
    PROTO4,
    STOP,
    Call,
    Name,
    dump,
    glob,
    put,
)
from .registry import DESCRIBED, REFUSED, SHOWN, attack
from .zips import DEFLATED, SENTINEL, Entry, end_records, zeros_bomb, zip64_extra, zip_bytes


@attack(DESCRIBED, REFUSED, says="bytearray")
def bytearray_of_4_gb() -> bytes:
    return tf.pt(Call(Name("builtins", "bytearray"), (4 * 10**9,)))


@attack(DESCRIBED, REFUSED, says="torch.Tensor")
def tensor_of_1e9() -> bytes:
    return tf.pt(Call(Name("torch", "Tensor"), (10**9,)))


@attack(DESCRIBED, REFUSED, says="torch.zeros")
def zeros_by_name() -> bytes:
    return tf.pt(Call(Name("torch", "zeros"), ((10**6, 10**6),)))


@attack(DESCRIBED, REFUSED, says="UntypedStorage")
def untyped_storage_by_name() -> bytes:
    return tf.pt(Call(Name("torch", "UntypedStorage"), (10**12,)))


@attack(DESCRIBED, REFUSED, says="numpy")
def numpy_reconstruct_huge() -> bytes:
    array = Call(Name("numpy.core.multiarray", "_reconstruct"), (Name("numpy", "ndarray"), (2**40,), b"b"))
    return tf.pt([array, Call(Name("numpy", "ones"), ((2**40,),))])


@attack(DESCRIBED, REFUSED, says="list")
def list_of_a_range() -> bytes:
    return tf.pt(Call(Name("builtins", "list"), (Call(Name("builtins", "range"), (10**10,)),)))


@attack(DESCRIBED, REFUSED, says="mul")
def string_times_number() -> bytes:
    return tf.pt(Call(Name("operator", "mul"), ("A" * 1000, 10**9)))


@attack(REFUSED, SHOWN)
def long_binput_with_a_huge_index() -> bytes:
    return tf.pkl(PROTO2, EMPTY_DICT, put(2**32 - 1), STOP)


@attack(REFUSED, SHOWN)
def text_put_with_an_astronomic_index() -> bytes:
    return tf.pkl(PROTO2, EMPTY_DICT, b"p", b"9" * 4000, b"\n", STOP)


@attack(REFUSED)
def text_put_with_a_negative_index() -> bytes:
    return tf.pkl(PROTO2, EMPTY_DICT, b"p-1\n", STOP)


@attack(REFUSED)
def binbytes8_length_beyond_the_file() -> bytes:
    return tf.pkl(PROTO4, b"\x8e", struct.pack("<Q", 2**40), b"abc", STOP)


@attack(REFUSED)
def binunicode8_length_2_64() -> bytes:
    return tf.pkl(PROTO4, b"\x8d", struct.pack("<Q", 2**64 - 1), b"abc", STOP)


@attack(REFUSED)
def bytearray8_length_beyond_the_file() -> bytes:
    return tf.pkl(b"\x80\x05\x96", struct.pack("<Q", 2**62), b"abc", STOP)


@attack(REFUSED)
def binstring_negative_length() -> bytes:
    return tf.pkl(PROTO2, b"T", struct.pack("<i", -5), b"abc", STOP)


@attack(REFUSED)
def long4_negative_length() -> bytes:
    return tf.pkl(PROTO2, b"\x8b", struct.pack("<i", -1), STOP)


@attack(REFUSED, SHOWN)
def frame_longer_than_the_file() -> bytes:
    """A frame's length only helps buffering."""
    return tf.pkl(PROTO4, b"\x95", struct.pack("<Q", 2**63), EMPTY_DICT, STOP)


@attack(REFUSED)
def five_million_marks() -> bytes:
    return tf.pkl(PROTO2, MARK * 5_000_000, STOP)


@attack(REFUSED, slow=True)
def five_million_empty_dicts() -> bytes:
    return tf.pkl(PROTO2, EMPTY_LIST, MARK, EMPTY_DICT * 5_000_000, APPENDS, STOP)


def five_million(opcode: bytes) -> bytes:
    """In one list, a thousand at a time, as Python's pickler writes it."""
    return tf.pkl(PROTO2, EMPTY_LIST, (MARK + opcode * 1000 + APPENDS) * 5000, STOP)


@attack(SHOWN, slow=True)
def a_list_of_five_million_nones() -> bytes:
    """Plain data that is walked by each question that is asked of a checkpoint."""
    return five_million(NONE)


@attack(REFUSED, SHOWN, slow=True)
def a_list_of_five_million_empty_tuples() -> bytes:
    return five_million(EMPTY_TUPLE)


@attack(REFUSED, slow=True)
def five_million_dups() -> bytes:
    return tf.pkl(PROTO2, EMPTY_LIST, MARK, EMPTY_TUPLE, DUP * 5_000_000, APPENDS, STOP)


@attack(REFUSED, SHOWN, slow=True)
def five_million_memo_entries() -> bytes:
    return tf.pkl(PROTO4, EMPTY_DICT, MEMOIZE * 5_000_000, STOP)


@attack(REFUSED, slow=True)
def five_million_builds() -> bytes:
    """Each BUILD may keep a state; none may keep them all, or copy what is there."""
    made = glob("a", "B") + EMPTY_TUPLE + NEWOBJ
    return tf.pkl(PROTO2, made, (EMPTY_DICT + BUILD) * 2_500_000, STOP)


@attack(REFUSED, SHOWN, slow=True)
def five_million_protos() -> bytes:
    return tf.pkl(PROTO2 * 5_000_000, EMPTY_DICT, STOP)


@attack(REFUSED, SHOWN, slow=True)
def five_million_pushes_and_pops() -> bytes:
    return tf.pkl(PROTO2, (NONE + POP) * 5_000_000, EMPTY_DICT, STOP)


@attack(REFUSED, DESCRIBED, says="m", slow=True)
def half_a_million_globals() -> bytes:
    return tf.pkl(PROTO2, *((glob("m", f"n{i}") + POP) for i in range(500_000)), EMPTY_DICT, STOP)


@attack(REFUSED, DESCRIBED, says="m", slow=True)
def globals_with_megabyte_names() -> bytes:
    return tf.pkl(PROTO2, *((glob("m", f"n{i}" + "x" * 2**20) + POP) for i in range(30)), EMPTY_DICT, STOP)


@attack(REFUSED, slow=True)
def deflated_pickle_of_1_gib() -> bytes:
    entry = Entry("archive/data.pkl", raw=zeros_bomb(1024), method=DEFLATED)
    entry.local = entry.central = {"size": 2**30, "crc": 0}
    return zip_bytes([entry, Entry("archive/version", b"3\n")])


@attack(REFUSED)
def deflated_pickle_that_inflates_past_its_size() -> bytes:
    entry = Entry("archive/data.pkl", raw=zeros_bomb(64), method=DEFLATED)
    entry.local = entry.central = {"size": 100, "crc": 0}
    return zip_bytes([entry, Entry("archive/version", b"3\n")])


@attack(REFUSED, SHOWN)
def deflated_tensor_that_inflates_past_its_size() -> bytes:
    """`inspect` need not look at the bytes of a tensor; `verify` and `convert` do."""
    entries = tf.pt_entries(dump({"w": tf.tensor()}), {})
    lie = {"size": 16, "crc": 0}
    bomb = Entry("archive/data/0", raw=zeros_bomb(256), method=DEFLATED, local=lie, central=lie)
    return zip_bytes([*entries, bomb])


@attack(REFUSED, SHOWN)
def deflated_tensor_of_8_tib_in_a_kilobyte() -> bytes:
    entries = tf.pt_entries(dump({"w": tf.tensor(size=(2**41,), of=tf.storage(numel=2**41))}), {})
    lie = {"size": 0xFFFFFFFF, "crc": 0, "extra": zip64_extra(2**43)}
    bomb = Entry("archive/data/0", raw=zeros_bomb(1), method=DEFLATED, local=lie, central=lie)
    return zip_bytes([*entries, bomb])


@attack(REFUSED, SHOWN)
def deflate_bombs_in_every_small_record() -> bytes:
    """`byteorder` and `version` are a few bytes in any honest file."""
    lie = {"size": 256 * 2**20, "crc": 0}
    small = (
        "byteorder",
        "version",
        ".format_version",
        ".storage_alignment",
        ".data/serialization_id",
        "ptsave.json",
    )
    bombs = [
        Entry(f"archive/{name}", raw=zeros_bomb(256), method=DEFLATED, local=lie, central=lie)
        for name in small
    ]
    return zip_bytes([Entry("archive/data.pkl", dump({})), *bombs])


@attack(REFUSED, slow=True)
def million_directory_entries() -> bytes:
    """Each with a name of its own, over the same few bytes."""
    sound = zip_bytes([*tf.pt_entries(dump({})), Entry("archive/data/0000000")])
    start = sound.index(b"PK\x01\x02")
    last = sound[sound.rindex(b"PK\x01\x02") : -22]
    copies = (last.replace(b"0000000", b"%07d" % i) for i in range(1, 1_000_000))
    directory = sound[start:-22] + b"".join(copies)
    told = {"here": 1_000_004, "total": 1_000_004, "size": len(directory), "offset": start}
    limits = {"here": 0xFFFF, "total": 0xFFFF, "size": SENTINEL, "offset": SENTINEL}
    ends = end_records(start, len(directory), told, limits)
    return sound[:start] + directory + ends


@attack(REFUSED)
def zip_count_of_2_64() -> bytes:
    return zip_bytes(
        tf.pt_entries(dump({})),
        zip64={"here": 2**64 - 1, "total": 2**64 - 1},
        end={"here": 0xFFFF, "total": 0xFFFF},
    )
