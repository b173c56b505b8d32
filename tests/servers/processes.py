"""Servers of others, each a process on a free port while it is used."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_LIBC = ctypes.CDLL(None)  # found before any fork
START_S = 30  # they start within three seconds; a machine that tests on all its cores is slower


def free_port() -> int:
    """A port that nothing listens on. For servers that cannot say which one they took."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def process(command: Sequence[str | Path], port: int, log: Path, **env: str) -> Iterator[str]:
    """The URL of the server that `command` starts on `port`, once it listens; what it prints is in `log`.

    Raises:
        RuntimeError: it ended by itself or did not listen in time; what it printed is in the text.
    """
    with log.open("wb") as output:
        server = subprocess.Popen(
            list(map(str, command)),
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    try:
        _wait(server, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _end_with_parent() -> None:
    """Ask Linux to end this process when the tests are killed. Source: prctl(2), PR_SET_PDEATHSIG is 1."""
    _LIBC.prctl(1, signal.SIGTERM)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{server.args!r} does not listen on {port}:\n{log.read_text(errors='replace')}")
