"""Plain data → the text of a TOML, which `load_config` reads back as it was."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ptsave.errors import UsageError

MAX_INT = 2**63
"""TOML's integers have 64 bits."""
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def toml_text(document: Mapping[str, Any], comments: Sequence[str] = ()) -> str:
    """`document` as TOML, with lines of comments in front; a value of None has no place in it.

    Raises: UsageError for a value that TOML cannot hold.
    """
    lines = [f"# {_printable(line)}" for line in comments]
    lines += ["", *_table(document, ())] if lines else _table(document, ())
    return "\n".join(lines).rstrip() + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """The values of a table, and then the tables in it, each under its header."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    own = {key: value for key, value in table.items() if key not in inner}
    if path and (own or not inner):
        yield f"[{'.'.join(map(_key, path))}]"
    for key, value in own.items():
        yield f"{_key(key)} = {_value(value)}"
    if own or (path and not inner):
        yield ""
    for key, value in inner.items():
        yield from _table(value, (*path, key))


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        if not -MAX_INT <= value < MAX_INT:
            raise UsageError(f"TOML has no integer of {value.bit_length()} bits", "", "write it as a text")
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items())
        return f"{{{inside}}}"
    raise UsageError(f"TOML cannot hold a {type(value).__name__}", "", "leave it out")


def _string(text: str) -> str:
    """A basic string. JSON's escapes are TOML's, but for the delete character and what is beyond 16 bits.

    Raises: UsageError for a lone surrogate, which stands for a byte of a path that is no text.
    """
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UsageError(f"TOML has no text that is not Unicode: {text[:80]!r}", "", "rename it")
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else " " for c in line)
