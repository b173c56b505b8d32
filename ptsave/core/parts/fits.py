"""The errors for a state dict that does not fit a model, or fills too little of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice

from ptsave.core.address import Location
from ptsave.core.parts.keys import Expected, KeyReport, Wanted
from ptsave.core.parts.renaming import propose
from ptsave.core.parts.select import Selection
from ptsave.errors import LossyError, Option, Text, UsageError


def insist(report: KeyReport, wanted: Wanted, where: Location, way_out: Text = "") -> None:
    """Insist that a state dict fits, and that as much of the model as is wanted comes from it.

    `way_out`: what would make it fit, where that is known.

    Raises: LossyError; UsageError for a share that is none.
    """
    if not 0 <= wanted.min_coverage <= 1:
        what = f"{wanted.min_coverage!r} is not a share of a model"
        raise UsageError(what, Option("min_coverage"), "give a number from 0 to 1")
    if not report.fits:
        raise misfit(report, where, way_out)
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


def way_out(report: KeyReport, expected: Mapping[str, Expected], selection: Selection) -> Text:
    """What would make `selection` fit: the key that all of the model lies under, or new names; or nothing."""
    for name, near in islice(report.nearest.items(), 1):
        front = near.removesuffix(name)
        there = {f"{front}{missing}" for missing in report.missing}
        if front.endswith(".") and near != front and there <= {*report.unexpected}:
            key = selection.original.get(near, near).removesuffix(f".{name}")
            return Option("select", key, f"the model's tensors are all under {key!r}: ")
    if (proposal := propose(expected, selection.tensors)) is not None:
        return f"rename its tensors with `ptsave convert`: {proposal}"
    return ""


def misfit(report: KeyReport, where: Location, way_out: Text = "") -> LossyError:
    """The error for a state dict that does not fit, with every key that is in the way; `way_out` as above."""
    hint: Text = way_out or _let_be(report)
    if report.untied:
        names = " or ".join(map(repr, report.untied[0]))
        hint = ("take the values of one with ", Option("tie", "NAME"), f": {names}")
    elif kinds := sorted({*report.missing} & {*report.unexpected}):
        hint = f"{kinds[0]!r} is a tensor of another kind in the model (sparse, quantized) than in the file"
    elif report.nearest and not way_out:
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


def _let_be(report: KeyReport) -> Text:
    """The options with which the names that are in the way may be fresh, or left where they are."""
    reshaped = [m.name for m in report.mismatched]
    missing, unexpected = (_glob([*names, *reshaped]) for names in (report.missing, report.unexpected))
    options: list[Option | str] = (
        [Option("allow_missing", missing, " or let what differs be: ")] if missing else []
    )
    if unexpected:
        options.append(Option("allow_unexpected", unexpected, " " if missing else " or leave it there: "))
    return ("build the model that the weights belong to (`ptsave verify -c` proposes renames),", *options)


def _glob(names: Sequence[str]) -> str:
    """What fits `names`, where they are of one module, else a word for it; empty where there are none."""
    modules = {name.rpartition(".")[0] for name in names}
    if len(names) < 2:
        return "".join(names)
    (first, *others) = sorted(modules)
    return f"{first}.*" if first and not others else "GLOB"
