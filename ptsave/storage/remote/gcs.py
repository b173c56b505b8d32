"""Google Cloud Storage: reading.

Credentials are found as Google's own tools find them (GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth
application-default login`, a machine's own); without any, what is public is read. STORAGE_EMULATOR_HOST names
another server. Its client library is not used: that asks for an object's size by itself, and gives no part of
a body before all of it has come.

Source: Cloud Storage JSON API v1: Objects get and list; https://cloud.google.com/storage/docs/request-preconditions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from ptsave.core.address import Address
from ptsave.errors import MissingFileError, PtsaveError, UnreadableError
from ptsave.storage.remote.http import (
    Connections,
    answer_of,
    json_of,
    range_headers,
    ranged,
    refuse_status,
)
from ptsave.storage.remote.store import (
    Answer,
    Faulty,
    Listed,
    Passing,
    Store,
    Version,
    forbidden,
    library,
    missing,
    no_access,
)

if TYPE_CHECKING:
    import urllib3

EXTRA = "gcs"
ENDPOINT = "https://storage.googleapis.com"
EMULATOR = "STORAGE_EMULATOR_HOST"
PARTS = ".ptsave-parts"
"""The folder in which what ptsave sends lies until it is whole. It is in no list."""
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_"
_LOG_IN = "log in (gcloud auth application-default login) or set GOOGLE_APPLICATION_CREDENTIALS"


class GcsStore(Store):
    """One bucket."""

    def __init__(self, address: Address, *, writes: bool = False) -> None:
        """`writes`: whether more than reading is asked for. Raises: RefusedError without the library."""
        self.connections = Connections(address, EXTRA)
        with library(address, EXTRA):
            import google.auth.exceptions
        self._errors = google.auth.exceptions
        self._asking = _asking(self.connections)
        emulator = os.environ.get(EMULATOR, "")
        self.endpoint = emulator if "://" in emulator else f"http://{emulator}"
        self._credentials: Any = None
        if not emulator:
            self.endpoint = ENDPOINT
            try:
                self._credentials = _found_credentials(os.getpid(), _surroundings(), writes=writes)
            except self._errors.GoogleAuthError as error:
                raise self._no_credentials(address, error) from None

    def get(
        self, address: Address, begin: int, end: int, version: Version | None, timeout_s: float
    ) -> Answer:
        wanted = {"alt": "media"}
        if address.revision:
            wanted["generation"] = address.revision
        if version is not None:
            wanted["ifGenerationMatch"] = version.tag
        path = f"/download{path_of(address)}"
        response = self.request(address, path, wanted, range_headers(begin, end, None), timeout_s)
        if response.status == 416 and not begin and version is None:  # no bytes, of which there is no range
            response.close()
            response = self.request(address, path, wanted, {}, timeout_s)
        try:
            self.refuse(address, response.status, response.headers, version)
            found, first, stop = ranged(address, response.status, response.headers, begin, version)
            tag = response.headers.get("x-goog-generation", "")
            if not tag:
                raise Faulty("the server does not say which generation it answers with")
        except BaseException:
            response.close()
            raise
        return answer_of(response, Version(found.size_bytes, tag), first, stop)

    def list(self, address: Address, timeout_s: float) -> Iterator[Listed]:
        prefix = f"{address.key.rstrip('/')}/" if address.key.strip("/") else ""
        wanted = {
            "prefix": prefix,
            "delimiter": "/",
            "fields": "items(name,size,generation),prefixes,nextPageToken",
            "maxResults": "1000",
        }
        while True:
            path = path_of(replace(address, key=""))
            response = self.request(address, path, wanted, {}, timeout_s)
            if response.status != 200:
                response.close()
                if response.status == 404:
                    raise no_bucket(address)
                self.refuse(address, response.status, response.headers, right="list")
            page = json_of(response)
            try:
                for one in page.get("items", ()):
                    if name := str(one["name"])[len(prefix) :]:
                        yield Listed(name, int(one["size"]), tag=str(one.get("generation", "")))
                for text in page.get("prefixes", ()):
                    name = str(text)[len(prefix) : -1]
                    if name and name != PARTS:
                        yield Listed(name, 0, is_folder=True)
                following = page.get("nextPageToken")
            except (AttributeError, KeyError, TypeError, ValueError):
                raise Faulty("the store's list of objects is not one") from None
            if not following:
                return
            wanted["pageToken"] = str(following)

    def request(
        self,
        address: Address,
        path: str,
        wanted: Mapping[str, str],
        headers: Mapping[str, str],
        timeout_s: float,
        method: str = "GET",
        body: Sequence[bytes | bytearray] = (),
    ) -> urllib3.BaseHTTPResponse:
        """The answer to a question, asked again with a fresh token where the old one is not taken.

        Raises: Passing; UnreadableError.
        """
        url = f"{self.endpoint}{path}?{urlencode(wanted)}"
        for is_last in (False, True):
            own = dict(headers)
            try:
                if self._credentials is not None:
                    self._credentials.before_request(self._asking, method, url, own)
                response = self.connections.request(method, url, own, timeout_s, body)
                if response.status != 401 or self._credentials is None or is_last:
                    break
                response.close()
                self._credentials.refresh(self._asking)
            except self._errors.TransportError:
                raise Passing("no answer from where the credentials come from") from None
            except self._errors.GoogleAuthError as error:
                raise self._no_credentials(address, error) from None
            except UnreadableError as error:
                error.where = str(address)
                raise
        return response

    def refuse(
        self,
        address: Address,
        status: int,
        headers: Mapping[str, str],
        version: Version | None = None,
        right: str = "get",
    ) -> None:
        """Raise what a status other than success means. `right`: what was asked for takes it."""
        if status == 404:
            raise missing(address, "check the bucket and the key")
        if status in (401, 403):
            who = "you may not read it" if self._credentials else "it is not public, and nobody is logged in"
            hint = "check the bucket's rights, or log in as another" if self._credentials else _LOG_IN
            if status == 401:
                raise no_access(address, f"{who} ({status})", hint)
            raise forbidden(address, f"{who} ({status})", f"storage.objects.{right}", hint)
        refuse_status(address, status, headers, version)

    def _no_credentials(self, address: Address, error: Exception) -> PtsaveError:
        """The error for credentials that do not work; their own text may show them."""
        return no_access(address, f"the credentials do not work ({type(error).__name__})", _LOG_IN)

    def close(self) -> None:
        self.connections.close()


def no_bucket(address: Address) -> MissingFileError:
    """The error for a bucket that is not there."""
    return MissingFileError("no such bucket", str(address), "check the bucket's name")


def path_of(address: Address) -> str:
    """The path of an object; of its bucket's objects where the address names none."""
    key = f"/{quote(address.key, safe='')}" if address.key else ""
    return f"/storage/v1/b/{quote(address.host, safe='')}/o{key}"


