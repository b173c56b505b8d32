"""Small files that ask for much memory or time."""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

from . import torch_files as tf
from .pickles import (
    ADDITEMS,
    APPENDS,
    BUILD,
    DUP,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_SET,
    EMPTY_TUPLE,
    FROZENSET,
    MARK,
    MEMOIZE,
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
    TUPLE2,
    Call,
    Name,
    New,
    Pers,
    Raw,
    Shared,
    dump,
    get,
    glob,
    integer,
    put,
    text,
)
from .registry import DESCRIBED, REFUSED, SHOWN, attack
from .zips import DEFLATED, SENTINEL, Entry, end_records, zeros_bomb, zip64_extra, zip_bytes

PRIME = 2**61 - 1
"""CPython's numeric hash modulus on 64-bit platforms: integers equal modulo it collide."""


def pkl(*code: bytes) -> bytes:
    return tf.pt_raw(b"".join(code))


# Allocation


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
    return pkl(PROTO2, EMPTY_DICT, put(2**32 - 1), STOP)


@attack(REFUSED, SHOWN)
def text_put_with_an_astronomic_index() -> bytes:
    return pkl(PROTO2, EMPTY_DICT, b"p", b"9" * 4000, b"\n", STOP)


@attack(REFUSED)
def text_put_with_a_negative_index() -> bytes:
    return pkl(PROTO2, EMPTY_DICT, b"p-1\n", STOP)


@attack(REFUSED)
def binbytes8_length_beyond_the_file() -> bytes:
    return pkl(PROTO4, b"\x8e", struct.pack("<Q", 2**40), b"abc", STOP)


@attack(REFUSED)
def binunicode8_length_2_64() -> bytes:
    return pkl(PROTO4, b"\x8d", struct.pack("<Q", 2**64 - 1), b"abc", STOP)


@attack(REFUSED)
def bytearray8_length_beyond_the_file() -> bytes:
    return pkl(b"\x80\x05\x96", struct.pack("<Q", 2**62), b"abc", STOP)


@attack(REFUSED)
def binstring_negative_length() -> bytes:
    return pkl(PROTO2, b"T", struct.pack("<i", -5), b"abc", STOP)


@attack(REFUSED)
def long4_negative_length() -> bytes:
    return pkl(PROTO2, b"\x8b", struct.pack("<i", -1), STOP)


@attack(REFUSED, SHOWN)
def frame_longer_than_the_file() -> bytes:
    """A frame's length only helps buffering."""
    return pkl(PROTO4, b"\x95", struct.pack("<Q", 2**63), EMPTY_DICT, STOP)


@attack(REFUSED)
def five_million_marks() -> bytes:
    return pkl(PROTO2, MARK * 5_000_000, STOP)


@attack(REFUSED, slow=True)
def five_million_empty_dicts() -> bytes:
    return pkl(PROTO2, EMPTY_LIST, MARK, EMPTY_DICT * 5_000_000, APPENDS, STOP)


@attack(REFUSED, slow=True)
def five_million_dups() -> bytes:
    return pkl(PROTO2, EMPTY_LIST, MARK, EMPTY_TUPLE, DUP * 5_000_000, APPENDS, STOP)


@attack(REFUSED, SHOWN, slow=True)
def five_million_memo_entries() -> bytes:
    return pkl(PROTO4, EMPTY_DICT, MEMOIZE * 5_000_000, STOP)


@attack(REFUSED, slow=True)
def five_million_builds() -> bytes:
    """Each BUILD may keep a state; none may keep them all, or copy what is there."""
    made = glob("a", "B") + EMPTY_TUPLE + NEWOBJ
    return pkl(PROTO2, made, (EMPTY_DICT + BUILD) * 2_500_000, STOP)


@attack(REFUSED, SHOWN, slow=True)
def five_million_protos() -> bytes:
    return pkl(PROTO2 * 5_000_000, EMPTY_DICT, STOP)


@attack(REFUSED, SHOWN, slow=True)
def five_million_pushes_and_pops() -> bytes:
    return pkl(PROTO2, (NONE + POP) * 5_000_000, EMPTY_DICT, STOP)


@attack(REFUSED, DESCRIBED, says="m", slow=True)
def half_a_million_globals() -> bytes:
    return pkl(PROTO2, *((glob("m", f"n{i}") + POP) for i in range(500_000)), EMPTY_DICT, STOP)


