"""Folders whose index or metadata lies, or leads out of the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import torch_files as tf
from .pickles import Call, Name, New, Raw, dump
from .registry import DESCRIBED, REFUSED, SHOWN, add, attack

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


# Distributed checkpoints


def dcp_maker(**parts: Any) -> Callable[[Path], Path]:
    return lambda folder: tf.dcp(folder, tf.dcp_metadata(**parts))


def placed(**place: Any) -> dict[Any, Any]:
    return {tf.dcp_index(): tf.dcp_place(**place)}


LENGTH = len(tf.DCP_ITEM)
CHUNK = tf.dcp_chunk


def chunks(size: Any, *made: Any) -> dict[str, Any]:
    return {"w": tf.dcp_tensor(size, list(made))}


DCP: dict[str, Callable[[Path], Path]] = {
    "path_parent": dcp_maker(places=placed(path="../secret.distcp")),
    "path_absolute": dcp_maker(places=placed(path="/etc/passwd", length=16)),
    "path_subfolder": dcp_maker(places=placed(path="sub/__0_0.distcp")),
    "path_nul": dcp_maker(places=placed(path="__0_0.distcp\0")),
    "path_empty": dcp_maker(places=placed(path="")),
    "path_is_a_number": dcp_maker(places=placed(path=7)),
    "path_is_none": dcp_maker(places=placed(path=Raw(b"N"))),
    "path_is_the_metadata": dcp_maker(places=placed(path=".metadata")),
    "path_missing": dcp_maker(places=placed(path="__9_9.distcp")),
    "offset_beyond": dcp_maker(places=placed(offset=10**6)),
    "offset_negative": dcp_maker(places=placed(offset=-1)),
    "offset_one_off": dcp_maker(places=placed(offset=1, length=LENGTH - 1)),
    "offset_2_64": dcp_maker(places=placed(offset=2**64)),
    "offset_is_true": dcp_maker(places=placed(offset=True)),
    "offset_is_text": dcp_maker(places=placed(offset="0")),
    "length_beyond": dcp_maker(places=placed(length=LENGTH + 1)),
    "length_short": dcp_maker(places=placed(length=LENGTH - 1)),
    "length_zero": dcp_maker(places=placed(length=0)),
    "length_negative": dcp_maker(places=placed(length=-5)),
    "length_2_63": dcp_maker(places=placed(length=2**63)),
    "length_is_a_float": dcp_maker(places=placed(length=float(LENGTH))),
    "place_missing": dcp_maker(places={}),
    "place_is_text": dcp_maker(places={tf.dcp_index(): "__0_0.distcp"}),
    "place_of_another_tensor": dcp_maker(places={tf.dcp_index("v"): tf.dcp_place()}),
    "place_of_another_chunk": dcp_maker(places={tf.dcp_index("w", (2,)): tf.dcp_place()}),
    "place_key_is_text": dcp_maker(places={"w": tf.dcp_place()}),
    "places_is_a_list": dcp_maker(storage_data=[1]),
    "tensors_is_a_list": dcp_maker(state_dict_metadata=[1]),
    "tensor_is_text": dcp_maker(tensors={"w": "float32"}),
    "tensor_name_is_a_number": dcp_maker(tensors={3: tf.dcp_tensor()}),
    "size_larger_than_the_chunk": dcp_maker(tensors=chunks((5,), CHUNK())),
    "size_smaller_than_the_chunk": dcp_maker(tensors=chunks((3,), CHUNK())),
    "size_negative": dcp_maker(tensors=chunks((-4,), CHUNK())),
    "size_of_text": dcp_maker(tensors=chunks(("4",), CHUNK())),
    "size_2_63": dcp_maker(tensors=chunks((2**63,), CHUNK((0,), (2**63,)))),
    "chunk_offset_negative": dcp_maker(tensors=chunks((4,), CHUNK((-1,), (4,)))),
    "chunk_offset_beyond": dcp_maker(tensors=chunks((4,), CHUNK((1,), (4,)))),
    "chunk_size_negative": dcp_maker(tensors=chunks((4,), CHUNK((0,), (-4,)))),
    "chunk_rank_differs": dcp_maker(tensors=chunks((4,), CHUNK((0, 0), (4, 1)))),
    "chunk_of_true": dcp_maker(tensors=chunks((4,), CHUNK((False,), (4,)))),
    "chunk_is_text": dcp_maker(tensors=chunks((4,), "chunk")),
    "chunks_missing": dcp_maker(tensors=chunks((4,))),
    "chunks_overlap": dcp_maker(
        tensors=chunks((4,), CHUNK((0,), (4,)), CHUNK((2,), (2,))),
        places={
            tf.dcp_index("w", (0,), 0): tf.dcp_place(),
            tf.dcp_index("w", (2,), 1): tf.dcp_place(),
        },
    ),
    "chunks_twice_the_same": dcp_maker(tensors=chunks((4,), CHUNK(), CHUNK())),
    "chunks_leave_a_hole": dcp_maker(
        tensors=chunks((8,), CHUNK((0,), (4,)), CHUNK((5,), (3,))),
        places={
            tf.dcp_index("w", (0,), 0): tf.dcp_place(),
            tf.dcp_index("w", (5,), 1): tf.dcp_place(),
        },
    ),
    "item_has_another_dtype": dcp_maker(
        tensors={"w": tf.dcp_tensor(dtype=Name("torch", "int32"))},
    ),
    "item_is_wider": dcp_maker(tensors={"w": tf.dcp_tensor(dtype=Name("torch", "float64"))}),
    "dtype_unknown": dcp_maker(tensors={"w": tf.dcp_tensor(dtype=Name("torch", "quaternion"))}),
    "dtype_is_a_function": dcp_maker(tensors={"w": tf.dcp_tensor(dtype=Name("os", "system"))}),
    "dtype_is_text": dcp_maker(tensors={"w": tf.dcp_tensor(dtype="float32")}),
    "properties_missing": dcp_maker(
        tensors={"w": New(Name(tf.META, "TensorStorageMetadata"), state={"size": (4,), "chunks": [CHUNK()]})}
    ),
    "metadata_is_a_dict": lambda folder: tf.dcp(folder, {"state_dict_metadata": {}}),
    "metadata_is_empty": lambda folder: tf.dcp(folder, b""),
    "metadata_is_cut": lambda folder: tf.dcp(folder, dump(tf.dcp_metadata())[:-10]),
    "metadata_is_a_zip": lambda folder: tf.dcp(folder, tf.pt({})),
    "metadata_of_another_class": lambda folder: tf.dcp(folder, New(Name("a", "Metadata"), state={})),
    "metadata_without_state": lambda folder: tf.dcp(folder, New(Name(tf.META, "Metadata"))),
    "planner_path_is_a_number": dcp_maker(planner_data={"w": 7}),
    "planner_path_of_lists": dcp_maker(planner_data={"w": (["x"],)}),
    "planner_paths_collide": dcp_maker(
        tensors={"w": tf.dcp_tensor(), "v": tf.dcp_tensor()},
        places={tf.dcp_index("w"): tf.dcp_place(), tf.dcp_index("v"): tf.dcp_place()},
        planner_data={"w": ("x",), "v": ("x",)},
    ),
    "planner_path_through_a_tensor": dcp_maker(
        tensors={"w": tf.dcp_tensor(), "v": tf.dcp_tensor()},
        places={tf.dcp_index("w"): tf.dcp_place(), tf.dcp_index("v"): tf.dcp_place()},
        planner_data={"w": ("x",), "v": ("x", "y")},
    ),
    "planner_index_of_a_billion": dcp_maker(planner_data={"w": (10**9,)}),
    "planner_index_negative": dcp_maker(planner_data={"w": ("a", -1)}),
    "planner_path_deep": dcp_maker(planner_data={"w": tuple(["x"] * 5000)}),
    "planner_path_empty": dcp_maker(planner_data={"w": ()}),
}

TOLERATED_DCP = {
    name: (REFUSED, SHOWN)
    for name in DCP
    if name.startswith("planner_") or name in ("chunks_twice_the_same", "tensor_name_is_a_number")
}
"""A path in the planner's data only groups names; without sense it may be ignored."""
TOLERATED_DCP["dtype_is_a_function"] = (REFUSED, DESCRIBED)

