"""Objects of torch's own test suites, each as torch loads it and as ptsave reads and writes it: bit for bit.

From `torch.testing._internal`: every module of `module_db`, pickled whole, as a state dict, scripted, traced
and frozen; quantized modules; tensors of every dtype, layout and kind. PTSAVE_OWN=1 takes every module.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ptsave.cli import main
from ptsave.core.leaves import state_dict_of
from ptsave.core.nodes import TensorEntry
from ptsave.errors import PtsaveError
from ptsave.formats import open_checkpoint
from tests.formats.torch_reading import bytes_of, bytes_of_torch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

STEP = int(os.environ.get("PTSAVE_OWN", "4"))
MAX_SECONDS = 60.0 if STEP > 1 else 3600.0


def tensors_of(tree: Any) -> list[torch.Tensor]:
    """The dense tensors of what torch loaded, those that others are made of included."""
    if isinstance(tree, torch.Tensor):
        if nn.parameter.is_lazy(tree):
            return []
        if tree.is_quantized:
            found = [tree.int_repr()]
            if tree.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
                found += [tree.q_per_channel_scales(), tree.q_per_channel_zero_points()]
            return found
        if tree.layout is torch.sparse_coo:
            return [tree._indices(), tree._values()]
        if tree.layout is not torch.strided:
            rows = tree.layout in (torch.sparse_csr, torch.sparse_bsr)
            pair = (
                (tree.crow_indices(), tree.col_indices())
                if rows
                else (tree.ccol_indices(), tree.row_indices())
            )
            return [*pair, tree.values()]
        return [] if tree.is_meta else [tree]
    if isinstance(tree, dict):
        return [t for value in tree.values() for t in tensors_of(value)]
    if isinstance(tree, (list, tuple)):
        return [t for value in tree for t in tensors_of(value)]
    if isinstance(tree, torch.ScriptObject):
        return tensors_of(tree.__getstate__())  # type: ignore[attr-defined]
    return []


Bits = tuple[str, tuple[int, ...], bytes]


def bits_of(tensor: torch.Tensor) -> list[Bits]:
    """What a file may list a tensor as: its values, or where a view is conjugated or negated, its bytes."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    made = [plain]
    if tensor.is_conj() or tensor.is_neg():
        made.append(plain.neg() if tensor.is_neg() else plain.conj_physical())
    dtype = str(tensor.dtype).removeprefix("torch.")
    return [(dtype, tuple(tensor.shape), bytes_of_torch(one)) for one in made]


def bits(entry: TensorEntry) -> Bits:
    return entry.dtype.name, entry.shape, bytes_of(entry)


def assert_lists(path: Path, expected: Any) -> None:
    """The checkpoint lists every tensor of `expected`, bit for bit, and leaves nothing out in silence."""
    with open_checkpoint(path) as checkpoint:
        listed = {bits(entry) for entry in checkpoint.tensors.values()}
        for tensor in tensors_of(expected):
            assert not listed.isdisjoint(bits_of(tensor)), (tensor.dtype, tensor.shape)


REFUSALS = {
    "Lazy": "UninitializedParameter",  # has no shape yet
    # Recurrent quantized modules keep handles of packed parameters; their tensors are listed all the same.
    **{f"quantized {name}": "torch.ScriptObject" for name in ("LSTM", "GRU", "RNN")},
}
"""Which objects of torch's own `convert` refuses, by how their names begin, and what of them it names."""


def assert_converts(path: Path, expected: Any, name: str) -> None:
    """`convert` to .pt keeps every tensor of `expected`; it refuses what REFUSALS names, and nothing else."""
    target, said = path.with_name("converted.pt"), StringIO()
    with redirect_stderr(said):
        code = main.run(["convert", str(path), str(target), "--overwrite", "-q"])
    refusal = next((what for kind, what in REFUSALS.items() if name.removeprefix("nn.").startswith(kind)), "")
    if refusal:
        assert code == 4, (name, code)
        assert refusal in said.getvalue(), name
        return
    assert code == 0, (name, code, said.getvalue())
    kept = {bytes_of_torch(t.detach()) for t in tensors_of(torch.load(target, weights_only=True))}
    for tensor in tensors_of(expected):
        assert bytes_of_torch(tensor.detach()) in kept, name


