"""The manifests: an image and what was asked -> YAML for ``kubectl apply``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mfimage.errors import OptionError
from mfimage.manifests.kuberay.checks import (
    LONGEST_CLUSTER,
    LONGEST_OTHER,
    check_name,
    default_name,
)
from mfimage.manifests.kuberay.options import ClusterOptions
from mfimage.manifests.kuberay.parts import RayImage, Resources, SecretRef
from mfimage.manifests.kuberay.text import render
from mfimage.manifests.kuberay.work import JobOptions, ServiceOptions
from mfimage.runtime.layout import placement_resource
from mfimage.templating import Quoted

# More than there will ever be actors on a node: the resource says where, not how many.
_PLACES = 1000
_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
_SERVE = {"serve": 8000}
# `ray job submit` waits and prints; what KubeRay would give it.
_SUBMITTER = Resources(cpu="500m", memory="1Gi")
# Load balancers stop sending within that time after a pod was told to go.
_DRAIN = 10


@dataclass(frozen=True, kw_only=True)
class _Pod:
    """What differs between head, workers and submitter."""

    container: str
    resources: Resources
    node_selector: Mapping[str, str]
    env: Mapping[str, str]
    secrets: Mapping[str, SecretRef] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    serves: bool = False
    restart: str | None = None


def raycluster(image: RayImage, cluster: ClusterOptions) -> str:
    """Write a RayCluster that waits for jobs and drivers.

    Parameters
    ----------
    image : RayImage
        The one image of head and workers.
    cluster : ClusterOptions
        What was asked.

    Raises
    ------
    OptionError
        Naming the option and the value.
    """
    return render(
        "raycluster",
        metadata=_metadata(image, cluster, LONGEST_CLUSTER),
        cluster=_cluster(image, cluster),
    )


def rayjob(image: RayImage, cluster: ClusterOptions, job: JobOptions) -> str:
    """Write a RayJob: a cluster, a batch on it, and the end of both.

    Raises
    ------
    OptionError
        Naming the option and the value.
    """
    _check_workers(cluster)
    submitter = _Pod(
        container="ray-job-submitter",
        resources=_SUBMITTER,
        node_selector=cluster.node_selector,
        env=_own_env(cluster),
        restart="Never",
    )
    return render(
        "rayjob",
        metadata=_metadata(image, cluster, LONGEST_OTHER),
        cluster=_cluster(image, cluster),
        submitter=_pod(image, cluster, submitter),
        job=job,
        entrypoint=job.entrypoint(cluster),
    )


def rayservice(image: RayImage, cluster: ClusterOptions, service: ServiceOptions) -> str:
    """Write a RayService: a cluster that answers ``POST /<function name>``.

    Raises
    ------
    OptionError
        Naming the option and the value; when the image has no Ray Serve.
    """
    if image.parts is not None and "serve" not in image.parts:
        raise OptionError(
            f"image: {image.reference} has no Ray Serve",
            hint="mfimage build REFERENCE --target ray --with serve -t NAME --push",
        )
    _check_workers(cluster)
    serve = render("_serve", name=image.function, deployment=service.deployment(cluster))
    return render(
        "rayservice",
        metadata=_metadata(image, cluster, LONGEST_OTHER),
        cluster=_cluster(image, cluster, serves=True),
        serve=serve,
    )


def _metadata(image: RayImage, cluster: ClusterOptions, longest: int) -> Quoted:
    name = cluster.name or default_name(image.function, longest=longest)
    check_name(name, field="name", longest=longest)
    return render("_metadata", image=image, name=name, cluster=cluster)


def _cluster(image: RayImage, cluster: ClusterOptions, *, serves: bool = False) -> Quoted:
    env = _own_env(cluster) | dict(cluster.env)
    head = _Pod(
        container="ray-head",
        resources=cluster.head,
        node_selector=cluster.node_selector,
        env=env,
        secrets=cluster.env_from_secret,
        ports={**_PORTS, **(_SERVE if serves else {})},
    )
    worker = _Pod(
        container="ray-worker",
        resources=cluster.worker,
        node_selector={**cluster.node_selector, **cluster.worker_node_selector},
        env=env,
        secrets=cluster.env_from_secret,
        ports=_SERVE if serves else {},
        serves=serves,
    )
    return render(
        "_cluster",
        image=image,
        cluster=cluster,
        pull_policy=_pull_policy(image, cluster),
        scale=cluster.workers,
        placement=_placement(image),
        head=_pod(image, cluster, head),
        worker=_pod(image, cluster, worker),
    )


def _pod(image: RayImage, cluster: ClusterOptions, pod: _Pod) -> Quoted:
    return render(
        "_pod",
        image=image,
        cluster=cluster,
        pull_policy=_pull_policy(image, cluster),
        pod=pod,
        drain=_DRAIN,
    )


def _pull_policy(image: RayImage, cluster: ClusterOptions) -> str:
    # A tag may mean another image on a node that has pulled it before: other versions of Ray.
    return cluster.image_pull_policy or ("IfNotPresent" if image.pinned else "Always")


def _own_env(cluster: ClusterOptions) -> dict[str, str]:
    # A token that lies in the home folder would turn it on otherwise.
    ours: dict[str, str] = {"RAY_AUTH_MODE": cluster.auth}
    if cluster.python_match != "patch":
        ours["RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"] = cluster.python_match
    return ours


def _check_workers(cluster: ClusterOptions) -> None:
    # Also with autoscaling: what waits for a first worker asks for none.
    if not cluster.workers.replicas:
        raise OptionError(
            "replicas: without a worker at the start nothing runs, for the head takes no work",
            hint="give --replicas 1 or more",
        )


def _placement(image: RayImage) -> str | None:
    """Return ``ray start``'s ``--resources``, in quotes of the shell.

    Three read it: bash; KubeRay, which gives GPUs to Ray only if it is JSON between the quotes;
    and Ray's autoscaler, which takes one character off both ends.
    """
    if image.digest is None:
        return None
    return f"'{{\"{placement_resource(image.digest)}\": {_PLACES}}}'"
