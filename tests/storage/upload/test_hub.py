"""Writing to the Hub: one commit, on top of the one that was there, or nothing."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load, save

import ptsave
from ptsave import convert, verify
from ptsave.errors import ExistsError, PtsaveError, RefusedError, WriteError
from ptsave.examples import SimpleNet
from tests.servers.faults import lost_answer, status
from tests.servers.hub import TOKEN, Hub, Repository
from tests.servers.serving import Answer, Handler, Request
from tests.support import Command

# of httpx about a call of huggingface_hub's own
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
REPO = "owner/net"
CONFIG = Path(__file__).parents[3] / "configs" / "simple_net.toml"
TENSORS = {f"layers.{i}.weight": np.full((64, 64), i, np.float32) for i in range(8)}


@pytest.fixture
def at_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The Hub of this process, with an empty repository."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.server.url)
    template = hub.server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.create(REPO, {".gitattributes": b"*.safetensors filter=lfs"})
    return hub


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.safetensors"
    path.write_bytes(save(TENSORS))
    return path


def same(data: bytes) -> bool:
    found: dict[str, Any] = load(data)
    return found.keys() == TENSORS.keys() and all(np.array_equal(found[k], TENSORS[k]) for k in TENSORS)


def repository(hub: Hub) -> Repository:
    return hub.repositories[REPO]


def test_a_file_is_one_commit(at_hub: Hub, source: Path) -> None:
    before = len(repository(at_hub).commits)
    done = convert(source, f"hf://{REPO}/runs/model.safetensors")
    assert same(repository(at_hub).files["runs/model.safetensors"])
    assert len(repository(at_hub).commits) == before + 1
    assert "SHA-256" in done.checked
    assert at_hub.leftovers() == []
    assert not any("authorization" in one.headers for one in at_hub.cdn.log)


def test_a_small_file_goes_with_the_commit(at_hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    path.write_bytes(save({"a": np.ones(3, np.float32)}))
    convert(path, f"hf://{REPO}/small.safetensors")
    assert load(repository(at_hub).files["small.safetensors"])["a"].tolist() == [1, 1, 1]
    assert at_hub.cdn.count("PUT") == 0


def test_a_file_of_several_parts(at_hub: Hub, tmp_path: Path) -> None:
    path, array = tmp_path / "large.safetensors", np.arange(5_000_000, dtype=np.float32)
    path.write_bytes(save({"a": array}))
    convert(path, f"hf://{REPO}/large.safetensors")
    assert np.array_equal(load(repository(at_hub).files["large.safetensors"])["a"], array)
    assert at_hub.cdn.count("PUT") == 3


def test_a_folder_is_one_commit(at_hub: Hub, source: Path) -> None:
    before = len(repository(at_hub).commits)
    convert(source, f"hf://{REPO}", format="safetensors-sharded", shard_size=40_000)
    files = repository(at_hub).files
    index = json.loads(files["model.safetensors.index.json"])
    assert index["weight_map"].keys() == TENSORS.keys()
    assert set(index["weight_map"].values()) <= files.keys()
    assert len(repository(at_hub).commits) == before + 1
    with pytest.raises(ExistsError):
        convert(source, f"hf://{REPO}", format="safetensors-sharded")
    convert(source, f"hf://{REPO}", format="safetensors-sharded", shard_size=80_000, overwrite=True)
    files = repository(at_hub).files
    index = json.loads(files["model.safetensors.index.json"])
    assert {*index["weight_map"].values(), "model.safetensors.index.json", ".gitattributes"} == files.keys()
    assert len(repository(at_hub).commits) == before + 2
    assert at_hub.leftovers() == []


def test_a_dcp_folder_is_one_commit_and_is_read_back(at_hub: Hub, source: Path) -> None:
    before = len(repository(at_hub).commits)
    for num, overwrite in enumerate((False, True), 1):
        convert(source, f"hf://{REPO}/run/dcp", format="dcp", overwrite=overwrite)
        files = {name for name in repository(at_hub).files if name.startswith("run/dcp/")}
        assert files == {f"run/dcp/{name}" for name in ("__0_0.distcp", ".metadata", "ptsave.json")}
        assert len(repository(at_hub).commits) == before + num
    assert verify(f"hf://{REPO}/run/dcp", against=source).is_yes


def test_an_interrupt_leaves_the_branch_as_it_was(at_hub: Hub, source: Path) -> None:
    commits = len(repository(at_hub).commits)

    def interrupted(request: Request, handler: Handler) -> Answer:
        signal.raise_signal(signal.SIGINT)
        return handler(request)

    with at_hub.cdn.faulty(interrupted, on="PUT", times=1), pytest.raises(KeyboardInterrupt):
        convert(source, f"hf://{REPO}/a.safetensors")
    assert len(repository(at_hub).commits) == commits


def test_without_overwrite_nothing_may_be_there(at_hub: Hub, source: Path) -> None:
    repository(at_hub).commit({"a.safetensors": b"old", "sub/x": b"x"})
    commits = len(repository(at_hub).commits)
    with pytest.raises(ExistsError):
        convert(source, f"hf://{REPO}/a.safetensors")
    with pytest.raises(WriteError, match="is a folder"):
        convert(source, f"hf://{REPO}/sub", format="safetensors", overwrite=True)
    with pytest.raises(ExistsError):
        convert(source, f"hf://{REPO}/sub", format="safetensors-sharded")
    assert len(repository(at_hub).commits) == commits
    assert at_hub.cdn.log == []
    convert(source, f"hf://{REPO}/a.safetensors", overwrite=True)
    assert same(repository(at_hub).files["a.safetensors"])
    assert repository(at_hub).files["sub/x"] == b"x"


def test_a_branch_that_moved_is_a_conflict(at_hub: Hub, source: Path) -> None:
    def moving(request: Request, handler: Handler) -> Answer:
        repository(at_hub).commit({"other": b"x"})
        return handler(request)

    with (
        at_hub.server.faulty(moving, on="POST .*/commit/", times=1),
        pytest.raises(WriteError, match="written to by somebody else") as caught,
    ):
        convert(source, f"hf://{REPO}/a.safetensors")
    assert caught.value.exit_code == 4
    assert "a.safetensors" not in repository(at_hub).files
    assert "other" in repository(at_hub).files


@pytest.mark.slow
@pytest.mark.parametrize("is_cached", [False, True])
def test_a_record_is_one_commit_on_top_of_what_was_read(
    at_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cached: bool
) -> None:
    where = f"hf://{REPO}/net.safetensors"
    ptsave.convert(_saved(tmp_path), where, no_record=True)
    kept = b""
    if is_cached:
        copy = Path(huggingface_hub.hf_hub_download(REPO, "net.safetensors"))
        kept = copy.read_bytes()
    before = len(repository(at_hub).commits)

    def moving(request: Request, handler: Handler) -> Answer:
        repository(at_hub).commit({"other": b"x"})
        return handler(request)

    with (
        at_hub.server.faulty(moving, on="POST .*/preupload/", times=1),
        pytest.raises(WriteError, match="written to by somebody else"),
    ):
        verify(where, config=CONFIG, record=True)
    assert len(repository(at_hub).commits) == before + 1
    assert verify(where, config=CONFIG, record=True).is_yes
    assert len(repository(at_hub).commits) == before + 2
    assert verify(where, config=CONFIG, checks=["behaviour"]).is_yes
    assert not is_cached or copy.read_bytes() == kept
    with pytest.raises(RefusedError, match="a commit can only be read"):
        verify(f"hf://{REPO}@{repository(at_hub).head}/net.safetensors", config=CONFIG, record=True)


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_pin_is_of_the_branch_that_was_named(
    is_cached: bool, at_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No branch is `main`; and a copy in the cache of `huggingface_hub` is what it is a copy of."""
    monkeypatch.chdir(tmp_path)
    repository(at_hub).commit({"net.safetensors": _saved(tmp_path).read_bytes()})
    first, second = f"hf://{REPO}/net.safetensors", f"hf://{REPO}@main/net.safetensors"
    assert verify(first, pin=True).is_yes
    assert (tmp_path / "ptsave.lock").read_text().count("[pins.") == 1
    assert "@main" in (tmp_path / "ptsave.lock").read_text()
    ptsave.save(tmp_path / "net.safetensors", SimpleNet(10, 5, 2), config=CONFIG)
    repository(at_hub).commit({"net.safetensors": (tmp_path / "net.safetensors").read_bytes()})
    if is_cached:
        huggingface_hub.hf_hub_download(REPO, "net.safetensors")
    for where in (first, second):
        with pytest.raises(RefusedError, match=r"not what ptsave\.lock pins"):
            ptsave.load(where, config=CONFIG)
    assert verify(second, pin=True).is_yes
    for where in (first, second):
        ptsave.load(where, config=CONFIG)


