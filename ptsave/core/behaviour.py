"""The behaviour record: what a model computed from given inputs, small enough to travel with its weights."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ptsave.errors import CorruptError

MAX_BYTES = 2 * 1024 * 1024
"""Cap on the record's JSON; a larger model is sampled harder."""
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Sample:
    """A tensor as it was seen."""

    path: str
    """Inside what holds it: `logits`, `hidden_states.0`, `output`."""
    dtype: str
    shape: tuple[int, ...]
    digest: str
    """XXH3-128, as `core.digest` takes it."""
    norm: float
    """The square root of the sum of the squares."""
    values: tuple[float, ...]
    """The elements at the places 0, p, 2p, … modulo their number (p a fixed prime); complex ones as two."""


@dataclass(frozen=True)
class Call:
    """One call of one module."""

    module: str
    """Its fully qualified name; empty for the model itself."""
    number: int
    """0 for its first call, 1 for its second, …"""
    kind: str
    """Its class."""
    inputs: tuple[Sample, ...]
    outputs: tuple[Sample, ...]

    @property
    def key(self) -> tuple[str, int]:
        return self.module, self.number


@dataclass(frozen=True)
class Behaviour:
    """What a model did once, in eval mode and without gradients."""

    inputs: Mapping[str, Any]
    """How the inputs are made, as `InputsSpec.to_json` has it."""
    environment: Mapping[str, Any]
    is_deterministic: bool
    """Whether two runs of the same model gave the same bits."""
    outputs: Sequence[Sample]
    calls: Sequence[Call]
    """In the order in which the modules finished; perhaps not all of them."""
    buffers: Mapping[str, str] = field(default_factory=dict)
    """Name → digest of each buffer that the state dict leaves out."""
    dtypes: Mapping[str, int] = field(default_factory=dict)
    """Number of the model's tensors by dtype."""
    training: Sequence[str] = ()
    """Modules that stayed in training mode after `eval()`."""

    def to_json(self) -> dict[str, Any]:
        """Plain data of at most MAX_BYTES as JSON, sampled as hard as that takes."""
        values, keep = 16, 1
        while True:
            document = self._document(values, keep)
            size = _json_bytes(document)
            if size <= MAX_BYTES or (values == 1 and keep > len(self.calls)):
                return document
            if values > 2:
                values //= 2
            else:
                keep *= 2

    def _document(self, values: int, keep: int) -> dict[str, Any]:
        per_output = max(16, min(4096, 32768 * values // 16 // max(len(self.outputs), 1)))
        last = len(self.calls) - 1
        return {
            "schema_version": SCHEMA_VERSION,
            "inputs": dict(self.inputs),
            "environment": dict(self.environment),
            "is_deterministic": self.is_deterministic,
            "outputs": [_sample_to_json(sample, per_output) for sample in self.outputs],
            "calls": [
                {
                    "module": call.module,
                    "number": call.number,
                    "kind": call.kind,
                    "inputs": [_sample_to_json(sample, values) for sample in call.inputs],
                    "outputs": [_sample_to_json(sample, values) for sample in call.outputs],
                }
                for i, call in enumerate(self.calls)
                if i % keep == 0 or i == last
            ],
            "buffers": dict(self.buffers),
            "dtypes": dict(self.dtypes),
            "training": list(self.training),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str) -> Behaviour:
        """Read what `to_json` made.

        Raises: CorruptError when it is not that.
        """
        try:
            if document["schema_version"] != SCHEMA_VERSION:
                raise ValueError
            return cls(
                inputs=_mapping(document["inputs"]),
                environment=_mapping(document["environment"]),
                is_deterministic=bool(document["is_deterministic"]),
                outputs=[_sample_from_json(sample) for sample in document["outputs"]],
                calls=[
                    Call(
                        str(call["module"]),
                        int(call["number"]),
                        str(call["kind"]),
                        tuple(_sample_from_json(sample) for sample in call["inputs"]),
                        tuple(_sample_from_json(sample) for sample in call["outputs"]),
                    )
                    for call in document["calls"]
                ],
                buffers={str(k): str(v) for k, v in _mapping(document["buffers"]).items()},
                dtypes={str(k): int(v) for k, v in _mapping(document["dtypes"]).items()},
                training=[str(name) for name in document["training"]],
            )
        except (KeyError, TypeError, ValueError, AttributeError, struct.error):
            raise CorruptError(
                "the behaviour record is malformed", where, "record it anew: ptsave verify --record"
            ) from None


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _sample_to_json(sample: Sample, count: int) -> dict[str, Any]:
    values = sample.values[: count * (2 if sample.dtype.startswith("complex") else 1)]
    letter = "d" if sample.dtype in ("float64", "complex128", "int64", "uint64") else "f"
    packed = struct.pack(f"<{len(values)}{letter}", *(_fit(v, letter) for v in values))
    document = {
        "dtype": sample.dtype,
        "shape": list(sample.shape),
        "digest": sample.digest,
        "norm": sample.norm if math.isfinite(sample.norm) else None,
        "values": base64.b64encode(packed).decode("ascii"),
    }
    return {"path": sample.path, **document} if sample.path else document


def _fit(value: float, letter: str) -> float:
    """`value`, or infinity where a float32 cannot hold it (`struct` raises, a cast does not)."""
    if letter == "f" and math.isfinite(value) and abs(value) > 3.4028235e38:
        return math.copysign(math.inf, value)
    return value


def _sample_from_json(document: dict[str, Any]) -> Sample:
    letter, size = ("d", 8) if document["dtype"] in ("float64", "complex128", "int64", "uint64") else ("f", 4)
    packed = base64.b64decode(document["values"], validate=True)
    norm = document["norm"]
    return Sample(
        str(document.get("path", "")),
        str(document["dtype"]),
        tuple(int(n) for n in document["shape"]),
        str(document["digest"]),
        math.nan if norm is None else float(norm),
        struct.unpack(f"<{len(packed) // size}{letter}", packed),
    )


def _json_bytes(document: Mapping[str, Any]) -> int:
    return len(json.dumps(document, separators=(",", ":")))
