"""Watching one forward pass: what went into and came out of every module, in the order they finished."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ptsave.core.behaviour import CALL_VALUES, OUTPUT_VALUES, Call, Sample
from ptsave.core.dtypes import BY_NAME
from ptsave.core.tree import own_kind, rewrite
from ptsave.core.values.digest import DEFAULT, hasher, prefix
from ptsave.core.values.sketch import STEP
from ptsave.errors import UsageError
from ptsave.models.behaviour.differences import epsilon
from ptsave.models.behaviour.sketch import measure
from ptsave.models.inputs import Arguments, output_tensors
from ptsave.models.load import run
from ptsave.models.seeding import seeded
from ptsave.models.weights.live import is_plain
from ptsave.models.weights.tensors import memory_of

MAX_TENSORS = 4
"""How many tensors of one module's inputs, and of its outputs, are looked at."""
MAX_OUTPUTS = 1000
"""How many of the model's own outputs are."""


def _alone(run: Callable[[], Trace]) -> Trace:
    return run()


together: ContextVar[Callable[[Callable[[], Trace]], Trace]] = ContextVar("together", default=_alone)
"""How a pass is watched: by this process alone, unless several have to go by what one of them saw."""


def is_alone() -> bool:
    """Whether this process goes by what it sees itself."""
    return together.get() is _alone


@dataclass
class Trace:
    """One forward pass as it was seen."""

    calls: list[Call] = field(default_factory=list)
    outputs: dict[str, Sample] = field(default_factory=dict)
    training: list[str] = field(default_factory=list)
    """Modules that were in training mode all the same."""

    def digests(self) -> dict[str, str]:
        """Output path → digest."""
        return {path: sample.digest for path, sample in self.outputs.items()}


def watch(
    model: nn.Module,
    arguments: Arguments,
    mode: AbstractContextManager[Any] | None = None,
    *,
    seed: int = 0,
    known: Mapping[str, Sample] | None = None,
) -> Trace:
    """One eval-mode, no-grad forward pass with every module watched, under `mode` if there is one.

    Arguments and buffers are afterwards as they were. A module that is called twice has two entries. Nothing
    that the modules compute is kept alive. `known` holds samples by their digests: a tensor with the same
    digest has the same sample, and is not measured again.

    Raises: UsageError when the model's own code raises.
    """
    return together.get()(lambda: _watch(model, arguments, mode, seed, known or {}))


def _watch(
    model: nn.Module,
    arguments: Arguments,
    mode: AbstractContextManager[Any] | None,
    seed: int,
    known: Mapping[str, Sample],
) -> Trace:
    seen = Trace()
    with buffers_restored(model):
        samples = _Samples(known)
        with seeded(seed), _uncompiled(), _watching(model, seen, samples, mode), mode or nullcontext():
            output = run(model, cloned(arguments))
        tensors = _visible(output, MAX_OUTPUTS)
        seen.outputs = {path: samples.take(tensor, OUTPUT_VALUES) for path, tensor in tensors}
        seen.training = [name for name, module in model.named_modules() if module.training]
    return seen


def watch_precisions(model: nn.Module, arguments: Arguments, first: Trace, *, seed: int = 0) -> Trace | None:
    """One more pass, of which the dtypes that modules compute in inside are seen; None where that fails.

    `first`: a plain pass. What it has measured is not measured again.
    """
    calls = (sample for call in first.calls for sample in (*call.inputs.values(), *call.outputs.values()))
    known = {sample.digest: sample for sample in (*calls, *first.outputs.values())}
    try:
        return watch(model, arguments, Precisions(), seed=seed, known=known)
    except UsageError:
        return None


def with_precisions(calls: Sequence[Call], seen: Trace) -> list[Call]:
    """`calls` with the dtypes that modules compute in inside, as `watch_precisions` has `seen` them."""
    inside = {call.key: call.inside for call in seen.calls}
    return [replace(call, inside=inside.get(call.key, "")) for call in calls]


