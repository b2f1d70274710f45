"""One actor of a function, and what was sent to it."""

from __future__ import annotations

import functools
import io
import json
import logging
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import mfimage
from mfimage.backends.ray import boot
from mfimage.backends.ray.cluster import import_ray
from mfimage.backends.ray.node import NEEDS, READY, all_blobs
from mfimage.backends.ray.options import RayOptions
from mfimage.errors import BackendError
from mfimage.package.store import Package
from mfimage.runtime.layout import placement_resource
from mfimage.runtime.worker.exceptions import rebuild
from mfimage.runtime.worker.frames import Frame

logger = logging.getLogger("mfimage")
_SLIVER = 0.001
# What is longer goes through the object store, which takes a millisecond more; an argument does.
_INLINE = 96_000
_MOST_PIECES = 10


class Ticket:
    """A request, and its answer once it is there.

    Attributes
    ----------
    kind, payload, records, size
        What was asked, how many records that is, and how many the function gets at a time; 0: all.
    ref : ObjectRef or None
        The answer's, while an actor has the request.
    actor : Actor or None
        Who has it.
    deaths : int
        How many actors died that had it.
    answer : Frame, Exception or None
        What came of it.
    """

    __slots__ = ("actor", "answer", "deaths", "kind", "payload", "records", "ref", "size")

    def __init__(self, kind: int, payload: bytes, records: int, size: int = 0) -> None:
        self.kind = kind
        self.payload = payload
        self.records = records
        self.size = size
        self.ref: Any = None
        self.actor: Actor | None = None
        self.deaths = 0
        self.answer: Frame | Exception | None = None


class Actor:
    """One actor; its pool's lock guards what changes.

    Attributes
    ----------
    handle : ActorHandle
        Ray's.
    luggage : tuple
        What it needs to load the function; see ``ray_boot``.
    loading : ObjectRef or None
        Of ``load``'s answer, until the function is loaded.
    pending : dict of Ticket
        What it has, in the order in which it gets to it; the values mean nothing.
    used : float
        When it last got something, by ``time.monotonic``.
    """

    def __init__(self, handle: Any, luggage: boot.Luggage) -> None:
        self.handle = handle
        self.luggage = luggage
        self.loading = handle.load.remote(luggage)
        self.pending: dict[Ticket, None] = {}
        self.used = time.monotonic()

    def send(self, ticket: Ticket) -> None:
        """Send a request; how it goes is told when its answer is asked for."""
        ticket.ref = self.ask(ticket.kind, ticket.payload, ticket.size)
        ticket.actor = self
        self.pending[ticket] = None
        self.used = time.monotonic()

    def ask(self, kind: int, payload: bytes, size: int = 0) -> Any:
        """Return the reference to the answer to a frame."""
        # One argument: Ray takes some time over each.
        request = struct.pack(boot.HEAD, kind, size) + payload
        count = len(request)
        if not _INLINE < count <= _INLINE * _MOST_PIECES:
            return self.handle.answer.remote(request)
        pieces = (request[place : place + _INLINE] for place in range(0, count, _INLINE))
        return self.handle.answer.remote(*pieces)

    def load_again(self) -> None:
        """Ask for the function after Ray has started the actor's process again."""
        # Unlike others, this request waits for that: Ray repeats it while nobody is there.
        self.loading = self.handle.load.options(max_task_retries=-1).remote(self.luggage)

    def stop(self) -> None:
        """End the actor now."""
        ray = import_ray()
        if ray.is_initialized():
            ray.kill(self.handle, no_restart=True)


def decode(data: bytes) -> Frame:
    """Return the frame that an actor answered."""
    kind, micros = struct.unpack_from(boot.HEAD, data)
    return Frame(kind, data[boot.HEAD_SIZE :], micros)


class Launcher:
    """Starts actors of one function.

    Parameters
    ----------
    package : Package
        What they load.
    options : RayOptions
        What they take.
    """

    def __init__(self, package: Package, options: RayOptions) -> None:
        self._package = package
        self._options = options
        self._blobs: dict[str, Any] | None = None
        ray = import_ray()
        digest, archive = source_archive()
        self._digest = digest
        self._archive = ray.put(archive)
        self._config = json.dumps(
            {
                "spec": package.spec.to_json().decode(),
                "reference": package.reference,
                "placement": options.placement,
                "log_level": logging.getLogger().level,
                "start_timeout": options.start_timeout,
            }
        ).encode()
        self._class = self._make_class(ray)

    def asked(self) -> dict[str, float]:
        """Return what an actor takes of its node, by Ray's names."""
        asked = self._options.asked()
        if self._options.placement == "image":
            asked[placement_resource(self._package.spec.digest)] = _SLIVER
        return asked

    def _make_class(self, ray: Any) -> Any:
        asked = self.asked()
        return ray.remote(boot.FunctionHost).options(
            num_cpus=asked.pop("CPU", 0),
            num_gpus=asked.pop("GPU", 0),
            memory=asked.pop("memory", None),
            resources=asked,
            max_restarts=-1,
        )

    def start(self) -> Actor:
        """Start an actor; it loads the function while the caller goes on."""
        cloudpickle: Any = import_ray().cloudpickle

        # By value, for a node need not have this module. Ray writes the class when it is first
        # used; nothing of the caller's own modules goes with it.
        cloudpickle.register_pickle_by_value(boot)
        try:
            handle = self._class.remote(self._package.spec.name, self._config, self._digest)
        finally:
            cloudpickle.unregister_pickle_by_value(boot)
        return Actor(handle, (self._archive, self._blobs))

    def loaded(self, answer: bytes) -> str | None:
        """Return the name of the function's first parameter; None when blobs have to go along.

        Raises
        ------
        Exception
            What went wrong when the function was loaded.
        """
        told = json.loads(answer)
        if told["status"] == READY:
            return str(told["data"])
        if told["status"] == NEEDS and self._blobs is None:
            spec = self._package.spec
            logger.info("%s is sent to the nodes, which cannot read it: %s", spec.name, told["why"])
            ray = import_ray()
            refs = all_blobs(spec)
            self._blobs = {name: ray.put(self._package.read(ref)) for name, ref in refs.items()}
            return None
        if told["status"] == NEEDS:
            return None
        raise rebuild(told["error"].encode())


@functools.cache
def source_archive() -> tuple[str, bytes]:
    """Return the digest of mfimage's own source, and an archive of it."""
    files = boot.source_files(Path(mfimage.__file__).parents[1])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return boot.digest_of(files), buffer.getvalue()


def lost(name: str, error: Exception | str, when: str = "ran") -> BackendError:
    """Return the error for a record whose actor died."""
    text = " ".join(str(error).split())
    if "OOM" in text and "memory usage threshold" in text:
        hint = "its node ran out of memory: use fewer actors, or say with memory= what each needs"
    else:
        hint = "compiled code may have crashed, or memory run out; Ray's log on stderr tells more"
    return BackendError(f"{name}: its actor died while it {when}", hint=hint)
