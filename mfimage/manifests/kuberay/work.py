"""What runs on the cluster: a batch job, or a service."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass

from mfimage.errors import OptionError
from mfimage.manifests.checks import check_number, check_value
from mfimage.manifests.kuberay.options import ClusterOptions
from mfimage.manifests.options import REQUIRED, Scale, option

# A URL passes through the submitter's bash and the head's sh, and until Ray 2.56 `ray job submit`
# quoted between them as Windows does. These characters pass through all of them unchanged.
_PLAIN = re.compile(r"[\w @%+=:,./~*?!^\[\]-]+")


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """A batch job; Ray reserves CPUs and GPUs for each copy, which sees no other GPUs."""

    input: str = option("Records: a file, folder or glob.", "URL", REQUIRED)
    output: str = option("Folder for the results.", "URL", REQUIRED)
    format: str | None = option("Input format: jsonl, avro or parquet; by suffix.", "NAME")
    output_format: str | None = option("Output format; the input's by default.", "NAME")
    batch_size: int | None = option("Records in each call.", "N", type=int)
    num_actors: int | None = option(
        "Copies of the function; by default as many as fit.", "N", type=int
    )
    num_cpus: float = option("CPUs of each copy.", "N", 1.0)
    num_gpus: float | None = option("GPUs of each copy; 1 if workers have GPUs.", "N", type=float)
    allow_errors: bool = option("Succeed although records failed.", default=False)
    ttl: int = option("Time that the cluster and its logs remain after the job.", "SECONDS", 300)
    backoff_limit: int = option("Further attempts, each on a new cluster.", "N", 1)
    deadline: int | None = option("Time until the job is stopped.", "SECONDS", type=int)

    def __post_init__(self) -> None:
        for name in ("input", "output", "format", "output_format"):
            if (text := getattr(self, name)) is not None:
                _check_plain(text, field=name.replace("_", "-"))
        for name in ("num_cpus", "num_gpus", "ttl", "backoff_limit"):
            check_number(getattr(self, name), field=name.replace("_", "-"))
        for name in ("batch_size", "num_actors", "deadline"):
            check_number(getattr(self, name), field=name.replace("_", "-"), minimum=1)

    def entrypoint(self, cluster: ClusterOptions) -> str:
        """Return the command line that KubeRay submits."""
        gpus = _gpus(self.num_gpus, cluster)
        room = _check_room("num-actors", self.num_actors or 1, self.num_cpus, gpus, cluster)
        actors = self.num_actors
        if actors is None and cluster.autoscaling and math.isfinite(room):
            # Few workers have started by then: the job would ask for as many as they hold.
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
            # The cluster that the job was submitted to, not one of its own.
            "address": "auto",
        }
        # After "=" neither shell expands a glob.
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
            hint="letters, digits, spaces and _@%+=:,./~*?!^[]- pass through unchanged",
        )


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """A Ray Serve deployment, which scales between bounds if one is given."""

    replicas: int | None = option(
        "Copies of the function; by default one for each worker.", "N", type=int
    )
    min_replicas: int | None = option("Minimum of copies.", "N", type=int)
    max_replicas: int | None = option("Maximum of copies.", "N", type=int)
    ongoing_requests: float | None = option(
        "Concurrent requests for each copy, above which one is added.", "N", type=float
    )
    cpus: float = option("CPUs of each copy.", "N", 1.0)
    gpus: float | None = option("GPUs of each copy; 1 if workers have GPUs.", "N", type=float)

    def __post_init__(self) -> None:
        for name in ("replicas", "min_replicas", "max_replicas"):
            # A worker without a copy never becomes ready, and the head takes no requests.
            field = f"serve-{name.replace('_', '-')}"
            check_number(getattr(self, name), field=field, minimum=1)
        check_number(self.cpus, field="serve-cpus")
        check_number(self.gpus, field="serve-gpus")
        check_number(self.ongoing_requests, field="serve-ongoing-requests", above=True)
        if self.ongoing_requests is not None and not self.autoscaling:
            raise OptionError(
                "serve-ongoing-requests: it has no effect on a fixed number of replicas",
                hint="give --serve-max-replicas",
            )

    @property
    def autoscaling(self) -> bool:
        """Whether Ray Serve chooses the number of copies."""
        return self.min_replicas is not None or self.max_replicas is not None

    def deployment(self, cluster: ClusterOptions) -> dict[str, object]:
        """Return the arguments of the deployment."""
        scale = self._scale(cluster)
        scale.check("serve-")
        gpus = _gpus(self.gpus, cluster)
        _check_room("serve-replicas", scale.minimum, self.cpus, gpus, cluster)
        autoscaling = {
            "initial_replicas": scale.replicas,
            "min_replicas": scale.minimum,
            "max_replicas": scale.maximum,
            "target_ongoing_requests": self.ongoing_requests,
        }
        return {
            "autoscaling_config": autoscaling if self.autoscaling else None,
            "num_replicas": None if self.autoscaling else scale.replicas,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": gpus},
        }

    def _scale(self, cluster: ClusterOptions) -> Scale:
        replicas = self.replicas
        if replicas is None:
            replicas = max(1, cluster.workers.replicas, self.min_replicas or 1)
            replicas = min(replicas, self.max_replicas or replicas)
        minimum = self.min_replicas or (1 if self.autoscaling else replicas)
        maximum = self.max_replicas or max(replicas, minimum)
        return Scale(replicas=replicas, minimum=minimum, maximum=maximum)


def _gpus(requested: float | None, cluster: ClusterOptions) -> float:
    return min(1, cluster.worker.gpus) if requested is None else requested


def _check_room(
    option: str, wanted: int, cpus: float, gpus: float, cluster: ClusterOptions
) -> float:
    """Return how many copies of the function fit into all workers, which must be enough."""
    # Ray's CPUs of a pod are whole: KubeRay rounds up.
    worker = cluster.worker
    pods = cluster.workers.maximum if cluster.autoscaling else cluster.workers.replicas
    needs = ((cpus, worker.whole_cpus), (gpus, worker.gpus))
    each = min((math.floor(have / need + 1e-9) for need, have in needs if need), default=math.inf)
    room = pods * each if pods else 0
    if room < wanted:
        raise OptionError(
            f"{option}: {wanted}, each with {cpus:g} CPUs and {gpus:g} GPUs, do not fit into "
            f"{pods} workers with {worker.whole_cpus} CPUs and {worker.gpus} GPUs",
            hint="ask for less, or for more or larger workers",
        )
    return room
