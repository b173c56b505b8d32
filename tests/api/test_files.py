"""inspect, convert and verify from Python: the results of the commands, as data."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import ptsave
from ptsave.cli.main import run
from ptsave.errors import ExistsError, LossyError, MissingFileError, UsageError, VerdictError
from ptsave.render import as_json
from ptsave.verbs.folders.runs import RunInspection
from ptsave.verbs.inspect import Inspection

SIMPLE = Path(__file__).parents[2] / "configs" / "simple_net.toml"
STATE = OrderedDict([("fc.weight", torch.arange(6.0).view(2, 3)), ("fc.bias", torch.ones(2))])
Json = Callable[..., Any]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, now the current one, with checkpoints of many kinds."""
    monkeypatch.chdir(tmp_path)
    torch.save(STATE, "state.pt")
    torch.save({"model": STATE, "epoch": 3, "inf": torch.tensor(float("inf"))}, "training.pt")
    torch.save({"model": STATE, "epoch": 3}, "old.pt", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(3, 2), "module.pt")
    ptsave.save("model.safetensors", STATE)
    ptsave.save("folder", STATE, format="dcp")
    data = bytearray(Path("state.pt").read_bytes())
    at = data.index(STATE["fc.weight"].numpy().tobytes())
    data[at + 4] ^= 1
    Path("damaged.pt").write_bytes(data)
    Path("run").mkdir()
    torch.save({"step": 1, "model_state_dict": {"w": torch.ones(2)}}, "run/step-000000001.pt")
    assert run(["save", str(SIMPLE), "net.pt", "-q"]) == 0
    return tmp_path


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Json:
    """What a command prints with --json, without its version."""

    def call(*arguments: object) -> Any:
        capfd.readouterr()
        run([*map(str, arguments), "--json"])
        result = json.loads(capfd.readouterr().out)
        del result["schema_version"]
        return result

    return call


KINDS = [
    "state.pt",
    "training.pt",
    "old.pt",
    "module.pt",
    "model.safetensors",
    "folder",
    "damaged.pt",
    "net.pt",
]


def test_inspect_is_the_command(files: Path, command: Json) -> None:
    for name in KINDS:
        result = ptsave.inspect(name, stats=True)
        assert isinstance(result, Inspection)
        assert json.loads(json.dumps(as_json.inspection(result))) == command("inspect", name, "--stats")
    found = ptsave.inspect("run")
    assert isinstance(found, RunInspection)
    assert json.loads(json.dumps(as_json.run(found))) == command("inspect", "run")


def test_inspect_shows_what_is_asked_for(files: Path) -> None:
    result = ptsave.inspect("training.pt", filter="*.bias", limit=5, sort="size")
    assert isinstance(result, Inspection)
    assert [row.entry.name for row in result.rows] == ["model.fc.bias"]
    assert (result.num_tensors, result.num_hidden, result.data["epoch"], result.stats) == (3, 2, 3, None)
    several = ptsave.inspect("state.pt", Path("run"))
    assert [one.path.name for one in several] == ["state.pt", "run"]


def test_convert_is_the_command(files: Path, command: Json) -> None:
    flags = [
        "--select",
        "model",
        "--only",
        "fc.*",
        "--drop",
        "*.bias",
        "--rename",
        "^fc=head",
        "--dtype",
        "float16",
    ]
    theirs = command("convert", "training.pt", "theirs.safetensors", *flags)
    ours = ptsave.convert(
        "training.pt",
        Path("ours.safetensors"),
        select="model",
        only="fc.*",
        drop=["*.bias"],
        rename={"^fc": "head"},
        dtype=torch.float16,
    )
    fields = as_json.converted(ours)
    assert fields | {"destination": "", "free_bytes": 0} == theirs | {"destination": "", "free_bytes": 0}
    assert Path("ours.safetensors").read_bytes() == Path("theirs.safetensors").read_bytes()
    assert ours.renamed == {"fc.weight": "head.weight"}


def test_convert_of_every_option(files: Path) -> None:
    plan = ptsave.convert("state.pt", "sharded", format="safetensors-sharded", shard_size=16, dry_run=True)
    assert plan.is_plan
    assert not Path("sharded").exists()
    done = ptsave.convert("state.pt", "sharded", format="safetensors-sharded", shard_size=24, digest="sha256")
    assert (done.num_tensors, len(list(Path("sharded").glob("*.safetensors")))) == (2, 2)
    ptsave.convert("training.pt", "flat.safetensors", extras="drop", no_record=True, no_check=True)
    ptsave.convert("old.pt", "flat.safetensors", extras="keep", overwrite=True, rename="fc=head")
    assert set(ptsave.open("flat.safetensors")) == {"model.head.weight", "model.head.bias"}
    merged = ptsave.convert("old.pt", "module.pt", "merged.pt")
    assert merged.num_tensors == 4


