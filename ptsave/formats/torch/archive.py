"""The records of one torch zip: laid out before a byte moves, finished when the storages' CRCs are known.

Source: `torch.serialization._save` and PyTorch's `caffe2/serialize/inline_container.cc`.
"""

from __future__ import annotations

from collections.abc import Sequence

from isal.isal_zlib import crc32

from ptsave.core.dtypes import BY_NAME, DType
from ptsave.core.nodes import PARAMETER_, UNRESOLVED, Opaque, TensorEntry
from ptsave.core.record import FILE_NAME
from ptsave.core.values.digest import hasher
from ptsave.formats.kinds.quantized import parameters
from ptsave.formats.pickle.emit import Emitter
from ptsave.formats.torch.storage_plan import PlannedStorage, PlannedView
from ptsave.formats.zip.layout import ALIGN_BYTES, CRC32_AT, LISTED_CRC32_AT, Entry, Frame

UINT8 = BY_NAME["uint8"]
TOP = "archive"
"""The folder that every record lies in: fixed, so that the same input gives the same bytes."""
RECORD = f"{TOP}/{FILE_NAME}"
_IDENTITY = f"{TOP}/.data/serialization_id"
_IDENTITY_BYTES = 40


class TorchArchive:
    """One torch zip, at a place in a file."""

    def __init__(
        self,
        begin: int,
        pickle: bytes,
        parts: Sequence[PlannedStorage],
        record: bytes | None = None,
        *,
        is_item: bool = False,
    ) -> None:
        """Lay it out from byte `begin` of its file.

        `record`: a draft that has its final length. `is_item`: it is one of many in its file, and has only
        the records that torch cannot do without.
        """
        self.begin = begin
        self.data: list[Entry] = []
        """The records of `parts`, in their order."""
        self._frame = Frame()
        self._texts: dict[str, bytes] = {}
        """Record name → its bytes, where they do not come from a storage."""
        self._add("data.pkl", pickle)
        self._add("byteorder", b"little")
        if not is_item:
            # "0": the offsets of storages cannot be computed from their sizes, since large ones are
            # page-aligned. torch then looks each one up, which is what it does by default anyway.
            self._add(".format_version", b"0")
            self._add(".storage_alignment", str(ALIGN_BYTES).encode())
        if record is not None:
            self._add(FILE_NAME, record)
        for part in parts:
            self.data.append(self._frame.add(f"{TOP}/data/{part.key}", part.num_bytes))
        self._add("version", b"3\n")
        if not is_item:
            self._add(".data/serialization_id", b"0" * _IDENTITY_BYTES)

    def _add(self, name: str, text: bytes) -> None:
        self._frame.add(f"{TOP}/{name}", len(text))
        self._texts[f"{TOP}/{name}"] = text

    @property
    def num_bytes(self) -> int:
        """Of the whole archive."""
        return self._frame.num_bytes

    def set_record(self, text: bytes) -> None:
        """Replace the draft of the record by what it turned out to be, of the same length."""
        assert len(text) == len(self._texts[RECORD])
        self._texts[RECORD] = text

    def pieces(self) -> list[tuple[int, bytes]]:
        """(offset in the file, bytes) of everything but the storages and what lies right before each.

        Their CRCs must have been told to each entry of `data`.
        """
        found: list[tuple[int, bytes]] = []
        entries = self._frame.entries
        for entry in entries:
            text = self._texts.get(entry.name)
            if text is None:
                continue
            if entry.name == _IDENTITY:
                # torch logs it and compares it with nothing; it names the content, as torch's own does.
                content = b"".join(other.directory_entry() for other in entries if other is not entry)
                number = int(hasher("xxh3_128", content).hexdigest(), 16)
                text = str(number).zfill(_IDENTITY_BYTES).encode()
            piece = entry.local_header(crc32(text)) + text
            if found and found[-1][0] + len(found[-1][1]) == self.begin + entry.header_offset:
                found[-1] = (found[-1][0], found[-1][1] + piece)
            else:
                found.append((self.begin + entry.header_offset, piece))
        end, tail = found[-1]
        found[-1] = (end, tail + self._frame.directory())
        return found


