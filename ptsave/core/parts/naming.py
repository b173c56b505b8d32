"""New names for tensors on their way to another file, and for the parameters that optimizers name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ptsave.core.leaves import named_leaves
from ptsave.core.parts.select import strip_wrapper_names
from ptsave.core.parts.training import has_param_groups
from ptsave.core.tree import dotted, walk
from ptsave.errors import Option, RefusedError, UsageError

AUTO = "auto"
"""`--strip-prefix auto`: whatever wrappers put there."""
_NAMES_IN_GROUPS = ("params", "param_names")
"""Keys of an optimizer's groups that may hold names of parameters. Source: torch/optim/optimizer.py, and
torch/distributed/checkpoint/state_dict.py, whose `params` are names."""
_BEHIND_LABEL = re.compile(r"[.:]")
"""What stands between a module's label and the name inside of it, in optimizers of several modules."""


def renames_of(given: Sequence[str] | Mapping[str, str]) -> list[tuple[re.Pattern[str], str]]:
    """Renames from texts as the flag takes them, or from pattern → text.

    Raises: UsageError.
    """
    if isinstance(given, Mapping):
        return [rename_of(pattern, to, pattern) for pattern, to in given.items()]
    return [parse_rename(text) for text in given]


def parse_rename(text: str) -> tuple[re.Pattern[str], str]:
    """`REGEX=REPLACEMENT`, split at the last `=` that leaves a valid pattern.

    Raises: UsageError when there is no `=`, or the pattern or its replacement is not valid.
    """
    pattern, equals, replacement = text.rpartition("=")
    if not equals:
        hint = ("for example ", Option("rename", "^encoder=backbone"))
        raise UsageError(f"{text!r} has no '='", Option("rename"), hint)
    return rename_of(pattern, replacement, text)


def rename_of(pattern: str, replacement: str, text: str) -> tuple[re.Pattern[str], str]:
    """A rename, as `re.sub` takes it; `text` is what the user wrote.

    Raises: UsageError when the pattern or its replacement is not valid.
    """
    try:
        compiled = re.compile(pattern)
        compiled.sub(replacement, "")
    except (re.error, IndexError) as error:
        raise UsageError(
            f"{text!r} is not a valid rename: {error}",
            Option("rename"),
            "see the regular expressions of Python's re.sub",
        ) from None
    return compiled, replacement


class Naming:
    """The names of one conversion, old → new, and which of its rules have found any."""

    def __init__(self, strip_prefix: str | None, rename: Sequence[tuple[re.Pattern[str], str]]) -> None:
        self._strip_prefix = strip_prefix
        self._rename = rename
        self._used: set[int] = set()
        """The positions of the renames that have matched a name; -1 for the prefix."""
        self._known: dict[tuple[str, str], str] = {}
        """(the last key of a state dict's path, or nothing; an old name) → the new name."""

    def of_state_dict(self, keys: Sequence[str], where: str) -> dict[str, str]:
        """Old → new of all the `keys` of the state dict at `where`.

        Raises: RefusedError where two would become one, or one empty.
        """
        names = self._new(keys, where)
        label = where.rpartition(".")[2]
        for key, name in names.items():
            self._known.setdefault(("", key), name)
            self._known[label, key] = name
        return names

    def of_parameters(self, names: Sequence[str], where: str) -> dict[str, str]:
        """Old → new of the parameters of the optimizer at `where`: as in the state dicts that have them.

        Raises: as `of_state_dict`.
        """
        found = {name: new for name in names if (new := self._of_model(name)) is not None}
        others = [name for name in names if name not in found]
        return {**found, **self._new(others, where)}

    def _of_model(self, name: str) -> str | None:
        if (new := self._known.get(("", name))) is not None:
            return new
        for sign in _BEHIND_LABEL.finditer(name):
            front, key = name[: sign.end()], name[sign.end() :]
            if (new := self._known.get((front[:-1], key))) is not None:
                return front + new
            break
        return None

    def _new(self, keys: Sequence[str], where: str) -> dict[str, str]:
        names = {key: key for key in keys}
        prefix = self._strip_prefix
        if prefix == AUTO:
            names, _ = strip_wrapper_names(keys)
        elif prefix is not None:
            names = {key: key.removeprefix(prefix) for key in keys}
            if any(key.startswith(prefix) for key in keys):
                self._used.add(-1)
        for position, (pattern, replacement) in enumerate(self._rename):
            for key, name in names.items():
                names[key], times = pattern.subn(replacement, name)
                if times:
                    self._used.add(position)
        taken: dict[str, str] = {}
        for key, name in names.items():
            if not name:
                raise RefusedError(f"{key!r} would get an empty name", where, "change the rename")
            if (other := taken.setdefault(name, key)) != key:
                raise RefusedError(
                    f"{other!r} and {key!r} would both become {name!r}", where, "change the rename"
                )
        return names

    def expect_used(self) -> None:
        """Insist that the prefix and each rename have found a name.

        Raises: UsageError.
        """
        hint = "`ptsave inspect` lists the names; these are those inside a state dict"
        if self._strip_prefix not in (None, AUTO) and -1 not in self._used:
            raise UsageError(f"no name starts with {self._strip_prefix!r}", Option("strip_prefix"), hint)
        for position, (pattern, _) in enumerate(self._rename):
            if position not in self._used:
                raise UsageError(f"no name matches {pattern.pattern!r}", Option("rename"), hint)


def rename_parameters(root: Any, naming: Naming) -> dict[str, str]:
    """Give the optimizers in `root`, a tree of its own, the new names of their parameters, in place.

    What an optimizer keeps goes by names in its groups (`param_names`, or `params` themselves) and, of
    torch.distributed's, in `state`. Returns the full names of tensors and values that changed, old → new.

    Raises: RefusedError where two parameters would get one name.
    """
    optimizers = [(dotted(path), node) for path, node in walk(root) if has_param_groups(node)]
    renamed: dict[str, str] = {}
    for where, optimizer in optimizers:
        groups = optimizer["param_groups"]
        listed = [
            (group, key)
            for group in (groups.values() if isinstance(groups, Mapping) else groups)
            if isinstance(group, dict)
            for key in _NAMES_IN_GROUPS
            if isinstance(group.get(key), (list, tuple))
        ]
        state = optimizer.get("state")
        state = state if isinstance(state, dict) else {}
        everywhere = [*(name for group, key in listed for name in group[key]), *state]
        old = dict.fromkeys(name for name in everywhere if isinstance(name, str) and not name.isdecimal())
        names = naming.of_parameters([*old], where)
        for group, key in listed:
            made = [names.get(name, name) for name in group[key]]
            group[key] = made if isinstance(group[key], list) else tuple(made)
        for key, name in names.items():
            if key in state and key != name:
                inside = f"{dotted(('state',), where)}."
                for leaf, _ in named_leaves(state[key]):
                    end = "" if leaf is None else f".{leaf}"
                    renamed[f"{inside}{key}{end}"] = f"{inside}{name}{end}"
        items = [
            (names.get(key, key) if isinstance(key, str) else key, value) for key, value in state.items()
        ]
        state.clear()
        state.update(items)
    return renamed
