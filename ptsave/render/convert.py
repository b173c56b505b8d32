"""What `convert` prints."""

from __future__ import annotations

from ptsave.core.names import escape
from ptsave.render import as_json
from ptsave.render.terminal import Mode, document, note, out, pairs, section
from ptsave.render.words import checked_by, count, signed_by, size
from ptsave.verbs.convert import Conversion


def show_converted(mode: Mode, result: Conversion) -> None:
    """What `convert` prints: a line that it is done, or the plan."""
    if mode.json:
        document(as_json.converted(result))
        return
    for line in result.notes:
        note(mode, line)
    sources = ", ".join(map(str, result.sources))
    what = f"{count(result.num_tensors, 'tensor')}, {size(result.num_bytes)}"
    if result.not_copied:
        note(mode, f"not copied, beside the weights: {', '.join(result.not_copied)}")
    if not result.is_plan:
        note(
            mode,
            f"converted {sources} to {result.destination} ({result.format}): "
            f"{what}{signed_by(result)}{checked_by(result)}",
        )
        for name in result.dropped if mode.verbose else ():
            note(mode, f"dropped {name}")
        for finding in result.proof.findings if result.proof is not None and mode.verbose else ():
            note(mode, f"{finding.check}: {finding}")
        return
    out(escape(f"would convert {sources} ({', '.join(result.source_formats)})"))
    free = f"; {size(result.free_bytes)} free" if result.free_bytes is not None else ""
    out(escape(f"to {result.destination} ({result.format}): {what}{free}"))
    pairs("renamed", {escape(old): escape(new) for old, new in result.renamed.items()})
    if result.dropped:
        section("dropped")
        for name in result.dropped:
            out(escape(name))
