"""NumPy's arrays in a pickle, checked against what NumPy reads."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ptsave
from ptsave.core.nodes import Opaque
from ptsave.errors import CorruptError
from ptsave.formats import open_checkpoint
from ptsave.formats.pickle import inert
from ptsave.formats.pickle.shapes import Payload
from ptsave.formats.torch.objects import torch_shapes

PROTOCOLS = range(6)
PLAIN = "?bhiqBHIQefdFD"


def contents(array: Any, protocol: int) -> dict[str, Any]:
    node = inert.load(pickle.dumps(array, protocol), 0, torch_shapes(), "test").root
    assert isinstance(node, Opaque)
    assert node.name == "numpy.ndarray"
    return node.state


def rebuilt(state: dict[str, Any]) -> Any:
    """The array in what ptsave shows of it."""
    dtype = np.dtype(state["dtype"]).newbyteorder("<")
    if "values" in state:
        array = np.array(state["values"], dtype)
    else:
        data = state["data"]
        if isinstance(data, Payload):
            buffer = bytearray(data.storage.num_bytes)
            data.storage.read_into(0, memoryview(buffer))
            data = buffer
        array = np.frombuffer(bytes(data), dtype)
    return array.reshape(state["shape"], order=state["order"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_plain_dtype(order: str, protocol: int) -> None:
    for code in PLAIN:
        for shape in ((), (0,), (3, 0), (7,), (64,), (65,), (5, 20), (3, 4, 10)):
            dtype = np.dtype(code).newbyteorder(order)
            array = (np.arange(np.prod(shape, dtype=int)) % 120).astype(dtype).reshape(shape)
            for kept in (array, np.asfortranarray(array)):
                found = rebuilt(contents(kept, protocol))
                assert found.shape == kept.shape
                assert found.dtype == dtype.newbyteorder("<")
                assert np.array_equal(found, kept)


@pytest.mark.parametrize("protocol", PROTOCOLS[1:])
@pytest.mark.parametrize("order", ["<", ">"])
def test_large_arrays(order: str, protocol: int, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-(2**40), 2**40, (3, 70_001)).astype(f"{order}i8")
    path = tmp_path / "training.pt"
    torch.save({"model": {"w": torch.ones(2)}, "seen": array}, path, pickle_protocol=protocol)
    assert np.array_equal(rebuilt(contents(array, protocol)), array)
    read = ptsave.read_training(path)["seen"]
    assert read.dtype == torch.int64
    assert np.array_equal(read.numpy(), array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_not_plain_is_shown_as_it_is(protocol: int) -> None:
    whens = np.array(["2024-01-01", "2025-06-07"], "M8[D]")
    assert contents(whens, protocol)["data"] == whens.tobytes()
    records = np.array([(1, 2.5)], [("a", "<i4"), ("b", ">f8")])
    assert contents(records, protocol)["data"] == records.tobytes()
    texts = np.array(["ab", "cde"])
    assert contents(texts, protocol)["data"] == texts.tobytes()
    objects = np.empty(3, object)
    objects[:] = [1, "two", [3]]
    state = contents(objects, protocol)
    assert (state["shape"], state["values"]) == ((3,), [1, "two", [3]])


def test_names_before_and_after_numpy_2() -> None:
    array = np.arange(100, dtype=">f4")
    for protocol in (2, 5):
        data = pickle.dumps(array, protocol)
        old = data.replace(b"numpy._core", b"numpy.core")
        if protocol == 5:  # the text is shorter by a byte, and the frame with it
            old = old.replace(b"\x8c\x13numpy.core.numeric", b"\x8c\x12numpy.core.numeric")
            at = old.index(b"\x95")
            old = old[: at + 1] + (len(old) - at - 9).to_bytes(8, "little") + old[at + 9 :]
        found = inert.load(old, 0, torch_shapes(), "test").root.state
        assert np.array_equal(rebuilt(found), array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_arrays_are_known_shapes(protocol: int) -> None:
    objects = np.array([1, "two", None], object)
    keyed = {np.int64(1): "a", np.float32(0.5): "b"}
    for value in (np.arange(70.0), np.zeros((2, 3), ">i2", order="F"), np.float32(1.5), objects, keyed):
        loaded = inert.load(pickle.dumps(value, protocol), 0, torch_shapes(), "test")
        assert not loaded.globals, value
    assert loaded.root == {1: "a", 0.5: "b"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_arrays_are_not(protocol: int) -> None:
    for value in (np.array(["2024-01-01"], "M8[D]"), np.zeros(2, [("a", "i4")]), np.array(["text"])):
        assert "numpy.dtype" in inert.load(pickle.dumps(value, protocol), 0, torch_shapes(), "t").globals


def test_what_numpy_would_believe() -> None:
    whole = pickle.dumps(np.array([1, 2], object), 2)
    flags = whole.index(b"K?t")  # 63: a list holds the objects
    with pytest.raises(CorruptError, match=r"sets attributes on a numpy\.dtype"):
        inert.load(whole[:flags] + b"K\0t" + whole[flags + 3 :], 0, torch_shapes(), "test")
    plain = pickle.dumps(np.array([1, 2]), 2)
    assert b"i8" in plain
    with pytest.raises(CorruptError):
        inert.load(plain.replace(b"X\x02\0\0\0i8", b"X\x02\0\0\0O8"), 0, torch_shapes(), "test")


def test_integers_are_weights_where_there_is_no_tensor(tmp_path: Path) -> None:
    """But for the states of generators, which keep their arrays, as they do beside a tensor."""
    generators = {
        "old": np.random.RandomState(0).get_state(),
        "new": np.random.Generator(np.random.MT19937(1)).bit_generator.state,
    }
    tree = {"ids": np.arange(3), "deep": {"mask": np.ones(2, bool)}, "generators": generators}
    path = tmp_path / "a.pt"
    torch.save(tree, path)
    with open_checkpoint(path) as checkpoint:
        assert [*checkpoint.tensors] == ["ids", "deep.mask"]
        assert checkpoint.tensors["deep.mask"].dtype.name == "bool"
    torch.save({**tree, "w": torch.ones(1)}, path)
    with open_checkpoint(path) as checkpoint:
        assert [*checkpoint.tensors] == ["w"]


def test_an_array_of_a_version_that_numpy_does_not_know() -> None:
    whole = pickle.dumps(np.ones(3), 2)
    other = whole.replace(b"(K\x01K\x03", b"(K\x06K\x03", 1)
    assert other != whole
    with pytest.raises(ValueError, match="version 6"):
        pickle.loads(other)
    with pytest.raises(CorruptError, match="version 6"):
        inert.load(other, 0, torch_shapes(), "test")
