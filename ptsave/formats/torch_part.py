"""A torch zip that is only a part of a file: an item of a .distcp file, a payload inside a .pt2."""

from __future__ import annotations

from dataclasses import replace

from ptsave.core.files import InputFile
from ptsave.core.nodes import TensorEntry
from ptsave.errors import CorruptError
from ptsave.formats.inert_pickle import Loaded
from ptsave.formats.torch_zip import ZipStorages, is_big_endian, load_pickle, top_folder
from ptsave.formats.zip_reader import read_directory

_MAX_KNOWN = 4096
_MAX_KNOWN_BYTES = 1024


class TorchParts:
    """Opens parts, of which a checkpoint has one for each chunk of each tensor.

    Tensors of one shape and dtype have the same pickle, byte for byte, and it is interpreted once.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Loaded, str]] = {}

    def read(self, file: InputFile, offset_bytes: int, num_bytes: int) -> Loaded:
        """What `torch.save` wrote into `num_bytes` bytes of `file` from `offset_bytes`; nothing in it runs.

        Raises: CorruptError, LimitError, UnreadableError.
        """
        directory = read_directory(file, offset_bytes, num_bytes)
        top = top_folder(directory)
        if top is None:
            raise CorruptError("has no data.pkl", str(file.path), "torch.save writes one")
        storages = ZipStorages(directory, f"{top}data/", is_big_endian(directory, top))
        record = f"{top}data.pkl"
        if directory.entry(record).num_bytes > _MAX_KNOWN_BYTES or storages.big_endian:
            return load_pickle(directory, record, storages)
        pickle = directory.read(record, _MAX_KNOWN_BYTES)
        if pickle in self._known:
            loaded, key = self._known[pickle]
            entry: TensorEntry = loaded.root
            if f"{top}data/{key}" in directory.entries:
                storage = directory.storage(f"{top}data/{key}")
                if storage.num_bytes == entry.storage.num_bytes:
                    return replace(loaded, root=replace(entry, storage=storage))
        loaded = load_pickle(directory, record, storages)
        if isinstance(loaded.root, TensorEntry) and len(self._known) < _MAX_KNOWN:
            for name in directory.entries:
                if directory.storage(name) is loaded.root.storage:
                    self._known[pickle] = (loaded, name.removeprefix(f"{top}data/"))
        return loaded
