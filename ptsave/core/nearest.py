"""The name that a user most likely meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MAX_LISTED = 8
"""How many names a hint lists when none is near."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that is spelt most like `name`, or None when none is near."""
    names = list(names)
    if matches := get_close_matches(name, names, n=1, cutoff=0.6):
        return matches[0]
    lower = {other.lower(): other for other in names}
    matches = get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return lower[matches[0]] if matches else None


def hint_for(name: str, names: Iterable[str], kind: str = "names") -> str:
    """`did you mean 'x'?`, or the list of what there is when nothing is near."""
    names = list(names)
    if match := nearest(name, names):
        return f"did you mean {match!r}?"
    if not names:
        return f"there are no {kind} here"
    more = ", …" if len(names) > MAX_LISTED else ""
    return f"known {kind}: {', '.join(names[:MAX_LISTED])}{more}"
