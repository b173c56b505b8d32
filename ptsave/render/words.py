"""Numbers and plain values in words, short and safe to print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ptsave.core.address import Address
from ptsave.core.dtypes import DType
from ptsave.core.names import escape
from ptsave.core.nodes import Global, Opaque

if TYPE_CHECKING:
    from ptsave.models.save import Saved
    from ptsave.verbs.convert import Conversion

MAX_VALUE_CHARS = 80
"""How much of one plain value is spelled out."""


def size(num_bytes: int) -> str:
    """`num_bytes` for a person: `268 B`, `1.5 MiB`."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{num_bytes} B" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    raise AssertionError


def checked_by(result: Conversion | Saved) -> str:
    """By what a file in a store was compared with what was written. On a disk it is always read back."""
    if not isinstance(result.destination, Address):
        return ""
    return f"; checked by {result.checked}" if result.checked else "; not checked"


def signed_by(result: Conversion | Saved) -> str:
    """Whose keys signed what was written."""
    return f"; signed by {', '.join(result.signed_by)}" if result.signed_by else ""


def count(number: int, noun: str) -> str:
    """`1 tensor`, `1,024 tensors`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def bars(counts: Sequence[int]) -> str:
    """A line of blocks, each as high as its count is beside the largest; one that is not 0 is never empty."""
    most = max(counts, default=0)
    return "".join(_BLOCKS[0 if not n else max(1, round(8 * n / most))] for n in counts)


_BLOCKS = " ▁▂▃▄▅▆▇█"


def shape(sizes: Sequence[int]) -> str:
    """`[4, 10]`."""
    return f"[{', '.join(map(str, sizes))}]"


def value(item: Any) -> str:
    """A plain value in one short, escaped line."""
    text = escape(_spelled(item, 3))
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 1] + "…"


def _spelled(item: Any, depth: int) -> str:
    if isinstance(item, Opaque):
        args = ", ".join(_spelled(arg, 1) for arg in item.args[:8]) if item.is_call_of_scalars else "…"
        return f"<{item.name}({args})>" if args else f"<{item.name}>"
    if isinstance(item, Global):
        return f"<name {item.name}>"
    if isinstance(item, DType):
        return f"torch.{item.name}"
    if isinstance(item, (list, tuple)):
        if depth == 0:
            return "…"
        inner = ", ".join(_spelled(part, depth - 1) for part in item[:16])
        more = f", … {len(item) - 16} more" if len(item) > 16 else ""
        return f"({inner}{more})" if isinstance(item, tuple) else f"[{inner}{more}]"
    if isinstance(item, dict):
        return "{…}" if item else "{}"
    if isinstance(item, str):
        return repr(item[: 2 * MAX_VALUE_CHARS])
    if isinstance(item, (bytes, bytearray)):
        return f"{len(item)} bytes" if len(item) > 16 else repr(bytes(item))
    return str(item) if isinstance(item, (bool, int, float, complex, type(None))) else type(item).__name__