CHECKED: dict[str, tuple[dict[str, Any], list[object]]] = {
    "state.pt": ({}, []),
    "training.pt": ({"allow_infinite": "inf", "strict": True}, ["--allow-infinite", "inf", "--strict"]),
    "old.pt": ({"checks": ["bytes", "safe"]}, ["--checks", "bytes,safe"]),
    "module.pt": ({"allow": ["torch.nn.*"]}, ["--allow", "torch.nn.*"]),
    "model.safetensors": ({"against": "state.pt"}, ["--against", "state.pt"]),
    "folder": ({"against": "damaged.pt", "close": True}, ["--against", "damaged.pt", "--close"]),
    "damaged.pt": ({}, []),
    "run": ({}, []),
    "net.pt": ({"config": SIMPLE}, ["-c", SIMPLE]),
}


@pytest.mark.parametrize("name", CHECKED)
def test_verify_is_the_command(name: str, files: Path, command: Json) -> None:
    options, flags = CHECKED[name]
    verdict = ptsave.verify(name, **options)
    theirs = command("verify", name, *flags)
    assert json.loads(json.dumps(as_json.verdict(verdict, Path(name)))) == theirs
    assert verdict.is_yes == (theirs["verdict"] == "yes")


def test_a_verdict_says_why(files: Path) -> None:
    yes = ptsave.verify("net.pt", trust_recorded="ptsave.examples.*")
    yes.raise_for_no()
    assert yes.is_yes
    assert yes.because.startswith("passed behaviour, bytes")
    no = ptsave.verify("damaged.pt")
    assert not no.is_yes
    assert "checksum" in no.because
    with pytest.raises(VerdictError, match=r"the verdict is no: .*checksum") as raised:
        no.raise_for_no()
    assert raised.value.hint.startswith("fc.weight: ")
    assert (
        'skipped: behaviour, keys, roundtrip (needs a config: config="CONFIG")'
        in ptsave.verify("model.safetensors").because
    )
    assert "--" not in ptsave.verify("state.pt", strict=True).because
    strict = ptsave.verify("model.safetensors", strict=True, checks="bytes")
    assert strict.is_yes


def misfits() -> dict[str, tuple[Callable[[], object], str, str]]:
    """Calls whose options do not fit: what they say, and the hint."""
    inspect, convert, verify = ptsave.inspect, ptsave.convert, ptsave.verify
    to = ("state.pt", "b.safetensors")
    return {
        "sort": (lambda: inspect("state.pt", sort="sise"), "cannot sort by 'sise' (sort=)", "'size'"),
        "run": (lambda: inspect("run", limit=3), "limit= is about one checkpoint", "step-000000001.pt"),
        "no path": (lambda: inspect(), "inspect needs a path", ""),
        "one path": (lambda: convert("state.pt"), "a source and a destination", "the last path"),
        "shards": (
            lambda: convert(*to, shard_size=5),
            "shard_size= would not be used",
            "leave shard_size= out",
        ),
        "digest": (
            lambda: convert(*to, no_record=True, digest="blake3"),
            "no_record= leaves",
            "leave digest= out",
        ),
        "cast": (lambda: convert(*to, dtype="float17"), "cannot cast to 'float17' (dtype=)", "float16"),
        "rename": (lambda: convert(*to, rename={"(": "x"}), "'(' is not a valid rename", "re.sub"),
        "prefix": (lambda: convert(*to, strip_prefix="x."), "(strip_prefix=)", ""),
        "extras": (lambda: convert("training.pt", to[1], extras="dorp"), "(extras=)", "'drop'"),  # type: ignore[arg-type]
        "loss": (lambda: convert("training.pt", to[1]), "safetensors cannot hold", 'extras="drop"'),
        "exists": (lambda: convert(*to[:1], "old.pt"), "exists", "overwrite=True"),
        "close": (lambda: verify("state.pt", close=True), "close= is for a comparison", 'against="OTHER"'),
        "unused": (
            lambda: verify("state.pt", checks="bytes", allow="x.*"),
            'allow= would not be used by checks="bytes"',
            "checks=",
        ),
        "model": (lambda: verify("state.pt", device="cuda"), "device= is about the model", 'config="CONFIG"'),
        "check": (lambda: verify("state.pt", checks=["bites"]), "unknown name 'bites' (checks=)", "'bytes'"),
        "config": (lambda: verify("state.pt", checks="keys"), "(checks=)", 'config="CONFIG"'),
        "both": (
            lambda: verify("net.pt", config=SIMPLE, trust_recorded=True),
            "config= and trust_recorded=",
            "",
        ),
        "absent": (lambda: verify("absent.pt"), "absent.pt", ""),
    }


