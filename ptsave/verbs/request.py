"""What a verb is asked, by a command or from Python: options that it would not use, who sees its progress.

Options are known by their flags here, `--allow-missing`; errors spell them for their reader.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from inspect import signature
from threading import Lock
from typing import ParamSpec, TypeVar

from ptsave.core.names import hint_for
from ptsave.errors import Option, Text, UsageError, options_of

P = ParamSpec("P")
R = TypeVar("R")

ALWAYS = ("--json", "--quiet", "--verbose")
"""The flags that say how to print, which every command uses."""

FLAGS = {
    **dict.fromkeys(("--force", "-f", "--yes", "-y"), "--overwrite"),
    **dict.fromkeys(("--half", "--fp16"), "--dtype float16"),
    "--bf16": "--dtype bfloat16",
    "--max-shard-size": "--shard-size",
    **dict.fromkeys(("--exclude", "--skip", "--remove"), "--drop"),
    **dict.fromkeys(("--include", "--keep"), "--only"),
    **dict.fromkeys(("--key", "--prefix"), "--select"),
    **dict.fromkeys(("--grep", "--names", "--keys", "--match"), "--filter"),
    **dict.fromkeys(("--parameters", "--summary", "--count"), "--params"),
    **dict.fromkeys(("--top", "--head"), "--limit"),
    "--histogram": "--stats",
    **dict.fromkeys(("--shards", "--num-shards", "--split"), "--shard-size 5GB"),
    **dict.fromkeys(("--add-prefix", "--prepend"), "--rename ^=PREFIX."),
    **dict.fromkeys(("--tolerance", "--atol", "--rtol"), "--close"),
    **dict.fromkeys(("--compare", "--other"), "--diff"),
    **dict.fromkeys(("--html", "--output-report"), "--report FILE.html"),
    **dict.fromkeys(("--to", "--type"), "--format"),
    **dict.fromkeys(("--map-location", "--map_location"), "--device"),
    **dict.fromkeys(("--gpu", "--cuda"), "--device cuda"),
    "--cpu": "--device cpu",
    "--no-strict": "--allow-missing GLOB, --allow-unexpected GLOB",
}
"""Flag → one that some of the commands have, with what to give it."""
KEYWORDS: Mapping[str, Text] = {
    "strict": (Option("allow_missing"), " and ", Option("allow_unexpected"), " name what may differ"),
    "weights_only": "leave it out: nothing in a file is run",
    "mmap": ("did you mean ", Option("lazy"), "?"),
    **dict.fromkeys(("max_to_keep", "save_total_limit", "keep"), ("did you mean ", Option("keep_last"), "?")),
}
"""Parameter of functions of others → what ptsave has for it."""

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows the progress of work of a name and a size in bytes; what it opens is told the bytes as they pass."""


