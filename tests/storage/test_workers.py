"""Where no thread is to be had, the caller does the work."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ptsave
from ptsave.cli import app
from ptsave.errors import PtsaveError
from ptsave.storage.fetch import fetching


@pytest.fixture
def no_threads() -> Iterator[None]:
    """Each new thread asks for more memory for its stack than a process can have."""
    before = threading.stack_size(1 << 47)
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=print).start()
        yield
    finally:
        threading.stack_size(before)


@pytest.mark.usefixtures("no_threads")
def test_everything_works_without_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(200, 200)
    ptsave.save("a.pt", model)
    assert torch.equal(ptsave.load("a.pt", torch.nn.Linear(200, 200)).weight, model.weight)
    with ptsave.open("a.pt") as checkpoint:
        assert torch.equal(checkpoint.state_dict()["weight"], model.weight)
    state = ptsave.TrainingState(model=model, optimizer=torch.optim.Adam(model.parameters()))
    with ptsave.Checkpoints("run") as keeper, warnings.catch_warnings():
        warnings.simplefilter("error")
        keeper.save(state, step=0)
        keeper.save(state, step=1)
        keeper.wait()
        assert keeper.resume(state) == 2
    assert app.run(["convert", "a.pt", "b.safetensors", "-q"]) == 0
    assert app.run(["verify", "b.safetensors", "-q"]) == 0


@pytest.mark.usefixtures("no_threads")
def test_an_error_comes_out_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise PtsaveError("no")

    with fetching() as pool:
        begun = pool.submit(fail)
        with pytest.raises(PtsaveError, match="no"):
            begun.result()
