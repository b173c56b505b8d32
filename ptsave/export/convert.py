"""convert to an exported program: the model is built, filled, exported and compared with the program.

The file gets its name only after that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ptsave.config.inputs import InputsSpec
from ptsave.config.toml import Config
from ptsave.core.accounts import Extras
from ptsave.core.address import Location
from ptsave.core.behaviour import Behaviour, Sample
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.dtypes import BY_NAME, parse_dtype
from ptsave.core.finding import Finding, Kind, first_names
from ptsave.core.parts.keys import Wanted
from ptsave.core.parts.select import Selection
from ptsave.core.record import Digests, Record
from ptsave.core.values.cast import CASTABLE, can_cast, cast
from ptsave.core.verdict import Departure, Verdict
from ptsave.errors import LossyError, Option, RefusedError, UsageError
from ptsave.export.files import write_program
from ptsave.export.onnx import OnnxTarget, check_installed
from ptsave.export.program import Program, export_program
from ptsave.export.proof import CHECK, Case, by_layer, case_of, compare_weights, prove
from ptsave.export.pt2 import Pt2Target
from ptsave.export.target import Target
from ptsave.formats.base import WriteOptions
from ptsave.models.behaviour.observe import observe
from ptsave.models.behaviour.trace import digest_of
from ptsave.models.imports import in_front
from ptsave.models.inputs import make_inputs
from ptsave.models.load import config_for, warn_if_changed
from ptsave.models.save import new_record
from ptsave.models.weights.fill import build_from
from ptsave.models.weights.fitting import fit_of
from ptsave.storage.opening import check_file_destination
from ptsave.storage.scan import tensor_digest
from ptsave.verbs.checks.cause import departure, runtime_version
from ptsave.verbs.checks.program import first_line
from ptsave.verbs.convert import Conversion
from ptsave.verbs.request import refuse_unused, unused_by_export, unused_without_sign
from ptsave.verbs.signing import check_signed, lock_for, open_pinned, signatures_of_program, write_beside


@dataclass(frozen=True)
class Export:
    """What to export, and how."""

    source: Location
    destination: Location
    format: str
    """`pt2` or `onnx`."""
    config: Location | None
    overrides: Sequence[str] = ()
    select: str | None = None
    extras: Extras = "fail"
    dtype: str | None = None
    opset: int | None = None
    app_dir: Path = Path()
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Texts to keep in the record."""
    lock: Location | None = None
    """The `ptsave.lock` that pins the source, if not that of the current folder."""


@dataclass(frozen=True)
class _Subject:
    """A model that is being exported."""

    config: Config
    model: nn.Module
    inputs: InputsSpec
    weights: Mapping[str, str]
    """Name → digest of what the checkpoint has for it, in the model's dtype."""
    aliases: Mapping[str, str]


