"""Options that several commands share.

`readable=False`, here as in `cli`: a file that may not be read is the reader's error (3), not one of usage.
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")


def typed(words: Iterable[str]) -> str:
    """A command line as reports show it: addresses are in it without what gives access to them."""
    from ptsave.core.address import Address, located
    from ptsave.errors import UsageError, quoted

    def masked(found: re.Match[str]) -> str:
        try:
            where = located(found[0])
        except UsageError:
            where = None
        return str(where) if isinstance(where, Address) else "…"

    return " ".join(("ptsave", *(quoted(_ADDRESS.sub(masked, word)) for word in words)))


def formats(incomplete: str) -> list[str]:
    """The formats that are written and whose names begin with `incomplete`; a shell asks for them."""
    from ptsave.formats.writers import BY_NAME

    return _beginning(incomplete, BY_NAME)


def dtypes(incomplete: str) -> list[str]:
    """The floating-point dtypes whose names begin so."""
    from ptsave.core.dtypes import BY_NAME

    return _beginning(incomplete, (name for name, dtype in BY_NAME.items() if dtype.is_float))


def check_names(incomplete: str) -> list[str]:
    """The checks of `verify`, after those that stand before the last comma."""
    from ptsave.verbs.checks import FILE_CHECKS
    from ptsave.verbs.verify import NEED_A_MODEL

    done, comma, last = incomplete.rpartition(",")
    names = dict.fromkeys((*FILE_CHECKS, *NEED_A_MODEL))
    return [done + comma + name for name in _beginning(last, names) if name not in done.split(",")]


def one_of(*names: str) -> Callable[[str], list[str]]:
    """Completes one of some words."""
    return lambda incomplete: _beginning(incomplete, names)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


ConfigPath = Annotated[
    str | None,
    typer.Option("-c", "--config", metavar="CONFIG", help="TOML that names the model's class."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value of the TOML; repeatable."),
]
AppDir = Annotated[
    Path,
    typer.Option("--app-dir", metavar="DIR", help="Folder to import the model's class from.", readable=False),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, mps, …",
        autocompletion=one_of("cpu", "cuda", "cuda:0", "mps", "xpu"),
    ),
]
Select = Annotated[
    str | None,
    typer.Option("--select", metavar="KEY.PATH", help="Key of the state dict inside the checkpoint."),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="KEY=VALUE", help="Text to keep beside the tensors; repeatable."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the destination if it exists.")]
FormatName = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="Format to write; default: as the suffix says.",
        autocompletion=formats,
    ),
]


def _use_threads(number: int | None) -> None:
    """Have this process, and those that it starts, use so many threads."""
    if number is not None:
        from ptsave.storage.workers import VARIABLE

        os.environ[VARIABLE] = str(number)


Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        max=9999,
        callback=_use_threads,
        help="Threads to use; default: PTSAVE_THREADS, or the cores up to 8.",
        show_default=False,
    ),
]
Lock = Annotated[
    str | None,
    typer.Option("--lock", metavar="FILE", help="Lock of what was approved; default: ./ptsave.lock."),
]
TrustRecorded = Annotated[
    list[str] | None,
    typer.Option(
        "--trust-recorded",
        metavar="[GLOB]",
        help="Import what the checkpoint's record names, or of it only GLOB ('pkg.mod.*'); repeatable.",
    ),
]


def given(context: typer.Context) -> list[str]:
    """The flags that the command line itself has, spelled in full, in its help's order."""
    names = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.param_type_name == "option":
            names.append(max(parameter.opts, key=len))
    return names


def with_patterns(arguments: list[str]) -> list[str]:
    """The arguments with `--trust-recorded GLOB` in one word, and `*` where it stands alone.

    What follows the flag is a pattern if it is dotted names and wildcards, and no path: `net.pt` and whatever
    is there as a file is the checkpoint.
    """
    flag, found = "--trust-recorded", list[str]()
    waiting = list(reversed(arguments))
    while waiting:
        word = waiting.pop()
        if word == "--":
            return [*found, word, *reversed(waiting)]
        if word == flag:
            word = f"{flag}={waiting.pop() if waiting and _is_pattern(waiting[-1]) else '*'}"
        found.append(word)
    return found


def _is_pattern(word: str) -> bool:
    is_dotted = re.fullmatch(r"[\w*?\[][\w.:*?\[\]!]*", word) is not None and any(c in word for c in ".:*")
    return is_dotted and not word.endswith(_SUFFIXES) and not os.path.lexists(word)


_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz", ".npy", ".pt2", ".json", ".tar")
"""How the names of checkpoints end."""
