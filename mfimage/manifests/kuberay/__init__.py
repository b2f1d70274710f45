"""RayCluster, RayJob and RayService manifests for an image of target ray, run by KubeRay.

A kind is a module with ``write(image, cluster, options)``, its own ``OPTIONS`` if it has any, and
their flags' ``PREFIX``; another one is a new module and its name in ``KINDS``. The image is a
`RayImage` (`image.read_ray_image`), the cluster's options are `ClusterOptions` (`options`).
"""

KINDS = ("raycluster", "rayjob", "rayservice")
