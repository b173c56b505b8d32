"""Architectures of many kinds: exported to both formats, compared with the model, given eight faults each."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import ptsave
from tests.export import faults
from tests.export.architectures import ARCHITECTURES
from tests.support import Command

pytestmark = pytest.mark.slow


def exported(name: str, folder: Path, ptsave_here: Command) -> None:
    """Write a config, fresh weights and both programs of an architecture: `model.*` in `folder`."""
    if ARCHITECTURES[name].target.startswith("transformers."):
        import transformers

        transformers.logging.set_verbosity_error()  # its logger writes to a stream that another test captured
    (folder / "model.toml").write_text(ARCHITECTURES[name].toml())
    ptsave_here("save", "model.toml", "model.safetensors")
    for format in ARCHITECTURES[name].formats:
        done = ptsave_here("convert", "model.safetensors", f"model.{format}", "-c", "model.toml", "--json")
        assert json.loads(done.stdout)["proof"]["verdict"] == "yes"
        assert "yes: " in ptsave_here("verify", f"model.{format}", "--checks", "bytes,safe,program").stdout
        ptsave_here("verify", f"model.{format}", "--against", "model.safetensors", "-c", "model.toml")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_is_exported_and_each_fault_is_a_no_with_its_cause(
    name: str, tmp_path: Path, ptsave_here: Command
) -> None:
    exported(name, tmp_path, ptsave_here)
    for pt2_fault, cause in faults.PT2.items():
        archive = faults.Archive(tmp_path / "model.pt2")
        pt2_fault(archive)
        archive.write(tmp_path / "changed.pt2")
        because(tmp_path / "changed.pt2", cause, pt2_fault.__name__)
    if "onnx" not in ARCHITECTURES[name].formats:
        return
    model = onnx.load(tmp_path / "model.onnx")
    for fault, cause in faults.ONNX.items():
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        fault(changed)
        onnx.save(changed, tmp_path / "changed.onnx")
        because(tmp_path / "changed.onnx", cause, fault.__name__)
    faults.onnx_dtype(model)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "changed.onnx")
    done = ptsave_here(
        *("verify", "changed.onnx", "--against", "model.safetensors", "-c", "model.toml"),
        *("--checks", "against"),
        code=1,
    )
    assert "the program computes otherwise: " in done.stdout


def because(path: Path, cause: str, fault: str) -> None:
    """The file's verdict is no, for a cause that begins so."""
    verdict = ptsave.verify(path)
    assert not verdict.is_yes, fault
    assert verdict.because.startswith(cause), (fault, verdict.because)
