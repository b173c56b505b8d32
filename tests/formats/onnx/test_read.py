"""What is read of ONNX models, against what the onnx library and PyTorch's exporter wrote."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file

from ptsave.cli.main import run
from ptsave.core.nodes import Port
from ptsave.core.values.digest import DEFAULT
from ptsave.core.values.gather import contiguous
from ptsave.errors import CorruptError, LimitError, UnknownFormatError
from ptsave.formats import open_checkpoint
from ptsave.formats.kinds.packed import MAX_OBJECTS
from ptsave.formats.onnx import schema
from ptsave.formats.onnx.read import MAX_THINGS
from ptsave.formats.onnx.tensors import DTYPES
from ptsave.formats.onnx.tensors import PACKED as ALL_PACKED
from ptsave.formats.onnx.wire import BYTES, FIXED32, FIXED64, VARINT
from ptsave.verbs.checks.safe import safe
from ptsave.verbs.checks.subject import Subject
from ptsave.verbs.checks.whole import whole
from tests.attacks import protobuf as pb

from .models import FLOAT, model, save, tensor


def bytes_of(entry: Any) -> bytes:
    storage, offset_bytes = contiguous(entry)
    buffer = bytearray(entry.num_bytes)
    storage.read_into(offset_bytes, memoryview(buffer))
    return bytes(buffer)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A model as torch.onnx.export writes it, and the module that it was made of."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        sizes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(
            module, (torch.ones(2, 4),), dynamo=True, dynamic_shapes=sizes, verbose=False
        )
        assert program is not None
        program.save(path)
    return path, module


def test_initializers_have_their_names_in_the_state_dict(exported: tuple[Path, torch.nn.Module]) -> None:
    path, module = exported
    state = module.state_dict()
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "onnx"
        assert checkpoint.tensors.keys() == state.keys()
        for name, entry in checkpoint.tensors.items():
            assert entry.shape == tuple(state[name].shape)
            assert bytes_of(entry) == state[name].numpy().tobytes()


def test_the_program_is_described(exported: tuple[Path, torch.nn.Module]) -> None:
    with open_checkpoint(exported[0]) as checkpoint:
        (program,) = checkpoint.programs
    proto = onnx.load(exported[0])
    assert [(p.type, p.shape) for p in program.inputs] == [("float32", ("batch", 4))]
    assert [(p.type, p.shape) for p in program.outputs] == [("float32", ("batch", 2))]
    assert program.producer == f"pytorch {torch.__version__}"
    assert program.opsets == {o.domain: o.version for o in proto.opset_import}
    assert sum(program.operators.values()) == len(proto.graph.node)
    assert program.operators["Gemm"] == sum(node.op_type == "Gemm" for node in proto.graph.node)


TYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.UINT8: "uint8",
    TensorProto.INT8: "int8",
    TensorProto.UINT16: "uint16",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
    TensorProto.FLOAT16: "float16",
    TensorProto.DOUBLE: "float64",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.COMPLEX64: "complex64",
    TensorProto.COMPLEX128: "complex128",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.FLOAT8E4M3FN: "float8_e4m3fn",
    TensorProto.FLOAT8E4M3FNUZ: "float8_e4m3fnuz",
    TensorProto.FLOAT8E5M2: "float8_e5m2",
    TensorProto.FLOAT8E5M2FNUZ: "float8_e5m2fnuz",
    TensorProto.FLOAT8E8M0: "float8_e8m0fnu",
    TensorProto.FLOAT4E2M1: "float4_e2m1fn_x2",
}
PACKED = {
    TensorProto.UINT4: "UINT4",
    TensorProto.INT4: "INT4",
    TensorProto.UINT2: "UINT2",
    TensorProto.INT2: "INT2",
}


def values_of(data_type: int) -> Any:
    name = TensorProto.DataType.Name(data_type)
    if name == "FLOAT8E8M0":
        values = [[1.0, 2.0], [4.0, 8.0], [0.5, 1.0]]
    elif name == "BOOL":
        values = [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    elif name == "UINT2":
        values = [[1.0, 0.0], [3.0, 2.0], [1.0, 1.0]]
    elif name == "INT2":
        values = [[1.0, 0.0], [-2.0, -1.0], [1.0, 1.0]]
    else:
        values = (
            [[1.0, 0.0], [3.0, 2.0], [6.0, 4.0]]
            if name.startswith("UINT")
            else [[1.0, -0.5], [-4, 2], [3, 6]]
        )
    return np.array(values).astype(helper.tensor_dtype_to_np_dtype(data_type))


@pytest.mark.parametrize("is_raw", [False, True], ids=["typed", "raw"])
@pytest.mark.parametrize("data_type", TYPES, ids=TYPES.values())
def test_every_dtype(data_type: int, is_raw: bool, tmp_path: Path) -> None:
    values = values_of(data_type)
    made = numpy_helper.from_array(values, "w") if is_raw else tensor("w", values, data_type)
    expected = numpy_helper.to_array(made)
    if not is_raw:
        assert not made.HasField("raw_data")
    with open_checkpoint(save(model([made]), tmp_path / "m.onnx")) as checkpoint:
        (entry,) = checkpoint.tensors.values()
        assert entry.dtype.name == TYPES[data_type]
        if TYPES[data_type] == "float4_e2m1fn_x2":
            low, high = expected[:, 0].view(np.uint8), expected[:, 1].view(np.uint8)
            assert (entry.shape, bytes_of(entry)) == ((3, 1), (low | high << 4).tobytes())
        else:
            assert (entry.shape, bytes_of(entry)) == ((3, 2), expected.tobytes())


@pytest.mark.parametrize("is_raw", [False, True], ids=["typed", "raw"])
@pytest.mark.parametrize("data_type", PACKED, ids=PACKED.values())
def test_elements_of_less_than_a_byte_keep_their_type(data_type: int, is_raw: bool, tmp_path: Path) -> None:
    made = numpy_helper.from_array(values_of(data_type), "w")
    raw = made.raw_data
    if not is_raw:
        made = tensor("w", values_of(data_type), data_type)
        assert not made.HasField("raw_data")
    name = PACKED[data_type]
    with open_checkpoint(save(model([made]), tmp_path / "m.onnx")) as checkpoint:
        assert checkpoint.data["w"].name == f"onnx.{name}"
        assert checkpoint.data["w.shape"] == (3, 2)
        assert bytes_of(checkpoint.tensors[f"w.{name}"]) == raw


def test_long_lists_of_varints_are_read_in_blocks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-(2**63), 2**63 - 1, 100_000) >> rng.integers(0, 63, 100_000)
    path = save(model([tensor("w", values, TensorProto.INT64)]), tmp_path / "m.onnx")
    with open_checkpoint(path) as checkpoint:
        entry = checkpoint.tensors["w"]
        assert bytes_of(entry) == values.tobytes()
        part = bytearray(80_004)
        entry.storage.read_into(399_996, memoryview(part))
        assert bytes(part) == values.tobytes()[399_996:480_000]


def test_texts_and_empty_tensors_and_scalars(tmp_path: Path) -> None:
    made = model(
        [
            helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"\xff"]),
            helper.make_tensor("e", FLOAT, [0, 3], []),
            tensor("n", np.float32(7)),
        ]
    )
    with open_checkpoint(save(made, tmp_path / "m.onnx")) as checkpoint:
        assert checkpoint.data["s"].name == "onnx.STRING"
        assert checkpoint.data["s.values"] == ["a", "\\xff"]
        assert checkpoint.tensors["e"].shape == (0, 3)
        assert checkpoint.tensors["n"].shape == ()


def test_a_sparse_initializer_is_a_sparse_tensor(tmp_path: Path) -> None:
    values = helper.make_tensor("w", FLOAT, [2], [5.0, 6.0])
    pairs = helper.make_tensor("", TensorProto.INT64, [2, 2], [0, 1, 1, 0])
    linear = helper.make_tensor("v", FLOAT, [1], [5.0])
    one = helper.make_tensor("", TensorProto.INT64, [1], [4])
    made = model(
        sparse_initializer=[
            helper.make_sparse_tensor(values, pairs, [2, 3]),
            helper.make_sparse_tensor(linear, one, [2, 3]),
        ]
    )
    path = save(made, tmp_path / "m.onnx")
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.data["w"].name == "torch.sparse_coo"
        assert bytes_of(checkpoint.tensors["w.indices"]) == np.array([[0, 1], [1, 0]]).tobytes()
        assert checkpoint.data["v"].name == "onnx.sparse"
    import ptsave

    ptsave.convert(path, tmp_path / "m.pt", dense=True, drop=["v*"])
    assert torch.equal(torch.load(tmp_path / "m.pt")["w"], torch.tensor([[0, 5.0, 0], [6.0, 0, 0]]))


def test_tensors_in_nodes_subgraphs_and_functions(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=tensor("", [3.0]))],
        "inner",
        [],
        [helper.make_tensor_value_info("k", FLOAT, None)],
        [tensor("w")],
    )
    function = helper.make_function(
        "local",
        "F",
        ["a"],
        ["b"],
        [helper.make_node("Constant", [], ["b"], value=tensor("", [4.0]))],
        [helper.make_opsetid("", 21)],
    )
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor("", [2.0])),
        helper.make_node("If", ["x"], ["y"], name="choose", then_branch=inner, else_branch=inner),
        helper.make_node("F", ["x"], ["z"], domain="local"),
        helper.make_node("ConstantOfShape", ["x"], ["q"], value=tensor("", [0.0])),
    ]
    path = save(model([tensor("w")], nodes, functions=[function]), tmp_path / "m.onnx")
    with open_checkpoint(path) as checkpoint:
        assert [*checkpoint.tensors] == [
            "w",
            "choose.else_branch.w",
            "choose.then_branch.w",
            "CONSTANTS.c",
            "CONSTANTS.choose.else_branch.k",
            "CONSTANTS.choose.then_branch.k",
            "CONSTANTS.ConstantOfShape_3.value",
            "CONSTANTS.functions.F.b",
        ]
        assert "CONSTANTS.c" in checkpoint.constants
        (program,) = checkpoint.programs
        assert program.operators == {"Constant": 4, "If": 1, "local.F": 1, "ConstantOfShape": 1}
        assert program.functions == ["local.F"]
        assert not checkpoint.globals


def test_inputs_of_every_kind(tmp_path: Path) -> None:
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [1]))
    made = model([tensor("w")])
    made.graph.input.extend(
        [
            helper.make_tensor_value_info(
                "w", FLOAT, [2]
            ),  # a default, as models before IR version 4 have all
            helper.make_value_info("s", sequence),
            helper.make_value_info("o", helper.make_optional_type_proto(sequence)),
            helper.make_value_info("m", helper.make_map_type_proto(TensorProto.INT64, sequence)),
            helper.make_tensor_value_info("t", TensorProto.STRING, None),
            helper.make_tensor_value_info("i", TensorProto.INT4, []),
            helper.make_sparse_tensor_value_info("p", FLOAT, [2, "n"]),
        ]
    )
    with open_checkpoint(save(made, tmp_path / "m.onnx")) as checkpoint:
        (program,) = checkpoint.programs
    assert program.inputs == [
        Port("x", "float32", ("batch", 3)),
        Port("s", "sequence of float32", None),
        Port("o", "optional of sequence of float32", None),
        Port("m", "map of sequence of float32", None),
        Port("t", "string", None),
        Port("i", "int4", ()),
        Port("p", "sparse float32", (2, "n")),
    ]
    assert program.outputs == [Port("y", "float32", ("batch", "?"))]


def test_operators_that_no_runtime_knows_are_told(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Foo", ["x"], ["y"], domain="my.ops"),
        helper.make_node("PythonOp", ["x"], ["z"], domain="com.microsoft"),
        helper.make_node("Gelu", ["x"], ["q"], domain="com.microsoft"),
    ]
    with open_checkpoint(save(model([tensor("w")], nodes), tmp_path / "m.onnx")) as checkpoint:
        found = {f.where: f for f in safe(Subject(checkpoint))}
    assert found.keys() == {"my.ops.Foo", "com.microsoft.PythonOp"}
    assert {f.level for f in found.values()} == {"fail"}
    assert "known to run code" in found["com.microsoft.PythonOp"].message
    assert "a runtime runs what is registered under it" in found["my.ops.Foo"].message


def test_numbers_that_are_attributes_are_named_as_left_out(tmp_path: Path) -> None:
    node = helper.make_node("LinearRegressor", ["x"], ["y"], domain="ai.onnx.ml", coefficients=[1.0, 2.0])
    with open_checkpoint(save(model([tensor("w")], [node]), tmp_path / "m.onnx")) as checkpoint:
        (finding,) = (f for f in whole(Subject(checkpoint)) if f.level == "fail")
    assert "the numbers in the attributes of LinearRegressor" in finding.message


def test_long_lists_of_numbers_are_constants(tmp_path: Path) -> None:
    """A `Constant` holds them apart from tensors; up to 16 are a shape or axes, as torch has them."""
    long, short = np.arange(-8, 9), np.arange(16)
    nodes = [
        helper.make_node("Constant", [], [f"{kind}_{len(v)}"], **{f"value_{kind}": v.astype(dtype).tolist()})
        for v in (long, short)
        for kind, dtype in (("ints", "i8"), ("floats", "f4"))
    ]
    nodes.append(helper.make_node("Constant", [], ["one"], value_float=1.5))
    nodes += [helper.make_node(f"Of{n}", ["x"], ["y"], domain="local", w=[0.5] * n) for n in (16, 17)]
    path = save(model([tensor("w")], nodes), tmp_path / "m.onnx")
    with open_checkpoint(path) as checkpoint:
        assert [*checkpoint.tensors] == ["w", "CONSTANTS.ints_17", "CONSTANTS.floats_17"]
        assert checkpoint.constants == {"CONSTANTS.ints_17", "CONSTANTS.floats_17"}
        assert bytes_of(checkpoint.tensors["CONSTANTS.ints_17"]) == long.astype("<i8").tobytes()
        assert bytes_of(checkpoint.tensors["CONSTANTS.floats_17"]) == long.astype("<f4").tobytes()
        assert checkpoint.dropped == ["the numbers in the attributes of Of17"]
    assert run(["convert", str(path), str(tmp_path / "m.safetensors"), "--extras", "drop", "-q"]) == 0
    converted = load_file(tmp_path / "m.safetensors")
    assert converted["CONSTANTS.ints_17"].tolist() == converted["CONSTANTS.floats_17"].tolist() == [*long]


def with_attribute(numbers: bytes, path: Path) -> Path:
    """A model of a `Constant` with that attribute, whose fields the library would spell in its own way."""
    node = pb.data(2, b"c") + pb.data(4, b"Constant") + pb.data(5, pb.data(1, b"value") + numbers)
    made = model([tensor("w")])
    graph = made.graph.SerializeToString() + pb.data(1, node)
    made.ClearField("graph")
    path.write_bytes(made.SerializeToString() + pb.data(7, graph))
    return path


@pytest.mark.parametrize(("number", "dtype", "packed_as"), [(7, "<f4", "<f4"), (8, "<i8", "u1")])
def test_packed_lists_of_numbers(number: int, dtype: str, packed_as: str, tmp_path: Path) -> None:
    """As writers of the third version of protobuf have them; in one piece."""
    values = np.arange(100)
    packed = values.astype(packed_as).tobytes()
    with open_checkpoint(with_attribute(pb.data(number, packed), tmp_path / "m.onnx")) as checkpoint:
        assert checkpoint.tensors["CONSTANTS.c"].shape == (100,)
        assert bytes_of(checkpoint.tensors["CONSTANTS.c"]) == values.astype(dtype).tobytes()
    for damaged in (2 * pb.data(number, packed), pb.data(number, packed + b"\xff")):
        with pytest.raises(CorruptError, match="a list of numbers"):
            open_checkpoint(with_attribute(damaged, tmp_path / "m.onnx"))


def test_fields_of_another_version_are_named_as_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    unknown = bytes([0xFA, 0x07, 3]) + b"abc"  # field 127, three bytes
    path.write_bytes(model([tensor("w")]).SerializeToString() + unknown)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.dropped == ["the field 127 of ModelProto, which ptsave does not know"]
        assert checkpoint.accounts.left_out


def test_metadata_and_the_record(tmp_path: Path) -> None:
    made = model([tensor("w")])
    record = {"schema_version": 1, "digests": {"algorithm": DEFAULT, "tensors": {"w": "0" * 32}}}
    helper.set_model_props(made, {"task": "classify", "ptsave": json.dumps(record)})
    with open_checkpoint(save(made, tmp_path / "m.onnx")) as checkpoint:
        assert checkpoint.metadata == {"task": "classify"}
        assert checkpoint.record is not None
        assert checkpoint.record.digests is not None


def test_what_begins_like_a_model_and_is_none(tmp_path: Path) -> None:
    for data in (
        b"\x08\x07",
        b"\x08\x07\x12\x02\x00\x01" + bytes(9),
        b"\x08\x00\x12\x01a",
        b"\x08\x07\x3a\x04\x0f\x02xy",
    ):
        (tmp_path / "m.onnx").write_bytes(data)
        with pytest.raises(UnknownFormatError):
            open_checkpoint(tmp_path / "m.onnx")


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """A model of 40 GB, most of it a hole, whose tensor lies in it."""
    num_bytes = 40_000_000_000
    dims = varint(num_bytes // 4)
    fields = b"\x08" + dims + b"\x10\x01" + b"\x42\x01w" + b"\x4a" + varint(num_bytes)
    graph = b"\x2a" + varint(len(fields) + num_bytes) + fields
    path = tmp_path / "m.onnx"
    with path.open("wb") as out:
        out.write(b"\x08\x0a" + b"\x42\x02\x10\x15" + b"\x3a" + varint(len(graph) + num_bytes) + graph)
        out.truncate(out.tell() + num_bytes)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["w"].num_bytes == num_bytes


def varint(number: int) -> bytes:
    made = b""
    while number >= 0x80:
        made += bytes([number & 0x7F | 0x80])
        number >>= 7
    return made + bytes([number])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cap", "made"),
    [
        (
            "onnx_objects",
            lambda: pb.model(*(pb.tensor(f"{i}", (), 22, b"a") for i in range(MAX_OBJECTS + 1))),
        ),
        ("onnx_operators", lambda: pb.model(nodes=tuple(pb.data(4, f"{i}") for i in range(MAX_THINGS + 1)))),
    ],
)
def test_there_are_caps_on_what_a_small_file_lists(cap: str, made: Any, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(made())
    with pytest.raises(LimitError, match=cap):
        open_checkpoint(tmp_path / "m.onnx")


# --- the tables -------------------------------------------------------------------------------------------

MESSAGES = [
    (schema.MODEL, onnx.ModelProto),
    (schema.GRAPH, onnx.GraphProto),
    (schema.NODE, onnx.NodeProto),
    (schema.ATTRIBUTE, onnx.AttributeProto),
    (schema.TENSOR, onnx.TensorProto),
    (schema.SPARSE_TENSOR, onnx.SparseTensorProto),
    (schema.VALUE_INFO, onnx.ValueInfoProto),
    (schema.TYPE, onnx.TypeProto),
    (schema.TENSOR_TYPE, onnx.TypeProto.Tensor),
    (schema.ELEMENT_TYPE, onnx.TypeProto.Sequence),
    (schema.MAP_TYPE, onnx.TypeProto.Map),
    (schema.SHAPE, onnx.TensorShapeProto),
    (schema.DIMENSION, onnx.TensorShapeProto.Dimension),
    (schema.OPERATOR_SET, onnx.OperatorSetIdProto),
    (schema.ENTRY, onnx.StringStringEntryProto),
    (schema.TRAINING, onnx.TrainingInfoProto),
    (schema.FUNCTION, onnx.FunctionProto),
]
WIRE_TYPES = {
    1: FIXED64,
    2: FIXED32,
    3: VARINT,
    4: VARINT,
    5: VARINT,
    9: BYTES,
    11: BYTES,
    12: BYTES,
    14: VARINT,
}
"""Source: google/protobuf/descriptor.proto, `FieldDescriptorProto.Type`."""


@pytest.mark.parametrize(("ours", "theirs"), MESSAGES, ids=[ours.name for ours, _ in MESSAGES])
def test_the_messages_have_the_fields_that_the_library_has(ours: Any, theirs: Any) -> None:
    fields = {field.number: field for field in theirs.DESCRIPTOR.fields}
    assert ours.name == theirs.DESCRIPTOR.full_name.removeprefix("onnx.")
    assert fields.keys() <= ours.fields.keys()
    for number, field in fields.items():
        mine, is_number = ours.fields[number], WIRE_TYPES[field.type] != BYTES
        if is_number and field.is_repeated and field.is_packed:
            assert (mine.wire_types, mine.is_repeated) == ((BYTES,), False)
        else:
            packed = (BYTES,) if is_number and field.is_repeated else ()
            assert (mine.wire_types, mine.is_repeated) == (
                (WIRE_TYPES[field.type], *packed),
                field.is_repeated,
            )


def test_the_data_types_are_those_of_the_library() -> None:
    known = {*DTYPES, *ALL_PACKED, TensorProto.STRING, TensorProto.UNDEFINED}
    assert {*TensorProto.DataType.values()} <= known
    assert {number: name for number, (name, _) in ALL_PACKED.items()}.items() >= {
        number: TensorProto.DataType.Name(number) for number in PACKED
    }.items()
