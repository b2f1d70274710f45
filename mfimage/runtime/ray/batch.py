"""The parts of a batch job on a Ray cluster: an actor for each process, one part at a time."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfimage.errors import OptionError
from mfimage.runtime.batch.job import JobError
from mfimage.runtime.batch.parts import Part, PartDone, PartOptions, PartRunner
from mfimage.runtime.layout import placement_resource
from mfimage.runtime.loading.loader import load_folder

_TOLD_EVERY = 10.0
_LOOK_EVERY = 2.0
# Of a resource that says where the image is: any amount will do.
_A_LITTLE = 0.001
_FAILED_STARTS = 5


@dataclass(frozen=True, kw_only=True)
class RayJobOptions:
    """On what of the cluster a job runs.

    Attributes
    ----------
    address : str or None
        See ``ray_preflight.connect``.
    num_actors : int or None
        How many processes; as many as the cluster has room for if None.
    num_cpus, num_gpus : float
        What each is given.
    max_retries : int
        How often a part is tried again when its process died; the last time so that a record
        which ends the process fails alone.
    start_timeout : float
        Seconds that the job waits, without any process, for one.
    """

    address: str | None = None
    num_actors: int | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    max_retries: int = 2
    start_timeout: float = 300

    def __post_init__(self) -> None:
        least = {"num_actors": 1, "num_cpus": 0, "num_gpus": 0, "max_retries": 1}
        for name, limit in {**least, "start_timeout": 0}.items():
            value = getattr(self, name)
            if value is not None and not limit <= value < math.inf:
                raise OptionError(f"{name}: expected at least {limit}, got {value:g}")

    @property
    def asked(self) -> dict[str, float]:
        """What each process takes of its node, by Ray's names."""
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {name: amount for name, amount in asked.items() if amount}


class PartActor:
    """Runs parts of a job in a process of the cluster."""

    def __init__(self, name: str, folder: str, options: PartOptions) -> None:
        os.dup2(2, 1)  # what the function prints goes where its logs go
        sys.stdout = sys.stderr
        self._name = name
        self._folder = Path(folder)
        self._options = options

    def __repr__(self) -> str:
        # What Ray puts before each line that the function prints.
        return self._name

    def load(self) -> None:
        """Load the function."""
        self._runner = PartRunner(load_folder(self._folder), self._options)

    def run(self, part: Part, guarded: bool) -> PartDone:
        """Run a part; see ``PartRunner``."""
        return self._runner.run(part, guard=self._folder if guarded else None)