@attack(REFUSED, DESCRIBED, says="m", slow=True)
def globals_with_megabyte_names() -> bytes:
    return pkl(PROTO2, *((glob("m", f"n{i}" + "x" * 2**20) + POP) for i in range(30)), EMPTY_DICT, STOP)


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


# Nesting


@attack(REFUSED)
def nested_lists_100_000() -> bytes:
    return pkl(PROTO2, EMPTY_LIST * 100_000, b"a" * 99_999, STOP)


@attack(REFUSED)
def nested_tuples_100_000() -> bytes:
    return pkl(PROTO2, EMPTY_TUPLE, TUPLE1 * 100_000, STOP)


@attack(REFUSED)
def nested_dicts_100_000() -> bytes:
    return pkl(PROTO2, (EMPTY_DICT + text("k")) * 100_000, NONE, SETITEM * 100_000, STOP)


@attack(REFUSED, DESCRIBED, says="a.B")
def nested_reduces_100_000() -> bytes:
    return pkl(PROTO2, glob("a", "B") * 100_000, NONE, (TUPLE1 + REDUCE) * 100_000, STOP)


@attack(REFUSED, DESCRIBED, says="a.B")
def nested_states_100_000() -> bytes:
    made = glob("a", "B") + EMPTY_TUPLE + NEWOBJ
    return pkl(PROTO2, (made + EMPTY_DICT + text("s")) * 50_000, NONE, (SETITEM + BUILD) * 50_000, STOP)


@attack(REFUSED, SHOWN)
def nested_tuple_as_dict_key() -> bytes:
    return pkl(PROTO2, EMPTY_DICT, EMPTY_TUPLE, TUPLE1 * 100_000, NONE, SETITEM, STOP)


@attack(REFUSED)
def nested_frozensets() -> bytes:
    """Hashing the outermost walks them all."""
    return pkl(PROTO4, MARK * 50_000, NONE, FROZENSET * 50_000, STOP)


@attack(REFUSED, SHOWN)
def nested_persistent_ids() -> bytes:
    return pkl(PROTO2, EMPTY_TUPLE, (TUPLE1 + b"Q") * 50_000, STOP)


@attack(REFUSED)
def nested_marks_and_tuples() -> bytes:
    return pkl(PROTO2, MARK * 100_000, TUPLE * 100_000, STOP)


@attack(REFUSED)
def nested_modules() -> bytes:
    """A chain of `_modules` as deep as the pickle allows."""
    made = (
        glob("torch.nn", "M") + EMPTY_TUPLE + NEWOBJ + EMPTY_DICT + text("_modules") + EMPTY_DICT + text("m")
    )
    return pkl(PROTO2, made * 20_000, NONE, (SETITEM + SETITEM + BUILD) * 20_000, STOP)


# Sharing: a few bytes that spell exponentially many leaves


def doubled(seed: Any, times: int, join: Any) -> Any:
    node: Any = seed
    for _ in range(times):
        node = Shared(node)
        node = join(node)
    return node


@attack(REFUSED, SHOWN)
def exponential_lists() -> bytes:
    return tf.pt(doubled([1], 60, lambda n: [n, n]))


@attack(REFUSED, SHOWN)
def exponential_tuples() -> bytes:
    return tf.pt(doubled((1,), 60, lambda n: (n, n)))


@attack(REFUSED, SHOWN)
def exponential_dicts() -> bytes:
    return tf.pt(doubled({"x": 1}, 60, lambda n: {"a": n, "b": n}))


@attack(REFUSED, SHOWN)
def exponential_dicts_of_tensors() -> bytes:
    return tf.pt(doubled({"x": tf.tensor()}, 60, lambda n: {"a": n, "b": n}))


@attack(REFUSED, SHOWN)
def exponential_tuple_as_dict_key() -> bytes:
    """CPython's tuples do not keep their hash: hashing this one takes 2**60 steps."""
    return tf.pt({Raw(dump(doubled((1,), 60, lambda n: (n, n)))[2:-1]): 1})


@attack(REFUSED, SHOWN)
def exponential_tuple_in_a_set() -> bytes:
    return pkl(PROTO4, EMPTY_SET, MARK, dump(doubled((1,), 60, lambda n: (n, n)))[2:-1], ADDITEMS, STOP)


