"""The .npz writer, checked against NumPy."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from ptsave.core.record import Record
from ptsave.errors import LossyError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.npz.write import write
from ptsave.storage.scan import tensor_digest
from tests.formats.write_cases import NUMPY_DTYPES, bits, checkpoint_of, state_dicts
from tests.support import examples

OPTIONS = WriteOptions(overwrite=True)


@given(state_dicts(NUMPY_DTYPES))
@settings(max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_what_numpy_reads(tmp_path: Path, state: OrderedDict[str, torch.Tensor]) -> None:
    path = tmp_path / "m.npz"
    source = checkpoint_of(state)
    if not state:  # an empty archive could be anything
        with pytest.raises(LossyError):
            write(source, path, OPTIONS)
        return
    written = write(source, path, OPTIONS)
    assert written.num_bytes == path.stat().st_size
    with np.load(path, allow_pickle=False) as found:
        assert found.files == list(state)
        for name, tensor in state.items():
            assert found[name].dtype == tensor.numpy().dtype
            assert found[name].shape == tuple(tensor.shape)
            assert found[name].tobytes() == bits(tensor)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with open_checkpoint(path) as found:
        assert {n: tensor_digest(e) for n, e in found.tensors.items()} == {
            n: tensor_digest(e) for n, e in source.tensors.items()
        }


def test_numpy_lists_every_member_so_the_record_stays_behind_and_that_is_said(tmp_path: Path) -> None:
    source = checkpoint_of({"w": torch.ones(3)})
    source.record = Record(model={"class": "a.B"})
    path = tmp_path / "m.npz"
    assert write(source, path, OPTIONS).notes == ("the record stays behind: npz has no place for it",)
    assert write(source, path, replace(OPTIONS, record=False)).notes == ()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("ptsave.json", "{}")
    with np.load(path) as found:
        assert found.files == ["w", "ptsave.json"]  # the reason: it would be one more array to a script


def test_ties_become_copies_and_that_is_said(tmp_path: Path) -> None:
    weight = torch.ones(3)
    written = write(checkpoint_of({"a": weight, "b": weight}), tmp_path / "m.npz", OPTIONS)
    assert written.notes == ("'b' and 'a' are tied no more",)


@pytest.mark.parametrize(
    "state",
    [
        {"w": torch.ones(2).bfloat16()},
        {"w": torch.ones(1), "n": 3},
        {"\ud800": torch.ones(1)},
        {"../w": torch.ones(1)},
        {"a\0b": torch.ones(1)},
        {"n" * 70_000: torch.ones(1)},
        {"w.npy": torch.ones(1), "w": torch.zeros(1)},
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path: Path, state: dict[str, object]) -> None:
    with pytest.raises(LossyError):
        write(checkpoint_of(state), tmp_path / "m.npz", OPTIONS)
    assert list(tmp_path.iterdir()) == []
