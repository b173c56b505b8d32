"""The errors for a state dict that does not fit a model, or fills too little of it."""

from __future__ import annotations

import math

from ptsave.core.address import Location
from ptsave.core.parts.keys import KeyReport, Wanted
from ptsave.errors import LossyError, Option, Text, UsageError


def insist(report: KeyReport, wanted: Wanted, where: Location) -> None:
    """Insist that a state dict fits, and that as much of the model as is wanted comes from it.

    Raises: LossyError; UsageError for a share that is none.
    """
    if not 0 <= wanted.min_coverage <= 1:
        what = f"{wanted.min_coverage!r} is not a share of a model"
        raise UsageError(what, Option("min_coverage"), "give a number from 0 to 1")
    if not report.fits:
        raise misfit(report, where)
    coverage = report.coverage
    if coverage is not None and not covers(report, wanted):
        floor = math.floor(coverage.share * 100) / 100
        raise LossyError(
            f"the checkpoint has {coverage.sentence()} of the model: less than {wanted.min_coverage:.0%}",
            str(where),
            ("look at what may be missing, or accept it with ", Option("min_coverage", f"{floor:g}")),
            missing=list(report.fresh),
            unexpected=list(report.left),
            coverage=coverage,
        )


def covers(report: KeyReport, wanted: Wanted) -> bool:
    """Whether as much of the model as is wanted comes from the file."""
    return report.coverage is None or report.coverage.share >= wanted.min_coverage


def misfit(report: KeyReport, where: Location) -> LossyError:
    """The error for a state dict that does not fit, with every key that is in the way."""
    hint: Text = "build the model that the weights belong to (`ptsave verify -c` proposes renames)"
    if report.untied:
        names = " or ".join(map(repr, report.untied[0]))
        hint = ("take the values of one with ", Option("tie", "NAME"), f": {names}")
    elif kinds := sorted({*report.missing} & {*report.unexpected}):
        hint = f"{kinds[0]!r} is a tensor of another kind in the model (sparse, quantized) than in the file"
    elif report.nearest:
        name, near = next(iter(report.nearest.items()))
        hint = f"{name!r} may be {near!r} in the file; `ptsave convert --rename` renames"
    return LossyError(
        f"the checkpoint does not fit the model: {report.summary()}",
        str(where),
        hint,
        missing=list(report.missing),
        unexpected=list(report.unexpected),
        mismatched=[{"name": m.name, "expected": m.expected, "found": m.found} for m in report.mismatched],
        nearest=dict(report.nearest),
        untied=[list(names) for names in report.untied],
    )
