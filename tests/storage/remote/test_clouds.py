"""Google's store and Azure's keep the same promises in reading; each is asked as itself in its own tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from ptsave.errors import MissingFileError, UnreadableError
from ptsave.formats import open_checkpoint
from tests.servers import faults
from tests.servers.stores import Store
from tests.storage.remote.reading import data, same, values
from tests.support import Command

LARGE = {f"{i}": np.full(100_000, i, np.float32) for i in range(8)}
SECRETS = ("the-secret-of-the-tests", "dGhlLXNlY3JldC1vZi10aGUtdGVzdHM", "AccountKey", "sig=", "private_key")


@pytest.fixture(params=["gcs", "azure"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A fresh bucket on each server in turn, which the environment leads to."""
    store: Store = request.getfixturevalue(request.param)
    for name, text in store.env.items():
        monkeypatch.setenv(name, text)
    return store


def test_a_header_takes_one_request_and_values_are_read(cloud: Store) -> None:
    cloud.put("runs/a b+c.safetensors", save(LARGE))
    where = f"{cloud.address}/runs/a b+c.safetensors"
    with open_checkpoint(where) as checkpoint:
        assert checkpoint.tensors.keys() == LARGE.keys()
        assert cloud.server.count() == 1
    assert same(values(where), LARGE)


def test_a_large_header_takes_two_requests(cloud: Store) -> None:
    tensors = {f"layers.{i}.a.rather.long.name.of.a.weight": np.zeros(4, np.float32) for i in range(2000)}
    cloud.put("a.safetensors", save(tensors))
    with open_checkpoint(f"{cloud.address}/a.safetensors") as checkpoint:
        assert len(checkpoint.tensors) == 2000
    assert cloud.server.count() == 2


def test_a_prefix_is_a_folder(cloud: Store) -> None:
    weight_map = {}
    for i, (name, array) in enumerate(LARGE.items(), 1):
        weight_map[name] = f"model-{i:05d}-of-00008.safetensors"
        cloud.put(f"run/{weight_map[name]}", save({name: array}))
    cloud.put("run/model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())
    cloud.put("run/other/model.safetensors", save({"x": np.zeros(2, np.float32)}))
    cloud.put("running/model.safetensors", save({"y": np.zeros(2, np.float32)}))
    for where in ("run", "run/", "run/model.safetensors.index.json"):
        assert same(values(f"{cloud.address}/{where}"), LARGE)
    assert list(values(f"{cloud.address}/run/other")) == ["x"]
    cloud.server.reset()
    with open_checkpoint(f"{cloud.address}/run/") as checkpoint:
        assert checkpoint.tensors.keys() == LARGE.keys()
    assert cloud.server.count() == 1 + 1 + 8


def test_the_bucket_itself_is_a_folder(cloud: Store) -> None:
    cloud.put("model.safetensors", save(LARGE))
    assert same(values(cloud.address), LARGE)
    assert same(values(cloud.address + "/"), LARGE)


def test_an_object_that_was_replaced_is_refused(cloud: Store) -> None:
    cloud.put("a.safetensors", save(LARGE))
    with open_checkpoint(f"{cloud.address}/a.safetensors") as checkpoint:
        cloud.put("a.safetensors", save({name: array + 1 for name, array in LARGE.items()}))
        with pytest.raises(UnreadableError, match="changed"):
            data(checkpoint.tensors["7"])


def test_what_passes_is_tried_again(cloud: Store) -> None:
    cloud.put("a.safetensors", save(LARGE))
    with cloud.server.faulty(faults.status(503), times=3):
        assert same(values(f"{cloud.address}/a.safetensors"), LARGE)
    cloud.put("run/model.safetensors", save(LARGE))
    with cloud.server.faulty(faults.status(429, retry_after_s=0), times=2):
        assert same(values(f"{cloud.address}/run/"), LARGE)
    with cloud.server.faulty(faults.cut(1000), times=3):
        assert same(values(f"{cloud.address}/a.safetensors"), LARGE)


def test_what_is_missing_is_an_error(cloud: Store) -> None:
    cloud.put("a.safetensors", save(LARGE))
    for where in (f"{cloud.address}/none.pt", f"{cloud.address}/none/", f"{cloud.address}-none/a.pt"):
        with pytest.raises(MissingFileError, match="no such object"):
            open_checkpoint(where)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_says_what_to_check(cloud: Store, status: int) -> None:
    cloud.put("a.safetensors", save(LARGE))
    with cloud.server.faulty(faults.status(status)), pytest.raises(MissingFileError) as caught:
        open_checkpoint(f"{cloud.address}/a.safetensors")
    assert caught.value.what.startswith("no permission to read")
    assert "AZURE_STORAGE" in caught.value.hint or "gcloud" in caught.value.hint


def test_an_empty_object_is_no_checkpoint(cloud: Store) -> None:
    cloud.put("a.safetensors", b"")
    with pytest.raises(UnreadableError, match="empty"):
        open_checkpoint(f"{cloud.address}/a.safetensors")


@pytest.mark.slow
def test_commands_show_no_secret(ptsave: Command, cloud: Store, tmp_path: Path) -> None:
    cloud.put("a.safetensors", save(LARGE))
    where, report, env = f"{cloud.address}/a.safetensors", tmp_path / "report.json", cloud.env
    done = [
        ptsave("verify", where, "--checks", "bytes", "--report", report, "-v", env=env),
        ptsave("convert", where, tmp_path / "out.pt", "-v", "--json", env=env),
        ptsave("inspect", f"{cloud.address}/none", "-v", code=3, env=env),
    ]
    with cloud.server.faulty(faults.status(403)):
        done.append(ptsave("inspect", where, "-v", code=3, env=env))
    shown = "".join(one.stdout + one.stderr for one in done) + report.read_text()
    assert not [secret for secret in SECRETS if secret in shown]
