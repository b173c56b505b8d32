"""torch still says what `torch_texts` looks for: each text is checked against the real error."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ptsave.models.torch_texts import has_timed_out, is_about, is_not_copied, is_of_gloo, loading_errors

TWO = """
import datetime, os, sys
import torch, torch.distributed as dist
from ptsave.models.torch_texts import has_timed_out, is_of_gloo
rank, port, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
waits = datetime.timedelta(seconds=20 if how == "dies" else 2)
address = f"tcp://localhost:{port}"
dist.init_process_group("gloo", address, timeout=waits, world_size=2, rank=rank)
dist.barrier()
if rank == 1 and how == "dies":
    os._exit(0)
if rank == 1:
    sys.stdin.read()
    os._exit(0)
try:
    dist.all_reduce(torch.zeros(1))
except RuntimeError as error:
    print(is_of_gloo(error), has_timed_out(error))
    sys.stdout.flush()
os._exit(0)
"""


def errors(model: nn.Module, state: dict[str, torch.Tensor]) -> list[str]:
    with pytest.raises(RuntimeError) as raised:
        model.load_state_dict(state)
    found = loading_errors(raised.value)
    assert found is not None
    return found


def test_another_shape() -> None:
    (text,) = errors(nn.Linear(2, 3), {"weight": torch.zeros(3, 9), "bias": torch.zeros(3)})
    assert is_about(text, "weight")
    assert not is_about(text, "bias")
    assert not is_not_copied(text)


def test_a_value_without_memory() -> None:
    state = {"weight": torch.empty(3, 2, device="meta"), "bias": torch.zeros(3)}
    (text,) = errors(nn.Linear(2, 3), state)
    assert is_not_copied(text)


def test_another_error() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.zeros(2) @ torch.zeros(3)
    assert loading_errors(raised.value) is None
    assert not is_of_gloo(raised.value)
    assert not has_timed_out(raised.value)


def test_a_store_that_nobody_fills() -> None:
    store = dist.TCPStore("localhost", 0, is_master=True, timeout=timedelta(milliseconds=20))
    with pytest.raises(dist.DistError) as raised:
        store.get("never")
    assert has_timed_out(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "said"), [("dies", "True False"), ("hangs", "True True")])
def test_a_rank_that_does_not_come(how: str, said: str) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    argv = [sys.executable, "-c", TWO]
    pipe = subprocess.PIPE
    with subprocess.Popen([*argv, "1", port, how], stdin=pipe) as other:
        first = subprocess.run([*argv, "0", port, how], stdout=pipe, text=True, timeout=120, check=True)
        other.communicate()
    assert first.stdout.strip() == said
