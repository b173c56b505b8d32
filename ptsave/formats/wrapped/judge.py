"""The other members of an archive, which a program that reads the archive would unpickle too.

The check `safe` speaks of an archive as a whole: stable-baselines3 loads every `.pth` of its zip, and
unpickles what stands in the JSON of its member `data`; a NeMo archive is unpacked and read. So what any
other member names is judged with the checkpoint, and what was not looked at is told.

Source: stable_baselines3/common/save_util.py (`load_from_zip_file`, `json_to_data`), release 2.7.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable
from typing import Any

from ptsave.core.checkpoint import Checkpoint
from ptsave.core.finding import Finding, Kind
from ptsave.core.nodes import GlobalUse, Opaque, add_uses
from ptsave.core.storage import MemoryStorage, Storage
from ptsave.errors import PtsaveError, UnknownFormatError
from ptsave.formats.base import HEAD_BYTES
from ptsave.formats.pickle.inert import begin
from ptsave.formats.pickle.machine import MAX_CODE_BYTES
from ptsave.formats.torch.objects import torch_shapes
from ptsave.formats.torch.tar_members import is_tar
from ptsave.formats.wrapped.archives import Archive
from ptsave.formats.wrapped.compression import compression_of
from ptsave.formats.wrapped.unwrap import MAX_LOOKS, MAX_REMOTE_LOOKS
from ptsave.formats.zip.sniff import ZIP_MAGIC
from ptsave.storage.files import InputFile
from ptsave.storage.windows import FileStorage

MAX_JUDGED_BYTES = 16 * 1024**2
"""Cap on the bytes of other members that are judged in a small archive; a long one may have twice its own."""
MAX_UNPACKED_BYTES = 16 * 1024**2
"""Cap on one that has to be unpacked for that."""
MAX_JSON_BYTES = 16 * 1024**2
_SERIALIZED = ":serialized:"
"""The key of what stable-baselines3 unpickles: base64 of what cloudpickle wrote."""


def judge_members(
    archive: Archive, taken: str, checkpoint: Checkpoint, open_file: Callable[[InputFile], Checkpoint]
) -> None:
    """Add the names in the members of `archive` other than `taken` to the ones in `checkpoint`.

    `open_file` opens a file that is not in anything.
    """
    judge = _Judge(archive, checkpoint, open_file)
    names = [name for name, num_bytes in archive.sizes.items() if num_bytes and name != taken]
    most = MAX_REMOTE_LOOKS if archive.file.is_remote else MAX_LOOKS
    archive.file.expect(archive.extents(names[:most]))
    for name in names[:most]:
        judge.member(name)
    judge.left += names[most:]
    judge.end()


class _Judge:
    def __init__(
        self, archive: Archive, checkpoint: Checkpoint, open_file: Callable[[InputFile], Checkpoint]
    ) -> None:
        self._archive = archive
        self._checkpoint = checkpoint
        self._open_file = open_file
        self._left_bytes = max(MAX_JUDGED_BYTES, 2 * archive.file.stored_bytes)
        self._uses: dict[str, GlobalUse] = {}
        add_uses(self._uses, checkpoint.globals)
        self._judged: list[str] = []
        self._serialized: list[str] = []
        self.left: list[str] = []

    def member(self, name: str) -> None:
        """Judge one member."""
        num_bytes = self._archive.sizes[name]
        self._left_bytes -= min(num_bytes, MAX_CODE_BYTES)
        is_much = self._archive.is_compressed(name) and num_bytes > MAX_UNPACKED_BYTES
        if self._left_bytes < 0 or is_much:
            self.left.append(name)
            return
        try:
            with self._archive.open(name) as file:
                self._file(name, file)
        except PtsaveError as error:
            why = {"why": error.what}
            self._checkpoint.beside.append(Finding("safe", "fail", name, Kind.UNREADABLE_BESIDE, facts=why))

    def _file(self, name: str, file: InputFile) -> None:
        head = file.read_at(0, min(HEAD_BYTES, file.size_bytes))
        if head.lstrip(b" \t\r\n")[:1] == b"{":
            self._json(name, file)
            return
        try:
            with self._open_file(file) as other:
                add_uses(self._uses, other.globals)
                self._checkpoint.num_code_files += other.num_code_files
                self._checkpoint.beside += other.beside
                self._judged.append(name)
        except UnknownFormatError as error:
            if error.details.get("globals"):
                self._pickled(FileStorage(file, 0, file.size_bytes), "")
                self._judged.append(name)
            elif compression_of(head) is not None or head.startswith(ZIP_MAGIC) or is_tar(head):
                self.left.append(name)

    def _json(self, name: str, file: InputFile) -> None:
        """What a member of JSON holds that is unpickled."""
        if file.size_bytes > MAX_JSON_BYTES:
            self.left.append(name)
            return
        texts = serialized_in(file.read_at(0, file.size_bytes))
        for data in texts:
            self._pickled(MemoryStorage(memoryview(data)), str(file.path))
        if texts:
            self._serialized.append(name)

    def _pickled(self, source: Storage, where: str) -> None:
        add_uses(self._uses, begin(source, torch_shapes(_outside), where)[1])

    def end(self) -> None:
        """Tell what was judged and what was not."""
        self._checkpoint.globals = self._uses
        notes = self._checkpoint.notes
        if self._judged:
            notes.append(
                f"the archive also holds {_listed(self._judged)}, which a loader could take: "
                "what it names is judged, its values were not compared"
            )
        if self._serialized:
            notes.append(
                f"stable-baselines3 unpickles values of {_listed(self._serialized)} "
                "when it loads the archive: what they name is judged"
            )
        if self.left:
            finding = Finding("safe", "warn", "", Kind.NOT_LOOKED_AT, len(self.left), tuple(self.left[:1]))
            self._checkpoint.beside.append(finding)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def serialized_in(text: bytes) -> list[bytes]:
    """The pickles in a JSON text that stable-baselines3 writes; none where it is no such text."""
    found: list[bytes] = []

    def collect(pairs: list[tuple[str, Any]]) -> None:
        for key, value in pairs:
            if key == _SERIALIZED and isinstance(value, str):
                try:
                    found.append(b64decode(value.encode()))
                except ValueError:  # its reader stops there, too
                    continue

    if _SERIALIZED.encode() not in text and b"\\u" not in text:
        return []
    try:
        json.loads(text.decode(), object_pairs_hook=collect)
    except (ValueError, RecursionError):
        return []
    return found


def _outside(persistent_id: Any) -> Opaque:
    return Opaque("persistent id", (persistent_id,))
