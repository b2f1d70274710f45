"""The parts of a batch job on a Ray cluster: one actor per process, one part at a time."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mfimage.runtime.batch.job import JobError
from mfimage.runtime.batch.options import ActorOptions, BatchOptions
from mfimage.runtime.batch.parts import BatchPart, PartResult, PartRunner
from mfimage.runtime.layout import placement_resource
from mfimage.runtime.loading.loader import load_folder

_REPORT_SECONDS = 10.0
_POLL_SECONDS = 2.0
# Any amount of the resource that marks nodes with the image will do.
_A_LITTLE = 0.001
_MAX_FAILED_STARTS = 5


class PartActor:
    """Runs parts of a job in a process of the cluster."""

    def __init__(self, name: str, folder: Path, options: BatchOptions) -> None:
        os.dup2(2, 1)  # what the function prints goes to stderr, as logs do
        sys.stdout = sys.stderr
        self._name = name
        self._folder = folder
        self._options = options

    def __repr__(self) -> str:
        # Ray puts this before each line that the function prints.
        return self._name

    def load(self) -> None:
        """Load the function."""
        self._runner = PartRunner(load_folder(self._folder, self._name), self._options)

    def run(self, part: BatchPart, guarded: bool) -> PartResult:
        """Run a part; see ``PartRunner``."""
        return self._runner.run(part, guard=self._folder if guarded else None)


class RayParts:
    """Runs a job's parts on the cluster that this process has joined.

    Actors stay pending until there is room for them, so that a cluster that scales itself sees
    the demand. A part goes to an actor that is ready. ``folder`` is the function's package on
    every node, and ``options`` are those of the ``BatchJob``.
    """

    def __init__(
        self, name: str, digest: str, folder: Path, options: BatchOptions, cluster: ActorOptions
    ) -> None:
        import ray

        self._ray: Any = ray
        self._name = name
        self._resource = placement_resource(digest)
        self._actor_arguments = (name, folder, options)
        self._cluster = cluster
        self._waiting: deque[BatchPart] = deque()
        self._starting: dict[Any, Any] = {}
        self._busy: dict[Any, tuple[Any, BatchPart]] = {}
        self._deaths: Counter[int] = Counter()
        self._failed_starts = 0
        self._last_busy = self._last_report = time.monotonic()

    def run(self, parts: list[BatchPart]) -> Iterator[tuple[BatchPart, PartResult]]:
        """Run parts, and yield each when it is done."""
        self._waiting.extend(parts)
        self._last_busy = self._last_report = time.monotonic()
        try:
            while self._waiting or self._busy:
                self._start_or_stop()
                refs = [*self._starting, *self._busy]
                done, _ = self._ray.wait(refs, num_returns=1, timeout=_POLL_SECONDS)
                for ref in done:
                    if ref in self._starting:
                        self._started(ref)
                    else:
                        yield from self._finished(ref)
                self._report_waiting()
        finally:
            for actor in [*self._starting.values(), *(actor for actor, _ in self._busy.values())]:
                self._ray.kill(actor)

    def _start_or_stop(self) -> None:
        """Keep as many actors as there is room and work for."""
        wanted = self._cluster.num_actors or max(1, self._room())
        for _ in range(min(wanted - len(self._busy), len(self._waiting)) - len(self._starting)):
            made = self._ray.remote(PartActor).options(
                num_cpus=self._cluster.num_cpus,
                num_gpus=self._cluster.num_gpus,
                resources=dict.fromkeys(self._placement(), _A_LITTLE),
                max_restarts=0,
            )
            actor: Any = made.remote(*self._actor_arguments)
            self._starting[actor.load.remote()] = actor
        if not self._waiting:
            for actor in self._starting.values():
                self._ray.kill(actor)
            self._starting.clear()

    def _placement(self) -> list[str]:
        """Return the resource that marks nodes with this image, if any node has it."""
        return [self._resource] if self._resource in self._ray.cluster_resources() else []

    def _room(self) -> int:
        """Return how many processes fit on the nodes when they are otherwise empty."""
        place, wanted = self._placement(), self._cluster.resources
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(
            min(math.floor(node.get(name, 0) / n + 1e-9) for name, n in wanted.items())
            for node in nodes
            if wanted and all(name in node for name in place)
        )

    def _started(self, ref: Any) -> None:
        actor = self._starting.pop(ref)
        try:
            self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise _failed(f"{self._name} cannot be loaded", error) from error
        except self._ray.exceptions.RayError as error:
            self._ray.kill(actor)
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise JobError(
                    f"{self._name}: {_MAX_FAILED_STARTS} processes died while they loaded it",
                    hint="see Ray's log on stderr; is there enough memory for so many?",
                ) from error
            return
        self._failed_starts = 0
        self._assign(actor, fresh=True)

    def _assign(self, actor: Any, *, fresh: bool) -> None:
        """Give an actor its next part, or end it."""
        for part in self._waiting:
            # A guarded part starts a process of its own: with an actor that has loaded the
            # function already, it would be in memory twice.
            if fresh or not self._is_guarded(part):
                self._waiting.remove(part)
                self._busy[actor.run.remote(part, self._is_guarded(part))] = (actor, part)
                return
        actor.__ray_terminate__.remote()

    def _is_guarded(self, part: BatchPart) -> bool:
        return self._deaths[part.index] >= self._cluster.max_retries

    def _finished(self, ref: Any) -> Iterator[tuple[BatchPart, PartResult]]:
        actor, part = self._busy.pop(ref)
        try:
            result: PartResult = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            raise _failed(str(part), error) from error
        except self._ray.exceptions.RayError as error:
            self._ray.kill(actor)
            self._retry(part, error)
            return
        self._assign(actor, fresh=False)
        yield part, result

    def _retry(self, part: BatchPart, error: Exception) -> None:
        self._deaths[part.index] += 1
        deaths = self._deaths[part.index]
        sys.stderr.write(f"a process died while it ran {part}\n")
        # No record can end a guarded process: a node failed, or memory ran out.
        if deaths > 2 * self._cluster.max_retries:
            raise JobError(
                f"{part}: its process died {deaths} times, and not because of one record",
                hint="is there enough memory? fewer processes (--num-actors, --num-cpus) or "
                "smaller parts (--part-bytes, with a new output folder) need less",
            ) from error
        self._waiting.appendleft(part)

    def _report_waiting(self) -> None:
        """Report from time to time what the job waits for; raise after the timeout."""
        now = time.monotonic()
        if self._busy or not self._waiting:
            self._last_busy = self._last_report = now
            return
        wanted = f"{len(self._starting)} x {_shown(self._cluster.resources)}"
        if now - self._last_busy > self._cluster.start_timeout:
            raise JobError(
                f"no process has started in {self._cluster.start_timeout:g} s; asked for {wanted}, "
                f"the cluster has {_available()}",
                hint="ask for less, or add workers; parts that are done stay done",
            )
        if now - self._last_report > _REPORT_SECONDS:
            self._last_report = now
            sys.stderr.write(f"waiting for {wanted}; the cluster has {_available()}\n")


def _available() -> str:
    import ray

    found = ray.cluster_resources()
    return _shown({name: found.get(name, 0) for name in ("CPU", "GPU")})


def _shown(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"


def _failed(what: str, error: Any) -> JobError:
    reason = f"{type(error.cause).__name__}: {error.cause}"
    return JobError(f"{what}: {reason}", hint=getattr(error.cause, "hint", None))
