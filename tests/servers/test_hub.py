"""The stand-in of the Hub is one to the real huggingface_hub: it lists, downloads and commits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from tests.servers.hub import PART_BYTES, TOKEN, Hub

BIG = bytes(range(256)) * 100


def test_reading(hub: Hub, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": BIG} | {f"deep/{n:03d}.txt": b"" for n in range(250)}
    commit = hub.create("me/model", files)
    api = HfApi(endpoint=hub.server.url, token=TOKEN)
    info = api.model_info("me/model")
    assert info.sha == commit
    assert sorted(file.rfilename for file in info.siblings or ()) == sorted(files)
    assert sorted(api.list_repo_files("me/model", revision=commit[:10])) == sorted(files)
    assert {entry.path for entry in api.list_repo_tree("me/model")} == {
        "config.json",
        "model.safetensors",
        "deep",
    }
    (file,) = api.get_paths_info("me/model", ["model.safetensors"])
    assert (file.size, file.lfs and file.lfs.size) == (len(BIG), len(BIG))
    for name in ("config.json", "model.safetensors"):
        path = hf_hub_download(
            "me/model", name, endpoint=hub.server.url, token=TOKEN, cache_dir=tmp_path, etag_timeout=20
        )
        assert Path(path).read_bytes() == files[name]
        assert Path(path).parent.name == commit
    assert hub.cdn.count("^GET") == 1
    assert not any("authorization" in exchange.headers for exchange in hub.cdn.log)
    with pytest.raises(RevisionNotFoundError):
        api.model_info("me/model", revision="nowhere")


def test_who_may_read(hub: Hub, tmp_path: Path) -> None:
    hub.create("me/private", {"a": b"a"}, is_private=True)
    hub.create("me/gated", {"a": b"a"}, is_gated=True)
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.server.url, token=False).model_info("me/private")

    def download(repository: str, token: str | bool) -> None:
        hf_hub_download(repository, "a", endpoint=hub.server.url, token=token, cache_dir=tmp_path)

    for token in (False, TOKEN):
        with pytest.raises(GatedRepoError):
            download("me/gated", token)
    hub.tokens[TOKEN].add("me/gated")
    download("me/gated", TOKEN)
    download("me/private", TOKEN)


COMMITS = f"""
import os
from huggingface_hub import CommitOperationAdd, HfApi, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError

api = HfApi()
head = api.model_info("me/model").sha
add = [
    CommitOperationAdd("config.json", b"{{}}"),
    CommitOperationAdd("a/model.safetensors", bytes(range(256)) * 100),
    CommitOperationAdd("a/large.safetensors", os.urandom({PART_BYTES} + 1000)),
]
done = api.create_commit("me/model", add, commit_message="files", parent_commit=head)
print(done.oid)
try:
    late = [CommitOperationAdd("late.txt", b"late")]
    api.create_commit("me/model", late, commit_message="late", parent_commit=head)
except HfHubHTTPError as error:
    print(error.response.status_code)
api.create_commit("me/model", [CommitOperationDelete("a/")], commit_message="less", parent_commit=done.oid)
"""


def test_committing(hub: Hub) -> None:
    hub.create("me/model", {"README.md": b"# Model\n"})
    done = subprocess.run(
        [sys.executable, "-c", COMMITS], env=os.environ | hub.env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    oid, status = done.stdout.split()
    assert status == "412"
    repository = hub.repositories["me/model"]
    assert {path: len(data) for path, data in repository.commits[oid].items()} == {
        "README.md": 8,
        "config.json": 2,
        "a/model.safetensors": len(BIG),
        "a/large.safetensors": PART_BYTES + 1000,
    }
    assert sorted(repository.files) == ["README.md", "config.json"]
    assert hub.leftovers() == []
    assert hub.cdn.count("^PUT") == 3
