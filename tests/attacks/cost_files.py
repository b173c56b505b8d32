"""Small files that ask for as much work as their bytes can: one builder a kind.

A builder takes how many of its things a file has, and gives the file's bytes, or a folder's files by name.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from . import gguf_lies as gguf
from . import protobuf as pb
from . import torch_files as tf
from .numpy_lies import npy, npy_header
from .old_formats import pt2
from .pickles import (
    APPENDS,
    BUILD,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_SET,
    EMPTY_TUPLE,
    MARK,
    NEWOBJ,
    NONE,
    POP,
    PROTO2,
    PROTO4,
    REDUCE,
    SETITEM,
    SETITEMS,
    STOP,
    TUPLE,
    TUPLE1,
    Call,
    Name,
    New,
    Pers,
    dump,
    glob,
    integer,
    put,
    text,
)
from .zips import DEFLATED, Entry, zip_bytes

Made = bytes | Mapping[str, bytes | str]
"""A file, or the files of a folder by name: their bytes, or the name that a symlink leads to."""
Builder = Callable[[int], Made]

KINDS: dict[str, Builder] = {}
"""By name; as many things as fit into a small file."""
FIXED: dict[str, tuple[int, ...]] = {}
"""By name of a kind: numbers of things at which a cap is met, beside as many as fit."""


def kind(*counts: int) -> Callable[[Builder], Builder]:
    """Register a builder under its name; `counts`: what FIXED says of it."""

    def register(build: Builder) -> Builder:
        name = build.__name__
        KINDS[name] = build
        FIXED[name] = counts
        return build

    return register


# --- pickles of plain data ----------------------------------------------------------------------------


def inside(code: bytes, proto: bytes = PROTO2) -> bytes:
    """A torch zip of `{"w": a tensor, "l": what `code` makes}`."""
    first = text("w") + dump(tf.tensor())[2:-1]
    return tf.pkl(proto, EMPTY_DICT, MARK, first, text("l"), code, SETITEMS, STOP)


def listed(items: bytes) -> bytes:
    return EMPTY_LIST + MARK + items + APPENDS


def dict_of(items: bytes) -> bytes:
    return EMPTY_DICT + MARK + items + SETITEMS


def short(value: str) -> bytes:
    """SHORT_BINUNICODE."""
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def each(spell: Callable[[int], bytes], count: int) -> bytes:
    return b"".join(map(spell, range(count)))


LISTS: dict[str, Callable[[int], bytes]] = {
    "small_ints": lambda i: b"K" + bytes([i % 256]),
    "ints": lambda i: b"J" + struct.pack("<i", i),
    "floats": lambda i: b"G" + struct.pack(">d", i / 7),
    "nones": lambda i: b"N",
    "bools": lambda i: b"\x88",
    "texts": lambda i: short(f"{i:x}"),
    "same_text": lambda i: b"\x8c\x01a",
    "short_bytes": lambda i: b"C\x01a",
    "empty_tuples": lambda i: b")",
    "empty_lists": lambda i: b"]",
    "empty_dicts": lambda i: b"}",
    "empty_sets": lambda i: b"\x8f",
    "one_tuples": lambda i: b"N\x85",
    "pairs": lambda i: b"K" + bytes([i % 256]) + b"N\x86",
    "lists_of_one": lambda i: b"]Na",
    "lists_of_lists": lambda i: b"]]]aa",
    "dicts_of_one": lambda i: b"}\x8c\x01aNs",
    "dicts_of_dicts": lambda i: b"}\x8c\x01a}s",
    "sets_of_one": lambda i: b"\x8f(K\x01\x90",
    "frozensets": lambda i: b"(K\x01\x91",
    "long_ints": lambda i: b"\x8a\x19" + (i + 2**190).to_bytes(25, "little"),
    "text_ints": lambda i: b"I%d\n" % i,
    "text_long_ints": lambda i: b"L" + b"9" * 900 + b"L\n",
    "text_floats": lambda i: b"F%d.5\n" % i,
    "text_strings": lambda i: b"S'\\x41%x'\n" % i,
    "text_unicode": lambda i: b"V\\u0041%x\n" % i,
    "empty_texts": lambda i: b"V\n",
    "texts_of_1000": lambda i: b"X\xe8\x03\x00\x00" + b"%1000d" % i,
    "texts_of_5000": lambda i: b"X\x88\x13\x00\x00" + b"%5000d" % i,
    "bytes_of_5000": lambda i: b"B\x88\x13\x00\x00" + b"%5000d" % i,
    "globals": lambda i: b"cm\nn%d\n" % i,
    "known_globals": lambda i: b"ctorch\nfloat32\n",
    "calls": lambda i: b"cm\nn\n)R",
    "calls_of_one": lambda i: b"cm\nn\nN\x85R",
    "objects": lambda i: b"cm\nn\n)\x81",
    "objects_with_state": lambda i: b"cm\nn\n)\x81}\x8c\x01aNsb",
    "ordered_dicts": lambda i: b"ccollections\nOrderedDict\n)R",
    "deques": lambda i: b"ccollections\ndeque\n)R",
    "complex": lambda i: b"cbuiltins\ncomplex\nG" + bytes(8) + b"G" + bytes(8) + b"\x86R",
    "devices": lambda i: b"ctorch\ndevice\n\x8c\x03cpu\x85R",
    "sizes": lambda i: b"ctorch\nSize\n)\x85R",
    "dup_pop": lambda i: b"N20" * 8 + b"0N",
    "puts": lambda i: b"Nq\x00",
    "memoize": lambda i: b"N\x94",
    "far_puts": lambda i: b"Nr" + struct.pack("<I", 2 * i + 5),
}
"""Opcodes of one item of a list."""


def list_kind(name: str, spell: Callable[[int], bytes]) -> None:
    KINDS[f"list_of_{name}"] = lambda count: inside(listed(each(spell, count)), PROTO4)


def dict_kind(name: str, spell: Callable[[int], bytes]) -> None:
    KINDS[f"dict_of_{name}"] = lambda count: inside(
        dict_of(each(lambda i: integer(i) + spell(i), count)), PROTO4
    )


for _name, _spell in LISTS.items():
    list_kind(_name, _spell)
for _name in ("nones", "texts", "empty_lists", "dicts_of_one", "objects"):
    dict_kind(_name, LISTS[_name])


@kind()
def root_nones(n: int) -> Made:
    return tf.pkl(PROTO4, dict_of(each(lambda i: short(f"{i:x}") + b"N", n)), STOP)


@kind()
def root_texts(n: int) -> Made:
    return tf.pkl(PROTO4, dict_of(each(lambda i: short(f"{i:x}") + short("a"), n)), STOP)


@kind()
def float_keys(n: int) -> Made:
    return inside(dict_of(each(lambda i: b"G" + struct.pack(">d", i) + b"N", n)))


@kind()
def tuple_keys(n: int) -> Made:
    return inside(dict_of(each(lambda i: integer(i) + TUPLE1 + b"N", n)))


@kind()
def text_tuple_keys(n: int) -> Made:
    return inside(dict_of(each(lambda i: short(f"{i:x}") + TUPLE1 + b"N", n)))


@kind()
def keys_one_by_one(n: int) -> Made:
    return inside(EMPTY_DICT + each(lambda i: integer(i) + b"Ns", n))


@kind()
def appends_one_by_one(n: int) -> Made:
    return inside(EMPTY_LIST + b"Na" * n)


@kind()
def sets_of_many(n: int) -> Made:
    return inside(EMPTY_SET + MARK + each(integer, n) + b"\x90", PROTO4)


@kind()
def sets_of_texts(n: int) -> Made:
    return inside(EMPTY_SET + MARK + each(lambda i: short(f"{i:x}"), n) + b"\x90", PROTO4)


@kind()
def one_huge_int(n: int) -> Made:
    return inside(b"\x8b" + struct.pack("<i", n) + b"\x01" * n)


@kind()
def one_huge_text_int(n: int) -> Made:
    return inside(b"L" + b"9" * n + b"L\n")


@kind()
def one_long_line(n: int) -> Made:
    return inside(b"V" + b"a" * n + b"\n")


@kind()
def one_long_escaped_line(n: int) -> Made:
    return inside(b"V" + b"\\u0041" * n + b"\n")


@kind()
def lines_without_end(n: int) -> Made:
    return tf.pkl(PROTO2, EMPTY_DICT, b"V" * n)


@kind()
def one_long_text(n: int) -> Made:
    return inside(b"X" + struct.pack("<I", n) + b"a" * n)


@kind()
def one_long_wide_text(n: int) -> Made:
    return inside(b"X" + struct.pack("<I", 3 * n) + "鿿".encode() * n)


@kind()
def one_long_key(n: int) -> Made:
    return tf.pkl(PROTO2, EMPTY_DICT, MARK, text("k" * n), dump(tf.tensor())[2:-1], SETITEMS, STOP)


@kind()
def names_of_many_dots(n: int) -> Made:
    return tf.pkl(PROTO2, EMPTY_DICT, MARK, text("." * n), dump(tf.tensor())[2:-1], SETITEMS, STOP)


@kind()
def open_marks(n: int) -> Made:
    return tf.pkl(PROTO2, MARK * n)


@kind()
def stack_of_lists(n: int) -> Made:
    return tf.pkl(PROTO2, EMPTY_LIST * n)


@kind()
def dup_of_one_dict(n: int) -> Made:
    return inside(listed(EMPTY_DICT + b"2" * n))


@kind()
def get_of_one_list(n: int) -> Made:
    return inside(listed(listed(b"N" * 1000) + put(1) + b"h\x01" * n))


@kind()
def get_of_one_dict(n: int) -> Made:
    one = dict_of(each(lambda i: short(f"{i:x}") + b"N", 1000))
    return inside(listed(one + put(1) + b"h\x01" * n), PROTO4)


@kind()
def get_of_one_text(n: int) -> Made:
    return inside(listed(text("a" * 1000) + put(1) + b"h\x01" * n))


@kind()
def build_of_one_object(n: int) -> Made:
    return inside(glob("m", "n") + EMPTY_TUPLE + NEWOBJ + each(lambda i: b"}\x8c\x01aNsb", n), PROTO4)


@kind()
def build_of_many_keys(n: int) -> Made:
    return inside(
        glob("m", "n") + EMPTY_TUPLE + NEWOBJ + each(lambda i: EMPTY_DICT + integer(i) + b"Nsb", n), PROTO4
    )


@kind()
def setitems_of_one_dict(n: int) -> Made:
    return inside(EMPTY_DICT + b"(K\x01Nu" * n)


@kind()
def appends_of_one_list(n: int) -> Made:
    return inside(EMPTY_LIST + b"(Ne" * n)


@kind()
def appends_of_nothing(n: int) -> Made:
    return inside(EMPTY_LIST + b"(e" * n)


@kind()
def frames(n: int) -> Made:
    return inside(listed((b"\x95" + struct.pack("<Q", 1) + b"N") * n), PROTO4)


@kind()
def protos(n: int) -> Made:
    return inside(PROTO4 * n + b"N", PROTO4)


@kind()
def deep_lists(n: int) -> Made:
    return inside(listed((EMPTY_LIST * 180 + b"a" * 179) * n))


@kind()
def deep_dicts(n: int) -> Made:
    return inside(listed(((EMPTY_DICT + short("k")) * 180 + NONE + SETITEM * 180) * n), PROTO4)


@kind()
def deep_int_dicts(n: int) -> Made:
    return inside(listed(((EMPTY_DICT + b"K\x01") * 180 + NONE + SETITEM * 180) * n), PROTO4)


@kind()
def deep_tuples(n: int) -> Made:
    return inside(listed((EMPTY_TUPLE + TUPLE1 * 180) * n))


@kind()
def deep_objects(n: int) -> Made:
    return inside(listed((glob("m", "n") * 90 + NONE + (TUPLE1 + REDUCE) * 90) * n))


@kind()
def wide_under_deep(n: int) -> Made:
    wide = dict_of(each(lambda i: integer(i) + b"N", n))
    return tf.pkl(PROTO4, (EMPTY_DICT + short("k")) * 150, wide, SETITEM * 150, STOP)


@kind()
def dicts_of_ten(n: int) -> Made:
    ten = EMPTY_DICT + MARK + each(lambda i: short(f"k{i}") + b"K\x01", 10) + SETITEMS
    return inside(listed(ten * n), PROTO4)


@kind()
def optimizer_states(n: int) -> Made:
    one = dict_of(short("step") + b"K\x01" + short("exp_avg") + b"N")
    state = dict_of(each(lambda i: integer(i) + one, n))
    group = dict_of(short("params") + listed(each(integer, n)) + short("lr") + b"K\x01")
    optimizer = dict_of(short("state") + state + short("param_groups") + listed(group))
    model = dict_of(short("w") + dump(tf.tensor())[2:-1])
    return tf.pkl(PROTO4, dict_of(short("model") + model + short("optimizer") + optimizer), STOP)


@kind()
def param_groups(n: int) -> Made:
    group = dict_of(short("params") + EMPTY_LIST + short("lr") + b"K\x01")
    optimizer = dict_of(short("state") + EMPTY_DICT + short("param_groups") + listed(group * n))
    model = dict_of(short("w") + dump(tf.tensor())[2:-1])
    return tf.pkl(PROTO4, dict_of(short("model") + model + short("optimizer") + optimizer), STOP)


# --- pickles of tensors -------------------------------------------------------------------------------

SHARED = glob("torch._utils", "_rebuild_tensor_v2") + put(1) + POP
ARGS = dump((tf.storage(), 0, (4,), (1,), False, None))[2:-1] + put(2) + POP
STORAGE = dump(tf.storage())[2:-1] + put(3) + POP
GET = b"h\x01"


def of_tensors(items: bytes, records: Mapping[str, bytes] | None = None) -> bytes:
    code = PROTO4 + SHARED + ARGS + STORAGE + dict_of(items) + STOP
    return tf.pt_raw(code, records)


def viewed(i: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """A view of the one storage."""
    args = MARK + b"h\x03" + integer(offset) + dump(shape)[2:-1] + dump(strides)[2:-1] + b"\x89NtR"
    return short(f"{i:x}") + GET + args


@kind(60_000, 125_000, 250_000)
def tied_tensors(n: int) -> Made:
    return of_tensors(each(lambda i: short(f"{i:x}") + b"h\x01h\x02R", n))


@kind(60_000, 125_000)
def views(n: int) -> Made:
    return of_tensors(each(lambda i: viewed(i, (1,), (1,), i % 4), n))


@kind(60_000, 125_000)
def views_of_many_shapes(n: int) -> Made:
    return of_tensors(each(lambda i: viewed(i, (0, i), (1, 1)), n))


@kind()
def views_of_rank_64(n: int) -> Made:
    return of_tensors(each(lambda i: viewed(i, (1,) * 63 + (4,), (1,) * 64), n))


@kind()
def views_of_one_megabyte(n: int) -> Made:
    records = {"0": bytes(1 << 20)}
    big = dump(tf.storage(numel=1 << 18))[2:-1] + put(3) + POP
    items = each(lambda i: viewed(i, (1 << 18,), (1,)), n)
    return tf.pt_raw(PROTO4 + SHARED + big + dict_of(items) + STOP, records)


@kind()
def overlapping_views(n: int) -> Made:
    records = {"0": bytes(4 << 20)}
    big = dump(tf.storage(numel=1 << 20))[2:-1] + put(3) + POP
    items = each(lambda i: viewed(i, (1 << 16,), (1,), i), min(n, 4000))
    return tf.pt_raw(PROTO4 + SHARED + big + dict_of(items) + STOP, records)


@kind()
def scattered_views(n: int) -> Made:
    """Elements far apart, of which each takes a block of the file."""
    side = max(int((n * 4) ** 0.5), 2)
    records = {"0": bytes(4 * side * side)}
    big = dump(tf.storage(numel=side * side))[2:-1] + put(3) + POP
    items = each(lambda i: viewed(i, (side, side), (1, side), 0), 30)
    return tf.pt_raw(PROTO4 + SHARED + big + dict_of(items) + STOP, records)


@kind()
def expanded_views(n: int) -> Made:
    return of_tensors(each(lambda i: viewed(i, (1 << 20,), (0,), 0), min(n, 240)))


@kind(60_000, 125_000)
def parameters(n: int) -> Made:
    start = b"ctorch._utils\n_rebuild_parameter\nq\x040"
    one = b"h\x04h\x01h\x02R\x88N\x87R"
    code = PROTO4 + SHARED + ARGS + start + dict_of(each(lambda i: short(f"{i:x}") + one, n)) + STOP
    return tf.pt_raw(code)


def separate(i: int) -> bytes:
    """A tensor with a storage of its own."""
    pid = Pers(("storage", Name("torch", "FloatStorage"), f"{i}", "cpu", 1))
    return short(f"{i:x}") + GET + dump((pid, 0, (1,), (1,), False, None))[2:-1] + REDUCE


@kind(30_000, 60_000)
def tensors(n: int) -> Made:
    code = PROTO4 + SHARED + dict_of(each(separate, n)) + STOP
    return tf.pt_raw(code, {f"{i}": b"abcd" for i in range(n)})


@kind()
def deflated_tensors(n: int) -> Made:
    entries = tf.pt_entries(PROTO4 + SHARED + dict_of(each(separate, n)) + STOP, {})
    return zip_bytes([*entries, *(Entry(f"archive/data/{i}", b"abcd", DEFLATED) for i in range(n))])


@kind()
def records_of_no_tensor(n: int) -> Made:
    return tf.pt({"w": tf.tensor()}, {"0": tf.FOUR, **{f"x{i}": b"" for i in range(n)}})


@kind()
def entries_with_long_names(n: int) -> Made:
    return tf.pt({"w": tf.tensor()}, {"0": tf.FOUR, **{f"{i:010}" + "n" * 60_000: b"" for i in range(n)}})


@kind()
def entries_with_comments(n: int) -> Made:
    entries = tf.pt_entries(dump({"w": tf.tensor()}))
    more = {"comment": b"c" * 60_000}
    return zip_bytes([*entries, *(Entry(f"archive/data/x{i}", central=more) for i in range(n))])


@kind()
def entries_with_extras(n: int) -> Made:
    entries = tf.pt_entries(dump({"w": tf.tensor()}))
    more = {"extra": struct.pack("<HH", 0x9999, 0) * 5000}
    return zip_bytes([*entries, *(Entry(f"archive/data/x{i}", central=more, local=more) for i in range(n))])


@kind()
def gap_before_directory(n: int) -> Made:
    return zip_bytes(tf.pt_entries(dump({"w": tf.tensor()})), gap=b"PK\5\6" * n)


PACKED = random.Random(0).randbytes(60_000) + bytes(1 << 20)
"""Deflate makes a record of a twentieth of it, which is as much as is read of a small file."""


def packed_entry(name: str, count: int, head: bytes = b"") -> Entry:
    """A deflated record of `head` and PACKED `count` times."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    front = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    unit = packer.compress(PACKED) + packer.flush(zlib.Z_FULL_FLUSH)
    whole = head + PACKED * count
    told = {"size": len(whole), "crc": zlib.crc32(whole)}
    raw = front + unit * count + b"\x03\x00"
    return Entry(name, raw=raw, method=DEFLATED, local=told, central=told)


