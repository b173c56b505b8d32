"""The checks of `verify` that need a live model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import nn

from ptsave.config import Config, InputsSpec, Tolerance
from ptsave.core.behaviour import Behaviour
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.digest import tensor_digest
from ptsave.core.keys import KeyReport, compare
from ptsave.core.renaming import propose
from ptsave.core.select import Selection, select_model
from ptsave.core.verdict import Finding
from ptsave.errors import LossyError, PtsaveError, UnreadableError
from ptsave.formats import open_checkpoint, writable_formats
from ptsave.formats.base import WriteOptions
from ptsave.torch_layer.build import build_model, seeded
from ptsave.torch_layer.fill import expected_of, extra_of, fill
from ptsave.torch_layer.inputs import make_inputs, output_tensors
from ptsave.torch_layer.live import checkpoint_of
from ptsave.torch_layer.load import arguments_for, run
from ptsave.torch_layer.observe import buffer_digests, in_training
from ptsave.torch_layer.replay import OutputDifference, Replay, replay


@dataclass
class ModelSubject:
    """What the checks of a model look at, and what they share so that nothing is done twice."""

    checkpoint: Checkpoint
    config: Config
    device: str = "cpu"
    select: str | None = None
    app_dir: Path | None = None
    through: Sequence[str] = ("pt", "safetensors")
    warn: Callable[[str], None] = lambda line: None
    replayed: Replay | None = None
    """What the check `behaviour` found out."""
    lost_buffers: list[str] = field(default_factory=list)
    """Buffers outside the state dict that are not what they were."""
    _model: nn.Module | None = None
    _outputs: dict[str, str] | None = None

    @cached_property
    def selection(self) -> Selection:
        """The state dict that is the model's."""
        return select_model(self.checkpoint, self.select)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The architecture, without weights."""
        return build_model(self.config.model, device="meta", app_dir=self.app_dir)

    @cached_property
    def fit(self) -> KeyReport:
        """How the checkpoint fits the architecture."""
        return compare(
            expected_of(self.skeleton), self.selection.tensors, extra_of(self.skeleton), self.selection.extra
        )

    @cached_property
    def behaviour(self) -> Behaviour | None:
        """The checkpoint's behaviour record."""
        record = self.checkpoint.record
        if record is None or record.behaviour is None:
            return None
        return Behaviour.from_json(record.behaviour, f"{self.checkpoint.path}: record")

    def model(self) -> nn.Module:
        """The model, filled from the checkpoint, on the device, in eval mode; loaded once."""
        if self._model is None:
            self._model = self.load(self.checkpoint, self.selection)
        return self._model

    def release(self) -> None:
        """Let go of the model, so that two are never held at once."""
        self._model = None

    def load(self, source: Checkpoint, selection: Selection) -> nn.Module:
        """A model of the architecture, filled from `source`."""
        model = build_model(self.config.model, device="meta", app_dir=self.app_dir)
        fill(model, source, selection, self.device, self.warn)
        return model.eval()

    def outputs(self, model: nn.Module) -> dict[str, str] | None:
        """Output path → digest for the config's inputs, or None where it has none."""
        if self.config.inputs is None:
            return None
        tensors = output_tensors(run(model, arguments_for(self.config.inputs, None, model, self.device)))
        entries = checkpoint_of(tensors, Path()).tensors
        return {name: tensor_digest(entry) for name, entry in entries.items()}

    def first_outputs(self) -> dict[str, str] | None:
        """`outputs` of the loaded model; those of a replay of the same inputs are taken as they are."""
        if self._outputs is None:
            replayed, recorded = self.replayed, self.behaviour
            same = (
                replayed is not None
                and recorded is not None
                and self.config.inputs is not None
                and self.config.inputs.to_json() == recorded.inputs
            )
            self._outputs = replayed.now.digests() if same and replayed else self.outputs(self.model())
        return self._outputs


# --- keys ---------------------------------------------------------------------------------------------


