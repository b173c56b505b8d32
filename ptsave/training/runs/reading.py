"""A checkpoint of a run → the state of this rank, every byte of it checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ptsave.core.address import Location
from ptsave.distributed.group import Group
from ptsave.errors import OutOfReachError, UnreadableError
from ptsave.formats.run_folder import FOLDER, RunFile
from ptsave.models.weights.sharded import has_sharded
from ptsave.training.apart.restore import Live, live_paths, state_of
from ptsave.training.items import Path as ItemPath
from ptsave.training.runs.intact import read_intact


class RunReader:
    """Reads checkpoints of a run into the current state; every rank has one."""

    def __init__(self, live: Mapping[str, Any], kinds: Mapping[ItemPath, str], group: Group) -> None:
        """`live`: the current state; it matters only where there are ranks. Every rank calls it."""
        self._live, self._group = live, group
        self._paths = live_paths(live, kinds, group) if group.handle is not None else Live()
        self._is_sharded = any(group.gather(has_sharded(live)))

    def read(self, file: RunFile[Location]) -> tuple[tuple[dict[str, Any], list[str]], str]:
        """This rank's state in a checkpoint, every byte of which is checked, and notes; or why there is none.

        Where the ranks have written it together, or hold parts of tensors, each reads what it needs.

        Raises: LossyError for one of other ranks, whose values these cannot be given.
        """
        nothing: tuple[dict[str, Any], list[str]] = {}, []
        if file.problem:
            return nothing, file.problem
        if self._is_sharded or (self._group.size > 1 and file.path.name.endswith(FOLDER)):
            from ptsave.training.runs.sharded_read import problem_of, read_parts  # torch.distributed

            if problem := problem_of(file.path, self._group):
                return nothing, problem
            return self._group.together(lambda: read_parts(file.path, self._live, self._own)), ""
        tree, problem = self._group.together(lambda: _read(file.path))
        if problem := next(filter(None, self._group.gather(problem)), ""):
            return nothing, problem
        return self._group.together(lambda: self._own(tree)), ""

    def _own(self, tree: Any) -> tuple[dict[str, Any], list[str]]:
        return state_of(tree, self._paths, self._group)


def _read(path: Location) -> tuple[Any, str]:
    """What a checkpoint holds, or why it cannot be used. Raises: OutOfReachError."""
    try:
        return read_intact(path), ""
    except OutOfReachError:
        raise
    except UnreadableError as error:
        return None, error.what