def _saved(folder: Path) -> Path:
    """A model of CONFIG."""
    ptsave.save(folder / "net.safetensors", SimpleNet(10, 5, 2), config=CONFIG)
    return folder / "net.safetensors"


def test_an_answer_that_was_lost_is_no_conflict_with_oneself(at_hub: Hub, source: Path) -> None:
    before = len(repository(at_hub).commits)
    with at_hub.server.faulty(lost_answer(), on="POST .*/commit/", times=1):
        convert(source, f"hf://{REPO}/a.safetensors")
    assert same(repository(at_hub).files["a.safetensors"])
    assert len(repository(at_hub).commits) == before + 1


def test_of_racing_creators_one_wins(at_hub: Hub, tmp_path: Path) -> None:
    won, lost = [], []

    def create(i: int) -> None:
        path = tmp_path / f"{i}.safetensors"
        path.write_bytes(save({"a": np.full(5000, i, np.float32)}))
        try:
            convert(path, f"hf://{REPO}/a.safetensors")
            won.append(i)
        except (ExistsError, WriteError):
            lost.append(i)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert len(lost) == 5
    assert load(repository(at_hub).files["a.safetensors"])["a"][0] == won[0]


@pytest.mark.parametrize(("code", "what"), [(401, "no right"), (403, "no right"), (400, "answers 400")])
@pytest.mark.parametrize("on", ["preupload", "batch", "PUT", "commit/"])
def test_a_refusal_is_an_error_and_nothing_is_written(
    at_hub: Hub, source: Path, code: int, what: str, on: str
) -> None:
    server = at_hub.cdn if on == "PUT" else at_hub.server
    with server.faulty(status(code), on=on), pytest.raises(WriteError) as caught:
        convert(source, f"hf://{REPO}/a.safetensors")
    assert what in caught.value.what
    assert not {"signature", TOKEN} & set(f"{caught.value} {caught.value.hint}".split())
    assert "a.safetensors" not in repository(at_hub).files


