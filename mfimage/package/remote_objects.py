"""Objects of a bucket, by the clients that Metaflow's datastores configure.

Metaflow's storages say which client talks to which endpoint, as whom. The transfers themselves are
the client libraries': Metaflow's retry for hours without a word, and hold whole files in memory.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from typing import Any, BinaryIO, ClassVar, Protocol

from mfimage.errors import StorageError

# Seconds until a connection must stand, and between two pieces of an answer.
_CONNECT, _READ = 5, 30
# Seconds that a client library tries again without a word; then it is told.
_RETRYING = 8
_MIB = 1 << 20
# Larger ones move in parallel parts, a few of which are in memory.
_PART = 8 * _MIB
_NEEDED = {
    "s3": ({"boto3": "boto3"}),
    "gs": ({"google.cloud.storage": "google-cloud-storage", "google.auth": "google-auth"}),
    "azure": ({"azure.storage.blob": "azure-storage-blob", "azure.identity": "azure-identity"}),
}


class Objects(Protocol):
    """The objects below one root; errors are the client library's."""

    def size(self, path: str) -> int:
        """Return an object's size in bytes."""

    def download(self, path: str, sink: BinaryIO) -> None:
        """Write an object's content to ``sink``, a file on this machine, from its start."""

    def upload(self, path: str, source: BinaryIO) -> None:
        """Make an object of what ``source`` holds, from its start; whole or not at all."""


def open_objects(scheme: str, root: str) -> Objects:
    """Return the objects below a root.

    Parameters
    ----------
    scheme : {"s3", "gs", "azure"}
        The ``TYPE`` of a Metaflow datastore.
    root : str
        Bucket or container, and prefix.

    Raises
    ------
    StorageError
        When a client library is not installed.
    """
    require_libraries(scheme)
    from metaflow.plugins import DATASTORES

    storage = next(storage for storage in DATASTORES if scheme == storage.TYPE)
    if scheme == "s3":
        return _S3Objects(root)
    # Metaflow names an Azure root without a scheme.
    client = storage(root if scheme == "azure" else f"{scheme}://{root}").root_client
    return _AzureObjects(client) if scheme == "azure" else _GoogleObjects(client)


def require_libraries(scheme: str) -> None:
    """Raise ``StorageError`` when a client library is not installed."""
    for module in _NEEDED[scheme]:
        try:
            importlib.import_module(module)
        except ImportError:
            needed = _NEEDED[scheme]
            raise StorageError(
                f"{scheme}:// needs {needed[module]}, which is not installed here",
                hint=f"pip install {' '.join(needed.values())}",
            ) from None


class _S3Objects:
    def __init__(self, root: str) -> None:
        self._bucket, _, prefix = root.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = s3_client()

    def _place(self, path: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + path}

    def size(self, path: str) -> int:
        return int(self._client.head_object(**self._place(path))["ContentLength"])

    def download(self, path: str, sink: BinaryIO) -> None:
        answer = self._client.get_object(**self._place(path))
        with contextlib.closing(answer["Body"]) as body:
            if answer["ContentLength"] <= _PART:
                for chunk in body.iter_chunks(_MIB):
                    sink.write(chunk)
                return
        self._client.download_fileobj(**self._place(path), Fileobj=sink, Config=_transfer())

    def upload(self, path: str, source: BinaryIO) -> None:
        from metaflow.metaflow_config import S3_SERVER_SIDE_ENCRYPTION as ENCRYPTION

        self._client.upload_fileobj(
            _Unclosed(source),
            **self._place(path),
            ExtraArgs={"ServerSideEncryption": ENCRYPTION} if ENCRYPTION else None,
            Config=_transfer(),
        )


class _Unclosed:
    """A file that boto3 cannot close: it does when a transfer fails, and the next try needs it."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        pass


def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    config = TransferConfig(
        multipart_threshold=_PART,
        multipart_chunksize=_PART,
        max_concurrency=4,
        num_download_attempts=2,
    )
    # Of each transfer, and several run at once: parts in memory.
    config.max_in_memory_upload_chunks = config.max_in_memory_download_chunks = 4
    return config


def s3_client() -> Any:
    """Make a client as Metaflow's configuration says, with the patience of somebody who waits."""
    from botocore.config import Config
    from metaflow.metaflow_config import DATATOOLS_CLIENT_PARAMS
    from metaflow.metaflow_config_funcs import from_conf
    from metaflow.plugins.datatools.s3.s3 import S3Client

    retries = from_conf("S3_CLIENT_RETRY_CONFIG", {"mode": "standard", "total_max_attempts": 3})
    config = Config(
        retries=retries, connect_timeout=_CONNECT, read_timeout=_READ, max_pool_connections=64
    )
    # Metaflow's own copy has its own retries in it once it was used.
    given = from_conf("DATATOOLS_CLIENT_PARAMS", {}).get("config")
    if given:
        config = config.merge(given if isinstance(given, Config) else Config(**given))
    endpoint = from_conf("S3_ENDPOINT_URL")
    params = {"endpoint_url": endpoint} if endpoint else {}
    params |= {**DATATOOLS_CLIENT_PARAMS, "config": config}
    return S3Client(s3_client_params=params).client


class _GoogleObjects:
    def __init__(self, client: Any) -> None:
        from google.cloud.storage.retry import DEFAULT_RETRY

        self._client = client
        again = DEFAULT_RETRY.with_timeout(_RETRYING)
        self._patience = {"timeout": (_CONNECT, _READ), "retry": again}

    def size(self, path: str) -> int:
        blob = self._client.get_blob_client(path)
        blob.reload(**self._patience)
        return int(blob.size)

    def download(self, path: str, sink: BinaryIO) -> None:
        self._client.get_blob_client(path).download_to_file(sink, **self._patience)

    def upload(self, path: str, source: BinaryIO) -> None:
        blob = self._client.get_blob_client(path)
        blob.chunk_size = _PART  # what is in memory at once
        blob.upload_from_file(source, rewind=True, **self._patience)


class _AzureObjects:
    # Its own pauses are of 15 s and more.
    _PATIENCE: ClassVar[Mapping[str, int]] = {
        "connection_timeout": _CONNECT,
        "read_timeout": _READ,
        "retry_connect": 0,
        "retry_total": 1,
    }

    def __init__(self, client: Any) -> None:
        self._client = client

    def size(self, path: str) -> int:
        return int(self._client.get_blob_client(path).get_blob_properties(**self._PATIENCE).size)

    def download(self, path: str, sink: BinaryIO) -> None:
        blob = self._client.get_blob_client(path)
        blob.download_blob(max_concurrency=4, **self._PATIENCE).readinto(sink)

    def upload(self, path: str, source: BinaryIO) -> None:
        blob = self._client.get_blob_client(path)
        blob.upload_blob(source, overwrite=True, max_concurrency=4, **self._PATIENCE)
