"""Working with names: globs, and escapes for a terminal."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def escape(text: str) -> str:
    r"""`text` with control, bidirectional and invisible characters spelled as \xNN or \uNNNN.

    Names come from files; a terminal must not obey them.
    """
    return _UNSAFE.sub(lambda m: m.group().encode("unicode_escape", "surrogatepass").decode(), text)


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether `name` fits any glob: `*` also matches dots, as in a shell's `case`."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)
