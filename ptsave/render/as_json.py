"""Results as JSON-able data: the fields that `--json` promises."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from ptsave.core.address import Location
from ptsave.core.global_names import described
from ptsave.core.tree import are_scalars
from ptsave.errors import PtsaveError
from ptsave.verbs.jsonable import jsonable

if TYPE_CHECKING:
    from ptsave.core.finding import Finding
    from ptsave.core.parts.modules import TensorRow
    from ptsave.core.verdict import Verdict
    from ptsave.models.load import Loaded
    from ptsave.models.save import Saved
    from ptsave.verbs.convert import Conversion
    from ptsave.verbs.diff import Diff
    from ptsave.verbs.folders.plain import FolderInspection
    from ptsave.verbs.folders.runs import RunInspection
    from ptsave.verbs.inspect import Inspection
    from ptsave.verbs.make_config import MadeConfig

SCHEMA_VERSION = 1
Each = Callable[[Iterable[Any]], Any]
"""What holds the items of a long array: `list`, or `iter` where they are made as `pieces` writes them."""
_AT_ONCE = 1000
"""How many items are written at a time; an item that has more itself is written in pieces of its own."""


def inspection(result: Inspection, each: Each = list) -> dict[str, Any]:
    """The object of `inspect --json` for one path."""
    measured = {} if result.stats is None else {"stats": each(jsonable(one) for one in result.stats)}
    data = result.data if each is iter else {name: jsonable(value) for name, value in result.data.items()}
    return {
        "path": str(result.path),
        "format": result.format,
        "wrapped_in": [jsonable(one) for one in result.wrapped_in],
        "file_bytes": result.file_bytes,
        "num_tensors": result.num_tensors,
        "num_elements": result.num_elements,
        "num_bytes": result.num_bytes,
        "tensors": each(_tensor(row) for row in result.rows),
        "dtypes": [jsonable(share) for share in result.dtypes],
        "data": data,
        "metadata": jsonable({k: v for k, v in result.metadata.items() if k != "ptsave"}),
        "globals": described(result.globals.values()),
        "record": jsonable(result.record),
        "root": result.root or None,
        "record_imports": [jsonable(code) for code in result.named_code],
        "training": jsonable(result.training),
        "programs": [jsonable(program) for program in result.programs],
        "left_out": each(jsonable(left) for left in result.left_out),
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


def folder(result: FolderInspection) -> dict[str, Any]:
    """The object of `inspect --json` for a plain folder."""
    return {
        "path": str(result.path),
        "format": "folder",
        "num_checkpoints": len(result.checkpoints),
        "num_bytes": sum(member.num_bytes for member in result.checkpoints),
        "checkpoints": [jsonable(member) for member in result.checkpoints],
        "others": list(result.others),
    }


def differences(result: Diff, a: Location, b: Location, each: Each = list) -> dict[str, Any]:
    """The object of `inspect --diff --json`."""
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    fields["tensors"] = each(jsonable(tensor) for tensor in result.different)
    fields["data_changed"] = each(jsonable(change) for change in result.data_changed)
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
        "coverage": jsonable(result.report.coverage),
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
        "not_copied": list(result.not_copied),
        "checked": result.checked,
        "signed_by": list(result.signed_by),
        "dry_run": result.is_plan,
    } | ({} if result.proof is None else {"proof": verdict(result.proof, result.destination)})


def made_config(result: MadeConfig) -> dict[str, Any]:
    """The object of `inspect --make-config --json`."""
    return {
        "config": str(result.path),
        "source": result.source,
        "class": result.target,
        "notes": list(result.notes),
    }


def verdict(result: Verdict, path: Location, each: Each = list) -> dict[str, Any]:
    """The object of `verify --json`."""
    return {
        "path": str(path),
        "verdict": result.answer,
        "cause": result.cause,
        "findings": each(_finding(finding) for finding in result.of(None).findings),
        "growth": [jsonable(departure) for departure in result.growth],
        "root": result.root or None,
    }


def verdicts(
    results: Sequence[tuple[Location, tuple[Verdict, Mapping[str, object]] | PtsaveError]],
    others: Sequence[str],
) -> dict[str, Any]:
    """The object of `verify --json` for several checkpoints: a verdict, or an error, for each."""
    documents = [
        {"path": str(path), "verdict": "error", "error": error(outcome)}
        if isinstance(outcome, PtsaveError)
        else verdict(outcome[0], path)
        for path, outcome in results
    ]
    answers = [document["verdict"] for document in documents]
    return {
        "counts": {answer: answers.count(answer) for answer in ("yes", "no", "error")},
        "verdicts": documents,
        "not_looked_into": list(others),
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
        **({"files": row.files} if row.files else {}),
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
    return "".join(pieces(versioned(document)))


def pieces(value: Any) -> Iterator[str]:
    """The text of a container in JSON, of pure ASCII, in pieces of some size however long it is.

    A generator is an array whose items are made as they are written.
    """
    is_object = isinstance(value, Mapping)
    items = iter(value.items() if is_object else value)
    separator = ""
    yield "{" if is_object else "["
    while taken := list(islice(items, _AT_ONCE)):
        for chunk in _apart(taken, is_object):
            yield separator
            if len(chunk) == 1 and _is_long(chunk[0][1] if is_object else chunk[0], is_object):
                yield f"{_dumps(str(chunk[0][0]))}: " if is_object else ""
                yield from pieces(chunk[0][1] if is_object else chunk[0])
            else:
                yield _dumps(dict(chunk) if is_object else chunk)[1:-1]
            separator = ", "
    yield "}" if is_object else "]"


def _apart(items: list[Any], is_object: bool) -> Iterator[list[Any]]:
    """`items`, those that are long each by itself."""
    values = [value for _, value in items] if is_object else items
    if are_scalars(values) or not any(_is_long(value, is_object) for value in values):
        yield items
    else:
        yield from ([item] for item in items)


def _is_long(value: Any, is_in_object: bool) -> bool:
    """Whether `value` is written in pieces: what is inside of it may be long, or is not made yet."""
    if isinstance(value, Mapping):
        return is_in_object or any(isinstance(item, GeneratorType) for item in value.values())
    return isinstance(value, GeneratorType) or (isinstance(value, (list, tuple)) and len(value) > _AT_ONCE)


def _dumps(value: Any) -> str:
    return json.dumps(jsonable(value), ensure_ascii=True, allow_nan=False)
