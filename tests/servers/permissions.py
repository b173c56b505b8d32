"""What a store lets somebody do: what takes another right is refused, as the store itself refuses it.

    with store.server.faulty(only(store, "get")): ...

Source: Amazon S3 User Guide, "Required permissions for Amazon S3 API operations"; Cloud Storage, "IAM
permissions for JSON methods"; Azure, "Create a service SAS", "Permissions for a blob".
"""

from __future__ import annotations

from tests.servers.faults import s3_error, status
from tests.servers.serving import Answer, Fault, Handler, Request
from tests.servers.stores import Store

_REFUSALS = {
    "s3": s3_error(403, "AccessDenied"),
    "gs": status(403, b'{"error": {"code": 403}}', "application/json"),
    "az": status(403, b"", x_ms_error_code="AuthorizationPermissionMismatch"),
}


def only(store: Store, *rights: str) -> Fault:
    """Refuse all but what takes one of `rights`: `get`, `list`, `put`, `delete`.

    Who may not list is not told, either, that an object is missing, in Amazon's store and in Google's.
    """
    kind = store.address.partition(":")[0]
    refusal = _REFUSALS[kind]

    def fault(request: Request, handler: Handler) -> Answer:
        if right_of(kind, request) not in rights:
            return refusal(request, handler)
        answer = handler(request)
        is_hidden = answer.status == 404 and "list" not in rights and kind != "az"
        return refusal(request, handler) if is_hidden else answer

    return fault


def right_of(kind: str, request: Request) -> str:
    """Which right a request takes."""
    if request.method not in ("GET", "HEAD"):
        return "delete" if request.method == "DELETE" else "put"
    query = request.query
    lists = {
        "s3": "list-type" in query or "uploads" in query or "uploadId" in query,
        "az": query.get("comp") == "list",
        "gs": request.path.endswith("/o"),
    }
    return "list" if lists[kind] else "get"