@attack(REFUSED, SHOWN)
def exponential_tuple_in_a_frozenset() -> bytes:
    return pkl(PROTO4, MARK, dump(doubled((1,), 60, lambda n: (n, n)))[2:-1], FROZENSET, STOP)


@attack(REFUSED, DESCRIBED, says="a.B")
def exponential_opaque_as_dict_key() -> bytes:
    """Its text (`repr`) is exponentially long, too."""
    key = doubled(Call(Name("a", "B"), (1,)), 60, lambda n: Call(Name("a", "B"), (n, n)))
    return tf.pt({Raw(dump(key)[2:-1]): tf.tensor()})


@attack(REFUSED, DESCRIBED, says="a.B")
def exponential_opaque_args() -> bytes:
    return tf.pt(doubled([1], 60, lambda n: Call(Name("a", "B"), (n, n))))


@attack(REFUSED, DESCRIBED, says="a.B")
def exponential_opaque_state() -> bytes:
    return tf.pt(doubled([1], 60, lambda n: New(Name("a", "B"), (), {"x": n, "y": n})))


@attack(REFUSED, DESCRIBED, says="Module")
def exponential_modules() -> bytes:
    """A shared submodule's parameters count once for each of its names, as torch has it."""
    leaf = New(
        Name("torch.nn", "Module"), (), {"_parameters": {"w": tf.tensor()}, "_buffers": {}, "_modules": {}}
    )

    def twice(n: Any) -> Any:
        return New(
            Name("torch.nn", "Module"),
            (),
            {"_parameters": OrderedDict(), "_buffers": OrderedDict(), "_modules": OrderedDict(a=n, b=n)},
        )

    return tf.pt(doubled(leaf, 60, twice))


@attack(REFUSED, SHOWN)
def exponential_frozensets() -> bytes:
    code = b"NN" + FROZENSET
    for _ in range(60):
        code = MARK + code + MEMOIZE + text("x") + FROZENSET
    return pkl(PROTO4, b"(" + code, STOP)


@attack(REFUSED, SHOWN)
def long_list_shared_often() -> bytes:
    """100,000 numbers, 100,000 times."""
    numbers = EMPTY_LIST + put(0) + MARK + b"K\x01" * 100_000 + APPENDS
    return pkl(PROTO2, EMPTY_LIST, MARK, numbers, get(0) * 100_000, APPENDS, STOP)


@attack(REFUSED, SHOWN)
def long_string_shared_often() -> bytes:
    """1 MB of text, 200,000 times."""
    return pkl(
        PROTO2, EMPTY_LIST, MARK, text("A" * 10**6), put(0), get(0) * 200_000, EMPTY_DICT, APPENDS, STOP
    )


@attack(REFUSED, SHOWN)
def long_string_as_many_values() -> bytes:
    pairs = b"".join(integer(i) + get(0) for i in range(100_000))
    return pkl(PROTO2, text("A" * 10**6), put(0), POP, EMPTY_DICT, MARK, pairs, SETITEMS, STOP)


@attack(REFUSED, SHOWN)
def long_keys_on_every_level() -> bytes:
    """100 levels under a key of 1 MB each, and 1,000 tensors: names of 100 GB."""
    leaves = {f"t{i}": tf.tensor() for i in range(1000)}
    code = text("K" * 10**6) + put(9) + POP
    return pkl(PROTO2, code, (EMPTY_DICT + get(9)) * 100, dump(leaves)[2:-1], SETITEM * 100, STOP)


@attack(REFUSED, SHOWN)
def long_foreign_key_shared_often() -> bytes:
    """60 names of a megabyte, which JSON spells in six."""
    nodes = b"".join(EMPTY_DICT + get(9) + NONE + SETITEM for _ in range(60))
    return pkl(PROTO2, text("\u00e9" * 10**6), put(9), POP, EMPTY_LIST, MARK, nodes, APPENDS, STOP)


