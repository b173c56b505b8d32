"""Working with names: the nearest right one, globs, and escapes for a terminal."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")


def escape(text: str) -> str:
    r"""`text` with control, bidirectional and invisible characters spelled as \xNN or \uNNNN.

    Names come from files; a terminal must not obey them.
    """
    return _UNSAFE.sub(lambda m: m.group().encode("unicode_escape", "surrogatepass").decode(), text)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that proposes the known name nearest to `name`, or the empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else ""


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether `name` fits any glob: `*` also matches dots, as in a shell's `case`."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)
