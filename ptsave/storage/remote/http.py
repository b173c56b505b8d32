"""Files on web servers. Reading only.

Source: RFC 9110 (HTTP semantics): sections 8.8.3 (ETag), 10.2.3 (Retry-After), 13.1.1 (If-Match), 14
(ranges), 15.4 (redirections).
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urljoin, urlsplit

from ptsave.core.address import Address, is_web
from ptsave.errors import UnreadableError
from ptsave.storage.remote.pieces import NUM_REQUESTS
from ptsave.storage.remote.store import (
    Answer,
    Faulty,
    Passing,
    Store,
    Unreachable,
    Unsatisfiable,
    Version,
    changed,
    library,
    missing,
    no_access,
)

if TYPE_CHECKING:
    import urllib3

MAX_REDIRECTS = 5
MAX_JSON_BYTES = 64 * 1024 * 1024
"""Cap on one answer about the objects in a store."""
CONNECT_S = 15.0
"""How long to wait for a connection, in seconds."""
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})", re.IGNORECASE)
_SECRET = frozenset(("authorization", "cookie", "proxy-authorization"))
_FAULTY = "the server or a proxy before it is faulty; download the file another way"


class Connections:
    """HTTP connections that are kept open, through a proxy where the environment names one."""

    def __init__(self, address: Address, extra: str = "http") -> None:
        """`extra`: what installs the library. Raises: RefusedError."""
        with library(address, extra):
            import urllib3
        self._urllib3 = urllib3
        self._pools: dict[tuple[int, str], urllib3.PoolManager] = {}
        """By process, since a fork must not share connections, and proxy."""
        self._lock = Lock()

    def pool(self, url: str) -> urllib3.PoolManager:
        """The connections that lead to `url`."""
        parts = urlsplit(url)
        proxies = urllib.request.getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
        if proxy and urllib.request.proxy_bypass(parts.hostname or ""):
            proxy = ""
        key = os.getpid(), proxy
        with self._lock:
            if key not in self._pools:
                lib = self._urllib3
                if not proxy:
                    self._pools[key] = lib.PoolManager(maxsize=NUM_REQUESTS)
                else:
                    user = urlsplit(proxy)
                    basic = f"{unquote(user.username or '')}:{unquote(user.password or '')}"
                    headers = lib.make_headers(proxy_basic_auth=basic) if user.username else None
                    self._pools[key] = lib.ProxyManager(proxy, maxsize=NUM_REQUESTS, proxy_headers=headers)
            return self._pools[key]

    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        timeout_s: float,
        body: Iterable[Any] = (),
    ) -> urllib3.BaseHTTPResponse:
        """One request, without its redirects; the answer's body is still to be read.

        `body`: the bytes that are sent, one after the other.

        Raises: Passing; UnreadableError without the URL, which may have a signature.
        """
        lib = self._urllib3.exceptions
        try:
            response = self.pool(url).request(
                method,
                url,
                body=body or None,
                headers={"Accept-Encoding": "identity", "User-Agent": "ptsave", **headers},
                timeout=self._urllib3.Timeout(connect=min(CONNECT_S, timeout_s), read=timeout_s),
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        except ValueError:  # of urllib, of urllib3, of a name that cannot be encoded
            hint = "check the address, and the variables that name a server or a proxy"
            raise UnreadableError(
                "it, or what names a server or a proxy, is not a web address", "", hint
            ) from None
        except (lib.HTTPError, OSError) as error:
            raise judged(error) from None
        if response.status < 200:  # Python takes it for the answer, which would be the next request's then
            response.close()
            what = f"the server says {response.status} before its answer, which this client does not know"
            raise Passing(what)
        return response

    def close(self) -> None:
        with self._lock:
            for pool in self._pools.values():
                pool.clear()


def judged(error: BaseException) -> Exception:
    """What a failed connection of urllib3 means."""
    import urllib3.exceptions as lib

    if isinstance(error, lib.SSLError):
        return UnreadableError(
            f"the server's certificate or encryption is not accepted ({_short(error)})",
            "",
            "check the address; SSL_CERT_FILE names the certificates to trust",
        )
    if isinstance(error, lib.ProxyError):
        return Unreachable("no connection to the proxy")
    if isinstance(error, lib.NameResolutionError):
        return Unreachable("the host's name is not known")
    if isinstance(error, lib.NewConnectionError):
        return Unreachable("no connection to the server")
    if isinstance(error, (lib.ConnectTimeoutError, lib.ReadTimeoutError)):
        return Passing("the server was silent for too long")
    return Passing(f"the connection broke off ({type(error).__name__})")


def answer_of(response: urllib3.BaseHTTPResponse, version: Version, begin: int, end: int) -> Answer:
    """The answer whose body `response` has."""
    import urllib3.exceptions as lib

    def read(most: int) -> bytes:
        try:
            return response.read1(most)
        except (lib.HTTPError, OSError, ValueError) as error:
            raise judged(error) from None

    def close() -> None:
        if getattr(response, "length_remaining", None) == 0:
            response.release_conn()
        else:
            response.close()

    return Answer(version, begin, end, read, close)


def json_of(response: urllib3.BaseHTTPResponse) -> Any:
    """The JSON that `response` has; closes it. Raises: Passing; Faulty."""
    answer = answer_of(response, Version(-1), 0, 0)
    try:
        text = bytearray()
        while data := answer.read(MAX_JSON_BYTES):
            text += data
            if len(text) > MAX_JSON_BYTES:
                raise Faulty("the server's answer does not end")
    finally:
        answer.close()
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Faulty("the server's answer is no JSON") from None


class HttpStore(Store):
    """Files on one web server."""

    has_folders = False

    def __init__(self, address: Address) -> None:
        self.connections = Connections(address)
        self._moved: dict[Address, str] = {}
        """Where an address was redirected to, which later requests ask first."""

    def get(
        self, address: Address, begin: int, end: int, version: Version | None, timeout_s: float
    ) -> Answer:
        headers = range_headers(begin, end, version)
        moved = self._moved.get(address)
        if moved is not None:
            response = self._request(address, moved, headers, timeout_s)
            if response.status in (200, 206, 412, 416) or passes(response.status):
                return self._answer(address, response, begin, version)
            response.close()  # such a link is often signed for some minutes only
            self._moved.pop(address, None)
        url = url_of(address)
        for _ in range(MAX_REDIRECTS + 1):
            response = self._request(address, url, headers, timeout_s)
            target = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or target is None:
                if url != url_of(address):
                    self._moved[address] = url
                return self._answer(address, response, begin, version)
            response.close()
            url = redirected(address, url, target)
        raise UnreadableError(
            f"the server redirects more than {MAX_REDIRECTS} times", str(address), "check the address"
        )

    def _request(
        self, address: Address, url: str, headers: Mapping[str, str], timeout_s: float
    ) -> urllib3.BaseHTTPResponse:
        secret = {"Authorization": basic(address)} if address.user and _is_same_place(address, url) else {}
        try:
            return self.connections.request("GET", url, {**headers, **secret}, timeout_s)
        except UnreadableError as error:
            error.where = str(address)
            raise

    def _answer(
        self, address: Address, response: urllib3.BaseHTTPResponse, begin: int, version: Version | None
    ) -> Answer:
        try:
            headers = {name.lower(): text for name, text in response.headers.items()}
            refuse_status(address, response.status, headers, version)
            found, first, end = ranged(address, response.status, headers, begin, version)
        except BaseException:
            response.close()
            raise
        return answer_of(response, found, first, end)

    def close(self) -> None:
        self.connections.close()


def range_headers(begin: int, end: int, version: Version | None) -> dict[str, str]:
    """What asks for a range, of `version` where it can be asked for."""
    headers = {"Range": f"bytes={begin}-{max(end - 1, begin)}"}
    if version is not None and version.can_be_asked_for:
        headers["If-Match"] = version.tag
    return headers


def ranged(
    address: Address, status: int, headers: Mapping[str, str], begin: int, version: Version | None
) -> tuple[Version, int, int]:
    """The version, first byte and byte after the last of an answer, from its status and headers.

    `status` is 200, 206 or 416; `headers` have their names in lower case.

    Raises: ChangedError; Unsatisfiable; Faulty.
    """
    tag, modified = headers.get("etag", ""), headers.get("last-modified", "")
    if headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise Faulty("the server compresses the file though asked not to")
    length = headers.get("content-length", "")
    stated = int(length) if re.fullmatch(r"\d{1,18}", length) else -1
    if length and stated < 0:
        raise Faulty("the server says a length that is none")
    if status == 416:
        match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        if match is not None and match[1] is None and begin >= int(match[3]):
            found = Version(int(match[3]), tag, modified)
            if version is not None or begin:
                raise changed(address)
            return found, 0, 0
        raise Unsatisfiable(int(match[3]) if match is not None and match[1] is None else -1)
    if status == 200:
        return Version(stated, tag, modified), 0, max(stated, 0)
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if match is None or match[1] is None:
        raise Faulty("the server does not say which part of the file it answers with")
    first, end, size = int(match[1]), int(match[2]) + 1, int(match[3])
    if stated not in (-1, end - first):
        raise Faulty(f"the server answers with {stated} bytes, and says that they are {end - first}")
    return Version(size, tag, modified), first, end


def refuse_status(
    address: Address, status: int, headers: Mapping[str, str], version: Version | None = None
) -> None:
    """Raise what a status other than success means. The body is not shown: it is the server's to choose."""
    if status in (200, 206, 416):
        return
    if passes(status):
        raise Passing(f"the server answers {status}", retry_after_s(headers))
    if status == 412 and version is not None:
        raise changed(address)
    if status in (404, 410):
        raise missing(address)
    if status == 401:
        raise no_access(address, "the server asks who you are (401)", "put USER:PASSWORD@ before the host")
    if status in (403, 407):
        raise no_access(
            address, f"the server refuses ({status})", "check your rights; a signed link may have expired"
        )
    raise UnreadableError(f"the server answers {status}", str(address), "check the address")


