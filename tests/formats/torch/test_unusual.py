"""Tensors that are not plain ones, compared with what torch.load makes of the same file."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ptsave
from ptsave.core.finding import Kind
from ptsave.core.values.resolved import resolved
from ptsave.errors import CorruptError
from ptsave.formats import open_checkpoint
from tests.attacks import torch_files as tf
from tests.attacks.pickles import BUILD, Call, Name, New, Raw, Shared, dump, get
from tests.formats.torch_reading import bytes_of, bytes_of_torch


class Marked(torch.Tensor):
    pass


NEGATIVE = tf.tensor(rest=(False, OrderedDict(), {"neg": True}))
FLOAT32 = Name("torch", "float32")
ON_DEVICE = Name("torch._utils", "_rebuild_device_tensor_from_cpu_tensor")


def assert_equal(path: Path, content: bytes | None = None) -> None:
    """The tensor `w` of a file is what torch makes of it."""
    if content is not None:
        path.write_bytes(content)
    theirs = torch.load(path, weights_only=False)["w"].detach().as_subclass(torch.Tensor)
    plain = theirs.resolve_conj().resolve_neg().contiguous()
    with open_checkpoint(path) as checkpoint:
        ours = resolved(checkpoint.tensors["w"])
        assert (ours.shape, f"torch.{ours.dtype}") == (tuple(plain.shape), str(plain.dtype))
        assert bytes_of(ours) == bytes_of_torch(plain)


@pytest.mark.parametrize("make", [lambda z: z.conj(), lambda z: z.conj().imag])
def test_a_subclass_is_as_conjugate_as_its_plain_tensor(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": make(torch.randn(3, dtype=torch.complex64)).as_subclass(Marked)}, path)
    assert_equal(path)


@pytest.mark.parametrize(
    "value",
    [
        Call(ON_DEVICE, (NEGATIVE, FLOAT32, "cpu", False)),
        Call(ON_DEVICE, (tf.tensor(), Name("torch", "bfloat16"), "cpu", False)),
        New(Name("torch", "FloatTensor"), (), (NEGATIVE, None, OrderedDict(), False, False)),
        New(Name("torch.nn.parameter", "Parameter"), (NEGATIVE, False)),
    ],
    ids=["on a device", "cast for a device", "a state", "a parameter"],
)
def test_what_is_made_of_a_tensor_has_its_values(value: Any, tmp_path: Path) -> None:
    assert_equal(tmp_path / "a.pt", tf.pt({"w": value}))


@pytest.mark.parametrize("shape", [(3,), (5, 20)], ids=["few", "many"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_on_a_device_is_a_tensor(shape: tuple[int, ...], order: str, tmp_path: Path) -> None:
    class OnDevice:
        def __reduce__(self) -> Any:
            array = np.asarray(np.arange(np.prod(shape), dtype="f4").reshape(shape), order=order)  # type: ignore[call-overload]
            return torch._utils._rebuild_device_tensor_from_numpy, (array, torch.float32, "cpu", False)

    path = tmp_path / "a.pt"
    torch.save({"w": OnDevice()}, path)
    assert_equal(path)


def set_later(state: Any) -> Raw:
    """The first shared value of a pickle, once more, with that state set on it."""
    return Raw(get(1) + dump(state)[2:-1] + BUILD)


def test_a_tensor_that_may_be_in_use_takes_no_other_values(tmp_path: Path) -> None:
    path, state = tmp_path / "a.pt", (NEGATIVE, None, OrderedDict(), False, False)
    path.write_bytes(tf.pt({"w": Shared(tf.tensor()), "v": set_later(state)}))
    with pytest.raises(CorruptError, match="already has values"):
        open_checkpoint(path)


def integers(*sizes: int, offset: int = 0) -> Call:
    """A view of the integers in the record 1."""
    of = tf.storage("LongStorage", "1", 8)
    return tf.tensor(offset, sizes, (1,) * len(sizes), of=of)


RECORDS = {"0": tf.FOUR, "1": np.array([0, 1, 2, 3, 1, 1, 0, 2], "<i8").tobytes()}


def test_a_sparse_tensor_keeps_the_values_that_it_was_made_of(tmp_path: Path) -> None:
    layout = Call(Name("torch.serialization", "_get_layout"), ("torch.sparse_coo",))
    parts = (integers(1, 0), Shared(New(Name("torch", "FloatTensor"))), (4,), True)
    sparse = Call(Name("torch._utils", "_rebuild_sparse_tensor"), (layout, parts))
    path = tmp_path / "a.pt"
    path.write_bytes(tf.pt({"s": sparse, "v": set_later((tf.storage(), 0, (4,), (1,)))}, RECORDS))
    theirs = torch.load(path, weights_only=False)
    assert (theirs["s"]._nnz(), len(theirs["v"])) == (0, 4)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.tensors["s.values"].shape == (0,)
        assert bytes_of(checkpoint.tensors["v"]) == tf.FOUR


@pytest.mark.parametrize(("offsets", "is_inside"), [((0, 1), True), ((0, 2), False)])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_lies_in_its_buffer(
    offsets: tuple[int, int], is_inside: bool, tmp_path: Path
) -> None:
    """torch shows what lies behind the buffer in its storage, which a copy of the buffer has not."""
    about = (integers(2, 1), integers(2, 1, offset=2), integers(2, offset=4))
    nested = Call(Name("torch._utils", "_rebuild_nested_tensor"), (tf.tensor(size=(3,)), *about))
    path = tmp_path / "a.pt"
    numbers = np.array([1, 2, 1, 1, *offsets, 0, 0], "<i8").tobytes()
    path.write_bytes(tf.pt({"n": nested}, {"0": tf.FOUR, "1": numbers}))
    torch.load(path)
    found = [one.kind for one in ptsave.verify(path, checks="bytes").findings if one.level == "fail"]
    assert found == ([] if is_inside else [Kind.NOT_LOADED])


@pytest.mark.parametrize(
    ("scales", "points", "axis"),
    [([0.5], [0, 0], 0), ([0.5, 0.5], [0], 0), ([0.5, 0.5], [0, 0], 2), ([0.5, 0.5], [0, 0], -1)],
)
def test_channels_that_do_not_fit(scales: Any, points: Any, axis: int, tmp_path: Path) -> None:
    quantizer = (Name("torch", "per_channel_affine"), scales, points, axis)
    of = tf.storage("QInt8Storage", numel=16)
    args = (of, 0, (2, 2), (2, 1), quantizer, False, OrderedDict())
    path = tmp_path / "a.pt"
    path.write_bytes(tf.pt({"w": Call(Name("torch._utils", "_rebuild_qtensor"), args)}))
    with pytest.raises(CorruptError, match="do not fit its shape"):
        open_checkpoint(path)
