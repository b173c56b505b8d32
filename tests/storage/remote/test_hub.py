"""Reading from the Hub: requests are counted at a stand-in that the real huggingface_hub knows as the Hub."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.numpy import save

from ptsave import verify
from ptsave.core.address import located
from ptsave.errors import PtsaveError, UnreadableError, UsageError
from ptsave.formats import open_checkpoint
from ptsave.storage.remote import hub as of_hub
from tests.servers.faults import header, status
from tests.servers.hub import TOKEN, Hub
from tests.servers.serving import Answer, Handler, Request
from tests.storage.remote.reading import data, same, values
from tests.support import Command

REPO = "owner/net"
LARGE = {f"layers.{i}.weight": np.full((64, 64), i, np.float32) for i in range(8)}
SMALL = {"weight": np.arange(6, dtype=np.float32)}


@pytest.fixture
def at_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The Hub of this process; its cache is empty."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.server.url)
    template = hub.server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def requests(hub: Hub) -> list[str]:
    return [f"{one.method} {one.target}" for server in (hub.server, hub.cdn) for one in server.log]


def shards(num: int) -> tuple[dict[str, bytes], dict[str, np.ndarray[Any, Any]]]:
    files, weight_map, tensors = {}, {}, {}
    for i in range(num):
        one = {f"layers.{i}.weight": np.full((64, 64), i, np.float32)}
        name = f"model-{i + 1:05d}-of-{num:05d}.safetensors"
        files[name] = save(one, {"format": "pt"})
        weight_map |= dict.fromkeys(one, name)
        tensors |= one
    index = {"metadata": {"total_size": num * 64 * 64 * 4}, "weight_map": weight_map}
    return files | {"model.safetensors.index.json": json.dumps(index).encode()}, tensors


def test_a_file_takes_the_request_of_its_commit_and_one(at_hub: Hub) -> None:
    commit = at_hub.create(REPO, {"model.safetensors": save(LARGE)})
    with open_checkpoint(f"hf://{REPO}/model.safetensors") as checkpoint:
        assert checkpoint.tensors.keys() == LARGE.keys()
        assert str(checkpoint.path) == f"hf://{REPO}@{commit}/model.safetensors"
    first, second = requests(at_hub)
    assert first == f"GET /{REPO}/resolve/main/model.safetensors"
    assert "signature" in second


def test_a_header_of_any_size_takes_two_requests_beyond_the_commit(at_hub: Hub) -> None:
    tensors = {f"layers.{i}.a.rather.long.name.of.a.weight": np.zeros(4, np.float32) for i in range(2000)}
    at_hub.create(REPO, {"model.safetensors": save(tensors)})
    with open_checkpoint(f"hf://{REPO}/model.safetensors") as checkpoint:
        assert len(checkpoint.tensors) == 2000
    assert len(requests(at_hub)) == 3


def test_values_are_read_at_the_commit_though_the_branch_moves(at_hub: Hub) -> None:
    at_hub.create(REPO, {"model.safetensors": save(LARGE)})
    with open_checkpoint(f"hf://{REPO}/model.safetensors") as checkpoint:
        other = {name: -array - 1 for name, array in LARGE.items()}
        at_hub.repositories[REPO].commit({"model.safetensors": save(other)})
        for name, entry in checkpoint.tensors.items():
            assert data(entry) == LARGE[name].tobytes()
    assert same(values(f"hf://{REPO}/model.safetensors"), other)


@pytest.mark.parametrize("revision", ["main", "v1", "refs/pr/1", "feature%2Fx", "COMMIT"])
def test_a_revision_is_a_branch_a_tag_or_a_commit(at_hub: Hub, revision: str) -> None:
    commit = at_hub.create(REPO, {"model.safetensors": save(LARGE), "x/model.safetensors": save(SMALL)})
    at_hub.repositories[REPO].refs |= {"v1": commit, "refs/pr/1": commit, "feature/x": commit}
    revision = revision.replace("COMMIT", commit)
    assert same(values(f"hf://{REPO}@{revision}/model.safetensors"), LARGE)
    assert same(values(f"hf://{REPO}@{revision}"), LARGE)
    assert same(values(f"hf://{REPO}@{revision}/x"), SMALL)


def test_a_small_file_comes_from_the_hub_itself(at_hub: Hub) -> None:
    at_hub.create(REPO, {"model.safetensors": save(SMALL)})
    assert same(values(f"hf://{REPO}/model.safetensors"), SMALL)
    assert len(requests(at_hub)) == 2


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["pytorch_model.bin", "diffusion_pytorch_model.safetensors"], "pytorch_model.bin"),
        (["config.json", "unet/model.safetensors", "adapter_model.safetensors"], "adapter_model.safetensors"),
    ],
)
def test_a_repository_alone_has_the_weights_that_transformers_takes(
    at_hub: Hub, names: list[str], taken: str
) -> None:
    files = {name: save({name: np.zeros(2, np.float32)}) for name in names}
    at_hub.create(REPO, files)
    assert list(values(f"hf://{REPO}")) == [taken]


def test_a_repository_takes_its_commit_and_its_list_and_one_for_each_file(at_hub: Hub) -> None:
    at_hub.create(REPO, {"model.safetensors": save(LARGE)})
    with open_checkpoint(f"hf://{REPO}") as checkpoint:
        assert checkpoint.tensors.keys() == LARGE.keys()
    assert len(requests(at_hub)) == 4  # commit, list, link, first block


@pytest.mark.slow
def test_a_folder_of_200_shards_takes_two_requests_a_shard(at_hub: Hub) -> None:
    files, tensors = shards(200)
    at_hub.create(REPO, files)
    with open_checkpoint(f"hf://{REPO}") as checkpoint:
        assert checkpoint.tensors.keys() == tensors.keys()
    lists = 1 + 3  # the commit, and pages of 100 files
    assert len(requests(at_hub)) == lists + 2 * (1 + 200)  # each has its link
    assert at_hub.server.count("GET .*/revision/") == 1
    assert at_hub.server.count("HEAD") == 0


def test_shards_of_many_tensors_come_with_their_header(at_hub: Hub) -> None:
    """The index says how long a header is, about."""
    files: dict[str, bytes] = {}
    weight_map = {}
    for shard in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        names = [f"layers.{shard[10]}.experts.{i}.down_proj.weight" for i in range(1000)]
        files[shard] = save({name: np.full((2, 64), 1, np.float32) for name in names}, {"format": "pt"})
        weight_map |= dict.fromkeys(names, shard)
    at_hub.create(
        REPO, files | {"model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode()}
    )
    with open_checkpoint(f"hf://{REPO}") as checkpoint:
        assert checkpoint.tensors.keys() == weight_map.keys()
    _, *shards = at_hub.cdn.log
    (length,) = {int.from_bytes(data[:8], "little") for data in files.values()}
    assert len(shards) == 2
    assert all(length < one.num_bytes_out <= length + 65536 for one in shards)


def test_an_index_leads_to_its_shards(at_hub: Hub) -> None:
    files, tensors = shards(3)
    at_hub.create(REPO, {f"sub/{name}": data for name, data in files.items()})
    assert same(values(f"hf://{REPO}/sub/model.safetensors.index.json"), tensors)
    assert same(values(f"hf://{REPO}/sub"), tensors)


def test_the_hint_names_the_folders_that_have_weights(at_hub: Hub) -> None:
    at_hub.create(
        REPO,
        {
            "model_index.json": b"{}",
            "scheduler/config.json": b"{}",
            "unet/diffusion_pytorch_model.safetensors": save(SMALL),
            "vae/diffusion_pytorch_model.safetensors": save(LARGE),
        },
    )
    with pytest.raises(PtsaveError) as caught:
        open_checkpoint(f"hf://{REPO}")
    assert caught.value.hint.startswith("'unet', 'vae' have weights: name one folder, for example hf://")
    assert same(values(f"hf://{REPO}/vae"), LARGE)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_the_verdict_covers_what_a_loader_could_take_from_the_repository(at_hub: Hub) -> None:
    at_hub.create(REPO, {"model.safetensors": save(LARGE)})
    assert verify(f"hf://{REPO}", checks="safe").is_yes
    at_hub.repositories[REPO].commit({"pytorch_model.bin": pickle.dumps({"a": Evil()}, 2)})
    assert same(values(f"hf://{REPO}"), LARGE)
    verdict = verify(f"hf://{REPO}", checks="safe")
    assert not verdict.is_yes
    assert "posix.system" in str(verdict.findings)
    assert verify(f"hf://{REPO}/model.safetensors", checks="safe").is_yes


def test_a_torch_file_takes_four_requests_and_its_commit(at_hub: Hub) -> None:
    file = io.BytesIO()
    torch.save({name: torch.from_numpy(array) for name, array in LARGE.items()}, file)
    at_hub.create(REPO, {"a.pt": file.getvalue()})
    with open_checkpoint(f"hf://{REPO}/a.pt") as checkpoint:
        assert checkpoint.tensors.keys() == LARGE.keys()
    assert len(requests(at_hub)) <= 5
    assert same(values(f"hf://{REPO}/a.pt"), LARGE)


def test_the_token_goes_to_the_hub_alone(at_hub: Hub) -> None:
    at_hub.create(REPO, {"model.safetensors": save(LARGE)}, is_private=True)
    assert same(values(f"hf://{REPO}/model.safetensors"), LARGE)
    assert all(one.headers.get("authorization") == f"Bearer {TOKEN}" for one in at_hub.server.log)
    assert at_hub.cdn.log
    assert not any("authorization" in one.headers for one in at_hub.cdn.log)


def test_the_token_is_found_in_its_file(at_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(TOKEN)
    at_hub.create(REPO, {"model.safetensors": save(LARGE)}, is_private=True)
    assert same(values(f"hf://{REPO}/model.safetensors"), LARGE)


def test_no_token_is_sent_where_the_user_says_so(at_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    at_hub.create(REPO, {"model.safetensors": save(SMALL)})
    assert same(values(f"hf://{REPO}/model.safetensors"), SMALL)
    assert not any("authorization" in one.headers for one in at_hub.server.log)


def refusal(where: str) -> PtsaveError:
    with pytest.raises(UnreadableError) as caught:
        open_checkpoint(where)
    error = caught.value
    assert not re.search(f"{TOKEN}|signature", f"{error} {error.hint}")
    return error


@pytest.mark.parametrize("path", ["", "/model.safetensors", "/folder"])
@pytest.mark.parametrize("has_token", [True, False])
def test_what_is_missing_is_told_apart(
    at_hub: Hub, path: str, has_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_token:
        monkeypatch.delenv("HF_TOKEN")
    at_hub.create(REPO, {"model.safetensors": save(SMALL)})
    error = refusal(f"hf://owner/none{path}")
    assert error.what == "no such repository, or a private one"
    assert ("hf auth login" in error.hint) != has_token
    error = refusal(f"hf://{REPO}@none{path}")
    assert error.what == "the repository has no such branch, tag or commit"
    error = refusal(f"hf://{REPO}/none{path}")
    assert error.what == "the repository has no such file at that commit"
    assert f"hf://{REPO}" in error.hint


def test_a_gated_repository_says_what_to_do(at_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = at_hub.create(REPO, {"model.safetensors": save(LARGE)}, is_gated=True)
    for where in ("/model.safetensors", f"@{commit}/model.safetensors", ""):
        error = refusal(f"hf://{REPO}{where}")
        assert error.what == "no permission to read: the repository is gated"
        assert error.hint == f"accept its terms at {at_hub.server.url}/{REPO}"
    at_hub.tokens[TOKEN].add(REPO)
    assert same(values(f"hf://{REPO}/model.safetensors"), LARGE)
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refusal(f"hf://{REPO}/model.safetensors").hint


def test_a_wrong_token_is_told_from_a_missing_repository(
    at_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_hub.create(REPO, {"model.safetensors": save(SMALL)})
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    for where in ("/model.safetensors", ""):
        assert "does not accept the token" in refusal(f"hf://{REPO}{where}").what


def test_a_link_is_used_until_it_is_refused_and_then_asked_for_anew(at_hub: Hub) -> None:
    tensors = {f"{i}": np.full(100_000, i, np.float32) for i in range(8)}
    at_hub.create(REPO, {"model.safetensors": save(tensors)})
    with open_checkpoint(f"hf://{REPO}/model.safetensors") as checkpoint:
        for name in ("0", "2"):
            assert data(checkpoint.tensors[name]) == tensors[name].tobytes()
        assert at_hub.server.count("resolve") == 1
        with at_hub.cdn.faulty(status(403), times=1):
            for name in ("6", "4"):
                assert data(checkpoint.tensors[name]) == tensors[name].tobytes()
        assert at_hub.server.count("resolve") == 2


def test_what_passes_is_tried_again(at_hub: Hub) -> None:
    at_hub.create(REPO, {"model.safetensors": save(LARGE)})
    with (
        at_hub.server.faulty(status(503), times=3),
        at_hub.cdn.faulty(status(503, retry_after_s=0), times=3),
    ):
        assert same(values(f"hf://{REPO}"), LARGE)


def test_the_hubs_limit_of_requests_is_waited_for(at_hub: Hub) -> None:
    at_hub.create(REPO, {"model.safetensors": save(LARGE)})

    def limited(request: Request, handler: Handler) -> Answer:
        return Answer.of(429, RateLimit='"api";r=0;t=1')

    with at_hub.server.faulty(limited, times=1):
        assert same(values(f"hf://{REPO}/model.safetensors"), LARGE)
    first, second = at_hub.server.log[:2]
    assert first.status == 429
    assert second.begin_s - first.end_s > 0.9


def test_another_content_behind_the_link_is_refused(at_hub: Hub) -> None:
    at_hub.create(REPO, {"model.safetensors": save(LARGE)})
    with open_checkpoint(f"hf://{REPO}/model.safetensors") as checkpoint:
        (entry, *_) = checkpoint.tensors.values()
        with at_hub.cdn.faulty(header("ETag", '"another"')), pytest.raises(UnreadableError, match="changed"):
            data(entry)


def test_a_link_to_less_than_the_hub_promises_is_refused(at_hub: Hub) -> None:
    at_hub.create(REPO, {"model.safetensors": save(LARGE)})
    with at_hub.server.faulty(header("X-Linked-Size", "7")):
        assert "the Hub says that it has 7 bytes" in refusal(f"hf://{REPO}/model.safetensors").what


def test_a_repository_that_was_renamed_is_followed(at_hub: Hub) -> None:
    at_hub.create(REPO, {"model.safetensors": save(LARGE)})

    def renamed(request: Request, handler: Handler) -> Answer:
        return Answer.of(307, Location=request.target.replace("owner/old", REPO))

    with at_hub.server.faulty(renamed, on="owner/old"):
        assert same(values("hf://owner/old/model.safetensors"), LARGE)
        assert same(values("hf://owner/old"), LARGE)


@pytest.mark.parametrize("linked", [{}, {"X_Linked_Etag": '"abc"'}])
def test_a_redirect_within_the_hub_is_followed_with_the_token(at_hub: Hub, linked: dict[str, str]) -> None:
    """So the Hub answers for small files."""
    commit = at_hub.create(REPO, {"model.safetensors": save(SMALL)}, is_private=True)
    cache = f"/api/resolve-cache/models/{REPO}/{commit}/model.safetensors"

    def redirected(request: Request, handler: Handler) -> Answer:
        return Answer.of(307, Location=cache, X_Repo_Commit=commit, **linked)

    def cached(request: Request, handler: Handler) -> Answer:
        assert request.headers["authorization"]
        return handler(replace(request, target=f"/{REPO}/resolve/{commit}/model.safetensors"))

    with at_hub.server.faulty(redirected, on="GET /owner"), at_hub.server.faulty(cached, on="resolve-cache"):
        assert same(values(f"hf://{REPO}/model.safetensors"), SMALL)
        assert same(values(f"hf://{REPO}"), SMALL)


def test_a_hub_that_does_not_say_the_commit_is_asked_for_it(at_hub: Hub) -> None:
    commit = at_hub.create(REPO, {"model.safetensors": save(LARGE), "sub/model.safetensors": save(SMALL)})
    with at_hub.server.faulty(header("X-Repo-Commit", None)):
        with open_checkpoint(f"hf://{REPO}/model.safetensors") as checkpoint:
            assert commit in str(checkpoint.path)
        assert same(values(f"hf://{REPO}/sub"), SMALL)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "./model.safetensors", "a/..", "..\\x"])
def test_a_path_goes_no_way_around(at_hub: Hub, path: str) -> None:
    at_hub.create(REPO, {"model.safetensors": save(SMALL)})
    assert refusal(f"hf://{REPO}/{path}").what == "the repository has no such file at that commit"
    assert not any(".." in line.partition("?")[0].replace("%2E", ".") for line in requests(at_hub))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a\\b", "..", ""])
def test_a_list_with_other_folders_files_opens_none_of_them(at_hub: Hub, name: str) -> None:
    at_hub.create(REPO, {"x.txt": b"x"})
    entries = [{"type": "file", "path": name, "size": 9}, {"type": "file", "path": "model.bin", "size": 9}]

    def listed(request: Request, handler: Handler) -> Answer:
        return Answer.of(200, json.dumps(entries).encode(), "application/json")

    with at_hub.server.faulty(listed, on="/tree/"):
        refusal(f"hf://{REPO}")
    assert not any("passwd" in line or ".." in line for line in requests(at_hub))


@pytest.mark.parametrize(
    "body", [b"", b"[", b"{}", b"[1]", b'[{"path": 3}]', b'[{"path": "a", "size": -1e400}]', b"null"]
)
def test_a_wrong_answer_about_a_repository_is_an_error(at_hub: Hub, body: bytes) -> None:
    at_hub.create(REPO, {"x.txt": b"x"})

    def wrong(request: Request, handler: Handler) -> Answer:
        return Answer.of(200, body, "application/json")

    with at_hub.server.faulty(wrong, on="/tree/"):
        refusal(f"hf://{REPO}")
    with at_hub.server.faulty(wrong, on="/revision/"):
        refusal(f"hf://{REPO}")


def test_a_list_does_not_go_on_at_another_host(at_hub: Hub) -> None:
    at_hub.create(REPO, {"model.safetensors": save(SMALL)})
    elsewhere = f'<{at_hub.cdn.url}/more>; rel="next"'
    with at_hub.server.faulty(header("Link", elsewhere), on="/tree/"):
        assert "another host" in refusal(f"hf://{REPO}").what
    assert not at_hub.cdn.log


def test_what_the_cache_has_is_read_there(at_hub: Hub) -> None:
    at_hub.create(REPO, {"model.safetensors": save(LARGE), "config.json": b"{}"})
    huggingface_hub.hf_hub_download(REPO, "model.safetensors")
    at_hub.server.log.clear()
    at_hub.cdn.log.clear()
    assert same(values(f"hf://{REPO}/model.safetensors"), LARGE)
    assert len(requests(at_hub)) == 1
    at_hub.repositories[REPO].commit({"model.safetensors": save(SMALL)})
    assert same(values(f"hf://{REPO}/model.safetensors"), SMALL)
    at_hub.server.log.clear()
    at_hub.cdn.log.clear()
    assert same(values(f"hf://{REPO}"), SMALL)


def test_shards_of_the_cache_are_read_there(at_hub: Hub) -> None:
    files, tensors = shards(3)
    at_hub.create(REPO, files)
    huggingface_hub.snapshot_download(REPO)
    at_hub.server.log.clear()
    at_hub.cdn.log.clear()
    assert same(values(f"hf://{REPO}"), tensors)
    assert len(requests(at_hub)) == 2


def test_offline_the_cache_alone_is_read(at_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    files, tensors = shards(3)
    at_hub.create(REPO, files | {"sub/model.safetensors": save(SMALL)})
    huggingface_hub.snapshot_download(REPO)
    at_hub.create("owner/other", {"model.safetensors": save(LARGE)})
    at_hub.server.log.clear()
    at_hub.cdn.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(values(f"hf://{REPO}"), tensors)
    assert same(values(f"hf://{REPO}/model.safetensors.index.json"), tensors)
    assert same(values(f"hf://{REPO}/sub/model.safetensors"), SMALL)
    assert same(values(f"hf://{REPO}/sub"), SMALL)
    for where in (f"{REPO}/none", "owner/other", "owner/other/model.safetensors", f"{REPO}@v9"):
        error = refusal(f"hf://{where}")
        assert "HF_HUB_OFFLINE" in error.what
        assert "hf download" in error.hint
    assert not requests(at_hub)


@pytest.mark.parametrize("repo", ["own er/net", "owner/a..b", "owner/.net", "owner/" + 200 * "x", "o/n%2e"])
def test_what_is_no_name_of_a_repository_is_an_error_of_usage(repo: str) -> None:
    with pytest.raises(UsageError, match="not the name of a repository"):
        open_checkpoint(f"hf://{repo}/model.safetensors")


def test_datasets_are_repositories_too() -> None:
    store = of_hub.HubStore(located("hf://datasets/owner/net/x.safetensors"))  # type: ignore[arg-type]
    assert (store.kind, store.repo) == ("dataset", "owner/net")
    store = of_hub.HubStore(located("hf://models/owner/net"))  # type: ignore[arg-type]
    assert (store.kind, store.repo) == ("model", "owner/net")


@pytest.mark.slow
@pytest.mark.parametrize("path", ["", "/model.safetensors"])
def test_commands_show_no_secret(ptsave: Command, hub: Hub, tmp_path: Path, path: str) -> None:
    hub.create(REPO, {"model.safetensors": save(LARGE), "pytorch_model.bin": b"x" * 20_000})
    env = hub.env | {"HF_HOME": str(tmp_path / "home")}
    where, report = f"hf://{REPO}{path}", tmp_path / "report.json"
    done = [
        ptsave("inspect", where, "-v", env=env),
        ptsave("inspect", where, "--json", env=env),
        ptsave("verify", where, "--checks", "bytes", "--report", report, env=env),
        ptsave("convert", where, tmp_path / f"out{bool(path)}.pt", "-v", "--json", env=env),
        ptsave("inspect", f"hf://{REPO}/none", "-v", env=env, code=3),
        ptsave("inspect", "hf://owner/none", "-v", "--json", env=env, code=3),
    ]
    hub.tokens.clear()
    done.append(ptsave("inspect", where, "-v", env=env, code=3))
    shown = "".join(one.stdout + one.stderr for one in done) + report.read_text()
    shown += (tmp_path / f"out{bool(path)}.pt").read_bytes().decode("latin-1")
    assert not re.search(f"{TOKEN}|signature|{hub.cdn.port}", shown)
