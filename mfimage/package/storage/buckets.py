"""Buckets as storages, with Metaflow's endpoints and the client libraries' credentials."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from mfimage.errors import StorageError
from mfimage.package.storage.cache import reported
from mfimage.package.storage.local import LocalStorage, Storage
from mfimage.package.storage.objects import (
    CREDENTIALS,
    Objects,
    WrongRegion,
    without_secrets,
)

T = TypeVar("T")
SCHEMES = ("s3", "gs", "azure")
# Seconds to connect, and between two pieces of a response.
_CONNECT, _READ = 5, 30
# The longest that a request takes, in times of that. Only this holds for one that sends a part:
# no piece of its response comes before all of the part has gone.
_SENDING = 5
_RETRIES = 5
_LONGEST = timedelta(minutes=1)
_NEEDED = {
    "s3": {"obstore": "obstore", "boto3": "boto3"},
    "gs": {"obstore": "obstore", "google.auth": "google-auth", "requests": "requests"},
    "azure": {"obstore": "obstore", "azure.identity": "azure-identity"},
}
_GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


class RemoteStorage:
    """Objects below ``root``, a bucket and prefix, found as Metaflow's configuration says."""

    def __init__(self, scheme: str, root: str) -> None:
        self._scheme = scheme
        self._root = _checked(scheme, root.rstrip("/"))
        self._bucket, _, prefix = self._root.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self.place = scheme, self._root
        self._region: str | None = None
        self._lock = threading.Lock()
        self._connected: dict[bool, _Connection] = {}

    def url(self, path: str) -> str:
        """Return an object's URL."""
        return f"{self._scheme}://{self._root}/{path}"

    def read(self, path: str) -> bytes:
        """Return an object's bytes."""
        sink = io.BytesIO()
        self.fetch(path, sink)
        return sink.getvalue()

    def open(self, path: str) -> BinaryIO:
        """Return an object's content as a temporary file."""
        file = tempfile.TemporaryFile(prefix="mfimage-")  # noqa: SIM115  (closed later)
        try:
            self.fetch(path, file)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def fetch(self, path: str, sink: BinaryIO) -> None:
        """Write an object's content to a file, in place of what it holds; ``FileNotFoundError``."""
        sink.seek(0)
        sink.truncate()
        self.perform("download", path, sink)

    def size(self, path: str) -> int | None:
        """Return an object's size in bytes; None when there is none."""
        found: int | None = self.perform("size", path)
        return found

    def write(self, path: str, source: BinaryIO) -> None:
        """Make an object of what ``source`` holds from here on."""
        self.perform("upload", path, source)

    def perform(self, verb: str, path: str, *file: BinaryIO) -> Any:
        """Call ``Objects.download``, ``upload`` or ``size``, in this process or in a helper."""
        if _helper is not None:
            return _helper.run(verb, self, path, *file)
        sending = verb == "upload"
        doing = f"{'write' if sending else 'read'} {self.url(path)}"

        def run() -> Any:
            connection = self._connection(sending=sending)
            try:
                return getattr(connection.objects, verb)(self._prefix + path, *file)
            except WrongRegion:
                # Every write comes after a read, so that only reads are done again.
                if sending or not self._find_region(connection):
                    raise
                connection = self._connection(sending=False)
                return getattr(connection.objects, verb)(self._prefix + path, *file)
            except StorageError as error:
                refused = connection.credentials.error
                if refused is None:
                    raise
                message = f"cannot {doing}: there are no usable credentials: {_text(refused)}"
                raise StorageError(message, hint=CREDENTIALS[self._scheme]) from error

        with reported(f"trying to {doing}"):
            return _interruptible(run)

    def _connection(self, *, sending: bool) -> _Connection:
        _users.add(os.getpid())
        with self._lock:
            if sending not in self._connected:
                require_libraries(self._scheme, _NEEDED[self._scheme])
                connect = {"s3": _connect_s3, "gs": _connect_google, "azure": _connect_azure}
                try:
                    found = connect[self._scheme](self._bucket, sending, self._region)
                    self._connected[sending] = found
                except StorageError:
                    raise
                except Exception as error:  # as a profile or a setting that is wrong
                    message = f"cannot connect to {self._scheme}://{self._bucket}: {_text(error)}"
                    raise StorageError(message, hint=CREDENTIALS[self._scheme]) from error
            return self._connected[sending]

    def _find_region(self, connection: _Connection) -> bool:
        """Ask S3 for the bucket's region, which is public; if it is known, connect again."""
        found = _region_of(self._bucket, connection.endpoint)
        with self._lock:
            self._region = found or self._region
            if found:
                self._connected.clear()
        return found is not None


