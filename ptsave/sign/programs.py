"""Exported programs: a statement about one is about what it has of a state dict, as of a checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ptsave.core.checkpoint import Checkpoint

_STATE_DICT = "state_dict."
"""What the names in a `.pt2` begin with where it has constants, too: see `formats.programs.pt2`."""


def state_dict_of(
    checkpoint: Checkpoint, constants: Collection[str] = ()
) -> tuple[Checkpoint, dict[str, str]]:
    """What a program has of a state dict, and its names there → those that the program's file has.

    `constants`: those tensors that the program computes with besides the ones that its file says.
    """
    left = {*checkpoint.constants, *constants}
    names = [name for name in checkpoint.tensors if name not in left]
    is_below = bool(left) and all(name.startswith(_STATE_DICT) for name in names)
    named = {name.removeprefix(_STATE_DICT) if is_below else name: name for name in names}
    root = {name: checkpoint.tensors[own] for name, own in named.items()}
    return replace(checkpoint, root=root, constants=frozenset()), named
