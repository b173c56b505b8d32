"""Which flags a command uses, given its other ones: one that it would not use is refused, never ignored."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ptsave.errors import UsageError

ALWAYS = ("--json", "--quiet", "--verbose")
"""The flags that say how to print, which every command uses."""


def refuse_unused(given: Collection[str], unused: Mapping[str, str]) -> None:
    """Insist that every flag is used.

    `given`: the flags of the command line, spelled in full. `unused`: the flags that this run of the command
    does not look at, each with the reason.

    Raises: UsageError naming the first of them.
    """
    for flag in given:
        if flag in unused:
            raise UsageError(f"{flag} would not be used: {unused[flag]}", "", f"leave {flag} out")


def unused_by_save(*, has_weights: bool, allows_missing: bool, no_record: bool) -> dict[str, str]:
    """The flags of `save` that these make useless."""
    unused = {}
    if has_weights and not allows_missing:
        unused["--seed"] = "the weights come from --weights"
    if not has_weights:
        unused["--select"] = "it chooses from --weights"
        unused["--extras"] = "it is about what --weights would leave out"
        unused |= dict.fromkeys(("--allow-missing", "--allow-unexpected", "--tie"), "it is about --weights")
    if no_record:
        unused["--digest"] = "--no-record leaves the digests out"
        unused["--no-behaviour"] = "--no-record leaves the behaviour out"
    return unused


def unused_by_load(*, has_config: bool, has_outputs: bool) -> dict[str, str]:
    """The flags of `load` that these make useless."""
    unused = {}
    if has_config:
        unused["--trust-recorded"] = "--config names the class"
    else:
        unused["--set"] = "it overrides a value of --config"
    if not has_outputs:
        unused["--overwrite"] = "only --outputs writes"
    return unused


def unused_by_inspect(*, diff: bool, tree: bool, stats: bool) -> dict[str, str]:
    """The flags of `inspect` that these make useless."""
    if diff:
        shown = ("--tree", "--stats", "--filter", "--sort", "--limit")
        return dict.fromkeys(shown, "--diff compares all tensors")
    if tree and stats:
        return {"--tree": "--stats shows a table"}
    return {}


def unused_by_convert(*, is_sharded: bool, no_record: bool, dry_run: bool) -> dict[str, str]:
    """The flags of `convert` that these make useless; `is_sharded`: whether it may write several files."""
    unused = {}
    if not is_sharded:
        unused["--shard-size"] = "the destination is not sharded"
    if dry_run:
        unused["--threads"] = "--dry-run moves nothing"
    if no_record:
        unused["--digest"] = "--no-record leaves the digests out"
    return unused
