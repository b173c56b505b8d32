"""A torch zip that is only a part of a file: an item of a .distcp file, a payload inside a .pt2."""

from __future__ import annotations

from ptsave.core.accounts import Part
from ptsave.core.dtypes import DType
from ptsave.core.nodes import TensorEntry
from ptsave.formats.pickle.inert import Unpickled
from ptsave.formats.torch.form import Form, form_of
from ptsave.formats.torch.read import (
    BOOKKEEPING,
    ZipStorages,
    data_folder,
    is_big_endian,
    load_pickle,
    records_of,
)
from ptsave.formats.zip.inflate import check_inflated_total
from ptsave.formats.zip.reader import DEFLATED, read_directory
from ptsave.storage.files import InputFile

_MAX_FORMS = 4096
_MAX_FORMS_OF_A_SIZE = 8


class TorchParts:
    """Opens parts, of which a checkpoint has one for each chunk of each tensor.

    Those of tensors of one shape and dtype have one form, which is read and checked once.
    """

    def __init__(self) -> None:
        self._forms: dict[int, list[Form]] = {}
        """By the length of the part in bytes."""
        self._num_forms = 0
        self._deflated_bytes = self._inflated_bytes = 0
        self.records: list[Part] = []
        """Those of all parts that tensors may view, but for the storage of a part that is one tensor."""

    def form_of(self, num_bytes: int, dtype: DType, shape: tuple[int, ...]) -> Form | None:
        """The form of a part of so many bytes that is a tensor, as another one of them had it."""
        for form in self._forms.get(num_bytes, ()):
            root: TensorEntry = form.loaded.root
            if (root.dtype, root.shape) == (dtype, shape):
                return form
        return None

    def read(self, file: InputFile, offset_bytes: int, num_bytes: int, name: str = "") -> Unpickled:
        """What `torch.save` wrote into `num_bytes` bytes of `file` from `offset_bytes`; nothing in it runs.

        `name`: of the part, for those of its records that no tensor is of.

        Raises: CorruptError, LimitError, UnreadableError.
        """
        if offset_bytes + num_bytes > file.size_bytes:
            raise file.too_short(offset_bytes, num_bytes)
        known = self._forms.get(num_bytes, ())
        for form in known:
            if (found := form.read(file, offset_bytes)) is not None:
                return found
        directory = read_directory(file, offset_bytes, num_bytes)
        for entry in directory.entries.values():
            if entry.method == DEFLATED:
                self._deflated_bytes += entry.compressed_bytes
                self._inflated_bytes += entry.num_bytes
        check_inflated_total(self._deflated_bytes, self._inflated_bytes, str(file.path))
        top = data_folder(directory)
        storages = ZipStorages(directory, f"{top}data/", is_big_endian(directory, top))
        loaded = load_pickle(directory, f"{top}data.pkl", storages)
        records = list(records_of(directory, {top + known for known in BOOKKEEPING}))
        if isinstance(loaded.root, TensorEntry):
            records = [record for record in records if record.storage is not loaded.root.storage]
        self.records += (Part(f"{name}, record {record.name!r}", record.storage) for record in records)
        if (
            isinstance(loaded.root, TensorEntry)
            and not records
            and loaded.root.storage.file is not None
            and len(known) < _MAX_FORMS_OF_A_SIZE
            and self._num_forms < _MAX_FORMS
        ):
            new = form_of(directory, offset_bytes, num_bytes, loaded, f"{top}.data/serialization_id")
            if new is not None:
                self._forms.setdefault(num_bytes, []).append(new)
                self._num_forms += 1
        return loaded