@attack(REFUSED, SHOWN)
def many_spellings_of_one_name() -> bytes:
    """`{"a": {"a.a": …}}` and `{"a.a": {"a": …}}` join to the same name; here 2**18 paths do."""
    node: Any = {"a": tf.tensor()}
    nodes = [Shared(tf.tensor())]
    for length in range(1, 20):
        nodes.append(Shared({".".join("a" * k): nodes[length - k] for k in range(1, length + 1)}))
    return tf.pt(nodes[-1] if nodes else node)


@attack(REFUSED, DESCRIBED, says="a.B")
def many_equal_spellings_of_keys() -> bytes:
    """Distinct objects as keys whose text is the same."""
    key = glob("a", "B") + EMPTY_TUPLE + NEWOBJ
    return pkl(PROTO2, EMPTY_DICT, MARK, (key + NONE) * 60_000, SETITEMS, STOP)


@attack(REFUSED, SHOWN)
def one_shape_of_a_million_dimensions_in_many_tensors() -> bytes:
    ones = Shared(tuple([1] * 100_000))
    return tf.pt([tf.tensor(size=ones, stride=ones) for _ in range(500)])


@attack(REFUSED)
def shape_with_an_astronomic_product() -> bytes:
    sizes = tuple([2**62] * 50_000)
    return tf.pt(tf.tensor(size=sizes, stride=tuple([1] * 50_000)))


@attack(REFUSED, SHOWN)
def million_elements_from_one() -> bytes:
    """A legal view (stride 0) of 16 bytes with 2**60 elements: shown, but never written out."""
    return tf.pt({"w": tf.tensor(size=(2**60,), stride=(0,))})


@attack(REFUSED, SHOWN)
def thousand_huge_expansions() -> bytes:
    return tf.pt({f"w{i}": tf.tensor(size=(2**40,), stride=(0,)) for i in range(1000)})


# Cycles


@attack(REFUSED, SHOWN)
def list_in_itself() -> bytes:
    return pkl(PROTO2, EMPTY_LIST, put(0), get(0), b"a", STOP)


@attack(REFUSED, SHOWN)
def dict_in_itself() -> bytes:
    return pkl(PROTO2, EMPTY_DICT, put(0), text("me"), get(0), SETITEM, STOP)


@attack(REFUSED, SHOWN)
def two_lists_in_each_other_many_times() -> bytes:
    inner = EMPTY_LIST + put(1) + MARK + get(0) * 1000 + APPENDS
    return pkl(PROTO2, EMPTY_LIST, put(0), MARK, inner, get(1) * 1000, APPENDS, STOP)


@attack(REFUSED, DESCRIBED, says="a.B")
def state_holds_its_owner() -> bytes:
    return pkl(
        PROTO2,
        glob("a", "B"),
        EMPTY_TUPLE,
        NEWOBJ,
        put(0),
        EMPTY_DICT,
        text("me"),
        get(0),
        SETITEM,
        BUILD,
        STOP,
    )


@attack(REFUSED, DESCRIBED, says="a.B")
def state_is_its_owner() -> bytes:
    return pkl(PROTO2, glob("a", "B"), EMPTY_TUPLE, NEWOBJ, put(0), get(0), BUILD, STOP)


@attack(REFUSED, DESCRIBED, says="Module")
def module_in_itself() -> bytes:
    made = glob("torch.nn", "Module") + EMPTY_TUPLE + NEWOBJ + put(0)
    inner = EMPTY_DICT + text("m") + get(0) + SETITEM
    state = EMPTY_DICT + text("_parameters") + EMPTY_DICT + SETITEM + text("_modules") + inner + SETITEM
    return pkl(PROTO2, made, state, BUILD, STOP)


@attack(REFUSED, SHOWN)
def tuple_in_itself_through_a_list() -> bytes:
    return pkl(
        PROTO2,
        EMPTY_LIST,
        put(0),
        EMPTY_LIST,
        put(1),
        get(0),
        TUPLE2,
        put(2),
        POP,
        get(0),
        get(2),
        b"a",
        STOP,
    )


@attack(REFUSED, DESCRIBED, says="a.B")
def state_given_to_itself_a_million_times() -> bytes:
    made = glob("a", "B") + EMPTY_TUPLE + NEWOBJ + put(0)
    return pkl(PROTO2, made, (get(0) + BUILD) * 300_000, STOP)


# Hash collisions


def dict_of_keys(keys: list[bytes]) -> bytes:
    return pkl(PROTO2, EMPTY_DICT, MARK, NONE.join(keys), NONE, SETITEMS, STOP)


