"""What runs on the cluster: a batch job, or a service."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass

from mfimage.errors import OptionError
from mfimage.manifests.kuberay.checks import check_number, check_value, check_whole
from mfimage.manifests.kuberay.options import ClusterOptions
from mfimage.manifests.kuberay.parts import Scale, check_order

# On its way to the function a URL passes the submitter's bash and the head's sh, and until
# Ray 2.56 `ray job submit` quoted between them as Windows does. These come through all of it.
_PLAIN = re.compile(r"[\w @%+=:,./~*?!^\[\]-]+")


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """A batch job.

    Attributes
    ----------
    input, output : str
        URLs or paths on the head: files, folders, globs; a folder.
    format, output_format : str or None
        Of the files; by their suffix, and as the input, if None.
    batch_size : int or None
        Records that a batch function gets at once; the job's own choice if None.
    num_actors : int or None
        Copies of the function; as many as the workers have room for if None.
    num_cpus : float
        CPUs that Ray reserves for a copy.
    num_gpus : float or None
        GPUs that Ray reserves for a copy, which sees no other; one, on workers that have some, if
        None.
    allow_errors : bool
        Count a job as done although some records have no result; it would be tried again.
    ttl : int
        Seconds that the cluster, and its logs, outlive the job.
    backoff_limit : int
        How often a failed job is tried again, on a new cluster.
    deadline : int or None
        Seconds until the job is given up.
    """

    input: str
    output: str
    format: str | None = None
    output_format: str | None = None
    batch_size: int | None = None
    num_actors: int | None = None
    num_cpus: float = 1
    num_gpus: float | None = None
    allow_errors: bool = False
    ttl: int = 300
    backoff_limit: int = 1
    deadline: int | None = None

    def __post_init__(self) -> None:
        for name in ("input", "output", "format", "output_format"):
            if (text := getattr(self, name)) is not None:
                _check_plain(text, field=name.replace("_", "-"))
        check_whole(self.batch_size, field="batch-size", least=1)
        check_whole(self.num_actors, field="num-actors", least=1)
        check_number(self.num_cpus, field="num-cpus")
        check_number(self.num_gpus, field="num-gpus")
        check_whole(self.ttl, field="ttl")
        check_whole(self.backoff_limit, field="backoff-limit")
        check_whole(self.deadline, field="deadline", least=1)

    def entrypoint(self, cluster: ClusterOptions) -> str:
        """Return the command line that KubeRay submits.

        Raises
        ------
        OptionError
            If no worker has room for a copy of the function.
        """
        gpus = _gpus(self.num_gpus, cluster)
        room = _room(self.num_cpus, gpus, cluster)
        if room < (self.num_actors or 1):
            raise _no_room("num-actors", self.num_actors or 1, self.num_cpus, gpus, cluster)
        actors = self.num_actors
        if actors is None and cluster.autoscaling and math.isfinite(room):
            # At the start, few workers are there: the job would ask for no more than they hold.
            actors = int(room)
        options = {
            "input": self.input,
            "output": self.output,
            "format": self.format,
            "output-format": self.output_format,
            "batch-size": self.batch_size,
            "num-actors": actors,
            "num-cpus": None if self.num_cpus == 1 else f"{self.num_cpus:g}",
            "num-gpus": f"{gpus:g}" if gpus else None,
            # The cluster that the job was submitted to, never one of its own.
            "address": "auto",
        }
        # With "=" a glob is no path that either shell could find something for.
        words = [f"--{name}={value}" for name, value in options.items() if value is not None]
        flags = ["--allow-errors"] if self.allow_errors else []
        return shlex.join(["python", "-m", "mfimage.runtime", "batch", *words, *flags])


def _check_plain(text: str, *, field: str) -> None:
    check_value(text, field=field)
    if not text:
        raise OptionError(f"{field}: it is empty", hint="a URL or a path")
    if not _PLAIN.fullmatch(text):
        wrong = next(char for char in text if not _PLAIN.fullmatch(char))
        raise OptionError(
            f"{field}: {text!r} has the character {wrong!r}, which the shells between Kubernetes "
            "and the job may change",
            hint="letters, digits, spaces and _@%+=:,./~*?!^[]- come through unchanged",
        )


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """A Ray Serve deployment.

    Attributes
    ----------
    replicas : int or None
        Copies of the function; one for each worker pod if None.
    min_replicas, max_replicas : int or None
        Where one is given, Ray Serve starts and stops copies between them.
    ongoing_requests : float or None
        Requests at once in a copy, above which another is started.
    cpus : float
        CPUs that Ray reserves for a copy.
    gpus : float or None
        GPUs that Ray reserves for a copy, which sees no other; one, on workers that have some, if
        None.
    """

    replicas: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    ongoing_requests: float | None = None
    cpus: float = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        for name in ("replicas", "min_replicas", "max_replicas"):
            # A worker without a copy is never ready, and the head takes no requests.
            field = f"serve-{name.replace('_', '-')}"
            check_whole(getattr(self, name), field=field, least=1)
        check_number(self.cpus, field="serve-cpus")
        check_number(self.gpus, field="serve-gpus")
        check_number(self.ongoing_requests, field="serve-ongoing-requests", above=True)
        if self.ongoing_requests is not None and not self.autoscaling:
            raise OptionError(
                "serve-ongoing-requests: it does nothing to a fixed number of replicas",
                hint="give --serve-max-replicas",
            )

    @property
    def autoscaling(self) -> bool:
        """Whether Ray Serve chooses the number of copies."""
        return self.min_replicas is not None or self.max_replicas is not None

    def deployment(self, cluster: ClusterOptions) -> Deployment:
        """Settle what is left open, and check that it fits the cluster.

        Raises
        ------
        OptionError
            If bounds exclude each other, or the workers have no room for the copies.
        """
        replicas = self.replicas
        if replicas is None:
            replicas = max(1, cluster.workers.replicas)
            if self.autoscaling:
                replicas = max(replicas, self.min_replicas or 1)
                replicas = min(replicas, self.max_replicas or replicas)
        least = self.min_replicas or (1 if self.autoscaling else replicas)
        most = self.max_replicas or max(replicas, least)
        scale = Scale(replicas=replicas, least=least, most=most)
        check_order(scale, prefix="serve-")
        gpus = _gpus(self.gpus, cluster)
        if _room(self.cpus, gpus, cluster) < scale.least:
            raise _no_room("serve-replicas", scale.least, self.cpus, gpus, cluster)
        return Deployment(
            scale=scale,
            autoscaling=self.autoscaling,
            ongoing_requests=self.ongoing_requests,
            cpus=self.cpus,
            gpus=gpus,
        )


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """`ServiceOptions` with nothing left open."""

    scale: Scale
    autoscaling: bool
    ongoing_requests: float | None
    cpus: float
    gpus: float


def _gpus(asked: float | None, cluster: ClusterOptions) -> float:
    return min(1, cluster.worker.gpus) if asked is None else asked


def _pods(cluster: ClusterOptions) -> int:
    return cluster.workers.most if cluster.autoscaling else cluster.workers.replicas


def _room(cpus: float, gpus: float, cluster: ClusterOptions) -> float:
    """Return how many copies of the function the workers have room for, when all are there."""
    worker = cluster.worker
    each = (
        math.floor(have / need + 1e-9)
        for need, have in ((cpus, worker.ray_cpus), (gpus, worker.gpus))
        if need
    )
    return _pods(cluster) * min(each, default=math.inf) if _pods(cluster) else 0


def _no_room(
    option: str, wanted: int, cpus: float, gpus: float, cluster: ClusterOptions
) -> OptionError:
    worker = cluster.worker
    return OptionError(
        f"{option}: {wanted}, each with {cpus:g} CPUs and {gpus:g} GPUs, do not fit into "
        f"{_pods(cluster)} workers with {worker.ray_cpus} CPUs and {worker.gpus} GPUs",
        hint="ask for less, or for more or larger workers",
    )
