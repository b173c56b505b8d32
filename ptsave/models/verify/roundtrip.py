"""The check `roundtrip`: model → file → model, through every format that is asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import nn

from ptsave.core.behaviour import Sample
from ptsave.core.parts.select import select_model
from ptsave.core.verdict import Counted, Finding
from ptsave.errors import LossyError, PtsaveError, UnreadableError
from ptsave.formats import open_checkpoint
from ptsave.formats.base import WriteOptions
from ptsave.formats.writers import BY_NAME
from ptsave.models.behaviour.differences import compare_output
from ptsave.models.behaviour.judge import judge_alone, output_key
from ptsave.models.behaviour.observe import buffer_digests, digests_of
from ptsave.models.behaviour.trace import output_digests, output_samples
from ptsave.models.inputs import Arguments
from ptsave.models.load import arguments_for
from ptsave.models.verify.subject import ModelSubject
from ptsave.models.weights.live import checkpoint_of
from ptsave.storage.system import trim_memory

CHECK = "roundtrip"
DEFAULT_FORMAT = "pt"
"""For checkpoints of formats that are read only."""

Digests = Mapping[str, str]
Samples = Mapping[str, Sample]


def roundtrip(subject: ModelSubject) -> Iterator[Finding]:
    """Model → file → model gives bitwise equal tensors and eval-mode, no-grad outputs on the device."""
    if not subject.fit.fits:
        yield Finding(CHECK, "skipped", "", "the keys do not fit the architecture")
        return
    try:
        model = subject.model()
    except UnreadableError as error:
        yield Finding(CHECK, "fail", "", f"the weights cannot be loaded: {error}")
        return
    before = _everything(model)
    outputs = _first_outputs(subject, model)
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
                yield Finding(CHECK, "skipped", name, f"the format cannot hold the model: {error.what}")
                continue
            written[name] = path
        del model
        subject.release()
        for name, path in written.items():
            yield from _reread(subject, name, path, before, outputs)
            trim_memory()


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
    """Digest of every tensor that makes the model what it is, and the text of what is no tensor."""
    return digests_of(model.state_dict()) | buffer_digests(model)


def _reread(
    subject: ModelSubject, name: str, path: Path, before: Digests, outputs: Samples | None
) -> Iterator[Finding]:
    """Load what was written, and hold it against what was there before."""
    try:
        with open_checkpoint(path) as copy:
            # Nobody cuts this file short while it is mapped, and every byte of it is compared below.
            model = subject.load(copy, select_model(copy), is_mapped=True)
    except PtsaveError as error:
        yield Finding(CHECK, "fail", name, f"what was written cannot be loaded: {error}")
        return
    after = _everything(model)
    yield from _compare_tensors(name, before, after, buffer_digests(model))
    arguments = _arguments(subject, model)
    if outputs is None or arguments is None:
        yield Finding(CHECK, "skipped", name, "no outputs were compared: the config has no [inputs]")
        return
    again = output_samples(model, arguments, {sample.digest: sample for sample in outputs.values()})
    if not outputs and not again:
        yield Finding(CHECK, "skipped", name, "the model returns no tensor that could be compared")
        return
    compared = [compare_output(key, outputs.get(key), again.get(key)) for key in {**outputs, **again}]
    different = [output for output in compared if not output.is_bitwise_equal]
    if not different:
        which = "the output is" if len(outputs) == 1 else f"{len(outputs)} outputs are"
        yield Finding(CHECK, "ok", name, f"{which} bitwise equal on {subject.device}")
    elif output_digests(model, arguments) != {key: sample.digest for key, sample in again.items()}:
        message = "the outputs cannot be compared: two runs of the same weights from the same seed differ"
        yield Finding(CHECK, "skipped", name, message)
    else:
        judge = judge_alone(model, arguments) if after == before else None
        for output in different:
            message = f"the output differs after a round trip through {name}"
            if judge is None or output.why_not:
                yield Finding(CHECK, "fail", output.path, message)
                continue
            excess = judge.excess(outputs[output.path], output_key(output.path))
            off = f"{excess.relative:.2g} relative off, rounding explains {excess.allowed:.2g}"
            if excess.is_explained:
                message += ", explained by rounding: every tensor is bitwise equal, at another address"
            yield Finding(CHECK, "warn" if excess.is_explained else "fail", output.path, f"{message} ({off})")


def _compare_tensors(name: str, before: Digests, after: Digests, made_anew: Digests) -> Iterator[Finding]:
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    for key in changed:
        if key in made_anew:
            message = (
                "uninitialised buffer: the state dict leaves it out, and the class makes another each time"
            )
            yield Finding(CHECK, "fail", key, message, "uninitialised")
        else:
            yield Finding(CHECK, "fail", key, f"differs after a round trip through {name}")
    if not changed:
        message = Counted(len(before), "tensor is bitwise equal", "tensors are bitwise equal")
        yield Finding(CHECK, "ok", name, message)