@contextmanager
def unseen(label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A Bar that shows nothing."""
    yield lambda num_bytes: None


@contextmanager
def reading(bar: Bar, label: str, size_bytes: int, passing_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar that ends at `size_bytes`, the size of the files, while about `passing_bytes` pass.

    Some bytes pass several times, such as what is written and read back, and those of tied tensors once.
    Yields what is told the bytes as they pass, from any thread.
    """
    lock, seen, told = Lock(), 0, 0
    with bar(label, size_bytes) as advance:

        def pass_on(num_bytes: int) -> None:
            nonlocal seen, told
            with lock:
                seen += num_bytes
                step = min(seen * size_bytes // max(passing_bytes, 1), size_bytes) - told
                told += step
            advance(step)

        yield pass_on
        advance(size_bytes - told)


def option(flag: str) -> Option:
    """The option of a flag: that of `--allow-missing` is `allow_missing`."""
    return Option(flag.removeprefix("--").replace("-", "_"))


def python_verb(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, whose errors name options as its arguments, and which says what an unknown one means."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        parameters = signature(function).parameters
        with options_of(parameters):
            for keyword in kwargs:
                if keyword not in parameters:
                    what = f"there is no parameter {keyword!r}"
                    where = f"ptsave.{function.__qualname__.removesuffix('.__init__')}"
                    raise UsageError(
                        what, where, _meant(keyword, [key for key in parameters if key != "self"])
                    )
            return function(*args, **kwargs)

    return call


def _meant(keyword: str, parameters: Collection[str]) -> Text:
    """The hint for a keyword that is none of `parameters`."""
    hint = KEYWORDS.get(keyword)
    named = [part.key for part in hint or () if isinstance(part, Option)]
    if hint is None:
        flag, _, value = FLAGS.get(f"--{keyword.replace('_', '-')}", "").partition(" ")
        if flag:
            meant = Option(option(flag).key, value)
            hint, named = ("did you mean ", meant, "?"), [meant.key]
    fits = hint is not None and all(key in parameters for key in named)
    return hint if hint is not None and fits else hint_for(keyword, parameters, "parameters")


def refuse_unused(given: Collection[str], unused: Mapping[str, Text]) -> None:
    """Insist that every flag is used.

    `given`: the flags of the command line, spelled in full. `unused`: the flags that this run of the command
    does not look at, each with the reason.

    Raises: UsageError naming the first of them.
    """
    for flag in given:
        if flag in unused:
            why = unused[flag]
            reason = why if isinstance(why, tuple) else (why,)
            raise UsageError(
                (option(flag), " would not be used: ", *reason), "", ("leave ", option(flag), " out")
            )


def unused_by_save(*, has_weights: bool, allows_missing: bool, no_record: bool) -> dict[str, Text]:
    """The flags of `save` that these make useless."""
    unused: dict[str, Text] = {}
    if has_weights and not allows_missing:
        unused["--seed"] = ("the weights come from ", option("--weights"))
    if not allows_missing:
        unused |= _COVERS_ALL
    if not has_weights:
        unused["--select"] = ("it chooses from ", option("--weights"))
        unused["--extras"] = ("it is about what ", option("--weights"), " would leave out")
        unused["--lock"] = ("it pins ", option("--weights"))
        unused |= dict.fromkeys(
            ("--allow-missing", "--allow-unexpected", "--tie"), ("it is about ", option("--weights"))
        )
    if no_record:
        unused["--digest"] = (option("--no-record"), " leaves the digests out")
        unused["--no-behaviour"] = (option("--no-record"), " leaves the behaviour out")
    return unused


_COVERS_ALL: dict[str, Text] = {
    "--min-coverage": ("all of the model comes from the weights without ", option("--allow-missing"))
}


def unused_without_sign(*, signs: bool) -> dict[str, Text]:
    """The flags of `save` and `convert` that nothing uses where nothing is signed."""
    if signs:
        return {}
    about = ("--signature", "--sign-only", "--expires", "--bundle", "--certificate")
    return dict.fromkeys(about, ("nothing is signed without ", option("--sign")))


def unused_by_load(*, has_config: bool, has_outputs: bool, allows_missing: bool) -> dict[str, Text]:
    """The flags of `load` that these make useless."""
    unused: dict[str, Text] = {}
    if has_config:
        unused["--trust-recorded"] = (option("--config"), " names the class")
    else:
        unused["--set"] = ("it overrides a value of ", option("--config"))
    if not allows_missing:
        unused |= _COVERS_ALL
    if not has_outputs:
        unused["--overwrite"] = ("only ", option("--outputs"), " writes")
    return unused


def unused_by_inspect(
    *,
    diff: bool,
    tree: bool,
    params: bool,
    stats: bool,
    json: bool,
    makes_config: bool = False,
    has_class: bool = False,
) -> dict[str, Text]:
    """The flags of `inspect` that these make useless."""
    shown = ("--tree", "--params", "--depth", "--stats", "--filter", "--sort", "--limit")
    unused: dict[str, Text] = {}
    if makes_config:
        unused["--report"] = "it is a page about checkpoints"
        unused |= dict.fromkeys((*shown, "--diff"), (option("--make-config"), " shows no tensors"))
    else:
        unused["--class"] = ("it is about ", option("--make-config"))
    if not has_class:
        unused["--app-dir"] = ("it is where ", option("--class"), " is imported from")
    if diff:
        unused |= dict.fromkeys(shown, (option("--diff"), " compares all tensors"))
    elif stats:
        unused |= dict.fromkeys(("--tree", "--params", "--depth"), (option("--stats"), " shows a table"))
    elif not makes_config and (not (tree or params) or json):
        unused["--depth"] = ("it is about what ", option("--tree"), " and ", option("--params"), " print")
    if tree and params:
        unused["--tree"] = (option("--params"), " shows the modules alone")
    return unused


OF_EXPORT = ("--config", "--set", "--app-dir", "--opset", "--report")
"""The flags of `convert` that are about the model of an exported program."""


def unused_by_export(format: str, *, no_record: bool) -> dict[str, Text]:
    """The flags of `convert` that these make useless where it exports a program."""
    weights = ("--only", "--drop", "--strip-prefix", "--rename", "--contiguous", "--dense", "--dry-run")
    why = "the config's model takes the weights by its own names, and the program is made of it"
    unused: dict[str, Text] = dict.fromkeys(weights, why)
    unused["--shard-size"] = "a program is one file, or two"
    unused["--no-check"] = "a program gets its name once it has run beside the model"
    unused["--threads"] = "no tensors are moved"
    unused["--digest"] = "a program's digests are XXH3-128"
    unused["--bundle"] = "a program may be two files: model_signing signs their folder"
    if no_record:
        unused["--metadata"] = (option("--no-record"), " leaves it out")
    if format != "onnx":
        unused["--opset"] = "it is a version of ONNX"
    return unused


def unused_by_convert(*, is_sharded: bool, no_record: bool, dry_run: bool) -> dict[str, Text]:
    """The flags of `convert` that these make useless; `is_sharded`: whether it may write several files."""
    unused: dict[str, Text] = {}
    if not is_sharded:
        unused["--shard-size"] = (
            "this is one file; shards are written into a folder, which a name without a suffix is"
        )
    if dry_run:
        nothing: Text = (option("--dry-run"), " writes nothing")
        unused |= {
            "--threads": (option("--dry-run"), " moves nothing"),
            "--signature": nothing,
            "--bundle": nothing,
            "--sign": nothing,
        }
    if no_record:
        unused["--digest"] = (option("--no-record"), " leaves the digests out")
    return unused | dict.fromkeys(OF_EXPORT, "it is about an exported program, which ends in .pt2 or .onnx")