def export_path(
    request: Export,
    options: WriteOptions,
    *,
    given: Collection[str] = (),
    report: Callable[[Verdict, Mapping[str, str | int | float]], None] | None = None,
) -> Conversion:
    """Export the model of a config, filled from a checkpoint, and compare the program with it.

    `report` is called with the verdict of the comparison, be it yes or no.

    Raises: LossyError when the program does not compute what the model does, and nothing is written then;
    UsageError for an option or the config; RefusedError where torch cannot export the model; what reading,
    building and writing raise.
    """
    unused = unused_by_export(request.format, no_record=not options.record)
    refuse_unused(given, unused | unused_without_sign(signs=options.signer is not None))
    if request.config is None:
        raise UsageError(
            f"a program ({request.format}) is exported from a model",
            str(request.destination),
            ("name its config with ", Option("config", "CONFIG")),
        )
    if request.format == "onnx":
        check_installed()
    notes: list[str] = []
    with ExitStack() as opened:
        source = opened.enter_context(open_pinned(request.source, lock_for(request.lock)))
        check_file_destination(request.destination, overwrite=options.overwrite)
        check_signed(request.destination, request.format, options)
        opened.enter_context(in_front(request.app_dir))
        subject = _subject(request, source, notes)
        program = export_program(subject.model, subject.inputs)
        target = _target(request, subject, program)
        # A model that does not give the same bits again is refused in the next lines.
        sizes = subject.inputs.sizes
        example = case_of(subject.model, subject.inputs, target.margin, sizes, is_exact=True)
        behaviour = observe(subject.model, subject.inputs, "cpu", first=example.now)
        if behaviour.determinism != "exact":
            raise RefusedError(
                "the model is not deterministic in eval mode: a program draws other random numbers than it",
                subject.config.model.target,
                "have it draw none in eval mode, or take them as an input",
            )
        texts = {**source.metadata, **request.metadata}

        def record(file: Checkpoint, digests: Digests, facts: Mapping[str, Any]) -> Record:
            made = _record(subject, program, target, example, behaviour, digests)
            names = {name.removeprefix("state_dict.") for name in digests.tensors}
            unused = [name for name in subject.model.state_dict() if name not in names]
            told = {**(made.program or {}), **facts, "unused": unused}
            made = replace(made, metadata=texts, program=told)
            if unused and options.signer is not None:
                notes.append(f"not in the program, so not signed with it: {first_names(unused)}")
            return replace(made, signatures=signatures_of_program(file, made, source, options, notes))

        verdicts: list[Verdict] = []

        def check(path: Path) -> None:
            verdict = _verdict(subject, program, target, example, path, with_layers=report is not None)
            verdicts.append(verdict)
            if report is not None:
                report(verdict, _facts(request, subject))
            if not verdict.is_yes:
                raise _not_the_same(verdict, request)

        made = record if options.record else None
        write_program(request.destination, target, made, options, check)
        write_beside(options, request.destination)
        source.check_unchanged()
    state = subject.model.state_dict(keep_vars=True).values()
    tensors = {id(value): value for value in state if isinstance(value, torch.Tensor)}.values()
    return Conversion(
        sources=[source.path],
        destination=request.destination,
        source_formats=[source.format],
        format=request.format,
        num_tensors=len(tensors),
        num_bytes=sum(tensor.nbytes for tensor in tensors),
        free_bytes=None,
        notes=notes,
        signed_by=options.signer.names if options.signer is not None else (),
        checked="running it beside the model",
        proof=verdicts[-1],
    )


def _subject(request: Export, source: Checkpoint, notes: list[str]) -> _Subject:
    """The model, filled, in eval mode and in the dtype that is asked for."""
    config = config_for(source, request.config, request.overrides, ())
    if config.inputs is None:
        raise UsageError("there is nothing to run the model on", str(config.path), "add an [inputs] table")
    dtype = None if request.dtype is None else parse_dtype(request.dtype, str(Option("dtype")))
    if dtype is not None and dtype.name not in CASTABLE:
        raise UsageError(f"cannot cast to {dtype.name}", Option("dtype"), f"one of {', '.join(CASTABLE)}")
    wanted = Wanted(select=request.select, extras=request.extras)
    model, selection, _ = build_from(
        config.model, source, "cpu", notes.append, app_dir=request.app_dir, wanted=wanted
    )
    warn_if_changed(model, source, notes.append)
    if sentence := selection.sentence():
        notes.append(sentence)
    model.eval()  # `requires_grad` stays: torch's layers pick kernels by it, and so their last bits
    inputs = config.inputs
    if dtype is not None:
        model.to(getattr(torch, dtype.name))
        inputs = inputs.cast(dtype)
    weights = _expected_weights(model, fit_of(model, selection, wanted)[0])
    return _Subject(config, model, inputs, weights, _aliases(model))


