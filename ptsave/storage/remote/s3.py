"""Amazon S3, and what speaks its language (MinIO, Ceph, R2, …): reading.

Credentials, regions and endpoints are found as botocore finds them: AWS_PROFILE, AWS_ENDPOINT_URL, roles.

Source: Amazon S3 API Reference: GetObject, ListObjectsV2, "Error responses".
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ptsave.core.address import Address
from ptsave.errors import MissingFileError, PtsaveError, UnreadableError
from ptsave.storage.remote.http import answer_of, passes, range_headers, ranged, retry_after_s
from ptsave.storage.remote.pieces import NUM_REQUESTS
from ptsave.storage.remote.request import WAIT_S, timeout_s
from ptsave.storage.remote.store import (
    Answer,
    Faulty,
    Listed,
    Passing,
    Store,
    Unreachable,
    Unsatisfiable,
    Version,
    changed,
    forbidden,
    library,
    missing,
    no_access,
)

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

EXTRA = "s3"
_PASSING = frozenset(
    (
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "RequestTimeTooSkewed",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "503",
        "500",
    )
)
_WRONG_KEY = frozenset(("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"))
_RIGHTS = {
    "GetObject": "s3:GetObject (and s3:ListBucket: without it, what is not there is refused as well)",
    "HeadObject": "s3:GetObject (and s3:ListBucket: without it, what is not there is refused as well)",
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListParts": "s3:ListMultipartUploadParts",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
}
"""What each request takes; every other one `s3:PutObject`.

Source: Amazon S3 User Guide, "Required permissions for Amazon S3 API operations".
"""
_SAID = {
    "head_object": {"ETag", "LastModified"},
    "list_multipart_uploads": {"Bucket", "IsTruncated", "Uploads"},
    "list_objects_v2": {"Contents", "IsTruncated", "KeyCount", "Name"},
    "list_parts": {"Bucket", "IsTruncated", "Parts"},
    "create_multipart_upload": {"UploadId"},
    "complete_multipart_upload": {"ETag"},
    "put_object": {"ETag"},
    "upload_part": {"ETag"},
}
"""Of what an answer says one at least. A proxy's own page says none of it: it would be an empty list."""
_NOT_THE_STORE = "what answers is not the store: a proxy, or another server"
_HINT = "check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, …) and the bucket's rights"


class S3Store(Store):
    """One bucket."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._pid = 0
        self._client: Any = None

    @property
    def client(self) -> Any:
        """botocore's client, of this process. Raises: RefusedError without the library."""
        if self._pid != os.getpid():
            with library(self.address, EXTRA):
                import botocore.exceptions
            try:
                self._client = client_of(os.getpid(), _surroundings())
            except botocore.exceptions.BotoCoreError as error:
                raise failed(self.address, error) from None
            except ValueError:  # botocore's own check of it
                hint = "check AWS_ENDPOINT_URL, and endpoint_url in the AWS configuration"
                what = "what names the store's server is not a web address"
                raise UnreadableError(what, str(self.address), hint) from None
            self._pid = os.getpid()
        return self._client

    def get(
        self, address: Address, begin: int, end: int, version: Version | None, timeout_s: float
    ) -> Answer:
        asked = range_headers(begin, end, version)
        wanted = {"Bucket": address.host, "Key": address.key, "Range": asked["Range"]}
        if "If-Match" in asked:
            wanted["IfMatch"] = asked["If-Match"]
        if address.revision:
            wanted["VersionId"] = address.revision
        client = self.client
        from botocore.exceptions import ClientError

        try:
            found = ask(client, address, "get_object", **wanted)
        except ClientError as error:
            if _status(error) == 416 and not begin and version is None:
                return self._empty(address)
            raise refused(address, error, version) from None
        response = found["Body"]._raw_stream  # its own reading waits until all that is asked for has come
        status, headers = found["ResponseMetadata"]["HTTPStatusCode"], _lower(found["ResponseMetadata"])
        if "content-length" in headers:  # else a proxy may compress on the way
            headers.pop("content-encoding", None)  # of the object, whose bytes are those that were put
        try:
            if status == 200 and found.keys().isdisjoint(("ETag", "LastModified")):
                raise Faulty(_NOT_THE_STORE)
            return answer_of(response, *ranged(address, status, headers, begin, version))
        except BaseException:
            response.close()
            raise

    def _empty(self, address: Address) -> Answer:
        """The answer for an object of no bytes, of which there is no range."""
        about = self._ask(address, "head_object", Bucket=address.host, Key=address.key)
        version = version_of(about)
        if version.size_bytes:
            raise Unsatisfiable(version.size_bytes)
        return Answer(version, 0, 0, lambda _: b"", lambda: None)

    def list(self, address: Address, timeout_s: float) -> Iterator[Listed]:
        return listed(address, lambda **wanted: self._ask(address, "list_objects_v2", **wanted))

    def _ask(self, address: Address, operation: str, **wanted: Any) -> Mapping[str, Any]:
        client = self.client
        from botocore.exceptions import ClientError

        try:
            return ask(client, address, operation, **wanted)
        except ClientError as error:
            raise refused(address, error) from None


