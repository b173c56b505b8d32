"""What ranks tell each other of the values that differ; whole saves are in tests/training/runs."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from ptsave.training.apart.divide import _portable
from tests.formats.write_cases import bits

TENSORS = {
    "matrix": torch.arange(6.0).reshape(2, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "scalar": torch.tensor(3, dtype=torch.int16),
    "empty": torch.empty(0, 4, dtype=torch.bfloat16),
    "float8": torch.ones(3).to(torch.float8_e4m3fn),
    "bool": torch.tensor([True, False]),
    "conjugate": torch.tensor([1 + 2j]).conj(),
    "negative": torch.tensor([1 + 2j]).conj().imag,
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_arrives_as_it_left(name: str) -> None:
    tensor = TENSORS[name].detach()
    found = pickle.loads(pickle.dumps(_portable(TENSORS[name])))
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert bits(found) == bits(tensor.resolve_conj().resolve_neg())
    found.zero_()  # memory of its own


def test_other_values_arrive_as_they_left() -> None:
    sparse = torch.eye(3).to_sparse()
    for value in (3, [1, "x"], (2.5, None)):
        assert pickle.loads(pickle.dumps(_portable(value))) == value
    assert torch.equal(pickle.loads(pickle.dumps(_portable(sparse))).to_dense(), torch.eye(3))


def test_many_small_tensors_are_sent_in_few_bytes() -> None:
    """Torch would pickle each as a file of its own: 700 bytes, and a millisecond at the other end."""
    data = torch.rand(1000, 1)
    values: dict[Any, Any] = {("model", i): _portable(row) for i, row in enumerate(data)}
    assert len(pickle.dumps(values)) < 100 * len(values)
