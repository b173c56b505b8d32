"""What a command does not import: torch takes 1.5 s, numpy 0.2 s."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest

from ptsave.formats import open_checkpoint
from ptsave.formats.writers import BY_NAME

HEAVY = ("torch", "numpy", "transformers")

DRIVER = f"""
import json, sys
from ptsave.cli.main import main

for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as done:
        if done.code:
            sys.exit(f"{{arguments}} exited with {{done.code}}")
    heavy = [name for name in {HEAVY} if name in sys.modules]
    if heavy:
        break
sys.stdout.flush()
print(json.dumps([*arguments, *heavy] if heavy else []), file=sys.stderr)
"""


def loaded(env: dict[str, str], *commands: list[str]) -> list[str]:
    """The first of the commands, run in one fresh process, that imports heavy modules, and those modules."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(commands)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stderr.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same few tensors in every format that torch, safetensors and numpy write."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("formats")
    state = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.ones(2, dtype=torch.float16))
    paths = {kind: folder / name for kind, name in NAMES.items()}
    torch.save(state, paths["pt"])
    torch.save(state, paths["legacy"], _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "model_state_dict": state}, paths["training"])
    torch.save(torch.nn.Linear(3, 2), paths["module"])
    save_file(state, paths["safetensors"])
    np.savez(paths["npz"], weight=np.arange(6.0))
    for shard, name in enumerate(state, 1):
        save_file({name: state[name]}, folder / f"model-{shard:05}-of-00002.safetensors")
    weight_map = {name: f"model-{shard:05}-of-00002.safetensors" for shard, name in enumerate(state, 1)}
    index = json.dumps({"metadata": {"total_size": 28}, "weight_map": weight_map})
    paths["sharded"].write_text(index)
    return paths | {"sharded": folder}


NAMES = {
    "pt": "weights.pt",
    "legacy": "legacy.pt",
    "training": "training.pt",
    "module": "module.pt",
    "safetensors": "weights.safetensors",
    "npz": "arrays.npz",
    "sharded": "model.safetensors.index.json",
}


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What takes torch seconds to write: TorchScript, torch.export, torch.distributed.checkpoint."""
    import torch
    import torch.distributed.checkpoint as dcp

    folder = tmp_path_factory.mktemp("rare")
    paths = {kind: folder / kind for kind in RARE}
    model = torch.nn.Linear(3, 2).eval()
    with warnings.catch_warnings(action="ignore"):  # torch's own deprecations
        torch.jit.trace(model, torch.zeros(1, 3)).save(str(paths["script.pt"]))
        torch.export.save(torch.export.export(model, (torch.zeros(1, 3),)), paths["exported.pt2"])
        dcp.save(model.state_dict(), checkpoint_id=paths["distributed"], no_dist=True)
    return paths


RARE = ("script.pt", "exported.pt2", "distributed")


def test_importing_ptsave_imports_nothing_heavy(clean_env: dict[str, str]) -> None:
    code = f"import sys, ptsave; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=clean_env, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_help_imports_nothing_heavy(clean_env: dict[str, str]) -> None:
    commands = ([], ["save"], ["load"], ["inspect"], ["convert"], ["verify"])
    assert loaded(clean_env, *([*command, "--help"] for command in commands)) == []


def test_help_imports_no_command(clean_env: dict[str, str]) -> None:
    code = (
        "import sys\nfrom ptsave.cli import main as cli\ncli.run(['--help'])\n"
        "parts = ('export.either', 'core.record', 'formats', 'render.as_json', 'render.report', 'verbs')\n"
        "print([part for part in parts if f'ptsave.{part}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=clean_env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_inspect_imports_nothing_heavy(checkpoints: dict[str, Path], clean_env: dict[str, str]) -> None:
    ways = ([], ["--json"], ["--tree"])
    commands = (["inspect", *way, str(path)] for path in checkpoints.values() for way in ways)
    assert loaded(clean_env, *commands) == []


def test_convert_imports_nothing_heavy(
    checkpoints: dict[str, Path], clean_env: dict[str, str], tmp_path: Path
) -> None:
    commands = []
    for kind, path in checkpoints.items():
        (tmp_path / kind).mkdir()
        commands += conversions(path, tmp_path / kind)
    assert loaded(clean_env, *commands) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", RARE)
def test_rare_formats_import_nothing_heavy(
    kind: str, rare: dict[str, Path], clean_env: dict[str, str], tmp_path: Path
) -> None:
    assert loaded(clean_env, ["inspect", str(rare[kind])], *conversions(rare[kind], tmp_path)) == []


def conversions(source: Path, folder: Path) -> list[list[str]]:
    """`convert` of the source's tensors to every format that is written (npz has no bfloat16)."""
    with open_checkpoint(source) as checkpoint:
        has_bias = any("bias" in name for name in checkpoint.tensors)
    return [
        ["convert", str(source), str(folder / f"as-{name}"), "--format", name, "--extras", "drop"]
        + (["--drop", "*bias*"] if name == "npz" and has_bias else [])
        for name in BY_NAME
    ]


def test_verifying_bytes_imports_nothing_heavy(
    checkpoints: dict[str, Path], clean_env: dict[str, str]
) -> None:
    commands = (
        ["verify", str(checkpoints[kind]), "--checks", "bytes,safe"] for kind in ("pt", "safetensors")
    )
    assert loaded(clean_env, *commands) == []
