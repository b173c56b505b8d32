"""Which signatures still hold when a checkpoint is converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import first_names
from ptsave.errors import CorruptError, LimitError, LossyError
from ptsave.sign.bundle import parse_signed
from ptsave.sign.statement import Statement, content_of, draft_of, parse_statement
from ptsave.sign.trusted import claimed


@dataclass
class Carried:
    """The signatures that a conversion keeps, and notes on all."""

    signatures: list[Mapping[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def carried(
    documents: Sequence[Mapping[str, Any]],
    plan: Checkpoint,
    renamed: Mapping[str, str],
    source: Checkpoint | None = None,
    *,
    signs_anew: bool,
) -> Carried:
    """Those of `documents` that still hold for `plan`, as far as names, dtypes, shapes, ties and data tell.

    `renamed`: old name → new name. A signature of the old names, or of those that the `source` had before it
    was renamed itself, is kept, since `verify --rename` can undo the renaming, unless `plan` is signed again.
    No signature is checked.
    """
    result = Carried()
    old_names = {new: old for old, new in renamed.items()}
    for document in documents:
        try:
            envelope = parse_signed(document, "")
            statement = parse_statement(envelope.payload, "")
        except (CorruptError, LimitError) as error:
            result.notes.append(f"a signature stays behind: {error.what}")
            continue
        who = first_names(claimed(envelope))
        if _fits(statement, plan, {}):
            result.signatures.append(document)
        elif not signs_anew and (
            (renamed and _fits(statement, plan, old_names))
            or (source is not None and _may_fit(statement, plan, source, old_names))
        ):
            result.signatures.append(document)
            how = "verify --rename with the opposite rules still holds each tensor to it"
            result.notes.append(f"the signature by {who} is of the old names: {how}")
        else:
            how = "what is written is not what was signed"
            result.notes.append(f"the signature by {who} is void and stays behind: {how}")
    return result


def _may_fit(signed: Statement, plan: Checkpoint, source: Checkpoint, names: Mapping[str, str]) -> bool:
    """Whether some renaming may make of `plan` what was signed: it is the source but for its names."""
    try:
        before = draft_of(content_of(source, dict.fromkeys(source.tensors, "")), signed.algorithm)
    except LossyError:
        return False
    same_size = (signed.num_tensors, signed.num_data) == (before.num_tensors, before.num_data)
    return (same_size or bool(signed.only)) and _fits(before, plan, names) and not _fits(signed, source, {})


def _fits(signed: Statement, plan: Checkpoint, names: Mapping[str, str]) -> bool:
    """Whether all but the values are as they were signed."""
    try:
        content = content_of(plan, dict.fromkeys(plan.tensors, ""), signed.only, names)
        found = draft_of(content, signed.algorithm)
    except LossyError:
        return False
    kept = ("num_tensors", "names", "layout", "ties", "num_data", "data")
    return all(getattr(signed, name) == getattr(found, name) for name in kept)
