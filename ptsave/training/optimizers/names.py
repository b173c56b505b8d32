"""The two forms of an optimizer's state dict: torch's own, by number, and torch.distributed's, by name.

By number: `{"state": {0: {"exp_avg": …}}, "param_groups": [{"lr": …, "params": [0], "param_names": ["w"]}]}`.
By name: `{"state": {"w": {"exp_avg": …}}, "param_groups": [{"lr": …, "params": ["w"]}]}`.

Source: torch/distributed/checkpoint/state_dict.py of torch 2.13 (`_get_optim_state_dict`,
`_flatten_optim_state_dict`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ptsave.training.optimizers.groups import NAMES_KEY

STATE, GROUPS, PARAMS = "state", "param_groups", "params"


def is_optimizer(value: Any) -> bool:
    """Whether `value` has the look of an optimizer's state dict."""
    return (
        isinstance(value, Mapping)
        and isinstance(value.get(STATE, {}), Mapping)
        and isinstance(value.get(GROUPS), (list, tuple))
        and all(isinstance(g, Mapping) and isinstance(g.get(PARAMS), (list, tuple)) for g in value[GROUPS])
    )


def by_name(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """`saved` by the names that its groups have; as it is where they have none."""
    groups = saved[GROUPS]
    names: dict[Any, str] = {}
    for group in groups:
        known = group.get(NAMES_KEY)
        if not isinstance(known, (list, tuple)) or len(known) != len(group[PARAMS]):
            return saved
        names.update(zip(group[PARAMS], map(str, known), strict=True))
    return {
        **saved,
        STATE: {names.get(key, key): value for key, value in saved.get(STATE, {}).items()},
        GROUPS: [
            {**_without(group, NAMES_KEY), PARAMS: [names[key] for key in group[PARAMS]]} for group in groups
        ],
    }


def by_number(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """`saved` by number, with the names in the groups; as it is where it goes by numbers already."""
    saved = nested(saved)
    if not is_optimizer(saved) or not any(_is_name(key) for group in saved[GROUPS] for key in group[PARAMS]):
        return saved
    keys = [key for group in saved[GROUPS] for key in group[PARAMS]]
    numbers = {key: number for number, key in enumerate(keys)}
    return {
        **saved,
        STATE: {numbers.get(key, key): value for key, value in saved.get(STATE, {}).items()},
        GROUPS: [
            {
                **group,
                PARAMS: [numbers[key] for key in group[PARAMS]],
                NAMES_KEY: list(map(str, group[PARAMS])),
            }
            for group in saved[GROUPS]
        ],
    }


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and not key.isdecimal()


def _without(group: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != key}


def nested(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """torch's flattened form (`state.w.exp_avg`, `param_groups.w.lr`) as the one by name.

    It does not say which groups there were: parameters with the same options make one.
    """
    if STATE in saved or GROUPS in saved or not all(_is_flat(key) for key in saved):
        return saved
    state: dict[str, dict[str, Any]] = {}
    options: dict[str, dict[str, Any]] = {}
    for key, value in saved.items():
        part, _, rest = key.partition(".")
        name, _, what = rest.rpartition(".")
        (state if part == STATE else options).setdefault(name, {})[what] = value
    groups: list[dict[str, Any]] = []
    for name, own in options.items():
        group = next((g for g in groups if _without(g, PARAMS) == own), None)
        if group is None:
            groups.append({**own, PARAMS: [name]})
        else:
            group[PARAMS].append(name)
    return {STATE: state, GROUPS: groups} if groups else saved


def _is_flat(key: Any) -> bool:
    return isinstance(key, str) and key.startswith((f"{STATE}.", f"{GROUPS}.")) and key.count(".") > 1
