"""Addresses: where a checkpoint is that does not lie on a disk, as a user writes it.

`s3://BUCKET/KEY[?versionId=ID]`, `gs://BUCKET/KEY[#GENERATION]`, `az://CONTAINER/KEY`,
`hf://OWNER/REPO[@REVISION]/PATH`, `http(s)://HOST/PATH`, and `SCHEME://…` of fsspec's other file systems. An
address prints itself without what gives access: no user name, password or query, which may be a signature.

`LOCATION::MEMBER` names what is in an archive: `s3://BUCKET/policy.zip::policy.pth`, `model.tar::model.pt`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import TypeAlias
from urllib.parse import quote, unquote, urlsplit

from ptsave.errors import UsageError

_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<rest>.*)", re.DOTALL)
_COLLAPSED = re.compile(r"(?:s3|gs|az|hf|https?|abfss?|memory|sftp):[/\\]+[^/\\]")
_HUB = re.compile(
    r"(?P<repo>(?:(?:models|datasets|spaces)/)?[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(?P<path>.*))?",
    re.DOTALL,
)
"""Source: huggingface_hub, `HfFileSystem.resolve_path`."""
_BARE_REVISION = re.compile(r"refs/(?:pr|convert)/[^/%]+|[^/%]+")
"""One that needs no quoting: of another branch the slashes would begin the path."""
_VERSION_ID = re.compile(r"(?P<key>.*)\?versionId=(?P<revision>[^&?]+)", re.DOTALL)
_GENERATION = re.compile(r"(?P<key>.*)#(?P<revision>\d+)", re.DOTALL)
_DRIVE = re.compile(r"[A-Za-z]:")
WEB = ("http", "https")
HUB = "hf"
IN = "::"
"""What stands between an archive and its member."""
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".zst", ".bz2", ".xz", ".nemo")
"""How the names of archives end: what would be written into one of these is no file of its own."""


@dataclass(frozen=True)
class Address:
    """One file or folder in a store. Behaves like a path where names are asked for: `name`, `parent`, `/`."""

    scheme: str
    host: str
    """The bucket, the container, the Hub's `OWNER/REPO`, or the host with its port."""
    key: str
    """The path in it, without a slash before it; of a web address as it is in the URL."""
    revision: str = ""
    """The version ID, generation, branch or commit that the user named."""
    query: str = field(default="", repr=False)
    """Of a web address, without the question mark. Never shown: it may be a signature."""
    user: str = field(default="", repr=False)
    """`USER:PASSWORD`, as a web address may have it. Never shown."""
    member: str = ""
    """What is named in the archive that the rest is of."""
    branch: str = field(default="", compare=False, repr=False)
    """The branch that was at the commit `revision`; empty where the user named that, or no commit."""

    @property
    def name(self) -> str:
        """What follows the last slash; of a repository or bucket alone, its own name."""
        if self.member:
            return self.member.rpartition("/")[2]
        last = self.key.rstrip("/").rpartition("/")[2]
        last = unquote(last) if self.scheme in WEB else last
        return last or self.host.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """`.safetensors`, as of a path."""
        return Path(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without the suffix, as of a path."""
        return Path(self.name).stem

    @property
    def parent(self) -> Address:
        """The folder that it lies in."""
        return replace(self, key=self.key.rstrip("/").rpartition("/")[0], member="")

    def __truediv__(self, name: str) -> Address:
        """What is called `name` in this folder."""
        name = quote(name) if self.scheme in WEB else name
        key = self.key.rstrip("/")
        return replace(self, key=f"{key}/{name}" if key else name)

    def with_name(self, name: str) -> Address:
        """Its neighbour called `name`."""
        return self.parent / name

    def at(self, revision: str) -> Address:
        """This address at the commit that its branch is at."""
        return replace(self, revision=revision, branch=self.branch or self.revision or "main")

    def __str__(self) -> str:
        """As the user wrote it, without what gives access."""
        secret = "?…" if self.query else ""
        if self.scheme == HUB:
            is_bare = _BARE_REVISION.fullmatch(self.revision)
            at = f"@{self.revision if is_bare else quote(self.revision, safe='')}" if self.revision else ""
            inside = f"{IN}{self.member}" if self.member else ""
            return f"hf://{self.host}{at}{'/' if self.key else ''}{self.key}{inside}"
        named = f"?versionId={self.revision}" if self.scheme == "s3" and self.revision else ""
        named = f"#{self.revision}" if self.scheme == "gs" and self.revision else named
        inside = f"{IN}{self.member}" if self.member else ""
        return f"{self.scheme}://{self.host}{'/' if self.host else ''}{self.key}{named}{secret}{inside}"


Location: TypeAlias = Path | Address
"""Where a checkpoint is: on a disk, or in a store."""


def located(where: str | os.PathLike[str] | Address) -> Location:
    """What a user wrote, as a path or an address. `file://` is a path.

    Raises: UsageError when an address has no bucket, repository or host, or went through a Path, which takes
    one of its slashes away.
    """
    if isinstance(where, Address):
        return where
    try:
        text = os.fspath(where)
    except TypeError:
        text = None
    if not isinstance(text, str):
        what = f"a path or an address is expected, not a value of type {type(where).__name__}"
        raise UsageError(what, "", _instead_of(where))
    match = _ADDRESS.fullmatch(text)
    if match is None:
        if not isinstance(where, str) and _COLLAPSED.match(text) and not os.path.lexists(text):
            raise UsageError("an address became a path", text, "give it as text, not as a Path")
        return Path(where)
    scheme, rest = match["scheme"].lower(), match["rest"]
    if scheme == "file":
        return Path(_path_in_url(unquote(rest), is_windows=isinstance(Path(), PureWindowsPath)))
    # an IPv6 host has two colons, too
    host_end = 0 if scheme == "memory" else rest.find("/")
    at = rest.find(IN, host_end) if host_end >= 0 else -1
    if at > host_end and rest[at + len(IN) :]:
        return replace(_address(scheme, rest[:at]), member=rest[at + len(IN) :])
    return _address(scheme, rest)


def located_or_none(where: str | os.PathLike[str] | None) -> Location | None:
    """What a user wrote for what may be left out.

    Raises: as `located`.
    """
    return None if where is None else located(where)


def _instead_of(value: object) -> str:
    """What to give in place of `value`, which is no path."""
    if isinstance(value, bytes):
        return "os.fsdecode makes text of a path in bytes"
    if hasattr(value, "read"):
        return "give the path of the file, not the open file"
    if isinstance(value, Mapping) or hasattr(value, "state_dict"):
        return "the path comes first, and what is saved or filled after it"
    if isinstance(value, Iterable):
        return "give one path; of several, each on its own"
    return "give it as text, or a path as a pathlib.Path"


def _path_in_url(rest: str, *, is_windows: bool) -> str:
    """The path that follows `file://`: on Windows `/C:/x` is of a drive, and `HOST/x` of another machine.

    Source: RFC 8089, appendix E.
    """
    host, slash, path = rest.partition("/")
    if not is_windows:
        return rest.removeprefix("localhost")
    if host in ("", "localhost"):
        return path if _DRIVE.match(path) else slash + path
    return rest if _DRIVE.match(host) else f"//{rest}"


def _address(scheme: str, rest: str) -> Address:
    if scheme in WEB:
        return _web(scheme, rest)
    if scheme == HUB:
        return _hub(rest)
    host, _, key = ("", "", rest.lstrip("/")) if scheme == "memory" else rest.partition("/")
    user, _, host = host.rpartition("@")
    revision = ""
    pattern = {"s3": _VERSION_ID, "gs": _GENERATION}.get(scheme)
    if pattern is not None and (named := pattern.fullmatch(key)):
        key, revision = named["key"], named["revision"]
    address = Address(scheme, host, key, revision, user=user)
    if not host and scheme in ("s3", "gs", "az"):
        raise UsageError(
            "the address names no bucket", str(address), f"for example {scheme}://bucket/model.pt"
        )
    return address


def inside(archive: Location, member: str) -> Location:
    """What is called `member` in `archive`, as a user names it."""
    if isinstance(archive, Address):
        return replace(archive, member=member)
    return Path(f"{archive}{IN}{member}")


def split_member(where: Location) -> list[tuple[Location, str]]:
    """What `where` may be: each archive with the member in it that it names, before `where` itself as the
    name of a file. Whether there is such an archive is for a store to say, or a disk."""
    if isinstance(where, Address):
        if not where.member:
            return [(where, "")]
        return [(replace(where, member=""), where.member), (whole_name(where), "")]
    text = str(where)
    cuts = [i for i in range(1, len(text) - len(IN)) if text.startswith(IN, i)]
    return [*((Path(text[:i]), text[i + len(IN) :]) for i in cuts), (where, "")]


def whole_name(address: Address) -> Address:
    """`address` with its member as a part of the name: two colons can be in any name."""
    rest = f"{IN}{address.member}" if address.member else ""
    if address.query:
        return replace(address, query=address.query + rest, member="")
    return replace(address, key=address.key + rest, member="")


def is_named_as_archive(where: Location) -> bool:
    """Whether its name says that it is an archive."""
    return where.name.lower().endswith(_ARCHIVES)


def may_be_folder(path: Location) -> bool:
    """Whether `path` is a folder, or an address that may be one: to ask takes a request, so what is named as
    a file is not asked, nor a repository, which is a checkpoint."""
    if isinstance(path, Address):
        return not path.suffix and not path.member and path.scheme not in (*WEB, HUB)
    return os.path.isdir(path)


def beside(folder: Location, name: str) -> Location:
    """The file that a text in `folder` calls `name`: an address, a path of its own, or one that begins there.

    Raises: as `located`.
    """
    found = located(name)
    if isinstance(folder, Path) or isinstance(found, Address) or found.is_absolute():
        return folder / found if isinstance(folder, Path) and isinstance(found, Path) else found
    for part in found.parts:
        folder = folder.parent if part == ".." else folder / part
    return folder


def _web(scheme: str, rest: str) -> Address:
    rest = rest.partition("#")[0]
    host, slash, key = rest.partition("/")
    if "?" in host:
        host, slash, key = host.partition("?")[0], "", "?" + host.partition("?")[2] + slash + key
    path, _, query = key.partition("?")
    user, _, host = host.rpartition("@")
    address = Address(scheme, host.lower(), path, query=query, user=user)
    if not host or not is_web(f"{scheme}://{host}"):
        raise UsageError("the address names no host", str(address), "for example https://host/model.pt")
    return address


def is_web(url: str) -> bool:
    """Whether `url` is the address of a web server, as far as its form says."""
    try:
        parts = urlsplit(url)
        return parts.scheme in WEB and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port, or of a bracket and what is in it
        return False


def _hub(rest: str) -> Address:
    match = _HUB.fullmatch(rest.rstrip("/"))
    if match is None:
        raise UsageError(
            "the address names no repository", f"hf://{rest}", "for example hf://OWNER/REPO/model.safetensors"
        )
    return Address(HUB, match["repo"], match["path"] or "", unquote(match["revision"] or ""))
