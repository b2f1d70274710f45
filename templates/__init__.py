"""Layout of Dockerfiles and manifests; Python holds the decisions."""
