"""Credentials that may do little: what they suffice for works, and errors name the right that is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from ptsave.errors import ExistsError, OutOfReachError, WriteError
from ptsave.formats import open_checkpoint
from ptsave.storage.opening import check_folder_destination, replacing_file, write_file
from ptsave.storage.upload.store import UploadStore
from tests.servers.permissions import only
from tests.servers.stores import Store
from tests.storage.upload.objects import KIB, LARGE, PART_BYTES, address, content, fill, left, scheme
from tests.support import Command

WEIGHTS = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
RIGHTS = {
    "s3": {
        "get": "s3:GetObject",
        "list": "s3:ListBucket",
        "put": "s3:PutObject",
        "delete": "s3:DeleteObject",
    },
    "gs": {"get": "objects.get", "list": "objects.list", "put": "objects.create"},
    "az": {"get": "read (r)", "list": "list (l)", "put": "write (w)"},
}


@pytest.fixture(autouse=True)
def _environment(each: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in each.env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(UploadStore, "min_part_bytes", PART_BYTES)
    monkeypatch.setattr(UploadStore, "part_unit_bytes", KIB)


def right(store: Store, name: str) -> str:
    return RIGHTS[scheme(store)][name]


@pytest.mark.parametrize("name", ["model.safetensors", "dir/model", "dir/model.bin::x.safetensors"])
def test_who_may_get_reads_a_file(name: str, each: Store) -> None:
    each.put(name, save(WEIGHTS))
    with each.server.faulty(only(each, "get")), open_checkpoint(f"{each.address}/{name}") as found:
        assert found.tensors.keys() == WEIGHTS.keys()


def test_who_may_get_reads_shards_by_their_index(each: Store, ptsave_here: Command, tmp_path: Path) -> None:
    named = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for tensor, name in named.items():
        each.put(f"dir/{name}", save({tensor: WEIGHTS[tensor]}))
    index = f"{each.address}/dir/model.safetensors.index.json"
    each.put("dir/model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": named}).encode())
    with each.server.faulty(only(each, "get")):
        ptsave_here("verify", index)
        ptsave_here("convert", index, tmp_path / "model.pt")
        with pytest.raises(OutOfReachError) as caught:
            open_checkpoint(f"{each.address}/dir/")
    assert right(each, "list") in str(caught.value.hint)


def test_a_refused_read_names_the_right(each: Store) -> None:
    each.put("model.safetensors", save(WEIGHTS))
    with each.server.faulty(only(each)), pytest.raises(OutOfReachError) as caught:
        open_checkpoint(f"{each.address}/model.safetensors")
    assert right(each, "get") in str(caught.value.hint)


def test_who_may_put_creates_an_object_and_replaces_none(each: Store) -> None:
    where = address(f"{each.address}/m")
    with each.server.faulty(only(each, "put")):
        write_file(where, b"mine")
        for overwrite in (False, True):
            with pytest.raises(ExistsError, match="may not read what it is"):
                write_file(where, b"another's", overwrite=overwrite)
    assert each.get("m") == b"mine"


def test_who_may_put_sends_parts(each: Store) -> None:
    """Google's parts are objects, which who joins them has to read."""
    data = content(LARGE)
    may_read_parts = ["get", "delete"] if scheme(each) == "gs" else []
    with (
        each.server.faulty(only(each, "put", *may_read_parts)),
        replacing_file(address(f"{each.address}/m"), len(data)) as output,
    ):
        fill(output, data)
    assert each.get("m") == data
    assert left(each) == []
    if may_read_parts:
        with (
            each.server.faulty(only(each, "put")),
            pytest.raises(WriteError) as caught,
            replacing_file(address(f"{each.address}/n"), len(data)) as output,
        ):
            fill(output, data)
        assert right(each, "get") in str(caught.value.hint)
        assert {name.split("/")[-1] for name in each.leftovers()} == {"mark"}, "no byte was sent in vain"


def test_a_refused_write_names_the_right(each: Store) -> None:
    with each.server.faulty(only(each, "get", "list")), pytest.raises(WriteError) as caught:
        write_file(address(f"{each.address}/m"), b"mine")
    assert right(each, "put") in str(caught.value.hint)
    with each.server.faulty(only(each, "get", "put")), pytest.raises(WriteError) as caught:
        check_folder_destination(address(f"{each.address}/folder"))
    assert right(each, "get" if scheme(each) == "gs" else "list") in str(caught.value.hint)