@pytest.mark.parametrize("case", misfits())
def test_what_does_not_fit_is_said_in_pythons_words(case: str, files: Path) -> None:
    call, what, hint = misfits()[case]
    with pytest.raises((UsageError, LossyError, ExistsError, MissingFileError)) as raised:
        call()
    assert what in str(raised.value)
    assert hint in raised.value.hint
    assert not re.search(r"--\w", f"{raised.value} {raised.value.hint}")
    assert not Path("b.safetensors").exists()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tracebacks have no notes before Python 3.11")
def test_a_traceback_shows_the_hint(files: Path) -> None:
    with pytest.raises(UsageError) as raised:
        ptsave.verify("state.pt", close=True)
    shown = traceback.format_exception(raised.value)
    assert shown[-1].strip() == 'hint: name a second checkpoint with against="OTHER"'
    raised.value.add_note("seen by the caller")
    raised.value.hint = "another one"
    assert traceback.format_exception(raised.value)[-2:] == ["hint: another one\n", "seen by the caller\n"]
    program = "import ptsave; ptsave.verify('state.pt', close=True)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.endswith('\nhint: name a second checkpoint with against="OTHER"\n')


def test_files_take_no_torch(files: Path) -> None:
    program = (
        "import sys, ptsave\n"
        "ptsave.inspect('training.pt', stats=True)\n"
        "ptsave.convert('state.pt', 'b.safetensors')\n"
        "ptsave.verify('b.safetensors', against='state.pt').raise_for_no()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_threads_do_not_meet(files: Path) -> None:
    def work(number: int) -> object:
        name = ["state.pt", "damaged.pt", "model.safetensors", "old.pt"][number % 4]
        if number % 3 == 0:
            return as_json.inspection(ptsave.inspect(name, stats=True))  # type: ignore[arg-type]
        if number % 3 == 1:
            return as_json.verdict(ptsave.verify(name), Path(name))
        if name == "damaged.pt":
            with pytest.raises(ptsave.PtsaveError):
                ptsave.convert(name, f"{number}.safetensors", overwrite=True)
            return None
        options: Any = {"select": "model"} if name == "old.pt" else {}
        ptsave.convert(name, f"{number}.safetensors", overwrite=True, **options)
        return Path(f"{number}.safetensors").read_bytes()

    alone = [work(number) for number in range(12)]
    path, filters = list(sys.path), list(warnings.filters)
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            assert list(pool.map(work, range(12))) == alone
    assert (sys.path, list(warnings.filters), gc.isenabled()) == (path, filters, True)


def test_models_are_verified_in_threads(files: Path) -> None:
    def work(_: int) -> object:
        return as_json.verdict(ptsave.verify("net.pt", config=SIMPLE), Path("net.pt"))

    alone = work(0)
    with ThreadPoolExecutor(3) as pool:
        assert all(one == alone for one in pool.map(work, range(6)))


def test_inspect_says_what_differs(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3), "b": torch.ones(2)}, tmp_path / "a.pt")
    torch.save({"w": torch.zeros(3), "c": torch.ones(2)}, tmp_path / "b.pt")
    found = ptsave.inspect(tmp_path / "a.pt", diff=tmp_path / "b.pt")
    assert (found.is_same, found.only_in_a, found.only_in_b) == (False, ("b",), ("c",))
    assert [tensor.name for tensor in found.different] == ["w"]
    assert ptsave.inspect(tmp_path / "a.pt", diff=tmp_path / "a.pt").is_same
    with pytest.raises(UsageError, match="diff= compares two"):
        ptsave.inspect(tmp_path / "a.pt", tmp_path / "b.pt", diff=tmp_path / "a.pt")  # type: ignore[call-overload]
    with pytest.raises(UsageError, match="stats= would not be used"):
        ptsave.inspect(tmp_path / "a.pt", diff=tmp_path / "b.pt", stats=True)  # type: ignore[call-overload]