class ItemFrame:
    """What lies around the storage in archives of one storage each, of the same lengths.

    They differ in their pickle, its CRC-32 and the storage's.
    """

    def __init__(self, pickle: bytes, part: PlannedStorage) -> None:
        """Lay out an archive of `part`, whose pickle has the length of `pickle`."""
        archive = TorchArchive(0, pickle, [part], is_item=True)
        entries = archive._frame.entries
        about, data = entries[0], archive.data[0]
        local = data.local_header(0)
        (_, front), (at, behind) = archive.pieces()
        listed = archive._frame.end - at
        listed_data = listed + sum(len(entry.directory_entry()) for entry in entries[: entries.index(data)])
        self.num_bytes = archive.num_bytes
        """Of a whole archive."""
        self.data_offset = data.data_offset
        self._before = front + local
        self._pickle_at = about.data_offset
        self._crc_at = len(front) + CRC32_AT
        # zeros up to the next item, so that small items lie without gaps and go to the disk together
        self._after = behind + bytes(-self.num_bytes % ALIGN_BYTES)
        self._listed_at = (listed + LISTED_CRC32_AT, listed_data + LISTED_CRC32_AT)

    @property
    def trailer_bytes(self) -> int:
        """Of what `after` gives."""
        return len(self._after)

    def before(self, pickle: bytes, data_crc32: int) -> bytes:
        """What lies before the storage in an archive with that pickle."""
        out = bytearray(self._before)
        out[CRC32_AT : CRC32_AT + 4] = crc32(pickle).to_bytes(4, "little")
        out[self._pickle_at : self._pickle_at + len(pickle)] = pickle
        out[self._crc_at : self._crc_at + 4] = data_crc32.to_bytes(4, "little")
        return bytes(out)

    def after(self, pickle: bytes, data_crc32: int) -> bytes:
        """What lies after it."""
        out = bytearray(self._after)
        for at, crc in zip(self._listed_at, (crc32(pickle), data_crc32), strict=True):
            out[at : at + 4] = crc.to_bytes(4, "little")
        return bytes(out)


def emit_tensor(emitter: Emitter, entry: TensorEntry, place: PlannedView) -> None:
    """Emit a tensor as torch pickles it; a Parameter stays a Parameter.

    Source: `torch._utils._rebuild_tensor_v2`, `_rebuild_tensor_v3`, `_rebuild_parameter`.
    """
    if entry.kind == "parameter" or entry.kind.startswith(PARAMETER_):
        emitter.constant("torch._utils", "_rebuild_parameter")
        emitter.mark()
        _emit_data(emitter, entry, place, requires_grad=False)
        emitter.boolean(entry.requires_grad)
        emitter.empty_ordered_dict()
        emitter.end_tuple()
        emitter.reduce()
    else:
        _emit_data(emitter, entry, place, requires_grad=entry.requires_grad)


def _emit_data(emitter: Emitter, entry: TensorEntry, place: PlannedView, *, requires_grad: bool) -> None:
    typed = place.part.storage_class
    emitter.constant("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
    emitter.mark()
    _emit_view(emitter, entry, place, typed)
    emitter.boolean(requires_grad)
    emitter.empty_ordered_dict()
    if not typed:
        emitter.constant("torch", entry.dtype.name)
    if entry.kind in UNRESOLVED:
        emitter.value(dict.fromkeys(entry.kind.removeprefix(PARAMETER_).split("_"), True), ())
    emitter.end_tuple()
    emitter.reduce()


def _emit_view(emitter: Emitter, entry: TensorEntry, place: PlannedView, typed: str | None) -> None:
    """A storage of class `typed` (None: an untyped one); the offset, shape and strides of a view of it."""
    _emit_storage(emitter, entry.dtype, place.part, typed)
    emitter.integer(place.offset)
    emitter.integers(entry.shape)
    emitter.integers(place.strides)


def _emit_storage(emitter: Emitter, dtype: DType, part: PlannedStorage, typed: str | None) -> None:
    emitter.mark()
    emitter.word("storage")
    if typed:
        emitter.constant("torch", typed)
    else:
        emitter.constant("torch.storage", "UntypedStorage")
    emitter.text(part.key)
    emitter.word("cpu")
    emitter.integer(part.num_bytes // dtype.itemsize if typed else part.num_bytes)
    emitter.end_tuple()
    emitter.persistent()


def emit_quantized(emitter: Emitter, value: Opaque, place: PlannedView) -> None:
    """Emit a quantized tensor (see `formats.kinds.quantized`) as torch pickles it; `place` is of its bytes.

    Source: `torch._utils._rebuild_qtensor`.
    """
    emitter.constant("torch._utils", "_rebuild_qtensor")
    emitter.mark()
    state = value.state
    if "packed" in state:  # shape and strides count elements, of which a byte holds several
        _emit_storage(emitter, UINT8, place.part, state["dtype"].storage_class)
        emitter.integer(state["offset"])
        emitter.integers(state["size"])
        emitter.integers(state["stride"])
    else:
        _emit_view(emitter, state["int_repr"], place, state["dtype"].storage_class)
    emitter.mark()
    emitter.constant("torch", value.state["qscheme"])
    for parameter in parameters(value):
        emitter.value(parameter, ())
    emitter.end_tuple()
    emitter.boolean(False)
    emitter.empty_ordered_dict()
    emitter.end_tuple()
    emitter.reduce()
