"""The behaviour record: what a model computed from given inputs, small enough to travel with its weights."""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from ptsave.core.dtypes import BY_NAME
from ptsave.errors import CorruptError

MAX_BYTES = 2 * 1024 * 1024
"""Cap on the record's JSON; a larger model is sampled harder."""
SCHEMA_VERSION = 1
OUTPUT_VALUES = 4096
"""How many values of each of the model's outputs are kept at most: all of them up to this many."""
ALL_OUTPUT_VALUES = 32_768
"""How many values of all outputs together."""
CALL_VALUES = 8
"""How many values of each input and output of a module are kept at most."""
SKETCH_PLACES = 16
"""How many sums a sketch is made of, a power of two."""

Determinism = Literal["exact", "seeded", "none"]


@dataclass(frozen=True)
class Sample:
    """A tensor as it was seen."""

    dtype: str
    shape: tuple[int, ...]
    digest: str
    """XXH3-128, as `core.digest` takes it."""
    norm: float
    """The square root of the sum of the squares."""
    num_odd: int
    """Elements that are NaN, infinite or beyond 1e30; they count as 0 in the norm and the sketch."""
    sketch: tuple[float, ...]
    """Sums of all elements with pseudo-random signs; see `torch_layer.sketch`. The sketch of a difference
    is the difference of the sketches, and its length (the root of the sum of the squares) that of the
    whole difference, to within a third."""
    values: tuple[float, ...]
    """The elements at the places 0, p, 2p, … modulo their number (p a fixed prime); complex ones as two."""

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Call:
    """One call of one module."""

    module: str
    """Its fully qualified name; empty for the model itself."""
    number: int
    """0 for its first call, 1 for its second, …"""
    kind: str
    """Its class."""
    inputs: Mapping[str, Sample]
    outputs: Mapping[str, Sample]
    """By path: `0` and `mask` among the arguments, `output`, `0` or `logits` in what it returned."""

    @property
    def key(self) -> tuple[str, int]:
        return self.module, self.number


@dataclass(frozen=True)
class Behaviour:
    """What a model did once, in eval mode and without gradients."""

    inputs: Mapping[str, Any]
    """How the inputs are made, as `InputsSpec.to_json` has it."""
    environment: Mapping[str, Any]
    determinism: Determinism
    """Whether two runs gave the same bits: always, from the same seed, or not even then."""
    outputs: Mapping[str, Sample]
    calls: Sequence[Call]
    """In the order in which the modules finished."""
    has_all_calls: bool = True
    """Whether `calls` are all that there were; a huge model's are thinned out."""
    buffers: Mapping[str, str] = field(default_factory=dict)
    """Name → digest of each buffer that the state dict leaves out."""
    dtypes: Mapping[str, int] = field(default_factory=dict)
    """Number of the checkpoint's tensors by dtype."""
    training: Sequence[str] = ()
    """Modules that were in training mode after `eval()` and a forward pass."""

    def to_json(self) -> dict[str, Any]:
        """Plain data of at most MAX_BYTES as JSON, sampled as hard as that takes."""
        step = 0
        while True:
            document = _document(self, step)
            if num_bytes(document) <= MAX_BYTES or 2**step > 2 * len(self.calls) + 64:
                return document
            step += 1

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str) -> Behaviour:
        """Read what `to_json` made.

        Raises: CorruptError when it is not that.
        """
        try:
            if document["schema_version"] != SCHEMA_VERSION or document["determinism"] not in _DETERMINISM:
                raise ValueError
            samples = [_sample_from_json(sample) for sample in document["tensors"]]
            kinds = [str(kind) for kind in document["kinds"]]
            return cls(
                inputs=_mapping(document["inputs"]),
                environment=_mapping(document["environment"]),
                determinism=document["determinism"],
                outputs=_samples_from_json(document["outputs"], samples),
                calls=[
                    Call(
                        str(call["module"]),
                        int(call.get("number", 0)),
                        kinds[_index(call["kind"], len(kinds))],
                        _samples_from_json(call["inputs"], samples),
                        _samples_from_json(call["outputs"], samples),
                    )
                    for call in document["calls"]
                ],
                has_all_calls=bool(document["has_all_calls"]),
                buffers={str(k): str(v) for k, v in _mapping(document["buffers"]).items()},
                dtypes={str(k): int(v) for k, v in _mapping(document["dtypes"]).items()},
                training=[str(name) for name in document["training"]],
            )
        except (KeyError, TypeError, ValueError, AttributeError, struct.error, binascii.Error):
            raise CorruptError(
                "the behaviour record is malformed", where, "record it anew: ptsave verify --record"
            ) from None


_DETERMINISM = ("exact", "seeded", "none")


def num_bytes(document: Mapping[str, Any]) -> int:
    """How long the JSON of `document` is."""
    return len(json.dumps(document, separators=(",", ":")))


# --- to JSON: each distinct tensor once, the calls by index ---------------------------------------------


