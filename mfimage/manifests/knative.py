"""A Knative Service."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mfimage.errors import OptionError
from mfimage.manifests.checks import check_number
from mfimage.manifests.image import ServerImage, StatedPulled, read_server_image
from mfimage.manifests.kind import Kind
from mfimage.manifests.options import option
from mfimage.manifests.server import ServerOptions, ServerPod
from mfimage.manifests.text import to_yaml

RESERVED = dict.fromkeys(("PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"), "Knative")
# Of the sidecar that Knative adds.
_SIDECAR_PORTS = (8008, 8012, 8013, 8022, 9090, 9091)
# Knative's default for the longest that a cluster allows.
_NO_TIMEOUT = 600


@dataclass(frozen=True, kw_only=True)
class KnativeOptions(ServerOptions):
    """A service that starts and stops pods by the number of requests."""

    min_replicas: int | None = option(
        "Minimum number of pods; Knative's by default, 0.", "N", type=int
    )
    max_replicas: int | None = option(
        "Maximum number of pods; Knative's by default, without one.", "N", type=int
    )
    concurrency: int | None = option(
        "Maximum number of requests in each pod at once; without one by default.", "N", type=int
    )
    target_concurrency: int | None = option(
        "Requests in each pod at once above which pods are added; Knative's by default, 100.",
        "N", type=int,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("min_replicas", "max_replicas", "concurrency", "target_concurrency"):
            minimum = 0 if name == "min_replicas" else 1
            check_number(getattr(self, name), field=name.replace("_", "-"), minimum=minimum)
        check_bounds(self.min_replicas, self.max_replicas)

    @property
    def owned(self) -> Mapping[str, str]:
        """See `ServerOptions`."""
        return {**super().owned, **RESERVED}


def check_bounds(low: int | None, high: int | None) -> None:
    """Check bounds of which either may be missing."""
    if low is not None and high is not None and low > high:
        raise OptionError(
            f"min-replicas: {low} is more than max-replicas {high}", hint="raise --max-replicas"
        )


def write(image: ServerImage, options: KnativeOptions) -> str:
    """Write a Service of Knative."""
    server = ServerPod(image, options)
    pod = knative_pod(server)
    scaling = {
        "min-scale": options.min_replicas,
        "max-scale": options.max_replicas,
        "target": options.target_concurrency,
    }
    annotations = server.annotations(
        {f"autoscaling.knative.dev/{k}": str(v) for k, v in scaling.items() if v is not None}
    )
    return to_yaml(
        {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": server.metadata(),
            "spec": {
                "template": {
                    "metadata": {"labels": server.labels, "annotations": annotations},
                    "spec": {
                        "containerConcurrency": options.concurrency,
                        "timeoutSeconds": timeout_seconds(server),
                        **pod,
                    },
                }
            },
        }
    )


def knative_pod(
    server: ServerPod, name: str = "server", first: Mapping[str, str] | None = None
) -> Any:
    """Return what Knative takes of a pod's spec, whose container has a name."""
    if server.settings.port in _SIDECAR_PORTS:
        raise OptionError(
            f"env PORT: {server.settings.port} is a port of Knative's own",
            hint="build the image with another: --env PORT=8080",
        )
    # The name says HTTP/1.1. Knative gives the port another one, which it does not do in probes.
    probes = server.probes(server.settings.port)
    container = {**server.container(name, "http1", first or {}), **probes}
    # Knative refuses a pod's security context unless a cluster enables it.
    of_pod = server.options.security_context
    container["securityContext"] = {**of_pod, **container["securityContext"]}
    return server.pod(container)


def timeout_seconds(server: ServerPod) -> int:
    """Return how long a request may take, for which Knative waits when it stops a pod, too."""
    needed = server.termination_seconds - server.propagation_seconds
    return max(needed, math.ceil(server.settings.timeout) or _NO_TIMEOUT)


KIND = Kind(
    stated=StatedPulled, options=((KnativeOptions, ""),), read=read_server_image, write=write
)
