"""`inspect --make-config --class`: a TOML from a class's signature, and the sizes that fit a checkpoint."""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ptsave.config.model import ConfigPlace, ModelSpec, check_path
from ptsave.core.address import Location
from ptsave.core.parts.keys import KeyReport
from ptsave.core.parts.select import Selection, select_model
from ptsave.errors import PtsaveError, UsageError
from ptsave.formats import open_checkpoint
from ptsave.models.build import build_model
from ptsave.models.imports import import_object
from ptsave.models.weights.fitting import fit_of
from ptsave.storage.opening import check_file_destination
from ptsave.verbs.make_config import MadeConfig, write_config

MAX_BUILDS = 400
"""How often the class is built, without memory, in search of sizes that fit."""
MAX_INPUTS = 8
"""How many inputs of forward() are shown as an example."""
MAX_SIZES = 24
"""How many sizes out of a file are tried for one argument."""
MAX_COUNT = 512
"""The largest size that is tried for an argument that counts layers or heads."""
_COUNT = re.compile(r"layer|depth|block|stage|head|repeat|^n_|^num_(?!class|embed|feature|label|token)")
_PLAIN = (bool, int, float, str)
_EMPTY = {"float": 0.0, "bool": False}


def make_config_of_class(
    path: Location, destination: Location, target: str, *, app_dir: Path | None = None
) -> MadeConfig:
    """Write to `destination` a TOML for the class `target`, whose arguments fit the checkpoint at `path`.

    Each argument that is an integer without a default, or whose default does not fit, is sought among the
    sizes that tensors of the file have, and among the numbers of their layers. What is found fits every name
    and shape, or a note says what does not.

    Raises: UsageError for a class that is not there; what opening a checkpoint raises; ExistsError.
    """
    check_file_destination(destination, overwrite=False)
    place = ConfigPlace(str(destination), ("model",))
    check_path(target, ConfigPlace("--class"))
    found = import_object(target, ConfigPlace("--class"), app_dir)
    if not callable(found):
        raise UsageError(f"{target!r} is not a class or a function", "--class", "name what makes the model")
    with open_checkpoint(path, at_a_glance=True) as checkpoint:
        selection = select_model(checkpoint)
        search = _Search(target, place, selection, app_dir)
        args, required = _arguments(found, place)
        search.run(args, required)
    notes = [f"Found by the sizes of the file's tensors: {', '.join(required)}"] if required else []
    if search.report is None or not search.report.fits:
        why = f": {search.report.summary()}" if search.report is not None else ""
        notes.append(f"The arguments do not fit the checkpoint yet{why}")
    notes.append("What no shape shows (heads, dropout, an activation) is at its default.")
    notes += _inputs_to_add(found)
    document = {"model": {"class": target, "args": search.args}}
    return write_config(destination, document, f"the signature of {target}", target, notes)


def _inputs_to_add(target: Callable[..., Any]) -> list[str]:
    """What to write of the tensors that forward() takes, which nothing in a file shows."""
    forward = getattr(target, "forward", None)
    names: list[str] = []
    if forward is not None:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        names = [one.name for one in parameters if one.default is one.empty and one.kind not in kinds]
    if not names:
        return ["There are no [inputs]: add what forward() takes to run the model."]
    notes = [
        "There are no [inputs], on which the model would run. For example, with the sizes that it takes:"
    ]
    for name in names[:MAX_INPUTS]:
        notes += [f"[inputs.{name}]", "shape = [1, 3]", 'dtype = "float32"']
    return notes


def _arguments(target: Callable[..., Any], place: ConfigPlace) -> tuple[dict[str, Any], list[str]]:
    """The arguments of a class with their plain defaults, and the names of the integers that need a value.

    Raises: UsageError for an argument without a default that no number can stand for.
    """
    args: dict[str, Any] = {}
    required: list[str] = []
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return {}, []
    for parameter in parameters:
        kind, name = str(getattr(parameter.annotation, "__name__", parameter.annotation)), parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            continue
        if parameter.default is not parameter.empty:
            if type(parameter.default) in _PLAIN:
                args[name] = parameter.default
        elif kind in _EMPTY:
            args[name] = _EMPTY[kind]
        elif kind in ("int", "_empty"):
            args[name] = 1
            required.append(name)
        else:
            what = f"the argument {name!r} is a {kind}, which has no default and is not sought"
            raise UsageError(what, str(place), "write the config by hand: docs/config.md")
    return args, required


class _Search:
    """Looks for arguments with which the class fits, one argument after the other."""

    def __init__(self, target: str, place: ConfigPlace, selection: Selection, app_dir: Path | None) -> None:
        self.target, self.place, self.selection, self.app_dir = target, place, selection, app_dir
        self.args: dict[str, Any] = {}
        self.report: KeyReport | None = None
        self._failure: PtsaveError | None = None
        self._num_builds = 0

    def run(self, args: Mapping[str, Any], required: Sequence[str]) -> None:
        """Set `args` to the best that was found, and `report` to how they fit.

        Raises: UsageError where nothing that was tried makes a model.
        """
        sizes = _sizes(self.selection)
        counts = [*_layers(self.selection), *(size for size in sizes if size <= MAX_COUNT)]
        self.args = {**args, **{name: 1 if _COUNT.search(name) else sizes[0] for name in required if sizes}}
        best = self._misfit(self.args)
        sought = [
            *required,
            *(name for name, value in args.items() if type(value) is int and name not in required),
        ]
        is_better = True
        while best and is_better and self._num_builds < MAX_BUILDS:
            is_better = False
            for name in sought:
                for value in counts if _COUNT.search(name) else sizes:
                    if self._num_builds >= MAX_BUILDS or not best:
                        break
                    tried = {**self.args, name: value}
                    if (misfit := self._misfit(tried)) < best:
                        self.args, best, is_better = tried, misfit, True
        if math.isinf(self._misfit(self.args)) and self._failure is not None:
            raise self._failure

    def _misfit(self, args: Mapping[str, Any]) -> float:
        """How far the class is from fitting with `args`: 0 where it does; infinite where it cannot be built.

        A tensor of another shape counts for the part of its sizes that differ.
        """
        self._num_builds += 1
        spec = ModelSpec(self.target, dict(args), place=self.place)
        try:
            self.report = fit_of(build_model(spec, device="meta", app_dir=self.app_dir), self.selection)[1]
        except PtsaveError as error:
            self.report, self._failure = None, error
            return math.inf
        shapes = sum(_apart(m.expected, m.found) for m in self.report.mismatched)
        return 2.0 * (len(self.report.missing) + len(self.report.unexpected)) + shapes


def _apart(expected: tuple[int, ...], found: tuple[int, ...]) -> float:
    """From 0 to 1: how many of a shape's sizes are others."""
    if len(expected) != len(found):
        return 1.0
    return sum(a != b for a, b in zip(expected, found, strict=True)) / max(len(found), 1)


def _sizes(selection: Selection) -> list[int]:
    """The sizes that tensors have, the most frequent first."""
    counts = Counter(size for entry in selection.tensors.values() for size in entry.shape)
    return [size for size, _ in counts.most_common(MAX_SIZES)]


def _layers(selection: Selection) -> list[int]:
    """How many layers there are with a number each, wherever names have numbers."""
    numbers: dict[str, set[str]] = {}
    for name in selection.tensors:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdecimal():
                numbers.setdefault(".".join(parts[:i]), set()).add(part)
    return sorted({len(found) for found in numbers.values()})[:MAX_SIZES]
