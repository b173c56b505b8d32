"""Digests of the code that makes a model what it is: they change when `forward` changes.

What counts is the syntax tree without docstrings, so comments, line breaks and formatting do not. The
tree is spelled out here rather than with `ast.dump`, whose text differs between versions of Python.

Counted are the classes of a model and of its layers (torch's own aside, of which torch's version says
all), and what their code names, transitively: base classes, functions, constants. Names are followed
through the user's own code, whatever module it is in; in an installed package, no further than the module
that defines the class, for a package's version says the rest. So the same class has fewer parts once its
project is installed, and two sets of parts are to be compared by what they have in common
(`changed_parts`).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

Code = nn.Module | type | FunctionType
PART_DIGITS = 16
PLAIN = (str, bytes, int, float, complex, bool, type(None))


def source_digest(value: Code) -> str | None:
    """SHA-256 (hex) over the parts in the module that defines `value`, or None where there is no source.

    `value` is a model, a class or a function. The digest is the same wherever that module is installed.
    """
    parts = _parts(value, home_only=True)
    if parts is None:
        return None
    text = "\n".join(f"{name} {digest}" for name, digest in sorted(parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def source_parts(value: Code) -> dict[str, str] | None:
    """Dotted name → 16 hex digits of SHA-256, of each function, method, class body and constant that counts.

    None where the source of `value` itself cannot be had: made at a prompt, or shipped as bytecode only.
    """
    return _parts(value, home_only=False)


def changed_parts(recorded: Mapping[str, str], value: Code) -> list[str] | None:
    """The names of what has changed since `source_parts` was recorded; None where that cannot be told.

    A method of a class that is still there counts as changed when it was added or removed.
    """
    today = source_parts(value)
    if today is None or not recorded.keys() & today.keys():
        return None
    changed = []
    for name in sorted(recorded.keys() | today.keys()):
        owner = name.rpartition(".")[0]
        is_known = owner in recorded and owner in today
        if (is_known or (name in recorded and name in today)) and recorded.get(name) != today.get(name):
            changed.append(name)
    return changed


def _parts(value: Code, home_only: bool) -> dict[str, str] | None:
    roots = [type(module) for module in value.modules()] if isinstance(value, nn.Module) else [value]
    roots = [root for root in dict.fromkeys(roots) if not root.__module__.startswith("torch.")]
    home = _module(roots[0]) if roots else None
    if home is None or _nodes(home, roots[0]) is None:
        return None
    parts: dict[str, str] = {}
    seen: set[int] = set()
    waiting: list[Any] = roots
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        module = _module(item)
        is_counted = module is home if home_only else module is not None and _counts(module, home)
        nodes = _nodes(module, item) if module is not None and is_counted else None
        if module is None or nodes is None:
            continue
        for part, trees in _split(f"{module.__name__}.{item.__qualname__}", nodes):
            parts[part] = _digest(trees)
        for node in nodes:
            for where, found in _named(node, module):
                if isinstance(found, (type, FunctionType)):
                    waiting.append(found)
                elif _is_plain(found):
                    parts[where] = hashlib.sha256(repr(found).encode()).hexdigest()[:PART_DIGITS]
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
    return hasher.hexdigest()[:PART_DIGITS]


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