def _text(error: Exception) -> str:
    return " ".join(without_secrets(str(error)).split())[:300]


class _Helper:
    """A process that uses obstore for one that was forked, one request after the other."""

    # A request is a line of JSON, and so is its result; content is in a file that both open. The
    # process ends with its stdin.

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, verb: str, storage: RemoteStorage, path: str, *file: BinaryIO) -> Any:
        """Do what ``RemoteStorage.perform`` does."""
        with tempfile.NamedTemporaryFile(prefix="mfimage-") as copy:
            if verb == "upload":
                shutil.copyfileobj(file[0], copy, 1 << 20)
                copy.flush()
            found = self._request([verb, *storage.place, path, copy.name])
            if verb == "download":
                shutil.copyfileobj(copy, file[0], 1 << 20)
        return found

    def _request(self, request: list[str]) -> Any:
        with self._lock:
            if self._process is None:
                command = [sys.executable, "-m", __name__]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
                )
            requests, results = self._process.stdin, self._process.stdout
            assert requests and results
            try:
                requests.write(json.dumps(request).encode() + b"\n")
                requests.flush()
                result = json.loads(results.readline())
            except BaseException as error:
                self._process.kill()  # its result would be taken for the next request's
                self._process = None
                if not isinstance(error, OSError | ValueError):
                    raise
                message = f"cannot {request[0]} {request[3]}: the process that does it ended"
                raise StorageError(message) from None
        if "missing" in result:
            raise FileNotFoundError(result["missing"])
        if "message" in result:
            raise StorageError(result["message"], hint=result["hint"])
        return result["value"]


# obstore hangs in a process that was forked from one that has used it: its threads stay there.
_users: set[int] = set()
_helper: _Helper | None = None


def _forked() -> None:
    global _helper  # noqa: PLW0603  (of the process, as obstore's threads are)
    if _users:
        _helper = _Helper()


os.register_at_fork(after_in_child=_forked)


def _serve() -> None:
    """Handle the requests of a ``_Helper``."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not a result
    for line in sys.stdin.buffer:
        verb, scheme, root, path, file = json.loads(line)
        storage = RemoteStorage(scheme, root)
        result: dict[str, Any]
        try:
            with Path(file).open("r+b") as copy:
                files = () if verb == "size" else (copy,)
                result = {"value": storage.perform(verb, path, *files)}
        except StorageError as error:
            result = {"message": error.message, "hint": error.hint}
        except FileNotFoundError:
            result = {"missing": storage.url(path)}
        print(json.dumps(result), file=results, flush=True)


class _Credentials:
    """A credential provider of obstore, which keeps the exception that it raised."""

    def __init__(self, make: Callable[[], Callable[[], Any]]) -> None:
        self._make = make
        self._provider: Callable[[], Any] | None = None
        self.error: Exception | None = None

    def __call__(self) -> Any:
        self.error = None
        try:
            self._provider = self._provider or self._make()
            return self._provider()
        except Exception as error:
            self.error = error
            raise


class _Connection:
    """A bucket's objects, and the credentials that open them."""

    def __init__(self, make: Any, bucket: str, credentials: _Credentials, **options: Any) -> None:
        from metaflow.metaflow_config_funcs import from_conf

        self.credentials = credentials
        self.endpoint: str | None = options["config"].get("endpoint")
        count = max(0, int(from_conf("S3_RETRY_COUNT", _RETRIES)))
        retries = {"max_retries": count, "retry_timeout": _LONGEST}
        store = make(bucket, credential_provider=credentials, retry_config=retries, **options)
        scheme = {"S3Store": "s3", "GCSStore": "gs", "AzureStore": "azure"}[make.__name__]
        self.objects = Objects(f"{scheme}://{bucket}/", store)


