"""A checkpoint of any kind → the state of a training sharded over ranks; each rank reads its own part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.leaves import leaves
from ptsave.core.nodes import TensorEntry
from ptsave.core.parts.select import PARALLEL_WRAPPER, without_wrappers
from ptsave.distributed.group import Group
from ptsave.errors import OutOfReachError, PtsaveError, UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.models.weights.own_shard import OWN_PARTS
from ptsave.models.weights.sharded import is_sharded
from ptsave.models.weights.tensors import read_tensors
from ptsave.training.foreign import with_tensors
from ptsave.training.items import named
from ptsave.training.keys import UNSYNCHRONISED

Names = dict[tuple[str, ...], torch.Tensor]


def problem_of(path: Location, group: Group) -> str:
    """Why the checkpoint at `path` cannot be used, or nothing; the ranks share the reading of its bytes.

    Every rank calls it, and hears the same.

    Raises: OutOfReachError; CarriedError where it is raised on another rank.
    """

    def look() -> str:
        try:
            with open_checkpoint(path, in_part=True) as checkpoint:
                return _first_problem(checkpoint, group)
        except OutOfReachError:
            raise
        except (PtsaveError, OSError) as error:
            return str(error)

    return next(filter(None, group.gather(group.together(look))), "")


def _first_problem(checkpoint: Checkpoint, group: Group) -> str:
    """What the container's checks find in this rank's share of them."""
    checks = checkpoint.parts_of_checks[group.rank :: group.size]
    if not checkpoint.parts_of_checks and group.is_first:
        checks = checkpoint.checks
    for check in checks:
        for finding in check():
            if finding.level == "fail":
                return str(finding)
    return ""


def read_parts(
    path: Location, live: Mapping[str, Any], choose: Callable[[Any], tuple[dict[str, Any], list[str]]]
) -> tuple[dict[str, Any], list[str]]:
    """What `choose` takes of the tree at `path`, each tensor sharded as the one of its name in `live`, the
    state of now; and what `choose` has to say.

    Its bytes are not checked against anything: `problem_of` has done that.

    Raises: UnreadableError; what `choose` raises.
    """
    try:
        with open_checkpoint(path, in_part=True) as checkpoint:
            chosen, notes = choose(checkpoint.root)
            root = named(chosen)
            wanted = _wanted(root, _names(live))
            entries: dict[str, TensorEntry] = {}
            targets: dict[Any, tuple[str, torch.Tensor | None]] = {}
            for entry, want in wanted:
                if entry.view not in targets:
                    name = str(len(targets))
                    targets[entry.view] = name, want
                    entries[name] = entry if want is None else OWN_PARTS.cut(entry, want)
            read = dict(read_tensors(entries, is_checked=False))
            tensors = {
                view: read[name] if want is None else OWN_PARTS.join(read[name].to(want.device), want)
                for view, (name, want) in targets.items()
            }
            return with_tensors(root, tensors), notes
    except OSError as error:
        what = f"the checkpoint cannot be read: {error.strerror or error}"
        raise UnreadableError(what, str(path), "check the disk and its permissions") from error


def _names(live: Mapping[str, Any]) -> Names:
    """Every tensor that is sharded, by its whole path, by its last key and by the last two."""
    found: Names = {}
    for path, tensor in _leaves(live):
        if is_sharded(tensor):
            found[path] = tensor
            for length in (1, 2):
                found.setdefault(path[-length:], tensor)
    return found


def _wanted(root: Any, names: Names) -> Iterator[tuple[TensorEntry, torch.Tensor | None]]:
    """Every tensor below `root` with the one that it is to be sharded like.

    An optimizer's state has the name of its parameter in its path, and mostly its shape.
    """
    for path, entry in _leaves(root):
        if isinstance(entry, TensorEntry) and path[0] == UNSYNCHRONISED:
            yield entry, None
        elif isinstance(entry, TensorEntry):
            yield entry, next((t for t in _candidates(path, names) if tuple(t.shape) == entry.shape), None)


def _candidates(path: tuple[str, ...], names: Names) -> Iterator[torch.Tensor]:
    if path in names:
        yield names[path]
    for key in reversed(path[-2:]):
        # after a colon: the name of a parameter that is in none of the models
        clean = without_wrappers(key).rpartition(":")[2]
        first, _, rest = clean.partition(".")
        if first == PARALLEL_WRAPPER:
            clean = rest
        for spelled in ((clean,), (first, rest)):  # one of several models' is "generator.weight"
            if spelled in names:
                yield names[spelled]


def _leaves(root: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    return ((tuple(map(str, path)), leaf) for path, leaf in leaves(root))
