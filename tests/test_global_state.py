"""Nothing global in somebody's process changes when its threads call the public verbs."""

from __future__ import annotations

import gc
import logging
import os
import random
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks

import ptsave
from ptsave.config.model import ConfigPlace
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import destination_writer
from ptsave.models.imports import import_object, users_code
from ptsave.models.save import add_behaviour
from ptsave.models.seeding import first_use_kept, seeded
from ptsave.models.verify.one import Request
from ptsave.models.verify.run import subject_of, verify_model
from ptsave.verbs import verify
from ptsave.verbs.checks.subject import Subject
from ptsave.verbs.convert import convert
from ptsave.verbs.edit import Edits
from ptsave.verbs.inspect import inspect

NET = """
import random, time
import numpy as np
import torch

class Net(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.fc = torch.nn.Linear(size, size)
        self.drawn = random.random() + np.random.rand() + torch.rand(1).item()
        time.sleep(random.Random().random() / 200)
        import global_state_later

    def forward(self, x):
        time.sleep(0.0005)
        return self.fc(x) + 0 * torch.rand(1)
"""
CONFIG = '[model]\nclass = "global_state_nets.Net"\nargs = {size = 3}\n[inputs.x]\nshape = [2, 3]\n'
NUM_THREADS = 4


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a user's code, whose classes draw random numbers, print nothing and take their time."""
    (tmp_path / "global_state_nets.py").write_text(NET)
    (tmp_path / "global_state_later.py").write_text("")
    (tmp_path / "c.toml").write_text(CONFIG)
    yield tmp_path
    for name in ("global_state_nets", "global_state_later"):
        sys.modules.pop(name, None)


