"""The messages of an ONNX file, as far as they are read: which fields each may have.

Source: onnx/onnx.proto of ONNX 1.23, IR version 14. Fields that are told by no value are skipped.
"""

from __future__ import annotations

from ptsave.formats.onnx.wire import BYTES, FIXED32, VARINT, Field, Message


def _message(name: str, /, **fields: str) -> Message:
    """`_message("Node", input="1 texts")`: each field's number and kind; a minus says that it is skipped."""
    made = {}
    for field, words in fields.items():
        number, kind = words.split()
        is_skipped = kind.startswith("-")
        types, is_repeated = _KINDS[kind.lstrip("-")]
        made[int(number)] = Field(field, types, is_repeated, is_skipped)
    return Message(name, made)


_KINDS = {
    "number": ((VARINT,), False),
    "numbers": ((VARINT, BYTES), True),
    "float": ((FIXED32,), False),
    "floats": ((FIXED32, BYTES), True),
    "text": ((BYTES,), False),
    "texts": ((BYTES,), True),
    "packed": ((BYTES,), False),
    "one": ((BYTES,), False),
    "many": ((BYTES,), True),
}
"""`packed`: numbers end to end in one field, as all writers of tensors have them; `one`, `many`: messages."""

MODEL = _message(
    "ModelProto",
    ir_version="1 number",
    producer_name="2 text",
    producer_version="3 text",
    domain="4 text",
    model_version="5 number",
    doc_string="6 -text",
    graph="7 one",
    opset_import="8 many",
    metadata_props="14 many",
    training_info="20 many",
    functions="25 many",
    configuration="26 -many",
)
GRAPH = _message(
    "GraphProto",
    node="1 many",
    name="2 -text",
    initializer="5 many",
    doc_string="10 -text",
    input="11 many",
    output="12 many",
    value_info="13 -many",
    quantization_annotation="14 -many",
    sparse_initializer="15 many",
    metadata_props="16 -many",
)
NODE = _message(
    "NodeProto",
    input="1 -texts",
    output="2 texts",
    name="3 text",
    op_type="4 text",
    attribute="5 many",
    doc_string="6 -text",
    domain="7 text",
    overload="8 text",
    metadata_props="9 -many",
    device_configurations="10 -many",
)
ATTRIBUTE = _message(
    "AttributeProto",
    name="1 text",
    f="2 -float",
    i="3 -number",
    s="4 -text",
    t="5 one",
    g="6 one",
    floats="7 floats",
    ints="8 numbers",
    strings="9 -texts",
    tensors="10 many",
    graphs="11 many",
    doc_string="13 -text",
    tp="14 -one",
    type_protos="15 -many",
    type="20 -number",
    ref_attr_name="21 -text",
    sparse_tensor="22 one",
    sparse_tensors="23 many",
)
TENSOR = _message(
    "TensorProto",
    dims="1 numbers",
    data_type="2 number",
    segment="3 one",
    float_data="4 packed",
    int32_data="5 packed",
    string_data="6 texts",
    int64_data="7 packed",
    name="8 text",
    raw_data="9 text",
    double_data="10 packed",
    uint64_data="11 packed",
    doc_string="12 -text",
    external_data="13 many",
    data_location="14 number",
    metadata_props="16 -many",
)
SPARSE_TENSOR = _message("SparseTensorProto", values="1 one", indices="2 one", dims="3 numbers")
VALUE_INFO = _message(
    "ValueInfoProto", name="1 text", type="2 one", doc_string="3 -text", metadata_props="4 -many"
)
TYPE = _message(
    "TypeProto",
    tensor="1 one",
    sequence="4 one",
    map="5 one",
    denotation="6 -text",
    opaque="7 one",
    sparse_tensor="8 one",
    optional="9 one",
)
TENSOR_TYPE = _message("TypeProto.Tensor", elem_type="1 number", shape="2 one")
ELEMENT_TYPE = _message("TypeProto.Sequence", elem_type="1 one")
MAP_TYPE = _message("TypeProto.Map", key_type="1 number", value_type="2 one")
SHAPE = _message("TensorShapeProto", dim="1 many")
DIMENSION = _message(
    "TensorShapeProto.Dimension", dim_value="1 number", dim_param="2 text", denotation="3 -text"
)
OPERATOR_SET = _message("OperatorSetIdProto", domain="1 text", version="2 number")
ENTRY = _message("StringStringEntryProto", key="1 text", value="2 text")
TRAINING = _message(
    "TrainingInfoProto",
    initialization="1 one",
    algorithm="2 one",
    initialization_binding="3 -many",
    update_binding="4 -many",
)
FUNCTION = _message(
    "FunctionProto",
    name="1 text",
    since_version="2 -number",
    status="3 -number",
    input="4 -texts",
    output="5 -texts",
    attribute="6 -texts",
    node="7 many",
    doc_string="8 -text",
    opset_import="9 -many",
    domain="10 text",
    attribute_proto="11 many",
    value_info="12 -many",
    overload="13 text",
    metadata_props="14 -many",
)
