"""The checks of `verify` that need a live model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from ptsave.config import Config
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.digest import tensor_digest
from ptsave.core.keys import KeyReport, compare
from ptsave.core.select import Selection, select_model
from ptsave.core.verdict import Finding
from ptsave.errors import LossyError, PtsaveError, UnreadableError
from ptsave.formats import open_checkpoint, writable_formats
from ptsave.formats.base import WriteOptions
from ptsave.torch_layer.build import build_model, seeded
from ptsave.torch_layer.fill import expected_of, extra_of, fill
from ptsave.torch_layer.inputs import output_tensors
from ptsave.torch_layer.live import checkpoint_of
from ptsave.torch_layer.load import arguments_for, run

DEFAULT_THROUGH = ("pt", "safetensors")


@dataclass(frozen=True)
class ModelSubject:
    """What the checks of a model look at."""

    checkpoint: Checkpoint
    config: Config
    device: str = "cpu"
    select: str | None = None
    app_dir: Path | None = None
    through: Sequence[str] = DEFAULT_THROUGH
    warn: Callable[[str], None] = print

    @cached_property
    def selection(self) -> Selection:
        return select_model(self.checkpoint, self.select)

    @cached_property
    def fit(self) -> KeyReport:
        """How the checkpoint fits the architecture."""
        model = self.build()
        return compare(expected_of(model), self.selection.tensors, extra_of(model), self.selection.extra)

    def build(self) -> nn.Module:
        """The architecture, without weights."""
        return build_model(self.config.model, device="meta", app_dir=self.app_dir)

    def load(self, source: Checkpoint, selection: Selection) -> nn.Module:
        """The model, filled from `source`, on the device, in eval mode."""
        model = self.build()
        fill(model, source, selection, self.device, self.warn)
        return model.eval()


def keys(subject: ModelSubject) -> Iterator[Finding]:
    """Names, shapes, dtypes, ties and buffers fit the architecture, built on the meta device."""
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
        count = len(subject.selection.tensors)
        message = f"{count} tensors fit the architecture"
        yield Finding("keys", "ok", "", f"{message} ({sentence})" if sentence else message)


def _ties(subject: ModelSubject) -> Iterator[Finding]:
    """Names that are one parameter in the model and hold different values in the file."""
    tensors = subject.selection.tensors
    for name, want in expected_of(subject.build()).items():
        if want.tied_to is None or name not in tensors or want.tied_to not in tensors:
            continue
        one, other = tensors[name], tensors[want.tied_to]
        if one.view != other.view and tensor_digest(one) != tensor_digest(other):
            message = f"lost tie: one parameter with {want.tied_to!r} in the model, other values in the file"
            yield Finding("keys", "fail", name, message)


def roundtrip(subject: ModelSubject) -> Iterator[Finding]:
    """Model → file → model gives bitwise equal tensors and eval-mode, no-grad outputs on the device."""
    if not subject.fit.fits:
        yield Finding("roundtrip", "skipped", "", "the keys do not fit the architecture")
        return
    try:
        model = subject.load(subject.checkpoint, subject.selection)
    except UnreadableError as error:
        yield Finding("roundtrip", "fail", "", f"the weights cannot be loaded: {error}")
        return
    before = _tensor_digests(model)
    outputs = _outputs(subject, model)
    with tempfile.TemporaryDirectory(prefix="ptsave-roundtrip-") as folder:
        written: dict[str, Path] = {}
        for name in subject.through:
            path = Path(folder) / f"model.{name}"
            try:
                write = writable_formats()[name].write
                assert write is not None
                write(checkpoint_of(model.state_dict(), path), path, WriteOptions(check=False))
            except LossyError as error:
                yield Finding("roundtrip", "skipped", name, f"the format cannot hold the model: {error.what}")
                continue
            written[name] = path
        del model  # so that two models are never held at once
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
    again = _outputs(subject, model)
    assert again is not None
    different = [key for key in outputs if outputs[key] != again.get(key)]
    if not different and outputs.keys() == again.keys():
        yield Finding(
            "roundtrip", "ok", name, f"{len(outputs)} outputs on {subject.device} are bitwise equal"
        )
    elif _outputs(subject, model) != again:
        yield from _not_deterministic(subject, name, model)
    else:
        for key in different:
            yield Finding("roundtrip", "fail", key, f"the output differs after a round trip through {name}")


def _not_deterministic(subject: ModelSubject, name: str, reloaded: nn.Module) -> Iterator[Finding]:
    """The model's own two runs differ; the same seed may still make them comparable."""
    with seeded(0):
        again = _outputs(subject, reloaded)
    original = subject.load(subject.checkpoint, subject.selection)
    with seeded(0):
        first = _outputs(subject, original)
    message = "the model is not deterministic: two runs of the same weights differ"
    if first == again:
        message += "; from the same seed its outputs are bitwise equal"
    yield Finding("roundtrip", "warn", name, message)


def _outputs(subject: ModelSubject, model: nn.Module) -> dict[str, str] | None:
    """Output path → digest of the tensor, or None where there is nothing to run the model on."""
    if subject.config.inputs is None:
        return None
    arguments = arguments_for(subject.config.inputs, None, model, subject.device)
    tensors = output_tensors(run(model, arguments))
    entries = checkpoint_of(tensors, Path()).tensors
    return {name: tensor_digest(entry) for name, entry in entries.items()}


def _tensor_digests(model: nn.Module) -> dict[str, str]:
    entries = checkpoint_of(model.state_dict(), Path()).tensors
    return {name: tensor_digest(entry) for name, entry in entries.items()}


MODEL_CHECKS: dict[str, Callable[[ModelSubject], Iterator[Finding]]] = {"keys": keys, "roundtrip": roundtrip}
