"""Pythons that are forked from one that has imported everything: a fork costs milliseconds, a start seconds.

What a forked one does to its files, streams and signals is what a started one does. Tests of the start itself
and of what is imported start real ones.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

PRELOADED = (
    "botocore.httpsession",
    "botocore.session",
    "numpy.random",
    "safetensors.torch",
    "secrets",
    "torch",
    "torch._dynamo",  # which an optimizer imports when it is made
    "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "torch.distributed.tensor.parallel",
    "xxhash",
    "ptsave.__main__",
    "ptsave.cli.main",
    "ptsave.distributed.load",
    "ptsave.distributed.save",
    "ptsave.distributed.verify",
    "ptsave.examples",
    "ptsave.models.load",
    "ptsave.models.save",
    "ptsave.storage.upload.folder",
    "ptsave.storage.upload.s3",
    "ptsave.training",
    "ptsave.verbs.convert",
    "ptsave.verbs.inspect",
    "ptsave.verbs.verify",
    "tests.crash.training",
    "tests.crash.trials",
    "tests.storage.upload.objects",
)


@cache
def context() -> ForkServerContext:
    """What makes the processes; one server for all tests of a worker."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([*PRELOADED])
    return made


class Started:
    """A process that calls `target`, which is `python` or `torchrun`, with words."""

    def __init__(
        self, target: Callable[..., None], *arguments: object, cwd: Path, env: Mapping[str, str]
    ) -> None:
        self.words = [*map(str, arguments)]
        self._said = tempfile.TemporaryDirectory()
        where = os.path.join(self._said.name, "said")
        self._out, self._err = Path(f"{where}.out"), Path(f"{where}.err")
        self.process = context().Process(target=_begin, args=(str(cwd), where, dict(env), target, self.words))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def says(self, word: str, timeout: float = 240) -> str:
        """What it has printed, once a line of it begins so. Raises: AssertionError when it ends before."""
        deadline = time.monotonic() + timeout
        while f"\n{word}" not in f"\n{(said := self._printed())}":
            assert self.process.is_alive(), self._err.read_text()
            assert time.monotonic() < deadline, word
            time.sleep(0.01)
        return said

    def _printed(self) -> str:
        return self._out.read_text() if self._out.exists() else ""

    def kill(self) -> None:
        """End it, and return when it is gone. Any thread may, while another one waits."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
            while True:
                time.sleep(0.001)
                os.kill(self.pid, 0)

    def wait(self, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Return how it ended, once; `returncode` is minus the signal where one ended it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise subprocess.TimeoutExpired(self.words, timeout, stderr=self._err.read_bytes())
        ended = subprocess.CompletedProcess(
            self.words, self.process.exitcode, self._out.read_text(), self._err.read_text()
        )
        self._said.cleanup()
        return ended


def run(
    target: Callable[..., None], *arguments: object, cwd: Path, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Return how a process ended that calls `target` with words."""
    return Started(target, *arguments, cwd=cwd, env=env).wait()


def settle(cwd: str, where: str) -> None:
    """Go to `cwd`, and have what is printed go to the files `where` with `.out` and `.err`."""
    os.chdir(cwd)
    for stream, number in (("out", 1), ("err", 2)):
        fd = os.open(f"{where}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(fd, number)
        os.close(fd)


def _begin(
    cwd: str, where: str, env: Mapping[str, str], target: Callable[..., None], words: list[str]
) -> None:
    settle(cwd, where)
    os.environ.clear()
    os.environ.update(env)
    target(*words)


def python(*words: str) -> None:
    """What `python WORDS` does, in this process; `-m MODULE`, `-c CODE` or a script, and what comes after."""
    import torch

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if "PYTHONWARNINGS" in os.environ:
        warnings.resetwarnings()
        warnings.simplefilter(os.environ["PYTHONWARNINGS"])  # type: ignore[arg-type]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    how, name, *rest = words
    sys.argv = [how if how == "-c" else name, *rest]
    if how == "-m":
        sys.path.insert(0, os.getcwd())
        sys.modules.pop(f"{name}.__main__", None)
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.path.insert(0, "")
        exec(compile(name, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(how)))
        sys.argv = [*words]
        runpy.run_path(how, run_name="__main__")


def torchrun(*words: str) -> None:
    """What `torchrun WORDS` does, but that the ranks are forked from this process."""
    from torch.distributed import run as launcher
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    subprocess_handler.Popen = Rank  # type: ignore[assignment,misc]
    launcher.main([*words])


class Rank:
    """What torchrun sees of a rank: as much of a `Popen` as it uses."""

    def __init__(self, args: tuple[str, ...], env: Mapping[str, str], **streams: Any) -> None:
        words = [word for word in args[1:] if word != "-u"]
        self._process = multiprocessing.get_context("fork").Process(target=_rank, args=(words, env))
        self._process.start()
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.setpgid(self._process.pid, 0)  # torchrun sends its signals to the group of a rank

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a rank", timeout)


def _rank(words: list[str], env: Mapping[str, str]) -> None:
    os.environ.update(env)
    python(*words)