@attack(REFUSED)
def colliding_integers() -> bytes:
    return dict_of_keys([integer(7 + i * PRIME) for i in range(60_000)])


@attack(REFUSED)
def colliding_negative_integers() -> bytes:
    return dict_of_keys([integer(-7 - i * PRIME) for i in range(60_000)])


@attack(REFUSED)
def colliding_low_bits() -> bytes:
    """Different hashes that start in the same slot of a table of 2**20."""
    return dict_of_keys([integer(i << 45) for i in range(60_000)])


@attack(REFUSED)
def colliding_tuples() -> bytes:
    return dict_of_keys([integer(7 + i * PRIME) + TUPLE1 for i in range(60_000)])


@attack(REFUSED)
def colliding_long_text_integers() -> bytes:
    return dict_of_keys([b"L" + str(7 + i * PRIME).encode() + b"L\n" for i in range(60_000)])


@attack(REFUSED)
def colliding_set_items() -> bytes:
    return pkl(PROTO4, EMPTY_SET, MARK, *(integer(7 + i * PRIME) for i in range(60_000)), ADDITEMS, STOP)


@attack(REFUSED)
def colliding_frozenset_items() -> bytes:
    return pkl(PROTO4, MARK, *(integer(7 + i * PRIME) for i in range(60_000)), FROZENSET, STOP)


@attack(REFUSED, SHOWN)
def colliding_floats() -> bytes:
    """All the floats whose hash is that of 1: powers of 2**61."""
    keys = [b"G" + struct.pack(">d", 2.0 ** (61 * k)) for k in range(-17, 17)]
    return dict_of_keys(keys * 1000)


@attack(REFUSED)
def colliding_ordered_dict_pairs() -> bytes:
    pairs = b"".join(integer(7 + i * PRIME) + NONE + TUPLE2 for i in range(60_000))
    made = glob("collections", "OrderedDict") + EMPTY_LIST + MARK + pairs + APPENDS + TUPLE1 + REDUCE
    return pkl(PROTO2, made, STOP)


@attack(REFUSED)
def colliding_setitem_one_by_one() -> bytes:
    return pkl(PROTO2, EMPTY_DICT, *(integer(7 + i * PRIME) + NONE + SETITEM for i in range(60_000)), STOP)


@attack(REFUSED, DESCRIBED, says="a.B")
def colliding_items_of_an_object() -> bytes:
    made = glob("a", "B") + EMPTY_TUPLE + REDUCE
    keys = NONE.join(integer(7 + i * PRIME) for i in range(60_000))
    return pkl(PROTO2, made, MARK, keys, NONE, SETITEMS, STOP)


@attack(REFUSED)
def colliding_storage_keys() -> bytes:
    """The key of a persistent id is text; a number may not become a dictionary's key here either."""
    ids = (
        MARK
        + text("storage")
        + glob("torch", "FloatStorage")
        + integer(7 + i * PRIME)
        + text("cpu")
        + integer(4)
        + TUPLE
        + b"Q"
        for i in range(20_000)
    )
    return pkl(PROTO2, EMPTY_LIST, MARK, *ids, APPENDS, STOP)


# Numbers that are costly as text


@attack(REFUSED, SHOWN)
def integer_of_a_million_bytes() -> bytes:
    data = b"\x7f" * 10**6
    return pkl(PROTO2, EMPTY_DICT, text("epoch"), b"\x8b", struct.pack("<i", len(data)), data, SETITEM, STOP)


@attack(REFUSED, SHOWN)
def integer_of_a_million_bytes_as_key() -> bytes:
    data = b"\x7f" * 10**6
    return pkl(PROTO2, EMPTY_DICT, b"\x8b", struct.pack("<i", len(data)), data, NONE, SETITEM, STOP)


@attack(REFUSED, SHOWN)
def integer_of_5000_digits() -> bytes:
    """More digits than CPython turns into text by default."""
    return tf.pt({"epoch": 10**5000})


@attack(REFUSED, SHOWN)
def integer_of_5000_digits_as_key() -> bytes:
    return tf.pt({10**5000: tf.tensor()})


