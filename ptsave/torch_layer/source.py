"""A digest of the code that makes a model what it is: it changes when `forward` changes.

What counts is the syntax tree without docstrings, so comments, line breaks and formatting do not. The
tree is spelled out here rather than with `ast.dump`, whose text differs between versions of Python.

Counted are the class, and what its code names, transitively: base classes, the classes of its layers,
functions, constants. Names are followed through the user's own code, whatever module it is in; in an
installed package, no further than the module that defines the class, for a package's version says the rest.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

Definition = type | FunctionType
PLAIN = (str, bytes, int, float, complex, bool, type(None))


def source_digest(value: Definition) -> str | None:
    """SHA-256 (hex) over all of `source_parts`, or None where there is no source."""
    parts = source_parts(value)
    if parts is None:
        return None
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def source_parts(value: Definition) -> dict[str, str] | None:
    """Dotted name → SHA-256 (hex) of each function, method, class body and constant that counts.

    None where the source of `value` itself cannot be had: made at a prompt, or shipped as bytecode only.
    """
    home = _module(value)
    if home is None or _nodes(home, value) is None:
        return None
    parts: dict[str, str] = {}
    seen: set[int] = set()
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        module = _module(item)
        nodes = None if module is None or not _counts(module, home) else _nodes(module, item)
        if module is None or nodes is None:
            continue
        name = f"{module.__name__}.{item.__qualname__}"
        for part, trees in _split(name, nodes):
            parts[part] = _digest(trees)
        for node in nodes:
            for where, found in _named(node, module):
                if isinstance(found, (type, FunctionType)):
                    waiting.append(found)
                elif _is_plain(found):
                    parts[where] = hashlib.sha256(repr(found).encode()).hexdigest()
                elif where.startswith(f"{module.__name__}.") and (made := _assigned(module, where)):
                    parts[where] = _digest(made)
    return parts


def _module(value: Any) -> ModuleType | None:
    return sys.modules.get(getattr(value, "__module__", None) or "")


def _counts(module: ModuleType, home: ModuleType) -> bool:
    """Whether the code of `module` belongs to a class that is defined in `home`."""
    return module is home or not (_is_installed(module) or _is_installed(home))


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None) or ""
    library = sysconfig.get_path("stdlib")
    return not file or "site-packages" in file or "dist-packages" in file or file.startswith(library)


@functools.cache
def _index(module: ModuleType) -> dict[str, list[ast.AST]] | None:
    """Qualified name → definitions and assignments of a module, or None without source.

    A name that is defined more than once (under an `if`) has them all.
    """
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return None
    index: dict[str, list[ast.AST]] = {}
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        prefix, parent = waiting.pop()
        for node in reversed(list(ast.iter_child_nodes(parent))):
            inner = prefix
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                index.setdefault(prefix + node.name, []).append(node)
                inner = f"{prefix}{node.name}." + ("" if isinstance(node, ast.ClassDef) else "<locals>.")
            elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Name):
                        index.setdefault(prefix + target.id, []).append(node)
            waiting.append((inner, node))
    for nodes in index.values():
        nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return index


def _nodes(module: ModuleType, value: Any) -> list[ast.AST] | None:
    index = _index(module)
    return None if index is None else index.get(getattr(value, "__qualname__", ""))


def _assigned(module: ModuleType, where: str) -> list[ast.AST] | None:
    index = _index(module)
    return None if index is None else index.get(where.removeprefix(f"{module.__name__}."))


def _split(name: str, nodes: list[ast.AST]) -> Iterator[tuple[str, list[ast.AST]]]:
    """The definition apart by methods, so that a difference can be put down to one of them."""
    rest: list[ast.AST] = []
    methods: dict[str, list[ast.AST]] = {}
    for node in nodes:
        if not isinstance(node, ast.ClassDef):
            rest.append(node)
            continue
        rest += [*node.decorator_list, *node.bases, *node.keywords]
        for child in node.body:
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                methods.setdefault(f"{name}.{child.name}", []).append(child)
            elif not _is_docstring(child):
                rest.append(child)
    yield name, rest
    yield from methods.items()


def _named(node: ast.AST, module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What the code of `node` names outside itself, with a dotted name for each."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            if part.id in vars(module):
                yield f"{module.__name__}.{part.id}", vars(module)[part.id]
        elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            owner = vars(module).get(part.value.id)
            if isinstance(owner, ModuleType) and not _is_installed(owner) and hasattr(owner, part.attr):
                yield f"{owner.__name__}.{part.attr}", getattr(owner, part.attr)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _digest(nodes: list[ast.AST]) -> str:
    hasher = hashlib.sha256()
    for node in nodes:
        for token in _spell(node):
            hasher.update(token.encode("utf-8", "surrogatepass") + b"\0")
    return hasher.hexdigest()


def _spell(value: Any) -> Iterator[str]:
    """The syntax tree as text: kinds, the fields that are set, and leaves.

    Empty fields are passed over, so that fields which newer versions of Python add do not show.
    """
    if isinstance(value, ast.AST):
        yield f"({type(value).__name__}"
        for field in sorted(value._fields):
            inner = getattr(value, field, None)
            if inner is None and not isinstance(value, ast.Constant):
                continue
            if inner == [] or field in ("ctx", "kind", "type_comment"):
                continue
            yield field
            yield from _spell(inner)
        yield ")"
    elif isinstance(value, list):
        for item in value:
            if not _is_docstring(item):
                yield from _spell(item)
    else:
        yield repr(value)
