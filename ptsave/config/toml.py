"""The TOML of a model: read, overridden with `--set`, checked, and turned into frozen dataclasses."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptsave.config.input_tables import parse_inputs
from ptsave.config.inputs import InputsSpec
from ptsave.config.model import ConfigPlace, ModelSpec, check_keys, expect, parse_model
from ptsave.core.address import Location
from ptsave.core.names import hint_for
from ptsave.errors import LimitError, UsageError, quoted
from ptsave.sign.identities import WORD
from ptsave.storage.opening import open_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "Config",
    "InputsSpec",
    "ModelSpec",
    "ParallelSpec",
    "Tolerance",
    "load_config",
]

MAX_CONFIG_BYTES = 16 * 1024 * 1024
"""Cap on a config's size. A larger file is a checkpoint by mistake."""
MESH_DIMENSIONS = ("dp", "ddp", "tp")
PARALLEL_STYLES = ("colwise", "colwise_gather_output", "rowwise", "rowwise_split_input", "sequence")
_TOML_HINT = "a config is a TOML text; `ptsave inspect CHECKPOINT --make-config model.toml` writes one"


@dataclass(frozen=True)
class Tolerance:
    """How far outputs may be apart; None follows `torch.testing.assert_close` for the dtype."""

    rtol: float | None = None
    atol: float | None = None


@dataclass(frozen=True)
class ParallelSpec:
    """How to shard a model over ranks. Only used under torchrun."""

    mesh: Mapping[str, int] = field(default_factory=dict)
    """`dp` (FSDP2 shards), `ddp` (replicas) and `tp` (split tensors) → number of ranks, in order."""
    wrap: tuple[str, ...] = ()
    """Classes, or globs of module names, that become their own FSDP unit."""
    tensor: Mapping[str, str] = field(default_factory=dict)
    """Glob of module names → style of torch.distributed.tensor.parallel."""


@dataclass(frozen=True)
class Config:
    """One TOML."""

    path: Location
    model: ModelSpec
    inputs: InputsSpec | None = None
    """None where the TOML says nothing of inputs: nothing can be run then."""
    tolerance: Tolerance | None = None
    parallel: ParallelSpec | None = None
    signed_by: tuple[Location, ...] = ()
    """Public keys, certificates, folders of them, or `sigstore`: whose signatures `verify` asks for."""
    identity: tuple[str, ...] = ()
    """Whom certificates must name."""
    issuer: str | None = None
    """Who must have told sigstore that name."""


def load_config(path: Location, overrides: Sequence[str] = ()) -> Config:
    """Read the TOML at `path`, with each `KEY.PATH=VALUE` of `overrides` put in its place.

    Raises: MissingFileError; UnreadableError; UsageError for a syntax error, an unknown key or a wrong type.
    """
    document = read_toml(path, "the config")
    for override in overrides:
        _override(document, override)
    try:
        return _parse(document, path)
    except RecursionError:  # dotted keys nest without nesting the parser
        raise UsageError("the config nests too deeply", str(path), _TOML_HINT) from None


def _parse(document: dict[str, Any], path: Location) -> Config:
    place = ConfigPlace(str(path))
    check_keys(document, ("model", "inputs", "verify", "parallel"), place)
    if "model" not in document:
        raise place.error("the config has no [model] table", 'start with [model] and class = "pkg.mod.Name"')
    has = document.keys()
    verify = expect(document.get("verify", {}), dict, place / "verify")
    check_keys(verify, ("rtol", "atol", "signed_by", "identity", "issuer"), place / "verify")
    return Config(
        path,
        parse_model(document["model"], place / "model"),
        parse_inputs(document["inputs"], place / "inputs", path.parent) if "inputs" in has else None,
        _tolerance(verify, place / "verify"),
        _parallel(document["parallel"], place / "parallel") if "parallel" in has else None,
        _keys(verify.get("signed_by", []), place / "verify" / "signed_by", path.parent),
        _names(verify.get("identity", []), place / "verify" / "identity"),
        expect(verify["issuer"], str, place / "verify" / "issuer") if "issuer" in verify else None,
    )


def read_toml(path: Location, what: str) -> dict[str, Any]:
    """The TOML at `path`; `what`: what errors call it.

    Raises: MissingFileError; UnreadableError; LimitError; UsageError for a syntax error.
    """
    hint = _TOML_HINT if what == "the config" else ""
    with open_file(path) as file:
        if file.size_bytes > MAX_CONFIG_BYTES:
            raise LimitError("MAX_CONFIG_BYTES", MAX_CONFIG_BYTES, file.size_bytes, str(path))
        text = file.read_at(0, file.size_bytes)
    try:
        return tomllib.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UsageError(f"{what} is not text", str(path), hint) from None
    except RecursionError:
        raise UsageError(f"{what} nests too deeply", str(path), hint) from None
    except ValueError as error:  # a TOMLDecodeError names the line and the column
        raise UsageError(f"{what} is not valid TOML: {error}", str(path), hint) from None