@attack(REFUSED)
def text_integer_of_a_million_digits() -> bytes:
    return pkl(PROTO2, EMPTY_DICT, text("epoch"), b"L" + b"9" * 10**6 + b"L\n", SETITEM, STOP)


@attack(REFUSED)
def text_int_of_5000_digits() -> bytes:
    return pkl(PROTO2, EMPTY_DICT, text("epoch"), b"I" + b"9" * 5000 + b"\n", SETITEM, STOP)


@attack(REFUSED, SHOWN)
def text_float_of_a_million_digits() -> bytes:
    return pkl(PROTO2, EMPTY_DICT, text("lr"), b"F" + b"9" * 10**6 + b"\n", SETITEM, STOP)


@attack(REFUSED, SHOWN)
def text_int_with_underscores() -> bytes:
    return pkl(PROTO2, EMPTY_DICT, text("epoch"), b"I1_000\n", SETITEM, STOP)


@attack(SHOWN)
def not_a_number_and_infinity_in_data() -> bytes:
    """JSON has no word for them, and `--json` must stay JSON."""
    return tf.pt({"lr": float("nan"), "best": float("inf"), "worst": -float("inf")})


# Headers


def many_tensors(count: int, entry: str) -> bytes:
    return tf.safetensors("{" + ",".join(entry % i for i in range(count)) + "}")


@attack(REFUSED, slow=True)
def safetensors_of_1_600_000_tensors() -> bytes:
    return many_tensors(1_600_000, '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}')


@attack(REFUSED, slow=True)
def safetensors_of_12_million_empty_objects() -> bytes:
    return many_tensors(8_000_000, '"%d":{}')


@attack(REFUSED, slow=True)
def safetensors_of_30_million_numbers() -> bytes:
    shape = "1," * 30_000_000 + "1"
    return tf.safetensors('{"w":{"dtype":"U8","shape":[' + shape + '],"data_offsets":[0,1]}}', b"x")


@attack(REFUSED, slow=True)
def safetensors_of_empty_lists() -> bytes:
    return tf.safetensors('{"w":[' + "[]," * 30_000_000 + "[]]}")


@attack(REFUSED, slow=True)
def torch_zip_of_1_600_000_tensors() -> bytes:
    one = dump(tf.tensor())[2:-1]
    shared = glob("torch._utils", "_rebuild_tensor_v2") + put(1) + POP
    args = dump((tf.storage(), 0, (4,), (1,), False, None))[2:-1] + put(2) + POP
    pairs = b"".join(integer(i) + get(1) + get(2) + REDUCE for i in range(1_600_000))
    return pkl(PROTO2, one, POP, shared, args, EMPTY_DICT, MARK, pairs, SETITEMS, STOP)


@attack(REFUSED)
def legacy_of_a_million_keys() -> bytes:
    return tf.legacy({}, keys=[str(i) for i in range(300_000)], storages=())


@attack(REFUSED)
def legacy_numel_of_2_62() -> bytes:
    return tf.legacy({"w": tf.legacy_tensor(numel=2**62)}, storages=[(2**62, tf.FOUR)])


@attack(REFUSED, slow=True)
def dcp_of_a_million_chunks(folder: Path) -> Path:
    chunk = Shared(tf.dcp_chunk())
    raw = dump(chunk)[2:-1] + get(chunk.index[0]) * 1_000_000
    chunks = Raw(EMPTY_LIST + MARK + raw + APPENDS)
    state = {
        "properties": New(
            Name(tf.META, "TensorProperties"), state=(Name("torch", "float32"), None, False, None, False)
        ),
        "size": tf.dcp_size(4),
        "chunks": chunks,
    }
    return tf.dcp(folder, tf.dcp_metadata({"w": New(Name(tf.META, "TensorStorageMetadata"), state=state)}))


@attack(REFUSED)
def dcp_tensor_of_2_60_elements_in_one_chunk(folder: Path) -> Path:
    tensor = tf.dcp_tensor((2**60,), [tf.dcp_chunk((0,), (2**60,))])
    return tf.dcp(folder, tf.dcp_metadata({"w": tensor}))


@attack(REFUSED)
def index_of_half_a_million_shards(folder: Path) -> Path:
    names = ",".join(f'"w{i}":"model-{i:06}.safetensors"' for i in range(500_000))
    return tf.sharded(folder, '{"metadata":{},"weight_map":{' + names + "}}")