def _document(behaviour: Behaviour, step: int) -> dict[str, Any]:
    """The record, sampled harder with each `step`: fewer values, shorter sketches, then fewer calls."""
    table = _Table(
        values=CALL_VALUES >> step,
        places=max(SKETCH_PLACES >> max(step - 2, 0), 4),
    )
    keep = 2 ** max(step - 4, 0)
    calls = [c for i, c in enumerate(behaviour.calls) if i % keep == 0 or i == len(behaviour.calls) - 1]
    per_output = min(OUTPUT_VALUES, ALL_OUTPUT_VALUES // max(len(behaviour.outputs), 1)) >> step
    outputs = {
        path: table.index(sample, max(per_output, min(16, table.values + 1)))
        for path, sample in behaviour.outputs.items()
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "inputs": dict(behaviour.inputs),
        "environment": dict(behaviour.environment),
        "determinism": behaviour.determinism,
        "outputs": outputs,
        "calls": [table.call(call) for call in calls],
        "has_all_calls": behaviour.has_all_calls and len(calls) == len(behaviour.calls),
        "tensors": table.tensors,
        "kinds": list(table.kinds),
        "buffers": dict(islice(behaviour.buffers.items(), 0, None, keep)),
        "dtypes": dict(behaviour.dtypes),
        "training": list(behaviour.training),
    }


class _Table:
    """Distinct tensors and classes, each written once."""

    def __init__(self, values: int, places: int) -> None:
        self.values, self.places = values, places
        self.tensors: list[dict[str, Any]] = []
        self.kinds: dict[str, int] = {}
        self._indices: dict[Sample, int] = {}

    def index(self, sample: Sample, count: int) -> int:
        if sample not in self._indices:
            self._indices[sample] = len(self.tensors)
            self.tensors.append(_sample_to_json(sample, count, self.places))
        return self._indices[sample]

    def call(self, call: Call) -> dict[str, Any]:
        document: dict[str, Any] = {"module": call.module}
        if call.number:
            document["number"] = call.number
        document["kind"] = self.kinds.setdefault(call.kind, len(self.kinds))
        for side, samples in (("inputs", call.inputs), ("outputs", call.outputs)):
            document[side] = {path: self.index(sample, self.values) for path, sample in samples.items()}
        return document


def _sample_to_json(sample: Sample, count: int, places: int) -> dict[str, Any]:
    document: dict[str, Any] = {
        "dtype": sample.dtype,
        "shape": list(sample.shape),
        "digest": sample.digest,
        "norm": sample.norm,
        "sketch": _pack(folded(sample.sketch, places), sample.dtype),
    }
    if sample.num_odd:
        document["odd"] = sample.num_odd
    if values := sample.values[: count * (2 if sample.dtype.startswith("complex") else 1)]:
        document["values"] = _pack(values, sample.dtype)
    return document


def folded(sketch: Sequence[float], places: int) -> tuple[float, ...]:
    """The sketch of the same tensor with fewer places (a power of two)."""
    while len(sketch) > places:
        half = len(sketch) // 2
        sketch = [a + b for a, b in zip(sketch[:half], sketch[half:], strict=True)]
    return tuple(sketch)


def _letter(dtype: str) -> str:
    """How `struct` spells a value of a tensor of `dtype`: narrow floats need no more than 4 bytes."""
    return "f" if dtype in ("float32", "bfloat16", "float16", "complex64", "complex32", "bool") else "d"


def _pack(values: Sequence[float], dtype: str) -> str:
    letter = _letter(dtype)
    data = struct.pack(f"<{len(values)}{letter}", *(_fit(value, letter) for value in values))
    return base64.b64encode(data).decode("ascii")


def _fit(value: float, letter: str) -> float:
    """`value`, or infinity where a float32 cannot hold it (`struct` raises, a cast does not)."""
    if letter == "f" and math.isfinite(value) and abs(value) > 3.4028235e38:
        return math.copysign(math.inf, value)
    return value


# --- from JSON ------------------------------------------------------------------------------------------


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _index(value: Any, count: int) -> int:
    if not isinstance(value, int) or not 0 <= value < count:
        raise ValueError
    return value


def _samples_from_json(document: Any, samples: Sequence[Sample]) -> dict[str, Sample]:
    return {str(k): samples[_index(i, len(samples))] for k, i in _mapping(document).items()}


def _sample_from_json(document: dict[str, Any]) -> Sample:
    dtype = BY_NAME[document["dtype"]].name
    return Sample(
        dtype,
        tuple(int(n) for n in document["shape"]),
        str(document["digest"]),
        float(document["norm"]),
        int(document.get("odd", 0)),
        _unpack(document["sketch"], dtype),
        _unpack(document.get("values", ""), dtype),
    )


def _unpack(text: str, dtype: str) -> tuple[float, ...]:
    letter = _letter(dtype)
    data = base64.b64decode(text, validate=True)
    return struct.unpack(f"<{len(data) // struct.calcsize(letter)}{letter}", data)
