"""Lies in ONNX models: in the wire format, in tensors, in the graph, and in what lies beside the model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from . import torch_files as tf
from .protobuf import (
    BYTES,
    FIXED32,
    FIXED64,
    HEAD,
    OPSET,
    data,
    dims,
    entry,
    external,
    graph,
    model,
    nested,
    node,
    number,
    tag,
    tensor,
    varint,
)
from .registry import DESCRIBED, REFUSED, SHOWN, Outcome, add, attack

HUGE = 2**62
WIRE: dict[str, bytes] = {
    "no_graph": HEAD + OPSET,
    "no_opsets": model(tensor(), after=b""),
    "no_version": model(tensor())[2:],
    "graph_twice": model(tensor(), after=OPSET + data(7, graph(tensor("v")))),
    "version_twice": model(tensor(), after=OPSET + number(1, 9)),
    "producer_twice": model(tensor(), after=OPSET + data(2, "other")),
    "graph_is_a_number": HEAD + number(7, 3) + OPSET,
    "version_is_a_text": data(1, "10") + model(tensor())[2:],
    "graph_longer_than_the_file": HEAD + data(7, graph(tensor()), length=10_000) + OPSET,
    "graph_of_2_63_bytes": HEAD + tag(7, BYTES) + varint(2**63) + graph(tensor()),
    "graph_of_2_64_less_1_bytes": HEAD + tag(7, BYTES) + varint(2**64 - 1) + graph(tensor()),
    "length_of_11_bytes": HEAD + tag(7, BYTES) + b"\xff" * 10 + b"\1" + graph(tensor()),
    "length_of_70_bits": HEAD + tag(7, BYTES) + b"\xff" * 9 + b"\x7f" + graph(tensor()),
    "tag_of_11_bytes": model(tensor(), after=OPSET + b"\xff" * 10 + b"\1\1"),
    "tag_of_field_0": model(tensor(), after=OPSET + b"\0\0"),
    "tag_of_field_2_30": model(tensor(), after=OPSET + number(2**30, 1)),
    "group": model(tensor(), after=OPSET + tag(99, 3) + tag(99, 4)),
    "wire_type_6": model(tensor(), after=OPSET + tag(5, 6)),
    "wire_type_7": model(tensor(), after=OPSET + tag(99, 7)),
    "ends_in_a_tag": model(tensor(), after=OPSET + b"\x80"),
    "ends_behind_a_tag": model(tensor(), after=OPSET + tag(2, BYTES)),
    "ends_in_a_fixed32": model(tensor(), after=OPSET + tag(99, FIXED32) + b"abc"),
    "ends_in_a_fixed64": model(tensor(), after=OPSET + tag(99, FIXED64) + b"abcdefg"),
    "two_models_in_one": model(tensor()) + model(tensor("v")),
    "zeros_behind": model(tensor()) + bytes(8),
    "producer_not_utf_8": number(1, 10) + data(3, "1") + data(2, b"\xc3\x28") + model(tensor())[8:],
    "tensor_longer_than_its_graph": HEAD + data(7, data(5, tensor(), length=len(tensor()) + 2) + b"") + OPSET,
    "opset_of_two_versions": model(tensor(), after=OPSET + data(8, number(2, 20))),
    "metadata_twice": model(tensor(), after=OPSET + 2 * data(14, entry("a", "b"))),
    "metadata_key_twice": model(tensor(), after=OPSET + data(14, entry("a", "b") + data(1, "c"))),
    "metadata_not_utf_8": model(tensor(), after=OPSET + data(14, data(1, b"\xff") + data(2, b"b"))),
    "record_is_no_json": model(tensor(), after=OPSET + data(14, entry("ptsave", "{"))),
    "record_of_tomorrow": model(tensor(), after=OPSET + data(14, entry("ptsave", '{"schema_version":2}'))),
}
TENSORS: dict[str, bytes] = {
    "name_empty": model(tensor("")),
    "name_missing": model(dims(4) + number(2, 1) + data(9, tf.FOUR)),
    "name_twice": model(tensor(more=data(8, "v"))),
    "name_not_utf_8": model(tensor(b"\xff\xfe")),
    "names_alike": model(tensor(), tensor()),
    "size_negative": model(tensor(sizes=(-4,))),
    "size_negative_twice": model(tensor(sizes=(-2, -2))),
    "size_2_63": model(tensor(sizes=(2**63,))),
    "sizes_wrap_to_zero": model(tensor(sizes=(2**32, 2**32), raw=b"")),
    "sizes_wrap_in_bytes": model(tensor(sizes=(2**62,), raw=b"")),
    "size_huge_beside_a_zero": model(tensor(sizes=(0, HUGE, HUGE), raw=b"")),
    "rank_100": model(tensor(sizes=(1,) * 100, raw=bytes(4))),
    "rank_100_packed": model(tensor(sizes=(), raw=bytes(4), more=data(1, b"\1" * 100))),
    "sizes_end_inside_a_number": model(tensor(sizes=(), more=data(1, b"\4\x80"))),
    "shape_larger": model(tensor(sizes=(5,))),
    "shape_smaller": model(tensor(sizes=(3,))),
    "shape_without_values": model(tensor(raw=None)),
    "type_missing": model(dims(4) + data(8, "w") + data(9, tf.FOUR)),
    "type_0": model(tensor(data_type=0)),
    "type_99": model(tensor(data_type=99)),
    "type_negative": model(tensor(data_type=-1)),
    "type_2_32_plus_1": model(tensor(data_type=2**32 + 1)),
    "type_twice": model(tensor(more=number(2, 7))),
    "raw_twice": model(tensor(more=data(9, bytes(16)))),
    "raw_and_typed": model(tensor(more=data(4, bytes(16)))),
    "raw_of_texts": model(tensor(data_type=8)),
    "texts_too_few": model(tensor(data_type=8, raw=None, more=data(6, "a"))),
    "texts_of_floats": model(tensor(raw=None, more=4 * data(6, "a"))),
    "typed_of_another_type": model(tensor(raw=None, more=data(10, bytes(32)))),
    "typed_unpacked": model(tensor(raw=None, more=4 * (tag(4, FIXED32) + bytes(4)))),
    "typed_in_two_runs": model(tensor(raw=None, more=2 * data(4, bytes(8)))),
    "varints_end_inside_a_number": model(tensor(data_type=7, raw=None, more=data(7, b"\1\1\1\x81"))),
    "varints_too_many": model(tensor(data_type=7, raw=None, more=data(7, b"\1" * 5))),
    "varints_of_11_bytes": model(tensor(data_type=7, raw=None, more=data(7, b"\xff" * 10 + b"\1\1\1\1"))),
    "varints_without_an_end": model(tensor(data_type=7, raw=None, more=data(7, b"\xff" * 1000))),
    "float4_of_odd_bytes": model(tensor(data_type=23, sizes=(3,), raw=b"a")),
    "int4_too_long": model(tensor(data_type=22, sizes=(3,), raw=b"abc")),
    "segment": model(tensor(more=data(3, number(1, 0) + number(2, 2)))),
    "location_of_2": model(tensor(more=number(14, 2))),
    "external_without_a_place": model(tensor(raw=None, more=number(14, 1))),
    "place_without_external": model(tensor(more=data(13, entry("location", "w.data")))),
    "place_twice": model(external() + data(13, entry("location", "v.data"))),
    "sparse_without_indices": model(tensor(), more=data(15, data(1, tensor("s")) + number(3, 9))),
    "sparse_of_float_indices": model(
        more=data(15, data(1, tensor("s")) + data(2, tensor("i")) + number(3, 9))
    ),
    "sparse_of_negative_size": model(
        more=data(15, data(1, tensor("s")) + data(2, tensor("i")) + number(3, -9))
    ),
    "sparse_of_texts": model(
        more=data(15, data(1, tensor("s", (1,), 8, None, data(6, "a"))) + data(2, tensor("i")) + number(3, 9))
    ),
    "sparse_and_dense_alike": model(
        tensor("s", (1,), 1, bytes(4)),
        more=data(
            15,
            data(1, tensor("s", (1,), 1, bytes(4))) + data(2, tensor("i", (1,), 7, bytes(8))) + number(3, 9),
        ),
    ),
}


def _type(depth: int) -> bytes:
    """A tensor in so many sequences."""
    made = data(1, number(1, 1))
    for _ in range(depth):
        made = data(4, data(1, made))
    return made


GRAPHS: dict[str, bytes] = {
    "types_nested_1000_deep": model(tensor(), more=data(11, data(1, "x") + data(2, _type(1000)))),
    "nested_1000_deep": HEAD + data(7, nested(b"If", 1000)) + OPSET,
    "nested_31_deep": HEAD + data(7, nested(b"If", 31)) + OPSET,
    "type_of_two_kinds": model(tensor(), more=data(11, data(2, data(1, number(1, 1)) + data(4, b"")))),
    "input_of_rank_100": model(
        tensor(), more=data(11, data(2, data(1, data(2, 100 * data(1, number(1, 4))))))
    ),
    "operator_is_a_number": model(tensor(), nodes=(number(4, 1),)),
    "operator_not_utf_8": model(tensor(), nodes=(data(4, b"\xff"),)),
    "attribute_of_two_tensors": model(tensor(), nodes=(node("Constant", 2 * data(5, tensor())),)),
    "attribute_of_a_bad_tensor": model(tensor(), nodes=(node("Constant", data(5, tensor(sizes=(5,)))),)),
    "subgraph_of_a_bad_tensor": model(tensor(), nodes=(node("If", data(6, graph(tensor(sizes=(5,))))),)),
    "subgraph_names_alike": model(tensor(), nodes=(node("If", data(6, graph(tensor(), tensor()))),)),
    "subgraph_name_of_an_initializer": model(
        tensor("n.g.w"), nodes=(node("If", data(1, "g") + data(6, graph(tensor())), name="n"),)
    ),
    "function_of_a_bad_tensor": model(
        tensor(), after=OPSET + data(25, data(7, node("Constant", data(5, tensor(sizes=(5,))))))
    ),
    "training_of_a_bad_tensor": model(tensor(), after=OPSET + data(20, data(1, graph(tensor(sizes=(5,)))))),
}


def _bytes(content: bytes) -> Callable[[], bytes]:
    return lambda: content


_OUTCOMES: dict[str, tuple[Outcome, ...]] = {"varints_of_11_bytes": (REFUSED, SHOWN)}
"""What is found out when a tensor is read, and not before."""
for _group in (WIRE, TENSORS, GRAPHS):
    for _name, _content in _group.items():
        add(
            f"onnx_{_name}",
            "onnx_lies",
            _bytes(_content),
            *_OUTCOMES.get(_name, (REFUSED,)),
            file="attack.onnx",
        )


# --- what runs --------------------------------------------------------------------------------------------


@attack(DESCRIBED, says="my.ops.Foo", file="attack.onnx")
def onnx_operator_of_an_unknown_domain() -> bytes:
    return model(tensor(), nodes=(node("Foo", domain="my.ops"),))


@attack(DESCRIBED, says="com.microsoft.PythonOp", file="attack.onnx")
def onnx_operator_that_runs_python() -> bytes:
    return model(tensor(), nodes=(node("PythonOp", domain="com.microsoft"),))


@attack(DESCRIBED, says="com.microsoft.EPContext", file="attack.onnx")
def onnx_compiled_model_in_a_subgraph() -> bytes:
    inner = graph(nodes=(node("EPContext", domain="com.microsoft"),))
    return model(tensor(), nodes=(node("If", data(1, "g") + data(6, inner)),))


@attack(DESCRIBED, says="my.ops.Foo", file="attack.onnx")
def onnx_function_that_calls_an_unknown_operator() -> bytes:
    body = data(1, "F") + data(7, node("Foo", domain="my.ops")) + data(10, "local")
    return model(tensor(), nodes=(node("F", domain="local"),), after=OPSET + data(25, body))


@attack(SHOWN, file="attack.onnx")
def onnx_names_that_a_terminal_would_obey() -> bytes:
    evil = "\x1b]0;pwned\x07\x1b[2J\u202e"
    port = data(11, data(1, evil) + data(2, data(1, number(1, 1) + data(2, data(1, data(2, evil))))))
    after = OPSET + data(14, entry(evil, evil)) + data(25, data(1, evil) + data(10, evil))
    return number(1, 10) + model(tensor(evil), nodes=(node(evil),), more=port, after=after)[8:]


@attack(SHOWN, file="attack.onnx")
def onnx_unknown_fields() -> bytes:
    more = number(99, 1) + data(98, "x") + tag(97, FIXED32) + bytes(4) + tag(96, FIXED64) + bytes(8)
    return model(tensor(more=more), more=more, after=OPSET + more)


@attack(REFUSED, SHOWN, slow=True, file="attack.onnx")
def onnx_long_names_of_nested_graphs() -> bytes:
    """Each of many initializers would have a long name in front."""
    inner = graph(*(tensor(f"{i}", (1,), 2, b"a") for i in range(10_000)))
    return model(tensor(), nodes=(node("If", data(1, "g") + data(6, inner), name="n" * 100_000),))


# --- beside the model -------------------------------------------------------------------------------------


def _beside(tensors: list[bytes], content: bytes = tf.FOUR) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        inside = folder / "model"
        inside.mkdir()
        (folder / "w.data").write_bytes(tf.FOUR)
        (inside / "w.data").write_bytes(content)
        (inside / "link").symlink_to("../w.data")
        (inside / "up").symlink_to("..")
        (inside / "self").symlink_to("self")
        os.mkfifo(inside / "fifo")
        (inside / "attack.onnx").write_bytes(model(*tensors))
        return inside / "attack.onnx"

    return build


BESIDE: dict[str, list[bytes]] = {
    "absolute": [external("/etc/hostname")],
    "above": [external("../w.data")],
    "above_from_below": [external("below/../../w.data")],
    "above_twice": [external("../../w.data")],
    "dot": [external("./w.data")],
    "two_slashes": [external("//w.data")],
    "backslash": [external("..\\w.data")],
    "drive": [external("C:w.data")],
    "stream": [external("w.data:stream")],
    "nul": [external("w.data\0x")],
    "empty": [external("")],
    "a_folder": [external("..")],
    "address_in_memory": [external("*/_ORT_MEM_ADDR_/*", offset="140000000000", length="16")],
    "web": [external("https://127.0.0.1/w.data")],
    "link": [external("link")],
    "link_to_a_folder": [external("up/w.data")],
    "link_to_itself": [external("self")],
    "fifo": [external("fifo")],
    "device": [external("/dev/zero")],
    "the_model": [external("attack.onnx")],
    "missing": [external("none")],
    "missing_folder": [external("none/w.data")],
    "name_of_5000": [external("n" * 5000)],
    "offset_negative": [external(offset="-4", length="16")],
    "offset_2_64": [external(offset="18446744073709551616", length="16")],
    "offset_beyond": [external(offset="16", length="16")],
    "offset_of_other_digits": [external(offset="\u0660", length="16")],
    "offset_with_a_space": [external(offset=" 0", length="16")],
    "offset_hexadecimal": [external(offset="0x0", length="16")],
    "length_larger": [external(length="17")],
    "length_smaller": [external(length="15")],
    "length_huge": [external(length="999999999999999999", sizes=(HUGE // 64,))],
    "overrun": [external(sizes=(5,), length="20")],
    "overlap": [external(length="12", sizes=(3,)), external(name="v", offset="8", length="8", sizes=(2,))],
    "checksum_of_another_kind": [external(checksum="md5")],
    "two_checksums": [external(checksum="0" * 40), external(name="v", checksum="1" * 40)],
}

for _name, _tensors in BESIDE.items():
    add(f"onnx_external_{_name}", "onnx_lies", _beside(_tensors), REFUSED)