def keys(subject: ModelSubject) -> Iterator[Finding]:
    """Names, shapes, dtypes, ties and buffers fit the architecture; else proposes the renaming that would."""
    report = subject.fit
    for name in report.missing:
        near = f"; the file has {report.nearest[name]!r}" if name in report.nearest else ""
        yield Finding("keys", "fail", name, f"missing{near}")
    for name in report.unexpected:
        yield Finding("keys", "fail", name, "unexpected: the architecture has no such name")
    for m in report.mismatched:
        shapes = f"has the shape {list(m.found)}, the architecture {list(m.expected)}"
        yield Finding("keys", "fail", m.name, shapes)
    for name, expected, found in report.recast:
        yield Finding("keys", "warn", name, f"has the dtype {found}, the architecture {expected}")
    for name in report.recomputed:
        yield Finding("keys", "ok", name, "a buffer that the model computes by itself; not loaded")
    yield from _ties(subject)
    if report.fits:
        sentence = subject.selection.sentence()
        message = f"{len(subject.selection.tensors)} tensors fit the architecture"
        yield Finding("keys", "ok", "", f"{message} ({sentence})" if sentence else message)
    elif proposal := propose(expected_of(subject.skeleton), subject.selection.tensors):
        yield Finding("keys", "warn", "", f"would fit better renamed: {proposal}")


def _ties(subject: ModelSubject) -> Iterator[Finding]:
    """Names that are one parameter in the model and hold different values in the file."""
    tensors = subject.selection.tensors
    for name, want in expected_of(subject.skeleton).items():
        if want.tied_to is None or name not in tensors or want.tied_to not in tensors:
            continue
        one, other = tensors[name], tensors[want.tied_to]
        if one.view != other.view and tensor_digest(one) != tensor_digest(other):
            message = f"lost tie: one parameter with {want.tied_to!r} in the model, other values in the file"
            yield Finding("keys", "fail", name, message)


# --- behaviour ----------------------------------------------------------------------------------------


def behaviour(subject: ModelSubject) -> Iterator[Finding]:
    """Today's outputs on the recorded inputs match the recorded ones; else names the module that departs."""
    recorded = subject.behaviour
    if recorded is None:
        message = "the checkpoint has no behaviour record: `ptsave save` and `verify --record` make one"
        yield Finding("behaviour", "skipped", "", message)
        return
    if not subject.fit.fits:
        yield Finding("behaviour", "skipped", "", "the keys do not fit the architecture")
        return
    try:
        model = subject.model()
    except UnreadableError as error:
        yield Finding("behaviour", "fail", "", f"the weights cannot be loaded: {error}")
        return
    for name in in_training(model):
        yield Finding("behaviour", "fail", name, "left in train mode: it stays in training after eval()")
    yield from _buffers(subject, model, recorded)
    where = f"{subject.checkpoint.path}: record"
    spec = InputsSpec.from_json(recorded.inputs, where, subject.checkpoint.path.parent)
    tolerance = subject.config.tolerance or Tolerance()
    subject.replayed = found = replay(
        model,
        make_inputs(spec, model, subject.device),
        recorded,
        subject.device,
        coarse=coarser_dtype(subject, recorded),
        rtol=tolerance.rtol,
        atol=tolerance.atol,
    )
    yield from _judged(found)


def coarser_dtype(subject: ModelSubject, recorded: Behaviour) -> str | None:
    """The narrower dtype that the weights have gone through since they were recorded, if any."""
    kept = {entry.dtype.name for entry in subject.selection.tensors.values() if entry.dtype.kind == "float"}
    then = {name for name in recorded.dtypes if name in FLOAT_ORDER}
    kept &= set(FLOAT_ORDER)
    if not kept or not then or kept == then:
        return None
    return min(kept | then, key=FLOAT_ORDER.index)


FLOAT_ORDER = ("bfloat16", "float16", "float32", "float64")
"""The coarsest first."""


def _buffers(subject: ModelSubject, model: nn.Module, recorded: Behaviour) -> Iterator[Finding]:
    now = buffer_digests(model)
    subject.lost_buffers = [n for n, digest in recorded.buffers.items() if now.get(n, digest) != digest]
    for name in subject.lost_buffers:
        message = "a buffer outside the state dict is not what it was: uninitialised, or made otherwise"
        yield Finding("behaviour", "warn", name, message)


def _judged(found: Replay) -> Iterator[Finding]:
    if not found.is_deterministic:
        yield Finding("behaviour", "warn", "", "the model is not deterministic: two runs of it differ")
        return
    for output in found.outputs:
        if output.why_not:
            yield Finding("behaviour", "fail", output.path, output.why_not)
        elif output.is_bitwise_equal:
            yield Finding("behaviour", "ok", output.path, "bitwise equal")
        elif found.is_same:
            how = "within tolerance" if output.is_within_tolerance else "explained by rounding"
            yield Finding("behaviour", "ok", output.path, f"{how}: {_figures(output)}")
        else:
            yield Finding("behaviour", "fail", output.path, _figures(output))
    if found.first is not None:
        first = found.first
        call = f" (call {first.number + 1})" if first.number else ""
        message = f"first to depart: {first.kind}{call}, {first.relative:.2g} off, its inputs agree"
        yield Finding("behaviour", "fail", first.module, message)
    if found.structure:
        yield Finding("behaviour", "fail" if not found.is_same else "warn", "", found.structure)


