"""load under torchrun: every source, every mesh, and nobody holds what is not theirs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from ptsave.formats import open_checkpoint
from ptsave.storage.scan import tensor_digest
from ptsave.storage.windows import FileStorage
from tests.distributed.launch import errors, ptsave, run_cases, torchrun
from tests.distributed.models import write_models
from tests.schemas import faults

SOURCES = {"m.safetensors": (), "m.pt": (), "m.dcp": ("--format", "dcp"), "m.folder": ()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its configs, and its weights in every format."""
    folder = tmp_path_factory.mktemp("made")
    write_models(folder)
    ptsave(folder, "save", "plain.toml", "m.safetensors")
    ptsave(folder, "convert", "m.safetensors", "m.pt")
    ptsave(folder, "convert", "m.safetensors", "m.dcp", "--format", "dcp")
    ptsave(
        folder,
        "convert",
        "m.safetensors",
        "m.folder",
        "--format",
        "safetensors-sharded",
        "--shard-size",
        "1kB",
    )
    return folder


@pytest.fixture
def studio(made: Path, tmp_path: Path) -> Path:
    """A copy of it for each test."""
    return Path(shutil.copytree(made, tmp_path / "studio"))


def expected(path: Path) -> dict[str, str]:
    with open_checkpoint(path) as checkpoint:
        return {name: tensor_digest(entry) for name, entry in checkpoint.tensors.items()}


def check(found: dict[str, Any], want: dict[str, str], reference: dict[str, Any], *, exact: bool) -> None:
    assert "error" not in found, found
    table = found["digests"].pop("table")
    assert table == reference["digests"]["table"]
    assert found["digests"] == want
    assert found["warnings"] == []
    if exact:
        assert found["digest"] == reference["digest"]
    elif "output" in found:
        close = (
            math.isclose(a, b, abs_tol=1e-5)
            for a, b in zip(found["output"], reference["output"], strict=True)
        )
        assert all(close)


@pytest.mark.slow
def test_every_source_over_every_mesh(studio: Path) -> None:
    """Bitwise the tensors of the file, ties and buffers included, and what one process computes of them."""
    want = expected(studio / "m.safetensors")
    (reference,) = run_cases(1, studio, [{"path": "m.safetensors", "config": "plain.toml"}])
    check(reference | {"digests": dict(reference["digests"])}, want, reference, exact=True)
    for ranks, names in {2: ("plain", "dp", "ddp2", "tp2"), 3: ("dp", "tp3"), 4: ("hybrid", "grid")}.items():
        runs = {name: name != "tp3" for name in names}  # torch does not compute with uneven parts
        cases = [
            {"path": path, "config": f"{name}.toml", "runs": runs[name]} for name in names for path in SOURCES
        ]
        for case, found in zip(cases, run_cases(ranks, studio, cases), strict=True):
            name = case["config"].removesuffix(".toml")
            check(found, want, reference, exact=name in ("plain", "dp", "hybrid", "ddp2"))
            whole = sum(reference["bytes"])
            if name in ("dp", "hybrid", "grid"):
                assert "blocks.0.up.weight" in found["split"]
                assert max(found["bytes"]) < 0.75 * whole, case


@pytest.mark.slow
@pytest.mark.parametrize(("config", "kind"), [("dp.toml", "dp"), ("ddp2.toml", "ddp")])
def test_the_command_prints_once(studio: Path, config: str, kind: str) -> None:
    done = torchrun(2, "load", "m.dcp", "-c", config, "--json", "--outputs", "o.safetensors", cwd=studio)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert faults(result, "load") == []
    assert (result["num_tensors"], result["mesh"], result["missing"]) == (23, {kind: 2}, [])
    assert (result["num_rank_bytes"] < result["num_bytes"]) == (kind == "dp")
    assert done.stderr == ""
    assert (studio / "o.safetensors").exists()


