"""What an exported program in a .pt2 archive says of its inputs, outputs and operators.

Source: torch/_export/serde/schema.py of torch 2.13 (`InputSpec`, `OutputSpec`, `TensorMeta`, `SymInt`,
`ScalarType`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ptsave.core.dtypes import BY_NAME, DType
from ptsave.core.nodes import Port, Program

MAX_EXPRESSION_CHARS = 200
"""How much of the expression of one size is told."""
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
_OPERATORS = "torch.ops."


def described(program: Any, name: str) -> Program:
    """The program called `name`, as far as its JSON says what it is: nothing of it is relied upon."""
    module = _table(program, "graph_module")
    graph, signature = _table(module, "graph"), _table(module, "signature")
    targets = (node.get("target") for node in _list(graph, "nodes") if isinstance(node, dict))
    operators = Counter(text.removeprefix(_OPERATORS) for text in targets if isinstance(text, str))
    version = program.get("torch_version")
    return Program(
        name,
        inputs=[*_ports(graph, _list(signature, "input_specs"), ("user_input", "constant_input"))],
        outputs=[*_ports(graph, _list(signature, "output_specs"), ("user_output", "loss_output"))],
        operators=dict(operators.most_common()),
        opsets={k: v for k, v in _table(program, "opset_version").items() if type(v) is int},
        producer=f"torch {version}" if isinstance(version, str) else "",
    )


def _ports(graph: dict[str, Any], specs: list[Any], kinds: tuple[str, ...]) -> Iterator[Port]:
    values = _table(graph, "tensor_values")
    for spec in specs:
        for kind in kinds:
            about = _table(spec, kind)
            if not about:
                continue
            argument = _table(about, "arg") or _table(about, "value")
            tensor = _table(argument, "as_tensor").get("name")
            if isinstance(tensor, str):
                yield _tensor_port(tensor, _table(values, tensor))
                continue
            form, value = next(iter(argument.items()), ("?", None))
            name = about.get("name", "")
            fixed = f", always {value}" if type(value) in (int, float, bool) else ""
            yield Port(name if isinstance(name, str) else "", f"{form.removeprefix('as_')}{fixed}")


def _tensor_port(name: str, meta: dict[str, Any]) -> Port:
    number = meta.get("dtype")
    dtype = SCALAR_TYPES.get(number) if type(number) is int else None
    sizes = _list(meta, "sizes") if "sizes" in meta else None
    shape = None if sizes is None else tuple(map(_size, sizes))
    return Port(name, dtype.name if dtype is not None else "?", shape)


def _size(size: Any) -> int | str:
    """A `SymInt`: a number, or an expression in which the symbols stand for themselves."""
    if not isinstance(size, dict):
        return "?"
    number, text = size.get("as_int"), _table(size, "as_expr").get("expr_str")
    if type(number) is int:
        return number
    return _SYMBOL.sub(r"\1", text[:MAX_EXPRESSION_CHARS]) if isinstance(text, str) else "?"


def _table(holder: Any, key: str) -> dict[str, Any]:
    value = holder.get(key) if isinstance(holder, dict) else None
    return value if isinstance(value, dict) else {}


def _list(holder: dict[str, Any], key: str) -> list[Any]:
    value = holder.get(key)
    return value if isinstance(value, list) else []
