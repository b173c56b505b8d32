"""The check `roundtrip`: model → file → model, through every format that is asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import nn

from ptsave.core.behaviour import Sample
from ptsave.core.finding import Finding, Kind, Level
from ptsave.core.parts.select import select_model
from ptsave.errors import LimitError, LossyError, PtsaveError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import BY_NAME
from ptsave.models.behaviour.differences import compare_output
from ptsave.models.behaviour.judge import judge_alone, output_key
from ptsave.models.behaviour.observe import buffer_digests, digests_of
from ptsave.models.behaviour.trace import output_digests, output_samples
from ptsave.models.inputs import Arguments
from ptsave.models.load import arguments_for
from ptsave.models.verify.behaviour import loaded, too_much
from ptsave.models.verify.subject import ModelSubject
from ptsave.models.weights.live import checkpoint_of
from ptsave.storage import system
from ptsave.storage.system import processes

CHECK = "roundtrip"
DEFAULT_FORMAT = "pt"
"""For checkpoints of formats that are read only."""

Digests = Mapping[str, str]
Samples = Mapping[str, Sample]


def roundtrip(subject: ModelSubject) -> Iterator[Finding]:
    """Model → file → model gives bitwise equal tensors and eval-mode, no-grad outputs on the device."""
    model = loaded(subject, CHECK)
    if isinstance(model, Finding):
        yield model
        return
    before = _everything(model)
    try:
        outputs = _first_outputs(subject, model)
    except LimitError as error:
        yield too_much(error, CHECK)
        return
    own = subject.checkpoint.format
    formats = subject.through or [own if own in BY_NAME else DEFAULT_FORMAT]
    with tempfile.TemporaryDirectory(prefix="ptsave-roundtrip-") as folder:
        written: dict[str, Path] = {}
        for name in formats:
            path = Path(folder) / f"model.{name}"
            try:
                # The writer's own reading back would be one more reading of what is about to be read.
                options = WriteOptions(check=False, sync=False)
                BY_NAME[name].write(checkpoint_of(model.state_dict(), path), path, options)
            except LossyError as error:
                yield Finding(CHECK, "skipped", name, Kind.CANNOT_HOLD, facts={"why": error.what})
                continue
            written[name] = path
        del model
        subject.release()
        for name, path in written.items():
            yield from _reread(subject, name, path, before, outputs)
            processes.trim_memory()


def _first_outputs(subject: ModelSubject, model: nn.Module) -> Samples | None:
    """What the loaded model gives; a replay of the same inputs has it already."""
    replayed, recorded, inputs = subject.replayed, subject.behaviour, subject.config.inputs
    if replayed is None or recorded is None or inputs is None or inputs.to_json() != recorded.inputs:
        arguments = _arguments(subject, model)
        return None if arguments is None else output_samples(model, arguments)
    return replayed.now.outputs


def _arguments(subject: ModelSubject, model: nn.Module) -> Arguments | None:
    """The config's inputs, or None where it has none."""
    inputs = subject.config.inputs
    return None if inputs is None else arguments_for(inputs, None, model, subject.device)


def _everything(model: nn.Module) -> Digests:
    """Digest of every tensor that makes the model what it is, and the text of what is not a tensor."""
    return digests_of(model.state_dict()) | buffer_digests(model)


def _reread(
    subject: ModelSubject, name: str, path: Path, before: Digests, outputs: Samples | None
) -> Iterator[Finding]:
    """Load what was written, and check it against what was there before."""
    try:
        with open_checkpoint(path) as copy:
            # Nobody cuts this file short while it is mapped, and every byte of it is compared below. Windows
            # would not remove it as long as anything of the model is still there.
            model = subject.load(copy, select_model(copy), is_mapped=not system.IS_WINDOWS)
    except PtsaveError as error:
        yield Finding(CHECK, "fail", name, Kind.CANNOT_REREAD, facts={"why": str(error)})
        return
    after = _everything(model)
    yield from _compare_tensors(name, before, after, buffer_digests(model))
    arguments = _arguments(subject, model)
    if outputs is None or arguments is None:
        why = {"why": "the config has no [inputs]"}
        yield Finding(CHECK, "skipped", name, Kind.NOT_COMPARED, facts=why)
        return
    again = output_samples(model, arguments, {sample.digest: sample for sample in outputs.values()})
    if not outputs and not again:
        yield Finding(CHECK, "skipped", name, Kind.NO_OUTPUT)
        return
    compared = [compare_output(key, outputs.get(key), again.get(key)) for key in {**outputs, **again}]
    different = [output for output in compared if not output.is_bitwise_equal]
    if not different:
        on = {"device": subject.device}
        yield Finding(CHECK, "ok", name, Kind.EQUAL_OUTPUTS, len(outputs), facts=on)
    elif output_digests(model, arguments) != {key: sample.digest for key, sample in again.items()}:
        why = {"why": "two runs of the same weights from the same seed differ"}
        yield Finding(CHECK, "skipped", name, Kind.CANNOT_COMPARE, facts=why)
    else:
        judge = judge_alone(model, arguments) if after == before else None
        for output in different:
            if judge is None or output.why_not:
                facts = {"format": name, "how": ""}
                yield Finding(CHECK, "fail", output.path, Kind.OUTPUT_CHANGED, facts=facts)
                continue
            excess = judge.excess(outputs[output.path], output_key(output.path))
            how = f" ({excess.relative:.2g} relative off, rounding explains {excess.allowed:.2g})"
            if excess.is_explained:
                how = f", explained by rounding: every tensor is bitwise equal, at another address{how}"
            level: Level = "warn" if excess.is_explained else "fail"
            facts = {"format": name, "how": how}
            yield Finding(CHECK, level, output.path, Kind.OUTPUT_CHANGED, facts=facts)


def _compare_tensors(name: str, before: Digests, after: Digests, recreated: Digests) -> Iterator[Finding]:
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    for key in changed:
        if key in recreated:
            yield Finding(CHECK, "fail", key, Kind.UNINITIALISED)
        else:
            yield Finding(CHECK, "fail", key, Kind.CHANGED, facts={"format": name})
    if not changed:
        yield Finding(CHECK, "ok", name, Kind.ALL_EQUAL, len(before))
