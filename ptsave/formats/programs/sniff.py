"""Which zip archives hold a program: told from their records' names alone."""

from __future__ import annotations

from ptsave.formats.torch.read import first_folder, top_folder
from ptsave.formats.zip.sniff import sniffed_directory
from ptsave.storage.files import InputFile

TORCHSCRIPT, PT2 = "torchscript", "pt2"
"""As the JSON field `format` spells them."""
FORMAT_RECORD = "archive_format"
"""torch.export's marker."""
OLD_PROGRAM = "serialized_exported_program.json"
"""The exported program before torch 2.9."""


def is_torchscript(file: InputFile, head: bytes) -> bool:
    """A zip archive with a `constants.pkl` and a `data.pkl`, which `torch.load` takes for TorchScript too."""
    directory = sniffed_directory(file, head)
    if directory is None:
        return False
    top = top_folder(directory)
    return top is not None and f"{top}constants.pkl" in directory.entries


def is_pt2(file: InputFile, head: bytes) -> bool:
    """A zip with torch.export's marker, or with the exported program of the old layout."""
    directory = sniffed_directory(file, head)
    return directory is not None and (
        OLD_PROGRAM in directory.entries or f"{first_folder(directory)}{FORMAT_RECORD}" in directory.entries
    )
