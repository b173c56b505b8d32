"""What `save` and `load` print."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from ptsave.core.names import escape
from ptsave.render import as_json
from ptsave.render.terminal import Mode, document, note, table
from ptsave.render.words import checked_by, count, shape, signed_by, size

if TYPE_CHECKING:
    from ptsave.core.parts.coverage import Coverage, ModulePart
    from ptsave.models.load import Loaded
    from ptsave.models.save import Saved

MAX_PARTS = 12
"""How many modules, or names, are said without -v."""


def show_saved(mode: Mode, result: Saved) -> None:
    """What `save` prints."""
    if mode.json:
        document(as_json.saved(result))
        return
    behaviour = f", with {size(result.behaviour_bytes)} of behaviour" if result.behaviour_bytes else ""
    note(
        mode,
        f"saved {result.model} to {result.destination} ({result.format}): "
        f"{_totals(result)}{behaviour}, from {result.weights}{_over_ranks(result)}{signed_by(result)}"
        f"{checked_by(result)}",
    )
    _show_coverage(mode, result.coverage, result.fresh, result.left)


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
    _show_coverage(mode, report.coverage, report.fresh, report.left)
    outputs = result.outputs or {}
    if result.outputs_path is not None:
        note(mode, f"wrote {count(len(outputs), 'output')} to {result.outputs_path}")
    elif not mode.quiet:
        table([(escape(name), _kind(tensor)) for name, tensor in outputs.items()])


def _show_coverage(mode: Mode, coverage: Coverage | None, fresh: Sequence[str], left: Sequence[str]) -> None:
    """How much of the model came from the weights, and by module what did not; what stayed in them."""
    if coverage is None:
        return
    if fresh:
        note(mode, f"from the weights: {coverage.sentence()}")
        parts = [part for part in coverage.parts if not part.is_from_file]
        shown = parts if mode.verbose else parts[:MAX_PARTS]
        for part in shown:
            note(mode, f"fresh, for the weights lack it: {part.name}, {_made_of(part)}")
        if len(parts) > len(shown):
            note(mode, f"fresh, too: {len(parts) - len(shown)} more modules and tensors; -v names them")
        if others := [name for name in fresh if not _is_in(name, parts)]:
            note(mode, f"fresh, for the weights lack them: {', '.join(others)}")
    for name, other in coverage.tied.items():
        note(mode, f"not fresh: {name} is one parameter with {other}, which the weights have")
    if left:
        note(mode, f"left in the weights: {_listed(left, mode)}")


def _made_of(part: ModulePart) -> str:
    """`2 tensors, 18 elements`."""
    elements = count(part.num_elements, "element")
    if part.num_buffers == part.num_tensors:
        return f"{count(part.num_buffers, 'buffer')}, {elements}"
    buffers = f", {part.num_buffers} of them buffers" if part.num_buffers else ""
    return f"{count(part.num_tensors, 'tensor')}{buffers}, {elements}"


def _is_in(name: str, parts: Sequence[ModulePart]) -> bool:
    return any(name == part.name or name.startswith(f"{part.name}.") for part in parts)


def _listed(names: Sequence[str], mode: Mode) -> str:
    shown = names if mode.verbose else names[:MAX_PARTS]
    more = f", … {len(names) - len(shown)} more; -v names them" if len(names) > len(shown) else ""
    return f"{', '.join(shown)}{more}"


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
