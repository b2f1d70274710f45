"""RayCluster, RayJob and RayService manifests for an image of target ray, run by KubeRay.

`manifest` has a function for each; they take a `RayImage` (`image.read_ray_image`), the
`ClusterOptions` (`options`) and what runs on the cluster (`work`).
"""
