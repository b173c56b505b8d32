"""What an exported program in a .pt2 archive would have run as Python, when torch.export.load rebuilds it.

The program is a graph in JSON. torch evaluates its expressions with sympy (which is `eval`), looks its
operators up by dotted path, makes Python code of its names, and imports the modules of its enums. Programs
that torch wrote have expressions of a few functions, operators of torch and names that are identifiers:
that much is an allow-list here, and the rest is told.

Source: torch/_export/serde/serialize.py of torch 2.13 (`GraphModuleDeserializer._parse_sym_expr`,
`deserialize_operator`, `deserialize_graph`, `deserialize_module_call_signature`); torch/utils/_pytree.py
(`enum_object_hook`, `_defaultdict_deserialize`); torch/fx/graph.py (`CodeGen`, `_format_target`);
torch/utils/_sympy/functions.py.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any, TypeGuard

from ptsave.core.tree import walk
from ptsave.formats.programs.operators import is_plain

MAX_EXPRESSION_BYTES = 4096
"""Longer expressions are not parsed, and told."""
_MAX_SHOWN = 80

_FUNCTIONS = frozenset(
    """
    Add Mul Pow Integer Rational Float Symbol Max Min Mod Abs sqrt floor ceiling Piecewise ExprCondPair
    Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan And Or
    Not Tuple FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv IntTrueDiv
    FloatTrueDiv LShift RShift IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt
    RoundDecimal ToFloat FloatPow PowByNatural Identity max min
    """.split()  # noqa: SIM905
)
_FUNCTION_FAMILIES = re.compile(r"(?:OpaqueUnaryFn|BitwiseFn)_\w+", re.ASCII)
_EXPRESSION_NODES = (
    ast.Expression,
    ast.Constant,
    ast.Name,
    ast.Load,
    ast.Call,
    ast.keyword,
    ast.Tuple,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
)
_OPERATOR = re.compile(
    r"torch\.ops\.(?P<namespace>\w+)\.(?P<name>\w+)(?:\.\w+)?|torch\.(?:_?sym_\w+)|math\.\w+|_operator\.(?:"
    r"add|and_|contains|eq|floordiv|ge|getitem|gt|index|invert|inv|is_|is_not|le|lshift|lt|matmul|mod|mul|ne|"
    r"neg|not_|or_|pos|pow|rshift|sub|truediv|truth|xor|abs|i(?:add|sub|mul|and|or|xor|mod|pow|floordiv|truediv))",
    re.ASCII,
)
_NAMED_AS_PYTHONS = re.compile(r"(?<=aten\.)__i?(?:and|or|xor|lshift|rshift)__(?=\.|$)")
"""Operators that are called as methods, and lie in no namespace of torch."""
_SIZES = ("size", "stride", "storage_offset")
"""The attributes of an argument that a guard may use."""
_RESOLVED = re.compile(r"torch|math|_operator|#")
"""How a text begins that torch looks up as an operator; others stay texts."""
_IDENTIFIER = re.compile(r"[\w.]*")
_ATTRIBUTE = re.compile(r'[^"\\\x00-\x1f]*')
"""A name that stays within the quotes in which torch writes it into code: `getattr(self, "0")`."""
_ATTRIBUTES = (
    *("parameter_name", "buffer_name", "tensor_constant_name", "custom_obj_name", "user_input_name"),
    *("fqn", "class_fqn"),
)
_SPEC_TEXT = re.compile(r"[\w.\-/ ]*")
"""A type or a key in a tree of arguments; keys become the names of arguments."""
_FACTORIES = (".", *(f"builtins.{name}" for name in "bool dict float int list set str tuple".split()))  # noqa: SIM905
"""What a defaultdict may make its values with; a dot where there is none."""


def code_in(program: Any) -> Iterator[str]:
    """The texts of a program that torch would evaluate, import or call, outside the allow-list."""
    for _, node in walk(program):
        for key, value in node.items() if isinstance(node, dict) else ():
            texts = value if isinstance(value, list) else [value]
            for text in filter(_is_text, texts):
                if key in ("in_spec", "out_spec"):
                    found = _code_in_spec(text)
                else:
                    found = iter(() if _is_harmless(key, text) else (text,))
                yield from (code if len(code) <= _MAX_SHOWN else code[:_MAX_SHOWN] + "…" for code in found)


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str)


def _is_harmless(key: str, text: str) -> bool:
    if key == "expr_str":
        return _is_expression(text)
    if key in ("target", "as_operator"):
        found = _OPERATOR.fullmatch(text)
        if found is None or "__" in _NAMED_AS_PYTHONS.sub("", text):
            return _RESOLVED.match(text) is None
        return found["name"] is None or is_plain(found["namespace"], found["name"])
    if key in ("name", "as_name", "forward_arg_names"):
        return _IDENTIFIER.fullmatch(text) is not None
    if key in _ATTRIBUTES:
        return _ATTRIBUTE.fullmatch(text) is not None
    return key != "guards_code" or _is_expression(text, is_guard=True)


def _code_in_spec(text: str) -> Iterator[str]:
    """What a tree of arguments imports, and its keys that are no plain names.

    Containers and the factories of builtin types are plain; an enum and any other factory is imported.
    """
    waiting: list[Any] = [text]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str) and node[:1] in ("[", "{"):
            try:  # a context is JSON in a text
                node = json.loads(node)
            except (ValueError, RecursionError):
                yield node
        elif isinstance(node, str) and not _SPEC_TEXT.fullmatch(node):
            yield node
        if isinstance(node, dict):
            if "__enum__" in node:
                yield str(node.get("fqn"))
            factory = ".".join(str(node.get(f"default_factory_{part}", "")) for part in ("module", "name"))
            if factory not in _FACTORIES:
                yield factory
            waiting += (*node, *node.values())
        elif isinstance(node, list):
            waiting += node


def _is_expression(text: str, *, is_guard: bool = False) -> bool:
    """Whether `text` is arithmetic on symbols, or on the sizes of arguments (a guard), and nothing else."""
    if len(text) > MAX_EXPRESSION_BYTES or "\\" in text:  # no name needs one, and Python warns of some
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    texts: set[int] = set()
    """The nodes that may be texts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            is_size = is_guard and isinstance(node.func, ast.Attribute) and not node.args
            if not is_size and name not in _FUNCTIONS and not _FUNCTION_FAMILIES.fullmatch(name):
                return False
            if name in ("Symbol", "Float"):
                texts |= {id(arg) for arg in node.args}
        elif is_guard and isinstance(node, ast.Attribute):
            if node.attr not in _SIZES:
                return False
        elif is_guard and isinstance(node, ast.Subscript):
            texts.add(id(node.slice))
        elif isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)):
            is_name = is_guard or (isinstance(node.value, str) and _NAME_OR_NUMBER.fullmatch(node.value))
            if id(node) not in texts or not is_name:
                return False
        elif not isinstance(node, _EXPRESSION_NODES):
            return False
    return True


_NAME_OR_NUMBER = re.compile(r"\w+|-?\d+(?:\.\d*)?(?:e-?\d+)?", re.ASCII)