def passes(status: int) -> bool:
    """Whether what keeps a server from answering may be over soon; what it does not know stays unknown."""
    return status in (408, 425, 429) or (status >= 500 and status not in (501, 505))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """When the server asks to be tried again, in seconds; None where it does not say."""
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def url_of(address: Address) -> str:
    """The URL to ask; it may hold a signature, and is never shown."""
    path = quote(address.key, safe="/%:=&+$,;@!~*'()[]")  # what is quoted already stays
    return f"{address.scheme}://{address.host}/{path}{'?' if address.query else ''}{address.query}"


def basic(address: Address) -> str:
    """The header that says who the user is. Source: RFC 7617."""
    return f"Basic {b64encode(unquote(address.user).encode()).decode()}"


def _is_same_place(address: Address, url: str) -> bool:
    """Whether `url` is on the address's own host, port and scheme: only that one is told who we are."""
    a, b = urlsplit(url_of(address)), urlsplit(url)
    return (a.scheme, a.netloc.lower()) == (b.scheme, b.netloc.lower())


def redirected(address: Address, url: str, target: str) -> str:
    """Where `target` leads from `url`.

    Raises: UnreadableError for what is no web address, and from https to http.
    """
    found = joined(url, target)
    parts = urlsplit(found)
    if not found:
        raise UnreadableError("the server redirects to no web address", str(address), _FAULTY)
    if urlsplit(url).scheme == "https" and parts.scheme == "http":
        raise UnreadableError(
            "the server redirects from https to http, where anyone on the way can read and change the file",
            str(address),
            "ask for the address that it leads to yourself, if you trust the network",
        )
    netloc = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=netloc, fragment="").geturl()


def joined(url: str, target: str) -> str:
    """The web address that a server means by `target` in an answer from `url`; empty where it is none."""
    try:
        found = urljoin(url, target)
    except ValueError:
        return ""
    return found if is_web(found) else ""


def _short(error: BaseException) -> str:
    """The kind of an error, without its text, in which there may be a URL."""
    return type(error.__cause__ or next(iter(error.args), error)).__name__