@dataclass
class RayRunner:
    """Runs a job's parts on a cluster that this process has joined.

    Actors wait on the cluster until there is room for them, so that one which scales itself sees
    what is wanted. A part goes to an actor that is ready.

    Attributes
    ----------
    name, digest : str
        The function's.
    folder : Path
        Where its package is, on every node.
    part_options, options
        How.
    """

    name: str
    digest: str
    folder: Path
    part_options: PartOptions
    options: RayJobOptions
    _waiting: deque[Part] = field(init=False, default_factory=deque)
    _starting: dict[Any, Any] = field(init=False, default_factory=dict)
    _busy: dict[Any, tuple[Any, Part]] = field(init=False, default_factory=dict)
    _deaths: Counter[int] = field(init=False, default_factory=Counter)
    _failed_starts: int = field(init=False, default=0)
    _had_one: float = field(init=False, default_factory=time.monotonic)
    _told: float = field(init=False, default_factory=time.monotonic)

    def run(self, parts: list[Part]) -> Iterator[tuple[Part, PartDone]]:
        """Run parts, and yield each as it is done."""
        import ray

        self._waiting.extend(parts)
        self._had_one = self._told = time.monotonic()
        try:
            while self._waiting or self._busy:
                self._start_or_stop()
                refs = [*self._starting, *self._busy]
                done, _ = ray.wait(refs, num_returns=1, timeout=_LOOK_EVERY)
                for ref in done:
                    if ref in self._starting:
                        self._started(ref)
                    else:
                        yield from self._finished(ref)
                self._look()
        finally:
            for actor in [*self._starting.values(), *(actor for actor, _ in self._busy.values())]:
                ray.kill(actor)

    def _start_or_stop(self) -> None:
        """Have as many actors as there is room and work for."""
        import ray

        wanted = self.options.num_actors or max(1, _room(self.options, self._place()))
        for _ in range(min(wanted - len(self._busy), len(self._waiting)) - len(self._starting)):
            actor = self._actor()
            self._starting[actor.load.remote()] = actor
        if not self._waiting:
            for actor in self._starting.values():
                ray.kill(actor)
            self._starting.clear()

    def _actor(self) -> Any:
        import ray

        made = ray.remote(PartActor).options(
            num_cpus=self.options.num_cpus,
            num_gpus=self.options.num_gpus,
            resources=dict.fromkeys(self._place(), _A_LITTLE),
            max_restarts=0,
        )
        return made.remote(self.name, str(self.folder), self.part_options)

    def _place(self) -> list[str]:
        """Return the resource of nodes that have this image, if any says that it has."""
        import ray

        name = placement_resource(self.digest)
        return [name] if name in ray.cluster_resources() else []

    def _started(self, ref: Any) -> None:
        import ray

        actor = self._starting.pop(ref)
        try:
            ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            raise _failed(f"{self.name} cannot be loaded", error) from error
        except ray.exceptions.RayError as error:
            ray.kill(actor)
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise JobError(
                    f"{self.name}: {_FAILED_STARTS} processes died while they loaded it",
                    hint="Ray's log on stderr tells more; is there enough memory for so many?",
                ) from error
            return
        self._failed_starts = 0
        self._give(actor, fresh=True)

    def _give(self, actor: Any, *, fresh: bool) -> None:
        """Give an actor its next part, or let it go."""
        for part in self._waiting:
            # What runs it guarded starts a process of its own: a function that is in memory
            # already would be there twice.
            if fresh or not self._guarded(part):
                self._waiting.remove(part)
                self._busy[actor.run.remote(part, self._guarded(part))] = (actor, part)
                return
        actor.__ray_terminate__.remote()

    def _guarded(self, part: Part) -> bool:
        return self._deaths[part.index] >= self.options.max_retries

    def _finished(self, ref: Any) -> Iterator[tuple[Part, PartDone]]:
        import ray

        actor, part = self._busy.pop(ref)
        try:
            result: PartDone = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            raise _failed(_named(part), error) from error
        except ray.exceptions.RayError as error:
            ray.kill(actor)
            self._died(part, error)
            return
        self._give(actor, fresh=False)
        yield part, result

    def _died(self, part: Part, error: Exception) -> None:
        self._deaths[part.index] += 1
        deaths = self._deaths[part.index]
        sys.stderr.write(f"a process died while it ran {_named(part)}\n")
        # Guarded, no record can end the process: nodes went, or the memory.
        if deaths > 2 * self.options.max_retries:
            raise JobError(
                f"{_named(part)}: its process died {deaths} times, and of no record in particular",
                hint="is there enough memory? fewer processes (--num-actors, --num-cpus) or "
                "smaller parts (--part-bytes, with a new output folder) need less",
            ) from error
        self._waiting.appendleft(part)

    def _look(self) -> None:
        """Say now and then what is waited for; give up in the end."""
        now = time.monotonic()
        if self._busy or not self._waiting:
            self._had_one = self._told = now
            return
        wants = f"{len(self._starting)} x {_shown(self.options.asked)}"
        if now - self._had_one > self.options.start_timeout:
            raise JobError(
                f"no process has started in {self.options.start_timeout:g} s; asked for {wants}, "
                f"the cluster has {_has()}",
                hint="ask for less, or add workers; what is done stays done",
            )
        if now - self._told > _TOLD_EVERY:
            self._told = now
            sys.stderr.write(f"waiting for {wants}; the cluster has {_has()}\n")


def _room(options: RayJobOptions, place: list[str]) -> int:
    """Return how many processes fit on nodes that are otherwise empty."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fits = (
        min((math.floor(node.get(name, 0) / n + 1e-9) for name, n in options.asked.items()))
        for node in nodes
        if options.asked and all(name in node for name in place)
    )
    return sum(fits)


def _has() -> str:
    import ray

    found = ray.cluster_resources()
    return _shown({name: found.get(name, 0) for name in ("CPU", "GPU")})


def _shown(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"


def _named(part: Part) -> str:
    return f"part {part.index} ({part.url}, bytes {part.start} to {part.end})"


def _failed(what: str, error: Any) -> JobError:
    reason = f"{type(error.cause).__name__}: {error.cause}"
    return JobError(f"{what}: {reason}", hint=getattr(error.cause, "hint", None))
