"""Runs ptsave's command line many times, each in a process of its own, watched and limited.

A server process imports ptsave once and forks for each request, so that a run costs milliseconds and
not a start of Python. The child has limits on memory, time and file size, and an audit hook that
remembers what a payload would have to do. The server is this file, run as a script.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MAX_ADDRESS_BYTES = 3 << 30
"""So that an allocation bomb that goes off does not take the machine with it."""
MAX_FILE_BYTES = 256 << 20
MAX_SECONDS = 15
"""When a run is killed: far beyond what a test allows."""

WATCHED = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "pty.spawn",
    "subprocess.Popen",
    "socket.",
    "urllib.",
    "webbrowser.",
    "ctypes.dlopen",
    "pickle.find_class",
    "code.__new__",
    "marshal.dumps",
    "shutil.",
    "tempfile.",
)
"""Audit events (their names, or how they begin) that nothing in reading a checkpoint may raise."""


@dataclass(frozen=True)
class Run:
    """What one run of the command line did."""

    arguments: tuple[str, ...]
    code: int
    """The exit code; negative for a signal."""
    stdout: bytes
    stderr: bytes
    cpu_seconds: float
    peak_bytes: int
    """Of resident memory."""
    events: list[str]
    """Watched audit events, and files opened for writing outside of the working folder."""
    modules: list[str]
    """What was imported and stands neither in ptsave nor in the server before."""


class Sandbox:
    """The server, from the tests' side."""

    def __init__(self) -> None:
        environment = {
            key: value
            for key, value in os.environ.items()
            if key not in ("NO_COLOR", "FORCE_COLOR", "PTSAVE_DEBUG", "GITHUB_ACTIONS")
        }
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | {"PYTHONHASHSEED": "0"},
            text=True,
        )

    def run(
        self,
        *arguments: object,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        user: int | None = None,
    ) -> Run:
        """Run `ptsave ARGUMENTS` in `cwd`, a folder that also takes the run's output.

        `user`: the id of the user to be, who must be able to write to `cwd`.
        """
        words = tuple(map(str, arguments))
        request = {
            "arguments": [os.fsencode(word).hex() for word in words],
            "cwd": str(cwd),
            "environment": dict(environment or {}),
            "user": user,
        }
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        streams = [(cwd / name).read_bytes() for name in (STDOUT, STDERR)]
        report = cwd / REPORT
        seen = json.loads(report.read_text()) if report.exists() else {"events": ["died"], "modules": []}
        for name in (STDOUT, STDERR, REPORT):
            (cwd / name).unlink(missing_ok=True)
        return Run(words, answer["code"], *streams, answer["cpu_seconds"], answer["peak_bytes"], **seen)

    def close(self) -> None:
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


STDOUT, STDERR, REPORT = ".stdout", ".stderr", ".report"


def _serve() -> None:
    # The server's own folder is the tests': nothing may be imported from there by accident.
    sys.path[:] = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
    sys.dont_write_bytecode = True  # what is imported late may not be compiled yet
    for package in ("core", "formats", "verbs", "render"):
        for module in pkgutil.walk_packages([str(ROOT / "ptsave" / package)], f"ptsave.{package}."):
            importlib.import_module(module.name)
    warm()

    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.environ.update(request["environment"])
            if request["user"] is not None:
                os.setuid(request["user"])
            _child([os.fsdecode(bytes.fromhex(word)) for word in request["arguments"]], request["cwd"])
        _, status, usage = os.wait4(pid, 0)
        answer = {
            "code": os.waitstatus_to_exitcode(status),
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_bytes": usage.ru_maxrss * 1024,
        }
        print(json.dumps(answer), flush=True)


def warm() -> None:
    """Run every command here, so that what it imports late and makes once is there before the first fork."""
    main = importlib.import_module("ptsave.cli.main")
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        first, model, last = (
            os.path.join(folder, name) for name in ("a.safetensors", "a.pt", "b.safetensors")
        )
        header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        Path(first).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            codes = [
                main.run(words)
                for words in (
                    ["convert", first, model, "--json"],
                    ["inspect", model, "--json"],
                    ["inspect", model, "--tree"],
                    ["verify", model, "--checks", "bytes,safe", "--json"],
                    ["convert", model, last, "--json"],
                    ["inspect", os.path.join(folder, "missing"), "--json"],
                )
            ]
    assert codes == [0, 0, 0, 0, 0, 3], codes


def _child(arguments: Sequence[str], cwd: str) -> None:
    """Run the command line, write the report, and leave; never returns."""
    code = 70
    try:
        os.chdir(cwd)
        sys.path.insert(0, cwd)  # as `python -m` has it: what lies there can be imported by its name
        for number, name in ((1, STDOUT), (2, STDERR)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_BYTES, MAX_ADDRESS_BYTES))
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS))
        signal.alarm(4 * MAX_SECONDS)
        before = set(sys.modules)
        events: list[str] = []
        watching = True

        def watch(event: str, details: Any) -> None:
            if watching and (note := _suspicious(event, details, cwd)):
                events.append(note)

        sys.addaudithook(watch)
        sys.argv = ["ptsave", *arguments]
        try:
            from ptsave.cli.main import main

            main()
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 70
        watching = False
        sys.stdout.flush()
        sys.stderr.flush()
        modules = sorted(name for name in set(sys.modules) - before if not name.startswith("ptsave"))
        Path(cwd, REPORT).write_text(json.dumps({"events": events, "modules": modules}))
    finally:
        os._exit(code)


def _suspicious(event: str, details: Any, cwd: str) -> str:
    """A line about an audit event that should not be, or nothing.

    Source: the audit events table of Python's documentation.
    """
    if event == "open":
        path, mode, flags = details
        writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & (
            os.O_WRONLY | os.O_RDWR
        )
        inside = isinstance(path, (str, bytes, int)) and _is_inside(path, cwd)
        # a folder can be opened for writing only to make a file in it that has no name, and leaves no trace
        inside = inside or (isinstance(path, (str, bytes)) and os.path.isdir(path))
        return "" if not writes or inside else f"open for writing: {path!r}"
    if event == "compile":
        source = details[0] if isinstance(details[0], (str, bytes)) else ""
        text = source if isinstance(source, str) else source.decode("utf-8", "replace")
        return f"compile: {text[:80]}" if "canary" in text or "__import__" in text else ""
    if event == "ctypes.dlopen" and details[0] is None:
        return ""
    return f"{event}{str(details)[:80]}" if event.startswith(WATCHED) else ""


def _is_inside(path: str | bytes | int, cwd: str) -> bool:
    if isinstance(path, int) or os.fsdecode(path) == os.devnull:
        return True
    return os.path.realpath(os.fsdecode(path)).startswith(os.path.realpath(cwd) + os.sep)


if __name__ == "__main__":
    _serve()
