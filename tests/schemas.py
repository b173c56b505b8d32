"""Whether what a command prints with --json is as docs/schemas publishes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "docs" / "schemas" / "ptsave.schema.json").read_text(encoding="utf-8")
)


def _strict(schema: Any) -> Any:
    """`schema` with nothing beside the properties that it names; the published one lets fields be added."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _strict(value) for key, value in schema.items()}
    is_closed = "required" in schema and "properties" in schema
    return inner | ({"additionalProperties": False} if is_closed else {})


_STRICT = _strict(SCHEMA)


def faults(document: Any, name: str) -> list[str]:
    """What in `document` is not as `name`, one of `$defs`, says, or is not described there."""
    rules = {**_STRICT, "$ref": f"#/$defs/{name}"}
    del rules["anyOf"]
    errors = Draft202012Validator(rules).iter_errors(document)
    return [f"{error.json_path}: {error.message:.200}" for error in errors]
