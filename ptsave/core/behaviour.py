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
from typing import Any, Literal, get_args

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
_DETERMINISM: tuple[Determinism, ...] = get_args(Determinism)


@dataclass(frozen=True)
class Sample:
    """A tensor as it was seen."""

    dtype: str
    shape: tuple[int, ...]
    digest: str
    """XXH3-128, as `core.values.digest` takes it."""
    norm: float
    """The square root of the sum of the squares."""
    num_odd: int
    """Elements that are NaN, infinite or beyond 1e30; they count as 0 in the norm and the sketch."""
    sketch: tuple[float, ...]
    """Sums of all elements with pseudo-random signs; see `models.behaviour.sketch`.

    The sketch of a difference is the difference of the sketches, and its length (the root of the sum of the
    squares) that of the whole difference, to within a third."""
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
    inside: str = ""
    """The coarsest floating-point dtype that its own code computed in, where that shows nowhere: what the
    call was given, and what it and the modules inside it returned, is finer. Empty where there is none."""

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
    outside: Mapping[str, str] = field(default_factory=dict)
    """Name → digest of tensors and arrays that no state dict knows: attributes of modules (`blocks.0.scale`),
    and globals of the code (`pkg.mod.TABLE`)."""
    dtypes: Mapping[str, int] = field(default_factory=dict)
    """Number of the checkpoint's tensors by dtype."""
    training: Sequence[str] = ()
    """Modules that were in training mode after `eval()` and a forward pass."""
    knows_inside: bool = False
    """Whether `inside` of each call was looked for; older records do not have it."""

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
        """Read what `to_json` made; every number is bounded, and held to the others of its tensor.

        Raises: CorruptError when it is not that.
        """
        try:
            return _behaviour_from_json(document)
        except _MisfitError as error:
            raise CorruptError(f"the behaviour record does not fit: {error}", where, _HINT) from None


def num_bytes(document: Mapping[str, Any]) -> int:
    """How long the JSON of `document` is."""
    return len(json.dumps(document, separators=(",", ":")))


# --- to JSON: each distinct tensor once, the calls by index ---------------------------------------------


