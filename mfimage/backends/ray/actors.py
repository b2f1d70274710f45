"""The actors of a function: as many as there is work for, between a minimum and a maximum."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import mfimage
from mfimage.backends.ray import boot
from mfimage.backends.ray.cluster import check_room, describe, import_ray
from mfimage.backends.ray.node import NEEDS_BLOBS, READY, all_blobs
from mfimage.backends.ray.options import RayOptions
from mfimage.errors import BackendError
from mfimage.package.store import Package
from mfimage.runtime.layout import placement_resource
from mfimage.runtime.worker.exceptions import rebuild
from mfimage.runtime.worker.frames import Frame

logger = logging.getLogger("mfimage")
_Found = TypeVar("_Found")
_SLIVER = 0.001
# Longer arguments go through the object store, which takes a millisecond more.
_INLINE = 96_000
_MAX_PIECES = 10
_IDLE_SECONDS = 60.0
_WARN_SECONDS = 10.0
_GRACE_SECONDS = 2.0
_POLL_SECONDS = 0.02


@dataclass(eq=False, slots=True)
class ActorRequest:
    """A request, and its reply once it has arrived."""

    kind: int
    payload: bytes
    records: int
    size: int = 0  # how many records the function gets at a time; 0: all
    ref: Any = None  # Ray's reference to the reply, while an actor has the request
    actor: Actor | None = None
    deaths: int = 0  # of actors that had it
    reply: Frame | Exception | None = None


class Actor:
    """One actor; the lock of its ``ActorSet`` guards its state."""

    def __init__(self, handle: Any, luggage: boot.Luggage) -> None:
        self.handle = handle
        self.luggage = luggage  # what it needs to load the function
        self.loading = handle.load.remote(luggage)  # None once the function is loaded
        self.pending: dict[ActorRequest, None] = {}  # in order; the values are unused
        self.used = time.monotonic()

    def send(self, request: ActorRequest) -> None:
        """Send a request; errors are raised where the reply is read."""
        request.ref = self.ask(request.kind, request.payload, request.size)
        request.actor = self
        self.pending[request] = None
        self.used = time.monotonic()

    def ask(self, kind: int, payload: bytes, size: int = 0) -> Any:
        """Return Ray's reference to the reply to a frame."""
        # As one argument: each takes Ray some time.
        request = struct.pack(boot.HEAD, kind, size) + payload
        count = len(request)
        if not _INLINE < count <= _INLINE * _MAX_PIECES:
            return self.handle.answer.remote(request)
        pieces = (request[place : place + _INLINE] for place in range(0, count, _INLINE))
        return self.handle.answer.remote(*pieces)

    def load_again(self) -> None:
        """Load the function again after Ray has restarted the actor's process."""
        # Unlike others, this request waits for the restart: Ray retries it meanwhile.
        self.loading = self.handle.load.options(max_task_retries=-1).remote(self.luggage)

    def stop(self) -> None:
        """End the actor now."""
        ray = import_ray()
        if ray.is_initialized():
            ray.kill(self.handle, no_restart=True)


def decode_reply(data: bytes) -> Frame:
    """Return the frame that an actor replied with."""
    kind, micros = struct.unpack_from(boot.HEAD, data)
    return Frame(kind, data[boot.HEAD_SIZE :], micros)