def _figures(output: OutputDifference) -> str:
    return (
        f"max absolute {output.max_absolute:.3g}, max relative {output.max_relative:.3g}, "
        f"{output.max_ulps:.3g} ULP (rtol {output.rtol:g}, atol {output.atol:g})"
    )


# --- roundtrip ----------------------------------------------------------------------------------------


def roundtrip(subject: ModelSubject) -> Iterator[Finding]:
    """Model → file → model gives bitwise equal tensors and eval-mode, no-grad outputs on the device."""
    if not subject.fit.fits:
        yield Finding("roundtrip", "skipped", "", "the keys do not fit the architecture")
        return
    try:
        model = subject.model()
    except UnreadableError as error:
        yield Finding("roundtrip", "fail", "", f"the weights cannot be loaded: {error}")
        return
    before = _tensor_digests(model)
    outputs = subject.first_outputs()
    with tempfile.TemporaryDirectory(prefix="ptsave-roundtrip-") as folder:
        written: dict[str, Path] = {}
        for name in subject.through:
            path = Path(folder) / f"model.{name}"
            write = writable_formats()[name].write
            assert write is not None
            try:
                write(checkpoint_of(model.state_dict(), path), path, WriteOptions(check=False, sync=False))
            except LossyError as error:
                yield Finding("roundtrip", "skipped", name, f"the format cannot hold the model: {error.what}")
                continue
            written[name] = path
        del model
        subject.release()
        for name, path in written.items():
            yield from _reread(subject, name, path, before, outputs)


def _reread(
    subject: ModelSubject, name: str, path: Path, before: dict[str, str], outputs: dict[str, str] | None
) -> Iterator[Finding]:
    """Load what was written, and hold it against what was there before."""
    try:
        with open_checkpoint(path) as copy:
            model = subject.load(copy, select_model(copy))
    except PtsaveError as error:
        yield Finding("roundtrip", "fail", name, f"what was written cannot be loaded: {error}")
        return
    after = _tensor_digests(model)
    changed = [key for key in before if before[key] != after.get(key)] + [k for k in after if k not in before]
    for key in changed:
        yield Finding("roundtrip", "fail", key, f"differs after a round trip through {name}")
    if not changed:
        yield Finding("roundtrip", "ok", name, f"{len(before)} tensors are bitwise equal")
    if outputs is None:
        yield Finding("roundtrip", "skipped", name, "no outputs were compared: the config has no [inputs]")
        return
    again = subject.outputs(model)
    assert again is not None
    different = [key for key in {**outputs, **again} if outputs.get(key) != again.get(key)]
    if not different:
        yield Finding(
            "roundtrip", "ok", name, f"{len(outputs)} outputs on {subject.device} are bitwise equal"
        )
    elif subject.outputs(model) != again:
        yield from _not_deterministic(subject, name, model)
    else:
        for key in different:
            yield Finding("roundtrip", "fail", key, f"the output differs after a round trip through {name}")


def _not_deterministic(subject: ModelSubject, name: str, reloaded: nn.Module) -> Iterator[Finding]:
    """The model's own two runs differ; the same seed may still make them comparable."""
    with seeded(0):
        again = subject.outputs(reloaded)
    with seeded(0):
        first = subject.outputs(subject.load(subject.checkpoint, subject.selection))
    message = "the model is not deterministic: two runs of the same weights differ"
    if first == again:
        message += "; from the same seed its outputs are bitwise equal"
    yield Finding("roundtrip", "warn", name, message)


def _tensor_digests(model: nn.Module) -> dict[str, str]:
    entries = checkpoint_of(model.state_dict(), Path()).tensors
    return {name: tensor_digest(entry) for name, entry in entries.items()}


MODEL_CHECKS: dict[str, Callable[[ModelSubject], Iterator[Finding]]] = {
    "keys": keys,
    "behaviour": behaviour,
    "roundtrip": roundtrip,
}
