"""Reading files out of an image that the engine has; nothing of it is run."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator
from typing import Any

import docker
import docker.errors

from mfimage.errors import EngineError
from mfimage.image.engine_connect import engine_errors

_CHUNK = 1 << 20


@contextlib.contextmanager
def _created(api: Any, image: str) -> Iterator[str]:
    """Make a container that is never started: the engine reads files of those only."""
    container = api.create_container(image, entrypoint=["/"], command=[])["Id"]
    try:
        yield container
    finally:
        with contextlib.suppress(docker.errors.APIError):
            api.remove_container(container, force=True, v=True)


def read_file(api: docker.APIClient, image: str, path: str, most: int) -> bytes | None:
    """Read a small file; see `Engine.read_file`."""
    with engine_errors(f"reading {path} of {image}"), _created(api, image) as container:
        try:
            chunks, _ = api.get_archive(container, path)
        except docker.errors.NotFound:
            return None
        data = b"".join(_up_to(chunks, most))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.next()
        file = tar.extractfile(member) if member is not None and member.isfile() else None
        return file.read() if file is not None else None


def _up_to(chunks: Iterator[bytes], most: int) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > most + 4 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE:
            raise EngineError(f"reading a file: it is larger than {most} bytes")
        yield chunk


def export(api: docker.APIClient, image: str, path: str) -> Iterator[bytes]:
    """Stream a folder as a tar; see `Engine.export`."""
    with engine_errors(f"reading {path} of {image}"), _created(api, image) as container:
        chunks, _ = api.get_archive(container, path, chunk_size=_CHUNK)
        yield from chunks