class ActorSet:
    """The actors of one function; they start at once, and Ray restarts one that dies."""

    def __init__(self, package: Package, options: RayOptions) -> None:
        self._package = package
        self._name = package.spec.name
        self._options = options
        self._ray = import_ray()
        source = boot.source_files(Path(mfimage.__file__).parents[1])
        self._digest = boot.digest_of(source)
        self._source = self._ray.put(source)
        self._blobs: dict[str, Any] | None = None
        self._config = json.dumps(
            {
                "spec": package.spec.to_json().decode(),
                "reference": package.reference,
                "placement": options.placement,
                "log_level": logging.getLogger().level,
                "start_timeout": options.start_timeout,
            }
        ).encode()
        # What an actor takes of its node, by Ray's names.
        self._resources = options.requested()
        if options.placement == "image":
            self._resources[placement_resource(package.spec.digest)] = _SLIVER
        custom = dict(self._resources)
        self._class = self._ray.remote(boot.FunctionHost).options(
            num_cpus=custom.pop("CPU", 0),
            num_gpus=custom.pop("GPU", 0),
            memory=custom.pop("memory", None),
            resources=custom,
            max_restarts=-1,
        )
        fits = self._check_room(options.patience)
        fits = fits if math.isfinite(fits) else options.min_actors
        self.maximum = options.max_actors or max(options.min_actors, int(fits))
        self.data: str | None = None  # name of the function's first parameter, once loaded
        self.lock = threading.RLock()  # guards all state, of the actors too
        self.ready: list[Actor] = []
        self._starting: list[Actor] = []
        self._taken: list[Actor] = []
        self._closed = False
        self._polled = self._warn_at = 0.0
        self._grow(options.min_actors)

    def _check_room(self, patience: float) -> float:
        hint = None
        if self._options.placement == "image":
            hint = "start the cluster's nodes from the function's image, or omit placement="
        minimum = self._options.min_actors
        return check_room(self._name, self._resources, minimum, patience, hint)

    def when_ready(self, find: Callable[[], _Found | None]) -> _Found:
        """Return what ``find`` finds, with the lock held; wait for actors while that is None."""
        began = time.monotonic()
        while True:
            with self.lock:
                self._poll()
                found = find()
            if found is not None:
                return found
            self._wait_for_start(began)

    @contextlib.contextmanager
    def taken(self) -> Iterator[Actor]:
        """Give an actor to the caller alone, and stop it if the caller fails."""

        def take() -> Actor | None:
            actor = min(self.ready, key=lambda each: len(each.pending), default=None)
            if actor is not None:
                self.ready.remove(actor)
                self._taken.append(actor)
            return actor

        actor, usable = self.when_ready(take), False
        try:
            yield actor
            usable = True
        finally:
            with self.lock:
                self._taken.remove(actor)
                if usable and not self._closed:
                    actor.used = time.monotonic()
                    self.ready.append(actor)
                else:
                    actor.stop()

    def least_busy(self, enough: int) -> Actor | None:
        """Return the actor with the fewest requests; start more when it has ``enough``."""
        if not self.ready:
            return None
        best = min(self.ready, key=lambda each: len(each.pending))
        if len(best.pending) >= enough:
            self._forget_abandoned(best)
            if len(best.pending) >= enough and not self._starting:
                self._grow(min(len(self.ready), self.maximum - len(self.ready)))
        return best

    def _forget_abandoned(self, actor: Actor) -> None:
        """Release replies that have arrived, which may never be read."""
        refs = {request.ref: request for request in actor.pending}
        done, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=0, fetch_local=False)
        for ref in done:
            actor.pending.pop(refs[ref], None)

    def _grow(self, count: int) -> None:
        had = len(self.ready)
        for _ in range(count):
            self._starting.append(self._start())
        if had and count > 0:
            logger.info("%s: %d actors, starting %d more", self._name, had, count)
            threading.Thread(
                target=_shrink_later, args=(weakref.ref(self),), name="mfimage-idle", daemon=True
            ).start()

    def _start(self) -> Actor:
        # By value, as a node may not have this module. Ray pickles the class when it is first
        # used; none of the caller's own modules is pickled with it.
        self._ray.cloudpickle.register_pickle_by_value(boot)
        try:
            handle = self._class.remote(self._name, self._config, self._digest)
        finally:
            self._ray.cloudpickle.unregister_pickle_by_value(boot)
        return Actor(handle, (self._source, self._blobs))

    def loaded(self, reply: bytes) -> str | None:
        """Return the name of the function's first parameter; None when actors need the blobs."""
        found = json.loads(reply)
        if found["status"] == READY:
            return str(found["data"])
        if found["status"] != NEEDS_BLOBS:
            raise rebuild(found["error"].encode())
        if self._blobs is None:
            text = "%s: its package is sent to the nodes, which cannot read it: %s"
            logger.info(text, self._name, found["why"])
            refs = all_blobs(self._package.spec)
            put, read = self._ray.put, self._package.read
            self._blobs = {name: put(read(ref)) for name, ref in refs.items()}
        return None

    def start_again(self, actor: Actor) -> None:
        """Wait for Ray to restart an actor that died or was killed."""
        self.ready.remove(actor)
        self._starting.append(actor)
        actor.load_again()

    def _poll(self, *, now: bool = False) -> None:
        """Take actors into use that have loaded the function; raise why none could."""
        if self._closed:
            raise BackendError(f"{self._name} was closed")
        if not self._ray.is_initialized():
            raise BackendError(
                f"{self._name}: this process has left the Ray cluster",
                hint="ray.shutdown() was called: close() the function, and it can be called again",
            )
        if not self._starting:
            if not self.ready and not self._taken:
                self._grow(self._options.min_actors)
            return
        if now or time.monotonic() - self._polled > _POLL_SECONDS:
            self._polled = time.monotonic()
            for actor in list(self._starting):
                self._poll_one(actor)

    def _poll_one(self, actor: Actor) -> None:
        from ray.exceptions import GetTimeoutError, RayError

        try:
            data = self.loaded(self._ray.get(actor.loading, timeout=0))
        except GetTimeoutError:
            return
        except Exception as error:
            self._starting.remove(actor)
            actor.stop()
            if isinstance(error, RayError):
                text = " ".join(str(error).split())
                message = f"{self._name}: its actor died while it was imported: {text}"
                error = BackendError(message, hint="see Ray's log on stderr")
            if self.ready:
                logger.warning("%s: one actor less: %s", self._name, error)
                return
            raise error from error.__cause__
        self._starting.remove(actor)
        if data is None:  # it cannot read the package; the next one gets the blobs
            actor.stop()
            self._starting.append(self._start())
            return
        self.data = data
        actor.loading = None
        actor.used = time.monotonic()
        self.ready.append(actor)

    def _wait_for_start(self, began: float) -> None:
        """Wait a little for an actor; warn about a long wait, and raise after ``start_timeout``."""
        with self.lock:
            loading = [actor.loading for actor in self._starting]
        if loading:
            self._ray.wait(loading, num_returns=1, timeout=1.0)
        else:  # another thread has taken the only one
            time.sleep(_POLL_SECONDS)
        with self.lock:
            self._poll(now=True)
            if self.ready:
                return
        waited = time.monotonic() - began
        each = f"takes {describe(self._resources)}, and free is "
        if waited > self._options.start_timeout + self._options.patience:
            raise BackendError(
                f"{self._name}: no actor was ready within {waited:.0f} s; each {each}"
                f"{describe(self._ray.available_resources())}",
                hint="request less, wait for others to finish, or allow more with start_timeout=",
            )
        if time.monotonic() > self._warn_at and waited > _WARN_SECONDS:
            self._warn_at = time.monotonic() + _WARN_SECONDS
            # Nodes that were there at the start may have left.
            self._check_room(max(0.0, self._options.patience - waited))
            free = describe(self._ray.available_resources())
            text = "%s has waited %.0f s for an actor, which %s%s"
            logger.warning(text, self._name, waited, each, free)

    def shrink(self) -> bool:
        """Stop actors that have been idle long; return whether more than the minimum are left."""
        with self.lock:
            limit = time.monotonic() - _IDLE_SECONDS
            for actor in list(self.ready):
                if len(self.ready) > self._options.min_actors and actor.used < limit:
                    if actor.pending:
                        self._forget_abandoned(actor)
                    if not actor.pending:
                        self.ready.remove(actor)
                        actor.stop()
            return not self._closed and len(self.ready) > self._options.min_actors

    def close(self) -> None:
        """End the actors; running calls fail."""
        with self.lock:
            self._closed = True
            actors, self.ready = self.ready, []
            starting, self._starting = [*self._starting, *self._taken], []
        if not self._ray.is_initialized():
            return  # they ended with the connection
        with contextlib.suppress(Exception):  # the cluster may be gone
            # Idle ones end by themselves, and run the function's exit hooks.
            idle = [each.handle.__ray_terminate__.remote() for each in actors if not each.pending]
            if idle:
                self._ray.wait(idle, num_returns=len(idle), timeout=_GRACE_SECONDS)
            for actor in [*actors, *starting]:
                actor.stop()


def _shrink_later(reference: weakref.ref[ActorSet]) -> None:
    more = True
    while more:
        time.sleep(_IDLE_SECONDS / 2)
        actors = reference()
        more = actors is not None and actors.shrink()
        del actors
