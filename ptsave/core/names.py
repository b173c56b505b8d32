"""Working with names: globs, and escapes for a terminal."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import islice

from ptsave.errors import Text, UsageError, quoted

MAX_ROWS = 200
"""How many rows of a table a notebook shows; the result itself has all."""

MAX_ALIAS_CHARS = 16 * 1024 * 1024
"""Cap on the names of tied tensors together: a long name stands beside each tensor that shares its bytes."""
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f\u2028-\u202f"
    "\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""The categories Cc, Cf, Cs, Zl and Zp, and a few more that cannot be seen."""

_COMMAND = re.compile(r"(?<!\S):(?=:)|#(?=#(?:vso)?\[)")


def escape(text: str) -> str:
    r"""`text` with control, bidirectional and invisible characters spelled as \xNN or \uNNNN.

    Names come from files; neither a terminal nor a CI runner must obey them. GitHub takes a line that begins
    with `::`, and `##[` anywhere, for commands; Azure Pipelines `##vso[`.
    """
    safe = _UNSAFE.sub(lambda m: m.group().encode("unicode_escape", "surrogatepass").decode(), text)
    return _COMMAND.sub(lambda m: f"\\x{ord(m.group()):02x}", safe)


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether `name` fits any glob: `*` also matches dots, as in a shell's `case`."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


def expect_matches(globs: Iterable[str], names: Iterable[str], where: Text) -> None:
    """Insist that each of `globs` fits one of `names`.

    Raises: UsageError that proposes a glob which does.
    """
    names = list(names)
    for glob in globs:
        if not any(fnmatch.fnmatchcase(name, glob) for name in names):
            meant = _glob_meant(glob, names)
            hint = hint_for(glob, names) if meant is None else f"did you mean {quoted(meant)}?"
            raise UsageError(f"no name matches {glob!r}", where, hint)


def _glob_meant(glob: str, names: Sequence[str]) -> str | None:
    """A glob near `glob` that fits one of `names`: a wider one, or one whose words are theirs."""
    parts = {part for name in islice(names, MAX_LOOKED_AT) for part in name.split(".")}
    words = _WORD.sub(lambda word: nearest(word[0], parts) or word[0], glob)
    near = [f"*{glob.strip('*')}*"]
    if any(sign in glob for sign in "*?["):  # else the name itself is nearer
        near += [words, f"*{words.strip('*')}*"]
    return next((one for one in near if any(fnmatch.fnmatchcase(name, one) for name in names)), None)


_WORD = re.compile(r"[A-Za-z]\w+")
MAX_LOOKED_AT = 2000
"""Among how many names a hint looks for words that are near."""
MIN_PART = 3
"""A shorter text is in too many names to be a part of the one that is meant."""
MAX_LISTED = 8
"""How many names a hint lists when none is near."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that is spelt most like `name`, or has it in it; None when none is near."""
    names = list(names)
    if matches := get_close_matches(name, names, n=1, cutoff=0.6):
        return matches[0]
    lower = {other.lower(): other for other in names}
    if matches := get_close_matches(name.lower(), lower, n=1, cutoff=0.6):
        return lower[matches[0]]
    around = [other for other in names if len(name) >= MIN_PART and name.lower() in other.lower()]
    return min(around, key=len, default=None)


def hint_for(name: str, names: Iterable[str], kind: str = "names") -> str:
    """`did you mean 'x'?`, or the list of what there is when nothing is near."""
    names = list(names)
    if match := nearest(name, names):
        return f"did you mean {match!r}?"
    if not names:
        return f"there are no {kind} here"
    more = ", …" if len(names) > MAX_LISTED else ""
    return f"known {kind}: {', '.join(names[:MAX_LISTED])}{more}"


def html_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], num_rows: int) -> str:
    """A table of `num_rows` rows, of which the first MAX_ROWS are shown."""
    body = "".join(f"<tr>{_cells(row, 'td')}</tr>" for row in islice(rows, MAX_ROWS))
    more = f"<p>… {num_rows - MAX_ROWS:,} more</p>" if num_rows > MAX_ROWS else ""
    return (
        f"<p><b>{_text(title)}</b></p><table><thead><tr>{_cells(header, 'th')}</tr></thead>"
        f"<tbody>{body}</tbody></table>{more}"
    )


def _cells(row: Sequence[object], tag: str) -> str:
    return "".join(f'<{tag} style="text-align:left">{_text(cell)}</{tag}>' for cell in row)


def _text(value: object) -> str:
    from html import escape as html_escape  # its table of entities is long, and only notebooks need it

    return html_escape(escape(str(value)))
