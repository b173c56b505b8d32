"""What a user does with a store, from end to end: save, record, load, compare, and find damage."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ptsave
from tests.servers.stores import Store

CONFIG = Path(__file__).parents[3] / "configs" / "simple_net.toml"


def run(store: Store, *words: str) -> tuple[int, str]:
    """The exit code and all that `ptsave WORDS` prints."""
    command = [sys.executable, "-m", "ptsave", *words]
    done = subprocess.run(command, env=os.environ | store.env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_from_end_to_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = f"{store.address}/run/net.pt", f"{store.address}/run/net.safetensors"
    config = ("-c", str(CONFIG))
    for words in (
        ("save", str(CONFIG), first),
        ("verify", first, *config, "--record"),
        ("verify", first, *config),
    ):
        code, said = run(store, *words)
        assert code == 0, said
    for name, value in store.env.items():
        monkeypatch.setenv(name, value)
    ptsave.save(second, ptsave.load(first, config=CONFIG))
    code, said = run(store, "verify", second, "--against", first)
    assert code == 0, said
    assert "4 tensors are bitwise equal" in said
    whole = store.get("run/net.safetensors")
    damaged = bytearray(whole)
    damaged[-3] ^= 1
    store.put("run/net.safetensors", bytes(damaged))
    assert run(store, "verify", second)[0] == 1
    store.put("run/net.safetensors", whole[:-20])
    assert run(store, "inspect", second)[0] == 3
