"""A torch zip that is only a part of a file: an item of a .distcp file, a payload inside a .pt2."""

from __future__ import annotations

from dataclasses import dataclass

from ptsave.core.files import InputFile
from ptsave.errors import CorruptError
from ptsave.formats.inert_pickle import Loaded
from ptsave.formats.torch_zip import ZipStorages, is_big_endian, load_pickle, top_folder
from ptsave.formats.zip_reader import ZipDirectory, read_directory


@dataclass(frozen=True, slots=True)
class TorchPart:
    """What `torch.save` wrote into one window of a file."""

    directory: ZipDirectory
    loaded: Loaded


def read_torch_part(file: InputFile, offset_bytes: int, num_bytes: int) -> TorchPart:
    """Open the torch zip that fills `num_bytes` bytes of `file` from `offset_bytes`; nothing in it runs.

    Raises: CorruptError, LimitError, UnreadableError.
    """
    directory = read_directory(file, offset_bytes, num_bytes)
    top = top_folder(directory)
    if top is None:
        raise CorruptError("has no data.pkl", str(file.path), "torch.save writes one")
    storages = ZipStorages(directory, f"{top}data/", is_big_endian(directory, top))
    return TorchPart(directory, load_pickle(directory, f"{top}data.pkl", storages))
