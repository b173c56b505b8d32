"""What a model is, as plain data: the same from a TOML and from a record.

Everything here is validated when it is made, and nothing here imports what it names.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, TypeVar

from ptsave.core.dtypes import DType, parse_dtype
from ptsave.core.names import hint_for, nearest
from ptsave.core.tree import dotted, walk
from ptsave.errors import CorruptError, Option, Text, UsageError

NOT_FINITE = ("nan", "inf", "-inf")
"""What `_float_` may spell."""
MARKERS = ("_target_", "_args_", "_partial_", "_dtype_", "_import_", "_float_")
"""Keys that give a table inside `model.args` a meaning of its own."""


@dataclass(frozen=True, slots=True)
class ConfigPlace:
    """Where a value stands: the file, and the key path inside it."""

    file: str
    keys: tuple[str | int, ...] = ()

    def __truediv__(self, key: str | int) -> ConfigPlace:
        return ConfigPlace(self.file, (*self.keys, key))

    def __str__(self) -> str:
        path = ".".join(_key(key) for key in self.keys)
        return f"{self.file}: {path}" if path else self.file

    def error(self, what: str, hint: Text = "") -> UsageError:
        return UsageError(what, str(self), hint)


NOWHERE = ConfigPlace("")


def _key(key: str | int) -> str:
    text = str(key)
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else f'"{text}"'


T = TypeVar("T")
NAMES_OF_TYPES: dict[type, tuple[str, str]] = {
    str: ("a string", '{} = "text"'),
    bool: ("true or false", "{} = true"),
    int: ("an integer", "{} = 10"),
    float: ("a number", "{} = 0.5"),
    dict: ("a table", "{} = {{key = 1}}"),
    list: ("an array", "{} = [1, 2]"),
}
"""Type → what a TOML calls it, and an example of one."""
MAX_SHOWN_CHARS = 60


def expect(value: Any, kind: type[T], place: ConfigPlace, hint: str = "") -> T:
    """`value`, once it is known to be a `kind`; an integer passes for a float, a boolean for neither.

    Raises: UsageError.
    """
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1 << 1000 else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        name, example = NAMES_OF_TYPES[kind]
        key = next((str(key) for key in reversed(place.keys) if isinstance(key, str)), "key")
        raise place.error(
            f"the value must be {name}, not {show(value)}", hint or f"for example: {example.format(key)}"
        )
    return value


def show(value: Any) -> str:
    """`value` as a TOML has it where it is short, else what kind of value it is."""
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    if isinstance(value, (str, int, float)) and len(text) <= MAX_SHOWN_CHARS:
        return text
    return NAMES_OF_TYPES.get(type(value), (f"a {type(value).__name__}", ""))[0]


def check_keys(table: Mapping[str, Any], known: Iterable[str], place: ConfigPlace) -> None:
    """Check that each key of `table` is known.

    Raises: UsageError with the nearest known key.
    """
    known = list(known)
    for key in table:
        if key not in known:
            raise (place / key).error(f"unknown key {key!r}", hint_for(key, known, "keys"))


@dataclass(frozen=True)
class NamedCode:
    """Code that a spec names."""

    path: str
    """`pkg.mod.Name` or `pkg.mod:Name`, as the spec has it."""
    use: Literal["called", "imported", "bound"]
    """Whether building the model calls it, passes it on as it is, or passes it on with some arguments."""
    where: str
    """`model.class`, `model.args.norm._target_`, …"""


@dataclass(frozen=True)
class ModelSpec:
    """How to build a model: what to import, and what to call it with."""

    target: str
    """`pkg.mod.Name` or `pkg.mod:Name`: a class or a function that returns a module."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments, as the TOML has them."""
    is_factory: bool = False
    """Whether the target returns a module that is ready (trained), to be called once and for real."""
    place: ConfigPlace = NOWHERE
    trusted: tuple[str, ...] | None = None
    """Globs of the dotted names that may be imported, where a checkpoint's record names them; None where the
    user's own config does, which may name anything."""

    @property
    def named_code(self) -> Iterator[NamedCode]:
        """Everything that building the model imports, in the order in which it is written."""
        key = "factory" if self.is_factory else "class"
        yield NamedCode(self.target, "called", f"model.{key}")
        yield from _named_code(self.args, "model.args")

    def to_json(self) -> dict[str, Any]:
        """Plain data for the record; `from_json` reads it back."""
        return {"factory" if self.is_factory else "class": self.target, "args": to_plain(self.args)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], where: str) -> ModelSpec:
        """Read what `to_json` wrote; other keys are ignored.

        Raises: CorruptError.
        """
        table = {key: document[key] for key in ("class", "factory", "args") if key in document}
        if "factory" in table:
            table.pop("class", None)
        place = ConfigPlace(where, ("model",))
        try:
            return parse_model(table, place)
        except (UsageError, RecursionError) as error:
            raise malformed(error, place) from error


def _named_code(value: Any, where: str) -> Iterator[NamedCode]:
    for path, node in walk(value, once=False):
        here = dotted(path, where)
        if not isinstance(node, Mapping):
            continue
        if "_import_" in node:
            yield NamedCode(node["_import_"], "imported", f"{here}._import_")
        elif "_target_" in node:
            use: Literal["bound", "called"] = "bound" if node.get("_partial_", False) else "called"
            yield NamedCode(node["_target_"], use, f"{here}._target_")