def ask(client: Any, address: Address, operation: str, **wanted: Any) -> Mapping[str, Any]:
    """What the store answers to one request.

    Raises: botocore's ClientError for an answer that is an error, see `refused`; Passing; Faulty when it is
    none that the request can have; UnreadableError.
    """
    from botocore.exceptions import BotoCoreError

    try:
        about: Mapping[str, Any] = getattr(client, operation)(**wanted)
    except BotoCoreError as error:
        raise failed(address, error) from None
    except (LookupError, ValueError, OverflowError):  # of botocore, where a name is missing, or is no number
        raise Faulty("the store's answer is not one") from None
    status = about["ResponseMetadata"]["HTTPStatusCode"]
    if status < 200:  # Python takes it for the answer, which would be the next request's then
        client.close()
        raise Passing(f"the server says {status} before its answer, which this client does not know")
    said = _SAID.get(operation)
    if said is not None and said.isdisjoint(about):
        raise Faulty(_NOT_THE_STORE)
    return about


def version_of(about: Mapping[str, Any]) -> Version:
    """The version of an object, from what is said of it. Raises: Faulty."""
    if "ContentLength" not in about:
        raise Faulty("the store does not say how long the object is")
    return Version(about["ContentLength"], about.get("ETag", ""))


def listed(address: Address, ask: Callable[..., Mapping[str, Any]]) -> Iterator[Listed]:
    """What is directly in the folder `address`. Raises: as `ask`, and Faulty."""
    prefix = f"{address.key.strip('/')}/" if address.key.strip("/") else ""
    wanted = {"Bucket": address.host, "Prefix": prefix, "Delimiter": "/"}
    for page in pages(ask, wanted, "ContinuationToken"):
        try:
            for one in page.get("Contents", ()):
                if name := one["Key"][len(prefix) :]:
                    yield Listed(name, one["Size"], tag=one.get("ETag", ""))
            for one in page.get("CommonPrefixes", ()):
                if name := one["Prefix"][len(prefix) : -1]:
                    yield Listed(name, 0, is_folder=True)
        except KeyError:
            raise Faulty("the store's list of objects is not one") from None


def pages(
    ask: Callable[..., Mapping[str, Any]], wanted: Mapping[str, str], *markers: str
) -> Iterator[Mapping[str, Any]]:
    """The pages of a list. Each says in its markers where the next begins.

    Raises: as `ask`, and Faulty where a page has a next one, and it is none or the page itself.
    """
    following: dict[str, str] = {}
    while True:
        page = ask(**wanted, **following)
        yield page
        if not page.get("IsTruncated"):
            return
        last, following = following, {name: page.get(f"Next{name}", "") for name in markers}
        if following == last or not any(following.values()):
            raise Faulty("the store's list does not come to its end")


