"""The nodes of a program as digests: which of them are those that were exported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ptsave.core.values.digest import DEFAULT, hasher

Nodes = dict[str, tuple[str, str]]
"""Name of a node → its digest, and its operator and module for a person."""
INTERFACE = "inputs, outputs and operators' versions"
"""What the digests call that part of a program that is no node."""


def by_name(nodes: Iterable[tuple[str, bytes, str]]) -> Nodes:
    """The digests of nodes, of each its name, what it is as bytes, and that for a person.

    Names may repeat: the second node called `a` is `a~2`, so that none hides another. A digest has sixteen
    hexadecimal digits: they find what was changed, and prove nothing against a forger.
    """
    found: Nodes = {}
    copies: Counter[str] = Counter()
    for name, data, described in nodes:
        unused = name
        while unused in found:
            copies[name] += 1
            unused = f"{name}~{copies[name] + 1}"
        found[unused] = hasher(DEFAULT, data).hexdigest()[:16], described
    return found
