"""Which file of a folder its checkpoint begins with: the one that transformers would take.

Source: transformers modeling_utils.py (`_get_resolved_checkpoint_files`), by `transformers_weights` in
the config, else by the names in utils/__init__.py; diffusers utils/constants.py.
"""

from __future__ import annotations

import re

from ptsave.core.strict_json import parse_object
from ptsave.errors import LimitError, MissingFileError
from ptsave.storage.files import InputFolder

MAX_CONFIG_BYTES = 16 * 1024**2
"""Cap on a model's config.json."""

INDEX = re.compile(r".+\.(?P<suffix>safetensors|bin)\.index(?:\.(?P<variant>[\w-]+))?\.json")
"""An index's name: `model.safetensors.index.json`, or a variant's `model.safetensors.index.fp16.json`."""

_PREFERRED = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
)
CONFIG = "config.json"
"""A model's config, which is read for the name of its weights alone."""
_KEY = "transformers_weights"
_TAKEN_BY_CONFIG = (".safetensors", ".safetensors.index.json")


def main_file(folder: InputFolder) -> str | None:
    """The file to begin with: the one that transformers would take, else an index of another name.

    Raises: as `file_of_config`.
    """
    named = file_of_config(folder)
    preferred = [name for name in _PREFERRED if name in folder.names]
    others = sorted(indexes(folder), key=lambda i: (i["suffix"] != "safetensors", i["variant"] is not None))
    return next(iter([*([named] if named else []), *preferred, *(index[0] for index in others)]), None)


def indexes(folder: InputFolder) -> list[re.Match[str]]:
    """The names of the indexes in `folder`."""
    return [match for name in folder.names if (match := INDEX.fullmatch(name))]


def file_of_config(folder: InputFolder) -> str | None:
    """The file that the model's config.json names, which transformers takes before all others.

    Raises: MissingFileError where it is no file of the folder; LimitError; CorruptError where the config may
    say two things.
    """
    if CONFIG not in folder.names:
        return None
    if _KEY not in folder.memo:
        folder.memo[_KEY] = _read_config(folder)
    found = folder.memo[_KEY]
    return found if isinstance(found, str) else None


def _read_config(folder: InputFolder) -> str | None:
    with folder.open(CONFIG) as file:
        if file.size_bytes > MAX_CONFIG_BYTES:
            raise LimitError("config_bytes", MAX_CONFIG_BYTES, file.size_bytes, str(file.path))
        data = file.read_at(0, file.size_bytes)
        if _KEY.encode() not in data and rb"\u" not in data:  # escapes may spell the key
            return None
        name = parse_object(data, "the model's config", str(file.path)).get(_KEY)
        where = str(file.path)
    if not isinstance(name, str) or not (name.endswith(_TAKEN_BY_CONFIG) or name == "adapter_model.bin"):
        return None  # there is none, or transformers refuses it
    if name not in folder.names:
        what = f"the model's config says that its weights are in {name[:200]!r}, which is not in the folder"
        raise MissingFileError(what, where, "the download did not finish; or name that file, where it is")
    return name
