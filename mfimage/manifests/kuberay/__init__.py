"""RayCluster, RayJob and RayService manifests for an image of target ray, run by KubeRay.

The image is a `RayImage` (`image.read_ray_image`), the cluster's options are `ClusterOptions`
(`options`); a kind that has more options has them in its own module.
"""
