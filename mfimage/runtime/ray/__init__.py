"""A function on a Ray cluster: batch jobs, Ray Serve, checks before Ray starts."""
