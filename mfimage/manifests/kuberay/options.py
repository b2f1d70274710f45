"""What was asked of a manifest, checked: every value here can go into it as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mfimage.errors import OptionError
from mfimage.manifests.kuberay.checks import (
    check_key,
    check_label,
    check_namespace,
    check_secret_key,
    check_subdomain,
    check_value,
    check_variable,
    check_whole,
)
from mfimage.manifests.kuberay.parts import Resources, Scale, SecretRef, Toleration, check_order

POLICIES = ("Always", "IfNotPresent", "Never")

_AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_CREDENTIALS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_OF_THE_IMAGE = ("PATH", "PYTHONPATH", "PYTHONHOME")
# What KubeRay sets itself, after what the manifest has.
_OF_KUBERAY = (
    "FQ_RAY_IP",
    "RAY_IP",
    "RAY_ADDRESS",
    "RAY_PORT",
    "RAY_CLUSTER_NAME",
    "RAY_CLUSTER_NAMESPACE",
    "RAY_CLOUD_INSTANCE_ID",
    "RAY_NODE_TYPE_NAME",
    "RAY_REDIS_ADDRESS",
    "RAY_USAGE_STATS_EXTRA_TAGS",
    "RAY_enable_autoscaler_v2",
    "KUBERAY_GEN_RAY_START_CMD",
    "REDIS_PASSWORD",
    "REDIS_USERNAME",
)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The Ray cluster: the same for a RayCluster, a RayJob and a RayService.

    Attributes
    ----------
    name : str or None
        Of the resource; the function's if None.
    namespace : str or None
        The one that ``kubectl`` is set to if None.
    labels : mapping of str to str
        Labels of the resource; not of its pods, which other controllers may go by.
    head, worker : Resources
        What each head and worker pod gets.
    gpu_resource : str
        What Kubernetes calls a GPU.
    replicas, min_replicas, max_replicas : int or None
        Worker pods; one, and the same as ``replicas``, where None.
    autoscaling : bool
        Let Ray start and stop workers between the bounds.
    idle_timeout : int
        Seconds until an idle worker is stopped.
    service_account : str or None
        What the pods run as; the namespace's default if None.
    node_selector, worker_node_selector : mapping of str to str
        Labels of the nodes for every pod, and for workers beside them.
    tolerations : tuple of Toleration
        Taints that every pod may run on.
    image_pull_secrets : tuple of str
        Names of Secrets.
    image_pull_policy : str or None
        ``IfNotPresent`` for an image by digest, else ``Always``, if None.
    env : mapping of str to str
        Variables of every Ray container, literally.
    env_from_secret : mapping of str to SecretRef
        Variables that come from Secrets.
    auth : str
        ``token`` or ``disabled``.
    auth_secret : str or None
        The Secret that has the token; KubeRay makes one if None.
    python_match : str
        ``patch`` or ``minor``: how alike the Python of another driver must be.
    run_as_user : int or None
        The uid; the cluster's policy chooses if None.
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
        check_whole(self.idle_timeout, field="idle-timeout")
        check_whole(self.run_as_user, field="run-as-user", least=1)
        _check_objects(self)
        _check_nodes(self)
        _check_env(self)
        _check_scale(self)

    @property
    def workers(self) -> Scale:
        """The number of worker pods."""
        replicas = self.replicas
        if replicas is None:
            replicas = 1 if self.min_replicas is None else self.min_replicas
            replicas = replicas if self.max_replicas is None else min(replicas, self.max_replicas)
        least, most = self.min_replicas, self.max_replicas
        if least is None:
            least = replicas if most is None else min(replicas, most)
        return Scale(
            replicas=replicas, least=least, most=max(replicas, least) if most is None else most
        )


def _check_objects(options: ClusterOptions) -> None:
    if options.namespace is not None:
        check_namespace(options.namespace, field="namespace")
    for key, value in options.labels.items():
        check_label(key, value, field="label")
        if key.startswith("ray.io/"):
            raise OptionError(f"label: {key} is one of KubeRay's own", hint="choose another name")
    for name in options.image_pull_secrets:
        check_subdomain(name, field="image-pull-secret")
    if options.service_account is not None:
        check_subdomain(options.service_account, field="service-account")
    if options.auth_secret is not None:
        check_subdomain(options.auth_secret, field="auth-secret")
        if options.auth != "token":
            raise OptionError(
                "auth-secret: there is no token with auth disabled", hint="add --auth token"
            )
    policy = options.image_pull_policy
    if policy is not None and policy not in POLICIES:
        raise OptionError(f"image-pull-policy: {policy!r} is none", hint=", ".join(POLICIES))


def _check_nodes(options: ClusterOptions) -> None:
    for key, value in (*options.node_selector.items(), *options.worker_node_selector.items()):
        check_label(key, value, field="node-selector")
    for each in options.tolerations:
        each.check()


def _check_env(options: ClusterOptions) -> None:
    for name, value in options.env.items():
        check_variable(name, field="env", taken=())
        _check_owner(name, "env")
        check_value(value, field=f"env {name}")
        if name in _CREDENTIALS:
            raise OptionError(
                f"env: {name} is a credential, and everybody who sees the manifest would see it",
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
            f"{option}: {name} is what --auth decides",
            hint="--auth token, with a token of your own by --auth-secret; or --auth disabled",
        )
    if name in (*_OF_THE_IMAGE, *_OF_KUBERAY):
        owner = "the image" if name in _OF_THE_IMAGE else "KubeRay"
        raise OptionError(f"{option}: {name} is set by {owner}", hint="leave it out")


def _check_scale(options: ClusterOptions) -> None:
    for name in ("replicas", "min_replicas", "max_replicas"):
        check_whole(getattr(options, name), field=name.replace("_", "-"))
    check_order(options.workers, prefix="")
    if options.autoscaling and options.workers.least == options.workers.most:
        raise OptionError(
            f"autoscaling: min and max replicas are both {options.workers.most}",
            hint="give --min-replicas, --max-replicas or both",
        )
