"""Hypothesis strategies for ONNX models and GGUF files that are nearly right."""

from __future__ import annotations

from hypothesis import strategies as st

from . import gguf_lies as gguf
from . import protobuf as pb
from . import torch_files as tf

_NUMBERS = st.one_of(st.integers(-1, 30), st.sampled_from([2**31, 2**32 + 1, 2**62, 2**63, 2**64 - 1]))
_NAMES = st.sampled_from(["w", "w", "v", "", "x.y", "\u202e", "CONSTANTS"])
_BYTES = st.one_of(st.sampled_from([tf.FOUR, bytes(16), b"", b"\1\2\3\4"]), st.binary(max_size=20))


def _fields() -> st.SearchStrategy[bytes]:
    """Fields of any number and wire type, with lengths that may be wrong."""
    return st.one_of(
        st.builds(pb.number, st.integers(1, 30), _NUMBERS),
        st.builds(pb.data, st.integers(1, 30), _BYTES),
        st.builds(pb.data, st.integers(1, 30), _BYTES, st.integers(0, 30)),
        st.builds(
            lambda field, kind, rest: pb.tag(field, kind) + rest,
            st.integers(0, 30),
            st.integers(0, 7),
            _BYTES,
        ),
    )


_MORE = st.one_of(st.just(b""), st.just(b""), st.just(b""), _fields())


def _tensors() -> st.SearchStrategy[bytes]:
    sizes = st.one_of(st.just((4,)), st.lists(st.one_of(st.integers(0, 16), _NUMBERS), max_size=3).map(tuple))
    sound = st.sampled_from(
        [(1, (4,)), (2, (16,)), (10, (2, 4)), (22, (4, 8)), (7, (2,)), (23, (32,)), (9, (16,))]
    )
    typed = st.builds(
        lambda name, field, kind, values: pb.tensor(name, (4,), kind, None, pb.data(field, values)),
        _NAMES,
        st.sampled_from([4, 5, 6, 7, 10, 11]),
        st.sampled_from([1, 2, 6, 7, 9, 11, 13, 16]),
        _BYTES,
    )
    return st.one_of(
        st.builds(
            lambda name, about, more: pb.tensor(name, about[1], about[0], tf.FOUR, more), _NAMES, sound, _MORE
        ),
        st.builds(
            pb.tensor,
            _NAMES,
            sizes,
            st.one_of(st.integers(0, 30), _NUMBERS),
            st.one_of(st.none(), _BYTES),
            _MORE,
        ),
        typed,
        st.builds(pb.external, st.sampled_from(["w.data", "../x", "/x", "", "input"])),
    )


def _nodes(tensors: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    attribute = st.builds(
        lambda name, field, inner: pb.data(1, name) + pb.data(field, inner),
        _NAMES,
        st.sampled_from([5, 6, 7, 10, 11, 22, 2, 8]),
        st.one_of(tensors, st.lists(tensors, max_size=2).map(lambda made: pb.graph(*made)), _BYTES),
    )
    return st.builds(
        lambda kind, attributes, domain, name, more: (
            pb.node(kind, *attributes, domain=domain, name=name) + more
        ),
        st.sampled_from(["Constant", "If", "Relu", "PythonOp", ""]),
        st.lists(attribute, max_size=2),
        st.sampled_from(["", "", "com.microsoft", "ai.onnx.ml", "my.ops"]),
        _NAMES,
        _MORE,
    )


def models() -> st.SearchStrategy[bytes]:
    """ONNX models of a few tensors and nodes."""
    tensors = _tensors()
    entries = st.builds(
        lambda key, text: pb.data(14, pb.entry(key, text)), _NAMES, st.sampled_from(["", "{}", "a"])
    )
    return st.builds(
        lambda made, nodes, more, after, end: pb.model(
            *made, nodes=tuple(nodes), more=more, after=pb.OPSET + after + end
        ),
        st.lists(tensors, max_size=3),
        st.lists(_nodes(tensors), max_size=2),
        _MORE,
        st.one_of(st.just(b""), entries),
        _MORE,
    )


def gguf_files() -> st.SearchStrategy[bytes]:
    """GGUF files of a few tensors and values."""
    small = _NUMBERS.map(lambda number: number % 2**64)
    infos = st.one_of(
        st.builds(
            gguf.info, _NAMES, st.just((8,)), st.sampled_from([0, 26, 99]), st.sampled_from([0, 32, 64, 8])
        ),
        st.builds(
            gguf.info,
            _NAMES,
            st.lists(small, max_size=3).map(tuple),
            _NUMBERS.map(lambda number: number % 2**32),
            small,
        ),
    )
    values = st.one_of(
        st.tuples(st.just(gguf.TEXT), _NAMES.map(gguf.text)),
        st.tuples(
            st.sampled_from([gguf.U8, gguf.U32, gguf.F32, gguf.U64, gguf.BOOL]),
            st.binary(min_size=8, max_size=8),
        ),
        st.tuples(st.just(gguf.ARRAY), st.builds(gguf.array, st.integers(0, 13), small, _BYTES)),
    )
    pairs = st.builds(
        lambda key, value: gguf.pair(key, *value),
        st.sampled_from(["k", "general.alignment", "split.count", "general.architecture"]),
        values,
    )
    return st.builds(
        lambda made, texts, data, version: gguf.gguf(*made, pairs=tuple(texts), data=data, version=version),
        st.lists(infos, max_size=3),
        st.lists(pairs, max_size=2),
        st.sampled_from([bytes(32), bytes(96), bytes(128)]),
        st.sampled_from([3, 3, 3, 2, 1, 2**24 * 3]),
    )
