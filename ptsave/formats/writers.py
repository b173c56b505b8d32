"""The registry of the formats that are written, apart so that looking into a file need not import it.

To add a format: one `write.py` in its folder, one line in WRITERS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ptsave.core.address import Location
from ptsave.core.checkpoint import Checkpoint
from ptsave.core.names import hint_for
from ptsave.errors import Option, UsageError
from ptsave.formats.base import WriteOptions, Written
from ptsave.formats.dcp import write as dcp_write
from ptsave.formats.npz import write as npz_write
from ptsave.formats.pickle.emit import can_emit
from ptsave.formats.safetensors import sharded_write
from ptsave.formats.safetensors import write as safetensors_write
from ptsave.formats.torch import write as torch_write
from ptsave.storage.opening import check_file_destination, check_folder_destination


@dataclass(frozen=True)
class Writer:
    """How one format is written."""

    name: str
    """As `--format` spells it, and as the reader of the format calls it."""
    write: Callable[[Checkpoint, Location, WriteOptions], Written]
    suffixes: tuple[str, ...] = ()
    """Which names of a destination choose it."""
    holds: Callable[[Any], bool] | None = None
    """Which leaves it holds beside the tensors, of a nested tree; None: it holds a flat table of tensors."""
    is_folder: bool = False
    is_sharded: bool = False
    """Whether it divides the tensors among files of a size."""
    keeps_record: bool = True
    """Whether it has a place for ptsave's record."""
    keeps_texts: bool = False
    """Whether it has a place for texts beside the tensors that is not the record's."""


WRITERS = (
    Writer("safetensors", safetensors_write.write, (".safetensors",), keeps_texts=True),
    Writer("pt", torch_write.write, (".pt", ".pth", ".bin", ".ckpt"), torch_write.holds),
    Writer("npz", npz_write.write, (".npz",), keeps_record=False),
    Writer("safetensors-sharded", sharded_write.write, is_folder=True, is_sharded=True, keeps_texts=True),
    Writer("dcp", dcp_write.write, holds=can_emit, is_folder=True),
)
BY_NAME = {writer.name: writer for writer in WRITERS}
PROGRAMS = {"pt2": ".pt2", "onnx": ".onnx"}
"""Formats of exported programs, which `export` writes from a model, and the suffixes that choose them."""


_READ_ALONE = (".gguf",)
"""Suffixes of formats that are not written."""


def program_format(path: Location, name: str | None) -> str | None:
    """The format of PROGRAMS that is called `name`, else the one that the suffix of `path` chooses."""
    if name is not None:
        return name if name in PROGRAMS else None
    return next((known for known, suffix in PROGRAMS.items() if path.suffix.lower() == suffix), None)


def destination_writer(path: Location, name: str | None) -> Writer:
    """The writer for `path`: of the format called `name`, else of the one that the suffix chooses.

    Raises: UsageError when there is no such format, or it cannot be written.
    """
    if (program := program_format(path, name)) is not None:
        what = f"a program ({program}) is exported from a model, not written from tensors alone"
        raise UsageError(what, str(path), ("name the model with ", Option("config", "CONFIG")))
    if name is not None:
        if name not in BY_NAME:
            raise UsageError(
                f"cannot write the format {name!r}", Option("format"), hint_for(name, BY_NAME, "formats")
            )
        return BY_NAME[name]
    for known in WRITERS:
        if path.suffix.lower() in known.suffixes:
            return known
    if path.suffix.lower() in _READ_ALONE:
        what = f"ptsave reads {path.suffix} and does not write it"
        raise UsageError(what, str(path), f"formats that are written: {', '.join(BY_NAME)}")
    what = f"the suffix {path.suffix!r} does not say which format to write"
    raise UsageError(
        what,
        str(path),
        (
            f"name a file, such as {path.stem}.safetensors, or the format with ",
            Option("format"),
            f": {', '.join(BY_NAME)}",
        ),
    )


def check_destination(path: Location, target: Writer, *, overwrite: bool) -> None:
    """Find out early whether `path` can be written, before work whose result would be lost.

    Raises: ExistsError, WriteError.
    """
    check = check_folder_destination if target.is_folder else check_file_destination
    check(path, overwrite=overwrite)