def test_what_passes_is_tried_again(at_hub: Hub, source: Path) -> None:
    with at_hub.server.faulty(status(503), on="preupload|batch|commit/", times=1):
        convert(source, f"hf://{REPO}/a.safetensors")
    assert same(repository(at_hub).files["a.safetensors"])


def test_what_cannot_be_written_to_is_told(
    at_hub: Hub, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WriteError, match="no such repository") as caught:
        convert(source, "hf://owner/none/a.safetensors")
    assert "hf repo create owner/none" in caught.value.hint
    with pytest.raises(WriteError, match="no such branch"):
        convert(source, f"hf://{REPO}@none/a.safetensors")
    with pytest.raises(RefusedError, match="a commit can only be read"):
        convert(source, f"hf://{REPO}@{repository(at_hub).head}/a.safetensors")
    with pytest.raises(PtsaveError, match="names no file"):
        convert(source, f"hf://{REPO}", format="safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RefusedError, match="HF_HUB_OFFLINE"):
        convert(source, f"hf://{REPO}/a.safetensors")


@pytest.mark.slow
def test_commands_show_no_secret_and_no_bars(ptsave: Command, hub: Hub, source: Path, tmp_path: Path) -> None:
    hub.create(REPO)
    env = {k: v for k, v in hub.env.items() if "DISABLE" not in k} | {"HF_HOME": str(tmp_path / "home")}
    env |= {"HF_HUB_DISABLE_TELEMETRY": "1"}
    done = [
        ptsave("convert", source, f"hf://{REPO}/a.pt", "-v", env=env),
        ptsave("convert", source, f"hf://{REPO}/b.pt", "--json", env=env),
        ptsave("convert", source, f"hf://{REPO}/a.pt", "-v", env=env, code=4),
    ]
    hub.tokens.clear()
    done.append(ptsave("convert", source, f"hf://{REPO}/c.pt", "-v", env=env, code=4))
    shown = "".join(one.stdout + one.stderr for one in done)
    assert TOKEN not in shown
    assert "%|" not in shown
    assert "Xet" not in shown
