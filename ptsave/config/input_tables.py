"""The tables that say what the arguments of forward() are, in a TOML and in a record: parsed and checked."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

from ptsave.config.inputs import (
    DataTensor,
    DictOf,
    FileTensor,
    InputSpec,
    InputsSpec,
    ListOf,
    PlainValue,
    RandomTensor,
)
from ptsave.config.model import (
    NOT_FINITE,
    ConfigPlace,
    check_args,
    check_keys,
    dtype_at,
    expect,
    malformed,
    show,
)
from ptsave.core.address import Location
from ptsave.errors import UsageError

MAX_INPUT_BYTES = 16 * 1024**3
"""Cap on one generated input."""
NOT_GENERATED = ("complex32", "float8_e8m0fnu", "float4_e2m1fn_x2")
"""Dtypes of numbers that torch does not cast to, or that have no sign."""
MAX_SIZE = 1 << 48
"""Cap on one size of an input."""
MAX_DIMENSIONS = 64
"""Cap on an input's rank; torch itself handles no more."""


def parse_inputs(value: Any, place: ConfigPlace, folder: Location) -> InputsSpec:
    """The `[inputs]` table, or the `[[inputs]]` tables.

    Raises: UsageError.
    """
    if isinstance(value, list):
        positional = tuple(_parse_input(item, place / i) for i, item in enumerate(value))
        return _check_sizes(InputsSpec(positional, folder=folder, place=place), place)
    table = dict(expect(value, dict, place))
    file = None
    if "file" in table and not isinstance(table["file"], dict):
        file = expect(table.pop("file"), str, place / "file")
    named = {name: _parse_input(item, place / name) for name, item in table.items()}
    return _check_sizes(InputsSpec((), named, file, folder, place), place)


def recorded_inputs(document: Mapping[str, Any], where: str) -> InputsSpec:
    """The arguments that a record says, as `InputsSpec.to_json` wrote them. What names a file is kept, and
    `needs_files` tells: nothing opens the files that a record names.

    Raises: CorruptError.
    """
    place = ConfigPlace(where, ("inputs",))
    try:
        check_keys(document, ("positional", "named", "file", "digests"), place)
        digests = expect(document.get("digests", {}), dict, place / "digests")
        for name, digest in digests.items():
            expect(digest, str, place / "digests" / name)
        positional = expect(document.get("positional", []), list, place / "positional")
        named = expect(document.get("named", {}), dict, place / "named")
        file = document.get("file")
        spec = InputsSpec(
            tuple(_parse_input(item, place / i) for i, item in enumerate(positional)),
            {name: _parse_input(item, place / name) for name, item in named.items()},
            None if file is None else expect(file, str, place / "file"),
            digests=digests,
            place=place,
            is_recorded=True,
        )
        return _check_sizes(spec, place)
    except (UsageError, RecursionError) as error:
        raise malformed(error, place) from error


FORMS = {
    "shape": ("dtype", "seed", "low", "high", "mean", "std"),
    "data": ("dtype",),
    "file": ("key",),
    "value": (),
    "list": (),
    "dict": (),
}
"""The key that says what an input is → the keys that may go with it."""


def _parse_input(value: Any, place: ConfigPlace) -> InputSpec:
    example = "write a table: {shape = [4, 10]}, {data = […]}, {file = …}, or {value = …} for no tensor"
    table = expect(value, dict, place, example)
    forms = [form for form in FORMS if form in table]
    if len(forms) != 1:
        everything = {*FORMS, *(key for keys in FORMS.values() for key in keys)}
        check_keys(table, sorted(everything), place)
        what = (
            f"the input needs one of {', '.join(FORMS)}"
            if not forms
            else f"the input has both {' and '.join(forms)}"
        )
        raise place.error(what, example)
    form = forms[0]
    check_keys(table, (form, *FORMS[form]), place)
    at = place / form
    if form == "shape":
        return _parse_random(table, place)
    if form == "data":
        dtype = dtype_at(table["dtype"], place / "dtype") if "dtype" in table else None
        data = _finite_or_not(table["data"])
        _check_numbers(data, at)
        return DataTensor(data, dtype)
    if form == "file":
        key = table.get("key")
        return FileTensor(
            expect(table["file"], str, at), None if key is None else expect(key, str, place / "key")
        )
    if form == "value":
        check_args(table["value"], at)
        _refuse_code(table["value"], at)
        return PlainValue(table["value"])
    if form == "list":
        items = expect(table["list"], list, at)
        return ListOf(tuple(_parse_input(item, at / i) for i, item in enumerate(items)))
    entries = expect(table["dict"], dict, at)
    return DictOf({name: _parse_input(item, at / name) for name, item in entries.items()})


def _refuse_code(value: Any, place: ConfigPlace) -> None:
    """Inputs are replayed from records that nobody vouched for, so they import nothing.

    Raises: UsageError.
    """
    if isinstance(value, list):
        for i, child in enumerate(value):
            _refuse_code(child, place / i)
    elif isinstance(value, dict):
        for key, child in value.items():
            if key in ("_target_", "_import_"):
                raise (place / key).error(f"{key} is for model.args", "an input is plain data or a tensor")
            _refuse_code(child, place / key)


