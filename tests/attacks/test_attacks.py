"""Every attack is met as its builder says it must be, by every command that reads files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from safetensors import safe_open

from ptsave.formats import open_checkpoint
from ptsave.formats.writers import BY_NAME
from tests.support import slowness, some

from . import ATTACKS, DESCRIBED, REFUSED, SHOWN, Attack, code_execution
from . import torch_files as tf
from .registry import CANARY, CANARY_MODULE
from .samples import contents
from .sandbox import Run, Sandbox

MAX_CPU_SECONDS = 5
"""On an idle core of the machine that `slowness` is measured by; as many times more where it is slower."""
MAX_PEAK_BYTES = 300 * 10**6
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox()
    yield made
    made.close()


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A working folder in which an import of the canary module would succeed."""
    folder = tmp_path / "case"
    folder.mkdir()
    shutil.copy(HERE / f"{CANARY_MODULE}.py", folder)
    return folder


def build(attack: Attack, case: Path) -> Path:
    folder = case / "files"
    folder.mkdir()
    return attack.build(folder)


def assert_nothing_ran(run: Run, case: Path) -> None:
    assert not (case / CANARY).exists(), "a payload ran"
    assert run.events == [], run.events
    assert not {"torch", CANARY_MODULE} & set(run.modules), run.modules
    left = {path.name for path in case.iterdir()} - {f"{CANARY_MODULE}.py", "files", "out"}
    assert not left, left


def assert_bounded(run: Run) -> None:
    if run.cpu_seconds > MAX_CPU_SECONDS:
        slower = slowness()
        assert run.cpu_seconds <= slower * MAX_CPU_SECONDS, f"{run.cpu_seconds:.1f} s, {slower:.1f}× slower"
    assert run.peak_bytes <= MAX_PEAK_BYTES, f"{run.peak_bytes / 1e6:.0f} MB"


def assert_quiet(stream: bytes) -> str:
    """UTF-8 without a character that a terminal would obey, hide or reorder by."""
    text = stream.decode()
    for character in set(text) - {"\n"}:
        assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"), repr(character)
    return text


def assert_one_error(run: Run) -> str:
    """One `error:` line and one `hint:` line on stderr; returns what the error says."""
    lines = assert_quiet(run.stderr).splitlines()
    assert "Traceback" not in run.stderr.decode()
    assert [line.split(" ")[0] for line in lines] == ["error:", "hint:"], lines
    assert all(len(line) > 12 for line in lines), lines
    return lines[0]


def assert_error_object(run: Run) -> dict[str, Any]:
    error = json.loads(run.stdout)["error"]
    assert error["code"] == run.code
    assert error["what"]
    assert error["hint"]
    return error


def assert_met(attack: Attack, run: Run) -> None:
    """`inspect --json` did what the builder says."""
    text = assert_quiet(run.stdout)
    assert text.isascii()
    if run.code in (3, 4):
        assert REFUSED in attack.outcomes, run.stderr.decode()
        message = assert_one_error(run)
        assert_error_object(run)
        if attack.outcomes == {REFUSED}:
            assert attack.says in message, message
        return
    assert run.code == 0, (run.code, run.stderr.decode())
    assert attack.outcomes & {DESCRIBED, SHOWN}, f"reported as fine: {text[:2000]}"
    described = json.loads(text)
    assert described["schema_version"] == 1
    names = described["globals"]
    if SHOWN not in attack.outcomes:
        assert any(attack.says in name for name in names), names
    assert len({tensor["name"] for tensor in described["tensors"]}) == described["num_tensors"]


def run_inspect(attack: Attack, sandbox: Sandbox, case: Path, path: Path) -> Run:
    run = sandbox.run("inspect", path, "--json", cwd=case)
    assert_nothing_ran(run, case)
    assert_met(attack, run)
    assert_bounded(run)
    return run


QUICK = [attack for attack in ATTACKS.values() if not attack.slow]


def test_there_are_enough() -> None:
    assert len(ATTACKS) >= 120
    groups = {attack.group for attack in ATTACKS.values()}
    assert groups == {path.stem for path in HERE.glob("*.py")} & groups


CODE = [attack for attack in QUICK if attack.group == "code_execution"]
OTHERS = [attack for attack in QUICK if attack.group != "code_execution"]


@pytest.mark.parametrize("attack", [*CODE[::3], *OTHERS[::12]], ids=lambda attack: attack.name)
def test_inspect(attack: Attack, sandbox: Sandbox, case: Path) -> None:
    """The quick form, of some attacks of every kind."""
    run_inspect(attack, sandbox, case, build(attack, case))


NOBODY = 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
@pytest.mark.parametrize("kind", some(["file", "folder", "shard"]))
def test_without_permission(kind: str, sandbox: Sandbox) -> None:
    """As a user who may not read the file, the folder, or one file in the folder."""
    with tempfile.TemporaryDirectory() as made:
        case = Path(made)
        case.chmod(0o777)
        home = tf.sharded(case)
        path = {"file": home / tf.SHARD, "folder": home, "shard": home}[kind]
        (home if kind == "folder" else home / tf.SHARD).chmod(0)
        run = sandbox.run("inspect", path, "--json", cwd=case, user=NOBODY)
        assert run.code == 3
        assert "no permission to read" in assert_one_error(run)


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_every_command(attack: Attack, sandbox: Sandbox, case: Path) -> None:
    path = build(attack, case)
    inspected = run_inspect(attack, sandbox, case, path)

    text = sandbox.run("inspect", path, "--tree", cwd=case)
    assert_nothing_ran(text, case)
    assert_bounded(text)
    assert_quiet(text.stdout)
    assert text.code == inspected.code
    if text.code:
        assert_one_error(text)

    verified = sandbox.run("verify", path, "--checks", "bytes,safe", "--json", cwd=case)
    assert_nothing_ran(verified, case)
    assert_bounded(verified)
    assert_verdict(attack, inspected, verified)

    (case / "out").mkdir()
    destination = case / "out" / "converted.safetensors"
    converted = sandbox.run("convert", path, destination, "--json", cwd=case)
    assert_nothing_ran(converted, case)
    assert_bounded(converted)
    assert_converted(attack, inspected, converted, destination)


