"""Tensors that lie in files beside the model: found in its folder, and nowhere else.

Source: onnx/onnx.proto, `TensorProto.external_data`; onnx's docs/ExternalData.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise

from ptsave.core.accounts import Part
from ptsave.core.finding import Finding, Kind
from ptsave.core.storage import Storage
from ptsave.errors import CorruptError, LimitError, UnreadableError
from ptsave.formats.onnx.wire import DAMAGED
from ptsave.storage.files import InputFile, InputFolder
from ptsave.storage.opening import open_folder
from ptsave.storage.scan import scan
from ptsave.storage.windows import FileStorage

MAX_FILES = 20_000
"""Cap on the files beside one model."""
MAX_NESTING = 100
"""Cap on how deep in folders a file lies."""
PADDING_BYTES = 64 * 1024
"""Longer gaps between tensors are no alignment."""
_NUMBER = re.compile(r"[0-9]{1,18}")
_SHA1 = re.compile(r"[0-9a-fA-F]{40}")
_OUTSIDE = "do not open it with any program: a loader may read whatever file it names"


class ExternalFiles:
    """The files beside a model that hold its tensors; each is opened once."""

    def __init__(self, model: InputFile, *, has_folder: bool) -> None:
        """`has_folder`: whether there is a folder around the model's file, which may lie in an archive."""
        self.folders: dict[tuple[str, ...], InputFolder] = {}
        """Those that were opened, by the names that lead there: the model's own first."""
        self.num_tensors: dict[str, int] = {}
        """By file: how many tensors lie in it."""
        self._model, self._has_folder = model, has_folder
        self._closing = ExitStack()
        self._whole: dict[str, FileStorage] = {}
        self._windows: dict[str, dict[tuple[int, int], Storage]] = {}
        self._checksums: dict[str, str] = {}

    def storage(self, about: Mapping[str, str], num_bytes: int, name: str) -> Storage:
        """The `num_bytes` bytes of the tensor `name`, of whose place the model says `about`.

        Tensors of which it says the same share a storage.

        Raises: CorruptError where it leads out of the folder, or the file; MissingFileError; LimitError.
        """
        location = about.get("location", "")
        whole = self._open(location, name)
        offset = self._number(about.get("offset", "0"), name)
        length = whole.num_bytes - offset if "length" not in about else self._number(about["length"], name)
        if length != num_bytes:
            raise self._wrong(f"tensor {name!r} has {num_bytes} bytes, and {length} in {location!r}")
        if offset + length > whole.num_bytes:
            what = f"truncated: tensor {name!r} ends at byte {offset + length} of {location!r}"
            raise self._wrong(f"{what}, which has {whole.num_bytes}")
        checksum = about.get("checksum", "")
        if checksum:
            is_sound = _SHA1.fullmatch(checksum) is not None
            if not is_sound or self._checksums.setdefault(location, checksum) != checksum:
                raise self._wrong(f"the checksum of {location!r} is no SHA-1, or not the only one")
        self.num_tensors[location] += 1
        windows = self._windows[location]
        if (offset, length) not in windows:
            windows[offset, length] = FileStorage(whole.file, offset, length, inner=whole)
        return windows[offset, length]

    def check_apart(self) -> None:
        """Insist that no two tensors share some of their bytes. Raises: CorruptError."""
        for location, windows in self._windows.items():
            for (begin, length), (other, _) in pairwise(sorted(windows)):
                if begin + length > other:
                    raise self._wrong(f"two tensors share the bytes from {other} of {location!r}")

    def parts(self) -> Iterator[Part]:
        """The files, and what lies between the tensors in them and is no padding."""
        for location, whole in self._whole.items():
            yield Part(location, whole)
            end = 0
            for begin, length in [*sorted(self._windows[location]), (whole.num_bytes, 0)]:
                if begin - end > PADDING_BYTES:
                    yield Part(f"{location}, bytes {end} to {begin}", whole.window(end, begin - end))
                end = max(end, begin + length)

    def check_sums(self) -> Iterator[Finding]:
        """Read each file that the model states the SHA-1 of."""
        for location, expected in self._checksums.items():
            import hashlib  # OpenSSL comes with it, which most files take nothing of

            sha1 = hashlib.sha1(usedforsecurity=False)
            whole = self._whole[location]
            for block in scan(whole, 0, whole.num_bytes):
                sha1.update(block)
            if sha1.hexdigest() == expected.lower():
                yield Finding("bytes", "ok", location, Kind.SHA1_MATCHES)
            else:
                why = {"why": "its bytes do not match the SHA-1 that the model states"}
                yield Finding("bytes", "fail", location, Kind.DAMAGED, facts=why)

    def close(self) -> None:
        self._closing.close()

    def _open(self, location: str, name: str) -> FileStorage:
        if location in self._whole:
            return self._whole[location]
        *folders, file_name = location.split("/")
        model = self._model.path
        if file_name == model.name and not folders:
            raise self._wrong(f"tensor {name!r} lies in the model's own file by its name")
        if not all(_is_plain(part) for part in (*folders, file_name)):
            what = f"tensor {name!r} lies outside of the model's folder: {location[:200]!r}"
            raise CorruptError(what, str(model), _OUTSIDE)
        if not self._has_folder:
            what = f"tensor {name!r} lies in another file, {location[:200]!r}, and this one in an archive"
            raise UnreadableError(what, str(model), "unpack the archive, then name the model in it")
        if len(folders) > MAX_NESTING:
            raise LimitError("nested_folders", MAX_NESTING, len(folders), str(model))
        if len(self._whole) >= MAX_FILES:
            raise LimitError("external_files", MAX_FILES, "more", str(model))
        file = self._closing.enter_context(self._folder(*folders).open(file_name))
        whole = self._whole[location] = FileStorage(file, 0, file.size_bytes)
        self._windows[location] = {}
        self.num_tensors[location] = 0
        return whole

    def _folder(self, *names: str) -> InputFolder:
        if names not in self.folders:
            if names:
                folder = self._folder(*names[:-1]).inside(names[-1], follows_links=False)
            else:
                folder = open_folder(self._model.path.parent)
            self.folders[names] = self._closing.enter_context(folder)
        return self.folders[names]

    def _number(self, text: str, name: str) -> int:
        if not _NUMBER.fullmatch(text):
            raise self._wrong(f"the place of tensor {name!r} is {text[:40]!r}, not a number of bytes")
        return int(text)

    def _wrong(self, what: str) -> CorruptError:
        return CorruptError(what, str(self._model.path), DAMAGED)


def _is_plain(part: str) -> bool:
    """Whether a part of a path is the name of something in its folder, on every system."""
    return part not in ("", ".", "..") and not any(char in part for char in "\\:\0*")
