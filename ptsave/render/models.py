"""What `save` and `load` print."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from ptsave.core.names import escape
from ptsave.render import as_json
from ptsave.render.terminal import Mode, document, note, table
from ptsave.render.words import checked_by, count, shape, size

if TYPE_CHECKING:
    from ptsave.models.load import Loaded
    from ptsave.models.save import Saved


def show_saved(mode: Mode, result: Saved) -> None:
    """What `save` prints."""
    if mode.json:
        document(as_json.saved(result))
        return
    behaviour = f", with {size(result.behaviour_bytes)} of behaviour" if result.behaviour_bytes else ""
    note(
        mode,
        f"saved {result.model} to {result.destination} ({result.format}): "
        f"{_totals(result)}{behaviour}, from {result.weights}{_over_ranks(result)}{checked_by(result)}",
    )
    _show_allowed(mode, result.fresh, result.left)


def show_loaded(mode: Mode, result: Loaded) -> None:
    """What `load` prints."""
    if mode.json:
        document(as_json.loaded(result))
        return
    if result.took:
        note(mode, result.took)
    report = result.report
    matched = "" if report.fresh or report.left else ", every key matched"
    note(
        mode,
        f"loaded {result.model} from {result.path} ({result.format}) on {result.device}: "
        f"{_totals(result)}{matched}{_over_ranks(result)}",
    )
    _show_allowed(mode, report.fresh, report.left)
    outputs = result.outputs or {}
    if result.outputs_path is not None:
        note(mode, f"wrote {count(len(outputs), 'output')} to {result.outputs_path}")
    elif not mode.quiet:
        table([(escape(name), _kind(tensor)) for name, tensor in outputs.items()])


def _show_allowed(mode: Mode, fresh: Sequence[str], left: Sequence[str]) -> None:
    """What the weights lacked and what stayed in them, as the user allowed."""
    for names, words in ((fresh, "fresh, for the weights lack them"), (left, "left in the weights")):
        if names:
            note(mode, f"{words}: {', '.join(map(escape, names))}")


def _kind(tensor: Any) -> str:
    """`float32 [4, 2]`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape(tensor.shape)}"


def _over_ranks(result: Saved | Loaded) -> str:
    """Over how many ranks, where there is more than this process."""
    if not result.mesh:
        return ""
    mesh = ", ".join(f"{name} = {ranks}" for name, ranks in result.mesh.items())
    ranks = count(prod(result.mesh.values()), "rank")
    return f"; over {ranks} ({mesh}), at most {size(result.num_rank_bytes)} each"


def _totals(result: Saved | Loaded) -> str:
    return (
        f"{count(result.num_tensors, 'tensor')}, {count(result.num_elements, 'element')}, "
        f"{size(result.num_bytes)}"
    )
