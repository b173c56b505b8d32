"""Results as JSON-able data: the fields that `--json` promises."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ptsave.core.address import Location
from ptsave.core.global_names import described
from ptsave.verbs.jsonable import jsonable

if TYPE_CHECKING:
    from ptsave.core.finding import Finding
    from ptsave.core.verdict import Verdict
    from ptsave.errors import PtsaveError
    from ptsave.models.load import Loaded
    from ptsave.models.save import Saved
    from ptsave.verbs.convert import Conversion
    from ptsave.verbs.diff import Diff
    from ptsave.verbs.inspect import Inspection, TensorRow
    from ptsave.verbs.runs import RunInspection

SCHEMA_VERSION = 1


def inspection(result: Inspection) -> dict[str, Any]:
    """The object of `inspect --json` for one path."""
    measured = {} if result.stats is None else {"stats": [jsonable(one) for one in result.stats]}
    return {
        "path": str(result.path),
        "format": result.format,
        "wrapped_in": [jsonable(one) for one in result.wrapped_in],
        "file_bytes": result.file_bytes,
        "num_tensors": result.num_tensors,
        "num_elements": result.num_elements,
        "num_bytes": result.num_bytes,
        "tensors": [_tensor(row) for row in result.rows],
        "dtypes": [jsonable(share) for share in result.dtypes],
        "data": {name: jsonable(value) for name, value in result.data.items()},
        "metadata": jsonable({k: v for k, v in result.metadata.items() if k != "ptsave"}),
        "globals": described(result.globals.values()),
        "record": jsonable(result.record),
        "record_imports": [jsonable(code) for code in result.named_code],
        "training": jsonable(result.training),
        "left_out": [jsonable(left) for left in result.left_out],
        "notes": list(result.notes),
        **measured,
    }


def run(result: RunInspection) -> dict[str, Any]:
    """The object of `inspect --json` for the folder of a run."""
    return {
        "path": str(result.path),
        "format": "run",
        "num_checkpoints": len(result.checkpoints),
        "num_bytes": result.num_bytes,
        "latest": str(result.latest.path) if result.latest is not None else None,
        "checkpoints": [jsonable(file) for file in result.checkpoints],
        "litter": [str(path) for path in result.litter],
    }


def differences(result: Diff, a: Location, b: Location) -> dict[str, Any]:
    """The object of `inspect --diff --json`."""
    fields = jsonable(result)
    fields["tensors"] = [jsonable(tensor) for tensor in result.different]
    return {"a": str(a), "b": str(b), "same": result.is_same, "num_compared": len(result.tensors), **fields}


def saved(result: Saved) -> dict[str, Any]:
    """The object of `save --json`; a save that did not fit is an error object."""
    apart = ("mesh", "num_rank_bytes", "fresh", "left")
    fields = {name: value for name, value in jsonable(result).items() if name not in apart}
    keys = {"missing": list(result.fresh), "unexpected": list(result.left), "mismatched": []}
    return {**fields, **_over_ranks(result), **keys}


def loaded(result: Loaded) -> dict[str, Any]:
    """The object of `load --json`; a load that did not fit is an error object."""
    outputs = None
    if result.outputs is not None:
        outputs = {
            name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
            for name, tensor in result.outputs.items()
        }
    return {
        "path": str(result.path),
        "format": result.format,
        "model": result.model,
        "device": result.device,
        "num_tensors": result.num_tensors,
        "num_elements": result.num_elements,
        "num_bytes": result.num_bytes,
        "took": result.took,
        "missing": list(result.report.fresh),
        "unexpected": list(result.report.left),
        "mismatched": [jsonable(mismatch) for mismatch in result.report.mismatched],
        "cast": [jsonable(cast) for cast in result.report.recast],
        "outputs": outputs,
        "outputs_path": jsonable(result.outputs_path),
        **_over_ranks(result),
    }


def _over_ranks(result: Saved | Loaded) -> dict[str, Any]:
    """Over how many ranks; nothing without torchrun."""
    return {"mesh": dict(result.mesh), "num_rank_bytes": result.num_rank_bytes} if result.mesh else {}


def converted(result: Conversion) -> dict[str, Any]:
    """The object of `convert --json`."""
    source: Any = [str(path) for path in result.sources]
    return {
        "source": source[0] if len(source) == 1 else source,
        "destination": str(result.destination),
        "source_formats": list(result.source_formats),
        "format": result.format,
        "num_tensors": result.num_tensors,
        "num_bytes": result.num_bytes,
        "free_bytes": result.free_bytes,
        "dropped": list(result.dropped),
        "renamed": dict(result.renamed),
        "dense": dict(result.dense),
        "notes": list(result.notes),
        "checked": result.checked,
        "dry_run": result.is_plan,
    }


def verdict(result: Verdict, path: Location) -> dict[str, Any]:
    """The object of `verify --json`."""
    return {
        "path": str(path),
        "verdict": result.answer,
        "cause": result.cause,
        "findings": [_finding(finding) for finding in result.findings],
        "growth": [jsonable(departure) for departure in result.growth],
    }


def _finding(found: Finding) -> dict[str, Any]:
    return {
        "check": found.check,
        "level": found.level,
        "where": found.where,
        "message": found.message,
        "kind": found.kind.name.lower(),
        "count": found.count,
        "places": list(found.places),
        "facts": jsonable(found.facts),
    }


def _tensor(row: TensorRow) -> dict[str, Any]:
    entry = row.entry
    return {
        "name": entry.name,
        "dtype": entry.dtype.name,
        "shape": list(entry.shape),
        "strides": list(entry.strides),
        "num_bytes": entry.num_bytes,
        "alias_of": row.alias_of,
        "view_of": row.view_of,
        "kind": entry.kind,
        "requires_grad": entry.requires_grad,
    }


def error(failure: PtsaveError) -> dict[str, Any]:
    """The object of any command's `--json` when it fails."""
    return {
        "code": failure.exit_code,
        "what": failure.what,
        "where": failure.where,
        "hint": failure.hint,
        **{key: jsonable(value) for key, value in failure.details.items()},
    }


def versioned(document: dict[str, Any]) -> dict[str, Any]:
    """`document` with the schema version in front."""
    return {"schema_version": SCHEMA_VERSION, **document}


def text(document: dict[str, Any]) -> str:
    """One line of pure ASCII JSON, with the schema version in front."""
    return json.dumps(versioned(document), ensure_ascii=True, allow_nan=False)