def _expected_weights(model: nn.Module, selection: Selection) -> dict[str, str]:
    """Digest of what the checkpoint has for each tensor of the model, in the model's dtype.

    Tensors that loading code made of others, and buffers that no checkpoint has, have the model's own digest.
    """
    state = model.state_dict(keep_vars=True)
    named = {**dict(model.named_buffers(remove_duplicate=False)), **state}
    digests = {}
    for name, tensor in named.items():
        if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
            continue
        entry = selection.tensors.get(name) if name in state else None
        dtype = BY_NAME[str(tensor.dtype).removeprefix("torch.")]
        is_cast = entry is not None and entry.dtype != dtype
        if entry is None or entry.shape != tuple(tensor.shape) or (is_cast and not can_cast(entry.dtype)):
            digests[name] = digest_of(tensor.detach())
        else:
            digests[name] = tensor_digest(cast(entry, dtype) if is_cast else entry)
    return digests


def _aliases(model: nn.Module) -> dict[str, str]:
    """Name of each tied tensor → another name of it."""
    first: dict[int, str] = {}
    both: dict[str, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        other = first.setdefault(id(value), name)
        if other != name:
            both |= {name: other, other: name}
    return both


def _target(request: Export, subject: _Subject, program: Program) -> Target:
    """The program in the format that is asked for."""
    if request.format == "pt2":
        return Pt2Target(program)
    return OnnxTarget(program, make_inputs(subject.inputs, subject.model), request.opset)


def _record(
    subject: _Subject,
    program: Program,
    target: Target,
    example: Case,
    behaviour: Behaviour,
    digests: Digests,
) -> Record:
    """The record of the program: the model, its behaviour, digests, and what rounding explains."""

    def allowed(path: str, sample: Sample) -> list[float]:
        excess = example.excess(path, sample)
        return [excess.allowed, excess.noise]

    described = new_record(subject.model, subject.config, "cpu")
    state = subject.model.state_dict()
    return replace(
        described,
        digests=digests,
        behaviour=behaviour.to_json(),
        program={
            "format": target.name,
            "runtime": runtime_version(target.name),
            "constants": [n for n in digests.tensors if n.removeprefix("state_dict.") not in state],
            "sizes": dict(subject.inputs.sizes),
            "bounds": {name: list(bounds) for name, bounds in program.bounds.items()},
            "rounding": {path: allowed(path, sample) for path, sample in example.now.outputs.items()},
        },
    )


def _verdict(
    subject: _Subject, program: Program, target: Target, example: Case, path: Path, *, with_layers: bool
) -> Verdict:
    """Whether the program at `path` has the model's weights and computes what the model does.

    `with_layers`: whether to run it once more, to compare each module's output.
    """
    growth: list[Departure] = []
    findings = list(compare_weights(subject.weights, target.weights(path), subject.aliases))
    try:
        runtime = target.runtime(path)
    except Exception as error:  # each runtime has its own way to say that it cannot load a program
        why = {"why": first_line(error)}
        findings.append(Finding(CHECK, "fail", "", Kind.PROGRAM_FAILS, facts=why))
    else:
        findings += prove(subject.model, subject.inputs, program.bounds, runtime, target.margin, example)
        growth = by_layer(runtime, example) if with_layers else []
    weights = [finding.where for finding in findings if finding.kind is Kind.OTHER_WEIGHT]
    cause = f"other weights in the program: {first_names(weights)}" if weights else departure(findings)
    return Verdict(tuple(findings), cause, tuple(growth))


def _not_the_same(verdict: Verdict, request: Export) -> LossyError:
    failed = [str(finding) for finding in verdict.findings if finding.level == "fail"]
    return LossyError(
        verdict.because,
        str(request.destination),
        ("nothing was written; ", Option("report", "FILE"), " shows each output"),
        findings=failed,
    )


def _facts(request: Export, subject: _Subject) -> dict[str, str | int | float]:
    return {
        "path": str(request.destination),
        "format": request.format,
        "source": str(request.source),
        "class": subject.config.model.target,
        "torch": torch.__version__,
    }
