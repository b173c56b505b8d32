"""`[parallel]` → a model on the meta device, sharded over the ranks by torch's own FSDP2, DTensor and DDP."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from ptsave.config.toml import Config, ParallelSpec
from ptsave.core.names import hint_for
from ptsave.distributed.group import Group
from ptsave.distributed.styles import split
from ptsave.errors import UsageError
from ptsave.models.inputs import Arguments
from ptsave.models.load import run
from ptsave.models.weights.lazy import lazy_names
from ptsave.models.weights.own_shard import gathered
from ptsave.models.weights.sharded import tensors_in
from ptsave.own_process import without_warnings

_HINT = "check [parallel]"


class PlanError(UsageError):
    """`[parallel]` is at fault, and not the model or its weights."""


class _Mixing(TorchFunctionMode):
    """While active, notes whether a function failed that was given DTensors and plain tensors together."""

    has_failed = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except Exception:
            given = tensors_in((args, kwargs))
            self.has_failed |= len({isinstance(tensor, DTensor) for tensor in given}) == 2
            raise


@dataclass(frozen=True)
class Plan:
    """How a model is sharded over the ranks."""

    mesh: DeviceMesh
    sizes: Mapping[str, int]
    """`ddp`, `dp` and `tp` → number of ranks, the outermost first."""
    spec: ParallelSpec
    where: str

    @property
    def splits_tensors(self) -> bool:
        """Whether modules compute with parts of their parameters, and sums are added in another order."""
        return "tp" in self.sizes

    def parallelize(self, model: nn.Module) -> None:
        """Make every parameter that is to be split a DTensor; `model` is on the meta device, or real.

        Tensors are split first and sharded then, so that a rank's shard of a split tensor is one run.

        Raises: PlanError when a name matches nothing, or torch refuses.
        """
        if names := lazy_names(model):
            hint = "build it of layers that are told their sizes"
            raise PlanError(f"{names[0]!r} has no shape yet, and cannot be split", self.where, hint)
        before = _ties(model)
        try:
            with without_warnings():  # what torch says of its own choices
                if self.splits_tensors:
                    self._split(model)
                if "dp" in self.sizes:
                    self._shard(model)
        except UsageError:
            raise
        except Exception as error:
            what = f"torch cannot parallelize the model as configured: {type(error).__name__}: {error}"
            raise PlanError(what, self.where, _HINT) from error
        for one, other in before:
            state = dict(model.named_parameters(remove_duplicate=False))
            if state[one] is not state[other]:
                what = f"{one!r} and {other!r} are one parameter, and would become two"
                hint = "wrap both in one unit and split both alike, or neither"
                raise PlanError(what, self.where, hint)

    def check_runs(self, model: nn.Module) -> None:
        """Refuse to run what torch cannot: it takes the parts of a split tensor to be of one size.

        Raises: UsageError.
        """
        for name, tensor in model.named_parameters() if self.splits_tensors else ():
            if not isinstance(tensor, DTensor):
                continue
            names = tensor.device_mesh.mesh_dim_names or ()
            for kind, placement in zip(names, tensor.placements, strict=True):
                if (
                    kind == "tp"
                    and isinstance(placement, Shard)
                    and tensor.shape[placement.dim] % self.sizes["tp"]
                ):
                    what = (
                        f"{name!r}: {tensor.shape[placement.dim]} does not divide by {self.sizes['tp']} (tp)"
                    )
                    raise PlanError(f"{what}, and the model cannot be run so", self.where, _HINT)

    def run(self, model: nn.Module, arguments: Arguments) -> Any:
        """One forward pass of a sharded model that is filled; what it returns is whole on every rank.

        Raises: UsageError when the model cannot be run.
        """
        self.check_runs(model)
        with self.blamed():
            return gathered(run(self.replicate(model), arguments))

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """While open, the error of a forward pass that fails says where in the plan to look.

        It is a PlanError where the plan alone is at fault: a parameter was used before it was gathered.
        """
        mixing = _Mixing()
        try:
            with mixing:
                yield
        except UsageError as error:
            if mixing.has_failed:
                hint = "wrap, or split, the module whose forward() is called, not one inside it"
                raise PlanError(error.what, self.where, hint) from error
            if self.splits_tensors:
                error.hint = "check [parallel.tensor]; without torchrun, the model is run whole"
            raise

    def replicate(self, model: nn.Module) -> nn.Module:
        """`model`, filled, as DistributedDataParallel runs it where the mesh has `ddp` alone.

        Beside `dp`, FSDP2 replicates by itself; beside `tp`, a forward pass has nothing to share.
        """
        if set(self.sizes) != {"ddp"} or not any(p.requires_grad for p in model.parameters()):
            return model
        with without_warnings():  # there is no other way yet to send nothing, since all are alike
            return DistributedDataParallel(model, broadcast_buffers=False, init_sync=False)

    def _split(self, model: nn.Module) -> None:
        mesh = self.mesh["tp"]
        modules = dict(model.named_modules())
        styles: dict[str, tuple[str, str]] = {}
        for glob, style in self.spec.tensor.items():
            names = [name for name in modules if name and fnmatchcase(name, glob)]
            if not names:
                raise PlanError(f"no module is named {glob!r}", f"{self.where}: tensor", _near(glob, modules))
            for name in names:
                first, other = styles.setdefault(name, (style, glob))
                if style != first:
                    what = f"{name!r} is {first} by {other!r} and {style} by {glob!r}"
                    hint = "`*` stands for dots too: name more of it"
                    raise PlanError(what, f"{self.where}: tensor", hint)
        ties = _ties(model)
        for name, (style, _) in styles.items():
            try:
                split(modules[name], style, mesh)
            except NotImplementedError as error:
                what = f"torch cannot split {name!r}, a {_path(type(modules[name]))}: {error}"
                raise PlanError(what, f"{self.where}: tensor", _HINT) from error
        for one, other in ties:
            _tie_again(model, one, other)

    def _shard(self, model: nn.Module) -> None:
        names = [name for name in ("ddp", "dp") if name in self.sizes]
        mesh = self.mesh[tuple(names)] if len(names) > 1 else self.mesh["dp"]
        model.requires_grad_(False)  # nothing is trained here, and of what is, FSDP2 wants one dtype
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()  # FSDP2 takes no other
        scalars = {parameter for parameter in model.parameters() if not parameter.dim()}  # FSDP2 takes none
        shard = partial(fully_shard, ignored_params=scalars) if scalars else fully_shard
        for module in (*self._units(model), model):
            shard(module, mesh=mesh)

    def _units(self, model: nn.Module) -> Iterator[nn.Module]:
        """What `wrap` names, each after the units inside it.

        Raises: UsageError.
        """
        modules = dict(model.named_modules())
        wanted: dict[str, nn.Module] = {}
        for pattern in self.spec.wrap:
            kind = _class(pattern)
            found = {
                name: module
                for name, module in modules.items()
                if name and (fnmatchcase(name, pattern) or (kind is not None and isinstance(module, kind)))
            }
            if not found:
                known = {*modules, *(_path(type(module)) for module in modules.values())}
                what = f"no module is, or is named, {pattern!r}"
                raise PlanError(what, f"{self.where}.wrap", _near(pattern, known))
            # nothing would gather the parameters of a container, which has no forward of its own
            units = {name: m for name, m in found.items() if type(m).forward is not nn.Module.forward}
            if not units:
                name, module = next(iter(found.items()))
                what = f"{name!r} is a container, a {_path(type(module))}, whose forward nobody calls"
                raise PlanError(what, f"{self.where}.wrap", f"wrap what is in it: {name + '.*'!r}")
            wanted |= units
        return (wanted[name] for name in sorted(wanted, key=lambda name: -name.count(".")))


def make_plan(config: Config, group: Group) -> Plan:
    """The plan of a config's `[parallel]`; without one, FSDP2 over all ranks.

    Raises: PlanError when the mesh does not have as many ranks as torchrun started.
    """
    spec = config.parallel or ParallelSpec()
    where = f"{config.path}: parallel"
    sizes = {name: spec.mesh[name] for name in ("ddp", "dp", "tp") if name in spec.mesh}
    if not sizes:
        sizes = {"tp" if spec.tensor and not spec.wrap else "dp": group.size}
    if prod(sizes.values()) != group.size:
        shown = " × ".join(f"{name} = {size}" for name, size in sizes.items())
        what = f"the mesh ({shown}) has {prod(sizes.values())} ranks, and torchrun started {group.size}"
        raise PlanError(what, f"{where}.mesh", f"--nproc-per-node {prod(sizes.values())}, or --set its sizes")
    if spec.tensor and "tp" not in sizes:
        raise PlanError("[parallel.tensor] splits over tp, which the mesh lacks", where, "mesh = {tp = 2}")
    if spec.wrap and "dp" not in sizes:
        raise PlanError("wrap makes units for dp, which the mesh lacks", where, "mesh = {dp = 2}")
    if "tp" in sizes and not spec.tensor:
        raise PlanError("tp splits what [parallel.tensor] names, and there is none", where, _HINT)
    mesh = init_device_mesh(
        torch.device(group.device).type, tuple(sizes.values()), mesh_dim_names=tuple(sizes)
    )
    return Plan(mesh, sizes, spec, where)


def _class(pattern: str) -> type | None:
    """The class that a dotted path names, if it is one of a module that is imported: the model's are."""
    module, _, name = pattern.replace(":", ".").rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    return kind if isinstance(kind, type) else None


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _near(pattern: str, known: set[str] | dict[str, nn.Module]) -> str:
    return hint_for(pattern, sorted(name for name in known if name), "names")


def _ties(model: nn.Module) -> list[tuple[str, str]]:
    """Pairs of names of one parameter."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    pairs = ((name, first.setdefault(id(parameter), name)) for name, parameter in named)
    return [(first_name, name) for name, first_name in pairs if name != first_name]


def _tie_again(model: nn.Module, one: str, other: str) -> None:
    """Make one parameter again of two that were split alike: a vocabulary by `rowwise` and `colwise`."""
    state = dict(model.named_parameters(remove_duplicate=False))
    kept, left = state[one], state[other]
    if isinstance(kept, DTensor) and isinstance(left, DTensor) and kept.placements == left.placements:
        path, _, name = other.rpartition(".")
        setattr(model.get_submodule(path), name, kept)
