"""A function's Ray image on Kubernetes: RayCluster, RayJob and RayService manifests."""
