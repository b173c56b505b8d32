"""`inspect --make-config`: the TOML of a model, from a checkpoint's record or from the config.json beside it.

Nothing is imported: what the TOML names is, when the user loads with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptsave.config.input_tables import parse_inputs
from ptsave.config.model import MARKERS, ConfigPlace, parse_model
from ptsave.config.recorded import told_by
from ptsave.config.write import MAX_INT, toml_text
from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.strict_json import parse_object
from ptsave.core.tree import walk
from ptsave.errors import LimitError, Option, UnsafeError, UsageError
from ptsave.formats import open_checkpoint
from ptsave.storage.files import InputFolder
from ptsave.storage.local.folder import LocalFolder
from ptsave.storage.opening import check_file_destination, write_file

CONFIG_NAME = "config.json"
MAX_CONFIG_JSON_BYTES = 16 * 1024 * 1024
"""Cap on a config.json, which may have the names of some ten thousand classes."""
_ABOUT_THE_FILE = ("architectures", "auto_map", "transformers_version", "_name_or_path", "_commit_hash")
"""Keys of a config.json that say where it comes from, and are no arguments of its class."""
_FOR_MODEL = "transformers:AutoConfig.for_model"
"""Makes the configuration of a `model_type`. Source: transformers, models/auto/configuration_auto.py."""


@dataclass(frozen=True)
class MadeConfig:
    """A TOML that was written, and what it was made of."""

    path: Location
    source: str
    """`the record`, `config.json`, or the class and its signature."""
    target: str
    """What it names: the model's class."""
    notes: tuple[str, ...] = field(default=())
    """What a person should look at before the first load."""


def make_config(path: Location, destination: Location) -> MadeConfig:
    """Write to `destination` the TOML of the model that the checkpoint at `path` belongs to.

    It comes from the record, where that has the class, else from the transformers `config.json` that lies
    beside the weights.

    Raises: UsageError where there is neither; UnsafeError for a config.json that names code to call; what
    opening a checkpoint raises; ExistsError, WriteError.
    """
    check_file_destination(destination, overwrite=False)
    with open_checkpoint(path, at_a_glance=True) as checkpoint:
        told = told_by(checkpoint)
        if told.model is not None:
            notes: list[str] = []
            document = _without_nulls({"model": told.model.to_json()}, "", notes)
            if told.inputs is not None and not told.inputs.needs_files:
                recorded = told.inputs.to_json()
                document["inputs"] = recorded.get("named") or recorded.get("positional", {})
            return write_config(destination, document, "the record", told.model.target, notes)
        text = _config_json(checkpoint)
    if text is None:
        raise UsageError(
            "neither a record nor a config.json beside the weights says what class it is",
            str(path),
            ("name it with ", Option("class", "PKG.MOD.NAME")),
        )
    document, notes = from_transformers(parse_object(text, CONFIG_NAME, str(path)), str(path))
    return write_config(destination, document, CONFIG_NAME, document["model"]["class"], notes)


def write_config(
    destination: Location, document: Mapping[str, Any], source: str, target: str, notes: list[str]
) -> MadeConfig:
    """Write the TOML `document`, which is checked as `load_config` checks it.

    Raises: UsageError; ExistsError, WriteError.
    """
    place = ConfigPlace(str(destination))
    parse_model(dict(document["model"]), place / "model")
    if "inputs" in document:
        parse_inputs(document["inputs"], place / "inputs", Path())
    text = toml_text(document, [f"Made from {source}.", *notes])
    write_file(destination, text.encode(), overwrite=False)
    return MadeConfig(destination, source, target, tuple(notes))


