"""Hypothesis strategies for files that are nearly right."""

from __future__ import annotations

import json
from collections import OrderedDict
from random import Random
from typing import Any

from hypothesis import strategies as st

from . import torch_files as tf
from .pickle_programs import program
from .pickles import (
    ADDITEMS,
    APPEND,
    APPENDS,
    BINPERSID,
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
    NEWOBJ_EX,
    NONE,
    OBJ,
    POP,
    PROTO2,
    PROTO4,
    REDUCE,
    SETITEM,
    SETITEMS,
    STACK_GLOBAL,
    STOP,
    TUPLE,
    TUPLE1,
    TUPLE2,
    TUPLE3,
    Call,
    Name,
    New,
    Pers,
    Shared,
    dump,
    get,
    glob,
    integer,
    put,
    text,
)
from .program_strategies import gguf_files, models
from .zips import DEFLATED, SENTINEL, STORED, Entry, zip64_extra, zip_bytes

NUMBERS = st.one_of(
    st.integers(-2, 20),
    st.sampled_from(
        [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)]
    ),
)
NAMES = st.sampled_from(
    [
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch._utils", "_rebuild_parameter_with_state"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_nested_tensor"),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"),
        ("torch._utils", "_rebuild_wrapper_subclass"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch.nn.parameter", "Parameter"),
        ("torch.nn.modules.linear", "Linear"),
        ("torch.serialization", "_get_layout"),
        ("torch.storage", "_load_from_bytes"),
        ("torch", "FloatStorage"),
        ("torch", "UntypedStorage"),
        ("torch", "Tensor"),
        ("torch", "float32"),
        ("torch", "Size"),
        ("torch", "device"),
        ("torch", "per_tensor_affine"),
        ("collections", "OrderedDict"),
        ("collections", "defaultdict"),
        ("collections", "Counter"),
        ("collections", "deque"),
        ("builtins", "set"),
        ("builtins", "slice"),
        ("builtins", "complex"),
        ("builtins", "bytearray"),
        ("builtins", "getattr"),
        ("builtins", "dict"),
        ("copyreg", "_reconstructor"),
        ("functools", "partial"),
        ("pathlib", "PosixPath"),
        ("datetime", "datetime"),
        ("enum", "Enum"),
        ("argparse", "Namespace"),
        ("_codecs", "encode"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy._core.numeric", "_frombuffer"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("os", "system"),
        ("a", "B"),
    ]
)
WORDS = st.one_of(
    st.sampled_from(
        ["", "w", "0", "1", "storage", "cpu", "_parameters", "_modules", "_buffers", "state", "f4", "\x1b["]
    ),
    st.text(max_size=4),
)


def _opcode() -> st.SearchStrategy[bytes]:
    plain = st.sampled_from(
        [
            MARK,
            POP,
            b"1",
            DUP,
            NONE,
            EMPTY_TUPLE,
            EMPTY_LIST,
            EMPTY_DICT,
            EMPTY_SET,
            TUPLE,
            TUPLE1,
            TUPLE2,
            TUPLE3,
            b"l",
            b"d",
            REDUCE,
            BUILD,
            NEWOBJ,
            NEWOBJ_EX,
            OBJ,
            SETITEM,
            SETITEMS,
            APPEND,
            APPENDS,
            ADDITEMS,
            STACK_GLOBAL,
            BINPERSID,
            MEMOIZE,
            FROZENSET,
            b"\x88",
            b"\x89",
            b"\x97",
            b"\x98",
            STOP,
        ]
    )
    return st.one_of(
        plain,
        plain,
        NUMBERS.map(integer),
        WORDS.map(text),
        NAMES.map(lambda name: glob(*name)),
        st.integers(0, 5).map(get),
        st.integers(0, 5).map(put),
        st.floats().map(lambda number: dump(number)[2:-1]),
        st.binary(max_size=9).map(lambda data: dump(data)[2:-1]),
        st.sampled_from([dump(tf.storage())[2:-1], dump(tf.tensor())[2:-1]]),
        st.binary(min_size=1, max_size=3),
    )


def _programs() -> st.SearchStrategy[bytes]:
    """Opcodes in any order."""
    return st.builds(
        lambda proto, code: proto + b"".join(code) + STOP,
        st.sampled_from([PROTO2, PROTO4, b""]),
        st.lists(_opcode(), max_size=40),
    )


def _trees() -> st.SearchStrategy[bytes]:
    """Well-formed pickles whose calls have wrong arguments, mostly."""
    shared = st.sampled_from([Shared(tf.tensor()), Shared([1]), Shared({"a": tf.tensor()})])
    name = NAMES.map(lambda pair: Name(*pair))
    leaf = st.one_of(
        NUMBERS,
        WORDS,
        st.none(),
        st.booleans(),
        st.floats(),
        st.binary(max_size=8),
        name,
        st.just(tf.tensor()),
    )
    storage = st.builds(
        tf.storage, st.sampled_from(["FloatStorage", "LongStorage", "UntypedStorage"]), WORDS, NUMBERS
    )
    sizes = st.lists(NUMBERS, max_size=3).map(tuple)
    tensor = st.builds(
        lambda o, size, stride, of: tf.tensor(o, size, stride, of=of), NUMBERS, sizes, sizes, storage
    )

    def grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        many = st.lists(inner, max_size=4)
        state = st.one_of(st.none(), st.dictionaries(WORDS, inner, max_size=3), inner)
        return st.one_of(
            many,
            many.map(tuple),
            st.dictionaries(st.one_of(WORDS, st.integers(-3, 3)), inner, max_size=4),
            st.dictionaries(WORDS, inner, max_size=4).map(OrderedDict),
            st.builds(Call, name, many.map(tuple), state),
            st.builds(New, name, many.map(tuple), state),
            st.builds(Pers, inner),
        )

    tree = st.recursive(st.one_of(leaf, tensor, storage), grow, max_leaves=12)
    mixed = st.builds(lambda a, b: [a, b], tree, shared)

    def spell(value: Any) -> bytes:
        for node in value if isinstance(value, list) else []:
            if isinstance(node, Shared):
                node.index.clear()
        return dump(value)

    return st.one_of(tree, mixed).map(spell)


def _training() -> st.SearchStrategy[bytes]:
    """Dictionaries that look like a training run's, with anything where a number or a table belongs."""
    anything = st.one_of(
        NUMBERS, WORDS, st.none(), st.floats(), st.just([]), st.just({}), st.just(tf.tensor())
    )
    group = st.dictionaries(
        st.sampled_from(["lr", "betas", "eps", "weight_decay", "momentum", "params", "foreach", "name"]),
        st.one_of(anything, st.lists(anything, max_size=3), st.lists(anything, max_size=2).map(tuple)),
        max_size=4,
    )
    optimizer = st.dictionaries(
        st.sampled_from(["state", "param_groups"]),
        st.one_of(
            anything, st.lists(st.one_of(group, anything), max_size=3), st.dictionaries(NUMBERS, group)
        ),
        max_size=2,
    )
    keys = [
        "epoch",
        "global_step",
        "step",
        "model_state_dict",
        "state_dict",
        "optimizer_state_dict",
        "optimizer_states",
        "optimizer",
        "lr_schedulers",
        "scheduler",
        "scaler",
        "hyper_parameters",
        "pytorch-lightning_version",
        "callbacks",
        "loops",
        "rng_state",
        "args",
        "best_score",
        "ema",
        "config",
    ]
    model = st.dictionaries(WORDS, st.one_of(st.just(tf.tensor()), anything), max_size=3)
    value = st.one_of(anything, optimizer, group, model, st.lists(optimizer, max_size=2))
    return st.dictionaries(st.sampled_from(keys), value, max_size=6).map(dump)


def _header_lies() -> st.SearchStrategy[dict[str, Any]]:
    number = st.sampled_from([0, 1, 8, 12, 16, 17, 20, 46, 0x800, 0x808, 0xFFFF])
    wide = st.one_of(number, st.sampled_from([SENTINEL, SENTINEL - 1, 2**31]))
    return st.one_of(
        st.just({}),
        st.dictionaries(
            st.sampled_from(["flags", "method", "name_length", "extra_length"]), number, max_size=1
        ),
        st.dictionaries(st.sampled_from(["crc", "packed", "size", "signature"]), wide, max_size=2),
        st.lists(st.sampled_from([0, 16, 17, 2**40, 2**63, 2**64 - 1]), max_size=3).map(
            lambda values: {"extra": zip64_extra(*values), "size": SENTINEL}
        ),
    )


@st.composite
def _archives(draw: st.DrawFn) -> bytes:
    """A torch zip with a few lies."""
    entries = tf.pt_entries(dump({"w": tf.tensor()}))
    extra = st.builds(
        Entry,
        st.sampled_from(
            ["archive/data/0", "archive/data/1", "archive/DATA.PKL", "x/data.pkl", "../x", "archive/"]
        ),
        st.binary(max_size=20),
        st.sampled_from([STORED, DEFLATED, 12]),
    )
    entries += draw(st.lists(extra, max_size=2))
    for entry in entries:
        if draw(st.integers(0, 3)) == 0:
            entry.local = draw(_header_lies())
        if draw(st.integers(0, 3)) == 0:
            entry.central = draw(_header_lies())
        if draw(st.integers(0, 5)) == 0:
            entry.descriptor = True
        if draw(st.integers(0, 5)) == 0:
            entry.method = DEFLATED
    ends = st.dictionaries(
        st.sampled_from(["here", "total", "size", "offset", "comment", "disk"]),
        st.integers(0, 700),
        max_size=1,
    )
    wide = st.dictionaries(
        st.sampled_from(["here", "total", "size", "offset", "locator_offset"]),
        NUMBERS.filter(lambda n: 0 <= n < 2**64),
        max_size=1,
    )
    return zip_bytes(
        entries,
        prefix=draw(st.sampled_from([b"", b"", b"x"])),
        suffix=draw(st.sampled_from([b"", b"", b"x", b"PK\x05\x06" + bytes(18)])),
        comment=draw(st.binary(max_size=3)),
        gap=draw(st.sampled_from([b"", b"", b"gap"])),
        end={key: value & 0xFFFF for key, value in draw(ends).items()},
        zip64=draw(st.one_of(st.none(), wide)),
    )


def _headers() -> st.SearchStrategy[bytes]:
    """safetensors headers of a few tensors over 16 bytes."""
    odd = st.one_of(NUMBERS, st.floats(), st.booleans(), st.none(), WORDS, st.lists(NUMBERS, max_size=2))
    size = st.sampled_from([0, 1, 2, 3, 4, 8, 16])
    tensor = st.fixed_dictionaries(
        {
            "dtype": st.one_of(st.sampled_from(["F32", "U8", "BF16", "F4", "I64", "BOOL", "F8_E4M3"]), odd),
            "shape": st.one_of(st.lists(size, max_size=3), st.lists(odd, max_size=3), odd),
            "data_offsets": st.one_of(st.lists(size, min_size=2, max_size=2), st.lists(odd, max_size=3), odd),
        }
    )
    sound = st.sampled_from(
        [tf.info(), tf.info("U8", [16]), tf.info("F32", [2], [0, 8]), tf.info("F32", [2], [8, 16])]
    )
    metadata = st.one_of(st.dictionaries(WORDS, WORDS, max_size=3), odd)
    header = st.one_of(
        st.dictionaries(WORDS, st.one_of(sound, tensor, odd), max_size=3),
        st.builds(
            lambda tensors, more: {**tensors, "__metadata__": more},
            st.dictionaries(WORDS, sound, max_size=2),
            metadata,
        ),
    )
    spelled = header.map(lambda value: json.dumps(value).encode())
    twice = st.builds(lambda a, b: a[:-1] + b"," + b[1:], spelled, spelled)
    return st.one_of(spelled, spelled.map(lambda data: data + b"   "), twice)


STRATEGIES: dict[str, st.SearchStrategy[bytes]] = {
    "pickle": st.one_of(_programs(), _trees(), _training()),
    "differential": st.one_of(st.integers(0, 2**64 - 1).map(lambda seed: program(Random(seed))), _trees()),
    "zip": _archives(),
    "safetensors": _headers(),
    "onnx": models(),
    "gguf": gguf_files(),
}
"""By the name of the fuzz target that takes the bytes."""