@pytest.mark.slow
def test_one_rank_says_what_does_not_fit(studio: Path) -> None:
    done = torchrun(2, "load", "m.pt", "-c", "dp.toml", "--set", "model.args.depth=2", cwd=studio)
    assert done.returncode == 1
    (line,) = errors(done.stderr)
    assert "does not fit the model: 5 unexpected" in line


@pytest.mark.slow
@pytest.mark.parametrize("config", ["dp.toml", "tp2.toml"])
def test_what_is_allowed(studio: Path, config: str) -> None:
    """Over ranks, too, what may be absent is fresh, what may be left is left, and the report says which."""
    deeper = ("--set", "model.args.depth=4", "--set", "model.args.vocab=15")
    flags = (
        "--allow-missing",
        "blocks.3.*",
        "--allow-missing",
        "*d.weight",
        "--allow-unexpected",
        "*d.weight",
    )
    done = torchrun(2, "load", "m.pt", "-c", config, *deeper, *flags, "--json", cwd=studio)
    assert done.returncode == 0, done.stderr
    alone = ptsave(studio, "load", "m.pt", "-c", "plain.toml", *deeper, *flags, "--json")
    one, other = json.loads(done.stdout), json.loads(alone.stdout)
    assert [one[key] for key in ("missing", "unexpected", "mismatched", "num_tensors")] == [
        other[key] for key in ("missing", "unexpected", "mismatched", "num_tensors")
    ]
    assert len(one["missing"]) > 4
    ptsave(studio, "save", "plain.toml", "s1.pt", "--weights", "m.pt", *deeper, *flags, "--seed", "3")
    spread = ("--weights", "m.pt", *deeper, *flags, "--seed", "3", "--no-behaviour")
    done = torchrun(2, "save", config, "s2.dcp", *spread, cwd=studio)
    assert done.returncode == 0, done.stderr
    assert expected(studio / "s2.dcp") == expected(studio / "s1.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.dcp/__0_0.distcp"])
def test_damage_does_not_load(studio: Path, name: str) -> None:
    """No rank reads a whole tensor, and yet each is checked against its checksum."""
    path = studio / name
    with open_checkpoint(studio / Path(name).parts[0]) as checkpoint:
        storage = checkpoint.tensors["blocks.1.up.weight"].storage
    assert isinstance(storage, FileStorage)
    data = bytearray(path.read_bytes())
    data[storage.offset_bytes + 8] ^= 4
    path.write_bytes(data)
    done = torchrun(2, "load", Path(name).parts[0], "-c", "dp.toml", cwd=studio)
    (line,) = errors(done.stderr)
    assert "'blocks.1.up.weight' is damaged" in line


@pytest.mark.slow
def test_plans_that_cannot_be(studio: Path) -> None:
    plans = {
        "parallel.mesh={dp=3}": "the mesh (dp = 3) has 3 ranks, and torchrun started 2",
        'parallel.wrap=["odd.Blok"]': "no module is, or is named, 'odd.Blok'",
        'parallel.tensor={"blocks.*.upp"="colwise"}': "splits over tp, which the mesh lacks",
        'parallel={mesh={tp=2},tensor={"blocks.*.upp"="colwise"}}': "no module is named 'blocks.*.upp'",
        'parallel={mesh={tp=2},tensor={"head"="colwise"}}': "are one parameter, and would become two",
        'parallel.wrap=["embed"]': "are one parameter, and would become two",
        'parallel={mesh={tp=2},tensor={"blocks.*.down"="colwise"}}': "7 does not divide by 2",
        "parallel={mesh={tp=2}}": "tp splits what [parallel.tensor] names, and there is none",
        'parallel={mesh={ddp=2},wrap=["blocks.*"]}': "wrap makes units for dp, which the mesh lacks",
    }
    cases = [{"path": "m.pt", "config": "dp.toml", "set": [plan]} for plan in plans]
    for found, message in zip(run_cases(2, studio, cases), plans.values(), strict=True):
        assert message in found["error"], found
        assert found["kind"] in ("UsageError", "PlanError")  # which is one
        assert found["hint"]
