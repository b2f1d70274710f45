"""Reading Metaflow's remote datastores, by Metaflow's own clients, with bounded retries.

Metaflow itself retries for hours without saying why. Here the client library retries a few times
what may succeed; then, or when it cannot, an error says why. The client libraries are optional
and differ, so their exceptions are recognised by class names and status codes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mfimage.errors import StorageError
from mfimage.package.storage.buckets import require_libraries
from mfimage.package.storage.cache import reported
from mfimage.package.storage.objects import CREDENTIALS, NETWORK, rejected, without_secrets

# Seconds until a connection must stand, and between two pieces of a response.
_CONNECT, _READ = 5, 30
_NEEDED = {
    "s3": {"boto3": "boto3"},
    "gs": {"google.cloud.storage": "google-cloud-storage", "google.auth": "google-auth"},
    "azure": {"azure.storage.blob": "azure-storage-blob", "azure.identity": "azure-identity"},
}
_LIBRARIES = {
    *("azure", "boto3", "botocore", "builtins", "google", "http", "metaflow", "requests"),
    *("requests_oauthlib", "s3transfer", "socket", "ssl", "urllib3"),
}
# Parts of class names.
_NO_CREDENTIALS = re.compile(r"Credential|Authentication|Token|Profile|SSO|RefreshError")
_BROKEN_RESPONSES = 2


@dataclass(frozen=True, kw_only=True)
class _Fault:
    """What went wrong, without any credential; the next step; whether nothing is there."""

    message: str
    hint: str | None = None
    missing: bool = False


def require_datastore(kind: str) -> None:
    """Raise ``StorageError`` when a datastore's client library is not installed."""
    require_libraries(kind, _NEEDED.get(kind, {}))


def make_patient(storage: Any, kind: str, root: str) -> None:
    """Give Metaflow's storage a client that does not retry for hours."""
    if kind == "s3":
        storage.s3_client = _Client(root.partition("://")[2].partition("/")[0])


@contextlib.contextmanager
def reading(kind: str, root: str) -> Iterator[None]:
    """Raise ``StorageError`` for what a datastore's client raises; report long waits."""
    if kind not in _NEEDED:
        yield
        return
    with reported(f"reading from the datastore {root}"):
        try:
            yield
        except Exception as error:
            fault = _fault_of(error, kind, root)
            if fault is None:
                raise
            message = f"cannot read from the datastore {root}: {fault.message}"
            raise StorageError(message, hint=fault.hint) from error


def _fault_of(error: Exception, kind: str, root: str) -> _Fault | None:
    from metaflow.datastore.exceptions import DataException

    if isinstance(error, DataException):  # the store answers; what is in it is wrong
        return None
    found: _Fault | None = getattr(error, "mfimage_fault", None)
    bucket = root.partition("://")[2] or root
    return found or _find_fault(error, scheme=kind, bucket=bucket.partition("/")[0])


class _Client:
    """Takes the place of Metaflow's ``S3Client``."""

    def __init__(self, bucket: str) -> None:
        self._bucket = bucket
        self._client = _s3_client()
        self._broken = 0

    @property
    def client(self) -> Any:
        return self

    @property
    def error(self) -> Any:
        return self._client.exceptions.ClientError

    def reset_client(self) -> None:
        """Count responses that broke off: Metaflow calls this for what no call raised."""
        self._broken += 1
        if self._broken > _BROKEN_RESPONSES:
            raise _end(_Fault(message="the responses break off"))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except Exception as error:
                fault = _find_fault(error, scheme="s3", bucket=self._bucket)
                if fault is None or fault.missing:
                    raise
                raise _end(fault) from error

        return call


def _end(fault: _Fault) -> Exception:
    """Return an exception that Metaflow takes for its own, and does not retry."""
    from metaflow.exception import MetaflowException

    error = MetaflowException(fault.message)
    # Not a class of our own: its base is Metaflow's, which is imported only where it is used.
    error.mfimage_fault = fault  # type: ignore[attr-defined]
    return error


