"""A task's artifacts as Metaflow's datastore keeps them: bytes, never unpickled.

The only module that knows the datastore's internals. Remote datastores are read by Metaflow's own
clients. Metaflow retries for hours without saying why; here a client retries a few times what may
succeed; then, or when it cannot, an error says why.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mfimage.errors import CaptureError, PackageError, StorageError, TaskError
from mfimage.package.storage.buckets import require_libraries
from mfimage.package.storage.cache import reported
from mfimage.package.storage.objects import CREDENTIALS, NETWORK, rejected, without_secrets


@dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    """Where the datastore keeps an artifact; the rest is as in ``ArtifactRef``."""

    key: str  # in the content-addressed store
    encoding: str  # without the store's own compression
    type: str
    info: Mapping[str, Any]


class ForeachFrame(NamedTuple):
    """Metaflow's record of a foreach that a task runs in; the value is cut to some characters."""

    step: str
    var: str | None = None
    num_splits: int | None = None
    index: int = 0  # type: ignore[assignment]  # hides the method of a tuple
    value: str | None = None


class TaskStore:
    """The artifacts of a task's last finished attempt."""

    def __init__(
        self, pathspec: str, kind: str, root: str, *, like: TaskStore | None = None
    ) -> None:
        # ``like``, the store of another task of the flow, shares its client of the datastore.
        self.pathspec, self.kind, self.root = pathspec, kind, root
        self.artifacts: Mapping[str, StoredArtifact] = {}
        flow, run, step, task = pathspec.split("/")
        shared = like is not None and (like.kind, like.root) == (kind, root)
        self._flow: Any = like._flow if like and shared else _flow_datastore(flow, kind, root)
        self._open_task(run, step, task)

    def _open_task(self, run: str, step: str, task: str) -> None:
        from metaflow.datastore.exceptions import DataException

        try:
            with _reading(self.kind, self.root):
                self._task = self._flow.get_task_datastore(run, step, task)
        except DataException:
            raise TaskError(
                f"task {self.pathspec} has not finished", hint="wait for it, or name another"
            ) from None
        self.artifacts = {
            name: describe_artifact(key, self._task._info.get(name, {}))
            for name, key in self._task._objects.items()
            if not name.startswith("_")
        }

    def succeeded(self) -> bool:
        """Return whether the task recorded that it succeeded."""
        return bool(self.constant("_success"))

    def constant(self, name: str) -> Any:
        """Return an artifact of built-in values; None when there is none, any other is refused."""
        key = self._task._objects.get(name)
        if key is None:
            return None
        with self._open(key, f"artifact {name!r}") as (path, compressed):
            data = path.read_bytes()
        return _Constants(gzip.decompress(data) if compressed else data, name).load()

    def foreach_stack(self) -> list[ForeachFrame]:
        """Return the foreaches that the task runs in, outermost first."""
        return list(self.constant("_foreach_stack") or ())

    def open(self, name: str) -> AbstractContextManager[tuple[Path, bool]]:
        """Open the file of an artifact's bytes; yield it, and whether the store compressed them."""
        return self._open(self.artifacts[name].key, f"artifact {name!r}")

    def read_file(self, key: str, what: str) -> bytes:
        """Return a file that Metaflow keeps among the artifacts; its key must be its SHA-1."""
        with self._open(key, what) as (path, _):
            data = path.read_bytes()
        if hashlib.sha1(data, usedforsecurity=False).hexdigest() != key:
            message = f"{what} of {self.pathspec} does not have the digest in its key"
            raise PackageError(message, hint="it was damaged or changed; run the flow again")
        return data

    @contextmanager
    def _open(self, key: str, what: str) -> Iterator[tuple[Path, bool]]:
        storage = self._flow._storage_impl
        path = storage.path_join(self._flow.ca_store._prefix, key[:2], key)
        with ExitStack() as stack:
            with _reading(self.kind, self.root):
                loaded = list(stack.enter_context(storage.load_bytes([path])))
            for _, file, meta in loaded:
                if file is not None:
                    yield Path(file), not (meta or {}).get("cas_raw", False)
                    return
        message = f"{what} of {self.pathspec} is gone from the {self.kind} datastore"
        raise TaskError(message, hint="run the flow again")


def local_roots() -> list[str]:
    """Return the local datastores that Metaflow uses here: the client's and the folder's."""
    from metaflow.plugins.datastores.local_storage import LocalStorage

    found = LocalStorage.get_datastore_root_from_config(lambda *_: None, create_on_absent=False)
    return [str(each) for each in dict.fromkeys([LocalStorage.datastore_root, found]) if each]


