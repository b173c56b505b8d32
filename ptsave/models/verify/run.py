"""verify's second half: the checks of the live model, and the line that explains all that was found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding
from ptsave.core.verdict import Verdict
from ptsave.models.build import check_device
from ptsave.models.load import config_for
from ptsave.models.verify.attribution import attribute
from ptsave.models.verify.checks import MODEL_CHECKS
from ptsave.models.verify.fresh import fresh_model
from ptsave.models.verify.subject import ModelSubject

if TYPE_CHECKING:
    from ptsave.models.verify.one import Request


def subject_of(
    request: Request, source: Checkpoint, other: Checkpoint | None, warn: Callable[[str], None]
) -> ModelSubject:
    """What there is to check: the model of the request's config, or else of the record, and `source`; beside
    it `other`, or the fresh model of the second config.

    Raises: UsageError for the configs, or a device that is not there.
    """
    asked, device, app_dir = request.asked, request.device, request.app_dir
    check_device(device)
    config = config_for(source, asked.config, request.overrides, asked.trusted)
    fresh = None
    if asked.other_config is not None:
        own = request.overrides if asked.other_config == asked.config else []
        fresh = fresh_model(asked.other_config, own, device, app_dir)
        other = fresh.checkpoint
    subject = ModelSubject(
        source,
        config,
        device,
        request.select,
        app_dir,
        asked.through,
        warn=warn,
        other=other,
        fresh=fresh,
        run_beside=request.run_beside,
    )
    if subject.cast_to is not None and config.inputs is not None:
        subject.config = replace(config, inputs=config.inputs.cast(subject.cast_to))
    return subject


def verify_model(
    subject: ModelSubject,
    names: Collection[str],
    found: Sequence[Finding],
    began: Callable[[str], None],
) -> Verdict:
    """Run the checks among `names` that need the model; the verdict is over these and what was `found`
    before. `began` is told the name of each.

    Raises: UsageError where the model cannot be built.
    """
    findings = list(found)
    for name, check in MODEL_CHECKS.items():
        if name in names:
            began(name)
            findings += check(subject)
    growth = subject.replayed.growth if subject.replayed is not None else ()
    return Verdict(tuple(findings), attribute(subject, findings), tuple(growth))
