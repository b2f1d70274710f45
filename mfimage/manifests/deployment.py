"""A Deployment and its Service, and what else is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from mfimage.errors import OptionError
from mfimage.manifests.checks import NAMESPACE, check_number
from mfimage.manifests.image import ServerImage, StatedPulled, read_server_image
from mfimage.manifests.kind import Kind
from mfimage.manifests.options import Scale, option
from mfimage.manifests.server import METRICS, ServerOptions, ServerPod
from mfimage.manifests.shared import PlacementOptions
from mfimage.manifests.text import to_yaml

_PORT = "http"
_TARGET_CPU = 80
# A rollout that takes longer counts as failed; Kubernetes' default.
_PROGRESS = 600


def _budget(text: str) -> int | str:
    if not re.fullmatch(r"[1-9]\d*%?", text, re.ASCII) or (
        text[-1] == "%" and int(text[:-1]) > 100
    ):
        raise OptionError(
            f"disruption-budget: {text!r} is not a number of pods",
            hint="how many may be evicted at once, such as 1 or 25%",
        )
    return text if text.endswith("%") else int(text)


@dataclass(frozen=True, kw_only=True)
class DeploymentOptions(PlacementOptions, ServerOptions):
    """A Deployment; each object beside it and its Service is written if its option is given."""

    replicas: int | None = option("Pods; 1 by default.", "N", type=int)
    min_replicas: int | None = option(
        "Minimum number of pods of a HorizontalPodAutoscaler; 1 by default.", "N", type=int
    )
    max_replicas: int | None = option(
        "Maximum number of pods of a HorizontalPodAutoscaler.", "N", type=int
    )
    target_cpu: int | None = option(
        "Use of the requested CPUs, in percent, above which it adds pods; "
        f"{_TARGET_CPU} by default.", "PERCENT", type=int,
    )  # fmt: skip
    disruption_budget: int | str | None = option(
        "Pods that may be evicted at once, in a PodDisruptionBudget.", "N|N%", type=str,
        parse=_budget,
    )  # fmt: skip
    allow_from: tuple[str, ...] = option(
        "Namespace whose pods may call the server, in a NetworkPolicy.", "NAMESPACE", ()
    )
    metrics: Literal["annotations", "service-monitor"] | None = option(
        "How Prometheus finds /metrics.", choices=("annotations", "service-monitor")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_placement()
        for name in self.allow_from:
            NAMESPACE.check(name, field="allow-from")
        for name in ("replicas", "min_replicas", "max_replicas", "target_cpu"):
            minimum = 0 if name == "replicas" else 1
            check_number(getattr(self, name), field=name.replace("_", "-"), minimum=minimum)
        if self.max_replicas is None:
            for name in ("min_replicas", "target_cpu"):
                if (value := getattr(self, name)) is not None:
                    field = name.replace("_", "-")
                    raise OptionError(
                        f"{field}: {value} has no effect on a fixed number of pods",
                        hint="give --max-replicas",
                    )
            return
        if self.replicas is not None:
            raise OptionError(
                f"replicas: {self.replicas} would be set again with each kubectl apply, against "
                "the HorizontalPodAutoscaler",
                hint="give --min-replicas and --max-replicas only",
            )
        low = self.min_replicas or 1
        Scale(replicas=low, minimum=low, maximum=self.max_replicas).check()


def write(image: ServerImage, options: DeploymentOptions) -> str:
    """Write a Deployment, and a Service."""
    return "---\n".join(to_yaml(each) for each in _objects(ServerPod(image, options), options))


def _objects(server: ServerPod, options: DeploymentOptions) -> Iterator[dict[str, Any]]:
    def made(version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        return {"apiVersion": version, "kind": kind, "metadata": server.metadata(), "spec": spec}

    yield made("apps/v1", "Deployment", _deployment(server, options))
    yield made("v1", "Service", {
        "selector": server.selector,
        "ports": [{"name": _PORT, "port": 80, "targetPort": _PORT, "appProtocol": "http"}],
    })  # fmt: skip
    if options.max_replicas is not None:
        yield made("autoscaling/v2", "HorizontalPodAutoscaler", {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": server.name},
            "minReplicas": options.min_replicas or 1,
            "maxReplicas": options.max_replicas,
            "metrics": [{"type": "Resource", "resource": {
                "name": "cpu",
                "target": {
                    "type": "Utilization", "averageUtilization": options.target_cpu or _TARGET_CPU,
                },
            }}],
        })  # fmt: skip
    if options.disruption_budget is not None:
        yield made("policy/v1", "PodDisruptionBudget", {
            "maxUnavailable": options.disruption_budget,
            "selector": {"matchLabels": server.selector},
            # A pod that is not ready serves nothing: it does not keep a node from being drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        })  # fmt: skip
    if options.allow_from:
        label = "kubernetes.io/metadata.name"
        yield made("networking.k8s.io/v1", "NetworkPolicy", {
            "podSelector": {"matchLabels": server.selector},
            "policyTypes": ["Ingress"],
            "ingress": [{
                "from": [
                    {"namespaceSelector": {"matchLabels": {label: name}}}
                    for name in options.allow_from
                ],
                "ports": [{"port": _PORT}],
            }],
        })  # fmt: skip
    if options.metrics == "service-monitor":
        yield made("monitoring.coreos.com/v1", "ServiceMonitor", {
            "selector": {"matchLabels": server.selector},
            "endpoints": [{"port": _PORT, "path": METRICS}],
        })  # fmt: skip


def _deployment(server: ServerPod, options: DeploymentOptions) -> dict[str, Any]:
    of_pod, of_container = server.shutdown()
    container = {
        **server.container("server", _PORT, {}),
        **server.probes(_PORT),
        **of_container,
    }
    pod = {
        **of_pod,
        "securityContext": options.security_context,
        **options.placement(),
        **server.pod(container),
    }
    scrape = {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(server.settings.port),
        "prometheus.io/path": METRICS,
    }
    annotations = server.annotations(scrape if options.metrics == "annotations" else None)
    late = options.start_seconds + 60
    fixed = 1 if options.replicas is None else options.replicas
    return {
        "replicas": None if options.max_replicas is not None else fixed,
        "selector": {"matchLabels": server.selector},
        # A pod stops once another has taken its place.
        "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "progressDeadlineSeconds": late if late > _PROGRESS else None,
        "template": {
            "metadata": {"labels": server.labels, "annotations": annotations},
            "spec": pod,
        },
    }


KIND = Kind(
    stated=StatedPulled, options=((DeploymentOptions, ""),), read=read_server_image, write=write
)
