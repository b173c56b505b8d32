"""What is not sharded and differs by rank: each rank's comes back to that rank, or is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ptsave.formats import open_checkpoint
from tests.distributed.launch import TORCHRUN, environment, ptsave, torchrun

pytestmark = pytest.mark.slow

Case = dict[str, Any]
MODULE = "tests.training.apart.on_ranks"


def run(num_ranks: int, folder: Path, *cases: Case) -> list[list[dict[str, Any]]]:
    """What each rank says of each case, by case."""
    (folder / "cases.json").write_text(json.dumps(cases))
    done = torchrun(num_ranks, "cases.json", cwd=folder, module=MODULE, PTSAVE_TIMEOUT="60")
    assert done.returncode == 0, done.stderr
    return [list(results) for results in zip(*json.loads((folder / "results.json").read_text()), strict=True)]


TWO = ("experts", "pipeline", "generator", "every_kind", "accumulating", "accumulating_sharded", "zero")
FOUR = ("by_hand", "experts_sharded", "zero", "accumulating_sharded")
STEPPED = {"experts", "pipeline", "accumulating", "accumulating_sharded", "zero", "by_hand"}
LACKING = {"make": "every_kind", "without": {"1": ["data", "scheduler"], "0": ["tensor"]}}
CONFUSED = {
    "steps": {"steps": {"0": 3, "1": 4}},
    "range": {"steps": {"1": -1}},
    "resumes": {"resumes": 1},
    "nodes": {"folder": "nodes-RANK"},
}
Said = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """A folder with what two ranks have saved of each case, and what they said."""
    folder = tmp_path_factory.mktemp("saved")
    cases = [{"folder": name, "make": name, "do": "save", "finish": True} for name in TWO]
    cases.append({"folder": "lacking", "do": "save", **LACKING})
    cases += [{"folder": n, "make": "replicated", "do": "save", **more} for n, more in CONFUSED.items()]
    said = run(2, folder, *cases)
    return folder, dict(zip([*TWO, "lacking", *CONFUSED], said, strict=True))


def resume(num_ranks: int, folder: Path, *names: str, **more: Any) -> list[list[dict[str, Any]]]:
    cases = [{"folder": str(folder / name), "make": name, "do": "resume", **more} for name in names]
    return run(num_ranks, folder, *cases)


def check_alike(name: str, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    for was, now in zip(before, after, strict=True):
        assert now.get("error") is None, name
        assert now["from"] == 1
        assert now["seen"] == was["seen"], name
        assert now["warnings"] == [], name
        if name in STEPPED:
            assert now["finished"] == was["finished"], name


def test_each_rank_has_its_own_again(saved: tuple[Path, Said]) -> None:
    """And goes on as if it had not stopped."""
    folder, said = saved
    cases = [{"folder": name, "make": name, "do": "resume", "finish": True} for name in TWO]
    cases += [
        {"folder": "lacking", "do": "resume", **LACKING},
        {"folder": "zero", "make": "replicated", "do": "resume"},
    ]
    *resumed, lacking, whole = run(2, folder, *cases)
    for name, ranks in zip(TWO, resumed, strict=True):
        check_alike(name, said[name], ranks)
    check_alike("lacking", said["lacking"], lacking)
    states = {k: v for rank in said["zero"] for k, v in rank["seen"].items() if STATE in k}
    for rank in whole:  # a whole optimizer, after a sharded one
        assert {k: v for k, v in rank["seen"].items() if STATE in k} == states


STATE = ".optimizer_state_dict.state."


def test_each_of_four_ranks_has_its_own_again(tmp_path: Path) -> None:
    cases = [{"folder": name, "make": name, "finish": True} for name in FOUR]
    before = run(4, tmp_path, *({**case, "do": "save"} for case in cases))
    after = run(4, tmp_path, *({**case, "do": "resume"} for case in cases))
    for name, was, now in zip(FOUR, before, after, strict=True):
        check_alike(name, was, now)


def test_replicas_of_a_part_are_one_or_refused(tmp_path: Path) -> None:
    """HSDP: one of the replicas is written, so all must hold it; gradients that they do not share yet are
    refused."""
    cases = [{"folder": n, "make": n, "do": "save"} for n in ("hsdp", "hsdp_apart", "reduced_among_some")]
    saved, apart, partly, resumed = run(4, tmp_path, *cases, {**cases[0], "do": "resume"})
    for was, now in zip(saved, resumed, strict=True):
        assert was.get("error") is None
        assert now["seen"] == was["seen"]
    for said, what in (
        (apart, "ranks 1 and 3 hold one part of 'model_state_dict.0.weight', with different values"),
        (partly, "set_requires_all_reduce(False)"),
    ):
        for rank in said:
            kind, message, hint = rank["error"]
            assert kind == "LossyError"
            assert what in message
            assert hint
    assert not list(tmp_path.glob("hsdp_apart/*.dcp"))
    assert not list(tmp_path.glob("reduced_among_some/*.dcp"))


def test_ranks_differ_in_what_the_cases_say_they_do(saved: tuple[Path, Said]) -> None:
    """Else the tests above show nothing."""
    kinds = {
        "experts": [".model_state_dict.expert.weight", ".optimizer_state_dict.state.2.exp_avg"],
        "generator": [".noise_state_dict.torch"],
        "every_kind": [
            ".model_state_dict.1.running_mean",
            ".optimizer_state_dict.param_groups.0.lr",
            ".scheduler_state_dict.best",
            ".scaler_state_dict.scale",
            ".data_state_dict.value.0",
            ".tensor_state_dict.value",
        ],
        "accumulating": [".gradients.model.0.weight"],
        "accumulating_sharded": [".unsynchronised_gradients.model.0.weight"],
    }
    _, said = saved
    for name, keys in kinds.items():
        first, second = said[name]
        for key in keys:
            assert first["seen"][key] != second["seen"][key], key
    assert "different values of model_state_dict." in said["experts"][0]["warnings"][0]
    for name in ("generator", "accumulating", "accumulating_sharded", "pipeline", "zero"):
        assert said[name][0]["warnings"] == []


def test_other_ranks_take_what_they_can_and_refuse_the_rest_by_name(saved: tuple[Path, Said]) -> None:
    folder, said = saved
    found = dict(zip(TWO, resume(3, folder, *TWO), strict=True))
    own = {
        "experts": "model_state_dict.router.weight",
        "every_kind": "tensor_state_dict.value",
        "accumulating": "gradients.model.0.weight",
        "accumulating_sharded": "unsynchronised_gradients.model.",
    }
    for name, what in own.items():
        for rank in found[name]:
            kind, message, hint = rank["error"]
            assert kind == "LossyError"
            assert what in message
            assert "2 ranks" in message
            assert hint
    for name in ("generator", "pipeline", "zero"):
        assert [rank.get("from") for rank in found[name]] == [1, 1, 1], found[name]
    drawn = [rank["seen"][".noise_state_dict.torch"] for rank in found["generator"]]
    assert drawn[:2] == [rank["seen"][".noise_state_dict.torch"] for rank in said["generator"]]
    assert drawn[2] != drawn[0]
    layers = {
        key: value
        for rank in said["pipeline"]
        for key, value in rank["seen"].items()
        if ".model_state_dict.layers." in key
    }
    for rank in found["pipeline"]:
        mine = {key: value for key, value in rank["seen"].items() if ".model_state_dict.layers." in key}
        assert mine
        assert mine == {key: layers[key] for key in mine}


def test_the_stages_of_a_pipeline_go_by_their_names(saved: tuple[Path, Said], tmp_path: Path) -> None:
    """Not by the ranks that they were on; what is of a rank and not of a stage is refused by name."""
    folder, said = saved
    names = ("stage_and_own", "stage_accumulating")
    run(2, tmp_path, *({"folder": name, "make": name, "do": "save"} for name in names))
    moved = [("pipeline", "pipeline_swapped"), ("pipeline", "pipeline_whole")]
    cases = [{"folder": str(folder / name), "make": make, "do": "resume"} for name, make in moved]
    cases += [{"folder": name, "make": f"{name}_swapped", "do": "resume"} for name in names]
    swapped, whole, *refused = run(2, tmp_path, *cases)
    layers = {
        key: value
        for rank in said["pipeline"]
        for key, value in rank["seen"].items()
        if ".layers." in key or STATE in key
    }
    for rank in whole:
        assert rank.get("error") is None
        assert {key: rank["seen"][key] for key in layers if STATE not in key} == {
            key: value for key, value in layers.items() if STATE not in key
        }
    for now, was in zip(swapped, reversed(said["pipeline"]), strict=True):
        assert now.get("error") is None
        assert now["from"] == 1
        assert now["warnings"] == []
        for key, value in was["seen"].items():
            if ".layers." in key or STATE in key:
                assert now["seen"][key] == value, key
    for ranks, what in zip(
        refused, ("model_state_dict.own.weight", "gradients.model.layers.0.weight"), strict=True
    ):
        for rank in ranks:
            kind, message, hint = rank["error"]
            assert kind in ("LossyError", "RankError")
            assert what in message
            assert "saved by another rank" in message
            assert hint


def test_a_pipeline_is_one_model(saved: tuple[Path, Said], tmp_path: Path) -> None:
    path = saved[0] / "pipeline" / "step-000000000.dcp"
    ptsave(tmp_path, "convert", path, "all.safetensors", "--select", "model")
    with open_checkpoint(tmp_path / "all.safetensors") as checkpoint:
        names = {f"layers.{number}.{kind}" for number in range(4) for kind in ("weight", "bias")}
        assert set(checkpoint.tensors) == names


def test_experts_are_nobodys_under_the_plain_name(saved: tuple[Path, Said]) -> None:
    """Whoever reads the weights under their plain names has none of one rank for those of all."""
    with open_checkpoint(saved[0] / "experts" / "step-000000000.pt") as checkpoint:
        names = set(checkpoint.tensors)
    assert "model_state_dict.expert.weight" not in names
    assert {"ranks.0.model_state_dict.expert.weight", "ranks.1.model_state_dict.expert.weight"} <= names


@pytest.mark.parametrize(
    ("name", "kind", "what"),
    [
        ("steps", "UsageError", "rank 0 saves step 3, rank 1 saves step 4"),
        ("range", None, "step=-1 is out of range"),
        ("resumes", "UsageError", "rank 0 saves step 0, rank 1 resumes"),
        ("nodes", "RefusedError", "/nodes-1 what rank 0 writes to "),
    ],
)
def test_ranks_that_do_different_things_are_told(
    saved: tuple[Path, Said], name: str, kind: str | None, what: str
) -> None:
    folder, said = saved
    for rank in said[name]:
        found, message, _ = rank["error"]
        assert kind in (None, found)
        assert what in message
    assert not list((folder / name).glob("step-*"))


def test_nodes_that_have_a_folder_each_are_told(saved: tuple[Path, Said], tmp_path: Path) -> None:
    """And no checkpoint is called damaged that only another node has, nor is a run begun anew beside it."""
    for name in ("first-0", "other-1", "newer-0", "newer-1"):
        shutil.copytree(saved[0] / "generator", tmp_path / name)
    shutil.copyfile(tmp_path / "newer-0/step-000000000.pt", tmp_path / "newer-0/step-000000001.pt")
    names = ("first", "other", "newer")
    cases = [{"folder": f"{name}-RANK", "make": "generator", "do": "resume"} for name in names]
    for ranks in run(2, tmp_path, *cases):
        for rank in ranks:
            kind, message, hint = rank["error"]
            assert kind == "MissingFileError"
            assert "they do not have the same step-00000000" in message
            assert "all nodes share; nothing is damaged" in hint
            assert rank["warnings"] == []


def test_mounts_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """The same path, of another file system for each rank, as on two nodes."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("NOT RUN, nothing was proved: no mounts of one's own (needs root)")
    (tmp_path / "run").mkdir()
    (tmp_path / "cases.json").write_text(json.dumps([{"folder": "run", "make": "replicated", "do": "save"}]))
    (tmp_path / "rank.sh").write_text(
        f'mount -t tmpfs none "$PWD/run" && exec "{sys.executable}" -m {MODULE} cases.json\n'
    )
    argv = [
        *TORCHRUN,
        "--standalone",
        "--nproc-per-node",
        "2",
        "--no-python",
        "unshare",
        "-m",
        "sh",
        "rank.sh",
    ]
    done = subprocess.run(
        argv, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    for (rank,) in json.loads((tmp_path / "results.json").read_text()):
        assert rank["error"][0] == "RefusedError"
        assert "rank 1 does not see" in rank["error"][1]
