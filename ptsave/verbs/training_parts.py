"""The parts of a training's state, described."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ptsave.core.nodes import Opaque
from ptsave.core.parts.kinds import IMPLEMENTATION_OPTIONS, optimizer_kind, scheduler_kind
from ptsave.core.parts.training import Fields, fields_of, number

MAX_SHOWN = 32
"""How many groups, keys and items of a list are listed."""
MAX_TEXT = 1000
"""Longest text (characters) that is taken for an option."""


@dataclass(frozen=True)
class ParamGroup:
    """One parameter group of an optimizer."""

    num_params: int
    options: Mapping[str, Any]
    """Its hyperparameters: all that the group holds but the parameters."""


@dataclass(frozen=True)
class OptimizerState:
    """An optimizer's state dict."""

    where: str
    """Its path; empty when it is the whole file."""
    kind: str
    """Its class as far as the keys show it: `AdamW`, `Adam or AdamW`, `SGD with momentum`, `unknown`."""
    groups: tuple[ParamGroup, ...]
    num_params: int
    num_with_state: int
    state_keys: tuple[str, ...]
    """What is kept for a parameter: `step`, `exp_avg`, …"""
    step: int | float | None
    """Of the first parameter that counts its steps."""

    @property
    def sentence(self) -> str:
        """The state in words."""
        options = ", ".join(f"{key} {text}" for key, text in self._telling_options())
        parts = [self.kind if self.kind != "unknown" else "an optimizer of unknown kind"]
        if options:
            parts[0] += f" ({options})"
        if len(self.groups) > 1:
            parts.append(f"{len(self.groups)} parameter groups")
        of_all = f" of {self.num_params}" if self.num_params not in (0, self.num_with_state) else ""
        noun = "parameter" if (self.num_params or self.num_with_state) == 1 else "parameters"
        parts.append(f"{self.num_with_state}{of_all} {noun} with state")
        if self.step is not None:
            parts.append(f"at step {in_words(self.step)}")
        return _at(self.where, ", ".join(parts))

    def _telling_options(self) -> Iterator[tuple[str, str]]:
        """The hyperparameters worth a word, lr first; where the groups differ, each value once."""
        for key in dict.fromkeys(["lr", *(key for group in self.groups for key in group.options)]):
            values = [group.options[key] for group in self.groups if key in group.options]
            if any(_is_telling(key, value) for value in values):
                texts = list(dict.fromkeys(map(in_words, values)))
                yield key, " / ".join(texts[:4] + ["…"] * (len(texts) > 4))


@dataclass(frozen=True)
class SchedulerState:
    """A learning rate scheduler's state dict."""

    where: str
    kind: str
    """`unknown` where the keys do not show it."""
    last_epoch: int | float | None
    """How often it was stepped: epochs or batches, as the training called it."""
    last_lr: tuple[Any, ...]
    options: Mapping[str, Any]
    """Its other plain values."""

    @property
    def sentence(self) -> str:
        """The state in words."""
        text = self.kind if self.kind != "unknown" else "a scheduler of unknown kind"
        if self.last_epoch is not None:
            text += f" at epoch {in_words(self.last_epoch)}"
        if self.last_lr:
            text += ", last lr " + " / ".join(dict.fromkeys(map(in_words, self.last_lr[:4])))
        return _at(self.where, text)


@dataclass(frozen=True)
class ScalerState:
    """A GradScaler's state dict."""

    where: str
    scale: int | float | None
    options: Mapping[str, Any]
    """`growth_factor`, `backoff_factor`, `growth_interval`, `_growth_tracker`."""

    @property
    def sentence(self) -> str:
        """The state in words."""
        return _at(self.where, f"gradient scaler at scale {in_words(self.scale)}")


def optimizer_in(where: str, node: Any) -> OptimizerState:
    """The optimizer's state `node` at the path `where`, described."""
    fields = fields_of(node)
    states = [state for state in map(fields_of, fields_of(fields.get("state")).values()) if state]
    raw = fields.get("param_groups", ())
    groups: list[ParamGroup] = []
    for group in map(fields_of, raw.values() if isinstance(raw, dict) else raw):
        params = group.get("params")
        num_params = len(params) if isinstance(params, (list, tuple)) else 0
        groups.append(ParamGroup(num_params, plain_values(group) if len(groups) < MAX_SHOWN else {}))
    keys = dict.fromkeys(str(key) for state in states[:4] for key in state)
    steps = (number(state.get("step")) for state in states[:4])
    return OptimizerState(
        where,
        _class_name(node) or optimizer_kind(groups[0].options if groups else {}, keys),
        tuple(groups[:MAX_SHOWN]),
        sum(group.num_params for group in groups),
        len(states),
        tuple(islice(keys, MAX_SHOWN)),
        next((step for step in steps if step is not None), None),
    )


def scheduler_in(where: str, node: Any) -> SchedulerState:
    """The scheduler's state `node` at the path `where`, described."""
    fields = fields_of(node)
    last_lr = fields.get("_last_lr")
    rates = map(number, last_lr[:MAX_SHOWN]) if isinstance(last_lr, (list, tuple)) else ()
    shown = ("_last_lr", "last_epoch")
    return SchedulerState(
        where,
        _class_name(node) or scheduler_kind(fields),
        number(fields.get("last_epoch")),
        tuple(rate for rate in rates if rate is not None),
        {key: value for key, value in plain_values(fields).items() if key not in shown},
    )


def scaler_in(where: str, node: Any) -> ScalerState:
    """The gradient scaler's state `node` at the path `where`, described."""
    options = {key: value for key, value in plain_values(fields_of(node)).items() if key != "scale"}
    return ScalerState(where, number(fields_of(node)["scale"]), options)


def _class_name(node: Any) -> str | None:
    return node.name.rpartition(".")[2] if isinstance(node, Opaque) else None


def plain_values(fields: Fields) -> dict[str, Any]:
    """The fields that are numbers, short texts, True, False, None, or short lists of these."""
    plain: dict[str, Any] = {}
    for key, value in islice(fields.items(), 256):
        if key in ("params", "param_names", "state"):
            continue
        if isinstance(value, (list, tuple)) and len(value) <= MAX_SHOWN:
            items = [_plain(item) for item in value]
            if None not in items:
                plain[str(key)] = items if isinstance(value, list) else tuple(items)
        elif value is None or (value := _plain(value)) is not None:
            plain[str(key)] = value
    return plain


def _plain(value: Any) -> Any:
    """A number, a short text, True or False; None for all else."""
    if (found := number(value)) is not None:
        return found
    if isinstance(value, bool) or (isinstance(value, str) and len(value) <= MAX_TEXT):
        return value
    return None


# --- words --------------------------------------------------------------------------------------------


def in_words(value: Any) -> str:
    """A value in a sentence: six digits of a float are enough."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        inner = ", ".join(map(in_words, value[:8]))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    return str(value)[:80]


_UNTELLING = {"initial_lr", "eps", "decoupled_weight_decay", *IMPLEMENTATION_OPTIONS}


def _is_telling(key: str, value: Any) -> bool:
    """Whether a hyperparameter goes into the sentence: not switched off, and not about the machine."""
    return key not in _UNTELLING and (
        key == "lr" or (value is not None and value is not False and value != 0)
    )


def _at(where: str, text: str) -> str:
    return f"{where}: {text}" if where else text