def modules() -> Iterator[tuple[str, nn.Module, Any]]:
    """(name, module, arguments of its forward) of torch's own samples, one for each way to make a module."""
    from torch.testing._internal.common_modules import module_db

    for info in module_db[::STEP]:
        with suppress(Exception):
            samples = info.module_inputs_func(
                info, device="cpu", dtype=torch.float32, requires_grad=False, training=False
            )
            for i, sample in enumerate(samples[:4]):
                made = sample.constructor_input
                module = info.module_cls(*made.args, **made.kwargs)
                yield f"{info.name}-{i}", module.eval(), sample.forward_input


def fits_no_time(began: float) -> bool:
    return time.monotonic() - began > MAX_SECONDS


def test_every_module_whole_and_as_a_state_dict(tmp_path: Path) -> None:
    path, began, num = tmp_path / "m.pt", time.monotonic(), 0
    for name, module, _ in modules():
        if fits_no_time(began):
            break
        for whole in (module, module.state_dict()):
            try:
                torch.save(whole, path)
            except (AttributeError, TypeError):
                continue  # a function of the tests that cannot be pickled
            assert_lists(path, module.state_dict())
            assert_converts(path, module.state_dict(), name)
            num += 1
    assert num


def script(kind: str, module: nn.Module, inputs: Any) -> Any:
    if kind == "trace":
        return torch.jit.trace(module, inputs.args, check_trace=False)
    made = torch.jit.script(module)
    return torch.jit.freeze(made) if kind == "freeze" else made


def write_script(path: Path, kind: str, module: nn.Module, inputs: Any = None) -> bool:
    """Whether torch itself can make a program of this kind of `module`."""
    try:
        if kind == "trace":
            made = torch.jit.trace(module, inputs.args, check_trace=False)
        else:
            made = torch.jit.script(module)
            made = torch.jit.freeze(made) if kind == "freeze" else made
        made.save(str(path))
    except (RuntimeError, NotImplementedError, AttributeError):  # what its compiler does not know
        return False
    return True


@pytest.mark.parametrize("kind", ["script", "trace", "freeze"])
def test_every_module_as_torchscript(kind: str, tmp_path: Path) -> None:
    path, began, num, num_tried = tmp_path / "m.pt", time.monotonic(), 0, 0
    for name, module, inputs in modules():
        if fits_no_time(began):
            break
        num_tried += 1
        if write_script(path, kind, module, inputs):
            assert_script(path, name)
            num += 1
    assert num > 0.9 * num_tried


def assert_script(path: Path, name: str) -> None:
    """Each tensor that `torch.jit.load` has in its state dict is listed under its name, bit for bit; so are
    the constants of its code, and no record is left over."""
    loaded = torch.jit.load(str(path))
    expected = dict(loaded.state_dict())
    with open_checkpoint(path) as checkpoint:
        assert not checkpoint.accounts.left_out, name
        state = state_dict_of(checkpoint.root)
        listed = {key: bits(value) for key, value in state.items() if isinstance(value, TensorEntry)}
        assert listed.keys() == expected.keys(), name
        for key, tensor in expected.items():
            assert listed[key] in bits_of(tensor), (name, key)
    if hasattr(loaded, "forward"):
        constants = loaded.code_with_constants[1].const_mapping
        assert_lists(path, dict(constants))
        if constants:
            assert_converts(path, dict(constants), name)


class Quantizable(nn.Module):
    def __init__(self) -> None:
        from torch.ao.quantization import DeQuantStub, QuantStub

        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dequant(self.body(self.quant(x)))  # type: ignore[no-any-return]


