"""The parts of a training's state, recognised by what their state dicts hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ptsave.core.nodes import Opaque, TensorEntry
from ptsave.core.training_kinds import IMPLEMENTATION_OPTIONS, STATE_KEYS, optimizer_kind, scheduler_kind
from ptsave.core.values import has_values, scalar
from ptsave.errors import UnreadableError

MAX_SHOWN = 32
"""How many groups, keys and items of a list are listed."""
MAX_TEXT = 1000
"""Longest text (characters) that is taken for an option."""

Fields = Mapping[Any, Any]


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
        """The same for a person."""
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
        """The same for a person."""
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
        """The same for a person."""
        return _at(self.where, f"gradient scaler at scale {in_words(self.scale)}")


Part = OptimizerState | SchedulerState | ScalerState


def part_of(where: str, node: Any) -> Part | None:
    """What `node`, a container at the path `where`, is as a whole; None when it is none of these."""
    fields = fields_of(node)
    name = node.name.rpartition(".")[2] if isinstance(node, Opaque) else None
    if _is_optimizer(fields):
        return _optimizer(where, fields, name)
    if _is_scheduler(fields):
        return _scheduler(where, fields, name)
    if {"scale", "growth_factor", "backoff_factor"} <= fields.keys():
        options = {key: value for key, value in plain_values(fields).items() if key != "scale"}
        return ScalerState(where, number(fields["scale"]), options)
    return None


def _is_optimizer(fields: Fields) -> bool:
    if isinstance(fields.get("param_groups"), (list, tuple, dict)):
        return True
    states = fields_of(fields.get("state"))
    return any(STATE_KEYS & set(map(str, fields_of(state))) for state in islice(states.values(), 4))


def _optimizer(where: str, fields: Fields, name: str | None) -> OptimizerState:
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
        name or optimizer_kind(groups[0].options if groups else {}, keys),
        tuple(groups[:MAX_SHOWN]),
        sum(group.num_params for group in groups),
        len(states),
        tuple(islice(keys, MAX_SHOWN)),
        next((step for step in steps if step is not None), None),
    )


def _is_scheduler(fields: Fields) -> bool:
    if not {"_last_lr", "_schedulers", "base_lrs", "_step_count", "num_bad_epochs"} & fields.keys():
        return False
    return "last_epoch" in fields or "_schedulers" in fields


def _scheduler(where: str, fields: Fields, name: str | None) -> SchedulerState:
    last_lr = fields.get("_last_lr")
    rates = map(number, last_lr[:MAX_SHOWN]) if isinstance(last_lr, (list, tuple)) else ()
    shown = ("_last_lr", "last_epoch")
    return SchedulerState(
        where,
        name or scheduler_kind(fields),
        number(fields.get("last_epoch")),
        tuple(rate for rate in rates if rate is not None),
        {key: value for key, value in plain_values(fields).items() if key not in shown},
    )


# --- nodes --------------------------------------------------------------------------------------------


def fields_of(node: Any) -> Fields:
    """A dict, or what an Opaque object holds by name; empty for all else."""
    if isinstance(node, dict):
        return node
    if isinstance(node, Opaque) and not node.shared:
        return {key: value for key, value in node.children() if isinstance(key, str) or node.state is None}
    return {}


def number(value: Any) -> int | float | None:
    """`value` as a number: itself, a NumPy scalar, or the element of a tensor of one; None otherwise.

    Integers past 64 bits are no one's epoch, and too long to print.
    """
    if isinstance(value, Opaque) and value.name.startswith("numpy.") and len(value.args) == 1:
        value = value.args[0]
    if isinstance(value, TensorEntry) and value.num_elements == 1 and has_values(value):
        try:
            value = scalar(value)
        except UnreadableError:
            # To describe the rest is worth more; `verify --checks bytes` names what is damaged.
            return None
    if isinstance(value, bool) or (isinstance(value, int) and value.bit_length() > 64):
        return None
    return value if isinstance(value, (int, float)) else None


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