def output_digests(model: nn.Module, arguments: Arguments) -> dict[str, str]:
    """Output path → digest of the same pass, with nothing watched."""
    with buffers_restored(model):
        with seeded(0), _uncompiled():
            output = run(model, cloned(arguments))
        return {path: digest_of(tensor) for path, tensor in _visible(output, MAX_OUTPUTS)}


def output_samples(
    model: nn.Module,
    arguments: Arguments,
    known: Mapping[str, Sample] | None = None,
    mode: AbstractContextManager[Any] | None = None,
) -> dict[str, Sample]:
    """Output path → sample of a pass with nothing watched; `known` and `mode` as for `watch`."""
    with buffers_restored(model):
        with _uncompiled(), seeded(0), mode or nullcontext():
            output = run(model, cloned(arguments))
        return samples_of(output, known)


def samples_of(output: Any, known: Mapping[str, Sample] | None = None) -> dict[str, Sample]:
    """Output path → sample of what a forward pass returned; `known` as for `watch`."""
    samples = _Samples(known or {})
    return {path: samples.take(tensor, OUTPUT_VALUES) for path, tensor in _visible(output, MAX_OUTPUTS)}


def cloned(value: Any) -> Any:
    """Arguments, or a part of them, with tensors of their own: a model may change what it is given."""
    if isinstance(value, Arguments):
        return Arguments(cloned(value.args), cloned(dict(value.kwargs)))

    def leaf(path: Sequence[Any], value: Any) -> Any:
        return value.clone() if isinstance(value, torch.Tensor) else value

    return rewrite(value, leaf, leave=own_kind, containers=(dict, list, tuple))


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Undo afterwards what happens to buffers inside: a model may count its calls, or learn in batch norm."""
    before = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    held = [(m, dict(m._buffers)) for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    try:
        yield
    finally:
        for module, buffers in held:
            module._buffers.update(buffers)  # `self.mean = …` puts another tensor in its place
        for buffer, version, values in before:
            if buffer._version != version and buffer.shape == values.shape:
                with torch.no_grad():
                    buffer.copy_(values)


def _uncompiled() -> AbstractContextManager[Any]:
    """What torch.compile was put on runs as it is written: compiled, it would not call the hooks."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def _watching(
    model: nn.Module, seen: Trace, samples: _Samples, mode: AbstractContextManager[Any] | None
) -> Iterator[None]:
    counts: dict[str, int] = {}
    open_calls: list[_OpenCall] = []
    precisions = mode if isinstance(mode, Precisions) else Precisions()

    def look(value: Any) -> dict[str, Sample]:
        return {path: samples.take_once(tensor) for path, tensor in _visible(value, MAX_TENSORS)}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        with torch._C.DisableTorchFunction():
            inputs = look({**dict(enumerate(args)), **kwargs})
        open_calls.append(_OpenCall(module, inputs, sys.exc_info()[1]))
        precisions.enter()

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            call = open_calls.pop() if open_calls and open_calls[-1].module is module else None
            if call is None or sys.exc_info()[1] is not call.handled:
                if call is not None:
                    precisions.leave((), ())
                return  # it raised; whether its caller can do without it is its caller's matter
            number = counts[name] = counts.get(name, -1) + 1
            with torch._C.DisableTorchFunction():
                outputs = look(output)
            inside = precisions.leave(call.inputs.values(), outputs.values())
            seen.calls.append(Call(name, number, _kind(module), call.inputs, outputs, inside))

        return hook

    handles = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            # Called for a module that raises, too: what it was given must not stay open.
            hook = after(name)
            handles.append(module.register_forward_hook(hook, with_kwargs=True, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _OpenCall:
    """A call that has not finished."""

    module: nn.Module
    inputs: Mapping[str, Sample]
    handled: BaseException | None
    """What was being handled when it began: another one at its end is its own."""


class Precisions(TorchFunctionMode):
    """While active, notes in which floating-point dtypes the code of each module computes."""

    def __init__(self) -> None:
        super().__init__()
        self._computed: list[set[str]] = [set()]
        self._shown: list[set[str]] = [set()]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                self._computed[-1].add(_name(tensor.dtype))
        return result

    def enter(self) -> None:
        """A module is called."""
        self._computed.append(set())
        self._shown.append(set())

    def leave(self, inputs: Iterable[Sample], outputs: Iterable[Sample]) -> str:
        """It has returned; gives the dtype for `Call.inside`."""
        given, returned = ({sample.dtype for sample in samples} for samples in (inputs, outputs))
        computed, shown = self._computed.pop(), self._shown.pop() | given | returned
        self._shown[-1] |= returned
        known = max(map(epsilon, shown), default=0.0)
        coarsest = max(computed, key=epsilon, default="")
        return coarsest if coarsest and epsilon(coarsest) > known > 0 else ""


def _kind(module: nn.Module) -> str:
    """The module's class; FSDP2 derives one of its own, in place, from the one that was written."""
    kinds = type(module).__mro__
    kind = next((kind for kind in kinds if not kind.__module__.startswith("torch.distributed.")), kinds[0])
    return f"{kind.__module__}.{kind.__qualname__}"


class _Samples:
    """Takes samples, of each tensor once: what one module returned is given to the next ones."""

    def __init__(self, known: Mapping[str, Sample]) -> None:
        self._known = known
        self._taken: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def take_once(self, tensor: torch.Tensor) -> Sample:
        """The sample of a module's input or output, unless the tensor has changed in place since."""
        version, sample = self._taken.get(tensor, (None, None))  # type: ignore[no-untyped-call]
        if sample is None or version != tensor._version:
            sample = self.take(tensor, CALL_VALUES)
            self._taken[tensor] = tensor._version, sample
        assert isinstance(sample, Sample)
        return sample

    def take(self, tensor: torch.Tensor, count: int) -> Sample:
        """The sample of a tensor, with up to `count` of its values."""
        flat = _flat(tensor)
        digest = _digest(tensor, flat)
        sample = self._known.get(digest)
        return sample if sample is not None else _sample(tensor, flat, digest, count)


def _visible(value: Any, limit: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The first tensors in `value` that have plain bytes (nested tensors and the like have none), by path."""
    named = output_tensors(value).items()
    plain = ((path, _dense(tensor.detach())) for path, tensor in named if not tensor.is_nested)
    return islice(((path, tensor) for path, tensor in plain if is_plain(tensor)), limit)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def digest_of(tensor: torch.Tensor) -> str:
    """XXH3-128 of a plain tensor, as `core.values.digest` takes it."""
    return _digest(tensor, _flat(tensor))


def _sample(tensor: torch.Tensor, flat: torch.Tensor, digest: str, count: int) -> Sample:
    """What is kept of a plain tensor: digest, norm, sketch, and up to `count` of its values."""
    values = flat[_places(flat.numel(), count).to(flat.device)]
    if values.is_complex():
        values = torch.view_as_real(values.to(torch.complex128)).reshape(-1)
    return Sample(
        _name(tensor.dtype),
        tuple(tensor.shape),
        digest,
        *measure(flat),
        tuple(values.cpu().to(torch.float64).tolist()),
    )


def _digest(tensor: torch.Tensor, flat: torch.Tensor) -> str:
    dtype = BY_NAME[_name(tensor.dtype)]
    digest = hasher(DEFAULT, prefix(dtype, tuple(tensor.shape)))
    host = flat.cpu()
    # NumPy would pin the memory for good, and FSDP2 could not give a gathered parameter back.
    digest.update(memory_of(host))
    return digest.hexdigest()


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """The elements in row-major order, one after the other."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().view(-1)


@cache
def _places(size: int, count: int) -> torch.Tensor:
    return torch.arange(min(count, size)) * STEP % max(size, 1)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