def _s3_client() -> Any:
    """Return a client as Metaflow configures it, with bounded time and retries."""
    from botocore.config import Config
    from metaflow.metaflow_config import DATATOOLS_CLIENT_PARAMS
    from metaflow.metaflow_config_funcs import from_conf
    from metaflow.plugins.datatools.s3.s3 import S3Client

    retries = from_conf("S3_CLIENT_RETRY_CONFIG", {"mode": "standard", "total_max_attempts": 3})
    config = Config(
        retries=retries, connect_timeout=_CONNECT, read_timeout=_READ, max_pool_connections=64
    )
    # Metaflow puts its own retries into its copy when it uses it.
    given = from_conf("DATATOOLS_CLIENT_PARAMS", {}).get("config")
    if given:
        config = config.merge(given if isinstance(given, Config) else Config(**given))
    endpoint = from_conf("S3_ENDPOINT_URL")
    params = {"endpoint_url": endpoint} if endpoint else {}
    params |= {**DATATOOLS_CLIENT_PARAMS, "config": config}
    return S3Client(s3_client_params=params).client


def _find_fault(error: Exception, *, scheme: str, bucket: str) -> _Fault | None:
    """Return what an exception means; None for one that no client library raises."""
    error = _innermost(error)
    if type(error).__module__.partition(".")[0] not in _LIBRARIES:
        return None
    status, code = _status(error)
    if status is not None:
        return _answered(error, status, code, scheme, bucket)
    return _unanswered(error, scheme)


def _innermost(error: Exception) -> Exception:
    """Return what a retrying or translating layer wrapped."""
    while True:
        inner = getattr(error, "last_exception", None) or getattr(error, "_cause", None)
        if inner is None and type(error).__name__ == "MetaflowInternalError":
            inner = error.__context__
        if inner is None and type(error).__name__ in ("ConnectionError", "MaxRetryError"):
            inner = getattr(error, "reason", None) or next(iter(error.args), None)
        if not isinstance(inner, Exception):
            return error
        error = inner


def _status(error: Any) -> tuple[int | None, str]:
    """Return the HTTP status and the service's own code, if there was a response."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return _number(status), str(response.get("Error", {}).get("Code", ""))
    for status in (getattr(error, "status_code", None), getattr(error, "code", None)):
        if _number(status) is not None:
            code = getattr(error, "error_code", None)
            return _number(status), str(getattr(code, "value", code) or "")
    return None, ""


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, int) and value >= 300 else None


def _answered(error: Exception, status: int, code: str, scheme: str, bucket: str) -> _Fault:
    if status == 404 and "bucket does not exist" in str(error):  # as Google says it
        code = "NoSuchBucket"
    message, hint = rejected(status, code, _text(error), scheme=scheme, bucket=bucket)
    return _Fault(missing=not message, message=message, hint=hint)


def _unanswered(error: Exception, scheme: str) -> _Fault:
    name = type(error).__name__
    if "SSLError" in name or "CertificateError" in name:
        return _Fault(message=_text(error), hint="name the CA with AWS_CA_BUNDLE")
    if isinstance(error, OSError) and type(error).__module__ == "builtins" and not _is_net(error):
        place = error.filename or "this machine"
        message = f"{place}: {error.strerror or error}"
        return _Fault(message=message, hint="free some space, or set MFIMAGE_CACHE")
    if _NO_CREDENTIALS.search(name):
        message = f"there are no usable credentials: {_text(error)}"
        return _Fault(message=message, hint=CREDENTIALS[scheme])
    return _Fault(message=_text(error), hint=NETWORK[scheme])


def _is_net(error: OSError) -> bool:
    return isinstance(error, ConnectionError | TimeoutError)


def _text(error: Exception) -> str:
    return " ".join(without_secrets(str(error)).split())[:300] or type(error).__name__