NUMEL = len(PACKED) // 4


@kind()
def deflated_records(n: int) -> Made:
    root = {f"{i}": tf.tensor(of=tf.storage(key=f"{i}", numel=NUMEL), size=(NUMEL,)) for i in range(n)}
    entry = packed_entry("", 1)
    more = [replace(entry, name=f"archive/data/{i}") for i in range(n)]
    return zip_bytes([*tf.pt_entries(dump(root), {}), *more])


@kind()
def views_of_a_deflated_record(n: int) -> Made:
    """In descending order: each begins before the last."""
    count = max(n // 20, 1)
    numel = NUMEL * count
    big = dump(tf.storage(numel=numel))[2:-1] + put(3) + POP
    items = each(lambda i: viewed(i, (64,), (1,), numel - 64 - i * (numel // (2 * n + 2))), n)
    entries = tf.pt_entries(PROTO4 + SHARED + big + dict_of(items) + STOP, {})
    return zip_bytes([*entries, packed_entry("archive/data/0", count)])


@kind()
def modules(n: int) -> Made:
    leaf = New(
        Name("torch.nn.modules.linear", "Linear"),
        (),
        {"_parameters": {"weight": tf.tensor(), "bias": None}, "_buffers": {}, "_modules": {}},
    )
    code = dump(leaf)[2:-1]
    items = each(lambda i: short(f"{i:x}") + code, n)
    root = glob("torch.nn.modules.container", "Sequential") + EMPTY_TUPLE + NEWOBJ
    state = dict_of(text("_modules") + dict_of(items) + text("_parameters") + EMPTY_DICT)
    return tf.pkl(PROTO4, root, state, BUILD, STOP)


@kind()
def quantized(n: int) -> Made:
    scheme = (Name("torch", "per_tensor_affine"), 1.0, 0)
    of = tf.storage("QInt8Storage", numel=16)
    one = Call(Name("torch._utils", "_rebuild_qtensor"), (of, 0, (16,), (1,), scheme, False, {}))
    return tf.pkl(PROTO4, dict_of(each(lambda i: short(f"{i:x}") + dump(one)[2:-1], n)), STOP)


@kind()
def sparse(n: int) -> Made:
    indices = tf.tensor(size=(1, 1), stride=(1, 1), of=tf.storage("LongStorage", "1", 2))
    layout = Call(Name("torch.serialization", "_get_layout"), ("torch.sparse_coo",))
    args = (layout, (indices, tf.tensor(size=(1,)), (4,), True))
    one = dump(Call(Name("torch._utils", "_rebuild_sparse_tensor"), args))[2:-1]
    code = PROTO4 + dict_of(each(lambda i: short(f"{i:x}") + one, n)) + STOP
    return tf.pt_raw(code, {"0": tf.FOUR, "1": bytes(16)})


@kind()
def conjugate(n: int) -> Made:
    of = tf.storage("ComplexFloatStorage", "0", 2)
    one = dump(tf.tensor(size=(2,), of=of, rest=(False, {}, {"conj": True})))[2:-1]
    return tf.pkl(PROTO4, dict_of(each(lambda i: short(f"{i:x}") + one, n)), STOP)


@kind()
def attributes_of_tensors(n: int) -> Made:
    state = dict_of(each(lambda i: short(f"a{i:x}") + b"N", n))
    call = glob("torch._tensor", "_rebuild_from_type_v2")
    rebuilt = dump(tf.REBUILD)[2:-1] + glob("torch", "Tensor") + dump(tf.tensor().args)[2:-1]
    return tf.pkl(PROTO4, dict_of(short("w") + call + MARK + rebuilt + state + TUPLE + REDUCE), STOP)


def array(values: str = "<f4") -> Call:
    kind_of = Call(Name("numpy", "dtype"), (values[1:], False, True), (3, "<", None, None, None, -1, -1, 0))
    return Call(
        Name("numpy.core.multiarray", "_reconstruct"),
        (Name("numpy", "ndarray"), (0,), b"b"),
        (1, (1,), kind_of, False, b"abcd"),
    )


@kind()
def arrays(n: int) -> Made:
    one = dump(array())[2:-1]
    return tf.pkl(PROTO4, dict_of(each(lambda i: short(f"{i:x}") + one, n)), STOP)


@kind()
def array_scalars(n: int) -> Made:
    kind_of = Call(Name("numpy", "dtype"), ("f4", False, True), (3, "<", None, None, None, -1, -1, 0))
    start = dump(kind_of)[2:-1] + put(4) + POP + glob("numpy.core.multiarray", "scalar") + put(5) + POP
    one = b"h\x05h\x04C\x04abcd\x86R"
    return tf.pkl(PROTO4, start, dict_of(each(lambda i: short(f"{i:x}") + one, n)), STOP)


@kind()
def wide_names(n: int) -> Made:
    return of_tensors(each(lambda i: short("é" * 60 + f"{i:x}") + b"h\x01h\x02R", n))


@kind()
def dotted_names(n: int) -> Made:
    return of_tensors(each(lambda i: short("a." * 60 + f"{i:x}") + b"h\x01h\x02R", n))


@kind()
def odd_names(n: int) -> Made:
    return of_tensors(each(lambda i: short("\x1b[31m\u202e" * 10 + f"{i:x}") + b"h\x01h\x02R", n))


@kind()
def experts(n: int) -> Made:
    names = (f"model.layers.{i // 256}.mlp.experts.{i % 256}.up_proj.weight" for i in range(n))
    return of_tensors(b"".join(short(name) + b"h\x01h\x02R" for name in names))


# --- torch's older formats ----------------------------------------------------------------------------


@kind(60_000, 110_000)
def legacy_tensors(n: int) -> Made:
    def one(i: int) -> bytes:
        pid = Pers(("storage", Name("torch", "FloatStorage"), f"{i}", "cpu", 1, None))
        return short(f"{i:x}") + GET + dump((pid, 0, (1,), (1,), False, None))[2:-1] + REDUCE

    root = PROTO4 + SHARED + dict_of(each(one, n)) + STOP
    return tf.legacy(root, [f"{i}" for i in range(n)], [(1, b"abcd")] * n)


@kind()
def legacy_storages_alone(n: int) -> Made:
    def one(i: int) -> bytes:
        return MARK + b"\x8c\x07storage" + GET + short(f"{i:x}") + b"h\x02K\x01NtQ"

    start = glob("torch", "FloatStorage") + put(1) + POP + text("cpu") + put(2) + POP
    root = PROTO4 + start + listed(each(one, n)) + STOP
    return tf.legacy(root, [f"{i:x}" for i in range(n)], [(1, b"abcd")] * n)


@kind()
def legacy_views(n: int) -> Made:
    def one(i: int) -> bytes:
        view = (f"v{i}", i % 4, 1)
        pid = Pers(("storage", Name("torch", "FloatStorage"), "0", "cpu", 4, view))
        return short(f"{i:x}") + GET + dump((pid, 0, (1,), (1,), False, None))[2:-1] + REDUCE

    return tf.legacy(PROTO4 + SHARED + dict_of(each(one, n)) + STOP)


@kind()
def legacy_list(n: int) -> Made:
    return tf.legacy(PROTO2 + listed(each(LISTS["ints"], n)) + STOP, (), ())


@kind()
def legacy_keys(n: int) -> Made:
    return tf.legacy({}, [f"{i}" for i in range(n)], ())


@kind()
def bare_pickle(n: int) -> Made:
    return PROTO4 + dict_of(each(lambda i: short(f"{i:x}") + dump(array())[2:-1], n)) + STOP


@kind()
def many_pickles(n: int) -> Made:
    return (PROTO2 + b"N.") * n


# --- safetensors --------------------------------------------------------------------------------------


def empty(i: int) -> str:
    return f'"{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'


def header(items: str, more: str = "", data: bytes = b"") -> bytes:
    return tf.safetensors("{" + more + items + "}", data)


@kind(60_000, 125_000)
def st_empty(n: int) -> Made:
    return header(",".join(map(empty, range(n))))


@kind(60_000, 125_000)
def st_tensors(n: int) -> Made:
    entry = '"{i:x}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{j}]}}'
    return tf.safetensors("{" + ",".join(entry.format(i=i, j=i + 1) for i in range(n)) + "}", bytes(n))


@kind(60_000, 100_000, 125_000)
def st_shapes(n: int) -> Made:
    entry = '"{i:x}":{{"dtype":"U8","shape":[0,{i}],"data_offsets":[0,0]}}'
    return header(",".join(entry.format(i=i) for i in range(n)))


@kind()
def st_rank_64(n: int) -> Made:
    shape = "[" + "1," * 63 + "0]"
    return header(",".join(empty(i).replace("[0]", shape, 1) for i in range(n)))


@kind()
def st_metadata(n: int) -> Made:
    pairs = ",".join(f'"{i:x}":""' for i in range(n))
    return header(empty(0), '"__metadata__":{' + pairs + "},")


@kind()
def st_one_long_metadata(n: int) -> Made:
    return header(empty(0), '"__metadata__":{"a":"' + "\\u00e9" * n + '"},')


@kind()
def st_spaces(n: int) -> Made:
    return header(empty(0), " " * n)


@kind()
def st_nested(n: int) -> Made:
    return header('"w":' + "[" * n + "]" * n)


@kind()
def st_numbers(n: int) -> Made:
    return header('"w":[' + "1," * n + "1]")


@kind()
def st_long_number(n: int) -> Made:
    return header('"w":{"dtype":"U8","shape":[' + "1" * n + '],"data_offsets":[0,0]}')


@kind()
def st_wide_names(n: int) -> Made:
    return header(",".join(empty(i).replace('"', '"' + "é" * 100, 1) for i in range(n)))


def recorded(record: Any, items: str = "", data: bytes = b"") -> bytes:
    """A safetensors file with a record."""
    told = json.dumps(record if isinstance(record, str) else json.dumps(record))
    return header(items or empty(0), f'"__metadata__":{{"format":"pt","ptsave":{told}}},', data)


@kind(60_000, 100_000)
def record_digests(n: int) -> Made:
    digests = {f"{i:x}": "0" * 32 for i in range(n)}
    record = {"schema_version": 1, "digests": {"algorithm": "xxh3_128", "tensors": digests}}
    return recorded(record, ",".join(map(empty, range(n))))


@kind(60_000, 100_000)
def record_of_floats(n: int) -> Made:
    """Every tensor has a digest that is not its own."""
    digests = {f"{i:x}": "0" * 32 for i in range(n)}
    record = {"schema_version": 1, "digests": {"algorithm": "xxh3_128", "tensors": digests}}
    entry = '"{i:x}":{{"dtype":"F32","shape":[1],"data_offsets":[{begin},{end}]}}'
    items = ",".join(entry.format(i=i, begin=4 * i, end=4 * i + 4) for i in range(n))
    return recorded(record, items, bytes(4 * n))


@kind()
def record_aliases(n: int) -> Made:
    return recorded({"schema_version": 1, "aliases": {f"a{i:x}": "0" for i in range(n)}})


@kind()
def record_alias_chain(n: int) -> Made:
    return recorded({"schema_version": 1, "aliases": {f"{i:x}": f"{i + 1:x}" for i in range(n)}})


@kind()
def record_extras(n: int) -> Made:
    return recorded({"schema_version": 1, "extras": {f"{i:x}": i for i in range(n)}})


@kind()
def record_extras_nested(n: int) -> Made:
    return recorded('{"schema_version":1,"extras":[' + "[[]]," * n + "1]}")


@kind()
def record_extras_deep(n: int) -> Made:
    return recorded('{"schema_version":1,"extras":[' + ("[" * 150 + "]" * 150 + ",") * n + "1]}")


@kind()
def record_inputs(n: int) -> Made:
    inputs = {f"x{i}": {"shape": [4, 10], "dtype": "float32"} for i in range(n)}
    model = {"class": "ptsave.examples.SimpleNet", "args": {}}
    return recorded({"schema_version": 1, "inputs": inputs, "model": model})


@kind()
def record_versions(n: int) -> Made:
    return recorded({"schema_version": 1, "module_versions": {f"{i:x}": {"version": 1} for i in range(n)}})


@kind()
def record_targets(n: int) -> Made:
    args = {f"a{i}": {"_target_": f"m.n{i}"} for i in range(n)}
    return recorded({"schema_version": 1, "model": {"class": "m.n", "args": args}})


@kind()
def record_keys_like_markers(n: int) -> Made:
    args = {f"_a{i}_": 0 for i in range(n)}
    return recorded({"schema_version": 1, "model": {"class": "m.n", "args": {"a": args}}})


@kind()
def record_behaviour(n: int) -> Made:
    sample = {
        "dtype": "float32",
        "shape": [1],
        "digest": "0" * 32,
        "norm": 1.0,
        "num_odd": 0,
        "sketch": [0.0] * 16,
        "values": [0.0],
    }
    call = {"module": "", "kind": 0, "inputs": {"0": 0}, "outputs": {"0": 0}}
    behaviour = {
        "schema_version": 1,
        "inputs": {"x": {"shape": [4, 10], "dtype": "float32", "seed": 0}},
        "environment": {},
        "determinism": "exact",
        "outputs": {"output": 0},
        "calls": [{**call, "number": i} for i in range(n)],
        "tensors": [sample],
        "kinds": ["m.n"],
    }
    return recorded({"schema_version": 1, "behaviour": behaviour})


# --- folders ------------------------------------------------------------------------------------------

INDEX = "model.safetensors.index.json"


def shards(count: int, per: int, link: bool = False) -> Made:
    files: dict[str, bytes | str] = {}
    weights: dict[str, str] = {}
    for s in range(count):
        name = f"model-{s + 1:05}-of-{count:05}.safetensors"
        names = [f"{s:x}.{i:x}" for i in range(per)]
        entries = (f'"{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for n in names)
        files[f"../blobs/{s}" if link else name] = header(",".join(entries))
        if link:
            files[name] = f"../blobs/{s}"
        weights |= dict.fromkeys(names, name)
    files[INDEX] = json.dumps({"metadata": {}, "weight_map": weights}, separators=(",", ":"))
    return {
        name: data.encode() if name == INDEX and isinstance(data, str) else data
        for name, data in files.items()
    }


@kind()
def shards_of_one(n: int) -> Made:
    return shards(min(n, 10_000), 1)


@kind()
def shards_of_100(n: int) -> Made:
    return shards(n, 100)


@kind()
def shards_of_12000(n: int) -> Made:
    return shards(n, 12_000)


@kind()
def shards_linked(n: int) -> Made:
    return shards(min(n, 3000), 20, link=True)


@kind()
def index_alone(n: int) -> Made:
    weights = {f"{i:x}": "model-00001-of-00001.safetensors" for i in range(n)}
    return {INDEX: json.dumps({"metadata": {}, "weight_map": weights}).encode()}


@kind()
def index_of_shards(n: int) -> Made:
    weights = {f"{i:x}": f"model-{i:06}.safetensors" for i in range(n)}
    return {INDEX: json.dumps({"metadata": {}, "weight_map": weights}).encode()}


@kind()
def index_metadata_nested(n: int) -> Made:
    document = '{"metadata":{"a":[' + "[]," * n + '1]},"weight_map":{"0":"model.safetensors"}}'
    return {INDEX: document.encode(), "model.safetensors": header(empty(0))}


@kind()
def files_of_no_use(n: int) -> Made:
    return {"model.safetensors": header(empty(0)), **{f"{i:x}": b"" for i in range(min(n, 20_000))}}


@kind()
def checkpoints_of_a_run(n: int) -> Made:
    one = tf.pt({"w": tf.tensor()})
    return {f"step-{i:08}.pt": one for i in range(min(n, 10_000))}


@kind()
def pickles_in_a_folder(n: int) -> Made:
    files = {f"pytorch_model-{i:05}-of-{n:05}.bin": tf.pt({f"{i}.w": tf.tensor()}) for i in range(1, n + 1)}
    weights = {f"{i}.w": name for i, name in enumerate(files, 1)}
    return {**files, "pytorch_model.bin.index.json": json.dumps({"weight_map": weights}).encode()}


# --- distributed checkpoints --------------------------------------------------------------------------


def dcp_of(tensors_: bytes, places: bytes, planner: bytes, files: Mapping[str, bytes]) -> Made:
    root = glob(tf.META, "Metadata") + EMPTY_TUPLE + NEWOBJ
    state = dict_of(
        text("state_dict_metadata")
        + tensors_
        + text("planner_data")
        + planner
        + text("storage_data")
        + places
        + text("storage_meta")
        + NONE
        + text("version")
        + text("1.0.0")
    )
    return {".metadata": PROTO4 + root + state + BUILD + STOP, **files}


@kind(30_000, 60_000)
def dcp_tensors(n: int) -> Made:
    one = dump(tf.dcp_tensor())[2:-1]
    names = [f"{i:x}" for i in range(n)]
    entries = b"".join(short(name) + one for name in names)
    planner = b"".join(short(name) + short(name) + TUPLE1 for name in names)
    places = b"".join(dump(tf.dcp_index(name))[2:-1] + dump(tf.dcp_place(offset=0))[2:-1] for name in names)
    return dcp_of(dict_of(entries), dict_of(places), dict_of(planner), {"__0_0.distcp": tf.DCP_ITEM})


@kind()
def dcp_chunks(n: int) -> Made:
    chunks = b"".join(dump(tf.dcp_chunk((4 * i,)))[2:-1] for i in range(n))
    tensor = dump(tf.dcp_tensor((4 * n,), []))[2:-1].replace(listed(b""), listed(chunks))
    places = b"".join(
        dump(tf.dcp_index("w", (4 * i,), i))[2:-1] + dump(tf.dcp_place())[2:-1] for i in range(n)
    )
    planner = dict_of(short("w") + short("w") + TUPLE1)
    return dcp_of(dict_of(short("w") + tensor), dict_of(places), planner, {"__0_0.distcp": tf.DCP_ITEM})


@kind()
def dcp_files(n: int) -> Made:
    n = min(n, 8000)
    entries = b"".join(short(f"{i:x}") + dump(tf.dcp_tensor())[2:-1] for i in range(n))
    places = b"".join(
        dump(tf.dcp_index(f"{i:x}"))[2:-1] + dump(tf.dcp_place(f"__{i}_0.distcp"))[2:-1] for i in range(n)
    )
    planner = b"".join(short(f"{i:x}") + short(f"{i:x}") + TUPLE1 for i in range(n))
    files = {f"__{i}_0.distcp": tf.DCP_ITEM for i in range(n)}
    return dcp_of(dict_of(entries), dict_of(places), dict_of(planner), files)


@kind()
def dcp_planner(n: int) -> Made:
    planner = b"".join(short(f"{i:x}") + MARK + short("k") * 100 + short(f"{i:x}") + TUPLE for i in range(n))
    return dcp_of(dict_of(b""), dict_of(b""), dict_of(planner), {})


@kind()
def dcp_bytes(n: int) -> Made:
    """Items that are pickles, each a list."""
    item = tf.pt(list(range(3)))
    one = dump(New(Name(tf.META, "BytesStorageMetadata"), state={}))[2:-1]
    entries = b"".join(short(f"{i:x}") + one for i in range(n))
    places = b"".join(
        dump(tf.dcp_index(f"{i:x}", None, None))[2:-1] + dump(tf.dcp_place(length=len(item)))[2:-1]
        for i in range(n)
    )
    planner = b"".join(short(f"{i:x}") + short(f"{i:x}") + TUPLE1 for i in range(n))
    return dcp_of(dict_of(entries), dict_of(places), dict_of(planner), {"__0_0.distcp": item})


# --- NumPy, TorchScript, torch.export -----------------------------------------------------------------

ARRAY = npy(npy_header(), tf.FOUR)


@kind(30_000, 60_000)
def npz_arrays(n: int) -> Made:
    return zip_bytes([Entry(f"{i:x}.npy", ARRAY) for i in range(n)])


@kind()
def npz_deflated(n: int) -> Made:
    return zip_bytes([Entry(f"{i:x}.npy", ARRAY, DEFLATED) for i in range(n)])


@kind()
def npz_shapes(n: int) -> Made:
    return zip_bytes([Entry(f"{i:x}.npy", npy(npy_header(shape=f"(0, {i})"), b"")) for i in range(n)])


@kind()
def npz_of_deflated_arrays(n: int) -> Made:
    entry = packed_entry("", 1, npy(npy_header(shape=f"({NUMEL},)"), b""))
    return zip_bytes([replace(entry, name=f"{i}.npy") for i in range(n)])


@kind()
def npy_of_objects(n: int) -> Made:
    return npy(npy_header("'|O'", shape="()"), PROTO4 + listed(b"N" * n) + STOP)


def scripted(code: bytes, method: int = 0) -> bytes:
    module = New(Name("__torch__", "M"), state={"w": tf.tensor(rest=(False, None))})
    made = [*tf.pt_entries(dump(module)), Entry("archive/constants.pkl", dump(()))]
    return zip_bytes([*made, Entry("archive/code/__torch__.py", code, method)])


@kind()
def script_of_names(n: int) -> Made:
    names = ", ".join(f'"{i:x}"' for i in range(n))
    return scripted(f"class M(Module):\n  __parameters__ = [{names}, ]\n".encode())


@kind()
def script_of_classes(n: int) -> Made:
    return scripted(b"".join(b"class M%d(Module):\n  __parameters__ = []\n" % i for i in range(n)))


@kind()
def script_of_lines(n: int) -> Made:
    return scripted(b"class M(Module):\n" + b"  a : int\n" * n)


@kind()
def script_of_packed_lines(n: int) -> Made:
    return scripted(b"class M(Module):\n" + b"  a : int\n" * min(n, 3_000_000), DEFLATED)


@kind()
def script_of_files(n: int) -> Made:
    module = New(Name("__torch__", "M"), state={"w": tf.tensor()})
    made = [*tf.pt_entries(dump(module)), Entry("archive/constants.pkl", dump(()))]
    files = [Entry(f"archive/code/__torch__/m{i}.py", b"class M(Module):\n  pass\n") for i in range(n)]
    return zip_bytes([*made, *files])


@kind()
def script_modules(n: int) -> Made:
    one = New(Name("__torch__", "M"), state={"w": tf.tensor()})
    root = New(Name("__torch__", "M"), state={f"m{i}": one for i in range(n)})
    made = [*tf.pt_entries(dump(root)), Entry("archive/constants.pkl", dump(()))]
    return zip_bytes([*made, Entry("archive/code/__torch__.py", b"class M(Module):\n  pass\n")])


def weight(i: int) -> dict[str, Any]:
    meta = {
        "dtype": 7,
        "sizes": [{"as_int": 4}],
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": 1}],
        "storage_offset": {"as_int": 0},
        "layout": 7,
    }
    return {"path_name": f"weight_{i}", "is_param": True, "use_pickle": False, "tensor_meta": meta}


@kind()
def pt2_weights(n: int) -> Made:
    config = {"config": {f"{i:x}": weight(i) for i in range(n)}}
    files = {f"data/weights/weight_{i}": tf.FOUR for i in range(n)}
    return pt2({"data/weights/model_weights_config.json": json.dumps(config).encode(), **files})


@kind()
def pt2_program(n: int) -> Made:
    return pt2({"models/model.json": b'{"a":[' + b"[]," * n + b"1]}"})


@kind()
def pt2_expressions(n: int) -> Made:
    many = ",".join('{"as_expr":{"expr_str":"s0+1"}}' for _ in range(n))
    return pt2({"models/model.json": f'{{"a":[{many}]}}'.encode()})


@kind()
def pt2_long_expression(n: int) -> Made:
    return pt2({"models/model.json": ('{"a":{"as_expr":{"expr_str":"' + "(" * n + '"}}}').encode()})


# --- ONNX ---------------------------------------------------------------------------------------------


def scalar(i: int) -> bytes:
    """A tensor of one byte."""
    return pb.tensor(f"{i:x}", (), 2, b"a")


@kind()
def onnx_initializers(n: int) -> Made:
    return pb.model(*map(scalar, range(n)))


@kind()
def onnx_packed_initializers(n: int) -> Made:
    return pb.model(*(pb.tensor(f"{i:x}", (), 22, b"a") for i in range(n)))


@kind()
def onnx_sparse_initializers(n: int) -> Made:
    index = pb.tensor("", (1,), 7, bytes(8))
    more = (
        pb.data(15, pb.data(1, pb.tensor(f"{i:x}", (1,), 2, b"a")) + pb.data(2, index) + pb.number(3, 9))
        for i in range(n)
    )
    return pb.model(pb.tensor(), more=b"".join(more))


@kind()
def onnx_long_names(n: int) -> Made:
    return pb.model(*(pb.tensor(f"{i:0100}", (), 2, b"a") for i in range(n)))


@kind()
def onnx_empty_initializers(n: int) -> Made:
    return pb.model(*(pb.tensor(f"{i:x}", (0,), 2, None) for i in range(n)))


@kind()
def onnx_empty_nodes(n: int) -> Made:
    return pb.model(pb.tensor(), nodes=(b"",) * n)


@kind()
def onnx_nodes(n: int) -> Made:
    return pb.model(pb.tensor(), nodes=tuple(pb.node() for _ in range(n)))


@kind()
def onnx_kinds_of_nodes(n: int) -> Made:
    return pb.model(pb.tensor(), nodes=tuple(pb.data(4, f"{i:x}") for i in range(n)))


@kind()
def onnx_unknown_operators(n: int) -> Made:
    return pb.model(pb.tensor(), nodes=tuple(pb.data(4, f"{i:x}") + pb.data(7, "d") for i in range(n)))


@kind()
def onnx_constants(n: int) -> Made:
    return pb.model(nodes=tuple(pb.data(4, "C") + pb.data(5, pb.data(5, scalar(0))) for _ in range(n)))


@kind()
def onnx_attributes(n: int) -> Made:
    return pb.model(pb.tensor(), nodes=(pb.data(5, b"") * n,))


@kind()
def onnx_outputs_of_a_node(n: int) -> Made:
    return pb.model(pb.tensor(), nodes=(pb.data(2, b"") * n,))


@kind()
def onnx_floats(n: int) -> Made:
    return pb.model(pb.tensor(), nodes=(pb.data(5, (pb.tag(7, pb.FIXED32) + bytes(4)) * n),))


@kind()
def onnx_varints(n: int) -> Made:
    return pb.model(pb.tensor(sizes=(n,), data_type=7, raw=None, more=pb.data(7, bytes(n))))


@kind()
def onnx_varints_of_a_byte(n: int) -> Made:
    return pb.model(pb.tensor(sizes=(n,), data_type=2, raw=None, more=pb.data(5, b"\1" * n)))


@kind()
def onnx_tensors_of_varints(n: int) -> Made:
    return pb.model(*(pb.tensor(f"{i:x}", (1,), 7, None, pb.data(7, b"\1")) for i in range(n)))


@kind()
def onnx_texts(n: int) -> Made:
    return pb.model(pb.tensor("s", (n,), 8, None, pb.data(6, b"") * n))


@kind()
def onnx_graphs_in_graphs(n: int) -> Made:
    inner = pb.data(5, pb.data(1, "g") + pb.data(6, pb.graph(scalar(0))))
    return pb.model(pb.tensor(), nodes=tuple(pb.data(3, f"{i:x}") + inner for i in range(n)))


@kind()
def onnx_functions(n: int) -> Made:
    return pb.model(
        pb.tensor(), after=pb.OPSET + b"".join(pb.data(25, pb.data(1, f"{i:x}")) for i in range(n))
    )


@kind()
def onnx_opsets(n: int) -> Made:
    return pb.model(pb.tensor(), after=b"".join(pb.data(8, pb.data(1, f"{i:x}")) for i in range(n)))


@kind()
def onnx_metadata(n: int) -> Made:
    entries = (pb.data(14, pb.entry(f"{i:x}", "")) for i in range(n))
    return pb.model(pb.tensor(), after=pb.OPSET + b"".join(entries))


@kind()
def onnx_long_metadata(n: int) -> Made:
    return pb.model(pb.tensor(), after=pb.OPSET + pb.data(14, pb.entry("k", "\x01" * n)))


@kind()
def onnx_inputs(n: int) -> Made:
    return pb.model(pb.tensor(), more=b"".join(pb.data(11, pb.data(1, f"{i:x}")) for i in range(n)))


@kind()
def onnx_inputs_of_many_sizes(n: int) -> Made:
    sizes = pb.data(1, pb.number(1, 1) + pb.data(2, pb.data(1, pb.data(2, "n")) * 60))
    return pb.model(pb.tensor(), more=pb.data(11, pb.data(2, sizes)) * n)


@kind()
def onnx_unknown_fields(n: int) -> Made:
    return pb.model(pb.tensor(), after=pb.OPSET + pb.number(15, 1) * n)


@kind()
def onnx_trainings(n: int) -> Made:
    return pb.model(pb.tensor(), after=pb.OPSET + pb.data(20, pb.data(1, b"")) * n)


# --- GGUF ---------------------------------------------------------------------------------------------


@kind()
def gguf_tensors(n: int) -> Made:
    return gguf.gguf(*(gguf.info(f"{i:x}", (32,), 24, 32 * i) for i in range(n)), data=bytes(32 * n))


@kind()
def gguf_empty_tensors(n: int) -> Made:
    return gguf.gguf(*(gguf.info(f"{i:x}", (0,)) for i in range(n)))


@kind()
def gguf_blocks(n: int) -> Made:
    return gguf.gguf(*(gguf.info(f"{i:x}", (32,), 2, 32 * i) for i in range(n)), data=bytes(32 * n))


@kind()
def gguf_pairs(n: int) -> Made:
    return gguf.gguf(gguf.info(), pairs=tuple(gguf.pair(f"{i:x}", gguf.U8, b"a") for i in range(n)))


def gguf_array(kind: int, n: int, item: bytes) -> Made:
    return gguf.gguf(gguf.info(), pairs=(gguf.pair("k", gguf.ARRAY, gguf.array(kind, n, item * n)),))


@kind(1_000_000)
def gguf_texts(n: int) -> Made:
    return gguf_array(gguf.TEXT, n, gguf.text(""))


@kind(1_000_000)
def gguf_bytes(n: int) -> Made:
    return gguf_array(gguf.U8, n, b"\xff")


@kind(1_000_000)
def gguf_floats(n: int) -> Made:
    return gguf_array(gguf.F32, n, struct.pack("<f", 1 / 3))


@kind(1_000_000)
def gguf_arrays_in_an_array(n: int) -> Made:
    return gguf_array(gguf.ARRAY, n, gguf.array(gguf.U8, 0))


@kind()
def gguf_long_text(n: int) -> Made:
    return gguf.gguf(gguf.info(), pairs=(gguf.pair("k", gguf.TEXT, gguf.text(b"\xff" * n)),))