@attack(REFUSED)
def index_nested_100_000_deep(folder: Path) -> Path:
    return tf.sharded(folder, '{"weight_map":' + "[" * 100_000 + "]" * 100_000 + "}")


@attack(REFUSED)
def gzip_of_a_gib() -> bytes:
    return (
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
        + zeros_bomb(1024)
        + struct.pack("<II", zlib.crc32(b""), 2**30)
    )


@attack(REFUSED)
def persistent_ids_of_many_kinds() -> bytes:
    """A thousand storage types that torch does not have."""
    return tf.pt([Pers(("storage", Name("torch", f"S{i}Storage"), "0", "cpu", 4)) for i in range(1000)])


# Numbers and names that print large


@attack(REFUSED, SHOWN)
def one_long_name_among_many() -> bytes:
    """Columns as wide as the longest name would make a table of gigabytes."""
    names = {f"t{i}": tf.tensor(size=Shared((4,))) for i in range(3000)}
    return tf.pt({"n" * 300_000: tf.tensor(), **names})


@attack(REFUSED, SHOWN)
def one_long_data_key_among_many() -> bytes:
    return tf.pt({"n" * 300_000: 1, **{f"t{i}": i for i in range(3000)}})


@attack(REFUSED, SHOWN)
def one_long_global_among_many() -> bytes:
    names = [Name("m", "n" * 300_000), *(Name("m", f"n{i}") for i in range(3000))]
    return tf.pt(names)


@attack(REFUSED, SHOWN)
def one_shape_of_many_digits_among_many() -> bytes:
    wide = tf.tensor(size=(1,) * 60 + (0,), stride=(2**62,) * 60 + (1,))
    return tf.pt([wide, *(tf.tensor() for _ in range(3000))])


# Sparse files: a terabyte that takes no room on disk


def sparse(folder: Path, head: bytes, tail: bytes, size: int = 2**40) -> Path:
    """`head`, nothing, `tail`: `size` bytes in all."""
    path = folder / "attack.bin"
    with path.open("wb") as out:
        out.write(head)
        out.seek(size - len(tail))
        out.write(tail)
    return path


def sparse_record(folder: Path, name: str, head: bytes = b"", before: list[Entry] | None = None) -> Path:
    """A torch zip whose record `name` holds `head` and then a terabyte of zeros."""
    size = 2**40
    lie = {"size": SENTINEL, "packed": SENTINEL, "crc": 0, "extra": zip64_extra(size, size)}
    made = tf.pt_entries(dump({"w": tf.tensor()})) if before is None else before
    made = [entry for entry in made if entry.name != f"archive/{name}"]
    sound = zip_bytes([*made, Entry(f"archive/{name}", head, local=lie, central=lie)])
    start = sound.index(b"PK\x01\x02")
    directory = sound[start:-22]
    at = start + size - len(head)
    count = len(made) + 1
    told = {"here": count, "total": count, "offset": at}
    limits = {"here": 0xFFFF, "total": 0xFFFF, "offset": SENTINEL}
    ends = end_records(at, len(directory), told, limits)
    return sparse(folder, sound[:start], directory + ends, at + len(directory) + len(ends))


@attack(REFUSED)
def sparse_zip_directory_of_a_terabyte(folder: Path) -> Path:
    told = {"here": 2**34, "total": 2**34, "size": 2**40 - 200, "offset": 100}
    limits = {"here": 0xFFFF, "total": 0xFFFF, "size": SENTINEL, "offset": SENTINEL}
    head = zip_bytes(tf.pt_entries(dump({})))[:100]
    ends = bytearray(end_records(2**40 - 198, 0, told, limits))
    ends[64:72] = struct.pack("<Q", 2**40 - len(ends))  # the locator's offset of the zip64 record
    return sparse(folder, head, bytes(ends))


@attack(REFUSED)
def sparse_pickle_of_a_terabyte(folder: Path) -> Path:
    return sparse_record(folder, "data.pkl")


@attack(REFUSED, SHOWN)
def sparse_bytes_in_a_pickle(folder: Path) -> Path:
    """A string of a terabyte, of which nothing needs to be read."""
    code = PROTO4 + EMPTY_DICT + text("blob") + b"\x8e" + struct.pack("<Q", 2**40 - 100)
    return sparse_record(folder, "data.pkl", code)


