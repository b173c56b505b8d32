"""A module → torch's ExportedProgram, with the named sizes of `[inputs]` open."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from ptsave.config.inputs import InputsSpec, PlainValue, RandomTensor
from ptsave.errors import RefusedError, UsageError
from ptsave.models.inputs import Arguments, make_inputs
from ptsave.own_process import without_messages

MIN_TRACED = 2
"""The least example of a named size that torch is given: it takes 0 and 1 for constants.

Source: torch/fx/experimental/symbolic_shapes.py (`specialize_zero_one`).
"""

Bounds = Mapping[str, tuple[int, int | None]]
"""Name of a size → the least and the largest value; None where nothing bounds it."""


@dataclass(frozen=True)
class Program:
    """An exported program, and the names of its sizes."""

    exported: ExportedProgram
    names: Mapping[str, str] = field(default_factory=dict)
    """torch's symbol → the name that `[inputs]` gives the size."""
    bounds: Bounds = field(default_factory=dict)


@dataclass(frozen=True)
class _Named:
    """Stands for a generated tensor of `[inputs]`: the names of its sizes, and the sizes."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def dynamic(self) -> dict[int, Any]:
        return {i: Dim.AUTO for i, name in enumerate(self.names) if name}


def export_program(model: nn.Module, inputs: InputsSpec) -> Program:
    """Export `model`, in eval mode and without gradients; every named size of `inputs` stays open.

    Raises: UsageError where the model fixes a named size; RefusedError where torch cannot export it.
    """
    sizes = {name: max(size, MIN_TRACED) for name, size in inputs.sizes.items()}
    exported = _export(model, inputs.with_sizes(sizes))
    fixed = list(_fixed(model, inputs, exported))
    if fixed:
        # A size that is the largest possible looks like a constant: `x[:length]` of `length` elements.
        smaller = {name: max(MIN_TRACED, sizes[name] // 2) for name, *_ in fixed}
        try:
            exported = _export(model, inputs.with_sizes(sizes | smaller))
        except (RefusedError, UsageError):
            raise _fixed_error(model, inputs, sizes, fixed[0]) from None
        if still := list(_fixed(model, inputs, exported)):
            raise _fixed_error(model, inputs, sizes, still[0])
        _allow(exported, {sizes[name] for name, *_ in fixed})
    names, bounds = {}, {}
    for name, dimension in _open(model, inputs, exported):
        expression = dimension.node.expr
        limits = exported.range_constraints.get(expression)
        if expression.is_symbol:
            names[str(expression)] = name
        if limits is not None:
            most = int(limits.upper) if limits.upper.is_Integer else None
            bounds[name] = (int(limits.lower), most)
    _strip(exported)
    return Program(exported, names, bounds)


def _allow(exported: ExportedProgram, sizes: set[int]) -> None:
    """Let a program take the example's own sizes, where it was traced at others.

    `proof` finds out whether it computes what the model does at exactly these sizes.

    Source: torch/export/_unlift.py of torch 2.13 (`_convert_guards_code_to_fn`).
    """
    excluding = tuple(f" != {size}" for size in sizes)
    guards: list[str] = exported._guards_code
    exported._guards_code = [guard for guard in guards if not guard.endswith(excluding)]


def _export(model: nn.Module, inputs: InputsSpec, *, strict: bool = False) -> ExportedProgram:
    """What torch exports of `model` on `inputs`.

    Raises: RefusedError with the line of the model's code at which torch stopped.
    """
    arguments = make_inputs(inputs, model)
    model.eval()
    try:
        with torch.no_grad(), without_messages():
            return torch.export.export(
                model,
                arguments.args,
                dict(arguments.kwargs),
                dynamic_shapes=_dynamic_shapes(model, inputs),
                strict=strict,
            )
    except Exception as error:  # torch has no common base for what it raises here
        raise _refused(model, error) from error


def _dynamic_shapes(model: nn.Module, inputs: InputsSpec) -> dict[str, Any]:
    """Which dimensions stay open, in the structure of forward()'s arguments, as torch.export wants it."""
    named = _named(model, inputs)
    bound = signature(model.forward).bind(*named.args, **named.kwargs).arguments

    def dynamic(leaf: Any) -> Any:
        return leaf.dynamic or None if isinstance(leaf, _Named) else None

    return dict(pytree.tree_map(dynamic, bound))


def _named(model: nn.Module, inputs: InputsSpec) -> Arguments:
    """The arguments of forward() with a `_Named` in the place of each generated tensor."""

    def stand_in(tensor: RandomTensor) -> PlainValue:
        return PlainValue(_Named(tensor.names, tensor.shape))

    # Nothing is run with these: what only a record vouches for was tried when the arguments were made.
    return make_inputs(replace(inputs.mapped(stand_in), is_recorded=False), model)


