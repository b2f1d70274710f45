"""A RayService, a cluster that serves ``POST /<function name>``."""

from __future__ import annotations

from dataclasses import dataclass

from mfimage.errors import OptionError
from mfimage.manifests.checks import check_number
from mfimage.manifests.kind import Kind
from mfimage.manifests.kuberay.cluster import SERVE_PORT, Cluster
from mfimage.manifests.kuberay.image import RayImage, read_ray_image
from mfimage.manifests.kuberay.options import ClusterOptions, StatedRay
from mfimage.manifests.options import Scale, option
from mfimage.manifests.text import to_yaml


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """A Ray Serve deployment, which scales between bounds if one is given."""

    replicas: int | None = option(
        "Copies of the function; by default one for each worker.", "N", type=int
    )
    min_replicas: int | None = option("Minimum number of copies.", "N", type=int)
    max_replicas: int | None = option("Maximum number of copies.", "N", type=int)
    ongoing_requests: float | None = option(
        "Concurrent requests for each copy, above which one is added.", "N", type=float
    )
    cpus: float = option("CPUs of each copy.", "N", 1.0)
    gpus: float | None = option("GPUs of each copy; 1 if workers have GPUs.", "N", type=float)

    def __post_init__(self) -> None:
        for name in ("replicas", "min_replicas", "max_replicas"):
            # A worker without a copy never becomes ready, and the head takes no requests.
            field = f"serve-{name.replace('_', '-')}"
            check_number(getattr(self, name), field=field, minimum=1)
        check_number(self.cpus, field="serve-cpus")
        check_number(self.gpus, field="serve-gpus")
        check_number(self.ongoing_requests, field="serve-ongoing-requests", above=True)
        if self.ongoing_requests is not None and not self.autoscaling:
            raise OptionError(
                "serve-ongoing-requests: it has no effect on a fixed number of replicas",
                hint="give --serve-max-replicas",
            )

    @property
    def autoscaling(self) -> bool:
        """Whether Ray Serve chooses the number of copies."""
        return self.min_replicas is not None or self.max_replicas is not None

    def deployment(self, cluster: ClusterOptions) -> dict[str, object]:
        """Return the arguments of the deployment."""
        scale = self._scale(cluster)
        scale.check("serve-")
        gpus = cluster.gpus_of_copy(self.gpus)
        cluster.check_room("serve-replicas", scale.minimum, self.cpus, gpus)
        autoscaling = {
            "initial_replicas": scale.replicas,
            "min_replicas": scale.minimum,
            "max_replicas": scale.maximum,
            "target_ongoing_requests": self.ongoing_requests,
        }
        return {
            "autoscaling_config": autoscaling if self.autoscaling else None,
            "num_replicas": None if self.autoscaling else scale.replicas,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": gpus},
        }

    def _scale(self, cluster: ClusterOptions) -> Scale:
        replicas = self.replicas
        if replicas is None:
            replicas = max(1, cluster.workers.replicas, self.min_replicas or 1)
            replicas = min(replicas, self.max_replicas or replicas)
        minimum = self.min_replicas or (1 if self.autoscaling else replicas)
        maximum = self.max_replicas or max(replicas, minimum)
        return Scale(replicas=replicas, minimum=minimum, maximum=maximum)


def write(image: RayImage, options: ClusterOptions, service: ServiceOptions) -> str:
    """Write a RayService, which serves requests."""
    if image.parts is not None and "serve" not in image.parts:
        raise OptionError(
            f"image: {image.reference} has no Ray Serve",
            hint="mfimage build REFERENCE --target ray --with serve -t NAME --push",
        )
    cluster = Cluster(image, options)
    cluster.check_workers()
    chosen = {"function": image.function} if image.several else {}
    application = {
        "name": image.function,
        "route_prefix": f"/{image.function}",
        "import_path": "mfimage.runtime.ray_worker:build",
        "args": {**service.deployment(options), **chosen},
    }
    serve = {
        "http_options": {"host": "0.0.0.0", "port": SERVE_PORT},  # noqa: S104  (of a pod)
        "applications": [application],
    }
    spec = {
        "excludeHeadPodFromServeSvc": True,
        "serveConfigV2": to_yaml(serve),
        "rayClusterConfig": cluster.spec(serves=True),
    }
    return cluster.write("RayService", spec)


KIND = Kind(
    stated=StatedRay,
    options=(
        (ClusterOptions, ""),
        (ServiceOptions, "serve_"),
    ),
    read=read_ray_image,
    write=write,
)