def assert_verdict(attack: Attack, inspected: Run, run: Run) -> None:
    """What cannot be read has no verdict; what would run code has no good one."""
    assert_quiet(run.stdout)
    if run.code in (3, 4):
        assert_one_error(run)
        assert_error_object(run)
        return
    assert inspected.code == 0 or SHOWN in attack.outcomes  # too much to show may still be sound
    report = json.loads(run.stdout)
    assert run.code == {"yes": 0, "no": 1}[report["verdict"]], run.stderr.decode()
    if attack.runs_code or json.loads(inspected.stdout).get("globals"):
        assert run.code == 1
        assert any(f["check"] == "safe" and f["level"] == "fail" for f in report["findings"])


def assert_converted(attack: Attack, inspected: Run, run: Run, destination: Path) -> None:
    """What is there afterwards is whole, and where there was a failure nothing is there."""
    assert_quiet(run.stdout)
    if run.code == 0:
        assert inspected.code == 0 or SHOWN in attack.outcomes
        with safe_open(destination, framework="np") as file:
            names = set(file.keys())
        with open_checkpoint(destination) as checkpoint:  # and ties, which only one name is stored for
            assert names <= set(checkpoint.tensors)
            assert len(checkpoint.tensors) == json.loads(run.stdout)["num_tensors"]
        return
    assert run.code in (2, 3, 4), (run.code, run.stderr.decode())
    if inspected.code and SHOWN not in attack.outcomes:
        assert run.code == inspected.code
    assert_one_error(run)
    assert_error_object(run)
    assert list(destination.parent.iterdir()) == []


HARMLESS_NAMES = [a for a in QUICK if a.group == "names" and a.outcomes == {SHOWN}]


@pytest.mark.slow
@pytest.mark.parametrize("attack", HARMLESS_NAMES, ids=lambda attack: attack.name)
def test_names_survive_every_format(attack: Attack, sandbox: Sandbox, case: Path) -> None:
    """Each writer keeps every name or says that it cannot; none writes what cannot be opened again."""
    path = build(attack, case)
    with open_checkpoint(path) as checkpoint:
        tensors = contents(checkpoint)[0]
    (case / "out").mkdir()
    for name in BY_NAME:
        destination = case / "out" / name
        words = ("convert", path, destination, "--format", name, "--extras", "drop", "--json")
        run = sandbox.run(*words, cwd=case)
        assert_nothing_ran(run, case)
        assert_quiet(run.stdout)
        if run.code:
            assert run.code in (3, 4), run.stderr.decode()
            assert_one_error(run)
            assert not destination.exists()
            continue
        with open_checkpoint(destination) as checkpoint:
            assert contents(checkpoint)[0] == tensors


NAMES = [a for a in QUICK if a.group == "names" and a.outcomes != {REFUSED}]


@pytest.mark.slow
@pytest.mark.parametrize("attack", NAMES, ids=lambda attack: attack.name)
def test_names_forge_nothing_in_reports_and_logs(attack: Attack, sandbox: Sandbox, case: Path) -> None:
    path = build(attack, case)
    (case / "out").mkdir()
    for suffix in ("xml", "html", "json"):
        report = case / "out" / f"report.{suffix}"
        words = ("verify", path, "--checks", "bytes,safe", "--report", report)
        run = sandbox.run(*words, cwd=case, environment={"GITHUB_ACTIONS": "true"})
        assert run.code in (0, 1, 3, 4), run.stderr.decode()
        assert_nothing_ran(run, case)
        for line in assert_quiet(run.stdout + run.stderr).splitlines():
            assert not line.lstrip().startswith("::") or line.startswith(("::error file=", "::warning file="))
            assert "##[" not in line
            assert "##vso[" not in line
        if run.code in (0, 1):
            text = assert_quiet(report.read_bytes())
            READ_REPORT[suffix](text)


def read_html(text: str) -> None:
    """Names stand in it as text and not as elements."""
    assert text.startswith("<!DOCTYPE html>")
    assert "<script>alert" not in text


READ_REPORT = {"xml": ElementTree.fromstring, "json": json.loads, "html": read_html}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(code_execution.IN_PT))
def test_the_installed_program_runs_nothing_either(name: str, case: Path) -> None:
    """The same in a process that the tests have no part in, but for its folder."""
    path = build(ATTACKS[name], case)
    command = [sys.executable, "-m", "ptsave", "inspect", str(path), "--json"]
    done = subprocess.run(command, cwd=case, capture_output=True, timeout=60)
    assert not (case / CANARY).exists()
    assert done.returncode in (0, 3, 4), done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
def test_the_payloads_are_live(case: Path) -> None:
    """A real unpickler makes the canary with each that says so: the canary proves something."""
    live = [attack for attack in ATTACKS.values() if attack.fires]
    paths = {}
    for attack in live:
        folder = case / attack.name
        folder.mkdir()
        paths[str(attack.build(folder))] = attack.name
    command = [sys.executable, str(HERE / "victim.py"), *paths]
    done = subprocess.run(command, cwd=case, capture_output=True, text=True, timeout=250)
    fired = {paths[line] for line in done.stdout.splitlines()}
    assert {attack.name for attack in live} - fired == set()
    assert len(live) >= 40
