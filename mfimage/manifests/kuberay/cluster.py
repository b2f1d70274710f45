"""What the manifests have in common: an image and options -> YAML for ``kubectl apply``.

Why each setting is there is explained in docs/kuberay.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from mfimage.errors import OptionError
from mfimage.manifests.checks import default_name, resource_name
from mfimage.manifests.kuberay.image import RayImage
from mfimage.manifests.kuberay.options import ClusterOptions
from mfimage.manifests.options import Resources
from mfimage.manifests.shared import NO_PRIVILEGES, EnvironmentOptions
from mfimage.manifests.text import to_yaml
from mfimage.runtime.layout import placement_resource

# More than the actors that fit on a node: the resource says where, not how many.
_PLACES = 1000
_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
SERVE_PORT = 8000
# Seconds within which load balancers stop sending requests to a pod that is to stop, and seconds
# for it to finish those it has.
_DRAIN, _GRACE = 10, 60


class Cluster:
    """A Ray cluster, from which each kind is made."""

    def __init__(self, image: RayImage, options: ClusterOptions) -> None:
        self._image = image
        self._options = options
        self._pull_policy = options.pull_policy(pinned=image.pinned)

    def check_workers(self) -> None:
        """Raise an `OptionError` if the cluster starts without workers."""
        # With autoscaling as well: what waits for the first worker does not request one.
        if not self._options.workers.replicas:
            raise OptionError(
                "replicas: without a worker at the start nothing runs, since the head takes no "
                "work",
                hint="give --replicas 1 or more",
            )

    def write(self, kind: str, spec: Mapping[str, Any], *, name_length: int = 47) -> str:
        """Write a manifest; KubeRay appends to names, of which services have at most 63."""
        rule = resource_name(name_length)
        name = self._options.name or default_name(self._image.function, rule)
        rule.check(name, field="name")
        labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "mfimage"}
        metadata = {
            "name": name,
            "namespace": self._options.namespace,
            "labels": {**labels, **self._options.labels},
            "annotations": {
                "io.mfimage.function.name": self._image.function,
                "io.mfimage.function.digest": self._image.digest,
                "io.mfimage.python-version": self._image.python_version,
            },
        }
        document = {"apiVersion": "ray.io/v1", "kind": kind, "metadata": metadata, "spec": spec}
        return to_yaml(document)

    def spec(self, *, serves: bool = False) -> dict[str, Any]:
        """Return the cluster's spec; with ``serves``, its workers receive requests."""
        options, workers = self._options, self._options.workers
        ports = {"serve": SERVE_PORT} if serves else {}
        head = self.pod("ray-head", options.head, runs=True, ports={**_PORTS, **ports})
        worker = self.pod(
            "ray-worker", options.worker, options.worker_node_selector, runs=True, ports=ports
        )
        if serves:
            self._serve(worker["spec"])
        return {
            "rayVersion": self._image.ray_version,
            "authOptions": {"mode": options.auth, "secretName": options.auth_secret},
            "enableInTreeAutoscaling": options.autoscaling,
            "autoscalerOptions": self._autoscaler() if options.autoscaling else None,
            "headGroupSpec": {
                "rayStartParams": {
                    # Work on the head can take the whole cluster down.
                    "num-cpus": "0",
                    "num-gpus": str(options.head.gpus),
                    "dashboard-host": "0.0.0.0",  # noqa: S104  (of a pod)
                },
                "template": head,
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": workers.replicas,
                    "minReplicas": workers.minimum,
                    "maxReplicas": workers.maximum,
                    "rayStartParams": {"resources": _placement(self._image)},
                    "template": worker,
                }
            ],
        }

    def _autoscaler(self) -> dict[str, Any]:
        resources = {"cpu": "500m", "memory": "512Mi"}
        disabled = [{"name": "RAY_AUTH_MODE", "value": "disabled"}]
        return {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": self._options.idle_timeout,
            "imagePullPolicy": self._pull_policy,
            # With a token KubeRay sets it.
            "env": disabled if self._options.auth == "disabled" else None,
            "securityContext": NO_PRIVILEGES,
            "resources": {"requests": resources, "limits": resources},
        }

    def pod(
        self,
        container: str,
        resources: Resources,
        node_selector: Mapping[str, str] = MappingProxyType({}),
        *,
        runs: bool = False,
        ports: Mapping[str, int] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Return a pod template; one that ``runs`` the function gets the user's variables."""
        options = self._options
        quantities = {
            "cpu": resources.cpu,
            "memory": resources.memory,
            options.gpu_resource: resources.gpus or None,
        }
        spec = {
            "serviceAccountName": options.service_account,
            "imagePullSecrets": options.pull_secrets,
            **options.placement(node_selector),
            "restartPolicy": None if runs else "Never",
            "securityContext": options.security_context,
            "containers": [
                {
                    "name": container,
                    "image": self._image.reference,
                    "imagePullPolicy": self._pull_policy,
                    "securityContext": NO_PRIVILEGES,
                    "resources": {"requests": quantities, "limits": quantities},
                    "env": list(self._variables(runs=runs)),
                    "envFrom": options.sources if runs else None,
                    "ports": [{"name": name, "containerPort": port} for name, port in ports.items()]
                    or None,
                }
            ],
        }
        return {"spec": spec}

    def _variables(self, *, runs: bool) -> Iterator[dict[str, Any]]:
        options = self._options
        # Unset, Ray would go by whether there is a token in the home folder.
        values: dict[str, str] = {"RAY_AUTH_MODE": options.auth}
        if options.python_match != "patch":
            values["RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"] = options.python_match
        variables = options if runs else EnvironmentOptions()
        return variables.variables(values)

    def _serve(self, pod: dict[str, Any]) -> None:
        """Let a worker receive requests once it is ready, and finish them before it stops."""
        pod["terminationGracePeriodSeconds"] = _GRACE
        (container,) = pod["containers"]
        # KubeRay's own probe would run bash and wget in the container.
        container["readinessProbe"] = {
            "httpGet": {"path": "/-/healthz", "port": SERVE_PORT},
            "initialDelaySeconds": 10,
            "periodSeconds": 5,
            "timeoutSeconds": 5,
            "failureThreshold": 1,
        }
        # Requests arrive until load balancers have noticed.
        command = ["sleep", str(_DRAIN)]
        container["lifecycle"] = {"preStop": {"exec": {"command": command}}}


def _placement(image: RayImage) -> str | None:
    """Return ``--resources`` of ``ray start`` in the shell's quotes: which function a node has."""
    # Three programs read it: bash; KubeRay, which gives GPUs to Ray only if there is JSON between
    # the quotes; and Ray's autoscaler, which removes one character at both ends.
    if image.digest is None:
        return None
    return f"'{{\"{placement_resource(image.digest)}\": {_PLACES}}}'"