@attack(REFUSED, SHOWN)
def sparse_byteorder(folder: Path) -> Path:
    return sparse_record(folder, "byteorder")


@attack(REFUSED, SHOWN)
def sparse_version(folder: Path) -> Path:
    return sparse_record(folder, "version")


@attack(REFUSED)
def sparse_constants(folder: Path) -> Path:
    return sparse_record(folder, "constants.pkl")


@attack(REFUSED)
def sparse_code(folder: Path) -> Path:
    made = [*tf.pt_entries(dump({})), Entry("archive/constants.pkl", dump(()))]
    return sparse_record(folder, "code/__torch__.py", b"class", made)


@attack(REFUSED)
def sparse_record_of_ptsave(folder: Path) -> Path:
    return sparse_record(folder, "ptsave.json", b"{")


@attack(REFUSED)
def sparse_npz_header(folder: Path) -> Path:
    npy = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1)
    return sparse(folder, npy, b"")


@attack(REFUSED)
def sparse_dcp_metadata(folder: Path) -> Path:
    home = tf.dcp(folder)
    with (home / ".metadata").open("r+b") as out:
        out.truncate(2**40)
    with (home / "__0_0.distcp").open("r+b") as out:
        out.truncate(2**40)
    return home


@attack(REFUSED)
def sparse_dcp_metadata_of_one_string(folder: Path) -> Path:
    home = tf.dcp(folder, PROTO4 + EMPTY_DICT + text("blob") + b"\x8e" + struct.pack("<Q", 2**40 - 100))
    with (home / ".metadata").open("r+b") as out:
        out.truncate(2**40)
    return home


@attack(REFUSED)
def sparse_index(folder: Path) -> Path:
    home = tf.sharded(folder)
    with (home / "model.safetensors.index.json").open("r+b") as out:
        out.truncate(2**40)
    return home


@attack(REFUSED)
def sparse_zeros(folder: Path) -> Path:
    return sparse(folder, b"", b"\0")


@attack(REFUSED, SHOWN)
def sparse_legacy_after_the_end(folder: Path) -> Path:
    return sparse(folder, tf.legacy({"w": tf.legacy_tensor()}), b"\0")


@attack(REFUSED)
def sparse_legacy_pickle(folder: Path) -> Path:
    return sparse(folder, dump(tf.MAGIC) + dump(1001), b"\0")


@attack(REFUSED)
def sparse_tar_member(folder: Path) -> Path:
    from .other_formats import tar

    head = bytearray(tar(sys_info=b"", pickle=dump({}), storages=dump(0), tensors=dump(0)))
    return sparse(folder, bytes(head[:512]), b"\0")


# Text that makes a pattern run in circles


def scripted(code: bytes) -> bytes:
    """A TorchScript archive with that code, deflated, so that the file is small."""
    module = New(Name("__torch__", "M"), state={"w": tf.tensor()})
    made = [*tf.pt_entries(dump(module)), Entry("archive/constants.pkl", dump(()))]
    return zip_bytes([*made, Entry("archive/code/__torch__.py", code, DEFLATED)])


CLASS = b"class M(Module):\n"


@attack(REFUSED, SHOWN, DESCRIBED)
def code_of_open_lists() -> bytes:
    return scripted(CLASS + b"  __parameters__ = [\n" * 1_000_000)


@attack(REFUSED, SHOWN, DESCRIBED)
def code_of_open_strings() -> bytes:
    return scripted(CLASS + b'  __parameters__ = ["' + b'\\"' * 5_000_000 + b", ]\n")


@attack(REFUSED, SHOWN, DESCRIBED)
def code_of_blank_lines() -> bytes:
    return scripted(CLASS + b"\n \t" * 10_000_000 + b"x")


@attack(REFUSED, SHOWN, DESCRIBED)
def code_of_class_lines() -> bytes:
    return scripted(b"class M(Module):\n" * 2_000_000)


@attack(REFUSED, SHOWN, DESCRIBED)
def code_of_one_long_name() -> bytes:
    return scripted(b"class " + b"M" * 30_000_000)


@attack(REFUSED)
def npy_header_of_spaces() -> bytes:
    header = b"{'descr': " + b" " * 65_000 + b"x}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
