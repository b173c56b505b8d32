"""Frames that hide a call: what `torch.load` runs, in a process of its own, and ptsave refuses.

Source: CPython's Modules/_pickle.c (`_Unpickler_ReadImpl`): past the first 128 KiB of a file, a string that
lies across the end of its frame is read from elsewhere, and its tail is executed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ptsave.errors import PtsaveError
from ptsave.formats import open_checkpoint

from . import torch_files as tf
from .pickle_programs import frame
from .pickles import MARK, NONE, POP, REDUCE, STOP, TUPLE1, dump, glob, text

CHILD = """
import os, sys, warnings, torch
warnings.simplefilter("ignore")
def canary(*args):
    print("ran", *args, flush=True)
os.system = canary
for path in sys.argv[1:]:
    print("file", path, flush=True)
    try:
        torch.load(path, weights_only=False)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""
CALL = glob("os", "system") + text("id") + TUPLE1 + REDUCE
LEGACY_HEAD = dump(tf.MAGIC) + dump(1001) + dump(tf.SYSTEM_INFO)


def _legacy(pickle: bytes) -> bytes:
    return tf.legacy(pickle, (), ())


HEADS: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "zip": (tf.pt_raw, 0),  # whose record is a stream of its own
    "legacy": (_legacy, len(LEGACY_HEAD)),
}
"""How a container is made of a pickle, and the bytes that its reader has read before."""


def _file(kind: str, body: bytes) -> bytes:
    """A file whose `body` begins where the C reader has used up what it has looked ahead to."""
    make, head_bytes = HEADS[kind]
    filler = b"V" + b"a" * (8192 * 16 - 17 - head_bytes) + b"\n" + POP
    return make(b"\x80\x05" + NONE + filler + body + STOP)


def _hidden(lead: bytes) -> bytes:
    """A string of 263 bytes that hides a call from who reads it whole."""
    return lead + b"B\x07\x01\0\0" + b"\0\0" + (CALL + MARK).ljust(261, NONE) + b"1"


BODIES = {
    "crossed": MARK + _hidden(frame(2)),
    "crossed in a second frame": MARK + frame(1) + NONE + _hidden(frame(2)),
    "nested": MARK + frame(30) + NONE + _hidden(frame(2)),
    "longer than what follows": frame(2**20) + CALL + POP,
    "longer than any file": frame(2**62) + CALL + POP,
    "unframed opcode while a frame is open": frame(len(CALL) + 3) + CALL + POP,
    "overrun by STOP": CALL + POP + frame(9),
}
FILES = {f"{name}, {kind}": _file(kind, body) for name, body in BODIES.items() for kind in HEADS}


def ran(files: dict[str, bytes], folder: Path) -> set[str]:
    """The files of which `torch.load(weights_only=False)` runs the call."""
    for index, data in enumerate(files.values()):
        (folder / f"{index}.pt").write_bytes(data)
    paths = [str(folder / f"{index}.pt") for index in range(len(files))]
    done = subprocess.run([sys.executable, "-c", CHILD, *paths], capture_output=True, text=True, check=True)
    found = set()
    for part in done.stdout.split("file ")[1:]:
        path, _, said = part.partition("\n")
        if "ran id" in said:
            found.add(list(files)[int(Path(path).stem)])
    return found


@pytest.mark.slow
def test_what_torch_runs_ptsave_refuses(tmp_path: Path) -> None:
    running = ran(FILES, tmp_path)
    assert {"crossed, zip", "crossed, legacy"} <= running
    for index, name in enumerate(FILES):
        with pytest.raises(PtsaveError) as refused:
            open_checkpoint(tmp_path / f"{index}.pt")
        assert "frame" in refused.value.what, name


@pytest.mark.parametrize("kind", HEADS)
def test_frames_as_picklers_write_them(kind: str, tmp_path: Path) -> None:
    """The same call in a frame of its own is read, and named."""
    body = frame(1) + NONE + frame(len(CALL) + 1) + CALL
    (tmp_path / "m.pt").write_bytes(_file(kind, body))
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        assert checkpoint.globals.keys() == {"os.system"}