def quantized() -> Iterator[tuple[str, nn.Module]]:
    import torch.ao.nn.quantized as q
    import torch.ao.nn.quantized.dynamic as qd
    import torch.ao.quantization as ao

    eager = nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    for dtype in (torch.qint8, torch.float16):
        yield f"dynamic-{dtype}", ao.quantize_dynamic(eager, {nn.Linear}, dtype=dtype)
    for engine in ("fbgemm",):
        if engine not in torch.backends.quantized.supported_engines:
            continue
        torch.backends.quantized.engine = engine
        net = Quantizable().eval()
        net.qconfig = ao.get_default_qconfig(engine)  # type: ignore[assignment]
        prepared = ao.prepare(ao.fuse_modules(net, [["body.0", "body.1", "body.2"]]))
        prepared(torch.randn(2, 3, 8, 8))
        yield f"observed-{engine}", prepared
        yield f"static-{engine}", ao.convert(prepared)
        net = Quantizable().train()
        net.qconfig = ao.get_default_qat_qconfig(engine)  # type: ignore[assignment]
        trained = ao.prepare_qat(ao.fuse_modules_qat(net, [["body.0", "body.1", "body.2"]]))
        trained(torch.randn(2, 3, 8, 8))
        yield f"qat-{engine}", trained
        yield f"trained-{engine}", ao.convert(trained.eval())
    for layer in (
        q.Linear(4, 3),
        q.Conv1d(2, 3, 3),
        q.Conv3d(2, 3, 3),
        q.ConvTranspose2d(2, 3, 3),
        q.Embedding(10, 8),
        q.EmbeddingBag(10, 8, dtype=torch.quint4x2),
        q.BatchNorm3d(3),
        q.LayerNorm(4, nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4)), 0.1, 0),
        q.QFunctional(),
        qd.Linear(4, 3),
        qd.LSTM(4, 3, 2, bidirectional=True),
        qd.GRU(4, 3),
        qd.LSTMCell(4, 3),
        qd.GRUCell(4, 3),
        qd.RNNCell(4, 3),
    ):
        yield f"quantized {type(layer).__name__}", nn.Sequential(layer)


def test_quantized_modules(tmp_path: Path) -> None:
    path = tmp_path / "q.pt"
    engine = torch.backends.quantized.engine
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, module in quantized():
                expected = module.state_dict()
                for whole in (expected, module):
                    try:
                        torch.save(whole, path)
                    except AttributeError:
                        continue  # an observer's factory cannot be pickled
                    if "quint4x2" not in str(expected):  # several elements a byte: listed as its bytes
                        assert_lists(path, expected)
                        assert_converts(path, expected, name)
                if write_script(path, "script", module):
                    assert_script(path, name)
                    if "quint4x2" not in str(expected):  # in a program, scale and zero point are numbers
                        assert_lists(path, [tensor for tensor in tensors_of(expected) if tensor.dim()])
    finally:
        torch.backends.quantized.engine = engine


def kinds() -> Iterator[tuple[str, Any]]:
    from torch.testing._internal.common_dtype import all_types_and_complex_and

    for dtype in all_types_and_complex_and(
        torch.bool,
        torch.half,
        torch.bfloat16,
        torch.chalf,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2fnuz,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ):
        made = torch.arange(24).remainder(3).to(dtype).reshape(4, 6)
        yield f"{dtype}", made
        yield f"{dtype} strided", made.t()[1::2]
        yield f"{dtype} expanded", made[0].expand(3, 6)
        yield f"{dtype} empty", made[:0]
        yield f"{dtype} scalar", made[0, 0]
        if dtype.itemsize > 1 or dtype in (torch.bool, torch.int8, torch.uint8):
            for layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc):
                with suppress(RuntimeError):  # none of it for this dtype
                    yield f"{dtype} {layout}", made.to_sparse(layout=layout)
        if dtype.is_complex:
            yield f"{dtype} conj", made.conj()
            yield f"{dtype} neg", made.conj().imag
        yield f"{dtype} meta", made.to("meta")


@pytest.mark.parametrize("new", [True, False])
def test_tensors_of_every_kind(new: bool, tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    for name, tensor in kinds():
        for whole in (tensor, {"a": [tensor, {"b": tensor}]}):
            try:
                torch.save(whole, path, _use_new_zipfile_serialization=new)
            except RuntimeError:
                continue  # the first format has no such storages
            try:
                assert_lists(path, whole)
            except (AssertionError, PtsaveError) as error:
                pytest.fail(f"{name}: {error!r}")
            assert_converts(path, whole, name)
