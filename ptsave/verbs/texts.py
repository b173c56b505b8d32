"""Beside tensors: texts (`--metadata`), values that records keep, files in the folder."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.nodes import TensorEntry
from ptsave.core.record import KEY
from ptsave.errors import Option, Text, UsageError
from ptsave.formats.writers import Writer

RESERVED = (KEY, "format")
"""Keys of a safetensors file's `__metadata__` that every writer makes itself."""

_COMPANION = re.compile(
    r"(?:(?:generation_|adapter_|quantize_|quantization_)?config|model_index|"
    r"(?:pre|image_|video_|feature_)?processor_config|preprocessor_config|"
    r"added_tokens|special_tokens_map|tokenizer(?:_config)?|vocab|hparams|trainer_state)\.json"
    r"|chat_template\.(?:json|jinja)|merges\.txt|vocab\.txt|hparams\.yaml|"
    r"(?:tokenizer|spiece|sentencepiece(?:\.bpe)?)\.model|[\w.-]+\.tiktoken|(?:modeling|configuration)_\w+\.py"
)
"""Files that a loader of the weights reads beside them.

Source: transformers `utils/__init__.py` and `tokenization_utils_base.py` (names of files); diffusers
`model_index.json`; Lightning's `hparams.yaml`.
"""


def parse_metadata(given: Sequence[str]) -> dict[str, str]:
    """The texts of `--metadata KEY=VALUE`, split at the first `=`.

    Raises: UsageError.
    """
    texts: dict[str, str] = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not (key and equals):
            hint = ("for example ", Option("metadata", "license=MIT"))
            raise UsageError(f"{item!r} is not KEY=VALUE", Option("metadata"), hint)
        if key in texts:
            raise UsageError(f"{key!r} is given twice", Option("metadata"), "give one value for each key")
        texts[key] = text
    return check_metadata(texts)


def check_metadata(texts: Mapping[Any, Any]) -> dict[str, str]:
    """Insist that each of `texts` is one that a file can hold beside its tensors.

    Raises: UsageError.
    """
    for key, text in texts.items():
        if not isinstance(key, str) or not isinstance(text, str):
            what = f"{key!r}: {text!r:.40} is not a text"
            raise UsageError(what, Option("metadata"), "spell keys and values as texts")
        if key in RESERVED:
            raise UsageError(f"{key!r} is written by ptsave", Option("metadata"), "choose another key")
        try:
            f"{key}{text}".encode()
        except UnicodeEncodeError:
            raise UsageError(f"{key!r} is no Unicode text", Option("metadata"), "spell it in UTF-8") from None
    return dict(texts)


def check_holds(target: Writer, texts: Mapping[str, str], names: Collection[str], *, record: bool) -> None:
    """Insist that `target` has a place for `texts`, which is the record's in all formats but safetensors.

    Raises: UsageError.
    """
    if not texts:
        return
    why: Text = ""
    if not target.keeps_record:
        why = f"{target.name} has no place for it"
    elif not (record or target.keeps_texts):
        why = (f"{target.name} keeps it in the record, which ", Option("no_record", True), " leaves out")
    if why:
        words = why if isinstance(why, tuple) else (why,)
        raise UsageError(
            (Option("metadata"), " would not be used: ", *words), "", ("leave ", Option("metadata"), " out")
        )
    if taken := [key for key in texts if key in names]:
        what = f"{taken[0]!r} is the name of a tensor"
        raise UsageError(what, Option("metadata"), "choose another key: safetensors would take it for a tie")


def lost(target: Writer, texts: Mapping[str, str], *, record: bool) -> list[str]:
    """A line that names the source's texts where `target` has no place for them."""
    keys = [key for key in texts if key not in RESERVED]
    if not keys or (target.keeps_record and (record or target.keeps_texts)):
        return []
    return [f"left out the metadata {', '.join(keys)}: {target.name} has no place for it without a record"]


def with_kept_values(root: Any, kept: Any) -> Any:
    """The flat tree `root` with the plain values that `--extras keep` put into the record, by their names.

    What was no plain value (an object, bytes) stays in the record: JSON only describes it.
    """
    if not isinstance(kept, dict) or not isinstance(root, dict):
        return root
    if not all(isinstance(leaf, TensorEntry) for leaf in root.values()):
        return root
    values = {name: value for name, value in kept.items() if name not in root and _is_itself(value)}
    return type(root)({**root, **values}) if values else root


def _is_itself(value: Any) -> bool:
    """Whether a value in JSON is what was kept there, and not a description of it."""
    if isinstance(value, str):
        return not value.startswith("torch.") and value not in ("nan", "inf", "-inf")
    if isinstance(value, list):
        return all(map(_is_itself, value))
    return value is None or isinstance(value, (bool, int, float)) or value == {}


def left_beside(sources: Sequence[Checkpoint], destination: Location, target: Writer) -> list[str]:
    """The names of files in the sources' folders that loaders read with the weights, and that no conversion
    copies; less those that the destination's folder has."""
    place = destination if target.is_folder else destination.parent
    there = set(_names_in(place))
    found: dict[str, None] = {}
    for source in sources:
        names = source.siblings
        if not names and isinstance(source.path, Path) and source.path.is_file():
            names = _names_in(source.path.parent)
        found.update((name, None) for name in names if _COMPANION.fullmatch(name) and name not in there)
    return sorted(found)


def _names_in(folder: Location) -> list[str]:
    if isinstance(folder, Path):
        with suppress(OSError):
            return [path.name for path in folder.iterdir()]
    return []
