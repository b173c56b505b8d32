"""Azure's blobs: reading. `az://CONTAINER/KEY`.

The account and who you are come from the variables of Azure's own tools: AZURE_STORAGE_CONNECTION_STRING, or
AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN; else from azure-identity where that
is installed (`az login`, a machine's own); without any, what is public is read.

Source: https://learn.microsoft.com/rest/api/storageservices/get-blob; Azure CLI, "Azure CLI configuration".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from ptsave.core.address import Address
from ptsave.errors import UsageError
from ptsave.storage.remote.http import refuse_status
from ptsave.storage.remote.pieces import PIECE_BYTES
from ptsave.storage.remote.store import (
    Answer,
    Faulty,
    Listed,
    Passing,
    Store,
    Unreachable,
    Version,
    changed,
    forbidden,
    library,
    missing,
    no_access,
)

EXTRA = "azure"
CONNECT_S = 15.0
"""How long to wait for a connection, in seconds."""
_HINT = (
    "check AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT and its key, and the container's rights"
)

_FORBIDDEN = frozenset(
    ("AuthorizationFailure", "AuthorizationPermissionMismatch", "AuthorizationResourceTypeMismatch")
)
"""What an answer says to somebody whom it knows."""


class AzureStore(Store):
    """One container."""

    def __init__(self, address: Address) -> None:
        """Raises: RefusedError without the library; UsageError when no account is named."""
        with library(address, EXTRA):
            import azure.core.exceptions
            import azure.storage.blob
        self._errors = azure.core.exceptions
        self._match = azure.core.MatchConditions.IfNotModified
        self.container = self._client(address, azure.storage.blob.ContainerClient)

    def _client(self, address: Address, kind: Any) -> Any:
        """A client that tries once, and asks for a piece at a time: the rest is ours."""
        named = {k.removeprefix("AZURE_STORAGE_"): v for k, v in os.environ.items() if v}
        options = {"retry_total": 0, "max_single_get_size": 2 * PIECE_BYTES}
        try:
            if text := named.get("CONNECTION_STRING"):
                return kind.from_connection_string(text, address.host, **options)
            account = named.get("ACCOUNT") or named.get("ACCOUNT_NAME")
            if not account:
                raise UsageError(
                    "which storage account is meant is not said",
                    str(address),
                    "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT",
                )
            url = named.get("SERVICE_ENDPOINT") or f"https://{account}.blob.core.windows.net"
            key = named.get("KEY") or named.get("ACCOUNT_KEY")
            who: Any = named.get("SAS_TOKEN")
            if key:
                who = {"account_name": account, "account_key": key}
            return kind(url, address.host, credential=who or _identity(), **options)
        except ValueError:  # its text shows the connection string or the key
            raise UsageError(
                "the account's settings are not as Azure writes them", str(address), _HINT
            ) from None

    def get(
        self, address: Address, begin: int, end: int, version: Version | None, timeout_s: float
    ) -> Answer:
        blob = self.container.get_blob_client(address.key)
        pinned = {} if version is None else {"etag": version.tag, "match_condition": self._match}
        try:
            found = blob.download_blob(
                begin,
                max(end - begin, 1),
                max_concurrency=1,
                decompress=False,
                read_timeout=timeout_s,
                connection_timeout=min(CONNECT_S, timeout_s),
                **pinned,
            )
            data = found.readall()
        except Exception as error:
            if getattr(error, "status_code", 0) == 416 and not begin and version is None:
                return self._empty(address, blob)
            raise self.failed(address, error, version) from None
        whole = str(found.properties.content_range).rpartition("/")[2]
        size = int(whole) if whole.isdigit() else len(data)
        return Answer(
            Version(size, str(found.properties.etag)),
            begin if data else 0,
            begin + len(data) if data else 0,
            BytesIO(data).read,
            lambda: None,
        )

    def _empty(self, address: Address, blob: Any) -> Answer:
        """The answer for an object of no bytes, of which there is no range."""
        try:
            about = blob.get_blob_properties()
        except Exception as error:
            raise self.failed(address, error) from None
        if about.size:
            raise Faulty("the store refuses the range that it was asked for")
        return Answer(Version(0, str(about.etag)), 0, 0, lambda _: b"", lambda: None)

    def list(self, address: Address, timeout_s: float) -> Iterator[Listed]:
        prefix = f"{address.key.rstrip('/')}/" if address.key.strip("/") else ""
        try:
            for one in self.container.walk_blobs(name_starts_with=prefix, read_timeout=timeout_s):
                is_folder = one.name.endswith("/")
                if name := one.name[len(prefix) :].removesuffix("/"):
                    if is_folder:
                        yield Listed(name, 0, is_folder=True)
                    else:
                        yield Listed(name, one.size, tag=tag_of(one.etag))
        except Exception as error:
            raise self.failed(address, error, right="list (l)") from None

    def failed(
        self,
        address: Address,
        error: Exception,
        version: Version | None = None,
        right: str = "read (r)",
    ) -> Exception:
        """What an error of the library means. Its text may show an address that is signed.

        `right`: what was asked for takes it, a letter of a SAS token among its words.
        """
        lib, name = self._errors, type(error).__name__
        if not isinstance(error, (lib.AzureError, OSError)):
            return error
        if "Credential" in name:
            return no_access(address, f"no credentials ({name})", _HINT)
        status = getattr(error, "status_code", 0)
        if isinstance(error, lib.ServiceRequestError) and not isinstance(
            error, lib.ServiceRequestTimeoutError
        ):
            return Unreachable("no connection to the store")
        if not status or isinstance(error, lib.DecodeError):
            return Passing(f"no whole answer from the store ({name})")
        if status == 412 and version is not None:
            return changed(address)
        code = code_of(error) or str(status)
        if status == 404:
            return missing(address, f"the store says {code}: check the container and the key")
        if status == 403 and code in _FORBIDDEN:
            return forbidden(address, f"the store answers {code}", f"the right to {right}", _HINT)
        if status in (401, 403):
            return no_access(address, f"the store answers {code}", _HINT)
        response = getattr(error, "response", None)
        headers = {} if response is None else {key.lower(): text for key, text in response.headers.items()}
        try:
            refuse_status(address, status, headers)
        except Exception as judged:
            return judged
        return Faulty(f"the store answers {code}")


def tag_of(etag: Any) -> str:
    """An ETag as headers have it: lists leave its quotes out."""
    text = str(etag)
    return text if text.endswith('"') else f'"{text}"'


def code_of(error: Exception) -> str:
    """The store's word for what went wrong; empty where it says none."""
    code = getattr(error, "error_code", "")
    return re.sub(r"\W", "", str(getattr(code, "value", code) or ""))[:40]


def _identity() -> Any:
    """What azure-identity finds; None where it is not installed."""
    try:
        from azure.identity import DefaultAzureCredential
    except ModuleNotFoundError:
        return None
    return DefaultAzureCredential()