def _connect_s3(bucket: str, sending: bool, region: str | None) -> _Connection:
    from metaflow.metaflow_config import DATATOOLS_CLIENT_PARAMS
    from metaflow.metaflow_config_funcs import from_conf
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    params = {**from_conf("DATATOOLS_CLIENT_PARAMS", {}), **DATATOOLS_CLIENT_PARAMS}
    given = params.get("config") or {}
    given = given if isinstance(given, dict) else given._user_provided_options
    session = _aws_session(params)
    endpoint = params.get("endpoint_url") or from_conf("S3_ENDPOINT_URL") or _aws_endpoint(session)
    config: dict[str, Any] = {"region": region or session.region_name or "us-east-1"}
    if endpoint:
        config["endpoint"] = endpoint
    if (given.get("s3") or {}).get("addressing_style") == "virtual":
        config["virtual_hosted_style_request"] = True
    encryption = from_conf("S3_SERVER_SIDE_ENCRYPTION")
    if encryption:
        config["server_side_encryption"] = encryption
    verify = from_conf("S3_VERIFY_CERTIFICATE") or params.get("verify")
    if verify is None and hasattr(session, "_session"):
        verify = session._session.get_config_variable("ca_bundle")
    times = given.get("connect_timeout", _CONNECT), given.get("read_timeout", _READ)
    return _Connection(
        S3Store,
        bucket,
        _Credentials(lambda: Boto3CredentialProvider(session)),
        config=config,
        client_options=_client(endpoint, sending, verify, *times),
    )


def _region_of(bucket: str, endpoint: str | None) -> str | None:
    import urllib3

    url = f"{endpoint or 'https://s3.amazonaws.com'}/{bucket}"
    try:
        response = urllib3.request("HEAD", url, redirect=False, retries=False, timeout=_CONNECT)
    except urllib3.exceptions.HTTPError:
        return None
    return response.headers.get("x-amz-bucket-region")


def _aws_session(params: dict[str, Any]) -> Any:
    """Return boto3's session, or what looks like one for Metaflow's other client providers."""
    import boto3
    from metaflow.metaflow_config import AWS_SANDBOX_ENABLED, DEFAULT_AWS_CLIENT_PROVIDER

    if AWS_SANDBOX_ENABLED or DEFAULT_AWS_CLIENT_PROVIDER != "boto3":
        from metaflow.plugins.aws.aws_client import get_aws_client

        client = get_aws_client("s3", client_params=dict(params))
        credentials = client._get_credentials
        return SimpleNamespace(get_credentials=credentials, region_name=client.meta.region_name)
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "region_name")
    return boto3.Session(**{name: params[name] for name in names if name in params})


def _aws_endpoint(session: Any) -> str | None:
    """Return the endpoint that AWS's own variables and configuration files name."""
    from botocore.configprovider import ConfiguredEndpointProvider

    if (core := getattr(session, "_session", None)) is None:
        return None
    found: str | None = ConfiguredEndpointProvider(
        full_config=core.full_config, scoped_config=core.get_scoped_config(), client_name="s3"
    ).provide()
    return found


def _connect_google(bucket: str, sending: bool, _: str | None) -> _Connection:
    from obstore.store import GCSStore

    emulator = os.environ.get("STORAGE_EMULATOR_HOST")

    def provider() -> Callable[[], Any]:
        if emulator:
            return lambda: {"token": "emulator", "expires_at": None}
        from metaflow.plugins.gcp.gs_storage_client_factory import get_credentials
        from obstore.auth.google import GoogleCredentialProvider

        return GoogleCredentialProvider(get_credentials([_GOOGLE_SCOPE])[0])

    return _Connection(
        GCSStore,
        bucket,
        _Credentials(provider),
        config={"base_url": emulator} if emulator else {},
        client_options=_client(emulator, sending, _authority()),
    )