for _name, _build in DCP.items():
    add(f"dcp_{_name}", "folders", _build, *TOLERATED_DCP.get(_name, (REFUSED,)))


@attack(REFUSED)
def dcp_item_is_cut(folder: Path) -> Path:
    return tf.dcp(folder, files={"__0_0.distcp": tf.DCP_ITEM[:-1]})


@attack(REFUSED)
def dcp_item_of_another_shape(folder: Path) -> Path:
    """The metadata says 4 elements, the item holds 2."""
    item = tf.pt(tf.tensor(size=(2,)))
    places = {tf.dcp_index(): tf.dcp_place(length=len(item))}
    return tf.dcp(folder, tf.dcp_metadata(places=places), {"__0_0.distcp": item})


@attack(REFUSED)
def dcp_item_is_not_a_tensor(folder: Path) -> Path:
    item = tf.pt({"w": 1})
    places = {tf.dcp_index(): tf.dcp_place(length=len(item))}
    return tf.dcp(folder, tf.dcp_metadata(places=places), {"__0_0.distcp": item})


@attack(REFUSED)
def dcp_file_is_a_symlink_out(folder: Path) -> Path:
    outside = folder / "outside.distcp"
    outside.write_bytes(tf.DCP_ITEM)
    home = tf.dcp(folder, files={})
    (home / "__0_0.distcp").symlink_to(outside)
    return home


@attack(REFUSED)
def dcp_metadata_is_a_symlink_out(folder: Path) -> Path:
    home = tf.dcp(folder)
    outside = folder / "outside.metadata"
    (home / ".metadata").rename(outside)
    (home / ".metadata").symlink_to(outside)
    return home


@attack(REFUSED)
def dcp_metadata_is_a_fifo(folder: Path) -> Path:
    home = tf.dcp(folder)
    (home / ".metadata").unlink()
    os.mkfifo(home / ".metadata")
    return home


@attack(REFUSED)
def dcp_metadata_is_a_directory(folder: Path) -> Path:
    home = tf.dcp(folder)
    (home / ".metadata").unlink()
    (home / ".metadata").mkdir()
    return home


@attack(REFUSED, DESCRIBED, says="os.system")
def dcp_reads_the_metadata_through_a_call(folder: Path) -> Path:
    size = Call(Name("os", "system"), ("x",))
    state = {"properties": None, "size": size, "chunks": []}
    return tf.dcp(folder, tf.dcp_metadata({"w": New(Name(tf.META, "TensorStorageMetadata"), state=state)}))
