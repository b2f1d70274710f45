"""The options of a Ray cluster: pods, nodes, variables, authentication."""
# ruff: noqa: RUF009  (`option` declares a field)

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mfimage.errors import OptionError
from mfimage.manifests.checks import (
    KEY,
    NAMESPACE,
    OBJECT,
    SECRET_KEY,
    VARIABLE,
    check_label,
    check_number,
    check_value,
)
from mfimage.manifests.options import Resources, Scale, SecretRef, Toleration, option, resources

_POLICIES = ("Always", "IfNotPresent", "Never")
_CREDENTIALS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
# Variables that the image sets, and those that KubeRay sets after the manifest's own.
_OWNED = {
    **dict.fromkeys(("PATH", "PYTHONPATH", "PYTHONHOME"), "the image"),
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


def _user(text: str) -> int | None:
    if text == "any":
        return None
    if not text.isascii() or not text.isdigit():
        raise OptionError(f"run-as-user: {text!r} is not a uid", hint="such as 1000, or any")
    return int(text)


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What the user states about an image; it must agree with the image's labels."""

    ray_version: str | None = option("Version of Ray in an image that is not found.", "VERSION")
    function: str | None = option("Function in an image that is not found.", "NAME")
    function_digest: str | None = option("Its digest in an image that is not found.", "sha256:HEX")


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The Ray cluster of a RayCluster, RayJob or RayService.

    The labels are the resource's, not its pods', which other controllers may select by label.
    """

    name: str | None = option("Name of the resource; the function's by default.", "NAME")
    namespace: str | None = option("Namespace; kubectl's by default.", "NAME")
    labels: Mapping[str, str] = option("Label of the resource.", "NAME=VALUE", {}, flag="label")
    service_account: str | None = option("Service account of the pods.", "NAME")
    image_pull_secrets: tuple[str, ...] = option(
        "Secret to pull with.", "NAME", (), flag="image-pull-secret"
    )
    image_pull_policy: str | None = option(
        "Always, IfNotPresent (the default for an image by digest) or Never.", "POLICY"
    )
    run_as_user: int | None = option(
        "User of the pods; any: as the cluster chooses.", "UID|any", 1000, type=str, parse=_user
    )
    replicas: int | None = option("Worker pods; 1 by default.", "N", type=int)
    min_replicas: int | None = option("Minimum of worker pods.", "N", type=int)
    max_replicas: int | None = option("Maximum of worker pods.", "N", type=int)
    autoscaling: bool = option("Let Ray start and stop workers.", default=False)
    idle_timeout: int = option("Time until Ray stops an idle worker.", "SECONDS", 60)
    worker: Resources = resources("each worker")
    head: Resources = resources("the head")
    gpu_resource: str = option("Kubernetes' name of a GPU.", "NAME", "nvidia.com/gpu")
    node_selector: Mapping[str, str] = option("Label of nodes for all pods.", "NAME=VALUE", {})
    worker_node_selector: Mapping[str, str] = option(
        "Label of nodes for workers.", "NAME=VALUE", {}
    )
    tolerations: tuple[Toleration, ...] = option(
        "Taint that all pods tolerate.", "KEY[=VALUE][:EFFECT]", (),
        flag="toleration", parse=Toleration.parse,
    )  # fmt: skip
    env: Mapping[str, str] = option("Variable, literally.", "NAME=VALUE", {})
    env_from_secret: Mapping[str, SecretRef] = option(
        "Variable from a Secret.", "NAME=SECRET:KEY", {}, parse=SecretRef.parse
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
        check_number(self.run_as_user, field="run-as-user", minimum=1)
        _check_objects(self)
        for key, value in (*self.node_selector.items(), *self.worker_node_selector.items()):
            check_label(key, value, field="node-selector")
        for each in self.tolerations:
            each.check()
        _check_env(self)
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


def _check_objects(options: ClusterOptions) -> None:
    names = [
        (NAMESPACE, "namespace", options.namespace),
        *((OBJECT, "image-pull-secret", name) for name in options.image_pull_secrets),
        (OBJECT, "service-account", options.service_account),
        (OBJECT, "auth-secret", options.auth_secret),
    ]
    for rule, field, name in names:
        if name is not None:
            rule.check(name, field=field)
    for key, value in options.labels.items():
        check_label(key, value, field="label")
        if key.startswith("ray.io/"):
            raise OptionError(f"label: {key} is reserved for KubeRay", hint="choose another name")
    if options.auth_secret is not None and options.auth != "token":
        raise OptionError("auth-secret: it has no use with auth disabled", hint="add --auth token")
    if options.image_pull_policy not in (None, *_POLICIES):
        raise OptionError(
            f"image-pull-policy: {options.image_pull_policy!r} is not a policy",
            hint=", ".join(_POLICIES),
        )


def _check_env(options: ClusterOptions) -> None:
    for name, value in options.env.items():
        _check_variable(name, "env")
        check_value(value, field=f"env {name}")
        if name in _CREDENTIALS:
            raise OptionError(
                f"env: {name} is a credential, which everyone who reads the manifest would see",
                hint=f"put it into a Secret: --env-from-secret {name}=SECRET:KEY",
            )
    for name, ref in options.env_from_secret.items():
        _check_variable(name, "env-from-secret")
        if name in options.env:
            raise OptionError(
                f"env-from-secret: {name} is given twice", hint="leave one of them out"
            )
        OBJECT.check(ref.secret, field=f"env-from-secret {name}")
        SECRET_KEY.check(ref.key, field=f"env-from-secret {name}")


def _check_variable(name: str, option: str) -> None:
    VARIABLE.check(name, field=option)
    if name in _AUTH:
        raise OptionError(
            f"{option}: {name} is set by --auth",
            hint="--auth token, with your own token by --auth-secret; or --auth disabled",
        )
    if name in _OWNED:
        raise OptionError(f"{option}: {name} is set by {_OWNED[name]}", hint="leave it out")
