"""Pushing composed images: layers in parallel, what is there is not sent, tags in the end."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import BinaryIO

from mfimage.image.builder import BuildEvent
from mfimage.image.oci.config import Composed, compose_index
from mfimage.image.oci.images import StoredLayer
from mfimage.image.registry.client import RegistryClient, repository_of
from mfimage.image.registry.descriptors import INDEX
from mfimage.image.registry.reference import Reference
from mfimage.package.spec import sha256_digest

_PARALLEL = 6
_STEP = 1 << 20
OnEvent = Callable[[BuildEvent], None]


class _Stopped(Exception):
    """Another layer failed, or the user said stop."""


class Push:
    """Images, one a platform, on their way to a repository.

    Parameters
    ----------
    client : RegistryClient
        The registry.
    repository : str
        As the registry calls it.
    on_event : callable
        Told of each layer, by one thread at a time.
    """

    def __init__(self, client: RegistryClient, repository: str, on_event: OnEvent) -> None:
        self._client = client
        self._repository = repository
        self._on_event = on_event
        self._telling = threading.Lock()
        self._stop = threading.Event()

    def run(
        self, images: Sequence[Composed], tags: Iterable[str], *, also_in: Sequence[str] = ()
    ) -> str:
        """Push; return the digest that the tags lead to.

        Parameters
        ----------
        images : sequence of Composed
            What to push.
        tags : iterable of str
            Set when everything else is there, in this order.
        also_in : sequence of str
            Other repositories of this registry that have all of it.
        """
        blobs: dict[str, Callable[[], bool]] = {}
        for image in images:
            for layer in image.layers:
                blobs.setdefault(
                    layer.descriptor.digest,
                    lambda layer=layer: self._layer(layer, also_in),  # type: ignore[misc]
                )
            blobs.setdefault(
                image.id,
                lambda image=image: self._bytes(image.id, image.config),  # type: ignore[misc]
            )
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="mfimage-push") as pool:
            waiting = [pool.submit(push) for push in blobs.values()]
            try:
                for done in as_completed(waiting):
                    done.result()
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return self._manifests(images, list(tags))

    def _manifests(self, images: Sequence[Composed], tags: Sequence[str]) -> str:
        put = self._client.push_manifest
        if len(images) == 1:
            data, kind = images[0].manifest, images[0].descriptor.media_type
        else:
            for image in images:
                put(self._repository, image.digest, image.descriptor.media_type, image.manifest)
            data, kind = compose_index(images), INDEX
        digest = sha256_digest(data)
        for tag in tags:
            put(self._repository, tag, kind, data)
        return digest

    def _layer(self, layer: StoredLayer, also_in: Sequence[str]) -> bool:
        described = layer.descriptor
        sources = [*also_in]
        if layer.source and layer.source[0] == self._client.host:
            sources.append(layer.source[1])
        return self._blob(
            described.digest,
            described.size,
            layer.open,
            tuple(source for source in sources if source != self._repository),
        )

    def _bytes(self, digest: str, data: bytes) -> bool:
        return self._blob(digest, len(data), lambda: io.BytesIO(data), ())

    def _blob(
        self, digest: str, size: int, open_it: Callable[[], BinaryIO], sources: tuple[str, ...]
    ) -> bool:
        step = f"push {digest[7:19]}"
        told = 0

        def on_progress(current: int) -> None:
            nonlocal told
            if self._stop.is_set():
                raise _Stopped
            if current - told >= _STEP:
                told = current
                self._tell("progress", step, current, size)

        sent = self._client.push_blob(
            self._repository, digest, size, open_it, sources=sources, on_progress=on_progress
        )
        self._tell("done" if sent else "cached", step, size, size)
        return sent

    def _tell(self, kind: str, step: str, current: int, total: int) -> None:
        event = BuildEvent(
            kind=kind,  # type: ignore[arg-type]
            step=step,
            text="pushing",
            current=current,
            total=total,
        )
        with self._telling:
            self._on_event(event)


def by_repository(tags: Iterable[Reference]) -> dict[tuple[str, str], list[Reference]]:
    """Group tags by registry, as written, and repository, as the registry calls it."""
    found: dict[tuple[str, str], list[Reference]] = {}
    for tag in tags:
        found.setdefault((tag.registry, repository_of(tag)), []).append(tag)
    return found
