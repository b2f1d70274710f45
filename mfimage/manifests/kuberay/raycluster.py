"""A RayCluster that waits for jobs and drivers."""

from __future__ import annotations

from mfimage.manifests.kind import Kind
from mfimage.manifests.kuberay.cluster import Cluster
from mfimage.manifests.kuberay.image import RayImage, read_ray_image
from mfimage.manifests.kuberay.options import ClusterOptions, StatedRay


def write(image: RayImage, options: ClusterOptions) -> str:
    """Write a RayCluster for jobs and drivers."""
    cluster = Cluster(image, options)
    return cluster.write("RayCluster", cluster.spec(), name_length=53)


KIND = Kind(stated=StatedRay, options=((ClusterOptions, ""),), read=read_ray_image, write=write)