def _surroundings() -> tuple[tuple[str, str], ...]:
    """What decides which client is made."""
    names = ("HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
    return tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_") or k in names))


@lru_cache(maxsize=4)
def client_of(pid: int, surroundings: tuple[tuple[str, str], ...]) -> Any:
    """A client of botocore that tries once: trying again is ours. Without credentials it signs nothing.

    It takes a quarter of a second to make, so a process keeps it while its environment stays the same.
    """
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    session = botocore.session.Session()
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    options: dict[str, Any] = {} if session.get_credentials() else {"signature_version": UNSIGNED}
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=15,
        read_timeout=min(WAIT_S, timeout_s()),
        max_pool_connections=NUM_REQUESTS,
        response_checksum_validation="when_required",
        **options,
    )
    client = session.create_client("s3", config=config)
    client.meta.events.register("before-call.s3.HeadBucket", _no_region)
    return client


def _no_region(**_: object) -> tuple[Any, Any]:
    """The answer to botocore's own question where a bucket is, which it asks when a redirect does not say so.

    A server that redirects everything redirects that, too, and botocore would ask again without an end.
    """
    return SimpleNamespace(status_code=200), {"ResponseMetadata": {"HTTPHeaders": {}}}


@lru_cache(maxsize=1)
def _loader(data_path: str | None) -> Any:
    """What reads botocore's descriptions of S3, and keeps them: most of the work of making a client."""
    from botocore.loaders import create_loader

    return create_loader(data_path)


def refused(address: Address, error: ClientError, version: Version | None = None) -> Exception:
    """What an answer that is an error means. Nothing of its text is shown but the code."""
    status, about = _status(error), error.response.get("ResponseMetadata", {})
    code = re.sub(r"\W", "", str(error.response.get("Error", {}).get("Code", "")))[:40] or str(status)
    if code in _PASSING or passes(status):
        return Passing(f"the store answers {status} {code}", retry_after_s(_lower(about)))
    if status == 412 and version is not None:
        return changed(address)
    if code == "NoSuchBucket":
        hint = "check the bucket's name, and AWS_ENDPOINT_URL"
        return MissingFileError("no such bucket", str(address), hint)
    if status == 404:
        return missing(address)
    if code in _WRONG_KEY or status in (401, 403):
        what = f"the store answers {status} {code}"
        if code in _WRONG_KEY or status == 401:
            return no_access(address, what, _HINT)
        return forbidden(address, what, _RIGHTS.get(error.operation_name, "s3:PutObject"), _HINT)
    return UnreadableError(f"the store answers {status} {code}", str(address), "check the address and region")


def failed(address: Address, error: BotoCoreError) -> Exception:
    """What an error of the library, or of the way to the store, means."""
    from botocore import exceptions as lib

    name = type(error).__name__
    if isinstance(error, lib.ParamValidationError):
        return UnreadableError("is not an address that S3 has", str(address), "check its bucket")
    if isinstance(error, lib.SSLError):
        hint = "check AWS_ENDPOINT_URL; AWS_CA_BUNDLE names the certificates to trust"
        return UnreadableError("the store's certificate is not accepted", str(address), hint)
    if isinstance(error, (lib.EndpointConnectionError, lib.ProxyConnectionError)):
        return Unreachable("no connection to the store")
    if isinstance(error, (lib.HTTPClientError, lib.ConnectionError)):
        return Passing(f"no answer from the store ({name})")
    if "Credential" in name or "Token" in name or "SSO" in name or name == "ProfileNotFound":
        return no_access(address, f"no credentials ({name})", _HINT)
    made: PtsaveError = UnreadableError(
        f"cannot ask the store ({name})", str(address), "check the address and the AWS configuration"
    )
    return made


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _lower(about: Mapping[str, Any]) -> dict[str, str]:
    return {name.lower(): text for name, text in about.get("HTTPHeaders", {}).items()}