def from_transformers(config: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """The TOML of the model that a transformers `config.json` describes, and what to look at in it.

    Source: transformers `configuration_utils.py` (`to_json_file`): `model_type` names the class of the
    configuration, `architectures` that of the model; all else are the configuration's arguments.

    Raises: UsageError for a file of another kind, or of code that transformers does not have; UnsafeError
    where a key would have another meaning in a TOML: it could name code.
    """
    kind, names = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str):
        what = f"{CONFIG_NAME} is not of transformers: it has no model_type"
        raise UsageError(what, where, ("name the class with ", Option("class", "PKG.MOD.NAME")))
    if "auto_map" in config:
        what = f"the model's code is not in transformers: {CONFIG_NAME} names files of its own"
        raise UsageError(what, where, ("name the class with ", Option("class", "PKG.MOD.NAME")))
    for path, _ in walk(dict(config), once=False):
        if path and path[-1] in MARKERS:
            what = f"{CONFIG_NAME} has a key {path[-1]!r}, which would name code in a config"
            raise UnsafeError(what, where, "write the config by hand")
    notes: list[str] = []
    arguments = {key: value for key, value in config.items() if key not in _ABOUT_THE_FILE}
    arguments = _without_nulls(arguments, "", notes)
    name = names[0] if isinstance(names, list) and names else None
    if name is not None and not (isinstance(name, str) and name.isidentifier() and name.isascii()):
        raise UsageError(f"{name!r:.60} is not the name of a class", where, "write the config by hand")
    target = f"transformers.{name}" if name is not None else "transformers:AutoModel.from_config"
    document: dict[str, Any] = {
        "model": {"class": target, "args": {"config": {"_target_": _FOR_MODEL, **arguments}}}
    }
    if inputs := _inputs(config):
        document["inputs"] = inputs
    else:
        notes.append("There are no [inputs]: what forward() takes is not in config.json.")
    return document, notes


def _without_nulls(table: Mapping[str, Any], where: str, notes: list[str]) -> dict[str, Any]:
    """A table without what TOML cannot hold; its class has defaults for that."""
    kept: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{where}{key}"
        if isinstance(value, dict):
            kept[key] = _without_nulls(value, f"{name}.", notes)
        elif _has_null(value):
            notes.append(f"{name} is null, which TOML cannot say: the class takes its default")
        elif isinstance(value, int) and not -MAX_INT <= value < MAX_INT:
            notes.append(f"{name} has more than 64 bits, which TOML cannot say: the class takes its default")
        else:
            kept[key] = value
    return kept


def _has_null(value: Any) -> bool:
    return value is None or (isinstance(value, list) and any(map(_has_null, value)))


def _inputs(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model of text, or of images, is run on."""

    def size(key: str, default: int) -> int:
        value = config.get(key, default)
        return value if isinstance(value, int) and 0 < value < 1 << 20 else default

    def tokens() -> dict[str, Any]:
        length = min(8, size("max_position_embeddings", 8))
        return {"shape": [1, length], "dtype": "int64", "low": 0, "high": size("vocab_size", 2)}

    if isinstance(config.get("vocab_size"), int):
        inputs = {"input_ids": tokens()}
        if config.get("is_encoder_decoder") is True:
            inputs["decoder_input_ids"] = tokens()
        return inputs
    if isinstance(config.get("image_size"), int):
        side = size("image_size", 32)
        return {"pixel_values": {"shape": [1, size("num_channels", 3), side, side]}}
    return {}


def _config_json(checkpoint: Checkpoint) -> bytes | None:
    """The config.json in the folder of the weights.

    Raises: LimitError; what reading raises.
    """
    for held in checkpoint.held:
        if isinstance(held, InputFolder):
            return _read(held)
    if isinstance(checkpoint.path, Path):
        folder = LocalFolder(checkpoint.path.parent)
        try:
            return _read(folder)
        finally:
            folder.close()
    return None


def _read(folder: InputFolder) -> bytes | None:
    if CONFIG_NAME not in folder.names:
        return None
    with folder.open(CONFIG_NAME) as file:
        if file.size_bytes > MAX_CONFIG_JSON_BYTES:
            cap = "MAX_CONFIG_JSON_BYTES"
            raise LimitError(cap, MAX_CONFIG_JSON_BYTES, file.size_bytes, f"{folder.path}: {CONFIG_NAME}")
        return bytes(file.read_at(0, file.size_bytes))
