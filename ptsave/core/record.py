"""The record: what ptsave writes beside the tensors, and reads back.

One JSON object. It lives where other readers ignore it: `__metadata__["ptsave"]` (safetensors), the
zip entry `<top>/ptsave.json` (pt), the index's `metadata` (sharded), `ptsave.json` (dcp).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ptsave.core.caps import room
from ptsave.core.dtypes import DType
from ptsave.core.strict_json import num_values, parse_object
from ptsave.errors import CorruptError, LimitError

SCHEMA_VERSION = 1
KEY = "ptsave"
"""Under which a container's metadata holds the record."""
FILE_NAME = "ptsave.json"
MAX_BYTES = 64 * 1024 * 1024
"""Cap on the JSON text of a record in a small file. A file that is larger may have a record of as many bytes,
up to LONGEST_BYTES: a file with holes is as large as it likes."""
LONGEST_BYTES = 256 * 1024 * 1024
"""Some 3 million digests."""
MAX_VALUES = 1_000_000
"""Cap on the values in it: names of tensors, digests, aliases. A long record may have more."""
_BYTES_PER_VALUE = 40
"""At least: a digest alone has 32."""


@dataclass(frozen=True)
class Digests:
    """One digest a tensor, over its contiguous little-endian bytes, its dtype and its shape."""

    algorithm: str
    """`xxh3_128`, `blake3` or `sha256`."""
    tensors: Mapping[str, str] = field(default_factory=dict)
    """Tensor name → lower-case hex, of the algorithm's fixed width. A tied tensor has its own entry."""


@dataclass(frozen=True)
class Record:
    """What is known of a checkpoint besides its tensors."""

    model: Mapping[str, Any] | None = None
    """`class` (dotted path), `args` (hyperparameters as the TOML has them), `source_digest`."""
    digests: Digests | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Name of a tied tensor → the name that its bytes are stored under."""
    environment: Mapping[str, str] | None = None
    """Versions and platform at the time of saving: `torch`, `python`, `platform`, `device`, …"""
    behaviour: Mapping[str, Any] | None = None
    inputs: Mapping[str, Any] | None = None
    """The TOML's `[inputs]`, so that a model can be run again."""
    program: Mapping[str, Any] | None = None
    """Of an exported program: its format, its named sizes, and for each output how far rounding goes."""
    extras: Any = None
    """Plain data that the container itself has no place for (`convert --extras keep`)."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """A safetensors file's `__metadata__`, in containers that have no place of their own for it."""
    module_versions: Mapping[str, Any] | None = None
    """A state dict's `_metadata`, which torch reads module versions from, in containers without it."""
    signatures: Sequence[Mapping[str, Any]] = ()
    """DSSE envelopes with statements about the tensors, whatever the format; `sign` reads and writes them."""
    belongs_to: str | None = None
    """Where the record is a file of its own (dcp): the XXH3-128 of the `.metadata` that it was written with.
    Another one means that something else has been saved there since, and the record is void."""
    unknown: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a newer ptsave, kept as they are."""

    def to_json(self) -> str:
        """Compact JSON text; the same record gives the same text."""
        document: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "unknown" or value is None or value == {} or value == ():
                continue
            if isinstance(value, Digests):
                value = {"algorithm": value.algorithm, "tensors": dict(value.tensors)}
            document[f.name] = value
        document.update(self.unknown)
        return json.dumps(document, separators=(",", ":"), ensure_ascii=True)

    def was_cast(self, dtype: DType) -> bool:
        """Whether a tensor of `dtype` must have had another when the record was made, as far as it tells.

        Digests cover the dtype: one of before a cast says nothing of the tensor after it.
        """
        known = self.behaviour.get("dtypes") if self.behaviour is not None else None
        return isinstance(known, dict) and dtype.is_float and dtype.name not in known

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "") -> Record:
        """Parse what `to_json` wrote. A key that repeats at any depth would say two things: it is refused.

        Raises: CorruptError when the text is not a record, or of a newer, incompatible schema; LimitError.
        """
        most = max(MAX_VALUES, len(text) // _BYTES_PER_VALUE)
        if (count := num_values(text)) > most:
            raise LimitError("record_values", most, count, where)
        document = parse_object(text, "the ptsave record", where, times=room(len(text)))
        version = document.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise CorruptError(
                f"the ptsave record has schema_version {version!r:.40}",
                where,
                "upgrade ptsave if a newer one wrote it; torch.load and safetensors read the file as it is",
            )
        known = {f.name for f in fields(cls)} - {"unknown"}
        values = {key: document[key] for key in known if key in document}
        for name, kind in _SHAPES.items():
            if name in values and not isinstance(values[name], kind):
                raise CorruptError(f"the ptsave record's {name!r} is malformed", where, _HINT)
        if (digests := values.get("digests")) is not None:
            values["digests"] = _digests(digests, where)
        for name in ("aliases", "metadata"):
            if not all(isinstance(text, str) for text in values.get(name, {}).values()):
                raise CorruptError(f"the ptsave record's {name!r} is malformed", where, _HINT)
        unknown = {key: value for key, value in document.items() if key not in known}
        return cls(**values, unknown=unknown)


_HINT = "the file is damaged or was changed; torch.load and safetensors do not look at the record"
_SHAPES = {
    "model": dict,
    "aliases": dict,
    "digests": dict,
    "environment": dict,
    "behaviour": dict,
    "inputs": dict,
    "program": dict,
    "metadata": dict,
    "module_versions": dict,
    "belongs_to": str,
    "signatures": list,
}


def _digests(value: dict[str, Any], where: str) -> Digests:
    algorithm, tensors = value.get("algorithm"), value.get("tensors")
    if (
        not isinstance(algorithm, str)
        or not isinstance(tensors, dict)
        or not all(isinstance(digest, str) for digest in tensors.values())
    ):
        raise CorruptError("the ptsave record's 'digests' is malformed", where, _HINT)
    return Digests(algorithm, tensors)
