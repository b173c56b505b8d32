"""A program that was exported earlier, or by others, compared with the model of a config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ptsave.config.inputs import InputsSpec
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind
from ptsave.export.onnx import Given, OnnxRuntime, Returned, tensor_of
from ptsave.export.program import Bounds
from ptsave.export.proof import CHECK, case_of, prove
from ptsave.export.pt2 import Pt2Runtime, runtime_of
from ptsave.models.behaviour.judge import FOREIGN_MARGIN, MARGIN
from ptsave.models.inputs import Arguments
from ptsave.models.verify.subject import dtype_of_program
from ptsave.verbs.checks.cause import is_same_runtime
from ptsave.verbs.checks.program import cannot_run, first_line


def run_beside(checkpoint: Checkpoint, model: nn.Module, inputs: InputsSpec) -> Iterator[Finding]:
    """Run an open program beside `model`, which may be cast: at the example's sizes, at 1, and at one larger.

    Raises: UsageError where the model itself does not run.
    """
    if checkpoint.globals:
        yield Finding(CHECK, "skipped", "", Kind.PROGRAM_UNSAFE)
        return
    if why := cannot_run(checkpoint):
        yield Finding(CHECK, "skipped", "", Kind.NO_RUNTIME, facts={"nodes": "", "why": why})
        return
    if (dtype := dtype_of_program(checkpoint, model)) is not None:
        model.to(getattr(torch, dtype.name))
        inputs = inputs.cast(dtype)
    margin = MARGIN if checkpoint.format == "pt2" and is_same_runtime(checkpoint) else FOREIGN_MARGIN
    example = case_of(model, inputs, margin, inputs.sizes)
    runtime: Pt2Runtime | OnnxRuntime
    try:
        if checkpoint.format == "pt2":
            runtime = runtime_of(checkpoint)
        else:
            assert isinstance(checkpoint.path, Path)
            returned = _returned(_recorded(checkpoint, "outputs"), list(example.now.outputs))
            runtime = OnnxRuntime(checkpoint.path, _given(model), returned)
    except Exception as error:  # each runtime has its own way to say that it cannot load a program
        yield Finding(CHECK, "fail", "", Kind.PROGRAM_FAILS, facts={"why": first_line(error)})
        return
    yield from prove(model, inputs, _bounds(checkpoint), runtime, margin, example)


def _recorded(checkpoint: Checkpoint, key: str) -> Any:
    record = checkpoint.record
    return record.program.get(key) if record is not None and record.program is not None else None


def _bounds(checkpoint: Checkpoint) -> Bounds:
    """The least and the largest value of each named size, where the record has them."""
    recorded = _recorded(checkpoint, "bounds")
    bounds = {}
    for name, both in recorded.items() if isinstance(recorded, dict) else ():
        match both:
            case [int(least), int(most)] if most > 0:
                bounds[name] = least, most
    return bounds


def _given(model: nn.Module) -> Given:
    """How the inputs of a graph are found among forward()'s arguments: by name, otherwise by position.

    Source: torch/_export/utils.py of torch 2.13 (`placeholder_naming_pass`).
    """

    def given(arguments: Arguments, names: Sequence[str]) -> dict[str, torch.Tensor]:
        own = signature(model.forward)
        bound = own.bind(*arguments.args, **arguments.kwargs).arguments
        for name, parameter in own.parameters.items():
            if parameter.kind is Parameter.VAR_KEYWORD:
                bound.update(bound.pop(name, {}))
        leaves, _ = pytree.tree_flatten_with_path(bound)
        tensors = {_name(path): leaf for path, leaf in leaves if isinstance(leaf, torch.Tensor)}
        if all(name in tensors for name in names):
            return {name: tensors[name] for name in names}
        if len(names) != len(tensors):
            raise ValueError(f"{len(names)} inputs ({', '.join(names)}) for {len(tensors)} of the model")
        return dict(zip(names, tensors.values(), strict=True))

    return given


def _name(path: Sequence[Any]) -> str:
    """`batch_mask` for `batch["mask"]`."""
    keys = (getattr(key, "key", getattr(key, "idx", getattr(key, "name", ""))) for key in path)
    return "_".join(map(str, keys))


def _returned(recorded: Any, own: Sequence[str]) -> Returned:
    """How the outputs of a graph are named: as the record says, otherwise in the model's order."""
    paths: Sequence[str] = recorded if isinstance(recorded, list) else own

    def returned(arrays: Sequence[Any]) -> dict[str, torch.Tensor]:
        if len(arrays) != len(paths):
            raise ValueError(f"{len(arrays)} outputs for {len(paths)} of the model")
        return {str(path): tensor_of(array) for path, array in zip(paths, arrays, strict=True)}

    return returned
