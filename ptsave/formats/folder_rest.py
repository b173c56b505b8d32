"""The files of a checkpoint's folder that were not read, and that another loader of the folder would take.

transformers and diffusers take one of several files by its name, and a variant's where they are asked for
one; torch.distributed.checkpoint takes what `.metadata` names, or a rank's own `__N.metadata`. What such a
file names is judged with the rest; a file that cannot be read is told, since its loader may think otherwise.

Source: transformers modeling_utils.py (`_get_resolved_checkpoint_files`, `_add_variant`); diffusers
model_loading_utils.py; torch/distributed/checkpoint/filesystem.py (`_get_metadata_path`).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind
from ptsave.core.nodes import GlobalUse, add_uses
from ptsave.errors import PtsaveError
from ptsave.formats.dcp import read as dcp_read
from ptsave.formats.dcp import unconsolidated
from ptsave.formats.safetensors import chunk_offsets, sharded_read
from ptsave.formats.safetensors.main_file import INDEX
from ptsave.storage.files import InputFile, InputFolder

MAX_OTHERS = 200
"""Cap on the files that are judged beside a checkpoint; the others are told."""

_TAKEN = re.compile(
    r"(?!.*-\d{4,6}-of-\d{4,6}\.)"
    r"(?:pytorch_model|model|adapter_model|diffusion_pytorch_model)(?:[.-][\w.-]*)?\.(?:safetensors|bin)"
)
"""A shard is taken only where an index names it."""
_RANK_METADATA = re.compile(r"__\d+\.metadata")
_RUNNABLE = (
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".joblib",
    ".npy",
    ".npz",
    ".pt2",
    ".py",
    ".distcp",
)
"""Files that some program unpickles or imports, though no loader of models takes them by their name."""


def judge_rest(
    folder: InputFolder, checkpoint: Checkpoint, open_file: Callable[[InputFile], Checkpoint]
) -> None:
    """Add what the other files of `folder` name to `checkpoint.globals`, and what was not looked at to
    `checkpoint.beside`. `open_file` opens a single file, whatever it is."""
    if checkpoint.format == unconsolidated.FORMAT.name or chunk_offsets.KEY in checkpoint.metadata:
        checkpoint.dropped += chunk_offsets.others_of(folder.names, folder.opened)
    judge = _Judge(folder, checkpoint)
    if checkpoint.format != dcp_read.FORMAT.name and dcp_read.METADATA in folder.names:
        judge.open(dcp_read.METADATA, lambda _: dcp_read.read(folder))
    for name in filter(_RANK_METADATA.fullmatch, folder.names):
        judge.open(name, lambda name: _rank_metadata(folder, name))
    for name in filter(INDEX.fullmatch, folder.names):
        judge.open(name, lambda name: sharded_read.read_shards(folder.open(name), folder))
    for name in filter(_TAKEN.fullmatch, folder.names):
        judge.open(name, lambda name: open_file(folder.open(name)))
    judge.end()


class _Judge:
    def __init__(self, folder: InputFolder, checkpoint: Checkpoint) -> None:
        self.folder = folder
        self.checkpoint = checkpoint
        self.judged: list[str] = []
        self.left: list[str] = []
        self.opened = folder.opened

    def open(self, name: str, read: Callable[[str], Checkpoint]) -> None:
        """Judge the file `name`, and what belongs to it, unless it has been read."""
        if name in self.opened:
            return
        if len(self.judged) >= MAX_OTHERS:
            self.left.append(name)
            return
        self.judged.append(name)
        own = self.checkpoint
        try:
            with read(name) as other:
                if other.globals:
                    total: dict[str, GlobalUse] = {}
                    add_uses(total, own.globals)
                    add_uses(total, other.globals)
                    own.globals = total
                own.num_code_files += other.num_code_files
                own.beside += other.beside
        except PtsaveError as error:
            why = {"why": error.what}
            own.beside.append(Finding("safe", "fail", name, Kind.UNREADABLE_BESIDE, facts=why))
        self.opened = self.folder.opened

    def end(self) -> None:
        """Tell what was judged and what was not."""
        if self.judged:
            names = ", ".join(self.judged[:5]) + (", …" if len(self.judged) > 5 else "")
            self.checkpoint.notes.append(
                f"the folder also holds {names}, which a loader could take: what it names is judged, "
                "its values were not compared"
            )
        left = self.left + [
            name for name in self.folder.names if name.endswith(_RUNNABLE) and name not in self.opened
        ]
        if left:
            such = tuple(left[:1])
            self.checkpoint.beside.append(Finding("safe", "warn", "", Kind.NOT_LOOKED_AT, len(left), such))


def _rank_metadata(folder: InputFolder, name: str) -> Checkpoint:
    """What a rank's own metadata names, and the items that it places."""
    with folder.open(name) as file:
        data = file.read_at(0, min(file.size_bytes, dcp_read.MAX_METADATA_BYTES))
    return Checkpoint(dcp_read.FORMAT.name, folder.path, {}, globals=dcp_read.names_in(folder, data))
