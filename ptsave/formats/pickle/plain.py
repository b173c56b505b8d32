"""Pickles that torch did not write: never read, but named, with what opening them would run."""

from __future__ import annotations

from typing import Any

from ptsave.core.global_names import details, kind_of, listed
from ptsave.core.nodes import GlobalUse, Opaque
from ptsave.errors import UnknownFormatError
from ptsave.formats.pickle.inert import begin
from ptsave.formats.torch.objects import torch_shapes
from ptsave.storage.files import InputFile
from ptsave.storage.windows import FileStorage

_PROTO = b"\x80"
_TEXT_STARTS = b"(cilpVSIFLNg]})"
"""First bytes of pickles of protocols 0 and 1 that hold more than one value."""
_HINT = (
    "open it with the program that wrote it, if you trust it (a pickle can run anything), "
    "and save the tensors with torch.save or safetensors"
)


def refusal(file: InputFile, head: bytes) -> UnknownFormatError | None:
    """Why `file` is not read, if it is a pickle that is not one of torch's; None where it is not a pickle."""
    starts_binary = head[:1] == _PROTO and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    if not starts_binary and (not head or head[0] not in _TEXT_STARTS):
        return None
    source = FileStorage(file, 0, file.size_bytes)
    root, found = begin(source, torch_shapes(_outside), str(file.path))
    is_whole = root is not None and bool(found)
    if not starts_binary and not is_whole and not any(map(_tells_a_pickle, found.values())):
        return None
    what = "the file is a Python pickle that torch.save did not write"
    if found:
        what += f"; opening it would use {listed(found.values())}"
    return UnknownFormatError(what, str(file.path), _HINT, **details(found.values()))


def _tells_a_pickle(use: GlobalUse) -> bool:
    """Whether a file that may be text must be a pickle, since it uses this name."""
    is_dotted = all(part.isidentifier() for part in use.name.split("."))
    return is_dotted and (use.used_for != "named" or kind_of(use.name) == "runs")


def _outside(persistent_id: Any) -> Opaque:
    return Opaque("persistent id", (persistent_id,))