def snapshot() -> dict[str, Any]:
    """What is global in a process, and a library could change."""
    umask = os.umask(0)
    os.umask(umask)
    backends = torch.backends
    return {
        "warnings": (list(warnings.filters), warnings.showwarning),
        "paths": (list(sys.path), list(sys.meta_path), list(sys.path_hooks)),
        "streams": (sys.stdout, sys.stderr, sys.stdin),
        "interpreter": (sys.getswitchinterval(), sys.getrecursionlimit(), sys.excepthook, sys.gettrace()),
        "threads": (threading.excepthook, threading.active_count()),
        "gc": (gc.isenabled(), gc.get_threshold(), list(gc.callbacks)),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "process": (dict(os.environ), os.getcwd(), umask, resource.getrlimit(resource.RLIMIT_NOFILE)),
        "logging": {
            name: (one.level, one.disabled, list(one.handlers))
            for name, one in [("root", logging.root), *logging.root.manager.loggerDict.items()]
            if isinstance(one, logging.Logger)
        },
        "random": (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        "numpy": (np.geterr(), np.get_printoptions()),
        "torch": (
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.is_anomaly_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_num_threads(),
            torch.get_num_interop_threads(),
            torch.is_warn_always_enabled(),
            torch.get_float32_matmul_precision(),
            torch.__future__.get_overwrite_module_params_on_conversion(),
        ),
        "backends": (backends.mkldnn.enabled, backends.cudnn.enabled, backends.cudnn.benchmark),
        "classes": {kind: dict(vars(kind)) for kind in (nn.Parameter, nn.Module, nn.Linear, torch.Tensor)},
        "hooks": {
            name: dict(value)
            for name, value in vars(hooks).items()
            if name.startswith("_global_") and isinstance(value, dict)
        },
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names of what differs; loggers that came into being are of the modules that were imported."""
    after["logging"] = {name: after["logging"][name] for name in before["logging"]}
    return [name for name, value in before.items() if after[name] != value]


def verbs(folder: Path, own: Path, config: Path, quantized: Path) -> list[Callable[[], Any]]:
    """Each public verb, as one thread calls it with files of its own."""
    own.mkdir()
    model = nn.Linear(3, 3)
    weights = {f"fc.{name}": tensor for name, tensor in model.state_dict().items()}
    saved = own / "m.pt"
    ptsave.save(saved, weights)

    def load() -> None:
        ptsave.load(saved, config=config, app_dir=folder)

    def open_() -> None:
        with ptsave.open(saved) as checkpoint:
            checkpoint.state_dict()

    def look() -> None:
        with open_checkpoint(saved) as checkpoint:
            inspect(checkpoint)

    def move() -> None:
        with open_checkpoint(saved) as source:
            target = own / "m.safetensors"
            convert([source], target, destination_writer(target, None), WriteOptions(overwrite=True), Edits())

    def judge() -> None:
        with open_checkpoint(saved) as source:
            asked = verify.choose(None, config=config)
            subject = subject_of(Request(saved, asked, app_dir=folder), source, None, lambda text: None)
            findings = verify.verify_file(Subject(source, asked=asked), lambda name: None)
            assert verify_model(subject, asked.names, findings, lambda name: None).is_yes
            add_behaviour(subject)

    return [
        lambda: ptsave.save(own / "n.pt", weights),
        load,
        open_,
        look,
        move,
        judge,
        lambda: ptsave.read_training(saved),
        lambda: ptsave.read_training(quantized),
    ]


@pytest.mark.filterwarnings("ignore:torch.quantize")  # torch's own word, once in a process
def test_every_verb_in_many_threads(folder: Path) -> None:
    scale = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    torch.save({"w": torch.ones(3), "q": scale}, folder / "q.pt")
    own = [verbs(folder, folder / str(i), folder / "c.toml", folder / "q.pt") for i in range(NUM_THREADS)]
    for verb in own[0]:
        verb()  # what is imported late has been
    before = snapshot()

    def call(number: int) -> None:
        for place in range(len(own[number])):
            own[number][(place + 2 * number) % len(own[number])]()

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(call, range(NUM_THREADS)))
    assert changed(before, snapshot()) == []


@pytest.mark.parametrize("order", ["first in, first out", "first in, last out"])
def test_blocks_that_overlap(folder: Path, order: str) -> None:
    """Two threads that run code of the user's at once: whoever leaves first, all is as before at the end."""
    inside, go = threading.Event(), threading.Event()
    failed: list[BaseException] = []
    make = import_object("global_state_nets.Net", ConfigPlace("c.toml"), folder)
    before = snapshot()

    def other() -> None:
        try:
            with seeded(None), users_code(folder, "code", ConfigPlace("c.toml")):
                inside.set()
                go.wait(10)
                make(size=3)  # which imports from the folder
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=other)
    if order == "first in, last out":
        thread.start()
        inside.wait(10)
        with users_code(folder, "code", ConfigPlace("c.toml")):
            pass
    else:
        with users_code(folder, "code", ConfigPlace("c.toml")):
            thread.start()
            inside.wait(10)
    go.set()
    thread.join()
    assert not failed
    assert changed(before, snapshot()) == []


def test_random_numbers_of_two_threads(folder: Path) -> None:
    before = snapshot()
    threads = [threading.Thread(target=draw, args=(number,)) for number in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert changed(before, snapshot()) == []


def draw(seed: int) -> None:
    with seeded(seed):
        expected = torch.Generator().manual_seed(seed)
        for _ in range(5):
            time.sleep(0.001)
            assert torch.equal(torch.rand(3), torch.rand(3, generator=expected))


def test_no_seed_of_ours_waits_for_a_device() -> None:
    module: Any = torch.cuda
    waiting, calls = dict(vars(module._lazy_seed_tracker)), list(module._queued_calls)
    with seeded(3):
        pass
    assert vars(module._lazy_seed_tracker) == waiting
    assert module._queued_calls == calls


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device that is in use has nothing that waits")
def test_the_seed_that_waits_for_a_device_is_the_users() -> None:
    module: Any = torch.cuda
    before = dict(vars(module._lazy_seed_tracker))
    try:
        torch.cuda.manual_seed(1)
        torch.cuda.manual_seed_all(2)
        waiting, calls = dict(vars(module._lazy_seed_tracker)), list(module._queued_calls)
        with first_use_kept(module):
            torch.manual_seed(3)
            torch.cuda.set_rng_state(torch.zeros(16, dtype=torch.uint8))
            assert vars(module._lazy_seed_tracker) != waiting
            assert len(module._queued_calls) > len(calls)
        assert vars(module._lazy_seed_tracker) == waiting
        assert module._queued_calls == calls
    finally:
        vars(module._lazy_seed_tracker).update(before)
