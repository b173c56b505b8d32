"""A checkpoint that somebody writes to while a command reads it ends the command, and makes no file."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ptsave.cli import main
from ptsave.errors import UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import WRITERS, destination_writer
from ptsave.models.save import add_behaviour
from ptsave.models.verify.one import Request
from ptsave.models.verify.run import subject_of
from ptsave.verbs.checks.subject import Asked
from ptsave.verbs.convert import convert
from ptsave.verbs.edit import Edits

SIMPLE = Path(__file__).parents[1] / "configs" / "simple_net.toml"
NUM_BYTES = 4_000_000
WRITER = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
byte = os.pread(fd, 1, 0)
os.pwrite(fd, byte, 0)
print("writing", flush=True)
while True:
    os.pwrite(fd, byte, 0)
    time.sleep(0.001)
"""


def _make(kind: str, folder: Path, num_bytes: int = NUM_BYTES) -> tuple[Path, Path]:
    """A checkpoint, without checksums where its kind can be, and its file with the tensors."""
    path, state = folder / kind, {name: torch.zeros(num_bytes // 8) for name in ("a", "b")}
    if kind in ("pt", "legacy"):
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pt")
    elif kind == "safetensors":
        save_file(state, path)
    elif kind == "npz":
        np.savez(path.with_suffix(".npz"), **{name: tensor.numpy() for name, tensor in state.items()})
        path = path.with_suffix(".npz")
    else:
        save_file(state, folder / "flat")
        words = ["convert", folder / "flat", path, "--format", kind, "--no-record"]
        assert main.run([*map(str, words), "-q"]) == 0
        return path, next(path.glob("*.distcp" if kind == "dcp" else "*.safetensors"))
    return path, path


@contextmanager
def written_to(path: Path) -> Iterator[None]:
    """While open, another process writes what is there already, in place."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    try:
        yield
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()


@pytest.mark.parametrize(
    ("kind", "target"),
    [(kind, "pt") for kind in ("pt", "legacy", "npz", "safetensors-sharded", "dcp")]
    + [("safetensors", writer.name) for writer in WRITERS],
)
def test_no_mix_is_converted(tmp_path: Path, kind: str, target: str) -> None:
    path, data = _make(kind, tmp_path)
    time.sleep(0.02)  # clocks of file systems are coarse
    begun: list[int] = []

    def overwrite(num_bytes: int) -> None:
        if not begun:
            begun.append(num_bytes)
            fd = os.open(data, os.O_WRONLY)
            os.pwrite(fd, b"\x7f" * 1000, os.fstat(fd).st_size // 2)
            os.close(fd)

    options = WriteOptions(progress=overwrite, check=False)
    destination, writer = tmp_path / "out", destination_writer(tmp_path, target)
    with (
        pytest.raises(UnreadableError, match="was changed while it was read") as caught,
        open_checkpoint(path) as checkpoint,
    ):
        convert([checkpoint], destination, writer, options, Edits())
    assert caught.value.exit_code == 3
    assert begun
    assert not destination.exists()
    assert not [name for name in os.listdir(tmp_path) if name.endswith("tmp")]


def test_a_shard_that_is_replaced_under_its_name_is_a_change(tmp_path: Path) -> None:
    """As a writer does that keeps the names of an older save."""
    path, data = _make("safetensors-sharded", tmp_path)

    save_file({"a": torch.ones(1)}, tmp_path / "new")

    def replace(num_bytes: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # the first call has done it
            os.replace(tmp_path / "new", data)

    options, writer = WriteOptions(progress=replace, overwrite=True), destination_writer(tmp_path, "pt")
    (tmp_path / "out").write_text("old")
    with pytest.raises(UnreadableError, match="was changed"), open_checkpoint(path) as checkpoint:
        convert([checkpoint], tmp_path / "out", writer, options, Edits())
    assert (tmp_path / "out").read_text() == "old"


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        "verify {0} --checks bytes,finite",
        "verify {0} --checks finite --report report.json",
        "verify other --against {0}",
        "inspect {0} --stats",
        "inspect {0} --diff other",
        "convert {0} out.pt",
    ],
)
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_no_verdict_of_what_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], kind: str, line: str
) -> None:
    path, data = _make(kind, tmp_path, 100_000_000)
    monkeypatch.chdir(tmp_path)
    shutil.copy(path, "other")
    with written_to(data):
        code = main.run(line.format(path.name).split())
    out, err = capfd.readouterr()
    assert code == 3, (out, err)
    assert "was changed while it was read" in err
    assert not Path("report.json").exists()
    assert not Path("out.pt").exists()


LARGE = """
[model]
class = "torch.nn.Linear"

[model.args]
in_features = 5000
out_features = 5000
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", ["load a.safetensors -c c.toml", "save c.toml out.pt --weights a.safetensors"]
)
def test_no_model_of_what_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(LARGE)
    save_file({"weight": torch.ones(5000, 5000), "bias": torch.ones(5000)}, "a.safetensors")
    with written_to(Path("a.safetensors")):
        code = main.run(line.split())
    assert code == 3
    assert "was changed while it was read" in capfd.readouterr().err
    assert not Path("out.pt").exists()


@pytest.mark.parametrize("format", ["pt", "safetensors", "safetensors-sharded", "dcp"])
def test_recording_replaces_the_version_that_was_read_alone(tmp_path: Path, format: str) -> None:
    def save(path: Path, seed: int, *flags: str) -> None:
        words = ["save", SIMPLE, path, "--format", format, "--seed", seed, "-q", *flags]
        assert main.run([str(word) for word in words]) == 0

    def contents() -> dict[str, bytes]:
        path = tmp_path / "net"
        files = [path] if path.is_file() else sorted(path.iterdir())
        return {file.name: file.read_bytes() for file in files}

    def record(change: Callable[[], None]) -> None:
        with open_checkpoint(tmp_path / "net") as source:
            request = Request(tmp_path / "net", Asked((), config=SIMPLE), app_dir=tmp_path)
            subject = subject_of(request, source, None, lambda line: None)
            subject.model()
            change()
            add_behaviour(subject)

    save(tmp_path / "net", 0, "--no-record")
    with pytest.raises(UnreadableError, match="was changed"):
        record(lambda: save(tmp_path / "net", 1, "--overwrite", "--no-record"))
    newer = contents()
    save(tmp_path / "again", 1, "--no-record")
    assert main.run(["inspect", str(tmp_path / "net"), "--diff", str(tmp_path / "again")]) == 0
    assert contents() == newer
    record(lambda: None)
    assert contents() != newer
