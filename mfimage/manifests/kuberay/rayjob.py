"""A RayJob, which starts a cluster, runs a batch on it, and stops it."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass

from mfimage.errors import OptionError
from mfimage.manifests.checks import check_number, check_value
from mfimage.manifests.kind import Kind
from mfimage.manifests.kuberay.cluster import Cluster
from mfimage.manifests.kuberay.image import RayImage, read_ray_image
from mfimage.manifests.kuberay.options import ClusterOptions, StatedRay
from mfimage.manifests.options import REQUIRED, Resources, option

# A URL passes through the submitter's bash and the head's sh, and until Ray 2.56 `ray job submit`
# quoted between them as Windows does. These characters pass through all of them unchanged.
_PLAIN = re.compile(r"[\w @%+=:,./~*?!^\[\]-]+")

# What KubeRay would give the submitter; `ray job submit` waits and prints.
_SUBMITTER = Resources(cpu="500m", memory="1Gi")


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

    def entrypoint(self, cluster: ClusterOptions, function: str | None = None) -> str:
        """Return the command line that KubeRay submits; ``function`` is one of several."""
        if function is not None:
            _check_plain(function, field="function")
        gpus = cluster.gpus_of_copy(self.num_gpus)
        room = cluster.check_room("num-actors", self.num_actors or 1, self.num_cpus, gpus)
        actors = self.num_actors
        if actors is None and cluster.autoscaling and math.isfinite(room):
            # Few workers have started by then: the job would ask for as many as they hold.
            actors = int(room)
        options = {
            "function": function,
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


def write(image: RayImage, options: ClusterOptions, job: JobOptions) -> str:
    """Write a RayJob, which runs a batch."""
    cluster = Cluster(image, options)
    cluster.check_workers()
    spec = {
        "submissionMode": "K8sJobMode",
        "entrypoint": job.entrypoint(options, image.function if image.several else None),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": job.ttl,
        "backoffLimit": job.backoff_limit,
        "activeDeadlineSeconds": job.deadline,
        "submitterPodTemplate": cluster.pod("ray-job-submitter", _SUBMITTER),
        "rayClusterSpec": cluster.spec(),
    }
    return cluster.write("RayJob", spec)


KIND = Kind(
    stated=StatedRay,
    options=(
        (ClusterOptions, ""),
        (JobOptions, ""),
    ),
    read=read_ray_image,
    write=write,
)
