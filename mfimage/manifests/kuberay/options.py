"""The options of a Ray cluster: pods, nodes, variables, authentication."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mfimage.errors import OptionError
from mfimage.manifests.checks import (
    check_key,
    check_label,
    check_namespace,
    check_number,
    check_secret_key,
    check_subdomain,
    check_value,
    check_variable,
    parse_cpu,
    parse_memory,
)

_POLICIES = ("Always", "IfNotPresent", "Never")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
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


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a pod requests, and may use at most.

    Attributes
    ----------
    cpu, memory : str
        As Kubernetes writes them: ``2`` or ``500m``; ``4Gi``.
    gpus : int
        Whole GPUs.
    """

    cpu: str = "2"
    memory: str = "4Gi"
    gpus: int = 0

    def check(self, pod: str) -> None:
        """Raise an `OptionError` if something is not a quantity."""
        parse_cpu(self.cpu, field=f"{pod}-cpu")
        parse_memory(self.memory, field=f"{pod}-memory")
        check_number(self.gpus, field=f"{pod}-gpus")

    @property
    def ray_cpus(self) -> int:
        """The CPUs that Ray counts on such a pod: KubeRay rounds up."""
        return math.ceil(parse_cpu(self.cpu, field="cpu"))


@dataclass(frozen=True, kw_only=True)
class SecretRef:
    """A key of a Secret."""

    secret: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Toleration:
    """A taint of nodes that pods may run on; with any value if ``value`` is None."""

    key: str
    value: str | None = None
    effect: str | None = None

    def check(self) -> None:
        """Raise an `OptionError` if it is not a taint."""
        check_label(self.key, self.value or "", field="toleration")
        if self.effect not in (None, *_EFFECTS):
            raise OptionError(
                f"toleration: {self.key}: {self.effect!r} is not an effect",
                hint=", ".join(_EFFECTS),
            )


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How many: at the start, at least and at most."""

    replicas: int
    minimum: int
    maximum: int

    def check(self, prefix: str = "") -> None:
        """Raise an `OptionError` if the numbers contradict each other."""
        low, high = f"{prefix}min-replicas", f"{prefix}max-replicas"
        if self.minimum > self.maximum:
            raise OptionError(
                f"{low}: {self.minimum} is more than {high} {self.maximum}", hint=f"raise --{high}"
            )
        if not self.minimum <= self.replicas <= self.maximum:
            more = self.replicas > self.maximum
            bound = (
                f"more than {high} {self.maximum}" if more else f"less than {low} {self.minimum}"
            )
            raise OptionError(
                f"{prefix}replicas: {self.replicas} is {bound}",
                hint=f"change --{prefix}replicas or --{high if more else low}",
            )


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The Ray cluster of a RayCluster, RayJob or RayService.

    Attributes
    ----------
    name : str or None
        Name of the resource; derived from the function's if None.
    namespace : str or None
        Kubernetes namespace; ``kubectl``'s if None.
    labels : mapping of str to str
        Labels of the resource; not of its pods, which other controllers may select by label.
    head, worker : Resources
        Resources of each head and worker pod.
    gpu_resource : str
        Kubernetes' name of a GPU.
    replicas, min_replicas, max_replicas : int or None
        Worker pods; one, and bounds equal to ``replicas``, if None.
    autoscaling : bool
        Let Ray start and stop workers between the bounds.
    idle_timeout : int
        Seconds until an idle worker is stopped.
    service_account : str or None
        Service account of the pods; the namespace's default if None.
    node_selector, worker_node_selector : mapping of str to str
        Labels of nodes for all pods, and further ones for workers.
    tolerations : tuple of Toleration
        Taints that all pods tolerate.
    image_pull_secrets : tuple of str
        Names of Secrets.
    image_pull_policy : str or None
        If None, ``IfNotPresent`` for an image by digest, else ``Always``.
    env : mapping of str to str
        Variables of every Ray container, literally.
    env_from_secret : mapping of str to SecretRef
        Variables from Secrets.
    auth : str
        ``token`` or ``disabled``.
    auth_secret : str or None
        The Secret with the token; KubeRay creates one if None.
    python_match : str
        ``patch`` or ``minor``: how closely the Python of other drivers must match.
    run_as_user : int or None
        The uid; chosen by the cluster's policy if None.
    """

    name: str | None = None
    namespace: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    head: Resources = field(default_factory=Resources)
    worker: Resources = field(default_factory=Resources)
    gpu_resource: str = "nvidia.com/gpu"
    replicas: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    autoscaling: bool = False
    idle_timeout: int = 60
    service_account: str | None = None
    node_selector: Mapping[str, str] = field(default_factory=dict)
    worker_node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    image_pull_secrets: tuple[str, ...] = ()
    image_pull_policy: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    env_from_secret: Mapping[str, SecretRef] = field(default_factory=dict)
    auth: Literal["token", "disabled"] = "token"
    auth_secret: str | None = None
    python_match: Literal["patch", "minor"] = "patch"
    run_as_user: int | None = 1000

    def __post_init__(self) -> None:
        self.head.check("head")
        self.worker.check("worker")
        check_key(self.gpu_resource, field="gpu-resource")
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


def _check_objects(options: ClusterOptions) -> None:
    if options.namespace is not None:
        check_namespace(options.namespace, field="namespace")
    for key, value in options.labels.items():
        check_label(key, value, field="label")
        if key.startswith("ray.io/"):
            raise OptionError(f"label: {key} is reserved for KubeRay", hint="choose another name")
    for name in options.image_pull_secrets:
        check_subdomain(name, field="image-pull-secret")
    if options.service_account is not None:
        check_subdomain(options.service_account, field="service-account")
    if options.auth_secret is not None:
        check_subdomain(options.auth_secret, field="auth-secret")
        if options.auth != "token":
            raise OptionError(
                "auth-secret: it has no use with auth disabled", hint="add --auth token"
            )
    if options.image_pull_policy not in (None, *_POLICIES):
        raise OptionError(
            f"image-pull-policy: {options.image_pull_policy!r} is not a policy",
            hint=", ".join(_POLICIES),
        )


def _check_env(options: ClusterOptions) -> None:
    for name, value in options.env.items():
        check_variable(name, field="env")
        _check_owner(name, "env")
        check_value(value, field=f"env {name}")
        if name in _CREDENTIALS:
            raise OptionError(
                f"env: {name} is a credential, which everyone who reads the manifest would see",
                hint=f"put it into a Secret: --env-from-secret {name}=SECRET:KEY",
            )
    for name, ref in options.env_from_secret.items():
        check_variable(name, field="env-from-secret", taken=options.env)
        _check_owner(name, "env-from-secret")
        check_subdomain(ref.secret, field=f"env-from-secret {name}")
        check_secret_key(ref.key, field=f"env-from-secret {name}")


def _check_owner(name: str, option: str) -> None:
    if name in _AUTH:
        raise OptionError(
            f"{option}: {name} is set by --auth",
            hint="--auth token, with your own token by --auth-secret; or --auth disabled",
        )
    if name in _OWNED:
        raise OptionError(f"{option}: {name} is set by {_OWNED[name]}", hint="leave it out")
