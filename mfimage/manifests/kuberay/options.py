"""The options of a Ray cluster: pods, nodes, variables, authentication."""
# ruff: noqa: RUF009  (`option` declares a field)

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mfimage.errors import OptionError
from mfimage.manifests.checks import KEY, OBJECT, check_label, check_number
from mfimage.manifests.image import StatedPulled
from mfimage.manifests.options import Resources, Scale, option, resources
from mfimage.manifests.shared import (
    IMAGE_VARIABLES,
    EnvironmentOptions,
    ObjectOptions,
    PlacementOptions,
    PodOptions,
)

_AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
# Variables that the image sets, and those that KubeRay sets after the manifest's own.
_OWNED = {
    **IMAGE_VARIABLES,
    **dict.fromkeys(
        (
            "FQ_RAY_IP", "RAY_IP", "RAY_ADDRESS", "RAY_PORT", "RAY_CLUSTER_NAME",
            "RAY_CLUSTER_NAMESPACE", "RAY_CLOUD_INSTANCE_ID", "RAY_NODE_TYPE_NAME",
            "RAY_REDIS_ADDRESS", "RAY_USAGE_STATS_EXTRA_TAGS", "RAY_enable_autoscaler_v2",
            "KUBERAY_GEN_RAY_START_CMD", "REDIS_PASSWORD", "REDIS_USERNAME",
        ),
        "KubeRay",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StatedRay(StatedPulled):
    """What the user states about an image for Ray."""

    ray_version: str | None = option("Version of Ray in an image that is not found.", "VERSION")
    function_digest: str | None = option(
        "Function's digest in an image that is not found.", "sha256:HEX"
    )


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(EnvironmentOptions, PlacementOptions, PodOptions, ObjectOptions):
    """The Ray cluster of a RayCluster, RayJob or RayService.

    The labels are the resource's, not its pods', which other controllers may select by label.
    """

    replicas: int | None = option("Worker pods; 1 by default.", "N", type=int)
    min_replicas: int | None = option("Minimum number of worker pods.", "N", type=int)
    max_replicas: int | None = option("Maximum number of worker pods.", "N", type=int)
    autoscaling: bool = option("Let Ray start and stop workers.", default=False)
    idle_timeout: int = option("Time until Ray stops an idle worker.", "SECONDS", 60)
    worker: Resources = resources("each worker")
    head: Resources = resources("the head")
    gpu_resource: str = option("Kubernetes' name of a GPU.", "NAME", "nvidia.com/gpu")
    worker_node_selector: Mapping[str, str] = option(
        "Label of nodes for workers.", "NAME=VALUE", {}
    )
    auth: Literal["token", "disabled"] = option(
        "Whether clients of Ray need a token.", default="token", choices=("token", "disabled")
    )
    auth_secret: str | None = option("Secret with the token; KubeRay creates one if unset.", "NAME")
    python_match: Literal["patch", "minor"] = option(
        "How closely the Python of an external driver must match.",
        default="patch", choices=("patch", "minor"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        self.head.check("head")
        self.worker.check("worker")
        KEY.check(self.gpu_resource, field="gpu-resource")
        check_number(self.idle_timeout, field="idle-timeout")
        self.check_object("ray.io/", "KubeRay")
        self.check_pod()
        self.check_placement()
        for key, value in self.worker_node_selector.items():
            check_label(key, value, field="worker-node-selector")
        self.check_variables(_OWNED)
        _check_auth(self)
        for name in ("replicas", "min_replicas", "max_replicas"):
            check_number(getattr(self, name), field=name.replace("_", "-"))
        self.workers.check()
        if self.autoscaling and self.workers.minimum == self.workers.maximum:
            raise OptionError(
                f"autoscaling: min and max replicas are both {self.workers.maximum}",
                hint="give --min-replicas, --max-replicas or both",
            )

    @property
    def workers(self) -> Scale:
        """The number of worker pods."""
        replicas, low, high = self.replicas, self.min_replicas, self.max_replicas
        if replicas is None:
            replicas = 1 if low is None else low
            replicas = replicas if high is None else min(replicas, high)
        minimum = low
        if minimum is None:
            minimum = replicas if high is None else min(replicas, high)
        maximum = max(replicas, minimum) if high is None else high
        return Scale(replicas=replicas, minimum=minimum, maximum=maximum)

    def gpus_of_copy(self, requested: float | None) -> float:
        """Return the GPUs of each copy of the function: 1 by default, if workers have any."""
        return min(1, self.worker.gpus) if requested is None else requested

    def check_room(self, option: str, wanted: int, cpus: float, gpus: float) -> float:
        """Return how many copies of the function fit into all workers, which must be enough."""
        # Ray's CPUs of a pod are whole: KubeRay rounds up.
        whole = self.worker.whole_cpus
        pods = self.workers.maximum if self.autoscaling else self.workers.replicas
        needs = ((cpus, whole), (gpus, self.worker.gpus))
        fits = (math.floor(have / need + 1e-9) for need, have in needs if need)
        room = pods * min(fits, default=math.inf) if pods else 0
        if room < wanted:
            raise OptionError(
                f"{option}: {wanted}, each with {cpus:g} CPUs and {gpus:g} GPUs, do not fit into "
                f"{pods} workers with {whole} CPUs and {self.worker.gpus} GPUs",
                hint="ask for less, or for more or larger workers",
            )
        return room


def _check_auth(options: ClusterOptions) -> None:
    if options.auth_secret is not None:
        OBJECT.check(options.auth_secret, field="auth-secret")
        if options.auth != "token":
            raise OptionError(
                "auth-secret: it has no use with auth disabled", hint="add --auth token"
            )
    given = {"env": options.env, "env-from-secret": options.env_from_secret}
    for field, variables in given.items():
        for name in _AUTH:
            if name in variables:
                raise OptionError(
                    f"{field}: {name} is set by --auth",
                    hint="--auth token, with your own token by --auth-secret; or --auth disabled",
                )
