"""The manifests: an image and options -> YAML for ``kubectl apply``.

Why each setting is there is explained in docs/kuberay.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mfimage.errors import OptionError
from mfimage.manifests.checks import check_name, default_name
from mfimage.manifests.kuberay.image import RayImage
from mfimage.manifests.kuberay.options import ClusterOptions
from mfimage.manifests.kuberay.work import JobOptions, ServiceOptions
from mfimage.manifests.options import Resources, SecretRef
from mfimage.manifests.text import to_yaml
from mfimage.runtime.layout import placement_resource

# KubeRay appends to names, and the result must be a service's name (63 characters).
_CLUSTER_NAME_LIMIT, _NAME_LIMIT = 53, 47
# More than the actors that fit on a node: the resource says where, not how many.
_PLACES = 1000
_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
_SERVE = {"serve": 8000}
# What KubeRay would give the submitter; `ray job submit` waits and prints.
_SUBMITTER = Resources(cpu="500m", memory="1Gi")
# Seconds within which load balancers stop sending requests to a pod that is to stop, and seconds
# for it to finish those it has.
_DRAIN, _GRACE = 10, 60
_NO_PRIVILEGES = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def raycluster(image: RayImage, cluster: ClusterOptions) -> str:
    """Write a RayCluster that waits for jobs and drivers.

    Raises
    ------
    OptionError
        With the option and the value.
    """
    spec = _cluster(image, cluster)
    return _write("RayCluster", image, cluster, spec, limit=_CLUSTER_NAME_LIMIT)


def rayjob(image: RayImage, cluster: ClusterOptions, job: JobOptions) -> str:
    """Write a RayJob, which starts a cluster, runs a batch on it, and stops it.

    Raises
    ------
    OptionError
        With the option and the value.
    """
    _check_workers(cluster)
    submitter = _pod(
        image,
        cluster,
        container="ray-job-submitter",
        resources=_SUBMITTER,
        node_selector=cluster.node_selector,
        env=_ray_env(cluster),
        restart="Never",
    )
    spec = {
        "submissionMode": "K8sJobMode",
        "entrypoint": job.entrypoint(cluster),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": job.ttl,
        "backoffLimit": job.backoff_limit,
        "activeDeadlineSeconds": job.deadline,
        "submitterPodTemplate": submitter,
        "rayClusterSpec": _cluster(image, cluster),
    }
    return _write("RayJob", image, cluster, spec)


def rayservice(image: RayImage, cluster: ClusterOptions, service: ServiceOptions) -> str:
    """Write a RayService, a cluster that serves ``POST /<function name>``.

    Raises
    ------
    OptionError
        With the option and the value; if the image has no Ray Serve.
    """
    if image.parts is not None and "serve" not in image.parts:
        raise OptionError(
            f"image: {image.reference} has no Ray Serve",
            hint="mfimage build REFERENCE --target ray --with serve -t NAME --push",
        )
    _check_workers(cluster)
    application = {
        "name": image.function,
        "route_prefix": f"/{image.function}",
        "import_path": "mfimage.runtime.ray_worker:build",
        "args": service.deployment(cluster),
    }
    serve = {
        "http_options": {"host": "0.0.0.0", "port": _SERVE["serve"]},  # noqa: S104  (of a pod)
        "applications": [application],
    }
    spec = {
        "excludeHeadPodFromServeSvc": True,
        "serveConfigV2": to_yaml(serve),
        "rayClusterConfig": _cluster(image, cluster, serves=True),
    }
    return _write("RayService", image, cluster, spec)


def _write(
    kind: str,
    image: RayImage,
    cluster: ClusterOptions,
    spec: Mapping[str, Any],
    *,
    limit: int = _NAME_LIMIT,
) -> str:
    name = cluster.name or default_name(image.function, limit=limit)
    check_name(name, field="name", limit=limit)
    metadata = {
        "name": name,
        "namespace": cluster.namespace,
        "labels": {
            "app.kubernetes.io/name": name,
            "app.kubernetes.io/managed-by": "mfimage",
            **cluster.labels,
        },
        "annotations": {
            "io.mfimage.function.name": image.function,
            "io.mfimage.function.digest": image.digest,
            "io.mfimage.python-version": image.python_version,
        },
    }
    return to_yaml({"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": spec})


def _cluster(image: RayImage, cluster: ClusterOptions, *, serves: bool = False) -> dict[str, Any]:
    env = _ray_env(cluster) | dict(cluster.env)
    head = _pod(
        image,
        cluster,
        container="ray-head",
        resources=cluster.head,
        node_selector=cluster.node_selector,
        env=env,
        secrets=cluster.env_from_secret,
        ports={**_PORTS, **(_SERVE if serves else {})},
    )
    worker = _pod(
        image,
        cluster,
        container="ray-worker",
        resources=cluster.worker,
        node_selector={**cluster.node_selector, **cluster.worker_node_selector},
        env=env,
        secrets=cluster.env_from_secret,
        ports=_SERVE if serves else {},
        serves=serves,
    )
    return {
        "rayVersion": image.ray_version,
        "authOptions": {"mode": cluster.auth, "secretName": cluster.auth_secret},
        "enableInTreeAutoscaling": cluster.autoscaling,
        "autoscalerOptions": _autoscaler(image, cluster) if cluster.autoscaling else None,
        "headGroupSpec": {
            "rayStartParams": {
                # Work on the head can take the whole cluster down.
                "num-cpus": "0",
                "num-gpus": str(cluster.head.gpus),
                "dashboard-host": "0.0.0.0",  # noqa: S104  (of a pod)
            },
            "template": head,
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": cluster.workers.replicas,
                "minReplicas": cluster.workers.minimum,
                "maxReplicas": cluster.workers.maximum,
                "rayStartParams": {"resources": _placement(image)},
                "template": worker,
            }
        ],
    }


def _autoscaler(image: RayImage, cluster: ClusterOptions) -> dict[str, Any]:
    resources = {"cpu": "500m", "memory": "512Mi"}
    disabled = [{"name": "RAY_AUTH_MODE", "value": "disabled"}]
    return {
        "version": "v2",
        "upscalingMode": "Default",
        "idleTimeoutSeconds": cluster.idle_timeout,
        "imagePullPolicy": _pull_policy(image, cluster),
        # With a token KubeRay sets it.
        "env": disabled if cluster.auth == "disabled" else None,
        "securityContext": _NO_PRIVILEGES,
        "resources": {"requests": resources, "limits": resources},
    }


def _pod(
    image: RayImage,
    cluster: ClusterOptions,
    *,
    container: str,
    resources: Resources,
    node_selector: Mapping[str, str],
    env: Mapping[str, str],
    secrets: Mapping[str, SecretRef] | None = None,
    ports: Mapping[str, int] | None = None,
    serves: bool = False,
    restart: str | None = None,
) -> dict[str, Any]:
    """Return the pod template of the head, the workers or the submitter."""
    quantities = {
        "cpu": resources.cpu,
        "memory": resources.memory,
        cluster.gpu_resource: resources.gpus or None,
    }
    tolerations = [
        {
            "key": each.key,
            "operator": "Exists" if each.value is None else "Equal",
            "value": each.value,
            "effect": each.effect,
        }
        for each in cluster.tolerations
    ]
    # "$(NAME)" in a value would refer to a variable.
    variables: list[dict[str, Any]] = [
        {"name": name, "value": value.replace("$", "$$")} for name, value in env.items()
    ]
    variables += [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": ref.secret, "key": ref.key}}}
        for name, ref in (secrets or {}).items()
    ]
    # KubeRay's own probe would run bash and wget in the container.
    probe = {
        "httpGet": {"path": "/-/healthz", "port": _SERVE["serve"]},
        "initialDelaySeconds": 10,
        "periodSeconds": 5,
        "timeoutSeconds": 5,
        "failureThreshold": 1,
    }
    # Requests arrive until load balancers have noticed.
    drain = {"preStop": {"exec": {"command": ["sleep", str(_DRAIN)]}}}
    spec = {
        "serviceAccountName": cluster.service_account,
        "imagePullSecrets": [{"name": name} for name in cluster.image_pull_secrets] or None,
        "nodeSelector": dict(node_selector) or None,
        "tolerations": tolerations or None,
        "restartPolicy": restart,
        "terminationGracePeriodSeconds": _GRACE if serves else None,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": cluster.run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": container,
                "image": image.reference,
                "imagePullPolicy": _pull_policy(image, cluster),
                "securityContext": _NO_PRIVILEGES,
                "resources": {"requests": quantities, "limits": quantities},
                "env": variables,
                "ports": [
                    {"name": name, "containerPort": port} for name, port in (ports or {}).items()
                ]
                or None,
                "readinessProbe": probe if serves else None,
                "lifecycle": drain if serves else None,
            }
        ],
    }
    return {"spec": spec}


def _pull_policy(image: RayImage, cluster: ClusterOptions) -> str:
    # A node that pulled a tag before may have another image: other versions of Ray.
    return cluster.image_pull_policy or ("IfNotPresent" if image.pinned else "Always")


def _ray_env(cluster: ClusterOptions) -> dict[str, str]:
    # Unset, Ray would go by whether there is a token in the home folder.
    env: dict[str, str] = {"RAY_AUTH_MODE": cluster.auth}
    if cluster.python_match != "patch":
        env["RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"] = cluster.python_match
    return env


def _check_workers(cluster: ClusterOptions) -> None:
    # With autoscaling as well: what waits for the first worker does not request one.
    if not cluster.workers.replicas:
        raise OptionError(
            "replicas: without a worker at the start nothing runs, since the head takes no work",
            hint="give --replicas 1 or more",
        )


def _placement(image: RayImage) -> str | None:
    """Return ``--resources`` of ``ray start`` in the shell's quotes: which function a node has.

    Three programs read it: bash; KubeRay, which gives GPUs to Ray only if there is JSON between
    the quotes; and Ray's autoscaler, which removes one character at both ends.
    """
    if image.digest is None:
        return None
    return f"'{{\"{placement_resource(image.digest)}\": {_PLACES}}}'"
