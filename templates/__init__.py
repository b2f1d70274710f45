"""Templates of Dockerfiles."""