def parse_model(table: Any, place: ConfigPlace) -> ModelSpec:
    """The `[model]` table.

    Raises: UsageError.
    """
    table = expect(table, dict, place)
    check_keys(table, ("class", "factory", "args"), place)
    if ("class" in table) == ("factory" in table):
        raise place.error(
            "the table needs exactly one of `class` and `factory`", 'for example: class = "pkg.mod.Name"'
        )
    key = "class" if "class" in table else "factory"
    target = check_path(table[key], place / key)
    args = expect(table.get("args", {}), dict, place / "args")
    check_args(args, place / "args")
    for marker in ("_target_", "_partial_", "_dtype_", "_import_", "_float_"):
        if marker in args:
            raise (place / "args" / marker).error(
                f"{marker} belongs in a table inside model.args", f"name what to build with model.{key}"
            )
    return ModelSpec(target, args, key == "factory", place)


def check_path(value: Any, place: ConfigPlace) -> str:
    """A dotted import path, in either spelling; only its shape is looked at.

    Raises: UsageError.
    """
    path = expect(value, str, place)
    example = 'write "pkg.mod.Name" or "pkg.mod:Name"'
    if "/" in path or "\\" in path or path.endswith(".py") or ".py:" in path:
        raise place.error(
            f"{path!r} is a file's path, not an import path",
            (example, Option("app_dir", lead="; ", tail=" names the folder that it is imported from")),
        )
    module, colon, name = path.partition(":")
    parts = module.split(".") + (name.split(".") if colon else [])
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise place.error(f"{path!r} is not an import path", example)
    return path


MAX_ARGS = 100_000
"""Cap on the values in a model's arguments, of which a checkpoint's record may have any number: the labels of
21,841 classes, both ways, are 44,000."""
MAX_ASKED = 100
"""How many odd keys are compared with the markers that they may be meant for."""


def check_args(value: Any, place: ConfigPlace) -> None:
    """Check what is to be built from a value.

    Raises: UsageError where a value cannot be recorded, a marker is misused, or there are more than MAX_ARGS.
    """
    _check_args(value, place, count(), set())


def _check_args(value: Any, place: ConfigPlace, number: Iterator[int], asked: set[str]) -> None:
    if next(number) > MAX_ARGS:
        raise place.error(
            f"there are more than MAX_ARGS = {MAX_ARGS} values", "keep them in a file of their own"
        )
    if isinstance(value, list):
        for i, child in enumerate(value):
            _check_args(child, place / i, number, asked)
    elif isinstance(value, dict):
        _check_markers(value, place, asked)
        for key, child in value.items():
            _check_args(child, place / key, number, asked)
    elif isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        raise place.error("a date or time is not a hyperparameter", "quote it to make it a string")


def _check_markers(table: Mapping[str, Any], place: ConfigPlace, asked: set[str]) -> None:
    for key in table:
        if key in MARKERS or key in asked or len(asked) == MAX_ASKED or not re.fullmatch(r"_\w+_", key):
            continue
        asked.add(key)
        if match := nearest(key, MARKERS):
            raise (place / key).error(f"unknown key {key!r}", f"did you mean {match!r}?")
    for alone in ("_dtype_", "_import_", "_float_"):
        if alone in table and len(table) > 1:
            raise place.error(f"{alone} stands alone in its table", f'write {{{alone} = "…"}}')
    if "_target_" in table:
        check_path(table["_target_"], place / "_target_")
        expect(table.get("_args_", []), list, place / "_args_")
        expect(table.get("_partial_", False), bool, place / "_partial_")
    elif "_args_" in table and place.keys == ("model", "args"):
        expect(table["_args_"], list, place / "_args_")
    elif "_args_" in table or "_partial_" in table:
        raise place.error(
            "the table has _args_ or _partial_ but no _target_", 'add _target_ = "pkg.mod.Name"'
        )
    if "_import_" in table:
        check_path(table["_import_"], place / "_import_")
    if "_dtype_" in table:
        dtype_at(table["_dtype_"], place / "_dtype_")
    if "_float_" in table and table["_float_"] not in NOT_FINITE:
        raise (place / "_float_").error("the value must be nan, inf or -inf", 'write {_float_ = "inf"}')


def dtype_at(value: Any, place: ConfigPlace) -> DType:
    """The dtype that a value names.

    Raises: UsageError with the nearest name.
    """
    return parse_dtype(expect(value, str, place), str(place))


def to_plain(value: Any) -> Any:
    """`value` for JSON, which has no NaN and no infinity: `_float_` spells them."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"_float_": str(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(child) for child in value]
    return value


def malformed(error: UsageError | RecursionError, place: ConfigPlace) -> CorruptError:
    """The error for a record in which something is as `error` says."""
    what, where = (error.what, error.where) if isinstance(error, UsageError) else ("too deep", str(place))
    return CorruptError(
        f"the ptsave record is malformed: {what}", where, ("name a config with ", Option("config"))
    )
