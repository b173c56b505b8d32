"""What an exported program in a .pt2 archive says of its inputs, outputs and operators.

Source: torch/_export/serde/schema.py of torch 2.13 (`InputSpec`, `OutputSpec`, `TensorMeta`, `SymInt`,
`ScalarType`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ptsave.core.dtypes import BY_NAME, DType
from ptsave.core.nodes import Port, Program
from ptsave.core.record import Record

MAX_EXPRESSION_CHARS = 200
"""Cap on the characters of a size's expression that are shown."""
SCALAR_TYPES: dict[int, DType] = {
    number: BY_NAME[name]
    for number, name in {
        1: "uint8",
        2: "int8",
        3: "int16",
        4: "int32",
        5: "int64",
        6: "float16",
        7: "float32",
        8: "float64",
        9: "complex32",
        10: "complex64",
        11: "complex128",
        12: "bool",
        13: "bfloat16",
        28: "uint16",
        29: "float8_e4m3fn",
        30: "float8_e5m2",
        31: "float8_e4m3fnuz",
        32: "float8_e5m2fnuz",
        33: "float8_e8m0fnu",
        34: "uint32",
        35: "uint64",
    }.items()
}
"""Source: `schema.ScalarType`."""
_SYMBOL = re.compile(r"Symbol\('(\w{1,100})'[^()]{0,100}\)")
_WORD = re.compile(r"\w{1,100}")
_OPERATORS = "torch.ops."


def described(program: Any, name: str) -> Program:
    """The program `name`, as far as its JSON describes it; nothing depends on that."""
    module = table(program, "graph_module")
    graph, signature = table(module, "graph"), table(module, "signature")
    targets = (node.get("target") for node in listed(graph, "nodes") if isinstance(node, dict))
    operators = Counter(text.removeprefix(_OPERATORS) for text in targets if isinstance(text, str))
    version = program.get("torch_version")
    return Program(
        name,
        inputs=[*_ports(graph, listed(signature, "input_specs"), ("user_input", "constant_input"))],
        outputs=[*_ports(graph, listed(signature, "output_specs"), ("user_output", "loss_output"))],
        operators=dict(operators.most_common()),
        opsets={k: v for k, v in table(program, "opset_version").items() if type(v) is int},
        producer=f"torch {version}" if isinstance(version, str) else "",
    )


def _ports(graph: dict[str, Any], specs: list[Any], kinds: tuple[str, ...]) -> Iterator[Port]:
    values = table(graph, "tensor_values")
    for spec in specs:
        for kind in kinds:
            about = table(spec, kind)
            if not about:
                continue
            argument = table(about, "arg") or table(about, "value")
            tensor = table(argument, "as_tensor").get("name")
            if isinstance(tensor, str):
                yield _tensor_port(tensor, table(values, tensor))
                continue
            form, value = next(iter(argument.items()), ("?", None))
            name = about.get("name", "")
            fixed = f", always {value}" if type(value) in (int, float, bool) else ""
            yield Port(name if isinstance(name, str) else "", f"{form.removeprefix('as_')}{fixed}")


def _tensor_port(name: str, meta: dict[str, Any]) -> Port:
    number = meta.get("dtype")
    dtype = SCALAR_TYPES.get(number) if type(number) is int else None
    sizes = listed(meta, "sizes") if "sizes" in meta else None
    shape = None if sizes is None else tuple(map(_size, sizes))
    return Port(name, dtype.name if dtype is not None else "?", shape)


def _size(size: Any) -> int | str:
    """A `SymInt`: a number, or an expression in which the symbols stand for themselves."""
    if not isinstance(size, dict):
        return "?"
    number, text = size.get("as_int"), table(size, "as_expr").get("expr_str")
    if type(number) is int:
        return number
    return _SYMBOL.sub(r"\1", text[:MAX_EXPRESSION_CHARS]) if isinstance(text, str) else "?"


def with_names(programs: Sequence[Program], record: Record | None) -> list[Program]:
    """The programs with the names that the record has for torch's symbols: `batch` for `s77`."""
    names = table(record.program if record is not None else None, "symbols")

    def size(size: int | str) -> int | str:
        if isinstance(size, int):
            return size
        return _WORD.sub(lambda found: str(names.get(found[0], found[0]))[:MAX_EXPRESSION_CHARS], size)

    def ports(ports: Sequence[Port]) -> list[Port]:
        return [
            port if port.shape is None else replace(port, shape=tuple(map(size, port.shape)))
            for port in ports
        ]

    return [replace(one, inputs=ports(one.inputs), outputs=ports(one.outputs)) for one in programs]


def table(holder: Any, key: str) -> dict[str, Any]:
    """The JSON object under `key`; an empty one where there is none."""
    value = holder.get(key) if isinstance(holder, dict) else None
    return value if isinstance(value, dict) else {}


def listed(holder: dict[str, Any], key: str) -> list[Any]:
    """The JSON array under `key`; an empty one where there is none."""
    value = holder.get(key)
    return value if isinstance(value, list) else []
