"""ONNX models spelled byte by byte in Protocol Buffers' wire format, as no library would write them."""

from __future__ import annotations

from . import torch_files as tf

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def varint(number: int) -> bytes:
    """A number, as it is or as the 64 bits of a negative one."""
    number &= 2**64 - 1 if number < 0 else number
    made = bytearray()
    while number >= 0x80:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])


def tag(field: int, wire_type: int) -> bytes:
    return varint(field << 3 | wire_type)


def number(field: int, value: int) -> bytes:
    return tag(field, VARINT) + varint(value)


def data(field: int, content: bytes | str, length: int | None = None) -> bytes:
    """A field of bytes, a text or a message, whose `length` may be another than that of its content."""
    content = content.encode() if isinstance(content, str) else content
    return tag(field, BYTES) + varint(len(content) if length is None else length) + content


def dims(*sizes: int) -> bytes:
    return b"".join(number(1, size) for size in sizes)


def tensor(
    name: bytes | str = "w",
    sizes: tuple[int, ...] = (4,),
    data_type: int = 1,
    raw: bytes | None = tf.FOUR,
    more: bytes = b"",
) -> bytes:
    """A TensorProto."""
    values = b"" if raw is None else data(9, raw)
    return dims(*sizes) + number(2, data_type) + data(8, name) + values + more


def entry(key: str, value: str) -> bytes:
    """A StringStringEntryProto."""
    return data(1, key) + data(2, value)


def external(location: str = "w.data", name: str = "w", sizes: tuple[int, ...] = (4,), **about: str) -> bytes:
    """A TensorProto whose values lie in another file."""
    entries = {"location": location, **about}
    more = b"".join(data(13, entry(key, value)) for key, value in entries.items()) + number(14, 1)
    return tensor(name, sizes, raw=None, more=more)


def node(op_type: str = "Relu", *attributes: bytes, domain: str = "", name: str = "") -> bytes:
    made = data(1, "x") + data(2, "y") + data(3, name) + data(4, op_type)
    return made + b"".join(data(5, one) for one in attributes) + data(7, domain)


def graph(*tensors: bytes, nodes: tuple[bytes, ...] = (), more: bytes = b"") -> bytes:
    """A GraphProto."""
    made = b"".join(data(1, one) for one in nodes) + data(2, "g")
    return made + b"".join(data(5, one) for one in tensors) + more


OPSET = data(8, data(1, "") + number(2, 21))
HEAD = number(1, 10) + data(2, "test")


def model(*tensors: bytes, nodes: tuple[bytes, ...] = (), more: bytes = b"", after: bytes = OPSET) -> bytes:
    """A ModelProto. `more`: of the graph; `after`: what follows the graph."""
    return HEAD + data(7, graph(*tensors, nodes=nodes, more=more)) + after


def nested(kind: bytes, depth: int, close: bytes = b"") -> bytes:
    """Graphs in graphs, `depth` of them, in attributes of nodes."""
    inner = close
    for _ in range(depth):
        attribute = data(1, "g") + data(6, inner)
        inner = data(1, data(4, kind) + data(5, attribute))
    return inner
