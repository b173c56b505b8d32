"""Folders whose index or metadata lies, or leads out of the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import torch_files as tf
from .registry import REFUSED, SHOWN, add, attack

SHARD = tf.SHARD


def secret(folder: Path) -> Path:
    """A sound checkpoint beside the folder, which the folder may not reach."""
    path = folder / "secret.safetensors"
    path.write_bytes(tf.PLAIN_SAFETENSORS)
    return path


def index(weight_map: Any, **more: Any) -> str:
    return json.dumps({"metadata": {"total_size": 16}, "weight_map": weight_map} | more)


INDEXES: dict[str, str] = {
    "parent": index({"w": "../secret.safetensors"}),
    "parent_in_the_middle": index({"w": "x/../../secret.safetensors"}),
    "subfolder": index({"w": "sub/" + SHARD}),
    "dot_slash": index({"w": "./" + SHARD}),
    "absolute": index({"w": "/etc/hostname"}),
    "backslash": index({"w": "..\\secret.safetensors"}),
    "drive": index({"w": "C:\\secret.safetensors"}),
    "url": index({"w": "https://127.0.0.1/x.safetensors"}),
    "home": index({"w": "~/secret.safetensors"}),
    "nul": index({"w": SHARD + "\0"}),
    "empty_name": index({"w": ""}),
    "dot": index({"w": "."}),
    "dot_dot": index({"w": ".."}),
    "itself": index({"w": "model.safetensors.index.json"}),
    "missing_shard": index({"w": "model-00009-of-00001.safetensors"}),
    "missing_tensor": index({"w": SHARD, "v": SHARD}),
    "case_of_the_shard": index({"w": SHARD.upper()}),
    "very_long_name": index({"w": "n" * 10_000}),
    "lone_surrogate": index({"w": "\ud800.safetensors"}),
    "escapes": index({"w": "\x1b[31mred.safetensors"}),
    "value_is_a_number": index({"w": 1}),
    "value_is_null": index({"w": None}),
    "value_is_a_list": index({"w": [SHARD]}),
    "map_is_a_list": index([["w", SHARD]]),
    "map_is_null": index(None),
    "map_is_missing": json.dumps({"metadata": {}}),
    "map_is_empty": index({}),
    "is_a_list": "[]",
    "is_text": '"x"',
    "is_empty": "",
    "is_not_json": "{",
    "duplicate_tensor": f'{{"weight_map":{{"w":"other.safetensors","w":"{SHARD}"}}}}',
    "duplicate_map": f'{{"weight_map":{{}},"weight_map":{{"w":"{SHARD}"}}}}',
    "has_a_bom": "\ufeff" + index({"w": SHARD}),
    "number_of_5000_digits": '{"metadata":{"total_size":'
    + "9" * 5000
    + f'}},"weight_map":{{"w":"{SHARD}"}}}}',
    "total_size_lies": index({"w": SHARD}, metadata={"total_size": 17}),
    "total_size_is_text": index({"w": SHARD}, metadata={"total_size": "\x1b[2J"}),
    "total_size_is_negative": index({"w": SHARD}, metadata={"total_size": -1}),
    "metadata_is_a_list": index({"w": SHARD}, metadata=[1]),
    "metadata_is_nested": index({"w": SHARD}, metadata={"a": [[[[{"b": "\x1b[31m"}]]]]}),
}

TOLERATED_INDEXES = {
    "has_a_bom",
    "total_size_lies",
    "total_size_is_text",
    "total_size_is_negative",
    "metadata_is_a_list",
    "metadata_is_nested",
    "number_of_5000_digits",
    "map_is_empty",
}


def _index_maker(text: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        secret(folder)
        return tf.sharded(folder, text)

    return build


for _name, _text in INDEXES.items():
    _outcomes = (REFUSED, SHOWN) if _name in TOLERATED_INDEXES else (REFUSED,)
    add(f"index_{_name}", "folders", _index_maker(_text), *_outcomes)


@attack(REFUSED, says="outside")
def index_file_itself_names_its_parent(folder: Path) -> Path:
    """The same, with the index file named in place of its folder."""
    secret(folder)
    home = tf.sharded(folder, index({"w": "../secret.safetensors"}))
    return home / "model.safetensors.index.json"


@attack(REFUSED, says="out of its folder")
def shard_is_a_symlink_out(folder: Path) -> Path:
    home = tf.sharded(folder, {"w": SHARD}, {})
    (home / SHARD).symlink_to(secret(folder))
    return home


@attack(REFUSED)
def shard_is_a_symlink_to_a_device(folder: Path) -> Path:
    home = tf.sharded(folder, {"w": SHARD}, {})
    (home / SHARD).symlink_to("/dev/zero")
    return home


@attack(REFUSED)
def shard_is_a_symlink_to_itself(folder: Path) -> Path:
    home = tf.sharded(folder, {"w": SHARD}, {})
    (home / SHARD).symlink_to(home / SHARD)
    return home


@attack(REFUSED)
def index_is_a_symlink_out(folder: Path) -> Path:
    home = tf.sharded(folder)
    name = home / "model.safetensors.index.json"
    outside = folder / "outside.json"
    name.rename(outside)
    name.symlink_to(outside)
    return home


@attack(REFUSED)
def shard_is_a_fifo(folder: Path) -> Path:
    """Opening it would wait for a writer that never comes."""
    home = tf.sharded(folder, {"w": SHARD}, {})
    os.mkfifo(home / SHARD)
    return home


@attack(REFUSED)
def index_is_a_fifo(folder: Path) -> Path:
    home = tf.sharded(folder)
    name = home / "model.safetensors.index.json"
    name.unlink()
    os.mkfifo(name)
    return home


@attack(REFUSED)
def shard_is_a_directory(folder: Path) -> Path:
    home = tf.sharded(folder, {"w": SHARD}, {})
    (home / SHARD).mkdir()
    return home


@attack(REFUSED, SHOWN)
def shard_is_a_pickle(folder: Path) -> Path:
    """An index of safetensors files may not smuggle another format in."""
    return tf.sharded(folder, {"w": SHARD}, {SHARD: tf.pt({"w": tf.tensor()})})


@attack(REFUSED)
def shard_is_corrupt(folder: Path) -> Path:
    return tf.sharded(folder, {"w": SHARD}, {SHARD: tf.PLAIN_SAFETENSORS[:-1]})


@attack(REFUSED)
def shard_is_an_index(folder: Path) -> Path:
    return tf.sharded(folder, {"w": SHARD}, {SHARD: index({"w": SHARD}).encode()})


def two_shards(first: bytes, second: bytes, weight_map: dict[str, str]) -> Callable[[Path], Path]:
    return lambda folder: tf.sharded(folder, weight_map, {"s1.safetensors": first, "s2.safetensors": second})


def shard(*names: str) -> bytes:
    offsets = ((name, (16 * i, 16 * i + 16)) for i, name in enumerate(names))
    return tf.safetensors({n: tf.info(offsets=o) for n, o in offsets}, tf.FOUR * len(names))


add(
    "shards_swapped",
    "folders",
    two_shards(shard("a"), shard("b"), {"a": "s2.safetensors", "b": "s1.safetensors"}),
    REFUSED,
)
add(
    "tensor_in_two_shards",
    "folders",
    two_shards(shard("a", "b"), shard("b"), {"a": "s1.safetensors", "b": "s2.safetensors"}),
    REFUSED,
    SHOWN,
)
add(
    "shard_with_an_unlisted_tensor",
    "folders",
    two_shards(shard("a", "x"), shard("b"), {"a": "s1.safetensors", "b": "s2.safetensors"}),
    REFUSED,
    SHOWN,
)
add(
    "shard_that_nobody_lists",
    "folders",
    two_shards(shard("a"), shard("b"), {"a": "s1.safetensors"}),
    REFUSED,
    SHOWN,
)
add(
    "shard_where_case_differs",
    "folders",
    two_shards(shard("a"), shard("b"), {"a": "s1.safetensors", "b": "S2.safetensors"}),
    REFUSED,
)


@attack(REFUSED, SHOWN)
def two_indexes_that_differ(folder: Path) -> Path:
    """Which of the two is the model?"""
    home = tf.sharded(folder)
    (home / "other.safetensors.index.json").write_text(index({"v": SHARD}))
    return home


@attack(REFUSED, SHOWN)
def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@attack(REFUSED)
def folder_of_other_things(folder: Path) -> Path:
    home = folder / "other"
    home.mkdir()
    (home / "notes.txt").write_text("hello")
    return home
