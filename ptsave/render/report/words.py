"""Wording that all reports share."""

from __future__ import annotations

from ptsave.core.names import escape
from ptsave.render.words import size

MAX_INT_BITS = 512
"""Larger integers are written in hexadecimal: a float cannot hold them, and nobody counts their digits."""


def clean(value: object) -> str:
    """`value` in visible characters that every encoding and markup language can hold."""
    return escape(str(value)).replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")


def fact(name: str, value: object) -> str:
    """One fact's value for a person: sizes with their unit, large numbers with commas."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return clean(value)
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        return hex(value)
    if name == "seconds":
        return f"{value:.1f}"
    if name == "bytes" and value >= 1024:
        return f"{size(int(value))} ({value:,} B)"
    return f"{value:,} B" if name == "bytes" else f"{value:,}"
