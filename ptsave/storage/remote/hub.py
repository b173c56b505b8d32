"""Repositories on the Hugging Face Hub, each read at one commit.

A file's first answer says which commit its branch is at, and for a large one where its bytes lie: on another
host, by a link that is signed for some minutes. The link is used until that host refuses it, then asked for
anew. The token goes to the Hub and to nobody else. What the Hub's cache on this disk has of that commit is
read there.

Source: https://huggingface.co/docs/hub/api; huggingface_hub: `file_download.py` (URLs, headers, cache),
`hf_api.py` (`model_info`, `list_repo_tree`), `utils/_http.py` (`hf_raise_for_status`: what errors mean).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from ptsave.core.address import Address, is_web
from ptsave.errors import MissingFileError, RefusedError, UnreadableError, UsageError
from ptsave.storage.remote.http import (
    MAX_REDIRECTS,
    Connections,
    answer_of,
    joined,
    json_of,
    range_headers,
    ranged,
    redirected,
    refuse_status,
    retry_after_s,
)
from ptsave.storage.remote.store import (
    Answer,
    Faulty,
    Listed,
    Passing,
    Store,
    Version,
    changed,
    library,
    no_access,
)

if TYPE_CHECKING:
    import urllib3

COMMIT = re.compile(r"[0-9a-f]{40}")
_LOG_IN = "log in (hf auth login) or set HF_TOKEN"
_RATE = re.compile(r'"\w+"\s*;\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,6})')
"""No requests left, and for how many seconds. Source: huggingface_hub, `parse_ratelimit_headers`."""


@dataclass
class _Link:
    """Where the bytes of one file are."""

    url: str
    """May be signed: never shown."""
    tag: str = ""
    """What the Hub says that the content is: its SHA-256, or its name in git."""
    size_bytes: int = -1
    """As the Hub says it; -1 where it does not."""
    etag: str = ""
    """That of the host which has the bytes, once it has answered."""


class HubStore(Store):
    """One repository."""

    def __init__(self, address: Address) -> None:
        """Raises: RefusedError without the library, or when a token that was promised is not to be had."""
        self.connections = Connections(address, "hf")
        no_endpoint = UsageError("is not a web address", "HF_ENDPOINT", "for example https://huggingface.co")
        with library(address, "hf"):
            try:
                import huggingface_hub
                from huggingface_hub import constants
            except ValueError:  # it takes the endpoint apart when it is imported
                raise no_endpoint from None
        self._library = huggingface_hub
        self.endpoint = constants.ENDPOINT
        if not is_web(self.endpoint):
            raise no_endpoint
        self.is_offline = constants.HF_HUB_OFFLINE
        kind, _, rest = address.host.partition("/")
        is_named = "/" in rest
        self.repo = rest if is_named else address.host
        self.kind = kind.removesuffix("s") if is_named else "model"
        try:
            huggingface_hub.hf_hub_url(self.repo, "model.safetensors")
        except ValueError:
            hint = "for example hf://OWNER/REPO/model.safetensors"
            raise UsageError("that is not the name of a repository", str(address), hint) from None
        self.token: str | None = None
        if not self.is_offline and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
            try:
                self.token = huggingface_hub.get_token()
            except Exception as error:  # of an exchange of tokens that the environment asks for
                what = f"the token for the Hub cannot be had ({type(error).__name__})"
                raise RefusedError(what, str(address), "see what `hf auth whoami` says") from None
        self._links: dict[Address, _Link] = {}
        self._absent: set[Address] = set()

    def pinned(self, address: Address, timeout_s: float) -> Address:
        """`address` at the commit that its branch is at. One request, which a file's bytes need anyway."""
        if not _is_plain(address.key):
            raise self._no_entry(address)
        if self.is_offline or COMMIT.fullmatch(address.revision):
            return address
        if address.key:
            one_byte = {"Range": "bytes=0-0"}
            url = self._resolve_url(address)
            response, link, commit = self._follow(address, url, one_byte, timeout_s, to_commit=True)
            response.close()
            if commit:
                pinned = address.at(commit)
                if response.status == 404:
                    self._absent.add(pinned)
                elif link is not None:
                    self._links[pinned] = link
                elif response.status not in (200, 206, 416):
                    self._refuse(address, response.status, response.headers)
                return pinned
            if response.status != 404 or response.headers.get("X-Error-Code") != "EntryNotFound":
                self._refuse(address, response.status, response.headers)
        return address.at(self.commit(address, timeout_s))

    def commit(self, address: Address, timeout_s: float) -> str:
        """The commit that the branch of `address` is at. One request. Raises: as `get`."""
        revision = quote(address.revision or "main", safe="")
        url = f"{self.endpoint}/api/{self.kind}s/{self.repo}/revision/{revision}?expand=sha"
        found, _ = self._json(address, url, timeout_s)
        commit = found.get("sha") if isinstance(found, dict) else None
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise Faulty("the Hub does not say which commit that is")
        return commit

    def local(self, address: Address) -> Path | None:
        """Its copy in the Hub's cache; offline that of the repository too, and nothing else."""
        hub, revision = self._library, address.revision or None
        if address.key:
            found = hub.try_to_load_from_cache(self.repo, address.key, revision=revision, repo_type=self.kind)
            if isinstance(found, str):
                return Path(found)
        if not self.is_offline:
            return None
        try:
            root = hub.snapshot_download(
                self.repo, revision=revision, repo_type=self.kind, local_files_only=True
            )
        except (OSError, ValueError):  # of which its LocalEntryNotFoundError is one
            root = ""
        if root and (path := Path(root, address.key)).exists():
            return path
        raise MissingFileError(
            "not in the Hub's cache on this machine, and HF_HUB_OFFLINE is set",
            str(address),
            f"unset HF_HUB_OFFLINE, or fetch it where there is a network: hf download {self.repo}",
        )

    def get(
        self, address: Address, begin: int, end: int, version: Version | None, timeout_s: float
    ) -> Answer:
        headers = range_headers(begin, end, None)  # a commit does not change
        if address in self._absent:
            raise self._no_entry(address)
        link = self._links.get(address)
        if link is not None:
            response, _, _ = self._follow(address, link.url, headers, timeout_s, link)
            if response.status not in (400, 401, 403, 404, 410):
                return self._answer(address, response, link, begin, version)
            response.close()  # the link's time is over
            self._links.pop(address, None)
        response, link, _ = self._follow(address, self._resolve_url(address), headers, timeout_s)
        if link is not None:
            self._links[address] = link
        return self._answer(address, response, link, begin, version)

    def _answer(
        self,
        address: Address,
        response: urllib3.BaseHTTPResponse,
        link: _Link | None,
        begin: int,
        version: Version | None,
    ) -> Answer:
        try:
            if link is None:
                self._refuse(address, response.status, response.headers)
            refuse_status(address, response.status, response.headers, version)
            found, first, end = ranged(address, response.status, response.headers, begin, version)
            tag = found.tag.removeprefix("W/")
            if link is not None and response.status in (200, 206):
                if tag and link.etag and tag != link.etag:
                    raise changed(address)
                if link.size_bytes >= 0 and found.size_bytes not in (-1, link.size_bytes):
                    raise Faulty(
                        f"the Hub says that it has {link.size_bytes} bytes, "
                        f"the host that it redirects to has {found.size_bytes}"
                    )
                link.etag = link.etag or tag
                tag = link.tag or tag
        except BaseException:
            response.close()
            raise
        return answer_of(response, Version(found.size_bytes, tag), first, end)

    def _follow(
        self,
        address: Address,
        url: str,
        headers: Mapping[str, str],
        timeout_s: float,
        link: _Link | None = None,
        to_commit: bool = False,
    ) -> tuple[urllib3.BaseHTTPResponse, _Link | None, str]:
        """The answer that redirections from `url`, which may be that of `link`, end at.

        With it: the link to it where another host has the bytes, and the commit as the Hub says it. With
        `to_commit` no further than to where that is known.

        Raises: Passing; UnreadableError.
        """
        commit = ""
        for _ in range(MAX_REDIRECTS + 1):
            response = self._request(address, url, headers, timeout_s)
            is_hub = self._is_hub(url)
            if is_hub:
                commit = commit or response.headers.get("X-Repo-Commit", "")
                commit = commit if COMMIT.fullmatch(commit) else ""
            target = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or target is None:
                return response, link, commit
            response.close()
            url = redirected(address, url, target)
            if is_hub and (not self._is_hub(url) or "X-Linked-Etag" in response.headers):
                link = _linked(url, response.headers)
                if to_commit and commit:
                    return response, link, commit
        raise UnreadableError(
            f"the Hub redirects more than {MAX_REDIRECTS} times", str(address), "check the address"
        )

    def list(self, address: Address, timeout_s: float) -> Iterator[Listed]:
        folder = address.key.rstrip("/")
        before = f"{folder}/" if folder else ""
        inside = f"/{quote(folder, safe='')}" if folder else ""
        url: str | None = (
            f"{self.endpoint}/api/{self.kind}s/{self.repo}/tree/{quote(address.revision, safe='')}{inside}"
            "?recursive=false&expand=false"
        )
        while url is not None:
            page, url = self._json(address, url, timeout_s)
            if not isinstance(page, list) or not all(isinstance(entry, dict) for entry in page):
                raise Faulty("the Hub's list of files is not one")
            for entry in page:
                path, size = entry.get("path"), entry.get("size")
                if isinstance(path, str) and path.startswith(before):
                    is_folder = entry.get("type") == "directory"
                    yield Listed(path.removeprefix(before), size if type(size) is int else 0, is_folder)

    def _json(self, address: Address, url: str, timeout_s: float) -> tuple[Any, str | None]:
        """What the Hub says of a repository, and the URL of the next page of it."""
        response, link, _ = self._follow(address, url, {}, timeout_s)
        if link is not None or response.status != 200:
            response.close()
            self._refuse(address, response.status, response.headers)
            raise Faulty("the Hub redirects a question to another host")
        found = json_of(response)
        following = re.search(r'<([^>]*)>\s*;\s*rel="?next"?', response.headers.get("Link", ""))
        if following is None:
            return found, None
        url = joined(url, following[1])
        if not self._is_hub(url):
            raise Faulty("the Hub's list goes on at another host")
        return found, url

    def _request(
        self, address: Address, url: str, headers: Mapping[str, str], timeout_s: float
    ) -> urllib3.BaseHTTPResponse:
        secret = {"Authorization": f"Bearer {self.token}"} if self.token and self._is_hub(url) else {}
        try:
            return self.connections.request("GET", url, {**headers, **secret}, timeout_s)
        except UnreadableError as error:
            error.where = str(address)
            raise

    def _resolve_url(self, address: Address) -> str:
        return self._library.hf_hub_url(
            self.repo,
            address.key,
            revision=address.revision or None,
            repo_type=self.kind,
            endpoint=self.endpoint,
        )

    def _is_hub(self, url: str) -> bool:
        """Whether `url` is on the Hub's own host, port and scheme: only that one is told who we are."""
        a, b = urlsplit(self.endpoint), urlsplit(url)
        return (a.scheme, a.netloc.lower()) == (b.scheme, b.netloc.lower())

    def _no_entry(self, address: Address) -> MissingFileError:
        at = f"@{address.revision}" if address.revision else ""
        return MissingFileError(
            "the repository has no such file at that commit",
            str(address),
            f"hf://{address.host}{at} is the repository, of which it may be another folder",
        )

    def _refuse(self, address: Address, status: int, headers: Mapping[str, str]) -> None:
        """Raise what an answer of the Hub other than success means.

        Source: huggingface_hub, `hf_raise_for_status`. The words of the answer are not shown.
        """
        code, said = headers.get("x-error-code", ""), headers.get("x-error-message", "")
        where, page = str(address), f"{self.endpoint}/{self._prefix}{self.repo}"
        if code == "RevisionNotFound":
            raise MissingFileError(
                "the repository has no such branch, tag or commit", where, f"see {page}/branches"
            )
        if code == "EntryNotFound":
            raise self._no_entry(address)
        if code == "GatedRepo":
            steps = "" if self.token else f", then {_LOG_IN}"
            raise no_access(address, "the repository is gated", f"accept its terms at {page}{steps}")
        if said == "Access to this resource is disabled.":
            raise no_access(address, "the Hub has disabled the repository", f"see {page}")
        if status == 401 and (said.startswith("Invalid credentials") or (self.token and not code)):
            raise no_access(
                address, "the Hub does not accept the token", "log in again (hf auth login), or set HF_TOKEN"
            )
        if code == "RepoNotFound" or status == 401:
            who = "a token with the right to read it" if self.token else _LOG_IN
            raise MissingFileError(
                "no such repository, or a private one", where, f"check the name; a private one: {who}"
            )
        if status == 403:
            raise no_access(
                address,
                "the token has no right to read it" if self.token else "the Hub refuses (403)",
                f"see {page}, and the token's rights at {self.endpoint}/settings/tokens",
            )
        if status == 429 and (rate := _RATE.search(headers.get("ratelimit", ""))):
            raise Passing("the Hub's limit of requests is reached", retry_after_s(headers) or float(rate[1]))
        refuse_status(address, status, headers)

    @property
    def _prefix(self) -> str:
        return "" if self.kind == "model" else f"{self.kind}s/"

    def close(self) -> None:
        self.connections.close()


def _linked(url: str, headers: Mapping[str, str]) -> _Link:
    size = headers.get("X-Linked-Size", "")
    return _Link(
        url,
        headers.get("X-Linked-Etag", "").removeprefix("W/"),
        int(size) if re.fullmatch(r"\d{1,18}", size) else -1,
    )


def _is_plain(key: str) -> bool:
    """Whether it leads to a place in the repository, and by no way around."""
    return not any(part in (".", "..") or "\\" in part for part in key.split("/"))
