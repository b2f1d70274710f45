"""A RayCluster that waits for jobs and drivers."""

from __future__ import annotations

from mfimage.manifests.kuberay.cluster import Cluster
from mfimage.manifests.kuberay.image import RayImage
from mfimage.manifests.kuberay.options import ClusterOptions

OPTIONS, PREFIX = None, ""


def write(image: RayImage, options: ClusterOptions) -> str:
    """Write a RayCluster that waits for jobs and drivers."""
    cluster = Cluster(image, options)
    return cluster.write("RayCluster", cluster.spec(), name_length=53)