def _document(behaviour: Behaviour, step: int) -> dict[str, Any]:
    """The record, sampled harder with each `step`: fewer values, shorter sketches, then fewer calls."""
    table = _Table(
        values=CALL_VALUES >> step,
        places=max(SKETCH_PLACES >> max(step - 2, 0), _MIN_PLACES),
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
        "outside": dict(behaviour.outside),
        "dtypes": dict(behaviour.dtypes),
        "training": list(behaviour.training),
        "knows_inside": behaviour.knows_inside,
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
        if call.inside:
            document["inside"] = call.inside
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


# --- from JSON: bounds on everything that is read ----------------------------------------------------------

_HINT = "record it again: ptsave verify -c CONFIG --record; until then it proves nothing"
_MAX_SIZE = 1 << 48
"""Cap on the elements of a recorded tensor."""
_MAX_DIMENSIONS = 64
_MAX_CALLS_OF_ONE = 1 << 31
_MIN_PLACES = 4
"""The shortest sketch that `_document` writes."""
_HUGE = 1e30
"""Larger elements are counted as odd, and are in no norm; see `models.behaviour.sketch`."""
_LOOSE = 1.01
"""Norms and sketches are sums of 32-bit floats; they are held to each other with so much room."""
_UNDERFLOW = 1e-18
"""Elements below it may have vanished from a norm that was added up in 32 bits."""


class _MisfitError(ValueError):
    """What of a behaviour record does not fit, for a person."""


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise _MisfitError(what)


def _mapping(value: Any, what: str) -> dict[str, Any]:
    _must(isinstance(value, dict), f"{what} is not a table")
    mapping: dict[str, Any] = value
    return mapping


def _list(value: Any, what: str) -> list[Any]:
    _must(isinstance(value, list), f"{what} is not a list")
    items: list[Any] = value
    return items


def _text(value: Any, what: str) -> str:
    _must(isinstance(value, str), f"{what} is not text")
    return str(value)


def _whole(value: Any, most: int, what: str) -> int:
    """A whole number from 0 to `most`."""
    _must(type(value) is int and 0 <= value <= most, f"{what} is not a number from 0 to {most}")
    return int(value)


def _behaviour_from_json(document: Mapping[str, Any]) -> Behaviour:
    said = document.get("determinism")
    determinism = next((one for one in _DETERMINISM if one == said), None)
    version = document.get("schema_version")
    _must(version == SCHEMA_VERSION, f"schema_version is {version!r:.40}, not {SCHEMA_VERSION}")
    if determinism is None:
        raise _MisfitError(f"determinism is {said!r:.40}")
    samples = [
        _sample_from_json(_mapping(sample, f"tensor {i}"), f"tensor {i}")
        for i, sample in enumerate(_list(document.get("tensors"), "tensors"))
    ]
    kinds = [_text(kind, "a kind") for kind in _list(document.get("kinds"), "kinds")]
    environment = _mapping(document.get("environment"), "environment")
    plain = all(isinstance(value, (str, int, float, type(None))) for value in environment.values())
    _must(plain, "environment holds more than plain values")
    has_all_calls = document.get("has_all_calls")
    _must(isinstance(has_all_calls, bool), "has_all_calls is neither true nor false")
    dtypes = _mapping(document.get("dtypes"), "dtypes")
    _must(dtypes.keys() <= BY_NAME.keys(), "dtypes names what is not a dtype")
    return Behaviour(
        inputs=_mapping(document.get("inputs"), "inputs"),
        environment=environment,
        determinism=determinism,
        outputs=_samples_from_json(document.get("outputs"), samples),
        calls=[
            _call_from_json(_mapping(call, "a call"), kinds, samples)
            for call in _list(document.get("calls"), "calls")
        ],
        has_all_calls=bool(has_all_calls),
        outside={
            name: _text(digest, "a digest outside")
            for name, digest in _mapping(document.get("outside", {}), "outside").items()
        },
        knows_inside=document.get("knows_inside") is True,
        buffers={
            name: _text(digest, "a buffer's digest")
            for name, digest in _mapping(document.get("buffers"), "buffers").items()
        },
        dtypes={name: _whole(count, _MAX_SIZE, f"dtypes: {name}") for name, count in dtypes.items()},
        training=[
            _text(name, "a module in training") for name in _list(document.get("training"), "training")
        ],
    )


def _call_from_json(call: dict[str, Any], kinds: Sequence[str], samples: Sequence[Sample]) -> Call:
    _must(bool(kinds), "a call has no kind")
    inside = _text(call.get("inside", ""), "a call's dtype inside")
    _must(not inside or inside in BY_NAME, f"a call has the dtype {inside!r:.40} inside")
    return Call(
        _text(call.get("module"), "a call's module"),
        _whole(call.get("number", 0), _MAX_CALLS_OF_ONE, "a call's number"),
        kinds[_whole(call.get("kind"), len(kinds) - 1, "a call's kind")],
        _samples_from_json(call.get("inputs"), samples),
        _samples_from_json(call.get("outputs"), samples),
        inside,
    )


def _samples_from_json(document: Any, samples: Sequence[Sample]) -> dict[str, Sample]:
    table = _mapping(document, "a call's tensors")
    _must(bool(samples) or not table, "a call names a tensor that is not there")
    return {path: samples[_whole(i, len(samples) - 1, "a tensor's number")] for path, i in table.items()}


def _sample_from_json(document: dict[str, Any], what: str) -> Sample:
    name = document.get("dtype")
    _must(isinstance(name, str) and name in BY_NAME, f"{what} has the dtype {name!r:.40}")
    dtype = BY_NAME[str(name)]
    _must(dtype.kind not in ("quantized", "bits"), f"{what} has the dtype {name}, which has no numbers")
    shape = tuple(
        _whole(n, _MAX_SIZE, f"{what}: a size") for n in _list(document.get("shape"), f"{what}: shape")
    )
    _must(len(shape) <= _MAX_DIMENSIONS, f"{what} has {len(shape)} dimensions")
    size = math.prod(shape)
    _must(size <= _MAX_SIZE, f"{what} has more than {_MAX_SIZE} elements")
    num_parts = size * (2 if dtype.kind == "complex" else 1)
    digest = _text(document.get("digest"), f"{what}: digest")
    _must(
        len(digest) == _DIGEST_CHARS and digest.isalnum(), f"{what}: digest is not of {_DIGEST_CHARS} digits"
    )
    norm: Any = document.get("norm")
    _must(
        type(norm) in (float, int) and 0 <= norm <= _LOOSE * _HUGE * (num_parts + 1) ** 0.5,
        f"{what}: its norm is not one of {size} elements",
    )
    sample = Sample(
        dtype.name,
        shape,
        digest,
        float(norm),
        _whole(document.get("odd", 0), num_parts, f"{what}: its NaN and infinities"),
        _unpack(document.get("sketch"), dtype.name, f"{what}: sketch"),
        _unpack(document.get("values", ""), dtype.name, f"{what}: values"),
    )
    _check_sample(sample, num_parts, what)
    return sample


def _check_sample(sample: Sample, num_parts: int, what: str) -> None:
    """Hold the figures of one sample to each other: they are all of the same elements."""
    places = len(sample.sketch)
    _must(places in _PLACES, f"{what}: a sketch of {places} sums, not of {', '.join(map(str, _PLACES))}")
    _must(len(sample.values) <= min(num_parts, 2 * OUTPUT_VALUES), f"{what}: more values than elements")
    # Cauchy-Schwarz: a sum of n elements with signs is at most the square root of n times their norm.
    longest = _LOOSE * sample.norm * (num_parts / places + 1) ** 0.5 + _UNDERFLOW * num_parts
    length = math.hypot(*sample.sketch)
    _must(length <= longest, f"{what}: its sketch is not one of a tensor of its norm")  # False for NaN
    known = math.hypot(*(value for value in sample.values if abs(value) <= _HUGE))
    slack = _UNDERFLOW * num_parts**0.5
    fits = known <= _LOOSE * sample.norm + slack
    if len(sample.values) == num_parts:
        fits = fits and sample.norm <= _LOOSE * known + slack
    _must(fits, f"{what}: its norm is not that of its values")


_PLACES = tuple(_MIN_PLACES << i for i in range((SKETCH_PLACES // _MIN_PLACES).bit_length()))
_DIGEST_CHARS = 32


def _unpack(text: Any, dtype: str, what: str) -> tuple[float, ...]:
    letter = _letter(dtype)
    try:
        data = base64.b64decode(_text(text, what), validate=True)
        return struct.unpack(f"<{len(data) // struct.calcsize(letter)}{letter}", data)
    except (binascii.Error, struct.error, ValueError):
        raise _MisfitError(f"{what} is not packed numbers") from None
