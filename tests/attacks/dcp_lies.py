"""Distributed checkpoints whose metadata lies or leads out of the folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import torch_files as tf
from .pickles import Call, Name, New, Raw, dump
from .registry import DESCRIBED, REFUSED, SHOWN, add, attack


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
    add(f"dcp_{_name}", "dcp_lies", _build, *TOLERATED_DCP.get(_name, (REFUSED,)))


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