def _override(document: dict[str, Any], text: str) -> None:
    """Put the value of `KEY.PATH=VALUE` into `document`.

    Raises: UsageError.
    """
    keys, value = _parse_override(text)
    where = f"--set {text}"
    table: Any = document
    for i, key in enumerate(keys):
        last = i + 1 == len(keys)
        if isinstance(table, list):
            if not key.isdecimal() or int(key) >= len(table):
                raise UsageError(f"there is no item {key} in {'.'.join(keys[:i])}", where, "count from 0")
            step: Any = int(key)
        elif isinstance(table, dict):
            step = key
            if not last:
                table.setdefault(key, {})
        else:
            raise UsageError(f"{'.'.join(keys[:i])} is not a table", where, "check the key's path")
        if last:
            table[step] = value
        else:
            table = table[step]


def _parse_override(text: str) -> tuple[list[str], Any]:
    where = f"--set {text}"
    equals = -1
    while True:
        equals = text.find("=", equals + 1)
        if equals < 0:
            raise UsageError(
                "the option is not KEY=VALUE", where, "for example: --set model.args.hidden_size=64"
            )
        if (keys := _parse_key(text[:equals])) is not None:
            break
    bare = text[equals + 1 :].strip()
    try:
        values = tomllib.loads(f"value = {bare}")
    except (ValueError, RecursionError):
        values = {}
    if len(values) != 1:
        word = bare.replace("\\", "\\\\").replace('"', '\\"')
        text = quoted(f'{text[:equals].strip()}="{word}"')
        hint = f"a string needs TOML's quotes inside the shell's: --set {text}"
        raise UsageError(f"{bare!r} is not a TOML value", where, hint)
    return keys, values["value"]


def _parse_key(text: str) -> list[str] | None:
    """The parts of a TOML key, or None where `text` is not one."""
    try:
        node: Any = tomllib.loads(f"{text.strip()} = 0")
    except (ValueError, RecursionError):
        return None
    keys = []
    while isinstance(node, dict):
        if len(node) != 1:
            return None
        key, node = next(iter(node.items()))
        keys.append(key)
    return keys if node == 0 else None


def _tolerance(table: Mapping[str, Any], place: ConfigPlace) -> Tolerance | None:
    keys = [key for key in ("rtol", "atol") if key in table]
    numbers = {key: expect(table[key], float, place / key) for key in keys}
    for key, number in numbers.items():
        if not 0 <= number < float("inf"):
            raise (place / key).error(f"{number} is not a tolerance", "give a finite number, 0 or more")
    return Tolerance(**numbers) if numbers else None


def _keys(value: Any, place: ConfigPlace, folder: Location) -> tuple[Location, ...]:
    names = expect(value, list, place, 'for example: signed_by = ["keys"]')
    found = [expect(name, str, place / i) for i, name in enumerate(names)]
    return tuple(Path(name) if name == WORD else folder / name for name in found)


def _names(value: Any, place: ConfigPlace) -> tuple[str, ...]:
    names = expect(value, list, place, 'for example: identity = ["release@example.com"]')
    return tuple(expect(name, str, place / i) for i, name in enumerate(names))


def _parallel(value: Any, place: ConfigPlace) -> ParallelSpec:
    table = expect(value, dict, place)
    check_keys(table, ("mesh", "wrap", "tensor"), place)
    mesh = expect(table.get("mesh", {}), dict, place / "mesh")
    check_keys(mesh, MESH_DIMENSIONS, place / "mesh")
    for name, size in mesh.items():
        if expect(size, int, place / "mesh" / name) < 1:
            raise (place / "mesh" / name).error(f"{size} is not a number of ranks", "give 1 or more")
    wrap = expect(table.get("wrap", []), list, place / "wrap")
    tensor = expect(table.get("tensor", {}), dict, place / "tensor")
    for glob, style in tensor.items():
        at = place / "tensor" / glob
        if expect(style, str, at, 'quote a name that has dots: "blocks.*.ff.0" = "colwise"') not in (
            PARALLEL_STYLES
        ):
            raise at.error(f"unknown style {style!r}", hint_for(style, PARALLEL_STYLES, "styles"))
    return ParallelSpec(
        dict(mesh),
        tuple(expect(name, str, place / "wrap" / i) for i, name in enumerate(wrap)),
        dict(tensor),
    )