class _Http:
    """urllib3's connections as google-auth wants them."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def request(self, method: str, url: str, **options: Any) -> urllib3.BaseHTTPResponse:
        return self._connections.pool(url).request(method, url, **options)


def _asking(connections: Connections) -> Any:
    """What google-auth gets tokens by."""
    from google.auth.transport import urllib3 as transport

    request: Any = transport.Request
    return request(_Http(connections))


def _surroundings() -> tuple[tuple[str, str], ...]:
    """What decides which credentials are found."""
    return tuple(
        sorted(
            (name, text)
            for name, text in os.environ.items()
            if name.startswith(("GOOGLE_", "CLOUDSDK_", "GCE_", "NO_GCE")) or name in ("HOME", "APPDATA")
        )
    )


@lru_cache(maxsize=4)
def _found_credentials(pid: int, surroundings: tuple[tuple[str, str], ...], *, writes: bool) -> Any:
    """Those that are found; None without any. To look for a machine's own may take seconds: kept."""
    import google.auth
    import google.auth.exceptions

    asking = _asking(Connections(Address("gs", "", ""), EXTRA))
    try:
        scope = f"{_SCOPE}{'write' if writes else 'only'}"
        found, _ = google.auth.default(scopes=[scope], request=asking)
    except google.auth.exceptions.DefaultCredentialsError:
        if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
            raise
        return None
    return found
