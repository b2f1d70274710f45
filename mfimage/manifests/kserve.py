"""An InferenceService of KServe, with our server as its predictor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mfimage.errors import OptionError
from mfimage.manifests.checks import check_number
from mfimage.manifests.image import ServerImage, StatedPulled, read_server_image
from mfimage.manifests.kind import Kind
from mfimage.manifests.knative import RESERVED, check_bounds, knative_pod, timeout_seconds
from mfimage.manifests.options import option
from mfimage.manifests.server import ServerOptions, ServerPod
from mfimage.manifests.shared import PlacementOptions
from mfimage.manifests.text import to_yaml

# Names that all versions accept; newer ones also call them Standard and Knative.
_MODES = {"standard": "RawDeployment", "knative": "Serverless"}
_CONTAINER = "kserve-container"
# By it KServe knows what a predictor of one's own accepts.
_PROTOCOL = {"PROTOCOL": "v2"}
# It appends "-predictor" to names of services.
_LONGEST_NAME = 63 - len("-predictor")


@dataclass(frozen=True, kw_only=True)
class KServeOptions(PlacementOptions, ServerOptions):
    """A predictor, which scales between bounds."""

    mode: Literal["standard", "knative"] = option(
        "What KServe makes: a Deployment, or a Knative Service.",
        default="standard", choices=("standard", "knative"),
    )  # fmt: skip
    min_replicas: int = option("Minimum number of pods; 0 only with --mode knative.", "N", 1)
    max_replicas: int | None = option("Maximum number of pods.", "N", type=int)
    concurrency: int | None = option(
        "Maximum number of requests in each pod at once, with --mode knative.", "N", type=int
    )
    target_cpu: int | None = option(
        "Use of the requested CPUs, in percent, above which pods are added, with --mode standard.",
        "PERCENT", type=int,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_placement()
        knative = self.mode == "knative"
        check_number(self.min_replicas, field="min-replicas", minimum=0 if knative else 1)
        for name in ("max_replicas", "concurrency", "target_cpu"):
            check_number(getattr(self, name), field=name.replace("_", "-"), minimum=1)
        check_bounds(self.min_replicas, self.max_replicas)
        wrong: dict[str, dict[str, object]] = {
            "standard": {"concurrency": self.concurrency},
            "knative": {
                "target-cpu": self.target_cpu,
                "node-selector": self.node_selector,
                "toleration": self.tolerations,
            },
        }
        for field, value in wrong[self.mode].items():
            if value:
                raise OptionError(
                    f"{field}: it has no effect with --mode {self.mode}", hint="leave it out"
                )

    @property
    def owned(self) -> Mapping[str, str]:
        """See `ServerOptions`."""
        reserved = RESERVED if self.mode == "knative" else {}
        return {**super().owned, **dict.fromkeys(_PROTOCOL, "KServe"), **reserved}


def write(image: ServerImage, options: KServeOptions) -> str:
    """Write an InferenceService of KServe."""
    server = ServerPod(image, options, _LONGEST_NAME)
    pod = _knative(server, options) if options.mode == "knative" else _standard(server, options)
    scaling = {"minReplicas": options.min_replicas, "maxReplicas": options.max_replicas}
    mode = {"serving.kserve.io/deploymentMode": _MODES[options.mode]}
    return to_yaml(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": server.metadata(mode),
            "spec": {"predictor": {**scaling, **pod}},
        }
    )


def _knative(server: ServerPod, options: KServeOptions) -> dict[str, Any]:
    return {
        "containerConcurrency": options.concurrency,
        "timeout": timeout_seconds(server),
        **knative_pod(server, _CONTAINER, _PROTOCOL),
    }


def _standard(server: ServerPod, options: KServeOptions) -> dict[str, Any]:
    of_pod, of_container = server.shutdown()
    container = {
        **server.container(_CONTAINER, "http1", _PROTOCOL),
        **server.probes("http1"),
        **of_container,
    }
    return {
        "scaleMetric": None if options.target_cpu is None else "cpu",
        "scaleTarget": options.target_cpu,
        **of_pod,
        "securityContext": options.security_context,
        **options.placement(),
        **server.pod(container),
    }


KIND = Kind(
    stated=StatedPulled, options=((KServeOptions, ""),), read=read_server_image, write=write
)