def _parse_random(table: Mapping[str, Any], place: ConfigPlace) -> RandomTensor:
    given = expect(table["shape"], list, place / "shape", "write shape = [4, 10]")
    sizes = [_parse_size(size, place / "shape" / i) for i, size in enumerate(given)]
    shape, names = tuple(size for _, size in sizes), tuple(name for name, _ in sizes)
    if any(not 0 <= size <= MAX_SIZE for size in shape) or len(shape) > MAX_DIMENSIONS:
        raise (place / "shape").error(
            f"{list(shape[:MAX_DIMENSIONS])!s:.80} is not a shape",
            f"sizes are 0 or more, at most {MAX_DIMENSIONS} of them",
        )
    dtype = dtype_at(table.get("dtype", "float32"), place / "dtype")
    if dtype.kind in ("quantized", "bits") or dtype.name in NOT_GENERATED:
        raise (place / "dtype").error(
            f"no numbers can be generated as {dtype.name}", "give the tensor as a file"
        )
    if prod(shape) * dtype.itemsize > MAX_INPUT_BYTES:
        raise (place / "shape").error(
            f"the input asks for {prod(shape) * dtype.itemsize} bytes, more than "
            f"MAX_INPUT_BYTES = {MAX_INPUT_BYTES}",
            "use a smaller batch",
        )
    seed = expect(table.get("seed", 0), int, place / "seed")
    names = names if any(names) else ()
    if dtype.is_float:
        return _parse_float_range(table, place, RandomTensor(shape, dtype, seed, names=names))
    for key in ("mean", "std"):
        if key in table:
            raise (place / key).error(f"{key} is for floats", f"{dtype.name} takes low and high")
    low = expect(table.get("low", 0), int, place / "low")
    high = expect(table.get("high", max(low, 0) + 2), int, place / "high")
    bits = 8 * dtype.itemsize
    least, most = {"bool": (0, 1), "uint": (0, 2**bits - 1)}.get(
        dtype.kind, (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )
    if not least <= low < high <= most + 1:
        raise place.error(
            f"low = {low}, high = {high} is not a range of {dtype.name}",
            f"{least} <= low < high <= {most + 1}; high itself is never drawn",
        )
    return RandomTensor(shape, dtype, seed, low, high, names=names)


def _parse_size(value: Any, place: ConfigPlace) -> tuple[str, int]:
    """Name and value of a size: `"batch=4"`, or a bare number, whose name is empty.

    Raises: UsageError.
    """
    if not isinstance(value, str):
        return "", expect(value, int, place)
    name, equals, number = (part.strip() for part in value.partition("="))
    if not equals or not re.fullmatch(r"[0-9]{1,18}", number):
        raise place.error(f"{value!r} is not a size", 'write a number, or a name with an example: "batch=4"')
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or keyword.iskeyword(name):
        raise place.error(f"{name!r} cannot name a size", "letters, digits and underscores, a letter first")
    return name, int(number)


def _check_sizes(spec: InputsSpec, place: ConfigPlace) -> InputsSpec:
    """`spec`, once it is known that each name has one example.

    Raises: UsageError.
    """
    sizes = spec.sizes
    if spec.with_sizes(sizes) != spec:
        pairs = [pair for t in spec.random_tensors for pair in zip(t.names, t.shape, strict=False)]
        name, other = next((n, size) for n, size in pairs if n and sizes[n] != size)
        raise place.error(f"the size {name!r} is both {other} and {sizes[name]}", "give it one example")
    return spec


def _parse_float_range(table: Mapping[str, Any], place: ConfigPlace, spec: RandomTensor) -> RandomTensor:
    numbers = {
        key: expect(table[key], float, place / key) for key in ("low", "high", "mean", "std") if key in table
    }
    for key, number in numbers.items():
        if not math.isfinite(number) or (key == "std" and number < 0):
            raise (place / key).error(f"{number} is not a usable {key}", "give a finite number")
    if {"low", "high"} & numbers.keys():
        if {"mean", "std"} & numbers.keys():
            raise place.error(
                "the input has both low/high and mean/std", "low/high is uniform, mean/std is normal"
            )
        low, high = numbers.get("low", 0.0), numbers.get("high", 1.0)
        if not low < high or not math.isfinite(high - low):
            raise place.error(f"low = {low}, high = {high} is not a range", "low < high")
        return replace(spec, low=low, high=high)
    mean, std = numbers.get("mean", 0.0), numbers.get("std", 1.0)
    return replace(spec, mean=mean, std=std)


def _finite_or_not(value: Any) -> Any:
    """`value` with each `{_float_ = "nan"}` as the number it stands for."""
    if isinstance(value, list):
        return [_finite_or_not(child) for child in value]
    if isinstance(value, dict) and value.get("_float_") in NOT_FINITE and len(value) == 1:
        return float(value["_float_"])
    return value


def _check_numbers(value: Any, place: ConfigPlace) -> tuple[int, ...]:
    """The shape of nested arrays of numbers.

    Raises: UsageError where they are ragged, or hold something else.
    """
    if not isinstance(value, list):
        if not isinstance(value, (int, float)):
            raise place.error(f"the value must be a number, not {show(value)}", "data is numbers in arrays")
        return ()
    shapes = [_check_numbers(child, place / i) for i, child in enumerate(value)]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise (place / i).error(f"the array is ragged: {list(shape)} beside {list(shapes[0])}", "pad it")
    return (len(value), *(shapes[0] if shapes else ()))