def flat_arguments(exported: ExportedProgram, arguments: Arguments) -> list[Any]:
    """The leaves of `arguments` in the order of the program's inputs."""
    _, keywords = exported.call_spec.in_spec.children()
    order = keywords.context if keywords.type is dict else list(arguments.kwargs)
    kwargs = {name: arguments.kwargs[name] for name in order}
    return pytree.tree_leaves((arguments.args, kwargs))


def input_nodes(exported: ExportedProgram) -> list[Node]:
    """The placeholders of the user's inputs, in order."""
    specs = exported.graph_signature.input_specs
    names = {spec.arg.name for spec in specs if spec.kind is InputKind.USER_INPUT}
    return [node for node in exported.graph.nodes if node.op == "placeholder" and node.name in names]


def _open(
    model: nn.Module, inputs: InputsSpec, exported: ExportedProgram
) -> Iterator[tuple[str, torch.SymInt]]:
    """Each named size that torch left open, with torch's symbol for it."""
    for name, size, _, _ in _dimensions(model, inputs, exported):
        if isinstance(size, torch.SymInt) and not size.node.expr.is_number:
            yield name, size


def _fixed(model: nn.Module, inputs: InputsSpec, exported: ExportedProgram) -> Iterator[tuple[str, str, int]]:
    """Name, input and dimension of each named size that is a constant in the program."""
    for name, size, argument, i in _dimensions(model, inputs, exported):
        if isinstance(size, int) or size.node.expr.is_number:
            yield name, argument, i


def _dimensions(
    model: nn.Module, inputs: InputsSpec, exported: ExportedProgram
) -> Iterator[tuple[str, Any, str, int]]:
    leaves = flat_arguments(exported, _named(model, inputs))
    for leaf, node in zip(leaves, input_nodes(exported), strict=True):
        for i, name in enumerate(leaf.names if isinstance(leaf, _Named) else ()):
            if name:
                yield name, node.meta["val"].shape[i], node.name, i


def _fixed_error(
    model: nn.Module, inputs: InputsSpec, sizes: Mapping[str, int], fixed: tuple[str, str, int]
) -> UsageError:
    """The error for a named size that the model's code fixes, with the line where torch says it."""
    name, argument, i = fixed
    line = _line_that_fixes(model, inputs.with_sizes(sizes), argument, i)
    at = f" ({line})" if line else ""
    return UsageError(
        f"the model fixes the size {name!r}, dimension {i} of the input {argument!r}, to {sizes[name]}{at}",
        str(inputs.place),
        f"write shape with a number in its place, or have the code take it from {argument}.shape",
    )


def _line_that_fixes(model: nn.Module, inputs: InputsSpec, argument: str, i: int) -> str:
    """Where the model's code makes a constant of a size; torch knows it where it reads the code itself."""
    try:
        exported = _export(model, inputs, strict=True)
    except (RefusedError, UsageError):
        return ""
    nodes = input_nodes(exported)
    k = next(k for k, node in enumerate(nodes) if node.name == argument)
    known = {f"L['{argument}'].size()[{i}]", f"L['flat_args'][{k}].size()[{i}]"}
    environment = nodes[k].meta["val"].fake_mode.shape_env
    for symbol, sources in environment.var_to_sources.items():
        location = environment.replacements_slocs.get(symbol)
        if location is not None and location.maybe_user_loc and any(one.name in known for one in sources):
            code, _, place = location.maybe_user_loc.partition("  # ")
            return f"{place.partition(' in ')[0].rpartition('/')[2]}: {code}"
    return ""


def _refused(model: nn.Module, error: Exception) -> RefusedError | UsageError:
    """The error for a model that torch cannot export."""
    if isinstance(error, (RefusedError, UsageError)):
        return error
    reason = str(error).strip().partition("\n")[0]
    line = _line_of(error)
    kind = type(error).__name__
    if "DataDependent" in kind:
        what = "the model's code decides by the values of a tensor, which an exported program cannot"
        return RefusedError(
            f"{what}{f': {line}' if line else ''}",
            type(model).__qualname__,
            "write it with torch.where or torch.cond, or take the number as an argument that is not a tensor",
            reason=reason,
        )
    what = f"torch.export does not take the model{f' at {line}' if line else ''}: {kind}: {reason}"
    return RefusedError(
        what, type(model).__qualname__, "torch.export.draft_export lists everything that it does not take"
    )


def _line_of(error: BaseException) -> str:
    """`model.py:17: if x.sum() > 0:`, the deepest line of a traceback that is in no library of torch's."""
    own = Path(__file__).parents[1]
    libraries = tuple(map(str, (Path(torch.__file__).parent, own / "export", own / "cli", own / "api")))
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        path = frame.filename
        if Path(path).is_file() and not path.startswith(libraries):
            code = linecache.getline(path, frame.lineno or 0).strip()
            return f"{Path(path).name}:{frame.lineno}: {code}"
    return ""


def _strip(exported: ExportedProgram) -> None:
    """Remove the paths of the model's code on this machine from a program."""
    for module in exported.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
