"""Whether a command is the work of one process, or that of all ranks which torchrun started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ptsave.distributed.group import is_under_torchrun

if TYPE_CHECKING:
    from ptsave.distributed.group import Group


@contextmanager
def launched(device: str) -> Iterator[Group | None]:
    """The group of all ranks; None, without torch, where this process is alone.

    An error inside comes out on one rank, so what may be refused is looked at inside.

    Raises: what `joined` raises.
    """
    if not is_under_torchrun():
        yield None
        return
    from ptsave.distributed.joined import joined

    with joined(device) as group:
        yield group