class _Constants(pickle.Unpickler):
    """Reads numbers, text, lists and frames of a foreach; calls nothing else."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(io.BytesIO(data))
        self._name = name

    def find_class(self, module_name: str, global_name: str) -> Any:
        if global_name == ForeachFrame.__name__:
            return ForeachFrame
        raise CaptureError(f"the pickle of {self._name} names {module_name}.{global_name}")


def _flow_datastore(flow: str, kind: str, root: str) -> Any:
    from metaflow.datastore.flow_datastore import FlowDataStore
    from metaflow.plugins import DATASTORES

    for storage in DATASTORES:
        if kind == storage.TYPE:
            require_libraries(kind, _NEEDED.get(kind, {}))
            found = FlowDataStore(flow, None, storage_impl=storage, ds_root=root)
            if kind == "s3":
                found._storage_impl.s3_client = _S3Client(_bucket(root))
            return found
    raise TaskError(
        f"datastore {kind!r} is not known here", hint="install the Metaflow extension that has it"
    )


def describe_artifact(key: str, info: Mapping[str, Any]) -> StoredArtifact:
    """Return an artifact from a task's own record of it."""
    # Old artifacts have no encoding; the store itself records whether it compressed them.
    encoding = str(info.get("encoding", "pickle-v2")).removeprefix("gzip+")
    kind = str(info.get("type", "object")).removeprefix("<class '").removesuffix("'>")
    more = info.get("serializer_info", {})
    return StoredArtifact(key=key, encoding=encoding, type=kind, info=more)


# What goes wrong in a bucket. The client libraries are optional and differ, so their exceptions are
# recognized by class names and status codes.

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
# Seconds until a connection must stand, and between two pieces of a response.
_CONNECT, _READ = 5, 30
_BROKEN_RESPONSES = 2


@contextmanager
def _reading(kind: str, root: str) -> Iterator[None]:
    """Raise ``StorageError`` for what a datastore's client raises; report long waits."""
    from metaflow.datastore.exceptions import DataException

    if kind not in _NEEDED:
        yield
        return
    with reported(f"reading from the datastore {root}"):
        try:
            yield
        except DataException:  # the store responds; what is in it is wrong
            raise
        except Exception as error:
            cause = error.__cause__
            known = (cause.message, cause.hint) if isinstance(cause, StorageError) else None
            found = known or _explain(error, kind, _bucket(root))
            if found is None:
                raise
            message = f"cannot read from the datastore {root}: {found[0]}"
            raise StorageError(message, hint=found[1]) from error


def _bucket(root: str) -> str:
    return (root.partition("://")[2] or root).partition("/")[0]


class _S3Client:
    """Takes the place of Metaflow's ``S3Client``, with bounded time and retries."""

    def __init__(self, bucket: str) -> None:
        self._bucket, self._client, self._broken = bucket, _boto3_client(), 0

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
            _end(StorageError("the responses break off"))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except Exception as error:
                reason, hint = _explain(error, "s3", self._bucket) or ("", None)
                if not reason:
                    raise
                _end(StorageError(reason, hint=hint))

        return call


def _end(error: StorageError) -> NoReturn:
    """Raise an exception that Metaflow takes for its own, and does not retry."""
    from metaflow.exception import MetaflowException

    raise MetaflowException(error.message) from error


def _boto3_client() -> Any:
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


def _explain(error: Exception, scheme: str, bucket: str) -> tuple[str, str | None] | None:
    """Return why a client failed (``""``: no such object) and the next step; None if none did."""
    error = _innermost(error)
    module, name = type(error).__module__.partition(".")[0], type(error).__name__
    if module not in _LIBRARIES:
        return None
    text = " ".join(without_secrets(str(error)).split())[:300] or name
    status, code = _status(error)
    if status is not None:
        if status == 404 and "bucket does not exist" in text:  # as Google says it
            code = "NoSuchBucket"
        return rejected(status, code, text, scheme=scheme, bucket=bucket)
    if "SSLError" in name or "CertificateError" in name:
        return text, "name the CA with AWS_CA_BUNDLE"
    is_network = isinstance(error, ConnectionError | TimeoutError)
    if isinstance(error, OSError) and module == "builtins" and not is_network:
        place = error.filename or "this machine"
        return f"{place}: {error.strerror or error}", "free some space, or set MFIMAGE_CACHE"
    if _NO_CREDENTIALS.search(name):
        return f"there are no usable credentials: {text}", CREDENTIALS[scheme]
    return text, NETWORK[scheme]


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
    if isinstance(response, dict):  # boto3
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = response.get("Error", {}).get("Code")
    else:  # azure-storage-blob, google-cloud-storage
        status = getattr(error, "status_code", None) or getattr(error, "code", None)
        code = getattr(error, "error_code", None)
        code = getattr(code, "value", code)
    return status if isinstance(status, int) and status >= 300 else None, str(code or "")
