"""What the checks of a model look at, and what they share so that nothing is done twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from ptsave.config.inputs import InputsSpec
from ptsave.config.recorded import Told, told_by
from ptsave.config.toml import Config
from ptsave.core.behaviour import Behaviour
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import DType
from ptsave.core.finding import Finding
from ptsave.core.parts.keys import Expected, KeyReport, Wanted
from ptsave.core.parts.select import Content, Selection, comparable, named_as, without
from ptsave.core.values.cast import CASTABLE, can_cast
from ptsave.errors import CorruptError
from ptsave.models.behaviour.replay import Replay
from ptsave.models.build import build_model
from ptsave.models.verify.fresh import Fresh
from ptsave.models.weights.fill import build_filled
from ptsave.models.weights.fitting import expected_of, fit_of, select_for
from ptsave.models.weights.lazy import lazy_names
from ptsave.models.weights.mapped import ALLOCATOR_BYTES
from ptsave.storage.system.processes import trim_memory
from ptsave.verbs.checks.program import FORMATS as PROGRAMS


def dtype_of_program(checkpoint: Checkpoint, model: nn.Module) -> DType | None:
    """The dtype that a program was cast to when it was exported; None where it has the model's own."""
    if checkpoint.format not in PROGRAMS:
        return None
    state = model.state_dict(keep_vars=True)
    own = {name: t for name, t in state.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    known = {name.removeprefix("state_dict."): entry.dtype for name, entry in checkpoint.tensors.items()}
    both = [(known[name], str(tensor.dtype)) for name, tensor in own.items() if name in known]
    found = {dtype for dtype, _ in both}
    if len(found) != 1 or all(f"torch.{dtype.name}" == own for dtype, own in both):
        return None
    (dtype,) = found
    return dtype if dtype.name in CASTABLE and can_cast(dtype) else None


RunBeside = Callable[[Checkpoint, nn.Module, InputsSpec], Iterator[Finding]]


@dataclass
class ModelSubject:
    """A checkpoint, the model that it is said to be, and what has been found out of the two."""

    checkpoint: Checkpoint
    config: Config
    device: str = "cpu"
    select: str | None = None
    app_dir: Path | None = None
    through: Sequence[str] = ()
    """Formats that `roundtrip` goes through; none: the checkpoint's own."""
    warn: Callable[[str], None] = lambda line: None
    other: Checkpoint | None = None
    """What `--against` names."""
    fresh: Fresh | None = None
    """The model that `other` is of, where `--against` names a config."""
    run_beside: RunBeside | None = None
    """What runs an exported program beside its model, and says how the two differ."""
    compared: Replay | None = None
    """What the check `against` found out."""
    graph_is_equal: bool | None = None
    """Whether a program that `against` compared computes what the model does with the program's own weights;
    None where that was not asked, or cannot be told."""
    replayed: Replay | None = None
    """What the check `behaviour` found out."""
    lost_buffers: list[str] = field(default_factory=list)
    """Buffers outside the state dict that are not what they were."""
    recreated: list[str] = field(default_factory=list)
    """Tensors, arrays and numbers that no state dict knows, and that are not what they were."""
    damage: CorruptError | None = None
    """Why the weights were loaded without being checked against their checksums."""
    _model: nn.Module | None = None
    _is_spent: bool = False
    """Whether the skeleton was filled once, and can only be looked at now."""

    @cached_property
    def selection(self) -> Selection:
        """The state dict that is the model's."""
        found = select_for(self.skeleton, self.checkpoint, Wanted(select=self.select))
        own = self.skeleton.state_dict(keep_vars=True)
        named = named_as(found, own)
        if self.checkpoint.format in PROGRAMS:  # constants that the exporter made
            named = without(named, [name for name in named.tensors if name not in own])
        return named

    @cached_property
    def sides(self) -> tuple[Content, Content]:
        """What of the checkpoint and of `other` the check `against` holds side by side."""
        assert self.other is not None
        return comparable(self.checkpoint, self.other, self.fresh is not None, self.select)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The architecture. `model` fills it, and `release` takes its weights away again."""
        return build_model(self.config.model, device="meta", app_dir=self.app_dir)

    @cached_property
    def cast_to(self) -> DType | None:
        """The dtype that the checkpoint, a program, was cast to when it was exported."""
        return dtype_of_program(self.checkpoint, self.skeleton)

    @cached_property
    def expected(self) -> dict[str, Expected]:
        """What the architecture wants under each name."""
        return expected_of(self.skeleton)

    @cached_property
    def fit(self) -> KeyReport:
        """How the checkpoint fits the architecture."""
        return fit_of(self.skeleton, self.selection)[1]

    @cached_property
    def unused(self) -> tuple[str, ...]:
        """What the checkpoint, a program, lacks of the architecture because its graph does not use it.

        Its record says so, or it runs beside the model, where what it computes tells.
        """
        if self.checkpoint.format not in PROGRAMS:
            return ()
        if self.other is not None and self.run_beside is not None:
            return self.fit.missing
        record = self.checkpoint.record
        recorded = record.program.get("unused") if record is not None and record.program is not None else None
        return tuple(name for name in self.fit.missing if isinstance(recorded, list) and name in recorded)

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the architecture's parameters, in its order; none where it is lazy."""
        if lazy_names(self.skeleton):
            return {}
        return {name: tuple(value.shape) for name, value in self.skeleton.named_parameters()}

    @cached_property
    def told(self) -> Told:
        """What the checkpoint's record tells."""
        return told_by(self.checkpoint, self.config.inputs)

    @property
    def behaviour(self) -> Behaviour | None:
        """The checkpoint's behaviour record, where it has one that fits."""
        return self.told.behaviour

    def model(self) -> nn.Module:
        """The model, filled from the checkpoint, on the device, in eval mode; loaded once.

        Damaged weights are loaded all the same, and `damage` says so: what they do is worth knowing.
        """
        if self._model is None:
            skeleton = None if self._is_spent else self.skeleton
            try:
                self._model = self.load(self.checkpoint, self.selection, skeleton)
            except CorruptError as error:
                self.damage = error
                self._model = self.load(self.checkpoint, self.selection, skeleton, is_checked=False)
        return self._model

    def release(self) -> None:
        """Let go of the weights, so that two models are never held at once."""
        if self._model is not None:
            self._model.to("meta")
            self._model, self._is_spent = None, True
            trim_memory()

    def load(
        self,
        source: Checkpoint,
        selection: Selection,
        skeleton: nn.Module | None = None,
        *,
        is_checked: bool = True,
        is_mapped: bool = False,
    ) -> nn.Module:
        """A model of the architecture, filled from `source`; `is_mapped` where nobody else has the file.

        Mapped or not, the weights lie as torch's own allocator puts them: kernels give the same bits then.
        """
        model, _ = build_filled(
            self.config.model,
            source,
            selection,
            self.device,
            self.warn,
            app_dir=self.app_dir,
            skeleton=skeleton,
            is_checked=is_checked,
            is_mapped=is_mapped,
            wanted=Wanted(extras="drop"),  # the check `whole` names what is left out
            align_bytes=ALLOCATOR_BYTES,
        )
        if self.cast_to is not None:
            model.to(getattr(torch, self.cast_to.name))
        return model.eval()
