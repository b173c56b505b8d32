"""Depth, sharing and cycles: few bytes that spell much, or never end."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from . import torch_files as tf
from .pickles import (
    ADDITEMS,
    APPENDS,
    BUILD,
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


@attack(REFUSED)
def nested_lists_100_000() -> bytes:
    return tf.pkl(PROTO2, EMPTY_LIST * 100_000, b"a" * 99_999, STOP)


@attack(REFUSED)
def nested_tuples_100_000() -> bytes:
    return tf.pkl(PROTO2, EMPTY_TUPLE, TUPLE1 * 100_000, STOP)


@attack(REFUSED)
def nested_dicts_100_000() -> bytes:
    return tf.pkl(PROTO2, (EMPTY_DICT + text("k")) * 100_000, NONE, SETITEM * 100_000, STOP)


@attack(REFUSED, DESCRIBED, says="a.B")
def nested_reduces_100_000() -> bytes:
    return tf.pkl(PROTO2, glob("a", "B") * 100_000, NONE, (TUPLE1 + REDUCE) * 100_000, STOP)


@attack(REFUSED, DESCRIBED, says="a.B")
def nested_states_100_000() -> bytes:
    made = glob("a", "B") + EMPTY_TUPLE + NEWOBJ
    return tf.pkl(PROTO2, (made + EMPTY_DICT + text("s")) * 50_000, NONE, (SETITEM + BUILD) * 50_000, STOP)


@attack(REFUSED, SHOWN)
def nested_tuple_as_dict_key() -> bytes:
    return tf.pkl(PROTO2, EMPTY_DICT, EMPTY_TUPLE, TUPLE1 * 100_000, NONE, SETITEM, STOP)


@attack(REFUSED)
def nested_frozensets() -> bytes:
    """Hashing the outermost walks them all."""
    return tf.pkl(PROTO4, MARK * 50_000, NONE, FROZENSET * 50_000, STOP)


@attack(REFUSED, SHOWN)
def nested_persistent_ids() -> bytes:
    return tf.pkl(PROTO2, EMPTY_TUPLE, (TUPLE1 + b"Q") * 50_000, STOP)


@attack(REFUSED)
def nested_marks_and_tuples() -> bytes:
    return tf.pkl(PROTO2, MARK * 100_000, TUPLE * 100_000, STOP)


@attack(REFUSED)
def nested_modules() -> bytes:
    """A chain of `_modules` as deep as the pickle allows."""
    made = (
        glob("torch.nn", "M") + EMPTY_TUPLE + NEWOBJ + EMPTY_DICT + text("_modules") + EMPTY_DICT + text("m")
    )
    return tf.pkl(PROTO2, made * 20_000, NONE, (SETITEM + SETITEM + BUILD) * 20_000, STOP)


# Sharing


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
    return tf.pkl(PROTO4, EMPTY_SET, MARK, dump(doubled((1,), 60, lambda n: (n, n)))[2:-1], ADDITEMS, STOP)


@attack(REFUSED, SHOWN)
def exponential_tuple_in_a_frozenset() -> bytes:
    return tf.pkl(PROTO4, MARK, dump(doubled((1,), 60, lambda n: (n, n)))[2:-1], FROZENSET, STOP)


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
    return tf.pkl(PROTO4, b"(" + code, STOP)


@attack(REFUSED, SHOWN)
def long_list_shared_often() -> bytes:
    """100,000 numbers, 100,000 times."""
    numbers = EMPTY_LIST + put(0) + MARK + b"K\x01" * 100_000 + APPENDS
    return tf.pkl(PROTO2, EMPTY_LIST, MARK, numbers, get(0) * 100_000, APPENDS, STOP)


@attack(REFUSED, SHOWN)
def long_string_shared_often() -> bytes:
    """1 MB of text, 200,000 times."""
    return tf.pkl(
        PROTO2, EMPTY_LIST, MARK, text("A" * 10**6), put(0), get(0) * 200_000, EMPTY_DICT, APPENDS, STOP
    )


@attack(REFUSED, SHOWN)
def long_string_as_many_values() -> bytes:
    pairs = b"".join(integer(i) + get(0) for i in range(100_000))
    return tf.pkl(PROTO2, text("A" * 10**6), put(0), POP, EMPTY_DICT, MARK, pairs, SETITEMS, STOP)


@attack(REFUSED, SHOWN)
def long_keys_on_every_level() -> bytes:
    """100 levels under a key of 1 MB each, and 1,000 tensors: names of 100 GB."""
    leaves = {f"t{i}": tf.tensor() for i in range(1000)}
    code = text("K" * 10**6) + put(9) + POP
    return tf.pkl(PROTO2, code, (EMPTY_DICT + get(9)) * 100, dump(leaves)[2:-1], SETITEM * 100, STOP)


@attack(REFUSED, SHOWN)
def long_foreign_key_shared_often() -> bytes:
    """60 names of a megabyte, which JSON spells in six."""
    nodes = b"".join(EMPTY_DICT + get(9) + NONE + SETITEM for _ in range(60))
    return tf.pkl(PROTO2, text("\u00e9" * 10**6), put(9), POP, EMPTY_LIST, MARK, nodes, APPENDS, STOP)


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
    return tf.pkl(PROTO2, EMPTY_DICT, MARK, (key + NONE) * 60_000, SETITEMS, STOP)


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
    return tf.pkl(PROTO2, EMPTY_LIST, put(0), get(0), b"a", STOP)


@attack(REFUSED, SHOWN)
def dict_in_itself() -> bytes:
    return tf.pkl(PROTO2, EMPTY_DICT, put(0), text("me"), get(0), SETITEM, STOP)


@attack(REFUSED, SHOWN)
def two_lists_in_each_other_many_times() -> bytes:
    inner = EMPTY_LIST + put(1) + MARK + get(0) * 1000 + APPENDS
    return tf.pkl(PROTO2, EMPTY_LIST, put(0), MARK, inner, get(1) * 1000, APPENDS, STOP)


@attack(REFUSED, DESCRIBED, says="a.B")
def state_holds_its_owner() -> bytes:
    return tf.pkl(
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
    return tf.pkl(PROTO2, glob("a", "B"), EMPTY_TUPLE, NEWOBJ, put(0), get(0), BUILD, STOP)


@attack(REFUSED, DESCRIBED, says="Module")
def module_in_itself() -> bytes:
    made = glob("torch.nn", "Module") + EMPTY_TUPLE + NEWOBJ + put(0)
    inner = EMPTY_DICT + text("m") + get(0) + SETITEM
    state = EMPTY_DICT + text("_parameters") + EMPTY_DICT + SETITEM + text("_modules") + inner + SETITEM
    return tf.pkl(PROTO2, made, state, BUILD, STOP)


@attack(REFUSED, SHOWN)
def tuple_in_itself_through_a_list() -> bytes:
    return tf.pkl(
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
    return tf.pkl(PROTO2, made, (get(0) + BUILD) * 300_000, STOP)