def _connect_azure(container: str, sending: bool, _: str | None) -> _Connection:
    from metaflow.metaflow_config_funcs import from_conf
    from obstore.store import AzureStore

    def provider() -> Callable[[], Any]:
        from metaflow.plugins.azure.azure_credential import create_cacheable_azure_credential
        from obstore.auth.azure import AzureCredentialProvider

        return AzureCredentialProvider(create_cacheable_azure_credential())

    endpoint = from_conf("AZURE_STORAGE_BLOB_SERVICE_ENDPOINT")
    if not endpoint:
        hint = "set it to https://<account>.blob.core.windows.net"
        variable = "METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT"
        raise StorageError(f"azure:// needs {variable}, which is not set", hint=hint)
    parts = urlsplit(endpoint)
    # An emulator has the account in the path.
    account = parts.path.strip("/") or str(parts.hostname).partition(".")[0]
    return _Connection(
        AzureStore,
        container,
        _Credentials(provider),
        config={"endpoint": endpoint.rstrip("/"), "account_name": account},
        client_options=_client(endpoint, sending, _authority()),
    )


def _client(
    endpoint: str | None, sending: bool, verify: Any, connect: float = _CONNECT, read: float = _READ
) -> dict[str, Any]:
    options: dict[str, Any] = {
        # An http:// endpoint is meant when it is set.
        "allow_http": str(endpoint).startswith("http://"),
        "connect_timeout": timedelta(seconds=connect),
        "timeout": timedelta(seconds=_SENDING * read),
    }
    if not sending:
        options["read_timeout"] = timedelta(seconds=read)
    if verify is False:
        options["allow_invalid_certificates"] = True
    elif isinstance(verify, str):
        try:
            options["root_certificate"] = Path(verify).read_bytes()
        except OSError as error:
            message = f"cannot read the CA's certificate {verify}: {error.strerror}"
            hint = "correct METAFLOW_S3_VERIFY_CERTIFICATE, AWS_CA_BUNDLE or REQUESTS_CA_BUNDLE"
            raise StorageError(message, hint=hint) from None
    return options


def _authority() -> str | None:
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")


def require_libraries(scheme: str, needed: Mapping[str, str]) -> None:
    """Raise ``StorageError`` when one of ``needed`` (module -> distribution) is not installed."""
    for module in needed:
        try:
            importlib.import_module(module)
        except ImportError:
            message = f"{scheme}:// needs {needed[module]}, which is not installed here"
            hint = f"pip install {' '.join(needed.values())}"
            raise StorageError(message, hint=hint) from None


def open_storage(root: str | os.PathLike[str]) -> Storage:
    """Return the storage for a root.

    It is a local folder, ``file://`` and its path, or ``s3://``, ``gs://`` or ``azure://``, a
    bucket (for Azure: a container) and a prefix. ``StorageError`` for others, and for credentials.
    """
    text = os.fspath(root)
    refuse_credentials(text)
    if text.startswith("file://"):
        return LocalStorage(Path(unquote(urlsplit(text).path)))
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalStorage(Path(text))
    if scheme in SCHEMES:
        return RemoteStorage(scheme, rest)
    hint = "use a local folder, s3://, gs:// or azure://"
    raise StorageError(f"no storage for {scheme}:// (root {text!r})", hint=hint)


def refuse_credentials(url: str) -> None:
    """Raise ``StorageError`` for a URL with a user or password in it, without repeating them."""
    scheme, separator, rest = url.partition("://")
    if separator and "@" in rest.partition("/")[0]:
        hint = "leave them out of it; they come from the environment and configuration files"
        raise StorageError(f"the {scheme}:// URL holds credentials", hint=hint)


def _checked(scheme: str, root: str) -> str:
    bucket, *prefix = root.split("/")
    if not bucket:
        kind = "container" if scheme == "azure" else "bucket"
        raise StorageError(f"{scheme}:// names no {kind}", hint=f"write {scheme}://{kind.upper()}")
    if any(part in ("", ".", "..") for part in prefix) or set(root) & set("?#\\\0\n\r"):
        hint = "use letters, digits, -, _, . and single slashes"
        raise StorageError(f"{f'{scheme}://{root}'!r} is not a usable root", hint=hint)
    return root


def _interruptible(operation: Callable[[], T]) -> T:
    """Run an operation where Ctrl-C need not wait for it: obstore does not return for a signal."""
    if threading.current_thread() is not threading.main_thread():
        return operation()
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(operation())
        except BaseException as error:  # noqa: BLE001  (raised again in the main thread)
            done.set_exception(error)

    thread = threading.Thread(target=run, name="mfimage-transfer", daemon=True)
    thread.start()
    try:
        return done.result()
    finally:
        if done.done():
            thread.join()


if __name__ == "__main__":
    _serve()
