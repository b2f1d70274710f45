"""What went wrong at an object store, told from what its client library raised.

The libraries are optional and differ, so that errors are known by their names and status codes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["missing", "transient", "final"]

_LIBRARIES = {
    *("azure", "boto3", "botocore", "builtins", "google", "http", "metaflow", "requests"),
    *("requests_oauthlib", "s3transfer", "socket", "ssl", "urllib3"),
}
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "azure": "run `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET",
}
_ENDPOINT = {
    "s3": "check the network and METAFLOW_S3_ENDPOINT_URL",
    "gs": "check the network",
    "azure": "check the network and METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT",
}
# Parts of class names.
_NO_CREDENTIALS = re.compile(r"Credential|Authentication|Token|Profile|SSO|RefreshError")
_UNREACHABLE = re.compile(
    r"Connection|Timeout|HTTPClientError|HTTPError|Incomplete|ProtocolError|RequestException"
    r"|ResponseParserError|ResponseStreaming|RetryError|ServiceRe(quest|sponse)Error|Transport"
    r"|Checksum|DataCorruption|gaierror"
)
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_REFUSED_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_TRANSIENT_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException"}
# A password in an endpoint's URL; what is signed or secret in a query.
_SECRET = re.compile(r"(?<=://)[^/@\s'\"]+@|(?<=\?)[^\s'\"<>]+")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What went wrong.

    Attributes
    ----------
    kind : {"missing", "transient", "final"}
        Nothing is there; it may go well another time; it will not.
    message : str
        In a few words, without any credential.
    hint : str, optional
        The next step.
    """

    kind: Kind
    message: str
    hint: str | None = None


def find_fault(error: Exception, *, scheme: str, bucket: str) -> Fault | None:
    """Tell what an exception means; None for one that no client library raises.

    Parameters
    ----------
    error : Exception
        What was raised.
    scheme : {"s3", "gs", "azure"}
        Where.
    bucket : str
        The bucket or container.
    """
    error = _innermost(error)
    if type(error).__module__.partition(".")[0] not in _LIBRARIES:
        return None
    status, code = _status(error)
    if status is not None:
        return _answered(error, status, code, scheme, bucket)
    return _unanswered(error, scheme)


def without_secrets(text: str) -> str:
    """Return text without the passwords and signatures of the URLs in it."""
    return _SECRET.sub("***", text)


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
    """Return the HTTP status and the service's own code, if there was an answer."""
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


def _answered(error: Exception, status: int, code: str, scheme: str, bucket: str) -> Fault:
    answer = f"{status} {code}".strip()
    if code in _NO_BUCKET or (status == 404 and "bucket does not exist" in str(error)):
        kind = "container" if scheme == "azure" else "bucket"
        return Fault(
            kind="final",
            message=f"there is no {kind} {bucket!r}",
            hint=f"create it, or correct the URL; {_ENDPOINT[scheme]}",
        )
    if status == 404 and (code != "404" or getattr(error, "operation_name", "") == "HeadObject"):
        return Fault(kind="missing", message=f"nothing is there; is there a {bucket!r}?")
    if status == 401 or code in _REFUSED_KEYS:
        message = f"the credentials were refused ({answer})"
        return Fault(kind="final", message=message, hint=_CREDENTIALS[scheme])
    if status == 403:
        return Fault(
            kind="final",
            message=f"access was denied ({answer})",
            hint=f"ask for the right to list, read and write {bucket!r}, or {_CREDENTIALS[scheme]}",
        )
    if status >= 500 or status in (408, 429) or code in _TRANSIENT_CODES:
        message = f"the server answered {answer}"
        return Fault(kind="transient", message=message, hint="try again later")
    message = f"the server answered {answer}: {_text(error)}"
    return Fault(kind="final", message=message, hint=_ENDPOINT[scheme])


def _unanswered(error: Exception, scheme: str) -> Fault:
    names = " ".join(kind.__name__ for kind in type(error).__mro__)
    name = type(error).__name__
    if "SSLError" in name or "CertificateError" in name:
        return Fault(kind="final", message=_text(error), hint="name the CA with AWS_CA_BUNDLE")
    if isinstance(error, OSError) and type(error).__module__ == "builtins" and not _is_net(error):
        place = error.filename or "this machine"
        message = f"{place}: {error.strerror or error}"
        return Fault(kind="final", message=message, hint="free some space, or set MFIMAGE_CACHE")
    if _NO_CREDENTIALS.search(name):
        message = f"there are no usable credentials: {_text(error)}"
        return Fault(kind="final", message=message, hint=_CREDENTIALS[scheme])
    if _UNREACHABLE.search(names):
        return Fault(kind="transient", message=_text(error), hint=_ENDPOINT[scheme])
    return Fault(kind="final", message=f"{name}: {_text(error)}", hint=_ENDPOINT[scheme])


def _is_net(error: OSError) -> bool:
    return isinstance(error, ConnectionError | TimeoutError)


def _text(error: Exception) -> str:
    return " ".join(without_secrets(str(error)).split())[:300] or type(error).__name__
