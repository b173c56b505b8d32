"""Every dtype and every kind of tensor that torch.save writes: from .pt to .pt as it is, or refused by name.

Compared are what torch loads of both files. What torch itself cannot save or load is listed, so that a torch
that can is noticed here.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import ptsave
from ptsave.cli import main
from ptsave.errors import LossyError
from ptsave.formats import open_checkpoint
from ptsave.storage.scan import tensor_digest
from tests.support import some

Make = Callable[[], Any]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to do away with quantized tensors
        torch.manual_seed(5)
        yield


def run(*arguments: object) -> int:
    return main.run([str(argument) for argument in arguments])


# --- what torch loads ---------------------------------------------------------------------------------


def said(tensor: Any) -> Any:
    """All that a loaded tensor is, its bytes included, as something that compares."""
    made = torch.Tensor
    kind = (type(tensor), tensor.dtype, tensor.layout, tensor.device, tensor.requires_grad)
    if tensor.is_nested:
        return (kind, *(said(part) for part in tensor.unbind()))
    shape = (*kind, tuple(tensor.shape))
    if tensor.is_meta:
        return (*shape, tensor.stride())
    if tensor.layout is torch.sparse_coo:
        return (*shape, tensor.is_coalesced(), said(made._indices(tensor)), said(made._values(tensor)))
    if tensor.layout is not torch.strided:
        rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
        names = ("crow_indices", "col_indices") if rows else ("ccol_indices", "row_indices")
        return (*shape, *(said(getattr(tensor, name)()) for name in (*names, "values")))
    if tensor.is_quantized:
        scheme = tensor.qscheme()
        if scheme == torch.per_tensor_affine:
            parameters: Any = (tensor.q_scale(), tensor.q_zero_point())
        else:
            scales, points = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
            parameters = (said(scales), said(points), tensor.q_per_channel_axis())
        whole = tensor.dtype in (torch.quint4x2, torch.quint2x4)
        values = bytes(tensor.untyped_storage()) if whole else said(tensor.int_repr())
        return (*shape, scheme, parameters, values)
    bits = (tensor.is_conj(), tensor.is_neg())
    plain = tensor.detach().resolve_conj().resolve_neg()
    index = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(plain.shape, plain.stride(), strict=True):
        index = index[..., None] + torch.arange(size) * stride
    item = plain.dtype.itemsize
    places = (index.reshape(-1, 1) + plain.storage_offset()) * item + torch.arange(item)
    storage = torch.empty(0, dtype=torch.uint8).set_(plain.untyped_storage())
    return (*shape, *bits, bytes(storage[places].numpy().tobytes()))


def loaded(path: Path) -> Any:
    return torch.load(path, weights_only=True)["t"]


# --- dtypes -------------------------------------------------------------------------------------------

DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
UNSAVED = tuple(f"torch.{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8))
"""What torch.save has no storage for."""


@pytest.mark.parametrize("name", some(DTYPES))
def test_a_dtype(name: str, tmp_path: Path) -> None:
    """Of quantized ones, tensors without a quantizer: their bytes."""
    raw = torch.randint(0, 2 if name == "torch.bool" else 256, (64,), dtype=torch.uint8)
    tensor = raw.view(DTYPES[name])
    if name in UNSAVED:
        with pytest.raises(KeyError):
            torch.save({"t": tensor}, tmp_path / "a.pt")
        return
    is_bare = name.startswith("torch.q")
    for made in (tensor,) if is_bare else (tensor, tensor[:4].view(2, 2).t(), tensor[:0]):
        torch.save({"t": made}, tmp_path / "a.pt")
        assert run("convert", tmp_path / "a.pt", tmp_path / "b.pt", "--overwrite") == 0
        one, other = loaded(tmp_path / "a.pt"), loaded(tmp_path / "b.pt")
        if is_bare:
            assert (other.dtype, other.shape) == (one.dtype, one.shape)
            assert bytes(other.untyped_storage()) == bytes(one.untyped_storage())
        else:
            assert said(other) == said(one)
    assert_looked_at(tmp_path / "a.pt", tmp_path / "b.pt")


def assert_looked_at(one: Path, other: Path) -> None:
    """Every look at a file ends in an answer, and a file is what it was converted from."""
    assert run("inspect", one, "--json") == 0
    assert run("inspect", one, "--tree") == 0
    assert run("inspect", one, "--stats") == 0
    assert run("verify", one, "--checks", "bytes,whole") == 0
    assert run("verify", other, "--checks", "bytes,whole") == 0
    assert run("verify", one, "--checks", "finite") in (0, 1)
    assert run("verify", one, "--against", other, "--checks", "against") == 0
    assert run("inspect", one, "--diff", other) == 0


# --- kinds --------------------------------------------------------------------------------------------


def by_tensor(dtype: torch.dtype = torch.qint8) -> torch.Tensor:
    return torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 3, dtype)


def by_channel(axis: int = 0) -> torch.Tensor:
    scales = torch.rand(2 + axis, dtype=torch.float64) + 0.1
    return torch.quantize_per_channel(torch.randn(2, 3), scales, torch.arange(2 + axis), axis, torch.qint8)


def of_embedding(dtype: torch.dtype, columns: int = 8) -> torch.Tensor:
    return torch.quantize_per_channel(torch.randn(4, columns), torch.rand(4) + 0.1, torch.rand(4), 0, dtype)


def twice() -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[0, 0, 2]]), torch.randn(3), (4,))


Z = torch.randn(3, 2, dtype=torch.complex64)
KEPT: dict[str, Make] = {
    "strided": lambda: torch.randn(4, 3).t(),
    "expanded": lambda: torch.ones(1).expand(5),
    "requires grad": lambda: torch.ones(2, requires_grad=True),
    "no leaf": lambda: torch.ones(2, requires_grad=True) * 2,
    "parameter": lambda: nn.Parameter(torch.randn(3)),
    "conj": lambda: Z.conj(),
    "neg": lambda: Z.conj().imag,
    "conj and neg": lambda: torch._neg_view(Z.conj()),
    "conj parameter": lambda: nn.Parameter(Z.conj()),
    "neg parameter": lambda: nn.Parameter(Z.conj().imag, requires_grad=False),
    "coo": lambda: torch.eye(4).to_sparse(),
    "coo, not coalesced": twice,
    "coo, hybrid": lambda: torch.sparse_coo_tensor(torch.tensor([[0, 2]]), torch.randn(2, 3), (4, 3)),
    "coo, empty": lambda: torch.zeros(3, 4).to_sparse(),
    "coo, without dimensions": lambda: torch.tensor(3.0).to_sparse(),
    "coo, conj": lambda: torch.sparse_coo_tensor(torch.tensor([[0, 2]]), Z[:2, 0].conj(), (4,)),
    "coo, requires grad": lambda: torch.eye(4).to_sparse().requires_grad_(),
    "coo parameter": lambda: nn.Parameter(torch.eye(4).to_sparse()),
    "csr": lambda: torch.eye(4).to_sparse_csr(),
    "csr, batches": lambda: torch.stack([torch.eye(3)] * 2).to_sparse_csr(),
    "csr, hybrid": lambda: torch.ones(3, 3, 2).to_sparse_csr(dense_dim=1),
    "csr parameter": lambda: nn.Parameter(torch.eye(4).to_sparse_csr()),
    "csc": lambda: torch.eye(4).to_sparse_csc(),
    "bsr": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "bsc": lambda: torch.eye(4).to_sparse_bsc((2, 2)),
    "quantized, qint8": lambda: by_tensor(),
    "quantized, quint8": lambda: by_tensor(torch.quint8),
    "quantized, qint32": lambda: by_tensor(torch.qint32),
    "quantized, transposed": lambda: by_tensor().t(),
    "quantized, a part": lambda: by_tensor()[1:3],
    "quantized parameter": lambda: nn.Parameter(by_tensor(), requires_grad=False),
    "by channel": lambda: by_channel(),
    "by channel, of another axis": lambda: by_channel(1),
    "by channel, quint8 with floats": lambda: of_embedding(torch.quint8),
    "by channel, quint4x2": lambda: of_embedding(torch.quint4x2),
    "by channel, quint2x4": lambda: of_embedding(torch.quint2x4),
    "by channel, quint4x2, odd": lambda: of_embedding(torch.quint4x2, 7),
    "nested": lambda: torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)]),
    "meta": lambda: torch.empty(2, 3, device="meta").t(),
    "meta, float8": lambda: torch.empty(2, 3, device="meta", dtype=torch.float8_e5m2),
    "meta parameter": lambda: nn.Parameter(torch.empty(2, 3, device="meta")),
}


@pytest.mark.parametrize("is_alone", [True, False])
@pytest.mark.parametrize("kind", some(KEPT))
def test_a_kind_that_stays(kind: str, is_alone: bool, tmp_path: Path) -> None:
    tensor = KEPT[kind]()
    source, target = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(tensor if is_alone else {"t": tensor, "again": [tensor], "w": torch.ones(2)}, source)
    assert run("convert", source, target) == 0
    one, other = (torch.load(path, weights_only=True) for path in (source, target))
    if is_alone:
        assert said(other) == said(one)
    else:
        assert said(other["t"]) == said(other["again"][0]) == said(one["t"])
    assert_looked_at(source, target)
    assert run("convert", source, target, "--overwrite", "--extras", "drop") == 0
    other = torch.load(target, weights_only=True)
    assert said(other if is_alone else other["t"]) == said(one if is_alone else one["t"])


@pytest.mark.parametrize("kind", KEPT)
def test_a_kind_in_python(kind: str, tmp_path: Path) -> None:
    torch.save({"t": KEPT[kind](), "w": torch.ones(2)}, tmp_path / "a.pt")
    wanted = loaded(tmp_path / "a.pt").detach()
    with ptsave.open(tmp_path / "a.pt") as checkpoint:
        found = checkpoint.state_dict()["t"]
    if wanted.is_meta:
        assert said(found.detach()) == said(wanted)
    elif wanted.is_nested:
        assert said(found) == said(wanted)
    elif wanted.is_quantized or wanted.layout is not torch.strided:
        assert said(found)[1:] == said(wanted)[1:]
    else:
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    "parts",
    [
        ([[2, 3], [4, 3]], [[3, 1], [3, 1]], [0, 7]),
        ([[2, 3], [4, 3]], [[3, 1], [3, 2]], [0, 6]),
        ([[2, 3], [4, 3]], [[3, 1], [3, -1]], [0, 6]),
        ([[2, 3], [4, -3]], [[3, 1], [3, 1]], [0, 6]),
        ([[2, 3], [4, 3]], [[3, 1], [2**62, 2**62]], [0, 6]),
        ([[2, 3], [4, 3]], [[3, 1]], [0, 6]),
        ([[2, 3], [4, 3]], [[3, 1], [3, 1]], [0]),
        ([[2, 3], [4, 3]], [[3, 1], [3, 1]], [[0], [6]]),
        ([2, 4], [1, 1], [0, 6]),
    ],
)
def test_a_nested_tensor_outside_of_its_bytes_is_refused(parts: tuple[Any, ...], tmp_path: Path) -> None:
    write_nested(parts, tmp_path / "a.pt")
    with ptsave.open(tmp_path / "a.pt") as checkpoint, pytest.raises(LossyError, match="'t' is damaged"):
        checkpoint.state_dict()


def test_what_has_no_whole_numbers_as_sizes_is_no_nested_tensor(tmp_path: Path) -> None:
    write_nested(([[2.0, 3.0], [4.0, 3.0]], [[3, 1], [3, 1]], [0, 6]), tmp_path / "a.pt")
    with (
        ptsave.open(tmp_path / "a.pt") as checkpoint,
        pytest.raises(LossyError, match=r"'t' is a torch\.nested"),
    ):
        checkpoint.state_dict()


def write_nested(parts: tuple[Any, ...], path: Path) -> None:
    class Claimed:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_nested_tensor, (torch.ones(18), *map(torch.tensor, parts))

    torch.save({"w": torch.ones(2), "t": Claimed()}, path)


@pytest.mark.parametrize("way", ["into", "skeleton"])
def test_a_model_takes_no_tensor_without_values(way: str, tmp_path: Path) -> None:
    torch.save({"weight": torch.empty(2, 3, device="meta"), "bias": torch.ones(2)}, tmp_path / "a.pt")
    (tmp_path / "c.toml").write_text(
        '[model]\nclass = "torch.nn.Linear"\n[model.args]\nin_features = 3\nout_features = 2\n'
    )
    options: Any = {"model": nn.Linear(3, 2)} if way == "into" else {"config": tmp_path / "c.toml"}
    with pytest.raises(LossyError, match="does not fit the model"):
        ptsave.load(tmp_path / "a.pt", **options)


def test_what_cannot_be_loaded_is_left_out_as_the_hint_says(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "t": with_state()}, tmp_path / "a.pt")
    with ptsave.open(tmp_path / "a.pt") as checkpoint, pytest.raises(LossyError, match="'t' is a") as raised:
        checkpoint.state_dict()
    assert raised.value.hint == "`ptsave convert --drop t` leaves it out"
    assert run("convert", tmp_path / "a.pt", tmp_path / "b.pt", "--drop", "t") == 0
    with ptsave.open(tmp_path / "b.pt") as checkpoint:
        assert set(checkpoint.state_dict()) == {"w"}


class Plain(torch.Tensor):
    """A subclass without a state."""


class Slotted(torch.Tensor):
    """A subclass with a slot."""

    __slots__ = ("tag",)


def with_state(make: type[torch.Tensor] = Plain) -> torch.Tensor:
    tensor: Any = torch.arange(3.0).as_subclass(make)
    tensor.tag = "x"
    return tensor  # type: ignore[no-any-return]


def with_attribute(tensor: Any) -> Any:
    tensor._mark = 3  # private: what it is for is not known; a public one is noted and left
    return tensor


REFUSED: dict[str, tuple[Make, str]] = {
    "a subclass with a dictionary": (with_state, "Plain"),
    "a subclass with slots": (lambda: with_state(Slotted), "Slotted"),
    "a parameter of a subclass": (lambda: nn.Parameter(torch.arange(3.0).as_subclass(Plain)), "Plain"),
    "a subclass around tensors": (lambda: cast(Any, TwoTensor)(torch.ones(2), torch.zeros(2)), "TwoTensor"),
    "a masked tensor": (
        lambda: torch.masked.masked_tensor(torch.ones(2), torch.tensor([True, False])),
        "MaskedTensor",
    ),
    "a jagged tensor": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(1)], layout=torch.jagged),
        "attributes that the file sets on tensors",
    ),
    "a private attribute": (lambda: with_attribute(torch.arange(3.0)), "'_mark'"),
    "a private attribute of a parameter": (lambda: with_attribute(nn.Parameter(torch.ones(2))), "'_mark'"),
    "a parameter without a shape": (lambda: nn.UninitializedParameter(), "UninitializedParameter"),
    "quantized, meta": (lambda: torch.empty(2, device="meta", dtype=torch.qint8), "torch.meta"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_kind_that_is_refused(kind: str, tmp_path: Path, capsys: Any) -> None:
    make, named = REFUSED[kind]
    torch.save({"t": make(), "w": torch.ones(2)}, tmp_path / "a.pt")
    for target in ("b.pt", "b.safetensors"):
        capsys.readouterr()
        assert run("convert", tmp_path / "a.pt", tmp_path / target) == 4
        message = capsys.readouterr().err
        assert named in message
        assert "--extras drop" in message
        assert not (tmp_path / target).exists()
        assert run("convert", tmp_path / "a.pt", tmp_path / target, "--extras", "drop") == 0
    assert torch.equal(torch.load(tmp_path / "b.pt", weights_only=True)["w"], torch.ones(2))
    assert run("inspect", tmp_path / "a.pt", "--stats") == 0
    assert run("inspect", tmp_path / "a.pt", "--diff", tmp_path / "a.pt") == 0
    with pytest.raises(ptsave.PtsaveError), ptsave.open(tmp_path / "a.pt") as checkpoint:
        checkpoint.state_dict()


@pytest.mark.parametrize("make", [with_state, lambda: with_state(Slotted)])
@pytest.mark.parametrize("target", ["b.pt", "b.safetensors"])
def test_what_is_dropped_of_a_subclass_is_its_state(
    make: Make, target: str, tmp_path: Path, capsys: Any
) -> None:
    torch.save({"t": make()}, tmp_path / "a.pt")
    assert run("convert", tmp_path / "a.pt", tmp_path / target, "--extras", "drop", "--json") == 0
    assert all("tag" in name for name in json.loads(capsys.readouterr().out)["dropped"])
    with ptsave.open(tmp_path / target) as checkpoint:
        assert torch.equal(checkpoint["t"], torch.arange(3.0))


def marked() -> torch.Tensor:
    tensor = torch.ones(2)
    torch._dynamo.mark_static_address(tensor)
    return tensor


@pytest.mark.parametrize("make", [lambda: nn.Buffer(torch.ones(2)), marked])
@pytest.mark.parametrize("target", ["b.pt", "b.safetensors"])
def test_a_mark_of_torch_is_noted(make: Make, target: str, tmp_path: Path, capsys: Any) -> None:
    """A buffer, and what a compiled optimizer or a graph holds: the values are the same without the mark."""
    torch.save({"t": make(), "w": torch.ones(2)}, tmp_path / "a.pt")
    assert run("verify", tmp_path / "a.pt", "--checks", "whole,safe") == 0
    assert run("convert", tmp_path / "a.pt", tmp_path / target) == 0
    with ptsave.open(tmp_path / target) as checkpoint:
        assert torch.equal(checkpoint["t"], torch.ones(2))
    capsys.readouterr()
    assert run("inspect", tmp_path / "a.pt") == 0
    assert "which no state dict has" in capsys.readouterr().out


UNSAVABLE: dict[str, Make] = {
    "mkldnn": lambda: torch.ones(2, 2).to_mkldnn(),
    "zeros without memory": lambda: torch._efficientzerotensor(3),
}


@pytest.mark.parametrize("kind", UNSAVABLE)
def test_what_torch_does_not_save(kind: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        torch.save(UNSAVABLE[kind](), tmp_path / "a.pt")


# --- what differs -------------------------------------------------------------------------------------


def coo(indices: Any = ((0, 2),), values: Any = (1.0, 2.0), size: int = 4, **flags: Any) -> torch.Tensor:
    return torch.sparse_coo_tensor(torch.tensor(indices), torch.tensor(values), (size,), **flags)


def csr(columns: Any = (0, 1), rows: Any = (0, 1, 2), width: int = 3) -> torch.Tensor:
    return torch.sparse_csr_tensor(torch.tensor(rows), torch.tensor(columns), torch.ones(2), (2, width))


def channels(scale: float = 0.5, point: int = 1, axis: int = 0) -> torch.Tensor:
    integers = torch.arange(4, dtype=torch.int8).view(2, 2)
    scales = torch.tensor([scale, 1.0], dtype=torch.float64)
    return torch._make_per_channel_quantized_tensor(integers, scales, torch.tensor([point, 0]), axis)


def packed(dtype: torch.dtype = torch.quint4x2, value: float = 1.0, shape: Any = (2, 4)) -> torch.Tensor:
    scales = torch.ones(shape[0])
    return torch.quantize_per_channel(torch.full(shape, value), scales, torch.zeros_like(scales), 0, dtype)


def nested(*lengths: int) -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(length) for length in lengths])


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


DIFFERENT: dict[str, Callable[[], tuple[Any, Any]]] = {
    "an index": lambda: (coo(), coo(((0, 3),))),
    "a value": lambda: (coo(), coo(values=(1.0, 3.0))),
    "a size": lambda: (coo(), coo(size=5)),
    "whether it is coalesced": lambda: (coo(is_coalesced=True), coo(is_coalesced=False)),
    "a column": lambda: (csr(), csr((0, 2))),
    "a row": lambda: (csr(), csr(rows=(0, 2, 2))),
    "a width": lambda: (csr(), csr(width=4)),
    "a layout": lambda: (torch.eye(2).to_sparse_csr(), torch.eye(2).to_sparse_csc()),
    "a block": lambda: (torch.ones(4, 4).to_sparse_bsr((2, 2)), torch.ones(4, 4).to_sparse_bsr((4, 4))),
    "sparse or not": lambda: (torch.eye(2).to_sparse(), torch.eye(2)),
    "a scale by channel": lambda: (channels(), channels(scale=0.25)),
    "a zero point by channel": lambda: (channels(), channels(point=2)),
    "an axis": lambda: (channels(), channels(axis=1)),
    "quantized or not": lambda: (channels(), channels().int_repr()),
    "packed bits": lambda: (packed(), packed(value=2.0)),
    "how they are packed": lambda: (packed(torch.quint4x2, 0.0), packed(torch.quint2x4, 0.0)),
    "a packed shape": lambda: (packed(shape=(2, 4)), packed(shape=(2, 3))),
    "a conj bit": lambda: (Z.conj(), Z),
    "a neg bit": lambda: (torch._neg_view(torch.ones(3)), torch.ones(3)),
    "nested sizes": lambda: (nested(1, 3), nested(2, 2)),
    "a meta shape": lambda: (meta(2, 3), meta(3, 2)),
    "a meta dtype": lambda: (meta(2), meta(2, dtype=torch.float16)),
    "meta or not": lambda: (meta(2), torch.zeros(2)),
    "a state": lambda: (with_state(), with_attribute(with_state())),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_differs_is_found(case: str, tmp_path: Path) -> None:
    for name, tensor in zip(("a.pt", "b.pt"), DIFFERENT[case](), strict=True):
        torch.save({"t": tensor, "w": torch.ones(2)}, tmp_path / name)
    one, other = tmp_path / "a.pt", tmp_path / "b.pt"
    assert run("inspect", one, "--diff", other) == 1
    assert run("inspect", other, "--diff", one) == 1
    assert run("verify", one, "--against", other, "--checks", "against") == 1
    assert run("verify", other, "--against", one, "--checks", "against") == 1


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite(scale: float, tmp_path: Path) -> None:
    integers = torch.ones(2, dtype=torch.int8)
    for tensor in (torch._make_per_tensor_quantized_tensor(integers, scale, 0), channels(scale)):
        torch.save({"t": tensor, "w": torch.ones(2)}, tmp_path / "a.pt")
        assert run("verify", tmp_path / "a.pt", "--checks", "finite") == 1


# --- digests ------------------------------------------------------------------------------------------


def digests(path: Path) -> dict[str, str]:
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.record is not None
        assert checkpoint.record.digests is not None
        return dict(checkpoint.record.digests.tensors)


def digest_of(tensor: torch.Tensor, tmp_path: Path) -> str:
    torch.save(tensor, tmp_path / "plain.pt")
    with open_checkpoint(tmp_path / "plain.pt") as checkpoint:
        return tensor_digest(checkpoint.root)


def test_digests_are_of_values_or_of_parts(tmp_path: Path) -> None:
    quantized, sparse, conj, negative = channels(), coo(), Z.conj(), Z.clone().conj().imag
    torch.save({"q": quantized, "s": sparse, "z": conj, "n": negative}, tmp_path / "a.pt")
    assert run("convert", tmp_path / "a.pt", tmp_path / "b.pt") == 0
    parts = {
        "q.int_repr": quantized.int_repr(),
        "q.scales": quantized.q_per_channel_scales(),
        "q.zero_points": quantized.q_per_channel_zero_points(),
        "s.indices": sparse._indices(),
        "s.values": sparse._values(),
        "z": conj.resolve_conj(),
        "n": negative.resolve_neg(),
    }
    assert digests(tmp_path / "b.pt") == {name: digest_of(part, tmp_path) for name, part in parts.items()}
    for target in ("c.pt", "c.safetensors"):  # of what is written, whatever it was
        assert run("convert", tmp_path / "b.pt", tmp_path / target, "--dense") == 0
        assert run("verify", tmp_path / target, "--checks", "bytes") == 0
        assert digests(tmp_path / target) == {
            "q": digest_of(quantized.dequantize(), tmp_path),
            "s": digest_of(sparse.to_dense(), tmp_path),
            "z": digest_of(conj.resolve_conj(), tmp_path),
            "n": digest_of(negative.resolve_neg(), tmp_path),
        }


# --- --dense ------------------------------------------------------------------------------------------

VALUES = tuple(kind for kind in KEPT if not kind.startswith(("meta", "nested")))
DENSE = tuple(kind for kind in VALUES if "coo" in kind or kind[:2] in ("cs", "bs", "qu", "by", "co", "ne"))


@pytest.mark.parametrize(
    ("kind", "target"),
    some(
        [
            *((kind, target) for kind in DENSE for target in ("b.pt", "b.safetensors")),
            *((kind, target) for kind in ("coo", "bsc", "by channel", "conj") for target in ("b.npz", "b")),
        ]
    ),
)
def test_dense(kind: str, target: str, tmp_path: Path, capsys: Any) -> None:
    tensor = KEPT[kind]()
    torch.save({"t": tensor, "w": torch.ones(2)}, tmp_path / "a.pt")
    flags = ("--format", "dcp") if target == "b" else ()
    if not kind.startswith(("conj", "neg")) and target != "b.pt":
        assert run("convert", tmp_path / "a.pt", tmp_path / target, *flags) == 4
        assert "--dense" in capsys.readouterr().err
    assert run("convert", tmp_path / "a.pt", tmp_path / target, "--dense", "--json", *flags) == 0
    said_of = json.loads(capsys.readouterr().out)
    assert [*said_of["dense"]] == ["t"]
    assert any("written dense" in note for note in said_of["notes"])
    wanted = (tensor.dequantize() if tensor.is_quantized else tensor.to_dense()).detach()
    wanted = wanted.resolve_conj().resolve_neg()
    if target == "b.pt":
        found = loaded(tmp_path / target)
        assert not found.is_conj()
        assert not found.is_neg()
        assert type(found) is type(loaded(tmp_path / "a.pt"))
        assert torch.equal(found, wanted)
    with ptsave.open(tmp_path / target) as checkpoint:
        assert checkpoint["t"].dtype is wanted.dtype
        assert torch.equal(checkpoint["t"], wanted)
    assert run("verify", tmp_path / target, "--checks", "bytes,whole") == 0


def test_dense_goes_with_other_edits(tmp_path: Path, capsys: Any) -> None:
    tied = torch.eye(3).to_sparse()
    torch.save({"net.a": tied, "net.b": tied, "net.c": by_tensor(), "d": torch.ones(2)}, tmp_path / "a.pt")
    edits = (
        "--only",
        "net.*",
        "--drop",
        "*.c",
        "--rename",
        "net[.]=",
        "--dtype",
        "float16",
        "--dense",
        "--json",
    )
    assert run("convert", tmp_path / "a.pt", tmp_path / "b.pt", *edits) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["dense"] == {"net.a": "sparse_coo", "net.b": "sparse_coo"}
    assert sorted(output["dropped"]) == ["d", "net.c"]
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert torch.equal(found["a"], torch.eye(3).half())
    assert found["a"].data_ptr() == found["b"].data_ptr()


def test_a_damaged_one_leaves_nothing(tmp_path: Path, capsys: Any) -> None:
    bad = torch.sparse_coo_tensor(torch.tensor([[0, 9]]), torch.ones(2), (4,), check_invariants=False)
    torch.save({"adj": bad}, tmp_path / "a.pt")
    assert run("convert", tmp_path / "a.pt", tmp_path / "b.safetensors", "--dense") == 4
    assert "damaged" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]
