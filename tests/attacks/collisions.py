"""Keys and numbers that are costly to hash, to parse or to print."""

from __future__ import annotations

import struct

from . import torch_files as tf
from .pickles import (
    ADDITEMS,
    APPENDS,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_SET,
    EMPTY_TUPLE,
    FROZENSET,
    MARK,
    NONE,
    PROTO2,
    PROTO4,
    REDUCE,
    SETITEM,
    SETITEMS,
    STOP,
    TUPLE,
    TUPLE1,
    TUPLE2,
    glob,
    integer,
    text,
)
from .registry import DESCRIBED, REFUSED, SHOWN, attack

PRIME = 2**61 - 1
"""CPython's numeric hash modulus on 64-bit platforms: integers equal modulo it collide."""


def dict_of_keys(keys: list[bytes]) -> bytes:
    return tf.pkl(PROTO2, EMPTY_DICT, MARK, NONE.join(keys), NONE, SETITEMS, STOP)


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
    return tf.pkl(PROTO4, EMPTY_SET, MARK, *(integer(7 + i * PRIME) for i in range(60_000)), ADDITEMS, STOP)


@attack(REFUSED)
def colliding_frozenset_items() -> bytes:
    return tf.pkl(PROTO4, MARK, *(integer(7 + i * PRIME) for i in range(60_000)), FROZENSET, STOP)


@attack(REFUSED, SHOWN)
def colliding_floats() -> bytes:
    """All the floats whose hash is that of 1: powers of 2**61."""
    keys = [b"G" + struct.pack(">d", 2.0 ** (61 * k)) for k in range(-17, 17)]
    return dict_of_keys(keys * 1000)


@attack(REFUSED)
def colliding_ordered_dict_pairs() -> bytes:
    pairs = b"".join(integer(7 + i * PRIME) + NONE + TUPLE2 for i in range(60_000))
    made = glob("collections", "OrderedDict") + EMPTY_LIST + MARK + pairs + APPENDS + TUPLE1 + REDUCE
    return tf.pkl(PROTO2, made, STOP)


@attack(REFUSED)
def colliding_setitem_one_by_one() -> bytes:
    return tf.pkl(PROTO2, EMPTY_DICT, *(integer(7 + i * PRIME) + NONE + SETITEM for i in range(60_000)), STOP)


@attack(REFUSED, DESCRIBED, says="a.B")
def colliding_items_of_an_object() -> bytes:
    made = glob("a", "B") + EMPTY_TUPLE + REDUCE
    keys = NONE.join(integer(7 + i * PRIME) for i in range(60_000))
    return tf.pkl(PROTO2, made, MARK, keys, NONE, SETITEMS, STOP)


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
    return tf.pkl(PROTO2, EMPTY_LIST, MARK, *ids, APPENDS, STOP)


# Numbers


@attack(REFUSED, SHOWN)
def integer_of_a_million_bytes() -> bytes:
    data = b"\x7f" * 10**6
    return tf.pkl(
        PROTO2, EMPTY_DICT, text("epoch"), b"\x8b", struct.pack("<i", len(data)), data, SETITEM, STOP
    )


@attack(REFUSED, SHOWN)
def integer_of_a_million_bytes_as_key() -> bytes:
    data = b"\x7f" * 10**6
    return tf.pkl(PROTO2, EMPTY_DICT, b"\x8b", struct.pack("<i", len(data)), data, NONE, SETITEM, STOP)


@attack(REFUSED, SHOWN)
def integer_of_5000_digits() -> bytes:
    """More digits than CPython turns into text by default."""
    return tf.pt({"epoch": 10**5000})


@attack(REFUSED, SHOWN)
def integer_of_5000_digits_as_key() -> bytes:
    return tf.pt({10**5000: tf.tensor()})


@attack(REFUSED)
def text_integer_of_a_million_digits() -> bytes:
    return tf.pkl(PROTO2, EMPTY_DICT, text("epoch"), b"L" + b"9" * 10**6 + b"L\n", SETITEM, STOP)


@attack(REFUSED)
def text_int_of_5000_digits() -> bytes:
    return tf.pkl(PROTO2, EMPTY_DICT, text("epoch"), b"I" + b"9" * 5000 + b"\n", SETITEM, STOP)


@attack(REFUSED, SHOWN)
def text_float_of_a_million_digits() -> bytes:
    return tf.pkl(PROTO2, EMPTY_DICT, text("lr"), b"F" + b"9" * 10**6 + b"\n", SETITEM, STOP)


@attack(REFUSED, SHOWN)
def text_int_with_underscores() -> bytes:
    return tf.pkl(PROTO2, EMPTY_DICT, text("epoch"), b"I1_000\n", SETITEM, STOP)


@attack(SHOWN)
def not_a_number_and_infinity_in_data() -> bytes:
    """JSON has no word for them, and `--json` must stay JSON."""
    return tf.pt({"lr": float("nan"), "best": float("inf"), "worst": -float("inf")})
