"""Statements about files, byte by byte, as OpenSSF model signing has them.

They end with the first conversion, and cover all of the files: records, metadata, a tokenizer beside them.

Source: model-signing 1.1.1: `_signing/signing.py` has the statement, `_serialization/file.py` says which
files there are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ptsave.core.strict_json import parse_object
from ptsave.core.values.digest import hasher
from ptsave.errors import CorruptError, LimitError
from ptsave.sign.canonical import canonical
from ptsave.sign.statement import ALGORITHMS, TYPE
from ptsave.storage.local.file import LocalFile

PREDICATE = "https://model_signing/signature/v1.0"
THE_FILE = "."
"""What a model that is one file is called in its own bundle."""
MAX_FILES = 100_000
"""Cap on the files of one model."""
_BLOCK_BYTES = 1024 * 1024
_HINT = "sign the files again: model_signing sign key, or ptsave convert --sign KEY --bundle FILE"


@dataclass(frozen=True)
class SignedFiles:
    """What a bundle says: the digest of each file."""

    algorithm: str
    digests: Mapping[str, str]
    """Name in the model's folder → digest in hexadecimal."""
    ignored: Sequence[str] = ()
    """Names of files and folders that are not looked at."""
    follows_links: bool = False

    def root(self, path: Path) -> Path:
        """What the names are in, for a checkpoint at `path`: it, or the folder of a file."""
        return path if self.digests.keys() == {THE_FILE} or path.is_dir() else path.parent


def parse_files(payload: bytes, where: str) -> SignedFiles:
    """What a bundle's payload says.

    Raises: CorruptError, LimitError.
    """
    document = parse_object(payload, "the signed statement", where, times=16)
    if document.get("_type") != TYPE or document.get("predicateType") != PREDICATE:
        kind = str(document.get("predicateType"))
        raise CorruptError(f"the signed statement is of another kind ({kind!r:.60})", where, _HINT)
    try:
        (subject,) = document["subject"]
        how, resources = document["predicate"]["serialization"], document["predicate"]["resources"]
        if how["method"] != "files" or how["hash_type"] not in ALGORITHMS:
            kind = f"{how['method']!r:.30} by {how['hash_type']!r:.30}"
            raise CorruptError(f"files that are signed as {kind} are not read", where, _HINT)
        algorithm, ignored = how["hash_type"], how.get("ignore_paths", [])
        digests = {one["name"]: one["digest"] for one in resources if one["algorithm"] == algorithm}
        texts = [*digests, *ignored] if isinstance(ignored, list) else [None]
        if len(digests) != len(resources) or not all(isinstance(text, str) for text in texts):
            raise ValueError(resources)
        joined = b"".join(map(bytes.fromhex, digests.values()))
        if sha256(joined).hexdigest() != subject["digest"]["sha256"]:
            raise ValueError(subject)
        return SignedFiles(algorithm, digests, ignored, follows_links=how["allow_symlinks"] is True)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CorruptError("the signed statement is malformed", where, _HINT) from None


def digests_of_files(root: Path, how: SignedFiles) -> dict[str, str]:
    """The digest of each file of the model at `root`, a file or a folder, by name.

    Raises: CorruptError for a link that is not followed; UnreadableError; LimitError.
    """
    found = {}
    for name, path in _files(root, how):
        digest = hasher(how.algorithm)
        with LocalFile(path) as file:
            for start in range(0, file.size_bytes, _BLOCK_BYTES):
                digest.update(file.read_at(start, min(_BLOCK_BYTES, file.size_bytes - start)))
            file.check_unchanged()
        found[name] = digest.hexdigest()
    return dict(sorted(found.items()))


def payload_of(root: Path, ignored: Sequence[str] = ()) -> bytes:
    """The statement about the files of the model at `root`.

    Raises: as `digests_of_files`.
    """
    algorithm = ALGORITHMS[0]
    digests = digests_of_files(root, SignedFiles(algorithm, {}, ignored))
    resources = [{"name": n, "algorithm": algorithm, "digest": text} for n, text in digests.items()]
    how = {"method": "files", "hash_type": algorithm, "allow_symlinks": False, "ignore_paths": list(ignored)}
    joined = sha256(b"".join(map(bytes.fromhex, digests.values()))).hexdigest()
    return canonical(
        {
            "_type": TYPE,
            "subject": [{"name": root.name, "digest": {"sha256": joined}}],
            "predicateType": PREDICATE,
            "predicate": {"serialization": how, "resources": resources},
        }
    )


def _files(root: Path, how: SignedFiles) -> Iterator[tuple[str, Path]]:
    if not root.is_dir():
        yield THE_FILE, root
        return
    count = 0
    for folder, folders, files in os.walk(root, followlinks=how.follows_links):
        here = Path(folder)
        links = [name for name in (*folders, *files) if (here / name).is_symlink()]
        inside = {name: (here / name).relative_to(root).as_posix() for name in (*folders, *files)}
        if links and not how.follows_links:
            raise CorruptError("the folder holds a symbolic link", str(here / links[0]), "put the file there")
        folders[:] = [name for name in folders if inside[name] not in how.ignored]
        for name in files:
            if inside[name] not in how.ignored:
                count += 1
                if count > MAX_FILES:
                    raise LimitError("signed_files", MAX_FILES, "more", str(root))
                yield inside[name], here / name
